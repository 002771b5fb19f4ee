//! HTTP in an overloaded loop, with time simulated: requests that are late are answered 503, and the connection goes on.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "a panic is how a test fails"
)]

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use epoll_protocols::http1::{Http, HttpConfig, Request, Response};
use epoll_reactor::sim::{Faults, Peer, Sim};
use epoll_reactor::{Address, Limits, ListenOptions, PanicPolicy, Reactor};

const WORK: Duration = Duration::from_millis(10);
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n";

/// Twenty clients, each with a request at all times; a turn has time for five.
#[test]
fn late_requests_are_answered_503_and_the_service_is_asked_for_the_others() {
    let sim = Sim::new(1, Faults::none());
    let (clock, mut served) = (sim.clone(), 0);
    let service = move |_: &Request<'_>, response: &mut Response| {
        served += 1;
        clock.advance(WORK);
        response.set_body(served.to_string().as_bytes());
    };
    let config = HttpConfig::default();
    let limits = config.limits(Limits {
        lag_target: Some(WORK * 10),
        lag_interval: WORK * 100,
        panics: PanicPolicy::Propagate,
        ..Limits::default()
    });
    let http = Http::new(service, config);
    let metrics = http.metrics();
    let mut reactor = Reactor::with_kernel(sim.kernel(), http, limits).unwrap();
    let address = Address::Tcp(([127, 0, 0, 1], 80).into());
    reactor.listen(&address, &ListenOptions::default()).unwrap();
    let clients: Vec<Peer> = (0..20).map(|_| sim.connect(&address).unwrap()).collect();
    let (mut heard, mut shed) = (0, 0);
    clients.iter().for_each(|client| assert_eq!(client.send(REQUEST), REQUEST.len()));
    while heard < 2000 {
        // What has been sent has come, and the answers too.
        sim.advance(Duration::from_millis(1));
        reactor.turn(None).unwrap();
        sim.advance(Duration::from_millis(1));
        for client in &clients {
            let answer = String::from_utf8(client.recv_all()).unwrap();
            if answer.is_empty() {
                assert!(!client.is_ended());
                continue;
            }
            // Whole, and one.
            assert_eq!(answer.matches("HTTP/1.1 ").count(), 1);
            if answer.starts_with("HTTP/1.1 503 ") {
                assert!(
                    answer.contains("\r\nRetry-After: 1\r\n") && !answer.contains("Connection"),
                    "{answer}"
                );
                shed += 1;
                assert!(reactor.ctx().is_overloaded());
            } else {
                // Each that the service was asked for was answered.
                assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
            }
            heard += 1;
            assert_eq!(client.send(REQUEST), REQUEST.len());
        }
    }
    let read = metrics.read();
    assert!(shed > 500 && heard - shed > 200, "{shed} of {heard}");
    let answers: Vec<_> = read.answers().filter(|(_, count)| *count > 0).collect();
    assert_eq!(answers, [("2xx", heard - shed), ("5xx", shed)]);
    assert_eq!((read.shed, read.rejections), (shed, 0));
    assert_eq!(reactor.ctx().counters().shed_work, shed);
    assert_eq!(reactor.ctx().counters().closed, 0, "all are there still");
}

/// One client sends forty requests at a time, and nineteen one: it is served one after another as they are, and none of its requests
/// holds up the others for longer than theirs do.
#[test]
fn a_client_that_does_not_wait_for_answers_is_served_as_the_others_are() {
    const PIPELINED: u64 = 40;
    let (sim, served) = (Sim::new(1, Faults::none()), Rc::new(Cell::new(0)));
    let (clock, count) = (sim.clone(), Rc::clone(&served));
    let service = move |_: &Request<'_>, response: &mut Response| {
        count.set(count.get() + 1);
        clock.advance(WORK);
        response.set_body(b"x");
    };
    let config = HttpConfig::default();
    let limits = config.limits(Limits {
        lag_target: Some(WORK * 10),
        lag_interval: WORK * 100,
        panics: PanicPolicy::Propagate,
        ..Limits::default()
    });
    let mut reactor = Reactor::with_kernel(sim.kernel(), Http::new(service, config), limits).unwrap();
    let address = Address::Tcp(([127, 0, 0, 1], 80).into());
    reactor.listen(&address, &ListenOptions::default()).unwrap();
    let clients: Vec<Peer> = (0..20).map(|_| sim.connect(&address).unwrap()).collect();
    let (mut waiting, mut answers) = ([0; 20], [(0, 0); 20]);
    let mut overloaded_turns = 0;
    while overloaded_turns < 500 {
        // Each has to be the last as often as the first.
        for index in (0..20).map(|place| (place + overloaded_turns) % 20) {
            let (client, waiting) = (&clients[index], &mut waiting[index]);
            let heard = String::from_utf8(client.recv_all()).unwrap();
            assert!(!client.is_ended());
            let (good, shed) = &mut answers[index];
            *good += heard.matches("HTTP/1.1 200 ").count() as u64;
            *shed += heard.matches("HTTP/1.1 503 ").count() as u64;
            *waiting -= heard.matches("HTTP/1.1 ").count() as u64;
            let most = if index == 0 { PIPELINED } else { 1 };
            while *waiting < most {
                assert_eq!(client.send(REQUEST), REQUEST.len());
                *waiting += 1;
            }
        }
        sim.advance(Duration::from_millis(1));
        let before = served.get();
        reactor.turn(None).unwrap();
        if reactor.ctx().is_overloaded() {
            overloaded_turns += 1;
            let in_turn = served.get() - before;
            assert!(in_turn <= 11, "{in_turn} in turn {overloaded_turns}, of {WORK:?} each");
        }
        sim.advance(Duration::from_millis(1));
    }
    let (greedy, mut others) = (answers[0].0, answers[1..].iter().map(|(good, _)| *good));
    assert!(greedy > 0 && others.all(|good| good >= greedy / 4), "{answers:?}");
}
