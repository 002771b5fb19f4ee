//! Broadcast in several loops on one kernel and one clock. The seed says which loop has its turn, which one stalls or dies,
//! and when all drain; what each client hears is compared with what the loops have taken from the others.

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use epoll_protocols::{Broadcast, BroadcastConfig, BroadcastLoops, BroadcastMessage, SlowReceivers};
use epoll_reactor::sim::{Faults, Peer, Received, Sim, SimKernel};
use epoll_reactor::{Address, Limits, ListenOptions, Reactor, Remote, Turn, Worker};
use fastrand::Rng;

use super::broadcast::Member;
use super::failure::{Failure, demand};
use super::limits::draw_limits;
use super::plan::{Plan, magnitude};
use super::report::Scene;
use super::session::Talk;
use super::stage::{Tally, world};
use super::{Broken, watchdog, watched};
use heard::{compare, count};
use noted::{Noted, Taken};

mod heard;
mod noted;

struct Client {
    at: usize,
    peer: Option<Peer>,
    member: Member,
    unsaid: Vec<u8>,
    /// Its connection was ended by the server, behind all it was sent.
    ended: bool,
    /// Acts for which it reads nothing.
    deaf: u32,
    sent: u64,
    heard: u64,
}

impl Client {
    fn say(&mut self, rng: &mut Rng) {
        let Some(peer) = &self.peer else { return };
        if self.unsaid.is_empty() {
            self.unsaid = self.member.say(rng).unwrap_or_default();
        }
        let count = peer.send(&self.unsaid[..rng.usize(0..=self.unsaid.len())]);
        self.sent += count as u64;
        self.unsaid.drain(..count);
    }

    fn hear(&mut self, most: usize) -> Result<bool, Failure> {
        let Some(peer) = &self.peer else { return Ok(false) };
        match peer.recv(most) {
            Received::Bytes(bytes) => {
                self.heard += bytes.len() as u64;
                self.member.hear(&bytes)?;
            }
            Received::Nothing => return Ok(false),
            Received::End => {
                self.ended = true;
                self.peer = None;
            }
            Received::Failed(_) => self.peer = None,
        }
        Ok(true)
    }
}

struct Stage {
    plan: Plan,
    sim: Sim,
    rng: Rng,
    config: BroadcastConfig,
    /// As they are dropped when they die.
    loops: Vec<Option<Reactor<Noted, SimKernel>>>,
    stopped: Vec<bool>,
    remotes: Arc<[Remote<BroadcastMessage, SimKernel>]>,
    shared: BroadcastLoops,
    taken: Taken,
    clients: Vec<Client>,
    /// The loop that stalls, and for how many rounds.
    stalled: (usize, u32),
    draining: bool,
}

/// Nothing takes so long but what never comes.
const PATIENCE: Duration = Duration::from_secs(6 * 3_600);
/// No run takes so many rounds, unless it goes nowhere.
const MOST_ROUNDS: u64 = 400_000;

impl Stage {
    fn new(plan: &Plan, sim: &Sim) -> Result<Self, Failure> {
        let harness = |error: std::io::Error| Failure::new("harness", format!("it does not start: {error}"));
        let mut rng = plan.chance(1);
        let count = rng.usize(2..=3);
        let line_limit = magnitude(&mut rng, 24, 2_048);
        // Where a drain may come at any time, nobody is to miss anything, since not all could be told of it.
        let small = plan.gentle && rng.bool();
        let receiver_limit = if small { 4 * (line_limit + 64) * magnitude(&mut rng, 1, 8) } else { 1 << 22 };
        let config = BroadcastConfig { line_limit, receiver_limit, slow_receivers: SlowReceivers::Drop };
        let calm = Plan { gentle: true, ..plan.clone() };
        let limits = config.limits(Limits {
            drain_grace: Duration::from_secs(24 * 3_600),
            message_queue: magnitude(&mut rng, 4 * (count - 1) + 1, 256),
            tick: None,
            ..draw_limits(&calm, &mut rng)
        });
        let kernels: Vec<SimKernel> = (0..count).map(|_| sim.kernel()).collect();
        let remotes = kernels.iter().map(|kernel| Remote::for_kernel(kernel, &limits));
        let remotes: Arc<[_]> = remotes.collect::<Result<Vec<_>, _>>().map_err(harness)?.into();
        let shared = BroadcastLoops::new(count);
        let taken = Taken::default();
        let mut loops = Vec::new();
        for (index, kernel) in kernels.into_iter().enumerate() {
            let worker = Worker::new(index, Arc::clone(&remotes))
                .ok_or_else(|| Failure::new("harness", "no such worker"))?;
            let inner = Broadcast::for_worker(config.clone(), &shared, &worker).map_err(harness)?;
            let handler =
                Noted { inner, taken: Rc::clone(&taken), limit: line_limit, violations: Vec::new() };
            let mut reactor = Reactor::with_remote(kernel, handler, limits.clone(), worker.remote().clone())
                .map_err(harness)?;
            reactor.listen(&address(index), &ListenOptions::default()).map_err(harness)?;
            loops.push(Some(reactor));
        }
        let mut stage = Self {
            plan: plan.clone(),
            sim: sim.clone(),
            rng,
            config,
            stopped: vec![false; count],
            loops,
            remotes,
            shared,
            taken,
            clients: Vec::new(),
            stalled: (0, 0),
            draining: false,
        };
        stage.join()?;
        let mut faults = plan.faults.clone().without_losses();
        faults.max_open = Faults::none().max_open;
        sim.set_faults(faults);
        Ok(stage)
    }

