//! `cargo xtask VERB`: builds, tests, demonstrates and measures sipline. One file per verb.

mod bench;
mod build;
mod demo;
mod doctor;
mod fuzz;
mod pktgen;
mod process;
mod setup;
mod test;
mod toolchain;
mod verify;

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
    /// Runs every test: unit, kernel and end to end (as root)
    Test(test::Args),
    /// Real calls through the proxy while a PBX dies and comes back, and what became of each (as root)
    Demo(demo::Args),
    /// Loads both builds of the kernel program and checks what they cost the verifier (as root)
    Verify(verify::Args),
    /// Measures each path of the kernel program (as root)
    Bench(bench::Args),
    /// Sends SIP frames out of an interface, a mix of them at a rate (as root)
    Pktgen(pktgen::Args),
    /// Searches for input that breaks the scanner (needs a nightly compiler), or that the kernel program and the daemon
    /// answer differently (as root)
    Fuzz(fuzz::Args),
}

fn main() -> ExitCode {
    let result = match Cli::parse().verb {
        Verb::Setup(args) => setup::run(&args),
        Verb::Doctor => doctor::run(),
        Verb::Build(args) => build::run(&args),
        Verb::Test(args) => test::run(&args),
        Verb::Demo(args) => demo::run(&args),
        Verb::Verify(args) => verify::run(&args),
        Verb::Bench(args) => bench::run(&args),
        Verb::Pktgen(args) => pktgen::run(&args),
        Verb::Fuzz(args) => fuzz::run(&args),
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

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::Cli;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
