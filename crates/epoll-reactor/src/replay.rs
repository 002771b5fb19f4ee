//! A recording as a test: what clients sent is played again, to any handler, on the simulated kernel. Who does what in it
//! is worked out in `replay/script.rs`, and done in `replay/stage.rs`.

use std::fmt;
use std::io;

use epoll_sys::Errno;

use crate::handler::{CloseReason, Handler};
use crate::limits::Limits;
use crate::recorder::{Record, RecordKind, Recording};
use crate::token::ConnId;
use script::Script;
use stage::Stage;

mod script;
mod stage;

/// The clients of a [`Recording`] that has what they sent ([`Limits::capture`]), to be played to a handler as often as one
/// likes: a failure of a server that runs somewhere becomes a test of its handler.
///
/// Each connection that was accepted, and all of whose input is there, is made again by a client. It sends the same
/// bytes at the same times, what was read in one turn in one piece, and ends its side, or resets, as it did then. Whoever
/// is left out is [named](Self::left_out).
///
/// ```
/// use epoll_reactor::sim::{Ending, Replay};
/// use epoll_reactor::{ConnId, Ctx, Handler, Limits, PanicPolicy, Recording};
/// # use epoll_reactor::sim::{Faults, Sim};
/// # use epoll_reactor::{Address, ListenOptions, Reactor};
///
/// /// Answers each line with its length.
/// struct Lengths;
///
/// impl Handler for Lengths {
///     // ...
/// #     type Conn = ();
/// #     type Message = ();
/// #     fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut (), input: &[u8]) -> usize {
/// #         let mut consumed = 0;
/// #         for line in input.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
/// #             consumed += line.len();
/// #             assert!(ctx.send(id, format!("{}\n", line.len() - 1).as_bytes()).is_accepted());
/// #         }
/// #         consumed
/// #     }
/// }
///
/// # fn file() -> std::io::Result<Vec<u8>> {
/// #     let sim = Sim::new(1, Faults::none());
/// #     let limits = Limits { recorder: 1000, capture: 1000, ..Limits::default() };
/// #     let mut reactor = Reactor::with_kernel(sim.kernel(), Lengths, limits)?;
/// #     let address = Address::Tcp(([127, 0, 0, 1], 80).into());
/// #     reactor.listen(&address, &ListenOptions::default())?;
/// #     let client = sim.connect(&address)?;
/// #     for piece in ["one\nth", "ree\n"] {
/// #         client.send(piece.as_bytes());
/// #         for _ in 0..10 {
/// #             reactor.turn(Some(std::time::Duration::from_millis(1)))?;
/// #         }
/// #     }
/// #     client.shutdown_write();
/// #     for _ in 0..10 {
/// #         reactor.turn(Some(std::time::Duration::from_millis(1)))?;
/// #     }
/// #     Ok(reactor.ctx().recording().unwrap().to_bytes())
/// # }
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// // What `Ctx::recording` gave where it happened, or `epoll-server --trace-file FILE --capture SIZE`.
/// # let bytes = file()?;
/// # /*
/// let bytes = std::fs::read("tests/trace")?;
/// # */
/// let recording = Recording::from_bytes(&bytes)?;
/// let replay = Replay::new(&recording);
/// assert!(replay.left_out().is_empty(), "{:?}", replay.left_out());
///
/// // A callback that panicked there panics in the test.
/// let limits = Limits { panics: PanicPolicy::Propagate, ..Limits::default() };
/// let replayed = replay.run(Lengths, limits)?;
/// let [client] = &replayed.clients[..] else { panic!("{replayed:?}") };
/// assert_eq!(client.sent, b"one\nthree\n");
/// assert_eq!(client.answer, b"3\n5\n");
/// assert_eq!(client.ending, Ending::Ended);
/// // As many bytes were read and written as then, and it ended for the same reason.
/// assert_eq!(client.after, client.before);
/// # Ok(())
/// # }
/// ```
///
/// # What is as it was, and what is not
/// Turns have the same events in the same order. The wall clock shows what it did then. The times between two turns pass, in no
/// time; those within a turn do not. There are no faults, and nothing is left to chance.
///
/// - A recording has no more than the loop's last [`Limits::recorder`] records, and what lies before them has left no trace:
///   a handler that remembers what came before may do something else.
/// - The turn in which the recording was made is played to its end, so who was about to be closed may be.
/// - Clients take what they are sent at once, and end their side when they have heard the end of the server's and said all
///   that is recorded: one that did not read, or that went on sending to a server that had hung up, does not come back.
/// - Whoever reset in the middle of a turn, when something had been written to it, does so at its end: what a write of that turn
///   failed at may be written.
/// - All of them connect by TCP from `127.0.0.1`, to one listener; [`Limits::connections_per_address`] does not count.
/// - There is one loop. Messages of other threads, signals, a drain, [watched](crate::Reactor::watch) descriptors and what
///   outbound connections brought are not in a recording.
/// - Ticks are counted from the beginning of the replay.
#[derive(Debug)]
pub struct Replay<'a> {
    recording: &'a Recording,
    script: Script<'a>,
}

