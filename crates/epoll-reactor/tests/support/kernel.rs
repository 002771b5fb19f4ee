//! The real kernel, with a count of each call, errors on demand, and a clock that can be moved by hand.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use epoll_reactor::{
    Address, ConnId, Errno, Interest, Kernel, Linux, ListenOptions, Signal, Then, Timestamp,
};
use epoll_sys::{ConnectProgress, Events};

use super::PATIENCE;

/// The calls that are counted and can be made to fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Method {
    Add,
    Delete,
    Wait,
    Accept,
    Connect,
    TakeError,
    Recv,
    Send,
    Writev,
    Sendfile,
    ShutdownWrite,
    Read,
    Write,
    Eventfd,
    Notify,
    ReadSignal,
}

#[derive(Clone, Copy)]
enum Fault {
    Error(Errno),
    /// A write takes at most this much.
    Short(usize),
}

struct Rule {
    method: Method,
    connection: Option<ConnId>,
    fault: Fault,
    times: usize,
}

/// What a test holds of its kernel.
#[derive(Default)]
pub(crate) struct Controls {
    counts: RefCell<BTreeMap<Method, usize>>,
    rules: RefCell<Vec<Rule>>,
    tokens: RefCell<BTreeMap<RawFd, u64>>,
    /// Set: the time stands still there.
    stopped_clock: Cell<Option<Timestamp>>,
    /// Readings of the monotonic clock.
    pub(crate) clock_readings: Cell<usize>,
    /// What followed each `writev`, as the loop said.
    pub(crate) followed: RefCell<Vec<Then>>,
    pub(crate) last_timeout: Cell<Option<Duration>>,
    /// Keep a duplicate of each accepted descriptor, and let its events go on: what a forked child would do.
    pub(crate) hold_duplicates: Cell<bool>,
    pub(crate) duplicates: RefCell<Vec<OwnedFd>>,
}

thread_local! {
    /// `notify` has no `self` to count in; each test has a thread of its own.
    static NOTIFIED: Cell<usize> = const { Cell::new(0) };
}

impl Controls {
    /// How often `method` was called.
    pub(crate) fn count(&self, method: Method) -> usize {
        match method {
            Method::Notify => NOTIFIED.get(),
            method => self.counts.borrow().get(&method).copied().unwrap_or(0),
        }
    }

    /// Writes to connected sockets, of any kind.
    pub(crate) fn writes(&self) -> usize {
        self.count(Method::Send) + self.count(Method::Writev) + self.count(Method::Sendfile)
    }

    /// The next `times` calls of `method` fail.
    pub(crate) fn fail(&self, method: Method, errno: Errno, times: usize) {
        self.add_rule(method, None, Fault::Error(errno), times);
    }

    /// The next `times` calls of `method` for `id` fail.
    pub(crate) fn fail_for(&self, id: ConnId, method: Method, errno: Errno, times: usize) {
        self.add_rule(method, Some(id), Fault::Error(errno), times);
    }

    /// The next `times` writes to `id` take at most `most` bytes.
    pub(crate) fn shorten_writes(&self, id: ConnId, most: usize, times: usize) {
        self.add_rule(Method::Send, Some(id), Fault::Short(most), times);
        self.add_rule(Method::Writev, Some(id), Fault::Short(most), times);
        self.add_rule(Method::Sendfile, Some(id), Fault::Short(most), times);
    }

    /// All is well again.
    pub(crate) fn heal(&self) {
        self.rules.borrow_mut().clear();
    }

    /// From now on the time only moves when it is told to.
    pub(crate) fn stop_clock(&self, at: Timestamp) {
        self.stopped_clock.set(Some(at));
    }

    pub(crate) fn advance(&self, time: Duration) {
        let at = self.stopped_clock.get().expect("the clock is stopped");
        self.stopped_clock.set(Some(at + time));
    }

    fn add_rule(&self, method: Method, connection: Option<ConnId>, fault: Fault, times: usize) {
        self.rules.borrow_mut().push(Rule { method, connection, fault, times });
    }

    fn called(&self, method: Method, fd: Option<&OwnedFd>) -> Option<Fault> {
        *self.counts.borrow_mut().entry(method).or_default() += 1;
        let token = fd.and_then(|fd| self.tokens.borrow().get(&fd.as_raw_fd()).copied());
        let mut rules = self.rules.borrow_mut();
        let rule = rules.iter_mut().find(|rule| {
            rule.method == method
                && rule.times > 0
                && rule.connection.is_none_or(|id| Some(id.as_u64()) == token)
        })?;
        rule.times -= 1;
        Some(rule.fault)
    }

    /// Counts the call; an error if the test wants one.
    fn check(&self, method: Method, fd: Option<&OwnedFd>) -> Result<(), Errno> {
        match self.called(method, fd) {
            Some(Fault::Error(errno)) => Err(errno),
            _ => Ok(()),
        }
    }
}

pub(crate) struct TestKernel {
    linux: Linux,
    /// Has nothing registered: how to empty `Events` from out here.
    empty: Linux,
    controls: Rc<Controls>,
    born: Instant,
}

impl TestKernel {
    pub(crate) fn new() -> (Self, Rc<Controls>) {
        let controls = Rc::new(Controls::default());
        let kernel = Self {
            linux: Linux::new().unwrap(),
            empty: Linux::new().unwrap(),
            controls: Rc::clone(&controls),
            born: Instant::now(),
        };
        NOTIFIED.set(0);
        (kernel, controls)
    }
}

impl Kernel for TestKernel {
    type Fd = OwnedFd;

    fn now(&self) -> Timestamp {
        self.controls.clock_readings.set(self.controls.clock_readings.get() + 1);
        self.controls.stopped_clock.get().unwrap_or_else(|| self.linux.now())
    }

