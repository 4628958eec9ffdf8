//! Where the serial port's output goes. A vCPU writes it, so nothing here waits for whoever reads it.
//!
//! ```text
//!   guest ─► pending ─► sink          while the sink takes it: a line at a time, by the vCPU
//!            pending ─► sink          once it does not: by the owner, as it takes more
//!          ╳                          beyond 64 KiB: dropped, and counted
//! ```

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use rustix::event::PollFlags;
use rustix::fs::{FileType, Mode, OFlags, fstat, open};

use crate::readiness::is_ready;

/// Most output that waits for the end of its line.
const LINE: usize = 256;

/// Most output that waits for its reader. With what a pipe holds, it is more than the log of a booting kernel.
pub const BACKLOG: usize = 64 << 10;

/// Bytes that a pipe that is ready takes as a whole (`PIPE_BUF`).
const PORTION: usize = 4096;

/// A descriptor that is written to without waiting.
pub struct Sink {
    file: File,
    /// It would wait, unless it is asked before.
    waits: bool,
}

impl Sink {
    /// Writes to what `descriptor` is open for.
    ///
    /// `O_NONBLOCK` belongs to the open file, and others have that open too: a shell, the container's other processes. So a
    /// pipe or terminal is opened anew, for an open file of our own. Where that isn't allowed, it is asked whether it is
    /// ready: that is exact as long as nobody else writes, but for a terminal that is almost full.
    #[must_use]
    pub fn new(descriptor: OwnedFd) -> Self {
        let kind = fstat(&descriptor).map(|status| FileType::from_raw_mode(status.st_mode));
        match kind {
            // It always takes everything. Opened anew, it would be written from its beginning.
            Ok(FileType::RegularFile) => Self { file: descriptor.into(), waits: false },
            Ok(FileType::Fifo | FileType::CharacterDevice) => {
                let flags = OFlags::WRONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
                let own = open(format!("/proc/self/fd/{}", descriptor.as_raw_fd()), flags, Mode::empty());
                Self { waits: own.is_err(), file: own.unwrap_or(descriptor).into() }
            }
            _ => Self { file: descriptor.into(), waits: true },
        }
    }

    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        if self.waits && !is_ready(self, PollFlags::OUT) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        (&self.file).write(&bytes[..bytes.len().min(PORTION)])
    }
}

impl AsFd for Sink {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Output on its way to the sink, if there is one.
#[derive(Default)]
pub struct Output {
    sink: Option<Arc<Sink>>,
    pending: VecDeque<u8>,
    is_blocked: bool,
    shown: u64,
    dropped: u64,
}

impl Output {
    /// To `sink`, or nowhere.
    #[must_use]
    pub fn new(sink: Option<Arc<Sink>>) -> Self {
        Self { sink, ..Self::default() }
    }

    /// Whether what is pending should be seen now: it is a line, or long.
    #[must_use]
    pub fn is_due(&self) -> bool {
        !self.is_blocked && (self.pending.len() >= LINE || self.pending.back() == Some(&b'\n'))
    }

    /// Whether it waits until the sink takes more.
    #[must_use]
    pub fn is_blocked(&self) -> bool {
        self.is_blocked
    }

    /// Bytes that the sink has taken, and that were dropped.
    #[must_use]
    pub fn counts(&self) -> (u64, u64) {
        (self.shown, self.dropped)
    }

    /// Passes on what is pending, as far as the sink takes it. Whether it is blocked.
    pub fn show(&mut self) -> bool {
        self.is_blocked = false;
        while !self.is_blocked && !self.pending.is_empty() {
            match self.sink.as_ref().map(|sink| sink.write(self.pending.as_slices().0)) {
                Some(Ok(count @ 1..)) => {
                    self.shown += count as u64;
                    self.pending.drain(..count);
                }
                Some(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Some(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => self.is_blocked = true,
                // Lost, like on a wire that nobody listens to.
                Some(_) => {
                    self.dropped += self.pending.len() as u64;
                    self.pending.clear();
                }
                None => self.pending.clear(),
            }
        }
        if self.pending.is_empty() {
            self.pending.shrink_to(LINE);
        }
        self.is_blocked
    }
}

impl Write for Output {
    /// Takes all; what there is no room for is dropped.
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let room = BACKLOG.saturating_sub(self.pending.len()).min(bytes.len());
        self.pending.extend(&bytes[..room]);
        self.dropped += (bytes.len() - room) as u64;
        Ok(bytes.len())
    }

    /// Called after each byte, so it does nothing.
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use rustix::fs::fcntl_getfl;
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};

    use super::*;

