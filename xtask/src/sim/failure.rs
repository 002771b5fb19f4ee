//! What a run found wrong, and how it is told.

use std::fmt;

use epoll_reactor::Timestamp;

/// A rule that did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Failure {
    /// Which rule, in a word or two: a smaller run that breaks the same one has failed for the same reason.
    pub(crate) rule: &'static str,
    pub(crate) what: String,
}

impl Failure {
    pub(crate) fn new(rule: &'static str, what: impl Into<String>) -> Self {
        Self { rule, what: what.into() }
    }

    /// The same, found by the client of a session.
    pub(crate) fn of_session(self, number: usize) -> Self {
        let who = format!("session {number}");
        if mentions(&self.what, &who) { self } else { Self::new(self.rule, format!("{who}: {}", self.what)) }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
}

/// A time as the kernel's trace shows it.
pub(crate) fn milliseconds(at: Timestamp) -> String {
    let nanoseconds = at.as_nanoseconds();
    format!("{}.{:06} ms", nanoseconds / 1_000_000, nanoseconds % 1_000_000)
}

/// Whether `text` has `name` in it by itself: `0.1` is not in `10.1`, `0.12` or `127.0.0.1`.
pub(crate) fn mentions(text: &str, name: &str) -> bool {
    let part = |it: Option<char>, more: char| it.is_some_and(|it| it.is_alphanumeric() || it == more);
    text.match_indices(name).any(|(at, _)| {
        let (before, after) = (&text[..at], &text[at + name.len()..]);
        !part(before.chars().next_back(), '.') && !part(after.chars().next(), '#')
    })
}

/// Fails with `rule` and the formatted text unless the condition holds.
macro_rules! demand {
    ($holds:expr, $rule:expr, $($text:tt)+) => {
        if !$holds {
            return Err($crate::sim::failure::Failure::new($rule, format!($($text)+)));
        }
    };
}
pub(crate) use demand;
