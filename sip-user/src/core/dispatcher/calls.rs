//! Calls that the daemon places and whose answers it sees: which PBX is next, and what its answer says.

use std::time::{Duration, Instant};

use sip_ebpf::tables::PbxState;

use super::replica::{Heard, Outcome};
use super::seats::Seats;
use super::trial::Turn;
use super::types::{NoPbx, Placed, Shortage, Ticket, Tried};
use super::{Dispatcher, Entry, Fault, OWN_LATENESS, Turns};
use crate::config::Dispatch;
use crate::core::family::Family;

/// What a caller is told to wait for if nothing else is known.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// The longest that a caller is told to wait.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// How often a place may be lost to somebody else before it counts as taken.
const RACES: usize = 4;

/// Calls.
impl Dispatcher {
    /// Rules of a new configuration for calls.
    pub fn set_call_rules(&mut self, rules: Dispatch) {
        self.call_rules = rules;
        self.revision += 1;
    }

    /// The PBX of a family for a new call: whose turn it is among those that were not tried for it yet and that
    /// have room. It counts there until its [`Ticket`] is dropped.
    pub fn place(&mut self, now: Instant, family: Family, tried: &Tried) -> Result<Placed, NoPbx> {
        self.place_in(now, &[family], tried)
    }

    /// As [`Dispatcher::place`], of the first of these families that has one in use, and before its time only where none
    /// has.
    pub fn place_in(
        &mut self,
        now: Instant,
        families: &[Family],
        tried: &Tried,
    ) -> Result<Placed, NoPbx> {
        if !self.accepting {
            return Err(NoPbx { why: Shortage::Stopping, retry_after: RETRY_AFTER });
        }
        for choose in [Self::choose, Self::before_its_time] {
            for family in families {
                // Somebody else may take the last place while we look; then we look again.
                for _ in 0..RACES {
                    let Some(slot) = choose(self, now, *family, tried) else { break };
                    if let Some(placed) = self.seat(now, slot) {
                        return Ok(placed);
                    }
                }
            }
        }
        let none = families.iter().map(|family| self.shortage(now, *family, tried));
        // What may pass soonest is what the caller waits for.
        let soonest = none.min_by_key(|none| (none.why != Shortage::Busy, none.retry_after));
        Err(soonest.unwrap_or(NoPbx { why: Shortage::Down, retry_after: RETRY_AFTER }))
    }

    /// As [`Dispatcher::place`], for a call that is to go to the PBX in this slot. `None` if it takes none now.
    pub fn place_at(&mut self, now: Instant, slot: u32) -> Option<Placed> {
        let entry = self.entry(slot).filter(|_| self.accepting)?;
        let takes = entry.state == PbxState::Active && entry.has_room(now);
        if takes { self.seat(now, slot) } else { None }
    }

    /// Whether a PBX of this family is alive and wanted, as far as we know.
    pub fn is_there(&self, family: Family) -> bool {
        let there = |entry: &Entry| entry.is_wanted() && entry.dead.is_none();
        self.accepting && self.entries().any(|(_, e)| Family::of(e.address) == family && there(e))
    }

    /// A response to the INVITE has come from the PBX. `retry_after` is that of a 503.
    ///
    /// A provisional response above 100 is a good answer, and what comes after it is not the PBX's fault any more
    /// (but for a Retry-After).
    pub fn handle_call_response(
        &mut self,
        now: Instant,
        ticket: &mut Ticket,
        status: u16,
        retry_after: Option<Duration>,
    ) {
        let retry_after = retry_after.filter(|after| status == 503 && !after.is_zero());
        match status {
            ..=100 => {}
            // These are about the server; 501, 505, 513 and 580 are about the request.
            500 | 502..=504 => {
                if !ticket.is_decided || retry_after.is_some() {
                    self.heard(now, ticket, Outcome::Failed(status, retry_after));
                }
            }
            _ if ticket.is_decided => {}
            _ => self.heard(now, ticket, Outcome::Good),
        }
    }

    /// No response to the INVITE has come in time. If we noticed that late, it was us who slept.
    pub fn handle_call_timeout(&mut self, now: Instant, ticket: &mut Ticket, late: Duration) {
        if late > OWN_LATENESS {
            ticket.decide();
        } else if !ticket.is_decided {
            self.heard(now, ticket, Outcome::Silent);
        }
    }

