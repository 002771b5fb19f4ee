//! The servers among the examples, as programs: what they print, what they answer, how they end.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "a panic is how a test fails"
)]

mod support;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread;

use nix::sys::signal::Signal;
use support::{Example, Peer, has_stalled, write_repeatedly};

const SERVERS: [&str; 4] = ["broadcast_server", "echo_server", "http_server", "custom_server"];

#[test]
fn each_ends_at_either_signal_with_clients_connected() {
    for name in SERVERS {
        for signal in [Signal::SIGINT, Signal::SIGTERM] {
            let (server, address) = Example::serve(name, &[]);
            let mut client = Peer::connect(&address);
            server.signal(signal);
            assert!(client.is_closed(), "{name}");
            // The server waits a second for the client's end.
            drop(client);
            let ended = server.wait();
            assert!(ended.status.success() && ended.errors.is_empty(), "{name}: {ended:?}");
        }
    }
}

#[test]
fn each_names_an_address_it_cannot_listen_on() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    for address in [taken.local_addr().unwrap().to_string().as_str(), "127.0.0.1:what"] {
        for name in SERVERS {
            let ended = Example::start(name, &[address]).wait();
            assert_eq!(ended.status.code(), Some(1), "{name}: {ended:?}");
            assert!(ended.errors.contains(address) && ended.errors.lines().count() == 1, "{name}: {ended:?}");
        }
    }
}

#[test]
fn broadcast_passes_lines_on() {
    let (server, address) = Example::serve("broadcast_server", &[]);
    let mut one = Peer::connect(&address);
    let mut two = Peer::connect(&address);
    two.send("hello\n");
    assert_eq!(one.line(), "[Client_2] hello\n");
    one.send("good");
    one.send(" day\r\n\n");
    assert_eq!(two.line(), "[Client_1] good day\r\n");
    assert_eq!(two.line(), "[Client_1] \n");
    one.finish();
    assert_eq!(one.rest(), "");
    server.stop();
}

#[test]
fn echo_sends_back_what_comes_and_ends_after_the_client() {
    let (server, address) = Example::serve("echo_server", &[]);
    let mut client = Peer::connect(&address);
    let mut writer = client.stream.get_ref().try_clone().unwrap();
    let sent: Vec<u8> = (0..1_000_000_u32).flat_map(u32::to_le_bytes).collect();
    let expected = sent.clone();
    let writer = thread::spawn(move || {
        writer.write_all(&sent).unwrap();
        writer.shutdown(std::net::Shutdown::Write).unwrap();
    });
    let mut received = Vec::new();
    client.stream.read_to_end(&mut received).unwrap();
    writer.join().unwrap();
    assert!(received == expected);
    server.stop();
}

#[test]
fn custom_tells_values_now_and_as_they_change_and_not_again() {
    let (server, address) = Example::serve("custom_server", &[]);
    let mut steady = Peer::connect(&address);
    steady.send("watch load\n");
    let mut client = Peer::connect(&address);
    client.send("watch uptime\n");
    let mut last = None;
    // The first may be from before the first sample; each that follows is later than the one before.
    for _ in 0..4 {
        let line = client.line();
        let value = line.strip_prefix("uptime ").unwrap().trim_end();
        let value: Option<f64> = if value == "unknown" { None } else { Some(value.parse().unwrap()) };
        assert!(value > last || (value, last) == (None, None), "{value:?} after {last:?}");
        last = value;
    }
    let mut late = Peer::connect(&address);
    late.send("watch uptime\n");
    assert_ne!(late.line(), "uptime unknown\n");

    // The kernel computes the load every five seconds, so that it was sampled more often than it changed.
    steady.send("that is enough\n");
    let mut lines = vec![steady.line()];
    while let line = steady.line()
        && line.starts_with("load ")
    {
        lines.push(line);
    }
    assert!(lines.windows(2).all(|pair| pair[0] != pair[1]), "{lines:?}");
    server.stop();
}

#[test]
fn custom_takes_commands_however_they_are_cut() {
    let (server, address) = Example::serve("custom_server", &[]);
    let mut client = Peer::connect(&address);
    let error = "error: say watch load, watch uptime or pong\n";
    client.send("watch lo");
    let mut other = Peer::connect(&address);
    other.send("pong\nwatch nothing\n\nwatch load\nwa");
    assert_eq!((other.line(), other.line()), (error.to_owned(), error.to_owned()));
    assert!(other.line().starts_with("load "));
    client.send("ad\r\n");
    assert!(client.line().starts_with("load "));
    client.finish();
    while !client.line().is_empty() {}
    server.stop();
}

