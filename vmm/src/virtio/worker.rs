//! A device's own thread, and what a device is between `activate` and `reset`.
//!
//! The thread owns the device's [`Handler`], its queues with it, and gives it back when it is stopped: a paused device has
//! no thread.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread::{Builder, JoinHandle};

use seccompiler::BpfProgram;
use virtio_queue::QueueState;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::device::ActivateError;
use super::queue::DeviceQueue;

/// Bytes of stack of a device's thread. Only what is touched takes memory.
const STACK: usize = 128 << 10;

/// Events taken from the kernel at once.
const EVENTS: usize = 16;

/// Token of the event that stops the thread; devices number theirs from 0.
const STOP: u64 = u64::MAX;

/// The system calls that a thread is confined to; `None` for all.
pub type Filter = Option<Arc<BpfProgram>>;

/// What a device does while it runs.
pub trait Handler: Send + 'static {
    /// Says what to wait for, and looks at every queue: what was added before has been notified already.
    ///
    /// # Errors
    /// The thread then does not start.
    fn start(&mut self, poll: &Poll) -> io::Result<()>;

    /// Something that was waited for is ready.
    fn ready(&mut self, token: u64, events: EventSet, poll: &Poll);

    /// Finishes or takes back what is in flight; the thread ends. Also after a start that failed halfway.
    fn stop(&mut self);

    /// The queues by index, `None` for one that is not in use.
    fn queues(&self) -> Vec<Option<&DeviceQueue>>;
}

/// What a thread waits for.
pub struct Poll(Epoll);

impl Poll {
    fn control(&self, operation: ControlOperation, fd: RawFd, events: EventSet, token: u64) -> io::Result<()> {
        self.0.ctl(operation, fd, EpollEvent::new(events, token))
    }

    /// Waits for `events` of a descriptor too.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add(&self, fd: &impl AsRawFd, events: EventSet, token: u64) -> io::Result<()> {
        self.control(ControlOperation::Add, fd.as_raw_fd(), events, token)
    }

    /// Waits for other events of a descriptor.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn modify(&self, fd: &impl AsRawFd, events: EventSet, token: u64) -> io::Result<()> {
        self.control(ControlOperation::Modify, fd.as_raw_fd(), events, token)
    }

    /// Waits for a descriptor no longer. Closing the last copy of it does that too.
    pub fn remove(&self, fd: &impl AsRawFd) {
        // Fails only when it wasn't waited for.
        let _ = self.control(ControlOperation::Delete, fd.as_raw_fd(), EventSet::empty(), 0);
    }

    /// Waits for notifications of queues; their tokens are their indices.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn add_queues<'a>(&self, queues: impl IntoIterator<Item = &'a DeviceQueue>) -> io::Result<()> {
        queues.into_iter().try_for_each(|queue| self.add(queue.notified(), EventSet::IN, u64::from(queue.index())))
    }
}

/// A running thread.
pub struct Worker<H> {
    /// There until it is joined.
    thread: Option<JoinHandle<Option<H>>>,
    stop: EventFd,
}

impl<H: Handler> Worker<H> {
    /// Starts it; gives the handler back when that fails.
    fn start(name: &str, handler: H, filter: &Filter) -> Result<Self, (Option<H>, ActivateError)> {
        let fail = |handler, what, source| Err((handler, ActivateError::Host { what, source }));
        let prepared = || {
            let poll = Poll(Epoll::new()?);
            let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
            poll.add(&stop, EventSet::IN, STOP)?;
            Ok((poll, stop))
        };
        let (poll, stop) = match prepared() {
            Ok(prepared) => prepared,
            Err(source) => return fail(Some(handler), "making a device's events", source),
        };
        // The handler follows the thread, so that it isn't lost with a thread that can't be made.
        let (give, take) = sync_channel::<H>(1);
        let (tell, told) = sync_channel::<io::Result<()>>(1);
        let filter = filter.clone();
        let spawned = Builder::new().name(name.to_owned()).stack_size(STACK).spawn(move || {
            let confined = filter.map_or(Ok(()), |filter| seccompiler::apply_filter(&filter).map_err(io::Error::other));
            let mut handler = take.recv().ok()?;
            let started = confined.and_then(|()| handler.start(&poll));
            let is_started = started.is_ok();
            if tell.send(started).is_ok() && is_started {
                run(&mut handler, &poll);
            }
            handler.stop();
            Some(handler)
        });
        let thread = match spawned {
            Ok(thread) => thread,
            Err(source) => return fail(Some(handler), "starting a device's thread", source),
        };
        if let Err(unsent) = give.send(handler) {
            return fail(Some(unsent.0), "starting a device's thread", io::ErrorKind::BrokenPipe.into());
        }
        let mut worker = Self { thread: Some(thread), stop };
        match told.recv().unwrap_or_else(|_| Err(io::ErrorKind::BrokenPipe.into())) {
            Ok(()) => Ok(worker),
            Err(source) => fail(worker.join(), "starting a device's work", source),
        }
    }

