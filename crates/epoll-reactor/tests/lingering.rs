//! After our last word: reading on until the peer has got it all, and not for ever.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::time::Duration;

use bytes::Bytes;
use epoll_reactor::{CloseReason, ConnId, Ctx, Limits};
use support::{Harness, KIB, Method, Peer, Script, assert_same, pattern};

/// Far more than the kernel's buffers hold at first.
const MUCH: usize = 1024 * KIB;

/// Answers the first input and closes.
fn one_answer(answer: Vec<u8>) -> Script {
    Script::default().data(move |ctx, id, input| {
        assert!(ctx.send(id, &answer).is_accepted());
        ctx.close_after_flush(id);
        input.len()
    })
}

fn quick_linger() -> Limits {
    Limits { linger_quiet: Duration::from_millis(50), ..Limits::default() }
}

#[test]
fn close_after_flush_delivers_the_whole_answer_though_the_peer_goes_on_sending() {
    for (answer, unread) in [(8000, 100 * KIB), (2 * 1024 * KIB, 300 * KIB)] {
        let mut harness = Harness::with(one_answer(pattern(answer)), quick_linger());
        let (mut peer, id) = harness.open();
        peer.say(b"request");
        let mut still_to_send = unread;
        // Before, while and after the answer is on its way.
        still_to_send -= peer.write_some(&pattern(10 * KIB));
        harness.until("the input", |script| !script.inputs(id).is_empty());
        let received = harness.receive(&mut peer, answer / 2);
        harness.write(&mut peer, &pattern(still_to_send));
        peer.finish();
        let (rest, end) = harness.receive_all(&mut peer);
        end.unwrap();
        assert_same(&[received, rest].concat(), &pattern(answer));
        assert_eq!(harness.closed(id), CloseReason::Local);
    }
}

#[test]
fn a_lingering_connection_is_gone_as_soon_as_the_peer_closes_too() {
    let mut harness = Harness::with(one_answer(b"bye".to_vec()), Limits::default());
    let (mut peer, id) = harness.open();
    harness.stop_clock();
    peer.say(b"x");
    let (received, end) = harness.receive_all(&mut peer);
    end.unwrap();
    assert_eq!(received, b"bye");
    assert_eq!(harness.script().closed(id), None, "the peer may still be sending");
    drop(peer);
    assert_eq!(harness.closed(id), CloseReason::Local, "with the clock stopped: not by any timeout");
}

/// A connection that has sent its answer and FIN, with the clock stopped.
fn lingering(limits: Limits) -> (Harness, Peer, ConnId) {
    let mut harness = Harness::with(one_answer(b"bye".to_vec()), limits);
    let (mut peer, id) = harness.open();
    harness.stop_clock();
    peer.say(b"x");
    let (_, end) = harness.receive_all(&mut peer);
    end.unwrap();
    (harness, peer, id)
}

/// Has the loop read one more byte of it.
fn trickle(harness: &mut Harness, peer: &mut Peer) {
    peer.say(b"x");
    let before = harness.kernel.count(Method::Recv);
    harness.until_loop("the byte", |it| it.kernel.count(Method::Recv) > before);
}

#[test]
fn lingering_ends_when_the_peer_is_quiet_for_long_enough() {
    let (mut harness, mut peer, id) = lingering(Limits::default());
    harness.advance(Duration::from_millis(900));
    trickle(&mut harness, &mut peer);
    harness.advance(Duration::from_millis(900));
    assert_eq!(harness.script().closed(id), None, "the byte counted");
    harness.advance(Duration::from_millis(100));
    assert_eq!(harness.script().closed(id), Some(CloseReason::Local));
}

#[test]
fn lingering_ends_in_time_however_busily_the_peer_goes_on() {
    let (mut harness, mut peer, id) = lingering(Limits::default());
    for _ in 0..19 {
        trickle(&mut harness, &mut peer);
        assert_eq!(harness.script().closed(id), None);
        harness.advance(Duration::from_millis(500));
    }
    trickle(&mut harness, &mut peer);
    harness.advance(Duration::from_millis(500));
    assert_eq!(harness.script().closed(id), Some(CloseReason::Local));
}

#[test]
fn no_call_by_the_handler_makes_lingering_last_longer() {
    let late: [fn(&mut Ctx, ConnId); 2] =
        [Ctx::clear_read_deadline, |ctx, id| ctx.set_read_deadline(id, Duration::from_secs(3600))];
    for call in late {
        let (mut harness, mut peer, id) = lingering(Limits::default());
        call(harness.ctx(), id);
        for _ in 0..20 {
            if harness.script().closed(id).is_none() {
                trickle(&mut harness, &mut peer);
                harness.advance(Duration::from_millis(500));
            }
        }
        assert_eq!(harness.script().closed(id), Some(CloseReason::Local));
    }
}

