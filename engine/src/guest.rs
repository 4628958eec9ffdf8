//! A running engine's guest: what can be asked of it and what it tells.

use std::io;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::sync::broadcast;

/// A handle on a running engine. Dropping it leaves the engine as it is.
pub trait Guest: Send + Sync {
    /// Stops all vCPUs.
    fn pause(&self) -> BoxFuture<'_, Result<(), GuestError>>;

    /// Lets all vCPUs run.
    fn resume(&self) -> BoxFuture<'_, Result<(), GuestError>>;

    /// Presses the ACPI power button. What the guest makes of it is its own affair; a paused one makes nothing of it.
    fn power_button(&self) -> BoxFuture<'_, Result<(), GuestError>>;

    /// Ends the engine at once, as if the plug were pulled.
    fn stop(&self) -> BoxFuture<'_, Result<(), GuestError>>;

    /// How it is.
    fn info(&self) -> BoxFuture<'_, Result<Info, GuestError>>;

    /// The engine's name and version, for example `QEMU 10.0.3`.
    fn version(&self) -> BoxFuture<'_, Result<String, GuestError>>;

    /// The threads that run vCPUs; none while they are not made yet.
    fn vcpu_threads(&self) -> BoxFuture<'_, Result<VcpuThreads, GuestError>>;

    /// Everything that happens from now on.
    fn events(&self) -> Events;
}

/// How a guest is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Whether it runs.
    pub state: RunState,
    /// Whether an agent in the guest has its channel open.
    pub agent_connected: bool,
}

/// Whether a guest runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum RunState {
    /// Complete, and has not run yet.
    Prelaunch,
    /// vCPUs run.
    Running,
    /// vCPUs are stopped and can go on.
    Paused,
    /// It powered itself off.
    Shutdown,
    /// Its kernel panicked.
    Panicked,
    /// The engine stopped it for a failure of its own or of a disk.
    Failed,
    /// Something this driver does not know.
    Other,
}

/// How the threads that run vCPUs are told from others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VcpuThreads {
    /// By their ids.
    Ids(Vec<VcpuThread>),
    /// By their names: this, followed by the number of the vCPU.
    Named(&'static str),
}

/// A thread that runs a vCPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct VcpuThread {
    /// Number of the vCPU, from 0.
    pub vcpu: u32,
    /// Thread id in the *engine's* pid namespace; see [`crate::threads`] for the host's.
    pub tid: i32,
}

/// Something that happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Event {
    /// The guest ended; the engine's process follows.
    Shutdown {
        /// Whose doing it was.
        by_guest: bool,
        /// How.
        cause: ShutdownCause,
    },
    /// The machine started over.
    Reset {
        /// Whose doing it was.
        by_guest: bool,
    },
    /// The guest's kernel panicked.
    Panicked,
    /// All vCPUs stopped.
    Paused,
    /// All vCPUs run.
    Resumed,
    /// An agent in the guest opened or closed its channel.
    AgentConnected(bool),
    /// More happened than could be kept: ask for [`Guest::info`].
    Missed,
    /// The connection to the engine is gone; nothing further comes.
    MonitorClosed,
}

/// How a guest ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum ShutdownCause {
    /// Powered off by its own kernel.
    PowerOff,
    /// A reset that the engine was told to end on.
    Reset,
    /// A panic.
    Panic,
    /// The engine was told to stop, over its monitor or by a signal.
    Stopped,
    /// Anything else.
    Other,
}

/// Events in their order, from the moment this was made.
#[derive(Debug)]
pub struct Events {
    pub(crate) receiver: broadcast::Receiver<Event>,
    pub(crate) closed: bool,
}

impl Events {
    /// The next event; after [`Event::MonitorClosed`] there is none. Safe to cancel.
    pub async fn next(&mut self) -> Option<Event> {
        if self.closed {
            return None;
        }
        match self.receiver.recv().await {
            Ok(event) => Some(event),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Event::Missed),
            Err(broadcast::error::RecvError::Closed) => {
                self.closed = true;
                Some(Event::MonitorClosed)
            }
        }
    }

    /// Reads on until one fits; `None` when the monitor closed first. Keeps nothing of what it passes.
    pub async fn find(&mut self, mut fits: impl FnMut(&Event) -> bool) -> Option<Event> {
        loop {
            let event = self.next().await?;
            if fits(&event) {
                return Some(event);
            }
        }
    }
}

/// Why an engine did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum GuestError {
    /// The connection is gone, and most likely the engine.
    #[error("the engine's monitor is closed")]
    Closed,
    /// No answer.
    #[error("the engine's monitor did not answer {request} within {after:?}")]
    Late {
        /// What was asked.
        request: String,
        /// How long was waited.
        after: Duration,
    },
    /// The engine says no.
    #[error("the engine refused {request}: {reason}")]
    Refused {
        /// What was asked.
        request: String,
        /// The engine's words, bounded.
        reason: String,
    },
    /// Not what a monitor says.
    #[error("the engine's monitor does not keep to its protocol: {0}")]
    Protocol(String),
    /// The connection failed.
    #[error("the connection to the engine's monitor failed")]
    Io(#[from] io::Error),
}
