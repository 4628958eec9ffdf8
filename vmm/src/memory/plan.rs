//! Which guest addresses each zone of RAM gets. Pure.

use crate::layout::{HIGH_RAM_START, LOW_RAM_END};

/// A part of guest RAM that is of one kind on the host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Zone {
    /// Its name, for errors.
    pub id: String,
    /// Bytes, whole pages.
    pub size: u64,
    /// Pages of the host's that back it.
    pub page: PageSize,
    /// Whether other processes can map it (vhost-user). Huge pages always are.
    pub shared: bool,
    /// The host cell that all its pages must come from.
    pub cell: Option<u32>,
    /// Whether its pages are taken before the guest starts.
    pub prefault: bool,
    /// Whether the host may back it with transparent huge pages.
    pub thp: bool,
    /// Whether the host sets swap aside for it (`Documentation/mm/overcommit-accounting.rst`).
    pub reserve: bool,
}

/// What backs a zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PageSize {
    /// Pages of 4 KiB, or of whatever the host's transparent huge pages make of them.
    Base,
    /// Pages of 2 MiB from the host's pool.
    Huge2M,
    /// Pages of 1 GiB likewise.
    Huge1G,
}

impl PageSize {
    /// Bytes.
    #[must_use]
    pub fn bytes(self) -> u64 {
        match self {
            Self::Base => 4 << 10,
            Self::Huge2M => 2 << 20,
            Self::Huge1G => 1 << 30,
        }
    }
}

/// A zone, or a part of one, at consecutive guest addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Region {
    /// Which zone.
    pub zone: usize,
    /// First guest physical address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
    /// Where in the zone it begins.
    pub offset: u64,
}

/// A zone that can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImpossibleZone {
    /// Not a number of pages.
    #[error("memory zone {id:?}: {size} bytes are not a whole number of pages of {page} bytes")]
    NotWholePages {
        /// Which.
        id: String,
        /// Its size in bytes.
        size: u64,
        /// Its pages' size in bytes.
        page: u64,
    },
    /// More than there are addresses.
    #[error("memory zone {id:?} goes beyond what can be addressed")]
    TooLarge {
        /// Which.
        id: String,
    },
}

/// Places the zones one after the other, around the hole below 4 GiB.
///
/// # Errors
/// When a zone is empty, has no whole number of pages, or is absurdly large.
pub fn place(zones: &[Zone]) -> Result<Vec<Region>, ImpossibleZone> {
    let mut regions = Vec::new();
    let mut next = 0_u64;
    for (index, zone) in zones.iter().enumerate() {
        let page = zone.page.bytes();
        if zone.size == 0 || !zone.size.is_multiple_of(page) {
            return Err(ImpossibleZone::NotWholePages { id: zone.id.clone(), size: zone.size, page });
        }
        let too_large = || ImpossibleZone::TooLarge { id: zone.id.clone() };
        // 2^46 bytes: what 4-level paging of the least capable host can map twice over.
        if next.checked_add(zone.size).is_none_or(|end| end > 1 << 46) {
            return Err(too_large());
        }
        // Guest addresses are aligned like the pages, so that KVM can map huge ones as such.
        next = next.next_multiple_of(page);
        let below = if next < LOW_RAM_END { zone.size.min(LOW_RAM_END - next) } else { 0 };
        if below > 0 {
            regions.push(Region { zone: index, start: next, size: below, offset: 0 });
            next += below;
        }
        if below < zone.size {
            let start = next.max(HIGH_RAM_START);
            regions.push(Region { zone: index, start, size: zone.size - below, offset: below });
            next = start + zone.size - below;
        }
    }
    Ok(regions)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn zone(size: u64, page: PageSize) -> Zone {
        Zone { id: "z".into(), size, page, shared: false, cell: None, prefault: false, thp: true, reserve: false }
    }

    #[test]
    fn small_guests_lie_low() {
        let regions = place(&[zone(256 << 20, PageSize::Base)]).unwrap();
        assert_eq!(regions, [Region { zone: 0, start: 0, size: 256 << 20, offset: 0 }]);
    }

    #[test]
    fn the_hole_cuts_a_zone() {
        let regions = place(&[zone(2 << 30, PageSize::Huge1G), zone(4 << 30, PageSize::Huge1G)]).unwrap();
        let expected = [
            Region { zone: 0, start: 0, size: 2 << 30, offset: 0 },
            Region { zone: 1, start: 2 << 30, size: 1 << 30, offset: 0 },
            Region { zone: 1, start: 4 << 30, size: 3 << 30, offset: 1 << 30 },
        ];
        assert_eq!(regions, expected);
    }

    #[test]
    fn impossible_zones_are_named() {
        let error = place(&[zone(3 << 20, PageSize::Huge2M)]).unwrap_err();
        assert_eq!(
            error.to_string(),
            "memory zone \"z\": 3145728 bytes are not a whole number of pages of 2097152 bytes"
        );
        assert!(place(&[zone(0, PageSize::Base)]).is_err());
        assert!(place(&[zone(1 << 62, PageSize::Base), zone(1 << 62, PageSize::Base)]).is_err());
    }

    proptest! {
        #[test]
        fn every_byte_has_one_address(sizes in prop::collection::vec((1_u64..4000, 0..3_u8), 1..6)) {
            let pages = [PageSize::Base, PageSize::Huge2M, PageSize::Huge1G];
            let zones: Vec<_> = sizes
                .iter()
                .map(|&(count, page)| {
                    let page = pages[usize::from(page)];
                    zone(count.min(if page == PageSize::Huge1G { 8 } else { 4000 }) * page.bytes(), page)
                })
                .collect();
            let regions = place(&zones).unwrap();
            for pair in regions.windows(2) {
                prop_assert!(pair[0].start + pair[0].size <= pair[1].start);
            }
            for (index, zone) in zones.iter().enumerate() {
                let own: Vec<_> = regions.iter().filter(|region| region.zone == index).collect();
                prop_assert_eq!(own.iter().map(|region| region.size).sum::<u64>(), zone.size);
                prop_assert_eq!(own[0].offset, 0);
            }
            for region in &regions {
                prop_assert!(region.start + region.size <= LOW_RAM_END || region.start >= HIGH_RAM_START);
                prop_assert!(region.start.is_multiple_of(zones[region.zone].page.bytes()));
            }
        }
    }
}
