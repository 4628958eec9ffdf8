//! Which packet belongs to which connection.

use std::collections::VecDeque;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;

use rustix::net::{AddressFamily, RecvFlags, SocketAddrUnix, SocketFlags, SocketType, connect, recv, socket_with};
use vmm_sys_util::epoll::EventSet;

use super::connection::{Connection, Ports, ROOM, Read};
use super::packet::{HEADER, HOST, Header, Op, STREAM};
use crate::counters::Traffic;
use crate::virtio::chain::{Chain, Malformed};
use crate::virtio::queue::DeviceQueue;
use crate::virtio::transfer::Iovecs;
use crate::virtio::worker::Poll;

/// Connections at once, those that have yet to say what they want included.
pub const CONNECTIONS: usize = 128;

/// Token of the socket that programs of the host's connect to, and of the first connection.
pub const LISTENER: u64 = 1 << 32;
pub const STREAMS: u64 = 2 << 32;

/// Packets in a row before the other direction has its turn.
const TURN: usize = 64;

/// Refusals that wait for room in the guest; more are lost.
const REFUSALS: usize = 64;

/// Bytes of the longest greeting, `CONNECT 4294967295\n`.
const GREETING: usize = 19;

/// First port of the host's that is given to its programs; below it are those that guests ask for.
const FIRST_PORT: u32 = 1 << 30;

/// Events of a stream, once for each change.
const CHANGES: EventSet =
    EventSet::IN.union(EventSet::OUT).union(EventSet::READ_HANG_UP).union(EventSet::EDGE_TRIGGERED);

enum Slot {
    Free,
    /// Has yet to say which port it wants.
    Greeting(UnixStream),
    Connected(Box<Connection>),
}

/// The host's end, at unix sockets.
pub struct Sockets {
    /// Where programs of the host's connect to, to say `CONNECT port`.
    pub listener: UnixListener,
    /// Where the guest's connections to port N go, with `_N` behind it; without it nobody listens for them.
    pub path: Option<PathBuf>,
}

/// Connections of a guest.
pub struct Switch {
    sockets: Sockets,
    cid: u64,
    receive: DeviceQueue,
    transmit: DeviceQueue,
    slots: Vec<Slot>,
    /// Of each slot, the token of what is in it, or was last: no two streams have the same.
    tokens: Vec<u64>,
    refusals: VecDeque<Header>,
    next_port: u32,
    /// The slot whose turn it is to send to the guest.
    next_slot: usize,
    is_listening: bool,
    iovecs: Iovecs,
    /// Packets of connections; bytes are those of their data.
    traffic: Arc<Traffic>,
}

impl Switch {
    /// Nobody is connected yet.
    pub fn new(sockets: Sockets, cid: u64, receive: DeviceQueue, transmit: DeviceQueue, traffic: Arc<Traffic>) -> Self {
        Self {
            sockets,
            cid,
            receive,
            transmit,
            slots: Vec::new(),
            tokens: Vec::new(),
            refusals: VecDeque::new(),
            next_port: FIRST_PORT,
            next_slot: 0,
            is_listening: false,
            iovecs: Iovecs::default(),
            traffic,
        }
    }

    /// What outlives the driver.
    pub fn into_sockets(self) -> Sockets {
        self.sockets
    }

    /// Its queues: for packets to the guest, and from it.
    pub fn queues(&self) -> [&DeviceQueue; 2] {
        [&self.receive, &self.transmit]
    }

