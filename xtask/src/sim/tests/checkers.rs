//! Each checker, fed by hand with what it must refuse.

use std::collections::BTreeMap;
use std::time::Duration;

use epoll_protocols::Echo;
use epoll_reactor::sim::{Faults, Sim, SimKernel};
use epoll_reactor::{
    Address, CloseReason, CloseStats, ConnId, Ctx, Handler, Limits, ListenOptions, Reactor, SendOutcome,
};

use crate::sim::answers::{Expected, Framing, Reader};
use crate::sim::broadcast::{Ended, Member, compare};
use crate::sim::echo::Echoes;
use crate::sim::overdue::Overdue;
use crate::sim::plan::{Cuts, Kind, Plan};
use crate::sim::published::{Line, content, name};
use crate::sim::scenario::Scenario;
use crate::sim::session::{Session, Talk};
use crate::sim::voice::{self, Ear, URGENT};
use crate::sim::watched::{Kept, Watched};

struct Eats(usize);

impl Handler for Eats {
    type Conn = ();
    type Message = ();

    fn on_data(&mut self, _: &mut Ctx, _: ConnId, (): &mut (), _: &[u8]) -> usize {
        self.0
    }
}

/// A loop for its context, and two ids that are open as far as that knows.
fn loop_with_two() -> (Reactor<Eats, SimKernel>, ConnId, ConnId) {
    let sim = Sim::new(1, Faults::none());
    let mut reactor = Reactor::with_kernel(sim.kernel(), Eats(0), Limits::default()).unwrap();
    let address = Address::Tcp(([192, 0, 2, 1], 1).into());
    let one = reactor.ctx().connect(address.clone()).unwrap();
    let other = reactor.ctx().connect(address).unwrap();
    (reactor, one, other)
}

type Watch = Watched<Eats>;
type Steps = fn(&mut Watch, &mut Ctx, ConnId, ConnId, &mut Kept<()>);

/// Those of a connection that was refused.
fn stats() -> CloseStats {
    struct Takes(Option<CloseStats>);
    impl Handler for Takes {
        type Conn = ();
        type Message = ();
        fn on_data(&mut self, _: &mut Ctx, _: ConnId, (): &mut (), input: &[u8]) -> usize {
            input.len()
        }
        fn on_close(&mut self, _: &mut Ctx, _: ConnId, (): (), _: CloseReason, stats: &CloseStats) {
            self.0 = Some(*stats);
        }
    }
    let sim = Sim::new(1, Faults::none());
    let mut reactor = Reactor::with_kernel(sim.kernel(), Takes(None), Limits::default()).unwrap();
    reactor.ctx().connect(Address::Unix("/nobody".into())).unwrap();
    reactor.turn(Some(std::time::Duration::ZERO)).unwrap();
    reactor.handler().0.unwrap()
}

