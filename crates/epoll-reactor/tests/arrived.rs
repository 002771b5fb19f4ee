//! A drain serves what had arrived before it: requests that nobody has read yet, and clients that nobody has
//! accepted yet.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::cell::RefCell;
use std::net::TcpListener;
use std::rc::Rc;
use std::time::Duration;

use epoll_reactor::{Address, CloseReason, ConnId, Errno, Limits, Stopped, raise_open_file_limit};
use support::{Call, Harness, KIB, Method, Peer, Script, assert_same, pattern};

const GRACE: Duration = Duration::from_secs(5);

/// Each client has had all of its answer, and then the end.
fn all_answered(harness: &mut Harness, clients: Vec<Peer>) {
    for mut peer in clients {
        let (received, end) = harness.receive_all(&mut peer);
        end.unwrap();
        assert_eq!(received, b"request", "the echo");
    }
    assert_eq!(harness.run_to_end(), Stopped::Drained);
}

#[test]
fn a_request_that_came_before_the_drain_but_after_the_wait_of_its_turn_is_answered() {
    for unix in [false, true] {
        let peers: Rc<RefCell<Vec<Peer>>> = Rc::default();
        let script = Script::default().message({
            let peers = Rc::clone(&peers);
            move |ctx, _| {
                // The wait is over: of this the loop hears in the next turn.
                peers.borrow_mut().iter_mut().for_each(|peer| peer.say(b"request"));
                ctx.drain(GRACE);
            }
        });
        let mut harness = if unix { Harness::unix(script, Limits::default()) } else { Harness::new(script) };
        for _ in 0..5 {
            let (peer, _) = harness.open();
            peers.borrow_mut().push(peer);
        }
        harness.settle();
        harness.remote().send(1).unwrap();
        harness.turn();
        assert_eq!(harness.script().messages(), [1]);
        all_answered(&mut harness, peers.take());
        assert_eq!(harness.script().count(|call| matches!(call, Call::Shutdown(_))), 5);
    }
}

#[test]
fn more_requests_than_one_wait_can_report_are_all_answered() {
    raise_open_file_limit().unwrap();
    let mut harness = Harness::unix(Script::default(), Limits::default());
    // More than the loop has room for events to begin with.
    let mut clients: Vec<Peer> = Vec::new();
    while clients.len() < 300 {
        clients.extend((0..100).map(|_| harness.connect()));
        harness.until_loop("the clients", |it| it.ctx().connections() == clients.len());
    }
    harness.settle();
    clients.iter_mut().for_each(|peer| peer.say(b"request"));
    harness.ctx().drain(GRACE);
    all_answered(&mut harness, clients);
}

#[test]
fn clients_that_wait_in_the_backlog_are_accepted_and_answered() {
    // One, and more than are accepted in one turn.
    for (count, accept_budget) in [(1, 64), (20, 4), (100, 64)] {
        let mut harness = Harness::with(Script::default(), Limits { accept_budget, ..Limits::default() });
        harness.settle();
        let mut clients: Vec<Peer> = (0..count).map(|_| harness.connect()).collect();
        clients.iter_mut().for_each(|peer| peer.say(b"request"));
        harness.ctx().drain(GRACE);
        all_answered(&mut harness, clients);
        assert_eq!(harness.ctx().counters().accepted, count);
    }
}

#[test]
fn a_backlog_beyond_the_limit_of_connections_is_turned_away_as_ever() {
    let mut harness = Harness::with(Script::default(), Limits { connections: 3, ..Limits::default() });
    harness.settle();
    let mut clients: Vec<Peer> = (0..5).map(|_| harness.connect()).collect();
    clients.iter_mut().for_each(|peer| peer.say(b"request"));
    harness.ctx().drain(GRACE);
    let answered = clients
        .into_iter()
        .filter_map(|mut peer| Some(harness.receive_all(&mut peer).0).filter(|it| it == b"request"));
    assert_eq!(answered.count(), 3);
    assert_eq!(harness.run_to_end(), Stopped::Drained);
    assert_eq!((harness.ctx().counters().accepted, harness.ctx().counters().shed), (3, 2));
}

