//! `verify`: both objects through this kernel's verifier; their cost is recorded and may not jump.

use anyhow::{Result, bail};

use crate::{
    build,
    process::{self, is_root},
    setup,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write the counts of today to tests/verifier.json, instead of comparing with them
    #[arg(long)]
    record: bool,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if !is_root() {
        bail!("loading a program into the kernel needs root");
    }
    setup::run(&setup::Args::default())?;
    build::run(&build::Args::kernel_only())?;
    let mut command = process::cargo();
    // The test that runs with all others, alone and with what it has to say.
    command.args(["test", "--package", "sipline-tests", "--test", "verifier", "--", "--nocapture"]);
    if args.record {
        command.env("SIPLINE_VERIFIER_RECORD", "1");
    }
    process::run(&mut command)
}
