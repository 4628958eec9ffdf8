//! virtio devices out of their configuration.

use std::fs::File;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;

use vse_vmm_api::{ConsoleConfig, ConsoleMode, DiskConfig, Fd, FsConfig, NetConfig, PmemConfig, VmConfig, VsockConfig};

use super::descriptors::{self, DescriptorError};
use crate::made_socket::MadeSocket;
use crate::memory::GuestMemory;
use crate::seccomp::{Filters, Role};
use crate::virtio::VirtioDevice;
use crate::virtio::block::{Block, BlockOptions, Kinds};
use crate::virtio::console::{AGENT, Console, PortOptions};
use crate::virtio::fs::Fs;
use crate::virtio::net::{Net, NetOptions, Tap};
use crate::virtio::pmem::{Pmem, PmemMode};
use crate::virtio::rng::Rng;
use crate::virtio::vsock::{Sockets, Vsock, VsockBackend};

pub(super) type AnyError = Box<dyn std::error::Error + Send + Sync>;
type Made = Result<Box<dyn VirtioDevice>, AnyError>;

pub(super) fn disk(config: &DiskConfig, filters: &Filters) -> Made {
    let file = descriptors::file(config.fd, config.path.as_deref(), !config.readonly)?;
    let options = BlockOptions {
        read_only: config.readonly,
        direct: config.direct,
        discard: config.may_discard(),
        kinds: Kinds { io_uring: !config.disable_io_uring, aio: !config.disable_aio },
        serial: config.serial.clone().unwrap_or_default(),
        queues: config.num_queues,
        queue_size: config.queue_size,
    };
    Ok(Box::new(Block::new(file, &options, filters.of(Role::Block)?)?))
}

pub(super) fn net(config: &NetConfig, filters: &Filters) -> Made {
    let taps = match &config.tap {
        Some(name) if config.fds.is_empty() => Tap::open(name, (config.num_queues / 2).max(1))?,
        _ => files(&config.fds)?.into_iter().map(Tap::new).collect::<io::Result<_>>()?,
    };
    let options = NetOptions {
        mac: match config.mac {
            Some(mac) => mac.0,
            None => random_mac()?,
        },
        mtu: config.mtu,
        queue_size: config.queue_size,
        offload_tcp: config.offload_tso,
        offload_udp: config.offload_ufo,
        offload_checksums: config.offload_csum,
    };
    Ok(Box::new(Net::new(taps, files(&config.vhost_fds)?, &options, filters.of(Role::Net)?)?))
}

fn files(numbers: &[i32]) -> Result<Vec<File>, DescriptorError> {
    numbers.iter().map(|number| descriptors::copy(*number).map(File::from)).collect()
}

/// An address that is nobody's: locally administered, of one interface.
fn random_mac() -> io::Result<[u8; 6]> {
    let mut mac = [0; 6];
    rustix::rand::getrandom(&mut mac, rustix::rand::GetRandomFlags::empty())?;
    mac[0] = mac[0] & 0xFC | 0x02;
    Ok(mac)
}

pub(super) fn rng(filters: &Filters) -> Made {
    Ok(Box::new(Rng::new(filters.of(Role::Rng)?)?))
}

/// Where a device listens.
#[derive(Debug, Clone, Copy)]
pub(super) enum Socket<'a> {
    /// At a unix socket to be made.
    Made(&'a Path),
    /// At the open one of a field.
    Given(&'static str, Fd),
}

impl Socket<'_> {
    /// Makes or copies it. One that was made is there for as long as its second part.
    pub fn listen(self) -> Result<(UnixListener, Option<MadeSocket>), AnyError> {
        match self {
            Self::Made(path) => {
                let (listener, made) = MadeSocket::bind(path).map_err(opening(path))?;
                Ok((listener, Some(made)))
            }
            Self::Given(field, number) => Ok((descriptors::listener(field, number)?, None)),
        }
    }
}

/// The first port is the terminal, if there is one, the next the agent's, at `listener`. `watcher` hears whether the
/// agent is there.
pub(super) fn console(
    config: &VmConfig,
    listener: Option<UnixListener>,
    watcher: Arc<dyn Fn(bool) + Send + Sync>,
    filters: &Filters,
) -> Made {
    let mut ports = Vec::new();
    ports.extend(terminal(&config.console)?);
    if let Some(listener) = listener {
        ports.push(PortOptions::named(AGENT, listener, Some(watcher))?);
    }
    Ok(Box::new(Console::new(ports, filters.of(Role::Console)?)?))
}

fn terminal(config: &ConsoleConfig) -> Result<Option<PortOptions>, AnyError> {
    use std::os::fd::AsFd;
    Ok(match config.mode {
        ConsoleMode::Tty => {
            let input = io::stdin().as_fd().try_clone_to_owned()?;
            let output = io::stdout().as_fd().try_clone_to_owned()?;
            Some(PortOptions::console(Some(input.into()), output.into()))
        }
        ConsoleMode::File => {
            let file = descriptors::output("console.fd", config.fd, config.file.as_deref())?;
            Some(PortOptions::console(None, file))
        }
        ConsoleMode::Null => Some(PortOptions::console(None, File::options().write(true).open("/dev/null")?)),
        _ => None,
    })
}

/// A file system that a process of the host's serves; that process maps the guest's RAM.
pub(super) fn fs(config: &FsConfig, memory: &GuestMemory, filters: &Filters) -> Made {
    if !crate::virtio::vhost::is_shared(memory) {
        return Err("a file system of another process needs shared memory (memory.shared)".into());
    }
    let server = match config.socket_fd {
        Some(number) => UnixStream::from(descriptors::take(number)?),
        None => UnixStream::connect(&config.socket).map_err(opening(&config.socket))?,
    };
    Ok(Box::new(Fs::new(server, &config.tag, config.num_queues, config.queue_size, filters.of(Role::Fs)?)?))
}

/// A file as memory. What a guest writes to one whose writes are discarded would take memory without bound, so that it
/// can't write to it.
pub(super) fn pmem(config: &PmemConfig, filters: &Filters) -> Result<Pmem, AnyError> {
    let mode = if config.discard_writes { PmemMode::ReadOnly } else { PmemMode::Shared };
    let file = descriptors::file(config.fd, Some(&config.file), mode != PmemMode::ReadOnly)?;
    Ok(Pmem::new(file, mode, config.size, filters.of(Role::Pmem)?)?)
}

/// Sockets between host and guest, by this process, where host programs connect to `listener`, or by the kernel.
pub(super) fn vsock(config: &VsockConfig, listener: Option<UnixListener>, filters: &Filters) -> Made {
    let backend = match (config.vhost_fd, listener) {
        (Some(number), _) => VsockBackend::Kernel(descriptors::copy(number)?.into()),
        (None, Some(listener)) => {
            let path = (!config.socket.as_os_str().is_empty()).then(|| config.socket.clone());
            VsockBackend::Sockets(Sockets { listener, path })
        }
        (None, None) => return Err(DescriptorError::Neither.into()),
    };
    Ok(Box::new(Vsock::new(backend, config.cid, filters.of(Role::Vsock)?)?))
}

fn opening(path: &Path) -> impl FnOnce(io::Error) -> DescriptorError {
    move |source| DescriptorError::Open { path: path.display().to_string(), source }
}
