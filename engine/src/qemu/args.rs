//! QEMU's command line. Pure: the same guest gives the same arguments.
//!
//! Structured options are given as JSON, which needs no escaping. The guest sees every device at a fixed PCI slot,
//! so its names do not change with what else the machine has.

use std::os::fd::OwnedFd;

use serde_json::{Value, json};

use super::{AGENT_SOCKET, MONITOR_SOCKET, memory};
use crate::Command;
use crate::config::{Accelerator, Boot, Cache, ConfigError, Disk, DiskSource, GuestConfig, Nic, Storage};
use crate::descriptors::Descriptors;

/// Without an IOMMU that remaps interrupts, APIC ids end at 254 (hw/i386/x86-common.c).
pub(super) const MAX_VCPUS: u32 = 255;

/// PCI slots of bus 0: 0 is the host bridge, 31 the LPC bridge.
const SERIAL_SLOT: usize = 1;
const RNG_SLOT: usize = 2;
const FIRST_NIC_SLOT: usize = 3;
const FIRST_DISK_SLOT: usize = 11;

/// Most network cards.
pub(super) const MAX_NICS: usize = FIRST_DISK_SLOT - FIRST_NIC_SLOT;

/// Most disks.
pub(super) const MAX_DISKS: usize = 31 - FIRST_DISK_SLOT;

/// Chardev of the guest agent and name of its port in the guest.
pub(super) const AGENT: &str = "agent";

/// What to start for this guest.
pub(super) fn command<'a>(program: &str, guest: &'a GuestConfig) -> Result<Command<'a>, ConfigError> {
    guest.check()?;
    check_limits(guest)?;
    let mut line = Line::default();
    machine(&mut line, guest);
    boot(&mut line, &guest.boot);
    channels(&mut line, &guest.runtime_dir);
    for (index, nic) in guest.nics.iter().enumerate() {
        network(&mut line, index, nic);
    }
    for (index, disk) in guest.disks.iter().enumerate() {
        storage(&mut line, index, disk);
    }
    let descriptors = line.descriptors.into_vec();
    Ok(Command { program: program.to_owned(), args: line.args, env: vec![], descriptors })
}

fn check_limits(guest: &GuestConfig) -> Result<(), ConfigError> {
    let vcpus = guest.cpu.vcpus();
    if vcpus > MAX_VCPUS {
        return Err(ConfigError::Vcpus { vcpus, max: MAX_VCPUS });
    }
    for (field, count, max) in [("disks", guest.disks.len(), MAX_DISKS), ("nics", guest.nics.len(), MAX_NICS)] {
        if count > max {
            return Err(ConfigError::TooMany { field, count, max });
        }
    }
    // VFIO groups are opened by path, and a pod has none.
    if guest.passthrough.is_some() {
        return Err(ConfigError::Impossible { field: "devices" });
    }
    Ok(())
}

/// Arguments and the descriptors they speak of.
#[derive(Default)]
pub(super) struct Line<'a> {
    args: Vec<String>,
    descriptors: Descriptors<'a>,
}

impl<'a> Line<'a> {
    pub(super) fn option(&mut self, name: &str, value: impl Into<String>) {
        self.args.extend([format!("-{name}"), value.into()]);
    }

    pub(super) fn json(&mut self, name: &str, value: &Value) {
        self.option(name, value.to_string());
    }

    /// Hands a descriptor over and returns its number.
    fn fd(&mut self, name: String, fd: &'a OwnedFd) -> i32 {
        self.descriptors.add(name, fd)
    }

    /// Hands a descriptor over as a set of its own and returns the path under which QEMU opens it.
    fn fd_set(&mut self, name: String, fd: &'a OwnedFd) -> String {
        let target = self.fd(name, fd);
        self.option("add-fd", format!("fd={target},set={target}"));
        format!("/dev/fdset/{target}")
    }
}

