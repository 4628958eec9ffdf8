//! What a guest is, in words that fit every engine: no option names.

use std::collections::BTreeSet;
use std::os::fd::OwnedFd;

use crate::capabilities::{AcceleratorKind, PageSize};
use crate::passthrough::{self, Passthrough};
use crate::placement::{self, GuestCell, Placement};

/// Most vCPUs a description may have; an engine's own limit may be lower.
const MAX_VCPUS: u32 = 4096;

/// Most bytes of a virtio-blk serial (virtio 1.2, 5.2.6.1).
const SERIAL_BYTES: usize = 20;

/// Most queue pairs of a network card: all descriptors of a guest fit in one launch order.
const MAX_QUEUES: usize = 16;

/// Most bytes of a kernel command line on x86 (COMMAND_LINE_SIZE, arch/x86/include/asm/setup.h).
const COMMAND_LINE_BYTES: usize = 2047;

/// One guest: machine, disks, networks and what it boots. Owns the descriptors that the engine is handed.
#[derive(Debug)]
pub struct GuestConfig {
    /// Shown by the engine; letters, digits, `.`, `-`, `_` and `/`.
    pub name: String,
    /// The machine's UUID as the guest's firmware tables show it, in the usual 36 characters.
    pub uuid: String,
    /// Directory, in the engine's file system, for its sockets.
    pub runtime_dir: String,
    /// vCPUs.
    pub cpu: CpuTopology,
    /// RAM.
    pub memory: Memory,
    /// NUMA cells; none is one cell of all vCPUs and all memory, which may lie anywhere.
    pub cells: Vec<GuestCell>,
    /// Where the vCPUs run.
    pub placement: Placement,
    /// What is booted.
    pub boot: Boot,
    /// Disks, all virtio, told apart in the guest by serial.
    pub disks: Vec<Disk>,
    /// Network cards, all virtio, in the order in which the guest finds them.
    pub nics: Vec<Nic>,
    /// What runs the vCPUs.
    pub accelerator: Accelerator,
    /// Host devices in the guest's hands.
    pub passthrough: Option<Passthrough>,
}

/// vCPUs as the guest sees them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuTopology {
    /// Sockets.
    pub sockets: u32,
    /// Cores in each socket.
    pub cores: u32,
    /// Threads in each core.
    pub threads: u32,
}

impl CpuTopology {
    /// Number of vCPUs; saturates.
    #[must_use]
    pub fn vcpus(self) -> u32 {
        self.sockets.saturating_mul(self.cores).saturating_mul(self.threads)
    }
}

/// RAM of a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Memory {
    /// Size in bytes, a multiple of the page size.
    pub bytes: u64,
    /// The host pages that back it.
    pub pages: PageSize,
}

/// Direct boot of a Linux kernel.
#[derive(Debug)]
pub struct Boot {
    /// The kernel image. Opened once more by the engine, so its file must be readable by the engine's user.
    pub kernel: OwnedFd,
    /// The initramfs, likewise.
    pub initramfs: Option<OwnedFd>,
    /// The kernel's command line.
    pub command_line: String,
}

/// A disk.
#[derive(Debug)]
pub struct Disk {
    /// By which the guest finds it (`/dev/disk/by-id/virtio-SERIAL`): 1 to 20 letters, digits, `.`, `-` and `_`.
    pub serial: String,
    /// Where its data is, without a format of its own (raw).
    pub source: DiskSource,
    /// What holds the data.
    pub storage: Storage,
    /// Whether the guest may write.
    pub read_only: bool,
    /// Whether what the guest discards is given back to the storage.
    pub discard: bool,
    /// Use of the host's page cache.
    pub cache: Cache,
}

/// Where a disk's data is.
#[derive(Debug)]
pub enum DiskSource {
    /// An open file or block device, opened just as it is used: read-only or for both, and with `O_DIRECT` if and
    /// only if the cache is [`Cache::Direct`]. Engines compare.
    Fd(OwnedFd),
    /// An absolute path in the engine's file system.
    Path(String),
}

/// What holds a disk's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Storage {
    /// A regular file.
    File,
    /// A block device.
    BlockDevice,
}

/// Use of the host's page cache by a disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cache {
    /// Through it, with the guest's flushes honoured: what many guests read lies in memory once.
    Shared,
    /// Around it (`O_DIRECT`): for block devices and files on file systems that can.
    Direct,
}

/// A network card.
#[derive(Debug)]
pub struct Nic {
    /// One open descriptor for each queue pair of its tap, with `IFF_VNET_HDR`.
    pub taps: Vec<OwnedFd>,
    /// Open `/dev/vhost-net`, one for each queue pair, or none: the engine then moves the packets itself.
    pub vhosts: Vec<OwnedFd>,
    /// Its MAC address.
    pub mac: [u8; 6],
}

/// What runs the vCPUs.
#[derive(Debug)]
pub enum Accelerator {
    /// Hardware virtualization through this open `/dev/kvm`.
    Kvm(OwnedFd),
    /// Translation in software: any host, slow.
    Emulation,
}

