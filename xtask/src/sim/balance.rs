//! Echo in several loops that hand new clients to each other and move those that are open, on one kernel and one clock. The seed says who connects when
//! and where, which loop has its turn, which one stalls, dies or drains.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use epoll_protocols::Echo;
use epoll_reactor::sim::{Faults, Peer, Received, Sim, SimKernel};
use epoll_reactor::{
    Address, CloseReason, CloseStats, ConnId, Ctx, Handler, Limits, ListenOptions, Reactor, Remote,
    Timestamp, Turn, Worker,
};
use fastrand::Rng;

use super::echo::Caller;
use super::failure::{Failure, demand};
use super::limits::draw_limits;
use super::plan::{Plan, magnitude};
use super::report::Scene;
use super::session::Talk;
use super::stage::{Tally, world};
use super::{Broken, watchdog, watched};

/// Who is open, in which loop, by the address of the client; and what was wrong about it.
#[derive(Default)]
struct Book {
    open: BTreeMap<String, (usize, ConnId)>,
    opened: u64,
    /// Opened again, by the loop to which they were moved or were sent back to.
    arrived: u64,
    /// Closed in a loop, and not for the client: who has yet to be opened elsewhere.
    on_the_way: BTreeSet<String>,
    left: u64,
    violations: Vec<String>,
}

/// The echo of one loop, with its book.
struct Noted {
    index: usize,
    book: Rc<RefCell<Book>>,
    sim: Sim,
    /// So long each piece takes.
    work: Duration,
}

impl Noted {
    fn check(&self, ctx: &Ctx, id: ConnId, what: &str) {
        let client = client(ctx, id);
        let mut book = self.book.borrow_mut();
        if book.open.get(&client) != Some(&(self.index, id)) {
            let open = book.open.get(&client).copied();
            book.violations.push(format!("{what} of {client} in loop {}, open is {open:?}", self.index));
        }
    }
}

fn client(ctx: &Ctx, id: ConnId) -> String {
    ctx.peer_address(id).map_or_else(|| "nobody".to_owned(), |peer| peer.to_string())
}

impl Handler for Noted {
    type Conn = ();
    type Message = ();

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut ()) {
        {
            let (client, mut book) = (client(ctx, id), self.book.borrow_mut());
            book.opened += 1;
            let has_moved = book.on_the_way.remove(&client);
            book.arrived += u64::from(has_moved);
            if has_moved != ctx.has_moved(id) {
                book.violations
                    .push(format!("{client} is opened in loop {}, moved: {has_moved}", self.index));
            }
            if let Some(before) = book.open.insert(client.clone(), (self.index, id)) {
                book.violations.push(format!("{client} is opened in loop {} and {before:?}", self.index));
            }
        }
        Echo.on_open(ctx, id, conn);
    }

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut (), input: &[u8]) -> usize {
        self.check(ctx, id, "on_data");
        self.sim.advance(self.work);
        Echo.on_data(ctx, id, conn, input)
    }

    fn on_shutdown(&mut self, ctx: &mut Ctx, id: ConnId, conn: &mut (), deadline: Timestamp) {
        self.check(ctx, id, "on_shutdown");
        Echo.on_shutdown(ctx, id, conn, deadline);
    }

    fn on_close(&mut self, ctx: &mut Ctx, id: ConnId, conn: (), reason: CloseReason, stats: &CloseStats) {
        self.check(ctx, id, "on_close");
        {
            let (client, mut book) = (client(ctx, id), self.book.borrow_mut());
            book.open.remove(&client);
            if reason == CloseReason::HandedOver {
                book.left += 1;
                if stats.bytes_sent != stats.bytes_received || stats.bytes_unsent != 0 || ctx.is_draining() {
                    book.violations.push(format!("{client} was moved with {stats:?}"));
                }
                book.on_the_way.insert(client);
            }
        }
        Echo.on_close(ctx, id, conn, reason, stats);
    }
}

struct Client {
    /// `None` before it connects and when all is over.
    peer: Option<Peer>,
    /// It has yet to connect.
    is_to_come: bool,
    caller: Caller,
    unsaid: Vec<u8>,
    sent: u64,
    /// It was told the end, behind all that it had sent.
    served: bool,
}

