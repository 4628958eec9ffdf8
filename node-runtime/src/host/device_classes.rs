//! Keeps the host's PCI functions as its policy wants them, and offers the device classes to kubelet.

use crate::device_plugin::{Device, Offers};
use crate::pci::{Devices, Report, Unit};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::watch;
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

/// Offers the devices of each class in force.
pub(super) async fn offer(directory: PathBuf, mut reports: watch::Receiver<Option<Report>>) {
    let mut offers = Offers::new(directory);
    loop {
        if let Some(report) = reports.borrow_and_update().as_ref() {
            offers.withdraw_all_but(|resource| {
                report.classes.iter().any(|class| device_resource(&class.name) == resource)
            });
            for class in &report.classes {
                offers.offer(&device_resource(&class.name), of_class(report, &class.name), None);
            }
        }
        if reports.changed().await.is_err() {
            return;
        }
    }
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
