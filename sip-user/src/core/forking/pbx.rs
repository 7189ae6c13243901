//! One PBX: what it knows of each user, what is due to it, and what is on its way.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use slab::Slab;

use super::super::moment::Moment;
use super::super::timers::Timers;
use super::{Rules, Token, User};

#[derive(Debug)]
pub(super) struct Pbx {
    pub(super) id: Box<str>,
    /// See [`Forking::lives`].
    pub(super) life: u32,
    pub(super) address: SocketAddr,
    pub(super) ours: Option<SocketAddr>,
    /// What the dispatcher says.
    pub(super) up: bool,
    /// REGISTERs in a row without an answer.
    pub(super) silent: u32,
    /// Since when it has been left alone because it does not answer; it is tried from time to time.
    pub(super) alone: Option<Instant>,
    /// How often it was tried since.
    pub(super) trials: u32,
    /// Nothing is sent before this.
    pub(super) quiet_until: Option<Instant>,
    /// How often it was away: what was told in another round counts for nothing.
    pub(super) round: u32,
    /// The next user to be told again.
    pub(super) repair: Option<usize>,
    /// Whether the next REGISTER is one of the repair.
    pub(super) repair_next: bool,
    /// The shortest time that it grants, as its last 423 said.
    pub(super) min_expires: u32,
    pub(super) next_send: Instant,
    /// By place in [`Forking::users`].
    pub(super) states: Vec<State>,
    pub(super) due: Timers,
    pub(super) flights: Vec<Flight>,
}

/// Of one user at one PBX.
#[derive(Clone, Debug, Default)]
pub(super) struct State {
    /// The latest time until which the PBX may have him: from when a REGISTER leaves, whatever becomes of it.
    held: Option<Moment>,
    pub(super) cseq: u32,
    /// The round of the last 2xx.
    pub(super) round: u32,
    pub(super) last: u16,
    pub(super) failures: u8,
    pub(super) flying: bool,
    pub(super) refused: bool,
}

impl State {
    /// See the field.
    pub(super) fn held(&self) -> Option<Instant> {
        self.held.map(Instant::from)
    }

    pub(super) fn hold(&mut self, until: Option<Instant>) {
        self.held = until.map(Moment::from);
    }
}

/// A REGISTER on its way.
#[derive(Debug)]
pub(super) struct Flight {
    pub(super) token: Token,
    pub(super) user: u32,
    /// What it says of the user.
    pub(super) until: Option<Instant>,
    pub(super) expires: u32,
    pub(super) sent: Instant,
    pub(super) give_up: Instant,
    pub(super) challenges: u8,
    /// The status of a challenge that waits for credentials.
    pub(super) challenged: Option<u16>,
}

/// What a PBX ought to be told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Need {
    Nothing,
    Registered(Instant),
    Gone,
}

impl Pbx {
    /// Whether it is there, as far as is known.
    pub(super) fn in_reach(&self) -> bool {
        self.up && self.alone.is_none() && self.ours.is_some()
    }

    pub(super) fn window(&self, rules: &Rules) -> usize {
        if self.alone.is_some() { 1 } else { rules.in_flight.max(1) }
    }

    pub(super) fn may_send(&self, now: Instant, rules: &Rules) -> bool {
        self.up
            && self.ours.is_some()
            && self.flights.len() < self.window(rules)
            && self.next_send <= now
            && self.quiet_until.is_none_or(|until| until <= now)
    }

    /// All users have to be told again.
    pub(super) fn repair_all(&mut self) {
        self.round = self.round.wrapping_add(1).max(1);
        self.repair = Some(0);
    }

    /// Who is to be told next: in turns one who is due, and one of a repair.
    pub(super) fn next(&mut self, now: Instant, users: &Slab<User>) -> Option<u32> {
        self.repair_next = !self.repair_next;
        if self.repair_next {
            self.next_of_repair(now, users).or_else(|| self.pop_due(now))
        } else {
            self.pop_due(now).or_else(|| self.next_of_repair(now, users))
        }
    }

    pub(super) fn next_of_repair(&mut self, now: Instant, users: &Slab<User>) -> Option<u32> {
        let from = self.repair?;
        let found = (from..self.states.len()).find(|at| {
            let fresh = self.states.get(*at).is_some_and(|s| s.flying || s.round == self.round);
            !fresh && need(now, users, &self.states, *at as u32) != Need::Nothing
        });
        self.repair = found.map(|at| at + 1);
        found.map(|at| at as u32)
    }

    /// Takes the first that is due.
    pub(super) fn pop_due(&mut self, now: Instant) -> Option<u32> {
        let (_, user) = self.due.first().filter(|(due, _)| *due <= now)?;
        self.set_due(user, None);
        Some(user)
    }

    pub(super) fn set_due(&mut self, user: u32, due: Option<Instant>) {
        self.due.set(user, due);
    }

    pub(super) fn poll_timeout(&self, rules: &Rules) -> Option<Instant> {
        let give_up = self.flights.iter().map(|flight| flight.give_up).min();
        let first = self.due.first().map(|(due, _)| due);
        let sends = self.up && self.ours.is_some() && self.flights.len() < self.window(rules);
        let not_before = |at: Instant| {
            let at = at.max(self.next_send);
            self.quiet_until.map_or(at, |until| until.max(at))
        };
        let due = if self.in_reach() { first.filter(|_| sends).map(not_before) } else { first };
        let repair = self.repair.filter(|_| sends).map(|_| not_before(self.next_send));
        [give_up, due, repair].into_iter().flatten().min()
    }
}

/// What a PBX ought to be told of a user.
pub(super) fn need(now: Instant, users: &Slab<User>, states: &[State], user: u32) -> Need {
    let until = users.get(user as usize).and_then(User::until);
    let held = states.get(user as usize).and_then(State::held);
    match (until, held) {
        (Some(until), _) if until > now => Need::Registered(until),
        (_, Some(held)) if held > now => Need::Gone,
        _ => Need::Nothing,
    }
}

/// How long to wait after so many failures: doubled with each, and by up to a quarter less.
pub(super) fn backoff(rules: &Rules, failures: u32, by: u64) -> Duration {
    let doubled = rules.first_retry.saturating_mul(1u32.checked_shl(failures).unwrap_or(u32::MAX));
    let delay = doubled.min(rules.last_retry);
    // Below 256.
    delay - delay / 1024 * (by % 256) as u32
}
