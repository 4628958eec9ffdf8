//! Random numbers from the host's kernel (section 5.4), as fast as a guest can need them but no faster.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::rand::{GetRandomFlags, getrandom};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::QueueState;
use vmm_sys_util::epoll::EventSet;
use vmm_sys_util::timerfd::TimerFd;

use super::chain::{Chain, Malformed};
use super::config;
use super::device::{ActivateError, Activation, VirtioDevice};
use super::queue::{DeviceQueue, RING_FEATURES};
use super::worker::{Filter, Handler, Life, Poll};
use crate::counters::{Counts, Traffic};
use crate::memory::GuestMemory;
use crate::snapshot::{InvalidState, Saved, Unit};

/// Bytes that one request gets at most. Linux asks for less than 100 at a time.
const MOST: usize = 4096;

/// Bytes that any request counts for at least: small ones have their price too.
const LEAST: usize = 64;

/// Bytes a second, and how many of them at once.
const RATE: usize = 4 << 20;
const BURST: usize = 256 << 10;

/// How long the device rests when that is used up.
const REST: Duration = Duration::from_millis(20);

/// Token of the end of the rest.
const RESTED: u64 = 1 << 32;

const QUEUE_SIZES: [u16; 1] = [64];
const NAME: &str = "vse-rng";

/// A source of random numbers.
pub struct Rng {
    traffic: Arc<Traffic>,
    life: Life<RngHandler>,
}

impl Rng {
    /// Its thread is confined by `filter`.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn new(filter: Filter) -> io::Result<Self> {
        Ok(Self { traffic: Arc::default(), life: Life::new(NAME, filter)? })
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> u16 {
        VIRTIO_ID_RNG as u16
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        RING_FEATURES
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let (memory, mut queues) = DeviceQueue::take(activation, 1)?;
        let queue = queues.swap_remove(0).ok_or(ActivateError::QueueMissing(0))?;
        let traffic = self.traffic.clone();
        self.life.activate(RngHandler { memory, queue, timer: None, left: BURST, refilled: Instant::now(), traffic })
    }

    fn pause(&mut self) {
        self.life.pause();
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        self.life.resume()
    }

    fn reset(&mut self) {
        self.life.reset();
    }

    fn queue_states(&self) -> Vec<Option<QueueState>> {
        self.life.queue_states()
    }

    fn counters(&self) -> Counts {
        self.traffic.of_storage()
    }

    fn save(&self) -> Saved {
        Saved::Stateless
    }

    fn restore(&mut self, unit: &Unit) -> Result<(), InvalidState> {
        config::no_state("virtio-rng", unit)
    }
}

struct RngHandler {
    memory: Arc<GuestMemory>,
    queue: DeviceQueue,
    /// There while the thread runs.
    timer: Option<TimerFd>,
    /// Bytes that may be given now.
    left: usize,
    refilled: Instant,
    traffic: Arc<Traffic>,
}

impl RngHandler {
    fn serve(&mut self) {
        let mut chain = Chain::default();
        self.refill();
        loop {
            self.queue.suppress_notifications();
            while self.left > 0 && self.queue.pop(&mut chain) {
                self.fill(&chain);
            }
            self.queue.signal();
            if self.left == 0 {
                // If it failed, the driver's next notification would do.
                let _ = self.timer.as_mut().map(|timer| timer.reset(REST, None));
                return;
            }
            if !self.queue.enable_notifications() {
                return;
            }
        }
    }

    fn fill(&mut self, chain: &Chain) {
        let wanted = chain.writable().len().min(MOST as u64) as usize;
        let mut bytes = [0; MOST];
        let got = getrandom(&mut bytes[..wanted], GetRandomFlags::empty()).unwrap_or(0);
        if got == 0 {
            return self.queue.fail(Malformed::Shape);
        }
        let written = chain.writable().write(&self.memory, &bytes[..got]);
        self.left = self.left.saturating_sub(written.max(LEAST));
        self.traffic.to_guest.add(written as u64);
        self.queue.complete(chain.head(), written as u32);
    }

    fn refill(&mut self) {
        let now = Instant::now();
        let earned = (now - self.refilled).as_millis() * RATE as u128 / 1000;
        if earned > 0 {
            self.left = (self.left as u128 + earned).min(BURST as u128) as usize;
            self.refilled = now;
        }
    }
}

impl Handler for RngHandler {
    fn start(&mut self, poll: &Poll) -> io::Result<()> {
        poll.add_queues([&self.queue])?;
        poll.add(self.timer.insert(TimerFd::new()?), EventSet::IN, RESTED)?;
        self.serve();
        Ok(())
    }

    fn ready(&mut self, token: u64, _events: EventSet, _poll: &Poll) {
        // Readable means that there is a count; it is not of interest.
        if token == RESTED {
            let _ = self.timer.as_mut().map(TimerFd::wait);
        } else {
            let _ = self.queue.notified().read();
        }
        self.serve();
    }

    fn stop(&mut self) {
        self.timer = None;
    }

    fn queues(&self) -> Vec<Option<&DeviceQueue>> {
        vec![Some(&self.queue)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::{BUFFERS, Bench, input, output};

    #[test]
    fn numbers_differ_and_fill_what_is_asked_for() {
        let mut bench = Bench::new(Rng::new(None).unwrap(), 0);
        assert_eq!(bench.exchange(0, &[output(BUFFERS, 100), output(BUFFERS + 0x1000, 100)]), 200);
        let first = bench.rings[0].bytes(BUFFERS, 100);
        assert_eq!(bench.exchange(0, &[output(BUFFERS, 100)]), 100);
        assert_ne!(bench.rings[0].bytes(BUFFERS, 100), first);
        assert_eq!(bench.exchange(0, &[output(BUFFERS, 1 << 20)]), MOST as u32);
        assert_eq!(bench.device.counters()[..2], [("read_bytes", 300 + MOST as u64), ("read_ops", 3)]);
        bench.rings[0].add(&[input(BUFFERS, 10)]);
        bench.rings[0].kick();
        bench.recorder.wait("a reset asked for", |seen| seen.needs_reset.then_some(()));
    }

    #[test]
    fn a_greedy_guest_waits_and_is_served_across_a_pause() {
        let mut bench = Bench::new(Rng::new(None).unwrap(), 0);
        let start = Instant::now();
        let requests = 2 * BURST / MOST;
        for request in 0..requests {
            if request % 16 == 0 {
                bench.device.pause();
                let state = bench.device.queue_states()[0].unwrap();
                assert_eq!(state.next_avail, state.next_used);
                bench.device.resume().unwrap();
            }
            assert_eq!(bench.exchange(0, &[output(BUFFERS, MOST as u32)]), MOST as u32);
        }
        let least = Duration::from_secs_f64((requests * MOST - BURST) as f64 / RATE as f64);
        assert!(start.elapsed() >= least, "{:?} for {requests} requests, at least {least:?}", start.elapsed());
    }
}
