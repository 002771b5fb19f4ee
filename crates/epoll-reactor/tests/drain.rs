//! The end of the loop: refuse, tell, let finish, and not for ever.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::net::TcpStream;
use std::time::Duration;

use epoll_reactor::{Address, CloseReason, Ctx, Errno, Limits, Signal, Stopped, Turn, block_signals};
use support::{Call, Harness, KIB, Method, Peer, Script, assert_same, pattern};

const GRACE: Duration = Duration::from_secs(5);

/// Answers no request before `finish`, and does not close at a drain while one is unanswered.
fn slow_answers() -> Script {
    Script::default()
        .data(|ctx, id, input| {
            ctx.set_timer(id, Duration::from_millis(30));
            input.len()
        })
        .timer(|ctx, id| {
            assert!(ctx.send(id, b"the answer").is_accepted());
            assert!(ctx.is_draining());
            ctx.close_after_flush(id);
        })
        .shutdown(|_, _| ())
}

#[test]
fn a_loop_without_connections_is_drained_at_once_whatever_the_grace() {
    for grace in [Duration::ZERO, GRACE, Duration::MAX] {
        let mut harness = Harness::new(Script::default());
        harness.ctx().drain(grace);
        assert_eq!(harness.turn(), Turn::Stopped(Stopped::Drained), "{grace:?}");
        assert_eq!(harness.turn(), Turn::Stopped(Stopped::Drained), "and stays so");
        assert_eq!(harness.reactor.run().unwrap(), Stopped::Drained);
    }
}

#[test]
fn a_draining_loop_refuses_new_clients_and_closes_idle_ones() {
    let mut harness = Harness::new(slow_answers());
    let Address::Tcp(address) = harness.address else { panic!() };
    let (mut peer, id) = harness.open();
    peer.say(b"request");
    harness.until("the request", |script| !script.inputs(id).is_empty());
    harness.ctx().drain(GRACE);
    harness.turn();
    assert!(TcpStream::connect(address).is_err());
    let itself = harness.address.clone();
    assert!(harness.ctx().connect(itself).is_none(), "and makes no new ones itself");
    assert_eq!(harness.receive_all(&mut peer).0, b"the answer");

    let mut harness = Harness::new(Script::default());
    let [(mut one, a), (mut two, b)] = harness.open_many();
    harness.ctx().drain(GRACE);
    harness.turn();
    for peer in [&mut one, &mut two] {
        let (received, end) = harness.receive_all(peer);
        end.unwrap();
        assert!(received.is_empty());
    }
    drop((one, two));
    assert_eq!(harness.run_to_end(), Stopped::Drained);
    assert_eq!(harness.script().closed(a), Some(CloseReason::Local));
    assert_eq!(harness.script().closed(b), Some(CloseReason::Local));
    assert_eq!(harness.script().count(|call| matches!(call, Call::Shutdown(_))), 2);
}

#[test]
fn a_request_in_progress_is_finished() {
    let mut harness = Harness::new(slow_answers());
    let (mut peer, id) = harness.open();
    peer.say(b"request");
    harness.until("the request", |script| !script.inputs(id).is_empty());
    harness.ctx().drain(GRACE);
    let (received, end) = harness.receive_all(&mut peer);
    end.unwrap();
    assert_eq!(received, b"the answer");
    drop(peer);
    assert_eq!(harness.run_to_end(), Stopped::Drained);
}

#[test]
fn a_request_that_comes_while_draining_is_heard_if_the_handler_keeps_the_connection() {
    let mut harness = Harness::new(slow_answers());
    let (mut peer, _) = harness.open();
    harness.ctx().drain(GRACE);
    harness.turn();
    peer.say(b"late request");
    let (received, end) = harness.receive_all(&mut peer);
    end.unwrap();
    assert_eq!(received, b"the answer");
}

#[test]
fn output_that_waits_is_delivered_to_a_slow_reader() {
    let mut harness = Harness::unix(Script::default(), Limits::default());
    let (mut peer, id) = harness.open();
    let sent = pattern(2 * 1024 * KIB);
    assert!(harness.ctx().send(id, &sent).is_accepted());
    harness.turn();
    harness.ctx().drain(GRACE);
    harness.settle();
    assert_eq!(harness.turn(), Turn::Continue);
    let (received, end) = harness.receive_all(&mut peer);
    end.unwrap();
    assert_same(&received, &sent);
    drop(peer);
    assert_eq!(harness.run_to_end(), Stopped::Drained);
}

