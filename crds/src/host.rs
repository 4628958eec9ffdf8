//! `Host`: what one bare-metal machine has, published by its node runtime.

use crate::{Accelerator, DeviceVerdict, EmulationPolicy, EngineName, HostDeviceClass, PageSize};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A bare-metal host, named as its Node. It has no wishes, so its spec is empty.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vse.hpc.io",
    version = "v1alpha1",
    category = "vse-all",
    kind = "Host",
    plural = "hosts",
    status = "HostStatus",
    derive = "PartialEq",
    doc = "What one bare-metal host has: CPU topology, memory, devices, engines. Published by its node runtime, once and on change.",
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "CPUs", type_ = "integer", json_path = ".status.cpu.count"),
    printcolumn(name = "Cells", type_ = "integer", json_path = ".status.cellCount"),
    printcolumn(name = "Memory", type_ = "string", json_path = ".status.memory"),
    printcolumn(name = "KVM", type_ = "boolean", json_path = ".status.kvm.usable"),
    printcolumn(name = "Emulation", type_ = "string", json_path = ".status.emulation"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "CPU model", type_ = "string", json_path = ".status.cpu.model", priority = 1),
    printcolumn(name = "Kernel", type_ = "string", json_path = ".status.versions.kernel", priority = 1)
)]
#[serde(rename_all = "camelCase")]
pub struct HostSpec {}

/// What a host has. Totals only: what is free changes too often to publish.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostStatus {
    /// CPUs and caches.
    #[serde(default)]
    pub cpu: HostCpu,
    /// RAM of all cells together.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Quantity>,
    /// Number of NUMA cells.
    #[serde(default)]
    pub cell_count: u32,
    /// NUMA cells.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cells: Vec<Cell>,
    /// PCI functions.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<PciDevice>,
    /// Device classes in force here (HostPolicy).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub device_classes: Vec<HostDeviceClass>,
    /// Whether /dev/kvm serves guests here.
    #[serde(default)]
    pub kvm: Kvm,
    /// Whether guests may be emulated here (HostPolicy).
    #[serde(default)]
    pub emulation: EmulationPolicy,
    /// HostPolicy in force, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub host_policy: Option<String>,
    /// Engines guests may use here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub engines: Vec<HostEngine>,
    /// Versions of what runs the host.
    #[serde(default)]
    pub versions: HostVersions,
    /// `Ready`: the node runtime takes orders.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// CPUs of a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostCpu {
    /// Number of online logical CPUs.
    pub count: u32,
    /// Model name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub model: String,
    /// Virtualization extension: `svm`, `vmx`, or none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub virtualization: Option<String>,
    /// Each online logical CPU.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub topology: Vec<LogicalCpu>,
    /// Caches, each once.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub caches: Vec<Cache>,
}

/// Where one logical CPU lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogicalCpu {
    /// Linux's number.
    pub cpu: u32,
    /// Core, unique in the socket. CPUs with the same socket and core are SMT siblings.
    pub core: u32,
    /// Socket (physical package).
    pub socket: u32,
    /// NUMA cell.
    pub cell: u32,
}

/// One cache.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cache {
    /// 1, 2, 3 …
    pub level: u32,
    /// `Data`, `Instruction` or `Unified`.
    #[serde(rename = "type")]
    pub type_: String,
    /// Size in KiB.
    pub size_ki: u64,
    /// CPUs that share it (Linux CPU list).
    pub cpus: String,
}

/// One NUMA cell.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cell {
    /// Linux's node number.
    pub id: u32,
    /// CPUs (Linux CPU list).
    pub cpus: String,
    /// RAM.
    pub memory: Quantity,
    /// Huge page pools.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub huge_pages: Vec<HugePagePool>,
    /// Distances to all cells by id (ACPI SLIT; 10 is local).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub distances: Vec<u32>,
}

/// Huge pages of one size in a cell.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HugePagePool {
    /// Size of a page.
    pub page_size: PageSize,
    /// Pages in the pool.
    pub total: u64,
}

/// One PCI function.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PciDevice {
    /// Address, for example `0000:65:00.1`.
    pub address: String,
    /// Vendor, four hexadecimal digits.
    pub vendor: String,
    /// Device, four hexadecimal digits.
    pub device: String,
    /// Class, six hexadecimal digits.
    pub class: String,
    /// Driver bound to it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub driver: Option<String>,
    /// IOMMU group; none without an IOMMU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub iommu_group: Option<u32>,
    /// NUMA cell, when the platform says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cell: Option<u32>,
    /// Virtual functions it can make (SR-IOV).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub max_virtual_functions: Option<u32>,
    /// The function it is a virtual function of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub physical_function: Option<String>,
    /// Device class it belongs to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_class: Option<String>,
    /// Whether a guest can have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<DeviceVerdict>,
}

/// Whether /dev/kvm serves guests.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Kvm {
    /// Guests can run on it.
    pub usable: bool,
    /// Why not.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// An engine guests may use on a host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostEngine {
    /// Its name.
    pub name: EngineName,
    /// What can run the guest's instructions under it here, best first. Empty: none, see `reason`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub accelerators: Vec<Accelerator>,
    /// Names of what it can do here; what is not named it can't.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<String>,
    /// The largest guest it can have; unknown when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limits: Option<EngineLimits>,
    /// Why it can't be used.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
}

/// The most that an engine gives one guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct EngineLimits {
    /// vCPUs.
    pub vcpus: u32,
    /// Volumes.
    pub volumes: u32,
    /// Volumes, networks and host devices together; as many as of each when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub devices: Option<u32>,
}

/// Versions of what runs a host.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostVersions {
    /// The node runtime.
    #[serde(default)]
    pub node_runtime: String,
    /// Kernel release.
    #[serde(default)]
    pub kernel: String,
}
