//! The thread of a block device: requests out of the queues, to the disk, and back.

use std::io;
use std::sync::Arc;
use std::time::Instant;

use virtio_bindings::virtio_blk::{VIRTIO_BLK_S_IOERR, VIRTIO_BLK_S_OK, VIRTIO_BLK_S_UNSUPP};
use vmm_sys_util::epoll::EventSet;

use super::disk::{Direction, Disk, PUNCH, ZERO};
use super::patience::Patience;
use super::request::{Extent, Parts, Refused, Request, SERIAL, parse};
use super::ring::{DEPTH, Kinds, Ring};
use crate::counters::Traffic;
use crate::memory::GuestMemory;
use crate::virtio::chain::{Buffers, Chain};
use crate::virtio::queue::DeviceQueue;
use crate::virtio::transfer::Iovecs;
use crate::virtio::worker::{Handler, Poll};

/// Token of the ring; below it are those of queues.
const RING: u64 = 1 << 32;

/// Requests of one queue in a row before the others have their turn.
const TURN: usize = 64;

/// Turns of all queues in a row before this thread looks what else is wanted of it.
const TURNS: usize = 16;

/// Most that are answered before a driver is told.
const MOST_HELD: usize = 64;

/// What the thread owns.
pub struct BlockHandler {
    disk: Arc<Disk>,
    serial: [u8; SERIAL],
    memory: Arc<GuestMemory>,
    queues: Vec<Option<DeviceQueue>>,
    /// Flags of every write: durable at once for drivers that know no flush.
    write_flags: i32,
    kinds: Kinds,
    /// There while the thread runs, if the kernel has one for us.
    ring: Option<Ring>,
    /// What is under way; a slot's index is its number in the ring.
    slots: Vec<Slot>,
    free: Vec<usize>,
    /// For what is done without the ring.
    iovecs: Iovecs,
    /// A queue was left because no slot was free.
    is_stalled: bool,
    /// Answered, of which drivers weren't told yet.
    held: usize,
    patience: Patience,
    traffic: Arc<Traffic>,
}

/// A request under way.
#[derive(Default)]
struct Slot {
    queue: usize,
    chain: Chain,
    request: Option<Request>,
}

impl BlockHandler {
    /// The queues of a driver at work on this disk.
    pub fn new(
        disk: Arc<Disk>,
        serial: [u8; SERIAL],
        memory: Arc<GuestMemory>,
        queues: Vec<Option<DeviceQueue>>,
        write_flags: i32,
        kinds: Kinds,
        traffic: Arc<Traffic>,
    ) -> Self {
        Self {
            disk,
            serial,
            memory,
            queues,
            write_flags,
            kinds,
            ring: None,
            slots: Vec::new(),
            free: Vec::new(),
            iovecs: Iovecs::default(),
            is_stalled: false,
            held: 0,
            patience: Patience::default(),
            traffic,
        }
    }

    /// Serves all queues, for they share the ring, until they are empty or no more can be under way.
    fn serve(&mut self) {
        for _ in 0..TURNS {
            self.is_stalled = false;
            for index in 0..self.queues.len() {
                self.take_turn(index);
            }
            self.reap();
            // What came meanwhile goes first: one interrupt for both. Without the ring it might take long.
            let may_hold = self.ring.is_some() && !self.is_stalled && self.held < MOST_HELD;
            if may_hold && (self.has_more() || self.waits_for_more()) {
                continue;
            }
            self.signal_all();
            if self.is_stalled && self.free.is_empty() && self.ring.is_some() {
                // What is done next makes room.
                return;
            }
            let has_more = |more, queue: &mut DeviceQueue| queue.enable_notifications() | more;
            if !self.queues.iter_mut().flatten().fold(false, has_more) {
                return;
            }
        }
        self.signal_all();
        // Whoever else wants this thread has a turn.
        if let Some(queue) = self.queues.iter().flatten().next() {
            queue.notify_self();
        }
    }

