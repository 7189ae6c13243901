//! How the daemon is at one moment, read from its parts: for `sipline backends` and `sipline stats`, and
//! for the metrics.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use sip_ebpf::reason::{Reason, Way};
use sip_ebpf::tables::PbxState;

use super::protocol::{Backend, RegistrarStats, Share, SocketStats, Stats, XdpStats};
use crate::core::bans::{Bans, Why};
use crate::core::counters::{Counters, Event};
use crate::core::dispatcher::{Dispatcher, Origin};
use crate::core::proxy::Proxy;
use crate::core::stateful::Stateful;
use crate::core::{accounting, authenticator, stateful};
use crate::fastpath::{EventCounts, Fastpath};
use crate::io::udp::Udp;
use crate::store;

/// What is known outside of the parts that work.
#[derive(Clone, Copy, Debug)]
pub struct Course {
    /// When the daemon started.
    pub started: Instant,
    /// The same, as the wall clock showed it.
    pub started_at: SystemTime,
    /// When the heart beat last, which it does only while the daemon's loop turns.
    pub beaten: Instant,
    /// Whether new calls are refused because the daemon is about to end.
    pub stopping: bool,
    /// How often a table of the kernel could not be written, and was written anew later.
    pub write_failures: u64,
}

/// The parts that know, borrowed for one look.
pub struct Parts<'a> {
    /// The PBXs.
    pub dispatcher: &'a Dispatcher,
    /// Who is banned.
    pub bans: &'a Bans,
    /// Counters of the kernel.
    pub fastpath: &'a mut dyn Fastpath,
    /// The numbers of all workers.
    pub tally: Tally,
    /// What is written to the store, if there is one.
    pub store: Option<store::Counters>,
    /// The rest.
    pub course: Course,
}

impl Parts<'_> {
    /// The PBXs, by id.
    ///
    /// # Errors
    /// When the kernel's table cannot be read.
    pub fn backends(&mut self) -> Result<Vec<Backend>> {
        let kernel = self.fastpath.pbx_calls().context("the kernel's count of calls")?;
        let now = Instant::now();
        let unix = unix(SystemTime::now());
        let list = self.dispatcher.views().into_iter().map(|view| {
            let age = now.saturating_duration_since(view.since);
            let of = |list: &[u64]| list.get(view.slot as usize).copied().unwrap_or(0);
            Backend {
                id: view.id.to_owned(),
                slot: view.slot,
                address: view.address,
                weight: view.weight,
                state: match view.trial {
                    Some(_) => TRIAL.to_owned(),
                    None => state_name(view.state).to_owned(),
                },
                reason: view.reason,
                since: unix.saturating_sub(age).as_secs(),
                for_ms: milliseconds(age),
                admin: view.admin,
                origin: match view.origin {
                    Origin::File => "file".to_owned(),
                    Origin::Hand => "hand".to_owned(),
                },
                last_probe: view.last_probe.map(|ended| match ended {
                    Ok(code) => code.to_string(),
                    Err(fault) => fault.to_string(),
                }),
                round_trip_us: view
                    .round_trip
                    .map(|time| u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
                failures: view.failures,
                kernel_calls: of(&kernel),
                daemon_calls: of(&self.tally.placed),
            }
        });
        Ok(list.collect())
    }

    /// Everything.
    ///
    /// # Errors
    /// When the kernel's tables or a socket cannot be read.
    pub fn status(&mut self) -> Result<Status> {
        let kernel = self.fastpath.counters().context("the kernel's counters")?;
        let events = self.fastpath.event_counts().context("the kernel's count of events")?;
        let backends = self.backends()?;
        let Tally { daemon, sockets, memory, .. } = std::mem::take(&mut self.tally);
        Ok(Status {
            at: SystemTime::now(),
            course: self.course,
            xdp: XdpStats {
                mode: self.fastpath.mode(),
                interfaces: self.fastpath.attachments().to_vec(),
                description: self.fastpath.describe(),
                write_failures: self.course.write_failures,
            },
            kernel,
            events,
            daemon,
            backends,
            sockets,
            memory: memory.map(|memory| Memory { store: self.store.unwrap_or_default(), ..memory }),
            bans: Banned::of(self.bans),
        })
    }
}

/// The numbers of one worker, or the sum of those of several.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Its counters.
    pub daemon: Counters,
    /// Calls that it placed, by slot.
    pub placed: Vec<u64>,
    /// Its sockets, by address.
    pub sockets: Vec<SocketStats>,
    /// What needs memory, if it is configured; but for the store, of which there is one for all.
    pub memory: Option<Memory>,
}

impl Tally {
    /// Of one worker.
    ///
    /// # Errors
    /// When a socket cannot be read.
    pub fn of(proxy: &Proxy, sockets: &[Udp]) -> io::Result<Self> {
        let sockets = sockets.iter().map(|socket| {
            let (dropped, receive_buffer) = socket.receive_drops()?;
            Ok(SocketStats { address: socket.local(), dropped, receive_buffer })
        });
        let mut placed = proxy.placed().to_vec();
        if let Some(stateful) = proxy.stateful() {
            placed.iter_mut().zip(stateful.placed()).for_each(|(sum, more)| *sum += more);
        }
        Ok(Self {
            daemon: proxy.counters().clone(),
            placed,
            sockets: sockets.collect::<io::Result<_>>()?,
            memory: proxy.stateful().filter(|has| has.registers()).map(Memory::of),
        })
    }

