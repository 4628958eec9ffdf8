//! Lines of JSON from a peer that is not trusted: bounded in length, one at a time.

use std::io;

use serde_json::Value;
use tokio::io::{AsyncBufRead, AsyncBufReadExt};

/// Reads lines of at most `limit` bytes. Cancelling a read loses nothing.
#[derive(Debug)]
pub(crate) struct Lines<R> {
    reader: R,
    limit: usize,
    line: Vec<u8>,
}

/// Why there is no line.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LineError {
    #[error("a line has more than {0} bytes")]
    TooLong(usize),
    #[error("not JSON: {0}")]
    Json(#[from] serde_json::Error),
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl<R: AsyncBufRead + Unpin> Lines<R> {
    pub(crate) fn new(reader: R, limit: usize) -> Self {
        Self { reader, limit, line: Vec::new() }
    }

    /// The next line that is not blank, without its end; `None` at the end of file.
    pub(crate) async fn next(&mut self) -> Result<Option<Vec<u8>>, LineError> {
        loop {
            let available = self.reader.fill_buf().await?;
            if available.is_empty() {
                return Ok(None);
            }
            let end = available.iter().position(|&byte| byte == b'\n');
            let part = &available[..end.unwrap_or(available.len())];
            if self.line.len() + part.len() > self.limit {
                return Err(LineError::TooLong(self.limit));
            }
            self.line.extend_from_slice(part);
            let used = part.len() + usize::from(end.is_some());
            self.reader.consume(used);
            if end.is_some() && !self.line.trim_ascii().is_empty() {
                return Ok(Some(std::mem::take(&mut self.line)));
            }
        }
    }

    /// The next line as JSON. serde_json bounds the depth.
    pub(crate) async fn next_json(&mut self) -> Result<Option<Value>, LineError> {
        match self.next().await? {
            Some(line) => Ok(Some(serde_json::from_slice(&line)?)),
            None => Ok(None),
        }
    }
}

/// Text from outside for an error message or a status: at most `max` characters, none of them control characters.
pub(crate) fn printable(text: &str, max: usize) -> String {
    text.chars().filter(|c| !c.is_control()).take(max).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_come_one_by_one_and_bounded() {
        let mut lines = Lines::new(&b"{}\r\n\n[1]\n12345678\n123456789\n"[..], 8);
        assert_eq!(lines.next_json().await.unwrap(), Some(serde_json::json!({})));
        assert_eq!(lines.next_json().await.unwrap(), Some(serde_json::json!([1])));
        assert_eq!(lines.next().await.unwrap(), Some(b"12345678".to_vec()));
        assert!(matches!(lines.next().await, Err(LineError::TooLong(8))));
    }

    #[tokio::test]
    async fn a_line_without_its_end_is_none() {
        assert_eq!(Lines::new(&b"{}"[..], 8).next().await.unwrap(), None);
    }

    #[test]
    fn terminals_are_safe_from_what_is_printed() {
        assert_eq!(printable("a\x1b[2Jb\u{7}c", 5), "a[2Jb");
    }
}
