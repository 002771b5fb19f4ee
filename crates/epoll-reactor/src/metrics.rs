//! What a loop counts and measures, for any thread to read at any time without stopping it. The loop's thread alone
//! writes; nobody waits for anybody. Exposition in some format is the reader's.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use epoll_sys::Timestamp;

use crate::handler::CloseReason;
use crate::inspect::ConnectionState;
use crate::stats::Counters;

/// A number with one writer and any number of readers. The writer adds to it at the price of a plain addition in memory,
/// with no locked instruction; readers see every value it has had for a moment or not at all, and never a mixture of two.
///
/// Two threads that add at the same time may lose one of the additions: let one thread have it.
#[derive(Debug, Default)]
pub struct Tally(AtomicU64);

impl Tally {
    /// Zero.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// The present value, from any thread.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Adds `count`, modulo 2^64. For the one writer.
    #[inline]
    pub fn add(&self, count: u64) {
        self.set(self.get().wrapping_add(count));
    }

    /// Takes `count` off, modulo 2^64: for what goes up and down. For the one writer.
    #[inline]
    pub fn subtract(&self, count: u64) {
        self.set(self.get().wrapping_sub(count));
    }

    /// Replaces the value. For the one writer.
    #[inline]
    pub fn set(&self, value: u64) {
        self.0.store(value, Ordering::Relaxed);
    }
}

/// Bounds of [`HistogramSnapshot`]: 1 µs, 2 µs, 4 µs and so on to 16.8 s.
const BOUNDS: usize = 25;
const BUCKETS: usize = BOUNDS + 1;

/// Times by their size.
#[derive(Debug)]
pub(crate) struct Histogram {
    /// One for each power of two there is, so that noting a time takes no comparison; a reader adds up those beyond the
    /// bounds.
    counts: [Tally; 64],
    sum: Tally,
    longest: Tally,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: [const { Tally::new() }; 64], sum: Tally::new(), longest: Tally::new() }
    }
}

impl Histogram {
    #[inline]
    pub(crate) fn record(&self, nanoseconds: u64) {
        if let Some(count) = self.counts.get(bucket(nanoseconds)) {
            count.add(1);
        }
        self.sum.add(nanoseconds);
        if nanoseconds > self.longest.get() {
            self.longest.set(nanoseconds);
        }
    }

    /// As [`record`](Self::record) of zero.
    #[inline]
    fn record_zero(&self) {
        if let Some(count) = self.counts.first() {
            count.add(1);
        }
    }

    fn read(&self) -> HistogramSnapshot {
        let mut counts = [0; BUCKETS];
        for (index, count) in self.counts.iter().enumerate() {
            if let Some(bucket) = counts.get_mut(index.min(BOUNDS)) {
                *bucket += count.get();
            }
        }
        HistogramSnapshot {
            counts,
            sum: Duration::from_nanos(self.sum.get()),
            longest: Duration::from_nanos(self.longest.get()),
        }
    }
}

/// The first whose bound is not below: they end at 2^n microseconds.
#[inline]
fn bucket(nanoseconds: u64) -> usize {
    let above = nanoseconds.saturating_sub(1) / 1000;
    // The logarithm, rounded up, of the microseconds: 1 where it would be of zero.
    (2 * above + 1).ilog2() as usize
}

/// How often times of each size came up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HistogramSnapshot {
    counts: [u64; BUCKETS],
    /// The sum of all of them.
    pub sum: Duration,
    /// The longest since the loop was made.
    pub longest: Duration,
}

impl HistogramSnapshot {
    /// Each bound, smallest first, and how many times were at most that and above the one before; last those above all
    /// bounds, with `None`. Not cumulative.
    pub fn buckets(&self) -> impl Iterator<Item = (Option<Duration>, u64)> + '_ {
        self.counts.iter().enumerate().map(|(index, count)| (bound(index), *count))
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().sum()
    }

    /// The time that the part `quantile` of all (0.0 to 1.0) did not exceed, rounded up to a bound and never above
    /// [`longest`](Self::longest). Zero if there were none.
    #[must_use]
    #[allow(
        clippy::cast_possible_truncation,
        clippy::cast_precision_loss,
        clippy::cast_sign_loss,
        reason = "counts are far below 2^52, and a rank is neither negative nor above them"
    )]
    pub fn quantile(&self, quantile: f64) -> Duration {
        let rank = (quantile.clamp(0.0, 1.0) * self.count() as f64).ceil().max(1.0) as u64;
        let mut seen = 0;
        for (bound, count) in self.buckets() {
            seen += count;
            if seen >= rank {
                return bound.map_or(self.longest, |bound| bound.min(self.longest));
            }
        }
        Duration::ZERO
    }

    /// What came since `earlier`, another reading of the same histogram. The longest cannot be told for a part of the
    /// time, so it stays that of all.
    #[must_use]
    pub fn since(&self, earlier: &Self) -> Self {
        let mut counts = self.counts;
        for (count, before) in counts.iter_mut().zip(earlier.counts) {
            *count = count.saturating_sub(before);
        }
        Self { counts, sum: self.sum.saturating_sub(earlier.sum), longest: self.longest }
    }
}

