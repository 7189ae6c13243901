//! The PBXs: which there are, which are alive, and whose turn it is.
//!
//! State in, commands out. Call any `handle_*` or operator method, then take commands with
//! [`Dispatcher::poll_command`] until there are none, and call [`Dispatcher::handle_timeout`] when
//! [`Dispatcher::poll_timeout`] says. The commands are the only way anything leaves: probes to send, and
//! the kernel's tables `PBXS` and `SCHEDULE`, which mirror what is decided here. There is one of each for
//! either family: PBXs with IPv6 addresses share the numbering of slots, but are unused in the tables of
//! IPv4, and have turns of their own.
//!
//! A PBX has three sides. Its owner's will ([`AdminState`]) comes from the configuration or from the
//! control command. Its health comes from probes and from ICMP, its standing from its answers to calls: one
//! that refuses them may answer each OPTIONS. What it is used for ([`PbxState`]) follows from all three.
//!
//! Calls are placed in two ways. [`Dispatcher::next_slot`] is for the stateless proxy, which forgets them at
//! once, as the kernel does. [`Dispatcher::place`] is for who sees what becomes of a call: limits and trials
//! count those alone, and a PBX on trial has no others while there is another PBX.

mod calls;
mod replica;
mod schedule;
mod seats;
#[cfg(test)]
mod tests;
mod trial;
mod types;

use std::collections::VecDeque;
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sip_ebpf::tables::{Endpoint, MAX_PBX, Pbx, Pbx6, PbxState, Schedule};

pub use replica::{Evidence, Snapshot};
pub use types::{
    Command, Fault, NoPbx, Origin, Placed, Refusal, Shortage, Ticket, Tried, Unreachable, View,
};

use super::admission::Rate;
use super::family::{ByFamily, Family};
use super::probe::{self, Token};
use super::view::endpoint6;
use crate::config::{self, AdminState, Dispatch, PbxConfig, PbxLimits, Probe};
use replica::Heard;
use schedule::interleave;
use seats::{Flag, Seats, Turn};
use trial::Standing;

/// T1 of RFC 3261 17.1.2.1: how long until a request is repeated over UDP; doubled with each repetition.
const T1: Duration = Duration::from_millis(500);
/// T2 of RFC 3261 17.1.2.2: the longest time between two repetitions.
const T2: Duration = Duration::from_secs(4);
/// How late a timeout may be noticed and still count. Later than this it was us who slept, and a PBX does
/// not pay for that.
const OWN_LATENESS: Duration = Duration::from_millis(300);
/// The first probes go out within this time, spread evenly.
const FIRST_PROBES: Duration = Duration::from_secs(1);

/// [`Dispatcher::taken`] has a bit for each.
const _: () = assert!(MAX_PBX <= u64::BITS);

/// The PBXs. See the module.
#[derive(Debug)]
pub struct Dispatcher {
    /// The address of each family that probes leave from.
    locals: ByFamily<Option<SocketAddr>>,
    rules: Probe,
    call_rules: Dispatch,
    slots: Vec<Option<Entry>>,
    /// A bit for each slot that is taken. Every message asks who sends from its address, and an empty slot is as
    /// large as a taken one: to look into all costs more than all else where caches are cold.
    taken: u64,
    /// When each slot was left empty, as a count of removals; a slot is taken again as late as possible,
    /// because cookies of calls in progress name it.
    left: Vec<u64>,
    removals: u64,
    accepting: bool,
    turns: ByFamily<Turns>,
    tokens: RandomState,
    probes: u64,
    commands: VecDeque<Command>,
    /// See [`Dispatcher::revision`].
    revision: u64,
    /// Whether another one decides.
    follows: bool,
}

/// Whose turn it is among the PBXs of one family.
#[derive(Clone, Debug, Default)]
struct Turns {
    schedule: Schedule,
    turn: Turn,
}

