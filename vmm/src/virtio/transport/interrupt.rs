//! How a virtio-pci device interrupts: by MSI-X, or INTA and the ISR register.

use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU16, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::registers::{NO_VECTOR, Registers};
use crate::interrupts::{Interrupt, Interrupts, Line, Vectors};

/// ISR: a queue has used buffers.
const QUEUE: u8 = 1;
/// ISR: the configuration changed.
const CONFIG: u8 = 2;

/// The device's side of the interrupts of one function. What the guest has to say about it (vectors, MSI-X enabled, INTx
/// disabled) the transport sets.
pub struct PciInterrupt {
    vectors: Vectors,
    uses_msix: AtomicBool,
    config_vector: AtomicU16,
    queue_vectors: Box<[AtomicU16]>,
    intx: Mutex<Intx>,
    is_ready: AtomicBool,
    needs_reset: AtomicBool,
    generation: AtomicU8,
}

struct Intx {
    line: Line,
    isr: u8,
    is_allowed: bool,
}

impl Intx {
    fn update(&self) {
        self.line.set(self.isr != 0 && self.is_allowed);
    }
}

impl PciInterrupt {
    pub(super) fn new(interrupts: &Arc<Interrupts>, slot: u8, vectors: u16, queues: usize) -> Self {
        let intx = Intx { line: Line::new(interrupts.clone(), slot), isr: 0, is_allowed: true };
        Self {
            vectors: Vectors::new(interrupts.clone(), vectors),
            uses_msix: AtomicBool::new(false),
            config_vector: AtomicU16::new(NO_VECTOR),
            queue_vectors: (0..queues).map(|_| AtomicU16::new(NO_VECTOR)).collect(),
            intx: Mutex::new(intx),
            is_ready: AtomicBool::new(false),
            needs_reset: AtomicBool::new(false),
            generation: AtomicU8::new(0),
        }
    }

    pub(super) fn vectors(&self) -> &Vectors {
        &self.vectors
    }

    /// Takes over what the driver has set.
    pub(super) fn follow(&self, registers: &Registers) {
        self.config_vector.store(registers.config_vector(), Ordering::Release);
        for (vector, queue) in self.queue_vectors.iter().zip(registers.queues()) {
            vector.store(queue.vector, Ordering::Release);
        }
        self.is_ready.store(registers.is_ready(), Ordering::Release);
    }

    /// Whether MSI-X is used, and if not, whether INTx may be.
    pub(super) fn set_kind(&self, uses_msix: bool, is_intx_allowed: bool) {
        self.uses_msix.store(uses_msix, Ordering::Release);
        let mut intx = self.intx.lock().unwrap_or_else(PoisonError::into_inner);
        intx.is_allowed = !uses_msix && is_intx_allowed;
        intx.update();
    }

    /// The ISR register, which reading clears.
    pub(super) fn take_isr(&self) -> u8 {
        let mut intx = self.intx.lock().unwrap_or_else(PoisonError::into_inner);
        let isr = std::mem::take(&mut intx.isr);
        intx.update();
        isr
    }

    pub(super) fn isr(&self) -> u8 {
        self.intx.lock().unwrap_or_else(PoisonError::into_inner).isr
    }

    pub(super) fn generation(&self) -> u8 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn is_reset_needed(&self) -> bool {
        self.needs_reset.load(Ordering::Acquire)
    }

    pub(super) fn restore(&self, isr: u8, generation: u8, needs_reset: bool) {
        self.generation.store(generation, Ordering::Release);
        self.needs_reset.store(needs_reset, Ordering::Release);
        let mut intx = self.intx.lock().unwrap_or_else(PoisonError::into_inner);
        intx.isr = isr;
        intx.update();
    }

    /// Back to how it was, apart from the table of vectors and the generation.
    pub(super) fn reset(&self) {
        self.is_ready.store(false, Ordering::Release);
        self.needs_reset.store(false, Ordering::Release);
        self.take_isr();
    }

    fn interrupt(&self, vector: &AtomicU16, reason: u8) {
        if self.uses_msix.load(Ordering::Acquire) {
            self.vectors.trigger(vector.load(Ordering::Acquire));
        } else {
            let mut intx = self.intx.lock().unwrap_or_else(PoisonError::into_inner);
            intx.isr |= reason;
            intx.update();
        }
    }
}

