//! The MSI or MSI-X vectors of one PCI function.

use std::io;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use vmm_sys_util::eventfd::EventFd;

use super::{Interrupts, Message};

/// A function's vectors, each with the event that triggers it. Whether a vector is masked is the function's matter
/// (its MSI or MSI-X capability decides); here it is connected, or not.
///
/// Events, GSIs and routes are made when they are first needed: most guests use few of the vectors they could.
pub struct Vectors {
    interrupts: Arc<Interrupts>,
    events: Box<[OnceLock<EventFd>]>,
    connections: Mutex<Box<[Connection]>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Connection {
    gsi: Option<u32>,
    is_connected: bool,
}

impl Vectors {
    /// `count` vectors, none connected.
    #[must_use]
    pub fn new(interrupts: Arc<Interrupts>, count: u16) -> Self {
        let events = (0..count).map(|_| OnceLock::new()).collect();
        let connections = vec![Connection::default(); count.into()].into_boxed_slice();
        Self { interrupts, events, connections: Mutex::new(connections) }
    }

    /// Triggers a vector; while it is not connected that stays pending. Nothing for one that does not exist.
    pub fn trigger(&self, index: u16) {
        if let Ok(event) = self.event(index) {
            // Fails when the counter is full: it is pending anyway.
            let _ = event.write(1);
        }
    }

    /// The event that triggers a vector when written to.
    ///
    /// # Errors
    /// When there is no such vector, or too many files are open.
    pub fn event(&self, index: u16) -> io::Result<&EventFd> {
        let cell = self.events.get(usize::from(index)).ok_or(io::ErrorKind::NotFound)?;
        if let Some(event) = cell.get() {
            return Ok(event);
        }
        let event = EventFd::new(libc::EFD_NONBLOCK | libc::EFD_CLOEXEC)?;
        Ok(cell.get_or_init(|| event))
    }

    /// Whether a vector was triggered and not delivered.
    pub fn is_pending(&self, index: u16) -> bool {
        let connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let connection = connections.get(usize::from(index)).copied().unwrap_or_default();
        let Some(event) = self.events.get(usize::from(index)).and_then(OnceLock::get) else { return false };
        // Taken and put back; with the lock held it is not connected meanwhile.
        !connection.is_connected && event.read().is_ok_and(|count| event.write(count).is_ok())
    }

    /// Connects vectors to the messages given, or disconnects those without one; others stay as they are. A vector that
    /// the host can't connect (its message makes no sense to the kernel, no GSI or file is left) is left disconnected.
    pub fn connect(&self, changes: &[(u16, Option<Message>)]) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let mut routes = Vec::new();
        for &(index, message) in changes {
            let Some(connection) = connections.get_mut(usize::from(index)) else { continue };
            match message {
                None => self.disconnect(index, connection),
                Some(message) => {
                    connection.gsi = connection.gsi.or_else(|| self.interrupts.claim());
                    routes.extend(connection.gsi.map(|gsi| (index, gsi, message)));
                }
            }
        }
        let together: Vec<_> = routes.iter().map(|&(_, gsi, message)| (gsi, message)).collect();
        let all_routed = self.interrupts.route(&together).is_ok();
        for (index, gsi, message) in routes {
            let Some(connection) = connections.get_mut(usize::from(index)) else { continue };
            // A batch with a bad message in it is done one by one.
            if !all_routed && self.interrupts.route(&[(gsi, message)]).is_err() {
                self.disconnect(index, connection);
            } else if !connection.is_connected {
                let event = self.event(index);
                connection.is_connected = event.is_ok_and(|event| self.interrupts.chip.connect(event, gsi).is_ok());
            }
        }
    }

    fn disconnect(&self, index: u16, connection: &mut Connection) {
        if let (true, Some(gsi), Ok(event)) = (connection.is_connected, connection.gsi, self.event(index)) {
            self.interrupts.chip.disconnect(event, gsi);
        }
        connection.is_connected = false;
    }

    /// Disconnects all, forgets what is pending, and gives the GSIs back.
    pub fn reset(&self) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        for (index, connection) in (0..).zip(connections.iter_mut()) {
            self.disconnect(index, connection);
            if let Some(gsi) = connection.gsi.take() {
                self.interrupts.release(gsi);
            }
        }
        for event in self.events.iter().filter_map(OnceLock::get) {
            let _ = event.read();
        }
    }
}

impl Drop for Vectors {
    fn drop(&mut self) {
        self.reset();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interrupts::Recorder;
    use crate::interrupts::chip::recorder::REFUSED;

    fn message(data: u32) -> Option<Message> {
        Some(Message { address: 0xFEE0_0000, data })
    }

    fn chip_and_vectors(count: u16) -> (Arc<Recorder>, Vectors) {
        let chip = Arc::new(Recorder::default());
        (chip.clone(), Vectors::new(Interrupts::new(chip), count))
    }

    #[test]
    fn vectors_are_routed_in_one_go() {
        let (chip, vectors) = chip_and_vectors(3);
        vectors.connect(&[(0, message(1)), (2, message(3)), (7, message(9))]);
        assert_eq!(*chip.tables_set.lock().unwrap(), 1);
        assert_eq!(*chip.routes.lock().unwrap(), [(24, message(1).unwrap()), (25, message(3).unwrap())]);
        assert_eq!(chip.connected.lock().unwrap().len(), 2);
        vectors.connect(&[(0, None)]);
        vectors.connect(&[(0, message(1))]);
        assert_eq!(*chip.tables_set.lock().unwrap(), 1, "unmasking alone changes no route");
        drop(vectors);
        assert!(chip.connected.lock().unwrap().is_empty());
    }

    #[test]
    fn masked_vectors_stay_pending() {
        let (_, vectors) = chip_and_vectors(2);
        vectors.trigger(1);
        vectors.trigger(1);
        vectors.trigger(2);
        assert!(!vectors.is_pending(0) && vectors.is_pending(1) && !vectors.is_pending(2));
        assert!(vectors.is_pending(1), "looking does not change it");
        vectors.connect(&[(1, message(1))]);
        assert!(!vectors.is_pending(1), "delivered as soon as it is connected");
        vectors.connect(&[(1, None)]);
        assert_eq!(vectors.event(1).unwrap().read().unwrap(), 2);
    }

    #[test]
    fn a_bad_message_disconnects_only_its_own_vector() {
        let (chip, vectors) = chip_and_vectors(2);
        vectors.connect(&[(0, Some(Message { address: REFUSED, data: 0 })), (1, message(1))]);
        assert_eq!(*chip.routes.lock().unwrap(), [(25, message(1).unwrap())]);
        assert_eq!(chip.connected.lock().unwrap().values().copied().collect::<Vec<_>>(), [25]);
    }

    #[test]
    fn reset_gives_everything_back() {
        let (chip, vectors) = chip_and_vectors(1);
        vectors.connect(&[(0, message(1))]);
        vectors.trigger(0);
        vectors.reset();
        assert!(!vectors.is_pending(0));
        assert!(chip.connected.lock().unwrap().is_empty());
        assert_eq!(vectors.interrupts.claim(), Some(24));
    }
}
