//! What a world remembers of itself: counts, a bounded trace with a fingerprint of all of it, and the misuse
//! it has seen.

use std::borrow::Cow;
use std::collections::VecDeque;
use std::fmt;

use nix::sys::epoll::EpollFlags;

use super::faults::Fault;
use crate::Errno;

/// How often each of a set of named things has happened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts(Vec<(&'static str, u64)>);

impl Counts {
    fn new(names: &[&'static str]) -> Self {
        Self(names.iter().map(|&name| (name, 0)).collect())
    }

    fn add(&mut self, position: usize) {
        if let Some((_, count)) = self.0.get_mut(position) {
            *count += 1;
        }
    }

    /// The names with their counts, zeros included, always in the same order.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().copied()
    }

    /// The count of `name`; `None` if nothing is called so, so that a misspelt name is not taken for zero.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<u64> {
        self.iter().find(|(known, _)| *known == name).map(|(_, count)| count)
    }

    /// The sum of all.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.iter().map(|(_, count)| count).sum()
    }
}

/// What has happened at all, as `recv 12, send 3`.
impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut separator = "";
        for (name, count) in self.iter().filter(|(_, count)| *count > 0) {
            write!(f, "{separator}{name} {count}")?;
            separator = ", ";
        }
        Ok(())
    }
}

/// The methods of [`Kernel`](crate::Kernel) that are counted, and closing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Accept,
    Add,
    Close,
    Connect,
    Delete,
    Eventfd,
    Listen,
    LocalAddress,
    Notify,
    Read,
    ReadSignal,
    Recv,
    RemoveSocketFile,
    ResetOnClose,
    Send,
    Sendfile,
    ShutdownWrite,
    Signalfd,
    TakeError,
    Wait,
    Write,
    Writev,
}

impl Step {
    /// In the order of the variants.
    const NAMES: [&'static str; 22] = [
        "accept",
        "add",
        "close",
        "connect",
        "delete",
        "eventfd",
        "listen",
        "local_address",
        "notify",
        "read",
        "read_signal",
        "recv",
        "remove_socket_file",
        "reset_on_close",
        "send",
        "sendfile",
        "shutdown_write",
        "signalfd",
        "take_error",
        "wait",
        "write",
        "writev",
    ];

    pub(super) fn name(self) -> &'static str {
        Self::NAMES.get(self as usize).copied().unwrap_or("?")
    }
}

/// Who an entry of the trace is about.
#[derive(Clone, Copy, Debug)]
pub(super) enum Subject {
    /// What the test itself has to say.
    Test,
    Fault,
    Epoll(usize),
    Descriptor(i32),
    /// A socket that is no descriptor: a peer's, or one that waits to be accepted, or is closed already.
    Other(u32),
}

#[derive(Clone, Copy, Debug)]
pub(super) enum Outcome {
    Done,
    Number(u64),
    Failed(Errno),
    Event(u64, EpollFlags),
    /// A registration with this token.
    Registered(u64),
    /// Of a socket that is no descriptor.
    Socket(u32),
    /// Of a socket that has become a descriptor.
    Accepted(u32, i32),
}

/// A token, as whoever packs two numbers into it reads it: the low half and the high half, with a `~` where the
/// highest bit of the low half is set.
pub(super) struct Token(pub(super) u64);

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const MARK: u64 = 1 << 31;
        let (low, high) = (self.0 & 0xffff_ffff, self.0 >> 32);
        write!(f, "{}{}.{high}", if low & MARK == 0 { "" } else { "~" }, low & !MARK)
    }
}

/// A time as the trace shows it: milliseconds of the monotonic clock.
pub(super) struct Milliseconds(pub(super) u64);

impl fmt::Display for Milliseconds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = format!("{}.{:06} ms", self.0 / 1_000_000, self.0 % 1_000_000);
        f.pad(&text)
    }
}

impl<T> From<&Result<T, Errno>> for Outcome {
    fn from(result: &Result<T, Errno>) -> Self {
        result.as_ref().map_or_else(|&errno| Self::Failed(errno), |_| Self::Done)
    }
}

#[derive(Clone, Debug)]
struct Entry {
    at: u64,
    subject: Subject,
    what: Cow<'static, str>,
    outcome: Outcome,
}

impl fmt::Display for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:>17}  ", Milliseconds(self.at))?;
        match self.subject {
            Subject::Test => f.write_str("note: ")?,
            Subject::Fault => f.write_str("fault ")?,
            Subject::Epoll(index) => write!(f, "epoll {index}: ")?,
            Subject::Descriptor(number) => write!(f, "fd {number}: ")?,
            Subject::Other(index) => write!(f, "socket #{index}: ")?,
        }
        f.write_str(&self.what)?;
        match self.outcome {
            Outcome::Done => Ok(()),
            Outcome::Number(number) => write!(f, " {number}"),
            Outcome::Failed(errno) => write!(f, " -> {errno:?}"),
            Outcome::Event(token, flags) => {
                let mut separator = " ";
                write!(f, " {}", Token(token))?;
                for (name, _) in flags.iter_names() {
                    write!(f, "{separator}{name}")?;
                    separator = "|";
                }
                Ok(())
            }
            Outcome::Registered(token) => write!(f, " {}", Token(token)),
            Outcome::Socket(index) => write!(f, " socket #{index}"),
            Outcome::Accepted(index, number) => write!(f, " socket #{index} as fd {number}"),
        }
    }
}

