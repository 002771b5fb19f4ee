//! Load for echo, broadcast and HTTP servers: `cargo xtask bench` starts it. One thread and one epoll-reactor, whose outbound
//! connections are the clients. It prints `start` when all of them are served, and one line of JSON when the time is over:
//! operations, seconds, latencies in microseconds and its own CPU time, which tells whether it held the server up. Then it
//! begins nothing more and waits for what is under way. It fails if that does not come, or if anything came that is not what was
//! sent. The open loop has its own figures, and waits for nothing: see `open.rs`.

#![forbid(unsafe_code)]

mod broadcast;
mod echo;
mod open;

use std::io::{self, Write};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use epoll_reactor::{Address, Handler, Limits, Reactor};
use hdrhistogram::Histogram;

/// Load for echo, broadcast and HTTP servers
#[derive(Parser, Debug)]
#[command(args_override_self = true)]
struct Options {
    #[arg(value_enum)]
    mode: Mode,
    /// Port on 127.0.0.1
    port: u16,
    /// Clients that send and wait for the echo, or that receive what is broadcast; HTTP connections at one time at most
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
    /// How long the clients have to get ready, and what is under way at the end to come, in seconds
    #[arg(long, default_value_t = 10.0)]
    patience: f64,
    /// HTTP requests a second
    #[arg(long, default_value_t = 1000.0, value_parser = rate)]
    rate: f64,
    /// Each HTTP request on a connection of its own
    #[arg(long)]
    fresh: bool,
    /// How long HTTP requests are sent before anything is counted, in seconds
    #[arg(long, default_value_t = 1.0)]
    warm_up: f64,
    /// Of the times at which HTTP requests are sent
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn rate(text: &str) -> Result<f64, String> {
    let rate = text.parse::<f64>().map_err(|error| error.to_string())?;
    if (1.0..=1e6).contains(&rate) { Ok(rate) } else { Err("from 1 to 1000000".to_owned()) }
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
    /// HTTP requests at a given rate, whatever becomes of them
    Open,
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
    failure: Option<String>,
}

impl Record {
    fn new() -> io::Result<Self> {
        let base = Instant::now();
        Ok(Self { base, running: false, operations: 0, bytes: 0, latency: histogram()?, failure: None })
    }

    /// An operation that took `time` has ended.
    fn count(&mut self, time: Duration) {
        if self.running {
            self.operations += 1;
            self.latency.saturating_record(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX));
        }
    }

    fn fail(&mut self, what: impl Into<String>) {
        self.failure.get_or_insert(what.into());
    }
}

/// Of times in nanoseconds, up to a minute.
fn histogram() -> io::Result<Histogram<u64>> {
    Histogram::new_with_bounds(1, 60_000_000_000, 3).map_err(io::Error::other)
}

fn micros(histogram: &Histogram<u64>, quantile: f64) -> f64 {
    histogram.value_at_quantile(quantile) as f64 / 1e3
}

/// A handler that is measured.
trait Load: Handler {
    fn record(&mut self) -> &mut Record;
    /// Every client is known to be served.
    fn is_ready(&self) -> bool;
    /// Operations that have begun and not ended, or bytes of them.
    fn under_way(&self) -> u64;
}

fn measure(mut load: impl Load, clients: u32, options: &Options, out: &mut impl Write) -> io::Result<()> {
    let patience = Duration::from_secs_f64(options.patience);
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
        if begun.elapsed() > patience {
            return Err(io::Error::other("not all clients were served in time"));
        }
    }
    writeln!(out, "start")?;
    out.flush()?;
    let (start, cpu) = (Instant::now(), cpu_time()?);
    let time = Duration::from_secs_f64(options.seconds);
    reactor.handler().record().running = true;
    while start.elapsed() < time {
        reactor.turn(Some(time.saturating_sub(start.elapsed())))?;
        check(reactor.handler().record())?;
    }
    let (seconds, cpu) = (start.elapsed().as_secs_f64(), cpu_time()?.saturating_sub(cpu));
    let record = reactor.handler().record();
    record.running = false;
    if record.operations == 0 {
        return Err(io::Error::other("nothing was answered"));
    }
    let micros = |quantile| micros(&record.latency, quantile);
    let result = serde_json::json!({
        "operations": record.operations, "bytes": record.bytes, "seconds": seconds, "cpu": cpu.as_secs_f64(),
        "p50": micros(0.5), "p99": micros(0.99), "p99.9": micros(0.999),
    });
    writeln!(out, "{result}")?;
    out.flush()?;
    let ended = Instant::now();
    while reactor.handler().under_way() > 0 {
        reactor.turn(None)?;
        check(reactor.handler().record())?;
        if ended.elapsed() > patience {
            let lost = reactor.handler().under_way();
            return Err(io::Error::other(format!("{lost} of what was under way did not come")));
        }
    }
    Ok(())
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

fn run(options: &Options, out: &mut impl Write) -> io::Result<()> {
    let record = Record::new()?;
    let (clients, size) = (options.connections, options.size.max(1));
    match options.mode {
        Mode::Echo => measure(echo::Echo::new(record, clients, size, false), clients, options, out),
        Mode::Firehose => measure(echo::Echo::new(record, 2, size, true), 2, options, out),
        Mode::Broadcast | Mode::Redis => {
            let all = clients + options.senders;
            let redis = options.mode == Mode::Redis;
            let load =
                broadcast::Broadcast::new(record, options.senders, clients, options.burst.max(1), redis);
            measure(load, all, options, out)
        }
        Mode::Open => {
            let options = open::Options {
                port: options.port,
                rate: options.rate,
                fresh: options.fresh,
                connections: clients,
                seed: options.seed,
                warm_up: Duration::from_secs_f64(options.warm_up),
                time: Duration::from_secs_f64(options.seconds),
                patience: Duration::from_secs_f64(options.patience),
            };
            open::measure(record, options, out)
        }
    }
}

