//! The daemon: configuration, core, sockets, kernel half and control, wired together.
//!
//! One thread for each worker, beside that of the store. What a worker decides is its own, and what is another's it passes
//! on, so nothing is locked on the way of a message. The first one, on the main thread, is also the node: it has the
//! kernel half, probes PBXs and answers people.

mod bans;
mod calls;
mod crew;
mod keeper;
mod memory;
mod node;
mod peers;
mod registrations;
mod rows;
mod stateful;
mod tasks;
mod turns;
mod worker;

use std::cell::RefCell;
use std::io::{self, IsTerminal};
use std::num::NonZeroUsize;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::sleep;
use tracing_subscriber::EnvFilter;

use crate::config::{Config, Key, LogFormat};
use crate::control::http;
use crate::control::server::{self, Server};
use crate::control::status::Course;
use crate::core::accounting::Moments;
use crate::core::bans::Bans;
use crate::core::call_table::CallTable;
use crate::core::dispatcher::Dispatcher;
use crate::core::gate::Debts;
use crate::core::owner::{self, MAX_WORKERS};
use crate::core::proxy::{Policy, Proxy};
use crate::core::sources::Sources;
use crate::fastpath::{self, Mode};
use crate::io::coalesce::Coalescer;
use crate::io::udp;
use crew::{Crew, Start};
use keeper::Reports;
use node::{Head, Node};
use peers::{Mailbox, Peers};
use stateful::Seed;
use tasks::Tasks;
use worker::{Parts, Worker};

/// Runs the daemon until SIGTERM or SIGINT. `path` is where `config` was read from, for reloads.
pub fn run(path: &Path, config: Config) -> Result<()> {
    memory::settle();
    start_log(&config);
    let (coalesce, path) = (config.sip.coalesce, path.to_owned());
    crew::serve(coalesce, move |coalescer| daemon(path, config, coalescer))
}

/// The first worker, and what there is one of.
async fn daemon(path: PathBuf, config: Config, coalescer: Arc<Coalescer>) -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let hangup = signal(SignalKind::hangup())?;
    // First, so that a second daemon stops here and touches nothing of the first.
    let socket = &config.control.socket;
    let server =
        Server::bind(socket).with_context(|| format!("control socket {}", socket.display()))?;
    let pages = match config.metrics.listen {
        Some(address) => {
            let bound = http::Server::bind(address).await;
            Some(bound.with_context(|| format!("metrics.listen: cannot listen on {address}"))?)
        }
        None => None,
    };
    let Opened { first, reports, mailbox, others } = open(&path, config, coalescer)?;
    let mut crew = match Crew::start(others) {
        Ok(crew) => crew,
        // No kernel half stays that nobody vouches for.
        Err(error) => return first.close(false).and(Err(error)),
    };
    let worker = Rc::new(RefCell::new(first));

    let mut tasks = Tasks::default();
    let mut result = tasks.serve(&worker, reports, mailbox).await;
    if result.is_ok() {
        let node = Node::new(&worker);
        tasks.add(reload_on(hangup, node.clone()));
        let asked = node.clone();
        let answer: Rc<server::Answer> = Rc::new(move |request| {
            let node = asked.clone();
            Box::pin(async move { node.answer(request).await })
        });
        tasks.add(async move { server.serve(answer).await });
        if let Some(pages) = pages {
            let answer: Rc<http::Answer> = Rc::new(move |page| {
                let node = node.clone();
                Box::pin(async move { node.page(page).await })
            });
            tasks.add(async move { pages.serve(answer).await });
        }
        notify_supervisor("READY=1");
        announce(&worker.borrow());
        let signal = tokio::select! {
            _ = terminate.recv() => Ok("SIGTERM"),
            _ = interrupt.recv() => Ok("SIGINT"),
            error = tasks.failed() => Err(error),
            error = crew.failed() => Err(error),
        };
        notify_supervisor("STOPPING=1");
        match signal {
            Ok(name) => {
                let (drain, keep) = stop(&worker);
                if keep {
                    // The kernel goes on by its tables and the next daemon takes over: nobody is refused.
                    tracing::info!(signal = name, "ending, the program stays attached");
                } else {
                    tracing::info!(signal = name, for_s = drain.as_secs_f64(), "draining");
                    tokio::select! {
                        () = sleep(drain) => {}
                        _ = terminate.recv() => {}
                        _ = interrupt.recv() => {}
                    }
                }
            }
            Err(error) => {
                tracing::error!(error = format!("{error:#}"), "ending: no part may be missing");
                result = Err(error);
            }
        }
    }
    tasks.end().await;
    let peers = worker.borrow().peers.clone();
    crew.end(&peers).await;
    let Ok(worker) = Rc::try_unwrap(worker) else { anyhow::bail!("a task still holds the node") };
    let mut worker = worker.into_inner();
    if result.is_ok() {
        worker.close_records();
    }
    if let Some(keeper) = worker.keeper.take() {
        keeper.stop().await;
    }
    let keep = keeps(&worker);
    let closed = worker.close(keep);
    result.and(closed)
}

