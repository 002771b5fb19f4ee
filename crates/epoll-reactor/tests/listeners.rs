//! Accepting: several listeners, budgets, limits, and running out of descriptors without spinning or stalling.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::Duration;

use epoll_reactor::{Address, Errno, Limits, ListenOptions};
use support::{Harness, Method, Peer, Script, warnings};

#[test]
fn listeners_of_every_kind_share_a_loop_and_its_end_removes_the_socket_file() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let mut harness = Harness::new(Script::default());
    let mut addresses = vec![harness.address.clone()];
    for address in [Address::Tcp("127.0.0.1:0".parse().unwrap()), Address::Unix(path.clone())] {
        addresses.push(harness.reactor.listen(&address, &ListenOptions::default()).unwrap().1);
    }
    // A system may be without IPv6.
    if let Ok((_, bound)) =
        harness.reactor.listen(&Address::Tcp("[::1]:0".parse().unwrap()), &ListenOptions::default())
    {
        addresses.push(bound);
    }
    let mut peers: Vec<Peer> = addresses.iter().map(Peer::connect).collect();
    for peer in &mut peers {
        peer.say(b"hello");
        assert_eq!(harness.receive(peer, 5), b"hello");
    }
    let mut listeners: Vec<_> = harness.script().opened();
    listeners.dedup_by_key(|id| harness.reactor.ctx().listener(*id));
    assert_eq!(listeners.len(), addresses.len(), "each connection knows its listener");
    assert!(path.exists());
    harness.ctx().drain(Duration::from_secs(5));
    drop(peers);
    harness.run_to_end();
    assert!(!path.exists());
}

#[test]
fn an_ipv6_listener_on_the_unspecified_address_takes_ipv4_too() {
    let (kernel, _) = support::TestKernel::new();
    let mut reactor =
        epoll_reactor::Reactor::with_kernel(kernel, Script::default(), Limits::default()).unwrap();
    let Ok((_, bound)) = reactor.listen(&Address::Tcp("[::]:0".parse().unwrap()), &ListenOptions::default())
    else {
        return; // A system without IPv6.
    };
    let port = bound.as_tcp().unwrap().port();
    let _v4 = TcpStream::connect(("127.0.0.1", port)).unwrap();
    let _v6 = TcpStream::connect(("::1", port)).unwrap();
    let started = std::time::Instant::now();
    while reactor.handler().opened().len() < 2 {
        reactor.turn(Some(Duration::from_millis(5))).unwrap();
        assert!(started.elapsed() < support::PATIENCE);
    }
    let ids = reactor.handler().opened();
    assert_eq!(
        reactor.ctx().peer_address(ids[0]).unwrap().as_tcp().unwrap().ip().to_canonical().to_string(),
        "127.0.0.1"
    );
}

#[test]
fn a_reactor_that_is_dropped_removes_its_socket_file() {
    let harness = Harness::unix(Script::default(), Limits::default());
    let Address::Unix(path) = harness.address.clone() else { panic!() };
    assert!(path.exists());
    drop(harness.reactor);
    assert!(!path.exists());
}

#[test]
fn an_address_that_cannot_be_listened_on_is_named() {
    let mut harness = Harness::new(Script::default());
    let taken = harness.address.clone();
    let error = harness.reactor.listen(&taken, &ListenOptions::default()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&taken.to_string()), "{error}");
}

#[test]
fn accepted_connections_inherit_the_listener_s_options() {
    let mut harness = Harness::new(Script::default());
    harness.kernel.hold_duplicates.set(true);
    let (_peer, _) = harness.open();
    let socket = harness.kernel.duplicates.borrow_mut().pop().unwrap();
    let get = nix::sys::socket::getsockopt::<std::os::fd::OwnedFd, nix::sys::socket::sockopt::KeepAlive>;
    assert!(get(&socket, nix::sys::socket::sockopt::KeepAlive).unwrap());
    assert!(TcpStream::from(socket).nodelay().unwrap());
}

