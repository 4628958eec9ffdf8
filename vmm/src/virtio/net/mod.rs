//! A network interface (section 5.1) on a tap: by this process, or by the kernel's vhost-net when it gets that too.
//!
//! Checksums and segmentation are left to whoever can do them; packets are read and written straight in guest RAM.

mod handler;
mod kernel;
mod offload;
mod pair;
mod tap;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use vhost::VhostBackend;
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CTRL_VQ, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MQ, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
    VIRTIO_NET_F_STATUS, VIRTIO_NET_S_LINK_UP,
};
use virtio_queue::QueueState;

use self::handler::{NetHandler, Path};
use self::kernel::{KernelPair, VHOST_FEATURES};
use self::offload::{Offloads, largest_packet, tap_flags};
use self::pair::{Pair, Shape};
use self::tap::HEADER;
use super::config::ConfigSpace;
use super::device::{ActivateError, Activation, VirtioDevice};
use super::queue::{DeviceQueue, RING_FEATURES};
use super::vhost::{KernelVhost, Relay, claim, failed};
use super::worker::{Filter, Life};
use crate::counters::{Counts, Traffic};
use crate::memory::GuestMemory;
use crate::snapshot::{InvalidState, Saved, Unit};

pub use self::tap::Tap;

/// How a network interface is shown to the guest.
#[derive(Debug, Clone)]
pub struct NetOptions {
    /// Its address.
    pub mac: [u8; 6],
    /// Largest packet that the guest is told of.
    pub mtu: Option<u16>,
    /// Descriptors of each queue, a power of two, at most 1024.
    pub queue_size: u16,
    /// Segmentation of TCP is left to the other side.
    pub offload_tcp: bool,
    /// Segmentation of UDP is.
    pub offload_udp: bool,
    /// Checksums are; without it nothing is.
    pub offload_checksums: bool,
}

/// A network interface.
pub struct Net {
    /// With the thread while it is active.
    taps: Vec<Tap>,
    /// As many as taps, or none.
    vhosts: Vec<Arc<File>>,
    mtu: Option<u16>,
    queue_sizes: Vec<u16>,
    features: u64,
    config: ConfigSpace<12>,
    /// Pairs that the restored driver uses.
    active: u16,
    traffic: Arc<Traffic>,
    life: Life<NetHandler>,
}

/// What of it is not in its queues.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    active_pairs: u16,
}

const KIND: &str = "virtio-net";
const VERSION: u16 = 1;
const NAME: &str = "vse-net";

impl Net {
    /// An interface with a pair of queues for each of `taps`; `vhosts` are as many open `/dev/vhost-net`, or none. Its
    /// thread is confined by `filter`.
    ///
    /// # Errors
    /// When taps and vhosts don't match, or the kernel refuses.
    pub fn new(taps: Vec<Tap>, vhosts: Vec<File>, options: &NetOptions, filter: Filter) -> io::Result<Self> {
        let invalid = |what| Err(io::Error::new(io::ErrorKind::InvalidInput, what));
        let Some(first) = taps.first() else { return invalid("a network interface without a tap") };
        if !vhosts.is_empty() && vhosts.len() != taps.len() {
            return invalid("as many vhost-net descriptors as taps are needed, or none");
        }
        let offloads = Offloads {
            checksum: options.offload_checksums,
            tcp: options.offload_tcp,
            udp: options.offload_udp,
            datagrams: first.probe_datagrams()?,
        };
        let mut features = RING_FEATURES
            | 1 << VIRTIO_NET_F_MAC
            | 1 << VIRTIO_NET_F_STATUS
            | 1 << VIRTIO_NET_F_MRG_RXBUF
            | offloads.features();
        let mut queues = 2 * taps.len();
        if taps.len() > 1 {
            features |= 1 << VIRTIO_NET_F_MQ | 1 << VIRTIO_NET_F_CTRL_VQ;
            queues += 1;
        }
        if options.mtu.is_some() {
            features |= 1 << VIRTIO_NET_F_MTU;
        }
        let vhosts: Vec<_> = vhosts.into_iter().map(Arc::new).collect();
        for file in &vhosts {
            let vhost = KernelVhost::new(file.clone(), GuestMemory::new().into());
            claim(&vhost)?;
            features &= !VHOST_FEATURES | vhost.get_features().map_err(failed)?;
        }
        let mut config = ConfigSpace::default();
        config.put(0, &options.mac);
        config.put(6, &(VIRTIO_NET_S_LINK_UP as u16).to_le_bytes());
        config.put(8, &(taps.len() as u16).to_le_bytes());
        config.put(10, &options.mtu.unwrap_or(0).to_le_bytes());
        Ok(Self {
            taps,
            vhosts,
            mtu: options.mtu,
            queue_sizes: vec![options.queue_size; queues],
            features,
            config,
            active: 1,
            traffic: Arc::default(),
            life: Life::new(NAME, filter)?,
        })
    }

