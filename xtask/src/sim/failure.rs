//! What a run found wrong, and how it is told.

use std::fmt;

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
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.rule, self.what)
    }
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