#[test]
fn a_wrong_sequence_of_callbacks() {
    let table: [(&str, Steps); 9] = [
        ("has not been opened", |watched, ctx, one, _, conn| _ = watched.on_data(ctx, one, conn, b"x")),
        ("which there has been before", |watched, ctx, one, _, conn| {
            watched.on_open(ctx, one, conn);
            watched.on_open(ctx, one, &mut Kept::default());
        }),
        ("with the state of", |watched, ctx, one, other, conn| {
            watched.on_open(ctx, one, conn);
            watched.on_open(ctx, other, &mut Kept::default());
            watched.on_timer(ctx, other, conn);
        }),
        ("do not begin with the 3 left unconsumed", |watched, ctx, one, _, conn| {
            watched.on_open(ctx, one, conn);
            watched.on_data(ctx, one, conn, b"abc");
            watched.on_data(ctx, one, conn, b"abd!");
        }),
        ("0 unconsumed bytes, where 3 were left", |watched, ctx, one, _, conn| {
            watched.on_open(ctx, one, conn);
            watched.on_data(ctx, one, conn, b"abc");
            watched.on_eof(ctx, one, conn, b"");
        }),
        ("on_eof for 0.1 again", |watched, ctx, one, _, conn| {
            watched.on_open(ctx, one, conn);
            watched.on_eof(ctx, one, conn, b"");
            watched.on_eof(ctx, one, conn, b"");
        }),
        ("after on_close", |watched, ctx, one, _, conn| {
            watched.on_open(ctx, one, conn);
            let stats = stats();
            watched.on_close(ctx, one, Kept::default(), CloseReason::Local, &stats);
            watched.on_drain(ctx, one, conn);
        }),
        ("PeerClosed, though there was no on_eof", |watched, ctx, one, _, conn| {
            watched.on_open(ctx, one, conn);
            let stats = stats();
            watched.on_close(ctx, one, Kept::default(), CloseReason::PeerClosed, &stats);
        }),
        ("on_close for 0.1 again", |watched, ctx, one, _, _| {
            let stats = stats();
            for _ in 0..2 {
                watched.on_close(ctx, one, Kept::default(), CloseReason::Local, &stats);
            }
        }),
    ];
    for (told, steps) in table {
        let (mut reactor, one, other) = loop_with_two();
        let mut watched = Watched::new(Eats(0));
        steps(&mut watched, reactor.ctx(), one, other, &mut Kept::default());
        let violations = &watched.lives.violations;
        assert!(violations.iter().any(|violation| violation.contains(told)), "{told}: {violations:?}");
    }
    let (mut reactor, one, _) = loop_with_two();
    let mut watched = Watched::new(Eats(1));
    let conn = &mut Kept::default();
    watched.on_open(reactor.ctx(), one, conn);
    watched.on_data(reactor.ctx(), one, conn, b"abc");
    watched.on_data(reactor.ctx(), one, conn, b"bcd");
    watched.on_eof(reactor.ctx(), one, conn, b"cd");
    assert_eq!(watched.lives.violations, [""; 0], "a right one");
}

#[test]
fn a_stream_with_a_byte_missing_doubled_or_wrong() {
    let whole = voice::speak(voice::client(7), 0, 3_000);
    let mut ear = Ear::default();
    ear.hear(&whole).unwrap();
    assert_eq!(ear.speaker().and_then(voice::session), Some(7));
    for at in [9, 1_000, 2_900] {
        let (front, back) = whole.split_at(at);
        let mut shouted = front.to_vec();
        shouted.push(URGENT);
        shouted.extend_from_slice(back);
        assert_eq!(Ear::default().hear(&shouted), Ok(()));
        for wrong in [[front, &back[1..]], [&whole[..=at], back], [front, &whole[at / 2..]]] {
            assert!(Ear::default().hear(&wrong.concat()).is_err(), "at {at}");
        }
    }
    // A loss of any length shows.
    for lost in 1..2_000 {
        let wrong = [&whole[..500], &whole[500 + lost..]].concat();
        assert!(Ear::default().hear(&wrong).is_err(), "{lost} lost");
    }
}

const LIMIT: usize = 50;

fn line(number: u64) -> (Line, Vec<u8>) {
    let mut text = b"[Client_4] ".to_vec();
    text.extend(content(3, number, LIMIT));
    text.push(b'\n');
    (Line { client: 4, session: 3, number }, text)
}

#[test]
fn a_broadcast_that_is_torn_doubled_out_of_order_or_short() {
    let (a, b, c) = (line(0), line(1), line(2));
    assert_eq!(name(&content(3, 12, LIMIT)), Some((3, 12)));
    let entitled = [a.0, b.0, c.0];
    let strict = Ended { well: true, may_skip: false };
    let loose = Ended { well: true, may_skip: true };
    let cut = Ended { well: false, may_skip: false };
    let notice = b"[Server] 2 lines skipped\n".as_slice();
    let table: [(&[&[u8]], Ended, bool); 11] = [
        (&[&a.1, &b.1, &c.1], strict, true),
        (&[&a.1, &b.1], cut, true),
        (&[&a.1, notice], loose, true),
        (&[&a.1, &b.1], strict, false),
        (&[&b.1, &a.1, &c.1], strict, false),
        (&[&a.1, &a.1, &b.1, &c.1], cut, false),
        (&[&a.1, notice], strict, false),
        (&[notice, &b.1], loose, false),
        (&[&a.1, &b.1, notice], loose, false),
        (&[&a.1, &b.1[..9]], strict, false),
        (&[&a.1, &b.1, &c.1, &b.1[..9]], strict, false),
    ];
    for (position, (pieces, ended, right)) in table.into_iter().enumerate() {
        let mut member = Member::new(1, LIMIT, 0, 0, false);
        let heard = member.hear(&pieces.concat()).and_then(|()| compare(&member, &entitled, ended));
        assert_eq!(heard.is_ok(), right, "row {position}: {heard:?}");
    }
    let torn = [&a.1[..20], &b.1].concat();
    assert!(Member::new(1, LIMIT, 0, 0, false).hear(&torn).is_err());
}

