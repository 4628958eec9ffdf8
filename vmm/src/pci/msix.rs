//! MSI-X: capability, table and pending bits.

use serde::{Deserialize, Serialize};

use super::VectorChange;
use crate::interrupts::Message;

/// Bytes of a table entry.
const ENTRY: u64 = 16;

/// Control: MSI-X is used, instead of INTx or MSI.
const ENABLE: u16 = 1 << 15;
/// Control: all vectors are masked.
const MASK_ALL: u16 = 1 << 14;
/// Vector control: this one is masked.
const MASK: u32 = 1;

/// The registers of a function's MSI-X, and what they mean. Every change returns the vectors that are delivered
/// differently from now on; [`crate::interrupts::Vectors`] carries it out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Msix {
    entries: Vec<Entry>,
    control: u16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Entry {
    address: u64,
    data: u32,
    is_masked: bool,
}

impl Entry {
    const MASKED: Self = Self { address: 0, data: 0, is_masked: true };
}

/// Saved [`Msix`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SavedMsix {
    control: u16,
    /// Address, data, whether masked.
    entries: Vec<(u64, u32, bool)>,
}

impl Msix {
    /// Most vectors there can be.
    pub const MOST: u16 = 2048;

    /// `count` vectors, but from 1 to [`Msix::MOST`]; masked, and MSI-X disabled.
    #[must_use]
    pub fn new(count: u16) -> Self {
        Self { entries: vec![Entry::MASKED; count.clamp(1, Self::MOST).into()], control: 0 }
    }

    /// Number of vectors.
    #[must_use]
    pub fn count(&self) -> u16 {
        self.entries.len() as u16
    }

    /// Bytes of the table.
    #[must_use]
    pub fn table_size(&self) -> u64 {
        self.entries.len() as u64 * ENTRY
    }

    /// Bytes of the pending bits.
    #[must_use]
    pub fn pending_size(&self) -> u64 {
        self.entries.len().div_ceil(64) as u64 * 8
    }

    /// What follows the capability's ID and link: control, then where table and pending bits are (BAR and offset each).
    #[must_use]
    pub fn capability(&self, table: (u8, u32), pending: (u8, u32)) -> [u8; 10] {
        let place = |(bar, offset): (u8, u32)| (offset & !7 | u32::from(bar & 7)).to_le_bytes();
        let mut body = [0; 10];
        body[..2].copy_from_slice(&self.control().to_le_bytes());
        body[2..6].copy_from_slice(&place(table));
        body[6..].copy_from_slice(&place(pending));
        body
    }

    /// The control register.
    #[must_use]
    pub fn control(&self) -> u16 {
        self.control | (self.count() - 1)
    }

    /// Whether MSI-X is what the function interrupts by.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    /// Sets the control register.
    pub fn set_control(&mut self, control: u16) -> Vec<VectorChange> {
        let before = self.control;
        self.control = control & (ENABLE | MASK_ALL);
        if before == self.control {
            return Vec::new();
        }
        let message = |control, entry: &Entry| message(control, entry);
        let differ = |entry: &&Entry| message(before, entry) != message(self.control, entry);
        let changed = (0..).zip(&self.entries).filter(|(_, entry)| differ(entry));
        changed.map(|(index, entry)| (index, message(self.control, entry))).collect()
    }

    /// Every vector that is delivered, and where to.
    #[must_use]
    pub fn delivered(&self) -> Vec<VectorChange> {
        let messages = self.entries.iter().map(|entry| message(self.control, entry));
        (0..).zip(messages).filter(|(_, message)| message.is_some()).collect()
    }

    /// Reads the table, by aligned 4 or 8 bytes; other reads leave `data` as it is.
    pub fn read_table(&self, offset: u64, data: &mut [u8]) {
        let Some((index, at)) = self.position(offset, data.len()) else { return };
        data.copy_from_slice(&self.entries[index].bytes()[at..at + data.len()]);
    }

    /// Writes the table, by aligned 4 or 8 bytes; other writes are lost.
    pub fn write_table(&mut self, offset: u64, data: &[u8]) -> Option<VectorChange> {
        let (index, at) = self.position(offset, data.len())?;
        let before = message(self.control, &self.entries[index]);
        let mut bytes = self.entries[index].bytes();
        bytes[at..at + data.len()].copy_from_slice(data);
        self.entries[index] = Entry::from_bytes(&bytes);
        let after = message(self.control, &self.entries[index]);
        (before != after).then_some((index as u16, after))
    }

    fn position(&self, offset: u64, length: usize) -> Option<(usize, usize)> {
        let is_aligned = matches!(length, 4 | 8) && offset.is_multiple_of(length as u64);
        (is_aligned && offset < self.table_size()).then_some(((offset / ENTRY) as usize, (offset % ENTRY) as usize))
    }

    /// Reads the pending bits, of which `is_pending` knows one each.
    pub fn read_pending(&self, offset: u64, data: &mut [u8], is_pending: impl Fn(u16) -> bool) {
        for (byte, offset) in data.iter_mut().zip(offset..self.pending_size()) {
            let first = offset as u16 * 8;
            let bits = (0..8).filter(|bit| first + bit < self.count() && is_pending(first + bit));
            *byte = bits.fold(0, |byte, bit| byte | 1 << bit);
        }
    }

