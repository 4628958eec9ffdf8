//! The node runtime's side: one order out, one answer back.

use std::io::{self, IoSlice, Read};
use std::mem::MaybeUninit;
use std::os::fd::BorrowedFd;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};

use crate::order::{InvalidOrder, LaunchOrder};
use crate::wire;

/// How long a launcher may take altogether. It has nothing to wait for itself.
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
/// Blocks for as long as the launcher takes, at most ten seconds.
///
/// # Errors
/// See [`SendError`]. After any error but [`SendError::Io`] from a time-out nothing was started.
pub fn send(socket: &UnixStream, order: &LaunchOrder, fds: &[BorrowedFd<'_>]) -> Result<(), SendError> {
    order.check()?;
    if order.descriptors.len() != fds.len() {
        return Err(SendError::Count { named: order.descriptors.len(), given: fds.len() });
    }
    let body = serde_json::to_vec(order).map_err(io::Error::from)?;
    let length = match u32::try_from(body.len()) {
        Ok(length) if body.len() <= wire::MAX_BODY => length,
        _ => return Err(SendError::TooLong(body.len())),
    };
    let deadline = Instant::now() + TIMEOUT;
    // A launcher that refuses early closes its end; its answer says more than our broken pipe.
    let sent = send_all(socket, deadline, &wire::header(length), &[])
        .and_then(|()| send_all(socket, deadline, &body, &[]))
        .and_then(|()| {
            let mut messages = fds.chunks(wire::MAX_PER_MESSAGE);
            messages.try_for_each(|fds| send_all(socket, deadline, &[wire::CARRIER], fds))
        });
    match (sent, outcome(socket, deadline)) {
        (Ok(()), outcome) | (Err(_), outcome @ Err(SendError::Refused(_))) => outcome,
        (Err(error), _) if error.kind() == io::ErrorKind::BrokenPipe => Err(SendError::Gone),
        (Err(error), _) => Err(error.into()),
    }
}

/// Sends all of `bytes`, with the descriptors on the first of them.
fn send_all(socket: &UnixStream, deadline: Instant, mut bytes: &[u8], mut fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(wire::MAX_PER_MESSAGE))];
    while !bytes.is_empty() {
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            ancillary.push(SendAncillaryMessage::ScmRights(fds));
        }
        socket.set_write_timeout(Some(left(deadline)?))?;
        match sendmsg(socket, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Ok(sent) => (bytes, fds) = (&bytes[sent..], &[]),
            Err(rustix::io::Errno::INTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
    Ok(())
}

/// Reads the answer up to the end of file.
fn outcome(mut socket: &UnixStream, deadline: Instant) -> Result<(), SendError> {
    let mut answer = Vec::new();
    let mut part = [0; wire::MAX_ANSWER];
    while answer.len() < wire::MAX_ANSWER {
        socket.set_read_timeout(Some(left(deadline)?))?;
        match socket.read(&mut part) {
            Ok(0) => break,
            Ok(read) => answer.extend_from_slice(&part[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // A peer that closes with our bytes unread resets the connection; what it said before still counts.
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => break,
            Err(error) => return Err(error.into()),
        }
    }
    let text = match answer.as_slice() {
        [wire::ACCEPTED] => return Ok(()),
        [wire::ACCEPTED, wire::REFUSED, text @ ..] | [wire::REFUSED, text @ ..] => text,
        _ => return Err(SendError::Gone),
    };
    let printable = String::from_utf8_lossy(text).chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    Err(SendError::Refused(printable))
}

/// Time up to the deadline; an error when there is none.
fn left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(io::ErrorKind::TimedOut.into()) } else { Ok(left) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;
    use std::os::fd::AsFd;

    fn order(program: &str) -> LaunchOrder {
        let (args, env, descriptors) = (vec![], [].into(), vec![]);
        LaunchOrder { program: program.into(), args, env, descriptors }
    }

    /// What comes of an order when the other side answers this and goes away without reading.
    fn answered(answer: &[u8]) -> Result<(), SendError> {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        theirs.write_all(answer).unwrap();
        theirs.shutdown(std::net::Shutdown::Write).unwrap();
        send(&ours, &order("/engine"), &[])
    }

    #[test]
    fn only_the_end_after_acceptance_is_success() {
        assert!(answered(b"+").is_ok());
        assert!(matches!(answered(b""), Err(SendError::Gone)));
        assert!(matches!(answered(b"+-no"), Err(SendError::Refused(why)) if why == "no"));
        assert!(matches!(answered(b"-a\x1b[2J\xff"), Err(SendError::Refused(why)) if why == "a [2J\u{fffd}"));
        assert!(matches!(answered(b"HTTP/1.1 200 OK"), Err(SendError::Gone)));
        assert!(matches!(answered(&[b'+'; 9000]), Err(SendError::Gone)));
    }

    #[test]
    fn what_no_launcher_could_do_is_not_sent() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert!(matches!(send(&ours, &order("engine"), &[]), Err(SendError::Invalid(_))));
        let stray = send(&ours, &order("/engine"), &[ours.as_fd()]);
        assert!(matches!(stray, Err(SendError::Count { named: 0, given: 1 })));
        let mut long = order("/engine");
        long.args.push("x".repeat(wire::MAX_BODY));
        assert!(matches!(send(&ours, &long, &[]), Err(SendError::TooLong(_))));
    }

    #[test]
    fn a_launcher_that_died_is_an_error() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(theirs);
        assert!(matches!(send(&ours, &order("/engine"), &[]), Err(SendError::Gone)));
    }
}
