use super::*;
use crate::pci::Bar;
use proptest::prelude::*;

/// An Intel 82574L (e1000e) as `lspci -xxxx` shows it: power management, MSI (64 bits), PCI Express, MSI-X with five
/// vectors in BAR 3; error reporting and a serial number.
pub(in crate::vfio) fn e1000e() -> Vec<u8> {
    let mut bytes = vec![0; 4096];
    let mut put = |offset: usize, value: &[u8]| bytes[offset..offset + value.len()].copy_from_slice(value);
    put(0x00, &[0x86, 0x80, 0xD3, 0x10, 0x07, 0x05, 0x10, 0x00, 0x00, 0x00, 0x00, 0x02, 0x10, 0x00, 0x00, 0x00]);
    put(0x10, &[0, 0, 0x14, 0xFE, 0, 0, 0x12, 0xFE, 0x41, 0xC0, 0, 0, 0, 0, 0x18, 0xFE]);
    put(0x2C, &[0x86, 0x80, 0x00, 0x00, 0x00, 0x00, 0xF4, 0xFD, 0xC8, 0, 0, 0, 0, 0, 0, 0, 0x0B, 0x01, 0, 0]);
    put(0xC8, &[0x01, 0xD0, 0x22, 0xC8, 0x00, 0x20, 0x00, 0x00]);
    put(0xD0, &[0x05, 0xE0, 0x80, 0x00]);
    put(0xE0, &[0x10, 0xA0, 0x01, 0x00, 0xC1, 0x8C, 0x00, 0x00, 0x10, 0x28, 0x1A, 0x00, 0x11, 0x1C, 0x07, 0x00]);
    put(0xF0, &[0x00, 0x00, 0x11, 0x00]);
    put(0xA0, &[0x11, 0x00, 0x04, 0x80, 0x03, 0x00, 0x00, 0x00, 0x03, 0x20, 0x00, 0x00]);
    put(0x100, &[0x01, 0x00, 0x01, 0x14]);
    put(0x140, &[0x03, 0x00, 0x01, 0x00, 0x56, 0x34, 0x12, 0xFF, 0xFF, 0x00, 0x54, 0x52]);
    bytes
}

pub(in crate::vfio) fn bars() -> Bars {
    let mut bars = Bars::default();
    for (index, size) in [(0, 0x2_0000), (1, 0x2_0000), (3, 0x4000)] {
        bars.put(index, Bar { size, is_64_bit: false, is_prefetchable: false }).unwrap();
    }
    bars
}

fn view(host: &[u8]) -> View {
    View::new(host, bars(), Some(18), true).unwrap()
}

fn bytes(view: &View) -> [u8; 256] {
    let mut bytes = [0; 256];
    view.config.read(0, &mut bytes);
    bytes
}

fn ids(bytes: &[u8; 256]) -> Vec<u8> {
    let mut found = Vec::new();
    let mut at = usize::from(bytes[0x34]);
    while at != 0 {
        found.push(bytes[at]);
        at = usize::from(bytes[at + 1]);
    }
    found
}

#[test]
fn a_network_card_keeps_what_its_driver_needs() {
    let view = view(&e1000e());
    let bytes = bytes(&view);
    assert_eq!(bytes[..4], [0x86, 0x80, 0xD3, 0x10]);
    assert_eq!(bytes[9..12], [0, 0, 2], "a network card");
    assert_eq!(ids(&bytes), [capability::POWER, capability::MSI, capability::EXPRESS, capability::MSIX]);
    let msix = view.msix.unwrap();
    assert_eq!((msix.vectors, msix.table, msix.pending), (5, (3, 0), (3, 0x2000)));
    assert_eq!(view.msi.unwrap().1.size(), 14 + 2, "64 bits, no mask");
    assert_eq!(bytes[0x3C..0x3E], [18, 1]);
}

