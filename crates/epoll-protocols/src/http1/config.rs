//! The bounds and deadlines of an HTTP server. Not those of the codec, which has no clock: see `limits`.

use std::time::Duration;

use super::HttpLimits;

/// The bounds and deadlines of an HTTP server.
///
/// How fast a client reads its answers is not among them, nor how long a service takes for one it has put off: a reader
/// that takes something within each [`write_stall_timeout`](epoll_reactor::Limits::write_stall_timeout) may take for
/// ever, and costs its connection and what waits for it, at most [`output`](epoll_reactor::Limits::output).
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// What one request may take, in bytes.
    pub limits: HttpLimits,
    /// How long a client may take from the first byte of a request's head to its last, and a new client to
    /// begin. Beyond it the answer is 408; one that has sent nothing is closed without an answer.
    pub head_timeout: Duration,
    /// How long a client may take for a request's body, besides the time that what comes of it would take at
    /// [`body_rate`](Self::body_rate). That is never saved up beyond this much: whoever began fast may not be slower
    /// later. Beyond it the answer is 408.
    pub body_timeout: Duration,
    /// The slowest that a body may come for long, in bytes a second; 0 for as slowly as the client likes, within
    /// `body_timeout`.
    pub body_rate: u32,
    /// How long a connection stays open between requests.
    pub keep_alive_timeout: Duration,
    /// Threads for blocking work: [`Response::run_blocking`](super::Response::run_blocking), and files that are not
    /// in the page cache. They are started when first needed, at least one.
    pub blocking_threads: usize,
    /// Answers that may wait for a thread. Beyond it the answer is 503. A file that is being sent always has its place
    /// among them. What was to be done for a client that has gone is forgotten, unless a thread is at it.
    pub blocking_queue: usize,
}

impl Default for HttpConfig {
    fn default() -> Self {
        Self {
            limits: HttpLimits::default(),
            head_timeout: Duration::from_secs(10),
            body_timeout: Duration::from_secs(20),
            body_rate: 500,
            keep_alive_timeout: Duration::from_secs(60),
            blocking_threads: 4,
            blocking_queue: 1024,
        }
    }
}

impl HttpConfig {
    /// `limits` with those that follow from this configuration: room for a head to come in, which the loop
    /// keeps until it is whole, and for an answer of any size that `limits` already allowed.
    #[must_use]
    pub fn limits(&self, limits: epoll_reactor::Limits) -> epoll_reactor::Limits {
        // One byte more, so that the codec is the one to refuse a head that is too large.
        epoll_reactor::Limits { input: self.limits.head.saturating_add(1).max(limits.input), ..limits }
    }

    /// How long a client may be silent who had `left`, and of whose body `received` bytes more have come.
    pub(super) fn body_time(&self, left: Duration, received: u64) -> Duration {
        let earned = received.saturating_mul(1_000_000_000).checked_div(u64::from(self.body_rate));
        left.saturating_add(Duration::from_nanos(earned.unwrap_or_default())).min(self.body_timeout)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_body_earns_its_time() {
        let config =
            HttpConfig { body_timeout: Duration::from_secs(2), body_rate: 100, ..HttpConfig::default() };
        for (left, received, then) in [
            (500, 0, 500),
            (500, 1, 510),
            (500, 100, 1500),
            (500, 100_000, 2000),
            (2000, u64::MAX, 2000),
            (0, 10, 100),
        ] {
            let time = config.body_time(Duration::from_millis(left), received);
            assert_eq!(time, Duration::from_millis(then), "{left} ms and {received} bytes");
        }
        let patient = HttpConfig { body_rate: 0, ..config };
        assert_eq!(patient.body_time(Duration::from_secs(1), u64::MAX), Duration::from_secs(1));
    }
}
