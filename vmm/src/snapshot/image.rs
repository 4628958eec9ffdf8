//! RAM to a file and back, through a small buffer. Pages that are all zero are neither written nor read.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};

use super::manifest::{AddressRange, Damaged, Image, PAGE};
use super::populated::populated;
use crate::memory::GuestMemory;

/// Bytes that are moved at once; a multiple of [`PAGE`].
const BUFFER: usize = 256 << 10;

/// RAM could not be read back.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum FillError {
    /// The file is not what it was.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// Reading it failed.
    #[error("the memory file can't be read")]
    Read(#[from] io::Error),
}

/// RAM in a file that is there.
pub struct Stored {
    /// The file.
    pub file: File,
    /// What is in it.
    pub image: Image,
}

/// Where the guest has RAM; regions that touch are one range.
#[must_use]
pub fn ranges(memory: &GuestMemory) -> Vec<AddressRange> {
    let mut ranges: Vec<AddressRange> = Vec::new();
    for region in memory.iter() {
        let (start, length) = (region.start_addr().0, region.len());
        match ranges.last_mut() {
            Some(last) if last.start + last.length == start => last.length += length,
            _ => ranges.push(AddressRange { start, length }),
        }
    }
    ranges
}

/// Writes RAM into an empty file. Nothing may change it meanwhile.
///
/// # Errors
/// When writing fails.
pub fn write(memory: &GuestMemory, file: &File) -> io::Result<Image> {
    let mut pages = Pages::default();
    let mut buffer = vec![0; BUFFER];
    let mut base = 0;
    for region in memory.iter() {
        for part in populated(region) {
            let mut at = part.start;
            while at < part.end {
                let length = usize::try_from(part.end - at).unwrap_or(BUFFER).min(BUFFER);
                let piece = &mut buffer[..length];
                memory.read_slice(piece, GuestAddress(region.start_addr().0 + at)).map_err(io::Error::other)?;
                for run in pages.runs(base + at, piece) {
                    file.write_all_at(&piece[run.clone()], base + at + run.start as u64)?;
                }
                at += length as u64;
            }
        }
        base += region.len();
    }
    file.set_len(base)?;
    Ok(Image { ranges: ranges(memory), crc32c: pages.crc32c })
}

/// Reads RAM, which is all zero, from a file that [`write()`] wrote.
///
/// # Errors
/// When it is not the same any more, or RAM is elsewhere.
pub fn read(memory: &GuestMemory, file: &File, image: &Image) -> Result<(), FillError> {
    if ranges(memory) != image.ranges {
        return Err(Damaged::Layout.into());
    }
    let mut pages = Pages::default();
    let mut buffer = vec![0; BUFFER];
    let mut base = 0;
    for range in &image.ranges {
        let mut at = 0;
        while let Some(data) = next_data(file, base + at, base + range.length)? {
            at = data.start - base;
            let length = usize::try_from(data.end - data.start).unwrap_or(BUFFER).min(BUFFER);
            let piece = &mut buffer[..length];
            file.read_exact_at(piece, data.start)?;
            for run in pages.runs(data.start, piece) {
                let address = GuestAddress(range.start + at + run.start as u64);
                memory.write_slice(&piece[run], address).map_err(io::Error::other)?;
            }
            at += length as u64;
        }
        base += range.length;
    }
    if pages.crc32c == image.crc32c { Ok(()) } else { Err(Damaged::Checksum("the memory file".to_owned()).into()) }
}

/// Whole pages of the file, from `from` on and before `end`, that may have something in them.
fn next_data(file: &File, from: u64, end: u64) -> io::Result<Option<std::ops::Range<u64>>> {
    use rustix::fs::{SeekFrom, seek};
    use rustix::io::Errno;
    if from >= end {
        return Ok(None);
    }
    let data = match seek(file, SeekFrom::Data(from)) {
        Ok(data) => data,
        Err(Errno::NXIO) => return Ok(None),
        // A file system that doesn't know of holes.
        Err(Errno::INVAL | Errno::OPNOTSUPP) => return Ok(Some(from..end)),
        Err(error) => return Err(error.into()),
    };
    let hole = seek(file, SeekFrom::Hole(data)).unwrap_or(end);
    let (start, stop) = (data / PAGE * PAGE, hole.div_ceil(PAGE) * PAGE);
    Ok((start < end).then(|| start.max(from)..stop.min(end)))
}

/// The checksum over pages that aren't zero, and which those are.
#[derive(Default)]
struct Pages {
    crc32c: u32,
}

