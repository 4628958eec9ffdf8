//! kube-scheduler, kubelet and node runtime, as far as the operator can tell.

use crate::server::Server;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use std::time::Duration;
use tokio::task::JoinHandle;
use vse_crds::{MicroVM, MicroVMPhase, PowerState, labels};

/// All three; they end when dropped.
pub(crate) struct Actors(JoinHandle<()>);

impl Actors {
    /// Starts them.
    pub(crate) fn start(server: &Server) -> Actors {
        Actors(tokio::spawn(act(server.client())))
    }
}

impl Drop for Actors {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn act(client: Client) {
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let vms: Api<MicroVM> = Api::namespaced(client.clone(), "default");
    loop {
        // Anything may change between a look and an act; the next round sees it.
        let _ = round(&pods, &vms).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn round(pods: &Api<Pod>, vms: &Api<MicroVM>) -> kube::Result<()> {
    let ours = ListParams::default().labels(&format!("{}={}", labels::COMPONENT, labels::COMPONENT_VM));
    let orders = vms.list(&ListParams::default()).await?.items;
    let found = pods.list(&ours).await?.items;
    for pod in &found {
        let order = orders.iter().find(|vm| Some(&vm.spec.pod_uid) == pod.metadata.uid.as_ref());
        let guest = order.is_some_and(|vm| !matches!(phase(vm), None | Some(MicroVMPhase::Released)));
        let bound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some());
        let status = pod.status.as_ref().and_then(|s| s.phase.as_deref());
        if pod.metadata.deletion_timestamp.is_some() && !guest {
            let now = DeleteParams::default().grace_period(0);
            pods.delete(&pod.name_any(), &now).await?;
        } else if !bound {
            bind(pods, pod).await?;
        } else if status == Some("Pending") {
            let running = json!({"phase": "Running", "containerStatuses": [{
                "name": "vm", "image": "", "imageID": "", "ready": true, "restartCount": 0,
                "state": {"running": {"startedAt": jiff::Timestamp::now()}},
            }]});
            set_status(pods, &pod.name_any(), running).await?;
        }
    }
    for vm in &orders {
        let pod = found.iter().find(|pod| pod.metadata.uid.as_ref() == Some(&vm.spec.pod_uid));
        let running = pod.is_some_and(|pod| {
            let phase = pod.status.as_ref().and_then(|s| s.phase.as_deref());
            phase == Some("Running") && pod.metadata.deletion_timestamp.is_none()
        });
        host(vms, vm, running).await?;
    }
    Ok(())
}

/// The node runtime's part.
async fn host(vms: &Api<MicroVM>, vm: &MicroVM, pod_runs: bool) -> kube::Result<()> {
    let wanted = match vm.spec.power_state {
        PowerState::Paused => "Paused",
        PowerState::Running => "Running",
    };
    let deleted = vm.metadata.deletion_timestamp.is_some();
    let is = phase(vm).map(|phase| format!("{phase:?}"));
    if is.as_deref() == Some("Released") || !(deleted || pod_runs) {
        return Ok(());
    }
    if deleted {
        let exit = json!({
            "incarnation": vm.spec.incarnation, "reason": "Stopped", "at": jiff::Timestamp::now(),
        });
        set_status(vms, &vm.name_any(), json!({"phase": "Released", "exit": exit})).await
    } else if is.as_deref() != Some(wanted) {
        set_status(vms, &vm.name_any(), json!({"phase": wanted})).await
    } else {
        Ok(())
    }
}

fn phase(vm: &MicroVM) -> Option<MicroVMPhase> {
    vm.status.as_ref().and_then(|status| status.phase)
}

async fn bind(pods: &Api<Pod>, pod: &Pod) -> kube::Result<()> {
    let binding = json!({
        "apiVersion": "v1", "kind": "Binding",
        "metadata": {"name": pod.name_any(), "uid": pod.uid()},
        "target": {"apiVersion": "v1", "kind": "Node", "name": "host-1"},
    });
    let params = kube::api::PostParams::default();
    let _: Value = pods.create_subresource("binding", &pod.name_any(), &params, &binding).await?;
    Ok(())
}

async fn set_status<K>(api: &Api<K>, name: &str, status: Value) -> kube::Result<()>
where
    K: kube::Resource + Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let patch = Patch::Merge(json!({"status": status}));
    api.patch_status(name, &PatchParams::default(), &patch).await?;
    Ok(())
}
