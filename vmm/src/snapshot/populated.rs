//! Which parts of RAM were ever touched. Reading the rest would only make the kernel find pages for it.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;

use vm_memory::{GuestMemoryRegion, GuestRegionMmap, MemoryRegionAddress};

use super::manifest::PAGE;

/// Bits of an entry in `/proc/self/pagemap` (Linux, admin-guide/mm/pagemap.rst): present, swapped.
const THERE: u64 = 1 << 63 | 1 << 62;
/// Entries that are read at once.
const ENTRIES: usize = 4096;

/// Ranges of offsets in the region that may have something in them.
pub fn populated(region: &GuestRegionMmap<()>) -> Vec<Range<u64>> {
    let all = 0..region.len();
    match region.file_offset() {
        Some(file) => in_file(file.file(), file.start(), region.len()).unwrap_or_else(|| vec![all]),
        None => in_process(region).unwrap_or_else(|| vec![all]),
    }
}

/// What of a file is no hole. Others may have written there too, so the file is asked and not the page table.
fn in_file(file: &File, start: u64, length: u64) -> Option<Vec<Range<u64>>> {
    use rustix::fs::{SeekFrom, seek};
    let end = start + length;
    let mut parts = Vec::new();
    let mut at = start;
    while at < end {
        let data = match seek(file, SeekFrom::Data(at)) {
            Ok(data) => data.min(end),
            Err(rustix::io::Errno::NXIO) => break,
            Err(_) => return None,
        };
        let hole = seek(file, SeekFrom::Hole(data)).ok()?.min(end);
        if hole <= at {
            break;
        }
        parts.push(data / PAGE * PAGE - start..hole.div_ceil(PAGE) * PAGE - start);
        at = hole;
    }
    Some(parts)
}

/// What of anonymous memory has pages.
fn in_process(region: &GuestRegionMmap<()>) -> Option<Vec<Range<u64>>> {
    let map = File::open("/proc/self/pagemap").ok()?;
    let first = region.get_host_address(MemoryRegionAddress(0)).ok()? as u64 / PAGE;
    let pages = region.len() / PAGE;
    let mut parts: Vec<Range<u64>> = Vec::new();
    let mut entries = [0; 8 * ENTRIES];
    for chunk in (0..pages).step_by(ENTRIES) {
        let count = usize::try_from(pages - chunk).unwrap_or(ENTRIES).min(ENTRIES);
        map.read_exact_at(&mut entries[..8 * count], 8 * (first + chunk)).ok()?;
        for (index, entry) in entries[..8 * count].chunks_exact(8).enumerate() {
            let bits = entry.try_into().map(u64::from_le_bytes).unwrap_or(THERE);
            let at = (chunk + index as u64) * PAGE;
            match parts.last_mut() {
                _ if bits & THERE == 0 => {}
                Some(last) if last.end == at => last.end += PAGE,
                _ => parts.push(at..at + PAGE),
            }
        }
    }
    Some(parts)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory::GuestMemory;
    use vm_memory::{Bytes, FileOffset, GuestAddress, GuestMemoryBackend};

    const LENGTH: u64 = 1024 * PAGE;

    fn touched(memory: &GuestMemory) -> u64 {
        memory.write_obj(1_u8, GuestAddress(3 * PAGE)).unwrap();
        memory.write_obj(1_u8, GuestAddress(700 * PAGE)).unwrap();
        let parts = populated(memory.iter().next().unwrap());
        for page in [3, 700] {
            assert!(parts.iter().any(|part| part.contains(&(page * PAGE))), "{page} not in {parts:?}");
        }
        parts.iter().map(|part| part.end - part.start).sum()
    }

    #[test]
    fn anonymous_memory_is_there_where_it_was_touched() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), LENGTH as usize)]).unwrap();
        // With transparent huge pages, more comes along.
        assert!(touched(&memory) <= LENGTH);
    }

    #[test]
    fn shared_memory_is_there_where_anyone_wrote() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(LENGTH).unwrap();
        let offset = FileOffset::new(file.try_clone().unwrap(), 0);
        let memory = GuestMemory::from_ranges_with_files([(GuestAddress(0), LENGTH as usize, Some(offset))]).unwrap();
        file.write_all_at(&[1], 9 * PAGE).unwrap();
        let bytes = touched(&memory);
        assert!((3 * PAGE..LENGTH).contains(&bytes), "{bytes}");
        assert!(populated(memory.iter().next().unwrap()).iter().any(|part| part.contains(&(9 * PAGE))));
    }
}
