//! Several loops on one kernel and one clock, whatever their handlers are: the seed says which has its turn, which one stalls or
//! dies, and when all drain. What their clients do and what must hold then is a [`Scenario`]'s: `loops.rs`, `balance.rs`.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use epoll_reactor::sim::{Faults, Sim, SimKernel};
use epoll_reactor::{Address, Handler, Limits, ListenOptions, Reactor, Remote, Turn, Worker};
use fastrand::Rng;

use super::failure::{Failure, demand};
use super::plan::{Plan, magnitude};
use super::report::Scene;
use super::stage::{Tally, world};
use super::{Broken, watchdog, watched};

/// Nothing takes so long but what never comes.
pub(super) const PATIENCE: Duration = Duration::from_secs(6 * 3_600);
/// No run takes so many rounds, unless it goes nowhere.
const MOST_ROUNDS: u64 = 400_000;

/// The loops of a run.
pub(super) struct Loops<H: Handler> {
    pub(super) sim: Sim,
    pub(super) rng: Rng,
    /// As they are dropped when they die.
    pub(super) reactors: Vec<Option<Reactor<H, SimKernel>>>,
    pub(super) stopped: Vec<bool>,
    pub(super) remotes: Arc<[Remote<H::Message, SimKernel>]>,
    /// The loop that stalls, and for how many rounds.
    stalled: (usize, u32),
    draining: bool,
}

/// What the loops of a run do, and for whom.
pub(super) trait Scenario: Sized {
    type Handler: Handler;

    fn new(plan: &Plan, sim: &Sim) -> Result<Self, Failure>;
    fn loops(&mut self) -> &mut Loops<Self::Handler>;
    /// That loop has a turn, if it has not ended.
    fn turn(&mut self, index: usize) -> Result<(), Failure>;
    /// Some clients do something.
    fn act(&mut self) -> Result<(), Failure>;
    /// That loop is no more.
    fn note_death(&mut self, index: usize);
    /// Whether all is done, or nothing has been for so many rounds, so that the loops are to drain.
    fn is_over(&self, round: u64, idle: u32) -> bool;
    /// Something that changes whenever anything moves.
    fn progress(&mut self) -> u64;
    /// What has not come to its end, for whoever reads the failure.
    fn unfinished(&self) -> String;
    /// All loops have ended: what must hold then.
    fn finish(&mut self) -> Result<(), Failure>;
}

impl<H: Handler> Loops<H> {
    pub(super) fn new(
        sim: &Sim,
        rng: Rng,
        limits: &Limits,
        count: usize,
        mut handler: impl FnMut(&Worker<H::Message, SimKernel>) -> io::Result<H>,
    ) -> Result<Self, Failure> {
        let harness = |error: io::Error| Failure::new("harness", format!("it does not start: {error}"));
        let kernels: Vec<SimKernel> = (0..count).map(|_| sim.kernel()).collect();
        let remotes = kernels.iter().map(|kernel| Remote::for_kernel(kernel, limits));
        let remotes: Arc<[_]> = remotes.collect::<Result<Vec<_>, _>>().map_err(harness)?.into();
        let mut reactors = Vec::new();
        for (index, kernel) in kernels.into_iter().enumerate() {
            let worker = Worker::new(index, Arc::clone(&remotes))
                .ok_or_else(|| Failure::new("harness", "no such worker"))?;
            let handler = handler(&worker).map_err(harness)?;
            let mut reactor = Reactor::with_remote(kernel, handler, limits.clone(), worker.remote().clone())
                .map_err(harness)?;
            reactor.listen(&address(index), &ListenOptions::default()).map_err(harness)?;
            reactors.push(Some(reactor));
        }
        let (sim, stopped) = (sim.clone(), vec![false; count]);
        Ok(Self { sim, rng, reactors, stopped, remotes, stalled: (0, 0), draining: false })
    }

    /// Those faults of the plan that lose nobody, from now on.
    pub(super) fn set_faults(&self, plan: &Plan) {
        let mut faults = plan.faults.clone().without_losses();
        faults.max_open = Faults::none().max_open;
        self.sim.set_faults(faults);
    }

    pub(super) const fn count(&self) -> usize {
        self.reactors.len()
    }

