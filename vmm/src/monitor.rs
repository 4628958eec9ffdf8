//! Tells what happens to the guest: Cloud Hypervisor's event monitor, and a socket that many can listen at.
//!
//! Events are JSON objects, one a line. Who does not read fast enough is dropped, never waited for; nothing is said
//! twice.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use rustix::event::PollFlags;
use serde::Serialize;

use crate::readiness::{accept, is_ready};

/// Most listeners at a time; the one that has been there longest makes room.
const MAX_LISTENERS: usize = 8;

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Happened {
    /// The guest was created.
    Created,
    /// It runs.
    Booted,
    /// vCPUs are stopped.
    Paused,
    /// vCPUs run again.
    Resumed,
    /// It starts over.
    Reset(By),
    /// It has ended.
    Shutdown(By),
    /// It is no more.
    Deleted,
    /// Its state was written.
    Snapshotted,
    /// It was built from saved state.
    Restored,
    /// Its kernel has panicked.
    Panicked,
    /// A program in it has opened or closed the agent's port.
    Agent {
        /// Which of both.
        connected: bool,
    },
}

/// Whose doing it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    /// The guest's.
    Guest,
    /// A caller's.
    Api,
}

impl Happened {
    /// Source, name and property of the event.
    fn words(self) -> (&'static str, &'static str, Option<(&'static str, &'static str)>) {
        let by = |by: By| Some(("by", if by == By::Guest { "guest" } else { "api" }));
        match self {
            Self::Created => ("vm", "created", None),
            Self::Booted => ("vm", "booted", None),
            Self::Paused => ("vm", "paused", None),
            Self::Resumed => ("vm", "resumed", None),
            Self::Reset(whose) => ("vm", "reset", by(whose)),
            Self::Shutdown(whose) => ("vm", "shutdown", by(whose)),
            Self::Deleted => ("vm", "deleted", None),
            Self::Snapshotted => ("vm", "snapshotted", None),
            Self::Restored => ("vm", "restored", None),
            Self::Panicked => ("guest", "panic", None),
            Self::Agent { connected } => {
                ("guest", "agent", Some(("connected", if connected { "true" } else { "false" })))
            }
        }
    }
}

#[derive(Serialize)]
struct Line<'a> {
    timestamp: Timestamp,
    source: &'a str,
    event: &'a str,
    properties: Option<std::collections::BTreeMap<&'a str, &'a str>>,
}

/// Time since the VMM started.
#[derive(Serialize)]
struct Timestamp {
    secs: u64,
    nanos: u32,
}

/// Where events go.
pub struct Monitor {
    started: Instant,
    file: Option<File>,
    socket: Option<UnixListener>,
    listeners: Vec<UnixStream>,
}

impl Default for Monitor {
    fn default() -> Self {
        Self { started: Instant::now(), file: None, socket: None, listeners: Vec::new() }
    }
}

impl Monitor {
    /// Writes events to a file, as Cloud Hypervisor does: an empty line follows each.
    #[must_use]
    pub fn with_file(mut self, file: File) -> Self {
        self.file = Some(file);
        self
    }

    /// Sends events to whoever connects to a socket.
    ///
    /// # Errors
    /// When it can't be made non-blocking.
    pub fn with_socket(mut self, socket: UnixListener) -> io::Result<Self> {
        socket.set_nonblocking(true)?;
        self.socket = Some(socket);
        Ok(self)
    }

    /// What to poll for new listeners.
    #[must_use]
    pub fn fd(&self) -> Option<BorrowedFd<'_>> {
        self.socket.as_ref().map(AsFd::as_fd)
    }

    /// Lets new listeners in.
    pub fn accept(&mut self) {
        while let Some(stream) = self.socket.as_ref().and_then(accept) {
            if stream.set_nonblocking(true).is_err() {
                continue;
            }
            self.listeners.retain_mut(is_there);
            if self.listeners.len() >= MAX_LISTENERS {
                self.listeners.remove(0);
            }
            self.listeners.push(stream);
        }
    }

    /// Tells everyone.
    pub fn tell(&mut self, happened: Happened) {
        // Someone may have connected before it happened and wait to be let in.
        self.accept();
        let (source, event, property) = happened.words();
        let time = self.started.elapsed();
        let line = Line {
            timestamp: Timestamp { secs: time.as_secs(), nanos: time.subsec_nanos() },
            source,
            event,
            properties: property.map(|property| [property].into()),
        };
        let Ok(mut bytes) = serde_json::to_vec(&line) else { return };
        bytes.push(b'\n');
        // A line that was sent in part would spoil the next.
        self.listeners.retain_mut(|stream| stream.write(&bytes).is_ok_and(|sent| sent == bytes.len()));
        bytes.push(b'\n');
        if let Some(Err(error)) = self.file.as_mut().map(|file| write_now(file, &bytes)) {
            self.file = None;
            // Where nobody hears this either, there is nobody.
            let _ = writeln!(io::stderr(), "vse-vmm: the event monitor hears no more: {error}");
        }
    }
}

