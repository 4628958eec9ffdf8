//! MicroVMs of this host: one task for each, which observes, plans ([`plan`], pure) and acts.
//!
//! Owns `MicroVM.status`. Never writes a spec, never touches a guest, nor lets it wait, because it can't reach the API
//! server.
//!
//! - [`controller`]: watches → tasks
//! - [`guest`]: the loop of one guest
//! - [`plan`], [`placement`], [`cells`], [`numa_maps`], [`status`], [`image_identity`], [`resets`], [`kubelet`]:
//!   decisions and what is said of them, pure
//! - [`publish`]: what is said, written
//! - [`huge_pages`]: whether each cell has what guests need of it
//! - [`launch`] with [`images`], [`disks`], [`seed`], [`network`], [`host_devices`]: everything a guest needs, opened and
//!   handed over
//! - [`session`] with [`pod_directory`], [`pod_process`]: who answers in the pod

mod cells;
pub mod controller;
mod disks;
mod guest;
mod host_devices;
pub mod huge_pages;
mod image_identity;
pub mod images;
mod kubelet;
mod launch;
mod network;
mod numa_maps;
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

use crate::engines::Engines;
use crate::metrics::Metrics;
use crate::pci::Devices;
use crate::pod_resources::PodResourcesApi;
use kube::Client;
use std::path::PathBuf;
use std::sync::Arc;
use vse_crds::{Cell, LogicalCpu};
use vse_node_runtime::crash_point::CrashPoints;

/// What all guests of a host share.
pub struct Context {
    /// API server.
    pub client: Client,
    /// This host.
    pub node_name: String,
    /// CPUs of this host, as it was started with.
    pub topology: Vec<LogicalCpu>,
    /// NUMA cells of this host.
    pub cells: Vec<Cell>,
    /// Its huge pages.
    pub huge_pages: huge_pages::HugePages,
    /// kubelet's pods.
    pub pods: PodDirectories,
    /// Prepared system images.
    pub images: Arc<images::Images>,
    /// Drivers of the engines.
    pub engines: Engines,
    /// `/dev/kvm`.
    pub kvm_device: PathBuf,
    /// PCI functions of this host.
    pub devices: Arc<Devices>,
    /// kubelet's word on which pod has which device.
    pub pod_resources: PodResourcesApi,
    /// Counters.
    pub metrics: Metrics,
    /// Where a test wants this process to die.
    pub crash_points: CrashPoints,
}
