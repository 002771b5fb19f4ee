//! Everything there is in one simulated world, its clock, and its agenda of what is to happen.

use std::borrow::Cow;
use std::cmp::Reverse;
use std::collections::{BTreeSet, BinaryHeap};
use std::time::{Duration, SystemTime};

use fastrand::Rng;
use nix::sys::epoll::EpollFlags;

use super::connect::Listener;
use super::epoll::{Epoll, Watch};
use super::faults::{Fault, Faults};
use super::names::Names;
use super::network::log_uniform;
use super::plain::Plain;
use super::record::{Milliseconds, Outcome, Record, Step, Subject};
use super::stream::Stream;
use super::table::{Key, Table};
use crate::Errno;

pub(super) struct World {
    pub(super) rng: Rng,
    pub(super) faults: Faults,
    pub(super) objects: Table<Object>,
    pub(super) epolls: Vec<Epoll>,
    pub(super) names: Names,
    pub(super) record: Record,
    /// The open descriptors: the lowest free number is the next one, as in Linux.
    pub(super) numbers: Vec<Option<Key>>,
    /// The places in `numbers` that are free.
    pub(super) free_numbers: BTreeSet<usize>,
    /// Signals that nobody has read yet, as bits.
    pub(super) signals: u8,
    /// The call that was last interrupted, if no other was made since.
    interrupted: Option<Step>,
    /// Calls since the last wait that brought an event or let time pass, or since the test let time pass.
    without_rest: u64,
    /// The sockets that are no descriptors to which something has happened, if anybody asks.
    pub(super) stirred: Option<BTreeSet<u32>>,
    /// Nanoseconds of the monotonic clock.
    now: u64,
    /// What the wall clock shows at 0.
    wall_start: SystemTime,
    agenda: BinaryHeap<Reverse<(u64, u64, Happening)>>,
    /// Happenings so far: two at one time come in the order in which they were planned.
    planned: u64,
}

pub(super) struct Object {
    pub(super) kind: Kind,
    /// Its descriptor, if the program under test holds one.
    pub(super) number: Option<i32>,
    pub(super) watches: Vec<Watch>,
}

