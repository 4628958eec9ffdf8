//! The guest's function in front of a host function.

use std::io;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use vm_memory::MmapRegion;

use super::interrupts::FunctionInterrupts;
use super::view::{EXTENDED, View, express};
use super::{HostFunction, IrqKind, Region, VfioError, regions};
use crate::bus::Request;
use crate::hypervisor::{Slot, Slots};
use crate::interrupts::{Interrupts, Line};
use crate::pci::{Bar, Bars, Effect, Msix, PciFunction, command, register};
use crate::snapshot::Saved;

/// What a function is connected to.
#[derive(Clone)]
pub struct Ports {
    /// Interrupts.
    pub interrupts: Arc<Interrupts>,
    /// For BARs that the guest reaches without this process.
    pub memory_slots: Slots,
    /// Its slot on the bus.
    pub slot: u8,
}

/// A host function on the guest's bus. It is reset when it comes and when it goes.
pub struct VfioPci(Mutex<Function>);

struct Function {
    interrupts: FunctionInterrupts,
    view: View,
    /// The view before the guest changed it.
    at_power_on: View,
    has_intx: bool,
    memory_slots: Slots,
    mapped: Vec<Mapped>,
    /// Last, so that it outlives all that was mapped from it.
    host: Box<dyn HostFunction>,
}

/// A part of a BAR in this process, and in the guest while the BAR is somewhere.
struct Mapped {
    bar: u8,
    offset: u64,
    slot: Option<Slot>,
    memory: Arc<MmapRegion>,
}

impl VfioPci {
    /// A function for the guest. `address` names it in errors.
    ///
    /// # Errors
    /// When what the host function says of itself makes no sense, or the kernel refuses.
    pub fn new(host: Box<dyn HostFunction>, address: &str, ports: Ports) -> Result<Self, VfioError> {
        Function::new(host, address, ports).map(|function| Self(Mutex::new(function)))
    }

    fn function(&self) -> MutexGuard<'_, Function> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Function {
    fn new(host: Box<dyn HostFunction>, address: &str, ports: Ports) -> Result<Self, VfioError> {
        let failed = |what: &str| super::container::failed(format!("{what} {address}"));
        let unusable = |reason| VfioError::Unusable { address: address.to_owned(), reason };
        let space = read_all(host.as_ref()).map_err(failed("reading the configuration space of"))?;
        let bars = bars(&space, |bar| host.region(bar).size).ok_or_else(|| unusable("its BARs make no sense"))?;
        let has_intx = host.irqs(IrqKind::Intx) > 0;
        let irq = has_intx.then(|| Line::irq(ports.slot));
        let view = View::new(&space, bars, irq, host.can_reset()).map_err(unusable)?;
        let msix = view.msix.map(|place| Msix::new(place.vectors));
        let msi = view.msi.as_ref().map(|(_, msi)| msi.clone());
        // It always decodes: whether the guest does is the bus's matter.
        let command = command::MEMORY.to_le_bytes();
        host.write_config(register::COMMAND, &command).map_err(failed("enabling"))?;
        let mut function = Self {
            interrupts: FunctionInterrupts::new(ports.interrupts, ports.slot, msi, msix),
            at_power_on: view.clone(),
            view,
            has_intx,
            memory_slots: ports.memory_slots,
            mapped: Vec::new(),
            host,
        };
        for (bar, _) in bars.iter() {
            function.map(bar).map_err(failed("mapping BARs of"))?;
        }
        Ok(function)
    }

    fn map(&mut self, bar: u8) -> io::Result<()> {
        let Region { mappable, .. } = self.host.region(bar);
        for range in regions::direct(&mappable, &self.trapped(bar)) {
            let memory = self.host.map(bar, &range)?;
            self.mapped.push(Mapped { bar, offset: range.start, slot: None, memory });
        }
        Ok(())
    }

    /// Where MSI-X is in a BAR: table and pending bits.
    fn msix_ranges(&self, bar: u8) -> [Range<u64>; 2] {
        let (Some(place), Some((msix, _))) = (self.view.msix, &self.interrupts.msix) else { return [0..0, 0..0] };
        let range = |(at, offset): (u8, u32), size: u64| {
            if at == bar { u64::from(offset)..u64::from(offset) + size } else { 0..0 }
        };
        [range(place.table, msix.table_size()), range(place.pending, msix.pending_size())]
    }

