//! What must hold after every turn: the books, the limits, no misuse of the kernel, no busy loop, no
//! starvation, and an end by the deadline.

use std::collections::BTreeMap;
use std::time::Duration;

use epoll_reactor::sim::{Peer, Sim};
use epoll_reactor::{ConnId, Timestamp};

use super::accepting::{Accepting, OF_DESCRIPTORS, sum};
use super::admitting::Admitting;
use super::failure::{Failure, demand};
use super::lives::Life;
use super::patience::Patience;
use super::plan::Plan;
use super::scenario::{Loop, Scenario};
use super::session::Session;

/// Turns in a row that may come to nothing without time passing: one for what is put on the ready list and
/// needs nothing then, one for what that frees, and one for a reap.
const IDLE_TURNS: u32 = 4;
/// The same, if calls are made in them: a connection that lingers reads and discards, which nothing counts.
const LINGER_TURNS: u32 = 20_000;

/// Turns of a drain after which each connection has been told of it, whatever else it has to do.
const UNTOLD_TURNS: u32 = 100;

/// What a turn may have got done, and what may have kept it from that.
#[derive(Debug, Default, PartialEq, Eq)]
struct Seen {
    callbacks: u64,
    /// It does not decide itself how often the kernel wakes it.
    events: u64,
    bytes: u64,
    clients: u64,
    messages: u64,
    faults: u64,
}

/// A session's bytes wait, unread, while so many have been read.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    taken: u64,
    patience: Patience,
}

#[derive(Debug)]
pub(crate) struct Pace {
    seen: Option<Seen>,
    calls: u64,
    at: Timestamp,
    idle: u32,
    lingering: u32,
    accepting: Accepting,
    admitting: Admitting,
    waiting: BTreeMap<usize, Waiting>,
    /// What of a session's bytes was read before it lingered, at least.
    lingers_from: BTreeMap<usize, u64>,
    /// When the drain must be over, turns that came too late for it, and turns of it.
    deadline: Option<Timestamp>,
    overdue: u32,
    drained: u32,
}

impl Pace {
    pub(crate) fn new(plan: &Plan, sim: &Sim) -> Self {
        Self {
            seen: None,
            calls: 0,
            at: sim.now(),
            idle: 0,
            lingering: 0,
            accepting: Accepting::new(plan, sim),
            admitting: Admitting::new(plan),
            waiting: BTreeMap::new(),
            lingers_from: BTreeMap::new(),
            deadline: None,
            overdue: 0,
            drained: 0,
        }
    }

    /// After a turn.
    pub(crate) fn check<S: Scenario>(
        &mut self,
        sim: &Sim,
        reactor: &mut Loop<S::Handler>,
        sessions: &[Session<S::Talk>],
        ids: &BTreeMap<usize, ConnId>,
    ) -> Result<(), Failure> {
        let violations = sim.violations();
        demand!(violations.is_empty(), "misuse of the kernel", "{violations:?}");
        let watched = reactor.handler();
        demand!(watched.lives.violations.is_empty(), "callback contract", "{:?}", watched.lives.violations);
        let ctx = reactor.ctx();
        ctx.audit().map_err(|error| Failure::new("audit", error))?;
        let limits = ctx.limits();
        let (open, most) = (ctx.connections(), limits.connections);
        demand!(open <= most, "limit", "{open} connections, of {most}");
        self.check_deadline(reactor)?;
        self.check_told(reactor)?;
        self.check_progress(sim, reactor)?;
        self.accepting.check(sim, reactor)?;
        self.admitting.check::<S>(sim, reactor, sessions, ids)?;
        self.check_starvation::<S>(sim, reactor, sessions, ids)
    }

    fn check_deadline<H: epoll_reactor::Handler>(&mut self, reactor: &mut Loop<H>) -> Result<(), Failure> {
        let began = reactor.handler().lives.now();
        let ctx = reactor.ctx();
        if !ctx.is_draining() {
            return Ok(());
        }
        let latest = ctx.now() + ctx.limits().drain_grace;
        let deadline = *self.deadline.get_or_insert(latest);
        // The turn that ends it may still be told of ends, and one more may be needed to be told so.
        self.overdue += u32::from(began >= deadline);
        demand!(
            self.overdue <= 3,
            "drain",
            "it is {:?} past its deadline and still has {} connections",
            began - deadline,
            ctx.connections()
        );
        Ok(())
    }

