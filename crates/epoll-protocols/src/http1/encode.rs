//! A response as bytes: status line, fields, body. Not when to send it, nor what becomes of the connection:
//! it is told.

use std::mem;

use super::date::DateHeader;
use super::output::Output;
use super::response::{Body, Part, Response};
use super::sending::{Disk, Framing, Rest};

/// What the response says about the connection's future (RFC 9112 section 9.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Persistence {
    /// It ends with this response.
    Close,
    /// It goes on, which an HTTP/1.1 client assumes.
    Implied,
    /// It goes on, which an HTTP/1.0 client must be told.
    KeepAlive,
}

/// A shared body below this many bytes is copied behind its head after all: that costs less than one more
/// buffer in the `writev`.
const SHARED_FROM: usize = 4 * 1024;

/// The interim response that tells a client to send its body (RFC 9110 section 15.2.1).
pub(super) const CONTINUE: &[u8] = b"HTTP/1.1 100 Continue\r\n\r\n";

/// What the encoder has to know of the exchange.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms {
    pub(super) persistence: Persistence,
    /// The body is left out and the same said about it: RFC 9110 section 9.3.2.
    pub(super) head_only: bool,
    /// The client knows of no chunks.
    pub(super) http10: bool,
}

/// What was appended.
pub(super) struct Encoded {
    /// As in the terms, unless the end of the body can only be told by that of the connection.
    pub(super) persistence: Persistence,
    pub(super) body_bytes: u64,
    /// The body, if it does not go out in one piece.
    pub(super) rest: Option<Rest>,
}

/// Appends `response` to `output`, and takes its body out of it.
pub(super) fn encode(
    response: &mut Response,
    date: &DateHeader,
    terms: Terms,
    output: &mut impl Output,
) -> Encoded {
    if matches!(response.body, Body::Deferred | Body::Blocking(_)) {
        // Promised again by the one who was to keep the promise.
        response.clear();
        response.set_status(500);
    }
    let status = response.status();
    let body = mem::take(&mut response.body);
    let (length, framing) = match &body {
        Body::Written | Body::Deferred | Body::Blocking(_) => (response.written.len() as u64, None),
        Body::Shared(bytes) => (bytes.len() as u64, None),
        Body::Parts(parts) => (parts.iter().map(Part::length).sum(), None),
        Body::Stream(Some(length)) => (*length, Some(Framing::Sized(*length))),
        Body::Stream(None) if terms.http10 => (0, Some(Framing::ToEnd)),
        Body::Stream(None) => (0, Some(Framing::Chunked)),
    };
    // Whatever the service set.
    let bodyless = terms.head_only || has_no_content(status);
    let persistence = match framing {
        Some(Framing::ToEnd) if !bodyless => Persistence::Close,
        _ => terms.persistence,
    };

    let head = &mut response.head;
    head.clear();
    // Most answers begin with the same 54 bytes for a second, and to copy a known number of bytes takes no call.
    if status == 200 {
        head.extend_from_slice(date.ok());
    } else {
        status_line(status, head);
        head.extend_from_slice(date.line());
    }
    length_field(status, length, framing, head);
    head.extend_from_slice(match persistence {
        Persistence::Close => b"Connection: close\r\n",
        Persistence::Implied => b"",
        Persistence::KeepAlive => b"Connection: keep-alive\r\n",
    });
    head.extend_from_slice(&response.fields);
    head.extend_from_slice(b"\r\n");

    let mut encoded = Encoded { persistence, body_bytes: if bodyless { 0 } else { length }, rest: None };
    match body {
        _ if bodyless => output.copy(head),
        Body::Shared(body) if body.len() >= SHARED_FROM => {
            output.copy(head);
            output.share(body);
        }
        Body::Shared(body) => {
            head.extend_from_slice(&body);
            output.copy(head);
        }
        Body::Parts(parts) => {
            output.copy(head);
            encoded.body_bytes = 0;
            encoded.rest = Some(Rest::Parts { parts: parts.into(), disk: Disk::default() });
        }
        Body::Stream(_) => {
            output.copy(head);
            encoded.body_bytes = 0;
            encoded.rest = framing.map(Rest::Stream);
        }
        Body::Written | Body::Deferred | Body::Blocking(_) if response.written.len() >= SHARED_FROM => {
            output.copy(head);
            output.copy(&response.written);
        }
        Body::Written | Body::Deferred | Body::Blocking(_) => {
            head.extend_from_slice(&response.written);
            output.copy(head);
        }
    }
    encoded
}

