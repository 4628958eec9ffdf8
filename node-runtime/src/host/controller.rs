//! Keeps the Host object and the offered resources true. Policies, the Node and the kernel's word on hardware are watched;
//! after each word the hardware is looked at, and what differs is published.

use super::uevents::Uevents;
use super::{Hardware, effective_policy, publish};
use crate::device_plugin::DevicePlugin;
use crate::report;
use anyhow::Context;
use futures::StreamExt;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Node;
use kube::api::Api;
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, ResourceExt};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
use vse_crds::{Accelerator, Host, HostPolicy, HostStatus, labels};

/// Guests a host may hold at a time: no limit of its own, CPUs and memory are.
const TICKETS: u32 = 1000;
/// Wait before the plugin is served again, or the Host written again, after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(2);
/// A change of hardware is many events (a card's functions, each with its driver): the look is taken when they are over.
const SETTLE: Duration = Duration::from_secs(1);

/// Runs until the process ends.
pub async fn run(client: Client, name: String, hardware: Hardware, plugins: PathBuf) -> anyhow::Result<()> {
    let (offer, offered) = watch::channel(None);
    tokio::select! {
        ended = keep_published(client, name, hardware, offer) => ended,
        () = keep_offered(plugins, offered) => Ok(()),
    }
}

async fn keep_published(
    client: Client,
    name: String,
    hardware: Hardware,
    offer: watch::Sender<Option<Accelerator>>,
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
            }
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
        let wanted = publish::status(&found, policy, published.as_ref(), Timestamp::now());
        offer.send_if_modified(|current| {
            let best = best_accelerator(&wanted);
            std::mem::replace(current, best) != best
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

fn best_accelerator(host: &HostStatus) -> Option<Accelerator> {
    host.engines.iter().flat_map(|engine| &engine.accelerators).min().copied()
}

/// Serves the resource of the accelerator this host offers, as long as it offers it.
async fn keep_offered(directory: PathBuf, mut offered: watch::Receiver<Option<Accelerator>>) {
    loop {
        let resource = match *offered.borrow_and_update() {
            Some(Accelerator::Kvm) => Some(labels::RESOURCE_KVM),
            Some(Accelerator::Tcg) => Some(labels::RESOURCE_EMULATION),
            None => None,
        };
        let serve = async {
            match resource {
                Some(resource) => {
                    let plugin = DevicePlugin { resource, tickets: TICKETS, directory: directory.clone() };
                    match plugin.serve().await {
                        Ok(()) => tracing::info!(resource, "kubelet restarted"),
                        Err(error) => {
                            tracing::warn!(resource, error = %report(&error), "device plugin, will try again");
                            tokio::time::sleep(AFTER_FAILURE).await;
                        }
                    }
                }
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = serve => {}
            changed = offered.changed() => if changed.is_err() { return },
        }
    }
}
