//! The two builds of the kernel program, and how one gets into the kernel.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::thread;

use anyhow::{Context, Result, anyhow, bail};
use aya::maps::ProgramArray;
use aya::programs::{Program, ProgramError, Xdp};
use aya::{Ebpf, EbpfLoader};
use sip_ebpf::tables;
use tracing::info;

use crate::config::Loops;

/// The program that is attached.
pub const PROGRAM: &str = "sipline";

/// What that one jumps to, to ask for credentials.
pub const CHALLENGE: &str = "sipline_challenge";

/// What that one jumps to, to answer PBXs that ask for users.
pub const QUALIFY: &str = "sipline_qualify";

/// What that one jumps to, to tell what becomes of calls.
pub const REPORT: &str = "sipline_report";

/// What the first one jumps to with IPv6, up to the scan of the message.
pub const SIX: &str = "sipline_six";

/// What that one jumps to with a request.
pub const SIX_REQUEST: &str = "sipline_six_request";

/// What that one jumps to with a response.
pub const SIX_RESPONSE: &str = "sipline_six_response";

/// What those jump to, to tell what becomes of calls.
pub const SIX_REPORT: &str = "sipline_six_report";

/// What the one for requests jumps to, to find out whether to ask for credentials.
pub const SIX_CHALLENGE: &str = "sipline_six_challenge";

/// What that one jumps to, to ask.
pub const SIX_ASK: &str = "sipline_six_ask";

/// What the one for requests jumps to, to answer PBXs that ask for users.
pub const SIX_QUALIFY: &str = "sipline_six_qualify";

const PROGRAMS: &str = "PROGRAMS";

/// The scanner alone, for tests and benches.
pub const SCAN: &str = "sipline_scan";

/// A program that drops everything: the least there can be, for tests and benches.
pub const DROP: &str = "bench_drop";

/// A plain reflector, for benches.
pub const REFLECT: &str = "bench_reflect";

/// A load balancer of layer 4, for benches.
pub const L4: &str = "bench_l4";

/// Sends what `BENCH_FRAME` holds: a generator, and what putting the frame there costs.
pub const FLOOR: &str = "bench_floor";

/// Sends frames in turns, at a rate: a generator.
pub const PKTGEN: &str = "bench_pktgen";

/// Sends whole calls: a generator.
pub const CALLS: &str = "bench_calls";

/// Counts and drops what comes out of them.
pub const SINK: &str = "bench_sink";

static MAY_GOTO: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sipline-xdp.may_goto.o"));
static BPF_LOOP: &[u8] =
    aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/sipline-xdp.bpf_loop.o"));

/// How the loops of a build end.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Build {
    /// By `may_goto` (kernel 6.9).
    MayGoto,
    /// By `bpf_loop` (kernel 5.17), slower.
    BpfLoop,
}

impl Build {
    /// Both, the better first.
    pub const ALL: [Self; 2] = [Self::MayGoto, Self::BpfLoop];

    /// The name in the configuration and in the object's file name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::MayGoto => "may_goto",
            Self::BpfLoop => "bpf_loop",
        }
    }

    const fn bytes(self) -> &'static [u8] {
        match self {
            Self::MayGoto => MAY_GOTO,
            Self::BpfLoop => BPF_LOOP,
        }
    }

    const fn candidates(loops: Loops) -> &'static [Self] {
        match loops {
            Loops::Auto => &Self::ALL,
            Loops::MayGoto => &[Self::MayGoto],
            Loops::BpfLoop => &[Self::BpfLoop],
        }
    }
}

/// What is settled before the program is loaded.
#[derive(Clone, Debug)]
pub struct Options {
    /// Buckets of `CALLS`, a power of two.
    pub call_buckets: u32,
    /// Whether the program writes logs; when not, the verifier removes that code.
    pub log: bool,
    /// Maps that are taken from their pins, by name; all others are made.
    pub pinned: BTreeMap<&'static str, PathBuf>,
    /// For benches only.
    pub bench: Bench,
}

impl Options {
    /// A program that writes no logs, with maps of its own.
    pub fn new(call_buckets: u32) -> Self {
        Self { call_buckets, log: false, pinned: BTreeMap::new(), bench: Bench::default() }
    }
}

