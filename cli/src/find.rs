//! Finding a VSE and what stands behind it, with errors that say where was looked.

use crate::cluster::Cluster;
use anyhow::{Context, Result, bail};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, ResourceExt};
use vse_crds::{GROUP, MicroVM, VERSION, VSE, condition, labels, vse_conditions};

/// The VSE of that name.
pub async fn vse(cluster: &Cluster, name: &str) -> Result<VSE> {
    let api: Api<VSE> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    let namespace = &cluster.namespace;
    match api.get_opt(name).await.with_context(|| format!("can't read VSE {namespace}/{name}"))? {
        Some(vse) => Ok(vse),
        None if no_types(cluster).await => {
            bail!("this cluster has no VSEs: the types of {GROUP} are not installed (see the chart vse)")
        }
        None => bail!("there is no VSE {name} in namespace {namespace}; --namespace names another one"),
    }
}

/// Whether the API server does not know the types at all; it answers both with "not found".
async fn no_types(cluster: &Cluster) -> bool {
    let resources = cluster.client.list_api_group_resources(&format!("{GROUP}/{VERSION}")).await;
    matches!(resources, Err(kube::Error::Api(status)) if status.code == 404)
}

/// Name of the latest incarnation's pod and MicroVM, if there was one.
pub fn incarnation(vse: &VSE) -> Option<String> {
    let number = vse.status.as_ref()?.incarnation;
    (number > 0).then(|| labels::incarnation_name(&vse.name_any(), number))
}

/// The pod of a VSE whose guest runs or is about to.
pub async fn running_pod(cluster: &Cluster, vse: &VSE) -> Result<Pod> {
    let pod = match incarnation(vse) {
        Some(name) => pods(cluster).get_opt(&name).await.context("can't read the VM pod")?,
        None => None,
    };
    match pod {
        Some(pod) if phase(&pod) == "Running" => Ok(pod),
        _ => bail!("{}", why_not_running(vse)),
    }
}

/// The MicroVM of the latest incarnation, if it is there.
pub async fn microvm(cluster: &Cluster, vse: &VSE) -> Result<Option<MicroVM>> {
    let api: Api<MicroVM> = Api::namespaced(cluster.client.clone(), &cluster.namespace);
    match incarnation(vse) {
        Some(name) => api.get_opt(&name).await.context("can't read the MicroVM"),
        None => Ok(None),
    }
}

/// Pods of the cluster's namespace.
pub fn pods(cluster: &Cluster) -> Api<Pod> {
    Api::namespaced(cluster.client.clone(), &cluster.namespace)
}

/// Phase of a pod, `Unknown` if it has none.
pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Unknown")
}

/// One sentence on why a VSE has no running guest, in the operator's words.
pub fn why_not_running(vse: &VSE) -> String {
    let name = vse.name_any();
    let Some(status) = &vse.status else {
        return format!("VSE {name} is not running: no operator has looked at it yet");
    };
    let phase = status.phase.map_or("not started".into(), |phase| format!("{phase:?}"));
    let said = [vse_conditions::STALLED, vse_conditions::READY, vse_conditions::PROGRESSING]
        .iter()
        .filter_map(|type_| condition::find(&status.conditions, type_))
        .find(|c| !c.message.is_empty() && (c.type_ != vse_conditions::STALLED || c.status == "True"));
    match said {
        Some(c) => format!("VSE {name} is not running ({phase}): {}", c.message),
        None => format!("VSE {name} is not running ({phase})"),
    }
}
