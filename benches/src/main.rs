//! `sipline-bench`: nanoseconds and packets per second of each path through the kernel program, beside
//! the denominators of the same run; and the daemon beside Kamailio. docs/performance.md says what the
//! numbers mean.

mod calls;
mod chart;
mod machine;
mod paths;
mod pktgen;
mod proxy;
mod report;
mod shield;
mod testrun;
mod wire;

use std::path::PathBuf;

use anyhow::{Result, bail};
use clap::{Parser, Subcommand};
use sip_user::fastpath::object::Build;

use paths::Ports;
use report::Row;

/// Measures each path through the kernel program, beside a drop, a reflector and a load balancer.
#[derive(Parser)]
#[command(name = "sipline-bench", args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    what: Option<What>,
    /// Write the rows as JSON to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the chart and the table into docs/performance.svg and docs/performance.md
    #[arg(long)]
    docs: bool,
    /// How often each path is measured; the medians are shown
    #[arg(long, default_value_t = 15, value_parser = clap::value_parser!(u32).range(1..))]
    runs: u32,
    /// Which build: may_goto or bpf_loop
    #[arg(long, default_value = "may_goto")]
    build: String,
    /// Only this path, and the denominators; may be given more than once
    #[arg(long = "path", value_name = "NAME")]
    paths: Vec<String>,
    /// The PBXs behind ports of their own, so that packets are redirected; else all are behind one
    #[arg(long)]
    several_ports: bool,
    /// Only the nanoseconds, not the packets per second
    #[arg(long)]
    no_wire: bool,
}

#[derive(Subcommand)]
enum What {
    /// Compares the daemon with Kamailio: CPU, rate, delay and memory
    Proxy(proxy::Args),
    /// sipline with XDP and without, and Kamailio with transactions and without: CPU, rate and delay
    System(proxy::system::Args),
    /// Which share of calls goes well while strangers send
    Flood(proxy::flood::Args),
    /// Sends SIP frames out of an interface
    Pktgen(pktgen::Args),
}

fn main() -> Result<()> {
    let args = Args::parse();
    match &args.what {
        Some(What::Proxy(args)) => return proxy::run(args),
        Some(What::System(args)) => return proxy::system::run(args),
        Some(What::Flood(args)) => return proxy::flood::run(args),
        Some(What::Pktgen(args)) => return pktgen::run(args),
        None => {}
    }
    let Some(build) = Build::ALL.into_iter().find(|build| build.name() == args.build) else {
        bail!("there is no build {}: it is may_goto or bpf_loop", args.build);
    };
    let machine = machine::describe();
    eprintln!("{machine}");
    let ports = if args.several_ports { Ports::Several } else { Ports::One };
    let mut paths = paths::all(ports);
    if let Some(name) = args.paths.iter().find(|name| paths.iter().all(|path| path.name != **name))
    {
        let names: Vec<_> = paths.iter().map(|path| path.name).collect();
        bail!("there is no path {name}: it is one of {}", names.join(", "));
    }
    paths.retain(|path| args.paths.is_empty() || args.paths.iter().any(|name| name == path.name));
    let mut rows: Vec<Row> = testrun::measure(build, (&paths, ports), args.runs)?;
    if !args.no_wire {
        wire::measure(build, (&paths, ports), args.runs, &mut rows)?;
    }
    print!("{}", report::table(&rows));
    if let Some(file) = &args.json {
        report::write_json(file, &rows)?;
    }
    if args.docs {
        report::write_docs(&rows, &machine, args.runs)?;
    }
    Ok(())
}
