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
mod device;
mod engine;
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

pub use device::*;
pub use engine::*;
pub use host::*;
pub use host_policy::*;
pub use machine::*;
pub use microvm::*;
pub use network::*;
pub use profile::*;
pub use storage::*;
pub use system::*;
pub use vse::*;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray, JSONSchemaPropsOrBool,
};
use kube::CustomResourceExt;

/// API group of every kind here.
pub const GROUP: &str = "vse.hpc.io";
/// The one served and stored version.
pub const VERSION: &str = "v1alpha1";

/// Every `CustomResourceDefinition` of the group, in the order they should be applied.
pub fn all() -> Vec<CustomResourceDefinition> {
    [VSE::crd(), VSEProfile::crd(), HostPolicy::crd(), Host::crd(), MicroVM::crd()].map(with_known_formats).to_vec()
}

/// Rust's unsigned integers have formats that OpenAPI does not know, of which the API server warns at each apply. Their
/// bounds are in the schema; the format is the signed one that holds them.
fn with_known_formats(mut crd: CustomResourceDefinition) -> CustomResourceDefinition {
    for version in &mut crd.spec.versions {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            know_formats(schema);
        }
    }
    crd
}

fn know_formats(schema: &mut JSONSchemaProps) {
    let known = match schema.format.as_deref() {
        Some("uint8" | "uint16") => Some("int32"),
        Some("uint32" | "uint64" | "uint") => Some("int64"),
        _ => None,
    };
    if let Some(format) = known {
        schema.format = Some(format.into());
    }
    schema.properties.iter_mut().flat_map(|properties| properties.values_mut()).for_each(know_formats);
    match &mut schema.items {
        Some(JSONSchemaPropsOrArray::Schema(items)) => know_formats(items),
        Some(JSONSchemaPropsOrArray::Schemas(items)) => items.iter_mut().for_each(know_formats),
        None => {}
    }
    if let Some(JSONSchemaPropsOrBool::Schema(values)) = &mut schema.additional_properties {
        know_formats(values);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn formats(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Object(fields) => {
                found.extend(fields.get("format").and_then(|format| format.as_str()).map(str::to_owned));
                fields.values().for_each(|value| formats(value, found));
            }
            serde_json::Value::Array(values) => values.iter().for_each(|value| formats(value, found)),
            _ => {}
        }
    }

    #[test]
    fn only_formats_that_openapi_knows_are_used() {
        let mut found = Vec::new();
        for crd in all() {
            formats(&serde_json::to_value(crd).unwrap(), &mut found);
        }
        assert!(found.iter().any(|format| format == "int64"));
        assert!(!found.iter().any(|format| format.starts_with("uint")), "{found:?}");
    }

    /// kubectl expands a category before it looks for a kind: were the category named `vse`, `kubectl get vse NAME` would
    /// ask for that name of every kind, and fail.
    #[test]
    fn no_category_has_the_name_of_a_kind() {
        let crds = all();
        let names: Vec<&str> = crds
            .iter()
            .flat_map(|crd| {
                let names = &crd.spec.names;
                let short = names.short_names.iter().flatten();
                [Some(&names.plural), names.singular.as_ref()].into_iter().flatten().chain(short)
            })
            .map(String::as_str)
            .collect();
        for crd in &crds {
            let categories = crd.spec.names.categories.as_deref().unwrap_or_default();
            assert_eq!(categories, ["vse-all"]);
            assert!(categories.iter().all(|category| !names.contains(&category.as_str())));
        }
    }
}
