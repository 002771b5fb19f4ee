//! The replay itself: clients on the simulated kernel, who do what the script says at its times, and a loop.

use std::collections::{BTreeSet, HashMap};
use std::io;
use std::time::Duration;

use epoll_sys::sim::{Faults, Network, Peer, Received, Sim, SimKernel};
use epoll_sys::{Address, ListenOptions, Timestamp};

use super::script::{Act, Scene, Script};
use super::{Course, Ending, Replayed, ReplayedClient};
use crate::handler::Handler;
use crate::limits::Limits;
use crate::reactor::Reactor;
use crate::recorder::{Record, RecordKind, Recording};
use crate::token::ConnId;
use crate::turn::Turn;

/// No buffer of the kernel's is ever full.
const ROOM: usize = usize::MAX / 4;

/// The shortest time that the simulated kernel knows: what is sent arrives so much later, and a wait takes longer.
const INSTANT: Duration = Duration::from_nanos(1);

/// Between the turns that were recorded, beside as many again as there are records: a loop notes each of its own, so only one
/// that has other limits, or a file that somebody has made up, takes more.
const MOST_TURNS_BETWEEN: usize = 1_000_000;

/// Bytes that clients may be answered, all together, since all of it is kept: a few requests may be for files of any size.
const MOST_ANSWERED: usize = 1 << 30;

/// Behind the recording's end, for what waits in the loop: a handler may have work without end.
const MOST_TURNS_TO_SETTLE: u32 = 10_000;