    /// Begins, or goes on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn start(&mut self, poll: &Poll) -> io::Result<()> {
        self.is_listening = false;
        for (&token, slot) in self.tokens.iter().zip(&self.slots) {
            match slot {
                Slot::Greeting(stream) => poll.add(stream, CHANGES, token)?,
                Slot::Connected(connection) => poll.add(&connection.stream, CHANGES, token)?,
                Slot::Free => {}
            }
        }
        self.work(poll);
        Ok(())
    }

    /// Something happened at a stream, or somebody came.
    pub fn ready(&mut self, token: u64, events: EventSet, poll: &Poll) {
        if token == LISTENER {
            if !self.accept(poll) {
                return self.move_packets(poll);
            }
        } else if let Some(index) = self.slot_of(token) {
            let slot = &mut self.slots[index];
            match slot {
                Slot::Greeting(_) => self.greet(index),
                Slot::Connected(connection) => {
                    connection.is_readable = true;
                    connection.flush();
                    if events.intersects(EventSet::HANG_UP | EventSet::ERROR) && connection.hang_up() {
                        *slot = Slot::Free;
                    }
                }
                Slot::Free => {}
            }
        }
        self.work(poll);
    }

    /// Moves what there is, both ways.
    pub fn work(&mut self, poll: &Poll) {
        self.move_packets(poll);
        let has_place = self.slots.len() < CONNECTIONS || self.slots.iter().any(|slot| matches!(slot, Slot::Free));
        if has_place && !self.is_listening {
            // If it fails, it is tried again when something happens.
            self.is_listening = poll.add(&self.sockets.listener, EventSet::IN, LISTENER).is_ok();
        } else if !has_place && self.is_listening {
            // The next one waits.
            poll.remove(&self.sockets.listener);
            self.is_listening = false;
        }
    }

    fn move_packets(&mut self, poll: &Poll) {
        self.take_packets(poll);
        self.give_packets();
    }

    /// Where the stream with this token is; nowhere when it has gone since the event was taken.
    fn slot_of(&self, token: u64) -> Option<usize> {
        let index = ((token - STREAMS) % CONNECTIONS as u64) as usize;
        (self.tokens.get(index) == Some(&token)).then_some(index)
    }

    /// Puts something into a free place, watched by `poll`.
    fn place(&mut self, slot: Slot, poll: &Poll) -> Option<usize> {
        let index = match self.slots.iter().position(|slot| matches!(slot, Slot::Free)) {
            Some(index) => index,
            None if self.slots.len() < CONNECTIONS => {
                self.slots.push(Slot::Free);
                self.tokens.push(STREAMS + self.slots.len() as u64 - 1);
                self.slots.len() - 1
            }
            None => return None,
        };
        self.tokens[index] += CONNECTIONS as u64;
        let stream = match &slot {
            Slot::Greeting(stream) => stream,
            Slot::Connected(connection) => &connection.stream,
            Slot::Free => return None,
        };
        poll.add(stream, CHANGES, self.tokens[index]).ok()?;
        self.slots[index] = slot;
        Some(index)
    }

    /// Lets in who has come. `false` when that can't be, for want of descriptors: nobody is then waited for until something
    /// else happens.
    fn accept(&mut self, poll: &Poll) -> bool {
        let stream = match self.sockets.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
            Err(_) => {
                poll.remove(&self.sockets.listener);
                self.is_listening = false;
                return false;
            }
        };
        if stream.set_nonblocking(true).is_ok()
            && let Some(index) = self.place(Slot::Greeting(stream), poll)
        {
            self.greet(index);
        }
        true
    }

    /// Reads which port a program of the host's wants.
    fn greet(&mut self, index: usize) {
        let Some(slot @ Slot::Greeting(_)) = self.slots.get_mut(index) else { return };
        let Slot::Greeting(stream) = std::mem::replace(slot, Slot::Free) else { return };
        let mut line = [0; GREETING];
        let length = match recv(&stream, &mut line[..], RecvFlags::PEEK) {
            Ok((_, length)) => length,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => {
                self.slots[index] = Slot::Greeting(stream);
                return;
            }
            Err(_) => return,
        };
        let Some(end) = line[..length].iter().position(|byte| *byte == b'\n') else {
            // The rest is to come, unless it is too long, or the end.
            if length > 0 && length < GREETING {
                self.slots[index] = Slot::Greeting(stream);
            }
            return;
        };
        // Only the line: what follows is for the guest. It was there just now.
        let is_read = recv(&stream, &mut line[..=end], RecvFlags::empty()).is_ok_and(|(_, read)| read == end + 1);
        let words = line[..end].strip_prefix(b"CONNECT ").and_then(|port| std::str::from_utf8(port).ok());
        if let (true, Some(guest)) = (is_read, words.and_then(|port| port.trim().parse().ok())) {
            let ports = Ports { guest, host: self.new_port() };
            self.slots[index] = Slot::Connected(Box::new(Connection::requested(ports, stream)));
        }
    }

    fn new_port(&mut self) -> u32 {
        loop {
            let port = self.next_port;
            self.next_port = port.checked_add(1).unwrap_or(FIRST_PORT);
            if self.connections().all(|connection| connection.ports.host != port) {
                return port;
            }
        }
    }

    fn connections(&self) -> impl Iterator<Item = &Connection> {
        self.slots.iter().filter_map(|slot| match slot {
            Slot::Connected(connection) => Some(&**connection),
            Slot::Free | Slot::Greeting(_) => None,
        })
    }

    fn find(&mut self, ports: Ports) -> Option<usize> {
        self.slots.iter().position(|slot| matches!(slot, Slot::Connected(connection) if connection.ports == ports))
    }

    fn take_packets(&mut self, poll: &Poll) {
        let mut chain = Chain::default();
        let mut left = TURN;
        loop {
            self.transmit.suppress_notifications();
            while left > 0 && self.transmit.pop(&mut chain) {
                left -= 1;
                let mut header = [0; HEADER];
                if chain.readable().read(self.transmit.memory(), &mut header) != HEADER {
                    return self.transmit.fail(Malformed::Shape);
                }
                self.take(&Header::parse(&header), &chain, poll);
                self.transmit.complete(chain.head(), 0);
            }
            self.transmit.signal();
            if left == 0 {
                return self.transmit.notify_self();
            }
            if !self.transmit.enable_notifications() {
                return;
            }
        }
    }

    fn take(&mut self, header: &Header, chain: &Chain, poll: &Poll) {
        let data = chain.readable().split_at(HEADER as u64).1.split_at(header.length.into()).0;
        let is_whole = data.len() == u64::from(header.length);
        if header.from != self.cid || header.to != HOST || header.kind != STREAM || !is_whole {
            return self.refuse(header);
        }
        self.traffic.from_guest.add(header.length.into());
        let ports = Ports { guest: header.from_port, host: header.to_port };
        let slot = self.find(ports).map(|index| &mut self.slots[index]);
        match (header.op, slot) {
            (Some(Op::Request), None) => self.connect(header, ports, poll),
            (Some(Op::Reset), Some(slot)) => *slot = Slot::Free,
            (Some(op), Some(Slot::Connected(connection))) => {
                connection.note_credit(header.room, header.passed);
                match op {
                    Op::Request | Op::Reset => connection.reset(),
                    Op::Response => connection.agreed(),
                    Op::Shutdown => connection.guest_ends(header.flags),
                    Op::Data => connection.take(self.transmit.memory(), data, &mut self.iovecs),
                    Op::CreditRequest => connection.ask_credit(),
                    Op::CreditUpdate => {}
                }
            }
            _ => self.refuse(header),
        }
    }

    fn refuse(&mut self, header: &Header) {
        if header.op != Some(Op::Reset) && self.refusals.len() < REFUSALS {
            self.refusals.push_back(header.refusal());
        }
    }

    /// Connects the guest to whoever listens for that port.
    fn connect(&mut self, header: &Header, ports: Ports, poll: &Poll) {
        let Some(path) = self.sockets.path.clone() else { return self.refuse(header) };
        let mut path = path.into_os_string();
        path.push(format!("_{}", ports.host));
        let open = || {
            let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
            let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            connect(&socket, &SocketAddrUnix::new(path)?)?;
            Ok::<_, rustix::io::Errno>(UnixStream::from(socket))
        };
        let Ok(stream) = open() else { return self.refuse(header) };
        let mut connection = Connection::accepted(ports, stream);
        connection.note_credit(header.room, header.passed);
        if self.place(Slot::Connected(Box::new(connection)), poll).is_none() {
            self.refuse(header);
        }
    }

    fn give_packets(&mut self) {
        let mut chain = Chain::default();
        let mut left = TURN;
        self.receive.suppress_notifications();
        while self.has_something() {
            if left == 0 {
                self.receive.notify_self();
                break;
            }
            left -= 1;
            if !self.receive.pop(&mut chain) {
                if self.receive.enable_notifications() {
                    continue;
                }
                break;
            }
            if chain.writable().len() <= HEADER as u64 {
                self.receive.fail(Malformed::Shape);
                break;
            }
            match self.send_one(&chain) {
                Some(written) => self.receive.complete(chain.head(), written),
                None => self.receive.put_back(&chain),
            }
        }
        self.receive.signal();
    }

    fn has_something(&self) -> bool {
        let has = |connection: &Connection| connection.owed().is_some() || connection.may_read();
        !self.refusals.is_empty() || self.connections().any(has)
    }

    /// Writes one packet for the guest, and returns its bytes; none when there was nothing after all.
    fn send_one(&mut self, chain: &Chain) -> Option<u32> {
        let memory = self.receive.memory();
        let (room, body) = chain.writable().split_at(HEADER as u64);
        if let Some(refusal) = self.refusals.pop_front() {
            room.write(memory, &refusal.bytes());
            return Some(HEADER as u32);
        }
        let count = self.slots.len();
        for offset in 0..count {
            let index = (self.next_slot + offset) % count;
            let Slot::Connected(connection) = &mut self.slots[index] else { continue };
            let (op, flags, length) = if let Some((op, flags)) = connection.owed() {
                (op, flags, 0)
            } else if connection.may_read()
                && let Read::Data(length) = connection.read(memory, body, &mut self.iovecs)
            {
                (Op::Data, 0, length)
            } else {
                continue;
            };
            connection.tell(op, flags);
            let header = Header {
                from: HOST,
                to: self.cid,
                from_port: connection.ports.host,
                to_port: connection.ports.guest,
                length,
                kind: STREAM,
                op: Some(op),
                flags,
                room: ROOM,
                passed: connection.passed(),
            };
            room.write(memory, &header.bytes());
            self.traffic.to_guest.add(length.into());
            if connection.is_over() {
                self.slots[index] = Slot::Free;
            }
            self.next_slot = index + 1;
            return Some(HEADER as u32 + length);
        }
        None
    }
}
