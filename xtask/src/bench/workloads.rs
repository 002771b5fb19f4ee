//! The workloads, and how one server is measured under one of them.

use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use super::loops::{self, Loops};
use super::servers::{Entry, FILES, FLOOR, NGINX, OURS, Service, content};
use super::stats::{Metric, Sample};
use super::wrk::{self, Script};
use super::{check, counted, overload};
use crate::process::{Cores, CpuTime, Server, guarded};

/// What is done to a server.
#[derive(Clone, Copy, Debug)]
pub(super) enum Load {
    Wrk(Script, u32),
    /// Messages of so many bytes on 64 connections, each sent when the last has come back.
    Echo(usize),
    /// One such connection beside one that sends without end.
    Firehose,
    /// Four senders.
    Broadcast {
        receivers: u32,
        burst: u32,
    },
    /// 9,000 clients that have been served and are idle.
    Idle,
    /// User-space instructions, by callgrind.
    Instructions {
        pipelined: bool,
    },
    Syscalls,
    /// More than can be answered: `overload.rs`.
    Overload {
        fresh: bool,
    },
    /// One loop and two: `loops.rs`.
    Loops(Loops),
}

/// How far a figure of ours should go, in comparison with the reference or by itself.
#[derive(Clone, Copy, Debug)]
pub(super) enum Goal {
    RatioAtMost(f64),
    RatioAtLeast(f64),
    AtMost(f64),
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Workload {
    pub(super) name: &'static str,
    /// For people.
    pub(super) title: &'static str,
    pub(super) service: Service,
    pub(super) load: Load,
    pub(super) goal: Option<(Metric, Goal)>,
}

const fn workload(name: &'static str, title: &'static str, service: Service, load: Load) -> Workload {
    Workload { name, title, service, load, goal: None }
}

impl Workload {
    const fn aims(self, metric: Metric, goal: Goal) -> Self {
        Self { goal: Some((metric, goal)), ..self }
    }

    /// The server that the others are compared with.
    pub(super) fn reference(&self) -> &'static str {
        match self.load {
            Load::Overload { .. } => overload::REFERENCE,
            Load::Loops(_) => loops::REFERENCE,
            _ if self.service == Service::Files => NGINX,
            _ => FLOOR,
        }
    }

