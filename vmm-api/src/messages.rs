//! Requests and answers beside the configuration.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::config::{Fd, VmConfig};
use crate::json::list;
use crate::unsupported::Unsupported;

/// `GET vmm.ping`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmmPingResponse {
    /// Name and version, for people.
    pub build_version: String,
    /// Version.
    pub version: String,
    /// Process ID, in the VMM's own namespace.
    pub pid: i64,
    /// Names of what was built in beyond the usual.
    pub features: Vec<String>,
}

/// Where a guest is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum VmState {
    /// Everything is there, nothing has run.
    Created,
    /// vCPUs run.
    Running,
    /// It was shut down, and can be booted again.
    Shutdown,
    /// vCPUs are stopped and devices at rest.
    Paused,
}

/// `GET vm.info`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmInfo {
    /// As it was created, with names and device numbers filled in.
    pub config: VmConfig,
    /// Where it is in its life.
    pub state: VmState,
    /// Bytes of RAM.
    pub memory_actual_size: u64,
    /// Ours: thread ID of each vCPU, in the VMM's own namespace; empty while there are none.
    #[serde(default)]
    pub vcpu_threads: Vec<i32>,
    /// Ours: whether a program in the guest has the agent's port open.
    #[serde(default)]
    pub agent_connected: bool,
}

/// `GET vm.counters`: by device, by counter.
pub type VmCounters = BTreeMap<String, BTreeMap<String, u64>>;

/// The answer to `vm.add-…` when the guest was told of the new device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciDeviceInfo {
    /// Its name.
    pub id: String,
    /// Its address in the guest, for example `0000:00:06.0`.
    pub bdf: String,
}

/// `PUT vm.remove-device`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VmRemoveDevice {
    /// Its name.
    pub id: String,
}

/// `PUT vm.resize`. Nothing can be resized, so only what is there already can be asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VmResize {
    /// vCPUs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_vcpus: Option<u32>,
    /// Bytes of RAM.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub desired_ram: Option<u64>,
    /// Bytes of balloon.
    #[serde(skip_serializing)]
    pub desired_balloon: Unsupported,
}

/// `PUT vm.snapshot`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VmSnapshotConfig {
    /// `file:///DIRECTORY`, which is there and has no snapshot in it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_url: Option<String>,
    /// Ours: the same directory, open.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub destination_fd: Option<Fd>,
}

/// Where a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SnapshotPlace<'a> {
    /// In a directory, by its URL.
    Url(&'a str),
    /// In an open directory.
    Fd(Fd),
}

/// `PUT vm.restore`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoreConfig {
    /// `file:///DIRECTORY` that `vm.snapshot` wrote.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_url: Option<String>,
    /// Ours: the same directory, open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source_fd: Option<Fd>,
    /// RAM is filled before the guest goes on, in place of when it is first touched.
    #[serde(default)]
    pub prefault: bool,
    /// How RAM is filled, where the kind of pages leaves a choice.
    #[serde(default)]
    pub memory_restore_mode: MemoryRestoreMode,
    /// Whether the guest goes on at once; without it, it is paused.
    #[serde(default)]
    pub resume: bool,
    /// Other host cells for zones.
    #[serde(default, deserialize_with = "list")]
    pub zone_updates: Vec<MemoryZoneUpdate>,
    /// Ours: what a snapshot doesn't contain because it belongs to a host: descriptors, paths, placement. As for
    /// `vm.create`; what the guest can see of it must be as it was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub config: Option<Box<VmConfig>>,
    /// Ours: the guest's clock goes on from where it stopped, in place of jumping to the present.
    #[serde(default)]
    pub keep_clock: bool,
    /// Open taps for network devices, in place of those in `config`: the descriptors that come along, in this order.
    #[serde(default, deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub net_fds: Vec<RestoredNetConfig>,
    /// VFIO character devices, open.
    #[serde(default, skip_serializing)]
    pub vfio_fds: Unsupported,
    /// VFIO by iommufd, open.
    #[serde(default, skip_serializing)]
    pub iommufd_fd: Unsupported,
}

/// Open taps for a network device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RestoredNetConfig {
    /// Name of the device.
    pub id: String,
    /// How many there are: one for each pair of its queues.
    pub num_fds: u16,
    /// Ours: their numbers here, once they have come.
    #[serde(skip)]
    pub taps: Vec<Fd>,
    /// Their numbers in the client's process, which mean nothing here.
    #[serde(default, skip_serializing)]
    pub fds: Unsupported,
}

/// How RAM is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub enum MemoryRestoreMode {
    /// Read.
    #[default]
    Copy,
    /// Mapped.
    OnDemand,
}

/// Another host cell for a zone of RAM.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MemoryZoneUpdate {
    /// Name of the zone.
    pub id: String,
    /// The host cell.
    pub host_numa_node: u32,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::json;

    #[test]
    fn a_restore_brings_taps_only() {
        let sent = r#"{"source_url": "file:///s", "prefault": false, "zone_updates": null, "net_fds": null,
                       "vfio_fds": null, "iommufd_fd": null, "memory_restore_mode": "Copy", "resume": true}"#;
        let restore: RestoreConfig = json::read(sent.as_bytes()).unwrap();
        assert!(restore.resume && restore.zone_updates.is_empty());
        for (path, field) in [
            ("net_fds[0].fds", r#""net_fds": [{"id": "n", "num_fds": 1, "fds": [7]}]"#),
            ("vfio_fds", r#""vfio_fds": [{}]"#),
            ("iommufd_fd", r#""iommufd_fd": 7"#),
        ] {
            let sent = format!(r#"{{"source_url": "file:///s", {field}}}"#);
            let error = json::read::<RestoreConfig>(sent.as_bytes()).unwrap_err();
            assert!(error.path == path && error.reason.starts_with("not supported by this VMM"), "{error}");
        }
    }
}
