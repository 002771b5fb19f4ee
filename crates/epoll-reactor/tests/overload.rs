//! Overload, with time simulated: who is served is served soon, the others are told at once, and the loop stays busy with those it serves.
//! The law by itself is in `src/overload.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test"
)]

mod support;

use std::collections::VecDeque;
use std::io::{ErrorKind, Read};
use std::rc::Rc;
use std::time::{Duration, Instant};

use epoll_reactor::sim::{Faults, Network, Peer, Sim, SimKernel};
use epoll_reactor::{
    Address, ConnId, Ctx, Handler, Limits, ListenOptions, PanicPolicy, Reactor, Stopped, Timestamp, Turn,
};
use support::{Controls, PATIENCE, TestKernel, warnings};

/// What serving a request takes, and shedding one. A wait is rounded up to a millisecond, so they are long.
const WORK: Duration = Duration::from_millis(10);
const SHEDDING: Duration = Duration::from_micros(100);
const TARGET: Duration = Duration::from_millis(100);
const INTERVAL: Duration = Duration::from_secs(2);
/// What arriving may take, and a wait may be rounded up by.
const SLACK: Duration = Duration::from_millis(2);

/// A request is the number of the client that sent it, and its time; the answer is a byte.
const REQUEST: usize = 16;
const SERVED: u8 = b'+';
const SHED: u8 = b'-';

#[derive(Clone, Copy, Debug)]
enum Kind {
    /// Clients that stay, and send in turn.
    Kept(usize),
    /// Each request comes with a client of its own, who leaves with the answer.
    Fresh,
}

/// Requests that come when they come, whatever becomes of those before.
struct Load {
    sim: Sim,
    address: Address,
    kind: Kind,
    /// Between two of them, on average; `None` for no more.
    every: Option<Duration>,
    next: Timestamp,
    random: u64,
    clients: Vec<Option<Peer>>,
    sent: usize,
    /// Connected by chance when the backlog was full.
    refused: usize,
}

impl Load {
    fn new(sim: &Sim, address: &Address, kind: Kind) -> Self {
        let mut load = Self {
            sim: sim.clone(),
            address: address.clone(),
            kind,
            every: None,
            next: sim.now(),
            random: 0x9e37_79b9_7f4a_7c15,
            clients: Vec::new(),
            sent: 0,
            refused: 0,
        };
        if let Kind::Kept(count) = kind {
            load.clients = (0..count).map(|_| Some(sim.connect(address).unwrap())).collect();
        }
        load
    }

    fn set_rate(&mut self, times_capacity: f64) {
        self.every = (times_capacity > 0.0).then(|| WORK.div_f64(times_capacity));
        self.next = self.sim.now();
        self.plan();
    }

    /// The time to the next one is exponentially distributed, as if there were any number of clients.
    fn plan(&mut self) {
        let Some(every) = self.every else { return };
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        #[allow(clippy::cast_precision_loss, reason = "a chance")]
        let chance = (self.random >> 11) as f64 / (1u64 << 53) as f64;
        self.next = self.next + every.mul_f64(-(1.0 - chance).ln());
    }

    fn due(&self) -> Option<Timestamp> {
        self.every.map(|_| self.next)
    }

    /// Lets `time` pass, in which requests come.
    fn pass(&mut self, time: Duration) {
        let until = self.sim.now() + time;
        while self.due().is_some_and(|due| due <= until) {
            self.sim.advance(self.next - self.sim.now());
            self.send();
        }
        self.sim.advance(until - self.sim.now());
    }

    fn send(&mut self) {
        let number = match self.kind {
            Kind::Kept(count) => self.sent % count,
            Kind::Fresh => {
                let client = self.sim.connect(&self.address);
                self.refused += usize::from(client.is_err());
                self.clients.push(client.ok());
                self.clients.len() - 1
            }
        };
        if let Some(client) = &self.clients[number] {
            let mut request = [0; REQUEST];
            request[..8].copy_from_slice(&(number as u64).to_le_bytes());
            request[8..].copy_from_slice(&self.next.as_nanoseconds().to_le_bytes());
            assert_eq!(client.send(&request), REQUEST);
        }
        self.sent += 1;
        self.plan();
    }
}

