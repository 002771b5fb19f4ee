//! Memory of all connections together: what counts, for how much, and who goes when there is too little of it.
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
use epoll_reactor::{CloseReason, ConnId, Errno, Limits, SendOutcome, raise_open_file_limit};
use support::{Harness, KIB, Method, Peer, Script, assert_same, pattern};

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

/// `memory` for all, and no other limit near it.
fn at_most(memory: usize) -> Limits {
    Limits { memory, ..marks() }
}

/// Takes no input: all of it becomes a tail.
fn keeping() -> Script {
    Script::default().data(|_, _, _| 0)
}

/// Has `count` more bytes become part of the connection's tail.
fn grow_tail(harness: &mut Harness, (peer, id): &mut (Peer, ConnId), count: usize) {
    let before = harness.ctx().counters().bytes_received;
    peer.say(&vec![1; count]);
    let after = before + count as u64;
    harness.until_loop("the tail", |it| it.ctx().counters().bytes_received == after);
    assert!(harness.script().closed(*id).is_none_or(|reason| reason == CloseReason::MemoryLimit));
}

/// The socket of `id` is full, until all is well again.
fn block(harness: &Harness, id: ConnId) {
    harness.kernel.fail_for(id, Method::Send, Errno::EAGAIN, usize::MAX);
    harness.kernel.fail_for(id, Method::Writev, Errno::EAGAIN, usize::MAX);
}

#[test]
fn a_queue_counts_whole_pieces_until_they_are_written_whole() {
    const PIECE: usize = 64 * KIB;
    let mut harness = Harness::unix(Script::default(), marks());
    let (mut peer, id) = harness.open();
    for piece in 0..16 {
        let data = pattern(PIECE);
        // Both kinds, and the kernel in the middle of either.
        let accepted = if piece % 2 == 0 {
            harness.ctx().send(id, &data).is_accepted()
        } else {
            harness.ctx().send_shared(id, Bytes::from(data)).is_accepted()
        };
        assert!(accepted);
        assert_eq!(harness.ctx().buffered(), PIECE * (piece + 1));
    }
    harness.turn();
    let mut received = Vec::new();
    let mut partial = 0;
    while received.len() < 16 * PIECE {
        let queued = harness.ctx().queued(id);
        assert_eq!(harness.ctx().buffered(), PIECE * queued.div_ceil(PIECE), "{queued} bytes wait");
        partial += usize::from(!queued.is_multiple_of(PIECE));
        let count = (10 * KIB).min(16 * PIECE - received.len());
        received.extend(harness.receive(&mut peer, count));
    }
    assert!(partial > 0, "it was never in the middle of a piece");
    assert_same(&received, &pattern(PIECE).repeat(16));
    harness.settle();
    assert_eq!(harness.ctx().buffered(), 0);
}

#[test]
fn a_tail_counts_its_room_and_gives_it_back_when_the_message_has_gone() {
    // All of a message but its last byte, which begins the next.
    let script =
        Script::default().data(|_, _, input| if input.ends_with(b"\n") { input.len() - 1 } else { 0 });
    let mut harness = Harness::with(script, marks());
    let mut client = harness.open();
    let mut length = 0;
    for piece in [100, 100, 1000, 10_000, 40_000] {
        grow_tail(&mut harness, &mut client, piece);
        length += piece;
        let held = harness.ctx().buffered();
        assert!((length..=(2 * length).max(512)).contains(&held), "{held} for {length} bytes");
    }
    let (peer, id) = &mut client;
    peer.say(b"\n");
    harness.until("the end of the message", |script| script.inputs(*id).last().unwrap().ends_with(b"\n"));
    assert_eq!(harness.ctx().buffered(), 1, "one byte is kept, and no room for 50,000");
    // In the message that follows nothing is missing.
    let before = harness.script().inputs(*id).len();
    peer.say(b"x");
    harness.until("more", |script| script.inputs(*id).len() > before);
    assert_eq!(harness.script().inputs(*id)[before], b"\nx");
}

