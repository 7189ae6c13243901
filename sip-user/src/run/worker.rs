//! One worker: sockets, the core with its share of users, transactions and calls, and a timer.
//!
//! Tasks of its thread borrow it for one batch of datagrams, one timer or one order, and never across a wait, so
//! nothing is locked and nothing is seen half done.

use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, UdpSocket};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use sip_ebpf::calls::Call;
use sip_ebpf::report::Report;
use sip_ebpf::tables::{self, event};
use tokio::sync::Notify;

use super::bans::Suspicion;
use super::keeper::{Answer, Keeper};
use super::node::Head;
use super::peers::{Mail, Peers};
use super::{Moment, monotonic_ns, policy, stateful};
use crate::config::{Config, Xdp};
use crate::core::accounting::Moments;
use crate::core::call_table;
use crate::core::counters::Event;
use crate::core::dispatcher::{Command, Dispatcher, Snapshot, Unreachable};
use crate::core::owner::Parcel;
use crate::core::proxy::{Datagram, KernelCalls, Proxy, Transmit};
use crate::core::registered::Source;
use crate::core::registrar::Row;
use crate::core::stateful::Command as StatefulCommand;
use crate::core::view::{address4, address6};
use crate::fastpath::{CallBuckets, Events, OpenCalls, Users};
use crate::io::coalesce::Coalescer;
use crate::io::udp::{BATCH, Batch, Udp};

/// Batches that one socket reads before others have their turn.
const BATCHES_IN_A_ROW: usize = 16;

/// Events of the kernel that are read before others have their turn.
const EVENTS_AT_ONCE: usize = 256;

/// See the module.
pub(super) struct Worker {
    pub(super) config: Config,
    pub(super) proxy: Proxy,
    /// The first one's decides, the others' follow.
    pub(super) dispatcher: Dispatcher,
    pub(super) sockets: Rc<[Udp]>,
    coalescer: Arc<Coalescer>,
    batch: Batch,
    out: Vec<Transmit>,
    kernel: Kernel,
    /// Who is registered, as the kernel answers for us.
    users: Option<Arc<dyn Users>>,
    /// Steered calls, for the next daemon.
    open: Option<Arc<dyn OpenCalls>>,
    pub(super) peers: Peers,
    /// Sources that have registered, and that the others do not know of yet.
    pub(super) learned: HashMap<Source, Instant>,
    /// What the stateful half needs of the world, if it is configured.
    pub(super) keeper: Option<Keeper>,
    /// Of the first one: what the kernel tells.
    pub(super) events: Option<Events>,
    /// Of the first one: what there is one of.
    pub(super) head: Option<Box<Head>>,
    /// The timer is looked at anew.
    pub(super) wake: Rc<Notify>,
    /// What the timer is set to.
    armed: Option<Instant>,
    /// It is to end.
    pub(super) end: Rc<Notify>,
}

/// What a worker is made of, besides what it needs of the store.
pub(super) struct Parts {
    pub(super) config: Config,
    pub(super) proxy: Proxy,
    pub(super) dispatcher: Dispatcher,
    pub(super) sockets: Vec<UdpSocket>,
    pub(super) kernel: Option<Arc<dyn CallBuckets>>,
    pub(super) users: Option<Arc<dyn Users>>,
    pub(super) open: Option<Arc<dyn OpenCalls>>,
    pub(super) peers: Peers,
    pub(super) keeper: Option<Keeper>,
}

/// Who has sent an INVITE that the kernel has steered, to which address of ours, and the message; none if it is no such event.
fn invite<'a>(
    event: &tables::Event,
    bytes: &'a [u8],
) -> Option<(SocketAddr, SocketAddr, &'a [u8])> {
    match event.kind {
        event::INVITE => Some((address4(event.src), address4(event.dst), bytes)),
        event::INVITE_SIX => {
            let ([src, dst], message) = tables::Event::read_six(bytes)?;
            Some((address6(src), address6(dst), message))
        }
        _ => None,
    }
}

