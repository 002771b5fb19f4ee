//! Moving: a loop that is clearly busier than another gives it connections that are open, each at a quiet moment which its
//! handler has told of ([`Ctx::hand_over`](crate::Ctx::hand_over)). For the handlers it is a close here and an open there; for
//! the peer it is nothing. [`Mover`] is the law, with no clock and no call in it.

use std::time::Duration;

use epoll_sys::{Errno, Interest, Kernel, Timestamp};

use crate::balance::{Handed, Journey};
use crate::connection::{Connection, Fin, Phase};
use crate::ctx::Ctx;
use crate::handler::{CloseReason, Handler};
use crate::reactor::Reactor;
use crate::token::ConnId;

/// So often loops are compared, and so long what is found holds.
const INTERVAL: Duration = Duration::from_millis(100);

/// A connection stays where it is for so long, so that none is for ever on its way.
const SETTLED: Duration = Duration::from_secs(1);

/// What one loop knows of how busy all are, and how many connections it may give away for that.
#[derive(Debug)]
pub(crate) struct Mover {
    /// When the loops were last compared, and how long each had been busy by then.
    since: Timestamp,
    busy: Vec<Duration>,
    /// Who was served since then: the first, and whether there were others. To move the only one helps nobody.
    first: Option<ConnId>,
    several: bool,
    /// Where to, and how many may still go before the next comparison. None: nowhere.
    to: usize,
    left: usize,
    /// Whom this turn is to try to move.
    offered: Vec<ConnId>,
}

/// What another loop looks like.
#[derive(Clone, Copy, Debug)]
struct Load {
    /// For how long it has been busy since it was made.
    busy: Duration,
    /// It would take a connection.
    is_open: bool,
}

impl Mover {
    pub(crate) const fn new(now: Timestamp) -> Self {
        Self {
            since: now,
            busy: Vec::new(),
            first: None,
            several: false,
            to: 0,
            left: 0,
            offered: Vec::new(),
        }
    }

    /// `id` is at a quiet moment. `is_settled`: it has been here for a while.
    fn offer(&mut self, id: ConnId, is_settled: bool) {
        self.several |= *self.first.get_or_insert(id) != id;
        if is_settled && self.offered.len() < self.left && self.offered.last() != Some(&id) {
            self.offered.push(id);
        }
    }

    /// One has gone, and may have been all but the only one; or was refused, and then no other is tried before the next
    /// comparison.
    fn note(&mut self, is_taken: bool) {
        self.left = if is_taken { self.left.saturating_sub(1) } else { 0 };
        (self.first, self.several) = (None, false);
    }

    fn is_due(&self, now: Timestamp) -> bool {
        now - self.since >= INTERVAL
    }

    /// Compares the loops, of which this one is `own` and has `open` connections: it gives some away to the least busy if it
    /// was busy for more than half of the time, and for a quarter of the time more than that one.
    fn judge(&mut self, now: Timestamp, own: usize, open: usize, loops: &[Load]) {
        let interval = now - self.since;
        // Of a loop that is seen for the first time nothing is known yet.
        let known = self.busy.len() == loops.len();
        let before = std::mem::replace(&mut self.busy, loops.iter().map(|it| it.busy).collect());
        let spent = |index: usize| {
            let since = before.get(index).copied().unwrap_or_default();
            loops.get(index).map_or(Duration::ZERO, |it| it.busy.saturating_sub(since))
        };
        let others = loops.iter().enumerate().filter(|(index, it)| *index != own && it.is_open);
        let least = others.map(|(index, _)| (spent(index), index)).min();
        let several = std::mem::take(&mut self.several);
        (self.since, self.first, self.left) = (now, None, 0);
        if let Some((least, index)) = least
            && known
            && several
            && spent(own) > interval / 2
            && spent(own) >= least + interval / 4
        {
            self.to = index;
            self.left = (open / 16).max(1);
        }
    }
}

/// Nothing of it is in this loop but the descriptor: all that was received has been consumed, all that was sent is the
/// kernel's, and it is not about to end.
fn is_quiet(connection: &Connection) -> bool {
    connection.phase == Phase::Open
        && connection.reason.is_none()
        && connection.input.is_none()
        && connection.output.is_none()
        && connection.fin == Fin::No
        && !(connection.batched
            || connection.in_dirty
            || connection.paused
            || connection.eof
            || connection.errored
            || connection.refused
            || connection.above_high_water
            || connection.drain_due)
}

