//! Caches of the host that KVM does not tell of: an AMD host's (its list of what it supports has leaf 0x8000001D as zeros,
//! `arch/x86/kvm/cpuid.c`), and which CPUs share one.

use std::fs;

use core::arch::x86_64::{__cpuid, __cpuid_count};

use kvm_bindings::{KVM_CPUID_FLAG_SIGNIFCANT_INDEX, kvm_cpuid_entry2 as Entry};

use super::cpuid::{CACHES, bit};

/// More than any CPU has; the list ends with an entry of type 0.
const MOST_CACHES: u32 = 16;

/// Leaf 0x8000001D of the CPU this runs on, an entry for each cache (AMD APM volume 3, appendix E.4.15); nothing where
/// there is no such leaf.
#[must_use]
pub fn host_caches() -> Vec<Entry> {
    if !has_topology_extensions() {
        return Vec::new();
    }
    (0..MOST_CACHES).map(cache).take_while(|entry| entry.eax & 0x1F != 0).collect()
}

/// The CPUs that share a cache of the third level with this one, as the kernel lists them
/// (`Documentation/ABI/testing/sysfs-devices-system-cpu`); `None` when there is none, or nobody tells.
#[must_use]
pub fn sharers_of_third_level(cpu: u32) -> Option<String> {
    let caches = format!("/sys/devices/system/cpu/cpu{cpu}/cache");
    let read = |index: u32, file| fs::read_to_string(format!("{caches}/index{index}/{file}")).ok();
    let third = (0..MOST_CACHES).map_while(|index| Some((index, read(index, "level")?)));
    let (index, _) = third.into_iter().find(|(_, level)| level.trim() == "3")?;
    read(index, "shared_cpu_list")
}

#[allow(unsafe_code, unused_unsafe, reason = "newer toolchains call it safe")]
fn has_topology_extensions() -> bool {
    // SAFETY: every x86-64 CPU has CPUID and this leaf.
    unsafe { __cpuid(0x8000_0001) }.ecx & bit::TOPOLOGY_EXTENSIONS != 0
}

#[allow(unsafe_code, unused_unsafe, reason = "newer toolchains call it safe")]
fn cache(index: u32) -> Entry {
    // SAFETY: every x86-64 CPU has CPUID; an unknown leaf reads as something, with no other effect.
    let leaf = unsafe { __cpuid_count(CACHES, index) };
    Entry {
        function: CACHES,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: leaf.eax,
        ebx: leaf.ebx,
        ecx: leaf.ecx,
        edx: leaf.edx,
        ..Entry::default()
    }
}
