//! Overload: that it begins and ends for cause, by books of the harness's own, and that whoever is shed had waited, or would
//! have had to. The loop knows for how long its waits blocked; here what it may not have known is taken to be in its favour.

use std::time::Duration;

use epoll_reactor::sim::Sim;
use epoll_reactor::{Counters, Handler, Limits, Timestamp};

use super::failure::{Failure, demand, milliseconds};
use super::scenario::Loop;

/// Of one listener in one turn, so many times its budget are taken at most: they are to starve nobody.
const TAKEN: u64 = 4;

#[derive(Debug)]
pub(crate) struct Shedding {
    listeners: u64,
    before: Counters,
    was_overloaded: bool,
    was_draining: bool,
    /// When the wait of the last turn ended, and whether that turn tried to accept: clients may have been left behind.
    woke: Timestamp,
    tried: bool,
    tries: u64,
    /// Clients that were not turned away for the overload, and faults.
    others: u64,
    /// The first of the turns that may all have had something waiting for too long.
    above_since: Option<Timestamp>,
    /// When it began, or something was last shed.
    shed_at: Timestamp,
    /// When it began, and for how long the loop had been busy by then.
    began: (Timestamp, Duration),
}

impl Shedding {
    pub(crate) fn new(listeners: usize, sim: &Sim) -> Self {
        Self {
            listeners: listeners as u64,
            before: Counters::default(),
            was_overloaded: false,
            was_draining: false,
            woke: sim.now(),
            tried: false,
            tries: 0,
            others: 0,
            above_since: None,
            shed_at: sim.now(),
            began: (sim.now(), Duration::ZERO),
        }
    }

    /// When an overload is over, at the latest, if nothing happens.
    pub(crate) fn due(&self, limits: &Limits) -> Option<Timestamp> {
        self.was_overloaded.then(|| self.shed_at + limits.lag_interval)
    }

    /// After a turn whose wait ended at `woke`.
    pub(crate) fn check<H: Handler>(
        &mut self,
        sim: &Sim,
        reactor: &mut Loop<H>,
        woke: Timestamp,
    ) -> Result<(), Failure> {
        let ctx = reactor.ctx();
        let (is_overloaded, is_draining) = (ctx.is_overloaded(), ctx.is_draining());
        let (counters, limits) = (ctx.counters(), ctx.limits().clone());
        let told = ctx.metrics().read().is_overloaded;
        demand!(
            told == is_overloaded || is_draining,
            "overload",
            "{is_overloaded}, and the metrics say {told}"
        );
        let turned_away = counters.shed_by_overload - self.before.shed_by_overload;
        let shed = counters.shed_work - self.before.shed_work;
        let began = counters.overloads > self.before.overloads;
        let Some(target) = limits.lag_target else {
            demand!(
                turned_away + shed + counters.overloads == 0 && !is_overloaded,
                "overload",
                "without a target"
            );
            return Ok(());
        };
        // Nothing that came before the last wait ended has waited for that wait, so no lag is longer.
        let lag = woke - self.woke;
        let may_stand = lag > target || self.tried;
        self.above_since = may_stand.then(|| self.above_since.unwrap_or(woke));
        let interval = limits.lag_interval;
        demand!(
            !began || self.above_since.is_some_and(|at| woke - at >= interval),
            "overload",
            "it has begun, and not everything had waited too long in the {interval:?} until {}",
            milliseconds(woke)
        );
        if began {
            self.shed_at = woke;
            self.began = (woke, self.before.busy);
        }
        // It is over, too, when for an interval at least it was so little busy that it could have done what it shed. Of which
        // interval is not known here, so this has to have been all of the idle time since it began.
        let (began_at, busy_before) = self.began;
        let (lasted, busy) = (woke - began_at, self.before.busy - busy_before);
        let may_keep_up = lasted >= interval && lasted.saturating_sub(busy) >= interval / 5;
        let calm_for = woke - self.shed_at;
        demand!(
            !self.was_overloaded || is_overloaded || is_draining || calm_for >= interval || may_keep_up,
            "overload",
            "it has ended {calm_for:?} after the last was shed, of {interval:?}, and was busy for {busy:?} of {lasted:?}"
        );
        demand!(
            !is_overloaded || may_stand || calm_for < interval,
            "overload",
            "it has not ended, with nothing shed for {calm_for:?}, of {interval:?}"
        );
        self.check_shed(sim, &counters, &limits, target, (turned_away, shed))?;
        if turned_away + shed > 0 {
            self.shed_at = sim.now();
        }
        let tries = sim.calls().get("accept").unwrap_or(0);
        (self.tried, self.tries) = (tries > self.tries, tries);
        self.others = counters.accepted + counters.shed - counters.shed_by_overload + sim.injected().total();
        (self.woke, self.before) = (woke, counters);
        (self.was_overloaded, self.was_draining) = (is_overloaded, is_draining);
        Ok(())
    }

    fn check_shed(
        &self,
        sim: &Sim,
        counters: &Counters,
        limits: &Limits,
        target: Duration,
        (turned_away, shed): (u64, u64),
    ) -> Result<(), Failure> {
        let began = counters.overloads > self.before.overloads;
        demand!(
            turned_away + shed == 0 || ((self.was_overloaded || began) && !self.was_draining),
            "overload",
            "{turned_away} clients were turned away and {shed} callbacks told to shed, for no overload"
        );
        // By the end of the turn, for whoever came right after the last wait.
        let longest = sim.now() - self.woke;
        demand!(
            shed == 0 || longest > target,
            "overload",
            "what has waited for {longest:?} at most was shed, of {target:?}"
        );
        // What else takes of the budget.
        let others = counters.accepted + counters.shed - counters.shed_by_overload + sim.injected().total();
        demand!(
            turned_away == 0 || longest > target / 2 || others > self.others,
            "overload",
            "{turned_away} clients were turned away after {longest:?} at most, of {target:?}, and nobody let in"
        );
        let most = self.listeners * TAKEN * limits.accept_budget as u64;
        demand!(
            turned_away <= most,
            "overload",
            "{turned_away} clients were turned away in one turn, of {most}"
        );
        Ok(())
    }
}
