//! How the server ends: signals, drains, exit codes. How it starts is in `starting.rs`.

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

use std::io::ErrorKind;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use support::{Client, Server, assert_same, kernel_buffers};

#[test]
fn a_slow_reader_still_gets_every_byte_while_nobody_new_is_let_in() {
    let mut server = Server::start(&["broadcast", "--receiver-limit", "64MiB", "--grace", "30s"]);
    let mut slow = server.join_with_small_buffer(1);
    let (mut sender, mut reader, sent) = leave_output_waiting(&mut server);
    server.signal("TERM");
    server.logged("draining for up to 30s");
    // These two have nothing waiting. When they are closed the listener is.
    assert_eq!(sender.rest(), b"");
    assert_eq!(reader.rest(), b"");
    let refused = TcpStream::connect(server.address()).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert_same(&slow.rest(), &sent);
    drop((slow, sender, reader));
    let ended = server.wait();
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("stopped: every connection has ended"), "{}", ended.log);
}

#[test]
fn a_second_signal_ends_it_at_once() {
    for second in ["TERM", "INT"] {
        let mut server = Server::start(&["broadcast", "--receiver-limit", "64MiB", "--grace", "1h"]);
        let _stalled = server.join_with_small_buffer(1);
        let _others = leave_output_waiting(&mut server);
        server.signal("TERM");
        server.logged("draining for up to 3600s");
        let asked = Instant::now();
        server.signal(second);
        let ended = server.wait();
        assert_eq!(ended.code, Some(3), "{}", ended.log);
        // Far less than any timeout.
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    }
}

#[test]
fn when_the_grace_has_passed_what_is_left_is_closed() {
    let mut server = Server::start(&["broadcast", "--receiver-limit", "64MiB", "--grace", "300ms"]);
    let _stalled = server.join_with_small_buffer(1);
    drop(leave_output_waiting(&mut server));
    server.logged("Client_2 left");
    server.logged("Client_3 left");
    let asked = Instant::now();
    server.signal("TERM");
    let ended = server.wait();
    assert!(asked.elapsed() >= Duration::from_millis(300), "{:?}", asked.elapsed());
    assert_eq!(ended.code, Some(0), "{}", ended.log);
    assert!(ended.log.contains("stopped: 1 connections still open after 300ms were closed"), "{}", ended.log);
    // It took some of what waited for it, and the log says how much it did not.
    let last = ended.log.lines().find(|line| line.contains("Client_1 left")).unwrap();
    assert!(!last.contains(" 0 not delivered"), "{last}");
}

#[test]
fn clients_that_do_not_hang_up_hold_an_idle_server_for_a_moment_only() {
    for protocol in ["broadcast", "echo", "http"] {
        let server = Server::start(&[protocol, "--grace", "1h"]);
        let mut clients: Vec<_> = (0..3).map(|_| server.connect()).collect();
        // Something that each of them gets, so that the server is known to have let it in.
        for index in 0..clients.len() {
            match protocol {
                "broadcast" => clients[(index + 1) % 3].send("x\n"),
                "echo" => clients[index].send("x\n"),
                _ => clients[index].send("GET /hello HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"),
            }
            assert_ne!(clients[index].line(), b"");
        }
        server.signal("INT");
        for client in &mut clients {
            client.rest();
        }
        // They keep their side open, and know nothing of the hour of grace.
        let ended = server.wait();
        assert_eq!(ended.code, Some(0), "{protocol}: {}", ended.log);
    }
}

#[test]
fn without_clients_it_ends_at_once() {
    for signal in ["TERM", "INT"] {
        let server = Server::start(&["--grace", "1h"]);
        let asked = Instant::now();
        server.signal(signal);
        assert_eq!(server.wait().code, Some(0));
        assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    }
}

/// Has clients 2 and 3 join, and 2 send lines until more wait for client 1, which does not read, than the kernel
/// holds. Returns both, and all that client 1 is to get.
fn leave_output_waiting(server: &mut Server) -> (Client<TcpStream>, Client<TcpStream>, Vec<u8>) {
    const BURST: usize = 256;
    let mut sender = server.join(2);
    let mut reader = server.join(3);
    let mut sent = Vec::new();
    while sent.len() < kernel_buffers() + (4 << 20) {
        let lines: Vec<_> =
            (0..BURST).map(|n| format!("{} {n} {}\n", sent.len(), "z".repeat(1000))).collect();
        sender.send(lines.concat());
        let messages: Vec<u8> =
            lines.iter().flat_map(|line| format!("[Client_2] {line}").into_bytes()).collect();
        // What the reader has, the server has sent to the others as well.
        assert_same(&reader.exactly(messages.len()), &messages);
        sent.extend(messages);
    }
    (sender, reader, sent)
}
