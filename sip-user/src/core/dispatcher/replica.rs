//! One dispatcher decides, and others follow it: one for each worker, so that none waits for another.
//!
//! A follower places calls by what the one who decides has said last ([`Dispatcher::follow`]). Places of calls, rates
//! and turns they count together. What a follower hears of a PBX it says by [`Command::Tell`], for
//! [`Dispatcher::handle_evidence`] of the one who decides; it probes nobody.

use std::time::{Duration, Instant};

use super::seats::{Seat, Seats};
use super::trial::Turn as Verdict;
use super::types::Unreachable;
use super::{Command, Dispatcher, Entry, Fault, Turns};
use crate::config::Dispatch;
use crate::core::family::ByFamily;

/// How the PBXs are, for who follows.
#[derive(Clone, Debug)]
pub struct Snapshot {
    slots: Vec<Option<Entry>>,
    taken: u64,
    turns: ByFamily<Turns>,
    accepting: bool,
    call_rules: Dispatch,
}

/// What a follower has heard.
#[derive(Debug)]
pub struct Evidence(pub(super) Heard);

#[derive(Debug)]
pub(super) enum Heard {
    /// A call has told something of its PBX.
    Call { slot: u32, of: Seats, trial: Option<Seat>, outcome: Outcome },
    /// A call that was steered without memory has.
    Steered { slot: u32, of: Seats, outcome: Outcome },
    /// A PBX has a call before its time, with which its trial begins.
    Trial { slot: u32, of: Seats, under_way: Seats },
    /// An ICMP error.
    Unreachable(std::net::SocketAddr, Unreachable),
}

/// What a call says of its PBX.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) enum Outcome {
    Good,
    Failed(u16, Option<Duration>),
    Silent,
}

impl Dispatcher {
    /// One that follows, with the same addresses of ours.
    pub fn follower(&self) -> Self {
        let mut follower = Self::new(&[], self.rules.clone());
        follower.locals = self.locals;
        follower.follows = true;
        follower.follow(&self.snapshot());
        follower
    }

    /// For [`Dispatcher::follow`].
    pub fn snapshot(&self) -> Snapshot {
        let bare = |entry: &Entry| Entry { probe: None, ..entry.clone() };
        Snapshot {
            slots: self.slots.iter().map(|entry| entry.as_ref().map(bare)).collect(),
            taken: self.taken,
            turns: self.turns.clone(),
            accepting: self.accepting,
            call_rules: self.call_rules,
        }
    }

    /// Changes whenever a snapshot would be another one in what counts.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// The one who decides has said how the PBXs are.
    pub fn follow(&mut self, snapshot: &Snapshot) {
        let Snapshot { slots, taken, turns, accepting, call_rules } = snapshot.clone();
        (self.slots, self.taken, self.turns) = (slots, taken, turns);
        (self.accepting, self.call_rules) = (accepting, call_rules);
    }

    /// A follower has heard something.
    pub fn handle_evidence(&mut self, now: Instant, Evidence(heard): Evidence) {
        match heard {
            Heard::Call { slot, of, trial, outcome } => {
                self.judge(now, slot, &of, trial.as_ref(), outcome, false);
            }
            Heard::Steered { slot, of, outcome } => {
                self.judge(now, slot, &of, None, outcome, true);
            }
            Heard::Trial { slot, of, under_way } => {
                let entry = self.entry_mut(slot).filter(|entry| entry.seats.are(&of));
                let begun = entry.map(|entry| entry.standing.start_trial(under_way));
                self.turned(now, slot, begun.unwrap_or(Verdict::Same));
            }
            Heard::Unreachable(to, what) => self.handle_unreachable(now, to, what),
        }
    }

    /// For the one who decides.
    pub(super) fn tell(&mut self, heard: Heard) {
        self.commands.push_back(Command::Tell(Evidence(heard)));
    }

    /// What a call says of its PBX, unless that is gone or has moved.
    pub(super) fn judge(
        &mut self,
        now: Instant,
        slot: u32,
        of: &Seats,
        trial: Option<&Seat>,
        outcome: Outcome,
        steered: bool,
    ) {
        let (rules, others) = (self.call_rules, self.has_others(slot));
        let Some(entry) = self.entry_mut(slot).filter(|entry| entry.seats.are(of)) else { return };
        let turn = match outcome {
            Outcome::Good => entry.standing.success(now, trial),
            Outcome::Failed(status, retry_after) => {
                let fault = Fault::Call(status);
                let failure = super::trial::Failure { fault, retry_after, others, steered };
                entry.standing.failure(now, failure, trial, &rules)
            }
            Outcome::Silent => {
                let fault = Fault::CallTimeout;
                let failure = super::trial::Failure { fault, retry_after: None, others, steered };
                let turn = entry.standing.failure(now, failure, trial, &rules);
                // Is it gone, or only busy?
                if entry.probe.is_none() {
                    entry.next_probe = now;
                }
                turn
            }
        };
        entry.failing.set(entry.standing.has_failures());
        self.turned(now, slot, turn);
    }
}
