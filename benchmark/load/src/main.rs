//! Load for echo and broadcast servers: `cargo xtask bench` starts it. One thread and one epoll-reactor, whose outbound
//! connections are the clients. It prints `start` when all of them are served, and one line of JSON when the time is over:
//! operations, seconds, latencies in microseconds and its own CPU time, which tells whether it held the server up.

#![forbid(unsafe_code)]

mod broadcast;
mod echo;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use epoll_reactor::{Address, Handler, Limits, Reactor};
use hdrhistogram::Histogram;

/// Load for echo and broadcast servers
#[derive(Parser, Debug)]
struct Options {
    #[arg(value_enum)]
    mode: Mode,
    /// Port on 127.0.0.1
    port: u16,
    /// Clients that send and wait for the echo, or that receive what is broadcast
    #[arg(long, default_value_t = 64)]
    connections: u32,
    /// Bytes of a message that is echoed
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Clients that send what is broadcast, 9 at most
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=9))]
    senders: u32,
    /// Lines that a sender writes at a time; it goes on when every receiver has all of them
    #[arg(long, default_value_t = 1)]
    burst: u32,
    /// How long to measure, in seconds
    #[arg(long, default_value_t = 2.0)]
    seconds: f64,
}

#[derive(Clone, Copy, Debug, ValueEnum, PartialEq, Eq)]
enum Mode {
    /// Each client sends a message and waits for all of it
    Echo,
    /// One client sends without end; another sends a message and waits for it
    Firehose,
    /// Lines to all others
    Broadcast,
    /// SUBSCRIBE and PUBLISH
    Redis,
}

/// What a measurement has come to.
struct Record {
    /// The origin of the times in lines.
    base: Instant,
    running: bool,
    operations: u64,
    /// Bytes that came beside them.
    bytes: u64,
    /// In nanoseconds.
    latency: Histogram<u64>,
    last: Instant,
    failure: Option<String>,
}

impl Record {
    fn new() -> io::Result<Self> {
        let latency = Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(io::Error::other)?;
        let now = Instant::now();
        Ok(Self { base: now, running: false, operations: 0, bytes: 0, latency, last: now, failure: None })
    }

    /// An operation that took `time` has ended at `now`.
    fn count(&mut self, now: Instant, time: Duration) {
        if self.running {
            self.operations += 1;
            self.last = now;
            self.latency.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    fn fail(&mut self, what: impl Into<String>) {
        self.failure.get_or_insert(what.into());
    }
}

/// A handler that is measured.
trait Load: Handler {
    fn record(&mut self) -> &mut Record;
    /// Every client is known to be served.
    fn is_ready(&self) -> bool;
}

/// How long the clients have to get ready, and how long nothing may happen under load.
const PATIENCE: Duration = Duration::from_secs(10);
const STALLED: Duration = Duration::from_secs(1);

fn measure(mut load: impl Load, clients: u32, options: &Options) -> io::Result<()> {
    load.record().running = false;
    let limits = Limits { tick: Some(Duration::from_millis(10)), ..Limits::default() };
    let mut reactor = Reactor::new(load, limits)?;
    for _ in 0..clients {
        let server = Address::Tcp(([127, 0, 0, 1], options.port).into());
        reactor.ctx().connect(server).ok_or_else(|| io::Error::other("too many connections"))?;
    }
    let begun = Instant::now();
    while !reactor.handler().is_ready() {
        reactor.turn(None)?;
        check(reactor.handler().record())?;
        if begun.elapsed() > PATIENCE {
            return Err(io::Error::other("not all clients were served in time"));
        }
    }
    let mut stdout = io::stdout().lock();
    writeln!(stdout, "start")?;
    stdout.flush()?;
    let (start, cpu) = (Instant::now(), cpu_time()?);
    let time = Duration::from_secs_f64(options.seconds);
    reactor.handler().record().running = true;
    reactor.handler().record().last = start;
    while start.elapsed() < time {
        reactor.turn(Some(time.saturating_sub(start.elapsed())))?;
        check(reactor.handler().record())?;
    }
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_time()?.saturating_sub(cpu));
    let record = reactor.handler().record();
    if record.last.elapsed() > STALLED || record.operations == 0 {
        return Err(io::Error::other(format!("it stands still after {} operations", record.operations)));
    }
    let micros = |quantile| record.latency.value_at_quantile(quantile) as f64 / 1e3;
    let result = serde_json::json!({
        "operations": record.operations, "bytes": record.bytes, "seconds": seconds, "cpu": cpu.as_secs_f64(),
        "p50": micros(0.5), "p99": micros(0.99), "p99.9": micros(0.999),
    });
    writeln!(stdout, "{result}")
}

fn check(record: &mut Record) -> io::Result<()> {
    record.failure.take().map_or(Ok(()), |failure| Err(io::Error::other(failure)))
}

/// CPU time of this process, which has one thread: `/proc/self/schedstat`.
fn cpu_time() -> io::Result<Duration> {
    let text = std::fs::read_to_string("/proc/self/schedstat")?;
    let nanoseconds = text.split(' ').next().and_then(|word| word.parse().ok());
    nanoseconds.map(Duration::from_nanos).ok_or_else(|| io::Error::other("no schedstat"))
}

fn run(options: &Options) -> io::Result<()> {
    let record = Record::new()?;
    let (clients, size) = (options.connections, options.size.max(1));
    match options.mode {
        Mode::Echo => measure(echo::Echo::new(record, clients, size, false), clients, options),
        Mode::Firehose => measure(echo::Echo::new(record, 2, size, true), 2, options),
        Mode::Broadcast | Mode::Redis => {
            let all = clients + options.senders;
            let redis = options.mode == Mode::Redis;
            let load =
                broadcast::Broadcast::new(record, options.senders, clients, options.burst.max(1), redis);
            measure(load, all, options)
        }
    }
}

fn main() -> ExitCode {
    match run(&Options::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _: io::Result<()> = writeln!(io::stderr(), "bench-load: {error}");
            ExitCode::FAILURE
        }
    }
}
