//! The engine abstraction: what a guest is, what an engine can do, and how to deal with a running one.
//!
//! An engine is a kind of VMM. [`Engine`] turns a [`GuestConfig`] into the command to start, and a monitor socket
//! into a [`Guest`] handle; [`choose`] picks an engine by its [`Capabilities`] and explains every refusal. The QEMU
//! driver is [`qemu`], the guest agent's client [`agent`].
//!
//! Knows nothing of Kubernetes, starts no process and opens no file of a guest: what needs privilege or a path
//! comes in as an open descriptor. Everything a monitor or a guest says is bounded and checked.

pub mod agent;
mod capabilities;
mod choose;
mod config;
mod exit;
mod guest;
mod json_lines;
pub mod qemu;
pub mod threads;

use std::os::fd::BorrowedFd;

use futures::future::BoxFuture;
use tokio::net::UnixStream;

pub use capabilities::{AcceleratorKind, Capabilities, Feature, PageSize};
pub use choose::{EngineInfo, Mismatch, Needs, choose};
pub use config::{
    Accelerator, Boot, Cache, ConfigError, CpuTopology, Disk, DiskSource, GuestConfig, Memory, Nic, Storage,
};
pub use exit::ExitMeaning;
pub use guest::{Event, Events, Guest, GuestError, Info, RunState, ShutdownCause, VcpuThread};

/// A kind of VMM.
pub trait Engine: Send + Sync {
    /// Its name in the API, for example `qemu`.
    fn name(&self) -> &'static str;

    /// What it can do wherever it runs; what a host adds or lacks is not known here.
    fn capabilities(&self) -> &Capabilities;

    /// What to start for this guest. The guest comes up paused.
    ///
    /// # Errors
    /// When the description is not one of a guest this engine can run.
    fn command<'a>(&self, guest: &'a GuestConfig) -> Result<Command<'a>, ConfigError>;

    /// File name, in the guest's runtime directory, of the socket that [`Engine::connect`] wants.
    fn monitor_socket(&self) -> &'static str;

    /// File name, in the guest's runtime directory, of the guest agent's socket.
    fn agent_socket(&self) -> &'static str;

    /// Takes over a running engine through its monitor socket, whether it was just started or is adopted.
    fn connect(&self, monitor: UnixStream) -> BoxFuture<'static, Result<Box<dyn Guest>, GuestError>>;
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
