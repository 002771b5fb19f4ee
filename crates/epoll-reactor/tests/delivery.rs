//! Input and its way to the handler: in place, in order and in one piece, whatever is consumed of it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use epoll_reactor::{CloseReason, Limits};
use support::{Call, Harness, KIB, Script, assert_same, pattern};

/// Consumes whole lines only, and answers each.
fn lines() -> Script {
    Script::default().data(|ctx, id, input| {
        let end = input.iter().rposition(|byte| *byte == b'\n').map_or(0, |position| position + 1);
        assert!(ctx.send(id, &input[..end]).is_accepted());
        end
    })
}

#[test]
fn a_message_split_anywhere_comes_in_one_piece_with_the_rest_behind_its_start() {
    let message = b"one\ntwo!\n";
    for split in 1..message.len() {
        let mut harness = Harness::new(lines());
        let (mut peer, id) = harness.open();
        peer.say(&message[..split]);
        harness.until("the first part", |script| script.inputs(id).len() == 1);
        peer.say(&message[split..]);
        assert_eq!(harness.receive(&mut peer, message.len()), message);
        // Where the first part held a line, that line is not seen again.
        let seen_again = if split < 4 { 0 } else { 4 };
        assert_eq!(
            harness.script().inputs(id),
            [&message[..split], &message[seen_again..]],
            "split at {split}"
        );
        assert_eq!(harness.ctx().buffered(), 0);
    }
}

#[test]
fn consuming_nothing_all_or_more_than_there_is_loses_and_repeats_nothing() {
    // What is returned for each input, and what comes next with "b" behind it.
    for (returned, next) in [(0, "aaab"), (1, "aab"), (2, "ab"), (3, "b"), (4, "b"), (usize::MAX, "b")] {
        let mut harness = Harness::new(Script::default().data(move |_, _, _| returned));
        let (mut peer, id) = harness.open();
        peer.say(b"aaa");
        harness.until("the first input", |script| !script.inputs(id).is_empty());
        peer.say(b"b");
        harness.until("the second input", |script| script.inputs(id).len() == 2);
        assert_eq!(harness.script().inputs(id), [b"aaa", next.as_bytes()], "{returned}");
    }
}

#[test]
fn a_tail_of_which_more_is_consumed_than_there_is_counts_as_consumed() {
    for more in [3, usize::MAX] {
        let script = Script::default().data(move |_, _, input| if input.len() == 1 { 0 } else { more });
        let mut harness = Harness::new(script);
        let (mut peer, id) = harness.open();
        for (input, buffered) in [(b"a".as_slice(), 1), (b"b", 0), (b"c", 1), (b"d", 0)] {
            let before = harness.script().inputs(id).len();
            peer.say(input);
            harness.until("the input", |script| script.inputs(id).len() > before);
            assert_eq!(harness.ctx().buffered(), buffered);
        }
        assert_eq!(harness.script().inputs(id), [b"a".as_slice(), b"ab", b"c", b"cd"]);
    }
}

#[test]
fn input_is_the_same_stream_whatever_the_size_of_the_read_buffer() {
    let sent = pattern(3000);
    for read_buffer in [1, 2, 7, 512, 4096] {
        let mut harness = Harness::with(Script::default(), Limits { read_buffer, ..Limits::default() });
        let (mut peer, _) = harness.open();
        peer.say(&sent);
        assert_same(&harness.receive(&mut peer, sent.len()), &sent);
    }
}

#[test]
fn records_of_any_size_in_pieces_of_any_size_come_whole_and_in_order() {
    for (record, piece) in [(5, 3), (700, 300), (700, 701), (1000, 999), (4096, 1000)] {
        // Whole records are answered; their start is looked at again and again.
        let script = Script::default().data(move |ctx, id, input| {
            let whole = input.len() / record * record;
            assert!(ctx.send(id, &input[..whole]).is_accepted());
            whole
        });
        let mut harness = Harness::new(script);
        let (mut peer, _) = harness.open();
        let sent = pattern(20 * record);
        let mut received = Vec::new();
        for piece in sent.chunks(piece) {
            let before = harness.ctx().counters().bytes_received;
            peer.say(piece);
            let until = before + piece.len() as u64;
            harness.until_loop("the piece", |it| it.ctx().counters().bytes_received == until);
            received.extend(peer.drain());
        }
        received.extend(harness.receive(&mut peer, sent.len() - received.len()));
        assert_same(&received, &sent);
        assert_eq!(harness.ctx().buffered(), 0);
    }
}

