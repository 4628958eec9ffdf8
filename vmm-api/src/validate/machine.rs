//! What it boots, vCPUs, RAM, cells, firmware tables.

use std::collections::BTreeMap;

use super::devices::one_of;
use super::{Findings, Problem};
use crate::config::VmConfig;
use crate::console::ConsoleMode;
use crate::memory::{HotplugMethod, MemoryZoneConfig};

/// Most vCPUs: APIC IDs beyond take x2APIC entries and interrupt remapping.
pub const MAX_VCPUS: u32 = 254;
/// The highest APIC ID that a vCPU can have and be interrupted by devices.
const MAX_APIC_ID: u64 = 254;
/// Most cells of a guest, and zones of its RAM.
pub const MAX_CELLS: usize = 64;
/// The kernel's own limit (`COMMAND_LINE_SIZE`), with the zero at its end.
const COMMAND_LINE_SIZE: u64 = 2048;
/// Least RAM that any kernel has booted with.
const LEAST_RAM: u64 = 16 << 20;
/// Most RAM: what fits below 2^46, with room for PCI windows.
const MOST_RAM: u64 = 1 << 45;
/// Bytes of all OEM strings: firmware tables have 64 KiB below 1 MiB, and the other texts take 8 KiB at most.
const MOST_OEM: u64 = 32 << 10;
const KIB4: u64 = 4 << 10;
const MIB2: u64 = 2 << 20;
const GIB1: u64 = 1 << 30;

/// Whether there are no more zones and cells than there can be.
pub(super) fn bound(config: &VmConfig, findings: &mut Findings) -> bool {
    let zones = findings.range("memory.zones", config.memory.zones.len() as u64, 0..=MAX_CELLS as u64);
    findings.range("numa", config.numa.len() as u64, 0..=MAX_CELLS as u64) && zones
}

pub(super) fn check(config: &VmConfig, findings: &mut Findings) {
    cpus(config, findings);
    memory(config, findings);
    cells(config, findings);
    platform(config, findings);
    consoles(config, findings);
}

pub(super) fn payload(config: &VmConfig, findings: &mut Findings) {
    let payload = &config.payload;
    match (&payload.kernel, payload.kernel_fd) {
        (None, None) => findings.add("payload.kernel", Problem::Missing("a guest boots a kernel")),
        (Some(_), Some(_)) => {
            findings.add("payload.kernel_fd", Problem::Contradiction("payload.kernel is there as well"));
        }
        _ => {}
    }
    if payload.initramfs.is_some() && payload.initramfs_fd.is_some() {
        findings.add("payload.initramfs_fd", Problem::Contradiction("payload.initramfs is there as well"));
    }
    if let Some(line) = &payload.cmdline {
        findings.range("payload.cmdline", line.len() as u64, 0..=COMMAND_LINE_SIZE - 1);
        if line.contains('\0') {
            findings.add("payload.cmdline", Problem::Contradiction("contains a zero byte"));
        }
    }
}

fn cpus(config: &VmConfig, findings: &mut Findings) {
    let cpus = &config.cpus;
    findings.range("cpus.boot_vcpus", cpus.boot_vcpus.into(), 1..=MAX_VCPUS.into());
    if cpus.max_vcpus != cpus.boot_vcpus {
        findings.add(
            "cpus.max_vcpus",
            Problem::Mismatch {
                found: cpus.max_vcpus.into(),
                expected: cpus.boot_vcpus.into(),
                because: "as vCPUs can't be added later",
            },
        );
    }
    if let Some(topology) = cpus.topology {
        let counts = [topology.threads_per_core, topology.cores_per_die, topology.dies_per_package, topology.packages];
        let product = counts.iter().map(|count| u64::from(*count)).product();
        if highest_apic_id(counts) > MAX_APIC_ID {
            let reason = "APIC IDs above 254, which a kernel without an IOMMU does not use: counts that are powers of two \
                          leave fewer gaps";
            findings.add("cpus.topology", Problem::NotSupported(reason));
        }
        if product != u64::from(cpus.max_vcpus) {
            findings.add(
                "cpus.topology",
                Problem::Mismatch {
                    found: product,
                    expected: cpus.max_vcpus.into(),
                    because: "the product of threads, cores, dies and packages",
                },
            );
        }
    }
    findings.range("cpus.max_phys_bits", cpus.max_phys_bits.into(), 36..=52);
    let mut seen = BTreeMap::new();
    for (index, affinity) in cpus.affinity.iter().enumerate() {
        let path = format!("cpus.affinity[{index}]");
        if affinity.vcpu >= cpus.boot_vcpus {
            findings.add(format!("{path}.vcpu"), unknown("vCPU", affinity.vcpu));
        }
        if affinity.host_cpus.is_empty() {
            findings.add(format!("{path}.host_cpus"), Problem::Missing("a thread must be able to run"));
        }
        for cpu in &affinity.host_cpus {
            findings.range(format!("{path}.host_cpus"), (*cpu).into(), 0..=8191);
        }
        taken(&mut seen, affinity.vcpu, path, "vCPU", findings);
    }
}

