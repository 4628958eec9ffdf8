//! Why a machine can't be built, or can't do something.

use std::io;

use super::descriptors::DescriptorError;
use super::plan::Impossible;
use crate::boot::BootError;
use crate::cpu::ThreadError;
use crate::hypervisor::HypervisorError;
use crate::memory::MemoryError;
use crate::pci::PlugError;
use crate::snapshot::InvalidState;

/// See the module.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MachineError {
    /// The configuration can't be.
    #[error(transparent)]
    Impossible(#[from] Impossible),
    /// RAM can't be had.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// KVM refused.
    #[error(transparent)]
    Hypervisor(#[from] HypervisorError),
    /// The kernel can't be loaded.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// vCPUs can't be run.
    #[error(transparent)]
    Threads(#[from] ThreadError),
    /// The tables that describe the machine don't fit.
    #[error(transparent)]
    Tables(#[from] crate::acpi::TooLarge),
    /// Those that say what it is called don't.
    #[error(transparent)]
    Names(#[from] crate::smbios::TooLarge),
    /// The host's CPUs lack what the baseline has.
    #[error("cpus.baseline: this host's CPUs lack features of it: {}", list(missing))]
    Baseline {
        /// As (leaf, register, bits).
        missing: Vec<(u32, &'static str, u32)>,
    },
    /// The host's CPUs lack what a saved guest uses.
    #[error(
        "this host's CPUs lack features that the guest was started with: {}; with cpus.baseline a guest uses only what \
         all its hosts have",
        list(missing)
    )]
    PoorerCpu {
        /// As (leaf, register, bits).
        missing: Vec<(u32, &'static str, u32)>,
    },
    /// A device can't be made.
    #[error("device {id:?} can't be made")]
    Device {
        /// Its ID.
        id: String,
        /// Why.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// No place on the bus.
    #[error("device {id:?} has no place")]
    Plug {
        /// Its ID.
        id: String,
        /// Why.
        source: PlugError,
    },
    /// Devices that can only be there from the beginning.
    #[error("device {id:?} can't be {what} while the guest runs")]
    NotHotPluggable {
        /// Its ID.
        id: String,
        /// `added` or `removed`.
        what: &'static str,
    },
    /// A restored guest whose configuration names no kernel can't start over.
    #[error("the guest can't start over: its configuration has no kernel")]
    NoKernel,
    /// No such device.
    #[error("there is no device {0:?}")]
    NoSuchDevice(String),
    /// Something has no state that could be saved; why.
    #[error("{place} can't be saved: {reason}")]
    NotSavable {
        /// What.
        place: String,
        /// Why.
        reason: &'static str,
    },
    /// A snapshot's unit is not what it should be.
    #[error("snapshot: {place}")]
    State {
        /// Which unit.
        place: String,
        /// What is wrong.
        source: InvalidState,
    },
    /// A snapshot lacks a unit, or has one that nothing here knows.
    #[error("snapshot: unit {place:?} is {what}")]
    Unit {
        /// Which.
        place: String,
        /// `missing` or `unknown`.
        what: &'static str,
    },
    /// A descriptor or file.
    #[error("{what}")]
    Descriptor {
        /// What for.
        what: &'static str,
        /// Why.
        source: DescriptorError,
    },
    /// Something else of the host's.
    #[error("{what}")]
    Host {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: io::Error,
    },
}

fn list(missing: &[(u32, &'static str, u32)]) -> String {
    let one = |(leaf, register, bits): &(u32, &str, u32)| format!("CPUID {leaf:#x} {register} {bits:#x}");
    missing.iter().map(one).collect::<Vec<_>>().join(", ")
}

/// For `map_err`.
pub(super) fn host(what: &'static str) -> impl FnOnce(io::Error) -> MachineError {
    move |source| MachineError::Host { what, source }
}

/// For `map_err`.
pub(super) fn descriptor(what: &'static str) -> impl FnOnce(DescriptorError) -> MachineError {
    move |source| MachineError::Descriptor { what, source }
}
