//! New clients go to the loop that has the fewest: how evenly, when not, and that nobody is lost on the way.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test"
)]

use std::io::{self, ErrorKind, Read};
use std::net::TcpStream;
use std::num::NonZeroUsize;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::mpsc::channel;
use std::thread;
use std::time::{Duration, Instant};

use epoll_reactor::{
    Address, ConnId, Ctx, Handler, Limits, Linux, ListenOptions, LoopPhase, Reactor, Remote, SendOutcome,
    Timestamp, Worker, Workers, monotonic_now,
};

const PATIENCE: Duration = Duration::from_secs(30);

/// Greets each client with the number of its loop.
struct Numbered {
    index: u8,
    /// A drain closes no connection.
    stays: bool,
    /// It closes each at once.
    closes: bool,
    open: usize,
}

impl Handler for Numbered {
    type Conn = ();
    type Message = ();

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut ()) {
        self.open += 1;
        let _: SendOutcome<_> = ctx.send(id, &[b'0' + self.index]);
        if self.closes {
            ctx.close_now(id);
        }
    }

    fn on_data(&mut self, _: &mut Ctx, _: ConnId, (): &mut (), input: &[u8]) -> usize {
        input.len()
    }

    fn on_shutdown(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut (), _: Timestamp) {
        if !self.stays {
            ctx.close_after_flush(id);
        }
    }
}

fn numbered(worker: &Worker<()>) -> io::Result<Numbered> {
    Ok(Numbered { index: u8::try_from(worker.index()).unwrap(), stays: false, closes: false, open: 0 })
}

fn balanced(count: usize, limits: Limits) -> Workers<()> {
    let mut workers = Workers::new(NonZeroUsize::new(count).unwrap(), limits).unwrap();
    workers.balance();
    workers
}

/// The loop that greets; `None` if it is closed instead.
fn greeting(stream: &mut impl Read) -> Option<usize> {
    let mut digit = [0];
    matches!(stream.read(&mut digit), Ok(1)).then(|| usize::from(digit[0] - b'0'))
}

