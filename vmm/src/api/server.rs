//! The listening socket and its clients, for an owner that polls.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;

use rustix::event::{PollFd, PollFlags};

use super::connection::Connection;
use super::http::{Request, Response};
use crate::readiness::accept;

/// Most clients at a time: a node agent, and a few people.
const MAX_CLIENTS: usize = 16;

/// A request that is to be answered, and the descriptors that came with it.
pub struct Call {
    /// What is asked for.
    pub request: Request,
    /// What came along.
    pub fds: Vec<OwnedFd>,
    client: usize,
}

/// The API's socket.
pub struct Server {
    listener: UnixListener,
    clients: Vec<Option<Connection>>,
}

impl Server {
    /// Serves clients of a listening socket.
    ///
    /// # Errors
    /// When it can't be made non-blocking.
    pub fn new(listener: UnixListener) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        Ok(Self { listener, clients: Vec::new() })
    }

    /// Appends what to poll. The answers go to [`Server::ready`], in the same order.
    pub fn watch<'a>(&'a self, fds: &mut Vec<PollFd<'a>>) {
        fds.push(PollFd::from_borrowed_fd(self.listener.as_fd(), PollFlags::IN));
        for client in self.clients.iter().flatten() {
            let flags = if client.is_sending() { PollFlags::OUT } else { PollFlags::IN };
            fds.push(PollFd::from_borrowed_fd(client.fd(), flags));
        }
    }

    /// How many descriptors [`Server::watch`] appends.
    #[must_use]
    pub fn watched(&self) -> usize {
        1 + self.clients.iter().flatten().count()
    }

    /// Reads and sends where polling says so, and lets new clients in.
    pub fn ready(&mut self, results: &[PollFlags]) {
        let Some((listener, clients)) = results.split_first() else { return };
        for (slot, result) in self.clients.iter_mut().filter(|slot| slot.is_some()).zip(clients) {
            let Some(client) = slot else { continue };
            let outcome = match (result.is_empty(), client.is_sending()) {
                (true, _) => Ok(()),
                (false, true) => client.send(),
                (false, false) => client.receive(),
            };
            if outcome.is_err() {
                *slot = None;
            }
        }
        self.clients.retain(Option::is_some);
        if !listener.is_empty() {
            self.accept();
        }
    }

    /// The next request of any client.
    pub fn take_call(&mut self) -> Option<Call> {
        self.clients.iter_mut().enumerate().find_map(|(client, slot)| {
            let (request, fds) = slot.as_mut()?.take_request()?;
            Some(Call { request, fds, client })
        })
    }

    /// Answers a request.
    pub fn answer(&mut self, client: Answering, response: &Response) {
        if let Some(Some(connection)) = self.clients.get_mut(client.0) {
            connection.answer(response);
        }
        self.flush();
    }

    /// Sends what clients will take, refusals of what was no request among it.
    pub fn flush(&mut self) {
        for slot in &mut self.clients {
            // Gone clients keep their place until the next round, so that numbers stay what they are.
            if slot.as_mut().is_some_and(|client| client.is_sending() && client.send().is_err()) {
                *slot = None;
            }
        }
    }

    fn accept(&mut self) {
        while let Some(stream) = accept(&self.listener) {
            let Ok(mut client) = Connection::new(stream) else { continue };
            if self.clients.len() >= MAX_CLIENTS {
                // Whoever has been there longest and says nothing makes room; if there is none, whoever is in no hurry.
                let place = |makes_room: fn(&Connection) -> bool| {
                    self.clients.iter().position(|client| client.as_ref().is_none_or(makes_room))
                };
                let Some(place) = place(Connection::is_idle).or_else(|| place(Connection::is_waiting)) else {
                    client.refuse();
                    // It fits into the socket's buffer, or is lost.
                    let _ = client.send();
                    continue;
                };
                self.clients.remove(place);
            }
            self.clients.push(Some(client));
        }
    }
}

/// Whom an answer goes to.
#[derive(Debug, Clone, Copy)]
pub struct Answering(usize);

impl Call {
    /// Whom the answer goes to.
    #[must_use]
    pub fn client(&self) -> Answering {
        Answering(self.client)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::UnixStream;

    /// One round of an owner's loop that answers every request.
    fn round(server: &mut Server) {
        let mut fds = Vec::new();
        server.watch(&mut fds);
        assert_eq!(fds.len(), server.watched());
        let soon = rustix::event::Timespec { tv_sec: 0, tv_nsec: 1_000_000 };
        rustix::event::poll(&mut fds, Some(&soon)).unwrap();
        let results: Vec<_> = fds.iter().map(PollFd::revents).collect();
        drop(fds);
        server.ready(&results);
        while let Some(call) = server.take_call() {
            let client = call.client();
            server.answer(client, &Response::DONE);
        }
    }

    fn server() -> (tempfile::TempDir, std::path::PathBuf, Server) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("api");
        let server = Server::new(UnixListener::bind(&path).unwrap()).unwrap();
        (folder, path, server)
    }

    fn ask(server: &mut Server, client: &mut UnixStream) -> String {
        client.write_all(b"GET /a HTTP/1.1\r\n\r\n").unwrap();
        (0..3).for_each(|_| round(server));
        let mut answer = [0; 128];
        let length = client.read(&mut answer).unwrap();
        String::from_utf8_lossy(&answer[..length]).into_owned()
    }

    #[test]
    fn several_clients_are_served_again_and_again() {
        let (_kept, path, mut server) = server();
        let mut clients: Vec<_> = (0..4).map(|_| UnixStream::connect(&path).unwrap()).collect();
        for _ in 0..2 {
            for client in &mut clients {
                assert!(ask(&mut server, client).starts_with("HTTP/1.1 204"));
            }
        }
        drop(clients);
        round(&mut server);
        assert_eq!(server.watched(), 1);
    }

    #[test]
    fn who_never_finishes_makes_room() {
        let (_kept, path, mut server) = server();
        let mut slow: Vec<_> = (0..MAX_CLIENTS).map(|_| UnixStream::connect(&path).unwrap()).collect();
        slow.iter_mut().for_each(|client| client.write_all(b"G").unwrap());
        (0..3).for_each(|_| round(&mut server));
        assert_eq!(server.watched(), 1 + MAX_CLIENTS);
        let mut client = UnixStream::connect(&path).unwrap();
        assert!(ask(&mut server, &mut client).starts_with("HTTP/1.1 204"));
        assert_eq!(slow[0].read(&mut [0]).unwrap(), 0, "who was there longest");
        // Of those that are left each can still finish.
        slow[1].write_all(b"ET /a HTTP/1.1\r\n\r\n").unwrap();
        (0..3).for_each(|_| round(&mut server));
        assert!(slow[1].read(&mut [0; 128]).unwrap() > 0);
    }

    #[test]
    fn who_says_nothing_makes_room() {
        let (_kept, path, mut server) = server();
        let idle: Vec<_> = (0..2 * MAX_CLIENTS)
            .map(|_| {
                let client = UnixStream::connect(&path).unwrap();
                round(&mut server);
                client
            })
            .collect();
        assert_eq!(server.watched(), 1 + MAX_CLIENTS);
        assert!(ask(&mut server, &mut UnixStream::connect(&path).unwrap()).starts_with("HTTP/1.1 204"));
        drop(idle);
    }
}
