//! What there is one of, whatever the number of workers: the kernel half, and who answers people. The first worker has
//! it, decides about PBXs, and asks the others for what they know.

use std::cell::RefCell;
use std::path::PathBuf;
use std::rc::{Rc, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use futures_util::future::join_all;
use sip_ebpf::challenge::MAX_SCANNERS;
use sip_ebpf::tables::{MAX_PBX, PbxState, flag};

use super::worker::Worker;
use super::{monotonic_ns, needs_restart};
use crate::config::{AdminState, Config, PbxConfig, PbxLimits};
use crate::control::http::Page;
use crate::control::metrics;
use crate::control::protocol::{Backends, Failure, Outcome, Reloaded, Request, Response};
use crate::control::status::{Course, Memory, Parts, Status, Tally, state_name};
use crate::core::bans::Bans;
use crate::core::challenges::{Challenges, Clocks};
use crate::core::counters::Event;
use crate::core::dispatcher::{Command, Refusal};
use crate::core::family::Family;
use crate::fastpath::Fastpath;

/// How long the daemon vouches for itself in the kernel's table, each time.
pub(super) const VOUCH: Duration = Duration::from_secs(1);

/// See the module.
pub(super) struct Head {
    pub(super) path: PathBuf,
    pub(super) fastpath: Box<dyn Fastpath>,
    pub(super) course: Course,
    /// Whether the kernel's tables may differ from what is decided here.
    pub(super) tables_behind: bool,
    /// Who is not heard for a time.
    pub(super) bans: Bans,
    /// Of the dispatcher, as the others have it.
    pub(super) revision: u64,
    /// A worker stands still.
    pub(super) still: bool,
    /// The instance that the kernel's nonces are of.
    pub(super) nonces: u32,
}

impl Head {
    pub(super) fn obey(&mut self, command: Command) {
        match command {
            Command::Pbx { slot, pbx } => {
                let written = self.fastpath.set_pbx(slot, pbx);
                self.check_write("PBXS", written);
            }
            Command::Pbx6 { slot, pbx } => {
                let written = self.fastpath.set_pbx6(slot, pbx);
                self.check_write("PBXS6", written);
            }
            Command::Schedule { family: Family::V4, schedule } => {
                let written = self.fastpath.set_schedule(&schedule);
                self.check_write("SCHEDULE", written);
            }
            Command::Schedule { family: Family::V6, schedule } => {
                let written = self.fastpath.set_schedule6(&schedule);
                self.check_write("SCHEDULE6", written);
            }
            Command::Changed { id, from, to, reason } => tell(&id, from, to, &reason),
            // Whoever has the sockets does this.
            Command::Send { .. } | Command::Tell(_) => {}
        }
    }

    pub(super) fn check_write(&mut self, table: &str, written: Result<()>) {
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
}

/// Of the first worker.
impl Worker {
    /// Ends the kernel half.
    pub(super) fn close(mut self, keep: bool) -> Result<()> {
        let Some(mut head) = self.head.take() else { return Ok(()) };
        // Nobody answers for us from now on.
        let silent = head.fastpath.heartbeat(Duration::ZERO);
        head.fastpath.close(keep).context("the kernel half cannot be closed")?;
        silent.context("the heartbeat cannot be withdrawn")?;
        tracing::info!("sipline has ended");
        Ok(())
    }

    /// New calls are refused from now on.
    pub(super) fn stop(&mut self) {
        if let Some(head) = &mut self.head {
            head.course.stopping = true;
        }
        self.dispatcher.set_accepting(false);
        self.carry_out();
    }

    /// Everything that the kernel must know, the switches last.
    pub(super) fn write_tables(&mut self) -> Result<()> {
        let challenges = self.challenges();
        let stateful = self.proxy.stateful();
        let endpoints = stateful.map(|has| has.endpoints().all()).unwrap_or_default();
        let qualify = stateful.is_some_and(|has| has.answers_qualify());
        let Some(head) = &mut self.head else { return Ok(()) };
        let sources = &self.proxy.policy().sources;
        for slot in 0..MAX_PBX {
            head.fastpath.set_pbx(slot, self.dispatcher.pbx(slot))?;
            head.fastpath.set_pbx6(slot, self.dispatcher.pbx6(slot))?;
        }
        head.fastpath.set_schedule(self.dispatcher.schedule())?;
        head.fastpath.set_schedule6(self.dispatcher.schedule6())?;
        head.fastpath.set_sources(&sources.all())?;
        head.fastpath.set_registered(&self.proxy.gate().registered.all())?;
        head.fastpath.set_endpoints(&endpoints)?;
        head.fastpath.set_locals(&self.proxy.locals())?;
        head.fastpath.set_locals6(&self.proxy.locals6())?;
        let rates = self.proxy.policy().rates;
        head.fastpath.set_rates(rates.unwrap_or_default())?;
        let gate = if rates.is_some() { flag::GATE } else { 0 };
        let shadow = if self.proxy.patience().is_some() { flag::SHADOW } else { 0 };
        let record = if self.proxy.records_steered() { flag::RECORD } else { 0 };
        head.fastpath.set_challenges(challenges.as_ref())?;
        let ask = if challenges.is_some() { flag::CHALLENGE } else { 0 };
        let answer = if qualify { flag::QUALIFY } else { 0 };
        let more = gate | shadow | record | ask | answer;
        head.fastpath.set_config(flag::KEEPALIVES | flag::STEER | flag::DENY | more)?;
        // While it is off nobody writes the table: what stands there would be old when it is on again.
        match head.fastpath.users() {
            Some(users) if !qualify => users.clear(),
            _ => Ok(()),
        }
    }

    /// How the kernel asks for credentials in our name, if it may.
    fn challenges(&self) -> Option<Challenges> {
        let stateful = self.proxy.stateful().filter(|_| self.config.xdp.challenge)?;
        let clocks = Clocks { now: Instant::now(), monotonic: monotonic_ns() };
        let made = Challenges::new(
            stateful.authenticator()?,
            stateful.registrar().domains(),
            clocks,
            self.head.as_ref()?.nonces,
            &self.proxy.policy().scanners,
        );
        match &made {
            None => tracing::info!(
                most = MAX_SCANNERS,
                "gate.scanners has more than the kernel looks for: the daemon asks for credentials"
            ),
            Some(made) if !made.left_out.is_empty() => {
                let domains = made.left_out.join(", ");
                tracing::info!(domains, "the daemon asks users of these domains, not the kernel");
            }
            Some(_) => {}
        }
        made
    }

    /// This worker is alive. The first one vouches for the daemon while all are; before that, it makes good what could
    /// not be written.
    pub(super) fn beat(&mut self) {
        self.peers.beat();
        self.tell_learned();
        let written = match &self.head {
            Some(head) if head.tables_behind => Some(self.write_tables()),
            Some(_) => None,
            None => return,
        };
        let (slowest, beaten) = self.peers.slowest();
        let Some(head) = &mut self.head else { return };
        match written {
            Some(Ok(())) => {
                head.tables_behind = false;
                tracing::info!("the kernel's tables are whole again");
            }
            Some(Err(error)) => {
                head.course.write_failures += 1;
                tracing::debug!(error = format!("{error:#}"), "the kernel's tables");
            }
            None => {}
        }
        head.course.beaten = beaten;
        let was_still = std::mem::replace(&mut head.still, beaten.elapsed() > VOUCH);
        match (was_still, head.still) {
            (false, true) => {
                let worker = slowest + 1;
                return tracing::error!(
                    worker,
                    "a worker stands still: nobody vouches for the daemon"
                );
            }
            (true, true) => return,
            (true, false) => tracing::info!("all workers go on"),
            (false, false) => {}
        }
        let vouched = head.fastpath.heartbeat(VOUCH);
        head.check_write("HEARTBEAT", vouched);
    }

    fn tally(&self) -> Result<Tally, String> {
        let mut tally = Tally::of(&self.proxy, &self.sockets).map_err(|error| error.to_string())?;
        // All workers know the same sources, and one decides about bans.
        if let Some(head) = &self.head {
            let refused = self.proxy.gate().registered.refused();
            tally.daemon.events(Event::RegisteredFull, refused);
            tally.daemon.events(Event::SuspectsForgotten, head.bans.suspects_forgotten());
        }
        Ok(tally)
    }

    /// For a look at how everything is; `tally` are the numbers of all workers.
    fn parts(&mut self, tally: Tally) -> Option<Parts<'_>> {
        let head = self.head.as_mut()?;
        Some(Parts {
            dispatcher: &self.dispatcher,
            bans: &head.bans,
            tally,
            fastpath: &mut *head.fastpath,
            store: self.keeper.as_ref().map(|keeper| keeper.counters()),
            course: head.course,
        })
    }
}

fn tell(id: &str, from: PbxState, to: PbxState, reason: &str) {
    let (from, to) = (state_name(from), state_name(to));
    if to == "inactive" {
        tracing::warn!(pbx = id, from, to, reason, "PBX state");
    } else {
        tracing::info!(pbx = id, from, to, reason, "PBX state");
    }
}

// ---- Orders --------------------------------------------------------------------------------------

/// The first worker, for who waits for others: while he waits he does not keep it.
#[derive(Clone)]
pub(super) struct Node(Weak<RefCell<Worker>>);

impl Node {
    pub(super) fn new(worker: &Rc<RefCell<Worker>>) -> Self {
        Self(Rc::downgrade(worker))
    }

    /// Carries an order out.
    pub(super) async fn answer(&self, request: Request) -> Response {
        let answered = match request {
            Request::Reload => self.reload().await,
            Request::Stats => self.stats().await,
            Request::Registrations { user, limit } => self.registrations(user, limit).await,
            Request::Unregister { user, contact } => self.unregister(user, contact).await,
            Request::Forget { user } => self.forget(user).await,
            Request::Calls { id, limit } => self.calls(id, limit).await,
            Request::Bans { limit } => self.bans(limit),
            Request::Ban { network, seconds, note } => self.ban(network, seconds, &note),
            Request::Unban { network } => self.unban(network),
            request => self.order(request).await,
        };
        answered.unwrap_or_else(|failed| *failed)
    }

    /// Makes a page.
    pub(super) async fn page(&self, page: Page) -> hyper::Response<String> {
        // Whether we are well says who cannot answer.
        let tally = match page {
            Page::Metrics => self.tally().await,
            Page::Health | Page::Ready => Ok(Tally::default()),
        };
        let made = match tally {
            Ok(tally) => self.here(|worker| {
                worker.parts(tally).map(|mut parts| metrics::page(page, &mut parts))
            }),
            Err(failed) => return metrics::failed(&message(*failed)),
        };
        made.ok().flatten().unwrap_or_else(metrics::ended)
    }

    /// Reads the configuration again. A bad one changes nothing.
    pub(super) async fn reload(&self) -> Answered {
        let read = self.here(|worker| worker.read_again())??;
        let (config, restart_needed) = *read;
        self.each(move |worker| worker.take_over(config.clone())).await?;
        let file = self.here(|worker| worker.reloaded())?;
        tracing::info!(file, "reloaded");
        let backends = self.backends().await?;
        Ok(Response::done(Outcome::Reloaded(Reloaded { file, restart_needed, backends })))
    }

    /// An order about PBXs, or only the question how they are.
    async fn order(&self, request: Request) -> Answered {
        self.here(|worker| worker.order(request))?.map_err(refused)?;
        let backends = self.backends().await?;
        Ok(Response::done(Outcome::Backends(Backends { backends })))
    }

    async fn backends(&self) -> Result<Vec<crate::control::protocol::Backend>, Box<Response>> {
        let tally = self.tally().await?;
        self.look(tally, |parts| parts.backends())
    }

    async fn stats(&self) -> Answered {
        let tally = self.tally().await?;
        let status = self.look(tally, |parts| parts.status())?;
        let engine = self.here(|worker| worker.keeper.as_ref().map(|keeper| keeper.engine()))?;
        let registrar = status.memory.as_ref().zip(engine);
        let registrar = registrar.map(|(memory, engine)| Memory::stats(memory, engine));
        let stats = crate::control::protocol::Stats { registrar, ..Status::into_stats(status) };
        Ok(Response::done(Outcome::Stats(Box::new(stats))))
    }

    async fn tally(&self) -> Result<Tally, Box<Response>> {
        let mut sum = Tally::default();
        for tally in self.each(|worker| worker.tally()).await? {
            sum.add(tally.map_err(failed)?);
        }
        Ok(sum)
    }

    fn look<T>(
        &self,
        tally: Tally,
        look: impl FnOnce(&mut Parts<'_>) -> Result<T>,
    ) -> Result<T, Box<Response>> {
        let looked = self.here(|worker| worker.parts(tally).map(|mut parts| look(&mut parts)))?;
        looked.ok_or_else(ended)?.map_err(|error| failed(format!("{error:#}")))
    }

    // ---- Asking ---------------------------------------------------------------------------------

    /// Asks this worker.
    pub(super) fn here<T>(&self, ask: impl FnOnce(&mut Worker) -> T) -> Result<T, Box<Response>> {
        let worker = self.0.upgrade().ok_or_else(ended)?;
        let answer = ask(&mut worker.borrow_mut());
        Ok(answer)
    }

    /// Asks one worker.
    pub(super) async fn at<T: Send + 'static>(
        &self,
        number: usize,
        ask: impl FnOnce(&mut Worker) -> T + Send + 'static,
    ) -> Result<T, Box<Response>> {
        if number == 0 {
            return self.here(ask);
        }
        let asked = self.here(|worker| worker.peers.ask(number, ask))?;
        asked.await.ok_or_else(|| silent(number))
    }

    /// Asks all, this one first.
    pub(super) async fn each<T: Send + 'static>(
        &self,
        ask: impl Fn(&mut Worker) -> T + Clone + Send + 'static,
    ) -> Result<Vec<T>, Box<Response>> {
        let (first, asked) = self.here(|worker| {
            let first = ask(worker);
            let peers = &worker.peers;
            let asked = peers.others().map(|other| peers.ask(other, ask.clone()));
            (first, asked.collect::<Vec<_>>())
        })?;
        let mut all = vec![first];
        for (number, answer) in (1..).zip(join_all(asked).await) {
            all.push(answer.ok_or_else(|| silent(number))?);
        }
        Ok(all)
    }
}

