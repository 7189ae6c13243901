//! The daemon: configuration, core, sockets, kernel half and control, wired together.
//!
//! One thread for each worker, beside that of the store. What a worker decides is its own, and what is another's it passes
//! on, so nothing is locked on the way of a message. The first one, on the main thread, is also the node: it has the
//! kernel half, probes PBXs and answers people.

mod calls;
mod keeper;
mod memory;
mod node;
mod peers;
mod registrations;
mod rows;
mod stateful;
mod turns;
mod worker;

use std::cell::RefCell;
use std::io::{self, IsTerminal};
use std::num::NonZeroUsize;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, unbounded_channel};
use tokio::task::{JoinSet, LocalSet, yield_now};
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until, timeout};
use tracing_subscriber::EnvFilter;

use crate::config::{Config, Key, LogFormat};
use crate::control::http;
use crate::control::server::{self, Server};
use crate::control::status::Course;
use crate::core::call_table::CallTable;
use crate::core::dispatcher::Dispatcher;
use crate::core::owner::{self, MAX_WORKERS};
use crate::core::proxy::{Policy, Proxy};
use crate::core::sources::Sources;
use crate::fastpath::{self, Mode};
use crate::io::coalesce::Coalescer;
use crate::io::udp::{self, Udp};
use keeper::Reports;
use node::{Head, Node};
use peers::{Mailbox, Peers, Received};
use stateful::Seed;
use worker::{Parts, Worker};

/// How often each worker says that it is alive.
const HEARTBEAT: Duration = Duration::from_millis(250);
/// Pieces of mail that are read before others have their turn.
const MAIL_IN_A_ROW: usize = 8;
/// How long the other workers may take to end.
const END_PATIENCE: Duration = Duration::from_secs(3);

/// Runs the daemon until SIGTERM or SIGINT. `path` is where `config` was read from, for reloads.
pub fn run(path: &Path, config: Config) -> Result<()> {
    memory::settle();
    start_log(&config);
    let (coalesce, path) = (config.sip.coalesce, path.to_owned());
    serve(coalesce, move |coalescer| daemon(path, config, coalescer))
}