struct Server {
    load: Load,
    /// It does as `should_shed` says.
    asks: bool,
    /// It drains before it asks.
    drains: bool,
    /// One in twenty takes that much longer.
    longer: Option<Duration>,
    /// In so many pieces.
    answered: u64,
    /// When each request that was served had been sent, and when its turn came.
    served: Vec<(Timestamp, Timestamp)>,
    shed: Vec<Timestamp>,
}

impl Handler for Server {
    type Conn = ();
    type Message = ();

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut (), input: &[u8]) -> usize {
        if ctx.is_overloaded() && matches!(self.load.kind, Kind::Kept(_)) {
            let sent = self.load.sim.calls().get("send").unwrap_or(0);
            assert_eq!(sent, self.answered, "an answer waits for those to others");
        }
        if self.drains {
            ctx.drain(LONG);
        }
        let mut consumed = 0;
        for request in input.chunks_exact(REQUEST) {
            let sent = Timestamp::from_nanoseconds(u64::from_le_bytes(request[8..].try_into().unwrap()));
            let sheds = self.asks && ctx.should_shed();
            let answer = if sheds {
                self.shed.push(sent);
                self.load.pass(SHEDDING);
                SHED
            } else {
                self.served.push((sent, self.load.sim.now()));
                let longer = self.longer.filter(|_| self.served.len().is_multiple_of(20));
                self.load.pass(WORK + longer.unwrap_or_default());
                SERVED
            };
            assert!(ctx.send(id, &[answer]).is_accepted());
            if matches!(self.load.kind, Kind::Fresh) {
                ctx.close_after_flush(id);
            }
            consumed += REQUEST;
        }
        self.answered += 1;
        consumed
    }
}

struct Bench {
    sim: Sim,
    reactor: Reactor<Server, SimKernel>,
}

fn limits(lag_target: Option<Duration>) -> Limits {
    Limits { lag_target, lag_interval: INTERVAL, panics: PanicPolicy::Propagate, ..Limits::default() }
}

impl Bench {
    fn new(kind: Kind, limits: Limits) -> Self {
        Self::on(&Address::Tcp(([127, 0, 0, 1], 80).into()), kind, limits)
    }

    fn on(address: &Address, kind: Kind, limits: Limits) -> Self {
        let sim = Sim::new(1, Faults::none());
        let load = Load::new(&sim, address, Kind::Fresh);
        let server = Server {
            load,
            asks: true,
            drains: false,
            longer: None,
            answered: 0,
            served: Vec::new(),
            shed: Vec::new(),
        };
        let mut reactor = Reactor::with_kernel(sim.kernel(), server, limits).unwrap();
        reactor.listen(address, &ListenOptions::default()).unwrap();
        let mut bench = Self { sim: sim.clone(), reactor };
        bench.reactor.handler().load = Load::new(&sim, address, kind);
        if let Kind::Kept(count) = kind {
            while bench.reactor.ctx().connections() < count {
                bench.turn(Some(Duration::ZERO));
            }
        }
        bench
    }

    fn turn(&mut self, wait: Option<Duration>) -> Turn {
        let turn = self.reactor.turn(wait).unwrap();
        self.reactor.ctx().audit().unwrap();
        assert_eq!(self.sim.violations(), [""; 0]);
        turn
    }

    /// Runs for `time` under so many times the load that it can serve; `check` looks at each turn.
    fn run(&mut self, times_capacity: f64, time: Duration, mut check: impl FnMut(&mut Self)) {
        self.reactor.handler().load.set_rate(times_capacity);
        let until = self.sim.now() + time;
        while self.sim.now() < until {
            let due = self.reactor.handler().load.due();
            let wait = due.unwrap_or(until).min(until) - self.sim.now();
            // A turn of no time is one that does not wait.
            self.turn(Some(wait.max(Duration::from_nanos(1))));
            // What came due while it waited.
            self.reactor.handler().load.pass(Duration::ZERO);
            check(self);
        }
    }

    fn is_overloaded(&mut self) -> bool {
        self.reactor.ctx().is_overloaded()
    }

