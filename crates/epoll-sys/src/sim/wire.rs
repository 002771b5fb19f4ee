//! The way between two ends of a connection: pieces in flight, FINs and resets, and what closing does.

use std::time::Duration;

use nix::sys::epoll::EpollFlags;

use super::epoll::EVERYTHING;
use super::faults::Fault;
use super::record::Outcome;
use super::stream::{Family, Owner, Phase};
use super::table::Key;
use super::world::{Cause, Happening, World};
use crate::Errno;

/// With what sock_def_readable wakes.
const READABLE: EpollFlags = EpollFlags::EPOLLIN.union(EpollFlags::EPOLLPRI);

impl World {
    /// `from` has something to send, or the other end has room again: a delivery is planned, if there is not
    /// one already.
    pub(super) fn kick(&mut self, from: Key) {
        let Some(stream) = self.stream(from) else { return };
        let fin_due = stream.shut && !stream.fin_delivered;
        let Some(to) = stream.peer else { return };
        if stream.scheduled || (stream.outgoing.is_empty() && !fin_due) {
            return;
        }
        let blocked = !stream.outgoing.is_empty()
            && self.stream(to).is_some_and(|to| to.owner == Owner::Somebody && to.window() == 0);
        match stream.family {
            _ if blocked => (),
            Family::Unix => self.deliver(from),
            Family::Tcp => {
                let delay = self.latency();
                self.plan_delivery(from, delay);
            }
        }
    }

    pub(super) fn plan_delivery(&mut self, from: Key, delay: Duration) {
        let stall = if self.strikes(Fault::Stall) {
            let longest = self.faults.network.stall_for;
            self.duration_between((Duration::ZERO, longest))
        } else {
            Duration::ZERO
        };
        if let Some(stream) = self.stream_mut(from) {
            stream.scheduled = true;
            self.plan(delay + stall, Happening::Deliver(from));
        }
    }

    /// The next piece of what `from` has sent arrives.
    pub(super) fn deliver(&mut self, from: Key) {
        let Some(stream) = self.stream_mut(from) else { return };
        stream.scheduled = false;
        let Some(to) = stream.peer else { return };
        let most = self.capacity_of_piece(from);
        let Some((sender, receiver)) = self.two_streams(from, to) else { return };
        if receiver.owner == Owner::Nobody {
            self.deliver_to_nobody(from, to);
            return;
        }
        let piece = sender.outgoing.len().min(receiver.window()).min(most);
        receiver.arrive(sender, piece);
        let (more, open) = (!sender.outgoing.is_empty(), receiver.window() > 0);
        let fin_due = sender.shut && !sender.fin_delivered;
        if piece > 0 {
            self.note_for(to, "data arrives", Outcome::Number(piece as u64));
            self.wake(to, READABLE);
            self.undefer(to);
            self.check_space(from);
        }
        if more && open {
            let gap = self.duration_between(self.faults.network.gap);
            self.plan_delivery(from, gap);
        } else if !more && fin_due {
            if piece > 0 && self.strikes(Fault::FinApart) {
                let gap = self.latency();
                self.plan_delivery(from, gap);
            } else {
                self.deliver_fin(from, to);
            }
        }
    }

    fn capacity_of_piece(&mut self, from: Key) -> usize {
        match self.stream(from).map(|stream| stream.family) {
            Some(Family::Tcp) => {
                let (low, high) = self.faults.network.segment;
                let (low, high) = (low.max(1), high.max(1));
                if low < high { self.rng.usize(low..=high) } else { low }
            }
            _ => usize::MAX,
        }
    }

    fn deliver_fin(&mut self, from: Key, to: Key) {
        self.note_for(to, "end arrives", Outcome::Done);
        if let Some((sender, receiver)) = self.two_streams(from, to) {
            sender.fin_delivered = true;
            receiver.ended = true;
        }
        self.wake(to, EVERYTHING);
        self.undefer(to);
        // It is acknowledged, which is a change of state (tcp_rcv_state_process, FIN_WAIT1).
        self.wake(from, EVERYTHING);
        self.settle(from);
    }

    /// The other end is closed: data is answered by a reset, a FIN by nothing.
    fn deliver_to_nobody(&mut self, from: Key, to: Key) {
        let Some((sender, receiver)) = self.two_streams(from, to) else { return };
        let refused = !sender.outgoing.is_empty();
        // If it has been reset already, that is on its way.
        let reset = refused && receiver.phase != Phase::Dead;
        sender.outgoing.clear();
        if sender.shut && !refused {
            sender.fin_delivered = true;
        }
        if reset {
            receiver.phase = Phase::Dead;
            let delay = self.latency();
            self.plan(delay, Happening::End(from, Cause::Reset));
        }
        self.check_space(from);
        if !refused {
            self.wake(from, EVERYTHING);
            self.settle(from);
        }
    }

    /// If an edge is owed for write space and there is enough, gives it: sk_stream_write_space.
    pub(super) fn check_space(&mut self, sender: Key) {
        let unread_there = self.unread_at_peer(sender);
        if let Some(stream) = self.stream_mut(sender)
            && stream.no_space
            && stream.is_writable(unread_there)
        {
            stream.no_space = false;
            self.wake(sender, EpollFlags::EPOLLOUT);
        }
    }

