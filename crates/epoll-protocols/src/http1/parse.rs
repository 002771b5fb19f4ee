//! Where a request's head ends, and what its lines say. Not what the fields mean: see `framing`.
//!
//! httparse does the parsing and is more lenient than this server in two ways: it takes LF for a line end
//! and anything visible for a target. Both are checked here.

use std::mem::MaybeUninit;

use epoll_reactor::Address;
use httparse::Header;

use super::framing::is_authority;
use super::limits::{HttpLimits, MAX_HEADERS};
use super::reject::Rejection;
use super::request::{Request, Version, split_absolute};
use super::service::RequestId;

/// Whose request it is, until the connection says so.
static NOBODY: Address = Address::UnixUnnamed;

/// Room for the header fields of one request, on the stack and not cleared.
pub(super) type HeaderSlots<'b> = [MaybeUninit<Header<'b>>; MAX_HEADERS];

pub(super) const fn header_slots<'b>() -> HeaderSlots<'b> {
    [const { MaybeUninit::uninit() }; MAX_HEADERS]
}

/// The length of the head that `input` starts with, up to and including its empty line; `None` if it is not
/// all there. The first `searched` bytes have been looked through by an earlier call on the same head: so a
/// head that comes byte by byte is read once, not once a byte.
pub(super) fn find_head_end(input: &[u8], searched: usize, limit: usize) -> Result<Option<usize>, Rejection> {
    let window = input.get(..limit).unwrap_or(input);
    let unsearched = window.get(searched..).unwrap_or_default();
    for position in memchr::memchr_iter(b'\n', unsearched) {
        let line_end = searched + position + 1;
        let so_far = window.get(..line_end).unwrap_or_default();
        // RFC 9112 section 2.2 lets a server take a bare LF for a line end; one that a proxy on the way
        // did not take for one ends the request in two different places.
        if !so_far.ends_with(b"\r\n") {
            return Err(Rejection::BareLineFeed);
        }
        if so_far.ends_with(b"\r\n\r\n") {
            return Ok(Some(line_end));
        }
    }
    if input.len() < limit {
        return Ok(None);
    }
    match memchr::memchr(b'\n', window) {
        Some(_) => Err(Rejection::HeadTooLarge),
        None => Err(Rejection::TargetTooLong),
    }
}

/// Parses a whole head, as [`find_head_end`] measured it, into a request that has no body yet.
pub(super) fn parse_head<'h, 'b: 'h>(
    head: &'b [u8],
    slots: &'h mut HeaderSlots<'b>,
    limits: &HttpLimits,
) -> Result<Request<'h>, Rejection> {
    match parse(head, slots, limits)? {
        Some((length, request)) if length == head.len() => Ok(request),
        // One of the two has found another end of the head than the other.
        _ => Err(Rejection::Header),
    }
}

/// The same for a good head that `input` begins with, and its length: one pass instead of two. `None` if anything is
/// not as it should be, or not there yet, for [`find_head_end`] and [`parse_head`] to say what.
pub(super) fn parse_good_head<'h, 'b: 'h>(
    input: &'b [u8],
    slots: &'h mut HeaderSlots<'b>,
    limits: &HttpLimits,
) -> Option<(usize, Request<'h>)> {
    let (length, request) = parse(input, slots, limits).ok()??;
    let head = input.get(..length).filter(|head| head.len() <= limits.head)?;
    // RFC 9112 section 2.2 lets a server take a bare LF for a line end, and httparse does. The lines end before each
    // field's name, and at the end: the first byte is none, and httparse takes no folded lines.
    let names =
        request.headers.iter().map(|header| header.name.as_ptr().addr().wrapping_sub(input.as_ptr().addr()));
    let all_after_crlf = names.map(|start| head.get(..start)).all(|before| before.is_some_and(ends_line));
    if !all_after_crlf || !head.ends_with(b"\r\n\r\n") {
        return None;
    }
    debug_assert_eq!(find_head_end(input, 0, limits.head), Ok(Some(head.len())), "the same end, found twice");
    Some((length, request))
}

const fn ends_line(before: &[u8]) -> bool {
    matches!(before, [.., b'\r', b'\n'])
}