#[test]
fn when_the_grace_has_passed_what_is_left_is_closed() {
    let mut harness = Harness::new(slow_answers());
    let (_peer, id) = harness.open();
    harness.stop_clock();
    harness.ctx().drain(GRACE);
    harness.advance(GRACE - Duration::from_nanos(1));
    assert_eq!(harness.script().closed(id), None);
    harness.kernel.advance(Duration::from_nanos(1));
    assert_eq!(harness.turn(), Turn::Stopped(Stopped::DeadlinePassed));
    assert_eq!(harness.script().closed(id), Some(CloseReason::Shutdown));
}

#[test]
fn the_grace_ends_a_wait_by_itself() {
    let mut harness = Harness::new(slow_answers());
    let (_peer, _) = harness.open();
    harness.ctx().drain(Duration::from_millis(30));
    assert_eq!(harness.reactor.run().unwrap(), Stopped::DeadlinePassed);
}

#[test]
fn connections_that_are_closing_already_are_not_told_but_waited_for_and_cut_off_in_the_end() {
    let mut harness = Harness::unix(Script::default(), Limits::default());
    let (_peer, id) = harness.open();
    harness.stop_clock();
    assert!(harness.ctx().send(id, &pattern(1024 * KIB)).is_accepted());
    harness.ctx().close_after_flush(id);
    harness.turn();
    harness.ctx().drain(GRACE);
    harness.advance(GRACE - Duration::from_nanos(1));
    assert_eq!(harness.script().closed(id), None);
    harness.kernel.advance(Duration::from_nanos(1));
    assert_eq!(harness.turn(), Turn::Stopped(Stopped::DeadlinePassed));
    assert_eq!(harness.script().closed(id), Some(CloseReason::Shutdown), "it cut the output short");
    assert_eq!(harness.script().count(|call| matches!(call, Call::Shutdown(_))), 0);
    assert_eq!(harness.ctx().buffered(), 0);
}

#[test]
fn asking_again_can_only_bring_the_end_nearer() {
    for (second, end) in [(Duration::from_secs(60), GRACE), (Duration::from_secs(1), Duration::from_secs(1))]
    {
        let mut harness = Harness::new(slow_answers());
        let (_peer, id) = harness.open();
        harness.stop_clock();
        harness.turn();
        harness.ctx().drain(GRACE);
        harness.turn();
        harness.ctx().drain(second);
        harness.advance(end - Duration::from_nanos(1));
        assert_eq!(harness.script().closed(id), None);
        harness.kernel.advance(Duration::from_nanos(1));
        assert_eq!(harness.turn(), Turn::Stopped(Stopped::DeadlinePassed));
        assert_eq!(harness.script().count(|call| matches!(call, Call::Shutdown(_))), 1, "told once");
    }
}

#[test]
fn a_drain_may_be_asked_for_by_any_callback() {
    let scripts: [fn() -> Script; 3] = [
        || Script::default().open(|ctx, _| ctx.drain(GRACE)),
        || {
            Script::default().data(|ctx, _, input| {
                ctx.drain(GRACE);
                input.len()
            })
        },
        || Script::default().close(|ctx, _| ctx.drain(GRACE)),
    ];
    for script in scripts {
        let mut harness = Harness::new(script());
        let (mut peer, _) = harness.open();
        peer.say(b"x");
        peer.finish();
        drop(peer);
        assert_eq!(harness.run_to_end(), Stopped::Drained);
        assert_eq!(harness.script().count(|call| matches!(call, Call::Close(..))), 1);
    }
}

#[test]
fn a_connection_that_is_still_being_made_is_given_up() {
    let mut harness = Harness::new(Script::default());
    let address = harness.address.clone();
    let id = harness.ctx().connect(address).unwrap();
    harness.ctx().drain(GRACE);
    assert_eq!(harness.run_to_end(), Stopped::Drained);
    assert_eq!(harness.script().calls, [Call::Close(id, CloseReason::Shutdown)]);
}

#[test]
fn the_first_signal_drains_and_the_second_forces() {
    block_signals(&[Signal::Terminate]).unwrap();
    let raise = || nix::sys::signal::raise(nix::sys::signal::Signal::SIGTERM).unwrap();
    // The second while draining, and both before the loop looks: two of one kind are one to the kernel.
    let mut harness = Harness::new(Script::default().shutdown(|_: &mut Ctx, _| ()));
    harness.reactor.drain_on_signals(&[Signal::Terminate]).unwrap();
    let [(_first, id), _second]: [(Peer, _); 2] = harness.open_many();
    // With the clock stopped, no deadline can pass.
    harness.stop_clock();
    raise();
    harness.until("the drain", |script| script.calls.contains(&Call::Shutdown(id)));
    harness.settle();
    assert_eq!(harness.script().closed(id), None);
    raise();
    assert_eq!(harness.run_to_end(), Stopped::Forced);
    assert_eq!(harness.script().closed(id), Some(CloseReason::Shutdown));
}

