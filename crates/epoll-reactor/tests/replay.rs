//! What clients of a real loop did, played again on the simulated kernel.
#![cfg(feature = "sim")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use epoll_reactor::sim::{Course, Ending, Faults, LeftOutReason, Replay, ReplayedClient, Sim};
use epoll_reactor::{
    Address, CloseReason, CloseStats, ConnId, Ctx, Errno, Handler, Limits, ListenOptions, PanicPolicy,
    Reactor, Record, RecordKind, Recording, SendOutcome, Timestamp,
};
use proptest::prelude::*;
use support::{KIB, PATIENCE, Peer};

/// What a handler was called for, in order.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Call {
    Open(ConnId),
    Data(ConnId, Vec<u8>),
    Eof(ConnId, Vec<u8>),
    Timer(ConnId),
    Close(ConnId, CloseReason),
}

/// Answers each line with its length, and does what some of them ask for.
#[derive(Clone, Default)]
struct Lines {
    calls: Rc<RefCell<Vec<Call>>>,
    wall: Rc<RefCell<Vec<SystemTime>>>,
}

impl Handler for Lines {
    type Conn = ();
    type Message = ();

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut ()) {
        self.calls.borrow_mut().push(Call::Open(id));
        self.wall.borrow_mut().push(ctx.wall_clock());
    }

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut (), input: &[u8]) -> usize {
        self.calls.borrow_mut().push(Call::Data(id, input.to_vec()));
        self.wall.borrow_mut().push(ctx.wall_clock());
        let mut consumed = 0;
        for line in input.split_inclusive(|byte| *byte == b'\n').filter(|line| line.ends_with(b"\n")) {
            consumed += line.len();
            assert!(line != b"panic\n", "as it was asked to");
            if line == b"bye\n" {
                ctx.close_after_flush(id);
            } else if line == b"abort\n" {
                ctx.abort(id);
            } else if line == b"later\n" {
                ctx.set_timer(id, Duration::from_millis(40));
            } else if line == b"half\n" {
                ctx.shut_down_output(id);
            } else {
                // That is no output if it has said its last.
                let _: SendOutcome<_> = ctx.send(id, format!("{}\n", line.len() - 1).as_bytes());
            }
        }
        consumed
    }

    fn on_timer(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut ()) {
        self.calls.borrow_mut().push(Call::Timer(id));
        let _: SendOutcome<_> = ctx.send(id, b"now\n");
    }

    fn on_eof(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut (), unconsumed: &[u8]) {
        self.calls.borrow_mut().push(Call::Eof(id, unconsumed.to_vec()));
        ctx.close_after_flush(id);
    }

    fn on_close(&mut self, _: &mut Ctx, id: ConnId, (): (), reason: CloseReason, _: &CloseStats) {
        self.calls.borrow_mut().push(Call::Close(id, reason));
    }
}

/// A loop on the real kernel.
struct Real {
    reactor: Reactor<Lines>,
    address: Address,
}

impl Real {
    fn new(limits: Limits) -> Self {
        let mut reactor = Reactor::new(Lines::default(), limits).unwrap();
        let loopback = Address::Tcp("127.0.0.1:0".parse().unwrap());
        let (_, address) = reactor.listen(&loopback, &ListenOptions::default()).unwrap();
        Self { reactor, address }
    }

    fn until(&mut self, what: &str, mut done: impl FnMut(&[Call]) -> bool) {
        let started = Instant::now();
        while !done(&self.reactor.handler().calls.borrow()) {
            assert!(started.elapsed() < PATIENCE, "{what}: not in {PATIENCE:?}");
            self.reactor.turn(Some(Duration::from_millis(5))).unwrap();
        }
    }

    fn open(&mut self) -> Peer {
        let before = self.calls().len();
        let peer = Peer::connect(&self.address);
        self.until("on_open", |calls| calls.len() > before);
        peer
    }