#[test]
fn an_answer_that_is_none() {
    let expected = |closes| Expected {
        status: 200,
        body: b"body".to_vec(),
        framing: Framing::Length,
        head_only: false,
        closes,
        keep_alive: false,
        may_continue: false,
    };
    let fine = "HTTP/1.1 200 OK\r\nDate: today\r\nContent-Length: 4\r\n\r\nbody";
    let last = "HTTP/1.1 200 OK\r\nDate: today\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody";
    let refusal = "HTTP/1.1 400 Bad Request\r\nDate: today\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";
    let interim = "HTTP/1.1 100 Continue\r\n\r\n";
    let mut table = vec![
        (fine.repeat(2), true),
        (last.to_owned(), true),
        (refusal.to_owned(), true),
        ([last, fine].concat(), false),
        ([refusal, fine].concat(), false),
        (fine.repeat(3), false),
        (interim.to_owned(), false),
    ];
    for (from, to) in [
        ("200", "404"),
        ("HTTP/1.1", "HTTP/1.0"),
        ("4\r\n", "3\r\n"),
        ("body", "bode"),
        ("Date: today\r\n", ""),
        ("Date: ", "Date:"),
        ("Content-Length: 4", "Transfer-Encoding: chunked"),
        ("Content-Length: 4\r\n", "Content-Length: 4\r\nContent-Length: 4\r\n"),
        ("today\r\n", "today\n"),
    ] {
        table.push((fine.replacen(from, to, 1) + fine, false));
    }
    for (bytes, right) in table {
        for step in [1, 7, bytes.len()] {
            let mut reader = Reader::default();
            reader.expected.extend([expected(false), expected(false)]);
            let heard = bytes.as_bytes().chunks(step).try_for_each(|piece| reader.hear(piece));
            assert_eq!(heard.is_ok(), right, "{bytes:?} by {step}: {heard:?}");
        }
    }
    let mut reader = Reader::default();
    reader.expected.push_back(expected(true));
    assert!(reader.hear(fine.as_bytes()).is_err(), "it was asked to close");
}

/// What the kernel takes is written, whether the client lets it in or not.
#[test]
fn a_connection_that_is_written_to_is_not_taken_for_an_idle_one() {
    let sim = Sim::new(1, Faults::none());
    let plan = Plan::new(Kind::Echo, 1, &Cuts::default());
    let mut rng = plan.chance(1);
    let mut scenario = Echoes::new(&plan, &sim, &mut rng);
    let limits = Limits { idle_timeout: Some(Duration::from_secs(1)), ..Limits::default() };
    let mut reactor = Reactor::with_kernel(sim.kernel(), Watched::new(Echo), limits).unwrap();
    let address = Address::Tcp(([127, 0, 0, 1], 7000).into());
    reactor.listen(&address, &ListenOptions::default()).unwrap();
    let peer = sim.connect(&address).unwrap();
    peer.set_receive_buffer(0);
    let sessions = [Session::new(scenario.talk(0, &mut rng), peer, true, &mut rng)];
    let mut overdue = Overdue::new(&plan);
    let mut ids = BTreeMap::new();
    for _ in 0..120 {
        sim.advance(Duration::from_millis(500));
        reactor.handler().lives.begin_turn(sim.now());
        reactor.turn(Some(Duration::ZERO)).unwrap();
        let opened = reactor.handler().lives.iter().next().map(|life| life.id);
        ids.extend(opened.map(|id| (0, id)));
        overdue.check(&scenario, &mut reactor, &sessions, &ids, 0).unwrap();
        for id in ids.values() {
            assert!(matches!(reactor.ctx().send(*id, b"x"), SendOutcome::Sent));
        }
    }
    assert_eq!((sessions[0].heard_or_unread(), ids.len()), (0, 1));
}