    /// How many of the requests that came in the last `time` were served, in parts of what can be.
    fn goodput(&mut self, time: Duration) -> f64 {
        let now = self.sim.now();
        let served = self.reactor.handler().served.iter().filter(|(_, began)| now - *began <= time).count();
        WORK.mul_f64(served as f64).div_duration_f64(time)
    }

    /// The longest that a request had to wait for its turn, of those that had it in the last `time`.
    fn longest_wait(&mut self, time: Duration) -> Duration {
        let now = self.sim.now();
        let recent = self.reactor.handler().served.iter().filter(|(_, began)| now - *began <= time);
        recent.map(|(sent, began)| *began - *sent).max().unwrap()
    }
}

/// Ten times the interval.
const LONG: Duration = Duration::from_secs(20);

#[test]
fn what_is_served_has_waited_no_longer_than_the_target_and_as_much_is_served_as_can_be() {
    for times in [1.3, 2.0, 5.0] {
        let mut bench = Bench::new(Kind::Kept(500), limits(Some(TARGET)));
        // The beginning, with the interval in which it might be a burst.
        bench.run(times, LONG, |_| ());
        assert!(bench.is_overloaded(), "{times}");
        let mut turns = 0;
        bench.run(times, LONG, |bench| {
            turns += 1;
            assert!(bench.is_overloaded(), "turn {turns} at {times}");
        });
        assert!(turns > 200, "{turns}");
        let longest = bench.longest_wait(LONG);
        assert!(longest <= TARGET + SLACK, "{longest:?} at {times}");
        let shedding = 0.01 * (times - 1.0);
        let goodput = bench.goodput(LONG);
        assert!(goodput > 0.97 - shedding, "{goodput} at {times}");
        let counters = bench.reactor.ctx().counters();
        assert_eq!(counters.overloads, 1, "at {times}");
        assert_eq!(counters.shed_work, bench.reactor.handler().shed.len() as u64);
        assert_eq!(counters.shed_by_overload, 0);
    }
}

/// That it is not the bench that keeps the waits short.
#[test]
fn without_a_target_everybody_waits_longer_and_longer() {
    let mut bench = Bench::new(Kind::Kept(500), limits(None));
    bench.run(2.0, LONG, |_| ());
    let longest = bench.longest_wait(LONG);
    assert!(longest > 50 * TARGET, "{longest:?}");
    assert!(!bench.is_overloaded());
    assert_eq!(bench.reactor.handler().shed.len(), 0);
}

#[test]
fn a_loop_that_keeps_up_sheds_nothing() {
    let mut bench = Bench::new(Kind::Kept(500), limits(Some(TARGET)));
    bench.run(0.7, 5 * LONG, |_| ());
    // Bursts that take it four times the target, and less than the interval to get over.
    for _ in 0..5 {
        (0..40).for_each(|_| bench.reactor.handler().load.send());
        bench.run(0.5, LONG, |_| ());
        assert!(bench.reactor.metrics().read().poll_lag.longest > 2 * TARGET);
    }
    let counters = bench.reactor.ctx().counters();
    assert_eq!((counters.overloads, counters.shed_work, counters.shed), (0, 0, 0));
}

/// It is over by itself, and its end is known though nobody comes.
#[test]
fn it_is_over_an_interval_after_the_last_was_shed() {
    let mut bench = Bench::new(Kind::Kept(500), limits(Some(TARGET)));
    bench.run(3.0, LONG, |_| ());
    assert!(bench.is_overloaded() && bench.reactor.metrics().read().is_overloaded);
    bench.reactor.handler().load.set_rate(0.0);
    let ended = bench.sim.now();
    while bench.is_overloaded() {
        bench.turn(None);
        assert!(bench.sim.now() - ended <= TARGET + INTERVAL + SLACK);
    }
    assert!(bench.sim.now() - ended >= INTERVAL - TARGET);
    assert!(!bench.reactor.metrics().read().is_overloaded);
    bench.run(0.7, LONG, |_| ());
    let shed = bench.reactor.ctx().counters().shed_work;
    bench.run(0.7, LONG, |_| ());
    assert_eq!(bench.reactor.ctx().counters().shed_work, shed);
    assert_eq!(bench.reactor.ctx().counters().overloads, 1);
}

