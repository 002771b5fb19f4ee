//! The page of `epoll-server http` and its events as bytes: what a browser makes of them is in `page.rs`.

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

use std::net::TcpStream;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use serde_json::Value;
use sha2::{Digest, Sha256};
use support::{Client, Server, poll};

/// How many streams there may be.
const STREAMS: usize = 64;

#[test]
fn the_page_may_do_what_it_does_and_nothing_else() {
    let server = Server::start(&["http"]);
    let mut client = server.connect();
    let head = ask(&mut client, "GET", "/");
    assert_eq!(head.status, 200);
    assert_eq!(head.field("content-type"), "text/html; charset=utf-8");
    assert_eq!(head.field("cache-control"), "no-cache");
    assert_eq!(head.field("x-content-type-options"), "nosniff");
    assert_eq!(head.field("referrer-policy"), "no-referrer");
    let page = String::from_utf8(client.exactly(head.field("content-length").parse().unwrap())).unwrap();
    assert!(
        page.starts_with("<!DOCTYPE html>\n<html lang=\"en\">")
            && page.contains("<title>epoll-server</title>")
    );

    let policy = head.field("content-security-policy");
    let sources: Vec<_> = policy.split("; ").map(|directive| directive.split_once(' ').unwrap()).collect();
    assert_eq!(sources[0], ("default-src", "'none'"));
    for (name, directive) in [("style", "style-src"), ("script", "script-src")] {
        let inside = page.split(&format!("<{name}>")).nth(1).unwrap();
        let inside = inside.split(&format!("</{name}>")).next().unwrap();
        let sum = format!("'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(inside)));
        assert!(sources.contains(&(directive, &sum)), "{directive} {sum}: {policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains("http") && !policy.contains('*'), "{policy}");
    // Names of XML namespaces are all that looks like an address elsewhere.
    let mut addresses = page.match_indices("://").map(|(at, _)| &page[at - 4..at + 18]);
    let known = ["http://www.w3.org/2000", "http://127.0.0.1:8080<"];
    assert_eq!(addresses.find(|address| !known.contains(address)), None);
}

#[test]
fn events_tell_of_connections_and_requests() {
    let server = Server::start(&["http"]);
    let mut stream = watch(&server);
    let head = ask(&mut server.connect(), "HEAD", "/live");
    assert_eq!((head.status, head.field("content-type")), (200, "text/event-stream"));
    let mut clients: Vec<_> = (0..5).map(|_| server.connect()).collect();
    for client in &mut clients {
        for _ in 0..20 {
            hello(client);
        }
    }
    // The stream and the five; that of the HEAD has ended. What is answered is counted before it is sent.
    let event = event_with(&mut stream, |event| event["connections"] == 6);
    assert_eq!(event["answered"], 101, "{event}");
    let (turn, longest) = (event["turn_us"].as_f64().unwrap(), event["longest_us"].as_f64().unwrap());
    assert!(0.0 < turn && turn <= longest, "{event}");

    for client in &mut clients {
        hello(client);
    }
    let (mut requests, mut uptime) = (0.0, event["uptime"].as_f64().unwrap());
    let event = event_with(&mut stream, |event| {
        let now = event["uptime"].as_f64().unwrap();
        assert!(now > uptime);
        requests += event["rate"].as_f64().unwrap() * (now - uptime);
        uptime = now;
        event["answered"] == 106
    });
    assert!((4.9..5.1).contains(&requests), "{requests} requests, told as so many a second: {event}");
    drop(clients);
    event_with(&mut stream, |event| event["connections"] == 1);
}

#[test]
fn http_1_0_has_its_stream_too() {
    let server = Server::start(&["http"]);
    let mut client = server.connect();
    client.send("GET /live HTTP/1.0\r\n\r\n");
    let head = Head::read(&mut client);
    assert_eq!((head.status, head.field("connection")), (200, "close"));
    assert_eq!(client.line(), b"event: history\n");
    assert!(client.line().starts_with(b"data: ["));
    assert_eq!(client.line(), b"\n");
    assert!(client.line().starts_with(b"data: {"));
}

#[test]
fn those_who_do_not_read_are_no_trouble_and_neither_is_their_end() {
    let mut server = Server::start(&["http", "--grace", "30s"]);
    let mut slow: Vec<_> = (0..10).map(|_| server.connect_with_buffer(1)).collect();
    for client in &mut slow {
        client.send("GET /live HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    let mut stream = watch(&server);
    event_with(&mut stream, |event| event["connections"] == 11);
    for _ in 0..3 {
        event_with(&mut stream, |_| true);
        hello(&mut server.connect());
    }
    drop(slow.drain(..5));
    event_with(&mut stream, |event| event["connections"] == 6);
    server.signal("INT");
    server.logged("draining for up to");
    // The end of the last chunk, and of the connection.
    let rest = String::from_utf8(stream.rest()).unwrap();
    assert!(rest.ends_with("0\r\n\r\n"), "{rest:?}");
    for mut client in slow {
        let rest = String::from_utf8(client.rest_or_reset()).unwrap();
        assert!(rest.starts_with("HTTP/1.1 200 OK\r\n"), "{rest:?}");
    }
    let ended = server.wait();
    assert_eq!(ended.code, Some(0));
    assert!(ended.log.contains("every connection has ended"), "{}", ended.log);
}

#[test]
fn one_too_many_is_told_to_come_back() {
    let server = Server::start(&["http"]);
    let mut streams: Vec<_> = (0..STREAMS).map(|_| watch(&server)).collect();
    let mut late = server.connect();
    let head = ask(&mut late, "GET", "/live");
    assert_eq!((head.status, head.field("retry-after")), (503, "5"));
    late.exactly(head.field("content-length").parse().unwrap());
    hello(&mut late);
    streams.pop();
    let status = poll("room for it", || {
        let mut client = server.connect();
        (ask(&mut client, "GET", "/live").status == 200).then_some(200)
    });
    assert_eq!(status, 200);
    for stream in &mut streams {
        event_with(stream, |_| true);
    }
}

/// A stream, behind the samples that it begins with.
fn watch(server: &Server) -> Client<TcpStream> {
    let mut client = server.connect();
    let head = ask(&mut client, "GET", "/live");
    assert_eq!(head.status, 200);
    assert_eq!(head.field("content-type"), "text/event-stream");
    assert_eq!(head.field("cache-control"), "no-store");
    assert_eq!(head.field("x-content-type-options"), "nosniff");
    let (name, history) = event(&mut client);
    assert_eq!(name.as_deref(), Some("history"));
    assert!(history.as_array().unwrap().len() <= 120);
    client
}

/// Reads events until there is one that is `wanted`.
fn event_with(client: &mut Client<TcpStream>, mut wanted: impl FnMut(&Value) -> bool) -> Value {
    let begin = std::time::Instant::now();
    loop {
        let (name, event) = event(client);
        assert_eq!(name, None);
        if wanted(&event) {
            return event;
        }
        assert!(begin.elapsed() < support::PATIENCE, "not what was waited for: {event}");
    }
}

/// The next event, which is one chunk: its name and its data.
fn event(client: &mut Client<TcpStream>) -> (Option<String>, Value) {
    let size = String::from_utf8(client.line()).unwrap();
    let chunk = client.exactly(usize::from_str_radix(size.trim_end(), 16).unwrap() + 2);
    let chunk = String::from_utf8(chunk).unwrap();
    let lines = chunk.strip_suffix("\n\n\r\n").unwrap_or_else(|| panic!("not an event: {chunk:?}"));
    let (name, data) = match lines.split_once('\n') {
        Some((name, data)) => (Some(name.strip_prefix("event: ").unwrap().to_owned()), data),
        None => (None, lines),
    };
    (name, serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap())
}

fn hello(client: &mut Client<TcpStream>) {
    assert_eq!(ask(client, "GET", "/hello").status, 200);
    assert_eq!(client.exactly(13), b"Hello, World!");
}

fn ask(client: &mut Client<TcpStream>, method: &str, target: &str) -> Head {
    client.send(format!("{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n"));
    Head::read(client)
}

/// An answer without its body.
struct Head {
    status: u16,
    fields: Vec<(String, String)>,
}

impl Head {
    fn read(client: &mut Client<TcpStream>) -> Self {
        let first = String::from_utf8(client.line()).unwrap();
        let status = first.strip_prefix("HTTP/1.1 ").unwrap()[..3].parse().unwrap();
        let fields = std::iter::from_fn(|| {
            let line = String::from_utf8(client.line()).unwrap();
            let (name, value) = line.trim_end().split_once(": ")?;
            Some((name.to_ascii_lowercase(), value.to_owned()))
        });
        Self { status, fields: fields.collect() }
    }

    fn field(&self, name: &str) -> &str {
        let found = self.fields.iter().find(|(field, _)| field == name);
        &found.unwrap_or_else(|| panic!("no {name} in {:?}", self.fields)).1
    }
}
