//! The kubelet device plugin of this host: offers an extended resource so that kube-scheduler finds hosts that can run
//! guests, and the VM pod needs no privilege.
//!
//! The devices are tickets without anything behind them: the engine gets its open descriptors from the node runtime,
//! not device nodes in the pod. Owns the plugin's socket and its registration. Decides nothing about guests.

mod registration;
mod service;

use std::path::PathBuf;
use std::time::Duration;
use tokio::net::UnixListener;
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

/// One extended resource and the directory of kubelet's plugins.
#[derive(Clone, Debug)]
pub struct DevicePlugin {
    /// Name of the resource, for example `vse.hpc.io/kvm`.
    pub resource: &'static str,
    /// How many guests may hold one at a time.
    pub tickets: u32,
    /// `/var/lib/kubelet/device-plugins`.
    pub directory: PathBuf,
}

/// Why the plugin stopped serving. Serving again is safe at any time.
#[derive(Debug, thiserror::Error)]
pub enum Error {
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
        resource: &'static str,
        /// Why.
        source: registration::Error,
    },
}

impl DevicePlugin {
    fn endpoint(&self) -> String {
        format!("{}.sock", self.resource.replace('/', "-"))
    }

    /// Serves until kubelet restarts (the caller then calls again), or fails.
    pub async fn serve(&self) -> Result<(), Error> {
        let path = self.directory.join(self.endpoint());
        let listen = |source| Error::Listen { path: path.clone(), source };
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(listen(error)),
            _ => {}
        }
        let listener = UnixListener::bind(&path).map_err(listen)?;
        let server = Server::builder()
            .add_service(api::device_plugin_server::DevicePluginServer::new(service::Tickets::new(self.tickets)))
            .serve_with_incoming_shutdown(UnixListenerStream::new(listener), socket_gone(path.clone()));
        let register = async {
            registration::register(&self.directory, self.resource, &self.endpoint())
                .await
                .map_err(|source| Error::Register { resource: self.resource, source })
        };
        tokio::pin!(server);
        tokio::select! {
            served = &mut server => return served.map_err(Error::Serve),
            registered = register => registered?,
        }
        tracing::info!(resource = self.resource, tickets = self.tickets, "registered with kubelet");
        server.await.map_err(Error::Serve)
    }
}

async fn socket_gone(path: PathBuf) {
    let mut interval = tokio::time::interval(KUBELET_CHECK);
    while path.exists() {
        interval.tick().await;
    }
}
