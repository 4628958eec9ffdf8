//! How much memory a QEMU takes beside the guest's RAM.

use super::args::translation_cache_mib;
use crate::AcceleratorKind;

const MIB: u64 = 1 << 20;

/// An upper estimate, in bytes, of the memory that a pod needs beside the guest's RAM so that the kernel never
/// kills it: for the pod's memory limit.
///
/// The parts: the program with its libraries and buffers; stacks and state of each vCPU; second-level page tables
/// (8 bytes for each 4 KiB page) and QEMU's own bitmaps; with emulation the translated code and each vCPU's
/// software TLBs. Measured (QEMU 10.0, Debian 13 booted to its login under emulation, 2 vCPUs, code cache of 64 MiB):
/// 101 MiB of anonymous memory beside the guest's and 24 MiB of program, where this says 204 MiB. The page cache of disks is charged to the pod too, but is given back when needed.
#[must_use]
pub fn overhead(vcpus: u32, ram: u64, accelerator: AcceleratorKind) -> u64 {
    let emulation = match accelerator {
        AcceleratorKind::Kvm => 0,
        AcceleratorKind::Emulation => u64::from(translation_cache_mib(vcpus)) * MIB + u64::from(vcpus) * 16 * MIB,
    };
    96 * MIB + u64::from(vcpus) * 4 * MIB + ram / 512 + emulation
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn emulation_costs_its_caches() {
        let kvm = overhead(2, 1 << 30, AcceleratorKind::Kvm);
        let emulation = overhead(2, 1 << 30, AcceleratorKind::Emulation);
        assert_eq!(kvm, 106 * MIB);
        assert_eq!(emulation - kvm, 160 * MIB);
    }
}