    /// As [`Dispatcher::handle_call_response`], for a call that was steered without memory.
    pub fn handle_steered_response(
        &mut self,
        now: Instant,
        slot: u32,
        status: u16,
        retry_after: Option<Duration>,
    ) {
        let retry_after = retry_after.filter(|after| status == 503 && !after.is_zero());
        match status {
            ..=100 => {}
            500 | 502..=504 => self.steered(now, slot, Outcome::Failed(status, retry_after)),
            // It ends a row of failures, if there is one.
            _ if self.entry(slot).is_some_and(|entry| entry.failing.get()) => {
                self.steered(now, slot, Outcome::Good);
            }
            _ => {}
        }
    }

    /// As [`Dispatcher::handle_call_timeout`], for a call that was steered without memory.
    pub fn handle_steered_timeout(&mut self, now: Instant, slot: u32, late: Duration) {
        if late <= OWN_LATENESS {
            self.steered(now, slot, Outcome::Silent);
        }
    }

    /// Whether the PBX in a slot was found gone: neither its program nor its host say anything.
    pub fn is_gone(&self, slot: u32) -> bool {
        let fault = self.entry(slot).and_then(|entry| entry.dead.as_ref());
        matches!(fault, Some(Fault::Timeout | Fault::Unreachable(_)))
    }

    /// The name of the PBX in a slot.
    pub fn id(&self, slot: u32) -> Option<&str> {
        self.entry(slot).map(|entry| entry.id.as_str())
    }

    // ---- Choosing -------------------------------------------------------------------------------

    /// A PBX on trial for a call without a ticket, when there is nobody else.
    pub(super) fn last_resort(&self, family: Family) -> Option<u32> {
        let mut entries = self.entries().filter(|_| self.accepting);
        entries.find(|(_, entry)| entry.is_for(family) && entry.standing.is_on_trial()).map(|e| e.0)
    }

    /// Whether another PBX than this one has its share of the calls of its family.
    pub(super) fn has_others(&self, slot: u32) -> bool {
        let family = self.entry(slot).map(|entry| Family::of(entry.address));
        let schedule = family.map(|family| &self.turns.get(family).schedule);
        schedule.is_some_and(|schedule| {
            let slots = schedule.slots.iter().take(schedule.len as usize);
            slots.into_iter().any(|other| u32::from(*other) != slot)
        })
    }

    fn choose(&mut self, now: Instant, family: Family, tried: &Tried) -> Option<u32> {
        let trial = self.on_trial(now, family, tried);
        // Every other call at most, and none that has failed already somewhere else.
        let turn = &self.turns.get(family).turn;
        let may_try = !turn.take_trial() && tried.is_empty();
        match trial.filter(|_| may_try) {
            Some(slot) => {
                turn.set_trial();
                Some(slot)
            }
            None => self.in_turn(now, family, tried).or(trial),
        }
    }

    fn in_turn(&self, now: Instant, family: Family, tried: &Tried) -> Option<u32> {
        let Turns { schedule, turn } = self.turns.get(family);
        let len = schedule.len as usize;
        for step in 1..=len {
            let next = (turn.get() + step) % len;
            let slot = u32::from(*schedule.slots.get(next)?);
            let has_room = self.entry(slot).is_some_and(|entry| entry.has_room(now));
            if has_room && !tried.has(slot) {
                turn.set(next);
                return Some(slot);
            }
        }
        None
    }

    fn on_trial(&self, now: Instant, family: Family, tried: &Tried) -> Option<u32> {
        let fit = |slot: u32, entry: &Entry| {
            entry.is_for(family)
                && entry.standing.has_trial()
                && entry.has_room(now)
                && !tried.has(slot)
        };
        // The one that has had fewest, so that none keeps another from its trial.
        let entries = self.entries().filter(|(slot, entry)| fit(*slot, entry));
        let few = entries.min_by_key(|(_, entry)| (entry.standing.at_once(), entry.calls()));
        few.map(|(slot, _)| slot)
    }

    /// One that is out because of failures, and did not ask to be: better than nobody.
    fn before_its_time(&mut self, now: Instant, family: Family, tried: &Tried) -> Option<u32> {
        let out = self.entries().filter_map(|(slot, entry)| {
            let (until, asked) = entry.standing.out()?;
            let fit = Family::of(entry.address) == family
                && entry.is_wanted()
                && entry.dead.is_none()
                && !asked
                && entry.has_room(now)
                && !tried.has(slot);
            fit.then_some((until, slot))
        });
        let (_, slot) = out.min()?;
        let (entry, under_way) = (self.entry_mut(slot)?, Seats::default());
        let of = entry.seats.clone();
        let turn = entry.standing.start_trial(under_way.clone());
        if self.follows {
            self.tell(Heard::Trial { slot, of, under_way });
        }
        self.turned(now, slot, turn);
        Some(slot)
    }

