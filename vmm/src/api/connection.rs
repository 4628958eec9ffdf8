//! One client: what has come, what is still to be sent.

use std::io::{self, IoSliceMut, Write};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};

use super::http::{self, BODY_BYTES, HEAD_BYTES, Parsed, Request, Response, Status};

/// Most descriptors that come with one request: the queues of a network device.
const MAX_FDS: usize = 64;
/// How much is read at once.
const PART: usize = 4 << 10;

/// A client's connection. Never blocks.
pub struct Connection {
    stream: UnixStream,
    received: Vec<u8>,
    fds: Vec<OwnedFd>,
    unsent: Vec<u8>,
    state: State,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Open,
    /// The client was told to go on with the body.
    Continued,
    /// Nothing more is read: closed when all is sent.
    Closing,
}

/// The client is gone, or has to go.
#[derive(Debug)]
pub struct Gone;

impl Connection {
    /// Takes over a socket.
    ///
    /// # Errors
    /// When it can't be made non-blocking.
    pub fn new(stream: UnixStream) -> io::Result<Self> {
        stream.set_nonblocking(true)?;
        Ok(Self { stream, received: Vec::new(), fds: Vec::new(), unsent: Vec::new(), state: State::Open })
    }

    /// What to poll.
    #[must_use]
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Whether it waits for the client to read. Nothing is read from it meanwhile.
    #[must_use]
    pub fn is_sending(&self) -> bool {
        !self.unsent.is_empty()
    }

    /// Whether nothing has begun that isn't finished.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.unsent.is_empty() && self.received.is_empty()
    }

    /// Whether it waits for its client: to begin a request, to finish one, or to read the answer.
    #[must_use]
    pub fn is_waiting(&self) -> bool {
        self.is_sending() || matches!(http::parse(&self.received), Ok(Parsed::Partial { .. }))
    }

    /// Reads once what has come.
    ///
    /// # Errors
    /// When there will be nothing more.
    pub fn receive(&mut self) -> Result<(), Gone> {
        let mut part = [0; PART];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let message = match recvmsg(&self.stream, &mut [IoSliceMut::new(&mut part)], &mut control, flags) {
            Ok(message) => message,
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return Ok(()),
            Err(_) => return Err(Gone),
        };
        for ancillary in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = ancillary {
                self.fds.extend(fds);
            }
        }
        if message.bytes == 0 || self.fds.len() > MAX_FDS {
            return Err(Gone);
        }
        self.received.extend_from_slice(&part[..message.bytes]);
        // `parse` refuses what is longer; a client that sends on without waiting for answers has to wait itself.
        if self.received.len() > HEAD_BYTES + BODY_BYTES { Err(Gone) } else { Ok(()) }
    }

    /// The next request that has come as a whole, with the descriptors that came with it.
    pub fn take_request(&mut self) -> Option<(Request, Vec<OwnedFd>)> {
        if self.is_sending() || self.received.is_empty() || self.state == State::Closing {
            return None;
        }
        match http::parse(&self.received) {
            Ok(Parsed::Complete { request, length }) => {
                self.received.drain(..length);
                // A large body's memory isn't kept for the next.
                self.received.shrink_to(PART);
                self.state = if request.keep_alive { State::Open } else { State::Closing };
                Some((request, std::mem::take(&mut self.fds)))
            }
            Ok(Parsed::Partial { awaits_continue }) => {
                if awaits_continue && self.state == State::Open {
                    self.state = State::Continued;
                    self.unsent.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
                None
            }
            Err(refusal) => {
                self.state = State::Closing;
                self.answer(&refusal);
                None
            }
        }
    }

    /// Queues the answer to the last request.
    pub fn answer(&mut self, response: &Response) {
        self.unsent.extend(response.encode(self.state != State::Closing));
    }

    /// Tells the client that there are too many.
    pub fn refuse(&mut self) {
        self.state = State::Closing;
        self.answer(&Response::error(Status::InternalServerError, ["too many connections".to_owned()]));
    }

    /// Sends what the client will take.
    ///
    /// # Errors
    /// When it takes nothing more, or all was said.
    pub fn send(&mut self) -> Result<(), Gone> {
        while !self.unsent.is_empty() {
            match self.stream.write(&self.unsent) {
                Ok(0) => return Err(Gone),
                Ok(sent) => drop(self.unsent.drain(..sent)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => return Err(Gone),
            }
        }
        self.unsent.shrink_to(PART);
        if self.state == State::Closing { Err(Gone) } else { Ok(()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;

    fn pair() -> (UnixStream, Connection) {
        let (client, server) = UnixStream::pair().unwrap();
        (client, Connection::new(server).unwrap())
    }

    #[test]
    fn a_request_in_pieces_is_answered_once() {
        let (mut client, mut connection) = pair();
        for piece in ["PUT /a HTTP/1.1\r\nContent-Le", "ngth: 2\r\n\r\n{", "}"] {
            assert!(connection.take_request().is_none());
            client.write_all(piece.as_bytes()).unwrap();
            connection.receive().unwrap();
        }
        let (request, fds) = connection.take_request().unwrap();
        assert_eq!((request.path.as_str(), request.body.as_slice(), fds.len()), ("/a", &b"{}"[..], 0));
        assert!(connection.take_request().is_none());
        connection.answer(&Response::DONE);
        connection.send().unwrap();
        let mut answer = [0; 128];
        let length = client.read(&mut answer).unwrap();
        assert!(answer[..length].starts_with(b"HTTP/1.1 204"));
    }

    #[test]
    fn nonsense_is_answered_and_the_connection_closed() {
        let (mut client, mut connection) = pair();
        client.write_all(b"\x16\x03\x01\r\n\r\n").unwrap();
        connection.receive().unwrap();
        assert!(connection.take_request().is_none());
        assert!(connection.send().is_err());
        drop(connection);
        let mut answer = String::new();
        client.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 400"), "{answer}");
    }

    #[test]
    fn who_does_not_read_does_not_block() {
        let (_client, mut connection) = pair();
        connection.answer(&Response { status: Status::Ok, body: vec![b'x'; 8 << 20] });
        connection.send().unwrap();
        assert!(connection.is_sending());
    }

    #[test]
    fn who_sends_without_end_has_to_go() {
        let (mut client, mut connection) = pair();
        client.set_nonblocking(true).unwrap();
        client.write_all(b"PUT /a HTTP/1.1\r\nContent-Length: 1000000\r\n\r\n").unwrap();
        let more = [b'x'; 4096];
        let gone = (0..10_000).any(|_| {
            let _ = client.write(&more);
            connection.receive().is_err()
        });
        assert!(gone);
    }

    #[test]
    fn descriptors_come_along() {
        use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
        let (client, mut connection) = pair();
        let file = std::fs::File::open("/dev/null").unwrap();
        let fds = [file.as_fd()];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        assert!(control.push(SendAncillaryMessage::ScmRights(&fds)));
        let text = io::IoSlice::new(b"PUT /a HTTP/1.1\r\n\r\n");
        sendmsg(&client, &[text], &mut control, SendFlags::empty()).unwrap();
        connection.receive().unwrap();
        assert_eq!(connection.take_request().unwrap().1.len(), 1);
    }
}
