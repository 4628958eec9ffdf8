//! The launcher's side: one order in, with limits on everything.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, recvmsg};

use crate::order::{InvalidOrder, LaunchOrder};
use crate::wire::{self, InvalidHeader};

/// A valid order and its descriptors, one for each that the order names, in its order, all close-on-exec.
#[derive(Debug)]
pub struct Received {
    /// What to become.
    pub order: LaunchOrder,
    /// What to hand over.
    pub fds: Vec<OwnedFd>,
}

/// How long to wait for a sender.
#[derive(Debug, Clone, Copy)]
pub struct Patience<'a> {
    /// By when the whole order must be there.
    pub until: Instant,
    /// Ends the wait as soon as it is readable.
    pub interrupt: BorrowedFd<'a>,
}

/// Why no order was received.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ReceiveError {
    /// Something else is talking, or another release.
    #[error(transparent)]
    Header(#[from] InvalidHeader),
    /// Not the JSON of an order.
    #[error("the order cannot be read: {0}")]
    Body(#[from] serde_json::Error),
    /// Readable, but nothing a launcher could do.
    #[error(transparent)]
    Invalid(#[from] InvalidOrder),
    /// Descriptors were missing, too many, or where none belong.
    #[error("the order names {named} descriptors, {arrived} arrived")]
    Descriptors {
        /// Named in the order.
        named: usize,
        /// Arrived so far.
        arrived: usize,
    },
    /// The sender went away.
    #[error("the order ended in the middle")]
    Ended,
    /// The sender took too long.
    #[error("the order did not arrive in time")]
    Late,
    /// [`Patience::interrupt`] became readable.
    #[error("interrupted")]
    Interrupted,
    /// The connection failed.
    #[error("the connection failed: {0}")]
    Io(#[from] io::Error),
}

/// Reads one order. After an error the connection is of no further use but to answer.
///
/// # Errors
/// See [`ReceiveError`].
pub fn receive(socket: &UnixStream, patience: Patience<'_>) -> Result<Received, ReceiveError> {
    let mut header = [0; wire::HEADER];
    fill(socket, patience, &mut header)?;
    let mut body = vec![0; wire::body_length(&header)?];
    fill(socket, patience, &mut body)?;
    let order: LaunchOrder = serde_json::from_slice(&body)?;
    order.check()?;

    let named = order.descriptors.len();
    let mut fds = Vec::with_capacity(named);
    while fds.len() < named {
        let expected = (named - fds.len()).min(wire::MAX_PER_MESSAGE);
        let mut carrier = [0];
        let (read, arrived) = read(socket, patience, &mut carrier)?;
        let complete = arrived.len() == expected;
        fds.extend(arrived);
        match (read, carrier) {
            (0, _) => return Err(ReceiveError::Ended),
            (_, [wire::CARRIER]) if complete => {}
            _ => {
                return Err(ReceiveError::Descriptors { named, arrived: fds.len() });
            }
        }
    }
    Ok(Received { order, fds })
}

/// Tells the sender that the `execve` follows.
///
/// # Errors
/// When the sender is gone: then nobody waits for the program, and it should not be started.
pub fn answer_accepted(mut socket: &UnixStream) -> io::Result<()> {
    socket.write_all(&[wire::ACCEPTED])
}

/// Tells the sender why not, if it still listens.
pub fn answer_refused(mut socket: &UnixStream, why: &str) {
    let mut answer = vec![wire::REFUSED];
    answer.extend(why.bytes().take(wire::MAX_ANSWER - 2));
    // The sender may be gone; there is nobody else to tell.
    let _ = socket.set_nonblocking(true).and_then(|()| socket.write_all(&answer));
}

/// Fills `bytes`, which carry no descriptors.
fn fill(socket: &UnixStream, patience: Patience<'_>, mut bytes: &mut [u8]) -> Result<(), ReceiveError> {
    while !bytes.is_empty() {
        let (count, fds) = read(socket, patience, bytes)?;
        if !fds.is_empty() {
            return Err(ReceiveError::Descriptors { named: 0, arrived: fds.len() });
        }
        if count == 0 {
            return Err(ReceiveError::Ended);
        }
        bytes = &mut bytes[count..];
    }
    Ok(())
}

/// One `recvmsg`, waited for with patience.
fn read(socket: &UnixStream, patience: Patience<'_>, bytes: &mut [u8]) -> Result<(usize, Vec<OwnedFd>), ReceiveError> {
    loop {
        readable(socket.as_fd(), patience)?;
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(wire::MAX_PER_MESSAGE))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC | RecvFlags::DONTWAIT;
        let message = match recvmsg(socket, &mut [IoSliceMut::new(bytes)], &mut ancillary, flags) {
            Ok(message) => message,
            Err(Errno::AGAIN | Errno::INTR) => continue,
            Err(Errno::CONNRESET) => return Err(ReceiveError::Ended),
            Err(errno) => return Err(io::Error::from(errno).into()),
        };
        let mut fds = Vec::new();
        for part in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(rights) = part {
                fds.extend(rights);
            }
        }
        // The kernel drops descriptors it cannot install, for example at the limit of open files.
        if message.flags.contains(ReturnFlags::CTRUNC) {
            return Err(io::Error::from(Errno::MFILE).into());
        }
        return Ok((message.bytes, fds));
    }
}

/// Waits until there is something to read.
fn readable(socket: BorrowedFd<'_>, patience: Patience<'_>) -> Result<(), ReceiveError> {
    loop {
        let left = patience.until.saturating_duration_since(Instant::now());
        let left = Timespec::try_from(left).map_err(|_| ReceiveError::Late)?;
        let mut waits = [
            PollFd::from_borrowed_fd(socket, PollFlags::IN),
            PollFd::from_borrowed_fd(patience.interrupt, PollFlags::IN),
        ];
        match poll(&mut waits, Some(&left)) {
            Ok(0) => return Err(ReceiveError::Late),
            Ok(_) if !waits[1].revents().is_empty() => return Err(ReceiveError::Interrupted),
            Ok(_) => return Ok(()),
            Err(Errno::INTR) => {}
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
    }
}
