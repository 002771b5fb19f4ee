//! One run: the loop under test on a simulated kernel, everybody around it, and turns until it has stopped.

use std::collections::BTreeMap;
use std::time::Duration;

use epoll_reactor::sim::{Counts, Faults, Peer, Sim, SimKernel};
use epoll_reactor::{
    Address, ConnId, Handler, ListenOptions, Reactor, Remote, RemoteError, Signal, Timestamp, Turn,
};
use fastrand::Rng;

use super::actor::{Actor, Around};
use super::alarm::Alarm;
use super::failure::{Failure, demand};
use super::limits::draw_limits;
use super::overdue::Overdue;
use super::pace::Pace;
use super::plan::{Plan, magnitude};
use super::report::{Scene, Who};
use super::scenario::{Aftermath, Loop, Scenario, check_sessions};
use super::session::{End, Ending, Session};
use super::shedding::Shedding;
use super::watched::{Numbered, Watched};

type Message<S> = Numbered<<<S as Scenario>::Handler as Handler>::Message>;

/// What a run came to.
#[derive(Clone, Debug)]
pub(crate) struct Tally {
    pub(crate) turns: u64,
    pub(crate) time: Duration,
    pub(crate) injected: Counts,
    pub(crate) fingerprint: u64,
}

pub(crate) struct Stage<S: Scenario> {
    plan: Plan,
    sim: Sim,
    scenario: S,
    reactor: Loop<S::Handler>,
    remote: Remote<Message<S>, SimKernel>,
    listeners: Vec<Address>,
    rng: Rng,
    actors: Vec<Actor>,
    sessions: Vec<Session<S::Talk>>,
    ids: BTreeMap<usize, ConnId>,
    /// What the kernel's trace calls each connection that has an id.
    names: BTreeMap<usize, String>,
    accepted_messages: Vec<u64>,
    messages: u64,
    next_message: Timestamp,
    /// For signals alone, so that they change nothing for the rest.
    signals: Rng,
    pace: Pace,
    shedding: Shedding,
    overdue: Overdue,
    alarm: Alarm,
    /// Now and then a turn may last as long as the loop likes, whoever would do something meanwhile: the loop must know
    /// itself when to wake.
    trusting: bool,
    /// Clients that come at the very moment of a drain, as long as it has not begun, and their addresses.
    late: Vec<Peer>,
    were_late: Vec<Address>,
    draining: bool,
}

const LISTENERS: usize = 3;

/// A gentle run in which a client is not done after so much time is stuck.
const PATIENCE: Duration = Duration::from_secs(6 * 3_600);
/// No run takes so many turns, unless it goes nowhere.
const MOST_TURNS: u64 = 400_000;

impl<S: Scenario> Stage<S> {
    pub(crate) fn new(plan: &Plan, sim: &Sim) -> Result<Self, Failure> {
        let mut rng = plan.chance(1);
        let mut scenario = S::new(plan, sim, &mut rng);
        let limits = scenario.limits(draw_limits(plan, &mut rng), &mut rng);
        let harness = |error: std::io::Error| Failure::new("harness", format!("it does not start: {error}"));
        let addresses: [Address; LISTENERS] = [
            Address::Tcp(([127, 0, 0, 1], 7000).into()),
            Address::Unix("/run/sim".into()),
            Address::Tcp(([127, 0, 0, 2], 7001).into()),
        ];
        let handler = Watched::new(scenario.handler(&addresses));
        let mut reactor = Reactor::with_kernel(sim.kernel(), handler, limits).map_err(harness)?;
        for address in &addresses {
            let backlog = if !plan.gentle && rng.u8(0..8) == 0 { 2 } else { 4096 };
            let low_water = (rng.u8(0..4) == 0).then(|| rng.u32(0..100_000));
            let options =
                ListenOptions { backlog, not_sent_low_water: low_water, ..ListenOptions::default() };
            reactor.listen(address, &options).map_err(harness)?;
        }
        reactor.drain_on_signals(&[Signal::Terminate, Signal::Interrupt]).map_err(harness)?;
        reactor.watch_signals(&[Signal::Hangup, Signal::User1]).map_err(harness)?;
        scenario.start(&mut reactor).map_err(harness)?;
        sim.set_faults(plan.faults.clone());
        let actors = (0..plan.clients as u64).map(|number| Actor::new(plan.chance(100 + number), sim.now()));
        Ok(Self {
            plan: plan.clone(),
            sim: sim.clone(),
            scenario,
            remote: reactor.remote(),
            reactor,
            listeners: addresses.into(),
            rng,
            actors: actors.collect(),
            sessions: Vec::new(),
            ids: BTreeMap::new(),
            names: BTreeMap::new(),
            accepted_messages: Vec::new(),
            messages: 0,
            next_message: sim.now(),
            signals: plan.chance(4),
            pace: Pace::new(plan, sim),
            shedding: Shedding::new(LISTENERS, sim),
            overdue: Overdue::new(plan),
            alarm: Alarm::new(sim.now()),
            trusting: !plan.gentle && plan.chance(5).u8(0..4) == 0,
            late: Vec::new(),
            were_late: Vec::new(),
            draining: false,
        })
    }

