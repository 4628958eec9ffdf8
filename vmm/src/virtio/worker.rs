//! A device's own thread, and what a device is between `activate` and `reset`.
//!
//! The thread owns the device's [`Handler`], its queues with it, while the device runs, and gives it back when it stops:
//! in a paused device nothing moves.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
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

/// What a device is between `activate` and `reset`, and its thread, which waits meanwhile.
///
/// The thread is made with the device, so that whoever activates it (a vCPU) needs no right to make one.
pub struct Life<H: Handler> {
    /// Stops the work, not the thread. Writing to it fails only when it was written to before.
    stop: EventFd,
    /// There until the device goes.
    thread: Option<(SyncSender<H>, JoinHandle<()>)>,
    back: Receiver<Back<H>>,
    is_running: bool,
    /// What it takes to go on.
    paused: Option<H>,
}

/// What the thread answers.
enum Back<H> {
    /// It is at work.
    Started,
    /// It is not; the handler is here again.
    Failed(H, io::Error),
    /// It has stopped; the handler is here again.
    Stopped(H),
}

impl<H: Handler> Life<H> {
    /// A device without a driver, with a thread of this name (15 bytes of it are seen) that is confined by `filter`.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn new(name: &str, filter: Filter) -> io::Result<Self> {
        let stop = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let stopped = stop.try_clone()?;
        let (give, take) = sync_channel::<H>(1);
        let (answer, back) = sync_channel(1);
        let thread = Builder::new().name(name.to_owned()).stack_size(STACK).spawn(move || {
            let confined = filter.map_or(Ok(()), |filter| seccompiler::apply_filter(&filter));
            for mut handler in take {
                let prepared = match &confined {
                    Ok(()) => prepare(&mut handler, &stopped),
                    Err(error) => Err(io::Error::other(error.to_string())),
                };
                let end = match prepared {
                    // When nobody hears it, nobody needs the device any more.
                    Ok(poll) if answer.send(Back::Started).is_ok() => {
                        run(&mut handler, &poll);
                        handler.stop();
                        let _ = stopped.read();
                        Back::Stopped(handler)
                    }
                    Ok(_) => return,
                    Err(error) => {
                        handler.stop();
                        Back::Failed(handler, error)
                    }
                };
                if answer.send(end).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { stop, thread: Some((give, thread)), back, is_running: false, paused: None })
    }

    /// Begins to work.
    ///
    /// # Errors
    /// When that fails; the device is then paused.
    pub fn activate(&mut self, handler: H) -> Result<(), ActivateError> {
        self.reset();
        self.start(handler)
    }

    fn start(&mut self, handler: H) -> Result<(), ActivateError> {
        let gone = || io::Error::from(io::ErrorKind::BrokenPipe);
        let error = |source| Err(ActivateError::Host { what: "starting a device", source });
        let Some((give, _)) = &self.thread else { return error(gone()) };
        if let Err(unsent) = give.send(handler) {
            self.paused = Some(unsent.0);
            return error(gone());
        }
        match self.back.recv() {
            Ok(Back::Started) => {
                self.is_running = true;
                Ok(())
            }
            Ok(Back::Failed(handler, source)) => {
                self.paused = Some(handler);
                error(source)
            }
            Ok(Back::Stopped(_)) | Err(_) => error(gone()),
        }
    }

    /// Stops, and returns when nothing is in flight any more.
    pub fn pause(&mut self) {
        if !std::mem::take(&mut self.is_running) {
            return;
        }
        let _ = self.stop.write(1);
        if let Ok(Back::Stopped(handler)) = self.back.recv() {
            self.paused = Some(handler);
        }
    }

    /// Goes on after a pause.
    ///
    /// # Errors
    /// When that fails; the device stays paused.
    pub fn resume(&mut self) -> Result<(), ActivateError> {
        self.paused.take().map_or(Ok(()), |handler| self.start(handler))
    }

    /// Ends it, and gives the handler back for what it may own that outlives the driver.
    pub fn reset(&mut self) -> Option<H> {
        self.pause();
        self.paused.take()
    }

    /// What the paused device's state is in.
    pub fn paused(&self) -> Option<&H> {
        self.paused.as_ref()
    }

    /// Where its queues are while it is paused.
    pub fn queue_states(&self) -> Vec<Option<QueueState>> {
        self.paused().map_or_else(Vec::new, |handler| {
            handler.queues().into_iter().map(|queue| queue.map(DeviceQueue::state)).collect()
        })
    }
}

impl<H: Handler> Drop for Life<H> {
    fn drop(&mut self) {
        self.reset();
        if let Some((give, thread)) = self.thread.take() {
            drop(give);
            // A thread that panicked has said so itself.
            let _ = thread.join();
        }
    }
}

fn prepare<H: Handler>(handler: &mut H, stop: &EventFd) -> io::Result<Poll> {
    let poll = Poll(Epoll::new()?);
    poll.add(stop, EventSet::IN, STOP)?;
    handler.start(&poll)?;
    Ok(poll)
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
