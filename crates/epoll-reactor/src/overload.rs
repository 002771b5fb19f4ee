//! The law of overload: a loop that is behind lets in fewer, and one that stays behind sheds what it would serve too late.
//! A state machine of what it is told, with no clock and no call of its own; what the loop does with it is `shedding.rs`.
//!
//! Both halves are old. The accept budget goes down by halves and up by ones, as a congestion window does (RFC 5681). What
//! is a burst, and passes, and what is a standing queue, and does not, is told apart as CoDel does it (RFC 8289): the queue is
//! a standing one if in a whole interval not one turn has found it short. There are two: what the kernel reports, and the
//! clients that a shrunk budget leaves in the backlog, where they hold nobody up and are held up all the more.
//!
//! What is shed then is what has waited too long already, and never what came just now, so whoever is served is served soon.
//! While it sheds, the queue is short; so it does not end before an interval has passed in which nothing had to be shed, or in which
//! the loop has waited for so long that it could have done all of that as well. Without the latter a few requests that take longer
//! than the target, for which nobody is to blame, would keep up for ever what has begun once: whatever comes meanwhile is late.

use std::time::Duration;

use epoll_sys::Timestamp;

use crate::limits::Limits;
use crate::metrics::Tally;

/// Trouble that comes and goes is logged no more often than this.
pub(crate) const REPORT_INTERVAL: Duration = Duration::from_secs(10);

/// What overload has cost since the loop was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Shed {
    pub(crate) connections: u64,
    pub(crate) work: u64,
}

/// How much of the time a loop may be busy, with what was shed added to what was served, that could serve all: four of five parts.
/// Beyond that bursts fill the queue again at once.
const KEEPS_UP: (u128, u128) = (4, 5);

/// The books of an overload: of an interval, or until after it something was short of the target.
#[derive(Clone, Copy, Debug)]
struct Window {
    began: Timestamp,
    /// What there was by then.
    served: u64,
    shed: u64,
    /// For how long there was nothing to do.
    idle: Duration,
}

/// What the log is to say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Report {
    /// It has been overloaded for this long.
    Overloaded(Duration),
    /// It was for this long, and that is what it has cost.
    Over(Duration, Shed),
}

/// Invariant: `1 <= accept_budget <= most_accepted`.
#[derive(Debug)]
pub(crate) struct Overload {
    target: Duration,
    interval: Duration,
    most_accepted: usize,
    accept_budget: usize,
    /// What this turn's wait has reported came after that.
    after: Timestamp,
    /// A listener's budget ran out in the last turn: more clients may be waiting.
    is_behind: bool,
    /// The first of the turns that all had something waiting for too long, down to this one.
    above_since: Option<Timestamp>,
    /// When it was found to be overloaded, and what had been shed until then.
    since: Option<(Timestamp, Shed)>,
    /// All that has been shed, and when the last of it was.
    shed: Shed,
    shed_at: Timestamp,
    /// How much work was not, when that was asked.
    served: Tally,
    /// Clients that have been let in.
    let_in: u64,
    /// Of no meaning but while it is overloaded.
    window: Window,
    /// The log knows of this overload.
    told: bool,
    /// When the log was last told of one.
    reported: Option<Timestamp>,
}

impl Overload {
    /// `None` if the limits ask for none.
    pub(crate) fn new(limits: &Limits, now: Timestamp) -> Option<Self> {
        Some(Self {
            target: limits.lag_target?,
            interval: limits.lag_interval,
            most_accepted: limits.accept_budget,
            accept_budget: limits.accept_budget,
            after: now,
            is_behind: false,
            above_since: None,
            since: None,
            shed: Shed::default(),
            shed_at: now,
            served: Tally::new(),
            let_in: 0,
            window: Window { began: now, served: 0, shed: 0, idle: Duration::ZERO },
            told: false,
            reported: None,
        })
    }

    /// A listener has used up its budget.
    pub(crate) const fn leaves_clients_waiting(&mut self) {
        self.is_behind = true;
    }

    /// A turn has ended at `now`, and `shed` is all that has been shed by then.
    pub(crate) fn note_shed(&mut self, now: Timestamp, shed: Shed) {
        if std::mem::replace(&mut self.shed, shed) != shed {
            self.shed_at = now;
        }
    }

    /// Work of an open connection is not shed.
    pub(crate) fn note_served(&self) {
        self.served.add(1);
    }

    /// The loop had nothing to do for so long, and has let so many clients in since it was made.
    pub(crate) fn note_idle(&mut self, idle: Duration, let_in: u64) {
        self.window.idle += idle;
        self.let_in = let_in;
    }

