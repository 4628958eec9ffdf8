//! INTx: level-triggered interrupts, shared by the functions of every fourth slot.

use std::io;
use std::sync::{Arc, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::Interrupts;
use crate::layout::INTX_IRQS;

/// INTA of the function in one slot, driven by this process.
pub struct Line {
    interrupts: Arc<Interrupts>,
    slot: u8,
}

impl Line {
    /// The line of the function in `slot` (0 to 31), low.
    #[must_use]
    pub fn new(interrupts: Arc<Interrupts>, slot: u8) -> Self {
        Self { interrupts, slot: slot % 32 }
    }

    /// The interrupt it is wired to, as the guest's ACPI tables say too (`_PRT`).
    #[must_use]
    pub fn irq(slot: u8) -> u32 {
        INTX_IRQS.start + u32::from(slot) % (INTX_IRQS.end - INTX_IRQS.start)
    }

    /// Holds the line high, or lets go; it is high while any function holds it.
    pub fn set(&self, high: bool) {
        let irq = Self::irq(self.slot);
        let mut lines = self.interrupts.high_lines.lock().unwrap_or_else(PoisonError::into_inner);
        let holders = &mut lines[(irq - INTX_IRQS.start) as usize];
        let was_high = *holders != 0;
        let own = 1 << self.slot;
        *holders = if high { *holders | own } else { *holders & !own };
        if was_high != (*holders != 0) {
            self.interrupts.chip.set_level(irq, high);
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        self.set(false);
    }
}

/// INTA of a function that somebody else drives (VFIO): writing `raise` raises it, and when the guest has handled it
/// KVM lowers it and writes `handled`.
pub struct ResampledLine {
    interrupts: Arc<Interrupts>,
    irq: u32,
    /// Raises the line.
    pub raise: EventFd,
    /// Written by KVM when the guest has ended the interrupt.
    pub handled: EventFd,
}

impl ResampledLine {
    /// Connects the line of the function in `slot`.
    ///
    /// # Errors
    /// When the kernel refuses, or too many files are open.
    pub fn new(interrupts: Arc<Interrupts>, slot: u8) -> io::Result<Self> {
        let event = || EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC);
        let (irq, raise, handled) = (Line::irq(slot), event()?, event()?);
        interrupts.chip.connect_level(&raise, &handled, irq)?;
        Ok(Self { interrupts, irq, raise, handled })
    }
}

impl Drop for ResampledLine {
    fn drop(&mut self) {
        self.interrupts.chip.disconnect(&self.raise, self.irq);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupts::Recorder;

    #[test]
    fn a_shared_line_is_high_while_anyone_holds_it() {
        let chip = Arc::new(Recorder::default());
        let interrupts = Interrupts::new(chip.clone());
        let [one, other] = [1, 5].map(|slot| Line::new(interrupts.clone(), slot));
        assert_eq!(Line::irq(1), Line::irq(5));
        one.set(true);
        one.set(true);
        other.set(true);
        one.set(false);
        assert!(chip.high.lock().unwrap().contains(&17));
        drop(other);
        assert!(chip.high.lock().unwrap().is_empty());
    }

    #[test]
    fn a_resampled_line_is_disconnected_with_its_owner() {
        let chip = Arc::new(Recorder::default());
        let line = ResampledLine::new(Interrupts::new(chip.clone()), 2).unwrap();
        assert_eq!(chip.connected.lock().unwrap().values().copied().collect::<Vec<_>>(), [18]);
        drop(line);
        assert!(chip.connected.lock().unwrap().is_empty());
    }
}