    fn has_more(&self) -> bool {
        self.queues.iter().flatten().any(DeviceQueue::has_more)
    }

    /// Waits a moment before drivers are told what is done; whether there is more by then.
    fn waits_for_more(&mut self) -> bool {
        if self.held == 0 {
            return false;
        }
        let Some(limit) = self.patience.limit() else { return false };
        let start = Instant::now();
        let came = loop {
            if self.has_more() {
                break true;
            }
            if start.elapsed() >= limit {
                break false;
            }
            std::hint::spin_loop();
        };
        self.patience.waited(came);
        came
    }

    fn take_turn(&mut self, index: usize) {
        let Some(Some(queue)) = self.queues.get_mut(index) else { return };
        queue.suppress_notifications();
        for _ in 0..TURN {
            if !self.take(index) {
                return;
            }
        }
    }

    /// Takes one request. `false` when there is none, or no room for it.
    fn take(&mut self, index: usize) -> bool {
        let Some(Some(queue)) = self.queues.get_mut(index) else { return false };
        let number = match self.free.pop() {
            Some(number) => number,
            None if self.slots.len() < DEPTH as usize => {
                self.slots.push(Slot::default());
                self.slots.len() - 1
            }
            None => {
                self.is_stalled = true;
                return false;
            }
        };
        let slot = &mut self.slots[number];
        if !queue.pop(&mut slot.chain) {
            self.free.push(number);
            return false;
        }
        slot.queue = index;
        let parsed = match Parts::of(&slot.chain) {
            Ok(parts) => parse(&parts, &self.memory, &self.disk.rules),
            Err(why) => {
                queue.fail(why);
                self.free.push(number);
                return false;
            }
        };
        match parsed {
            Ok(request) => self.begin(number, request),
            Err(Refused::Invalid) => self.finish(number, VIRTIO_BLK_S_IOERR, 0),
            Err(Refused::Unsupported) => self.finish(number, VIRTIO_BLK_S_UNSUPP, 0),
        }
        true
    }

    fn begin(&mut self, number: usize, request: Request) {
        let slot = &mut self.slots[number];
        slot.request = Some(request);
        let Ok(parts) = Parts::of(&slot.chain) else { return };
        if request == Request::Id {
            let written = parts.output.write(&self.memory, &self.serial);
            return self.finish(number, VIRTIO_BLK_S_OK, written as u64);
        }
        let alignment = self.disk.memory_alignment;
        let is_begun = self.ring.as_mut().is_some_and(|ring| match request {
            Request::Read(Extent { offset, .. }) => {
                ring.transfer(number, Direction::Read, offset, parts.output, alignment)
            }
            Request::Write(Extent { offset, .. }) => {
                ring.transfer(number, Direction::Write(self.write_flags), offset, parts.input, alignment)
            }
            // Durable at once too, which takes a flush.
            Request::Discard(_) | Request::Zero(..) if self.write_flags != 0 => false,
            Request::Discard(extent) | Request::Zero(extent, true) => ring.fallocate(number, extent, PUNCH),
            Request::Zero(extent, false) => ring.fallocate(number, extent, ZERO),
            Request::Flush | Request::Id => ring.flush(number),
        });
        if !is_begun {
            let mut done = self.disk.manage(&request);
            if self.write_flags != 0 && matches!(request, Request::Discard(_) | Request::Zero(..)) {
                done = done.and_then(|()| self.disk.manage(&Request::Flush));
            }
            self.conclude(number, done.map(|()| 0));
        }
    }

