//! Operations of the kernel's on a file and on guest RAM, several at once.
#![allow(unsafe_code, reason = "the kernel reads and writes guest RAM after the call that asked for it")]

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use rustix::fs::FallocateFlags;

use super::aio::Aio;
use super::disk::{Direction, Disk};
use super::request::Extent;
use super::uring::Uring;
use crate::memory::GuestMemory;
use crate::virtio::chain::Buffers;
use crate::virtio::transfer::Iovecs;

/// Operations that may be under way at once, each with a number below it.
pub const DEPTH: u32 = u128::BITS;

/// Most pieces that one operation has (`UIO_MAXIOV`).
const MOST_PIECES: usize = 1024;

/// What the kernel may be asked by.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Kinds {
    /// io_uring.
    pub io_uring: bool,
    /// Linux AIO, for disks around the page cache: with it, it waits where it should not.
    pub aio: bool,
}

/// What is to be done.
#[derive(Debug, Clone, Copy)]
pub enum Operation<'a> {
    /// Moves pieces of guest RAM.
    Transfer(Direction, u64, &'a [libc::iovec]),
    /// Brings what was written to stable storage.
    Flush,
    /// Makes holes or zeroes.
    Allocate(Extent, FallocateFlags),
}

/// One way to ask the kernel.
pub trait Backend: AsRawFd + Send {
    /// Prepares an operation under a number that no other has. `false` when it can't be done this way.
    ///
    /// # Safety
    /// Until it is done, the pieces of a transfer, and the list of them, stay where they are and mapped.
    unsafe fn push(&mut self, number: usize, operation: Operation<'_>) -> bool;

    /// Tells the kernel of what was prepared; with `wait`, returns when at least one of all is done.
    fn submit(&mut self, wait: bool);

    /// An operation that is done: its number, and what became of it. One that would block was not begun.
    fn next_done(&mut self) -> Option<(usize, io::Result<usize>)>;

    /// Takes note that it was readable.
    fn acknowledge(&mut self) {}
}

/// Operations on one file, and on guest RAM, which it keeps mapped meanwhile.
pub struct Ring {
    // Before what it points to.
    backend: Box<dyn Backend>,
    memory: Arc<GuestMemory>,
    /// The kernel looks at an operation's list until it is done.
    lists: Vec<Iovecs>,
    /// One bit for each operation's number.
    under_way: u128,
}

impl Ring {
    /// Makes one by the best kind that the kernel has and allows, for the calling thread only.
    pub fn new(disk: &Disk, kinds: Kinds, memory: Arc<GuestMemory>) -> Option<Self> {
        let uring = |file: &File| Some(Box::new(Uring::new(file).ok()?) as Box<dyn Backend>);
        let aio = |file: &File| Some(Box::new(Aio::new(file).ok()?) as Box<dyn Backend>);
        let backend = kinds.io_uring.then(|| uring(&disk.file)).flatten();
        let backend = backend.or_else(|| (kinds.aio && disk.is_direct).then(|| aio(&disk.file)).flatten())?;
        let lists = (0..DEPTH).map(|_| Iovecs::default()).collect();
        Some(Self { backend, memory, lists, under_way: 0 })
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
        if self.is_taken(number) {
            return false;
        }
        let pieces = self.lists[number].of(&self.memory, [buffers]);
        let raw = pieces.as_raw();
        if raw.len() > MOST_PIECES || !pieces.are_aligned(alignment) {
            return false;
        }
        // SAFETY: the pieces are guest RAM, which `memory` keeps mapped, and the list isn't touched while its number is
        // under way; nothing of it goes before `drop` has seen the last one done.
        let is_pushed = unsafe { self.backend.push(number, Operation::Transfer(direction, offset, raw)) };
        self.under_way |= u128::from(is_pushed) << number;
        is_pushed
    }

    /// Brings what was written to stable storage. `false` as for [`Ring::transfer`].
    pub fn flush(&mut self, number: usize) -> bool {
        self.push(number, Operation::Flush)
    }

    /// Makes holes or zeroes. `false` as for [`Ring::transfer`].
    pub fn fallocate(&mut self, number: usize, extent: Extent, mode: FallocateFlags) -> bool {
        self.push(number, Operation::Allocate(extent, mode))
    }

    fn push(&mut self, number: usize, operation: Operation<'static>) -> bool {
        // SAFETY: no transfer.
        let is_pushed = !self.is_taken(number) && unsafe { self.backend.push(number, operation) };
        self.under_way |= u128::from(is_pushed) << number;
        is_pushed
    }

    fn is_taken(&self, number: usize) -> bool {
        number >= self.lists.len() || self.under_way >> number & 1 != 0
    }

    /// Tells the kernel of what was added; with `wait`, returns when at least one is done.
    pub fn submit(&mut self, wait: bool) {
        self.backend.submit(wait);
    }

    /// Whether nothing is under way.
    pub fn is_idle(&self) -> bool {
        self.under_way == 0
    }

    /// An operation that is done: its number, and what became of it. One that would block was not begun.
    pub fn next_done(&mut self) -> Option<(usize, io::Result<usize>)> {
        if self.is_idle() {
            return None;
        }
        let (number, result) = self.backend.next_done()?;
        self.under_way &= !(1 << number);
        Some((number, result))
    }

    /// Takes note that it was readable.
    pub fn acknowledge(&mut self) {
        self.backend.acknowledge();
    }
}

impl Drop for Ring {
    fn drop(&mut self) {
        while !self.is_idle() {
            self.submit(true);
            while self.next_done().is_some() {}
        }
    }
}

impl AsRawFd for Ring {
    /// Readable when something is done.
    fn as_raw_fd(&self) -> RawFd {
        self.backend.as_raw_fd()
    }
}
