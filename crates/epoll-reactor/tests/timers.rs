//! Deadlines: never early, never forgotten, and nothing to the kernel for setting one. The clock of these
//! tests is moved by hand, so that "not yet" and "now" are exact.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::time::{Duration, Instant};

use epoll_reactor::{CloseReason, ConnId, Ctx, Limits};
use support::{Call, Harness, KIB, Method, Peer, Script, pattern};

const SECOND: Duration = Duration::from_secs(1);
const INSTANT: Duration = Duration::from_nanos(1);

fn fired(harness: &mut Harness, id: ConnId) -> usize {
    harness.script().count(|call| *call == Call::Timer(id))
}

/// With the clock stopped, and one connection.
fn stopped(script: Script, limits: Limits) -> (Harness, Peer, ConnId) {
    let mut harness = Harness::unix(script, limits);
    let (peer, id) = harness.open();
    harness.settle();
    harness.stop_clock();
    harness.turn();
    (harness, peer, id)
}

#[test]
fn a_timer_fires_once_at_its_time_and_not_an_instant_before() {
    let (mut harness, _peer, id) = stopped(Script::default(), Limits::default());
    harness.ctx().set_timer(id, SECOND);
    harness.advance(SECOND - INSTANT);
    assert_eq!(fired(&mut harness, id), 0);
    harness.advance(INSTANT);
    assert_eq!(fired(&mut harness, id), 1);
    harness.advance(100 * SECOND);
    assert_eq!(fired(&mut harness, id), 1);
}

#[test]
fn the_time_left_is_told_until_the_timer_has_fired() {
    let (mut harness, _peer, id) = stopped(Script::default(), Limits::default());
    assert_eq!(harness.ctx().timer(id), None);
    harness.ctx().set_timer(id, 3 * SECOND);
    harness.advance(SECOND);
    assert_eq!(harness.ctx().timer(id), Some(2 * SECOND));
    harness.advance(2 * SECOND);
    assert_eq!(harness.ctx().timer(id), None);
}

#[test]
fn a_timer_set_again_counts_from_then_whether_nearer_or_later() {
    for (first, second) in [(5, 2), (2, 5), (5, 5)] {
        let (mut harness, _peer, id) = stopped(Script::default(), Limits::default());
        harness.ctx().set_timer(id, first * SECOND);
        harness.turn();
        harness.ctx().set_timer(id, second * SECOND);
        harness.advance(second * SECOND - INSTANT);
        assert_eq!(fired(&mut harness, id), 0, "{first} then {second}");
        harness.advance(INSTANT);
        assert_eq!(fired(&mut harness, id), 1, "{first} then {second}");
        harness.advance(10 * SECOND);
        assert_eq!(fired(&mut harness, id), 1, "{first} then {second}");
    }
}

#[test]
fn a_cancelled_timer_does_not_fire_and_one_set_after_it_does() {
    let (mut harness, _peer, id) = stopped(Script::default(), Limits::default());
    harness.ctx().set_timer(id, SECOND);
    harness.ctx().cancel_timer(id);
    harness.advance(2 * SECOND);
    assert_eq!(fired(&mut harness, id), 0);
    harness.ctx().set_timer(id, 3 * SECOND);
    harness.advance(3 * SECOND);
    assert_eq!(fired(&mut harness, id), 1);
}

#[test]
fn timers_of_equal_time_all_fire() {
    let mut harness = Harness::new(Script::default());
    let peers: [(Peer, ConnId); 5] = harness.open_many();
    harness.stop_clock();
    harness.turn();
    for (_, id) in &peers {
        harness.ctx().set_timer(*id, SECOND);
    }
    harness.advance(SECOND);
    for (_, id) in &peers {
        assert_eq!(fired(&mut harness, *id), 1);
    }
}

#[test]
fn a_timer_that_its_own_callback_sets_again_leaves_room_for_everybody_else() {
    let script = Script::default().timer(|ctx, id| {
        assert!(ctx.counters().timers_fired < 1000, "it never lets go");
        ctx.set_timer(id, Duration::ZERO);
    });
    let mut harness = Harness::new(script);
    let [(_first, busy), (mut second, _)] = harness.open_many();
    harness.ctx().set_timer(busy, Duration::ZERO);
    second.say(b"x");
    assert_eq!(harness.receive(&mut second, 1), b"x");
    assert_eq!(harness.script().closed(busy), None);
    let (turns, before) = (harness.ctx().counters().turns, fired(&mut harness, busy));
    for _ in 0..10 {
        harness.turn();
    }
    let most = usize::try_from(harness.ctx().counters().turns - turns).unwrap();
    assert!(fired(&mut harness, busy) - before <= most, "once a turn at most");
}

