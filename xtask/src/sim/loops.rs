//! Broadcast in several loops on one kernel and one clock. The seed says which loop has its turn, which one stalls or dies,
//! and when all drain; what each client hears is compared with what the loops have taken from the others.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use epoll_protocols::{Broadcast, BroadcastConfig, BroadcastLoops, SlowReceivers};
use epoll_reactor::Limits;
use epoll_reactor::sim::{Peer, Received, Sim};
use fastrand::Rng;

use super::Broken;
use super::broadcast::Member;
use super::failure::{Failure, demand};
use super::limits::draw_limits;
use super::plan::{Plan, magnitude};
use super::session::Talk;
use super::several::{self, Loops, PATIENCE, Scenario, address};
use super::stage::Tally;
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
    config: BroadcastConfig,
    clients: Vec<Client>,
    loops: Loops<Noted>,
    shared: BroadcastLoops,
    taken: Taken,
}

impl Scenario for Stage {
    type Handler = Noted;

    fn new(plan: &Plan, sim: &Sim) -> Result<Self, Failure> {
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
        let shared = BroadcastLoops::new(count);
        let taken = Taken::default();
        let loops = Loops::new(sim, rng, &limits, count, |worker| {
            let inner = Broadcast::for_worker(config.clone(), &shared, worker)?;
            Ok(Noted { inner, taken: Rc::clone(&taken), limit: line_limit, violations: Vec::new() })
        })?;
        let mut stage = Self { plan: plan.clone(), config, clients: Vec::new(), loops, shared, taken };
        stage.join()?;
        stage.loops.set_faults(plan);
        Ok(stage)
    }

    fn loops(&mut self) -> &mut Loops<Noted> {
        &mut self.loops
    }

    fn turn(&mut self, index: usize) -> Result<(), Failure> {
        let Some(reactor) = self.loops.turn(index)? else { return Ok(()) };
        let violations = &reactor.handler().violations;
        demand!(violations.is_empty(), "broadcast input", "{violations:?}");
        let (buffered, most) = (reactor.ctx().buffered(), reactor.ctx().limits().memory);
        demand!(buffered <= most, "memory", "{buffered} bytes buffered");
        Ok(())
    }

    fn act(&mut self) -> Result<(), Failure> {
        let rng = &mut self.loops.rng;
        let clients = if self.clients.is_empty() { 0 } else { rng.usize(1..=4) };
        for _ in 0..clients {
            let number = rng.usize(0..self.clients.len());
            let client = &mut self.clients[number];
            match rng.u8(0..100) {
                0..45 => client.say(rng),
                45 if !self.plan.gentle && rng.u8(0..8) == 0 => {
                    if let Some(peer) = client.peer.take().filter(|_| rng.bool()) {
                        peer.reset();
                    }
                }
                46 => client.deaf = magnitude(rng, 1, 200) as u32,
                _ if client.deaf > 0 => client.deaf -= 1,
                _ => {
                    let most = magnitude(rng, 16, 64 * 1024);
                    client.hear(most).map_err(|failure| failure.of_session(number))?;
                }
            }
        }
        self.check_links()
    }

    fn note_death(&mut self, _: usize) {}

    fn is_over(&self, round: u64, idle: u32) -> bool {
        if self.plan.gentle {
            return self.all_heard();
        }
        // Or there is nothing left to be done.
        round >= self.plan.turns as u64 || idle > 60
    }

    fn progress(&mut self) -> u64 {
        let of_clients: u64 = self
            .clients
            .iter()
            .map(|client| client.sent + client.heard + u64::from(client.peer.is_none()))
            .sum();
        let of_loops = self.loops.reactors.iter_mut().flatten().map(|reactor| {
            let counters = reactor.ctx().counters();
            counters.bytes_received + counters.bytes_sent + counters.messages + counters.closed
        });
        of_clients + of_loops.sum::<u64>() + self.loops.ended() as u64
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
        let links = (0..self.loops.count().pow(2)).map(|link| {
            let (from, to) = (link / self.loops.count(), link % self.loops.count());
            format!("{from} to {to}: {:?}; ", self.shared.on_the_way(from, to))
        });
        let ends = format!("draining: {}, stopped: {:?}", self.loops.is_draining(), self.loops.stopped);
        told.chain(links).chain([ends]).collect()
    }

    fn finish(&mut self) -> Result<(), Failure> {
        self.hear_the_rest()?;
        let taken = self.taken.borrow();
        // Numbers are of all loops.
        let mut names = BTreeMap::new();
        for (number, client) in self.clients.iter().enumerate() {
            let all = client.ended && self.loops.reactors[client.at].is_some();
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
}

impl Stage {
    /// All clients are there before the first says anything, so that each is to hear everything.
    fn join(&mut self) -> Result<(), Failure> {
        let count = self.loops.count();
        for session in 0..self.plan.clients {
            let at = self.loops.rng.usize(0..count);
            let peer = self
                .loops
                .sim
                .connect(&address(at))
                .map_err(|errno| Failure::new("harness", errno.to_string()))?;
            let bytes = self.plan.bytes(&mut self.loops.rng).min(16 * 1_024);
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
        let start = self.loops.sim.now();
        loop {
            let mut open = 0;
            for index in 0..count {
                self.turn(index)?;
                open += self.loops.reactors[index].as_mut().map_or(0, |reactor| reactor.ctx().connections());
            }
            if open == self.clients.len() {
                return Ok(());
            }
            demand!(self.loops.sim.now() - start < PATIENCE, "harness", "{open} of the clients are accepted");
            self.loops.sim.advance(Duration::from_millis(100));
        }
    }

    /// What is on its way between loops is bounded, at any time.
    fn check_links(&self) -> Result<(), Failure> {
        let count = self.loops.count();
        let others = count - 1;
        let queue = self.loops.remotes[0].capacity();
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
            if !heard && self.loops.sim.next_happening().is_none() {
                return Ok(());
            }
            self.loops.sim.advance(Duration::from_secs(60));
        }
        Err(Failure::new("harness", "the network never comes to rest"))
    }
}

/// Runs one plan to its end.
pub(crate) fn run(plan: &Plan) -> (Tally, Option<Broken>) {
    several::run::<Stage>(plan)
}