fn machine<'a>(line: &mut Line<'a>, guest: &'a GuestConfig) {
    let vcpus = guest.cpu.vcpus();
    line.args.extend(["-nodefaults", "-no-user-config"].map(str::to_owned));
    line.option("display", "none");
    line.option("name", format!("guest={},debug-threads=on", guest.name));
    line.option("uuid", guest.uuid.as_str());
    line.option("msg", "timestamp=off");
    line.option("sandbox", "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny");
    let ram = if memory::is_whole(guest) { format!(",memory-backend={}", memory::BACKEND) } else { String::new() };
    line.option(
        "machine",
        format!("q35{ram},dump-guest-core=off,mem-merge=off,vmport=off,hpet=off,smbus=off,sata=off"),
    );
    match &guest.accelerator {
        Accelerator::Kvm(device) => {
            let path = line.fd_set("/dev/kvm".into(), device);
            line.option("accel", format!("kvm,device={path}"));
            line.option("cpu", "host");
        }
        Accelerator::Emulation => {
            let cache = translation_cache_mib(vcpus);
            line.option("accel", format!("tcg,thread=multi,tb-size={cache}"));
            line.option("cpu", "max");
        }
    }
    let cpu = guest.cpu;
    line.option("smp", format!("{vcpus},sockets={},cores={},threads={}", cpu.sockets, cpu.cores, cpu.threads));
    memory::memory(line, guest);
    // Paused until its threads are pinned; a reset starts over, a panic is a failure.
    line.args.push("-S".to_owned());
    line.option("action", "reboot=reset,panic=exit-failure");
    line.json("device", &json!({"driver": "pvpanic"}));
}

/// Code that TCG has translated is kept for all vCPUs together and thrown away when there is no more room. QEMU's own
/// default is 1 GiB, which fills over time and counts as the pod's memory. A distribution's boot to its login makes
/// some 400 MiB of it: 64 MiB were thrown away six times, this less than half as often.
pub(super) fn translation_cache_mib(vcpus: u32) -> u32 {
    128.max(vcpus.saturating_mul(16))
}

/// QEMU opens kernel and initramfs by path, so the paths are those of the descriptors.
fn boot<'a>(line: &mut Line<'a>, boot: &'a Boot) {
    let kernel = line.fd("kernel".into(), &boot.kernel);
    line.option("kernel", format!("/proc/self/fd/{kernel}"));
    if let Some(initramfs) = &boot.initramfs {
        let initramfs = line.fd("initramfs".into(), initramfs);
        line.option("initrd", format!("/proc/self/fd/{initramfs}"));
    }
    line.option("append", boot.command_line.as_str());
}

/// Console, monitor, guest agent, entropy.
fn channels(line: &mut Line<'_>, runtime_dir: &str) {
    let socket = |id: &str, name: &str| {
        format!("socket,id={id},path={}/{name},server=on,wait=off", runtime_dir.replace(',', ",,"))
    };
    line.option("chardev", "stdio,id=console,signal=off");
    line.json("device", &json!({"driver": "isa-serial", "chardev": "console"}));
    line.option("chardev", socket("monitor", MONITOR_SOCKET));
    line.option("mon", "chardev=monitor,mode=control");
    line.option("chardev", socket(AGENT, AGENT_SOCKET));
    line.json("device", &pci("virtio-serial-pci", "serial", SERIAL_SLOT, json!({"max_ports": 2})));
    line.json(
        "device",
        &json!({"driver": "virtserialport", "bus": "serial.0", "nr": 1, "id": AGENT, "chardev": AGENT,
            "name": "org.qemu.guest_agent.0"}),
    );
    line.json("object", &json!({"qom-type": "rng-random", "id": "entropy", "filename": "/dev/urandom"}));
    line.json("device", &pci("virtio-rng-pci", "rng", RNG_SLOT, json!({"rng": "entropy"})));
}

fn network<'a>(line: &mut Line<'a>, index: usize, nic: &'a Nic) {
    let join = |fds: Vec<i32>| fds.iter().map(ToString::to_string).collect::<Vec<_>>().join(":");
    let taps = nic.taps.iter().enumerate().map(|(queue, tap)| line.fd(format!("tap {index}.{queue}"), tap)).collect();
    let mut backend = json!({"type": "tap", "id": format!("net{index}"), "fds": join(taps)});
    if !nic.vhosts.is_empty() {
        let vhosts = nic.vhosts.iter().enumerate();
        let vhosts = vhosts.map(|(queue, vhost)| line.fd(format!("vhost {index}.{queue}"), vhost)).collect();
        backend["vhost"] = json!(true);
        backend["vhostfds"] = json!(join(vhosts));
    }
    line.json("netdev", &backend);
    let queues = nic.taps.len();
    let mac = nic.mac.map(|byte| format!("{byte:02x}")).join(":");
    let mut more = json!({"netdev": format!("net{index}"), "mac": mac, "romfile": ""});
    if queues > 1 {
        more["mq"] = json!(true);
        // One vector for each direction of each pair, one for the control queue, one for changes.
        more["vectors"] = json!(2 * queues + 2);
    }
    line.json("device", &pci("virtio-net-pci", &format!("nic{index}"), FIRST_NIC_SLOT + index, more));
}