fn bound(index: usize) -> Option<Duration> {
    let exponent = u32::try_from(index).ok().filter(|_| index < BOUNDS)?;
    Some(Duration::from_micros(1 << exponent))
}

/// Whether a loop is at work.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LoopPhase {
    /// It has yet to take its first turn. Clients may be waiting for it.
    #[default]
    Starting,
    /// It serves.
    Running,
    /// It has been asked to drain, and has not ended.
    Draining,
    /// It has drained, or its reactor has been dropped, for whatever reason.
    Ended,
}

/// What one loop counts and measures: [`Reactor::metrics`](crate::Reactor::metrics). It outlives its loop.
///
/// The loop writes each number where it happens, so a reading is never old: that of a loop which is held up in a
/// callback shows all that came before it, and [since when](LoopSnapshot::in_turn_since) it is held up. Only
/// [`buffered`](LoopSnapshot::buffered) is written at the end of a turn.
///
/// It costs a small HTTP request some 30 instructions of 3,700, and no system call.
#[derive(Debug, Default)]
// Two loops' numbers never share a cache line, nor a pair of them, which some processors fetch together.
#[repr(align(128))]
pub struct LoopMetrics {
    pub(crate) turns: Tally,
    pub(crate) events: Tally,
    pub(crate) stale_events: Tally,
    pub(crate) accepted: Tally,
    pub(crate) connected: Tally,
    pub(crate) shed: Tally,
    pub(crate) shed_by_address: Tally,
    pub(crate) shed_by_overload: Tally,
    pub(crate) shed_work: Tally,
    pub(crate) overloads: Tally,
    /// 1 while it is overloaded.
    pub(crate) overloaded: Tally,
    pub(crate) accept_pauses: Tally,
    pub(crate) handed_over: Tally,
    pub(crate) taken_over: Tally,
    pub(crate) moved: Tally,
    pub(crate) cut_off: Tally,
    pub(crate) bytes_received: Tally,
    pub(crate) bytes_sent: Tally,
    pub(crate) sends_refused: Tally,
    pub(crate) messages: Tally,
    pub(crate) timers_fired: Tally,
    pub(crate) panics: Tally,
    pub(crate) buffered: Tally,
    /// When the present turn's wait ended, in nanoseconds; 0 between that turn's end and the next one's.
    pub(crate) in_turn_since: Tally,
    pub(crate) turn_duration: Histogram,
    poll_lag: Histogram,
    pub(crate) timer_lag: Histogram,
    closes: [Tally; CloseReason::NAMES.len()],
    states: [Tally; ConnectionState::ALL.len()],
    phase: Tally,
}

impl LoopMetrics {
    /// Reads all of it, from any thread, at any time. Each number is a true one; between two of them a little may have
    /// happened, so sums that ought to agree may be apart by what the loop did meanwhile, and a connection that changed
    /// its state then may be in both or in neither.
    #[must_use]
    pub fn read(&self) -> LoopSnapshot {
        LoopSnapshot {
            phase: self.phase(),
            in_turn_since: match self.in_turn_since.get() {
                0 => None,
                since => Some(Timestamp::from_nanoseconds(since)),
            },
            is_overloaded: self.overloaded.get() != 0 && self.phase.get() == LoopPhase::Running as u64,
            counters: self.counters(),
            closes: self.closes.each_ref().map(Tally::get),
            states: self.states.each_ref().map(Tally::get),
            buffered: self.buffered.get(),
            turn_duration: self.turn_duration.read(),
            poll_lag: self.poll_lag.read(),
            timer_lag: self.timer_lag.read(),
        }
    }

    pub(crate) fn phase(&self) -> LoopPhase {
        match self.phase.get() {
            0 => LoopPhase::Starting,
            1 => LoopPhase::Running,
            2 => LoopPhase::Draining,
            _ => LoopPhase::Ended,
        }
    }

