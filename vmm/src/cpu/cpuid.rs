//! What the guest's CPUID instruction says: what the host has and KVM can give, with the guest's own topology. Pure.
//!
//! Sources: Intel SDM volume 2A (CPUID), AMD APM volume 3 appendix E, `Documentation/virt/kvm/x86/cpuid.rst`.

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2 as Entry};

use super::baseline::Baseline;
use super::topology::Topology;

/// What shapes the guest's CPUID beside what KVM can give.
#[derive(Debug, Clone, PartialEq)]
pub struct CpuidOptions {
    /// Sockets to threads.
    pub topology: Topology,
    /// Each vCPU has a host CPU for itself.
    pub dedicated: bool,
    /// Whether the guest may run guests.
    pub nested: bool,
    /// At most so many bits of physical address.
    pub max_physical_bits: u8,
    /// Features that every host of a cluster has, in place of all of this one's.
    pub baseline: Option<Baseline>,
    /// Frequency of the guest's TSC in kHz, when it is stable.
    pub tsc_khz: Option<u32>,
    /// Whether KVM emulates the APIC's deadline timer.
    pub tsc_deadline: bool,
    /// Leaf 0x8000001D of the host, which is not among what KVM supports; for hosts of AMD's.
    pub caches: Vec<Entry>,
    /// Bits of an APIC ID below which vCPUs share a cache of the third level.
    pub shared_cache_shift: u32,
}

/// CPUID of all vCPUs of a guest: what differs between them is filled in by [`Cpuid::of`].
#[derive(Debug, Clone)]
pub struct Cpuid {
    entries: Vec<Entry>,
    topology: Topology,
    is_amd: bool,
}

/// Leaves whose contents say where a vCPU is.
const EXTENDED_TOPOLOGY: [u32; 2] = [0xB, 0x1F];

/// AMD's leaf of caches.
pub(super) const CACHES: u32 = 0x8000_001D;

/// KVM's paravirtual leaves.
const HYPERVISOR: u32 = 0x4000_0000;

/// Feature bits that the VMM decides about.
pub(super) mod bit {
    /// Leaf 1, EDX: more than one logical CPU in a socket.
    pub const HTT: u32 = 1 << 28;
    /// Leaf 1, ECX.
    pub const VMX: u32 = 1 << 5;
    /// Leaf 1, ECX: the APIC has a deadline timer.
    pub const TSC_DEADLINE: u32 = 1 << 24;
    /// Leaf 1, ECX.
    pub const IS_GUEST: u32 = 1 << 31;
    /// Leaf 0x40000001, EAX: page faults of the host's told to the guest, in its three forms.
    pub const ASYNC_PF: u32 = 1 << 4 | 1 << 10 | 1 << 14;
    /// Leaf 0x40000001, EAX.
    pub const STEAL_TIME: u32 = 1 << 5;
    /// Leaf 0x40000001, EDX: no vCPU is ever preempted for long.
    pub const REALTIME: u32 = 1 << 0;
    /// Leaf 0x80000001, ECX: AMD's form of HTT.
    pub const CMP_LEGACY: u32 = 1 << 1;
    /// Leaf 0x80000001, ECX.
    pub const SVM: u32 = 1 << 2;
    /// Leaf 0x80000001, ECX: leaves 0x8000001D and 0x8000001E are there.
    pub const TOPOLOGY_EXTENSIONS: u32 = 1 << 22;
}

/// Kinds of level in leaves 0xB and 0x1F.
mod level {
    pub const THREAD: u32 = 1;
    pub const CORE: u32 = 2;
    pub const DIE: u32 = 5;
}

/// Frequency of the APIC timer's clock, as KVM emulates it.
const APIC_BUS_KHZ: u32 = 1_000_000;

