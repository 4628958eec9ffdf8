//! gRPC to a unix socket of kubelet's.

use hyper_util::rt::TokioIo;
use std::path::PathBuf;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Error};

/// Connects.
pub async fn connect(socket: PathBuf) -> Result<Channel, Error> {
    let connector = tower::service_fn(move |_| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The address is not used: the connector always goes to the socket.
    Endpoint::from_static("http://kubelet").connect_with_connector(connector).await
}