#[test]
fn a_tail_grows_until_its_message_is_whole() {
    let sent = pattern(100 * KIB);
    let whole = sent.len();
    let script = Script::default().data(move |_, _, input| if input.len() == whole { whole } else { 0 });
    let mut harness =
        Harness::with(script, Limits { read_buffer: 1000, read_budget: 1000, ..Limits::default() });
    let (mut peer, id) = harness.open();
    harness.write(&mut peer, &sent);
    harness.until("the whole message", |script| script.inputs(id).last().is_some_and(|it| it.len() == whole));
    assert_same(harness.script().inputs(id).last().unwrap(), &sent);
    assert_eq!(harness.ctx().buffered(), 0);
}

#[test]
fn read_again_brings_the_unconsumed_rest_in_the_next_turn_though_nothing_arrives() {
    let mut harness = Harness::new(Script::default().data(|ctx, id, _| {
        ctx.read_again(id);
        1
    }));
    let (mut peer, id) = harness.open();
    peer.say(b"abc");
    harness.until("three inputs", |script| script.inputs(id).len() == 3);
    assert_eq!(harness.script().inputs(id), [b"abc".as_slice(), b"bc", b"c"]);
    assert_eq!(harness.ctx().buffered(), 0);
    harness.settle();
    assert_eq!(harness.script().inputs(id).len(), 3, "nothing is left, so nothing is called");
}

#[test]
fn an_unfinished_message_that_reaches_the_input_limit_closes_its_connection() {
    // Sent, consumed by the handler once it has that much, and how it ends.
    let rows = [(99, usize::MAX, None), (100, usize::MAX, Some(CloseReason::InputLimit)), (100, 100, None)];
    for (sent, complete, end) in rows {
        let script =
            Script::default().data(move |_, _, input| if input.len() >= complete { input.len() } else { 0 });
        let mut harness = Harness::with(script, Limits { input: 100, ..Limits::default() });
        let [(mut peer, id), (mut other, _)] = harness.open_many();
        for _ in 0..sent {
            let before = harness.ctx().counters().bytes_received;
            peer.say(b"x");
            harness.until_loop("the byte", |it| it.ctx().counters().bytes_received > before);
        }
        harness.settle();
        if end.is_some() {
            // It lingers until the peer has ended, too.
            drop(peer);
            harness.closed(id);
        }
        assert_eq!(harness.script().closed(id), end, "{sent} of {complete}");
        other.say(b"hello");
        harness.until("the other's input", |script| {
            script.calls.iter().any(|it| matches!(it, Call::Data(of, _) if *of != id))
        });
    }
}

#[test]
fn a_rest_is_bounded_by_the_limit_also_when_it_comes_all_at_once() {
    let mut harness =
        Harness::with(Script::default().data(|_, _, _| 1), Limits { input: 100, ..Limits::default() });
    let (mut peer, id) = harness.open();
    peer.say(&pattern(101));
    assert_eq!(harness.closed(id), CloseReason::InputLimit);
    assert_eq!(harness.ctx().buffered(), 0);
}

#[test]
fn a_paused_connection_gets_nothing_and_is_given_its_rest_first_when_it_resumes() {
    let script = Script::default().data(|ctx, id, input| {
        if input.starts_with(b"stop") {
            ctx.pause_reading(id);
            return 4;
        }
        input.len()
    });
    // The rest may be larger than the limit: it is held up, not unfinished.
    let mut harness = Harness::with(script, Limits { input: 8, ..Limits::default() });
    let (mut peer, id) = harness.open();
    peer.say(b"stop+a rest of some length");
    harness.until("the pause", |script| script.inputs(id).len() == 1);
    peer.say(b"+more");
    peer.finish();
    harness.settle();
    assert_eq!(harness.script().inputs(id).len(), 1);
    harness.ctx().resume_reading(id);
    assert_eq!(harness.closed(id), CloseReason::PeerClosed);
    let calls = &harness.script().calls;
    let expected = [
        Call::Open(id),
        Call::Data(id, b"stop+a rest of some length".to_vec()),
        Call::Data(id, b"+a rest of some length".to_vec()),
        Call::Data(id, b"+more".to_vec()),
        Call::Eof(id, Vec::new()),
        Call::Close(id, CloseReason::PeerClosed),
    ];
    assert_eq!(calls, &expected);
}

#[test]
fn urgent_data_does_not_leave_what_follows_it_in_the_kernel() {
    let mut harness = Harness::new(Script::default().data(|_, _, input| input.len()));
    let (mut peer, id) = harness.open();
    for round in 1..=3 {
        peer.say(b"before");
        peer.say_urgently(b"!");
        peer.say(b"behind");
        harness.until("both sides of the mark", |script| script.inputs(id).concat().len() == 12 * round);
    }
    assert_eq!(harness.script().inputs(id).concat(), b"beforebehind".repeat(3));
}
