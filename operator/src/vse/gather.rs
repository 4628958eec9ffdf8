//! Fills [`Observed`] from the cache, and a slow pod's warnings from the API server.

use crate::cache::Cache;
use crate::error::Error;
use crate::vse::observe::Observed;
use crate::vse::pod::Images;
use crate::vse::pod_facts::PodFacts;
use crate::vse::storage::Claims;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::ListParams;
use kube::runtime::reflector::ObjectRef;
use kube::{Api, Client, Resource, ResourceExt};
use std::sync::Arc;
use vse_crds::{VSE, labels};

/// Most events of one pod that are read.
const MAX_EVENTS: u32 = 50;

/// Everything about a VSE at this time.
pub async fn gather(client: &Client, cache: &Cache, images: &Images, vse: Arc<VSE>) -> Result<Observed, Error> {
    let pods = cache.pods.state_filter(|pod| is_of(pod, &vse));
    let microvms = cache.microvms.state_filter(|vm| is_of(vm, &vse));
    let profile = vse.spec.profile_name.as_ref().and_then(|name| cache.profiles.get(&ObjectRef::new(name)));
    let now = Timestamp::now();
    let mut pod_warning = None;
    for pod in pods.iter().filter(|pod| is_slow(pod, now)) {
        pod_warning = newest_warning(client, pod).await?;
    }
    Ok(Observed {
        claims: claims(cache, &vse),
        engines: images.engines.keys().copied().collect(),
        hosts: cache.hosts.state(),
        profile,
        pods,
        microvms,
        pod_warning,
        now,
        vse,
    })
}

/// Whether an object carries the VSE's label in its namespace. Ownership by UID is checked where it matters.
fn is_of<K: Resource>(object: &K, vse: &VSE) -> bool {
    object.meta().namespace == vse.metadata.namespace && object.labels().get(labels::VSE) == vse.metadata.name.as_ref()
}

fn claims(cache: &Cache, vse: &VSE) -> Claims {
    let namespace = vse.namespace().unwrap_or_default();
    vse.spec
        .volumes
        .iter()
        .filter_map(|volume| {
            let name = &volume.persistent_volume_claim.as_ref()?.claim_name;
            let key = ObjectRef::new(name).within(&namespace);
            Some((name.clone(), cache.claims.get(&key)?))
        })
        .collect()
}

fn is_slow(pod: &Pod, now: Timestamp) -> bool {
    let facts = PodFacts::of(pod);
    facts.waiting().is_none() && facts.slow_at().is_some_and(|at| at <= now)
}

/// What kubelet says in the way of a pod's start that it does not say in the pod's status: mounts.
async fn newest_warning(client: &Client, pod: &Pod) -> Result<Option<String>, Error> {
    let events: Api<Event> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    let selector = format!("type=Warning,involvedObject.uid={}", pod.uid().unwrap_or_default());
    let params = ListParams::default().fields(&selector).limit(MAX_EVENTS);
    let list = events.list(&params).await.map_err(Error::api("list events of the pod"))?;
    Ok(list.items.into_iter().max_by_key(|event| event.metadata.creation_timestamp.as_ref().map(|t| t.0)).map(
        |event| {
            let reason = event.reason.unwrap_or_default();
            let message = event.message.unwrap_or_default();
            format!("{reason}: {message}")
        },
    ))
}
