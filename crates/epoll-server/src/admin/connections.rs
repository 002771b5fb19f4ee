//! `/connections`: each loop is asked on its own thread, and the answer is given when all have told, or one has taken too
//! long.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::Duration;

use epoll_protocols::http1::{FieldLine, HttpMessage, Request, RequestId, Responder, Response};
use epoll_reactor::{
    ConnectionInfo, Ctx, Kernel, Linux, ListOrder, LoopPhase, Remote, RemoteError, Timestamp, monotonic_now,
};
use serde::Serialize;

use super::rates::Rates;
use super::{LoopView, NEVER_CACHED, say};

/// How many connections a list has at most.
const MOST: usize = 1000;

/// How long a loop may take.
const PATIENCE: Duration = Duration::from_secs(2);

/// Lists that may be waited for. Each holds up the loops for as long as they take to look at all of their connections.
const LISTS: usize = 4;

const JSON: FieldLine = FieldLine::new("Content-Type: application/json");

/// What one loop has told.
#[derive(Debug)]
pub(crate) struct Part {
    request: RequestId,
    index: usize,
    connections: Vec<Found>,
}

/// A connection, and its bytes a second if they were asked for.
type Found = (ConnectionInfo, Option<u64>);

/// The lists that are being made.
pub(super) struct Lists<K: Kernel = Linux> {
    loops: Arc<[LoopView]>,
    remote: Remote<HttpMessage<Part>, K>,
    /// Of each loop. Only that looks at it, when it is asked.
    rates: Vec<Arc<Mutex<Rates>>>,
    pending: BTreeMap<RequestId, Pending>,
}

struct Pending {
    query: Query,
    /// As long as this is there, somebody waits for it: the loops look before they make a list.
    wanted: Arc<()>,
    /// Those that have yet to tell.
    waits_for: usize,
    deadline: Timestamp,
    found: Vec<(usize, Found)>,
}

/// What is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Query {
    order: Order,
    most: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    By(ListOrder),
    /// Those that are read from and written to most now.
    Rate,
}

/// The answer. Numbers of connections that are open count all, whatever the limit.
#[derive(Serialize)]
struct List {
    open: u64,
    connections: Vec<Row>,
}

#[derive(Serialize)]
struct Row {
    /// The connection's name in its loop, as the log and `epoll-server trace` have it, such as `7.3`.
    id: String,
    #[serde(rename = "loop")]
    index: usize,
    peer: String,
    state: &'static str,
    age_seconds: f64,
    idle_seconds: f64,
    bytes_in: u64,
    bytes_out: u64,
    queued: u64,
    held: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_per_second: Option<u64>,
}

impl Lists {
    pub(super) fn new(loops: Arc<[LoopView]>, remote: Remote<HttpMessage<Part>>) -> Self {
        let rates = loops.iter().map(|_| Arc::default()).collect();
        Self { loops, remote, rates, pending: BTreeMap::new() }
    }

    /// Asks the loops, and puts the answer off.
    pub(super) fn answer(&mut self, request: &Request<'_>, response: &mut Response) {
        let query = match Query::parse(request.query().unwrap_or_default()) {
            Ok(query) => query,
            Err(error) => return say(response, 400, &error),
        };
        if self.pending.len() >= LISTS {
            return say(response, 503, "too many lists are being made");
        }
        let id = request.id();
        let deadline = monotonic_now() + PATIENCE;
        let mut pending =
            Pending { query, wanted: Arc::default(), waits_for: 0, deadline, found: Vec::new() };
        for (index, (one, rates)) in self.loops.iter().zip(&self.rates).enumerate() {
            let rates = Arc::clone(rates);
            let (remote, wanted) = (self.remote.clone(), Arc::downgrade(&pending.wanted));
            let asked = (one.inspect)(Box::new(move |ctx| {
                if is_given_up(&wanted) {
                    return;
                }
                let connections = query.list(ctx, &rates);
                // A queue that is full has lists enough: this one is given up in time.
                let _: Result<(), RemoteError<_>> =
                    remote.send(Part { request: id, index, connections }.into());
            }));
            match asked {
                Ok(()) => pending.waits_for += 1,
                // It has none.
                Err(RemoteError::Closed(())) => (),
                Err(RemoteError::Full(())) => {
                    return say(response, 503, &format!("loop {index} does not answer"));
                }
            }
        }
        if pending.waits_for == 0 {
            return pending.write(0, response);
        }
        self.pending.insert(id, pending);
        response.defer();
    }

