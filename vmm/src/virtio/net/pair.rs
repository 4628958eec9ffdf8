//! Packets between one tap and one pair of queues, straight from and to guest RAM.

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsFd;
use std::sync::Arc;

use super::tap::{HEADER, Tap};
use crate::counters::Traffic;
use crate::memory::GuestMemory;
use crate::virtio::chain::{Chain, Malformed};
use crate::virtio::queue::DeviceQueue;
use crate::virtio::transfer::Iovecs;

/// Packets in a row before others have their turn.
const TURN: usize = 128;

/// Where in the header the number of buffers is.
const NUM_BUFFERS: u64 = 10;

/// How packets to the guest are.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    /// One packet may take several chains (`MRG_RXBUF`).
    pub is_mergeable: bool,
    /// Bytes of the largest, header and all.
    pub largest: u64,
}

/// A tap and its queues.
pub struct Pair {
    receive: DeviceQueue,
    transmit: DeviceQueue,
    memory: Arc<GuestMemory>,
    shape: Shape,
    /// Room for packets, taken out of the ring ahead of them.
    room: VecDeque<Chain>,
    /// Bytes of it.
    room_length: u64,
    /// Chains to use again.
    spare: Vec<Chain>,
    iovecs: Iovecs,
    /// Of all pairs of the device; bytes are those of frames, without the header.
    traffic: Arc<Traffic>,
}

impl Pair {
    /// Two queues of a driver that agreed on packets of this shape.
    pub fn new(receive: DeviceQueue, transmit: DeviceQueue, shape: Shape, traffic: Arc<Traffic>) -> Self {
        let memory = receive.memory().clone();
        Self {
            receive,
            transmit,
            memory,
            shape,
            room: VecDeque::new(),
            room_length: 0,
            spare: Vec::new(),
            iovecs: Iovecs::default(),
            traffic,
        }
    }

    /// Its queues: for packets to the guest, and from it.
    pub fn queues(&self) -> [&DeviceQueue; 2] {
        [&self.receive, &self.transmit]
    }

    /// Moves packets to the guest while there are some, and room for them.
    pub fn receive(&mut self, tap: &Tap) {
        self.receive.suppress_notifications();
        let mut left = TURN;
        while left > 0 && self.has_room() {
            match self.receive_one(tap) {
                Ok(()) => left -= 1,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Nothing there, or an interface that is down; the tap tells of what comes.
                Err(_) => break,
            }
        }
        self.receive.signal();
        if left == 0 {
            self.receive.notify_self();
        }
    }

    /// Whether the largest packet fits into what the driver has made available. If not, its next notification comes.
    fn has_room(&mut self) -> bool {
        loop {
            while !self.is_room_enough() && self.take_room() {}
            if self.is_room_enough() {
                return true;
            }
            if !self.receive.enable_notifications() {
                return false;
            }
        }
    }

    fn is_room_enough(&self) -> bool {
        // A ring that is too small for the largest packet has to do when all of it is here.
        let is_all = self.room.len() >= usize::from(self.receive.size());
        let is_enough = !self.shape.is_mergeable || self.room_length >= self.shape.largest || is_all;
        !self.room.is_empty() && is_enough
    }

    fn take_room(&mut self) -> bool {
        let mut chain = self.spare.pop().unwrap_or_default();
        if !self.receive.pop(&mut chain) {
            self.spare.push(chain);
            return false;
        }
        let length = chain.writable().len();
        if length < HEADER as u64 {
            self.receive.fail(Malformed::Shape);
            return false;
        }
        self.room_length += length;
        self.room.push_back(chain);
        true
    }

    fn receive_one(&mut self, tap: &Tap) -> io::Result<()> {
        let chains = if self.shape.is_mergeable { self.room.len() } else { 1 };
        let buffers = self.room.iter().take(chains).map(Chain::writable);
        let length = self.iovecs.of(&self.memory, buffers).read_from(tap.as_fd())?;
        if length < HEADER {
            return Err(io::ErrorKind::InvalidData.into());
        }
        self.traffic.to_guest.add((length - HEADER) as u64);
        let mut left = length as u64;
        let mut used = 0;
        while left > 0 {
            left = left.saturating_sub(self.room.get(used).map_or(left, |chain| chain.writable().len()));
            used += 1;
        }
        if let Some(first) = self.room.front() {
            let count = (used as u16).to_le_bytes();
            first.writable().split_at(NUM_BUFFERS).1.write(&self.memory, &count);
        }
        let mut left = length as u64;
        let chains = self.room.iter().take(used).map(|chain| {
            let here = left.min(chain.writable().len());
            left -= here;
            (chain.head(), here as u32)
        });
        self.receive.complete_together(chains);
        for chain in self.room.drain(..used) {
            self.room_length -= chain.writable().len();
            self.spare.push(chain);
        }
        Ok(())
    }

    /// Moves packets from the guest while there are some, and the tap takes them.
    pub fn transmit(&mut self, tap: &Tap) {
        let mut chain = self.spare.pop().unwrap_or_default();
        let mut left = TURN;
        loop {
            self.transmit.suppress_notifications();
            let mut is_tap_full = false;
            while left > 0 && self.transmit.pop(&mut chain) {
                match self.iovecs.of(&self.memory, [chain.readable()]).write_to(tap.as_fd()) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                        self.transmit.put_back(&chain);
                        is_tap_full = true;
                        break;
                    }
                    // What the host can't make sense of is lost, as on any network.
                    sent => {
                        if let Ok(sent) = sent {
                            self.traffic.from_guest.add(sent.saturating_sub(HEADER) as u64);
                        }
                        self.transmit.complete(chain.head(), 0);
                    }
                }
                left -= 1;
            }
            self.transmit.signal();
            if left == 0 {
                self.transmit.notify_self();
            }
            // The tap tells when it takes more.
            if left == 0 || is_tap_full || !self.transmit.enable_notifications() {
                break;
            }
        }
        self.spare.push(chain);
    }

    /// Takes back what was done ahead.
    pub fn stop(&mut self) {
        while let Some(chain) = self.room.pop_back() {
            self.receive.put_back(&chain);
        }
        self.room_length = 0;
    }
}
