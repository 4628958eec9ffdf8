//! `MicroVM`: one incarnation of a VSE, the complete order to one node runtime.

use crate::{CloudInit, GuestDevice, Machine, Port, Root};
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// One incarnation of a VSE on one host. Written by the operator; nobody writes it by hand. Everything but
/// `powerState` and `terminationGracePeriodSeconds` is fixed for its life.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vse.hpc.io",
    version = "v1alpha1",
    category = "vse-all",
    kind = "MicroVM",
    plural = "microvms",
    shortname = "mvm",
    namespaced,
    status = "MicroVMStatus",
    derive = "PartialEq",
    doc = "One incarnation of a VSE on one host: the operator's order to that host's node runtime, and what became of it. Not written by hand.",
    selectable = ".spec.nodeName",
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Host", type_ = "string", json_path = ".spec.nodeName"),
    printcolumn(name = "Engine", type_ = "string", json_path = ".spec.engine"),
    printcolumn(name = "Accel", type_ = "string", json_path = ".spec.accelerator"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "CPUs", type_ = "string", json_path = ".status.cpus.summary", priority = 1),
    printcolumn(name = "Kernel", type_ = "string", json_path = ".status.kernel", priority = 1),
    printcolumn(
        name = "Agent",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="AgentConnected")].status"#,
        priority = 1
    )
)]
#[serde(rename_all = "camelCase")]
#[x_kube(validation = Rule::new("oldSelf.incarnation == self.incarnation && oldSelf.nodeName == self.nodeName && oldSelf.podUID == self.podUID && oldSelf.engine == self.engine")
    .message("an incarnation's number, host, pod and engine never change"))]
pub struct MicroVMSpec {
    /// Name of the VSE.
    pub vse_name: String,
    /// UID of the VSE: stable identity of the guest over its incarnations.
    #[serde(rename = "vseUID")]
    pub vse_uid: String,
    /// Number of this incarnation; the fencing epoch.
    #[schemars(range(min = 1))]
    pub incarnation: i64,
    /// Host (Node) that runs it.
    pub node_name: String,
    /// Name of the VM pod.
    pub pod_name: String,
    /// UID of the VM pod.
    #[serde(rename = "podUID")]
    pub pod_uid: String,
    /// What the guest should be doing.
    pub power_state: PowerState,
    /// Engine to run it, for example `qemu`.
    pub engine: String,
    /// What runs the guest's instructions.
    pub accelerator: Accelerator,
    /// Machine shape, every default filled in.
    pub machine: Machine,
    /// System to boot.
    pub boot: Boot,
    /// Disks in the order the guest sees them, the system's own apart.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub disks: Vec<MicroVMDisk>,
    /// Interface on the pod network, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub network: Option<MicroVMNetwork>,
    /// First-boot configuration, if any. User data from a Secret is read from the pod's mount of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cloud_init: Option<CloudInit>,
    /// How long the guest may take to shut down, in seconds.
    pub termination_grace_period_seconds: i64,
}

/// What a guest should be doing. To end it, its MicroVM is deleted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum PowerState {
    /// vCPUs run.
    Running,
    /// vCPUs are stopped, memory is kept.
    Paused,
}

/// What runs the guest's instructions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, JsonSchema)]
pub enum Accelerator {
    /// The host's CPUs, by KVM.
    #[serde(rename = "KVM")]
    Kvm,
    /// QEMU's translator (TCG): any host, slowly.
    #[serde(rename = "TCG")]
    Tcg,
}

/// How the guest boots.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Boot {
    /// OCI reference of the system image, as the pod has it mounted.
    pub image: String,
    /// Where the root file system lives.
    pub root: Root,
    /// Disk that holds the root file system when `root` is `Disk`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub root_disk: Option<String>,
    /// Path of the kernel in the image; by default the newest in /boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel_path: Option<String>,
    /// Arguments added to the kernel's command line.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub kernel_arguments: Vec<String>,
}

/// One disk of an incarnation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MicroVMDisk {
    /// Name of the volume; serial number of the disk.
    pub name: String,
    /// How it lies in the pod.
    pub backing: Backing,
    /// Size to make `disk.img` when it is not there; for a claim its capacity.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub capacity: Option<Quantity>,
    /// The guest can't write to it.
    #[serde(default)]
    pub read_only: bool,
}

/// How a volume lies in the VM pod.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Backing {
    /// `disk.img` in /vse/volumes/NAME.
    File,
    /// Block device /dev/vse/NAME.
    Block,
}

