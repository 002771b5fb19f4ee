//! HTTP requests that come when they come, whatever became of those before: an open loop. Arrivals are Poisson's, from a
//! seed. One goes out on a connection that is free, or on one of its own, and its latency counts from when it was due, also
//! while it waits here for a connection: a client that waits politely for a slow server would measure itself.

use std::collections::VecDeque;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use epoll_reactor::{
    Address, CloseReason, CloseStats, ConnId, ConnMap, Ctx, Handler, Limits, Reactor, SendOutcome,
};
use fastrand::Rng;
use hdrhistogram::Histogram;

use crate::{Record, check, histogram, micros};

/// What happened is told for each of these, so that a run can be seen in its course.
const SLICE: Duration = Duration::from_millis(100);

#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) port: u16,
    /// Arrivals a second.
    pub(crate) rate: f64,
    /// Each on a connection of its own.
    pub(crate) fresh: bool,
    /// At one time, at most; what comes beyond waits.
    pub(crate) connections: u32,
    pub(crate) seed: u64,
    /// What is not counted.
    pub(crate) warm_up: Duration,
    pub(crate) time: Duration,
    pub(crate) patience: Duration,
}

/// What has happened in one [`SLICE`].
#[derive(Clone, Copy, Debug, Default)]
struct Slice {
    accepted: u64,
    /// The longest of their latencies.
    slowest: Duration,
    shed: u64,
    /// Without an answer at the end of it.
    waiting: u64,
}

pub(crate) struct Open {
    options: Options,
    address: Address,
    request: &'static [u8],
    record: Record,
    random: Rng,
    /// When the next arrival is due; `None` before the first, and when there are to be no more.
    next: Option<Instant>,
    began: Instant,
    /// Due, and without a connection.
    waiting: VecDeque<Instant>,
    /// Due when, of those that are sent and not answered.
    sent: ConnMap<Instant>,
    /// Connections without a request.
    free: VecDeque<ConnId>,
    connections: u32,
    opened: u32,
    /// In the time that counts, as all that follow.
    offered: u64,
    shed: Histogram<u64>,
    /// Requests whose connection ended without an answer.
    closed: u64,
    /// How much later than due they were taken up, which is the load's own fault.
    late: Histogram<u64>,
    slices: Vec<Slice>,
}

impl Open {
    fn new(record: Record, options: Options) -> io::Result<Self> {
        let request: &[u8] = if options.fresh {
            b"GET /hello HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n"
        } else {
            b"GET /hello HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
        };
        Ok(Self {
            address: Address::Tcp(([127, 0, 0, 1], options.port).into()),
            request,
            record,
            random: Rng::with_seed(options.seed),
            next: None,
            began: Instant::now(),
            waiting: VecDeque::new(),
            sent: ConnMap::new(),
            free: VecDeque::new(),
            connections: 0,
            opened: 0,
            offered: 0,
            shed: histogram()?,
            closed: 0,
            late: histogram()?,
            slices: Vec::new(),
            options,
        })
    }

    /// The time until the next arrival: exponential, so that one says nothing of another.
    fn gap(&mut self) -> Duration {
        Duration::from_secs_f64(-(1.0 - self.random.f64()).ln() / self.options.rate)
    }

    fn slice(&mut self, now: Instant) -> Option<&mut Slice> {
        let index = now.duration_since(self.began).as_nanos() / SLICE.as_nanos();
        let index = usize::try_from(index).unwrap_or_default();
        if self.slices.len() <= index {
            let waiting = (self.waiting.len() + self.sent.len()) as u64;
            self.slices.last_mut()?.waiting = waiting;
            self.slices.resize(index + 1, Slice { waiting, ..Slice::default() });
        }
        self.slices.get_mut(index)
    }

    /// Takes up what has come due by now.
    fn arrive(&mut self, now: Instant) {
        while let Some(due) = self.next.filter(|due| *due <= now) {
            self.waiting.push_back(due);
            if self.record.running {
                self.offered += 1;
                note(&mut self.late, now.duration_since(due));
            }
            self.next = Some(due + self.gap());
        }
    }