    /// All clients are there before the first says anything, so that each is to hear everything.
    fn join(&mut self) -> Result<(), Failure> {
        let count = self.loops.len();
        for session in 0..self.plan.clients {
            let at = self.rng.usize(0..count);
            let peer =
                self.sim.connect(&address(at)).map_err(|errno| Failure::new("harness", errno.to_string()))?;
            let bytes = self.plan.bytes(&mut self.rng).min(16 * 1_024);
            let member = Member::new(session, self.config.line_limit, bytes, 0, false);
            let client = Client {
                at,
                peer: Some(peer),
                member,
                unsaid: Vec::new(),
                ended: false,
                deaf: 0,
                sent: 0,
                heard: 0,
            };
            self.clients.push(client);
        }
        let start = self.sim.now();
        loop {
            let mut open = 0;
            for index in 0..count {
                self.turn(index)?;
                open += self.loops[index].as_mut().map_or(0, |reactor| reactor.ctx().connections());
            }
            if open == self.clients.len() {
                return Ok(());
            }
            demand!(self.sim.now() - start < PATIENCE, "harness", "{open} of the clients are accepted");
            self.sim.advance(Duration::from_millis(100));
        }
    }

    fn turn(&mut self, index: usize) -> Result<(), Failure> {
        let Some(reactor) = self.loops[index].as_mut().filter(|_| !self.stopped[index]) else {
            return Ok(());
        };
        let turn = reactor.turn(Some(Duration::ZERO));
        let turn = turn.map_err(|error| Failure::new("turn", format!("loop {index} failed: {error}")))?;
        self.stopped[index] = turn != Turn::Continue;
        let violations = &reactor.handler().violations;
        demand!(violations.is_empty(), "broadcast input", "{violations:?}");
        let audit = reactor.ctx().audit();
        demand!(audit.is_ok(), "audit", "loop {index}: {audit:?}");
        let (buffered, most) = (reactor.ctx().buffered(), reactor.ctx().limits().memory);
        demand!(buffered <= most, "memory", "{buffered} bytes buffered");
        Ok(())
    }

    /// What is on its way between loops is bounded, at any time.
    fn check_links(&self) -> Result<(), Failure> {
        let count = self.loops.len();
        let others = count - 1;
        let queue = self.remotes[0].capacity();
        let limit = self.config.receiver_limit;
        let most = limit / others + limit / 16 + self.config.line_limit + 32;
        for (from, to) in (0..count * count).map(|link| (link / count, link % count)) {
            let (messages, bytes) = self.shared.on_the_way(from, to);
            demand!(
                messages <= queue / others && messages <= 64 && bytes <= most,
                "bounded queues",
                "{messages} messages of {bytes} bytes from loop {from} to {to}"
            );
        }
        Ok(())
    }

