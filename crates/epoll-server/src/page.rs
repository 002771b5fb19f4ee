//! The page at `/`, and the numbers on it: server-sent events at `/live`, one a second. Not the other routes, and not
//! where these two are: `http.rs` hands over what is for here.
//!
//! An event is one object in JSON, as text/event-stream (HTML, section 9.2): [`Sample`] says what is in it. The first
//! one of a stream is called `history` and is an array of them, oldest first, so that a page which has just come shows
//! the last two minutes too.

use std::collections::{BTreeMap, VecDeque};
use std::fmt::{self, Write};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use epoll_protocols::http1::{BodyWriter, FieldLine, HttpConfig, Request, RequestId, Responder, Response};
use epoll_reactor::{Counters, Timestamp};

use crate::http::TEXT;

/// What [`Limits::tick`](epoll_reactor::Limits::tick) has to be.
pub(crate) const TICK: Duration = Duration::from_secs(1);

/// Streams that may be open. Each takes a connection for as long as somebody looks at the page.
const STREAMS: usize = 64;

/// Events that a new stream begins with: what the page shows.
const HISTORY: usize = 120;

const PAGE: &str = include_str!("page.html");

/// The page may do what it does, and nothing else: its own style and script, told by their SHA-256, an icon that is in
/// it, and events from where it came from. A test below knows the sums when the page has changed.
const POLICY: FieldLine = FieldLine::new(
    "Content-Security-Policy: default-src 'none'; \
     script-src 'sha256-uWEVOPMKUGyi2jKTPP4Le1USqnJ3QFWltUlLuByyABY='; \
     style-src 'sha256-PvynfFS9f20HfRWoCbafzeyA9BIiuCm1D1QkIkYi4fI='; \
     img-src data:; connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
);

const NO_SNIFFING: FieldLine = FieldLine::new("X-Content-Type-Options: nosniff");

/// Answers with the page.
pub(crate) fn answer(response: &mut Response) {
    const FIELDS: [FieldLine; 5] = [
        FieldLine::new("Content-Type: text/html; charset=utf-8"),
        // Another version of the server may be there the next time.
        FieldLine::new("Cache-Control: no-cache"),
        POLICY,
        FieldLine::new("Referrer-Policy: no-referrer"),
        NO_SNIFFING,
    ];
    for line in FIELDS {
        response.field_line(line);
    }
    response.set_static_body(PAGE.as_bytes());
}

/// The streams at `/live`, and what goes out on them.
pub(crate) struct Live {
    /// How many streams there may be.
    limit: usize,
    /// The room of a stream on which nothing waits.
    room: usize,
    /// The number of the last event on each; none before the first.
    streams: BTreeMap<RequestId, Option<u64>>,
    /// The last samples, oldest first, in JSON: made once, for all streams.
    samples: VecDeque<String>,
    /// The number of the newest one.
    number: u64,
    slot: Slot,
    counts: Counts,
    before: Before,
    ending: bool,
}

/// Where the loops of a server tell each other what they have counted, once a second, so that each can tell its clients
/// of all of them.
pub(crate) struct Board {
    loops: Arc<Mutex<Vec<Counts>>>,
}

/// The part of a [`Board`] that is one loop's.
pub(crate) struct Slot {
    loops: Arc<Mutex<Vec<Counts>>>,
    index: usize,
}

/// What one loop has counted since the start, or all of them.
#[derive(Clone, Copy, Default)]
struct Counts {
    connections: usize,
    answers: u64,
    turns: u64,
    busy: Duration,
    longest: Duration,
}

/// What had been counted at the last tick.
#[derive(Default)]
struct Before {
    /// None before the first tick.
    at: Option<Timestamp>,
    uptime: Duration,
    counts: Counts,
}

/// What one event tells, of all loops of the server.
struct Sample {
    /// Seconds since the start.
    uptime: f64,
    /// Connections that are open, that of the stream among them.
    connections: usize,
    /// Requests answered since the start. A stream is one when it has ended.
    answered: u64,
    /// The same a second, since the last event.
    rate: f64,
    /// The mean time of a turn of a loop since the last event, without its wait, in microseconds.
    turn: f64,
    /// The longest turn since the start, in microseconds.
    longest: f64,
}