fn connect(address: &Address) -> TcpStream {
    let stream = TcpStream::connect(address.as_tcp().unwrap()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn loopback() -> Address {
    Address::Tcp("127.0.0.1:0".parse().unwrap())
}

/// They have started, and none may have had its first turn, before which it is handed none.
fn wait_for_first_turns(remotes: &[Remote<()>]) {
    let end = Instant::now() + PATIENCE;
    while remotes.iter().any(|remote| remote.metrics().read().phase == LoopPhase::Starting) {
        assert!(Instant::now() < end, "a loop takes no turn");
        thread::yield_now();
    }
}

/// The sum over all loops.
fn sum(remotes: &[Remote<()>], get: fn(&epoll_reactor::Counters) -> u64) -> u64 {
    remotes.iter().map(|remote| get(&remote.metrics().read().counters)).sum()
}

#[test]
fn however_the_kernel_spreads_them_each_loop_has_its_part() {
    const LOOPS: usize = 4;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("socket");
    let mut workers = balanced(LOOPS, Limits::default());
    let tcp = workers.listen(&loopback(), &ListenOptions::default()).unwrap();
    workers.listen(&Address::Unix(path.clone()), &ListenOptions::default()).unwrap();
    let remotes = Arc::clone(workers.remotes());
    let end = workers.run(numbered, |_| {
        wait_for_first_turns(&remotes);
        let (mut of, mut open) = ([0_usize; LOOPS], Vec::<Box<dyn Read>>::new());
        for number in 0..200 {
            let mut stream: Box<dyn Read> = if number % 2 == 0 {
                Box::new(connect(&tcp))
            } else {
                let stream = UnixStream::connect(&path).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                Box::new(stream)
            };
            of[greeting(&mut stream).unwrap()] += 1;
            open.push(stream);
        }
        // Strictly so only where no thread is ever held up by others: see below. On the Unix socket one or two loops are
        // awake.
        assert!(of.iter().all(|count| *count >= 25), "{of:?}");
        remotes.iter().for_each(Remote::drain);
    });
    assert_eq!(end.unwrap().died, 0);
    let handed = sum(&remotes, |counters| counters.handed_over);
    assert!(handed > 0);
    assert_eq!(sum(&remotes, |counters| counters.taken_over), handed);
    assert_eq!(sum(&remotes, |counters| counters.accepted), 200);
}

#[test]
fn nobody_is_turned_away_while_a_loop_has_room() {
    for limit in [2, 7, 33] {
        let mut workers = balanced(2, Limits { connections: limit, ..Limits::default() });
        let address = workers.listen(&loopback(), &ListenOptions::default()).unwrap();
        let remotes = Arc::clone(workers.remotes());
        let run = workers.run(numbered, |_| {
            wait_for_first_turns(&remotes);
            let (mut of, mut open) = ([0; 2], Vec::new());
            for _ in 0..limit {
                let mut stream = connect(&address);
                of[greeting(&mut stream).expect("there is room")] += 1;
                open.push(stream);
            }
            assert_eq!(of, [limit.div_ceil(2), limit / 2]);
            // Who is greeted is counted where it was taken over, and will be where it came from.
            let handed = sum(&remotes, |counters| counters.taken_over);
            let end = Instant::now() + PATIENCE;
            while sum(&remotes, |counters| counters.handed_over) < handed {
                assert!(Instant::now() < end, "it is not counted");
                thread::yield_now();
            }
            for _ in 0..10 {
                assert_eq!(greeting(&mut connect(&address)), None, "and now there is none");
            }
            assert_eq!(sum(&remotes, |counters| counters.handed_over), handed, "nowhere");
            remotes.iter().for_each(Remote::drain);
        });
        run.unwrap();
    }
}

/// A loop that is run by hand, and where it listens.
type ByHand = (Reactor<Numbered>, Address);

fn by_hand(count: usize, stays: bool) -> (Vec<ByHand>, Arc<[Remote<()>]>) {
    by_hand_within(&Limits::default(), count, stays)
}

fn by_hand_within(limits: &Limits, count: usize, stays: bool) -> (Vec<ByHand>, Arc<[Remote<()>]>) {
    let kernels: Vec<Linux> = (0..count).map(|_| Linux::new().unwrap()).collect();
    let remotes: Arc<[_]> =
        kernels.iter().map(|kernel| Remote::for_kernel(kernel, limits).unwrap()).collect();
    let reactors = kernels.into_iter().enumerate().map(|(index, kernel)| {
        let worker = Worker::new(index, Arc::clone(&remotes)).unwrap();
        let handler = Numbered { stays, ..numbered(&worker).unwrap() };
        let mut reactor =
            Reactor::with_remote(kernel, handler, limits.clone(), worker.remote().clone()).unwrap();
        let (_, address) = reactor.listen(&loopback(), &ListenOptions::default()).unwrap();
        reactor.balance(&worker);
        reactor.turn(Some(Duration::ZERO)).unwrap();
        (reactor, address)
    });
    (reactors.collect(), remotes)
}

/// Clients of that loop alone, which accepts them.
fn clients(of: &mut ByHand, count: u64) -> Vec<TcpStream> {
    let (reactor, address) = of;
    let done = |reactor: &mut Reactor<Numbered>| {
        let counters = reactor.ctx().counters();
        counters.accepted - counters.taken_over + counters.handed_over
    };
    let before = done(reactor);
    let mut streams = Vec::new();
    for number in 1..=count {
        streams.push(connect(address));
        let end = Instant::now() + PATIENCE;
        while done(reactor) < before + number {
            assert!(Instant::now() < end, "it is not accepted");
            reactor.turn(Some(PATIENCE)).unwrap();
        }
    }
    streams
}

fn handed_over(reactor: &mut Reactor<Numbered>) -> u64 {
    reactor.ctx().counters().handed_over
}

fn open(loops: &[ByHand]) -> Vec<u64> {
    let of = |(reactor, _): &ByHand| reactor.metrics().read().connections().map(|(_, count)| count).sum();
    loops.iter().map(of).collect()
}

fn assert_even(of: &[u64]) {
    let (most, least) = (*of.iter().max().unwrap(), *of.iter().min().unwrap());
    assert!(most <= least + least / 16 + 1, "{of:?}");
}

#[test]
fn they_are_apart_by_one_and_a_sixteenth_at_most_also_when_a_loop_is_gone() {
    let (mut loops, _) = by_hand(4, false);
    let (mut streams, mut left) = (Vec::new(), 0);
    for number in 0..300 {
        if number == 100 {
            // It has none now, which makes it none to hand over to.
            loops.truncate(3);
            left = open(&loops).iter().sum();
        }
        streams.extend(clients(&mut loops[number / 2 % 2], 1));
        for (reactor, _) in &mut loops {
            reactor.turn(Some(Duration::ZERO)).unwrap();
        }
        assert_even(&open(&loops));
    }
    assert_eq!(open(&loops).iter().sum::<u64>(), left + 200);
}

#[test]
fn of_a_loop_that_takes_none_a_bounded_number_waits_and_is_opened_in_its_next_turns() {
    let limits = Limits { message_queue: 40, accept_budget: 16, ..Limits::default() };
    let (mut loops, _) = by_hand_within(&limits, 2, false);
    let streams = clients(&mut loops[0], 100);
    assert_eq!(handed_over(&mut loops[0].0), 40);
    assert_eq!((loops[0].0.handler().open, loops[1].0.handler().open), (60, 0));
    // Like those of a listener.
    for opened in [16, 32, 40] {
        loops[1].0.turn(Some(PATIENCE)).unwrap();
        assert_eq!(loops[1].0.handler().open, opened);
    }
    let mut of = [0; 2];
    for mut stream in streams {
        of[greeting(&mut stream).unwrap()] += 1;
    }
    assert_eq!(of, [60, 40]);
}

#[test]
fn who_was_handed_over_is_not_handed_on() {
    let (mut loops, _) = by_hand(3, false);
    // Two for each.
    let mut streams = clients(&mut loops[0], 6);
    assert_eq!((loops[0].0.handler().open, handed_over(&mut loops[0].0)), (2, 4));
    loops[2].0.turn(Some(PATIENCE)).unwrap();
    assert_eq!(loops[2].0.handler().open, 2);
    streams.clear();
    let end = Instant::now() + PATIENCE;
    while loops[2].0.ctx().connections() > 0 {
        assert!(Instant::now() < end, "its clients are gone");
        loops[2].0.turn(Some(PATIENCE)).unwrap();
    }
    // Now the third has none, and those of the second are still to be opened there.
    loops[1].0.turn(Some(PATIENCE)).unwrap();
    assert_eq!((loops[1].0.handler().open, handed_over(&mut loops[1].0)), (2, 0));
}

#[test]
fn a_loop_that_drains_or_has_ended_is_handed_none_and_hands_over_none() {
    let (mut loops, remotes) = by_hand(2, true);
    let mut streams = clients(&mut loops[0], 2);
    loops[1].0.turn(Some(PATIENCE)).unwrap();
    assert_eq!(loops[1].0.handler().open, 1);
    remotes[1].drain();
    loops[1].0.turn(Some(PATIENCE)).unwrap();
    assert_eq!(remotes[1].metrics().read().phase, LoopPhase::Draining);
    streams.extend(clients(&mut loops[0], 5));
    assert_eq!(handed_over(&mut loops[0].0), 1, "those that came before");
    drop(loops.pop());
    assert_eq!(remotes[1].metrics().read().phase, LoopPhase::Ended);
    streams.extend(clients(&mut loops[0], 5));
    assert_eq!(handed_over(&mut loops[0].0), 1);
    // What waits when it begins to drain itself is its own to open, however few another has.
    let (mut loops, _) = by_hand(2, true);
    let _open = clients(&mut loops[0], 4);
    assert_eq!(handed_over(&mut loops[0].0), 2);
    let _pending: Vec<_> = (0..3).map(|_| connect(&loops[0].1)).collect();
    loops[0].0.ctx().drain(PATIENCE);
    loops[0].0.turn(Some(PATIENCE)).unwrap();
    assert_eq!((handed_over(&mut loops[0].0), loops[0].0.handler().open), (2, 5));
}

#[test]
fn a_loop_that_has_yet_to_take_a_turn_is_handed_none() {
    let limits = Limits::default();
    let kernels = [Linux::new().unwrap(), Linux::new().unwrap()];
    let remotes: Arc<[_]> =
        kernels.iter().map(|kernel| Remote::for_kernel(kernel, &limits).unwrap()).collect();
    let [kernel, _] = kernels;
    let worker = Worker::new(0, Arc::clone(&remotes)).unwrap();
    let handler = numbered(&worker).unwrap();
    let mut reactor = Reactor::with_remote(kernel, handler, limits, worker.remote().clone()).unwrap();
    let (_, address) = reactor.listen(&loopback(), &ListenOptions::default()).unwrap();
    reactor.balance(&worker);
    let mut only = (reactor, address);
    let _streams = clients(&mut only, 5);
    assert_eq!(only.0.handler().open, 5);
}

#[test]
fn a_loop_that_is_held_up_is_handed_none() {
    let (mut loops, remotes) = by_hand(2, false);
    let mut held_up = loops.pop().unwrap();
    let (release, released) = channel::<()>();
    let remote = remotes[1].clone();
    let running = thread::spawn(move || held_up.0.run().unwrap());
    remote.inspect(move |_| _ = released.recv_timeout(PATIENCE)).unwrap();
    let end = Instant::now() + PATIENCE;
    while remote.metrics().read().in_turn_for(monotonic_now()) < Duration::from_millis(150) {
        assert!(Instant::now() < end, "it is not held up");
        thread::yield_now();
    }
    let _streams = clients(&mut loops[0], 5);
    assert_eq!(loops[0].0.handler().open, 5);
    release.send(()).unwrap();
    remote.drain();
    running.join().unwrap();
}

#[test]
fn a_loop_that_dies_closes_who_waits_for_it() {
    let (mut loops, _) = by_hand(2, false);
    let mut streams = clients(&mut loops[0], 4);
    assert_eq!(handed_over(&mut loops[0].0), 2);
    drop(loops.pop());
    let ends: Vec<_> = streams.iter_mut().map(greeting).collect();
    assert_eq!(ends.iter().filter(|end| **end == Some(0)).count(), 2, "{ends:?}");
    assert_eq!(ends.iter().filter(|end| end.is_none()).count(), 2);
    let error = |stream: &mut TcpStream| stream.read(&mut [0]).err().map(|error| error.kind());
    assert!(!streams.iter_mut().zip(&ends).any(|(stream, end)| {
        end.is_none() && matches!(error(stream), Some(ErrorKind::WouldBlock | ErrorKind::TimedOut))
    }));
}

#[test]
fn a_crowd_of_one_client_is_turned_away_where_it_comes() {
    let (mut loops, _) =
        by_hand_within(&Limits { connections_per_address: 1, ..Limits::default() }, 2, false);
    let _client = clients(&mut loops[0], 1);
    let (reactor, address) = &mut loops[0];
    let _crowd: Vec<_> = (0..5).map(|_| connect(address)).collect();
    let end = Instant::now() + PATIENCE;
    while reactor.ctx().counters().shed_by_address < 5 {
        assert!(Instant::now() < end, "{:?}", reactor.ctx().counters());
        reactor.turn(Some(PATIENCE)).unwrap();
    }
    assert_eq!(handed_over(reactor), 0);
}

#[test]
fn the_room_of_who_waits_is_nobody_else_s() {
    let (mut loops, _) = by_hand_within(&Limits { connections: 20, ..Limits::default() }, 2, false);
    let mut streams = Vec::new();
    for _ in 0..19 {
        streams.push(clients(&mut loops[0], 1));
        streams.push(clients(&mut loops[1], 1));
    }
    // The first one gets full, so one more of its clients waits for the second, and then one leaves.
    streams.push(clients(&mut loops[0], 2));
    assert_eq!((open(&loops), handed_over(&mut loops[0].0)), (vec![20, 19], 1));
    drop(streams.remove(0));
    let end = Instant::now() + PATIENCE;
    while open(&loops)[0] == 20 {
        assert!(Instant::now() < end, "it has left");
        loops[0].0.turn(Some(PATIENCE)).unwrap();
    }
    streams.push(clients(&mut loops[1], 1));
    loops[0].0.turn(Some(PATIENCE)).unwrap();
    assert_eq!(open(&loops), [20, 20]);
}

#[test]
fn who_is_gone_and_has_a_slot_still_costs_nobody_his_place() {
    let (mut loops, _) = by_hand_within(&Limits { connections: 1, ..Limits::default() }, 2, false);
    loops[0].0.handler().closes = true;
    // In one turn: the slot of the first is free at its end.
    let _clients = [connect(&loops[0].1), connect(&loops[0].1)];
    let end = Instant::now() + PATIENCE;
    while loops[0].0.handler().open == 0 {
        assert!(Instant::now() < end, "nobody is accepted");
        loops[0].0.turn(Some(PATIENCE)).unwrap();
    }
    loops[0].0.turn(Some(Duration::ZERO)).unwrap();
    let counters = loops[0].0.ctx().counters();
    assert_eq!((counters.accepted, counters.handed_over, counters.shed), (1, 1, 0));
}