impl Interrupt for PciInterrupt {
    fn queue(&self, index: u16) {
        if let Some(vector) = self.queue_vectors.get(usize::from(index)) {
            self.interrupt(vector, QUEUE);
        }
    }

    fn config(&self) {
        self.generation.fetch_add(1, Ordering::AcqRel);
        // A driver that is not ready gets no interrupt: it will read the configuration anyway.
        if self.is_ready.load(Ordering::Acquire) {
            self.interrupt(&self.config_vector, CONFIG);
        }
    }

    fn needs_reset(&self) {
        self.needs_reset.store(true, Ordering::Release);
        self.config();
    }

    fn event(&self, index: u16) -> Option<EventFd> {
        let vector = self.queue_vectors.get(usize::from(index))?.load(Ordering::Acquire);
        let uses_msix = self.uses_msix.load(Ordering::Acquire);
        uses_msix.then(|| self.vectors.event(vector).ok()?.try_clone().ok()).flatten()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupts::{Message, Recorder};

    fn interrupt() -> (Arc<Recorder>, PciInterrupt) {
        let chip = Arc::new(Recorder::default());
        let interrupts = Interrupts::new(chip.clone());
        (chip, PciInterrupt::new(&interrupts, 2, 3, 2))
    }

    fn ready_registers() -> Registers {
        let mut registers = Registers::new(1 << 32, &[16, 16], 3);
        for (offset, data) in [
            (0x08, &[1, 0, 0, 0][..]),
            (0x0C, &[1, 0, 0, 0]),
            (0x14, &[0b1011]),
            (0x10, &[2, 0]),
            (0x16, &[1, 0]),
            (0x1A, &[1, 0]),
            (0x14, &[4]),
        ] {
            registers.write(offset, data);
        }
        registers
    }

    #[test]
    fn intx_is_high_until_the_reason_was_read() {
        let (chip, interrupt) = interrupt();
        interrupt.queue(0);
        interrupt.queue(1);
        assert!(chip.high.lock().unwrap().contains(&18));
        assert_eq!([interrupt.take_isr(), interrupt.take_isr()], [QUEUE, 0]);
        assert!(chip.high.lock().unwrap().is_empty());
        interrupt.set_kind(false, false);
        interrupt.queue(0);
        assert!(chip.high.lock().unwrap().is_empty(), "disabled");
        interrupt.set_kind(false, true);
        assert!(chip.high.lock().unwrap().contains(&18), "but not forgotten");
        assert!(interrupt.event(0).is_none());
    }

    #[test]
    fn msix_takes_the_vectors_that_the_driver_chose() {
        let (chip, interrupt) = interrupt();
        interrupt.follow(&ready_registers());
        interrupt.set_kind(true, true);
        interrupt.queue(0);
        interrupt.queue(1);
        interrupt.queue(9);
        interrupt.config();
        let pending = |index| interrupt.vectors().is_pending(index);
        assert_eq!([pending(0), pending(1), pending(2)], [false, true, true]);
        assert!(chip.high.lock().unwrap().is_empty());
        assert!(interrupt.event(0).is_none() && interrupt.event(1).is_some() && interrupt.event(2).is_none());
        interrupt.vectors().connect(&[(1, Some(Message { address: 0xFEE0_0000, data: 1 }))]);
        assert_eq!(chip.connected.lock().unwrap().len(), 1);
    }

    #[test]
    fn configuration_interrupts_only_a_driver_that_is_ready() {
        let (chip, interrupt) = interrupt();
        interrupt.config();
        assert_eq!((interrupt.generation(), interrupt.take_isr()), (1, 0));
        interrupt.follow(&ready_registers());
        interrupt.needs_reset();
        assert!(interrupt.is_reset_needed());
        assert_eq!((interrupt.generation(), interrupt.isr()), (2, CONFIG));
        interrupt.reset();
        assert!(!interrupt.is_reset_needed() && chip.high.lock().unwrap().is_empty());
    }
}