    /// Numbered lines, as many bytes as that.
    fn lines(bytes: usize) -> Vec<u8> {
        (0_u32..).flat_map(|number| format!("line {number}\n").into_bytes()).take(bytes).collect()
    }

    /// Writes as a guest does, until its last line.
    fn say(output: &mut Output, bytes: &[u8]) {
        for byte in bytes {
            output.write_all(&[*byte]).unwrap();
            if output.is_due() {
                output.show();
            }
        }
    }

    /// Reads what was said, while output goes on; until it is not blocked any more, and `last` was seen.
    fn hear(output: &mut Output, reader: &mut impl Read, last: &[u8]) -> Vec<u8> {
        let mut heard = Vec::new();
        while output.is_blocked() || !heard.ends_with(last) {
            let mut bytes = [0; 3000];
            let count = reader.read(&mut bytes).unwrap();
            heard.extend(&bytes[..count]);
            output.show();
        }
        heard
    }

    #[test]
    fn nobody_waits_for_a_pipe_that_is_not_read() {
        let (mut reader, writer) = io::pipe().unwrap();
        let shared = writer.try_clone().unwrap();
        let before = fcntl_getfl(&shared).unwrap();
        let sink = Sink::new(writer.into());
        assert!(!sink.waits);
        // What is shared with others waits as before.
        assert_eq!(fcntl_getfl(&shared).unwrap(), before);
        let mut output = Output::new(Some(Arc::new(sink)));
        let said = lines(1 << 20);
        say(&mut output, &said);
        assert!(output.is_blocked());
        let (shown, dropped) = output.counts();
        assert_eq!(shown + dropped + BACKLOG as u64, 1 << 20);
        let kept = shown as usize + BACKLOG;
        assert_eq!(hear(&mut output, &mut reader, &said[kept - 10..kept]), said[..kept]);
        // It goes on, and with little memory.
        say(&mut output, b"again\n");
        assert_eq!(hear(&mut output, &mut reader, b"again\n"), b"again\n");
        assert_eq!(output.counts(), (kept as u64 + 6, dropped));
        assert!(output.pending.capacity() <= 2 * LINE);
    }

    #[test]
    fn a_reader_that_is_slow_misses_nothing() {
        let (mut reader, writer) = io::pipe().unwrap();
        let mut output = Output::new(Some(Arc::new(Sink::new(writer.into()))));
        // A pipe holds no less than half of 64 KiB, whatever its pieces are.
        let said = lines(BACKLOG + BACKLOG / 2);
        say(&mut output, &said);
        assert_eq!(hear(&mut output, &mut reader, &said[said.len() - 10..]), said);
        assert_eq!(output.counts(), (said.len() as u64, 0));
    }

    #[test]
    fn nobody_waits_for_a_terminal_or_a_socket() {
        let (socket, _other) = std::os::unix::net::UnixStream::pair().unwrap();
        let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
        grantpt(&terminal).unwrap();
        unlockpt(&terminal).unwrap();
        let path = ptsname(&terminal, Vec::new()).unwrap();
        let ours = open(path.as_c_str(), OFlags::RDWR | OFlags::NOCTTY, Mode::empty()).unwrap();
        for (descriptor, waits) in [(OwnedFd::from(socket), true), (ours, false)] {
            let sink = Sink::new(descriptor);
            assert_eq!(sink.waits, waits);
            let mut output = Output::new(Some(Arc::new(sink)));
            say(&mut output, &lines(4 << 20));
            let (shown, dropped) = output.counts();
            assert!(output.is_blocked() && shown > 0);
            assert_eq!(shown + dropped + BACKLOG as u64, 4 << 20);
        }
    }

    #[test]
    fn what_nobody_can_hear_is_dropped() {
        let (reader, writer) = io::pipe().unwrap();
        let mut output = Output::new(Some(Arc::new(Sink::new(writer.into()))));
        say(&mut output, &lines(1 << 20));
        let (shown, dropped) = output.counts();
        drop(reader);
        assert!(!output.show());
        assert_eq!(output.counts(), (shown, dropped + BACKLOG as u64));
        let mut nowhere = Output::new(None);
        say(&mut nowhere, &lines(1 << 20));
        assert_eq!(nowhere.counts(), (0, 0));
    }

    #[test]
    fn a_file_is_added_to() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"before\n").unwrap();
        let mut output = Output::new(Some(Arc::new(Sink::new(file.try_clone().unwrap().into()))));
        say(&mut output, &lines(1 << 20));
        output.show();
        assert_eq!(output.counts(), (1 << 20, 0));
        assert_eq!(file.metadata().unwrap().len(), (1 << 20) + 7);
    }
}
