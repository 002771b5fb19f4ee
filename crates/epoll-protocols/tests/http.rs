//! The HTTP server on real sockets: what the codec's own tests cannot show, the adapter between it and the loop.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "tests fail by panicking"
)]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use epoll_protocols::http1::{Http, HttpConfig, HttpLimits, HttpMessage, Request, Response};
use epoll_reactor::{Address, Counters, Limits, ListenOptions, Reactor, Remote, Stopped};

/// Long enough never to be reached by a server that works.
const PATIENCE: Duration = Duration::from_secs(20);

/// A server on a thread of its own; it is drained when a test is done with it.
struct Server {
    address: SocketAddr,
    remote: Remote<HttpMessage<()>>,
    thread: Option<JoinHandle<(Stopped, usize, Counters)>>,
}

/// `/hello`, `/echo`, and `/bytes?N`: a body of N bytes, shared.
fn service(request: &Request<'_>, response: &mut Response) {
    match request.path() {
        "/hello" => response.set_static_body(b"Hello, World!"),
        "/echo" => response.set_body(request.body()),
        "/bytes" => {
            let length = request.query().unwrap().parse().unwrap();
            response.set_shared_body(vec![b'x'; length].into());
        }
        "/panic" => panic!("asked to"),
        _ => response.set_status(404),
    }
}

impl Server {
    fn start(config: HttpConfig, limits: Limits) -> Self {
        let limits = config.limits(limits);
        let mut reactor = Reactor::new(Http::new(service, config), limits).unwrap();
        let loopback = Address::Tcp("127.0.0.1:0".parse().unwrap());
        let (_, bound) = reactor.listen(&loopback, &ListenOptions::default()).unwrap();
        let remote = reactor.remote();
        let thread = std::thread::spawn(move || {
            let stopped = reactor.run().unwrap();
            (stopped, reactor.ctx().buffered(), reactor.ctx().counters())
        });
        Self { address: bound.as_tcp().unwrap(), remote, thread: Some(thread) }
    }

    fn connect(&self) -> TcpStream {
        let client = TcpStream::connect(self.address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// Drains it; returns its counts. Nothing may be left in its books.
    fn stop(mut self) -> Counters {
        self.remote.drain();
        let (stopped, buffered, counters) = self.thread.take().unwrap().join().unwrap();
        assert_eq!((stopped, buffered), (Stopped::Drained, 0));
        counters
    }
}

fn read_to_end(mut client: &TcpStream) -> Vec<u8> {
    let mut answer = Vec::new();
    client.read_to_end(&mut answer).unwrap();
    answer
}

/// Reads one answer with a body of known length.
fn read_answer(mut client: &TcpStream) -> (String, Vec<u8>) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        client.read_exact(&mut byte).unwrap();
        head.push(byte[0]);
    }
    let head = String::from_utf8(head).unwrap();
    let length = head
        .lines()
        .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ").map(str::to_owned))
        .map_or(0, |length| length.parse().unwrap());
    let mut body = vec![0; length];
    client.read_exact(&mut body).unwrap();
    (head, body)
}

fn count(haystack: &[u8], needle: &[u8]) -> usize {
    haystack.windows(needle.len()).filter(|window| *window == needle).count()
}

const GET: &[u8] = b"GET /hello HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn one_connection_serves_many_requests() {
    let server = Server::start(HttpConfig::default(), Limits::default());
    let client = server.connect();
    for _ in 0..100 {
        (&client).write_all(GET).unwrap();
        let (head, body) = read_answer(&client);
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert_eq!(body, b"Hello, World!");
    }
    drop(client);
    assert_eq!(server.stop().accepted, 1);
}

/// More answers than the loop lets wait: the rest of the requests waits too, and none is lost.
#[test]
fn pipelined_requests_for_more_than_may_wait_are_all_answered_in_order() {
    let server = Server::start(HttpConfig::default(), Limits::default());
    let client = server.connect();
    let requests: Vec<u8> = (0..400)
        .flat_map(|number| format!("GET /bytes?{} HTTP/1.1\r\nHost: a\r\n\r\n", 50_000 + number).into_bytes())
        .collect();
    let writer = {
        let mut client = client.try_clone().unwrap();
        std::thread::spawn(move || client.write_all(&requests).unwrap())
    };
    for number in 0..400 {
        assert_eq!(read_answer(&client).1.len(), 50_000 + number);
    }
    writer.join().unwrap();
    drop(client);
    server.stop();
}

/// `printf ... | nc -N`: the end of the input comes with the requests, and may not overtake them, whether their
/// answers wait for the end of the turn (as large ones do) or go out at once (as small ones do).
#[test]
fn a_client_that_ends_its_side_gets_every_answer() {
    let server = Server::start(HttpConfig::default(), Limits::default());
    for (requests, target) in [(30, "/bytes?100000"), (1500, "/hello")] {
        let mut client = server.connect();
        let request = format!("GET {target} HTTP/1.1\r\nHost: a\r\n\r\n");
        client.write_all(request.repeat(requests).as_bytes()).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(count(&read_to_end(&client), b"HTTP/1.1 200 OK"), requests, "{target}");
    }
    server.stop();
}

#[test]
fn a_request_that_ends_in_the_middle_is_told_so() {
    let server = Server::start(HttpConfig::default(), Limits::default());
    let mut client = server.connect();
    client.write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\nhalf").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    assert!(read_to_end(&client).starts_with(b"HTTP/1.1 400 "));
    server.stop();
}

