//! Simulation: whole servers on a simulated kernel, with every fault it knows, from a seed. A run that breaks a
//! rule is a seed, and the seed brings it back.

mod accepting;
mod actor;
mod admitting;
mod alarm;
mod answers;
mod balance;
mod book;
mod broadcast;
mod chaos;
mod command;
mod echo;
mod failure;
mod http;
mod library;
mod limits;
mod lives;
mod loops;
mod oracle;
mod overdue;
mod pace;
mod patience;
mod pipe;
mod plan;
mod published;
mod random;
mod report;
mod scenario;
mod session;
mod several;
mod shedding;
mod shrink;
mod stage;
#[cfg(test)]
mod tests;
mod voice;
mod watchdog;
mod watched;

use std::panic::{AssertUnwindSafe, catch_unwind};

pub(crate) use command::{Options, simulate};
use failure::Failure;
use plan::Plan;
use scenario::Scenario;
use stage::{Stage, Tally};

/// A run that broke a rule, with the last that happened in it until then.
#[derive(Clone, Debug)]
pub(crate) struct Broken {
    pub(crate) failure: Failure,
    pub(crate) scene: report::Scene,
}

/// Runs one plan to its end.
pub(crate) fn run(plan: &Plan) -> (Tally, Option<Broken>) {
    match plan.kind {
        plan::Kind::Random => run_as::<random::Bedlam>(plan),
        plan::Kind::Broadcast => run_as::<broadcast::Broadcasts>(plan),
        plan::Kind::BroadcastLoops => loops::run(plan),
        plan::Kind::Echo => run_as::<echo::Echoes>(plan),
        plan::Kind::EchoLoops => balance::run(plan),
        plan::Kind::Http => run_as::<http::Https>(plan),
    }
}

fn run_as<S: Scenario>(plan: &Plan) -> (Tally, Option<Broken>) {
    let _watching = watchdog::watch(plan);
    let sim = stage::world(plan);
    let start = sim.now();
    let mut scene = None;
    let result = Stage::<S>::new(plan, &sim).and_then(|mut stage| {
        let ran = catch_unwind(AssertUnwindSafe(|| stage.run()));
        let ran = ran.unwrap_or_else(|payload| Err(Failure::new("panic", watched::text(payload.as_ref()))));
        // What is taken down after a failure is none of it.
        scene = ran.is_err().then(|| stage.scene());
        ran.and_then(|()| stage.end())
    });
    let tally = Tally {
        turns: sim.calls().get("wait").unwrap_or(0),
        time: sim.now() - start,
        injected: sim.injected(),
        fingerprint: sim.fingerprint(),
    };
    let broken = result.err().map(|failure| {
        let scene = scene.unwrap_or_else(|| report::Scene::of_the_end(&sim));
        Broken { failure, scene }
    });
    (tally, broken)
}
