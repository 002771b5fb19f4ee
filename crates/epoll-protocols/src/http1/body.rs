//! A request whose body comes in pieces: by length or in chunks, gathered up to a bound, or passed on. Not used when
//! a body of known length is whole in the receive buffer: it is then read where it lies.

use super::byte_set::TOKEN;
use super::framing::{BodyLength, Framing};
use super::limits::HttpLimits;
use super::reject::Rejection;

/// A request whose head is here and whose body is not.
pub(super) struct Pending {
    /// The head, then as much of the body as has come: one allocation for both.
    bytes: Vec<u8>,
    /// Where in `bytes` the body starts.
    head: usize,
    decoder: Decoder,
    /// What was decided from the head, which is parsed again when the body is whole.
    pub(super) framing: Framing,
    /// The pieces go to the service as they come.
    pub(super) streamed: bool,
    /// The service has asked for no more for now.
    pub(super) paused: bool,
    /// All of it has come.
    pub(super) whole: bool,
    /// Bytes of it that have come, the framing of chunks included.
    pub(super) received: u64,
}

enum Decoder {
    Known { left: u64 },
    Chunked(Chunked),
}

impl Pending {
    /// `limit` is the most the body may have, in bytes.
    pub(super) fn new(
        head: &[u8],
        framing: Framing,
        streamed: bool,
        limit: usize,
    ) -> Result<Self, Rejection> {
        let decoder = match framing.body {
            BodyLength::Known(length) if length > limit as u64 => return Err(Rejection::BodyTooLarge),
            BodyLength::Known(left) => Decoder::Known { left },
            BodyLength::Chunked => Decoder::Chunked(Chunked::new(limit)),
        };
        // Not sized for the body: the client has only said how long it will be.
        Ok(Self {
            bytes: head.to_vec(),
            head: head.len(),
            decoder,
            framing,
            streamed,
            paused: false,
            whole: false,
            received: 0,
        })
    }

    /// Takes what `input` has of the body: how many bytes that was, and whether the body is now whole.
    pub(super) fn receive(&mut self, input: &[u8], limits: &HttpLimits) -> Result<(usize, bool), Rejection> {
        let (used, whole) = match &mut self.decoder {
            Decoder::Known { left } => {
                let here = usize::try_from(*left).ok().and_then(|left| input.get(..left)).unwrap_or(input);
                self.bytes.extend_from_slice(here);
                *left -= here.len() as u64;
                (here.len(), *left == 0)
            }
            Decoder::Chunked(chunked) => chunked.decode(input, &mut self.bytes, limits)?,
        };
        self.received += used as u64;
        Ok((used, whole))
    }

    /// The head and the body so far.
    pub(super) fn parts(&self) -> (&[u8], &[u8]) {
        self.bytes.split_at_checked(self.head).unwrap_or_default()
    }

    /// Forgets the body so far: it has been passed on.
    pub(super) fn passed_on(&mut self) {
        self.bytes.truncate(self.head);
    }

    pub(super) const fn held(&self) -> usize {
        self.bytes.capacity() + size_of::<Self>()
    }
}

/// The chunked transfer coding (RFC 9112 section 7.1), read strictly: CRLF, hex digits, no space.
struct Chunked {
    expect: Expect,
    /// Body bytes that further chunks may announce.
    left: usize,
    extensions: usize,
    trailers: usize,
}

/// What the next byte must be.
enum Expect {
    Size { value: usize, digits: u8 },
    Extension { value: usize },
    SizeLineFeed { value: usize },
    Data { left: usize },
    DataReturn,
    DataLineFeed,
    TrailerStart,
    TrailerName,
    TrailerValue,
    TrailerLineFeed,
    LastLineFeed,
    Nothing,
}

/// As many digits as a 64-bit size has, leading zeros included.
const MAX_SIZE_DIGITS: u8 = 16;

impl Chunked {
    const fn new(limit: usize) -> Self {
        Self { expect: Expect::Size { value: 0, digits: 0 }, left: limit, extensions: 0, trailers: 0 }
    }

