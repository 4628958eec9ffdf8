//! The virtio-pci transport (section 4.1, without the legacy interface): a PCI function around a [`VirtioDevice`].
//!
//! ```text
//!  BAR, configuration space ─► VirtioPci (the lock) ─► function ── registers   common configuration, queues
//!                                                        │  ├───── interrupt   MSI-X, or INTA and ISR
//!                                                        │  ├───── doorbells   notifications, by ioeventfd
//!                                                        ▼  └───── layout      capabilities, structures in the BAR
//!                                                     device
//! ```

mod doorbells;
mod function;
mod interrupt;
mod layout;
mod queues;
mod registers;
mod saved;

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::function::Function;
use super::VirtioDevice;
use crate::bus::Request;
use crate::counters::Counts;
use crate::interrupts::Interrupts;
use crate::memory::GuestMemory;
use crate::pci::{Bars, Effect, PciFunction};
use crate::snapshot::{InvalidState, Saved, Unit};

pub use doorbells::Doorbells;

/// What a function is connected to.
#[derive(Clone)]
pub struct Wiring {
    /// Guest RAM.
    pub memory: GuestMemory,
    /// Interrupts.
    pub interrupts: Arc<Interrupts>,
    /// Notifications.
    pub doorbells: Arc<dyn Doorbells>,
    /// Its slot on the bus.
    pub slot: u8,
}

/// A device can't be carried by this transport.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("virtio device {id} with {queues} queues does not fit virtio-pci")]
pub struct Unfit {
    /// Its device ID.
    pub id: u16,
    /// Its number of queues.
    pub queues: usize,
}

/// A virtio device as a PCI function.
pub struct VirtioPci(Mutex<Function>);

impl VirtioPci {
    /// Around a device at its beginning.
    ///
    /// # Errors
    /// When the device has too many queues.
    pub fn new(device: Box<dyn VirtioDevice>, wiring: Wiring) -> Result<Self, Unfit> {
        Function::new(device, wiring).map(|function| Self(Mutex::new(function)))
    }

    /// Around a device that goes on from what [`PciFunction::save`] gave, at the next [`PciFunction::resume`].
    ///
    /// # Errors
    /// When this device did not save it.
    pub fn restore(device: Box<dyn VirtioDevice>, wiring: Wiring, unit: &Unit) -> Result<Self, InvalidState> {
        Function::restore(device, wiring, unit).map(|function| Self(Mutex::new(function)))
    }

    fn function(&self) -> MutexGuard<'_, Function> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl PciFunction for VirtioPci {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.function().read_config(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> Effect {
        self.function().write_config(offset, data)
    }

    fn bars(&self) -> Bars {
        *self.function().config.bars()
    }

    fn decodes_memory(&self) -> bool {
        self.function().config.decodes_memory()
    }

    fn assign(&self, bar: u8, address: u64) {
        self.function().config.bars_mut().set(bar, address);
    }

    fn moved(&self, _: u8, address: Option<u64>) {
        self.function().bells.moved(address);
    }

    fn read_bar(&self, _: u8, offset: u64, data: &mut [u8]) {
        self.function().read_bar(offset, data);
    }

    fn write_bar(&self, _: u8, offset: u64, data: &[u8]) -> Request {
        self.function().write_bar(offset, data);
        Request::Nothing
    }

    fn pause(&self) {
        self.function().pause();
    }

    fn resume(&self) -> io::Result<()> {
        self.function().resume()
    }

    fn reset(&self) {
        self.function().power_on();
    }

    fn counters(&self) -> Counts {
        self.function().device.counters()
    }

    fn save(&self) -> Saved {
        self.function().save()
    }
}

#[cfg(test)]
mod tests;
