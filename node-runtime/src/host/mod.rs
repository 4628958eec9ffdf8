//! What this host has: read from /proc and /sys into a [`HostStatus`], and published as the Host of its name.
//!
//! Owns the `Host` object of this host. Publishes once and on change, never on a timer.

pub mod controller;
mod cpu;
mod engines;
mod kvm;
mod memory;
mod pci;
mod publish;

use engines::{effective_policy, offered};
pub use kvm::probe as probe_kvm;

use crate::sysfs::{Error, Root};
use vse_crds::{HostCpu, HostStatus, HostVersions, Kvm, quantity};

/// The hardware of a host: everything of [`HostStatus`] that does not depend on policy.
pub fn observe(root: &Root, kvm: Kvm) -> Result<HostStatus, Error> {
    let cpu: HostCpu = cpu::observe(root)?;
    let cells = memory::observe(root, &cpu.topology)?;
    let memory: u64 = cells.iter().filter_map(|cell| quantity::bytes(&cell.memory).ok()).sum();
    Ok(HostStatus {
        cell_count: cells.len() as u32,
        memory: Some(quantity::from_bytes(memory)),
        cells,
        devices: pci::observe(root),
        cpu,
        kvm,
        versions: HostVersions {
            node_runtime: env!("CARGO_PKG_VERSION").into(),
            kernel: root.text("proc/sys/kernel/osrelease")?,
        },
        ..HostStatus::default()
    })
}