    /// For a snapshot.
    #[must_use]
    pub fn saved(&self) -> SavedMsix {
        let entries = self.entries.iter().map(|entry| (entry.address, entry.data, entry.is_masked)).collect();
        SavedMsix { control: self.control, entries }
    }

    /// Takes over saved registers; false when they have another number of vectors.
    pub fn restore(&mut self, saved: &SavedMsix) -> bool {
        if saved.entries.len() != self.entries.len() {
            return false;
        }
        let entry = |&(address, data, is_masked): &(u64, u32, bool)| Entry { address: address & !3, data, is_masked };
        self.entries = saved.entries.iter().map(entry).collect();
        self.control = saved.control & (ENABLE | MASK_ALL);
        true
    }
}

impl Entry {
    fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.data.to_le_bytes());
        bytes[12..].copy_from_slice(&u32::from(self.is_masked).to_le_bytes());
        bytes
    }

    fn from_bytes(bytes: &[u8; 16]) -> Self {
        let word = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
        // The lowest two bits of the address are always zero.
        let address = u64::from(word(4)) << 32 | u64::from(word(0) & !3);
        Self { address, data: word(8), is_masked: word(12) & MASK != 0 }
    }
}

fn message(control: u16, entry: &Entry) -> Option<Message> {
    let is_delivered = control & (ENABLE | MASK_ALL) == ENABLE && !entry.is_masked;
    is_delivered.then_some(Message { address: entry.address, data: entry.data })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MESSAGE: Message = Message { address: 0xFEE0_0000, data: 0x4041 };

    fn with_message(msix: &mut Msix, index: u64) -> Option<VectorChange> {
        msix.write_table(index * 16, &MESSAGE.address.to_le_bytes());
        msix.write_table(index * 16 + 8, &MESSAGE.data.to_le_bytes());
        msix.write_table(index * 16 + 12, &[0; 4])
    }

    #[test]
    fn vectors_are_delivered_when_enabled_and_unmasked() {
        let mut msix = Msix::new(3);
        assert_eq!(with_message(&mut msix, 1), None);
        assert_eq!(msix.set_control(MASK_ALL | ENABLE), []);
        assert_eq!(msix.set_control(ENABLE), [(1, Some(MESSAGE))]);
        assert_eq!(with_message(&mut msix, 2), Some((2, Some(MESSAGE))));
        assert_eq!(msix.delivered(), [(1, Some(MESSAGE)), (2, Some(MESSAGE))]);
        assert_eq!(msix.write_table(16 + 12, &[1, 0, 0, 0]), Some((1, None)));
        assert_eq!(msix.set_control(0), [(2, None)]);
        assert_eq!(msix.control(), 2);
    }

    #[test]
    fn only_aligned_words_inside_the_table_count() {
        let mut msix = Msix::new(1);
        msix.set_control(ENABLE);
        let fresh = msix.clone();
        for (offset, length) in [(0, 1), (0, 2), (2, 4), (4, 8), (16, 4), (u64::MAX - 3, 4), (1 << 40, 8)] {
            assert_eq!(msix.write_table(offset, &[0; 8][..length]), None);
            let mut data = [0xFF; 8];
            msix.read_table(offset, &mut data[..length]);
            assert_eq!(data, [0xFF; 8], "{offset:#x} {length}");
        }
        assert_eq!(msix, fresh);
        let mut data = [0; 8];
        msix.read_table(8, &mut data);
        assert_eq!(data, [0, 0, 0, 0, 1, 0, 0, 0], "masked at first");
    }

    #[test]
    fn pending_bits_are_those_of_existing_vectors() {
        let msix = Msix::new(10);
        let mut data = [0xFF; 8];
        msix.read_pending(0, &mut data, |index| {
            assert!(index < 10);
            index % 2 == 1
        });
        assert_eq!(data, [0xAA, 0x02, 0, 0, 0, 0, 0, 0]);
        let mut data = [0xFF; 4];
        msix.read_pending(8, &mut data, |_| true);
        assert_eq!(data, [0xFF; 4], "beyond");
    }

    proptest! {
        #[test]
        fn changes_add_up_to_what_is_delivered(
            writes in proptest::collection::vec((0u64..90, any::<u64>(), any::<bool>(), any::<u16>()), 0..60)
        ) {
            let mut msix = Msix::new(5);
            let mut seen = std::collections::BTreeMap::new();
            for (offset, value, is_long, control) in writes {
                let changes = if offset % 5 == 0 {
                    msix.set_control(control)
                } else {
                    let length = if is_long { 8 } else { 4 };
                    msix.write_table(offset, &value.to_le_bytes()[..length]).into_iter().collect()
                };
                for (index, message) in changes {
                    match message {
                        Some(message) => seen.insert(index, message),
                        None => seen.remove(&index),
                    };
                }
                let delivered = msix.delivered().into_iter().filter_map(|(index, message)| Some((index, message?)));
                prop_assert_eq!(seen.clone().into_iter().collect::<Vec<_>>(), delivered.collect::<Vec<_>>());
            }
            let mut restored = Msix::new(5);
            prop_assert!(restored.restore(&msix.saved()));
            prop_assert_eq!(restored, msix);
        }
    }
}