    /// How many connections there are now, those that are refused not counted.
    pub(crate) fn open(&self) -> u64 {
        let counted = ConnectionState::ALL.into_iter().filter(|state| *state != ConnectionState::Refused);
        counted.filter_map(|state| self.states.get(state as usize)).map(Tally::get).sum()
    }

    pub(crate) fn counters(&self) -> Counters {
        Counters {
            turns: self.turns.get(),
            events: self.events.get(),
            stale_events: self.stale_events.get(),
            accepted: self.accepted.get(),
            connected: self.connected.get(),
            shed: self.shed.get(),
            shed_by_address: self.shed_by_address.get(),
            shed_by_overload: self.shed_by_overload.get(),
            shed_work: self.shed_work.get(),
            overloads: self.overloads.get(),
            accept_pauses: self.accept_pauses.get(),
            handed_over: self.handed_over.get(),
            taken_over: self.taken_over.get(),
            moved: self.moved.get(),
            closed: self.closes.iter().map(Tally::get).sum(),
            cut_off: self.cut_off.get(),
            bytes_received: self.bytes_received.get(),
            bytes_sent: self.bytes_sent.get(),
            sends_refused: self.sends_refused.get(),
            messages: self.messages.get(),
            timers_fired: self.timers_fired.get(),
            panics: self.panics.get(),
            busy: self.busy(),
            longest_turn: Duration::from_nanos(self.turn_duration.longest.get()),
        }
    }

    /// How long all turns have taken, but for the present one.
    pub(crate) fn busy(&self) -> Duration {
        Duration::from_nanos(self.turn_duration.sum.get())
    }

    pub(crate) fn note_close(&self, reason: CloseReason) {
        if let Some(count) = self.closes.get(reason.index()) {
            count.add(1);
        }
    }

    /// A connection has come, with no state before, gone, with none after, or moved on.
    pub(crate) fn note_state(&self, before: Option<ConnectionState>, after: Option<ConnectionState>) {
        if let Some(count) = before.and_then(|state| self.states.get(state as usize)) {
            count.subtract(1);
        }
        if let Some(count) = after.and_then(|state| self.states.get(state as usize)) {
            count.add(1);
        }
    }

    /// The loop is no more, and so are its connections, its turn and what it held. No reason is counted for connections that
    /// it still had.
    pub(crate) fn note_gone(&self) {
        let present = [&self.buffered, &self.in_turn_since, &self.overloaded];
        self.states.iter().chain(present).for_each(|now| now.set(0));
        self.note_phase(LoopPhase::Ended);
    }

    /// No phase comes again.
    #[inline]
    pub(crate) fn note_phase(&self, phase: LoopPhase) {
        if phase as u64 > self.phase.get() {
            self.phase.set(phase as u64);
        }
    }

    /// A wait has ended at `now` with something to tell. `last` is when the turn before began and ended; `at_once`, that
    /// this one was not to wait.
    #[inline]
    pub(crate) fn note_wait(&self, last: (Timestamp, Timestamp), now: Timestamp, at_once: bool) {
        let [began, ended, now] = [last.0, last.1, now].map(Timestamp::as_nanoseconds);
        if at_once || now.saturating_sub(ended) <= ended.saturating_sub(began) {
            self.poll_lag.record(now.saturating_sub(began));
        } else {
            self.poll_lag.record_zero();
        }
    }
}

/// What [`LoopMetrics::read`] found.
#[derive(Clone, Debug, Default)]
#[non_exhaustive]
pub struct LoopSnapshot {
    /// Whether the loop is at work.
    pub phase: LoopPhase,
    /// When the wait of the turn that is running ended, or `None` if none is running. On Linux, to be compared with
    /// [`monotonic_now`](crate::monotonic_now): a turn that has been running for long is a loop that is held up, by a
    /// callback as a rule.
    pub in_turn_since: Option<Timestamp>,
    /// It is [overloaded](crate::Ctx::is_overloaded).
    pub is_overloaded: bool,
    /// What the loop has done.
    pub counters: Counters,
    closes: [u64; CloseReason::NAMES.len()],
    states: [u64; ConnectionState::ALL.len()],
    /// Bytes of input and output held for all connections at the end of the last turn, as
    /// [`Ctx::buffered`](crate::Ctx::buffered) has it.
    pub buffered: u64,
    /// How long turns took, their waits not counted: for so long everybody else waited for what one was doing. Its sum
    /// is [`Counters::busy`], and what that says of it holds here.
    pub turn_duration: HistogramSnapshot,
    /// How long what the kernel reported may have been waiting for the loop, at most: one time for each wait that
    /// reported anything. It is the time from the end of the wait before, if this one did not block, and zero if it
    /// did, however late the loop ran after it: that is for [`timer_lag`](Self::timer_lag) to show. One that took longer than the
    /// turn before it is taken to have blocked, since nobody says, so that it is never short by more than the wait itself took.
    pub poll_lag: HistogramSnapshot,
    /// How long after its time a deadline was noticed, by the turn that found it passed: one time for each, and of several
    /// in one turn that of the earliest. Waits are rounded up to a millisecond, so up to that is nothing; more is a loop
    /// that was late, whatever the reason: a long turn, a stopped process, no CPU. Nothing is noted without deadlines, so set
    /// [`Limits::tick`](crate::Limits::tick) to have one at least so often.
    pub timer_lag: HistogramSnapshot,
}

