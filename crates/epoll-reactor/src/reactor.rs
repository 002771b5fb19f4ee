//! The loop: what it owns, how it is set up, and how it runs. A turn of it is in `turn.rs`.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;

use epoll_sys::{Address, Errno, Events, Interest, Kernel, Linux, ListenOptions, Signal, Timestamp};

use crate::clock::Clock;
use crate::ctx::Ctx;
use crate::handler::Handler;
use crate::late::Lateness;
use crate::limits::Limits;
use crate::listener::Listener;
use crate::metrics::LoopMetrics;
use crate::remote::Remote;
use crate::slab::Slab;
use crate::token::{ConnId, ListenerId, SourceId, Token};
use crate::turn::{EVENTS, Turn};
use crate::workers::Worker;

/// An event loop with its connections, listeners and handler. It belongs to one thread.
///
/// `K` is the kernel it runs on; leave it at its default. Dropping a reactor closes everything without
/// calling the handler; [`run`](Self::run) to its end instead, to have each connection told.
pub struct Reactor<H: Handler, K: Kernel = Linux> {
    pub(crate) kernel: K,
    pub(crate) handler: H,
    pub(crate) ctx: Ctx,
    /// The descriptor of each connection, under the index of its id; out of reach of [`Ctx`], as `states` is.
    pub(crate) fds: Vec<Option<K::Fd>>,
    /// The handler's state of each connection. `None` for one that was refused: no callback is called for it.
    pub(crate) states: Vec<Option<H::Conn>>,
    pub(crate) registrations: Slab<Registration<K::Fd>>,
    pub(crate) read_buffer: Vec<u8>,
    /// Held so that it can be given up when there are no others: see `listener.rs`.
    pub(crate) spare: Option<K::Fd>,
    /// When the first paused listener is to be tried again.
    pub(crate) accept_retry: Option<Timestamp>,
    pub(crate) shutdown: Shutdown,
    /// A second signal has come: no more grace.
    pub(crate) forced: bool,
    pub(crate) panic_hook: Option<Hook>,
    pub(crate) signal_hook: Option<Hook>,
    /// When the last turn began and ended.
    pub(crate) last_turn: (Timestamp, Timestamp),
    pub(crate) late: Lateness,
    /// More memory than this in use is reason to write before the end of the turn.
    pub(crate) memory_mark: usize,
    /// A signal that drains has come.
    pub(crate) signalled: bool,
    /// Turns in a row that have put deadlines off, since the kernel had not told all; 0 if this one has not.
    pub(crate) put_off: u32,
    /// Connections that have yet to be told of the drain, since they have work on the ready list, and for how
    /// many more turns that is respected.
    pub(crate) untold: (Vec<ConnId>, u32),
    /// Callbacks of this turn, and connections that it has served, or turned away, without one: what keeps the loop busy
    /// earns those who are to be written to a larger share.
    pub(crate) callbacks: usize,
    /// A turn has begun and not ended.
    pub(crate) in_turn: bool,
    pub(crate) events: Events,
    pub(crate) remote: Remote<H::Message, K>,
    /// Empty between turns; kept for its room.
    pub(crate) inbox: VecDeque<H::Message>,
    /// More than the budget of messages was waiting.
    pub(crate) more_messages: bool,
    pub(crate) next_tick: Option<Timestamp>,
    /// Among which loops new clients are to be spread evenly.
    pub(crate) others: Option<Worker<H::Message, K>>,
}

/// What is called to look at the loop when something has happened.
pub(crate) type Hook = Box<dyn Fn(&Ctx) + Send>;

/// A flood never comes to an end; requests that had arrived when a drain began do.
const MOST_TURNS_UNTOLD: u32 = 64;

/// Everything with a descriptor that is not a connection.
pub(crate) enum Registration<F> {
    Waker,
    Signals(F, OnSignal),
    Listener(Listener<F>),
    Source(F),
}

/// What a signal is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnSignal {
    /// The first drains, the second forces.
    Drain,
    /// The handler is told.
    Tell,
    /// The hook for it is called.
    Inspect,
}

