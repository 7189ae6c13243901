//! `bench`: nanoseconds and packets per second of each path, beside the denominators of the same run.

use std::path::PathBuf;

use anyhow::{Result, bail};

use crate::{
    build,
    process::{self, is_root},
    setup,
};

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write the rows as JSON to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table and the chart of docs/performance.md anew
    #[arg(long)]
    docs: bool,
    /// Passed on to the benchmark (`-- --help` says what it takes)
    #[arg(last = true)]
    more: Vec<String>,
}

pub(crate) fn run(args: &Args) -> Result<()> {
    if !is_root() {
        bail!(
            "the benchmark needs root: it loads programs into the kernel and makes network namespaces"
        );
    }
    setup::run(&setup::Args::default())?;
    build::run(&build::Args::kernel_only())?;
    let mut command = process::cargo();
    command.args(["run", "--release", "--package", "sipline-benches", "--"]);
    if let Some(file) = &args.json {
        // The benchmark runs at the root of the workspace, the user may stand elsewhere.
        command.arg("--json").arg(std::path::absolute(file)?);
    }
    if args.docs {
        command.arg("--docs");
    }
    process::run(command.args(&args.more))
}
