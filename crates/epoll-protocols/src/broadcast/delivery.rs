//! One message to one receiver, and what becomes of receivers that are slow.

use std::time::Duration;

use epoll_reactor::{ConnId, Ctx, SendOutcome, Shared};

use super::{BroadcastConfig, BroadcastMetrics, Client, SlowReceivers};

/// When to try again to tell a client what it has missed, if it is not its own reading that stands in the way.
const RETRY: Duration = Duration::from_millis(100);

/// Sends one message, of so many lines, to one receiver, under the policy for slow ones; says whether it has.
pub(super) fn deliver(
    ctx: &mut Ctx,
    id: ConnId,
    client: &mut Client,
    config: &BroadcastConfig,
    metrics: &BroadcastMetrics,
    (message, lines): (Shared, u64),
) -> bool {
    if client.skipped > 0 && !tell_skipped(ctx, id, client, config, metrics) {
        client.skipped += lines;
        metrics.skipped.add(lines);
        return false;
    }
    let over_limit = ctx.queued(id).saturating_add(message.len()) > config.receiver_limit;
    let outcome = if over_limit { SendOutcome::OverLimit(message) } else { ctx.send_shared(id, message) };
    match (outcome, config.slow_receivers) {
        // One that is closing is sent nothing more; `on_close` takes it out.
        (SendOutcome::Gone(_), _) => return false,
        (SendOutcome::Sent | SendOutcome::Queued, _) => return true,
        (SendOutcome::OverLimit(_), SlowReceivers::Drop) => {
            client.skipped += lines;
            metrics.skipped.add(lines);
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
pub(super) fn tell_skipped(
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
