//! `cargo xtask bench`: what the release build costs. Every figure of one kind comes from one run, with the floor it
//! is compared with measured in turns beside it; single figures from a shared machine mean little.

mod files;

use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;

use clap::{Args, ValueEnum};

use crate::process::{Server, build_server, is_installed, output, root};

#[derive(Args, Debug)]
pub(crate) struct Options {
    /// Only this measurement; may be repeated
    #[arg(long, value_enum)]
    only: Vec<Measurement>,
    /// Times each server is measured; the median counts
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds of load in each round
    #[arg(long, default_value_t = 10)]
    seconds: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Measurement {
    /// CPU time a keep-alive request, beside a bare C epoll loop (needs wrk, taskset and a C compiler)
    Http,
    /// System calls of 10,000 keep-alive requests on one connection (needs strace)
    Syscalls,
    /// Resident memory a connection with 9,000 idle echo clients
    Memory,
    /// CPU time of a request for a file, beside nginx with sendfile on (needs nginx, wrk and taskset)
    Files,
}

pub(crate) fn run(options: &Options, out: &mut impl Write) -> io::Result<()> {
    let server = build_server()?;
    let wanted = |measurement| options.only.is_empty() || options.only.contains(&measurement);
    if wanted(Measurement::Http) {
        http(&server, options, out)?;
    }
    if wanted(Measurement::Syscalls) {
        syscalls(&server, out)?;
    }
    if wanted(Measurement::Memory) {
        memory(&server, out)?;
    }
    if wanted(Measurement::Files) {
        files::compare(&server, options.rounds, options.seconds, out)?;
    }
    Ok(())
}

/// One server under one load.
struct Round {
    requests_per_second: f64,
    user: f64,
    system: f64,
}

impl Round {
    /// CPU microseconds a request.
    fn total(&self) -> f64 {
        self.user + self.system
    }
}

fn http(server: &Path, options: &Options, out: &mut impl Write) -> io::Result<()> {
    writeln!(
        out,
        "HTTP keep-alive: wrk -t1 -c64 -d{} /hello; server on core 0, wrk on core 1",
        options.seconds
    )?;
    for (program, argument) in [("wrk", "--version"), ("taskset", "--version"), ("cc", "--version")] {
        if !is_installed(program, argument) {
            return writeln!(out, "  skipped: {program} is not installed\n");
        }
    }
    let floor = build_floor()?;
    let ours = Server::start(pinned(0).arg(server).arg("http"))?;
    let bare = Server::start_on_port(pinned(0).arg(&floor))?;
    let (mut of_ours, mut of_bare, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 1..=options.rounds {
        let pair = (load(&ours, "hello", 64, options.seconds)?, load(&bare, "hello", 64, options.seconds)?);
        let ratio = pair.0.total() / pair.1.total();
        writeln!(
            out,
            "  round {round}: {:.3} and {:.3} µs, ratio {ratio:.3}",
            pair.0.total(),
            pair.1.total()
        )?;
        ratios.push(ratio);
        of_ours.push(pair.0);
        of_bare.push(pair.1);
    }
    writeln!(
        out,
        "  {:<14}{:>12}{:>12}{:>12}{:>12}",
        "median of", "requests/s", "user µs", "system µs", "total µs"
    )?;
    for (name, rounds) in [("epoll-server", &of_ours), ("bare C loop", &of_bare)] {
        writeln!(
            out,
            "  {name:<14}{:>12.0}{:>12.3}{:>12.3}{:>12.3}",
            median(rounds.iter().map(|round| round.requests_per_second)),
            median(rounds.iter().map(|round| round.user)),
            median(rounds.iter().map(|round| round.system)),
            median(rounds.iter().map(Round::total)),
        )?;
    }
    writeln!(out, "  CPU a request, to the bare C loop's: {}\n", with_spread(&ratios))
}

/// The median, and between what it lies.
fn with_spread(ratios: &[f64]) -> String {
    let (low, high) =
        (ratios.iter().copied().fold(f64::MAX, f64::min), ratios.iter().copied().fold(0.0, f64::max));
    format!("{:.3} ({low:.3} to {high:.3})", median(ratios.iter().copied()))
}

/// Loads a server with wrk, and reads its CPU time from /proc around that.
fn load(server: &Server, path: &str, connections: u32, seconds: u32) -> io::Result<Round> {
    let before = server.cpu_time()?;
    let url = format!("http://127.0.0.1:{}/{path}", server.port);
    let (connections, duration) = (format!("-c{connections}"), format!("-d{seconds}"));
    let report = output(pinned(1).args(["wrk", "-t1", &connections, &duration, "--timeout", "30s", &url]))?;
    let after = server.cpu_time()?;
    let first_number = |marker: &str| {
        let line = report.lines().find(|line| line.contains(marker))?;
        line.split_whitespace().find_map(|word| word.parse::<f64>().ok())
    };
    if report.contains("Socket errors") || report.contains("Non-2xx") {
        return Err(io::Error::other(report));
    }
    match (first_number("requests in"), first_number("Requests/sec")) {
        (Some(requests), Some(requests_per_second)) => Ok(Round {
            requests_per_second,
            user: (after.user - before.user).as_secs_f64() * 1e6 / requests,
            system: (after.system - before.system).as_secs_f64() * 1e6 / requests,
        }),
        _ => Err(io::Error::other(format!("cannot read wrk's report: {report}"))),
    }
}

fn syscalls(server: &Path, out: &mut impl Write) -> io::Result<()> {
    const REQUESTS: usize = 10_000;
    writeln!(out, "System calls: strace -c -f, {REQUESTS} keep-alive requests on one connection")?;
    if !is_installed("strace", "--version") {
        return writeln!(out, "  skipped: strace is not installed\n");
    }
    let server = Server::start(Command::new(server).arg("http"))?;
    let mut client = TcpStream::connect(("127.0.0.1", server.port))?;
    client.set_nodelay(true)?;
    // Connected and answered once before strace attaches: what is counted is the steady state.
    ask(&mut client)?;
    let mut strace = Command::new("strace")
        .args(["-c", "-f", "-p", &server.id().to_string()])
        .stderr(std::process::Stdio::piped())
        .spawn()?;
    let mut report = io::BufReader::new(strace.stderr.take().ok_or_else(|| io::Error::other("no stderr"))?);
    let mut line = String::new();
    io::BufRead::read_line(&mut report, &mut line)?;
    if !line.contains("attached") {
        return writeln!(out, "  skipped: {line}");
    }
    for _ in 0..REQUESTS {
        ask(&mut client)?;
    }
    server.terminate()?;
    let mut summary = String::new();
    report.read_to_string(&mut summary)?;
    strace.wait()?;
    for line in summary.lines().filter(|line| line.chars().any(|character| character.is_ascii_digit())) {
        writeln!(out, "  {line}")?;
    }
    writeln!(out, "  (the calls that are there once or twice are the shutdown)\n")
}

fn ask(client: &mut TcpStream) -> io::Result<()> {
    client.write_all(b"GET /hello HTTP/1.1\r\nHost: localhost\r\n\r\n")?;
    let mut answer = [0; 4096];
    let mut length = 0;
    while !answer.get(..length).unwrap_or_default().ends_with(b"Hello, World!") {
        match client.read(answer.get_mut(length..).unwrap_or_default())? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => length += count,
        }
    }
    Ok(())
}

fn memory(server: &Path, out: &mut impl Write) -> io::Result<()> {
    const CLIENTS: u32 = 9_000;
    writeln!(
        out,
        "Memory: {CLIENTS} idle clients of epoll-server echo, each having sent and received 64 bytes"
    )?;
    let server = Server::start(Command::new(server).arg("echo"))?;
    let mut clients = Vec::new();
    let mut connect = |count| -> io::Result<()> {
        for _ in 0..count {
            let mut client = TcpStream::connect(("127.0.0.1", server.port))?;
            let mut echoed = [0; 64];
            client.write_all(&[7; 64])?;
            client.read_exact(&mut echoed)?;
            clients.push(client);
        }
        Ok(())
    };
    // The first touches what the loop itself needs.
    connect(1)?;
    let before = server.resident()?;
    connect(CLIENTS)?;
    let after = server.resident()?;
    let each = after.saturating_sub(before) / u64::from(CLIENTS);
    writeln!(out, "  resident before {before} bytes, after {after}: {each} bytes a connection\n")
}

fn build_floor() -> io::Result<PathBuf> {
    let directory = root().join("benchmark");
    let binary = directory.join("bin/floor-http");
    std::fs::create_dir_all(directory.join("bin"))?;
    output(Command::new("cc").args(["-O2", "-Wall", "-o"]).arg(&binary).arg(directory.join("floor/http.c")))?;
    Ok(binary)
}

fn pinned(core: u32) -> Command {
    let mut command = Command::new("taskset");
    command.args(["-c", &core.to_string()]);
    command
}

fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
