//! Open connections that go from a busy loop to an idle one: nothing is lost on the way, each is told of once, and whoever
//! cannot go stays.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use epoll_reactor::{
    Address, CloseReason, CloseStats, ConnId, Ctx, Handler, Limits, Linux, ListenOptions, Reactor, Remote,
    SendOutcome, Timestamp, Worker,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// After so long one moves, if one may.
const SOME_TIME: Duration = Duration::from_millis(1_500);

/// So long each callback takes, which makes the loop a busy one.
const WORK: Duration = Duration::from_millis(10);

/// Echoes, and says after each piece that this is a quiet moment.
struct Echo {
    index: usize,
    /// Says something in the middle of a callback: it arrives when the socket has been read to its end.
    aside: Option<TcpStream>,
    /// It leaves the last byte unconsumed.
    leaves_rest: bool,
    calls: Vec<Call>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Call {
    Opened { has_moved: bool },
    Closed(CloseReason),
}

use Call::{Closed, Opened};

impl Handler for Echo {
    /// How many pieces it has sent: it begins anew in each loop.
    type Conn = usize;
    type Message = ();

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, pieces: &mut usize) {
        assert_eq!(*pieces, 0);
        let has_moved = ctx.has_moved(id);
        self.calls.push(Opened { has_moved });
        if !has_moved {
            let _: SendOutcome<_> = ctx.send(id, &[u8::try_from(self.index).unwrap()]);
        }
    }

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, pieces: &mut usize, input: &[u8]) -> usize {
        let began = Instant::now();
        *pieces += 1;
        if let Some(aside) = &mut self.aside {
            // One of its own, so that it is in order.
            aside.write_all(&[input[input.len() - 1].wrapping_add(1)]).unwrap();
        }
        let consumed = input.len() - usize::from(self.leaves_rest);
        let _: SendOutcome<_> = ctx.send(id, &input[..consumed]);
        ctx.hand_over(id);
        while began.elapsed() < WORK {
            std::hint::spin_loop();
        }
        consumed
    }

    fn on_shutdown(&mut self, _: &mut Ctx, _: ConnId, _: &mut usize, _: Timestamp) {}

    fn on_close(&mut self, _: &mut Ctx, _: ConnId, pieces: usize, reason: CloseReason, stats: &CloseStats) {
        if reason == CloseReason::HandedOver {
            assert!(pieces > 0);
            assert_eq!(stats.bytes_unsent, 0);
        }
        self.calls.push(Closed(reason));
    }
}

struct Loop {
    reactor: Reactor<Echo>,
    address: Address,
}

impl Loop {
    fn turn(&mut self) {
        self.reactor.turn(Some(Duration::ZERO)).unwrap();
    }

    fn moved(&self) -> u64 {
        self.reactor.metrics().read().counters.moved
    }

    fn taken_over(&self) -> u64 {
        self.reactor.metrics().read().counters.taken_over
    }

    fn calls(&mut self) -> Vec<Call> {
        std::mem::take(&mut self.reactor.handler().calls)
    }
}

/// What a client sends is 0, 1, 2 and so on, and so is what it is sent.
struct Client {
    stream: TcpStream,
    said: u8,
    heard: u8,
}

impl Client {
    fn say(&mut self) {
        self.stream.write_all(&[self.said]).unwrap();
        self.said = self.said.wrapping_add(1);
    }

