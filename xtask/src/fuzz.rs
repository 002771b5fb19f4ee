//! `cargo xtask fuzz`: each fuzz target for a time. The targets are in `xtask/fuzz`; what they do is in `src/fuzzing.rs`
//! of the crates they test, where `cargo test` gives the same functions random input.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use clap::Args;

use crate::process::root;

/// What to fuzz and for how long.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How long each target runs; there are seven, so that they take a quarter of an hour by default
    #[arg(long, value_name = "SECONDS", default_value = "120")]
    seconds: u32,
    /// Only this target
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
    /// Run the target once, on the input in this file: one that has been found
    #[arg(long, value_name = "FILE", requires = "target", conflicts_with = "seconds")]
    input: Option<PathBuf>,
}

/// Builds the targets and runs them one after the other.
///
/// # Errors
/// No target of that name, a build that fails, or an input that a target panics at.
pub(crate) fn run(options: &Options, out: &mut impl Write) -> io::Result<()> {
    let names = chosen(options)?;
    if !cargo_fuzz("--version").output()?.status.success() {
        return writeln!(
            out,
            "skipped: cargo-fuzz is not installed (`cargo install cargo-fuzz --locked`; it needs a C++ compiler). \
             `cargo test` gives the same functions random input."
        );
    }
    let sanitizer = build(options.target.as_deref(), out)?;
    if let (Some(name), Some(input)) = (&options.target, &options.input) {
        return replay(name, input, sanitizer, out);
    }
    let mut found = Vec::new();
    for name in names {
        let artifacts = directory().join("artifacts").join(&name);
        let output = fuzz(&name, options.seconds, sanitizer)?;
        let log = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            let executions =
                log.lines().find_map(|line| line.strip_prefix("stat::number_of_executed_units:"));
            let executions = executions.map_or("?", str::trim);
            writeln!(out, "{name}: {executions} executions in {} s, nothing found", options.seconds)?;
            continue;
        }
        writeln!(out, "{}", last(&log))?;
        let input =
            log.lines().find_map(|line| line.split_once("Test unit written to ").map(|(_, path)| path));
        let input = input.map_or_else(|| artifacts.display().to_string(), str::to_owned);
        writeln!(out, "{name}: found {input}\n{}", reason(&log))?;
        writeln!(out, "    again: cargo xtask fuzz --target {name} --input {input}")?;
        found.push(name);
    }
    if found.is_empty() { Ok(()) } else { Err(io::Error::other(format!("found something: {found:?}"))) }
}

/// Runs a target on one input; an error if that is too much for it.
fn replay(name: &str, input: &Path, sanitizer: &str, out: &mut impl Write) -> io::Result<()> {
    // cargo-fuzz runs elsewhere.
    let absolute = input
        .canonicalize()
        .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", input.display())))?;
    let output = cargo_fuzz("run").args(["--sanitizer", sanitizer, name]).arg(absolute).output()?;
    if output.status.success() {
        return writeln!(out, "{name}: nothing found in {}", input.display());
    }
    let log = String::from_utf8_lossy(&output.stderr);
    writeln!(out, "{}\n{name}: found in {}\n{}", last(&log), input.display(), reason(&log))?;
    Err(io::Error::other(format!("found something: {name:?}")))
}

/// The end of a log, where the backtrace is.
fn last(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    lines.get(lines.len().saturating_sub(60)..).unwrap_or_default().join("\n")
}

/// What a target has failed with: where it panicked and the line that says at what, or what libFuzzer has to say
/// where it was no panic.
fn reason(log: &str) -> String {
    let lines: Vec<&str> = log.lines().collect();
    let panicked = lines.iter().position(|line| line.contains("panicked at "));
    let told = match panicked {
        Some(at) => lines.get(at..(at + 2).min(lines.len())).unwrap_or_default(),
        None => {
            let error = lines.iter().position(|line| line.contains("ERROR: "));
            error.and_then(|at| lines.get(at..=at)).unwrap_or_default()
        }
    };
    told.iter().map(|line| format!("    {}", line.trim())).collect::<Vec<_>>().join("\n")
}

/// The names of the targets to run: those of their files.
fn chosen(options: &Options) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(directory().join("targets"))? {
        names.extend(
            Path::new(&entry?.file_name()).file_stem().map(|stem| stem.to_string_lossy().into_owned()),
        );
    }
    names.sort_unstable();
    match &options.target {
        None => Ok(names),
        Some(name) if names.contains(name) => Ok(vec![name.clone()]),
        Some(name) => Err(io::Error::other(format!("no target {name:?}, but {names:?}"))),
    }
}

/// Builds the target, or all; with `AddressSanitizer` where that can be linked. Returns the sanitizer's name.
fn build(target: Option<&str>, out: &mut impl Write) -> io::Result<&'static str> {
    for sanitizer in ["address", "none"] {
        let built = cargo_fuzz("build").args(["--sanitizer", sanitizer]).args(target).output()?;
        if built.status.success() {
            return Ok(sanitizer);
        }
        let log = String::from_utf8_lossy(&built.stderr);
        writeln!(out, "{log}\ncannot be built with --sanitizer {sanitizer}")?;
    }
    Err(io::Error::other("the fuzz targets cannot be built"))
}

fn fuzz(name: &str, seconds: u32, sanitizer: &str) -> io::Result<Output> {
    let dictionary = directory().join("http.dict");
    let mut command = cargo_fuzz("run");
    command.args(["--sanitizer", sanitizer, name, "--"]);
    command.args([&format!("-max_total_time={seconds}"), "-print_final_stats=1"]);
    if name.starts_with("http") || name.starts_with("chunked") {
        command.arg(format!("-dict={}", dictionary.display()));
    }
    command.output()
}

fn cargo_fuzz(command: &str) -> Command {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["fuzz", command]).current_dir(root());
    if command != "--version" {
        cargo.arg("--fuzz-dir").arg(directory());
    }
    // The sanitizer's flag is for nightly compilers. The runtime it links comes with the stable one as well.
    cargo.env("RUSTC_BOOTSTRAP", "1");
    cargo
}

fn directory() -> PathBuf {
    root().join("xtask/fuzz")
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        options: Options,
    }

    #[test]
    fn the_reason_is_the_panic_and_not_the_backtrace() {
        let log = "INFO: Seed: 1\n\nthread '<unnamed>' (7) panicked at a.rs:3:5:\nassertion failed: a\n\
                   stack backtrace:\n==9== ERROR: libFuzzer: deadly signal\n";
        assert_eq!(reason(log), "    thread '<unnamed>' (7) panicked at a.rs:3:5:\n    assertion failed: a");
        let log = "INFO: Seed: 1\n==9== ERROR: libFuzzer: timeout after 1 s\nstack\n";
        assert_eq!(reason(log), "    ==9== ERROR: libFuzzer: timeout after 1 s");
        assert_eq!(reason("killed\n"), "");
    }

    #[test]
    fn what_is_printed_to_run_an_input_again_is_a_command() {
        let options = |line: &str| Line::try_parse_from(line.split(' ')).map(|line| line.options);
        assert!(options("fuzz --target slab --input /tmp/crash-1").is_ok_and(|it| it.input.is_some()));
        assert!(options("fuzz --input /tmp/crash-1").is_err(), "for which target?");
    }
}
