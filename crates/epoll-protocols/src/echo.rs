//! Echo: every byte back, in order (RFC 862 over a stream). Not a buffer: a client that does not read is not
//! read either.

use std::time::Duration;

use epoll_reactor::{CloseReason, CloseStats, ConnId, Ctx, Handler, SendOutcome};

/// How long to leave a client alone while all connections together hold too much.
const RETRY: Duration = Duration::from_millis(100);

/// Sends back what it receives. It holds no state; a client that takes its bytes back slowly is slowed down by
/// the loop's high water mark, and gets them all.
#[derive(Clone, Copy, Debug, Default)]
pub struct Echo;

impl Handler for Echo {
    type Conn = ();
    type Message = ();

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut ()) {
        if let Some(peer) = ctx.peer_address(id) {
            log::debug!("client {id} ({peer}) connected");
        }
    }

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut (), input: &[u8]) -> usize {
        // What does not fit waits for `on_drain`, which comes with the rest by itself: at the limit the
        // connection is above its high water mark.
        let room = ctx.limits().output.saturating_sub(ctx.queued(id));
        let fitting = input.get(..room).unwrap_or(input);
        match ctx.send(id, fitting) {
            SendOutcome::Sent | SendOutcome::Queued | SendOutcome::Gone(_) => fitting.len(),
            SendOutcome::OverLimit(_) => {
                // All connections together hold too much. Nobody tells when that is over.
                ctx.pause_reading(id);
                ctx.set_timer(id, RETRY);
                0
            }
        }
    }

    fn on_timer(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut ()) {
        ctx.resume_reading(id);
    }

    fn on_close(&mut self, _: &mut Ctx, id: ConnId, (): (), reason: CloseReason, stats: &CloseStats) {
        log::debug!("client {id}: {reason}; {} bytes echoed", stats.bytes_sent);
    }
}
