//! `cargo xtask million`: one reactor with a million connections on the simulated kernel, one in a hundred active. The
//! simulated kernel's own memory and time are measured by themselves, and taken off.

use std::io::{self, Write};
use std::process::Command;
use std::time::Duration;

use epoll_protocols::Echo;
use epoll_reactor::sim::{Faults, Peer, Sim};
use epoll_reactor::{Address, Events, Interest, Kernel, Limits, ListenOptions, Reactor};

use crate::process::output;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// How many connections
    #[arg(long, default_value_t = 1_000_000)]
    connections: usize,
    /// Accept them on the bare simulated kernel, without a reactor
    #[arg(long, hide = true)]
    bare: bool,
}

/// Connections made at a time, fewer than a backlog holds.
const BATCH: usize = 1000;

pub(crate) fn run(options: &Options, out: &mut impl Write) -> io::Result<()> {
    let address = Address::Tcp(([127, 0, 0, 1], 80).into());
    let sim = Sim::new(1, Faults::none());
    if options.bare {
        return writeln!(out, "{}", bare(&sim, &address, options.connections)?);
    }
    // In a process of its own, since memory that was freed may still be resident.
    let mut other = Command::new(std::env::current_exe()?);
    let without =
        output(other.args(["million", "--bare", "--connections", &options.connections.to_string()]))?;
    let without: u64 = without.trim().parse().map_err(io::Error::other)?;
    let limits = Limits { connections: usize::MAX, ..Limits::default() };
    let mut reactor = Reactor::with_kernel(sim.kernel(), Echo, limits)?;
    reactor.listen(&address, &ListenOptions::default())?;
    let mut peers = Vec::with_capacity(options.connections);
    while peers.len() < options.connections {
        connect(&sim, &address, options.connections, &mut peers)?;
        while reactor.ctx().connections() < peers.len() {
            reactor.turn(Some(Duration::ZERO))?;
        }
    }
    let with = resident()?;
    let each = with.saturating_sub(without) / options.connections as u64;
    writeln!(out, "{} connections: {each} bytes of memory each in the reactor", options.connections)?;
    active(&mut reactor, &peers, out)
}

/// Has one in a hundred say something, each time another, and takes the CPU time of the turns that answer them: other
/// programs on the machine cost it nothing.
fn active<K: Kernel>(reactor: &mut Reactor<Echo, K>, peers: &[Peer], out: &mut impl Write) -> io::Result<()> {
    const ROUNDS: usize = 20;
    let (mut turns, mut time, mut messages) = (0_u64, Duration::ZERO, 0_u64);
    for round in 0..ROUNDS {
        let talking = || peers.iter().skip(round).step_by(100);
        let sent = talking().map(|peer| peer.send(&[7; 64])).sum::<usize>() as u64;
        let done = reactor.ctx().counters().bytes_sent + sent;
        let before = reactor.ctx().counters().turns;
        let start = cpu_time()?;
        while reactor.ctx().counters().bytes_sent < done {
            reactor.turn(Some(Duration::from_millis(1)))?;
        }
        time += cpu_time()? - start;
        turns += reactor.ctx().counters().turns - before;
        messages += sent / 64;
        talking().for_each(|peer| _ = peer.recv_all());
    }
    let micros = time.as_secs_f64() * 1e6;
    writeln!(
        out,
        "1% active: {messages} messages in {turns} turns; {:.0} µs a turn, {:.2} µs a message, the simulated kernel's own time included",
        micros / turns as f64,
        micros / messages as f64
    )
}

/// What the simulated kernel and the peers hold by themselves, in bytes.
fn bare(sim: &Sim, address: &Address, connections: usize) -> io::Result<u64> {
    let kernel = sim.kernel();
    let listener = kernel.listen(address, &ListenOptions::default())?;
    let (mut peers, mut accepted) = (Vec::with_capacity(connections), Vec::with_capacity(connections));
    let mut events = Events::with_capacity(BATCH);
    while peers.len() < connections {
        connect(sim, address, connections, &mut peers)?;
        while accepted.len() < peers.len() {
            let (fd, _) = kernel.accept(&listener)?;
            kernel.add(&fd, Interest::Stream, accepted.len() as u64)?;
            accepted.push(fd);
        }
        kernel.wait(&mut events, Some(Duration::ZERO))?;
    }
    // The descriptors are the kernel's, and are taken off; the list of them is not the reactor's.
    resident()
}

/// The next batch of `all`.
fn connect(sim: &Sim, address: &Address, all: usize, peers: &mut Vec<Peer>) -> io::Result<()> {
    for _ in 0..BATCH.min(all - peers.len()) {
        peers.push(sim.connect(address)?);
    }
    Ok(())
}

/// CPU time of this process's first thread, in which all of this runs: `/proc/self/schedstat`, as the kernel's
/// documentation of scheduler statistics has it.
fn cpu_time() -> io::Result<Duration> {
    let text = std::fs::read_to_string("/proc/self/schedstat")?;
    let nanoseconds = text.split(' ').next().and_then(|word| word.parse().ok());
    nanoseconds.map(Duration::from_nanos).ok_or_else(|| io::Error::other("no schedstat"))
}

/// Resident memory of this process in bytes: proc(5), `VmRSS`.
fn resident() -> io::Result<u64> {
    let status = std::fs::read_to_string("/proc/self/status")?;
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB")?.trim().parse().ok());
    line.map(|kibibytes: u64| kibibytes * 1024).ok_or_else(|| io::Error::other("no VmRSS"))
}