    /// Sends what there is a connection for, in the order in which it came due.
    fn send(&mut self, ctx: &mut Ctx) {
        while let Some(due) = self.waiting.front().copied() {
            let id = if self.options.fresh { self.connect(ctx) } else { self.free.pop_front() };
            let Some(id) = id else { break };
            if let SendOutcome::Gone(_) = ctx.send(id, self.request) {
                continue;
            }
            self.sent.insert(id, due);
            self.waiting.pop_front();
        }
    }

    fn connect(&mut self, ctx: &mut Ctx) -> Option<ConnId> {
        let may = self.connections < self.options.connections;
        let id = may.then(|| ctx.connect(self.address.clone())).flatten()?;
        self.connections += 1;
        Some(id)
    }

    fn answered(&mut self, ctx: &mut Ctx, id: ConnId, answer: Answer) {
        let now = Instant::now();
        let due = self.sent.remove(id);
        if let Some(due) = due {
            let took = now.duration_since(due);
            match answer.status {
                200 => self.record.count(took),
                503 if self.record.running => note(&mut self.shed, took),
                503 => (),
                status => self.record.fail(format!("an answer of status {status}")),
            }
            if let Some(slice) = self.slice(now) {
                if answer.status == 200 {
                    slice.accepted += 1;
                    slice.slowest = slice.slowest.max(took);
                } else {
                    slice.shed += 1;
                }
            }
        } else if answer.status != 503 {
            // Who is turned away is told so without having asked.
            self.record.fail("an answer that nobody has asked for");
        }
        if answer.stays && due.is_some() && !self.options.fresh {
            self.free.push_back(id);
            self.send(ctx);
        }
    }
}

impl Handler for Open {
    type Conn = ();
    type Message = ();

    fn on_open(&mut self, _: &mut Ctx, id: ConnId, (): &mut ()) {
        self.opened += 1;
        if !self.options.fresh {
            self.free.push_back(id);
        }
    }

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, (): &mut (), input: &[u8]) -> usize {
        match Answer::parse(input) {
            Ok(Some(answer)) => {
                self.answered(ctx, id, answer);
                answer.length
            }
            Ok(None) => 0,
            Err(reason) => {
                self.record.fail(reason);
                input.len()
            }
        }
    }

    fn on_close(&mut self, _: &mut Ctx, id: ConnId, (): (), _: CloseReason, _: &CloseStats) {
        self.connections -= 1;
        if self.sent.remove(id).is_some() && self.record.running {
            self.closed += 1;
        }
    }

    fn on_tick(&mut self, ctx: &mut Ctx) {
        if !self.options.fresh {
            while self.connect(ctx).is_some() {}
        }
        let now = Instant::now();
        self.slice(now);
        self.arrive(now);
        self.send(ctx);
    }
}

/// What matters of a response.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Answer {
    status: u16,
    /// Of head and body.
    length: usize,
    /// The connection stays open.
    stays: bool,
}