/// Makes the program put the frame in `BENCH_FRAME` over each packet before it looks at it.
#[derive(Clone, Copy, Debug, Default)]
pub struct Bench {
    /// Length of that frame; 0: no bench.
    pub length: u32,
    /// Where in it eight bytes get another value each time; 0: nowhere.
    pub vary: u32,
    /// Of [`PKTGEN`], how many frames take turns, nanoseconds from one to the next, and when by CLOCK_MONOTONIC it ends.
    pub pktgen: (u32, u64, u64),
    /// Of [`PKTGEN`], how many addresses frames come from, a power of two; 0 is one.
    pub sources: u32,
    /// Of [`CALLS`], how many. Their frames are as far apart as those of [`PKTGEN`].
    pub calls: u32,
}

/// Makes the maps of a build, or takes them from their pins. No program is verified yet.
///
/// # Errors
/// When the kernel refuses a map, for want of a privilege for example.
pub fn maps(build: Build, options: &Options) -> Result<Ebpf> {
    let mut loader = EbpfLoader::new();
    loader.map_max_entries("CALLS", options.call_buckets);
    loader.map_max_entries("CALL_TAGS", options.call_buckets);
    let log = u8::from(options.log);
    loader.override_global("LOG", &log, true);
    let level = if options.log { aya_log::Level::Trace as u8 } else { 0 };
    // The object has no such symbol when nothing in it logs.
    loader.override_global(aya_log::LEVEL, &level, false);
    loader.override_global("BENCH", &options.bench.length, true);
    loader.override_global("BENCH_VARY", &options.bench.vary, true);
    let (turns, pause, end) = &options.bench.pktgen;
    loader.map_max_entries("BENCH_CALLS", options.bench.calls.max(1));
    loader.override_global("BENCH_COUNT", &options.bench.calls, true);
    loader.override_global("BENCH_TURNS", turns, true);
    loader.override_global("BENCH_PAUSE", pause, true);
    let sources = options.bench.sources.max(1);
    loader.override_global("BENCH_SOURCES", &sources, true);
    loader.override_global("BENCH_END", end, true);
    for (name, path) in &options.pinned {
        loader.map_pin_path(name, path.as_path());
    }
    loader
        .load(build.bytes())
        .with_context(|| format!("the kernel refuses the maps of the {} build", build.name()))
}

/// Gets one program of an object through the verifier.
///
/// # Errors
/// What the verifier says, its last lines only: the whole log can be megabytes.
pub fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    let program =
        ebpf.program_mut(name).with_context(|| format!("the object has no program {name}"))?;
    verify(program)?;
    Ok(program.try_into()?)
}

