//! The guest's physical address map (x86-64).
//!
//! ```text
//!  0x0000_0000  RAM (below 1 MiB: boot parameters, page tables, ACPI and SMBIOS tables)
//!  0xC000_0000  end of low RAM at most; what RAM is beyond it continues at 4 GiB
//!  0xC000_0000  32-bit window of PCI BARs
//!  0xE000_0000  ECAM: PCI configuration space, one bus segment
//!  0xFEC0_0000  IOAPIC   0xFED0_0000 platform registers   0xFEE0_0000 LAPIC, MSI
//!  0x1_0000_0000 high RAM, then (1 GiB aligned) virtio-pmem regions and the 64-bit window of PCI BARs
//! ```

/// The SMBIOS tables, in that part of a PC's last 64 KiB below 1 MiB where kernels look for them. It is RAM that the memory
/// map doesn't tell of.
pub const SMBIOS: std::ops::Range<u64> = 0xF_0000..RESET_VECTOR;

/// Where a PC's BIOS begins in real mode, F000:FFF0. Linux jumps there to start over where ACPI is hardware-reduced and
/// there is no EFI (`arch/x86/kernel/reboot.c`).
pub const RESET_VECTOR: u64 = 0xF_FFF0;

/// Where low RAM ends at the latest, and the 32-bit PCI window begins.
pub const LOW_RAM_END: u64 = 0xC000_0000;

/// The 32-bit window of PCI BARs.
pub const PCI_WINDOW_32: std::ops::Range<u64> = 0xC000_0000..0xE000_0000;

/// PCI configuration space by ECAM (PCI Firmware Specification 3.3, 4.1): 1 MiB for each bus.
pub const ECAM: std::ops::Range<u64> = 0xE000_0000..0xE010_0000;

/// Registers of the platform: power, hot plug, VM generation ID.
pub const PLATFORM: std::ops::Range<u64> = 0xFED0_0000..0xFED1_0000;

/// IOAPIC, where KVM emulates it.
pub const IOAPIC: u64 = 0xFEC0_0000;

/// LAPIC, where KVM emulates it.
pub const LAPIC: u64 = 0xFEE0_0000;

/// Three pages that KVM on Intel wants for real mode (KVM_SET_TSS_ADDR).
pub const KVM_TSS: u64 = 0xFFFB_D000;

/// One page likewise (KVM_SET_IDENTITY_MAP_ADDR).
pub const KVM_IDENTITY_MAP: u64 = 0xFFFB_C000;

/// Where RAM goes on beyond the hole below 4 GiB.
pub const HIGH_RAM_START: u64 = 0x1_0000_0000;

/// First port of the serial port COM1, and its interrupt.
pub const SERIAL: (u64, u32) = (0x3F8, 4);

/// Interrupt of the ACPI generic event device: power button, hot plug.
pub const EVENTS_IRQ: u32 = 5;

/// Interrupts that PCI functions without MSI share (INTA to INTD), level-triggered.
pub const INTX_IRQS: std::ops::Range<u32> = 16..20;

/// First GSI that MSI routes may take: KVM's IOAPIC has pins 0 to 23.
pub const FIRST_MSI_GSI: u32 = 24;
