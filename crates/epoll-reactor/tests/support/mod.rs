//! What the contract tests share: a scripted handler, a kernel that counts and fails on demand, peers, and a
//! loop that is driven turn by turn and always ends.
#![allow(dead_code, unused_imports, reason = "each test file uses its own part of this")]

mod kernel;
mod logged;
mod peer;
mod script;

use std::io::{self, ErrorKind, Read};
use std::rc::Rc;
use std::time::{Duration, Instant};

use epoll_reactor::{Address, ConnId, Ctx, Kernel, Limits, ListenOptions, Reactor, Remote, Stopped, Turn};

pub(crate) use kernel::{Controls, Method, TestKernel};
pub(crate) use logged::warnings;
pub(crate) use peer::Peer;
pub(crate) use script::{Call, Script};

/// How long something that must happen may take. Only a failing test waits this long.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// The longest wait of one turn, so that the guard above is looked at.
const WAIT: Duration = Duration::from_millis(5);

pub(crate) const KIB: usize = 1024;

/// A reactor with a [`Script`], listening on one address.
pub(crate) struct Harness {
    pub(crate) reactor: Reactor<Script, TestKernel>,
    pub(crate) kernel: Rc<Controls>,
    pub(crate) address: Address,
    /// Without it a panic in a callback, a failed assertion for instance, fails the test.
    pub(crate) allow_panics: bool,
    directory: Option<tempfile::TempDir>,
}

impl Harness {
    /// On TCP, with the default limits.
    pub(crate) fn new(script: Script) -> Self {
        Self::with(script, Limits::default())
    }

    /// On TCP.
    pub(crate) fn with(script: Script, limits: Limits) -> Self {
        Self::on(&Address::Tcp("127.0.0.1:0".parse().unwrap()), script, limits)
    }

