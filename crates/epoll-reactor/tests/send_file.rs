//! Files as output: their place among other output, what they count for, how they end, and that one that is large
//! leaves others their turn.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use epoll_reactor::{
    Address, CloseReason, ConnId, Ctx, Errno, FileSlice, Limits, SendOutcome, Stopped, Then, Turn,
};
use support::{Harness, KIB, Method, Peer, Script, assert_same, pattern};

const MIB: usize = 1024 * KIB;

fn file_of(data: &[u8]) -> Arc<File> {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(data).unwrap();
    file.rewind().unwrap();
    Arc::new(file)
}

fn part(file: &Arc<File>, offset: usize, length: usize) -> FileSlice {
    FileSlice { file: Arc::clone(file), offset: offset as u64, length: length as u64 }
}

fn whole(file: &Arc<File>) -> FileSlice {
    FileSlice { file: Arc::clone(file), offset: 0, length: file.metadata().unwrap().len() }
}

/// Answers each input with a head, a part of `file` and a tail; what that is as bytes.
fn framed(file: &Arc<File>, data: &[u8]) -> (Script, Vec<u8>) {
    let slice = part(file, 1000, data.len() - 2000);
    let script = Script::default().data(move |ctx, id, input| {
        assert_eq!(ctx.send(id, b"head:"), SendOutcome::Sent);
        assert!(ctx.send_file(id, slice.clone()).is_accepted());
        assert!(ctx.send(id, b":tail").is_accepted());
        input.len()
    });
    (script, [b"head:", &data[1000..data.len() - 1000], b":tail"].concat())
}

/// Sends `slice` between turns, and takes one.
fn push(harness: &mut Harness, id: ConnId, slice: FileSlice) {
    assert!(harness.ctx().send_file(id, slice).is_accepted());
    harness.turn();
}

/// Nobody holds `file` but the test.
fn let_go(file: &Arc<File>) -> bool {
    Arc::strong_count(file) == 1
}

#[test]
fn a_file_keeps_its_place_among_other_output_however_writes_are_cut() {
    let data = pattern(50_000);
    let file = file_of(&data);
    let mut expected = b"first".to_vec();
    let mut sends: Vec<(usize, usize)> = Vec::new();
    for step in 0..40_usize {
        let (offset, length) = (step * 997, [1, 100, 5_000, 9_000][step % 4]);
        sends.push((offset, length));
        let shared = Bytes::from(vec![7; step * 3]);
        expected.extend_from_slice(&[&data[offset..offset + length], &shared, b"copied"].concat());
    }
    for most in [usize::MAX, 4_000, 777] {
        let (file, sends) = (Arc::clone(&file), sends.clone());
        let script = Script::default().data(move |ctx, id, input| {
            assert!(ctx.send(id, b"first").is_accepted());
            for (step, (offset, length)) in sends.iter().enumerate() {
                assert!(ctx.send_file(id, part(&file, *offset, *length)).is_accepted());
                assert!(ctx.send_shared(id, Bytes::from(vec![7; step * 3])).is_accepted());
                assert!(ctx.send(id, b"copied").is_accepted());
            }
            input.len()
        });
        let mut harness = Harness::unix(script, Limits { write_budget: 10_001, ..Limits::default() });
        let (mut peer, id) = harness.open();
        harness.kernel.shorten_writes(id, most, 50);
        peer.say(b"x");
        // What is cut short in memory waits for an edge, which is given when the peer has read.
        let received = harness.receive(&mut peer, expected.len());
        assert_same(&received, &expected);
        assert_eq!((harness.ctx().queued(id), harness.ctx().buffered()), (0, 0));
        assert_eq!(harness.script().closed(id), None);
    }
}

