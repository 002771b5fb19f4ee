//! `EpollServer`: messages to actions, errors, shutdown.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream as Client};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use epoll_reactor::{EpollServer, EventHandler, HandlerAction, Limits, ShutdownSignal, TcpStream};

const PATIENCE: Duration = Duration::from_secs(10);

/// What the server's thread tells the test.
#[derive(Debug, PartialEq)]
enum Told {
    Connected(u64),
    Disconnected(u64),
}

/// Lines, whose first byte says what to do with them.
#[derive(Debug)]
struct Lines {
    tell: Sender<Told>,
    clients: Vec<u64>,
}

impl EventHandler for Lines {
    fn on_connection(&mut self, client_id: u64, stream: &TcpStream) -> io::Result<()> {
        assert!(stream.peer_addr()?.ip().is_loopback());
        assert!(self.clients.len() < 3, "on purpose");
        if self.clients.len() == 2 {
            self.clients.push(0);
            return Err(io::Error::other("two are enough"));
        }
        self.clients.push(client_id);
        self.tell.send(Told::Connected(client_id)).map_err(io::Error::other)
    }

    fn on_message(&mut self, client_id: u64, data: &[u8]) -> io::Result<HandlerAction> {
        assert!(self.is_data_complete(data));
        let (kind, line) = (data[0], data.to_vec());
        Ok(match kind {
            b'r' => HandlerAction::Reply(line),
            b'b' => HandlerAction::Broadcast(line),
            b'a' => HandlerAction::SendToAll(line),
            b'0' | b'1' => HandlerAction::SendTo(self.clients[usize::from(kind - b'0')], line),
            b'x' => HandlerAction::SendTo(client_id + (1 << 32), line),
            b'm' => HandlerAction::Reply(vec![b'm'; 64 * 1024]),
            b'n' => HandlerAction::None,
            b'p' => panic!("on purpose"),
            _ => return Err(io::Error::other("what is that?")),
        })
    }

    fn on_disconnect(&mut self, client_id: u64) -> io::Result<()> {
        self.tell.send(Told::Disconnected(client_id)).map_err(io::Error::other)?;
        Err(io::Error::other("nobody minds"))
    }

    fn is_data_complete(&mut self, data: &[u8]) -> bool {
        data.ends_with(b"\n")
    }

    fn message_len(&mut self, data: &[u8]) -> Option<usize> {
        data.iter().position(|byte| *byte == b'\n').map(|position| position + 1)
    }
}

/// A server in a thread of its own, stopped at the end of the test.
struct Server {
    address: String,
    signal: ShutdownSignal,
    told: Receiver<Told>,
    thread: Option<JoinHandle<io::Result<()>>>,
}

impl Server {
    fn start(limits: Limits) -> Self {
        let (tell, told) = channel();
        let handler = Lines { tell, clients: Vec::new() };
        // Clients that are still there at the end are not waited for long.
        let limits = Limits { linger_quiet: Duration::from_millis(100), ..limits };
        let mut server = EpollServer::with_limits("127.0.0.1:0", handler, limits).unwrap();
        let (address, signal) = (server.local_address().to_string(), server.shutdown_signal());
        let thread = Some(thread::spawn(move || server.run(None)));
        Self { address, signal, told, thread }
    }