impl Answer {
    /// `None`: it is not whole yet.
    fn parse(input: &[u8]) -> Result<Option<Self>, String> {
        let Some(end) = input.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { return Ok(None) };
        let head = String::from_utf8_lossy(input.get(..end).unwrap_or_default()).to_ascii_lowercase();
        let status = head.strip_prefix("http/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let (Some(status), Some(length)) =
            (status, length.and_then(|text| text.trim().parse::<usize>().ok()))
        else {
            return Err(format!("an answer that cannot be read: {head:?}"));
        };
        let length = end + 4 + length;
        let stays = !head.lines().any(|line| line == "connection: close");
        Ok((input.len() >= length).then_some(Self { status, length, stays }))
    }
}

fn note(histogram: &mut Histogram<u64>, time: Duration) {
    histogram.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
}

/// Figures are of what is answered, or comes due, after the warm-up, and a last one of what has no answer at the end. It never
/// sleeps: an arrival would be late by what a timer rounds to.
pub(crate) fn measure(record: Record, options: Options, out: &mut impl Write) -> io::Result<()> {
    let limits =
        Limits { tick: Some(Duration::from_nanos(1)), flush_budget: usize::MAX, ..Limits::default() };
    let mut reactor = Reactor::new(Open::new(record, options)?, limits)?;
    let begun = Instant::now();
    while !options.fresh && reactor.handler().opened < options.connections {
        reactor.turn(Some(Duration::ZERO))?;
        check(&mut reactor.handler().record)?;
        if begun.elapsed() > options.patience {
            return Err(io::Error::other("not all clients could connect in time"));
        }
    }
    writeln!(out, "start")?;
    out.flush()?;
    let start = Instant::now();
    let open = reactor.handler();
    open.began = start;
    open.slices = vec![Slice::default()];
    open.next = Some(start + open.gap());
    let (counted, end) = (start + options.warm_up, start + options.warm_up + options.time);
    loop {
        let now = Instant::now();
        if now >= end {
            break;
        }
        reactor.handler().record.running = now >= counted;
        reactor.turn(Some(Duration::ZERO))?;
        check(&mut reactor.handler().record)?;
    }
    let seconds = counted.elapsed().as_secs_f64();
    let open = reactor.handler();
    let slice = |slice: &Slice| {
        let slowest = slice.slowest.as_secs_f64() * 1e6;
        serde_json::json!([slice.accepted, slowest, slice.shed, slice.waiting])
    };
    let slices: Vec<_> = open.slices.iter().map(slice).collect();
    let result = serde_json::json!({
        "operations": open.record.operations, "seconds": seconds, "offered": open.offered,
        "p50": micros(&open.record.latency, 0.5), "p99": micros(&open.record.latency, 0.99),
        "p99.9": micros(&open.record.latency, 0.999),
        "shed": open.shed.len(), "shed p99": micros(&open.shed, 0.99), "closed": open.closed,
        "unanswered": open.waiting.len() + open.sent.len(), "late p99": micros(&open.late, 0.99),
        "slices": slices,
    });
    writeln!(out, "{result}")?;
    out.flush()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]
mod tests {
    use std::io::Read;
    use std::thread;

    use super::*;
    use crate::tests::{load_with, serving};

    const OK: &str = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi";
    const LAST: &str = "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nhi";
    const BUSY: &str = "HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\n\r\n";

    /// A server that answers as `answer` says for the number of a request on its connection, and ends the connection if
    /// that is nothing.
    fn answering(answer: fn(usize) -> &'static str) -> u16 {
        serving(move |client, _| {
            let mut buffer = [0; 1024];
            for number in 0.. {
                let Ok(1..) = client.read(&mut buffer) else { return };
                let answer = answer(number);
                if answer.is_empty() || client.write_all(answer.as_bytes()).is_err() {
                    return;
                }
            }
        })
    }

    /// What is measured of such a server, and its figures by name.
    fn measured(answer: fn(usize) -> &'static str, arguments: &[&str]) -> impl Fn(&str) -> f64 {
        let measured = load_with("open", answering(answer), arguments).unwrap();
        move |name| measured[name].as_f64().unwrap()
    }

    #[test]
    fn answers_are_counted_as_what_they_are() {
        for arguments in [&["--rate", "500"][..], &["--rate", "500", "--fresh"]] {
            let fresh = arguments.len() > 2;
            let all = measured(if fresh { |_| LAST } else { |_| OK }, arguments);
            assert!(all("operations") > 0.0 && all("p99") > 0.0);
            assert_eq!((all("shed"), all("closed")), (0.0, 0.0));
            assert_eq!(all("operations") + all("unanswered"), all("offered"));
            let none = measured(|_| "", arguments);
            assert!(none("closed") > 0.0 && none("operations") == 0.0);
            assert_eq!(none("closed") + none("unanswered"), none("offered"));
        }
        let half = measured(|number| if number % 2 == 0 { OK } else { BUSY }, &["--rate", "500"]);
        assert!(half("shed") > 0.0 && half("operations") > 0.0);
        assert_eq!(half("operations") + half("shed") + half("unanswered"), half("offered"));
        let error = load_with("open", answering(|_| "HTTP/1.1 404 No\r\nContent-Length: 0\r\n\r\n"), &[]);
        assert_eq!(error.unwrap_err(), "an answer of status 404");
    }

