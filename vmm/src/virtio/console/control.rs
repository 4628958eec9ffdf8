//! What host and guest tell each other about ports (section 5.3.6.2). Pure.
//!
//! What is to be told follows from what has been told, so nothing queues up, whatever the guest does.

use serde::{Deserialize, Serialize};

// Events, from section 5.3.6.2.
const DEVICE_READY: u16 = 0;
const PORT_ADD: u16 = 1;
const PORT_READY: u16 = 3;
const CONSOLE_PORT: u16 = 4;
const PORT_OPEN: u16 = 6;
const PORT_NAME: u16 = 7;

/// Bytes of a message: port, event, value.
pub const MESSAGE: usize = 8;

/// How far host and guest have come with a port. It is what a snapshot has of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PortState {
    /// The guest knows that there is such a port.
    pub told_add: bool,
    /// It has made one of it.
    pub is_ready: bool,
    /// It knows that it is a console.
    pub told_console: bool,
    /// It knows its name.
    pub told_name: bool,
    /// What it knows of somebody being there at the host's end.
    pub told_open: bool,
    /// A program of the guest's has it open.
    pub is_guest_open: bool,
    /// Bytes of the guest's next chain that the host has had.
    pub sent: u64,
}

/// What a port is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PortKind {
    /// A terminal: `hvc0`.
    Console,
    /// A stream that programs find by its name.
    Named(String),
}

/// Something to tell the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tell {
    /// There is a port.
    Add,
    /// It is a console.
    Console,
    /// Its name.
    Name,
    /// Somebody is at the host's end, or no more.
    Open(bool),
}

/// Something that the guest told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Told {
    /// Its driver is ready for ports.
    DeviceReady,
    /// It has made a port.
    PortReady(u32),
    /// A program has opened or closed it.
    PortOpen(u32, bool),
}

impl PortState {
    /// A port of a driver that knows one console only.
    pub fn single() -> Self {
        let told = Self { told_add: true, is_ready: true, told_console: true, told_name: true, ..Self::default() };
        Self { told_open: true, is_guest_open: true, ..told }
    }

    /// What the guest has to know next, once its driver is ready.
    pub fn next(&self, kind: &PortKind, is_host_open: bool) -> Option<Tell> {
        match self {
            Self { told_add: false, .. } => Some(Tell::Add),
            Self { is_ready: false, .. } => None,
            Self { told_console: false, .. } if *kind == PortKind::Console => Some(Tell::Console),
            Self { told_name: false, .. } if matches!(kind, PortKind::Named(_)) => Some(Tell::Name),
            Self { told_open, .. } if *told_open != is_host_open => Some(Tell::Open(is_host_open)),
            _ => None,
        }
    }

    /// It knows.
    pub fn tell(&mut self, what: Tell) {
        match what {
            Tell::Add => self.told_add = true,
            Tell::Console => self.told_console = true,
            Tell::Name => self.told_name = true,
            Tell::Open(is_open) => self.told_open = is_open,
        }
    }
}

impl Tell {
    /// As the guest reads it.
    pub fn message(self, port: u32, kind: &PortKind) -> Vec<u8> {
        let (event, value) = match self {
            Self::Add => (PORT_ADD, 1),
            Self::Console => (CONSOLE_PORT, 1),
            Self::Name => (PORT_NAME, 1),
            Self::Open(is_open) => (PORT_OPEN, u16::from(is_open)),
        };
        let mut message = [&port.to_le_bytes()[..], &u16::to_le_bytes(event), &value.to_le_bytes()].concat();
        if let (Self::Name, PortKind::Named(name)) = (self, kind) {
            message.extend(name.bytes());
        }
        message
    }
}

impl Told {
    /// What a message of the guest's says; `None` when it is of no interest.
    pub fn parse(message: [u8; MESSAGE]) -> Option<Self> {
        let [a, b, c, d, event_low, event_high, low, high] = message;
        let port = u32::from_le_bytes([a, b, c, d]);
        let value = u16::from_le_bytes([low, high]);
        match u16::from_le_bytes([event_low, event_high]) {
            DEVICE_READY if value == 1 => Some(Self::DeviceReady),
            PORT_READY if value == 1 => Some(Self::PortReady(port)),
            PORT_OPEN => Some(Self::PortOpen(port, value == 1)),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_thing_is_told_once_and_in_order() {
        let kind = PortKind::Named("a.b".to_owned());
        let mut state = PortState::default();
        let tell = |state: &mut PortState, is_open| {
            let mut told = Vec::new();
            while let Some(what) = state.next(&kind, is_open) {
                state.tell(what);
                told.push(what);
            }
            told
        };
        assert_eq!(tell(&mut state, true), [Tell::Add]);
        state.is_ready = true;
        assert_eq!(tell(&mut state, true), [Tell::Name, Tell::Open(true)]);
        assert_eq!(tell(&mut state, false), [Tell::Open(false)]);
        assert_eq!(PortState::single().next(&PortKind::Console, true), None);
        assert_eq!(Tell::Name.message(1, &kind), b"\x01\0\0\0\x07\0\x01\0a.b");
        assert_eq!(Told::parse([2, 0, 0, 0, 6, 0, 1, 0]), Some(Told::PortOpen(2, true)));
        assert_eq!(Told::parse([0, 0, 0, 0, 0, 0, 0, 0]), None);
    }
}