    fn trapped(&self, bar: u8) -> Vec<Range<u64>> {
        self.msix_ranges(bar).into()
    }

    fn read_config(&self, offset: u16, data: &mut [u8]) {
        if offset >= EXTENDED {
            let known = self.view.extended.iter().skip(usize::from(offset - EXTENDED)).chain(std::iter::repeat(&0));
            data.iter_mut().zip(known).for_each(|(byte, known)| *byte = *known);
            return;
        }
        self.view.config.read(offset, data);
        if let (Some((at, _)), Some((msi, vectors))) = (&self.view.msi, &self.interrupts.msi) {
            for (byte, offset) in data.iter_mut().zip(offset..) {
                let shown = offset.checked_sub(*at).and_then(|at| msi.read(at, |index| vectors.is_pending(index)));
                *byte = shown.unwrap_or(*byte);
            }
        }
        if let Some(express) = self.view.express {
            // Whether transactions are pending is the function's to say.
            let status = express.guest + express::STATUS;
            if offset <= status && status < offset + data.len() as u16 {
                let _ = self
                    .host
                    .read_config(express.host + express::STATUS, &mut data[usize::from(status - offset)..][..1]);
            }
        }
    }

    fn write_config(&mut self, offset: u16, data: &[u8]) -> Effect {
        if offset >= EXTENDED {
            return Effect::Nothing;
        }
        let before = (self.view.config.command(), self.express_control());
        let effect = self.view.config.write(offset, data);
        if let Some(at) = self.view.msi.as_ref().and_then(|(at, _)| msi_overlap(*at, offset, data.len())) {
            self.interrupts.change_msi(|msi| msi.write(at.0, &data[at.1..]));
        }
        if let Some(place) = self.view.msix {
            let mut control = [0; 2];
            self.view.config.read(place.control, &mut control);
            self.interrupts.change_msix(|msix| msix.set_control(u16::from_le_bytes(control)));
        }
        self.pass_on(before, offset, data);
        self.follow_interrupts();
        effect
    }

    fn express_control(&self) -> u16 {
        let mut control = [0; 2];
        if let Some(express) = self.view.express {
            self.view.config.read(express.guest + express::CONTROL, &mut control);
        }
        u16::from_le_bytes(control)
    }

    /// The few things that reach the host function. What the kernel refuses of them stays as it was.
    fn pass_on(&mut self, before: (u16, u16), offset: u16, data: &[u8]) {
        let (command, control) = (self.view.config.command(), self.express_control());
        if (before.0 ^ command) & command::BUS_MASTER != 0 {
            let command = command & command::BUS_MASTER | command::MEMORY;
            let _ = self.host.write_config(register::COMMAND, &command.to_le_bytes());
        }
        let Some(place) = self.view.express else { return };
        let at = place.host + express::CONTROL;
        let mut current = [0; 2];
        if before.1 != control && self.host.read_config(at, &mut current).is_ok() {
            let others = u16::from_le_bytes(current) & !(express::PASSED_ON | express::RESET);
            let _ = self.host.write_config(at, &(others | control & express::PASSED_ON).to_le_bytes());
        }
        let high_byte = place.guest + express::CONTROL + 1;
        let written = high_byte.checked_sub(offset).and_then(|index| data.get(usize::from(index)));
        if written.is_some_and(|byte| u16::from(*byte) << 8 & express::RESET != 0) && self.host.can_reset() {
            let _ = self.host.reset();
        }
    }