    /// Whose figures the goal is about.
    pub(super) const fn subjects(&self) -> &'static [&'static str] {
        match self.load {
            Load::Overload { .. } => &overload::SUBJECTS,
            _ => &[OURS],
        }
    }

    /// Lasts as long as it is told, and is repeated.
    pub(super) const fn is_timed(&self) -> bool {
        !matches!(self.load, Load::Idle | Load::Instructions { .. } | Load::Syscalls)
            && !self.is_of_settings()
    }

    /// Measures our own programs with different settings, and each a number of times.
    pub(super) const fn is_of_settings(&self) -> bool {
        matches!(self.load, Load::Overload { .. } | Load::Loops(_))
    }

    /// How many settings there are.
    pub(super) const fn settings(&self) -> u32 {
        let rows = match self.load {
            Load::Overload { .. } => overload::ROWS.len(),
            Load::Loops(_) => loops::ROWS.len(),
            _ => 0,
        };
        rows as u32
    }

    /// Seconds that one measurement takes, but for the load itself; about. With different settings: one round of them.
    pub(super) const fn overhead(&self) -> f64 {
        match self.load {
            Load::Wrk(..) | Load::Echo(_) | Load::Firehose => 0.1,
            Load::Broadcast { .. } => 0.2,
            Load::Idle => 1.0,
            Load::Instructions { .. } => 2.0,
            Load::Syscalls => 2.0,
            Load::Overload { .. } => overload::OVERHEAD,
            Load::Loops(_) => 0.5,
        }
    }

    /// A program that it needs besides the servers.
    pub(super) const fn needs(&self) -> Option<(&'static str, &'static str)> {
        match self.load {
            Load::Wrk(..) | Load::Overload { .. } | Load::Loops(Loops::Http | Loops::Busy) => {
                Some(("wrk", "--version"))
            }
            Load::Instructions { .. } => Some(("valgrind", "--version")),
            Load::Syscalls => Some(("strace", "--version")),
            _ => None,
        }
    }

    /// What `epoll-server` is told besides: all clients of a measurement have one address.
    pub(super) const fn flags(&self) -> &'static [&'static str] {
        match (self.service, self.load) {
            (Http, Load::Idle) => &["--max-connections-per-client", "none"],
            _ => &[],
        }
    }

    /// Whether the answers that it needs are those that `other` needs.
    pub(super) fn asks_as(&self, other: &Self) -> bool {
        let script = |workload: &Self| match workload.load {
            Load::Wrk(script, _) => Some(script),
            _ => None,
        };
        self.service == other.service && script(self) == script(other)
    }

    /// What a server does not do that it would have to do here.
    pub(super) fn missing(&self, entry: &Entry) -> Option<&'static str> {
        match (entry.name.as_str(), self.load) {
            (NGINX, Load::Wrk(Script::Post, _)) => Some("it cannot send a request's body back"),
            ("may_minihttp", Load::Wrk(Script::NewConnection, _)) => {
                Some("it keeps the connection open after Connection: close")
            }
            _ => None,
        }
    }

    /// Whether `entry` is measured under it.
    pub(super) fn takes(&self, entry: &Entry) -> bool {
        let ours_or_floor = entry.name.starts_with(OURS) || entry.name == FLOOR;
        let counted = matches!(self.load, Load::Instructions { .. } | Load::Syscalls);
        entry.services.contains(&self.service) && (!counted || ours_or_floor) && self.missing(entry).is_none()
    }
}

use Metric::{BytesPerConnection, Cpu, Rate};
use Service::{Broadcast, Echo, Files, Http, Settings};

