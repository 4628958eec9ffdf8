use std::io::Write;

use super::map::{Kind, Range};
use super::*;
use vm_memory::GuestMemoryBackend;

fn memory(megabytes: usize) -> GuestMemory {
    GuestMemory::from_ranges(&[(GuestAddress(0), megabytes << 20)]).unwrap()
}

fn file(bytes: &[u8]) -> File {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    file
}

/// A bzImage with two setup sectors, whose kernel is `code` with the 64-bit entry 512 bytes in.
fn bzimage(code: &[u8]) -> Vec<u8> {
    let mut image = vec![0; 3 * 512];
    let mut put = |offset: usize, bytes: &[u8]| image[offset..offset + bytes.len()].copy_from_slice(bytes);
    put(0x1F1, &[2]);
    put(0x200, &[0xEB, 0x66]);
    put(0x202, b"HdrS");
    put(0x206, &0x20F_u16.to_le_bytes());
    put(0x211, &[1]);
    put(0x214, &0x10_0000_u32.to_le_bytes());
    put(0x22C, &0x7FFF_FFFF_u32.to_le_bytes());
    put(0x236, &3_u16.to_le_bytes());
    put(0x238, &2047_u32.to_le_bytes());
    put(0x258, &0x100_0000_u64.to_le_bytes());
    put(0x260, &0x20_0000_u32.to_le_bytes());
    image.extend([0x90; 0x200]);
    image.extend(code);
    image
}

fn payload(kernel: &[u8], initramfs: Option<&[u8]>) -> Payload {
    Payload { kernel: file(kernel), initramfs: initramfs.map(file), command_line: "quiet".to_owned() }
}

#[test]
fn a_bzimage_is_entered_in_64_bit_mode() {
    let memory = memory(32);
    let entry = load(&memory, &payload(&bzimage(b"code"), Some(b"initramfs")), 0xE_0000).unwrap();
    assert_eq!(entry, Entry::Linux { instruction: 0x10_0200 });
    let read = |address, length| {
        let mut bytes = vec![0; length];
        memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    };
    assert_eq!(read(0x10_0200, 4), b"code");
    assert_eq!(read(address::COMMAND_LINE, 6), b"quiet\0");
    let page = read(address::ZERO_PAGE, 4096);
    assert_eq!(&page[0x202..0x206], b"HdrS");
    assert_eq!(page[0x70..0x78], 0xE_0000_u64.to_le_bytes());
    assert_eq!(page[0x210], 0xFF);
    let initramfs = u32::from_le_bytes(page[0x218..0x21C].try_into().unwrap());
    assert_eq!(u64::from(initramfs), (32 << 20) - 0x1000);
    assert_eq!(read(u64::from(initramfs), 9), b"initramfs");
    assert_eq!(page[0x21C..0x220], 9_u32.to_le_bytes());
    // Three ranges: two of RAM, and ECAM.
    assert_eq!(page[0x1E8], 3);
    assert_eq!(page[0x2D0 + 20..0x2D0 + 28], 0x10_0000_u64.to_le_bytes());
}

#[test]
fn what_does_not_fit_is_refused() {
    let memory = memory(32);
    let initramfs = vec![0; 16 << 20];
    assert!(matches!(
        load(&memory, &payload(&bzimage(b""), Some(&initramfs)), 0),
        Err(BootError::InitramfsTooLarge { size: 0x100_0000 })
    ));
    let mut long = payload(&bzimage(b""), None);
    long.command_line = "a".repeat(2048);
    assert!(matches!(load(&memory, &long, 0), Err(BootError::CommandLineTooLong { length: 2048, limit: 2047 })));
    long.command_line = "a\0b".to_owned();
    assert!(matches!(load(&memory, &long, 0), Err(BootError::CommandLineNul)));
}

#[test]
fn what_is_no_kernel_is_refused() {
    let memory = memory(32);
    for kernel in [&b""[..], b"MZ", &[0; 4096], b"\x7FELF"] {
        assert!(load(&memory, &payload(kernel, None), 0).is_err());
    }
    let mut old = bzimage(b"");
    old[0x236] = 0;
    assert!(matches!(load(&memory, &payload(&old, None), 0), Err(BootError::UnknownFormat)));
}

#[test]
fn any_header_is_survived() {
    let memory = memory(4);
    let image = bzimage(b"code");
    for offset in 0x1F1..0x269 {
        for byte in [0, 0x7F, 0xFF] {
            let mut damaged = image.clone();
            damaged[offset] = byte;
            let _ = load(&memory, &payload(&damaged, Some(b"initramfs")), 0);
        }
    }
}

/// An ELF file with a PVH note and one segment at 1 MiB.
fn elf() -> Vec<u8> {
    let segment = |kind: u32, offset: u64, address: u64, size: u64| {
        let mut header = Vec::new();
        header.extend(kind.to_le_bytes());
        header.extend(5_u32.to_le_bytes());
        for value in [offset, address, address, size, size, 4] {
            header.extend(value.to_le_bytes());
        }
        header
    };
    let mut file = b"\x7FELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x02\0\x3E\0\x01\0\0\0".to_vec();
    for value in [0x10_0000_u64, 64, 0] {
        file.extend(value.to_le_bytes());
    }
    file.extend(b"\0\0\0\0\x40\0\x38\0\x02\0\0\0\0\0\0\0");
    file.extend(segment(1, 0x200, 0x10_0000, 4));
    file.extend(segment(4, 0x100, 0, 20));
    file.resize(0x100, 0);
    file.extend([4_u32, 4, 18].iter().flat_map(|word| word.to_le_bytes()));
    file.extend(b"Xen\0\x34\x12\x10\0");
    file.resize(0x200, 0);
    file.extend(b"code");
    file
}

#[test]
fn an_elf_file_is_entered_by_its_note() {
    let memory = memory(32);
    let entry = load(&memory, &payload(&elf(), Some(b"initramfs")), 0xE_0000).unwrap();
    assert_eq!(entry, Entry::Pvh { instruction: 0x10_1234 });
    let word = |address| memory.read_obj::<u64>(GuestAddress(address)).unwrap();
    assert_eq!(word(address::START_INFO) & 0xFFFF_FFFF, 0x336E_C578);
    assert_eq!(word(address::START_INFO + 32), 0xE_0000);
    assert_eq!(word(address::START_INFO + 48), 3);
    assert_eq!(word(address::START_INFO + 56), (32 << 20) - 0x1000);
    assert_eq!(word(address::MEMORY_MAP + 24), 0x10_0000);
}

#[test]
fn maps_of_large_guests_go_around_the_hole() {
    let memory = GuestMemory::from_ranges(&[
        (GuestAddress(0), 1 << 20),
        (GuestAddress(1 << 20), 3 << 20),
        (GuestAddress(4 << 30), 1 << 20),
    ])
    .unwrap();
    let expected = [
        Range { start: 0, size: 0x9_FC00, kind: Kind::Ram },
        Range { start: 0x10_0000, size: 3 << 20, kind: Kind::Ram },
        Range { start: 0xE000_0000, size: 0x10_0000, kind: Kind::Reserved },
        Range { start: 4 << 30, size: 1 << 20, kind: Kind::Ram },
    ];
    assert_eq!(map::of(&memory), expected);
    assert_eq!(memory.num_regions(), 3);
}
