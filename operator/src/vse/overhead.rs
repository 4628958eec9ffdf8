//! Memory an engine needs beside its guest's RAM, pure.

use vse_crds::{Accelerator, EngineName};

const MI: u64 = 1 << 20;

/// Bytes of memory beside the guest's RAM that the pod must be granted, above what the engine's own estimate says.
///
/// Our VMM and Cloud Hypervisor measure 3 and 5 MiB resident with a small device set (1 vCPU); the rest is room for page
/// tables (1/512 of the RAM), queues of the devices, and the sockets' tmpfs.
///
/// QEMU with a small device set measures 50–60 MiB resident; the rest is room for page tables (1/512 of the RAM),
/// vCPU threads and their buffers, the block layer's caches and the sockets' tmpfs. TCG keeps translated code, which
/// the QEMU driver bounds (`tb-size`) to 128 MiB or 16 MiB a vCPU, and each vCPU has a software TLB.
pub fn overhead(engine: EngineName, accelerator: Accelerator, vcpus: u32, memory: u64) -> u64 {
    let vcpus = u64::from(vcpus);
    let engine = match engine {
        EngineName::Vmm => 32 * MI + 2 * MI * vcpus + memory / 512,
        EngineName::CloudHypervisor => 48 * MI + 2 * MI * vcpus + memory / 512,
        EngineName::Qemu => 160 * MI + 8 * MI * vcpus + memory / 512,
    };
    let translator = match accelerator {
        Accelerator::Kvm => 0,
        Accelerator::Tcg => (16 * MI * vcpus).max(128 * MI) + 16 * MI * vcpus,
    };
    (engine + translator).next_multiple_of(MI)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_with_the_guest_and_is_whole_mebibytes() {
        let small = overhead(EngineName::Qemu, Accelerator::Kvm, 1, 512 * MI);
        assert_eq!(small, 169 * MI);
        assert_eq!(overhead(EngineName::Qemu, Accelerator::Tcg, 1, 512 * MI), small + 144 * MI);
        assert_eq!(overhead(EngineName::Vmm, Accelerator::Kvm, 1, 512 * MI), 35 * MI);
        assert!(overhead(EngineName::Qemu, Accelerator::Kvm, 64, 512 << 30) > 1 << 30);
    }
}
