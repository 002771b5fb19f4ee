//! What a server counts of its requests, for any thread to read while it serves.

use epoll_reactor::Tally;

/// Counts of one [`Http`](super::Http), or of whoever else drives [`Connection`](super::Connection)s: the thread that does
/// alone writes them, and any may read. As [`LoopMetrics`](epoll_reactor::LoopMetrics) they are never old, and cost a
/// request a few instructions.
#[derive(Debug, Default)]
pub struct HttpMetrics {
    answers: [Tally; CLASSES.len()],
    rejections: Tally,
    shed: Tally,
}

/// The classes of RFC 9110 section 15 that a final answer can have here.
const CLASSES: [&str; 4] = ["2xx", "3xx", "4xx", "5xx"];

impl HttpMetrics {
    /// All of zero.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            answers: [const { Tally::new() }; CLASSES.len()],
            rejections: Tally::new(),
            shed: Tally::new(),
        }
    }

    /// Reads it, from any thread.
    #[must_use]
    pub fn read(&self) -> HttpSnapshot {
        HttpSnapshot {
            answers: self.answers.each_ref().map(Tally::get),
            rejections: self.rejections.get(),
            shed: self.shed.get(),
        }
    }

    /// An answer's head has been written.
    pub(super) fn note_answer(&self, status: u16) {
        if let Some(count) = self.answers.get(usize::from(status / 100).wrapping_sub(2)) {
            count.add(1);
        }
    }

    /// A request has been refused, and an answer been written that says so.
    pub(super) fn note_rejection(&self, status: u16) {
        self.rejections.add(1);
        self.note_answer(status);
    }

    /// A request has been shed, and an answer been written that says so.
    pub(super) fn note_shed(&self, status: u16) {
        self.shed.add(1);
        self.note_answer(status);
    }
}

/// What [`HttpMetrics::read`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HttpSnapshot {
    answers: [u64; CLASSES.len()],
    /// Requests that never reached the service, since something was wrong with them: each [`Rejection`](super::Rejection)
    /// that was answered, but those that were shed. Their answers are among the answers.
    pub rejections: u64,
    /// Requests that never reached the service, since the loop was overloaded: they are among the answers as well.
    pub shed: u64,
}

impl HttpSnapshot {
    /// How many answers had a status of each class, `2xx` to `5xx`. One counts when its head is written, whatever
    /// becomes of it then; interim ones do not (RFC 9110 section 15.2), nor does the
    /// [refusal](epoll_reactor::Limits::refusal) of a client for whom there was no room, which is the loop's.
    pub fn answers(&self) -> impl Iterator<Item = (&'static str, u64)> {
        CLASSES.into_iter().zip(self.answers)
    }

    /// All of them.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.answers.iter().sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_class_is_counted_by_itself() {
        let metrics = HttpMetrics::new();
        for status in [200, 204, 299, 304, 404, 500, 599] {
            metrics.note_answer(status);
        }
        metrics.note_rejection(431);
        metrics.note_shed(503);
        let read = metrics.read();
        let expected = [("2xx", 3), ("3xx", 1), ("4xx", 2), ("5xx", 3)];
        assert_eq!(read.answers().collect::<Vec<_>>(), expected);
        assert_eq!((read.requests(), read.rejections, read.shed), (9, 1, 1));
    }
}