/// With counts of threads, cores, dies and packages: each level's number takes as many bits as the level needs.
fn highest_apic_id(counts: [u16; 4]) -> u64 {
    let (id, _) = counts.iter().fold((0, 0), |(id, shift), count| {
        let highest = u64::from(*count).saturating_sub(1);
        (id | highest << shift, shift + (u64::BITS - highest.leading_zeros()))
    });
    id
}

fn memory(config: &VmConfig, findings: &mut Findings) {
    let memory = &config.memory;
    if memory.hotplug_method != HotplugMethod::Acpi {
        findings.add("memory.hotplug_method", Problem::NotSupported("memory can't be added"));
    }
    if !memory.zones.is_empty() && memory.size != 0 {
        findings.add(
            "memory.size",
            Problem::Mismatch { found: memory.size, expected: 0, because: "as the zones have sizes of their own" },
        );
    }
    findings.range("memory.size", memory.total(), LEAST_RAM..=MOST_RAM);
    let is_zoned = !memory.zones.is_empty();
    for (index, zone) in memory.as_zones().iter().enumerate() {
        pages(&if is_zoned { format!("memory.zones[{index}]") } else { "memory".to_owned() }, zone, findings);
    }
    let mut seen = BTreeMap::new();
    for (index, zone) in memory.zones.iter().enumerate() {
        let path = format!("memory.zones[{index}].id");
        if zone.id.is_empty() {
            findings.add(path, Problem::Missing("zones have names"));
        } else {
            taken(&mut seen, zone.id.clone(), path, "zone", findings);
        }
    }
    for (index, _) in config.fs.iter().enumerate() {
        if memory.as_zones().iter().any(|zone| !zone.shared) {
            findings.add(format!("fs[{index}]"), Problem::Contradiction("memory.shared must be true for vhost-user"));
        }
    }
}

fn pages(path: &str, zone: &MemoryZoneConfig, findings: &mut Findings) {
    let page = match (zone.hugepages, zone.hugepage_size) {
        (false, None) => KIB4,
        (false, Some(_)) => {
            findings.add(format!("{path}.hugepage_size"), Problem::Contradiction("hugepages is not true"));
            return;
        }
        (true, None) => MIB2,
        (true, Some(size)) => {
            if size != MIB2 && size != GIB1 {
                findings.add(
                    format!("{path}.hugepage_size"),
                    Problem::Form { found: size.to_string(), expected: "2097152 or 1073741824" },
                );
                return;
            }
            size
        }
    };
    if zone.size == 0 || !zone.size.is_multiple_of(page) {
        findings.add(format!("{path}.size"), Problem::NotMultiple { found: zone.size, of: page });
    }
}

fn cells(config: &VmConfig, findings: &mut Findings) {
    let cells = &config.numa;
    if cells.is_empty() {
        return;
    }
    let (mut ids, mut vcpus, mut zones) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
    for (index, cell) in cells.iter().enumerate() {
        taken(&mut ids, cell.guest_numa_id, format!("numa[{index}].guest_numa_id"), "cell", findings);
        findings.range(format!("numa[{index}].guest_numa_id"), cell.guest_numa_id.into(), 0..=MAX_CELLS as u64 - 1);
        for (place, vcpu) in cell.cpus.iter().enumerate() {
            let path = format!("numa[{index}].cpus[{place}]");
            if *vcpu >= config.cpus.boot_vcpus {
                findings.add(path, unknown("vCPU", vcpu));
            } else {
                taken(&mut vcpus, *vcpu, path, "vCPU", findings);
            }
        }
        for (place, zone) in cell.memory_zones.iter().enumerate() {
            let path = format!("numa[{index}].memory_zones[{place}]");
            if config.memory.zones.iter().any(|known| known.id == *zone) {
                taken(&mut zones, zone.clone(), path, "zone", findings);
            } else {
                findings.add(path, unknown("zone", zone));
            }
        }
    }
    for (index, cell) in cells.iter().enumerate() {
        for (place, distance) in cell.distances.iter().enumerate() {
            let path = format!("numa[{index}].distances[{place}]");
            if !ids.contains_key(&distance.destination) {
                findings.add(format!("{path}.destination"), unknown("cell", distance.destination));
            }
            // ACPI 6.5, 5.2.17: 10 is a cell itself, 255 is unreachable.
            let least = if distance.destination == cell.guest_numa_id { 10 } else { 11 };
            let most = if distance.destination == cell.guest_numa_id { 10 } else { 254 };
            findings.range(format!("{path}.distance"), distance.distance.into(), least..=most);
        }
    }
    if let Some(vcpu) = (0..config.cpus.boot_vcpus).find(|vcpu| !vcpus.contains_key(vcpu)) {
        findings.add("numa", Problem::Unknown { what: "cell with vCPU", name: vcpu.to_string() });
    }
    for zone in config.memory.zones.iter().filter(|zone| !zones.contains_key(&zone.id)) {
        findings.add("numa", Problem::Unknown { what: "cell with zone", name: zone.id.clone() });
    }
}