    /// Adds those of another worker.
    pub fn add(&mut self, other: Self) {
        let Self { daemon, placed, sockets, memory } = other;
        self.daemon.add(&daemon);
        self.placed.resize(self.placed.len().max(placed.len()), 0);
        self.placed.iter_mut().zip(placed).for_each(|(sum, more)| *sum += more);
        for socket in sockets {
            match self.sockets.iter_mut().find(|sum| sum.address == socket.address) {
                Some(sum) => {
                    sum.dropped += socket.dropped;
                    sum.receive_buffer += socket.receive_buffer;
                }
                None => self.sockets.push(socket),
            }
        }
        match (&mut self.memory, memory) {
            (Some(sum), Some(more)) => sum.add(&more),
            (None, more) => self.memory = more,
            (Some(_), None) => {}
        }
    }
}

/// How the daemon is at one moment.
#[derive(Clone, Debug)]
pub struct Status {
    /// The moment.
    pub at: SystemTime,
    /// The daemon's own course.
    pub course: Course,
    /// The kernel half.
    pub xdp: XdpStats,
    /// Counters of the kernel; the index is `Reason as usize`.
    pub kernel: Vec<u64>,
    /// What the kernel has put into its ring, and what it had no room for.
    pub events: EventCounts,
    /// Counters of the daemon.
    pub daemon: Counters,
    /// The PBXs, by id.
    pub backends: Vec<Backend>,
    /// Our addresses.
    pub sockets: Vec<SocketStats>,
    /// What needs memory, if it is configured.
    pub memory: Option<Memory>,
    /// Bans in numbers.
    pub bans: Banned,
}

/// Bans in numbers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Banned {
    /// How many there are, by why they were made.
    pub now: [usize; Why::ALL.len()],
    /// How many were made.
    pub made: [u64; Why::ALL.len()],
}

impl Banned {
    fn of(bans: &Bans) -> Self {
        let count = |why| bans.list().filter(|(_, ban)| ban.why == why).count();
        Self { now: Why::ALL.map(count), made: Why::ALL.map(|why| bans.made(why)) }
    }
}

/// How the stateful half is at one moment.
#[derive(Clone, Debug, Default)]
pub struct Memory {
    /// Users who are registered.
    pub users: usize,
    /// Their contacts.
    pub contacts: usize,
    /// Transactions that go on.
    pub transactions: usize,
    /// Calls that have a record and are not over.
    pub calls: usize,
    /// Requests that wait for the secrets of their user.
    pub waiting: usize,
    /// Requests that were refused because too much goes on.
    pub shed: u64,
    /// What happened.
    pub done: stateful::Counts,
    /// What became of credentials.
    pub asked: authenticator::Counts,
    /// What became of calls.
    pub recorded: accounting::Counts,
    /// What was written.
    pub store: store::Counters,
}

impl Memory {
    fn of(stateful: &Stateful) -> Self {
        let accounting = stateful.accounting();
        let asking = stateful.authenticator();
        Self {
            users: stateful.registrar().aors(),
            contacts: stateful.registrar().bindings(),
            transactions: stateful.transactions(),
            calls: accounting.map_or(0, accounting::Accounting::len),
            waiting: asking.map_or(0, authenticator::Authenticator::parked),
            shed: stateful.shed(),
            done: stateful.counts().clone(),
            asked: asking.map(authenticator::Authenticator::counts).unwrap_or_default(),
            recorded: accounting.map(accounting::Accounting::counts).unwrap_or_default(),
            store: store::Counters::default(),
        }
    }

    fn add(&mut self, other: &Self) {
        // Taken apart, so that nothing new is forgotten here.
        let Self {
            users,
            contacts,
            transactions,
            calls,
            waiting,
            shed,
            done,
            asked,
            recorded,
            store: _,
        } = other;
        self.users += users;
        self.contacts += contacts;
        self.transactions += transactions;
        self.calls += calls;
        self.waiting += waiting;
        self.shed += shed;
        add_done(&mut self.done, done);
        let authenticator::Counts {
            passed,
            challenged,
            wrong,
            unavailable,
            fetches,
            fetches_failed,
        } = asked;
        self.asked.passed += passed;
        self.asked.challenged += challenged;
        self.asked.wrong += wrong;
        self.asked.unavailable += unavailable;
        self.asked.fetches += fetches;
        self.asked.fetches_failed += fetches_failed;
        let accounting::Counts { calls, closed, unrecorded, limited } = recorded;
        self.recorded.calls += calls;
        self.recorded.closed += closed;
        self.recorded.unrecorded += unrecorded;
        self.recorded.limited += limited;
    }

