//! More than a server can answer: a service whose requests cost CPU time is asked for half of what it can do, for all of it, and for two
//! and five times as much, by clients who do not wait for each other, with overload control and without. What is to be seen is what
//! becomes of the latency of those that are answered, and what of the others.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use indicatif::ProgressBar;

use super::check;
use super::disturbance::undisturbed;
use super::report::Rounds;
use super::stats::{Metric, Sample};
use super::workloads::Bench;
use super::wrk::Script;
use crate::process::{Server, guarded, output};

/// CPU time of a request, in microseconds: a page with a few queries. So much that what the server itself costs is small beside it, and
/// so little that a second has requests enough for a p99.
const WORK: u64 = 500;
/// In microseconds: five requests. Who is answered in an overload waits for about so long and is served then, which is no longer than
/// one in a hundred waits at half the load; `benchmark/README.md` has what other targets come to.
const LAG_TARGET: u64 = 2_500;
/// More than control lets wait, and so many that without it the wait for a connection is not what is measured first.
const CONNECTIONS: u32 = 1024;
/// Until the latency is what it stays, or it is clear that it does not stay anything.
const WARM_UP: Duration = Duration::from_secs(1);
/// Of the closed loop that finds out how much can be answered.
const CLOSED: u32 = 4;

/// The others' p99 is compared with this one's.
pub(super) const REFERENCE: &str = "0.5x";
/// Those for whom there is a goal.
pub(super) const SUBJECTS: [&str; 2] = ["2x", "5x"];

/// A load, and whether it is controlled.
#[derive(Clone, Copy, Debug)]
pub(super) struct Row {
    name: &'static str,
    /// Of what can be answered.
    factor: f64,
    control: bool,
}

const fn row(name: &'static str, factor: f64, control: bool) -> Row {
    Row { name, factor, control }
}

pub(super) const ROWS: [Row; 8] = [
    row(REFERENCE, 0.5, true),
    row("1x", 1.0, true),
    row(SUBJECTS[0], 2.0, true),
    row(SUBJECTS[1], 5.0, true),
    row("0.5x, no control", 0.5, false),
    row("1x, no control", 1.0, false),
    row("2x, no control", 2.0, false),
    row("5x, no control", 5.0, false),
];

/// Seconds of a round besides what is measured: each row's warm-up and start, and the closed loop.
pub(super) const OVERHEAD: f64 = 1.1 * ROWS.len() as f64 + 1.5;

/// All rows, a number of times.
pub(super) fn measure(
    bench: &Bench<'_>,
    busy: &Path,
    fresh: bool,
    rounds: u32,
    bar: &ProgressBar,
) -> Vec<Rounds> {
    let mut capacity = Err(io::Error::other("not measured"));
    let names = ROWS.map(|row| row.name);
    super::measure_rows(&names, rounds, bar, |round, index| {
        if index == 0 {
            capacity = self::capacity(bench, busy, fresh);
        }
        let Some(row) = ROWS.get(index) else { return Err(io::Error::other("no such row")) };
        let capacity = capacity.as_ref().map_err(|error| io::Error::other(error.to_string()))?;
        // The same arrivals for each row of a round, as far as its rate allows.
        undisturbed(|| open(bench, busy, *row, fresh, capacity * row.factor, round))
    })
}

/// Requests a second that are answered when nobody asks for more.
fn capacity(bench: &Bench<'_>, busy: &Path, fresh: bool) -> io::Result<f64> {
    let server = start(bench, busy, false)?;
    let script = if fresh { Script::NewConnection } else { Script::Plain };
    let sample = bench.wrk(&server, Some(bench.cores.load), script, CLOSED)?;
    sample.get(&Metric::Rate).copied().ok_or_else(|| io::Error::other("no rate"))
}

