//! Packets per second over veth, native XDP.
//!
//! One CPU belongs to the proxy: its ports' NAPI threads run there. The other CPU makes packets
//! (`BPF_PROG_TEST_RUN` with live frames, put fresh each time) and takes what comes out (a program on
//! the peers that drops it). The rate is what the proxy's port has processed, by the CPU time that its
//! NAPI thread took for it: so many would it process in a second of one CPU, whether the sender keeps
//! up or not, and whatever else the machine does. The counters say that each packet took the path it
//! should. Each path is measured in turn with a reflector fed by the same frames, and the ratio is
//! that of neighbours in time.

use std::collections::HashSet;
use std::ffi::CStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::channel;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use std::{fs, io};

use anyhow::{Context, Result, bail};
use aya::Ebpf;
use aya::programs::xdp::{XdpLink, XdpLinkId};
use aya::programs::{TestRun, TestRunAttrs, TestRunOptions, Xdp, XdpMode};
use sip_user::fastpath::object::{Bench, Build, DROP, FLOOR, L4, PROGRAM, REFLECT};
use sipline_tests::fixtures::net;

use crate::machine;
use crate::paths::{Path, Ports};
use crate::report::{Row, median};
use crate::testrun::{Loaded, context, count, fresh_frames, load, program, with};

/// CPU of the proxy.
const PROXY_CPU: usize = 0;
/// CPU of who sends and takes.
const PEER_CPU: usize = 1;
/// How long one measurement takes.
const TIME: Duration = Duration::from_millis(20);
/// How many times each run measures a path and the reflector in turn.
const TURNS: u32 = 5;
/// Packets in one call of TEST_RUN, and at most in one batch of it.
const CHUNK: u32 = 4096;
pub(crate) const BATCH: u32 = 256;

/// Adds packets per second to the rows.
pub(crate) fn measure(
    build: Build,
    (paths, ports): (&[Path], Ports),
    runs: u32,
    rows: &mut [Row],
) -> Result<()> {
    if machine::cpus() < 2 {
        bail!("packets per second need two CPUs: one for the proxy, one for its peers");
    }
    with(ports, || {
        own_sysfs()?;
        let mut wire = Wire::new(build)?;
        // Until this returns, however it does.
        let _awake = Awake::start(PROXY_CPU)?;
        machine::pin(0, PEER_CPU)?;
        machine::favour(0, 1)?;
        for name in [DROP, L4] {
            let path = paths.first().context("no paths")?;
            wire.pair(path, name, runs, rows, name.trim_start_matches("bench_"))?;
        }
        let mut reflected = Vec::new();
        for path in paths {
            reflected.push(wire.pair(path, PROGRAM, runs, rows, path.name)?);
        }
        if let Some(row) = rows.iter_mut().find(|row| row.name == "reflect") {
            // Of the first path's frames, as the other denominators.
            row.pps = reflected.first().copied();
            row.of_reflector = Some(1.0);
        }
        Ok(())
    })
}

