//! Where files that appear as memory are in the guest's address space.

use std::collections::BTreeMap;
use std::ops::Range;

use super::virtio_devices::AnyError;
use crate::hypervisor::{Slot, Slots};
use crate::virtio::pmem::Pmem;

/// The addresses for them, given out one after the other: such a device never leaves, so none is given back.
pub(super) struct PmemArea {
    free: Range<u64>,
    placed: BTreeMap<String, Slot>,
}

/// Beginnings are aligned like the pages that the host may map them by.
const ALIGNMENT: u64 = 2 << 20;

impl PmemArea {
    pub fn new(addresses: Range<u64>) -> Self {
        Self { free: addresses, placed: BTreeMap::new() }
    }

    /// Gives a device its place, and puts its file there.
    pub fn place(&mut self, mut pmem: Pmem, id: &str, slots: &Slots) -> Result<Pmem, AnyError> {
        let size = pmem.mapping().size() as u64;
        let Some(range) = room(&self.free, size) else {
            return Err(format!("there is no room for {size} bytes in the guest's address space").into());
        };
        let slot = slots.map(range.start, pmem.mapping().clone(), pmem.is_read_only())?;
        self.free.start = range.end;
        pmem.place(range.start);
        self.placed.insert(id.to_owned(), slot);
        Ok(pmem)
    }
}

/// The first aligned range of `size` bytes in `free`.
fn room(free: &Range<u64>, size: u64) -> Option<Range<u64>> {
    let start = free.start.checked_next_multiple_of(ALIGNMENT)?;
    let end = start.checked_add(size)?;
    (end <= free.end).then_some(start..end)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_aligned_and_end() {
        let free = 0x10_1000..0x100_0000;
        assert_eq!(room(&free, 0x20_0000), Some(0x20_0000..0x40_0000));
        assert_eq!(room(&free, 0xE0_0000), Some(0x20_0000..0x100_0000));
        assert_eq!(room(&free, 0xE0_0001), None);
        assert_eq!(room(&(u64::MAX - 1..u64::MAX), 1), None);
    }
}
