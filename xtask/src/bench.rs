//! `cargo xtask bench`: what the release build costs beside other servers. Each round has every server in turn, with the floor
//! among them, and ratios are taken within a round: a shared machine drifts, and single figures from it mean little.

mod chart;
mod check;
mod counted;
mod disturbance;
mod loops;
mod overload;
mod report;
mod servers;
mod stats;
mod workloads;
mod wrk;

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::process::{Cores, Server, cores, guarded, is_installed, root, target};
use disturbance::undisturbed;
use report::{Absent, Outcome, Report, Rounds};
use servers::{Entry, Profile, Servers, Service};
use stats::Sample;
use workloads::{Bench, Load, Workload};

#[derive(Args, Debug, Default)]
pub(crate) struct Options {
    /// Only workloads whose names begin so: http-64, echo, memory, instructions...; may be repeated
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Times each server is measured; the median counts. What fits into ten minutes, with --seconds, if not given
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rounds: Option<u32>,
    /// Seconds of load in each round
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: Option<u32>,
    /// Only this server and the floor, one round of a second, no instructions: about a minute
    #[arg(long)]
    quick: bool,
    /// This server as it was at a revision too, from a worktree under target/
    #[arg(long, value_name = "REVISION")]
    against: Option<String>,
    /// Install what is not there, by apt-get and pip
    #[arg(long)]
    install: bool,
    /// Measure nothing: build all servers without optimization, and see that each gives the right answers
    #[arg(long, conflicts_with_all = ["rounds", "seconds", "against", "out"])]
    check: bool,
    /// Where to write the results; benchmark/results for a run without other options, target/bench/results otherwise
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
}

/// What a run without arguments may take, in seconds, with what it builds: ten minutes, and some to spare.
const BUDGET: f64 = 560.0;

pub(crate) fn run(options: &Options, out: &mut impl Write) -> io::Result<()> {
    let begun = Instant::now();
    let mut wanted = select(options)?;
    let cores = require()?;
    let directory = target()?.join("bench");
    std::fs::create_dir_all(&directory)?;
    // What is written while it runs is this run's own, and goes with it.
    let scratch = tempfile::Builder::new().prefix("run-").tempdir_in(&directory)?;
    let building = ProgressBar::new_spinner();
    building.enable_steady_tick(Duration::from_millis(100));
    let progress = |what: &str| building.set_message(what.to_owned());
    if options.install {
        servers::install(&progress);
    }
    let services: Vec<Service> = wanted.iter().map(|workload| workload.service).collect();
    if services.contains(&Service::Files) {
        servers::write_files(&directory)?;
        std::os::unix::fs::symlink(directory.join("www"), scratch.path().join("www"))?;
    }
    let servers = servers::prepare(
        &directory,
        &servers::Wanted {
            services: &services,
            profile: if options.check { Profile::Dev } else { Profile::Release },
            few: options.quick,
            against: options.against.as_deref(),
        },
        &progress,
    )?;
    if options.check {
        building.finish_and_clear();
        return check_all(&wanted, &servers, cores, scratch.path(), out);
    }
    let loader = build_load(&services, &progress)?;
    building.finish_and_clear();

    let absent = leave_out(&mut wanted, &servers);
    for Absent { name, reason } in &absent {
        writeln!(out, "skipped: {name}: {reason}")?;
    }
    let plan = Plan::new(&wanted, &servers, BUDGET - begun.elapsed().as_secs_f64(), options);
    let Plan { rounds, seconds, .. } = plan;
    writeln!(out, "{rounds} rounds of {seconds} s; this will take about {}\n", in_words(plan.estimate))?;
    out.flush()?;

    let mut report = Report::new(rounds as usize, u64::from(seconds), cores);
    report.absent = absent;
    let time = Duration::from_secs(u64::from(seconds));
    let bench = Bench { directory: scratch.path(), cores, loader: &loader, time };
    let bar = bar(plan.steps);
    for workload in &wanted {
        let measured = if workload.is_of_settings() {
            measure_settings(&bench, workload, options, &bar)?
        } else {
            let rounds = if workload.is_timed() { rounds } else { 1 };
            measure(&bench, workload, &servers.entries, rounds, &bar)
        };
        let outcome = Outcome::new(workload, measured);
        bar.suspend(|| writeln!(out, "{} ({})\n{}", workload.title, workload.name, outcome.table()))?;
        out.flush()?;
        report.workloads.push(outcome);
    }
    bar.finish_and_clear();
    let results = options.results(&directory);
    report.write(&results)?;
    writeln!(
        out,
        "{}; the report is {}",
        in_words(begun.elapsed().as_secs_f64()),
        results.join("report.md").display()
    )
}