/// Runs a worker on this thread.
fn serve<F: Future<Output = Result<()>>>(
    coalesce: Duration,
    work: impl FnOnce(Arc<Coalescer>) -> F,
) -> Result<()> {
    turns::soon();
    let coalescer = Arc::new(Coalescer::new(coalesce));
    let idle = coalescer.clone();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().on_thread_park(move || idle.idle()).build()?;
    LocalSet::new().block_on(&runtime, work(coalescer))
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
    let mut crew = Crew::start(others)?;
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

// ---- Workers -------------------------------------------------------------------------------------

/// All that there is before anything is served.
struct Opened {
    first: Worker,
    reports: Option<Reports>,
    mailbox: Mailbox,
    others: Vec<Start>,
}

/// What the thread of a worker starts with.
struct Start {
    parts: Parts,
    reports: Option<Reports>,
    mailbox: Mailbox,
    seed: Seed,
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
    let fastpath = fastpath::open(&config.xdp, key.0)?;
    let kernel = fastpath.calls();
    let seed = Seed::new(key, now)?;
    let mut dispatcher = Dispatcher::new(&config.sip.listen, config.probe.clone());
    dispatcher.set_call_rules(config.dispatch);
    dispatcher.reload(now, &config.pbx, config.probe.clone()).context("PBXs")?;
    let calls = CallTable::new(config.xdp.call_buckets);
    let me = group.first().map_or(owner::Worker::ALONE, |(peers, _)| peers.me());
    let mut kept = stateful::start_store(&config, &seed, me)?.map(Vec::into_iter);
    let mut starts = Vec::new();
    for ((peers, mailbox), sockets) in group.drain(..).zip(sockets) {
        let (keeper, reports) = kept.as_mut().and_then(Iterator::next).unzip();
        // It has the call table of all.
        let mut proxy = Proxy::new(key.0, &config.sip.listen, 1, policy(&config), now);
        proxy.set_worker(peers.me(), calls.clone());
        let dispatcher = dispatcher.follower();
        let (config, kernel) = (config.clone(), kernel.clone());
        let parts = Parts { config, proxy, dispatcher, sockets, kernel, peers, keeper };
        starts.push(Start { parts, reports, mailbox, seed });
    }
    let others = starts.split_off(1);
    let Some(Start { mut parts, reports, mailbox, .. }) = starts.pop() else {
        anyhow::bail!("there is no worker");
    };
    parts.dispatcher = dispatcher;
    let mut first = Worker::new(parts, coalescer)?;
    let stateful = stateful::open(&first.config, &seed, first.peers.me())?;
    first.proxy.set_stateful(stateful);
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
        revision: first.dispatcher.revision(),
        still: false,
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

/// The other workers, each on a thread of its own.
struct Crew {
    /// Each says how it has ended.
    ended: UnboundedReceiver<(usize, Result<()>)>,
    left: usize,
}

impl Crew {
    fn start(starts: Vec<Start>) -> Result<Self> {
        let (end, ended) = unbounded_channel();
        let left = starts.len();
        for start in starts {
            let number = start.parts.peers.me().number();
            let end = end.clone();
            let work = move || {
                let coalesce = start.parts.config.sip.coalesce;
                let served = || serve(coalesce, move |coalescer| follower(start, coalescer));
                // What it held goes with it, and the daemon too.
                let result = catch_unwind(AssertUnwindSafe(served));
                let result = result.unwrap_or_else(|_| Err(anyhow::anyhow!("it has panicked")));
                let _ = end.send((number, result));
            };
            let thread = std::thread::Builder::new().name(format!("sip-{}", number + 1));
            thread.spawn(work).context("no thread for a worker")?;
        }
        Ok(Self { ended, left })
    }

    /// Waits until one ends that should not.
    async fn failed(&mut self) -> anyhow::Error {
        match self.ended.recv().await {
            Some((number, result)) => {
                self.left -= 1;
                let why = result.err().unwrap_or_else(|| anyhow::anyhow!("it has ended"));
                why.context(format!("worker {} of the daemon has failed", number + 1))
            }
            // There are no others.
            None => std::future::pending().await,
        }
    }

    /// Ends all and waits for it.
    async fn end(mut self, peers: &Peers) {
        for other in peers.others() {
            peers.order(other, |worker| worker.end.notify_one());
        }
        let all = async {
            while self.left > 0
                && let Some((number, result)) = self.ended.recv().await
            {
                self.left -= 1;
                if let Err(error) = result {
                    let (worker, error) = (number + 1, format!("{error:#}"));
                    tracing::error!(worker, error, "a worker has failed at its end");
                }
            }
        };
        if timeout(END_PATIENCE, all).await.is_err() {
            tracing::error!(left = self.left, "workers do not end: their calls have no record");
        }
    }
}

/// A worker that is not the first.
async fn follower(start: Start, coalescer: Arc<Coalescer>) -> Result<()> {
    let Start { parts, reports, mailbox, seed } = start;
    let mut worker = Worker::new(parts, coalescer)?;
    let stateful = stateful::open(&worker.config, &seed, worker.peers.me())?;
    worker.proxy.set_stateful(stateful);
    worker.beat();
    let end = worker.end.clone();
    let worker = Rc::new(RefCell::new(worker));
    worker.borrow_mut().begin();
    let mut tasks = Tasks::default();
    let mut result = tasks.serve(&worker, reports, mailbox).await;
    if result.is_ok() {
        tokio::select! {
            () = end.notified() => {}
            error = tasks.failed() => result = Err(error),
        }
    }
    tasks.end().await;
    if result.is_ok() {
        worker.borrow_mut().close_records();
    }
    result
}

// ---- Tasks ---------------------------------------------------------------------------------------

/// Everything that runs beside the main task of a thread; nothing of it outlives this.
#[derive(Default)]
struct Tasks(JoinSet<()>);

impl Tasks {
    fn add(&mut self, task: impl Future<Output = ()> + 'static) {
        self.0.spawn_local(task);
    }

    /// All that a worker does by itself, from its heartbeat on: its bindings are there before it reads its sockets.
    async fn serve(
        &mut self,
        worker: &Rc<RefCell<Worker>>,
        reports: Option<Reports>,
        mailbox: Mailbox,
    ) -> Result<()> {
        self.add(vouch(worker.clone()));
        if let Some(mut reports) = reports {
            reports.restore(worker).await?;
            self.add(reports.hear(worker.clone()));
        }
        let (sockets, wake) = {
            let worker = worker.borrow();
            (worker.sockets.clone(), worker.wake.clone())
        };
        for at in 0..sockets.len() {
            self.add(read_socket(worker.clone(), sockets.clone(), at));
        }
        self.add(keep_time(worker.clone(), wake));
        if !worker.borrow().peers.me().is_alone() {
            self.add(read_mail(worker.clone(), mailbox));
        }
        Ok(())
    }

    /// Waits until one has panicked. Others may end.
    async fn failed(&mut self) -> anyhow::Error {
        while let Some(ended) = self.0.join_next().await {
            if let Err(error) = ended {
                return anyhow::Error::new(error).context("a task has failed: please report this");
            }
        }
        std::future::pending().await
    }

    /// Ends all and waits for it, so that what they held is free.
    async fn end(mut self) {
        self.0.shutdown().await;
    }
}

async fn read_socket(worker: Rc<RefCell<Worker>>, sockets: Rc<[Udp]>, at: usize) {
    let Some(socket) = sockets.get(at) else { return };
    loop {
        let mut guard = match socket.ready().await {
            Ok(guard) => guard,
            Err(error) => {
                tracing::error!(%error, local = %socket.local(), "cannot wait for a socket");
                sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        if guard.ready().is_error() {
            worker.borrow_mut().read_errors(at);
        }
        if worker.borrow_mut().read(at) {
            guard.clear_ready();
        } else {
            // More is there: the others first.
            drop(guard);
            yield_now().await;
        }
    }
}

/// What other workers have written.
async fn read_mail(worker: Rc<RefCell<Worker>>, mut mailbox: Mailbox) {
    while let Some(received) = mailbox.receive().await {
        let mut worker = worker.borrow_mut();
        match received {
            Received::Order(order) => order(&mut worker),
            Received::Mail(mail) => {
                worker.handle_mail(mail);
                for _ in 1..MAIL_IN_A_ROW {
                    let Some(mail) = mailbox.try_receive() else { break };
                    worker.handle_mail(mail);
                }
            }
        }
        drop(worker);
        yield_now().await;
    }
}

async fn keep_time(worker: Rc<RefCell<Worker>>, wake: Rc<Notify>) {
    loop {
        let next = worker.borrow_mut().arm();
        let timer = async {
            match next {
                Some(next) => sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = timer => worker.borrow_mut().tick(),
            () = wake.notified() => {}
        }
    }
}

async fn vouch(worker: Rc<RefCell<Worker>>) {
    let mut beat = interval(HEARTBEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        worker.borrow_mut().beat();
    }
}

async fn reload_on(mut hangup: Signal, node: Node) {
    while hangup.recv().await.is_some() {
        // The outcome is in the log.
        let _ = node.reload().await;
    }
}

// ---- Small things --------------------------------------------------------------------------------

fn policy(config: &Config) -> Policy {
    Policy { sources: Sources::new(&config.trust), no_destination: config.sip.no_destination }
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
        ("xdp", old.xdp != new.xdp),
        ("control.socket", old.control != new.control),
        ("metrics.listen", old.metrics != new.metrics),
        ("log", old.log != new.log),
    ];
    all.iter().filter(|(_, differs)| *differs).map(|(key, _)| (*key).to_owned()).collect()
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
