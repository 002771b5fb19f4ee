//! `cargo xtask sim`: seeds until the time is over or one fails, how far it has got, and what was injected.

use std::collections::BTreeMap;
use std::io::{self, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::plan::{Cuts, Kind, Plan, fault_names};
use super::report::{Report, report};
use super::run;
use super::stage::Tally;

#[derive(clap::Args)]
#[command(
    after_help = "A run takes milliseconds. One that takes more than ten seconds is named on standard error, and \
                        after three minutes the program ends there: a turn that does not end. A run that fails is made \
                        smaller first, which takes up to twenty seconds."
)]
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

#[derive(Default)]
struct Total {
    runs: u64,
    turns: u64,
    time: Duration,
    injected: BTreeMap<&'static str, u64>,
    /// The summary of each failure.
    failures: Vec<String>,
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
                    out.write_all(report.details.as_bytes())?;
                    total.failures.push(report.summary);
                }
            }
        }
        None => many(options, &kinds, &cuts, &mut total, out)?,
    }
    table(&total, out)?;
    if total.failures.is_empty() {
        return writeln!(out, "{} runs: nothing found", total.runs);
    }
    // At the end, where they are not scrolled away.
    out.write_all(total.failures.concat().as_bytes())?;
    Err(io::Error::other(format!("{} of {} runs failed", total.failures.len(), total.runs)))
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
                bar.suspend(|| out.write_all(report.details.as_bytes()))?;
                total.failures.push(report.summary);
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
fn one(plan: &Plan, total: &mut Total) -> Option<Report> {
    let (tally, broken) = run(plan);
    total.add(&tally);
    if let Some(broken) = broken {
        return Some(report(plan, &broken, |plan| run(plan).1));
    }
    if plan.seed.is_multiple_of(TWICE) {
        let (again, _) = run(plan);
        total.add(&again);
        if again.fingerprint != tally.fingerprint {
            let summary =
                format!("FAILED: not deterministic: another run the second time\n  again: {plan}\n");
            return Some(Report { details: String::new(), summary });
        }
    }
    None
}

fn table(total: &Total, out: &mut impl Write) -> io::Result<()> {
    writeln!(out, "{} runs, {} turns; injected:", total.runs, total.turns)?;
    for (name, count) in total.injected.iter().filter(|(_, count)| **count > 0) {
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