impl Cpuid {
    /// Out of what KVM supports on this host.
    #[must_use]
    pub fn new(supported: &[Entry], options: &CpuidOptions) -> Self {
        let is_amd = supported.iter().any(|entry| entry.function == 0 && is_amd(entry));
        let topology = options.topology;
        let mut entries: Vec<Entry> = supported
            .iter()
            .filter(|entry| !EXTENDED_TOPOLOGY.contains(&entry.function))
            // AMD's newer topology leaf; the guest's is told by leaf 0xB and 0x8000001E, which every kernel reads.
            .filter(|entry| entry.function != 0x8000_0026)
            .filter(|entry| entry.function != CACHES)
            .copied()
            .collect();
        if is_amd {
            entries.extend(&options.caches);
        }
        if let Some(baseline) = &options.baseline {
            baseline.apply(&mut entries);
        }
        for entry in &mut entries {
            shape(entry, options, is_amd);
        }
        add_hypervisor_timing(&mut entries, options);
        let max_basic = entries.iter_mut().find(|entry| entry.function == 0);
        if let Some(leaf) = max_basic {
            leaf.eax = leaf.eax.max(if topology.dies > 1 { 0x1F } else { 0xB });
        }
        Self { entries, topology, is_amd }
    }

    /// Whether the host's CPUs are AMD's (or Hygon's), whose topology leaves differ.
    #[must_use]
    pub fn is_amd(&self) -> bool {
        self.is_amd
    }

    /// The arrangement that it tells of.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// What one vCPU's says.
    #[must_use]
    pub fn of(&self, vcpu: u32) -> Vec<Entry> {
        let topology = &self.topology;
        let (id, position) = (topology.apic_id(vcpu), topology.position(vcpu));
        let mut entries = self.entries.clone();
        for entry in &mut entries {
            match entry.function {
                1 => entry.ebx = entry.ebx & 0x00FF_FFFF | (id & 0xFF) << 24,
                0x8000_001E => {
                    let die = position.socket * topology.dies + position.die;
                    entry.eax = id;
                    entry.ebx = (position.die * topology.cores + position.core) | ((topology.threads - 1) << 8);
                    entry.ecx = die & 0xFF | (topology.dies - 1) << 8;
                    entry.edx = 0;
                }
                _ => {}
            }
        }
        entries.extend(extended_topology(0xB, id, topology));
        // Only leaf 0x1F can tell of dies.
        if topology.dies > 1 {
            entries.extend(extended_topology(0x1F, id, topology));
        }
        entries
    }
}

fn is_amd(leaf: &Entry) -> bool {
    let vendor = [leaf.ebx, leaf.edx, leaf.ecx].map(u32::to_le_bytes).concat();
    vendor == b"AuthenticAMD" || vendor == b"HygonGenuine"
}

/// Sets `bits` of a register to `on`.
fn set(register: &mut u32, bits: u32, on: bool) {
    if on { *register |= bits } else { *register &= !bits }
}

/// What is the same for all vCPUs.
fn shape(entry: &mut Entry, options: &CpuidOptions, is_amd: bool) {
    let topology = &options.topology;
    let per_socket = topology.per_socket();
    match entry.function {
        1 => {
            let addressable = (1_u32 << topology.socket_shift()).min(255);
            entry.ebx = entry.ebx & 0xFF00_FFFF | addressable << 16;
            set(&mut entry.edx, bit::HTT, per_socket > 1);
            set(&mut entry.ecx, bit::IS_GUEST, true);
            set(&mut entry.ecx, bit::TSC_DEADLINE, options.tsc_deadline);
            entry.ecx &= if options.nested { !0 } else { !bit::VMX };
        }
        // Intel's deterministic cache parameters; type 0 ends the list.
        4 if entry.eax & 0x1F != 0 => {
            let cores = (1_u32 << (topology.socket_shift() - topology.core_shift())).min(64);
            entry.eax = entry.eax & 0x3FFF | (sharers(entry.eax, options) - 1) << 14 | (cores - 1) << 26;
        }
        HYPERVISOR => entry.eax = 0x4000_0010,
        0x4000_0001 => {
            if options.dedicated {
                entry.eax &= !(bit::ASYNC_PF | bit::STEAL_TIME);
            }
            set(&mut entry.edx, bit::REALTIME, options.dedicated);
        }
        0x8000_0001 if is_amd => {
            set(&mut entry.ecx, bit::CMP_LEGACY, per_socket > 1);
            entry.ecx &= if options.nested { !0 } else { !bit::SVM };
            // A guest that finds no caches by the newer leaf has those of the older ones, as its host has.
            set(&mut entry.ecx, bit::TOPOLOGY_EXTENSIONS, !options.caches.is_empty());
        }
        0x8000_0008 => {
            let bits = (entry.eax & 0xFF).min(u32::from(options.max_physical_bits));
            entry.eax = entry.eax & !0xFF | bits;
            if is_amd {
                entry.ecx = entry.ecx & !0xF0FF | (per_socket - 1).min(255) | topology.socket_shift() << 12;
            }
        }
        // AMD's cache properties, of the same form as Intel's leaf 4.
        CACHES => {
            entry.eax = entry.eax & !(0xFFF << 14) | (sharers(entry.eax, options) - 1) << 14;
        }
        _ => {}
    }
}

