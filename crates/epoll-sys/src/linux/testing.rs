//! What the tests of the real kernel share.

use std::os::fd::OwnedFd;
use std::time::Duration;

use super::Linux;
use crate::{Address, Event, Events, Interest, Kernel, ListenOptions};

/// The one event that is to come, waiting no longer than a failing test should.
pub(super) fn next(linux: &Linux) -> Event {
    let mut events = Events::with_capacity(1);
    linux.wait(&mut events, Some(Duration::from_secs(5))).unwrap();
    events.get(0).expect("an event")
}

pub(super) fn loopback() -> Address {
    Address::Tcp("127.0.0.1:0".parse().unwrap())
}

/// The next connection of a listener that nobody else waits for, with an epoll instance of its own.
pub(super) fn accept(linux: &Linux, listener: &OwnedFd) -> (OwnedFd, Address) {
    let waiting = Linux::new().unwrap();
    waiting.add(listener, Interest::Readable, 0).unwrap();
    next(&waiting);
    linux.accept(listener).unwrap()
}

/// Two ends of a TCP connection, neither registered.
pub(super) fn pair(linux: &Linux) -> (OwnedFd, OwnedFd) {
    let listener = linux.listen(&loopback(), &ListenOptions::default()).unwrap();
    let (client, _) = linux.connect(&linux.local_address(&listener).unwrap()).unwrap();
    let (server, _) = accept(linux, &listener);
    (client, server)
}
