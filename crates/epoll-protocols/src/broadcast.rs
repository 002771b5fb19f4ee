//! Broadcast: every line to all other clients. Not a chat: no names, no rooms, no history.
//!
//! A line is whatever ends in a newline, up to a limit; its bytes are passed on as they came, behind
//! `[Client_<n>] `, where n counts the connections from 1. All receivers share one buffer. A line reaches a
//! receiver whole or not at all, and the lines of one sender in their order.
//!
//! With several loops ([`Broadcast::for_worker`]) it is one server all the same; see `broadcast/loops.rs` for what goes
//! between them.

use std::io;
use std::sync::Arc;

use epoll_reactor::{
    CloseReason, CloseStats, ConnId, ConnMap, Ctx, Handler, Kernel, Limits, SendOutcome, Shared, Timestamp,
    Worker,
};

use crate::lines::LineSplitter;
use delivery::{deliver, tell_skipped};
pub use loops::{BroadcastLoops, BroadcastMessage};
use loops::{Peers, Word};

pub use metrics::{BroadcastMetrics, BroadcastSnapshot};

mod delivery;
mod loops;
mod metrics;

/// How a broadcast server treats its clients.
#[derive(Clone, Debug)]
pub struct BroadcastConfig {
    /// The longest line, in bytes without its newline; a client that sends a longer one is told so,
    /// `[Server] disconnected: line longer than N bytes`, and closed.
    pub line_limit: usize,
    /// How many bytes may wait for a client that reads slowly, at least four lines of the longest; the kernel holds some megabytes more, unless
    /// [`ListenOptions::not_sent_low_water`](epoll_reactor::ListenOptions::not_sent_low_water) says otherwise.
    pub receiver_limit: usize,
    /// What happens to one that is at that limit.
    pub slow_receivers: SlowReceivers,
}

/// What happens to a client that has [`receiver_limit`](BroadcastConfig::receiver_limit) bytes waiting when
/// the next line comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SlowReceivers {
    /// It is disconnected, with what was waiting; it can come back and knows that it missed something.
    Disconnect,
    /// It misses whole lines until half of what is waiting has been read, and is then told how many:
    /// `[Server] N lines skipped`.
    Drop,
}

impl Default for BroadcastConfig {
    fn default() -> Self {
        Self { line_limit: 64 * 1024, receiver_limit: 1024 * 1024, slow_receivers: SlowReceivers::Disconnect }
    }
}

impl BroadcastConfig {
    /// `limits` with those that follow from this configuration: room for a line to come in, and for a slow
    /// receiver's bytes and notices to wait; and marks low enough for the receiver to be told what it missed
    /// as soon as it has read half.
    #[must_use]
    pub fn limits(&self, limits: Limits) -> Limits {
        let output_high_water = limits.output_high_water.min(self.receiver_limit / 2).max(1);
        Limits {
            // A longer line is found out one byte past its limit.
            input: self.line_limit.saturating_add(2),
            output: self.receiver_limit.saturating_add(NOTICE_ROOM),
            output_high_water,
            output_low_water: limits.output_low_water.min(output_high_water / 2),
            ..limits
        }
    }
}

/// Enough for `[Server] 18446744073709551615 lines skipped` and, behind it,
/// `[Server] disconnected: line longer than 18446744073709551615 bytes`.
const NOTICE_ROOM: usize = 128;

/// The broadcast server.
#[derive(Debug)]
pub struct Broadcast {
    config: BroadcastConfig,
    clients: ConnMap<Client>,
    /// How many clients there have been.
    counted: u64,
    /// Where a line is put together; of no meaning between two.
    scratch: Vec<u8>,
    /// Clients that may say more.
    speakers: usize,
    /// The loop drains, and its clients are still to hear what others have said.
    stopping: bool,
    /// The other loops, if there are any.
    peers: Option<Peers>,
    metrics: Arc<BroadcastMetrics>,
}

