//! The driver of the two engines that speak Cloud Hypervisor's REST API: our own VMM, and Cloud Hypervisor.
//!
//! One client (`http`), one set of verbs and states (`guest`) and events (`events`) for both. They differ in how a
//! guest is described to them: [`Vmm`] takes one JSON text in which descriptors stand for paths (`vm_config`) and waits
//! before the first instruction; [`CloudHypervisor`] takes options (`command_line`) and boots at once.

mod command_line;
mod events;
mod guest;
mod http;
mod vm_config;

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::{
    AcceleratorKind, Capabilities, Channels, Command, ConfigError, Engine, EventsFile, Feature, Files, Guest,
    GuestConfig, GuestError, PageSize,
};

/// File name of the API's socket.
const API_SOCKET: &str = "api.sock";

/// File name of the socket that tells of events.
const EVENTS_SOCKET: &str = "events.sock";

/// File name of the log of events.
const EVENTS_LOG: &str = "events.json";

/// File name of the guest agent's socket.
const AGENT_SOCKET: &str = "qga.sock";

/// Name of the guest agent's port in the guest.
pub const AGENT_PORT: &str = "org.qemu.guest_agent.0";

/// Exit code of our VMM when its guest's kernel panicked.
pub const EXIT_PANIC: i32 = 3;

/// Slots of one PCI bus (PCI 3.0, 3.2.2.3.2), less the root and the fixed devices: entropy, console, agent.
const DEVICE_SLOTS: usize = 32 - 4;

/// Most network cards; the rest of the slots are for disks and passed-through devices.
const MAX_NICS: usize = 8;

/// xAPIC ids end at 254 (Intel SDM, 10.4.6); more need x2APIC from the first instruction.
const MAX_VCPUS: u32 = 254;

/// Which of the two.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Vmm,
    CloudHypervisor,
}

/// Our VMM at one path.
#[derive(Debug, Clone)]
pub struct Vmm {
    program: String,
    capabilities: Capabilities,
}

impl Default for Vmm {
    fn default() -> Self {
        Self::new("/vse-vmm")
    }
}

impl Vmm {
    /// The driver for the VMM that is at this absolute path in the engine's file system.
    #[must_use]
    pub fn new(program: impl Into<String>) -> Self {
        let features = [
            Feature::Prelaunch,
            Feature::Pause,
            Feature::PowerButton,
            Feature::GuestAgent,
            Feature::Passthrough,
            Feature::GuestCells,
        ];
        Self { program: program.into(), capabilities: capabilities(features.into()) }
    }
}

/// Cloud Hypervisor at one path. Version 44 or later; it opens `/dev/kvm` by that name.
#[derive(Debug, Clone)]
pub struct CloudHypervisor {
    program: String,
    capabilities: Capabilities,
}

impl Default for CloudHypervisor {
    fn default() -> Self {
        Self::new("/usr/bin/cloud-hypervisor")
    }
}

impl CloudHypervisor {
    /// The driver for the Cloud Hypervisor that is at this absolute path in the engine's file system.
    ///
    /// What it can't do in an unprivileged pod is not among its capabilities: it binds memory to cells by `mbind`
    /// only, opens VFIO groups by path, and has no channel for the guest agent.
    #[must_use]
    pub fn new(program: impl Into<String>) -> Self {
        let features = [Feature::Pause, Feature::PowerButton];
        Self { program: program.into(), capabilities: capabilities(features.into()) }
    }
}

fn capabilities(features: std::collections::BTreeSet<Feature>) -> Capabilities {
    Capabilities {
        accelerators: [AcceleratorKind::Kvm].into(),
        max_vcpus: MAX_VCPUS,
        max_disks: DEVICE_SLOTS - MAX_NICS,
        max_nics: MAX_NICS,
        max_devices: DEVICE_SLOTS,
        page_sizes: [PageSize::Default, PageSize::Huge2M, PageSize::Huge1G].into(),
        features,
    }
}