    /// What is to be told of a failure, and is no more when everything has been taken down.
    pub(crate) fn scene(&mut self) -> Scene {
        let who = |number: usize| Who {
            session: number,
            id: self.ids.get(&number).copied(),
            name: self.names.get(&number).cloned(),
            client: self.sessions.get(number).and_then(|it| it.peer.as_ref()).map(|it| format!("{it:?}")),
        };
        let legend = (0..self.sessions.len()).map(who).collect();
        let callbacks = self.reactor.handler().lives.recent();
        Scene { at: self.sim.now(), callbacks, trace: self.sim.trace(), legend }
    }

    /// From the first turn to the last descriptor.
    pub(crate) fn run(&mut self) -> Result<(), Failure> {
        let abandoned = !self.plan.gentle && self.rng.u8(0..16) == 0;
        let start = self.sim.now();
        for turn in 0.. {
            let ticks = self.reactor.handler().lives.ticks;
            demand!(turn < MOST_TURNS + ticks, "stuck", "{turn} turns: {}", self.unfinished());
            if self.is_time_to_end(turn, self.sim.now() - start)? {
                if abandoned {
                    break;
                }
                self.drain();
            }
            self.act()?;
            if let Turn::Stopped(_) = self.turn()? {
                break;
            }
        }
        self.hear_the_rest()?;
        if !abandoned {
            self.check_end()?;
        }
        self.finish()
    }

    fn is_time_to_end(&self, turn: u64, time: Duration) -> Result<bool, Failure> {
        if self.draining {
            return Ok(false);
        }
        if !self.plan.gentle {
            return Ok(turn >= self.plan.turns as u64);
        }
        let done = self.actors.iter().all(|actor| actor.is_done());
        demand!(done || time < PATIENCE, "stuck", "{}", self.unfinished());
        Ok(done)
    }

    fn unfinished(&self) -> String {
        let open = self.sessions.iter().enumerate().filter(|(_, session)| !session.is_over());
        let told = open.map(|(number, session)| {
            format!(
                "session {number} ({}): sent {} of which {} arrived, heard {}, half-closed {}; ",
                self.ids.get(&number).map_or_else(|| "not open".to_owned(), ConnId::to_string),
                session.sent,
                session.arrived(),
                session.heard,
                session.shut
            )
        });
        told.collect()
    }

    /// Ends the loop in one of the ways there are.
    fn drain(&mut self) {
        self.draining = true;
        if self.plan.gentle {
            // They are connected, so they are not turned away.
            let listener = &self.listeners[0];
            self.late.extend((0..self.rng.u8(0..8)).filter_map(|_| self.sim.connect(listener).ok()));
        }
        let grace = self.reactor.ctx().limits().drain_grace;
        match self.rng.u8(0..4) {
            0 => self.remote.drain(),
            1 => self.sim.raise(Signal::Terminate),
            2 => self.sim.raise(Signal::Interrupt),
            _ => self.reactor.ctx().drain(grace),
        }
    }

    /// Everybody but the loop does what is due.
    fn act(&mut self) -> Result<(), Failure> {
        let around = Around {
            sim: &self.sim,
            listeners: &self.listeners,
            gentle: self.plan.gentle,
            draining: self.draining,
        };
        for actor in &mut self.actors {
            actor.play(&around, &mut self.scenario, &mut self.sessions)?;
        }
        if self.sim.now() >= self.next_message {
            self.send_messages();
        }
        if self.signals.u8(0..50) == 0 {
            self.sim.raise(if self.signals.bool() { Signal::Hangup } else { Signal::User1 });
            self.overdue.raised(self.sim.now());
        }
        if self.draining && !self.plan.gentle && self.rng.u8(0..100) == 0 {
            self.sim.raise(Signal::Terminate);
        }
        self.scenario.between(&mut self.reactor, &mut self.sessions)
    }