impl Live {
    pub(crate) fn new(config: &HttpConfig, slot: Slot) -> Self {
        Self {
            limit: STREAMS,
            room: config.limits.output_batch,
            streams: BTreeMap::new(),
            samples: VecDeque::new(),
            number: 0,
            slot,
            counts: Counts::default(),
            before: Before::default(),
            ending: false,
        }
    }

    /// Answers with a stream of events, or with 503 if there are too many.
    pub(crate) fn answer(&mut self, request: &Request<'_>, response: &mut Response) {
        if self.ending || self.streams.len() >= self.limit {
            response.set_status(503);
            response.field_line(TEXT);
            response.field_line(const { FieldLine::new("Retry-After: 5") });
            response.set_static_body(b"Too many are watching\n");
            return;
        }
        const FIELDS: [FieldLine; 3] = [
            FieldLine::new("Content-Type: text/event-stream"),
            FieldLine::new("Cache-Control: no-store"),
            NO_SNIFFING,
        ];
        for line in FIELDS {
            response.field_line(line);
        }
        response.stream();
        // An answer to HEAD has no body that could end.
        if request.method() != "HEAD" {
            self.streams.insert(request.id(), None);
        }
    }

    /// Writes what is new. A client that has not taken the last event yet gets none: what it misses is not kept for it,
    /// and a later tick has the newest.
    pub(crate) fn write_body(&mut self, id: RequestId, body: &mut BodyWriter<'_>) {
        let Some(written) = self.streams.get_mut(&id) else { return body.finish() };
        let waits = body.room() < self.room;
        match *written {
            // A reset, since the end would have to wait for the client, and the drain for it.
            Some(_) if self.ending && waits => body.abort(),
            _ if self.ending => body.finish(),
            None => {
                let samples = self.samples.iter().map(String::as_str).collect::<Vec<_>>().join(",");
                body.write(format!("event: history\ndata: [{samples}]\n\n").as_bytes());
                *written = Some(self.number);
            }
            Some(number) if number == self.number || waits => {}
            Some(_) => {
                let sample = self.samples.back().map_or("", String::as_str);
                body.write(format!("data: {sample}\n\n").as_bytes());
                *written = Some(self.number);
            }
        }
    }

    /// A request has been answered, whichever.
    pub(crate) const fn on_answer(&mut self) {
        self.counts.answers += 1;
    }

    /// The stream has ended, or its client is gone. Others may be told about too.
    pub(crate) fn on_end(&mut self, id: RequestId) {
        self.streams.remove(&id);
    }

    pub(crate) fn on_tick(&mut self, responder: &mut Responder<'_>) {
        self.tick(responder.now(), responder.connections(), &responder.counters());
        self.wake(responder);
    }

    /// Ends the streams, for which the server would wait otherwise.
    pub(crate) fn on_shutdown(&mut self, responder: &mut Responder<'_>) {
        self.ending = true;
        self.wake(responder);
    }

    fn wake(&self, responder: &mut Responder<'_>) {
        for id in self.streams.keys() {
            responder.wake(*id);
        }
    }

    fn tick(&mut self, now: Timestamp, connections: usize, counters: &Counters) {
        self.counts = Counts {
            connections,
            turns: counters.turns,
            busy: counters.busy,
            longest: counters.longest_turn,
            ..self.counts
        };
        let counts = self.slot.put(self.counts);
        let elapsed = self.before.at.map_or(TICK, |at| now - at);
        let after = Before { at: Some(now), uptime: self.before.uptime + elapsed, counts };
        let Before { counts: before, .. } = std::mem::replace(&mut self.before, after);
        let turns = counts.turns.saturating_sub(before.turns).max(1);
        let sample = Sample {
            uptime: self.before.uptime.as_secs_f64(),
            connections: counts.connections,
            answered: counts.answers,
            rate: counts.answers.saturating_sub(before.answers) as f64
                / elapsed.max(Duration::from_millis(1)).as_secs_f64(),
            turn: microseconds(counts.busy.saturating_sub(before.busy)) / turns as f64,
            longest: microseconds(counts.longest),
        };
        if self.samples.len() >= HISTORY {
            self.samples.pop_front();
        }
        self.samples.push_back(sample.to_string());
        self.number += 1;
    }
}

