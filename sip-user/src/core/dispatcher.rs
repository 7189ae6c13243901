//! The PBXs: which there are, which are alive, and whose turn it is.
//!
//! State in, commands out. Call any `handle_*` or operator method, then take commands with
//! [`Dispatcher::poll_command`] until there are none, and call [`Dispatcher::handle_timeout`] when
//! [`Dispatcher::poll_timeout`] says. The commands are the only way anything leaves: probes to send, and
//! the kernel's tables `PBXS` and `SCHEDULE`, which mirror what is decided here. These have room for IPv4
//! only: PBXs with IPv6 addresses share the numbering of slots, but are unused there, and have turns of
//! their own.
//!
//! A PBX has two sides. Its owner's will ([`AdminState`]) comes from the configuration or from the
//! control command. Its health comes from probes and from ICMP. What it is used for ([`PbxState`]) follows
//! from both.

use std::collections::VecDeque;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::Serialize;
use sip_ebpf::tables::{Endpoint, MAX_PBX, Pbx, PbxState, SCHEDULE_SLOTS, Schedule};

use super::family::{ByFamily, Family};
use super::probe::{self, Token};
use crate::config::{self, AdminState, PbxConfig, Probe};

/// T1 of RFC 3261 17.1.2.1: how long until a request is repeated over UDP; doubled with each repetition.
const T1: Duration = Duration::from_millis(500);
/// T2 of RFC 3261 17.1.2.2: the longest time between two repetitions.
const T2: Duration = Duration::from_secs(4);
/// How late a timeout may be noticed and still count. Later than this it was us who slept, and a PBX does
/// not pay for that.
const OWN_LATENESS: Duration = Duration::from_millis(300);
/// The first probes go out within this time, spread evenly.
const FIRST_PROBES: Duration = Duration::from_secs(1);

/// What the world has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Send a probe from our address `from` to `to`.
    Send {
        /// An address of ours.
        from: SocketAddr,
        /// The PBX.
        to: SocketAddr,
        /// An OPTIONS request.
        datagram: Vec<u8>,
    },
    /// Write one slot of `PBXS`.
    Pbx {
        /// The slot.
        slot: u32,
        /// Its value.
        pbx: Pbx,
    },
    /// Write `SCHEDULE`.
    Schedule(Box<Schedule>),
    /// Tell people: a PBX is used differently from now on.
    Changed {
        /// Its id.
        id: String,
        /// What it was used for.
        from: PbxState,
        /// What it is used for.
        to: PbxState,
        /// Why.
        reason: String,
    },
}

/// Why a PBX is taken for dead.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fault {
    /// No answer to a probe.
    Timeout,
    /// An answer to a probe that does not count as alive.
    Answer(u16),
    /// An ICMP error for a packet to it, or no route.
    Unreachable(Unreachable),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("no answer to OPTIONS"),
            Self::Answer(code) => write!(f, "OPTIONS answered with {code}"),
            Self::Unreachable(what) => write!(f, "{what} unreachable"),
        }
    }
}

/// What an ICMP error says that cannot be reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Unreachable {
    Port,
    Host,
    Network,
    Protocol,
    /// By a filter.
    Prohibited,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Port => "port",
            Self::Host => "host",
            Self::Network => "network",
            Self::Protocol => "protocol",
            Self::Prohibited => "administratively",
        })
    }
}

/// Where a PBX comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The configuration file: a reload may change or remove it.
    File,
    /// The control command: it stays until it is removed or the daemon ends.
    Hand,
}

/// Why an order was refused. Nothing has changed then.
#[derive(Clone, Debug, Eq, PartialEq)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Refusal {
    UnknownId(String),
    IdTaken(String),
    AddressTaken { address: SocketAddr, by: String },
    BadId(String),
    BadAddress { address: SocketAddr, fault: &'static str },
    BadWeight(u8),
    Full,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownId(id) => write!(f, "there is no PBX \"{id}\""),
            Self::IdTaken(id) => write!(f, "there is a PBX \"{id}\" already"),
            Self::AddressTaken { address, by } => {
                write!(f, "{address} is the address of PBX \"{by}\" already")
            }
            Self::BadId(id) => write!(
                f,
                "\"{id}\" cannot be an id: use 1 to 32 letters, digits, dots, dashes and _"
            ),
            Self::BadAddress { address, fault } => write!(f, "{address}: {fault}"),
            Self::BadWeight(weight) => write!(f, "weight is {weight}: it goes from 1 to 16"),
            Self::Full => write!(f, "there are {MAX_PBX} PBXs already"),
        }
    }
}

impl std::error::Error for Refusal {}

/// How one PBX is, for people.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its slot in the tables.
    pub slot: u32,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share of new calls.
    pub weight: u8,
    /// What it is used for.
    pub state: PbxState,
    /// Since when.
    pub since: Instant,
    /// Why, where there is something to say.
    pub reason: Option<String>,
    /// What its owner wants.
    pub admin: AdminState,
    /// Where it comes from.
    pub origin: Origin,
    /// Failures in a row.
    pub failures: u32,
    /// How the last probe ended.
    pub last_probe: Option<Result<u16, Fault>>,
    /// How long the last answered probe took.
    pub round_trip: Option<Duration>,
}

/// The PBXs. See the module.
#[derive(Debug)]
pub struct Dispatcher {
    /// The address of each family that probes leave from.
    locals: ByFamily<Option<SocketAddr>>,
    rules: Probe,
    slots: Vec<Option<Entry>>,
    /// When each slot was left empty, as a count of removals; a slot is taken again as late as possible,
    /// because cookies of calls in progress name it.
    left: Vec<u64>,
    removals: u64,
    accepting: bool,
    turns: ByFamily<Turns>,
    tokens: RandomState,
    probes: u64,
    commands: VecDeque<Command>,
}

/// Whose turn it is among the PBXs of one family.
#[derive(Debug, Default)]
struct Turns {
    schedule: Schedule,
    turn: usize,
}

#[derive(Debug)]
struct Entry {
    id: String,
    address: SocketAddr,
    weight: u8,
    admin: AdminState,
    /// What the file last said, so that a reload changes only what somebody changed in the file.
    file: Option<AdminState>,
    dead: Option<Fault>,
    state: PbxState,
    since: Instant,
    failures: u32,
    successes: u32,
    next_probe: Instant,
    probe: Option<Outstanding>,
    last_probe: Option<Result<u16, Fault>>,
    round_trip: Option<Duration>,
}

#[derive(Debug)]
struct Outstanding {
    token: Token,
    sent: Instant,
    deadline: Instant,
    repeat: Instant,
    gap: Duration,
    datagram: Vec<u8>,
}