/// How many vCPUs share a cache: those of a core its first two levels, and the third as their host CPUs do.
///
/// Rounded up to a power of two, as the field counts APIC IDs.
fn sharers(eax: u32, options: &CpuidOptions) -> u32 {
    let level = eax >> 5 & 7;
    1 << if level < 3 { options.topology.core_shift() } else { options.shared_cache_shift }
}

/// Levels of leaf 0xB or 0x1F: threads, cores, and (0x1F only) dies.
fn extended_topology(function: u32, id: u32, topology: &Topology) -> impl Iterator<Item = Entry> {
    let Topology { threads, cores, dies, .. } = *topology;
    let mut levels = vec![(level::THREAD, topology.core_shift(), threads)];
    if function == 0x1F {
        levels.push((level::CORE, topology.die_shift(), threads * cores));
        levels.push((level::DIE, topology.socket_shift(), threads * cores * dies));
    } else {
        levels.push((level::CORE, topology.socket_shift(), threads * cores * dies));
    }
    levels.push((0, 0, 0));
    (0_u32..).zip(levels).map(move |(index, (kind, shift, count))| Entry {
        function,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: count,
        ecx: index | kind << 8,
        edx: id,
        ..Default::default()
    })
}

/// Leaf 0x40000010: how fast TSC and APIC timer run.
fn add_hypervisor_timing(entries: &mut Vec<Entry>, options: &CpuidOptions) {
    entries.retain(|entry| !(HYPERVISOR + 2..=HYPERVISOR + 0x10).contains(&entry.function));
    let eax = options.tsc_khz.unwrap_or(0);
    entries.push(Entry { function: HYPERVISOR + 0x10, eax, ebx: APIC_BUS_KHZ, ..Default::default() });
}

/// Leaves and sub-leaves whose registers are features, one a bit, and bits that are not: what the guest's own settings
/// make of them (OSXSAVE, OSPKE, MONITOR), and who it is.
const FEATURES: [(u32, u32, [u32; 4]); 8] = [
    // EBX holds the APIC ID, EAX the model.
    (1, 0, [u32::MAX, u32::MAX, 1 << 27 | 1 << 3, 0]),
    // EAX is the highest sub-leaf.
    (7, 0, [u32::MAX, 0, 1 << 4, 0]),
    (7, 1, [0, 0, 0, 0]),
    (7, 2, [0, 0, 0, 0]),
    // EBX and ECX are sizes.
    (0xD, 0, [0, u32::MAX, u32::MAX, 0]),
    (0xD, 1, [0, u32::MAX, 0, 0]),
    (0x8000_0001, 0, [u32::MAX, u32::MAX, 0, 0]),
    // EAX and ECX are widths and counts.
    (0x8000_0008, 0, [u32::MAX, 0, u32::MAX, u32::MAX]),
];