/// How far a shutdown has got.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shutdown {
    No,
    /// Nothing new is accepted. What had arrived by then is served before connections are told.
    Closing,
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
        let remote = Remote::for_kernel(&kernel, &limits)?;
        Self::with_remote(kernel, handler, limits, remote)
    }

    /// A loop on the given kernel, with a way in that was [made before it](Remote::for_kernel).
    ///
    /// # Errors
    /// As for [`new`](Reactor::new); and `InvalidInput` if `remote` is another loop's already.
    pub fn with_remote(
        kernel: K,
        handler: H,
        limits: Limits,
        remote: Remote<H::Message, K>,
    ) -> io::Result<Self> {
        let refused = |error| io::Error::new(io::ErrorKind::InvalidInput, error);
        limits.check().map_err(|error| refused(error.to_string()))?;
        if !remote.shared().claim() {
            return Err(refused("this Remote is another loop's already".to_owned()));
        }
        let mut registrations = Slab::new();
        let waker = insert(&mut registrations, Registration::Waker)?;
        kernel.add(&remote.shared().eventfd, Interest::Readable, waker.into_registration().as_u64())?;
        let clock = Clock::new(kernel.now(), kernel.wall_clock());
        Ok(Self {
            spare: Some(kernel.eventfd()?),
            accept_retry: None,
            read_buffer: vec![0; limits.read_buffer],
            next_tick: limits.tick.map(|period| kernel.now() + period),
            ctx: Ctx::new(limits, clock, Arc::clone(remote.metrics())),
            fds: Vec::new(),
            states: Vec::new(),
            registrations,
            shutdown: Shutdown::No,
            forced: false,
            panic_hook: None,
            signal_hook: None,
            last_turn: (clock.now, clock.now),
            late: Lateness::default(),
            memory_mark: usize::MAX,
            signalled: false,
            put_off: 0,
            untold: (Vec::new(), MOST_TURNS_UNTOLD),
            callbacks: 0,
            in_turn: false,
            events: Events::with_capacity(EVENTS.0),
            remote,
            inbox: VecDeque::new(),
            more_messages: false,
            others: None,
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
        let named = |errno| name_address(address, errno);
        let fd = self.kernel.listen(address, options).map_err(named)?;
        let bound = self.kernel.local_address(&fd).map_err(named)?;
        let listener = Registration::Listener(Listener::new(fd, bound.clone(), false));
        let id = self.register(listener, Interest::Readable).map_err(named)?;
        Ok((ListenerId(id), bound))
    }

    /// Accepts from a listener that other loops have as well, which is not this one's to remove.
    pub(crate) fn share_listener(&mut self, fd: K::Fd, bound: Address) -> io::Result<()> {
        let interest = match bound {
            Address::Tcp(_) => Interest::Readable,
            Address::Unix(_) | Address::UnixUnnamed => Interest::SharedListener,
        };
        self.register(Registration::Listener(Listener::new(fd, bound, true)), interest)?;
        Ok(())
    }

    /// Listens on the first of `addresses` that can be listened on: those that a host name stands for, as
    /// [`Address::resolve`] finds them. One only, so that a name that means one address more tomorrow does not
    /// open one more door.
    ///
    /// # Errors
    /// As for [`listen`](Self::listen), of the last address; `InvalidInput` if there is none.
    pub fn listen_first(
        &mut self,
        addresses: &[Address],
        options: &ListenOptions,
    ) -> io::Result<(ListenerId, Address)> {
        first_of(addresses, |address| self.listen(address, options))
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

    /// Drains at the first of `signals` and forces the end at the second. They are blocked in this thread and in those
    /// it starts from now on; if others run already, call [`block_signals`](crate::block_signals) before
    /// they are started, since a signal that is not blocked in some thread ends the process.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn drain_on_signals(&mut self, signals: &[Signal]) -> io::Result<()> {
        self.register_signals(signals, OnSignal::Drain)
    }

    /// Has [`on_signal`](Handler::on_signal) called for each of `signals`, for those that are no reason to stop:
    /// `SIGHUP`, `SIGUSR1`. They are blocked as with [`drain_on_signals`](Self::drain_on_signals), and the same is to be
    /// done about other threads. No signal may be given to both, nor twice: whoever looks first would have it.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn watch_signals(&mut self, signals: &[Signal]) -> io::Result<()> {
        self.register_signals(signals, OnSignal::Tell)
    }

    /// Has `hook` called for each of `signals`, between two callbacks, instead of the handler: to write a
    /// [recording](Ctx::recording) down, for instance, whatever the handler is. It replaces the one set before; what is said
    /// of [`watch_signals`](Self::watch_signals) holds here.
    ///
    /// # Errors
    /// No descriptors are left.
    pub fn inspect_on_signals(
        &mut self,
        signals: &[Signal],
        hook: impl Fn(&Ctx) + Send + 'static,
    ) -> io::Result<()> {
        self.signal_hook = Some(Box::new(hook));
        self.register_signals(signals, OnSignal::Inspect)
    }

    /// A way in for other threads. Start those after [`drain_on_signals`](Self::drain_on_signals), or they take the
    /// signals, which then end the program.
    #[must_use]
    pub fn remote(&self) -> Remote<H::Message, K> {
        self.remote.clone()
    }

    /// Has `hook` called on the loop's thread after each callback that panicked, before its connection is closed, or, where
    /// the [policy](crate::PanicPolicy) is to let it end the loop, when the reactor is dropped by it: to keep
    /// [`Ctx::recording`], for instance. Everything waits for it. It replaces the one set before.
    pub fn on_panic(&mut self, hook: impl Fn(&Ctx) + Send + 'static) {
        self.panic_hook = Some(Box::new(hook));
    }

    /// What the loop counts and measures, for any thread to read while it runs, and afterwards.
    #[must_use]
    pub fn metrics(&self) -> Arc<LoopMetrics> {
        Arc::clone(&self.ctx.metrics)
    }

    /// What callbacks are given, for use between turns: to connect before the loop starts, for instance.
    pub fn ctx(&mut self) -> &mut Ctx {
        // The last turn may have been long ago.
        self.ctx.clock.advance(self.kernel.now(), || self.kernel.wall_clock());
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

    fn register_signals(&mut self, signals: &[Signal], what: OnSignal) -> io::Result<()> {
        let fd = self.kernel.signalfd(signals)?;
        self.register(Registration::Signals(fd, what), Interest::Readable)?;
        Ok(())
    }

    fn register(&mut self, registration: Registration<K::Fd>, interest: Interest) -> Result<Token, Errno> {
        let token = self.registrations.insert(registration).ok_or(Errno::ENOMEM)?;
        let fd = match self.registrations.get(token) {
            Some(Registration::Signals(fd, _) | Registration::Source(fd)) => fd,
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

/// What `listen` answers for the first address that it can be done for.
pub(crate) fn first_of<T>(
    addresses: &[Address],
    mut listen: impl FnMut(&Address) -> io::Result<T>,
) -> io::Result<T> {
    let mut result = Err(io::Error::new(io::ErrorKind::InvalidInput, "no address to listen on"));
    for address in addresses {
        result = listen(address);
        match &result {
            Ok(_) => break,
            Err(error) => log::debug!("{error}"),
        }
    }
    result
}

/// An error of an address, naming it.
pub(crate) fn name_address(address: &Address, errno: Errno) -> io::Error {
    let kind = io::Error::from(errno).kind();
    io::Error::new(kind, format!("cannot listen on {address}: {}", errno.desc()))
}

fn insert<F>(registrations: &mut Slab<Registration<F>>, registration: Registration<F>) -> io::Result<Token> {
    registrations.insert(registration).ok_or_else(|| Errno::ENOMEM.into())
}

impl<H: Handler, K: Kernel> Drop for Reactor<H, K> {
    fn drop(&mut self) {
        self.remote.shared().abandon();
        self.close_listeners();
        if self.in_turn && thread::panicking() {
            self.tell_of_panic();
        }
        // Of a turn that a panic has ended: what callbacks before it had said. A second panic would end the process.
        let _: thread::Result<()> = catch_unwind(AssertUnwindSafe(|| self.send_batch()));
        self.end_overload();
        self.ctx.metrics.note_gone();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ConnId;

    struct Silent;

    impl Handler for Silent {
        type Conn = ();
        type Message = ();

        fn on_data(&mut self, _: &mut Ctx, _: ConnId, (): &mut (), input: &[u8]) -> usize {
            input.len()
        }
    }

    #[test]
    fn of_several_addresses_the_first_that_works_is_listened_on_and_no_other() {
        let mut reactor = Reactor::new(Silent, Limits::default()).unwrap();
        let options = ListenOptions::default();
        // TEST-NET-1 of RFC 5737 is nobody's.
        let addresses =
            ["192.0.2.1:0", "127.0.0.1:0", "127.0.0.2:0"].map(|text| Address::Tcp(text.parse().unwrap()));
        let (_, bound) = reactor.listen_first(&addresses, &options).unwrap();
        assert_eq!(bound.as_tcp().unwrap().ip(), addresses[1].as_tcp().unwrap().ip());
        let error = reactor.listen_first(&addresses[..1], &options).unwrap_err();
        assert!(error.to_string().contains("192.0.2.1:0"), "{error}");
        assert_eq!(reactor.listen_first(&[], &options).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }

    #[test]
    fn a_remote_that_is_made_first_is_one_loop_s() {
        let limits = Limits { message_queue: 1, ..Limits::default() };
        let kernel = Linux::new().unwrap();
        let remote = Remote::for_kernel(&kernel, &limits).unwrap();
        assert_eq!(remote.send(()), Ok(()), "it waits for the loop");
        assert!(remote.send(()).is_err(), "as many as the limits say");
        let mut reactor = Reactor::with_remote(kernel, Silent, limits.clone(), remote.clone()).unwrap();
        let kernel = Linux::new().unwrap();
        let error = Reactor::with_remote(kernel, Silent, limits, remote.clone()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::InvalidInput, "{error}");
        // The failure has closed nothing, and what was sent before the loop was there wakes it.
        reactor.turn(None).unwrap();
        assert_eq!(reactor.ctx().counters().messages, 1);
        assert_eq!(remote.send(()), Ok(()));
    }

    #[test]
    fn a_loop_may_be_drained_by_a_time_or_ended_before_it_runs() {
        let start = |order: fn(&Remote<()>, Timestamp)| {
            let mut reactor = Reactor::new(Silent, Limits::default()).unwrap();
            let (listener, bound) = reactor
                .listen(&Address::Tcp("127.0.0.1:0".parse().unwrap()), &ListenOptions::default())
                .unwrap();
            let _: ListenerId = listener;
            let client = std::net::TcpStream::connect(bound.as_tcp().unwrap()).unwrap();
            while reactor.ctx().connections() == 0 {
                reactor.turn(None).unwrap();
            }
            let now = reactor.ctx().now();
            order(&reactor.remote(), now);
            let deadline = (0..3).find_map(|_| {
                reactor.turn(Some(std::time::Duration::ZERO)).unwrap();
                reactor.ctx.drain_deadline
            });
            (reactor.run().unwrap(), deadline.map(|at| at - now), client)
        };
        let grace = std::time::Duration::from_millis(20);
        let (stopped, deadline, _client) = start(|remote, now| {
            remote.drain_by(now + std::time::Duration::from_millis(20));
            // What is asked for twice keeps the end that was said.
            remote.drain();
        });
        assert_eq!((stopped, deadline), (Stopped::DeadlinePassed, Some(grace)));
        let (stopped, _, _client) = start(|remote, _| remote.force());
        assert_eq!(stopped, Stopped::Forced);
    }
}
