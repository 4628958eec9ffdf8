//! `HostPolicy`: how admins let hosts be used.

use crate::{DeviceClass, EngineName};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// How a set of hosts may be used. Where several policies select a host, the one with the highest `priority` holds,
/// and among equals the first by name. A host no policy selects offers the engines vmm and qemu, on KVM only.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vse.hpc.io",
    version = "v1alpha1",
    category = "vse-all",
    kind = "HostPolicy",
    plural = "hostpolicies",
    shortname = "hp",
    status = "HostPolicyStatus",
    derive = "PartialEq",
    doc = "How a set of hosts may be used: engines, emulation, device classes.",
    printcolumn(name = "Priority", type_ = "integer", json_path = ".spec.priority"),
    printcolumn(name = "Emulation", type_ = "string", json_path = ".spec.emulation"),
    printcolumn(name = "Hosts", type_ = "integer", json_path = ".status.hosts"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct HostPolicySpec {
    /// Labels of the Nodes it is for; all when empty.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Which policy holds where several select a host: the highest.
    #[serde(default)]
    pub priority: i32,
    /// Engines guests may use, best first: `vmm`, `cloud-hypervisor`, `qemu`. A guest whose engine is `Auto` gets the
    /// first that has all it needs. Default vmm, then qemu.
    #[serde(default = "default_engines")]
    #[schemars(length(min = 1, max = 8))]
    pub engines: Vec<EngineName>,
    /// Whether guests may be emulated (QEMU with TCG) where KVM is not usable.
    #[serde(default)]
    pub emulation: EmulationPolicy,
    /// Classes of PCI functions that guests may have, each an extended resource `vse.hpc.io/NAME`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub device_classes: Vec<DeviceClass>,
}

/// Engines of a host that no policy speaks of.
pub fn default_engines() -> Vec<EngineName> {
    vec![EngineName::Vmm, EngineName::Qemu]
}

/// Whether guests may be emulated.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum EmulationPolicy {
    /// Only KVM.
    #[default]
    Deny,
    /// TCG where KVM is not usable: for laptops and tests.
    Allow,
}

/// What the operator knows of a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct HostPolicyStatus {
    /// Generation of the spec this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// Hosts it holds for.
    #[serde(default)]
    pub hosts: u32,
    /// `Ready`: in force on at least one host.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