#[test]
fn a_head_and_its_file_cost_one_write_each_and_the_head_says_that_more_follows() {
    let data = pattern(20_000);
    let file = file_of(&data);
    let slice = whole(&file);
    let script = Script::default().data(move |ctx, id, input| {
        assert_eq!(ctx.send(id, b"head"), SendOutcome::Sent);
        assert!(matches!(ctx.send_file(id, slice.clone()), SendOutcome::Sent));
        input.len()
    });
    let mut harness = Harness::new(script);
    let (mut peer, _) = harness.open();
    for _ in 0..10 {
        peer.say(b"x");
        assert_same(&harness.receive(&mut peer, 20_004), &[b"head", data.as_slice()].concat());
    }
    let counts = [Method::Recv, Method::Send, Method::Writev, Method::Sendfile];
    assert_eq!(counts.map(|method| harness.kernel.count(method)), [10, 0, 10, 10]);
    assert_eq!(*harness.kernel.followed.borrow(), [Then::More; 10]);
}

#[test]
fn nothing_is_said_to_follow_where_nothing_does_at_once() {
    let data = pattern(3_000);
    let file = file_of(&data);
    let (script, expected) = framed(&file, &data);
    // The head is the whole budget of a turn.
    let mut harness = Harness::with(script, Limits { write_budget: 5, ..Limits::default() });
    let (mut peer, id) = harness.open();
    peer.say(b"x");
    assert_same(&harness.receive(&mut peer, expected.len()), &expected);
    assert_eq!(harness.kernel.followed.borrow().len(), 0, "it is one piece, and as good as the last");
    let ctx = harness.ctx();
    assert!(ctx.send_shared(id, Bytes::from(vec![1; 100])).is_accepted());
    assert!(ctx.send_shared(id, Bytes::from(vec![2; 100])).is_accepted());
    harness.receive(&mut peer, 200);
    assert!(harness.kernel.followed.borrow().iter().all(|then| *then == Then::Nothing));
}

#[test]
fn a_large_file_to_a_slow_reader_takes_no_memory_and_no_calls_while_it_does_not_read() {
    let data = pattern(8 * MIB);
    let file = file_of(&data);
    let slice = whole(&file);
    let script = Script::default().data(move |ctx, id, input| {
        assert!(matches!(ctx.send_file(id, slice.clone()), SendOutcome::Queued));
        assert_eq!(ctx.queued(id), 8 * MIB);
        input.len()
    });
    let limits = Limits { memory: 64 * KIB, output: 300 * KIB, ..Limits::default() };
    let mut harness = Harness::unix(script, limits);
    let (mut peer, id) = harness.open();
    peer.say(b"x");
    harness.until("the request", |script| !script.inputs(id).is_empty());
    harness.settle();
    peer.say(b"not read before the file is down to the low water mark");
    harness.settle();
    assert!(harness.ctx().queued(id) > 7 * MIB);
    assert_eq!(harness.ctx().buffered(), 64);
    assert_eq!(harness.script().inputs(id).len(), 1);
    let before = harness.kernel.writes();
    for _ in 0..20 {
        harness.turn_for(Duration::from_millis(1));
        assert_ne!(harness.kernel.last_timeout.get(), Some(Duration::ZERO), "a busy loop");
    }
    assert_eq!(harness.kernel.writes(), before);
    let mut received = Vec::new();
    let mut buffer = vec![0; 10_000];
    harness.until_loop("the file", |harness| {
        if let Ok(length) = peer.read(&mut buffer) {
            received.extend_from_slice(&buffer[..length]);
        }
        // Once it is almost through, the next request is read, and asks for the file again.
        if received.len() >= data.len() && harness.script().inputs(id).len() == 1 {
            return false;
        }
        received.len() >= data.len()
    });
    assert_same(&received[..data.len()], &data);
    assert_eq!(harness.script().count(|call| matches!(call, support::Call::Drain(_))), 1);
}

