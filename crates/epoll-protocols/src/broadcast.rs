//! Broadcast: every line to all other clients. Not a chat: no names, no rooms, no history.
//!
//! A line is whatever ends in a newline, up to a limit; its bytes are passed on as they came, behind
//! `[Client_<n>] `, where n counts the connections from 1. All receivers share one buffer. A line reaches a
//! receiver whole or not at all, and the lines of one sender in their order.

use std::sync::Arc;
use std::time::Duration;

use epoll_reactor::{CloseReason, CloseStats, ConnId, ConnMap, Ctx, Handler, Limits, SendOutcome, Shared};

pub use metrics::{BroadcastMetrics, BroadcastSnapshot};

use crate::lines::LineSplitter;

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

/// When to try again to tell a client what it has missed, if it is not its own reading that stands in the way.
const RETRY: Duration = Duration::from_millis(100);

/// The broadcast server.
#[derive(Debug)]
pub struct Broadcast {
    config: BroadcastConfig,
    clients: ConnMap<Client>,
    /// How many clients there have been.
    counted: u64,
    /// Where a line is put together; of no meaning between two.
    scratch: Vec<u8>,
    metrics: Arc<BroadcastMetrics>,
}

/// What the others must know of a client.
#[derive(Debug)]
struct Client {
    number: u64,
    /// Lines it has missed since it was last told.
    skipped: u64,
}

impl Broadcast {
    /// A server without clients.
    #[must_use]
    pub fn new(config: BroadcastConfig) -> Self {
        Self { config, clients: ConnMap::new(), counted: 0, scratch: Vec::new(), metrics: Arc::default() }
    }

    /// What it counts, for any thread to read while it serves, and afterwards.
    #[must_use]
    pub fn metrics(&self) -> Arc<BroadcastMetrics> {
        Arc::clone(&self.metrics)
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
        self.scratch.shrink_to(SCRATCH_KEPT);
        let mut delivered = 0;
        for (id, client) in self.clients.iter_mut() {
            if id != from && deliver(ctx, id, client, &self.config, &self.metrics, message.clone()) {
                delivered += 1;
            }
        }
        self.metrics.lines.add(1);
        self.metrics.deliveries.add(delivered);
        message.len()
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

    fn new(config: &BroadcastConfig, memory: usize, receivers: usize) -> Self {
        // Small lines are copied for each receiver, so all of them together need room too.
        let share_of_memory = memory / 4 / receivers.max(1);
        let bytes = (config.receiver_limit / 4).min(share_of_memory).max(1);
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

/// Sends one message to one receiver, under the policy for slow ones; says whether it has.
fn deliver(
    ctx: &mut Ctx,
    id: ConnId,
    client: &mut Client,
    config: &BroadcastConfig,
    metrics: &BroadcastMetrics,
    message: Shared,
) -> bool {
    if client.skipped > 0 && !tell_skipped(ctx, id, client, config, metrics) {
        client.skipped += 1;
        metrics.skipped.add(1);
        return false;
    }
    let over_limit = ctx.queued(id).saturating_add(message.len()) > config.receiver_limit;
    let outcome = if over_limit { SendOutcome::OverLimit(message) } else { ctx.send_shared(id, message) };
    match (outcome, config.slow_receivers) {
        // One that is closing is sent nothing more; `on_close` takes it out.
        (SendOutcome::Gone(_), _) => return false,
        (SendOutcome::Sent | SendOutcome::Queued, _) => return true,
        (SendOutcome::OverLimit(_), SlowReceivers::Drop) => {
            client.skipped += 1;
            metrics.skipped.add(1);
            metrics.lagging.add(1);
            tell_skipped(ctx, id, client, config, metrics);
        }
        // So is one that an earlier line of this turn has disconnected, with all that was waiting for it.
        (SendOutcome::OverLimit(_), SlowReceivers::Disconnect) if !ctx.is_open(id) => return false,
        (SendOutcome::OverLimit(_), SlowReceivers::Disconnect) => {
            log::info!(
                "Client_{} disconnected: it reads too slowly, {} bytes are waiting",
                client.number,
                ctx.queued(id)
            );
            metrics.disconnected.add(1);
            ctx.close_now(id);
        }
    }
    false
}

/// Tells a receiver that has read half of what was waiting how many lines it missed, before it gets the next;
/// says whether it has.
fn tell_skipped(
    ctx: &mut Ctx,
    id: ConnId,
    client: &mut Client,
    config: &BroadcastConfig,
    metrics: &BroadcastMetrics,
) -> bool {
    if ctx.queued(id) > config.receiver_limit / 2 {
        return false;
    }
    let notice = format!("[Server] {} lines skipped\n", client.skipped);
    if !ctx.send(id, notice.as_bytes()).is_accepted() {
        // All clients together hold too much, and nobody tells when that is over.
        ctx.set_timer(id, RETRY);
        return false;
    }
    log::info!("Client_{} missed {} lines: it reads too slowly", client.number, client.skipped);
    client.skipped = 0;
    metrics.lagging.subtract(1);
    true
}

impl Handler for Broadcast {
    type Conn = LineSplitter;
    type Message = ();

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, _: &mut LineSplitter) {
        self.counted += 1;
        self.clients.insert(id, Client { number: self.counted, skipped: 0 });
        if let Some(peer) = ctx.peer_address(id) {
            log::info!("Client_{} connected from {peer}", self.counted);
        }
    }

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, lines: &mut LineSplitter, input: &[u8]) -> usize {
        let mut rest = input;
        let mut budget = Budget::new(&self.config, ctx.limits().memory, self.clients.len());
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
                    return input.len();
                }
            }
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
        _: &mut Ctx,
        id: ConnId,
        _: LineSplitter,
        reason: CloseReason,
        stats: &CloseStats,
    ) {
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
    }
}