/// What the others must know of a client.
#[derive(Debug)]
struct Client {
    number: u64,
    /// Lines it has missed since it was last told.
    skipped: u64,
    /// It will say no more: its input has ended, or the loop drains.
    silent: bool,
    /// It is not read, since there is no room on the way to other loops.
    held_up: bool,
}

impl Broadcast {
    /// A server without clients.
    #[must_use]
    pub fn new(config: BroadcastConfig) -> Self {
        Self {
            config,
            clients: ConnMap::new(),
            counted: 0,
            scratch: Vec::new(),
            speakers: 0,
            stopping: false,
            peers: None,
            metrics: Arc::default(),
        }
    }

    /// What it counts, for any thread to read while it serves, and afterwards. Of several loops each counts the lines of
    /// its own clients, and what reaches or misses them.
    #[must_use]
    pub fn metrics(&self) -> Arc<BroadcastMetrics> {
        Arc::clone(&self.metrics)
    }

    /// The part of a server that runs in one of several loops, each with its own clients: a line reaches those of all
    /// loops. `loops` is one for all of them, made for as many as there are.
    ///
    /// To each loop so much may be on its way as may wait for one client ([`BroadcastConfig::receiver_limit`]), and one
    /// message more from each loop. What a client says in one callback is one message, of a sixteenth of that limit or
    /// a line. Beyond it the senders of the other loops are read no more, and their bytes stay in the kernel, until there
    /// is room. How slow a receiver may be is decided in its own loop, and there the lines of a message are one: it
    /// gets all of them or misses all.
    ///
    /// A loop that drains waits for what the others have sent before, and then closes its clients. One that has ended is
    /// passed over.
    ///
    /// # Errors
    /// `InvalidInput`: `loops` is for more or fewer, or [`Limits::message_queue`] is below four messages for each other
    /// loop and one more.
    pub fn for_worker<K: Kernel + 'static>(
        config: BroadcastConfig,
        loops: &BroadcastLoops,
        worker: &Worker<BroadcastMessage, K>,
    ) -> io::Result<Self> {
        let peers = Peers::new(loops, worker, config.receiver_limit)?;
        let mut broadcast = Self::new(config);
        broadcast.peers = (worker.count() > 1).then_some(peers);
        Ok(broadcast)
    }

    fn number(&self, id: ConnId) -> u64 {
        self.clients.get(id).map_or(0, |client| client.number)
    }

    /// There may be room to tell `id` what it has missed.
    fn catch_up(&mut self, ctx: &mut Ctx, id: ConnId) {
        if let Some(client) = self.clients.get_mut(id)
            && client.skipped > 0
        {
            tell_skipped(ctx, id, client, &self.config, &self.metrics);
        }
    }

    /// Sends `line` of client `from` to all others; returns how many bytes each gets.
    fn publish(&mut self, ctx: &mut Ctx, from: ConnId, line: &[u8]) -> usize {
        let number = self.number(from);
        compose(&mut self.scratch, number, line);
        // Copied, to a buffer of its exact size: one that waits for a slow receiver must not hold more memory than it is
        // counted for.
        let message = ctx.share(self.scratch.as_slice());
        if let Some(peers) = &mut self.peers {
            peers.add(&self.scratch);
        }
        self.scratch.shrink_to(SCRATCH_KEPT);
        self.deliver_to_all(ctx, Some(from), &message, 1);
        self.metrics.lines.add(1);
        message.len()
    }

    fn deliver_to_all(&mut self, ctx: &mut Ctx, but: Option<ConnId>, message: &Shared, lines: u64) {
        let mut delivered = 0;
        for (id, client) in self.clients.iter_mut() {
            if Some(id) != but
                && deliver(ctx, id, client, &self.config, &self.metrics, (message.clone(), lines))
            {
                delivered += lines;
            }
        }
        self.metrics.deliveries.add(delivered);
    }

    /// Takes the lines off the front of `input` and publishes them; returns how many bytes those were.
    fn publish_all(&mut self, ctx: &mut Ctx, id: ConnId, lines: &mut LineSplitter, input: &[u8]) -> usize {
        let mut rest = input;
        let mut budget =
            Budget::new(&self.config, ctx.limits().memory, self.clients.len(), self.peers.is_some());
        loop {
            if budget.is_spent() && !rest.is_empty() {
                ctx.read_again(id);
                return input.len() - rest.len();
            }
            match lines.split(rest, self.config.line_limit) {
                Ok(Some(line)) => {
                    let length = self.publish(ctx, id, line.content);
                    budget.spend(length, self.clients.len());
                    rest = line.rest;
                }
                Ok(None) => return input.len() - rest.len(),
                Err(error) => {
                    log::warn!("Client_{} disconnected: {error}", self.number(id));
                    self.metrics.too_long.add(1);
                    // Where there is no memory to tell it with, the log knows.
                    let _: SendOutcome<_> =
                        ctx.send(id, format!("[Server] disconnected: {error}\n").as_bytes());
                    ctx.close_after_flush(id);
                    self.silence(id);
                    return input.len();
                }
            }
        }
    }

    /// `id` is read no more.
    fn silence(&mut self, id: ConnId) {
        if let Some(client) = self.clients.get_mut(id) {
            client.held_up = false;
            if !std::mem::replace(&mut client.silent, true) {
                self.speakers -= 1;
            }
        }
    }

    /// Reads those again that had to wait for other loops, unless there is still one to wait for.
    fn go_on(&mut self, ctx: &mut Ctx) {
        if self.peers.as_ref().is_some_and(Peers::are_waited_for) {
            return;
        }
        for (id, client) in self.clients.iter_mut() {
            if std::mem::take(&mut client.held_up) {
                ctx.resume_reading(id);
            }
        }
    }

    /// In a drain: tells the other loops when nobody here will say more, and lets the clients go when nobody there will.
    fn take_leave(&mut self, ctx: &mut Ctx) {
        let Some(peers) = self.peers.as_mut().filter(|_| self.stopping && self.speakers == 0) else { return };
        peers.say_last();
        if peers.have_said_last() {
            self.stopping = false;
            self.clients.iter_mut().for_each(|(id, _)| ctx.close_after_flush(id));
        }
    }
}

