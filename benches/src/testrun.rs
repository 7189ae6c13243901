//! Nanoseconds per packet, by `BPF_PROG_TEST_RUN` with a repeat.
//!
//! A program that edits would work on what its last round left, so it is loaded to put a fresh frame
//! over the packet first. What that costs is measured too (`bench_floor` against `bench_drop`) and
//! taken off.

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use aya::maps::Array;
use aya::programs::{TestRun, TestRunOptions, Xdp, XdpMode};
use sip_ebpf::Reason;
use sip_ebpf::tables::DEFAULT_CALL_BUCKETS;
use sip_user::fastpath::object::{
    self, Bench, Build, DROP, FLOOR, L4, Options, PROGRAM, REFLECT, SCAN,
};
use sip_user::fastpath::tables::Tables;
use sipline_tests::fixtures::net;
use sipline_tests::fixtures::world::{KEY, World};

use crate::machine;
use crate::paths::{Path, Ports};
use crate::report::{Row, median};

/// Packets in one batch: short enough to end before the scheduler takes the CPU away.
const REPEAT: u32 = 1_500;

/// Batches in a run; the median of all batches of all runs counts.
const BATCHES: u32 = 10;

/// Rows of all denominators and paths, without their packets per second.
pub(crate) fn measure(
    build: Build,
    (paths, ports): (&[Path], Ports),
    runs: u32,
) -> Result<Vec<Row>> {
    with(ports, || {
        machine::pin(0, 0)?;
        machine::favour(0, 1)?;
        let mut rows = Vec::new();
        let plain = paths.first().context("no paths")?;
        let mut bare = load(build, Bench::default(), &[DROP, REFLECT, L4, SCAN, PROGRAM])?;
        for port in net::PORTS {
            program(&mut bare.ebpf, DROP)?.attach(port, XdpMode::Driver)?;
        }
        let verified = verified(&bare.ebpf, PROGRAM)?;
        for name in [DROP, REFLECT, L4] {
            let ns = runs_of(runs, || run(&bare.ebpf, name, plain.port, &plain.frame))?;
            let short = name.trim_start_matches("bench_");
            rows.push(Row::new(short, ns, self::verified(&bare.ebpf, name)?, None));
        }
        let scanned = paths.iter().find(|path| path.name == "invite_known").unwrap_or(plain);
        let ns = runs_of(runs, || run(&bare.ebpf, SCAN, scanned.port, &scanned.frame))?;
        rows.push(Row::new("scan_only", ns, self::verified(&bare.ebpf, SCAN)?, None));

        for path in paths {
            let bench =
                Bench { length: path.frame.len() as u32, vary: path.vary, ..Bench::default() };
            let mut loaded = load(build, bench, &[PROGRAM, FLOOR])?;
            fresh_frames(&mut loaded.ebpf, &path.frame)?;
            let mut samples = Vec::new();
            for _ in 0..runs * BATCHES {
                let before = count(&loaded.tables, path.reason)?;
                let whole = run(&loaded.ebpf, PROGRAM, path.port, &path.frame)?;
                let taken = count(&loaded.tables, path.reason)? - before;
                // The first INVITE of a known call is a new one.
                if taken + 1 < u64::from(REPEAT) {
                    bail!("{}: only {taken} of {REPEAT} packets took this path", path.name);
                }
                let floor = run(&loaded.ebpf, FLOOR, path.port, &path.frame)?;
                let least = run(&bare.ebpf, DROP, path.port, &path.frame)?;
                samples.push(whole - (floor - least).max(0.0));
            }
            rows.push(Row::new(path.name, median(&mut samples), verified, path.target));
        }
        Ok(rows)
    })
}

/// Runs `body` in a network of its own.
pub(crate) fn with<R: Send>(ports: Ports, body: impl FnOnce() -> Result<R> + Send) -> Result<R> {
    net::with(|| {
        if ports == Ports::One {
            net::put_behind_one_port();
        }
        body()
    })
}

/// An object with filled tables.
pub(crate) struct Loaded {
    pub(crate) ebpf: Ebpf,
    pub(crate) tables: Tables,
}

/// Loads programs of a build and fills the tables as the fixtures do.
pub(crate) fn load(build: Build, bench: Bench, programs: &[&str]) -> Result<Loaded> {
    let options = Options { bench, ..Options::new(DEFAULT_CALL_BUCKETS) };
    let mut ebpf = object::maps(build, &options)?;
    for name in programs {
        object::program(&mut ebpf, name)?;
    }
    let mut tables = Tables::new(&mut ebpf, KEY, DEFAULT_CALL_BUCKETS)?;
    tables.set_vlans(&net::vlans())?;
    World::default().write_to(&mut tables)?;
    Ok(Loaded { ebpf, tables })
}

/// Sets the frame that stands fresh in each round.
pub(crate) fn fresh_frames(ebpf: &mut Ebpf, frame: &[u8]) -> Result<()> {
    fresh_frame(ebpf, 0, frame)
}

/// Sets the frame that stands fresh in each round when it is its turn.
pub(crate) fn fresh_frame(ebpf: &mut Ebpf, turn: u32, frame: &[u8]) -> Result<()> {
    let map = ebpf.map_mut("BENCH_FRAME").context("the object has no BENCH_FRAME")?;
    let mut map: Array<_, [u8; 2048]> = Array::try_from(map)?;
    let mut bytes = [0; 2048];
    bytes.get_mut(..frame.len()).context("a frame is too long")?.copy_from_slice(frame);
    map.set(turn, bytes, 0)?;
    Ok(())
}

/// A loaded program.
pub(crate) fn program<'a>(ebpf: &'a mut Ebpf, name: &str) -> Result<&'a mut Xdp> {
    Ok(ebpf.program_mut(name).with_context(|| format!("no program {name}"))?.try_into()?)
}

/// How often a counter was counted.
pub(crate) fn count(tables: &Tables, reason: Reason) -> Result<u64> {
    tables.counters()?.get(reason as usize).copied().context("no such counter")
}

fn verified(ebpf: &Ebpf, name: &str) -> Result<u32> {
    let info = ebpf.program(name).with_context(|| format!("no program {name}"))?.info()?;
    info.verified_instruction_count().context("the kernel does not tell verified instructions")
}

fn runs_of(runs: u32, mut run: impl FnMut() -> Result<f64>) -> Result<f64> {
    let mut samples = (0..runs * BATCHES).map(|_| run()).collect::<Result<Vec<f64>>>()?;
    Ok(median(&mut samples))
}

fn run(ebpf: &Ebpf, name: &str, port: &str, frame: &[u8]) -> Result<f64> {
    let program: &Xdp =
        ebpf.program(name).with_context(|| format!("no program {name}"))?.try_into()?;
    let context = context(port, frame);
    let options = TestRunOptions {
        data_in: Some(frame),
        ctx_in: Some(&context),
        repeat: REPEAT,
        ..TestRunOptions::new()
    };
    Ok(program.test_run(options)?.duration.as_nanos() as f64)
}

/// `struct xdp_md` for a frame that comes in by a port.
pub(crate) fn context(port: &str, frame: &[u8]) -> [u8; 24] {
    let mut context = [0u8; 24];
    context[4..8].copy_from_slice(&(frame.len() as u32).to_ne_bytes());
    context[12..16].copy_from_slice(&net::index(port).to_ne_bytes());
    context
}
