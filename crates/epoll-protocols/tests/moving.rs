//! When a connection of a protocol may go to another loop, and that it goes on there: on the simulated kernel, whose clock moves
//! on as the service works.
#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic, reason = "a test")]

use std::sync::Arc;
use std::time::Duration;

use epoll_protocols::Echo;
use epoll_protocols::http1::{Http, HttpConfig, Request, Response};
use epoll_reactor::sim::{Faults, Peer, Received, Sim, SimKernel};
use epoll_reactor::{Address, Handler, Limits, ListenOptions, Reactor, Remote, Worker};

const WORK: Duration = Duration::from_millis(30);
const HEAD_TIMEOUT: Duration = Duration::from_secs(5);
const KEEP_ALIVE: Duration = Duration::from_secs(20);

/// So long a client that does not close its end keeps its connection at the end, at most.
const LINGERING: Duration = Duration::from_secs(2);

/// Two loops, and two clients of each.
struct Stage<H: Handler> {
    sim: Sim,
    loops: Vec<Reactor<H, SimKernel>>,
    clients: Vec<Peer>,
}

impl<H: Handler> Stage<H> {
    fn new(sim: &Sim, limits: &Limits, handler: impl Fn() -> H) -> Self {
        let kernels = [(); 2].map(|()| sim.kernel());
        let remotes: Arc<[_]> =
            kernels.iter().map(|kernel| Remote::for_kernel(kernel, limits).unwrap()).collect();
        let loops = kernels.into_iter().enumerate().map(|(index, kernel)| {
            let worker = Worker::new(index, Arc::clone(&remotes)).unwrap();
            let remote = worker.remote().clone();
            let mut reactor = Reactor::with_remote(kernel, handler(), limits.clone(), remote).unwrap();
            reactor.listen(&address(index), &ListenOptions::default()).unwrap();
            reactor.balance(&worker);
            reactor.turn(Some(Duration::ZERO)).unwrap();
            reactor
        });
        let mut stage = Self { sim: sim.clone(), loops: loops.collect(), clients: Vec::new() };
        for number in 0..4 {
            stage.clients.push(stage.sim.connect(&address(number % 2)).unwrap());
            stage.settle();
        }
        assert_eq!(stage.connections(), [2, 2]);
        stage
    }

    fn settle(&mut self) {
        for _ in 0..8 {
            self.sim.advance(Duration::from_micros(200));
            self.loops.iter_mut().for_each(|it| _ = it.turn(Some(Duration::ZERO)).unwrap());
        }
    }

    fn connections(&mut self) -> Vec<usize> {
        self.loops.iter_mut().map(|it| it.ctx().connections()).collect()
    }

    fn moved(&self) -> u64 {
        self.loops.iter().map(|it| it.metrics().read().counters.moved).sum()
    }

    /// What that client is answered to `what`.
    fn ask(&mut self, client: usize, what: &str) -> String {
        assert_eq!(self.clients[client].send(what.as_bytes()), what.len());
        self.settle();
        self.answer(client)
    }

    fn answer(&self, client: usize) -> String {
        let mut all = Vec::new();
        while let Received::Bytes(bytes) = self.clients[client].recv(1 << 20) {
            all.extend(bytes);
        }
        String::from_utf8(all).unwrap()
    }

    /// The first loop's clients, by what they ask and have to be answered, until one has moved or some time has passed; says which.
    fn drive(&mut self, what: &str, ends: &str) -> Option<usize> {
        let end = self.sim.now() + Duration::from_secs(3);
        while self.sim.now() < end {
            for client in [0, 2] {
                let before = self.moved();
                let answer = self.ask(client, what);
                assert!(answer.ends_with(ends), "{answer:?}");
                if self.moved() != before {
                    assert_eq!(self.connections()[0], 1);
                    return Some(client);
                }
            }
        }
        None
    }
}

fn address(index: usize) -> Address {
    Address::Tcp(([127, 0, 0, 1], 7000 + u16::try_from(index).unwrap()).into())
}

macro_rules! site {
    ($sim:ident) => {{
        let config = HttpConfig {
            head_timeout: HEAD_TIMEOUT,
            keep_alive_timeout: KEEP_ALIVE,
            ..HttpConfig::default()
        };
        let limits = config.limits(Limits::default());
        Stage::new(&$sim, &limits, || {
            let clock = $sim.clone();
            let service = move |request: &Request<'_>, response: &mut Response| {
                clock.advance(WORK);
                response.set_shared_body(request.target().as_bytes().to_vec().into());
            };
            Http::new(service, config.clone())
        })
    }};
}

const GET: &str = "GET /one HTTP/1.1\r\nHost: a\r\n\r\n";

#[test]
fn http_moves_between_two_requests_and_the_client_has_its_keep_alive_time() {
    let sim = Sim::new(1, Faults::none());
    let mut stage = site!(sim);
    let moved = stage.drive(GET, "\r\n\r\n/one").unwrap();
    assert_eq!(stage.moved(), 1);
    // No request has been answered in that loop, and it is no new client all the same.
    let stays = 2 - moved;
    stage.sim.advance(HEAD_TIMEOUT);
    stage.settle();
    stage.sim.advance(LINGERING);
    stage.settle();
    assert_eq!(stage.connections(), [1, 1], "those that have not asked anything are gone");
    assert!(stage.ask(moved, GET).ends_with("\r\n\r\n/one"));
    assert!(stage.ask(stays, GET).ends_with("\r\n\r\n/one"));
    stage.sim.advance(KEEP_ALIVE);
    stage.settle();
    stage.sim.advance(LINGERING);
    stage.settle();
    assert_eq!(stage.connections(), [0, 0]);
}

#[test]
fn http_does_not_move_in_the_middle_of_a_request() {
    let sim = Sim::new(1, Faults::none());
    let mut stage = site!(sim);
    // Each time the next request has begun.
    for client in [0, 2] {
        stage.clients[client].send(b"GET /o");
    }
    let rest = "ne HTTP/1.1\r\nHost: a\r\n\r\nGET /o";
    assert_eq!(stage.drive(rest, "\r\n\r\n/one"), None);
    // Nor in its body.
    for client in [0, 2] {
        stage.ask(
            client,
            "ne HTTP/1.1\r\nHost: a\r\n\r\nPOST /two HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab",
        );
    }
    let rest = "cdePOST /two HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nab";
    assert_eq!(stage.drive(rest, "\r\n\r\n/two"), None);
    for client in [0, 2] {
        assert!(stage.ask(client, "cde").ends_with("\r\n\r\n/two"));
    }
    assert!(stage.drive(GET, "\r\n\r\n/one").is_some());
}

/// An echo for which each piece is work.
struct Slow(Sim);

impl Handler for Slow {
    type Conn = ();
    type Message = ();

    fn on_data(
        &mut self,
        ctx: &mut epoll_reactor::Ctx,
        id: epoll_reactor::ConnId,
        (): &mut (),
        input: &[u8],
    ) -> usize {
        self.0.advance(WORK);
        Echo.on_data(ctx, id, &mut (), input)
    }
}

#[test]
fn an_echo_moves_when_it_holds_nothing() {
    let sim = Sim::new(1, Faults::none());
    let mut stage = Stage::new(&sim, &Limits::default(), || Slow(sim.clone()));
    let moved = stage.drive("what is said", "what is said").unwrap();
    assert_eq!(stage.ask(moved, "more"), "more");
}
