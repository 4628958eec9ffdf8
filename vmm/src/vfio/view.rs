//! What the guest sees of a host function's configuration space.
//!
//! It is made anew: identity, BARs and capabilities that are known are shown, everything else is not there, among it the
//! expansion ROM and every extended capability that could change more than the function itself (SR-IOV, ATS, PASID,
//! resizable BARs, access control, error reporting …). What the guest writes stays in it, but for
//!
//! | what | why |
//! |---|---|
//! | bus master | a function that may not reach memory does nothing |
//! | device control: relaxed ordering, no snoop, size of read requests | drivers tune these; the kernel checks them too |
//! | function level reset | becomes VFIO's reset |
//!
//! Decoding and power states are the guest's own illusion: the function always decodes and is always awake, so that no
//! access to what is mapped can fail.

use crate::pci::{Bars, ConfigSpace, Identity, Msi, capability, register};

/// Offset of a capability's field, from its beginning.
pub(super) mod express {
    pub(in crate::vfio) const FLAGS: u16 = 0x02;
    pub(in crate::vfio) const CAPABILITIES: u16 = 0x04;
    pub(in crate::vfio) const CONTROL: u16 = 0x08;
    pub(in crate::vfio) const STATUS: u16 = 0x0A;
    pub(in crate::vfio) const CAPABILITIES_2: u16 = 0x24;

    /// Control: the guest's wish for a reset.
    pub(in crate::vfio) const RESET: u16 = 1 << 15;
    /// Control: what is passed on.
    pub(in crate::vfio) const PASSED_ON: u16 = 0x7810;
    /// Capabilities: it can be reset by function.
    pub(in crate::vfio) const CAN_RESET: u32 = 1 << 28;
}

/// Power management: the function keeps its state in D3hot.
const NO_SOFT_RESET: u8 = 1 << 3;

/// Extended capability: serial number.
const SERIAL_NUMBER: u16 = 0x0003;

/// Where extended capabilities begin.
pub(super) const EXTENDED: u16 = 0x100;

/// What was made of a function's configuration space.
#[derive(Debug, Clone)]
pub(super) struct View {
    /// The first 256 bytes.
    pub(super) config: ConfigSpace,
    /// Extended capabilities, from [`EXTENDED`] on.
    pub(super) extended: Vec<u8>,
    /// The offset of MSI, and its registers.
    pub(super) msi: Option<(u16, Msi)>,
    /// MSI-X.
    pub(super) msix: Option<MsixPlace>,
    /// Where PCI Express is for the guest, and on the host.
    pub(super) express: Option<Express>,
}

/// Where MSI-X is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MsixPlace {
    /// Offset of the control register.
    pub(super) control: u16,
    /// Number of vectors.
    pub(super) vectors: u16,
    /// BAR and offset of the table.
    pub(super) table: (u8, u32),
    /// BAR and offset of the pending bits.
    pub(super) pending: (u8, u32),
}

/// Offsets of the PCI Express capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Express {
    /// For the guest.
    pub(super) guest: u16,
    /// On the host.
    pub(super) host: u16,
}

