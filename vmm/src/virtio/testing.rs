//! A driver for tests: rings in memory, buffers, and an interrupt that can be waited for.

use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use virtio_queue::{Queue, QueueState, QueueT};
use vm_memory::{Bytes, GuestAddress};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::device::{Activation, ReadyQueue, VirtioDevice};
use crate::interrupts::Interrupt;
use crate::memory::GuestMemory;

/// How long a device may take for anything.
const PATIENCE: Duration = Duration::from_secs(20);

/// Bytes of RAM: two regions that touch each other, then a hole.
pub const RAM: u64 = 8 << 20;

/// Guest RAM for a test.
pub fn memory() -> GuestMemory {
    let half = RAM as usize / 2;
    GuestMemory::from_ranges(&[(GuestAddress(0), half), (GuestAddress(half as u64), half)]).unwrap()
}

/// Remembers interrupts.
#[derive(Default)]
pub struct Recorder {
    seen: Mutex<Seen>,
    changed: Condvar,
}

/// What was interrupted for.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Seen {
    /// How often, by queue.
    pub queues: std::collections::BTreeMap<u16, usize>,
    /// How often for configuration.
    pub config: usize,
    /// Whether the device needs a reset.
    pub needs_reset: bool,
}

impl Recorder {
    /// What was seen until now.
    pub fn seen(&self) -> Seen {
        self.seen.lock().unwrap().clone()
    }

    /// Forgets what was seen.
    pub fn forget(&self) {
        *self.seen.lock().unwrap() = Seen::default();
    }

    fn note(&self, what: impl FnOnce(&mut Seen)) {
        what(&mut self.seen.lock().unwrap());
        self.changed.notify_all();
    }

    /// Waits until `condition` holds, looking after each interrupt and now and then.
    pub fn wait<T>(&self, what: &str, mut condition: impl FnMut(&Seen) -> Option<T>) -> T {
        let until = Instant::now() + PATIENCE;
        let mut seen = self.seen.lock().unwrap();
        loop {
            if let Some(value) = condition(&seen) {
                return value;
            }
            assert!(Instant::now() < until, "waited in vain: {what} (seen {seen:?})");
            seen = self.changed.wait_timeout(seen, Duration::from_millis(5)).unwrap().0;
        }
    }
}

impl Interrupt for Recorder {
    fn queue(&self, index: u16) {
        self.note(|seen| *seen.queues.entry(index).or_default() += 1);
    }

    fn config(&self) {
        self.note(|seen| seen.config += 1);
    }

    fn needs_reset(&self) {
        self.note(|seen| seen.needs_reset = true);
    }

    fn event(&self, _index: u16) -> Option<EventFd> {
        None
    }
}

/// One buffer of a chain.
#[derive(Debug, Clone, Copy)]
pub struct Piece {
    /// Guest address.
    pub address: u64,
    /// Bytes.
    pub length: u32,
    /// Whether the device writes it.
    pub is_writable: bool,
}

/// What the device reads.
pub fn input(address: u64, length: u32) -> Piece {
    Piece { address, length, is_writable: false }
}

/// What the device writes.
pub fn output(address: u64, length: u32) -> Piece {
    Piece { address, length, is_writable: true }
}

/// The driver's side of a queue.
pub struct Ring {
    /// RAM.
    pub memory: GuestMemory,
    base: u64,
    size: u16,
    next_descriptor: u16,
    available: u16,
    used: u16,
    notified: EventFd,
}

impl Ring {
    const DESCRIPTORS: u64 = 0;
    pub(super) const AVAILABLE: u64 = 0x4000;
    const USED: u64 = 0x5000;

    /// Bytes that a ring of up to 1024 descriptors takes.
    pub const SPACE: u64 = 0x8000;

    /// A ring at `base`.
    pub fn new(memory: &GuestMemory, base: u64, size: u16) -> Self {
        let notified = EventFd::new(EFD_NONBLOCK).unwrap();
        Self { memory: memory.clone(), base, size, next_descriptor: 0, available: 0, used: 0, notified }
    }

    /// The device's side, with EVENT_IDX or without, where it was.
    pub fn queue(&self, state: Option<QueueState>, event_idx: bool) -> ReadyQueue {
        let mut queue = Queue::new(self.size).unwrap();
        queue.set_desc_table_address(Some((self.base + Self::DESCRIPTORS) as u32), Some(0));
        queue.set_avail_ring_address(Some((self.base + Self::AVAILABLE) as u32), Some(0));
        queue.set_used_ring_address(Some((self.base + Self::USED) as u32), Some(0));
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        if let Some(state) = state {
            queue = Queue::try_from(state).unwrap();
        }
        assert!(queue.is_valid(&self.memory));
        ReadyQueue { queue, notified: self.notified.try_clone().unwrap() }
    }

    /// A ring that nobody has used yet.
    pub fn clear(&mut self) {
        (self.next_descriptor, self.available, self.used) = (0, 0, 0);
        self.put(self.base, &[0; Self::SPACE as usize]);
        let _ = self.notified.read();
    }

    /// Makes everything up to `index` available.
    pub fn jump(&mut self, index: u16) {
        self.available = index;
        self.put(self.base + Self::AVAILABLE + 2, &index.to_le_bytes());
    }

