//! Echo in several loops that hand new clients to each other and move those that are open, on one kernel and one clock. The seed says who connects when
//! and where, which loop has its turn, which one stalls, dies or drains.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::time::Duration;

use epoll_protocols::Echo;
use epoll_reactor::sim::{Peer, Received, Sim};
use epoll_reactor::{CloseReason, CloseStats, ConnId, Ctx, Handler, Limits, Timestamp, Worker};
use fastrand::Rng;

use super::Broken;
use super::echo::Caller;
use super::failure::{Failure, demand};
use super::limits::draw_limits;
use super::plan::{Plan, magnitude};
use super::session::Talk;
use super::several::{self, Loops, PATIENCE, Scenario, address};
use super::stage::Tally;

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
    clients: Vec<Client>,
    loops: Loops<Noted>,
    book: Rc<RefCell<Book>>,
    died: bool,
}

impl Scenario for Stage {
    type Handler = Noted;

    fn new(plan: &Plan, sim: &Sim) -> Result<Self, Failure> {
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
        let book = Rc::<RefCell<Book>>::default();
        // One of them may have a lot to do.
        let works = match rng.u8(0..4) {
            0 => vec![0; count],
            _ => (0..count).map(|_| magnitude(&mut rng, 1, 200_000) as u64).collect::<Vec<_>>(),
        };
        let clients = (0..4 * plan.clients).map(|session| Client {
            peer: None,
            is_to_come: true,
            caller: Caller::new(session, plan.bytes(&mut rng).min(4_096)),
            unsaid: Vec::new(),
            sent: 0,
            served: false,
        });
        let clients = clients.collect();
        let mut loops = Loops::new(sim, rng, &limits, count, |worker| {
            let (index, book) = (worker.index(), Rc::clone(&book));
            Ok(Noted { index, book, sim: sim.clone(), work: Duration::from_micros(works[index]) })
        })?;
        let remotes = &loops.remotes;
        let workers = (0..count).filter_map(|index| Worker::new(index, remotes.clone()));
        for (reactor, worker) in loops.reactors.iter_mut().flatten().zip(workers) {
            reactor.balance(&worker);
        }
        loops.set_faults(plan);
        Ok(Self { plan: plan.clone(), clients, loops, book, died: false })
    }

    fn loops(&mut self) -> &mut Loops<Noted> {
        &mut self.loops
    }

    fn turn(&mut self, index: usize) -> Result<(), Failure> {
        let Some(reactor) = self.loops.turn(index)? else { return Ok(()) };
        let (open, most) = (reactor.ctx().connections(), reactor.ctx().limits().connections);
        // Who was let in once is not turned away for having been moved.
        let moved = self.sum(|it| it.moved) as usize;
        demand!(open <= most + moved, "balance", "loop {index} has {open} connections of {most}");
        let book = self.book.borrow();
        demand!(book.violations.is_empty(), "callbacks", "{:?}", book.violations);
        let left = book.open.values().filter(|(at, _)| *at == index).count();
        demand!(
            !self.loops.stopped[index] || left == 0,
            "callbacks",
            "loop {index} has ended without {left} of its own"
        );
        Ok(())
    }

    fn act(&mut self) -> Result<(), Failure> {
        let (count, rng) = (self.loops.count(), &mut self.loops.rng);
        for _ in 0..rng.usize(1..=4) {
            let number = rng.usize(0..self.clients.len().max(1));
            let Some(client) = self.clients.get_mut(number) else { break };
            if client.is_to_come {
                client.is_to_come = false;
                // Where a loop has died or drains, nobody listens.
                client.peer = self.loops.sim.connect(&address(rng.usize(0..count))).ok();
                continue;
            }
            match rng.u8(0..100) {
                0..50 => client.say(rng),
                50 if !self.plan.gentle && rng.u8(0..4) == 0 => {
                    if let Some(peer) = client.peer.take() {
                        peer.reset();
                    }
                }
                _ => {
                    let most = magnitude(rng, 16, 64 * 1024);
                    client.hear(most).map_err(|failure| failure.of_session(number))?;
                }
            }
        }
        Ok(())
    }

    fn note_death(&mut self, index: usize) {
        self.died = true;
        self.book.borrow_mut().open.retain(|_, (at, _)| *at != index);
    }

    fn is_over(&self, round: u64, idle: u32) -> bool {
        self.clients.iter().all(Client::is_over)
            || !self.plan.gentle && (round >= self.plan.turns as u64 || idle > 60)
    }

    fn progress(&mut self) -> u64 {
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
        of_clients.sum::<u64>() + of_loops + self.loops.ended() as u64
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
        told.chain([format!("stopped: {:?}", self.loops.stopped)]).collect()
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
}

impl Stage {
    fn sum(&self, get: fn(&epoll_reactor::Counters) -> u64) -> u64 {
        self.loops.remotes.iter().map(|remote| get(&remote.metrics().read().counters)).sum()
    }
}

/// Runs one plan to its end.
pub(crate) fn run(plan: &Plan) -> (Tally, Option<Broken>) {
    several::run::<Stage>(plan)
}
