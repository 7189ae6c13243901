//! `system`: sipline with XDP and without, and Kamailio with transactions and without, as whole systems: all that a
//! message costs from the interface's ring to the next one's.
//!
//! docs/performance.md says how it is measured.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Write as _;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use aya::Ebpf;
use aya::programs::XdpMode;
use serde::Serialize;
use sip_user::fastpath::object::{self, Build, Options, REFLECT};
use sipline_tests::fixtures::world::{PBX1, PBX2};
use sipline_tests::kernel;
use sipline_tests::lab::{INTERFACES, Lab, Mode, PORT, PROXY, Place};

use super::contender::{Contender, thread_interfaces};
use super::generator::Generator;
use super::server::{Server, Tuning};
use super::{
    Bench, Delay, Effort, GENERATOR_CPU, Operation, PATIENCE, PROXY_CPU, Scenario, USERS, server,
};
use crate::calls::{Calls, Macs, STAGES, Turns};
use crate::pktgen::{self, Load, Mix};
use crate::shield::Shield;
use crate::wire::{Awake, cpu_time};
use crate::{machine, report, wire};

/// Compares systems: CPU, rate and delay.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Write the rows as JSON to this file too
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// Write the table into docs/performance.md
    #[arg(long)]
    docs: bool,
    /// Shorter windows and coarser steps
    #[arg(long)]
    quick: bool,
    /// Only at equal rates, not at each one's best
    #[arg(long)]
    no_best: bool,
    /// Only this work
    #[arg(long, value_name = "NAME")]
    work: Option<Only>,
    /// Only this one; may be given more than once
    #[arg(long = "only", value_name = "NAME")]
    only: Vec<Contender>,
    /// OPTIONS per second at which all are compared
    #[arg(long, default_value_t = 10_000.0)]
    options_rate: f64,
    /// Calls per second at which all are compared
    #[arg(long, default_value_t = 1000.0)]
    call_rate: f64,
    /// Kamailio's processes that receive
    #[arg(long, default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..=64))]
    children: u32,
}

/// One kind of work.
#[derive(Clone, Copy, Debug, Eq, PartialEq, clap::ValueEnum)]
enum Only {
    Options,
    Call,
}

const CONTENDERS: [Contender; 5] = [
    Contender::Native,
    Contender::NativeUnwatched,
    Contender::Off,
    Contender::Kamailio,
    Contender::KamailioStateless,
];

/// How long live frames are sent.
const LIVE: Duration = Duration::from_secs(2);

/// Calls of a burst of live frames: an odd number, so that it shows who has had them. The daemon keeps 100,000 INVITEs until
/// it has looked after them.
const BURST: u32 = 60_001;
/// How many bursts.
const BURSTS: u32 = 4;
/// When the daemon has looked after the last call (`dispatch.answer_timeout`, and some time).
const LOOKED_AFTER: Duration = Duration::from_secs(4);
/// After so long, nothing is sent again for a call that nobody answers: 64 T1, and what is before.
const QUIET: Duration = Duration::from_secs(40);
/// Their numbers are like nothing else in a message.
const FIRST_CALL: u32 = 0xC0DE_0000;

/// What is done with each.
struct Work {
    name: &'static str,
    operation: Operation,
    /// Datagrams of it that the proxy receives.
    packets: f64,
    /// The highest rate that the generator is asked for at first.
    most: f64,
    /// Who is compared with us, and by how much less we are to take.
    targets: &'static [(Contender, f64)],
}

const WORK: [Work; 2] = [
    Work {
        name: "OPTIONS",
        operation: Operation::Options,
        packets: 1.0,
        most: 100_000.0,
        targets: &[(Contender::Kamailio, 15.0)],
    },
    Work {
        name: "trusted call",
        operation: Operation::Call,
        // INVITE, 100, 180, 200, ACK, BYE, 200.
        packets: 7.0,
        most: 8000.0,
        targets: &[(Contender::Kamailio, 25.0), (Contender::KamailioStateless, 12.0)],
    },
];

/// Microseconds.
#[derive(Clone, Debug, Serialize)]
struct Delays {
    p50_us: f64,
    p99_us: f64,
}

impl From<Delay> for Delays {
    fn from(delay: Delay) -> Self {
        Self { p50_us: delay.middle(), p99_us: delay.high() }
    }
}

