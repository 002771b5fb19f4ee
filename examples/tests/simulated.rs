//! What a user of the framework gets from the simulated kernel: `custom_server`, on a network that cuts, delays and
//! interrupts everything it can, from a seed that brings each run back. And the same with a mistake planted, which it
//! finds.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, missing_docs, reason = "a panic is how a test fails")]

#[path = "../custom_server.rs"]
#[allow(dead_code, reason = "its main and its sampling thread stay at home")]
mod custom_server;

use std::time::Duration;

use custom_server::{Client, Sample, Server};
use epoll_reactor::sim::{Faults, Sim};
use epoll_reactor::{Address, ConnId, Ctx, Handler, Limits, ListenOptions, Reactor};

const COMMANDS: usize = 40;

fn server() -> Server {
    Server::new(Duration::from_secs(3600))
}

/// Runs `handler` in the world of `seed`; returns what a client gets that asks `COMMANDS` times for the load.
fn run<H: Handler>(seed: u64, handler: H) -> Vec<u8> {
    // Whatever a network may do to a connection that lives: nobody may lose anything.
    let sim = Sim::new(seed, Faults::swarm(seed).without_losses());
    let mut reactor = Reactor::with_kernel(sim.kernel(), handler, Limits::default()).unwrap();
    let address = Address::Tcp("127.0.0.1:80".parse().unwrap());
    reactor.listen(&address, &ListenOptions::default()).unwrap();
    let client = sim.connect(&address).unwrap();
    let commands = "watch load\n".repeat(COMMANDS);
    let mut unsent = commands.as_bytes();
    let mut answers = Vec::new();
    for _ in 0..20_000 {
        unsent = &unsent[client.send(unsent)..];
        if unsent.is_empty() {
            client.shutdown_write();
        }
        answers.extend(client.recv_all());
        if client.is_ended() {
            break;
        }
        reactor.turn(Some(Duration::from_millis(100))).unwrap();
    }
    answers
}

#[test]
fn every_command_is_answered_however_the_network_cuts_them() {
    for seed in 0..200 {
        let answers = run(seed, server());
        assert_eq!(answers, "load unknown\n".repeat(COMMANDS).into_bytes(), "seed {seed}");
    }
}

/// The mistake that everybody makes once: one read is one message. On loopback, with a client that waits for
/// its answers, it works every time.
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
fn the_simulator_finds_a_framing_mistake_within_a_few_seeds() {
    let expected = "load unknown\n".repeat(COMMANDS).into_bytes();
    let found = (0..20).find(|seed| run(*seed, OneReadIsOneMessage(server())) != expected);
    assert!(found.is_some(), "20 seeds, and no message was cut");
}
