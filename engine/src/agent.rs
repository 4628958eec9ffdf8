//! A client of the QEMU guest agent (docs/interop/qemu-ga-ref), the few questions that are asked.
//!
//! The guest at the other end is hostile until proven otherwise: each exchange starts with a synchronisation,
//! everything is bounded in bytes and time, and text is stripped of what a terminal would act on. After an error
//! make a new connection.

use std::net::IpAddr;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde_json::{Value, json};
use tokio::io::{AsyncWriteExt, BufReader};
use tokio::net::UnixStream;
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use crate::json_lines::{LineError, Lines, printable};

/// Longest answer taken from the guest.
const LINE_BYTES: usize = 256 << 10;

/// Lines skipped in search of the answer: what an earlier connection left unread.
const STALE_LINES: usize = 64;

/// How long the guest may take for one exchange.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Most interfaces, and most addresses of each, that are kept.
const MAX_ENTRIES: usize = 32;

/// Most characters of a name or version that are kept; a host name has at most 253.
const MAX_CHARS: usize = 253;

/// Sent by both sides before a synchronisation; no byte of JSON.
const SENTINEL: u8 = 0xff;

/// A connection to an agent.
#[derive(Debug)]
pub struct Agent {
    lines: Lines<BufReader<OwnedReadHalf>>,
    write: OwnedWriteHalf,
}

/// A network interface of the guest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Interface {
    /// Its name in the guest.
    pub name: String,
    /// Its MAC address, if it has one.
    pub mac: Option<String>,
    /// Its addresses, without those that hold on the link only.
    pub addresses: Vec<IpAddr>,
}

/// The guest's operating system, as os-release(5) and uname(2) have it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct OsInfo {
    /// For example `Debian GNU/Linux 13 (trixie)`.
    pub pretty_name: Option<String>,
    /// For example `debian`.
    pub id: Option<String>,
    /// For example `13`.
    pub version_id: Option<String>,
    /// For example `6.12.48+deb13-amd64`.
    pub kernel_release: Option<String>,
}

/// Why the agent gave no answer.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AgentError {
    /// No agent listens, or it is stuck.
    #[error("the guest agent did not answer {0} within {TIMEOUT:?}")]
    Late(&'static str),
    /// The engine closed the channel.
    #[error("the guest agent's channel is closed")]
    Closed,
    /// The agent says no.
    #[error("the guest agent refused {request}: {reason}")]
    Refused {
        /// What was asked.
        request: &'static str,
        /// The guest's words, bounded.
        reason: String,
    },
    /// Not what an agent says.
    #[error("the guest agent does not keep to its protocol: {0}")]
    Protocol(String),
}

impl Agent {
    /// Speaks to the agent behind this socket of the engine. Nothing is sent yet.
    #[must_use]
    pub fn new(stream: UnixStream) -> Self {
        let (read, write) = stream.into_split();
        Self { lines: Lines::new(BufReader::new(read), LINE_BYTES), write }
    }

    /// The guest's network interfaces, without loopback.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn interfaces(&mut self) -> Result<Vec<Interface>, AgentError> {
        Ok(interfaces(&self.ask("guest-network-get-interfaces", json!({})).await?))
    }

    /// The guest's operating system.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn os_info(&mut self) -> Result<OsInfo, AgentError> {
        let answer = self.ask("guest-get-osinfo", json!({})).await?;
        Ok(OsInfo {
            pretty_name: text(&answer["pretty-name"]),
            id: text(&answer["id"]),
            version_id: text(&answer["version-id"]),
            kernel_release: text(&answer["kernel-release"]),
        })
    }

    /// The guest's host name.
    ///
    /// # Errors
    /// See [`AgentError`].
    pub async fn host_name(&mut self) -> Result<String, AgentError> {
        let answer = self.ask("guest-get-host-name", json!({})).await?;
        text(&answer["host-name"]).ok_or_else(|| AgentError::Protocol("a host name without text".into()))
    }

    /// Asks the guest to power itself off. There is no answer when it does.
    ///
    /// # Errors
    /// See [`AgentError`]; a guest that merely goes on is none.
    pub async fn shutdown(&mut self) -> Result<(), AgentError> {
        const REQUEST: &str = "guest-shutdown";
        let exchange = async {
            self.synchronise().await?;
            self.send(&[], REQUEST, json!({"mode": "powerdown"})).await
        };
        timeout(TIMEOUT, exchange).await.map_err(|_| AgentError::Late(REQUEST))?
    }

    async fn ask(&mut self, request: &'static str, arguments: Value) -> Result<Value, AgentError> {
        let exchange = async {
            self.synchronise().await?;
            self.send(&[], request, arguments).await?;
            let mut answer = self.lines.next_json().await?.ok_or(AgentError::Closed)?;
            match answer.get("error") {
                None => Ok(answer.get_mut("return").map(Value::take).unwrap_or_default()),
                Some(error) => {
                    let reason = text(&error["desc"]).unwrap_or_else(|| "no reason given".into());
                    Err(AgentError::Refused { request, reason })
                }
            }
        };
        timeout(TIMEOUT, exchange).await.map_err(|_| AgentError::Late(request))?
    }

    /// Makes sure that what is read next answers what is asked next.
    async fn synchronise(&mut self) -> Result<(), AgentError> {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let id = now.subsec_nanos();
        self.send(&[SENTINEL], "guest-sync-delimited", json!({"id": id})).await?;
        for _ in 0..STALE_LINES {
            let line = self.lines.next().await?.ok_or(AgentError::Closed)?;
            let Some(sentinel) = line.iter().rposition(|&byte| byte == SENTINEL) else {
                continue;
            };
            let answer: Option<Value> = serde_json::from_slice(&line[sentinel + 1..]).ok();
            if answer.is_some_and(|answer| answer["return"] == id) {
                return Ok(());
            }
        }
        Err(AgentError::Protocol("no synchronisation".into()))
    }

    async fn send(&mut self, before: &[u8], request: &str, arguments: Value) -> Result<(), AgentError> {
        let mut bytes = before.to_vec();
        bytes.extend(json!({"execute": request, "arguments": arguments}).to_string().bytes());
        bytes.push(b'\n');
        self.write.write_all(&bytes).await.map_err(|_| AgentError::Closed)
    }
}

