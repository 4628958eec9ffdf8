//! Devices on the PCI bus.
//!
//! Each has `id`, its name for hot removal, counters and snapshots, and `pci_device_id`, its device number on bus 0;
//! both are chosen where they are left out.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::config::Fd;
use crate::cpus::is_false;
use crate::json::list;
use crate::mac::MacAddr;
use crate::unsupported::Unsupported;

/// A block device: a raw image, by path or open descriptor.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DiskConfig {
    /// Name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Device number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
    /// File or block device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<PathBuf>,
    /// Ours: the same, open; for writing too unless `readonly`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd: Option<Fd>,
    /// The guest can't write.
    pub readonly: bool,
    /// Around the host's page cache (`O_DIRECT`).
    pub direct: bool,
    /// Queues.
    pub num_queues: u16,
    /// Entries of each, a power of two.
    pub queue_size: u16,
    /// What the guest sees as its serial number, 20 bytes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// Not by io_uring, even where it is there.
    #[serde(skip_serializing_if = "is_false")]
    pub disable_io_uring: bool,
    /// Ours: the guest may discard blocks and write zeroes; without it, as `sparse` says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub discard: Option<bool>,
    /// Cloud Hypervisor's name for `discard`.
    pub sparse: bool,
    /// Not by Linux AIO, which serves where io_uring isn't there and the disk is `direct`.
    #[serde(skip_serializing_if = "is_false")]
    pub disable_aio: bool,
    /// Always raw; what is in an image never decides on its format.
    #[serde(skip_serializing)]
    pub image_type: ImageType,
    /// How an image would be locked.
    #[serde(skip_serializing)]
    pub lock_granularity: LockGranularity,
    /// Images behind images.
    #[serde(skip_serializing)]
    pub backing_files: Unsupported,
    /// PCI segment.
    #[serde(skip_serializing)]
    pub pci_segment: Unsupported,
    /// Behind a virtual IOMMU.
    #[serde(skip_serializing)]
    pub iommu: Unsupported,
    /// Served by another process.
    #[serde(skip_serializing)]
    pub vhost_user: Unsupported,
    /// That process' socket.
    #[serde(skip_serializing)]
    pub vhost_socket: Unsupported,
    /// Limits shared with others.
    #[serde(skip_serializing)]
    pub rate_limit_group: Unsupported,
    /// Limits.
    #[serde(skip_serializing)]
    pub rate_limiter_config: Unsupported,
    /// Host CPUs of each queue.
    #[serde(skip_serializing)]
    pub queue_affinity: Unsupported,
}

impl DiskConfig {
    /// Whether the guest may discard blocks and write zeroes.
    #[must_use]
    pub fn may_discard(&self) -> bool {
        !self.readonly && self.discard.unwrap_or(self.sparse)
    }
}

impl Default for DiskConfig {
    fn default() -> Self {
        Self {
            id: None,
            pci_device_id: None,
            path: None,
            fd: None,
            readonly: false,
            direct: false,
            num_queues: 1,
            queue_size: 128,
            serial: None,
            disable_io_uring: false,
            discard: None,
            sparse: true,
            disable_aio: false,
            image_type: ImageType::Unknown,
            lock_granularity: LockGranularity::ByteRange,
            backing_files: Unsupported,
            pci_segment: Unsupported,
            iommu: Unsupported,
            vhost_user: Unsupported,
            vhost_socket: Unsupported,
            rate_limit_group: Unsupported,
            rate_limiter_config: Unsupported,
            queue_affinity: Unsupported,
        }
    }
}

/// Format of an image. [`ImageType::Unknown`] is Cloud Hypervisor's default and raw here.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum ImageType {
    /// Raw.
    Raw,
    /// Not said: raw.
    #[default]
    Unknown,
}

/// How much of an image would be locked; images aren't.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum LockGranularity {
    /// Its bytes.
    #[default]
    ByteRange,
    /// All of it.
    Full,
}

/// A network device: a tap, by name or open descriptors, one for each pair of queues.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct NetConfig {
    /// Name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Device number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
    /// Name of a tap interface. One that isn't there is made, where the VMM may do that, and goes with the device.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tap: Option<String>,
    /// Open taps (`IFF_VNET_HDR`), one for each pair of queues.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub fds: Vec<Fd>,
    /// Ours: open `/dev/vhost-net`, one for each pair of queues; without it the VMM moves packets itself.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub vhost_fds: Vec<Fd>,
    /// The guest's address; without it a random one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mac: Option<MacAddr>,
    /// Largest packet that the guest is told of.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mtu: Option<u16>,
    /// Queues: twice the number of pairs.
    pub num_queues: u16,
    /// Entries of each, a power of two.
    pub queue_size: u16,
    /// Segmentation of TCP.
    pub offload_tso: bool,
    /// Segmentation of UDP.
    pub offload_ufo: bool,
    /// Checksums.
    pub offload_csum: bool,
    /// Who connects to whom.
    #[serde(skip_serializing)]
    pub vhost_mode: VhostMode,
    /// Served by another process.
    #[serde(skip_serializing)]
    pub vhost_user: Unsupported,
    /// That process' socket.
    #[serde(skip_serializing)]
    pub vhost_socket: Unsupported,
    /// The host's address of a new tap.
    #[serde(skip_serializing)]
    pub ip: Unsupported,
    /// Its netmask.
    #[serde(skip_serializing)]
    pub mask: Unsupported,
    /// The host's side's address.
    #[serde(skip_serializing)]
    pub host_mac: Unsupported,
    /// PCI segment.
    #[serde(skip_serializing)]
    pub pci_segment: Unsupported,
    /// Behind a virtual IOMMU.
    #[serde(skip_serializing)]
    pub iommu: Unsupported,
    /// Limits.
    #[serde(skip_serializing)]
    pub rate_limiter_config: Unsupported,
}

