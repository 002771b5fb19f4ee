//! What a callback may ask for. Nothing here makes a system call or calls the handler: it records, and the
//! loop acts when the callback has returned.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use epoll_sys::{Address, Timestamp};

use crate::admission::Admission;
use crate::batch::Batch;
use crate::buffer::QueuePool;
use crate::clock::Clock;
use crate::connection::{Connection, Fin, Phase};
use crate::handler::CloseReason;
use crate::limits::Limits;
use crate::metrics::LoopMetrics;
use crate::moving::Mover;
use crate::overload::Overload;
use crate::peer::Peer;
use crate::recorder::Recorder;
use crate::shared::SharedMemory;
use crate::slab::Slab;
use crate::stats::Counters;
use crate::timers::Timers;
use crate::token::{ConnId, ListenerId, SourceId, Token};

/// What one connection may account for, so that the sum over all of them fits a number.
const MOST_ACCOUNTED: u32 = u32::MAX;

/// The loop as a callback sees it: every connection's output, timers and end, and the time.
///
/// An id whose connection is closing or gone is never an error here: sends answer
/// [`Gone`](crate::SendOutcome::Gone), the rest does nothing.
#[derive(Debug)]
pub struct Ctx {
    pub(crate) limits: Limits,
    pub(crate) connections: Slab<Connection>,
    pub(crate) timers: Timers,
    pub(crate) metrics: Arc<LoopMetrics>,
    /// The connection whose callback is running: its output goes to `direct` where it can.
    pub(crate) current: Option<ConnId>,
    /// Output of `current`, to be sent as one when its callback returns. Empty between callbacks.
    pub(crate) direct: Vec<u8>,
    /// Output of the callbacks before it. Empty but for the dispatch of events.
    pub(crate) batch: Batch,
    /// There are others ready: output goes to the batch.
    pub(crate) batching: bool,
    pub(crate) pool: QueuePool,
    pub(crate) admission: Admission,
    /// Bytes in all output queues and input tails, and those that handlers have accounted for. Invariant: the
    /// sum over the connections.
    pub(crate) buffered: usize,
    /// What is counted once for all queues that hold it.
    pub(crate) shared: SharedMemory,
    /// A send was refused for want of memory, or a handler holds too much: the largest holders are to go.
    pub(crate) short_of_memory: bool,
    /// Connections and registrations to be served in the next turn without an event from the kernel.
    pub(crate) ready: VecDeque<Token>,
    /// Connections with output to flush, or an end to bring about, at the end of this turn or, where they are many, of
    /// one of the next: see `flush_dirty`.
    pub(crate) dirty: VecDeque<ConnId>,
    /// Connections whose queue has passed the high water mark though the kernel may take it: they are flushed
    /// when the callback returns, not at the end of the turn. Otherwise what many say to one in one turn
    /// would count against it before it could have read a byte.
    pub(crate) overdue: Vec<ConnId>,
    /// Who it is that `on_close` is being called for, as its connection is gone already.
    pub(crate) parting: Option<(ConnId, Peer)>,
    /// Connections to be taken apart at the end of this turn.
    pub(crate) dead: Vec<ConnId>,
    /// Outbound connections to be started at the end of this turn.
    pub(crate) to_connect: Vec<ConnId>,
    pub(crate) to_unwatch: Vec<SourceId>,
    /// When the drain that was asked for must have ended.
    pub(crate) drain_deadline: Option<Timestamp>,
    pub(crate) clock: Clock,
    pub(crate) recorder: Recorder,
    pub(crate) overload: Option<Box<Overload>>,
    /// None: no connection is moved to another loop.
    pub(crate) mover: Option<Box<Mover>>,
}

impl Ctx {
    pub(crate) fn new(limits: Limits, clock: Clock, metrics: Arc<LoopMetrics>) -> Self {
        Self {
            overload: Overload::new(&limits, clock.now).map(Box::new),
            recorder: Recorder::new(limits.recorder, limits.capture, clock.now),
            limits,
            connections: Slab::new(),
            timers: Timers::default(),
            metrics,
            current: None,
            direct: Vec::new(),
            batch: Batch::default(),
            batching: false,
            pool: QueuePool::default(),
            admission: Admission::default(),
            buffered: 0,
            shared: SharedMemory::default(),
            short_of_memory: false,
            ready: VecDeque::new(),
            dirty: VecDeque::new(),
            overdue: Vec::new(),
            parting: None,
            dead: Vec::new(),
            to_connect: Vec::new(),
            to_unwatch: Vec::new(),
            drain_deadline: None,
            clock,
            mover: None,
        }
    }