impl Worker {
    /// Call it inside the runtime of its thread.
    pub(super) fn new(parts: Parts, coalescer: Arc<Coalescer>) -> Result<Self> {
        let Parts { config, proxy, dispatcher, sockets, kernel, users, open, peers, keeper } =
            parts;
        let sockets: io::Result<Rc<[Udp]>> = sockets.into_iter().map(Udp::of).collect();
        Ok(Self {
            kernel: Kernel { calls: kernel, mask: config.xdp.call_buckets.saturating_sub(1) },
            users,
            open,
            config,
            proxy,
            dispatcher,
            sockets: sockets.context("a socket cannot be waited for")?,
            coalescer,
            batch: Batch::default(),
            out: Vec::new(),
            peers,
            learned: HashMap::new(),
            keeper,
            events: None,
            head: None,
            wake: Rc::default(),
            armed: None,
            end: Rc::default(),
        })
    }

    // ---- Datagrams and time ---------------------------------------------------------------------

    /// Serves what one socket has. True when there is nothing left.
    pub(super) fn read(&mut self, at: usize) -> bool {
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
        let Self { proxy, dispatcher, kernel, out, .. } = self;
        for (from, bytes) in self.batch.datagrams() {
            proxy.handle(now, dispatcher, kernel, Datagram { local: at, from, bytes }, out);
        }
        self.carry_out();
    }

    pub(super) fn read_errors(&mut self, at: usize) {
        let sockets = self.sockets.clone();
        let Some(socket) = sockets.get(at) else { return };
        let mut errors = Vec::new();
        let count = socket.errors(|to, what| {
            tracing::debug!(%to, %what, "ICMP unreachable");
            if !errors.contains(&(to, what)) {
                errors.push((to, what));
            }
        });
        if count == 0 {
            return;
        }
        self.proxy.counters_mut().events(Event::IcmpError, count);
        let now = Instant::now();
        for (to, what) in &errors {
            self.dispatcher.handle_unreachable(now, *to, *what);
        }
        self.unreachable(&errors);
        // The system has chosen who hears of it, and not by who has sent what did not arrive.
        if !self.peers.me().is_alone() {
            let errors: Arc<[_]> = errors.into();
            for other in self.peers.others() {
                self.peers.post(other, Mail::Unreachable(errors.clone()));
            }
        }
    }

    fn unreachable(&mut self, errors: &[(SocketAddr, Unreachable)]) {
        let now = Instant::now();
        if let Some(stateful) = self.proxy.stateful_mut() {
            for (to, _) in errors {
                stateful.handle_transport_error(now, *to);
            }
        }
        self.carry_out();
    }

    /// What another worker has written.
    pub(super) fn handle_mail(&mut self, mail: Mail) {
        match mail {
            Mail::Parcel(parcel) => self.handle_parcel(&parcel),
            Mail::Unreachable(errors) => self.unreachable(&errors),
            Mail::Evidence(evidence) => {
                self.dispatcher.handle_evidence(Instant::now(), evidence);
                self.carry_out();
            }
            Mail::Suspicion(suspicion) => {
                self.suspect(suspicion);
                self.carry_out();
            }
        }
    }

    fn handle_parcel(&mut self, parcel: &Parcel) {
        let now = Instant::now();
        self.coalescer.read(parcel.len());
        let Self { proxy, dispatcher, kernel, out, .. } = self;
        for (local, from, bytes, what) in parcel.messages() {
            let datagram = Datagram { local, from, bytes };
            proxy.handle_passed(now, dispatcher, kernel, datagram, what, out);
        }
        self.carry_out();
    }

