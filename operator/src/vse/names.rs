//! Metadata the operator gives what it creates: names, labels, owner, all from the VSE and the incarnation's number.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};
use std::collections::BTreeMap;
use vse_crds::{VSE, labels};

/// Annotation on pods and MicroVMs: the VSE's [`labels::RESTARTED_AT`] they were made with.
pub const MADE_WITH_RESTART: &str = "vse.hpc.io/made-with-restarted-at";

/// Metadata of the pod or MicroVM of an incarnation.
pub fn metadata(vse: &VSE, incarnation: i64) -> ObjectMeta {
    ObjectMeta {
        name: Some(labels::incarnation_name(&vse.name_any(), incarnation)),
        namespace: vse.namespace(),
        labels: Some(object_labels(vse, incarnation)),
        annotations: restarted_at(vse).map(|at| BTreeMap::from([(MADE_WITH_RESTART.to_owned(), at.to_owned())])),
        owner_references: vse
            .controller_owner_ref(&())
            .map(|owner| vec![OwnerReference { block_owner_deletion: Some(true), ..owner }]),
        ..ObjectMeta::default()
    }
}

/// The restart the user asked for last.
pub fn restarted_at(vse: &VSE) -> Option<&str> {
    let at = vse.annotations().get(labels::RESTARTED_AT)?;
    at.parse::<jiff::Timestamp>().ok().map(|_| at.as_str())
}

/// The VSE and the incarnation an object was made for, if it is owned by a VSE with that UID.
pub fn incarnation(object: &ObjectMeta, vse_uid: &str) -> Option<i64> {
    let owned =
        object.owner_references.as_ref()?.iter().any(|owner| owner.controller == Some(true) && owner.uid == vse_uid);
    let number = object.labels.as_ref()?.get(labels::INCARNATION)?;
    number.parse().ok().filter(|_| owned)
}

fn object_labels(vse: &VSE, incarnation: i64) -> BTreeMap<String, String> {
    [
        ("app.kubernetes.io/name", "vse"),
        ("app.kubernetes.io/instance", &vse.name_any()),
        (labels::COMPONENT, labels::COMPONENT_VM),
        (labels::MANAGED_BY, labels::OPERATOR),
        (labels::VSE, &vse.name_any()),
        (labels::INCARNATION, &incarnation.to_string()),
    ]
    .into_iter()
    .map(|(label, value)| (label.to_owned(), value.to_owned()))
    .collect()
}
