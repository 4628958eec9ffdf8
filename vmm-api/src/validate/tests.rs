use super::*;
use crate::json;

fn read(text: &str) -> VmConfig {
    json::read(text.as_bytes()).unwrap()
}

fn with(text: &str) -> VmConfig {
    let mut value: serde_json::Value = serde_json::from_str(text).unwrap();
    let base = serde_json::json!({"payload": {"kernel": "/k"}, "console": {"mode": "Off"}});
    for (key, default) in base.as_object().unwrap() {
        value.as_object_mut().unwrap().entry(key).or_insert(default.clone());
    }
    read(&value.to_string())
}

/// What is wrong, one a line.
fn wrong(text: &str) -> String {
    let Err(Refused(all)) = with(text).validate() else { return String::new() };
    all.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
}

#[test]
fn defaults_are_valid() {
    assert_eq!(wrong("{}"), "");
    let config = read(r#"{"payload": {"kernel": "/k"}}"#).validate().unwrap();
    assert_eq!(config.cpus.boot_vcpus, 1);
    assert_eq!(config.memory.total(), 512 << 20);
}

#[test]
fn a_kernel_comes_once() {
    assert_eq!(wrong(r#"{"payload": {}}"#), "payload.kernel: is missing: a guest boots a kernel");
    assert_eq!(
        wrong(r#"{"payload": {"kernel": "/k", "kernel_fd": 9}}"#),
        "payload.kernel_fd: payload.kernel is there as well"
    );
}

#[test]
fn everything_wrong_is_reported() {
    let text =
        wrong(r#"{"cpus": {"boot_vcpus": 0, "max_vcpus": 0}, "disks": [{"queue_size": 100}], "memory": {"size": 5}}"#);
    let paths: Vec<&str> = text.lines().filter_map(|line| line.split(": ").next()).collect();
    assert_eq!(paths, ["cpus.boot_vcpus", "memory.size", "memory.size", "disks[0].path", "disks[0].queue_size"]);
}

#[test]
fn lists_without_end_are_refused_at_once() {
    // Quadratic work on these takes minutes.
    let list = |part: &str| format!("[{}]", vec![part; 100_000].join(","));
    let empty = list("{}");
    assert_eq!(wrong(&format!(r#"{{"disks": {empty}}}"#)), "devices: 100001 is not from 0 to 31");
    let fs = format!(r#"{{"fs": {empty}, "memory": {{"zones": {empty}}}}}"#);
    assert_eq!(wrong(&fs), "devices: 100001 is not from 0 to 31\nmemory.zones: 100000 is not from 0 to 64");
    let numa = format!(r#"{{"numa": {}}}"#, list(r#"{"guest_numa_id": 0}"#));
    assert_eq!(wrong(&numa), "numa: 100000 is not from 0 to 64");
    let oem = wrong(&format!(r#"{{"platform": {{"oem_strings": {}}}}}"#, list("\"\"")));
    assert_eq!(oem.lines().count(), MOST_FINDINGS + 1);
    assert_eq!(oem.lines().last(), Some("others: 99969 more are wrong"));
}

#[test]
fn cpus_agree_with_each_other() {
    for (json, expected) in [
        (r#"{"boot_vcpus": 2, "max_vcpus": 4}"#, "cpus.max_vcpus: 4 should be 2, as vCPUs can't be added later"),
        (
            r#"{"boot_vcpus": 4, "max_vcpus": 4,
                "topology": {"threads_per_core": 2, "cores_per_die": 1, "dies_per_package": 1, "packages": 1}}"#,
            "cpus.topology: 2 should be 4, the product of threads, cores, dies and packages",
        ),
        (r#"{"boot_vcpus": 255, "max_vcpus": 255}"#, "cpus.boot_vcpus: 255 is not from 1 to 254"),
        (r#"{"affinity": [{"vcpu": 1, "host_cpus": [0]}]}"#, "cpus.affinity[0].vcpu: there is no vCPU 1"),
        (
            r#"{"affinity": [{"vcpu": 0, "host_cpus": [0]}, {"vcpu": 0, "host_cpus": [1]}]}"#,
            "cpus.affinity[1]: vCPU 0 is cpus.affinity[0] already",
        ),
    ] {
        assert_eq!(wrong(&format!(r#"{{"cpus": {json}}}"#)), expected);
    }
}

#[test]
fn memory_is_whole_pages() {
    for (json, expected) in [
        (r#"{"size": 16777217}"#, "memory.size: 16777217 is no multiple of 4096"),
        (r#"{"size": 1048576}"#, "memory.size: 1048576 is not from 16777216 to 35184372088832"),
        (
            r#"{"size": 33554432, "hugepages": true, "hugepage_size": 1073741824}"#,
            "memory.size: 33554432 is no multiple of 1073741824",
        ),
        (
            r#"{"size": 33554432, "hugepages": true, "hugepage_size": 4096}"#,
            "memory.hugepage_size: \"4096\" is not 2097152 or 1073741824",
        ),
        (r#"{"size": 33554432, "hugepage_size": 2097152}"#, "memory.hugepage_size: hugepages is not true"),
        (
            r#"{"size": 4096, "zones": [{"id": "a", "size": 33554432}]}"#,
            "memory.size: 4096 should be 0, as the zones have sizes of their own",
        ),
    ] {
        assert_eq!(wrong(&format!(r#"{{"memory": {json}}}"#)), expected);
    }
}

#[test]
fn each_cpu_and_zone_is_in_one_cell() {
    let numa = |cells: &str| {
        wrong(&format!(
            r#"{{"cpus": {{"boot_vcpus": 2, "max_vcpus": 2}}, "numa": {cells},
                "memory": {{"size": 0, "zones": [{{"id": "a", "size": 33554432}}, {{"id": "b", "size": 33554432}}]}}}}"#
        ))
    };
    let good = r#"[{"guest_numa_id": 0, "cpus": [0], "memory_zones": ["a"], "distances": [{"destination": 1, "distance": 20}]},
                   {"guest_numa_id": 1, "cpus": [1], "memory_zones": ["b"]}]"#;
    assert_eq!(numa(good), "");
    assert_eq!(
        numa(&good.replace("[1]", "[0]")),
        "numa[1].cpus[0]: vCPU 0 is numa[0].cpus[0] already\nnuma: there is no cell with vCPU 1"
    );
    assert_eq!(
        numa(&good.replace(r#"["b"]"#, r#"["c"]"#)),
        "numa[1].memory_zones[0]: there is no zone c\nnuma: there is no cell with zone b"
    );
    assert_eq!(
        numa(&good.replace("\"distance\": 20", "\"distance\": 10")),
        "numa[0].distances[0].distance: 10 is not from 11 to 254"
    );
    assert_eq!(
        numa(&good.replace("\"destination\": 1", "\"destination\": 2")),
        "numa[0].distances[0].destination: there is no cell 2"
    );
}

#[test]
fn names_are_filled_in_and_unique() {
    let config =
        with(r#"{"disks": [{"path": "/a"}, {"path": "/b", "id": "_disk0"}], "vsock": {"cid": 3, "socket": "/s"}}"#);
    let config = config.validate().unwrap();
    let ids: Vec<_> = config.disks.iter().map(|disk| disk.id.as_deref().unwrap()).collect();
    assert_eq!(ids, ["_disk1", "_disk0"]);
    assert_eq!(config.vsock.unwrap().id.as_deref(), Some("_vsock0"));

    let twice =
        with(r#"{"disks": [{"path": "/a", "id": "x"}], "net": [{"tap": "t", "id": "x"}]}"#).validate().unwrap_err();
    assert_eq!(twice.to_string(), "net[0].id: name x is disks[0] already");
    assert!(twice.is_conflict());
    assert_eq!(
        wrong(r#"{"disks": [{"path": "/a", "pci_device_id": 3}, {"path": "/b", "pci_device_id": 3}]}"#),
        "disks[1].pci_device_id: device number 3 is disks[0] already"
    );
}

#[test]
fn texts_of_firmware_tables_are_text() {
    let oem = |strings: &[String]| wrong(&serde_json::json!({"platform": {"oem_strings": strings}}).to_string());
    assert_eq!(oem(&["ä".to_owned(), "y".repeat(1024)]), "");
    assert_eq!(oem(&["a".to_owned(), "b\0c".to_owned()]), "platform.oem_strings[1]: contains a control character");
    assert_eq!(oem(&["\u{1b}[2J".to_owned()]), "platform.oem_strings[0]: contains a control character");
    assert_eq!(oem(&["\u{9b}2J".to_owned()]), "platform.oem_strings[0]: contains a control character");
    assert_eq!(oem(&[String::new()]), "platform.oem_strings[0]: 0 is not from 1 to 1024");
    assert_eq!(oem(&["y".repeat(1025)]), "platform.oem_strings[0]: 1025 is not from 1 to 1024");
    assert_eq!(oem(&vec!["y".repeat(1024); 33]), "platform.oem_strings: 33792 is not from 0 to 32768");
    assert_eq!(oem(&vec!["y".to_owned(); 65]), "platform.oem_strings: 65 is not from 0 to 64");
    assert_eq!(
        wrong(r#"{"platform": {"serial_number": "a\nb", "chassis_asset_tag": ""}}"#),
        "platform.serial_number: contains a control character\nplatform.chassis_asset_tag: 0 is not from 1 to 1024"
    );
}

#[test]
fn descriptors_belong_to_one() {
    assert_eq!(wrong(r#"{"disks": [{"fd": 9}, {"fd": 9}]}"#), "disks[1].fd: descriptor 9 is disks[0].fd already");
    assert_eq!(wrong(r#"{"disks": [{"fd": 1}]}"#), "disks[0].fd: 1 is not from 3 to 1048576");
    assert_eq!(
        wrong(r#"{"vsock": {"cid": 3, "socket_fd": 9}, "agent": {"socket_fd": 9}}"#),
        "agent.socket_fd: descriptor 9 is vsock.socket_fd already"
    );
    assert_eq!(
        wrong(
            r#"{"vfio_container_fd": 8, "devices": [{"vfio_group_fd": 9, "host_address": "0000:65:00.0"},
                {"vfio_group_fd": 9, "host_address": "0000:65:00.1"}]}"#
        ),
        ""
    );
}

#[test]
fn a_snapshot_is_in_one_place() {
    use crate::messages::{RestoreConfig, SnapshotPlace, VmSnapshotConfig};
    let to = |text: &str| json::read::<VmSnapshotConfig>(text.as_bytes()).unwrap();
    assert_eq!(to(r#"{"destination_url": "file:///s"}"#).destination(), Ok(SnapshotPlace::Url("file:///s")));
    assert_eq!(to(r#"{"destination_fd": 9}"#).destination(), Ok(SnapshotPlace::Fd(9)));
    let wrong = |text: &str| to(text).destination().unwrap_err().to_string();
    assert_eq!(wrong("{}"), "destination_url: is missing: or an open descriptor of it");
    assert_eq!(
        wrong(r#"{"destination_url": "file:///s", "destination_fd": 9}"#),
        "destination_fd: is there by URL as well"
    );
    assert_eq!(wrong(r#"{"destination_fd": 1}"#), "destination_fd: 1 is not from 3 to 1048576");
    let from = |text: &str| json::read::<RestoreConfig>(text.as_bytes()).unwrap();
    assert_eq!(from(r#"{"source_fd": 9, "resume": true}"#).source(), Ok(SnapshotPlace::Fd(9)));
    assert_eq!(from("{}").source().unwrap_err().to_string(), "source_url: is missing: or an open descriptor of it");
}

#[test]
fn what_belongs_to_a_guest_is_named_once() {
    let config = with(
        r#"{"kvm_fd": 7, "vfio_container_fd": 8, "net": [{"fds": [9, 10], "num_queues": 4}], "serial": {"mode": "File", "fd": 11},
            "devices": [{"vfio_group_fd": 12, "host_address": "0000:65:00.0"},
                        {"vfio_group_fd": 12, "host_address": "0000:65:00.1"}]}"#,
    );
    assert_eq!(config.descriptors(), [8, 9, 10, 11, 12]);
}

#[test]
fn devices_are_complete() {
    for (json, expected) in [
        (r#"{"disks": [{}]}"#, "disks[0].path: is missing: or an open descriptor of it"),
        (r#"{"disks": [{"path": "/a", "fd": 9}]}"#, "disks[0].fd: is there by path as well"),
        (
            r#"{"disks": [{"path": "/a", "serial": "123456789012345678901"}]}"#,
            "disks[0].serial: 21 is not from 0 to 20",
        ),
        (r#"{"net": [{"fds": [9], "num_queues": 4}]}"#, "net[0].fds: 1 should be 2, half of num_queues"),
        (r#"{"net": [{"tap": "t", "mac": "01:00:00:00:00:00"}]}"#, "net[0].mac: is an address of a group"),
        (r#"{"vsock": {"cid": 3}}"#, "vsock.socket: is missing: host programs connect to it"),
        (r#"{"vsock": {"cid": 3, "socket": "/s", "vhost_fd": 5}}"#, "vsock.socket: the kernel's vhost_fd has none"),
        (r#"{"vsock": {"cid": 3, "socket_fd": 6, "vhost_fd": 5}}"#, "vsock.socket_fd: the kernel's vhost_fd has none"),
        (r#"{"vsock": {"cid": 3, "socket_fd": 6}}"#, ""),
        (r#"{"vsock": {"cid": 3, "socket_fd": 6, "socket": "/s"}}"#, ""),
        (r#"{"agent": {}}"#, "agent.socket: is missing: or an open descriptor of it"),
        (r#"{"agent": {"socket": "/a", "socket_fd": 6}}"#, "agent.socket_fd: is there by path as well"),
        (r#"{"vsock": {"cid": 2, "socket": "/s"}}"#, "vsock.cid: 2 is not from 3 to 4294967294"),
        (r#"{"pmem": [{"file": "/p", "size": 4096}]}"#, "pmem[0].size: 4096 is no multiple of 2097152"),
        (r#"{"fs": [{"tag": "t", "socket": "/s"}]}"#, "fs[0]: memory.shared must be true for vhost-user"),
        (
            r#"{"devices": [{"vfio_group_fd": 9, "host_address": "65:00.1"}], "vfio_container_fd": 8}"#,
            "devices[0].host_address: \"65:00.1\" is not like 0000:65:00.1",
        ),
        (
            r#"{"devices": [{"vfio_group_fd": 9, "host_address": "0000:65:00.1"}]}"#,
            "vfio_container_fd: is missing: devices come with vfio_group_fd",
        ),
        (r#"{"devices": [{"path": "0000:65:00.1"}]}"#, "devices[0].path: \"0000:65:00.1\" is not an absolute path"),
        (
            r#"{"serial": {"mode": "Tty"}, "console": {"mode": "Tty"}}"#,
            "console.mode: serial has the terminal already; Off or Null",
        ),
        (r#"{"serial": {"mode": "File"}}"#, "serial.file: is missing: or an open descriptor of it"),
        (r#"{"serial": {"mode": "File", "file": "/s", "fd": 6}}"#, "serial.fd: is there by path as well"),
        (r#"{"console": {"mode": "Null", "fd": 6}}"#, "console.fd: mode is not File"),
        (r#"{"serial": {"mode": "File", "fd": 6}, "console": {"mode": "File", "fd": 7}}"#, ""),
        (r#"{"serial": {"mode": "Pty"}}"#, "serial.mode: not supported by this VMM: pseudo-terminals"),
        (r#"{"platform": {"uuid": "x"}}"#, "platform.uuid: \"x\" is not a UUID"),
    ] {
        assert_eq!(wrong(json), expected, "{json}");
    }
}

#[test]
fn cpus_have_ids_that_devices_reach() {
    let arrangement = |packages: u32, cores: u32, threads: u32| {
        let vcpus = packages * cores * threads;
        let topology = serde_json::json!({
            "packages": packages, "dies_per_package": 1, "cores_per_die": cores, "threads_per_core": threads,
        });
        let cpus = serde_json::json!({"boot_vcpus": vcpus, "max_vcpus": vcpus, "topology": topology});
        wrong(&serde_json::json!({"cpus": cpus}).to_string())
    };
    assert_eq!(arrangement(2, 60, 2), "");
    let refusal = arrangement(3, 40, 2);
    assert!(refusal.starts_with("cpus.topology: not supported by this VMM: APIC IDs above 254"), "{refusal}");
}
