//! Command line.

use clap::{Args, Parser, ValueEnum};
use std::net::SocketAddr;
use std::path::PathBuf;
use tracing_subscriber::EnvFilter;

/// The agent on each host: publishes the Host, offers device-plugin resources, launches and keeps guests.
///
/// Runs as a privileged DaemonSet with the host's pid namespace. Ending it leaves all guests running; when it is
/// started again it takes them over.
#[derive(Debug, Parser)]
#[command(version, after_help = "Example:\n  vse-node-runtime --node-name host-7 --log-format text")]
pub struct Options {
    /// Name of this host's Node.
    #[arg(long, env = "NODE_NAME")]
    pub node_name: String,
    /// kubelet's root directory.
    #[arg(long, env = "KUBELET_ROOT", default_value = "/var/lib/kubelet")]
    pub kubelet_root: PathBuf,
    /// Where prepared system images are kept.
    #[arg(long, env = "IMAGE_CACHE", default_value = "/var/lib/vse/images")]
    pub image_cache: PathBuf,
    /// What was changed on this host's devices for guests, to be given back after them.
    #[arg(long, env = "DEVICE_LEDGER", default_value = "/var/lib/vse/devices.json")]
    pub device_ledger: PathBuf,
    /// The program guests start with.
    #[arg(long, env = "GUEST_INIT", default_value = "/vse-init")]
    pub guest_init: PathBuf,
    /// KVM's device.
    #[arg(long, env = "KVM_DEVICE", default_value = "/dev/kvm")]
    pub kvm_device: PathBuf,
    /// Address of /healthz, /readyz and /metrics.
    #[arg(long, env = "LISTEN", default_value = "0.0.0.0:8081")]
    pub listen: SocketAddr,
    /// Logging.
    #[command(flatten)]
    pub log: Log,
}

/// Logging.
#[derive(Debug, Args)]
pub struct Log {
    /// What to log, for example `info,vse_node_runtime=debug`.
    #[arg(long = "log", env = "LOG", default_value = "info")]
    filter: EnvFilter,
    /// How.
    #[arg(long = "log-format", env = "LOG_FORMAT", default_value = "json")]
    format: Format,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Format {
    Json,
    Text,
}

impl Log {
    /// Logs to standard error from now on.
    pub fn start(&self) {
        let filter = EnvFilter::new(self.filter.to_string());
        let log = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
        match self.format {
            Format::Json => log.json().init(),
            Format::Text => log.with_ansi(false).init(),
        }
    }
}