impl Default for NetConfig {
    fn default() -> Self {
        Self {
            id: None,
            pci_device_id: None,
            tap: None,
            fds: Vec::new(),
            vhost_fds: Vec::new(),
            mac: None,
            mtu: None,
            num_queues: 2,
            queue_size: 256,
            offload_tso: true,
            offload_ufo: true,
            offload_csum: true,
            vhost_mode: VhostMode::Client,
            vhost_user: Unsupported,
            vhost_socket: Unsupported,
            ip: Unsupported,
            mask: Unsupported,
            host_mac: Unsupported,
            pci_segment: Unsupported,
            iommu: Unsupported,
            rate_limiter_config: Unsupported,
        }
    }
}

/// Which side of a vhost-user socket connects.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum VhostMode {
    /// The VMM.
    #[default]
    Client,
    /// The other process.
    Server,
}

/// Random numbers. They come from the host's `getrandom`, whatever `src` says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct RngConfig {
    /// Name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Device number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
    /// `/dev/urandom` or `/dev/random`; empty for no such device.
    pub src: PathBuf,
    /// PCI segment.
    #[serde(skip_serializing)]
    pub pci_segment: Unsupported,
    /// Behind a virtual IOMMU.
    #[serde(skip_serializing)]
    pub iommu: Unsupported,
}

impl Default for RngConfig {
    fn default() -> Self {
        Self {
            id: None,
            pci_device_id: None,
            src: PathBuf::from("/dev/urandom"),
            pci_segment: Unsupported,
            iommu: Unsupported,
        }
    }
}

/// A file system served by a vhost-user process (virtiofsd). Guest RAM must be shared.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct FsConfig {
    /// Name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Device number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
    /// What the guest mounts it by.
    pub tag: String,
    /// The socket that the process listens at; empty with `socket_fd`.
    pub socket: PathBuf,
    /// Ours: the connected socket.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket_fd: Option<Fd>,
    /// Request queues, beside the one of high priority.
    pub num_queues: u16,
    /// Entries of each, a power of two.
    pub queue_size: u16,
    /// PCI segment.
    #[serde(skip_serializing)]
    pub pci_segment: Unsupported,
    /// Behind a virtual IOMMU.
    #[serde(skip_serializing)]
    pub iommu: Unsupported,
}

impl Default for FsConfig {
    fn default() -> Self {
        Self {
            id: None,
            pci_device_id: None,
            tag: String::new(),
            socket: PathBuf::new(),
            socket_fd: None,
            num_queues: 1,
            queue_size: 1024,
            pci_segment: Unsupported,
            iommu: Unsupported,
        }
    }
}

/// A file that appears as memory in the guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PmemConfig {
    /// Name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Device number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
    /// The file; empty with `fd`.
    pub file: PathBuf,
    /// Ours: the same, open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fd: Option<Fd>,
    /// Bytes, a multiple of 2 MiB; without it the file's size, rounded up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u64>,
    /// What the guest writes stays private to it. The file is then opened for reading only.
    pub discard_writes: bool,
    /// PCI segment.
    #[serde(skip_serializing)]
    pub pci_segment: Unsupported,
    /// Behind a virtual IOMMU.
    #[serde(skip_serializing)]
    pub iommu: Unsupported,
}

/// A host PCI function bound to `vfio-pci`: by its path, or by address and its group's open descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct DeviceConfig {
    /// Name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Device number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
    /// Its directory in `/sys/bus/pci/devices`, an absolute path; empty with `vfio_group_fd`.
    pub path: PathBuf,
    /// Ours: open `/dev/vfio/GROUP`. Functions of one group name the same descriptor.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vfio_group_fd: Option<Fd>,
    /// Ours: its address, for example `0000:65:00.1`, with `vfio_group_fd`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_address: Option<String>,
    /// Its VFIO character device, open.
    #[serde(skip_serializing)]
    pub fd: Unsupported,
    /// PCI segment.
    #[serde(skip_serializing)]
    pub pci_segment: Unsupported,
    /// Behind a virtual IOMMU.
    #[serde(skip_serializing)]
    pub iommu: Unsupported,
    /// Which GPUs may reach each other.
    #[serde(skip_serializing)]
    pub x_nv_gpudirect_clique: Unsupported,
    /// BARs that stay trapped.
    #[serde(skip_serializing)]
    pub x_exclude_mmap_bars: Unsupported,
}

/// Sockets between host and guest.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VsockConfig {
    /// Name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// Device number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pci_device_id: Option<u8>,
    /// The guest's context ID, from 3 on.
    pub cid: u32,
    /// Unix socket that host programs connect to (`CONNECT port`); the guest's connections to port N go to `socket_N`.
    /// Empty with `vhost_fd`.
    pub socket: PathBuf,
    /// Ours: where host programs connect to, bound and listening. The guest's connections still go to `socket_N`, and
    /// without `socket` nowhere.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket_fd: Option<Fd>,
    /// Open `/dev/vhost-vsock`: the kernel moves the packets, and host programs use `AF_VSOCK`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vhost_fd: Option<Fd>,
    /// PCI segment.
    #[serde(skip_serializing)]
    pub pci_segment: Unsupported,
    /// Behind a virtual IOMMU.
    #[serde(skip_serializing)]
    pub iommu: Unsupported,
}

/// The guest agent's port (virtio console `org.qemu.guest_agent.0`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct AgentConfig {
    /// Unix socket that is made, for one client at a time; empty with `socket_fd`.
    pub socket: PathBuf,
    /// Ours: the same, bound and listening.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub socket_fd: Option<Fd>,
}
