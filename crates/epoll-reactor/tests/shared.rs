//! Data for many connections at once: held once, counted once, and whom it costs what.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use epoll_reactor::{ConnId, Errno, Limits, SendOutcome};
use support::{Harness, KIB, Method, Peer, Script, assert_same, pattern};

/// Far more than the kernel's buffers of a Unix socket hold.
const MUCH: usize = 1024 * KIB;

fn marks() -> Limits {
    Limits { output_low_water: 16 * KIB, output_high_water: 64 * KIB, output: 2 * MUCH, ..Limits::default() }
}

/// `length` bytes in as much memory, which [`pattern`] does not promise.
fn exact(length: usize) -> Vec<u8> {
    pattern(length).into_boxed_slice().into_vec()
}

/// The socket of `id` is full, until all is well again.
fn block(harness: &Harness, id: ConnId) {
    harness.kernel.fail_for(id, Method::Send, Errno::EAGAIN, usize::MAX);
    harness.kernel.fail_for(id, Method::Writev, Errno::EAGAIN, usize::MAX);
}

#[test]
fn what_is_shared_counts_once_for_all_and_64_bytes_for_each_until_the_last_has_it() {
    const LENGTH: usize = 64 * KIB;
    let mut harness = Harness::unix(Script::default(), marks());
    let mut clients: [(Peer, ConnId); 5] = harness.open_many();
    let ids = clients.each_ref().map(|(_, id)| *id);
    let line = harness.ctx().share(exact(LENGTH));
    assert_eq!((line.len(), harness.ctx().buffered()), (LENGTH, LENGTH));
    for (count, id) in ids.into_iter().enumerate() {
        block(&harness, id);
        assert_eq!(harness.ctx().send_shared(id, line.clone()), SendOutcome::Sent);
        assert_eq!(harness.ctx().queued(id), LENGTH, "against its own limit, all of it");
        assert_eq!(harness.ctx().buffered(), LENGTH + 64 * (count + 1));
    }
    harness.settle();
    assert_eq!(harness.ctx().buffered(), LENGTH + 64 * 5);
    harness.ctx().close_now(ids[0]);
    harness.closed(ids[0]);
    assert_eq!(harness.script().stats[&ids[0]].bytes_unsent, LENGTH as u64);
    assert_eq!(harness.ctx().buffered(), LENGTH + 64 * 4);
    harness.kernel.heal();
    for (peer, id) in &mut clients[1..] {
        // The kernel tells that there is room along with this.
        peer.say(b"x");
        assert_same(&harness.receive(peer, LENGTH), &pattern(LENGTH));
        assert_eq!(harness.receive(peer, 1), b"x");
        assert_eq!(harness.ctx().queued(*id), 0);
    }
    assert_eq!(harness.ctx().buffered(), LENGTH, "as long as somebody may send it again");
    drop(line);
    assert_eq!(harness.ctx().buffered(), 0);
    let mut roomy = Vec::with_capacity(10_000);
    roomy.extend([b'x'; 65]);
    let roomy = harness.ctx().share(roomy);
    assert_eq!((roomy.len(), harness.ctx().buffered()), (65, 10_000), "what is held, not what is used of it");
    // What is short is copied to each, and shared by none.
    assert_eq!((harness.ctx().share(vec![b'x'; 64]).len(), harness.ctx().buffered()), (64, 10_000));
}

#[test]
fn what_is_shared_is_refused_by_its_receivers_limit_in_full_and_handed_back() {
    let limits = Limits { output: 100 * KIB, output_high_water: 64 * KIB, ..marks() };
    let mut harness = Harness::unix(Script::default(), limits);
    let (_peer, id) = harness.open();
    block(&harness, id);
    let (fits, too_long) = (harness.ctx().share(exact(100 * KIB)), harness.ctx().share(exact(100 * KIB + 1)));
    assert_eq!(harness.ctx().send_shared(id, too_long.clone()), SendOutcome::OverLimit(too_long));
    assert_eq!(harness.ctx().send_shared(id, fits.clone()), SendOutcome::Queued);
    assert_eq!(harness.ctx().send_shared(id, fits.clone()), SendOutcome::OverLimit(fits));
    assert_eq!((harness.ctx().queued(id), harness.ctx().buffered()), (100 * KIB, 100 * KIB + 64));
}

#[test]
fn a_shared_line_for_many_costs_nobody_who_reads_its_connection() {
    // To all, where each counted in full would be more than there is.
    let script = Script::default().message(|ctx, _| {
        let line = ctx.share(exact(64 * KIB));
        for index in 0..50 {
            assert!(ctx.send_shared(ConnId::from_u64(1 << 32 | index), line.clone()).is_accepted());
        }
    });
    let mut harness = Harness::unix(script, Limits { memory: 256 * KIB, ..marks() });
    let mut clients: [(Peer, ConnId); 50] = harness.open_many();
    let remote = harness.remote();
    for message in 0..10 {
        remote.send(message).unwrap();
        for (peer, _) in &mut clients {
            assert_same(&harness.receive(peer, 64 * KIB), &pattern(64 * KIB));
        }
    }
    let counters = harness.ctx().counters();
    assert_eq!((counters.sends_refused, counters.closed), (0, 0));
    assert_eq!(harness.ctx().buffered(), 0);
}

#[test]
fn of_those_for_whom_shared_data_waits_the_ones_that_hold_it_go_before_those_that_hold_little() {
    // Different data for each of four that do not read, and a client that has begun a message.
    let mut harness = Harness::unix(Script::default().data(|_, _, _| 0), Limits { memory: MUCH, ..marks() });
    let mut clients: [(Peer, ConnId); 6] = harness.open_many();
    let ids = clients.each_ref().map(|(_, id)| *id);
    clients[4].0.say(&[1; 1000]);
    harness.until("its beginning", |script| !script.inputs(ids[4]).is_empty());
    for id in &ids[..4] {
        block(&harness, *id);
        let line = harness.ctx().share(exact(240 * KIB));
        assert!(harness.ctx().send_shared(*id, line).is_accepted());
    }
    harness.settle();
    assert_eq!(harness.ctx().counters().closed, 0);
    let another = harness.ctx().share(exact(240 * KIB));
    assert!(!harness.ctx().send_shared(ids[0], another).is_accepted());
    // In anybody's callback.
    clients[5].0.say(b"x");
    harness.settle();
    let gone: Vec<usize> = (0..6).filter(|index| harness.script().closed(ids[*index]).is_some()).collect();
    assert_eq!(gone.len(), 1, "{gone:?}: one of the four is an eighth, and the others hold next to nothing");
    assert!(gone[0] < 4, "{gone:?}");
}