    /// Appends to `body` what `input` has of it: how many bytes were used, and whether this was all.
    fn decode(
        &mut self,
        input: &[u8],
        body: &mut Vec<u8>,
        limits: &HttpLimits,
    ) -> Result<(usize, bool), Rejection> {
        let mut rest = input;
        while let Some((&byte, after)) = rest.split_first() {
            if let Expect::Data { left } = &mut self.expect {
                let (data, after) = rest.split_at_checked(*left).unwrap_or((rest, &[]));
                body.extend_from_slice(data);
                *left -= data.len();
                if *left == 0 {
                    self.expect = Expect::DataReturn;
                }
                rest = after;
                continue;
            }
            self.expect = self.step(byte, limits)?;
            rest = after;
            if matches!(self.expect, Expect::Nothing) {
                return Ok((input.len() - rest.len(), true));
            }
        }
        Ok((input.len(), false))
    }

    /// What to expect after `byte`, a byte of the framing.
    fn step(&mut self, byte: u8, limits: &HttpLimits) -> Result<Expect, Rejection> {
        Ok(match (&self.expect, byte) {
            (&Expect::Size { value, digits }, _) => self.size(byte, value, digits, limits)?,
            (&Expect::Extension { value }, b'\r') => Expect::SizeLineFeed { value },
            (&Expect::Extension { value }, b'\t' | b' '..=b'~' | 0x80..) => {
                bounded(&mut self.extensions, limits.chunk_extensions, Rejection::Chunk)?;
                Expect::Extension { value }
            }
            (Expect::SizeLineFeed { value: 0 }, b'\n') => Expect::TrailerStart,
            (&Expect::SizeLineFeed { value }, b'\n') => {
                self.left -= value;
                Expect::Data { left: value }
            }
            (Expect::DataReturn, b'\r') => Expect::DataLineFeed,
            (Expect::DataLineFeed, b'\n') => Expect::Size { value: 0, digits: 0 },
            (
                Expect::TrailerStart
                | Expect::TrailerName
                | Expect::TrailerValue
                | Expect::TrailerLineFeed
                | Expect::LastLineFeed,
                _,
            ) => self.trailer(byte, limits)?,
            _ => return Err(Rejection::Chunk),
        })
    }

    fn size(&mut self, byte: u8, value: usize, digits: u8, limits: &HttpLimits) -> Result<Expect, Rejection> {
        let digit = match byte {
            b'0'..=b'9' => byte - b'0',
            b'a'..=b'f' => byte - b'a' + 10,
            b'A'..=b'F' => byte - b'A' + 10,
            b'\r' if digits > 0 => return Ok(Expect::SizeLineFeed { value }),
            b';' if digits > 0 => {
                bounded(&mut self.extensions, limits.chunk_extensions, Rejection::Chunk)?;
                return Ok(Expect::Extension { value });
            }
            _ => return Err(Rejection::Chunk),
        };
        if digits == MAX_SIZE_DIGITS {
            return Err(Rejection::Chunk);
        }
        let value = value.checked_mul(16).and_then(|value| value.checked_add(usize::from(digit)));
        match value {
            // So that taking it off `left` cannot wrap.
            Some(value) if value <= self.left => Ok(Expect::Size { value, digits: digits + 1 }),
            _ => Err(Rejection::BodyTooLarge),
        }
    }

    /// RFC 9112 section 7.1.2 lets a server discard trailers. They are checked like fields, so that nothing
    /// hides in them.
    fn trailer(&mut self, byte: u8, limits: &HttpLimits) -> Result<Expect, Rejection> {
        match (&self.expect, byte) {
            (Expect::TrailerStart, b'\r') => return Ok(Expect::LastLineFeed),
            (Expect::LastLineFeed, b'\n') => return Ok(Expect::Nothing),
            _ => bounded(&mut self.trailers, limits.trailers, Rejection::TrailersTooLarge)?,
        }
        Ok(match (&self.expect, byte) {
            (Expect::TrailerStart | Expect::TrailerName, _) if TOKEN.contains(byte) => Expect::TrailerName,
            (Expect::TrailerName, b':') => Expect::TrailerValue,
            (Expect::TrailerValue, b'\t' | b' '..=b'~' | 0x80..) => Expect::TrailerValue,
            (Expect::TrailerValue, b'\r') => Expect::TrailerLineFeed,
            (Expect::TrailerLineFeed, b'\n') => Expect::TrailerStart,
            _ => return Err(Rejection::Trailer),
        })
    }
}