fn storage<'a>(line: &mut Line<'a>, index: usize, disk: &'a Disk) {
    let node = format!("disk{index}");
    let driver = match disk.storage {
        Storage::File => "file",
        Storage::BlockDevice => "host_device",
    };
    let filename = match &disk.source {
        DiskSource::Fd(fd) => line.fd_set(format!("disk {}", disk.serial), fd),
        DiskSource::Path(path) => path.clone(),
    };
    let direct = disk.cache == Cache::Direct;
    line.json(
        "blockdev",
        &json!({
            "driver": driver, "node-name": node, "filename": filename, "read-only": disk.read_only,
            "discard": if disk.discard { "unmap" } else { "ignore" },
            "cache": {"direct": direct, "no-flush": false},
            "aio": if direct { "native" } else { "threads" },
        }),
    );
    let more = json!({"drive": node, "serial": disk.serial});
    line.json("device", &pci("virtio-blk-pci", &format!("blk{index}"), FIRST_DISK_SLOT + index, more));
}

/// A virtio device at its slot, as of virtio 1.0 only.
fn pci(driver: &str, id: &str, slot: usize, more: Value) -> Value {
    let mut device = json!({"driver": driver, "id": id, "addr": format!("{slot:#x}"), "disable-legacy": "on"});
    if let (Some(device), Value::Object(more)) = (device.as_object_mut(), more) {
        device.extend(more);
    }
    device
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Memory;
    use crate::config::tests::{guest, null, two_cells};
    use crate::{CpuTopology, Handed, PageSize};

    /// One option to a line. `UPDATE_GOLDEN=1` writes the file anew.
    fn assert_golden(name: &str, guest: &GuestConfig) {
        let command = command("/usr/bin/qemu-system-x86_64", guest).unwrap();
        let mut text = command.program;
        for arg in &command.args {
            text.push_str(if arg.starts_with('-') { "\n" } else { " " });
            text.push_str(arg);
        }
        for Handed { name, target, .. } in &command.descriptors {
            text.push_str(&format!("\n# {target}: {name}"));
        }
        text.push('\n');
        let path = format!("{}/src/qemu/golden/{name}.txt", env!("CARGO_MANIFEST_DIR"));
        if std::env::var_os("UPDATE_GOLDEN").is_some() {
            std::fs::write(&path, &text).unwrap();
        }
        assert_eq!(text, std::fs::read_to_string(&path).unwrap(), "{path}; UPDATE_GOLDEN=1 writes it anew");
    }

    #[test]
    fn emulation_of_one_of_everything() {
        assert_golden("emulation", &guest());
    }

    #[test]
    fn kvm_with_huge_pages_queues_and_a_block_device() {
        let mut guest = guest();
        guest.accelerator = Accelerator::Kvm(null());
        guest.cpu = CpuTopology { sockets: 2, cores: 8, threads: 1 };
        guest.memory = Memory { bytes: 8 << 30, pages: PageSize::Huge1G };
        guest.nics[0].taps.push(null());
        guest.nics[0].vhosts.extend([null(), null()]);
        guest.disks[1].source = DiskSource::Path("/dev/vse/scratch".into());
        guest.disks[1].storage = Storage::BlockDevice;
        assert_golden("kvm", &guest);
    }

    #[test]
    fn two_cells_in_huge_pages_on_their_host_cells() {
        assert_golden("two-cells", &two_cells());
    }

    #[test]
    fn more_than_the_machine_has_slots_for_is_refused() {
        let refused = |change: fn(&mut GuestConfig)| {
            let mut guest = guest();
            change(&mut guest);
            command("/qemu", &guest).unwrap_err()
        };
        let vcpus = refused(|guest| guest.cpu = CpuTopology { sockets: 1, cores: 256, threads: 1 });
        assert_eq!(vcpus, ConfigError::Vcpus { vcpus: 256, max: 255 });
        let nics = refused(|guest| {
            guest.nics = (0..9).map(|_| Nic { taps: vec![null()], vhosts: vec![], mac: [2; 6] }).collect();
        });
        assert_eq!(nics, ConfigError::TooMany { field: "nics", count: 9, max: 8 });
    }
}
