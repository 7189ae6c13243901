//! What the answers of a PBX to calls say about it.
//!
//! One that lets calls fail is out for a while, and then comes back by a trial: one call at a time, two, four,
//! eight. An answer to OPTIONS brings it back no sooner, because a PBX that refuses calls may well answer those.
//! Each time that it goes out again soon the pause is twice as long.

use std::time::{Duration, Instant};

use super::Fault;
use super::seats::{Seat, Seats};
use crate::config::Dispatch;

/// So many calls at a time are the last round of a trial: it has taken 15 by its end.
const LAST_ROUND: usize = 8;
/// Doublings of a pause, which is bounded by the rules long before.
const MOST_STRIKES: u32 = 16;

/// One PBX, as its calls see it.
#[derive(Clone, Debug)]
pub(super) struct Standing {
    phase: Phase,
    /// Calls in a row that failed.
    failures: u32,
    /// How often it went out without being good for long in between.
    strikes: u32,
    /// Since when it is good, if it is.
    since: Instant,
}

#[derive(Clone, Debug)]
enum Phase {
    /// It has its share of calls.
    Good,
    /// It has none until then.
    Out { until: Instant, asked: bool, fault: Fault, steered: bool },
    /// It has few.
    Trial(Trial),
}

#[derive(Clone, Debug)]
struct Trial {
    at_once: usize,
    /// Calls of this round that went well.
    passed: usize,
    /// Held by each call on trial that is not decided yet.
    under_way: Seats,
    /// Why it was out.
    fault: Fault,
}

/// What has become of a PBX.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Turn {
    /// Nothing new.
    Same,
    /// It has no calls for now.
    Out,
    /// It has few calls.
    Trial,
    /// It has its share again, without a trial.
    Back,
    /// It has its share again.
    Good,
}

/// A call that went wrong.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) fault: Fault,
    /// The Retry-After of a 503: so long it wants no calls (RFC 3261 21.5.4).
    pub(super) retry_after: Option<Duration>,
    /// Whether there are others to take its calls. The last one stays: a failure may be the call's own fault,
    /// and whether it lives the probes will tell.
    pub(super) others: bool,
    /// Whether the call was steered without memory. Such calls are counted by nobody, so there is no trial for them:
    /// after its pause the PBX has its share again.
    pub(super) steered: bool,
}

impl Standing {
    pub(super) fn new(now: Instant) -> Self {
        Self { phase: Phase::Good, failures: 0, strikes: 0, since: now }
    }

    pub(super) fn is_out(&self) -> bool {
        matches!(self.phase, Phase::Out { .. })
    }

    pub(super) fn is_on_trial(&self) -> bool {
        matches!(self.phase, Phase::Trial(_))
    }

    /// Until when it is out, and whether it asked for that.
    pub(super) fn out(&self) -> Option<(Instant, bool)> {
        match self.phase {
            Phase::Out { until, asked, .. } => Some((until, asked)),
            _ => None,
        }
    }

    /// Calls at a time, if it is on trial.
    pub(super) fn at_once(&self) -> Option<usize> {
        match &self.phase {
            Phase::Trial(trial) => Some(trial.at_once),
            _ => None,
        }
    }

    /// Why it is not good.
    pub(super) fn fault(&self) -> Option<&Fault> {
        match &self.phase {
            Phase::Good => None,
            Phase::Out { fault, .. } | Phase::Trial(Trial { fault, .. }) => Some(fault),
        }
    }

    /// Whether it may have one more call on trial.
    pub(super) fn has_trial(&self) -> bool {
        match &self.phase {
            Phase::Trial(trial) => trial.under_way.taken() < trial.at_once,
            _ => false,
        }
    }

    /// Whether calls in a row have failed, of which the next one that does not makes an end.
    pub(super) fn has_failures(&self) -> bool {
        self.failures > 0
    }

    #[cfg(test)]
    pub(super) fn under_way(&self) -> Option<&Seats> {
        match &self.phase {
            Phase::Trial(trial) => Some(&trial.under_way),
            _ => None,
        }
    }

    /// What a call holds that is placed now, if it is on trial and may have one more.
    pub(super) fn trial(&self) -> Option<Seat> {
        match &self.phase {
            Phase::Trial(trial) => trial.under_way.take(trial.at_once),
            _ => None,
        }
    }

