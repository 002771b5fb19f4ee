//! `cargo xtask`: the project's own tasks. Not part of what users build.

#![forbid(unsafe_code)]

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::cast_sign_loss,
    reason = "figures of measurements are small"
)]
mod bench;
mod canary;
mod fuzz;
mod million;
mod process;
#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_precision_loss,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "a harness: what it gets wrong it may stop at, and its numbers are small"
)]
mod sim;
#[cfg(test)]
mod tidy;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Parser)]
#[command(name = "cargo xtask", about = "The project's own tasks")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Measure the release build beside other servers and a bare C loop: throughput, CPU time, latency, memory
    Bench(bench::Options),
    /// Plant defects in a copy of the sources, and see that the simulation finds each
    Canary(canary::Options),
    /// Give the codecs and the buffers input that a fuzzer makes up, by cargo-fuzz
    Fuzz(fuzz::Options),
    /// Hold a million connections on the simulated kernel, and tell what each takes (cargo run --release -p xtask)
    Million(million::Options),
    /// Run the loop and the protocols on a simulated kernel, with every fault it knows, from one seed after another
    Sim(sim::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Bench(options) => bench::run(&options, &mut std::io::stdout().lock()),
        Task::Canary(options) => canary::run(&options, &mut std::io::stdout().lock()),
        Task::Fuzz(options) => fuzz::run(&options, &mut std::io::stdout().lock()),
        Task::Million(options) => million::run(&options, &mut std::io::stdout().lock()),
        Task::Sim(options) => sim::simulate(&options, &mut std::io::stdout().lock()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _: std::io::Result<()> =
                std::io::Write::write_fmt(&mut std::io::stderr(), format_args!("xtask: {error}\n"));
            ExitCode::FAILURE
        }
    }
}