    /// A loop has told.
    pub(super) fn on_part(&mut self, part: Part, responder: &mut Responder<'_>) {
        // It was given up, or its client has gone.
        let Some(pending) = self.pending.get_mut(&part.request) else { return };
        pending.add(part.index, part.connections);
        if pending.waits_for == 0
            && let Some(pending) = self.pending.remove(&part.request)
        {
            let mut response = Response::new();
            pending.write(self.open(), &mut response);
            responder.respond(part.request, response);
        }
    }

    /// Gives up what has taken too long.
    pub(super) fn on_tick(&mut self, responder: &mut Responder<'_>) {
        let now = responder.now();
        self.pending.retain(|id, pending| {
            let in_time = pending.deadline > now;
            if !in_time {
                let mut response = Response::new();
                say(&mut response, 503, &format!("{} of the loops did not answer", pending.waits_for));
                responder.respond(*id, response);
            }
            in_time
        });
    }

    pub(super) fn forget(&mut self, id: RequestId) {
        self.pending.remove(&id);
    }

    fn open(&self) -> u64 {
        let readings = self.loops.iter().map(|one| one.metrics.read());
        let serving = readings.filter(|reading| reading.phase != LoopPhase::Ended);
        serving.map(|reading| reading.connections().map(|(_, count)| count).sum::<u64>()).sum()
    }
}

impl Pending {
    /// No more is kept than is asked for, however many loops there are.
    fn add(&mut self, index: usize, connections: Vec<Found>) {
        self.waits_for = self.waits_for.saturating_sub(1);
        self.found.extend(connections.into_iter().map(|connection| (index, connection)));
        let order = self.query.order;
        self.found.sort_by_key(|(_, found)| Reverse(rank(found, order)));
        self.found.truncate(self.query.most);
    }

    fn write(self, open: u64, response: &mut Response) {
        let connections = self.found.iter().map(|(index, found)| Row::new(*index, found)).collect();
        match serde_json::to_vec(&List { open, connections }) {
            Ok(body) => {
                response.field_line(JSON);
                response.field_line(NEVER_CACHED);
                response.set_body(&body);
            }
            Err(error) => say(response, 500, &error.to_string()),
        }
    }
}

impl Row {
    fn new(index: usize, (info, rate): &Found) -> Self {
        Self {
            id: info.id.to_string(),
            index,
            peer: info.peer.to_string(),
            state: info.state.name(),
            age_seconds: info.age.as_secs_f64(),
            idle_seconds: info.idle.as_secs_f64(),
            bytes_in: info.bytes_received,
            bytes_out: info.bytes_sent,
            queued: info.queued,
            held: info.held,
            bytes_per_second: *rate,
        }
    }
}

/// Its client has gone, or a loop has taken too long.
fn is_given_up(wanted: &Weak<()>) -> bool {
    wanted.strong_count() == 0
}

/// As the loops put them in order.
fn rank((info, rate): &Found, order: Order) -> u128 {
    match order {
        Order::By(ListOrder::Age) => info.age.as_nanos(),
        Order::By(ListOrder::Traffic) => u128::from(info.bytes_received) + u128::from(info.bytes_sent),
        Order::By(ListOrder::Queued) => info.queued.into(),
        Order::By(ListOrder::Held) => info.held.into(),
        Order::Rate => rate.unwrap_or_default().into(),
    }
}

impl Query {
    fn list(self, ctx: &Ctx, rates: &Mutex<Rates>) -> Vec<Found> {
        match self.order {
            Order::By(order) => {
                ctx.list_connections(order, self.most).into_iter().map(|info| (info, None)).collect()
            }
            Order::Rate => {
                let mut rates = rates.lock().unwrap_or_else(PoisonError::into_inner);
                let busiest = rates.list(ctx, ctx.now(), self.most);
                busiest.into_iter().map(|(info, rate)| (info, Some(rate))).collect()
            }
        }
    }