/// Whether the program stays attached when the daemon ends in order.
fn keeps(worker: &Worker) -> bool {
    let mode = worker.head.as_ref().map(|head| head.fastpath.mode());
    worker.config.xdp.keep && mode.is_some_and(|mode| mode != Mode::Off)
}

/// No more new calls, unless the kernel is to go on. Says for how long those that are set up may take.
fn stop(worker: &RefCell<Worker>) -> (Duration, bool) {
    let mut worker = worker.borrow_mut();
    let keep = keeps(&worker);
    if !keep {
        worker.stop();
    }
    (worker.config.sip.drain, keep)
}

fn announce(worker: &Worker) {
    tracing::info!(
        listen = ?worker.config.sip.listen,
        workers = worker.peers.me().count(),
        xdp = %worker.head.as_ref().map_or(Mode::Off, |head| head.fastpath.mode()),
        pbxs = worker.config.pbx.len(),
        version = env!("CARGO_PKG_VERSION"),
        "sipline runs"
    );
}

// ---- Opening -------------------------------------------------------------------------------------

/// All that there is before anything is served.
struct Opened {
    first: Worker,
    reports: Option<Reports>,
    mailbox: Mailbox,
    others: Vec<Start>,
}

/// Sockets first, then the kernel half with its tables; its switches last.
fn open(path: &Path, config: Config, coalescer: Arc<Coalescer>) -> Result<Opened> {
    let now = Instant::now();
    let key = match config.sip.key {
        Some(key) => key,
        None => {
            tracing::warn!(
                "no key is configured: calls in progress will not survive a restart; set sip.key_file"
            );
            random_key()?
        }
    };
    let count = config.sip.workers.unwrap_or_else(cpus).clamp(1, MAX_WORKERS);
    let mut group = Peers::group(count, random_key()?.0);
    let mut sockets: Vec<Vec<_>> = group.iter().map(|_| Vec::new()).collect();
    for local in &config.sip.listen {
        let bound = udp::bind_all(*local, count).with_context(|| {
            format!("cannot listen on {local}: is it an address of this machine, and free?")
        })?;
        sockets.iter_mut().zip(bound).for_each(|(its, socket)| its.push(socket));
    }
    let mut fastpath = fastpath::open(&config.xdp, key.0)?;
    let fastpath_events = fastpath.events();
    let (kernel, users, open) = (fastpath.calls(), fastpath.users(), fastpath.open_calls());
    let seed = Seed::new(key, now)?;
    let mut dispatcher = Dispatcher::new(&config.sip.listen, config.probe.clone());
    dispatcher.set_call_rules(config.dispatch);
    dispatcher.reload(now, &config.pbx, config.probe.clone()).context("PBXs")?;
    let calls = CallTable::new(config.xdp.call_buckets);
    let debts = Debts::default();
    let me = group.first().map_or(owner::Worker::ALONE, |(peers, _)| peers.me());
    let mut kept = stateful::start_store(&config, &seed, me)?.map(Vec::into_iter);
    let mut starts = Vec::new();
    for ((peers, mailbox), sockets) in group.drain(..).zip(sockets) {
        let (keeper, reports) = kept.as_mut().and_then(Iterator::next).unzip();
        // It has the call table of all.
        let mut proxy = Proxy::new(key.0, &config.sip.listen, 1, policy(&config), now);
        proxy.set_worker(peers.me(), calls.clone());
        proxy.gate_mut().share(debts.clone());
        let dispatcher = dispatcher.follower();
        let (config, kernel, users) = (config.clone(), kernel.clone(), users.clone());
        let open = open.clone();
        let parts =
            Parts { config, proxy, dispatcher, sockets, kernel, users, open, peers, keeper };
        starts.push(Start { parts, reports, mailbox, seed });
    }
    let others = starts.split_off(1);
    let Some(Start { mut parts, reports, mailbox, .. }) = starts.pop() else {
        anyhow::bail!("there is no worker");
    };
    parts.dispatcher = dispatcher;
    let mut first = Worker::new(parts, coalescer)?;
    first.events = fastpath_events;
    let stateful = stateful::open(&first.config, &seed, first.peers.me())?;
    first.proxy.set_stateful(stateful);
    first.restore_calls();
    first.head = Some(Box::new(Head {
        path: path.to_owned(),
        fastpath,
        course: Course {
            started: now,
            started_at: SystemTime::now(),
            beaten: now,
            stopping: false,
            write_failures: 0,
        },
        tables_behind: false,
        bans: Bans::new(first.config.gate.bans.clone()),
        revision: first.dispatcher.revision(),
        still: false,
        nonces: seed.kernel_instance(),
    }));
    if let Err(error) = first.write_tables() {
        // No half filled kernel: it would be wrong for as long as it stays so.
        return Err(error.context(match first.close(false) {
            Ok(()) => "the kernel's tables cannot be written".to_owned(),
            Err(close) => format!("the kernel's tables cannot be written ({close:#})"),
        }));
    }
    first.peers.begin();
    first.beat();
    first.carry_out();
    Ok(Opened { first, reports, mailbox, others })
}