    /// A call went well, as far as the PBX is concerned.
    pub(super) fn success(&mut self, now: Instant, held: Option<&Seat>) -> Turn {
        match &mut self.phase {
            Phase::Good => self.failures = 0,
            Phase::Trial(trial) if trial.is_held_by(held) => {
                trial.passed += 1;
                if trial.passed >= trial.at_once {
                    (trial.at_once, trial.passed) = (trial.at_once * 2, 0);
                }
                if trial.at_once > LAST_ROUND {
                    (self.phase, self.failures, self.since) = (Phase::Good, 0, now);
                    return Turn::Good;
                }
            }
            // A call from before it went out says nothing new.
            Phase::Trial(_) | Phase::Out { .. } => {}
        }
        Turn::Same
    }

    /// A call went wrong.
    pub(super) fn failure(
        &mut self,
        now: Instant,
        failure: Failure,
        held: Option<&Seat>,
        rules: &Dispatch,
    ) -> Turn {
        let Failure { fault, retry_after, others, steered } = failure;
        if let Some(asked) = retry_after {
            let until = now + asked.min(rules.longest_pause);
            if let Phase::Out { until: before, asked: true, .. } = &mut self.phase {
                *before = until.max(*before);
                return Turn::Same;
            }
            let was_out = self.is_out();
            self.phase = Phase::Out { until, asked: true, fault, steered };
            return if was_out { Turn::Same } else { Turn::Out };
        }
        match &self.phase {
            Phase::Out { .. } => return Turn::Same,
            Phase::Trial(trial) if !trial.is_held_by(held) => return Turn::Same,
            Phase::Trial(_) => {}
            Phase::Good => {
                // One answer may be about the call; silence is about the PBX.
                let silent = matches!(fault, Fault::CallTimeout);
                let more = if silent { rules.fall } else { self.failures.saturating_add(1) };
                self.failures = self.failures.max(more);
                if self.failures < rules.fall || !others {
                    return Turn::Same;
                }
                if now.saturating_duration_since(self.since) > rules.longest_pause {
                    self.strikes = 0;
                }
            }
        }
        let pause = rules.pause.saturating_mul(1 << self.strikes).min(rules.longest_pause);
        self.strikes = (self.strikes + 1).min(MOST_STRIKES);
        self.phase = Phase::Out { until: now + pause, asked: false, fault, steered };
        Turn::Out
    }

    /// Time has passed.
    pub(super) fn timeout(&mut self, now: Instant) -> Turn {
        match self.phase {
            Phase::Out { until, steered: true, .. } if until <= now => {
                (self.phase, self.failures, self.since) = (Phase::Good, 0, now);
                Turn::Back
            }
            Phase::Out { until, .. } if until <= now => self.start_trial(Seats::default()),
            _ => Turn::Same,
        }
    }

    /// It is to have calls, maybe before its time because there is nobody else. These hold `under_way`.
    pub(super) fn start_trial(&mut self, under_way: Seats) -> Turn {
        let Phase::Out { fault, .. } = &self.phase else { return Turn::Same };
        let fault = fault.clone();
        self.phase = Phase::Trial(Trial { at_once: 1, passed: 0, under_way, fault });
        Turn::Trial
    }
}

