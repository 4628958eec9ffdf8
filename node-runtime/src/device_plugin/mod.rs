//! The kubelet device plugins of this host: extended resources, so that kube-scheduler finds hosts that can run guests
//! and have the devices these ask for, and kubelet deals them out.
//!
//! A pod gets nothing but names: the engine gets its open descriptors from the node runtime, not device nodes in the
//! pod; but for engines that can't take a descriptor. Owns the plugins' sockets and their registration. Decides nothing about guests.

mod offers;
mod registration;
mod service;

pub use offers::Offers;

use crate::report;
use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::watch;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;

/// Kubelet's messages.
#[allow(missing_docs, clippy::all, unreachable_pub, clippy::pedantic)]
mod api {
    tonic::include_proto!("v1beta1");
}

/// How often the plugin looks whether kubelet has removed its socket, which is how kubelet says that it has restarted
/// (k8s.io/kubelet, device manager: "kubelet removes all sockets in its device plugin directory at start").
const KUBELET_CHECK: Duration = Duration::from_secs(2);

/// Wait before a plugin is served again after a failure.
const AFTER_FAILURE: Duration = Duration::from_secs(2);

/// One extended resource and the directory of kubelet's plugins.
#[derive(Clone, Debug)]
struct DevicePlugin {
    /// Name of the resource, for example `vse.hpc.io/kvm`.
    resource: String,
    /// What there is of it.
    devices: watch::Receiver<Vec<Device>>,
    /// Device node that a pod with it gets, for engines that open it by name.
    node: Option<&'static str>,
    /// `/var/lib/kubelet/device-plugins`.
    directory: PathBuf,
}

/// One device of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its name, which stays the same over restarts.
    pub id: String,
    /// Whether a pod can have it.
    pub healthy: bool,
    /// NUMA cell it is best used from.
    pub cell: Option<u32>,
    /// PCI functions it stands for.
    pub functions: Vec<String>,
}

/// Devices that stand for nothing but the right to run a guest here.
pub fn tickets(count: u32) -> Vec<Device> {
    let ticket = |id: u32| Device { id: id.to_string(), healthy: true, cell: None, functions: Vec::new() };
    (0..count).map(ticket).collect()
}

/// Why the plugin stopped serving. Serving again is safe at any time.
#[derive(Debug, thiserror::Error)]
enum Error {
    /// The plugin's own socket.
    #[error("cannot listen on {}", path.display())]
    Listen {
        /// The socket.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// The gRPC server.
    #[error("device plugin server failed")]
    Serve(#[source] tonic::transport::Error),
    /// Kubelet did not take the registration.
    #[error("cannot register {resource} with kubelet")]
    Register {
        /// The resource.
        resource: String,
        /// Why.
        source: registration::Error,
    },
}

impl DevicePlugin {
    fn endpoint(&self) -> String {
        format!("{}.sock", self.resource.replace('/', "-"))
    }

    /// Serves for ever, through kubelet's restarts and failures of its own.
    async fn keep_served(self) {
        loop {
            match self.serve().await {
                Ok(()) => tracing::info!(resource = self.resource, "kubelet restarted"),
                Err(error) => {
                    tracing::warn!(resource = self.resource, error = %report(&error), "device plugin, will try again");
                    tokio::time::sleep(AFTER_FAILURE).await;
                }
            }
        }
    }

    /// Serves until kubelet restarts, or fails.
    async fn serve(&self) -> Result<(), Error> {
        let path = self.directory.join(self.endpoint());
        let listen = |source| Error::Listen { path: path.clone(), source };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(listen(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(listen)?;
        let server = Server::builder()
            .add_service(api::device_plugin_server::DevicePluginServer::new(service::Service::new(
                &self.resource,
                self.node,
                self.devices.clone(),
            )))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), socket_gone(path.clone()));
        let register = async {
            registration::register(&self.directory, &self.resource, &self.endpoint())
                .await
                .map_err(|source| Error::Register { resource: self.resource.clone(), source })
        };
        tokio::pin!(server);
        tokio::select! {
            served = &mut server => return served.map_err(Error::Serve),
            registered = register => registered?,
        }
        tracing::info!(resource = self.resource, "registered with kubelet");
        server.await.map_err(Error::Serve)
    }
}

async fn socket_gone(path: PathBuf) {
    let mut interval = tokio::time::interval(KUBELET_CHECK);
    while path.exists() {
        interval.tick().await;
    }
}
