//! The SMBIOS tables, by which the guest's programs learn what its machine is called: its UUID, its serial number, strings
//! for whoever reads them (DMTF DSP0134, System Management BIOS Reference Specification 3.0). Pure.
//!
//! Linux looks for the entry point at each multiple of 16 in [`SMBIOS`] (`drivers/firmware/dmi_scan.c`). There are only the
//! structures that have something to say, and none where the configuration names nothing: what memory and processors there
//! are, ACPI and CPUID tell.

use vse_vmm_api::PlatformConfig;

use crate::layout::SMBIOS;

/// Version of the specification: the first that has a 64-bit entry point.
const VERSION: [u8; 3] = [3, 0, 0];

/// Bytes of the entry point (5.2.2).
const ENTRY_POINT: u8 = 24;

/// Where the structures begin, from the entry point on.
const STRUCTURES: usize = 32;

/// Who made the machine, unless the configuration says otherwise.
const MANUFACTURER: &str = "VSE";
const PRODUCT: &str = "vse-vmm";

/// The date that stands for "BIOS" here. From 2023 on, Linux doesn't look for mistakes of old firmware in the windows of
/// PCI (`arch/x86/pci/acpi.c`).
const RELEASE_DATE: &str = "01/01/2026";

/// Characteristics of a BIOS (7.1.1): they are not told.
const NOT_TOLD: u64 = 1 << 3;
/// Second extension byte (7.1.2.2): the tables describe a virtual machine.
const VIRTUAL_MACHINE: u8 = 1 << 4;

/// Wake-up type (7.2.2): the power switch.
const POWER_SWITCH: u8 = 6;

/// Chassis (7.4): of no known type; all is safe; security unknown.
const OTHER: u8 = 1;
const SAFE: u8 = 3;
const UNKNOWN: u8 = 2;

/// They don't fit where they belong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the SMBIOS tables have {0} bytes, there is room for {room}", room = SMBIOS.end - SMBIOS.start)]
pub struct TooLarge(pub usize);

/// The bytes that belong at the beginning of [`SMBIOS`]; none for a machine without names.
///
/// # Errors
/// When the strings are longer than validation allows.
pub fn build(platform: &PlatformConfig) -> Result<Vec<u8>, TooLarge> {
    if !has_names(platform) {
        return Ok(Vec::new());
    }
    let oem = (!platform.oem_strings.is_empty()).then(|| oem_strings(&platform.oem_strings));
    let all = [bios(), system(platform), chassis(platform)].into_iter().chain(oem).chain([Structure::new(127)]);
    let structures: Vec<u8> = (0..).zip(all).flat_map(|(handle, structure)| structure.bytes(handle)).collect();
    let mut tables = entry_point(structures.len());
    tables.resize(STRUCTURES, 0);
    tables.extend(structures);
    if tables.len() as u64 > SMBIOS.end - SMBIOS.start { Err(TooLarge(tables.len())) } else { Ok(tables) }
}

fn has_names(platform: &PlatformConfig) -> bool {
    let names = [
        &platform.system_serial_number,
        &platform.system_uuid,
        &platform.system_manufacturer,
        &platform.system_product_name,
        &platform.system_version,
        &platform.system_family,
        &platform.system_sku_number,
        &platform.chassis_asset_tag,
    ];
    names.into_iter().any(Option::is_some) || !platform.oem_strings.is_empty()
}

/// The 64-bit entry point (5.2.2) of so many bytes of structures.
fn entry_point(length: usize) -> Vec<u8> {
    const CHECKSUM: usize = 5;
    const REVISION: u8 = 1;
    let mut bytes = b"_SM3_\0".to_vec();
    bytes.push(ENTRY_POINT);
    bytes.extend(VERSION);
    bytes.extend([REVISION, 0]);
    bytes.extend((length as u32).to_le_bytes());
    bytes.extend((SMBIOS.start + STRUCTURES as u64).to_le_bytes());
    bytes[CHECKSUM] = bytes.iter().fold(0, |sum: u8, byte| sum.wrapping_sub(*byte));
    bytes
}

/// BIOS information (7.1).
fn bios() -> Structure {
    Structure::new(0)
        .text(MANUFACTURER)
        .text(env!("CARGO_PKG_VERSION"))
        // It is nowhere, and as small as can be said.
        .field([0; 2])
        .text(RELEASE_DATE)
        .field([0])
        .field(NOT_TOLD.to_le_bytes())
        .field([0, VIRTUAL_MACHINE])
        // Neither it nor an embedded controller has a release.
        .field([0xFF; 4])
}

