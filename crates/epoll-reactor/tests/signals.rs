//! Signals that the handler is told of, alone and beside those that end the loop.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use epoll_reactor::{Errno, Signal, Stopped, block_signals};
use nix::sys::signal::{Signal as NixSignal, raise};
use support::{Call, Harness, Method, Script};

fn told(script: &Script) -> Vec<Signal> {
    let signals = script.calls.iter();
    signals.filter_map(|call| if let Call::Signal(signal) = call { Some(*signal) } else { None }).collect()
}

#[test]
fn the_handler_is_told_of_each_and_the_loop_goes_on() {
    let mut harness = Harness::new(Script::default());
    let signals = [Signal::Hangup, Signal::User1];
    block_signals(&signals).unwrap();
    harness.reactor.watch_signals(&signals).unwrap();
    let (mut peer, _) = harness.open();
    for round in 1..=3 {
        raise(NixSignal::SIGUSR1).unwrap();
        harness.until("the signal", |script| told(script).len() == round);
    }
    // Two that come together are told one by one, and two of one kind are one to the kernel.
    for signal in [NixSignal::SIGUSR1, NixSignal::SIGHUP, NixSignal::SIGUSR1] {
        raise(signal).unwrap();
    }
    harness.turn();
    let user = Signal::User1;
    assert_eq!(told(harness.script()), [user, user, user, Signal::Hangup, user]);
    harness.settle();
    assert_eq!(told(harness.script()).len(), 5);
    peer.say(b"x");
    assert_eq!(harness.receive(&mut peer, 1), b"x");
    assert!(!harness.ctx().is_draining());
}

#[test]
fn signals_that_end_the_loop_are_a_set_of_their_own() {
    let mut harness = Harness::new(Script::default().shutdown(|_, _| ()));
    block_signals(&[Signal::Hangup, Signal::User1, Signal::Terminate, Signal::User2]).unwrap();
    harness.reactor.watch_signals(&[Signal::Hangup]).unwrap();
    harness.reactor.drain_on_signals(&[Signal::Terminate, Signal::User2]).unwrap();
    harness.reactor.watch_signals(&[Signal::User1]).unwrap();
    let (_peer, id) = harness.open();
    raise(NixSignal::SIGTERM).unwrap();
    harness.until("the drain", |script| script.calls.contains(&Call::Shutdown(id)));
    // Neither is a second signal to stop; a drain that takes its time still reopens its log.
    for signal in [NixSignal::SIGHUP, NixSignal::SIGUSR1] {
        raise(signal).unwrap();
    }
    harness.until("both", |script| told(script).len() == 2);
    harness.settle();
    assert_eq!(harness.script().closed(id), None);
    raise(NixSignal::SIGUSR2).unwrap();
    assert_eq!(harness.run_to_end(), Stopped::Forced);
    assert_eq!(told(harness.script()).len(), 2);
}

#[test]
fn one_that_is_raised_by_the_callback_comes_later_and_one_interrupted_is_not_lost() {
    block_signals(&[Signal::User2]).unwrap();
    let mut harness = Harness::new(Script::default().signal(|_, _| raise(NixSignal::SIGUSR2).unwrap()));
    harness.reactor.watch_signals(&[Signal::User2]).unwrap();
    harness.kernel.fail(Method::ReadSignal, Errno::EINTR, 3);
    raise(NixSignal::SIGUSR2).unwrap();
    for turn in 1..=5 {
        harness.turn();
        assert_eq!(told(harness.script()).len(), turn);
    }
}

#[test]
fn a_callback_for_a_signal_may_use_the_loop_and_may_panic() {
    block_signals(&[Signal::Hangup, Signal::User1]).unwrap();
    let mut harness = Harness::new(Script::default().signal(|ctx, signal| {
        assert_eq!(signal, Signal::User1, "a panic, on purpose");
        ctx.drain(ctx.limits().drain_grace);
    }));
    harness.allow_panics = true;
    harness.reactor.watch_signals(&[Signal::Hangup, Signal::User1]).unwrap();
    raise(NixSignal::SIGHUP).unwrap();
    harness.until("the panic", |script| told(script).len() == 1);
    assert_eq!(harness.ctx().counters().panics, 1);
    raise(NixSignal::SIGUSR1).unwrap();
    assert_eq!(harness.run_to_end(), Stopped::Drained);
}

#[test]
fn a_hook_for_a_signal_looks_at_the_loop_and_the_handler_is_not_told() {
    block_signals(&[Signal::User1]).unwrap();
    let (tell, told_of) = std::sync::mpsc::channel();
    let mut harness = Harness::new(Script::default());
    harness.allow_panics = true;
    let hook = move |ctx: &epoll_reactor::Ctx| {
        tell.send(ctx.connections()).unwrap();
        assert!(ctx.connections() < 2, "it may panic as a callback may");
    };
    harness.reactor.inspect_on_signals(&[Signal::User1], hook).unwrap();
    let mut peers = Vec::new();
    for round in 1..=3 {
        peers.push(harness.open());
        raise(NixSignal::SIGUSR1).unwrap();
        harness.turn();
        assert_eq!(told_of.try_iter().collect::<Vec<_>>(), [round], "once for each");
    }
    assert_eq!(harness.ctx().counters().panics, 2);
    assert_eq!(told(harness.script()), []);
}
