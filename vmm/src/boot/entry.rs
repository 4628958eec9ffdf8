//! Registers and tables with which the first vCPU enters a kernel.

use kvm_bindings::{kvm_regs, kvm_segment, kvm_sregs};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::address;
use crate::memory::GuestMemory;

/// How the first vCPU begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// In 64-bit mode, with the first GiB mapped to itself.
    Linux {
        /// First instruction.
        instruction: u64,
    },
    /// In 32-bit protected mode, without paging.
    Pvh {
        /// First instruction.
        instruction: u64,
    },
}

/// Flat segments: none, none, code and data (what Linux calls `__BOOT_CS` and `__BOOT_DS`), task state. Access bytes and
/// flags as in the SDM, volume 3, 3.4.5; the code segment's mode is the entry's.
const GDT_64: [u64; 5] = [0, 0, 0x00AF_9B00_0000_FFFF, 0x00CF_9300_0000_FFFF, 0x0000_8B00_0000_0067];

const CODE_SELECTOR: u16 = 2 * 8;
const DATA_SELECTOR: u16 = 3 * 8;
const TASK_SELECTOR: u16 = 4 * 8;

/// Writes the GDT and page tables that map the first GiB to itself by 2 MiB pages.
pub(super) fn write_tables(memory: &GuestMemory) -> Result<(), GuestMemoryError> {
    const PRESENT_WRITABLE: u64 = 0b11;
    const LARGE: u64 = 1 << 7;
    let bytes: Vec<u8> = GDT_64.iter().flat_map(|entry| entry.to_le_bytes()).collect();
    memory.write_slice(&bytes, GuestAddress(address::GDT))?;
    let (top, middle, bottom) = (address::PAGE_TABLES, address::PAGE_TABLES + 0x1000, address::PAGE_TABLES + 0x2000);
    memory.write_obj(middle | PRESENT_WRITABLE, GuestAddress(top))?;
    memory.write_obj(bottom | PRESENT_WRITABLE, GuestAddress(middle))?;
    let pages: Vec<u8> = (0..512_u64).flat_map(|page| (page << 21 | PRESENT_WRITABLE | LARGE).to_le_bytes()).collect();
    memory.write_slice(&pages, GuestAddress(bottom))
}

impl Entry {
    /// General registers.
    #[must_use]
    pub fn registers(self) -> kvm_regs {
        // Bit 1 of the flags is always set.
        let base = kvm_regs { rflags: 2, ..Default::default() };
        match self {
            Self::Linux { instruction } => kvm_regs { rip: instruction, rsi: address::ZERO_PAGE, ..base },
            Self::Pvh { instruction } => kvm_regs { rip: instruction, rbx: address::START_INFO, ..base },
        }
    }

    /// Special registers, out of those after a reset.
    #[must_use]
    pub fn special_registers(self, reset: kvm_sregs) -> kvm_sregs {
        const PROTECTED: u64 = 1 << 0;
        const PAGING: u64 = 1 << 31;
        const PAE: u64 = 1 << 5;
        const LONG_MODE_ENABLED_AND_ACTIVE: u64 = 1 << 8 | 1 << 10;
        let is_64_bit = matches!(self, Self::Linux { .. });
        let code = kvm_segment {
            selector: CODE_SELECTOR,
            type_: 0xB,
            limit: u32::MAX,
            present: 1,
            s: 1,
            g: 1,
            l: u8::from(is_64_bit),
            db: u8::from(!is_64_bit),
            ..Default::default()
        };
        let data = kvm_segment { selector: DATA_SELECTOR, type_: 0x3, l: 0, db: 1, ..code };
        let task = kvm_segment { selector: TASK_SELECTOR, limit: 0x67, s: 0, g: 0, l: 0, db: 0, ..code };
        let mut special = kvm_sregs { cs: code, ds: data, es: data, fs: data, gs: data, ss: data, tr: task, ..reset };
        special.cr0 |= PROTECTED;
        if is_64_bit {
            special.gdt.base = address::GDT;
            special.gdt.limit = (GDT_64.len() * 8 - 1) as u16;
            special.cr3 = address::PAGE_TABLES;
            special.cr4 |= PAE;
            special.efer |= LONG_MODE_ENABLED_AND_ACTIVE;
            special.cr0 |= PAGING;
        }
        special
    }
}
