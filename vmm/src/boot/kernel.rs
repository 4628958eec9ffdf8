//! Recognizes and loads a kernel's image.

use std::fs::File;
use std::os::unix::fs::FileExt;

use linux_loader::loader::KernelLoader;
use linux_loader::loader::bzimage::BzImage;
use linux_loader::loader::elf::{Elf, PvhBootCapability};
use vm_memory::Address;

use super::BootError;
use super::source::Source;
use crate::memory::GuestMemory;

/// A kernel in guest RAM.
#[derive(Debug)]
pub enum Kernel {
    /// By Linux's 64-bit boot protocol (`Documentation/arch/x86/boot.rst`).
    Linux {
        /// First instruction.
        entry: u64,
        /// The image's setup header, from offset 0x1F1 on.
        header: SetupHeader,
        /// First address that it does not use while it unpacks itself.
        end: u64,
    },
    /// By Xen's PVH protocol, which Linux and BSDs know.
    Pvh {
        /// First instruction.
        entry: u64,
        /// First address beyond it.
        end: u64,
    },
}

/// Offset of the setup header in a bzImage and in boot parameters.
pub const SETUP_HEADER: usize = 0x1F1;

/// The setup header as the image has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SetupHeader(Vec<u8>);

impl SetupHeader {
    /// Longest that boot parameters have room for.
    const LIMIT: usize = 0x290 - SETUP_HEADER;

    /// Reads the header of a bzImage; `None` when there is none, or it has no 64-bit entry below 4 GiB.
    fn read(file: &File) -> std::io::Result<Option<Self>> {
        let mut bytes = vec![0; Self::LIMIT];
        let count = file.read_at(&mut bytes, SETUP_HEADER as u64)?;
        let header = Self(bytes);
        // The header ends where the jump at 0x200 leads (second byte of a short jump).
        let length = 0x202 - SETUP_HEADER + usize::from(header.0[0x201 - SETUP_HEADER]);
        if count < length || length > Self::LIMIT || header.u32(0x202) != u32::from_le_bytes(*b"HdrS") {
            return Ok(None);
        }
        let has_64_bit_entry = header.u16(0x206) >= 0x20C && header.u16(0x236) & 1 == 1;
        Ok(has_64_bit_entry.then(|| Self(header.0[..length].to_vec())))
    }

    /// Its bytes.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// A field by its offset in the image; zero where the header ends before.
    fn field<const N: usize>(&self, offset: usize) -> [u8; N] {
        let at = offset - SETUP_HEADER;
        self.0.get(at..at + N).and_then(|bytes| bytes.try_into().ok()).unwrap_or([0; N])
    }

    fn u16(&self, offset: usize) -> u16 {
        u16::from_le_bytes(self.field(offset))
    }

    fn u32(&self, offset: usize) -> u32 {
        u32::from_le_bytes(self.field(offset))
    }

    fn u64(&self, offset: usize) -> u64 {
        u64::from_le_bytes(self.field(offset))
    }

    fn initramfs_limit(&self) -> u64 {
        u64::from(self.u32(0x22C)) + 1
    }

    fn command_line_limit(&self) -> usize {
        self.u32(0x238) as usize
    }

    /// What it occupies while unpacking, wherever it was loaded: it moves up to its preferred address by itself.
    fn end(&self, loaded: u64) -> u64 {
        loaded.max(self.u64(0x258)).saturating_add(self.u32(0x260).into())
    }
}

impl Kernel {
    /// Loads `file`.
    ///
    /// # Errors
    /// When it is no kernel, or too large.
    pub fn load(memory: &GuestMemory, file: &File) -> Result<Self, BootError> {
        let read = |source| BootError::Read { what: "kernel", source };
        let mut source = Source::new(file).map_err(read)?;
        if let Some(header) = SetupHeader::read(file).map_err(read)? {
            let loaded = BzImage::load(memory, None, &mut source, None).map_err(BootError::Load)?;
            let start = loaded.kernel_load.raw_value();
            let end = header.end(start).max(loaded.kernel_end);
            // The 64-bit entry is 512 bytes beyond the 32-bit one.
            return Ok(Self::Linux { entry: start + 0x200, header, end });
        }
        let mut magic = [0; 4];
        if file.read_at(&mut magic, 0).map_err(read)? < 4 || magic != *b"\x7FELF" {
            return Err(BootError::UnknownFormat);
        }
        let loaded = Elf::load(memory, None, &mut source, None).map_err(BootError::Load)?;
        match loaded.pvh_boot_cap {
            PvhBootCapability::PvhEntryPresent(entry) => {
                Ok(Self::Pvh { entry: entry.raw_value(), end: loaded.kernel_end })
            }
            _ => Err(BootError::UnknownFormat),
        }
    }

    /// First address that it leaves free above itself.
    pub(super) fn end(&self) -> u64 {
        match self {
            Self::Linux { end, .. } | Self::Pvh { end, .. } => *end,
        }
    }

    /// First address that its initramfs must not reach.
    pub(super) fn initramfs_limit(&self) -> u64 {
        match self {
            Self::Linux { header, .. } => header.initramfs_limit(),
            Self::Pvh { .. } => u64::MAX,
        }
    }

    /// Longest command line it reads.
    pub(super) fn command_line_limit(&self) -> usize {
        match self {
            Self::Linux { header, .. } => header.command_line_limit(),
            Self::Pvh { .. } => usize::MAX,
        }
    }
}
