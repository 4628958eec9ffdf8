//! Tables without code. Layouts are those of ACPI 6.5, section 5.2.

use acpi_tables::fadt::{FADT, FADTBuilder, Flags, PmProfile};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::mcfg::MCFG;
use acpi_tables::sdt::Sdt;

use super::{Cell, Description, OEM, OEM_REVISION, OEM_TABLE};
use crate::cpu::Topology;
use crate::layout::{ECAM, IOAPIC, LAPIC, PLATFORM};
use crate::legacy::platform::register;

/// Boot architecture flags (5.2.9.3): no VGA, no CMOS clock; and, not set, no keyboard controller. That there is no ASPM
/// needs no flag, which costs a line of the log: without `_OSC` a kernel keeps away from it.
const BOOT_ARCHITECTURE: u16 = 1 << 2 | 1 << 5;

pub(super) fn fadt(dsdt: u64) -> FADT {
    let register = |offset| GAS::new(AddressSpace::SystemMemory, 8, 0, AccessSize::ByteAccess, PLATFORM.start + offset);
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .preferred_pm_profile(PmProfile::EnterpriseServer)
        .flag(Flags::HwReducedAcpi)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Headless);
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = register(register::RESET);
    fadt.reset_value = register::RESET_VALUE;
    fadt.sleep_control_reg = register(register::SLEEP_CONTROL);
    fadt.sleep_status_reg = register(register::SLEEP_STATUS);
    fadt.hypervisor_vendor_identity = u64::from_le_bytes(OEM_TABLE).into();
    fadt.finalize()
}

/// APIC IDs from here on need the tables' wider forms.
const WIDE_ID: u32 = 255;

/// A table of a header and `body`.
fn table(signature: [u8; 4], revision: u8, body: &[u8]) -> Sdt {
    let mut table = Sdt::new(signature, 36, revision, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(body);
    table
}

fn bytes(parts: &[&[u8]]) -> Vec<u8> {
    parts.concat()
}

pub(super) fn madt(topology: &Topology) -> Sdt {
    const LOCAL_APIC: u8 = 0;
    const IO_APIC: u8 = 1;
    const LOCAL_X2APIC: u8 = 9;
    const ENABLED: u32 = 1;
    let mut body = [(LAPIC as u32).to_le_bytes(), [0; 4]].concat();
    for vcpu in 0..topology.vcpus() {
        let id = topology.apic_id(vcpu);
        if id < WIDE_ID {
            let head = [LOCAL_APIC, 8, vcpu as u8, id as u8];
            body.extend(bytes(&[&head, &ENABLED.to_le_bytes()]));
        } else {
            let words = [id, ENABLED, vcpu].map(u32::to_le_bytes).concat();
            body.extend(bytes(&[&[LOCAL_X2APIC, 16, 0, 0], &words]));
        }
    }
    // Its pins are GSIs 0 to 23.
    body.extend(bytes(&[&[IO_APIC, 12, 0, 0], &(IOAPIC as u32).to_le_bytes(), &[0; 4]]));
    table(*b"APIC", 5, &body)
}

pub(super) fn mcfg() -> MCFG {
    let mut table = MCFG::new(OEM, OEM_TABLE, OEM_REVISION);
    let buses = (ECAM.end - ECAM.start) >> 20;
    table.add_ecam(ECAM.start, 0, 0, (buses - 1) as u8);
    table
}

pub(super) fn srat(description: &Description) -> Sdt {
    const LOCAL_APIC: u8 = 0;
    const MEMORY: u8 = 1;
    const LOCAL_X2APIC: u8 = 2;
    const ENABLED: u32 = 1;
    let mut body = [1_u32, 0, 0].map(u32::to_le_bytes).concat();
    for cell in &description.cells {
        let domain = cell.number.to_le_bytes();
        for &vcpu in &cell.vcpus {
            let id = description.topology.apic_id(vcpu);
            if id < WIDE_ID {
                let head = [LOCAL_APIC, 16, domain[0], id as u8];
                body.extend(bytes(&[&head, &ENABLED.to_le_bytes(), &[0], &domain[1..], &[0; 4]]));
            } else {
                let words = [id, ENABLED, 0, 0].map(u32::to_le_bytes).concat();
                body.extend(bytes(&[&[LOCAL_X2APIC, 24, 0, 0], &domain, &words]));
            }
        }
        for range in &cell.memory {
            let place = [range.start, range.end - range.start].map(u64::to_le_bytes).concat();
            let head = [MEMORY, 40];
            body.extend(bytes(&[&head, &domain, &[0; 2], &place, &[0; 4], &ENABLED.to_le_bytes(), &[0; 8]]));
        }
    }
    table(*b"SRAT", 3, &body)
}

pub(super) fn slit(cells: &[Cell]) -> Sdt {
    const SELF: u8 = 10;
    const OTHER: u8 = 20;
    let told = |from: u32, to: u32| {
        let cell = cells.iter().find(|cell| cell.number == from)?;
        cell.distances.iter().find(|(other, _)| *other == to).map(|(_, distance)| *distance)
    };
    // Localities are numbered without gaps.
    let count = cells.iter().map(|cell| cell.number + 1).max().unwrap_or(0);
    let mut body = u64::from(count).to_le_bytes().to_vec();
    for (from, to) in (0..count).flat_map(|from| (0..count).map(move |to| (from, to))) {
        let distance = told(from, to).or_else(|| told(to, from)).unwrap_or(OTHER);
        body.push(if from == to { SELF } else { distance });
    }
    table(*b"SLIT", 1, &body)
}