pub(super) const ALL: [Workload; 27] = [
    workload("http-64", "HTTP keep-alive, 64 connections", Http, Load::Wrk(Script::Plain, 64))
        .aims(Cpu, Goal::RatioAtMost(1.03)),
    workload("http-512", "HTTP keep-alive, 512 connections", Http, Load::Wrk(Script::Plain, 512)),
    workload(
        "http-pipelined",
        "HTTP pipelined by 16, 64 connections",
        Http,
        Load::Wrk(Script::Pipelined, 64),
    )
    .aims(Cpu, Goal::RatioAtMost(1.0)),
    workload(
        "http-new",
        "HTTP, a connection a request, 64 at a time",
        Http,
        Load::Wrk(Script::NewConnection, 64),
    ),
    workload("http-post", "HTTP POST of 1 KiB, echoed, 64 connections", Http, Load::Wrk(Script::Post, 64)),
    workload(
        "http-browser",
        "HTTP with a browser's headers, 64 connections",
        Http,
        Load::Wrk(Script::Browser, 64),
    ),
    workload("files-1k", "A file of 1 KiB, 64 connections", Files, Load::Wrk(Script::File(FILES[0].0), 64)),
    workload(
        "files-100k",
        "A file of 100 KiB, 64 connections",
        Files,
        Load::Wrk(Script::File(FILES[1].0), 64),
    ),
    workload("files-100m", "A file of 100 MiB, 4 connections", Files, Load::Wrk(Script::File(FILES[2].0), 4)),
    workload("echo-64", "Echo of 64 bytes, 64 connections", Echo, Load::Echo(64))
        .aims(Cpu, Goal::RatioAtMost(1.03)),
    workload("echo-16k", "Echo of 16 KiB, 64 connections", Echo, Load::Echo(16 * 1024)),
    workload("echo-firehose", "Echo of 64 bytes beside a firehose", Echo, Load::Firehose),
    workload(
        "broadcast-100-1",
        "Broadcast, 4 senders to 100 receivers, 1 line at a time",
        Broadcast,
        Load::Broadcast { receivers: 100, burst: 1 },
    )
    .aims(Rate, Goal::RatioAtLeast(2.0)),
    workload(
        "broadcast-100-16",
        "Broadcast, 4 senders to 100 receivers, 16 lines at a time",
        Broadcast,
        Load::Broadcast { receivers: 100, burst: 16 },
    )
    .aims(Rate, Goal::RatioAtLeast(1.0)),
    workload(
        "broadcast-1000-1",
        "Broadcast, 4 senders to 1,000 receivers, 1 line at a time",
        Broadcast,
        Load::Broadcast { receivers: 1000, burst: 1 },
    ),
    workload(
        "broadcast-1000-16",
        "Broadcast, 4 senders to 1,000 receivers, 16 lines at a time",
        Broadcast,
        Load::Broadcast { receivers: 1000, burst: 16 },
    ),
    workload("memory-http", "Memory of 9,000 idle HTTP clients", Http, Load::Idle)
        .aims(BytesPerConnection, Goal::AtMost(160.0)),
    workload("memory-echo", "Memory of 9,000 idle echo clients", Echo, Load::Idle),
    workload(
        "instructions-http",
        "User-space instructions a keep-alive request",
        Http,
        Load::Instructions { pipelined: false },
    ),
    workload(
        "instructions-pipelined",
        "User-space instructions a request, pipelined by 16",
        Http,
        Load::Instructions { pipelined: true },
    ),
    workload(
        "instructions-echo",
        "User-space instructions an echo of 64 bytes",
        Echo,
        Load::Instructions { pipelined: false },
    ),
    workload("syscalls-http", "System calls a keep-alive request, one connection", Http, Load::Syscalls),
    workload(
        "overload-kept",
        "More requests than can be answered, on connections that are kept",
        Settings,
        Load::Overload { fresh: false },
    )
    .aims(Metric::P99, Goal::RatioAtMost(2.0)),
    workload(
        "overload-fresh",
        "More requests than can be answered, each on a connection of its own",
        Settings,
        Load::Overload { fresh: true },
    )
    .aims(Metric::P99, Goal::RatioAtMost(2.0)),
    workload(
        "workers-busy",
        "Two loops: HTTP with 100 µs of work a request, 64 connections",
        Settings,
        Load::Loops(Loops::Busy),
    ),
    workload(
        "workers-http",
        "Two loops: HTTP keep-alive, 64 connections, with the load on the same two cores",
        Settings,
        Load::Loops(Loops::Http),
    ),
    workload(
        "workers-broadcast",
        "Two loops: broadcast to 1,000 receivers, 1 line at a time, with the load on the same two cores",
        Settings,
        Load::Loops(Loops::Broadcast),
    ),
];

/// What a measurement has at hand.
#[derive(Debug)]
pub(super) struct Bench<'a> {
    /// With the files, and for what is written.
    pub(super) directory: &'a Path,
    pub(super) cores: Cores,
    /// The program that makes load for echo and broadcast, and open loops.
    pub(super) loader: &'a Path,
    pub(super) time: Duration,
}