/// System information (7.2).
fn system(platform: &PlatformConfig) -> Structure {
    Structure::new(1)
        .text(platform.system_manufacturer.as_deref().unwrap_or(MANUFACTURER))
        .text(platform.system_product_name.as_deref().unwrap_or(PRODUCT))
        .optional(platform.system_version.as_deref())
        .optional(platform.system_serial_number.as_deref())
        .field(uuid(platform.system_uuid.as_deref().unwrap_or_default()))
        .field([POWER_SWITCH])
        .optional(platform.system_sku_number.as_deref())
        .optional(platform.system_family.as_deref())
}

/// System enclosure or chassis (7.4).
fn chassis(platform: &PlatformConfig) -> Structure {
    Structure::new(3)
        .text(platform.system_manufacturer.as_deref().unwrap_or(MANUFACTURER))
        .field([OTHER])
        .optional(None)
        .optional(None)
        .optional(platform.chassis_asset_tag.as_deref())
        .field([SAFE, SAFE, SAFE, UNKNOWN])
        // OEM-defined, height, power cords, contained elements: their number and each one's length.
        .field([0; 8])
        .optional(None)
}

/// OEM strings (7.12).
fn oem_strings(strings: &[String]) -> Structure {
    // Validation allows for 64.
    let count = strings.len() as u8;
    Structure { kind: 11, formatted: vec![count], strings: strings.to_vec() }
}

/// A UUID as SMBIOS has it (7.2.1): the first three fields are little-endian. All zeroes where there is none.
fn uuid(text: &str) -> [u8; 16] {
    let digits: String = text.chars().filter(|letter| *letter != '-').collect();
    let mut bytes = u128::from_str_radix(&digits, 16).unwrap_or(0).to_be_bytes();
    bytes[..4].reverse();
    bytes[4..6].reverse();
    bytes[6..8].reverse();
    bytes
}

/// A structure (6.1): a header, its formatted area, and strings that this names by numbers.
struct Structure {
    kind: u8,
    formatted: Vec<u8>,
    strings: Vec<String>,
}

impl Structure {
    fn new(kind: u8) -> Self {
        Self { kind, formatted: Vec::new(), strings: Vec::new() }
    }

    fn field<const N: usize>(mut self, bytes: [u8; N]) -> Self {
        self.formatted.extend(bytes);
        self
    }

    /// A field that names a string, by its number from 1 on.
    fn text(mut self, text: &str) -> Self {
        self.strings.push(text.to_owned());
        let number = self.strings.len() as u8;
        self.field([number])
    }

    /// The same; 0 where there is none.
    fn optional(self, text: Option<&str>) -> Self {
        match text {
            Some(text) => self.text(text),
            None => self.field([0]),
        }
    }

    fn bytes(self, handle: u16) -> Vec<u8> {
        const HEADER: usize = 4;
        let mut bytes = vec![self.kind, (HEADER + self.formatted.len()) as u8];
        bytes.extend(handle.to_le_bytes());
        bytes.extend(self.formatted);
        if self.strings.is_empty() {
            bytes.push(0);
        }
        for text in self.strings {
            bytes.extend(text.into_bytes());
            bytes.push(0);
        }
        bytes.push(0);
        bytes
    }
}

#[cfg(test)]
mod tests {
    use vse_vmm_api::VmConfig;

    use super::*;
    use crate::memory::GuestMemory;

    /// A structure as a guest reads it.
    struct Read {
        kind: u8,
        area: Vec<u8>,
        strings: Vec<String>,
    }

    impl Read {
        /// The string that the field at this offset names.
        fn text(&self, offset: usize) -> &str {
            match self.area[offset] {
                0 => "",
                number => &self.strings[usize::from(number) - 1],
            }
        }
    }

