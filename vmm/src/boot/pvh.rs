//! What a PVH kernel gets (Xen's `include/public/arch-x86/hvm/start_info.h`).

use linux_loader::loader::elf::start_info::{hvm_memmap_table_entry, hvm_modlist_entry, hvm_start_info};
use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use super::map::Range;
use super::{Initramfs, address};
use crate::memory::GuestMemory;

/// "xEn3" with the highest bit set.
const MAGIC: u32 = 0x336E_C578;

/// Writes start info, modules and memory map.
pub(super) fn write(
    memory: &GuestMemory,
    map: &[Range],
    initramfs: Option<Initramfs>,
    rsdp: u64,
) -> Result<(), GuestMemoryError> {
    let modules = address::START_INFO + size_of::<hvm_start_info>() as u64;
    let info = hvm_start_info {
        magic: MAGIC,
        version: 1,
        nr_modules: initramfs.iter().len() as u32,
        modlist_paddr: modules,
        cmdline_paddr: address::COMMAND_LINE,
        rsdp_paddr: rsdp,
        memmap_paddr: address::MEMORY_MAP,
        memmap_entries: map.len() as u32,
        ..Default::default()
    };
    memory.write_obj(info, GuestAddress(address::START_INFO))?;
    if let Some(Initramfs { start, size }) = initramfs {
        let module = hvm_modlist_entry { paddr: start, size, ..Default::default() };
        memory.write_obj(module, GuestAddress(modules))?;
    }
    let mut at = address::MEMORY_MAP;
    for range in map {
        let entry = hvm_memmap_table_entry {
            addr: range.start,
            size: range.size,
            type_: range.kind as u32,
            ..Default::default()
        };
        memory.write_obj(entry, GuestAddress(at))?;
        at += size_of::<hvm_memmap_table_entry>() as u64;
    }
    Ok(())
}