impl Board {
    /// For so many loops.
    pub(crate) fn new(count: usize) -> Self {
        Self { loops: Arc::new(Mutex::new(vec![Counts::default(); count])) }
    }

    /// For the loop of that index.
    pub(crate) fn slot(&self, index: usize) -> Slot {
        Slot { loops: Arc::clone(&self.loops), index }
    }
}

impl Slot {
    /// Tells of this loop, and answers with the sum of all.
    fn put(&self, counts: Counts) -> Counts {
        let mut loops = self.lock();
        if let Some(own) = loops.get_mut(self.index) {
            *own = counts;
        }
        loops.iter().fold(Counts::default(), |sum, it| Counts {
            connections: sum.connections + it.connections,
            answers: sum.answers + it.answers,
            turns: sum.turns + it.turns,
            busy: sum.busy + it.busy,
            longest: sum.longest.max(it.longest),
        })
    }

    /// Plain numbers: whoever panicked has left nothing half done.
    fn lock(&self) -> MutexGuard<'_, Vec<Counts>> {
        self.loops.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The loop is gone, and with it its connections; what it did counts on.
impl Drop for Slot {
    fn drop(&mut self) {
        if let Some(own) = self.lock().get_mut(self.index) {
            own.connections = 0;
        }
    }
}

impl fmt::Display for Sample {
    /// As JSON: numbers only, so nothing has to be escaped.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { uptime, connections, answered, rate, turn, longest } = self;
        f.write_char('{')?;
        write!(f, "\"uptime\":{uptime:.3},\"connections\":{connections},\"answered\":{answered},")?;
        write!(f, "\"rate\":{rate:.3},\"turn_us\":{turn:.3},\"longest_us\":{longest:.3}")?;
        f.write_char('}')
    }
}

fn microseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e6
}

#[cfg(test)]
mod tests {
    use std::time::UNIX_EPOCH;

    use base64::Engine;
    use base64::prelude::BASE64_STANDARD;
    use epoll_protocols::http1::{Connection, DateHeader, Exchange, HttpLimits, HttpMetrics, Next, Service};
    use epoll_reactor::Address;
    use sha2::{Digest, Sha256};

    use super::*;

    impl Service for Live {
        type Message = ();

        fn call(&mut self, request: &Request<'_>, response: &mut Response) {
            self.answer(request, response);
        }

        fn write_body(&mut self, id: RequestId, body: &mut BodyWriter<'_>) {
            Self::write_body(self, id, body);
        }

        fn on_end(&mut self, id: RequestId, _: bool) {
            Self::on_end(self, id);
        }
    }

    /// A client of the codec, and what has been written for it that it has not read.
    struct Watcher {
        number: u64,
        connection: Connection,
        waiting: Vec<u8>,
    }

    impl Watcher {
        fn new(live: &mut Live, number: u64) -> Self {
            let mut watcher = Self { number, connection: Connection::new(), waiting: Vec::new() };
            watcher.ask(live, "GET");
            watcher
        }

        fn ask(&mut self, live: &mut Live, method: &str) -> Next {
            let request = format!("{method} /live HTTP/1.1\r\nHost: x\r\n\r\n");
            self.step(live, |connection, exchange| connection.receive(request.as_bytes(), exchange).next)
        }

        fn wake(&mut self, live: &mut Live) -> Option<Next> {
            self.step(live, |connection, exchange| connection.wake(0, exchange))
        }

        fn leave(mut self, live: &mut Live) {
            self.step(live, Connection::abandon);
        }

