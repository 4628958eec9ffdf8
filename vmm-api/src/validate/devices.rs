//! Each device for itself.

use std::path::Path;

use super::{Findings, Problem};
use crate::config::VmConfig;
use crate::devices::{DeviceConfig, DiskConfig, FsConfig, NetConfig, PmemConfig, VhostMode, VsockConfig};

/// Most queues of a device: each takes memory of the host's.
const MOST_QUEUES: u64 = 64;
/// Most entries of a queue.
const MOST_ENTRIES: u64 = 1024;
/// A serial number's bytes (virtio 1.3, 5.2.6: VIRTIO_BLK_T_GET_ID).
const DISK_SERIAL: u64 = 20;
const MIB2: u64 = 2 << 20;

pub(super) fn check(config: &VmConfig, findings: &mut Findings) {
    for (index, device) in config.disks.iter().enumerate() {
        disk(&format!("disks[{index}]"), device, findings);
    }
    for (index, device) in config.net.iter().enumerate() {
        net(&format!("net[{index}]"), device, findings);
    }
    for (index, device) in config.fs.iter().enumerate() {
        fs(&format!("fs[{index}]"), device, findings);
    }
    for (index, device) in config.pmem.iter().enumerate() {
        pmem(&format!("pmem[{index}]"), device, findings);
    }
    for (index, device) in config.devices.iter().enumerate() {
        function(&format!("devices[{index}]"), device, config.vfio_container_fd.is_some(), findings);
    }
    if let Some(device) = &config.vsock {
        vsock(device, findings);
    }
    if !["", "/dev/urandom", "/dev/random"].map(Path::new).contains(&config.rng.src.as_path()) {
        findings.add("rng.src", Problem::NotSupported("sources of random numbers but the host kernel's"));
    }
    if let Some(agent) = &config.agent {
        one_of("agent", ("socket", is_set(&agent.socket)), ("socket_fd", agent.socket_fd.is_some()), findings);
    }
}

fn disk(path: &str, disk: &DiskConfig, findings: &mut Findings) {
    one_of(path, ("path", disk.path.is_some()), ("fd", disk.fd.is_some()), findings);
    queues(path, disk.num_queues, disk.queue_size, findings);
    if let Some(serial) = &disk.serial {
        findings.range(format!("{path}.serial"), serial.len() as u64, 0..=DISK_SERIAL);
        if !serial.bytes().all(|byte| byte.is_ascii_graphic() || byte == b' ') {
            let found = serial.clone();
            findings.add(format!("{path}.serial"), Problem::Form { found, expected: "printable ASCII" });
        }
    }
}

fn net(path: &str, net: &NetConfig, findings: &mut Findings) {
    one_of(path, ("tap", net.tap.is_some()), ("fds", !net.fds.is_empty()), findings);
    queues(path, net.num_queues, net.queue_size, findings);
    let pairs = u64::from(net.num_queues / 2);
    if !net.num_queues.is_multiple_of(2) {
        findings.add(format!("{path}.num_queues"), Problem::NotMultiple { found: net.num_queues.into(), of: 2 });
    }
    for (name, count) in [("fds", net.fds.len()), ("vhost_fds", net.vhost_fds.len())] {
        if count != 0 && count as u64 != pairs {
            let because = "half of num_queues";
            let (found, expected) = (count as u64, pairs);
            findings.add(format!("{path}.{name}"), Problem::Mismatch { found, expected, because });
        }
    }
    if let Some(mtu) = net.mtu {
        // Least: virtio 1.3, 5.1.4.2 (IPv4 over Ethernet).
        findings.range(format!("{path}.mtu"), mtu.into(), 68..=u16::MAX.into());
    }
    if net.mac.is_some_and(|mac| mac.0[0] & 1 != 0) {
        findings.add(format!("{path}.mac"), Problem::Contradiction("is an address of a group"));
    }
    if net.vhost_mode != VhostMode::Client {
        findings.add(format!("{path}.vhost_mode"), Problem::NotSupported("vhost-user for network devices"));
    }
}

fn fs(path: &str, fs: &FsConfig, findings: &mut Findings) {
    one_of(path, ("socket", is_set(&fs.socket)), ("socket_fd", fs.socket_fd.is_some()), findings);
    queues(path, fs.num_queues, fs.queue_size, findings);
    // virtio 1.3, 5.11.4.
    findings.range(format!("{path}.tag"), fs.tag.len() as u64, 1..=36);
}

