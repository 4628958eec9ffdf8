//! MSI: the older message interrupts, up to 32 vectors of one function with one address.

use super::VectorChange;
use crate::interrupts::Message;

/// Control: MSI is used.
const ENABLE: u16 = 1;
/// Control: log2 of the vectors that the guest lets the function use.
const ENABLED_SHIFT: u16 = 4;
/// Control: the address has 64 bits.
const IS_64_BIT: u16 = 1 << 7;
/// Control: vectors can be masked one by one.
const HAS_MASK: u16 = 1 << 8;

/// The registers of an MSI capability, and what they mean.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Msi {
    control: u16,
    address: u64,
    data: u16,
    mask: u32,
}

impl Msi {
    /// MSI as the control register of a function says it can do.
    #[must_use]
    pub fn new(control: u16) -> Self {
        // More than 32 vectors is reserved.
        let most = (control >> 1 & 0b111).min(5);
        Self { control: most << 1 | control & (IS_64_BIT | HAS_MASK), address: 0, data: 0, mask: 0 }
    }

    /// Most vectors the function can use.
    #[must_use]
    pub fn count(&self) -> u16 {
        1 << (self.control >> 1 & 0b111)
    }

    /// Number of vectors that the guest lets the function use.
    #[must_use]
    pub fn enabled(&self) -> u16 {
        1 << (self.control >> ENABLED_SHIFT & 0b111)
    }

    /// What it can do: the control register as [`Msi::new`] takes it.
    #[must_use]
    pub fn capabilities(&self) -> u16 {
        self.control & !(ENABLE | 0b111 << ENABLED_SHIFT)
    }

