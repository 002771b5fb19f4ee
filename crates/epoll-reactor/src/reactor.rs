//! The loop: what it owns, and the turn, phase by phase. What happens to one connection is in `serve.rs`, to a
//! listener in `listener.rs`, at the end of a life in `close.rs`.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use epoll_sys::{
    Address, Call, Errno, Events, Interest, Kernel, Linux, ListenOptions, Reaction, Signal, Timestamp,
    reaction,
};

use crate::connection::Due;
use crate::ctx::{Clock, Ctx};
use crate::handler::{Handler, Source, SourceCalls};
use crate::limits::{Limits, PanicPolicy};
use crate::listener::Listener;
use crate::remote::Remote;
use crate::slab::Slab;
use crate::token::{ConnId, ListenerId, SourceId, Token};

/// Room for this many events to begin with, and at most.
const EVENTS: (usize, usize) = (256, 16 * 1024);

/// An event loop with its connections, listeners and handler. It belongs to one thread.
///
/// `K` is the kernel it runs on; leave it at its default. Dropping a reactor closes everything without
/// calling the handler; [`run`](Self::run) to its end instead, to have each connection told.
pub struct Reactor<H: Handler, K: Kernel = Linux> {
    pub(crate) kernel: K,
    pub(crate) handler: H,
    pub(crate) ctx: Ctx,
    /// The descriptor and the handler's state of each connection, under the index of its id.
    pub(crate) sides: Vec<Option<Side<K::Fd, H::Conn>>>,
    pub(crate) registrations: Slab<Registration<K::Fd>>,
    pub(crate) read_buffer: Vec<u8>,
    /// Held so that it can be given up when there are no others: see `listener.rs`.
    pub(crate) spare: Option<K::Fd>,
    pub(crate) shutdown: Shutdown,
    /// A second signal has come: no more grace.
    pub(crate) forced: bool,
    events: Events,
    remote: Remote<H::Message, K>,
    /// Empty between turns; kept for its room.
    inbox: VecDeque<H::Message>,
    /// More than the budget of messages was waiting.
    more_messages: bool,
    next_tick: Option<Timestamp>,
}

/// What the loop keeps of a connection out of reach of [`Ctx`].
pub(crate) struct Side<F, C> {
    /// `None` until an outbound connection has been started.
    pub(crate) fd: Option<F>,
    pub(crate) state: C,
}

/// Everything with a descriptor that is not a connection.
pub(crate) enum Registration<F> {
    Waker,
    Signals(F),
    Listener(Listener<F>),
    Source(F),
}

/// How far a shutdown has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shutdown {
    No,
    Draining,
    Done(Stopped),
}

/// How a reactor ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stopped {
    /// Every connection ended by itself.
    Drained,
    /// The grace had passed and connections that were still open were closed.
    DeadlinePassed,
    /// A second signal closed the connections that were still open.
    Forced,
}

/// What a [`turn`](Reactor::turn) came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Turn {
    /// There is more to come.
    Continue,
    /// The reactor has drained; further turns do nothing.
    Stopped(Stopped),
}

impl<H: Handler> Reactor<H> {
    /// A loop on the real kernel.
    ///
    /// # Errors
    /// Limits that contradict each other (`InvalidInput`), or no descriptors for the loop's own three.
    pub fn new(handler: H, limits: Limits) -> io::Result<Self> {
        Self::with_kernel(Linux::new()?, handler, limits)
    }
}

impl<H: Handler, K: Kernel> Reactor<H, K> {
    /// A loop on the given kernel.
    ///
    /// # Errors
    /// As for [`new`](Reactor::new).
    pub fn with_kernel(kernel: K, handler: H, limits: Limits) -> io::Result<Self> {
        limits.check().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
        let remote = Remote::new(kernel.eventfd()?, limits.message_queue);
        let mut registrations = Slab::new();
        let waker = insert(&mut registrations, Registration::Waker)?;
        kernel.add(&remote.shared().eventfd, Interest::Readable, waker.into_registration().as_u64())?;
        let clock = Clock::new(kernel.now(), kernel.wall_clock());
        Ok(Self {
            spare: Some(kernel.eventfd()?),
            read_buffer: vec![0; limits.read_buffer],
            next_tick: limits.tick.map(|period| kernel.now() + period),
            ctx: Ctx::new(limits, clock),
            sides: Vec::new(),
            registrations,
            shutdown: Shutdown::No,
            forced: false,
            events: Events::with_capacity(EVENTS.0),
            remote,
            inbox: VecDeque::new(),
            more_messages: false,
            kernel,
            handler,
        })
    }

