//! The memory map that a kernel is told (E820). Pure but for asking where RAM is.

use vm_memory::{Address, GuestMemoryBackend, GuestMemoryRegion};

use crate::layout::ECAM;
use crate::memory::GuestMemory;

/// What a range of addresses is. The numbers are ACPI's (section 15).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// To be used.
    Ram = 1,
    /// To be left alone.
    Reserved = 2,
}

/// A range of the map.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Range {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// What is there.
    pub kind: Kind,
}

/// Where the first 640 KiB of a PC's RAM end: beyond are no programs, but boot data and the tables.
const FIRST_RAM_END: u64 = 0x9_FC00;

/// Where RAM for programs goes on.
pub const KERNEL_START: u64 = 0x10_0000;

/// Regions of RAM that adjoin, as one each.
fn ram(memory: &GuestMemory) -> Vec<(u64, u64)> {
    let mut joined: Vec<(u64, u64)> = Vec::new();
    for region in memory.iter() {
        let (start, end) = (region.start_addr().raw_value(), region.start_addr().raw_value() + region.len());
        match joined.last_mut() {
            Some(last) if last.1 == start => last.1 = end,
            _ => joined.push((start, end)),
        }
    }
    joined
}

/// End of the RAM that begins at address 0.
#[must_use]
pub fn end_of_first_ram(memory: &GuestMemory) -> u64 {
    ram(memory).first().map_or(0, |(_, end)| *end)
}

/// The map of a guest. Each range costs the kernel a few lines of its log, so it has no more than it needs: what is not
/// in it is nothing. ECAM is, because Linux takes it only when it is reserved.
#[must_use]
pub fn of(memory: &GuestMemory) -> Vec<Range> {
    let mut map = vec![Range { start: 0, size: FIRST_RAM_END, kind: Kind::Ram }];
    let mut ecam = Some(Range { start: ECAM.start, size: ECAM.end - ECAM.start, kind: Kind::Reserved });
    for (start, end) in ram(memory) {
        let start = if start == 0 { KERNEL_START } else { start };
        if start > ECAM.start {
            map.extend(ecam.take());
        }
        map.push(Range { start, size: end.saturating_sub(start), kind: Kind::Ram });
    }
    map.extend(ecam);
    map
}
