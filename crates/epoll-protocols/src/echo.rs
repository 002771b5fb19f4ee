//! Echo: every byte back, in order (RFC 862 over a stream). Not a buffer: a client that does not read is not
//! read either.

use epoll_reactor::{CloseReason, CloseStats, ConnId, Ctx, Handler, SendOutcome};

/// Sends back what it receives. It holds no state; a client that takes its bytes back slowly is slowed down by
/// the loop's high water mark, and gets them all. When all clients together hold the loop's
/// [`memory`](epoll_reactor::Limits::memory) limit, those that hold most are disconnected.
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
        // What does not fit waits until the client has read some of what does.
        let room = ctx.limits().output.saturating_sub(ctx.queued(id));
        let fitting = input.get(..room).unwrap_or(input);
        match ctx.send(id, fitting) {
            SendOutcome::Sent | SendOutcome::Queued | SendOutcome::Gone(_) => {
                if fitting.len() < input.len() {
                    ctx.pause_until_drained(id);
                } else {
                    ctx.hand_over(id);
                }
                fitting.len()
            }
            SendOutcome::OverLimit(_) => {
                // The bytes have been read, and there is nowhere to keep them.
                log::debug!("client {id} disconnected: all clients together hold too much");
                ctx.close_now(id);
                input.len()
            }
        }
    }

    fn on_close(&mut self, _: &mut Ctx, id: ConnId, (): (), reason: CloseReason, stats: &CloseStats) {
        log::debug!("client {id}: {reason}; {} bytes echoed", stats.bytes_sent);
    }
}