    /// Bytes of the capability, its ID and link included.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.mask_offset().map_or(self.data_offset() + 4, |mask| mask + 8)
    }

    /// Whether MSI is what the function interrupts by.
    #[must_use]
    pub fn is_enabled(&self) -> bool {
        self.control & ENABLE != 0
    }

    fn data_offset(&self) -> u16 {
        if self.control & IS_64_BIT != 0 { 0xC } else { 0x8 }
    }

    fn mask_offset(&self) -> Option<u16> {
        (self.control & HAS_MASK != 0).then(|| self.data_offset() + 4)
    }

    /// The registers as bytes from the capability's start on; ID and link are zero, pending bits as given.
    fn bytes(&self, pending: u32) -> [u8; 24] {
        let mut bytes = [0; 24];
        let mut put = |offset: u16, value: &[u8]| {
            let offset = usize::from(offset);
            bytes[offset..offset + value.len()].copy_from_slice(value);
        };
        put(2, &self.control.to_le_bytes());
        put(4, &(self.address as u32).to_le_bytes());
        if self.control & IS_64_BIT != 0 {
            put(8, &((self.address >> 32) as u32).to_le_bytes());
        }
        put(self.data_offset(), &self.data.to_le_bytes());
        if let Some(offset) = self.mask_offset() {
            put(offset, &self.mask.to_le_bytes());
            put(offset + 4, &pending.to_le_bytes());
        }
        bytes
    }

    /// Reads one byte at an offset from the capability's start; `None` for its ID and link, and beyond it.
    pub fn read(&self, offset: u16, is_pending: impl Fn(u16) -> bool) -> Option<u8> {
        if !(2..self.size()).contains(&offset) {
            return None;
        }
        let in_pending = self.mask_offset().is_some_and(|mask| offset >= mask + 4);
        let bits = (0..if in_pending { self.count() } else { 0 }).filter(|&index| is_pending(index));
        let pending = bits.fold(0, |bits, index| bits | 1 << index);
        self.bytes(pending).get(usize::from(offset)).copied()
    }

    /// Writes at an offset from the capability's start.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Vec<VectorChange> {
        let before: Vec<_> = (0..self.count()).map(|index| self.message(index)).collect();
        let mut bytes = self.bytes(0);
        for (byte, offset) in data.iter().zip(offset..self.size()) {
            if let Some(place) = bytes.get_mut(usize::from(offset)) {
                *place = *byte;
            }
        }
        self.take(&bytes);
        let after = (0..self.count()).map(|index| self.message(index));
        (0..)
            .zip(before.into_iter().zip(after))
            .filter(|(_, (old, new))| old != new)
            .map(|(i, (_, new))| (i, new))
            .collect()
    }

    fn take(&mut self, bytes: &[u8; 24]) {
        let word = |offset: u16| {
            let at = usize::from(offset);
            u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
        };
        let control = u16::from_le_bytes([bytes[2], bytes[3]]);
        let most = self.control >> 1 & 0b111;
        let enabled = (control >> ENABLED_SHIFT & 0b111).min(most);
        self.control = self.control & !(ENABLE | 0b111 << ENABLED_SHIFT) | control & ENABLE | enabled << ENABLED_SHIFT;
        let high = if self.control & IS_64_BIT != 0 { u64::from(word(8)) << 32 } else { 0 };
        self.address = high | u64::from(word(4) & !3);
        self.data = word(self.data_offset()) as u16;
        self.mask = self.mask_offset().map_or(0, word);
    }

    /// Where a vector goes to; `None` while it is masked, or beyond what is enabled.
    fn message(&self, index: u16) -> Option<Message> {
        let enabled = self.enabled();
        let is_delivered = self.is_enabled() && index < enabled && self.mask >> index & 1 == 0;
        // The function changes the low bits of the data to say which vector it is.
        let data = self.data & !(enabled - 1) | index & (enabled - 1);
        is_delivered.then_some(Message { address: self.address, data: data.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// 4 vectors, 64 bits, maskable.
    const FULL: u16 = 2 << 1 | IS_64_BIT | HAS_MASK;

    #[test]
    fn vectors_share_an_address_and_differ_in_data() {
        let mut msi = Msi::new(FULL);
        assert_eq!((msi.count(), msi.size()), (4, 24));
        msi.write(4, &0xFEE0_0000u32.to_le_bytes());
        msi.write(8, &1u32.to_le_bytes());
        msi.write(12, &0x4043u16.to_le_bytes());
        let message = |data| Some(Message { address: 0x1_FEE0_0000, data });
        assert_eq!(
            msi.write(2, &(ENABLE | 1 << ENABLED_SHIFT).to_le_bytes()),
            [(0, message(0x4042)), (1, message(0x4043))]
        );
        assert_eq!(msi.write(16, &[2, 0, 0, 0]), [(1, None)]);
        assert_eq!(msi.write(2, &[0, 0]), [(0, None)]);
    }

    #[test]
    fn short_ones_have_no_mask() {
        let mut msi = Msi::new(0);
        assert_eq!((msi.count(), msi.size()), (1, 12));
        msi.write(4, &0xFEE0_0000u32.to_le_bytes());
        msi.write(8, &[0x41, 0]);
        assert_eq!(msi.write(2, &[0xFF, 0xFF]), [(0, Some(Message { address: 0xFEE0_0000, data: 0x41 }))]);
        assert_eq!(msi.read(2, |_| true), Some(1), "no more than it can do");
        assert_eq!([0, 1, 12, 99].map(|offset| msi.read(offset, |_| true)), [None; 4]);
    }

    #[test]
    fn pending_bits_are_read() {
        let msi = Msi::new(FULL);
        assert_eq!(msi.read(20, |index| index == 2), Some(0b100));
        assert_eq!(msi.read(16, |_| true), Some(0));
    }

    proptest! {
        #[test]
        fn changes_add_up(control in any::<u16>(), writes in proptest::collection::vec((0u16..40, any::<[u8; 4]>(), 1usize..5), 0..40)) {
            let mut msi = Msi::new(control);
            let mut seen = std::collections::BTreeMap::new();
            for (offset, data, length) in writes {
                seen.extend(msi.write(offset, &data[..length]));
                for index in 0..msi.count() {
                    prop_assert_eq!(seen.get(&index).copied().flatten(), msi.message(index));
                }
            }
            prop_assert_eq!(msi.control & !(ENABLE | 0b111 << ENABLED_SHIFT), Msi::new(control).control);
        }
    }
}