impl Trial {
    fn is_held_by(&self, held: Option<&Seat>) -> bool {
        held.is_some_and(|held| held.of().are(&self.under_way))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn failure(code: u16) -> Failure {
        Failure { fault: Fault::Call(code), retry_after: None, others: true, steered: false }
    }

    #[test]
    fn after_calls_that_nobody_counts_there_is_no_trial() {
        let (mut now, rules) = (Instant::now(), Dispatch { fall: 1, ..Dispatch::default() });
        let mut standing = Standing::new(now);
        for pause in [5, 10, 20] {
            let steered = Failure { steered: true, ..failure(503) };
            assert_eq!(standing.failure(now, steered, None, &rules), Turn::Out);
            assert_eq!(standing.timeout(now + (pause - 1) * SECOND), Turn::Same);
            now += pause * SECOND;
            assert_eq!(standing.timeout(now), Turn::Back);
            assert!(standing.fault().is_none() && !standing.has_failures());
        }
    }

    #[test]
    fn a_trial_grows() {
        let (now, rules) = (Instant::now(), Dispatch { fall: 1, ..Dispatch::default() });
        let mut standing = Standing::new(now);
        assert_eq!(standing.failure(now, failure(503), None, &rules), Turn::Out);
        assert_eq!(standing.timeout(now + 4 * SECOND), Turn::Same);
        assert_eq!(standing.timeout(now + 5 * SECOND), Turn::Trial);
        for round in [1, 2, 4, 8] {
            assert_eq!(standing.at_once(), Some(round));
            let mut held = Vec::new();
            while standing.has_trial() {
                held.push(standing.trial());
            }
            assert_eq!(held.len(), round);
            for (n, held) in held.drain(..).enumerate() {
                let last = round == 8 && n == 7;
                let want = if last { Turn::Good } else { Turn::Same };
                assert_eq!(standing.success(now, held.as_ref()), want);
            }
        }
        assert_eq!(standing.at_once(), None);
        assert_eq!(standing.fault(), None);
    }

    #[test]
    fn pauses_double_and_are_forgotten() {
        let rules = Dispatch { fall: 1, ..Dispatch::default() };
        let mut now = Instant::now();
        let mut standing = Standing::new(now);
        standing.failure(now, failure(500), None, &rules);
        for pause in [5, 10, 20, 40, 60, 60] {
            assert_eq!(standing.out(), Some((now + pause * SECOND, false)));
            now += pause * SECOND;
            assert_eq!(standing.timeout(now), Turn::Trial);
            let held = standing.trial();
            // What was placed before the trial does not count, nor does a call that was given up.
            assert_eq!(standing.failure(now, failure(500), None, &rules), Turn::Same);
            drop(standing.trial());
            assert!(!standing.has_trial());
            assert_eq!(standing.failure(now, failure(500), held.as_ref(), &rules), Turn::Out);
        }
        now += 60 * SECOND;
        standing.timeout(now);
        for _ in 0..15 {
            let held = standing.trial();
            standing.success(now, held.as_ref());
        }
        assert_eq!(standing.fault(), None);
        // Soon, and after a while.
        now += SECOND;
        standing.failure(now, failure(500), None, &rules);
        assert_eq!(standing.out(), Some((now + 60 * SECOND, false)));
        now += 60 * SECOND;
        standing.timeout(now);
        for _ in 0..15 {
            let held = standing.trial();
            standing.success(now, held.as_ref());
        }
        now += 61 * SECOND;
        standing.failure(now, failure(500), None, &rules);
        assert_eq!(standing.out(), Some((now + 5 * SECOND, false)));
    }

    #[test]
    fn failures_in_a_row_and_silence() {
        let (now, rules) = (Instant::now(), Dispatch::default());
        let mut standing = Standing::new(now);
        assert_eq!(standing.failure(now, failure(500), None, &rules), Turn::Same);
        assert_eq!(standing.failure(now, failure(500), None, &rules), Turn::Same);
        assert_eq!(standing.success(now, None), Turn::Same);
        for want in [Turn::Same, Turn::Same, Turn::Out] {
            assert_eq!(standing.failure(now, failure(500), None, &rules), want);
        }
        let silence = || Failure { fault: Fault::CallTimeout, ..failure(0) };
        let mut standing = Standing::new(now);
        // The last one stays, and is out as soon as it is not.
        let last = Failure { others: false, ..silence() };
        assert_eq!(standing.failure(now, last, None, &rules), Turn::Same);
        assert_eq!(standing.failure(now, silence(), None, &rules), Turn::Out);
    }

    #[test]
    fn retry_after_is_kept_to_but_not_for_ever() {
        let (now, rules) = (Instant::now(), Dispatch::default());
        let mut standing = Standing::new(now);
        let asks = |seconds: u64| Failure {
            retry_after: Some(Duration::from_secs(seconds)),
            others: false,
            ..failure(503)
        };
        assert_eq!(standing.failure(now, asks(20), None, &rules), Turn::Out);
        assert_eq!(standing.failure(now, asks(7), None, &rules), Turn::Same);
        assert_eq!(standing.out(), Some((now + 20 * SECOND, true)));
        assert_eq!(standing.failure(now, asks(86_400 * 365), None, &rules), Turn::Same);
        assert_eq!(standing.out(), Some((now + 60 * SECOND, true)));
        assert_eq!(standing.timeout(now + 60 * SECOND), Turn::Trial);
        assert_eq!(standing.failure(now, asks(u64::MAX), None, &rules), Turn::Out);
    }
}