#[test]
fn an_accept_that_fails_for_good_does_not_keep_a_drain_from_its_end() {
    for errno in [Errno::EPERM, Errno::EMFILE, Errno::EBADF] {
        let mut harness = Harness::new(Script::default());
        let (peer, _) = harness.open();
        harness.settle();
        let _waiting = harness.connect();
        harness.kernel.fail(Method::Accept, errno, usize::MAX);
        // Not before the turn of the drain: the loop would end with EBADF.
        let script = std::mem::take(harness.script());
        *harness.script() = script.message(|ctx, _| ctx.drain(GRACE));
        if errno == Errno::EBADF {
            harness.ctx().drain(GRACE);
            assert!(harness.reactor.turn(Some(GRACE)).is_err(), "the program is broken");
            continue;
        }
        harness.remote().send(1).unwrap();
        drop(peer);
        assert_eq!(harness.run_to_end(), Stopped::Drained, "{errno}");
    }
}

#[test]
fn what_was_sent_to_a_connection_that_is_still_being_made_is_delivered() {
    for size in [5, 2 * 1024 * KIB] {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let address = Address::Tcp(listener.local_addr().unwrap());
        let mut harness = Harness::new(Script::default());
        let id = harness.ctx().connect(address).unwrap();
        assert!(harness.ctx().send(id, &pattern(size)).is_accepted());
        harness.ctx().close_after_flush(id);
        harness.ctx().drain(GRACE);
        let mut accepted = None;
        harness.until_loop("the connection", |_| {
            accepted = listener.accept().ok();
            accepted.is_some()
        });
        let (stream, _) = accepted.unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut peer = Peer::Tcp(stream);
        let (received, end) = harness.receive_all(&mut peer);
        end.unwrap();
        assert_same(&received, &pattern(size));
        drop(peer);
        assert_eq!(harness.run_to_end(), Stopped::Drained);
        assert_eq!(harness.script().calls, [Call::Close(id, CloseReason::Local)]);
        assert_eq!(harness.script().stats[&id].bytes_sent, size as u64);
    }
}

#[test]
fn one_that_is_refused_though_it_was_closed_already_says_so_with_and_without_a_drain() {
    // A port that was somebody's a moment ago.
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    for drained in [false, true] {
        let mut harness = Harness::new(Script::default());
        let id: ConnId = harness.ctx().connect(Address::Tcp(nobody)).unwrap();
        assert!(harness.ctx().send(id, b"hello").is_accepted());
        harness.ctx().close_after_flush(id);
        if drained {
            harness.ctx().drain(GRACE);
            assert_eq!(harness.run_to_end(), Stopped::Drained);
        }
        assert_eq!(harness.closed(id), CloseReason::ConnectFailed(Errno::ECONNREFUSED), "drain: {drained}");
        let stats = harness.script().stats[&id];
        assert_eq!((stats.bytes_sent, stats.bytes_unsent), (0, 5));
    }
}

#[test]
fn requests_that_wait_for_another_turn_of_their_connection_are_answered_too() {
    // Read and not handled yet, since the handler lets others have their turn; and not read yet, for the budget.
    let one_at_a_time = || {
        Script::default().data(|ctx, id, input| {
            assert!(ctx.send(id, &input[..1]).is_accepted());
            ctx.read_again(id);
            1
        })
    };
    let small_reads = Limits { read_buffer: 2, read_budget: 2, ..Limits::default() };
    for (script, limits) in [(one_at_a_time(), Limits::default()), (Script::default(), small_reads)] {
        let mut harness = Harness::unix(script, limits);
        let (mut peer, _) = harness.open();
        peer.say(b"0123456789");
        harness.ctx().drain(GRACE);
        let (received, end) = harness.receive_all(&mut peer);
        end.unwrap();
        assert_eq!(received, b"0123456789");
        drop(peer);
        assert_eq!(harness.run_to_end(), Stopped::Drained);
    }
}
