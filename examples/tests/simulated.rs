//! What a user of the framework gets from the simulated kernel: `custom_server`, on a network that cuts, delays and
//! interrupts everything it can, from a seed that brings each run back. And the same with a mistake planted, which it
//! finds.

#![allow(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "a panic is how a test fails"
)]

#[path = "../custom_server.rs"]
#[allow(dead_code, reason = "its main and its sampling thread stay at home")]
mod custom_server;

use std::time::Duration;

use custom_server::{Client, Sample, Server};
use epoll_reactor::sim::{Faults, Sim};
use epoll_reactor::{Address, ConnId, Ctx, Handler, Limits, ListenOptions, PanicPolicy, Reactor};

const COMMANDS: usize = 40;

/// Longer than any delay of the network's, and than any timeout of the loop's.
const STUCK: Duration = Duration::from_secs(600);

fn server() -> Server {
    Server::new(Duration::from_secs(3600))
}

fn expected() -> Vec<u8> {
    "load unknown\n".repeat(COMMANDS).into_bytes()
}

/// Runs `handler` in the world of `seed`; returns what a client gets that asks `COMMANDS` times for the load, each time
/// when it has its answer, and then half-closes and reads to the end, whatever that is.
fn run<H: Handler>(seed: u64, faults: Faults, handler: H) -> Vec<u8> {
    // Set up while nothing goes wrong: a swarm may refuse the descriptors that a loop begins with.
    let sim = Sim::new(seed, Faults::none());
    // By default a panic in a callback closes a connection and is logged: a test would not fail.
    let limits = Limits { panics: PanicPolicy::Propagate, ..Limits::default() };
    let mut reactor = Reactor::with_kernel(sim.kernel(), handler, limits).unwrap();
    let address = Address::Tcp("127.0.0.1:80".parse().unwrap());
    reactor.listen(&address, &ListenOptions::default()).unwrap();
    sim.set_faults(faults);

    let client = sim.connect(&address).unwrap();
    let (mut asked, mut unsent) = (0, [].as_slice());
    let mut answers = Vec::new();
    let (mut before, mut since) = ((0, 0, 0), sim.now());
    while !client.is_ended() && !client.is_reset() {
        let answered = answers.iter().filter(|byte| **byte == b'\n').count();
        if unsent.is_empty() && answered >= asked && asked < COMMANDS {
            unsent = b"watch load\n";
            asked += 1;
        }
        unsent = &unsent[client.send(unsent)..];
        if answered >= COMMANDS {
            client.shutdown_write();
        }
        reactor.turn(Some(Duration::from_millis(100))).unwrap();
        answers.extend(client.recv_all());
        // A network may take a second for each byte, and several turns: it is stuck only when nothing moves.
        let now = (unsent.len(), client.unsent(), answers.len());
        if now != before {
            (before, since) = (now, sim.now());
        }
        assert!(sim.now() - since < STUCK, "seed {seed}: stuck at {now:?}: {:#?}", sim.trace());
    }
    answers.extend(client.recv_all());
    drop(reactor);
    assert_eq!(
        (sim.violations(), sim.open_descriptors()),
        (vec![], vec![]),
        "seed {seed}: {:#?}",
        sim.trace()
    );
    answers
}

/// Whatever a network may do to a connection that lives: nobody may lose anything.
#[test]
fn every_command_is_answered_however_the_network_cuts_them() {
    for seed in 0..200 {
        assert_eq!(run(seed, Faults::swarm(seed).without_losses(), server()), expected(), "seed {seed}");
    }
}

/// Where connections are lost, answers are missing at the end, and nowhere else.
#[test]
fn what_is_answered_is_right_whatever_goes_wrong() {
    let mut cut = 0;
    for seed in 0..200 {
        let answers = run(seed, Faults::swarm(seed), server());
        assert!(expected().starts_with(&answers), "seed {seed}: {:?}", String::from_utf8_lossy(&answers));
        cut += usize::from(answers.len() < expected().len());
    }
    assert!((1..200).contains(&cut), "{cut} connections were lost");
}

/// The mistake that everybody makes once: one read is one message. With a client that waits for its answers it works
/// every time, until a network comes between them.
struct OneReadIsOneMessage(Server);

impl Handler for OneReadIsOneMessage {
    type Conn = Client;
    type Message = Sample;

    fn on_open(&mut self, ctx: &mut Ctx, id: ConnId, client: &mut Client) {
        self.0.on_open(ctx, id, client);
    }

    fn on_data(&mut self, ctx: &mut Ctx, id: ConnId, _: &mut Client, input: &[u8]) -> usize {
        self.0.obey(ctx, id, String::from_utf8_lossy(input).trim_end());
        input.len()
    }
}

#[test]
fn a_framing_mistake_shows_on_a_bad_network_and_on_no_other() {
    for seed in 0..20 {
        assert_eq!(run(seed, Faults::none(), OneReadIsOneMessage(server())), expected(), "seed {seed}");
    }
    let heard = |seed| run(seed, Faults::swarm(seed).without_losses(), OneReadIsOneMessage(server()));
    let found = (0..20).find(|seed| heard(*seed) != expected());
    assert!(found.is_some(), "20 seeds, and no message was cut");
}

/// A handler that finds itself in a state that cannot be.
struct Fails;

impl Handler for Fails {
    type Conn = ();
    type Message = ();

    fn on_data(&mut self, _: &mut Ctx, _: ConnId, (): &mut (), _: &[u8]) -> usize {
        panic!("an assertion of the handler's");
    }
}

#[test]
#[should_panic(expected = "an assertion of the handler's")]
fn a_panic_in_a_callback_fails_the_test() {
    run(1, Faults::none(), Fails);
}
