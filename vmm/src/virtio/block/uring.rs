//! The kernel's asynchronous I/O, where it is there and allowed.
#![allow(unsafe_code, reason = "the kernel reads and writes guest RAM after the call that asked for it")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_uring::squeue::Entry;
use io_uring::{IoUring, opcode, types};
use rustix::fs::FallocateFlags;

use super::disk::Direction;
use super::request::Extent;
use crate::memory::GuestMemory;
use crate::virtio::chain::Buffers;
use crate::virtio::transfer::Iovecs;

/// Operations that may be under way at once, each with a number below it.
pub const DEPTH: u32 = u128::BITS;

/// Most pieces that one operation has (`UIO_MAXIOV`).
const MOST_PIECES: usize = 1024;

/// A ring for operations on one file, and on guest RAM, which it keeps mapped meanwhile.
pub struct Uring {
    ring: IoUring,
    memory: Arc<GuestMemory>,
    /// The kernel looks at an operation's list until it is done.
    lists: Vec<Iovecs>,
    /// One bit for each operation's number.
    under_way: u128,
    has_unsubmitted: bool,
}

/// The file, as the ring knows it.
const FILE: types::Fixed = types::Fixed(0);

impl Uring {
    /// Makes one, for the calling thread only.
    ///
    /// # Errors
    /// When the kernel has none, or it isn't allowed: containers' default filters forbid it.
    pub fn new(file: &impl AsRawFd, memory: Arc<GuestMemory>) -> io::Result<Self> {
        // Less work in the kernel, from Linux 6.0 on.
        let new = IoUring::builder().setup_single_issuer().setup_coop_taskrun().build(DEPTH);
        let ring = new.or_else(|_| IoUring::new(DEPTH))?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        let lists = (0..DEPTH).map(|_| Iovecs::default()).collect();
        Ok(Self { ring, memory, lists, under_way: 0, has_unsubmitted: false })
    }

    /// Moves all of `buffers` as operation `number`. `false` when it can't be done this way: too many pieces, not
    /// aligned, or the number is taken.
    pub fn transfer(
        &mut self,
        number: usize,
        direction: Direction,
        offset: u64,
        buffers: Buffers<'_>,
        alignment: usize,
    ) -> bool {
        let is_taken = self.under_way >> number & 1 != 0;
        let Some(list) = self.lists.get_mut(number).filter(|_| !is_taken) else { return false };
        let pieces = list.of(&self.memory, [buffers]);
        let raw = pieces.as_raw();
        if raw.len() > MOST_PIECES || !pieces.are_aligned(alignment) {
            return false;
        }
        let count = raw.len() as u32;
        let entry = match (direction, raw) {
            (Direction::Read, [one]) => {
                opcode::Read::new(FILE, one.iov_base.cast(), one.iov_len as u32).offset(offset).build()
            }
            (Direction::Read, _) => opcode::Readv::new(FILE, raw.as_ptr(), count).offset(offset).build(),
            (Direction::Write(flags), [one]) => {
                let write = opcode::Write::new(FILE, one.iov_base.cast_const().cast(), one.iov_len as u32);
                write.offset(offset).rw_flags(flags).build()
            }
            (Direction::Write(flags), _) => {
                opcode::Writev::new(FILE, raw.as_ptr(), count).offset(offset).rw_flags(flags).build()
            }
        };
        self.push(number, entry)
    }

    /// Brings what was written to stable storage.
    pub fn flush(&mut self, number: usize) -> bool {
        self.push(number, opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build())
    }

    /// Makes holes or zeroes.
    pub fn fallocate(&mut self, number: usize, extent: Extent, mode: FallocateFlags) -> bool {
        let entry = opcode::Fallocate::new(FILE, extent.length).offset(extent.offset).mode(mode.bits() as i32);
        self.push(number, entry.build())
    }

    fn push(&mut self, number: usize, entry: Entry) -> bool {
        // SAFETY: what `transfer` points to is guest RAM, which `memory` keeps mapped, and a list that isn't touched while
        // its number is under way; nothing of it goes before `drop` has seen the last one done. Others point nowhere.
        let is_pushed = unsafe { self.ring.submission().push(&entry.user_data(number as u64)) }.is_ok();
        if is_pushed {
            self.under_way |= 1 << number;
            self.has_unsubmitted = true;
        }
        is_pushed
    }

    /// Tells the kernel of what was added; with `wait`, returns when at least one is done.
    pub fn submit(&mut self, wait: bool) {
        if !std::mem::take(&mut self.has_unsubmitted) && !wait {
            return;
        }
        // Interrupted, or short of memory: again.
        loop {
            match self.ring.submit_and_wait(usize::from(wait)) {
                Err(error) if !matches!(error.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY)) => return,
                // All of it: short of memory, the kernel may take a part.
                Ok(_) if self.ring.submission().is_empty() => return,
                Ok(_) | Err(_) => {}
            }
        }
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.under_way == 0
    }

    /// An operation that is done: its number, and what became of it.
    pub fn next_done(&mut self) -> Option<(usize, io::Result<usize>)> {
        let done = self.ring.completion().next()?;
        let number = done.user_data() as usize;
        self.under_way &= !(1 << number);
        let result = usize::try_from(done.result()).map_err(|_| io::Error::from_raw_os_error(-done.result()));
        Some((number, result))
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        while !self.is_idle() {
            self.submit(true);
            while self.next_done().is_some() {}
        }
    }
}

impl AsRawFd for Uring {
    /// Readable when something is done.
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}
