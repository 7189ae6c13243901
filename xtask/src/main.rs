//! `cargo xtask VERB`: builds, tests, demonstrates and measures sipline. One file per verb.

mod build;
mod doctor;
mod process;
mod setup;
mod toolchain;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Builds, tests, demonstrates and measures sipline.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand)]
enum Verb {
    /// Installs what is missing to build, test and demonstrate (apt and cargo)
    Setup(setup::Args),
    /// Says what is there and what is missing, one line each
    Doctor,
    /// Builds the kernel program (both builds) and the `sipline` binary that embeds it
    Build(build::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::Doctor => doctor::run(),
        Verb::Build(args) => build::run(&args),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // One line: a stack of our own helps nobody who reads it.
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
