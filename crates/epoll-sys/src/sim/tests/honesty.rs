//! The promise that makes every other test worth its while: with all transient faults, in any network, a
//! program that obeys the rules of edge-triggered epoll gets every byte in order and never stalls. Programs
//! that break the rules do stall, or the first half would show nothing.

use fastrand::Rng;

use super::super::ALWAYS;
use super::*;
use crate::{Errno, Event};

/// How a program deals with events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Habit {
    /// As the documentation of [`Kernel::recv`] and [`Kernel::send`] has it.
    Obeys,
    /// Takes every short read for the last, whatever the event said.
    IgnoresTheEnd,
    /// Reads once an event, even if the buffer came back full.
    ReadsOnce,
    /// Writes at events alone, and takes `EAGAIN` for an interruption that needs none.
    NeverWritesUnasked,
}

/// One end, in the hands of a program.
struct End {
    fd: SimFd,
    token: u64,
    to_send: Vec<u8>,
    sent: usize,
    received: Vec<u8>,
    readable: bool,
    read_to_end: bool,
    writable: bool,
    ended: bool,
    shut: bool,
}

impl End {
    fn new(kernel: &SimKernel, fd: SimFd, token: u64, to_send: Vec<u8>) -> Self {
        add(kernel, &fd, token);
        let (sent, received) = (0, Vec::new());
        let (readable, read_to_end, writable, ended, shut) = (false, false, false, false, false);
        Self { fd, token, to_send, sent, received, readable, read_to_end, writable, ended, shut }
    }

    fn note(&mut self, event: Event) {
        self.readable |= event.readiness.is_readable();
        self.read_to_end |= event.readiness.must_read_to_end();
        self.writable |= event.readiness.is_writable();
    }

    fn has_work(&self) -> bool {
        (self.readable && !self.ended) || (self.writable && !self.shut)
    }

    fn is_done(&self) -> bool {
        self.ended && self.shut
    }

    /// A few reads and writes of random sizes, in random order.
    fn work(&mut self, kernel: &SimKernel, rng: &mut Rng, habit: Habit) {
        for _ in 0..rng.u8(1..6) {
            if rng.bool() {
                self.read(kernel, rng, habit);
            } else {
                self.write(kernel, rng, habit);
            }
        }
    }

    fn read(&mut self, kernel: &SimKernel, rng: &mut Rng, habit: Habit) {
        if !self.readable || self.ended {
            return;
        }
        let mut buffer = vec![0; rng.usize(1..3_000)];
        match kernel.recv(&self.fd, &mut buffer) {
            Ok(0) => self.ended = true,
            Ok(read) => {
                self.received.extend_from_slice(&buffer[..read]);
                let short = read < buffer.len() && (!self.read_to_end || habit == Habit::IgnoresTheEnd);
                self.readable = !short && habit != Habit::ReadsOnce;
            }
            Err(Errno::EAGAIN) => (self.readable, self.read_to_end) = (false, false),
            Err(error) => assert_eq!(error, Errno::EINTR),
        }
    }

    fn write(&mut self, kernel: &SimKernel, rng: &mut Rng, habit: Habit) {
        if !self.writable || self.shut {
            return;
        }
        let rest = &self.to_send[self.sent..];
        if rest.is_empty() {
            self.shut = kernel.shutdown_write(&self.fd).is_ok();
            return;
        }
        let piece = &rest[..rng.usize(1..=rest.len())];
        match kernel.send(&self.fd, piece) {
            Ok(sent) => {
                self.sent += sent;
                self.writable = sent == piece.len() && habit != Habit::NeverWritesUnasked;
            }
            Err(Errno::EAGAIN) => self.writable = false,
            Err(error) => assert_eq!(error, Errno::EINTR),
        }
    }
}

fn add(kernel: &SimKernel, fd: &SimFd, token: u64) {
    kernel.add(fd, Interest::Stream, token).unwrap();
}

fn random_bytes(rng: &mut Rng, most: usize) -> Vec<u8> {
    (0..rng.usize(0..most)).map(|_| rng.u8(..)).collect()
}

fn connected(sim: &Sim, kernel: &SimKernel, unix: bool) -> (SimFd, SimFd) {
    let address = if unix { Address::Unix("socket".into()) } else { here() };
    let listener = kernel.listen(&address, &ListenOptions::default()).unwrap();
    let (client, _) = kernel.connect(&address).unwrap();
    loop {
        match kernel.accept(&listener) {
            Ok((server, _)) => return (client, server),
            Err(error) => assert!([Errno::EAGAIN, Errno::EINTR].contains(&error)),
        }
        sim.advance(Duration::from_millis(100));
    }
}

