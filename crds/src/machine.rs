//! The machine's shape: vCPUs, memory, host devices.
//!
//! Every field is optional because a [`crate::VSEProfile`] may give it; the defaults named here apply when neither does.

use crate::Devices;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Most vCPUs a guest may have (sockets × cores × threads).
pub const MAX_VCPUS: u32 = 512;

/// Shape of the guest's machine.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Machine {
    /// vCPUs and how they map to the host's CPUs.
    #[serde(default)]
    pub cpu: Cpu,
    /// Memory of the guest.
    #[serde(default)]
    pub memory: Memory,
    /// Host devices of the guest.
    #[serde(default, skip_serializing_if = "Devices::is_empty")]
    pub devices: Devices,
}

/// vCPU topology and placement.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("(has(self.sockets) ? self.sockets : 1) * (has(self.cores) ? self.cores : 1) * (has(self.threads) ? self.threads : 1) <= 512")
        .message("sockets × cores × threads must be at most 512"),
    validation = Rule::new("!(has(self.isolateEmulatorThread) && self.isolateEmulatorThread) || !has(self.dedicatedCPUPlacement) || self.dedicatedCPUPlacement")
        .message("isolateEmulatorThread needs dedicatedCPUPlacement: true")
        .field_path(".isolateEmulatorThread"),
    validation = Rule::new("!has(self.numa) || !has(self.numa.guestMappingPassthrough) || !has(self.dedicatedCPUPlacement) || self.dedicatedCPUPlacement")
        .message("guestMappingPassthrough needs dedicatedCPUPlacement: true")
        .field_path(".numa"),
    validation = Rule::new("!(has(self.request) && has(self.dedicatedCPUPlacement) && self.dedicatedCPUPlacement)")
        .message("request is for shared CPUs; with dedicatedCPUPlacement each vCPU has a CPU of its own")
        .field_path(".request")
)]
pub struct Cpu {
    /// Sockets of the guest. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 64))]
    pub sockets: Option<u32>,
    /// Cores in each socket. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 512))]
    pub cores: Option<u32>,
    /// Threads in each core. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2))]
    pub threads: Option<u32>,
    /// Each vCPU has a host CPU of its own (kubelet's static CPU manager must be on), and its thread is pinned to it.
    /// Default false.
    #[serde(default, rename = "dedicatedCPUPlacement", skip_serializing_if = "Option::is_none")]
    pub dedicated_cpu_placement: Option<bool>,
    /// The engine's other threads get one further CPU of their own, so that they never disturb a vCPU. Needs
    /// dedicatedCPUPlacement. Default false.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub isolate_emulator_thread: Option<bool>,
    /// What the guest is shown of the host's NUMA cells.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub numa: Option<Numa>,
    /// CPU time to reserve for a guest with shared CPUs, for example `100m` to overcommit. Without it the guest
    /// reserves (and is limited to) one CPU for each vCPU; with it there is no upper limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("quantity(string(self)).isGreaterThan(quantity('0'))").message("request must be more than 0"))]
    pub request: Option<Quantity>,
}

/// What a guest is shown of its host's NUMA cells.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Numa {
    /// Mirror the host cells on which the guest's CPUs lie: for each the guest has a cell with the vCPUs pinned there and
    /// a share of the memory in proportion to them, from that host cell, and sees the host's distances. Which cells that
    /// are is kubelet's choice. Set `sockets` to the number of cells, so that the guest's caches agree with them. Needs
    /// dedicatedCPUPlacement; the engine must have the capability GuestCells. Written `{}`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest_mapping_passthrough: Option<GuestMappingPassthrough>,
}

/// Mirrors the host cells of the guest's CPUs. It has no options.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct GuestMappingPassthrough {}

/// Memory of the guest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// RAM the guest sees, for example `4Gi`. Required here or in the profile; at least 96Mi, below which no
    /// distribution kernel boots.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[x_kube(validation = Rule::new("!quantity(string(self)).isLessThan(quantity('96Mi'))")
        .message("guest memory must be at least 96Mi: no distribution kernel boots with less"))]
    pub guest: Option<Quantity>,
    /// Back the guest's RAM by huge pages. With dedicated CPUs they come from the cells of these CPUs, and a cell that has
    /// too few of them free is named before anything starts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hugepages: Option<HugePages>,
}

/// Huge pages under the guest's RAM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HugePages {
    /// Size of a page. Guest memory must be a whole number of them.
    pub page_size: PageSize,
}

/// Huge page sizes of x86-64.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum PageSize {
    /// 2 MiB.
    #[serde(rename = "2Mi")]
    TwoMi,
    /// 1 GiB.
    #[serde(rename = "1Gi")]
    OneGi,
}

impl PageSize {
    /// Bytes of one page.
    pub fn bytes(self) -> u64 {
        match self {
            PageSize::TwoMi => 2 << 20,
            PageSize::OneGi => 1 << 30,
        }
    }

    /// The API's spelling, as in the resource `hugepages-2Mi`.
    pub fn as_str(self) -> &'static str {
        match self {
            PageSize::TwoMi => "2Mi",
            PageSize::OneGi => "1Gi",
        }
    }
}