    /// Has `peer` say something that is read in one piece.
    fn say(&mut self, peer: &mut Peer, words: &[u8]) {
        let before = self.calls().len();
        peer.say(words);
        self.until("on_data", |calls| calls.len() > before);
    }

    /// Waits for the end of as many connections as there have been.
    fn until_all_closed(&mut self) {
        let count = |calls: &[Call], is: fn(&Call) -> bool| calls.iter().filter(|call| is(call)).count();
        self.until("on_close", |calls| {
            count(calls, |it| matches!(it, Call::Open(_))) == count(calls, |it| matches!(it, Call::Close(..)))
        });
    }

    fn calls(&mut self) -> Vec<Call> {
        self.reactor.handler().calls.borrow().clone()
    }

    /// As it would come from a file.
    fn recording(&mut self) -> Recording {
        let recording = self.reactor.ctx().recording().unwrap();
        Recording::from_bytes(&recording.to_bytes()).unwrap()
    }
}

fn limits() -> Limits {
    Limits { recorder: 1000, capture: 1024 * KIB, ..Limits::default() }
}

/// Plays all of `recording`; what came of each client, and what the handler was called for.
fn replay(recording: &Recording, limits: Limits) -> (Vec<ReplayedClient>, Vec<Call>) {
    let replay = Replay::new(recording);
    assert_eq!(replay.left_out(), []);
    let lines = Lines::default();
    let replayed = replay.run(lines.clone(), limits).unwrap();
    assert_eq!(replayed.clients.len(), replay.clients());
    (replayed.clients, lines.calls.take())
}

#[test]
fn the_handler_is_called_for_the_same_things_and_answers_the_same() {
    let mut real = Real::new(limits());
    let (mut slow, mut many, mut polite) = (real.open(), real.open(), real.open());
    real.say(&mut slow, b"spl");
    real.say(&mut many, b"one\nthree\nfi");
    real.say(&mut slow, b"it in three pie");
    real.say(&mut many, b"ve\n\n");
    real.say(&mut slow, b"ces\n");
    let mut heard = Vec::new();
    for (peer, expected) in [(&mut slow, &b"21\n"[..]), (&mut many, b"3\n5\n4\n0\n")] {
        let started = Instant::now();
        let mut answer = Vec::new();
        while answer.len() < expected.len() {
            assert!(started.elapsed() < PATIENCE, "no answer");
            answer.extend(peer.drain());
        }
        assert_eq!(answer, expected);
        heard.push(answer);
    }
    // What is left of a line when its end is said.
    real.say(&mut polite, b"no end");
    polite.finish();
    slow.reset();
    drop(many);
    real.until_all_closed();
    let mut rude = real.open();
    real.say(&mut rude, b"abort\n");
    real.until_all_closed();

    let recording = real.recording();
    let (clients, calls) = replay(&recording, Limits::default());
    assert_eq!(calls, real.calls());
    for (client, answer) in clients.iter().zip(&heard) {
        assert_eq!(&client.answer, answer);
    }
    for client in &clients {
        assert_eq!(client.after, client.before, "{client:?}");
        assert_eq!(client.replayed, Some(client.recorded));
    }
    let reasons = [CloseReason::Reset, CloseReason::PeerClosed, CloseReason::PeerClosed, CloseReason::Local];
    assert_eq!(clients.iter().map(|it| it.after.reason).collect::<Vec<_>>(), reasons.map(Some));
    let endings = [Ending::Reset, Ending::Ended, Ending::Ended, Ending::Failed(Errno::ECONNRESET)];
    assert_eq!(clients.iter().map(|it| it.ending).collect::<Vec<_>>(), endings);
    assert_eq!(clients[1].sent, b"one\nthree\nfive\n\n");
    assert_eq!(clients[0].before, Course { read: 22, written: 3, reason: Some(CloseReason::Reset) });
}

