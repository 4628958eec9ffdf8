//! What the engine tells by itself: JSON objects one after the other, on a socket or in a file that grows.

use std::fs::File;
use std::io::Read;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::Value;
use tokio::io::AsyncReadExt;
use tokio::net::UnixStream;
use tokio::sync::{broadcast, watch};
use tokio::task::AbortHandle;

use crate::EventSource;
use crate::guest::{Event, ShutdownCause};

/// Longest object taken from the engine.
const OBJECT_BYTES: usize = 64 << 10;

/// Most that is read of a file at one look: an engine that writes faster than this is out of order, and must not keep
/// the others waiting.
const ROUND_BYTES: u64 = 64 << 10;

/// Events kept for a slow reader.
const EVENTS: usize = 64;

/// How often a file is looked at for more; only Cloud Hypervisor has one.
const LOOK: Duration = Duration::from_millis(250);

/// The events of one engine, read by a task as long as this lives.
#[derive(Debug)]
pub(super) struct Follower {
    events: broadcast::Receiver<Event>,
    task: AbortHandle,
}

impl Follower {
    /// Follows a source. `closed` ends with the connection to the engine, `stopping` tells that we ended it.
    pub(super) fn start(
        source: Option<EventSource>,
        mut closed: watch::Receiver<()>,
        stopping: Arc<AtomicBool>,
    ) -> Self {
        let (sender, events) = broadcast::channel(EVENTS);
        let tell = move |object: &Value| {
            if let Some(event) = event(object, stopping.load(Ordering::Relaxed)) {
                // Nobody needs to listen.
                let _ = sender.send(event);
            }
        };
        let task = tokio::spawn(async move {
            match source {
                // It ends with the engine, after its last words.
                Some(EventSource::Socket(socket)) => follow_socket(socket, tell).await,
                Some(EventSource::File(file)) => follow_file(file, &mut closed, tell).await,
                None => while closed.changed().await.is_ok() {},
            }
        });
        Self { events, task: task.abort_handle() }
    }

