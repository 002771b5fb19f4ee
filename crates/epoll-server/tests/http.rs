//! `epoll-server http` as its clients see it. Not the rules of HTTP, which `epoll-protocols` tests.

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
use std::process::{Command, Stdio};
use std::thread;

use support::{Client, Random, Server, assert_same, pattern, skip};

#[test]
fn the_routes_answer_what_the_help_says() {
    let server = Server::start(&["http"]);
    let mut client = server.connect();
    let page = get(&mut client, "GET", "/");
    assert_eq!(page.status, 200);
    assert_eq!(page.field("content-type"), Some("text/html; charset=utf-8"));
    assert!(page.body.starts_with(b"<!DOCTYPE html>"));
    assert!(page.field("date").is_some());
    let hello = get(&mut client, "GET", "/hello?name=x");
    assert_eq!((hello.status, hello.body.as_slice()), (200, b"Hello, World!".as_slice()));
    assert!(hello.field("content-type").unwrap().starts_with("text/plain"));
    for target in ["/nothing", "/hello/"] {
        assert_eq!(get(&mut client, "GET", target).status, 404, "{target}");
    }
}

#[test]
fn head_is_answered_as_get_without_the_body() {
    let server = Server::start(&["http"]);
    let mut client = server.connect();
    for target in ["/", "/hello", "/nothing"] {
        let got = get(&mut client, "GET", target);
        client.send(format!("HEAD {target} HTTP/1.1\r\nHost: x\r\n\r\n"));
        let head = Answer::head(&mut client);
        assert_eq!(head.status, got.status);
        assert_eq!(head.field("content-length"), Some(got.body.len().to_string().as_str()));
    }
    // What follows is the next answer, so none of them had a body.
    assert_eq!(get(&mut client, "GET", "/hello").body, b"Hello, World!");
}

