//! The loop and the clock: it does not sleep through what is due, and does not act on a deadline before it knows all that
//! has happened. What is due is known from the harness's own books; the loop has to find it in its own.

use epoll_reactor::sim::Sim;
use epoll_reactor::{Ctx, Timestamp};
use std::time::Duration;

use super::failure::{Failure, demand, milliseconds};

/// A wait is rounded up to a millisecond, and a call takes its time.
const ROUNDED: Duration = Duration::from_millis(2);
/// Turns in a row that may put deadlines off because they do not know all. From then on the loop may look at them.
const PUT_OFF: u32 = 8;
/// The calls that may be interrupted besides the one that waits.
const INTERRUPTED: [&str; 8] =
    ["accept", "read", "read_signal", "recv", "send", "sendfile", "write", "writev"];

/// What was known when the turn began.
#[derive(Debug)]
pub(crate) struct Alarm {
    due: Option<Timestamp>,
    began: Timestamp,
    busy: Duration,
    /// When the wait of the last turn ended.
    pub(crate) woke: Timestamp,
    jumps: u64,
    interrupts: u64,
    waits: u64,
    other_calls: u64,
    fired: u64,
    /// Turns in a row that were interrupted somewhere.
    interrupted: u32,
}

impl Alarm {
    pub(crate) const fn new(now: Timestamp) -> Self {
        Self {
            due: None,
            began: now,
            busy: Duration::ZERO,
            woke: now,
            jumps: 0,
            interrupts: 0,
            waits: 0,
            other_calls: 0,
            fired: 0,
            interrupted: 0,
        }
    }

    /// A turn begins; `due` is the earliest that the loop must see to by the clock.
    pub(crate) fn set(&mut self, sim: &Sim, ctx: &Ctx, due: Option<Timestamp>) {
        (self.due, self.began, self.busy) = (due, sim.now(), ctx.counters().busy);
        self.jumps = count(sim, "jump");
        self.interrupts = count(sim, "eintr");
        self.waits = waits(sim);
        self.other_calls = other_calls(sim);
        self.fired = ctx.counters().timers_fired;
    }

    /// The turn has ended.
    pub(crate) fn check(&mut self, sim: &Sim, ctx: &Ctx) -> Result<(), Failure> {
        // What the turn did after its wait is in the counters.
        let spent = ctx.counters().busy - self.busy;
        let woke = Timestamp::from_nanoseconds(sim.now().as_nanoseconds() - spent.as_nanos() as u64);
        self.woke = woke;
        if let Some(due) = self.due.filter(|_| count(sim, "jump") == self.jumps) {
            let latest = due.max(self.began) + ROUNDED;
            demand!(
                woke <= latest,
                "overslept",
                "the loop has slept until {}, with something due at {}",
                milliseconds(woke),
                milliseconds(due)
            );
        }
        let interrupted = count(sim, "eintr") > self.interrupts;
        self.interrupted = if interrupted { self.interrupted + 1 } else { 0 };
        // No other call was made, so it was the wait; and if it waited again, it knows all.
        let each = count(sim, "eintr") - self.interrupts >= waits(sim) - self.waits;
        let knows_nothing = interrupted && each && other_calls(sim) == self.other_calls;
        demand!(
            !knows_nothing || self.interrupted > PUT_OFF || ctx.counters().timers_fired == self.fired,
            "deadline",
            "one was acted on at {}, in a turn whose wait was interrupted",
            milliseconds(woke)
        );
        Ok(())
    }
}

fn count(sim: &Sim, fault: &str) -> u64 {
    sim.injected().get(fault).unwrap_or(0)
}

fn waits(sim: &Sim) -> u64 {
    sim.calls().get("wait").unwrap_or(0)
}

fn other_calls(sim: &Sim) -> u64 {
    let calls = sim.calls();
    INTERRUPTED.iter().filter_map(|name| calls.get(name)).sum()
}