#[test]
fn custom_closes_a_client_whose_command_has_no_end() {
    let (server, address) = Example::serve("custom_server", &[]);
    let mut client = Peer::connect(&address);
    client.send(&"x".repeat(127));
    let mut other = Peer::connect(&address);
    other.send("what\n");
    other.line();
    client.send("\n");
    assert!(client.line().starts_with("error: "), "127 bytes are no cause to close");
    client.send(&"x".repeat(128));
    assert!(client.is_closed());
    server.stop();
}

#[test]
fn custom_asks_the_silent_and_then_closes_them() {
    let (server, address) = Example::serve("custom_server", &["400"]);
    let mut talker = Peer::connect(&address);
    let mut silent = Peer::connect(&address);
    for _ in 0..3 {
        assert_eq!(talker.line(), "ping\n");
        talker.send("pong\n");
    }
    assert_eq!(silent.line(), "ping\n");
    assert!(silent.is_closed());
    server.stop();
}

#[test]
fn custom_skips_values_for_a_client_that_does_not_read_and_then_goes_on() {
    const COMMANDS: usize = 600_000;
    let (server, address) = Example::serve("custom_server", &[]);
    let mut client = Peer::connect(&address);
    let writer = client.stream.get_ref().try_clone().unwrap();
    let progress = write_repeatedly(writer, "watch load\n".repeat(100).into_bytes(), COMMANDS / 100);
    // Or everything has gone into the kernel's buffers.
    has_stalled(&progress);
    let mut finisher = client.stream.get_ref().try_clone().unwrap();
    thread::spawn(move || {
        progress.iter().for_each(drop);
        finisher.write_all(b"watch uptime\n").unwrap();
    });
    let mut values = 0;
    let mut line = client.line();
    while !line.starts_with("uptime ") {
        assert!(!line.is_empty(), "the end, after {values} values");
        values += usize::from(line.starts_with("load "));
        line = client.line();
    }
    assert!(values < COMMANDS, "it was never behind");
    server.stop();
}

#[test]
fn http_answers_its_routes_on_one_connection() {
    let (server, address) = Example::serve("http_server", &[]);
    let mut client = Peer::connect(&address);
    // The second is answered by another thread, a second later, and the third waits for it.
    let get = |path| format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
    client.send(&["/greet/y%20ou", "/slow", "/later", "/"].map(get).concat());
    assert_eq!(response(&mut client), ("HTTP/1.1 200 OK\r\n".to_owned(), "Hello, y ou!\n".to_owned()));
    assert_eq!(response(&mut client).1, "/slow took a second\n");
    assert_eq!(response(&mut client).1, "worked out by another thread\n");
    assert_eq!(response(&mut client).1, "Hello! You are visitor 1.\n");
    client.send(&get("/count/10"));
    while client.line() != "\r\n" {}
    let mut counted = String::new();
    while !counted.ends_with("\r\n0\r\n") {
        counted += &client.line();
    }
    assert!(counted.contains("9\n") && counted.contains("10\n"), "{counted}");
    assert_eq!(client.line(), "\r\n");
    client.send("POST /shout HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nhey");
    assert_eq!(response(&mut client).1, "HEY");
    client.send("GET /nowhere HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n");
    assert_eq!(response(&mut client).0, "HTTP/1.1 404 Not Found\r\n");
    assert_eq!(client.rest(), "");
    let mut other = Peer::connect(&address);
    other.send(&get("/"));
    assert_eq!(
        response(&mut other).1,
        "Hello! You are visitor 2.\n",
        "the count is the server's, not the connection's"
    );
    server.stop();
}

/// The status line of one response and its body.
fn response(client: &mut Peer) -> (String, String) {
    let status = client.line();
    let mut length = 0;
    loop {
        let field = client.line().to_ascii_lowercase();
        assert!(!field.is_empty(), "the end within a head");
        if field == "\r\n" {
            break;
        }
        if let Some(value) = field.strip_prefix("content-length:") {
            length = value.trim().parse().unwrap();
        }
    }
    let mut body = vec![0; length];
    client.stream.read_exact(&mut body).unwrap();
    (status, String::from_utf8(body).unwrap())
}
