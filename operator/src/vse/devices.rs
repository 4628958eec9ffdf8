//! Host devices a VSE asks for, against what hosts offer, pure. Which host, and which of its devices, kube-scheduler and
//! kubelet choose.

use crate::reason::Reason;
use crate::vse::refusal::{Problem, Refusal};
use std::collections::BTreeMap;
use vse_crds::{Devices, HostDevice, HostStatus};

/// How many of each resource.
pub fn counted(devices: &Devices) -> BTreeMap<&str, u64> {
    let mut counts = BTreeMap::new();
    for device in &devices.host_devices {
        *counts.entry(device.device_name.as_str()).or_insert(0) += 1;
    }
    counts
}

/// Field path of the first device that asks for a resource.
pub fn path(devices: &Devices, resource: &str) -> String {
    let first = devices.host_devices.iter().find(|device| device.device_name == resource);
    first.map_or_else(|| "spec.machine.devices".into(), field)
}

fn field(device: &HostDevice) -> String {
    format!("spec.machine.devices.hostDevices[{}].deviceName", device.name)
}

/// How many devices of a resource a host can give, whether or not they are taken.
pub fn offered(host: &HostStatus, resource: &str) -> u64 {
    let class = host.device_classes.iter().find(|class| vse_crds::device_resource(&class.name) == resource);
    class.map_or(0, |class| u64::from(class.devices))
}

/// Whether each class is in force on some host; a policy may still declare it.
pub fn known<'a>(devices: &Devices, hosts: impl Iterator<Item = &'a HostStatus> + Clone) -> Result<(), Refusal> {
    let classes = hosts.flat_map(|host| &host.device_classes).map(|class| class.name.as_str());
    let unknown = devices.host_devices.iter().filter(|device| !classes.clone().any(|class| class == device.class()));
    let problems: Vec<_> = unknown
        .map(|device| {
            let class = device.class();
            let message = format!(
                "no HostPolicy in force on a ready host has device class {class:?}; waiting for one (deviceClasses)"
            );
            Problem::new(field(device), message)
        })
        .collect();
    if problems.is_empty() { Ok(()) } else { Err(Refusal::new(Reason::DeviceClassNotFound, problems)) }
}
