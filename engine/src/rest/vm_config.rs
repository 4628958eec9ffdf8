//! A guest in our VMM's words: Cloud Hypervisor's VmConfig, in which numbers of descriptors stand for paths. Pure: the
//! same guest gives the same text.

use serde_json::{Value, json};

use super::{AGENT_SOCKET, API_SOCKET, DISK_QUEUE, EVENTS_SOCKET, NET_QUEUE, disk_queues, mac};
use crate::config::{Accelerator, Boot, Cache, ConfigError, Disk, DiskSource, GuestConfig, Nic};
use crate::descriptors::Descriptors;
use crate::placement::GuestCell;
use crate::{Command, PageSize, Passthrough};

/// What to start for this guest.
pub(super) fn command<'a>(program: &str, guest: &'a GuestConfig) -> Result<Command<'a>, ConfigError> {
    let mut fds = Descriptors::default();
    let Accelerator::Kvm(kvm) = &guest.accelerator else {
        return Err(ConfigError::Impossible { field: "acceleration" });
    };
    let kvm = fds.add("/dev/kvm", kvm);
    let config = vm_config(guest, &mut fds);
    let directory = &guest.runtime_dir;
    let options = [
        ("--api-socket", format!("path={directory}/{API_SOCKET}")),
        ("--event-monitor", format!("socket={directory}/{EVENTS_SOCKET}")),
        ("--kvm-fd", kvm.to_string()),
        ("--seccomp", "true".to_owned()),
        ("--config-json", config.to_string()),
    ];
    let args = options.into_iter().flat_map(|(name, value)| [name.to_owned(), value]).collect();
    Ok(Command { program: program.to_owned(), args, env: vec![], descriptors: fds.into_vec() })
}

fn vm_config<'a>(guest: &'a GuestConfig, fds: &mut Descriptors<'a>) -> Value {
    let queues = disk_queues(guest);
    let mut config = json!({
        "payload": payload(&guest.boot, fds),
        "cpus": cpus(guest),
        "memory": memory(guest),
        "rng": {"src": "/dev/urandom"},
        "serial": {"mode": "Tty"},
        "console": {"mode": "Off"},
        "pvpanic": true,
        "platform": {"uuid": guest.uuid, "serial_number": guest.name},
        "agent": {"socket": format!("{}/{AGENT_SOCKET}", guest.runtime_dir)},
    });
    if guest.cells.len() > 1 {
        config["numa"] = guest.cells.iter().enumerate().map(|(index, cell)| numa(index, cell)).collect();
    }
    if !guest.nics.is_empty() {
        config["net"] = guest.nics.iter().enumerate().map(|(index, nic)| net(index, nic, fds)).collect();
    }
    if !guest.disks.is_empty() {
        let disks = guest.disks.iter().enumerate();
        config["disks"] = disks.map(|(index, one)| disk(index, one, queues, fds)).collect();
    }
    if let Some(Passthrough { container, devices }) = &guest.passthrough {
        config["vfio_container_fd"] = json!(fds.add("VFIO container", container));
        let device = |device: &'a crate::HostDevice| {
            let group = fds.add(format!("VFIO group of {}", device.address), &device.group);
            json!({"id": device.name, "vfio_group_fd": group, "host_address": device.address})
        };
        config["devices"] = devices.iter().map(device).collect();
    }
    config
}

fn payload<'a>(boot: &'a Boot, fds: &mut Descriptors<'a>) -> Value {
    let mut payload = json!({"kernel_fd": fds.add("kernel", &boot.kernel), "cmdline": boot.command_line});
    if let Some(initramfs) = &boot.initramfs {
        payload["initramfs_fd"] = json!(fds.add("initramfs", initramfs));
    }
    payload
}

fn cpus(guest: &GuestConfig) -> Value {
    let cpu = guest.cpu;
    let mut cpus = json!({
        "boot_vcpus": cpu.vcpus(),
        "max_vcpus": cpu.vcpus(),
        "topology": {
            "threads_per_core": cpu.threads,
            "cores_per_die": cpu.cores,
            "dies_per_package": 1,
            "packages": cpu.sockets,
        },
    });
    if guest.placement.is_dedicated() {
        let pinned = guest.placement.pinned.iter().enumerate();
        cpus["affinity"] = pinned.map(|(vcpu, cpu)| json!({"vcpu": vcpu, "host_cpus": [cpu]})).collect();
        cpus["dedicated"] = json!(true);
    }
    cpus
}

/// One size where memory may lie anywhere in usual pages, else a zone for each cell.
fn memory(guest: &GuestConfig) -> Value {
    let anywhere = guest.cells.iter().all(|cell| cell.host_cells.is_empty());
    match guest.cells.as_slice() {
        [] | [_] if anywhere && guest.memory.pages == PageSize::Default => {
            json!({"size": guest.memory.bytes, "shared": false})
        }
        [] => {
            let all = GuestCell { bytes: guest.memory.bytes, ..GuestCell::default() };
            json!({"size": 0, "zones": zones(0, &all, guest.memory.pages)})
        }
        cells => {
            let zones = cells.iter().enumerate().flat_map(|(index, cell)| zones(index, cell, guest.memory.pages));
            json!({"size": 0, "zones": zones.collect::<Vec<_>>()})
        }
    }
}

