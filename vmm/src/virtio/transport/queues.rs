//! From what a driver says of its queues to queues that can be used.

use virtio_queue::{Queue, QueueState, QueueT};

use super::registers::QueueRegisters;
use crate::memory::GuestMemory;

/// `VIRTIO_F_RING_EVENT_IDX`.
const EVENT_IDX: u64 = 1 << 29;

/// The state of a queue that begins.
pub(super) fn beginning(registers: &QueueRegisters, features: u64) -> QueueState {
    let [desc_table, avail_ring, used_ring] = registers.rings;
    QueueState {
        max_size: registers.max_size,
        next_avail: 0,
        next_used: 0,
        event_idx_enabled: features & EVENT_IDX != 0,
        size: registers.size,
        ready: true,
        desc_table,
        avail_ring,
        used_ring,
    }
}

/// The queue with this state; `None` when its rings are not aligned, or not wholly in RAM.
pub(super) fn checked(state: QueueState, memory: &GuestMemory) -> Option<Queue> {
    Queue::try_from(state).ok().filter(|queue| queue.is_valid(memory))
}

#[cfg(test)]
mod tests {
    use super::*;
    use vm_memory::GuestAddress;

    #[test]
    fn rings_lie_in_ram() {
        let memory = GuestMemory::from_ranges(&[(GuestAddress(0), 0x1_0000)]).unwrap();
        let registers = |rings| QueueRegisters { max_size: 256, size: 256, vector: 0, is_enabled: true, rings };
        let is_usable = |rings| checked(beginning(&registers(rings), EVENT_IDX), &memory).is_some();
        assert!(is_usable([0x1000, 0x2000, 0x3000]));
        assert!(is_usable([0xF000, 0x2000, 0x3000]), "up to the end");
        for rings in [
            [0xF010, 0x2000, 0x3000],
            [0x1000, 0xFF00, 0x3000],
            [0x1000, 0x2000, 0xFF00],
            [0x1008, 0x2000, 0x3000],
            [0x1000, 0x2001, 0x3000],
            [0x1000, 0x2000, 0x3002],
            [u64::MAX - 15, 0x2000, 0x3000],
            [0x1000, u64::MAX - 1, 0x3000],
            [0x1000, 0x2000, 0x1_0000_0000],
        ] {
            assert!(!is_usable(rings), "{rings:x?}");
        }
    }
}
