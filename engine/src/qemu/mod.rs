//! The QEMU driver: KVM, or TCG where there is none. QEMU 7.2 or later; KVM through a descriptor needs 9.0.
//!
//! `args` and `memory` build the command line (pure), `qmp` speaks the monitor's protocol, `guest` maps verbs and events.

mod args;
mod guest;
mod memory;
mod overhead;
mod qmp;

use futures::FutureExt;
use futures::future::BoxFuture;

use crate::{
    AcceleratorKind, Capabilities, Channels, Command, ConfigError, Engine, Feature, Files, Guest, GuestConfig,
    GuestError, PageSize,
};

pub use overhead::overhead;

/// File name of the monitor's socket.
pub const MONITOR_SOCKET: &str = "qmp.sock";

/// File name of the guest agent's socket.
pub const AGENT_SOCKET: &str = "qga.sock";

/// QEMU at one path.
#[derive(Debug, Clone)]
pub struct Qemu {
    program: String,
    capabilities: Capabilities,
}

impl Default for Qemu {
    fn default() -> Self {
        Self::new("/usr/bin/qemu-system-x86_64")
    }
}

impl Qemu {
    /// The driver for the QEMU that is at this absolute path in the engine's file system.
    #[must_use]
    pub fn new(program: impl Into<String>) -> Self {
        let capabilities = Capabilities {
            accelerators: [AcceleratorKind::Kvm, AcceleratorKind::Emulation].into(),
            max_vcpus: args::MAX_VCPUS,
            max_disks: args::MAX_DISKS,
            max_nics: args::MAX_NICS,
            max_devices: args::MAX_DISKS + args::MAX_NICS,
            page_sizes: [PageSize::Default, PageSize::Huge2M, PageSize::Huge1G].into(),
            features: [
                Feature::Prelaunch,
                Feature::Pause,
                Feature::PowerButton,
                Feature::GuestAgent,
                Feature::GuestCells,
            ]
            .into(),
        };
        Self { program: program.into(), capabilities }
    }
}

impl Engine for Qemu {
    fn name(&self) -> &'static str {
        "qemu"
    }

    fn capabilities(&self) -> &Capabilities {
        &self.capabilities
    }

    fn command<'a>(&self, guest: &'a GuestConfig) -> Result<Command<'a>, ConfigError> {
        args::command(&self.program, guest)
    }

    fn files(&self) -> Files {
        Files { monitor: MONITOR_SOCKET, events: None, agent: Some(AGENT_SOCKET) }
    }

    fn connect(&self, channels: Channels) -> BoxFuture<'static, Result<Box<dyn Guest>, GuestError>> {
        async move {
            let guest: Box<dyn Guest> = Box::new(guest::QemuGuest::connect(channels.monitor).await?);
            Ok(guest)
        }
        .boxed()
    }
}
