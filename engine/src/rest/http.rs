//! HTTP/1.1 over the engine's unix socket: one request at a time, bodies and waiting bounded.
//!
//! The engine on the other side is not trusted: a guest may have taken it over. After an answer that is late or is none
//! the connection is done for; make a new one.

use std::time::Duration;

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Bytes;
use hyper::client::conn::http1::{self, SendRequest};
use hyper::{Method, Request, StatusCode, header};
use hyper_util::rt::TokioIo;
use serde_json::Value;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, watch};
use tokio::time::timeout;

use crate::guest::GuestError;
use crate::json_lines::printable;

/// Longest body taken from the engine. `vm.info` of 254 vCPUs with their affinity has some 20 KiB.
const BODY_BYTES: usize = 1 << 20;

/// Longest head of an answer.
const HEAD_BYTES: usize = 16 << 10;

/// How long the engine may take for an answer; booting reads a kernel and an initramfs.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Most characters of the engine's words in an error.
const REASON_CHARS: usize = 300;

/// A connection to an API socket.
#[derive(Debug)]
pub(super) struct Client {
    sender: Mutex<SendRequest<Full<Bytes>>>,
    closed: watch::Receiver<()>,
}

impl Client {
    pub(super) async fn connect(stream: UnixStream) -> Result<Self, GuestError> {
        let (sender, connection) = http1::Builder::new()
            .max_buf_size(HEAD_BYTES)
            .handshake(TokioIo::new(stream))
            .await
            .map_err(|error| broken(&error))?;
        let (open, closed) = watch::channel(());
        tokio::spawn(async move {
            // What went wrong is told to whoever waits for an answer.
            let _ = connection.await;
            drop(open);
        });
        Ok(Self { sender: Mutex::new(sender), closed })
    }

    /// Ends (with an error) when the connection does.
    pub(super) fn closed(&self) -> watch::Receiver<()> {
        self.closed.clone()
    }

    /// Asks, for example for `vm.info`.
    pub(super) async fn get(&self, what: &'static str) -> Result<Value, GuestError> {
        let body = self.exchange(Method::GET, what).await?;
        serde_json::from_slice(&body).map_err(|error| GuestError::Protocol(format!("{what}: {error}")))
    }

    /// Orders, for example `vm.pause`.
    pub(super) async fn put(&self, what: &'static str) -> Result<(), GuestError> {
        self.exchange(Method::PUT, what).await.map(drop)
    }

    async fn exchange(&self, method: Method, what: &'static str) -> Result<Bytes, GuestError> {
        let late = |_| GuestError::Late { request: what.to_owned(), after: TIMEOUT };
        timeout(TIMEOUT, self.ask(method, what)).await.map_err(late)?
    }

    async fn ask(&self, method: Method, what: &'static str) -> Result<Bytes, GuestError> {
        let request = Request::builder()
            .method(method)
            .uri(format!("/api/v1/{what}"))
            .header(header::HOST, "localhost")
            .header(header::ACCEPT, "application/json")
            .body(Full::default())
            .map_err(|error| GuestError::Protocol(error.to_string()))?;
        let mut sender = self.sender.lock().await;
        sender.ready().await.map_err(|error| broken(&error))?;
        let answer = sender.send_request(request).await.map_err(|error| broken(&error))?;
        let status = answer.status();
        let body = Limited::new(answer.into_body(), BODY_BYTES).collect().await;
        let body = body.map_err(|error| GuestError::Protocol(error.to_string()))?.to_bytes();
        match status {
            StatusCode::OK | StatusCode::NO_CONTENT => Ok(body),
            refused => Err(GuestError::Refused { request: what.to_owned(), reason: reason(refused, &body) }),
        }
    }
}

/// Cloud Hypervisor tells its errors as a JSON list, outermost first; others are taken as text.
fn reason(status: StatusCode, body: &[u8]) -> String {
    let words = match serde_json::from_slice::<Vec<String>>(body) {
        Ok(chain) => chain.join(": "),
        Err(_) => String::from_utf8_lossy(body).into_owned(),
    };
    match printable(words.trim(), REASON_CHARS) {
        words if words.is_empty() => format!("status {status}"),
        words => words,
    }
}

fn broken(error: &hyper::Error) -> GuestError {
    if error.is_parse() {
        GuestError::Protocol(error.to_string())
    } else {
        // Whatever became of the connection: it is gone.
        GuestError::Closed
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    /// A peer that answers every request with these bytes; with none it closes.
    async fn peer(answer: &'static [u8]) -> Client {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        tokio::spawn(async move {
            let mut request = [0; 4096];
            while theirs.read(&mut request).await.is_ok_and(|read| read > 0) {
                if answer.is_empty() || theirs.write_all(answer).await.is_err() {
                    return;
                }
            }
        });
        Client::connect(ours).await.unwrap()
    }

    #[tokio::test]
    async fn several_exchanges_on_one_connection() {
        let client = peer(b"HTTP/1.1 200 OK\r\nContent-Length: 13\r\n\r\n{\"state\": \"\"}").await;
        for _ in 0..3 {
            assert_eq!(client.get("vm.info").await.unwrap(), serde_json::json!({"state": ""}));
        }
        let client = peer(b"HTTP/1.1 204 No Content\r\n\r\n").await;
        client.put("vm.pause").await.unwrap();
        client.put("vm.resume").await.unwrap();
    }

    #[tokio::test]
    async fn refusals_are_told_in_the_engines_words() {
        let refused = |answer| async move {
            match peer(answer).await.put("vm.boot").await.unwrap_err() {
                GuestError::Refused { reason, .. } => reason,
                other => panic!("{other}"),
            }
        };
        let chain =
            b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 29\r\n\r\n[\"cannot boot\", \"no\\u001b page\"]";
        assert_eq!(refused(&chain[..chain.len() - 3]).await, "[\"cannot boot\", \"no\\u001b pag");
        let text = b"HTTP/1.1 400 Bad Request\r\nContent-Length: 7\r\n\r\nno\x1bpage";
        assert_eq!(refused(text).await, "nopage");
        let nothing = b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n";
        assert_eq!(refused(nothing).await, "status 404 Not Found");
    }

    #[test]
    fn a_chain_of_errors_is_one_line() {
        let body = br#"["Error from API", "no page on cell 1"]"#;
        assert_eq!(reason(StatusCode::BAD_REQUEST, body), "Error from API: no page on cell 1");
    }

    #[tokio::test]
    async fn hostile_answers_are_errors() {
        let endless: &'static [u8] =
            [&b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n"[..], &vec![b'x'; BODY_BYTES + 1]].concat().leak();
        let long_head: &'static [u8] = [&b"HTTP/1.1 200 OK\r\nX: "[..], &vec![b'x'; HEAD_BYTES * 2]].concat().leak();
        for answer in
            [b"SSH-2.0\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{]", endless, long_head] as [&[u8]; 4]
        {
            let error = peer(answer).await.get("vm.info").await.unwrap_err();
            assert!(matches!(error, GuestError::Protocol(_)), "{error:?}");
        }
        assert!(matches!(peer(b"").await.get("vm.info").await, Err(GuestError::Closed)));
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_not_waited_out() {
        let (ours, _theirs) = UnixStream::pair().unwrap();
        let client = Client::connect(ours).await.unwrap();
        assert!(matches!(client.get("vm.info").await, Err(GuestError::Late { .. })));
        assert!(client.get("vm.info").await.is_err());
    }
}
