//! A strict reader of HTTP/1.1 responses: it takes nothing that a server of ours should not send.

use std::collections::VecDeque;

use super::failure::{Failure, demand};

/// The answer that a request is to get.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    pub(crate) status: u16,
    /// The body as it would be but for `HEAD`.
    pub(crate) body: Vec<u8>,
    /// How its end is told.
    pub(crate) framing: Framing,
    /// It was asked for by `HEAD`.
    pub(crate) head_only: bool,
    /// The client, or the service, wants it to be the last one.
    pub(crate) closes: bool,
    /// An HTTP/1.0 client that wants to go on must be told that it may.
    pub(crate) keep_alive: bool,
    /// `100 Continue` may come before it.
    pub(crate) may_continue: bool,
}

/// How the end of a body is told (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Framing {
    Length,
    Chunked,
    ToEnd,
}

/// Reads the answers of one connection, in order.
#[derive(Debug, Default)]
pub(crate) struct Reader {
    pending: Vec<u8>,
    pub(crate) expected: VecDeque<Expected>,
    pub(crate) answered: usize,
    /// An answer has said `Connection: close`.
    pub(crate) closed: bool,
    /// The server refused a request, with this status.
    pub(crate) refused: Option<u16>,
    /// Requests that it was too busy for.
    pub(crate) shed: u64,
}

struct Head {
    status: u16,
    length: Option<usize>,
    chunked: bool,
    connection: Option<String>,
    retry_after: bool,
    /// Bytes of it.
    size: usize,
}

impl Reader {
    /// Whether part of an answer has come.
    pub(crate) fn is_torn(&self) -> bool {
        !self.pending.is_empty()
    }

    /// # Errors
    /// What is not as it should be.
    pub(crate) fn hear(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        demand!(!self.closed, "http", "{} bytes after an answer that said close", bytes.len());
        self.pending.extend_from_slice(bytes);
        while !self.pending.is_empty() && self.answer()? {
            demand!(
                !self.closed || self.pending.is_empty(),
                "http",
                "bytes after an answer that said close: {:?}",
                String::from_utf8_lossy(&self.pending)
            );
        }
        Ok(())
    }

    /// Reads one answer, if it is whole.
    fn answer(&mut self) -> Result<bool, Failure> {
        let Some(head) = parse(&self.pending)? else { return Ok(false) };
        let next = self.expected.front();
        if head.status == 100 {
            demand!(next.is_some_and(|next| next.may_continue), "http", "100 that nobody asked for");
            demand!(head.length.is_none() && head.connection.is_none(), "http", "100 with fields of framing");
            if let Some(next) = self.expected.front_mut() {
                next.may_continue = false;
            }
            self.pending.drain(..head.size);
            return Ok(true);
        }
        let closes = match head.connection.as_deref() {
            Some("close") => true,
            None | Some("keep-alive") => false,
            Some(other) => return Err(Failure::new("http", format!("Connection: {other}"))),
        };
        let refused = closes
            && head.length == Some(0)
            && matches!(head.status, 400 | 408 | 413 | 414 | 417 | 431 | 501 | 505)
            && next.is_none_or(|next| next.status != head.status);
        if refused {
            (self.refused, self.closed) = (Some(head.status), true);
            self.pending.drain(..head.size);
            return Ok(true);
        }
        let Some(next) = next else {
            return Err(Failure::new("http", format!("an answer {} to no request", head.status)));
        };
        if head.status == 503 && head.retry_after {
            demand!(head.length == Some(0) && !head.chunked, "http", "503 with a body");
            self.pending.drain(..head.size);
            self.expected.pop_front();
            self.answered += 1;
            self.shed += 1;
            self.closed = closes;
            return Ok(true);
        }
        demand!(head.status == next.status, "http", "{} instead of {}", head.status, next.status);
        demand!(closes || !next.closes, "http", "no Connection: close, though it was asked for");
        let kept = head.connection.as_deref() == Some("keep-alive");
        demand!(closes || kept == next.keep_alive, "http", "Connection: {:?}", head.connection);
        let length = (next.status != 204 && next.framing == Framing::Length).then_some(next.body.len());
        demand!(head.length == length, "http", "Content-Length {:?}, not {length:?}", head.length);
        demand!(head.chunked == (next.framing == Framing::Chunked), "http", "chunked: {}", head.chunked);
        let body = if next.head_only || next.status == 204 { &[][..] } else { &next.body };
        let sent = self.pending.get(head.size..).unwrap_or_default();
        let (got, size) = if head.chunked && !next.head_only {
            let Some((got, size)) = unchunk(sent)? else { return Ok(false) };
            (got, size)
        } else {
            let Some(got) = sent.get(..body.len()) else { return Ok(false) };
            (got.to_vec(), body.len())
        };
        demand!(got == body, "http", "the body of answer {} is another one", self.answered);
        self.pending.drain(..head.size + size);
        self.expected.pop_front();
        self.answered += 1;
        self.closed = closes;
        Ok(true)
    }
}