    /// None if there is no room any more.
    fn seat(&self, now: Instant, slot: u32) -> Option<Placed> {
        let entry = self.entry(slot)?;
        let seat = entry.seats.take(entry.limits.max_calls as usize)?;
        let trial = entry.standing.trial();
        if entry.standing.is_on_trial() && trial.is_none()
            || !entry.rate.take(now, entry.limits.calls_per_second)
        {
            return None;
        }
        let ticket = Ticket { slot, seat, trial, is_decided: false };
        Some(Placed { slot, address: entry.address, ticket })
    }

    fn shortage(&self, now: Instant, family: Family, tried: &Tried) -> NoPbx {
        let mut why = if tried.is_empty() { Shortage::Down } else { Shortage::Tried };
        let mut soonest = None;
        let of_family = self.entries().filter(|(_, entry)| Family::of(entry.address) == family);
        for (slot, entry) in of_family {
            if !entry.is_wanted() || entry.dead.is_some() {
                continue;
            }
            let wait = match entry.standing.out() {
                Some((until, _)) => until.saturating_duration_since(now),
                None if tried.has(slot) => continue,
                None => entry.rate.wait(now, entry.limits.calls_per_second),
            };
            if !tried.has(slot) {
                why = Shortage::Busy;
            }
            soonest = Some(soonest.map_or(wait, |before: Duration| before.min(wait)));
        }
        let retry_after = soonest.unwrap_or(RETRY_AFTER);
        let least = Duration::from_secs(1);
        NoPbx { why, retry_after: retry_after.clamp(least, LONGEST_RETRY_AFTER) }
    }

    // ---- What answers say -----------------------------------------------------------------------

    fn heard(&mut self, now: Instant, ticket: &mut Ticket, outcome: Outcome) {
        let (slot, of, trial) = (ticket.slot, ticket.seats(), ticket.decide());
        if !self.follows {
            return self.judge(now, slot, &of, trial.as_ref(), outcome, false);
        }
        // What goes well is no news, as a rule.
        let is_news = outcome != Outcome::Good
            || trial.is_some()
            || self.entry(slot).is_some_and(|entry| entry.failing.get());
        if is_news {
            self.tell(Heard::Call { slot, of, trial, outcome });
        }
    }

    fn steered(&mut self, now: Instant, slot: u32, outcome: Outcome) {
        let Some(of) = self.entry(slot).map(|entry| entry.seats.clone()) else { return };
        match self.follows {
            true => self.tell(Heard::Steered { slot, of, outcome }),
            false => self.judge(now, slot, &of, None, outcome, true),
        }
    }

    pub(super) fn standing_timeout(&mut self, now: Instant, slot: u32) {
        if let Some(entry) = self.entry_mut(slot) {
            let turn = entry.standing.timeout(now);
            self.turned(now, slot, turn);
        }
    }

    pub(super) fn turned(&mut self, now: Instant, slot: u32, turn: Turn) {
        let why = self.entry(slot).and_then(|entry| entry.standing.fault());
        let why = why.map(Fault::to_string).unwrap_or_default();
        self.revision += u64::from(turn != Turn::Same);
        match turn {
            Turn::Same => return,
            Turn::Out => self.settle(now, slot, &why),
            Turn::Trial => self.settle(now, slot, &format!("on trial after {why}")),
            Turn::Good => self.passed(slot),
            Turn::Back => self.settle(now, slot, "its pause is over"),
        }
        self.reschedule();
    }
}

impl Entry {
    fn is_for(&self, family: Family) -> bool {
        self.state == PbxState::Active && Family::of(self.address) == family
    }

    /// Calls that the daemon placed and that go on.
    pub(super) fn calls(&self) -> usize {
        self.seats.taken()
    }

    fn has_room(&self, now: Instant) -> bool {
        let most = self.limits.max_calls as usize;
        (most == 0 || self.calls() < most) && self.rate.has_room(now, self.limits.calls_per_second)
    }
}
