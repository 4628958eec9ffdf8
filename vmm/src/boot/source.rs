//! Reads files straight into guest RAM, at given positions: a descriptor's own position may be shared with others. Much is
//! read by several threads side by side, for it takes the host as long to clear the pages of RAM as to fill them.
#![allow(unsafe_code, reason = "pread writes into guest RAM, which is not memory that Rust may hold references to")]

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::num::NonZero;
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::panic::resume_unwind;
use std::thread;

use vm_memory::bitmap::BitmapSlice;
use vm_memory::{Bytes, GuestAddress, ReadVolatile, VolatileMemoryError, VolatileSlice};

use crate::memory::GuestMemory;

/// A file with a position of its own.
#[derive(Debug)]
pub struct Source<'a> {
    file: &'a File,
    position: u64,
    size: u64,
}

/// A file's size in bytes.
///
/// # Errors
/// When the kernel does not tell.
pub fn size(file: &File) -> io::Result<u64> {
    Ok(file.metadata()?.len())
}

/// Reads `size` bytes from `position` on into guest RAM.
///
/// # Errors
/// When the file is shorter, or RAM ends before.
pub fn read_exact(file: &File, position: u64, memory: &GuestMemory, to: GuestAddress, size: u64) -> io::Result<()> {
    let mut source = Source { file, position, size: position.saturating_add(size) };
    let size = usize::try_from(size).map_err(io::Error::other)?;
    memory.read_exact_volatile_from(to, &mut source, size).map_err(io::Error::other)
}

impl<'a> Source<'a> {
    /// From a file's beginning.
    ///
    /// # Errors
    /// When the kernel does not tell the file's size.
    pub fn new(file: &'a File) -> io::Result<Self> {
        Ok(Self { file, position: 0, size: size(file)? })
    }
}

impl Read for Source<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.file.read_at(buffer, self.position)?;
        self.position += count as u64;
        Ok(count)
    }
}

impl Seek for Source<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => self.size.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl ReadVolatile for Source<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        slice: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        let guard = slice.ptr_guard_mut();
        let area = Area { start: guard.as_ptr(), length: slice.len() };
        let count = area.fill(self.file, self.position).map_err(VolatileMemoryError::IOError)?;
        slice.bitmap().mark_dirty(0, count);
        self.position += count as u64;
        Ok(count)
    }
}

/// What each thread fills has about so many bytes. Of less a thread's start takes too much, and the CPUs are wanted: KVM
/// makes its VM meanwhile, for which all of them have to answer.
const PART: usize = 16 << 20;
/// Where parts may begin: two threads in one huge page would both clear it.
const BOUNDARY: usize = 2 << 20;
/// Most threads: what they share is the way to memory.
const THREADS: usize = 8;
/// They call nothing deep.
const STACK: usize = 64 << 10;

/// Guest RAM that stays mapped and writable while this lives.
#[derive(Clone, Copy)]
struct Area {
    start: *mut u8,
    length: usize,
}

// SAFETY: it is a range of addresses; threads fill disjoint parts of it, and by the kernel only.
unsafe impl Send for Area {}
// SAFETY: as above.
unsafe impl Sync for Area {}

impl Area {
    /// Reads a file into it from `position` on; the result is how much was read.
    fn fill(&self, file: &File, position: u64) -> io::Result<usize> {
        let parts = match self.most_parts() {
            1 => self.parts(1),
            // CPUs are counted only now: that looks through files for limits of cgroups.
            most => self.parts(most.min(thread::available_parallelism().map_or(1, NonZero::get))),
        };
        self.fill_parts(file, position, &parts)
    }

    /// How many parts are worth a thread each. Even the shortest is longer than the way to the next boundary.
    fn most_parts(&self) -> usize {
        (self.length.saturating_add(PART / 2) / PART).clamp(1, THREADS)
    }