#[test]
fn the_wait_ends_with_the_nearest_deadline_and_the_clock_agrees() {
    let mut harness = Harness::new(Script::default());
    let [(_first, a), (_second, b)] = harness.open_many();
    harness.settle();
    let started = Instant::now();
    harness.ctx().set_timer(a, Duration::from_millis(500));
    harness.ctx().set_timer(b, Duration::from_millis(30));
    let set = harness.ctx().now();
    while fired(&mut harness, b) == 0 {
        harness.reactor.turn(None).unwrap();
    }
    assert!(harness.ctx().now() - set >= Duration::from_millis(30));
    assert!(started.elapsed() >= Duration::from_millis(25));
    assert_eq!(fired(&mut harness, a), 0);
    let before = harness.kernel.count(Method::Wait);
    while fired(&mut harness, a) == 0 {
        harness.reactor.turn(None).unwrap();
    }
    let waits = harness.kernel.count(Method::Wait) - before;
    assert!(waits <= 3, "{waits} waits: it slept until then");
}

#[test]
fn a_loop_with_nothing_to_do_waits_for_ever() {
    let mut harness = Harness::new(Script::default());
    let (_peer, _) = harness.open();
    harness.settle();
    harness.remote().send(1).unwrap();
    harness.reactor.turn(None).unwrap();
    assert_eq!(harness.kernel.last_timeout.get(), None);
}

#[test]
fn setting_a_deadline_is_no_business_of_the_kernel() {
    let (mut harness, _peer, id) = stopped(Script::default(), Limits::default());
    let calls = |harness: &Harness| {
        [Method::Add, Method::Delete, Method::Read, Method::Write].map(|method| harness.kernel.count(method))
    };
    let before = calls(&harness);
    for round in 0..1000 {
        harness.ctx().set_timer(id, SECOND + Duration::from_millis(1000 - round));
        harness.ctx().set_read_deadline(id, 100 * SECOND);
    }
    harness.advance(3 * SECOND);
    assert_eq!(calls(&harness), before);
    assert_eq!(fired(&mut harness, id), 1);
}

#[test]
fn an_idle_connection_is_closed_and_one_that_says_or_is_told_something_is_not() {
    let limits = Limits { idle_timeout: Some(10 * SECOND), ..Limits::default() };
    let (mut harness, mut peer, id) = stopped(Script::default().data(|_, _, input| input.len()), limits);
    for round in 0..5 {
        // What it says is not answered, so that each counts for itself.
        if round % 2 == 0 {
            peer.say(b"x");
            harness.until("the input", |script| script.inputs(id).len() == 1 + round / 2);
        } else {
            assert!(harness.ctx().send(id, b"y").is_accepted());
            harness.receive(&mut peer, 1);
        }
        harness.advance(10 * SECOND - INSTANT);
        assert_eq!(harness.script().closed(id), None);
    }
    harness.advance(INSTANT);
    assert_eq!(harness.script().closed(id), Some(CloseReason::IdleTimeout));
}

#[test]
fn a_read_deadline_closes_however_steadily_bytes_trickle_in() {
    let (mut harness, mut peer, id) = stopped(Script::default(), Limits::default());
    harness.ctx().set_read_deadline(id, 5 * SECOND);
    for _ in 0..4 {
        harness.advance(SECOND);
        peer.say(b"x");
        harness.receive(&mut peer, 1);
    }
    harness.advance(SECOND - INSTANT);
    assert_eq!(harness.script().closed(id), None);
    harness.advance(INSTANT);
    // It lingers for a second of silence.
    harness.advance(SECOND);
    assert_eq!(harness.script().closed(id), Some(CloseReason::ReadTimeout));
}

#[test]
fn a_read_deadline_that_is_cleared_or_moved_on_does_not_close() {
    let change: [fn(&mut Ctx, ConnId); 2] =
        [Ctx::clear_read_deadline, |ctx, id| ctx.set_read_deadline(id, 50 * SECOND)];
    for change in change {
        let (mut harness, _peer, id) = stopped(Script::default(), Limits::default());
        harness.ctx().set_read_deadline(id, 5 * SECOND);
        harness.turn();
        change(harness.ctx(), id);
        harness.advance(40 * SECOND);
        assert_eq!(harness.script().closed(id), None);
    }
}