impl View {
    /// The view of a function with this configuration space (256 bytes or 4 KiB) and these BARs; `irq` is what INTA is
    /// wired to, if the function can do that.
    ///
    /// # Errors
    /// When it makes no sense, with the reason.
    pub(super) fn new(host: &[u8], bars: Bars, irq: Option<u32>, can_reset: bool) -> Result<Self, &'static str> {
        let host = Host(host);
        if host.0.len() < 256 || host.word(register::VENDOR) == 0xFFFF {
            return Err("the function does not answer");
        }
        if host.byte(register::HEADER_TYPE) & 0x7F != 0 {
            return Err("the function is a bridge");
        }
        let mut config = ConfigSpace::new(&Identity {
            device: [host.word(0x00), host.word(0x02)],
            subsystem: [host.word(register::SUBSYSTEM), host.word(register::SUBSYSTEM + 2)],
            revision: host.byte(register::REVISION),
            class: [host.byte(0x0B), host.byte(0x0A), host.byte(0x09)],
        });
        *config.bars_mut() = bars;
        if let Some(irq) = irq {
            config.set_interrupt(irq);
        }
        let mut view = Self { config, extended: Vec::new(), msi: None, msix: None, express: None };
        for (id, at) in host.capabilities() {
            view.add(&host, id, at, can_reset).ok_or("more capabilities than there is room for")?;
        }
        view.add_serial_number(&host);
        Ok(view)
    }

    fn add(&mut self, host: &Host<'_>, id: u8, at: u16, can_reset: bool) -> Option<()> {
        match id {
            capability::POWER => {
                // It wakes nobody up, and the power state is only remembered.
                let capabilities = (host.word(at + 2) & 0x07FF).to_le_bytes();
                let body = [capabilities[0], capabilities[1], NO_SOFT_RESET, 0, 0, 0];
                self.config.add_capability(id, &body, &[0, 0, 0b11])?;
            }
            capability::MSI if self.msi.is_none() => {
                let msi = Msi::new(host.word(at + 2));
                let place = self.config.add_capability(id, &vec![0; usize::from(msi.size()) - 2], &[])?;
                self.msi = Some((place, msi));
            }
            capability::MSIX if self.msix.is_none() => {
                let vectors = (host.word(at + 2) & 0x7FF) + 1;
                let place = |offset| ((host.long(offset) & 7) as u8, host.long(offset) & !7);
                let (table, pending) = (place(at + 4), place(at + 8));
                let body = crate::pci::Msix::new(vectors).capability(table, pending);
                let control = self.config.add_capability(id, &body, &[0x00, 0xC0])? + 2;
                self.msix = Some(MsixPlace { control, vectors, table, pending });
            }
            capability::EXPRESS if self.express.is_none() => {
                let (body, writable) = express_body(host, at, can_reset);
                let guest = self.config.add_capability(id, &body, &writable)?;
                self.express = Some(Express { guest, host: at });
            }
            // Only to be read; one that does not fit is left out.
            capability::VENDOR => {
                let length = u16::from(host.byte(at + 2)).max(3);
                let body: Vec<_> = (at + 2..at + length).map(|offset| host.byte(offset)).collect();
                self.config.add_capability(id, &body, &[]);
            }
            _ => {}
        }
        Some(())
    }

    /// The only extended capability that is shown: some drivers tell cards apart by it.
    fn add_serial_number(&mut self, host: &Host<'_>) {
        if let Some(at) = host.extended(SERIAL_NUMBER).filter(|_| self.express.is_some()) {
            let header = u32::from(SERIAL_NUMBER) | 1 << 16;
            self.extended = header.to_le_bytes().into_iter().chain((4..12).map(|i| host.byte(at + i))).collect();
        }
    }
}

/// PCI Express for the guest: a function of the root complex, without a link of its own, as there is no port above it.
fn express_body(host: &Host<'_>, at: u16, can_reset: bool) -> (Vec<u8>, Vec<u8>) {
    const INTEGRATED_ENDPOINT: u16 = 9;
    let flags = host.word(at + express::FLAGS);
    let version = flags & 0xF;
    // Version 1 of such a function ends after the device's registers; version 2 has all, unused ones zero.
    let size = if version >= 2 { 0x3C } else { 0x14 };
    let mut body = vec![0; size - 2];
    let mut put = |offset: u16, value: &[u8]| {
        let start = usize::from(offset) - 2;
        body[start..start + value.len()].copy_from_slice(value);
    };
    put(express::FLAGS, &(version | INTEGRATED_ENDPOINT << 4).to_le_bytes());
    let capabilities = host.long(at + express::CAPABILITIES) & !express::CAN_RESET;
    let capabilities = capabilities | if can_reset { express::CAN_RESET } else { 0 };
    put(express::CAPABILITIES, &capabilities.to_le_bytes());
    put(express::CONTROL, &(host.word(at + express::CONTROL) & !express::RESET).to_le_bytes());
    if version >= 2 {
        put(express::CAPABILITIES_2, &host.long(at + express::CAPABILITIES_2).to_le_bytes());
    }
    let mut writable = vec![0; usize::from(express::CONTROL)];
    writable[usize::from(express::CONTROL) - 2..].copy_from_slice(&express::PASSED_ON.to_le_bytes());
    (body, writable)
}

/// A host function's bytes. Beyond them, everything is zero.
struct Host<'a>(&'a [u8]);

impl Host<'_> {
    fn byte(&self, offset: u16) -> u8 {
        self.0.get(usize::from(offset)).copied().unwrap_or_default()
    }

    fn word(&self, offset: u16) -> u16 {
        u16::from_le_bytes([self.byte(offset), self.byte(offset + 1)])
    }

    fn long(&self, offset: u16) -> u32 {
        u32::from(self.word(offset)) | u32::from(self.word(offset + 2)) << 16
    }

    /// IDs and offsets of capabilities. A list that is a circle ends where it has to.
    fn capabilities(&self) -> impl Iterator<Item = (u8, u16)> {
        let follow = |offset: u16| Some(u16::from(self.byte(offset) & 0xFC)).filter(|next| *next >= register::END);
        let all = std::iter::successors(follow(register::CAPABILITIES), move |at| follow(at + 1));
        all.take(48).map(|at| (self.byte(at), at))
    }

    /// Offset of an extended capability.
    fn extended(&self, id: u16) -> Option<u16> {
        let follow = |at: u16| Some(self.word(at + 2) >> 4 & 0xFFC).filter(|next| *next >= EXTENDED);
        let mut all = std::iter::successors(Some(EXTENDED), |at| follow(*at)).take(256);
        all.find(|at| self.word(*at) == id)
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
pub(super) mod tests;