impl LoopSnapshot {
    /// How many connections have been closed for each [`CloseReason::name`]; their sum is [`Counters::closed`].
    pub fn closes(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        CloseReason::NAMES.into_iter().zip(self.closes)
    }

    /// How many connections are in each state now: none of a loop that has died. One that is to be taken apart at the end of the turn is in none.
    pub fn connections(&self) -> impl Iterator<Item = (ConnectionState, u64)> + '_ {
        ConnectionState::ALL.into_iter().zip(self.states)
    }

    /// For how long the turn that is running has been at it by `now`: zero if none is.
    #[must_use]
    pub fn in_turn_for(&self, now: Timestamp) -> Duration {
        self.in_turn_since.map_or(Duration::ZERO, |since| now - since)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn each_time_is_in_the_first_bucket_whose_bound_is_not_below_it() {
        let rows = [
            (0, 0),
            (1, 0),
            (1000, 0),
            (1001, 1),
            (2000, 1),
            (2001, 2),
            (4_000_000, 12),
            (1 << 24, 15),
            (16_777_216_000, 24),
            (16_777_216_001, 25),
            (u64::MAX, 55),
        ];
        for (nanoseconds, expected) in rows {
            assert_eq!(bucket(nanoseconds), expected, "{nanoseconds}");
        }
    }

    #[test]
    fn quantiles_are_bounds_and_no_more_than_the_longest() {
        let histogram = Histogram::default();
        assert_eq!(histogram.read().quantile(0.5), Duration::ZERO);
        (0..98).for_each(|_| histogram.record(1500));
        histogram.record(900_000);
        histogram.record(1_100_000);
        let read = histogram.read();
        assert_eq!(read.count(), 100);
        assert_eq!(read.quantile(0.5), Duration::from_micros(2));
        assert_eq!(read.quantile(0.99), Duration::from_micros(1024));
        assert_eq!(read.quantile(1.0), Duration::from_nanos(1_100_000), "below its bound of 2048 µs");
        assert_eq!(read.sum, Duration::from_nanos(98 * 1500 + 2_000_000));
        histogram.record(10);
        let later = histogram.read().since(&read);
        assert_eq!((later.count(), later.sum), (1, Duration::from_nanos(10)));
    }

    #[test]
    fn a_wait_that_did_not_block_was_late_by_the_turn_before() {
        let at = |nanoseconds: u64| Timestamp::from_nanoseconds(nanoseconds);
        let lag = |last: (u64, u64), now, at_once| {
            let metrics = LoopMetrics::default();
            metrics.note_wait((at(last.0), at(last.1)), at(now), at_once);
            let lag = metrics.read().poll_lag;
            assert_eq!(lag.count(), 1);
            lag.sum.as_nanos()
        };
        assert_eq!(lag((1000, 5000), 5200, false), 4200, "it found something at once");
        assert_eq!(lag((1000, 5000), 9001, false), 0, "longer than the turn: it has blocked");
        assert_eq!(lag((1000, 5000), 9001, true), 8001, "it was told not to");
    }

    proptest! {
        /// A time lies within the bounds of the bucket that counts it.
        #[test]
        fn buckets_bound_what_they_count(nanoseconds: u64) {
            let index = bucket(nanoseconds);
            let time = Duration::from_nanos(nanoseconds);
            prop_assert!(bound(index).is_none_or(|bound| time <= bound));
            prop_assert!(index == 0 || bound(index.min(BOUNDS) - 1).unwrap() < time);
            let histogram = Histogram::default();
            histogram.record(nanoseconds);
            let read = histogram.read();
            prop_assert_eq!(read.buckets().position(|(_, count)| count == 1), Some(index.min(BOUNDS)));
        }
    }
}