/// One contender at one kind of work.
#[derive(Clone, Debug, Serialize)]
struct Row {
    work: &'static str,
    contender: Option<Contender>,
    name: String,
    /// Operations per second at which all were compared.
    rate: f64,
    /// CPU time of an operation at that rate.
    us: f64,
    /// The same less what reflectors take for as many packets at that rate of packets.
    net_us: f64,
    /// What else ran on the proxy's CPU meanwhile, by operation: what the row would miss.
    other_us: f64,
    /// At that rate.
    delay: Delays,
    /// The least CPU time of an operation that was seen at any rate that was held.
    best_us: Option<f64>,
    /// Operations per second that were held.
    highest: Option<f64>,
    /// The generator could not do more.
    limited: bool,
    /// Datagrams that a CPU would take in a second at the best.
    packets_per_core: Option<f64>,
    /// Delay at 70 % of the highest rate.
    delay_at_most: Option<Delays>,
}

/// A comparison that is to hold.
#[derive(Clone, Debug, Serialize)]
struct Ratio {
    what: String,
    /// Theirs by ours.
    times: f64,
    target: f64,
    holds: bool,
}

/// Runs the comparison.
pub(crate) fn run(args: &Args) -> Result<()> {
    ensure!(machine::cpus() >= 2, "two CPUs are needed: one for the proxy, one for its peers");
    eprintln!("{}", machine::describe());
    machine::pin(0, GENERATOR_CPU)?;
    // Until this returns, however it does, as `awake`.
    let _shield = Shield::start(PROXY_CPU)?;
    let database = server::database(USERS as u32)?;
    let lab = Lab::new()?;
    let threads = thread_interfaces(&lab, false)?;
    let awake = Awake::start(PROXY_CPU)?;
    let generator = Generator::new(&lab, USERS)?;
    machine::favour(0, 1)?;
    let mut effort = Effort::new(args.quick);
    if args.quick {
        effort.step = Duration::from_secs(3);
    }
    let mut bench = Bench {
        lab,
        database,
        generator,
        effort,
        tuning: Tuning { children: args.children, write_behind: false },
        rate: 0.0,
        busy: HashMap::new(),
        rows: Vec::new(),
        threads,
    };
    let mut rows: Vec<Row> = Vec::new();
    let mut failed = Vec::new();
    for work in &WORK {
        bench.rate = match work.operation {
            Operation::Options => args.options_rate,
            _ => args.call_rate,
        };
        let wanted = match args.work {
            None => true,
            Some(Only::Options) => work.operation == Operation::Options,
            Some(Only::Call) => work.operation == Operation::Call,
        };
        if !wanted {
            continue;
        }
        let zero = bench.reflected(work, &awake, !args.no_best)?;
        let floor = zero.us;
        rows.push(zero);
        for contender in CONTENDERS {
            // Shadows are of calls.
            let same = contender == Contender::NativeUnwatched && work.operation != Operation::Call;
            if same || !args.only.is_empty() && !args.only.contains(&contender) {
                continue;
            }
            // What can be measured is, also when something else cannot.
            match bench.contender(work, contender, &awake, floor, !args.no_best) {
                Ok(row) => rows.push(row),
                Err(error) => {
                    eprintln!("{}, {}: FAILED: {error:#}", work.name, contender.name());
                    failed.push(format!("{}, {}", work.name, contender.name()));
                }
            }
            let ratios = ratios(&rows);
            if let Some(file) = &args.json {
                let all = serde_json::json!({ "rows": rows, "ratios": ratios });
                let text = serde_json::to_string_pretty(&all)?;
                fs::write(file, text + "\n")
                    .with_context(|| format!("cannot write {}", file.display()))?;
            }
        }
    }
    let text = table(&rows);
    print!("{text}");
    if args.docs {
        let how = if args.quick { "`--quick`, one run" } else { "one run" };
        report::replace("system", &format!("{}; {how}.\n\n{text}", machine::describe()))?;
    }
    ensure!(failed.is_empty(), "not measured: {}", failed.join("; "));
    Ok(())
}

