//! Who answers at an address. One [`Bus`] for port I/O, one for memory-mapped I/O.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock};

/// Something that answers reads and writes. It sees offsets from where it was put, never its own address.
///
/// Called by any vCPU at any time, so it locks what it has itself. Whatever offset and data a guest chooses, it must
/// neither panic nor take long.
pub trait BusDevice: Send + Sync {
    /// Fills `data` (1, 2, 4 or 8 bytes, all ones beforehand) with what is at `offset`.
    fn read(&self, offset: u64, data: &mut [u8]);

    /// Takes `data` (1, 2, 4 or 8 bytes) written at `offset`.
    fn write(&self, offset: u64, data: &[u8]) -> Request;
}

/// What a device asks of the machine it is in. It never does such a thing itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Request {
    /// Nothing.
    #[default]
    Nothing,
    /// The guest wants to start over.
    Reset,
    /// The guest has powered itself off.
    PowerOff,
    /// The guest's kernel has panicked.
    Panicked,
    /// The guest has let go of the PCI function in this slot (ACPI `_EJ0`).
    Eject {
        /// Device number on bus 0.
        slot: u8,
    },
}

/// Devices by address range; ranges never overlap.
#[derive(Default)]
pub struct Bus {
    devices: RwLock<BTreeMap<u64, Placed>>,
}

#[derive(Clone)]
struct Placed {
    length: u64,
    device: Arc<dyn BusDevice>,
}

/// The range is taken, empty, or reaches beyond the address space.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("addresses {:#x} to {:#x} are not free", range.start, range.end)]
pub struct NotFree {
    /// What was asked for.
    pub range: Range<u64>,
}

impl Bus {
    /// Puts a device at a range of addresses.
    ///
    /// # Errors
    /// When another one is at a part of it.
    pub fn insert(&self, range: Range<u64>, device: Arc<dyn BusDevice>) -> Result<(), NotFree> {
        let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        let before = devices.range(..range.end).next_back();
        let is_free = before.is_none_or(|(start, placed)| start + placed.length <= range.start);
        if range.is_empty() || !is_free {
            return Err(NotFree { range });
        }
        devices.insert(range.start, Placed { length: range.end - range.start, device });
        Ok(())
    }

    /// Takes away the device that was put at `start`.
    pub fn remove(&self, start: u64) -> Option<Arc<dyn BusDevice>> {
        let mut devices = self.devices.write().unwrap_or_else(PoisonError::into_inner);
        devices.remove(&start).map(|placed| placed.device)
    }

    /// Reads; what nobody answers is all ones. An access that begins in a device and ends beyond it is nobody's.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        data.fill(0xFF);
        if let Some((offset, device)) = self.find(address, data.len()) {
            device.read(offset, data);
        }
    }

    /// Writes; what nobody takes is lost.
    pub fn write(&self, address: u64, data: &[u8]) -> Request {
        match self.find(address, data.len()) {
            Some((offset, device)) => device.write(offset, data),
            None => Request::Nothing,
        }
    }

    /// The device and the offset in it. The map is not locked any more when the device is called.
    fn find(&self, address: u64, length: usize) -> Option<(u64, Arc<dyn BusDevice>)> {
        let devices = self.devices.read().unwrap_or_else(PoisonError::into_inner);
        let (start, placed) = devices.range(..=address).next_back()?;
        let offset = address - start;
        let end = offset.checked_add(length as u64)?;
        (end <= placed.length).then(|| (offset, Arc::clone(&placed.device)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Mutex;

    #[derive(Default)]
    struct Recorder(Mutex<Vec<(u64, Vec<u8>)>>);

    impl BusDevice for Recorder {
        fn read(&self, offset: u64, data: &mut [u8]) {
            data.fill(offset as u8);
        }

        fn write(&self, offset: u64, data: &[u8]) -> Request {
            self.0.lock().unwrap().push((offset, data.to_vec()));
            Request::Reset
        }
    }

    #[test]
    fn devices_see_offsets() {
        let (bus, device) = (Bus::default(), Arc::new(Recorder::default()));
        bus.insert(0x100..0x108, device.clone()).unwrap();
        let mut data = [0; 2];
        bus.read(0x106, &mut data);
        assert_eq!(data, [6, 6]);
        assert_eq!(bus.write(0x100, &[1]), Request::Reset);
        assert_eq!(*device.0.lock().unwrap(), [(0, vec![1])]);
    }

    #[test]
    fn nobodys_addresses_read_as_ones() {
        let bus = Bus::default();
        bus.insert(0x100..0x108, Arc::new(Recorder::default())).unwrap();
        for address in [0, 0xFF, 0x107, 0x108, u64::MAX] {
            let mut data = [0; 4];
            bus.read(address, &mut data);
            assert_eq!(data, [0xFF; 4], "{address:#x}");
            assert_eq!(bus.write(address, &data), Request::Nothing);
        }
    }

    #[test]
    fn ranges_do_not_overlap() {
        let bus = Bus::default();
        let put = |range| bus.insert(range, Arc::new(Recorder::default()));
        put(0x10..0x20).unwrap();
        for range in [0x0..0x11, 0x1F..0x30, 0x12..0x13, 0x0..0x100, 0x30..0x30] {
            assert!(put(range).is_err());
        }
        put(0x20..0x30).unwrap();
        put(0x0..0x10).unwrap();
        assert!(bus.remove(0x10).is_some());
        assert!(bus.remove(0x11).is_none());
        put(0x10..0x20).unwrap();
    }
}
