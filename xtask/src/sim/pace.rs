//! What must hold after every turn: the books, the limits, no misuse of the kernel, no busy loop, no
//! starvation, and an end by the deadline.

use std::collections::BTreeMap;
use std::time::Duration;

use epoll_reactor::sim::Sim;
use epoll_reactor::{ConnId, Counters, Timestamp};

use super::failure::{Failure, demand};
use super::scenario::{Loop, Scenario};
use super::session::Session;

/// Turns in a row that may come to nothing without time passing: one for what is put on the ready list and
/// needs nothing then, one for what that frees, and one for a reap.
const IDLE_TURNS: u32 = 4;
/// The same, if calls are made in them: a connection that lingers reads and discards, which nothing counts.
const LINGER_TURNS: u32 = 20_000;
/// Turns that bytes may wait in the kernel, once an event that was held back must have been released.
const STARVED_TURNS: u32 = 12;
/// An event is held back for 5 ms at most, and its wait rounded up to 1.
const HELD: Duration = Duration::from_millis(20);

#[derive(Debug, PartialEq, Eq)]
struct Seen {
    counters: Counters,
    callbacks: u64,
    faults: u64,
}

/// Since when a session's bytes have waited, unread, and for how many turns longer than they may.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    received: u64,
    since: Timestamp,
    turns: u32,
}

#[derive(Debug)]
pub(crate) struct Pace {
    seen: Option<Seen>,
    calls: u64,
    at: Timestamp,
    idle: u32,
    lingering: u32,
    waiting: BTreeMap<usize, Waiting>,
    /// When the drain must be over, and turns that came too late for it.
    deadline: Option<Timestamp>,
    overdue: u32,
}

impl Pace {
    pub(crate) fn new(sim: &Sim) -> Self {
        Self {
            seen: None,
            calls: 0,
            at: sim.now(),
            idle: 0,
            lingering: 0,
            waiting: BTreeMap::new(),
            deadline: None,
            overdue: 0,
        }
    }

    /// After a turn.
    pub(crate) fn check<S: Scenario>(
        &mut self,
        sim: &Sim,
        reactor: &mut Loop<S::Handler>,
        sessions: &[Session<S::Talk>],
        ids: &BTreeMap<usize, ConnId>,
    ) -> Result<(), Failure> {
        let violations = sim.violations();
        demand!(violations.is_empty(), "misuse of the kernel", "{violations:?}");
        let watched = reactor.handler();
        demand!(watched.lives.violations.is_empty(), "callback contract", "{:?}", watched.lives.violations);
        let ctx = reactor.ctx();
        ctx.audit().map_err(|error| Failure::new("audit", error))?;
        let limits = ctx.limits();
        let (open, most) = (ctx.connections(), limits.connections);
        demand!(open <= most, "limit", "{open} connections, of {most}");
        self.check_deadline(reactor)?;
        self.check_progress(sim, reactor)?;
        self.check_starvation::<S>(sim, reactor, sessions, ids)
    }

    fn check_deadline<H: epoll_reactor::Handler>(&mut self, reactor: &mut Loop<H>) -> Result<(), Failure> {
        let began = reactor.handler().lives.now();
        let ctx = reactor.ctx();
        if !ctx.is_draining() {
            return Ok(());
        }
        let latest = ctx.now() + ctx.limits().drain_grace;
        let deadline = *self.deadline.get_or_insert(latest);
        // The turn that ends it may still be told of ends, and one more may be needed to be told so.
        self.overdue += u32::from(began >= deadline);
        demand!(
            self.overdue <= 3,
            "drain",
            "it is {:?} past its deadline and still has {} connections",
            began - deadline,
            ctx.connections()
        );
        Ok(())
    }

    fn check_progress<H: epoll_reactor::Handler>(
        &mut self,
        sim: &Sim,
        reactor: &mut Loop<H>,
    ) -> Result<(), Failure> {
        let callbacks = reactor.handler().lives.calls;
        let mut counters = reactor.ctx().counters().clone();
        // A turn that comes to nothing takes time all the same.
        (counters.turns, counters.busy, counters.longest_turn) = (0, Duration::ZERO, Duration::ZERO);
        let seen = Seen { counters, callbacks, faults: sim.injected().total() };
        let calls = sim.calls().total();
        let now = sim.now();
        let moved = now - self.at >= Duration::from_millis(1) || self.seen.as_ref() != Some(&seen);
        // Each turn makes one call to wait.
        let busy = calls - self.calls > 1;
        (self.seen, self.at, self.calls) = (Some(seen), now, calls);
        match (moved, busy) {
            (true, _) => (self.idle, self.lingering) = (0, 0),
            (false, true) => self.lingering += 1,
            (false, false) => self.idle += 1,
        }
        demand!(
            self.idle <= IDLE_TURNS && self.lingering <= LINGER_TURNS,
            "busy loop",
            "{} turns in a row came to nothing, {} of them with calls",
            self.idle + self.lingering,
            self.lingering
        );
        Ok(())
    }

    fn check_starvation<S: Scenario>(
        &mut self,
        sim: &Sim,
        reactor: &mut Loop<S::Handler>,
        sessions: &[Session<S::Talk>],
        ids: &BTreeMap<usize, ConnId>,
    ) -> Result<(), Failure> {
        let (began, now) = (reactor.handler().lives.now(), sim.now());
        for (&number, &id) in ids {
            let Some(session) = sessions.get(number) else { continue };
            let received = reactor.handler().lives.life(id).map_or(0, |life| life.received);
            let open = reactor.ctx().is_open(id);
            // Where urgent bytes are left out nobody can say how many have been read.
            let unread = session.arrived() > received && session.shouted == 0 && !session.is_over();
            let excused = reactor.ctx().queued(id) > 0 || S::may_wait(&reactor.handler().inner, id);
            if !open || !unread || excused {
                self.waiting.remove(&number);
                continue;
            }
            let waiting = self.waiting.entry(number).or_insert(Waiting { received, since: now, turns: 0 });
            if waiting.received != received {
                *waiting = Waiting { received, since: now, turns: 0 };
            }
            let time = began - waiting.since;
            waiting.turns += u32::from(time > HELD);
            demand!(
                waiting.turns <= STARVED_TURNS,
                "starvation",
                "session {number} ({id}) has waited for {time:?}, with {} of {} bytes read",
                received,
                session.arrived()
            );
        }
        Ok(())
    }
}
