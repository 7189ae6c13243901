//! Calls that the daemon places and whose answers it sees: which PBX is next, and what its answer says.

use std::sync::Arc;
use std::time::{Duration, Instant};

use sip_ebpf::tables::PbxState;

use super::trial::{Failure, Turn};
use super::types::{NoPbx, Placed, Shortage, Ticket, Tried};
use super::{Dispatcher, Entry, Fault, OWN_LATENESS};
use crate::config::Dispatch;
use crate::core::family::Family;

/// What a caller is told to wait for if nothing else is known.
const RETRY_AFTER: Duration = Duration::from_secs(5);
/// The longest that a caller is told to wait.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(60);

/// Calls.
impl Dispatcher {
    /// Rules of a new configuration for calls.
    pub fn set_call_rules(&mut self, rules: Dispatch) {
        self.call_rules = rules;
    }

    /// The PBX of a family for a new call: whose turn it is among those that were not tried for it yet and that
    /// have room. It counts there until its [`Ticket`] is dropped.
    pub fn place(&mut self, now: Instant, family: Family, tried: &Tried) -> Result<Placed, NoPbx> {
        if !self.accepting {
            return Err(NoPbx { why: Shortage::Stopping, retry_after: RETRY_AFTER });
        }
        let trial = self.on_trial(now, family, tried);
        // Every other call at most, and none that has failed already somewhere else.
        let turns = self.turns.get_mut(family);
        let may_try = tried.is_empty() && !turns.was_trial;
        turns.was_trial = false;
        let slot = match trial.filter(|_| may_try) {
            Some(slot) => {
                turns.was_trial = true;
                Some(slot)
            }
            None => self.in_turn(now, family, tried).or(trial),
        };
        let slot = slot.or_else(|| self.before_its_time(now, family, tried));
        let placed = slot.and_then(|slot| self.seat(now, slot));
        placed.ok_or_else(|| self.shortage(now, family, tried))
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
                    self.call_failed(now, ticket, Fault::Call(status), retry_after);
                }
            }
            _ if ticket.is_decided => {}
            _ => {
                let trial = ticket.decide();
                let slot = ticket.slot;
                let Some(entry) = self.entry_of(ticket) else { return };
                let turn = entry.standing.success(now, trial.as_ref());
                self.turned(now, slot, turn);
            }
        }
    }

    /// No response to the INVITE has come in time. If we noticed that late, it was us who slept.
    pub fn handle_call_timeout(&mut self, now: Instant, ticket: &mut Ticket, late: Duration) {
        if late > OWN_LATENESS {
            ticket.decide();
        } else if !ticket.is_decided {
            self.call_failed(now, ticket, Fault::CallTimeout, None);
            // Is it gone, or only busy?
            if let Some(entry) = self.entry_of(ticket)
                && entry.probe.is_none()
            {
                entry.next_probe = now;
            }
        }
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
    fn has_others(&self, slot: u32) -> bool {
        let family = self.entry(slot).map(|entry| Family::of(entry.address));
        let schedule = family.map(|family| &self.turns.get(family).schedule);
        schedule.is_some_and(|schedule| {
            let slots = schedule.slots.iter().take(schedule.len as usize);
            slots.into_iter().any(|other| u32::from(*other) != slot)
        })
    }

    fn in_turn(&mut self, now: Instant, family: Family, tried: &Tried) -> Option<u32> {
        let turns = self.turns.get(family);
        let len = turns.schedule.len as usize;
        for step in 1..=len {
            let turn = (turns.turn + step) % len;
            let slot = u32::from(*turns.schedule.slots.get(turn)?);
            let has_room = self.entry(slot).is_some_and(|entry| entry.has_room(now));
            if has_room && !tried.has(slot) {
                self.turns.get_mut(family).turn = turn;
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
        let turn = self.entry_mut(slot)?.standing.start_trial();
        self.turned(now, slot, turn);
        Some(slot)
    }

    fn seat(&mut self, now: Instant, slot: u32) -> Option<Placed> {
        let entry = self.entry_mut(slot)?;
        entry.rate.take(now, entry.limits.calls_per_second);
        let ticket = Ticket {
            slot,
            seat: entry.seats.clone(),
            trial: entry.standing.trial(),
            is_decided: false,
        };
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

    fn call_failed(
        &mut self,
        now: Instant,
        ticket: &mut Ticket,
        fault: Fault,
        retry_after: Option<Duration>,
    ) {
        let trial = ticket.decide();
        let (slot, rules) = (ticket.slot, self.call_rules);
        let failure = Failure { fault, retry_after, others: self.has_others(slot) };
        let Some(entry) = self.entry_of(ticket) else { return };
        let turn = entry.standing.failure(now, failure, trial.as_ref(), &rules);
        self.turned(now, slot, turn);
    }

    pub(super) fn standing_timeout(&mut self, now: Instant, slot: u32) {
        if let Some(entry) = self.entry_mut(slot) {
            let turn = entry.standing.timeout(now);
            self.turned(now, slot, turn);
        }
    }

    fn turned(&mut self, now: Instant, slot: u32, turn: Turn) {
        let why = self.entry(slot).and_then(|entry| entry.standing.fault());
        let why = why.map(Fault::to_string).unwrap_or_default();
        match turn {
            Turn::Same => return,
            Turn::Out => self.settle(now, slot, &why),
            Turn::Trial => self.settle(now, slot, &format!("on trial after {why}")),
            Turn::Good => self.passed(slot),
        }
        self.reschedule();
    }

    /// The PBX that a ticket is of, unless it is gone or has moved.
    fn entry_of(&mut self, ticket: &Ticket) -> Option<&mut Entry> {
        self.entry_mut(ticket.slot).filter(|entry| Arc::ptr_eq(&entry.seats, &ticket.seat))
    }
}

impl Entry {
    fn is_for(&self, family: Family) -> bool {
        self.state == PbxState::Active && Family::of(self.address) == family
    }

    /// Calls that the daemon placed and that go on.
    pub(super) fn calls(&self) -> usize {
        Arc::strong_count(&self.seats) - 1
    }

    fn has_room(&self, now: Instant) -> bool {
        let most = self.limits.max_calls as usize;
        (most == 0 || self.calls() < most) && self.rate.has_room(now, self.limits.calls_per_second)
    }
}
