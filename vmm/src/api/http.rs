//! HTTP/1.1 as far as this API needs it (RFC 9112). Pure.

use std::fmt::Write as _;

/// Longest request line and headers together.
pub const HEAD_BYTES: usize = 8 << 10;
/// Longest body: a configuration of 254 vCPUs with everything has less than 100 KiB.
pub const BODY_BYTES: usize = 1 << 20;
const MAX_HEADERS: usize = 32;

/// What is asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// The verb.
    pub method: Method,
    /// The path, without a query.
    pub path: String,
    /// The body, empty if there is none.
    pub body: Vec<u8>,
    /// Whether another request may follow on the same connection.
    pub keep_alive: bool,
}

/// Verbs of this API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// Asks.
    Get,
    /// Orders.
    Put,
    /// Any other.
    Other,
}

/// How far the bytes that came so far go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// More has to come.
    Partial {
        /// The client waits for `100 Continue` before it sends the body.
        awaits_continue: bool,
    },
    /// A request.
    Complete {
        /// It.
        request: Request,
        /// How many bytes it had.
        length: usize,
    },
}

/// Status codes of this API.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u16)]
#[allow(missing_docs, reason = "RFC 9110 explains them")]
pub enum Status {
    Ok = 200,
    NoContent = 204,
    BadRequest = 400,
    NotFound = 404,
    MethodNotAllowed = 405,
    Conflict = 409,
    ContentTooLarge = 413,
    HeadersTooLarge = 431,
    InternalServerError = 500,
    NotImplemented = 501,
}

/// An answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Response {
    /// Its status.
    pub status: Status,
    /// JSON, or nothing.
    pub body: Vec<u8>,
}

impl Response {
    /// Done, and there is nothing to say.
    pub const DONE: Self = Self { status: Status::NoContent, body: Vec::new() };

    /// An answer with a body.
    pub fn json(value: &impl serde::Serialize) -> Self {
        match serde_json::to_vec(value) {
            Ok(body) => Self { status: Status::Ok, body },
            Err(error) => Self::error(Status::InternalServerError, [error.to_string()]),
        }
    }

    /// A refusal: Cloud Hypervisor's clients expect a list of messages, from what was tried down to its cause.
    pub fn error(status: Status, messages: impl IntoIterator<Item = String>) -> Self {
        let messages: Vec<String> = messages.into_iter().collect();
        Self { status, body: serde_json::to_vec(&messages).unwrap_or_default() }
    }

    /// The bytes to send.
    #[must_use]
    pub fn encode(&self, keep_alive: bool) -> Vec<u8> {
        // Without a reason phrase, which RFC 9112, 4 allows: Cloud Hypervisor's own client reads nothing but the number.
        let mut head = format!("HTTP/1.1 {} \r\nServer: vse-vmm\r\n", self.status as u16);
        if !keep_alive {
            head.push_str("Connection: close\r\n");
        }
        // A 204 has no body, and must not say how long it is (RFC 9110, 8.6).
        if self.status != Status::NoContent {
            // Writing into a string can't fail.
            let _ = write!(head, "Content-Type: application/json\r\nContent-Length: {}\r\n", self.body.len());
        }
        head.push_str("\r\n");
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&self.body);
        bytes
    }
}

/// Reads a request out of what has come so far.
///
/// # Errors
/// With the answer to it when it is none, or too long; what follows on the connection can't be understood any more.
pub fn parse(bytes: &[u8]) -> Result<Parsed, Response> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_HEADERS];
    let mut head = httparse::Request::new(&mut headers);
    let head_length = match head.parse(&bytes[..bytes.len().min(HEAD_BYTES)]) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() < HEAD_BYTES => {
            return Ok(Parsed::Partial { awaits_continue: false });
        }
        Ok(httparse::Status::Partial) => return refuse(Status::HeadersTooLarge, "the request's head is too long"),
        Err(httparse::Error::TooManyHeaders) => return refuse(Status::HeadersTooLarge, "too many headers"),
        Err(error) => return refuse(Status::BadRequest, &format!("no HTTP request: {error}")),
    };
    let mut body_length = None;
    let mut keep_alive = head.version == Some(1);
    let mut awaits_continue = false;
    for header in head.headers.iter() {
        let value = std::str::from_utf8(header.value).unwrap_or_default().trim();
        if header.name.eq_ignore_ascii_case("content-length") {
            let length = value.parse::<usize>().ok().filter(|_| value.bytes().all(|byte| byte.is_ascii_digit()));
            match (length, body_length) {
                (Some(length), None) => body_length = Some(length),
                (Some(length), Some(before)) if length == before => {}
                _ => return refuse(Status::BadRequest, "Content-Length is not one number"),
            }
        } else if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return refuse(Status::NotImplemented, "Transfer-Encoding is not supported; send Content-Length");
        } else if header.name.eq_ignore_ascii_case("connection") {
            keep_alive &= !value.eq_ignore_ascii_case("close");
        } else if header.name.eq_ignore_ascii_case("expect") {
            awaits_continue = value.eq_ignore_ascii_case("100-continue");
        }
    }
    let body_length = body_length.unwrap_or(0);
    if body_length > BODY_BYTES {
        return refuse(Status::ContentTooLarge, "the body is longer than 1 MiB");
    }
    let Some(body) = bytes[head_length..].get(..body_length) else {
        return Ok(Parsed::Partial { awaits_continue });
    };
    let method = match head.method {
        Some("GET") => Method::Get,
        Some("PUT") => Method::Put,
        _ => Method::Other,
    };
    let path = head.path.unwrap_or_default().split(['?', '#']).next().unwrap_or_default().to_owned();
    let request = Request { method, path, body: body.to_vec(), keep_alive };
    Ok(Parsed::Complete { request, length: head_length + body_length })
}