fn pmem(path: &str, pmem: &PmemConfig, findings: &mut Findings) {
    one_of(path, ("file", is_set(&pmem.file)), ("fd", pmem.fd.is_some()), findings);
    if let Some(size) = pmem.size
        && (size == 0 || !size.is_multiple_of(MIB2))
    {
        findings.add(format!("{path}.size"), Problem::NotMultiple { found: size, of: MIB2 });
    }
}

fn function(path: &str, function: &DeviceConfig, has_container: bool, findings: &mut Findings) {
    one_of(path, ("path", is_set(&function.path)), ("vfio_group_fd", function.vfio_group_fd.is_some()), findings);
    // Finding out where it leads from elsewhere would take the working directory, which a confined process can't know.
    if is_set(&function.path) && !function.path.is_absolute() {
        let found = function.path.display().to_string();
        findings.add(format!("{path}.path"), Problem::Form { found, expected: "an absolute path" });
    }
    match (&function.host_address, function.vfio_group_fd) {
        (None, Some(_)) => {
            findings.add(format!("{path}.host_address"), Problem::Missing("a group may have several functions"));
        }
        (Some(_), None) => {
            findings.add(format!("{path}.host_address"), Problem::Contradiction("belongs to vfio_group_fd"));
        }
        (Some(address), Some(_)) if !is_pci_address(address) => {
            let found = address.clone();
            findings.add(format!("{path}.host_address"), Problem::Form { found, expected: "like 0000:65:00.1" });
        }
        _ => {}
    }
    if function.vfio_group_fd.is_some() && !has_container {
        findings.add("vfio_container_fd", Problem::Missing("devices come with vfio_group_fd"));
    }
}

fn vsock(vsock: &VsockConfig, findings: &mut Findings) {
    // virtio 1.3, 5.10.4: 0 to 2 and all ones have other meanings.
    findings.range("vsock.cid", vsock.cid.into(), 3..=u64::from(u32::MAX) - 1);
    // Both of the first two are a socket to connect to and a name for others.
    let given = [("vsock.socket", is_set(&vsock.socket)), ("vsock.socket_fd", vsock.socket_fd.is_some())];
    if vsock.vhost_fd.is_none() && given.iter().all(|(_, is_there)| !is_there) {
        findings.add("vsock.socket", Problem::Missing("host programs connect to it"));
    }
    for (path, _) in given.into_iter().filter(|(_, is_there)| *is_there && vsock.vhost_fd.is_some()) {
        findings.add(path, Problem::Contradiction("the kernel's vhost_fd has none"));
    }
}

fn queues(path: &str, count: u16, size: u16, findings: &mut Findings) {
    findings.range(format!("{path}.num_queues"), count.into(), 1..=MOST_QUEUES);
    if findings.range(format!("{path}.queue_size"), size.into(), 2..=MOST_ENTRIES) && !size.is_power_of_two() {
        findings.add(format!("{path}.queue_size"), Problem::NotPowerOfTwo(size.into()));
    }
}

/// One of two fields must be there, and not both.
pub(super) fn one_of(path: &str, first: (&str, bool), second: (&str, bool), findings: &mut Findings) {
    match (first.1, second.1) {
        (false, false) => findings.add(format!("{path}.{}", first.0), Problem::Missing("or an open descriptor of it")),
        (true, true) => {
            findings.add(format!("{path}.{}", second.0), Problem::Contradiction("is there by path as well"));
        }
        _ => {}
    }
}

fn is_set(path: &Path) -> bool {
    !path.as_os_str().is_empty()
}

/// `DDDD:BB:DD.F`
fn is_pci_address(text: &str) -> bool {
    let bytes = text.as_bytes();
    let is_hex = |range: std::ops::Range<usize>| bytes[range].iter().all(u8::is_ascii_hexdigit);
    bytes.len() == 12
        && (bytes[4], bytes[7], bytes[10]) == (b':', b':', b'.')
        && is_hex(0..4)
        && is_hex(5..7)
        && is_hex(8..10)
        && (b'0'..=b'7').contains(&bytes[11])
}