/// Counts one byte more, up to `limit`.
const fn bounded(count: &mut usize, limit: usize, beyond: Rejection) -> Result<(), Rejection> {
    if *count >= limit {
        return Err(beyond);
    }
    *count += 1;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a chunked body decodes to, and how much of `input` it was, given in pieces of `piece` bytes.
    fn decode(input: &[u8], piece: usize) -> Result<(String, usize, bool), Rejection> {
        let limits = HttpLimits { chunk_extensions: 6, trailers: 10, ..HttpLimits::default() };
        let (mut chunked, mut body, mut used, mut whole) = (Chunked::new(20), Vec::new(), 0, false);
        while used < input.len() && !whole {
            let end = input.len().min(used + piece);
            let (taken, done) = chunked.decode(&input[used..end], &mut body, &limits)?;
            (used, whole) = (used + taken, done);
        }
        Ok((String::from_utf8(body).unwrap(), used, whole))
    }

    #[test]
    fn chunks() {
        let good = [
            ("0\r\n\r\n", ""),
            ("5\r\nhello\r\n0\r\n\r\n", "hello"),
            ("5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n", "hello world"),
            ("A\r\n0123456789\r\na\r\n0123456789\r\n0\r\n\r\n", "01234567890123456789"),
            ("0000000000000001\r\n\n\r\n0\r\n\r\n", "\n"),
            ("1;a=b\r\nx\r\n0\r\n\r\n", "x"),
            ("1;a\r\nx\r\n0;b=\r\n\r\n", "x"),
            ("1\r\nx\r\n0\r\nA: b\r\nC:\r\n\r\n", "x"),
            ("1\r\nx\r\n000\r\n\r\n", "x"),
        ];
        let bad = [
            ("\r\n", Rejection::Chunk),
            ("g\r\n", Rejection::Chunk),
            ("0x1\r\n", Rejection::Chunk),
            ("-1\r\n", Rejection::Chunk),
            (" 1\r\n", Rejection::Chunk),
            ("1 \r\n", Rejection::Chunk),
            ("1 ;a\r\n", Rejection::Chunk),
            ("1\nx", Rejection::Chunk),
            ("1\rx", Rejection::Chunk),
            (";a\r\n", Rejection::Chunk),
            ("1;\n", Rejection::Chunk),
            ("1;\0", Rejection::Chunk),
            ("1;a\rb", Rejection::Chunk),
            ("1;aaaaaa", Rejection::Chunk),
            ("1;aa\r\nx\r\n1;aa\r\nx\r\n1;", Rejection::Chunk),
            ("00000000000000001\r\n", Rejection::Chunk),
            ("1\r\nxy", Rejection::Chunk),
            ("1\r\nx\n", Rejection::Chunk),
            ("1\r\nx\r1", Rejection::Chunk),
            ("15\r\n", Rejection::BodyTooLarge),
            ("ffffffffffffffff\r\n", Rejection::BodyTooLarge),
            ("10\r\n0123456789abcdef\r\n5", Rejection::BodyTooLarge),
            ("0\r\n\n", Rejection::Trailer),
            ("0\r\n\rx", Rejection::Trailer),
            ("0\r\n a: b\r\n", Rejection::Trailer),
            ("0\r\na : b\r\n", Rejection::Trailer),
            ("0\r\na\r\n", Rejection::Trailer),
            ("0\r\na: b\n", Rejection::Trailer),
            ("0\r\na: \0", Rejection::Trailer),
            ("0\r\na: b\r\n c\r\n", Rejection::Trailer),
            ("0\r\n:\r\n", Rejection::Trailer),
            ("0\r\na: 12345678", Rejection::TrailersTooLarge),
        ];
        for piece in 1..40 {
            for (input, body) in good {
                let whole = format!("{input}GET");
                let (seen, used, done) = decode(whole.as_bytes(), piece).unwrap();
                assert_eq!((seen.as_str(), used, done), (body, input.len(), true), "{input:?} by {piece}");
                for end in 0..input.len() {
                    let (_, used, done) = decode(&input.as_bytes()[..end], piece).unwrap();
                    assert_eq!((used, done), (end, false), "{input:?} up to {end} by {piece}");
                }
            }
            for (input, rejection) in bad {
                assert_eq!(decode(input.as_bytes(), piece), Err(rejection), "{input:?} by {piece}");
            }
        }
    }
}