    /// Answers a request of which `done` bytes were moved, after the others.
    fn conclude(&mut self, number: usize, done: io::Result<usize>) {
        let slot = &mut self.slots[number];
        let (Some(request), Ok(parts)) = (slot.request, Parts::of(&slot.chain)) else { return };
        let mut rest = |direction, extent: Extent, buffers: Buffers<'_>, done: usize| {
            let rest = buffers.split_at(done as u64).1;
            self.disk.transfer(direction, extent.offset + done as u64, rest, &self.memory, &mut self.iovecs)
        };
        let result = done.and_then(|done| match request {
            Request::Read(extent) => rest(Direction::Read, extent, parts.output, done),
            Request::Write(extent) => rest(Direction::Write(self.write_flags), extent, parts.input, done),
            Request::Flush | Request::Id | Request::Discard(_) | Request::Zero(..) => Ok(()),
        });
        let output = if matches!(request, Request::Read(_)) { parts.output.len() } else { 0 };
        match result {
            Ok(()) => {
                match request {
                    Request::Read(extent) => self.traffic.to_guest.add(extent.length),
                    Request::Write(extent) => self.traffic.from_guest.add(extent.length),
                    Request::Flush | Request::Id | Request::Discard(_) | Request::Zero(..) => {}
                }
                self.finish(number, VIRTIO_BLK_S_OK, output);
            }
            Err(error) if error.raw_os_error() == Some(libc::EOPNOTSUPP) => {
                self.finish(number, VIRTIO_BLK_S_UNSUPP, 0);
            }
            Err(_) => self.finish(number, VIRTIO_BLK_S_IOERR, 0),
        }
    }

    fn finish(&mut self, number: usize, status: u32, output: u64) {
        let slot = &mut self.slots[number];
        slot.request = None;
        if let Ok(parts) = Parts::of(&slot.chain) {
            parts.status.write(&self.memory, &[status as u8]);
        }
        if let Some(Some(queue)) = self.queues.get_mut(slot.queue) {
            // A chain has at most 2^32 bytes, all of them counted.
            queue.complete(slot.chain.head(), (output + 1).min(u64::from(u32::MAX)) as u32);
            self.held += 1;
        }
        self.free.push(number);
    }

    /// Hands what was taken to the kernel, and answers what is done already.
    fn reap(&mut self) {
        if let Some(ring) = &mut self.ring {
            ring.submit(false);
        }
        while let Some((number, done)) = self.ring.as_mut().and_then(Ring::next_done) {
            let done = done.or_else(|error| match (error.kind(), self.slots[number].request) {
                // Not begun after all.
                (io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock, Some(request)) => {
                    self.disk.manage(&request).map(|()| 0)
                }
                _ => Err(error),
            });
            self.conclude(number, done);
        }
    }

    fn signal_all(&mut self) {
        self.held = 0;
        let start = Instant::now();
        let sent = self.queues.iter_mut().flatten().fold(0, |sent, queue| sent + u32::from(queue.signal()));
        if let Some(took) = start.elapsed().checked_div(sent) {
            self.patience.sent(took);
        }
    }
}

impl Handler for BlockHandler {
    fn start(&mut self, poll: &Poll) -> io::Result<()> {
        poll.add_queues(self.queues.iter().flatten())?;
        // Without a ring, requests are done one after the other.
        self.ring = Ring::new(&self.disk, self.kinds, self.memory.clone());
        if let Some(ring) = &self.ring {
            poll.add(ring, EventSet::IN, RING)?;
        }
        self.serve();
        Ok(())
    }

    fn ready(&mut self, token: u64, _events: EventSet, _poll: &Poll) {
        if token == RING {
            self.ring.as_mut().map(Ring::acknowledge);
            self.reap();
        } else if let Some(Some(queue)) = self.queues.get(token as usize) {
            // Readable means that it has a count; it is not of interest.
            let _ = queue.notified().read();
        }
        self.serve();
    }

    fn stop(&mut self) {
        while let Some(ring) = self.ring.as_mut().filter(|ring| !ring.is_idle()) {
            ring.submit(true);
            self.reap();
        }
        self.signal_all();
        self.ring = None;
    }

    fn queues(&self) -> Vec<Option<&DeviceQueue>> {
        self.queues.iter().map(Option::as_ref).collect()
    }
}
