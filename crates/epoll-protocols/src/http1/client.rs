//! One client beside its codec: the deadline that applies to it, and whether it is read from. No I/O of its own.

use std::time::Duration;

use epoll_reactor::{ConnId, Ctx};

use super::pool::Place;
use super::{Connection, HttpConfig, Stage};

/// The state of one client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) connection: Connection,
    /// What the deadline that applies is for, and for which request: of its number the lower half, since one that lasts
    /// until 2^32 more have been answered there is not.
    timed: Option<(Stage, u32)>,
    /// Of a body that is coming: how much of it the deadline knows of, the lower half of that too.
    received: u32,
    /// Reading is paused until the answer under way is out.
    pub(super) waiting: bool,
    /// What a thread does for it, or is to do.
    pub(super) work: Option<Box<Place>>,
}

impl Client {
    pub(super) fn new() -> Self {
        Self { connection: Connection::new(), timed: None, received: 0, waiting: false, work: None }
    }

    /// It is read from, as long as its deadline allows.
    pub(super) fn expect_input(&mut self, ctx: &mut Ctx, id: ConnId, config: &HttpConfig) {
        if std::mem::take(&mut self.waiting) {
            ctx.resume_reading(id);
        }
        self.set_timer(ctx, id, config);
    }

    fn set_timer(&mut self, ctx: &mut Ctx, id: ConnId, config: &HttpConfig) {
        // While answers wait, it is the client's turn to read, and the loop gives us none of its requests. The
        // loop's write-stall timeout watches that.
        if ctx.queued(id) > ctx.limits().output_high_water {
            return self.clear_timer(ctx, id);
        }
        let stage = self.connection.stage();
        let answered = self.connection.answered();
        let timed = (stage, lower_half(answered));
        let changed = self.timed != Some(timed);
        if changed {
            self.timed = Some(timed);
        }
        let time = match stage {
            Stage::Answering => return self.clear_timer(ctx, id),
            Stage::Body => self.body_time(ctx, id, config, changed),
            _ if !changed => return,
            Stage::Idle if answered > 0 => {
                ctx.hand_over(id);
                config.keep_alive_timeout
            }
            // It has been answered elsewhere.
            Stage::Idle if ctx.has_moved(id) => config.keep_alive_timeout,
            // Before its first request a client is as slow as one that has begun and not ended it.
            Stage::Idle | Stage::Head | Stage::Closed => config.head_timeout,
        };
        ctx.set_timer(id, time);
    }

    /// How long the client may be silent in the middle of a body.
    fn body_time(&mut self, ctx: &Ctx, id: ConnId, config: &HttpConfig, begins: bool) -> Duration {
        let received = lower_half(self.connection.body_received());
        let known = std::mem::replace(&mut self.received, received);
        if begins {
            return config.body_timeout;
        }
        config.body_time(ctx.timer(id).unwrap_or_default(), u64::from(received.wrapping_sub(known)))
    }

    /// Bytes of heap that are held for it.
    pub(super) fn held(&self) -> usize {
        self.connection.held() + self.work.as_ref().map_or(0, |place| place.held)
    }

    /// No deadline applies.
    pub(super) fn clear_timer(&mut self, ctx: &mut Ctx, id: ConnId) {
        self.timed = None;
        ctx.cancel_timer(id);
    }

    pub(super) fn wait(&mut self, ctx: &mut Ctx, id: ConnId) {
        self.clear_timer(ctx, id);
        self.waiting = true;
        ctx.pause_reading(id);
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the lower half")]
const fn lower_half(number: u64) -> u32 {
    number as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every client costs this much, beside what the loop keeps of its connection.
    #[test]
    fn an_idle_client_is_small() {
        assert!(size_of::<Client>() <= 56, "{} bytes", size_of::<Client>());
    }
}
