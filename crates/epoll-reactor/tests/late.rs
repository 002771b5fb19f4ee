//! A loop that is late, and how operators hear of it: in its numbers.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::time::Duration;

use epoll_reactor::{Errno, HistogramSnapshot, Limits};
use support::{Harness, Method, Script};

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