        /// Takes what is waiting.
        fn read(&mut self) -> String {
            String::from_utf8(std::mem::take(&mut self.waiting)).unwrap()
        }

        fn step<R>(
            &mut self,
            live: &mut Live,
            step: impl FnOnce(&mut Connection, &mut Exchange<'_, Live, Vec<u8>>) -> R,
        ) -> R {
            let (limits, date) = (HttpLimits::default(), DateHeader::new(UNIX_EPOCH));
            let mut exchange = Exchange {
                limits: &limits,
                date: &date,
                metrics: &HttpMetrics::new(),
                connection: self.number,
                client: &Address::UnixUnnamed,
                service: live,
                response: &mut Response::new(),
                output: &mut self.waiting,
            };
            step(&mut self.connection, &mut exchange)
        }
    }

    fn live() -> Live {
        Live::new(&HttpConfig::default(), Board::new(1).slot(0))
    }

    /// The tick at `seconds`, when there have been ten turns of `busy` microseconds altogether each second.
    fn tick(live: &mut Live, seconds: u64, connections: usize, busy: u64) {
        let mut counters = Counters::default();
        counters.turns = 10 * seconds;
        counters.busy = Duration::from_micros(busy);
        counters.longest_turn = Duration::from_nanos(1500);
        live.tick(Timestamp::from_nanoseconds(seconds * 1_000_000_000), connections, &counters);
    }

    #[test]
    fn the_policy_knows_the_style_and_the_script() {
        for (name, kind) in [("style", "style-src"), ("script", "script-src")] {
            let (begin, end) = (format!("<{name}>"), format!("</{name}>"));
            assert_eq!((PAGE.matches(&begin).count(), PAGE.matches(&end).count()), (1, 1), "{name}");
            let inside = PAGE.split(&begin).nth(1).unwrap().split(&end).next().unwrap();
            let source = format!("{kind} 'sha256-{}'", BASE64_STANDARD.encode(Sha256::digest(inside)));
            assert!(POLICY.as_str().contains(&source), "the page has changed; POLICY should say {source}");
        }
        // What no sum is for, so that the policy would not let it through.
        let unknown =
            |word: &&str| word.starts_with("style=\"") || word.starts_with("on") && word.contains("=\"");
        assert_eq!(PAGE.split_whitespace().find(unknown), None);
    }

    #[test]
    fn a_sample_tells_what_has_happened_since_the_last() {
        let mut live = live();
        for _ in 0..3 {
            live.on_answer();
        }
        tick(&mut live, 5, 2, 40);
        assert_eq!(
            live.samples.back().unwrap(),
            "{\"uptime\":1.000,\"connections\":2,\"answered\":3,\"rate\":3.000,\"turn_us\":0.800,\"longest_us\":1.500}",
            "before the first one is what was at the start"
        );
        live.on_answer();
        tick(&mut live, 7, 1, 540);
        assert_eq!(
            live.samples.back().unwrap(),
            "{\"uptime\":3.000,\"connections\":1,\"answered\":4,\"rate\":0.500,\"turn_us\":25.000,\"longest_us\":1.500}"
        );
        // Counters and a clock that stand still are no reason to divide by zero.
        tick(&mut live, 7, 1, 540);
        assert!(live.samples.back().unwrap().contains("\"rate\":0.000,\"turn_us\":0.000"));
    }

    #[test]
    fn a_sample_tells_of_all_loops() {
        let board = Board::new(2);
        let [mut one, mut other] = [0, 1].map(|index| Live::new(&HttpConfig::default(), board.slot(index)));
        for _ in 0..3 {
            one.on_answer();
        }
        tick(&mut one, 1, 5, 40);
        other.on_answer();
        tick(&mut other, 1, 2, 60);
        let both = "{\"uptime\":1.000,\"connections\":7,\"answered\":4,\"rate\":4.000,\"turn_us\":5.000,\"longest_us\":1.500}";
        assert_eq!(other.samples.back().unwrap(), both);
        // The connections of one that has died are gone; its answers were given.
        drop(one);
        tick(&mut other, 2, 2, 60);
        let sample = other.samples.back().unwrap();
        assert!(sample.contains("\"connections\":2,\"answered\":4,\"rate\":0.000"), "{sample}");
    }

