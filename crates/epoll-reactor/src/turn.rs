//! The turn, phase by phase: `timeout from timers and the ready list -> wait -> read the clock -> dispatch ->
//! messages from other threads -> timers -> drain -> requests -> flush dirty -> moves -> reap -> read the clock
//! if anything was done`. What happens to one connection is in `serve.rs`.
//!
//! A turn flushes no more than its share of the dirty connections (`flush.rs`, `flush_dirty`). While some are left, turns do not
//! wait: what has come meanwhile is dispatched between the writes to a thousand receivers, and leaves with them.

use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use epoll_sys::{Call, Errno, Kernel, Reaction, Readiness, Signal, Timestamp, reaction};

use crate::connection::Due;
use crate::ctx::Ctx;
use crate::handler::{CloseReason, Handler, Source, SourceCalls};
use crate::limits::PanicPolicy;
use crate::metrics::LoopPhase;
use crate::reactor::{OnSignal, Reactor, Registration, Shutdown, Stopped};
use crate::recorder::Callback;
use crate::token::{ConnId, SourceId, Token};

/// Room for this many events to begin with, and at most.
pub(crate) const EVENTS: (usize, usize) = (256, 16 * 1024);

/// How many turns in a row may put deadlines off: enough for the room to grow to its most.
const MOST_PUT_OFF: u32 = 8;

/// What a [`turn`](Reactor::turn) came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There is more to come.
    Continue,
    /// The reactor has drained; further turns do nothing.
    Stopped(Stopped),
}

impl<H: Handler, K: Kernel> Reactor<H, K> {
    /// One turn: waits until something happens, a deadline comes or `max_wait` has passed, and deals with
    /// all of it. A signal that interrupts the wait makes a turn without events, and the next one waits for
    /// the time that is left.
    ///
    /// # Errors
    /// As for [`run`](Self::run). The turn was not finished then, and every further one is an error too.
    pub fn turn(&mut self, max_wait: Option<Duration>) -> io::Result<Turn> {
        if let Shutdown::Done(stopped) = self.shutdown {
            return Ok(Turn::Stopped(stopped));
        }
        if std::mem::replace(&mut self.in_turn, true) {
            return Err(io::Error::other(
                "an earlier turn ended in an error or a panic; the reactor cannot go on",
            ));
        }
        self.ctx.metrics.note_phase(LoopPhase::Running);
        let left_over = self.has_work();
        let timeout = if left_over { Some(Duration::ZERO) } else { self.timeout(max_wait) };
        let (saw_all, at_once) = match self.ctx.overload {
            None => (self.wait(timeout)?, timeout == Some(Duration::ZERO)),
            Some(_) => self.look_and_wait(timeout)?,
        };
        self.ctx.clock.advance(self.kernel.now(), || self.kernel.wall_clock());
        let began = self.ctx.now();
        self.ctx.recorder.now = began;
        self.ctx.metrics.in_turn_since.set(began.as_nanoseconds());
        if !self.events.is_empty() {
            self.ctx.metrics.note_wait(self.last_turn, began, at_once);
        }
        if self.ctx.overload.is_some() {
            self.judge_lag(at_once);
        }
        self.ctx.metrics.turns.add(1);
        let deadline_passed = self.notice_deadline();
        let busy = left_over || !self.events.is_empty() || deadline_passed;
        self.memory_mark = self.ctx.limits.memory / 2;
        self.callbacks = 0;
        self.dispatch()?;
        self.deliver_messages();
        self.fire_timers(saw_all);
        self.drain_step();
        self.carry_out_requests();
        self.flush_dirty();
        self.relieve_memory();
        if self.ctx.mover.is_some() {
            self.move_some();
        }
        self.reap();
        self.last_turn = (began, began);
        if busy {
            let ended = self.kernel.now().max(began);
            self.last_turn.1 = ended;
            self.note_turn(began, ended);
        }
        self.ctx.metrics.buffered.set(self.ctx.buffered() as u64);
        self.ctx.metrics.in_turn_since.set(0);
        self.in_turn = false;
        Ok(self.finish_turn())
    }

    /// Says whether the kernel has told all there was to tell: it has not if it was interrupted, or ran out of
    /// room for events.
    pub(crate) fn wait(&mut self, timeout: Option<Duration>) -> io::Result<bool> {
        match self.kernel.wait(&mut self.events, timeout) {
            Ok(()) => Ok(!self.events.grow_if_full(EVENTS.1)),
            Err(errno) if reaction(Call::Wait, errno) == Reaction::EndLoop => Err(errno.into()),
            Err(_) => Ok(false),
        }
    }