/// A response; the error is one too.
pub(super) type Answered = Result<Response, Box<Response>>;

/// Why it is not done.
pub(super) fn failed(why: impl Into<String>) -> Box<Response> {
    Box::new(Response::failed(why))
}

fn refused(refusal: Refusal) -> Box<Response> {
    failed(refusal.to_string())
}

fn ended() -> Box<Response> {
    failed("the daemon has ended")
}

fn silent(number: usize) -> Box<Response> {
    failed(format!("worker {} does not answer", number + 1))
}

fn message(response: Response) -> String {
    response.error.map(|error| error.message).unwrap_or_default()
}

impl Worker {
    fn order(&mut self, request: Request) -> Result<(), Refusal> {
        let now = Instant::now();
        let admin = |worker: &mut Self, id: &str, state| {
            tracing::info!(id, ?state, "ordered by hand");
            worker.dispatcher.set_admin(now, id, state)
        };
        let done = match request {
            Request::Drain { id } => admin(self, &id, AdminState::Draining),
            Request::Enable { id } => admin(self, &id, AdminState::Active),
            Request::Disable { id } => admin(self, &id, AdminState::Disabled),
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
            // The others have answers of their own.
            _ => Ok(()),
        };
        self.carry_out();
        done
    }

    /// The configuration as it is now, with the keys that count only after a restart. The PBXs are taken over.
    fn read_again(&mut self) -> Result<Box<(Config, Vec<String>)>, Box<Response>> {
        let now = Instant::now();
        let path = self.head.as_ref().map(|head| head.path.clone()).unwrap_or_default();
        let config = match Config::load(&path) {
            Ok(config) => config,
            Err(error) => {
                tracing::error!(%error, "not reloaded");
                let failure = Failure {
                    message: format!("nothing is changed:\n{error}"),
                    problems: error.problems,
                };
                let response = Response { ok: false, result: None, error: Some(failure) };
                return Err(Box::new(response));
            }
        };
        if let Err(refusal) = self.dispatcher.reload(now, &config.pbx, config.probe.clone()) {
            tracing::error!(%refusal, "not reloaded");
            return Err(failed(format!("nothing is changed: {refusal}")));
        }
        self.dispatcher.set_call_rules(config.dispatch);
        let restart_needed = needs_restart(&self.config, &config);
        for key in &restart_needed {
            tracing::warn!(key, "has changed, but counts only after a restart");
        }
        Ok(Box::new((config, restart_needed)))
    }

    /// All have taken the configuration over: the kernel has it too.
    fn reloaded(&mut self) -> String {
        let written = self.write_tables();
        let Some(head) = &mut self.head else { return String::new() };
        head.check_write("all", written);
        head.path.display().to_string()
    }
}