#[test]
fn a_storm_of_clients_is_accepted_a_few_a_turn_while_others_are_served() {
    let mut harness = Harness::with(Script::default(), Limits { accept_budget: 4, ..Limits::default() });
    let (mut old, old_id) = harness.open();
    harness.settle();
    let mut storm: Vec<Peer> = (0..20).map(|_| harness.connect()).collect();
    old.say(b"x");
    harness.turn_for(Duration::from_secs(1));
    assert_eq!(harness.script().opened().len() - 1, 4);
    harness.until("the old one's input", |script| !script.inputs(old_id).is_empty());
    assert!(harness.script().opened().len() <= 9, "it did not wait for the storm to pass");
    // No further edge comes for those that wait: the ready list brings them, four at a time.
    let mut before = harness.script().opened().len();
    while before < 21 {
        harness.turn();
        let now = harness.script().opened().len();
        assert_eq!(now - before, 4.min(21 - before));
        before = now;
    }
    for peer in &mut storm {
        peer.say(b"y");
        assert_eq!(harness.receive(peer, 1), b"y");
    }
}

#[test]
fn beyond_the_limit_of_connections_a_client_is_turned_away_at_once() {
    let mut harness = Harness::with(Script::default(), Limits { connections: 2, ..Limits::default() });
    let [(mut first, id), _second] = harness.open_many();
    let mut third = harness.connect();
    let (received, _) = harness.receive_all(&mut third);
    assert!(received.is_empty());
    assert_eq!((harness.ctx().counters().shed, harness.ctx().connections()), (1, 2));
    first.say(b"x");
    assert_eq!(harness.receive(&mut first, 1), b"x");
    drop(first);
    harness.closed(id);
    harness.open();
}

#[test]
fn errors_of_a_client_that_is_being_accepted_are_its_own() {
    for errno in [Errno::ECONNABORTED, Errno::EINTR, Errno::EPROTO, Errno::ENETUNREACH] {
        let mut harness = Harness::with(Script::default(), Limits { accept_budget: 3, ..Limits::default() });
        harness.kernel.fail(Method::Accept, errno, 10);
        let (mut peer, _) = harness.open();
        peer.say(b"x");
        assert_eq!(harness.receive(&mut peer, 1), b"x");
        assert_eq!(harness.ctx().counters().accept_pauses, 0, "{errno}");
    }
}

#[test]
fn an_error_that_means_the_program_is_broken_ends_the_loop_with_it() {
    let mut harness = Harness::new(Script::default());
    let _peer = harness.connect();
    harness.kernel.fail(Method::Accept, Errno::EBADF, 1);
    let error = harness.reactor.turn(Some(Duration::from_secs(5))).unwrap_err();
    assert!(error.to_string().contains("accept"), "{error}");
}

#[test]
fn out_of_descriptors_one_client_is_shed_the_rest_wait_and_nothing_spins() {
    for errno in [Errno::EMFILE, Errno::ENFILE] {
        let mut harness = Harness::new(Script::default());
        let (mut old, _) = harness.open();
        harness.settle();
        harness.stop_clock();
        let mut clients: Vec<Peer> = (0..3).map(|_| harness.connect()).collect();
        let accepts = harness.kernel.count(Method::Accept);
        harness.kernel.fail(Method::Accept, errno, 1);
        harness.settle();
        // One failed, and one more with the spare descriptor.
        assert_eq!(harness.kernel.count(Method::Accept) - accepts, 2);
        let counters = harness.ctx().counters();
        assert_eq!((counters.accept_pauses, counters.shed), (1, 1));
        let (received, _) = harness.receive_all(&mut clients[0]);
        assert!(received.is_empty(), "the one that was shed knows");
        // Meanwhile the others are served, and the loop sleeps until the retry.
        old.say(b"x");
        assert_eq!(harness.receive(&mut old, 1), b"x");
        harness.reactor.turn(Some(Duration::from_millis(1))).unwrap();
        harness.kernel.advance(Duration::from_millis(99));
        harness.turn_for(Duration::from_secs(3600).min(Duration::from_millis(1)));
        assert_eq!(harness.script().opened().len(), 1, "not before its time");
        harness.advance(Duration::from_millis(1));
        assert_eq!(harness.script().opened().len(), 3, "{errno}: those that waited, without any edge");
        clients[1].say(b"y");
        assert_eq!(harness.receive(&mut clients[1], 1), b"y");
    }
}

