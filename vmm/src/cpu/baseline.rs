//! Named sets of CPU features, so that a guest can go on wherever all of a set is there. Pure.
//!
//! The sets are the levels of the x86-64 psABI (section 3.1.1), with what every CPU of that level has beside it (for
//! example AES), and with the host's mitigations of speculation, which are worth more than moving.

use kvm_bindings::kvm_cpuid_entry2 as Entry;

/// A level of the psABI.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Baseline {
    /// `x86-64-v2`: SSE4.2, POPCNT.
    V2,
    /// `x86-64-v3`: AVX2, FMA, BMI.
    V3,
    /// `x86-64-v4`: AVX-512 (F, BW, CD, DQ, VL).
    V4,
}

/// Bits by number.
const fn bits(numbers: &[u32]) -> u32 {
    let (mut mask, mut index) = (0, 0);
    while index < numbers.len() {
        mask |= 1 << numbers[index];
        index += 1;
    }
    mask
}

/// FPU to PSE36 without PSN, CLFSH, MMX, FXSR, SSE, SSE2.
const LEAF_1_EDX: u32 = bits(&[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 14, 15, 16, 17, 19, 23, 24, 25, 26]);
/// SSE3, PCLMULQDQ, SSSE3, CX16, SSE4.1, SSE4.2, x2APIC, POPCNT, AES.
const LEAF_1_ECX_V2: u32 = bits(&[0, 1, 9, 13, 19, 20, 21, 23, 25]);
/// FMA, MOVBE, XSAVE, OSXSAVE, AVX, F16C, RDRAND.
const LEAF_1_ECX_V3: u32 = bits(&[12, 22, 26, 27, 28, 29, 30]);
/// FSGSBASE, BMI1, AVX2, SMEP, BMI2.
const LEAF_7_EBX_V3: u32 = bits(&[0, 3, 5, 7, 8]);
/// AVX512F, AVX512DQ, RDSEED, ADX, SMAP, CLFLUSHOPT, CLWB, AVX512CD, AVX512BW, AVX512VL.
const LEAF_7_EBX_V4: u32 = bits(&[16, 17, 18, 19, 20, 23, 24, 28, 30, 31]);
/// MD_CLEAR, SPEC_CTRL, STIBP, FLUSH_L1D, ARCH_CAPABILITIES, SSBD.
const LEAF_7_EDX_MITIGATIONS: u32 = bits(&[10, 26, 27, 28, 29, 31]);
/// SYSCALL, NX, PDPE1GB, RDTSCP, LM; on AMD also copies of leaf 1's bits.
const LEAF_80000001_EDX: u32 = bits(&[11, 20, 26, 27, 29]);
/// LAHF/SAHF in 64-bit mode, and AMD's forms of topology.
const LEAF_80000001_ECX_V2: u32 = bits(&[0, 1, 22]);
/// LZCNT, PREFETCHW.
const LEAF_80000001_ECX_V3: u32 = bits(&[5, 8]);
/// AMD: IBPB, IBRS, STIBP, their always-on forms, SSBD.
const LEAF_80000008_EBX_MITIGATIONS: u32 = bits(&[12, 14, 15, 16, 17, 18, 19, 24]);

