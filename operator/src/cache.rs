//! Watches: one reflector for each kind the VSE controller needs, stripped to what planning reads.

use futures::future::ready;
use futures::{FutureExt, Stream, StreamExt};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::runtime::reflector::{self, Store};
use kube::runtime::watcher::{self, watcher};
use kube::runtime::{WatchStreamExt, reflector::Lookup};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use std::fmt::Debug;
use std::hash::Hash;
use vse_crds::{Host, MicroVM, VSE, VSEProfile, labels};

/// Annotation with which `kubectl apply` keeps a copy of the whole manifest.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The objects the VSE controller plans from, as last seen.
#[derive(Clone)]
pub struct Cache {
    /// All VSEs.
    pub vses: Store<VSE>,
    /// VM pods.
    pub pods: Store<Pod>,
    /// All MicroVMs.
    pub microvms: Store<MicroVM>,
    /// All profiles.
    pub profiles: Store<VSEProfile>,
    /// All claims.
    pub claims: Store<PersistentVolumeClaim>,
    /// All hosts.
    pub hosts: Store<Host>,
}

impl Cache {
    /// Whether each kind was listed once; before, an object's absence means nothing.
    pub fn is_complete(&self) -> bool {
        is_listed(&self.vses)
            && is_listed(&self.pods)
            && is_listed(&self.microvms)
            && is_listed(&self.profiles)
            && is_listed(&self.claims)
            && is_listed(&self.hosts)
    }
}

fn is_listed<K>(store: &Store<K>) -> bool
where
    K: Lookup + Clone + 'static,
    K::DynamicType: Eq + Hash + Clone,
{
    matches!(store.wait_until_ready().now_or_never(), Some(Ok(())))
}

/// A watch of all namespaces: a store, and the stream of touched (applied or deleted) objects that fills it.
pub fn watch<K>(
    client: &Client,
    config: watcher::Config,
    strip: fn(&mut K),
) -> (Store<K>, impl Stream<Item = Result<K, watcher::Error>> + Send + 'static)
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static,
{
    let (store, writer) = reflector::store();
    let stream = watcher(Api::all(client.clone()), config)
        .default_backoff()
        .modify(move |object: &mut K| {
            object.managed_fields_mut().clear();
            object.annotations_mut().remove(LAST_APPLIED);
            strip(object);
        })
        .reflect(writer)
        .touched_objects()
        .filter(|touched| ready(!failed::<K>(touched)));
    (store, stream)
}

/// Whether a watch failed, which is told here and no further: it has waited by itself already, and a controller would
/// make all its watches wait, twice as long for each one that fails. After a restart of the API server all do.
fn failed<K: Resource<DynamicType = ()>>(touched: &Result<K, watcher::Error>) -> bool {
    let Err(error) = touched else { return false };
    tracing::warn!(kind = %K::kind(&()), %error, "watch failed; trying again");
    true
}

/// Restricts a watch to VM pods.
pub fn vm_pods() -> watcher::Config {
    watcher::Config::default().labels(&format!("{}={}", labels::COMPONENT, labels::COMPONENT_VM))
}

/// Keeps an object as it is.
pub fn whole<K>(_: &mut K) {}

/// Keeps of a pod what [`crate::vse::pod_facts`] and [`crate::vse::pod::accelerator`] read.
pub fn strip_pod(pod: &mut Pod) {
    let Some(spec) = &mut pod.spec else { return };
    spec.volumes = None;
    spec.tolerations = None;
    spec.affinity = None;
    for container in &mut spec.containers {
        container.volume_mounts = None;
        container.env = None;
        container.command = None;
    }
}

/// Keeps of a claim how large it is and whether it is a block device.
pub fn strip_claim(claim: &mut PersistentVolumeClaim) {
    claim.metadata.annotations = None;
    claim.metadata.labels = None;
}

/// Keeps of a host what [`crate::vse::choose`] reads.
pub fn strip_host(host: &mut Host) {
    if let Some(status) = &mut host.status {
        status.devices = Vec::new();
        status.cpu.topology = Vec::new();
        status.cpu.caches = Vec::new();
    }
}