#[derive(Debug)]
pub(super) struct Record {
    entries: VecDeque<Entry>,
    fingerprint: u64,
    calls: Counts,
    injected: Counts,
    violations: Vec<String>,
}

impl Record {
    /// How much of the trace is kept.
    const ENTRIES: usize = 2_000;
    /// A program that makes one mistake a turn is told of it often enough.
    const VIOLATIONS: usize = 100;

    pub(super) fn new() -> Self {
        Self {
            entries: VecDeque::new(),
            fingerprint: 0xcbf2_9ce4_8422_2325,
            calls: Counts::new(&Step::NAMES),
            injected: Counts::new(&Fault::NAMES),
            violations: Vec::new(),
        }
    }

    pub(super) fn count_call(&mut self, step: Step) {
        self.calls.add(step as usize);
    }

    pub(super) fn count_fault(&mut self, fault: Fault) {
        self.injected.add(fault as usize);
    }

    pub(super) fn note(&mut self, at: u64, subject: Subject, what: Cow<'static, str>, outcome: Outcome) {
        let (kind, who) = match subject {
            Subject::Test => (4, 0),
            Subject::Fault => (0, 0),
            Subject::Epoll(index) => (1, index as u64),
            Subject::Descriptor(number) => (2, u64::from(number.unsigned_abs())),
            Subject::Other(index) => (3, u64::from(index)),
        };
        let (result, detail) = match outcome {
            Outcome::Done => (0, 0),
            Outcome::Number(number) => (1, number),
            Outcome::Failed(errno) => (2, u64::from((errno as i32).unsigned_abs())),
            Outcome::Event(token, flags) => (6 + u64::from(flags.bits().unsigned_abs()), token),
            Outcome::Registered(token) => (3, token),
            Outcome::Socket(index) => (4, index.into()),
            Outcome::Accepted(index, number) => {
                (5, u64::from(index) << 32 | u64::from(number.unsigned_abs()))
            }
        };
        let name = what.bytes().fold(0, |sum: u64, byte| sum.wrapping_mul(31).wrapping_add(u64::from(byte)));
        for word in [at, kind, who, name, result, detail] {
            // FNV-1a, on words.
            self.fingerprint = (self.fingerprint ^ word).wrapping_mul(0x0000_0100_0000_01b3);
        }
        if self.entries.len() == Self::ENTRIES {
            self.entries.pop_front();
        }
        self.entries.push_back(Entry { at, subject, what, outcome });
    }

    pub(super) fn violation(&mut self, text: String) {
        if self.violations.len() < Self::VIOLATIONS {
            self.violations.push(text);
        }
    }

    pub(super) fn trace(&self) -> Vec<String> {
        self.entries.iter().map(Entry::to_string).collect()
    }

    pub(super) const fn fingerprint(&self) -> u64 {
        self.fingerprint
    }

    pub(super) const fn calls(&self) -> &Counts {
        &self.calls
    }

    pub(super) const fn injected(&self) -> &Counts {
        &self.injected
    }

    pub(super) fn violations(&self) -> &[String] {
        &self.violations
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_stand_in_the_order_of_the_variants() {
        for (step, name) in [(Step::Accept, "accept"), (Step::Recv, "recv"), (Step::Writev, "writev")] {
            assert_eq!(step.name(), name);
        }
        for (fault, name) in [(Fault::ShortRecv, "short_recv"), (Fault::ResetOvertakes, "reset_overtakes")] {
            assert_eq!(Fault::NAMES[fault as usize], name);
        }
    }

    #[test]
    fn a_count_with_another_name_is_no_zero() {
        let mut counts = Counts::new(&["a", "b"]);
        counts.add(1);
        assert_eq!((counts.get("a"), counts.get("b"), counts.get("c")), (Some(0), Some(1), None));
        assert_eq!((counts.total(), counts.to_string().as_str()), (1, "b 1"));
    }

    #[test]
    fn the_trace_is_bounded_and_the_fingerprint_is_of_all_of_it() {
        let (mut one, mut other) = (Record::new(), Record::new());
        one.note(0, Subject::Fault, "first".into(), Outcome::Done);
        for record in [&mut one, &mut other] {
            for at in 0..3_000 {
                record.note(at, Subject::Descriptor(3), "recv".into(), Outcome::Number(7));
                record.violation("once more".to_owned());
            }
        }
        assert_eq!(one.trace(), other.trace());
        assert_eq!(one.trace().len(), Record::ENTRIES);
        assert_eq!(one.violations().len(), Record::VIOLATIONS);
        assert_ne!(one.fingerprint(), other.fingerprint());
        assert_eq!(one.trace().last().unwrap().trim(), "0.002999 ms  fd 3: recv 7");
    }

    #[test]
    fn a_token_is_shown_as_its_halves() {
        for (token, shown) in [(1, "1.0"), (3 << 32 | 7, "7.3"), (1 << 32 | 1 << 31, "~0.1")] {
            assert_eq!(Token(token).to_string(), shown);
        }
    }
}
