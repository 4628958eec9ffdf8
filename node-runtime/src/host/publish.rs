//! Publishing the Host of this host's name: the only thing that writes it.

use crate::pci::Report;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::api::{Api, ObjectMeta, Patch, PatchParams};
use kube::{Client, ResourceExt};
use serde_json::json;
use vse_crds::condition::{self, Status};
use vse_crds::{Host, HostPolicy, HostSpec, HostStatus, labels};

/// Type of the one condition of a Host.
const READY: &str = "Ready";

/// Adds devices and what policy says to what the hardware has.
pub fn status(
    hardware: &HostStatus,
    devices: &Report,
    policy: Option<&HostPolicy>,
    published: Option<&HostStatus>,
    now: Timestamp,
) -> HostStatus {
    let spec = policy.map(|policy| &policy.spec);
    let engines = super::offered(spec, &hardware.kvm);
    let refusals: Vec<_> = engines
        .iter()
        .filter(|engine| engine.accelerators.is_empty())
        .map(|engine| format!("{}: {}", engine.name.as_str(), engine.reason))
        .collect();
    let (ready, reason, message) = if refusals.len() == engines.len() {
        (Status::False, "NoEngine", refusals.join("; "))
    } else {
        (Status::True, "TakingOrders", String::new())
    };
    let previous = published.map_or(&[][..], |status| &status.conditions);
    HostStatus {
        emulation: spec.map(|spec| spec.emulation).unwrap_or_default(),
        host_policy: policy.map(|policy| policy.name_any()),
        engines,
        devices: devices.devices.clone(),
        device_classes: devices.classes.clone(),
        conditions: vec![condition::condition(previous, READY, ready, reason, message, None, now)],
        ..hardware.clone()
    }
}

/// Writes the Host when it differs from what is published. Returns what is now published.
pub async fn publish(client: &Client, name: &str, node_uid: &str, wanted: HostStatus) -> kube::Result<HostStatus> {
    let api: Api<Host> = Api::all(client.clone());
    let found = match api.get_opt(name).await? {
        Some(host) => host,
        None => create(&api, name, node_uid).await?,
    };
    if found.status.as_ref() == Some(&wanted) {
        return Ok(wanted);
    }
    let patch = json!({
        "apiVersion": "vse.hpc.io/v1alpha1",
        "kind": "Host",
        "status": wanted,
    });
    let params = PatchParams::apply(labels::NODE_RUNTIME).force();
    api.patch_status(name, &params, &Patch::Apply(patch)).await?;
    tracing::info!(host = name, engines = wanted.engines.len(), "Host published");
    Ok(wanted)
}

/// The Host goes with its Node: the Node owns it.
async fn create(api: &Api<Host>, name: &str, node_uid: &str) -> kube::Result<Host> {
    let host = Host {
        metadata: ObjectMeta {
            name: Some(name.into()),
            owner_references: Some(vec![OwnerReference {
                api_version: "v1".into(),
                kind: "Node".into(),
                name: name.into(),
                uid: node_uid.into(),
                ..OwnerReference::default()
            }]),
            ..ObjectMeta::default()
        },
        spec: HostSpec {},
        status: None,
    };
    match api.create(&Default::default(), &host).await {
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => api.get(name).await,
        created => created,
    }
}