impl Entry {
    fn used_for(&self) -> PbxState {
        match (self.admin, &self.dead) {
            (AdminState::Disabled, _) => PbxState::Disabled,
            (_, Some(_)) => PbxState::Inactive,
            (AdminState::Draining, None) => PbxState::Draining,
            (AdminState::Active, None) => PbxState::Active,
        }
    }

    /// As the kernel has it, which knows nothing of IPv6: there such a slot is unused.
    fn table(&self) -> Pbx {
        let SocketAddr::V4(v4) = self.address else { return Pbx::default() };
        let Endpoint { addr, port, .. } = Endpoint::new(v4.ip().octets(), v4.port());
        Pbx { addr, port, state: self.state as u8, pad: 0 }
    }
}

impl Dispatcher {
    /// None yet. `locals` are our addresses: probes leave from the first one of the PBX's family.
    pub fn new(locals: &[SocketAddr], rules: Probe) -> Self {
        Self {
            locals: ByFamily::first(locals),
            rules,
            slots: (0..MAX_PBX).map(|_| None).collect(),
            left: vec![0; MAX_PBX as usize],
            removals: 0,
            accepting: true,
            turns: ByFamily::default(),
            tokens: RandomState::new(),
            probes: 0,
            commands: VecDeque::new(),
        }
    }

    // ---- What happens ---------------------------------------------------------------------------

    /// Takes the PBXs and the rules of a configuration; also the first time. Who is in both keeps what is
    /// known about its life; who was given by hand stays.
    ///
    /// An order given by hand (drain, disable, enable) stays in force unless the file's own `state` has
    /// changed since the last time.
    pub fn reload(
        &mut self,
        now: Instant,
        pbxs: &[PbxConfig],
        rules: Probe,
    ) -> Result<(), Refusal> {
        self.reload_fault(pbxs)?;
        self.rules = rules;
        for slot in 0..MAX_PBX {
            let gone = self.entry(slot).is_some_and(|entry| {
                entry.file.is_some() && !pbxs.iter().any(|pbx| pbx.id == entry.id)
            });
            if gone {
                self.take_out(slot);
            }
        }
        // By id, so that the order in the file does not move anybody to another slot after a restart.
        let mut sorted: Vec<_> = pbxs.iter().collect();
        sorted.sort_by(|a, b| a.id.cmp(&b.id));
        let gap =
            FIRST_PROBES.min(self.rules.interval) / u32::try_from(sorted.len().max(1)).unwrap_or(1);
        let mut first = now;
        for pbx in sorted {
            if let Some(slot) = self.slot_of(&pbx.id) {
                self.update(now, slot, pbx);
            } else {
                self.put_in(first, now, pbx, Some(pbx.state));
                first += gap;
            }
        }
        self.reschedule();
        Ok(())
    }

    /// Why [`Dispatcher::reload`] would be refused, if so.
    pub fn reload_fault(&self, pbxs: &[PbxConfig]) -> Result<(), Refusal> {
        pbxs.iter().try_for_each(|pbx| self.within_reach(pbx.address))?;
        let by_hand = self.entries().filter(|(_, e)| e.file.is_none());
        let mut stay = 0;
        for (_, entry) in by_hand {
            if pbxs.iter().any(|pbx| pbx.id == entry.id) {
                continue;
            }
            stay += 1;
            if pbxs.iter().any(|pbx| pbx.address == entry.address) {
                let (address, by) = (entry.address, entry.id.clone());
                return Err(Refusal::AddressTaken { address, by });
            }
        }
        if pbxs.len() + stay > MAX_PBX as usize { Err(Refusal::Full) } else { Ok(()) }
    }

    /// A final answer, or a provisional one, to the probe with this token. Says whether there is one.
    pub fn handle_answer(&mut self, now: Instant, token: Token, code: u16) -> bool {
        let found = self.entries().find_map(|(slot, entry)| {
            let probe = entry.probe.as_ref()?;
            (probe.token == token).then_some((slot, probe.sent))
        });
        let Some((slot, sent)) = found else {
            return false;
        };
        if code < 200 {
            return true;
        }
        let alive = self.rules.accept.accepts(code);
        if let Some(entry) = self.entry_mut(slot) {
            entry.round_trip = Some(now.saturating_duration_since(sent));
        }
        if alive {
            self.success(now, slot, code);
        } else {
            self.failure(now, slot, Fault::Answer(code));
        }
        true
    }

    /// An ICMP error for a packet that we or the kernel program sent to `to`. It counts at once, and the
    /// PBX is asked again at once: a forged error takes nobody out for long.
    pub fn handle_unreachable(&mut self, now: Instant, to: SocketAddr, what: Unreachable) {
        let Some(slot) = self.slot_at(to) else { return };
        let fall = self.rules.fall;
        let Some(entry) = self.entry_mut(slot) else {
            return;
        };
        if entry.admin == AdminState::Disabled {
            return;
        }
        let news = entry.dead.is_none();
        entry.failures = entry.failures.max(fall - 1);
        let asked = entry.probe.is_some();
        if news {
            entry.next_probe = now;
        }
        if news || asked {
            self.failure(now, slot, Fault::Unreachable(what));
        }
    }

    /// Time has passed. Read what has arrived before this, or an answer that waits is taken for missing.
    pub fn handle_timeout(&mut self, now: Instant) {
        for slot in 0..MAX_PBX {
            self.probe_timeout(now, slot);
            self.probe_start(now, slot);
        }
    }