    /// The time at which this turn's events came in: read once a turn.
    #[must_use]
    pub const fn now(&self) -> Timestamp {
        self.clock.now
    }

    /// The wall clock at [`now`](Self::now), for dates. It is read at each of its seconds and moved on by the
    /// monotonic clock in between, so a step of the system's clock shows within a second, also in dates that say no more.
    #[must_use]
    pub fn wall_clock(&self) -> SystemTime {
        self.clock.wall()
    }

    /// The bounds in force.
    #[must_use]
    pub const fn limits(&self) -> &Limits {
        &self.limits
    }

    /// Counts of what the loop has done. They are put together for this call; [`metrics`](Self::metrics) has them one
    /// by one, and more.
    #[must_use]
    pub fn counters(&self) -> Counters {
        self.metrics.counters()
    }

    /// What the loop counts and measures, for any thread to keep and to read while it runs, and afterwards.
    #[must_use]
    pub const fn metrics(&self) -> &Arc<LoopMetrics> {
        &self.metrics
    }

    /// Connections that have not been closed, those still connecting or closing among them.
    #[must_use]
    pub const fn connections(&self) -> usize {
        // Whoever is turned away has a slot meanwhile, and is no connection of the handler's.
        self.connections.len().saturating_sub(self.admission.refused)
    }

    /// Bytes of input and output held for all connections, those [accounted for](Self::account) among them; at
    /// most [`Limits::memory`].
    #[must_use]
    pub fn buffered(&self) -> usize {
        self.buffered.saturating_add(self.shared.in_use())
    }

    /// Whether `id` is open, or on its way to be: nobody has closed it.
    #[must_use]
    pub fn is_open(&self, id: ConnId) -> bool {
        self.connections.get(id.0).is_some_and(Connection::is_live)
    }

    /// The peer's address, as long as the connection is not gone, and for the length of its
    /// [`on_close`](crate::Handler::on_close).
    #[must_use]
    #[inline]
    pub fn peer_address(&self, id: ConnId) -> Option<Address> {
        match self.connections.get(id.0) {
            Some(connection) => Some(connection.peer.address()),
            None => self.parting_address(id),
        }
    }

    #[cold]
    fn parting_address(&self, id: ConnId) -> Option<Address> {
        self.parting.as_ref().filter(|(gone, _)| *gone == id).map(|(_, peer)| peer.address())
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
        if self.connections() >= self.limits.connections || self.is_draining() {
            return None;
        }
        let connection = Connection::outbound(address, self.now());
        let state = connection.state();
        let id = ConnId(self.connections.insert(connection)?);
        self.metrics.note_state(None, state);
        self.to_connect.push(id);
        Some(id)
    }

