//! The end of one direction: data that came before it, output that follows it, and the other way round.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::time::Duration;

use epoll_reactor::{CloseReason, ConnId, Ctx, Limits, SendOutcome};
use support::{Call, Harness, KIB, Method, Script, assert_same, pattern};

#[test]
fn what_is_sent_before_a_half_close_is_answered() {
    // `printf x | nc -N`: data and FIN are there before the loop looks, or come one after the other.
    for together in [true, false] {
        for length in [1, 10, 300 * KIB] {
            let mut harness = Harness::new(Script::default());
            let (mut peer, id) = harness.open();
            let sent = pattern(length);
            if length < KIB {
                peer.say(&sent);
            } else {
                harness.write(&mut peer, &sent);
            }
            if !together {
                harness.until("the data", |script| !script.inputs(id).is_empty());
            }
            // With the clock stopped: nothing has to be waited for.
            harness.stop_clock();
            peer.finish();
            let (received, end) = harness.receive_all(&mut peer);
            end.unwrap();
            assert_same(&received, &sent);
            assert_eq!(harness.closed(id), CloseReason::PeerClosed);
        }
    }
}

#[test]
fn output_that_is_waiting_when_the_peer_half_closes_is_delivered() {
    let mut harness = Harness::unix(Script::default(), Limits::default());
    let (mut peer, id) = harness.open();
    let sent = pattern(2 * 1024 * KIB);
    assert!(harness.ctx().send(id, &sent).is_accepted());
    harness.turn();
    assert!(harness.ctx().queued(id) > 0);
    peer.finish();
    let (received, end) = harness.receive_all(&mut peer);
    end.unwrap();
    assert_same(&received, &sent);
    assert_eq!(harness.closed(id), CloseReason::PeerClosed);
}

#[test]
fn a_handler_may_go_on_talking_after_the_end_of_its_input() {
    let mut harness = Harness::new(
        Script::default().eof(|ctx, id, _| ctx.set_timer(id, Duration::from_millis(20))).timer(|ctx, id| {
            assert!(ctx.send(id, b"late answer").is_accepted());
            ctx.close_after_flush(id);
        }),
    );
    let (mut peer, id) = harness.open();
    peer.finish();
    let (received, end) = harness.receive_all(&mut peer);
    end.unwrap();
    assert_eq!(received, b"late answer");
    assert_eq!(harness.closed(id), CloseReason::PeerClosed);
    assert_eq!(harness.script().count(|call| matches!(call, Call::Eof(..))), 1);
}

#[test]
fn the_end_of_the_stream_comes_with_the_start_of_the_message_that_will_never_be_whole() {
    // It comes once and is not kept, whether or not the handler closes at once.
    let eof: [fn(&mut Ctx, ConnId); 2] = [Ctx::close_after_flush, |_, _| ()];
    for eof in eof {
        let script = Script::default().data(|_, _, _| 0).eof(move |ctx, id, _| eof(ctx, id));
        let mut harness = Harness::new(script);
        let (mut peer, id) = harness.open();
        peer.say(b"GET / HT");
        peer.finish();
        let expected = Call::Eof(id, b"GET / HT".to_vec());
        harness.until("on_eof", |script| script.calls.contains(&expected));
        harness.settle();
        assert_eq!(harness.ctx().buffered(), 0);
        harness.ctx().read_again(id);
        harness.ctx().close_after_flush(id);
        assert_eq!(harness.closed(id), CloseReason::PeerClosed);
        assert_eq!(harness.script().inputs(id).len(), 1);
    }
}

#[test]
fn our_half_close_comes_behind_all_output_and_leaves_the_input_open() {
    for length in [1, 1024 * KIB] {
        let mut harness = Harness::unix(Script::default().data(|_, _, input| input.len()), Limits::default());
        let (mut peer, id) = harness.open();
        assert!(harness.ctx().send(id, &pattern(length)).is_accepted());
        harness.ctx().shut_down_output(id);
        assert_eq!(harness.ctx().send(id, b"x"), SendOutcome::Gone(b"x".as_slice()));
        harness.ctx().shut_down_output(id);
        let (received, end) = harness.receive_all(&mut peer);
        end.unwrap();
        assert_same(&received, &pattern(length));
        assert_eq!(harness.kernel.count(Method::ShutdownWrite), 1);
        peer.say(b"still heard");
        harness.until("input", |script| script.inputs(id).concat() == b"still heard");
        peer.finish();
        assert_eq!(harness.closed(id), CloseReason::PeerClosed);
        assert_eq!(harness.kernel.count(Method::ShutdownWrite), 1);
    }
}
