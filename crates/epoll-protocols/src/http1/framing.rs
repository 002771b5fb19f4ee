//! What the fields of a head say about the message: how long its body is, whether the connection stays, what
//! the client expects first. Not the reading of that body: see `body`.

use super::byte_set::REG_NAME;
use super::encode::Persistence;
use super::reject::Rejection;
use super::request::{Request, Version};

/// What a head decides about its message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Framing {
    pub(super) body: BodyLength,
    pub(super) persistence: Persistence,
    /// The client waits for `100 Continue` before it sends the body.
    pub(super) expects_continue: bool,
}

/// How the end of a body is known (RFC 9112 section 6.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BodyLength {
    /// After so many bytes; 0 when the head speaks of no body.
    Known(u64),
    /// After the last chunk and the trailers.
    Chunked,
}

/// The fields that matter here, gathered in one walk over the head.
#[derive(Default)]
struct Fields<'a> {
    hosts: usize,
    host: &'a [u8],
    content_length: Option<&'a [u8]>,
    lengths_differ: bool,
    codings: Option<Codings>,
    close: bool,
    keep_alive: bool,
    expects_continue: bool,
    expects_other: bool,
}

/// What all `Transfer-Encoding` fields together list.
#[derive(Default)]
struct Codings {
    chunked: usize,
    others: usize,
    chunked_is_last: bool,
}

/// Applies the rules on fields to a parsed head.
pub(super) fn framing(request: &Request<'_>) -> Result<Framing, Rejection> {
    let fields = Fields::gather(request);
    // RFC 9112 section 3.2: HTTP/1.1 has one, and nobody has two, even if they are the same.
    match (fields.hosts, request.version) {
        (0, Version::Http10) => {}
        (1, _) if is_authority(fields.host) => {}
        _ => return Err(Rejection::Host),
    }
    let body = fields.body_length(request.version)?;
    // RFC 9110 section 10.1.1: an expectation in HTTP/1.0 is to be ignored.
    let expects = request.version == Version::Http11;
    if expects && fields.expects_other {
        return Err(Rejection::Expectation);
    }
    // RFC 9112 section 9.3.
    let persistence = match request.version {
        _ if fields.close => Persistence::Close,
        Version::Http11 => Persistence::Implied,
        Version::Http10 if fields.keep_alive => Persistence::KeepAlive,
        Version::Http10 => Persistence::Close,
    };
    Ok(Framing { body, persistence, expects_continue: expects && fields.expects_continue })
}

impl<'a> Fields<'a> {
    fn gather(request: &Request<'a>) -> Self {
        let mut fields = Self::default();
        for (name, value) in request.headers() {
            // The length rules out nearly every other field before a byte is compared.
            match name.len() {
                4 if name.eq_ignore_ascii_case("host") => {
                    fields.hosts += 1;
                    fields.host = value;
                }
                6 if name.eq_ignore_ascii_case("expect") => {
                    let known = value.eq_ignore_ascii_case(b"100-continue");
                    fields.expects_continue |= known;
                    fields.expects_other |= !known;
                }
                10 if name.eq_ignore_ascii_case("connection") => {
                    fields.close |= list(value).any(|token| token.eq_ignore_ascii_case(b"close"));
                    fields.keep_alive |= list(value).any(|token| token.eq_ignore_ascii_case(b"keep-alive"));
                }
                14 if name.eq_ignore_ascii_case("content-length") => {
                    let earlier = fields.content_length.replace(value);
                    fields.lengths_differ |= earlier.is_some_and(|earlier| earlier != value);
                }
                17 if name.eq_ignore_ascii_case("transfer-encoding") => {
                    fields.codings.get_or_insert_default().add(value);
                }
                _ => {}
            }
        }
        fields
    }

    fn body_length(&self, version: Version) -> Result<BodyLength, Rejection> {
        let Some(codings) = &self.codings else {
            let Some(digits) = self.content_length else { return Ok(BodyLength::Known(0)) };
            // RFC 9112 section 6.3, rule 5: repeats must agree.
            if self.lengths_differ {
                return Err(Rejection::ContentLength);
            }
            return parse_length(digits).map(BodyLength::Known).ok_or(Rejection::ContentLength);
        };
        // RFC 9112 section 6.1: HTTP/1.0 has no transfer codings, and a length beside one is an attack.
        if version == Version::Http10 || self.content_length.is_some() {
            return Err(Rejection::TransferEncoding);
        }
        match (codings.chunked, codings.others) {
            (1, 0) => Ok(BodyLength::Chunked),
            // RFC 9112 section 6.1: codings this server does not know.
            (1, _) if codings.chunked_is_last => Err(Rejection::UnknownCoding),
            // Section 6.3, rule 4, and section 7.1: chunked is the last coding, and applied once.
            _ => Err(Rejection::TransferEncoding),
        }
    }
}