    /// An RST arrives at `key`, or its own kernel gives it up: tcp_reset, tcp_write_err.
    pub(super) fn end(&mut self, key: Key, cause: Cause) {
        let Some(stream) = self.stream_mut(key) else { return };
        if stream.phase == Phase::Dead {
            self.settle(key);
            return;
        }
        if let Some(peer) = stream.peer.take() {
            self.cut_way(peer, key, cause);
        }
        let Some(stream) = self.stream_mut(key) else { return };
        let errno = match cause {
            Cause::Reset if stream.ended => Errno::EPIPE,
            Cause::Reset => Errno::ECONNRESET,
            Cause::Refused => Errno::ECONNREFUSED,
            Cause::TimedOut => Errno::ETIMEDOUT,
            Cause::Broken => Errno::EPIPE,
        };
        // Ended in both directions it has no state that a reset could change.
        let told = !stream.is_closed();
        stream.phase = Phase::Dead;
        stream.outgoing.clear();
        if told {
            stream.error = Some(errno);
            self.note_for(key, "is reset", Outcome::Failed(errno));
            self.wake(key, EVERYTHING);
        }
        self.settle(key);
    }

    /// What was on its way from `peer` before the reset still arrives, as far as there is room, or is lost.
    fn cut_way(&mut self, peer: Key, key: Key, cause: Cause) {
        let lost = cause != Cause::Reset || self.strikes(Fault::ResetOvertakes);
        let Some((sender, receiver)) = self.two_streams(peer, key) else { return };
        if !lost {
            let piece = sender.outgoing.len().min(receiver.window());
            receiver.arrive(sender, piece);
        }
        sender.peer = None;
        if sender.owner == Owner::Nobody {
            self.objects.remove(peer);
        }
    }

    /// Injected: the connection is cut at both ends, first at this one.
    pub(super) fn cut(&mut self, key: Key, cause: Cause) {
        if let Some(peer) = self.stream(key).and_then(|stream| stream.peer) {
            let delay = self.latency();
            self.plan(delay, Happening::End(peer, Cause::Reset));
        }
        self.end(key, cause);
    }

    /// The owner closes its end: tcp_close, unix_release_sock. One that nobody has accepted is always reset.
    pub(super) fn close_stream(&mut self, key: Key, accepted: bool) {
        let Some(stream) = self.stream_mut(key) else { return };
        stream.owner = Owner::Nobody;
        let unread = !stream.received.is_empty() || !accepted;
        match (stream.peer, stream.phase) {
            (None, _) | (_, Phase::Dead) => stream.phase = Phase::Dead,
            (Some(peer), Phase::Connected) if stream.family == Family::Unix => {
                self.close_unix(key, peer, unread);
            }
            (Some(peer), _) if unread || stream.linger_zero => {
                stream.phase = Phase::Dead;
                let delay = self.latency();
                self.plan(delay, Happening::End(peer, Cause::Reset));
            }
            _ => {
                stream.shut = true;
                self.kick(key);
            }
        }
        self.settle(key);
    }

    fn close_unix(&mut self, key: Key, peer: Key, unread: bool) {
        if let Some((closing, left)) = self.two_streams(key, peer) {
            // Only what an injected fault has put back can be on its way.
            let piece = closing.outgoing.len();
            left.arrive(closing, piece);
            let lost = unread || !left.outgoing.is_empty();
            left.outgoing.clear();
            left.ended = true;
            left.shut = true;
            left.peer = None;
            if lost {
                left.error = Some(Errno::ECONNRESET);
            }
            closing.phase = Phase::Dead;
            closing.peer = None;
        }
        self.wake(peer, EVERYTHING);
        self.settle(peer);
    }

    /// Removes a pair that has nothing left to do and nobody to hold it.
    fn settle(&mut self, key: Key) {
        let Some(stream) = self.stream(key).filter(|stream| stream.is_done()) else { return };
        match stream.peer {
            // A dead one may still have a reset on its way, which takes both away.
            Some(peer) if self.stream(peer).is_some_and(|peer| !peer.is_done()) => (),
            peer => {
                self.objects.remove(key);
                if let Some(peer) = peer {
                    self.objects.remove(peer);
                }
            }
        }
    }

    /// Injected: all but the first `kept` unread bytes of `key` are on their way again. Says whether that can
    /// be without going back on something that has been told.
    pub(super) fn put_back(&mut self, key: Key, kept: usize) -> bool {
        let Some(peer) = self.stream(key).and_then(|stream| stream.peer) else { return false };
        let Some((receiver, sender)) = self.two_streams(key, peer) else { return false };
        if !receiver.may_lose_tail(sender, kept) {
            return false;
        }
        receiver.received.put_back(kept, &mut sender.outgoing);
        if receiver.ended {
            receiver.ended = false;
            sender.fin_delivered = false;
        }
        if !sender.scheduled {
            let delay = self.latency();
            self.plan_delivery(peer, delay);
        }
        true
    }
}