    /// As the control socket tells it; `engine` is the name of the store's.
    pub fn stats(&self, engine: &str) -> RegistrarStats {
        let Self { done, asked, store: written, .. } = self;
        let mut counters: BTreeMap<_, _> = [
            ("registered", done.registered),
            ("forwarded", done.forwarded),
            ("failed_over", done.failed_over),
            ("across", done.across),
            ("answered_late", done.answered_late),
            ("shed", done.shed),
            ("absorbed", done.absorbed),
            ("transactions_ended_early", done.ended_early),
            ("no_transaction_left", done.full),
            ("forked", done.forked),
            ("forked_unanswered", done.forked_unanswered),
            ("pbx_challenges_unanswered", done.challenges_unanswered),
            ("credentials_right", asked.passed),
            ("credentials_wrong", asked.wrong),
            ("challenged", asked.challenged),
            ("secrets_unavailable", asked.unavailable),
            ("secrets_fetched", asked.fetches),
            ("secrets_not_fetched", asked.fetches_failed),
            ("store_written", written.written),
            ("store_refused", written.refused),
            ("store_failed", written.failed),
            ("store_reconnects", written.reconnects),
        ]
        .into_iter()
        .map(|(name, count)| (name.to_owned(), count))
        .collect();
        let replies = done.replies.iter();
        counters.extend(replies.map(|(code, count)| (format!("replied_{code}"), *count)));
        RegistrarStats {
            users: self.users,
            contacts: self.contacts,
            transactions: self.transactions,
            waiting: self.waiting,
            store: engine.to_owned(),
            connected: written.connected,
            unwritten: written.waiting_bindings + written.waiting_cdrs,
            counters,
        }
    }
}

impl Status {
    /// How many packets left the kernel's program for a reason.
    pub fn of_kernel(&self, reason: Reason) -> u64 {
        self.kernel.get(reason as usize).copied().unwrap_or(0)
    }

    /// As the control socket tells it.
    pub fn into_stats(self) -> Stats {
        let reasons = || Reason::ALL.iter().copied();
        let by_kernel =
            reasons().filter(|r| r.way() != Way::Up).map(|reason| self.of_kernel(reason)).sum();
        let of = |event| self.daemon.of_event(event);
        let by_daemon = of(Event::Received).saturating_sub(of(Event::ProbeAnswer));
        let mut kernel: BTreeMap<_, _> =
            reasons().map(|reason| (reason.name().to_owned(), self.of_kernel(reason))).collect();
        let EventCounts { copied, uncopied, told, untold } = self.events;
        for (name, count) in [
            ("shadow_copied", copied),
            ("shadow_ring_full", uncopied),
            ("calls_reported", told),
            ("calls_unreported", untold),
        ] {
            kernel.insert(name.to_owned(), count);
        }
        Stats {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: milliseconds(self.course.started.elapsed()),
            stopping: self.course.stopping,
            xdp: self.xdp,
            share: Share::new(by_kernel, by_daemon),
            kernel,
            daemon: self.daemon.named(),
            registrar: None,
            bans: Why::ALL
                .iter()
                .map(|why| (why.name().to_owned(), self.bans.made[*why as usize]))
                .collect(),
            backends: self.backends,
            sockets: self.sockets,
        }
    }
}

fn add_done(sum: &mut stateful::Counts, more: &stateful::Counts) {
    let stateful::Counts {
        registered,
        forwarded,
        failed_over,
        across,
        answered_late,
        shed,
        absorbed,
        ended_early,
        full,
        forked,
        forked_unanswered,
        challenges_unanswered,
        replies,
    } = more;
    sum.registered += registered;
    sum.forwarded += forwarded;
    sum.failed_over += failed_over;
    sum.across += across;
    sum.answered_late += answered_late;
    sum.shed += shed;
    sum.absorbed += absorbed;
    sum.ended_early += ended_early;
    sum.full += full;
    sum.forked += forked;
    sum.forked_unanswered += forked_unanswered;
    sum.challenges_unanswered += challenges_unanswered;
    for (code, more) in replies {
        *sum.replies.entry(*code).or_insert(0) += more;
    }
}

/// A PBX that answers probes but has refused calls: it gets a few, growing, before it is active again.
const TRIAL: &str = "trial";

/// How operators see a PBX: by one of these.
pub const STATES: [&str; 5] = [
    state_name(PbxState::Active),
    TRIAL,
    state_name(PbxState::Inactive),
    state_name(PbxState::Draining),
    state_name(PbxState::Disabled),
];

/// The state's name, stable for operators.
pub const fn state_name(state: PbxState) -> &'static str {
    match state {
        PbxState::Unused => "unused",
        PbxState::Active => "active",
        PbxState::Inactive => "inactive",
        PbxState::Draining => "draining",
        PbxState::Disabled => "disabled",
    }
}

/// Since 1970; a clock before that is one that was never set.
pub(crate) fn unix(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// For the control socket.
pub(crate) fn milliseconds(time: Duration) -> u64 {
    u64::try_from(time.as_millis()).unwrap_or(u64::MAX)
}
