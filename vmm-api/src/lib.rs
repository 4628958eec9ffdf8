//! What the VMM's REST API carries: the configuration of a guest, requests and answers.
//!
//! Paths, verbs, JSON fields and status codes are those of Cloud Hypervisor's published OpenAPI description (REST API
//! version 0.3), so that its client can drive this VMM; what is added beside them says "Ours". Unknown fields are
//! refused by name, and so is whatever asks for a feature that isn't there ([`unsupported`]). Pure: reads no file,
//! opens nothing.
//!
//! ```text
//!   JSON ── json::read ──► VmConfig ── validate ──► VmConfig with every name filled in
//! ```
#![forbid(unsafe_code)]

pub mod config;
pub mod console;
pub mod cpus;
pub mod devices;
pub mod hot_plug;
pub mod json;
pub mod mac;
pub mod memory;
pub mod messages;
pub mod portable;
pub mod unsupported;
pub mod validate;

pub use config::{Fd, PayloadConfig, PlatformConfig, VmConfig};
pub use console::{ConsoleConfig, ConsoleMode, SerialConfig};
pub use cpus::{CpuAffinity, CpuTopology, CpusConfig};
pub use devices::{AgentConfig, DeviceConfig, DiskConfig, FsConfig, NetConfig, PmemConfig, RngConfig, VsockConfig};
pub use hot_plug::NewDevice;
pub use mac::MacAddr;
pub use memory::{MemoryConfig, MemoryZoneConfig, NumaConfig, NumaDistance};
pub use messages::{
    MemoryRestoreMode, MemoryZoneUpdate, PciDeviceInfo, RestoreConfig, RestoredNetConfig, SnapshotPlace, VmCounters,
    VmInfo, VmRemoveDevice, VmResize, VmSnapshotConfig, VmState, VmmPingResponse,
};
pub use validate::{Invalid, Problem, Refused};