fn interfaces(answer: &Value) -> Vec<Interface> {
    let entries = answer.as_array().into_iter().flatten().take(MAX_ENTRIES);
    let interface = |entry: &Value| {
        let addresses = entry["ip-addresses"].as_array().into_iter().flatten().take(MAX_ENTRIES);
        let addresses = addresses.filter_map(|address| address["ip-address"].as_str()?.parse().ok());
        let addresses: Vec<IpAddr> = addresses.filter(|address| !is_of_link(address)).collect();
        let name = text(&entry["name"])?;
        let mac = text(&entry["hardware-address"]).filter(|mac| is_mac(mac));
        (name != "lo").then_some(Interface { name, mac, addresses })
    };
    entries.filter_map(interface).collect()
}

fn is_of_link(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_link_local() || address.is_loopback(),
        IpAddr::V6(address) => address.is_unicast_link_local() || address.is_loopback(),
    }
}

fn is_mac(text: &str) -> bool {
    text.len() == 17 && text.split(':').all(|byte| byte.len() == 2 && u8::from_str_radix(byte, 16).is_ok())
}

fn text(value: &Value) -> Option<String> {
    value.as_str().map(|text| printable(text, MAX_CHARS)).filter(|text| !text.is_empty())
}

impl From<LineError> for AgentError {
    fn from(error: LineError) -> Self {
        match error {
            LineError::Io(_) => Self::Closed,
            error => Self::Protocol(error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::AsyncBufReadExt;

    /// An agent that writes `stale`, keeps to the synchronisation, and answers the rest with `answer`.
    fn agent(stale: &'static [u8], answer: &'static [u8]) -> Agent {
        let (ours, theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let (read, mut write) = theirs.into_split();
            write.write_all(stale).await.unwrap();
            let mut requests = BufReader::new(read).split(b'\n');
            while let Ok(Some(request)) = requests.next_segment().await {
                let reply = match request.strip_prefix(&[SENTINEL]) {
                    Some(request) => {
                        let request: Value = serde_json::from_slice(request).unwrap();
                        let reply = json!({"return": request["arguments"]["id"]}).to_string();
                        [&[SENTINEL], reply.as_bytes(), b"\n"].concat()
                    }
                    None => answer.to_vec(),
                };
                if write.write_all(&reply).await.is_err() {
                    return;
                }
            }
        });
        Agent::new(ours)
    }

    #[tokio::test]
    async fn what_an_earlier_connection_left_is_skipped() {
        let stale = b"{\"return\": {\"host-name\": \"old\"}}\n{\"ret\xff{\"return\": 1}\n";
        let mut agent = agent(stale, b"{\"return\": {\"host-name\": \"node\\u001b-1\"}}\n");
        assert_eq!(agent.host_name().await.unwrap(), "node-1");
        assert_eq!(agent.host_name().await.unwrap(), "node-1");
    }

    #[tokio::test]
    async fn hostile_answers_are_errors() {
        for answer in [&b"nonsense\n"[..], b"{\"return\": {}}\n", b"[]\n"] {
            assert!(matches!(agent(b"", answer).host_name().await, Err(AgentError::Protocol(_))));
        }
        let endless: &'static [u8] = vec![b'x'; LINE_BYTES + 2].leak();
        assert!(matches!(agent(b"", endless).os_info().await, Err(AgentError::Protocol(_))));
        assert!(matches!(agent(endless, b"").os_info().await, Err(AgentError::Protocol(_))));
        let refused = agent(b"", b"{\"error\": {\"desc\": \"disabled\"}}\n").interfaces().await;
        assert!(matches!(refused, Err(AgentError::Refused { reason, .. }) if reason == "disabled"));
    }

    #[tokio::test(start_paused = true)]
    async fn a_guest_without_an_agent_is_not_waited_for() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        assert!(matches!(Agent::new(ours).host_name().await, Err(AgentError::Late(_))));
    }

    #[test]
    fn addresses_are_parsed_not_believed() {
        let address = |text| json!({"ip-address": text, "ip-address-type": "ipv4", "prefix": 24});
        let found = interfaces(&json!([
            {"name": "lo", "ip-addresses": [address("127.0.0.1")]},
            {"name": "enp0s3", "hardware-address": "02:00:00:00:00:01",
                "ip-addresses": [address("10.0.2.2"), address("fe80::1"), address("not an address")]},
            {"name": "", "ip-addresses": []},
            {"name": "x", "hardware-address": "<script>"},
        ]));
        let named = |name: &str, mac: Option<&str>, addresses: &[&str]| Interface {
            name: name.into(),
            mac: mac.map(Into::into),
            addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        };
        assert_eq!(found, [named("enp0s3", Some("02:00:00:00:00:01"), &["10.0.2.2"]), named("x", None, &[])]);
        let many = Value::Array(vec![json!({"name": "e"}); 1000]);
        assert_eq!(interfaces(&many).len(), MAX_ENTRIES);
    }
}
