//! The daemon: configuration, core, sockets, kernel half and control, wired together.
//!
//! One thread, beside that of the store. Everything that decides lives in `Node`; tasks borrow it for one batch of
//! datagrams, one timer or one order, and never across a wait, so nothing is locked and nothing is seen half done.

mod calls;
mod keeper;
mod memory;
mod registrations;
mod rows;
mod stateful;
mod turns;

use std::cell::RefCell;
use std::io::{self, IsTerminal};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, Result};
use sip_ebpf::tables::{MAX_PBX, PbxState, flag};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;
use tokio::task::{JoinHandle, LocalSet, spawn_local};
use tokio::time::{MissedTickBehavior, interval, sleep, sleep_until};
use tracing_subscriber::EnvFilter;

use crate::config::{AdminState, Config, Key, LogFormat, PbxConfig, PbxLimits};
use crate::control::protocol::{Backends, Failure, Outcome, Reloaded, Request, Response, Stats};
use crate::control::server::Server;
use crate::control::status::{Course, Parts, state_name};
use crate::control::{http, metrics};
use crate::core::counters::Event;
use crate::core::dispatcher::{Command, Dispatcher, Refusal, Unreachable};
use crate::core::proxy::{Datagram, KernelCalls, Policy, Proxy, Transmit};
use crate::core::registrar::Row;
use crate::core::sources::Sources;
use crate::core::stateful::Command as StatefulCommand;
use crate::fastpath::{self, Fastpath, Mode};
use crate::io::coalesce::Coalescer;
use crate::io::udp::{BATCH, Batch, Udp};
use keeper::{Answer, Keeper, Reports};

/// How often the daemon vouches for itself in the kernel's table, and for how long each time.
const HEARTBEAT: Duration = Duration::from_millis(250);
const VOUCH: Duration = Duration::from_secs(1);
/// Batches that one socket reads before others have their turn.
const BATCHES_IN_A_ROW: usize = 8;

/// Runs the daemon until SIGTERM or SIGINT. `path` is where `config` was read from, for reloads.
pub fn run(path: &Path, config: Config) -> Result<()> {
    memory::settle();
    turns::soon();
    start_log(&config);
    let coalescer = Arc::new(Coalescer::new(config.sip.coalesce));
    let idle = coalescer.clone();
    let mut runtime = tokio::runtime::Builder::new_current_thread();
    let runtime = runtime.enable_all().on_thread_park(move || idle.idle()).build()?;
    LocalSet::new().block_on(&runtime, daemon(path, config, coalescer))
}

async fn daemon(path: &Path, config: Config, coalescer: Arc<Coalescer>) -> Result<()> {
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
    let node = Rc::new(RefCell::new(Node::open(path, config, coalescer)?));
    let wake = node.borrow().wake.clone();

    let mut tasks = Tasks::default();
    tasks.add(vouch(node.clone()));
    let reports = node.borrow_mut().reports.take();
    if let Some(mut reports) = reports {
        if let Err(error) = reports.restore(&node).await {
            tasks.end().await;
            if let Ok(node) = Rc::try_unwrap(node) {
                node.into_inner().close(false)?;
            }
            return Err(error);
        }
        tasks.add(reports.hear(node.clone()));
    }
    let sockets = node.borrow().sockets.clone();
    for at in 0..sockets.len() {
        tasks.add(read_socket(node.clone(), sockets.clone(), at));
    }
    tasks.add(keep_time(node.clone(), wake));
    tasks.add(reload_on(hangup, node.clone()));
    // A client that is connected when the daemon ends must not keep the node.
    let asked = Rc::downgrade(&node);
    let answer = Rc::new(move |request| match asked.upgrade() {
        Some(node) => node.borrow_mut().answer(request),
        None => Response::failed("the daemon has ended"),
    });
    tasks.add(async move { server.serve(answer).await });
    if let Some(pages) = pages {
        let asked = Rc::downgrade(&node);
        let answer = Rc::new(move |page| match asked.upgrade() {
            Some(node) => metrics::page(page, &mut node.borrow_mut().parts()),
            None => metrics::ended(),
        });
        tasks.add(async move { pages.serve(answer).await });
    }
    notify_supervisor("READY=1");
    {
        let node = node.borrow();
        tracing::info!(
            listen = ?node.config.sip.listen,
            xdp = %node.fastpath.mode(),
            pbxs = node.config.pbx.len(),
            version = env!("CARGO_PKG_VERSION"),
            "sipline runs"
        );
    }

    let name = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    notify_supervisor("STOPPING=1");
    let (drain, keep) = {
        let mut node = node.borrow_mut();
        let keep = node.config.xdp.keep && node.fastpath.mode() != Mode::Off;
        if !keep {
            node.stop();
        }
        (node.config.sip.drain, keep)
    };
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
    tasks.end().await;
    let Ok(node) = Rc::try_unwrap(node) else { anyhow::bail!("a task still holds the node") };
    let mut node = node.into_inner();
    node.close_records();
    if let Some(keeper) = node.keeper.take() {
        keeper.stop().await;
    }
    node.close(keep)
}