/// The memory of a cell: one zone for each host cell it lies on, in equal parts.
fn zones(index: usize, cell: &GuestCell, pages: PageSize) -> Vec<Value> {
    let zone = |id: String, bytes: u64, host_cell: Option<u32>| {
        let huge = pages != PageSize::Default;
        let mut zone = json!({"id": id, "size": bytes, "shared": huge});
        if huge {
            zone["hugepages"] = json!(true);
            zone["hugepage_size"] = json!(pages.bytes());
        }
        if huge || host_cell.is_some() {
            zone["prefault"] = json!(true);
        }
        if let Some(host_cell) = host_cell {
            zone["host_numa_node"] = json!(host_cell);
        }
        zone
    };
    let ids = zone_ids(index, cell);
    let parts = cell.parts(pages.bytes()).into_iter().map(|(host_cell, bytes)| (bytes, Some(host_cell)));
    let parts = if cell.host_cells.is_empty() { vec![(cell.bytes, None)] } else { parts.collect() };
    ids.into_iter().zip(parts).map(|(id, (bytes, host_cell))| zone(id, bytes, host_cell)).collect()
}

fn zone_ids(index: usize, cell: &GuestCell) -> Vec<String> {
    match cell.host_cells.len() {
        0 | 1 => vec![format!("cell{index}")],
        parts => (0..parts).map(|part| format!("cell{index}-{part}")).collect(),
    }
}

fn numa(index: usize, cell: &GuestCell) -> Value {
    let others = cell.distances.iter().enumerate().filter(|(to, _)| *to != index);
    json!({
        "guest_numa_id": index,
        "cpus": cell.vcpus,
        "memory_zones": zone_ids(index, cell),
        "distances": others
            .map(|(to, distance)| json!({"destination": to, "distance": distance}))
            .collect::<Vec<_>>(),
    })
}

fn net<'a>(index: usize, nic: &'a Nic, fds: &mut Descriptors<'a>) -> Value {
    let mut hand_over = |what: &str, all: &'a [std::os::fd::OwnedFd]| -> Vec<i32> {
        let all = all.iter().enumerate();
        all.map(|(queue, fd)| fds.add(format!("{what} {index}.{queue}"), fd)).collect()
    };
    let mut net = json!({
        "id": format!("net{index}"),
        "fds": hand_over("tap", &nic.taps),
        "mac": mac(nic.mac),
        // A pair has two queues.
        "num_queues": 2 * nic.taps.len(),
        "queue_size": NET_QUEUE,
    });
    if !nic.vhosts.is_empty() {
        net["vhost_fds"] = json!(hand_over("vhost", &nic.vhosts));
    }
    net
}

fn disk<'a>(index: usize, disk: &'a Disk, queues: u32, fds: &mut Descriptors<'a>) -> Value {
    let mut value = json!({
        "id": format!("disk{index}"),
        "serial": disk.serial,
        "readonly": disk.read_only,
        "direct": disk.cache == Cache::Direct,
        "discard": disk.discard,
        "num_queues": queues,
        "queue_size": DISK_QUEUE,
    });
    match &disk.source {
        DiskSource::Fd(fd) => value["fd"] = json!(fds.add(format!("disk {}", disk.serial), fd)),
        DiskSource::Path(path) => value["path"] = json!(path),
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::{guest, null, two_cells};
    use crate::rest::Vmm;
    use crate::{Engine as _, HostDevice};

    /// The options, the configuration field by field, the descriptors. `UPDATE_GOLDEN=1` writes the file anew.
    fn assert_golden(name: &str, guest: &GuestConfig) {
        let command = Vmm::default().command(guest).unwrap();
        let mut text = command.program;
        for pair in command.args.chunks(2) {
            let value = match serde_json::from_str::<Value>(&pair[1]) {
                Ok(config @ Value::Object(_)) => {
                    // The VMM's own reader knows each field, and each rule.
                    let read = vse_vmm_api::json::read::<vse_vmm_api::VmConfig>(pair[1].as_bytes()).unwrap();
                    read.validate().unwrap();
                    serde_json::to_string_pretty(&config).unwrap()
                }
                _ => pair[1].clone(),
            };
            text.push_str(&format!("\n{} {value}", pair[0]));
        }
        for handed in &command.descriptors {
            text.push_str(&format!("\n# {}: {}", handed.target, handed.name));
        }
        text.push('\n');
        let path = format!("{}/src/rest/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{path}; UPDATE_GOLDEN=1 writes it anew");
    }

    #[test]
    fn one_of_everything() {
        let mut guest = guest();
        guest.accelerator = Accelerator::Kvm(null());
        guest.nics[0].taps.push(null());
        guest.nics[0].vhosts.extend([null(), null()]);
        assert_golden("vmm", &guest);
    }

    #[test]
    fn two_cells_and_a_device() {
        let mut guest = two_cells();
        let device = HostDevice { name: "nic".into(), address: "0000:65:00.1".into(), group: null() };
        guest.passthrough = Some(Passthrough { container: null(), devices: vec![device] });
        assert_golden("vmm-two-cells", &guest);
    }

    #[test]
    fn a_cell_on_two_host_cells_has_two_zones() {
        let cell = GuestCell { bytes: 5 << 21, host_cells: vec![0, 3], vcpus: vec![0], distances: vec![] };
        let zones = zones(0, &cell, PageSize::Huge2M);
        let field = |name: &str| zones.iter().map(|zone| zone[name].clone()).collect::<Vec<_>>();
        assert_eq!(field("id"), ["cell0-0", "cell0-1"]);
        assert_eq!(field("size"), [3 << 21, 2 << 21]);
        assert_eq!(field("host_numa_node"), [0, 3]);
    }
}
