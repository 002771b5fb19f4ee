//! A callback that panics: it costs its own connection, or by policy the loop, and nothing else.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::io::Read;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use epoll_reactor::{CloseReason, ConnId, Ctx, Interest, Limits, PanicPolicy};
use support::{Call, Harness, KIB, Peer, Script, pattern};

/// The first slot's first connection: the one whose callbacks panic.
const SICK: ConnId = ConnId::from_u64(1 << 32);

fn panic_if_sick(_: &mut Ctx, id: ConnId) {
    assert_ne!(id, SICK, "on purpose");
}

fn harness(script: Script, limits: Limits) -> Harness {
    let mut harness = Harness::with(script, limits);
    harness.allow_panics = true;
    harness
}

#[test]
fn a_panic_in_a_connection_s_callback_closes_that_connection_alone() {
    type Row = (&'static str, fn() -> Script, fn(&mut Harness, &mut Peer));
    let rows: [Row; 7] = [
        ("on_open", || Script::default().open(panic_if_sick), |_, _| ()),
        (
            "on_data",
            || {
                Script::default().data(|ctx, id, input| {
                    assert!(ctx.send(id, input).is_accepted());
                    panic_if_sick(ctx, id);
                    input.len()
                })
            },
            |_, peer| peer.say(b"x"),
        ),
        ("on_eof", || Script::default().eof(|ctx, id, _| panic_if_sick(ctx, id)), |_, peer| peer.finish()),
        (
            "on_timer",
            || Script::default().timer(panic_if_sick),
            |it, _| it.ctx().set_timer(SICK, Duration::ZERO),
        ),
        (
            "on_drain",
            || Script::default().drain(panic_if_sick),
            |it, _| assert!(it.ctx().send(SICK, &pattern(300 * KIB)).is_accepted()),
        ),
        (
            "on_data with a tail",
            || {
                Script::default().data(|ctx, id, input| {
                    if input.len() > 1 {
                        panic_if_sick(ctx, id);
                        assert!(ctx.send(id, &input[..1]).is_accepted());
                    }
                    input.len() - 1
                })
            },
            |it, peer| {
                peer.say(b"x");
                it.until("the tail", |script| script.inputs(SICK).len() == 1);
                peer.say(b"y");
            },
        ),
        ("on_close", || Script::default().close(panic_if_sick), |it, _| it.ctx().close_now(SICK)),
    ];
    for (name, script, prepare) in rows {
        let mut harness = harness(script(), Limits::default());
        let (mut sick, _) = harness.open();
        if name != "on_open" {
            prepare(&mut harness, &mut sick);
        }
        // Only then: whoever comes to the slot next must not be taken for the sick one.
        let reason = harness.closed(SICK);
        let expected = if name == "on_close" { CloseReason::Local } else { CloseReason::HandlerPanicked };
        assert_eq!(reason, expected, "{name}");
        assert_eq!(harness.ctx().counters().panics, 1, "{name}");
        assert_eq!(harness.ctx().buffered(), 0, "{name}");
        let (mut well, id) = harness.open();
        well.say(b"xy");
        harness.until("input", |script| !script.inputs(id).is_empty());
        assert_eq!(harness.receive(&mut well, 1), b"x", "{name}: the loop goes on");
        // Nothing of what the panicking callback had said goes out.
        assert!(harness.receive_all(&mut sick).0.len() != 1, "{name}");
    }
}

#[test]
fn others_whose_events_are_in_the_same_batch_are_served() {
    let script = Script::default().data(|ctx, id, input| {
        panic_if_sick(ctx, id);
        assert!(ctx.send(id, input).is_accepted());
        input.len()
    });
    let mut harness = harness(script, Limits::default());
    let mut peers: [(Peer, ConnId); 3] = harness.open_many();
    peers.iter_mut().for_each(|(peer, _)| peer.say(b"hello"));
    assert_eq!(harness.closed(SICK), CloseReason::HandlerPanicked);
    for (peer, _) in &mut peers[1..] {
        assert_eq!(harness.receive(peer, 5), b"hello");
    }
}

#[test]
fn a_panic_that_belongs_to_no_connection_closes_none() {
    let script = Script::default()
        .message(|_, number| assert_ne!(number, 7, "on purpose"))
        .tick(|_| panic!("on purpose"))
        .ready(|_, _, _| panic!("on purpose"));
    let mut harness = harness(script, Limits { tick: Some(Duration::from_millis(10)), ..Limits::default() });
    let (mut peer, _) = harness.open();
    let (reader, writer) = nix::unistd::pipe2(nix::fcntl::OFlag::O_NONBLOCK).unwrap();
    harness.reactor.watch(reader, Interest::Readable).unwrap();
    drop(writer);
    let remote = harness.remote();
    [7, 8].into_iter().for_each(|message| remote.send(message).unwrap());
    harness.until_loop("the panics", |it| {
        let ready = it.script().calls.iter().any(|call| matches!(call, Call::Ready(..)));
        it.ctx().counters().panics >= 4 && ready && it.script().messages() == [7, 8]
    });
    peer.say(b"x");
    assert_eq!(harness.receive(&mut peer, 1), b"x");
    assert_eq!(harness.script().count(|call| matches!(call, Call::Close(..))), 0);
}

#[test]
fn a_panic_in_on_shutdown_does_not_keep_the_loop_from_draining() {
    let mut harness = harness(Script::default().shutdown(panic_if_sick), Limits::default());
    let peers: [(Peer, ConnId); 2] = harness.open_many();
    harness.ctx().drain(Duration::from_secs(5));
    assert_eq!(harness.closed(SICK), CloseReason::HandlerPanicked);
    drop(peers);
    harness.run_to_end();
    assert_eq!(harness.script().count(|call| matches!(call, Call::Shutdown(_))), 2, "the other was told too");
}

#[test]
fn by_policy_a_panic_goes_on_to_whoever_runs_the_loop() {
    let limits = Limits { panics: PanicPolicy::Propagate, ..Limits::default() };
    let mut harness = Harness::with(Script::default().data(|_, _, _| panic!("on purpose")), limits);
    let (mut peer, _) = harness.open();
    peer.say(b"x");
    let caught = catch_unwind(AssertUnwindSafe(|| {
        let started = std::time::Instant::now();
        while started.elapsed() < support::PATIENCE {
            harness.reactor.turn(Some(Duration::from_millis(5))).unwrap();
        }
    }));
    assert_eq!(caught.unwrap_err().downcast_ref::<&str>(), Some(&"on purpose"));
    // The turn was left half way; going on would break promises, and an error says so.
    assert!(harness.reactor.turn(Some(Duration::ZERO)).is_err());
}

#[test]
fn by_policy_a_panic_costs_the_callbacks_before_it_none_of_their_answers() {
    let limits = Limits { panics: PanicPolicy::Propagate, ..Limits::default() };
    let script = Script::default().data(|ctx, id, input| {
        assert!(ctx.send(id, input).is_accepted());
        assert_ne!(input, b"panic", "on purpose");
        input.len()
    });
    let mut harness = Harness::with(script, limits);
    let mut peers: [(Peer, ConnId); 3] = harness.open_many();
    harness.settle();
    // One wait finds all of them, in this order.
    for ((peer, _), said) in peers.iter_mut().zip(["one", "two", "panic"]) {
        peer.say(said.as_bytes());
    }
    let before = harness.kernel.writes();
    catch_unwind(AssertUnwindSafe(|| harness.turn())).unwrap_err();
    assert_eq!(harness.kernel.writes(), before, "both were to leave with the third");
    drop(harness);
    for ((peer, _), expected) in peers.iter_mut().zip(["one", "two", ""]) {
        let mut received = Vec::new();
        peer.read_to_end(&mut received).unwrap();
        assert_eq!(received, expected.as_bytes());
    }
}