    /// Events from now on.
    pub(super) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.resubscribe()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn follow_socket(mut socket: UnixStream, mut tell: impl FnMut(&Value)) {
    let mut objects = Objects::default();
    let mut part = [0; 4096];
    while let Ok(read @ 1..) = socket.read(&mut part).await {
        if objects.take(&part[..read], &mut tell).is_err() {
            return;
        }
    }
}

/// From the end of the file: what was before is seen by asking.
async fn follow_file(mut file: File, closed: &mut watch::Receiver<()>, mut tell: impl FnMut(&Value)) {
    use std::io::{Seek, SeekFrom};
    let mut objects = Objects::default();
    let mut over = file.seek(SeekFrom::End(0)).is_err();
    loop {
        if read_round(&file, &mut objects, &mut tell).is_err() || over {
            return;
        }
        // Once more after the end: the last words may have come in between.
        over = tokio::time::timeout(LOOK, closed.changed()).await.is_ok_and(|changed| changed.is_err());
    }
}

/// Reads what is there, within bounds. It lies in memory: reading does not wait.
fn read_round(file: &File, objects: &mut Objects, tell: &mut impl FnMut(&Value)) -> Result<(), Nonsense> {
    let mut round = file.take(ROUND_BYTES);
    let mut part = [0; 4096];
    while let Ok(read @ 1..) = round.read(&mut part) {
        objects.take(&part[..read], tell)?;
    }
    Ok(())
}

/// Finds the objects in a stream of bytes: our VMM has each on one line, Cloud Hypervisor breaks lines in them.
#[derive(Default)]
struct Objects(Vec<u8>);

/// What came is no JSON, or an object is too long.
struct Nonsense;

impl Objects {
    fn take(&mut self, bytes: &[u8], tell: &mut impl FnMut(&Value)) -> Result<(), Nonsense> {
        self.0.extend_from_slice(bytes);
        let mut objects = serde_json::Deserializer::from_slice(&self.0).into_iter::<Value>();
        let mut used = 0;
        loop {
            match objects.next() {
                Some(Ok(object)) => {
                    used = objects.byte_offset();
                    tell(&object);
                }
                Some(Err(error)) if error.is_eof() => break,
                Some(Err(_)) => return Err(Nonsense),
                None => {
                    used = self.0.len();
                    break;
                }
            }
        }
        self.0.drain(..used);
        if self.0.len() > OBJECT_BYTES { Err(Nonsense) } else { Ok(()) }
    }
}

/// The event that this object tells of, if it is one that matters.
fn event(object: &Value, stopping: bool) -> Option<Event> {
    let text = |value: &'static str| object[value].as_str().unwrap_or_default();
    let properties = &object["properties"];
    // Cloud Hypervisor does not say whose doing it was.
    let by_guest = properties["by"].as_str().map_or(!stopping, |by| by == "guest");
    match (text("source"), text("event")) {
        ("vm", "booted" | "resumed") => Some(Event::Resumed),
        ("vm", "paused") => Some(Event::Paused),
        ("vm", "reset" | "rebooted") => Some(Event::Reset { by_guest }),
        ("vm" | "vmm", "shutdown") => {
            let cause = if by_guest { ShutdownCause::PowerOff } else { ShutdownCause::Stopped };
            Some(Event::Shutdown { by_guest, cause })
        }
        ("guest", "panic") => Some(Event::Panicked),
        ("guest", "agent") => properties["connected"].as_str().map(|open| Event::AgentConnected(open == "true")),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::io::AsyncWriteExt;

    #[test]
    fn events_that_matter_are_told_apart() {
        let seen = |source: &str, name: &str, properties: Value| {
            event(&json!({"source": source, "event": name, "properties": properties}), false)
        };
        assert_eq!(seen("vm", "booted", Value::Null), Some(Event::Resumed));
        assert_eq!(seen("vm", "paused", Value::Null), Some(Event::Paused));
        assert_eq!(seen("vm", "reset", json!({"by": "guest"})), Some(Event::Reset { by_guest: true }));
        assert_eq!(seen("guest", "panic", Value::Null), Some(Event::Panicked));
        assert_eq!(seen("guest", "agent", json!({"connected": "true"})), Some(Event::AgentConnected(true)));
        assert_eq!(seen("vm", "resized", Value::Null), None);
        for nonsense in [json!([]), json!({"source": 1, "event": {}}), json!(null)] {
            assert_eq!(event(&nonsense, false), None);
        }
    }

    #[test]
    fn a_shutdown_is_the_guests_unless_it_was_ordered() {
        let shutdown = json!({"source": "vm", "event": "shutdown", "properties": null});
        let by_guest = Event::Shutdown { by_guest: true, cause: ShutdownCause::PowerOff };
        let ordered = Event::Shutdown { by_guest: false, cause: ShutdownCause::Stopped };
        assert_eq!(event(&shutdown, false), Some(by_guest));
        assert_eq!(event(&shutdown, true), Some(ordered));
    }

    #[test]
    fn objects_are_found_wherever_the_stream_is_cut() {
        let stream = b"{\"source\": \"vm\",\n  \"event\": \"}{\"}\n\n\n{\"a\": [1]}\n";
        for cut in 0..stream.len() {
            let mut objects = Objects::default();
            let mut found = Vec::new();
            for part in [&stream[..cut], &stream[cut..]] {
                assert!(objects.take(part, &mut |object: &Value| found.push(object.clone())).is_ok());
            }
            assert_eq!(found, [json!({"source": "vm", "event": "}{"}), json!({"a": [1]})], "cut at {cut}");
        }
        assert!(Objects::default().take(b"{]", &mut |_: &Value| ()).is_err());
        assert!(Objects::default().take(&[b'['; OBJECT_BYTES + 1], &mut |_: &Value| ()).is_err());
    }

    #[tokio::test]
    async fn a_socket_is_followed_to_its_end() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let (_open, closed) = watch::channel(());
        let follower = Follower::start(Some(EventSource::Socket(ours)), closed, Arc::default());
        let mut events = follower.events();
        theirs.write_all(b"{\"source\":\"vm\",\"event\":\"booted\"}\n{\"source\":\"guest\",").await.unwrap();
        assert_eq!(events.recv().await, Ok(Event::Resumed));
        theirs.write_all(b"\"event\":\"panic\"}\n").await.unwrap();
        drop(theirs);
        assert_eq!(events.recv().await, Ok(Event::Panicked));
        assert!(events.recv().await.is_err());
    }

    #[test]
    fn a_file_is_read_in_rounds() {
        use std::io::{Seek, Write};
        let path = std::env::temp_dir().join(format!("vse-rounds-{}", std::process::id()));
        let mut file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        let event = b"{\"source\": \"vm\", \"event\": \"paused\"}\n";
        let written = 3 * ROUND_BYTES as usize / event.len();
        file.write_all(&event.repeat(written)).unwrap();
        file.rewind().unwrap();
        let (mut objects, mut told) = (Objects::default(), 0);
        for round in 1..=3 {
            assert!(read_round(&file, &mut objects, &mut |_: &Value| told += 1).is_ok());
            assert!(told <= round * ROUND_BYTES as usize / event.len(), "{told} in {round} rounds");
        }
        assert_eq!(told, written);
    }

    #[tokio::test]
    async fn a_file_is_followed_from_its_end_until_the_engine_is_gone() {
        use std::io::Write;
        let directory = std::env::temp_dir().join(format!("vse-events-{}", std::process::id()));
        let mut file = std::fs::File::create(&directory).unwrap();
        file.write_all(b"{\"source\": \"vm\", \"event\": \"rebooted\"}\n").unwrap();
        let (open, closed) = watch::channel(());
        let source = EventSource::File(std::fs::File::open(&directory).unwrap());
        std::fs::remove_file(&directory).unwrap();
        let follower = Follower::start(Some(source), closed, Arc::default());
        let mut events = follower.events();
        tokio::task::yield_now().await;
        file.write_all(b"{\n  \"source\": \"guest\",\n  \"event\": \"panic\"\n}\n\n").unwrap();
        drop(open);
        assert_eq!(events.recv().await, Ok(Event::Panicked));
        assert!(events.recv().await.is_err());
    }
}