/// What one callback may still send. The loop writes only between callbacks: more bytes could fill the limit of a
/// receiver that reads all it is sent, and more deliveries would hold up everybody else.
struct Budget {
    /// To each receiver.
    bytes: usize,
    /// To all of them.
    deliveries: usize,
}

impl Budget {
    /// Enough for a millisecond or so.
    const DELIVERIES: usize = 16 * 1024;

    fn new(config: &BroadcastConfig, memory: usize, receivers: usize, to_other_loops: bool) -> Self {
        // Small lines are copied for each receiver, so all of them together need room too.
        let share_of_memory = memory / 4 / receivers.max(1);
        // A message to another loop is one piece there: its receivers get all of it or nothing.
        let of_limit = if to_other_loops { 16 } else { 4 };
        let bytes = (config.receiver_limit / of_limit).min(share_of_memory).max(1);
        Self { bytes, deliveries: Self::DELIVERIES }
    }

    const fn is_spent(&self) -> bool {
        self.bytes == 0 || self.deliveries == 0
    }

    const fn spend(&mut self, bytes: usize, deliveries: usize) {
        self.bytes = self.bytes.saturating_sub(bytes);
        self.deliveries = self.deliveries.saturating_sub(deliveries);
    }
}

/// What the buffer for putting lines together may keep: any line of the usual limit, which is not to be paid for each
/// time; one that is longer, not for ever after.
const SCRATCH_KEPT: usize = 64 * 1024 + 64;

