//! From the command line to the owner's loop.
//!
//! The guest is created first and the sockets listen after it: whoever can connect finds it there. Then this thread
//! confines itself, and then the guest boots, if it is to.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use vse_vmm_api::{Fd, VmConfig, json};

use crate::api::Server;
use crate::api::http::BODY_BYTES;
use crate::machine::Events as MachineEvents;
use crate::machine::descriptors::{self, DescriptorError};
use crate::made_socket::MadeSocket;
use crate::monitor::Monitor;
use crate::options::{ConfigFrom, Endpoint, Events, Options};
use crate::seccomp::{FilterError, Filters, Role};
use crate::vmm::run::run;
use crate::vmm::{End, MachineSignals, Machines, Refusal, Vmm};

const API_SOCKET: &str = "--api-socket";
const EVENT_MONITOR: &str = "--event-monitor";

/// The VMM could not start, or go on.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum StartError {
    /// A file or socket.
    #[error("{what}")]
    Open {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A descriptor.
    #[error("{what}")]
    Descriptor {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: DescriptorError,
    },
    /// The configuration can't be read.
    #[error("the guest's configuration can't be read")]
    Config(#[from] json::Malformed),
    /// The guest can't be.
    #[error("the guest can't be created")]
    Guest(#[from] Refusal),
    /// System calls can't be filtered.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// The kernel.
    #[error("the VMM can't go on")]
    Run(#[source] io::Error),
}

/// Runs until the guest, a caller or a failure ends it.
///
/// # Errors
/// When it can't start, or go on.
pub fn start(options: Options) -> Result<End, StartError> {
    one_arena();
    descriptors::inherit().map_err(StartError::Run)?;
    let filters = Arc::new(Filters::new(options.seccomp));
    let events = Arc::new(MachineEvents::new().map_err(StartError::Run)?);
    let mut signals = MachineSignals(Arc::clone(&events));
    let has_callers = options.api_socket.is_some();
    let machines = Machines::new(options.kvm_fd, Arc::clone(&filters), events, has_callers);
    let mut vmm = Vmm::new(Box::new(machines), Monitor::default());

    let config = options.config.map(config).transpose()?;
    match (options.restore, config) {
        (Some(mut restore), config) => {
            restore.config = config.map(Box::new);
            vmm.restore(restore, descriptors::Received::default())?;
        }
        (None, Some(config)) => vmm.create(config)?,
        (None, None) => {}
    }
    let mut made = Made::default();
    vmm.listen(monitor(options.event_monitor, &mut made)?);
    let mut server = options.api_socket.map(|endpoint| server(endpoint, &mut made)).transpose()?;
    filters.confine(Role::Owner)?;
    if options.boot {
        vmm.boot()?;
    }
    let end = run(&mut vmm, &mut server, &mut signals).map_err(StartError::Run);
    vmm.delete();
    end
}

/// Lets all threads allocate from one arena: they seldom allocate, and each arena costs calls at a thread's start, and
/// pages.
#[allow(unsafe_code, reason = "there is no safe way to tell the allocator")]
fn one_arena() {
    // SAFETY: sets a number of the allocator's, while there is one thread.
    #[cfg(target_env = "gnu")]
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 1);
    }
}

/// Reads the guest's description.
fn config(from: ConfigFrom) -> Result<VmConfig, StartError> {
    let file = match from {
        ConfigFrom::Options(config) => return Ok(*config),
        ConfigFrom::Json(text) => return Ok(json::read(text.as_bytes())?),
        ConfigFrom::File(path) => File::open(&path).map_err(opening(&path))?,
        ConfigFrom::Fd(number) => take("--config-fd", number)?,
    };
    let mut text = Vec::new();
    let limit = BODY_BYTES as u64;
    file.take(limit)
        .read_to_end(&mut text)
        .map_err(|source| StartError::Open { what: "the guest's configuration can't be read".to_owned(), source })?;
    Ok(json::read(&text)?)
}

fn monitor(events: Option<Events>, made: &mut Made) -> Result<Monitor, StartError> {
    match events {
        None => Ok(Monitor::default()),
        Some(Events::Path(path)) => Ok(Monitor::default().with_file(File::create(&path).map_err(opening(&path))?)),
        Some(Events::Fd(number)) => {
            let file = fit(EVENT_MONITOR, number, || descriptors::output("fd", Some(number), None))?;
            Ok(Monitor::default().with_file(file))
        }
        Some(Events::Socket(path)) => {
            let socket = made.bind(&path)?;
            Monitor::default().with_socket(socket).map_err(opening(&path))
        }
        Some(Events::SocketFd(number)) => {
            let socket = fit(EVENT_MONITOR, number, || descriptors::listener("socket_fd", number))?;
            Monitor::default().with_socket(socket).map_err(opening(Path::new(EVENT_MONITOR)))
        }
    }
}

fn server(endpoint: Endpoint, made: &mut Made) -> Result<Server, StartError> {
    let (socket, name) = match endpoint {
        Endpoint::Path(path) => (made.bind(&path)?, path),
        Endpoint::Fd(number) => {
            (fit(API_SOCKET, number, || descriptors::listener("fd", number))?, PathBuf::from(API_SOCKET))
        }
    };
    Server::new(socket).map_err(opening(&name))
}

fn take(what: &'static str, number: Fd) -> Result<File, StartError> {
    descriptors::take(number).map(File::from).map_err(|source| StartError::Descriptor { what, source })
}

/// A copy of a descriptor in place of the descriptor itself, if it is fit.
fn fit<T>(what: &'static str, number: Fd, copy: impl FnOnce() -> Result<T, DescriptorError>) -> Result<T, StartError> {
    let copy = copy().map_err(|source| StartError::Descriptor { what, source })?;
    take(what, number)?;
    Ok(copy)
}

fn opening(path: &Path) -> impl FnOnce(io::Error) -> StartError {
    move |source| StartError::Open { what: format!("{} can't be opened", path.display()), source }
}

/// Sockets that were made, to be unmade at the end.
#[derive(Default)]
struct Made(Vec<MadeSocket>);

impl Made {
    fn bind(&mut self, path: &Path) -> Result<UnixListener, StartError> {
        let (listener, made) = MadeSocket::bind(path).map_err(opening(path))?;
        self.0.push(made);
        Ok(listener)
    }
}
