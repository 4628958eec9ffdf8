//! Reading a host's sysfs, shaped as the kernel has it.

use super::Address;
use super::function::{Group, Machine, Sriov};
use super::host_use::HostUse;
use crate::sysfs::Root;
use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

const CARD: &str = "0000:01:00.0";
const BUS: &str = "sys/devices/pci0000:00/0000:00:01.0";

struct Host(tempfile::TempDir);

impl Host {
    /// A host with one network card in IOMMU group 5 behind a bridge, and nothing mounted.
    fn new() -> Self {
        let host = Self(tempfile::tempdir().unwrap());
        host.file("proc/1/mountinfo", "22 1 0:20 / / rw - overlay overlay rw\n");
        host.function(CARD, &[("vendor", "0x8086"), ("device", "0x10c9"), ("class", "0x020000"), ("numa_node", "-1")]);
        host.link(&format!("{BUS}/{CARD}/driver"), "../../../../bus/pci/drivers/igb");
        host.link(&format!("{BUS}/{CARD}/iommu_group"), "../../../../kernel/iommu_groups/5");
        host
    }

    fn file(&self, path: &str, text: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    fn link(&self, path: &str, target: &str) {
        let path = self.0.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    fn function(&self, address: &str, attributes: &[(&str, &str)]) {
        for (name, value) in attributes {
            self.file(&format!("{BUS}/{address}/{name}"), &format!("{value}\n"));
        }
        let target = Path::new("../../../devices/pci0000:00/0000:00:01.0").join(address);
        self.link(&format!("sys/bus/pci/devices/{address}"), target.to_str().unwrap());
    }

    /// A network interface of the card.
    fn interface(&self, name: &str, flags: &str) {
        self.file(&format!("{BUS}/{CARD}/net/{name}/flags"), flags);
        self.link(
            &format!("sys/class/net/{name}"),
            &format!("../../devices/pci0000:00/0000:00:01.0/{CARD}/net/{name}"),
        );
    }

    fn disk(&self, path: &str) {
        let name = path.rsplit('/').next().unwrap();
        self.file(&format!("sys/devices/{path}/dev"), "8:1\n");
        fs::create_dir_all(self.0.path().join(format!("sys/devices/{path}/holders"))).unwrap();
        self.link(&format!("sys/class/block/{name}"), &format!("../../devices/{path}"));
    }

    fn observe(&self) -> Machine {
        Machine::observe(&Root::new(self.0.path())).unwrap()
    }

    fn host_use(&self) -> Option<HostUse> {
        self.observe().functions[&address(CARD)].host_use.clone()
    }
}

fn address(text: &str) -> Address {
    text.parse().unwrap()
}

#[test]
fn a_function_is_read_as_the_kernel_shows_it() {
    let host = Host::new();
    host.function(CARD_VF, &[("vendor", "0x8086"), ("device", "0x10ca"), ("class", "0x020000"), ("numa_node", "1")]);
    host.link(&format!("{BUS}/{CARD_VF}/physfn"), &format!("../{CARD}"));
    host.file(&format!("{BUS}/{CARD}/driver_override"), "(null)\n");
    host.file(&format!("{BUS}/{CARD_VF}/driver_override"), "vfio-pci\n");
    for (name, value) in [("sriov_totalvfs", "7"), ("sriov_numvfs", "1"), ("sriov_drivers_autoprobe", "0")] {
        host.file(&format!("{BUS}/{CARD}/{name}"), value);
    }
    let seen = host.observe();
    let card = &seen.functions[&address(CARD)];
    assert_eq!((card.vendor.as_str(), card.device.as_str(), card.class.as_str()), ("8086", "10c9", "020000"));
    assert_eq!((card.driver.as_deref(), card.driver_override.as_deref()), (Some("igb"), None));
    assert_eq!(card.group, Some(Group { number: 5, no_iommu: false }));
    assert_eq!(card.sriov, Some(Sriov { total: 7, made: 1, autoprobe: false }));
    assert_eq!((card.cell, &card.host_use), (None, &None));
    let function = &seen.functions[&address(CARD_VF)];
    assert_eq!(function.physical_function, Some(address(CARD)));
    assert_eq!((function.cell, function.driver_override.as_deref()), (Some(1), Some("vfio-pci")));
    assert!(!seen.vfio.loaded && !seen.vfio.unsafe_interrupts);
}

const CARD_VF: &str = "0000:01:10.0";

#[test]
fn what_vfio_is_set_to_is_seen() {
    let host = Host::new();
    host.file("sys/bus/pci/drivers/vfio-pci/bind", "");
    host.file("sys/module/vfio_iommu_type1/parameters/allow_unsafe_interrupts", "Y\n");
    host.file("sys/kernel/iommu_groups/5/name", "vfio-noiommu\n");
    let seen = host.observe();
    assert!(seen.vfio.loaded && seen.vfio.unsafe_interrupts);
    assert_eq!(seen.functions[&address(CARD)].group, Some(Group { number: 5, no_iommu: true }));
}

#[test]
fn an_interface_in_use_is_seen_whatever_makes_it_so() {
    let host = Host::new();
    host.interface("ens1", "0x1002\n");
    assert_eq!(host.host_use(), None);
    assert_eq!(host.observe().functions[&address(CARD)].interfaces, ["ens1"]);
    host.file("proc/1/net/route", "Iface\tDestination\nens1\t00000000\n");
    assert_eq!(host.host_use(), Some(HostUse::Routed("ens1".into())));
    host.file(&format!("{BUS}/{CARD}/net/ens1/flags"), "0x1003\n");
    assert_eq!(host.host_use(), Some(HostUse::Up("ens1".into())));
    host.link(&format!("{BUS}/{CARD}/net/ens1/master"), "../bond0");
    assert_eq!(host.host_use(), Some(HostUse::Stacked("ens1".into())));
}

#[test]
fn an_interface_in_a_container_is_in_use() {
    let host = Host::new();
    fs::create_dir_all(host.0.path().join(format!("{BUS}/{CARD}/net"))).unwrap();
    assert_eq!(host.host_use(), Some(HostUse::Elsewhere));
}

#[test]
fn a_disk_is_in_use_when_mounted_swapped_to_or_held() {
    let disk = format!("pci0000:00/0000:00:01.0/{CARD}/ata1/host0/target0:0:0/0:0:0:0/block/sda/sda1");
    let fresh = || {
        let host = Host::new();
        host.disk(&disk);
        assert_eq!(host.host_use(), None);
        host
    };
    let sda1 = || Some(HostUse::Disk("sda1".into()));
    let host = fresh();
    host.file("proc/1/mountinfo", "22 1 8:1 / / rw shared:1 - ext4 /dev/root rw\n");
    assert_eq!(host.host_use(), sda1());
    let host = fresh();
    // btrfs has numbers of its own.
    host.file("proc/1/mountinfo", "22 1 0:31 / / rw - btrfs /dev/sda1 rw\n");
    assert_eq!(host.host_use(), sda1());
    let host = fresh();
    host.file("proc/swaps", "Filename Type Size Used Priority\n/dev/sda1 partition 1 0 -2\n");
    assert_eq!(host.host_use(), sda1());
    let host = fresh();
    host.file(&format!("sys/devices/{disk}/holders/dm-0"), "");
    assert_eq!(host.host_use(), sda1());
}

#[test]
fn a_disk_that_is_a_pods_block_volume_is_in_use() {
    let fresh = || {
        let host = Host::new();
        host.disk(&format!("pci0000:00/0000:00:01.0/{CARD}/nvme/nvme0/nvme0n1"));
        host.file("proc/1/mountinfo", "24 1 0:6 / /dev rw,nosuid shared:2 - devtmpfs devtmpfs rw\n");
        assert_eq!(host.host_use(), None);
        host
    };
    let nvme = Some(HostUse::Disk("nvme0n1".into()));
    let host = fresh();
    let volume = "/var/lib/kubelet/plugins/kubernetes.io~local-volume/volumeDevices/pv/8f1d";
    let mount = format!("90 22 0:6 /nvme0n1 {volume} rw,nosuid shared:2 - devtmpfs devtmpfs rw\n");
    host.file("proc/1/mountinfo", &mount);
    assert_eq!(host.host_use(), nvme);
    let host = fresh();
    host.file("sys/block/loop3/loop/backing_file", "/dev/nvme0n1\n");
    assert_eq!(host.host_use(), nvme);
}

#[test]
fn a_disk_of_an_nvme_subsystem_is_its_controllers() {
    let host = Host::new();
    host.disk("virtual/nvme-subsystem/nvme-subsys0/nvme0n1");
    let controller = format!("../../../../pci0000:00/0000:00:01.0/{CARD}/nvme/nvme0");
    host.link("sys/class/nvme-subsystem/nvme-subsys0/nvme0", &controller);
    host.file("proc/1/mountinfo", "22 1 8:1 / / rw - xfs /dev/nvme0n1 rw\n");
    assert_eq!(host.host_use(), Some(HostUse::Disk("nvme0n1".into())));
}

#[test]
fn a_disk_nobody_can_tell_of_is_in_use() {
    let host = Host::new();
    host.disk(&format!("pci0000:00/0000:00:01.0/{CARD}/ata1/host0/target0:0:0/0:0:0:0/block/sda"));
    let root = Root::new(host.0.path());
    let mut seen = host.observe();
    assert_eq!(seen.functions[&address(CARD)].disks, ["sda"]);
    seen.probe_disks(&root, &[address(CARD)]);
    assert_eq!(seen.functions[&address(CARD)].host_use, Some(HostUse::Disk("sda".into())));
    host.file("dev/sda", "");
    let mut seen = host.observe();
    seen.probe_disks(&root, &[address(CARD)]);
    assert_eq!(seen.functions[&address(CARD)].host_use, None);
}

#[test]
fn without_sight_of_the_mounts_nothing_is_known() {
    let host = Host::new();
    fs::remove_file(host.0.path().join("proc/1/mountinfo")).unwrap();
    assert!(Machine::observe(&Root::new(host.0.path())).is_err());
}
