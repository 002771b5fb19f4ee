//! What a run has found: as tables, as JSON, and beside its goals.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::Path;
use std::process::Command;

use serde::Serialize;

use super::chart;
use super::stats::{Figure, Metric, Sample, Spread, summary};
use super::workloads::{ALL, Goal, Workload};
use crate::process::{Cores, output, root};

#[derive(Debug, Serialize)]
pub(super) struct Report {
    pub(super) revision: String,
    pub(super) date: String,
    pub(super) kernel: String,
    pub(super) processor: String,
    pub(super) cores: usize,
    server_core: u32,
    load_core: u32,
    pub(super) rounds: usize,
    pub(super) seconds: u64,
    pub(super) absent: Vec<Absent>,
    pub(super) workloads: Vec<Outcome>,
}

/// What was not measured.
#[derive(Debug, Serialize)]
pub(super) struct Absent {
    pub(super) name: String,
    pub(super) reason: String,
}

/// One workload's figures.
#[derive(Debug, Serialize)]
pub(super) struct Outcome {
    pub(super) name: &'static str,
    pub(super) title: &'static str,
    pub(super) reference: &'static str,
    pub(super) servers: Vec<Measured>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    goals: Vec<Reached>,
}

#[derive(Debug, Serialize)]
pub(super) struct Measured {
    pub(super) name: String,
    /// Why there are no figures, or not of all rounds.
    #[serde(skip_serializing_if = "Option::is_none")]
    failure: Option<String>,
    pub(super) figures: BTreeMap<Metric, Figure>,
}

/// A goal beside what was reached.
#[derive(Debug, Serialize)]
struct Reached {
    what: String,
    wanted: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    reached: Option<f64>,
    met: bool,
}

/// A server's rounds; `None` for one without figures.
#[derive(Debug)]
pub(super) struct Rounds {
    pub(super) name: String,
    pub(super) samples: Vec<Option<Sample>>,
    pub(super) failure: Option<String>,
}

impl Outcome {
    pub(super) fn new(workload: &Workload, rounds: Vec<Rounds>) -> Self {
        let reference = rounds.iter().find(|rounds| rounds.name == workload.reference());
        let reference = reference.map(|rounds| rounds.samples.clone()).unwrap_or_default();
        let servers: Vec<Measured> = rounds
            .into_iter()
            .map(|rounds| {
                let figures = summary(&rounds.samples, &reference);
                Measured { name: rounds.name, failure: rounds.failure, figures }
            })
            .collect();
        let goals = workload.goal.iter().flat_map(|(metric, goal)| {
            let servers = &servers;
            workload.subjects().iter().map(move |subject| {
                let subject = (*subject, servers.iter().find(|server| server.name == *subject));
                Reached::new(subject, *metric, *goal)
            })
        });
        let goals = goals.collect();
        Self { name: workload.name, title: workload.title, reference: workload.reference(), servers, goals }
    }

    /// A table that is Markdown, and can be read as it is.
    pub(super) fn table(&self) -> String {
        let has = |metric: &Metric| self.servers.iter().any(|server| server.figures.contains_key(metric));
        let metrics: Vec<Metric> = Metric::ALL.into_iter().filter(has).collect();
        let mut rows = vec![vec!["server".to_owned()]];
        if let Some(head) = rows.first_mut() {
            head.extend(metrics.iter().map(|metric| metric.title().to_owned()));
        }
        for server in self.servers.iter().filter(|server| !server.figures.is_empty()) {
            let mut row = vec![server.name.clone()];
            row.extend(metrics.iter().map(|metric| {
                server.figures.get(metric).map(|figure| cell(*metric, figure)).unwrap_or_default()
            }));
            rows.push(row);
        }
        let mut text = if rows.len() > 1 { aligned(&rows) } else { String::new() };
        for server in &self.servers {
            if let Some(failure) = &server.failure {
                let _: std::fmt::Result = writeln!(text, "\n{}: {failure}", server.name);
            }
        }
        for goal in &self.goals {
            let _: std::fmt::Result = writeln!(text, "\n{}", goal.line());
        }
        text
    }
}

impl Reached {
    /// Of the server with that name, if it was measured.
    fn new(subject: (&str, Option<&Measured>), metric: Metric, goal: Goal) -> Self {
        let figure = subject.1.and_then(|server| server.figures.get(&metric));
        let ratio = figure.and_then(|figure| figure.ratio).map(|ratio| ratio.median);
        let (wanted, reached, most) = match goal {
            Goal::RatioAtMost(most) => (format!("at most {most:.2} of the reference's"), ratio, most),
            Goal::RatioAtLeast(least) => (format!("at least {least:.2} of the reference's"), ratio, least),
            Goal::AtMost(most) => {
                (format!("at most {}", metric.show(most)), figure.map(|figure| figure.value.median), most)
            }
        };
        let met = reached.is_some_and(|reached| match goal {
            Goal::RatioAtLeast(_) => reached >= most,
            Goal::RatioAtMost(_) | Goal::AtMost(_) => reached <= most,
        });
        Self { what: format!("{}, {}", subject.0, metric.title()), wanted, reached, met }
    }

