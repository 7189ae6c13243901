//! sipline beside Kamailio, both as daemons: the same namespaces, the same CPU, the same load, the same work.
//!
//! docs/performance.md says what the numbers mean.

mod contender;
mod curve;
mod digest;
pub(crate) mod flood;
mod generator;
mod message;
mod rows;
mod server;
mod socket;
pub(crate) mod system;
mod usage;

use std::collections::HashMap;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use sipline_tests::lab::{Database, Lab};

use crate::machine;
use crate::report::median;
use crate::shield::Shield;
use generator::{Generator, Operation};
use rows::{Row, put};
use server::{Proxy, Server, Setting, Tuning};

/// CPU of the proxy.
const PROXY_CPU: usize = 0;
/// CPU of the generator and of the database.
const GENERATOR_CPU: usize = 1;
/// Users there are.
const USERS: usize = 20_100;
/// Those that take turns where the proxy knows them already: what it remembers of them it may use.
const KNOWN: usize = 4000;
/// Those that show whether the proxy works, where it does not know the others.
const TRIAL: usize = 100;
/// Operations per second that make users known.
const GENTLE: f64 = 1000.0;
/// How long after the last start of an operation its end is waited for.
const PATIENCE: Duration = Duration::from_secs(2);
/// A rate at which the 99th percentile of the delay is above this, at the end of the time that it is tried for, is not
/// held: what comes is queued, and would be lost a little later.
const QUEUED: Duration = Duration::from_millis(10);
/// The last of so many parts of a step shows whether a queue has grown: at first transactions are few, and the memory
/// that they take is new.
const PARTS: u32 = 4;
/// The part of Kamailio's highest rate that both are given too: at the common rate that is asked for, most of what an
/// operation costs is waking up for it.
const BUSY: f64 = 0.7;
/// PBXs that are to be told of a registration.
const TOLD: u64 = 2;
/// As many windows must be left when those are taken out that the host has disturbed.
const FEWEST: usize = 4;
/// An operation that starts later than this was not started at the rate that was asked for.
const LATE: Duration = Duration::from_millis(100);

/// Compares the daemon with Kamailio: CPU, rate, delay and memory.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write the rows as JSON to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Shorter windows, coarser steps, no memory
    #[arg(long)]
    quick: bool,
    /// Only what has this name (`memory` too); can be given several times
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Only this proxy
    #[arg(long)]
    proxy: Option<Proxy>,
    /// Operations per second at which the CPU time of both is compared
    #[arg(long, default_value_t = 1000.0)]
    rate: f64,
    /// Kamailio's processes that receive; several for each CPU, because they wait for the database
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    children: u32,
    /// Kamailio keeps registrations in memory only, and does not write them behind
    #[arg(long)]
    memory_only: bool,
}

/// What is compared.
struct Scenario {
    name: &'static str,
    operation: Operation,
    setting: Setting,
    /// The users have been there before.
    known: bool,
}

const MEMORY: &str = "memory";

const SCENARIOS: [Scenario; 6] = [
    Scenario {
        name: "register",
        operation: Operation::Register { remember: false },
        setting: Setting { challenge: true, fork: false, calls: false, ..Setting::OFF },
        known: true,
    },
    Scenario {
        name: "register_first",
        operation: Operation::Register { remember: false },
        setting: Setting { challenge: true, fork: false, calls: false, ..Setting::OFF },
        known: false,
    },
    Scenario {
        name: "register_again",
        operation: Operation::Register { remember: true },
        setting: Setting { challenge: true, fork: false, calls: false, ..Setting::OFF },
        known: true,
    },
    Scenario {
        name: "register_forked",
        operation: Operation::Register { remember: false },
        setting: Setting { challenge: true, fork: true, calls: false, ..Setting::OFF },
        known: true,
    },
    Scenario {
        name: "call",
        operation: Operation::Call,
        setting: Setting { challenge: true, fork: false, calls: true, ..Setting::OFF },
        known: true,
    },
    Scenario {
        name: "call_trusted (sipline stateless)",
        operation: Operation::Call,
        setting: Setting { challenge: false, fork: false, calls: true, ..Setting::OFF },
        known: true,
    },
];

/// How long and how often.
struct Effort {
    warm_up: Duration,
    window: Duration,
    windows: usize,
    step: Duration,
    /// From one rate to the next on the way up.
    factor: f64,
    /// Halvings of the gap between the last good rate and the first bad one.
    halvings: u32,
    /// How often the delay is measured below the highest rate.
    rounds: u32,
}