#[test]
fn what_came_in_one_turn_comes_in_one_turn() {
    let mut real = Real::new(limits());
    let [mut first, mut second] = [real.open(), real.open()];
    // The kernel has both before the loop looks.
    second.say(b"second\n");
    first.say(b"first\n");
    first.finish();
    real.until("what was said", |calls| calls.iter().filter(|it| matches!(it, Call::Data(..))).count() == 2);
    let turns = |recording: &Recording| {
        let turns = recording.records.iter().filter(|it| it.kind() == Some(RecordKind::Turn));
        turns.map(|it| it.amount).collect::<Vec<_>>()
    };
    let recording = real.recording();
    assert!(turns(&recording).contains(&2), "{:?}", turns(&recording));
    let lines = Lines::default();
    Replay::new(&recording).run(lines.clone(), limits()).unwrap();
    assert_eq!(lines.calls.take(), real.calls());
    // The time is read once a turn.
    let times = lines.wall.take();
    assert_eq!(times[2], times[3]);
}

#[test]
fn who_goes_on_after_the_server_has_said_its_last_is_heard() {
    let mut real = Real::new(limits());
    let mut peer = real.open();
    for words in ["half\n", "a\n", "b", "c\n"] {
        real.say(&mut peer, words.as_bytes());
    }
    drop(peer);
    real.until_all_closed();
    let recording = real.recording();
    let (clients, calls) = replay(&recording, limits());
    assert_eq!(calls, real.calls());
    assert_eq!((clients[0].ending, clients[0].after), (Ending::Ended, clients[0].before));
}

#[test]
fn more_than_a_read_takes_is_read_in_as_many() {
    let small = Limits { read_buffer: 16, ..limits() };
    let mut real = Real::new(small.clone());
    let mut peer = real.open();
    let line = [&[b'x'; 99][..], b"\n"].concat();
    peer.say(&line);
    let whole =
        |calls: &[Call]| calls.iter().any(|it| matches!(it, Call::Data(_, input) if input.len() == 100));
    real.until("the whole line", whole);
    let recording = real.recording();
    let (clients, calls) = replay(&recording, small);
    assert_eq!(calls, real.calls());
    assert!(calls.len() > 6, "{calls:?}");
    let [client] = &clients[..] else { panic!("{clients:?}") };
    assert_eq!((client.answer.as_slice(), client.ending), (&b"99\n"[..], Ending::Open));
    assert_eq!(client.after, client.before);
}

#[test]
fn the_time_between_passes_and_the_calendar_is_what_it_was() {
    let limits = Limits { idle_timeout: Some(Duration::from_millis(60)), ..limits() };
    let mut real = Real::new(limits.clone());
    let mut peer = real.open();
    real.say(&mut peer, b"a\n");
    real.until_all_closed();
    let recording = real.recording();
    let replay = Replay::new(&recording);
    let lines = Lines::default();
    let replayed = replay.run(lines.clone(), limits).unwrap();
    assert_eq!(replayed.clients[0].after.reason, Some(CloseReason::IdleTimeout));
    assert_eq!(lines.calls.take(), real.calls());
    let (then, now) = (real.reactor.handler().wall.take(), lines.wall.take());
    assert_eq!(then.len(), now.len());
    for (then, now) in then.into_iter().zip(now) {
        let apart = then.duration_since(now).unwrap_or_else(|error| error.duration());
        assert!(apart < Duration::from_secs(1), "{apart:?}");
    }
}

#[test]
fn what_comes_by_the_clock_comes_where_it_did() {
    let mut real = Real::new(limits());
    let [mut first, mut second] = [real.open(), real.open()];
    real.say(&mut first, b"later\n");
    real.say(&mut second, b"a\n");
    real.until("the timer", |calls| calls.iter().any(|it| matches!(it, Call::Timer(_))));
    real.say(&mut second, b"b\n");
    let recording = real.recording();
    let (clients, calls) = replay(&recording, limits());
    assert_eq!(calls, real.calls());
    assert_eq!((&clients[0].answer[..], &clients[1].answer[..]), (&b"now\n"[..], &b"1\n1\n"[..]));
}

