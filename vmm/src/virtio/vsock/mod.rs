//! Sockets between host and guest (section 5.10): at unix sockets of this process, or by the kernel's vhost-vsock.
//!
//! A program of the host's connects to the socket and says `CONNECT port`, and hears `OK port` when the guest agreed;
//! what the guest connects to port N goes to the socket's path with `_N` behind it, if it has a path.

mod connection;
mod kernel;
mod packet;
mod switch;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use virtio_queue::QueueState;
use vmm_sys_util::epoll::EventSet;

use self::kernel::KernelVsock;
use self::switch::{LISTENER, Switch};
use super::chain::Chain;
use super::config::ConfigSpace;
use super::device::{ActivateError, Activation, VirtioDevice};
use super::queue::{DeviceQueue, RING_FEATURES};
use super::worker::{Filter, Handler, Life, Poll};
use crate::counters::{Counts, Traffic};
use crate::snapshot::{InvalidState, Saved, Unit};

pub use self::switch::Sockets;

/// Packets to the guest, packets from it, events.
const QUEUE_SIZES: [u16; 3] = [128, 128, 16];

/// Index of the last.
const EVENTS: u64 = 2;

/// `VIRTIO_VSOCK_EVENT_TRANSPORT_RESET`: all connections are gone, and the context ID may be another.
const TRANSPORT_RESET: [u8; 4] = [0; 4];

/// Token of interrupts of vhost's that come by this process.
const RELAY: u64 = 3 << 32;

const KIND: &str = "virtio-vsock";
const VERSION: u16 = 1;
const NAME: &str = "vse-vsock";

/// Who moves packets.
pub enum VsockBackend {
    /// This process, at unix sockets.
    Sockets(Sockets),
    /// The kernel, by an open `/dev/vhost-vsock`.
    Kernel(File),
}

enum Backend {
    Sockets(Sockets),
    Kernel(Arc<File>),
}

/// Sockets between host and guest.
pub struct Vsock {
    /// With the thread while it is active.
    backend: Option<Backend>,
    cid: u64,
    features: u64,
    config: ConfigSpace<8>,
    /// The guest has yet to hear that its connections stayed behind.
    owes_reset: bool,
    /// None where the kernel moves packets.
    traffic: Option<Arc<Traffic>>,
    life: Life<VsockHandler>,
}

/// What of it is not in its queues: connections stay behind.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {}

impl Vsock {
    /// For a guest with context ID `cid`. Its thread is confined by `filter`.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn new(backend: VsockBackend, cid: u32, filter: Filter) -> io::Result<Self> {
        let mut features = RING_FEATURES;
        let backend = match backend {
            VsockBackend::Sockets(sockets) => {
                sockets.listener.set_nonblocking(true)?;
                Backend::Sockets(sockets)
            }
            VsockBackend::Kernel(file) => {
                let file = Arc::new(file);
                features &= kernel::own(&file)?;
                Backend::Kernel(file)
            }
        };
        let cid = u64::from(cid);
        let traffic = matches!(backend, Backend::Sockets(_)).then(Arc::default);
        let mut config = ConfigSpace::default();
        config.put(0, &cid.to_le_bytes());
        let life = Life::new(NAME, filter)?;
        Ok(Self { backend: Some(backend), cid, features, config, owes_reset: false, traffic, life })
    }
}

impl VirtioDevice for Vsock {
    fn id(&self) -> u16 {
        VIRTIO_ID_VSOCK as u16
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let features = activation.features;
        let (_, queues) = DeviceQueue::take(activation, 3)?;
        let Ok([Some(receive), Some(transmit), Some(events)]) = <[_; 3]>::try_from(queues) else {
            return Err(ActivateError::QueueMissing(0));
        };
        let path = match self.backend.take() {
            Some(Backend::Sockets(sockets)) => {
                let traffic = self.traffic.clone().unwrap_or_default();
                Path::Here(Switch::new(sockets, self.cid, receive, transmit, traffic))
            }
            Some(Backend::Kernel(file)) => Path::Kernel(KernelVsock::new(file, self.cid, receive, transmit, features)),
            // It is only away while a driver is at work.
            None => return Err(ActivateError::QueueMissing(0)),
        };
        let owes_reset = std::mem::take(&mut self.owes_reset);
        self.life.activate(VsockHandler { path, events, owes_reset })
    }

    fn pause(&mut self) {
        self.life.pause();
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        self.life.resume()
    }

    fn reset(&mut self) {
        if let Some(handler) = self.life.reset() {
            self.backend = Some(match handler.path {
                Path::Here(switch) => Backend::Sockets(switch.into_sockets()),
                Path::Kernel(kernel) => Backend::Kernel(kernel.into_file()),
            });
        }
        self.owes_reset = false;
    }

    fn queue_states(&self) -> Vec<Option<QueueState>> {
        self.life.queue_states()
    }

    fn counters(&self) -> Counts {
        self.traffic.as_ref().map_or_else(Counts::new, |traffic| traffic.of_network())
    }

    fn save(&self) -> Saved {
        Saved::State(Unit::encode(KIND, VERSION, &State {}))
    }

    fn restore(&mut self, unit: &Unit) -> Result<(), InvalidState> {
        let State {} = unit.decode(KIND, VERSION)?;
        self.owes_reset = true;
        Ok(())
    }
}

enum Path {
    Here(Switch),
    Kernel(KernelVsock),
}

struct VsockHandler {
    path: Path,
    events: DeviceQueue,
    owes_reset: bool,
}

impl VsockHandler {
    fn packet_queues(&self) -> [&DeviceQueue; 2] {
        match &self.path {
            Path::Here(switch) => switch.queues(),
            Path::Kernel(kernel) => kernel.queues(),
        }
    }

    /// Tells a restored guest that its connections are gone.
    fn tell(&mut self) {
        let mut chain = Chain::default();
        if self.owes_reset && self.events.pop(&mut chain) {
            let written = chain.writable().write(self.events.memory(), &TRANSPORT_RESET);
            self.events.complete(chain.head(), written as u32);
            self.events.signal();
            self.owes_reset = false;
        }
    }
}

impl Handler for VsockHandler {
    fn start(&mut self, poll: &Poll) -> io::Result<()> {
        poll.add_queues([&self.events])?;
        match &mut self.path {
            Path::Here(switch) => {
                poll.add_queues(switch.queues())?;
                switch.start(poll)?;
            }
            Path::Kernel(kernel) => kernel.start(poll, RELAY)?,
        }
        self.tell();
        Ok(())
    }

    fn ready(&mut self, token: u64, events: EventSet, poll: &Poll) {
        match (token, &mut self.path) {
            (EVENTS, _) => {
                // Readable means that it has a count; it is not of interest.
                let _ = self.events.notified().read();
                self.tell();
            }
            (RELAY.., Path::Kernel(kernel)) => kernel.relay(token - RELAY),
            (LISTENER.., Path::Here(switch)) => switch.ready(token, events, poll),
            (index, Path::Here(switch)) => {
                if let Some(queue) = switch.queues().get(index as usize) {
                    let _ = queue.notified().read();
                }
                switch.work(poll);
            }
            (_, Path::Kernel(_)) => {}
        }
    }

    fn stop(&mut self) {
        if let Path::Kernel(kernel) = &mut self.path {
            kernel.stop();
        }
    }

    fn queues(&self) -> Vec<Option<&DeviceQueue>> {
        let [receive, transmit] = self.packet_queues();
        vec![Some(receive), Some(transmit), Some(&self.events)]
    }
}