#[test]
fn any_number_of_connections_share_a_file_and_its_position_stays() {
    let data = pattern(300_000);
    let file = file_of(&data);
    let mut harness = Harness::new(Script::default());
    let mut peers: [(Peer, ConnId); 10] = harness.open_many();
    for (index, (_, id)) in peers.iter().enumerate() {
        let slice = part(&file, index * 20_000, 100_000);
        assert!(harness.ctx().send_file(*id, slice).is_accepted());
    }
    for (index, (peer, _)) in peers.iter_mut().enumerate() {
        let received = harness.receive(peer, 100_000);
        assert_same(&received, &data[index * 20_000..][..100_000]);
    }
    assert_eq!((&*file).stream_position().unwrap(), 0);
    assert!(let_go(&file), "the loop keeps it open");
}

#[test]
fn a_file_that_is_cut_short_closes_its_connections_and_nobody_else_s() {
    let file = file_of(&pattern(4 * MIB));
    let mut harness = Harness::unix(Script::default(), Limits::default());
    let [(mut cheated, id), (mut other, other_id)] = harness.open_many();
    push(&mut harness, id, whole(&file));
    harness.settle();
    let sent = 4 * MIB - harness.ctx().queued(id);
    file.set_len((sent + 1000) as u64).unwrap();
    let (received, end) = harness.receive_all(&mut cheated);
    assert!(end.is_ok());
    assert_same(&received, &pattern(sent + 1000));
    assert_eq!(harness.closed(id), CloseReason::FileCutShort);
    let stats = harness.script().stats[&id];
    assert_eq!(stats.bytes_sent, (sent + 1000) as u64);
    assert_eq!(stats.bytes_sent + stats.bytes_unsent, 4 * MIB as u64);
    other.say(b"still here");
    assert_eq!(harness.receive(&mut other, 10), b"still here");
    assert_eq!(harness.script().closed(other_id), None);
    assert!(let_go(&file));
}

#[test]
fn what_cannot_be_read_is_as_good_as_cut_short_and_what_the_socket_says_is_not() {
    for (errno, reason) in [
        (Errno::EIO, CloseReason::FileCutShort),
        (Errno::EINVAL, CloseReason::FileCutShort),
        (Errno::EPIPE, CloseReason::Reset),
        (Errno::ECONNRESET, CloseReason::Reset),
        (Errno::ETIMEDOUT, CloseReason::Error(Errno::ETIMEDOUT)),
    ] {
        let file = file_of(b"some bytes");
        let mut harness = Harness::new(Script::default());
        let [(_peer, id), (mut other, _)] = harness.open_many();
        harness.kernel.fail_for(id, Method::Sendfile, errno, 1);
        push(&mut harness, id, whole(&file));
        assert_eq!(harness.closed(id), reason);
        other.say(b"ping");
        assert_eq!(harness.receive(&mut other, 4), b"ping");
        assert!(let_go(&file));
    }
    // Whatever it is that was opened.
    let directory = tempfile::tempdir().unwrap();
    let slices = [
        part(&Arc::new(File::open(directory.path()).unwrap()), 0, 1),
        part(&Arc::new(File::create(directory.path().join("write-only")).unwrap()), 0, 1),
        part(&file_of(b"x"), 1, 1),
        FileSlice { offset: u64::MAX, length: 5, ..whole(&file_of(b"x")) },
    ];
    for slice in slices {
        let mut harness = Harness::new(Script::default());
        let (_peer, id) = harness.open();
        push(&mut harness, id, slice.clone());
        assert_eq!(harness.closed(id), CloseReason::FileCutShort, "{slice:?}");
    }
}

#[test]
fn interruptions_refusals_and_short_counts_lose_nothing() {
    let data = pattern(100_000);
    let file = file_of(&data);
    let (script, expected) = framed(&file, &data);
    let mut harness = Harness::new(script);
    let (mut peer, id) = harness.open();
    harness.kernel.fail_for(id, Method::Sendfile, Errno::EINTR, 3);
    peer.say(b"x");
    assert_same(&harness.receive(&mut peer, expected.len()), &expected);

    harness.kernel.fail_for(id, Method::Sendfile, Errno::EAGAIN, 1);
    peer.say(b"x");
    harness.settle();
    assert_eq!(harness.ctx().queued(id), expected.len() - 5, "all but the head waits for an edge");
    peer.say(b"x");
    assert_same(&harness.receive(&mut peer, 2 * expected.len()), &expected.repeat(2));

    // Nothing is full: the rest goes out without an edge.
    let before = harness.kernel.count(Method::Sendfile);
    harness.kernel.shorten_writes(id, 999, 4);
    peer.say(b"x");
    assert_same(&harness.receive(&mut peer, expected.len()), &expected);
    assert!(harness.kernel.count(Method::Sendfile) - before >= 5);
    assert_eq!(harness.script().closed(id), None);
}

