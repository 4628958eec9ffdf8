//! A chain of buffers that the driver made available, copied out of the ring once.
//!
//! Addresses stay guest addresses: each was checked to lie in RAM when the chain was taken, and is translated when it is
//! used. What is in the buffers is the guest's, and may change while it is read.

use virtio_queue::desc::split::Descriptor;
use vm_memory::{Bytes, GuestAddress, GuestMemory as _, Permissions};

use crate::memory::GuestMemory;

/// One buffer in guest RAM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Buffer {
    address: GuestAddress,
    length: u32,
}

/// Buffers that belong together: a request, or room for an answer, or both.
#[derive(Debug, Default)]
pub struct Chain {
    /// Index of its first descriptor, by which it is given back.
    head: u16,
    /// What the device reads, then what it writes.
    buffers: Vec<Buffer>,
    /// How many of `buffers` the device reads.
    readable: usize,
}

/// The driver has broken the rules of the ring; nothing in it can be trusted any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Malformed {
    /// The available ring is ahead by more than its size, or unreadable.
    #[error("the available ring's index makes no sense")]
    Ring,
    /// A head beyond the descriptor table.
    #[error("descriptor {0} is not in the table")]
    Head(u16),
    /// A chain that is already with the device.
    #[error("descriptor {0} is in flight already")]
    InFlight(u16),
    /// It leads nowhere, or to itself, is too long, or has a bad indirect table.
    #[error("the chain does not end")]
    Endless,
    /// A buffer that isn't RAM.
    #[error("a buffer at {0:#x} lies outside of RAM")]
    Outside(u64),
    /// A buffer to read behind one to write.
    #[error("a readable buffer follows a writable one")]
    Order,
    /// What the device needs is not there, for example a byte for the status.
    #[error("a chain without the buffers that the request needs")]
    Shape,
    /// Not the driver's fault: who worked on the queue is gone.
    #[error("the process that served it is gone")]
    Abandoned,
}

impl Chain {
    /// Copies the descriptors of the chain that starts at `head`, of which there may be `limit`.
    pub(super) fn read(
        &mut self,
        head: u16,
        limit: u16,
        descriptors: impl Iterator<Item = Descriptor>,
        memory: &GuestMemory,
    ) -> Result<(), Malformed> {
        self.head = head;
        self.buffers.clear();
        self.readable = 0;
        let mut has_next = true;
        for descriptor in descriptors.take(usize::from(limit)) {
            has_next = descriptor.has_next();
            let buffer = Buffer { address: descriptor.addr(), length: descriptor.len() };
            if !memory.check_range(buffer.address, buffer.length as usize, Permissions::ReadWrite) {
                return Err(Malformed::Outside(buffer.address.0));
            }
            if !descriptor.is_write_only() {
                if self.readable != self.buffers.len() {
                    return Err(Malformed::Order);
                }
                self.readable += 1;
            }
            self.buffers.push(buffer);
        }
        // The iterator stops silently at whatever it can't follow; then what came last promised more.
        if has_next { Err(Malformed::Endless) } else { Ok(()) }
    }

    /// One buffer that the device may write, which comes from no ring.
    pub(super) fn whole(address: u64, length: u32) -> Self {
        Self { head: 0, buffers: vec![Buffer { address: GuestAddress(address), length }], readable: 0 }
    }

    /// Index of its first descriptor.
    #[must_use]
    pub fn head(&self) -> u16 {
        self.head
    }

    /// What the driver has written for the device.
    #[must_use]
    pub fn readable(&self) -> Buffers<'_> {
        Buffers::new(&self.buffers[..self.readable])
    }

    /// Where the device may write.
    #[must_use]
    pub fn writable(&self) -> Buffers<'_> {
        Buffers::new(&self.buffers[self.readable..])
    }
}

/// Bytes in guest RAM, in several pieces.
#[derive(Debug, Clone, Copy)]
pub struct Buffers<'a> {
    buffers: &'a [Buffer],
    /// Bytes of the first buffer that are not part of it.
    skip: u32,
    length: u64,
}

impl<'a> Buffers<'a> {
    fn new(buffers: &'a [Buffer]) -> Self {
        Self { buffers, skip: 0, length: buffers.iter().map(|buffer| u64::from(buffer.length)).sum() }
    }

    /// Bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.length
    }

    /// Whether there are none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.length == 0
    }

    /// The first `count` bytes, and the others; all and nothing when there are not that many.
    #[must_use]
    pub fn split_at(self, count: u64) -> (Self, Self) {
        let first = Self { length: self.length.min(count), ..self };
        let mut rest = Self { length: self.length - first.length, ..self };
        let mut left = first.length;
        while let Some(buffer) = rest.buffers.first() {
            let here = u64::from(buffer.length - rest.skip);
            if left < here {
                // `left` is less than a buffer's length, so it fits.
                rest.skip += left as u32;
                break;
            }
            left -= here;
            rest.skip = 0;
            rest.buffers = &rest.buffers[1..];
        }
        (first, rest)
    }

    /// Its pieces: address and length, none of them empty.
    pub fn pieces(&self) -> impl Iterator<Item = (GuestAddress, u32)> + use<'a> {
        let mut left = self.length;
        let mut skip = self.skip;
        self.buffers
            .iter()
            .map_while(move |buffer| {
                if left == 0 {
                    return None;
                }
                let length = u64::from(buffer.length - skip).min(left);
                let address = GuestAddress(buffer.address.0 + u64::from(skip));
                skip = 0;
                left -= length;
                Some((address, length as u32))
            })
            .filter(|(_, length)| *length > 0)
    }

    /// Copies from the start of it into `data`; returns how many bytes there were.
    pub fn read(&self, memory: &GuestMemory, data: &mut [u8]) -> usize {
        self.copy(data.len(), |address, range| memory.read_slice(&mut data[range], address).is_ok())
    }

    /// Copies `data` to the start of it; returns for how many bytes there was room.
    pub fn write(&self, memory: &GuestMemory, data: &[u8]) -> usize {
        self.copy(data.len(), |address, range| memory.write_slice(&data[range], address).is_ok())
    }

    fn copy(&self, length: usize, mut piece: impl FnMut(GuestAddress, std::ops::Range<usize>) -> bool) -> usize {
        let mut done = 0;
        for (address, count) in self.split_at(length as u64).0.pieces() {
            let end = done + count as usize;
            if !piece(address, done..end) {
                break;
            }
            done = end;
        }
        done
    }

    /// Adds where it is in this process, for system calls that read and write guest RAM directly. What is added is valid
    /// while `memory` stays mapped.
    pub(super) fn add_iovecs(&self, memory: &GuestMemory, iovecs: &mut Vec<libc::iovec>) {
        for (address, length) in self.pieces() {
            let Ok(slices) = memory.get_slices(address, length as usize, Permissions::ReadWrite) else { continue };
            iovecs.extend(
                slices
                    .flatten()
                    .map(|slice| libc::iovec { iov_base: slice.ptr_guard_mut().as_ptr().cast(), iov_len: slice.len() }),
            );
        }
    }
}
