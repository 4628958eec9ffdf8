//! Linux's boot parameters (`Documentation/arch/x86/zero-page.rst`). Pure.

use super::kernel::{SETUP_HEADER, SetupHeader};
use super::map::Range;
use super::{Initramfs, address};

/// As many ranges as boot parameters have room for.
const E820_LIMIT: usize = 128;

/// The page of boot parameters.
#[must_use]
pub fn zero_page(header: &SetupHeader, map: &[Range], initramfs: Option<Initramfs>, rsdp: u64) -> Vec<u8> {
    let mut page = vec![0; 4096];
    let mut put = |offset: usize, bytes: &[u8]| {
        if let Some(place) = page.get_mut(offset..offset + bytes.len()) {
            place.copy_from_slice(bytes);
        }
    };
    put(SETUP_HEADER, header.bytes());
    put(0x070, &rsdp.to_le_bytes());
    // A loader without a number of its own.
    put(0x210, &[0xFF]);
    put(0x228, &low(address::COMMAND_LINE));
    if let Some(Initramfs { start, size }) = initramfs {
        put(0x218, &low(start));
        put(0x0C0, &high(start));
        put(0x21C, &low(size));
        put(0x0C4, &high(size));
    }
    let map = &map[..map.len().min(E820_LIMIT)];
    put(0x1E8, &[u8::try_from(map.len()).unwrap_or(0)]);
    for (index, range) in map.iter().enumerate() {
        let offset = 0x2D0 + index * 20;
        put(offset, &range.start.to_le_bytes());
        put(offset + 8, &range.size.to_le_bytes());
        put(offset + 16, &(range.kind as u32).to_le_bytes());
    }
    page
}

fn low(value: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = value.to_le_bytes();
    [a, b, c, d]
}

fn high(value: u64) -> [u8; 4] {
    low(value >> 32)
}