fn platform(config: &VmConfig, findings: &mut Findings) {
    let platform = &config.platform;
    if let Some(uuid) = &platform.system_uuid {
        let lengths: Vec<usize> = uuid.split('-').map(str::len).collect();
        let is_hex = uuid.bytes().all(|byte| byte == b'-' || byte.is_ascii_hexdigit());
        if lengths != [8, 4, 4, 4, 12] || !is_hex {
            findings.add("platform.uuid", Problem::Form { found: uuid.clone(), expected: "a UUID" });
        }
    }
    let texts = [
        ("serial_number", &platform.system_serial_number),
        ("system_manufacturer", &platform.system_manufacturer),
        ("system_product_name", &platform.system_product_name),
        ("system_version", &platform.system_version),
        ("system_family", &platform.system_family),
        ("system_sku_number", &platform.system_sku_number),
        ("chassis_asset_tag", &platform.chassis_asset_tag),
    ];
    let oem = platform.oem_strings.iter().enumerate().map(|(index, text)| (format!("oem_strings[{index}]"), text));
    let texts = texts.into_iter().filter_map(|(name, text)| Some((name.to_owned(), text.as_ref()?)));
    findings.range("platform.oem_strings", platform.oem_strings.len() as u64, 0..=64);
    let bytes: usize = platform.oem_strings.iter().map(String::len).sum();
    findings.range("platform.oem_strings", bytes as u64, 0..=MOST_OEM);
    for (name, text) in texts.chain(oem) {
        // SMBIOS strings end with a zero byte, and an empty one would end the structure. Whoever reads them in the guest
        // may show them on a terminal.
        findings.range(format!("platform.{name}"), text.len() as u64, 1..=1024);
        if text.chars().any(char::is_control) {
            findings.add(format!("platform.{name}"), Problem::Contradiction("contains a control character"));
        }
    }
}

fn consoles(config: &VmConfig, findings: &mut Findings) {
    let (serial, console) = (&config.serial, &config.console);
    let both = [
        ("serial", serial.mode, serial.file.is_some(), serial.fd.is_some()),
        ("console", console.mode, console.file.is_some(), console.fd.is_some()),
    ];
    for (name, mode, has_file, has_fd) in both {
        match mode {
            ConsoleMode::Pty => findings.add(format!("{name}.mode"), Problem::NotSupported("pseudo-terminals")),
            ConsoleMode::Socket => findings.add(format!("{name}.mode"), Problem::NotSupported("console sockets")),
            ConsoleMode::File => one_of(name, ("file", has_file), ("fd", has_fd), findings),
            _ if has_fd => findings.add(format!("{name}.fd"), Problem::Contradiction("mode is not File")),
            ConsoleMode::Off | ConsoleMode::Null | ConsoleMode::Tty => {}
        }
    }
    if config.serial.mode == ConsoleMode::Tty && config.console.mode == ConsoleMode::Tty {
        findings.add("console.mode", Problem::Contradiction("serial has the terminal already; Off or Null"));
    }
    if config.debug_console.mode != ConsoleMode::Off {
        findings.add("debug_console.mode", Problem::NotSupported("the debug console"));
    }
}

fn unknown(what: &'static str, name: impl ToString) -> Problem {
    Problem::Unknown { what, name: name.to_string() }
}

/// Notes where `key` is; it must be nowhere else.
fn taken<K: Ord + ToString>(
    seen: &mut BTreeMap<K, String>,
    key: K,
    path: String,
    what: &'static str,
    findings: &mut Findings,
) {
    match seen.get(&key) {
        Some(first) => {
            let what = format!("{what} {}", key.to_string());
            findings.add(path, Problem::Taken { what, first: first.clone() });
        }
        None => {
            seen.insert(key, path);
        }
    }
}