impl Effort {
    fn new(quick: bool) -> Self {
        if quick {
            Self {
                warm_up: Duration::from_millis(1500),
                window: Duration::from_secs(1),
                windows: 3,
                step: Duration::from_secs(4),
                factor: 1.4,
                halvings: 1,
                rounds: 3,
            }
        } else {
            Self {
                warm_up: Duration::from_secs(5),
                window: Duration::from_secs(2),
                windows: 5,
                step: Duration::from_secs(12),
                factor: 1.25,
                halvings: 2,
                rounds: 5,
            }
        }
    }
}

/// Runs the comparison.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(machine::cpus() >= 2, "two CPUs are needed: one for the proxy, one for its peers");
    let names: Vec<&str> = SCENARIOS.iter().map(|s| s.name).chain([MEMORY]).collect();
    if let Some(unknown) = args.only.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("there is no {unknown}: it is one of {}", names.join(", "));
    }
    let chosen = |name: &str| match args.only.is_empty() {
        true => name != MEMORY || !args.quick,
        false => args.only.iter().any(|only| only == name),
    };
    eprintln!("{}", machine::describe());
    machine::pin(0, GENERATOR_CPU)?;
    // Until this returns, however it does.
    let _shield = Shield::start(PROXY_CPU)?;
    let memory = if args.quick { Memory::QUICK } else { Memory::FULL };
    eprintln!("database: MariaDB, {USERS} users");
    let database = server::database(USERS as u32)?;
    let lab = Lab::plain()?;
    let generator = Generator::new(&lab, USERS)?;
    machine::favour(0, 1)?;
    let mut bench = Bench {
        lab,
        database,
        generator,
        effort: Effort::new(args.quick),
        tuning: Tuning { children: args.children, write_behind: !args.memory_only },
        rate: args.rate,
        busy: HashMap::new(),
        rows: Vec::new(),
        threads: Vec::new(),
    };
    let proxies = match args.proxy {
        Some(only) => vec![only],
        None => vec![Proxy::Kamailio, Proxy::Sipline],
    };
    // What can be measured is, also when something else cannot.
    let mut failed = Vec::new();
    let mut note = |name: &str, proxy: Proxy, result: Result<()>| {
        if let Err(error) = result {
            eprintln!("{name}, {proxy:?}: FAILED: {error:#}");
            failed.push(format!("{name}, {proxy:?}"));
        }
    };
    for scenario in SCENARIOS.iter().filter(|scenario| chosen(scenario.name)) {
        for proxy in &proxies {
            note(scenario.name, *proxy, bench.scenario(scenario, *proxy));
            bench.write(args)?;
        }
    }
    if chosen(MEMORY) {
        for proxy in proxies {
            note(MEMORY, proxy, bench.memory(proxy, &memory));
            bench.write(args)?;
        }
    }
    print!("{}", rows::table(&bench.rows));
    ensure!(failed.is_empty(), "not measured: {}", failed.join("; "));
    Ok(())
}

struct Bench {
    lab: Lab,
    database: Database,
    generator: Generator,
    effort: Effort,
    tuning: Tuning,
    rate: f64,
    /// By scenario: the other rate that both are given, once it is known.
    busy: HashMap<&'static str, f64>,
    rows: Vec<Row>,
    /// Kernel threads that work for the proxy alone, if there are such.
    threads: Vec<i32>,
}

/// What was found in a search for the highest rate.
struct Highest {
    /// In a second, without a loss.
    rate: f64,
    /// The least CPU time per operation that was seen, in microseconds.
    best: f64,
    /// Whether the generator could not do more.
    limited: bool,
}

/// The delay of messages, in microseconds: medians of windows. A virtual machine that its host keeps from running for some
/// milliseconds has them in the delay of whatever was on its way, so windows with such a time in them or beside them
/// do not count, if there are others.
#[derive(Default)]
struct Delay {
    windows: Vec<Window>,
    lost: u64,
}

/// One of them.
#[derive(Clone, Copy)]
struct Window {
    /// The median.
    middle: f64,
    /// The 99th percentile.
    high: f64,
    /// Whether the host has kept neither CPU from running, as far as the kernel's count shows it: steps of 10 ms, so
    /// some of it may be in the window behind.
    quiet: bool,
}

