//! The thread of a console device.

use std::io;

use vmm_sys_util::epoll::EventSet;

use super::control::{MESSAGE, PortState, Told};
use super::port::{Port, PortEnd};
use crate::virtio::chain::Chain;
use crate::virtio::queue::DeviceQueue;
use crate::virtio::worker::{Handler, Poll};

/// Token of the first port's end; below it are those of queues.
pub const END: u64 = 1 << 32;

/// Messages in a row before ports have their turn.
const TURN: usize = 64;

/// The queues of messages about ports: to the guest and from it. None for a driver that knows one console only.
pub type Control = Option<(DeviceQueue, DeviceQueue)>;

/// What the thread owns.
pub struct ConsoleHandler {
    ports: Vec<Port>,
    control: Control,
    /// The guest's driver is ready for ports.
    is_ready: bool,
}

impl ConsoleHandler {
    /// Ports of a driver, with messages about them if it knows those.
    pub fn new(ports: Vec<Port>, control: Control, is_ready: bool) -> Self {
        Self { ports, control, is_ready }
    }

    /// What outlives the driver. Nobody in the guest has a port open any more.
    pub fn into_ends(self) -> Vec<PortEnd> {
        let end = |mut port: Port| {
            if std::mem::take(&mut port.state).is_guest_open {
                port.tell_watcher();
            }
            port.end
        };
        self.ports.into_iter().map(end).collect()
    }

    /// How far host and guest have come: with the device, and with each port.
    pub fn state(&self) -> (bool, Vec<PortState>) {
        (self.is_ready, self.ports.iter().map(|port| port.state).collect())
    }

    /// Takes the guest's messages.
    fn listen(&mut self, poll: &Poll) {
        let Some((_, queue)) = &mut self.control else { return };
        let mut chain = Chain::default();
        let mut left = TURN;
        loop {
            while left > 0 && queue.pop(&mut chain) {
                left -= 1;
                let mut message = [0; MESSAGE];
                let length = chain.readable().read(queue.memory(), &mut message);
                queue.complete(chain.head(), 0);
                match Told::parse(message).filter(|_| length == MESSAGE) {
                    Some(Told::DeviceReady) => self.is_ready = true,
                    Some(Told::PortReady(id)) => {
                        if let Some(port) = self.ports.get_mut(id as usize) {
                            port.state.is_ready = true;
                        }
                    }
                    Some(Told::PortOpen(id, is_open)) => {
                        if let Some(port) = self.ports.get_mut(id as usize) {
                            port.set_guest_open(is_open, poll);
                        }
                    }
                    None => {}
                }
            }
            queue.signal();
            if left == 0 {
                return queue.notify_self();
            }
            if !queue.enable_notifications() {
                return;
            }
        }
    }

    /// Tells the guest what it does not know yet, as far as there is room for it.
    fn tell(&mut self, poll: &Poll) {
        let Some((queue, _)) = &mut self.control else { return };
        if !self.is_ready {
            return;
        }
        let mut chain = Chain::default();
        for (id, port) in (0..).zip(&mut self.ports) {
            while let Some(what) = port.state.next(&port.end.kind, port.end.host.is_open()) {
                let mut has_room = queue.pop(&mut chain);
                if !has_room && queue.enable_notifications() {
                    has_room = queue.pop(&mut chain);
                }
                if !has_room {
                    queue.signal();
                    return;
                }
                let message = what.message(id, &port.end.kind);
                let written = chain.writable().write(queue.memory(), &message);
                queue.complete(chain.head(), written as u32);
                port.state.tell(what);
            }
            port.admit(poll);
        }
        queue.signal();
    }

    fn queue(&self, index: u64) -> Option<&DeviceQueue> {
        self.all_queues().find(|queue| u64::from(queue.index()) == index)
    }

    fn all_queues(&self) -> impl Iterator<Item = &DeviceQueue> {
        let ports = self.ports.iter().filter_map(|port| port.queues.as_ref());
        ports.chain(&self.control).flat_map(|(input, output)| [input, output])
    }
}

impl Handler for ConsoleHandler {
    fn start(&mut self, poll: &Poll) -> io::Result<()> {
        poll.add_queues(self.all_queues())?;
        self.ports.iter_mut().try_for_each(|port| port.end.host.watch(poll, port.token))?;
        self.listen(poll);
        self.ports.iter_mut().for_each(|port| port.serve(poll));
        self.tell(poll);
        Ok(())
    }

    fn ready(&mut self, token: u64, events: EventSet, poll: &Poll) {
        if let Some(queue) = self.queue(token) {
            // Readable means that it has a count; it is not of interest.
            let _ = queue.notified().read();
        }
        match token {
            END.. => {
                if let Some(port) = self.ports.get_mut((token - END) as usize) {
                    port.host_ready(events, poll);
                }
            }
            index => {
                let is_of = |queues: &(DeviceQueue, DeviceQueue)| {
                    [&queues.0, &queues.1].iter().any(|queue| u64::from(queue.index()) == index)
                };
                if self.control.as_ref().is_some_and(is_of) {
                    self.listen(poll);
                }
                let mut ports = self.ports.iter_mut();
                if let Some(port) = ports.find(|port| port.queues.as_ref().is_some_and(is_of)) {
                    port.serve(poll);
                }
            }
        }
        self.tell(poll);
    }

    fn stop(&mut self) {}

    fn queues(&self) -> Vec<Option<&DeviceQueue>> {
        (0..2 * self.ports.len() as u64 + 2).map(|index| self.queue(index)).collect()
    }
}
