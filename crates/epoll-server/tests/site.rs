//! `epoll-server http` as something to run in earnest: files, limits, and clients that mean ill.

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

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::symlink;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use support::{Client, Server, assert_same, outcome, pattern};

fn ask(client: &mut Client<TcpStream>, method: &str, target: &str, fields: &str) -> (String, Vec<u8>) {
    client.send(format!("{method} {target} HTTP/1.1\r\nHost: x\r\n{fields}\r\n"));
    answer(client, method == "HEAD")
}

/// A head in lower case, and its body by `Content-Length`.
fn answer(client: &mut Client<TcpStream>, head_only: bool) -> (String, Vec<u8>) {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        let line = client.line();
        assert!(!line.is_empty(), "the end within a head: {head}");
        head += &String::from_utf8(line).unwrap().to_ascii_lowercase();
    }
    let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")?.trim().parse().ok());
    let body = if head_only { Vec::new() } else { client.exactly(length.unwrap_or(0)) };
    (head, body)
}

fn status(answer: &(String, Vec<u8>)) -> &str {
    &answer.0[9..12]
}

fn site() -> tempfile::TempDir {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path();
    fs::create_dir_all(root.join("www/sub")).unwrap();
    fs::write(root.join("www/index.html"), "<p>home</p>").unwrap();
    fs::write(root.join("www/small.txt"), "small").unwrap();
    fs::write(root.join("www/small.txt.gz"), "not really gzip").unwrap();
    fs::write(root.join("www/sub/a b.txt"), "spaced").unwrap();
    fs::write(root.join("www/.hidden"), "secret").unwrap();
    fs::write(root.join("secret"), "secret").unwrap();
    symlink("../secret", root.join("www/link")).unwrap();
    fs::write(root.join("www/large"), pattern(3 << 20)).unwrap();
    directory
}

fn root(directory: &tempfile::TempDir) -> String {
    directory.path().join("www").to_str().unwrap().to_owned()
}

#[test]
fn a_folder_is_served_and_nothing_else() {
    let directory = site();
    let server = Server::start(&["http", "--root", &root(&directory), "--list"]);
    let mut client = server.connect();
    let home = ask(&mut client, "GET", "/", "");
    assert_eq!((status(&home), home.1.as_slice()), ("200", b"<p>home</p>".as_slice()));
    assert!(home.0.contains("content-type: text/html"), "{}", home.0);
    let large = ask(&mut client, "GET", "/large", "");
    assert_same(&large.1, &pattern(3 << 20));
    let part = ask(&mut client, "GET", "/large", "Range: bytes=1000000-2999999\r\n");
    assert_eq!(status(&part), "206");
    assert_same(&part.1, &pattern(3 << 20)[1_000_000..3_000_000]);
    let zipped = ask(&mut client, "GET", "/small.txt", "Accept-Encoding: gzip\r\n");
    assert_eq!(zipped.1, b"not really gzip");
    assert!(zipped.0.contains("content-encoding: gzip"), "{}", zipped.0);
    let tag = zipped.0.lines().find_map(|line| line.strip_prefix("etag: ")).unwrap().to_owned();
    let fields = format!("Accept-Encoding: gzip\r\nIf-None-Match: {tag}\r\n");
    assert_eq!(status(&ask(&mut client, "GET", "/small.txt", &fields)), "304");
    assert_eq!(status(&ask(&mut client, "HEAD", "/large", "")), "200");
    let list = ask(&mut client, "GET", "/sub/", "");
    assert!(String::from_utf8(list.1).unwrap().contains("a%20b.txt"));
    assert_eq!(status(&ask(&mut client, "GET", "/sub", "")), "301");
    for target in ["/link", "/../secret", "/%2e%2e/secret", "/sub/%2e%2e/%2e%2e/secret", "/.hidden", "/none"]
    {
        let refused = ask(&mut client, "GET", target, "");
        assert!(matches!(status(&refused), "404" | "400" | "403"), "{target}: {}", refused.0);
        assert!(!refused.1.windows(6).any(|six| six == b"secret"), "{target}");
    }
    assert_eq!(status(&ask(&mut client, "POST", "/small.txt", "Content-Length: 0\r\n")), "405");
}

#[test]
fn a_root_that_is_none_is_an_error_that_names_it() {
    let (code, _, told) = outcome(&["http", "--listen", "127.0.0.1:0", "--root", "/no/such/folder"]);
    assert_eq!(code, 1);
    assert!(told.contains("/no/such/folder"), "{told}");
    let (code, _, told) = outcome(&["http", "--list"]);
    assert_eq!(code, 2);
    assert!(told.contains("--root"), "{told}");
}

#[test]
fn methods_are_answered_as_they_should() {
    let server = Server::start(&["http"]);
    let mut client = server.connect();
    for (method, target, code, allowed) in [
        ("OPTIONS", "/hello", "204", "get, head, options"),
        ("OPTIONS", "/echo", "204", "post, options"),
        ("OPTIONS", "*", "204", "get, post, head, options"),
        ("DELETE", "/hello", "405", "get, head, options"),
        ("GET", "/echo", "405", "post, options"),
        ("BREW", "/hello", "501", "get, head, options"),
    ] {
        let got = ask(&mut client, method, target, "");
        assert_eq!(status(&got), code, "{method} {target}");
        assert!(got.0.contains(&format!("allow: {allowed}\r\n")), "{method} {target}: {}", got.0);
    }
    assert_eq!(status(&ask(&mut client, "DELETE", "/nothing", "")), "404");
}

