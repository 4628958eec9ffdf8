//! The engine abstraction: what a guest is, what an engine can do, and how to deal with a running one.
//!
//! An engine is a kind of VMM. [`Engine`] turns a [`GuestConfig`] into the command to start, and the sockets of what
//! was started into a [`Guest`] handle; [`choose`] picks an engine by its [`Capabilities`] and explains every refusal.
//! There are two drivers: [`qemu`], and [`rest`] for the two engines that speak Cloud Hypervisor's API. The guest
//! agent's client is [`agent`].
//!
//! Knows nothing of Kubernetes, starts no process and opens no file of a guest: what needs privilege or a path
//! comes in as an open descriptor. Everything a monitor or a guest says is bounded and checked.

pub mod agent;
mod capabilities;
mod choose;
mod config;
mod descriptors;
mod exit;
mod guest;
mod json_lines;
mod passthrough;
mod placement;
pub mod qemu;
pub mod rest;
pub mod threads;

use std::fs::File;
use std::os::fd::BorrowedFd;

use futures::future::BoxFuture;
use tokio::net::UnixStream;

pub use capabilities::{AcceleratorKind, Capabilities, Feature, PageSize};
pub use choose::{EngineInfo, Mismatch, Needs, choose};
pub use config::{
    Accelerator, Boot, Cache, ConfigError, CpuTopology, Disk, DiskSource, GuestConfig, Memory, Nic, Storage,
};
pub use exit::ExitMeaning;
pub use guest::{Event, Events, Guest, GuestError, Info, RunState, ShutdownCause, VcpuThread, VcpuThreads};
pub use passthrough::{HostDevice, Passthrough};
pub use placement::{GuestCell, Placement};

/// A kind of VMM.
pub trait Engine: Send + Sync {
    /// Its name in the API, for example `qemu`.
    fn name(&self) -> &'static str;

    /// What it can do wherever it runs; what a host adds or lacks is not known here.
    fn capabilities(&self) -> &Capabilities;

    /// What to start for this guest. It comes up [`RunState::Prelaunch`] where the engine can; see
    /// [`Feature::Prelaunch`].
    ///
    /// # Errors
    /// When the description is not one of a guest this engine can run.
    fn command<'a>(&self, guest: &'a GuestConfig) -> Result<Command<'a>, ConfigError>;

    /// What it makes in the guest's runtime directory to be spoken to.
    fn files(&self) -> Files;

    /// Takes over a running engine, whether it was just started or is adopted.
    fn connect(&self, channels: Channels) -> BoxFuture<'static, Result<Box<dyn Guest>, GuestError>>;
}

/// File names in a guest's runtime directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Files {
    /// Socket for [`Channels::monitor`].
    pub monitor: &'static str,
    /// What tells of events, where that is not the monitor.
    pub events: Option<EventsFile>,
    /// Socket of the guest agent, where there is one.
    pub agent: Option<&'static str>,
}

/// What tells of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventsFile {
    /// A socket, for [`EventSource::Socket`].
    Socket(&'static str),
    /// A file that grows, for [`EventSource::File`].
    Log(&'static str),
}

/// Open ways to speak to an engine.
#[derive(Debug)]
pub struct Channels {
    /// For orders and questions.
    pub monitor: UnixStream,
    /// For events, where [`Files::events`] asks for it.
    pub events: Option<EventSource>,
}

impl Channels {
    /// Of an engine whose monitor tells of events, too.
    #[must_use]
    pub fn monitor(monitor: UnixStream) -> Self {
        Self { monitor, events: None }
    }
}

/// Where events come from.
#[derive(Debug)]
pub enum EventSource {
    /// From now on, one to a line.
    Socket(UnixStream),
    /// All there ever were, in a file that grows.
    File(File),
}

/// A program to start, with the descriptors it needs.
#[derive(Debug)]
pub struct Command<'a> {
    /// Absolute path in the engine's file system.
    pub program: String,
    /// Arguments after the program's name.
    pub args: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// Descriptors and the numbers at which the arguments expect them.
    pub descriptors: Vec<Handed<'a>>,
}

/// A descriptor handed to an engine.
#[derive(Debug)]
pub struct Handed<'a> {
    /// What it is, for error messages.
    pub name: String,
    /// Its number in the engine.
    pub target: i32,
    /// The descriptor.
    pub fd: BorrowedFd<'a>,
}