    fn window(&self, began: Timestamp) -> Window {
        // A new client and its first request are one.
        let served = self.served.get().max(self.let_in);
        Window { began, served, shed: self.shed.connections + self.shed.work, idle: Duration::ZERO }
    }

    /// Whether, in the window that ends at `now`, the loop could have done what it has shed, too, if that is like what it has not.
    fn keeps_up(&self, now: Timestamp) -> bool {
        let (Window { began, served, shed, idle }, end) = (self.window, self.window(now));
        let (served, shed) = (u128::from(end.served - served), u128::from(end.shed - shed));
        let (whole, busy) = ((now - began).as_nanos(), (now - began).saturating_sub(idle).as_nanos());
        (served + shed) * busy * KEEPS_UP.1 < served * whole * KEEPS_UP.0
    }

    /// A wait has ended at `now`, and what it has reported may have waited for `lag`.
    pub(crate) fn turn(&mut self, now: Timestamp, lag: Duration) -> Option<Report> {
        // Not before the clock's origin, whatever the lag.
        let after = now.as_nanoseconds().saturating_sub(u64::try_from(lag.as_nanos()).unwrap_or(u64::MAX));
        self.after = Timestamp::from_nanoseconds(after);
        if lag > self.target {
            self.accept_budget = (self.accept_budget / 2).max(1);
        } else {
            self.accept_budget = (self.accept_budget + 1).min(self.most_accepted);
        }
        let stands = std::mem::take(&mut self.is_behind) || lag > self.target;
        self.above_since = stands.then(|| self.above_since.unwrap_or(now));
        match self.since {
            None if self.above_since.is_some_and(|at| now - at >= self.interval) => {
                self.since = Some((now, self.shed));
                self.shed_at = now;
                self.window = self.window(now);
                self.told = false;
            }
            Some(since) if !stands && now - self.shed_at >= self.interval => {
                return self.end(now, since);
            }
            Some(since) if !stands && now - self.window.began >= self.interval => {
                if self.keeps_up(now) {
                    return self.end(now, since);
                }
                self.window = self.window(now);
            }
            _ => (),
        }
        let (since, _) = self.since?;
        let is_new = !self.told && self.reported.is_none_or(|at| now - at >= REPORT_INTERVAL);
        is_new.then(|| {
            (self.told, self.reported) = (true, Some(now));
            Report::Overloaded(now - since)
        })
    }

    /// The loop lets nobody in any more, and serves to the end whom it has.
    pub(crate) fn drain(&mut self, now: Timestamp) -> Option<Report> {
        self.end(now, self.since?)
    }

    fn end(&mut self, now: Timestamp, (since, before): (Timestamp, Shed)) -> Option<Report> {
        self.since = None;
        let cost = Shed {
            connections: self.shed.connections - before.connections,
            work: self.shed.work - before.work,
        };
        self.told.then_some(Report::Over(now - since, cost))
    }

    pub(crate) const fn is_on(&self) -> bool {
        self.since.is_some()
    }

    /// How many may be let in from one listener in this turn.
    pub(crate) const fn accept_budget(&self) -> usize {
        self.accept_budget
    }

    /// What the turn's wait has reported may have waited for longer than the target when its turn comes at `now`.
    pub(crate) fn is_late(&self, now: Timestamp) -> bool {
        self.is_on() && now - self.after > self.target
    }

    /// A client that is let in at `now` would be late by the time its first request is served, which is in the next turn.
    pub(crate) fn is_late_to_accept(&self, now: Timestamp) -> bool {
        self.is_on() && now - self.after > self.target / 2
    }

    /// Whether it makes a difference if what comes after a turn that took so long had been waiting, or has come just now.
    pub(crate) fn must_know(&self, last_turn: Duration) -> bool {
        self.is_on() || last_turn > self.target
    }

    /// How long until it is over, if nothing happens: nobody need come for that.
    pub(crate) fn ends_in(&self, now: Timestamp) -> Option<Duration> {
        self.is_on().then(|| self.shed_at + self.interval - now)
    }