#[test]
fn what_thousands_of_clients_have_begun_to_say_counts_for_little() {
    const LONG: usize = 3000;
    let clients: usize = if raise_open_file_limit().unwrap().now >= 11_000 { 5000 } else { 400 };
    let script = Script::default().data(|_, _, input| if input.len() > LONG { input.len() - 10 } else { 0 });
    // Less than what their long messages took one after the other.
    let limits = Limits { memory: 50 * clients, ..Limits::default() };
    let mut harness = Harness::unix(script, limits);
    let mut peers = Vec::new();
    while peers.len() < clients {
        peers.extend((0..100).map(|_| harness.connect()));
        harness.until_loop("the clients", |it| it.ctx().connections() == peers.len());
    }
    for (number, peer) in peers.iter_mut().enumerate() {
        for said in [&[1; LONG][..], &[2; 10]] {
            peer.say(said);
            harness.reactor.turn(Some(Duration::ZERO)).unwrap();
        }
        // It may look at each of the thousands.
        if number % 100 == 99 {
            harness.check();
        }
    }
    assert_eq!(harness.ctx().buffered(), 10 * clients);
    assert_eq!(harness.ctx().counters().closed, 0);
    drop(peers);
    harness.until_loop("their end", |it| it.ctx().connections() == 0);
    assert_eq!(harness.ctx().buffered(), 0);
}

#[test]
fn buffered_is_always_the_sum_over_the_connections_and_ends_at_zero() {
    let mut harness = Harness::unix(keeping(), marks());
    let mut clients: [(Peer, ConnId); 4] = harness.open_many();
    let ids = clients.each_ref().map(|(_, id)| *id);
    // All that is sent to one is of one size, so that the pieces of its queue can be counted.
    let piece = |index: usize| 70 * KIB * (index + 1) / 4;
    let mut tails = [0; 4];
    for round in 1..20_u8 {
        for (index, client) in clients.iter_mut().enumerate() {
            let id = client.1;
            if usize::from(round) % (index + 2) == 0 {
                let data = vec![round; piece(index)];
                let _ = harness.ctx().send(id, &data).is_accepted();
                let _ = harness.ctx().send_shared(id, Bytes::from(data)).is_accepted();
            } else if harness.ctx().queued(id) == 0 {
                grow_tail(&mut harness, client, 100);
                tails[index] += 100;
            } else {
                client.0.drain();
            }
            harness.settle();
            let pieces = ids.iter().enumerate().map(|(index, id)| {
                let size = piece(index);
                harness.ctx().queued(*id).div_ceil(size) * size
            });
            let queued: usize = pieces.sum();
            let most: usize = tails.iter().map(|tail| (2 * tail).max(512)).sum();
            let held = harness.ctx().buffered();
            let least = queued + tails.iter().sum::<usize>();
            assert!((least..=queued + most).contains(&held), "{held} are held, not {least}");
        }
    }
    assert!(harness.ctx().buffered() > 0 && tails.iter().all(|tail| *tail > 0));
    drop(clients);
    for id in ids {
        harness.closed(id);
    }
    assert_eq!(harness.ctx().buffered(), 0);
}

#[test]
fn a_send_past_the_memory_of_all_is_refused_whole_and_exactly() {
    let mut harness = Harness::unix(Script::default(), at_most(MUCH));
    let [(mut first, a), (_second, b), (mut third, c)] = harness.open_many();
    for id in [a, b] {
        block(&harness, id);
    }
    assert!(harness.ctx().send(a, &pattern(900 * KIB)).is_accepted());
    assert!(harness.ctx().send(b, &pattern(100 * KIB)).is_accepted());
    harness.turn();
    // An eighth is lent, since it is freed behind the callback that uses it.
    let room = MUCH + MUCH / 8 - harness.ctx().buffered();
    let too_much = pattern(room + 1);
    assert!(matches!(harness.ctx().send(c, &too_much), SendOutcome::OverLimit(_)));
    assert_eq!(harness.ctx().counters().sends_refused, 1);
    // It was refused; so whoever holds most goes, and not who was refused or comes next.
    third.say(b"x");
    assert_eq!(harness.receive(&mut third, 1), b"x");
    assert_eq!(harness.closed(a), CloseReason::MemoryLimit);
    assert_eq!(harness.script().stats[&a].bytes_unsent, 900 * 1024);
    assert_eq!((harness.script().closed(b), harness.script().closed(c)), (None, None));
    assert_eq!(harness.ctx().buffered(), 100 * KIB);
    let (received, _) = harness.receive_all(&mut first);
    assert!(received.is_empty());
    // With memory free again all may use it: to the last byte, which is nobody's end.
    let fits = pattern(MUCH - 100 * KIB);
    assert!(harness.ctx().send(c, &fits).is_accepted());
    assert_eq!(harness.ctx().buffered(), MUCH);
    assert_same(&harness.receive(&mut third, fits.len()), &fits);
    assert_eq!((harness.script().closed(b), harness.script().closed(c)), (None, None));
}