    /// Closes `id` when everything sent to it has been given to the kernel: a FIN, then a wait for the peer's
    /// own, bounded by [`Limits::linger_quiet`] and its neighbours, so that nothing destroys the output on its
    /// way. Input is no longer delivered.
    pub fn close_after_flush(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id.0)
            && connection.is_live()
        {
            let reason = if connection.eof { CloseReason::PeerClosed } else { CloseReason::Local };
            if connection.phase == Phase::Connecting {
                // What was sent goes out once it is connected.
                connection.reason = Some(reason);
            } else {
                self.begin_close(id, reason);
            }
        }
    }

    /// Ends our side of `id`: a FIN behind everything sent to it. Sends answer `Gone` from now on; input still
    /// comes, until the peer's own end. The other half of a half-close: for a client that has asked its last
    /// question.
    pub fn shut_down_output(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id.0)
            && connection.accepts_output()
        {
            connection.fin = Fin::Due;
            self.mark_dirty(id);
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

    /// Gives the handler no more input of `id` until its output is down to the low water mark, and then first
    /// what was left unconsumed: for a handler that stops because enough answers are waiting.
    pub fn pause_until_drained(&mut self, id: ConnId) {
        if self.queued(id) == 0 {
            self.read_again(id);
        } else if let Some(connection) = self.connections.get_mut(id.0) {
            // Whatever is queued, its next write will look at the low water mark.
            connection.above_high_water = true;
        }
    }

    /// Counts `bytes` that the handler itself holds for `id` against [`Limits::memory`], instead of the number
    /// given before. Beyond it those connections that hold most are closed, with
    /// [`MemoryLimit`](CloseReason::MemoryLimit). One connection counts for less than 4 GiB, whatever it holds.
    pub fn account(&mut self, id: ConnId, bytes: usize) {
        if let Some(connection) = self.connections.get_mut(id.0)
            && connection.held as usize != bytes
        {
            // One byte too much is as good as any number of them, and sums of it stay exact.
            let bytes = bytes.min(self.limits.memory.saturating_add(1));
            let bytes = u32::try_from(bytes).unwrap_or(MOST_ACCOUNTED);
            self.buffered = self.buffered - connection.held as usize + bytes as usize;
            connection.held = bytes;
            self.short_of_memory |= self.buffered() > self.limits.memory;
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
        // Never due in the turn that sets it: one that `on_timer` sets to zero would keep the turn from ending.
        let at = (self.now() + delay).max(self.now() + Duration::from_nanos(1));
        if let Some(connection) = self.connections.get_mut(id.0).filter(|connection| connection.is_live()) {
            connection.timer = Some(at);
            // Moved back, as by each request of a client, it costs no more than this: see `timers.rs`.
            if connection.armed.is_none_or(|armed| at < armed) {
                self.arm(id);
            }
        }
    }

    /// How long it is until the time that [`set_timer`](Self::set_timer) has set; zero if that has passed. `None` if
    /// none is set.
    #[must_use]
    pub fn timer(&self, id: ConnId) -> Option<Duration> {
        Some(self.connections.get(id.0)?.timer? - self.now())
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
        if let Some(connection) = self.connections.get_mut(id.0).filter(|connection| connection.is_live()) {
            connection.read_deadline = Some(at);
            self.arm(id);
        }
    }

    /// Takes back what [`set_read_deadline`](Self::set_read_deadline) asked for.
    pub fn clear_read_deadline(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id.0).filter(|connection| connection.is_live()) {
            connection.read_deadline = None;
        }
    }

    /// Stops watching a descriptor, and closes it, at the end of this turn.
    pub fn unwatch(&mut self, id: SourceId) {
        self.to_unwatch.push(id);
    }

    pub(crate) fn mark_dirty(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id.0)
            && !connection.in_dirty
        {
            connection.in_dirty = true;
            self.dirty.push_back(id);
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

    /// Closes `id` for a `reason` of the loop's, as a handler would: what was sent to it is still delivered.
    pub(crate) fn end(&mut self, id: ConnId, reason: CloseReason) {
        if let Some(connection) = self.connections.get_mut(id.0)
            && connection.is_live()
        {
            self.begin_close(id, reason);
        }
    }

    fn begin_close(&mut self, id: ConnId, reason: CloseReason) {
        if let Some(connection) = self.connections.get_mut(id.0) {
            let before = connection.state();
            connection.begin_close(reason);
            self.metrics.note_state(before, connection.state());
            self.mark_dirty(id);
        }
    }

    /// Frees what a connection that is dead holds, before it is taken apart. What its handler holds for it
    /// follows with `on_close`, in this turn.
    pub(crate) fn release(&mut self, id: ConnId) {
        if let Some(connection) = self.connections.get_mut(id.0) {
            self.buffered -= connection.memory();
            connection.discarded += connection.queued();
            connection.input = None;
            connection.held = 0;
            if let Some(queue) = connection.output.take() {
                self.pool.put(queue);
            }
        }
    }

    /// Ends `id`: at the end of the turn it is taken apart.
    pub(crate) fn kill(&mut self, id: ConnId, reason: CloseReason) {
        if let Some(connection) = self.connections.get_mut(id.0)
            && connection.phase != Phase::Dead
        {
            let before = connection.state();
            let flushing = connection.reason.is_some() && connection.phase <= Phase::Flushing;
            connection.begin_close(reason);
            if flushing && reason != CloseReason::Local {
                // It cuts short the last output of a connection that was closing for another reason.
                connection.reason = Some(reason);
            }
            connection.phase = Phase::Dead;
            self.metrics.note_state(before, None);
            // Of input until now.
            connection.discarded = 0;
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
            self.timers.push(deadline, id.0.index());
            let connections = &self.connections;
            self.timers.compact(connections.len(), |at, index| {
                let connection =
                    connections.token_at(index as usize).and_then(|token| connections.get(token));
                connection.is_some_and(|connection| connection.armed == Some(at))
            });
        }
    }
}
