//! `bench`: nanoseconds and packets per second of each path, beside the denominators of the same run; and
//! `bench proxy`: the daemon beside Kamailio.

use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::{
    build,
    process::{self, is_root},
    setup,
};

#[derive(clap::Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Args {
    #[command(subcommand)]
    what: Option<What>,
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

#[derive(clap::Subcommand)]
enum What {
    /// Compares the daemon with Debian's Kamailio, which is installed for it
    Proxy(ProxyArgs),
}

#[derive(clap::Args)]
struct ProxyArgs {
    /// Write the rows as JSON to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// A short run: minutes less, and coarser
    #[arg(long)]
    quick: bool,
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
    if let Some(What::Proxy(args)) = &args.what {
        return proxy(args);
    }
    build::run(&build::Args::kernel_only())?;
    let mut command = benchmark();
    pass_json(&mut command, args.json.as_deref())?;
    if args.docs {
        command.arg("--docs");
    }
    process::run(command.args(&args.more))
}

fn proxy(args: &ProxyArgs) -> Result<()> {
    setup::kamailio()?;
    build::run(&build::Args::default())?;
    let mut command = benchmark();
    command.arg("proxy");
    pass_json(&mut command, args.json.as_deref())?;
    if args.quick {
        command.arg("--quick");
    }
    process::run(command.args(&args.more))
}

fn benchmark() -> std::process::Command {
    let mut command = process::cargo();
    command.args(["run", "--release", "--package", "sipline-benches", "--"]);
    command
}

fn pass_json(command: &mut std::process::Command, file: Option<&Path>) -> Result<()> {
    if let Some(file) = file {
        // The benchmark runs at the root of the workspace, the user may stand elsewhere.
        command.arg("--json").arg(std::path::absolute(file)?);
    }
    Ok(())
}