/// The body that the chunks of `bytes` hold, if they are whole, and their size: RFC 9112 section 7.1, as we send it.
fn unchunk(bytes: &[u8]) -> Result<Option<(Vec<u8>, usize)>, Failure> {
    let mut body = Vec::new();
    let mut rest = bytes;
    loop {
        let Some(end) = rest.windows(2).position(|two| two == b"\r\n") else {
            demand!(rest.len() < 18, "http", "a chunk size without end");
            return Ok(None);
        };
        let size = std::str::from_utf8(&rest[..end]).ok().and_then(|hex| usize::from_str_radix(hex, 16).ok());
        let Some(size) = size else {
            return Err(Failure::new("http", format!("chunk size {:?}", &rest[..end])));
        };
        let Some(chunk) = rest.get(end + 2..end + 4 + size) else { return Ok(None) };
        demand!(chunk.ends_with(b"\r\n"), "http", "a chunk that does not end in CRLF");
        body.extend_from_slice(&chunk[..size]);
        rest = &rest[end + 4 + size..];
        if size == 0 {
            return Ok(Some((body, bytes.len() - rest.len())));
        }
    }
}

/// The head at the start of `bytes`, if it is whole.
fn parse(bytes: &[u8]) -> Result<Option<Head>, Failure> {
    let bad = |what: &str, line: &str| Failure::new("http", format!("{what}: {line:?}"));
    let start = &bytes[..bytes.len().min(9)];
    demand!(b"HTTP/1.1 ".starts_with(start), "http", "an answer begins with {start:?}");
    let Some(end) = bytes.windows(4).position(|four| four == b"\r\n\r\n") else {
        demand!(bytes.len() < 4_096, "http", "a head without end");
        return Ok(None);
    };
    let head = String::from_utf8_lossy(&bytes[..end]);
    let mut lines = head.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let code = status_line.get(9..12).and_then(|code| code.parse().ok());
    let status: u16 = code.ok_or_else(|| bad("status line", status_line))?;
    demand!(status_line.get(12..13) == Some(" "), "http", "status line {status_line:?}");
    let (mut dates, mut length, mut chunked, mut connection, mut retry_after) = (0, None, false, None, false);
    for line in lines {
        let (name, value) = line.split_once(": ").ok_or_else(|| bad("header line", line))?;
        let control = line.bytes().any(|byte| byte.is_ascii_control());
        demand!(!control && !value.is_empty(), "http", "header line {line:?}");
        match name {
            "Date" => dates += 1,
            "Content-Length" => {
                let value = value.parse().map_err(|_| bad("length", line))?;
                demand!(length.replace(value).is_none(), "http", "two lengths");
            }
            "Retry-After" => retry_after = value == "1",
            "Connection" => {
                demand!(connection.replace(value.to_owned()).is_none(), "http", "two Connections");
            }
            "Transfer-Encoding" => {
                demand!(value == "chunked" && !chunked, "http", "{line:?}");
                chunked = true;
            }
            _ => (),
        }
    }
    demand!(dates == usize::from(status != 100), "http", "{dates} dates in {head:?}");
    demand!(!chunked || length.is_none(), "http", "two kinds of framing in {head:?}");
    Ok(Some(Head { status, length, chunked, connection, retry_after, size: end + 4 }))
}
