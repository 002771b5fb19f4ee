//! Every bound on what one HTTP client can make the server hold or do. Not the timeouts: those need a clock,
//! and belong to whoever drives the codec.

use std::fmt;

/// The most header fields a request can have, whatever [`HttpLimits::headers`] says: their places are on the
/// stack while a head is looked at.
pub const MAX_HEADERS: usize = 128;

/// The bounds on a request, and on the answers gathered before they are sent. Sizes are in bytes.
#[derive(Clone, Debug)]
pub struct HttpLimits {
    /// Request line and header fields together, with their line ends and the empty line. Beyond it the
    /// answer is 431, or 414 when not even the request line fits. The part of a head that has come is kept by
    /// the caller, so it must be able to hold this much.
    pub head: usize,
    /// The request target; beyond it the answer is 414. RFC 9112 section 3 asks for 8000 at least.
    pub target: usize,
    /// The number of header fields, at most [`MAX_HEADERS`]; beyond it the answer is 431.
    pub headers: usize,
    /// A request's body, without the framing of its chunks; beyond it the answer is 413. A connection holds
    /// at most twice this much, and the head, while the body arrives.
    pub body: usize,
    /// The chunk extensions of one body, all together; beyond it the answer is 400. Nobody uses them, and
    /// reading past them is work that a body limit does not bound.
    pub chunk_extensions: usize,
    /// The trailer fields of one body, all together; beyond it the answer is 431. They are checked and dropped.
    pub trailers: usize,
    /// The requests of one connection; the answer to the last one says that the connection ends. At least 1. A
    /// client that stays for ever keeps whatever it has been given, so none does. It begins anew with a connection that
    /// [moves](epoll_reactor::Ctx::hand_over) to another loop.
    pub requests: u64,
    /// Once this much output waits, no further request is read until the caller has taken it: pipelined
    /// requests for a large answer would otherwise turn a few bytes of input into any amount of memory.
    pub output_batch: usize,
}

impl Default for HttpLimits {
    fn default() -> Self {
        Self {
            head: 16 * 1024,
            target: 8 * 1024,
            headers: 100,
            body: 1024 * 1024,
            chunk_extensions: 4 * 1024,
            trailers: 8 * 1024,
            requests: 100_000,
            output_batch: 64 * 1024,
        }
    }
}

impl HttpLimits {
    /// Checks what the fields demand of each other. The codec is safe with limits that fail this, but would
    /// refuse every request or behave otherwise than the fields say.
    ///
    /// # Errors
    /// The first rule that is broken, in words.
    pub fn check(&self) -> Result<(), HttpLimitsError> {
        let rules = [
            (self.headers <= MAX_HEADERS, "headers must not be above MAX_HEADERS"),
            (self.headers > 0, "headers must be at least 1: every HTTP/1.1 request has a Host"),
            (self.target > 0, "target must be at least 1"),
            (self.target < self.head, "target must be below head, which contains it"),
            (self.requests > 0, "requests must be at least 1"),
            (self.output_batch > 0, "output_batch must be at least 1"),
        ];
        match rules.into_iter().find(|(holds, _)| !holds) {
            Some((_, broken)) => Err(HttpLimitsError(broken)),
            None => Ok(()),
        }
    }
}

/// Which rule of [`HttpLimits`] is broken, in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HttpLimitsError(&'static str);

impl fmt::Display for HttpLimitsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "HTTP limits: {}", self.0)
    }
}

impl std::error::Error for HttpLimitsError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_hold_and_each_rule_bites() {
        HttpLimits::default().check().unwrap();
        let broken = [
            (HttpLimits { headers: MAX_HEADERS + 1, ..HttpLimits::default() }, "MAX_HEADERS"),
            (HttpLimits { headers: 0, ..HttpLimits::default() }, "headers must be at least 1"),
            (HttpLimits { target: 0, ..HttpLimits::default() }, "target must be at least 1"),
            (HttpLimits { target: 16 * 1024, ..HttpLimits::default() }, "target must be below head"),
            (HttpLimits { requests: 0, ..HttpLimits::default() }, "requests"),
            (HttpLimits { output_batch: 0, ..HttpLimits::default() }, "output_batch"),
        ];
        for (limits, words) in broken {
            let error = limits.check().unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }
}