impl Ctx {
    /// Says that the handler holds nothing of `id` that matters, until the next callback for it: a quiet moment of its
    /// protocol, such as the one between an answer and the next request. If this loop is clearly busier than another one, and
    /// [`Workers::balance`](crate::Workers::balance) was asked for, `id` may be moved there at the end of this turn. It is then
    /// closed here, with [`CloseReason::HandedOver`], and opened there, as a new connection of a new id, state and timers, of
    /// which [`has_moved`](Self::has_moved) is true; there [`on_open`](crate::Handler::on_open) may be called before
    /// [`on_close`](crate::Handler::on_close) is here. The peer notices nothing, and no byte is lost.
    ///
    /// It stays if there is something to be sent or consumed still, if it has not been here for a second, or is the only one that
    /// says this; and in a drain. Cheap enough to be said after each answer.
    #[inline]
    pub fn hand_over(&mut self, id: ConnId) {
        if self.mover.is_some() {
            self.offer(id);
        }
    }

    fn offer(&mut self, id: ConnId) {
        let now = self.now();
        let is_settled = self.connections.get(id.0).is_some_and(|it| now - it.opened >= SETTLED);
        if let Some(mover) = &mut self.mover {
            mover.offer(id, is_settled);
        }
    }

    /// Whether `id` was open in another loop before, which has [handed it over](Self::hand_over).
    #[must_use]
    pub fn has_moved(&self, id: ConnId) -> bool {
        self.connections.get(id.0).is_some_and(|connection| connection.has_moved)
    }
}

impl<H: Handler, K: Kernel> Reactor<H, K> {
    /// Gives away connections that callbacks of this turn have offered, and compares the loops when it is time to.
    pub(crate) fn move_some(&mut self) {
        let now = self.ctx.now();
        let is_draining = self.ctx.is_draining();
        let Some(mover) = &mut self.ctx.mover else { return };
        let (offered, to) = (std::mem::take(&mut mover.offered), mover.to);
        if is_draining {
            return;
        }
        for id in offered {
            self.move_one(id, to);
        }
        let open = self.ctx.connections();
        if let (Some(worker), Some(mover)) = (&self.others, &mut self.ctx.mover)
            && mover.is_due(now)
        {
            let loops = worker.remotes().iter().map(|remote| Load {
                busy: remote.metrics().busy(),
                is_open: remote.shared().takes_moved(now),
            });
            mover.judge(now, worker.index(), open, &loops.collect::<Vec<_>>());
        }
    }

    /// Moves `id` if it is at a quiet moment still and the other loop takes it. Whoever that has taken is told of here, by
    /// `on_close`; whoever it has not stays, and nothing is told.
    fn move_one(&mut self, id: ConnId, to: usize) {
        let now = self.ctx.now();
        let Some(connection) = self.ctx.connections.get(id.0).filter(|it| is_quiet(it)) else { return };
        let Some(listener) = connection.listener else { return };
        let peer = connection.peer.address();
        let Some((from, remote)) =
            self.others.as_ref().and_then(|it| Some((it.index(), it.remotes().get(to)?.clone())))
        else {
            return;
        };
        if !remote.shared().takes_moved(now) {
            self.note_moved(false);
            return;
        }
        let Some(fd) = self.fds.get_mut(id.index()).and_then(Option::take) else { return };
        // Before another thread has it, which may close it. What was ready and what has yet to come is told there.
        let _: Result<(), Errno> = self.kernel.delete(&fd);
        let refused =
            remote.hand_over(Handed { listener: listener.0, fd, peer, journey: Journey::Moved(from) });
        self.note_moved(refused.is_ok());
        let Err(Handed { fd, .. }) = refused else {
            self.ctx.metrics.moved.add(1);
            self.ctx.kill(id, CloseReason::HandedOver);
            return;
        };
        let added = self.kernel.add(&fd, Interest::Stream, id.as_u64());
        if let Some(place) = self.fds.get_mut(id.index()) {
            *place = Some(fd);
        }
        if let Err(errno) = added {
            self.fail(id, errno);
        }
    }

