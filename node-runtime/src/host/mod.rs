//! What this host has: read from /proc and /sys into a [`HostStatus`], and published as the Host of its name.
//!
//! Owns the `Host` object of this host. Publishes once and on change, never on a timer.

pub mod controller;
mod cpu;
mod device_classes;
mod engines;
mod kvm;
mod memory;
mod publish;
mod uevents;

use engines::{effective_policy, offered};

use crate::sysfs::{Error, Root};
use std::path::PathBuf;
use vse_crds::{HostCpu, HostStatus, HostVersions, quantity};

/// Where this host's hardware is looked at.
pub struct Hardware {
    /// /proc and /sys.
    pub root: Root,
    /// /dev/kvm.
    pub kvm_device: PathBuf,
}

impl Hardware {
    /// CPUs, memory and KVM as they are now: everything of [`HostStatus`] that does not depend on policy.
    pub fn observe(&self) -> Result<HostStatus, Error> {
        let mut status = observe(&self.root)?;
        status.kvm = kvm::probe(&self.kvm_device, status.cpu.virtualization.as_deref());
        Ok(status)
    }
}

fn observe(root: &Root) -> Result<HostStatus, Error> {
    let cpu: HostCpu = cpu::observe(root)?;
    let cells = memory::observe(root, &cpu.topology)?;
    let memory: u64 = cells.iter().filter_map(|cell| quantity::bytes(&cell.memory).ok()).sum();
    Ok(HostStatus {
        cell_count: cells.len() as u32,
        memory: Some(quantity::from_bytes(memory)),
        cells,
        cpu,
        versions: HostVersions {
            node_runtime: env!("CARGO_PKG_VERSION").into(),
            kernel: root.text("proc/sys/kernel/osrelease")?,
        },
        ..HostStatus::default()
    })
}