pub(super) struct Stage<H: Handler> {
    sim: Sim,
    reactor: Reactor<H, SimKernel>,
    address: Address,
    players: Vec<Player>,
    /// By the number of the client's socket: of those that have one, the last that had it.
    by_socket: HashMap<u32, usize>,
    /// Those that are to look whether they are done, though nothing has come for them.
    done: Vec<usize>,
    by_port: HashMap<u16, usize>,
    by_token: HashMap<u64, usize>,
    /// The oldest time of the recording, and what it is here.
    began: (Timestamp, Timestamp),
    /// When the recording was made, by the clock here.
    end: Timestamp,
    /// How many turns it may yet take in between.
    turns_left: usize,
    /// How many bytes clients may yet be answered.
    answers_left: usize,
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
            segment: (ROOM, ROOM),
            send_buffer: (ROOM, ROOM),
            receive_buffer: (ROOM, ROOM),
            ..Network::steady()
        };
        let sim = Sim::new(0, Faults { network, ..Faults::none() });
        let oldest = recording.records.iter().min_by_key(|record| record.time);
        if let Some(oldest) = oldest {
            set_wall_clock(&sim, recording.wall_at(oldest));
        }
        let recorder = limits.recorder.max(1);
        // Who was let in then may have come from any number of addresses.
        let limits = Limits { recorder, connections_per_address: usize::MAX, ..limits };
        let mut reactor = Reactor::with_kernel(sim.kernel(), handler, limits)?;
        let _: (Vec<Record>, Vec<u32>) = (reactor.ctx.recorder.take_unseen(), sim.stirred());
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
            by_socket: HashMap::new(),
            done: Vec::new(),
            address,
            by_port: HashMap::new(),
            by_token: HashMap::new(),
            end: began.1 + (recording.time - began.0),
            began,
            turns_left: MOST_TURNS_BETWEEN.saturating_add(recording.records.len()),
            answers_left: MOST_ANSWERED,
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
            self.turn(Duration::ZERO)?;
            let is_quiet = self.reactor.events.is_empty() && !self.reactor.has_work();
            if self.stopped || (is_quiet && self.sim.next_happening().is_none()) {
                break;
            }
        }
        self.sim.advance(INSTANT);
        self.hear_all()?;
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
        self.hear_all()?;
        for (client, act) in &scene.acts {
            self.perform(*client, *act);
        }
        self.turn(Duration::ZERO)
    }

    fn perform(&mut self, index: usize, act: Act<'_>) {
        let Some(Player { peer, acts, client }) = self.players.get_mut(index) else { return };
        *acts -= 1;
        if *acts == 0 {
            self.done.push(index);
        }
        match (act, &peer) {
            (Act::Connect, _) => match self.sim.connect(&self.address) {
                Ok(connected) => {
                    let port = connected.address().as_tcp().map_or(0, |address| address.port());
                    self.by_port.insert(port, index);
                    self.by_socket.insert(connected.number(), index);
                    *peer = Some(connected);
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
            self.hear_all()?;
        }
        Ok(())
    }

    /// Has each client take what there is for it.
    fn hear_all(&mut self) -> io::Result<()> {
        for index in self.concerned() {
            let heard = self.players.get_mut(index).map_or(0, Player::hear);
            self.answers_left = self.answers_left.checked_sub(heard).ok_or_else(|| {
                io::Error::new(
                    io::ErrorKind::QuotaExceeded,
                    "the answers are more than a gibibyte, and all of them are kept",
                )
            })?;
        }
        Ok(())
    }

    /// Those for whom there may be something: of very many it is a few for each turn.
    fn concerned(&mut self) -> BTreeSet<usize> {
        let stirred = self.sim.stirred();
        let stirred = stirred.iter().filter_map(|number| self.by_socket.get(number).copied());
        stirred.chain(self.done.drain(..)).collect()
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
    /// Takes what there is for it, and says how many bytes that is.
    fn hear(&mut self) -> usize {
        let before = self.client.answer.len();
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
        self.client.answer.len() - before
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

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::ctx::Ctx;
    use crate::token::Token;

    struct Echo;

    impl Handler for Echo {
        type Conn = ();
        type Message = ();

        fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut (), input: &[u8]) -> usize {
            assert!(ctx.send(id, input).is_accepted());
            input.len()
        }
    }

    /// A turn in which so many clients connect, and one for each byte of `input`, which they say in turns.
    fn recording(clients: u32, input: &[u8]) -> Recording {
        let time = Timestamp::from_nanoseconds(1_000);
        let record = |kind, index| Record { time, ..Record::new(kind, Some(Token::new(index, 1))) };
        let turn = Record { time, ..Record::new(RecordKind::Turn, None) };
        let mut records: Vec<_> = (0..clients).map(|index| record(RecordKind::Accept, index)).collect();
        records.push(turn);
        for (place, index) in (0..input.len() as u64).zip((0..clients).cycle()) {
            let read = record(RecordKind::Read, index);
            records.extend([Record { duration: place, amount: 1, extra: 1, ..read }, turn]);
        }
        let (wall, input) = (SystemTime::UNIX_EPOCH, input.to_vec());
        Recording { worker: 0, overwritten: 0, time, wall, records, input }
    }

    fn stage(recording: &Recording, script: &Script<'_>) -> Stage<Echo> {
        Stage::new(recording, script, Echo, Limits::default()).unwrap()
    }

    /// Else a recording of many clients that are open takes the square of its length.
    #[test]
    fn of_many_clients_those_are_looked_at_that_have_been_answered() {
        let recording = recording(60, b"abc");
        let script = Script::new(&recording);
        let mut stage = stage(&recording, &script);
        let mut looked_at = Vec::new();
        for scene in &script.turns {
            stage.play_scene(scene).unwrap();
            stage.sim.advance(INSTANT);
            looked_at.push(stage.concerned());
        }
        let [_, answered @ ..] = &looked_at[..] else { panic!("{looked_at:?}") };
        assert_eq!(answered, [0, 1, 2].map(|index| BTreeSet::from([index])));
    }

    #[test]
    fn answers_that_are_too_much_to_keep_are_an_error() {
        let recording = recording(3, b"abcdefg");
        let script = Script::new(&recording);
        for (most, expected) in [(7, None), (6, Some(io::ErrorKind::QuotaExceeded))] {
            let mut stage = stage(&recording, &script);
            stage.answers_left = most;
            assert_eq!(stage.play(&script).err().map(|error| error.kind()), expected, "{most}");
        }
    }

    /// The connection is accepted in the turn that was recorded, and the kernel has more to tell of it.
    #[test]
    fn the_end_of_a_recording_is_not_before_all_has_been_heard() {
        let mut recording = recording(1, b"a");
        recording.records.remove(1);
        let script = Script::new(&recording);
        let replayed = stage(&recording, &script).play(&script).unwrap();
        assert_eq!((replayed.clients[0].after.read, &replayed.clients[0].answer[..]), (1, &b"a"[..]));
    }
}