impl Bench {
    /// The zero line: packets that are turned round unread.
    fn reflected(&mut self, work: &Work, awake: &Awake, best: bool) -> Result<Row> {
        // A reflector does not tell who it is when it is asked (ARP).
        let near = self.mac(Place::Proxy, "ph")?;
        let known = ["neigh", "replace", "10.10.1.1", "lladdr", &near, "dev", "eth0"];
        self.lab.run(Place::Phones, "ip", &known)?;
        let _reflector = kernel::in_namespace(&self.lab.namespace_file(Place::Proxy), || {
            let load = |build| -> Result<Ebpf> {
                let mut ebpf = object::maps(build, &Options::new(1))?;
                let program = object::program(&mut ebpf, REFLECT)?;
                for interface in INTERFACES {
                    program.attach(interface, XdpMode::Driver)?;
                }
                Ok(ebpf)
            };
            let [first, second] = Build::ALL;
            load(first).or_else(|_| load(second))
        })?;
        self.generator.forget();
        // As many packets as the work is, in OPTIONS.
        let rate = self.rate;
        self.rate = rate * work.packets;
        let measured = self.watched(&WORK[0], awake, None);
        self.rate = rate;
        let (delay, us, other_us) = measured?;
        let (us, other_us) = (us * work.packets, other_us * work.packets);
        let best = match work.operation {
            Operation::Call if best => self.live_calls(None, false)?,
            _ => None,
        };
        let row = Row {
            work: work.name,
            contender: None,
            name: "plain reflector".to_owned(),
            rate: self.rate,
            us,
            net_us: 0.0,
            other_us,
            delay,
            best_us: best.map(|(us, _)| us),
            highest: best.map(|(_, rate)| rate),
            limited: best.is_some(),
            packets_per_core: best.map(|(us, _)| work.packets * 1e6 / us),
            delay_at_most: None,
        };
        eprintln!("{row:?}");
        Ok(row)
    }

    /// Delay and CPU time at the common rate, and what else ran on that CPU, by operation.
    fn watched(
        &mut self,
        work: &Work,
        awake: &Awake,
        server: Option<&Server>,
    ) -> Result<(Delays, f64, f64)> {
        let used = |bench: &Self| match server {
            Some(server) => server.cpu(),
            None => bench.threads.iter().map(|thread| cpu_time(*thread)).sum(),
        };
        let (start, stolen, spare, before) =
            (Instant::now(), machine::stolen(PROXY_CPU)?, awake.spare()?, used(self)?);
        let delay = self.delay_at(self.rate, work.operation)?;
        let used = used(self)? - before;
        let rest = (awake.spare()? - spare) + (machine::stolen(PROXY_CPU)? - stolen) + used;
        let elapsed = start.elapsed();
        let done = self.generator.counts().succeeded;
        ensure!(done > 0, "nothing succeeds: {:?}", self.generator.counts());
        if delay.lost > 0 {
            eprintln!("  {} lost at {:.0}/s", delay.lost, self.rate);
        }
        let each = |time: Duration| time.as_secs_f64() * 1e6 / done as f64;
        Ok((delay.into(), each(used), each(elapsed.saturating_sub(rest))))
    }

    fn contender(
        &mut self,
        work: &Work,
        contender: Contender,
        awake: &Awake,
        floor: f64,
        best: bool,
    ) -> Result<Row> {
        let (name, proxy) = (contender.name(), contender.proxy());
        let setting = contender.setting(false);
        let scenario = Scenario { name, operation: work.operation, setting, known: false };
        eprintln!("{}, {name}", work.name);
        let mut server = self.start(&scenario, proxy)?;
        let (delay, us, other_us) = self.watched(work, awake, Some(&server))?;
        let mut row = Row {
            work: work.name,
            contender: Some(contender),
            name: name.to_owned(),
            rate: self.rate,
            us,
            net_us: us - floor,
            other_us,
            delay,
            best_us: None,
            highest: None,
            limited: false,
            packets_per_core: None,
            delay_at_most: None,
        };
        if best {
            let guess = (0.6e6 / us).min(work.most);
            let highest = self.highest(&mut server, &scenario, proxy, guess)?;
            let mut best = highest.best.min(us);
            (row.highest, row.limited) = (Some(highest.rate), highest.limited);
            row.delay_at_most = Some(self.delay_at(highest.rate * 0.7, work.operation)?.into());
            // More than sockets can ask for.
            let setting = contender.setting(false);
            if setting.mode == Mode::Native && work.operation == Operation::Call {
                // What it still does for calls that were lost, also at its start, would be among what is counted.
                server.stop()?;
                server = self.start(&scenario, proxy)?;
                self.generator.run(if setting.shadow { QUIET } else { LOOKED_AFTER });
            }
            let live = match work.operation {
                _ if setting.mode != Mode::Native => None,
                Operation::Options => Some(self.live(&server)?),
                _ => self.live_calls(Some(&server), setting.shadow)?,
            };
            if let Some((us, rate)) = live {
                eprintln!("  live frames: {rate:.0}/s, {us:.2} us each");
                best = best.min(us);
                row.highest = row.highest.map(|highest| highest.max(rate));
                row.limited = true;
            }
            row.best_us = Some(best);
            row.packets_per_core = Some(work.packets * 1e6 / best);
        }
        server.check()?;
        server.stop()?;
        eprintln!("{row:?}");
        Ok(row)
    }

