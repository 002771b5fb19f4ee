//! What the protocols cost, in counts that hold on any machine: system calls of the loop, and allocations. Not in time:
//! see `benchmark`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "a panic is how a test fails"
)]

mod support;

use std::io::Write;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use allocation_counter::measure;
use epoll_protocols::http1::{Http, HttpConfig, Request, Response};
use epoll_protocols::{Broadcast, BroadcastConfig, BroadcastLoops, Echo};
use epoll_reactor::{Handler, Limits, Reactor, Remote, Worker};
use support::kernel::{Calls, Sends, Watched};
use support::{Client, Server};

struct Costs<H: Handler> {
    server: Server<H, Watched>,
    sends: Rc<Sends>,
}

/// What a turn came to.
#[derive(Debug, PartialEq, Eq)]
struct Cost {
    allocations: u64,
    calls: Calls,
}

impl<H: Handler> Costs<H> {
    fn of(handler: H, limits: Limits) -> Self {
        let kernel = Watched::new();
        let sends = kernel.sends.clone();
        // What the test notes is not to be counted.
        sends.pieces.borrow_mut().reserve(1 << 20);
        Self { server: Server::on(kernel, handler, limits), sends }
    }

    fn join(&mut self, clients: usize) -> Vec<Client> {
        let joined = (0..clients).map(|_| self.server.join()).collect();
        self.server.settle();
        joined
    }

    /// Of one turn, for which everything is there.
    fn turn(&mut self) -> Cost {
        self.next_turn(Duration::from_secs(10))
    }

    fn next_turn(&mut self, wait: Duration) -> Cost {
        self.sends.calls.set(Calls::default());
        let allocations = measure(|| self.server.turn(wait)).count_total;
        Cost { allocations, calls: self.sends.calls.get() }
    }

    /// Of one turn, for which everything is there, and of those in which the rest of what it has to say is written.
    fn until_written(&mut self) -> Cost {
        let mut cost = self.turn();
        loop {
            // The wait of a turn that writes nothing is the wait for clients.
            let Cost { allocations, calls } = self.next_turn(Duration::ZERO);
            if calls.send == 0 {
                assert_eq!(calls, Calls { wait: 1, ..Calls::default() });
                return cost;
            }
            cost.allocations += allocations;
            cost.calls.wait += calls.wait;
            cost.calls.recv += calls.recv;
            cost.calls.send += calls.send;
            assert_eq!((calls.accept, calls.add, calls.other), (0, 0, 0));
        }
    }

    /// Of the turn that answers `request`, once everything has its buffers.
    fn exchange(&mut self, request: &[u8], answer: usize) -> Cost {
        let mut client = self.join(1).remove(0);
        let mut cost = None;
        for _ in 0..5 {
            client.push(request);
            cost = Some(self.turn());
            self.server.until("the answer", |_| {
                client.pull(1 << 16);
                client.len() >= answer
            });
            assert_eq!(client.skip(usize::MAX), answer);
            self.server.settle();
            assert_eq!(self.server.reactor.ctx().buffered(), 0, "an idle connection has no buffers");
        }
        cost.unwrap()
    }
}

/// One read, one write, and one wait for all connections that are ready.
const FREE: Cost =
    Cost { allocations: 0, calls: Calls { wait: 1, accept: 0, add: 0, recv: 1, send: 1, other: 0 } };

fn service(request: &Request<'_>, response: &mut Response) {
    response.header("Content-Type", "text/plain").unwrap();
    match request.path() {
        "/echo" => response.set_body(request.body()),
        _ => response.set_static_body(b"Hello, World!"),
    }
}

