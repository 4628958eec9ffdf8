//! The ACPI tables, which describe the machine to its guest (ACPI 6.5, hardware-reduced).
//!
//! Building them is pure; they are written to one place below 1 MiB. What is not there (timer chip, real-time clock,
//! keyboard, VGA) they say is not there, so that no kernel looks for it.

mod dsdt;
mod static_tables;
#[cfg(test)]
mod tests;

use std::ops::Range;

use acpi_tables::Aml;
use acpi_tables::rsdp::Rsdp;
use acpi_tables::xsdt::XSDT;

use crate::cpu::Topology;

/// Where the tables are, 64 KiB at most, the root pointer first.
pub const TABLES: Range<u64> = 0xE_0000..0xF_0000;

/// Where the 16 bytes of the VM generation ID are.
pub const VM_GENERATION_ID: u64 = 0xD_F000;

/// Who made the tables.
const OEM: [u8; 6] = *b"VSEHPC";
const OEM_TABLE: [u8; 8] = *b"VSE-VMM ";
const OEM_REVISION: u32 = 1;

/// What the tables tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Description {
    /// vCPUs and their APIC IDs.
    pub topology: Topology,
    /// Cells; none when there is nothing to tell.
    pub cells: Vec<Cell>,
    /// The window of PCI BARs above 4 GiB; empty when there is none.
    pub pci_window_64: Range<u64>,
    /// PCI slots whose functions may come and go.
    pub hot_plug_slots: Vec<u8>,
    /// Whether there is a serial port.
    pub has_serial: bool,
    /// Whether there is a device to tell a panic to.
    pub has_pvpanic: bool,
}

/// A cell (proximity domain).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cell {
    /// Its number.
    pub number: u32,
    /// Its vCPUs.
    pub vcpus: Vec<u32>,
    /// Its RAM.
    pub memory: Vec<Range<u64>>,
    /// How far the others are, by number; 10 is itself.
    pub distances: Vec<(u32, u8)>,
}

/// They don't fit where they belong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the ACPI tables have {0} bytes, there is room for {room}", room = TABLES.end - TABLES.start)]
pub struct TooLarge(pub usize);

/// The bytes that belong at the beginning of [`TABLES`].
///
/// # Errors
/// When the machine is so large that they have no room.
pub fn build(description: &Description) -> Result<Vec<u8>, TooLarge> {
    let mut tables = Tables { bytes: vec![0; Rsdp::len()] };
    let dsdt = tables.add(&dsdt::dsdt(description));
    let mut root = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    root.add_entry(tables.add(&static_tables::fadt(dsdt)));
    root.add_entry(tables.add(&static_tables::madt(&description.topology)));
    root.add_entry(tables.add(&static_tables::mcfg()));
    if !description.cells.is_empty() {
        root.add_entry(tables.add(&static_tables::srat(description)));
        root.add_entry(tables.add(&static_tables::slit(&description.cells)));
    }
    let root = tables.add(&root);
    let mut pointer = Vec::new();
    Rsdp::new(OEM, root).to_aml_bytes(&mut pointer);
    tables.bytes[..pointer.len()].copy_from_slice(&pointer);
    let room = TABLES.end - TABLES.start;
    if tables.bytes.len() as u64 > room { Err(TooLarge(tables.bytes.len())) } else { Ok(tables.bytes) }
}

struct Tables {
    bytes: Vec<u8>,
}

impl Tables {
    /// Appends a table, and says at which address it will be.
    fn add(&mut self, table: &dyn Aml) -> u64 {
        self.bytes.resize(self.bytes.len().next_multiple_of(16), 0);
        let address = TABLES.start + self.bytes.len() as u64;
        table.to_aml_bytes(&mut self.bytes);
        address
    }
}
