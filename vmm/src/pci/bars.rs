//! Base address registers.

use std::ops::Range;

/// A memory BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bar {
    /// Bytes, a power of two from 16 on.
    pub size: u64,
    /// Takes two registers, and may be above 4 GiB.
    pub is_64_bit: bool,
    /// Reads have no side effects.
    pub is_prefetchable: bool,
}

/// The six registers of a function. Registers without a BAR are zero and stay so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bars {
    bars: [Option<Bar>; 6],
    registers: [u32; 6],
}

/// A BAR that can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("BAR {index} can't be {bar:?}")]
pub struct ImpossibleBar {
    /// Which.
    pub index: u8,
    /// What it should be.
    pub bar: Bar,
}

/// Bits that say what a BAR is; the guest can't change them.
const KIND_64_BIT: u32 = 0b100;
const KIND_PREFETCHABLE: u32 = 0b1000;

impl Bars {
    /// Puts a BAR, without an address.
    ///
    /// # Errors
    /// When its registers are not there or taken, or its size is not one a BAR can have.
    pub fn put(&mut self, index: u8, bar: Bar) -> Result<(), ImpossibleBar> {
        let registers = usize::from(index)..usize::from(index) + if bar.is_64_bit { 2 } else { 1 };
        let is_free = registers.end <= 6 && registers.clone().all(|register| !self.is_taken(register));
        let limit = if bar.is_64_bit { 1 << 63 } else { 1 << 31 };
        if !is_free || !bar.size.is_power_of_two() || bar.size < 16 || bar.size > limit {
            return Err(ImpossibleBar { index, bar });
        }
        let kind =
            if bar.is_64_bit { KIND_64_BIT } else { 0 } | if bar.is_prefetchable { KIND_PREFETCHABLE } else { 0 };
        self.bars[registers.start] = Some(bar);
        self.registers[registers.start] = kind;
        Ok(())
    }

    fn is_taken(&self, register: usize) -> bool {
        self.bars[register].is_some() || self.is_upper_half(register)
    }

    fn is_upper_half(&self, register: usize) -> bool {
        register > 0 && self.bars[register - 1].is_some_and(|bar| bar.is_64_bit)
    }

    /// The BARs there are, by index.
    pub fn iter(&self) -> impl Iterator<Item = (u8, Bar)> + '_ {
        (0..).zip(self.bars).filter_map(|(index, bar)| Some((index, bar?)))
    }

    /// Where a BAR is, if it exists and its address does not overflow.
    #[must_use]
    pub fn range(&self, index: u8) -> Option<Range<u64>> {
        let bar = (*self.bars.get(usize::from(index))?)?;
        let low = u64::from(self.registers[usize::from(index)] & !0xF);
        let high = if bar.is_64_bit { u64::from(*self.registers.get(usize::from(index) + 1)?) << 32 } else { 0 };
        let start = high | low;
        Some(start..start.checked_add(bar.size)?)
    }

    /// Sets where a BAR is; bits that its size does not allow are dropped, as are those beyond 32 bits of one that has no
    /// more.
    pub fn set(&mut self, index: u8, address: u64) {
        self.write(index, address as u32, !0);
        if self.is_upper_half(usize::from(index) + 1) {
            self.write(index + 1, (address >> 32) as u32, !0);
        }
    }

    /// What the guest reads from register `index`.
    #[must_use]
    pub fn read(&self, index: u8) -> u32 {
        self.registers.get(usize::from(index)).copied().unwrap_or_default()
    }

    /// Takes the bits of `value` that `mask` has. Bits below the size stay zero: so the guest learns it, by writing ones.
    pub fn write(&mut self, index: u8, value: u32, mask: u32) {
        let index = usize::from(index);
        let bar = |index: usize| self.bars.get(index).copied().flatten();
        let writable = match (bar(index), index.checked_sub(1).and_then(bar)) {
            (Some(bar), _) => !(bar.size - 1) as u32 & !0xF,
            (None, Some(lower)) if lower.is_64_bit => (!(lower.size - 1) >> 32) as u32,
            _ => return,
        };
        let mask = mask & writable;
        self.registers[index] = self.registers[index] & !mask | value & mask;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn one(index: u8, size: u64, is_64_bit: bool) -> Bars {
        let mut bars = Bars::default();
        bars.put(index, Bar { size, is_64_bit, is_prefetchable: is_64_bit }).unwrap();
        bars
    }

    #[test]
    fn the_guest_learns_the_size_by_writing_ones() {
        let mut bars = one(0, 0x8000, false);
        bars.write(0, !0, !0);
        assert_eq!(bars.read(0), 0xFFFF_8000);
        bars.write(0, 0xC010_8000, !0);
        assert_eq!(bars.range(0), Some(0xC010_8000..0xC011_0000));
        assert_eq!(bars.read(1), 0);
    }

    #[test]
    fn bars_of_64_bits_take_two_registers() {
        let mut bars = one(2, 1 << 33, true);
        for register in [2, 3] {
            bars.write(register, !0, !0);
        }
        assert_eq!([bars.read(2), bars.read(3)], [0b1100, 0xFFFF_FFFE]);
        bars.set(2, 0x24_0000_0000);
        assert_eq!(bars.range(2), Some(0x24_0000_0000..0x26_0000_0000));
        assert_eq!(bars.range(3), None);
        assert!(bars.put(3, Bar { size: 16, is_64_bit: false, is_prefetchable: false }).is_err());
    }

    #[test]
    fn impossible_bars_are_refused() {
        let mut bars = Bars::default();
        for (index, size, is_64_bit) in
            [(6, 16, false), (5, 16, true), (0, 8, false), (0, 24, false), (0, 1 << 32, false)]
        {
            assert!(bars.put(index, Bar { size, is_64_bit, is_prefetchable: false }).is_err(), "{index} {size}");
        }
    }

    proptest! {
        #[test]
        fn whatever_is_written_the_address_stays_aligned(
            index in 0u8..5, bits in 4u32..63, writes in proptest::collection::vec((0u8..8, any::<u32>(), any::<u32>()), 0..20),
        ) {
            let size = 1u64 << bits;
            let is_64_bit = bits > 31;
            let mut bars = one(index, size, is_64_bit);
            let kind = bars.read(index) & 0xF;
            for (register, value, mask) in writes {
                bars.write(register, value, mask);
                prop_assert_eq!(bars.read(index) & 0xF, kind);
                if let Some(range) = bars.range(index) {
                    prop_assert_eq!(range.start % size, 0);
                    prop_assert_eq!(range.end - range.start, size);
                }
            }
        }
    }
}
