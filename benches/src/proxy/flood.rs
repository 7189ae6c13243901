//! `flood`: which share of calls of a trusted network goes well while strangers send, from nothing to several times what
//! the proxy can take.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::programs::XdpMode;
use serde::{Deserialize, Serialize};
use sip_user::fastpath::object::{self, Build, DROP, Options};
use sipline_tests::fixtures::frame::Mac;
use sipline_tests::fixtures::net;
use sipline_tests::lab::{Lab, PORT, PROXY, Place};

use super::contender::{Contender, thread_interfaces};
use super::curve;
use super::generator::Generator;
use super::server::{self, STRANGERS, Tuning};
use super::{Bench, Effort, GENERATOR_CPU, Operation, PATIENCE, PROXY_CPU, Scenario, USERS};
use crate::pktgen::{self, Load, Mix, Totals};
use crate::shield::Shield;
use crate::wire::Awake;
use crate::{machine, report, wire};

/// Calls while strangers send.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write the rows as JSON to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write table and chart into docs/performance.md and docs/flood.svg
    #[arg(long)]
    docs: bool,
    /// Measure nothing: table and chart of what --json has written before
    #[arg(long, value_name = "FILE", conflicts_with = "json")]
    from: Option<PathBuf>,
    /// Fewer steps, and shorter ones
    #[arg(long)]
    quick: bool,
    /// Calls per second of the trusted network
    #[arg(long, default_value_t = 200.0)]
    calls: f64,
    /// Addresses of strangers, a power of two up to 65536
    #[arg(long, default_value_t = 1024)]
    sources: u32,
    /// What strangers send, as in pktgen
    #[arg(long, default_value = "invite=1,register=1,options=1,junk=1")]
    mix: Mix,
    /// Packets per second of the strangers, in turn; else steps of its own choice
    #[arg(long, value_name = "PPS", value_delimiter = ',')]
    steps: Vec<f64>,
    /// Only this one; may be given more than once
    #[arg(long = "only", value_name = "NAME")]
    only: Vec<Contender>,
}

impl Args {
    /// How long calls are made at each step.
    fn time(&self) -> Duration {
        Duration::from_secs(if self.quick { 6 } else { 10 })
    }
}

const CONTENDERS: [Contender; 4] =
    [Contender::Native, Contender::Generic, Contender::Off, Contender::Kamailio];

const STEPS: [f64; 8] = [0.0, 5e3, 1e4, 2e4, 5e4, 1e5, 2e5, 5e5];
const QUICK: [f64; 5] = [0.0, 1e4, 5e4, 2e5, 5e5];

/// The network between strangers' router and the proxy, and the first of their addresses.
const ROUTER: &str = "10.10.9.2";
const OURS: &str = "10.10.9.1";
const FIRST: &str = "198.18.0.0";
const FAR_MAC: Mac = [2, 0, 0, 0, 9, 2];
const NEAR_MAC: Mac = [2, 0, 0, 0, 9, 1];
/// How long strangers send before the first call, and after the last.
const MARGIN: Duration = Duration::from_millis(700);

/// One contender at one step.
#[derive(Clone, Debug, Deserialize, Serialize)]
pub(super) struct Point {
    pub(super) contender: Contender,
    /// Packets per second that were asked of the strangers.
    pub(super) asked: f64,
    /// What they have sent.
    pub(super) pps: f64,
    pub(super) calls: u64,
    pub(super) succeeded: u64,
}

impl Point {
    /// Share of the calls that went well.
    pub(super) fn share(&self) -> f64 {
        self.succeeded as f64 / self.calls.max(1) as f64
    }
}

/// Runs all steps.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(machine::cpus() >= 2, "two CPUs are needed: one for the proxy, one for its peers");
    ensure!(
        args.sources.is_power_of_two() && args.sources <= 1 << 16,
        "--sources is a power of two up to 65536"
    );
    ensure!(args.steps.iter().all(|pps| (0.0..=1e9).contains(pps)), "--steps are from 0 to 1e9");
    eprintln!("{}", machine::describe());
    if let Some(file) = &args.from {
        let text = fs::read_to_string(file);
        let text = text.with_context(|| format!("cannot read {}", file.display()))?;
        let points: Vec<Point> = serde_json::from_str(&text)
            .with_context(|| format!("{} is not of --json", file.display()))?;
        return show(args, &points);
    }
    // The strangers' namespace is this thread's, and is gone when it returns.
    net::in_namespace(|| flood(args))
}