/// What httparse takes for a head at the front of `input`; `None` if it is not all there.
fn parse<'h, 'b: 'h>(
    input: &'b [u8],
    slots: &'h mut HeaderSlots<'b>,
    limits: &HttpLimits,
) -> Result<Option<(usize, Request<'h>)>, Rejection> {
    let slots = slots.get_mut(..limits.headers.min(MAX_HEADERS)).unwrap_or_default();
    let mut parsed = httparse::Request::new(&mut []);
    let length = match parsed.parse_with_uninit_headers(input, slots) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(classify(error, input)),
    };
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(Rejection::RequestLine);
    };
    if target.len() > limits.target {
        return Err(Rejection::TargetTooLong);
    }
    if !is_target(method, target) {
        return Err(Rejection::Target);
    }
    // RFC 9110 section 15.6.2: CONNECT and TRACE would have this server be a proxy or an echo of secrets.
    if matches!(method, "CONNECT" | "TRACE") {
        return Err(Rejection::Method);
    }
    let version = if minor == 0 { Version::Http10 } else { Version::Http11 };
    let id = RequestId { connection: 0, number: 0 };
    let request =
        Request { method, target, version, headers: parsed.headers, body: &[], id, client: &NOBODY };
    Ok(Some((length, request)))
}

fn classify(error: httparse::Error, head: &[u8]) -> Rejection {
    match error {
        httparse::Error::TooManyHeaders => Rejection::TooManyHeaders,
        httparse::Error::HeaderName | httparse::Error::HeaderValue => Rejection::Header,
        httparse::Error::Version => version_fault(head),
        httparse::Error::NewLine | httparse::Error::Status | httparse::Error::Token => Rejection::RequestLine,
    }
}

/// The fault of a request line whose version was refused: the version (RFC 9110 section 15.6.6) if it is otherwise
/// one, and not, say, a space in the target.
fn version_fault(head: &[u8]) -> Rejection {
    let line = head.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let mut words = line.split(|byte| *byte == b' ').skip(2);
    match (words.next(), words.next()) {
        (Some([b'H', b'T', b'T', b'P', b'/', b'1', b'.', b'2'..=b'9']), None) => Rejection::NewerMinorVersion,
        (Some([b'H', b'T', b'T', b'P', b'/', b'0'..=b'9', b'.', b'0'..=b'9']), None) => Rejection::Version,
        _ => Rejection::RequestLine,
    }
}

/// A head that says HTTP/1.2 or later as one of HTTP/1.1, the highest version this server has (RFC 9110
/// section 2.5).
pub(super) fn as_http11(head: &[u8]) -> Vec<u8> {
    let mut copy = head.to_vec();
    let line = memchr::memchr(b'\r', head).unwrap_or(head.len());
    if let Some(minor) = copy.get_mut(..line).and_then(<[u8]>::last_mut) {
        *minor = b'1';
    }
    copy
}

