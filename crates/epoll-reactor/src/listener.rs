//! Accepting: a budget a turn, admission, and what to do when the process is out of descriptors.
//!
//! Under edge triggering no event comes for connections that were pending when accept failed, so running out
//! needs a state of its own. The listener pauses, and tries again when a connection closes or
//! [`Limits::accept_retry`](crate::Limits::accept_retry) has passed; a spare descriptor is given up for a moment, to
//! accept and close one client that would otherwise wait for an answer that nobody can give.

use std::io;

use epoll_sys::{Address, Call, Errno, Interest, Kernel, Reaction, Timestamp, reaction};

use crate::admission::Full;
use crate::connection::Connection;
use crate::handler::{CloseReason, Handler};
use crate::overload::REPORT_INTERVAL;
use crate::reactor::{Reactor, Registration};
use crate::token::{ConnId, ListenerId, Token};

pub(crate) struct Listener<F> {
    pub(crate) fd: F,
    pub(crate) address: Address,
    /// Other loops have it too, so a socket's file is not for this one to remove.
    is_shared: bool,
    /// It is on the ready list: its budget ran out, or its pause did.
    in_ready: bool,
    /// Out of descriptors; when to try again.
    paused: Option<Timestamp>,
    /// Accepts in a row that failed.
    failures: u32,
    /// The log knows that clients are turned away, and none has been accepted since.
    in_trouble: bool,
    /// When the log was last told so.
    reported: Option<Timestamp>,
    /// When the log was last told that some client has too many connections, which is no trouble of the listener's.
    crowded: Option<Timestamp>,
}

/// An error that takes a connection off the queue comes once for each. Where so many come in a row, it may be one
/// that does not, such as a refusal by policy, and trying again at once would go on for ever.
const MOST_FAILURES: u32 = 256;

/// More than a backlog holds, unless clients come faster than they are accepted.
const MOST_PENDING: usize = 65_536;

impl<F> Listener<F> {
    pub(crate) const fn new(fd: F, address: Address, is_shared: bool) -> Self {
        Self {
            fd,
            address,
            is_shared,
            in_ready: false,
            paused: None,
            failures: 0,
            in_trouble: false,
            reported: None,
            crowded: None,
        }
    }

    /// A connection is pending; says whether to accept now, which on the ready list or paused comes later.
    pub(crate) const fn note_edge(&self) -> bool {
        !self.in_ready && self.paused.is_none()
    }
}

/// What is known of a client that is to be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// It is new.
    New,
    /// It is new, and the loop is overloaded.
    TooMany,
    /// It was let in before, and limits are for those who are new.
    Moved,
}

/// What one try to accept came to.
pub(crate) enum Accepted {
    /// A connection was opened, refused, or handed to another loop.
    One,
    /// An error, of the connection that was to be accepted, most likely.
    Failed(Errno),
    /// Nothing is pending.
    Empty,
    Paused,
}

impl<H: Handler, K: Kernel> Reactor<H, K> {
    /// Accepts up to the budget; if more may be pending, the rest has its turn in the next one.
    pub(crate) fn accept_ready(&mut self, token: Token) -> io::Result<()> {
        if let Some(listener) = self.listener_mut(token) {
            listener.in_ready = false;
            listener.paused = None;
        }
        let (budget, most) = self.accept_budgets();
        for taken in 0..most {
            let too_many = taken >= budget || self.is_late_to_accept();
            match self.accept_one(token, too_many)? {
                Accepted::One => _ = self.note_failures(token, |_| 0),
                Accepted::Failed(errno) => {
                    if self.note_failures(token, |failures| failures + 1) == MOST_FAILURES {
                        self.pause(token, errno);
                        return Ok(());
                    }
                }
                Accepted::Empty | Accepted::Paused => return Ok(()),
            }
        }
        if let Some(law) = &mut self.ctx.overload {
            law.leaves_clients_waiting();
        }
        self.make_listener_ready(token);
        Ok(())
    }

    fn note_failures(&mut self, token: Token, change: impl FnOnce(u32) -> u32) -> u32 {
        self.listener_mut(token).map_or(0, |listener| {
            listener.failures = change(listener.failures);
            listener.failures
        })
    }

    fn accept_one(&mut self, token: Token, too_many: bool) -> io::Result<Accepted> {
        let accepted = match self.registrations.get(token) {
            Some(Registration::Listener(listener)) => self.kernel.accept(&listener.fd),
            _ => return Ok(Accepted::Empty),
        };
        match accepted {
            Ok((fd, peer)) => Ok(self.place(token, fd, peer, too_many)),
            Err(errno) => match reaction(Call::Accept, errno) {
                Reaction::Retry => Ok(Accepted::Failed(errno)),
                Reaction::WaitForEdge => Ok(Accepted::Empty),
                Reaction::PauseListener | Reaction::CloseConnection | Reaction::FileFailed => {
                    self.shed_one(token);
                    self.pause(token, errno);
                    Ok(Accepted::Paused)
                }
                Reaction::EndLoop => {
                    let kind = io::Error::from(errno).kind();
                    Err(io::Error::new(kind, format!("cannot accept: {}", errno.desc())))
                }
            },
        }
    }

