//! A loop that is late, and how operators hear of it: in its numbers, and, where it is much, in the log.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::cell::OnceCell;
use std::rc::Rc;
use std::time::Duration;

use epoll_reactor::{Errno, HistogramSnapshot, Limits};
use support::{Controls, Harness, Method, Script, warnings};

fn ticking() -> Limits {
    Limits { tick: Some(Duration::from_secs(1)), ..Limits::default() }
}

fn milliseconds(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

/// A harness whose clock stands still, at a time when a tick has just come.
fn at_a_tick(script: Script) -> Harness {
    let mut harness = Harness::with(script, ticking());
    harness.stop_clock();
    harness.advance(milliseconds(1000));
    harness
}

fn lag(harness: &Harness, before: &HistogramSnapshot) -> (u64, Duration) {
    let lag = harness.reactor.metrics().read().timer_lag.since(before);
    (lag.count(), lag.sum)
}

#[test]
fn a_deadline_that_is_noticed_after_its_time_was_late_by_as_much() {
    let mut harness = at_a_tick(Script::default());
    let (_peer, id) = harness.open();
    harness.settle();
    let before = harness.reactor.metrics().read();
    harness.advance(milliseconds(999));
    assert_eq!(lag(&harness, &before.timer_lag), (0, Duration::ZERO), "none has come");
    harness.advance(milliseconds(1));
    assert_eq!(lag(&harness, &before.timer_lag), (1, Duration::ZERO), "a tick, in time");
    harness.advance(milliseconds(1300));
    assert_eq!(lag(&harness, &before.timer_lag), (2, milliseconds(300)));
    harness.ctx().set_timer(id, milliseconds(100));
    harness.advance(milliseconds(120));
    assert_eq!(lag(&harness, &before.timer_lag), (3, milliseconds(320)), "a connection's");
    let after = harness.reactor.metrics().read();
    assert_eq!(after.timer_lag.longest, milliseconds(300));
    assert_eq!(after.poll_lag.since(&before.poll_lag).sum, Duration::ZERO, "the waits were for nothing else");
}

#[test]
fn a_deadline_that_is_put_off_is_noticed_once() {
    let mut harness = at_a_tick(Script::default());
    let before = harness.reactor.metrics().read().timer_lag;
    harness.kernel.fail(Method::Wait, Errno::EINTR, 3);
    harness.kernel.advance(milliseconds(1200));
    let ticks = harness.ctx().counters().turns;
    while harness.ctx().counters().turns < ticks + 5 {
        harness.turn();
        harness.kernel.advance(milliseconds(10));
    }
    assert_eq!(lag(&harness, &before), (1, milliseconds(200)));
}

#[test]
fn a_loop_that_did_not_run_says_so_and_not_too_often() {
    assert!(warnings().is_empty());
    let mut harness = at_a_tick(Script::default());
    // How long nothing runs, behind a tick, and how many lines there are then.
    for (pause, lines) in [(1999, 0), (4200, 1), (3000, 1), (10_000, 2)] {
        harness.advance(milliseconds(pause));
        assert_eq!(warnings().len(), lines, "after {pause} ms: {:?}", warnings());
    }
    let first = &warnings()[0];
    assert!(first.ends_with(" did not run for 3.2 s: the process was stopped, or had no CPU"), "{first}");
}

#[test]
fn a_turn_of_a_second_or_more_says_so_and_is_not_taken_for_a_pause() {
    assert!(warnings().is_empty());
    let kernel: Rc<OnceCell<Rc<Controls>>> = Rc::default();
    let inside = Rc::clone(&kernel);
    let script = Script::default().data(move |_, _, input| {
        inside.get().unwrap().advance(milliseconds(u64::from(input[0]) * 100));
        input.len()
    });
    let mut harness = at_a_tick(script);
    let controls = Rc::clone(kernel.get_or_init(|| Rc::clone(&harness.kernel)));
    let (mut peer, id) = harness.open();
    for (tenths, pause, lines) in [(9, 0, 0), (36, 0, 1), (20, 8000, 1), (20, 0, 2)] {
        let inputs = harness.script().inputs(id).len();
        peer.say(&[tenths]);
        harness.until("the input", |script| script.inputs(id).len() > inputs);
        harness.turn();
        // In small steps: it is not to be held up by anything else.
        (0..pause / 100).for_each(|_| harness.advance(milliseconds(100)));
        assert_eq!(warnings().len(), lines, "after {tenths}: {:?}", warnings());
    }
    drop(controls);
    let first = &warnings()[0];
    assert!(
        first
            .contains(" was in one turn for 3.6 s, in which everybody else waited (events: 1, callbacks: 1)"),
        "{first}"
    );
}