    /// When [`Dispatcher::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.entries()
            .filter(|(_, entry)| entry.admin != AdminState::Disabled)
            .filter_map(|(_, entry)| match &entry.probe {
                Some(probe) => Some(probe.deadline.min(probe.repeat)),
                None => self.local_for(entry.address).map(|_| entry.next_probe),
            })
            .min()
    }

    /// What to do next.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    // ---- What operators order -------------------------------------------------------------------

    /// A PBX given by hand.
    pub fn add(&mut self, now: Instant, pbx: &PbxConfig) -> Result<u32, Refusal> {
        if !config::is_pbx_id(&pbx.id) {
            return Err(Refusal::BadId(pbx.id.clone()));
        }
        if let Some(fault) = config::pbx_address_fault(pbx.address) {
            return Err(Refusal::BadAddress { address: pbx.address, fault });
        }
        self.within_reach(pbx.address)?;
        if !config::WEIGHTS.contains(&pbx.weight) {
            return Err(Refusal::BadWeight(pbx.weight));
        }
        if self.slot_of(&pbx.id).is_some() {
            return Err(Refusal::IdTaken(pbx.id.clone()));
        }
        if let Some((_, entry)) = self.entries().find(|(_, e)| e.address == pbx.address) {
            return Err(Refusal::AddressTaken { address: pbx.address, by: entry.id.clone() });
        }
        if self.entries().count() == MAX_PBX as usize {
            return Err(Refusal::Full);
        }
        let slot = self.put_in(now, now, pbx, None);
        self.reschedule();
        Ok(slot)
    }

    /// Takes a PBX away. Requests of its calls find no way to it from now on.
    pub fn remove(&mut self, id: &str) -> Result<(), Refusal> {
        let slot = self.slot_of(id).ok_or_else(|| Refusal::UnknownId(id.to_owned()))?;
        self.take_out(slot);
        self.reschedule();
        Ok(())
    }

    /// What its owner wants of a PBX from now on.
    pub fn set_admin(&mut self, now: Instant, id: &str, admin: AdminState) -> Result<(), Refusal> {
        let slot = self.slot_of(id).ok_or_else(|| Refusal::UnknownId(id.to_owned()))?;
        self.order(now, slot, admin, "by hand");
        self.reschedule();
        Ok(())
    }

    /// Whether new calls are taken at all; `false` empties the schedules, for a stop in good order.
    pub fn set_accepting(&mut self, accepting: bool) {
        self.accepting = accepting;
        self.reschedule();
    }

    // ---- What there is --------------------------------------------------------------------------

    /// The slot whose turn it is among the PBXs of a family, for a new call that the daemon places.
    pub fn next_slot(&mut self, family: Family) -> Option<u32> {
        let Turns { schedule, turn } = self.turns.get_mut(family);
        let len = schedule.len as usize;
        if len == 0 {
            return None;
        }
        *turn = (*turn + 1) % len;
        schedule.slots.get(*turn).map(|slot| u32::from(*slot))
    }

    /// Whose turn it is, as the kernel has it.
    pub fn schedule(&self) -> &Schedule {
        &self.turns.v4.schedule
    }

    /// One slot as the kernel has it: unused if it is empty or its PBX has an IPv6 address.
    pub fn pbx(&self, slot: u32) -> Pbx {
        self.entry(slot).map_or_else(Pbx::default, Entry::table)
    }

    /// The PBX in a slot, if it has an address of this family: where it listens and what it is used for.
    pub fn pbx_of(&self, slot: u32, family: Family) -> Option<(SocketAddr, PbxState)> {
        let entry = self.entry(slot)?;
        (Family::of(entry.address) == family).then_some((entry.address, entry.state))
    }

    /// Whether any PBX, dead or alive, has an address of this family.
    pub fn has(&self, family: Family) -> bool {
        self.entries().any(|(_, entry)| Family::of(entry.address) == family)
    }

    /// The slot of the PBX that listens at `address`.
    pub fn slot_at(&self, address: SocketAddr) -> Option<u32> {
        self.entries().find(|(_, e)| e.address == address).map(|(slot, _)| slot)
    }

    /// All PBXs in the order of their ids.
    pub fn views(&self) -> Vec<View<'_>> {
        let mut views: Vec<_> = self
            .entries()
            .map(|(slot, e)| View {
                id: &e.id,
                slot,
                address: e.address,
                weight: e.weight,
                state: e.state,
                since: e.since,
                reason: match (&e.dead, e.state) {
                    (Some(fault), PbxState::Inactive) => Some(fault.to_string()),
                    _ => None,
                },
                admin: e.admin,
                origin: if e.file.is_some() { Origin::File } else { Origin::Hand },
                failures: e.failures,
                last_probe: e.last_probe.clone(),
                round_trip: e.round_trip,
            })
            .collect();
        views.sort_by(|a, b| a.id.cmp(b.id));
        views
    }

    // ---- Health ---------------------------------------------------------------------------------

    fn probe_timeout(&mut self, now: Instant, slot: u32) {
        let local = self.entry(slot).and_then(|entry| self.local_for(entry.address));
        let Some(entry) = self.entry_mut(slot) else {
            return;
        };
        let Some(probe) = &mut entry.probe else {
            return;
        };
        if now >= probe.deadline {
            if now.saturating_duration_since(probe.deadline) > OWN_LATENESS {
                // The answer may have come and gone while we slept: ask again.
                entry.probe = None;
                entry.next_probe = now;
            } else {
                self.failure(now, slot, Fault::Timeout);
            }
        } else if now >= probe.repeat {
            probe.gap = (probe.gap * 2).min(T2);
            probe.repeat = now + probe.gap;
            if let Some(from) = local {
                let (to, datagram) = (entry.address, probe.datagram.clone());
                self.commands.push_back(Command::Send { from, to, datagram });
            }
        }
    }

    fn probe_start(&mut self, now: Instant, slot: u32) {
        let local = self.entry(slot).and_then(|entry| self.local_for(entry.address));
        let Some(from) = local else { return };
        let (interval, timeout) = (self.rules.interval, self.rules.timeout);
        let token = Token(self.tokens.hash_one((self.probes, slot)));
        let Some(entry) = self.entry_mut(slot) else {
            return;
        };
        if entry.admin == AdminState::Disabled || entry.probe.is_some() || now < entry.next_probe {
            return;
        }
        // From when it was due and not from now, so that the spread stays; unless we are far behind.
        entry.next_probe = (entry.next_probe + interval).max(now + interval / 2);
        let to = entry.address;
        let datagram = probe::options(from, to, token);
        entry.probe = Some(Outstanding {
            token,
            sent: now,
            deadline: now + timeout,
            repeat: now + T1,
            gap: T1,
            datagram: datagram.clone(),
        });
        self.probes += 1;
        self.commands.push_back(Command::Send { from, to, datagram });
    }

    fn success(&mut self, now: Instant, slot: u32, code: u16) {
        let rise = self.rules.rise;
        let Some(entry) = self.entry_mut(slot) else {
            return;
        };
        entry.probe = None;
        entry.last_probe = Some(Ok(code));
        entry.failures = 0;
        entry.successes = entry.successes.saturating_add(1);
        if entry.dead.is_some() && entry.successes >= rise {
            entry.dead = None;
            self.settle(now, slot, &format!("OPTIONS answered with {code}"));
            self.reschedule();
        }
    }

    fn failure(&mut self, now: Instant, slot: u32, fault: Fault) {
        let fall = self.rules.fall;
        let Some(entry) = self.entry_mut(slot) else {
            return;
        };
        entry.probe = None;
        entry.last_probe = Some(Err(fault.clone()));
        entry.successes = 0;
        entry.failures = entry.failures.saturating_add(1);
        if entry.dead.is_some() {
            // The reason stays the first one, which says what happened.
            return;
        }
        if entry.failures >= fall {
            let reason = fault.to_string();
            entry.dead = Some(fault);
            self.settle(now, slot, &reason);
            self.reschedule();
        }
    }

    // ---- Slots ----------------------------------------------------------------------------------

    fn put_in(
        &mut self,
        first_probe: Instant,
        now: Instant,
        pbx: &PbxConfig,
        file: Option<AdminState>,
    ) -> u32 {
        let slot = self.free_slot(&pbx.id);
        let entry = Entry {
            id: pbx.id.clone(),
            address: pbx.address,
            weight: pbx.weight,
            admin: pbx.state,
            file,
            dead: None,
            state: PbxState::Unused,
            since: now,
            failures: 0,
            successes: 0,
            next_probe: first_probe,
            probe: None,
            last_probe: None,
            round_trip: None,
        };
        if let Some(place) = self.slots.get_mut(slot as usize) {
            *place = Some(entry);
        }
        self.settle(now, slot, if file.is_some() { "configured" } else { "added by hand" });
        slot
    }

    fn update(&mut self, now: Instant, slot: u32, pbx: &PbxConfig) {
        let Some(entry) = self.entry_mut(slot) else {
            return;
        };
        entry.weight = pbx.weight;
        let said_before = entry.file.replace(pbx.state);
        if entry.address != pbx.address {
            // Another machine, of which nothing is known.
            entry.address = pbx.address;
            entry.dead = None;
            entry.probe = None;
            entry.last_probe = None;
            entry.round_trip = None;
            entry.failures = 0;
            entry.successes = 0;
            entry.next_probe = now;
            let table = entry.table();
            self.commands.push_back(Command::Pbx { slot, pbx: table });
            self.settle(now, slot, "its address has changed");
        }
        if said_before != Some(pbx.state) {
            self.order(now, slot, pbx.state, "configured");
        }
    }

    fn order(&mut self, now: Instant, slot: u32, admin: AdminState, reason: &str) {
        let Some(entry) = self.entry_mut(slot) else {
            return;
        };
        if entry.admin == AdminState::Disabled && admin != AdminState::Disabled {
            // What was known when it was disabled is old: ask now.
            entry.next_probe = now;
        }
        if admin == AdminState::Disabled {
            entry.probe = None;
        }
        entry.admin = admin;
        self.settle(now, slot, reason);
    }

    fn take_out(&mut self, slot: u32) {
        let Some(entry) = self.slots.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        self.removals += 1;
        if let Some(left) = self.left.get_mut(slot as usize) {
            *left = self.removals;
        }
        self.commands.push_back(Command::Pbx { slot, pbx: Pbx::default() });
        self.commands.push_back(Command::Changed {
            id: entry.id,
            from: entry.state,
            to: PbxState::Unused,
            reason: "removed".to_owned(),
        });
    }

    /// Brings what a PBX is used for in line with its two sides, and mirrors it.
    fn settle(&mut self, now: Instant, slot: u32, reason: &str) {
        let Some(entry) = self.entry_mut(slot) else {
            return;
        };
        let (from, to) = (entry.state, entry.used_for());
        if from == to {
            return;
        }
        entry.state = to;
        entry.since = now;
        let (id, pbx) = (entry.id.clone(), entry.table());
        self.commands.push_back(Command::Pbx { slot, pbx });
        self.commands.push_back(Command::Changed { id, from, to, reason: reason.to_owned() });
    }

    fn reschedule(&mut self) {
        for family in [Family::V4, Family::V6] {
            let mut weights = Vec::new();
            if self.accepting {
                let of_family = self.entries().filter(|(_, entry)| {
                    entry.state == PbxState::Active && Family::of(entry.address) == family
                });
                weights.extend(of_family.map(|(slot, e)| (slot as u8, u32::from(e.weight))));
            }
            let (len, slots) = interleave(&weights);
            let schedule = &mut self.turns.get_mut(family).schedule;
            if (len, slots) == (schedule.len, schedule.slots) {
                continue;
            }
            let generation = schedule.generation.wrapping_add(1);
            *schedule = Schedule { len, generation, slots };
            if family == Family::V4 {
                let schedule = Box::new(*schedule);
                self.commands.push_back(Command::Schedule(schedule));
            }
        }
    }

    /// The address of ours that a PBX is reached from.
    fn local_for(&self, pbx: SocketAddr) -> Option<SocketAddr> {
        *self.locals.get(Family::of(pbx))
    }

    fn within_reach(&self, address: SocketAddr) -> Result<(), Refusal> {
        match self.local_for(address) {
            Some(_) => Ok(()),
            None => {
                let fault = match Family::of(address) {
                    Family::V4 => {
                        "we listen on no IPv4 address: sip.listen needs one, and a restart"
                    }
                    Family::V6 => {
                        "we listen on no IPv6 address: sip.listen needs one, and a restart"
                    }
                };
                Err(Refusal::BadAddress { address, fault })
            }
        }
    }

    /// A slot for a new PBX: the one that its id points at, or the next free one, so that after a restart
    /// and on the other node of a pair it has most likely the same. Among free slots the one that has
    /// been free longest wins.
    fn free_slot(&self, id: &str) -> u32 {
        let start = fnv1a(id.as_bytes()) % MAX_PBX;
        (0..MAX_PBX)
            .map(|step| (start + step) % MAX_PBX)
            .filter(|slot| self.entry(*slot).is_none())
            .min_by_key(|slot| self.left.get(*slot as usize).copied())
            .unwrap_or(start)
    }

    fn slot_of(&self, id: &str) -> Option<u32> {
        self.entries().find(|(_, entry)| entry.id == id).map(|(slot, _)| slot)
    }

    fn entries(&self) -> impl Iterator<Item = (u32, &Entry)> {
        (0..).zip(&self.slots).filter_map(|(slot, entry)| Some((slot, entry.as_ref()?)))
    }

    fn entry(&self, slot: u32) -> Option<&Entry> {
        self.slots.get(slot as usize)?.as_ref()
    }

    fn entry_mut(&mut self, slot: u32) -> Option<&mut Entry> {
        self.slots.get_mut(slot as usize)?.as_mut()
    }
}

