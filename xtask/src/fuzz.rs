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
    /// How long each target runs
    #[arg(long, value_name = "SECONDS", default_value = "120")]
    seconds: u32,
    /// Only this target
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
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
    let sanitizer = build(out)?;
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
        let lines: Vec<&str> = log.lines().collect();
        writeln!(out, "{}", lines.get(lines.len().saturating_sub(60)..).unwrap_or_default().join("\n"))?;
        let input =
            log.lines().find_map(|line| line.split_once("Test unit written to ").map(|(_, path)| path));
        let input = input.map_or_else(|| artifacts.display().to_string(), str::to_owned);
        writeln!(out, "{name}: found {input}")?;
        writeln!(out, "    again: cargo fuzz run --fuzz-dir xtask/fuzz {name} {input}")?;
        found.push(name);
    }
    if found.is_empty() { Ok(()) } else { Err(io::Error::other(format!("found something: {found:?}"))) }
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

/// Builds all targets; with `AddressSanitizer` where that can be linked. Returns the sanitizer's name.
fn build(out: &mut impl Write) -> io::Result<&'static str> {
    for sanitizer in ["address", "none"] {
        let built = cargo_fuzz("build").args(["--sanitizer", sanitizer]).output()?;
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