fn refuse(status: Status, message: &str) -> Result<Parsed, Response> {
    Err(Response::error(status, [message.to_owned()]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn complete(bytes: &[u8]) -> (Request, usize) {
        match parse(bytes) {
            Ok(Parsed::Complete { request, length }) => (request, length),
            other => panic!("{other:?}"),
        }
    }

    fn status(bytes: &[u8]) -> u16 {
        parse(bytes).unwrap_err().status as u16
    }

    #[test]
    fn requests_follow_each_other() {
        let two = b"PUT /api/v1/vm.create?x HTTP/1.1\r\nHost: localhost\r\ncontent-length: 2\r\n\r\n{}GET /b HTTP/1.0\r\n\r\n";
        let (first, length) = complete(two);
        assert_eq!(
            (first.method, first.path.as_str(), first.body.as_slice()),
            (Method::Put, "/api/v1/vm.create", &b"{}"[..])
        );
        assert!(first.keep_alive);
        let (second, rest) = complete(&two[length..]);
        assert_eq!((second.method, second.path.as_str(), length + rest), (Method::Get, "/b", two.len()));
        assert!(!second.keep_alive);
    }

    #[test]
    fn whatever_is_cut_off_is_partial() {
        let whole = b"PUT /a HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: 3\r\n\r\nabc";
        for cut in 0..whole.len() {
            let awaits_continue = cut >= whole.len() - 3;
            assert_eq!(parse(&whole[..cut]), Ok(Parsed::Partial { awaits_continue }), "{cut}");
        }
    }

    #[test]
    fn what_is_too_long_or_unclear_is_refused() {
        assert_eq!(status(b"\x16\x03\x01"), 400);
        assert_eq!(status(b"PUT / HTTP/1.1\r\nContent-Length: 1048577\r\n\r\n"), 413);
        assert_eq!(status(b"PUT / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"), 400);
        assert_eq!(status(b"PUT / HTTP/1.1\r\nContent-Length: +1\r\n\r\n"), 400);
        assert_eq!(status(b"PUT / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n"), 400);
        assert_eq!(status(b"PUT / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"), 501);
        assert_eq!(status(format!("GET /{} HTTP/1.1\r\n\r\n", "a".repeat(HEAD_BYTES)).as_bytes()), 431);
        assert_eq!(status(format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(33)).as_bytes()), 431);
    }

    #[test]
    fn answers_have_the_length_they_say() {
        let refusal = Response::error(Status::NotFound, ["a".into(), "b".into()]).encode(true);
        let text = String::from_utf8(refusal).unwrap();
        assert!(text.starts_with("HTTP/1.1 404 \r\n"), "{text}");
        assert!(text.ends_with("Content-Length: 9\r\n\r\n[\"a\",\"b\"]"), "{text}");
        assert_eq!(Response::DONE.encode(true), b"HTTP/1.1 204 \r\nServer: vse-vmm\r\n\r\n");
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
        }

        #[test]
        fn a_request_never_takes_more_than_there_is(cut in 0_usize..100, body in 0_usize..40) {
            let whole = format!("PUT /a HTTP/1.1\r\nContent-Length: {body}\r\n\r\n{}", "x".repeat(body));
            let bytes = &whole.as_bytes()[..cut.min(whole.len())];
            if let Ok(Parsed::Complete { length, .. }) = parse(bytes) {
                prop_assert!(length <= bytes.len());
            }
        }
    }
}
