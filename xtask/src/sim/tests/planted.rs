//! Handlers and clients with a mistake, run as any scenario is: the run must fail, and shrink, and fail again.

use epoll_protocols::Echo;
use epoll_reactor::sim::Sim;
use epoll_reactor::{Address, ConnId, Ctx, Handler, Limits, SendOutcome};
use fastrand::Rng;

use crate::sim::echo::{Caller, Echoes};
use crate::sim::failure::Failure;
use crate::sim::plan::{Cuts, Kind, Plan};
use crate::sim::report::report;
use crate::sim::scenario::{Aftermath, Scenario};
use crate::sim::shrink::shrink;
use crate::sim::{Broken, run_as};

/// What an echo does wrong, with each connection's n-th input.
const LOSES: u8 = 0;
const REPEATS: u8 = 1;
const CONFUSES: u8 = 2;
const PAUSES: u8 = 3;
const PANICS: u8 = 4;

#[derive(Default)]
struct Mistaken<const WHAT: u8> {
    first: Option<ConnId>,
}

impl<const WHAT: u8> Handler for Mistaken<WHAT> {
    type Conn = u32;
    type Message = ();

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, count: &mut u32, input: &[u8]) -> usize {
        let first = *self.first.get_or_insert(id);
        *count += 1;
        if *count == 2 {
            match WHAT {
                LOSES => return input.len(),
                REPEATS => _ = ctx.send(id, input),
                CONFUSES if first != id => {
                    let _: SendOutcome<_> = ctx.send(first, input);
                }
                PAUSES => ctx.pause_reading(id),
                PANICS => panic!("as planted"),
                _ => (),
            }
        }
        Echo.on_data(ctx, id, &mut (), input)
    }
}

/// The echo scenario with such a handler.
struct Planted<const WHAT: u8>(Echoes);

impl<const WHAT: u8> Scenario for Planted<WHAT> {
    type Handler = Mistaken<WHAT>;
    type Talk = Caller;

    fn new(plan: &Plan, sim: &Sim, rng: &mut Rng) -> Self {
        Self(Echoes::new(plan, sim, rng))
    }

    fn limits(&self, drawn: Limits, rng: &mut Rng) -> Limits {
        self.0.limits(drawn, rng)
    }

    fn handler(&mut self, _: &[Address]) -> Mistaken<WHAT> {
        Mistaken::default()
    }

    fn talk(&mut self, session: usize, rng: &mut Rng) -> Caller {
        self.0.talk(session, rng)
    }

    fn session_of(first: &[u8]) -> Option<usize> {
        Echoes::session_of(first)
    }

    fn finish(&mut self, _: &Mistaken<WHAT>, all: &Aftermath<'_, Caller>) -> Result<(), Failure> {
        self.0.finish(&Echo, all)
    }
}

fn run<const WHAT: u8>(plan: &Plan) -> Option<Broken> {
    run_as::<Planted<WHAT>>(plan).1
}

/// Within a few seeds, one of `rules` is found broken; and again in a run that is no larger.
fn must_be_found<const WHAT: u8>(rules: &[&str]) {
    let plans = (0..30).map(|seed| Plan::new(Kind::Echo, seed, &Cuts::default()));
    let (plan, broken) = plans
        .filter_map(|plan| run::<WHAT>(&plan).map(|broken| (plan, broken)))
        .find(|(_, broken)| rules.contains(&broken.failure.rule))
        .expect("it was not found");
    let (smaller, small) = shrink(&plan, broken.clone(), run::<WHAT>);
    assert_eq!(small.failure.rule, broken.failure.rule);
    assert!(smaller.clients <= plan.clients && smaller.turns <= plan.turns);
    assert!(smaller.cuts.without.len() > plan.cuts.without.len(), "{smaller}");
    let again = run::<WHAT>(&Plan::new(Kind::Echo, plan.seed, &smaller.cuts));
    assert_eq!(again.map(|broken| broken.failure), Some(small.failure.clone()), "{smaller}");
    // What is told ends where it failed, and names whom it is about.
    let teardown = small.scene.trace.iter().find(|line| line.contains("fd 3: close"));
    assert_eq!(teardown, None, "the loop's waker is closed when it is dropped");
    let details = report(&plan, &broken, run::<WHAT>).details;
    assert!(details.contains("\nLast callbacks of session "), "{details}");
}

#[test]
fn a_lost_byte() {
    must_be_found::<LOSES>(&["echo"]);
}

#[test]
fn a_byte_too_many() {
    must_be_found::<REPEATS>(&["echo"]);
}

#[test]
fn a_byte_for_somebody_else() {
    must_be_found::<CONFUSES>(&["echo"]);
}

#[test]
fn a_client_that_is_not_served() {
    must_be_found::<PAUSES>(&["starvation"]);
}

#[test]
fn a_panic() {
    must_be_found::<PANICS>(&["callback contract"]);
}