/// RFC 9110 sections 15.3.5, 15.3.6 and 15.4.5.
const fn has_no_content(status: u16) -> bool {
    matches!(status, 204 | 205 | 304)
}

/// How the end of the body is told, in one way at most (RFC 9112 section 6.3).
fn length_field(status: u16, length: u64, framing: Option<Framing>, head: &mut Vec<u8>) {
    match framing {
        // RFC 9112 section 6.1: never with a 204, and none is of use with a 304.
        Some(Framing::Chunked) if !has_no_content(status) => {
            head.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        Some(Framing::ToEnd) if !has_no_content(status) => {}
        _ => {
            if let Some(length) = content_length(status, length) {
                head.extend_from_slice(b"Content-Length: ");
                head.extend_from_slice(itoa::Buffer::new().format(length).as_bytes());
                head.extend_from_slice(b"\r\n");
            }
        }
    }
}

/// The length to tell for a body of `length` bytes, if any.
const fn content_length(status: u16, length: u64) -> Option<u64> {
    match (status, length) {
        // RFC 9110 section 8.6: never in a 204.
        (204, _) => None,
        // Section 15.3.6: a 205 ends at once, and says so.
        (205, _) => Some(0),
        // Section 8.6: in a 304 it is that of the 200 the client could have had, so none if it is not known.
        (304, 0) => None,
        _ => Some(length),
    }
}

fn status_line(status: u16, head: &mut Vec<u8>) {
    let line = known_status_line(status);
    if line.is_empty() {
        // A status nobody registered has no reason phrase, which RFC 9112 section 4 allows.
        head.extend_from_slice(b"HTTP/1.1 ");
        head.extend_from_slice(itoa::Buffer::new().format(status).as_bytes());
        head.extend_from_slice(b" \r\n");
    } else {
        head.extend_from_slice(line);
    }
}

/// Makes the line of each status whole when it is compiled.
macro_rules! status_lines {
    ($($status:literal $reason:literal,)*) => {
        const fn known_status_line(status: u16) -> &'static [u8] {
            match status {
                $($status => concat!("HTTP/1.1 ", $status, " ", $reason, "\r\n").as_bytes(),)*
                _ => b"",
            }
        }
    };
}