    /// Stops it, and returns when it has.
    fn stop(mut self) -> Option<H> {
        self.join()
    }

    fn join(&mut self) -> Option<H> {
        // Fails only when it was written to before.
        let _ = self.stop.write(1);
        // A thread that panicked has taken its device with it; there is nothing to go on with.
        self.thread.take()?.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl<H> Drop for Worker<H> {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = self.stop.write(1);
            let _ = thread.join();
        }
    }
}

fn run<H: Handler>(handler: &mut H, poll: &Poll) {
    let mut events = [EpollEvent::default(); EVENTS];
    loop {
        let count = match poll.0.wait(-1, &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            // Only a descriptor that isn't one, or memory that isn't there, fails.
            Err(_) => 0,
        };
        for event in events.iter().take(count) {
            if event.data() == STOP {
                return;
            }
            handler.ready(event.data(), event.event_set(), poll);
        }
    }
}

/// Where a device is in its life.
#[derive(Default)]
pub enum Life<H: Handler> {
    /// No driver.
    #[default]
    Inactive,
    /// At work.
    Running(Worker<H>),
    /// Stopped, with what it takes to go on.
    Paused(H),
}

impl<H: Handler> Life<H> {
    fn start(&mut self, name: &str, handler: H, filter: &Filter) -> Result<(), ActivateError> {
        match Worker::start(name, handler, filter) {
            Ok(worker) => {
                *self = Self::Running(worker);
                Ok(())
            }
            Err((handler, error)) => {
                *self = handler.map_or(Self::Inactive, Self::Paused);
                Err(error)
            }
        }
    }

    /// Begins a life, in a thread of this name (15 bytes at most are seen).
    ///
    /// # Errors
    /// When there can be no thread; the device is then paused.
    pub fn activate(&mut self, name: &str, handler: H, filter: &Filter) -> Result<(), ActivateError> {
        self.reset();
        self.start(name, handler, filter)
    }

    /// Stops the thread.
    pub fn pause(&mut self) {
        match std::mem::take(self) {
            Self::Running(worker) => *self = worker.stop().map_or(Self::Inactive, Self::Paused),
            other => *self = other,
        }
    }

    /// Goes on.
    ///
    /// # Errors
    /// When there can be no thread; the device stays paused.
    pub fn resume(&mut self, name: &str, filter: &Filter) -> Result<(), ActivateError> {
        match std::mem::take(self) {
            Self::Paused(handler) => self.start(name, handler, filter),
            other => {
                *self = other;
                Ok(())
            }
        }
    }

    /// Ends it, and gives the handler back for what it may own that outlives the driver.
    pub fn reset(&mut self) -> Option<H> {
        self.pause();
        match std::mem::take(self) {
            Self::Paused(handler) => Some(handler),
            Self::Inactive | Self::Running(_) => None,
        }
    }

    /// What the paused device's state is in.
    pub fn paused(&self) -> Option<&H> {
        match self {
            Self::Paused(handler) => Some(handler),
            Self::Inactive | Self::Running(_) => None,
        }
    }

    /// Where its queues are while it is paused.
    pub fn queue_states(&self) -> Vec<Option<QueueState>> {
        self.paused().map_or_else(Vec::new, |handler| {
            handler.queues().into_iter().map(|queue| queue.map(DeviceQueue::state)).collect()
        })
    }
}