type Answer = fn(&Request<'_>, &mut Response);

fn http() -> Costs<Http<Answer>> {
    let config = HttpConfig::default();
    let limits = config.limits(Limits::default());
    Costs::of(Http::new(service as Answer, config), limits)
}

/// The status line, `Date`, `Content-Length`, the type and the empty line.
fn answer_length(body: usize) -> usize {
    17 + 37 + format!("Content-Length: {body}\r\n").len() + 26 + 2 + body
}

#[test]
fn a_request_costs_one_read_one_write_and_no_allocation() {
    let get = "GET /hello HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n";
    let browser = "GET /hello?q=1 HTTP/1.1\r\nHost: example.org\r\nConnection: keep-alive\r\nsec-ch-ua: \"A\";v=\"1\"\r\n\
        sec-ch-ua-mobile: ?0\r\nUpgrade-Insecure-Requests: 1\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n\
        Accept: text/html,application/xhtml+xml\r\nSec-Fetch-Site: none\r\nSec-Fetch-Mode: navigate\r\n\
        Accept-Encoding: gzip, deflate, br\r\nAccept-Language: en\r\nCookie: a=b; c=d\r\n\r\n";
    let post = format!("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1024\r\n\r\n{:1024}", "");
    for (request, answer) in [
        (get.to_owned(), answer_length(13)),
        (browser.to_owned(), answer_length(13)),
        (get.repeat(16), 16 * answer_length(13)),
        (post, answer_length(1024)),
    ] {
        assert_eq!(http().exchange(request.as_bytes(), answer), FREE, "{request}");
    }
}

#[test]
fn an_echo_costs_one_read_one_write_and_no_allocation() {
    for length in [1, 64, 16 * 1024] {
        let cost = Costs::of(Echo, Limits::default()).exchange(&vec![b'x'; length], length);
        assert_eq!(cost, FREE, "{length} bytes");
    }
}

#[test]
fn a_new_connection_costs_an_accept_and_a_registration() {
    let mut costs = http();
    let _others = costs.join(3);
    let _waiting = std::net::TcpStream::connect(costs.server.address).unwrap();
    let Cost { calls, .. } = costs.turn();
    // The second accept says that there are no more.
    assert_eq!(calls, Calls { wait: 1, accept: 2, add: 1, ..Calls::default() });
}

/// As many as the tables have room for at that size, so that no room beyond it is counted.
const IDLE: usize = 256;

/// Bytes of heap that the server holds for each of [`IDLE`] clients, once all of them have had an answer and are idle.
fn idle<H: Handler>(mut costs: Costs<H>, request: &[u8], answer: usize) -> usize {
    // The first touches what the server itself needs.
    let mut clients = costs.join(1);
    clients[0].push(request);
    costs.server.until("the answer", |_| {
        clients[0].pull(1 << 16);
        clients[0].len() >= answer
    });
    let mut each = Vec::with_capacity(IDLE);
    let mut held = 0;
    for _ in 1..IDLE {
        let mut client = std::net::TcpStream::connect(costs.server.address).unwrap();
        client.write_all(request).unwrap();
        let accepted = costs.server.reactor.ctx().counters().bytes_sent + answer as u64;
        held += measure(|| {
            costs.server.until("an answer", |server| server.reactor.ctx().counters().bytes_sent >= accepted);
            costs.server.settle();
        })
        .bytes_current;
        each.push(client);
    }
    assert_eq!(costs.server.reactor.ctx().connections(), IDLE);
    usize::try_from(held).unwrap().div_ceil(IDLE)
}

/// Whoever makes a connection dearer has to say so here and in `benchmark/README.md`.
#[test]
fn an_idle_connection_costs_so_many_bytes_and_no_more() {
    let get = b"GET /hello HTTP/1.1\r\nHost: 127.0.0.1:8080\r\n\r\n";
    let each = idle(http(), get, answer_length(13));
    assert!((100..=230).contains(&each), "{each} bytes an HTTP client");
    let each = idle(Costs::of(Echo, Limits::default()), &[b'x'; 64], 64);
    assert!((100..=156).contains(&each), "{each} bytes an echo client");
}

/// What it costs that `senders` of some clients have said `said` each, until everybody has heard all but its own. All that
/// is said is there in the first turn.
fn broadcast(clients: usize, senders: usize, said: &str) -> Cost {
    let config = BroadcastConfig::default();
    let limits = config.limits(Limits::default());
    let mut costs = Costs::of(Broadcast::new(config), limits);
    let mut clients = costs.join(clients);
    let mut cost = None;
    for _ in 0..5 {
        for sender in &mut clients[..senders] {
            sender.push(said.as_bytes());
        }
        cost = Some(costs.until_written());
        for client in &mut clients {
            while client.pull(1 << 16) > 0 {}
            client.skip(usize::MAX);
        }
    }
    cost.unwrap()
}

/// To so many receivers, at least, a turn writes before the loop looks again what has come.
const SHARE: usize = 16;

#[test]
fn a_line_costs_one_write_a_receiver_however_many_are_said_in_a_turn() {
    for (clients, senders, burst) in [(10, 1, 1), (50, 1, 16), (50, 4, 1), (50, 4, 16)] {
        let Cost { calls, .. } = broadcast(clients, senders, &"a line\n".repeat(burst));
        // Who speaks alone hears nothing.
        let receivers = if senders == 1 { clients - 1 } else { clients };
        let wait = receivers.div_ceil(SHARE);
        let expected = Calls { wait, recv: senders, send: receivers, ..Calls::default() };
        assert_eq!(calls, expected, "{senders} of {clients}, {burst} lines");
    }
}

#[test]
fn lines_said_while_others_are_being_written_share_their_writes() {
    let config = BroadcastConfig::default();
    let limits = config.limits(Limits::default());
    let mut costs = Costs::of(Broadcast::new(config), limits);
    let mut clients = costs.join(100);
    let mut sent = 0;
    // Each when the turn before has written one share of the one before.
    for sender in &mut clients[..4] {
        sender.push(b"a line\n");
        let Cost { calls, .. } = costs.turn();
        assert_eq!((calls.recv, calls.send), (1, SHARE));
        sent += calls.send;
    }
    sent += costs.until_written().calls.send;
    // The last goes to all but its sender, with whatever that one is still to get; the others cost what was written before.
    assert_eq!(sent, 3 * SHARE + 100);
    for client in &mut clients {
        client.pull(1 << 16);
    }
    assert_eq!(clients[99].rest(), (1..=4).map(|n| format!("[Client_{n}] a line\n")).collect::<String>());
}

#[test]
fn the_allocations_for_a_line_do_not_depend_on_how_many_receive_it() {
    for receivers in [10, 50, 100] {
        assert_eq!(broadcast(1 + receivers, 1, "a short line\n").allocations, 0, "{receivers}");
        // Its bytes, and with them what counts who still needs them.
        for length in [65, 1000, 60_000] {
            let long = format!("{:length$}\n", "");
            assert_eq!(broadcast(1 + receivers, 1, &long).allocations, 1, "{length} bytes for {receivers}");
        }
    }
}

/// A broadcast in several loops on kernels that count; the first has the sender.
fn loops(count: usize, receivers: usize) -> (Vec<Costs<Broadcast>>, Client, Vec<Client>) {
    let config = BroadcastConfig::default();
    let limits = config.limits(Limits::default());
    let kernels: Vec<Watched> = (0..count).map(|_| Watched::new()).collect();
    let remotes: Arc<[_]> =
        kernels.iter().map(|kernel| Remote::for_kernel(kernel, &limits).unwrap()).collect();
    let shared = BroadcastLoops::new(count);
    let costs = kernels.into_iter().enumerate().map(|(index, kernel)| {
        let sends = kernel.sends.clone();
        sends.pieces.borrow_mut().reserve(1 << 20);
        let worker = Worker::new(index, Arc::clone(&remotes)).unwrap();
        let handler = Broadcast::for_worker(config.clone(), &shared, &worker).unwrap();
        let reactor = Reactor::with_remote(kernel, handler, limits.clone(), worker.remote().clone()).unwrap();
        Costs { server: Server::of(reactor), sends }
    });
    let mut costs: Vec<_> = costs.collect();
    let sender = costs[0].join(1).remove(0);
    let receivers = costs[1..].iter_mut().flat_map(|costs| costs.join(receivers)).collect();
    (costs, sender, receivers)
}

#[test]
fn a_line_costs_one_message_a_loop_and_an_allocation_or_two() {
    // For lines of up to 64 bytes, the one buffer for all others. Longer ones have one for the sender's own loop too, and
    // in each other loop what counts who needs it there.
    for (length, lines, said, heard) in [(10, 1, 1, 0), (10, 5, 1, 1), (1000, 1, 2, 1), (60_000, 1, 2, 1)] {
        for count in [2, 3] {
            let (mut loops, mut sender, mut receivers) = loops(count, 10);
            for round in 0..5 {
                let text = format!("{:length$}\n", "").repeat(lines);
                sender.push(text.as_bytes());
                let cost = loops[0].turn();
                let calls = Calls { wait: 1, recv: 1, ..Calls::default() };
                if round > 2 {
                    assert_eq!(
                        cost,
                        Cost { allocations: said, calls },
                        "{lines} of {length} bytes in {count} loops"
                    );
                }
                for costs in &mut loops[1..] {
                    let before = costs.server.reactor.ctx().counters().messages;
                    let cost = costs.turn();
                    let calls = Calls { wait: 1, send: 10, ..Calls::default() };
                    if round > 2 {
                        let expected = Cost { allocations: heard, calls };
                        assert_eq!(cost, expected, "{lines} of {length} bytes in {count} loops");
                    }
                    assert_eq!(costs.server.reactor.ctx().counters().messages, before + 1);
                }
                for receiver in &mut receivers {
                    while receiver.pull(1 << 16) > 0 {}
                    assert_eq!(receiver.skip(usize::MAX), text.len() + lines * "[Client_1] ".len());
                }
            }
        }
    }
}