fn flood(args: &Args) -> Result<()> {
    machine::pin(0, GENERATOR_CPU)?;
    let _shield = Shield::start(PROXY_CPU)?;
    let database = server::database(USERS as u32)?;
    let lab = Lab::new()?;
    let _sink = strangers(&lab)?;
    let threads = thread_interfaces(&lab, true)?;
    let _awake = Awake::start(PROXY_CPU)?;
    let generator = Generator::new(&lab, USERS)?;
    machine::favour(0, 1)?;
    let mut bench = Bench {
        lab,
        database,
        generator,
        effort: Effort::new(args.quick),
        tuning: Tuning { children: 4, write_behind: false },
        rate: args.calls,
        busy: HashMap::new(),
        rows: Vec::new(),
        threads,
    };
    let time = args.time();
    let steps: &[f64] = match (args.steps.is_empty(), args.quick) {
        (false, _) => &args.steps,
        (true, true) => &QUICK,
        (true, false) => &STEPS,
    };
    let mut points = Vec::new();
    for contender in CONTENDERS {
        if !args.only.is_empty() && !args.only.contains(&contender) {
            continue;
        }
        for asked in steps {
            let point = bench.step_of_flood(args, contender, *asked, time)?;
            eprintln!("{point:?}");
            points.push(point);
            if let Some(file) = &args.json {
                let text = serde_json::to_string_pretty(&points)?;
                fs::write(file, text + "\n")
                    .with_context(|| format!("cannot write {}", file.display()))?;
            }
        }
    }
    show(args, &points)
}

/// Prints what was found, and writes it where it is wanted.
fn show(args: &Args, points: &[Point]) -> Result<()> {
    let text = table(points);
    print!("{text}");
    if args.docs {
        let machine = machine::describe();
        report::write_chart("flood.svg", &curve::svg(points, &machine))?;
        let how = format!(
            "{machine}; {:.0} calls a second for {} s, {} addresses of strangers, one run.",
            args.calls,
            args.time().as_secs(),
            args.sources
        );
        report::replace("flood", &format!("{how}\n\n{text}"))?;
    }
    Ok(())
}

/// Makes the way to the strangers, who are in this thread's namespace. What they are answered ends there.
fn strangers(lab: &Lab) -> Result<Ebpf> {
    let proxy = lab.namespace_file(Place::Proxy);
    let proxy = proxy.file_name().and_then(|name| name.to_str()).context("no namespace")?;
    let mac = |mac: Mac| mac.map(|byte| format!("{byte:02x}")).join(":");
    let (far, near) = (mac(FAR_MAC), mac(NEAR_MAC));
    net::ip(&format!(
        "link set lo up\n\
         link add eth0 address {far} type veth peer name {STRANGERS} address {near} netns {proxy}\n\
         addr add {ROUTER}/24 dev eth0\nlink set eth0 up\n"
    ));
    let ip = |args: &[&str]| lab.run(Place::Proxy, "ip", args);
    ip(&["addr", "add", &format!("{OURS}/24"), "dev", STRANGERS])?;
    ip(&["link", "set", STRANGERS, "up"])?;
    ip(&["neigh", "replace", ROUTER, "lladdr", &far, "dev", STRANGERS])?;
    ip(&["route", "add", &format!("{FIRST}/15"), "via", ROUTER, "dev", STRANGERS])?;
    // As the lab's own links are: true checksums, and the receive path that takes frames sent by XDP.
    lab.run(Place::Proxy, "ethtool", &["-K", STRANGERS, "tx", "off", "gro", "on"])?;
    let load = |build| -> Result<Ebpf> {
        let mut ebpf = object::maps(build, &Options::new(1))?;
        object::program(&mut ebpf, DROP)?.attach("eth0", XdpMode::Driver)?;
        Ok(ebpf)
    };
    let [first, second] = Build::ALL;
    load(first).or_else(|_| load(second))
}