impl Accelerator {
    /// Which one it is.
    #[must_use]
    pub fn kind(&self) -> AcceleratorKind {
        match self {
            Self::Kvm(_) => AcceleratorKind::Kvm,
            Self::Emulation => AcceleratorKind::Emulation,
        }
    }
}

/// Why a description is not one of a guest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Empty, too long, or with characters that have a meaning to an engine.
    #[error("{field}: {value:?} may have 1 to {max} letters, digits and {also:?}")]
    Text {
        /// Where.
        field: &'static str,
        /// What was there.
        value: String,
        /// Most bytes.
        max: usize,
        /// What else is allowed.
        also: &'static str,
    },
    /// Not a UUID.
    #[error("uuid: {0:?} is not a UUID")]
    Uuid(String),
    /// Not an absolute path, or one that ends early.
    #[error("{field}: {value:?} is not an absolute path")]
    Path {
        /// Where.
        field: &'static str,
        /// What was there.
        value: String,
    },
    /// No vCPU, or too many.
    #[error("cpu: {vcpus} vCPUs are asked for, from 1 to {max} are possible")]
    Vcpus {
        /// Asked for.
        vcpus: u32,
        /// The limit.
        max: u32,
    },
    /// No memory, or a part of a page.
    #[error("memory: {bytes} bytes are not a positive multiple of the page size, {page} bytes")]
    Memory {
        /// Asked for.
        bytes: u64,
        /// One page.
        page: u64,
    },
    /// Cut short by the kernel.
    #[error("boot: the kernel's command line has {0} bytes, at most {COMMAND_LINE_BYTES} are passed on")]
    CommandLine(usize),
    /// A command line the kernel would read differently.
    #[error("boot: the kernel's command line contains a control character")]
    CommandLineControl,
    /// Two disks that the guest could not tell apart.
    #[error("disks: serial {0:?} is used twice")]
    DuplicateSerial(String),
    /// More than the machine has slots for.
    #[error("{field}: {count} are asked for, at most {max} are possible")]
    TooMany {
        /// Where.
        field: &'static str,
        /// Asked for.
        count: usize,
        /// The limit.
        max: usize,
    },
    /// A card without a tap, or another number of vhost descriptors than of taps.
    #[error(
        "nics[{index}]: {taps} tap and {vhosts} vhost descriptors; 1 to {MAX_QUEUES} taps are needed, and as many vhost or none"
    )]
    Queues {
        /// Which card.
        index: usize,
        /// Taps given.
        taps: usize,
        /// vhost descriptors given.
        vhosts: usize,
    },
    /// Cells, or a placement, that are not this machine's.
    #[error("cells: {0}")]
    Cells(String),
    /// Not a host device, or one too often.
    #[error("devices: {name}: {why}")]
    Device {
        /// Which one.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Something this engine can't do; [`crate::choose`] would have said so.
    #[error("{field}: not possible with this engine")]
    Impossible {
        /// Where.
        field: &'static str,
    },
    /// A group address.
    #[error("nics[{0}]: the MAC address is a multicast one")]
    Multicast(usize),
}

impl GuestConfig {
    /// Whether this describes a guest at all. An engine's own limits come on top.
    ///
    /// # Errors
    /// The first reason why not.
    pub fn check(&self) -> Result<(), ConfigError> {
        text("name", &self.name, 200, "-._/")?;
        if !is_uuid(&self.uuid) {
            return Err(ConfigError::Uuid(self.uuid.clone()));
        }
        path("runtime_dir", &self.runtime_dir)?;
        let vcpus = self.cpu.vcpus();
        if !(1..=MAX_VCPUS).contains(&vcpus) {
            return Err(ConfigError::Vcpus { vcpus, max: MAX_VCPUS });
        }
        let Memory { bytes, pages } = self.memory;
        let page = pages.bytes();
        if bytes == 0 || bytes % page != 0 {
            return Err(ConfigError::Memory { bytes, page });
        }
        placement::check(&self.cells, &self.placement, vcpus, bytes, page)?;
        if let Some(passthrough) = &self.passthrough {
            passthrough::check(&passthrough.devices)?;
        }
        let command_line = &self.boot.command_line;
        if command_line.len() > COMMAND_LINE_BYTES {
            return Err(ConfigError::CommandLine(command_line.len()));
        }
        if command_line.contains(|c: char| c.is_control()) {
            return Err(ConfigError::CommandLineControl);
        }
        let mut serials = BTreeSet::new();
        for disk in &self.disks {
            text("disks.serial", &disk.serial, SERIAL_BYTES, "-._")?;
            if !serials.insert(&disk.serial) {
                return Err(ConfigError::DuplicateSerial(disk.serial.clone()));
            }
            if let DiskSource::Path(source) = &disk.source {
                path("disks.source", source)?;
            }
        }
        for (index, nic) in self.nics.iter().enumerate() {
            let (taps, vhosts) = (nic.taps.len(), nic.vhosts.len());
            if !(1..=MAX_QUEUES).contains(&taps) || (vhosts != 0 && vhosts != taps) {
                return Err(ConfigError::Queues { index, taps, vhosts });
            }
            if nic.mac[0] & 1 != 0 {
                return Err(ConfigError::Multicast(index));
            }
        }
        Ok(())
    }
}