    /// When the drain must be over, at the latest.
    pub(crate) const fn deadline(&self) -> Option<Timestamp> {
        self.deadline
    }

    fn check_told<H: epoll_reactor::Handler>(&mut self, reactor: &mut Loop<H>) -> Result<(), Failure> {
        if !reactor.ctx().is_draining() {
            return Ok(());
        }
        self.drained += 1;
        let untold = |life: &&Life| life.closed.is_none() && !life.told_of_drain;
        let untold: Vec<ConnId> = reactor.handler().lives.iter().filter(untold).map(|life| life.id).collect();
        let open = untold.into_iter().find(|id| reactor.ctx().is_open(*id));
        demand!(
            self.drained <= UNTOLD_TURNS || open.is_none(),
            "drain",
            "{open:?} has not been told of it in {} turns",
            self.drained
        );
        Ok(())
    }

    fn check_progress<H: epoll_reactor::Handler>(
        &mut self,
        sim: &Sim,
        reactor: &mut Loop<H>,
    ) -> Result<(), Failure> {
        let callbacks = reactor.handler().lives.calls;
        let counters = reactor.ctx().counters();
        let faults = sim.injected();
        let seen = Seen {
            callbacks,
            events: counters.events,
            bytes: counters.bytes_received + counters.bytes_sent,
            clients: counters.accepted + counters.shed + counters.closed,
            messages: counters.messages,
            faults: faults.total() - sum(&faults, &OF_DESCRIPTORS),
        };
        let calls = sim.calls().total();
        let now = sim.now();
        let moved = now - self.at >= Duration::from_millis(1) || self.seen.as_ref() != Some(&seen);
        // Each turn makes one call to wait.
        let busy = calls - self.calls > 1;
        (self.seen, self.at, self.calls) = (Some(seen), now, calls);
        match (moved, busy) {
            (true, _) => (self.idle, self.lingering) = (0, 0),
            (false, true) => self.lingering += 1,
            (false, false) => self.idle += 1,
        }
        demand!(
            self.idle <= IDLE_TURNS && self.lingering <= LINGER_TURNS,
            "busy loop",
            "{} turns in a row came to nothing, {} of them with calls",
            self.idle + self.lingering,
            self.lingering
        );
        Ok(())
    }

    fn check_starvation<S: Scenario>(
        &mut self,
        sim: &Sim,
        reactor: &mut Loop<S::Handler>,
        sessions: &[Session<S::Talk>],
        ids: &BTreeMap<usize, ConnId>,
    ) -> Result<(), Failure> {
        let (began, now) = (reactor.handler().lives.now(), sim.now());
        let most = reactor.ctx().limits().linger_bytes as u64;
        for (&number, &id) in ids {
            let Some(session) = sessions.get(number) else { continue };
            let may_wait = S::may_wait(&reactor.handler().inner, id);
            let ctx = reactor.ctx();
            let (open, queued) = (ctx.is_open(id), ctx.queued(id));
            let lingering = !open && queued == 0 && ctx.peer_address(id).is_some();
            let unread = session.peer.as_ref().map_or(0, Peer::unread_there) as u64;
            let taken = session.peer.as_ref().map_or(0, Peer::read_there);
            if lingering && !session.is_over() {
                let before = *self.lingers_from.entry(number).or_insert(taken);
                demand!(
                    taken.saturating_sub(before) <= most.saturating_add(session.shouted),
                    "limit",
                    "session {number} ({id}) lingers, and more than {} bytes were discarded, of {most}",
                    taken.saturating_sub(before)
                );
            }
            let waits = (open && queued == 0 && !may_wait) || lingering;
            if unread == 0 || !waits {
                self.waiting.remove(&number);
                continue;
            }
            let new = Waiting { taken, patience: Patience::new(now) };
            let waiting = self.waiting.entry(number).or_insert(new);
            if waiting.taken != taken {
                *waiting = new;
            }
            demand!(
                !waiting.patience.is_over(began),
                "starvation",
                "session {number} ({id}) has waited for {:?}, with {unread} bytes that nobody reads",
                waiting.patience.waited(began)
            );
        }
        Ok(())
    }
}
