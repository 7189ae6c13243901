//! How the daemon is at one moment, read from its parts: for `sipline backends` and `sipline stats`, and
//! for the metrics.

use std::collections::BTreeMap;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use sip_ebpf::reason::{Reason, Way};
use sip_ebpf::tables::PbxState;

use super::protocol::{Backend, Share, SocketStats, Stats, XdpStats};
use crate::core::counters::{Counters, Event};
use crate::core::dispatcher::{Dispatcher, Origin};
use crate::core::proxy::Proxy;
use crate::core::stateful::Stateful;
use crate::core::{accounting, authenticator, stateful};
use crate::fastpath::Fastpath;
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
    /// Counters of the daemon.
    pub proxy: &'a Proxy,
    /// Counters of the kernel.
    pub fastpath: &'a mut dyn Fastpath,
    /// Our addresses.
    pub sockets: &'a [Udp],
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
                daemon_calls: of(self.proxy.placed())
                    + self.proxy.stateful().map_or(0, |stateful| of(stateful.placed())),
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
        let mut sockets = Vec::new();
        for socket in self.sockets {
            let (dropped, receive_buffer) = socket.receive_drops()?;
            sockets.push(SocketStats { address: socket.local(), dropped, receive_buffer });
        }
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
            daemon: self.proxy.counters().clone(),
            backends: self.backends()?,
            sockets,
            memory: self.proxy.stateful().map(|stateful| Memory::of(stateful, self.store)),
        })
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
    /// Counters of the daemon.
    pub daemon: Counters,
    /// The PBXs, by id.
    pub backends: Vec<Backend>,
    /// Our addresses.
    pub sockets: Vec<SocketStats>,
    /// What needs memory, if it is configured.
    pub memory: Option<Memory>,
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
    fn of(stateful: &Stateful, store: Option<store::Counters>) -> Self {
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
            store: store.unwrap_or_default(),
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
        let kernel: BTreeMap<_, _> =
            reasons().map(|reason| (reason.name().to_owned(), self.of_kernel(reason))).collect();
        Stats {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: milliseconds(self.course.started.elapsed()),
            stopping: self.course.stopping,
            xdp: self.xdp,
            share: Share::new(by_kernel, by_daemon),
            kernel,
            daemon: self.daemon.named(),
            registrar: None,
            backends: self.backends,
            sockets: self.sockets,
        }
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
