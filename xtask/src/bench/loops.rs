//! What a second loop is worth. Two cores have to do for two loops and for the load, so nothing is pinned, and beside what the server
//! does stands what it costs: where the load takes as much of the cores as the server, a second loop finds nothing left to use.

use std::io;
use std::path::Path;

use indicatif::ProgressBar;

use super::check;
use super::disturbance::undisturbed;
use super::report::Rounds;
use super::stats::Sample;
use super::workloads::Bench;
use super::wrk::Script;
use crate::process::{Server, guarded};

/// What the loops do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Loops {
    /// Requests that cost CPU time, beside which the load costs little.
    Busy,
    /// Requests that cost no more than they must.
    Http,
    /// Lines from four senders to receivers with both loops.
    Broadcast,
}

/// CPU time of a request of [`Loops::Busy`], in microseconds.
const WORK: &str = "100";
const CONNECTIONS: u32 = 64;

pub(super) const REFERENCE: &str = "1 loop";
pub(super) const ROWS: [(&str, &str); 2] = [(REFERENCE, "1"), ("2 loops", "2")];

/// Both rows, a number of times.
pub(super) fn measure(
    bench: &Bench<'_>,
    binary: &Path,
    loops: Loops,
    rounds: u32,
    bar: &ProgressBar,
) -> Vec<Rounds> {
    super::measure_rows(&ROWS.map(|row| row.0), rounds, bar, |_, index| {
        let count = ROWS.get(index).map_or("1", |row| row.1);
        undisturbed(|| once(bench, binary, loops, count))
    })
}

fn once(bench: &Bench<'_>, binary: &Path, loops: Loops, count: &str) -> io::Result<Sample> {
    let mut command = guarded(None);
    command.arg(binary);
    match loops {
        Loops::Busy => command.args(["--work-us", WORK]),
        Loops::Http => command.arg("http"),
        Loops::Broadcast => command.arg("broadcast"),
    };
    let server = Server::start(command.args(["--workers", count]))?;
    match loops {
        Loops::Busy | Loops::Http => {
            check::http(server.port, Script::Plain, None)?;
            bench.wrk(&server, None, Script::Plain, CONNECTIONS)
        }
        Loops::Broadcast => {
            check::broadcast(server.port, false)?;
            bench.own(&server, None, "broadcast", &["--connections", "1000"])
        }
    }
}
