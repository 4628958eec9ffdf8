//! What a virtio-pci function does with what the guest reads and writes.

use std::io;
use std::sync::Arc;

use virtio_queue::QueueState;

use super::doorbells::Bells;
use super::interrupt::PciInterrupt;
use super::layout::{self, Capabilities, NOTIFY_STEP, Region};
use super::registers::{Action, Registers};
use super::{Unfit, Wiring, queues};
use crate::interrupts::{Interrupt, Line};
use crate::memory::GuestMemory;
use crate::pci::{ConfigSpace, Effect, Msix, command};
use crate::virtio::{Activation, ReadyQueue, VirtioDevice};

/// Window to the BAR: offsets of its fields in the capability.
const WINDOW_BAR: u16 = 4;
const WINDOW_DATA: u16 = 16;

/// A function; [`super::VirtioPci`] is the lock around it.
pub(super) struct Function {
    pub(super) device: Box<dyn VirtioDevice>,
    pub(super) memory: GuestMemory,
    pub(super) interrupt: Arc<PciInterrupt>,
    pub(super) bells: Bells,
    pub(super) config: ConfigSpace,
    at_power_on: ConfigSpace,
    capabilities: Capabilities,
    pub(super) msix: Msix,
    pub(super) registers: Registers,
    pub(super) phase: Phase,
}

/// Where the device is in its life.
pub(super) enum Phase {
    /// The driver is not ready, or could not be served.
    Inactive,
    /// The device has the queues.
    Running,
    /// It still has, but does nothing.
    Paused,
    /// It will have them at the next resume, in these states.
    Restored(Vec<Option<QueueState>>),
}

impl Function {
    pub(super) fn new(device: Box<dyn VirtioDevice>, wiring: Wiring) -> Result<Self, Unfit> {
        let (id, queues) = (device.id(), device.queue_sizes().len());
        let unfit = Unfit { id, queues };
        if queues > layout::MOST_QUEUES || id > 0x3F {
            return Err(unfit);
        }
        let msix = Msix::new(layout::vectors(queues));
        let (config, capabilities) = layout::config_space(id, &msix, queues, Line::irq(wiring.slot)).ok_or(unfit)?;
        Ok(Self {
            registers: Registers::new(device.features(), device.queue_sizes(), msix.count()),
            interrupt: Arc::new(PciInterrupt::new(&wiring.interrupts, wiring.slot, msix.count(), queues)),
            bells: Bells::new(wiring.doorbells),
            device,
            memory: wiring.memory,
            at_power_on: config.clone(),
            config,
            capabilities,
            msix,
            phase: Phase::Inactive,
        })
    }

    pub(super) fn read_config(&mut self, offset: u16, data: &mut [u8]) {
        self.config.read(offset, data);
        if offset == self.capabilities.window + WINDOW_DATA
            && let Some(target) = self.window(data.len())
        {
            self.read_bar(target, data);
        }
    }

    pub(super) fn write_config(&mut self, offset: u16, data: &[u8]) -> Effect {
        if offset == self.capabilities.window + WINDOW_DATA {
            if let Some(target) = self.window(data.len()) {
                self.write_bar(target, data);
            }
            return Effect::Nothing;
        }
        let effect = self.config.write(offset, data);
        self.follow_config();
        effect
    }

    /// Carries out what configuration space says of interrupts.
    pub(super) fn follow_config(&mut self) {
        let mut control = [0; 2];
        self.config.read(self.capabilities.msix_control, &mut control);
        let changes = self.msix.set_control(u16::from_le_bytes(control));
        self.interrupt.vectors().connect(&changes);
        let is_intx_allowed = self.config.command() & command::INTX_DISABLE == 0;
        self.interrupt.set_kind(self.msix.is_enabled(), is_intx_allowed);
    }

    /// The offset in the BAR that the window shows, if the guest has made it one of `length`.
    fn window(&self, length: usize) -> Option<u64> {
        let mut fields = [0; 12];
        self.config.read(self.capabilities.window + WINDOW_BAR, &mut fields);
        let word = |at: usize| u32::from_le_bytes([fields[at], fields[at + 1], fields[at + 2], fields[at + 3]]);
        let (offset, wanted) = (word(4), word(8));
        let is_shown =
            fields[0] == layout::BAR && usize::try_from(wanted) == Ok(length) && offset.is_multiple_of(wanted);
        is_shown.then_some(offset.into())
    }

