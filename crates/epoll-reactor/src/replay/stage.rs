//! The replay itself: clients on the simulated kernel, who do what the script says at its times, and a loop.

use std::collections::HashMap;
use std::io;
use std::time::Duration;

use epoll_sys::sim::{Faults, Network, Peer, Received, Sim, SimKernel};
use epoll_sys::{Address, ListenOptions, Timestamp};

use super::script::{Act, Scene, Script};
use super::{Course, Ending, Replayed, ReplayedClient};
use crate::handler::Handler;
use crate::limits::Limits;
use crate::reactor::Reactor;
use crate::recorder::{RecordKind, Recording};
use crate::token::ConnId;
use crate::turn::Turn;

/// No buffer of the kernel's is ever full.
const ROOM: usize = usize::MAX / 4;

/// The shortest time that the simulated kernel knows: what is sent arrives so much later, and a wait takes longer.
const INSTANT: Duration = Duration::from_nanos(1);

/// Between the turns that were recorded, beside as many again as there are records: a loop notes each of its own, so only one
/// that has other limits, or a file that somebody has made up, takes more.
const MOST_TURNS_BETWEEN: usize = 1_000_000;

/// Behind the recording's end, for what waits in the loop: a handler may have work without end.
const MOST_TURNS_TO_SETTLE: u32 = 10_000;

pub(super) struct Stage<H: Handler> {
    sim: Sim,
    reactor: Reactor<H, SimKernel>,
    address: Address,
    players: Vec<Player>,
    /// Those that have a connection, which are few of many.
    connected: Vec<usize>,
    by_port: HashMap<u16, usize>,
    by_token: HashMap<u64, usize>,
    /// The oldest time of the recording, and what it is here.
    began: (Timestamp, Timestamp),
    /// When the recording was made, by the clock here.
    end: Timestamp,
    /// How many turns it may yet take in between.
    turns_left: usize,
    /// The handler had the loop drain, and it has.
    stopped: bool,
}

struct Player {
    /// `None` before it connects, and when its connection is over.
    peer: Option<Peer>,
    /// Things that it has yet to do.
    acts: usize,
    client: ReplayedClient,
}

impl<H: Handler> Stage<H> {
    pub(super) fn new(
        recording: &Recording,
        script: &Script<'_>,
        handler: H,
        limits: Limits,
    ) -> io::Result<Self> {
        let network = Network {
            latency: (Duration::ZERO, Duration::ZERO),
            gap: (Duration::ZERO, Duration::ZERO),
            send_buffer: (ROOM, ROOM),
            receive_buffer: (ROOM, ROOM),
            ..Network::steady()
        };
        let sim = Sim::new(0, Faults { network, ..Faults::none() });
        let oldest = recording.records.iter().min_by_key(|record| record.time);
        if let Some(oldest) = oldest {
            set_wall_clock(&sim, recording.wall_at(oldest));
        }
        let limits = Limits { recorder: limits.recorder.max(1), ..limits };
        let mut reactor = Reactor::with_kernel(sim.kernel(), handler, limits)?;
        reactor.ctx.recorder.take_unseen();
        let loopback = Address::Tcp(([127, 0, 0, 1], 0).into());
        let options = ListenOptions { not_sent_low_water: None, ..ListenOptions::default() };
        let (_, address) = reactor.listen(&loopback, &options)?;
        let players = script.clients.iter().map(|role| Player {
            peer: None,
            acts: role.acts,
            client: ReplayedClient {
                recorded: role.connection,
                replayed: None,
                sent: Vec::new(),
                answer: Vec::new(),
                ending: Ending::Open,
                before: role.course,
                after: Course::default(),
            },
        });
        let began = (oldest.map_or(recording.time, |record| record.time), sim.now());
        Ok(Self {
            players: players.collect(),
            connected: Vec::new(),
            address,
            by_port: HashMap::new(),
            by_token: HashMap::new(),
            end: began.1 + (recording.time - began.0),
            began,
            turns_left: MOST_TURNS_BETWEEN.saturating_add(recording.records.len()),
            stopped: false,
            sim,
            reactor,
        })
    }

    pub(super) fn play(mut self, script: &Script<'_>) -> io::Result<Replayed> {
        for scene in &script.turns {
            self.wait_until(self.began.1 + (scene.time - self.began.0))?;
            self.play_scene(scene)?;
        }
        self.wait_until(self.end)?;
        for _ in 0..MOST_TURNS_TO_SETTLE {
            if self.stopped || (!self.reactor.has_work() && self.sim.next_happening().is_none()) {
                break;
            }
            self.turn(Duration::from_millis(1))?;
        }
        self.sim.advance(INSTANT);
        self.hear_all();
        let panics = self.reactor.ctx.metrics.panics.get();
        Ok(Replayed { clients: self.players.into_iter().map(|player| player.client).collect(), panics })
    }