    /// The loop, if it has had one.
    pub(super) fn turn(&mut self, index: usize) -> Result<Option<&mut Reactor<H, SimKernel>>, Failure> {
        let Some(reactor) = self.reactors[index].as_mut().filter(|_| !self.stopped[index]) else {
            return Ok(None);
        };
        let turn = reactor.turn(Some(Duration::ZERO));
        let turn = turn.map_err(|error| Failure::new("turn", format!("loop {index} failed: {error}")))?;
        self.stopped[index] = turn != Turn::Continue;
        let audit = reactor.ctx().audit();
        demand!(audit.is_ok(), "audit", "loop {index}: {audit:?}");
        Ok(Some(reactor))
    }

    pub(super) const fn is_draining(&self) -> bool {
        self.draining
    }

    pub(super) fn ended(&self) -> usize {
        self.stopped.iter().filter(|stopped| **stopped).count()
    }

    fn drain(&mut self) {
        self.draining = true;
        let first = self.rng.usize(0..self.count());
        let order = (0..self.count()).map(|index| (index + first) % self.count());
        order.for_each(|index| self.remotes[index].drain());
    }

    fn kill_one(&mut self) -> usize {
        let index = self.rng.usize(0..self.count());
        self.reactors[index] = None;
        self.stopped[index] = true;
        index
    }

    /// Whose turn it is; nobody's, if that one stalls.
    fn next(&mut self) -> Option<usize> {
        let index = self.rng.usize(0..self.count());
        if self.stalled.1 > 0 {
            self.stalled.1 -= 1;
        } else if self.rng.u8(0..40) == 0 {
            self.stalled = (self.rng.usize(0..self.count()), magnitude(&mut self.rng, 1, 200) as u32);
        }
        (self.stalled.1 == 0 || self.stalled.0 != index).then_some(index)
    }
}

pub(super) fn address(index: usize) -> Address {
    Address::Tcp(([127, 0, 0, 1], 7000 + index as u16).into())
}

fn play<S: Scenario>(plan: &Plan, scenario: &mut S) -> Result<(), Failure> {
    let loops = scenario.loops();
    let sim = loops.sim.clone();
    let dies = (!plan.gentle && loops.rng.bool()).then(|| loops.rng.usize(1..=plan.turns * 2));
    let mut last = (0, sim.now());
    let mut idle = 0;
    for round in 0.. {
        demand!(round < MOST_ROUNDS, "stuck", "{round} rounds: {}", scenario.unfinished());
        if dies == Some(round as usize) {
            let index = scenario.loops().kill_one();
            scenario.note_death(index);
        }
        if !scenario.loops().draining && scenario.is_over(round, idle) {
            scenario.loops().drain();
        }
        if scenario.loops().ended() == scenario.loops().count() {
            break;
        }
        if let Some(index) = scenario.loops().next() {
            scenario.turn(index)?;
        }
        scenario.act()?;
        let done = scenario.progress();
        if done != last.0 {
            last = (done, sim.now());
            idle = 0;
        } else {
            idle += 1;
        }
        let rest = sim.now() - last.1;
        demand!(rest < PATIENCE, "stuck", "nothing for {rest:?}: {}", scenario.unfinished());
        let rng = &mut scenario.loops().rng;
        if idle > 0 || rng.bool() {
            sim.advance(Duration::from_micros(rng.u64(0..=1 << idle.min(22))));
        }
    }
    scenario.finish()
}

fn end(sim: &Sim, scenario: impl Scenario) -> Result<(), Failure> {
    drop(scenario);
    let (open, violations) = (sim.open_descriptors(), sim.violations());
    demand!(open.is_empty(), "descriptors", "left open at the end: {open:?}");
    demand!(violations.is_empty(), "misuse of the kernel", "{violations:?}");
    Ok(())
}

/// Runs one plan to its end.
pub(super) fn run<S: Scenario>(plan: &Plan) -> (Tally, Option<Broken>) {
    let _watching = watchdog::watch(plan);
    let sim = world(plan);
    let start = sim.now();
    let result = S::new(plan, &sim).and_then(|mut scenario| {
        let ran = catch_unwind(AssertUnwindSafe(|| play(plan, &mut scenario)));
        let ran = ran.unwrap_or_else(|payload| Err(Failure::new("panic", watched::text(payload.as_ref()))));
        ran.and_then(|()| end(&sim, scenario))
    });
    let tally = Tally {
        turns: sim.calls().get("wait").unwrap_or(0),
        time: sim.now() - start,
        injected: sim.injected(),
        fingerprint: sim.fingerprint(),
    };
    (tally, result.err().map(|failure| Broken { failure, scene: Scene::of_the_end(&sim) }))
}
