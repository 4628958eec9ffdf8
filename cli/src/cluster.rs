//! The connection to the API server, found as kubectl finds it.

use crate::args::Connect;
use anyhow::{Context, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

/// An API server and the namespace commands are about.
pub struct Cluster {
    pub client: Client,
    pub namespace: String,
}

impl Cluster {
    /// Reads the kubeconfig; sends nothing yet.
    pub async fn connect(args: &Connect) -> Result<Self> {
        let options = KubeConfigOptions { context: args.context.clone(), ..KubeConfigOptions::default() };
        let config = match &args.kubeconfig {
            Some(path) => {
                let file = Kubeconfig::read_from(path)
                    .with_context(|| format!("can't read the kubeconfig {}", path.display()))?;
                Config::from_custom_kubeconfig(file, &options).await
            }
            None => Config::from_kubeconfig(&options).await,
        };
        let mut config = match config {
            Ok(config) => config,
            // In a pod there is no kubeconfig but a service account.
            Err(error) => Config::incluster()
                .map_err(|_| error)
                .context("no usable kubeconfig; see --kubeconfig and --context")?,
        };
        // Consoles are silent for hours.
        config.read_timeout = None;
        let namespace = args.namespace.clone().unwrap_or_else(|| config.default_namespace.clone());
        let client = Client::try_from(config).context("can't use the kubeconfig")?;
        Ok(Self { client, namespace })
    }
}