    /// Whether earlier turns, or calls between turns, have left something to do: the next turn does not wait.
    pub(crate) fn has_work(&self) -> bool {
        let ctx = &self.ctx;
        !ctx.ready.is_empty()
            || !ctx.dirty.is_empty()
            || !ctx.dead.is_empty()
            || !ctx.to_connect.is_empty()
            || !ctx.to_unwatch.is_empty()
            || self.more_messages
            || (ctx.is_draining() && matches!(self.shutdown, Shutdown::No | Shutdown::Closing))
    }

    /// How long nothing can happen but by an event.
    fn timeout(&self, max_wait: Option<Duration>) -> Option<Duration> {
        let until_deadline = self.next_deadline().map(|at| at - self.ctx.now());
        [until_deadline, max_wait].into_iter().flatten().min()
    }

    pub(crate) fn next_deadline(&self) -> Option<Timestamp> {
        let ctx = &self.ctx;
        [ctx.timers.next(), self.next_tick, self.accept_retry, ctx.drain_deadline].into_iter().flatten().min()
    }

    /// Serves what the kernel reports, and what was left ready by earlier turns, each connection at most
    /// once.
    fn dispatch(&mut self) -> io::Result<()> {
        let left_over = self.ctx.ready.len();
        // An overloaded loop keeps nobody waiting for the answers to others.
        self.ctx.batching = self.events.len() + left_over > 1 && !self.ctx.is_overloaded();
        for position in 0..self.events.len() {
            let Some(event) = self.events.get(position) else { break };
            self.ctx.metrics.events.add(1);
            let token = Token::from_u64(event.token);
            if self.ctx.recorder.is_on() {
                self.ctx.recorder.event(token, event.readiness);
            }
            match token.registration() {
                None => self.on_event(ConnId(token), event.readiness),
                Some(registration) => self.on_registration(registration, event.readiness)?,
            }
        }
        for _ in 0..left_over {
            let Some(token) = self.ctx.ready.pop_front() else { break };
            match token.registration() {
                None => self.serve_ready(ConnId(token)),
                Some(registration) => self.accept_ready(registration)?,
            }
        }
        self.ctx.batching = false;
        self.send_batch();
        Ok(())
    }

    fn on_registration(&mut self, token: Token, readiness: Readiness) -> io::Result<()> {
        match self.registrations.get_mut(token) {
            None => self.ctx.metrics.stale_events.add(1),
            // The messages have a phase of their own.
            Some(Registration::Waker) => (),
            Some(Registration::Listener(listener)) => {
                if listener.note_edge() {
                    self.accept_ready(token)?;
                }
            }
            Some(Registration::Signals(..)) => self.take_signals(token),
            Some(Registration::Source(fd)) => {
                self.callbacks += 1;
                let calls = Lent { kernel: &self.kernel, fd };
                let (handler, ctx) = (&mut self.handler, &mut self.ctx);
                if ctx.recorder.is_timed {
                    ctx.recorder.now = self.kernel.now();
                }
                let result = guarded(ctx, |ctx| {
                    handler.on_ready(ctx, SourceId(token), &Source::new(&calls), readiness);
                });
                self.has_called(Callback::Ready, Some(token.into_registration()), result.is_none());
                self.flush_overdue();
            }
        }
        Ok(())
    }

    fn take_signals(&mut self, token: Token) {
        let (mut told, mut inspect) = (Vec::new(), false);
        loop {
            let Some(Registration::Signals(fd, what)) = self.registrations.get(token) else { return };
            match (self.kernel.read_signal(fd), *what) {
                (Ok(Some(signal)), OnSignal::Drain) => self.drain_at(signal),
                (Ok(Some(signal)), OnSignal::Tell) if told.contains(&signal) => (),
                (Ok(Some(signal)), OnSignal::Tell) => told.push(signal),
                (Ok(Some(_)), OnSignal::Inspect) => inspect = true,
                (Err(Errno::EINTR), _) => (),
                (Ok(None) | Err(_), _) => break,
            }
        }
        if inspect && let Some(hook) = self.signal_hook.take() {
            self.call(Callback::Inspection, None, |_, ctx| hook(ctx));
            self.signal_hook = Some(hook);
        }
        // Behind the reading: a callback that raises one has it in a later turn, and not for ever in this one.
        for signal in told {
            self.call(Callback::Signal, None, |handler, ctx| handler.on_signal(ctx, signal));
        }
    }