/// Builds our own load, and what has one of its own to bear.
fn build_load(services: &[Service], progress: &dyn Fn(&str)) -> io::Result<PathBuf> {
    if services.contains(&Service::Settings) {
        progress("building bench-busy");
        servers::build(Profile::Release, "bench-busy")?;
    }
    progress("building the load");
    servers::build(Profile::Release, "bench-load")
}

/// Takes what cannot be measured at all out of `wanted`; what is left out, and why.
fn leave_out(wanted: &mut Vec<Workload>, servers: &Servers) -> Vec<Absent> {
    let mut absent: Vec<Absent> = Vec::new();
    absent.extend(
        servers.absent.iter().map(|(name, reason)| Absent { name: name.clone(), reason: reason.clone() }),
    );
    wanted.retain(|workload| match workload.needs() {
        Some((program, argument)) if !is_installed(program, argument) => {
            let reason = format!("{program} is not installed");
            absent.push(Absent { name: workload.name.to_owned(), reason });
            false
        }
        _ => true,
    });
    for workload in wanted.iter() {
        absent.extend(servers.entries.iter().filter_map(|entry| {
            let reason = workload.missing(entry)?.to_owned();
            Some(Absent { name: format!("{} under {}", entry.name, workload.name), reason })
        }));
    }
    absent
}

impl Options {
    /// How often each setting of our own programs is measured, and for how many seconds: in a run of everything, the
    /// rounds of the servers take the time.
    fn of_settings(&self) -> (u32, u32) {
        let rounds = if self.only.is_empty() || self.quick { 1 } else { 3 };
        (self.rounds.unwrap_or(rounds), self.seconds.unwrap_or(1))
    }

    /// Where the results go. Those in benchmark/results are of runs that can be compared.
    fn results(&self, directory: &Path) -> PathBuf {
        let is_plain = self.only.is_empty()
            && !self.quick
            && self.against.is_none()
            && self.rounds.is_none()
            && self.seconds.is_none();
        let usual = if is_plain { root().join("benchmark/results") } else { directory.join("results") };
        self.out.clone().unwrap_or(usual)
    }
}

/// Starts each server for each workload, and says whether it answers as it should, or why it was not asked.
///
/// # Errors
/// One answers wrong, or does not start or build. On CI one is not installed, but for uvloop, which only pip has: a check
/// that skips everything passes.
fn check_all(
    wanted: &[Workload],
    servers: &Servers,
    cores: Cores,
    scratch: &Path,
    out: &mut impl Write,
) -> io::Result<()> {
    let bench = Bench { directory: scratch, cores, loader: Path::new(""), time: Duration::ZERO };
    let mut failed = 0;
    for (place, workload) in wanted.iter().enumerate() {
        // Memory and counts are of what is asked by the others too.
        let is_alike = |other: &Workload| other.asks_as(workload);
        if !workload.is_timed() || wanted.iter().take(place).any(is_alike) {
            continue;
        }
        for entry in servers.entries.iter().filter(|entry| entry.services.contains(&workload.service)) {
            let result = match workload.missing(entry) {
                Some(reason) => format!("skipped: {reason}"),
                None => match start(&bench, workload, entry) {
                    Ok(_) => "ok".to_owned(),
                    Err(error) => {
                        failed += 1;
                        format!("FAILED: {error}")
                    }
                },
            };
            writeln!(out, "{}: {}: {result}", workload.name, entry.name)?;
        }
    }
    let on_ci = std::env::var_os("CI").is_some_and(|ci| !ci.is_empty());
    for (name, reason) in &servers.absent {
        let is_optional = reason.ends_with("is not installed") && (!on_ci || name == "uvloop");
        failed += u32::from(!is_optional);
        writeln!(out, "{}: {name}: {reason}", if is_optional { "skipped" } else { "FAILED" })?;
    }
    if failed > 0 { Err(io::Error::other(format!("{failed} checks failed"))) } else { Ok(()) }
}