#[test]
fn a_file_that_never_refuses_leaves_others_their_turn() {
    const BUDGET: usize = 64 * KIB;
    let file = Arc::new(tempfile::tempfile().unwrap());
    file.set_len(64 * MIB as u64).unwrap();
    let mut harness = Harness::with(Script::default(), Limits { write_budget: BUDGET, ..Limits::default() });
    let [(greedy, greedy_id), (mut quick, _)] = harness.open_many();
    let Peer::Tcp(greedy) = greedy else { unreachable!() };
    greedy.set_nonblocking(false).unwrap();
    let reader =
        thread::spawn(move || std::io::copy(&mut greedy.take(64 * MIB as u64), &mut std::io::sink()));
    assert!(harness.ctx().send_file(greedy_id, whole(&file)).is_accepted());
    let mut pings = 0;
    while harness.ctx().queued(greedy_id) > 0 {
        quick.say(b"ping");
        let before = harness.ctx().counters();
        assert_eq!(harness.receive(&mut quick, 4), b"ping");
        let after = harness.ctx().counters();
        assert!(after.turns - before.turns <= 2, "{} turns", after.turns - before.turns);
        let sent = after.bytes_sent - before.bytes_sent;
        assert!(sent <= (after.turns - before.turns) * (BUDGET + 4) as u64, "{sent} bytes");
        pings += 1;
    }
    assert!(pings > 64, "{pings} pings in the time of the file");
    assert_eq!(reader.join().unwrap().unwrap(), 64 * MIB as u64);
}

#[test]
fn what_is_over_the_budget_goes_on_in_the_next_turn_without_a_wait() {
    const BUDGET: usize = 10_000;
    let file = file_of(&pattern(500_000));
    // Over the high water mark it is written when the callback returns, and not once more at the end of the turn.
    let slice = whole(&file);
    let script = Script::default().message(move |ctx, id| {
        assert!(ctx.send_shared(ConnId::from_u64(id), Bytes::from(vec![7; 5_000])).is_accepted());
        assert!(ctx.send_file(ConnId::from_u64(id), slice.clone()).is_accepted());
    });
    let limits =
        Limits { write_budget: BUDGET, output_high_water: 1_000, output_low_water: 0, ..Limits::default() };
    let mut harness = Harness::with(script, limits);
    let (mut peer, id) = harness.open();
    harness.remote().send(id.as_u64()).unwrap();
    harness.until_loop("the message", |harness| harness.ctx().counters().messages == 1);
    for turn in 1..20 {
        assert_eq!(harness.ctx().counters().bytes_sent, (turn * BUDGET) as u64);
        assert_eq!(harness.reactor.turn(Some(support::PATIENCE)).unwrap(), Turn::Continue);
        assert_eq!(harness.kernel.last_timeout.get(), Some(Duration::ZERO));
    }
    let expected = [vec![7; 5_000], pattern(500_000)].concat();
    assert_same(&harness.receive(&mut peer, 505_000), &expected);
    harness.settle();
    assert_ne!(harness.kernel.last_timeout.get(), Some(Duration::ZERO));
}