/// Writes a line to a file, or to a pipe or terminal that has room: if it has any, it has some hundred bytes.
fn write_now(file: &mut File, line: &[u8]) -> io::Result<()> {
    if !is_ready(file, PollFlags::OUT) {
        return Err(io::ErrorKind::WouldBlock.into());
    }
    file.write_all(line)
}

/// Whether a listener has not closed its end. What listeners say is not heard.
fn is_there(stream: &mut UnixStream) -> bool {
    match stream.read(&mut [0; 64]) {
        Ok(0) => false,
        Ok(_) => true,
        Err(error) => matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};

    fn with_socket() -> (tempfile::TempDir, std::path::PathBuf, Monitor) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let monitor = Monitor::default().with_socket(UnixListener::bind(&path).unwrap()).unwrap();
        (directory, path, monitor)
    }

    fn line(from: &mut BufReader<UnixStream>) -> serde_json::Value {
        let mut text = String::new();
        from.read_line(&mut text).unwrap();
        let mut value: serde_json::Value = serde_json::from_str(&text).unwrap();
        assert!(value["timestamp"]["nanos"].is_u64());
        value.as_object_mut().unwrap().remove("timestamp");
        value
    }

    #[test]
    fn each_listener_hears_what_happens_from_then_on() {
        let (_kept, path, mut monitor) = with_socket();
        let mut first = BufReader::new(UnixStream::connect(&path).unwrap());
        monitor.tell(Happened::Booted);
        let mut second = BufReader::new(UnixStream::connect(&path).unwrap());
        monitor.tell(Happened::Reset(By::Guest));
        let booted = serde_json::json!({"source": "vm", "event": "booted", "properties": null});
        let reset = serde_json::json!({"source": "vm", "event": "reset", "properties": {"by": "guest"}});
        assert_eq!([line(&mut first), line(&mut first)], [booted, reset.clone()]);
        assert_eq!(line(&mut second), reset);
    }

    #[test]
    fn who_does_not_read_is_dropped() {
        let (_kept, path, mut monitor) = with_socket();
        let _deaf = UnixStream::connect(&path).unwrap();
        monitor.accept();
        assert_eq!(monitor.listeners.len(), 1);
        let told = (0..100_000).take_while(|_| {
            monitor.tell(Happened::Paused);
            !monitor.listeners.is_empty()
        });
        assert!(told.count() < 99_999);
    }

    #[test]
    fn who_is_gone_takes_no_room() {
        let (_kept, path, mut monitor) = with_socket();
        let first = UnixStream::connect(&path).unwrap();
        monitor.accept();
        for _ in 0..3 * MAX_LISTENERS {
            drop(UnixStream::connect(&path).unwrap());
            monitor.accept();
        }
        monitor.tell(Happened::Booted);
        assert!(line(&mut BufReader::new(first))["event"] == "booted");
        let all: Vec<_> = (0..2 * MAX_LISTENERS).map(|_| UnixStream::connect(&path).unwrap()).collect();
        monitor.accept();
        assert_eq!(monitor.listeners.len(), MAX_LISTENERS);
        drop(all);
    }

    #[test]
    fn a_pipe_that_nobody_reads_is_left() {
        let (reader, writer) = std::io::pipe().unwrap();
        let mut monitor = Monitor::default().with_file(File::from(std::os::fd::OwnedFd::from(writer)));
        let told = (0..100_000).take_while(|_| {
            monitor.tell(Happened::Paused);
            monitor.file.is_some()
        });
        assert!((100..99_999).contains(&told.count()));
        // What is in it are whole lines.
        let text = std::io::read_to_string(reader).unwrap();
        assert!(text.ends_with("\"properties\":null}\n\n"), "{text}");
    }

    #[test]
    fn a_file_has_an_empty_line_after_each() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("events");
        let mut monitor = Monitor::default().with_file(File::create(&path).unwrap());
        monitor.tell(Happened::Agent { connected: true });
        let text = std::fs::read_to_string(path).unwrap();
        assert!(
            text.ends_with("\"source\":\"guest\",\"event\":\"agent\",\"properties\":{\"connected\":\"true\"}}\n\n")
        );
    }
}