    /// A server that takes one request in ten milliseconds, and is asked for one each millisecond.
    #[test]
    fn who_waits_for_a_connection_waits_for_the_server() {
        let slow = |_| {
            thread::sleep(Duration::from_millis(10));
            OK
        };
        let slow = measured(slow, &["--rate", "1000", "--connections", "1", "--seconds", "0.3"]);
        assert!(slow("unanswered") > slow("operations"), "more come than go");
        assert!(slow("p50") > 20_000.0, "{} µs is no more than an answer takes", slow("p50"));
    }

    #[test]
    fn what_comes_in_the_warm_up_does_not_count() {
        let one = |number| if number < 20 { BUSY } else { OK };
        let arguments = ["--rate", "1000", "--connections", "1", "--warm-up", "0.5", "--seconds", "0.2"];
        let measured = load_with("open", answering(one), &arguments).unwrap();
        assert_eq!(measured["shed"], 0, "{measured}");
        let early: u64 = measured["slices"].as_array().unwrap().iter().filter_map(|it| it[2].as_u64()).sum();
        assert_eq!(early, 20, "it is in the course of the run: {measured}");
    }

    /// A thousand a second.
    fn open(seed: u64) -> Open {
        let (warm_up, time, patience) = (Duration::ZERO, Duration::ZERO, Duration::ZERO);
        let (port, rate, fresh, connections) = (1, 1000.0, false, 1);
        let options = Options { port, rate, fresh, connections, seed, warm_up, time, patience };
        Open::new(Record::new().unwrap(), options).unwrap()
    }

    #[test]
    fn arrivals_are_as_many_as_asked_for_and_the_same_again() {
        let gaps = |seed| {
            let mut open = open(seed);
            (0..10_000).map(|_| open.gap()).collect::<Vec<_>>()
        };
        let some = gaps(1);
        assert_eq!(some, gaps(1));
        assert_ne!(some, gaps(2));
        let sum: Duration = some.iter().sum();
        assert!((9.5..10.5).contains(&sum.as_secs_f64()), "{sum:?} for ten thousand at a thousand a second");
        // Of an exponential distribution, 63.2% lie below the mean.
        let below = some.iter().filter(|gap| **gap < Duration::from_millis(1)).count();
        assert!((6100..6500).contains(&below), "{below}");
    }

    #[test]
    fn what_came_due_while_the_load_was_held_up_is_made_up_for() {
        let mut open = open(1);
        let start = Instant::now();
        open.next = Some(start);
        open.arrive(start + Duration::from_secs(1));
        assert!((900..1100).contains(&open.waiting.len()), "{}", open.waiting.len());
        assert_eq!(open.waiting.front(), Some(&start));
        assert!(open.next > Some(start + Duration::from_secs(1)));
    }

    #[test]
    fn an_answer_is_read_when_it_is_whole() {
        let stays = Answer { status: 200, length: OK.len(), stays: true };
        assert_eq!(Answer::parse(OK.as_bytes()).unwrap(), Some(stays));
        assert_eq!(Answer::parse(format!("{OK}HTTP/1.1 503").as_bytes()).unwrap(), Some(stays));
        for part in 0..OK.len() {
            assert_eq!(Answer::parse(&OK.as_bytes()[..part]).unwrap(), None, "{part} bytes");
        }
        assert!(!Answer::parse(LAST.as_bytes()).unwrap().unwrap().stays);
        assert_eq!(Answer::parse(BUSY.as_bytes()).unwrap().map(|answer| answer.status), Some(503));
        assert!(Answer::parse(b"HTTP/1.1 200 OK\r\n\r\n").is_err(), "how long it is must be told");
        assert!(Answer::parse(b"Hello\r\n\r\n").is_err());
    }
}
