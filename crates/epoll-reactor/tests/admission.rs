//! Who is let in: limits for all clients and for each address, and what those are told for whom there is no room.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::cell::Cell;
use std::io::{ErrorKind, Read};
use std::net::{SocketAddrV4, TcpStream};
use std::os::fd::AsRawFd;
use std::time::Duration;

use epoll_reactor::{
    Address, CloseReason, ConnId, Ctx, Errno, Handler, Limits, ListenOptions, Reactor, Stopped,
};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, SockaddrIn, bind, connect, socket};
use support::{Harness, KIB, Method, Peer, Script, pattern};

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
    let counters = harness.ctx().counters();
    assert_eq!((counters.shed, counters.shed_by_address), (1, 1));
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

    // With the last of an address its entry goes too; with the feature `sim` every turn looks at the books.
    drop((other, fourth, fifth));
    harness.until_loop("all to be gone", |harness| harness.ctx().connections() == 0);
}

#[test]
fn a_limit_of_none_for_an_address_lets_nobody_in() {
    let limits = Limits { connections_per_address: 0, refusal: REFUSAL, ..Limits::default() };
    let mut harness = Harness::with(Script::default(), limits);
    let mut client = connect_from(&harness, 9);
    assert_eq!(harness.receive_all(&mut client).0, REFUSAL);
    assert!(harness.script().opened().is_empty());
}

#[test]
fn who_is_turned_away_is_told_so_even_if_it_has_spoken() {
    let limits = Limits { connections: 1, refusal: REFUSAL, ..Limits::default() };
    let mut harness = Harness::with(Script::default(), limits);
    let (_first, id) = harness.open();
    harness.stop_clock();
    for said in [0, 1, 100_000] {
        let mut turned_away = harness.connect();
        harness.write(&mut turned_away, &pattern(said));
        let (told, end) = harness.receive_all(&mut turned_away);
        assert_eq!((told.as_slice(), end.is_ok()), (REFUSAL, true), "after {said} bytes");
        // On this machine an RST comes too late to destroy what has arrived, but nothing can be written behind one.
        for _ in 0..2 {
            turned_away.say(b"and another thing");
            harness.settle();
        }
        drop(turned_away);
        harness.settle();
    }
    assert_eq!(harness.script().opened(), [id], "the handler has heard of one client");
    assert_eq!(harness.ctx().counters().shed, 3);
    assert_eq!(harness.ctx().counters().closed, 0);
    assert_eq!(harness.ctx().buffered(), 0);
}

/// How many of `crowd` were told; all of them have been turned away.
fn count_told(harness: &mut Harness, crowd: &mut [Peer]) -> usize {
    crowd.iter_mut().map(|peer| usize::from(harness.receive_all(peer).0 == REFUSAL)).sum()
}

#[test]
fn only_some_are_told_at_a_time_and_they_take_no_room_from_those_who_are_let_in() {
    let limits = Limits { connections: 2, refusal: REFUSAL, ..Limits::default() };
    let mut harness = Harness::with(Script::default(), limits);
    let [(first, _), _second] = harness.open_many();
    harness.stop_clock();
    // They stay, and say nothing.
    let mut crowd: Vec<Peer> = (0..40).map(|_| harness.connect()).collect();
    harness.until_loop("all", |harness| harness.ctx().counters().shed == 40);
    assert_eq!(count_told(&mut harness, &mut crowd), 16);
    assert_eq!(harness.ctx().connections(), 2, "those are not connections of the handler's");
    drop(first);
    harness.until_loop("the first's slot", |harness| harness.ctx().connections() == 1);
    // One that comes in, and one that is made.
    let mut late = harness.connect();
    late.say(b"x");
    assert_eq!(harness.receive(&mut late, 1), b"x");
    drop(late);
    harness.until_loop("its slot", |harness| harness.ctx().connections() == 1);
    let address = harness.address.clone();
    assert!(harness.ctx().connect(address.clone()).is_some());
    assert!(harness.ctx().connect(address).is_none());
    harness.until_loop("the made one's other end to be turned away", |it| it.ctx().counters().shed == 41);
    // It has heard so, and ends.
    harness.until_loop("the made one's end", |harness| harness.ctx().connections() == 1);
    let _third = harness.open();
    // When their time is over, others are told.
    harness.advance(Duration::from_secs(2));
    let mut others = [harness.connect(), harness.connect()];
    assert_eq!(count_told(&mut harness, &mut others), 2);
}