impl Client {
    fn say(&mut self, rng: &mut Rng) {
        let Some(peer) = &self.peer else { return };
        if self.unsaid.is_empty() {
            match self.caller.say(rng) {
                Some(bytes) => self.unsaid = bytes,
                None => return peer.shutdown_write(),
            }
        }
        let count = peer.send(&self.unsaid[..rng.usize(0..=self.unsaid.len())]);
        self.sent += count as u64;
        self.unsaid.drain(..count);
    }

    /// Says whether anything came.
    fn hear(&mut self, most: usize) -> Result<bool, Failure> {
        let Some(peer) = &self.peer else { return Ok(false) };
        match peer.recv(most) {
            Received::Bytes(bytes) => self.caller.hear(&bytes)?,
            Received::Nothing => return Ok(false),
            Received::End => {
                let done = self.caller.is_done() && self.unsaid.is_empty();
                self.served = done && self.caller.heard() == self.sent;
                self.peer = None;
            }
            Received::Failed(_) => self.peer = None,
        }
        Ok(true)
    }

    const fn is_over(&self) -> bool {
        !self.is_to_come && self.peer.is_none()
    }
}

struct Stage {
    plan: Plan,
    sim: Sim,
    rng: Rng,
    /// As they are dropped when they die.
    loops: Vec<Option<Reactor<Noted, SimKernel>>>,
    stopped: Vec<bool>,
    remotes: Arc<[Remote<(), SimKernel>]>,
    book: Rc<RefCell<Book>>,
    clients: Vec<Client>,
    /// The loop that stalls, and for how many rounds.
    stalled: (usize, u32),
    died: bool,
}

/// Nothing takes so long but what never comes.
const PATIENCE: Duration = Duration::from_secs(6 * 3_600);
/// No run takes so many rounds, unless it goes nowhere.
const MOST_ROUNDS: u64 = 400_000;

impl Stage {
    fn new(plan: &Plan, sim: &Sim) -> Result<Self, Failure> {
        let harness = |error: std::io::Error| Failure::new("harness", format!("it does not start: {error}"));
        let mut rng = plan.chance(1);
        let count = rng.usize(2..=4);
        // Who is let in, the queue and the budget are what this is about.
        let drawn = draw_limits(&Plan { gentle: true, ..plan.clone() }, &mut rng);
        let queue = magnitude(&mut rng, 1, 64);
        let room = if plan.gentle { 64 } else { magnitude(&mut rng, 1, 32) };
        let limits = Limits {
            connections: room,
            message_queue: queue,
            drain_grace: 4 * PATIENCE,
            tick: None,
            ..drawn
        };
        let kernels: Vec<SimKernel> = (0..count).map(|_| sim.kernel()).collect();
        let remotes = kernels.iter().map(|kernel| Remote::for_kernel(kernel, &limits));
        let remotes: Arc<[_]> = remotes.collect::<Result<Vec<_>, _>>().map_err(harness)?.into();
        let book = Rc::<RefCell<Book>>::default();
        // One of them may have a lot to do.
        let works = match rng.u8(0..4) {
            0 => vec![0; count],
            _ => (0..count).map(|_| magnitude(&mut rng, 1, 200_000) as u64).collect::<Vec<_>>(),
        };
        let mut loops = Vec::new();
        for (index, kernel) in kernels.into_iter().enumerate() {
            let worker = Worker::new(index, Arc::clone(&remotes))
                .ok_or_else(|| Failure::new("harness", "no such worker"))?;
            let work = Duration::from_micros(works[index]);
            let handler = Noted { index, book: Rc::clone(&book), sim: sim.clone(), work };
            let mut reactor = Reactor::with_remote(kernel, handler, limits.clone(), worker.remote().clone())
                .map_err(harness)?;
            reactor.listen(&address(index), &ListenOptions::default()).map_err(harness)?;
            reactor.balance(&worker);
            loops.push(Some(reactor));
        }
        let clients = (0..4 * plan.clients).map(|session| Client {
            peer: None,
            is_to_come: true,
            caller: Caller::new(session, plan.bytes(&mut rng).min(4_096)),
            unsaid: Vec::new(),
            sent: 0,
            served: false,
        });
        let clients = clients.collect();
        let mut faults = plan.faults.clone().without_losses();
        faults.max_open = Faults::none().max_open;
        sim.set_faults(faults);
        Ok(Self {
            plan: plan.clone(),
            sim: sim.clone(),
            rng,
            stopped: vec![false; count],
            loops,
            remotes,
            book,
            clients,
            stalled: (0, 0),
            died: false,
        })
    }

