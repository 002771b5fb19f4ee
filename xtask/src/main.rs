//! `cargo xtask`: the project's own tasks. Not part of what users build.

#![forbid(unsafe_code)]

mod bench;
mod process;
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
    /// Measure the release build: CPU per request beside a bare C loop, system calls, memory a connection
    Bench(bench::Options),
}

fn main() -> ExitCode {
    let result = match Arguments::parse().task {
        Task::Bench(options) => bench::run(&options, &mut std::io::stdout().lock()),
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
