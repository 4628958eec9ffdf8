//! Which kind of interrupt a function uses, as the guest has chosen, and the events that carry it.

use std::io;
use std::sync::Arc;

use crate::interrupts::{Interrupts, ResampledLine, Vectors};
use crate::pci::{Msi, Msix, VectorChange};
use crate::vfio::{HostFunction, IrqKind};

/// A function's interrupts.
pub(super) struct FunctionInterrupts {
    interrupts: Arc<Interrupts>,
    slot: u8,
    pub(super) msi: Option<(Msi, Vectors)>,
    pub(super) msix: Option<(Msix, Vectors)>,
    connected: Option<Connected>,
}

/// What the host function is connected to.
enum Connected {
    Intx(#[expect(dead_code, reason = "held while connected")] ResampledLine),
    Msi { vectors: u16 },
    Msix,
}

impl Connected {
    fn kind(&self) -> IrqKind {
        match self {
            Self::Intx(_) => IrqKind::Intx,
            Self::Msi { .. } => IrqKind::Msi,
            Self::Msix => IrqKind::Msix,
        }
    }
}

impl FunctionInterrupts {
    /// Nothing connected. Functions get no more vectors than the host gives them.
    pub(super) fn new(interrupts: Arc<Interrupts>, slot: u8, msi: Option<Msi>, msix: Option<Msix>) -> Self {
        let vectors = |count| Vectors::new(interrupts.clone(), count);
        let msi = msi.map(|msi| (msi.clone(), vectors(msi.count())));
        let msix = msix.map(|msix| (msix.clone(), vectors(msix.count())));
        Self { interrupts, slot, msi, msix, connected: None }
    }

    /// Carries out changes of MSI.
    pub(super) fn change_msi(&mut self, change: impl FnOnce(&mut Msi) -> Vec<VectorChange>) {
        if let Some((msi, vectors)) = &mut self.msi {
            vectors.connect(&change(msi));
        }
    }

    /// Carries out changes of MSI-X.
    pub(super) fn change_msix(&mut self, change: impl FnOnce(&mut Msix) -> Vec<VectorChange>) {
        if let Some((msix, vectors)) = &mut self.msix {
            vectors.connect(&change(msix));
        }
    }

    /// What the guest has chosen: MSI-X before MSI before INTA, as functions do.
    fn wanted(&self, is_intx_allowed: bool) -> Option<(IrqKind, u16)> {
        match (&self.msix, &self.msi) {
            (Some((msix, _)), _) if msix.is_enabled() => Some((IrqKind::Msix, msix.count())),
            (_, Some((msi, _))) if msi.is_enabled() => Some((IrqKind::Msi, msi.enabled())),
            _ => is_intx_allowed.then_some((IrqKind::Intx, 1)),
        }
    }

    /// Connects the host function to what the guest has chosen. When the host can't, the function has no interrupts.
    pub(super) fn follow(&mut self, host: &dyn HostFunction, is_intx_allowed: bool) {
        let wanted = self.wanted(is_intx_allowed);
        let current = self.connected.as_ref().map(|connected| match connected {
            Connected::Msi { vectors } => (IrqKind::Msi, *vectors),
            Connected::Msix => (IrqKind::Msix, self.msix.as_ref().map_or(0, |(msix, _)| msix.count())),
            Connected::Intx(_) => (IrqKind::Intx, 1),
        });
        if wanted != current {
            self.disconnect(host);
            self.connected = wanted.and_then(|(kind, vectors)| self.connect(host, kind, vectors).ok());
        }
    }

    fn connect(&self, host: &dyn HostFunction, kind: IrqKind, count: u16) -> io::Result<Connected> {
        let events = |vectors: &Vectors| -> io::Result<()> {
            let count = count.min(host.irqs(kind));
            host.connect(kind, &(0..count).map(|index| vectors.event(index)).collect::<io::Result<Vec<_>>>()?)
        };
        match (kind, &self.msi, &self.msix) {
            (IrqKind::Msix, _, Some((_, vectors))) => events(vectors).map(|()| Connected::Msix),
            (IrqKind::Msi, Some((_, vectors)), _) => events(vectors).map(|()| Connected::Msi { vectors: count }),
            _ => {
                let line = ResampledLine::new(self.interrupts.clone(), self.slot)?;
                host.connect(IrqKind::Intx, &[&line.raise])?;
                // Half connected, it would refuse every other kind.
                host.connect_unmask(&line.handled).inspect_err(|_| host.disconnect(IrqKind::Intx))?;
                Ok(Connected::Intx(line))
            }
        }
    }

    fn disconnect(&mut self, host: &dyn HostFunction) {
        if let Some(connected) = self.connected.take() {
            host.disconnect(connected.kind());
        }
    }

    /// Back to how it was.
    pub(super) fn reset(&mut self, host: &dyn HostFunction) {
        self.disconnect(host);
        if let Some((msi, vectors)) = &mut self.msi {
            vectors.reset();
            *msi = Msi::new(msi.capabilities());
        }
        if let Some((msix, vectors)) = &mut self.msix {
            vectors.reset();
            *msix = Msix::new(msix.count());
        }
    }
}