/// The guest's interface on the pod network.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct MicroVMNetwork {
    /// Reachable ports; all when empty.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
}

/// What became of an incarnation. Written by the node runtime of its host.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct MicroVMStatus {
    /// Generation of the spec this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Where the incarnation is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<MicroVMPhase>,
    /// Engine as it names itself, for example `QEMU 10.0.3`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_version: Option<String>,
    /// Kernel release of the booted image, for example `6.12.41+deb13-amd64`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
    /// Host CPUs the guest runs on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpus: Option<CpuPlacement>,
    /// Host devices the guest has.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<GuestDevice>,
    /// Addresses the guest is reached at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Address>,
    /// What the guest agent says of the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestInfo>,
    /// When each step was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
    /// How the guest ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exit: Option<ExitRecord>,
    /// `Ready`, `Paused`, `AgentConnected`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// Where an incarnation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum MicroVMPhase {
    /// The host makes image, network and disks ready, or waits for the pod.
    Preparing,
    /// The guest runs.
    Running,
    /// The guest's vCPUs are stopped.
    Paused,
    /// The power button was pressed.
    Stopping,
    /// The guest is gone and the host holds nothing of it: the last phase. See `exit`.
    Released,
}

/// Host CPUs of a guest.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CpuPlacement {
    /// One line for people: `0→2 1→3, emulator 1`, or `shared 0-1`.
    pub summary: String,
    /// Host CPU of each vCPU, by index; empty when CPUs are shared.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pinned: Vec<u32>,
    /// Host CPUs (Linux CPU list) of the engine's other threads, or of all threads when CPUs are shared.
    pub emulator: String,
    /// Cells of the guest and of the host; none when memory may lie anywhere. A guest with one cell is not shown it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub cells: Vec<CellPlacement>,
}

/// Where a cell of a guest lies.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CellPlacement {
    /// Its vCPUs (as a Linux CPU list).
    pub vcpus: String,
    /// Its memory.
    pub memory: Quantity,
    /// Host cells the memory comes from (as a Linux node list).
    pub host_cells: String,
}

/// An address of a guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Address {
    /// IP address.
    pub ip: String,
    /// Where it is valid.
    pub scope: AddressScope,
}

/// Where an address is valid.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum AddressScope {
    /// On the pod network.
    Pod,
    /// Inside the guest only.
    Guest,
}

/// What the guest agent says of the guest. Untrusted, shown only.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct GuestInfo {
    /// Host name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Operating system, for example `Debian GNU/Linux 13 (trixie)`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub os: Option<String>,
    /// Kernel release.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kernel: Option<String>,
}

/// When each step of a launch was done, on the host's clock.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Timings {
    /// The pod's launcher answered.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod_ready: Option<Timestamp>,
    /// System image, network and disks were ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prepared: Option<Timestamp>,
    /// The launcher had become the engine.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine_started: Option<Timestamp>,
    /// The guest's first instruction ran.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booted: Option<Timestamp>,
    /// The guest agent answered first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_connected: Option<Timestamp>,
}

/// How an incarnation ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ExitRecord {
    /// Number of the incarnation.
    pub incarnation: i64,
    /// Why.
    pub reason: ExitReason,
    /// What was seen.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub message: String,
    /// When, on the host's clock.
    pub at: Timestamp,
}

/// Why an incarnation ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ExitReason {
    /// The guest powered itself off.
    GuestShutdown,
    /// It was asked to stop, and did or was made to.
    Stopped,
    /// The guest's kernel panicked.
    GuestPanic,
    /// The engine died or was killed.
    EngineFailed,
    /// The guest could not be launched: image, network or disks.
    LaunchFailed,
    /// kubelet ended the pod before anything of it ran.
    PodRefused,
    /// The pod was deleted or evicted underneath it.
    PodGone,
}

impl ExitReason {
    /// Whether `RerunOnFailure` starts the guest again.
    pub fn is_failure(self) -> bool {
        match self {
            ExitReason::GuestShutdown | ExitReason::Stopped => false,
            ExitReason::GuestPanic
            | ExitReason::EngineFailed
            | ExitReason::LaunchFailed
            | ExitReason::PodRefused
            | ExitReason::PodGone => true,
        }
    }
}

/// Condition types of a MicroVM.
pub mod microvm_conditions {
    /// The guest runs (or is paused on request).
    pub const READY: &str = "Ready";
    /// The guest's vCPUs are stopped on request.
    pub const PAUSED: &str = "Paused";
    /// The guest agent answers.
    pub const AGENT_CONNECTED: &str = "AgentConnected";
}