impl Delay {
    fn middle(&self) -> f64 {
        self.median(|window| window.middle)
    }

    /// The 99th percentile.
    fn high(&self) -> f64 {
        self.median(|window| window.high)
    }

    fn median(&self, of: impl Fn(&Window) -> f64) -> f64 {
        let quiet: Vec<f64> = self.windows.iter().filter(|window| window.quiet).map(&of).collect();
        let few = quiet.len() < FEWEST;
        median(&mut if few { self.windows.iter().map(of).collect() } else { quiet })
    }

    fn quiet(&self) -> usize {
        self.windows.iter().filter(|window| window.quiet).count()
    }

    fn add(&mut self, other: Self) {
        self.windows.extend(other.windows);
        self.lost += other.lost;
    }
}

impl fmt::Display for Delay {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(to, "delay {:.0} us, p99 {:.0} us (", self.middle(), self.high())?;
        for Window { high, quiet, .. } in &self.windows {
            write!(to, " {high:.0}{}", if *quiet { "" } else { "*" })?;
        }
        let (quiet, all) = (self.quiet(), self.windows.len());
        write!(to, " ), {quiet} of {all} windows undisturbed by the host, {} lost", self.lost)
    }
}

impl Bench {
    /// Writes what there is so far: a long run that is cut short has not been for nothing.
    fn write(&self, args: &Args) -> Result<()> {
        args.json.as_deref().map_or(Ok(()), |file| rows::write_json(file, &self.rows))
    }

    fn scenario(&mut self, scenario: &Scenario, proxy: Proxy) -> Result<()> {
        let Scenario { name, operation, .. } = *scenario;
        let mut server = self.start(scenario, proxy)?;
        let rate = self.rate;
        let us = self.at_rate(&mut server, scenario, proxy, rate)?;
        put(&mut self.rows, &format!("{name}, CPU at {rate:.0}/s"), "us", proxy, us);
        if !scenario.known {
            // There are not enough users for more.
            return Ok(());
        }
        let delay = self.delay_at(rate, operation)?;
        eprintln!("{name}, {proxy:?}: {delay} at {rate:.0}/s");
        put(
            &mut self.rows,
            &format!("{name}, delay at {rate:.0}/s, p99"),
            "us",
            proxy,
            delay.high(),
        );
        let highest = self.highest(&mut server, scenario, proxy, 0.6e6 / us)?;
        eprintln!(
            "{name}, {proxy:?}: {}{:.0}/s without a loss, {:.1} us at best",
            if highest.limited { "at least " } else { "" },
            highest.rate,
            highest.best
        );
        let rows = &mut self.rows;
        put(rows, &format!("{name}, CPU at best"), "us", proxy, highest.best.min(us));
        let row = put(rows, &format!("{name}, highest rate"), "1/s", proxy, highest.rate);
        if highest.limited {
            row.lower_bounds.push(proxy);
        }

        let delay = self.delay_below(&mut server, scenario, proxy, highest.rate)?;
        put(&mut self.rows, &format!("{name}, delay at 70 %, p50"), "us", proxy, delay.middle());
        put(&mut self.rows, &format!("{name}, delay at 70 %, p99"), "us", proxy, delay.high());
        if matches!(proxy, Proxy::Kamailio) {
            self.busy.insert(name, highest.rate * BUSY);
        }
        if let Some(rate) = self.busy.get(name).copied() {
            // Without what it still keeps of all those.
            server.stop()?;
            server = self.start(scenario, proxy)?;
            let us = self.at_rate(&mut server, scenario, proxy, rate)?;
            put(&mut self.rows, &format!("{name}, CPU at {rate:.0}/s"), "us", proxy, us);
        }
        server.check()
    }

    /// The delay at a rate.
    fn delay_at(&mut self, rate: f64, operation: Operation) -> Result<Delay> {
        let Effort { warm_up, window, windows, .. } = self.effort;
        // Short ones, so that what disturbs one leaves the others alone.
        let (window, windows) = (window / 4, windows * 4);
        let time = warm_up + window * windows as u32;
        self.generator.begin(operation, rate, (rate * time.as_secs_f64()).ceil() as u64);
        self.generator.run(warm_up);
        let mut seen = Vec::new();
        let mut stolen = vec![self::stolen()?];
        for _ in 0..windows {
            self.generator.clear_delays();
            self.generator.run(window);
            let delays = self.generator.delays();
            seen.push((percentile(delays, 0.5), percentile(delays, 0.99)));
            stolen.push(self::stolen()?);
        }
        self.generator.finish(PATIENCE);
        let quiet = quiet(&stolen);
        let windows = seen.into_iter().zip(quiet);
        let windows = windows.map(|((middle, high), quiet)| Window { middle, high, quiet });
        Ok(Delay { windows: windows.collect(), lost: self.generator.counts().lost() })
    }

