//! Telling kubelet that the plugin is there.

use super::api::{RegisterRequest, registration_client::RegistrationClient};
use crate::unix_channel;
use std::path::Path;

/// Version of the device plugin API.
const VERSION: &str = "v1beta1";
/// Kubelet's socket in its plugin directory.
const KUBELET_SOCKET: &str = "kubelet.sock";

/// Why kubelet did not take the registration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No connection.
    #[error("cannot reach kubelet's device plugin socket; is kubelet running, and its directory mounted?")]
    Connect(#[source] tonic::transport::Error),
    /// Refused.
    #[error("kubelet refused: {0}")]
    Refused(Box<tonic::Status>),
}

pub(super) async fn register(directory: &Path, resource: &str, endpoint: &str) -> Result<(), Error> {
    let socket = directory.join(KUBELET_SOCKET);
    let channel = unix_channel::connect(socket).await.map_err(Error::Connect)?;
    let request = RegisterRequest {
        version: VERSION.into(),
        endpoint: endpoint.into(),
        resource_name: resource.into(),
        options: None,
    };
    RegistrationClient::new(channel).register(request).await.map_err(|status| Error::Refused(Box::new(status)))?;
    Ok(())
}
