//! `cargo xtask sim`: seeds until the time is over or one fails, how far it has got, and what was injected.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::plan::{Cuts, Kind, Plan, fault_names};
use super::shrink::{Run, shrink};
use super::stage::Tally;
use super::{Broken, run};

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Run this seed alone, of each scenario or of those given
    #[arg(long)]
    seed: Option<u64>,
    /// Run seeds for so many minutes
    #[arg(long, default_value_t = 1.0, conflicts_with = "seed")]
    minutes: f64,
    /// Run this scenario alone; may be given several times
    #[arg(long = "scenario", value_enum)]
    scenarios: Vec<Kind>,
    /// Count seeds from here on, instead of from the time of day
    #[arg(long, conflicts_with = "seed")]
    first_seed: Option<u64>,
    /// Stop after so many runs, if the time is not over before
    #[arg(long, conflicts_with = "seed")]
    runs: Option<u64>,
    /// Go on after a failure, and tell of each
    #[arg(long)]
    keep_going: bool,
    /// Play no more than so many clients
    #[arg(long)]
    clients: Option<usize>,
    /// Drain after so many turns
    #[arg(long)]
    turns: Option<usize>,
    /// Leave out a fault, by its name in `Faults` or `Network`; may be given several times
    #[arg(long = "without", value_parser = clap::builder::PossibleValuesParser::new(fault_names()))]
    without: Vec<String>,
}

/// One in so many seeds is run twice, to see that it is a function of its seed.
const TWICE: u64 = 16;
/// How much is shown of what happened last.
const SHOWN: usize = 60;

#[derive(Default)]
struct Total {
    runs: u64,
    turns: u64,
    time: Duration,
    injected: BTreeMap<&'static str, u64>,
    failures: u64,
}

/// Runs seeds; an error if one failed.
pub(crate) fn simulate(options: &Options, out: &mut impl Write) -> io::Result<()> {
    let cuts = Cuts {
        clients: options.clients,
        turns: options.turns,
        without: options.without.iter().cloned().collect(),
    };
    let kinds = if options.scenarios.is_empty() { Kind::ALL.to_vec() } else { options.scenarios.clone() };
    let mut total = Total::default();
    match options.seed {
        Some(seed) => {
            for kind in kinds {
                if let Some(report) = one(&Plan::new(kind, seed, &cuts), &mut total) {
                    out.write_all(report.as_bytes())?;
                }
            }
        }
        None => many(options, &kinds, &cuts, &mut total, out)?,
    }
    table(&total, out)?;
    if total.failures > 0 {
        return Err(io::Error::other(format!("{} of {} runs failed", total.failures, total.runs)));
    }
    Ok(())
}

fn many(
    options: &Options,
    kinds: &[Kind],
    cuts: &Cuts,
    total: &mut Total,
    out: &mut impl Write,
) -> io::Result<()> {
    let start = Instant::now();
    let until = Duration::from_secs_f64(options.minutes.max(0.0) * 60.0);
    let first = options.first_seed.unwrap_or_else(|| fastrand::u64(..1 << 48));
    writeln!(out, "seeds from {first} on, of {kinds:?}, for {until:?}")?;
    let bar = ProgressBar::new(until.as_secs());
    if let Ok(style) = ProgressStyle::with_template("{bar:30} {elapsed} of {len} s  {msg}") {
        bar.set_style(style);
    }
    let mut seed = first;
    while start.elapsed() < until && options.runs.is_none_or(|most| total.runs < most) {
        for kind in kinds {
            if let Some(report) = one(&Plan::new(*kind, seed, cuts), total) {
                bar.suspend(|| out.write_all(report.as_bytes()))?;
                if !options.keep_going {
                    bar.finish_and_clear();
                    return Ok(());
                }
            }
        }
        seed += 1;
        bar.set_position(start.elapsed().as_secs());
        bar.set_message(speed(total, start.elapsed()));
    }
    bar.finish_and_clear();
    writeln!(out, "seeds {first} to {}: {}", seed - 1, speed(total, start.elapsed()))
}

fn speed(total: &Total, elapsed: Duration) -> String {
    let seconds = elapsed.as_secs_f64().max(0.001);
    let faults: u64 = total.injected.values().sum();
    format!(
        "{} runs, {:.0} a second; {} turns, {:.0} a second; {} faults; {:.1} hours of virtual time",
        total.runs,
        total.runs as f64 / seconds,
        total.turns,
        total.turns as f64 / seconds,
        faults,
        total.time.as_secs_f64() / 3_600.0
    )
}

/// Runs one plan, now and then twice; what there is to tell, if it failed.
fn one(plan: &Plan, total: &mut Total) -> Option<String> {
    let (tally, broken) = run(plan);
    total.add(&tally);
    let told = if let Some(broken) = broken {
        report(plan, &broken, |plan| run(plan).1)
    } else if plan.seed.is_multiple_of(TWICE) {
        let (again, _) = run(plan);
        total.add(&again);
        if again.fingerprint == tally.fingerprint {
            return None;
        }
        format!("NOT DETERMINISTIC: {plan} was another run the second time\n")
    } else {
        return None;
    };
    total.failures += 1;
    Some(told)
}

/// All there is to say of a failure, and of the smallest run that fails for the same reason.
pub(crate) fn report(plan: &Plan, broken: &Broken, run: Run) -> String {
    let (smaller, small) = shrink(plan, broken.clone(), run);
    let last = |lines: &[String]| lines[lines.len().saturating_sub(SHOWN)..].join("\n");
    format!(
        "FAILED: scenario {}, seed {}, after {:?} of virtual time\n  {}\n  again: {plan}\n\
         Shrunk, after {:?}:\n  {}\n  again: {smaller}\n  {} clients, {} turns, gentle: {}, {:?}\n\
         Last callbacks:\n{}\nLast of the kernel's trace:\n{}\n",
        plan.kind.name(),
        plan.seed,
        broken.at,
        broken.failure,
        small.at,
        small.failure,
        smaller.clients,
        smaller.turns,
        smaller.gentle,
        smaller.faults,
        last(&small.callbacks),
        last(&small.trace),
    )
}

fn table(total: &Total, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{} runs, {} turns; injected:", total.runs, total.turns)?;
    for (name, count) in &total.injected {
        writeln!(out, "  {name:<16} {count:>12}")?;
    }
    Ok(())
}

impl Total {
    fn add(&mut self, tally: &Tally) {
        self.runs += 1;
        self.turns += tally.turns;
        self.time += tally.time;
        for (name, count) in tally.injected.iter() {
            *self.injected.entry(name).or_default() += count;
        }
    }
}