pub(crate) fn text(field: &'static str, value: &str, max: usize, also: &'static str) -> Result<(), ConfigError> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || also.contains(c);
    if !value.is_empty() && value.len() <= max && value.chars().all(allowed) {
        Ok(())
    } else {
        Err(ConfigError::Text { field, value: value.to_owned(), max, also })
    }
}

fn path(field: &'static str, value: &str) -> Result<(), ConfigError> {
    if value.starts_with('/') && !value.contains(|c: char| c.is_control()) {
        Ok(())
    } else {
        Err(ConfigError::Path { field, value: value.to_owned() })
    }
}

fn is_uuid(text: &str) -> bool {
    let groups: Vec<&str> = text.split('-').collect();
    groups.iter().map(|group| group.len()).eq([8, 4, 4, 4, 12])
        && groups.iter().all(|group| group.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::fs::File;

    pub(crate) fn null() -> OwnedFd {
        File::open("/dev/null").unwrap().into()
    }

    /// A guest with one of everything.
    pub(crate) fn guest() -> GuestConfig {
        let disk = |serial: &str, source, read_only| Disk {
            serial: serial.into(),
            source,
            storage: Storage::File,
            read_only,
            discard: !read_only,
            cache: if read_only { Cache::Shared } else { Cache::Direct },
        };
        GuestConfig {
            name: "default/solver-3".into(),
            uuid: "6f1c2f0e-1de1-4b5a-9d3c-0a2b4c6d8e0f".into(),
            runtime_dir: "/run/vse".into(),
            cpu: CpuTopology { sockets: 1, cores: 2, threads: 2 },
            memory: Memory { bytes: 512 << 20, pages: PageSize::Default },
            cells: vec![],
            placement: Placement::default(),
            boot: Boot {
                kernel: null(),
                initramfs: Some(null()),
                command_line: "console=ttyS0 vse.root=diskless".into(),
            },
            disks: vec![
                disk("vse-system", DiskSource::Fd(null()), true),
                disk("scratch", DiskSource::Path("/vse/volumes/scratch,1/disk.img".into()), false),
            ],
            nics: vec![Nic { taps: vec![null()], vhosts: vec![], mac: [0x02, 0, 0, 0, 0, 1] }],
            accelerator: Accelerator::Emulation,
            passthrough: None,
        }
    }

    /// The same with dedicated CPUs on two host cells that the guest sees, in huge pages.
    pub(crate) fn two_cells() -> GuestConfig {
        let mut guest = guest();
        guest.accelerator = Accelerator::Kvm(null());
        guest.cpu = CpuTopology { sockets: 2, cores: 1, threads: 2 };
        guest.memory = Memory { bytes: 2 << 30, pages: PageSize::Huge2M };
        let cell = |vcpus: [u32; 2], distances: [u8; 2], host_cell| GuestCell {
            vcpus: vcpus.into(),
            bytes: 1 << 30,
            distances: distances.into(),
            host_cells: vec![host_cell],
        };
        guest.cells = vec![cell([0, 1], [10, 20], 0), cell([2, 3], [20, 10], 1)];
        guest.placement = Placement { pinned: vec![2, 10, 4, 12] };
        guest
    }

    fn refused(change: impl FnOnce(&mut GuestConfig)) -> ConfigError {
        let mut config = guest();
        change(&mut config);
        config.check().unwrap_err()
    }

    #[test]
    fn one_of_everything_is_a_guest() {
        assert_eq!(guest().check(), Ok(()));
    }

    #[test]
    fn every_limit_is_held() {
        assert!(matches!(refused(|g| g.name = "a,b".into()), ConfigError::Text { field: "name", .. }));
        assert!(matches!(refused(|g| g.uuid = "6f1c2f0e".into()), ConfigError::Uuid(_)));
        assert!(matches!(refused(|g| g.cpu.sockets = 0), ConfigError::Vcpus { vcpus: 0, .. }));
        assert!(matches!(refused(|g| g.cpu.cores = u32::MAX), ConfigError::Vcpus { .. }));
        assert!(matches!(refused(|g| g.memory.bytes = 4097), ConfigError::Memory { page: 4096, .. }));
        assert!(matches!(refused(|g| g.boot.command_line = "a\nb".into()), ConfigError::CommandLineControl));
        assert!(matches!(refused(|g| g.boot.command_line = "a".repeat(2048)), ConfigError::CommandLine(2048)));
        assert!(matches!(refused(|g| g.disks[1].serial = "vse-system".into()), ConfigError::DuplicateSerial(_)));
        assert!(matches!(refused(|g| g.disks[0].serial = "x".repeat(21)), ConfigError::Text { .. }));
        assert!(matches!(refused(|g| g.nics[0].vhosts = vec![null(), null()]), ConfigError::Queues { .. }));
        assert!(matches!(refused(|g| g.nics[0].taps.clear()), ConfigError::Queues { taps: 0, .. }));
        assert!(matches!(refused(|g| g.nics[0].mac[0] = 1), ConfigError::Multicast(0)));
    }
}
