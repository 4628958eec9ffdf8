//! Waiting for the one order: the socket, who may use it, and the signals that end the wait.

use std::fmt::Display;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, poll};
use vse_launch::{Patience, ReceiveError, Received, answer_refused, peer, receive};

use crate::become_program::out_of_the_way;

/// How long a sender may take for a whole order.
const ORDER_TIMEOUT: Duration = Duration::from_secs(5);

/// What the wait ended with.
pub(crate) enum Heard {
    /// A valid order and who waits for the outcome.
    Order(UnixStream, Received),
    /// The pod is being ended.
    Ended,
}

/// Why waiting is not possible.
#[derive(Debug, thiserror::Error)]
pub(crate) enum WaitError {
    #[error("cannot wait for orders on {path}: {source}")]
    Socket { path: PathBuf, source: io::Error },
    #[error("cannot wait: {0}")]
    Io(#[from] io::Error),
}

/// The signals that end the wait. They stay blocked from here on, in the engine too: kubelet's SIGTERM must not
/// stop a guest that the node runtime shuts down in order, and neither may a terminal that goes away.
pub(crate) struct Signals(OwnedFd);

impl Signals {
    /// Blocks them for this thread, which is the only one, and for all that it becomes.
    pub(crate) fn block() -> io::Result<Self> {
        let signals = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP]);
        signals.thread_block()?;
        let descriptor = SignalFd::with_flags(&signals, SfdFlags::SFD_CLOEXEC)?;
        Ok(Self(out_of_the_way(&descriptor)?))
    }
}

/// Makes the socket, in place of one that an earlier life of this container left.
pub(crate) fn listen(path: &Path) -> Result<OwnedFd, WaitError> {
    remove(path)?;
    let bound = UnixListener::bind(path).and_then(|listener| out_of_the_way(&listener));
    bound.map_err(|source| WaitError::Socket { path: path.to_owned(), source })
}

/// Removes the socket file.
pub(crate) fn remove(path: &Path) -> Result<(), WaitError> {
    match std::fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(WaitError::Socket { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

/// Waits for a valid order of one of these users, however many bad ones come before it.
pub(crate) fn wait(listener: &OwnedFd, signals: &Signals, users: &[u32]) -> Result<Heard, WaitError> {
    loop {
        let mut waits = [PollFd::new(&signals.0, PollFlags::IN), PollFd::new(listener, PollFlags::IN)];
        match poll(&mut waits, None) {
            Ok(_) if !waits[0].revents().is_empty() => return Ok(Heard::Ended),
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(io::Error::from(errno).into()),
        }
        let sender = match rustix::net::accept_with(listener, rustix::net::SocketFlags::CLOEXEC) {
            Ok(sender) => UnixStream::from(out_of_the_way(&sender)?),
            // The one who connected is gone again.
            Err(rustix::io::Errno::CONNABORTED | rustix::io::Errno::INTR) => continue,
            Err(errno) => return Err(io::Error::from(errno).into()),
        };
        let uid = peer(&sender)?.uid;
        if !users.contains(&uid) {
            refuse(&sender, format_args!("user {uid} may not give launch orders here"));
            continue;
        }
        let patience = Patience { until: Instant::now() + ORDER_TIMEOUT, interrupt: signals.0.as_fd() };
        match receive(&sender, patience) {
            Ok(received) => return Ok(Heard::Order(sender, received)),
            Err(ReceiveError::Interrupted) => return Ok(Heard::Ended),
            // Nobody is left to be told. Who only looks whether a launcher is here leaves so too.
            Err(ReceiveError::Ended) => {}
            Err(error) => refuse(&sender, error),
        }
    }
}

/// Says on the console and to the sender why its order was not carried out.
pub(crate) fn refuse(sender: &UnixStream, why: impl Display) {
    let why = why.to_string();
    eprintln!("vse: launch order refused: {why}");
    answer_refused(sender, &why);
}