    pub(super) fn read_bar(&mut self, offset: u64, data: &mut [u8]) {
        let Some((region, offset)) = layout::region(offset, data.len()) else { return };
        match region {
            Region::Common => {
                let (generation, needs_reset) = (self.interrupt.generation(), self.interrupt.is_reset_needed());
                self.registers.read(offset, data, generation, needs_reset);
            }
            Region::Isr if offset == 0 => {
                data.fill(0);
                data[0] = self.interrupt.take_isr();
            }
            Region::Device => self.device.read_config(offset, data),
            Region::MsixTable => self.msix.read_table(offset, data),
            Region::MsixPending => {
                let vectors = self.interrupt.vectors();
                self.msix.read_pending(offset, data, |index| vectors.is_pending(index));
            }
            Region::Isr | Region::Notify => {}
        }
    }

    pub(super) fn write_bar(&mut self, offset: u64, data: &[u8]) {
        let Some((region, offset)) = layout::region(offset, data.len()) else { return };
        match region {
            Region::Common => self.write_register(offset, data),
            Region::Device => self.device.write_config(offset, data),
            // Fits: the page has no more than `MOST_QUEUES`.
            Region::Notify => self.bells.ring((offset / NOTIFY_STEP) as u16),
            Region::MsixTable => {
                let change = self.msix.write_table(offset, data);
                self.interrupt.vectors().connect(change.as_slice());
            }
            Region::Isr | Region::MsixPending => {}
        }
    }

    fn write_register(&mut self, offset: u64, data: &[u8]) {
        match self.registers.write(offset, data) {
            Action::Nothing => {}
            Action::Vectors => self.interrupt.follow(&self.registers),
            Action::Reset => self.reset(),
            Action::Activate => {
                self.interrupt.follow(&self.registers);
                let features = self.registers.features();
                let queues = self.registers.queues().iter();
                let states = queues.map(|queue| queue.is_enabled.then(|| queues::beginning(queue, features))).collect();
                if self.activate(states).is_err() {
                    self.interrupt.needs_reset();
                }
            }
        }
    }

    /// Hands the queues to the device.
    fn activate(&mut self, states: Vec<Option<QueueState>>) -> io::Result<()> {
        let activation = self.activation(states);
        let result = activation.and_then(|activation| self.device.activate(activation).map_err(io::Error::other));
        match &result {
            Ok(()) => {
                self.phase = Phase::Running;
                self.bells.hang_up();
            }
            Err(_) => {
                self.phase = Phase::Inactive;
                self.bells.clear();
            }
        }
        result
    }

    fn activation(&mut self, states: Vec<Option<QueueState>>) -> io::Result<Activation> {
        let mut queues = Vec::new();
        for (index, state) in (0..).zip(states) {
            queues.push(match state {
                None => None,
                Some(state) => {
                    let queue = queues::checked(state, &self.memory).ok_or_else(|| {
                        io::Error::new(io::ErrorKind::InvalidData, format!("queue {index} does not lie in RAM"))
                    })?;
                    Some(ReadyQueue { queue, notified: self.bells.add(index)? })
                }
            });
        }
        let interrupt = self.interrupt.clone();
        Ok(Activation { memory: self.memory.clone(), interrupt, queues, features: self.registers.features() })
    }

    /// The driver's reset: interrupts stay set up, which are PCI's matter.
    fn reset(&mut self) {
        self.device.reset();
        self.bells.clear();
        self.registers.reset();
        self.interrupt.reset();
        self.interrupt.follow(&self.registers);
        self.phase = Phase::Inactive;
    }

    /// The bus's reset.
    pub(super) fn power_on(&mut self) {
        self.reset();
        self.config = self.at_power_on.clone();
        self.msix = Msix::new(self.msix.count());
        self.interrupt.vectors().reset();
        self.follow_config();
    }

    pub(super) fn pause(&mut self) {
        self.device.pause();
        if matches!(self.phase, Phase::Running) {
            self.phase = Phase::Paused;
        }
    }

    pub(super) fn resume(&mut self) -> io::Result<()> {
        match std::mem::replace(&mut self.phase, Phase::Inactive) {
            Phase::Paused => {
                self.phase = Phase::Paused;
                self.device.resume().map_err(io::Error::other)?;
                self.phase = Phase::Running;
            }
            Phase::Restored(states) => {
                let used: Vec<_> = (0..).zip(&states).filter_map(|(i, state)| state.is_some().then_some(i)).collect();
                if let Err(error) = self.activate(states) {
                    // Its driver takes it to be at work.
                    self.interrupt.needs_reset();
                    return Err(error);
                }
                // What the driver has notified of before, nobody knows any more.
                used.into_iter().for_each(|queue| self.bells.ring(queue));
            }
            other => self.phase = other,
        }
        Ok(())
    }
}

impl Drop for Function {
    fn drop(&mut self) {
        self.device.reset();
    }
}