/// Some requests take twice the target, and whatever comes while one is served is late: that alone is no overload, and must not be
/// what keeps up one that was.
#[test]
fn it_is_over_when_the_loop_could_serve_all_though_some_requests_take_longer_than_the_target() {
    for kind in [Kind::Kept(500), Kind::Fresh] {
        let mut bench = Bench::new(kind, limits(Some(TARGET)));
        bench.reactor.handler().longer = Some(TARGET * 2);
        // What can be served of these, of what could be of the others.
        let capacity = 0.5;
        bench.run(3.0 * capacity, LONG, |_| ());
        assert!(bench.is_overloaded());
        let mut overloaded = Duration::ZERO;
        let mut before = bench.sim.now();
        bench.run(0.5 * capacity, LONG * 4, |bench| {
            let now = bench.sim.now();
            overloaded += if bench.is_overloaded() { now - before } else { Duration::ZERO };
            before = now;
        });
        assert!(overloaded < LONG, "{overloaded:?} with {kind:?}");
    }
}

/// What the log has said of overloads. That turns take long is another matter.
fn reports() -> Vec<String> {
    warnings().into_iter().filter(|line| line.contains("overloaded")).collect()
}

#[test]
fn the_log_hears_of_the_end_and_the_cost_though_the_loop_ends_with_it() {
    assert_eq!(reports(), [""; 0]);
    let name = std::thread::current().name().unwrap_or_default().to_owned();
    for drains in [true, false] {
        let told = reports().len();
        let limits = Limits { drain_grace: Duration::ZERO, ..limits(Some(TARGET)) };
        let mut bench = Bench::new(Kind::Kept(500), limits);
        bench.run(3.0, LONG, |_| ());
        let metrics = bench.reactor.metrics();
        assert!(bench.is_overloaded() && metrics.read().counters.shed_work > 0);
        let begin = reports().split_off(told);
        assert_eq!(begin.len(), 1, "{begin:?}");
        assert!(
            begin[0].starts_with(&format!("{name} is overloaded: what has come waits for ")),
            "{begin:?}"
        );
        if drains {
            bench.reactor.handler().load.set_rate(0.0);
            bench.reactor.remote().drain();
            assert_eq!(bench.turn(None), Turn::Stopped(Stopped::DeadlinePassed));
        } else {
            drop(bench.reactor);
        }
        let lines = reports().split_off(told);
        let shed = metrics.read().counters.shed_work;
        assert_eq!(lines.len(), 2, "{lines:?}");
        assert!(lines[1].starts_with(&format!("{name} is no longer overloaded, after ")), "{lines:?}");
        assert!(lines[1].ends_with(&format!(": 0 connections and {shed} requests were shed")), "{lines:?}");
    }
}

/// A turn, and then 60 ms in which nothing happens: by how long the wait took, it might not have blocked.
#[test]
fn what_comes_after_a_pause_has_not_waited_for_the_turn_before() {
    for requests in [9, 11] {
        let mut bench = Bench::new(Kind::Kept(500), limits(Some(TARGET)));
        let pause = Duration::from_millis(60);
        let network = Network { latency: (pause, pause), ..Network::steady() };
        bench.sim.set_faults(Faults { network, ..Faults::none() });
        for _ in 0..100 {
            let load = &mut bench.reactor.handler().load;
            load.every = Some(WORK);
            load.next = load.sim.now();
            (0..requests).for_each(|_| load.send());
            load.every = None;
            let served = bench.reactor.handler().served.len() + requests;
            while bench.reactor.handler().served.len() < served {
                bench.turn(None);
                assert!(!bench.is_overloaded());
            }
        }
        assert_eq!(bench.reactor.ctx().counters().shed_work, 0);
        let lag = bench.reactor.metrics().read().poll_lag;
        assert!(lag.longest < WORK || requests == 9, "{lag:?}");
    }
}

/// How each client ended that has come with a request of its own.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ends {
    served: u64,
    shed: u64,
    told: u64,
    closed: u64,
    waiting: u64,
}