    /// Time has passed. What has come in is read first: an answer that waits is no missing answer.
    pub(super) fn tick(&mut self) {
        for at in 0..self.sockets.len() {
            self.read_errors(at);
            self.read(at);
        }
        let now = Instant::now();
        self.dispatcher.handle_timeout(now);
        self.proxy.gate_mut().registered.handle_timeout(now);
        if let Some(head) = &mut self.head {
            head.bans.handle_timeout(now);
        }
        if let Some(stateful) = self.proxy.stateful_mut() {
            stateful.handle_timeout(now);
        }
        let Self { proxy, dispatcher, kernel, out, .. } = self;
        proxy.handle_timeout(now, dispatcher, kernel, out);
        self.carry_out();
    }

    /// Takes some of what the kernel has told. True if there may be more.
    pub(super) fn read_events(&mut self) -> bool {
        let Self { proxy, dispatcher, kernel, out, events, config, .. } = self;
        let Some(events) = events else { return false };
        let (now, locals) = (Instant::now(), &config.sip.listen);
        let clock = Moment::now(now);
        let mut read = 0;
        while read < EVENTS_AT_ONCE {
            let any = events.next(|event, bytes| {
                let times = (now, clock.at_clock(event.time).min(now));
                if let Some(report) = Report::of_event(event.kind, event.status) {
                    let from = address4(event.src);
                    return proxy.handle_report(times, from, event.call, report);
                }
                let Some((from, dst, bytes)) = invite(&event, bytes) else { return };
                // Ours may have a zone.
                let same =
                    |local: &SocketAddr| (local.ip(), local.port()) == (dst.ip(), dst.port());
                if let Some(local) = locals.iter().position(same) {
                    let datagram = Datagram { local, from, bytes };
                    proxy.handle_steered(times, dispatcher, kernel, (datagram, event.slot), out);
                }
            });
            if !any {
                break;
            }
            read += 1;
        }
        if read > 0 {
            self.carry_out();
        }
        read == EVENTS_AT_ONCE
    }

    /// When the next thing is due, which the timer is set to.
    pub(super) fn arm(&mut self) -> Option<Instant> {
        self.armed = self.next_timeout();
        self.armed
    }

    fn next_timeout(&self) -> Option<Instant> {
        let stateful = self.proxy.stateful().and_then(|stateful| stateful.poll_timeout());
        let steered = self.proxy.poll_timeout();
        let bans = self.head.as_ref().and_then(|head| head.bans.poll_timeout());
        [self.dispatcher.poll_timeout(), stateful, steered, bans].into_iter().flatten().min()
    }