    fn drain_at(&mut self, signal: Signal) {
        if std::mem::replace(&mut self.signalled, true) {
            log::warn!("{signal} again: closing all connections");
            self.forced = true;
        } else {
            log::info!("{signal}: draining for up to {:?}", self.ctx.limits.drain_grace);
            self.ctx.drain(self.ctx.limits.drain_grace);
        }
    }

    fn deliver_messages(&mut self) {
        if self.remote.shared().is_wake_pending() || self.more_messages {
            self.take_messages(self.ctx.limits.message_budget);
        }
        // Behind the above, which clears the flag: what was asked for before that may have sent no wake of its own.
        let orders = self.remote.shared().orders();
        if orders.drain() && !self.ctx.is_draining() {
            let grace = self.remote.shared().drain_deadline().map(|at| at - self.ctx.now());
            self.ctx.drain(grace.unwrap_or(self.ctx.limits.drain_grace));
        }
        self.forced |= orders.force();
    }

    /// Hands over up to `budget` messages.
    fn take_messages(&mut self, budget: usize) {
        let taken = self.remote.shared().take(budget, self.ctx.limits.accept_budget, &mut self.inbox);
        self.more_messages = taken.more;
        self.take_over(taken.handed);
        for inspection in taken.inspections {
            self.call(Callback::Inspection, None, |_, ctx| inspection(ctx));
        }
        while let Some(message) = self.inbox.pop_front() {
            self.ctx.metrics.messages.add(1);
            self.call(Callback::Message, None, |handler, ctx| handler.on_message(ctx, message));
        }
    }

    /// Deadlines are looked at only when all events are known: a process that was stopped, or a loop that was
    /// held up, finds every deadline passed, and behind it in the kernel the bytes that would have moved
    /// it. Not for ever, though: a loop that never knows all still has deadlines.
    fn fire_timers(&mut self, saw_all: bool) {
        if !saw_all && self.put_off < MOST_PUT_OFF {
            self.put_off += 1;
            return;
        }
        self.put_off = 0;
        let now = self.ctx.now();
        while let Some((at, index)) = self.ctx.timers.pop_due(now) {
            if let Some(token) = self.ctx.connections.token_at(index as usize) {
                self.check_deadline(at, ConnId(token));
            }
        }
        if let Some(period) = self.ctx.limits.tick
            && self.next_tick.is_some_and(|at| at <= now)
        {
            self.next_tick = Some(now + period);
            self.call(Callback::Tick, None, |handler, ctx| handler.on_tick(ctx));
        }
    }

    /// An entry of the heap has come up: finds out what the connection says of it now.
    fn check_deadline(&mut self, at: Timestamp, id: ConnId) {
        let now = self.ctx.now();
        let Some(connection) = self.ctx.connections.get_mut(id.0) else { return };
        if connection.armed != Some(at) {
            return;
        }
        connection.armed = None;
        if connection.in_dirty {
            // It may be one of many that are still to be written to, which is no silence of its own.
            self.flush(id);
        }
        let Some(connection) = self.ctx.connections.get_mut(id.0) else { return };
        match connection.due(&self.ctx.limits, now) {
            Due::Nothing => (),
            Due::Timer => {
                connection.timer = None;
                self.ctx.metrics.timers_fired.add(1);
                self.callback(Callback::Timer, id, |handler, ctx, state| handler.on_timer(ctx, id, state));
            }
            Due::Close(reason) => {
                self.ctx.metrics.timers_fired.add(1);
                if reason == CloseReason::ReadTimeout {
                    // Answers to what it sent before may be on their way.
                    self.ctx.end(id, reason);
                } else {
                    self.ctx.kill(id, reason);
                }
            }
        }
        self.ctx.arm(id);
    }

    /// Outbound connections and descriptors to let go of, as callbacks have asked.
    fn carry_out_requests(&mut self) {
        for id in std::mem::take(&mut self.ctx.to_connect) {
            self.start_connect(id);
        }
        for id in std::mem::take(&mut self.ctx.to_unwatch) {
            if let Some(Registration::Source(_)) = self.registrations.get(id.0)
                && let Some(Registration::Source(fd)) = self.registrations.remove(id.0)
            {
                // The descriptor is given up; whatever the kernel says of it does not matter.
                let _: Result<(), Errno> = self.kernel.delete(&fd);
            }
        }
    }