    fn line(&self) -> String {
        let reached =
            self.reached.map_or_else(|| "not measured".to_owned(), |reached| format!("{reached:.3}"));
        let met = if self.met { "reached" } else { "not reached" };
        format!("Goal: {}, {}: {met}, {reached}", self.what, self.wanted)
    }
}

/// The median, how far the rounds lie from it at most, and the ratio to the reference.
fn cell(metric: Metric, figure: &Figure) -> String {
    let Spread { median, low, high } = figure.value;
    let mut text = metric.show(median);
    let off = (high - median).max(median - low) / median * 100.0;
    if median > 0.0 && off >= 0.5 {
        let _: std::fmt::Result = write!(text, " ±{off:.0}%");
    }
    if let Some(ratio) = &figure.ratio {
        let _: std::fmt::Result = write!(text, " ×{:.2}", ratio.median);
    }
    text
}

fn aligned(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..rows.first().map_or(0, Vec::len)).map(width).collect();
    let mut text = String::new();
    for (index, row) in rows.iter().enumerate() {
        for (column, (cell, width)) in row.iter().zip(&widths).enumerate() {
            let padded =
                if column == 0 { format!("| {cell:<width$} ") } else { format!("| {cell:>width$} ") };
            text += &padded;
        }
        text += "|\n";
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                text += "|";
                text += &"-".repeat(width + 1);
                text += if column == 0 { "-" } else { ":" };
            }
            text += "|\n";
        }
    }
    text
}

impl Report {
    /// Without figures: what they are figures of.
    pub(super) fn new(rounds: usize, seconds: u64, used: Cores) -> Self {
        let first =
            |command: &mut Command| output(command).map(|text| text.trim().to_owned()).unwrap_or_default();
        let git = |arguments: &[&str]| first(Command::new("git").current_dir(root()).args(arguments));
        let processors = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        let model = processors.lines().find(|line| line.starts_with("model name"));
        let processor = model.and_then(|line| line.split(": ").nth(1)).unwrap_or("unknown").to_owned();
        Self {
            revision: git(&["describe", "--always", "--dirty", "--exclude=*"]),
            date: first(Command::new("date").args(["-u", "+%FT%TZ"])),
            kernel: first(Command::new("uname").arg("-r")),
            processor,
            cores: std::thread::available_parallelism().map_or(1, usize::from),
            server_core: used.server,
            load_core: used.load,
            rounds,
            seconds,
            absent: Vec::new(),
            workloads: Vec::new(),
        }
    }

    pub(super) fn markdown(&self) -> String {
        let Self {
            revision, date, kernel, processor, cores, rounds, seconds, server_core, load_core, ..
        } = self;
        let mut text = format!(
            "# What it costs\n\nMade by `cargo xtask bench` of {revision}, {date}: Linux {kernel}, {processor}, {cores} cores; \
             {rounds} rounds of {seconds} s,\nof each server in turn. The server has core {server_core}, the load core {load_core}. A figure is the median \
             of the rounds, ± how far the farthest lies\nfrom it, × its ratio to the reference's of the same round (the floor, a C \
             program that does little but the system calls; for\nfiles, nginx). Where the server is not busy, something else \
             held it up, and its rate says little; its CPU time a request does. Of\necho and broadcast, `load could make` is what the \
             load makes in a second of its own CPU time: it holds nothing up while that is more\nthan the server's, a second divided by \
             its CPU µs. An echo costs the client the same two system calls as the server, so there the two\nare close. Latency \
             under wrk is as wrk corrects it, and left out where requests are pipelined, for that is where it is wrong.\n\
             Rows that are loads or numbers of loops are of our own programs, compared with the first of them.\n"
        );
        if self.workloads.iter().any(|outcome| !outcome.goals.is_empty()) {
            let mut rows = vec![["workload", "figure", "goal", "", "reached"].map(str::to_owned).to_vec()];
            for outcome in &self.workloads {
                for goal in &outcome.goals {
                    let reached =
                        goal.reached.map_or_else(|| "not measured".to_owned(), |it| format!("{it:.3}"));
                    let met = if goal.met { "reached" } else { "not reached" }.to_owned();
                    let row = [outcome.name.to_owned(), goal.what.clone(), goal.wanted.clone(), met, reached];
                    rows.push(row.to_vec());
                }
            }
            text += "\n## Goals\n\n";
            text += &aligned(&rows);
        }
        for outcome in &self.workloads {
            let _: std::fmt::Result = writeln!(text, "\n## {}\n\n`{}`", outcome.title, outcome.name);
            if chart::panels(outcome).is_empty() {
                text += "\n";
            } else {
                let _: std::fmt::Result = writeln!(text, "\n![{}]({}.svg)\n", outcome.title, outcome.name);
            }
            text += &outcome.table();
        }
        if !self.absent.is_empty() {
            text += "\n## Not measured\n\n";
            for Absent { name, reason } in &self.absent {
                let _: std::fmt::Result = writeln!(text, "- {name}: {reason}");
            }
        }
        text
    }

