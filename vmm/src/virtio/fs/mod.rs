//! A file system (section 5.11) that another process serves, virtiofsd for example, by vhost-user.
//!
//! That process works on the queues in guest RAM, which must be shared with it; this one only introduces them.

#[cfg(test)]
mod fuzz;
#[cfg(test)]
mod tests;

use std::io;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use vhost::VhostBackend;
use vhost::vhost_user::message::{VhostUserProtocolFeatures, VhostUserVirtioFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;
use virtio_queue::QueueState;
use vmm_sys_util::epoll::EventSet;

use super::chain::Malformed;
use super::config::{self, ConfigSpace};
use super::device::{ActivateError, Activation, VirtioDevice};
use super::queue::{DeviceQueue, RING_FEATURES};
use super::vhost::{Relay, failed, give, share_memory, take};
use super::worker::{Filter, Handler, Life, Poll};
use crate::counters::Counts;
use crate::snapshot::{InvalidState, Saved, Unit};

/// Bytes of a tag.
const TAG: usize = 36;

/// How long the other process may take to answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// The feature that there are protocol features.
const PROTOCOL_FEATURES: u64 = VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();

/// Protocol features that are used, where the other process has them: several queues, and answers to what is asked.
const PROTOCOL: VhostUserProtocolFeatures = VhostUserProtocolFeatures::MQ.union(VhostUserProtocolFeatures::REPLY_ACK);

/// Tokens of the connection, and of interrupts that come by this process.
const CONNECTION: u64 = 1 << 32;
const RELAY: u64 = 2 << 32;

const NAME: &str = "vse-fs";

/// A file system.
pub struct Fs {
    /// With the thread while it is active.
    server: Option<Server>,
    queue_sizes: Vec<u16>,
    features: u64,
    config: ConfigSpace<40>,
    life: Life<FsHandler>,
}

/// The process at the other end.
struct Server {
    frontend: Frontend,
    /// To see when it goes.
    connection: UnixStream,
    has_protocol: bool,
}

impl Fs {
    /// The file system that is served at `connection`, known to the guest by `tag`, with `queues` for requests beside the
    /// one of high priority. Its thread is confined by `filter`.
    ///
    /// # Errors
    /// When the tag is empty or too long, or the other process doesn't answer as it should.
    pub fn new(connection: UnixStream, tag: &str, queues: u16, queue_size: u16, filter: Filter) -> io::Result<Self> {
        if tag.is_empty() || tag.len() > TAG {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "a tag has 1 to 36 bytes"));
        }
        let all = usize::from(queues) + 1;
        let (server, features) = Server::greet(connection, all as u64)?;
        let mut config = ConfigSpace::default();
        config.put(0, tag.as_bytes());
        config.put(TAG, &u32::from(queues).to_le_bytes());
        Ok(Self {
            server: Some(server),
            queue_sizes: vec![queue_size; all],
            features: features & RING_FEATURES,
            config,
            life: Life::new(NAME, filter)?,
        })
    }
}

impl Server {
    /// Begins to talk, and asks what it can do.
    fn greet(connection: UnixStream, queues: u64) -> io::Result<(Self, u64)> {
        connection.set_read_timeout(Some(PATIENCE))?;
        connection.set_write_timeout(Some(PATIENCE))?;
        let mut frontend = Frontend::from_stream(connection.try_clone()?, queues);
        frontend.set_owner().map_err(failed)?;
        let features = frontend.get_features().map_err(failed)?;
        let has_protocol = features & PROTOCOL_FEATURES != 0;
        if has_protocol {
            let known = frontend.get_protocol_features().map_err(failed)?;
            frontend.set_protocol_features(known & PROTOCOL).map_err(failed)?;
        }
        Ok((Self { frontend, connection, has_protocol }, features))
    }

    /// Without protocol features, a ring is enabled when it has what it needs.
    fn enable(&mut self, ring: usize, enable: bool) -> io::Result<()> {
        if !self.has_protocol {
            return Ok(());
        }
        self.frontend.set_vring_enable(ring, enable).map_err(failed)
    }
}

impl VirtioDevice for Fs {
    fn id(&self) -> u16 {
        VIRTIO_ID_FS as u16
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
        let (_, queues) = DeviceQueue::take(activation, 2)?;
        // It is only away while a driver is at work.
        let server = self.server.take().ok_or(ActivateError::QueueMissing(0))?;
        let relay = Relay::default();
        self.life.activate(FsHandler { server, queues, features, relay, given: 0, is_watched: true })
    }

    fn pause(&mut self) {
        self.life.pause();
    }

    fn resume(&mut self) -> Result<(), ActivateError> {
        self.life.resume()
    }

    fn reset(&mut self) {
        if let Some(handler) = self.life.reset() {
            self.server = Some(handler.server);
        }
    }

    fn queue_states(&self) -> Vec<Option<QueueState>> {
        self.life.queue_states()
    }

    fn counters(&self) -> Counts {
        Counts::new()
    }

    fn save(&self) -> Saved {
        Saved::Unsupported("the process that serves a file system keeps what the guest has open")
    }

    fn restore(&mut self, unit: &Unit) -> Result<(), InvalidState> {
        config::no_state("virtio-fs", unit)
    }
}

struct FsHandler {
    server: Server,
    queues: Vec<Option<DeviceQueue>>,
    features: u64,
    relay: Relay,
    /// The first so many queues are with the server.
    given: usize,
    is_watched: bool,
}

impl FsHandler {
    fn give(&mut self, poll: &Poll) -> io::Result<()> {
        let Some(first) = self.queues.iter().flatten().next() else { return Ok(()) };
        let protocol = if self.server.has_protocol { PROTOCOL_FEATURES } else { 0 };
        self.server.frontend.set_features(self.features | protocol).map_err(failed)?;
        share_memory(&self.server.frontend, first.memory())?;
        for (ring, queue) in self.queues.iter().enumerate() {
            let Some(queue) = queue else { continue };
            give(&self.server.frontend, ring, queue, poll, &mut self.relay, RELAY)?;
            self.given = ring + 1;
            self.server.enable(ring, true)?;
        }
        Ok(())
    }
}

impl Handler for FsHandler {
    fn start(&mut self, poll: &Poll) -> io::Result<()> {
        poll.add(&self.server.connection, EventSet::READ_HANG_UP, CONNECTION)?;
        self.is_watched = true;
        self.give(poll)
    }

    fn ready(&mut self, token: u64, _events: EventSet, poll: &Poll) {
        if token == CONNECTION && std::mem::take(&mut self.is_watched) {
            // Who served it is gone, and what the guest has under way with it.
            poll.remove(&self.server.connection);
            self.queues.iter_mut().flatten().for_each(|queue| queue.fail(Malformed::Abandoned));
        } else if let Some(Some(queue)) = token.checked_sub(RELAY).and_then(|index| self.queues.get(index as usize)) {
            self.relay.relay(token - RELAY, queue);
        }
    }

    fn stop(&mut self) {
        for (ring, queue) in self.queues.iter_mut().enumerate().take(std::mem::take(&mut self.given)) {
            let Some(queue) = queue else { continue };
            // Asking where it was stops the ring. From where it was given away, the ring would be served a second time.
            if take(&self.server.frontend, ring, queue).is_err() {
                queue.fail(Malformed::Abandoned);
            }
            let _ = self.server.enable(ring, false);
            self.relay.relay(queue.index().into(), queue);
        }
        self.relay.clear();
    }

    fn queues(&self) -> Vec<Option<&DeviceQueue>> {
        self.queues.iter().map(Option::as_ref).collect()
    }
}