#[test]
fn a_peer_that_takes_nothing_for_too_long_is_closed_and_one_that_takes_a_little_is_not() {
    let limits = Limits { write_stall_timeout: 10 * SECOND, output: 16 * 1024 * KIB, ..Limits::default() };
    for closing in [false, true] {
        let (mut harness, mut peer, id) = stopped(Script::default(), limits.clone());
        assert!(harness.ctx().send(id, &pattern(2 * 1024 * KIB)).is_accepted());
        if closing {
            harness.ctx().close_after_flush(id);
        }
        harness.turn();
        for _ in 0..3 {
            harness.advance(10 * SECOND - INSTANT);
            assert_eq!(harness.script().closed(id), None);
            let queued = harness.ctx().queued(id);
            // Enough for an edge: the loop writes some more.
            harness.receive(&mut peer, 200 * KIB);
            harness.until_loop("some progress", |it| it.ctx().queued(id) < queued);
        }
        harness.settle();
        peer.drain();
        harness.settle();
        harness.advance(10 * SECOND);
        assert_eq!(harness.script().closed(id), Some(CloseReason::WriteStalled));
        assert!(harness.script().stats[&id].bytes_unsent > 0);
        assert_eq!(harness.ctx().buffered(), 0);
    }
}

#[test]
fn a_connection_with_nothing_to_write_never_counts_as_stalled() {
    let limits = Limits { write_stall_timeout: SECOND, ..Limits::default() };
    let (mut harness, mut peer, id) = stopped(Script::default(), limits);
    peer.say(b"x");
    harness.receive(&mut peer, 1);
    assert!(harness.ctx().send(id, &pattern(500 * KIB)).is_accepted());
    harness.turn();
    harness.receive(&mut peer, 500 * KIB);
    harness.advance(100 * SECOND);
    assert_eq!(harness.script().closed(id), None);
}

#[test]
fn the_end_that_comes_due_with_a_timer_makes_the_timer_pointless() {
    let (mut harness, _peer, id) = stopped(Script::default(), Limits::default());
    harness.ctx().set_timer(id, SECOND);
    harness.ctx().set_read_deadline(id, SECOND);
    harness.advance(SECOND);
    harness.advance(SECOND);
    assert_eq!(harness.script().closed(id), Some(CloseReason::ReadTimeout));
    assert_eq!(fired(&mut harness, id), 0);
}

#[test]
fn a_timer_outlives_neither_its_connection_nor_reaches_the_slot_s_next_owner() {
    let (mut harness, peer, id) = stopped(Script::default(), Limits::default());
    harness.ctx().set_timer(id, SECOND);
    drop(peer);
    harness.closed(id);
    let (_peer, next) = harness.open();
    assert_eq!(next.index(), id.index());
    harness.advance(2 * SECOND);
    assert_eq!(harness.script().count(|call| matches!(call, Call::Timer(_))), 0);
}

#[test]
fn ticks_come_at_their_period_and_missed_ones_are_not_made_up_for() {
    let (mut harness, _peer, _) =
        stopped(Script::default(), Limits { tick: Some(SECOND), ..Limits::default() });
    harness.advance(SECOND);
    let ticks = |harness: &mut Harness| harness.script().count(|call| *call == Call::Tick);
    let before = ticks(&mut harness);
    harness.advance(SECOND - INSTANT);
    assert_eq!(ticks(&mut harness) - before, 0);
    harness.advance(INSTANT);
    assert_eq!(ticks(&mut harness) - before, 1);
    harness.advance(10 * SECOND);
    assert_eq!(ticks(&mut harness) - before, 2);
}

#[test]
fn a_tick_wakes_a_loop_that_has_nothing_else_to_do() {
    let mut harness = Harness::with(
        Script::default(),
        Limits { tick: Some(Duration::from_millis(20)), ..Limits::default() },
    );
    let started = Instant::now();
    while harness.script().calls.len() < 2 {
        harness.reactor.turn(None).unwrap();
    }
    assert!(started.elapsed() >= Duration::from_millis(35));
}
