//! Seeds as tests, and the checkers checked: each is shown what it must find, and finds it.

mod checkers;
mod planted;

use std::io::Write;
use std::time::{Duration, Instant};

use super::plan::{Cuts, Kind, Plan};
use super::report::report;
use super::run;

/// The seeds that always run.
const SEEDS: u64 = 25;
/// For how long new ones run.
const FRESH: Duration = Duration::from_secs(4);

fn check(kind: Kind, seed: u64) {
    let plan = Plan::new(kind, seed, &Cuts::default());
    if let Some(broken) = run(&plan).1 {
        let report = report(&plan, &broken, |plan| run(plan).1);
        panic!("{}{}", report.details, report.summary);
    }
}

fn check_all(kind: Kind) {
    (0..SEEDS).for_each(|seed| check(kind, seed));
    let first = fastrand::u64(..1 << 48);
    let start = Instant::now();
    let fresh = (first..).take_while(|_| start.elapsed() < FRESH);
    let count = fresh.inspect(|seed| check(kind, *seed)).count();
    // Past the capture of what tests print, which would keep it to itself where they pass.
    let told = format!("{kind:?}: seeds 0 to {}, and {count} from {first} on\n", SEEDS - 1);
    std::io::stderr().write_all(told.as_bytes()).unwrap();
}

#[test]
fn random_handler() {
    check_all(Kind::Random);
}

#[test]
fn echo() {
    check_all(Kind::Echo);
}

#[test]
fn echo_in_several_loops() {
    check_all(Kind::EchoLoops);
}

#[test]
fn broadcast() {
    check_all(Kind::Broadcast);
}

#[test]
fn broadcast_in_several_loops() {
    check_all(Kind::BroadcastLoops);
}

#[test]
fn http() {
    check_all(Kind::Http);
}

#[test]
fn a_run_is_a_function_of_its_seed() {
    for kind in Kind::ALL {
        for seed in [3, 8, 77] {
            let plan = Plan::new(kind, seed, &Cuts::default());
            let (one, other) = (run(&plan).0, run(&plan).0);
            assert_eq!((one.fingerprint, one.turns), (other.fingerprint, other.turns), "{kind:?} {seed}");
            let another = run(&Plan::new(kind, seed + 1, &Cuts::default())).0;
            assert_ne!(one.fingerprint, another.fingerprint, "{kind:?} {seed}");
        }
    }
}
