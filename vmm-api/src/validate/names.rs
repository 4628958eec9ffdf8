//! What devices share: names, device numbers, descriptors. Each belongs to one.

use std::collections::BTreeMap;

use super::{Findings, Problem};
use crate::config::{Fd, VmConfig};
use crate::console::ConsoleMode;

/// A device's place in the configuration, its name, and the number it asks for.
struct Device<'a> {
    path: String,
    prefix: &'static str,
    id: &'a mut Option<String>,
    slot: Option<u8>,
}

/// Every PCI device of the guest.
fn devices(config: &mut VmConfig) -> Vec<Device<'_>> {
    let mut all = Vec::new();
    macro_rules! each {
        ($list:ident, $prefix:literal) => {
            for (index, device) in config.$list.iter_mut().enumerate() {
                let path = format!(concat!(stringify!($list), "[{}]"), index);
                all.push(Device { path, prefix: $prefix, id: &mut device.id, slot: device.pci_device_id });
            }
        };
    }
    each!(disks, "_disk");
    each!(net, "_net");
    each!(fs, "_fs");
    each!(pmem, "_pmem");
    each!(devices, "_vfio");
    let mut one = |path: &str, prefix, id, slot| all.push(Device { path: path.to_owned(), prefix, id, slot });
    if let Some(vsock) = &mut config.vsock {
        one("vsock", "_vsock", &mut vsock.id, vsock.pci_device_id);
    }
    one("rng", "_rng", &mut config.rng.id, config.rng.pci_device_id);
    if config.console.mode != ConsoleMode::Off || config.agent.is_some() {
        one("console", "_console", &mut config.console.id, config.console.pci_device_id);
    }
    all
}

/// Whether there are no more devices than a bus has places.
pub(super) fn bound(config: &mut VmConfig, findings: &mut Findings) -> bool {
    // Bus 0 has 32 device numbers; the first is where a host bridge would be.
    findings.range("devices", devices(config).len() as u64, 0..=31)
}

/// Names the nameless: `_disk0`, `_net0` … with the lowest free number.
pub(super) fn fill(config: &mut VmConfig) {
    let mut all = devices(config);
    let mut known: Vec<String> = all.iter().filter_map(|device| device.id.clone()).collect();
    for device in &mut all {
        if device.id.is_none() {
            let name = (0..).map(|number| format!("{}{number}", device.prefix)).find(|name| !known.contains(name));
            known.extend(name.clone());
            *device.id = name;
        }
    }
}

pub(super) fn check(config: &VmConfig, findings: &mut Findings) {
    let mut copy = config.clone();
    let all = devices(&mut copy);
    let (mut ids, mut slots) = (BTreeMap::new(), BTreeMap::new());
    for device in &all {
        let path = format!("{}.id", device.path);
        let id = device.id.as_deref().unwrap_or_default();
        if !(1..=64).contains(&id.len()) || !id.bytes().all(|byte| byte.is_ascii_graphic()) {
            findings.add(path, Problem::Form { found: id.to_owned(), expected: "a name of 1 to 64 letters" });
        } else if let Some(first) = ids.insert(id.to_owned(), device.path.clone()) {
            findings.add(path, Problem::Taken { what: format!("name {id}"), first });
        }
        if let Some(slot) = device.slot {
            let path = format!("{}.pci_device_id", device.path);
            if findings.range(path.clone(), slot.into(), 1..=31)
                && let Some(first) = slots.insert(slot, device.path.clone())
            {
                findings.add(path, Problem::Taken { what: format!("device number {slot}"), first });
            }
        }
    }
    check_descriptors(config, findings);
}

impl VmConfig {
    /// The descriptors that belong to the guest, which is all but `/dev/kvm`: another guest may need that.
    #[must_use]
    pub fn descriptors(&self) -> Vec<Fd> {
        let all = descriptors(self).into_iter();
        all.filter(|(path, _)| path != "kvm_fd").map(|(_, fd)| fd).collect()
    }
}

/// Every descriptor and where it is named; one that the functions of a group share is there once.
fn descriptors(config: &VmConfig) -> Vec<(String, Fd)> {
    let mut all: Vec<(String, Fd)> = Vec::new();
    let mut one = |path: String, fd: Option<Fd>| all.extend(fd.map(|fd| (path, fd)));
    one("kvm_fd".into(), config.kvm_fd);
    one("vfio_container_fd".into(), config.vfio_container_fd);
    one("payload.kernel_fd".into(), config.payload.kernel_fd);
    one("payload.initramfs_fd".into(), config.payload.initramfs_fd);
    for (index, disk) in config.disks.iter().enumerate() {
        one(format!("disks[{index}].fd"), disk.fd);
    }
    for (index, net) in config.net.iter().enumerate() {
        for (pair, fd) in net.fds.iter().enumerate() {
            one(format!("net[{index}].fds[{pair}]"), Some(*fd));
        }
        for (pair, fd) in net.vhost_fds.iter().enumerate() {
            one(format!("net[{index}].vhost_fds[{pair}]"), Some(*fd));
        }
    }
    for (index, fs) in config.fs.iter().enumerate() {
        one(format!("fs[{index}].socket_fd"), fs.socket_fd);
    }
    for (index, pmem) in config.pmem.iter().enumerate() {
        one(format!("pmem[{index}].fd"), pmem.fd);
    }
    one("vsock.socket_fd".to_owned(), config.vsock.as_ref().and_then(|vsock| vsock.socket_fd));
    one("vsock.vhost_fd".to_owned(), config.vsock.as_ref().and_then(|vsock| vsock.vhost_fd));
    one("serial.fd".to_owned(), config.serial.fd);
    one("console.fd".to_owned(), config.console.fd);
    one("agent.socket_fd".to_owned(), config.agent.as_ref().and_then(|agent| agent.socket_fd));
    let mut groups = Vec::new();
    for (index, device) in config.devices.iter().enumerate() {
        if let Some(fd) = device.vfio_group_fd.filter(|fd| !groups.contains(fd)) {
            groups.push(fd);
            one(format!("devices[{index}].vfio_group_fd"), Some(fd));
        }
    }
    all
}

/// Whether that may be a descriptor's number.
pub(super) fn fit_descriptor(path: &str, fd: Fd, findings: &mut Findings) -> bool {
    // 0, 1 and 2 are the terminal's.
    findings.range(path, u64::try_from(fd).unwrap_or(0), 3..=1 << 20)
}

/// Descriptors belong to whoever uses them, so no two may be the same.
fn check_descriptors(config: &VmConfig, findings: &mut Findings) {
    let mut seen = BTreeMap::new();
    for (path, fd) in descriptors(config) {
        if fit_descriptor(&path, fd, findings)
            && let Some(first) = seen.insert(fd, path.clone())
        {
            findings.add(path, Problem::Taken { what: format!("descriptor {fd}"), first });
        }
    }
}