    /// The hardware address of an interface.
    fn mac(&self, place: Place, interface: &str) -> Result<String> {
        let link = self.lab.run(place, "ip", &["-o", "link", "show", interface])?;
        let mac = link.split_whitespace().skip_while(|word| *word != "link/ether").nth(1);
        mac.map(str::to_owned).with_context(|| format!("{interface} has no hardware address"))
    }

    /// OPTIONS by live frames, as many as the generator's CPU makes: CPU time of each, and how many in a second.
    fn live(&mut self, server: &Server) -> Result<(f64, f64)> {
        let to_mac =
            pktgen::parse_mac(&self.mac(Place::Proxy, "ph")?).map_err(anyhow::Error::msg)?;
        let from = format!("{}:{PORT}", Place::Phones.address()).parse()?;
        let to = format!("{PROXY}:{PORT}").parse()?;
        let before = server.cpu()?;
        let totals = kernel::in_namespace(&self.lab.namespace_file(Place::Phones), || {
            wire::own_sysfs()?;
            let mix: Mix = "options=1".parse().map_err(anyhow::Error::msg)?;
            let frames = mix.frames((from, pktgen::own_mac("eth0")?), (to, to_mac), &[]);
            let load = Load { interface: "eth0", rate: 0.0, sources: 1, time: LIVE };
            pktgen::send(&frames, &load, false)
        })?;
        let used = server.cpu()? - before;
        // What came to the phones' sockets is nobody's.
        self.generator.begin(Operation::Options, 1.0, 0);
        self.generator.run(PATIENCE);
        ensure!(totals.received > 0, "no OPTIONS was answered");
        Ok((
            used.as_secs_f64() * 1e6 / totals.received as f64,
            totals.received as f64 / LIVE.as_secs_f64(),
        ))
    }
}

impl Bench {
    /// Trusted calls by live frames: CPU time of each, and how many in a second, of bursts in which every frame went as it
    /// should. Without a server, a reflector gets the same frames.
    fn live_calls(&mut self, server: Option<&Server>, watched: bool) -> Result<Option<(f64, f64)>> {
        self.lab.pass_everything(false)?;
        let done = self.bursts(server, watched);
        self.lab.pass_everything(true)?;
        done
    }

    fn bursts(&mut self, server: Option<&Server>, watched: bool) -> Result<Option<(f64, f64)>> {
        let mut number = FIRST_CALL;
        let mut pause = 0;
        let mut turns = [(0, PBX1), (1, PBX2)];
        if server.is_some() {
            for ((slot, _), pbx) in turns.iter_mut().zip([Place::Pbx1, Place::Pbx2]) {
                *slot = self.lab.control()?.backend(pbx)?.slot;
            }
        }
        let (mut us, mut rate) = (f64::MAX, 0_f64);
        for _ in 0..BURSTS {
            // Whose turn it is is seen at a single call: the next one has the other PBX.
            if self.burst(server, watched, (turns, number, 1), pause)?.at_first > 0 {
                turns.reverse();
            }
            let burst = self.burst(server, watched, (turns, number + 1, BURST), pause)?;
            eprintln!(
                "  {} of {} frames of calls came out, {:.0} calls/s, {:.2} us each, {:.2} of them at once; {} INVITEs at the \
                 PBX whose turn was first",
                burst.out, burst.sent, burst.rate, burst.us, burst.us_at_once, burst.at_first
            );
            number += 1 + BURST;
            if burst.whole {
                us = us.min(burst.us);
                rate = rate.max(burst.rate);
            } else {
                eprintln!("  not whole: {:?}", burst.counted);
                // A third slower.
                pause = (1.33e9 / (burst.rate * STAGES as f64)) as u64;
            }
        }
        // None of them, and sockets' figures are all that there is.
        Ok((rate > 0.0).then_some((us, rate)))
    }