impl Baseline {
    /// By its psABI name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        match name {
            "x86-64-v2" => Some(Self::V2),
            "x86-64-v3" => Some(Self::V3),
            "x86-64-v4" => Some(Self::V4),
            _ => None,
        }
    }

    fn with_v3(self, mask: u32) -> u32 {
        if self >= Self::V3 { mask } else { 0 }
    }

    fn with_v4(self, mask: u32) -> u32 {
        if self >= Self::V4 { mask } else { 0 }
    }

    /// Bits of XCR0 that the guest may set: x87 and SSE, AVX, the three parts of AVX-512.
    fn xcr0(self) -> u32 {
        0b11 | self.with_v3(0b100) | self.with_v4(0b1110_0000)
    }

    /// Features that the level has and `supported` lacks, as (leaf, register, bits); empty where it can be used.
    #[must_use]
    pub fn missing(self, supported: &[Entry]) -> Vec<(u32, &'static str, u32)> {
        let leaf = |function| {
            let found = supported.iter().find(|entry| entry.function == function && entry.index == 0);
            found.copied().unwrap_or_default()
        };
        // What KVM adds itself (OSXSAVE follows CR4) or can always emulate (x2APIC) is not the host's to lack.
        let leaf_1 = LEAF_1_ECX_V2 | self.with_v3(LEAF_1_ECX_V3 & !(1 << 27));
        let needs = [
            (1, "ECX", leaf_1, leaf(1).ecx),
            (1, "EDX", LEAF_1_EDX, leaf(1).edx),
            (7, "EBX", self.with_v3(LEAF_7_EBX_V3) | self.with_v4(LEAF_7_EBX_V4), leaf(7).ebx),
            (0x8000_0001, "ECX", 1 | self.with_v3(LEAF_80000001_ECX_V3), leaf(0x8000_0001).ecx),
            (0x8000_0001, "EDX", LEAF_80000001_EDX, leaf(0x8000_0001).edx),
        ];
        needs
            .into_iter()
            .map(|(function, register, needed, found)| (function, register, needed & !found))
            .filter(|(_, _, lacking)| *lacking != 0)
            .collect()
    }

    /// Leaves of `entries` just what the level has.
    pub fn apply(self, entries: &mut Vec<Entry>) {
        // Monitoring, tracing, enclaves, tiles, resource control and what is newer than the levels.
        entries.retain(|entry| !matches!(entry.function, 0xA | 0xF..=0x1E | 0x20..=0x2F | 0x8000_000A));
        entries.retain(|entry| !(entry.function == 7 && entry.index > 0));
        entries.retain(|entry| match entry.function {
            0xD if entry.index >= 2 => entry.index < 32 && self.xcr0() >> entry.index & 1 == 1,
            0xD => self >= Self::V3,
            _ => true,
        });
        for entry in entries {
            self.restrict(entry);
        }
    }

    fn restrict(self, entry: &mut Entry) {
        match (entry.function, entry.index) {
            (1, _) => {
                entry.ecx &= LEAF_1_ECX_V2 | self.with_v3(LEAF_1_ECX_V3);
                entry.edx &= LEAF_1_EDX;
            }
            // Only that the APIC timer never stops.
            (6, _) => [entry.eax, entry.ebx, entry.ecx, entry.edx] = [entry.eax & 1 << 2, 0, 0, 0],
            (7, _) => {
                entry.eax = 0;
                entry.ebx &= self.with_v3(LEAF_7_EBX_V3) | self.with_v4(LEAF_7_EBX_V4);
                entry.ecx = 0;
                entry.edx &= LEAF_7_EDX_MITIGATIONS;
            }
            (0xD, 0) => {
                entry.eax &= self.xcr0();
                entry.edx = 0;
                // Sizes of the areas that hold x87 to AVX, or to AVX-512 (SDM volume 1, 13.5).
                entry.ecx = if self >= Self::V4 { 2688 } else { 832 };
            }
            // XSAVEOPT; from v4 on also the compacted forms.
            (0xD, 1) => {
                entry.eax &= 1 | self.with_v4(0b1110);
                entry.ecx = 0;
                entry.edx = 0;
            }
            (0x8000_0001, _) => {
                entry.ecx &= LEAF_80000001_ECX_V2 | self.with_v3(LEAF_80000001_ECX_V3);
                entry.edx &= LEAF_80000001_EDX | LEAF_1_EDX;
            }
            // An invariant TSC is invariant on its own host.
            (0x8000_0007, _) => entry.edx = 0,
            (0x8000_0008, _) => entry.ebx &= LEAF_80000008_EBX_MITIGATIONS,
            (0x8000_0021, _) => [entry.eax, entry.ebx, entry.ecx, entry.edx] = [0; 4],
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn everything() -> Vec<Entry> {
        let leaf =
            |function, index| Entry { function, index, eax: !0, ebx: !0, ecx: !0, edx: !0, ..Default::default() };
        let mut entries: Vec<_> = [1, 6, 7, 0xA, 0x14, 0x1D, 0x8000_0001, 0x8000_0007, 0x8000_0008, 0x8000_0021]
            .into_iter()
            .map(|function| leaf(function, 0))
            .collect();
        entries.extend([0, 1, 2, 5, 6, 7, 9, 17, 18].map(|index| leaf(0xD, index)));
        entries
    }

    #[test]
    fn levels_by_name() {
        assert_eq!(Baseline::named("x86-64-v3"), Some(Baseline::V3));
        assert_eq!(Baseline::named("haswell"), None);
    }

    #[test]
    fn a_level_is_the_same_on_a_richer_host() {
        for level in [Baseline::V2, Baseline::V3, Baseline::V4] {
            let mut once = everything();
            assert_eq!(level.missing(&once), []);
            level.apply(&mut once);
            // What is left still has all of the level, and nothing more to take away.
            assert_eq!(level.missing(&once), [], "{level:?}");
            let mut twice = once.clone();
            level.apply(&mut twice);
            assert_eq!(once, twice);
        }
    }

    #[test]
    fn saved_state_follows_the_level() {
        let parts = |level: Baseline| {
            let mut entries = everything();
            level.apply(&mut entries);
            entries.iter().filter(|entry| entry.function == 0xD).map(|entry| entry.index).collect::<Vec<_>>()
        };
        assert!(parts(Baseline::V2).is_empty());
        assert_eq!(parts(Baseline::V3), [0, 1, 2]);
        assert_eq!(parts(Baseline::V4), [0, 1, 2, 5, 6, 7]);
    }

    #[test]
    fn a_poorer_host_lacks_by_name() {
        let mut entries = everything();
        entries[2].ebx &= !(1 << 16);
        assert_eq!(Baseline::V4.missing(&entries), [(7, "EBX", 1 << 16)]);
        assert_eq!(Baseline::V3.missing(&entries), []);
    }
}
