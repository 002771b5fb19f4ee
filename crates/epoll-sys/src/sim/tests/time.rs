//! The virtual clocks, and that a run is a function of its seed.

use super::*;
use crate::Errno;

#[test]
fn a_wait_with_nothing_ready_goes_on_to_what_happens_next() {
    let (sim, kernel, _server, peer) = pair(1, Faults::none());
    let start = sim.now();
    assert_eq!(wait_for(&kernel, Duration::from_secs(3_600)), []);
    assert_eq!(sim.now() - start, Duration::from_secs(3_600) + Duration::from_micros(1));
    peer.send(b"x");
    let start = sim.now();
    assert_eq!(wait_for(&kernel, Duration::from_secs(3_600)).len(), 1);
    assert_eq!(sim.now() - start, Duration::from_micros(20));
}

#[test]
fn timeouts_are_rounded_up_to_milliseconds() {
    let sim = Sim::new(1, Faults::none());
    let kernel = sim.kernel();
    let mut events = Events::with_capacity(1);
    for (nanoseconds, milliseconds) in [(0, 0), (1, 1), (1_000_000, 1), (1_000_001, 2)] {
        let start = sim.now();
        kernel.wait(&mut events, Some(Duration::from_nanos(nanoseconds))).unwrap();
        assert_eq!(sim.now() - start, Duration::from_millis(milliseconds) + Duration::from_micros(1));
    }
    let start = sim.now();
    kernel.wait(&mut events, Some(Duration::MAX)).unwrap();
    assert_eq!((sim.now() - start).as_millis(), 2_147_483_647);
}

#[test]
fn time_passes_with_all_that_happens_in_it() {
    let (sim, kernel, server, peer) = pair(1, Faults::none());
    let start = sim.now();
    peer.send(b"x");
    sim.advance(Duration::from_secs(5));
    assert_eq!(sim.now() - start, Duration::from_secs(5));
    assert_eq!(kernel.recv(&server, &mut [0; 4]), Ok(1));
}

#[test]
fn clocks_jump_and_the_monotonic_one_only_forward() {
    let faults = Faults { jump: super::super::ALWAYS, wall_jump: super::super::ALWAYS, ..Faults::none() };
    let sim = Sim::new(1, faults);
    let kernel = sim.kernel();
    let (mut last, mut back, mut far) = ((sim.now(), sim.wall_clock()), false, false);
    for _ in 0..100 {
        wait(&kernel);
        let now = (sim.now(), sim.wall_clock());
        assert!(now.0 > last.0);
        far |= now.0 - last.0 > Duration::from_secs(5);
        back |= now.1 < last.1;
        last = now;
    }
    assert!(back && far);
    sim.set_wall_clock(true, Duration::from_secs(7_200));
    assert_eq!(sim.wall_clock().duration_since(last.1).unwrap(), Duration::from_secs(7_200));
}

/// Two loops under one clock.
#[test]
fn several_epoll_instances_share_a_world() {
    let sim = Sim::new(1, Faults::none());
    let (one, other) = (sim.kernel(), sim.kernel());
    let notifier = one.eventfd().unwrap();
    one.add(&notifier, Interest::Readable, 1).unwrap();
    other.add(&notifier, Interest::Readable, 2).unwrap();
    SimKernel::notify(&notifier).unwrap();
    assert_eq!(wait(&other)[0].0, 2);
    assert_eq!(wait(&one)[0].0, 1);
    drop(one);
    SimKernel::notify(&notifier).unwrap();
    assert_eq!(wait(&other)[0].0, 2);
    other.delete(&notifier).unwrap();
    assert_eq!(sim.violations(), [""; 0]);
}

/// A small run with everything in it.
fn run(seed: u64, faults_of: u64) -> Sim {
    let (sim, kernel, server, peer) = pair(seed, Faults::swarm(faults_of).without_losses());
    let mut buffer = [0; 700];
    for round in 0..50 {
        peer.send(&[7; 1000]);
        let events = wait_for(&kernel, Duration::from_millis(round));
        if !events.is_empty() {
            while !matches!(kernel.recv(&server, &mut buffer), Err(Errno::EAGAIN)) {}
            let _ = kernel.send(&server, &buffer);
        }
        peer.recv(500);
    }
    sim
}

#[test]
fn the_same_seed_and_calls_make_the_same_run() {
    for seed in 0..20 {
        let (one, other) = (run(seed, seed), run(seed, seed));
        assert_eq!(one.trace(), other.trace());
        assert_eq!(one.fingerprint(), other.fingerprint());
        assert_eq!((one.injected(), one.calls()), (other.injected(), other.calls()));
        assert_ne!(one.fingerprint(), run(seed + 1, seed).fingerprint(), "another seed is another run");
        assert!(one.injected().total() > 0);
    }
}
