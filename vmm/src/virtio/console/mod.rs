//! Serial ports (section 5.3): a terminal, and streams that programs find by name, for example the guest agent's.
//!
//! Bytes go straight between a socket and guest RAM; what one side does not take stays with the other.

mod control;
mod handler;
mod host;
mod port;

#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::os::unix::net::UnixListener;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use virtio_bindings::virtio_ids::VIRTIO_ID_CONSOLE;
use virtio_queue::QueueState;

use self::control::{PortKind, PortState};
use self::handler::{ConsoleHandler, END};
use self::host::Host;
use self::port::{Port, PortEnd};
use super::config::ConfigSpace;
use super::device::{ActivateError, Activation, VirtioDevice};
use super::queue::{DeviceQueue, RING_FEATURES};
use super::worker::{Filter, Life};
use crate::counters::{Counts, Traffic};
use crate::snapshot::{InvalidState, Saved, Unit};

pub use self::port::Watcher;

/// The guest agent's port.
pub const AGENT: &str = "org.qemu.guest_agent.0";

/// `VIRTIO_CONSOLE_F_MULTIPORT`.
const MULTIPORT: u64 = 1 << 1;

/// Descriptors of a port's queue. Linux has one page in flight for each.
const PORT_QUEUE: u16 = 32;
/// Descriptors of a queue of messages.
const CONTROL_QUEUE: u16 = 16;

const KIND: &str = "virtio-console";
const VERSION: u16 = 1;
const NAME: &str = "vse-console";

/// A port to make.
pub struct PortOptions(PortEnd);

impl PortOptions {
    /// A terminal. Only the first port is one for every driver.
    #[must_use]
    pub fn console(input: Option<File>, output: File) -> Self {
        Self(PortEnd { kind: PortKind::Console, host: Host::Stream { input, output }, watcher: None })
    }

    /// A stream of this name, for whoever connects to `listener`, one at a time. `watcher` hears when a program of the
    /// guest's opens and closes it; it is called on the device's thread, and must not wait for the device.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn named(name: &str, listener: UnixListener, watcher: Option<Watcher>) -> io::Result<Self> {
        Ok(Self(PortEnd { kind: PortKind::Named(name.to_owned()), host: Host::socket(listener)?, watcher }))
    }
}

/// Serial ports.
pub struct Console {
    /// With the thread while it is active.
    ends: Vec<PortEnd>,
    /// What a restored driver knows of them.
    restored: Option<State>,
    queue_sizes: Vec<u16>,
    config: ConfigSpace<12>,
    traffic: Arc<Traffic>,
    life: Life<ConsoleHandler>,
}

/// What of it is not in its queues.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct State {
    is_ready: bool,
    ports: Vec<PortState>,
}

impl Console {
    /// These ports. Their thread is confined by `filter`.
    ///
    /// # Errors
    /// When there can be no thread.
    pub fn new(ports: Vec<PortOptions>, filter: Filter) -> io::Result<Self> {
        let mut config = ConfigSpace::default();
        config.put(4, &(ports.len() as u32).to_le_bytes());
        // The first port's come before those of messages, for drivers that know no others (5.3.2).
        let mut queue_sizes = vec![PORT_QUEUE; 2 * ports.len() + 2];
        queue_sizes.iter_mut().skip(2).take(2).for_each(|size| *size = CONTROL_QUEUE);
        let ends = ports.into_iter().map(|port| port.0).collect();
        let life = Life::new(NAME, filter)?;
        Ok(Self { ends, restored: None, queue_sizes, config, traffic: Arc::default(), life })
    }
}

impl VirtioDevice for Console {
    fn id(&self) -> u16 {
        VIRTIO_ID_CONSOLE as u16
    }

    fn queue_sizes(&self) -> &[u16] {
        &self.queue_sizes
    }

    fn features(&self) -> u64 {
        RING_FEATURES | MULTIPORT
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.config.read(offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let is_multiport = activation.features & MULTIPORT != 0;
        let (_, mut queues) = DeviceQueue::take(activation, if is_multiport { 4 } else { 2 })?;
        let mut pair = |index: usize| {
            let mut take = |index: usize| queues.get_mut(index).and_then(Option::take);
            take(index).zip(take(index + 1))
        };
        let restored = self.restored.take();
        let ports = std::mem::take(&mut self.ends).into_iter().enumerate().map(|(id, end)| {
            let known = restored.as_ref().and_then(|state| state.ports.get(id).copied());
            let is_used = is_multiport || id == 0;
            let fresh = if is_multiport { PortState::default() } else { PortState::single() };
            let queues = if is_used { pair(if id == 0 { 0 } else { 2 + 2 * id }) } else { None };
            Port::new(end, known.unwrap_or(fresh), queues, END + id as u64, self.traffic.clone())
        });
        let ports: Vec<_> = ports.collect();
        let control = if is_multiport { pair(2) } else { None };
        ports.iter().filter(|port| port.state.is_guest_open).for_each(Port::tell_watcher);
        let handler = ConsoleHandler::new(ports, control, restored.is_some_and(|state| state.is_ready));
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
            self.ends = handler.into_ends();
        }
        self.restored = None;
    }

    fn queue_states(&self) -> Vec<Option<QueueState>> {
        self.life.queue_states()
    }

    fn counters(&self) -> Counts {
        self.traffic.of_stream()
    }

    fn save(&self) -> Saved {
        // One that was restored and has not gone on yet is where it was.
        if let Some(restored) = &self.restored {
            return Saved::State(Unit::encode(KIND, VERSION, restored));
        }
        let inactive = || (false, vec![PortState::default(); self.ends.len()]);
        let (is_ready, ports) = self.life.paused().map_or_else(inactive, ConsoleHandler::state);
        Saved::State(Unit::encode(KIND, VERSION, &State { is_ready, ports }))
    }

    fn restore(&mut self, unit: &Unit) -> Result<(), InvalidState> {
        let state: State = unit.decode(KIND, VERSION)?;
        if state.ports.len() != self.ends.len() {
            let reason = format!("{} ports instead of {}", state.ports.len(), self.ends.len());
            return Err(InvalidState::Damaged { kind: KIND, reason });
        }
        self.restored = Some(state);
        Ok(())
    }
}