#[test]
fn ends_that_deliver_deliver_files_too() {
    let ends: [fn(&mut Ctx, ConnId); 3] =
        [Ctx::close_after_flush, Ctx::shut_down_output, |ctx, _| ctx.drain(Duration::from_secs(5))];
    for (index, end) in ends.into_iter().enumerate() {
        let data = pattern(2 * MIB);
        let file = file_of(&data);
        let (script, expected) = framed(&file, &data);
        let limits = Limits { write_budget: 100_000, ..Limits::default() };
        let mut harness = Harness::unix(script, limits);
        let (mut peer, id) = harness.open();
        peer.say(b"x");
        harness.until("the request", |script| !script.inputs(id).is_empty());
        end(harness.ctx(), id);
        // It has not read a byte yet.
        harness.turn();
        let mut received = Vec::new();
        let mut buffer = vec![0; 100_000];
        let mut stopped = None;
        while stopped.is_none() {
            match peer.read(&mut buffer) {
                Ok(0) => break,
                Ok(length) => received.extend_from_slice(&buffer[..length]),
                Err(_) => {
                    if let Turn::Stopped(how) = harness.turn_for(Duration::from_millis(1)) {
                        stopped = Some(how);
                    }
                }
            }
        }
        assert_same(&received, &expected);
        peer.finish();
        if index == 2 {
            assert_eq!(harness.run_to_end(), Stopped::Drained);
        }
        assert!(matches!(harness.closed(id), CloseReason::Local | CloseReason::PeerClosed));
        assert_eq!(harness.script().stats[&id].bytes_unsent, 0);
    }
}

#[test]
fn ends_that_drop_output_let_files_go() {
    let ends: [fn(&mut Ctx, ConnId); 3] = [Ctx::close_now, Ctx::abort, |_, _| panic!("on purpose")];
    for end in ends {
        let file = file_of(&pattern(2 * MIB));
        let slice = whole(&file);
        let script = Script::default().data(move |ctx, id, input| {
            assert!(ctx.send_file(id, slice.clone()).is_accepted());
            if input == b"end" {
                end(ctx, id);
            }
            input.len()
        });
        let mut harness =
            Harness::unix(script, Limits { output_high_water: 16 * MIB / 4, ..Limits::default() });
        harness.allow_panics = true;
        let [(mut peer, id), (mut other, _)] = harness.open_many();
        peer.say(b"x");
        harness.settle();
        peer.say(b"end");
        let reason = harness.closed(id);
        assert!(matches!(reason, CloseReason::Local | CloseReason::HandlerPanicked), "{reason}");
        let stats = harness.script().stats[&id];
        assert_eq!(stats.bytes_sent + stats.bytes_unsent, 4 * MIB as u64);
        // The script holds one of its own.
        assert_eq!(Arc::strong_count(&file), 2, "a queue that is used again keeps it open");
        other.say(b"x");
        assert_same(&harness.receive(&mut other, MIB), &pattern(MIB));
    }
}

#[test]
fn files_count_against_neither_limit_but_for_their_place() {
    let file = file_of(&pattern(MIB));
    let limits = Limits {
        output: 10_000,
        output_high_water: 10_000,
        output_low_water: 1_000,
        memory: 64 * 1_000,
        ..Limits::default()
    };
    let mut harness = Harness::unix(Script::default(), limits);
    let (_peer, id) = harness.open();
    let ctx = harness.ctx();
    for count in 1..=900 {
        assert!(matches!(ctx.send_file(id, whole(&file)), SendOutcome::Queued));
        assert_eq!((ctx.queued(id), ctx.buffered()), (count * MIB, count * 64));
    }
    // What is in memory is limited as ever.
    assert!(ctx.send(id, &[7; 2_000]).is_accepted());
    assert!(matches!(ctx.send(id, &[7; 8_001]), SendOutcome::OverLimit(_)));
    // Their places take memory, up to the eighth that is lent.
    let refused = (0..200).find(|_| !ctx.send_file(id, whole(&file)).is_accepted());
    assert!(refused.is_some_and(|count| count > 64));
    harness.turn();
    assert_eq!(harness.closed(id), CloseReason::MemoryLimit);
    assert_eq!(harness.ctx().buffered(), 0);
    assert!(let_go(&file));
}

