//! What HTTP/1.1 promises for any bytes whatever, as functions that panic if it does not hold; and a client of a
//! [`Connection`] that does as its documentation asks, which the tests beside it use too.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    unreachable_pub,
    missing_docs,
    reason = "a panic is how a fuzzer is told"
)]

use std::time::UNIX_EPOCH;

use epoll_reactor::Address;

use super::body::Pending;
use super::byte_set::TOKEN;
use super::connection::Connection;
use super::date::DateHeader;
use super::encode::{CONTINUE, Persistence};
use super::exchange::{Exchange, Next, Stage};
use super::framing::{BodyLength, Framing, framing};
use super::limits::HttpLimits;
use super::parse::{find_head_end, header_slots, parse_good_head, parse_head};
use super::reject::Rejection;
use super::request::{Request, Version};
use super::response::Response;
use crate::fuzzing::cut;

/// However a connection's input is cut, and however little output it may write at a time, what comes of it is the same.
pub fn http_connection(data: &[u8]) {
    let [batch, rest @ ..] = data else { return };
    let (pieces, whole) = cut(rest);
    let output_batch = [1, 100, 10_000][usize::from(batch % 3)];
    let mut at_once = Client::new(small_limits());
    let mut piecemeal = Client::new(HttpLimits { output_batch, ..small_limits() });
    at_once.receive(whole);
    for piece in pieces {
        piecemeal.receive(piece);
        let HttpLimits { head, body, .. } = piecemeal.limits;
        // Vectors grow by doubling.
        assert!(piecemeal.connection.held() <= 2 * (head + body) + size_of::<Pending>());
    }
    assert_eq!(at_once.connection.stage(), piecemeal.connection.stage());
    at_once.end();
    piecemeal.end();
    assert_eq!(at_once.outcome(), piecemeal.outcome());
}

/// A head ends where it ends, wherever the search for that resumes; one that passes says nothing that another server
/// could read differently: written out again from what was understood, it is understood the same.
pub fn http_head(data: &[u8]) {
    let [resume, input @ ..] = data else { return };
    let limits = small_limits();
    one_pass_or_two(input, &limits);
    let whole = find_head_end(input, 0, limits.head);
    let seen = usize::from(*resume) % (input.len() + 1);
    if find_head_end(&input[..seen], 0, limits.head) == Ok(None) {
        assert_eq!(find_head_end(input, seen, limits.head), whole, "resumed at {seen}");
    }
    assert!(whole != Ok(None) || input.len() < limits.head, "a head that has no end yet is within the limit");
    let Ok(Some(end)) = whole else { return };
    let head = &input[..end];
    assert!(end <= limits.head && head.ends_with(b"\r\n\r\n"));
    assert!(!head[..end - 1].windows(4).any(|window| window == b"\r\n\r\n"), "an empty line before the end");
    let bare = head.iter().enumerate().find(|(at, byte)| **byte == b'\n' && !head[..*at].ends_with(b"\r"));
    assert!(bare.is_none(), "a bare line feed");

    let mut slots = header_slots();
    let Ok(request) = parse_head(head, &mut slots, &limits) else { return };
    assert!(!request.method.is_empty() && TOKEN.contains_all(request.method.as_bytes()));
    assert!(!request.target.is_empty() && request.target.len() <= limits.target);
    assert!(request.target.bytes().all(|byte| !byte.is_ascii_control() && !matches!(byte, b' ' | b'#')));
    assert!(request.headers.len() <= limits.headers);
    for header in request.headers {
        assert!(!header.name.is_empty() && TOKEN.contains_all(header.name.as_bytes()), "{:?}", header.name);
        assert!(!header.value.iter().any(|byte| matches!(byte, b'\r' | b'\n' | b'\0')), "{}", header.name);
    }
    let understood = framing(&request);
    if let Ok(Framing { body: BodyLength::Chunked, .. }) = understood {
        assert_eq!(request.version, Version::Http11);
    }

    let version = if request.version == Version::Http10 { "1.0" } else { "1.1" };
    let mut again = format!("{} {} HTTP/{version}\r\n", request.method, request.target).into_bytes();
    for header in request.headers {
        again.extend([header.name.as_bytes(), b":", header.value, b"\r\n"].concat());
    }
    again.extend(b"\r\n");
    let mut slots = header_slots();
    let reparsed = parse_head(&again, &mut slots, &limits).unwrap();
    assert_eq!((reparsed.method, reparsed.target), (request.method, request.target));
    assert_eq!(framing(&reparsed), understood);
    assert_eq!(reparsed.headers, request.headers);
}