/// RFC 9112 section 3.2: origin or absolute form, asterisk form for OPTIONS, and authority form for CONNECT and
/// nobody else. A fragment is no part of any.
fn is_target(method: &str, target: &str) -> bool {
    if target.as_bytes().contains(&b'#') {
        return false;
    }
    if method == "CONNECT" {
        // Section 3.2.3: with a port.
        return is_authority(target.as_bytes())
            && target.rsplit_once(':').is_some_and(|(_, port)| !port.is_empty());
    }
    if target.starts_with('/') {
        return true;
    }
    if target == "*" {
        return method == "OPTIONS";
    }
    // RFC 9110 section 4.2.1: an http URI without a host is invalid.
    split_absolute(target).is_some_and(|(authority, _)| {
        !authority.is_empty() && !authority.starts_with(':') && is_authority(authority.as_bytes())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(head: &str) -> Result<String, Rejection> {
        let mut slots = header_slots();
        let limits = HttpLimits { target: 20, headers: 2, ..HttpLimits::default() };
        parse_head(head.as_bytes(), &mut slots, &limits)
            .map(|request| format!("{} {} {:?}", request.method(), request.target(), request.version()))
    }

    #[test]
    fn the_end_of_a_head_is_found_wherever_the_search_resumes() {
        let input = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nnext\n";
        let head = 27;
        for searched in 0..head {
            assert_eq!(find_head_end(input, searched, 100), Ok(Some(head)), "{searched}");
            assert_eq!(find_head_end(&input[..searched], 0, 100), Ok(None), "{searched}");
        }
        assert_eq!(find_head_end(input, 0, head), Ok(Some(head)));
        assert_eq!(find_head_end(input, 0, head - 1), Err(Rejection::HeadTooLarge));
        assert_eq!(find_head_end(input, 0, 10), Err(Rejection::TargetTooLong));
        assert_eq!(find_head_end(&input[..head - 1], 0, head - 1), Err(Rejection::HeadTooLarge));
        for bare in ["GET / HTTP/1.1\nHost", "GET / HTTP/1.1\r\nHost: a\n", "GET / HTTP/1.1\r\n\n", "\n"] {
            assert_eq!(find_head_end(bare.as_bytes(), 0, 100), Err(Rejection::BareLineFeed), "{bare:?}");
        }
    }

    #[test]
    fn request_lines() {
        let good = [
            ("GET / HTTP/1.1", "GET / Http11"),
            ("get /a?b HTTP/1.0", "get /a?b Http10"),
            ("OPTIONS * HTTP/1.1", "OPTIONS * Http11"),
            ("GET http://h:1/ HTTP/1.1", "GET http://h:1/ Http11"),
            ("M-SEARCH / HTTP/1.1", "M-SEARCH / Http11"),
            ("GET /12345678901234567890 HTTP/1.1", ""),
        ];
        for (line, seen) in good {
            match parse(&format!("{line}\r\n\r\n")) {
                Ok(parsed) => assert_eq!(parsed, seen, "{line}"),
                Err(rejection) => assert_eq!((seen, rejection), ("", Rejection::TargetTooLong), "{line}"),
            }
        }
        let bad = [
            ("GET /", Rejection::RequestLine),
            ("GET  / HTTP/1.1", Rejection::RequestLine),
            ("GET /a b HTTP/1.1", Rejection::RequestLine),
            ("GET / HTTP/1.1 ", Rejection::RequestLine),
            ("GET /\0 HTTP/1.1", Rejection::RequestLine),
            ("GET /\t HTTP/1.1", Rejection::RequestLine),
            ("GET / http/1.1", Rejection::RequestLine),
            ("GET / HTTP/11", Rejection::RequestLine),
            ("G(T / HTTP/1.1", Rejection::RequestLine),
            ("GET / HTTP/1.1\rX: y", Rejection::RequestLine),
            ("GET / HTTP/2.0", Rejection::Version),
            ("GET / HTTP/0.9", Rejection::Version),
            ("GET / HTTP/1.2", Rejection::NewerMinorVersion),
            ("GET / HTTP/1.9", Rejection::NewerMinorVersion),
            ("GET / HTTP/1.10", Rejection::RequestLine),
            ("GET / HTTP/3.0", Rejection::Version),
            ("GET * HTTP/1.1", Rejection::Target),
            ("GET a HTTP/1.1", Rejection::Target),
            ("GET /a#b HTTP/1.1", Rejection::Target),
            ("GET http:///a HTTP/1.1", Rejection::Target),
            ("GET http://:1/ HTTP/1.1", Rejection::Target),
            ("GET http://u@h/ HTTP/1.1", Rejection::Target),
            ("GET ftp://h/ HTTP/1.1", Rejection::Target),
            ("CONNECT h:443 HTTP/1.1", Rejection::Method),
            ("CONNECT / HTTP/1.1", Rejection::Target),
            ("CONNECT h HTTP/1.1", Rejection::Target),
            ("CONNECT http://h:1/ HTTP/1.1", Rejection::Target),
            ("GET h:443 HTTP/1.1", Rejection::Target),
            ("OPTIONS h:443 HTTP/1.1", Rejection::Target),
            ("TRACE / HTTP/1.1", Rejection::Method),
        ];
        for (line, rejection) in bad {
            assert_eq!(parse(&format!("{line}\r\n\r\n")), Err(rejection), "{line:?}");
        }
    }

    #[test]
    fn field_lines() {
        let cases = [
            ("A: b\r\nC:d\r\n", None),
            ("A:\r\n", None),
            ("A: b\r\nC: d\r\nE: f\r\n", Some(Rejection::TooManyHeaders)),
            ("A : b\r\n", Some(Rejection::Header)),
            (" A: b\r\n", Some(Rejection::Header)),
            ("A: b\r\n c\r\n", Some(Rejection::Header)),
            ("A: b\r\n\tc\r\n", Some(Rejection::Header)),
            ("A: b\rc\r\n", Some(Rejection::Header)),
            ("A: b\n\nC: d\r\n", Some(Rejection::Header)),
            ("A: b\0\r\n", Some(Rejection::Header)),
            ("A: b\x7f\r\n", Some(Rejection::Header)),
            ("A\r\n", Some(Rejection::Header)),
            (": b\r\n", Some(Rejection::Header)),
            ("A\0: b\r\n", Some(Rejection::Header)),
        ];
        for (lines, rejection) in cases {
            assert_eq!(parse(&format!("GET / HTTP/1.1\r\n{lines}\r\n")).err(), rejection, "{lines:?}");
        }
    }
}