    /// Listens on `address`; any number of listeners of any kind may share the loop. Returns its id and the
    /// address it is bound to, with the real port where 0 was asked for.
    ///
    /// # Errors
    /// Whatever keeps the address from being listened on, naming it: `AddrInUse`, `AddrNotAvailable`,
    /// `PermissionDenied` and others.
    pub fn listen(
        &mut self,
        address: &Address,
        options: &ListenOptions,
    ) -> io::Result<(ListenerId, Address)> {
        let named = |errno: Errno| {
            let kind = io::Error::from(errno).kind();
            io::Error::new(kind, format!("cannot listen on {address}: {}", errno.desc()))
        };
        let fd = self.kernel.listen(address, options).map_err(named)?;
        let bound = self.kernel.local_address(&fd).map_err(named)?;
        let listener = Registration::Listener(Listener::new(fd, bound.clone()));
        let id = self.register(listener, Interest::Readable).map_err(named)?;
        Ok((ListenerId(id), bound))
    }

    /// Watches any other descriptor: a pipe, a timerfd, an inotify instance. It must be non-blocking.
    /// [`on_ready`](Handler::on_ready) is called when it is ready; the loop owns it until
    /// [`Ctx::unwatch`].
    ///
    /// # Errors
    /// `PermissionDenied` (`EPERM`): regular files and directories cannot be waited for. `OutOfMemory`, `StorageFull`:
    /// the kernel's limits of epoll(7).
    pub fn watch(&mut self, fd: K::Fd, interest: Interest) -> io::Result<SourceId> {
        Ok(SourceId(self.register(Registration::Source(fd), interest)?))
    }

