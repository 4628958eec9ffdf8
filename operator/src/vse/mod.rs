//! The VSE controller: observe → plan → execute → status.

pub mod choose;
pub mod devices;
pub mod events;
pub mod execute;
pub mod exit;
pub mod fingerprint;
pub mod gather;
pub mod life;
pub mod merge;
pub mod microvm;
pub mod names;
pub mod observe;
pub mod order;
pub mod overhead;
pub mod plan;
pub mod pod;
pub mod pod_facts;
pub mod refusal;
pub mod shape;
pub mod status;
pub mod storage;
pub mod trouble;

use crate::cache::{self, Cache};
use crate::error::{Class, Error};
use crate::metrics::Metrics;
use crate::vse::execute::Executor;
use crate::vse::observe::Observed;
use crate::vse::plan::Plan;
use crate::vse::pod::Images;
use crate::vse::refusal::Refusal;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::runtime::controller::{Action as Again, Config, Controller};
use kube::runtime::events::Recorder;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::watcher;
use kube::{Client, Resource, ResourceExt};
use std::sync::Arc;
use std::time::Duration;
use vse_crds::{Host, MicroVM, VSE, VSEPhase, VSEProfile, VSEStatus};

/// VSEs planned at the same time. Each is a few calls long; the API server is the bottleneck.
const CONCURRENCY: u16 = 8;

/// How long to wait for the caches at the start.
const CACHE_POLL: Duration = Duration::from_millis(50);

/// What a reconciliation needs.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What was seen of it.
    pub cache: Cache,
    /// Images of VM pods.
    pub images: Images,
    /// Where events go.
    pub recorder: Recorder,
    /// Where counts go.
    pub metrics: Metrics,
}

/// Watches, and the cache they fill. The streams must be driven by [`run`].
pub struct Watches {
    vses: BoxStream<VSE>,
    pods: BoxStream<Pod>,
    microvms: BoxStream<MicroVM>,
    profiles: BoxStream<VSEProfile>,
    claims: BoxStream<PersistentVolumeClaim>,
    hosts: BoxStream<Host>,
}

type BoxStream<K> = futures::stream::BoxStream<'static, Result<K, watcher::Error>>;

/// The watches of the controller.
pub fn watches(client: &Client) -> (Cache, Watches) {
    let all = watcher::Config::default;
    let (vse_store, vses) = cache::watch(client, all(), cache::whole);
    let (pod_store, pods) = cache::watch(client, cache::vm_pods(), cache::strip_pod);
    let (microvm_store, microvms) = cache::watch(client, all(), cache::whole);
    let (profile_store, profiles) = cache::watch(client, all(), cache::whole);
    let (claim_store, claims) = cache::watch(client, all(), cache::strip_claim);
    let (host_store, hosts) = cache::watch(client, all(), cache::strip_host);
    let cache = Cache {
        vses: vse_store,
        pods: pod_store,
        microvms: microvm_store,
        profiles: profile_store,
        claims: claim_store,
        hosts: host_store,
    };
    let watches = Watches {
        vses: vses.boxed(),
        pods: pods.boxed(),
        microvms: microvms.boxed(),
        profiles: profiles.boxed(),
        claims: claims.boxed(),
        hosts: hosts.boxed(),
    };
    (cache, watches)
}

/// Runs the controller until `stop` resolves; reconciliations under way are finished.
pub async fn run(context: Arc<Context>, watches: Watches, stop: impl Future<Output = ()> + Send + Sync + 'static) {
    let Watches { vses, pods, microvms, profiles, claims, hosts } = watches;
    let store = context.cache.vses.clone();
    let (by_profile, by_claim, by_host) = (store.clone(), store.clone(), store.clone());
    Controller::for_stream(vses, store)
        .with_config(Config::default().concurrency(CONCURRENCY))
        .owns_stream(pods)
        .owns_stream(microvms)
        .watches_stream(profiles, move |profile: VSEProfile| {
            let name = profile.name_any();
            select(&by_profile, move |vse| vse.spec.profile_name.as_deref() == Some(&name))
        })
        .watches_stream(claims, move |claim: PersistentVolumeClaim| {
            select(&by_claim, move |vse| uses_claim(vse, &claim))
        })
        .watches_stream(hosts, move |host: Host| select(&by_host, move |vse| is_about(vse, &host)))
        .graceful_shutdown_on(stop)
        .run(reconcile, failed, context)
        .for_each(log)
        .await;
}

fn select(store: &Store<VSE>, wanted: impl Fn(&VSE) -> bool) -> Vec<ObjectRef<VSE>> {
    let selected = store.state_filter(|vse| wanted(vse));
    selected.iter().map(|vse| ObjectRef::from_obj(vse.as_ref())).collect()
}

