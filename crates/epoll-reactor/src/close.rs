//! The end of lives: a connection's last output and lingering read, its taking apart, and the drain of the
//! whole loop.

use std::time::Duration;

use epoll_sys::{Call, Errno, Kernel, Reaction, Timestamp, reaction};

use crate::connection::{Connection, Fin, Phase};
use crate::ctx::Ctx;
use crate::handler::{CloseReason, Handler};
use crate::metrics::LoopPhase;
use crate::reactor::{Reactor, Shutdown};
use crate::recorder::Callback;
use crate::stats::CloseStats;
use crate::token::ConnId;

impl Ctx {
    /// Drains the loop: listeners close, each connection is told by
    /// [`on_shutdown`](crate::Handler::on_shutdown), and `run` returns when all have ended or `grace` has
    /// passed. Asking again can only bring the deadline nearer.
    pub fn drain(&mut self, grace: Duration) {
        let deadline = self.now() + grace;
        self.metrics.note_phase(LoopPhase::Draining);
        self.drain_deadline = Some(self.drain_deadline.map_or(deadline, |earlier| earlier.min(deadline)));
    }

    /// Whether a drain has been asked for.
    #[must_use]
    pub const fn is_draining(&self) -> bool {
        self.drain_deadline.is_some()
    }
}

impl<H: Handler, K: Kernel> Reactor<H, K> {
    /// All output has gone out. If the peer may still be sending, closing now could make the kernel answer
    /// with an RST, and that would destroy output the peer has not read yet: so send a FIN, and read until
    /// the peer's own.
    pub(crate) fn end_output(&mut self, id: ConnId) {
        let now = self.ctx.now();
        let sent = self.ctx.connections.get(id.0).is_some_and(|connection| connection.fin == Fin::Sent);
        let shut = sent || self.send_fin(id);
        let Some(connection) = self.ctx.connections.get_mut(id.0) else { return };
        if connection.eof || !shut {
            self.ctx.kill(id, CloseReason::Local);
            return;
        }
        let before = connection.state();
        connection.phase = Phase::Lingering;
        self.ctx.metrics.note_state(before, connection.state());
        connection.active = now;
        if !connection.refused {
            connection.read_deadline = Some(now + self.ctx.limits.linger_timeout);
        }
        if let Some(tail) = connection.input.take() {
            self.ctx.buffered -= tail.held();
        }
        self.ctx.arm(id);
        self.linger(id);
    }

    /// Says whether the kernel could: it cannot if the peer has reset the connection.
    pub(crate) fn send_fin(&self, id: ConnId) -> bool {
        let fd = self.fds.get(id.index()).and_then(Option::as_ref);
        fd.is_some_and(|fd| self.kernel.shutdown_write(fd).is_ok())
    }

    /// Reads and discards, within the budget of a turn and the bounds of lingering.
    pub(crate) fn linger(&mut self, id: ConnId) {
        let mut budget = self.ctx.limits.read_budget;
        while let Some(connection) = self.ctx.connections.get_mut(id.0)
            && connection.phase == Phase::Lingering
            && connection.readable
        {
            if budget == 0 {
                self.ctx.make_ready(id);
                return;
            }
            let Some(fd) = self.fds.get(id.index()).and_then(Option::as_ref) else {
                return;
            };
            match self.kernel.recv(fd, &mut self.read_buffer) {
                Ok(0) => self.ctx.kill(id, CloseReason::Local),
                Ok(count) => {
                    budget = budget.saturating_sub(count);
                    connection.active = self.ctx.clock.now;
                    connection.discarded += count;
                    if connection.discarded > connection.linger_bytes(&self.ctx.limits) {
                        self.ctx.kill(id, CloseReason::Local);
                    }
                }
                Err(errno) => match reaction(Call::Recv, errno) {
                    Reaction::Retry => (),
                    Reaction::WaitForEdge => connection.readable = false,
                    _ => self.fail(id, errno),
                },
            }
        }
    }

    /// When connections hold more than [`Limits::memory`](crate::Limits::memory), or something could not be sent for
    /// want of it, closes those that hold most, until an eighth of it is free: whoever comes next is not the one to
    /// blame, and the search is made once for each eighth that fills.
    #[inline]
    pub(crate) fn relieve_memory(&mut self) {
        if self.ctx.short_of_memory || self.ctx.buffered() > self.ctx.limits.memory {
            self.close_largest();
        }
    }

    #[cold]
    fn close_largest(&mut self) {
        let memory = self.ctx.limits.memory;
        self.ctx.short_of_memory = false;
        let enough = memory - memory / 8;
        let mut holders: Vec<(usize, ConnId)> = Vec::new();
        self.for_each_connection(|reactor, id| {
            let held = reactor.ctx.connections.get(id.0).map_or(0, Connection::keeps_from_being_freed);
            if held > 0 {
                holders.push((held, id));
            }
        });
        holders.sort_unstable_by(|one, other| other.cmp(one));
        let mut closed = 0;
        for (_, id) in holders {
            if self.ctx.buffered() <= enough {
                break;
            }
            self.ctx.kill(id, CloseReason::MemoryLimit);
            self.ctx.release(id);
            closed += 1;
        }
        if closed > 0 {
            log::warn!(
                "memory limit of {memory} bytes reached: the {closed} connections that held most are closed"
            );
        }
    }