/// What nothing can be measured without.
fn require() -> io::Result<Cores> {
    // Servers inherit it: 9,000 clients are to be held.
    let _: Result<epoll_reactor::OpenFileLimit, epoll_reactor::Errno> =
        epoll_reactor::raise_open_file_limit();
    for (program, package) in [("setpriv", "util-linux"), ("taskset", "util-linux")] {
        if !is_installed(program, "--version") {
            return Err(io::Error::other(format!("{program} is not installed (package {package})")));
        }
    }
    cores()
}

/// The workloads that are asked for.
fn select(options: &Options) -> io::Result<Vec<Workload>> {
    for name in &options.only {
        if !workloads::ALL.iter().any(|workload| workload.name.starts_with(name)) {
            let names: Vec<_> = workloads::ALL.iter().map(|workload| workload.name).collect();
            return Err(io::Error::other(format!(
                "no workload begins with {name:?}; there are {}",
                names.join(", ")
            )));
        }
    }
    let is_wanted = |workload: &Workload| {
        let is_slow = matches!(workload.service, Service::Files | Service::Settings)
            || matches!(workload.load, workloads::Load::Instructions { .. });
        let named = options.only.iter().any(|name| workload.name.starts_with(name.as_str()));
        named || options.only.is_empty() && !(options.quick && is_slow)
    };
    Ok(workloads::ALL.into_iter().filter(is_wanted).collect())
}

/// How often and how long.
#[derive(Debug, PartialEq)]
struct Plan {
    rounds: u32,
    seconds: u32,
    /// Seconds of it all.
    estimate: f64,
    /// Measurements.
    steps: u64,
}

impl Plan {
    fn new(wanted: &[Workload], servers: &Servers, budget: f64, options: &Options) -> Self {
        let cells = wanted.iter().flat_map(|workload| {
            let takes = servers.entries.iter().filter(|entry| workload.takes(entry)).count();
            std::iter::repeat_n(workload, takes)
        });
        let (mut timed, mut overhead, mut once, mut steps) = (0, 0.0, 0.0, 0);
        for workload in cells {
            if workload.is_timed() {
                timed += 1;
                overhead += workload.overhead();
            } else {
                once += workload.overhead();
                steps += 1;
            }
        }
        let (rounds, seconds) = options.of_settings();
        for workload in wanted.iter().filter(|workload| workload.is_of_settings()) {
            once += f64::from(rounds) * (workload.overhead() + f64::from(workload.settings() * seconds));
            steps += u64::from(workload.settings() * rounds);
        }
        Self::fit(timed, overhead, once, steps, budget, options)
    }

    /// `timed` measurements in each round, which take `overhead` seconds besides their load, and others that take `once`.
    fn fit(timed: u32, overhead: f64, once: f64, steps: u64, budget: f64, options: &Options) -> Self {
        let takes =
            |rounds: u32, seconds: u32| f64::from(rounds) * (f64::from(timed * seconds) + overhead) + once;
        let (quick, fallback) = ([(1, 1)], [(5, 3), (5, 2), (3, 2), (5, 1), (4, 1), (3, 1), (2, 1), (1, 1)]);
        let candidates: &[(u32, u32)] = if options.quick { &quick } else { &fallback };
        let given = |(rounds, seconds): (u32, u32)| {
            (options.rounds.unwrap_or(rounds), options.seconds.unwrap_or(seconds))
        };
        let mut choices = candidates.iter().copied().map(given);
        let fits = choices.clone().find(|(rounds, seconds)| takes(*rounds, *seconds) <= budget);
        let (mut rounds, mut seconds) = fits.or_else(|| choices.next_back()).unwrap_or((1, 1));
        if timed == 0 {
            (rounds, seconds) = options.of_settings();
        }
        Self { rounds, seconds, estimate: takes(rounds, seconds), steps: steps + u64::from(rounds * timed) }
    }
}

fn in_words(seconds: f64) -> String {
    format!("{} min {:02} s", (seconds / 60.0) as u64, (seconds % 60.0) as u64)
}

fn bar(steps: u64) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(Some(steps), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{wide_bar} {pos}/{len} {msg} (still {eta})") {
        bar.set_style(style);
    }
    bar
}

