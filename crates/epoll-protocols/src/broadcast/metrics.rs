//! What a broadcast server counts, for any thread to read while it serves.

use epoll_reactor::Tally;

/// Counts of one [`Broadcast`](super::Broadcast), whose thread alone writes them. As
/// [`LoopMetrics`](epoll_reactor::LoopMetrics) they are never old; a line to a thousand receivers costs two additions.
#[derive(Debug, Default)]
pub struct BroadcastMetrics {
    pub(super) lines: Tally,
    pub(super) deliveries: Tally,
    pub(super) skipped: Tally,
    pub(super) lagging: Tally,
    pub(super) disconnected: Tally,
    pub(super) too_long: Tally,
}

/// What [`BroadcastMetrics::read`] found.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct BroadcastSnapshot {
    /// Lines sent to all others of their sender.
    pub lines: u64,
    /// Lines given to the loop for a receiver, each receiver counted: what a line fans out to.
    pub deliveries: u64,
    /// Lines that a receiver missed because it read too slowly, each receiver counted.
    pub skipped: u64,
    /// Receivers that have missed lines and not been told of it yet: now.
    pub lagging: u64,
    /// Receivers disconnected because they read too slowly.
    pub disconnected: u64,
    /// Clients disconnected because a line of theirs was longer than the limit.
    pub too_long: u64,
}

impl BroadcastMetrics {
    /// Reads it, from any thread.
    #[must_use]
    pub fn read(&self) -> BroadcastSnapshot {
        BroadcastSnapshot {
            lines: self.lines.get(),
            deliveries: self.deliveries.get(),
            skipped: self.skipped.get(),
            lagging: self.lagging.get(),
            disconnected: self.disconnected.get(),
            too_long: self.too_long.get(),
        }
    }
}