async fn reload_on(mut hangup: Signal, node: Node) {
    while hangup.recv().await.is_some() {
        // The outcome is in the log.
        let _ = node.reload().await;
    }
}

// ---- Small things --------------------------------------------------------------------------------

fn policy(config: &Config) -> Policy {
    let believed = if config.registrar.is_some() { &config.auth.trusted[..] } else { &[] };
    Policy {
        sources: Sources::new(&config.trust)
            .with_exempt(&config.gate.exempt)
            .with_believed(believed),
        no_destination: config.sip.no_destination,
        scanners: config.gate.sought(),
        rates: config.gate.rates(),
        shadow: config.dispatch.shadow.then_some(config.dispatch.answer_timeout),
    }
}

/// Keys that differ and that a running daemon cannot change.
fn needs_restart(old: &Config, new: &Config) -> Vec<String> {
    let all = [
        ("sip.listen", old.sip.listen != new.sip.listen),
        ("sip.key", old.sip.key != new.sip.key),
        ("sip.workers", old.sip.workers != new.sip.workers),
        ("sip.coalesce_us", old.sip.coalesce != new.sip.coalesce),
        ("registrar", old.registrar.is_some() != new.registrar.is_some()),
        ("auth", (&old.auth.rules, &old.auth.digest) != (&new.auth.rules, &new.auth.digest)),
        ("store", old.store != new.store),
        ("dispatch.shadow", new.registrar.is_none() && !old.dispatch.shadow && new.dispatch.shadow),
        ("xdp", old.xdp != new.xdp),
        ("control.socket", old.control != new.control),
        ("metrics.listen", old.metrics != new.metrics),
        ("log", old.log != new.log),
    ];
    all.iter().filter(|(_, differs)| *differs).map(|(key, _)| (*key).to_owned()).collect()
}

/// One moment, by both clocks.
#[derive(Clone, Copy)]
struct Moment {
    here: Instant,
    monotonic: u64,
}

impl Moment {
    fn now(here: Instant) -> Self {
        Self { here, monotonic: monotonic_ns() }
    }
}

/// The clock of the kernel goes on when we end.
impl Moments for Moment {
    fn to_clock(&self, at: Instant) -> u64 {
        let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
        match at.checked_duration_since(self.here) {
            Some(after) => self.monotonic.saturating_add(nanoseconds(after)),
            None => self.monotonic.saturating_sub(nanoseconds(self.here - at)),
        }
    }

    fn at_clock(&self, time: u64) -> Instant {
        let moment = match time.checked_sub(self.monotonic) {
            Some(after) => self.here.checked_add(Duration::from_nanos(after)),
            None => self.here.checked_sub(Duration::from_nanos(self.monotonic - time)),
        };
        moment.unwrap_or(self.here)
    }
}

/// The clock of the kernel's call table.
fn monotonic_ns() -> u64 {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is writable. The clock is always there.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut time) };
    time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64
}

fn random_key() -> Result<Key> {
    let mut words = [0u64; 2];
    let len = std::mem::size_of_val(&words);
    // SAFETY: `words` is writable for `len` bytes.
    let got = unsafe { libc::getrandom(words.as_mut_ptr().cast(), len, 0) };
    if usize::try_from(got) != Ok(len) {
        return Err(io::Error::last_os_error()).context("no random key");
    }
    Ok(Key(words))
}

/// How many CPUs we may use.
fn cpus() -> usize {
    std::thread::available_parallelism().map_or(1, NonZeroUsize::get)
}

/// Says to a supervisor that wants to know (systemd, `Type=notify`) how far we are.
fn notify_supervisor(state: &str) {
    use std::os::linux::net::SocketAddrExt;
    use std::os::unix::net::{SocketAddr, UnixDatagram};

    let Some(name) = std::env::var_os("NOTIFY_SOCKET") else { return };
    let name = name.to_string_lossy().into_owned();
    let address = match name.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name),
        None => SocketAddr::from_pathname(&name),
    };
    let sent = address
        .and_then(|address| UnixDatagram::unbound()?.send_to_addr(state.as_bytes(), &address));
    if let Err(error) = sent {
        tracing::warn!(%error, "cannot notify the supervisor");
    }
}

/// To standard error. `RUST_LOG` overrides the level, for a look into one module.
fn start_log(config: &Config) {
    let filter = EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| EnvFilter::new(config.log.level.as_str()));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal());
    // Set already by a test in the same process: then it stays as it is.
    let _ = match config.log.format {
        LogFormat::Text => builder.try_init(),
        LogFormat::Json => builder.json().try_init(),
    };
}
