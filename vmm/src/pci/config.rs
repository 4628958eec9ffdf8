//! The configuration space of an emulated function: a type 0 header and capabilities.

use super::{Bar, Bars, Effect};
use crate::pci::bars::ImpossibleBar;

/// Offsets in the header.
pub mod register {
    /// Vendor, then device.
    pub const VENDOR: u16 = 0x00;
    /// Command: [`super::command`].
    pub const COMMAND: u16 = 0x04;
    /// Status.
    pub const STATUS: u16 = 0x06;
    /// Revision, then three bytes of class.
    pub const REVISION: u16 = 0x08;
    /// Header type.
    pub const HEADER_TYPE: u16 = 0x0E;
    /// Six BARs.
    pub const BARS: std::ops::Range<u16> = 0x10..0x28;
    /// Subsystem vendor, then subsystem.
    pub const SUBSYSTEM: u16 = 0x2C;
    /// BAR of the expansion ROM.
    pub const ROM: u16 = 0x30;
    /// Offset of the first capability.
    pub const CAPABILITIES: u16 = 0x34;
    /// A place for the guest to write its interrupt into.
    pub const INTERRUPT_LINE: u16 = 0x3C;
    /// 1 for INTA, 0 for none.
    pub const INTERRUPT_PIN: u16 = 0x3D;
    /// Where capabilities begin.
    pub const END: u16 = 0x40;
}

/// Bits of the command register.
pub mod command {
    /// BARs are decoded.
    pub const MEMORY: u16 = 1 << 1;
    /// The function may access memory by itself.
    pub const BUS_MASTER: u16 = 1 << 2;
    /// The function may not use INTx.
    pub const INTX_DISABLE: u16 = 1 << 10;
}

/// Capability IDs.
pub mod capability {
    /// Power management.
    pub const POWER: u8 = 0x01;
    /// MSI.
    pub const MSI: u8 = 0x05;
    /// Vendor-specific.
    pub const VENDOR: u8 = 0x09;
    /// PCI Express.
    pub const EXPRESS: u8 = 0x10;
    /// MSI-X.
    pub const MSIX: u8 = 0x11;
}

/// Status: there is a list of capabilities.
const HAS_CAPABILITIES: u8 = 1 << 4;

/// Without PCI Express capabilities, which begin there, it ends at 256 bytes.
const SIZE: usize = 256;

/// What a function is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Identity {
    /// Vendor and device.
    pub device: [u16; 2],
    /// Subsystem vendor and subsystem.
    pub subsystem: [u16; 2],
    /// Revision.
    pub revision: u8,
    /// Class, subclass, programming interface.
    pub class: [u8; 3],
}

/// A configuration space with the bits in it that a guest may change.
#[derive(Debug, Clone)]
pub struct ConfigSpace {
    bytes: [u8; SIZE],
    writable: [u8; SIZE],
    bars: Bars,
    /// Where the next capability goes to, and the byte that will point to it.
    next: usize,
    link: usize,
}

impl ConfigSpace {
    /// One without BARs, interrupt or capabilities.
    #[must_use]
    pub fn new(identity: &Identity) -> Self {
        let (mut bytes, mut writable) = ([0; SIZE], [0; SIZE]);
        bytes[0x00..0x02].copy_from_slice(&identity.device[0].to_le_bytes());
        bytes[0x02..0x04].copy_from_slice(&identity.device[1].to_le_bytes());
        bytes[0x08] = identity.revision;
        bytes[0x09..0x0C].copy_from_slice(&[identity.class[2], identity.class[1], identity.class[0]]);
        bytes[0x2C..0x2E].copy_from_slice(&identity.subsystem[0].to_le_bytes());
        bytes[0x2E..0x30].copy_from_slice(&identity.subsystem[1].to_le_bytes());
        let command = command::MEMORY | command::BUS_MASTER | command::INTX_DISABLE;
        writable[0x04..0x06].copy_from_slice(&command.to_le_bytes());
        writable[usize::from(register::INTERRUPT_LINE)] = 0xFF;
        let (next, link) = (register::END.into(), register::CAPABILITIES.into());
        Self { bytes, writable, bars: Bars::default(), next, link }
    }