fn ends(load: &Load) -> Ends {
    let mut ends = Ends::default();
    for client in load.clients.iter().flatten() {
        *match (client.recv_all().as_slice(), client.is_ended() || client.is_reset()) {
            ([SERVED], true) => &mut ends.served,
            ([SHED], true) => &mut ends.shed,
            (b"full", true) => &mut ends.told,
            (b"", true) => &mut ends.closed,
            (heard, is_ended) => {
                assert!(heard.is_empty() && !is_ended, "{heard:?}");
                &mut ends.waiting
            }
        } += 1;
    }
    ends
}

#[test]
fn new_clients_are_let_in_as_they_can_be_served_and_the_others_turned_away_at_once() {
    let unix = Address::Unix("/socket".into());
    let tcp = Address::Tcp(([127, 0, 0, 1], 80).into());
    for (address, times) in [(&tcp, 1.3), (&tcp, 2.0), (&tcp, 5.0), (&unix, 2.0)] {
        let limits = Limits { refusal: b"full", linger_quiet: SLACK, ..limits(Some(TARGET)) };
        let mut bench = Bench::on(address, Kind::Fresh, limits);
        bench.run(times, LONG, |_| ());
        bench.run(times, LONG, |bench| assert!(bench.is_overloaded()));
        let longest = bench.longest_wait(LONG);
        // From when it connected: half of the target until it is let in, and then the turn after that.
        assert!(longest <= TARGET * 3 / 2 + SLACK, "{longest:?} at {times}");
        let goodput = bench.goodput(LONG);
        assert!(goodput > 0.9, "{goodput} at {times}");
        // Nobody is left in the backlog.
        bench.run(0.0, INTERVAL * 2, |_| ());
        let counters = bench.reactor.ctx().counters();
        assert_eq!(counters.overloads, 1);
        assert_eq!(counters.shed, counters.shed_by_overload);
        let load = &bench.reactor.handler().load;
        let ends = ends(load);
        assert_eq!((ends.waiting, load.refused), (0, 0), "{ends:?}");
        assert_eq!(ends.told + ends.closed, counters.shed_by_overload, "{ends:?}");
        assert_eq!(ends.shed, counters.shed_work);
        assert!(ends.told > 0 && ends.closed > 0 && ends.shed < ends.served / 4, "{ends:?} at {times}");
        let open = bench.reactor.ctx().connections();
        assert_eq!(open, 0);
    }
}

/// A drain that a callback asks for holds for what is called next.
#[test]
fn in_a_drain_nothing_is_late() {
    let (mut bench, _) = busy(64, 0);
    while !bench.is_overloaded() {
        bench.busy_turn(true);
    }
    bench.reactor.handler().drains = true;
    bench.sim.advance(WORK);
    let shed = bench.reactor.handler().shed.len();
    bench.busy_turn(true);
    assert!(bench.reactor.ctx().is_draining());
    assert_eq!(bench.reactor.handler().shed.len(), shed);
}

#[test]
fn a_loop_that_has_ended_is_not_overloaded() {
    let (mut bench, _) = busy(64, 0);
    while !bench.is_overloaded() {
        bench.busy_turn(true);
    }
    bench.reactor.handler().load.clients.clear();
    bench.sim.advance(SLACK);
    while bench.reactor.ctx().connections() > 0 {
        bench.turn(Some(Duration::ZERO));
    }
    assert!(bench.reactor.metrics().read().is_overloaded);
    bench.reactor.remote().drain();
    assert_eq!(bench.turn(None), Turn::Stopped(Stopped::Drained));
    assert!(!bench.reactor.metrics().read().is_overloaded);
}

/// Its turns are long, but nobody waits for them.
#[test]
fn one_client_with_much_to_do_is_no_overload() {
    let limits = Limits { read_budget: REQUEST, read_buffer: REQUEST, ..limits(Some(WORK / 2)) };
    let mut bench = Bench::new(Kind::Kept(1), Limits { lag_interval: WORK * 10, ..limits });
    (0..100).for_each(|_| bench.reactor.handler().load.send());
    while bench.reactor.handler().served.len() < 100 {
        bench.turn(None);
        assert!(!bench.is_overloaded());
    }
}

