//! `vse-node-runtime`: the agent on each host.

#![deny(unsafe_code)]

mod cpu_list;
mod device_plugin;
mod engines;
mod health;
mod heap;
mod host;
mod metrics;
mod microvm;
mod options;
mod pci;
mod pod_resources;
mod sysfs;
mod unix_channel;

use anyhow::Context as _;
use clap::Parser;
use options::Options;
use std::path::Path;
use std::sync::Arc;
use vse_node_runtime::crash_point::{self, CrashPoints};

fn main() -> anyhow::Result<()> {
    let options = Options::parse();
    options.log.start();
    // One thread: the work is waiting, and what blocks (making a system image) has threads of its own.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .context("cannot start the runtime")?
        .block_on(run(options))
}

async fn run(options: Options) -> anyhow::Result<()> {
    let client = kube::Client::try_default().await.context("no way to the API server")?;
    let hardware = host::Hardware { root: sysfs::Root::new("/"), kvm_device: options.kvm_device.clone() };
    let found = hardware.observe().context("cannot see what this host has")?;
    let metrics = metrics::Metrics::new();
    let images = microvm::images::Images::open(&options.image_cache, options.guest_init)
        .context("cannot use the image cache")?;
    let devices = Arc::new(
        pci::Devices::open(hardware.root.clone(), options.device_ledger)
            .context("cannot see what devices this host has")?,
    );
    let context = Arc::new(microvm::Context {
        client: client.clone(),
        node_name: options.node_name.clone(),
        topology: found.cpu.topology,
        cells: found.cells,
        huge_pages: microvm::huge_pages::HugePages::new(hardware.root.clone()),
        pods: microvm::PodDirectories::open(&options.kubelet_root)
            .with_context(|| format!("cannot open {}/pods", options.kubelet_root.display()))?,
        images: Arc::new(images),
        engines: engines::Engines::default(),
        kvm_device: options.kvm_device.clone(),
        devices: devices.clone(),
        pod_resources: pod_resources::PodResourcesApi::new(&options.kubelet_root),
        metrics: metrics.clone(),
        crash_points: CrashPoints::of(Path::new(crash_point::DIRECTORY)),
    });
    let plugins = options.kubelet_root.join("device-plugins");
    tokio::select! {
        () = microvm::controller::run(context) => anyhow::bail!("the watch of MicroVMs ended"),
        ended = host::controller::run(client, options.node_name, hardware, plugins, &devices) => ended,
        served = health::serve(options.listen, metrics) => served.context("health endpoint"),
        () = health::asked_to_end() => {
            tracing::info!("ending; guests go on");
            Ok(())
        }
    }
}

/// An error with its sources, as one line.
fn report(error: &(dyn std::error::Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