/// Features of a saved guest's that one started here would not have, as (leaf, register, bits).
#[must_use]
pub fn missing(saved: &[Entry], here: &[Entry]) -> Vec<(u32, &'static str, u32)> {
    let registers = |entries: &[Entry], function, index| {
        let entry = entries.iter().find(|entry| (entry.function, entry.index) == (function, index));
        entry.map_or([0; 4], |entry| [entry.eax, entry.ebx, entry.ecx, entry.edx])
    };
    let mut missing = Vec::new();
    for (function, index, other) in FEATURES {
        let (saved, here) = (registers(saved, function, index), registers(here, function, index));
        for (place, name) in ["EAX", "EBX", "ECX", "EDX"].into_iter().enumerate() {
            missing.push((function, name, saved[place] & !here[place] & !other[place]));
        }
    }
    missing.retain(|(_, _, bits)| *bits != 0);
    missing
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> Entry {
        Entry { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn vendor(name: &[u8; 12]) -> [u32; 4] {
        let word = |at: usize| u32::from_le_bytes([name[at], name[at + 1], name[at + 2], name[at + 3]]);
        [0x10, word(0), word(8), word(4)]
    }

    /// A host with one level of each kind of leaf that is shaped.
    fn host(name: &[u8; 12]) -> Vec<Entry> {
        vec![
            leaf(0, 0, vendor(name)),
            leaf(1, 0, [0, 0x0700_0800, bit::VMX, 0]),
            leaf(4, 0, [0x121, 0, 0, 0]),
            leaf(4, 1, [0x163, 0, 0, 0]),
            leaf(4, 2, [0, 0, 0, 0]),
            leaf(0xB, 0, [9, 9, 9, 9]),
            leaf(HYPERVISOR, 0, [0x4000_0001, 0, 0, 0]),
            leaf(HYPERVISOR + 1, 0, [!0, 0, 0, 0]),
            leaf(0x8000_0001, 0, [0, 0, bit::SVM, 0]),
            leaf(0x8000_0008, 0, [52, 0, 0, 0]),
            leaf(CACHES, 0, [0, 0, 0, 0]),
            leaf(0x8000_001E, 0, [0, 0, 0, 0]),
        ]
    }

    fn options(topology: Topology) -> CpuidOptions {
        CpuidOptions {
            topology,
            dedicated: false,
            nested: true,
            max_physical_bits: 46,
            baseline: None,
            tsc_khz: Some(2_000_000),
            tsc_deadline: true,
            caches: vec![leaf(CACHES, 0, [0x121, 0, 0, 0]), leaf(CACHES, 1, [0x163, 0, 0, 0])],
            shared_cache_shift: topology.die_shift(),
        }
    }

    fn find(entries: &[Entry], function: u32, index: u32) -> Entry {
        *entries.iter().find(|entry| entry.function == function && entry.index == index).unwrap()
    }

    const TWO_SOCKETS: Topology = Topology { threads: 2, cores: 3, dies: 1, sockets: 2 };

    #[test]
    fn intel_levels_and_caches() {
        let cpuid = Cpuid::new(&host(b"GenuineIntel"), &options(TWO_SOCKETS));
        assert!(!cpuid.is_amd());
        let entries = cpuid.of(8);
        let (threads, cores) = (find(&entries, 0xB, 0), find(&entries, 0xB, 1));
        assert_eq!([threads.eax, threads.ebx, threads.ecx, threads.edx], [1, 2, 0x100, 10]);
        assert_eq!([cores.eax, cores.ebx, cores.ecx, cores.edx], [3, 6, 0x201, 10]);
        assert_eq!(find(&entries, 0xB, 2).ecx, 2);
        assert_eq!(find(&entries, 1, 0).ebx >> 16, 10 << 8 | 8);
        // The first level is shared by the threads of a core, the third by a socket's 8 addressable threads.
        assert_eq!(find(&entries, 4, 0).eax >> 14 & 0xFFF, 1);
        assert_eq!(find(&entries, 4, 1).eax >> 14 & 0xFFF, 7);
        assert_eq!(find(&entries, 4, 1).eax >> 26, 3);
        assert!(entries.iter().all(|entry| entry.function != 0x1F));
    }

    #[test]
    fn caches_of_a_part_of_a_socket() {
        let narrow = CpuidOptions { shared_cache_shift: 2, ..options(TWO_SOCKETS) };
        for (vendor, function) in [(b"GenuineIntel", 4), (b"AuthenticAMD", CACHES)] {
            let entries = Cpuid::new(&host(vendor), &narrow).of(0);
            assert_eq!([0, 1].map(|index| find(&entries, function, index).eax >> 14 & 0xFFF), [1, 3]);
        }
    }

    #[test]
    fn dies_are_told_by_leaf_1f() {
        let topology = Topology { threads: 2, cores: 2, dies: 2, sockets: 1 };
        let entries = Cpuid::new(&host(b"GenuineIntel"), &options(topology)).of(5);
        assert_eq!([1, 2, 3].map(|shift| shift), [0, 1, 2].map(|index| find(&entries, 0x1F, index).eax));
        assert_eq!(find(&entries, 0x1F, 2).ecx, 5 << 8 | 2);
        assert_eq!(find(&entries, 0xB, 1).ebx, 8);
    }

    #[test]
    fn amd_levels() {
        let cpuid = Cpuid::new(&host(b"AuthenticAMD"), &options(TWO_SOCKETS));
        assert!(cpuid.is_amd());
        let entries = cpuid.of(9);
        let extended = find(&entries, 0x8000_001E, 0);
        assert_eq!([extended.eax, extended.ebx, extended.ecx], [11, 1 << 8 | 1, 1]);
        let size = find(&entries, 0x8000_0008, 0);
        assert_eq!([size.eax, size.ecx], [46, 3 << 12 | 5]);
        assert_eq!(find(&entries, CACHES, 1).eax >> 14 & 0xFFF, 7);
        let features = find(&entries, 0x8000_0001, 0).ecx;
        assert_eq!(features, bit::CMP_LEGACY | bit::SVM | bit::TOPOLOGY_EXTENSIONS);
    }

    #[test]
    fn caches_of_older_amd_hosts_are_told_by_the_older_leaves() {
        let old = CpuidOptions { caches: Vec::new(), ..options(TWO_SOCKETS) };
        let entries = Cpuid::new(&host(b"AuthenticAMD"), &old).of(0);
        assert_eq!(find(&entries, 0x8000_0001, 0).ecx & bit::TOPOLOGY_EXTENSIONS, 0);
        assert!(entries.iter().all(|entry| entry.function != CACHES));
    }

    #[test]
    fn dedicated_cpus_are_told() {
        let flat = options(Topology::flat(1));
        let features = |options: &CpuidOptions| {
            let leaf = find(&Cpuid::new(&host(b"GenuineIntel"), options).of(0), HYPERVISOR + 1, 0);
            (leaf.eax & (bit::ASYNC_PF | bit::STEAL_TIME), leaf.edx)
        };
        assert_eq!(features(&flat), (bit::ASYNC_PF | bit::STEAL_TIME, 0));
        assert_eq!(features(&CpuidOptions { dedicated: true, ..flat }), (0, bit::REALTIME));
    }

    #[test]
    fn guests_of_the_guest_can_be_forbidden() {
        let options = CpuidOptions { nested: false, ..options(Topology::flat(1)) };
        let entries = Cpuid::new(&host(b"AuthenticAMD"), &options).of(0);
        assert_eq!(find(&entries, 1, 0).ecx & bit::VMX, 0);
        assert_eq!(find(&entries, 0x8000_0001, 0).ecx & bit::SVM, 0);
    }

    #[test]
    fn timing_is_told() {
        let entries = Cpuid::new(&host(b"GenuineIntel"), &options(Topology::flat(1))).of(0);
        assert_eq!(find(&entries, HYPERVISOR, 0).eax, HYPERVISOR + 0x10);
        let timing = find(&entries, HYPERVISOR + 0x10, 0);
        assert_eq!([timing.eax, timing.ebx], [2_000_000, 1_000_000]);
    }

    #[test]
    fn what_a_poorer_host_lacks() {
        let entry = |function, index, [eax, ebx, ecx, edx]: [u32; 4]| Entry {
            function,
            index,
            eax,
            ebx,
            ecx,
            edx,
            ..Entry::default()
        };
        let saved = [entry(1, 0, [7, 7, 1 << 27 | 1 << 12, 0]), entry(7, 0, [2, 1 << 8, 0, 0]), entry(7, 1, [1; 4])];
        assert_eq!(missing(&saved, &saved), []);
        let here = [entry(1, 0, [6, 6, 1 << 12, 0]), entry(7, 0, [0, 1 << 5, 0, 0])];
        let all = [(7, "EBX", 1 << 8), (7, "EAX", 1), (7, "EBX", 1), (7, "ECX", 1), (7, "EDX", 1)];
        assert_eq!(missing(&saved, &here), all);
        assert_eq!(missing(&here, &saved), [(7, "EBX", 1 << 5)]);
    }
}