    /// Takes apart the connections that ended in this turn, and tells the handler. Nothing in this turn can
    /// meet their slots' next owners.
    pub(crate) fn reap(&mut self) {
        let mut freed = false;
        for id in std::mem::take(&mut self.ctx.dead) {
            let Some(mut connection) = self.ctx.connections.remove(id.0) else { continue };
            let fd = self.fds.get_mut(id.index()).and_then(Option::take);
            let state = self.states.get_mut(id.index()).and_then(Option::take);
            if let Some(fd) = fd {
                freed = true;
                self.close_descriptor(fd, connection.reset_on_close);
            }
            let unsent = connection.discarded + connection.queued();
            self.ctx.admission.leave(&self.ctx.limits, &connection);
            self.ctx.buffered -= connection.memory();
            if let Some(queue) = connection.output.take() {
                self.ctx.pool.put(queue);
            }
            if connection.refused {
                continue;
            }
            self.ctx.metrics.note_close(connection.reason.unwrap_or(CloseReason::Local));
            self.ctx.recorder.closed(id.0, connection.reason.unwrap_or(CloseReason::Local));
            let stats = CloseStats {
                bytes_received: connection.bytes_received,
                bytes_sent: connection.bytes_sent,
                bytes_unsent: unsent as u64,
                open_for: self.ctx.now() - connection.opened,
            };
            let (state, reason) =
                (state.unwrap_or_default(), connection.reason.unwrap_or(CloseReason::Local));
            self.ctx.parting = Some((id, connection.peer));
            self.call(Callback::Close, Some(id), |handler, ctx| {
                handler.on_close(ctx, id, state, reason, &stats);
            });
            self.ctx.parting = None;
        }
        self.resume_listeners(freed);
    }

    fn close_descriptor(&self, fd: K::Fd, reset: bool) {
        if reset {
            // A socket that cannot be told to is closed the ordinary way.
            let _: Result<(), Errno> = self.kernel.reset_on_close(&fd);
        }
        // Before it is closed: a duplicate of it elsewhere would keep its events coming.
        let _: Result<(), Errno> = self.kernel.delete(&fd);
        drop(fd);
    }

    /// Starts the drain that was asked for, and ends it when its time is up.
    pub(crate) fn drain_step(&mut self) {
        let Some(deadline) = self.ctx.drain_deadline else { return };
        match self.shutdown {
            Shutdown::No => {
                self.shutdown = Shutdown::Closing;
                self.accept_the_rest();
                self.take_over_the_rest();
                self.close_listeners();
                self.for_each_connection(Self::give_up_connecting);
                if self.ctx.connections.len() == 0 {
                    self.begin_draining(deadline);
                }
            }
            // A turn later, with all events seen: requests that had arrived are not idle connections.
            Shutdown::Closing if self.put_off == 0 => {
                self.begin_draining(deadline);
                self.for_each_connection(|reactor, id| reactor.tell_of_drain(id, deadline));
            }
            Shutdown::Draining => {
                self.untold.1 = self.untold.1.saturating_sub(1);
                for id in std::mem::take(&mut self.untold.0) {
                    self.tell_of_drain(id, deadline);
                }
            }
            Shutdown::Closing | Shutdown::Done(_) => (),
        }
        if self.forced || deadline <= self.ctx.now() {
            if self.shutdown == Shutdown::Closing {
                self.begin_draining(deadline);
            }
            // What earlier turns have left has not been offered to the kernel yet.
            self.flush_dirty();
            self.for_each_connection(|reactor, id| {
                let connection = reactor.ctx.connections.get(id.0);
                if connection.is_some_and(|it| it.phase != Phase::Dead && !it.refused) {
                    reactor.ctx.metrics.cut_off.add(1);
                }
                reactor.ctx.kill(id, CloseReason::Shutdown);
            });
        }
    }

    fn begin_draining(&mut self, deadline: Timestamp) {
        self.shutdown = Shutdown::Draining;
        self.call(Callback::Stopping, None, |handler, ctx| handler.on_stopping(ctx, deadline));
    }

    fn tell_of_drain(&mut self, id: ConnId, deadline: Timestamp) {
        match self.ctx.connections.get(id.0) {
            Some(connection) if connection.in_ready && self.untold.1 > 0 => self.untold.0.push(id),
            Some(connection) if connection.phase == Phase::Open => {
                self.callback(Callback::Shutdown, id, |handler, ctx, state| {
                    handler.on_shutdown(ctx, id, state, deadline);
                });
            }
            _ => (),
        }
    }

    /// One that has been closed already is still to deliver its output, if it can be connected.
    fn give_up_connecting(&mut self, id: ConnId) {
        let connecting = |it: &Connection| it.phase == Phase::Connecting && it.reason.is_none();
        if self.ctx.connections.get(id.0).is_some_and(connecting) {
            self.ctx.kill(id, CloseReason::Shutdown);
        }
    }

    fn for_each_connection(&mut self, mut call: impl FnMut(&mut Self, ConnId)) {
        for index in 0..self.ctx.connections.end() {
            if let Some(token) = self.ctx.connections.token_at(index) {
                call(self, ConnId(token));
            }
        }
    }
}
