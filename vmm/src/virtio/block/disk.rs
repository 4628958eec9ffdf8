//! The file or block device behind a disk. Always raw: what is in it never decides on how it is read.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use rustix::fs::{
    AtFlags, FallocateFlags, OFlags, SeekFrom, StatxFlags, fallocate, fcntl_getfl, fcntl_setfl, seek, statx,
};

use super::request::{Extent, Request, Rules, SECTOR};
use crate::memory::GuestMemory;
use crate::virtio::chain::{Buffers, Chain};
use crate::virtio::transfer::Iovecs;

/// Space is given up, the size stays.
pub const PUNCH: FallocateFlags = FallocateFlags::PUNCH_HOLE.union(FallocateFlags::KEEP_SIZE);

/// Zeroes, the space stays.
pub const ZERO: FallocateFlags = FallocateFlags::ZERO_RANGE.union(FallocateFlags::KEEP_SIZE);

/// Bytes that are copied at once where buffers don't suit `O_DIRECT`.
const BOUNCE: usize = 64 << 10;

/// Alignment of a block device that does not tell its own.
const PAGE: u32 = 4096;

/// An open disk.
pub struct Disk {
    /// The file.
    pub file: File,
    /// What the guest may ask of it.
    pub rules: Rules,
    /// Around the host's page cache.
    pub is_direct: bool,
    /// Bytes that addresses in memory must be a multiple of; 1 without `O_DIRECT`.
    pub memory_alignment: usize,
    /// Bytes that are best written at once.
    pub physical_block: u32,
}

/// Which way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// Disk to guest.
    Read,
    /// Guest to disk, with these flags of `pwritev2`.
    Write(i32),
}

impl Disk {
    /// Looks at what a file can do.
    ///
    /// # Errors
    /// When it isn't open for what is wanted, or can't be used with `O_DIRECT`.
    pub fn new(file: File, is_writable: bool, is_direct: bool, may_unmap: bool) -> io::Result<Self> {
        let flags = fcntl_getfl(&file)?;
        let mode = flags & OFlags::ACCMODE;
        if mode == OFlags::WRONLY || (is_writable && mode != OFlags::RDWR) {
            return Err(io::Error::new(io::ErrorKind::PermissionDenied, "not open for reading and writing"));
        }
        if is_direct && !flags.contains(OFlags::DIRECT) {
            fcntl_setfl(&file, flags | OFlags::DIRECT)?;
        }
        let is_direct = is_direct || flags.contains(OFlags::DIRECT);
        // Works for block devices too, whose status says nothing of their size.
        let size = seek(&file, SeekFrom::End(0))?;
        let status = statx(&file, "", AtFlags::EMPTY_PATH, StatxFlags::BASIC_STATS | StatxFlags::DIOALIGN)?;
        let told = |alignment: u32| if alignment.is_power_of_two() { alignment } else { PAGE };
        let (memory_alignment, block) = match is_direct {
            true => (told(status.stx_dio_mem_align), told(status.stx_dio_offset_align).max(SECTOR as u32)),
            false => (1, SECTOR as u32),
        };
        let sectors = size / u64::from(block) * (u64::from(block) / SECTOR);
        let can_clear = is_writable && can_punch(&file, size);
        Ok(Self {
            rules: Rules { sectors, block: block.into(), is_writable, can_clear, may_unmap },
            is_direct,
            memory_alignment: memory_alignment as usize,
            physical_block: told(status.stx_blksize).clamp(block, PAGE.max(block)),
            file,
        })
    }

    /// Carries out what isn't reading or writing.
    ///
    /// # Errors
    /// When the kernel says so.
    pub fn manage(&self, request: &Request) -> io::Result<()> {
        let clear = |mode, extent: &Extent| fallocate(&self.file, mode, extent.offset, extent.length);
        match request {
            Request::Discard(extent) | Request::Zero(extent, true) => clear(PUNCH, extent)?,
            Request::Zero(extent, false) => clear(ZERO, extent)?,
            Request::Flush => rustix::fs::fdatasync(&self.file)?,
            Request::Read(_) | Request::Write(_) | Request::Id => {}
        }
        Ok(())
    }

    /// Moves all of `buffers`, and returns when that is done.
    ///
    /// # Errors
    /// When the kernel says so, or the file has become shorter.
    pub fn transfer(
        &self,
        direction: Direction,
        mut offset: u64,
        mut buffers: Buffers<'_>,
        memory: &GuestMemory,
        iovecs: &mut Iovecs,
    ) -> io::Result<()> {
        while !buffers.is_empty() {
            let pieces = iovecs.of(memory, [buffers]);
            let moved = if !pieces.are_aligned(self.memory_alignment) {
                self.bounce(direction, offset, buffers, memory)
            } else if let Direction::Write(flags) = direction {
                pieces.write_at(self.file.as_fd(), offset, flags)
            } else {
                pieces.read_at(self.file.as_fd(), offset)
            };
            match moved {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(moved) => {
                    offset += moved as u64;
                    buffers = buffers.split_at(moved as u64).1;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Moves the start of `buffers` through aligned memory of this process.
    fn bounce(
        &self,
        direction: Direction,
        offset: u64,
        buffers: Buffers<'_>,
        memory: &GuestMemory,
    ) -> io::Result<usize> {
        // Requests are whole blocks, and so is this; so what is left is whole blocks again.
        let count = buffers.len().min(BOUNCE as u64) as usize;
        // Guest memory of its own, so that the same calls serve; it is page-aligned, as `mmap` makes it.
        let bounce = GuestMemory::from_ranges(&[(vm_memory::GuestAddress(0), BOUNCE)]).map_err(io::Error::other)?;
        let room = Chain::whole(0, count as u32);
        let mut iovecs = Iovecs::default();
        let mut bytes = vec![0; count];
        match direction {
            Direction::Read => {
                let moved = iovecs.of(&bounce, [room.writable()]).read_at(self.file.as_fd(), offset)?;
                room.writable().read(&bounce, &mut bytes[..moved]);
                Ok(buffers.write(memory, &bytes[..moved]))
            }
            Direction::Write(flags) => {
                buffers.read(memory, &mut bytes);
                room.writable().write(&bounce, &bytes);
                iovecs.of(&bounce, [room.writable()]).write_at(self.file.as_fd(), offset, flags)
            }
        }
    }
}

/// Whether holes can be made, tried where there is nothing: behind the end. A block device has no such place; a
/// request that it can't carry out is answered so.
fn can_punch(file: &File, size: u64) -> bool {
    let is_device = file.metadata().is_ok_and(|status| !status.is_file());
    let behind = size.next_multiple_of(u64::from(PAGE));
    is_device || fallocate(file, PUNCH, behind, u64::from(PAGE)).is_ok()
}
