//! Output that a peer does not take: bounded, in order, and felt by that peer alone.
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
use epoll_reactor::{CloseReason, ConnId, Errno, Limits, SendOutcome};
use support::{Call, Harness, KIB, Method, Peer, Script, assert_same, pattern};

/// Far more than the kernel's buffers of a Unix socket hold.
const MUCH: usize = 1024 * KIB;

fn marks() -> Limits {
    Limits {
        output_low_water: 16 * KIB,
        output_high_water: 64 * KIB,
        output: 2 * MUCH,
        read_buffer: 4 * KIB,
        ..Limits::default()
    }
}

/// Sends `data` between turns and lets the kernel take what it will.
fn push(harness: &mut Harness, id: ConnId, data: &[u8]) {
    assert!(harness.ctx().send(id, data).is_accepted());
    harness.turn();
}

/// The peer reads, a piece at a time, until `done`.
fn read_until(harness: &mut Harness, peer: &mut Peer, mut done: impl FnMut(&mut Harness) -> bool) -> Vec<u8> {
    let mut received = Vec::new();
    let mut piece = [0; 8 * KIB];
    harness.until_loop("what reading leads to", |harness| {
        if let Ok(length) = std::io::Read::read(peer, &mut piece) {
            received.extend_from_slice(&piece[..length]);
        }
        done(harness)
    });
    received
}

#[test]
fn above_high_water_a_connection_is_not_read_until_it_is_down_to_low_water_and_on_drain_says_so() {
    let mut harness = Harness::unix(Script::default().data(|_, _, input| input.len()), marks());
    let (mut peer, id) = harness.open();
    assert_eq!(harness.ctx().send(id, &pattern(MUCH)), SendOutcome::Queued);
    harness.turn();
    assert!(harness.ctx().queued(id) > 64 * KIB);
    peer.say(b"a question");
    harness.settle();
    assert_eq!(harness.script().inputs(id).len(), 0, "not read while its output waits");
    let received = read_until(&mut harness, &mut peer, |it| it.script().calls.contains(&Call::Drain(id)));
    assert!(harness.ctx().queued(id) <= 16 * KIB);
    harness.until("the question", |script| script.inputs(id) == [b"a question"]);
    let calls = harness.script().calls.clone();
    assert!(
        calls.iter().position(|it| *it == Call::Drain(id))
            < calls.iter().position(|it| matches!(it, Call::Data(..)))
    );
    let mut whole = received;
    let left = MUCH - whole.len();
    whole.extend(harness.receive(&mut peer, left));
    assert_same(&whole, &pattern(MUCH));
    assert_eq!(harness.script().count(|it| matches!(it, Call::Drain(_))), 1, "once for one time above");
}

#[test]
fn output_below_high_water_neither_stops_reading_nor_calls_on_drain() {
    let limits = Limits { output_high_water: MUCH, ..marks() };
    let mut harness = Harness::unix(Script::default().data(|_, _, input| input.len()), limits);
    let (mut peer, id) = harness.open();
    assert_eq!(harness.ctx().send(id, &pattern(MUCH)), SendOutcome::Sent);
    harness.turn();
    assert!(harness.ctx().queued(id) > 0);
    peer.say(b"x");
    harness.until("the input", |script| script.inputs(id) == [b"x"]);
    harness.receive(&mut peer, MUCH);
    harness.settle();
    assert!(!harness.script().calls.contains(&Call::Drain(id)));
}

/// Answers each byte of input with `answer` bytes, until told to wait.
fn answering(answer: usize) -> Script {
    Script::default().data(move |ctx, id, input| {
        let mut consumed = 0;
        for byte in input {
            consumed += 1;
            if ctx.send(id, &vec![*byte; answer]) == SendOutcome::Queued {
                break;
            }
        }
        consumed
    })
}

#[test]
fn what_a_handler_leaves_when_a_send_says_queued_comes_again_though_nothing_arrives() {
    // Answers that the kernel takes at once, and answers that must wait for the peer.
    for answer in [65 * KIB, 400 * KIB] {
        let mut harness = Harness::unix(answering(answer), marks());
        let (mut peer, id) = harness.open();
        peer.say(b"abc");
        let received = harness.receive(&mut peer, 3 * answer);
        let expected: Vec<u8> = b"abc".iter().flat_map(|byte| vec![*byte; answer]).collect();
        assert_same(&received, &expected);
        assert_eq!(harness.script().inputs(id), [b"abc".as_slice(), b"bc", b"c"]);
        harness.settle();
        assert_eq!((harness.ctx().buffered(), harness.ctx().queued(id)), (0, 0));
    }
}

#[test]
fn the_end_of_the_stream_does_not_overtake_requests_that_were_held_up() {
    for answer in [65 * KIB, 400 * KIB] {
        let mut harness = Harness::unix(answering(answer), marks());
        let (mut peer, id) = harness.open();
        peer.say(b"abc");
        peer.finish();
        let (received, end) = harness.receive_all(&mut peer);
        end.unwrap();
        assert_eq!(received.len(), 3 * answer);
        assert_eq!(harness.closed(id), CloseReason::PeerClosed);
    }
}