/// Time in microseconds, connection, what was read, or the error.
type Reading<'a> = (u64, u64, Result<&'a [u8], Errno>);

/// A recording of two connections, accepted in the first turn; each that is read has a turn of its own.
fn recording_of(reads: &[Reading<'_>]) -> Recording {
    let (kinds, mut recording) = (
        [4, 6, 1],
        Recording {
            worker: 0,
            overwritten: 0,
            time: Timestamp::from_nanoseconds(1),
            wall: SystemTime::UNIX_EPOCH,
            records: Vec::new(),
            input: Vec::new(),
        },
    );
    let [accept, read, turn] = kinds.map(|code| Record {
        time: Timestamp::from_nanoseconds(1_000),
        token: 0,
        duration: 0,
        amount: 0,
        detail: 0,
        code,
        extra: 0,
    });
    assert_eq!(
        [accept, read, turn].map(|it| it.kind()),
        [RecordKind::Accept, RecordKind::Read, RecordKind::Turn].map(Some)
    );
    let id = |index: u64| 1 << 32 | index;
    recording.records.extend([Record { token: id(0), ..accept }, Record { token: id(1), ..accept }, turn]);
    for (microseconds, index, result) in reads {
        recording.time = Timestamp::from_nanoseconds(1_000 * microseconds);
        let record = Record { time: recording.time, token: id(*index), ..read };
        recording.records.push(match result {
            Ok(input) => {
                let (duration, amount) = (recording.input.len() as u64, u32::try_from(input.len()).unwrap());
                recording.input.extend_from_slice(input);
                Record { duration, amount, extra: 1, ..record }
            }
            Err(errno) => Record { detail: u16::try_from(*errno as i32).unwrap(), ..record },
        });
        recording.records.push(Record { time: recording.time, ..turn });
    }
    recording
}

#[test]
fn who_resets_has_heard_what_was_said_to_it_before() {
    let recording = recording_of(&[(10, 0, Ok(b"a\n")), (11, 0, Err(Errno::ECONNRESET))]);
    let (clients, _) = replay(&recording, limits());
    assert_eq!((&clients[0].answer[..], clients[0].ending), (&b"1\n"[..], Ending::Reset));
    assert_eq!(clients[0].after.reason, Some(CloseReason::Reset));
}

/// It was known of only when the answer had gone.
#[test]
fn who_resets_in_the_turn_in_which_it_was_answered_is_answered() {
    let mut recording = recording_of(&[(10, 0, Ok(b"a\n")), (10, 0, Err(Errno::ECONNRESET))]);
    recording.records.remove(4);
    let write = Record { code: 7, ..recording.records[4] };
    recording.records.insert(4, Record { amount: 2, detail: 0, ..write });
    let (clients, calls) = replay(&recording, limits());
    assert_eq!(clients[0].after, Course { read: 2, written: 2, reason: Some(CloseReason::Reset) });
    assert_eq!((&clients[0].answer[..], clients[0].ending), (&b"1\n"[..], Ending::Reset));
    assert_eq!(calls.len(), 4, "{calls:?}");
    // Unless it was the answer that found out, or none was tried any more.
    let close = Record { code: 8, extra: 2, ..write };
    assert_eq!(close.close_reason(), Some(CloseReason::Reset));
    for found in [write, close] {
        recording.records.splice(4..6, [found, close]);
        let (clients, _) = replay(&recording, limits());
        assert_eq!(clients[0].after, Course { read: 2, written: 0, reason: Some(CloseReason::Reset) });
        assert_eq!(clients[0].after, clients[0].before);
    }
}

#[test]
fn a_turn_that_leaves_work_has_others_behind_it_before_what_came_later_and_at_the_end() {
    let slow = Limits { read_buffer: 1, read_budget: 1, ..limits() };
    let recording = recording_of(&[(10, 0, Ok(b"a\n")), (100, 1, Ok(b"b\n")), (100, 0, Ok(b"c\nd\n"))]);
    let (clients, calls) = replay(&recording, slow);
    let inputs: Vec<_> = calls
        .iter()
        .filter_map(|it| if let Call::Data(_, input) = it { Some(&input[..]) } else { None })
        .collect();
    assert_eq!(inputs[..3], [&b"a"[..], b"a\n", b"b"]);
    assert_eq!(clients.iter().map(|it| it.after.read).collect::<Vec<_>>(), [6, 2]);
    assert_eq!(clients[0].answer, b"1\n1\n1\n");
}

#[test]
fn times_are_those_of_the_recording_and_not_whole_milliseconds() {
    let recording = recording_of(&[(1_000, 0, Ok(b"a\n")), (2_500, 0, Ok(b"b\n"))]);
    let lines = Lines::default();
    Replay::new(&recording).run(lines.clone(), limits()).unwrap();
    let times = lines.wall.take();
    let apart = times[3].duration_since(times[2]).unwrap();
    assert!((1_499..1_510).contains(&apart.as_micros()), "{apart:?}");
}

#[test]
fn however_much_a_turn_has_to_note_all_of_it_counts() {
    // Each byte is a read and a callback.
    let line = [&[b'x'; 40_000][..], b"\n"].concat();
    let small = Limits { read_buffer: 1, ..limits() };
    let recording = recording_of(&[(10, 0, Ok(&line)), (20, 1, Ok(b"b\n"))]);
    let (clients, _) = replay(&recording, small);
    assert_eq!(clients[0].after, Course { read: 40_001, written: 6, reason: None });
    assert_eq!(clients[0].after.read, clients[0].before.read);
}

/// Asks for another turn after each, with what it leaves.
struct Restless;

impl Handler for Restless {
    type Conn = ();
    type Message = ();

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut (), _: &[u8]) -> usize {
        ctx.read_again(id);
        0
    }
}