// ---- Tasks ---------------------------------------------------------------------------------------

/// Everything that runs beside the main task; nothing of it outlives this.
#[derive(Default)]
struct Tasks(Vec<JoinHandle<()>>);

impl Tasks {
    fn add(&mut self, task: impl Future<Output = ()> + 'static) {
        self.0.push(spawn_local(task));
    }

    /// Ends all and waits for it, so that what they held is free.
    async fn end(self) {
        for task in &self.0 {
            task.abort();
        }
        for task in self.0 {
            // Aborted, which is what was asked for.
            let _ = task.await;
        }
    }
}

async fn read_socket(node: Rc<RefCell<Node>>, sockets: Rc<[Udp]>, at: usize) {
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
            node.borrow_mut().read_errors(at);
        }
        if node.borrow_mut().read(at) {
            guard.clear_ready();
        } else {
            // More is there: the others first.
            drop(guard);
            tokio::task::yield_now().await;
        }
    }
}

async fn keep_time(node: Rc<RefCell<Node>>, wake: Rc<Notify>) {
    loop {
        let next = node.borrow_mut().arm();
        let timer = async {
            match next {
                Some(next) => sleep_until(next.into()).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            () = timer => node.borrow_mut().tick(),
            () = wake.notified() => {}
        }
    }
}

async fn vouch(node: Rc<RefCell<Node>>) {
    let mut beat = interval(HEARTBEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        beat.tick().await;
        node.borrow_mut().beat();
    }
}

async fn reload_on(mut hangup: Signal, node: Rc<RefCell<Node>>) {
    while hangup.recv().await.is_some() {
        // The outcome is in the log.
        let _ = node.borrow_mut().reload();
    }
}

// ---- The node ------------------------------------------------------------------------------------

/// What the daemon is.
struct Node {
    path: PathBuf,
    config: Config,
    proxy: Proxy,
    dispatcher: Dispatcher,
    fastpath: Box<dyn Fastpath>,
    sockets: Rc<[Udp]>,
    coalescer: Arc<Coalescer>,
    batch: Batch,
    out: Vec<Transmit>,
    course: Course,
    /// What the stateful half needs of the world, if it is configured.
    keeper: Option<Keeper>,
    /// What the store says, until there is a task that hears it.
    reports: Option<Reports>,
    /// Whether the kernel's tables may differ from what is decided here.
    tables_behind: bool,
    /// The timer is looked at anew.
    wake: Rc<Notify>,
    /// What the timer is set to.
    armed: Option<Instant>,
}

impl Node {
    /// Sockets first, then the kernel half with its tables; its switches last.
    fn open(path: &Path, config: Config, coalescer: Arc<Coalescer>) -> Result<Self> {
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
        let mut sockets = Vec::new();
        for local in &config.sip.listen {
            let socket = Udp::bind(*local).with_context(|| {
                format!("cannot listen on {local}: is it an address of this machine, and free?")
            })?;
            sockets.push(socket);
        }
        let fastpath = fastpath::open(&config.xdp, key.0)?;
        let policy = policy(&config);
        let buckets = config.xdp.call_buckets;
        let mut proxy = Proxy::new(key.0, &config.sip.listen, buckets, policy, now);
        let (mut keeper, mut reports) = (None, None);
        if let Some((stateful, keeps, says)) = stateful::open(&config, key, now)? {
            proxy.set_stateful(Some(stateful));
            (keeper, reports) = (Some(keeps), Some(says));
        }
        let mut node = Self {
            path: path.to_owned(),
            proxy,
            dispatcher: Dispatcher::new(&config.sip.listen, config.probe.clone()),
            fastpath,
            sockets: sockets.into(),
            coalescer,
            batch: Batch::default(),
            out: Vec::new(),
            course: Course {
                started: now,
                started_at: SystemTime::now(),
                beaten: now,
                stopping: false,
                write_failures: 0,
            },
            keeper,
            reports,
            tables_behind: false,
            wake: Rc::default(),
            armed: None,
            config,
        };
        node.dispatcher.set_call_rules(node.config.dispatch);
        let loaded = node.dispatcher.reload(now, &node.config.pbx, node.config.probe.clone());
        loaded.context("PBXs")?;
        if let Err(error) = node.write_tables() {
            // No half filled kernel: it would be wrong for as long as it stays so.
            let closed = node.fastpath.close(false);
            return Err(error.context(match closed {
                Ok(()) => "the kernel's tables cannot be written".to_owned(),
                Err(close) => format!("the kernel's tables cannot be written ({close:#})"),
            }));
        }
        node.beat();
        node.carry_out();
        Ok(node)
    }

    fn close(mut self, keep: bool) -> Result<()> {
        // Nobody answers for us from now on.
        let silent = self.fastpath.heartbeat(Duration::ZERO);
        self.fastpath.close(keep).context("the kernel half cannot be closed")?;
        silent.context("the heartbeat cannot be withdrawn")?;
        tracing::info!("sipline has ended");
        Ok(())
    }

    /// New calls are refused from now on.
    fn stop(&mut self) {
        self.course.stopping = true;
        self.dispatcher.set_accepting(false);
        self.carry_out();
    }

    // ---- Datagrams and time ---------------------------------------------------------------------

    /// Serves what one socket has. True when there is nothing left.
    fn read(&mut self, at: usize) -> bool {
        let sockets = self.sockets.clone();
        let Some(socket) = sockets.get(at) else { return true };
        for _ in 0..BATCHES_IN_A_ROW {
            match socket.receive(&mut self.batch) {
                Ok(0) => return true,
                Ok(count) => {
                    self.coalescer.read(count);
                    self.serve_batch(at);
                    if count < BATCH {
                        // The queue was empty; what comes from now on wakes us again.
                        return true;
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return true,
                // The error of an earlier datagram: the queue tells whose.
                Err(error) => {
                    tracing::trace!(%error, local = %socket.local(), "reading");
                    self.read_errors(at);
                }
            }
        }
        false
    }

    fn serve_batch(&mut self, at: usize) {
        let now = Instant::now();
        let kernel = Kernel::new(&mut *self.fastpath, self.config.xdp.call_buckets);
        for (from, bytes) in self.batch.datagrams() {
            let datagram = Datagram { local: at, from, bytes };
            self.proxy.handle(now, &mut self.dispatcher, &kernel, datagram, &mut self.out);
        }
        self.carry_out();
    }

    fn read_errors(&mut self, at: usize) {
        let sockets = self.sockets.clone();
        let Some(socket) = sockets.get(at) else { return };
        let now = Instant::now();
        let (dispatcher, proxy) = (&mut self.dispatcher, &mut self.proxy);
        let count = socket.errors(|to, what| {
            tracing::debug!(%to, %what, "ICMP unreachable");
            dispatcher.handle_unreachable(now, to, what);
            if let Some(stateful) = proxy.stateful_mut() {
                stateful.handle_transport_error(now, to);
            }
        });
        if count > 0 {
            self.proxy.counters_mut().events(Event::IcmpError, count);
            self.carry_out();
        }
    }

    /// Time has passed. What has come in is read first: an answer that waits is no missing answer.
    fn tick(&mut self) {
        for at in 0..self.sockets.len() {
            self.read_errors(at);
            self.read(at);
        }
        let now = Instant::now();
        self.dispatcher.handle_timeout(now);
        if let Some(stateful) = self.proxy.stateful_mut() {
            stateful.handle_timeout(now);
        }
        self.carry_out();
    }

    /// When the next thing is due, which the timer is set to.
    fn arm(&mut self) -> Option<Instant> {
        self.armed = self.next_timeout();
        self.armed
    }

    fn next_timeout(&self) -> Option<Instant> {
        let stateful = self.proxy.stateful().and_then(|stateful| stateful.poll_timeout());
        [self.dispatcher.poll_timeout(), stateful].into_iter().flatten().min()
    }

    /// Does what the core wants and sends what waits, until neither is left.
    fn carry_out(&mut self) {
        let now = Instant::now();
        loop {
            let mut any = false;
            if let Some(stateful) = self.proxy.stateful_mut() {
                stateful.handle_calls(now, &mut self.dispatcher);
            }
            while let Some(command) = self.dispatcher.poll_command() {
                any = true;
                self.obey(command);
            }
            if let Some(stateful) = self.proxy.stateful_mut()
                && any
            {
                stateful.handle_pbxs(now, &self.dispatcher);
            }
            while let Some(command) = self.proxy.stateful_mut().and_then(|s| s.poll_command()) {
                self.obey_stateful(command);
            }
            if self.out.is_empty() {
                break;
            }
            // A PBX that there is no way to is news for the dispatcher.
            self.send();
        }
        if let (Some(stateful), Some(keeper)) = (self.proxy.stateful_mut(), &self.keeper) {
            stateful.set_storable(keeper.has_room());
        }
        let next = self.next_timeout();
        if next.is_some_and(|next| self.armed.is_none_or(|armed| next < armed)) {
            self.wake.notify_one();
        }
    }

    fn obey_stateful(&mut self, command: StatefulCommand) {
        match (command, &self.keeper) {
            (StatefulCommand::Send(transmit), _) => {
                let (local, to) = (transmit.local, transmit.to);
                self.out.push(Transmit { local, to, bytes: transmit.bytes.to_vec() });
            }
            (StatefulCommand::FetchSecrets { ticket, user, domain }, Some(keeper)) => {
                keeper.ask(ticket, user, domain);
            }
            (StatefulCommand::Save(row), Some(keeper)) => keeper.save(row),
            (StatefulCommand::Remove(key), Some(keeper)) => keeper.remove(key),
            (StatefulCommand::Cdr(cdr), Some(keeper)) => keeper.record(cdr),
            // The configuration gives both or neither.
            (StatefulCommand::Cdr(cdr), None) => {
                tracing::debug!(?cdr, "the record of a call, and no store for it");
            }
            (_, None) => {}
        }
    }

    /// We end: calls that go on are recorded as far as they are.
    fn close_records(&mut self) {
        if let Some(stateful) = self.proxy.stateful_mut() {
            stateful.stop(Instant::now());
        }
        self.carry_out();
    }

    /// The store has answered.
    fn secrets(&mut self, answers: impl Iterator<Item = Answer>) {
        let now = Instant::now();
        if let Some(stateful) = self.proxy.stateful_mut() {
            for (ticket, answer) in answers {
                stateful.handle_secrets(now, ticket, answer);
            }
        }
        self.carry_out();
    }

    /// The store has kept these. Says how many were taken.
    fn restore(&mut self, rows: &[Row]) -> usize {
        let Some(stateful) = self.proxy.stateful_mut() else { return 0 };
        let (taken, refused) = stateful.restore(Instant::now(), rows);
        for (key, why) in refused {
            tracing::debug!(user = &*key.user, contact = &*key.contact, ?why, "not read back");
        }
        self.carry_out();
        taken
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Send { from, to, datagram } => {
                let local = self.config.sip.listen.iter().position(|local| *local == from);
                self.out.push(Transmit { local: local.unwrap_or(0), to, bytes: datagram });
            }
            Command::Pbx { slot, pbx } => {
                let written = self.fastpath.set_pbx(slot, pbx);
                self.check_write("PBXS", written);
            }
            Command::Schedule(schedule) => {
                let written = self.fastpath.set_schedule(&schedule);
                self.check_write("SCHEDULE", written);
            }
            Command::Changed { id, from, to, reason } => tell(&id, from, to, &reason),
            Command::Tell(_) => {}
        }
    }

    fn send(&mut self) {
        let now = Instant::now();
        let out = std::mem::take(&mut self.out);
        for (at, socket) in self.sockets.iter().enumerate() {
            let mine = out.iter().filter(|t| t.local == at).map(|t| (t.to, &t.bytes[..]));
            let result = socket.send(mine);
            let counters = self.proxy.counters_mut();
            counters.events(Event::Sent, result.sent);
            counters.events(Event::SendDropped, result.dropped);
            counters.events(Event::SendFailed, result.failed.len() as u64);
            for (to, kind) in result.failed {
                tracing::debug!(%to, error = %kind, "cannot send");
                let what = match kind {
                    io::ErrorKind::NetworkUnreachable => Unreachable::Network,
                    io::ErrorKind::HostUnreachable => Unreachable::Host,
                    _ => continue,
                };
                self.dispatcher.handle_unreachable(now, to, what);
                if let Some(stateful) = self.proxy.stateful_mut() {
                    stateful.handle_transport_error(now, to);
                }
            }
        }
        // Its room is used again.
        self.out = out;
        self.out.clear();
    }

    // ---- The kernel half ------------------------------------------------------------------------

    /// Everything that the kernel must know, the switches last.
    fn write_tables(&mut self) -> Result<()> {
        let sources = self.proxy.policy().sources.clone();
        for slot in 0..MAX_PBX {
            self.fastpath.set_pbx(slot, self.dispatcher.pbx(slot))?;
        }
        self.fastpath.set_schedule(self.dispatcher.schedule())?;
        self.fastpath.set_sources(&sources.ipv4())?;
        self.fastpath.set_locals(&self.proxy.locals())?;
        let deny = if sources.denies() { flag::DENY } else { 0 };
        self.fastpath.set_config(flag::KEEPALIVES | flag::STEER | deny)
    }

    fn check_write(&mut self, table: &str, written: Result<()>) {
        if let Err(error) = written {
            tracing::error!(
                table,
                error = format!("{error:#}"),
                "the kernel's table is not written"
            );
            self.tables_behind = true;
            self.course.write_failures += 1;
        }
    }

    /// Vouches for the daemon; before that, makes good what could not be written.
    fn beat(&mut self) {
        self.course.beaten = Instant::now();
        if self.tables_behind {
            match self.write_tables() {
                Ok(()) => {
                    self.tables_behind = false;
                    tracing::info!("the kernel's tables are whole again");
                }
                Err(error) => {
                    self.course.write_failures += 1;
                    tracing::debug!(error = format!("{error:#}"), "the kernel's tables");
                }
            }
        }
        let written = self.fastpath.heartbeat(VOUCH);
        self.check_write("HEARTBEAT", written);
    }

    // ---- Orders ---------------------------------------------------------------------------------

    fn answer(&mut self, request: Request) -> Response {
        let now = Instant::now();
        let order = |node: &mut Self, id: &str, state| {
            tracing::info!(id, ?state, "ordered by hand");
            node.dispatcher.set_admin(now, id, state)
        };
        let done: Result<(), Refusal> = match request {
            Request::Backends => Ok(()),
            Request::Drain { id } => order(self, &id, AdminState::Draining),
            Request::Enable { id } => order(self, &id, AdminState::Active),
            Request::Disable { id } => order(self, &id, AdminState::Disabled),
            Request::Add { id, address, weight, state, max_calls, calls_per_second } => {
                if self.config.sip.listen.contains(&address) {
                    let fault = "this is an address of ours: calls would loop";
                    Err(Refusal::BadAddress { address, fault })
                } else {
                    tracing::info!(id, %address, weight, "added by hand");
                    let limits = PbxLimits { max_calls, calls_per_second };
                    let pbx = PbxConfig { id, address, weight, state, limits };
                    self.dispatcher.add(now, &pbx).map(|_| ())
                }
            }
            Request::Remove { id } => {
                tracing::info!(id, "removed by hand");
                self.dispatcher.remove(&id)
            }
            Request::Stats => {
                return match self.parts().status() {
                    Ok(status) => {
                        let registrar = self.registrar_stats();
                        let stats = Stats { registrar, ..status.into_stats() };
                        Response::done(Outcome::Stats(Box::new(stats)))
                    }
                    Err(error) => Response::failed(format!("{error:#}")),
                };
            }
            Request::Reload => return self.reload(),
            Request::Registrations { user, limit } => return self.registrations(user, limit),
            Request::Unregister { user, contact } => {
                return self.unregister(&user, contact.as_deref());
            }
            Request::Forget { user } => return self.forget(&user),
            Request::Calls { id, limit } => return self.calls(id.as_deref(), limit),
        };
        self.carry_out();
        let listed = done.map_err(anyhow::Error::from).and_then(|()| self.parts().backends());
        match listed {
            Ok(backends) => Response::done(Outcome::Backends(Backends { backends })),
            Err(error) => Response::failed(format!("{error:#}")),
        }
    }

    /// Reads the configuration again. A bad one changes nothing.
    fn reload(&mut self) -> Response {
        let now = Instant::now();
        let config = match Config::load(&self.path) {
            Ok(config) => config,
            Err(error) => {
                tracing::error!(%error, "not reloaded");
                let failure = Failure {
                    message: format!("nothing is changed:\n{error}"),
                    problems: error.problems,
                };
                return Response { ok: false, result: None, error: Some(failure) };
            }
        };
        if let Err(refusal) = self.dispatcher.reload(now, &config.pbx, config.probe.clone()) {
            tracing::error!(%refusal, "not reloaded");
            return Response::failed(format!("nothing is changed: {refusal}"));
        }
        let restart_needed = needs_restart(&self.config, &config);
        for key in &restart_needed {
            tracing::warn!(key, "has changed, but counts only after a restart");
        }
        // What cannot change while we run stays as it is.
        self.config = Config {
            sip: crate::config::Sip {
                no_destination: config.sip.no_destination,
                drain: config.sip.drain,
                ..self.config.sip.clone()
            },
            trust: config.trust,
            pbx: config.pbx,
            probe: config.probe,
            dispatch: config.dispatch,
            accounting: config.accounting,
            pbx_credentials: config.pbx_credentials,
            registrar: match self.config.registrar {
                Some(_) => config.registrar.or(self.config.registrar.clone()),
                None => None,
            },
            auth: crate::config::Auth { trusted: config.auth.trusted, ..self.config.auth.clone() },
            ..self.config.clone()
        };
        self.dispatcher.set_call_rules(self.config.dispatch);
        self.proxy.set_policy(policy(&self.config));
        if let (Some(stateful), Some(settings)) =
            (self.proxy.stateful_mut(), stateful::settings(&self.config))
        {
            stateful.reload(settings);
            if let Some(accounting) = stateful.accounting_mut() {
                accounting.reload(self.config.accounting);
            }
            // Whoever has changed users in their table wants that to count.
            if let Some(authenticator) = stateful.authenticator_mut() {
                authenticator.forget_all();
            }
            stateful.handle_pbxs(now, &self.dispatcher);
        }
        self.carry_out();
        let written = self.write_tables();
        self.check_write("all", written);
        self.wake.notify_one();
        tracing::info!(file = %self.path.display(), "reloaded");
        match self.parts().backends() {
            Ok(backends) => Response::done(Outcome::Reloaded(Reloaded {
                file: self.path.display().to_string(),
                restart_needed,
                backends,
            })),
            Err(error) => Response::failed(format!("reloaded, but: {error:#}")),
        }
    }

    /// For a look at how everything is.
    fn parts(&mut self) -> Parts<'_> {
        Parts {
            dispatcher: &self.dispatcher,
            proxy: &self.proxy,
            fastpath: &mut *self.fastpath,
            sockets: &self.sockets,
            store: self.keeper.as_ref().map(Keeper::counters),
            course: self.course,
        }
    }
}

/// The kernel's call table, as the proxy asks for it.
struct Kernel<'a> {
    fastpath: RefCell<&'a mut dyn Fastpath>,
    mask: u32,
    there: bool,
}

impl<'a> Kernel<'a> {
    fn new(fastpath: &'a mut dyn Fastpath, buckets: u32) -> Self {
        let there = fastpath.mode() != Mode::Off;
        Self { fastpath: RefCell::new(fastpath), mask: buckets.saturating_sub(1), there }
    }
}

impl KernelCalls for Kernel<'_> {
    fn find(&self, hash: u64) -> Option<u32> {
        if !self.there {
            return None;
        }
        let at = sip_ebpf::calls::bucket(hash, self.mask);
        match self.fastpath.borrow_mut().call_bucket(at) {
            Ok(bucket) => sip_ebpf::calls::find(&bucket?.words, hash, monotonic_ns()),
            Err(error) => {
                tracing::debug!(error = format!("{error:#}"), "the kernel's call table");
                None
            }
        }
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

fn tell(id: &str, from: PbxState, to: PbxState, reason: &str) {
    let (from, to) = (state_name(from), state_name(to));
    if to == "inactive" {
        tracing::warn!(pbx = id, from, to, reason, "PBX state");
    } else {
        tracing::info!(pbx = id, from, to, reason, "PBX state");
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