/// Programs that others cannot jump to, and why. What [`CHALLENGE`] and [`QUALIFY`] and those of IPv6 would answer goes up; what
/// [`REPORT`] would tell is lost.
pub type Missing = Vec<(&'static str, anyhow::Error)>;

/// Loads the programs of IPv4 in the first build that `loops` allows and of which the kernel accepts [`PROGRAM`].
///
/// # Errors
/// When the kernel accepts none, with the reason for each.
pub fn load(loops: Loops, options: &Options) -> Result<(Build, Ebpf, Missing)> {
    let mut reasons = Vec::new();
    for &build in Build::candidates(loops) {
        let mut ebpf = maps(build, options)?;
        match load_four(&mut ebpf) {
            Ok(missing) => return Ok((build, ebpf, missing)),
            Err(error) => {
                info!(build = build.name(), reason = %error, "build not accepted");
                reasons.push(format!("{}: {error:#}", build.name()));
            }
        }
    }
    bail!("the kernel accepts no build of the program: {}", reasons.join("; "))
}

/// Gets [`PROGRAM`] and what it jumps to with IPv4 through the verifier.
///
/// # Errors
/// As [`program`], for the first one.
pub fn load_four(ebpf: &mut Ebpf) -> Result<Missing> {
    let [first, challenge, qualify, report] =
        verify_all(ebpf, [PROGRAM, CHALLENGE, QUALIFY, REPORT]);
    first?;
    let next = [
        (challenge, CHALLENGE, tables::program::CHALLENGE),
        (qualify, QUALIFY, tables::program::QUALIFY),
        (report, REPORT, tables::program::REPORT),
    ];
    Ok(show_all(ebpf, next))
}

/// The same for those of IPv6: all of them, or IPv6 goes up, but for what answers in the daemon's name.
///
/// # Errors
/// As [`program`].
pub fn load_six(ebpf: &mut Ebpf) -> Result<Missing> {
    let [report, response, request, six, ask, challenge, qualify] = verify_all(
        ebpf,
        [SIX_REPORT, SIX_RESPONSE, SIX_REQUEST, SIX, SIX_ASK, SIX_CHALLENGE, SIX_QUALIFY],
    );
    for verdict in [report, response, request, six] {
        verdict?;
    }
    let next = [
        (ask, SIX_ASK, tables::program::SIX_ASK),
        (challenge, SIX_CHALLENGE, tables::program::SIX_CHALLENGE),
        (qualify, SIX_QUALIFY, tables::program::SIX_QUALIFY),
    ];
    let missing = show_all(ebpf, next);
    show(ebpf, SIX_REPORT, tables::program::SIX_REPORT)?;
    show(ebpf, SIX_RESPONSE, tables::program::SIX_RESPONSE)?;
    show(ebpf, SIX_REQUEST, tables::program::SIX_REQUEST)?;
    // Last, for nobody comes to the others but by this one.
    show(ebpf, SIX, tables::program::SIX)?;
    Ok(missing)
}

/// Lets the others jump to those that the verifier has accepted; gives the rest.
fn show_all<const N: usize>(
    ebpf: &mut Ebpf,
    programs: [(Result<()>, &'static str, u32); N],
) -> Missing {
    let mut missing = Missing::new();
    for (verdict, name, key) in programs {
        if let Err(error) = verdict.and_then(|()| show(ebpf, name, key)) {
            missing.push((name, error));
        }
    }
    missing
}

/// Each in a thread of its own: one takes up to a second, and the kernel verifies as many at a time as there are CPUs.
fn verify_all<const N: usize>(ebpf: &mut Ebpf, names: [&str; N]) -> [Result<()>; N] {
    let mut verdicts = names.map(|name| Err(anyhow!("the object has no program {name}")));
    thread::scope(|scope| {
        let mut slots: HashMap<&str, &mut Result<()>> =
            names.into_iter().zip(&mut verdicts).collect();
        for (name, program) in ebpf.programs_mut() {
            if let Some(verdict) = slots.remove(name) {
                scope.spawn(move || *verdict = verify(program));
            }
        }
    });
    verdicts
}

fn verify(program: &mut Program) -> Result<()> {
    let program: &mut Xdp = program.try_into()?;
    program.load().map_err(|error| refused(&error))
}

/// Lets the others jump to a program that the verifier has accepted.
fn show(ebpf: &mut Ebpf, name: &str, key: u32) -> Result<()> {
    let program =
        ebpf.program(name).with_context(|| format!("the object has no program {name}"))?;
    let program: &Xdp = program.try_into()?;
    let fd = program.fd()?.try_clone()?;
    let map =
        ebpf.map_mut(PROGRAMS).with_context(|| format!("the object has no map {PROGRAMS}"))?;
    let mut programs = ProgramArray::try_from(map)?;
    programs.set(key, &fd, 0).context("cannot write PROGRAMS")
}

fn refused(error: &ProgramError) -> anyhow::Error {
    let ProgramError::LoadError { io_error, verifier_log } = error else {
        return anyhow!("{error}");
    };
    let log = format!("{verifier_log}");
    if log.trim().is_empty() {
        return match io_error.raw_os_error() {
            Some(libc::EPERM) => {
                anyhow!("{io_error}: loading XDP needs CAP_BPF and CAP_NET_ADMIN")
            }
            _ => anyhow!("{io_error}"),
        };
    }
    let lines: Vec<&str> = log.lines().collect();
    let tail = &lines[lines.len().saturating_sub(12)..];
    anyhow!("{io_error}; the verifier's last words: {}", tail.join(" | "))
}