/// A short file could take a tick for each millisecond of centuries, or a turn for each microsecond.
#[test]
fn what_takes_too_many_turns_is_an_error() {
    let mut recording = recording_of(&[(10, 0, Ok(b"a\n"))]);
    recording.time = Timestamp::from_nanoseconds(u64::MAX);
    let replay = Replay::new(&recording);
    let ticks = Limits { tick: Some(Duration::from_millis(1)), ..limits() };
    for result in [replay.run(Restless, limits()), replay.run(Lines::default(), ticks)] {
        let error = result.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
    }
}

/// Else who is closed for what it says has been read less of.
#[test]
fn each_read_has_as_much_as_there_is_room_for() {
    let line = [&[b'x'; 149_999][..], b"\n"].concat();
    let recording = recording_of(&[(10, 0, Ok(&line))]);
    let limits = Limits { input: 1 << 20, ..limits() };
    let room = limits.read_buffer;
    let (_, calls) = replay(&recording, limits);
    let lengths: Vec<_> = calls
        .iter()
        .filter_map(|it| if let Call::Data(_, input) = it { Some(input.len()) } else { None })
        .collect();
    assert_eq!(lengths, [room, 2 * room, 150_000], "of what is left and what is read behind it");
}

#[test]
fn who_finds_no_room_this_time_is_not_let_in() {
    let recording = recording_of(&[(10, 0, Ok(b"a\n")), (20, 1, Ok(b"b\n"))]);
    let one = Limits { connections: 1, refusal: b"full\n", ..limits() };
    let (clients, _) = replay(&recording, one);
    assert!(clients[0].replayed.is_some() && clients[0].answer == b"1\n", "{clients:?}");
    assert_eq!((clients[1].replayed, &clients[1].answer[..]), (None, &b"full\n"[..]));
    assert_eq!(clients[1].after, Course::default());
}

