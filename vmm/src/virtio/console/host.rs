//! The host's end of a port.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::net::{UnixListener, UnixStream};

use rustix::event::PollFlags;
use vmm_sys_util::epoll::EventSet;

use crate::readiness::is_ready;
use crate::virtio::chain::Buffers;
use crate::virtio::transfer::Pieces;
use crate::virtio::worker::Poll;

/// Bytes that a pipe or terminal that is ready takes without waiting (`PIPE_BUF`).
const READY: u64 = 4096;

/// Bytes moved at once.
const MOST: u64 = 64 << 10;

/// Events of a stream; only of changes, so that what nobody reads isn't told again and again.
const CHANGES: EventSet =
    EventSet::IN.union(EventSet::OUT).union(EventSet::READ_HANG_UP).union(EventSet::EDGE_TRIGGERED);

/// Who a port is connected to.
pub enum Host {
    /// Whoever connects to a socket, one at a time; the next one waits.
    Socket {
        /// The socket.
        listener: UnixListener,
        /// Who is there.
        client: Option<UnixStream>,
        /// Somebody may come.
        is_listening: bool,
    },
    /// Open files, for example a terminal's.
    Stream {
        /// Where the guest's input comes from.
        input: Option<File>,
        /// Where its output goes.
        output: File,
    },
}

impl Host {
    /// A listening socket.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn socket(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self::Socket { listener, client: None, is_listening: false })
    }

    /// Whether somebody is there.
    pub fn is_open(&self) -> bool {
        match self {
            Self::Socket { client, .. } => client.is_some(),
            Self::Stream { .. } => true,
        }
    }

    /// Waits for whatever is there.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn watch(&mut self, events: &Poll, token: u64) -> io::Result<()> {
        let add = |file: &dyn AsRawFd, what| match events.add(&file.as_raw_fd(), what, token) {
            // A regular file is always ready, and can't be waited for.
            Err(error) if error.raw_os_error() == Some(libc::EPERM) => Ok(()),
            other => other,
        };
        match self {
            Self::Socket { client, is_listening, .. } => {
                *is_listening = false;
                client.as_ref().map_or(Ok(()), |client| add(client, CHANGES))
            }
            Self::Stream { input, output } => {
                if let Some(input) = input {
                    add(input, EventSet::IN | EventSet::EDGE_TRIGGERED)?;
                }
                match add(output, EventSet::OUT | EventSet::EDGE_TRIGGERED) {
                    // One terminal for both: what it takes is seen when it gives something.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                    other => other,
                }
            }
        }
    }

    /// Waits for somebody to come, if nobody is there.
    pub fn listen(&mut self, events: &Poll, token: u64) {
        if let Self::Socket { listener, client: None, is_listening: is_listening @ false } = self {
            // If it fails, it is tried again when something happens. Whoever can't be let in, for want of descriptors, is
            // not told of again and again.
            *is_listening = events.add(listener, EventSet::IN | EventSet::EDGE_TRIGGERED, token).is_ok();
        }
    }

    /// Lets in who has come; whether somebody has.
    pub fn accept(&mut self, events: &Poll, token: u64) -> bool {
        let Self::Socket { listener, client: client @ None, is_listening: is_listening @ true } = self else {
            return false;
        };
        let Ok((stream, _)) = listener.accept() else { return false };
        let is_in = stream.set_nonblocking(true).is_ok() && events.add(&stream, CHANGES, token).is_ok();
        if is_in {
            events.remove(listener);
            *is_listening = false;
            *client = Some(stream);
        }
        is_in
    }

    /// Whether these events say that whoever was there is gone. The end of a terminal's input is not that of its output.
    pub fn is_left(&self, events: EventSet) -> bool {
        matches!(self, Self::Socket { .. }) && events.intersects(EventSet::HANG_UP | EventSet::ERROR)
    }

    /// There is no more input; whether that is the end of all.
    pub fn end_input(&mut self) -> bool {
        match self {
            Self::Socket { .. } => true,
            Self::Stream { input, .. } => {
                *input = None;
                false
            }
        }
    }

    /// Ends with who is there.
    pub fn hang_up(&mut self) {
        if let Self::Socket { client, .. } = self {
            *client = None;
        }
    }

    /// Reads what is there. Nothing (0) when that was all.
    ///
    /// # Errors
    /// When there is nothing now, or never will be.
    pub fn read(&self, pieces: Pieces<'_>) -> io::Result<usize> {
        match self {
            Self::Socket { client: Some(client), .. } => pieces.read_from(client.as_fd()),
            Self::Stream { input: Some(input), .. } if is_ready(input, PollFlags::IN) => {
                pieces.read_from(input.as_fd())
            }
            Self::Socket { client: None, .. } | Self::Stream { .. } => Err(io::ErrorKind::WouldBlock.into()),
        }
    }

    /// How much of something may be written at once.
    pub fn portion<'a>(&self, buffers: Buffers<'a>) -> Buffers<'a> {
        let most = if matches!(self, Self::Socket { .. }) { MOST } else { READY };
        buffers.split_at(most).0
    }

    /// Writes; where nobody is, it is lost.
    ///
    /// # Errors
    /// When it takes nothing now, or never will.
    pub fn write(&self, pieces: Pieces<'_>, length: u64) -> io::Result<usize> {
        match self {
            Self::Socket { client: Some(client), .. } => pieces.write_to(client.as_fd()),
            Self::Socket { client: None, .. } => Ok(length as usize),
            Self::Stream { output, .. } if is_ready(output, PollFlags::OUT) => pieces.write_to(output.as_fd()),
            Self::Stream { .. } => Err(io::ErrorKind::WouldBlock.into()),
        }
    }
}
