//! Handlers on a real loop and real sockets, on the thread of the test: what the server has done by when is then
//! no question of timing.
#![allow(dead_code, reason = "each test uses its part")]

pub(crate) mod answers;
pub(crate) mod kernel;
pub(crate) mod site;

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use epoll_reactor::{ConnId, Handler, Kernel, Limits, Linux, ListenOptions, Reactor};
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};

/// Nothing here takes this long, on any machine. Where it passes, a test has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// A loop that a test takes turns of.
pub(crate) struct Server<H: Handler, K: Kernel = Linux> {
    pub(crate) reactor: Reactor<H, K>,
    pub(crate) address: SocketAddr,
    /// The most that was buffered at the end of a turn.
    pub(crate) peak: usize,
    /// The most that was queued then for one of the first clients.
    pub(crate) peak_queued: usize,
}

impl<H: Handler> Server<H> {
    pub(crate) fn new(handler: H, limits: Limits) -> Self {
        Self::on(Linux::new().unwrap(), handler, limits)
    }
}

impl<H: Handler, K: Kernel> Server<H, K> {
    pub(crate) fn on(kernel: K, handler: H, limits: Limits) -> Self {
        Self::of(Reactor::with_kernel(kernel, handler, limits).unwrap())
    }

    /// Has `reactor` listen.
    pub(crate) fn of(mut reactor: Reactor<H, K>) -> Self {
        // So that a client that does not read shows soon.
        let options = ListenOptions { not_sent_low_water: Some(4096), ..ListenOptions::default() };
        let loopback = SocketAddr::from(([127, 0, 0, 1], 0));
        let (_, bound) = reactor.listen(&loopback.into(), &options).unwrap();
        Self { reactor, address: bound.as_tcp().unwrap(), peak: 0, peak_queued: 0 }
    }

    /// A client that the server has accepted.
    pub(crate) fn join(&mut self) -> Client {
        let before = self.reactor.ctx().counters().accepted;
        let stream = TcpStream::connect(self.address).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_nonblocking(true).unwrap();
        self.until("a client to be accepted", |server| server.reactor.ctx().counters().accepted > before);
        Client { stream, scratch: vec![0; 1 << 16], received: Vec::new(), taken: 0, ended: None }
    }

    pub(crate) fn turn(&mut self, wait: Duration) {
        self.reactor.turn(Some(wait)).unwrap();
        let ctx = self.reactor.ctx();
        self.peak = self.peak.max(ctx.buffered());
        let queued = (0..8).map(|index| ctx.queued(ConnId::from_u64(1 << 32 | index))).max();
        self.peak_queued = self.peak_queued.max(queued.unwrap_or(0));
    }

    /// Takes turns until `done`; the test has failed if that never comes.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let start = Instant::now();
        while !done(self) {
            assert!(start.elapsed() < PATIENCE, "waiting for {what}");
            self.turn(Duration::from_millis(2));
        }
    }

    /// Takes turns until nothing is left to do but wait for clients.
    pub(crate) fn settle(&mut self) {
        self.until("a turn without work", |server| {
            let before = server.work();
            server.turn(Duration::from_millis(20));
            server.work() == before
        });
    }

    /// Has a client read until nothing more comes.
    pub(crate) fn read_all(&mut self, client: &mut Client) {
        self.until("a turn that brings nothing", |server| {
            let before = (server.work(), client.len());
            while client.pull(1 << 16) > 0 {}
            server.turn(Duration::from_millis(20));
            (server.work(), client.len()) == before
        });
    }

    fn work(&mut self) -> (u64, u64, u64, u64) {
        let counters = self.reactor.ctx().counters();
        (counters.events, counters.bytes_received, counters.bytes_sent, counters.closed)
    }

    /// Sends all of it, as fast as the server reads.
    pub(crate) fn send(&mut self, client: &mut Client, data: &[u8]) {
        self.send_to_readers(client, data, &mut []);
    }

    /// Sends all of it in pieces of one turn each, after which `readers` take all that has come.
    pub(crate) fn send_to_readers(&mut self, client: &mut Client, data: &[u8], readers: &mut [&mut Client]) {
        for mut rest in data.chunks(4096) {
            self.until("the server to read", |server| {
                rest = &rest[client.push(rest)..];
                server.turn(Duration::ZERO);
                readers.iter_mut().for_each(|reader| while reader.pull(1 << 16) > 0 {});
                rest.is_empty()
            });
        }
    }

    /// The next line a client gets, with its newline.
    pub(crate) fn line(&mut self, client: &mut Client) -> String {
        let mut line = None;
        self.until("a line", |_| {
            line = client.take_line();
            if line.is_none() {
                assert!(client.ended.is_none(), "the end, after {:?}", client.rest());
                client.pull(1 << 16);
            }
            line.is_some()
        });
        line.unwrap()
    }

    /// Everything a client gets until its end, and how it ends.
    pub(crate) fn rest(&mut self, client: &mut Client) -> (String, End) {
        self.until("the end", |_| {
            client.pull(1 << 16);
            client.ended.is_some()
        });
        (client.rest(), client.ended.unwrap())
    }
}

