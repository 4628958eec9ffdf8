//! One port: bytes between the guest and the host's end of it, held back by whoever is slower.

use std::io;
use std::sync::Arc;

use vmm_sys_util::epoll::EventSet;

use super::control::{PortKind, PortState};
use super::host::Host;
use crate::counters::Traffic;
use crate::virtio::chain::Chain;
use crate::virtio::queue::DeviceQueue;
use crate::virtio::transfer::Iovecs;
use crate::virtio::worker::Poll;

/// Chains in a row before others have their turn.
const TURN: usize = 64;

/// Hears when the guest opens and closes a port.
pub type Watcher = Arc<dyn Fn(bool) + Send + Sync>;

/// What of a port outlives its driver.
pub struct PortEnd {
    /// What it is.
    pub kind: PortKind,
    /// The host's end.
    pub host: Host,
    /// Who wants to know.
    pub watcher: Option<Watcher>,
}

/// A port with its queues.
pub struct Port {
    /// What it is, and who is at the host's end.
    pub end: PortEnd,
    /// How far host and guest have come.
    pub state: PortState,
    /// To the guest and from it; none when the driver uses fewer ports.
    pub queues: Option<(DeviceQueue, DeviceQueue)>,
    /// Token of the host's end.
    pub token: u64,
    iovecs: Iovecs,
    is_hung_up: bool,
    /// Of all ports of the device.
    traffic: Arc<Traffic>,
}

impl Port {
    /// A port that a driver has queues for.
    pub fn new(
        end: PortEnd,
        state: PortState,
        queues: Option<(DeviceQueue, DeviceQueue)>,
        token: u64,
        traffic: Arc<Traffic>,
    ) -> Self {
        Self { end, state, queues, token, iovecs: Iovecs::default(), is_hung_up: false, traffic }
    }

    /// Something happened at the host's end.
    pub fn host_ready(&mut self, events: EventSet, poll: &Poll) {
        self.is_hung_up &= !self.end.host.accept(poll, self.token);
        self.is_hung_up |= self.end.host.is_left(events);
        self.serve(poll);
    }

    /// A program of the guest's has opened or closed it.
    pub fn set_guest_open(&mut self, is_open: bool, poll: &Poll) {
        if std::mem::replace(&mut self.state.is_guest_open, is_open) != is_open {
            self.tell_watcher();
        }
        self.serve(poll);
    }

    /// Says whether the guest has it open.
    pub fn tell_watcher(&self) {
        if let Some(watcher) = &self.end.watcher {
            watcher(self.state.is_guest_open);
        }
    }

    /// Moves what there is, both ways.
    pub fn serve(&mut self, poll: &Poll) {
        self.send();
        self.receive();
        // Somebody who is gone is only kept for what the guest has yet to read.
        if self.is_hung_up && !self.state.is_guest_open {
            self.hang_up();
        }
        self.admit(poll);
    }

    /// Waits for the next one at the host's end, once the guest knows that the last one is gone.
    pub fn admit(&mut self, poll: &Poll) {
        if !self.state.told_open {
            self.end.host.listen(poll, self.token);
        }
    }

    fn hang_up(&mut self) {
        self.is_hung_up = false;
        // The next one gets no half of a chain that was another's.
        if std::mem::take(&mut self.state.sent) > 0 {
            self.skip();
        }
        self.end.host.hang_up();
    }

    /// Drops the rest of the chain that is being sent.
    fn skip(&mut self) {
        let Some((_, queue)) = &mut self.queues else { return };
        let mut chain = Chain::default();
        if queue.pop(&mut chain) {
            queue.complete(chain.head(), 0);
            queue.signal();
        }
    }

    /// Moves the guest's bytes to the host.
    fn send(&mut self) {
        let mut chain = Chain::default();
        let mut left = TURN;
        let mut is_gone = false;
        let Some((_, queue)) = &mut self.queues else { return };
        loop {
            queue.suppress_notifications();
            let mut is_full = false;
            while left > 0 && !is_full && !is_gone && queue.pop(&mut chain) {
                left -= 1;
                let rest = chain.readable().split_at(self.state.sent).1;
                let portion = self.end.host.portion(rest);
                let pieces = self.iovecs.of(queue.memory(), [portion]);
                // A system call that is given nothing says nothing.
                let sent = if portion.is_empty() { Ok(0) } else { self.end.host.write(pieces, portion.len()) };
                sent.iter().for_each(|sent| self.traffic.from_guest.add(*sent as u64));
                match sent {
                    Ok(sent) if (sent as u64) < rest.len() => {
                        self.state.sent += sent as u64;
                        queue.put_back(&chain);
                    }
                    Ok(_) => {
                        self.state.sent = 0;
                        queue.complete(chain.head(), 0);
                    }
                    Err(error) => {
                        queue.put_back(&chain);
                        match error.kind() {
                            io::ErrorKind::Interrupted => {}
                            io::ErrorKind::WouldBlock => is_full = true,
                            _ => is_gone = true,
                        }
                    }
                }
            }
            queue.signal();
            if left == 0 {
                queue.notify_self();
            }
            // When it is full, the host's end tells when it takes more.
            if left == 0 || is_full || is_gone || !queue.enable_notifications() {
                break;
            }
        }
        if is_gone {
            self.hang_up();
        }
    }

    /// Moves the host's bytes to the guest, if somebody there wants them.
    fn receive(&mut self) {
        let mut chain = Chain::default();
        let mut left = TURN;
        let mut is_gone = false;
        let Some((queue, _)) = &mut self.queues else { return };
        queue.suppress_notifications();
        while self.state.is_guest_open && self.end.host.is_open() {
            if !queue.pop(&mut chain) {
                if queue.enable_notifications() {
                    continue;
                }
                break;
            }
            let room = chain.writable();
            // A system call that has no room says nothing.
            let read = if room.is_empty() { Ok(0) } else { self.end.host.read(self.iovecs.of(queue.memory(), [room])) };
            match read {
                Ok(0) if !room.is_empty() => {
                    queue.put_back(&chain);
                    is_gone = self.end.host.end_input();
                    break;
                }
                Ok(read) => {
                    self.traffic.to_guest.add(read as u64);
                    queue.complete(chain.head(), read as u32);
                }
                Err(error) => {
                    queue.put_back(&chain);
                    match error.kind() {
                        io::ErrorKind::Interrupted => continue,
                        io::ErrorKind::WouldBlock => {}
                        _ => is_gone = true,
                    }
                    break;
                }
            }
            left -= 1;
            if left == 0 {
                queue.notify_self();
                break;
            }
        }
        queue.signal();
        if is_gone {
            self.hang_up();
        }
    }
}