    /// On a Unix socket: its kernel buffers hold some 200 KiB and do not grow.
    pub(crate) fn unix(script: Script, limits: Limits) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let mut harness = Self::on(&Address::Unix(directory.path().join("socket")), script, limits);
        harness.directory = Some(directory);
        harness
    }

    pub(crate) fn on(address: &Address, script: Script, limits: Limits) -> Self {
        let (kernel, controls) = TestKernel::new();
        let mut reactor = Reactor::with_kernel(kernel, script, limits).unwrap();
        let (_, address) = reactor.listen(address, &ListenOptions::default()).unwrap();
        Self { reactor, kernel: controls, address, allow_panics: false, directory: None }
    }

    pub(crate) fn script(&mut self) -> &mut Script {
        self.reactor.handler()
    }

    pub(crate) fn ctx(&mut self) -> &mut Ctx {
        self.reactor.ctx()
    }

    pub(crate) fn remote(&self) -> Remote<u64, TestKernel> {
        self.reactor.remote()
    }

    /// A peer that the loop has yet to accept.
    pub(crate) fn connect(&self) -> Peer {
        Peer::connect(&self.address)
    }

    /// A peer that has been accepted.
    pub(crate) fn open(&mut self) -> (Peer, ConnId) {
        let before = self.script().opened().len();
        let peer = self.connect();
        self.until("on_open", |script| script.opened().len() > before);
        (peer, *self.script().opened().last().unwrap())
    }

    /// `count` of them, in the order of their slots.
    pub(crate) fn open_many<const COUNT: usize>(&mut self) -> [(Peer, ConnId); COUNT] {
        std::array::from_fn(|_| self.open())
    }

    /// One turn that does not wait.
    pub(crate) fn turn(&mut self) -> Turn {
        self.turn_for(Duration::ZERO)
    }

    pub(crate) fn turn_for(&mut self, wait: Duration) -> Turn {
        let turn = self.reactor.turn(Some(wait)).unwrap();
        self.check();
        turn
    }

    /// Fails the test if a callback came out of order.
    pub(crate) fn check(&mut self) {
        let violations = std::mem::take(&mut self.script().violations);
        assert!(violations.is_empty(), "{violations:#?}");
        #[cfg(feature = "sim")]
        self.ctx().audit().unwrap();
        let panics = self.ctx().counters().panics;
        assert!(self.allow_panics || panics == 0, "a callback panicked");
    }

    /// Takes turns until `done`.
    pub(crate) fn until(&mut self, what: &str, mut done: impl FnMut(&mut Script) -> bool) {
        self.until_loop(what, |harness| done(harness.script()));
    }

    /// Takes turns until `done`, which may look at everything.
    pub(crate) fn until_loop(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let started = Instant::now();
        while !done(self) {
            let calls = &self.script().calls;
            let last: Vec<String> = calls.iter().rev().take(5).map(Call::shortened).collect();
            assert!(started.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}; last: {last:?}");
            self.turn_for(WAIT);
        }
    }

    /// Why `id` ended, once it has.
    pub(crate) fn closed(&mut self, id: ConnId) -> epoll_reactor::CloseReason {
        self.until("on_close", |script| script.closed(id).is_some());
        self.script().closed(id).unwrap()
    }

    /// Takes turns until several in a row have nothing to do: for what must *not* happen.
    pub(crate) fn settle(&mut self) {
        let started = Instant::now();
        let mut quiet = 0;
        while quiet < 3 {
            assert!(started.elapsed() < PATIENCE, "the loop does not come to rest");
            let before = (self.script().calls.len(), self.ctx().counters().events, self.kernel.writes());
            self.turn_for(Duration::from_millis(1));
            let after = (self.script().calls.len(), self.ctx().counters().events, self.kernel.writes());
            quiet = if before == after { quiet + 1 } else { 0 };
        }
    }

    /// Exactly `count` bytes from `peer`, while the loop runs.
    pub(crate) fn receive(&mut self, peer: &mut Peer, count: usize) -> Vec<u8> {
        let mut received = vec![0; count];
        let mut filled = 0;
        self.until_loop("the bytes at the peer", |_| {
            while filled < count {
                match peer.read(&mut received[filled..]) {
                    Ok(0) => panic!("the end of the stream after {filled} of {count} bytes"),
                    Ok(length) => filled += length,
                    Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                    Err(error) => panic!("{error} after {filled} of {count} bytes"),
                }
            }
            filled == count
        });
        received
    }

    /// All that comes to `peer` until the end of the stream or an error, while the loop runs.
    pub(crate) fn receive_all(&mut self, peer: &mut Peer) -> (Vec<u8>, io::Result<()>) {
        let mut received = Vec::new();
        let mut end = Ok(());
        self.until_loop("the end of the stream at the peer", |_| match peer.read_to_end(&mut received) {
            Err(error) if error.kind() == ErrorKind::WouldBlock => false,
            result => {
                end = result.map(drop);
                true
            }
        });
        (received, end)
    }

    /// Writes all of `data`, while the loop runs.
    pub(crate) fn write(&mut self, peer: &mut Peer, data: &[u8]) {
        let mut written = 0;
        self.until_loop("the peer's writing", |_| {
            written += peer.write_some(&data[written..]);
            written == data.len()
        });
    }

    /// Runs until the reactor has stopped.
    pub(crate) fn run_to_end(&mut self) -> Stopped {
        let started = Instant::now();
        loop {
            if let Turn::Stopped(stopped) = self.turn_for(WAIT) {
                return stopped;
            }
            assert!(started.elapsed() < PATIENCE, "the reactor does not stop");
        }
    }

    /// From here on the loop's time moves only by [`advance`](Self::advance).
    pub(crate) fn stop_clock(&mut self) {
        let now = self.ctx().now();
        self.kernel.stop_clock(now);
    }

    /// Moves the loop's time on, and takes the turns that follow from it.
    pub(crate) fn advance(&mut self, time: Duration) {
        self.kernel.advance(time);
        self.turn();
        self.turn();
    }
}

/// Bytes in which a loss, a repetition or a swap shows.
pub(crate) fn pattern(length: usize) -> Vec<u8> {
    (0..=u8::MAX)
        .flat_map(|round| (0..251).map(move |position| position ^ round))
        .cycle()
        .take(length)
        .collect()
}

/// Compares without printing megabytes.
pub(crate) fn assert_same(received: &[u8], expected: &[u8]) {
    let differs = received.iter().zip(expected).position(|(left, right)| left != right);
    assert_eq!((differs, received.len()), (None, expected.len()));
}
