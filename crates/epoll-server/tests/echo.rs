//! `epoll-server echo` as its clients see it, and what it costs when they do not read.

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

use std::thread;

use support::{Server, assert_same, kernel_buffers, pattern, poll};

const MEGABYTE: usize = 1 << 20;

#[test]
fn a_late_reader_gets_every_byte_and_the_server_stays_small() {
    let server = Server::start(&["echo"]);
    let mut client = server.connect();
    let mut reader = client.duplicate();
    // Of no length that anything else here has.
    let data = pattern(1_000_003).repeat(68);
    assert!(data.len() > 64 * MEGABYTE);
    let before = client.fill(&data);
    assert!(before < data.len(), "the server took everything, though nobody read");
    let reader = thread::spawn(move || reader.rest());
    client.send(&data[before..]);
    client.finish_sending();
    assert_same(&reader.join().unwrap(), &data);
    let peak = server.peak_memory_kib();
    assert!(peak < 32 * 1024, "{peak} KiB at its peak");
}

#[test]
fn what_was_sent_before_the_end_comes_back_before_the_end() {
    let server = Server::start(&["echo"]);
    for length in [0, 1, 2, 65_535, 65_536, 65_537, MEGABYTE] {
        let mut client = server.connect();
        let data = pattern(length);
        let mut writer = client.duplicate();
        let sent = data.clone();
        let writer = thread::spawn(move || {
            writer.send(sent);
            writer.finish_sending();
        });
        assert_same(&client.rest(), &data);
        writer.join().unwrap();
    }
    assert_eq!(server.stop().code, Some(0));
}

#[test]
fn what_still_waits_in_the_server_at_the_end_comes_back_too() {
    let server = Server::start(&["echo"]);
    let mut other = server.connect();
    let data = pattern(kernel_buffers() + MEGABYTE);
    // How much the kernel takes nobody knows. Somewhere on this way it has taken all it will, and a little waits in
    // the server, which has read the client's end nevertheless: more than this step, and it would not have.
    for length in (0..data.len()).step_by(128 * 1024) {
        let mut client = server.connect_with_buffer(256 * 1024);
        client.send(&data[..length]);
        client.finish_sending();
        // Each of these is a turn of the server, in which it reads from the other as well.
        for _ in 0..30 {
            other.send("x");
            assert_eq!(other.exactly(1), b"x");
        }
        assert_same(&client.rest(), &data[..length]);
    }
}

#[test]
fn a_stop_in_the_middle_loses_nothing() {
    const TOTAL: usize = 16 * MEGABYTE;
    let server = Server::start(&["echo"]);
    let mut client = server.connect();
    let data = pattern(TOTAL);
    let mut writer = client.duplicate();
    let sent = data.clone();
    let writer = thread::spawn(move || {
        writer.send(sent);
        writer.finish_sending();
    });
    let mut got = Vec::new();
    for _ in 0..8 {
        got.extend(client.exactly(MEGABYTE));
        server.signal("STOP");
        poll("the stop", || server.is_stopped().then_some(()));
        server.signal("CONT");
    }
    got.extend(client.rest());
    assert_same(&got, &data);
    writer.join().unwrap();
}

#[test]
fn silent_connections_are_closed_after_the_idle_timeout_and_busy_ones_are_not() {
    let server = Server::start(&["echo", "--idle-timeout", "300ms"]);
    let mut silent = server.connect();
    let mut busy = server.connect();
    let silent = thread::spawn(move || silent.rest());
    while !silent.is_finished() {
        busy.send("x");
        assert_eq!(busy.exactly(1), b"x");
        thread::yield_now();
    }
    assert_eq!(silent.join().unwrap(), b"");
    busy.send("x");
    assert_eq!(busy.exactly(1), b"x");
}