#[test]
fn clients_that_read_are_served_while_others_hold_all_the_memory() {
    for answer in [1, 70 * KIB] {
        let script = Script::default().data(move |ctx, id, input| {
            // More than one send: neither counts before the kernel has been offered it.
            for byte in input {
                assert!(ctx.send(id, &vec![*byte; answer]).is_accepted());
                assert!(ctx.send(id, &vec![*byte; answer]).is_accepted());
            }
            input.len()
        });
        let mut harness = Harness::unix(script, at_most(MUCH));
        let [(_hoarder, a), (mut reader, b)] = harness.open_many();
        harness.ctx().account(a, MUCH);
        for byte in 0..20 {
            reader.say(&[byte]);
            assert_same(&harness.receive(&mut reader, 2 * answer), &vec![byte; 2 * answer]);
        }
        assert_eq!((harness.ctx().counters().sends_refused, harness.ctx().buffered()), (0, MUCH));
        assert_eq!((harness.script().closed(a), harness.script().closed(b)), (None, None));
    }
}

#[test]
fn an_answer_that_the_kernel_does_not_take_costs_the_largest_holder_and_not_its_receiver() {
    let script = Script::default().data(|ctx, id, input| {
        assert!(ctx.send(id, &pattern(MUCH / 2)).is_accepted());
        input.len()
    });
    let mut harness = Harness::unix(script, at_most(MUCH));
    let [(_hoarder, a), (mut reader, b)] = harness.open_many();
    harness.ctx().account(a, MUCH);
    reader.say(b"x");
    assert_eq!(harness.closed(a), CloseReason::MemoryLimit);
    assert_same(&harness.receive(&mut reader, MUCH / 2), &pattern(MUCH / 2));
    assert_eq!((harness.script().closed(b), harness.ctx().buffered()), (None, 0));
}

#[test]
fn the_largest_go_first_until_an_eighth_is_free_and_whoever_comes_next_stays() {
    // At most 1000: what each holds, what the last says in addition, and who goes.
    let rows: [(&[usize], usize, &[usize]); 5] = [
        // Exactly all of it is not too much.
        (&[600, 300, 50], 50, &[]),
        (&[600, 300, 50], 51, &[0]),
        (&[100, 320, 280, 150, 100], 51, &[1]),
        // The end of one is enough for the last, but not an eighth.
        (&[110, 105, 95, 95, 95, 95, 95, 95, 95, 60, 10], 51, &[0, 1]),
        // The one that brings it about, where it holds most.
        (&[200, 200, 200], 401, &[2]),
    ];
    for (holdings, more, gone) in rows {
        let mut harness = Harness::unix(Script::default(), at_most(1000));
        let clients: Vec<(Peer, ConnId)> = holdings.iter().map(|_| harness.open()).collect();
        for ((_, id), held) in clients.iter().zip(holdings) {
            harness.ctx().account(*id, *held);
        }
        assert_eq!(harness.ctx().buffered(), holdings.iter().sum());
        let last = clients[clients.len() - 1].1;
        harness.ctx().account(last, holdings[holdings.len() - 1] + more);
        // Anybody's callback.
        let (mut other, other_id) = harness.open();
        other.say(b"hello");
        assert_eq!(harness.receive(&mut other, 5), b"hello");
        harness.settle();
        let closed: Vec<usize> =
            (0..clients.len()).filter(|index| harness.script().closed(clients[*index].1).is_some()).collect();
        assert_eq!(closed, gone, "{holdings:?} and {more}");
        for index in closed {
            assert_eq!(harness.script().closed(clients[index].1), Some(CloseReason::MemoryLimit));
        }
        assert_eq!(harness.script().closed(other_id), None);
        let kept = (0..clients.len()).filter(|index| !gone.contains(index));
        let held: usize =
            kept.map(|index| holdings[index] + if index + 1 == clients.len() { more } else { 0 }).sum();
        assert_eq!(harness.ctx().buffered(), held);
    }
}