    /// Does what the core wants and sends what waits, until neither is left.
    pub(super) fn carry_out(&mut self) {
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
            if any {
                self.tell_pbxs(now);
            }
            while let Some(command) = self.proxy.stateful_mut().and_then(|s| s.poll_command()) {
                self.obey_stateful(command);
            }
            if self.out.is_empty() {
                break;
            }
            // What is another's is his before there can be an answer.
            self.pass_parcels();
            // A PBX that there is no way to is news for the dispatcher.
            self.send();
        }
        self.watch_gate();
        if !self.peers.me().is_alone() {
            self.pass_on();
        }
        if let (Some(stateful), Some(keeper)) = (self.proxy.stateful_mut(), &self.keeper) {
            stateful.set_storable(keeper.has_room());
        }
        let next = self.next_timeout();
        if next.is_some_and(|next| self.armed.is_none_or(|armed| next < armed)) {
            self.wake.notify_one();
        }
    }

    /// Messages of other workers go to them.
    fn pass_parcels(&mut self) {
        for other in self.peers.others() {
            let Some(parcel) = self.proxy.take_parcel(other) else { continue };
            let messages = parcel.len() as u64;
            if !self.peers.post(other, Mail::Parcel(parcel)) {
                self.proxy.counters_mut().events(Event::PassedOnDropped, messages);
            }
        }
    }

    /// What is for other workers goes to them.
    fn pass_on(&mut self) {
        self.pass_parcels();
        let revision = self.dispatcher.revision();
        if let Some(head) = &mut self.head
            && head.revision != revision
        {
            head.revision = revision;
            let snapshot = Arc::new(self.dispatcher.snapshot());
            for other in self.peers.others() {
                let snapshot = snapshot.clone();
                self.peers.order(other, move |worker| worker.follow(&snapshot));
            }
        }
    }

    /// The stateful half hears of the PBXs that there are.
    pub(super) fn begin(&mut self) {
        self.tell_pbxs(Instant::now());
        self.carry_out();
    }

    fn tell_pbxs(&mut self, now: Instant) {
        let Self { proxy, dispatcher, kernel, out, .. } = self;
        if let Some(stateful) = proxy.stateful_mut() {
            stateful.handle_pbxs(now, dispatcher);
        }
        proxy.handle_pbxs(now, dispatcher, kernel, out);
    }

    /// How the PBXs are has changed.
    fn follow(&mut self, snapshot: &Snapshot) {
        self.dispatcher.follow(snapshot);
        self.begin();
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Send { from, to, datagram } => {
                let local = self.config.sip.listen.iter().position(|local| *local == from);
                self.out.push(Transmit { local: local.unwrap_or(0), to, bytes: datagram });
            }
            // If there is no room the PBX is judged by the next one.
            Command::Tell(evidence) => _ = self.peers.post(0, Mail::Evidence(evidence)),
            command => {
                if let Some(head) = &mut self.head {
                    head.obey(command);
                }
            }
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
            (StatefulCommand::Learned { from, until }, _) => self.learn(from, until),
            (StatefulCommand::User { name, until }, _) => self.mirror_user(name, until),
            (StatefulCommand::KeepCall(hash), _) => self.keep_call(hash),
            (StatefulCommand::DropCall(hash), _) => self.drop_call(hash),
            (StatefulCommand::Guessed { from }, _) => self.suspect(Suspicion::wrong_digest(from)),
            (StatefulCommand::Cdr(cdr), Some(keeper)) => keeper.record(cdr),
            // The configuration gives both or neither.
            (StatefulCommand::Cdr(cdr), None) => {
                tracing::debug!(?cdr, "the record of a call, and no store for it");
            }
            (_, None) => {}
        }
    }

    /// A user has come or gone. What the kernel's table does not take, it does not know: the daemon is asked then. Only what
    /// it knew before would be wrong, so then all of it goes.
    fn mirror_user(&mut self, name: u64, until: Option<Instant>) {
        let Some(users) = &self.users else { return };
        if let Err(error) = users.set(name, until) {
            let cleared = users.clear().is_ok();
            tracing::error!(error = format!("{error:#}"), cleared, "the kernel's table of users");
        }
    }

    /// What is known of a steered call is there for the next daemon.
    fn keep_call(&mut self, hash: u64) {
        let Some(open) = &self.open else { return };
        let accounting = self.proxy.stateful().and_then(|stateful| stateful.accounting());
        let clock = Moment::now(Instant::now());
        let Some(record) = accounting.and_then(|accounting| accounting.kept(hash, &clock)) else {
            return;
        };
        if let Err(error) = open.set(hash, &record) {
            tracing::debug!(error = format!("{error:#}"), "a call will be unknown after a restart");
            self.proxy.counters_mut().event(Event::OpenFull);
        }
    }

    fn drop_call(&mut self, hash: u64) {
        if let Some(Err(error)) = self.open.as_ref().map(|open| open.remove(hash)) {
            tracing::error!(error = format!("{error:#}"), "the kernel's table of open calls");
        }
    }

    /// Goes on with the records of calls that the kernel has carried on for an earlier daemon. To be called once, before
    /// anything is heard.
    pub(super) fn restore_calls(&mut self) {
        let Some(open) = &self.open else { return };
        let me = self.peers.me();
        let all = match open.all() {
            Ok(all) => all,
            Err(error) => {
                return tracing::error!(error = format!("{error:#}"), "calls of an earlier daemon");
            }
        };
        let stateful = self.proxy.stateful_mut();
        let mut accounting = stateful.and_then(|stateful| stateful.accounting_mut());
        let clock = Moment::now(Instant::now());
        let (mut gone_on, mut gone) = (0, Vec::new());
        for (hash, record) in all.iter().filter(|(hash, _)| me.of_call(*hash) == me.number()) {
            let restored =
                accounting.as_mut().is_some_and(|has| has.restore(*hash, record, &clock));
            gone_on += usize::from(restored);
            if !restored {
                gone.push(*hash);
            }
        }
        if let Some(accounting) = accounting {
            accounting.keep_steered();
        }
        if gone_on + gone.len() > 0 {
            tracing::info!(gone_on, dropped = gone.len(), "calls of an earlier daemon");
        }
        gone.into_iter().for_each(|hash| self.drop_call(hash));
    }

    /// We end: calls that go on are recorded as far as they are; not those that the kernel carries on for the next daemon.
    pub(super) fn close_records(&mut self) {
        let Xdp { keep, pin, .. } = &self.config.xdp;
        let kept = *keep && pin.is_some() && self.open.is_some();
        if let Some(stateful) = self.proxy.stateful_mut() {
            stateful.stop(Instant::now(), kept);
        }
        self.carry_out();
    }

    /// The store has answered.
    pub(super) fn secrets(&mut self, answers: impl Iterator<Item = Answer>) {
        let now = Instant::now();
        if let Some(stateful) = self.proxy.stateful_mut() {
            for (ticket, answer) in answers {
                stateful.handle_secrets(now, ticket, answer);
            }
        }
        self.carry_out();
    }

    /// The store has kept these. Says how many were taken.
    pub(super) fn restore(&mut self, rows: &[Row]) -> usize {
        let Some(stateful) = self.proxy.stateful_mut() else { return 0 };
        let (taken, refused) = stateful.restore(Instant::now(), rows);
        for (key, why) in refused {
            tracing::debug!(user = &*key.user, contact = &*key.contact, ?why, "not read back");
        }
        self.carry_out();
        taken
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

    // ---- Orders ---------------------------------------------------------------------------------

    /// Takes over what a new configuration may change while we run. The PBXs are the dispatcher's.
    pub(super) fn take_over(&mut self, config: Config) {
        let now = Instant::now();
        // What cannot change while we run stays as it is.
        self.config = Config {
            sip: crate::config::Sip {
                no_destination: config.sip.no_destination,
                drain: config.sip.drain,
                ..self.config.sip.clone()
            },
            trust: config.trust,
            gate: config.gate,
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
        self.proxy.set_policy(policy(&self.config));
        self.reload_bans();
        let settings = stateful::settings(&self.config, self.peers.me());
        let accounting = stateful::accounting(&self.config, self.peers.me());
        if let (Some(stateful), Some(settings)) = (self.proxy.stateful_mut(), settings) {
            stateful.reload(settings);
            if let Some(records) = stateful.accounting_mut() {
                records.reload(accounting);
            }
            // Whoever has changed users in their table wants that to count.
            if let Some(authenticator) = stateful.authenticator_mut() {
                authenticator.forget_all();
            }
            stateful.handle_pbxs(now, &self.dispatcher);
        }
        self.carry_out();
        self.wake.notify_one();
    }
}

/// The kernel's call table, as the proxy asks for it.
struct Kernel {
    calls: Option<Arc<dyn CallBuckets>>,
    mask: u32,
}

impl KernelCalls for Kernel {
    fn find(&self, hash: u64) -> Option<Call> {
        let bucket = self.calls.as_ref()?.bucket(sip_ebpf::calls::bucket(hash, self.mask))?;
        call_table::find(bucket, hash, monotonic_ns())
    }

    fn change(&self, hash: u64, bits: (u32, u32)) -> Option<Call> {
        let bucket = self.calls.as_ref()?.bucket(sip_ebpf::calls::bucket(hash, self.mask))?;
        call_table::change(bucket, hash, monotonic_ns(), bits)
    }
}
