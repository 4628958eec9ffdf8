//! A virtio-pci function in a snapshot: the transport's state, and in it the device's.

use serde::{Deserialize, Serialize};
use virtio_queue::QueueState;

use super::function::{Function, Phase};
use super::registers::{QueueRegisters, SavedRegisters};
use super::{Wiring, queues};
use crate::pci::SavedMsix;
use crate::snapshot::{InvalidState, Saved, Unit};
use crate::virtio::VirtioDevice;

const KIND: &str = "virtio-pci";
const VERSION: u16 = 2;

#[derive(Serialize, Deserialize)]
struct State {
    /// So that one device's state is not taken for another's.
    device_id: u16,
    config: Vec<u8>,
    msix: SavedMsix,
    /// Vectors that were triggered while masked.
    pending: Vec<u16>,
    registers: SavedRegisters,
    isr: u8,
    generation: u8,
    needs_reset: bool,
    /// By index; `None` altogether when the device was not active.
    queues: Option<Vec<Option<SavedQueue>>>,
    /// The device's own; `None` when it has none.
    device: Option<Unit>,
}

/// Where a queue is, its configuration included: it was frozen when the device was activated.
#[derive(Serialize, Deserialize)]
struct SavedQueue {
    max_size: u16,
    size: u16,
    next_avail: u16,
    next_used: u16,
    event_idx: bool,
    desc_table: u64,
    avail_ring: u64,
    used_ring: u64,
}

impl From<QueueState> for SavedQueue {
    fn from(state: QueueState) -> Self {
        let QueueState { max_size, next_avail, next_used, event_idx_enabled, size, ready: _, .. } = state;
        let QueueState { desc_table, avail_ring, used_ring, .. } = state;
        Self { max_size, size, next_avail, next_used, event_idx: event_idx_enabled, desc_table, avail_ring, used_ring }
    }
}

impl From<SavedQueue> for QueueState {
    fn from(saved: SavedQueue) -> Self {
        let SavedQueue { max_size, size, next_avail, next_used, event_idx, desc_table, avail_ring, used_ring } = saved;
        let event_idx_enabled = event_idx;
        Self {
            max_size,
            next_avail,
            next_used,
            event_idx_enabled,
            size,
            ready: true,
            desc_table,
            avail_ring,
            used_ring,
        }
    }
}

impl Function {
    pub(super) fn save(&self) -> Saved {
        let device = match self.device.save() {
            Saved::Stateless => None,
            Saved::State(unit) => Some(unit),
            Saved::Unsupported(why) => return Saved::Unsupported(why),
        };
        let queues = match &self.phase {
            Phase::Inactive => None,
            Phase::Restored(states) => Some(states.clone()),
            Phase::Paused => Some(self.device.queue_states()),
            Phase::Running => return Saved::Unsupported("a running device has no state that holds still"),
        };
        let vectors = self.interrupt.vectors();
        let state = State {
            device_id: self.device.id(),
            config: self.config.saved(),
            msix: self.msix.saved(),
            pending: (0..self.msix.count()).filter(|&index| vectors.is_pending(index)).collect(),
            registers: self.registers.saved(),
            isr: self.interrupt.isr(),
            generation: self.interrupt.generation(),
            needs_reset: self.interrupt.is_reset_needed(),
            queues: queues.map(|states| states.into_iter().map(|state| state.map(Into::into)).collect()),
            device,
        };
        Saved::State(Unit::pack(KIND, VERSION, &state))
    }

    pub(super) fn restore(device: Box<dyn VirtioDevice>, wiring: Wiring, unit: &Unit) -> Result<Self, InvalidState> {
        let damaged = |reason: &str| InvalidState::Damaged { kind: KIND, reason: reason.to_owned() };
        let state: State = unit.unpack(KIND, VERSION)?;
        let mut function = Self::new(device, wiring).map_err(|unfit| damaged(&unfit.to_string()))?;
        if state.device_id != function.device.id() || !function.config.restore(&state.config) {
            return Err(damaged("configuration space of another device"));
        }
        if !function.msix.restore(&state.msix) {
            return Err(damaged("another number of vectors"));
        }
        function.registers.restore(&state.registers).map_err(damaged)?;
        match (&state.device, function.device.save()) {
            (Some(unit), _) => function.device.restore(unit)?,
            (None, Saved::State(_)) => return Err(damaged("the device's own state is missing")),
            (None, _) => {}
        }
        if let Some(saved) = state.queues {
            let states: Vec<_> = saved.into_iter().map(|queue| queue.map(QueueState::from)).collect();
            if !function.could_have(&states) {
                return Err(damaged("queues in use that the driver has not set up"));
            }
            function.phase = Phase::Restored(states);
        }
        function.interrupt.follow(&function.registers);
        function.interrupt.restore(state.isr, state.generation, state.needs_reset);
        function.interrupt.vectors().connect(&function.msix.delivered());
        function.follow_config();
        state.pending.into_iter().for_each(|index| function.interrupt.vectors().trigger(index));
        Ok(function)
    }

    /// Whether a driver that set the registers to what they are could have queues in these states.
    fn could_have(&self, states: &[Option<QueueState>]) -> bool {
        let (registers, features) = (self.registers.queues(), self.registers.features());
        let fits = |(queue, state): (&QueueRegisters, &Option<QueueState>)| match state {
            None => true,
            Some(QueueState { next_avail, next_used, .. }) => {
                let (next_avail, next_used) = (*next_avail, *next_used);
                let expected = QueueState { next_avail, next_used, ..queues::beginning(queue, features) };
                queue.is_enabled && *state == Some(expected)
            }
        };
        self.registers.is_ready() && states.len() == registers.len() && registers.iter().zip(states).all(fits)
    }
}
