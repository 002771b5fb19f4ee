//! Who is let in: limits for all clients and for each address, and what those are told for whom there is no room.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use epoll_reactor::{CloseReason, Limits, Stopped};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use support::{Harness, Peer, Script, pattern};

const REFUSAL: &[u8] = b"no room, come back later\n";

/// A client of another address of this machine.
fn connect_from(harness: &Harness, host: u8) -> Peer {
    let std::net::SocketAddr::V4(to) = harness.address.as_tcp().unwrap() else { panic!("IPv4") };
    let from: SocketAddrV4 = format!("127.0.0.{host}:0").parse().unwrap();
    let fd = socket(AddressFamily::Inet, SockType::Stream, SockFlag::SOCK_CLOEXEC, None).unwrap();
    bind(fd.as_raw_fd(), &SockaddrIn::from(from)).unwrap();
    connect(fd.as_raw_fd(), &SockaddrIn::from(to)).unwrap();
    let stream = TcpStream::from(fd);
    stream.set_nonblocking(true).unwrap();
    Peer::Tcp(stream)
}

#[test]
fn an_address_has_so_many_connections_and_others_are_unaffected() {
    let limits = Limits { connections_per_address: 2, ..Limits::default() };
    let mut harness = Harness::with(Script::default(), limits);
    let first = connect_from(&harness, 2);
    let second = connect_from(&harness, 2);
    harness.until("both", |script| script.opened().len() == 2);
    let ids = harness.script().opened();
    let mut third = connect_from(&harness, 2);
    assert!(harness.receive_all(&mut third).0.is_empty());
    assert_eq!(harness.ctx().counters().shed, 1);
    let mut other = connect_from(&harness, 3);
    other.say(b"x");
    assert_eq!(harness.receive(&mut other, 1), b"x");

    // One that leaves makes room for one, whichever way it leaves.
    drop(first);
    harness.closed(ids[0]);
    let mut fourth = connect_from(&harness, 2);
    fourth.say(b"y");
    assert_eq!(harness.receive(&mut fourth, 1), b"y");
    harness.ctx().abort(ids[1]);
    assert_eq!(harness.closed(ids[1]), CloseReason::Local);
    drop(second);
    let mut fifth = connect_from(&harness, 2);
    fifth.say(b"z");
    assert_eq!(harness.receive(&mut fifth, 1), b"z");
    assert!(harness.receive_all(&mut connect_from(&harness, 2)).0.is_empty(), "and for no more");
}

#[test]
fn who_is_turned_away_is_told_so_even_if_it_has_spoken() {
    let limits = Limits { connections: 1, refusal: REFUSAL, ..Limits::default() };
    let mut harness = Harness::with(Script::default(), limits);
    let (_first, id) = harness.open();
    for said in [0, 1, 100_000] {
        let mut turned_away = harness.connect();
        harness.write(&mut turned_away, &pattern(said));
        let (told, end) = harness.receive_all(&mut turned_away);
        assert_eq!((told.as_slice(), end.is_ok()), (REFUSAL, true), "after {said} bytes");
        drop(turned_away);
        harness.until_loop("its slot", |harness| harness.ctx().connections() == 1);
    }
    assert_eq!(harness.script().opened(), [id], "the handler has heard of one client");
    assert_eq!(harness.ctx().counters().shed, 3);
    assert_eq!(harness.ctx().counters().closed, 0);
    assert_eq!(harness.ctx().buffered(), 0);
}

#[test]
fn only_some_are_told_at_a_time_and_a_drain_does_not_wait_long_for_them() {
    let limits = Limits { connections: 1, refusal: REFUSAL, ..Limits::default() };
    let mut harness = Harness::with(Script::default(), limits);
    let (first, _) = harness.open();
    harness.stop_clock();
    // They read nothing and stay.
    let mut crowd: Vec<Peer> = (0..40).map(|_| harness.connect()).collect();
    harness.until_loop("all", |harness| harness.ctx().counters().shed == 40);
    assert_eq!(harness.ctx().connections(), 1 + 16);
    let told = crowd.iter_mut().filter_map(|peer| {
        let (received, _) = harness.receive_all(peer);
        (received == REFUSAL).then_some(())
    });
    assert_eq!(told.count(), 16);
    // They take no room from those who are let in.
    drop(first);
    harness.until_loop("the first's slot", |harness| harness.ctx().connections() == 16);
    let mut late = harness.connect();
    late.say(b"x");
    assert_eq!(harness.receive(&mut late, 1), b"x");
    // And what they take they have for as long as any connection lingers.
    harness.advance(Duration::from_secs(2));
    harness.until_loop("their slots", |harness| harness.ctx().connections() == 1);
    drop(late);
    harness.ctx().drain(Duration::from_secs(60));
    assert_eq!(harness.run_to_end(), Stopped::Drained);
}
