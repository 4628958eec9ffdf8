//! The root complex: which functions there are, and where their BARs are on the MMIO bus.

use std::ops::Range;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock, Weak};

use serde::{Deserialize, Serialize};

use super::{Effect, PciFunction, SLOTS, Windows};
use crate::bus::{Bus, BusDevice, Request};
use crate::snapshot::{InvalidState, Saved, Unit};

/// Bus 0 and the functions on it. The root itself is none of them: a host bridge need not have configuration space (PCI
/// Local Bus 3.0, 3.2.2.3), ACPI tells of it. Slot 0, where others have theirs, stays empty.
///
/// Hot plug: [`PciRoot::plug`] and [`PciRoot::unplug`] set a bit that the guest's ACPI code takes, after an event has told
/// it to look; when the guest has let go of a function it says so ([`Request::Eject`]), and [`PciRoot::eject`] takes it
/// away.
pub struct PciRoot {
    /// The way to this root is on the bus, so that it can't hold the bus as well: neither would ever go.
    bus: Weak<Bus>,
    windows: Windows,
    slots: RwLock<Slots>,
    /// Where each BAR is on the bus. Held while any of them moves, never while a guest's access is carried out.
    placed: Mutex<[[Option<u64>; 6]; SLOTS as usize]>,
    plugged: AtomicU32,
    unplugging: AtomicU32,
}

type Slots = [Option<Arc<dyn PciFunction>>; SLOTS as usize];

/// A function can't be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PlugError {
    /// No slot is free.
    #[error("all PCI slots are taken")]
    Full,
    /// This slot is not free.
    #[error("PCI slot {0} is taken, or there is no such slot")]
    Taken(u8),
    /// No window has room for a BAR.
    #[error("no PCI window has {size:#x} bytes free for a BAR")]
    NoRoom {
        /// Of the BAR.
        size: u64,
    },
}

const KIND: &str = "pci-root";
const VERSION: u16 = 2;

#[derive(Serialize, Deserialize)]
struct State {
    plugged: u32,
    unplugging: u32,
}

impl PciRoot {
    /// An empty bus; BARs will be on `bus` for as long as somebody else holds it, in `windows`.
    #[must_use]
    pub fn new(bus: &Arc<Bus>, windows: Windows) -> Arc<Self> {
        Arc::new(Self {
            bus: Arc::downgrade(bus),
            windows,
            slots: RwLock::default(),
            placed: Mutex::default(),
            plugged: AtomicU32::new(0),
            unplugging: AtomicU32::new(0),
        })
    }