    fn run(&mut self) -> Result<(), Failure> {
        let dies = (!self.plan.gentle && self.rng.bool()).then(|| self.rng.usize(1..=self.plan.turns * 2));
        let mut last = (0, self.sim.now());
        let mut idle = 0;
        for round in 0.. {
            demand!(round < MOST_ROUNDS, "stuck", "{round} rounds: {}", self.unfinished());
            if dies == Some(round as usize) {
                let index = self.rng.usize(0..self.loops.len());
                self.loops[index] = None;
                self.stopped[index] = true;
            }
            let over = if self.plan.gentle {
                self.all_heard()
            } else {
                // Or there is nothing left to be done.
                round >= self.plan.turns as u64 || idle > 60
            };
            if over && !self.draining {
                self.drain();
            }
            if self.stopped.iter().all(|stopped| *stopped) {
                break;
            }
            self.round()?;
            self.check_links()?;
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
        self.hear_the_rest()?;
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
        let clients = if self.clients.is_empty() { 0 } else { self.rng.usize(1..=4) };
        for _ in 0..clients {
            let number = self.rng.usize(0..self.clients.len());
            let client = &mut self.clients[number];
            match self.rng.u8(0..100) {
                0..45 => client.say(&mut self.rng),
                45 if !self.plan.gentle && self.rng.u8(0..8) == 0 => {
                    if let Some(peer) = client.peer.take().filter(|_| self.rng.bool()) {
                        peer.reset();
                    }
                }
                46 => client.deaf = magnitude(&mut self.rng, 1, 200) as u32,
                _ if client.deaf > 0 => client.deaf -= 1,
                _ => {
                    let most = magnitude(&mut self.rng, 16, 64 * 1024);
                    client.hear(most).map_err(|failure| failure.of_session(number))?;
                }
            }
        }
        Ok(())
    }

    fn drain(&mut self) {
        self.draining = true;
        let first = self.rng.usize(0..self.remotes.len());
        let order = (0..self.remotes.len()).map(|index| (index + first) % self.remotes.len());
        order.for_each(|index| self.remotes[index].drain());
    }

    /// Something that changes whenever anything moves.
    fn progress(&mut self) -> u64 {
        let of_clients: u64 = self
            .clients
            .iter()
            .map(|client| client.sent + client.heard + u64::from(client.peer.is_none()))
            .sum();
        let of_loops = self.loops.iter_mut().flatten().map(|reactor| {
            let counters = reactor.ctx().counters();
            counters.bytes_received + counters.bytes_sent + counters.messages + counters.closed
        });
        of_clients + of_loops.sum::<u64>() + self.stopped.iter().filter(|stopped| **stopped).count() as u64
    }

    fn unfinished(&self) -> String {
        let told = self.clients.iter().enumerate().map(|(number, client)| {
            let (lines, skipped) = count(&client.member);
            format!(
                "session {number} in loop {}: said {} lines, {} bytes unsent, taken {:?}, heard {lines} and of {skipped}; ",
                client.at,
                client.member.said(),
                client.unsaid.len() + client.peer.as_ref().map_or(0, Peer::unsent),
                self.taken.borrow().get(&number)
            )
        });
        let links = (0..self.loops.len().pow(2)).map(|link| {
            let (from, to) = (link / self.loops.len(), link % self.loops.len());
            format!("{from} to {to}: {:?}; ", self.shared.on_the_way(from, to))
        });
        let ends = format!("draining: {}, stopped: {:?}", self.draining, self.stopped);
        told.chain(links).chain([ends]).collect()
    }

    /// Everybody has said everything, and heard it, or of it.
    fn all_heard(&self) -> bool {
        let all: u64 = self.taken.borrow().values().sum();
        self.clients.iter().enumerate().all(|(number, client)| {
            let own = self.taken.borrow().get(&number).copied().unwrap_or(0);
            let (lines, skipped) = count(&client.member);
            let said = client.unsaid.is_empty() && client.member.is_done() && own == client.member.said();
            said && lines + skipped == all - own
        })
    }

    fn hear_the_rest(&mut self) -> Result<(), Failure> {
        for _ in 0..10_000 {
            let mut heard = false;
            for (number, client) in self.clients.iter_mut().enumerate() {
                heard |= client.hear(usize::MAX).map_err(|failure| failure.of_session(number))?;
            }
            if !heard && self.sim.next_happening().is_none() {
                return Ok(());
            }
            self.sim.advance(Duration::from_secs(60));
        }
        Err(Failure::new("harness", "the network never comes to rest"))
    }

    fn finish(&mut self) -> Result<(), Failure> {
        let taken = self.taken.borrow();
        // Numbers are of all loops.
        let mut names = BTreeMap::new();
        for (number, client) in self.clients.iter().enumerate() {
            let all = client.ended && self.loops[client.at].is_some();
            demand!(all || !self.plan.gentle, "lost client", "session {number} did not hear the end");
            compare(number, &client.member, &taken, &mut names, all)
                .map_err(|failure| failure.of_session(number))?;
        }
        let mut clients: Vec<u64> = names.values().copied().collect();
        clients.sort_unstable();
        clients.dedup();
        demand!(clients.len() == names.len(), "broadcast", "a number is that of two clients: {names:?}");
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
