//! Whether a read or write would wait.

use std::os::fd::AsFd;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// Whether a descriptor that may wait would not. Its flags are shared with other processes, so it can't be told not to.
#[must_use]
pub fn is_ready(descriptor: &impl AsFd, what: PollFlags) -> bool {
    let mut descriptors = [PollFd::new(descriptor, what)];
    poll(&mut descriptors, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
}