    /// Drains at the first of `signals` and forces the end at the second. They must be blocked in every
    /// thread: call [`block_signals`](crate::block_signals) before any other thread is started.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn drain_on_signals(&mut self, signals: &[Signal]) -> io::Result<()> {
        let fd = self.kernel.signalfd(signals)?;
        self.register(Registration::Signals(fd), Interest::Readable)?;
        Ok(())
    }

    /// A way in for other threads.
    #[must_use]
    pub fn remote(&self) -> Remote<H::Message, K> {
        self.remote.clone()
    }

    /// What callbacks are given, for use between turns: to connect before the loop starts, for instance.
    pub const fn ctx(&mut self) -> &mut Ctx {
        &mut self.ctx
    }

    /// The handler, between turns.
    pub const fn handler(&mut self) -> &mut H {
        &mut self.handler
    }

    /// Takes turns until the loop has drained.
    ///
    /// # Errors
    /// epoll_wait(2) or accept4(2) reports that this program is broken (`EBADF` and its like); no error of a
    /// connection does that.
    pub fn run(&mut self) -> io::Result<Stopped> {
        loop {
            if let Turn::Stopped(stopped) = self.turn(None)? {
                return Ok(stopped);
            }
        }
    }

    /// One turn: waits until something happens, a deadline comes or `max_wait` has passed, and deals with
    /// all of it. A signal that interrupts the wait makes a turn without events, and the next one waits for
    /// the time that is left.
    ///
    /// # Errors
    /// As for [`run`](Self::run).
    pub fn turn(&mut self, max_wait: Option<Duration>) -> io::Result<Turn> {
        if let Shutdown::Done(stopped) = self.shutdown {
            return Ok(Turn::Stopped(stopped));
        }
        self.wait(max_wait)?;
        self.ctx.clock.advance(self.kernel.now(), || self.kernel.wall_clock());
        self.ctx.counters.turns += 1;
        self.dispatch()?;
        self.deliver_messages();
        self.fire_timers();
        self.drain_step();
        self.carry_out_requests();
        self.flush_dirty();
        self.reap();
        Ok(self.finish_turn())
    }

    fn wait(&mut self, max_wait: Option<Duration>) -> io::Result<()> {
        let timeout = self.timeout(max_wait);
        match self.kernel.wait(&mut self.events, timeout) {
            Err(errno) if reaction(Call::Wait, errno) == Reaction::EndLoop => Err(errno.into()),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// How long nothing can happen but by an event.
    fn timeout(&self, max_wait: Option<Duration>) -> Option<Duration> {
        let ctx = &self.ctx;
        let busy = !ctx.ready.is_empty()
            || !ctx.dirty.is_empty()
            || !ctx.dead.is_empty()
            || !ctx.to_connect.is_empty()
            || self.more_messages
            || (ctx.is_draining() && self.shutdown == Shutdown::No);
        if busy {
            return Some(Duration::ZERO);
        }
        let retry = self.accept_retry();
        let deadline =
            [ctx.timers.next(), self.next_tick, retry, ctx.drain_deadline].into_iter().flatten().min();
        let until_deadline = deadline.map(|at| at - ctx.now());
        [until_deadline, max_wait].into_iter().flatten().min()
    }

    /// Serves what the kernel reports, and what was left ready by earlier turns, each connection at most
    /// once.
    fn dispatch(&mut self) -> io::Result<()> {
        let left_over = self.ctx.ready.len();
        for position in 0..self.events.len() {
            let Some(event) = self.events.get(position) else { break };
            self.ctx.counters.events += 1;
            let token = Token::from_u64(event.token);
            match token.registration() {
                None => self.on_event(ConnId(token), event.readiness),
                Some(registration) => self.on_registration(registration, event.readiness)?,
            }
        }
        self.events.grow_if_full(EVENTS.1);
        for _ in 0..left_over {
            let Some(token) = self.ctx.ready.pop_front() else { break };
            match token.registration() {
                None => self.serve_ready(ConnId(token)),
                Some(registration) => self.accept_ready(registration)?,
            }
        }
        Ok(())
    }

    fn on_registration(&mut self, token: Token, readiness: epoll_sys::Readiness) -> io::Result<()> {
        match self.registrations.get_mut(token) {
            None => self.ctx.counters.stale_events += 1,
            // The messages have a phase of their own.
            Some(Registration::Waker) => (),
            Some(Registration::Listener(listener)) => {
                if listener.note_edge() {
                    self.accept_ready(token)?;
                }
            }
            Some(Registration::Signals(fd)) => {
                while let Ok(Some(signal)) = self.kernel.read_signal(fd) {
                    if self.ctx.is_draining() {
                        log::warn!("second signal ({signal:?}): closing all connections");
                        self.forced = true;
                    } else {
                        log::info!("{signal:?}: draining for up to {:?}", self.ctx.limits.drain_grace);
                        self.ctx.drain(self.ctx.limits.drain_grace);
                    }
                }
            }
            Some(Registration::Source(fd)) => {
                let calls = Lent { kernel: &self.kernel, fd };
                let (handler, ctx) = (&mut self.handler, &mut self.ctx);
                guarded(ctx, |ctx| handler.on_ready(ctx, SourceId(token), &Source::new(&calls), readiness));
            }
        }
        Ok(())
    }

    fn deliver_messages(&mut self) {
        if self.remote.shared().is_drain_requested() && !self.ctx.is_draining() {
            self.ctx.drain(self.ctx.limits.drain_grace);
        }
        let budget = self.ctx.limits.message_budget;
        if self.remote.shared().is_wake_pending() || self.more_messages {
            self.take_messages(budget);
        }
    }

    /// Hands over up to `budget` messages.
    fn take_messages(&mut self, budget: usize) {
        self.more_messages = self.remote.shared().take(budget, &mut self.inbox);
        while let Some(message) = self.inbox.pop_front() {
            self.ctx.counters.messages += 1;
            let handler = &mut self.handler;
            guarded(&mut self.ctx, |ctx| handler.on_message(ctx, message));
        }
    }

    fn fire_timers(&mut self) {
        let now = self.ctx.now();
        while let Some((at, id)) = self.ctx.timers.pop_due(now) {
            self.check_deadline(at, id);
        }
        if let Some(period) = self.ctx.limits.tick
            && self.next_tick.is_some_and(|at| at <= now)
        {
            self.next_tick = Some(now + period);
            let handler = &mut self.handler;
            guarded(&mut self.ctx, |ctx| handler.on_tick(ctx));
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
        match connection.due(&self.ctx.limits, now) {
            Due::Nothing => (),
            Due::Timer => {
                connection.timer = None;
                self.ctx.counters.timers_fired += 1;
                self.callback(id, |handler, ctx, state| handler.on_timer(ctx, id, state));
            }
            Due::Close(reason) => {
                self.ctx.counters.timers_fired += 1;
                self.ctx.kill(id, reason);
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
        if self.shutdown == Shutdown::No || self.ctx.connections.len() > 0 {
            return Turn::Continue;
        }
        // Every message that was accepted is delivered, though all it can do is count.
        self.remote.shared().close();
        self.take_messages(usize::MAX);
        let past_deadline = self.ctx.drain_deadline.is_some_and(|deadline| deadline <= self.ctx.now());
        let stopped = if self.forced {
            Stopped::Forced
        } else if past_deadline {
            Stopped::DeadlinePassed
        } else {
            Stopped::Drained
        };
        self.shutdown = Shutdown::Done(stopped);
        Turn::Stopped(stopped)
    }

    /// Calls the handler for `id` and sends what it has to say to that connection. `None` if it panicked or
    /// the connection is gone.
    pub(crate) fn callback<R>(
        &mut self,
        id: ConnId,
        call: impl FnOnce(&mut H, &mut Ctx, &mut H::Conn) -> R,
    ) -> Option<R> {
        let side = self.sides.get_mut(id.index())?.as_mut()?;
        self.ctx.current = Some(id);
        // Something is left in it only if a panic went through here, by policy.
        self.ctx.direct.clear();
        let (handler, state) = (&mut self.handler, &mut side.state);
        let result = guarded(&mut self.ctx, |ctx| call(handler, ctx, state));
        if result.is_some() {
            self.send_direct(id);
        } else {
            self.ctx.direct.clear();
            self.ctx.kill(id, crate::CloseReason::HandlerPanicked);
        }
        self.ctx.current = None;
        result
    }

    fn register(&mut self, registration: Registration<K::Fd>, interest: Interest) -> Result<Token, Errno> {
        let token = self.registrations.insert(registration).ok_or(Errno::ENOMEM)?;
        let fd = match self.registrations.get(token) {
            Some(Registration::Signals(fd) | Registration::Source(fd)) => fd,
            Some(Registration::Listener(listener)) => &listener.fd,
            Some(Registration::Waker) | None => return Ok(token),
        };
        if let Err(errno) = self.kernel.add(fd, interest, token.into_registration().as_u64()) {
            self.registrations.remove(token);
            return Err(errno);
        }
        Ok(token)
    }
}

fn insert<F>(registrations: &mut Slab<Registration<F>>, registration: Registration<F>) -> io::Result<Token> {
    registrations.insert(registration).ok_or_else(|| Errno::ENOMEM.into())
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
            ctx.counters.panics += 1;
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

impl<H: Handler, K: Kernel> Drop for Reactor<H, K> {
    fn drop(&mut self) {
        self.remote.shared().close();
        self.close_listeners();
    }
}

impl<H: Handler, K: Kernel> fmt::Debug for Reactor<H, K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Reactor")
            .field("connections", &self.ctx.connections())
            .field("shutdown", &self.shutdown)
            .finish_non_exhaustive()
    }
}