/// Which addresses clients had is not in a recording.
#[test]
fn those_who_came_from_several_addresses_are_let_in() {
    let recording = recording_of(&[(10, 0, Ok(b"a\n")), (20, 1, Ok(b"b\n"))]);
    let one_each = Limits { connections_per_address: 1, ..limits() };
    let (clients, _) = replay(&recording, one_each);
    assert!(clients.iter().all(|client| client.replayed.is_some() && client.answer == b"1\n"), "{clients:?}");
}

#[test]
fn a_callback_that_panicked_panics_again() {
    for there in [PanicPolicy::CloseConnection, PanicPolicy::Propagate] {
        let mut real = Real::new(Limits { panics: there, ..limits() });
        let kept: Arc<Mutex<Vec<Recording>>> = Arc::default();
        let keep = Arc::clone(&kept);
        real.reactor.on_panic(move |ctx| keep.lock().unwrap().extend(ctx.recording()));
        let (mut well, mut ill) = (real.open(), real.open());
        real.say(&mut well, b"fine\n");
        real.say(&mut ill, b"pan");
        ill.say(b"ic\n");
        let run = AssertUnwindSafe(move || real.until("what was said", |calls| calls.len() == 6));
        assert_eq!(catch_unwind(run).is_err(), there == PanicPolicy::Propagate);

        let recording = kept.lock().unwrap().pop().unwrap();
        let replay = Replay::new(&recording);
        let replayed = replay.run(Lines::default(), limits()).unwrap();
        assert_eq!(replayed.panics, 1);
        let reasons = replayed.clients.iter().map(|client| client.after.reason);
        assert_eq!(reasons.collect::<Vec<_>>(), [None, Some(CloseReason::HandlerPanicked)]);
        assert_eq!(replayed.clients[0].answer, b"4\n");
        let propagate = Limits { panics: PanicPolicy::Propagate, ..limits() };
        let run = AssertUnwindSafe(|| replay.run(Lines::default(), propagate));
        let panic = catch_unwind(run).unwrap_err();
        assert!(panic.downcast_ref::<&str>().is_some_and(|text| text.contains("as it was asked to")));
    }
}

#[test]
fn who_is_not_all_there_is_left_out_and_named() {
    let limits = Limits { connections: 3, refusal: b"full\n", capture: 8, ..limits() };
    let mut real = Real::new(limits.clone());
    let [mut old, mut long, mut short] = [real.open(), real.open(), real.open()];
    let refused = Peer::connect(&real.address);
    let started = Instant::now();
    while real.reactor.ctx().counters().shed == 0 {
        assert!(started.elapsed() < PATIENCE);
        real.reactor.turn(Some(Duration::from_millis(5))).unwrap();
    }
    drop(refused);
    real.say(&mut old, b"b\n");
    real.say(&mut long, b"abc\n");
    real.say(&mut short, b"ab\n");
    real.say(&mut long, b"d\n");
    let mut recording = real.recording();
    assert_eq!(recording.input, b"ab\nd\n");
    let opened: Vec<_> =
        real.calls().iter().filter_map(|it| if let Call::Open(id) = it { Some(*id) } else { None }).collect();
    // As if there had been less room for records.
    let accepted = recording.records.iter().position(|it| it.kind() == Some(RecordKind::Accept)).unwrap();
    recording.records.drain(..=accepted);
    let replay = Replay::new(&recording);
    let left_out: Vec<_> = replay.left_out().iter().map(|it| (it.connection, it.reason)).collect();
    assert_eq!(
        left_out[..2],
        [(opened[0], LeftOutReason::NotAccepted), (opened[1], LeftOutReason::InputLost)]
    );
    assert_eq!(left_out[2..].iter().map(|it| it.1).collect::<Vec<_>>(), [LeftOutReason::Refused]);
    let lines = Lines::default();
    let replayed = replay.run(lines, limits).unwrap();
    let [client] = &replayed.clients[..] else { panic!("{replayed:?}") };
    assert_eq!((client.recorded, client.answer.as_slice()), (opened[2], &b"2\n"[..]));
    let told: Vec<_> = replay.left_out().iter().map(ToString::to_string).collect();
    assert_eq!(told[1], format!("connection {}: what it sent was not kept, or not all of it", opened[1]));
}

