use std::process::Command;

use super::*;

fn description(cells: Vec<Cell>) -> Description {
    Description {
        topology: Topology { threads: 2, cores: 2, dies: 1, sockets: 1 },
        cells,
        pci_window_64: 0x10_0000_0000..0x20_0000_0000,
        hot_plug_slots: vec![1, 3, 31],
        has_serial: true,
        has_pvpanic: true,
    }
}

fn two_cells() -> Vec<Cell> {
    let cell = |number, vcpus, memory| Cell { number, vcpus, memory: vec![memory], distances: vec![] };
    let mut cells = vec![cell(0, vec![0, 1], 0..1 << 30), cell(1, vec![2, 3], 1 << 30..2 << 30)];
    cells[0].distances.push((1, 31));
    cells
}

/// The tables by signature, reached the way a kernel does.
fn tables(bytes: &[u8]) -> Vec<(String, Vec<u8>)> {
    let at = |address: u64| &bytes[(address - TABLES.start) as usize..];
    let u64_at = |bytes: &[u8], offset: usize| u64::from_le_bytes(bytes[offset..offset + 8].try_into().unwrap());
    let table = |address: u64| {
        let bytes = at(address);
        let length = u32::from_le_bytes(bytes[4..8].try_into().unwrap()) as usize;
        let table = bytes[..length].to_vec();
        assert_eq!(table.iter().fold(0_u8, |sum, byte| sum.wrapping_add(*byte)), 0, "checksum");
        (String::from_utf8(table[..4].to_vec()).unwrap(), table)
    };
    assert_eq!(&bytes[..8], b"RSD PTR ");
    let root = table(u64_at(bytes, 24));
    let mut all: Vec<_> = root.1[36..].chunks(8).map(|entry| table(u64_at(entry, 0))).collect();
    let dsdt = table(u64_at(&all[0].1, 140));
    all.push(dsdt);
    all
}

fn signatures(bytes: &[u8]) -> Vec<String> {
    tables(bytes).into_iter().map(|(signature, _)| signature).collect()
}

#[test]
fn tables_are_linked_and_summed() {
    assert_eq!(signatures(&build(&description(vec![])).unwrap()), ["FACP", "APIC", "MCFG", "DSDT"]);
    let with_cells = build(&description(two_cells())).unwrap();
    assert_eq!(signatures(&with_cells), ["FACP", "APIC", "MCFG", "SRAT", "SLIT", "DSDT"]);
}

#[test]
fn distances_hold_both_ways() {
    let bytes = build(&description(two_cells())).unwrap();
    let slit = tables(&bytes).into_iter().find(|(signature, _)| signature == "SLIT").unwrap().1;
    assert_eq!(slit[44..48], [10, 31, 31, 10]);
}

#[test]
fn wide_apic_ids_have_their_own_form() {
    let large = Description { topology: Topology::flat(300), ..description(vec![]) };
    let madt = tables(&build(&large).unwrap()).remove(1).1;
    // A header of 44 bytes, 255 short entries of 8, 45 long ones of 16, the IOAPIC's 12.
    assert_eq!(madt.len(), 44 + 255 * 8 + 45 * 16 + 12);
}

#[test]
fn machines_that_do_not_fit_are_refused() {
    let huge = Description { topology: Topology::flat(8192), ..description(vec![]) };
    assert!(build(&huge).is_err());
}

/// What ACPI's own compiler says of the code, where it is installed.
#[test]
fn code_is_understood_by_iasl() {
    let folder = tempfile::tempdir().unwrap();
    let bytes = build(&description(two_cells())).unwrap();
    for (signature, table) in tables(&bytes) {
        std::fs::write(folder.path().join(format!("{signature}.aml")), table).unwrap();
    }
    let iasl = |arguments: &[&str]| Command::new("iasl").args(arguments).current_dir(folder.path()).output();
    let Ok(disassembled) = iasl(&["-d", "DSDT.aml"]) else { return };
    assert!(disassembled.status.success(), "{}", String::from_utf8_lossy(&disassembled.stderr));
    let source = std::fs::read_to_string(folder.path().join("DSDT.dsl")).unwrap();
    for expected in ["Device (S003)", "Method (_EVT, 1, Serialized)", "Notify (\\_SB.PWRB, 0x80)", "_PRT", "PNP0501"] {
        assert!(source.contains(expected), "{expected} is not in {source}");
    }
    let compiled = iasl(&["-tc", "DSDT.dsl"]).unwrap();
    let said = String::from_utf8_lossy(&compiled.stdout);
    assert!(compiled.status.success() && said.contains("0 Errors"), "{said}");
}