pub(super) enum Kind {
    Stream(Box<Stream>),
    Listener(Listener),
    Plain(Plain),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Happening {
    /// The next piece that this end has sent arrives.
    Deliver(Key),
    /// The edge owed for a write that was cut short without need.
    Space(Key),
    /// The handshake of this end is decided, or fails for the n-th time.
    Handshake(Key, u32),
    /// Its first data has not come in time; it is offered to accept all the same.
    Undefer(Key),
    /// An RST arrives at this end, or it gives up.
    End(Key, Cause),
    /// An event that was held back.
    Release(usize, Key),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Cause {
    Reset,
    Refused,
    TimedOut,
    /// Injected: as a reset, but called `EPIPE`.
    Broken,
}

impl World {
    /// The first second of the monotonic clock is over when a world begins: no timestamp is near zero.
    const START: u64 = 1_000_000_000;
    /// 1 January 2025, 0:00 UTC.
    const WALL_START: Duration = Duration::from_secs(1_735_689_600);
    /// After so many calls without a rest, and a hundred more for each open descriptor, a program is in a loop that
    /// does not end.
    const MOST_WITHOUT_REST: u64 = 1_000_000;

    pub(super) fn new(seed: u64, faults: Faults) -> Self {
        Self {
            rng: Rng::with_seed(seed),
            faults,
            objects: Table::new(),
            epolls: Vec::new(),
            names: Names::default(),
            record: Record::new(),
            numbers: Vec::new(),
            free_numbers: BTreeSet::new(),
            signals: 0,
            interrupted: None,
            without_rest: 0,
            stirred: None,
            now: Self::START,
            wall_start: SystemTime::UNIX_EPOCH + Self::WALL_START,
            agenda: BinaryHeap::new(),
            planned: 0,
        }
    }

    // Time.

    pub(super) const fn now(&self) -> u64 {
        self.now
    }

    pub(super) fn wall_clock(&self) -> SystemTime {
        self.wall_start + Duration::from_nanos(self.now)
    }

    pub(super) fn set_wall_clock(&mut self, forward: bool, by: Duration) {
        let start = self.wall_start;
        self.wall_start = if forward { start + by } else { start - by };
    }

    /// Nothing happens on the way: for short times, and for jumps.
    pub(super) fn skip(&mut self, duration: Duration) {
        self.now = self.now.saturating_add(nanoseconds(duration));
    }

    pub(super) fn skip_to(&mut self, at: u64) {
        self.now = self.now.max(at);
    }

    pub(super) fn next_happening(&self) -> Option<u64> {
        self.agenda.peek().map(|Reverse((at, _, _))| *at)
    }

    /// Lets `duration` pass, with all that happens in it.
    pub(super) fn advance(&mut self, duration: Duration) {
        self.rest();
        let until = self.now.saturating_add(nanoseconds(duration));
        while let Some(at) = self.next_happening().filter(|at| *at <= until) {
            self.skip_to(at);
            self.run_due();
        }
        self.skip_to(until);
    }

    /// Plans `happening` for `delay` from now, which is never at once.
    pub(super) fn plan(&mut self, delay: Duration, happening: Happening) {
        let at = self.now.saturating_add(nanoseconds(delay).max(1));
        self.planned += 1;
        self.agenda.push(Reverse((at, self.planned, happening)));
    }

    /// Whatever is due by now.
    pub(super) fn run_due(&mut self) {
        while let Some(Reverse((at, _, _))) = self.agenda.peek()
            && *at <= self.now
            && let Some(Reverse((_, _, happening))) = self.agenda.pop()
        {
            match happening {
                Happening::Deliver(from) => self.deliver(from),
                Happening::Space(sender) => self.check_space(sender),
                Happening::Handshake(client, attempt) => self.handshake(client, attempt),
                Happening::Undefer(server) => self.undefer(server),
                Happening::End(stream, cause) => self.end(stream, cause),
                Happening::Release(epoll, key) => self.release(epoll, key),
            }
        }
    }

    // Chance.

    /// Whether `fault` happens now; if so it is counted.
    pub(super) fn strikes(&mut self, fault: Fault) -> bool {
        let strikes = self.may_strike(fault);
        if strikes {
            self.has_struck(fault);
        }
        strikes
    }

    /// Whether chance is for `fault`, for one of which it is known only later whether it happens.
    pub(super) fn may_strike(&mut self, fault: Fault) -> bool {
        let probability = self.faults.probability(fault);
        probability > 0 && self.rng.u32(0..1_000_000) < probability
    }

    pub(super) fn has_struck(&mut self, fault: Fault) {
        self.record.count_fault(fault);
        self.note(Subject::Fault, fault.name(), Outcome::Done);
    }

    /// Whether `step` is interrupted; never twice in a row, so that trying again gets somewhere.
    pub(super) fn interrupts(&mut self, step: Step) -> Result<(), Errno> {
        if self.interrupted.take() != Some(step) && self.strikes(Fault::Eintr) {
            self.interrupted = Some(step);
            return Err(Errno::EINTR);
        }
        Ok(())
    }

    pub(super) fn duration_between(&mut self, (low, high): (Duration, Duration)) -> Duration {
        let (low, high) = (nanoseconds(low), nanoseconds(high));
        Duration::from_nanos(if low < high { self.rng.u64(low..=high) } else { low })
    }

    pub(super) fn latency(&mut self) -> Duration {
        self.duration_between(self.faults.network.latency)
    }

    /// A buffer size out of `range`, small ones as likely as large ones.
    pub(super) fn capacity(&mut self, (low, high): (usize, usize)) -> usize {
        let drawn =
            if low < high { log_uniform(&mut self.rng, low.max(1) as u64, high as u64) } else { low as u64 };
        usize::try_from(drawn).unwrap_or(usize::MAX)
    }

    // What there is.

    /// Every call begins here: it is counted, takes its time, and finds what has happened meanwhile.
    ///
    /// # Panics
    /// There have been too many since the last rest. A program that goes on for ever can be told in no other way.
    pub(super) fn begin(&mut self, step: Step) {
        self.record.count_call(step);
        self.demand_rest(step);
        let longest = self.faults.call_time;
        if longest > Duration::ZERO {
            let took = self.duration_between((Duration::ZERO, longest));
            self.skip(took);
        }
        self.run_due();
    }

    #[expect(clippy::panic, reason = "it ends a test that would not end")]
    fn demand_rest(&mut self, step: Step) {
        // What is closed is closed once, and a panic must not meet another on its way.
        if matches!(step, Step::Delete | Step::Close) {
            return;
        }
        self.without_rest += 1;
        let most = Self::MOST_WITHOUT_REST + 100 * self.numbers.len() as u64;
        if self.without_rest > most {
            self.without_rest = 0;
            let told = format!(
                "{most} calls, the last of them {}, and no wait among them that brought an event or let time pass: \
                 a loop that does not end, at {}",
                step.name(),
                Milliseconds(self.now)
            );
            self.record.violation(told.clone());
            panic!("simulated kernel: {told}");
        }
    }

    /// The program has waited, or the test has let time pass.
    pub(super) const fn rest(&mut self) {
        self.without_rest = 0;
    }

    pub(super) fn stream(&self, key: Key) -> Option<&Stream> {
        match &self.objects.get(key)?.kind {
            Kind::Stream(stream) => Some(stream),
            _ => None,
        }
    }

    pub(super) fn stream_mut(&mut self, key: Key) -> Option<&mut Stream> {
        match &mut self.objects.get_mut(key)?.kind {
            Kind::Stream(stream) => Some(stream),
            _ => None,
        }
    }

    pub(super) fn two_streams(&mut self, one: Key, other: Key) -> Option<(&mut Stream, &mut Stream)> {
        let (one, other) = self.objects.get_two_mut(one, other)?;
        match (&mut one.kind, &mut other.kind) {
            (Kind::Stream(one), Kind::Stream(other)) => Some((one, other)),
            _ => None,
        }
    }

    pub(super) fn listener_mut(&mut self, key: Key) -> Option<&mut Listener> {
        match &mut self.objects.get_mut(key)?.kind {
            Kind::Listener(listener) => Some(listener),
            _ => None,
        }
    }

    pub(super) fn plain_mut(&mut self, key: Key) -> Option<&mut Plain> {
        match &mut self.objects.get_mut(key)?.kind {
            Kind::Plain(plain) => Some(plain),
            _ => None,
        }
    }

    pub(super) fn insert(&mut self, kind: Kind) -> Key {
        self.objects.insert(Object { kind, number: None, watches: Vec::new() })
    }

    /// Bytes that the peer of `stream` has received and not read.
    pub(super) fn unread_at_peer(&self, stream: Key) -> usize {
        let peer = self.stream(stream).and_then(|stream| self.stream(stream.peer?));
        peer.map_or(0, |peer| peer.received.len())
    }

    /// What poll(2) says of `key`.
    pub(super) fn poll(&mut self, key: Key) -> EpollFlags {
        let unread_there = self.unread_at_peer(key);
        let signals = self.signals;
        let other_end = self.pipe_reader_room(key);
        match self.objects.get_mut(key).map(|object| &mut object.kind) {
            Some(Kind::Stream(stream)) => stream.poll(unread_there),
            Some(Kind::Listener(listener)) if listener.pending.is_empty() => EpollFlags::empty(),
            Some(Kind::Listener(_)) => EpollFlags::EPOLLIN,
            Some(Kind::Plain(plain)) => plain.poll(signals, other_end),
            None => EpollFlags::empty(),
        }
    }

    // What is told.

    pub(super) fn subject(&self, key: Key) -> Subject {
        match self.objects.get(key).and_then(|object| object.number) {
            Some(number) => Subject::Descriptor(number),
            None => Subject::Other(key.index()),
        }
    }

    pub(super) fn note(&mut self, subject: Subject, what: impl Into<Cow<'static, str>>, outcome: Outcome) {
        self.record.note(self.now, subject, what.into(), outcome);
    }

    pub(super) fn note_for(&mut self, key: Key, what: &'static str, outcome: Outcome) {
        self.note(self.subject(key), what, outcome);
    }

    pub(super) fn violation(&mut self, key: Key, what: &str) {
        let told = format!("{}: {what}, at {}", self.name(key), Milliseconds(self.now));
        self.record.violation(told);
    }

    /// What the trace calls `key`.
    pub(super) fn name(&self, key: Key) -> String {
        match self.subject(key) {
            Subject::Descriptor(number) => format!("fd {number}"),
            _ => format!("socket #{}", key.index()),
        }
    }
}

pub(super) fn nanoseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
