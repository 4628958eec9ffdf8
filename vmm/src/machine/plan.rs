//! What a machine will be, out of its configuration and what the host can do. Pure: [`super::Machine`] then does it.

use std::collections::BTreeMap;
use std::ops::Range;

use vse_vmm_api::{CpusConfig, MemoryConfig, VmConfig};

use crate::acpi::Cell;
use crate::cpu::Topology;
use crate::cpu::baseline::Baseline;
use crate::layout::{HIGH_RAM_START, PCI_WINDOW_32};
use crate::memory::plan::{ImpossibleZone, place};
use crate::memory::{PageSize, Region, Zone};
use crate::pci::{SLOTS, Windows};

/// What has to be known of the host, and of who runs the guest there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostFacts {
    /// Bits of physical address that a guest can have.
    pub physical_bits: u8,
    /// Whether somebody could ever plug in a device.
    pub hot_plug: bool,
}

/// A machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// RAM.
    pub zones: Vec<Zone>,
    /// vCPUs.
    pub topology: Topology,
    /// Host CPUs on which each vCPU may run, where that is told.
    pub affinity: BTreeMap<u32, Vec<u32>>,
    /// Features that its vCPUs have, if not all of the host's.
    pub baseline: Option<Baseline>,
    /// Bits of physical address.
    pub physical_bits: u8,
    /// Cells that the guest sees.
    pub cells: Vec<Cell>,
    /// Guest addresses for files that appear as memory.
    pub pmem: Range<u64>,
    /// Guest addresses for PCI BARs.
    pub windows: Windows,
    /// Slots whose functions may come and go; none when nobody could ask for that.
    pub hot_plug_slots: Vec<u8>,
}

/// A machine that can't be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Impossible {
    /// RAM.
    #[error(transparent)]
    Zone(#[from] ImpossibleZone),
    /// More RAM than the guest's CPUs can address.
    #[error("memory: RAM ends at {end:#x}, the CPUs address {bits} bits")]
    TooMuchMemory {
        /// First address beyond RAM.
        end: u64,
        /// What can be addressed.
        bits: u8,
    },
    /// No such set of features.
    #[error("cpus.baseline: there is no baseline {0:?}; there are x86-64-v2, x86-64-v3 and x86-64-v4")]
    UnknownBaseline(String),
}

/// Slots that the guest knows how to plug and to eject (ACPI). Not all of them: each one is a line of the kernel's console
/// and methods that it reads at boot.
pub(super) const SPARE_SLOTS: Range<u8> = SLOTS - 8..SLOTS;

/// Room for files that appear as memory.
const PMEM: u64 = 1 << 36;

/// Regions beyond RAM begin at multiples of this.
const ALIGNMENT: u64 = 1 << 30;

impl Plan {
    /// Plans a machine for a configuration that was validated.
    ///
    /// # Errors
    /// What in the configuration can't be.
    pub fn new(config: &VmConfig, host: HostFacts) -> Result<Self, Impossible> {
        let zones = zones(&config.memory);
        let regions = place(&zones)?;
        let physical_bits = host.physical_bits.min(config.cpus.max_phys_bits);
        let limit = 1_u64 << physical_bits.min(52);
        let ram_end = regions.iter().map(|region| region.start + region.size).max().unwrap_or(0);
        if ram_end > limit {
            return Err(Impossible::TooMuchMemory { end: ram_end, bits: physical_bits });
        }
        let pmem = ram_end.max(HIGH_RAM_START).next_multiple_of(ALIGNMENT);
        let pmem = pmem..(pmem + PMEM).min(limit);
        // Large BARs are aligned to their size: what is left after the last power of two is enough for most. Only the host's
        // devices have such; no window costs the guest two lines of its log less.
        let may_have_large_bars = host.hot_plug || !config.devices.is_empty();
        let high = pmem.end.next_multiple_of(ALIGNMENT)..limit;
        let high = if may_have_large_bars && high.start < high.end { high } else { 0..0 };
        Ok(Self {
            topology: topology(&config.cpus),
            affinity: config.cpus.affinity.iter().map(|entry| (entry.vcpu, entry.host_cpus.clone())).collect(),
            baseline: baseline(&config.cpus)?,
            physical_bits,
            cells: cells(config, &zones, &regions),
            pmem,
            windows: Windows { low: PCI_WINDOW_32, high },
            hot_plug_slots: SPARE_SLOTS.filter(|_| host.hot_plug).collect(),
            zones,
        })
    }
}

