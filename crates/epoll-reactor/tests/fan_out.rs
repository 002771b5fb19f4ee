//! `EpollServer` and one message for many: whoever reads gets it whole, and nobody waits long for it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

use std::io::{self, ErrorKind, Read, Write};
use std::net::TcpStream as Client;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use epoll_reactor::{EpollServer, EventHandler, HandlerAction, Limits, ShutdownSignal, TcpStream};

const PATIENCE: Duration = Duration::from_secs(20);

/// Passes each line on to all others.
#[derive(Debug)]
struct Relay {
    connected: Arc<AtomicUsize>,
    gone: Arc<AtomicUsize>,
}

impl EventHandler for Relay {
    fn on_connection(&mut self, _: u64, _: &TcpStream) -> io::Result<()> {
        self.connected.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    fn on_message(&mut self, _: u64, data: &[u8]) -> io::Result<HandlerAction> {
        Ok(HandlerAction::Broadcast(data.to_vec()))
    }

    fn on_disconnect(&mut self, _: u64) -> io::Result<()> {
        self.gone.fetch_add(1, Ordering::SeqCst);
        Ok(())
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
    connected: Arc<AtomicUsize>,
    gone: Arc<AtomicUsize>,
    thread: JoinHandle<io::Result<()>>,
}

impl Server {
    fn start(limits: Limits) -> Self {
        let (connected, gone) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let handler = Relay { connected: Arc::clone(&connected), gone: Arc::clone(&gone) };
        let limits = Limits { linger_quiet: Duration::from_millis(100), ..limits };
        let mut server = EpollServer::with_limits("127.0.0.1:0", handler, limits).unwrap();
        let (address, signal) = (server.local_address().to_string(), server.shutdown_signal());
        Self { address, signal, connected, gone, thread: thread::spawn(move || server.run(None)) }
    }

    /// One that has been let in.
    fn client(&self) -> Client {
        let before = self.connected.load(Ordering::SeqCst);
        let client = Client::connect(&self.address).unwrap();
        let started = Instant::now();
        while self.connected.load(Ordering::SeqCst) == before {
            assert!(started.elapsed() < PATIENCE);
            thread::yield_now();
        }
        client.set_nonblocking(true).unwrap();
        client
    }

    fn stop(self) {
        assert_eq!(self.gone.load(Ordering::SeqCst), 0, "nobody was disconnected");
        self.signal.shutdown();
        self.thread.join().unwrap().unwrap();
    }
}

/// Sends all of `said`, while everybody reads all there is, until each receiver has it.
fn relay(sender: &mut Client, receivers: &mut [Client], said: &[u8]) {
    let mut rest = said;
    let mut received = vec![Vec::new(); receivers.len()];
    let mut scratch = vec![0; 1 << 16];
    let started = Instant::now();
    while !rest.is_empty() || received.iter().any(|it| it.len() < said.len()) {
        match sender.write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock, "the sender"),
        }
        for (receiver, received) in receivers.iter_mut().zip(&mut received) {
            loop {
                match receiver.read(&mut scratch) {
                    Ok(0) => panic!("disconnected after {} of {} bytes", received.len(), said.len()),
                    Ok(count) => received.extend_from_slice(&scratch[..count]),
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{error} after {} of {} bytes", received.len(), said.len()),
                }
            }
        }
        assert!(started.elapsed() < PATIENCE, "not all has come");
    }
    assert!(received.iter().all(|it| it == said));
}

#[test]
fn a_burst_of_small_lines_reaches_a_receiver_that_reads_whole() {
    // More in one read than may wait for one.
    let limits =
        Limits { output: 8 * 1024, output_high_water: 4 * 1024, output_low_water: 1024, ..Limits::default() };
    let server = Server::start(limits);
    let (mut sender, mut receivers) = (server.client(), [server.client()]);
    let lines: Vec<u8> = (0..20_000).flat_map(|number| format!("{number}\n").into_bytes()).collect();
    relay(&mut sender, &mut receivers, &lines);
    server.stop();
}

#[test]
fn a_long_line_for_many_takes_no_more_memory_than_one() {
    const LINE: usize = 64 * 1024;
    let limits = Limits { memory: 800 * 1024, ..Limits::default() };
    let server = Server::start(limits);
    let mut sender = server.client();
    let mut receivers: Vec<Client> = (0..50).map(|_| server.client()).collect();
    for _ in 0..5 {
        relay(&mut sender, &mut receivers, &[vec![b'x'; LINE - 1], vec![b'\n']].concat());
    }
    server.stop();
}

#[test]
fn a_burst_of_tiny_lines_for_many_fits_the_memory_of_all() {
    // In one read 32,768 lines, for 60 receivers each: 3,840 KiB of copies, if nothing were written in between.
    let limits = Limits { memory: 2 * 1024 * 1024, ..Limits::default() };
    let server = Server::start(limits);
    let mut sender = server.client();
    let mut receivers: Vec<Client> = (0..60).map(|_| server.client()).collect();
    relay(&mut sender, &mut receivers, &b"x\n".repeat(100_000));
    server.stop();
}
