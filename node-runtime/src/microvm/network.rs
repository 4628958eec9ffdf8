//! From a MicroVM's network and its pod to what `vse-guest-network` sets up.

use super::pod_process::PodProcess;
use super::{launch, seed};
use rustix::fs::OFlags;
use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use vse_crds::{MicroVMSpec, Port, Protocol};
use vse_guest_network::{self as guest_network, Attached, Dns, GuestNetworkConfig, PortMapping};

/// Most of a resolv.conf that is read.
const MAX_RESOLV_CONF: u64 = 64 << 10;

/// Sets up the guest's network in its pod.
pub(super) async fn attach(vm: &MicroVMSpec, process: &PodProcess) -> Result<Option<Attached>, launch::Error> {
    let Some(config) = config(vm, process) else { return Ok(None) };
    let namespace = process.network_namespace()?;
    Ok(Some(guest_network::attach(namespace.as_fd(), &config).await?))
}

/// Finds the network of a running guest again, and serves its DHCP from now on.
pub(super) async fn adopt(vm: &MicroVMSpec, process: &PodProcess) -> Result<Option<Attached>, launch::Error> {
    let Some(config) = config(vm, process) else { return Ok(None) };
    let namespace = process.network_namespace()?;
    Ok(Some(guest_network::adopt(namespace.as_fd(), &config).await?))
}

fn config(vm: &MicroVMSpec, process: &PodProcess) -> Option<GuestNetworkConfig> {
    let network = vm.network.as_ref()?;
    Some(GuestNetworkConfig {
        mac_seed: vm.vse_uid.clone(),
        ports: network.ports.iter().map(mapping).collect(),
        dns: Dns::from_resolv_conf(&resolv_conf(process)),
        hostname: seed::hostname(vm).to_owned(),
        queues: 1,
    })
}

fn mapping(port: &Port) -> PortMapping {
    PortMapping {
        protocol: match port.protocol {
            Protocol::Tcp => guest_network::Protocol::Tcp,
            Protocol::Udp => guest_network::Protocol::Udp,
        },
        port: port.port,
        guest_port: port.port,
    }
}

/// The pod's resolver configuration, as kubelet made it; none is no error.
fn resolv_conf(process: &PodProcess) -> String {
    let mut text = String::new();
    if let Ok(file) = process.open_in_root("/etc/resolv.conf", OFlags::RDONLY | OFlags::NONBLOCK) {
        // A file that is no text says nothing about DNS.
        let _ = File::from(file).take(MAX_RESOLV_CONF).read_to_string(&mut text);
    }
    text
}
