//! Whose each PCI function of a host is, as far as guests may have it. Pure.

use serde::Serialize;
use std::collections::BTreeMap;
use vse_crds::{Host, MicroVM, PciDevice};

/// The driver that gives functions to guests.
const VFIO: &str = "vfio-pci";

/// A function of a device class, or of a guest, and whose it is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct DeviceUse {
    pub address: String,
    /// Vendor and device.
    pub id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub device_class: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cell: Option<u32>,
    #[serde(rename = "use")]
    pub owner: Owner,
}

/// Whose a function is.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(tag = "kind", rename_all = "camelCase")]
pub enum Owner {
    /// The guest's, under that name in its spec.
    Guest { name: String },
    /// Another guest's.
    Other { guest: String },
    /// Somebody's who is not to be seen.
    Taken,
    /// Nobody's: a guest may have it.
    Free,
    /// No guest can have it.
    Unusable { reason: String },
}

/// Finds out whose each function is. The host's own, in no class, are left out. `others` are named by `name`.
pub fn draw_up(host: &Host, vm: &MicroVM, others: &[MicroVM], name: fn(&MicroVM) -> String) -> Vec<DeviceUse> {
    let mut owners = BTreeMap::new();
    for other in others {
        owners.extend(devices(other).map(|(address, _)| (address, Owner::Other { guest: name(other) })));
    }
    owners.extend(devices(vm).map(|(address, name)| (address, Owner::Guest { name: name.to_owned() })));
    let all = host.status.iter().flat_map(|status| &status.devices);
    let shown = all.filter(|device| device.device_class.is_some() || owners.contains_key(device.address.as_str()));
    let used = |device: &PciDevice| DeviceUse {
        address: device.address.clone(),
        id: format!("{}:{}", device.vendor, device.device),
        device_class: device.device_class.clone(),
        cell: device.cell,
        owner: owners.get(device.address.as_str()).cloned().unwrap_or_else(|| nobodys(device)),
    };
    shown.map(used).collect()
}

/// Functions of a guest, with the name of the device they are of.
fn devices(vm: &MicroVM) -> impl Iterator<Item = (&str, &str)> {
    let devices = vm.status.iter().flat_map(|status| &status.devices);
    devices.flat_map(|device| device.addresses.iter().map(|address| (address.as_str(), device.name.as_str())))
}

fn nobodys(device: &PciDevice) -> Owner {
    match &device.verdict {
        Some(verdict) if !verdict.usable => Owner::Unusable { reason: verdict.message.clone() },
        _ if device.driver.as_deref() == Some(VFIO) => Owner::Taken,
        _ => Owner::Free,
    }
}
