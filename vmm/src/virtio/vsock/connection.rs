//! One connection: a stream of the host's, and how much each side may send.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::net::Shutdown;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;

use super::packet::{NO_RECEIVE, NO_SEND, NOTHING, Op};
use crate::memory::GuestMemory;
use crate::virtio::chain::Buffers;
use crate::virtio::transfer::Iovecs;

/// Bytes that the guest may have under way on one connection: what its program at the host's end has not read waits
/// here.
pub const ROOM: u32 = 32 << 10;

/// Most bytes in one packet to the guest.
const MOST: u64 = 64 << 10;

/// A connection, by its ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ports {
    /// The guest's.
    pub guest: u32,
    /// The host's.
    pub host: u32,
}

/// What the guest is owed, beside data.
#[derive(Debug, Default)]
struct Owed {
    request: bool,
    response: bool,
    credit: bool,
    reset: bool,
}

/// One connection.
pub struct Connection {
    /// Which it is.
    pub ports: Ports,
    /// Its end on the host.
    pub stream: UnixStream,
    /// The stream may have something to read.
    pub is_readable: bool,
    /// Both sides agreed to it.
    is_open: bool,
    /// The stream is closed at its other end.
    is_hung_up: bool,
    owed: Owed,
    /// The guest knows of its end.
    is_over: bool,
    /// What the guest does no more.
    guest_ended: u32,
    /// What the host does no more, and what of it the guest knows.
    host_ended: u32,
    told_ended: u32,
    /// Bytes that the guest has room for, has passed on, and was sent.
    guest_room: u32,
    guest_passed: u32,
    sent: u32,
    /// Bytes passed on, and how many of them the guest knows of.
    passed: u32,
    told_passed: u32,
    /// From the guest, for when the stream takes more.
    waiting: VecDeque<u8>,
}

/// What came of reading the stream for the guest.
pub enum Read {
    /// So many bytes.
    Data(u32),
    /// None now.
    Nothing,
}

impl Connection {
    fn new(ports: Ports, stream: UnixStream, is_open: bool, owed: Owed) -> Self {
        Self {
            ports,
            stream,
            is_readable: true,
            is_open,
            is_hung_up: false,
            owed,
            is_over: false,
            guest_ended: 0,
            host_ended: 0,
            told_ended: 0,
            guest_room: 0,
            guest_passed: 0,
            sent: 0,
            passed: 0,
            told_passed: 0,
            waiting: VecDeque::new(),
        }
    }

    /// One that the guest asked for.
    pub fn accepted(ports: Ports, stream: UnixStream) -> Self {
        Self::new(ports, stream, true, Owed { response: true, ..Owed::default() })
    }

    /// One that a program of the host's asks the guest for.
    pub fn requested(ports: Ports, stream: UnixStream) -> Self {
        Self::new(ports, stream, false, Owed { request: true, ..Owed::default() })
    }

    /// What a packet says of the guest's credit.
    pub fn note_credit(&mut self, room: u32, passed: u32) {
        (self.guest_room, self.guest_passed) = (room, passed);
    }

    /// The guest has agreed.
    pub fn agreed(&mut self) {
        if self.is_open {
            return self.reset();
        }
        self.is_open = true;
        // Nothing was written to it yet, so it takes a line.
        let greeting = format!("OK {}\n", self.ports.host);
        if (&self.stream).write_all(greeting.as_bytes()).is_err() {
            self.reset();
        }
    }

    /// The guest wants to know how much it may send.
    pub fn ask_credit(&mut self) {
        self.owed.credit = true;
    }

    /// It ends now, for both sides.
    pub fn reset(&mut self) {
        self.owed.reset = true;
    }

    /// The guest sends or receives nothing any more.
    pub fn guest_ends(&mut self, flags: u32) {
        self.guest_ended |= flags & NOTHING;
        self.settle();
    }

    /// The stream is closed at its other end; what was sent before is still there. `true` when the guest never heard
    /// of it.
    pub fn hang_up(&mut self) -> bool {
        self.is_hung_up = true;
        if self.host_ended & NO_SEND != 0 {
            self.host_ends();
        }
        if !self.is_open {
            self.reset();
        }
        self.owed.request
    }

    /// Nothing comes from the stream, and nothing can be sent to it.
    fn host_ends(&mut self) {
        self.host_ended = NOTHING;
    }