/// Exchanges random data between two ends; `Err` if one stalls. What arrives is always what was sent.
fn exchange(seed: u64, faults: Faults, habit: Habit) -> Result<Sim, String> {
    let mut rng = Rng::with_seed(!seed);
    let sim = Sim::new(seed, faults);
    let kernel = sim.kernel();
    let (client, server) = connected(&sim, &kernel, seed % 4 == 3);
    let (there, back) = (random_bytes(&mut rng, 20_000), random_bytes(&mut rng, 20_000));
    let mut ends = [End::new(&kernel, client, 1, there), End::new(&kernel, server, 2, back)];
    let mut events = Events::with_capacity(rng.usize(1..4));
    while !ends.iter().all(End::is_done) {
        let timeout = ends.iter().any(End::has_work).then_some(Duration::ZERO);
        match kernel.wait(&mut events, timeout) {
            Ok(()) => (),
            Err(error) => assert_eq!(error, Errno::EINTR),
        }
        if sim.violations().iter().any(|violation| violation.contains("for ever")) {
            return Err(format!("seed {seed} stalls: {:#?}", sim.trace()));
        }
        for event in (0..events.len()).filter_map(|position| events.get(position)) {
            for end in &mut ends {
                if end.token == event.token {
                    end.note(event);
                }
            }
        }
        for end in &mut ends {
            end.work(&kernel, &mut rng, habit);
        }
    }
    assert_eq!(sim.violations(), [""; 0]);
    let [client, server] = ends;
    assert!(server.received == client.to_send && client.received == server.to_send, "seed {seed}");
    for end in [client, server] {
        kernel.delete(&end.fd).unwrap();
    }
    Ok(sim)
}

#[test]
fn whoever_obeys_the_rules_gets_every_byte_in_any_weather() {
    let mut injected = std::collections::BTreeMap::new();
    for seed in 0..400 {
        match exchange(seed, Faults::swarm(seed).without_losses(), Habit::Obeys) {
            Ok(sim) => sim.injected().iter().for_each(|(name, count)| {
                *injected.entry(name).or_insert(0) += count;
            }),
            Err(trace) => panic!("{trace}"),
        }
    }
    for fault in
        ["short_recv", "short_send", "eagain_recv", "eagain_send", "eintr", "spurious", "held", "early"]
    {
        assert!(injected[fault] > 100, "{fault}: {injected:?}");
    }
}

#[test]
fn whoever_obeys_the_rules_gets_every_byte_whatever_is_certain_to_go_wrong() {
    for seed in 0..40 {
        for probability in [0, ALWAYS / 10, ALWAYS / 2, ALWAYS] {
            exchange(seed, Faults::transient(probability), Habit::Obeys).unwrap();
        }
    }
}

/// Each of these works most of the time. That is what makes them worth finding.
#[test]
fn whoever_breaks_the_rules_stalls() {
    for habit in [Habit::IgnoresTheEnd, Habit::ReadsOnce, Habit::NeverWritesUnasked] {
        let stalled = (0..100)
            .filter(|seed| exchange(*seed, Faults::swarm(*seed).without_losses(), habit).is_err())
            .count();
        assert!(stalled > 5, "{habit:?} stalls in {stalled} of 100");
    }
}

/// Urgent bytes come one at a time, so that all others are ordinary.
#[test]
fn urgent_data_costs_nothing_else() {
    for seed in 0..200 {
        let mut rng = Rng::with_seed(seed);
        let (sim, kernel, server, peer) = pair(seed, Faults::swarm(seed).without_losses());
        let mut sent = Vec::new();
        let mut end = End {
            fd: server,
            token: SERVER,
            to_send: Vec::new(),
            sent: 0,
            received: Vec::new(),
            readable: false,
            read_to_end: false,
            writable: false,
            ended: false,
            shut: true,
        };
        let mut events = Events::with_capacity(1);
        for round in 0..200 {
            if round < 100 && sent.len() == end.received.len() && peer.unsent() == 0 {
                let (before, behind) = (random_bytes(&mut rng, 900), random_bytes(&mut rng, 900));
                sent.extend_from_slice(&before[..peer.send(&before)]);
                peer.send_urgent(0);
                sent.extend_from_slice(&behind[..peer.send(&behind)]);
            } else if round == 100 {
                peer.shutdown_write();
            }
            // A wait for ever is no stall here: it is the peer's turn.
            let timeout = if end.has_work() { Duration::ZERO } else { Duration::from_secs(60) };
            let _ = kernel.wait(&mut events, Some(timeout));
            if let Some(event) = events.get(0) {
                end.note(event);
            }
            for _ in 0..rng.u8(1..20) {
                end.read(&kernel, &mut rng, Habit::Obeys);
            }
        }
        while !end.ended {
            let timeout = if end.has_work() { Some(Duration::ZERO) } else { None };
            let _ = kernel.wait(&mut events, timeout);
            if let Some(event) = events.get(0) {
                end.note(event);
            }
            end.read(&kernel, &mut rng, Habit::Obeys);
            assert_eq!(sim.violations(), [""; 0], "seed {seed} stalls: {:#?}", sim.trace());
        }
        assert!(end.received == sent, "seed {seed}");
    }
}
