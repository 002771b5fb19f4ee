//! The other side: clients and servers that a test plays, without descriptors, faults or waiting.

use std::fmt;

use super::Sim;
use super::stream::{Family, Phase, Stream};
use super::table::Key;
use crate::{Address, Errno};

/// What [`Peer::recv`] finds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Received {
    /// Some bytes, at least one.
    Bytes(Vec<u8>),
    /// Nothing for now.
    Nothing,
    /// The end of the stream, again and again.
    End,
    /// The connection was reset, refused or timed out. Told once; after that it is [`End`](Self::End).
    Failed(Errno),
}

/// One end of a connection in the hands of the test. It has buffers and a network like any other, but no
/// call on it takes time or is befallen by a fault. Dropping it closes it.
pub struct Peer {
    sim: Sim,
    key: Key,
}

impl Peer {
    pub(super) const fn new(sim: Sim, key: Key) -> Self {
        Self { sim, key }
    }

    /// Sends as much of `data` as there is room for, and says how much that is: 0 if the send buffer is full
    /// or the connection is over.
    pub fn send(&self, data: &[u8]) -> usize {
        self.sim.world().send_now(self.key, &[data], usize::MAX).unwrap_or(0)
    }

    /// Sends `byte` as urgent data (`MSG_OOB`, tcp(7)); says whether there was room. Unix sockets treat it as
    /// an ordinary byte here.
    pub fn send_urgent(&self, byte: u8) -> bool {
        let mut world = self.sim.world();
        if let Some(stream) = world.stream_mut(self.key)
            && stream.phase == Phase::Connected
            && !stream.shut
            && stream.room(0) > 0
            && stream.family == Family::Tcp
        {
            stream.urgent_sent = Some(stream.sent);
        }
        world.send_now(self.key, &[&[byte]], usize::MAX) == Ok(1)
    }

    /// Takes up to `limit` bytes of what has arrived.
    pub fn recv(&self, limit: usize) -> Received {
        let mut world = self.sim.world();
        let arrived = world.stream(self.key).map_or(0, |stream| stream.received.len());
        let mut bytes = vec![0; limit.min(arrived).max(1)];
        match world.recv_now(self.key, &mut bytes) {
            Ok(0) => Received::End,
            Ok(count) => {
                bytes.truncate(count);
                Received::Bytes(bytes)
            }
            Err(Errno::EAGAIN) => Received::Nothing,
            Err(errno) => Received::Failed(errno),
        }
    }

    /// Takes all that has arrived.
    pub fn recv_all(&self) -> Vec<u8> {
        let mut all = Vec::new();
        while let Received::Bytes(bytes) = self.recv(usize::MAX) {
            all.extend(bytes);
        }
        all
    }

    /// Sends a FIN behind what has been sent.
    pub fn shutdown_write(&self) {
        // That the connection is over already is no concern of the test's.
        let _: Result<(), Errno> = self.sim.world().shutdown_now(self.key);
    }

    /// Closes with an RST. What has not arrived by then may be lost.
    pub fn reset(self) {
        if let Some(stream) = self.sim.world().stream_mut(self.key) {
            stream.linger_zero = true;
        }
    }

    /// Closes: with a FIN, or with an RST if something has arrived that was not read.
    pub fn close(self) {}

    /// Sets the room for what arrives. 0 holds the sender up until it is set again.
    pub fn set_receive_buffer(&self, bytes: usize) {
        let mut world = self.sim.world();
        if let Some(stream) = world.stream_mut(self.key) {
            stream.receive_capacity = bytes;
            if let Some(sender) = stream.peer {
                world.kick(sender);
            }
        }
    }

    /// Sets the room for what is on its way.
    pub fn set_send_buffer(&self, bytes: usize) {
        if let Some(stream) = self.sim.world().stream_mut(self.key) {
            stream.send_capacity = bytes;
        }
    }

    /// Bytes sent that have not arrived.
    #[must_use]
    pub fn unsent(&self) -> usize {
        self.sim.world().stream(self.key).map_or(0, |stream| stream.outgoing.len())
    }

    /// Bytes that have arrived and were not read.
    #[must_use]
    pub fn unread(&self) -> usize {
        self.sim.world().stream(self.key).map_or(0, |stream| stream.received.len())
    }

    /// Bytes that have arrived at the other end and were not read there, an urgent one not counted.
    #[must_use]
    pub fn unread_there(&self) -> usize {
        self.other_end(|stream| stream.received.len().saturating_sub(usize::from(stream.urgent.is_some())))
    }

    /// Bytes that were read at the other end, ever, urgent ones among them.
    #[must_use]
    pub fn read_there(&self) -> u64 {
        self.other_end(|stream| stream.read)
    }

    /// Bytes that the other end has sent and that have not arrived.
    #[must_use]
    pub fn unsent_there(&self) -> usize {
        self.other_end(|stream| stream.outgoing.len())
    }

    /// Nothing if there is no other end any more.
    fn other_end<N: Default>(&self, count: impl FnOnce(&Stream) -> N) -> N {
        let world = self.sim.world();
        world.stream(self.key).and_then(|stream| world.stream(stream.peer?)).map_or_else(N::default, count)
    }

    /// Whether it was reset, refused or timed out; it does not take the error away.
    #[must_use]
    pub fn is_reset(&self) -> bool {
        self.sim.world().stream(self.key).is_none_or(|stream| stream.phase == Phase::Dead)
    }

    /// Whether the other end's FIN has arrived, read or not.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.sim.world().stream(self.key).is_some_and(|stream| stream.ended)
    }

    /// The number of its socket, which is used again when both ends are gone.
    #[must_use]
    pub const fn number(&self) -> u32 {
        self.key.index()
    }

    /// Its own address: what the program under test gets from accept.
    #[must_use]
    pub fn address(&self) -> Address {
        self.sim.world().stream(self.key).map_or(Address::UnixUnnamed, |stream| stream.local.clone())
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Peer(#{}, {})", self.key.index(), self.address())
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        self.sim.world().close_stream(self.key, true);
    }
}

/// A listener in the hands of the test, for the outbound connections of the program. Dropping it closes it.
pub struct PeerListener {
    sim: Sim,
    key: Key,
}

impl PeerListener {
    pub(super) const fn new(sim: Sim, key: Key) -> Self {
        Self { sim, key }
    }

    /// The next pending connection, if there is one.
    #[must_use]
    pub fn accept(&self) -> Option<Peer> {
        let key = self.sim.world().accept_now(self.key)?;
        Some(Peer::new(self.sim.clone(), key))
    }

    /// Where it listens, with the port it was given.
    #[must_use]
    pub fn address(&self) -> Address {
        self.sim.world().local_address(self.key).unwrap_or(Address::UnixUnnamed)
    }
}

impl fmt::Debug for PeerListener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerListener(#{}, {})", self.key.index(), self.address())
    }
}

impl Drop for PeerListener {
    fn drop(&mut self) {
        self.sim.world().close_listener(self.key);
    }
}