    fn send_messages(&mut self) {
        self.next_message = self.sim.now() + Duration::from_micros(self.rng.u64(1_000..200_000));
        for _ in 0..magnitude(&mut self.rng, 1, 20) {
            let number = self.messages;
            self.messages += 1;
            let content = self.scenario.message(&mut self.rng);
            if self.remote.send(Numbered { number, content }).is_ok() {
                self.accepted_messages.push(number);
            }
        }
    }

    fn turn(&mut self) -> Result<Turn, Failure> {
        let now = self.sim.now();
        let next = self.actors.iter().map(|actor| actor.next()).min();
        let until = next.map_or(Duration::from_secs(60), |at| at - now);
        let longest = Duration::from_secs(60);
        let trusts = self.trusting && self.rng.u8(0..4) == 0;
        let wait = if trusts { longest } else { until.clamp(Duration::from_nanos(1), longest) };
        let due = self.due();
        self.alarm.set(&self.sim, self.reactor.ctx(), due);
        self.reactor.handler().lives.begin_turn(now);
        let turn = self.reactor.turn(Some(wait));
        let turn = turn.map_err(|error| Failure::new("turn", format!("it failed: {error}")))?;
        self.alarm.check(&self.sim, self.reactor.ctx())?;
        self.shedding.check(&self.sim, &mut self.reactor, self.alarm.woke)?;
        self.note_output();
        self.learn_ids();
        self.pace.check::<S>(&self.sim, &mut self.reactor, &self.sessions, &self.ids)?;
        let accepted = self.accepted_messages.len();
        self.overdue.check(&self.scenario, &mut self.reactor, &self.sessions, &self.ids, accepted)?;
        if self.reactor.ctx().is_draining() {
            self.draining = true;
            // Whoever has been accepted may go.
            self.were_late.extend(self.late.drain(..).map(|peer| peer.address()));
        }
        Ok(turn)
    }

    /// The earliest that the loop must see to by the clock, as far as it is known without the loop's own books.
    fn due(&mut self) -> Option<Timestamp> {
        let watched = self.reactor.handler();
        let ticked = watched.lives.ticked;
        let mut dues = S::dues(&watched.inner);
        let ctx = self.reactor.ctx();
        dues.retain(|(id, _)| ctx.is_open(*id));
        let tick = ticked.zip(ctx.limits().tick).map(|(at, period)| at + period);
        let calm = self.shedding.due(ctx.limits());
        dues.into_iter().map(|(_, at)| at).chain(tick).chain(calm).chain(self.pace.deadline()).min()
    }

    /// What waits for each connection at the end of a turn.
    fn note_output(&mut self) {
        let open = self.reactor.handler().lives.iter().filter(|life| life.closed.is_none());
        let ids: Vec<ConnId> = open.map(|life| life.id).collect();
        let ctx = self.reactor.ctx();
        let queued: Vec<_> = ids.into_iter().map(|id| (id, ctx.queued(id))).collect();
        self.reactor.handler().lives.end_turn(self.alarm.woke, &queued);
    }

    /// Finds out which connection is which session.
    fn learn_ids(&mut self) {
        if self.ids.len() == self.sessions.len() {
            return;
        }
        let unknown = |number: &usize| !self.ids.contains_key(number);
        let mut found = Vec::new();
        for life in self.reactor.handler().lives.iter().filter(|life| life.opened) {
            let number = match &life.address {
                Some(address) => self.sessions.iter().position(|session| session.address == *address),
                None => S::session_of(&life.first),
            };
            if let Some(number) = number.filter(|number| *number < self.sessions.len()).filter(unknown) {
                found.push((number, life.id));
            }
        }
        for (number, id) in &found {
            // One that was closed in its first turn has no descriptor by now.
            self.names.extend(self.sim.who_is(id.as_u64()).map(|name| (*number, name)));
        }
        self.ids.extend(found);
    }