#[test]
fn a_head_that_takes_too_long_is_answered_408_and_a_silent_client_is_closed() {
    let config = HttpConfig { head_timeout: Duration::from_millis(50), ..HttpConfig::default() };
    let server = Server::start(config, Limits::default());
    let mut slow = server.connect();
    slow.write_all(b"GET / HTTP/1.1\r\nHost:").unwrap();
    assert!(read_to_end(&slow).starts_with(b"HTTP/1.1 408 "));
    let silent = server.connect();
    assert_eq!(read_to_end(&silent), b"");
    server.stop();
}

#[test]
fn a_kept_connection_is_closed_when_its_time_is_up() {
    let config = HttpConfig { keep_alive_timeout: Duration::from_millis(50), ..HttpConfig::default() };
    let server = Server::start(config, Limits::default());
    let mut client = server.connect();
    let start = Instant::now();
    client.write_all(GET).unwrap();
    assert!(read_to_end(&client).ends_with(b"Hello, World!"));
    assert!(start.elapsed() >= Duration::from_millis(50));
    server.stop();
}

/// The answer to a refused request arrives, though the client is still sending what will not be read.
#[test]
fn a_body_that_is_too_large_is_answered_413_while_it_is_still_coming() {
    let limits = HttpLimits { body: 1000, ..HttpLimits::default() };
    let server = Server::start(HttpConfig { limits, ..HttpConfig::default() }, Limits::default());
    let client = server.connect();
    let writer = {
        let mut client = client.try_clone().unwrap();
        std::thread::spawn(move || {
            client.write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 8000000\r\n\r\n").unwrap();
            client.write_all(&vec![0; 8_000_000]).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
        })
    };
    let answer = read_to_end(&client);
    assert!(answer.starts_with(b"HTTP/1.1 413 "), "{}", answer.escape_ascii());
    writer.join().unwrap();
    server.stop();
}

#[test]
fn bodies_that_arrive_in_pieces_count_against_the_memory_of_the_loop() {
    let limits = Limits { memory: 100_000, ..Limits::default() };
    let server = Server::start(HttpConfig::default(), limits);
    let mut greedy = server.connect();
    greedy.write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1000000\r\n\r\n").unwrap();
    // Whether it is still being written when the server gives up, the kernels decide.
    let _ = greedy.write_all(&vec![0; 900_000]);
    let mut rest = Vec::new();
    let _ = greedy.read_to_end(&mut rest);
    assert_eq!(rest, b"");
    let mut modest = server.connect();
    modest.write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello").unwrap();
    assert_eq!(read_answer(&modest).1, b"hello");
    drop(modest);
    server.stop();
}

#[test]
fn an_answer_that_cannot_be_sent_whole_is_not_sent_in_part() {
    let limits = Limits { output: 300_000, ..Limits::default() };
    let server = Server::start(HttpConfig::default(), limits);
    let mut client = server.connect();
    client.write_all(b"GET /bytes?400000 HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    client.write_all(GET).unwrap();
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer);
    assert_eq!(count(&answer, b"Hello"), 0, "{}", answer.escape_ascii());
    server.stop();
}

#[test]
fn a_drain_closes_idle_clients_and_lets_a_request_in_progress_end() {
    let server = Server::start(HttpConfig::default(), Limits::default());
    let mut idle = server.connect();
    idle.write_all(GET).unwrap();
    read_answer(&idle);
    let mut busy = server.connect();
    busy.write_all(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n")
        .unwrap();
    // The interim answer shows that the head has been read.
    assert!(read_answer(&busy).0.starts_with("HTTP/1.1 100 "));
    server.remote.drain();
    assert_eq!(read_to_end(&idle), b"");
    busy.write_all(b"last").unwrap();
    let answer = read_to_end(&busy);
    assert!(answer.ends_with(b"last"));
    assert_eq!(count(&answer.to_ascii_lowercase(), b"connection: close"), 1);
    drop((idle, busy));
    server.stop();
}

#[test]
fn a_service_that_panics_costs_only_its_own_client() {
    let server = Server::start(HttpConfig::default(), Limits::default());
    let mut other = server.connect();
    other.write_all(GET).unwrap();
    read_answer(&other);
    let mut client = server.connect();
    client.write_all(b"GET /panic HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
    let mut rest = Vec::new();
    let _ = client.read_to_end(&mut rest);
    assert_eq!(rest, b"");
    other.write_all(GET).unwrap();
    assert_eq!(read_answer(&other).1, b"Hello, World!");
    drop(other);
    assert_eq!(server.stop().panics, 1);
}

#[test]
fn answers_are_counted_by_class_and_can_be_read_while_the_server_runs() {
    let config = HttpConfig::default();
    let limits = config.limits(Limits::default());
    let http = Http::new(service, config);
    let metrics = http.metrics();
    let mut reactor = Reactor::new(http, limits).unwrap();
    let loopback = Address::Tcp("127.0.0.1:0".parse().unwrap());
    let (_, bound) = reactor.listen(&loopback, &ListenOptions::default()).unwrap();
    let remote = reactor.remote();
    let thread = std::thread::spawn(move || reactor.run().map(drop));
    let ask = |requests: &str| {
        let mut client = TcpStream::connect(bound.as_tcp().unwrap()).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(requests.as_bytes()).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        read_to_end(&client);
    };
    let get = |path| format!("GET {path} HTTP/1.1\r\nHost: h\r\n\r\n");
    ask(&format!("{}{}", get("/hello"), get("/nothing")));
    ask(&format!("{}not HTTP\r\n\r\n", get("/hello")));
    ask("GET /unfinished HTTP/1.1\r\n");
    let read = metrics.read();
    assert_eq!(read.answers().collect::<Vec<_>>(), [("2xx", 2), ("3xx", 0), ("4xx", 3), ("5xx", 0)]);
    assert_eq!((read.requests(), read.rejections), (5, 2));
    remote.drain();
    thread.join().unwrap().unwrap();
}
