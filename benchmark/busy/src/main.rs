//! An HTTP server whose every request costs CPU time: `cargo xtask bench` starts it, to see what becomes of latency when more
//! is asked than can be answered, and what a second loop is worth. The work is a number of rounds of arithmetic, found at the start by
//! how long they take, so that it is the same for each request and takes longer on a machine that is held up, as real work does.

#![forbid(unsafe_code)]

use std::hint::black_box;
use std::io::{self, Write};
use std::num::NonZeroUsize;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use epoll_protocols::http1::{FieldLine, Http, HttpConfig, Request, Response};
use epoll_reactor::{Address, Limits, ListenOptions, Workers};

/// An HTTP server whose requests cost CPU time
#[derive(Parser, Debug)]
struct Options {
    /// CPU time of a request, in microseconds, besides what the server itself takes
    #[arg(long, default_value_t = 500)]
    work_us: u64,
    /// The lag above which it sheds what it would serve too late, in microseconds; without it, it serves everything
    #[arg(long)]
    lag_target_us: Option<u64>,
    /// Loops, each on a thread
    #[arg(long, default_value = "1")]
    workers: NonZeroUsize,
    /// Log to stderr, as RUST_LOG says
    #[arg(long)]
    log: bool,
    /// Where to listen; with port 0, the kernel chooses one, and the line that is printed has it
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: String,
}

const TEXT: FieldLine = FieldLine::new("Content-Type: text/plain; charset=utf-8");

/// What a client is told that is turned away before it has asked.
const REFUSAL: &[u8] =
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// A multiplication that waits for the one before, so often.
fn work(rounds: u64) {
    let mut state = 1_u64;
    for _ in 0..rounds {
        state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
    }
}

/// How many rounds take `time`: of several tries the fastest, since whatever disturbs one makes it slower.
fn rounds_of(time: Duration) -> u64 {
    const ROUNDS: u64 = 1_000_000;
    let fastest = (0..20).map(|_| {
        let begun = Instant::now();
        work(ROUNDS);
        begun.elapsed().as_nanos().max(1)
    });
    let rounds = u128::from(ROUNDS) * time.as_nanos() / fastest.min().unwrap_or(1);
    u64::try_from(rounds).unwrap_or(u64::MAX)
}

fn run(options: &Options) -> io::Result<()> {
    let rounds = rounds_of(Duration::from_micros(options.work_us));
    let config = HttpConfig::default();
    let lag_target = options.lag_target_us.map(Duration::from_micros);
    let limits = config.limits(Limits { refusal: REFUSAL, lag_target, ..Limits::default() });
    let mut workers = Workers::new(options.workers, limits)?;
    let bound = workers.listen_first(&Address::resolve(&options.listen)?, &ListenOptions::default())?;
    writeln!(io::stdout(), "listening on {bound}")?;
    let service = || {
        move |_: &Request<'_>, response: &mut Response| {
            work(rounds);
            response.field_line(TEXT);
            response.set_static_body(b"Hello, World!");
        }
    };
    workers.run(|_| Ok(Http::new(service(), config.clone())), |_| ())?;
    Ok(())
}

fn main() -> ExitCode {
    let options = Options::parse();
    if options.log {
        env_logger::init();
    }
    match run(&options) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _: io::Result<()> = writeln!(io::stderr(), "bench-busy: {error}");
            ExitCode::FAILURE
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn more_time_is_more_rounds() {
        let rounds = rounds_of(Duration::from_micros(1000));
        assert!(rounds > 1000, "{rounds} rounds in a millisecond");
        // Measured anew, on a machine that others use: what is known for sure is that much more takes more.
        assert!(rounds_of(Duration::from_micros(100_000)) > rounds);
    }
}