    fn note_moved(&mut self, is_taken: bool) {
        if let Some(mover) = &mut self.ctx.mover {
            mover.note(is_taken);
        }
    }
}

#[cfg(test)]
#[cfg(not(loom))]
mod tests {
    use super::*;
    use crate::token::Token;

    fn at(milliseconds: u64) -> Timestamp {
        Timestamp::from_nanoseconds(1_000_000 * (1 + milliseconds))
    }

    fn id(index: u32) -> ConnId {
        ConnId(Token::new(index, 1))
    }

    const fn load(milliseconds: u64) -> Load {
        Load { busy: Duration::from_millis(milliseconds), is_open: true }
    }

    /// As the loop numbered 0 of those that have been busy for so long in 100 ms; where to, and how many.
    fn judged(open: usize, served: u32, loops: &[Load]) -> Option<(usize, usize)> {
        let mut mover = Mover::new(at(0));
        mover.judge(at(0), 0, open, &vec![load(0); loops.len()]);
        (0..served).for_each(|index| mover.offer(id(index), true));
        mover.judge(at(100), 0, open, loops);
        (mover.left > 0).then_some((mover.to, mover.left))
    }

    #[test]
    fn a_loop_that_is_clearly_busier_gives_some_to_the_least_busy() {
        let closed = |milliseconds| Load { is_open: false, ..load(milliseconds) };
        let rows: [(&str, &[Load], Option<usize>); 9] = [
            ("busy beside an idle one", &[load(90), load(0)], Some(1)),
            ("to the least busy", &[load(90), load(50), load(10), load(30)], Some(2)),
            ("half of the time is not more than half", &[load(50), load(0)], None),
            ("just more than half", &[load(51), load(0)], Some(1)),
            ("not a quarter apart", &[load(90), load(66)], None),
            ("a quarter apart", &[load(90), load(65)], Some(1)),
            ("all are busy", &[load(99), load(99)], None),
            ("the idle one takes none", &[load(90), closed(0), load(20)], Some(2)),
            ("none takes any", &[load(90), closed(0)], None),
        ];
        for (what, loops, expected) in rows {
            assert_eq!(judged(1, 2, loops), expected.map(|to| (to, 1)), "{what}");
        }
    }

    #[test]
    fn one_in_sixteen_goes_and_never_the_only_one_that_is_served() {
        let busy = [load(90), load(0)];
        for (open, served, expected) in [
            (1000, 0, None),
            (1000, 1, None),
            (1000, 2, Some((1, 62))),
            (31, 2, Some((1, 1))),
            (2, 2, Some((1, 1))),
        ] {
            assert_eq!(judged(open, served, &busy), expected, "{served} of {open}");
        }
    }

    #[test]
    fn what_was_found_holds_for_an_interval_and_only_the_settled_are_offered() {
        let mut mover = Mover::new(at(0));
        (0..2).for_each(|index| mover.offer(id(index), true));
        mover.judge(at(100), 0, 32, &[load(5_000), load(0)]);
        assert_eq!(mover.left, 0, "it has not seen them before");
        (0..2).for_each(|index| mover.offer(id(index), true));
        assert_eq!(mover.offered, [], "it does not want to");
        mover.judge(at(200), 0, 32, &[load(5_090), load(0)]);
        assert!(!mover.is_due(at(299)) && mover.is_due(at(300)));
        for (index, is_settled) in [(1, false), (2, true), (2, true), (3, true), (4, true)] {
            mover.offer(id(index), is_settled);
        }
        assert_eq!(mover.offered, [id(2), id(3)], "two of 32");
        mover.judge(at(300), 0, 32, &[load(5_110), load(0)]);
        assert_eq!(mover.left, 0, "it was busy for 20 ms");
        // Of two that were served one has gone.
        (0..2).for_each(|index| mover.offer(id(index), true));
        mover.note(true);
        mover.offer(id(1), true);
        mover.judge(at(400), 0, 1, &[load(5_200), load(0)]);
        assert_eq!(mover.left, 0, "there is one left");
        // A long time in which nothing happened is a long interval.
        (0..2).for_each(|index| mover.offer(id(index), true));
        mover.judge(at(10_400), 0, 32, &[load(5_300), load(0)]);
        assert_eq!(mover.left, 0, "100 ms of ten seconds");
    }
}