    #[cfg(feature = "sim")]
    pub(crate) fn audit(&self) -> Result<(), String> {
        let holds = (1..=self.most_accepted).contains(&self.accept_budget);
        if holds { Ok(()) } else { Err(format!("the accept budget is out of its bounds: {self:?}")) }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TARGET: Duration = Duration::from_millis(5);
    const ABOVE: u64 = 6;

    fn at(milliseconds: u64) -> Timestamp {
        Timestamp::from_nanoseconds(1_000_000 * (1_000 + milliseconds))
    }

    fn law() -> Overload {
        let limits = Limits { lag_target: Some(TARGET), accept_budget: 16, ..Limits::default() };
        Overload::new(&limits, at(0)).unwrap()
    }

    impl Overload {
        fn after_turn(&mut self, now: u64, lag: u64, work: u64) -> Option<Report> {
            self.note_shed(at(now), Shed { connections: 0, work });
            self.turn(at(now), Duration::from_millis(lag))
        }

        /// A turn each 10 ms, all above the target.
        fn overloaded() -> Self {
            let mut law = law();
            (0..=10).for_each(|turn| _ = law.after_turn(10 * turn, ABOVE, 0));
            assert!(law.is_on());
            law
        }
    }

    #[test]
    fn without_a_target_there_is_no_law() {
        assert!(Overload::new(&Limits::default(), at(0)).is_none());
    }

    #[test]
    fn the_budget_is_halved_by_each_turn_above_the_target_and_grows_by_one_with_each_other() {
        let mut law = law();
        let mut budget = |lag| {
            law.after_turn(0, lag, 0);
            law.accept_budget()
        };
        assert_eq!([ABOVE; 6].map(&mut budget), [8, 4, 2, 1, 1, 1]);
        assert_eq!([5, 0, 5].map(&mut budget), [2, 3, 4], "at the target is not above");
        assert_eq!(budget(ABOVE), 2);
        assert_eq!([0; 20].map(&mut budget)[13..], [16; 7]);
    }

    #[test]
    fn a_queue_that_is_short_once_in_an_interval_is_a_burst() {
        let mut law = law();
        for turn in 0..100 {
            assert_eq!(law.after_turn(10 * turn, if turn % 10 == 9 { 5 } else { 5_000 }, 0), None);
            assert!(!law.is_on() && !law.is_late(at(1_000_000)) && !law.is_late_to_accept(at(1_000_000)));
        }
    }

    #[test]
    fn a_whole_interval_above_the_target_is_an_overload() {
        let mut law = law();
        // However long one turn: only the next one shows whether the queue stands.
        assert_eq!(law.after_turn(5_000, 5_000, 0), None);
        assert_eq!(law.after_turn(5_099, ABOVE, 0), None);
        assert!(!law.is_on());
        assert_eq!(law.after_turn(5_100, ABOVE, 0), Some(Report::Overloaded(Duration::ZERO)));
        assert!(law.is_on());
        // What is looked at right away has waited for the lag, 6 ms.
        assert!(law.is_late(at(5_100)));
        law.after_turn(5_110, 2, 0);
        assert!(!law.is_late(at(5_113)) && law.is_late(at(5_114)), "2 ms, and 3 of this turn");
        assert!(!law.is_late_to_accept(at(5_110)) && law.is_late_to_accept(at(5_111)), "2.5 ms in all");
    }

    /// While it sheds, the lag is low: that is what it sheds for.
    #[test]
    fn it_goes_on_as_long_as_something_is_shed_and_then_for_an_interval() {
        let mut law = Overload::overloaded();
        for turn in 11..=500 {
            law.after_turn(10 * turn, 1, turn / 9);
            assert!(law.is_on(), "turn {turn}");
        }
        // The last was shed before turn 495.
        law.after_turn(5_049, 1, 55);
        assert!(law.is_on());
        assert_eq!(law.ends_in(at(5_049)), Some(Duration::from_millis(1)));
        let cost = Shed { connections: 0, work: 55 };
        assert_eq!(law.after_turn(5_050, 1, 55), Some(Report::Over(Duration::from_millis(4_950), cost)));
        assert!(!law.is_on() && law.ends_in(at(5_050)).is_none());
        assert!(!law.is_late(at(9_999)));
    }

    /// Something is shed all the time, as by requests that take longer than the target.
    #[test]
    fn it_goes_on_as_long_as_the_loop_could_not_serve_what_it_sheds_as_well() {
        // A turn each 10 ms, in which it waits for so many of them, serves 3 and sheds so many.
        let runs = |idle: u64, sheds: u64| {
            let mut law = Overload::overloaded();
            let turns = (11..=500).find(|turn| {
                (0..3).for_each(|_| law.note_served());
                law.note_idle(Duration::from_millis(idle), 0);
                // Another one in two is above the target: it does not end in one of those.
                law.after_turn(10 * turn, if turn % 2 == 0 { ABOVE } else { 1 }, (turn - 10) * sheds);
                !law.is_on()
            });
            turns.map(|turn| turn - 10)
        };
        assert_eq!(runs(1, 3), None);
        assert_eq!(runs(5, 3), None, "all of it would be all of the time");
        assert_eq!(runs(5, 2), None, "five parts of six");
        assert_eq!(runs(6, 2), Some(11), "two of three");
        assert_eq!(runs(10, 3), Some(11));
        assert_eq!(runs(2, 0), Some(11), "as without any work");
    }

    /// Who is let in is work too, where nobody asks what to shed.
    #[test]
    fn where_no_work_is_shed_those_who_are_let_in_are_compared_with_those_who_are_not() {
        let ends = |sheds: u64| {
            let mut law = Overload::overloaded();
            (11..=500).any(|turn| {
                law.note_idle(Duration::from_millis(6), turn);
                law.note_shed(at(10 * turn), Shed { connections: turn * sheds, work: 0 });
                law.turn(at(10 * turn), Duration::ZERO);
                !law.is_on()
            })
        };
        assert_eq!([0, 1, 2].map(ends), [true, false, false]);
    }

    /// The budget keeps the lag low at the cost of those who wait to be let in.
    #[test]
    fn clients_left_in_the_backlog_for_an_interval_are_an_overload() {
        let mut law = law();
        let mut turn = |now, leaves: bool| {
            law.after_turn(now, 1, 0);
            if leaves {
                law.leaves_clients_waiting();
            }
            law.is_on()
        };
        assert!((0..=50).all(|at| !turn(10 * at, at % 10 != 0)), "all were let in once in a while");
        // Found out in the turn after.
        assert!((51..=61).all(|at| !turn(10 * at, true)));
        assert!((62..90).all(|at| turn(10 * at, true)), "it does not end before they are let in");
        assert!(turn(900, false));
        assert!(!turn(910, false));
    }

    #[test]
    fn it_does_not_end_above_the_target_though_nothing_can_be_shed() {
        let mut law = Overload::overloaded();
        (11..50).for_each(|turn| _ = law.after_turn(10 * turn, ABOVE, 0));
        assert!(law.is_on());
        law.after_turn(500, 5, 0);
        assert!(!law.is_on());
        // And it takes a whole interval again.
        (51..=60).for_each(|turn| _ = law.after_turn(10 * turn, ABOVE, 0));
        assert!(!law.is_on());
        law.after_turn(610, ABOVE, 0);
        assert!(law.is_on());
    }

    #[test]
    fn the_log_hears_of_one_in_ten_seconds_and_of_the_end_of_those_it_has_heard_of() {
        let mut law = Overload::overloaded();
        assert!(matches!(law.after_turn(300, 0, 0), Some(Report::Over(..))));
        let mut reports = |from: u64, lag| {
            let turns = (0..=20).map(|turn| from + 10 * turn);
            turns
                .filter_map(|now| law.after_turn(now, lag, 0).map(|report| (now, report)))
                .collect::<Vec<_>>()
        };
        assert_eq!(reports(1_000, ABOVE), [], "it is overloaded again");
        assert_eq!(reports(1_300, 0), [], "and again it is not");
        assert_eq!(reports(9_950, ABOVE), [(10_100, Report::Overloaded(Duration::from_millis(50)))]);
    }

    #[test]
    fn a_drain_ends_it() {
        let mut law = Overload::overloaded();
        let cost = Shed { connections: 7, work: 2 };
        law.note_shed(at(140), cost);
        assert_eq!(law.drain(at(140)), Some(Report::Over(Duration::from_millis(40), cost)));
        assert_eq!(law.drain(at(150)), None);
        assert!(!law.is_late(at(1_000)));
    }

    proptest! {
        /// Whatever comes: the budget is within its bounds, it begins only behind an interval above the target, and ends only behind
        /// one without shedding.
        #[test]
        fn it_begins_and_ends_for_cause(turns: Vec<(u8, u8, bool)>) {
            let mut law = law();
            let (mut now, mut shed) = (0, 0);
            let (mut last_below, mut last_shed) = (0, 0);
            for (step, lag, sheds) in turns {
                now += u64::from(step);
                let was_on = law.is_on();
                if sheds && was_on {
                    shed += 1;
                    last_shed = now;
                }
                if u64::from(lag) <= 5 {
                    last_below = now;
                }
                law.after_turn(now, lag.into(), shed);
                prop_assert!((1..=16).contains(&law.accept_budget()));
                match (was_on, law.is_on()) {
                    (false, true) => prop_assert!(now - last_below >= 100),
                    (true, false) => prop_assert!(last_below == now && now - last_shed >= 100),
                    _ => (),
                }
            }
        }
    }
}