#[test]
fn what_is_the_hosts_is_not_shown() {
    let view = view(&e1000e());
    let bytes = bytes(&view);
    assert_eq!(bytes[4..6], [0, 0], "the guest enables it");
    assert_eq!(bytes[0x10..0x1C], [0; 12], "nor the host's addresses");
    assert_eq!(bytes[0x30..0x34], [0; 4], "no ROM");
    let serial_number = [0x03, 0x00, 0x01, 0x00, 0x56, 0x34, 0x12, 0xFF, 0xFF, 0x00, 0x54, 0x52];
    assert_eq!(view.extended, serial_number, "no error reporting");
    let power = usize::from(bytes[0x34]);
    assert_eq!(bytes[power + 2..power + 8], [0x22, 0x00, NO_SOFT_RESET, 0, 0, 0], "no wake-up, always in D0");
}

#[test]
fn it_becomes_a_part_of_the_root_complex() {
    let view = view(&e1000e());
    let at = usize::from(view.express.unwrap().guest);
    let bytes = bytes(&view);
    assert_eq!(view.express.unwrap().host, 0xE0);
    assert_eq!(bytes[at + 2], 0x91);
    assert_eq!(u32::from_le_bytes(bytes[at + 4..at + 8].try_into().unwrap()) & express::CAN_RESET, express::CAN_RESET);
    assert_eq!(bytes[at + 8..at + 0x14], [0x10, 0x28, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0], "control, but no link");
}

#[test]
fn a_guest_writes_only_what_is_harmless() {
    let mut view = view(&e1000e());
    let before = bytes(&view);
    let express = view.express.unwrap().guest;
    for offset in (0..256).step_by(4) {
        view.config.write(offset, &[0xFF; 4]);
    }
    let after = bytes(&view);
    let changed: Vec<_> = (0x28u16..256).filter(|&at| before[usize::from(at)] != after[usize::from(at)]).collect();
    let power = u16::from(before[0x34]);
    assert_eq!(changed, [0x3C, power + 4, express + 9, view.msix.unwrap().control + 1]);
    let control = usize::from(express + express::CONTROL);
    assert_eq!(u16::from_le_bytes([after[control], after[control + 1]]), 0x7810 | 0x2810);
}

#[test]
fn functions_that_make_no_sense_are_refused() {
    let refused = |bytes: &[u8]| View::new(bytes, bars(), None, false).err();
    assert_eq!(refused(&[0xFF; 256]), Some("the function does not answer"));
    assert_eq!(refused(&[0; 64]), Some("the function does not answer"));
    let mut bridge = e1000e();
    bridge[0x0E] = 0x81;
    assert_eq!(refused(&bridge), Some("the function is a bridge"));
}

#[test]
fn a_list_in_a_circle_ends() {
    let mut bytes = e1000e();
    bytes[0xA1] = 0xA0;
    bytes[0x142] = 0x01;
    bytes[0x143] = 0x14;
    assert_eq!(ids(&super::tests::bytes(&view(&bytes))).len(), 4);
}

proptest! {
    #[test]
    fn no_configuration_space_breaks_it(mut bytes in proptest::collection::vec(any::<u8>(), 256..4096), pointers in proptest::collection::vec((0x40usize..0xFF, prop_oneof![Just(1u8), Just(5), Just(9), Just(0x10), Just(0x11)]), 0..12)) {
        bytes[0x0E] = 0;
        bytes[0] = 0x86;
        // Makes a list that is worth following.
        let mut link = 0x34;
        for (at, id) in pointers {
            let at = at & 0xFC;
            bytes[link] = at as u8;
            bytes[at] = id;
            link = at + 1;
        }
        if let Ok(mut view) = View::new(&bytes, bars(), Some(16), true) {
            prop_assert!(view.extended.len() <= 12);
            for offset in 0..256 {
                view.config.write(offset, &[0xFF]);
            }
            let seen = super::tests::bytes(&view);
            prop_assert_eq!(&seen[..4], &bytes[..4]);
        }
    }
}