impl Codings {
    fn add(&mut self, value: &[u8]) {
        for coding in list(value) {
            self.chunked_is_last = coding.eq_ignore_ascii_case(b"chunked");
            match self.chunked_is_last {
                true => self.chunked += 1,
                false => self.others += 1,
            }
        }
    }
}

/// The elements of a comma-separated value (RFC 9110 section 5.6.1), empty ones included.
fn list(value: &[u8]) -> impl Iterator<Item = &[u8]> {
    value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii)
}

/// RFC 9110 section 8.6: digits and nothing else. `None` also for what 64 bits cannot hold.
fn parse_length(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |length, digit| {
        let digit = digit.is_ascii_digit().then(|| u64::from(digit - b'0'))?;
        length.checked_mul(10)?.checked_add(digit)
    })
}

/// Whether `value` is `uri-host [ ":" port ]` (RFC 9110 section 7.2, RFC 3986 section 3.2.2). The host may be
/// empty.
pub(super) fn is_authority(value: &[u8]) -> bool {
    let port = if let Some(literal) = value.strip_prefix(b"[") {
        let Some(end) = memchr::memchr(b']', literal) else { return false };
        let (address, after) = literal.split_at(end);
        if address.is_empty() || !address.iter().all(|byte| byte.is_ascii_hexdigit() || b":.".contains(byte))
        {
            return false;
        }
        after.get(1..).unwrap_or_default()
    } else {
        // A name can be empty, and what ends it is no part of one.
        let name = value.iter().position(|byte| !REG_NAME.contains(*byte)).unwrap_or(value.len());
        value.get(name..).unwrap_or_default()
    };
    match port.split_first() {
        None => true,
        Some((colon, digits)) => *colon == b':' && digits.iter().all(u8::is_ascii_digit),
    }
}

#[cfg(test)]
mod tests {
    use super::super::limits::HttpLimits;
    use super::super::parse::{header_slots, parse_head};
    use super::*;

    fn framing_of(minor: u8, fields: &str) -> Result<Framing, Rejection> {
        let head = format!("POST / HTTP/1.{minor}\r\n{fields}\r\n");
        let mut slots = header_slots();
        framing(&parse_head(head.as_bytes(), &mut slots, &HttpLimits::default()).unwrap())
    }

    #[test]
    fn body_lengths() {
        let cases = [
            ("", Ok(BodyLength::Known(0))),
            ("Content-Length: 0\r\n", Ok(BodyLength::Known(0))),
            ("content-length: 100\r\n", Ok(BodyLength::Known(100))),
            ("Content-Length: 5\r\nContent-Length: 5\r\n", Ok(BodyLength::Known(5))),
            ("Content-Length: 5\r\nContent-Length: 6\r\n", Err(Rejection::ContentLength)),
            ("Content-Length: 5, 5\r\n", Err(Rejection::ContentLength)),
            ("Content-Length:\r\n", Err(Rejection::ContentLength)),
            ("Content-Length: +5\r\n", Err(Rejection::ContentLength)),
            ("Content-Length: -5\r\n", Err(Rejection::ContentLength)),
            ("Content-Length: 0x5\r\n", Err(Rejection::ContentLength)),
            ("Content-Length: 5 5\r\n", Err(Rejection::ContentLength)),
            ("Content-Length: 18446744073709551616\r\n", Err(Rejection::ContentLength)),
            ("Content-Length: 18446744073709551615\r\n", Ok(BodyLength::Known(u64::MAX))),
            ("Transfer-Encoding: chunked\r\n", Ok(BodyLength::Chunked)),
            ("transfer-encoding: CHUNKED\r\n", Ok(BodyLength::Chunked)),
            ("Transfer-Encoding: chunked\r\nContent-Length: 5\r\n", Err(Rejection::TransferEncoding)),
            ("Content-Length: 5\r\nTransfer-Encoding: gzip\r\n", Err(Rejection::TransferEncoding)),
            ("Transfer-Encoding: chunked, chunked\r\n", Err(Rejection::TransferEncoding)),
            (
                "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
                Err(Rejection::TransferEncoding),
            ),
            ("Transfer-Encoding: chunked, gzip\r\n", Err(Rejection::TransferEncoding)),
            ("Transfer-Encoding: chunked,\r\n", Err(Rejection::TransferEncoding)),
            ("Transfer-Encoding: gzip, chunked\r\n", Err(Rejection::UnknownCoding)),
            ("Transfer-Encoding: gzip\r\nTransfer-Encoding: chunked\r\n", Err(Rejection::UnknownCoding)),
            ("Transfer-Encoding: gzip\r\n", Err(Rejection::TransferEncoding)),
            ("Transfer-Encoding: identity\r\n", Err(Rejection::TransferEncoding)),
            ("Transfer-Encoding: xchunked\r\n", Err(Rejection::TransferEncoding)),
            ("Transfer-Encoding: chunked;a=b\r\n", Err(Rejection::TransferEncoding)),
            ("Transfer-Encoding: \"chunked\"\r\n", Err(Rejection::TransferEncoding)),
            ("Transfer-Encoding:\r\n", Err(Rejection::TransferEncoding)),
        ];
        for (fields, body) in cases {
            let seen = framing_of(1, &format!("Host: a\r\n{fields}")).map(|framing| framing.body);
            assert_eq!(seen, body, "{fields:?}");
        }
        let old = framing_of(0, "Transfer-Encoding: chunked\r\n");
        assert_eq!(old.unwrap_err(), Rejection::TransferEncoding);
    }