/// A bench with `waiting` clients in the backlog, and one client each of whose requests takes a turn above the target.
fn busy(accept_budget: usize, waiting: usize) -> (Bench, VecDeque<Peer>) {
    let limits =
        Limits { accept_budget, lag_target: Some(WORK / 2), lag_interval: WORK * 10, ..limits(None) };
    let bench = Bench::new(Kind::Kept(1), limits);
    let address = Address::Tcp(([127, 0, 0, 1], 80).into());
    let waiting = (0..waiting).map(|_| bench.sim.connect(&address).unwrap()).collect();
    (bench, waiting)
}

impl Bench {
    /// One turn above the target, if the client's request is served; says how many were let in, and turned away.
    fn busy_turn(&mut self, request: bool) -> (u64, u64) {
        let before = self.reactor.ctx().counters();
        if request {
            let load = &mut self.reactor.handler().load;
            load.every = Some(WORK);
            load.next = self.sim.now();
            load.send();
            load.every = None;
            self.sim.advance(Duration::from_millis(1));
        }
        self.turn(Some(Duration::ZERO));
        let after = self.reactor.ctx().counters();
        (after.accepted - before.accepted, after.shed_by_overload - before.shed_by_overload)
    }
}

#[test]
fn a_loop_that_is_behind_lets_in_fewer_and_one_that_stays_so_turns_the_rest_away() {
    let (mut bench, waiting) = busy(64, 200);
    bench.reactor.handler().asks = false;
    let mut turns = Vec::new();
    while !bench.is_overloaded() {
        turns.push(bench.busy_turn(true));
    }
    let let_in: Vec<u64> = turns.iter().map(|(let_in, _)| *let_in).collect();
    assert_eq!(let_in[..9], [64, 32, 16, 8, 4, 2, 1, 1, 1]);
    // It was found to be overloaded in the last of these turns, before it accepted.
    let ((last, turned_away), before) = (turns[turns.len() - 1], &turns[..turns.len() - 1]);
    assert!(before.iter().all(|(_, turned_away)| *turned_away == 0), "{turns:?}");
    let rest = 200 - before.iter().map(|(let_in, _)| let_in).sum::<u64>();
    assert_eq!((last, turned_away), (0, rest), "they have waited too long to be let in");
    bench.turn(Some(Duration::ZERO));
    bench.sim.advance(SLACK);
    let ended = waiting.iter().filter(|client| client.is_ended()).count() as u64;
    assert_eq!(ended, rest);
}

/// Four times the budget in a turn, and the others in the next ones, for which no edge comes.
#[test]
fn a_storm_is_turned_away_in_portions_that_leave_time_for_the_rest() {
    let (mut bench, waiting) = busy(4, 0);
    while !bench.is_overloaded() {
        bench.busy_turn(true);
    }
    drop(waiting);
    let address = Address::Tcp(([127, 0, 0, 1], 80).into());
    let storm: Vec<Peer> = (0..40).map(|_| bench.sim.connect(&address).unwrap()).collect();
    let portions: Vec<_> = (0..5).map(|_| bench.busy_turn(false)).collect();
    let sums: Vec<u64> = portions.iter().map(|(let_in, turned_away)| let_in + turned_away).collect();
    assert_eq!(sums, [16, 16, 8, 0, 0], "{portions:?}");
    bench.sim.advance(SLACK);
    // What waits for the next turn is too late for it only if that turn is long, and these are short.
    assert!(portions[1..].iter().any(|(let_in, _)| *let_in > 0), "{portions:?}");
    assert_eq!(
        storm.iter().filter(|client| client.is_ended()).count() as u64,
        portions.iter().map(|it| it.1).sum::<u64>()
    );
}