/// The line as receivers get it.
fn compose(message: &mut Vec<u8>, number: u64, line: &[u8]) {
    message.clear();
    for part in [b"[Client_", itoa::Buffer::new().format(number).as_bytes(), b"] ", line, b"\n"] {
        message.extend_from_slice(part);
    }
}

/// Its metrics stay where they can be read, and clients of a loop that has died lag no more.
impl Drop for Broadcast {
    fn drop(&mut self) {
        self.metrics.lagging.set(0);
    }
}

impl Handler for Broadcast {
    type Conn = LineSplitter;
    type Message = BroadcastMessage;

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, _: &mut LineSplitter) {
        self.counted = self.peers.as_ref().map_or(self.counted + 1, Peers::count_client);
        self.speakers += 1;
        let number = self.counted;
        self.clients.insert(id, Client { number, skipped: 0, silent: false, held_up: false });
        if let Some(peer) = ctx.peer_address(id) {
            log::info!("Client_{number} connected from {peer}");
        }
    }

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, lines: &mut LineSplitter, input: &[u8]) -> usize {
        let has_room = self.peers.as_mut().is_none_or(Peers::have_room);
        if !has_room {
            ctx.pause_reading(id);
            if let Some(client) = self.clients.get_mut(id) {
                client.held_up = true;
            }
            return 0;
        }
        let consumed = self.publish_all(ctx, id, lines, input);
        if let Some(peers) = &mut self.peers {
            peers.send();
        }
        consumed
    }

    fn on_message(&mut self, ctx: &mut Ctx, message: BroadcastMessage) {
        let Some(peers) = &mut self.peers else { return };
        match message.word() {
            Word::Lines { from, lines, data } => {
                // First, so that it is done whatever becomes of the rest.
                peers.taken(from, data.len());
                let message = ctx.share_arc(data);
                self.deliver_to_all(ctx, None, &message, lines);
            }
            Word::Room { from } => {
                peers.room(from);
                self.go_on(ctx);
            }
            Word::Last { from } => {
                peers.last(from);
                self.take_leave(ctx);
            }
            Word::Ended { from } => {
                peers.ended(from);
                self.go_on(ctx);
                self.take_leave(ctx);
            }
            Word::Answer => {
                peers.answer(ctx.is_draining());
                self.go_on(ctx);
            }
        }
    }

    fn on_eof(&mut self, ctx: &mut Ctx, id: ConnId, _: &mut LineSplitter, _: &[u8]) {
        self.silence(id);
        ctx.close_after_flush(id);
        self.take_leave(ctx);
    }

    fn on_stopping(&mut self, ctx: &mut Ctx, _: Timestamp) {
        self.stopping = true;
        self.take_leave(ctx);
    }

    fn on_shutdown(&mut self, ctx: &mut Ctx, id: ConnId, _: &mut LineSplitter, _: Timestamp) {
        self.silence(id);
        if self.peers.is_none() {
            ctx.close_after_flush(id);
        } else {
            // It is still to get what other loops have sent.
            ctx.pause_reading(id);
            self.take_leave(ctx);
        }
    }

    fn on_drain(&mut self, ctx: &mut Ctx, id: ConnId, _: &mut LineSplitter) {
        self.catch_up(ctx, id);
    }

    fn on_timer(&mut self, ctx: &mut Ctx, id: ConnId, _: &mut LineSplitter) {
        self.catch_up(ctx, id);
    }

    fn on_close(
        &mut self,
        ctx: &mut Ctx,
        id: ConnId,
        _: LineSplitter,
        reason: CloseReason,
        stats: &CloseStats,
    ) {
        self.silence(id);
        if let Some(client) = self.clients.remove(id) {
            if client.skipped > 0 {
                self.metrics.lagging.subtract(1);
            }
            log::info!(
                "Client_{} left: {reason}; {} bytes in, {} out, {} not delivered",
                client.number,
                stats.bytes_received,
                stats.bytes_sent,
                stats.bytes_unsent
            );
        }
        self.take_leave(ctx);
    }
}