    /// So many calls at once, from a first number on.
    fn burst(
        &mut self,
        server: Option<&Server>,
        watched: bool,
        (turns, first, count): (Turns, u32, u32),
        pause: u64,
    ) -> Result<Burst> {
        let mac = |place, interface: &str| {
            pktgen::parse_mac(&self.mac(place, interface)?).map_err(anyhow::Error::msg)
        };
        let places = [Place::Phones, Place::Pbx1, Place::Pbx2];
        let mut macs = Macs::default();
        for (macs, (place, interface)) in macs.iter_mut().zip(places.into_iter().zip(INTERFACES)) {
            *macs = (mac(Place::Proxy, interface)?, mac(place, "eth0")?);
        }
        let mut sender = Calls::new(&macs, turns, first, count)?.load(pause)?;
        for (side, place) in places.into_iter().enumerate() {
            let namespace = self.lab.namespace_file(place);
            kernel::in_namespace(&namespace, || sender.join(side, "eth0"))?;
        }
        let used = |bench: &Self| match server {
            Some(server) => server.cpu(),
            None => bench.threads.iter().map(|thread| cpu_time(*thread)).sum(),
        };
        let (counted, before) = (self.counted(server)?, used(self)?);
        let phones = self.lab.namespace_file(Place::Phones);
        let sent = kernel::in_namespace(&phones, || sender.send("eth0"))?;
        let at_once = used(self)? - before;
        // Until the daemon has looked after all of them.
        self.generator.begin(Operation::Options, 1.0, 0);
        if server.is_some() && count > 1 {
            self.generator.run(LOOKED_AFTER);
        }
        let all = used(self)? - before;
        let after = self.counted(server)?;
        let counted: BTreeMap<String, u64> = after
            .into_iter()
            .map(|(name, n)| {
                (name.clone(), n.saturating_sub(counted.get(&name).copied().unwrap_or(0)))
            })
            .filter(|(_, n)| *n > 0)
            .collect();
        let n = u64::from(count);
        let wanted = [
            ("kernel.invite_steered", n),
            ("kernel.response_forwarded", 4 * n),
            ("kernel.dialog_to_pbx", 2 * n),
            ("kernel.shadow_copied", if watched { n } else { 0 }),
            ("kernel.shadow_ring_full", 0),
            ("daemon.shadows_full", 0),
        ];
        let right = |(name, n): &(&str, u64)| counted.get(*name).copied().unwrap_or(0) == *n;
        let right = server.is_none() || wanted.iter().all(right);
        // Of both PBXs together: where the order of turns has changed meanwhile, an INVITE comes to the one that does not answer
        // it here, which is the same work.
        let side = |at: usize| usize::from(turns[at].1.ip().octets()[2]) - 1;
        let mut arrived = sender.at(0, b'S')? == 4 * n;
        for letter in *b"IAB" {
            arrived &= sender.at(1, letter)? + sender.at(2, letter)? == n;
        }
        let arrived = server.is_none() || arrived;
        let us = |time: Duration| time.as_secs_f64() * 1e6 / n as f64;
        Ok(Burst {
            whole: sent.frames == n * STAGES as u64 && sent.out == sent.frames && right && arrived,
            us: us(all),
            us_at_once: us(at_once),
            rate: n as f64 / sent.time.as_secs_f64(),
            at_first: sender.at(side(0), b'I')?,
            sent: sent.frames,
            out: sent.out,
            counted,
        })
    }

    /// What a daemon has counted.
    fn counted(&self, server: Option<&Server>) -> Result<BTreeMap<String, u64>> {
        let mut counted = BTreeMap::new();
        if server.is_some() {
            let stats = self.lab.control()?.ask("stats")?;
            for part in ["kernel", "daemon"] {
                let counters = stats[part].as_object().context("no counters")?;
                let counters = counters.iter().filter_map(|(name, n)| Some((name, n.as_u64()?)));
                counted.extend(counters.map(|(name, n)| (format!("{part}.{name}"), n)));
            }
        }
        Ok(counted)
    }
}

/// What became of a burst of calls.
struct Burst {
    /// All frames of all calls went as they should.
    whole: bool,
    /// CPU time of a call.
    us: f64,
    /// The part of it before the last frame came out.
    us_at_once: f64,
    /// Calls in a second, while they came.
    rate: f64,
    /// INVITEs that came to the PBX whose turn was first.
    at_first: u64,
    /// Frames that were sent, and that came out.
    sent: u64,
    out: u64,
    /// What the daemon has counted meanwhile.
    counted: BTreeMap<String, u64>,
}

