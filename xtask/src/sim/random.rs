//! The random handler among clients that send it streams, and servers that it connects to.

use std::collections::BTreeMap;

use epoll_reactor::sim::{PeerListener, Sim};
use epoll_reactor::{Address, CloseReason, ConnId, Interest, Limits, ListenOptions, Timestamp};
use fastrand::Rng;

use super::book::Promised;
use super::chaos::Chaos;
use super::failure::{Failure, demand, milliseconds};
use super::pipe::Pipe;
use super::plan::{Plan, magnitude};
use super::scenario::{Aftermath, Loop, Scenario};
use super::session::{End, Session, Talk};
use super::voice::{self, Ear};
use super::watched::Watched;

/// Says its own stream, and hears that of one connection.
pub(crate) struct Visitor {
    voice: u64,
    said: u64,
    left: usize,
    pub(crate) ear: Ear,
}

impl Visitor {
    fn new(number: usize, left: usize) -> Self {
        Self { voice: voice::client(number), said: 0, left, ear: Ear::default() }
    }
}

impl Talk for Visitor {
    fn say(&mut self, rng: &mut Rng) -> Option<Vec<u8>> {
        if self.left == 0 {
            return None;
        }
        let count = magnitude(rng, 1, self.left.min(16 * 1024));
        let bytes = voice::speak(self.voice, self.said, count);
        self.said += count as u64;
        self.left -= count;
        Some(bytes)
    }

    fn is_done(&self) -> bool {
        self.left == 0
    }

    fn hear(&mut self, bytes: &[u8]) -> Result<(), Failure> {
        self.ear.hear(bytes).map_err(|error| Failure::new("output", error))
    }

    fn may_shout(&self) -> bool {
        true
    }
}

/// The sessions of the servers it connects to are counted from here.
const HOSTED: usize = 1 << 20;

pub(crate) struct Bedlam {
    plan: Plan,
    rng: Rng,
    servers: Vec<PeerListener>,
    /// One that never accepts: whoever comes second is not even answered.
    silent: Option<PeerListener>,
    hosted: Vec<Session<Visitor>>,
    /// Something else that the loop watches: the end of a pipe that is written to.
    pipe: Pipe,
    /// What was owed when the last turn began, and for how many turns.
    owed: BTreeMap<ConnId, (Owed, u32)>,
}

/// A timer and a deadline that are due, and an `on_drain` by its number.
type Owed = (Option<Timestamp>, Option<Timestamp>, Option<u64>);

/// Turns that it may be late by: the loop puts timers off while it does not know of all events.
const LATE_TURNS: u32 = 10;

impl Scenario for Bedlam {
    type Handler = Chaos;
    type Talk = Visitor;

    fn new(plan: &Plan, sim: &Sim, _: &mut Rng) -> Self {
        let addresses = [Address::Tcp(([192, 0, 2, 1], 80).into()), Address::Unix("/run/other".into())];
        let servers =
            addresses.iter().filter_map(|address| sim.listen(address, &ListenOptions::default()).ok());
        let silent = Address::Tcp(([192, 0, 2, 3], 80).into());
        let full = ListenOptions { backlog: 0, ..ListenOptions::default() };
        Self {
            plan: plan.clone(),
            rng: plan.chance(2),
            servers: servers.collect(),
            silent: sim.listen(&silent, &full).ok().filter(|_| !plan.gentle),
            hosted: Vec::new(),
            pipe: Pipe::new(sim),
            owed: BTreeMap::new(),
        }
    }

    fn limits(&self, drawn: Limits, _: &mut Rng) -> Limits {
        drawn
    }

    fn start(&mut self, reactor: &mut Loop<Chaos>) -> std::io::Result<()> {
        let reader = self.pipe.open()?;
        reactor.watch(reader, Interest::Readable).map(drop)
    }

    fn handler(&mut self, listeners: &[Address]) -> Chaos {
        let mut targets: Vec<Address> = self.servers.iter().map(PeerListener::address).collect();
        targets.extend_from_slice(listeners);
        if !self.plan.gentle {
            targets.extend(self.silent.iter().map(PeerListener::address));
            targets.push(Address::Tcp(([192, 0, 2, 2], 80).into()));
            targets.push(Address::Unix("/run/nobody".into()));
        }
        let budget = self.plan.bytes(&mut self.rng);
        Chaos::new(self.plan.chance(3), self.plan.gentle, targets, budget)
    }

    fn talk(&mut self, session: usize, rng: &mut Rng) -> Visitor {
        Visitor::new(session, self.plan.bytes(rng))
    }

    fn message(&mut self, rng: &mut Rng) -> Option<u64> {
        rng.bool().then_some(0)
    }

    fn session_of(first: &[u8]) -> Option<usize> {
        let mut ear = Ear::default();
        ear.hear(first).ok()?;
        voice::session(ear.speaker()?)
    }

    fn may_wait(handler: &Chaos, id: ConnId) -> bool {
        handler.is_paused(id)
    }

    fn sent_to(handler: &Chaos, id: ConnId) -> u64 {
        handler.books.get(&id).map_or(0, |book| book.accepted)
    }

    fn dues(handler: &Chaos) -> Vec<(ConnId, Timestamp)> {
        handler.dues().collect()
    }