fn start(bench: &Bench<'_>, busy: &Path, control: bool) -> io::Result<Server> {
    let mut command = guarded(Some(bench.cores.server));
    command.arg(busy).args(["--work-us", &WORK.to_string()]);
    if control {
        command.args(["--lag-target-us", &LAG_TARGET.to_string()]);
    }
    let server = Server::start(&mut command)?;
    check::http(server.port, Script::Plain, None)?;
    Ok(server)
}

/// One row: a server of its own, since what one overload has left is not to be the next one's.
fn open(
    bench: &Bench<'_>,
    busy: &Path,
    row: Row,
    fresh: bool,
    rate: f64,
    round: usize,
) -> io::Result<Sample> {
    let server = start(bench, busy, row.control)?;
    let mut command = guarded(Some(bench.cores.load));
    command.arg(bench.loader).args(["open", &server.port.to_string(), "--rate", &rate.to_string()]);
    command.args(["--seconds", &bench.time.as_secs_f64().to_string(), "--seed", &(round + 1).to_string()]);
    command.args([
        "--warm-up",
        &WARM_UP.as_secs_f64().to_string(),
        "--connections",
        &CONNECTIONS.to_string(),
    ]);
    command.args(fresh.then_some("--fresh"));
    let (begun, before) = (Instant::now(), server.cpu_time()?.total);
    let text = output(&mut command)?;
    let busy = server.cpu_time()?.total.saturating_sub(before).as_secs_f64() / begun.elapsed().as_secs_f64();
    let line = text.lines().last().unwrap_or_default();
    let mut sample = figures(line)?;
    sample.insert(Metric::ServerBusy, busy);
    sample.insert(Metric::Resident, server.resident()? as f64);
    Ok(sample)
}

/// What the open loop says.
fn figures(line: &str) -> io::Result<Sample> {
    let result: serde_json::Value = serde_json::from_str(line)?;
    let number = |name: &str| {
        let number = result.get(name).and_then(serde_json::Value::as_f64);
        number.ok_or_else(|| io::Error::other(format!("no {name} in {line:?}")))
    };
    let (operations, seconds) = (number("operations")?, number("seconds")?);
    if operations == 0.0 {
        return Err(io::Error::other("nothing was answered"));
    }
    let mut sample = Sample::from([
        (Metric::Rate, operations / seconds),
        (Metric::P50, number("p50")?),
        (Metric::P99, number("p99")?),
        (Metric::Shed, number("shed")? / seconds),
        (Metric::Closed, number("closed")? / seconds),
        (Metric::Unanswered, number("unanswered")?),
        (Metric::Late, number("late p99")?),
    ]);
    if number("shed")? > 0.0 {
        sample.insert(Metric::ShedP99, number("shed p99")?);
    }
    Ok(sample)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_open_loops_figures_are_read() {
        let line = r#"{"operations": 30, "seconds": 2.0, "offered": 90, "p50": 1.0, "p99": 2.0, "p99.9": 3.0, "shed": 50,
            "shed p99": 0.5, "closed": 4, "unanswered": 6, "late p99": 0.1, "slices": []}"#;
        let sample = figures(line).unwrap();
        assert_eq!(
            (sample[&Metric::Rate], sample[&Metric::Shed], sample[&Metric::Closed]),
            (15.0, 25.0, 2.0)
        );
        assert_eq!(
            (sample[&Metric::P99], sample[&Metric::ShedP99], sample[&Metric::Unanswered]),
            (2.0, 0.5, 6.0)
        );
        let none = figures(&line.replace("\"shed\": 50", "\"shed\": 0")).unwrap();
        assert!(none[&Metric::Shed] == 0.0 && !none.contains_key(&Metric::ShedP99), "nobody has no latency");
        assert!(figures(&line.replace("\"operations\": 30", "\"operations\": 0")).is_err());
        assert!(figures("{}").is_err());
    }

    #[test]
    fn what_has_a_goal_and_what_it_is_compared_with_are_rows() {
        for name in SUBJECTS.into_iter().chain([REFERENCE]) {
            assert!(ROWS.iter().any(|row| row.name == name && row.control), "{name}");
        }
    }
}
