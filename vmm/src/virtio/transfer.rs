//! System calls that read and write guest RAM directly, without a copy in this process.
#![allow(unsafe_code, reason = "system calls get addresses of guest RAM")]

use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

use super::chain::Buffers;
use crate::memory::GuestMemory;

/// Most pieces that one system call takes (`UIO_MAXIOV`).
const MOST: usize = 1024;

/// A list of pieces of guest RAM, kept to be filled again.
#[derive(Default)]
pub struct Iovecs(Vec<libc::iovec>);

// SAFETY: addresses in it are only used through `Pieces`, which borrow the memory that they were made from.
unsafe impl Send for Iovecs {}

/// Pieces of guest RAM that is mapped for `'a`.
#[derive(Clone, Copy)]
pub struct Pieces<'a> {
    iovecs: &'a [libc::iovec],
    memory: PhantomData<&'a GuestMemory>,
}

impl Iovecs {
    /// The pieces that `buffers` are made of, in their order.
    pub fn of<'a>(&'a mut self, memory: &'a GuestMemory, buffers: impl IntoIterator<Item = Buffers<'a>>) -> Pieces<'a> {
        self.0.clear();
        for buffer in buffers {
            buffer.add_iovecs(memory, &mut self.0);
        }
        Pieces { iovecs: &self.0, memory: PhantomData }
    }
}

impl<'a> Pieces<'a> {
    /// Where they are. Valid while the memory that they were made from is mapped, and the list isn't filled again.
    #[must_use]
    pub fn as_raw(&self) -> &'a [libc::iovec] {
        self.iovecs
    }

    /// Whether each address and length is a multiple of `alignment` (a power of two).
    #[must_use]
    pub fn are_aligned(&self, alignment: usize) -> bool {
        self.iovecs.iter().all(|piece| (piece.iov_base as usize | piece.iov_len) & (alignment - 1) == 0)
    }

    /// As many as a system call takes.
    fn arguments(&self) -> (*const libc::iovec, libc::c_int) {
        (self.iovecs.as_ptr(), self.iovecs.len().min(MOST) as libc::c_int)
    }

    /// Reads what there is, up to their size.
    ///
    /// # Errors
    /// When the kernel says so.
    pub fn read_from(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let (iovecs, count) = self.arguments();
        // SAFETY: the pieces are guest RAM that stays mapped; nobody holds references into it, the guest may write to it
        // at any time anyway.
        result(unsafe { libc::readv(fd.as_raw_fd(), iovecs, count) })
    }

    /// Writes them.
    ///
    /// # Errors
    /// When the kernel says so.
    pub fn write_to(&self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        let (iovecs, count) = self.arguments();
        // SAFETY: the pieces are guest RAM that stays mapped.
        result(unsafe { libc::writev(fd.as_raw_fd(), iovecs, count) })
    }

    /// Reads from a place in a file.
    ///
    /// # Errors
    /// When the kernel says so.
    pub fn read_at(&self, fd: BorrowedFd<'_>, offset: u64) -> io::Result<usize> {
        let (iovecs, count) = self.arguments();
        // SAFETY: as in `read_from`.
        result(unsafe { libc::preadv(fd.as_raw_fd(), iovecs, count, offset as libc::off_t) })
    }

    /// Writes to a place in a file; `flags` are those of `pwritev2`.
    ///
    /// # Errors
    /// When the kernel says so.
    pub fn write_at(&self, fd: BorrowedFd<'_>, offset: u64, flags: libc::c_int) -> io::Result<usize> {
        let (iovecs, count) = self.arguments();
        // SAFETY: as in `write_to`.
        result(unsafe { libc::pwritev2(fd.as_raw_fd(), iovecs, count, offset as libc::off_t, flags) })
    }
}

fn result(count: libc::ssize_t) -> io::Result<usize> {
    usize::try_from(count).map_err(|_| io::Error::last_os_error())
}
