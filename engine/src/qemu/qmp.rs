//! QEMU's monitor protocol (docs/interop/qmp-spec.rst): one request at a time, events in between.
//!
//! The protocol is small and the engine on the other side is not trusted (a guest may have taken it over), so this
//! is a client of our own: lines, answers and waiting are bounded, and nothing but the few shapes below is read.
//!
//! One task owns the connection. It ends, and the connection with it, when all handles are dropped or the engine
//! does not keep to the protocol.

use std::io;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::sync::{broadcast, mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

use super::guest::event;
use crate::guest::{Event, GuestError};
use crate::json_lines::{LineError, Lines, printable};

/// Longest line taken from the engine; `query-cpus-fast` of 255 vCPUs has about 60 KiB.
const LINE_BYTES: usize = 1 << 20;

/// How long the engine may take for an answer. Its main loop never blocks for long.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Events kept for a slow reader.
const EVENTS: usize = 64;

/// Most characters of the engine's words in an error.
const REASON_CHARS: usize = 300;

/// A connection to a monitor.
#[derive(Debug)]
pub(super) struct Qmp {
    requests: mpsc::Sender<Request>,
    events: broadcast::Receiver<Event>,
}

#[derive(Debug)]
struct Request {
    command: &'static str,
    arguments: Value,
    answer: oneshot::Sender<Result<Value, GuestError>>,
}

impl Qmp {
    /// Takes the greeting and leaves negotiation mode.
    pub(super) async fn connect(stream: UnixStream) -> Result<Self, GuestError> {
        let (read, write) = stream.into_split();
        let mut lines = Lines::new(BufReader::new(read), LINE_BYTES);
        let greeting = timeout(TIMEOUT, lines.next_json()).await.map_err(|_| late("a connection"))??;
        if greeting.ok_or(GuestError::Closed)?.get("QMP").is_none() {
            return Err(GuestError::Protocol("no greeting".into()));
        }
        let (requests, requests_in) = mpsc::channel(1);
        let (events_out, events) = broadcast::channel(EVENTS);
        tokio::spawn(Connection { lines, write, events: events_out, pending: None, last_id: 0 }.serve(requests_in));
        let qmp = Self { requests, events };
        qmp.execute("qmp_capabilities", json!({})).await?;
        Ok(qmp)
    }

    /// Executes a command and returns its answer.
    pub(super) async fn execute(&self, command: &'static str, arguments: Value) -> Result<Value, GuestError> {
        let (answer, outcome) = oneshot::channel();
        let request = Request { command, arguments, answer };
        self.requests.send(request).await.map_err(|_| GuestError::Closed)?;
        outcome.await.unwrap_or(Err(GuestError::Closed))
    }

    /// Events from now on.
    pub(super) fn events(&self) -> broadcast::Receiver<Event> {
        self.events.resubscribe()
    }
}

/// What the task owns. Dropping it tells everyone who waits.
struct Connection {
    lines: Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
    events: broadcast::Sender<Event>,
    pending: Option<Pending>,
    last_id: u64,
}

struct Pending {
    id: u64,
    command: &'static str,
    deadline: Instant,
    answer: oneshot::Sender<Result<Value, GuestError>>,
}

impl Connection {
    async fn serve(mut self, mut requests: mpsc::Receiver<Request>) {
        let outcome = loop {
            let deadline = self.pending.as_ref().map_or_else(Instant::now, |pending| pending.deadline);
            tokio::select! {
                line = self.lines.next_json() => match line {
                    Ok(Some(line)) => self.heard(&line),
                    Ok(None) => break Err(GuestError::Closed),
                    Err(error) => break Err(error.into()),
                },
                request = requests.recv(), if self.pending.is_none() => match request {
                    Some(request) => if let Err(error) = self.ask(request).await {
                        break Err(error);
                    },
                    None => break Ok(()),
                },
                () = sleep_until(deadline), if self.pending.is_some() => {
                    // An answer that still comes has an id nobody waits for.
                    if let Some(pending) = self.pending.take() {
                        let _ = pending.answer.send(Err(late(pending.command)));
                    }
                }
            }
        };
        if let (Err(error), Some(pending)) = (outcome, self.pending.take()) {
            let _ = pending.answer.send(Err(error));
        }
    }

    async fn ask(&mut self, Request { command, arguments, answer }: Request) -> Result<(), GuestError> {
        self.last_id += 1;
        let id = self.last_id;
        self.pending = Some(Pending { id, command, deadline: Instant::now() + TIMEOUT, answer });
        let mut line = json!({"execute": command, "arguments": arguments, "id": id}).to_string();
        line.push('\n');
        timeout(TIMEOUT, self.write.write_all(line.as_bytes())).await.map_err(|_| late(command))??;
        Ok(())
    }

    fn heard(&mut self, line: &Value) {
        if line.get("event").is_some() {
            if let Some(event) = event(line) {
                // Nobody needs to listen.
                let _ = self.events.send(event);
            }
            return;
        }
        let id = line.get("id").and_then(Value::as_u64);
        let Some(pending) = self.pending.take_if(|pending| Some(pending.id) == id) else {
            return;
        };
        let outcome = match (line.get("return"), line.get("error")) {
            (Some(value), _) => Ok(value.clone()),
            (None, Some(error)) => {
                let reason = error.get("desc").and_then(Value::as_str).unwrap_or("no reason given");
                Err(GuestError::Refused {
                    request: pending.command.to_owned(),
                    reason: printable(reason, REASON_CHARS),
                })
            }
            (None, None) => Err(GuestError::Protocol("an answer without a value".into())),
        };
        let _ = pending.answer.send(outcome);
    }
}

fn late(request: &str) -> GuestError {
    GuestError::Late { request: request.to_owned(), after: TIMEOUT }
}

impl From<LineError> for GuestError {
    fn from(error: LineError) -> Self {
        match error {
            LineError::Io(error) if error.kind() == io::ErrorKind::ConnectionReset => Self::Closed,
            LineError::Io(error) => Self::Io(error),
            error => Self::Protocol(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncBufReadExt;

    const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"major": 10}}, "capabilities": []}}"#;

    /// A monitor that says `first`, then answers each request with what `answer` makes of its id.
    fn monitor(first: &'static str, answer: fn(u64) -> String) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let (read, mut write) = theirs.into_split();
            write.write_all(format!("{first}\r\n").as_bytes()).await.unwrap();
            let mut lines = BufReader::new(read).lines();
            while let Ok(Some(line)) = lines.next_line().await {
                let request: Value = serde_json::from_str(&line).unwrap();
                let id = request["id"].as_u64().unwrap();
                let answer = match request["execute"].as_str() {
                    Some("qmp_capabilities") => format!("{}\n", json!({"return": {}, "id": id})),
                    _ => answer(id),
                };
                if write.write_all(answer.as_bytes()).await.is_err() || answer.is_empty() {
                    return;
                }
            }
        });
        ours
    }

    async fn asked(answer: fn(u64) -> String) -> Result<Value, GuestError> {
        Qmp::connect(monitor(GREETING, answer)).await.unwrap().execute("query-status", json!({})).await
    }

    #[tokio::test]
    async fn answers_find_their_request_among_events_and_strays() {
        let value = asked(|id| {
            let event = r#"{"event": "RTC_CHANGE", "data": {}}"#;
            format!("{event}\n{{\"return\": 1, \"id\": 99}}\n{{\"return\": 2}}\n{{\"return\": 3, \"id\": {id}}}\n")
        });
        assert_eq!(value.await.unwrap(), json!(3));
    }

    #[tokio::test]
    async fn refusals_are_bounded() {
        let refused = asked(|id| {
            json!({"error": {"desc": format!("no\u{1b}{}", "x".repeat(9000))}, "id": id}).to_string() + "\n"
        });
        let Err(GuestError::Refused { request, reason }) = refused.await else { panic!("not refused") };
        assert_eq!((request.as_str(), reason.len()), ("query-status", 300));
    }

    #[tokio::test]
    async fn hostile_answers_close_the_connection() {
        for answer in [|_| "\n{]\n".to_owned(), |_| "x".repeat((1 << 20) + 1), |_| "[".repeat(100_000) + "\n"]
            as [fn(u64) -> _; 3]
        {
            assert!(matches!(asked(answer).await, Err(GuestError::Protocol(_))));
        }
        assert!(matches!(asked(|_| String::new()).await, Err(GuestError::Closed)));
    }

    #[tokio::test]
    async fn what_is_no_monitor_is_refused() {
        let other = Qmp::connect(monitor("{\"hello\": 1}", |_| String::new())).await;
        assert!(matches!(other, Err(GuestError::Protocol(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_not_waited_out() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        assert!(matches!(Qmp::connect(ours).await, Err(GuestError::Late { .. })));
        drop(theirs);

        let qmp = Qmp::connect(monitor(GREETING, |id| {
            if id == 2 { " ".into() } else { json!({"return": id, "id": id}).to_string() + "\n" }
        }));
        let qmp = qmp.await.unwrap();
        assert!(matches!(qmp.execute("stop", json!({})).await, Err(GuestError::Late { .. })));
        assert_eq!(qmp.execute("cont", json!({})).await.unwrap(), json!(3));
    }
}
