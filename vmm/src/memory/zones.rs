//! Takes guest RAM from the host.

use std::fs;
use std::io;
use std::num::NonZero;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::MemfdFlags;
use vm_memory::mmap::MmapRegionError;
use vm_memory::{FileOffset, GuestAddress, GuestRegionMmap, MmapRegion};

use super::bind::{self, Placement};
use super::plan::{ImpossibleZone, PageSize, Region, Zone};
use super::{GuestMemory, plan};

/// Why there is no such memory.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MemoryError {
    /// The zones make no sense.
    #[error(transparent)]
    Impossible(#[from] ImpossibleZone),
    /// The host has too few huge pages where they must come from.
    #[error(
        "memory zone {id:?} needs {needed} huge pages of {page} bytes on {}, which has {free} free",
        place(*cell)
    )]
    TooFewHugePages {
        /// The zone.
        id: String,
        /// The host cell; `None` for any.
        cell: Option<u32>,
        /// Size of a page in bytes.
        page: u64,
        /// How many it needs.
        needed: u64,
        /// How many there are.
        free: u64,
    },
    /// A cell has too little memory.
    #[error("memory zone {id:?} needs {needed} bytes on host cell {cell}, which has {available} available")]
    TooLittle {
        /// The zone.
        id: String,
        /// The host cell.
        cell: u32,
        /// Bytes that zones on it need up to this one.
        needed: u64,
        /// Bytes that there are, what the host could let go of among them.
        available: u64,
    },
    /// The host has no such cell.
    #[error("memory zone {id:?}: the host has no cell {cell}")]
    NoSuchCell {
        /// The zone.
        id: String,
        /// The cell asked for.
        cell: u32,
    },
    /// Pages could not be had in time, although they seemed to be there.
    #[error("memory zone {id:?}: pages of {} could not be taken", place(*cell))]
    Prefault {
        /// The zone.
        id: String,
        /// The host cell; `None` for any.
        cell: Option<u32>,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused something else.
    #[error("memory zone {id:?}: {what}")]
    Host {
        /// The zone.
        id: String,
        /// What was tried.
        what: &'static str,
        /// What the kernel said.
        source: io::Error,
    },
    /// Regions that overlap: a mistake in placing them.
    #[error("memory regions can't be put together")]
    Regions(#[source] vm_memory::GuestRegionCollectionError),
}

fn place(cell: Option<u32>) -> String {
    cell.map_or_else(|| "the host".to_owned(), |cell| format!("host cell {cell}"))
}

/// Allocates all zones: refuses what the host can't give before it takes anything, then maps, binds and prefaults.
///
/// # Errors
/// The first zone that can't be had, and why.
pub fn allocate(zones: &[Zone]) -> Result<GuestMemory, MemoryError> {
    let regions = plan::place(zones)?;
    check_cells(zones)?;
    check_huge_pages(zones, free_huge_pages)?;
    check_memory(zones, available)?;
    let mut files: Vec<Option<Arc<fs::File>>> = Vec::with_capacity(zones.len());
    for zone in zones {
        files.push(file(zone)?);
    }
    let mut mapped = Vec::with_capacity(regions.len());
    for region in &regions {
        let zone = &zones[region.zone];
        let mapping = map(zone, region, files[region.zone].as_ref())?;
        settle(zone, &mapping)?;
        let placed = GuestRegionMmap::new(mapping, GuestAddress(region.start));
        mapped.extend(placed.map(Arc::new));
    }
    GuestMemory::from_arc_regions(mapped).map_err(MemoryError::Regions)
}

/// Sums up what the zones need of each cell and kind of page, and compares it with `free`.
fn check_huge_pages(zones: &[Zone], free: impl Fn(Option<u32>, PageSize) -> u64) -> Result<(), MemoryError> {
    for (index, zone) in zones.iter().enumerate() {
        if zone.page == PageSize::Base {
            continue;
        }
        let same = zones[..=index].iter().filter(|other| other.page == zone.page && other.cell == zone.cell);
        let needed = same.map(|zone| zone.size / zone.page.bytes()).sum();
        let free = free(zone.cell, zone.page);
        if free < needed {
            let (id, cell, page) = (zone.id.clone(), zone.cell, zone.page.bytes());
            return Err(MemoryError::TooFewHugePages { id, cell, page, needed, free });
        }
    }
    Ok(())
}

/// The same for zones of small pages on a cell: bound to it, they would bring out the kernel's OOM killer.
fn check_memory(zones: &[Zone], available: impl Fn(u32) -> Option<u64>) -> Result<(), MemoryError> {
    for (index, zone) in zones.iter().enumerate() {
        let Some(cell) = zone.cell.filter(|_| zone.page == PageSize::Base) else { continue };
        let same = zones[..=index].iter().filter(|other| other.page == zone.page && other.cell == zone.cell);
        let needed = same.map(|zone| zone.size).sum();
        // Where the kernel does not tell, taking the pages does.
        if let Some(available) = available(cell).filter(|available| *available < needed) {
            return Err(MemoryError::TooLittle { id: zone.id.clone(), cell, needed, available });
        }
    }
    Ok(())
}

/// The kernel has at most so many cells (MAX_NUMNODES with the largest NODES_SHIFT, 10).
const MAX_CELLS: u32 = 1024;

fn check_cells(zones: &[Zone]) -> Result<(), MemoryError> {
    for zone in zones {
        if let Some(cell) = zone.cell
            && (cell >= MAX_CELLS || !PathBuf::from(format!("/sys/devices/system/node/node{cell}")).is_dir())
        {
            return Err(MemoryError::NoSuchCell { id: zone.id.clone(), cell });
        }
    }
    Ok(())
}

/// How many pages the kernel says it has left in its pool; none where it has no such pool.
fn free_huge_pages(cell: Option<u32>, page: PageSize) -> u64 {
    let base = match cell {
        Some(cell) => PathBuf::from(format!("/sys/devices/system/node/node{cell}/hugepages")),
        None => PathBuf::from("/sys/kernel/mm/hugepages"),
    };
    let file = base.join(format!("hugepages-{}kB/free_hugepages", page.bytes() >> 10));
    fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

/// Bytes of a cell's that are free, or hold what can be read again.
fn available(cell: u32) -> Option<u64> {
    available_of(&fs::read_to_string(format!("/sys/devices/system/node/node{cell}/meminfo")).ok()?)
}

/// Of lines like `Node 0 MemFree:  123 kB`.
fn available_of(meminfo: &str) -> Option<u64> {
    let kibibytes = |name: &str| {
        let line = meminfo.lines().find(|line| line.split_whitespace().nth(2) == Some(name))?;
        line.split_whitespace().nth(3)?.parse::<u64>().ok()
    };
    let parts = ["MemFree:", "Active(file):", "Inactive(file):", "SReclaimable:"].map(kibibytes);
    parts.into_iter().try_fold(0_u64, |sum, part| Some(sum.saturating_add(part?.saturating_mul(1 << 10))))
}

/// The memory file of a zone that other processes may map, or that huge pages back.
fn file(zone: &Zone) -> Result<Option<Arc<fs::File>>, MemoryError> {
    let kind = match zone.page {
        PageSize::Base if !zone.shared => return Ok(None),
        PageSize::Base => MemfdFlags::empty(),
        PageSize::Huge2M => MemfdFlags::HUGETLB | MemfdFlags::HUGE_2MB,
        PageSize::Huge1G => MemfdFlags::HUGETLB | MemfdFlags::HUGE_1GB,
    };
    let error = |source: rustix::io::Errno| MemoryError::Host {
        id: zone.id.clone(),
        what: "its memory file can't be made",
        source: source.into(),
    };
    let file = rustix::fs::memfd_create(c"guest-ram", kind | MemfdFlags::CLOEXEC).map_err(error)?;
    rustix::fs::ftruncate(&file, zone.size).map_err(error)?;
    Ok(Some(Arc::new(file.into())))
}

fn map(zone: &Zone, region: &Region, file: Option<&Arc<fs::File>>) -> Result<MmapRegion, MemoryError> {
    let size = usize::try_from(region.size).unwrap_or(usize::MAX);
    let (file, flags) = match file {
        Some(file) => (Some(FileOffset::from_arc(Arc::clone(file), region.offset)), libc::MAP_SHARED),
        None if zone.reserve => (None, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS),
        None => (None, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE),
    };
    MmapRegion::build(file, size, libc::PROT_READ | libc::PROT_WRITE, flags).map_err(|error| match error {
        // hugetlbfs reserves its pages here; another process may have been faster since they were counted.
        MmapRegionError::Mmap(source) => MemoryError::Prefault { id: zone.id.clone(), cell: zone.cell, source },
        other => MemoryError::Host {
            id: zone.id.clone(),
            what: "it can't be mapped",
            source: io::Error::new(io::ErrorKind::InvalidInput, other),
        },
    })
}

/// Binds a mapping to its cell and takes its pages, as far as asked for.
fn settle(zone: &Zone, mapping: &MmapRegion) -> Result<(), MemoryError> {
    let area = bind::Area::of(mapping);
    let failed = |what| move |source| MemoryError::Host { id: zone.id.clone(), what, source };
    if zone.page == PageSize::Base && !zone.shared {
        // Advice only: where the host has no transparent huge pages, small ones serve.
        area.advise_huge_pages(zone.thp);
    }
    let placement = match zone.cell {
        Some(cell) => area.bind(cell).map_err(failed("it can't be bound to its cell"))?,
        None => Placement::Anywhere,
    };
    // Without mbind, pages lie on the cell only because CPUs of that cell touch them first, so they all must be now.
    if zone.prefault || zone.cell.is_some() {
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get);
        area.prefault(zone.page.bytes(), &placement, threads).map_err(|source| MemoryError::Prefault {
            id: zone.id.clone(),
            cell: zone.cell,
            source,
        })?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion};

    fn zone(id: &str, pages: u64, page: PageSize, cell: Option<u32>) -> Zone {
        let size = pages * page.bytes();
        Zone { id: id.into(), size, page, shared: false, cell, prefault: false, thp: true, reserve: false }
    }

    #[test]
    fn memory_is_there_and_zeroed() {
        for (shared, prefault) in [(false, false), (true, false), (false, true), (true, true)] {
            let zone = Zone { shared, prefault, ..zone("a", 64, PageSize::Base, None) };
            let memory = allocate(&[zone]).unwrap();
            assert_eq!(memory.read_obj::<u64>(GuestAddress(0x1000)).unwrap(), 0);
            memory.write_obj(7_u64, GuestAddress(0x1000)).unwrap();
            let region = memory.find_region(GuestAddress(0)).unwrap();
            assert_eq!(region.file_offset().is_some(), shared);
        }
    }

    #[test]
    fn zones_need_their_pages_together() {
        let zones = [
            zone("a", 3, PageSize::Huge2M, Some(0)),
            zone("b", 1, PageSize::Huge2M, Some(1)),
            zone("c", 2, PageSize::Huge2M, Some(0)),
        ];
        let error = check_huge_pages(&zones, |_, _| 4).unwrap_err();
        assert_eq!(
            error.to_string(),
            "memory zone \"c\" needs 5 huge pages of 2097152 bytes on host cell 0, which has 4 free"
        );
        check_huge_pages(&zones, |_, _| 5).unwrap();
    }

    #[test]
    fn missing_cells_are_named() {
        let error = allocate(&[zone("a", 1, PageSize::Huge2M, Some(999))]).unwrap_err();
        assert_eq!(error.to_string(), "memory zone \"a\": the host has no cell 999");
        let error = allocate(&[zone("a", 1, PageSize::Base, Some(999))]).unwrap_err();
        assert!(matches!(error, MemoryError::NoSuchCell { cell: 999, .. }), "{error}");
    }

    #[test]
    fn a_cell_with_too_little_memory_is_named() {
        let zones = [
            zone("a", 2, PageSize::Base, Some(1)),
            zone("b", 9, PageSize::Base, None),
            zone("c", 9, PageSize::Huge2M, Some(1)),
            zone("d", 3, PageSize::Base, Some(1)),
        ];
        check_memory(&zones, |_| Some(5 * 4096)).unwrap();
        check_memory(&zones, |_| None).unwrap();
        let error = check_memory(&zones, |_| Some(5 * 4096 - 1)).unwrap_err();
        let expected = "memory zone \"d\" needs 20480 bytes on host cell 1, which has 20479 available";
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn what_a_cell_has_available() {
        let meminfo = "Node 1 MemTotal:       99 kB\nNode 1 MemFree:        1 kB\nNode 1 Active(file):   20 kB\n\
                       Node 1 Inactive(file): 300 kB\nNode 1 SReclaimable:   4000 kB\n";
        assert_eq!(available_of(meminfo), Some(4321 << 10));
        assert_eq!(available_of(&meminfo.replace("MemFree", "Free")), None);
        assert!(available(0).is_some_and(|bytes| bytes > 0));
    }
}
