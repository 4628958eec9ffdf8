//! Reads files straight into guest RAM, at given positions: a descriptor's own position may be shared with others.
#![allow(unsafe_code, reason = "pread writes into guest RAM, which is not memory that Rust may hold references to")]

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;

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
        let position = i64::try_from(self.position).map_err(|_| error(libc::EOVERFLOW))?;
        loop {
            // SAFETY: the guard keeps `slice.len()` bytes mapped and writable; only the kernel writes to them here.
            let count = unsafe { libc::pread(self.file.as_raw_fd(), guard.as_ptr().cast(), slice.len(), position) };
            if let Ok(count) = usize::try_from(count) {
                slice.bitmap().mark_dirty(0, count);
                self.position += count as u64;
                return Ok(count);
            }
            let failed = io::Error::last_os_error();
            if failed.kind() != io::ErrorKind::Interrupted {
                return Err(VolatileMemoryError::IOError(failed));
            }
        }
    }
}

fn error(code: i32) -> VolatileMemoryError {
    VolatileMemoryError::IOError(io::Error::from_raw_os_error(code))
}
