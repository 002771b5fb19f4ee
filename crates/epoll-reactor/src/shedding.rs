//! What the loop does against overload, by the law in `overload.rs`: it measures how far behind it is, reads the clock while it
//! is overloaded, and says how many to let in. Turning a client away is `listener.rs`; what to do about a request is the
//! handler's to say.

use std::io;
use std::time::Duration;

use epoll_sys::Kernel;

use crate::ctx::Ctx;
use crate::handler::Handler;
use crate::late::{Brief, loop_name};
use crate::metrics::LoopMetrics;
use crate::overload::{Overload, Report, Shed};
use crate::reactor::Reactor;

/// So many times the accept budget are taken from a listener in one turn at most while the loop is overloaded, nearly all of
/// them to be turned away: those who are being served wait for no more.
const TURNED_AWAY: usize = 4;

impl<H: Handler, K: Kernel> Reactor<H, K> {
    /// Waits, and says whether the kernel has told all, and whether what it has told was there at once. Where that matters,
    /// the latter is no guess by how long the wait took: the kernel is asked first what there is. That costs a call where a
    /// loop has nothing to do behind a turn above the target, or is overloaded, and nowhere else.
    #[cold]
    pub(crate) fn look_and_wait(&mut self, timeout: Option<Duration>) -> io::Result<(bool, bool)> {
        let at_once = timeout == Some(Duration::ZERO);
        let (began, ended) = self.last_turn;
        let shed = all_shed(&self.ctx.metrics);
        let ends_in = self.ctx.overload.as_mut().and_then(|law| {
            law.note_shed(ended, shed);
            (!at_once && law.must_know(ended - began)).then(|| law.ends_in(ended))
        });
        let Some(ends_in) = ends_in else {
            return Ok((self.wait(timeout)?, at_once));
        };
        let saw_all = self.wait(Some(Duration::ZERO))?;
        if !self.events.is_empty() {
            return Ok((saw_all, true));
        }
        // What comes now has not waited for that turn.
        self.last_turn.0 = ended;
        Ok((self.wait([timeout, ends_in].into_iter().flatten().min())?, false))
    }

    /// A wait has ended, and `at_once` says whether what it has found may have waited for the turn before.
    #[cold]
    pub(crate) fn judge_lag(&mut self, at_once: bool) {
        let (now, is_draining) = (self.ctx.now(), self.ctx.is_draining());
        let waited = at_once && !self.events.is_empty();
        let lag = if waited { now - self.last_turn.0 } else { Duration::ZERO };
        let metrics = &self.ctx.metrics;
        let Some(law) = &mut self.ctx.overload else { return };
        let was_on = law.is_on();
        let idle = if at_once { Duration::ZERO } else { now - self.last_turn.0 };
        law.note_idle(idle, metrics.accepted.get());
        let report = if is_draining { law.drain(now) } else { law.turn(now, lag) };
        let is_on = law.is_on();
        if is_on != was_on {
            metrics.overloads.add(is_on.into());
            metrics.overloaded.set(is_on.into());
            self.ctx.recorder.is_timed = is_on || self.ctx.recorder.is_on();
        }
        if let Some(report) = report {
            self.tell(report, lag);
        }
    }

    /// The loop ends, overloaded or not.
    #[cold]
    pub(crate) fn end_overload(&mut self) {
        let now = self.ctx.now();
        let Some(law) = &mut self.ctx.overload else { return };
        law.note_shed(now, all_shed(&self.ctx.metrics));
        if let Some(report) = law.drain(now) {
            self.tell(report, Duration::ZERO);
        }
    }

    fn tell(&self, report: Report, lag: Duration) {
        let name = loop_name();
        match report {
            Report::Overloaded(lasts) => log::warn!(
                "{name} is overloaded{since}: what has come waits for {lag} now, and for {interval:?} it was never down to \
                 {target:?}, with nobody left in the backlog; shedding what would wait longer",
                since =
                    if lasts.is_zero() { String::new() } else { format!(" for {} already", Brief(lasts)) },
                lag = Brief(lag),
                interval = self.ctx.limits.lag_interval,
                target = self.ctx.limits.lag_target.unwrap_or_default(),
            ),
            Report::Over(lasted, Shed { connections, work }) => log::warn!(
                "{name} is no longer overloaded, after {}: {connections} connections and {work} requests were shed",
                Brief(lasted)
            ),
        }
    }

    /// How many may be let in from one listener in this turn, and how many are taken from it at most: what is between is
    /// turned away.
    #[inline]
    pub(crate) fn accept_budgets(&self) -> (usize, usize) {
        let most = self.ctx.limits.accept_budget;
        match &self.ctx.overload {
            None => (most, most),
            Some(law) if law.is_on() => (law.accept_budget(), most.saturating_mul(TURNED_AWAY)),
            Some(law) => (law.accept_budget(), law.accept_budget()),
        }
    }

    /// Whether whoever is let in now would be served too late. Only an overloaded loop reads the clock for that.
    pub(crate) fn is_late_to_accept(&self) -> bool {
        self.ctx.is_overloaded()
            && self.ctx.overload.as_ref().is_some_and(|law| law.is_late_to_accept(self.kernel.now()))
    }
}

fn all_shed(metrics: &LoopMetrics) -> Shed {
    Shed { connections: metrics.shed_by_overload.get(), work: metrics.shed_work.get() }
}

impl Ctx {
    /// Whether the loop is overloaded: for a whole [`Limits::lag_interval`](crate::Limits::lag_interval) it has been behind
    /// [`Limits::lag_target`](crate::Limits::lag_target), and since then no such interval has passed without shedding, or with time
    /// enough for what was shed. Always `false` if there is no target, and in a drain.
    #[must_use]
    pub fn is_overloaded(&self) -> bool {
        self.overload.as_ref().is_some_and(|law| law.is_on()) && !self.is_draining()
    }

    /// Whether what this callback is for is to be shed: answered as briefly as possible, or closed. It is if the loop is
    /// [overloaded](Self::is_overloaded), and what it was called for may have been waiting for longer than
    /// [`Limits::lag_target`](crate::Limits::lag_target) when it was: since the wait before this turn's. What a connection itself
    /// has left for later turns counts from this turn's too. What is begun already is better finished.
    ///
    /// Ask once for each piece of work, before it is begun, and do as it says: each `true` counts as one in
    /// [`Counters::shed_work`](crate::Counters::shed_work), and the loop is not taken to have recovered as long as there are
    /// any. It is answered by the time at which the callback was called, so all that one callback asks gets one answer:
    /// while the loop is overloaded, whoever finds several pieces of work in its input had better do one and leave the rest to
    /// the next turn ([`read_again`](Self::read_again)), or a client that sends much at once keeps all others waiting until
    /// they are late. Outside of callbacks it means nothing.
    #[must_use]
    #[inline]
    pub fn should_shed(&self) -> bool {
        self.overload.as_ref().is_some_and(|law| self.is_late(law))
    }

    #[cold]
    fn is_late(&self, law: &Overload) -> bool {
        let is_late = law.is_late(self.recorder.now) && !self.is_draining();
        if is_late {
            self.metrics.shed_work.add(1);
        } else {
            law.note_served();
        }
        is_late
    }
}
