//! What the machine's threads tell its owner.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::event::{EventfdFlags, eventfd};
use std::os::fd::OwnedFd;

use crate::bus::Request;

/// Something that the owner has to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// The guest asked for something; never [`Request::Nothing`].
    Request(Request),
    /// A vCPU can't go on; why.
    VcpuFailed(String),
    /// The guest's agent has opened or closed its port.
    Agent {
        /// Whether it has it open now.
        connected: bool,
    },
}

/// Events that wait for the owner: each kind at most once, so that a guest can't make them many. Readable (as a
/// descriptor to poll) while there are some.
#[derive(Debug)]
pub struct Events {
    pending: Mutex<Pending>,
    wake: OwnedFd,
}

#[derive(Debug, Default)]
struct Pending {
    /// In the order they came.
    events: Vec<Event>,
}

/// Requests of other kinds, and failures, are few; ejects are as many as there are slots.
const LIMIT: usize = 64;

impl Events {
    /// None yet.
    ///
    /// # Errors
    /// When too many files are open.
    pub fn new() -> io::Result<Self> {
        let wake = eventfd(0, EventfdFlags::NONBLOCK | EventfdFlags::CLOEXEC)?;
        Ok(Self { pending: Mutex::default(), wake })
    }

    fn lock(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells the owner.
    pub fn send(&self, event: Event) {
        let mut pending = self.lock();
        if let Event::Agent { .. } = event {
            // Only how it is now counts.
            pending.events.retain(|other| !matches!(other, Event::Agent { .. }));
        } else if pending.events.contains(&event) || pending.events.len() >= LIMIT {
            return;
        }
        pending.events.push(event);
        drop(pending);
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Takes all.
    #[must_use]
    pub fn take(&self) -> Vec<Event> {
        let _ = rustix::io::read(&self.wake, &mut [0_u8; 8]);
        std::mem::take(&mut self.lock().events)
    }
}

impl AsFd for Events {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.wake.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_wait_once_each() {
        let events = Events::new().unwrap();
        for _ in 0..3 {
            events.send(Event::Request(Request::Reset));
            events.send(Event::Agent { connected: true });
            events.send(Event::Agent { connected: false });
        }
        assert_eq!(events.take(), [Event::Request(Request::Reset), Event::Agent { connected: false }]);
        assert_eq!(events.take(), []);
    }

    #[test]
    fn a_guest_can_not_fill_memory() {
        let events = Events::new().unwrap();
        (0..1000).for_each(|number| events.send(Event::VcpuFailed(number.to_string())));
        assert_eq!(events.take().len(), LIMIT);
    }
}
