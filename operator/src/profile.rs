//! The VSEProfile controller: says whether a profile contradicts itself.

use crate::error::Error;
use crate::metrics::Metrics;
use crate::reason::Reason;
use crate::vse::execute::params;
use crate::vse::refusal::Refusal;
use crate::vse::shape;
use futures::StreamExt;
use jiff::Timestamp;
use kube::api::Patch;
use kube::runtime::controller::{Action, Controller};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use serde_json::json;
use std::sync::Arc;
use vse_crds::condition::{Status, condition};
use vse_crds::{GROUP, VERSION, VSEProfile, VSEProfileStatus};

struct Context {
    profiles: Api<VSEProfile>,
    metrics: Metrics,
}

/// Runs the controller until `stop` resolves.
pub async fn run(client: Client, metrics: Metrics, stop: impl Future<Output = ()> + Send + Sync + 'static) {
    let profiles = Api::all(client);
    let context = Arc::new(Context { profiles: profiles.clone(), metrics });
    Controller::new(profiles, watcher::Config::default())
        .graceful_shutdown_on(stop)
        .run(reconcile, failed, context)
        .for_each(|_| std::future::ready(()))
        .await;
}

/// The status a profile should have.
pub fn status(profile: &VSEProfile, now: Timestamp) -> VSEProfileStatus {
    let was = profile.status.clone().unwrap_or_default();
    let problems = shape::contradictions(&profile.spec.machine);
    let (ready, reason, message) = if problems.is_empty() {
        (Status::True, Reason::Accepted, String::new())
    } else {
        let refusal = Refusal::new(Reason::InvalidSpec, problems);
        (Status::False, refusal.reason, refusal.to_string())
    };
    let generation = profile.metadata.generation;
    let reason = reason.as_str();
    VSEProfileStatus {
        observed_generation: generation,
        conditions: vec![condition(&was.conditions, "Ready", ready, reason, message, generation, now)],
    }
}

async fn reconcile(profile: Arc<VSEProfile>, context: Arc<Context>) -> Result<Action, Error> {
    let timer = context.metrics.start("VSEProfile");
    let outcome = pass(&profile, &context).await;
    timer.finish(outcome.as_ref().err().map(Error::reason));
    outcome.map(|()| Action::await_change())
}

async fn pass(profile: &VSEProfile, context: &Context) -> Result<(), Error> {
    let status = status(profile, Timestamp::now());
    if profile.status.as_ref() == Some(&status) {
        return Ok(());
    }
    let name = profile.name_any();
    let patch = json!({
        "apiVersion": format!("{GROUP}/{VERSION}"),
        "kind": "VSEProfile",
        "status": status,
    });
    context
        .profiles
        .patch_status(&name, &params().force(), &Patch::Apply(patch))
        .await
        .map(drop)
        .map_err(Error::api(format!("write status of VSEProfile {name}")))
}

fn failed(_: Arc<VSEProfile>, error: &Error, _: Arc<Context>) -> Action {
    tracing::warn!(detail = error.explain(), "call failed");
    Action::requeue(error.retry_after())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vse_crds::condition::find;

    #[test]
    fn a_profile_that_contradicts_itself_is_not_ready() {
        let mut profile = VSEProfile::new("p", Default::default());
        let first = status(&profile, Timestamp::UNIX_EPOCH);
        assert_eq!(find(&first.conditions, "Ready").unwrap().status, "True");
        profile.status = Some(first.clone());
        assert_eq!(status(&profile, Timestamp::MAX), first, "nothing changed, nothing to write");
        profile.spec.machine.cpu.cores = Some(600);
        let broken = status(&profile, Timestamp::UNIX_EPOCH);
        let ready = find(&broken.conditions, "Ready").unwrap();
        assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("False", "InvalidSpec"));
        assert!(ready.message.starts_with("spec.machine.cpu: "));
    }
}