    /// Writes latest.json, report.md and a chart for each workload into `directory`.
    pub(super) fn write(&self, directory: &Path) -> io::Result<()> {
        fs::create_dir_all(directory)?;
        let json = serde_json::to_string_pretty(self)? + "\n";
        fs::write(directory.join("latest.json"), json)?;
        fs::write(directory.join("report.md"), self.markdown())?;
        // No chart of an earlier run beside this one's report.
        for workload in ALL {
            match fs::remove_file(directory.join(format!("{}.svg", workload.name))) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => (),
            }
        }
        for outcome in &self.workloads {
            if !chart::panels(outcome).is_empty() {
                fs::write(directory.join(format!("{}.svg", outcome.name)), chart::draw(outcome)?)?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::servers::{FLOOR, OURS};
    use super::*;

    fn rounds(name: &str, cpus: &[f64], failure: Option<&str>) -> Rounds {
        let sample = |cpu: &f64| Some(Sample::from([(Metric::Rate, 1e6 / cpu), (Metric::Cpu, *cpu)]));
        let samples = cpus.iter().map(sample).collect();
        Rounds { name: name.to_owned(), samples, failure: failure.map(str::to_owned) }
    }

    fn sample() -> Report {
        let all = vec![
            rounds(OURS, &[6.0, 5.0, 5.1], None),
            rounds(FLOOR, &[6.0, 5.0, 5.0], None),
            rounds("axum", &[], Some("wrong answer: HTTP/1.1 404 Not Found")),
        ];
        let mut report = Report::new(3, 1, Cores { server: 0, load: 1 });
        report.workloads.push(Outcome::new(&ALL[0], all));
        report
            .absent
            .push(Absent { name: "redis".to_owned(), reason: "redis-server is not installed".to_owned() });
        report
    }

    #[test]
    fn a_report_is_written_for_people_and_for_programs() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("echo-64.svg"), "of an earlier run").unwrap();
        sample().write(directory.path()).unwrap();
        assert!(!directory.path().join("echo-64.svg").exists());
        let text = fs::read_to_string(directory.path().join("report.md")).unwrap();
        for part in [
            "| server       |     a second |          CPU µs |\n|--------------|-------------:|----------------:|\n",
            "| epoll-server | 196,078 ±15% ×1.00 | 5.100 ±18% ×1.00 |\n",
            "axum: wrong answer: HTTP/1.1 404 Not Found",
            "- redis: redis-server is not installed",
            "at most 1.03 of the reference's",
            "![HTTP keep-alive, 64 connections](http-64.svg)",
        ] {
            let squeezed =
                |text: &str| text.split([' ', '-']).filter(|word| !word.is_empty()).collect::<String>();
            assert!(squeezed(&text).contains(&squeezed(part)), "no {part:?} in\n{text}");
        }
        let json = fs::read_to_string(directory.path().join("latest.json")).unwrap();
        let json: serde_json::Value = serde_json::from_str(&json).unwrap();
        let workload = &json["workloads"][0];
        assert_eq!(workload["servers"][0]["figures"]["cpu"]["median"], 5.1);
        assert_eq!(workload["servers"][0]["figures"]["cpu"]["ratio"]["high"], 1.02);
        assert_eq!(workload["goals"][0]["met"], true);
        let chart = fs::read_to_string(directory.path().join("http-64.svg")).unwrap();
        assert!(chart.contains("epoll-server") && chart.contains("196,078"), "{chart}");
        assert!(!chart.contains("axum"), "it has no figures");
    }

    #[test]
    fn a_goal_is_reached_or_not() {
        let server = |value: f64| {
            let spread = Spread { median: value, low: value, high: value };
            let figures = [(Metric::Cpu, Figure { value: spread, ratio: Some(spread) })].into();
            Measured { name: OURS.to_owned(), failure: None, figures }
        };
        let met = |goal, value| Reached::new((OURS, Some(&server(value))), Metric::Cpu, goal).met;
        assert!(met(Goal::RatioAtMost(1.03), 1.03) && !met(Goal::RatioAtMost(1.03), 1.04));
        assert!(met(Goal::RatioAtLeast(2.0), 2.0) && !met(Goal::RatioAtLeast(2.0), 1.9));
        assert!(met(Goal::AtMost(160.0), 160.0) && !met(Goal::AtMost(160.0), 161.0));
        assert!(
            !Reached::new((OURS, None), Metric::Cpu, Goal::AtMost(160.0)).met,
            "what is not measured is not reached"
        );
    }
}
