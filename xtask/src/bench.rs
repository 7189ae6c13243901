//! `bench`: nanoseconds and packets per second of each path, beside the denominators of the same run;
//! `bench proxy`, `bench system` and `bench flood`: sipline beside Kamailio.

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
    /// sipline with XDP and without, and Kamailio with transactions and without: all that a message costs
    System(DocsArgs),
    /// Which share of calls goes well while strangers send, with XDP and without, and of Kamailio
    Flood(DocsArgs),
}

#[derive(clap::Args)]
struct DocsArgs {
    #[command(flatten)]
    common: ProxyArgs,
    /// Write the results into docs/performance.md
    #[arg(long)]
    docs: bool,
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
    match &args.what {
        Some(What::Proxy(args)) => return beside_kamailio("proxy", args, false),
        Some(What::System(args)) => return beside_kamailio("system", &args.common, args.docs),
        Some(What::Flood(args)) => return beside_kamailio("flood", &args.common, args.docs),
        None => {}
    }
    build::run(&build::Args::kernel_only())?;
    let mut command = benchmark();
    pass_json(&mut command, args.json.as_deref())?;
    if args.docs {
        command.arg("--docs");
    }
    process::run(command.args(&args.more))
}

fn beside_kamailio(what: &str, args: &ProxyArgs, docs: bool) -> Result<()> {
    setup::kamailio()?;
    build::run(&build::Args::default())?;
    let mut command = benchmark();
    command.arg(what);
    pass_json(&mut command, args.json.as_deref())?;
    if docs {
        command.arg("--docs");
    }
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