    fn follow_interrupts(&mut self) {
        let command = self.view.config.command();
        // A function that decodes nothing has no driver, and interrupts nobody.
        let is_used = command & command::MEMORY != 0 && command & command::INTX_DISABLE == 0;
        self.interrupts.follow(self.host.as_ref(), self.has_intx && is_used);
    }

    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) {
        let [table, pending] = self.msix_ranges(bar);
        match &self.interrupts.msix {
            Some((msix, _)) if table.contains(&offset) => msix.read_table(offset - table.start, data),
            Some((msix, vectors)) if pending.contains(&offset) => {
                msix.read_pending(offset - pending.start, data, |index| vectors.is_pending(index));
            }
            // What the kernel refuses reads as ones.
            _ => {
                if self.host.read(bar, offset, data).is_err() {
                    data.fill(0xFF);
                }
            }
        }
    }

    fn write_bar(&mut self, bar: u8, offset: u64, data: &[u8]) {
        let [table, pending] = self.msix_ranges(bar);
        if table.contains(&offset) {
            self.interrupts.change_msix(|msix| msix.write_table(offset - table.start, data).into_iter().collect());
        } else if !pending.contains(&offset) {
            let _ = self.host.write(bar, offset, data);
        }
    }

    fn moved(&mut self, bar: u8, address: Option<u64>) {
        for mapped in self.mapped.iter_mut().filter(|mapped| mapped.bar == bar) {
            mapped.slot = None;
            if let Some(address) = address {
                // Without a slot it works too, only slowly.
                mapped.slot = self.memory_slots.map(address + mapped.offset, mapped.memory.clone(), false).ok();
            }
        }
    }

    fn reset(&mut self) {
        self.interrupts.reset(self.host.as_ref());
        let _ = self.host.write_config(register::COMMAND, &command::MEMORY.to_le_bytes());
        if self.host.can_reset() {
            let _ = self.host.reset();
        }
        self.view = self.at_power_on.clone();
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        self.mapped.clear();
        self.reset();
    }
}

/// Where a write begins in the MSI capability, and how many of its bytes are before that.
fn msi_overlap(at: u16, offset: u16, length: usize) -> Option<(u16, usize)> {
    match offset.checked_sub(at) {
        Some(inside) => Some((inside, 0)),
        None => Some((0, usize::from(at - offset))).filter(|(_, before)| *before < length),
    }
}

fn read_all(host: &dyn HostFunction) -> io::Result<Vec<u8>> {
    let mut space = vec![0; 4096];
    if host.read_config(0, &mut space).is_ok() {
        return Ok(space);
    }
    space.truncate(256);
    host.read_config(0, &mut space)?;
    Ok(space)
}

/// The BARs of a function: what kind they are is in its registers, how big they are the kernel knows. I/O BARs, which
/// drivers of today do not need, are left out.
fn bars(space: &[u8], size: impl Fn(u8) -> u64) -> Option<Bars> {
    let mut bars = Bars::default();
    let mut index = 0;
    while index < 6u8 {
        let at = usize::from(register::BARS.start) + 4 * usize::from(index);
        let kind = *space.get(at)?;
        let (is_io, is_64_bit, is_prefetchable) = (kind & 1 != 0, kind & 0b110 == 0b100, kind & 0b1000 != 0);
        if !is_io && size(index) > 0 {
            bars.put(index, Bar { size: size(index), is_64_bit, is_prefetchable }).ok()?;
        }
        index += if is_64_bit && !is_io { 2 } else { 1 };
    }
    Some(bars)
}

impl PciFunction for VfioPci {
    fn read_config(&self, offset: u16, data: &mut [u8]) {
        self.function().read_config(offset, data);
    }

    fn write_config(&self, offset: u16, data: &[u8]) -> Effect {
        self.function().write_config(offset, data)
    }

    fn bars(&self) -> Bars {
        *self.function().view.config.bars()
    }

    fn decodes_memory(&self) -> bool {
        self.function().view.config.decodes_memory()
    }

    fn assign(&self, bar: u8, address: u64) {
        self.function().view.config.bars_mut().set(bar, address);
    }

    fn moved(&self, bar: u8, address: Option<u64>) {
        self.function().moved(bar, address);
    }

    fn read_bar(&self, bar: u8, offset: u64, data: &mut [u8]) {
        self.function().read_bar(bar, offset, data);
    }

    fn write_bar(&self, bar: u8, offset: u64, data: &[u8]) -> Request {
        self.function().write_bar(bar, offset, data);
        Request::Nothing
    }

    /// Nothing stops it: a guest that has one is not paused for a snapshot.
    fn pause(&self) {}

    fn resume(&self) -> io::Result<()> {
        Ok(())
    }

    fn reset(&self) {
        self.function().reset();
    }

    fn save(&self) -> Saved {
        Saved::Unsupported("a host function's state can't be saved: detach it first")
    }
}

#[cfg(test)]
#[path = "function_tests.rs"]
mod tests;