struct Wire {
    build: Build,
    proxy: Loaded,
    links: Vec<(&'static str, Option<XdpLink>)>,
    /// Ids of the ports' NAPI threads.
    threads: Vec<(&'static str, i32)>,
    running: &'static str,
}

impl Wire {
    fn new(build: Build) -> Result<Self> {
        let before = napi_threads()?;
        let mut proxy = load(build, Bench::default(), &[PROGRAM, DROP, REFLECT, L4])?;
        let mut links = Vec::new();
        for port in net::PORTS {
            let peer = format!("{port}x");
            // The peers take what comes out. They stay attached as long as the object lives.
            program(&mut proxy.ebpf, DROP)?.attach(&peer, XdpMode::Driver)?;
            let id = program(&mut proxy.ebpf, PROGRAM)?.attach(port, XdpMode::Driver)?;
            links.push((port, Some(take(&mut proxy.ebpf, PROGRAM, id)?)));
            for device in [port, &peer] {
                let path = format!("/sys/class/net/{device}/threaded");
                fs::write(&path, "1").with_context(|| format!("cannot write {path}"))?;
            }
        }
        let new: Vec<(i32, String)> =
            napi_threads()?.into_iter().filter(|thread| !before.contains(thread)).collect();
        let mut threads = Vec::new();
        for port in net::PORTS {
            for (device, cpu) in [(port.to_owned(), PROXY_CPU), (format!("{port}x"), PEER_CPU)] {
                // "napi/ph-8193"
                let prefix = format!("napi/{device}-");
                let thread = new.iter().find(|(_, name)| name.starts_with(&prefix));
                let (id, _) = thread.with_context(|| format!("{device} has no NAPI thread"))?;
                machine::pin(*id, cpu)?;
                if cpu == PROXY_CPU {
                    threads.push((port, *id));
                }
                // Before the sender: what comes out is taken at once.
                machine::favour(*id, 2)?;
            }
        }
        Ok(Self { build, proxy, links, threads, running: PROGRAM })
    }

    /// Measures `name` and the reflector in turn; gives the reflector's median.
    fn pair(
        &mut self,
        path: &Path,
        name: &'static str,
        runs: u32,
        rows: &mut [Row],
        row: &str,
    ) -> Result<f64> {
        let bench = Bench { length: path.frame.len() as u32, vary: path.vary, ..Bench::default() };
        let mut generator = load(self.build, bench, &[FLOOR])?;
        fresh_frames(&mut generator.ebpf, &path.frame)?;
        let (mut rates, mut reflected, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..runs * TURNS {
            let reflector = self.rate(path, &generator.ebpf, REFLECT)?;
            let rate = self.rate(path, &generator.ebpf, name)?;
            rates.push(rate);
            reflected.push(reflector);
            ratios.push(rate / reflector);
        }
        if let Some(row) = rows.iter_mut().find(|r| r.name == row) {
            row.pps = Some(median(&mut rates));
            row.of_reflector = Some(median(&mut ratios));
        }
        Ok(median(&mut reflected))
    }

    /// Packets per second that the proxy's port takes with a program.
    fn rate(&mut self, path: &Path, generator: &Ebpf, name: &'static str) -> Result<f64> {
        self.run(name)?;
        let peer = format!("{}x", path.port);
        let send = || send(generator, FLOOR, &peer, &path.frame, CHUNK);
        send()?;
        let thread = self.threads.iter().find(|(port, _)| *port == path.port);
        let (_, thread) = *thread.context("a port has no thread")?;
        let taken = received(path.port)?;
        let busy = cpu_time(thread)?;
        let counted = count(&self.proxy.tables, path.reason)?;
        let start = Instant::now();
        let mut sent = 0;
        while start.elapsed() < TIME {
            sent += u64::from(send()?);
        }
        let time = start.elapsed();
        let busy = cpu_time(thread)? - busy;
        let taken = received(path.port)? - taken;
        let counted = count(&self.proxy.tables, path.reason)? - counted;
        // What waited in the ring before and after does not tell: 256 frames, and one NAPI round.
        if name == PROGRAM && counted + 320 + taken / 1000 < taken {
            bail!("{}: of {taken} packets only {counted} took this path", path.name);
        }
        if std::env::var_os("SIPLINE_BENCH_VERBOSE").is_some() {
            let million = |n: u64, time: Duration| n as f64 / time.as_secs_f64() / 1e6;
            eprintln!(
                "{} {name}: sent {:.2} M/s, taken {:.2} M/s, {:.2} M/s of CPU time",
                path.name,
                million(sent, time),
                million(taken, time),
                million(taken, busy),
            );
        }
        Ok(taken as f64 / busy.as_secs_f64())
    }

    /// Puts a program on all ports, in place: the NAPI threads stay where they are.
    fn run(&mut self, name: &'static str) -> Result<()> {
        if self.running == name {
            return Ok(());
        }
        for (_, link) in &mut self.links {
            let held = link.take().context("a port lost its link")?;
            let id = program(&mut self.proxy.ebpf, name)?.attach_to_link(held)?;
            *link = Some(take(&mut self.proxy.ebpf, name, id)?);
        }
        self.running = name;
        Ok(())
    }
}

/// Keeps a CPU from being halted between two batches, by a thread that yields to everything. A loaded CPU of a
/// proxy does not halt, and that of a virtual machine comes back with its caches cold.
pub(crate) struct Awake {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
    /// Number of the thread.
    id: i32,
}

impl Awake {
    pub(crate) fn start(cpu: usize) -> Result<Self> {
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let (ready, is_ready) = channel();
        let thread = thread::spawn(move || {
            let placed = machine::pin(0, cpu).and_then(|()| machine::last_of_all(0));
            // SAFETY: no arguments; it cannot fail.
            let placed = placed.map(|()| unsafe { libc::gettid() });
            let turns = placed.is_ok();
            // Whoever waits for it has not gone.
            let _ = ready.send(placed);
            // No `spin_loop`: a hypervisor may take a CPU from who pauses.
            while turns && !stopped.load(Ordering::Relaxed) {}
        });
        let mut awake = Self { stop, thread: Some(thread), id: 0 };
        awake.id = is_ready.recv().context("the thread that keeps a CPU awake has died")??;
        Ok(awake)
    }
}

impl Awake {
    /// What was left of the CPU by all others, so far.
    pub(crate) fn spare(&self) -> Result<Duration> {
        cpu_time(self.id)
    }
}

impl Drop for Awake {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // It cannot panic.
            let _ = thread.join();
        }
    }
}

fn take(ebpf: &mut Ebpf, name: &str, id: XdpLinkId) -> Result<XdpLink> {
    Ok(program(ebpf, name)?.take_link(id)?)
}

/// Runs a generator `count` times, so that it sends frames out of a device, one each time or less; gives the count.
pub(crate) fn send(ebpf: &Ebpf, name: &str, device: &str, frame: &[u8], count: u32) -> Result<u32> {
    let program: &Xdp = ebpf.program(name).context("no generator")?.try_into()?;
    let context = context(device, frame);
    let options = TestRunOptions {
        data_in: Some(frame),
        ctx_in: Some(&context),
        repeat: count,
        attrs: TestRunAttrs::new().xdp_live_frames(BATCH.min(count)),
        ..TestRunOptions::new()
    };
    program.test_run(options)?;
    Ok(count)
}

/// CPU time that a thread has had.
pub(crate) fn cpu_time(thread: i32) -> Result<Duration> {
    let path = format!("/proc/{thread}/schedstat");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    let first = text.split_whitespace().next().with_context(|| format!("{path} is empty"))?;
    Ok(Duration::from_nanos(first.parse().with_context(|| format!("{path} is no number"))?))
}

/// Frames that a device's NAPI has taken.
pub(crate) fn received(device: &str) -> Result<u64> {
    let path = format!("/sys/class/net/{device}/statistics/rx_packets");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    text.trim().parse().with_context(|| format!("{path} is no number"))
}

/// Ids and names of all NAPI threads.
pub(crate) fn napi_threads() -> Result<HashSet<(i32, String)>> {
    let mut found = HashSet::new();
    for entry in fs::read_dir("/proc").context("cannot read /proc")? {
        let Ok(entry) = entry else { continue };
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else {
            continue;
        };
        if let Ok(name) = fs::read_to_string(entry.path().join("comm"))
            && name.starts_with("napi/")
        {
            found.insert((id, name.trim().to_owned()));
        }
    }
    Ok(found)
}

/// A /sys of this thread's network namespace, which goes with the thread.
pub(crate) fn own_sysfs() -> Result<()> {
    let mount = |what: &CStr, on: &CStr, kind: &CStr, flags| {
        // SAFETY: C strings, and no data.
        unsafe { libc::mount(what.as_ptr(), on.as_ptr(), kind.as_ptr(), flags, std::ptr::null()) }
    };
    // SAFETY: no pointers; only this thread changes its namespace.
    let done = unsafe { libc::unshare(libc::CLONE_NEWNS) } == 0
        && mount(c"none", c"/", c"", libc::MS_REC | libc::MS_PRIVATE) == 0
        && mount(c"sysfs", c"/sys", c"sysfs", 0) == 0;
    if !done {
        return Err(io::Error::last_os_error()).context("cannot mount a /sys of our own");
    }
    Ok(())
}