/// What is taken for a good head at the first look is what two looks take for one, and ends where that does. Blank lines
/// before it, and what is no HTTP, are the connection's to see, which looks at the first byte.
fn one_pass_or_two(input: &[u8], limits: &HttpLimits) {
    let mut slots = header_slots();
    if input.first().is_some_and(|first| TOKEN.contains(*first))
        && let Some((length, good)) = parse_good_head(input, &mut slots, limits)
    {
        assert_eq!(find_head_end(input, 0, limits.head), Ok(Some(length)));
        let mut slots = header_slots();
        let request = parse_head(&input[..length], &mut slots, limits).unwrap();
        assert_eq!(
            (good.method, good.target, good.version),
            (request.method, request.target, request.version)
        );
        assert_eq!(good.headers, request.headers);
    }
}

/// Chunks come to the same body, the same end or the same refusal however they are cut; and whatever bytes are put in
/// chunks come out again.
pub fn chunked_body(data: &[u8]) {
    let limits = small_limits();
    let (pieces, whole) = cut(data);
    let at_once = decode(&[whole], &limits);
    assert_eq!(decode(&pieces, &limits), at_once);
    if let Ok(Decoded { body, used, whole: all }) = at_once {
        assert!(body.len() <= limits.body && body.len() <= used && used <= whole.len());
        assert!(!all || used >= b"0\r\n\r\n".len());
        if all {
            assert_eq!(reference(whole), Some((body.clone(), used)));
            // What follows a body is no part of it.
            let longer = [&whole[..used], b"5\r\n"].concat();
            assert_eq!(decode(&[&longer], &limits), Ok(Decoded { body, used, whole: true }));
        }
    }

    let mut coded = Vec::new();
    let mut body = Vec::new();
    for piece in &pieces {
        let piece = &piece[..piece.len().min(limits.body - body.len())];
        if !piece.is_empty() {
            coded.extend([format!("{:x}\r\n", piece.len()).as_bytes(), piece, b"\r\n"].concat());
            body.extend_from_slice(piece);
        }
    }
    coded.extend(b"0\r\n\r\n");
    let used = coded.len();
    assert_eq!(decode(&[&coded], &limits), Ok(Decoded { body, used, whole: true }));
}