    /// Opens an accepted connection, if there is room for it. Otherwise its descriptor is closed here, before
    /// anything has been spent on it.
    pub(crate) fn admit(&mut self, listener: Token, fd: K::Fd, peer: Address, entry: Entry) -> Accepted {
        let open = self.ctx.connections();
        let room = || self.ctx.admission.check(&self.ctx.limits, open, &peer);
        let may_enter = match entry {
            Entry::New => room(),
            Entry::TooMany => room().and(Err(Full::Overload)),
            Entry::Moved => Ok(()),
        };
        if let Err(full) = may_enter {
            self.turn_away(listener, fd, peer, full);
            return Accepted::One;
        }
        let mut connection = Connection::accepted(peer, ListenerId(listener), self.ctx.now());
        connection.has_moved = entry == Entry::Moved;
        let id = match self.install(connection, fd, Some(H::Conn::default())) {
            Ok(id) => id,
            Err(errno) => {
                self.ctx.metrics.shed.add(1);
                if reaction(Call::Add, errno) == Reaction::PauseListener {
                    self.pause(listener, errno);
                    return Accepted::Paused;
                }
                log::error!("cannot watch an accepted connection: {}", errno.desc());
                return Accepted::One;
            }
        };
        if let Some(listener) = self.listener_mut(listener) {
            listener.in_trouble = false;
        }
        if let Some(connection) = self.ctx.connections.get(id.0) {
            self.ctx.admission.enter(&self.ctx.limits, &connection.peer.address());
        }
        self.ctx.metrics.accepted.add(1);
        self.call_on_open(id);
        Accepted::One
    }

    /// Gives an accepted descriptor its slot and its events. It is closed if there are none.
    fn install(
        &mut self,
        connection: Connection,
        fd: K::Fd,
        state: Option<H::Conn>,
    ) -> Result<ConnId, Errno> {
        let (refused, port) = (connection.refused, connection.peer.port());
        let id = ConnId(self.ctx.connections.insert(connection).ok_or(Errno::ENOMEM)?);
        if let Err(errno) = self.kernel.add(&fd, Interest::Stream, id.as_u64()) {
            self.ctx.connections.remove(id.0);
            return Err(errno);
        }
        self.put_beside(id, Some(fd), state);
        self.ctx.metrics.note_state(None, self.ctx.connections.get(id.0).and_then(Connection::state));
        self.ctx.recorder.accepted(id.0, port, refused);
        Ok(id)
    }

    /// Closes a client for whom there is no room, after having told it so if it may be told.
    fn turn_away(&mut self, listener: Token, fd: K::Fd, peer: Address, full: Full) {
        self.ctx.metrics.shed.add(1);
        self.callbacks += 1;
        let limits = &self.ctx.limits;
        match full {
            Full::Connections => {
                let (limit, shed) = (limits.connections, self.ctx.metrics.shed.get());
                let what = format_args!("{limit} connections are open; closing new ones ({shed} so far)");
                self.report(listener, &what);
            }
            Full::Address => {
                self.ctx.metrics.shed_by_address.add(1);
                self.report_crowd(listener, &peer);
            }
            // The log knows, or is not to be told yet: `overload.rs`.
            Full::Overload => self.ctx.metrics.shed_by_overload.add(1),
        }
        let (limits, now) = (&self.ctx.limits, self.ctx.now());
        let refusal = limits.refusal;
        // It must not be at the cost of those who have been let in.
        let fits = self.ctx.buffered().saturating_add(refusal.len()) <= limits.memory;
        if !fits || !self.ctx.admission.may_refuse(limits, full) {
            return;
        }
        let connection = Connection::refused(peer, ListenerId(listener), limits, now);
        if let Ok(id) = self.install(connection, fd, None) {
            self.ctx.admission.refused += 1;
            self.ctx.enqueue(id, refusal.len(), |queue| queue.push_copy(refusal));
            self.ctx.end(id, CloseReason::Local);
            self.ctx.arm(id);
        }
    }

    /// Gives up the spare descriptor to accept one waiting client and close it, so that it knows.
    fn shed_one(&mut self, token: Token) {
        if self.spare.take().is_some()
            && let Some(Registration::Listener(listener)) = self.registrations.get(token)
            && self.kernel.accept(&listener.fd).is_ok()
        {
            self.ctx.metrics.shed.add(1);
        }
        self.renew_spare();
    }