    fn platform(json: &str) -> PlatformConfig {
        let config = format!(r#"{{"payload": {{"kernel": "/k"}}, "platform": {json}}}"#);
        serde_json::from_str::<VmConfig>(&config).unwrap().validate().unwrap().platform
    }

    /// Reads tables that lie at the beginning of [`SMBIOS`], as the specification and Linux do.
    fn read(tables: &[u8]) -> Vec<Read> {
        let (entry, length) = (&tables[..usize::from(tables[6])], tables[6]);
        assert_eq!((&entry[..5], length), (&b"_SM3_"[..], 24));
        assert_eq!(entry.iter().fold(0, |sum: u8, byte| sum.wrapping_add(*byte)), 0);
        assert_eq!(entry[7..12], [3, 0, 0, 1, 0]);
        assert_eq!(SMBIOS.start % 16, 0);
        let size = u32::from_le_bytes(entry[12..16].try_into().unwrap()) as usize;
        let start = (u64::from_le_bytes(entry[16..24].try_into().unwrap()) - SMBIOS.start) as usize;
        assert_eq!(tables.len(), start + size);
        let mut rest = &tables[start..];
        let mut all = Vec::new();
        while !rest.is_empty() {
            let (area, behind) = rest.split_at(rest[1].into());
            assert_eq!(u16::from_le_bytes([area[2], area[3]]), all.len() as u16, "handles are unique");
            let end = behind.windows(2).position(|pair| pair == [0, 0]).unwrap();
            let strings = behind[..end].split(|byte| *byte == 0).filter(|text| !text.is_empty());
            let strings = strings.map(|text| String::from_utf8(text.to_vec()).unwrap()).collect();
            all.push(Read { kind: area[0], area: area.to_vec(), strings });
            rest = &behind[end + 2..];
        }
        assert_eq!(all.last().map(|last| (last.kind, last.area.len())), Some((127, 4)));
        all
    }

    #[test]
    fn a_guest_reads_what_the_configuration_says() {
        let platform = platform(
            r#"{"uuid": "00112233-4455-6677-8899-aabbccddeeff", "serial_number": "ds=nocloud;h=node-1",
                "oem_strings": ["one", "zwölf"], "system_product_name": "solver", "system_sku_number": "S",
                "chassis_asset_tag": "rack 7"}"#,
        );
        let all = read(&build(&platform).unwrap());
        let kinds: Vec<(u8, usize)> = all.iter().map(|one| (one.kind, one.area.len())).collect();
        // Lengths of 3.0.
        assert_eq!(kinds, [(0, 0x18), (1, 0x1B), (3, 0x16), (11, 5), (127, 4)]);
        let [bios, system, chassis, oem, _] = &all[..] else { panic!("five structures") };
        assert_eq!((bios.text(4), bios.text(8)), ("VSE", "01/01/2026"));
        assert_eq!(bios.area[0x13] & 1 << 4, 1 << 4, "a virtual machine");
        let texts = [4, 5, 6, 7, 25, 26].map(|offset| system.text(offset));
        assert_eq!(texts, ["VSE", "solver", "", "ds=nocloud;h=node-1", "S", ""]);
        let uuid = [0x33, 0x22, 0x11, 0, 0x55, 0x44, 0x77, 0x66, 0x88, 0x99, 0xAA, 0xBB, 0xCC, 0xDD, 0xEE, 0xFF];
        assert_eq!(system.area[8..24], uuid);
        assert_eq!(chassis.text(8), "rack 7");
        assert_eq!((oem.area[4], &oem.strings[..]), (2, &["one".to_owned(), "zwölf".to_owned()][..]));
    }

    #[test]
    fn a_guest_without_names_has_no_tables() {
        assert_eq!(build(&platform(r#"{"vfio_p2p_dma": true}"#)), Ok(vec![]));
    }

    #[test]
    fn names_that_are_not_given_are_ours_or_none() {
        let all = read(&build(&platform(r#"{"system_version": "2"}"#)).unwrap());
        assert_eq!(all.iter().map(|one| one.kind).collect::<Vec<_>>(), [0, 1, 3, 127]);
        assert_eq!(all[1].area[8..24], [0; 16]);
        assert_eq!((all[1].text(5), all[1].text(7)), ("vse-vmm", ""));
    }

    #[test]
    fn all_that_is_valid_fits() {
        let long = "x".repeat(1024);
        let oem = vec![format!("\"{}\"", "y".repeat(512)); 64].join(",");
        let names = ["serial_number", "system_manufacturer", "system_product_name", "system_version", "system_family"];
        let names = names.iter().chain(&["system_sku_number", "chassis_asset_tag"]);
        let names: String = names.map(|name| format!(r#""{name}": "{long}","#)).collect();
        let mut platform = platform(&format!(r#"{{{names} "oem_strings": [{oem}]}}"#));
        assert_eq!(read(&build(&platform).unwrap())[3].strings.len(), 64);
        platform.oem_strings = vec![long; 64];
        assert!(matches!(build(&platform), Err(TooLarge(_))));
    }

    #[test]
    fn no_kernel_takes_the_tables_for_free_memory() {
        let memory = GuestMemory::from_ranges(&[(vm_memory::GuestAddress(0), 32 << 20)]).unwrap();
        let map = crate::boot::map::of(&memory);
        assert!(map.iter().all(|range| range.start >= 1 << 20 || range.start + range.size <= SMBIOS.start));
        const { assert!(crate::acpi::TABLES.end <= SMBIOS.start) };
    }
}
