//! MicroVMs of this host: one task for each, which observes, plans ([`plan`], pure) and acts.
//!
//! Owns `MicroVM.status`. Never writes a spec, never touches a guest, nor lets it wait, because it can't reach the API
//! server.
//!
//! - [`controller`]: watches → tasks
//! - [`guest`]: the loop of one guest
//! - [`plan`], [`placement`], [`status`], [`image_identity`], [`resets`]: decisions and what is said of them, pure
//! - [`publish`]: what is said, written
//! - [`launch`] with [`images`], [`disks`], [`seed`], [`network`]: everything a guest needs, opened and handed over
//! - [`session`] with [`pod_directory`], [`pod_process`]: who answers in the pod

pub mod controller;
mod disks;
mod guest;
mod image_identity;
pub mod images;
mod launch;
mod network;
mod placement;
mod plan;
mod pod_directory;
mod pod_process;
mod publish;
mod resets;
mod seed;
mod session;
mod status;

pub use pod_directory::PodDirectories;

use crate::metrics::Metrics;
use kube::Client;
use std::path::PathBuf;
use std::sync::Arc;
use vse_crds::LogicalCpu;
use vse_node_runtime::crash_point::CrashPoints;

/// What all guests of a host share.
pub struct Context {
    /// API server.
    pub client: Client,
    /// This host.
    pub node_name: String,
    /// CPUs of this host, as it was started with.
    pub topology: Vec<LogicalCpu>,
    /// kubelet's pods.
    pub pods: PodDirectories,
    /// Prepared system images.
    pub images: Arc<images::Images>,
    /// The engine of this host.
    pub engine: vse_engine::qemu::Qemu,
    /// `/dev/kvm`.
    pub kvm_device: PathBuf,
    /// Counters.
    pub metrics: Metrics,
    /// Where a test wants this process to die.
    pub crash_points: CrashPoints,
}