    fn wall_clock(&self) -> SystemTime {
        self.linux.wall_clock()
    }

    fn add(&self, fd: &OwnedFd, interest: Interest, token: u64) -> Result<(), Errno> {
        self.controls.check(Method::Add, None)?;
        self.controls.tokens.borrow_mut().insert(fd.as_raw_fd(), token);
        if interest == Interest::Stream && self.controls.hold_duplicates.get() {
            self.controls.duplicates.borrow_mut().push(fd.try_clone().unwrap());
        }
        self.linux.add(fd, interest, token)
    }

    fn delete(&self, fd: &OwnedFd) -> Result<(), Errno> {
        self.controls.check(Method::Delete, Some(fd))?;
        self.controls.tokens.borrow_mut().remove(&fd.as_raw_fd());
        if self.controls.hold_duplicates.get() { Ok(()) } else { self.linux.delete(fd) }
    }

    fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> Result<(), Errno> {
        self.controls.last_timeout.set(timeout);
        if let Err(errno) = self.controls.check(Method::Wait, None) {
            self.empty.wait(events, Some(Duration::ZERO))?;
            return Err(errno);
        }
        // Whatever the loop thinks, no test waits for ever.
        assert!(self.born.elapsed() < 3 * PATIENCE, "the loop does not come to an end");
        self.linux.wait(events, Some(timeout.unwrap_or(PATIENCE).min(PATIENCE)))?;
        let overslept = events.is_empty() && timeout.is_none_or(|timeout| timeout > PATIENCE);
        assert!(!overslept, "the loop sleeps, and nothing wakes it");
        Ok(())
    }

    fn listen(&self, address: &Address, options: &ListenOptions) -> Result<OwnedFd, Errno> {
        self.linux.listen(address, options)
    }

    fn remove_socket_file(&self, address: &Address) -> Result<(), Errno> {
        self.linux.remove_socket_file(address)
    }

    fn local_address(&self, socket: &OwnedFd) -> Result<Address, Errno> {
        self.linux.local_address(socket)
    }

    fn accept(&self, listener: &OwnedFd) -> Result<(OwnedFd, Address), Errno> {
        self.controls.check(Method::Accept, None)?;
        self.linux.accept(listener)
    }

    fn connect(&self, address: &Address) -> Result<(OwnedFd, ConnectProgress), Errno> {
        self.controls.check(Method::Connect, None)?;
        self.linux.connect(address)
    }

    fn take_error(&self, socket: &OwnedFd) -> Result<Option<Errno>, Errno> {
        self.controls.check(Method::TakeError, Some(socket))?;
        self.linux.take_error(socket)
    }

    fn recv(&self, socket: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.controls.check(Method::Recv, Some(socket))?;
        self.linux.recv(socket, buffer)
    }

    fn send(&self, socket: &OwnedFd, data: &[u8]) -> Result<usize, Errno> {
        match self.controls.called(Method::Send, Some(socket)) {
            Some(Fault::Error(errno)) => Err(errno),
            Some(Fault::Short(most)) => self.linux.send(socket, &data[..most.min(data.len())]),
            None => self.linux.send(socket, data),
        }
    }

    fn writev(&self, socket: &OwnedFd, pieces: &[IoSlice<'_>], then: Then) -> Result<usize, Errno> {
        self.controls.followed.borrow_mut().push(then);
        match self.controls.called(Method::Writev, Some(socket)) {
            Some(Fault::Error(errno)) => Err(errno),
            Some(Fault::Short(most)) => {
                let whole: Vec<u8> = pieces.iter().flat_map(|piece| piece.iter().copied()).collect();
                self.linux.send(socket, &whole[..most.min(whole.len())])
            }
            None => self.linux.writev(socket, pieces, then),
        }
    }

    fn sendfile(&self, socket: &OwnedFd, file: &File, offset: u64, count: usize) -> Result<usize, Errno> {
        match self.controls.called(Method::Sendfile, Some(socket)) {
            Some(Fault::Error(errno)) => Err(errno),
            Some(Fault::Short(most)) => self.linux.sendfile(socket, file, offset, most.min(count)),
            None => self.linux.sendfile(socket, file, offset, count),
        }
    }

    fn shutdown_write(&self, socket: &OwnedFd) -> Result<(), Errno> {
        self.controls.check(Method::ShutdownWrite, Some(socket))?;
        self.linux.shutdown_write(socket)
    }

    fn reset_on_close(&self, socket: &OwnedFd) -> Result<(), Errno> {
        self.linux.reset_on_close(socket)
    }

    fn read(&self, fd: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.controls.check(Method::Read, Some(fd))?;
        self.linux.read(fd, buffer)
    }

    fn write(&self, fd: &OwnedFd, data: &[u8]) -> Result<usize, Errno> {
        self.controls.check(Method::Write, Some(fd))?;
        self.linux.write(fd, data)
    }

    fn as_raw<'fd>(&self, fd: &'fd OwnedFd) -> Option<BorrowedFd<'fd>> {
        self.linux.as_raw(fd)
    }

    fn eventfd(&self) -> Result<OwnedFd, Errno> {
        self.controls.check(Method::Eventfd, None)?;
        self.linux.eventfd()
    }

    fn notify(eventfd: &OwnedFd) -> Result<(), Errno> {
        NOTIFIED.set(NOTIFIED.get() + 1);
        Linux::notify(eventfd)
    }

    fn signalfd(&self, signals: &[Signal]) -> Result<OwnedFd, Errno> {
        self.linux.signalfd(signals)
    }

    fn read_signal(&self, signalfd: &OwnedFd) -> Result<Option<Signal>, Errno> {
        self.controls.check(Method::ReadSignal, Some(signalfd))?;
        self.linux.read_signal(signalfd)
    }
}
