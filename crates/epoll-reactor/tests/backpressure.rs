//! Output that a peer does not take: bounded, in order, and felt by that peer alone.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use bytes::Bytes;
use epoll_reactor::{CloseReason, ConnId, Limits, SendOutcome};
use support::{Call, Harness, KIB, Peer, Script, assert_same, pattern};

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
fn output_on_all_connections_together_is_bounded() {
    let mut harness = Harness::unix(Script::default(), Limits { memory: MUCH, ..marks() });
    let [(mut first, a), (_second, b), (mut third, c)] = harness.open_many();
    push(&mut harness, a, &pattern(900 * KIB));
    push(&mut harness, b, &pattern(300 * KIB));
    let room = MUCH - harness.ctx().buffered();
    let too_much = pattern(room + 1);
    assert!(matches!(harness.ctx().send(c, &too_much), SendOutcome::OverLimit(_)));
    // One that sends little is served as ever, and when memory is free again all may use it.
    third.say(b"x");
    assert_eq!(harness.receive(&mut third, 1), b"x");
    harness.receive(&mut first, 900 * KIB);
    assert!(harness.ctx().send(c, &too_much).is_accepted());
}

#[test]
fn unfinished_messages_on_all_connections_together_are_bounded() {
    let limits = Limits {
        memory: 1000,
        output: 500,
        output_high_water: 400,
        output_low_water: 1,
        ..Limits::default()
    };
    let mut harness = Harness::with(Script::default().data(|_, _, _| 0), limits);
    let [(mut first, a), (mut second, b), (mut third, c)] = harness.open_many();
    first.say(&[1; 600]);
    harness.until("the first tail", |script| !script.inputs(a).is_empty());
    second.say(&[2; 400]);
    harness.until("the second tail", |script| !script.inputs(b).is_empty());
    assert_eq!(harness.ctx().buffered(), 1000);
    third.say(b"x");
    assert_eq!(harness.closed(c), CloseReason::MemoryLimit);
    assert_eq!(harness.ctx().buffered(), 1000);
    assert_eq!((harness.script().closed(a), harness.script().closed(b)), (None, None));
}

#[test]
fn buffered_is_always_the_sum_over_the_connections_and_ends_at_zero() {
    let mut harness = Harness::unix(Script::default().data(|_, _, _| 0), marks());
    let mut peers: [(Peer, ConnId); 4] = harness.open_many();
    let ids = peers.each_ref().map(|(_, id)| *id);
    let mut tails = [0; 4];
    for round in 1..20_u8 {
        for (index, (peer, id)) in peers.iter_mut().enumerate() {
            if usize::from(round) % (index + 2) == 0 {
                let data = vec![round; 70 * KIB * (index + 1) / 4];
                let _ = harness.ctx().send(*id, &data).is_accepted();
                let _ = harness.ctx().send_shared(*id, Bytes::from(data)).is_accepted();
            } else if harness.ctx().queued(*id) == 0 {
                peer.say(&[1; 100]);
                tails[index] += 100;
            } else {
                peer.drain();
            }
            harness.settle();
            let queued: usize = ids.iter().map(|id| harness.ctx().queued(*id)).sum();
            assert_eq!(harness.ctx().buffered(), queued + tails.iter().sum::<usize>());
        }
    }
    assert!(harness.ctx().buffered() > 0 && tails.iter().all(|tail| *tail > 0));
    drop(peers);
    for id in ids {
        harness.closed(id);
    }
    assert_eq!(harness.ctx().buffered(), 0);
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
fn what_a_handler_holds_itself_counts_against_the_memory_of_all() {
    let mut harness = Harness::new(Script::default());
    let [(_a, a), (_b, b), (mut third, _)] = harness.open_many();
    let memory = harness.ctx().limits().memory;
    harness.ctx().account(a, memory / 2);
    harness.ctx().account(b, 100);
    harness.ctx().account(b, memory / 2);
    assert_eq!(harness.ctx().buffered(), memory / 2 * 2);
    assert_eq!(harness.ctx().send(a, &[0; 1000]), SendOutcome::OverLimit([0; 1000].as_slice()));
    harness.ctx().account(b, memory / 2 + 1);
    assert_eq!(harness.closed(b), CloseReason::MemoryLimit);
    assert_eq!(harness.ctx().buffered(), memory / 2);
    harness.ctx().account(a, 0);
    assert_eq!(harness.ctx().buffered(), 0);
    third.say(b"x");
    assert_eq!(harness.receive(&mut third, 1), b"x");
    assert_eq!(harness.script().closed(a), None);
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