/// A small file could stand for more than there is memory.
#[test]
fn no_byte_that_is_kept_is_sent_twice() {
    let mut recording = recording_of(&[(10, 0, Ok(b"a\n")), (20, 1, Ok(b"b\n")), (30, 0, Ok(b"c\n"))]);
    let of_one = recording.records.iter().position(|it| recording.input_of(it) == Some(b"b\n")).unwrap();
    // One byte of what came before.
    recording.records[of_one].duration = 1;
    let replay = Replay::new(&recording);
    let left_out: Vec<_> = replay.left_out().iter().map(|it| it.reason).collect();
    assert_eq!(left_out, [LeftOutReason::InputLost]);
    let replayed = replay.run(Lines::default(), limits()).unwrap();
    let [client] = &replayed.clients[..] else { panic!("{replayed:?}") };
    assert_eq!((&client.sent[..], &client.answer[..]), (&b"a\nc\n"[..], &b"1\n1\n"[..]));
}

#[test]
fn without_what_was_sent_there_is_nobody_to_play() {
    let mut real = Real::new(Limits { capture: 0, ..limits() });
    let mut peer = real.open();
    real.say(&mut peer, b"a\n");
    let recording = real.recording();
    let replay = Replay::new(&recording);
    assert_eq!((replay.clients(), replay.left_out().len()), (0, 1));
    assert_eq!(replay.left_out()[0].reason, LeftOutReason::InputLost);
}

#[test]
fn a_handler_that_has_the_loop_end_ends_the_replay() {
    struct Ends;
    impl Handler for Ends {
        type Conn = ();
        type Message = ();
        fn on_data(&mut self, ctx: &mut Ctx, _: ConnId, (): &mut (), input: &[u8]) -> usize {
            ctx.drain(Duration::ZERO);
            input.len()
        }
    }
    let mut real = Real::new(limits());
    let [mut first, mut second] = [real.open(), real.open()];
    real.say(&mut first, b"a\n");
    real.say(&mut second, b"b\n");
    let mut recording = real.recording();
    // What has stopped takes no time that is left.
    recording.time = recording.time + Duration::from_secs(10);
    let replayed = Replay::new(&recording).run(Ends, limits()).unwrap();
    let reasons = replayed.clients.iter().map(|client| client.after.reason);
    assert_eq!(reasons.collect::<Vec<_>>(), [Some(CloseReason::Shutdown); 2]);
}

