//! Numbers of the ioctls that confined threads use.

use std::mem::size_of;

use kvm_bindings::{kvm_ioeventfd, kvm_irq_level, kvm_irq_routing, kvm_irqfd, kvm_msi, kvm_userspace_memory_region};

/// The byte that tells whose an ioctl is: bits 8 to 15 (Documentation/userspace-api/ioctl/ioctl-number.rst).
pub const TYPE: u64 = 0xFF00;
/// KVM.
pub const KVM: u64 = 0xAE00;
/// VFIO.
pub const VFIO: u64 = (b';' as u64) << 8;
/// vhost in the kernel.
pub const VHOST: u64 = 0xAF00;
/// Block devices.
pub const BLOCK: u64 = 0x1200;

const fn write_of(kind: u64, number: u64, size: usize) -> u64 {
    // asm-generic/ioctl.h: direction in bits 30 and 31 (1: to the kernel), size from bit 16.
    1 << 30 | (size as u64) << 16 | kind | number
}

const fn read_of(kind: u64, number: u64, size: usize) -> u64 {
    2 << 30 | (size as u64) << 16 | kind | number
}

/// What a vCPU's thread asks of KVM and VFIO: to run, and what a driver's writes to PCI functions lead to.
pub const VCPU: &[u64] = &[
    KVM | 0x80, // KVM_RUN
    write_of(KVM, 0x46, size_of::<kvm_userspace_memory_region>()),
    write_of(KVM, 0x61, size_of::<kvm_irq_level>()),
    write_of(KVM, 0x6A, size_of::<kvm_irq_routing>()),
    write_of(KVM, 0x76, size_of::<kvm_irqfd>()),
    write_of(KVM, 0x79, size_of::<kvm_ioeventfd>()),
    write_of(KVM, 0xA5, size_of::<kvm_msi>()),
    VFIO | 110, // VFIO_DEVICE_SET_IRQS
    VFIO | 111, // VFIO_DEVICE_RESET
];

const TAP: u64 = (b'T' as u64) << 8;

/// Taps: offloads, header length, what they can.
pub const TAPS: &[u64] = &[
    write_of(TAP, 202, 4), // TUNSETIFF
    write_of(TAP, 208, 4), // TUNSETOFFLOAD
    write_of(TAP, 216, 4), // TUNSETVNETHDRSZ
    write_of(TAP, 217, 4), // TUNSETQUEUE
    write_of(TAP, 220, 4), // TUNSETVNETLE
    read_of(TAP, 207, 4),  // TUNGETFEATURES
    read_of(TAP, 210, 4),  // TUNGETIFF
    read_of(TAP, 215, 4),  // TUNGETVNETHDRSZ
];

/// Terminals: their size and settings (but not `TIOCSTI`, which types for the user); and whether reading waits.
pub const TERMINAL: &[u64] = &[
    0x5401,      // TCGETS
    0x5402,      // TCSETS
    0x5403,      // TCSETSW
    0x5404,      // TCSETSF
    0x802C_542A, // TCGETS2
    0x402C_542B, // TCSETS2
    0x402C_542C, // TCSETSW2
    0x402C_542D, // TCSETSF2
    0x5413,      // TIOCGWINSZ
    0x541B,      // FIONREAD
    0x5421,      // FIONBIO
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        // linux/kvm.h, as its users see it: KVM_SET_USER_MEMORY_REGION, KVM_IRQ_LINE, KVM_IRQFD, KVM_IOEVENTFD.
        for number in [0x4020_AE46, 0x4008_AE61, 0x4008_AE6A, 0x4020_AE76, 0x4040_AE79, 0x4020_AEA5] {
            assert!(VCPU.contains(&number), "{number:#x}");
        }
        // linux/if_tun.h: TUNSETOFFLOAD, TUNGETIFF.
        assert!(TAPS.contains(&0x4004_54D0) && TAPS.contains(&0x8004_54D2));
    }
}