/// How a client's connection ended, as the client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    Finished,
    Reset,
}

/// The other side of a connection. It never waits.
pub(crate) struct Client {
    pub(crate) stream: TcpStream,
    /// What a read goes to. Large, and not filled anew for each read: a debug build takes its time for that.
    scratch: Vec<u8>,
    received: Vec<u8>,
    taken: usize,
    pub(crate) ended: Option<End>,
}

impl Client {
    /// Sends what the kernel takes; returns how much that was.
    pub(crate) fn push(&mut self, data: &[u8]) -> usize {
        let mut pushed = 0;
        while pushed < data.len() {
            match self.stream.write(&data[pushed..]) {
                Ok(count) => pushed += count,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("a client could not send: {error}"),
            }
        }
        pushed
    }

    /// Reads up to `most` bytes of what is there, and no more than 64 KiB; returns how much that was.
    pub(crate) fn pull(&mut self, most: usize) -> usize {
        let room = self.scratch.len().min(most);
        if self.ended.is_some() || room == 0 {
            return 0;
        }
        match self.stream.read(&mut self.scratch[..room]) {
            Ok(0) => self.ended = Some(End::Finished),
            Ok(count) => {
                self.received.extend_from_slice(&self.scratch[..count]);
                return count;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => (),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => self.ended = Some(End::Reset),
            Err(error) => panic!("a client could not read: {error}"),
        }
        0
    }

    /// How many bytes have been read and not been taken.
    pub(crate) fn len(&self) -> usize {
        self.received.len() - self.taken
    }

    /// A line that has been read, with its newline.
    pub(crate) fn take_line(&mut self) -> Option<String> {
        let unread = &self.received[self.taken..];
        let length = unread.iter().position(|byte| *byte == b'\n')? + 1;
        let line = String::from_utf8_lossy(&unread[..length]).into_owned();
        self.taken += length;
        Some(line)
    }

    /// Takes `count` bytes that have been read; returns how many there were.
    pub(crate) fn skip(&mut self, count: usize) -> usize {
        let count = count.min(self.len());
        self.taken += count;
        count
    }

    /// All that has been read and not been taken.
    pub(crate) fn rest_bytes(&mut self) -> Vec<u8> {
        let rest = self.received.split_off(self.taken);
        self.received.clear();
        self.taken = 0;
        rest
    }

    pub(crate) fn rest(&mut self) -> String {
        String::from_utf8_lossy(&self.rest_bytes()).into_owned()
    }

    pub(crate) fn finish(&self) {
        self.stream.shutdown(Shutdown::Write).unwrap();
    }

    /// Makes its coming end an RST.
    pub(crate) fn reset(&self) {
        let linger = linger { l_onoff: 1, l_linger: 0 };
        setsockopt(&self.stream, sockopt::Linger, &linger).unwrap();
    }
}

/// Numbers that look random and are the same in every run: xorshift64.
pub(crate) struct Random(u64);

impl Random {
    pub(crate) const fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1)
    }

    /// One of `0..end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 16).unwrap() % end
    }
}
