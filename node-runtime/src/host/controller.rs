//! Keeps the Host object and the offered resources true. Policies, the Node and the kernel's word on hardware are watched;
//! after each word the hardware is looked at, and what differs is published. Devices are [`device_classes`]' business.

use super::uevents::Uevents;
use super::{Hardware, device_classes, effective_policy, publish};
use crate::device_plugin::{Offers, tickets};
use crate::pci::{Devices, Report};
use crate::report;
use anyhow::Context;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, ResourceExt};
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
use vse_crds::{Accelerator, DeviceClass, EngineName, Host, HostPolicy, HostStatus, labels};

/// Guests a host may hold at a time: no limit of its own, CPUs and memory are.
const TICKETS: u32 = 1000;
/// Wait before the Host is written again after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(2);
/// A change of hardware is many events (a card's functions, each with its driver): the look is taken when they are over.
const SETTLE: Duration = Duration::from_secs(1);

/// Runs until the process ends.
pub async fn run(
    client: Client,
    name: String,
    hardware: Hardware,
    plugins: PathBuf,
    devices: &Devices,
) -> anyhow::Result<()> {
    let (offer, offered) = watch::channel(BTreeSet::new());
    let (in_force, classes) = watch::channel(None);
    tokio::select! {
        ended = keep_published(client, name, hardware, offer, in_force, devices.reports()) => ended,
        () = keep_offered(plugins.clone(), offered) => Ok(()),
        () = device_classes::keep(devices, classes) => Ok(()),
        () = device_classes::offer(plugins, devices.reports()) => Ok(()),
    }
}

async fn keep_published(
    client: Client,
    name: String,
    hardware: Hardware,
    offer: watch::Sender<BTreeSet<&'static str>>,
    in_force: watch::Sender<Option<Vec<DeviceClass>>>,
    mut reports: watch::Receiver<Option<Report>>,
) -> anyhow::Result<()> {
    let node = Api::<Node>::all(client.clone()).get(&name).await?;
    let node_uid = node.uid().unwrap_or_default();
    let (policies, writer) = reflector::store();
    let policy_changes =
        watcher(Api::<HostPolicy>::all(client.clone()), watcher::Config::default()).default_backoff().reflect(writer);
    let own = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let (nodes, writer) = reflector::store();
    let node_changes = watcher(Api::<Node>::all(client.clone()), own)
        .default_backoff()
        // Only its labels matter, and that it changed: the kernel has no word on huge page pools, but kubelet tells of
        // them and of its health, every few minutes at least.
        .modify(|node| {
            node.managed_fields_mut().clear();
            node.status = None;
        })
        .reflect(writer);
    let mut published = Api::<Host>::all(client.clone()).get_opt(&name).await?.and_then(|host| host.status);
    let uevents = Uevents::listen().context("cannot listen to the kernel's word on hardware")?;
    let mut found = hardware.observe().context("cannot see what this host has")?;
    let mut policy_changes = std::pin::pin!(policy_changes);
    let mut node_changes = std::pin::pin!(node_changes);
    let mut again = false;
    let mut lists = (false, false);
    loop {
        tokio::select! {
            Some(change) = policy_changes.next() => lists.0 |= matches!(change, Ok(watcher::Event::InitDone)),
            Some(change) = node_changes.next() => lists.1 |= matches!(change, Ok(watcher::Event::InitDone)),
            heard = uevents.hardware_changed() => {
                heard.context("the kernel's word on hardware")?;
                tokio::time::sleep(SETTLE).await;
                // The same classes again: a reason to look at the devices.
                in_force.send_modify(|_| {});
            }
            Ok(()) = reports.changed() => {}
            () = tokio::time::sleep(AFTER_FAILURE), if again => {}
        }
        if lists != (true, true) {
            continue;
        }
        match hardware.observe() {
            Ok(now) => found = now,
            Err(error) => tracing::warn!(error = %report(&error), "cannot see what this host has"),
        }
        let node_labels = nodes.state().first().map(|node| node.labels().clone()).unwrap_or_default();
        let all = policies.state();
        let policy = effective_policy(all.iter().map(AsRef::as_ref), &node_labels);
        in_force.send_if_modified(|current| {
            let classes = Some(policy.map(|policy| policy.spec.device_classes.clone()).unwrap_or_default());
            std::mem::replace(current, classes.clone()) != classes
        });
        // Seen once the classes are known, which they are now.
        let Some(devices) = reports.borrow_and_update().clone() else { continue };
        let wanted = publish::status(&found, &devices, policy, published.as_ref(), Timestamp::now());
        offer.send_if_modified(|current| {
            let resources = resources(&wanted);
            std::mem::replace(current, resources.clone()) != resources
        });
        match publish::publish(&client, &name, &node_uid, wanted).await {
            Ok(status) => {
                published = Some(status);
                again = false;
            }
            Err(error) => {
                tracing::warn!(error = %report(&error), "Host not published, will try again");
                again = true;
            }
        }
    }
}

/// The extended resources of a host: its best accelerator, and each engine that guests may run under there.
fn resources(host: &HostStatus) -> BTreeSet<&'static str> {
    let accelerator = host.engines.iter().flat_map(|engine| &engine.accelerators).min().map(|best| match best {
        Accelerator::Kvm => labels::RESOURCE_KVM,
        Accelerator::Tcg => labels::RESOURCE_EMULATION,
    });
    let engines = host.engines.iter().filter(|engine| !engine.accelerators.is_empty());
    accelerator.into_iter().chain(engines.map(|engine| engine.name.resource())).collect()
}

/// Offers the right to run guests here, by each accelerator and engine that can.
async fn keep_offered(directory: PathBuf, mut offered: watch::Receiver<BTreeSet<&'static str>>) {
    let mut offers = Offers::new(directory);
    loop {
        let wanted = offered.borrow_and_update().clone();
        offers.withdraw_all_but(|resource| wanted.contains(resource));
        for resource in wanted {
            let node = (resource == EngineName::CloudHypervisor.resource()).then_some("/dev/kvm");
            offers.offer(resource, tickets(TICKETS), node);
        }
        if offered.changed().await.is_err() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vse_crds::HostEngine;

    #[test]
    fn a_host_offers_its_best_accelerator_and_the_engines_that_run() {
        let engine = |name, accelerators: &[Accelerator]| HostEngine {
            name,
            accelerators: accelerators.into(),
            capabilities: Vec::new(),
            limits: None,
            reason: String::new(),
        };
        let host = |engines| HostStatus { engines, ..HostStatus::default() };
        let emulating = host(vec![engine(EngineName::Vmm, &[]), engine(EngineName::Qemu, &[Accelerator::Tcg])]);
        assert_eq!(resources(&emulating), ["vse.hpc.io/emulation", "vse.hpc.io/engine-qemu"].into());
        let fast = [EngineName::Vmm, EngineName::Qemu].map(|name| engine(name, &[Accelerator::Kvm]));
        let offered = resources(&host(fast.into()));
        assert_eq!(offered, ["vse.hpc.io/kvm", "vse.hpc.io/engine-vmm", "vse.hpc.io/engine-qemu"].into());
        assert!(resources(&host(vec![engine(EngineName::Vmm, &[])])).is_empty());
    }
}