    fn fill_parts(&self, file: &File, position: u64, parts: &[Range<usize>]) -> io::Result<usize> {
        let fill = |part: Range<usize>| self.fill_part(file, position.saturating_add(part.start as u64), part);
        let counts: Vec<io::Result<usize>> = thread::scope(|scope| {
            let read = |part: &Range<usize>| {
                let thread = thread::Builder::new().name("loader".to_owned()).stack_size(STACK);
                let own = part.clone();
                (part.clone(), thread.spawn_scoped(scope, move || fill(own)))
            };
            let others: Vec<_> = parts[1..].iter().map(read).collect();
            let first = fill(parts[0].clone());
            let others = others.into_iter().map(|(part, thread)| match thread {
                Ok(thread) => thread.join().unwrap_or_else(|panic| resume_unwind(panic)),
                // As slow as without threads, but read.
                Err(_) => fill(part),
            });
            [first].into_iter().chain(others).collect()
        });
        // A part that ends early is the file's end; what later ones say does not matter.
        let mut total = 0;
        for (part, count) in parts.iter().zip(counts) {
            let count = count?;
            total += count;
            if count < part.len() {
                break;
            }
        }
        Ok(total)
    }

    /// So many parts that are about as long as each other, and follow each other without a gap.
    fn parts(&self, count: usize) -> Vec<Range<usize>> {
        let start = self.start.addr();
        let boundary = |index| match index {
            0 => 0,
            last if last == count => self.length,
            index => (start + self.length / count * index).next_multiple_of(BOUNDARY) - start,
        };
        (0..count).map(|index| boundary(index)..boundary(index + 1)).collect()
    }

    /// Reads until the part or the file is at its end.
    fn fill_part(&self, file: &File, position: u64, part: Range<usize>) -> io::Result<usize> {
        debug_assert!(part.end <= self.length);
        let mut filled = 0;
        while filled < part.len() {
            let offset = libc::off_t::try_from(position.saturating_add(filled as u64))
                .map_err(|_| io::Error::from_raw_os_error(libc::EOVERFLOW))?;
            let to = self.start.wrapping_add(part.start + filled).cast();
            // SAFETY: the bytes lie in this area, which stays mapped and writable; only the kernel writes to them here.
            let count = unsafe { libc::pread(file.as_raw_fd(), to, part.len() - filled, offset) };
            match usize::try_from(count) {
                Ok(0) => break,
                Ok(count) => filled += count,
                Err(_) => match io::Error::last_os_error() {
                    again if again.kind() == io::ErrorKind::Interrupted => {}
                    failed => return Err(failed),
                },
            }
        }
        Ok(filled)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    /// A file of `size` bytes, none of its pages like another, read into memory that begins `before` a boundary.
    fn read(size: usize, room: usize, before: usize, is_parted: bool) -> (Vec<u8>, Vec<u8>) {
        let content: Vec<u8> = (0..size).map(|at| (at / 4096 * 31 + at % 251) as u8).collect();
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&[7; 100]).unwrap();
        file.write_all(&content).unwrap();
        let mut memory = vec![0_u8; room + 2 * BOUNDARY];
        let skip = memory.as_ptr().align_offset(BOUNDARY) + BOUNDARY - before;
        let area = Area { start: memory[skip..].as_mut_ptr(), length: room };
        let parts = area.parts(if is_parted { area.most_parts() } else { 1 });
        let count = area.fill_parts(&file, 100, &parts).unwrap();
        assert_eq!(count, size.min(room));
        assert!(memory[skip + count..].iter().all(|byte| *byte == 0));
        (memory[skip..skip + count].to_vec(), content)
    }

    #[test]
    fn what_is_read_side_by_side_is_all_there() {
        let (least, many) = (PART + PART / 2, 3 * PART + 5);
        for (size, room) in [(0, 12), (12, 12), (least, least), (many, many), (PART + 1, 4 * PART), (4 * PART, PART)] {
            for (before, is_parted) in [(0, false), (0, true), (4096, true), (BOUNDARY - 512, true), (BOUNDARY, true)] {
                let (read, content) = read(size, room, before, is_parted);
                assert!(read == content[..read.len()], "{size} bytes, room for {room}, {before} before a boundary");
            }
        }
    }

    #[test]
    fn parts_begin_at_huge_pages() {
        let area = Area { start: std::ptr::without_provenance_mut(0x7000_0010_0000), length: 13 << 20 };
        let mebibytes: Vec<_> = area.parts(3).iter().map(|part| (part.start >> 20, part.end >> 20)).collect();
        assert_eq!(mebibytes, [(0, 5), (5, 9), (9, 13)]);
        assert_eq!(area.parts(1).first(), Some(&(0..area.length)));
    }
}