#[test]
fn telling_takes_two_seconds_whatever_the_client_does() {
    let limits = Limits { connections: 1, refusal: REFUSAL, ..Limits::default() };
    let mut harness = Harness::with(Script::default(), limits);
    let _first = harness.open();
    harness.stop_clock();
    // Those it cannot be told: their buffers are full, for all the loop knows.
    harness.kernel.fail(Method::Send, Errno::EAGAIN, usize::MAX);
    let mut deaf = harness.connect();
    harness.until_loop("the deaf one", |harness| harness.ctx().counters().shed == 1);
    harness.settle();
    harness.advance(Duration::from_millis(1_999));
    assert_eq!(deaf.read(&mut [0; 8]).unwrap_err().kind(), ErrorKind::WouldBlock);
    harness.advance(Duration::from_millis(1));
    assert!(harness.receive_all(&mut deaf).0.is_empty());
    harness.kernel.heal();
    // And those who never stop.
    let mut talker = harness.connect();
    assert_eq!(harness.receive(&mut talker, REFUSAL.len()), REFUSAL);
    for _ in 0..3 {
        harness.advance(Duration::from_millis(500));
        talker.say(b"x");
        harness.settle();
    }
    let before = harness.kernel.count(Method::Delete);
    harness.advance(Duration::from_millis(499));
    assert_eq!(harness.kernel.count(Method::Delete), before, "not before its time");
    harness.advance(Duration::from_millis(1));
    assert_eq!(harness.kernel.count(Method::Delete), before + 1);
}

#[test]
fn who_is_turned_away_is_heard_out_for_a_megabyte() {
    let limits = Limits { connections: 1, refusal: REFUSAL, ..Limits::default() };
    let mut harness = Harness::with(Script::default(), limits);
    let (_first, _) = harness.open();
    harness.stop_clock();
    let mut flood = harness.connect();
    harness.write(&mut flood, &pattern(1024 * KIB));
    harness.settle();
    let before = harness.kernel.count(Method::Delete);
    harness.write(&mut flood, b"x");
    harness.until_loop("its end", |harness| harness.kernel.count(Method::Delete) == before + 1);
}

#[test]
fn a_drain_in_whose_grace_only_the_turned_away_are_left_has_cut_nobody_off() {
    let limits = Limits { connections: 1, refusal: REFUSAL, ..Limits::default() };
    let mut harness = Harness::with(Script::default(), limits);
    let (first, id) = harness.open();
    harness.stop_clock();
    let mut turned_away = harness.connect();
    harness.until_loop("the refusal", |harness| harness.ctx().counters().shed == 1);
    harness.ctx().drain(Duration::from_millis(500));
    drop(first);
    harness.closed(id);
    harness.settle();
    harness.kernel.advance(Duration::from_millis(500));
    assert_eq!(harness.run_to_end(), Stopped::Drained);
    let mut told = Vec::new();
    turned_away.read_to_end(&mut told).unwrap();
    assert_eq!(told, REFUSAL);
}

#[test]
fn where_there_is_no_memory_for_the_words_a_client_is_closed_at_once() {
    for (memory, told) in [(REFUSAL.len() - 1, b"".as_slice()), (REFUSAL.len(), REFUSAL)] {
        let limits = Limits { connections: 1, memory, refusal: REFUSAL, ..Limits::default() };
        let mut harness = Harness::with(Script::default(), limits);
        let (_first, id) = harness.open();
        let mut turned_away = harness.connect();
        assert_eq!(harness.receive_all(&mut turned_away).0, told);
        assert_eq!(harness.script().closed(id), None);
    }
}

thread_local! {
    static MADE: Cell<u32> = const { Cell::new(0) };
}

struct State;

impl Default for State {
    fn default() -> Self {
        MADE.set(MADE.get() + 1);
        Self
    }
}

struct Greeter;

impl Handler for Greeter {
    type Conn = State;
    type Message = ();

    fn on_data(&mut self, _: &mut Ctx, _: ConnId, _: &mut State, input: &[u8]) -> usize {
        input.len()
    }
}

#[test]
fn the_handler_makes_no_state_for_who_is_turned_away() {
    let limits = Limits { connections: 1, refusal: REFUSAL, ..Limits::default() };
    let mut reactor = Reactor::new(Greeter, limits).unwrap();
    let (_, address) =
        reactor.listen(&Address::Tcp("127.0.0.1:0".parse().unwrap()), &ListenOptions::default()).unwrap();
    let clients = [Peer::connect(&address), Peer::connect(&address)];
    let started = std::time::Instant::now();
    while reactor.ctx().counters().shed == 0 {
        assert!(started.elapsed() < support::PATIENCE);
        reactor.turn(Some(Duration::from_millis(5))).unwrap();
    }
    drop(clients);
    reactor.ctx().drain(Duration::from_secs(5));
    assert_eq!(reactor.run().unwrap(), Stopped::Drained);
    assert_eq!(MADE.get(), 1);
}

#[test]
fn who_has_no_address_is_not_counted() {
    let limits = Limits { connections_per_address: 1, ..Limits::default() };
    let mut harness = Harness::unix(Script::default(), limits);
    let [mut _first, mut second]: [_; 2] = harness.open_many();
    second.0.say(b"x");
    assert_eq!(harness.receive(&mut second.0, 1), b"x");
    let counters = harness.ctx().counters();
    assert_eq!((counters.shed, counters.shed_by_address), (0, 0));
}