#[derive(Clone, Debug)]
struct Entry {
    id: String,
    address: SocketAddr,
    weight: u8,
    admin: AdminState,
    /// What the file last said, so that a reload changes only what somebody changed in the file.
    file: Option<AdminState>,
    dead: Option<Fault>,
    standing: Standing,
    limits: PbxLimits,
    rate: Rate,
    /// Held by each call that is there.
    seats: Seats,
    /// Whether its last calls have failed.
    failing: Flag,
    state: PbxState,
    since: Instant,
    failures: u32,
    successes: u32,
    next_probe: Instant,
    probe: Option<Outstanding>,
    last_probe: Option<Result<u16, Fault>>,
    round_trip: Option<Duration>,
}

#[derive(Clone, Debug)]
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
        match self.admin {
            AdminState::Disabled => PbxState::Disabled,
            _ if self.dead.is_some() || self.standing.is_out() => PbxState::Inactive,
            AdminState::Draining => PbxState::Draining,
            AdminState::Active => PbxState::Active,
        }
    }

    fn is_wanted(&self) -> bool {
        self.admin == AdminState::Active
    }

    /// As the kernel has it among those of IPv6: unused if its address is of IPv4.
    fn table6(&self) -> Pbx6 {
        match self.address {
            SocketAddr::V4(_) => Pbx6::default(),
            SocketAddr::V6(v6) => Pbx6::new(endpoint6(v6), self.state),
        }
    }

    /// The same among those of IPv4.
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
            call_rules: Dispatch::default(),
            slots: (0..MAX_PBX).map(|_| None).collect(),
            taken: 0,
            left: vec![0; MAX_PBX as usize],
            removals: 0,
            accepting: true,
            turns: ByFamily::default(),
            tokens: RandomState::new(),
            probes: 0,
            commands: VecDeque::new(),
            revision: 0,
            follows: false,
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
        self.revision += 1;
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
        if self.follows {
            return self.tell(Heard::Unreachable(to, what));
        }
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
        if self.follows {
            return;
        }
        for slot in 0..MAX_PBX {
            self.probe_timeout(now, slot);
            self.standing_timeout(now, slot);
            self.probe_start(now, slot);
        }
    }

    /// When [`Dispatcher::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        if self.follows {
            return None;
        }
        let used = self.entries().filter(|(_, entry)| entry.admin != AdminState::Disabled);
        used.flat_map(|(_, entry)| {
            let probe = match &entry.probe {
                Some(probe) => Some(probe.deadline.min(probe.repeat)),
                None => self.local_for(entry.address).map(|_| entry.next_probe),
            };
            let out = entry.standing.out().map(|(until, _)| until);
            [probe, out].into_iter().flatten()
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
        self.revision += 1;
        self.reschedule();
    }

    // ---- What there is --------------------------------------------------------------------------

    /// The slot whose turn it is among the PBXs of a family, for a new call that nobody remembers.
    pub fn next_slot(&mut self, family: Family) -> Option<u32> {
        let Turns { schedule, turn } = self.turns.get(family);
        let len = schedule.len as usize;
        if len == 0 {
            return self.last_resort(family);
        }
        let next = (turn.get() + 1) % len;
        turn.set(next);
        schedule.slots.get(next).map(|slot| u32::from(*slot))
    }

    /// Whose turn it is, as the kernel has it.
    pub fn schedule(&self) -> &Schedule {
        &self.turns.v4.schedule
    }

    /// One slot as the kernel has it: unused if it is empty or its PBX has an IPv6 address.
    pub fn pbx(&self, slot: u32) -> Pbx {
        self.entry(slot).map_or_else(Pbx::default, Entry::table)
    }

    /// As [`Dispatcher::schedule`], of IPv6.
    pub fn schedule6(&self) -> &Schedule {
        &self.turns.v6.schedule
    }

    /// As [`Dispatcher::pbx`], of IPv6.
    pub fn pbx6(&self, slot: u32) -> Pbx6 {
        self.entry(slot).map_or_else(Pbx6::default, Entry::table6)
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
                reason: match e.state {
                    PbxState::Inactive => e.dead.as_ref().or(e.standing.fault()),
                    PbxState::Active => e.standing.fault(),
                    _ => None,
                }
                .map(Fault::to_string),
                admin: e.admin,
                origin: if e.file.is_some() { Origin::File } else { Origin::Hand },
                failures: e.failures,
                last_probe: e.last_probe.clone(),
                round_trip: e.round_trip,
                calls: e.calls(),
                trial: e.standing.at_once().filter(|_| e.state == PbxState::Active),
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
            standing: Standing::new(now),
            limits: pbx.limits,
            rate: Rate::default(),
            seats: Seats::default(),
            failing: Flag::default(),
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
            self.taken |= 1 << slot;
        }
        self.settle(now, slot, if file.is_some() { "configured" } else { "added by hand" });
        slot
    }

    fn update(&mut self, now: Instant, slot: u32, pbx: &PbxConfig) {
        let Some(entry) = self.entry_mut(slot) else {
            return;
        };
        entry.weight = pbx.weight;
        entry.limits = pbx.limits;
        let said_before = entry.file.replace(pbx.state);
        if entry.address != pbx.address {
            // Another machine, of which nothing is known.
            entry.address = pbx.address;
            entry.dead = None;
            entry.standing = Standing::new(now);
            entry.seats = Seats::default();
            entry.failing = Flag::default();
            entry.probe = None;
            entry.last_probe = None;
            entry.round_trip = None;
            entry.failures = 0;
            entry.successes = 0;
            entry.next_probe = now;
            let (table, table6) = (entry.table(), entry.table6());
            self.commands.push_back(Command::Pbx { slot, pbx: table });
            self.commands.push_back(Command::Pbx6 { slot, pbx: table6 });
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
        match admin {
            AdminState::Disabled => entry.probe = None,
            // Who orders this knows better than its calls did.
            AdminState::Active => entry.standing = Standing::new(now),
            AdminState::Draining => {}
        }
        entry.admin = admin;
        self.settle(now, slot, reason);
    }

    fn take_out(&mut self, slot: u32) {
        let Some(entry) = self.slots.get_mut(slot as usize).and_then(Option::take) else {
            return;
        };
        self.taken &= !(1 << slot);
        self.removals += 1;
        self.revision += 1;
        if let Some(left) = self.left.get_mut(slot as usize) {
            *left = self.removals;
        }
        self.commands.push_back(Command::Pbx { slot, pbx: Pbx::default() });
        self.commands.push_back(Command::Pbx6 { slot, pbx: Pbx6::default() });
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
        self.revision += 1;
        let Some(entry) = self.entry_mut(slot) else {
            return;
        };
        entry.state = to;
        entry.since = now;
        let (id, pbx, pbx6) = (entry.id.clone(), entry.table(), entry.table6());
        self.commands.push_back(Command::Pbx { slot, pbx });
        self.commands.push_back(Command::Pbx6 { slot, pbx: pbx6 });
        self.commands.push_back(Command::Changed { id, from, to, reason: reason.to_owned() });
    }

    /// A trial is over: new is only that the PBX is in the schedule.
    fn passed(&mut self, slot: u32) {
        let Some(entry) = self.entry(slot).filter(|entry| entry.state == PbxState::Active) else {
            return;
        };
        let (id, from, to) = (entry.id.clone(), entry.state, entry.state);
        let reason = "it has passed its trial".to_owned();
        self.commands.push_back(Command::Changed { id, from, to, reason });
    }

    fn reschedule(&mut self) {
        for family in [Family::V4, Family::V6] {
            let mut weights = Vec::new();
            if self.accepting {
                let of_family = self.entries().filter(|(_, entry)| {
                    entry.state == PbxState::Active
                        && !entry.standing.is_on_trial()
                        && Family::of(entry.address) == family
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
            self.revision += 1;
            let schedule = Box::new(*schedule);
            self.commands.push_back(Command::Schedule { family, schedule });
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
        let mut left = self.taken;
        let slots = std::iter::from_fn(move || {
            let slot = (left != 0).then(|| left.trailing_zeros())?;
            left &= left - 1;
            Some(slot)
        });
        slots.filter_map(|slot| Some((slot, self.entry(slot)?)))
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
