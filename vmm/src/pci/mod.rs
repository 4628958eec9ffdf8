//! The PCI bus: a root complex with up to 32 functions on bus 0 (PCI Express Base Specification 6, section 7).
//!
//! ```text
//!  ECAM ─────► PciRoot ─ config ─► PciFunction: virtio-pci, VFIO
//!                 │ puts its BARs on the MMIO bus while they are decoded
//!  MMIO bus ──────┴────── BAR ───► PciFunction
//! ```
//!
//! What registers mean is pure ([`ConfigSpace`], [`Bars`], [`Msi`], [`Msix`], [`Windows`]); functions are shells around it.
//! There are deliberately no bridges, no I/O BARs and no functions other than 0: nothing here needs them.

mod bars;
mod config;
mod ecam;
#[cfg(test)]
mod fuzz;
mod msi;
mod msix;
mod root;
mod windows;

pub use bars::{Bar, Bars};
pub use config::{ConfigSpace, Identity, capability, command, register};
pub use ecam::Ecam;
pub use msi::Msi;
pub use msix::{Msix, SavedMsix};
pub use root::{PciRoot, PlugError};
pub use windows::Windows;

use crate::bus::Request;
use crate::counters::Counts;
use crate::interrupts::Message;
use crate::snapshot::Saved;

/// Slots on bus 0.
pub const SLOTS: u8 = 32;

/// A vector and where it goes to from now on; `None` while it is masked or disabled.
pub type VectorChange = (u16, Option<Message>);

/// A function on the bus.
///
/// Called by any vCPU at any time, so it locks what it has itself. Whatever a guest chooses, it must neither panic nor
/// take long. It never calls the root.
pub trait PciFunction: Send + Sync {
    /// Fills `data` (all ones beforehand) with what is at `offset` of its configuration space. The access is of 1, 2 or
    /// 4 bytes, within one aligned group of 4.
    fn read_config(&self, offset: u16, data: &mut [u8]);

    /// Takes what is written likewise.
    fn write_config(&self, offset: u16, data: &[u8]) -> Effect;

    /// Its BARs as they are now; none of them counts while memory is not decoded.
    fn bars(&self) -> Bars;

    /// Whether it decodes memory accesses (`command::MEMORY`).
    fn decodes_memory(&self) -> bool;

    /// Gives a BAR its first address, as firmware would.
    fn assign(&self, bar: u8, address: u64);

    /// A BAR is at this address from now on, or nowhere. For those who have something there that the bus does not see.
    fn moved(&self, bar: u8, address: Option<u64>);

    /// Fills `data` (1, 2, 4 or 8 bytes, all ones beforehand) with what is at `offset` of a BAR.
    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]);

    /// Takes what is written likewise.
    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) -> Request;

    /// Returns when nothing is in flight any more, and nothing begins before [`PciFunction::resume`].
    fn pause(&self);

    /// Goes on after a pause, or begins after being restored.
    ///
    /// # Errors
    /// When the host can't go on with it.
    fn resume(&self) -> std::io::Result<()>;

    /// Back to how it was at power-on, BARs without addresses.
    fn reset(&self);

    /// What it has counted. Nothing, unless this process moves its data.
    fn counters(&self) -> Counts {
        Counts::new()
    }

    /// Its state, while paused.
    fn save(&self) -> Saved;
}

/// What follows from a write to configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Effect {
    /// Nothing.
    #[default]
    Nothing,
    /// BARs are decoded elsewhere, or begin or cease to be.
    Remap,
}
