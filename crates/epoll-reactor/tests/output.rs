//! Output: its order, what is refused and handed back, and the errors of one connection that stay its own.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use bytes::Bytes;
use epoll_reactor::{CloseReason, ConnId, Errno, Limits, SendOutcome};
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

/// Sends `data` between turns and lets the kernel take what it will.
fn push(harness: &mut Harness, id: ConnId, data: &[u8]) {
    assert!(harness.ctx().send(id, data).is_accepted());
    harness.turn();
}

/// Each byte of input chooses the size and the kind of the answer.
fn mixed() -> Script {
    Script::default().data(|ctx, id, input| {
        for byte in input {
            let answer = answer_to(*byte);
            let accepted = if byte % 3 == 0 {
                ctx.send_shared(id, Bytes::from(answer)).is_accepted()
            } else {
                ctx.send(id, &answer).is_accepted()
            };
            assert!(accepted);
        }
        input.len()
    })
}

fn answer_to(byte: u8) -> Vec<u8> {
    vec![byte; [1, 100, 5_000, 20_000, 70_000][usize::from(byte % 5)]]
}

#[test]
fn output_keeps_its_order_whatever_kinds_of_sends_are_mixed() {
    let limits = Limits { output: 100 * MUCH, output_high_water: 50 * MUCH, ..marks() };
    for seed in 1..=8_u32 {
        let requests: Vec<u8> = (0..60)
            .scan(seed, |state, _| {
                *state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                Some((*state >> 24) as u8)
            })
            .collect();
        let mut harness = Harness::unix(mixed(), Limits { read_buffer: seed as usize, ..limits.clone() });
        let (mut peer, id) = harness.open();
        if seed % 2 == 0 {
            // Short writes at odd places as well; each event of a request is an edge to go on with.
            harness.kernel.shorten_writes(id, 777, 20);
        }
        let mut received = Vec::new();
        // Several to a callback, so that it mixes them.
        for request in requests.chunks(1 + seed as usize % 3) {
            peer.say(request);
            harness.turn();
            if request[0] % 7 == 0 {
                received.extend(peer.drain());
            }
        }
        harness.kernel.heal();
        let expected: Vec<u8> = requests.iter().flat_map(|byte| answer_to(*byte)).collect();
        // One more edge, for a write that was cut short artificially.
        peer.say(&[10]);
        received.extend(harness.receive(&mut peer, expected.len() - received.len()));
        assert_same(&received, &expected);
        assert_eq!(harness.receive(&mut peer, 1), [10]);
    }
}

#[test]
fn sends_to_a_connection_that_is_gone_hand_the_bytes_back() {
    let mut harness = Harness::new(Script::default());
    let (peer, id) = harness.open();
    drop(peer);
    harness.closed(id);
    let shared = Bytes::from_static(b"shared");
    assert_eq!(harness.ctx().send(id, b"data"), SendOutcome::Gone(b"data".as_slice()));
    assert_eq!(harness.ctx().send_shared(id, shared.clone()), SendOutcome::Gone(shared));
    assert_eq!(harness.ctx().send(ConnId::from_u64(0), b"x"), SendOutcome::Gone(b"x".as_slice()));
    assert_eq!(harness.ctx().send(ConnId::from_u64(u64::MAX), b"x"), SendOutcome::Gone(b"x".as_slice()));
}

#[test]
fn sends_to_a_closing_connection_hand_the_bytes_back() {
    let close: [fn(&mut epoll_reactor::Ctx, ConnId); 3] =
        [epoll_reactor::Ctx::close_after_flush, epoll_reactor::Ctx::close_now, epoll_reactor::Ctx::abort];
    for close in close {
        let mut harness = Harness::new(Script::default().data(move |ctx, id, input| {
            assert!(ctx.send(id, b"last").is_accepted());
            close(ctx, id);
            assert_eq!(ctx.send(id, b"x"), SendOutcome::Gone(b"x".as_slice()));
            assert!(!ctx.is_open(id));
            input.len()
        }));
        let (mut peer, id) = harness.open();
        peer.say(b"x");
        harness.until("the input", |script| script.inputs(id).len() == 1);
        drop(peer);
        assert_eq!(harness.closed(id), CloseReason::Local, "and not HandlerPanicked");
    }
}

#[test]
fn a_peer_that_reads_nothing_does_not_slow_another() {
    let mut harness = Harness::unix(Script::default(), marks());
    let [(_slow, stuck), (mut quick, _)] = harness.open_many();
    push(&mut harness, stuck, &pattern(MUCH));
    let before = harness.kernel.writes();
    for _ in 0..50 {
        quick.say(b"ping");
        assert_eq!(harness.receive(&mut quick, 4), b"ping");
    }
    assert_eq!(harness.kernel.writes() - before, 50, "and nothing is tried on the stuck one meanwhile");
}

#[test]
fn a_write_that_was_cut_short_is_not_tried_again_before_the_edge() {
    let mut harness = Harness::unix(Script::default(), marks());
    let (_peer, id) = harness.open();
    let before = harness.kernel.writes();
    push(&mut harness, id, &pattern(MUCH));
    for _ in 0..10 {
        push(&mut harness, id, b"more");
    }
    harness.settle();
    assert_eq!(harness.kernel.writes() - before, 1, "a short one says that the socket is full");
}