    /// The loop has stopped; what is still on its way arrives, and is read.
    fn hear_the_rest(&mut self) -> Result<(), Failure> {
        for _ in 0..10_000 {
            let mut heard = self.scenario.hear_the_rest()?;
            for (number, session) in self.sessions.iter_mut().enumerate() {
                heard += session.hear_all().map_err(|failure| failure.of_session(number))?;
            }
            if heard == 0 && self.sim.next_happening().is_none() {
                return Ok(());
            }
            self.sim.advance(Duration::from_secs(60));
        }
        Err(Failure::new("harness", "the network never comes to rest"))
    }

    fn check_end(&mut self) -> Result<(), Failure> {
        let refused = self.remote.send(Numbered { number: u64::MAX, content: None });
        demand!(matches!(refused, Err(RemoteError::Closed(_))), "remote", "a message accepted after the end");
        let again = self.reactor.turn(None);
        demand!(matches!(again, Ok(Turn::Stopped(_))), "turn", "{again:?} after it had stopped");
        let delivered = &self.reactor.handler().lives.delivered;
        demand!(
            *delivered == self.accepted_messages,
            "remote",
            "{} messages accepted, {} delivered, or in another order",
            self.accepted_messages.len(),
            delivered.len()
        );
        let lives = &self.reactor.handler().lives;
        let (opened, closed, panics) = (lives.opened, lives.closed, lives.panics);
        let still_open = lives.iter().find(|life| life.closed.is_none()).map(|life| life.id);
        demand!(still_open.is_none(), "callback contract", "no on_close for {still_open:?}");
        let ctx = self.reactor.ctx();
        let counters = ctx.counters();
        demand!(ctx.connections() == 0 && ctx.buffered() == 0, "audit", "something is left: {ctx:?}");
        demand!(
            counters.accepted + counters.connected == opened
                && counters.closed == closed
                && counters.panics == panics
                && counters.messages == self.accepted_messages.len() as u64,
            "counters",
            "{counters:?}, and the handler saw {opened} opened, {closed} closed, {panics} panics"
        );
        let open = self.sim.open_descriptors();
        let kinds = ["eventfd", "signalfd", "pipe"];
        let expected = open.iter().all(|it| kinds.iter().any(|kind| it.ends_with(kind)));
        demand!(expected && open.len() <= 6, "descriptors", "left open after the drain: {open:?}");
        let lives = &self.reactor.handler().lives;
        let accepted = |address: &Address| lives.iter().any(|life| life.address.as_ref() == Some(address));
        let lost = self.were_late.iter().find(|address| !accepted(address));
        demand!(lost.is_none(), "lost client", "{lost:?} had connected when the drain began");
        if self.plan.gentle {
            demand!(counters.shed == 0, "lost client", "{counters:?}");
            let unfinished = self.unfinished();
            demand!(unfinished.is_empty(), "lost client", "{unfinished}");
        }
        Ok(())
    }

    fn finish(&mut self) -> Result<(), Failure> {
        let Watched { inner, lives } = self.reactor.handler();
        let lives_of = (0..self.sessions.len()).map(|number| lives.life(*self.ids.get(&number)?));
        let all =
            Aftermath { sessions: &self.sessions, lives_of: lives_of.collect(), gentle: self.plan.gentle };
        check_sessions(&all)?;
        if self.plan.gentle {
            for (number, session, life) in all.each() {
                let well = session.end == End::Clean && session.ending == Ending::Polite;
                let known = life.is_some() || session.address.as_tcp().is_none();
                demand!(well && known, "lost client", "session {number}: {:?}", session.end);
            }
        }
        self.scenario.finish(inner, &all)
    }

    /// Drops the loop, and with it all its descriptors.
    pub(crate) fn end(self) -> Result<(), Failure> {
        let Self { sim, reactor, remote, sessions, scenario, late, .. } = self;
        drop((sessions, late, scenario, remote, reactor));
        let (open, violations) = (sim.open_descriptors(), sim.violations());
        demand!(open.is_empty(), "descriptors", "left open at the end: {open:?}");
        demand!(violations.is_empty(), "misuse of the kernel", "{violations:?}");
        Ok(())
    }
}

/// Nothing goes wrong before the loop is set up.
pub(crate) fn world(plan: &Plan) -> Sim {
    Sim::new(plan.seed, Faults { network: plan.faults.network.clone(), ..Faults::none() })
}
