//! What the cluster has to say of a scenario that failed, so that the log of a failed run is enough to understand it.

use crate::World;
use crate::cluster::kubectl;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use vse_crds::labels;

/// Prints objects, events, consoles, and the newest log lines of our components.
pub(crate) async fn print(world: &World) {
    let ns = world.namespace.as_str();
    tell("objects", &["-n", ns, "get", "vse,mvm,pods", "-o", "wide"]).await;
    tell("statuses", &["-n", ns, "get", "vse,mvm", "-o", "yaml", "--show-managed-fields=false"]).await;
    tell("events", &["-n", ns, "get", "events", "--sort-by=.lastTimestamp"]).await;
    tell("pods", &["-n", ns, "describe", "pods"]).await;
    for pod in world.all::<Pod>().await.unwrap_or_default() {
        if pod.labels().contains_key(labels::VSE) {
            tell("console", &["-n", ns, "logs", "--tail=20", &pod.name_any()]).await;
        }
    }
    for component in ["operator", "node-runtime"] {
        let selector = format!("app.kubernetes.io/component={component}");
        let logs = ["-n", "vse-system", "logs", "-l", &selector, "--tail=40", "--prefix", "--ignore-errors"];
        tell(component, &logs).await;
    }
}

async fn tell(title: &str, arguments: &[&str]) {
    match kubectl(arguments).await {
        Ok(text) => eprintln!("---- {title}\n{}", text.trim_end()),
        Err(error) => eprintln!("---- {title}: {error:#}"),
    }
}
