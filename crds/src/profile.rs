//! `VSEProfile`: named defaults of the admins.

use crate::{EngineChoice, Machine};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// Machine shape, engine and tuning under a name. A VSE that names the profile takes what the profile gives; a field
/// both give differently is refused, so that a profile always means the same.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[kube(
    group = "vse.hpc.io",
    version = "v1alpha1",
    category = "vse-all",
    kind = "VSEProfile",
    plural = "vseprofiles",
    shortname = "vsep",
    status = "VSEProfileStatus",
    derive = "PartialEq",
    doc = "Named machine shape, engine and tuning, made by admins for VSEs to take.",
    printcolumn(name = "Ready", type_ = "string", json_path = r#".status.conditions[?(@.type=="Ready")].status"#),
    printcolumn(name = "Memory", type_ = "string", json_path = ".spec.machine.memory.guest"),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct VSEProfileSpec {
    /// Engine to run the guests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engine: Option<EngineChoice>,
    /// Machine's shape; what is not given here the VSE may give.
    #[serde(default)]
    pub machine: Machine,
    /// Arguments of the kernel's command line, before those of the VSE.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256), regex(pattern = r"^[!-~]+$")))]
    pub kernel_arguments: Vec<String>,
    /// Labels a host's Node must have, besides those the VSE asks for.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
}

/// What the operator knows of a profile.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, KubeSchema)]
#[serde(rename_all = "camelCase")]
pub struct VSEProfileStatus {
    /// Generation of the spec this status speaks of.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// `Ready`: the profile contradicts nothing in itself.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,
}
