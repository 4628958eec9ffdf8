//! Hostile callers of the API ([`crate::fuzzing`]), from the bytes of a connection to the guest.
//!
//! Whatever comes, each request has one well-formed answer, nonsense is told to be nonsense, descriptors that nobody took
//! are closed, and a configuration that is accepted is the same when it is told.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use super::tests::Owner;
use super::*;
use crate::api::connection::Connection;
use crate::api::http::{self, Method, Parsed, Request};
use crate::api::{Status, routes};
use crate::fuzzing::{JSON_WORDS, Shape, assert_is_told, fuzz};

const HTTP_WORDS: &[&str] = &[
    "\r\n",
    "\r\n\r\n",
    "GET ",
    "PUT ",
    " HTTP/1.1\r\n",
    " HTTP/1.0\r\n",
    "/api/v1/",
    "vm.info",
    "vm.create",
    "vm.boot",
    "vm.pause",
    "vm.add-net",
    "Content-Length: ",
    "Content-Length: 0\r\n",
    "Content-Length: 18446744073709551616\r\n",
    "Transfer-Encoding: chunked\r\n",
    "Expect: 100-continue\r\n",
    "Connection: close\r\n",
    "?",
    "#",
    "\0",
    "é",
    "{}",
];

/// Ways to the states that a guest may be in.
const WAYS: [&[&str]; 5] = [
    &[],
    &["vm.create"],
    &["vm.create", "vm.boot"],
    &["vm.create", "vm.boot", "vm.pause"],
    &["vm.create", "vm.boot", "vm.shutdown"],
];

/// One client, and what it was told.
struct Client {
    stream: UnixStream,
    connection: Connection,
    is_gone: bool,
    told: Vec<u8>,
    answers: usize,
}

impl Client {
    fn new() -> Self {
        let (stream, there) = UnixStream::pair().unwrap();
        stream.set_nonblocking(true).unwrap();
        let connection = Connection::new(there).unwrap();
        Self { stream, connection, is_gone: false, told: Vec::new(), answers: 0 }
    }

    /// Sends some bytes, and lets `owner` answer what has become a request. `along` comes with each.
    fn say(&mut self, bytes: &[u8], owner: &mut Owner, along: Option<&UnixStream>) {
        self.stream.write_all(bytes).unwrap();
        self.is_gone |= self.connection.receive().is_err();
        while !self.is_gone
            && let Some((request, mut fds)) = self.connection.take_request()
        {
            fds.extend(along.map(|along| OwnedFd::from(along.try_clone().unwrap())));
            let response = match routes::command(&request) {
                // These are about files of the host.
                Ok(Command::Snapshot(_) | Command::Restore(_)) => {
                    Response::error(Status::NotImplemented, ["no".into()])
                }
                Ok(command) => owner.vmm.command(command, fds),
                Err(response) => response,
            };
            self.connection.answer(&response);
            self.answers += 1;
            self.listen();
        }
        self.listen();
    }

    fn listen(&mut self) {
        self.is_gone |= self.connection.is_sending() && self.connection.send().is_err();
        let _ = self.stream.read_to_end(&mut self.told);
    }
}

/// Reads answers; how many, without those that only say to go on.
fn answers(mut told: &[u8]) -> usize {
    let mut count = 0;
    while !told.is_empty() {
        let mut headers = [httparse::EMPTY_HEADER; 8];
        let mut head = httparse::Response::new(&mut headers);
        let length = head.parse(told).unwrap().unwrap();
        let status = head.code.unwrap();
        let text = |name| head.headers.iter().find(|header| header.name == name).map(|header| header.value.to_vec());
        let body = text("Content-Length").map_or(0, |text| String::from_utf8(text).unwrap().parse().unwrap());
        let (body, rest) = told[length..].split_at(body);
        told = rest;
        match status {
            100 => continue,
            204 => assert!(body.is_empty()),
            200 => drop(serde_json::from_slice::<serde_json::Value>(body).unwrap()),
            400..=599 => {
                let messages: Vec<String> = serde_json::from_slice(body).unwrap();
                assert!(!messages.is_empty() && messages.iter().all(|message| !message.is_empty()));
            }
            other => panic!("status {other}"),
        }
        count += 1;
    }
    count
}

#[test]
fn connections() {
    fuzz("api/http", Shape::text(2048, HTTP_WORDS), |script| {
        let [how, size, bytes @ ..] = script else { return };
        let mut owner = Owner::in_state(WAYS[usize::from(how / 2) % WAYS.len()]);
        let (mut other_end, along) = UnixStream::pair().unwrap();
        other_end.set_nonblocking(true).unwrap();
        let mut client = Client::new();
        for piece in bytes.chunks(usize::from(*size) * 8 + 1) {
            client.say(piece, &mut owner, (how % 2 == 1).then_some(&along));
            if client.is_gone {
                break;
            }
        }
        let answers = answers(&client.told);
        assert!((client.answers..=client.answers + 1).contains(&answers));
        match http::parse(bytes) {
            Ok(Parsed::Complete { request, length }) => {
                assert!(answers > 0, "a request without an answer");
                assert!(matches!(http::parse(&bytes[..length - 1]), Ok(Parsed::Partial { .. })));
                assert_eq!(http::parse(&bytes[..length]), Ok(Parsed::Complete { request, length }));
            }
            Ok(Parsed::Partial { .. }) => assert_eq!(answers, 0),
            Err(_) => assert!(answers > 0, "nonsense without an answer"),
        }
        // What its devices took goes with the guest.
        owner.vmm.delete();
        drop((owner, client, along));
        assert_eq!(other_end.read(&mut [0]).unwrap(), 0, "a descriptor is still open");
    });
}

/// Requests that have a body.
const BODIES: [&str; 11] = [
    "vm.create",
    "vm.add-disk",
    "vm.add-net",
    "vm.add-fs",
    "vm.add-pmem",
    "vm.add-vsock",
    "vm.add-device",
    "vm.remove-device",
    "vm.resize",
    "vm.snapshot",
    "vm.restore",
];

#[test]
fn bodies() {
    fuzz("api/bodies", Shape::text(4096, JSON_WORDS), |script| {
        let [which, body @ ..] = script else { return };
        let path = format!("/api/v1/{}", BODIES[usize::from(*which) % BODIES.len()]);
        let request = Request { method: Method::Put, path, body: body.to_vec(), keep_alive: true };
        let command = match routes::command(&request) {
            Ok(Command::Snapshot(_) | Command::Restore(_)) => return,
            Ok(command) => command,
            Err(response) => return assert_eq!(answers(&response.encode(true)), 1),
        };
        if let Command::Create(config) = &command {
            assert_is_told(config);
            if let Ok(valid) = config.clone().validate() {
                assert_eq!(valid.clone().validate(), Ok(valid));
            }
        }
        let is_create = matches!(command, Command::Create(_));
        let mut owner = Owner::in_state(WAYS[if is_create { 0 } else { 2 }]);
        assert_eq!(answers(&owner.vmm.command(command, Vec::new()).encode(true)), 1);
        assert_eq!(answers(&owner.vmm.command(Command::Info, Vec::new()).encode(true)), 1);
    });
}
