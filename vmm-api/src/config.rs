//! A guest, as a whole.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::console::{ConsoleConfig, DebugConsoleConfig, SerialConfig};
use crate::cpus::CpusConfig;
use crate::devices::{AgentConfig, DeviceConfig, DiskConfig, FsConfig, NetConfig, PmemConfig, RngConfig, VsockConfig};
use crate::json::list;
use crate::memory::{MemoryConfig, NumaConfig};
use crate::unsupported::{Only, Unsupported};

/// An open file descriptor by its number, in the VMM's process.
pub type Fd = i32;

/// A guest: all that there is to know before it is created.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VmConfig {
    /// vCPUs.
    pub cpus: CpusConfig,
    /// RAM.
    pub memory: MemoryConfig,
    /// What it boots.
    pub payload: PayloadConfig,
    /// Block devices.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<DiskConfig>,
    /// Network devices.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub net: Vec<NetConfig>,
    /// Random numbers.
    pub rng: RngConfig,
    /// File systems served by vhost-user processes.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub fs: Vec<FsConfig>,
    /// Files that appear as memory.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub pmem: Vec<PmemConfig>,
    /// Serial port COM1.
    pub serial: SerialConfig,
    /// virtio console.
    pub console: ConsoleConfig,
    /// Host PCI functions.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceConfig>,
    /// Sockets between host and guest.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vsock: Option<VsockConfig>,
    /// The device by which a guest's kernel says that it has panicked.
    pub pvpanic: bool,
    /// Cells.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub numa: Vec<NumaConfig>,
    /// What firmware tables say of the machine.
    pub platform: PlatformConfig,

    /// Ours: the guest agent's port.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<AgentConfig>,
    /// Ours: open `/dev/kvm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kvm_fd: Option<Fd>,
    /// Ours: open `/dev/vfio/vfio`, without a group or an IOMMU type set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vfio_container_fd: Option<Fd>,

    /// The debug console's port.
    #[serde(skip_serializing)]
    pub debug_console: DebugConsoleConfig,
    /// Balloon.
    #[serde(skip_serializing)]
    pub balloon: Unsupported,
    /// Limits that several disks share.
    #[serde(skip_serializing)]
    pub rate_limit_groups: Unsupported,
    /// Any device behind vhost-user.
    #[serde(skip_serializing)]
    pub generic_vhost_user: Unsupported,
    /// PCI devices served by other processes (vfio-user).
    #[serde(skip_serializing)]
    pub user_devices: Unsupported,
    /// vDPA.
    #[serde(skip_serializing)]
    pub vdpa: Unsupported,
    /// A virtual IOMMU.
    #[serde(skip_serializing)]
    pub iommu: Unsupported,
    /// Watchdog.
    #[serde(skip_serializing)]
    pub watchdog: Unsupported,
    /// virtio clock.
    #[serde(skip_serializing)]
    pub rtc: Unsupported,
    /// Weights of PCI segments.
    #[serde(skip_serializing)]
    pub pci_segments: Unsupported,
    /// TPM.
    #[serde(skip_serializing)]
    pub tpm: Unsupported,
    /// Shared memory between guests.
    #[serde(skip_serializing)]
    pub ivshmem: Unsupported,
    /// A debugger's stub.
    #[serde(skip_serializing)]
    pub gdb: Unsupported,
    /// Landlock.
    #[serde(skip_serializing)]
    pub landlock_enable: Unsupported,
    /// Landlock's rules.
    #[serde(skip_serializing)]
    pub landlock_rules: Unsupported,
}

/// What a guest boots: a kernel, by path or open descriptor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PayloadConfig {
    /// bzImage, or ELF with a PVH note.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel: Option<PathBuf>,
    /// Ours: the same, open for reading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kernel_fd: Option<Fd>,
    /// Initial RAM file system.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initramfs: Option<PathBuf>,
    /// Ours: the same, open for reading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initramfs_fd: Option<Fd>,
    /// The kernel's command line.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cmdline: Option<String>,
    /// Firmware in place of a kernel.
    #[serde(skip_serializing)]
    pub firmware: Unsupported,
    /// IGVM file.
    #[serde(skip_serializing)]
    pub igvm: Unsupported,
    /// Data of confidential guests.
    #[serde(skip_serializing)]
    pub host_data: Unsupported,
    /// QEMU's firmware configuration device.
    #[serde(skip_serializing)]
    pub fw_cfg_config: Unsupported,
}

impl PayloadConfig {
    /// Whether there is a kernel, one way or the other. A guest that goes on from a snapshot may have none.
    #[must_use]
    pub fn has_kernel(&self) -> bool {
        self.kernel.is_some() || self.kernel_fd.is_some()
    }
}

/// What firmware tables (SMBIOS) say of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct PlatformConfig {
    /// Serial number.
    #[serde(alias = "serial_number", skip_serializing_if = "Option::is_none")]
    pub system_serial_number: Option<String>,
    /// UUID.
    #[serde(alias = "uuid", skip_serializing_if = "Option::is_none")]
    pub system_uuid: Option<String>,
    /// Strings for whoever reads them in the guest (cloud-init does).
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub oem_strings: Vec<String>,
    /// Manufacturer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_manufacturer: Option<String>,
    /// Product name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_product_name: Option<String>,
    /// Version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_version: Option<String>,
    /// Family.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_family: Option<String>,
    /// SKU number.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_sku_number: Option<String>,
    /// The chassis' asset tag.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub chassis_asset_tag: Option<String>,
    /// Whether host PCI functions may reach each other's memory. They reach RAM only, whatever it says: `true` is the
    /// published default, which clients send without meaning it.
    #[serde(skip_serializing)]
    pub vfio_p2p_dma: bool,
    /// PCI segments: one.
    #[serde(skip_serializing)]
    pub num_pci_segments: Only<1>,
    /// Segments behind a virtual IOMMU.
    #[serde(skip_serializing)]
    pub iommu_segments: Unsupported,
    /// The virtual IOMMU's address width.
    #[serde(skip_serializing)]
    pub iommu_address_width_bits: Only<64>,
    /// Confidential guests of Intel's.
    #[serde(skip_serializing)]
    pub tdx: Unsupported,
    /// Confidential guests of AMD's.
    #[serde(skip_serializing)]
    pub sev_snp: Unsupported,
    /// VFIO by iommufd.
    #[serde(skip_serializing)]
    pub iommufd: Unsupported,
    /// The same, open.
    #[serde(skip_serializing)]
    pub iommufd_fd: Unsupported,
}