    #[test]
    fn persistence() {
        use Persistence::{Close, Implied, KeepAlive};
        let cases = [
            ("", Implied, Close),
            ("Connection: close\r\n", Close, Close),
            ("Connection: Keep-Alive\r\n", Implied, KeepAlive),
            ("Connection: upgrade , CLOSE\r\n", Close, Close),
            ("Connection: a\r\nConnection: close\r\n", Close, Close),
            ("Connection: close\r\nConnection: a\r\n", Close, Close),
            ("Connection: keep-alive\r\nConnection: a\r\n", Implied, KeepAlive),
            ("Connection: keep-alive, close\r\n", Close, Close),
            ("Connection: closed\r\n", Implied, Close),
        ];
        for (fields, new, old) in cases {
            let fields = format!("Host: a\r\n{fields}");
            assert_eq!(framing_of(1, &fields).unwrap().persistence, new, "{fields:?}");
            assert_eq!(framing_of(0, &fields).unwrap().persistence, old, "{fields:?}");
        }
    }

    #[test]
    fn expectations() {
        let cases = [
            ("", Ok(false)),
            ("Expect: 100-Continue\r\n", Ok(true)),
            ("Expect: 200-ok\r\n", Err(Rejection::Expectation)),
            ("Expect: 100-continue\r\nExpect: x\r\n", Err(Rejection::Expectation)),
            ("Expect:\r\n", Err(Rejection::Expectation)),
        ];
        for (fields, seen) in cases {
            let fields = format!("Host: a\r\n{fields}");
            assert_eq!(framing_of(1, &fields).map(|framing| framing.expects_continue), seen, "{fields:?}");
            assert_eq!(
                framing_of(0, &fields).map(|framing| framing.expects_continue),
                Ok(false),
                "{fields:?}"
            );
        }
    }

    #[test]
    fn hosts() {
        let good = ["", "a", "a.b-c:80", "a:", "127.0.0.1:1", "[::1]", "[::ffff:1.2.3.4]:80", "a%20b", "a_b"];
        let bad = [
            "a b", "a/b", "a@b", "a:b", "a:1:2", "a?b", "a#b", "[::1", "[]", "[::g]", "[::1]x", "a, b",
            "\u{e9}",
        ];
        for host in good {
            assert!(framing_of(1, &format!("Host: {host}\r\n")).is_ok(), "{host:?}");
        }
        for host in bad {
            let seen = framing_of(0, &format!("Host: {host}\r\n"));
            assert_eq!(seen, Err(Rejection::Host), "{host:?}");
        }
        assert_eq!(framing_of(1, ""), Err(Rejection::Host));
        assert!(framing_of(0, "").is_ok());
        for minor in [0, 1] {
            assert_eq!(framing_of(minor, "Host: a\r\nHost: a\r\n"), Err(Rejection::Host));
        }
    }
}
