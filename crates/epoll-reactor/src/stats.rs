//! Counts of what the loop did, and what a connection had done. Where they are kept is `metrics.rs`.

use std::time::Duration;

/// Counts since the reactor was made; each only grows.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Counters {
    /// Turns of the loop.
    pub turns: u64,
    /// Events the kernel delivered.
    pub events: u64,
    /// Events for something that was closed before they were looked at.
    pub stale_events: u64,
    /// Connections accepted and opened.
    pub accepted: u64,
    /// Outbound connections made.
    pub connected: u64,
    /// Clients accepted only to be closed: over the limit of connections, overloaded, or out of descriptors.
    pub shed: u64,
    /// Those of them whose address had as many connections as it may have.
    pub shed_by_address: u64,
    /// Those of them that were turned away since the loop was overloaded: [`Limits::lag_target`](crate::Limits::lag_target).
    pub shed_by_overload: u64,
    /// How often [`Ctx::should_shed`](crate::Ctx::should_shed) has said so: work of connections that are open.
    pub shed_work: u64,
    /// How often the loop was found to be overloaded, the present time among them.
    pub overloads: u64,
    /// Times a listener paused for want of descriptors or kernel memory.
    pub accept_pauses: u64,
    /// Clients accepted here and handed to another loop, [for balance](crate::Workers::balance), where they are opened.
    pub handed_over: u64,
    /// Clients that other loops have handed over or moved here. They are among `accepted` if there was room for them.
    pub taken_over: u64,
    /// Connections that were open here and were [moved](crate::Ctx::hand_over) to another loop; and those that came from one and
    /// were sent back there, as there was no room for them.
    pub moved: u64,
    /// Connections closed.
    pub closed: u64,
    /// Connections that the end of a drain closed before they had ended by themselves: its grace had passed, or a second
    /// signal came.
    pub cut_off: u64,
    /// Bytes read from all connections.
    pub bytes_received: u64,
    /// Bytes the kernel took from all connections.
    pub bytes_sent: u64,
    /// Sends refused because a connection, or all of them, held too much.
    pub sends_refused: u64,
    /// Messages from other threads handed over.
    pub messages: u64,
    /// Deadlines that had come when they were looked at.
    pub timers_fired: u64,
    /// Callbacks that panicked.
    pub panics: u64,
    /// Time spent in turns but for their wait, by the monotonic clock: from the end of the wait to the end of the turn,
    /// callbacks and the kernel's calls among it. It costs a second reading of the clock in a turn, and is not taken in
    /// one that found nothing to do: no event, no deadline, nothing left over. It is not CPU time: a process that the
    /// system has stopped meanwhile counts as busy. Divided by the time between two readings it says how much of one
    /// core is in use; near 1, more clients will only wait longer.
    pub busy: Duration,
    /// The longest of these times: how long one turn, a slow callback as a rule, has kept everybody else waiting.
    pub longest_turn: Duration,
}

/// What a connection had done by the time it was closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CloseStats {
    /// Bytes read from it.
    pub bytes_received: u64,
    /// Bytes the kernel took. That they arrived, only the peer can tell.
    pub bytes_sent: u64,
    /// Bytes that were accepted for sending and never given to the kernel.
    pub bytes_unsent: u64,
    /// How long it was open.
    pub open_for: Duration,
}