/// How much less we take, of all that was measured of both.
fn ratios(rows: &[Row]) -> Vec<Ratio> {
    let find = |work: &Work, contender| {
        rows.iter().find(|row| row.work == work.name && row.contender == Some(contender))
    };
    let mut ratios = Vec::new();
    for work in &WORK {
        let Some(ours) = find(work, Contender::Native) else { continue };
        for (other, target) in work.targets {
            let Some(theirs) = find(work, *other) else { continue };
            let mut add = |at: String, ours: f64, theirs: f64| {
                let times = theirs / ours;
                let what = format!("{}, {}, {at}", work.name, other.name());
                ratios.push(Ratio { what, times, target: *target, holds: times >= *target });
            };
            let at = format!("at {:.0}/s", ours.rate);
            // Where nothing is left of ours, there is no ratio.
            if ours.net_us > 0.0 {
                add(format!("{at}, less the reflector's"), ours.net_us, theirs.net_us);
            }
            add(at, ours.us, theirs.us);
            if let Some((ours, theirs)) = ours.best_us.zip(theirs.best_us) {
                add("at each one's best".to_owned(), ours, theirs);
            }
        }
    }
    ratios
}

/// For people, and for Markdown.
fn table(rows: &[Row]) -> String {
    let mut out = String::new();
    for work in &WORK {
        let rows: Vec<&Row> = rows.iter().filter(|row| row.work == work.name).collect();
        let Some(first) = rows.first() else { continue };
        // Writing into a String cannot fail.
        let _ = writeln!(
            out,
            "| {} | us at {:.0}/s | less reflector | other | p50 | p99 | us at best | highest | packets per core | p50 at 70 % | p99 at 70 % |\n\
             | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
            work.name, first.rate
        );
        for row in rows {
            let number = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{v:.0}"));
            let bound = if row.limited { "> " } else { "" };
            let most = row.delay_at_most.as_ref();
            let _ = writeln!(
                out,
                "| {} | {:.2} | {:.2} | {:.2} | {:.0} | {:.0} | {} | {bound}{} | {} | {} | {} |",
                row.name,
                row.us,
                row.net_us,
                row.other_us,
                row.delay.p50_us,
                row.delay.p99_us,
                row.best_us.map_or("-".to_owned(), |us| format!("{us:.2}")),
                number(row.highest),
                number(row.packets_per_core),
                number(most.map(|delay| delay.p50_us)),
                number(most.map(|delay| delay.p99_us)),
            );
        }
        out.push('\n');
    }
    out.push_str("| with XDP, how many times less than | times | at least | holds |\n");
    out.push_str("| --- | ---: | ---: | --- |\n");
    for Ratio { what, times, target, holds } in ratios(rows) {
        let holds = if holds { "yes" } else { "**no**" };
        let _ = writeln!(out, "| {what} | {times:.1} | {target:.0} | {holds} |");
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(work: &'static str, contender: Contender, us: f64, best: f64) -> Row {
        Row {
            work,
            contender: Some(contender),
            name: contender.name().to_owned(),
            rate: 1000.0,
            us,
            net_us: us - 1.0,
            other_us: 0.0,
            delay: Delays { p50_us: 1.0, p99_us: 2.0 },
            best_us: Some(best),
            highest: Some(5000.0),
            limited: contender == Contender::Native,
            packets_per_core: None,
            delay_at_most: None,
        }
    }

    #[test]
    fn a_missed_target_is_said() {
        let rows = [
            row("OPTIONS", Contender::Native, 2.0, 1.0),
            row("OPTIONS", Contender::Kamailio, 20.0, 15.0),
        ];
        let ratios = ratios(&rows);
        assert_eq!(ratios.iter().map(|r| r.holds).collect::<Vec<_>>(), [true, false, true]);
        assert_eq!((ratios[0].times, ratios[1].times), (19.0, 10.0));
        let text = table(&rows);
        assert!(text.contains("| OPTIONS, Kamailio, at 1000/s | 10.0 | 15 | **no** |"), "{text}");
        assert!(text.contains("| > 5000 |"), "{text}");
    }

    #[test]
    fn what_was_not_measured_is_not_compared() {
        assert!(ratios(&[row("OPTIONS", Contender::Kamailio, 1.0, 1.0)]).is_empty());
    }
}