fn from(host: u8, to: SocketAddr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&format!("127.0.0.{host}:0").parse::<SocketAddr>().unwrap().into())?;
    socket.connect(&to.into())?;
    Ok(socket.into())
}

#[test]
fn whoever_finds_no_room_is_told_when_to_come_back() {
    for flags in [["--max-connections", "1"], ["--max-connections-per-client", "1"]] {
        let server = Server::start(&["http", flags[0], flags[1]]);
        let mut first = server.connect();
        assert_eq!(status(&ask(&mut first, "GET", "/hello", "")), "200");
        let mut second = server.connect();
        second.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
        let refusal = answer(&mut second, false);
        assert_eq!(status(&refusal), "503", "{flags:?}");
        assert!(refusal.0.contains("retry-after: 1\r\n") && refusal.0.contains("connection: close\r\n"));
        assert!(second.rest().is_empty(), "the connection ends");
        let other = Client::from_tcp(from(7, server.address()).unwrap());
        let mut other = other;
        other.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
        let expected = if flags[0] == "--max-connections" { "503" } else { "200" };
        assert_eq!(status(&answer(&mut other, false)), expected, "{flags:?}");
        assert_eq!(status(&ask(&mut first, "GET", "/hello", "")), "200");
    }
}

#[test]
fn limits_on_requests() {
    let server = Server::start(&["http", "--max-requests", "3", "--header-count", "2", "--body-limit", "10"]);
    let mut client = server.connect();
    for number in 1..=3 {
        let got = ask(&mut client, "GET", "/hello", "");
        assert_eq!(got.0.contains("connection: close"), number == 3, "{number}");
    }
    assert!(client.rest().is_empty());
    for (fields, code) in [("A: b\r\nC: d\r\n", "431"), ("Content-Length: 11\r\n", "413")] {
        let mut client = server.connect();
        assert_eq!(status(&ask(&mut client, "POST", "/echo", fields)), code);
        assert!(client.rest().is_empty());
    }
}

#[test]
fn a_body_that_comes_too_slowly_is_given_up_and_one_that_comes_fast_enough_is_not() {
    let server = Server::start(&["http", "--body-timeout", "300ms", "--body-rate", "1000"]);
    let mut slow = server.connect();
    slow.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx");
    let mut fast = server.connect();
    let size = 10_000;
    fast.send(format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {size}\r\n\r\n"));
    fast.send(pattern(size - 1));
    assert_eq!(status(&answer(&mut slow, false)), "408");
    // It has earned nine seconds.
    fast.send(&pattern(size)[size - 1..]);
    assert_eq!(status(&answer(&mut fast, false)), "200");
}

/// Five thousand clients that send a byte now and then, as many as descriptors allow here.
#[test]
fn clients_that_drip_do_not_keep_a_good_one_from_its_answer() {
    let mut server = Server::start(&["http", "--header-timeout", "4s"]);
    let mut drips = Vec::new();
    'all: for host in 2..7 {
        for _ in 0..1_000 {
            match from(host, server.address()) {
                Ok(mut stream) => {
                    stream.write_all(b"GET / HTTP/1.1\r\nX").unwrap();
                    drips.push(stream);
                }
                Err(error) => {
                    eprintln!("only {} dripping clients: {error}", drips.len());
                    break 'all;
                }
            }
        }
    }
    let idle = server.peak_memory_kib();
    let mut good = server.connect();
    let started = Instant::now();
    for _ in 0..50 {
        for stream in drips.iter_mut().step_by(50) {
            let _: std::io::Result<()> = stream.write_all(b"x");
        }
        assert_eq!(status(&ask(&mut good, "GET", "/hello", "")), "200");
    }
    assert!(started.elapsed() < Duration::from_secs(10), "50 answers took {:?}", started.elapsed());
    // Each is told, and let go, however it goes on dripping.
    let mut told = 0;
    for mut stream in drips {
        stream.set_read_timeout(Some(Duration::from_secs(30))).unwrap();
        let mut text = String::new();
        if stream.read_to_string(&mut text).is_ok() && text.starts_with("HTTP/1.1 408 ") {
            told += 1;
        }
    }
    assert!(told > 0);
    eprintln!("{told} dripping clients were told 408; the server's memory peaked at {idle} KiB");
    assert!(server.has_logged("panicked").is_none());
    assert_eq!(status(&ask(&mut good, "GET", "/hello", "")), "200");
}

#[test]
fn ctrl_c_lets_a_download_come_to_its_end() {
    let directory = site();
    let server = Server::start(&["http", "--root", &root(&directory), "--grace", "30s"]);
    let mut client = server.connect_with_buffer(4096);
    client.send("GET /large HTTP/1.1\r\nHost: x\r\n\r\n");
    let begun = client.line();
    assert!(begun.starts_with(b"HTTP/1.1 200"), "{begun:?}");
    server.signal("INT");
    while client.line() != b"\r\n" {}
    assert_same(&client.rest(), &pattern(3 << 20));
    assert_eq!(server.wait().code, Some(0));
}