#[test]
fn more_than_can_be_counted_is_refused() {
    let file = file_of(b"x");
    let mut harness = Harness::unix(Script::default(), Limits { output: usize::MAX, ..Limits::default() });
    let (_peer, id) = harness.open();
    let long = |length| FileSlice { file: Arc::clone(&file), offset: 0, length };
    let ctx = harness.ctx();
    assert!(
        matches!(ctx.send_file(id, long(u64::MAX)), SendOutcome::OverLimit(slice) if slice.length == u64::MAX)
    );
    assert!(ctx.send_file(id, long(u64::MAX - 5)).is_accepted());
    assert!(matches!(ctx.send_file(id, long(5)), SendOutcome::OverLimit(_)));
    assert!(matches!(ctx.send(id, b"12345"), SendOutcome::OverLimit(_)));
    assert!(ctx.send(id, b"1234").is_accepted());
    assert_eq!(harness.closed(id), CloseReason::FileCutShort);
}

#[test]
fn who_sends_a_file_is_not_the_one_that_holds_most_memory() {
    let file = file_of(&pattern(4 * MIB));
    let limits = Limits { memory: MIB, output: 2 * MIB, ..Limits::default() };
    let mut harness = Harness::unix(Script::default(), limits);
    let [(_reader, sends_file), (_other, holds)] = harness.open_many();
    push(&mut harness, sends_file, whole(&file));
    let ctx = harness.ctx();
    ctx.account(sends_file, 1_000);
    ctx.account(holds, MIB);
    harness.turn();
    assert_eq!(harness.closed(holds), CloseReason::MemoryLimit);
    assert_eq!(harness.script().closed(sends_file), None);
}

#[test]
fn a_length_of_zero_sends_nothing() {
    let file = file_of(b"");
    let slice = part(&file, 1 << 40, 0);
    let script = Script::default().data(move |ctx, id, input| {
        assert!(ctx.send(id, b"ab").is_accepted());
        assert!(matches!(ctx.send_file(id, slice.clone()), SendOutcome::Sent));
        assert!(ctx.send(id, b"cd").is_accepted());
        assert_eq!((ctx.queued(id), ctx.buffered()), (4, 0), "offered to the kernel first");
        input.len()
    });
    let mut harness = Harness::new(script);
    let (mut peer, id) = harness.open();
    peer.say(b"x");
    assert_eq!(harness.receive(&mut peer, 4), b"abcd");
    assert_eq!(
        (harness.kernel.count(Method::Send), harness.kernel.writes()),
        (1, 1),
        "as if it were not there"
    );
    assert_eq!(harness.script().closed(id), None);
}

#[test]
fn a_connection_that_is_gone_gives_the_slice_back() {
    let file = file_of(b"x");
    let mut harness = Harness::new(Script::default());
    let (peer, id) = harness.open();
    harness.ctx().close_after_flush(id);
    assert!(
        matches!(harness.ctx().send_file(id, whole(&file)), SendOutcome::Gone(slice) if slice.length == 1)
    );
    drop(peer);
    harness.closed(id);
    assert!(matches!(harness.ctx().send_file(id, whole(&file)), SendOutcome::Gone(_)));
    assert!(let_go(&file));
}

#[test]
fn a_file_may_be_sent_before_a_connection_is_made() {
    let data = pattern(300_000);
    let file = file_of(&data);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = Address::Tcp(listener.local_addr().unwrap());
    let mut harness = Harness::new(Script::default());
    let id = harness.ctx().connect(address).unwrap();
    assert!(harness.ctx().send_file(id, whole(&file)).is_accepted());
    harness.ctx().close_after_flush(id);
    harness.turn();
    let (stream, _) = listener.accept().unwrap();
    stream.set_nonblocking(true).unwrap();
    let mut peer = Peer::Tcp(stream);
    assert_same(&harness.receive(&mut peer, data.len()), &data);
    drop(peer);
    assert_eq!(harness.closed(id), CloseReason::Local);
}
