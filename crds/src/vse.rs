//! `VSE`: the system a user wants.

use crate::{Accelerator, Address, Disk, EngineChoice, ExitRecord, GuestInfo, Machine, Network, System, Volume};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Affinity, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The system a user wants: what runs in it, the machine it runs on, and when it runs.
#[derive(CustomResource, Clone, Debug, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vse.hpc.io",
    version = "v1alpha1",
    category = "vse-all",
    kind = "VSE",
    plural = "vses",
    singular = "vse",
    namespaced,
    status = "VSEStatus",
    derive = "PartialEq",
    doc = "A virtual system environment: the whole system a program needs, as a virtual machine.",
    validation = Rule::new("size(self.metadata.name) <= 52").message("metadata.name must be at most 52 characters: pods, host names and labels carry it with the incarnation's number"),
    printcolumn(name = "Phase", type_ = "string", json_path = ".status.phase"),
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Host", type_ = "string", json_path = ".status.nodeName"),
    printcolumn(name = "Address", type_ = "string", json_path = ".status.addresses[0].ip"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(name = "Incarnation", type_ = "integer", json_path = ".status.incarnation", priority = 1),
    printcolumn(name = "Engine", type_ = "string", json_path = ".status.engine", priority = 1),
    printcolumn(name = "Message", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].message"#, priority = 1)
)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    validation = Rule::new("has(self.profileName) || (has(self.machine) && has(self.machine.memory) && has(self.machine.memory.guest))")
        .message("machine.memory.guest is required unless profileName names a profile that gives it")
        .field_path(".machine.memory.guest"),
    validation = Rule::new("!has(self.disks) || (has(self.volumes) && self.disks.all(d, self.volumes.exists(v, v.name == d.name)))")
        .message("every entry of disks must name one of volumes")
        .field_path(".disks"),
    validation = Rule::new("!has(self.system.rootVolume) || (has(self.volumes) && self.volumes.exists(v, v.name == self.system.rootVolume))")
        .message("system.rootVolume must name one of volumes")
        .field_path(".system.rootVolume"),
    validation = Rule::new("!has(self.system.rootVolume) || !has(self.disks) || !self.disks.exists(d, d.name == self.system.rootVolume && d.readOnly)")
        .message("the root volume can't be read-only")
        .field_path(".system.rootVolume")
)]
pub struct VSESpec {
    /// A VSEProfile to take the machine's shape, engine and tuning from. A field set both here and there to different
    /// values is refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub profile_name: Option<String>,

    /// The engine (kind of VMM) to run the guest: `Auto` takes the best a host offers. Default Auto.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineChoice>,

    /// When the guest runs: `Always` (started again whenever it ends), `RerunOnFailure` (again only after a failure),
    /// `Once` (never again), `Halted` (not now).
    #[serde(default)]
    pub run_strategy: RunStrategy,

    /// Stop the guest's vCPUs, keeping its memory, until set back to false.
    #[serde(default)]
    pub paused: bool,

    /// How long a guest may take to shut down after its power button was pressed, in seconds, before it is stopped. A
    /// change holds at once, also for a guest that is shutting down.
    #[serde(default = "default_grace")]
    #[schemars(range(min = 0, max = 3600))]
    pub termination_grace_period_seconds: i64,

    /// What runs in the guest.
    pub system: System,

    /// The machine's shape.
    #[serde(default)]
    pub machine: Machine,

    /// How the guest sees its volumes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub disks: Vec<Disk>,

    /// Storage of the guest.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub volumes: Vec<Volume>,

    /// Networks of the guest; none when empty.
    #[serde(default = "default_networks")]
    #[schemars(length(max = 1))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub networks: Vec<Network>,

    /// Labels a host's Node must have.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,

    /// Taints of hosts that the guest tolerates, as for pods.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub tolerations: Vec<Toleration>,

    /// Affinity to hosts and other pods, as for pods.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub affinity: Option<Affinity>,

    /// PriorityClass of the guest's pod.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 253))]
    pub priority_class_name: Option<String>,
}

/// `terminationGracePeriodSeconds` when the user gives none.
fn default_grace() -> i64 {
    60
}

/// One interface on the pod network.
fn default_networks() -> Vec<Network> {
    vec![Network { name: "default".into(), pod: Default::default(), ports: Vec::new() }]
}

/// When a guest runs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum RunStrategy {
    /// Started again whenever it ends.
    #[default]
    Always,
    /// Started again only after a failure.
    RerunOnFailure,
    /// Started once.
    Once,
    /// Not running.
    Halted,
}

/// What the operator knows of a VSE.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VSEStatus {
    /// Generation of the spec this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Number of the latest incarnation; claimed here before anything of it exists. 0: none yet.
    #[serde(default)]
    pub incarnation: i64,
    /// One word for people, derived from the conditions; programs read the conditions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<VSEPhase>,
    /// Host (Node) the latest incarnation is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_name: Option<String>,
    /// Engine of the latest incarnation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<String>,
    /// What runs the guest's instructions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accelerator: Option<Accelerator>,
    /// Addresses the guest is reached at.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub addresses: Vec<Address>,
    /// What the guest agent says of the guest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub guest: Option<GuestInfo>,
    /// When the latest incarnation's guest began to run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub started_at: Option<Timestamp>,
    /// How the previous incarnation ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_exit: Option<ExitRecord>,
    /// Failures in a row without ten minutes of running between them: the delay before the next start grows with it.
    #[serde(default)]
    pub recent_failures: u32,
    /// `Ready`, `Progressing`, `Stalled`, `Paused`, `AgentConnected`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}

/// One word for where a VSE is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum VSEPhase {
    /// Waiting for a host.
    Scheduling,
    /// On a host, not running yet.
    Starting,
    /// The guest runs.
    Running,
    /// The guest's vCPUs are stopped.
    Paused,
    /// Shutting down.
    Stopping,
    /// Not running, as asked for.
    Halted,
    /// Ended by itself, and not to be started again.
    Succeeded,
    /// Ended by a failure, and not to be started again.
    Failed,
    /// Waiting before the next start after a failure.
    BackOff,
    /// Can't run as the spec stands.
    Refused,
}

/// Condition types of a VSE.
pub mod vse_conditions {
    /// The guest runs. Absent while it is not meant to (halted, ended), so that generic tools see that as settled.
    pub const READY: &str = "Ready";
    /// Something is under way towards what the spec asks for.
    pub const PROGRESSING: &str = "Progressing";
    /// The spec can't be met until somebody changes it or something it refers to (kstatus: Failed).
    pub const STALLED: &str = "Stalled";
    /// The guest's vCPUs are stopped on request.
    pub const PAUSED: &str = "Paused";
    /// The guest agent answers.
    pub const AGENT_CONNECTED: &str = "AgentConnected";
    /// A change of the spec waits for the next incarnation.
    pub const RESTART_REQUIRED: &str = "RestartRequired";
}