#[test]
fn two_signals_at_once_force() {
    block_signals(&[Signal::Interrupt, Signal::User1]).unwrap();
    let mut harness = Harness::new(Script::default().shutdown(|_: &mut Ctx, _| ()));
    harness.reactor.drain_on_signals(&[Signal::Interrupt, Signal::User1]).unwrap();
    let _peer = harness.open();
    harness.stop_clock();
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGINT).unwrap();
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGUSR1).unwrap();
    assert_eq!(harness.run_to_end(), Stopped::Forced);
}

#[test]
fn one_signal_is_enough_for_a_loop_whose_connections_end_by_themselves() {
    block_signals(&[Signal::Hangup]).unwrap();
    let mut harness = Harness::new(Script::default());
    harness.reactor.drain_on_signals(&[Signal::Hangup]).unwrap();
    let (peer, _) = harness.open();
    nix::sys::signal::raise(nix::sys::signal::Signal::SIGHUP).unwrap();
    harness.until("the drain", |script| script.count(|call| matches!(call, Call::Shutdown(_))) == 1);
    drop(peer);
    assert_eq!(harness.run_to_end(), Stopped::Drained);
}

#[test]
fn the_first_signal_after_a_drain_asked_for_otherwise_does_not_force_and_the_second_does() {
    block_signals(&[Signal::User2]).unwrap();
    let raise = || nix::sys::signal::raise(nix::sys::signal::Signal::SIGUSR2).unwrap();
    for by_remote in [false, true] {
        let mut harness = Harness::new(Script::default().shutdown(|_: &mut Ctx, _| ()));
        harness.reactor.drain_on_signals(&[Signal::User2]).unwrap();
        let (_peer, id) = harness.open();
        harness.settle();
        // With the clock stopped, no deadline can pass.
        harness.stop_clock();
        if by_remote {
            harness.remote().drain();
        } else {
            harness.ctx().drain(GRACE);
        }
        harness.until("the drain", |script| script.calls.contains(&Call::Shutdown(id)));
        // Whoever sent it cannot know of the other.
        raise();
        harness.settle();
        assert_eq!(harness.script().closed(id), None);
        assert_eq!(harness.script().count(|call| matches!(call, Call::Shutdown(_))), 1, "told once");
        raise();
        assert_eq!(harness.run_to_end(), Stopped::Forced);
        assert_eq!(harness.script().closed(id), Some(CloseReason::Shutdown));
    }
}

#[test]
fn a_signal_in_a_drain_can_only_bring_its_end_nearer() {
    block_signals(&[Signal::User1]).unwrap();
    let grace = Limits::default().drain_grace;
    for (asked, end) in [(grace * 2, grace), (grace / 2, grace / 2)] {
        let mut harness = Harness::new(Script::default().shutdown(|_: &mut Ctx, _| ()));
        harness.reactor.drain_on_signals(&[Signal::User1]).unwrap();
        let (_peer, id) = harness.open();
        harness.stop_clock();
        harness.turn();
        harness.ctx().drain(asked);
        nix::sys::signal::raise(nix::sys::signal::Signal::SIGUSR1).unwrap();
        harness.settle();
        harness.advance(end - Duration::from_nanos(1));
        assert_eq!(harness.script().closed(id), None);
        harness.kernel.advance(Duration::from_nanos(1));
        assert_eq!(harness.turn(), Turn::Stopped(Stopped::DeadlinePassed));
    }
}

#[test]
fn an_interrupted_read_of_a_signal_loses_none() {
    block_signals(&[Signal::User2]).unwrap();
    for interruptions in [1, 3] {
        let mut harness = Harness::new(Script::default().shutdown(|_: &mut Ctx, _| ()));
        harness.reactor.drain_on_signals(&[Signal::User2]).unwrap();
        let _peer = harness.open();
        harness.stop_clock();
        harness.turn();
        // In the turn that hears of it: no other edge comes.
        for signals in 1..=2 {
            harness.kernel.fail(Method::ReadSignal, Errno::EINTR, interruptions);
            nix::sys::signal::raise(nix::sys::signal::Signal::SIGUSR2).unwrap();
            harness.turn();
            assert!(harness.ctx().is_draining(), "after {interruptions} interruptions");
            assert_eq!(harness.ctx().connections(), 2 - signals);
        }
        assert_eq!(harness.turn(), Turn::Stopped(Stopped::Forced));
    }
}