    fn renew_spare(&mut self) {
        if self.spare.is_none() {
            // Without one the next client waits in the backlog instead of being turned away.
            self.spare = self.kernel.eventfd().ok();
        }
    }

    fn pause(&mut self, token: Token, errno: Errno) {
        let retry = self.ctx.now() + self.ctx.limits.accept_retry;
        if let Some(listener) = self.listener_mut(token) {
            listener.paused = Some(retry);
            listener.failures = 0;
            self.accept_retry = Some(self.accept_retry.map_or(retry, |at| at.min(retry)));
        }
        self.ctx.metrics.accept_pauses.add(1);
        self.ctx.recorder.accept_paused(token, errno);
        self.report(token, &format_args!("not accepting for now: {}", errno.desc()));
    }

    /// Logs trouble with a listener once, until it accepts again.
    fn report(&mut self, token: Token, what: &dyn std::fmt::Display) {
        let now = self.ctx.now();
        if let Some(listener) = self.listener_mut(token)
            && !listener.in_trouble
            && listener.reported.is_none_or(|at| now - at >= REPORT_INTERVAL)
        {
            listener.in_trouble = true;
            listener.reported = Some(now);
            log::warn!("{}: {what}", listener.address);
        }
    }

    /// Logs that `peer` has too many connections, once in a while, whoever it is. It says nothing of the listener, and
    /// so must not keep what does out of the log.
    fn report_crowd(&mut self, token: Token, peer: &Address) {
        let (now, limit) = (self.ctx.now(), self.ctx.limits.connections_per_address);
        let shed = self.ctx.metrics.shed_by_address.get();
        // Its port is that of the connection that is turned away.
        let Some(client) = peer.as_tcp().map(|peer| peer.ip().to_canonical()) else { return };
        if let Some(listener) = self.listener_mut(token)
            && listener.crowded.is_none_or(|at| now - at >= REPORT_INTERVAL)
        {
            listener.crowded = Some(now);
            log::info!(
                "{}: {client} has {limit} connections open; closing new ones ({shed} of such clients so far)",
                listener.address
            );
        }
    }

    /// Listeners whose pause is over go on the ready list; all of them, if descriptors have become free.
    pub(crate) fn resume_listeners(&mut self, descriptors_freed: bool) {
        let now = self.ctx.now();
        if self.accept_retry.is_none_or(|at| at > now && !descriptors_freed) {
            return;
        }
        self.accept_retry = None;
        self.renew_spare();
        for index in 0..self.registrations.end() {
            if let Some(token) = self.registrations.token_at(index)
                && let Some(at) = self.listener_mut(token).and_then(|listener| listener.paused)
            {
                if at <= now || descriptors_freed {
                    self.make_listener_ready(token);
                } else {
                    self.accept_retry = Some(self.accept_retry.map_or(at, |earliest| earliest.min(at)));
                }
            }
        }
    }

    /// Opens what was pending when a drain began: those clients have connected, and may have sent a request.
    pub(crate) fn accept_the_rest(&mut self) {
        for index in 0..self.registrations.end() {
            let Some(token) = self.registrations.token_at(index) else { continue };
            for _ in 0..MOST_PENDING {
                match self.accept_one(token, false) {
                    Ok(Accepted::One | Accepted::Failed(_)) => (),
                    Ok(Accepted::Empty | Accepted::Paused) | Err(_) => break,
                }
            }
        }
    }

    /// Stops accepting, for good.
    pub(crate) fn close_listeners(&mut self) {
        for index in 0..self.registrations.end() {
            if let Some(token) = self.registrations.token_at(index)
                && self.listener_mut(token).is_some()
                && let Some(Registration::Listener(listener)) = self.registrations.remove(token)
            {
                // It is closed in any case; what epoll says of it does not matter.
                let _: Result<(), Errno> = self.kernel.delete(&listener.fd);
                drop(listener.fd);
                if listener.is_shared {
                    continue;
                }
                match self.kernel.remove_socket_file(&listener.address) {
                    Ok(()) | Err(Errno::ENOENT) => (),
                    Err(errno) => log::warn!("cannot remove {}: {}", listener.address, errno.desc()),
                }
            }
        }
    }

    fn make_listener_ready(&mut self, token: Token) {
        if let Some(listener) = self.listener_mut(token)
            && !listener.in_ready
        {
            listener.in_ready = true;
            listener.paused = None;
            self.ctx.ready.push_back(token.into_registration());
        }
    }

    fn listener_mut(&mut self, token: Token) -> Option<&mut Listener<K::Fd>> {
        match self.registrations.get_mut(token)? {
            Registration::Listener(listener) => Some(listener),
            _ => None,
        }
    }
}
