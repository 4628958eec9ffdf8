//! RAM, and the cells it belongs to.

use serde::{Deserialize, Serialize};

use crate::cpus::is_false;
use crate::json::list;
use crate::unsupported::Unsupported;

/// The guest's RAM: either `size`, or `zones`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryConfig {
    /// Bytes; zero when there are zones.
    pub size: u64,
    /// Shared with other processes: a memfd, which vhost-user back-ends need.
    pub shared: bool,
    /// From the host's huge pages.
    pub hugepages: bool,
    /// Bytes of a huge page; without it the host's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugepage_size: Option<u64>,
    /// Allocated before the guest starts.
    pub prefault: bool,
    /// Swap is reserved for it when it is mapped.
    pub reserve: bool,
    /// The host may back it with transparent huge pages.
    pub thp: bool,
    /// Parts of RAM, each with its own pages and host cell.
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub zones: Vec<MemoryZoneConfig>,
    /// Merging of like pages (KSM).
    #[serde(skip_serializing)]
    pub mergeable: Unsupported,
    /// How memory would be added.
    #[serde(skip_serializing)]
    pub hotplug_method: HotplugMethod,
    /// How much memory could be added.
    #[serde(skip_serializing)]
    pub hotplug_size: Unsupported,
    /// How much memory was added.
    #[serde(skip_serializing)]
    pub hotplugged_size: Unsupported,
}

impl Default for MemoryConfig {
    fn default() -> Self {
        Self {
            size: 512 << 20,
            shared: false,
            hugepages: false,
            hugepage_size: None,
            prefault: false,
            reserve: false,
            thp: true,
            zones: Vec::new(),
            mergeable: Unsupported,
            hotplug_method: HotplugMethod::Acpi,
            hotplug_size: Unsupported,
            hotplugged_size: Unsupported,
        }
    }
}

impl MemoryConfig {
    /// RAM as zones, whichever way it was given; one that isn't named has an empty ID.
    #[must_use]
    pub fn as_zones(&self) -> Vec<MemoryZoneConfig> {
        if !self.zones.is_empty() {
            return self.zones.clone();
        }
        vec![MemoryZoneConfig {
            size: self.size,
            shared: self.shared,
            hugepages: self.hugepages,
            hugepage_size: self.hugepage_size,
            prefault: self.prefault,
            reserve: self.reserve,
            ..MemoryZoneConfig::default()
        }]
    }

    /// Bytes of RAM in all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.zones.iter().fold(self.size, |total, zone| total.saturating_add(zone.size))
    }
}

/// How memory would be added, if it could.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum HotplugMethod {
    /// By ACPI.
    #[default]
    Acpi,
    /// By virtio-mem.
    VirtioMem,
}

/// A part of RAM.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MemoryZoneConfig {
    /// Its name, by which a guest cell refers to it.
    pub id: String,
    /// Bytes.
    pub size: u64,
    /// Shared with other processes: a memfd, which vhost-user back-ends need.
    pub shared: bool,
    /// From the host's huge pages.
    pub hugepages: bool,
    /// Bytes of a huge page; without it the host's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hugepage_size: Option<u64>,
    /// Host cell that all of it lies on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host_numa_node: Option<u32>,
    /// Allocated before the guest starts.
    pub prefault: bool,
    /// Swap is reserved for it when it is mapped.
    #[serde(skip_serializing_if = "is_false")]
    pub reserve: bool,
    /// A file behind it.
    #[serde(skip_serializing)]
    pub file: Unsupported,
    /// Merging of like pages (KSM).
    #[serde(skip_serializing)]
    pub mergeable: Unsupported,
    /// How much memory could be added.
    #[serde(skip_serializing)]
    pub hotplug_size: Unsupported,
    /// How much memory was added.
    #[serde(skip_serializing)]
    pub hotplugged_size: Unsupported,
}

/// A cell that the guest sees.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NumaConfig {
    /// Its number in the guest.
    pub guest_numa_id: u32,
    /// Its vCPUs.
    #[serde(default, deserialize_with = "list")]
    pub cpus: Vec<u32>,
    /// Its zones of RAM.
    #[serde(default, deserialize_with = "list")]
    pub memory_zones: Vec<String>,
    /// How far others are; 20 where nothing is said, 10 is itself (ACPI 6.5, 5.2.17).
    #[serde(default, deserialize_with = "list")]
    pub distances: Vec<NumaDistance>,
    /// PCI segments near it; there is only segment 0, near all.
    #[serde(default, skip_serializing)]
    pub pci_segments: Unsupported,
    /// A cell that is a device.
    #[serde(default, skip_serializing)]
    pub device_id: Unsupported,
}

/// How far another cell is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NumaDistance {
    /// The other cell.
    pub destination: u32,
    /// Its distance, 10 being none.
    pub distance: u8,
}