fn main() -> ExitCode {
    match run(&Options::parse(), &mut io::stdout().lock()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _: io::Result<()> = writeln!(io::stderr(), "bench-load: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "a panic is how a test fails")]
mod tests {
    use std::io::{BufRead, BufReader, Read};
    use std::net::{TcpListener, TcpStream};
    use std::sync::{Arc, Mutex};

    use super::*;

    /// A server whose clients each have a thread, which is told who they are.
    pub(crate) fn serving(serve: impl Fn(&mut TcpStream, usize) + Clone + Send + 'static) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            for number in 0.. {
                let (mut client, _) = listener.accept().unwrap();
                let serve = serve.clone();
                std::thread::spawn(move || serve(&mut client, number));
            }
        });
        port
    }

    fn load(mode: &str, port: u16) -> Result<serde_json::Value, String> {
        load_with(mode, port, &[])
    }

    /// What the load says, or why it fails.
    pub(crate) fn load_with(mode: &str, port: u16, arguments: &[&str]) -> Result<serde_json::Value, String> {
        let port = port.to_string();
        let usual = "--connections 3 --senders 2 --burst 2 --seconds 0.1 --patience 2 --warm-up 0";
        let words = ["bench-load", mode, &port].into_iter().chain(usual.split(' '));
        let options = Options::try_parse_from(words.chain(arguments.iter().copied())).unwrap();
        let mut out = Vec::new();
        run(&options, &mut out).map_err(|error| error.to_string())?;
        let text = String::from_utf8(out).unwrap();
        Ok(serde_json::from_str(text.strip_prefix("start\n").unwrap()).unwrap())
    }

    /// Echoes all but what `spoil` makes of it; it is told how many reads there were before.
    fn echo(spoil: fn(&mut Vec<u8>, usize)) -> u16 {
        serving(move |client, _| {
            let mut buffer = vec![0; 1 << 16];
            for reads in 0.. {
                let Ok(count @ 1..) = client.read(&mut buffer) else { return };
                let mut data = buffer[..count].to_vec();
                spoil(&mut data, reads);
                if client.write_all(&data).is_err() {
                    return;
                }
            }
        })
    }

    #[test]
    fn an_echo_is_measured_only_if_it_is_one() {
        for mode in ["echo", "firehose"] {
            let measured = load(mode, echo(|_, _| ())).unwrap();
            assert!(measured["operations"].as_f64().unwrap() > 0.0, "{measured}");
            assert_eq!(measured["bytes"].as_f64().unwrap() > 0.0, mode == "firehose", "{measured}");
        }
        let wrong = |spoil| load("echo", echo(spoil)).unwrap_err();
        assert_eq!(
            wrong(|data, reads| data[0] ^= u8::from(reads == 1)),
            "other bytes came back than were sent"
        );
        assert_eq!(
            wrong(|data, reads| data[9] ^= u8::from(reads == 1)),
            "other bytes came back than were sent"
        );
        assert_eq!(
            wrong(|data, reads| data.resize(64 + usize::from(reads == 1), 0)),
            "more came back than was sent"
        );
        assert_eq!(wrong(|data, reads| data.truncate(64 - usize::from(reads == 1))), "nothing was answered");
        assert_eq!(wrong(|data, _| data.clear()), "not all clients were served in time");
    }

    /// Broadcasts each line as often as `times` says: how many there were before, from whom, to whom.
    fn broadcast(times: fn(usize, usize, usize) -> usize) -> u16 {
        let clients = Arc::new(Mutex::new(Vec::new()));
        serving(move |client, number| {
            clients.lock().unwrap().push((number, client.try_clone().unwrap()));
            let mut said = 0;
            for line in BufReader::new(client).lines().map_while(Result::ok) {
                for (to, client) in &mut *clients.lock().unwrap() {
                    // Those that are there to see who is served go as they should.
                    let times = if line.starts_with('@') { times(said, number, *to) } else { 1 };
                    let _ = client.write_all(format!("[Client_{number}] {line}\n").repeat(times).as_bytes());
                }
                said += usize::from(line.starts_with('@'));
            }
        })
    }

    #[test]
    fn a_broadcast_is_measured_only_if_it_is_one() {
        let measured = load("broadcast", broadcast(|_, from, to| usize::from(from != to))).unwrap();
        assert!(measured["operations"].as_f64().unwrap() > 0.0, "{measured}");
        let wrong = |times| load("broadcast", broadcast(times)).unwrap_err();
        // The last receiver gets the second line of the first sender twice, and the last but one does not.
        let uneven = wrong(|said, from, to| match (said, from, to) {
            (1, 0, 4) => 2,
            (1, 0, 3) => 0,
            _ => usize::from(from != to),
        });
        assert_eq!(uneven, "a line came more often than it was sent");
        // The other sender goes on.
        let lost = wrong(|said, from, to| usize::from(from != to && (said, from, to) != (1, 0, 4)));
        assert_eq!(lost, "1 of what was under way did not come");
    }
}
