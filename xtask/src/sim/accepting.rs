//! What a listener does when descriptors have run out: it pauses instead of trying again and again, and tries again as
//! soon as one has become free.

use std::time::Duration;

use epoll_reactor::Timestamp;
use epoll_reactor::sim::{Counts, Sim};

use super::failure::{Failure, demand};
use super::plan::Plan;
use super::scenario::Loop;

/// The faults of making and watching descriptors. None of them is anything that the loop has got done.
pub(crate) const OF_DESCRIPTORS: [&str; 8] =
    ["emfile", "enfile", "accept_enobufs", "accept_enomem", "enomem", "enospc", "eperm", "eproto"];
/// These end the connection that was to be accepted.
const ENDED: [&str; 3] = ["econnaborted", "eperm", "eproto"];

/// Short turns in a row in which accepting may come to nothing, each on a hint that there was something.
const FRUITLESS_TURNS: u32 = 30;

#[derive(Debug)]
pub(crate) struct Accepting {
    at: Timestamp,
    tries: u64,
    /// What came of them, and connections closed.
    outcomes: u64,
    fruitless: u32,
    pauses: u64,
    closed: u64,
    deleted: u64,
    /// Some listener has paused and was not tried since.
    paused: bool,
    /// So it was when a descriptor became free: the next turn tries again.
    owed: bool,
    /// A descriptor that was given up can be had again: no chance is in it.
    renews: bool,
}

impl Accepting {
    pub(crate) fn new(plan: &Plan, sim: &Sim) -> Self {
        Self {
            at: sim.now(),
            tries: 0,
            outcomes: 0,
            fruitless: 0,
            pauses: 0,
            closed: 0,
            deleted: 0,
            paused: false,
            owed: false,
            renews: plan.faults.emfile == 0 && plan.faults.enfile == 0,
        }
    }

    /// After a turn.
    pub(crate) fn check<H: epoll_reactor::Handler>(
        &mut self,
        sim: &Sim,
        reactor: &mut Loop<H>,
    ) -> Result<(), Failure> {
        let (calls, faults) = (sim.calls(), sim.injected());
        let ctx = reactor.ctx();
        let counters = ctx.counters();
        let tried = count(&calls, "accept") > self.tries;
        let outcomes = counters.accepted + counters.shed + counters.closed + sum(&faults, &ENDED);
        let now = sim.now();
        let short = now - self.at < Duration::from_millis(1);
        let fruitless = tried && short && outcomes == self.outcomes;
        self.fruitless = if fruitless { self.fruitless + 1 } else { 0 };
        demand!(
            self.fruitless <= FRUITLESS_TURNS,
            "busy loop",
            "{} turns in a row tried to accept, and nothing came of it",
            self.fruitless
        );
        demand!(
            !self.owed || tried || ctx.is_draining(),
            "paused listener",
            "a descriptor became free, and a listener that had paused for want of one was not tried again"
        );
        let deleted = count(&calls, "delete");
        if counters.accept_pauses > self.pauses {
            // One to be woken by, and a spare one: given up to turn a client away, and had again.
            let eventfds = sim.open_descriptors().iter().filter(|it| it.ends_with("eventfd")).count();
            demand!(
                eventfds == 2 || !self.renews,
                "spare descriptor",
                "it is not there after a pause, so that the next client cannot be turned away"
            );
            self.paused = true;
        } else if tried {
            self.paused = false;
        }
        self.owed = self.paused && counters.closed > self.closed && deleted > self.deleted;
        (self.at, self.tries, self.outcomes) = (now, count(&calls, "accept"), outcomes);
        (self.pauses, self.closed, self.deleted) = (counters.accept_pauses, counters.closed, deleted);
        Ok(())
    }
}

fn count(counts: &Counts, name: &str) -> u64 {
    counts.get(name).unwrap_or(0)
}

/// How often the faults called so have happened.
pub(crate) fn sum(faults: &Counts, names: &[&str]) -> u64 {
    names.iter().map(|name| count(faults, name)).sum()
}
