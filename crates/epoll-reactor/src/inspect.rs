//! What can be told of each connection, for lists of them, and of what the loop has done.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::fmt;
use std::time::Duration;

use epoll_sys::Address;

use crate::connection::{Connection, Phase};
use crate::ctx::Ctx;
use crate::recorder::Recording;
use crate::token::{ConnId, ListenerId};

/// How far along its life a connection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConnectionState {
    /// Outbound, and not decided yet.
    Connecting,
    /// In use.
    Open,
    /// Closed on this side; output is still going out.
    Flushing,
    /// All output and the FIN have gone out; what comes is discarded until the peer's own.
    Lingering,
    /// There was no room for it, and it is being told: [`Limits::refusal`](crate::Limits::refusal).
    Refused,
}

impl ConnectionState {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Connecting, Self::Open, Self::Flushing, Self::Lingering, Self::Refused];

    /// One lower-case word, for labels.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connecting => "connecting",
            Self::Open => "open",
            Self::Flushing => "flushing",
            Self::Lingering => "lingering",
            Self::Refused => "refused",
        }
    }
}

impl fmt::Display for ConnectionState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// One connection, at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct ConnectionInfo {
    /// Its id.
    pub id: ConnId,
    /// Who is at the other end.
    pub peer: Address,
    /// The listener that accepted it; `None` if it is outbound.
    pub listener: Option<ListenerId>,
    /// How far along its life it is.
    pub state: ConnectionState,
    /// How long it has been there.
    pub age: Duration,
    /// How long nothing has been read or written.
    pub idle: Duration,
    /// Bytes read from it.
    pub bytes_received: u64,
    /// Bytes the kernel took.
    pub bytes_sent: u64,
    /// Bytes of output that wait for the kernel to take them, those in files among them.
    pub queued: u64,
    /// Bytes of memory it is counted for against [`Limits::memory`](crate::Limits::memory): input, output and what its
    /// handler accounts for.
    pub held: u64,
}

/// Which connections come first in a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListOrder {
    /// Those that have been there longest.
    Age,
    /// Those that were read from and written to most, in bytes.
    Traffic,
    /// Those for which most output waits.
    Queued,
    /// Those that hold most memory.
    Held,
}

impl Ctx {
    /// What the loop did last, if [`Limits::recorder`](crate::Limits::recorder) has it remembered and there is anything to remember: a copy, which is
    /// made while everything waits, in a few microseconds. To be written to a file by whoever may open one.
    #[must_use]
    pub fn recording(&self) -> Option<Recording> {
        self.recorder.recording(self.clock.wall_at(self.recorder.now))
    }

    /// The first `most` connections in `order`, refused ones among them; those that are to be taken apart at the end of
    /// this turn are not. `usize::MAX` for all.
    ///
    /// It looks at every connection there is, while the loop waits: some tens of nanoseconds for each, so a
    /// few milliseconds where there are a hundred thousand. Memory is taken for `most` only.
    #[must_use]
    pub fn list_connections(&self, order: ListOrder, most: usize) -> Vec<ConnectionInfo> {
        self.first_of(most, |_, connection| self.rank(connection, order))
    }

    /// The same in an order of the caller's own: those for which `rank` says the largest numbers come first. It is asked
    /// once for each connection, which takes about as long again.
    #[must_use]
    pub fn list_connections_by(
        &self,
        most: usize,
        mut rank: impl FnMut(&ConnectionInfo) -> u64,
    ) -> Vec<ConnectionInfo> {
        self.first_of(most, |id, connection| self.info(id, connection).map_or(0, |info| rank(&info)))
    }

    fn first_of(&self, most: usize, mut rank: impl FnMut(ConnId, &Connection) -> u64) -> Vec<ConnectionInfo> {
        // Its smallest is the first to go.
        let mut first: BinaryHeap<Reverse<(u64, Reverse<usize>)>> = BinaryHeap::new();
        for index in 0..self.connections.end() {
            if let Some((id, connection)) = self.connection_at(index)
                && connection.state().is_some()
            {
                let entry = Reverse((rank(id, connection), Reverse(index)));
                if first.len() < most {
                    first.push(entry);
                } else if let Some(mut last) = first.peek_mut()
                    && entry < *last
                {
                    *last = entry;
                }
            }
        }
        let entries = first.into_sorted_vec().into_iter();
        entries.filter_map(|Reverse((_, Reverse(index)))| self.info_at(index)).collect()
    }

    /// One connection; `None` if it has gone.
    #[must_use]
    pub fn connection_info(&self, id: ConnId) -> Option<ConnectionInfo> {
        self.info(id, self.connections.get(id.0)?)
    }

    fn rank(&self, connection: &Connection, order: ListOrder) -> u64 {
        match order {
            ListOrder::Age => u64::MAX - connection.opened.as_nanoseconds(),
            ListOrder::Traffic => connection.bytes_received.saturating_add(connection.bytes_sent),
            ListOrder::Queued => connection.queued() as u64,
            ListOrder::Held => connection.memory() as u64,
        }
    }

    fn connection_at(&self, index: usize) -> Option<(ConnId, &Connection)> {
        let token = self.connections.token_at(index)?;
        Some((ConnId(token), self.connections.get(token)?))
    }

    fn info_at(&self, index: usize) -> Option<ConnectionInfo> {
        let (id, connection) = self.connection_at(index)?;
        self.info(id, connection)
    }

    fn info(&self, id: ConnId, connection: &Connection) -> Option<ConnectionInfo> {
        Some(ConnectionInfo {
            id,
            peer: connection.peer.address(),
            listener: connection.listener,
            state: connection.state()?,
            age: self.now() - connection.opened,
            idle: self.now() - connection.active,
            bytes_received: connection.bytes_received,
            bytes_sent: connection.bytes_sent,
            queued: connection.queued() as u64,
            held: connection.memory() as u64,
        })
    }
}

impl Connection {
    /// `None` for one that is dead.
    pub(crate) const fn state(&self) -> Option<ConnectionState> {
        match self.phase {
            Phase::Dead => None,
            _ if self.refused => Some(ConnectionState::Refused),
            Phase::Connecting => Some(ConnectionState::Connecting),
            Phase::Open => Some(ConnectionState::Open),
            Phase::Flushing => Some(ConnectionState::Flushing),
            Phase::Lingering => Some(ConnectionState::Lingering),
        }
    }
}