#[test]
fn lingering_ends_after_so_many_bytes() {
    let (mut harness, mut peer, id) = lingering(Limits { linger_bytes: 100, ..Limits::default() });
    peer.say(&[0; 100]);
    harness.settle();
    assert_eq!(harness.script().closed(id), None);
    peer.say(b"x");
    assert_eq!(harness.closed(id), CloseReason::Local);
}

#[test]
fn a_large_last_answer_survives_input_that_is_still_unread() {
    // More than the high water mark, in each of the ways to send it, with more requests behind the first.
    type Send = fn(&mut Ctx, ConnId, &[u8]) -> bool;
    let sends: [Send; 2] = [
        |ctx, id, answer| ctx.send(id, answer).is_accepted(),
        |ctx, id, answer| ctx.send_shared(id, Bytes::copy_from_slice(answer)).is_accepted(),
    ];
    for send in sends {
        let script = Script::default().data(move |ctx, id, input| {
            assert!(send(ctx, id, &pattern(300 * KIB)));
            ctx.close_after_flush(id);
            input.len()
        });
        let mut harness = Harness::with(script, Limits { read_buffer: 7, ..quick_linger() });
        let (mut peer, id) = harness.open();
        peer.say(&[b"request".as_slice(), &[0; 10 * KIB]].concat());
        let (received, end) = harness.receive_all(&mut peer);
        end.unwrap();
        assert_same(&received, &pattern(300 * KIB));
        assert_eq!(harness.script().closed(id), None, "it lingers until the peer's own end");
        peer.finish();
        assert_eq!(harness.closed(id), CloseReason::Local);
    }
}

#[test]
fn an_input_that_is_too_long_does_not_destroy_the_answers_before_it() {
    // Answers the request, and waits for the rest of what follows it.
    let script = Script::default().data(|ctx, id, input| {
        if !input.starts_with(b"request") {
            return 0;
        }
        assert!(ctx.send(id, &pattern(MUCH)).is_accepted());
        7
    });
    let mut harness = Harness::with(script, Limits { input: 10 * KIB, read_buffer: KIB, ..quick_linger() });
    let (mut peer, id) = harness.open();
    // In flight when the limit is found passed, and after it.
    peer.say(&[b"request".as_slice(), &[0; 100 * KIB]].concat());
    let received = harness.receive(&mut peer, MUCH / 2);
    harness.write(&mut peer, &[0; 100 * KIB]);
    let (rest, end) = harness.receive_all(&mut peer);
    end.unwrap();
    assert_same(&[received, rest].concat(), &pattern(MUCH));
    assert_eq!(harness.script().closed(id), None, "it lingers until the peer's own end");
    drop(peer);
    assert_eq!(harness.closed(id), CloseReason::InputLimit);
}

#[test]
fn nor_does_a_read_deadline() {
    let script = Script::default().data(|ctx, id, input| {
        assert!(ctx.send(id, &pattern(MUCH)).is_accepted());
        ctx.set_read_deadline(id, Duration::from_secs(1));
        // What comes next stays in the kernel.
        ctx.pause_reading(id);
        input.len()
    });
    let mut harness = Harness::unix(script, Limits::default());
    let (mut peer, id) = harness.open();
    harness.stop_clock();
    peer.say(b"request");
    harness.until("the request", |script| !script.inputs(id).is_empty());
    peer.say(&[0; 10 * KIB]);
    harness.advance(Duration::from_secs(1));
    assert!(!harness.ctx().is_open(id), "no more sends");
    assert!(harness.ctx().queued(id) > 0, "and some of the answer waits");
    let (received, end) = harness.receive_all(&mut peer);
    end.unwrap();
    assert_same(&received, &pattern(MUCH));
    drop(peer);
    assert_eq!(harness.closed(id), CloseReason::ReadTimeout);
}

#[test]
fn a_peer_that_takes_none_of_its_last_answer_is_given_up_in_time() {
    let script = Script::default().data(|ctx, id, input| {
        assert!(ctx.send(id, &pattern(3 * MUCH)).is_accepted());
        ctx.set_read_deadline(id, Duration::from_secs(1));
        input.len()
    });
    let mut harness = Harness::unix(script, Limits::default());
    let (mut peer, id) = harness.open();
    harness.stop_clock();
    peer.say(b"request");
    harness.until("the request", |script| !script.inputs(id).is_empty());
    let stall = harness.ctx().limits().write_stall_timeout;
    harness.advance(stall - Duration::from_nanos(1));
    assert_eq!(harness.script().closed(id), None);
    harness.advance(Duration::from_nanos(1));
    assert_eq!(harness.script().closed(id), Some(CloseReason::WriteStalled), "it cut the answer short");
}
