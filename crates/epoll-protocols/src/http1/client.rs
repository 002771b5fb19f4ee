//! One client beside its codec: the deadline that applies to it, and whether it is read from. No I/O of its own.

use std::time::Duration;

use epoll_reactor::{Address, ConnId, Ctx, Timestamp};

use super::pool::Place;
use super::{Connection, HttpConfig, Stage};

/// The state of one client.
#[derive(Debug)]
pub(super) struct Client {
    pub(super) connection: Connection,
    /// The loop forgets it before `on_close`, where unfinished answers are logged.
    pub(super) peer: Address,
    /// What the deadline that applies is for.
    timed: Option<(Stage, u64)>,
    deadline: Timestamp,
    /// Of a body that is coming: how much of it `deadline` knows of.
    received: u64,
    /// Reading is paused until the answer under way is out.
    pub(super) waiting: bool,
    /// What a thread does for it, or is to do.
    pub(super) work: Option<Box<Place>>,
}

impl Client {
    pub(super) fn new(peer: Address, now: Timestamp) -> Self {
        Self {
            connection: Connection::new(),
            peer,
            timed: None,
            deadline: now,
            received: 0,
            waiting: false,
            work: None,
        }
    }

    pub(super) fn set_timer(&mut self, ctx: &mut Ctx, id: ConnId, config: &HttpConfig) {
        // While answers wait, it is the client's turn to read, and the loop gives us none of its requests. The
        // loop's write-stall timeout watches that.
        if ctx.queued(id) > ctx.limits().output_high_water {
            return self.clear_timer(ctx, id);
        }
        let stage = self.connection.stage();
        let timed = (stage, self.connection.answered());
        let changed = self.timed != Some(timed);
        if changed {
            self.timed = Some(timed);
        }
        let time = match stage {
            Stage::Answering => return self.clear_timer(ctx, id),
            Stage::Body => self.body_time(ctx.now(), config, changed),
            _ if !changed => return,
            Stage::Idle if timed.1 > 0 => config.keep_alive_timeout,
            // Before its first request a client is as slow as one that has begun and not ended it.
            Stage::Idle | Stage::Head | Stage::Closed => config.head_timeout,
        };
        self.deadline = ctx.now() + time;
        ctx.set_timer(id, time);
    }

    /// How long the client may be silent in the middle of a body.
    fn body_time(&mut self, now: Timestamp, config: &HttpConfig, begins: bool) -> Duration {
        let received = self.connection.body_received();
        let left = if begins { config.body_timeout } else { self.deadline - now };
        config.body_time(left, received.saturating_sub(std::mem::replace(&mut self.received, received)))
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