impl Engine for Vmm {
    fn name(&self) -> &'static str {
        "vmm"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn command<'a>(&self, guest: &'a GuestConfig) -> Result<Command<'a>, ConfigError> {
        check(guest, &self.capabilities)?;
        vm_config::command(&self.program, guest)
    }

    fn files(&self) -> Files {
        Files { monitor: API_SOCKET, events: Some(EventsFile::Socket(EVENTS_SOCKET)), agent: Some(AGENT_SOCKET) }
    }

    fn connect(&self, channels: Channels) -> BoxFuture<'static, Result<Box<dyn Guest>, GuestError>> {
        connect(Kind::Vmm, channels)
    }
}

impl Engine for CloudHypervisor {
    fn name(&self) -> &'static str {
        "cloud-hypervisor"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn command<'a>(&self, guest: &'a GuestConfig) -> Result<Command<'a>, ConfigError> {
        check(guest, &self.capabilities)?;
        command_line::command(&self.program, guest)
    }

    fn files(&self) -> Files {
        Files { monitor: API_SOCKET, events: Some(EventsFile::Log(EVENTS_LOG)), agent: None }
    }

    fn connect(&self, channels: Channels) -> BoxFuture<'static, Result<Box<dyn Guest>, GuestError>> {
        connect(Kind::CloudHypervisor, channels)
    }
}

fn connect(kind: Kind, channels: Channels) -> BoxFuture<'static, Result<Box<dyn Guest>, GuestError>> {
    async move {
        let guest: Box<dyn Guest> = Box::new(guest::RestGuest::connect(kind, channels).await?);
        Ok(guest)
    }
    .boxed()
}

/// What both ask of a guest beyond that it is one.
fn check(guest: &GuestConfig, capabilities: &Capabilities) -> Result<(), ConfigError> {
    guest.check()?;
    let vcpus = guest.cpu.vcpus();
    if vcpus > capabilities.max_vcpus {
        return Err(ConfigError::Vcpus { vcpus, max: capabilities.max_vcpus });
    }
    let devices = guest.passthrough.as_ref().map_or(0, |passthrough| passthrough.devices.len());
    let counts = [
        ("disks", guest.disks.len(), capabilities.max_disks),
        ("nics", guest.nics.len(), capabilities.max_nics),
        ("devices", guest.disks.len() + guest.nics.len() + devices, capabilities.max_devices),
    ];
    for (field, count, max) in counts {
        if count > max {
            return Err(ConfigError::TooMany { field, count, max });
        }
    }
    let impossible = [
        ("acceleration", guest.accelerator.kind() == AcceleratorKind::Emulation),
        ("devices", guest.passthrough.is_some() && !capabilities.features.contains(&Feature::Passthrough)),
        ("cells", guest.cells.len() > 1 && !capabilities.features.contains(&Feature::GuestCells)),
    ];
    match impossible.into_iter().find(|(_, impossible)| *impossible) {
        Some((field, _)) => Err(ConfigError::Impossible { field }),
        None => Ok(()),
    }
}

/// Disk queues: one for each vCPU, few enough not to cost memory that no disk makes use of.
fn disk_queues(guest: &GuestConfig) -> u32 {
    guest.cpu.vcpus().min(8)
}

/// Descriptors in a disk queue, and in a network queue: what Cloud Hypervisor has by default.
const DISK_QUEUE: u32 = 128;
const NET_QUEUE: u32 = 256;

fn mac(address: [u8; 6]) -> String {
    address.map(|byte| format!("{byte:02x}")).join(":")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{guest, null, two_cells};
    use crate::{Accelerator, Nic};

    #[test]
    fn what_an_engine_can_not_do_is_refused_by_field() {
        assert!(Vmm::default().command(&two_cells()).is_ok());
        let other = CloudHypervisor::default().command(&two_cells()).unwrap_err();
        assert_eq!(other, ConfigError::Impossible { field: "cells" });
        let emulated = Vmm::default().command(&guest()).unwrap_err();
        assert_eq!(emulated, ConfigError::Impossible { field: "acceleration" });
        let mut wide = guest();
        wide.accelerator = Accelerator::Kvm(null());
        wide.nics = (0..9).map(|_| Nic { taps: vec![null()], vhosts: vec![], mac: [2; 6] }).collect();
        let wide = Vmm::default().command(&wide).unwrap_err();
        assert_eq!(wide, ConfigError::TooMany { field: "nics", count: 9, max: 8 });
    }
}
