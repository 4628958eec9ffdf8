//! A queue as a device uses it: chains out, chains back, and as few notifications as possible.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering, fence};

use virtio_bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::virtio_ring::{VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC, VRING_AVAIL_F_NO_INTERRUPT};
use virtio_queue::{Queue, QueueOwnedT, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use super::chain::{Chain, Malformed};
use super::device::{ActivateError, Activation};
use crate::interrupts::Interrupt;
use crate::memory::GuestMemory;

/// Features of rings that every device here offers.
pub const RING_FEATURES: u64 =
    1 << VIRTIO_F_VERSION_1 | 1 << VIRTIO_RING_F_EVENT_IDX | 1 << VIRTIO_RING_F_INDIRECT_DESC;

/// A queue in use.
///
/// When the driver breaks its rules, the queue stops for good: the driver is told that the device needs a reset, and no
/// chain comes out of it any more.
pub struct DeviceQueue {
    index: u16,
    queue: Queue,
    notified: EventFd,
    memory: Arc<GuestMemory>,
    interrupt: Arc<dyn Interrupt>,
    /// One bit for each head that is with the device.
    in_flight: Vec<u64>,
    /// Up to where the driver was told of used chains.
    signalled: u16,
    is_broken: bool,
}

/// How often this process says why a queue broke. A guest may do it all day.
static COMPLAINTS_LEFT: AtomicU32 = AtomicU32::new(16);

impl DeviceQueue {
    /// Takes all queues of an activation, and the memory they are in. All of them must be there.
    ///
    /// # Errors
    /// When the driver did not enable one of the first `required`.
    pub fn take(activation: Activation, required: u16) -> Result<(Arc<GuestMemory>, Vec<Option<Self>>), ActivateError> {
        let Activation { memory, interrupt, queues, features: _ } = activation;
        if let Some(missing) = (0..required).find(|index| !matches!(queues.get(usize::from(*index)), Some(Some(_)))) {
            return Err(ActivateError::QueueMissing(missing));
        }
        let memory = Arc::new(memory);
        let queues = (0..).zip(queues).map(|(index, ready)| {
            ready.map(|ready| Self {
                index,
                in_flight: vec![0; usize::from(ready.queue.size()).div_ceil(64)],
                signalled: ready.queue.next_used(),
                queue: ready.queue,
                notified: ready.notified,
                memory: memory.clone(),
                interrupt: interrupt.clone(),
                is_broken: false,
            })
        });
        let queues = queues.collect();
        Ok((memory, queues))
    }

    /// Which queue of the device it is.
    #[must_use]
    pub fn index(&self) -> u16 {
        self.index
    }

    /// Descriptors in its table.
    #[must_use]
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The memory it is in.
    #[must_use]
    pub fn memory(&self) -> &Arc<GuestMemory> {
        &self.memory
    }

    /// Readable when the driver has notified.
    #[must_use]
    pub fn notified(&self) -> &EventFd {
        &self.notified
    }

    /// Where it is.
    #[must_use]
    pub fn state(&self) -> QueueState {
        self.queue.state()
    }

    /// Takes the next chain, reusing `chain`. `false` when there is none.
    pub fn pop(&mut self, chain: &mut Chain) -> bool {
        if self.is_broken {
            return false;
        }
        match self.try_pop(chain) {
            Ok(is_there) => is_there,
            Err(why) => {
                self.fail(why);
                false
            }
        }
    }

    /// Whether there is a next chain.
    #[must_use]
    pub fn has_more(&self) -> bool {
        let index = self.queue.avail_idx(&*self.memory, Ordering::Acquire);
        !self.is_broken && index.is_ok_and(|index| index.0 != self.queue.next_avail())
    }

    fn try_pop(&mut self, chain: &mut Chain) -> Result<bool, Malformed> {
        let size = self.queue.size();
        let memory: &GuestMemory = &self.memory;
        let mut available = self.queue.iter(memory).map_err(|_| Malformed::Ring)?;
        let Some(descriptors) = available.next() else { return Ok(false) };
        let head = descriptors.head_index();
        let read = if head >= size { Err(Malformed::Head(head)) } else { chain.read(head, size, descriptors, memory) };
        let (word, bit) = (usize::from(head / 64), 1 << (head % 64));
        let read = read.and_then(|()| match self.in_flight[word] & bit {
            0 => Ok(()),
            _ => Err(Malformed::InFlight(head)),
        });
        match read {
            Ok(()) => {
                self.in_flight[word] |= bit;
                Ok(true)
            }
            Err(why) => {
                // So that a saved queue still has it, and whoever restores it stops at it too.
                self.queue.go_to_previous_position();
                Err(why)
            }
        }
    }

    /// Puts back the chain that was taken last. Chains are put back in reverse order, before any other is given back
    /// that was taken later.
    pub fn put_back(&mut self, chain: &Chain) {
        self.landed(chain.head());
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back with `written` bytes in its writable buffers. The driver hears of it by
    /// [`DeviceQueue::signal`].
    pub fn complete(&mut self, head: u16, written: u32) {
        self.landed(head);
        if self.queue.add_used(&*self.memory, head, written).is_err() {
            self.fail(Malformed::Ring);
        }
    }

    /// Gives several chains back, each with how much was written, so that the driver sees all of them or none: pieces
    /// of one packet.
    pub fn complete_together(&mut self, chains: impl IntoIterator<Item = (u16, u32)>) {
        let mut chains = chains.into_iter().peekable();
        while let Some((head, written)) = chains.next() {
            if chains.peek().is_none() {
                // Only this moves the index that the driver looks at.
                return self.complete(head, written);
            }
            self.landed(head);
            let place = u64::from(self.queue.next_used() % self.queue.size());
            let element = [u32::from(head).to_le_bytes(), written.to_le_bytes()].concat();
            // The ring was checked to lie in RAM, below the end of addresses.
            let address = GuestAddress(self.queue.used_ring() + 4 + 8 * place);
            if self.memory.write_slice(&element, address).is_err() {
                return self.fail(Malformed::Ring);
            }
            self.queue.set_next_used(self.queue.next_used().wrapping_add(1));
        }
    }

    fn landed(&mut self, head: u16) {
        if let Some(word) = self.in_flight.get_mut(usize::from(head / 64)) {
            *word &= !(1 << (head % 64));
        }
    }

    /// Interrupts the driver if it wants to know of what was given back since the last time; whether it does.
    pub fn signal(&mut self) -> bool {
        let new = self.queue.next_used();
        let old = std::mem::replace(&mut self.signalled, new);
        let is_wanted = new != old && self.is_interrupt_wanted(old, new);
        if is_wanted {
            self.interrupt.queue(self.index);
        }
        is_wanted
    }

    /// Whether the driver wants to know of used chains from `old` to before `new` (2.7.7, 2.7.10).
    fn is_interrupt_wanted(&self, old: u16, new: u16) -> bool {
        // What was given back is visible before the driver's wish is read.
        fence(Ordering::SeqCst);
        let ring = self.queue.avail_ring();
        let read = |address| self.memory.load::<u16>(GuestAddress(address), Ordering::Relaxed).map(u16::from_le);
        if self.queue.event_idx_enabled() {
            let event = read(ring + 4 + 2 * u64::from(self.queue.size()));
            event.map_or(true, |event| new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old))
        } else {
            read(ring).map_or(true, |flags| u32::from(flags) & VRING_AVAIL_F_NO_INTERRUPT == 0)
        }
    }

    /// The rings, for somebody else who works on them.
    #[must_use]
    pub fn rings(&self) -> &Queue {
        &self.queue
    }

    /// Goes on where somebody else has left off, with nothing in flight.
    pub fn set_position(&mut self, available: u16) {
        let used = self.queue.used_idx(&*self.memory, Ordering::Acquire).map_or(available, |index| index.0);
        self.queue.set_next_avail(available);
        self.queue.set_next_used(used);
        self.signalled = used;
    }

    /// The way to interrupt for this queue.
    #[must_use]
    pub fn interrupt(&self) -> &Arc<dyn Interrupt> {
        &self.interrupt
    }

    /// Asks the driver not to notify while the device looks for itself anyway.
    pub fn suppress_notifications(&mut self) {
        // A hint: without it there are only more of them.
        let _ = self.queue.disable_notification(&*self.memory);
    }

    /// Asks for notifications again. `true` when something was added meanwhile, which none will come for.
    pub fn enable_notifications(&mut self) -> bool {
        !self.is_broken && self.queue.enable_notification(&*self.memory).unwrap_or(false)
    }

    /// Notifies itself, to go on after others had their turn.
    pub fn notify_self(&self) {
        // Fails only when the counter is full, and then it is readable.
        let _ = self.notified.write(1);
    }

    /// Stops for good: the driver has broken the rules.
    pub fn fail(&mut self, why: Malformed) {
        if !self.is_broken {
            self.is_broken = true;
            let left = COMPLAINTS_LEFT.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
            if left.is_ok() {
                eprintln!("virtio queue {}: {why}", self.index);
            }
            self.interrupt.needs_reset();
        }
    }
}

#[cfg(test)]
mod tests;
