//! What the random handler has done to each connection, for what may then be expected of it.

use epoll_reactor::{CloseReason, Timestamp};

use super::voice::Ear;

/// What has been done to a connection.
#[derive(Debug, Default)]
pub(crate) struct Book {
    /// Bytes that were accepted for it.
    pub(crate) accepted: u64,
    /// How many more it may be sent.
    pub(crate) budget: usize,
    /// It was sent parts of files.
    pub(crate) files: bool,
    /// One of them a file that is not so long.
    pub(crate) cheated: bool,
    /// Its end has been asked for: after everything sent to it was delivered.
    pub(crate) flushed: bool,
    /// At once.
    pub(crate) cut: bool,
    /// At once and with a reset, before any FIN.
    pub(crate) aborted: bool,
    pub(crate) half_closed: bool,
    pub(crate) panicked: bool,
    pub(crate) paused: bool,
    /// What the handler says it holds for it, and since when.
    pub(crate) accounted: (usize, Option<Timestamp>),
    /// Since when it is being connected.
    pub(crate) connecting: Option<Timestamp>,
    pub(crate) timer: Option<Timestamp>,
    pub(crate) deadline: Option<Timestamp>,
    /// A send has said `Queued`, and no `on_drain` has come since.
    pub(crate) drain_owed: bool,
    /// How many have come.
    pub(crate) drains: u64,
    pub(crate) eof: bool,
    pub(crate) reason: Option<CloseReason>,
}

impl Book {
    /// So many bytes were accepted for it.
    pub(crate) fn note_sent(&mut self, count: usize, queued: bool) {
        self.accepted += count as u64;
        self.budget -= count;
        self.drain_owed |= queued;
    }

    /// What it may expect of the loop.
    pub(crate) fn owed(&self) -> Promised {
        let drain = (self.drain_owed && !self.half_closed).then_some(self.drains);
        self.connecting.map_or(Promised::Open(self.timer, self.deadline, drain), Promised::Connected)
    }

    /// Whether the peer gets everything that was accepted, should it read to a clean end.
    pub(crate) fn ended_well(&self) -> bool {
        matches!(self.reason, Some(CloseReason::Local | CloseReason::PeerClosed))
            && !self.cut
            && !self.panicked
    }
}

/// What a connection may expect of the loop.
pub(crate) enum Promised {
    /// To be open or closed in time, from this time on.
    Connected(Timestamp),
    /// A timer, an end by its deadline, and an `on_drain`, by how many there have been.
    Open(Option<Timestamp>, Option<Timestamp>, Option<u64>),
}

/// What a connection has been sent by its peer.
#[derive(Debug, Default)]
pub(crate) struct Heard {
    pub(crate) ear: Ear,
    /// Bytes of the input that were left the last time.
    pub(crate) kept: usize,
}