impl Bench<'_> {
    /// Whether the server's answers are right.
    pub(super) fn check(&self, workload: &Workload, entry: &Entry, server: &Server) -> io::Result<()> {
        match (workload.service, workload.load) {
            (Files, Load::Wrk(script @ Script::File(name), _)) => {
                let size = FILES.iter().find(|file| file.0 == name).map_or(0, |file| file.1);
                check::http(server.port, script, Some(&content(size)))
            }
            (Http, Load::Wrk(script, _)) => check::http(server.port, script, None),
            (Http | Files, Load::Instructions { pipelined: true }) => {
                check::http(server.port, Script::Pipelined, None)
            }
            (Http | Files, _) => check::http(server.port, Script::Plain, None),
            (Echo, _) => check::echo(server.port),
            (Broadcast, _) => check::broadcast(server.port, entry.is_redis()),
            // Who measures it checks it.
            (Settings, _) => Ok(()),
        }
    }

    /// One round of a timed workload on a running server; of the others, all of it on a fresh one.
    pub(super) fn measure(&self, workload: &Workload, entry: &Entry, server: &Server) -> io::Result<Sample> {
        let core = Some(self.cores.load);
        match workload.load {
            Load::Wrk(script, connections) => self.wrk(server, core, script, connections),
            Load::Echo(size) => self.own(server, core, "echo", &["--size", &size.to_string()]),
            Load::Firehose => self.own(server, core, "firehose", &[]),
            Load::Broadcast { receivers, burst } => {
                let mode = if entry.is_redis() { "redis" } else { "broadcast" };
                self.own(
                    server,
                    core,
                    mode,
                    &["--connections", &receivers.to_string(), "--burst", &burst.to_string()],
                )
            }
            Load::Idle => counted::idle(server, workload.service),
            Load::Syscalls => counted::syscalls(server),
            Load::Instructions { pipelined } => {
                counted::instructions(entry, workload.service, pipelined, self.directory)
            }
            Load::Overload { .. } | Load::Loops(_) => Err(io::Error::other("it is no other server's")),
        }
    }

    /// Load by wrk, from `core` or from any.
    pub(super) fn wrk(
        &self,
        server: &Server,
        core: Option<u32>,
        script: Script,
        connections: u32,
    ) -> io::Result<Sample> {
        let before = server.cpu_time()?;
        let measured = wrk::load(self.directory, core, server.port, script, connections, self.time)?;
        let cpu = server.cpu_time()?;
        let mut sample = Sample::new();
        if let Some(latency) = measured.latency {
            sample.extend([Metric::P50, Metric::P99, Metric::P999].into_iter().zip(latency));
        }
        costs(&mut sample, before, cpu, measured.requests, measured.seconds);
        sample.insert(Metric::Resident, server.resident()? as f64);
        Ok(sample)
    }

    /// Load by our own program. It says when it begins, prints figures when the time is over, and then waits for what is
    /// under way: whether all of that comes is in how it ends.
    pub(super) fn own(
        &self,
        server: &Server,
        core: Option<u32>,
        mode: &str,
        arguments: &[&str],
    ) -> io::Result<Sample> {
        let mut command = guarded(core);
        command.arg(self.loader).args([mode, &server.port.to_string()]).args(arguments);
        command.args(["--seconds", &self.time.as_secs_f64().to_string()]);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
        let mut lines =
            BufReader::new(child.stdout.take().ok_or_else(|| io::Error::other("no stdout"))?).lines();
        let started = lines.next().transpose()?.is_some_and(|line| line == "start");
        let before = server.cpu_time()?;
        let result = lines.next().transpose()?;
        let cpu = server.cpu_time();
        let ended = child.wait_with_output()?;
        let Some(result) = result.filter(|_| started && ended.status.success()) else {
            return Err(io::Error::other(String::from_utf8_lossy(&ended.stderr).trim().to_owned()));
        };
        let (mut sample, operations, seconds) = own_figures(&result)?;
        costs(&mut sample, before, cpu?, operations, seconds);
        if mode == "firehose" {
            // The CPU time is the firehose's, of which these operations are none.
            for metric in [Metric::Cpu, Metric::User, Metric::System, Metric::LoadLimit] {
                sample.remove(&metric);
            }
        }
        sample.insert(Metric::Resident, server.resident()? as f64);
        Ok(sample)
    }
}

