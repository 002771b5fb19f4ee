//! What a callback may ask for. Nothing here makes a system call or calls the handler: it records, and the
//! loop acts when the callback has returned.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use epoll_sys::{Address, Timestamp};

use crate::buffer::{OutputQueue, QueuePool};
use crate::connection::{Connection, Phase};
use crate::handler::CloseReason;
use crate::limits::Limits;
use crate::slab::Slab;
use crate::stats::Counters;
use crate::timers::Timers;
use crate::token::{ConnId, ListenerId, SourceId, Token};

/// The loop as a callback sees it: every connection's output, timers and end, and the time.
///
/// An id whose connection is closing or gone is never an error here: sends answer
/// [`Gone`](SendOutcome::Gone), the rest does nothing.
#[derive(Debug)]
pub struct Ctx {
    pub(crate) limits: Limits,
    pub(crate) connections: Slab<Connection>,
    pub(crate) timers: Timers,
    pub(crate) counters: Counters,
    /// The connection whose callback is running: its output goes to `direct` where it can.
    pub(crate) current: Option<ConnId>,
    /// Output of `current`, to be sent as one when its callback returns. Empty between callbacks.
    pub(crate) direct: Vec<u8>,
    pub(crate) pool: QueuePool,
    /// Bytes in all output queues and input tails. Invariant: the sum over the connections.
    pub(crate) buffered: usize,
    /// Connections and registrations to be served in the next turn without an event from the kernel.
    pub(crate) ready: VecDeque<Token>,
    /// Connections with output to flush, or an end to bring about, at the end of this turn.
    pub(crate) dirty: Vec<ConnId>,
    /// Connections to be taken apart at the end of this turn.
    pub(crate) dead: Vec<ConnId>,
    /// Outbound connections to be started at the end of this turn.
    pub(crate) to_connect: Vec<ConnId>,
    pub(crate) to_unwatch: Vec<SourceId>,
    /// When the drain that was asked for must have ended.
    pub(crate) drain_deadline: Option<Timestamp>,
    pub(crate) clock: Clock,
}

/// What became of a send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[must_use = "OverLimit and Gone mean that nothing was sent"]
pub enum SendOutcome<T> {
    /// It goes out with this turn's output.
    Sent,
    /// It goes out as the peer reads; more than the high water mark is waiting, so send less until
    /// [`on_drain`](crate::Handler::on_drain).
    Queued,
    /// It was refused whole, since [`Limits::output`] or [`Limits::memory`] would be passed: here it is. The
    /// connection is as it was.
    OverLimit(T),
    /// The connection is closing or gone: here it is.
    Gone(T),
}

impl<T> SendOutcome<T> {
    /// Whether it was accepted for sending.
    #[must_use]
    pub const fn is_accepted(&self) -> bool {
        matches!(self, Self::Sent | Self::Queued)
    }
}

impl Ctx {
    pub(crate) fn new(limits: Limits, clock: Clock) -> Self {
        Self {
            limits,
            connections: Slab::new(),
            timers: Timers::default(),
            counters: Counters::default(),
            current: None,
            direct: Vec::new(),
            pool: QueuePool::default(),
            buffered: 0,
            ready: VecDeque::new(),
            dirty: Vec::new(),
            dead: Vec::new(),
            to_connect: Vec::new(),
            to_unwatch: Vec::new(),
            drain_deadline: None,
            clock,
        }
    }

    /// The time at which this turn's events came in: read once a turn.
    #[must_use]
    pub const fn now(&self) -> Timestamp {
        self.clock.now
    }

    /// The wall clock at [`now`](Self::now), for dates. It is read once a second and moved on by the
    /// monotonic clock in between, so a step of the system's clock shows within a second.
    #[must_use]
    pub fn wall_clock(&self) -> SystemTime {
        self.clock.wall()
    }