/// FNV-1a of 32 bits: no secret, only the same on every node.
fn fnv1a(bytes: &[u8]) -> u32 {
    bytes.iter().fold(0x811c_9dc5, |hash, b| (hash ^ u32::from(*b)).wrapping_mul(0x0100_0193))
}

/// Smooth weighted round robin (as nginx does it): each slot as often as its weight says, spread as evenly
/// as can be. Weights are reduced by their common divisor, and scaled down if a round would not fit.
fn interleave(weights: &[(u8, u32)]) -> (u32, [u8; SCHEDULE_SLOTS]) {
    let mut slots = [0; SCHEDULE_SLOTS];
    let divisor = weights.iter().fold(0, |a, (_, w)| gcd(a, *w)).max(1);
    let mut weights: Vec<_> = weights.iter().map(|(slot, w)| (*slot, w / divisor)).collect();
    let sum: u32 = weights.iter().map(|(_, w)| w).sum();
    if sum as usize > SCHEDULE_SLOTS {
        // Rounding the small ones up to one adds less than one for each PBX.
        let room = SCHEDULE_SLOTS as u32 - MAX_PBX;
        for (_, weight) in &mut weights {
            *weight = (*weight * room / sum).max(1);
        }
    }
    let len: u32 = weights.iter().map(|(_, w)| w).sum();
    let mut current: Vec<i64> = vec![0; weights.len()];
    for place in slots.iter_mut().take(len as usize) {
        for (now, (_, weight)) in current.iter_mut().zip(&weights) {
            *now += i64::from(*weight);
        }
        // The first of the highest, so that the order of slots decides between equals.
        let mut best = 0;
        for (i, now) in current.iter().enumerate() {
            if *now > current[best] {
                best = i;
            }
        }
        current[best] -= i64::from(len);
        *place = weights[best].0;
    }
    (len, slots)
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Accept;

    const SECOND: Duration = Duration::from_secs(1);

    fn rules() -> Probe {
        Probe {
            interval: 15 * SECOND,
            timeout: 2 * SECOND,
            fall: 3,
            rise: 2,
            accept: Accept::default(),
        }
    }

    fn pbx(n: u8) -> PbxConfig {
        PbxConfig {
            id: format!("pbx{n}"),
            address: address(n),
            weight: 1,
            state: AdminState::Active,
        }
    }

    fn address(n: u8) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, n], 5060))
    }

    fn local() -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 254], 5060))
    }

    fn local6() -> SocketAddr {
        "[2001:db8::fe]:5060".parse().unwrap()
    }

    fn address6(n: u8) -> SocketAddr {
        format!("[2001:db8::{n}]:5060").parse().unwrap()
    }

    /// A PBX with an IPv6 address.
    fn pbx6(n: u8) -> PbxConfig {
        PbxConfig { address: address6(n), ..pbx(n) }
    }

    /// A dispatcher in a world where time passes only when a test says so.
    struct World {
        dispatcher: Dispatcher,
        now: Instant,
        sent: Vec<(Instant, SocketAddr, Token)>,
        changes: Vec<(Duration, String)>,
        start: Instant,
        pbxs: [Pbx; MAX_PBX as usize],
        schedule: Schedule,
        /// Addresses that answer probes, with the code.
        alive: Vec<(SocketAddr, u16)>,
    }

    impl World {
        fn new(rules: Probe, pbxs: &[PbxConfig]) -> Self {
            let start = Instant::now();
            let mut world = Self {
                dispatcher: Dispatcher::new(&[local(), local6()], rules.clone()),
                now: start,
                start,
                sent: Vec::new(),
                changes: Vec::new(),
                pbxs: [Pbx::default(); MAX_PBX as usize],
                schedule: Schedule::default(),
                alive: pbxs.iter().map(|p| (p.address, 200)).collect(),
            };
            world.dispatcher.reload(start, pbxs, rules).unwrap();
            world.settle();
            world
        }

        /// Applies commands as the daemon does, PBXs answering at once.
        fn settle(&mut self) {
            while let Some(command) = self.dispatcher.poll_command() {
                match command {
                    Command::Send { from, to, datagram } => {
                        assert_eq!(from, if to.is_ipv4() { local() } else { local6() });
                        let text = String::from_utf8(datagram).unwrap();
                        let at = text.find("branch=").unwrap() + 7;
                        let token = Token::from_branch(&text.as_bytes()[at..at + 26]).unwrap();
                        self.sent.push((self.now, to, token));
                        if let Some((_, code)) = self.alive.iter().find(|(a, _)| *a == to) {
                            assert!(self.dispatcher.handle_answer(self.now, token, *code));
                        }
                    }
                    Command::Pbx { slot, pbx } => self.pbxs[slot as usize] = pbx,
                    Command::Schedule(schedule) => self.schedule = *schedule,
                    Command::Changed { id, from, to, reason } => {
                        let text = format!("{id} {from:?} {to:?}: {reason}");
                        self.changes.push((self.now - self.start, text));
                    }
                }
            }
            // What is mirrored is what is decided.
            for slot in 0..MAX_PBX {
                assert_eq!(self.pbxs[slot as usize], self.dispatcher.pbx(slot));
            }
            assert_eq!(&self.schedule, self.dispatcher.schedule());
        }

        /// Lets time pass, waking up when asked to.
        fn pass(&mut self, time: Duration) {
            let end = self.now + time;
            while let Some(next) = self.dispatcher.poll_timeout().filter(|t| *t <= end) {
                self.now = self.now.max(next);
                self.dispatcher.handle_timeout(self.now);
                self.settle();
            }
            self.now = end;
        }

        fn state(&self, n: u8) -> PbxState {
            let id = format!("pbx{n}");
            self.dispatcher.views().iter().find(|v| v.id == id).unwrap().state
        }

        fn turns(&self) -> Vec<u8> {
            self.schedule.slots[..self.schedule.len as usize].to_vec()
        }

        fn kill(&mut self, n: u8) {
            self.alive.retain(|(a, _)| *a != address(n));
        }

        fn slot(&self, n: u8) -> u8 {
            self.dispatcher.slot_at(address(n)).unwrap() as u8
        }
    }

    #[test]
    fn first_probes_are_spread_and_then_regular() {
        let mut world = World::new(rules(), &[pbx(1), pbx(2)]);
        world.pass(31 * SECOND);
        let times: Vec<_> =
            world.sent.iter().map(|(t, _, _)| (*t - world.start).as_millis()).collect();
        assert_eq!(times, [0, 500, 15_000, 15_500, 30_000, 30_500]);
        let mut tokens: Vec<_> = world.sent.iter().map(|(_, _, t)| t.0).collect();
        tokens.sort();
        tokens.dedup();
        assert_eq!(tokens.len(), 6);
    }

    #[test]
    fn a_silent_pbx_is_out_after_fall_failures_and_in_after_rise_successes() {
        let mut world = World::new(rules(), &[pbx(1), pbx(2)]);
        world.pass(SECOND);
        world.kill(1);
        // Probes at 15, 30 and 45 s, the last given up at 47 s.
        world.pass(45 * SECOND);
        assert_eq!(world.state(1), PbxState::Active);
        world.pass(SECOND);
        assert_eq!(world.state(1), PbxState::Inactive);
        assert_eq!(world.turns(), [world.slot(2)]);
        assert_eq!(world.dispatcher.views()[0].reason.as_deref(), Some("no answer to OPTIONS"));
        world.alive.push((address(1), 200));
        // 60 s: the first success; 75 s: the second.
        world.pass(20 * SECOND);
        assert_eq!(world.state(1), PbxState::Inactive);
        world.pass(10 * SECOND);
        assert_eq!(world.state(1), PbxState::Active);
        assert_eq!(
            world.changes[2..],
            [
                (47 * SECOND, "pbx1 Active Inactive: no answer to OPTIONS".to_owned()),
                (75 * SECOND, "pbx1 Inactive Active: OPTIONS answered with 200".to_owned()),
            ]
        );
    }

    #[test]
    fn a_probe_is_repeated_within_its_timeout() {
        let mut world = World::new(rules(), &[pbx(1)]);
        world.kill(1);
        world.pass(20 * SECOND);
        let times: Vec<_> =
            world.sent.iter().map(|(t, _, _)| (*t - world.start).as_millis()).collect();
        // T1 = 500 ms, then 1 s; the next would be at 3.5 s, past the timeout (RFC 3261 17.1.2.2).
        assert_eq!(times, [0, 500, 1500, 15_000, 15_500, 16_500]);
        assert_eq!(world.sent[0].2, world.sent[2].2);
        assert_ne!(world.sent[0].2, world.sent[3].2);
    }

    #[test]
    fn one_success_between_failures_starts_the_count_anew() {
        let mut world = World::new(Probe { rise: 1, ..rules() }, &[pbx(1)]);
        for _ in 0..5 {
            world.kill(1);
            world.pass(30 * SECOND);
            world.alive.push((address(1), 200));
            world.pass(15 * SECOND);
        }
        assert_eq!(world.state(1), PbxState::Active);
    }

    #[test]
    fn answers_that_do_not_count_are_failures_and_are_told() {
        let mut world = World::new(rules(), &[pbx(1), pbx(2)]);
        world.alive = vec![(address(1), 503), (address(2), 404)];
        world.pass(60 * SECOND);
        assert_eq!(world.state(1), PbxState::Inactive);
        assert_eq!(world.state(2), PbxState::Active);
        let views = world.dispatcher.views();
        assert_eq!(views[0].reason.as_deref(), Some("OPTIONS answered with 503"));
        assert_eq!(views[1].last_probe, Some(Ok(404)));
    }

    #[test]
    fn provisional_answers_do_not_decide() {
        let mut world = World::new(Probe { fall: 1, ..rules() }, &[pbx(1)]);
        world.alive = vec![(address(1), 100)];
        world.pass(18 * SECOND);
        assert_eq!(world.state(1), PbxState::Inactive);
    }

    #[test]
    fn icmp_counts_at_once_and_asks_at_once() {
        let mut world = World::new(Probe { rise: 1, ..rules() }, &[pbx(1), pbx(2)]);
        world.pass(5 * SECOND);
        world.kill(1);
        world.dispatcher.handle_unreachable(world.now, address(1), Unreachable::Port);
        world.settle();
        assert_eq!(world.state(1), PbxState::Inactive);
        assert_eq!(world.turns(), [world.slot(2)]);
        world.sent.clear();
        world.pass(Duration::ZERO);
        assert_eq!(world.sent.len(), 1);
        assert_eq!(world.sent[0].1, address(1));
        // The probe provokes another error: no probe follows upon that one at once.
        for _ in 0..3 {
            world.dispatcher.handle_unreachable(world.now, address(1), Unreachable::Port);
            world.settle();
            world.pass(Duration::ZERO);
        }
        assert_eq!(world.sent.len(), 1);
        // An error from somewhere else changes nothing.
        world.dispatcher.handle_unreachable(world.now, address(9), Unreachable::Host);
        world.settle();
        assert_eq!(world.state(2), PbxState::Active);
    }

    #[test]
    fn a_forged_icmp_error_is_undone_by_the_probe() {
        let mut world = World::new(Probe { rise: 1, ..rules() }, &[pbx(1)]);
        world.pass(5 * SECOND);
        world.dispatcher.handle_unreachable(world.now, address(1), Unreachable::Host);
        world.settle();
        assert_eq!(world.state(1), PbxState::Inactive);
        assert!(world.turns().is_empty());
        world.pass(Duration::ZERO);
        assert_eq!(world.state(1), PbxState::Active);
    }

    #[test]
    fn our_own_lateness_is_not_held_against_a_pbx() {
        let mut world = World::new(Probe { fall: 1, ..rules() }, &[pbx(1)]);
        world.pass(SECOND);
        world.kill(1);
        world.pass(14 * SECOND);
        // We sleep for a minute with a probe out.
        world.now += 60 * SECOND;
        world.dispatcher.handle_timeout(world.now);
        world.alive.push((address(1), 200));
        world.settle();
        assert_eq!(world.state(1), PbxState::Active);
        assert!(world.sent.last().unwrap().0 == world.now, "asked again at once");
    }

    #[test]
    fn answers_to_nothing_are_not_ours() {
        let mut world = World::new(rules(), &[pbx(1)]);
        world.pass(SECOND);
        assert!(!world.dispatcher.handle_answer(world.now, Token(1), 200));
        // Late: the transaction is over.
        let token = world.sent[0].2;
        assert!(!world.dispatcher.handle_answer(world.now, token, 200));
    }

    #[test]
    fn drain_disable_enable() {
        let mut world = World::new(rules(), &[pbx(1), pbx(2)]);
        world.pass(SECOND);
        let order = |world: &mut World, admin| {
            let now = world.now;
            world.dispatcher.set_admin(now, "pbx1", admin).unwrap();
            world.settle();
        };
        order(&mut world, AdminState::Draining);
        assert_eq!(world.state(1), PbxState::Draining);
        assert_eq!(world.turns(), [world.slot(2)]);
        order(&mut world, AdminState::Disabled);
        assert_eq!(world.state(1), PbxState::Disabled);
        world.sent.clear();
        world.pass(60 * SECOND);
        assert!(world.sent.iter().all(|(_, to, _)| *to != address(1)), "disabled is not probed");
        world.dispatcher.handle_unreachable(world.now, address(1), Unreachable::Port);
        assert_eq!(world.state(1), PbxState::Disabled);
        order(&mut world, AdminState::Active);
        assert_eq!(world.state(1), PbxState::Active);
        world.sent.clear();
        world.pass(Duration::ZERO);
        assert_eq!(world.sent.len(), 1, "asked at once");
        let error = world.dispatcher.set_admin(world.now, "pbx9", AdminState::Active);
        assert_eq!(error, Err(Refusal::UnknownId("pbx9".into())));
    }

    #[test]
    fn a_draining_pbx_that_dies_and_comes_back_is_draining() {
        let mut world = World::new(
            Probe { rise: 1, ..rules() },
            &[PbxConfig { state: AdminState::Draining, ..pbx(1) }],
        );
        world.pass(SECOND);
        world.kill(1);
        world.dispatcher.handle_unreachable(world.now, address(1), Unreachable::Port);
        world.settle();
        assert_eq!(world.state(1), PbxState::Inactive);
        world.alive.push((address(1), 200));
        world.pass(16 * SECOND);
        assert_eq!(world.state(1), PbxState::Draining);
    }

    #[test]
    fn add_and_remove() {
        let mut world = World::new(rules(), &[pbx(1)]);
        let now = world.now;
        let slot = world.dispatcher.add(now, &pbx(2)).unwrap();
        world.alive.push((address(2), 200));
        world.settle();
        assert_eq!(world.turns().len(), 2);
        assert_eq!(world.pbxs[slot as usize].endpoint(), Endpoint::new([10, 0, 0, 2], 5060));
        let refused = |world: &mut World, pbx| world.dispatcher.add(now, &pbx).unwrap_err();
        assert_eq!(refused(&mut world, pbx(1)), Refusal::IdTaken("pbx1".into()));
        assert_eq!(
            refused(&mut world, PbxConfig { id: "other".into(), ..pbx(1) }),
            Refusal::AddressTaken { address: address(1), by: "pbx1".into() }
        );
        assert_eq!(
            refused(&mut world, PbxConfig { id: "a b".into(), ..pbx(3) }),
            Refusal::BadId("a b".into())
        );
        assert_eq!(refused(&mut world, PbxConfig { weight: 17, ..pbx(3) }), Refusal::BadWeight(17));
        let nowhere = PbxConfig { address: "[fe80::1]:5060".parse().unwrap(), ..pbx(3) };
        assert!(matches!(refused(&mut world, nowhere), Refusal::BadAddress { .. }));
        world.dispatcher.remove("pbx2").unwrap();
        world.settle();
        assert_eq!(world.turns(), [world.slot(1)]);
        assert_eq!(world.pbxs[slot as usize], Pbx::default());
        assert_eq!(world.dispatcher.remove("pbx2"), Err(Refusal::UnknownId("pbx2".into())));
    }

    #[test]
    fn there_is_room_for_all_and_no_more() {
        let all: Vec<_> = (1..=64).map(pbx).collect();
        let mut world = World::new(rules(), &all);
        assert_eq!(world.turns().len(), 64);
        let error = world.dispatcher.add(world.now, &pbx(65));
        assert_eq!(error, Err(Refusal::Full));
        let mut more = all.clone();
        more.push(pbx(65));
        assert_eq!(world.dispatcher.reload(world.now, &more, rules()), Err(Refusal::Full));
        assert_eq!(world.dispatcher.views().len(), 64);
    }

    #[test]
    fn slots_follow_the_id_and_not_the_order() {
        let forward = World::new(rules(), &[pbx(1), pbx(2), pbx(3)]);
        let backward = World::new(rules(), &[pbx(3), pbx(2), pbx(1)]);
        let without = World::new(rules(), &[pbx(3)]);
        for n in 1..=3 {
            assert_eq!(forward.slot(n), backward.slot(n));
        }
        assert_eq!(forward.slot(3), without.slot(3));
    }

    #[test]
    fn a_slot_is_reused_as_late_as_possible() {
        let mut world = World::new(rules(), &[pbx(1)]);
        let first = world.slot(1);
        world.dispatcher.remove("pbx1").unwrap();
        // The same id again, on another machine: calls in progress must not reach it.
        world.dispatcher.add(world.now, &PbxConfig { address: address(9), ..pbx(1) }).unwrap();
        assert_ne!(world.slot(9), first);
    }

    #[test]
    fn reload_keeps_what_is_known() {
        let mut world = World::new(rules(), &[pbx(1), pbx(2), pbx(3)]);
        world.pass(SECOND);
        world.kill(1);
        world.dispatcher.handle_unreachable(world.now, address(1), Unreachable::Port);
        world.dispatcher.set_admin(world.now, "pbx2", AdminState::Draining).unwrap();
        let by_hand = PbxConfig { id: "hand".into(), ..pbx(7) };
        world.dispatcher.add(world.now, &by_hand).unwrap();
        world.settle();
        let since = world.dispatcher.views()[1].since;
        // pbx3 goes, pbx4 comes, pbx2 gets a weight.
        let file = [pbx(1), PbxConfig { weight: 3, ..pbx(2) }, pbx(4)];
        world.pass(SECOND);
        world.dispatcher.reload(world.now, &file, rules()).unwrap();
        world.settle();
        let ids: Vec<_> = world.dispatcher.views().iter().map(|v| v.id.to_owned()).collect();
        assert_eq!(ids, ["hand", "pbx1", "pbx2", "pbx4"]);
        assert_eq!(world.state(1), PbxState::Inactive);
        assert_eq!(world.dispatcher.views()[1].since, since);
        assert_eq!(world.state(2), PbxState::Draining, "an order by hand outlives a reload");
        assert_eq!(world.state(4), PbxState::Active);
        // The file speaks about pbx2 itself: that counts.
        let file = [PbxConfig { state: AdminState::Disabled, ..pbx(2) }];
        world.dispatcher.reload(world.now, &file, rules()).unwrap();
        world.settle();
        assert_eq!(world.state(2), PbxState::Disabled);
        assert_eq!(world.dispatcher.views().len(), 2);
    }

    #[test]
    fn reload_that_is_refused_changes_nothing() {
        let mut world = World::new(rules(), &[pbx(1)]);
        let by_hand = PbxConfig { id: "hand".into(), ..pbx(7) };
        world.dispatcher.add(world.now, &by_hand).unwrap();
        world.settle();
        let error = world.dispatcher.reload(world.now, &[pbx(7)], rules());
        assert_eq!(error, Err(Refusal::AddressTaken { address: address(7), by: "hand".into() }));
        assert_eq!(world.dispatcher.poll_command(), None);
        assert_eq!(world.dispatcher.views().len(), 2);
        // The file may take a PBX over by its id.
        let file = [pbx(1), PbxConfig { id: "hand".into(), ..pbx(7) }];
        world.dispatcher.reload(world.now, &file, rules()).unwrap();
        world.dispatcher.reload(world.now, &[pbx(1)], rules()).unwrap();
        world.settle();
        assert_eq!(world.dispatcher.views().len(), 1);
    }

    #[test]
    fn a_changed_address_is_another_machine() {
        let mut world = World::new(rules(), &[pbx(1)]);
        world.pass(SECOND);
        world.kill(1);
        world.dispatcher.handle_unreachable(world.now, address(1), Unreachable::Port);
        world.settle();
        let file = [PbxConfig { address: address(9), ..pbx(1) }];
        world.dispatcher.reload(world.now, &file, rules()).unwrap();
        world.settle();
        assert_eq!(world.state(1), PbxState::Active);
        assert_eq!(world.dispatcher.slot_at(address(1)), None);
        world.sent.clear();
        world.pass(Duration::ZERO);
        assert_eq!(world.sent[0].1, address(9));
    }

    #[test]
    fn nobody_new_while_stopping() {
        let mut world = World::new(rules(), &[pbx(1)]);
        assert!(world.dispatcher.next_slot(Family::V4).is_some());
        world.dispatcher.set_accepting(false);
        world.settle();
        assert_eq!(world.dispatcher.next_slot(Family::V4), None);
        assert_eq!(world.state(1), PbxState::Active, "its calls go on");
    }

    #[test]
    fn turns_go_around() {
        let mut world = World::new(rules(), &[pbx(1), PbxConfig { weight: 2, ..pbx(2) }]);
        let mut count = [0; MAX_PBX as usize];
        for _ in 0..300 {
            count[world.dispatcher.next_slot(Family::V4).unwrap() as usize] += 1;
        }
        assert_eq!(count[world.slot(1) as usize], 100);
        assert_eq!(count[world.slot(2) as usize], 200);
    }

    #[test]
    fn each_family_has_its_turns_and_the_kernel_those_of_ipv4() {
        // Settling checks that the kernel has what is decided.
        let mut world = World::new(rules(), &[pbx(1), pbx6(2), pbx6(3)]);
        world.pass(SECOND);
        assert_eq!(world.sent.len(), 3, "all are probed, each from our address of its family");
        let slot = |world: &World, n| world.dispatcher.slot_at(address6(n)).unwrap();
        let (two, three) = (slot(&world, 2), slot(&world, 3));
        let turns = |world: &mut World, family| {
            let mut turns: Vec<_> =
                (0..4).filter_map(|_| world.dispatcher.next_slot(family)).collect();
            turns.sort_unstable();
            turns
        };
        let one = u32::from(world.slot(1));
        assert_eq!(turns(&mut world, Family::V4), [one; 4]);
        let mut both = [two, two, three, three];
        both.sort_unstable();
        assert_eq!(turns(&mut world, Family::V6), both);
        // The kernel: one PBX, one turn.
        assert_eq!(world.turns(), [world.slot(1)]);
        let used = world.pbxs.iter().filter(|pbx| **pbx != Pbx::default()).count();
        assert_eq!(used, 1);
        let (v4, v6) = (Family::V4, Family::V6);
        assert_eq!(world.dispatcher.pbx_of(two, v6), Some((address6(2), PbxState::Active)));
        assert_eq!(world.dispatcher.pbx_of(two, v4), None);
        assert_eq!(world.dispatcher.pbx_of(one, v6), None);
        // ICMPv6 counts at once, and for its family.
        world.alive.retain(|(a, _)| *a != address6(2));
        world.dispatcher.handle_unreachable(world.now, address6(2), Unreachable::Port);
        world.settle();
        assert_eq!(world.state(2), PbxState::Inactive);
        assert_eq!(turns(&mut world, Family::V6), [three; 4]);
        world.dispatcher.set_admin(world.now, "pbx3", AdminState::Draining).unwrap();
        world.settle();
        assert_eq!(turns(&mut world, Family::V6), [0; 0]);
        assert_eq!(turns(&mut world, Family::V4), [one; 4]);
        assert!(world.dispatcher.has(Family::V6));
    }

    #[test]
    fn a_pbx_that_moves_to_ipv6_leaves_the_kernel() {
        let mut world = World::new(rules(), &[pbx(1), pbx(2)]);
        let slot = world.slot(1);
        world.dispatcher.reload(world.now, &[pbx6(1), pbx(2)], rules()).unwrap();
        world.settle();
        assert_eq!(world.dispatcher.slot_at(address6(1)), Some(u32::from(slot)));
        assert_eq!(world.pbxs[usize::from(slot)], Pbx::default());
        assert_eq!(world.turns(), [world.slot(2)]);
        assert_eq!(world.dispatcher.next_slot(Family::V6), Some(u32::from(slot)));
        world.dispatcher.reload(world.now, &[pbx(1), pbx(2)], rules()).unwrap();
        world.settle();
        assert_eq!(world.turns().len(), 2);
        assert!(!world.dispatcher.has(Family::V6));
    }

    #[test]
    fn a_pbx_needs_an_address_of_ours_in_its_family() {
        let mut dispatcher = Dispatcher::new(&[local()], rules());
        let refused = |refusal: Refusal| {
            let text = refusal.to_string();
            assert!(text.contains("[2001:db8::1]:5060") && text.contains("IPv6"), "{text}");
        };
        let now = Instant::now();
        refused(dispatcher.add(now, &pbx6(1)).unwrap_err());
        refused(dispatcher.reload(now, &[pbx6(1)], rules()).unwrap_err());
        assert!(dispatcher.views().is_empty());
        assert_eq!(dispatcher.poll_command(), None);
        dispatcher.add(now, &pbx(1)).unwrap();
    }

    #[test]
    fn schedules_are_smooth_and_fit() {
        let turns = |weights: &[(u8, u32)]| {
            let (len, slots) = interleave(weights);
            assert!(slots[len as usize..].iter().all(|s| *s == 0));
            slots[..len as usize].to_vec()
        };
        assert!(turns(&[]).is_empty());
        assert_eq!(turns(&[(7, 16)]), [7]);
        assert_eq!(turns(&[(0, 4), (1, 4)]), [0, 1]);
        assert_eq!(turns(&[(0, 5), (1, 1), (2, 1)]), [0, 0, 1, 0, 2, 0, 0]);
        // 64 PBXs whose weights make 544: scaled to fit, everybody has a turn, in about their shares.
        let many: Vec<_> = (0..64).map(|i| (i, u32::from(i) % 16 + 1)).collect();
        let all = turns(&many);
        assert!(all.len() <= 256);
        for (slot, weight) in &many {
            let share = all.iter().filter(|s| *s == slot).count() as f64 / all.len() as f64;
            let fair = f64::from(*weight) / 544.0;
            assert!(share > 0.0 && (share - fair).abs() < 0.006, "{slot}: {share} of {fair}");
        }
        // The worst case: one heavy, the rest light.
        let mut worst: Vec<_> = (0..64).map(|i| (i, 15)).collect();
        worst[0].1 = 16;
        assert!(turns(&worst).len() <= 256);
    }
}