    /// All that has come, which must be in order.
    fn hear(&mut self) {
        let mut bytes = [0; 64];
        loop {
            match self.stream.read(&mut bytes) {
                Ok(0) => panic!("it is closed"),
                Ok(count) => {
                    for byte in &bytes[..count] {
                        assert_eq!(*byte, self.heard);
                        self.heard = self.heard.wrapping_add(1);
                    }
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn is_answered(&mut self) -> bool {
        self.hear();
        self.heard == self.said
    }
}

/// Two loops of two clients each, and those of the first.
fn two(limits: &Limits) -> ([Loop; 2], [Client; 2], Vec<TcpStream>) {
    let kernels = [(); 2].map(|()| Linux::new().unwrap());
    let remotes: Arc<[Remote<()>]> =
        kernels.iter().map(|kernel| Remote::for_kernel(kernel, limits).unwrap()).collect();
    let mut index = 0;
    let mut loops = kernels.map(|kernel| {
        let worker = Worker::new(index, Arc::clone(&remotes)).unwrap();
        let handler = Echo { index, aside: None, leaves_rest: false, calls: Vec::new() };
        index += 1;
        let mut reactor =
            Reactor::with_remote(kernel, handler, limits.clone(), worker.remote().clone()).unwrap();
        let listening = Address::Tcp("127.0.0.1:0".parse().unwrap());
        let (_, address) = reactor.listen(&listening, &ListenOptions::default()).unwrap();
        reactor.balance(&worker);
        reactor.turn(Some(Duration::ZERO)).unwrap();
        Loop { reactor, address }
    });
    let (mut driven, mut idle) = (Vec::new(), Vec::new());
    for number in 0..4 {
        let mut stream = TcpStream::connect(loops[number % 2].address.as_tcp().unwrap()).unwrap();
        stream.set_nonblocking(true).unwrap();
        let mut greeting = [0];
        wait(&mut loops, |_| stream.read(&mut greeting).is_ok());
        if greeting == [0] {
            driven.push(Client { stream, said: 0, heard: 0 });
        } else {
            idle.push(stream);
        }
    }
    let Ok(driven) = driven.try_into() else { panic!("the loops have two each") };
    loops.iter_mut().for_each(|it| _ = it.calls());
    (loops, driven, idle)
}

/// Turns of both, until it is done.
fn wait(loops: &mut [Loop; 2], mut is_done: impl FnMut(&mut [Loop; 2]) -> bool) {
    let end = Instant::now() + PATIENCE;
    while !is_done(loops) {
        assert!(Instant::now() < end, "{:?}", loops.each_mut().map(|it| it.reactor.ctx().counters()));
        loops.iter_mut().for_each(Loop::turn);
    }
}

/// Has both clients talk to the first loop, as the second one stands still, until one of them has moved, or `is_enough`.
fn drive(loops: &mut [Loop; 2], clients: &mut [Client; 2], mut is_enough: impl FnMut(&Loop) -> bool) {
    let end = Instant::now() + PATIENCE;
    let before = loops[0].moved();
    let mut rounds = 0_usize;
    while loops[0].moved() == before && !is_enough(&loops[0]) {
        assert!(Instant::now() < end, "none moves: {:?}", loops[0].reactor.ctx().counters());
        let client = &mut clients[rounds % 2];
        rounds += 1;
        client.say();
        loops[0].turn();
        client.hear();
    }
}

fn is_echoed(loops: &mut [Loop; 2], clients: &mut [Client; 2]) {
    for client in clients {
        client.say();
        wait(loops, |_| client.is_answered());
    }
}

#[test]
fn a_moved_connection_goes_on_where_it_was() {
    let (mut loops, mut clients, _idle) = two(&Limits::default());
    drive(&mut loops, &mut clients, |_| false);
    assert_eq!(loops[0].calls(), [Closed(CloseReason::HandedOver)]);
    assert_eq!((loops[0].reactor.ctx().connections(), loops[1].taken_over()), (1, 0));
    // Both may talk meanwhile; one of them is in no loop.
    clients.iter_mut().for_each(Client::say);
    loops[1].turn();
    assert_eq!(loops[1].calls()[0], Opened { has_moved: true });
    assert_eq!((loops[1].reactor.ctx().connections(), loops[1].taken_over()), (3, 1));
    is_echoed(&mut loops, &mut clients);
    let counters = loops[0].reactor.ctx().counters();
    assert_eq!((counters.moved, counters.closed, counters.shed), (1, 1, 0));
    let closes: Vec<_> = loops[0].reactor.metrics().read().closes().filter(|(_, count)| *count > 0).collect();
    assert_eq!(closes, [("handed_over", 1)]);
    // There is one left that is served, and to move it would help nobody.
    let end = Instant::now() + SOME_TIME;
    drive(&mut loops, &mut clients, |_| Instant::now() > end);
    assert_eq!((loops[0].moved(), loops[0].calls()), (1, vec![]));
    is_echoed(&mut loops, &mut clients);
}

#[test]
fn what_arrives_behind_the_last_read_is_read_in_the_other_loop() {
    let (mut loops, mut clients, _idle) = two(&Limits::default());
    let end = Instant::now() + PATIENCE;
    // One of them says each second byte while the first is being answered; when it moves, that byte is on its way, and
    // nothing more comes that could tell of it.
    while loops[0].moved() == 0 {
        assert!(Instant::now() < end, "none moves");
        let [talker, other] = &mut clients;
        other.say();
        loops[0].turn();
        other.hear();
        if loops[0].moved() > 0 {
            break;
        }
        loops[0].reactor.handler().aside = Some(talker.stream.try_clone().unwrap());
        talker.say();
        loops[0].turn();
        loops[0].reactor.handler().aside = None;
        talker.said = talker.said.wrapping_add(1);
        if loops[0].moved() == 0 {
            wait_for_echo(&mut loops[0], talker);
        }
    }
    for client in &mut clients {
        wait(&mut loops, |_| client.is_answered());
    }
    is_echoed(&mut loops, &mut clients);
}

fn wait_for_echo(at: &mut Loop, client: &mut Client) {
    let end = Instant::now() + PATIENCE;
    while !client.is_answered() && at.moved() == 0 {
        assert!(Instant::now() < end, "no echo");
        at.turn();
    }
}

#[test]
fn one_that_the_other_loop_does_not_take_stays_and_is_told_nothing() {
    let limits = Limits { message_queue: 1, ..Limits::default() };
    let (mut loops, mut clients, mut idle) = two(&limits);
    // Handed over at the start, and not taken: there is no place for another.
    let count = |it: &Loop| it.reactor.metrics().read().counters.handed_over;
    let before = count(&loops[0]);
    while count(&loops[0]) == before {
        assert!(idle.len() < 5, "nobody is handed over");
        idle.push(TcpStream::connect(loops[0].address.as_tcp().unwrap()).unwrap());
        loops[0].reactor.turn(Some(PATIENCE)).unwrap();
    }
    _ = loops[0].calls();
    let end = Instant::now() + SOME_TIME;
    drive(&mut loops, &mut clients, |_| Instant::now() > end);
    assert_eq!((loops[0].moved(), loops[0].calls()), (0, vec![]));
    for client in &mut clients {
        assert!(client.is_answered());
    }
    // As soon as there is, one goes.
    loops[1].turn();
    drive(&mut loops, &mut clients, |_| false);
    is_echoed(&mut loops, &mut clients);
}

#[test]
fn one_for_whom_there_is_no_room_is_sent_back_and_served_as_before() {
    // All of one address: neither loop has room for a third, which the first cannot know of the second.
    let limits = Limits { connections_per_address: 2, ..Limits::default() };
    let (mut loops, mut clients, mut idle) = two(&limits);
    drive(&mut loops, &mut clients, |_| false);
    // Its place is taken before it is back.
    let mut late = TcpStream::connect(loops[0].address.as_tcp().unwrap()).unwrap();
    late.set_nonblocking(true).unwrap();
    wait_for_accept(&mut loops[0], &mut late);
    idle.push(late);
    loops[1].turn();
    assert_eq!((loops[1].moved(), loops[1].taken_over(), loops[1].calls()), (1, 1, vec![]));
    loops[0].turn();
    assert_eq!(
        loops[0].calls(),
        [Closed(CloseReason::HandedOver), Opened { has_moved: false }, Opened { has_moved: true }]
    );
    assert_eq!(loops[0].reactor.ctx().counters().shed, 0);
    is_echoed(&mut loops, &mut clients);
    // It is over what a loop may have, and so the next that is new is turned away.
    let _crowd = TcpStream::connect(loops[0].address.as_tcp().unwrap()).unwrap();
    wait(&mut loops, |loops| loops[0].reactor.ctx().counters().shed_by_address == 1);
}

fn wait_for_accept(at: &mut Loop, stream: &mut TcpStream) {
    let end = Instant::now() + PATIENCE;
    while stream.read(&mut [0]).is_err() {
        assert!(Instant::now() < end, "it is not accepted");
        at.turn();
    }
}

#[test]
fn none_moves_with_a_rest_of_its_input() {
    let (mut loops, mut clients, _idle) = two(&Limits::default());
    loops[0].reactor.handler().leaves_rest = true;
    let end = Instant::now() + SOME_TIME;
    drive(&mut loops, &mut clients, |_| Instant::now() > end);
    assert_eq!(loops[0].moved(), 0, "it has been read, and the other loop could not know of it");
    loops[0].reactor.handler().leaves_rest = false;
    drive(&mut loops, &mut clients, |_| false);
    is_echoed(&mut loops, &mut clients);
}

#[test]
fn none_moves_in_a_drain() {
    let (mut loops, mut clients, _idle) = two(&Limits::default());
    loops[0].reactor.ctx().drain(PATIENCE);
    let end = Instant::now() + SOME_TIME;
    drive(&mut loops, &mut clients, |_| Instant::now() > end);
    assert_eq!((loops[0].moved(), loops[0].calls()), (0, vec![]));
    is_echoed(&mut loops, &mut clients);
}