    /// The bounds in force.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Counts of what the loop has done.
    #[must_use]
    pub const fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Connections that have not been closed, those still connecting or closing among them.
    #[must_use]
    pub const fn connections(&self) -> usize {
        self.connections.len()
    }

    /// Bytes of input and output held for all connections; at most [`Limits::memory`].
    #[must_use]
    pub const fn buffered(&self) -> usize {
        self.buffered
    }

    /// Sends a copy of `data`. Order is kept, whatever kinds of sends are mixed.
    pub fn send<'data>(&mut self, id: ConnId, data: &'data [u8]) -> SendOutcome<&'data [u8]> {
        match self.admit(id, data.len(), false) {
            Ok(admitted) => {
                if admitted.direct {
                    self.direct.extend_from_slice(data);
                } else {
                    self.enqueue(id, data.len(), |queue| queue.push_copy(data));
                }
                admitted.outcome()
            }
            Err(Refused::OverLimit) => SendOutcome::OverLimit(data),
            Err(Refused::Gone) => SendOutcome::Gone(data),
        }
    }

    /// Sends `data` without copying it: the same buffer may wait on any number of connections. Each counts
    /// it in full against its own limit and against [`Limits::memory`].
    pub fn send_shared(&mut self, id: ConnId, data: Bytes) -> SendOutcome<Bytes> {
        let length = data.len();
        match self.admit(id, length, true) {
            Ok(admitted) => {
                self.move_direct_to_queue(id);
                self.enqueue(id, length, |queue| queue.push_shared(data));
                admitted.outcome()
            }
            Err(Refused::OverLimit) => SendOutcome::OverLimit(data),
            Err(Refused::Gone) => SendOutcome::Gone(data),
        }
    }

    /// Bytes sent to `id` that the kernel has not taken yet; 0 if it is gone.
    #[must_use]
    pub fn queued(&self, id: ConnId) -> usize {
        let direct = if self.current == Some(id) { self.direct.len() } else { 0 };
        self.connections.get(id.0).map_or(0, |connection| connection.queued() + direct)
    }

    /// Whether `id` is open: sends are accepted, and it may have more to say.
    #[must_use]
    pub fn is_open(&self, id: ConnId) -> bool {
        self.connections.get(id.0).is_some_and(Connection::accepts_output)
    }

    /// The peer's address, as long as the connection is not gone.
    #[must_use]
    pub fn peer_address(&self, id: ConnId) -> Option<&Address> {
        self.connections.get(id.0).map(|connection| &connection.peer)
    }

    /// The listener that accepted it; `None` for outbound connections.
    #[must_use]
    pub fn listener(&self, id: ConnId) -> Option<ListenerId> {
        self.connections.get(id.0)?.listener
    }

    /// Starts an outbound connection to `address`. [`on_open`](crate::Handler::on_open) tells when it is
    /// made, [`on_close`](crate::Handler::on_close) that it failed. Sends are accepted at once.
    ///
    /// `None` if [`Limits::connections`] are open already, or the loop is draining.
    pub fn connect(&mut self, address: Address) -> Option<ConnId> {
        if self.connections.len() >= self.limits.connections || self.is_draining() {
            return None;
        }
        let connection = Connection::outbound(address, self.now());
        let id = ConnId(self.connections.insert(connection)?);
        self.to_connect.push(id);
        Some(id)
    }

    /// Closes `id` when everything sent to it has been given to the kernel: a FIN, then a wait for the peer's
    /// own, bounded by [`Limits::linger_quiet`] and its neighbours, so that nothing destroys the output on its
    /// way. Input is no longer delivered.
    pub fn close_after_flush(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id.0)
            && connection.accepts_output()
        {
            let reason = if connection.eof { CloseReason::PeerClosed } else { CloseReason::Local };
            if connection.phase == Phase::Connecting {
                // What was sent goes out once it is connected.
                connection.reason = Some(reason);
            } else {
                connection.begin_close(reason);
                self.mark_dirty(id);
            }
        }
    }

    /// Closes `id` at the end of this turn and drops the output that the kernel has not taken.
    pub fn close_now(&mut self, id: ConnId) {
        self.kill(id, CloseReason::Local);
    }

    /// Closes `id` at the end of this turn with an RST, dropping all output, the kernel's too: for a peer
    /// that misbehaves.
    pub fn abort(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id.0) {
            connection.reset_on_close = true;
        }
        self.kill(id, CloseReason::Local);
    }

    /// Stops reading from `id`: what arrives stays in the kernel, which soon stops the peer.
    pub fn pause_reading(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id.0) {
            connection.paused = true;
        }
    }

    /// Goes on reading from `id`, from the next turn; first come the bytes that were left unconsumed.
    pub fn resume_reading(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id.0)
            && connection.paused
        {
            connection.paused = false;
            self.read_again(id);
        }
    }

    /// Has [`on_data`](crate::Handler::on_data) called in the next turn with what this callback leaves
    /// unconsumed, even if nothing more arrives: for a handler that stops before its input is used up, to let
    /// others have their turn.
    pub fn read_again(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id.0) {
            connection.again = true;
            self.make_ready(id);
        }
    }

    /// Has [`on_timer`](crate::Handler::on_timer) called for `id` after `delay`, instead of at the time set
    /// before. It may be late by a turn and by the millisecond that epoll_wait(2) rounds to, never early.
    pub fn set_timer(&mut self, id: ConnId, delay: Duration) {
        let at = self.now() + delay;
        if let Some(connection) = self.connections.get_mut(id.0) {
            connection.timer = Some(at);
            self.arm(id);
        }
    }

    /// Takes back what [`set_timer`](Self::set_timer) asked for.
    pub fn cancel_timer(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id.0) {
            connection.timer = None;
        }
    }

    /// Closes `id` with [`ReadTimeout`](CloseReason::ReadTimeout) after `delay`, unless it is set again or
    /// cleared before: for a message that must be whole by then, however steadily it trickles in.
    pub fn set_read_deadline(&mut self, id: ConnId, delay: Duration) {
        let at = self.now() + delay;
        if let Some(connection) = self.connections.get_mut(id.0) {
            connection.read_deadline = Some(at);
            self.arm(id);
        }
    }

    /// Takes back what [`set_read_deadline`](Self::set_read_deadline) asked for.
    pub fn clear_read_deadline(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id.0) {
            connection.read_deadline = None;
        }
    }

    /// Stops watching a descriptor, and closes it, at the end of this turn.
    pub fn unwatch(&mut self, id: SourceId) {
        self.to_unwatch.push(id);
    }

    /// Drains the loop: listeners close, each connection is told by
    /// [`on_shutdown`](crate::Handler::on_shutdown), and `run` returns when all have ended or `grace` has
    /// passed. Asking again can only bring the deadline nearer.
    pub fn drain(&mut self, grace: Duration) {
        let deadline = self.now() + grace;
        self.drain_deadline = Some(self.drain_deadline.map_or(deadline, |earlier| earlier.min(deadline)));
    }

    /// Whether a drain has been asked for.
    #[must_use]
    pub const fn is_draining(&self) -> bool {
        self.drain_deadline.is_some()
    }

    /// Decides whether `length` bytes may be sent to `id`, and notes what follows from it.
    fn admit(&mut self, id: ConnId, length: usize, shared: bool) -> Result<Admitted, Refused> {
        let Some(connection) = self.connections.get_mut(id.0).filter(|it| it.accepts_output()) else {
            return Err(Refused::Gone);
        };
        if length == 0 {
            return Ok(Admitted { direct: true, above_high_water: connection.above_high_water });
        }
        let is_current = self.current == Some(id);
        let direct = is_current && !shared && connection.output.is_none() && connection.writable;
        let pending = if is_current { self.direct.len() } else { 0 };
        let queued = connection.queued().saturating_add(pending).saturating_add(length);
        let buffered = self.buffered.saturating_add(pending).saturating_add(length);
        let pieces = connection.output.as_ref().map_or(0, |queue| queue.pieces());
        if queued > self.limits.output
            || buffered > self.limits.memory
            || pieces > self.limits.output / 64 + 64
        {
            self.counters.sends_refused += 1;
            return Err(Refused::OverLimit);
        }
        connection.above_high_water |= queued > self.limits.output_high_water;
        Ok(Admitted { direct, above_high_water: connection.above_high_water })
    }

    /// Adds to the queue of `id` and sees to it that the queue is flushed this turn.
    fn enqueue(&mut self, id: ConnId, length: usize, push: impl FnOnce(&mut OutputQueue)) {
        if let Some(connection) = self.connections.get_mut(id.0)
            && length > 0
        {
            push(connection.output.get_or_insert_with(|| self.pool.take()));
            self.buffered += length;
            self.mark_dirty(id);
        }
    }

    /// Keeps the order of output when `id` has some in `direct` and more goes to its queue.
    pub(crate) fn move_direct_to_queue(&mut self, id: ConnId) {
        if self.current == Some(id) && !self.direct.is_empty() {
            let direct = std::mem::take(&mut self.direct);
            self.enqueue(id, direct.len(), |queue| queue.push_copy(&direct));
            self.direct = direct;
            self.direct.clear();
        }
    }

    pub(crate) fn mark_dirty(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id.0)
            && !connection.in_dirty
        {
            connection.in_dirty = true;
            self.dirty.push(id);
        }
    }

    pub(crate) fn make_ready(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id.0)
            && !connection.in_ready
        {
            connection.in_ready = true;
            self.ready.push_back(id.0);
        }
    }

    /// Ends `id`: at the end of the turn it is taken apart.
    pub(crate) fn kill(&mut self, id: ConnId, reason: CloseReason) {
        if let Some(connection) = self.connections.get_mut(id.0)
            && connection.phase != Phase::Dead
        {
            connection.begin_close(reason);
            connection.phase = Phase::Dead;
            self.dead.push(id);
        }
    }

    /// Sees to it that the loop looks at `id` no later than its nearest deadline.
    pub(crate) fn arm(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id.0)
            && let Some(deadline) = connection.next_deadline(&self.limits)
            && connection.armed.is_none_or(|armed| deadline < armed)
        {
            connection.armed = Some(deadline);
            self.timers.push(deadline, id);
            let connections = &self.connections;
            self.timers.compact(connections.len(), |at, id| {
                connections.get(id.0).is_some_and(|connection| connection.armed == Some(at))
            });
        }
    }
}

/// A send that is accepted: into the turn's own buffer or the connection's queue.
struct Admitted {
    direct: bool,
    above_high_water: bool,
}

impl Admitted {
    const fn outcome<T>(self) -> SendOutcome<T> {
        if self.above_high_water { SendOutcome::Queued } else { SendOutcome::Sent }
    }
}

enum Refused {
    OverLimit,
    Gone,
}

/// The two clocks, as of the last reading.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    pub(crate) now: Timestamp,
    wall: SystemTime,
    wall_read: Timestamp,
}

impl Clock {
    pub(crate) const fn new(now: Timestamp, wall: SystemTime) -> Self {
        Self { now, wall, wall_read: now }
    }

    /// Moves on to `now`; reads the wall clock through `read_wall` only once a second.
    pub(crate) fn advance(&mut self, now: Timestamp, read_wall: impl FnOnce() -> SystemTime) {
        self.now = self.now.max(now);
        if self.now - self.wall_read >= Duration::from_secs(1) {
            self.wall = read_wall();
            self.wall_read = self.now;
        }
    }

    fn wall(&self) -> SystemTime {
        self.wall + (self.now - self.wall_read)
    }
}
