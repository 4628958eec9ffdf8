//! The command line.

use crate::vse::pod::Images;
use clap::{Parser, ValueEnum};
use std::net::SocketAddr;

/// Makes VSEs (virtual system environments) into VM pods and MicroVMs.
#[derive(Parser, Clone, Debug)]
#[command(
    version,
    after_help = "Example:\n  vse-operator --launcher-image example.org/vse/launcher:0.1.0 \\\n    --engine-qemu-image example.org/vse/engine-qemu:0.1.0"
)]
pub struct Options {
    /// OCI image of the launcher, mounted in every VM pod.
    #[arg(long, env = "VSE_LAUNCHER_IMAGE")]
    pub launcher_image: String,

    /// OCI image with QEMU, the container of VM pods.
    #[arg(long, env = "VSE_ENGINE_QEMU_IMAGE")]
    pub engine_qemu_image: String,

    /// Pull policy of launcher and engine images: Always, IfNotPresent or Never. Kubelet's default if not given.
    #[arg(long, env = "VSE_IMAGE_PULL_POLICY", value_parser = ["Always", "IfNotPresent", "Never"])]
    pub image_pull_policy: Option<String>,

    /// Namespace of the leader election's Lease.
    #[arg(long, env = "POD_NAMESPACE", default_value = "vse-system")]
    pub namespace: String,

    /// Name of this process in the leader election; the pod's name in a cluster.
    #[arg(long, env = "POD_NAME")]
    pub identity: Option<String>,

    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, env = "VSE_LISTEN", default_value = "[::]:8080")]
    pub listen: SocketAddr,

    /// Form of the log lines.
    #[arg(long, env = "VSE_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,

    /// What is logged, as tracing's EnvFilter reads it.
    #[arg(long, env = "RUST_LOG", default_value = "info")]
    pub log: String,
}

/// Form of the log lines.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Options {
    /// Images of VM pods.
    pub fn images(&self) -> Images {
        Images {
            launcher: self.launcher_image.clone(),
            engine_qemu: self.engine_qemu_image.clone(),
            pull_policy: self.image_pull_policy.clone(),
        }
    }
}