    /// Adds a BAR, without an address.
    ///
    /// # Errors
    /// When there can't be such a BAR.
    pub fn put_bar(&mut self, index: u8, bar: Bar) -> Result<(), ImpossibleBar> {
        self.bars.put(index, bar)
    }

    /// Says that the function uses INTA, and by which interrupt.
    pub fn set_interrupt(&mut self, irq: u32) {
        self.bytes[usize::from(register::INTERRUPT_LINE)] = irq as u8;
        self.bytes[usize::from(register::INTERRUPT_PIN)] = 1;
    }

    /// Adds a capability: what follows its ID and its link, and which bits of that the guest may change. Returns its
    /// offset; `None` when it does not fit.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> Option<u16> {
        let (start, end) = (self.next, self.next + 2 + body.len());
        if end > SIZE || writable.len() > body.len() {
            return None;
        }
        self.bytes[self.link] = start as u8;
        self.bytes[usize::from(register::STATUS)] |= HAS_CAPABILITIES;
        self.bytes[start] = id;
        self.bytes[start + 2..end].copy_from_slice(body);
        self.writable[start + 2..start + 2 + writable.len()].copy_from_slice(writable);
        self.link = start + 1;
        self.next = end.next_multiple_of(4);
        Some(start as u16)
    }

    /// Reads; what is beyond stays as it is.
    pub fn read(&self, offset: u16, data: &mut [u8]) {
        for (offset, byte) in (usize::from(offset)..SIZE).zip(data) {
            *byte = self.byte(offset);
        }
    }

    fn byte(&self, offset: usize) -> u8 {
        match bar_register(offset) {
            Some((register, byte)) => self.bars.read(register).to_le_bytes()[byte],
            None => self.bytes[offset],
        }
    }

    /// Writes what may be written.
    pub fn write(&mut self, offset: u16, data: &[u8]) -> Effect {
        let before = (self.bars, self.decodes_memory());
        for (offset, byte) in (usize::from(offset)..SIZE).zip(data) {
            if let Some((register, position)) = bar_register(offset) {
                let shift = 8 * position as u32;
                self.bars.write(register, u32::from(*byte) << shift, 0xFF << shift);
            } else {
                let writable = self.writable[offset];
                self.bytes[offset] = self.bytes[offset] & !writable | byte & writable;
            }
        }
        let is_moved = before.1 != self.decodes_memory() || (before.1 && before.0 != self.bars);
        if is_moved { Effect::Remap } else { Effect::Nothing }
    }

    /// The command register.
    #[must_use]
    pub fn command(&self) -> u16 {
        u16::from_le_bytes([self.bytes[4], self.bytes[5]])
    }

    /// Whether BARs are decoded.
    #[must_use]
    pub fn decodes_memory(&self) -> bool {
        self.command() & command::MEMORY != 0
    }

    /// The BARs.
    #[must_use]
    pub fn bars(&self) -> &Bars {
        &self.bars
    }

    /// The BARs, to give them addresses.
    pub fn bars_mut(&mut self) -> &mut Bars {
        &mut self.bars
    }

    /// What the guest has changed, or could have, for a snapshot.
    #[must_use]
    pub fn saved(&self) -> Vec<u8> {
        (0..SIZE).map(|offset| self.byte(offset)).collect()
    }

    /// Takes over what [`ConfigSpace::saved`] gave: no more than a guest could have written. False when it was of another
    /// function.
    pub fn restore(&mut self, saved: &[u8]) -> bool {
        let is_same = |offset: usize| {
            let fixed = if bar_register(offset).is_some() { 0 } else { !self.writable[offset] };
            (saved[offset] ^ self.byte(offset)) & fixed == 0
        };
        if saved.len() != SIZE || !(0..SIZE).all(is_same) {
            return false;
        }
        self.write(0, saved);
        true
    }
}

