//! Linux AIO: asynchronous for reads, writes and flushes around the page cache. Containers' default filters, which forbid
//! io_uring, allow it.
#![allow(unsafe_code, reason = "what the kernel is given holds addresses of guest RAM")]

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, RawFd};

use vmm_sys_util::aio::{
    IOCB_CMD_FDSYNC, IOCB_CMD_PREADV, IOCB_CMD_PWRITEV, IOCB_FLAG_RESFD, IoContext, IoControlBlock, IoEvent,
};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::disk::Direction;
use super::ring::{Backend, DEPTH, Operation};

/// A context for operations on one file.
pub struct Aio {
    context: IoContext,
    file: File,
    /// Told of everything that is done.
    done: EventFd,
    prepared: Vec<IoControlBlock>,
    /// How many of what was submitted the kernel has.
    under_way: usize,
    events: Vec<IoEvent>,
    /// What is done and was not asked for yet.
    results: VecDeque<(usize, io::Result<usize>)>,
}

impl Aio {
    /// Makes one.
    ///
    /// # Errors
    /// When the kernel has none, or no more (`fs.aio-max-nr`).
    pub fn new(file: &File) -> io::Result<Self> {
        Ok(Self {
            context: IoContext::new(DEPTH)?,
            file: file.try_clone()?,
            done: EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?,
            prepared: Vec::new(),
            under_way: 0,
            events: vec![IoEvent::default(); DEPTH as usize],
            results: VecDeque::new(),
        })
    }

    /// Takes what is done, waiting for `least`.
    fn collect(&mut self, least: usize) {
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        let timeout = (least == 0).then_some(&mut now);
        let Ok(count) = self.context.get_events(least as i64, &mut self.events, timeout) else { return };
        self.under_way -= count;
        self.results.extend(self.events[..count].iter().map(|event| {
            let result = usize::try_from(event.res).map_err(|_| io::Error::from_raw_os_error(-event.res as i32));
            (event.data as usize, result)
        }));
    }
}

impl Backend for Aio {
    unsafe fn push(&mut self, number: usize, operation: Operation<'_>) -> bool {
        let (command, flags, offset, list) = match &operation {
            Operation::Transfer(Direction::Read, offset, list) => (IOCB_CMD_PREADV, 0, *offset, Some(*list)),
            Operation::Transfer(Direction::Write(flags), offset, list) => {
                (IOCB_CMD_PWRITEV, *flags, *offset, Some(*list))
            }
            Operation::Flush => (IOCB_CMD_FDSYNC, 0, 0, None),
            Operation::Allocate(..) => return false,
        };
        self.prepared.push(IoControlBlock {
            aio_data: number as u64,
            // `aio_rw_flags` since Linux 4.13.
            aio_reserved1: flags as u32,
            aio_lio_opcode: command as u16,
            aio_fildes: self.file.as_raw_fd() as u32,
            // A flush has none of them.
            aio_buf: list.map_or(0, |list| list.as_ptr() as u64),
            aio_nbytes: list.map_or(0, |list| list.len() as u64),
            aio_offset: offset as i64,
            aio_flags: IOCB_FLAG_RESFD,
            aio_resfd: self.done.as_raw_fd() as u32,
            ..IoControlBlock::default()
        });
        true
    }

    fn submit(&mut self, wait: bool) {
        let mut blocks: Vec<&mut IoControlBlock> = self.prepared.iter_mut().collect();
        let mut rest = &mut blocks[..];
        while !rest.is_empty() {
            match self.context.submit(rest) {
                Ok(count) => {
                    self.under_way += count;
                    rest = &mut rest[count..];
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // The first of them can't be begun: too many are, or a flush takes another call with that file.
                Err(_) => {
                    let again = Err(io::ErrorKind::WouldBlock.into());
                    self.results.push_back((rest[0].aio_data as usize, again));
                    rest = &mut rest[1..];
                }
            }
        }
        self.prepared.clear();
        if wait && self.results.is_empty() && self.under_way > 0 {
            self.collect(1);
        }
    }

    fn next_done(&mut self) -> Option<(usize, io::Result<usize>)> {
        if self.results.is_empty() && self.under_way > 0 {
            self.collect(0);
        }
        self.results.pop_front()
    }

    fn acknowledge(&mut self) {
        // Fails only when it is not set.
        let _ = self.done.read();
    }
}

impl AsRawFd for Aio {
    fn as_raw_fd(&self) -> RawFd {
        self.done.as_raw_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::super::disk::PUNCH;
    use super::super::request::Extent;
    use super::*;

    #[test]
    fn the_kernel_takes_every_operation_but_those_it_has_no_call_for() {
        let file = tempfile::NamedTempFile::new_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        std::fs::write(file.path(), [7; 512]).unwrap();
        let mut aio = Aio::new(&File::options().read(true).write(true).open(file.path()).unwrap()).unwrap();
        let mut bytes = [0_u8; 512];
        let list = [libc::iovec { iov_base: bytes.as_mut_ptr().cast(), iov_len: bytes.len() }];
        let durable = Direction::Write(libc::RWF_DSYNC);
        for (operation, moved) in [
            (Operation::Transfer(Direction::Read, 0, &list), 512),
            (Operation::Transfer(durable, 512, &list), 512),
            (Operation::Flush, 0),
        ] {
            // SAFETY: each is waited for.
            assert!(unsafe { aio.push(3, operation) });
            aio.submit(true);
            let (number, result) = aio.next_done().unwrap();
            assert_eq!((number, result.unwrap()), (3, moved));
        }
        assert_eq!(std::fs::read(file.path()).unwrap(), [7; 1024]);
        let hole = Extent { offset: 0, length: 512 };
        // SAFETY: no transfer.
        assert!(!unsafe { aio.push(3, Operation::Allocate(hole, PUNCH)) });
    }
}