    fn finish_turn(&mut self) -> Turn {
        if self.shutdown != Shutdown::Draining || self.ctx.connections.len() > 0 {
            return Turn::Continue;
        }
        // Every message that was accepted is delivered, though all it can do is count.
        self.remote.shared().close();
        self.take_messages(usize::MAX);
        let stopped = if self.forced {
            Stopped::Forced
        } else if self.ctx.metrics.cut_off.get() > 0 {
            Stopped::DeadlinePassed
        } else {
            Stopped::Drained
        };
        self.shutdown = Shutdown::Done(stopped);
        self.end_overload();
        self.ctx.metrics.note_phase(LoopPhase::Ended);
        Turn::Stopped(stopped)
    }

    /// A callback has returned or panicked.
    #[inline]
    fn has_called(&mut self, what: Callback, about: Option<Token>, panicked: bool) {
        if self.ctx.recorder.is_on() {
            self.ctx.recorder.callback(what, about, self.kernel.now(), panicked);
        }
        if panicked {
            self.tell_of_panic();
        }
    }

    /// Lets the [hook](Self::on_panic) look at the loop, so soon that the recorder ends with the callback that panicked.
    #[cold]
    pub(crate) fn tell_of_panic(&mut self) {
        if let Some(hook) = &self.panic_hook
            && catch_unwind(AssertUnwindSafe(|| hook(&self.ctx))).is_err()
        {
            log::error!("the hook for panics panicked");
        }
    }

    /// Calls the handler for something that is no connection's.
    pub(crate) fn call(
        &mut self,
        what: Callback,
        about: Option<ConnId>,
        call: impl FnOnce(&mut H, &mut Ctx),
    ) {
        self.callbacks += 1;
        if self.ctx.recorder.is_timed {
            self.ctx.recorder.now = self.kernel.now();
        }
        let handler = &mut self.handler;
        let result = guarded(&mut self.ctx, |ctx| call(handler, ctx));
        self.has_called(what, about.map(|id| id.0), result.is_none());
        self.flush_overdue();
    }

    /// Calls the handler for `id` and sends what it has to say to that connection. `None` if it panicked or
    /// the connection is gone.
    pub(crate) fn callback<R>(
        &mut self,
        what: Callback,
        id: ConnId,
        call: impl FnOnce(&mut H, &mut Ctx, &mut H::Conn) -> R,
    ) -> Option<R> {
        let state = self.states.get_mut(id.index())?.as_mut()?;
        self.callbacks += 1;
        self.ctx.current = Some(id);
        let handler = &mut self.handler;
        if self.ctx.recorder.is_timed {
            self.ctx.recorder.now = self.kernel.now();
        }
        let result = guarded(&mut self.ctx, |ctx| call(handler, ctx, state));
        self.has_called(what, Some(id.0), result.is_none());
        if result.is_some() {
            self.send_direct(id);
        } else {
            self.ctx.direct.clear();
            // What an earlier callback of this turn has said is not this one's to lose.
            self.send_batch();
            self.ctx.kill(id, CloseReason::HandlerPanicked);
        }
        self.ctx.current = None;
        self.flush_overdue();
        result
    }
}

/// Runs a callback under the [`PanicPolicy`]; `None` if it panicked.
pub(crate) fn guarded<R>(ctx: &mut Ctx, call: impl FnOnce(&mut Ctx) -> R) -> Option<R> {
    if ctx.limits.panics == PanicPolicy::Propagate {
        return Some(call(ctx));
    }
    // What a panic leaves half done is the handler's own state, which the policy says it must live with;
    // each method of `Ctx` leaves the context whole.
    match catch_unwind(AssertUnwindSafe(|| call(ctx))) {
        Ok(result) => Some(result),
        Err(_) => {
            ctx.metrics.panics.add(1);
            match ctx.current {
                Some(id) => log::error!("a callback for connection {id} panicked; closing it"),
                None => log::error!("a callback panicked"),
            }
            None
        }
    }
}

struct Lent<'fd, K: Kernel> {
    kernel: &'fd K,
    fd: &'fd K::Fd,
}

impl<K: Kernel> SourceCalls for Lent<'_, K> {
    fn read(&self, buffer: &mut [u8]) -> Result<usize, Errno> {
        self.kernel.read(self.fd, buffer)
    }

    fn write(&self, data: &[u8]) -> Result<usize, Errno> {
        self.kernel.write(self.fd, data)
    }

    fn as_raw(&self) -> Option<BorrowedFd<'_>> {
        self.kernel.as_raw(self.fd)
    }
}
