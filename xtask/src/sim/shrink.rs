//! Makes a failing run smaller, as long as it breaks the same rule.

use std::time::{Duration, Instant};

use super::Broken;
use super::plan::{Cuts, Plan, fault_names};

/// Runs it takes at most, and time.
const MOST_RUNS: u32 = 300;
const MOST_TIME: Duration = Duration::from_secs(20);

/// How a plan is run: to what breach of a rule, if any.
pub(crate) type Run = fn(&Plan) -> Option<Broken>;

struct Shrinking {
    run: Run,
    plan: Plan,
    broken: Broken,
    runs: u32,
    start: Instant,
}

/// The smallest run found that breaks the same rule as `broken` does.
pub(crate) fn shrink(plan: &Plan, broken: Broken, run: Run) -> (Plan, Broken) {
    let mut shrinking = Shrinking { run, plan: plan.clone(), broken, runs: 0, start: Instant::now() };
    loop {
        let before = shrinking.plan.cuts.clone();
        shrinking.fewer_faults();
        shrinking.fewer_clients();
        shrinking.fewer_turns();
        if shrinking.plan.cuts == before || shrinking.is_tired() {
            return (shrinking.plan, shrinking.broken);
        }
    }
}

impl Shrinking {
    fn is_tired(&self) -> bool {
        self.runs >= MOST_RUNS || self.start.elapsed() > MOST_TIME
    }

    fn fewer_faults(&mut self) {
        for name in fault_names() {
            let mut cuts = self.plan.cuts.clone();
            if cuts.without.insert(name.to_owned()) {
                self.try_with(cuts);
            }
        }
    }

    fn fewer_clients(&mut self) {
        for clients in 0..self.plan.clients {
            if self.try_with(Cuts { clients: Some(clients), ..self.plan.cuts.clone() }) {
                return;
            }
        }
    }

    /// By halves, and then by ones: fewer turns need not fail where more do.
    fn fewer_turns(&mut self) {
        if self.plan.gentle {
            return;
        }
        let mut step = self.plan.turns / 2;
        while step > 0 {
            let turns = self.plan.turns.saturating_sub(step);
            if !self.try_with(Cuts { turns: Some(turns), ..self.plan.cuts.clone() }) {
                step /= 2;
            } else {
                step = step.min(self.plan.turns / 2);
            }
        }
    }

    /// Keeps the cuts if the run still breaks the same rule.
    fn try_with(&mut self, cuts: Cuts) -> bool {
        if self.is_tired() {
            return false;
        }
        self.runs += 1;
        let plan = Plan::new(self.plan.kind, self.plan.seed, &cuts);
        match (self.run)(&plan) {
            Some(broken) if broken.failure.rule == self.broken.failure.rule => {
                self.plan = plan;
                self.broken = broken;
                true
            }
            _ => false,
        }
    }
}
