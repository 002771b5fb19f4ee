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
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use support::{Client, PATIENCE, Server, assert_same, kernel_buffers, outcome, pattern, poll};

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
fn a_file_that_shrinks_while_it_is_sent_is_in_the_log() {
    let directory = tempfile::tempdir().unwrap();
    let file = fs::File::create(directory.path().join("large")).unwrap();
    file.set_len(1 << 30).unwrap();
    let mut server = Server::start(&["http", "--root", directory.path().to_str().unwrap()]);
    let mut client = server.connect_with_buffer(4096);
    client.send("GET /large HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.line(), b"HTTP/1.1 200 OK\r\n");
    file.set_len(0).unwrap();
    assert!(client.rest_or_reset().len() < 1 << 30);
    let line = server.logged("a file that was being sent was cut short");
    assert!(line.contains("WARN"), "{line}");
}

/// Without a request, with one that is on its way already, and with one that the server will not read to its end.
#[test]
fn whoever_finds_no_room_is_told_when_to_come_back() {
    const REFUSAL: &str = "HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\n\
        Content-Length: 0\r\n\r\n";
    for flag in ["--max-connections", "--max-connections-per-client"] {
        let mut server = Server::start(&["http", flag, "1"]);
        let mut first = server.connect();
        assert_eq!(status(&ask(&mut first, "GET", "/hello", "")), "200");
        for body in [None, Some(0), Some(1 << 20)] {
            let mut second = server.connect();
            if let Some(length) = body {
                let head = format!("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n");
                second.send([head.as_bytes(), &pattern(length)].concat());
            }
            // An end that is no reset.
            assert_eq!(String::from_utf8(second.rest()).unwrap(), REFUSAL, "{flag}, {body:?}");
        }
        server.logged(if flag == "--max-connections" {
            "1 connections are open; closing new ones (1 so far)"
        } else {
            ": 127.0.0.1 has 1 connections open; closing new ones (1 of"
        });
        let mut other = Client::from_tcp(from(7, server.address()).unwrap());
        other.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
        let expected = if flag == "--max-connections" { "503" } else { "200" };
        assert_eq!(status(&answer(&mut other, false)), expected, "{flag}");
        assert_eq!(status(&ask(&mut first, "GET", "/hello", "")), "200");
        // It leaves, and there is room for one.
        first.finish_sending();
        first.rest();
        drop((first, other));
        poll("room", || {
            let mut next = server.connect();
            next.send("GET /hello HTTP/1.0\r\n\r\n");
            next.rest().starts_with(b"HTTP/1.1 200 ").then_some(())
        });
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
    let server = Server::start(&["http", "--body-timeout", "2s", "--body-rate", "1000"]);
    let (told, slow) = mpsc::channel();
    let mut silent = server.connect();
    silent.send("POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\nx");
    thread::spawn(move || told.send(status(&answer(&mut silent, false)).to_owned()));
    // It never has more than these 2 s to spare, and earns one with each piece.
    let mut steady = server.connect();
    steady.send("POST /echo HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n");
    let mut sent = 0;
    let refused = loop {
        steady.send(format!("3e8\r\n{}\r\n", "x".repeat(1000)));
        sent += 1000;
        match slow.recv_timeout(Duration::from_millis(50)) {
            Ok(status) => break status,
            Err(mpsc::RecvTimeoutError::Timeout) => {}
            Err(mpsc::RecvTimeoutError::Disconnected) => panic!("a client that is silent has no answer"),
        }
    };
    assert_eq!(refused, "408");
    steady.send("0\r\n\r\n");
    let answered = answer(&mut steady, false);
    assert_eq!((status(&answered), answered.1.len()), ("200", sent));
}

#[test]
fn a_target_has_a_limit_of_its_own() {
    let server = Server::start(&["http", "--target-limit", "10"]);
    let mut client = server.connect();
    assert_eq!(status(&ask(&mut client, "GET", "/hello?234", "")), "200");
    assert_eq!(status(&ask(&mut client, "GET", "/hello?2345", "")), "414");
    assert!(client.rest().is_empty());
}

#[test]
fn never_is_not_at_once() {
    let times = ["--header-timeout", "--body-timeout", "--keep-alive-timeout", "--idle-timeout"];
    let flags: Vec<_> = times.iter().flat_map(|time| [*time, "never"]).collect();
    let server = Server::start(&[&["http"], &flags[..]].concat());
    let mut slow = server.connect();
    let mut other = server.connect();
    for part in ["POST /echo HTTP/1.1\r\n", "Host: x\r\nContent-Length: 3\r\n\r\n", "a", "bc"] {
        slow.send(part);
        // The server has seen it, and has had a turn to end it in.
        for _ in 0..3 {
            assert_eq!(status(&ask(&mut other, "GET", "/hello", "")), "200");
        }
    }
    assert_eq!(answer(&mut slow, false).1, b"abc");
    assert_eq!(status(&ask(&mut slow, "GET", "/hello", "")), "200");
}

#[test]
fn what_blocks_is_done_by_as_many_threads_as_it_says() {
    let directory = site();
    let server = Server::start(&["http", "--root", &root(&directory), "--list", "--blocking-threads", "3"]);
    let count = |names: &[String], name: &str| names.iter().filter(|other| other.starts_with(name)).count();
    assert_eq!(count(&server.threads(), "http-blocking"), 0, "before they are needed");
    // A list of a directory is always made by one.
    assert_eq!(status(&ask(&mut server.connect(), "GET", "/sub/", "")), "200");
    // A thread has the name of the first one until it has given itself its own.
    let names =
        poll("their names", || Some(server.threads()).filter(|names| count(names, "epoll-server") == 1));
    assert_eq!(count(&names, "http-blocking"), 3, "{names:?}");
}

/// What became of a client that drips.
struct Drip {
    stream: TcpStream,
    since: Instant,
    sent: u32,
    heard: Vec<u8>,
}

impl Drip {
    /// Sends a byte more, and listens. `false` at its end.
    fn go_on(&mut self) -> bool {
        // However few they are, a head does not become too large in the time it has.
        if self.since.elapsed() >= Duration::from_millis(1) * self.sent {
            self.sent += 1;
            // Where the server has gone this fails, and reading tells.
            let _: std::io::Result<usize> = self.stream.write(b"x");
        }
        let mut buffer = [0; 1024];
        match self.stream.read(&mut buffer) {
            Ok(0) => false,
            Ok(count) => {
                self.heard.extend_from_slice(&buffer[..count]);
                true
            }
            Err(error) => error.kind() == std::io::ErrorKind::WouldBlock,
        }
    }
}

/// Five thousand clients that send a byte now and then and never stop, as many as descriptors allow here.
#[test]
fn clients_that_drip_do_not_keep_a_good_one_from_its_answer_and_are_cut_off() {
    const TIME: Duration = Duration::from_secs(4);
    // Here and, since it is inherited, in the server; some are for what else there is.
    let limit = epoll_reactor::raise_open_file_limit().unwrap().now;
    let clients = 5_000.min(usize::try_from(limit).unwrap().saturating_sub(100));
    if clients < 5_000 {
        eprintln!("only {clients} dripping clients: no more than {limit} files may be open");
    }
    let mut server = Server::start(&["http", "--header-timeout", "4s"]);
    let mut good = server.connect();
    let mut drips = Vec::new();
    for number in 0..clients {
        let host = u8::try_from(2 + number % 5).unwrap();
        let mut stream = from(host, server.address()).unwrap();
        let since = Instant::now();
        stream.write_all(b"GET / HTTP/1.1\r\nX").unwrap();
        stream.set_nonblocking(true).unwrap();
        drips.push(Drip { stream, since, sent: 0, heard: Vec::new() });
    }
    let descriptors = server.descriptors();
    let dripping = thread::spawn(move || {
        let end = Instant::now() + PATIENCE;
        while !drips.is_empty() {
            drips.retain_mut(|drip| {
                assert!(Instant::now() < end, "it lets itself be dripped on");
                let goes_on = drip.go_on();
                if !goes_on {
                    assert!(drip.heard.starts_with(b"HTTP/1.1 408 "), "{}", drip.heard.escape_ascii());
                    assert!(drip.since.elapsed() >= TIME, "after {:?}", drip.since.elapsed());
                }
                goes_on
            });
        }
    });
    let (mut answers, mut longest) = (0, Duration::ZERO);
    while !dripping.is_finished() || answers == 0 {
        let asked = Instant::now();
        assert_eq!(status(&ask(&mut good, "GET", "/hello", "")), "200");
        longest = longest.max(asked.elapsed());
        answers += 1;
        // Newcomers are let in as well.
        if answers % 100 == 0 {
            good = server.connect();
        }
    }
    dripping.join().unwrap();
    // Many times what it takes, on the busiest machine.
    assert!(longest < Duration::from_secs(5), "an answer took {longest:?}");
    assert!(server.has_logged("panicked").is_none());
    poll("their descriptors", || (server.descriptors() < 100).then_some(()));
    eprintln!(
        "{clients} dripping clients ({descriptors} descriptors): {answers} answers, the slowest after {longest:?}; \
         memory peaked at {} KiB",
        server.peak_memory_kib()
    );
}

/// A download that is long: the kernel cannot take the rest of it, so the server has it when the signal comes.
fn start_download(directory: &tempfile::TempDir) -> (Server, Client<TcpStream>, Vec<u8>) {
    let content = pattern(kernel_buffers() + (8 << 20));
    fs::write(directory.path().join("www/long"), &content).unwrap();
    let log = directory.path().join("log");
    let flags = ["http", "--root", &root(directory), "--grace", "30s", "--access-log", log.to_str().unwrap()];
    let mut server = Server::start(&flags);
    let mut client = server.connect_with_buffer(4096);
    client.send("GET /long HTTP/1.1\r\nHost: x\r\n\r\n");
    while client.line() != b"\r\n" {}
    server.signal("INT");
    server.logged("draining for up to 30s");
    poll("nobody to listen", || TcpStream::connect(server.address()).is_err().then_some(()));
    (server, client, content)
}

#[test]
fn ctrl_c_lets_a_long_download_come_to_its_end() {
    let directory = site();
    let (server, mut client, content) = start_download(&directory);
    assert_same(&client.rest(), &content);
    assert_eq!(server.wait().code, Some(0));
    let log = fs::read_to_string(directory.path().join("log")).unwrap();
    assert!(log.contains(&format!("\"GET /long HTTP/1.1\" 200 {} ", content.len())), "{log}");
}

#[test]
fn a_second_ctrl_c_ends_a_long_download_and_the_log_says_how_far_it_was() {
    let directory = site();
    let (server, mut client, content) = start_download(&directory);
    server.signal("INT");
    assert_eq!(server.wait().code, Some(3));
    assert!(client.rest_or_reset().len() < content.len());
    let log = fs::read_to_string(directory.path().join("log")).unwrap();
    let (_, rest) = log.split_once("\"GET /long HTTP/1.1\" 200 ").unwrap_or_else(|| panic!("{log:?}"));
    let sent: usize = rest.split(' ').next().unwrap().parse().unwrap();
    assert!(0 < sent && sent < content.len(), "{log}");
}