/// What strangers send for a time; `None` where they are to be silent.
fn attack(args: &Args, asked: f64, time: Duration) -> Result<Option<Totals>> {
    if asked == 0.0 {
        return Ok(None);
    }
    // Behind the calls' generator, on the same CPU.
    machine::ordinary(0)?;
    wire::own_sysfs()?;
    let from = format!("{FIRST}:{PORT}").parse()?;
    let to = format!("{PROXY}:{PORT}").parse()?;
    let frames = args.mix.frames((from, FAR_MAC), (to, NEAR_MAC), &[]);
    let load = Load { interface: "eth0", rate: asked, sources: args.sources, time };
    pktgen::send(&frames, &load, false).map(Some)
}

impl Bench {
    /// A fresh proxy, strangers at a rate, and calls meanwhile.
    fn step_of_flood(
        &mut self,
        args: &Args,
        contender: Contender,
        asked: f64,
        time: Duration,
    ) -> Result<Point> {
        let (name, setting) = (contender.name(), contender.setting(true));
        let scenario = Scenario { name, operation: Operation::Call, setting, known: false };
        let mut server = self.start(&scenario, contender.proxy())?;
        let count = (self.rate * time.as_secs_f64()).ceil() as u64;
        let sent = thread::scope(|scope| {
            let whole = MARGIN + time + MARGIN;
            let strangers = scope.spawn(move || attack(args, asked, whole));
            self.generator.begin(Operation::Call, 1.0, 0);
            self.generator.run(MARGIN);
            self.generator.begin(Operation::Call, self.rate, count);
            self.generator.finish(time + PATIENCE);
            strangers.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })?;
        let counts = self.generator.counts();
        // Those that it had no time to start are not the proxy's: they are not counted.
        let point = Point {
            contender,
            asked,
            pps: sent.map_or(0.0, |totals| totals.pps),
            calls: counts.started,
            succeeded: counts.succeeded,
        };
        ensure!(
            point.calls + count / 20 >= count,
            "the generator has started {} calls of {count}: strangers leave it no time",
            point.calls
        );
        if server.check().is_err() {
            eprintln!("  {name} has ended at {asked:.0}/s: {}", server.last_words());
        }
        server.stop()?;
        Ok(point)
    }
}

/// For people, and for Markdown: the share of calls that went well, and what the strangers have sent.
fn table(points: &[Point]) -> String {
    let mut steps: Vec<f64> = points.iter().map(|point| point.asked).collect();
    steps.sort_by(f64::total_cmp);
    steps.dedup();
    let mut contenders: Vec<Contender> = Vec::new();
    for point in points {
        if !contenders.contains(&point.contender) {
            contenders.push(point.contender);
        }
    }
    let mut out = String::from("| strangers' packets a second, asked |");
    // Writing into a String cannot fail.
    for contender in &contenders {
        let _ = write!(out, " {} |", contender.name());
    }
    out.push_str("\n| ---: |");
    out.push_str(&" ---: |".repeat(contenders.len()));
    out.push('\n');
    for step in steps {
        let _ = write!(out, "| {step:.0} |");
        for contender in &contenders {
            let point = points.iter().find(|p| p.contender == *contender && p.asked == step);
            let _ = match point {
                Some(point) if point.asked == 0.0 => write!(out, " {:.1} % |", point.share() * 1e2),
                Some(point) => {
                    write!(out, " {:.1} % ({:.0} sent) |", point.share() * 1e2, point.pps)
                }
                None => write!(out, " - |"),
            };
        }
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_has_a_column_for_each() {
        let point = |contender, asked, succeeded| Point {
            contender,
            asked,
            pps: asked * 0.9,
            calls: 200,
            succeeded,
        };
        let points = [
            point(Contender::Native, 0.0, 200),
            point(Contender::Native, 1000.0, 199),
            point(Contender::Off, 0.0, 100),
        ];
        let text = table(&points);
        assert!(text.contains("| sipline, XDP native | sipline, XDP off |"), "{text}");
        assert!(text.contains("| 0 | 100.0 % | 50.0 % |"), "{text}");
        assert!(text.contains("| 1000 | 99.5 % (900 sent) | - |"), "{text}");
    }
}
