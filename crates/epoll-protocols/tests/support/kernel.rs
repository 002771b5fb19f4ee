//! The real kernel, but its sends can be held back, and are noted: which memory they took their bytes from. Its
//! clock can be moved by hand.

use std::cell::{Cell, RefCell};
use std::fs::File;
use std::io::IoSlice;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use epoll_reactor::{
    Address, ConnectProgress, Errno, Events, Interest, Kernel, Linux, ListenOptions, Signal, Then, Timestamp,
};

pub(crate) struct Watched {
    linux: Linux,
    pub(crate) sends: Rc<Sends>,
}

#[derive(Default)]
pub(crate) struct Sends {
    /// Every socket is full. After this is taken back a client must send something: the kernel gives no edge.
    pub(crate) held_back: Cell<bool>,
    /// Set: the time stands still there.
    pub(crate) clock: Cell<Option<Timestamp>>,
    /// Set: what the wall clock shows. It stands still.
    pub(crate) wall_clock: Cell<Option<SystemTime>>,
    /// How often each call was made that the loop lives on.
    pub(crate) calls: Cell<Calls>,
    /// Where the pieces given to the kernel lay, and how long they were.
    pub(crate) pieces: RefCell<Vec<(usize, usize)>>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Calls {
    pub(crate) wait: usize,
    pub(crate) accept: usize,
    pub(crate) add: usize,
    pub(crate) recv: usize,
    /// One buffer or several.
    pub(crate) send: usize,
    /// All others that concern a connection.
    pub(crate) other: usize,
}

impl Sends {
    fn count(&self, count: impl FnOnce(&mut Calls)) {
        let mut calls = self.calls.get();
        count(&mut calls);
        self.calls.set(calls);
    }

    /// From now on the loop's time only moves when it is told to.
    pub(crate) fn stop_clock(&self) {
        self.clock.set(Some(Linux::new().unwrap().now()));
    }

    pub(crate) fn advance(&self, time: Duration) {
        self.clock.set(self.clock.get().map(|now| now + time));
    }
}

impl Watched {
    pub(crate) fn new() -> Self {
        Self { linux: Linux::new().unwrap(), sends: Rc::default() }
    }

    fn note(&self, piece: &[u8]) {
        self.sends.pieces.borrow_mut().push((piece.as_ptr().addr(), piece.len()));
    }
}

impl Kernel for Watched {
    type Fd = OwnedFd;

    fn send(&self, socket: &OwnedFd, data: &[u8]) -> Result<usize, Errno> {
        self.sends.count(|calls| calls.send += 1);
        if self.sends.held_back.get() {
            return Err(Errno::EAGAIN);
        }
        self.note(data);
        self.linux.send(socket, data)
    }

    fn writev(&self, socket: &OwnedFd, pieces: &[IoSlice<'_>], then: Then) -> Result<usize, Errno> {
        self.sends.count(|calls| calls.send += 1);
        if self.sends.held_back.get() {
            return Err(Errno::EAGAIN);
        }
        pieces.iter().for_each(|piece| self.note(piece));
        self.linux.writev(socket, pieces, then)
    }

    fn sendfile(&self, socket: &OwnedFd, file: &File, offset: u64, count: usize) -> Result<usize, Errno> {
        self.sends.count(|calls| calls.other += 1);
        if self.sends.held_back.get() {
            return Err(Errno::EAGAIN);
        }
        self.linux.sendfile(socket, file, offset, count)
    }

    fn now(&self) -> Timestamp {
        self.sends.clock.get().unwrap_or_else(|| self.linux.now())
    }

    fn wall_clock(&self) -> SystemTime {
        self.sends.wall_clock.get().unwrap_or_else(|| self.linux.wall_clock())
    }

    fn add(&self, fd: &OwnedFd, interest: Interest, token: u64) -> Result<(), Errno> {
        self.sends.count(|calls| calls.add += 1);
        self.linux.add(fd, interest, token)
    }

    fn delete(&self, fd: &OwnedFd) -> Result<(), Errno> {
        self.sends.count(|calls| calls.other += 1);
        self.linux.delete(fd)
    }

    fn wait(&self, events: &mut Events, timeout: Option<Duration>) -> Result<(), Errno> {
        self.sends.count(|calls| calls.wait += 1);
        self.linux.wait(events, timeout)
    }

    fn listen(&self, address: &Address, options: &ListenOptions) -> Result<OwnedFd, Errno> {
        self.linux.listen(address, options)
    }

    fn remove_socket_file(&self, address: &Address) -> Result<(), Errno> {
        self.linux.remove_socket_file(address)
    }

    fn local_address(&self, socket: &OwnedFd) -> Result<Address, Errno> {
        self.sends.count(|calls| calls.other += 1);
        self.linux.local_address(socket)
    }

    fn accept(&self, listener: &OwnedFd) -> Result<(OwnedFd, Address), Errno> {
        self.sends.count(|calls| calls.accept += 1);
        self.linux.accept(listener)
    }

    fn connect(&self, address: &Address) -> Result<(OwnedFd, ConnectProgress), Errno> {
        self.linux.connect(address)
    }

    fn take_error(&self, socket: &OwnedFd) -> Result<Option<Errno>, Errno> {
        self.sends.count(|calls| calls.other += 1);
        self.linux.take_error(socket)
    }

    fn recv(&self, socket: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.sends.count(|calls| calls.recv += 1);
        self.linux.recv(socket, buffer)
    }

    fn shutdown_write(&self, socket: &OwnedFd) -> Result<(), Errno> {
        self.sends.count(|calls| calls.other += 1);
        self.linux.shutdown_write(socket)
    }

    fn reset_on_close(&self, socket: &OwnedFd) -> Result<(), Errno> {
        self.linux.reset_on_close(socket)
    }

    fn read(&self, fd: &OwnedFd, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.linux.read(fd, buffer)
    }

    fn write(&self, fd: &OwnedFd, data: &[u8]) -> Result<usize, Errno> {
        self.linux.write(fd, data)
    }

    fn as_raw<'fd>(&self, fd: &'fd OwnedFd) -> Option<BorrowedFd<'fd>> {
        self.linux.as_raw(fd)
    }

    fn eventfd(&self) -> Result<OwnedFd, Errno> {
        self.linux.eventfd()
    }

    fn notify(eventfd: &OwnedFd) -> Result<(), Errno> {
        Linux::notify(eventfd)
    }

    fn signalfd(&self, signals: &[Signal]) -> Result<OwnedFd, Errno> {
        self.linux.signalfd(signals)
    }

    fn read_signal(&self, signalfd: &OwnedFd) -> Result<Option<Signal>, Errno> {
        self.linux.read_signal(signalfd)
    }
}