    /// Takes data of the guest's.
    pub fn take(&mut self, memory: &GuestMemory, data: Buffers<'_>, iovecs: &mut Iovecs) {
        let is_allowed = self.is_open && self.guest_ended & NO_SEND == 0;
        // `waiting` is never longer than `ROOM`.
        if !is_allowed || data.len() > u64::from(ROOM) - self.waiting.len() as u64 {
            return self.reset();
        }
        let mut rest = data;
        if self.waiting.is_empty() && !rest.is_empty() {
            match iovecs.of(memory, [rest]).write_to(self.stream.as_fd()) {
                Ok(written) => {
                    self.passed = self.passed.wrapping_add(written as u32);
                    rest = rest.split_at(written as u64).1;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(_) => return self.host_ends(),
            }
        }
        let mut bytes = vec![0; rest.len() as usize];
        rest.read(memory, &mut bytes);
        self.waiting.reserve_exact(bytes.len());
        self.waiting.extend(bytes);
        self.settle();
    }

    /// Passes on what waits, as far as the stream takes it.
    pub fn flush(&mut self) {
        while !self.waiting.is_empty() {
            match (&self.stream).write(self.waiting.as_slices().0) {
                Ok(0) => break,
                Ok(written) => {
                    self.waiting.drain(..written);
                    self.passed = self.passed.wrapping_add(written as u32);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(_) => {
                    self.waiting.clear();
                    self.host_ends();
                }
            }
        }
        if self.waiting.is_empty() {
            self.waiting.shrink_to_fit();
        }
        self.settle();
    }

    /// Draws conclusions once nothing waits any more.
    fn settle(&mut self) {
        // Half of what it may have under way: it never has to wait for us to tell.
        self.owed.credit |= self.passed.wrapping_sub(self.told_passed) >= ROOM / 2;
        if !self.waiting.is_empty() {
            return;
        }
        if self.guest_ended == NOTHING {
            self.reset();
        } else if self.guest_ended & NO_SEND != 0 {
            // Fails only when the other end has closed it, which is seen when it is read.
            let _ = self.stream.shutdown(Shutdown::Write);
        }
    }

    /// Bytes that the guest has room for.
    fn credit(&self) -> u64 {
        self.guest_room.saturating_sub(self.sent.wrapping_sub(self.guest_passed)).into()
    }

    /// Whether it may have data for the guest.
    pub fn may_read(&self) -> bool {
        let is_wanted = self.guest_ended & NO_RECEIVE == 0 && self.host_ended & NO_SEND == 0;
        self.is_readable && self.is_open && is_wanted && self.credit() > 0
    }

    /// Reads data for the guest into `room`.
    pub fn read(&mut self, memory: &GuestMemory, room: Buffers<'_>, iovecs: &mut Iovecs) -> Read {
        let room = room.split_at(self.credit().min(MOST)).0;
        if room.is_empty() {
            return Read::Nothing;
        }
        match iovecs.of(memory, [room]).read_from(self.stream.as_fd()) {
            Ok(0) => self.host_ended |= if self.is_hung_up { NOTHING } else { NO_SEND },
            Ok(read) => {
                self.sent = self.sent.wrapping_add(read as u32);
                return Read::Data(read as u32);
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.is_readable = false,
            Err(_) => self.host_ends(),
        }
        Read::Nothing
    }

    /// What the guest is owed next, with a shutdown's flags.
    pub fn owed(&self) -> Option<(Op, u32)> {
        if self.owed.reset {
            Some((Op::Reset, 0))
        } else if self.owed.request {
            Some((Op::Request, 0))
        } else if self.owed.response {
            Some((Op::Response, 0))
        } else if !self.is_open {
            None
        } else if self.host_ended != self.told_ended {
            Some((Op::Shutdown, self.host_ended))
        } else if self.owed.credit {
            Some((Op::CreditUpdate, 0))
        } else {
            None
        }
    }

    /// The guest was told.
    pub fn tell(&mut self, op: Op, flags: u32) {
        match op {
            Op::Reset => self.is_over = true,
            Op::Request => self.owed.request = false,
            Op::Response => self.owed.response = false,
            Op::Shutdown => self.told_ended = flags,
            Op::CreditUpdate | Op::Data | Op::CreditRequest => {}
        }
        // Every packet says it.
        self.owed.credit = false;
        self.told_passed = self.passed;
    }

    /// Bytes passed on, for a packet's header.
    pub fn passed(&self) -> u32 {
        self.passed
    }

    /// Whether both sides know that it has ended.
    pub fn is_over(&self) -> bool {
        self.is_over
    }
}
