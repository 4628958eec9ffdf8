//! What kubelet asks of a plugin.

use super::Device;
use super::api::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, Device as Listed, DevicePluginOptions, DeviceSpec,
    Empty, ListAndWatchResponse, NumaNode, PreStartContainerRequest, PreStartContainerResponse,
    PreferredAllocationRequest, PreferredAllocationResponse, TopologyInfo, device_plugin_server::DevicePlugin,
};
use futures::stream::{self, BoxStream, StreamExt};
use tokio::sync::watch;
use tonic::{Request, Response, Status};

/// What there is of one resource.
pub(super) struct Service {
    /// Environment variable in which a pod reads which functions it got.
    variable: String,
    /// Device node that a pod gets.
    node: Option<&'static str>,
    devices: watch::Receiver<Vec<Device>>,
}

impl Service {
    pub(super) fn new(resource: &str, node: Option<&'static str>, devices: watch::Receiver<Vec<Device>>) -> Self {
        Self { variable: variable(resource), node, devices }
    }

    fn allocate_container(&self, ids: &[String]) -> Result<ContainerAllocateResponse, Status> {
        let devices = self.devices.borrow();
        let mut functions = Vec::new();
        for id in ids {
            let device = devices.iter().find(|device| device.id == *id);
            let device = device.ok_or_else(|| Status::not_found(format!("there is no device {id} any more")))?;
            functions.extend(device.functions.iter().map(String::as_str));
        }
        let named = (!functions.is_empty()).then(|| (self.variable.clone(), functions.join(",")));
        let node = self.node.map(|path| DeviceSpec {
            container_path: path.to_owned(),
            host_path: path.to_owned(),
            permissions: "rw".to_owned(),
        });
        Ok(ContainerAllocateResponse {
            envs: named.into_iter().collect(),
            devices: node.into_iter().collect(),
            ..ContainerAllocateResponse::default()
        })
    }
}

/// `PCI_RESOURCE_VSE_HPC_IO_CLASS`, as KubeVirt names it for its guests.
fn variable(resource: &str) -> String {
    let name: String = resource.chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    format!("PCI_RESOURCE_{}", name.to_ascii_uppercase())
}

fn list(devices: &[Device]) -> ListAndWatchResponse {
    let listed = |device: &Device| Listed {
        id: device.id.clone(),
        health: if device.healthy { "Healthy" } else { "Unhealthy" }.into(),
        topology: device.cell.map(|cell| TopologyInfo { nodes: vec![NumaNode { id: i64::from(cell) }] }),
    };
    ListAndWatchResponse { devices: devices.iter().map(listed).collect() }
}

#[tonic::async_trait]
impl DevicePlugin for Service {
    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    type ListAndWatchStream = BoxStream<'static, Result<ListAndWatchResponse, Status>>;

    /// The list at once, and again at each change; the stream stays open as long as kubelet wants.
    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let mut devices = self.devices.clone();
        devices.mark_changed();
        let changes = stream::unfold(devices, |mut devices| async {
            if devices.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
            let now = list(&devices.borrow_and_update());
            Some((Ok(now), devices))
        });
        Ok(Response::new(changes.boxed()))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        Ok(Response::new(PreferredAllocationResponse::default()))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Result<Response<AllocateResponse>, Status> {
        let containers = request.into_inner().container_requests;
        let responses = containers.iter().map(|container| self.allocate_container(&container.devices_ids));
        Ok(Response::new(AllocateResponse { container_responses: responses.collect::<Result<_, _>>()? }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse::default()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(id: &str, healthy: bool) -> Device {
        Device { id: id.into(), healthy, cell: Some(1), functions: vec![id.into(), id.replace(".0", ".1")] }
    }

    #[tokio::test(flavor = "current_thread")]
    async fn kubelet_hears_of_each_change() {
        let (sender, devices) = watch::channel(vec![device("0000:65:00.0", true)]);
        let service = Service::new("vse.hpc.io/fast-nic", None, devices);
        let mut heard = service.list_and_watch(Request::new(Empty {})).await.unwrap().into_inner();
        let first = heard.next().await.unwrap().unwrap();
        assert_eq!(first.devices[0].health, "Healthy");
        assert_eq!(first.devices[0].topology.as_ref().unwrap().nodes[0].id, 1);
        sender.send_replace(vec![device("0000:65:00.0", false)]);
        assert_eq!(heard.next().await.unwrap().unwrap().devices[0].health, "Unhealthy");
    }

    #[test]
    fn a_pod_gets_the_node_of_its_engine() {
        let devices = watch::channel(super::super::tickets(2)).1;
        let service = Service::new("vse.hpc.io/engine-cloud-hypervisor", Some("/dev/kvm"), devices);
        let given = service.allocate_container(&["1".into()]).unwrap();
        assert_eq!(
            (given.devices[0].container_path.as_str(), given.devices[0].permissions.as_str()),
            ("/dev/kvm", "rw")
        );
        assert!(given.envs.is_empty());
    }

    #[test]
    fn a_pod_is_told_its_functions() {
        let devices = watch::channel(vec![device("0000:65:00.0", true), device("0000:66:00.0", true)]).1;
        let service = Service::new("vse.hpc.io/fast-nic", None, devices);
        let told = service.allocate_container(&["0000:66:00.0".into()]).unwrap();
        assert_eq!(told.envs["PCI_RESOURCE_VSE_HPC_IO_FAST_NIC"], "0000:66:00.0,0000:66:00.1");
        assert!(told.devices.is_empty() && told.mounts.is_empty());
        assert!(service.allocate_container(&["0000:67:00.0".into()]).is_err());
    }
}