    /// The delay at 70 % of the highest rate. How much a virtual machine can do changes within seconds, so each round
    /// stands right behind a step at the rate that it takes a part of: `highest`, or the next lower one that is held then.
    fn delay_below(
        &mut self,
        server: &mut Server,
        scenario: &Scenario,
        proxy: Proxy,
        highest: f64,
    ) -> Result<Delay> {
        let mut all = Delay::default();
        for _ in 0..self.effort.rounds {
            let mut top = highest;
            while !self.step(server, scenario, top)?.held() {
                top /= self.effort.factor.sqrt();
                ensure!(top > 10.0, "it loses at every rate: {}", server.last_words());
                server.stop()?;
                *server = self.start(scenario, proxy)?;
            }
            let rate = top * 0.7;
            let delay = self.delay_at(rate, scenario.operation)?;
            eprintln!("{}, {proxy:?}: {delay} at {rate:.0}/s", scenario.name);
            all.add(delay);
        }
        Ok(all)
    }

    /// CPU time per operation at a rate that both are given, in microseconds.
    fn at_rate(
        &mut self,
        server: &mut Server,
        scenario: &Scenario,
        proxy: Proxy,
        rate: f64,
    ) -> Result<f64> {
        let Scenario { name, operation, .. } = *scenario;
        let Effort { warm_up, window, windows, .. } = self.effort;
        let time = warm_up + window * windows as u32;
        let count = (rate * time.as_secs_f64()).ceil() as u64;
        self.generator.begin(operation, rate, count);
        self.generator.run(warm_up);
        let mut costs = Vec::new();
        for _ in 0..windows {
            let (before, done) = (server.cpu()?, self.generator.counts().succeeded);
            self.generator.run(window);
            let done = self.generator.counts().succeeded - done;
            ensure!(done > 0, "nothing succeeds: {:?}", self.generator.counts());
            costs.push((server.cpu()? - before).as_secs_f64() * 1e6 / done as f64);
        }
        self.generator.finish(PATIENCE);
        let counts = self.generator.counts();
        let spread = costs.iter().map(|cost| format!("{cost:.1}")).collect::<Vec<_>>().join(" ");
        let us = median(&mut costs);
        eprintln!(
            "{name}, {proxy:?}: {us:.1} us of CPU at {rate:.0}/s ({spread}), {} lost, {:.2} forked each",
            counts.lost(),
            counts.forked as f64 / counts.started as f64
        );
        if counts.lost() > 0 {
            eprintln!("  {counts:?}");
        }
        Ok(us)
    }

    /// Goes up by steps until something is lost, and halves the last step.
    fn highest(
        &mut self,
        server: &mut Server,
        scenario: &Scenario,
        proxy: Proxy,
        guess: f64,
    ) -> Result<Highest> {
        let mut highest = Highest { rate: 0.0, best: f64::MAX, limited: false };
        let (mut rate, mut bad) = (guess, None);
        let mut halvings = self.effort.halvings;
        loop {
            let mut step = self.step(server, scenario, rate)?;
            let few = rate * self.effort.step.as_secs_f64() / 100.0;
            if !step.held() && (step.lost as f64) < few && (step.behind as f64) < few {
                // The machine may have been elsewhere for a moment: it has to happen twice.
                step = self.step(server, scenario, rate)?;
            }
            let Step { us, lost, late, .. } = step;
            if step.held() && !late {
                highest.rate = rate;
                highest.best = highest.best.min(us);
            } else {
                highest.limited |= lost == 0 && late;
                bad = Some(rate);
                // What it thinks of its PBXs is no longer what it was.
                server.stop()?;
                *server = self.start(scenario, proxy)?;
            }
            rate = match bad {
                None => rate * self.effort.factor,
                Some(bad) if highest.rate == 0.0 => {
                    ensure!(bad > 10.0, "it loses at every rate: {}", server.last_words());
                    bad / self.effort.factor
                }
                Some(_) if halvings == 0 => return Ok(highest),
                Some(bad) => {
                    halvings -= 1;
                    (highest.rate * bad).sqrt()
                }
            };
        }
    }

