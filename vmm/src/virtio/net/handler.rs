//! The thread of a network device.

use std::io;

use virtio_bindings::virtio_net::{VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET, VIRTIO_NET_ERR, VIRTIO_NET_OK};
use vmm_sys_util::epoll::EventSet;

use super::kernel::KernelPair;
use super::pair::Pair;
use super::tap::Tap;
use crate::virtio::chain::Chain;
use crate::virtio::queue::DeviceQueue;
use crate::virtio::vhost::Relay;
use crate::virtio::worker::{Handler, Poll};

/// Tokens of taps, and of interrupts that come by this process; below them are those of queues.
const TAP: u64 = 1 << 32;
const RELAY: u64 = 2 << 32;

/// Commands in a row before packets have their turn.
const TURN: usize = 16;

/// Who moves a pair's packets.
pub enum Path {
    /// This thread.
    Here(Pair),
    /// The kernel.
    Kernel(KernelPair),
    /// Nobody: the driver uses fewer pairs.
    Unused,
}

/// What the thread owns.
pub struct NetHandler {
    /// One for each pair.
    pub taps: Vec<Tap>,
    /// By pair; there are as many as taps.
    pub paths: Vec<Path>,
    /// What the taps may leave to the guest (`TUN_F_*`).
    pub offload: u32,
    /// Where the driver chooses how many pairs it uses.
    pub control: Option<DeviceQueue>,
    /// How many it does use.
    pub active: u16,
    /// Interrupts of the kernel's that have no vector.
    pub relay: Relay,
}

impl NetHandler {
    /// Moves the packets of one pair, both ways.
    fn serve(&mut self, pair: usize) {
        if let (Some(Path::Here(path)), Some(tap)) = (self.paths.get_mut(pair), self.taps.get(pair)) {
            path.transmit(tap);
            path.receive(tap);
        }
    }

    fn queue(&self, index: u64) -> Option<&DeviceQueue> {
        let control = self.control.as_ref().filter(|queue| u64::from(queue.index()) == index);
        control.or_else(|| match self.paths.get(index as usize / 2)? {
            Path::Here(pair) => Some(pair.queues()[index as usize % 2]),
            Path::Kernel(pair) => Some(pair.queues()[index as usize % 2]),
            Path::Unused => None,
        })
    }

    fn serve_queue(&mut self, index: u64) {
        if let Some(queue) = self.queue(index) {
            // Readable means that it has a count; it is not of interest.
            let _ = queue.notified().read();
        }
        if self.control.as_ref().is_some_and(|queue| u64::from(queue.index()) == index) {
            return self.serve_control();
        }
        let pair = index as usize / 2;
        if let (Some(Path::Here(path)), Some(tap)) = (self.paths.get_mut(pair), self.taps.get(pair)) {
            if index.is_multiple_of(2) { path.receive(tap) } else { path.transmit(tap) }
        }
    }

    fn serve_control(&mut self) {
        let Some(mut queue) = self.control.take() else { return };
        let mut chain = Chain::default();
        let mut left = TURN;
        loop {
            while left > 0 && queue.pop(&mut chain) {
                left -= 1;
                let answer = if self.obey(&queue, &chain) { VIRTIO_NET_OK } else { VIRTIO_NET_ERR };
                let written = chain.writable().write(queue.memory(), &[answer as u8]);
                queue.complete(chain.head(), written as u32);
            }
            queue.signal();
            if left == 0 {
                queue.notify_self();
            }
            if left == 0 || !queue.enable_notifications() {
                break;
            }
        }
        self.control = Some(queue);
    }

    /// Does what the driver asks for (5.1.6.5); `false` when it can't be done.
    fn obey(&mut self, queue: &DeviceQueue, chain: &Chain) -> bool {
        let mut command = [0; 4];
        let length = chain.readable().read(queue.memory(), &mut command);
        let [class, command, low, high] = command;
        let is_pairs = (u32::from(class), u32::from(command)) == (VIRTIO_NET_CTRL_MQ, VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET);
        length == 4 && is_pairs && self.set_active(u16::from_le_bytes([low, high]))
    }

    /// Packets come by the first `count` pairs from now on.
    fn set_active(&mut self, count: u16) -> bool {
        if count == 0 || usize::from(count) > self.taps.len() {
            return false;
        }
        self.active = count;
        let mut pairs = (0..).zip(&mut self.taps);
        pairs.all(|(pair, tap)| tap.attach(pair < count).is_ok())
    }
}

impl Handler for NetHandler {
    fn start(&mut self, poll: &Poll) -> io::Result<()> {
        self.taps.iter().try_for_each(|tap| tap.set_offload(self.offload))?;
        self.set_active(self.active);
        for (pair, (path, tap)) in (0..).zip(self.paths.iter_mut().zip(&self.taps)) {
            match path {
                Path::Here(path) => {
                    poll.add_queues(path.queues())?;
                    // Only of changes: while there is no room for packets, they wait in the tap.
                    poll.add(tap, EventSet::IN | EventSet::OUT | EventSet::EDGE_TRIGGERED, TAP + pair)?;
                }
                Path::Kernel(path) => path.start(tap, poll, &mut self.relay, RELAY)?,
                Path::Unused => {}
            }
        }
        poll.add_queues(&self.control)?;
        (0..self.paths.len()).for_each(|pair| self.serve(pair));
        self.serve_control();
        Ok(())
    }

    fn ready(&mut self, token: u64, events: EventSet, _poll: &Poll) {
        match token {
            RELAY.. => {
                if let Some(queue) = self.queue(token - RELAY) {
                    self.relay.relay(token - RELAY, queue);
                }
            }
            TAP.. => {
                let pair = (token - TAP) as usize;
                if let (Some(Path::Here(path)), Some(tap)) = (self.paths.get_mut(pair), self.taps.get(pair)) {
                    if events.contains(EventSet::OUT) {
                        path.transmit(tap);
                    }
                    path.receive(tap);
                }
            }
            index => self.serve_queue(index),
        }
    }

    fn stop(&mut self) {
        for path in &mut self.paths {
            match path {
                Path::Here(path) => path.stop(),
                Path::Kernel(path) => {
                    path.stop();
                    path.queues().into_iter().for_each(|queue| self.relay.relay(queue.index().into(), queue));
                }
                Path::Unused => {}
            }
        }
        self.relay.clear();
    }

    fn queues(&self) -> Vec<Option<&DeviceQueue>> {
        // Interfaces with more than one pair have a control queue.
        let pairs = self.taps.len() as u64;
        (0..2 * pairs + u64::from(pairs > 1)).map(|index| self.queue(index)).collect()
    }
}
