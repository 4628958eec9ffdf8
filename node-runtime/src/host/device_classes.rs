//! Keeps the host's PCI functions as its policy wants them, and offers the device classes to kubelet.

use crate::device_plugin::{Device, DevicePlugin};
use crate::pci::{Devices, Report, Unit};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use vse_crds::{DeviceClass, device_resource};

/// How often the functions are looked at: nothing tells when an interface goes up or a disk is mounted. Looking is
/// reading some files of sysfs for each function; nothing is written when nothing changed.
const LOOK_AGAIN: Duration = Duration::from_secs(30);

/// Holds the classes in force, from when they are known.
pub(super) async fn keep(devices: &Devices, mut classes: watch::Receiver<Option<Vec<DeviceClass>>>) {
    loop {
        let wanted = classes.borrow_and_update().clone();
        if let Some(wanted) = wanted
            && let Err(error) = devices.keep(wanted).await
        {
            tracing::error!(%error, "devices");
        }
        tokio::select! {
            changed = classes.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(LOOK_AGAIN) => {}
        }
    }
}

/// A class's plugin. Dropping it ends the plugin.
struct Offer {
    devices: watch::Sender<Vec<Device>>,
    plugin: JoinHandle<()>,
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.plugin.abort();
    }
}

/// Serves one plugin for each class in force.
pub(super) async fn offer(directory: PathBuf, mut reports: watch::Receiver<Option<Report>>) {
    let mut offers = BTreeMap::<String, Offer>::new();
    loop {
        if let Some(report) = reports.borrow_and_update().as_ref() {
            offers.retain(|class, _| report.classes.iter().any(|known| known.name == *class));
            for class in &report.classes {
                let now = of_class(report, &class.name);
                let offer = offers.entry(class.name.clone()).or_insert_with(|| start(&directory, &class.name));
                offer.devices.send_if_modified(|known| std::mem::replace(known, now.clone()) != now);
            }
        }
        if reports.changed().await.is_err() {
            return;
        }
    }
}

fn start(directory: &std::path::Path, class: &str) -> Offer {
    let (devices, offered) = watch::channel(Vec::new());
    let plugin = DevicePlugin {
        resource: device_resource(class),
        devices: offered,
        node: None,
        directory: directory.to_owned(),
    };
    Offer { devices, plugin: tokio::spawn(plugin.keep_served()) }
}

fn of_class(report: &Report, class: &str) -> Vec<Device> {
    let device = |unit: &Unit| {
        Some(Device {
            id: unit.id()?.to_string(),
            healthy: unit.problem.is_none(),
            cell: unit.cell,
            functions: unit.functions.iter().map(ToString::to_string).collect(),
        })
    };
    report.units.iter().filter(|unit| unit.class == class).filter_map(device).collect()
}
