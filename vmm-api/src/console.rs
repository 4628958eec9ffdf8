//! Serial port and consoles.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::Fd;
use crate::unsupported::Unsupported;

/// What is on the host's side of a console.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ConsoleMode {
    /// There is no such device.
    Off,
    /// Nothing: what the guest writes is lost.
    Null,
    /// The VMM's standard input and output.
    Tty,
    /// A file; nothing is read.
    File,
    /// A pseudo-terminal. Not supported.
    Pty,
    /// A listening unix socket. Not supported.
    Socket,
}

/// Serial port COM1 (16550A).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct SerialConfig {
    /// What is on the host's side.
    pub mode: ConsoleMode,
    /// The file, for [`ConsoleMode::File`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Ours: the same, open for writing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd: Option<Fd>,
    /// The socket's path.
    #[serde(skip_serializing)]
    pub socket: Unsupported,
}

impl Default for SerialConfig {
    fn default() -> Self {
        Self { mode: ConsoleMode::Null, file: None, fd: None, socket: Unsupported }
    }
}

/// virtio console.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct ConsoleConfig {
    /// What is on the host's side.
    pub mode: ConsoleMode,
    /// The file, for [`ConsoleMode::File`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub file: Option<PathBuf>,
    /// Ours: the same, open for writing.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd: Option<Fd>,
    /// Name of the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Device number on the PCI bus.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
    /// PCI segment.
    #[serde(skip_serializing)]
    pub pci_segment: Unsupported,
    /// Behind a virtual IOMMU.
    #[serde(skip_serializing)]
    pub iommu: Unsupported,
    /// The socket's path.
    #[serde(skip_serializing)]
    pub socket: Unsupported,
}

impl Default for ConsoleConfig {
    fn default() -> Self {
        Self {
            mode: ConsoleMode::Tty,
            file: None,
            fd: None,
            id: None,
            pci_device_id: None,
            pci_segment: Unsupported,
            iommu: Unsupported,
            socket: Unsupported,
        }
    }
}

/// The debug console's port: only that there is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DebugConsoleConfig {
    /// [`ConsoleMode::Off`].
    pub mode: ConsoleMode,
    /// Its port.
    pub iobase: Option<u16>,
    /// Its file.
    #[serde(skip_serializing)]
    pub file: Unsupported,
    /// Its socket.
    #[serde(skip_serializing)]
    pub socket: Unsupported,
}

impl Default for DebugConsoleConfig {
    fn default() -> Self {
        Self { mode: ConsoleMode::Off, iobase: None, file: Unsupported, socket: Unsupported }
    }
}