status_lines! {
    200 "OK",
    201 "Created",
    202 "Accepted",
    203 "Non-Authoritative Information",
    204 "No Content",
    205 "Reset Content",
    206 "Partial Content",
    300 "Multiple Choices",
    301 "Moved Permanently",
    302 "Found",
    303 "See Other",
    304 "Not Modified",
    307 "Temporary Redirect",
    308 "Permanent Redirect",
    400 "Bad Request",
    401 "Unauthorized",
    402 "Payment Required",
    403 "Forbidden",
    404 "Not Found",
    405 "Method Not Allowed",
    406 "Not Acceptable",
    408 "Request Timeout",
    409 "Conflict",
    410 "Gone",
    411 "Length Required",
    412 "Precondition Failed",
    413 "Content Too Large",
    414 "URI Too Long",
    415 "Unsupported Media Type",
    416 "Range Not Satisfiable",
    417 "Expectation Failed",
    421 "Misdirected Request",
    422 "Unprocessable Content",
    426 "Upgrade Required",
    428 "Precondition Required",
    429 "Too Many Requests",
    431 "Request Header Fields Too Large",
    500 "Internal Server Error",
    501 "Not Implemented",
    502 "Bad Gateway",
    503 "Service Unavailable",
    504 "Gateway Timeout",
    505 "HTTP Version Not Supported",
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use bytes::Bytes;
    use epoll_reactor::FileSlice;

    use super::super::output::NotCached;
    use super::*;

    /// Keeps apart what was copied and what was shared.
    #[derive(Default)]
    struct Pieces(Vec<(bool, Vec<u8>)>);

    impl Output for Pieces {
        fn copy(&mut self, data: &[u8]) {
            self.0.push((false, data.to_vec()));
        }

        fn share(&mut self, data: Bytes) {
            self.0.push((true, data.to_vec()));
        }

        fn file(&mut self, _: FileSlice, _: bool) -> Result<(), NotCached> {
            Err(NotCached)
        }

        fn waiting(&self) -> usize {
            self.0.iter().map(|(_, data)| data.len()).sum()
        }
    }

    fn text(response: &mut Response, persistence: Persistence, head_only: bool) -> String {
        let mut output = Vec::new();
        let terms = Terms { persistence, head_only, http10: false };
        encode(response, &DateHeader::new(UNIX_EPOCH), terms, &mut output);
        String::from_utf8(output).unwrap()
    }

    #[test]
    fn a_whole_response() {
        let mut response = Response::new();
        response.set_status(404);
        response.header("X-A", "b").unwrap();
        response.set_body(b"gone");
        let date = "Date: Thu, 01 Jan 1970 00:00:00 GMT";
        let start = format!("HTTP/1.1 404 Not Found\r\n{date}\r\nContent-Length: 4\r\n");
        for (persistence, line) in [
            (Persistence::Close, "Connection: close\r\n"),
            (Persistence::Implied, ""),
            (Persistence::KeepAlive, "Connection: keep-alive\r\n"),
        ] {
            for (head_only, body) in [(false, "gone"), (true, "")] {
                let sent = text(&mut response, persistence, head_only);
                assert_eq!(sent, format!("{start}{line}X-A: b\r\n\r\n{body}"));
            }
        }
    }

    #[test]
    fn statuses_without_content_have_none() {
        let cases = [
            (200, "", Some("0"), ""),
            (200, "b", Some("1"), "b"),
            (204, "b", None, ""),
            (205, "b", Some("0"), ""),
            (304, "", None, ""),
            (304, "b", Some("1"), ""),
            (599, "b", Some("1"), "b"),
        ];
        for (status, body, length, sent_body) in cases {
            let mut response = Response::new();
            response.set_status(status);
            response.set_body(body.as_bytes());
            let sent = text(&mut response, Persistence::Implied, false);
            let (head, rest) = sent.split_once("\r\n\r\n").unwrap();
            assert_eq!(head.split_once("Content-Length: ").map(|(_, value)| value), length, "{status}");
            assert_eq!(rest, sent_body, "{status}");
        }
    }

    #[test]
    fn a_large_shared_body_is_passed_on_and_a_small_one_copied() {
        for (size, pieces) in [(SHARED_FROM - 1, vec![false]), (SHARED_FROM, vec![false, true])] {
            let mut response = Response::new();
            response.set_shared_body(vec![b'x'; size].into());
            let mut output = Pieces::default();
            let terms = Terms { persistence: Persistence::Implied, head_only: false, http10: false };
            encode(&mut response, &DateHeader::new(UNIX_EPOCH), terms, &mut output);
            assert_eq!(output.0.iter().map(|(shared, _)| *shared).collect::<Vec<_>>(), pieces);
            let all: Vec<u8> = output.0.into_iter().flat_map(|(_, data)| data).collect();
            assert!(all.ends_with(&vec![b'x'; size]), "{size}");
        }
    }
}