    /// Writes one descriptor.
    pub fn describe(&self, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        let at = self.base + Self::DESCRIPTORS + u64::from(index % self.size) * 16;
        self.put(at, &address.to_le_bytes());
        self.put(at + 8, &length.to_le_bytes());
        self.put(at + 12, &flags.to_le_bytes());
        self.put(at + 14, &next.to_le_bytes());
    }

    /// Makes a head available.
    pub fn offer(&mut self, head: u16) {
        self.put(self.base + Self::AVAILABLE + 4 + u64::from(self.available % self.size) * 2, &head.to_le_bytes());
        self.available = self.available.wrapping_add(1);
        self.put(self.base + Self::AVAILABLE + 2, &self.available.to_le_bytes());
    }

    /// Makes a chain available, and returns its head. Descriptors are taken in turn.
    pub fn add(&mut self, pieces: &[Piece]) -> u16 {
        let head = self.next_descriptor;
        for (place, piece) in pieces.iter().enumerate() {
            let index = self.next_descriptor;
            self.next_descriptor = (index + 1) % self.size;
            let has_next = place + 1 < pieces.len();
            let flags = u16::from(has_next) | u16::from(piece.is_writable) << 1;
            self.describe(index, piece.address, piece.length, flags, self.next_descriptor);
        }
        self.offer(head);
        head
    }

    /// Tells the device.
    pub fn kick(&self) {
        self.notified.write(1).unwrap();
    }

    /// The next chain that the device gave back: its head and how much was written.
    pub fn take(&mut self) -> Option<(u16, u32)> {
        let index = self.get::<2>(self.base + Self::USED + 2);
        if u16::from_le_bytes(index) == self.used {
            return None;
        }
        let at = self.base + Self::USED + 4 + u64::from(self.used % self.size) * 8;
        self.used = self.used.wrapping_add(1);
        // With EVENT_IDX: interrupt for the next one too.
        self.put(self.base + Self::AVAILABLE + 4 + u64::from(self.size) * 2, &self.used.to_le_bytes());
        Some((u32::from_le_bytes(self.get(at)) as u16, u32::from_le_bytes(self.get(at + 4))))
    }

    /// Waits for the next chain.
    pub fn wait(&mut self, recorder: &Recorder) -> (u16, u32) {
        recorder.wait("a used chain", |_| self.take())
    }

    /// Adds a chain, tells the device, and waits until that one is back; how much was written.
    pub fn exchange(&mut self, recorder: &Recorder, pieces: &[Piece]) -> u32 {
        let head = self.add(pieces);
        self.kick();
        let (used, written) = self.wait(recorder);
        assert_eq!(used, head);
        written
    }

    /// Writes to RAM.
    pub fn put(&self, address: u64, bytes: &[u8]) {
        self.memory.write_slice(bytes, GuestAddress(address)).unwrap();
    }

    /// Reads from RAM.
    pub fn get<const N: usize>(&self, address: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }

    /// Reads from RAM.
    pub fn bytes(&self, address: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        self.memory.read_slice(&mut bytes, GuestAddress(address)).unwrap();
        bytes
    }
}

/// A device with its driver.
pub struct Bench<D> {
    /// The device.
    pub device: D,
    /// Its queues.
    pub rings: Vec<Ring>,
    /// Its interrupts.
    pub recorder: Arc<Recorder>,
    /// Features in use.
    pub features: u64,
}

/// Where buffers may be: behind the rings.
pub const BUFFERS: u64 = 1 << 20;

impl<D: VirtioDevice> Bench<D> {
    /// Activates a device with all its queues and all its features but `without`.
    pub fn new(device: D, without: u64) -> Self {
        Self::with(device, memory(), without, &[])
    }

    /// The same, with queues where they were.
    pub fn with(device: D, memory: GuestMemory, without: u64, states: &[Option<QueueState>]) -> Self {
        let sizes = device.queue_sizes().to_vec();
        let rings = (0_u64..).zip(sizes).map(|(index, size)| Ring::new(&memory, index * Ring::SPACE, size)).collect();
        let features = device.features() & !without;
        let mut bench = Self { device, rings, recorder: Arc::default(), features };
        bench.activate(states);
        bench
    }

    /// The driver is ready.
    pub fn activate(&mut self, states: &[Option<QueueState>]) {
        let event_idx = self.features & 1 << 29 != 0;
        let queue = |(index, ring): (usize, &Ring)| Some(ring.queue(states.get(index).copied().flatten(), event_idx));
        let queues = self.rings.iter().enumerate().map(queue).collect();
        let memory = self.rings[0].memory.clone();
        let activation = Activation { memory, interrupt: self.recorder.clone(), queues, features: self.features };
        self.device.activate(activation).unwrap();
    }

    /// Adds a chain to a queue and waits until it is back.
    pub fn exchange(&mut self, queue: usize, pieces: &[Piece]) -> u32 {
        self.rings[queue].exchange(&self.recorder, pieces)
    }

    /// Device configuration.
    pub fn config<const N: usize>(&self, offset: u64) -> [u8; N] {
        let mut data = [0xff; N];
        self.device.read_config(offset, &mut data);
        data
    }
}