/// Each client says something of its own in pieces, on a network that cuts and delays them, in a loop whose calls are
/// interrupted: what is read when is no more the client's doing than on a real one.
#[test]
fn whatever_the_network_did_each_client_says_the_same_and_is_answered_the_same() {
    for seed in 0..60_u64 {
        let sim = Sim::new(seed, Faults::none());
        let kept = Limits { recorder: 1 << 18, ..limits() };
        let mut reactor = Reactor::with_kernel(sim.kernel(), Lines::default(), kept).unwrap();
        let address = Address::Tcp(([127, 0, 0, 1], 80).into());
        reactor.listen(&address, &ListenOptions::default()).unwrap();
        sim.set_faults(Faults::swarm(seed).without_losses());
        let mut clients: Vec<_> = (1..=4)
            .map(|number| (sim.connect(&address).unwrap(), vec![b'x'; number * 30], Vec::new()))
            .collect();
        for (_, words, _) in &mut clients {
            words
                .iter_mut()
                .skip(usize::try_from(seed % 7).unwrap())
                .step_by(8)
                .for_each(|byte| *byte = b'\n');
        }
        let (mut moved, mut since) = (0, sim.now());
        while !clients.iter().all(|(client, ..)| client.is_ended()) {
            reactor.turn(Some(Duration::from_millis(100))).unwrap();
            let mut now = 0;
            for (client, words, heard) in &mut clients {
                let count = client.send(&words[..words.len().min(11)]);
                words.drain(..count);
                if words.is_empty() {
                    client.shutdown_write();
                }
                heard.extend(client.recv_all());
                now += heard.len() + client.unsent() + words.len();
            }
            if now != moved {
                (moved, since) = (now, sim.now());
            }
            assert!(sim.now() - since < Duration::from_secs(600), "seed {seed}");
        }
        clients.iter_mut().for_each(|(client, _, heard)| heard.extend(client.recv_all()));
        // The last acknowledgements, and what follows from them.
        let all_closed = |it: &Call| matches!(it, Call::Close(..));
        while reactor.handler().calls.borrow().iter().filter(|it| all_closed(it)).count() < clients.len() {
            reactor.turn(Some(Duration::from_millis(100))).unwrap();
        }
        let recording = reactor.ctx().recording().unwrap();
        assert_eq!(recording.overwritten, 0);
        let then = reactor.handler().calls.take();
        let (replayed, calls) = replay(&recording, limits());
        // Pieces of one turn may be one now, but all that is read is the same, and so is what is left of a line.
        let ends = |calls: &[Call], id| {
            calls.iter().filter(|it| matches!(it, Call::Eof(of, _) if *of == id)).cloned().collect::<Vec<_>>()
        };
        for client in &replayed {
            assert_eq!(client.after, client.before, "seed {seed}: {client:?}");
            assert_eq!(client.after.reason, Some(CloseReason::PeerClosed));
            assert_eq!(ends(&calls, client.replayed.unwrap()), ends(&then, client.recorded), "seed {seed}");
        }
        let mut answers: Vec<_> = replayed.into_iter().map(|client| client.answer).collect();
        let mut heard: Vec<_> = clients.into_iter().map(|(.., heard)| heard).collect();
        answers.sort();
        heard.sort();
        assert_eq!(answers, heard, "seed {seed}");
    }
}

prop_compose! {
    /// Each order of magnitude as likely as the others: of centuries there is one turn for each month.
    fn any_time()(nanoseconds: u64, shift in 0..64_u32) -> u64 {
        nanoseconds >> shift
    }
}

prop_compose! {
    fn any_record()(
        time in any_time(),
        token in 0..6_u64,
        duration in prop_oneof![0..20_u64, any::<u64>()],
        amount in prop_oneof![Just(0), 0..20_u32, any::<u32>()],
        detail in prop_oneof![Just(0), 0..200_u16],
        code in 0..10_u8,
        extra in 0..14_u8,
    ) -> Record {
        let time = Timestamp::from_nanoseconds(time);
        Record { time, token: token | 1 << 32, duration, amount, detail, code, extra }
    }
}

proptest! {
    /// Whatever it says: somebody else may have made it up.
    #[test]
    fn any_recording_can_be_played(
        records in prop::collection::vec(any_record(), 0..60),
        time in any_time(),
        input in prop::collection::vec(any::<u8>(), 0..40),
    ) {
        let wall = SystemTime::UNIX_EPOCH + Duration::from_nanos(time);
        let time = Timestamp::from_nanoseconds(time);
        let recording = Recording { worker: 0, overwritten: 0, time, wall, records, input };
        let replay = Replay::new(&recording);
        let replayed = replay.run(Lines::default(), limits()).unwrap();
        prop_assert_eq!(replayed.clients.len(), replay.clients());
        let sent: usize = replayed.clients.iter().map(|client| client.sent.len()).sum();
        prop_assert!(sent <= recording.input.len(), "{sent} bytes are sent of {}", recording.input.len());
        for client in &replayed.clients {
            prop_assert!(client.after.read <= client.sent.len() as u64);
            prop_assert!(client.answer.len() as u64 <= client.after.written);
        }
    }
}
