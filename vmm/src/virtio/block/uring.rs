//! io_uring: any operation without waiting, where the kernel has it and it is allowed.
#![allow(unsafe_code, reason = "entries of the ring hold addresses of guest RAM")]

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use io_uring::{IoUring, opcode, types};

use super::disk::Direction;
use super::ring::{Backend, DEPTH, Operation};

/// A ring for operations on one file.
pub struct Uring {
    ring: IoUring,
    has_unsubmitted: bool,
}

/// The file, as the ring knows it.
const FILE: types::Fixed = types::Fixed(0);

impl Uring {
    /// Makes one, for the calling thread only.
    ///
    /// # Errors
    /// When the kernel has none, or it isn't allowed: containers' default filters forbid it.
    pub fn new(file: &impl AsRawFd) -> io::Result<Self> {
        // Less work in the kernel, from Linux 6.0 on.
        let new = IoUring::builder().setup_single_issuer().setup_coop_taskrun().build(DEPTH);
        let ring = new.or_else(|_| IoUring::new(DEPTH))?;
        ring.submitter().register_files(&[file.as_raw_fd()])?;
        Ok(Self { ring, has_unsubmitted: false })
    }
}

impl Backend for Uring {
    unsafe fn push(&mut self, number: usize, operation: Operation<'_>) -> bool {
        let entry = match operation {
            Operation::Transfer(Direction::Read, offset, [one]) => {
                opcode::Read::new(FILE, one.iov_base.cast(), one.iov_len as u32).offset(offset).build()
            }
            Operation::Transfer(Direction::Read, offset, list) => {
                opcode::Readv::new(FILE, list.as_ptr(), list.len() as u32).offset(offset).build()
            }
            Operation::Transfer(Direction::Write(flags), offset, [one]) => {
                let write = opcode::Write::new(FILE, one.iov_base.cast_const().cast(), one.iov_len as u32);
                write.offset(offset).rw_flags(flags).build()
            }
            Operation::Transfer(Direction::Write(flags), offset, list) => {
                let write = opcode::Writev::new(FILE, list.as_ptr(), list.len() as u32);
                write.offset(offset).rw_flags(flags).build()
            }
            Operation::Flush => opcode::Fsync::new(FILE).flags(types::FsyncFlags::DATASYNC).build(),
            Operation::Allocate(extent, mode) => {
                let allocate = opcode::Fallocate::new(FILE, extent.length);
                allocate.offset(extent.offset).mode(mode.bits() as i32).build()
            }
        };
        // SAFETY: what it points to stays, as the caller promises.
        let is_pushed = unsafe { self.ring.submission().push(&entry.user_data(number as u64)) }.is_ok();
        self.has_unsubmitted |= is_pushed;
        is_pushed
    }

    fn submit(&mut self, wait: bool) {
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

    fn next_done(&mut self) -> Option<(usize, io::Result<usize>)> {
        let done = self.ring.completion().next()?;
        let result = usize::try_from(done.result()).map_err(|_| io::Error::from_raw_os_error(-done.result()));
        Some((done.user_data() as usize, result))
    }
}

impl AsRawFd for Uring {
    fn as_raw_fd(&self) -> RawFd {
        self.ring.as_raw_fd()
    }
}