    fn step(&mut self, server: &mut Server, scenario: &Scenario, rate: f64) -> Result<Step> {
        let time = self.effort.step;
        let count = (rate * time.as_secs_f64()).ceil() as u64;
        let before = server.cpu()?;
        self.generator.begin(scenario.operation, rate, count);
        self.generator.run(time - time / PARTS);
        self.generator.clear_delays();
        self.generator.finish(time / PARTS + PATIENCE);
        let used = server.cpu()? - before;
        server.check()?;
        let p99 = percentile(self.generator.delays(), 0.99);
        let counts = self.generator.counts().clone();
        let step = Step {
            us: used.as_secs_f64() * 1e6 / counts.succeeded.max(1) as f64,
            lost: counts.lost() + (count - counts.started),
            late: counts.late > LATE,
            queued: p99 > QUEUED.as_secs_f64() * 1e6,
            // One that comes again while the PBXs have not answered is told to them once.
            behind: match scenario.setting.fork {
                true => (TOLD * count).saturating_sub(counts.forked),
                false => 0,
            },
        };
        eprintln!(
            "  {rate:.0}/s: {:.1} us, {} lost, {} not forked, p99 of the delay {:.1} ms{}",
            step.us,
            step.lost,
            step.behind,
            p99 / 1e3,
            if step.late { ", the generator is late" } else { "" }
        );
        if step.lost > 0 {
            eprintln!("  {counts:?}");
        }
        Ok(step)
    }

    /// Starts a proxy and waits until it works.
    fn start(&mut self, scenario: &Scenario, proxy: Proxy) -> Result<Server> {
        server::forget_registrations(&self.database)?;
        self.generator.forget();
        let mut server = Server::start(
            &self.lab,
            &self.database,
            proxy,
            scenario.setting,
            self.tuning,
            &self.threads,
        )?;
        let operation = match scenario.operation {
            Operation::Ring => Operation::Call,
            other => other,
        };
        self.generator.take_turns(if scenario.known { 0..KNOWN } else { USERS - TRIAL..USERS });
        for _ in 0..50 {
            self.generator.begin(operation, 100.0, 10);
            self.generator.finish(Duration::from_millis(400));
            server.check()?;
            if self.generator.counts().lost() > 0 {
                continue;
            }
            server.settle()?;
            // Not all at once into what has just started.
            let users = if scenario.known { KNOWN } else { TRIAL };
            self.generator.begin(operation, GENTLE, users as u64);
            self.generator.finish(Duration::from_secs_f64(users as f64 / GENTLE) + PATIENCE);
            let lost = self.generator.counts().lost();
            if lost > 0 {
                eprintln!("  {lost} of the first {users} were lost: {:?}", self.generator.counts());
            }
            if !scenario.known {
                self.generator.take_turns(0..USERS - TRIAL);
            }
            return Ok(server);
        }
        bail!("{proxy:?} does not work: {:?}\n{}", self.generator.counts(), server.last_words());
    }