    /// A free slot: the one that is wanted, or the first of `among`.
    ///
    /// # Errors
    /// When it, or all of them, are taken.
    pub fn free_slot(&self, wanted: Option<u8>, among: Range<u8>) -> Result<u8, PlugError> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let is_free = |slot: u8| slot != 0 && slots.get(usize::from(slot)).is_some_and(Option::is_none);
        match wanted {
            Some(slot) => is_free(slot).then_some(slot).ok_or(PlugError::Taken(slot)),
            None => among.into_iter().find(|&slot| is_free(slot)).ok_or(PlugError::Full),
        }
    }

    /// Adds a function before the guest runs, and gives its BARs addresses.
    ///
    /// # Errors
    /// When the slot is taken, or its BARs have no room.
    pub fn add(&self, slot: u8, function: Arc<dyn PciFunction>) -> Result<(), PlugError> {
        self.free_slot(Some(slot), 0..SLOTS)?;
        self.assign(function.as_ref())?;
        self.add_restored(slot, function)
    }

    /// Adds a function whose BARs have addresses already, those of a snapshot.
    ///
    /// # Errors
    /// When the slot is taken.
    pub fn add_restored(&self, slot: u8, function: Arc<dyn PciFunction>) -> Result<(), PlugError> {
        {
            let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
            let place = slots.get_mut(usize::from(slot)).filter(|place| place.is_none());
            *place.ok_or(PlugError::Taken(slot))? = Some(function);
        }
        self.remap();
        Ok(())
    }

    /// Adds a function while the guest runs. An event has to tell the guest afterwards.
    ///
    /// # Errors
    /// As [`PciRoot::add`].
    pub fn plug(&self, slot: u8, function: Arc<dyn PciFunction>) -> Result<(), PlugError> {
        self.add(slot, function)?;
        self.plugged.fetch_or(1 << slot, Ordering::AcqRel);
        Ok(())
    }

    /// Asks the guest to let go of a function; false when there is none. An event has to tell the guest afterwards.
    pub fn unplug(&self, slot: u8) -> bool {
        let is_there = self.function(slot).is_some();
        if is_there {
            self.unplugging.fetch_or(1 << slot, Ordering::AcqRel);
        }
        is_there
    }

    /// Slots that functions were plugged into, since it was last asked.
    #[must_use]
    pub fn take_plugged(&self) -> u32 {
        self.plugged.swap(0, Ordering::AcqRel)
    }

    /// Slots that the guest has to let go of, since it was last asked.
    #[must_use]
    pub fn take_unplugging(&self) -> u32 {
        self.unplugging.swap(0, Ordering::AcqRel)
    }

    /// Takes a function away, at once.
    pub fn eject(&self, slot: u8) -> Option<Arc<dyn PciFunction>> {
        let function = {
            let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
            slots.get_mut(usize::from(slot))?.take()?
        };
        for pending in [&self.plugged, &self.unplugging] {
            pending.fetch_and(!(1 << slot), Ordering::AcqRel);
        }
        let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        for (bar, address) in (0..).zip(&mut placed[usize::from(slot)]) {
            self.displace(function.as_ref(), bar, address);
        }
        Some(function)
    }

    /// The function in a slot.
    #[must_use]
    pub fn function(&self, slot: u8) -> Option<Arc<dyn PciFunction>> {
        self.slots.read().unwrap_or_else(PoisonError::into_inner).get(usize::from(slot))?.clone()
    }

    /// All functions, by slot.
    #[must_use]
    pub fn functions(&self) -> Vec<(u8, Arc<dyn PciFunction>)> {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        (0..).zip(slots.iter()).filter_map(|(slot, function)| Some((slot, function.clone()?))).collect()
    }

    /// Everything back to how it was at power-on.
    pub fn reset(&self) {
        for (_, function) in self.functions() {
            function.reset();
        }
        self.remap();
        for (_, function) in self.functions() {
            // There was room before, and guests can't change sizes.
            let _ = self.assign(function.as_ref());
        }
        self.remap();
        for state in [&self.plugged, &self.unplugging] {
            state.store(0, Ordering::Release);
        }
    }

    /// The root's own state; functions have theirs.
    #[must_use]
    pub fn save(&self) -> Saved {
        let load = |state: &AtomicU32| state.load(Ordering::Acquire);
        let (plugged, unplugging) = (load(&self.plugged), load(&self.unplugging));
        Saved::State(Unit::encode(KIND, VERSION, &State { plugged, unplugging }))
    }

    /// Takes over what [`PciRoot::save`] gave.
    ///
    /// # Errors
    /// When it did not.
    pub fn restore(&self, unit: &Unit) -> Result<(), InvalidState> {
        let State { plugged, unplugging } = unit.decode(KIND, VERSION)?;
        self.plugged.store(plugged, Ordering::Release);
        self.unplugging.store(unplugging, Ordering::Release);
        Ok(())
    }

    /// Reads configuration space; what nobody answers stays as it is (all ones).
    pub fn read_config(&self, slot: u8, register: u16, data: &mut [u8]) {
        if let (Some(function), true) = (self.function(slot), is_one_register(register, data.len())) {
            function.read_config(register, data);
        }
    }

    /// Writes configuration space.
    pub fn write_config(&self, slot: u8, register: u16, data: &[u8]) {
        let Some(function) = self.function(slot).filter(|_| is_one_register(register, data.len())) else { return };
        if function.write_config(register, data) == Effect::Remap {
            self.remap();
        }
    }

    /// Gives the BARs of a function addresses, largest first.
    fn assign(&self, function: &dyn PciFunction) -> Result<(), PlugError> {
        let mut taken: Vec<Range<u64>> = Vec::new();
        for (_, other) in self.functions() {
            let bars = other.bars();
            taken.extend(bars.iter().filter_map(|(bar, _)| bars.range(bar)));
        }
        let mut bars: Vec<_> = function.bars().iter().collect();
        bars.sort_by_key(|(_, bar)| std::cmp::Reverse(bar.size));
        for (index, bar) in bars {
            let place = self.windows.place(bar.size, bar.is_64_bit, &taken);
            let start = place.ok_or(PlugError::NoRoom { size: bar.size })?;
            taken.push(start..start + bar.size);
            function.assign(index, start);
        }
        Ok(())
    }

    /// Puts every BAR where the guest wants it. One that is outside of the windows, or over another one, is nowhere.
    fn remap(&self) {
        let Some(bus) = self.bus.upgrade() else { return };
        let mut placed = self.placed.lock().unwrap_or_else(PoisonError::into_inner);
        let functions = self.functions();
        // First all that leave, so that two can change places.
        for (slot, function) in &functions {
            for (bar, address) in (0..).zip(&mut placed[usize::from(*slot)]) {
                if address.is_some() && *address != self.wanted(function.as_ref(), bar).map(|range| range.start) {
                    self.displace(function.as_ref(), bar, address);
                }
            }
        }
        for (slot, function) in functions {
            for (bar, address) in (0..).zip(&mut placed[usize::from(slot)]) {
                let Some(range) = self.wanted(function.as_ref(), bar).filter(|_| address.is_none()) else { continue };
                let start = range.start;
                if bus.insert(range, Arc::new(PlacedBar { function: function.clone(), bar })).is_ok() {
                    *address = Some(start);
                    function.moved(bar, Some(start));
                }
            }
        }
    }

    fn wanted(&self, function: &dyn PciFunction, bar: u8) -> Option<Range<u64>> {
        if !function.decodes_memory() {
            return None;
        }
        function.bars().range(bar).filter(|range| self.windows.contain(range))
    }

    fn displace(&self, function: &dyn PciFunction, bar: u8, address: &mut Option<u64>) {
        if let Some(start) = address.take() {
            function.moved(bar, None);
            if let Some(bus) = self.bus.upgrade() {
                bus.remove(start);
            }
        }
    }
}

/// Accesses that cross registers are not allowed, and go nowhere.
fn is_one_register(register: u16, length: usize) -> bool {
    matches!(length, 1 | 2 | 4) && usize::from(register % 4) + length <= 4
}

struct PlacedBar {
    function: Arc<dyn PciFunction>,
    bar: u8,
}

impl BusDevice for PlacedBar {
    fn read(&self, offset: u64, data: &mut [u8]) {
        self.function.read_bar(self.bar, offset, data);
    }

    fn write(&self, offset: u64, data: &[u8]) -> Request {
        self.function.write_bar(self.bar, offset, data)
    }
}

#[cfg(test)]
#[path = "root_tests.rs"]
mod tests;