    fn has_ended_its_side(handler: &Chaos, id: ConnId) -> bool {
        handler.books.get(&id).is_some_and(|book| book.half_closed)
    }

    fn between(&mut self, reactor: &mut Loop<Chaos>, _: &mut [Session<Visitor>]) -> Result<(), Failure> {
        for server in &self.servers {
            while let Some(peer) = server.accept() {
                let talk = Visitor::new(HOSTED + self.hosted.len(), self.plan.bytes(&mut self.rng));
                self.hosted.push(Session::new(talk, peer, self.plan.gentle, &mut self.rng));
            }
        }
        for session in self.hosted.iter_mut().filter(|session| !session.is_over()) {
            if self.rng.u8(0..4) == 0 {
                session.act(&mut self.rng)?;
            }
        }
        let chaos = &reactor.handler().inner;
        demand!(chaos.violations.is_empty(), "random handler", "{:?}", chaos.violations);
        self.pipe.check(chaos.pipe.heard(), reactor.handler().lives.now())?;
        if self.rng.u8(0..8) == 0 {
            self.pipe.write(&mut self.rng);
        }
        self.check_owed(reactor)
    }

    fn hear_the_rest(&mut self) -> Result<usize, Failure> {
        let mut heard = 0;
        for session in &mut self.hosted {
            heard += session.hear_all()?;
        }
        Ok(heard)
    }

    fn finish(&mut self, chaos: &Chaos, all: &Aftermath<'_, Visitor>) -> Result<(), Failure> {
        for (number, session) in all.sessions.iter().chain(&self.hosted).enumerate() {
            let Some(speaker) = session.talk.ear.speaker() else { continue };
            let id = ConnId::from_u64(speaker);
            demand!(
                chaos.books.contains_key(&id),
                "output",
                "session {number} heard {id}, whom nobody opened"
            );
            check_heard(chaos, id, number, session, all)?;
        }
        for (number, _, life) in all.each() {
            let reason = life.and_then(|life| life.closed).map(|(reason, _)| reason);
            let fine = matches!(reason, None | Some(CloseReason::Local | CloseReason::PeerClosed));
            demand!(fine || !all.gentle, "lost client", "session {number}: {reason:?}");
        }
        Ok(())
    }
}

impl Bedlam {
    /// Timers that are due, deadlines that have passed and `on_drain`s that are owed come within a few turns.
    fn check_owed(&mut self, reactor: &mut Loop<Chaos>) -> Result<(), Failure> {
        let Watched { inner: chaos, lives } = reactor.handler();
        let began = lives.now();
        // Until an outbound connection is made nothing can be told of it but that it failed.
        let owed: Vec<_> = chaos.open().map(|(id, book)| (id, book.owed())).collect();
        let ctx = reactor.ctx();
        let timeout = ctx.limits().connect_timeout;
        let due = |at: Option<Timestamp>| at.filter(|at| *at <= began);
        let owed = owed.into_iter().map(|(id, owed)| match owed {
            Promised::Connected(since) => (id, None, due(Some(since + timeout)), None),
            Promised::Open(timer, deadline, drain) => (id, due(timer), due(deadline), drain),
        });
        let before = std::mem::take(&mut self.owed);
        for (id, timer, deadline, drain) in owed.filter(|(id, ..)| ctx.is_open(*id)) {
            // Where reading was paused below the low water mark, the next write decides.
            let drain = drain.filter(|_| ctx.queued(id) == 0);
            if timer.is_none() && deadline.is_none() && drain.is_none() {
                continue;
            }
            let what = (timer, deadline, drain);
            let turns = before.get(&id).filter(|(owed, _)| *owed == what).map_or(1, |(_, turns)| turns + 1);
            demand!(
                turns <= LATE_TURNS,
                "owed",
                "{id} is owed {}, and has not got it by the end of the turn that began at {}",
                owed_things(timer, deadline, drain),
                milliseconds(began)
            );
            self.owed.insert(id, (what, turns));
        }
        Ok(())
    }
}

fn owed_things(timer: Option<Timestamp>, deadline: Option<Timestamp>, drain: Option<u64>) -> String {
    let things = [
        timer.map(|at| format!("on_timer since {}", milliseconds(at))),
        deadline.map(|at| format!("a close by its deadline since {}", milliseconds(at))),
        drain.map(|before| format!("on_drain, of which it has had {before}")),
    ];
    things.into_iter().flatten().collect::<Vec<_>>().join(" and ")
}

fn check_heard(
    chaos: &Chaos,
    id: ConnId,
    number: usize,
    session: &Session<Visitor>,
    all: &Aftermath<'_, Visitor>,
) -> Result<(), Failure> {
    let Some(book) = chaos.books.get(&id) else { return Ok(()) };
    let (heard, accepted) = (session.talk.ear.heard, book.accepted);
    demand!(heard <= accepted, "output", "session {number} heard {heard} of {accepted} bytes of {id}");
    let tcp = session.address.as_tcp().is_some();
    let clean = session.end == End::Clean;
    demand!(!(clean && tcp && book.aborted), "abort", "session {number} was aborted, and read a clean end");
    let whole = clean && (book.ended_well() || all.gentle);
    demand!(
        !whole || heard == accepted,
        "output",
        "session {number} ended well and heard {heard} of the {accepted} bytes accepted for {id}: {book:?}"
    );
    Ok(())
}