#[test]
fn a_drain_lets_in_whoever_waits_and_serves_all() {
    let (mut bench, _) = busy(64, 0);
    while !bench.is_overloaded() {
        bench.busy_turn(true);
    }
    let address = Address::Tcp(([127, 0, 0, 1], 80).into());
    let late: Vec<Peer> = (0..100).map(|_| bench.sim.connect(&address).unwrap()).collect();
    let mut request = [0; REQUEST];
    request[8] = 1;
    late.iter().for_each(|client| assert_eq!(client.send(&request), REQUEST));
    // Long past the target.
    bench.sim.advance(Duration::from_secs(1));
    bench.reactor.ctx().drain(LONG);
    let before = bench.reactor.handler().served.len();
    let mut heard = 0;
    let stopped = loop {
        if let Turn::Stopped(stopped) = bench.turn(None) {
            break stopped;
        }
        heard += late.iter().map(|client| client.recv_all().len()).sum::<usize>();
        if heard == late.len() {
            bench.reactor.handler().load.clients.clear();
            late.iter().for_each(Peer::shutdown_write);
        }
    };
    assert_eq!(stopped, Stopped::Drained);
    assert_eq!(bench.reactor.handler().served.len() - before, late.len());
    assert_eq!(bench.reactor.ctx().counters().shed, 0);
    assert!(!bench.is_overloaded() && !bench.reactor.metrics().read().is_overloaded);
}

/// Each request takes a turn above the target.
struct Slow(Rc<Controls>);

impl Handler for Slow {
    type Conn = ();
    type Message = ();

    fn on_data(&mut self, _: &mut Ctx, _: ConnId, (): &mut (), input: &[u8]) -> usize {
        self.0.advance(WORK);
        input.len()
    }
}

/// The same on real sockets: for what is left in the backlog no edge comes, and who is told can hear it.
#[test]
fn what_a_real_backlog_holds_is_turned_away_and_none_of_it_forgotten() {
    const REFUSAL: &[u8] = b"come back later";
    let (kernel, controls) = TestKernel::new();
    controls.stop_clock(epoll_reactor::monotonic_now());
    let limits = Limits {
        accept_budget: 4,
        refusal: REFUSAL,
        lag_target: Some(WORK / 2),
        lag_interval: WORK * 10,
        ..Limits::default()
    };
    let mut reactor = Reactor::with_kernel(kernel, Slow(Rc::clone(&controls)), limits).unwrap();
    let loopback = Address::Tcp(([127, 0, 0, 1], 0).into());
    let (_, address) = reactor.listen(&loopback, &ListenOptions::default()).unwrap();
    let mut busy = support::Peer::connect(&address);
    for _ in 0..1000 {
        busy.say(b"x");
        reactor.turn(Some(Duration::ZERO)).unwrap();
        if reactor.ctx().is_overloaded() {
            break;
        }
    }
    assert!(reactor.ctx().is_overloaded());
    let mut waiting: Vec<_> = (0..40).map(|_| support::Peer::connect(&address)).collect();
    let portions: Vec<u64> = (0..4)
        .map(|_| {
            // The loop is late for all of them.
            controls.advance(WORK);
            let before = reactor.ctx().counters().shed_by_overload;
            busy.say(b"x");
            reactor.turn(Some(Duration::ZERO)).unwrap();
            reactor.ctx().counters().shed_by_overload - before
        })
        .collect();
    assert_eq!(portions, [16, 16, 8, 0]);
    let mut told = 0;
    for client in &mut waiting {
        let mut heard = Vec::new();
        let started = Instant::now();
        while let Err(error) = client.read_to_end(&mut heard) {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            assert!(started.elapsed() < PATIENCE);
            reactor.turn(Some(Duration::from_millis(1))).unwrap();
        }
        told += u64::from(heard == REFUSAL);
        assert!(heard == REFUSAL || heard.is_empty(), "{heard:?}");
    }
    assert!(told >= 4, "{told}");
}

/// Nothing is asked of the kernel that is not asked without a target, while turns are short.
#[test]
fn a_target_costs_no_call_while_it_is_kept() {
    let calls = |target| {
        let mut bench = Bench::new(Kind::Kept(10), limits(target));
        bench.run(0.5, LONG, |_| ());
        let calls = bench.sim.calls();
        calls.iter().collect::<Vec<_>>()
    };
    assert_eq!(calls(Some(Duration::from_secs(1))), calls(None));
}