#[test]
fn input_that_passes_the_memory_of_all_costs_the_one_that_holds_most() {
    let mut harness = Harness::unix(keeping(), at_most(8000));
    let mut clients: [(Peer, ConnId); 3] = harness.open_many();
    let ids = clients.each_ref().map(|(_, id)| *id);
    for (client, size) in clients.iter_mut().zip([4000, 3999, 1]) {
        grow_tail(&mut harness, client, size);
    }
    harness.settle();
    assert_eq!((harness.ctx().buffered(), harness.ctx().counters().closed), (8000, 0));
    // A byte more, for which room is made.
    clients[2].0.say(b"x");
    assert_eq!(harness.closed(ids[0]), CloseReason::MemoryLimit);
    assert_eq!((harness.script().closed(ids[1]), harness.script().closed(ids[2])), (None, None));
    let held = harness.ctx().buffered();
    assert!((4001..=3999 + 512).contains(&held), "{held}");
    // What the others have begun to say is whole.
    clients[1].0.say(b"x");
    harness.until("the input", |script| script.inputs(ids[1]).last().unwrap().len() == 4000);
}

#[test]
fn what_a_handler_holds_itself_counts_against_the_memory_of_all() {
    let mut harness = Harness::new(Script::default());
    let [(_a, a), (_b, b), (mut third, c)] = harness.open_many();
    let memory = harness.ctx().limits().memory;
    harness.ctx().account(a, memory / 2);
    harness.ctx().account(b, 100);
    harness.ctx().account(b, memory / 2);
    assert_eq!(harness.ctx().buffered(), memory);
    harness.settle();
    assert_eq!(harness.ctx().counters().closed, 0, "all of it is not too much");
    harness.ctx().account(b, memory / 2 + 1);
    third.say(b"x");
    assert_eq!(harness.receive(&mut third, 1), b"x");
    assert_eq!(harness.closed(b), CloseReason::MemoryLimit);
    assert_eq!(harness.ctx().buffered(), memory / 2);
    harness.ctx().account(a, 0);
    harness.ctx().account(b, memory);
    assert_eq!(harness.ctx().buffered(), 0, "nothing is held for one that is gone");
    assert_eq!((harness.script().closed(a), harness.script().closed(c)), (None, None));
}

#[test]
fn no_account_is_too_large_for_the_books() {
    let mut harness = Harness::new(keeping());
    let mut clients: [(Peer, ConnId); 3] = harness.open_many();
    let [a, b, c] = clients.each_ref().map(|(_, id)| *id);
    grow_tail(&mut harness, &mut clients[0], 100);
    grow_tail(&mut harness, &mut clients[2], 100);
    // Taken back in time, all is as before.
    for bytes in [usize::MAX, usize::MAX - 1, 5, usize::MAX, 0] {
        harness.ctx().account(a, bytes);
    }
    assert_eq!(harness.ctx().buffered(), 200);
    harness.ctx().account(a, usize::MAX);
    harness.ctx().account(b, usize::MAX);
    assert!(harness.ctx().buffered() > harness.ctx().limits().memory);
    grow_tail(&mut harness, &mut clients[2], 1);
    assert_eq!(harness.closed(a), CloseReason::MemoryLimit);
    assert_eq!(harness.closed(b), CloseReason::MemoryLimit);
    assert_eq!(harness.script().closed(c), None);
    let held = harness.ctx().buffered();
    assert!((101..=512).contains(&held), "{held}");
    drop(clients);
    harness.closed(c);
    assert_eq!(harness.ctx().buffered(), 0);
}
