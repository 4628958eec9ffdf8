//! The MicroVM controller: lets go of MicroVMs whose VSE is gone (somebody removed its finalizer by force). All others
//! are the VSE controller's.

use crate::error::Error;
use crate::metrics::Metrics;
use crate::vse::execute::{set_finalizers, without_ours};
use crate::vse::life::is_released;
use futures::StreamExt;
use kube::api::DeleteParams;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use std::sync::Arc;
use vse_crds::{MicroVM, VSE, labels};

struct Context {
    client: Client,
    metrics: Metrics,
}

/// Runs the controller until `stop` resolves.
pub async fn run(client: Client, metrics: Metrics, stop: impl Future<Output = ()> + Send + Sync + 'static) {
    let microvms: Api<MicroVM> = Api::all(client.clone());
    let context = Arc::new(Context { client, metrics });
    Controller::new(microvms, watcher::Config::default())
        .graceful_shutdown_on(stop)
        .run(reconcile, failed, context)
        .for_each(|_| std::future::ready(()))
        .await;
}

/// What to do with a MicroVM whose VSE is gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Have its guest shut down.
    Delete,
    /// Wait for its host.
    Wait,
    /// Its host holds nothing of it: let it go.
    Release,
}

/// The next step for a MicroVM whose VSE is gone, pure.
pub fn step(vm: &MicroVM) -> Step {
    match (vm.metadata.deletion_timestamp.is_some(), is_released(vm)) {
        (false, _) => Step::Delete,
        (true, false) => Step::Wait,
        (true, true) => Step::Release,
    }
}

async fn reconcile(vm: Arc<MicroVM>, context: Arc<Context>) -> Result<Action, Error> {
    // A VSE in the order's life never makes a MicroVM's deletion a question of ours; asking the API server for each
    // change of each MicroVM would be waste.
    let held = vm.finalizers().iter().any(|f| f == labels::FINALIZER);
    if !held || (vm.metadata.deletion_timestamp.is_none() && !is_released(&vm)) {
        return Ok(Action::await_change());
    }
    let timer = context.metrics.start("MicroVM");
    let outcome = pass(&vm, &context).await;
    timer.finish(outcome.as_ref().err().map(Error::reason));
    outcome.map(|()| Action::await_change())
}

async fn pass(vm: &MicroVM, context: &Context) -> Result<(), Error> {
    let namespace = vm.namespace().unwrap_or_default();
    let name = vm.name_any();
    let vses: Api<VSE> = Api::namespaced(context.client.clone(), &namespace);
    let found = vses.get_metadata_opt(&vm.spec.vse_name).await;
    let vse = found.map_err(Error::api(format!("get VSE {}", vm.spec.vse_name)))?;
    if vse.is_some_and(|vse| vse.metadata.uid.as_deref() == Some(&vm.spec.vse_uid)) {
        return Ok(());
    }
    let microvms: Api<MicroVM> = Api::namespaced(context.client.clone(), &namespace);
    match step(vm) {
        Step::Wait => Ok(()),
        Step::Delete => microvms
            .delete(&name, &DeleteParams::default())
            .await
            .map(drop)
            .map_err(Error::api(format!("delete MicroVM {name}"))),
        Step::Release => {
            let finalizers = without_ours(vm.finalizers());
            set_finalizers(&microvms, "MicroVM", &vm.metadata, finalizers).await
        }
    }
}

fn failed(_: Arc<MicroVM>, error: &Error, _: Arc<Context>) -> Action {
    tracing::warn!(detail = error.explain(), "call failed");
    Action::requeue(error.retry_after())
}