#[test]
fn a_paused_listener_asks_to_be_woken_at_its_retry_and_not_before() {
    let mut harness = Harness::with(
        Script::default(),
        Limits { accept_retry: Duration::from_millis(250), ..Limits::default() },
    );
    let _client = harness.connect();
    harness.stop_clock();
    harness.kernel.fail(Method::Accept, Errno::EMFILE, 2);
    harness.settle();
    assert_eq!(harness.ctx().counters().accept_pauses, 1);
    harness.kernel.advance(Duration::from_millis(50));
    harness.turn();
    // With nothing else to do; the clock stands still, so this returns only for real time or an event.
    let waited = std::time::Instant::now();
    harness.reactor.turn(None).unwrap();
    assert_eq!(harness.kernel.last_timeout.get(), Some(Duration::from_millis(200)));
    assert!(waited.elapsed() >= Duration::from_millis(200));
}

#[test]
fn a_paused_listener_resumes_at_once_when_a_connection_ends() {
    let mut harness = Harness::new(Script::default());
    let (old, old_id) = harness.open();
    harness.settle();
    harness.stop_clock();
    let mut waiting = harness.connect();
    harness.kernel.fail(Method::Accept, Errno::EMFILE, 2);
    harness.settle();
    assert_eq!(harness.script().opened().len(), 1);
    drop(old);
    harness.closed(old_id);
    harness.until("the one that waited, though no time passes", |script| script.opened().len() == 2);
    waiting.say(b"x");
    assert_eq!(harness.receive(&mut waiting, 1), b"x");
}

#[test]
fn trouble_that_lasts_is_tried_once_in_a_while_for_as_long_as_it_lasts() {
    let mut harness = Harness::new(Script::default());
    let mut client = harness.connect();
    harness.stop_clock();
    harness.kernel.fail(Method::Accept, Errno::EMFILE, usize::MAX);
    harness.kernel.fail(Method::Eventfd, Errno::EMFILE, usize::MAX);
    harness.settle();
    for round in 1..20 {
        let accepts = harness.kernel.count(Method::Accept);
        harness.advance(Duration::from_millis(100));
        let tried = harness.kernel.count(Method::Accept) - accepts;
        assert!((1..=2).contains(&tried), "{tried} tries in round {round}");
        assert_eq!(harness.ctx().counters().accept_pauses, round + 1);
    }
    harness.kernel.heal();
    harness.advance(Duration::from_millis(100));
    client.say(b"x");
    assert_eq!(harness.receive(&mut client, 1), b"x");
    // And the spare descriptor is there for the next time.
    let mut next = harness.connect();
    harness.kernel.fail(Method::Accept, Errno::EMFILE, 1);
    assert!(harness.receive_all(&mut next).0.is_empty());
    assert_eq!(harness.ctx().counters().shed, 1);
}

#[test]
fn an_error_of_each_accept_that_never_ends_is_tried_once_in_a_while_too() {
    for errno in [Errno::EPERM, Errno::ECONNABORTED] {
        let mut harness = Harness::new(Script::default());
        let (mut old, _) = harness.open();
        harness.settle();
        harness.stop_clock();
        let mut client = harness.connect();
        harness.kernel.fail(Method::Accept, errno, usize::MAX);
        let mut accepts = harness.kernel.count(Method::Accept);
        for round in 1..5 {
            for _ in 0..20 {
                harness.turn();
            }
            let tried = harness.kernel.count(Method::Accept) - accepts;
            accepts += tried;
            // As many as the backlog might hold of such clients, and no more.
            assert!((1..=1000).contains(&tried), "{tried} tries in round {round}");
            assert_eq!(harness.ctx().counters().accept_pauses, round, "{errno}");
            // The loop sleeps, and others are served.
            harness.turn_for(Duration::from_millis(1));
            assert_eq!(harness.kernel.last_timeout.get(), Some(Duration::from_millis(1)));
            old.say(b"x");
            assert_eq!(harness.receive(&mut old, 1), b"x");
            assert_eq!(harness.kernel.count(Method::Accept), accepts, "not before its time");
            harness.kernel.advance(Duration::from_millis(100));
        }
        harness.kernel.heal();
        client.say(b"y");
        assert_eq!(harness.receive(&mut client, 1), b"y");
        assert_eq!(harness.ctx().counters().shed, 0);
    }
}