impl<'a> Replay<'a> {
    /// Works out who did what. It holds nothing that is not in `recording`, whatever that says.
    #[must_use]
    pub fn new(recording: &'a Recording) -> Self {
        Self { recording, script: Script::new(recording) }
    }

    /// How many clients it has.
    #[must_use]
    pub const fn clients(&self) -> usize {
        self.script.clients.len()
    }

    /// The connections of the recording that are not played, in the order in which they come up there.
    #[must_use]
    pub fn left_out(&self) -> &[LeftOut] {
        &self.script.left_out
    }

    /// Plays it to `handler`, in a loop with `limits`, until the time of the recording. Under
    /// [`PanicPolicy::Propagate`](crate::PanicPolicy::Propagate) a panic of the handler goes on to the caller.
    ///
    /// [`Limits::recorder`] is at least 1, since what the loop notes tells how connections ended. Limits have to be those of the
    /// recorded loop for it to do the same. Nobody need wait long: but each [`tick`](Limits::tick) of an idle day is a turn.
    ///
    /// # Errors
    /// Limits that contradict each other (`InvalidInput`). Between the recorded turns there would be more than a million others,
    /// and one for each record (`TimedOut`): of a tick that is too short, or a handler that is never done.
    /// Clients are answered more than a gibibyte (`QuotaExceeded`).
    pub fn run<H: Handler>(&self, handler: H, limits: Limits) -> io::Result<Replayed> {
        Stage::new(self.recording, &self.script, handler, limits)?.play(&self.script)
    }
}

/// A connection of a recording that is not played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LeftOut {
    /// Its id in the recording.
    pub connection: ConnId,
    /// Why.
    pub reason: LeftOutReason,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection {}: {}", self.connection, self.reason)
    }
}

/// Why a connection is not played.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeftOutReason {
    /// That it was accepted is not in the recording: it is older than the oldest record, or was not accepted but made.
    NotAccepted,
    /// There was no room for it, so the handler has never heard of it.
    Refused,
    /// It was [moved](crate::Ctx::hand_over) to another loop, which there is not in a replay. That loop's recording has the rest.
    HandedOver,
    /// Something that was read of it is not kept: more than [`Limits::capture`] has come since, or that is 0.
    InputLost,
}

impl fmt::Display for LeftOutReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAccepted => "it is older than the recording, or an outbound one",
            Self::Refused => "it was refused",
            Self::HandedOver => "it went on in another loop",
            Self::InputLost => "what it sent was not kept, or not all of it",
        })
    }
}

/// What came of a replay.
#[derive(Debug)]
pub struct Replayed {
    /// In the order in which they were accepted in the recording.
    pub clients: Vec<ReplayedClient>,
    /// Callbacks that panicked.
    pub panics: u64,
}

/// What came of one client.
#[derive(Debug)]
pub struct ReplayedClient {
    /// The connection's id in the recording.
    pub recorded: ConnId,
    /// The one that the handler knew it by this time; `None` if it was not let in.
    pub replayed: Option<ConnId>,
    /// All that it was to send.
    pub sent: Vec<u8>,
    /// All that it was sent.
    pub answer: Vec<u8>,
    /// How it ended for the client.
    pub ending: Ending,
    /// What the recording says of it.
    pub before: Course,
    /// What a recording of the replay would say of it.
    pub after: Course,
}

/// How a connection ended, as a client sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Ending {
    /// It has not.
    Open,
    /// With the end of what the server sends.
    Ended,
    /// The client has reset it, as in the recording.
    Reset,
    /// The server has reset it, or refused it.
    Failed(Errno),
}

/// How a connection went, as the loop saw it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Course {
    /// Bytes that were read, but for what was discarded after the end.
    pub read: u64,
    /// Bytes that the kernel took.
    pub written: u64,
    /// Why it was closed; `None` if it was open still.
    pub reason: Option<CloseReason>,
}

impl Course {
    fn note(&mut self, record: &Record) {
        let amount = if record.detail == 0 { u64::from(record.amount) } else { 0 };
        match record.kind() {
            Some(RecordKind::Read) => self.read += amount,
            Some(RecordKind::Write) => self.written += amount,
            Some(RecordKind::Close) => self.reason = record.close_reason(),
            _ => (),
        }
    }
}
