//! Ends: the ways to close, resets, and what an id means afterwards. What follows a close is in `lingering.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::cell::RefCell;
use std::io::ErrorKind;
use std::rc::Rc;
use std::time::Duration;

use epoll_reactor::{CloseReason, ConnId, Ctx, Errno, Limits, SendOutcome};
use support::{Call, Harness, KIB, Method, Peer, Script, assert_same, pattern};

#[test]
fn close_now_drops_what_the_kernel_has_not_taken() {
    let mut harness = Harness::unix(Script::default(), Limits::default());
    let (mut peer, id) = harness.open();
    assert!(harness.ctx().send(id, &pattern(1024 * KIB)).is_accepted());
    harness.turn();
    let unsent = harness.ctx().queued(id);
    harness.ctx().close_now(id);
    harness.turn();
    assert_eq!(harness.script().closed(id), Some(CloseReason::Local));
    let stats = harness.script().stats[&id];
    assert_eq!((stats.bytes_unsent, stats.bytes_sent), (unsent as u64, (1024 * KIB - unsent) as u64));
    let (received, end) = harness.receive_all(&mut peer);
    end.unwrap();
    assert_same(&received, &pattern(1024 * KIB - unsent));
    assert_eq!(harness.ctx().buffered(), 0);
}

#[test]
fn abort_sends_a_reset() {
    for sent_before in [false, true] {
        let mut harness = Harness::new(Script::default());
        let (mut peer, id) = harness.open();
        if sent_before {
            harness.ctx().close_after_flush(id);
            harness.turn();
        }
        harness.ctx().abort(id);
        assert_eq!(harness.closed(id), CloseReason::Local);
        let error = harness.receive_all(&mut peer).1;
        match error {
            Err(error) => assert_eq!(error.kind(), ErrorKind::ConnectionReset),
            // The FIN was there first; then comes the reset.
            Ok(()) => assert!(sent_before),
        }
    }
}

#[test]
fn a_reset_by_the_peer_ends_a_connection_that_is_reading_paused_or_blocked() {
    let states: [fn(&mut Ctx, ConnId); 3] = [
        |_, _| (),
        |ctx, id| ctx.pause_reading(id),
        |ctx, id| assert!(ctx.send(id, &pattern(16 * 1024 * KIB)).is_accepted()),
    ];
    for state in states {
        let limits = Limits { output: 32 * 1024 * KIB, ..Limits::default() };
        let mut harness = Harness::with(Script::default(), limits);
        let (peer, id) = harness.open();
        state(harness.ctx(), id);
        harness.settle();
        peer.reset();
        assert_eq!(harness.closed(id), CloseReason::Reset);
        assert_eq!(harness.ctx().buffered(), 0);
    }
}

/// It is told of once, with the bytes behind which the handler stops reading.
#[test]
fn a_reset_that_comes_with_the_last_bytes_ends_a_connection_that_is_paused_because_of_them() {
    // At once, or after a turn on the ready list.
    for again in [false, true] {
        let mut seen = 0;
        let mut harness = Harness::new(Script::default().data(move |ctx, id, input| {
            seen += 1;
            if again && seen == 1 {
                ctx.read_again(id);
                return 1;
            }
            ctx.pause_reading(id);
            input.len()
        }));
        let (mut peer, id) = harness.open();
        peer.say(b"question");
        peer.reset();
        assert_eq!(harness.closed(id), CloseReason::Reset, "again: {again}");
    }
}

#[test]
fn on_close_comes_once_however_often_and_from_wherever_a_close_is_asked_for() {
    let mut harness = Harness::new(Script::default().data(|ctx, id, input| {
        ctx.close_after_flush(id);
        ctx.close_now(id);
        ctx.abort(id);
        ctx.close_now(id);
        input.len()
    }));
    let (mut peer, id) = harness.open();
    peer.say(b"x");
    harness.closed(id);
    harness.ctx().close_now(id);
    harness.ctx().abort(id);
    harness.settle();
    assert_eq!(harness.script().count(|call| matches!(call, Call::Close(..))), 1);
    assert_eq!(harness.ctx().counters().closed, 1);
}

#[test]
fn a_connection_closed_in_on_open_hears_of_nothing_but_its_end() {
    let mut harness = Harness::new(Script::default().open(Ctx::close_now));
    let mut peer = harness.connect();
    peer.say(b"never seen");
    harness.until("the end", |script| script.calls.len() == 2);
    let id = harness.script().opened()[0];
    assert_eq!(harness.script().calls, [Call::Open(id), Call::Close(id, CloseReason::Local)]);
}

#[test]
fn a_connection_closed_by_another_s_callback_is_not_served_though_its_event_is_in_the_batch() {
    // Whoever is served first closes the other.
    let close: [fn(&mut Ctx, ConnId); 3] = [Ctx::close_now, Ctx::abort, Ctx::close_after_flush];
    for close in close {
        let mut harness = Harness::new(Script::default().data(move |ctx, id, input| {
            for index in 0..2 {
                let other = ConnId::from_u64(1 << 32 | index);
                if other != id {
                    close(ctx, other);
                }
            }
            input.len()
        }));
        let mut peers: [(Peer, ConnId); 2] = harness.open_many();
        peers.iter_mut().for_each(|(peer, _)| peer.say(b"x"));
        harness.turn_for(Duration::from_secs(1));
        assert_eq!(harness.script().count(|call| matches!(call, Call::Data(..))), 1);
        drop(peers);
        harness.until("both ends", |script| script.count(|call| matches!(call, Call::Close(..))) == 2);
    }
}