impl Pages {
    /// Runs of pages in `piece`, which is at `offset` in the file, that are not all zero.
    fn runs(&mut self, offset: u64, piece: &[u8]) -> Vec<std::ops::Range<usize>> {
        let mut runs: Vec<std::ops::Range<usize>> = Vec::new();
        for (index, page) in piece.chunks(PAGE as usize).enumerate() {
            if is_zero(page) {
                continue;
            }
            let start = index * PAGE as usize;
            let number = (offset + start as u64) / PAGE;
            self.crc32c = crc32c::crc32c_append(self.crc32c, &number.to_le_bytes());
            self.crc32c = crc32c::crc32c_append(self.crc32c, page);
            match runs.last_mut() {
                Some(last) if last.end == start => last.end += page.len(),
                _ => runs.push(start..start + page.len()),
            }
        }
        runs
    }
}

fn is_zero(page: &[u8]) -> bool {
    // Compared with itself, one byte on: no table of zeros is needed, and the compiler knows how to compare.
    page.first().is_none_or(|first| *first == 0) && page[1..] == page[..page.len().saturating_sub(1)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::fs::MetadataExt;

    const LOW: u64 = 64 * PAGE;
    const HIGH: u64 = 1 << 32;

    fn guest() -> GuestMemory {
        let ranges = [(GuestAddress(0), LOW as usize), (GuestAddress(HIGH), 2 * LOW as usize)];
        GuestMemory::from_ranges(&ranges).unwrap()
    }

    fn content(memory: &GuestMemory) -> Vec<u8> {
        let mut bytes = vec![0; 3 * LOW as usize];
        let (low, high) = bytes.split_at_mut(LOW as usize);
        memory.read_slice(low, GuestAddress(0)).unwrap();
        memory.read_slice(high, GuestAddress(HIGH)).unwrap();
        bytes
    }

    #[test]
    fn only_what_is_not_zero_takes_room() {
        let memory = guest();
        for page in [0, 3, 4] {
            memory.write_obj(0xAB_u8, GuestAddress(page * PAGE + 5)).unwrap();
        }
        memory.write_obj(1_u8, GuestAddress(HIGH + 2 * LOW - 1)).unwrap();
        let file = tempfile::tempfile().unwrap();
        let image = write(&memory, &file).unwrap();
        assert_eq!(image.length(), 3 * LOW);
        let metadata = file.metadata().unwrap();
        assert_eq!((metadata.len(), metadata.blocks() * 512), (3 * LOW, 4 * PAGE));

        let restored = guest();
        read(&restored, &file, &image).unwrap();
        assert_eq!(content(&restored), content(&memory));
    }

    #[test]
    fn damage_and_other_layouts_are_refused() {
        let memory = guest();
        memory.write_obj(1_u8, GuestAddress(PAGE)).unwrap();
        let file = tempfile::tempfile().unwrap();
        let image = write(&memory, &file).unwrap();
        let other = GuestMemory::from_ranges(&[(GuestAddress(0), 3 * LOW as usize)]).unwrap();
        assert!(matches!(read(&other, &file, &image), Err(FillError::Damaged(Damaged::Layout))));
        file.write_all_at(&[2], 5 * PAGE).unwrap();
        assert!(matches!(read(&guest(), &file, &image), Err(FillError::Damaged(Damaged::Checksum(_)))));
        file.set_len(PAGE + 1).unwrap();
        assert!(read(&guest(), &file, &image).is_err());
    }

    #[test]
    fn regions_that_touch_are_one_range() {
        let split = GuestMemory::from_ranges(&[
            (GuestAddress(0), PAGE as usize),
            (GuestAddress(PAGE), PAGE as usize),
            (GuestAddress(HIGH), PAGE as usize),
        ]);
        let expected = [AddressRange { start: 0, length: 2 * PAGE }, AddressRange { start: HIGH, length: PAGE }];
        assert_eq!(ranges(&split.unwrap()), expected);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]
        #[test]
        fn what_was_there_comes_back(writes in prop::collection::vec((0..2 * LOW - 8, any::<u64>()), 0..40)) {
            let memory = guest();
            for (at, value) in writes {
                memory.write_obj(value, GuestAddress(HIGH + at)).unwrap();
            }
            let file = tempfile::tempfile().unwrap();
            let image = write(&memory, &file).unwrap();
            let restored = guest();
            read(&restored, &file, &image).unwrap();
            prop_assert_eq!(content(&restored), content(&memory));
            // A snapshot of what was restored is the same again.
            prop_assert_eq!(write(&restored, &tempfile::tempfile().unwrap()).unwrap(), image);
        }
    }
}