/// The BAR register that a byte is in, and where.
fn bar_register(offset: usize) -> Option<(u8, usize)> {
    let first = usize::from(register::BARS.start);
    (first..usize::from(register::BARS.end)).contains(&offset).then(|| (((offset - first) / 4) as u8, offset % 4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const IDENTITY: Identity =
        Identity { device: [0x1AF4, 0x1042], subsystem: [0x1AF4, 0x40], revision: 1, class: [1, 2, 3] };

    fn space() -> ConfigSpace {
        let mut space = ConfigSpace::new(&IDENTITY);
        space.put_bar(0, Bar { size: 0x8000, is_64_bit: false, is_prefetchable: false }).unwrap();
        space
    }

    fn read(space: &ConfigSpace, offset: u16) -> u32 {
        let mut data = [0; 4];
        space.read(offset, &mut data);
        u32::from_le_bytes(data)
    }

    #[test]
    fn identity_is_where_it_belongs() {
        let mut space = space();
        assert_eq!([0x00, 0x08, 0x2C].map(|offset| read(&space, offset)), [0x1042_1AF4, 0x0102_0301, 0x0040_1AF4]);
        for offset in [0x00, 0x08, 0x2C, 0x34] {
            let before = read(&space, offset);
            space.write(offset, &[0xFF; 4]);
            assert_eq!(read(&space, offset), before, "{offset:#x}");
        }
    }

    #[test]
    fn a_move_matters_only_while_decoding() {
        let mut space = space();
        assert_eq!(space.write(0x10, &0xC000_0000u32.to_le_bytes()), Effect::Nothing);
        assert_eq!(space.write(0x04, &[2, 0]), Effect::Remap);
        assert_eq!(space.write(0x04, &[6, 0]), Effect::Nothing);
        assert_eq!(space.write(0x10, &0xC000_0000u32.to_le_bytes()), Effect::Nothing);
        assert_eq!(space.write(0x12, &[0x01, 0xC0]), Effect::Remap);
        assert_eq!(space.bars().range(0), Some(0xC001_0000..0xC001_8000));
        assert_eq!(space.write(0x04, &[0]), Effect::Remap);
    }

    #[test]
    fn capabilities_are_linked() {
        let mut space = space();
        assert_eq!(space.add_capability(capability::VENDOR, &[0x10, 1, 2], &[]), Some(0x40));
        assert_eq!(space.add_capability(capability::MSIX, &[0; 10], &[0x00, 0xC0]), Some(0x48));
        assert_eq!(read(&space, 0x34) & 0xFF, 0x40);
        assert_eq!(read(&space, 0x40), 0x0110_4809);
        assert_eq!(read(&space, 0x48), 0x0011);
        space.write(0x4A, &[0xFF, 0xFF]);
        assert_eq!(read(&space, 0x48), 0xC000_0011);
        assert_eq!(read(&space, 0x04) >> 16, 0x10);
        assert_eq!(space.add_capability(capability::VENDOR, &[0; 200], &[]), None);
    }

    #[test]
    fn saved_state_of_another_function_is_refused() {
        let (mut one, mut other) = (space(), space());
        one.write(0x04, &[6, 4]);
        one.write(0x10, &0xC000_0000u32.to_le_bytes());
        let saved = one.saved();
        assert!(other.restore(&saved));
        assert_eq!(other.saved(), saved);
        let mut foreign = saved.clone();
        foreign[0] = 0x86;
        assert!(!other.restore(&foreign));
        assert!(!other.restore(&saved[..255]));
        assert!(!other.restore(&[]));
    }

    proptest! {
        #[test]
        fn a_guest_changes_only_what_is_writable(writes in proptest::collection::vec((any::<u16>(), any::<[u8; 4]>(), 1usize..5), 0..50)) {
            let mut space = space();
            space.add_capability(capability::VENDOR, &[0xAA; 20], &[0, 0xF0]);
            let fresh = space.clone();
            for (offset, data, length) in writes {
                space.write(offset % 300, &data[..length]);
                let mut read = [0; 4];
                space.read(offset % 300, &mut read[..length]);
            }
            for offset in (0..SIZE).filter(|&offset| bar_register(offset).is_none()) {
                prop_assert_eq!((space.bytes[offset] ^ fresh.bytes[offset]) & !fresh.writable[offset], 0);
            }
        }
    }
}
