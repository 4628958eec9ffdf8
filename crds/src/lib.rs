//! The API types of the group `vse.hpc.io`, version `v1alpha1`.
//!
//! Owns: the shapes users, the operator and the node runtimes exchange through the API server, the rules the API
//! server checks (CEL), and the generated `CustomResourceDefinition`s. Must not: talk to a server or decide anything.
//!
//! Fields that a [`VSEProfile`] may give have no schema default in [`VSE`]: a default would hide whether the user set
//! them. Their defaults are applied when profile and spec are merged, and are named in their descriptions.

#![forbid(unsafe_code)]
// Print columns have the same keys again and again by nature.
#![allow(clippy::duplicated_attributes)]

pub mod condition;
mod host;
mod host_policy;
pub mod labels;
mod machine;
mod microvm;
mod network;
mod profile;
pub mod quantity;
mod storage;
mod system;
mod vse;

pub use host::*;
pub use host_policy::*;
pub use machine::*;
pub use microvm::*;
pub use network::*;
pub use profile::*;
pub use storage::*;
pub use system::*;
pub use vse::*;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;

/// API group of every kind here.
pub const GROUP: &str = "vse.hpc.io";
/// The one served and stored version.
pub const VERSION: &str = "v1alpha1";

/// Every `CustomResourceDefinition` of the group, in the order they should be applied.
pub fn all() -> Vec<CustomResourceDefinition> {
    vec![
        VSE::crd(),
        VSEProfile::crd(),
        HostPolicy::crd(),
        Host::crd(),
        MicroVM::crd(),
    ]
}
