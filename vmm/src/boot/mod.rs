//! Puts a kernel into guest RAM and says how the first vCPU enters it.
//!
//! ```text
//!  0x0500  GDT            (here: what the boot protocols leave to the loader)
//!  0x6000  PVH start info
//!  0x7000  Linux boot parameters ("zero page")
//!  0x9000  page tables: the first GiB, identity
//!  0x20000 command line, PVH memory map
//!  0x9FC00 end of the first RAM; tables are at 0xE0000 (crate::acpi) and 0xF0000 (crate::smbios)
//!  0x100000 kernel; the initramfs lies as high as it may
//! ```

pub mod entry;
pub mod kernel;
pub mod map;
pub mod parameters;
pub mod pvh;
pub mod source;

use std::fs::File;
use std::io;

use vm_memory::{Bytes, GuestAddress, GuestMemoryError};

use crate::memory::GuestMemory;
pub use entry::Entry;
use kernel::Kernel;

/// What a guest starts from.
#[derive(Debug)]
pub struct Payload {
    /// bzImage, or ELF with a PVH note.
    pub kernel: File,
    /// Initial RAM file system.
    pub initramfs: Option<File>,
    /// Kernel's command line.
    pub command_line: String,
}

/// Why a kernel can't be started.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum BootError {
    /// Neither of the formats.
    #[error("the kernel is neither a bzImage with a 64-bit entry nor an ELF file with a PVH note")]
    UnknownFormat,
    /// A damaged file, or one too large for the guest's RAM.
    #[error("the kernel can't be loaded")]
    Load(#[source] linux_loader::loader::Error),
    /// Reading a file failed.
    #[error("the {what} can't be read")]
    Read {
        /// Which file.
        what: &'static str,
        /// Why.
        source: io::Error,
    },
    /// No room between the kernel and the end of low RAM.
    #[error("the initramfs of {size} bytes does not fit into the guest's RAM beside the kernel")]
    InitramfsTooLarge {
        /// Its size.
        size: u64,
    },
    /// Longer than the kernel reads.
    #[error("the command line has {length} bytes, the kernel reads {limit} at most")]
    CommandLineTooLong {
        /// Its length.
        length: usize,
        /// What it can have.
        limit: usize,
    },
    /// A byte of zero ends a command line.
    #[error("the command line has a NUL character")]
    CommandLineNul,
    /// Something does not fit into guest RAM.
    #[error("the guest's RAM is too small")]
    Memory(#[from] GuestMemoryError),
}

/// Guest addresses of what the loader writes.
pub(crate) mod address {
    /// Global descriptor table.
    pub const GDT: u64 = 0x500;
    /// PVH start info, then its list of modules.
    pub const START_INFO: u64 = 0x6000;
    /// Linux boot parameters.
    pub const ZERO_PAGE: u64 = 0x7000;
    /// Page tables of three levels, a page each.
    pub const PAGE_TABLES: u64 = 0x9000;
    /// Command line, 64 KiB at most.
    pub const COMMAND_LINE: u64 = 0x2_0000;
    /// PVH memory map.
    pub const MEMORY_MAP: u64 = 0x3_0000;
}

/// Longest command line there is room for; kernels take less.
const COMMAND_LINE_LIMIT: usize = 0xFFFF;

/// Loads everything, and says where the first vCPU begins. May be called again for the same guest, which then starts over.
///
/// # Errors
/// When the files can't be read, make no sense, or don't fit.
pub fn load(memory: &GuestMemory, payload: &Payload, rsdp: u64) -> Result<Entry, BootError> {
    let kernel = Kernel::load(memory, &payload.kernel)?;
    let limit = kernel.command_line_limit().min(COMMAND_LINE_LIMIT);
    let command_line = payload.command_line.as_bytes();
    if command_line.len() > limit {
        return Err(BootError::CommandLineTooLong { length: command_line.len(), limit });
    }
    if command_line.contains(&0) {
        return Err(BootError::CommandLineNul);
    }
    memory.write_slice(command_line, GuestAddress(address::COMMAND_LINE))?;
    memory.write_obj(0_u8, GuestAddress(address::COMMAND_LINE + command_line.len() as u64))?;
    let initramfs = match &payload.initramfs {
        Some(file) => Some(load_initramfs(memory, file, &kernel)?),
        None => None,
    };
    let map = map::of(memory);
    match kernel {
        Kernel::Linux { entry, ref header, .. } => {
            let page = parameters::zero_page(header, &map, initramfs, rsdp);
            memory.write_slice(&page, GuestAddress(address::ZERO_PAGE))?;
            entry::write_tables(memory)?;
            Ok(Entry::Linux { instruction: entry })
        }
        Kernel::Pvh { entry, .. } => {
            pvh::write(memory, &map, initramfs, rsdp)?;
            entry::write_tables(memory)?;
            Ok(Entry::Pvh { instruction: entry })
        }
    }
}

/// Guest address and size in bytes of an initramfs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Initramfs {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub size: u64,
}

fn load_initramfs(memory: &GuestMemory, file: &File, kernel: &Kernel) -> Result<Initramfs, BootError> {
    let read = |source| BootError::Read { what: "initramfs", source };
    let size = source::size(file).map_err(read)?;
    let end = map::end_of_first_ram(memory).min(kernel.initramfs_limit());
    let start = end.checked_sub(size).map(|start| start & !0xFFF).filter(|start| *start >= kernel.end());
    let start = start.ok_or(BootError::InitramfsTooLarge { size })?;
    source::read_exact(file, 0, memory, GuestAddress(start), size).map_err(read)?;
    Ok(Initramfs { start, size })
}

#[cfg(test)]
mod tests;