    /// Resident memory of registrations and of ringing calls.
    fn memory(&mut self, proxy: Proxy, memory: &Memory) -> Result<()> {
        let Memory { registrations, calls, rate, rest } = *memory;
        let scenario = Scenario {
            name: MEMORY,
            operation: Operation::Register { remember: false },
            setting: Setting { challenge: true, fork: true, calls: true, ..Setting::OFF },
            known: false,
        };
        // The first half also fills what is used for a while and then used again.
        let mut server = self.start(&scenario, proxy)?;
        let mut seen = Vec::new();
        for half in 0..2 {
            self.generator.take_turns(half * registrations..(half + 1) * registrations);
            self.generator.begin(scenario.operation, rate, registrations as u64);
            let time = Duration::from_secs_f64(registrations as f64 / rate);
            self.generator.finish(time + PATIENCE);
            let counts = self.generator.counts().clone();
            ensure!(counts.lost() == 0, "registrations were lost: {counts:?}");
            self.generator.run(rest);
            seen.push(server.memory()?);
            eprintln!(
                "memory, {proxy:?}: {:.1} MB after {} registrations",
                seen[half] as f64 / 1e6,
                (half + 1) * registrations
            );
        }
        let each = (seen[1] as f64 - seen[0] as f64) / registrations as f64;
        put(&mut self.rows, "memory per registration", "bytes", proxy, each);

        let scenario = Scenario { operation: Operation::Ring, ..scenario };
        server.stop()?;
        server = self.start(&scenario, proxy)?;
        // A few users who are known by now, so that only calls are counted. The first calls are over, and
        // so are their transactions.
        self.generator.take_turns(USERS - TRIAL..USERS);
        self.generator.run(rest);
        let before = server.memory()?;
        self.generator.begin(Operation::Ring, rate, calls.into());
        self.generator.finish(Duration::from_secs_f64(f64::from(calls) / rate) + PATIENCE);
        let counts = self.generator.counts().clone();
        ensure!(counts.lost() == 0, "calls do not ring: {counts:?}");
        let after = server.memory()?;
        let each = (after as f64 - before as f64) / f64::from(calls);
        eprintln!(
            "memory, {proxy:?}: {:.1} MB, {:.1} MB with {calls} calls ringing",
            before as f64 / 1e6,
            after as f64 / 1e6
        );
        put(&mut self.rows, "memory per ringing call", "bytes", proxy, each);
        Ok(())
    }
}

/// One rate, tried.
struct Step {
    us: f64,
    lost: u64,
    /// The generator did not get as far.
    late: bool,
    /// What came had to wait.
    queued: bool,
    /// Registrations that PBXs have not been told of.
    behind: u64,
}

impl Step {
    /// Whether the proxy did all that it should, in time.
    fn held(&self) -> bool {
        self.lost == 0 && !self.queued && self.behind == 0
    }
}

/// How much memory is filled with.
struct Memory {
    /// Twice as many users register: what the second half adds counts.
    registrations: usize,
    calls: u32,
    /// Per second.
    rate: f64,
    /// How long transactions are kept after their end: 32 s by RFC 3261's timer J.
    rest: Duration,
}

impl Memory {
    const FULL: Self =
        Self { registrations: 10_000, calls: 2000, rate: 500.0, rest: Duration::from_secs(36) };
    const QUICK: Self =
        Self { registrations: 5000, calls: 1000, rate: 1000.0, rest: Duration::from_secs(6) };
}

/// Time that the host has taken from the proxy and from its peers.
fn stolen() -> Result<Duration> {
    Ok(machine::stolen(PROXY_CPU)? + machine::stolen(GENERATOR_CPU)?)
}

/// What was stolen up to the start of each window, and to the end of the last: in which windows, and in those beside them,
/// that was nothing.
fn quiet(stolen: &[Duration]) -> Vec<bool> {
    let none: Vec<bool> = stolen.windows(2).map(|pair| pair[0] == pair[1]).collect();
    (0..none.len())
        .map(|at| none[at.saturating_sub(1)..(at + 2).min(none.len())].iter().all(|none| *none))
        .collect()
}

/// In microseconds, of sorted nanoseconds.
fn percentile(sorted: &[u64], share: f64) -> f64 {
    let at = (sorted.len() as f64 * share) as usize;
    sorted.get(at.min(sorted.len().saturating_sub(1))).map_or(0.0, |ns| *ns as f64 / 1e3)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_beside_a_disturbed_one_do_not_count() {
        let stolen = [0, 0, 0, 10, 10, 10, 10, 30].map(Duration::from_millis);
        assert_eq!(quiet(&stolen), [true, false, false, false, true, false, false]);
        let window = |high, quiet| Window { middle: 1.0, high, quiet };
        let mut delay = Delay::default();
        delay.windows.extend([window(9.0, false); 5]);
        delay.windows.extend([window(2.0, true); FEWEST - 1]);
        assert_eq!(delay.high(), 9.0, "too few");
        delay.windows.push(window(2.0, true));
        assert_eq!(delay.high(), 2.0);
    }

    #[test]
    fn percentiles_are_of_the_sorted() {
        let sorted: Vec<u64> = (1..=100).map(|n| n * 1000).collect();
        assert_eq!((percentile(&sorted, 0.5), percentile(&sorted, 0.99)), (51.0, 100.0));
        assert_eq!(percentile(&[], 0.99), 0.0);
    }
}