    #[test]
    fn a_stream_begins_with_the_last_samples_and_goes_on_with_each() {
        let mut live = live();
        let mut early = Watcher::new(&mut live, 1);
        assert!(early.read().contains("\r\n\r\n19\r\nevent: history\ndata: []\n\n\r\n"));
        for seconds in 1..=HISTORY as u64 + 5 {
            tick(&mut live, seconds, 1, 0);
        }
        early.wake(&mut live);
        let newest = early.read();
        assert_eq!(newest.matches("data: ").count(), 1, "{newest}");
        assert!(newest.contains("\ndata: {\"uptime\":125.000,"), "{newest}");
        early.wake(&mut live);
        assert_eq!(early.read(), "", "nothing is new");

        let mut late = Watcher::new(&mut live, 2);
        let history = late.read();
        let history = history.split("data: ").nth(1).unwrap().split("\n\n").next().unwrap();
        let history: serde_json::Value = serde_json::from_str(history).unwrap();
        let history = history.as_array().unwrap();
        assert_eq!(history.len(), HISTORY);
        assert_eq!(history.first().unwrap()["uptime"], 6.0);
        assert_eq!(history.last().unwrap()["uptime"], 125.0);
        late.wake(&mut live);
        assert_eq!(late.read(), "", "the newest was among them");
    }

    #[test]
    fn what_a_slow_client_misses_is_not_kept_for_it() {
        let mut live = live();
        let mut slow = Watcher::new(&mut live, 1);
        slow.read();
        for seconds in 1..=1000 {
            tick(&mut live, seconds, 1, 0);
            assert_eq!(slow.wake(&mut live), Some(Next::Wait));
        }
        let waiting = slow.read();
        assert_eq!(waiting.matches("data: ").count(), 1, "{waiting}");
        assert!(waiting.contains("\"uptime\":1.000,"), "{waiting}");
        slow.wake(&mut live);
        assert!(slow.read().contains("\"uptime\":1000.000,"), "the newest, at once when there is room");
    }

    #[test]
    fn there_are_only_so_many_streams() {
        let mut live = Live { limit: 2, ..live() };
        let first = Watcher::new(&mut live, 1);
        let mut second = Watcher::new(&mut live, 2);
        assert!(second.read().starts_with("HTTP/1.1 200 "));
        let mut third = Watcher::new(&mut live, 3);
        let refused = third.read();
        assert!(
            refused.starts_with("HTTP/1.1 503 ") && refused.contains("\r\nRetry-After: 5\r\n"),
            "{refused}"
        );
        assert_eq!(third.ask(&mut live, "HEAD"), Next::MoreInput);
        assert!(third.read().starts_with("HTTP/1.1 503 "));
        first.leave(&mut live);
        third.ask(&mut live, "HEAD");
        assert!(third.read().starts_with("HTTP/1.1 200 "));
        assert_eq!(live.streams.len(), 1, "one that ends with its head is none");
        assert_eq!(third.ask(&mut live, "GET"), Next::Wait);
        assert_eq!(live.streams.len(), 2);
    }

    #[test]
    fn the_end_of_the_server_is_that_of_the_streams() {
        let mut live = live();
        let mut quick = Watcher::new(&mut live, 1);
        let mut slow = Watcher::new(&mut live, 2);
        quick.read();
        live.ending = true;
        assert_eq!(quick.wake(&mut live), Some(Next::MoreInput));
        assert_eq!(quick.read(), "0\r\n\r\n");
        assert_eq!(slow.wake(&mut live), Some(Next::Abort), "nobody waits for it");
        assert!(live.streams.is_empty());
        quick.ask(&mut live, "GET");
        assert!(quick.read().starts_with("HTTP/1.1 503 "));
    }
}