    fn turn(&mut self, index: usize) -> Result<(), Failure> {
        let Some(reactor) = self.loops[index].as_mut().filter(|_| !self.stopped[index]) else {
            return Ok(());
        };
        let turn = reactor.turn(Some(Duration::ZERO));
        let turn = turn.map_err(|error| Failure::new("turn", format!("loop {index} failed: {error}")))?;
        self.stopped[index] = turn != Turn::Continue;
        let audit = reactor.ctx().audit();
        demand!(audit.is_ok(), "audit", "loop {index}: {audit:?}");
        let (open, most) = (reactor.ctx().connections(), reactor.ctx().limits().connections);
        // Who was let in once is not turned away for having been moved.
        let moved = self.sum(|it| it.moved) as usize;
        demand!(open <= most + moved, "balance", "loop {index} has {open} connections of {most}");
        let book = self.book.borrow();
        demand!(book.violations.is_empty(), "callbacks", "{:?}", book.violations);
        let left = book.open.values().filter(|(at, _)| *at == index).count();
        demand!(
            !self.stopped[index] || left == 0,
            "callbacks",
            "loop {index} has ended without {left} of its own"
        );
        Ok(())
    }

    fn run(&mut self) -> Result<(), Failure> {
        let dies = (!self.plan.gentle && self.rng.bool()).then(|| self.rng.usize(1..=self.plan.turns * 2));
        let mut last = (0, self.sim.now());
        let (mut idle, mut draining) = (0, false);
        for round in 0.. {
            demand!(round < MOST_ROUNDS, "stuck", "{round} rounds: {}", self.unfinished());
            if dies == Some(round as usize) {
                let index = self.rng.usize(0..self.loops.len());
                self.loops[index] = None;
                self.stopped[index] = true;
                self.died = true;
                self.book.borrow_mut().open.retain(|_, (at, _)| *at != index);
            }
            let over = self.clients.iter().all(Client::is_over)
                || !self.plan.gentle && (round >= self.plan.turns as u64 || idle > 60);
            if over && !draining {
                draining = true;
                let first = self.rng.usize(0..self.remotes.len());
                let order = (0..self.remotes.len()).map(|index| (index + first) % self.remotes.len());
                order.for_each(|index| self.remotes[index].drain());
            }
            if self.stopped.iter().all(|stopped| *stopped) {
                break;
            }
            self.round()?;
            let done = self.progress();
            if done != last.0 {
                last = (done, self.sim.now());
                idle = 0;
            } else {
                idle += 1;
            }
            let rest = self.sim.now() - last.1;
            demand!(rest < PATIENCE, "stuck", "nothing for {rest:?}: {}", self.unfinished());
            if idle > 0 || self.rng.bool() {
                self.sim.advance(Duration::from_micros(self.rng.u64(0..=1 << idle.min(22))));
            }
        }
        self.finish()
    }

    /// One loop has a turn, and some clients do something.
    fn round(&mut self) -> Result<(), Failure> {
        let index = self.rng.usize(0..self.loops.len());
        if self.stalled.1 > 0 {
            self.stalled.1 -= 1;
        } else if self.rng.u8(0..40) == 0 {
            self.stalled = (self.rng.usize(0..self.loops.len()), magnitude(&mut self.rng, 1, 200) as u32);
        }
        if self.stalled.1 == 0 || self.stalled.0 != index {
            self.turn(index)?;
        }
        for _ in 0..self.rng.usize(1..=4) {
            let number = self.rng.usize(0..self.clients.len().max(1));
            let Some(client) = self.clients.get_mut(number) else { break };
            if client.is_to_come {
                client.is_to_come = false;
                // Where a loop has died or drains, nobody listens.
                client.peer = self.sim.connect(&address(self.rng.usize(0..self.loops.len()))).ok();
                continue;
            }
            match self.rng.u8(0..100) {
                0..50 => client.say(&mut self.rng),
                50 if !self.plan.gentle && self.rng.u8(0..4) == 0 => {
                    if let Some(peer) = client.peer.take() {
                        peer.reset();
                    }
                }
                _ => {
                    let most = magnitude(&mut self.rng, 16, 64 * 1024);
                    client.hear(most).map_err(|failure| failure.of_session(number))?;
                }
            }
        }
        Ok(())
    }

