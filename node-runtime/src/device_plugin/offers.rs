//! The plugins of resources that come and go.

use super::{Device, DevicePlugin};
use std::collections::BTreeMap;
use std::path::PathBuf;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// Resources offered to kubelet. Dropping it ends their plugins.
///
/// A withdrawn resource keeps its plugin, which then lists nothing: kubelet goes on counting the devices of a plugin
/// that is merely gone until it sees the connection end, and refuses the pods it gives them to.
#[derive(Debug)]
pub struct Offers {
    directory: PathBuf,
    lists: BTreeMap<String, watch::Sender<Vec<Device>>>,
    plugins: JoinSet<()>,
}

impl Offers {
    /// None yet. `directory` is kubelet's, of device plugins.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory, lists: BTreeMap::new(), plugins: JoinSet::new() }
    }

    /// Offers these devices of a resource, now and until told otherwise. A pod that gets one finds `node` in it: a
    /// device node for engines that open it by name, settled when the resource is first offered.
    pub fn offer(&mut self, resource: &str, devices: Vec<Device>, node: Option<&'static str>) {
        if let Some(list) = self.lists.get(resource) {
            list.send_if_modified(|known| std::mem::replace(known, devices.clone()) != devices);
            return;
        }
        let (list, devices) = watch::channel(devices);
        let plugin = DevicePlugin { resource: resource.to_owned(), devices, node, directory: self.directory.clone() };
        self.plugins.spawn(plugin.keep_served());
        self.lists.insert(resource.to_owned(), list);
    }

    /// Offers nothing of any other resource any more.
    pub fn withdraw_all_but(&mut self, is_offered: impl Fn(&str) -> bool) {
        for (_, list) in self.lists.iter().filter(|(resource, _)| !is_offered(resource)) {
            list.send_if_modified(|known| !std::mem::take(known).is_empty());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::{api, tickets};
    use super::*;
    use crate::unix_channel;
    use api::device_plugin_client::DevicePluginClient;
    use api::registration_server::{Registration, RegistrationServer};
    use tokio::net::UnixListener;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::UnixListenerStream;
    use tonic::{Request, Response, Status};

    /// Kubelet's end: hands on the socket of each plugin that registers.
    struct Kubelet(mpsc::UnboundedSender<String>);

    #[tonic::async_trait]
    impl Registration for Kubelet {
        async fn register(&self, request: Request<api::RegisterRequest>) -> Result<Response<api::Empty>, Status> {
            self.0.send(request.into_inner().endpoint).expect("the test waits for it");
            Ok(Response::new(api::Empty {}))
        }
    }

    #[tokio::test]
    async fn a_withdrawn_resource_is_offered_again_on_the_same_connection() {
        let directory = tempfile::tempdir().unwrap();
        let socket = UnixListener::bind(directory.path().join("kubelet.sock")).unwrap();
        let (registered, mut endpoints) = mpsc::unbounded_channel();
        let kubelet = tonic::transport::Server::builder()
            .add_service(RegistrationServer::new(Kubelet(registered)))
            .serve_with_incoming(UnixListenerStream::new(socket));
        let kubelet = tokio::spawn(kubelet);

        let mut offers = Offers::new(directory.path().to_owned());
        offers.offer("vse.hpc.io/card", tickets(2), None);
        let endpoint = endpoints.recv().await.unwrap();
        let channel = unix_channel::connect(directory.path().join(endpoint)).await.unwrap();
        let mut plugin = DevicePluginClient::new(channel);
        let mut lists = plugin.list_and_watch(api::Empty {}).await.unwrap().into_inner();
        assert_eq!(lists.message().await.unwrap().unwrap().devices.len(), 2);

        offers.withdraw_all_but(|resource| resource != "vse.hpc.io/card");
        assert!(lists.message().await.unwrap().unwrap().devices.is_empty());

        offers.offer("vse.hpc.io/card", tickets(1), None);
        assert_eq!(lists.message().await.unwrap().unwrap().devices.len(), 1);
        let container = api::ContainerAllocateRequest { devices_ids: vec!["0".into()] };
        plugin.allocate(api::AllocateRequest { container_requests: vec![container] }).await.unwrap();
        kubelet.abort();
    }
}