/// The body that the chunks of `input` hold, and where they end, if they do: RFC 9112 section 7.1 read line by line. It
/// lets more pass than it should, and nothing be understood otherwise.
fn reference(input: &[u8]) -> Option<(Vec<u8>, usize)> {
    let line = |from: &[u8]| from.windows(2).position(|window| window == b"\r\n");
    let mut body = Vec::new();
    let mut rest = input;
    loop {
        let end = line(rest)?;
        let digits = rest[..end].split(|byte| *byte == b';').next()?;
        let size = usize::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?;
        rest = &rest[end + 2..];
        if size == 0 {
            break;
        }
        body.extend_from_slice(rest.get(..size)?);
        rest = rest[size..].strip_prefix(b"\r\n")?;
    }
    loop {
        let end = line(rest)?;
        rest = &rest[end + 2..];
        if end == 0 {
            return Some((body, input.len() - rest.len()));
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
struct Decoded {
    body: Vec<u8>,
    used: usize,
    whole: bool,
}

fn decode(pieces: &[&[u8]], limits: &HttpLimits) -> Result<Decoded, Rejection> {
    let framing =
        Framing { body: BodyLength::Chunked, persistence: Persistence::Close, expects_continue: false };
    let mut pending = Pending::new(b"", framing, false, limits.body)?;
    let (mut used, mut whole) = (0, false);
    for piece in pieces {
        if whole {
            break;
        }
        // An empty read does not happen: the loop has called for bytes, or the end.
        if !piece.is_empty() {
            let (taken, done) = pending.receive(piece, limits)?;
            assert!(taken == piece.len() || done && taken <= piece.len());
            used += taken;
            whole = done;
        }
    }
    Ok(Decoded { body: pending.parts().1.to_vec(), used, whole })
}

/// Small enough that a test can pass each of them.
pub(super) fn small_limits() -> HttpLimits {
    HttpLimits {
        head: 200,
        target: 40,
        headers: 6,
        body: 30,
        chunk_extensions: 8,
        trailers: 20,
        ..HttpLimits::default()
    }
}

/// What a client has seen in the end, and what became of its connection.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Outcome {
    pub(super) output: String,
    pub(super) closed: Option<Option<Rejection>>,
    pub(super) stage: Stage,
    pub(super) answered: u64,
    pub(super) unread: Vec<u8>,
}

/// A caller as the documentation asks for: it keeps the tail, and drains the output when told.
pub(super) struct Client {
    pub(super) connection: Connection,
    pub(super) limits: HttpLimits,
    pub(super) tail: Vec<u8>,
    pub(super) sent: Vec<u8>,
    pub(super) closed: Option<Option<Rejection>>,
}

impl Client {
    pub(super) fn new(limits: HttpLimits) -> Self {
        Self { connection: Connection::new(), limits, tail: Vec::new(), sent: Vec::new(), closed: None }
    }

    /// Lends the connection what it needs for one call, and gathers the output.
    pub(super) fn with<R>(
        &mut self,
        call: impl FnOnce(
            &mut Connection,
            &[u8],
            &mut Exchange<'_, fn(&Request<'_>, &mut Response), Vec<u8>>,
        ) -> R,
    ) -> R {
        let (mut response, mut output) = (Response::new(), Vec::new());
        let mut service: fn(&Request<'_>, &mut Response) = mirror;
        let mut exchange = Exchange {
            limits: &self.limits,
            date: &DateHeader::new(UNIX_EPOCH),
            metrics: &crate::http1::HttpMetrics::new(),
            connection: 0,
            client: &Address::UnixUnnamed,
            service: &mut service,
            response: &mut response,
            output: &mut output,
        };
        let result = call(&mut self.connection, &self.tail, &mut exchange);
        self.sent.append(&mut output);
        result
    }

    pub(super) fn receive(&mut self, input: &[u8]) {
        self.tail.extend_from_slice(input);
        while self.closed.is_none() {
            let progress = self.with(|connection, input, exchange| connection.receive(input, exchange));
            self.tail.drain(..progress.consumed);
            match progress.next {
                Next::MoreInput => break,
                Next::OutputFull => assert_eq!(self.connection.stage(), Stage::Head),
                Next::Close(rejection) => self.closed = Some(rejection),
                Next::Wait | Next::Disk | Next::Abort => panic!("every answer is ready at once"),
            }
        }
        assert!(self.closed.is_some() || self.tail.len() < self.limits.head);
    }

    pub(super) fn end(&mut self) {
        while self.closed.is_none() {
            let progress = self.with(|connection, input, exchange| connection.end_of_input(input, exchange));
            self.tail.drain(..progress.consumed);
            match progress.next {
                Next::MoreInput => panic!("the end of input must end the connection"),
                Next::OutputFull => {}
                Next::Close(rejection) => self.closed = Some(rejection),
                Next::Wait | Next::Disk | Next::Abort => panic!("every answer is ready at once"),
            }
        }
    }

    pub(super) fn outcome(self) -> Outcome {
        // Whether it is sent depends on what has come of the body: on how the input is cut.
        let output =
            String::from_utf8(self.sent).unwrap().replace(std::str::from_utf8(CONTINUE).unwrap(), "");
        Outcome {
            output,
            closed: self.closed,
            stage: self.connection.stage(),
            answered: self.connection.answered(),
            unread: if self.closed.is_some() { Vec::new() } else { self.tail },
        }
    }
}

/// Says what it was asked, so that the output tells whether framing has slipped.
fn mirror(request: &Request<'_>, response: &mut Response) {
    match request.path() {
        "/close" => response.close_connection(),
        "/shared" => return response.set_shared_body(vec![b's'; 9000].into()),
        "/lost" => {
            response.set_status(404);
            response.header("X-Lost", "yes").unwrap();
        }
        "/empty" => return,
        _ => {}
    }
    let (method, target) = (request.method(), request.target());
    response.set_body(format!("[{method} {target} {}]", request.body().escape_ascii()).as_bytes());
}