fn uses_claim(vse: &VSE, claim: &PersistentVolumeClaim) -> bool {
    vse.metadata.namespace == claim.metadata.namespace
        && vse.spec.volumes.iter().any(|volume| {
            let named = volume.persistent_volume_claim.as_ref();
            named.map(|named| &named.claim_name) == claim.metadata.name.as_ref()
        })
}

/// A change of a host matters to what waits for one, and to what is on it.
fn is_about(vse: &VSE, host: &Host) -> bool {
    use VSEPhase::{Halted, Paused, Running, Succeeded};
    let status = vse.status.as_ref();
    let settled = matches!(status.and_then(|s| s.phase), Some(Running | Paused | Halted | Succeeded));
    !settled || status.and_then(|s| s.node_name.as_ref()) == host.metadata.name.as_ref()
}

async fn log(result: Result<(ObjectRef<VSE>, Again), ControllerError>) {
    use kube::runtime::controller::Error as E;
    match result {
        // Logged where they happened, or about an object that is gone.
        Ok(_) | Err(E::ReconcilerFailed(..) | E::ObjectNotFound(_)) => {}
        Err(error) => tracing::warn!(%error, "watch failed; trying again"),
    }
}

type ControllerError = kube::runtime::controller::Error<Error, watcher::Error>;

/// One pass over one VSE.
async fn reconcile(vse: Arc<VSE>, context: Arc<Context>) -> Result<Again, Error> {
    if !context.cache.is_complete() {
        return Ok(Again::requeue(CACHE_POLL));
    }
    let timer = context.metrics.start("VSE");
    let outcome = pass(vse, &context).await;
    timer.finish(outcome.as_ref().err().map(Error::reason));
    outcome
}

async fn pass(vse: Arc<VSE>, context: &Context) -> Result<Again, Error> {
    let seen = gather::gather(&context.client, &context.cache, &context.images, vse).await?;
    let plan = plan::plan(&seen, &context.images);
    let executor = Executor::new(&context.client, &seen.vse);
    let failure = execute(&executor, &plan).await.err();
    let status = match &failure {
        Some(error) if error.class() == Class::Invalid => refused(&seen, &plan, error),
        Some(_) => return failure.map_or(Ok(Again::await_change()), Err),
        None => plan.status.clone(),
    };
    write_status(context, &executor, &seen, &status).await?;
    match failure {
        Some(error) => Err(error),
        None => Ok(again(&plan, seen.now)),
    }
}

async fn execute(executor: &Executor<'_>, plan: &Plan) -> Result<(), Error> {
    for action in &plan.actions {
        tracing::debug!(?action, "executing");
        executor.execute(action).await?;
    }
    Ok(())
}

/// The plan's status, with the API server's refusal of one of its calls in it.
fn refused(seen: &Observed, plan: &Plan, error: &Error) -> VSEStatus {
    let refusal = Refusal::one(error.reason(), "spec", error.explain());
    status::report_failure(seen, plan.status.clone(), refusal)
}

/// Writes the status if it differs from the one observed, and tells of the transition.
async fn write_status(
    context: &Context,
    executor: &Executor<'_>,
    seen: &Observed,
    status: &VSEStatus,
) -> Result<(), Error> {
    let was = seen.status();
    if was == *status {
        return Ok(());
    }
    executor.write_status(status).await?;
    let reference = seen.vse.object_ref(&());
    for event in events::events(&was, status) {
        tracing::info!(
            vse = %ObjectRef::from_obj(seen.vse.as_ref()),
            incarnation = status.incarnation,
            reason = event.reason,
            note = event.note.as_deref().unwrap_or_default(),
        );
        if let Err(error) = context.recorder.publish(&event, &reference).await {
            tracing::warn!(%error, "event not recorded");
        }
    }
    Ok(())
}

fn again(plan: &Plan, now: Timestamp) -> Again {
    match plan.again_at {
        None => Again::await_change(),
        Some(at) => {
            let wait = at.duration_since(now).max(jiff::SignedDuration::ZERO);
            Again::requeue(wait.unsigned_abs() + Duration::from_millis(1))
        }
    }
}

fn failed(vse: Arc<VSE>, error: &Error, _: Arc<Context>) -> Again {
    let vse = ObjectRef::from_obj(vse.as_ref());
    let (reason, detail) = (error.reason().as_str(), error.explain());
    match error.class() {
        Class::Wait => tracing::debug!(%vse, reason, detail, "planned from a stale view"),
        Class::Retry | Class::Invalid => tracing::warn!(%vse, reason, detail, "call failed"),
    }
    Again::requeue(error.retry_after())
}

#[cfg(test)]
mod tests;