#[test]
fn an_error_of_one_connection_is_not_another_s() {
    for (method, errno, reason) in [
        (Method::Send, Errno::ENOBUFS, CloseReason::Error(Errno::ENOBUFS)),
        (Method::Send, Errno::EPIPE, CloseReason::Reset),
        (Method::Send, Errno::ETIMEDOUT, CloseReason::Error(Errno::ETIMEDOUT)),
        (Method::Recv, Errno::ECONNRESET, CloseReason::Reset),
        (Method::Recv, Errno::EHOSTUNREACH, CloseReason::Error(Errno::EHOSTUNREACH)),
        (Method::Recv, Errno::EBADF, CloseReason::Error(Errno::EBADF)),
    ] {
        let mut harness = Harness::new(Script::default());
        let mut peers: [(Peer, ConnId); 3] = harness.open_many();
        let sick = peers[1].1;
        harness.kernel.fail_for(sick, method, errno, 1);
        // All in one batch of events.
        peers.iter_mut().for_each(|(peer, _)| peer.say(b"hello"));
        assert_eq!(harness.closed(sick), reason);
        for index in [0, 2] {
            assert_eq!(harness.receive(&mut peers[index].0, 5), b"hello");
            assert_eq!(harness.script().closed(peers[index].1), None);
        }
        assert_eq!(harness.ctx().buffered(), 0);
    }
}

#[test]
fn a_would_block_from_a_write_keeps_all_of_it_for_the_next_edge() {
    let mut harness = Harness::new(Script::default());
    let (mut peer, id) = harness.open();
    harness.kernel.fail_for(id, Method::Send, Errno::EAGAIN, 1);
    peer.say(b"one");
    harness.settle();
    assert_eq!(harness.ctx().queued(id), 3);
    peer.say(b"two");
    assert_eq!(harness.receive(&mut peer, 6), b"onetwo");
}

#[test]
fn a_receiver_that_reads_is_not_over_its_limit_for_what_many_send_it_in_one_turn() {
    // Each input goes to the first connection. What the senders say together is more than may wait on one
    // connection, but the kernel would take all of it.
    let script = Script::default().data(|ctx, _, input| {
        let receiver = ConnId::from_u64(1 << 32);
        assert!(ctx.send_shared(receiver, Bytes::from(input.to_vec())).is_accepted());
        input.len()
    });
    let limits =
        Limits { output: 128 * KIB, output_high_water: 64 * KIB, output_low_water: 1, ..Limits::default() };
    let mut harness = Harness::with(script, limits);
    let (mut receiver, _) = harness.open();
    let mut senders: [(Peer, ConnId); 8] = harness.open_many();
    senders.iter_mut().for_each(|(peer, _)| peer.say(&[7; 32 * KIB]));
    assert_same(&harness.receive(&mut receiver, 8 * 32 * KIB), &[7; 8 * 32 * KIB]);
    assert_eq!(harness.ctx().counters().sends_refused, 0);
}

#[test]
fn nor_for_what_many_messages_of_other_threads_send_it_in_one_turn() {
    let script = Script::default().message(|ctx, _| {
        assert!(ctx.send_shared(ConnId::from_u64(1 << 32), Bytes::from(pattern(32 * KIB))).is_accepted());
    });
    let limits =
        Limits { output: 128 * KIB, output_high_water: 64 * KIB, output_low_water: 1, ..Limits::default() };
    let mut harness = Harness::with(script, limits);
    let (mut receiver, _) = harness.open();
    let remote = harness.remote();
    (0..8).for_each(|message| remote.send(message).unwrap());
    assert_same(&harness.receive(&mut receiver, 8 * 32 * KIB), &pattern(32 * KIB).repeat(8));
    assert_eq!(harness.ctx().counters().sends_refused, 0);
}

#[test]
fn what_others_send_and_what_its_own_callback_sends_keep_the_order_of_the_calls() {
    // Each input makes a number, which goes to both connections.
    let mut number = 0_u8;
    let script = Script::default().data(move |ctx, _, input| {
        number += 1;
        for index in 0..2 {
            assert!(ctx.send(ConnId::from_u64(1 << 32 | index), &[number]).is_accepted());
        }
        input.len()
    });
    let mut harness = Harness::new(script);
    let mut peers: [(Peer, ConnId); 2] = harness.open_many();
    for _ in 0..20 {
        // In one batch: the second has something waiting from the first when it sends to itself.
        peers.iter_mut().for_each(|(peer, _)| peer.say(b"x"));
        harness.settle();
    }
    for (peer, _) in &mut peers {
        assert_eq!(harness.receive(peer, 40), Vec::from_iter(1..=40));
    }
}

#[test]
fn nor_is_the_memory_of_all_used_up_by_what_the_kernel_has_not_been_offered() {
    // Less than the high water mark to each, but together more than there may be, and more than once.
    let script = Script::default().message(|ctx, _| {
        for index in 0..8 {
            let data = Bytes::from(pattern(40 * KIB));
            assert!(ctx.send_shared(ConnId::from_u64(1 << 32 | index), data).is_accepted());
        }
    });
    let mut harness = Harness::with(script, Limits { memory: 512 * KIB, ..Limits::default() });
    let mut peers: [(Peer, ConnId); 8] = harness.open_many();
    let remote = harness.remote();
    (0..3).for_each(|message| remote.send(message).unwrap());
    for (peer, _) in &mut peers {
        assert_same(&harness.receive(peer, 3 * 40 * KIB), &pattern(40 * KIB).repeat(3));
    }
    assert_eq!((harness.ctx().counters().sends_refused, harness.ctx().buffered()), (0, 0));
}
