//! More clients than the server has room for: it keeps its head, and serves again when there is room.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    missing_docs,
    reason = "a panic is how a test fails"
)]

mod support;

use std::io::{ErrorKind, Read};
use std::net::TcpStream;
use std::time::Duration;

use support::{Client, PATIENCE, Server};

#[test]
fn out_of_descriptors_it_neither_dies_nor_spins_and_serves_again() {
    const DESCRIPTORS: usize = 32;
    let mut server = Server::start_after(&format!("ulimit -n {DESCRIPTORS}"), &["echo"]);
    let mut clients: Vec<_> = (0..6 * DESCRIPTORS).map(|_| server.connect()).collect();
    server.logged("not accepting for now: Too many open files");
    // The first ones are served: all descriptors but a handful, which are the server's own.
    for client in &mut clients[..DESCRIPTORS - 12] {
        expect_echo(client);
    }
    // The last one is not, and while it waits the server does next to nothing. (It turns one client away at each
    // try to accept, the first that wait; there are enough of them.)
    let mut waiting = clients.last().unwrap().stream().try_clone().unwrap();
    waiting.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
    let before = server.cpu_time();
    assert_eq!(waiting.read_exact(&mut [0]).unwrap_err().kind(), ErrorKind::WouldBlock);
    let used = server.cpu_time() - before;
    assert!(used <= Duration::from_millis(150), "{used:?} of CPU time in a second of waiting");
    assert_eq!(server.times_logged("not accepting"), 1, "once is enough");
    waiting.set_read_timeout(Some(PATIENCE)).unwrap();

    // It gets its turn when others leave, without a new connection to wake the listener.
    let last = clients.pop().unwrap();
    drop(clients);
    expect_echo(&mut Client::from_tcp(waiting));
    drop(last);
    for _ in 0..2 * DESCRIPTORS {
        expect_echo(&mut server.connect());
    }
    assert_eq!(server.stop().code, Some(0));
}

#[test]
fn beyond_max_connections_clients_are_turned_away_at_once() {
    let mut server = Server::start(&["echo", "--max-connections", "2"]);
    let mut inside: Vec<_> = (0..2).map(|_| server.connect()).collect();
    inside.iter_mut().for_each(expect_echo);
    assert_eq!(server.connect().rest_or_reset(), b"");
    server.logged("2 connections are open; closing new ones");
    inside.iter_mut().for_each(expect_echo);
    // One leaves, and its end is seen; then there is room for one.
    let mut leaver = inside.pop().unwrap();
    leaver.finish_sending();
    assert_eq!(leaver.rest(), b"");
    let mut newcomer = server.connect();
    expect_echo(&mut newcomer);
    inside.iter_mut().for_each(expect_echo);
}

fn expect_echo(client: &mut Client<TcpStream>) {
    client.send("echo?");
    assert_eq!(client.exactly(5), b"echo?");
}
