//! Which devices kubelet gave a pod, from its pod resources API. kubelet knows after its restarts and ours; what stands
//! in the pod's environment is the pod's to change, and is not looked at.

use crate::unix_channel;
use api::pod_resources_lister_client::PodResourcesListerClient;
use api::{ListPodResourcesRequest, PodResources};
use std::collections::BTreeMap;
use std::path::PathBuf;
use vse_crds::labels;

/// kubelet's messages.
#[allow(missing_docs, clippy::all, unreachable_pub, clippy::pedantic)]
mod api {
    tonic::include_proto!("v1");
}

/// Names of the devices a pod has of each extended resource.
pub type Allocated = BTreeMap<String, Vec<String>>;

/// kubelet's answer, or the way to it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection.
    #[error("cannot reach kubelet's pod resources socket")]
    Connect(#[source] tonic::transport::Error),
    /// No answer.
    #[error("kubelet does not tell what devices pods have: {0}")]
    Refused(Box<tonic::Status>),
    /// Two pods of one name: one is leaving.
    #[error("kubelet knows more than one pod of that name; waiting for the other one's end")]
    Ambiguous,
}

/// kubelet's pod resources API.
#[derive(Clone, Debug)]
pub struct PodResourcesApi {
    socket: PathBuf,
}

impl PodResourcesApi {
    /// Below kubelet's root directory.
    pub fn new(kubelet_root: &std::path::Path) -> Self {
        Self { socket: kubelet_root.join("pod-resources/kubelet.sock") }
    }

    /// What a pod's VM container has.
    pub async fn of_pod(&self, namespace: &str, name: &str) -> Result<Allocated, Error> {
        let channel = unix_channel::connect(self.socket.clone()).await.map_err(Error::Connect)?;
        let answer = PodResourcesListerClient::new(channel).list(ListPodResourcesRequest {}).await;
        let all = answer.map_err(|status| Error::Refused(Box::new(status)))?.into_inner().pod_resources;
        of_pod(all, namespace, name)
    }
}

/// The API has no UIDs, and names are unique only at one time.
fn of_pod(all: Vec<PodResources>, namespace: &str, name: &str) -> Result<Allocated, Error> {
    let mut own = all.into_iter().filter(|pod| pod.namespace == namespace && pod.name == name);
    let (pod, more) = (own.next(), own.next());
    if more.is_some() {
        return Err(Error::Ambiguous);
    }
    let mut allocated = Allocated::new();
    let containers = pod.into_iter().flat_map(|pod| pod.containers).filter(|c| c.name == labels::VM_CONTAINER);
    for devices in containers.flat_map(|container| container.devices) {
        // One entry for each NUMA cell.
        allocated.entry(devices.resource_name).or_default().extend(devices.device_ids);
    }
    allocated.values_mut().for_each(|ids| ids.sort());
    Ok(allocated)
}

#[cfg(test)]
mod tests {
    use super::api::{ContainerDevices, ContainerResources};
    use super::*;

    fn pod(name: &str, ids: &[&str]) -> PodResources {
        let device =
            |id: &&str| ContainerDevices { resource_name: "vse.hpc.io/nic".into(), device_ids: vec![(*id).to_owned()] };
        let container =
            |name: &str| ContainerResources { name: name.into(), devices: ids.iter().map(device).collect() };
        PodResources {
            name: name.into(),
            namespace: "team".into(),
            containers: vec![container("vm"), container("sidecar")],
        }
    }

    #[test]
    fn a_pod_has_its_own_devices_only() {
        let all = || vec![pod("a-1", &["0000:66:00.0", "0000:65:00.0"]), pod("b-1", &["0000:67:00.0"])];
        let of_a = of_pod(all(), "team", "a-1").unwrap();
        assert_eq!(of_a["vse.hpc.io/nic"], ["0000:65:00.0", "0000:66:00.0"]);
        assert!(of_pod(all(), "other", "a-1").unwrap().is_empty());
    }

    #[test]
    fn two_pods_of_one_name_are_not_guessed_between() {
        assert!(matches!(of_pod(vec![pod("a-1", &[]), pod("a-1", &[])], "team", "a-1"), Err(Error::Ambiguous)));
    }
}
