//! What kubelet asks of the plugin.

use super::api::{
    AllocateRequest, AllocateResponse, ContainerAllocateResponse, Device, DevicePluginOptions, Empty,
    ListAndWatchResponse, PreStartContainerRequest, PreStartContainerResponse, PreferredAllocationRequest,
    PreferredAllocationResponse, device_plugin_server::DevicePlugin,
};
use futures::stream::{self, BoxStream, StreamExt};
use tonic::{Request, Response, Status};

/// A number of devices that stand for nothing but the right to run a guest here.
pub(super) struct Tickets {
    count: u32,
}

impl Tickets {
    pub(super) fn new(count: u32) -> Self {
        Self { count }
    }
}

#[tonic::async_trait]
impl DevicePlugin for Tickets {
    async fn get_device_plugin_options(&self, _: Request<Empty>) -> Result<Response<DevicePluginOptions>, Status> {
        Ok(Response::new(DevicePluginOptions::default()))
    }

    type ListAndWatchStream = BoxStream<'static, Result<ListAndWatchResponse, Status>>;

    /// The list never changes, so it is sent once and the stream stays open.
    async fn list_and_watch(&self, _: Request<Empty>) -> Result<Response<Self::ListAndWatchStream>, Status> {
        let devices =
            (0..self.count).map(|id| Device { id: id.to_string(), health: "Healthy".into(), topology: None }).collect();
        let once = stream::iter([Ok(ListAndWatchResponse { devices })]);
        Ok(Response::new(once.chain(stream::pending()).boxed()))
    }

    async fn get_preferred_allocation(
        &self,
        _: Request<PreferredAllocationRequest>,
    ) -> Result<Response<PreferredAllocationResponse>, Status> {
        Ok(Response::new(PreferredAllocationResponse::default()))
    }

    async fn allocate(&self, request: Request<AllocateRequest>) -> Result<Response<AllocateResponse>, Status> {
        let containers = request.into_inner().container_requests;
        Ok(Response::new(AllocateResponse {
            container_responses: containers.iter().map(|_| ContainerAllocateResponse::default()).collect(),
        }))
    }

    async fn pre_start_container(
        &self,
        _: Request<PreStartContainerRequest>,
    ) -> Result<Response<PreStartContainerResponse>, Status> {
        Ok(Response::new(PreStartContainerResponse::default()))
    }
}