/// What the load says of itself: figures, operations and seconds.
fn own_figures(line: &str) -> io::Result<(Sample, f64, f64)> {
    let result: serde_json::Value = serde_json::from_str(line)?;
    let number = |name: &str| {
        let number = result.get(name).and_then(serde_json::Value::as_f64);
        number.ok_or_else(|| io::Error::other(format!("no {name} in {line:?}")))
    };
    let (operations, seconds) = (number("operations")?, number("seconds")?);
    let mut sample = Sample::from([
        (Metric::P50, number("p50")?),
        (Metric::P99, number("p99")?),
        (Metric::P999, number("p99.9")?),
        (Metric::LoadBusy, number("cpu")? / seconds),
    ]);
    if number("cpu")? > 0.0 {
        sample.insert(Metric::LoadLimit, operations / number("cpu")?);
    }
    let beside = number("bytes")?;
    if beside > 0.0 {
        sample.insert(Metric::Firehose, beside / seconds);
    }
    Ok((sample, operations, seconds))
}

/// Rates and CPU time an operation. User and system time are known in ticks only, so they are shares of the whole.
fn costs(sample: &mut Sample, before: CpuTime, after: CpuTime, operations: f64, seconds: f64) {
    let total = after.total.saturating_sub(before.total).as_secs_f64();
    let user = after.user.saturating_sub(before.user).as_secs_f64();
    let system = after.system.saturating_sub(before.system).as_secs_f64();
    let cpu = total * 1e6 / operations;
    sample.insert(Metric::Rate, operations / seconds);
    sample.insert(Metric::Cpu, cpu);
    // Less than a tick says nothing of shares.
    if user + system > 0.0 {
        sample.insert(Metric::User, cpu * user / (user + system));
        sample.insert(Metric::System, cpu * system / (user + system));
    }
    sample.insert(Metric::ServerBusy, total / seconds);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_loads_figures_are_read() {
        let (sample, operations, seconds) = own_figures(
            r#"{"operations": 10, "seconds": 2.0, "cpu": 1.5, "p50": 1.0, "p99": 2.0, "p99.9": 3.0, "bytes": 0}"#,
        )
        .unwrap();
        assert_eq!((operations, seconds), (10.0, 2.0));
        assert_eq!((sample[&Metric::LoadLimit], sample.get(&Metric::Firehose)), (10.0 / 1.5, None));
        assert_eq!((sample[&Metric::LoadBusy], sample[&Metric::P999]), (0.75, 3.0));
        assert!(own_figures(r#"{"operations": 10}"#).is_err());
        let idle = r#"{"operations": 1, "seconds": 2.0, "cpu": 0, "p50": 1.0, "p99": 2.0, "p99.9": 3.0, "bytes": 0}"#;
        assert_eq!(own_figures(idle).unwrap().0.get(&Metric::LoadLimit), None);
    }

    #[test]
    fn cpu_time_is_divided_by_operations_and_by_kind() {
        let time = |user, system, total| CpuTime {
            user: Duration::from_millis(user),
            system: Duration::from_millis(system),
            total: Duration::from_millis(total),
        };
        let mut sample = Sample::new();
        costs(&mut sample, time(0, 0, 100), time(250, 750, 1100), 1_000_000.0, 2.0);
        let of = |metric| (sample[&metric] * 1e6_f64).round() / 1e6;
        assert_eq!((of(Metric::Cpu), of(Metric::User), of(Metric::System)), (1.0, 0.25, 0.75));
        assert_eq!((of(Metric::Rate), of(Metric::ServerBusy)), (500_000.0, 0.5));
        let mut short = Sample::new();
        costs(&mut short, time(0, 0, 100), time(0, 0, 101), 100.0, 1.0);
        assert_eq!((short[&Metric::Cpu], short.get(&Metric::System)), (10.0, None));
    }

    #[test]
    fn workloads_have_names_of_their_own() {
        let names: std::collections::BTreeSet<_> = ALL.iter().map(|workload| workload.name).collect();
        assert_eq!(names.len(), ALL.len());
    }
}
