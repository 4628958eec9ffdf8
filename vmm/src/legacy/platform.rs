//! The platform's registers: sleep and reset as ACPI wants them, events that the guest's ACPI code takes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::{BusDevice, Request};
use crate::pci::PciRoot;
use crate::snapshot::{InvalidState, Saved, Unit};

/// Offsets of the registers.
pub mod register {
    /// Sleep control (ACPI 6.5, 4.8.3.7), 8 bits.
    pub const SLEEP_CONTROL: u64 = 0;
    /// Sleep status, 8 bits.
    pub const SLEEP_STATUS: u64 = 1;
    /// Writing [`RESET_VALUE`] resets, 8 bits.
    pub const RESET: u64 = 2;
    /// See [`RESET`].
    pub const RESET_VALUE: u8 = 1;
    /// Events ([`super::event`]) since it was last read, 32 bits.
    pub const EVENTS: u64 = 4;
    /// PCI slots plugged into since it was last read, a bit each, 32 bits.
    pub const PCI_PLUGGED: u64 = 8;
    /// PCI slots to let go of since it was last read, likewise.
    pub const PCI_UNPLUGGING: u64 = 12;
    /// Writing a slot's bit says that it was let go of, 32 bits.
    pub const PCI_EJECT: u64 = 16;
    /// Bytes of all.
    pub const END: u64 = 20;
}

/// Bits of the events register.
pub mod event {
    /// The power button was pressed.
    pub const POWER_BUTTON: u32 = 1 << 0;
    /// Something is in the PCI registers.
    pub const PCI_HOT_PLUG: u32 = 1 << 1;
    /// The VM generation ID has changed.
    pub const NEW_GENERATION: u32 = 1 << 2;
}

/// Sleep type of "off" (`_S5`).
pub const SLEEP_TYPE_OFF: u8 = 5;
/// Bits of sleep control: the type's place, and the one that begins it.
const SLEEP_TYPE_SHIFT: u32 = 2;
const SLEEP_ENABLE: u8 = 1 << 5;

/// The registers, and the interrupt that tells to look at them.
pub struct Platform {
    pci: Arc<PciRoot>,
    interrupt: EventFd,
    events: AtomicU32,
}

const KIND: &str = "platform";
const VERSION: u16 = 1;

#[derive(Serialize, Deserialize)]
struct State {
    events: u32,
}

impl Platform {
    /// Writing to `interrupt` raises the guest's [`EVENTS_IRQ`](crate::layout::EVENTS_IRQ).
    #[must_use]
    pub fn new(pci: Arc<PciRoot>, interrupt: EventFd) -> Self {
        Self { pci, interrupt, events: AtomicU32::new(0) }
    }

    /// Tells the guest of `event` (a bit of [`event`]).
    pub fn notify(&self, event: u32) {
        self.events.fetch_or(event, Ordering::AcqRel);
        // It can only fail by overflowing, which means that the guest was told often enough.
        let _ = self.interrupt.write(1);
    }

    /// Back to how it was at power-on.
    pub fn reset(&self) {
        self.events.store(0, Ordering::Release);
    }

    /// Events that the guest has not taken yet.
    #[must_use]
    pub fn save(&self) -> Saved {
        Saved::State(Unit::encode(KIND, VERSION, &State { events: self.events.load(Ordering::Acquire) }))
    }

    /// Takes over what [`Platform::save`] gave.
    ///
    /// # Errors
    /// When it did not.
    pub fn restore(&self, unit: &Unit) -> Result<(), InvalidState> {
        let state: State = unit.decode(KIND, VERSION)?;
        self.events.store(state.events, Ordering::Release);
        Ok(())
    }
}

impl BusDevice for Platform {
    fn read(&self, offset: u64, data: &mut [u8]) {
        let value = match offset {
            register::SLEEP_CONTROL..register::EVENTS => 0,
            // Only a whole register is taken, so that nothing is lost by looking at a part.
            _ if data.len() != 4 => 0,
            register::EVENTS => self.events.swap(0, Ordering::AcqRel),
            register::PCI_PLUGGED => self.pci.take_plugged(),
            register::PCI_UNPLUGGING => self.pci.take_unplugging(),
            _ => 0,
        };
        let bytes = value.to_le_bytes();
        data.fill(0);
        data.iter_mut().zip(bytes).for_each(|(to, from)| *to = from);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Request {
        match (offset, data) {
            (register::SLEEP_CONTROL, &[value]) if value == SLEEP_TYPE_OFF << SLEEP_TYPE_SHIFT | SLEEP_ENABLE => {
                Request::PowerOff
            }
            (register::RESET, &[register::RESET_VALUE]) => Request::Reset,
            (register::PCI_EJECT, &[a, b, c, d]) => match u32::from_le_bytes([a, b, c, d]) {
                // One slot at a time, as the guest's code does it; 31 is the highest a bit can mean.
                slots if slots.is_power_of_two() => Request::Eject { slot: slots.trailing_zeros() as u8 },
                _ => Request::Nothing,
            },
            _ => Request::Nothing,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::Bus;
    use crate::pci::Windows;

    fn platform() -> (Platform, EventFd) {
        let root = PciRoot::new(&Arc::new(Bus::default()), Windows { low: 0..0, high: 0..0 });
        let interrupt = EventFd::new(libc::EFD_NONBLOCK).unwrap();
        (Platform::new(root, interrupt.try_clone().unwrap()), interrupt)
    }

    fn read(platform: &Platform, offset: u64) -> u32 {
        let mut data = [0xFF; 4];
        platform.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn events_are_taken_once() {
        let (platform, interrupt) = platform();
        platform.notify(event::POWER_BUTTON);
        platform.notify(event::NEW_GENERATION);
        assert_eq!(interrupt.read().unwrap(), 2);
        let mut part = [0; 2];
        platform.read(register::EVENTS, &mut part);
        assert_eq!(read(&platform, register::EVENTS), event::POWER_BUTTON | event::NEW_GENERATION);
        assert_eq!(read(&platform, register::EVENTS), 0);
        assert_eq!(read(&platform, register::PCI_PLUGGED), 0);
    }

    #[test]
    fn events_are_saved() {
        let (platform, _) = platform();
        platform.notify(event::POWER_BUTTON);
        let Saved::State(unit) = platform.save() else { panic!() };
        platform.reset();
        assert_eq!(read(&platform, register::EVENTS), 0);
        platform.restore(&unit).unwrap();
        assert_eq!(read(&platform, register::EVENTS), event::POWER_BUTTON);
        assert!(platform.restore(&Unit { version: 2, ..unit }).is_err());
    }

    #[test]
    fn the_guest_asks() {
        let (platform, _) = platform();
        assert_eq!(platform.write(register::SLEEP_CONTROL, &[0x34]), Request::PowerOff);
        assert_eq!(platform.write(register::SLEEP_CONTROL, &[0x14]), Request::Nothing);
        assert_eq!(platform.write(register::RESET, &[1]), Request::Reset);
        assert_eq!(platform.write(register::PCI_EJECT, &8_u32.to_le_bytes()), Request::Eject { slot: 3 });
        assert_eq!(platform.write(register::PCI_EJECT, &9_u32.to_le_bytes()), Request::Nothing);
        assert_eq!(platform.write(register::PCI_EJECT, &[8]), Request::Nothing);
    }
}