/// All rounds of one workload. A server that fails is left out from there on.
fn measure(
    bench: &Bench<'_>,
    workload: &Workload,
    entries: &[Entry],
    rounds: u32,
    bar: &ProgressBar,
) -> Vec<Rounds> {
    let takers: Vec<&Entry> = entries.iter().filter(|entry| workload.takes(entry)).collect();
    let mut results: Vec<Rounds> = takers
        .iter()
        .map(|entry| Rounds { name: entry.name.clone(), samples: Vec::new(), failure: None })
        .collect();
    let mut running: Vec<Option<Server>> = takers
        .iter()
        .zip(&mut results)
        .map(|(entry, result)| match start(bench, workload, entry) {
            Ok(server) => Some(server),
            Err(error) => {
                result.failure = Some(format!("not measured: {error}"));
                bar.inc(u64::from(rounds));
                None
            }
        })
        .collect();
    for round in 0..rounds as usize {
        // Another begins each time, so that none has always the same behind it.
        for index in (0..takers.len()).map(|place| (place + round) % takers.len()) {
            let (Some(entry), Some(result), Some(slot)) =
                (takers.get(index), results.get_mut(index), running.get_mut(index))
            else {
                continue;
            };
            let Some(server) = slot else {
                result.samples.push(None);
                continue;
            };
            bar.set_message(format!("{}: {}", workload.name, entry.name));
            let measured = if workload.is_timed() {
                undisturbed(|| bench.measure(workload, entry, server))
            } else {
                bench.measure(workload, entry, server)
            };
            match measured {
                Ok(sample) => result.samples.push(Some(sample)),
                Err(error) => {
                    result.samples.push(None);
                    let end = server.end().ok().flatten().map(|end| format!("; {end}"));
                    let end = end.unwrap_or_default();
                    result.failure = Some(format!("failed in round {}: {error}{end}", round + 1));
                    bar.inc(u64::from(rounds) - round as u64 - 1);
                    *slot = None;
                }
            }
            bar.inc(1);
            if !workload.is_timed() {
                *slot = None;
            }
        }
    }
    results
}

/// All rounds of a workload of our own programs.
fn measure_settings(
    bench: &Bench<'_>,
    workload: &Workload,
    options: &Options,
    bar: &ProgressBar,
) -> io::Result<Vec<Rounds>> {
    let (rounds, seconds) = options.of_settings();
    let bench = Bench { time: Duration::from_secs(seconds.into()), ..*bench };
    bar.set_message(workload.name);
    match workload.load {
        Load::Overload { fresh } => {
            let busy = servers::build(Profile::Release, "bench-busy")?;
            Ok(overload::measure(&bench, &busy, fresh, rounds, bar))
        }
        Load::Loops(loops) => {
            let program = if loops == loops::Loops::Busy { "bench-busy" } else { servers::OURS };
            let program = servers::build(Profile::Release, program)?;
            Ok(loops::measure(&bench, &program, loops, rounds, bar))
        }
        _ => Err(io::Error::other("it is not of settings")),
    }
}

/// Rounds of rows, each as `measure` has it for its round and its place. One that fails is left out from there on.
fn measure_rows(
    names: &[&str],
    rounds: u32,
    bar: &ProgressBar,
    mut measure: impl FnMut(usize, usize) -> io::Result<Sample>,
) -> Vec<Rounds> {
    let row = |name: &&str| Rounds { name: (*name).to_owned(), samples: Vec::new(), failure: None };
    let mut results: Vec<Rounds> = names.iter().map(row).collect();
    for round in 0..rounds as usize {
        for (index, result) in results.iter_mut().enumerate() {
            let sample = match &result.failure {
                None => measure(round, index),
                Some(_) => Err(io::Error::other("left out")),
            };
            result.samples.push(match sample {
                Ok(sample) => Some(sample),
                Err(error) => {
                    result.failure.get_or_insert(format!("failed in round {}: {error}", round + 1));
                    None
                }
            });
            bar.inc(1);
        }
    }
    results
}

/// A server that has answered right.
fn start(bench: &Bench<'_>, workload: &Workload, entry: &Entry) -> io::Result<Server> {
    undisturbed(|| {
        let command = guarded(Some(bench.cores.server));
        let server = entry.start(workload.service, workload.flags(), command, bench.directory)?;
        bench.check(workload, entry, &server).map_err(|error| match error.kind() {
            io::ErrorKind::WouldBlock => io::Error::other("no answer, or a part of one, in five seconds"),
            _ => error,
        })?;
        Ok(server)
    })
}

#[cfg(test)]
mod tests;