#[test]
fn a_send_over_the_limit_is_handed_back_whole_and_the_connection_stays_as_it_was() {
    let mut harness = Harness::unix(Script::default(), Limits { output: 512 * KIB, ..marks() });
    let (mut peer, id) = harness.open();
    let first = pattern(400 * KIB);
    push(&mut harness, id, &first);
    let queued = harness.ctx().queued(id);
    let too_much = vec![7; 512 * KIB - queued + 1];
    assert_eq!(harness.ctx().send(id, &too_much), SendOutcome::OverLimit(too_much.as_slice()));
    let shared = Bytes::from(too_much.clone());
    assert_eq!(harness.ctx().send_shared(id, shared.clone()), SendOutcome::OverLimit(shared));
    assert!(harness.ctx().send(id, &too_much[1..]).is_accepted(), "one byte less fits exactly");
    assert_eq!(harness.ctx().counters().sends_refused, 2);
    assert_eq!(harness.ctx().queued(id), 512 * KIB);
    let received = harness.receive(&mut peer, first.len() + too_much.len() - 1);
    assert_same(&received, &[first, too_much[1..].to_vec()].concat());
    assert!(harness.ctx().is_open(id));
    peer.say(b"x");
    harness.until("input", |script| script.inputs(id).len() == 1);
}

#[test]
fn tiny_pieces_of_any_kind_count_as_their_bytes_and_no_more() {
    let limits = Limits { output: 64 * KIB, output_high_water: 60 * KIB, ..marks() };
    let mut harness = Harness::unix(Script::default(), limits);
    let (mut peer, id) = harness.open();
    for _ in 0..32 * KIB {
        assert!(harness.ctx().send_shared(id, Bytes::from_static(b"s")).is_accepted());
        assert!(harness.ctx().send(id, b"c").is_accepted());
    }
    assert!(!harness.ctx().send_shared(id, Bytes::from_static(b"s")).is_accepted());
    assert!(!harness.ctx().send(id, b"c").is_accepted());
    assert_same(&harness.receive(&mut peer, 64 * KIB), &b"sc".repeat(32 * KIB));
}

#[test]
fn a_handler_may_ask_to_wait_until_its_answers_are_down_to_low_water() {
    // An answer below the high water mark, and no send that says Queued.
    for answer in [10 * KIB, 40 * KIB, 400 * KIB] {
        let script = Script::default().data(move |ctx, id, input| {
            assert_eq!(ctx.send(id, &vec![input[0]; answer]), SendOutcome::Sent);
            ctx.pause_until_drained(id);
            1
        });
        let mut harness = Harness::unix(script, Limits { output_high_water: MUCH, ..marks() });
        let (mut peer, id) = harness.open();
        peer.say(b"abc");
        let expected: Vec<u8> = b"abc".iter().flat_map(|byte| vec![*byte; answer]).collect();
        assert_same(&harness.receive(&mut peer, 3 * answer), &expected);
        assert_eq!(harness.script().inputs(id), [b"abc".as_slice(), b"bc", b"c"]);
    }
}

#[test]
fn a_handler_that_waits_for_its_answers_to_drain_is_not_called_before_whatever_the_marks() {
    for (low, high) in [(0, 1), (16 * KIB, 64 * KIB), (MUCH - 1, MUCH)] {
        for answer in [1, 16 * KIB, 16 * KIB + 1, 100 * KIB] {
            // It looks at no outcome: whatever waits is reason to wait.
            let script = Script::default().data(move |ctx, id, input| {
                if ctx.queued(id) == 0 {
                    assert!(ctx.send(id, &vec![input[0]; answer]).is_accepted());
                    ctx.pause_until_drained(id);
                    return 1;
                }
                ctx.pause_until_drained(id);
                0
            });
            let limits = Limits { output_low_water: low, output_high_water: high, ..marks() };
            let mut harness = Harness::with(script, limits);
            let (mut peer, id) = harness.open();
            harness.kernel.fail_for(id, Method::Send, Errno::EAGAIN, usize::MAX);
            harness.kernel.fail_for(id, Method::Writev, Errno::EAGAIN, usize::MAX);
            peer.say(b"ab");
            harness.until("the input", |script| !script.inputs(id).is_empty());
            for _ in 0..20 {
                harness.turn();
            }
            harness.turn_for(Duration::from_millis(1));
            assert_eq!(harness.kernel.last_timeout.get(), Some(Duration::from_millis(1)), "{low} {answer}");
            // Below the low water mark there is one more, when the kernel has been offered it.
            let calls = if answer <= low { 2 } else { 1 };
            assert_eq!(harness.script().inputs(id).len(), calls, "{low} {answer}: nothing has moved");
            assert_eq!(harness.ctx().queued(id), answer);
            // The kernel tells that there is room along with this.
            harness.kernel.heal();
            peer.say(b"c");
            let expected: Vec<u8> = b"abc".iter().flat_map(|byte| vec![*byte; answer]).collect();
            assert_same(&harness.receive(&mut peer, 3 * answer), &expected);
        }
    }
}
