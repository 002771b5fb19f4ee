//! Deadlines that passed while the loop was held up: whoever was active meanwhile is not closed for it, and no
//! deadline is put off for ever.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::time::Duration;

use epoll_reactor::{CloseReason, ConnId, Errno, Limits, Stopped, raise_open_file_limit};
use support::{Call, Harness, Method, Peer, Script};

const SECOND: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(60);

/// More connections than the loop has room for events to begin with.
const MANY: usize = 300;

fn idle() -> Limits {
    Limits { idle_timeout: Some(IDLE), ..Limits::default() }
}

/// With the clock stopped, and `MANY` connections.
fn crowd(limits: Limits) -> (Harness, Vec<(Peer, ConnId)>) {
    raise_open_file_limit().unwrap();
    let mut harness = Harness::unix(Script::default(), limits);
    let clients = (0..MANY).map(|_| harness.open()).collect();
    harness.settle();
    harness.stop_clock();
    harness.turn();
    (harness, clients)
}

#[test]
fn bytes_that_wait_behind_an_interrupted_wait_count_before_the_deadlines_that_have_passed() {
    for interruptions in [1, 2, 3] {
        let mut harness = Harness::unix(Script::default(), Limits { tick: Some(IDLE), ..idle() });
        let [(mut active, a), (_silent, b), (_timed, c)] = harness.open_many();
        harness.settle();
        harness.stop_clock();
        harness.turn();
        harness.ctx().set_timer(c, SECOND);
        let ticks = harness.script().count(|call| *call == Call::Tick);
        // Stopped by SIGSTOP, say, while a client went on; SIGCONT interrupts the wait.
        active.say(b"x");
        harness.kernel.advance(IDLE);
        harness.kernel.fail(Method::Wait, Errno::EINTR, interruptions);
        for _ in 0..interruptions {
            harness.turn();
            let calls = &harness.script().calls;
            assert!(
                !calls.contains(&Call::Timer(c)) && !calls.iter().any(|it| matches!(it, Call::Close(..)))
            );
        }
        harness.turn();
        assert_eq!(harness.script().inputs(a), [b"x"]);
        assert_eq!(harness.script().closed(a), None, "{interruptions} interruptions");
        assert_eq!(harness.script().closed(b), Some(CloseReason::IdleTimeout), "and in the turn after them");
        assert_eq!(harness.script().count(|call| *call == Call::Tick) - ticks, 1);
        harness.advance(IDLE - Duration::from_nanos(1));
        assert_eq!(harness.script().closed(a), None, "its time began anew");
        harness.advance(Duration::from_nanos(1));
        assert_eq!(harness.script().closed(a), Some(CloseReason::IdleTimeout));
    }
}

#[test]
fn of_more_active_connections_than_one_wait_can_report_none_is_idle() {
    let (mut harness, mut clients) = crowd(idle());
    let (_silent, silent) = clients.pop().unwrap();
    clients.iter_mut().for_each(|(peer, _)| peer.say(b"x"));
    harness.kernel.advance(IDLE);
    // The first wait cannot tell of all; a few more can.
    for _ in 0..3 {
        harness.turn();
    }
    for (_, id) in &clients {
        assert_eq!((harness.script().closed(*id), harness.script().inputs(*id).len()), (None, 1));
    }
    assert_eq!(harness.script().closed(silent), Some(CloseReason::IdleTimeout));
}

#[test]
fn a_read_deadline_too_waits_for_what_had_arrived() {
    let (mut harness, mut clients) = crowd(Limits::default());
    for (_, id) in &clients {
        harness.ctx().set_read_deadline(*id, SECOND);
    }
    // The message that must be whole by then is.
    let script = std::mem::take(harness.script());
    *harness.script() = script.data(|ctx, id, input| {
        ctx.clear_read_deadline(id);
        input.len()
    });
    clients.iter_mut().for_each(|(peer, _)| peer.say(b"x"));
    harness.kernel.advance(SECOND);
    for _ in 0..3 {
        harness.turn();
    }
    for (_, id) in &clients {
        assert!(harness.ctx().is_open(*id));
    }
}