#[test]
fn what_is_posted_to_echo_comes_back() {
    let server = Server::start(&["http"]);
    let mut client = server.connect();
    let mut random = Random::new(1);
    for length in [0, 1, 2, 1000, 65_535, 65_536, 65_537, 300_000, 1 << 20] {
        let body = pattern(length);
        client.send(format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n"));
        client.send(&body);
        let answer = Answer::read(&mut client);
        assert_eq!(answer.status, 200, "{length} bytes");
        assert_same(&answer.body, &body);

        client.send("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
        let mut rest = body.as_slice();
        while !rest.is_empty() {
            let (chunk, behind) = rest.split_at(1 + random.below(rest.len().min(70_000)));
            client.send([format!("{:x}\r\n", chunk.len()).as_bytes(), chunk, b"\r\n"].concat());
            rest = behind;
        }
        client.send("0\r\n\r\n");
        let answer = Answer::read(&mut client);
        assert_eq!(answer.status, 200, "{length} bytes in chunks");
        assert_same(&answer.body, &body);
    }
}

#[test]
fn a_body_of_the_limit_comes_back_and_a_larger_one_is_refused() {
    const LIMIT: usize = 8 << 20;
    let server = Server::start(&["http", "--body-limit", "8MiB"]);
    let mut client = server.connect();
    let body = pattern(LIMIT);
    let mut writer = client.duplicate();
    let sent = body.clone();
    let writer = thread::spawn(move || {
        writer.send(format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {LIMIT}\r\n\r\n"));
        writer.send(sent);
    });
    let answer = Answer::read(&mut client);
    assert_eq!(answer.status, 200);
    assert_same(&answer.body, &body);
    writer.join().unwrap();
    client.send(format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n", LIMIT + 1));
    assert_eq!(Answer::read(&mut client).status, 413);
    assert_eq!(client.rest_or_reset(), b"");
}

#[test]
fn a_hundred_requests_in_one_write_get_their_answers_in_order() {
    let server = Server::start(&["http"]);
    let mut client = server.connect();
    let requests: String = (0..100)
        .map(|n| {
            let body = format!("request {n}");
            format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {}\r\n\r\n{body}", body.len())
        })
        .collect();
    client.send(requests);
    for n in 0..100 {
        assert_eq!(Answer::read(&mut client).body, format!("request {n}").as_bytes());
    }
    client.send("GET /hello HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    assert_eq!(Answer::read(&mut client).field("connection"), Some("close"));
    assert_eq!(client.rest(), b"");
}

#[test]
fn heads_have_a_limit_and_requests_a_time() {
    let times = ["--header-timeout", "200ms", "--body-timeout", "200ms", "--keep-alive-timeout", "200ms"];
    let server = Server::start(&[["http", "--head-limit", "1KiB"].as_slice(), &times].concat());
    let mut long = server.connect();
    long.send(format!("GET / HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "x".repeat(1024)));
    assert_eq!(Answer::read(&mut long).status, 431);
    for begun in ["GET / HTTP/1.1\r\nHo", "POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhal"] {
        let mut client = server.connect();
        client.send(begun);
        assert_eq!(Answer::read(&mut client).status, 408);
        assert_eq!(client.rest(), b"");
    }
    let mut idle = server.connect();
    assert_eq!(get(&mut idle, "GET", "/hello").status, 200);
    assert_eq!(idle.rest(), b"");
}

#[test]
fn a_drain_ends_idle_connections_and_lets_begun_requests_end() {
    for (first_half, second_half, body) in [
        ("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 5\r\n\r\nhal", "f!", "half!"),
        ("GET /hello HTTP/1.1\r\nHo", "st: x\r\n\r\n", "Hello, World!"),
    ] {
        let mut server = Server::start(&["http", "--grace", "1h"]);
        let mut idle = server.connect();
        let mut busy = server.connect();
        for client in [&mut idle, &mut busy] {
            assert_eq!(get(client, "GET", "/hello").status, 200);
        }
        busy.send(first_half);
        // A connection made later whose answer has come: the half request has been read before.
        assert_eq!(get(&mut server.connect(), "GET", "/hello").status, 200);
        server.signal("TERM");
        server.logged("draining for up to");
        assert_eq!(idle.rest(), b"");
        busy.send(second_half);
        let answer = Answer::read(&mut busy);
        assert_eq!((answer.status, answer.body.as_slice()), (200, body.as_bytes()));
        assert_eq!(answer.field("connection"), Some("close"));
        assert_eq!(busy.rest(), b"");
        assert_eq!(server.wait().code, Some(0));
    }
}

#[test]
fn curl_is_content() {
    if Command::new("curl").arg("--version").stdout(Stdio::null()).status().is_err() {
        return skip("curl is not installed");
    }
    let server = Server::start(&["http"]);
    let url = |path: &str| format!("http://{}{path}", server.addresses[0]);
    let curl = |arguments: &[&str]| {
        let output = Command::new("curl")
            .args(["-sS", "--noproxy", "*", "-m", "30"])
            .args(arguments)
            .output()
            .unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        output.stdout
    };
    assert_eq!(curl(&[&url("/hello")]), b"Hello, World!");
    // Two on one connection.
    let both = curl(&["-w", "%{num_connects}\n", &url("/hello"), &url("/hello")]);
    assert_eq!(both, b"Hello, World!1\nHello, World!0\n");
    assert_eq!(curl(&["-o", "/dev/null", "-w", "%{http_code}", &url("/nothing")]), b"404");
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("body");
    let body = pattern(1 << 20);
    std::fs::write(&file, &body).unwrap();
    let data = format!("@{}", file.display());
    // With its length, where curl expects a 100 before the body, and in chunks.
    assert_same(&curl(&["--data-binary", &data, &url("/echo")]), &body);
    let expect =
        ["--expect100-timeout", "20", "-H", "Expect: 100-continue", "--data-binary", &data, &url("/echo")];
    assert_same(&curl(&expect), &body);
    assert_same(&curl(&["-H", "Transfer-Encoding: chunked", "--data-binary", &data, &url("/echo")]), &body);
}

struct Answer {
    status: u16,
    fields: Vec<(String, String)>,
    body: Vec<u8>,
}

impl Answer {
    /// Reads an answer that has a body of the length it tells.
    fn read(client: &mut Client<TcpStream>) -> Self {
        let mut answer = Self::head(client);
        let length = answer.field("content-length").expect("a length").parse().unwrap();
        answer.body = client.exactly(length);
        answer
    }

    fn head(client: &mut Client<TcpStream>) -> Self {
        let mut line = || {
            let line = String::from_utf8(client.line()).unwrap();
            line.strip_suffix("\r\n").unwrap_or_else(|| panic!("not a line of a head: {line:?}")).to_owned()
        };
        let first = line();
        let status =
            first.strip_prefix("HTTP/1.1 ").unwrap_or_else(|| panic!("not a status line: {first:?}"));
        let status = status[..3].parse().unwrap();
        let fields = std::iter::from_fn(|| {
            let line = line();
            let (name, value) = line.split_once(": ")?;
            Some((name.to_ascii_lowercase(), value.to_owned()))
        });
        Self { status, fields: fields.collect(), body: Vec::new() }
    }

    fn field(&self, name: &str) -> Option<&str> {
        self.fields.iter().find(|(field, _)| field == name).map(|(_, value)| value.as_str())
    }
}

fn get(client: &mut Client<TcpStream>, method: &str, target: &str) -> Answer {
    client.send(format!("{method} {target} HTTP/1.1\r\nHost: x\r\n\r\n"));
    Answer::read(client)
}