    fn client(&self) -> Client {
        let client = Client::connect(&self.address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        client
    }

    /// One that `on_connection` has let in, and its number.
    fn member(&self) -> (Client, u64) {
        let client = self.client();
        match self.next() {
            Told::Connected(id) => (client, id),
            told @ Told::Disconnected(_) => panic!("{told:?}"),
        }
    }

    fn next(&self) -> Told {
        self.told.recv_timeout(PATIENCE).expect("a callback in time")
    }

    fn stop(mut self) {
        self.signal.shutdown();
        self.thread.take().unwrap().join().unwrap().unwrap();
    }
}

fn expect(client: &mut Client, expected: &[u8]) {
    let mut received = vec![0; expected.len()];
    client.read_exact(&mut received).unwrap();
    assert_eq!(received, expected);
}

/// The end of the stream comes next.
fn expect_end(client: &mut Client) {
    assert_eq!(client.read(&mut [0]).unwrap_or(0), 0);
}

#[test]
fn each_action_reaches_whom_it_names() {
    let server = Server::start(Limits::default());
    let [(mut zero, _), (mut one, _)] = [server.member(), server.member()];
    // Sent by 0, and who gets it.
    let rows: [(&str, bool, bool); 7] = [
        ("reply\n", true, false),
        ("broadcast\n", false, true),
        ("all\n", true, true),
        ("0 is me\n", true, false),
        ("1 is the other\n", false, true),
        ("x is nobody\n", false, false),
        ("none\n", false, false),
    ];
    for (line, to_zero, to_one) in rows {
        zero.write_all(line.as_bytes()).unwrap();
        // What comes behind shows that nothing else came before.
        zero.write_all(b"all behind\n").unwrap();
        for (client, expected) in [(&mut zero, to_zero), (&mut one, to_one)] {
            let line = if expected { line } else { "" };
            expect(client, format!("{line}all behind\n").as_bytes());
        }
    }
    server.stop();
}

#[test]
fn messages_are_framed_however_they_arrive() {
    let server = Server::start(Limits::default());
    let (mut client, _) = server.member();
    client.set_nodelay(true).unwrap();
    let lines = b"r1\nr22\nr333\n";
    for size in 1..=lines.len() {
        for piece in lines.chunks(size) {
            client.write_all(piece).unwrap();
        }
        expect(&mut client, lines);
    }
    server.stop();
}

#[test]
fn pipelined_messages_with_large_answers_wait_for_the_reader_and_all_come() {
    let limits = Limits {
        output_low_water: 64 * 1024,
        output_high_water: 128 * 1024,
        output: 256 * 1024,
        ..Limits::default()
    };
    let server = Server::start(limits);
    let (mut client, _) = server.member();
    client.write_all(&b"m\n".repeat(500)).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut received = Vec::new();
    client.read_to_end(&mut received).unwrap();
    assert_eq!(received.len(), 500 * 64 * 1024);
    server.stop();
}

#[test]
fn an_error_for_a_message_closes_its_client_behind_what_was_sent_before() {
    let server = Server::start(Limits::default());
    let [(mut bad, id), (mut good, _)] = [server.member(), server.member()];
    bad.write_all(b"r before\n? what\nr behind\n").unwrap();
    expect(&mut bad, b"r before\n");
    expect_end(&mut bad);
    drop(bad);
    assert_eq!(server.next(), Told::Disconnected(id));
    good.write_all(b"r still here\n").unwrap();
    expect(&mut good, b"r still here\n");
    server.stop();
}

#[test]
fn a_client_that_is_turned_away_is_closed_and_never_disconnects() {
    let server = Server::start(Limits::default());
    let [(mut zero, id), _one] = [server.member(), server.member()];
    let mut third = server.client();
    expect_end(&mut third);
    drop(third);
    zero.write_all(b"all that are in\n").unwrap();
    expect(&mut zero, b"all that are in\n");
    drop(zero);
    assert_eq!(server.next(), Told::Disconnected(id));
    server.stop();
}

#[test]
fn a_panic_costs_its_client_alone() {
    let server = Server::start(Limits::default());
    let [(mut bad, id), (mut good, _)] = [server.member(), server.member()];
    bad.write_all(b"panic\n").unwrap();
    expect_end(&mut bad);
    assert_eq!(server.next(), Told::Disconnected(id));
    good.write_all(b"r still here\n").unwrap();
    expect(&mut good, b"r still here\n");
    server.stop();
}

#[test]
fn a_client_that_does_not_read_what_it_is_sent_is_disconnected_and_the_others_get_all_of_it() {
    let limits = Limits {
        output_low_water: 1,
        output_high_water: 128 * 1024,
        output: 256 * 1024,
        ..Limits::default()
    };
    let server = Server::start(limits);
    let [(_slow, slow), (mut good, _)] = [server.member(), server.member()];
    let line = [&[b'0'; 30_000], b"\n".as_slice()].concat();
    // To client 0, which reads nothing, until somebody notices.
    let mut noticed = None;
    for _ in 0..2000 {
        good.write_all(&line).unwrap();
        noticed = server.told.try_recv().ok();
        if noticed.is_some() {
            break;
        }
    }
    assert_eq!(noticed.unwrap_or_else(|| server.next()), Told::Disconnected(slow));
    good.write_all(b"all fine\n").unwrap();
    expect(&mut good, b"all fine\n");
    server.stop();
}

#[test]
fn shutdown_from_any_thread_ends_a_wait_without_a_timeout_and_delivers_what_was_sent() {
    let server = Server::start(Limits::default());
    let (mut client, id) = server.member();
    client.write_all(b"r last words\n").unwrap();
    expect(&mut client, b"r last words\n");
    let signal = server.signal.clone();
    thread::spawn(move || signal.shutdown()).join().unwrap();
    expect_end(&mut client);
    drop(client);
    assert_eq!(server.next(), Told::Disconnected(id));
    server.stop();
}

#[test]
fn a_message_is_all_that_has_arrived_when_no_length_is_given() {
    struct Whole;
    impl EventHandler for Whole {
        fn on_connection(&mut self, _: u64, _: &TcpStream) -> io::Result<()> {
            Ok(())
        }
        fn on_message(&mut self, _: u64, data: &[u8]) -> io::Result<HandlerAction> {
            Ok(HandlerAction::Reply(data.to_ascii_uppercase()))
        }
        fn on_disconnect(&mut self, _: u64) -> io::Result<()> {
            Ok(())
        }
        fn is_data_complete(&mut self, data: &[u8]) -> bool {
            data.ends_with(b".")
        }
    }
    let mut server = EpollServer::new("127.0.0.1:0", Whole).unwrap();
    let (address, signal) = (server.local_address().to_string(), server.shutdown_signal());
    let client = thread::spawn(move || {
        let mut client = Client::connect(address).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        for piece in ["one, ", "two", "."] {
            client.write_all(piece.as_bytes()).unwrap();
        }
        expect(&mut client, b"ONE, TWO.");
        signal.shutdown();
    });
    // With a timeout, which only makes more turns.
    server.run(Some(Duration::from_millis(1))).unwrap();
    client.join().unwrap();
}

#[test]
fn an_address_nobody_can_listen_on_is_an_error_that_names_it() {
    for (address, named) in [("127.0.0.1", "127.0.0.1"), ("unix:", "unix:"), ("192.0.2.1:1", "192.0.2.1:1")] {
        let (tell, _) = channel();
        let error = EpollServer::new(address, Lines { tell, clients: Vec::new() }).unwrap_err();
        assert!(error.to_string().contains(named), "{error}");
    }
}