    fn sum(&self, get: fn(&epoll_reactor::Counters) -> u64) -> u64 {
        self.remotes.iter().map(|remote| get(&remote.metrics().read().counters)).sum()
    }

    /// Something that changes whenever anything moves.
    fn progress(&self) -> u64 {
        let of_clients = self.clients.iter().map(|client| {
            client.sent
                + client.caller.heard()
                + u64::from(client.peer.is_some())
                + 2 * u64::from(client.is_over())
        });
        let of_loops = self.sum(|counters| {
            counters.bytes_received
                + counters.bytes_sent
                + counters.taken_over
                + counters.handed_over
                + counters.moved
                + counters.closed
        });
        let stopped = self.stopped.iter().filter(|stopped| **stopped).count() as u64;
        of_clients.sum::<u64>() + of_loops + stopped
    }

    fn unfinished(&self) -> String {
        let clients = self.clients.iter().enumerate().filter(|(_, client)| !client.is_over());
        let told = clients.map(|(number, client)| {
            let peer = client.peer.as_ref().map(|peer| peer.address().to_string());
            let open = peer.as_ref().and_then(|peer| self.book.borrow().open.get(peer).copied());
            format!(
                "session {number}, {peer:?}, open in {open:?}: sent {}, heard {}; ",
                client.sent,
                client.caller.heard()
            )
        });
        told.chain([format!("stopped: {:?}", self.stopped)]).collect()
    }

    fn finish(&mut self) -> Result<(), Failure> {
        for (number, client) in self.clients.iter().enumerate() {
            demand!(
                client.served || !self.plan.gentle,
                "lost client",
                "session {number} was not served to its end"
            );
        }
        let (handed, taken) = (self.sum(|it| it.handed_over + it.moved), self.sum(|it| it.taken_over));
        demand!(
            handed == taken || self.died && taken < handed,
            "balance",
            "{handed} were handed over, and {taken} taken"
        );
        let (opened, accepted) = (self.book.borrow().opened, self.sum(|it| it.accepted));
        demand!(opened == accepted, "callbacks", "{opened} were opened, and {accepted} are counted");
        let book = self.book.borrow();
        demand!(
            book.on_the_way.is_empty() || self.died,
            "balance",
            "moved, and opened nowhere: {:?}",
            book.on_the_way
        );
        demand!(
            book.left == book.arrived || self.died && book.arrived < book.left,
            "balance",
            "{} were moved, and {} arrived",
            book.left,
            book.arrived
        );
        Ok(())
    }

    fn end(self) -> Result<(), Failure> {
        let Self { sim, loops, remotes, clients, .. } = self;
        drop((clients, loops, remotes));
        let (open, violations) = (sim.open_descriptors(), sim.violations());
        demand!(open.is_empty(), "descriptors", "left open at the end: {open:?}");
        demand!(violations.is_empty(), "misuse of the kernel", "{violations:?}");
        Ok(())
    }
}

fn address(index: usize) -> Address {
    Address::Tcp(([127, 0, 0, 1], 7000 + index as u16).into())
}

/// Runs one plan to its end.
pub(crate) fn run(plan: &Plan) -> (Tally, Option<Broken>) {
    let _watching = watchdog::watch(plan);
    let sim = world(plan);
    let start = sim.now();
    let result = Stage::new(plan, &sim).and_then(|mut stage| {
        let ran = catch_unwind(AssertUnwindSafe(|| stage.run()));
        let ran = ran.unwrap_or_else(|payload| Err(Failure::new("panic", watched::text(payload.as_ref()))));
        ran.and_then(|()| stage.end())
    });
    let tally = Tally {
        turns: sim.calls().get("wait").unwrap_or(0),
        time: sim.now() - start,
        injected: sim.injected(),
        fingerprint: sim.fingerprint(),
    };
    (tally, result.err().map(|failure| Broken { failure, scene: Scene::of_the_end(&sim) }))
}