fn zones(config: &MemoryConfig) -> Vec<Zone> {
    let zones = config.as_zones().into_iter().enumerate().map(|(index, zone)| Zone {
        id: if zone.id.is_empty() { format!("memory{index}") } else { zone.id },
        size: zone.size,
        page: match (zone.hugepages, zone.hugepage_size) {
            (false, _) => PageSize::Base,
            (true, Some(size)) if size == PageSize::Huge1G.bytes() => PageSize::Huge1G,
            (true, _) => PageSize::Huge2M,
        },
        shared: zone.shared,
        cell: zone.host_numa_node,
        prefault: zone.prefault,
        thp: config.thp,
        reserve: zone.reserve,
    });
    zones.collect()
}

/// How the guest's CPUs are arranged.
pub(super) fn topology(config: &CpusConfig) -> Topology {
    config.topology.map_or(Topology::flat(config.boot_vcpus), |topology| Topology {
        threads: topology.threads_per_core.into(),
        cores: topology.cores_per_die.into(),
        dies: topology.dies_per_package.into(),
        sockets: topology.packages.into(),
    })
}

fn baseline(config: &CpusConfig) -> Result<Option<Baseline>, Impossible> {
    let named = config.baseline.as_ref();
    named.map(|name| Baseline::named(name).ok_or_else(|| Impossible::UnknownBaseline(name.clone()))).transpose()
}

fn cells(config: &VmConfig, zones: &[Zone], regions: &[Region]) -> Vec<Cell> {
    let cells = config.numa.iter().map(|cell| Cell {
        number: cell.guest_numa_id,
        vcpus: cell.cpus.clone(),
        memory: regions
            .iter()
            .filter(|region| cell.memory_zones.contains(&zones[region.zone].id))
            .map(|region| region.start..region.start + region.size)
            .collect(),
        distances: cell.distances.iter().map(|other| (other.destination, other.distance)).collect(),
    });
    cells.collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use vse_vmm_api::DeviceConfig;

    const HOST: HostFacts = HostFacts { physical_bits: 46, hot_plug: true };

    fn plan(json: &str) -> Result<Plan, Impossible> {
        let config: VmConfig = serde_json::from_str(json).unwrap();
        Plan::new(&config, HOST)
    }

    #[test]
    fn a_plain_machine() {
        let plan = plan("{}").unwrap();
        assert_eq!(plan.topology, Topology::flat(1));
        assert_eq!(plan.zones.len(), 1);
        assert_eq!(plan.zones[0].size, 512 << 20);
        assert_eq!(plan.pmem.start, 4 << 30);
        assert!(plan.windows.high.start >= plan.pmem.end);
        assert_eq!(plan.windows.high.end, 1 << 46);
        assert_eq!(plan.hot_plug_slots.len(), SPARE_SLOTS.len());
    }

    #[test]
    fn what_nobody_can_use_is_not_there() {
        let alone = HostFacts { hot_plug: false, ..HOST };
        let plan = Plan::new(&VmConfig::default(), alone).unwrap();
        assert!(plan.hot_plug_slots.is_empty() && plan.windows.high.is_empty());
        let config = VmConfig { devices: vec![DeviceConfig::default()], ..VmConfig::default() };
        assert!(!Plan::new(&config, alone).unwrap().windows.high.is_empty());
    }

    #[test]
    fn cells_have_their_zones_on_both_sides_of_the_hole() {
        let plan = plan(
            r#"{"cpus": {"boot_vcpus": 4, "max_vcpus": 4}, "memory": {"size": 0, "zones": [
                {"id": "a", "size": 2147483648, "hugepages": true, "host_numa_node": 0},
                {"id": "b", "size": 2147483648, "hugepages": true, "hugepage_size": 1073741824, "host_numa_node": 1}]},
              "numa": [{"guest_numa_id": 0, "cpus": [0, 1], "memory_zones": ["a"]},
                       {"guest_numa_id": 1, "cpus": [2, 3], "memory_zones": ["b"],
                        "distances": [{"destination": 0, "distance": 21}]}]}"#,
        )
        .unwrap();
        assert_eq!(plan.zones[0].page, PageSize::Huge2M);
        assert_eq!(plan.zones[1].page, PageSize::Huge1G);
        assert_eq!(plan.cells[0].memory, vec![0..2 << 30]);
        assert_eq!(plan.cells[1].memory, [2 << 30..3 << 30, 4 << 30..5 << 30]);
        assert_eq!(plan.cells[1].distances, [(0, 21)]);
    }

    #[test]
    fn what_can_not_be_is_said() {
        let error = plan(r#"{"cpus": {"baseline": "z80"}}"#).unwrap_err();
        assert_eq!(error, Impossible::UnknownBaseline("z80".to_owned()));
        let small = r#"{"memory": {"size": 8589934592}, "cpus": {"max_phys_bits": 32}}"#;
        assert!(matches!(plan(small), Err(Impossible::TooMuchMemory { bits: 32, .. })));
    }
}