#[test]
fn on_close_can_still_name_the_peer_and_whoever_is_told_later_cannot() {
    let told = Rc::new(RefCell::new(Vec::new()));
    let note = told.clone();
    let script = Script::default().close(move |ctx, id| note.borrow_mut().push(ctx.peer_address(id)));
    let mut harness = Harness::new(script);
    let (peer, id) = harness.open();
    let address = harness.ctx().peer_address(id);
    assert!(address.is_some());
    drop(peer);
    harness.closed(id);
    assert_eq!(*told.borrow(), [address]);
    assert_eq!(harness.ctx().peer_address(id), None);
}

#[test]
fn an_old_id_never_reaches_the_next_owner_of_its_slot() {
    let mut harness = Harness::new(Script::default());
    let (first, old) = harness.open();
    drop(first);
    harness.closed(old);
    let (mut second, new) = harness.open();
    assert_eq!((old.index(), old == new), (new.index(), false));
    assert_eq!(harness.ctx().send(old, b"x"), SendOutcome::Gone(b"x".as_slice()));
    assert!(!harness.ctx().is_open(old) && harness.ctx().peer_address(old).is_none());
    for call in [
        Ctx::close_now,
        Ctx::close_after_flush,
        Ctx::abort,
        Ctx::pause_reading,
        Ctx::resume_reading,
        Ctx::read_again,
    ] {
        call(harness.ctx(), old);
    }
    harness.ctx().set_timer(old, Duration::ZERO);
    harness.ctx().set_read_deadline(old, Duration::ZERO);
    harness.settle();
    second.say(b"mine");
    assert_eq!(harness.receive(&mut second, 4), b"mine");
}

#[test]
fn an_event_for_a_closed_connection_is_counted_and_nothing_else() {
    let mut harness = Harness::new(Script::default());
    harness.kernel.hold_duplicates.set(true);
    let (mut first, old) = harness.open();
    harness.ctx().close_now(old);
    harness.turn();
    let (mut second, new) = harness.open();
    assert_eq!(old.index(), new.index());
    // The duplicate of its descriptor lives, so its events go on.
    let stale = harness.ctx().counters().stale_events;
    first.say(b"to nobody");
    harness.until_loop("a stale event", |it| it.ctx().counters().stale_events > stale);
    second.say(b"mine");
    assert_eq!(harness.receive(&mut second, 4), b"mine");
    assert_eq!(harness.script().inputs(new), [b"mine"]);
}

#[test]
fn an_ended_connection_leaves_no_descriptor_behind() {
    let count = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let mut harness = Harness::new(Script::default());
    harness.open();
    // Other tests of this process open and close descriptors meanwhile: so many that it shows.
    let before = count();
    for round in 0..600 {
        let (peer, id) = harness.open();
        if round % 2 == 0 {
            harness.ctx().close_now(id);
        }
        drop(peer);
        harness.closed(id);
    }
    assert!(count() < before + 300);
}

#[test]
fn the_last_words_say_how_much_was_carried() {
    let mut harness = Harness::new(Script::default());
    let (mut peer, id) = harness.open();
    peer.say(b"12345");
    harness.receive(&mut peer, 5);
    drop(peer);
    harness.closed(id);
    let stats = harness.script().stats[&id];
    assert_eq!((stats.bytes_received, stats.bytes_sent, stats.bytes_unsent), (5, 5, 0));
}

#[test]
fn an_error_that_no_read_explains_ends_a_paused_connection() {
    let mut harness = Harness::new(Script::default());
    let (peer, id) = harness.open();
    harness.ctx().pause_reading(id);
    harness.settle();
    harness.kernel.fail_for(id, Method::TakeError, Errno::ETIMEDOUT, 1);
    peer.reset();
    assert_eq!(harness.closed(id), CloseReason::Error(Errno::ETIMEDOUT));
}

#[test]
fn what_cuts_the_last_output_short_is_the_reason_and_not_that_it_was_closing() {
    type Row = (fn(&mut Harness, ConnId), CloseReason);
    let cut: [Row; 3] = [
        (|_, _| (), CloseReason::Reset),
        (
            |it, id| it.kernel.fail_for(id, Method::Writev, Errno::ENOBUFS, 1),
            CloseReason::Error(Errno::ENOBUFS),
        ),
        (
            |it, id| it.kernel.fail_for(id, Method::Send, Errno::ENOBUFS, 1),
            CloseReason::Error(Errno::ENOBUFS),
        ),
    ];
    for (index, (cut, reason)) in cut.into_iter().enumerate() {
        let mut harness = Harness::unix(Script::default(), Limits::default());
        let (peer, id) = harness.open();
        // Two pieces, so that a writev is due; or one, for a send.
        assert!(harness.ctx().send(id, &pattern(1024 * KIB)).is_accepted());
        if index < 2 {
            assert!(harness.ctx().send(id, &pattern(20 * KIB)).is_accepted());
        }
        harness.ctx().close_after_flush(id);
        harness.turn();
        assert!(harness.ctx().queued(id) > 0);
        cut(&mut harness, id);
        drop(peer);
        assert_eq!(harness.closed(id), reason);
        assert!(harness.script().stats[&id].bytes_unsent > 0);
        assert_eq!(harness.ctx().buffered(), 0);
    }
}
