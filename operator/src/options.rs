//! The command line.

use crate::vse::pod::Images;
use clap::{Parser, ValueEnum};
use std::collections::BTreeMap;
use std::net::SocketAddr;
use vse_crds::EngineName;

/// Makes VSEs (virtual system environments) into VM pods and MicroVMs.
#[derive(Parser, Clone, Debug)]
#[command(
    version,
    after_help = "Example:\n  vse-operator --launcher-image example.org/vse/launcher:0.1.0 \\\n    --engine-vmm-image example.org/vse/engine-vmm:0.1.0 \\\n    --engine-qemu-image example.org/vse/engine-qemu:0.1.0"
)]
pub struct Options {
    /// OCI image of the launcher, mounted in every VM pod.
    #[arg(long, env = "VSE_LAUNCHER_IMAGE")]
    pub launcher_image: String,

    /// OCI image with this project's VMM, the container of VM pods that run it.
    #[arg(long, env = "VSE_ENGINE_VMM_IMAGE")]
    pub engine_vmm_image: Option<String>,

    /// OCI image with Cloud Hypervisor as /usr/bin/cloud-hypervisor.
    #[arg(long, env = "VSE_ENGINE_CLOUD_HYPERVISOR_IMAGE")]
    pub engine_cloud_hypervisor_image: Option<String>,

    /// OCI image with QEMU as /usr/bin/qemu-system-x86_64.
    #[arg(long, env = "VSE_ENGINE_QEMU_IMAGE")]
    pub engine_qemu_image: Option<String>,

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
    /// Engines with their images; an empty name is none.
    fn engines(&self) -> BTreeMap<EngineName, String> {
        let given = [
            (EngineName::Vmm, &self.engine_vmm_image),
            (EngineName::CloudHypervisor, &self.engine_cloud_hypervisor_image),
            (EngineName::Qemu, &self.engine_qemu_image),
        ];
        let named = given.into_iter().filter_map(|(engine, image)| Some((engine, image.clone()?)));
        named.filter(|(_, image)| !image.is_empty()).collect()
    }

    /// Images of VM pods.
    pub fn images(&self) -> Images {
        Images {
            launcher: self.launcher_image.clone(),
            engines: self.engines(),
            pull_policy: self.image_pull_policy.clone(),
        }
    }
}