    /// Lets time pass until `at`, with all that the loop does by itself.
    fn wait_until(&mut self, at: Timestamp) -> io::Result<()> {
        while self.sim.now() < at && !self.stopped {
            let left = at - self.sim.now();
            // The kernel waits for whole milliseconds, and more.
            let whole = left - Duration::from_nanos(u64::from(left.subsec_nanos() % 1_000_000));
            let has_work = self.reactor.has_work();
            if !has_work && whole == Duration::ZERO {
                self.sim.advance(left);
                continue;
            }
            self.turns_left = self.turns_left.checked_sub(1).ok_or_else(|| {
                io::Error::new(io::ErrorKind::TimedOut, "more turns than the recorded loop can have taken")
            })?;
            if has_work {
                // The simulated kernel has no patience with who never waits.
                self.sim.advance(INSTANT);
                self.turn(Duration::ZERO)?;
            } else {
                self.turn(whole)?;
            }
        }
        Ok(())
    }

    /// What one turn found, for one turn.
    fn play_scene(&mut self, scene: &Scene<'_>) -> io::Result<()> {
        self.sim.advance(INSTANT);
        self.hear_all();
        for (client, act) in &scene.acts {
            self.perform(*client, *act);
        }
        self.turn(Duration::ZERO)
    }

    fn perform(&mut self, index: usize, act: Act<'_>) {
        let Some(Player { peer, acts, client }) = self.players.get_mut(index) else { return };
        *acts -= 1;
        match (act, &peer) {
            (Act::Connect, _) => match self.sim.connect(&self.address) {
                Ok(connected) => {
                    let port = connected.address().as_tcp().map_or(0, |address| address.port());
                    self.by_port.insert(port, index);
                    *peer = Some(connected);
                    self.connected.push(index);
                }
                Err(errno) => client.ending = Ending::Failed(errno),
            },
            (Act::Send(input), peer) => {
                client.sent.extend_from_slice(input);
                // What is not taken is for a connection that is over.
                let _: Option<usize> = peer.as_ref().map(|peer| peer.send(input));
            }
            (Act::Finish, Some(peer)) => peer.shutdown_write(),
            (Act::Reset, Some(_)) => {
                if client.ending == Ending::Open {
                    client.ending = Ending::Reset;
                }
                peer.take().into_iter().for_each(Peer::reset);
            }
            (Act::Finish | Act::Reset, None) => (),
        }
    }

    fn turn(&mut self, longest: Duration) -> io::Result<()> {
        if !self.stopped {
            self.stopped = self.reactor.turn(Some(longest))? != Turn::Continue;
            self.note_records();
            self.hear_all();
        }
        Ok(())
    }

    /// Has each client take what there is for it.
    fn hear_all(&mut self) {
        self.connected.retain(|index| self.players.get_mut(*index).is_some_and(Player::hear));
    }

    /// Finds out what the loop has done with whom.
    fn note_records(&mut self) {
        for record in self.reactor.ctx.recorder.take_unseen() {
            if record.kind() == Some(RecordKind::Accept)
                && record.extra == 0
                && let Ok(port) = u16::try_from(record.amount)
                && let Some(index) = self.by_port.get(&port)
                && let Some(player) = self.players.get_mut(*index)
            {
                self.by_token.insert(record.token, *index);
                player.client.replayed = Some(ConnId::from_u64(record.token));
            }
            if let Some(index) = self.by_token.get(&record.token)
                && let Some(player) = self.players.get_mut(*index)
            {
                player.client.after.note(&record);
            }
        }
    }
}

impl Player {
    /// Takes what there is for it; says whether there may be more.
    fn hear(&mut self) -> bool {
        while let Some(peer) = &self.peer {
            match peer.recv(usize::MAX) {
                Received::Bytes(bytes) => self.client.answer.extend(bytes),
                Received::Nothing => break,
                Received::End => {
                    self.client.ending = Ending::Ended;
                    if self.acts == 0 {
                        self.peer = None;
                    }
                    break;
                }
                Received::Failed(errno) => {
                    self.client.ending = Ending::Failed(errno);
                    self.peer = None;
                }
            }
        }
        self.peer.is_some()
    }
}

/// Has the wall clock show `wall` now.
fn set_wall_clock(sim: &Sim, wall: std::time::SystemTime) {
    let now = sim.wall_clock();
    match wall.duration_since(now) {
        Ok(ahead) => sim.set_wall_clock(true, ahead),
        Err(behind) => sim.set_wall_clock(false, behind.duration()),
    }
}