#[test]
fn a_loop_whose_waits_are_always_interrupted_still_keeps_its_deadlines() {
    let mut harness = Harness::unix(Script::default(), Limits { tick: Some(IDLE), ..idle() });
    let [(_one, a), (_other, b)] = harness.open_many();
    harness.settle();
    harness.stop_clock();
    harness.turn();
    harness.ctx().set_timer(a, SECOND);
    harness.kernel.fail(Method::Wait, Errno::EINTR, usize::MAX);
    // Again and again, each within a few turns, and never early.
    for round in 1..=3 {
        for _ in 0..20 {
            harness.turn();
        }
        assert_eq!(harness.script().count(|call| *call == Call::Timer(a)), round - 1);
        harness.kernel.advance(SECOND);
        for _ in 0..10 {
            harness.turn();
        }
        assert_eq!(harness.script().count(|call| *call == Call::Timer(a)), round);
        harness.ctx().set_timer(a, SECOND);
    }
    harness.kernel.advance(IDLE);
    for _ in 0..10 {
        harness.turn();
    }
    assert_eq!(harness.script().closed(b), Some(CloseReason::IdleTimeout));
    assert_eq!(harness.script().count(|call| *call == Call::Tick), 1);
}

#[test]
fn a_drain_of_a_loop_whose_waits_are_always_interrupted_ends_with_its_grace() {
    let mut harness = Harness::unix(Script::default(), Limits::default());
    let (_peer, id) = harness.open();
    harness.settle();
    harness.stop_clock();
    harness.kernel.fail(Method::Wait, Errno::EINTR, usize::MAX);
    harness.ctx().drain(SECOND);
    for _ in 0..20 {
        harness.turn();
    }
    harness.kernel.advance(SECOND);
    assert_eq!(harness.run_to_end(), Stopped::DeadlinePassed);
    // It was told of the drain all the same, closed by default, and had nothing left to deliver.
    assert_eq!(harness.script().closed(id), Some(CloseReason::Local));
}

#[test]
fn what_is_asked_for_between_turns_counts_from_then_and_not_from_the_last_turn() {
    let hour = 3600 * SECOND;
    let mut harness = Harness::new(Script::default().shutdown(|_, _| ()));
    let (_peer, id) = harness.open();
    harness.settle();
    harness.stop_clock();
    harness.turn();
    let before = harness.ctx().now();
    harness.kernel.advance(hour);
    assert_eq!(harness.ctx().now() - before, hour);

    harness.ctx().set_timer(id, SECOND);
    harness.advance(SECOND - Duration::from_nanos(1));
    assert!(!harness.script().calls.contains(&Call::Timer(id)));
    harness.advance(Duration::from_nanos(1));
    assert!(harness.script().calls.contains(&Call::Timer(id)));

    // A listener whose backlog is full answers nobody: only the timeout can end this.
    let options = epoll_reactor::ListenOptions { backlog: 0, ..Default::default() };
    let kernel = epoll_reactor::Linux::new().unwrap();
    let address = epoll_reactor::Address::Tcp("127.0.0.1:0".parse().unwrap());
    let listener = epoll_reactor::Kernel::listen(&kernel, &address, &options).unwrap();
    let full = epoll_reactor::Kernel::local_address(&kernel, &listener).unwrap();
    let _first = Peer::connect(&full);
    harness.kernel.advance(hour);
    let outbound = harness.ctx().connect(full).unwrap();
    let timeout = harness.ctx().limits().connect_timeout;
    harness.advance(timeout - Duration::from_nanos(1));
    assert_eq!(harness.script().closed(outbound), None);
    harness.advance(Duration::from_nanos(1));
    assert_eq!(harness.script().closed(outbound), Some(CloseReason::ConnectFailed(Errno::ETIMEDOUT)));

    harness.kernel.advance(hour);
    harness.ctx().set_read_deadline(id, SECOND);
    harness.turn();
    assert!(harness.ctx().is_open(id));
    harness.ctx().clear_read_deadline(id);

    harness.kernel.advance(hour);
    harness.ctx().drain(SECOND);
    harness.advance(SECOND - Duration::from_nanos(1));
    assert_eq!(harness.script().closed(id), None);
    harness.kernel.advance(Duration::from_nanos(1));
    assert_eq!(harness.run_to_end(), Stopped::DeadlinePassed);
}