    /// The error is a sentence.
    fn parse(text: &str) -> Result<Self, String> {
        let mut query = Self { order: Order::By(ListOrder::Age), most: MOST };
        for field in text.split('&').filter(|field| !field.is_empty()) {
            match field.split_once('=').unwrap_or((field, "")) {
                ("sort", "age") => query.order = Order::By(ListOrder::Age),
                ("sort", "rate") => query.order = Order::Rate,
                ("sort", "traffic") => query.order = Order::By(ListOrder::Traffic),
                ("sort", "queued") => query.order = Order::By(ListOrder::Queued),
                ("sort", "held") => query.order = Order::By(ListOrder::Held),
                ("sort", _) => return Err("sort is one of age, traffic, rate, queued and held".to_owned()),
                ("limit", value) => match value.parse() {
                    Ok(most @ 1..=MOST) => query.most = most,
                    _ => return Err(format!("limit is a number from 1 to {MOST}")),
                },
                _ => return Err("the query has sort and limit".to_owned()),
            }
        }
        Ok(query)
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpStream;
    use std::sync::Mutex;

    use epoll_protocols::http1::{Http, HttpConfig};
    use epoll_reactor::{Address, Limits, ListenOptions, Reactor};

    use super::super::{Hosts, Site};
    use super::*;

    /// What a loop has been asked to do.
    type Asked = Arc<Mutex<Vec<Box<dyn FnOnce(&Ctx) + Send>>>>;

    /// An admin server that asks one loop, which keeps what it is asked.
    fn site() -> (Reactor<Http<Site>>, TcpStream, Asked) {
        let (kernel, limits) = (Linux::new().unwrap(), Limits { tick: None, ..Limits::default() });
        let remote = Remote::for_kernel(&kernel, &limits).unwrap();
        let asked: Asked = Arc::default();
        let keeps = Arc::clone(&asked);
        let inspect = Box::new(move |inspection| {
            keeps.lock().unwrap().push(inspection);
            Ok(())
        });
        let one = LoopView { metrics: Arc::default(), inspect };
        let site = Site::new(Arc::new(Hosts::Any), [one].into(), Arc::new([]), remote.clone());
        let http = Http::new(site, HttpConfig::default());
        let mut reactor = Reactor::with_remote(kernel, http, limits, remote).unwrap();
        let loopback = Address::Tcp("127.0.0.1:0".parse().unwrap());
        let (_, bound) = reactor.listen(&loopback, &ListenOptions::default()).unwrap();
        let mut client = TcpStream::connect(bound.as_tcp().unwrap()).unwrap();
        client.write_all(b"GET /connections HTTP/1.1\r\nHost: a\r\n\r\n").unwrap();
        while asked.lock().unwrap().is_empty() {
            reactor.turn(None).unwrap();
        }
        (reactor, client, asked)
    }

    #[test]
    fn a_client_that_has_gone_costs_the_loops_no_list() {
        for goes in [false, true] {
            let (mut reactor, client, asked) = site();
            if goes {
                // It goes by a reset: an end alone may be that of its requests only.
                socket2::SockRef::from(&client).set_linger(Some(Duration::ZERO)).unwrap();
                drop(client);
                while reactor.ctx().connections() > 0 {
                    reactor.turn(None).unwrap();
                }
                let inspection = asked.lock().unwrap().pop().unwrap();
                inspection(reactor.ctx());
                reactor.turn(Some(Duration::ZERO)).unwrap();
                assert_eq!(reactor.ctx().counters().messages, 0, "nobody was to be told");
            } else {
                let inspection = asked.lock().unwrap().pop().unwrap();
                inspection(reactor.ctx());
                reactor.turn(Some(Duration::ZERO)).unwrap();
                assert_eq!(reactor.ctx().counters().messages, 1);
                let mut answer = [0; 15];
                (&client).read_exact(&mut answer).unwrap();
                assert_eq!(&answer, b"HTTP/1.1 200 OK");
            }
        }
    }

    #[test]
    fn queries() {
        let all = Query { order: Order::By(ListOrder::Age), most: 1000 };
        assert_eq!(Query::parse(""), Ok(all));
        assert_eq!(Query::parse("sort=queued"), Ok(Query { order: Order::By(ListOrder::Queued), ..all }));
        assert_eq!(Query::parse("sort=rate"), Ok(Query { order: Order::Rate, ..all }));
        let few = Query { order: Order::By(ListOrder::Traffic), most: 10 };
        assert_eq!(Query::parse("limit=10&sort=traffic"), Ok(few));
        for wrong in ["sort=size", "sort", "limit=0", "limit=1001", "limit=-1", "limit", "order=age"] {
            assert!(Query::parse(wrong).is_err(), "{wrong}");
        }
    }
}
