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
    /// When the loop's timer will come.
    armed: Option<Timestamp>,
    /// Of a body that is coming: how much of it `deadline` knows of.
    received: u64,
    accounted: usize,
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
            armed: None,
            received: 0,
            accounted: 0,
            waiting: false,
            work: None,
        }
    }

    /// Sees to it that the loop's timer comes by the deadline that now applies, if one does. A later one is only noted:
    /// the timer that comes too early is [set again](Self::is_late), so a request costs no timer.
    pub(super) fn set_timer(&mut self, ctx: &mut Ctx, id: ConnId, config: &HttpConfig) {
        // While answers wait, it is the client's turn to read, and the loop gives us none of its requests. The
        // loop's write-stall timeout watches that.
        if ctx.queued(id) > ctx.limits().output_high_water {
            return self.clear_timer();
        }
        let stage = self.connection.stage();
        let timed = (stage, self.connection.answered());
        let changed = self.timed != Some(timed);
        if changed {
            self.timed = Some(timed);
        }
        let time = match stage {
            Stage::Answering => return self.clear_timer(),
            Stage::Body => self.body_time(ctx.now(), config, changed),
            _ if !changed => return,
            Stage::Idle if timed.1 > 0 => config.keep_alive_timeout,
            // Before its first request a client is as slow as one that has begun and not ended it.
            Stage::Idle | Stage::Head | Stage::Closed => config.head_timeout,
        };
        self.deadline = ctx.now() + time;
        self.arm(ctx, id);
    }

    /// The loop's timer has come: whether the client is late. If not, the timer is set again.
    pub(super) fn is_late(&mut self, ctx: &mut Ctx, id: ConnId) -> bool {
        self.armed = None;
        if self.timed.is_none() {
            return false;
        }
        if ctx.now() >= self.deadline {
            return true;
        }
        self.arm(ctx, id);
        false
    }

    fn arm(&mut self, ctx: &mut Ctx, id: ConnId) {
        if self.armed.is_none_or(|armed| self.deadline < armed) {
            self.armed = Some(self.deadline);
            ctx.set_timer(id, self.deadline - ctx.now());
        }
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

    /// Counts that against the loop's memory.
    pub(super) fn account(&mut self, ctx: &mut Ctx, id: ConnId) {
        let held = self.held();
        if held != self.accounted {
            self.accounted = held;
            ctx.account(id, held);
        }
    }

    /// No deadline applies.
    pub(super) const fn clear_timer(&mut self) {
        self.timed = None;
    }

    pub(super) fn wait(&mut self, ctx: &mut Ctx, id: ConnId) {
        self.clear_timer();
        self.waiting = true;
        ctx.pause_reading(id);
    }
}
