//! From watches to guests: one task for each MicroVM of this host, fed with what the API server says of it and its pod.
//!
//! Holds no state of its own that matters: after a restart the watches bring everything back, and each guest's task
//! finds out what runs.

use super::Context;
use super::guest::Guest;
use futures::{Stream, StreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Resource, ResourceExt};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Arc;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tracing::Instrument;
use vse_crds::{MicroVM, labels};

/// Namespace and name: a MicroVM and its pod have the same.
type Name = (String, String);

/// Something changed.
enum Change {
    Vm(Box<watcher::Event<MicroVM>>),
    Pod(Box<watcher::Event<Pod>>),
}

/// A guest's task and its inputs. Dropping it ends the task; the guest itself goes on.
struct Running {
    vm: watch::Sender<Arc<MicroVM>>,
    pod: watch::Sender<Option<Arc<Pod>>>,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// Watches until the process ends.
pub async fn run(context: Arc<Context>) {
    let pods: Api<Pod> = Api::all(context.client.clone());
    let vms: Api<MicroVM> = Api::all(context.client.clone());
    let on_host = format!("spec.nodeName={}", context.node_name);
    let of_vms = format!("{}={}", labels::COMPONENT, labels::COMPONENT_VM);
    let pods = changes(pods, watcher::Config::default().fields(&on_host).labels(&of_vms))
        .map(|event| Change::Pod(Box::new(event)));
    let vms = changes(vms, watcher::Config::default().fields(&on_host)).map(|event| Change::Vm(Box::new(event)));
    let mut changes = stream::select(pods.boxed(), vms.boxed());
    let mut guests =
        Guests { context, running: BTreeMap::new(), pods: BTreeMap::new(), listed: BTreeSet::new(), is_listed: false };
    while let Some(change) = changes.next().await {
        guests.take(change);
    }
}

/// A watch that goes on for ever; what is wrong with the connection is logged and tried again.
fn changes<K>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = watcher::Event<K>> + Send
where
    K: Resource + Clone + Debug + serde::de::DeserializeOwned + Send + 'static,
{
    watcher(api, config).default_backoff().modify(|object| object.managed_fields_mut().clear()).filter_map(
        |event| async { event.inspect_err(|error| tracing::warn!(error = %crate::report(error), "watch")).ok() },
    )
}

struct Guests {
    context: Arc<Context>,
    running: BTreeMap<Name, Running>,
    pods: BTreeMap<Name, Arc<Pod>>,
    /// MicroVMs seen in the list that is being read.
    listed: BTreeSet<Name>,
    /// A list was read to its end: what is not running here is not on this host.
    is_listed: bool,
}

impl Guests {
    fn take(&mut self, change: Change) {
        match change {
            Change::Vm(event) => self.take_vm(*event),
            Change::Pod(event) => self.take_pod(*event),
        }
        self.context.metrics.guests.set(self.running.len() as i64);
        if self.is_listed {
            let pods = self.running.values().map(|running| running.vm.borrow().spec.pod_uid.clone());
            self.context.devices.set_guests(pods.collect());
        }
    }

    fn take_pod(&mut self, event: watcher::Event<Pod>) {
        match event {
            watcher::Event::Apply(pod) | watcher::Event::InitApply(pod) => {
                let name = name(&pod);
                let pod = Arc::new(pod);
                self.pods.insert(name.clone(), pod.clone());
                self.tell_pod(&name, Some(pod));
            }
            watcher::Event::Delete(pod) => {
                let name = name(&pod);
                self.pods.remove(&name);
                self.tell_pod(&name, None);
            }
            // A new list: pods that vanished meanwhile are found absent by their guests, which ask the API server.
            watcher::Event::Init => self.pods.clear(),
            watcher::Event::InitDone => {
                for (name, running) in &self.running {
                    running.pod.send_replace(self.pods.get(name).cloned());
                }
            }
        }
    }

    fn take_vm(&mut self, event: watcher::Event<MicroVM>) {
        match event {
            watcher::Event::Apply(vm) => self.vm(vm),
            watcher::Event::InitApply(vm) => {
                self.listed.insert(name(&vm));
                self.vm(vm);
            }
            watcher::Event::Delete(vm) => self.forget(&name(&vm)),
            watcher::Event::Init => self.listed.clear(),
            watcher::Event::InitDone => {
                let gone: Vec<Name> =
                    self.running.keys().filter(|name| !self.listed.contains(*name)).cloned().collect();
                gone.iter().for_each(|name| self.forget(name));
                self.is_listed = true;
            }
        }
    }

    fn tell_pod(&self, name: &Name, pod: Option<Arc<Pod>>) {
        if let Some(running) = self.running.get(name) {
            running.pod.send_replace(pod);
        }
    }

    fn vm(&mut self, vm: MicroVM) {
        let name = name(&vm);
        let vm = Arc::new(vm);
        let same = |running: &Running| running.vm.borrow().uid() == vm.uid();
        match self.running.get(&name) {
            Some(running) if same(running) => {
                running.vm.send_replace(vm);
            }
            _ => {
                let (vm_sender, vm) = watch::channel(vm);
                let (pod_sender, pod) = watch::channel(self.pods.get(&name).cloned());
                let span = tracing::info_span!("guest", namespace = name.0, name = name.1);
                let task = tokio::spawn(Guest::new(self.context.clone(), vm, pod).run().instrument(span));
                self.running.insert(name, Running { vm: vm_sender, pod: pod_sender, task });
            }
        }
    }

    /// The object is gone: either its guest was released, or somebody removed the finalizer by hand. In that case the
    /// guest is left to its pod's life.
    fn forget(&mut self, name: &Name) {
        self.running.remove(name);
    }
}

fn name<K: Resource>(object: &K) -> Name {
    (object.namespace().unwrap_or_default(), object.name_any())
}
