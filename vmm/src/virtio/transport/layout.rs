//! What the guest finds in configuration space, and where the structures are in the one BAR.

use crate::pci::{Bar, ConfigSpace, Identity, Msix, capability, command, register};

/// The BAR with all of it. Everything has a page of its own, so that notifications could be mapped apart.
pub const BAR: u8 = 0;
const BAR_SIZE: u64 = 0x8000;

const COMMON: u64 = 0x0000;
const ISR: u64 = 0x1000;
const DEVICE: u64 = 0x2000;
/// Where notifications are written to.
pub const NOTIFY: u64 = 0x3000;
const MSIX_TABLE: u64 = 0x4000;
const MSIX_PENDING: u64 = 0x5000;
const PAGE: u64 = 0x1000;

/// Each queue's notifications have an address of their own, so that each can have an ioeventfd.
pub const NOTIFY_STEP: u64 = 4;

/// Most queues and vectors that fit into their pages.
pub const MOST_QUEUES: usize = (PAGE / NOTIFY_STEP) as usize;
const MOST_VECTORS: usize = 256;

/// Vectors for a device: one for each queue and one for its configuration.
pub fn vectors(queues: usize) -> u16 {
    (queues + 1).min(MOST_VECTORS) as u16
}

/// A structure in the BAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Region {
    /// [`super::registers`].
    Common,
    /// Why there was an interrupt.
    Isr,
    /// The device's configuration.
    Device,
    /// A write notifies.
    Notify,
    /// MSI-X table.
    MsixTable,
    /// MSI-X pending bits.
    MsixPending,
}

/// The structure that an access is in, and its offset there; `None` when it is in none, or not in one alone.
pub fn region(offset: u64, length: usize) -> Option<(Region, u64)> {
    let region = match offset / PAGE * PAGE {
        COMMON => Region::Common,
        ISR => Region::Isr,
        DEVICE => Region::Device,
        NOTIFY => Region::Notify,
        MSIX_TABLE => Region::MsixTable,
        MSIX_PENDING => Region::MsixPending,
        _ => return None,
    };
    (offset % PAGE + length as u64 <= PAGE).then_some((region, offset % PAGE))
}

/// Offsets of the capabilities that change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capabilities {
    /// Control register of MSI-X.
    pub msix_control: u16,
    /// The window to the BAR (`VIRTIO_PCI_CAP_PCI_CFG`).
    pub window: u16,
}

/// Types of virtio's capabilities (section 4.1.4).
mod kind {
    pub const COMMON: u8 = 1;
    pub const NOTIFY: u8 = 2;
    pub const ISR: u8 = 3;
    pub const DEVICE: u8 = 4;
    pub const WINDOW: u8 = 5;
}

/// Configuration space of a virtio device, INTA wired to `irq`. `None` would mean that it does not fit.
pub fn config_space(device: u16, msix: &Msix, queues: usize, irq: u32) -> Option<(ConfigSpace, Capabilities)> {
    let mut config = ConfigSpace::new(&Identity {
        device: [0x1AF4, 0x1040 + device],
        // From 0x40 on, so that drivers of before version 1 keep off.
        subsystem: [0x1AF4, 0x40 + device],
        revision: 1,
        class: class(device),
    });
    config.put_bar(BAR, Bar { size: BAR_SIZE, is_64_bit: false, is_prefetchable: false }).ok()?;
    config.set_interrupt(irq);
    let mut add = |body: &[u8], writable: &[u8]| config.add_capability(capability::VENDOR, body, writable);
    add(&virtio(kind::COMMON, COMMON, super::registers::SIZE as u64, &[]), &[])?;
    add(&virtio(kind::ISR, ISR, 1, &[]), &[])?;
    add(&virtio(kind::DEVICE, DEVICE, PAGE, &[]), &[])?;
    add(&virtio(kind::NOTIFY, NOTIFY, queues as u64 * NOTIFY_STEP, &(NOTIFY_STEP as u32).to_le_bytes()), &[])?;
    let mut window_writable = [0; 14];
    window_writable[2] = 0xFF;
    window_writable[6..14].fill(0xFF);
    let window = add(&virtio(kind::WINDOW, 0, 0, &[0; 4]), &window_writable)?;
    let msix = msix.capability((BAR, MSIX_TABLE as u32), (BAR, MSIX_PENDING as u32));
    // Enable and function mask.
    let msix_control = config.add_capability(capability::MSIX, &msix, &[0x00, 0xC0])? + 2;
    // As firmware leaves it. Linux says a line of each function that it has to enable, two exits a character.
    config.write(register::COMMAND, &command::MEMORY.to_le_bytes());
    Some((config, Capabilities { msix_control, window }))
}

/// `struct virtio_pci_cap` from its third byte on.
fn virtio(kind: u8, offset: u64, length: u64, extra: &[u8]) -> Vec<u8> {
    let size = 16 + extra.len() as u8;
    let mut body = vec![size, kind, BAR, 0, 0, 0];
    body.extend((offset as u32).to_le_bytes());
    body.extend((length as u32).to_le_bytes());
    body.extend(extra);
    body
}

/// PCI class for a virtio device ID.
fn class(device: u16) -> [u8; 3] {
    match device {
        1 => [0x02, 0x00, 0x00],
        2 | 26 => [0x01, 0x80, 0x00],
        3 | 19 => [0x07, 0x80, 0x00],
        27 => [0x05, 0x80, 0x00],
        _ => [0xFF, 0x00, 0x00],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_stay_inside_one_structure() {
        assert_eq!(region(0x14, 1), Some((Region::Common, 0x14)));
        assert_eq!(region(0x3FFC, 4), Some((Region::Notify, 0xFFC)));
        assert_eq!(region(0x0FFC, 8), None);
        assert_eq!(region(0x6000, 4), None);
        assert_eq!(region(u64::MAX, 8), None);
    }

    #[test]
    fn capabilities_say_where_structures_are() {
        let msix = Msix::new(vectors(2));
        let (config, capabilities) = config_space(1, &msix, 2, 17).unwrap();
        let mut bytes = [0; 256];
        config.read(0, &mut bytes);
        assert_eq!(bytes[..4], [0xF4, 0x1A, 0x41, 0x10]);
        assert_eq!(bytes[0x3C..0x3E], [17, 1]);
        let mut found = Vec::new();
        let mut at = usize::from(bytes[0x34]);
        while at != 0 {
            found.push((bytes[at], bytes[at + 3], u32::from_le_bytes(bytes[at + 8..at + 12].try_into().unwrap())));
            at = usize::from(bytes[at + 1]);
        }
        assert_eq!(found.iter().map(|(id, ..)| *id).collect::<Vec<_>>(), [9, 9, 9, 9, 9, 0x11]);
        assert_eq!(found[..4], [(9, 1, 0), (9, 3, 0x1000), (9, 4, 0x2000), (9, 2, 0x3000)]);
        assert_eq!(bytes[usize::from(capabilities.msix_control)], 2, "three vectors");
        assert_eq!(bytes[usize::from(capabilities.window) + 3], 5);
    }
}
