//! `pktgen`: SIP frames out of an interface; docs/benchmarking.md says how to measure a network card with them.

use anyhow::{Result, bail};

use crate::{
    build,
    process::{self, is_root},
    setup,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// What is sent where (`cargo xtask pktgen -- --help` tells)
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "OPTIONS")]
    options: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if !is_root() {
        bail!("the generator needs root: it loads a program into the kernel");
    }
    setup::run(&setup::Args::default())?;
    build::run(&build::Args::kernel_only())?;
    let mut command = process::cargo();
    command.args(["run", "--release", "--package", "sipline-benches", "--", "pktgen"]);
    // The generator runs at the root of the workspace, the user may stand elsewhere.
    let mut is_file = false;
    for option in &args.options {
        match is_file {
            true => command.arg(std::path::absolute(option)?),
            false => command.arg(option),
        };
        is_file = option == "--json";
    }
    process::run(&mut command)
}
