//! Where BARs get their first addresses.

use std::ops::Range;

/// The two windows of the root: what the guest's ACPI tables say of it (`_CRS`). BARs are decoded only inside of them, so
/// that a guest can put none over RAM or an interrupt controller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Windows {
    /// Below 4 GiB, for every BAR.
    pub low: Range<u64>,
    /// Above, for BARs of 64 bits. May be empty.
    pub high: Range<u64>,
}

impl Windows {
    /// Whether one of the windows contains all of `range`.
    #[must_use]
    pub fn contain(&self, range: &Range<u64>) -> bool {
        [&self.low, &self.high].iter().any(|window| window.start <= range.start && range.end <= window.end)
    }

    /// An address for `size` bytes (a power of two), aligned to that, which overlaps nothing of `taken`: above 4 GiB if it
    /// may be there, so that what is below is left to those who can't. `None` when no window has room.
    #[must_use]
    pub fn place(&self, size: u64, is_64_bit: bool, taken: &[Range<u64>]) -> Option<u64> {
        let high = is_64_bit.then_some(&self.high);
        high.into_iter().chain([&self.low]).find_map(|window| first_fit(window, size, taken))
    }
}

/// The lowest aligned address in `window` that is free.
fn first_fit(window: &Range<u64>, size: u64, taken: &[Range<u64>]) -> Option<u64> {
    let align = |address: u64| address.checked_next_multiple_of(size.max(1));
    // Free room begins where the window does, or where something taken ends.
    let starts = taken.iter().map(|range| range.end).filter(|end| window.contains(end)).chain([window.start]);
    let is_free = |start: &u64| {
        let Some(end) = start.checked_add(size) else { return false };
        end <= window.end && taken.iter().all(|range| end <= range.start || range.end <= *start)
    };
    starts.filter_map(align).filter(is_free).min()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const WINDOWS: Windows = Windows { low: 0xC000_0000..0xE000_0000, high: 0x10_0000_0000..0x20_0000_0000 };

    #[test]
    fn big_ones_go_high_and_fall_back_to_low() {
        assert_eq!(WINDOWS.place(1 << 20, false, &[]), Some(0xC000_0000));
        assert_eq!(WINDOWS.place(1 << 20, true, &[]), Some(0x10_0000_0000));
        let no_high = Windows { high: 0..0, ..WINDOWS };
        assert_eq!(no_high.place(1 << 20, true, &[]), Some(0xC000_0000));
        assert_eq!(WINDOWS.place(1 << 30, false, &[]), None);
        assert_eq!(WINDOWS.place(1 << 63, true, &[]), None);
    }

    #[test]
    fn only_what_lies_inside_is_contained() {
        assert!(WINDOWS.contain(&(0xC000_0000..0xE000_0000)));
        assert!(!WINDOWS.contain(&(0xBFFF_F000..0xC000_1000)));
        assert!(!WINDOWS.contain(&(0xDFFF_F000..0xE000_1000)));
        assert!(!WINDOWS.contain(&(0..0x1000)));
    }

    proptest! {
        #[test]
        fn places_are_aligned_free_and_inside(sizes in proptest::collection::vec((4u32..30, any::<bool>()), 0..40)) {
            let mut taken: Vec<Range<u64>> = Vec::new();
            for (bits, is_64_bit) in sizes {
                let size = 1u64 << bits;
                let Some(start) = WINDOWS.place(size, is_64_bit, &taken) else { continue };
                let range = start..start + size;
                prop_assert_eq!(start % size, 0);
                prop_assert!(WINDOWS.contain(&range));
                prop_assert!(is_64_bit || range.end <= 1 << 32);
                prop_assert!(taken.iter().all(|other| other.end <= range.start || range.end <= other.start));
                taken.push(range);
            }
        }
    }
}