    /// The driver's queues, with who works on them.
    fn paths(&self, mut queues: Vec<Option<DeviceQueue>>, features: u64) -> Vec<Path> {
        let shape = Shape {
            is_mergeable: features & 1 << VIRTIO_NET_F_MRG_RXBUF != 0,
            largest: HEADER as u64 + largest_packet(features, self.mtu),
        };
        let mut take = |index: usize| queues.get_mut(index).and_then(Option::take);
        let path = |pair: usize| match (take(2 * pair), take(2 * pair + 1)) {
            (Some(receive), Some(transmit)) => match self.vhosts.get(pair) {
                Some(vhost) => Path::Kernel(KernelPair::new(vhost.clone(), receive, transmit, features)),
                None => Path::Here(Pair::new(receive, transmit, shape, self.traffic.clone())),
            },
            _ => Path::Unused,
        };
        (0..self.taps.len()).map(path).collect()
    }
}

impl VirtioDevice for Net {
    fn id(&self) -> u16 {
        VIRTIO_ID_NET as u16
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let features = activation.features;
        let (_, mut queues) = DeviceQueue::take(activation, 2)?;
        // Without MQ there is one pair, and the control queue comes right after it (5.1.2).
        let has_control = features & 1 << VIRTIO_NET_F_CTRL_VQ != 0;
        let control = if features & 1 << VIRTIO_NET_F_MQ != 0 { 2 * self.taps.len() } else { 2 };
        let control = queues.get_mut(control).filter(|_| has_control).and_then(Option::take);
        let paths = self.paths(queues, features);
        let taps = std::mem::take(&mut self.taps);
        let active = std::mem::replace(&mut self.active, 1);
        let handler =
            NetHandler { taps, paths, offload: tap_flags(features), control, active, relay: Relay::default() };
        self.life.activate(handler)
    }

    fn pause(&mut self) {
        self.life.pause();
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        self.life.resume()
    }

    fn reset(&mut self) {
        if let Some(handler) = self.life.reset() {
            self.taps = handler.taps;
        }
        self.active = 1;
    }

    fn queue_states(&self) -> Vec<Option<QueueState>> {
        self.life.queue_states()
    }

    fn counters(&self) -> Counts {
        if self.vhosts.is_empty() { self.traffic.of_network() } else { Counts::new() }
    }

    fn save(&self) -> Saved {
        let active_pairs = self.life.paused().map_or(self.active, |handler| handler.active);
        Saved::State(Unit::encode(KIND, VERSION, &State { active_pairs }))
    }

    fn restore(&mut self, unit: &Unit) -> Result<(), InvalidState> {
        let State { active_pairs } = unit.decode(KIND, VERSION)?;
        if active_pairs == 0 || usize::from(active_pairs) > self.taps.len() {
            let reason = format!("{active_pairs} of {} pairs of queues in use", self.taps.len());
            return Err(InvalidState::Damaged { kind: KIND, reason });
        }
        self.active = active_pairs;
        Ok(())
    }
}