#[test]
fn errors_with_clients_between_them_do_not_pause_a_listener() {
    let mut harness = Harness::new(Script::default());
    for _ in 0..10 {
        harness.kernel.fail(Method::Accept, Errno::ECONNABORTED, 200);
        harness.open();
    }
    assert_eq!(harness.ctx().counters().accept_pauses, 0);
}

#[test]
fn a_retry_without_a_pause_is_no_limit() {
    let limits = Limits { accept_retry: Duration::ZERO, ..Limits::default() };
    let error = epoll_reactor::Reactor::new(Script::default(), limits).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidInput);
    assert!(error.to_string().contains("accept_retry"), "{error}");
}

#[test]
fn a_client_that_cannot_be_registered_is_dropped_and_a_shortage_pauses_the_listener() {
    for (errno, pauses) in [(Errno::ENOMEM, 1), (Errno::ENOSPC, 1), (Errno::EEXIST, 0)] {
        let mut harness = Harness::new(Script::default());
        let mut first = harness.connect();
        let mut second = harness.connect();
        harness.kernel.fail(Method::Add, errno, 1);
        assert!(harness.receive_all(&mut first).0.is_empty());
        second.say(b"x");
        assert_eq!(harness.receive(&mut second, 1), b"x");
        assert_eq!(harness.ctx().counters().accept_pauses, pauses, "{errno}");
        assert_eq!((harness.script().opened().len(), harness.ctx().connections()), (1, 1));
    }
}

#[test]
fn a_pause_of_one_listener_is_not_another_s() {
    let mut harness = Harness::new(Script::default());
    let (_, other) = harness
        .reactor
        .listen(&Address::Tcp("127.0.0.1:0".parse().unwrap()), &ListenOptions::default())
        .unwrap();
    harness.stop_clock();
    let _waiting = harness.connect();
    harness.kernel.fail(Method::Accept, Errno::EMFILE, 2);
    harness.settle();
    let mut peer = Peer::connect(&other);
    peer.say(b"x");
    assert_eq!(harness.receive(&mut peer, 1), b"x");
    assert_eq!(harness.script().opened().len(), 1);
}

#[test]
fn running_out_is_logged_once_while_it_lasts_and_seldom_if_it_comes_and_goes() {
    assert_eq!(warnings().len(), 0);
    let mut harness = Harness::new(Script::default());
    harness.stop_clock();
    // Trouble, how long it lasts, and how many lines there are then; between two times one client gets in.
    for (seconds, lines) in [(1, 1), (1, 1), (20, 2), (1, 3), (1, 3)] {
        let opened = harness.script().opened().len();
        harness.kernel.fail(Method::Accept, Errno::EMFILE, usize::MAX);
        let _client = harness.connect();
        harness.settle();
        for _ in 0..10 * seconds {
            harness.advance(Duration::from_millis(100));
        }
        assert_eq!(warnings().len(), lines, "after {seconds} s");
        harness.kernel.heal();
        harness.advance(Duration::from_millis(100));
        harness.until("it is over", |script| script.opened().len() > opened);
    }
    assert!(warnings()[0].contains("127.0.0.1"), "it says where");
}

#[test]
fn one_client_that_has_too_many_connections_does_not_hide_real_trouble_from_the_log() {
    assert_eq!(warnings().len(), 0);
    let limits = Limits { connections_per_address: 1, ..Limits::default() };
    let mut harness = Harness::with(Script::default(), limits);
    let (first, id) = harness.open();
    harness.stop_clock();
    let mut second = harness.connect();
    assert!(harness.receive_all(&mut second).0.is_empty());
    assert_eq!(warnings().len(), 0, "that is no trouble of the listener's");
    drop(first);
    harness.closed(id);
    harness.kernel.fail(Method::Accept, Errno::EMFILE, 2);
    let _waiting = harness.connect();
    harness.settle();
    assert_eq!(warnings().len(), 1);
    assert!(warnings()[0].contains("not accepting"), "{:?}", warnings());
}
