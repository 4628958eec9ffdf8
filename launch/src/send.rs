//! The node runtime's side: one order out, one answer back.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::order::{InvalidOrder, LaunchOrder};
use crate::wire;

/// How long a launcher may take for each step. It has nothing to wait for itself.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Why the launcher did not become the program.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SendError {
    /// No launcher could carry this out.
    #[error("the launch order is invalid")]
    Invalid(#[from] InvalidOrder),
    /// Arguments and environment are too long.
    #[error("the launch order has {0} bytes, at most {max} can be sent", max = wire::MAX_BODY)]
    TooLong(usize),
    /// The order names another number of descriptors than were given.
    #[error("the order names {named} descriptors, {given} were given")]
    Count {
        /// Named in the order.
        named: usize,
        /// Given along with it.
        given: usize,
    },
    /// The launcher says why it did not.
    #[error("the launcher refused: {0}")]
    Refused(String),
    /// The launcher went away, or something that is no launcher answered.
    #[error("the launcher went away without an answer")]
    Gone,
    /// The connection failed or timed out.
    #[error("the connection to the launcher failed")]
    Io(#[from] io::Error),
}

/// Sends an order with its descriptors and returns once the launcher has become the program.
///
/// Blocks for as long as the launcher takes, at most ten seconds for each step.
///
/// # Errors
/// See [`SendError`]. After any error but [`SendError::Io`] from a time-out nothing was started.
pub fn send(
    socket: &UnixStream,
    order: &LaunchOrder,
    fds: &[BorrowedFd<'_>],
) -> Result<(), SendError> {
    order.check()?;
    if order.descriptors.len() != fds.len() {
        return Err(SendError::Count {
            named: order.descriptors.len(),
            given: fds.len(),
        });
    }
    let body = serde_json::to_vec(order).map_err(io::Error::from)?;
    let length = match u32::try_from(body.len()) {
        Ok(length) if body.len() <= wire::MAX_BODY => length,
        _ => return Err(SendError::TooLong(body.len())),
    };
    socket.set_write_timeout(Some(TIMEOUT))?;
    socket.set_read_timeout(Some(TIMEOUT))?;
    // A launcher that refuses early closes its end; its answer says more than our broken pipe.
    let sent = send_all(socket, &wire::header(length), &[])
        .and_then(|()| send_all(socket, &body, &[]))
        .and_then(|()| {
            fds.chunks(wire::MAX_PER_MESSAGE)
                .try_for_each(|fds| send_all(socket, &[wire::CARRIER], fds))
        });
    match (sent, outcome(socket)) {
        (Ok(()), outcome) | (Err(_), outcome @ Err(SendError::Refused(_))) => outcome,
        (Err(error), _) => Err(error.into()),
    }
}

/// Sends all of `bytes`, with the descriptors on the first of them.
fn send_all(socket: &UnixStream, mut bytes: &[u8], mut fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(wire::MAX_PER_MESSAGE))];
    while !bytes.is_empty() {
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        match sendmsg(
            socket,
            &[IoSlice::new(bytes)],
            &mut ancillary,
            SendFlags::NOSIGNAL,
        ) {
            Ok(sent) => (bytes, fds) = (&bytes[sent..], &[]),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Reads the answer up to the end of file.
fn outcome(socket: &UnixStream) -> Result<(), SendError> {
    let mut answer = Vec::new();
    match socket
        .take(wire::MAX_ANSWER as u64)
        .read_to_end(&mut answer)
    {
        Ok(_) => {}
        // A peer that closes with our bytes unread resets the connection; what it said before still counts.
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
        Err(error) => return Err(error.into()),
    }
    let text = match answer.as_slice() {
        [wire::ACCEPTED] => return Ok(()),
        [wire::ACCEPTED, wire::REFUSED, text @ ..] | [wire::REFUSED, text @ ..] => text,
        _ => return Err(SendError::Gone),
    };
    let printable = String::from_utf8_lossy(text)
        .chars()
        .map(|c| if c.is_control() { ' ' } else { c })
        .collect();
    Err(SendError::Refused(printable))
}
