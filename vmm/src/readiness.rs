//! Whether a read or write would wait, and who has connected.

use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::thread;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Whether a descriptor that may wait would not. Its flags are shared with other processes, so it can't be told not to.
#[must_use]
pub fn is_ready(descriptor: &impl AsFd, what: PollFlags) -> bool {
    let mut descriptors = [PollFd::new(descriptor, what)];
    poll(&mut descriptors, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}

/// How long the owner rests when a connection can't be had.
const REST: Duration = Duration::from_millis(10);

/// The next who has connected to a listening socket that does not wait.
pub fn accept(listener: &UnixListener) -> Option<UnixStream> {
    loop {
        match listener.accept() {
            Ok((stream, _)) => return Some(stream),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock => return None,
                io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted => {}
                _ => {
                    // No descriptor or no memory is left, while polling goes on to say that somebody is there.
                    thread::sleep(REST);
                    return None;
                }
            },
        }
    }
}
