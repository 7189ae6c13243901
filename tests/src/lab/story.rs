//! What became of every call, put together from what callers, PBXs and witnesses noted.

use std::collections::{BTreeMap, HashMap};

use super::{Event, Word};

/// One call, from its caller's side.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Call {
    /// When its INVITE was first sent. All times are seconds since 1970.
    pub placed: f64,
    /// When a PBX answered it, and which.
    pub answered: Option<(f64, String)>,
    /// When it ended as it should.
    pub ended: Option<f64>,
    /// When a failure came.
    pub refused: Option<f64>,
    /// When its caller gave up waiting.
    pub silent: Option<f64>,
    /// When its INVITE first reached the PBX of the outage, alive or dead.
    pub reached: Option<f64>,
}

/// The death of a PBX, as the demo makes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Outage {
    /// Which PBX.
    pub pbx: String,
    /// When it was killed.
    pub killed: f64,
    /// When the proxy knew: no new call was sent there any more.
    pub known: f64,
    /// When it was started again.
    pub restarted: f64,
    /// When the proxy used it again.
    pub back: f64,
}

/// How a call counts.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Outcome {
    /// Answered by a PBX, and ended as it should.
    Answered,
    /// Was talking to the PBX that died.
    LostTalking,
    /// Was sent to the dead PBX before its death was known, and no other answered.
    LostSent,
    /// Everything else.
    Failed,
}

/// How many new calls each PBX answered.
pub type Share = BTreeMap<String, u32>;

/// All calls of a run.
#[derive(Clone, Debug, Default)]
pub struct Story {
    calls: BTreeMap<String, Call>,
}

impl Story {
    /// From what the callers noted, and from the INVITEs that reached the PBX of the outage.
    pub fn new(callers: &[Event], reached: &HashMap<String, f64>) -> Self {
        let mut calls: BTreeMap<String, Call> = BTreeMap::new();
        for event in callers {
            let call = calls.entry(event.call_id.clone()).or_default();
            match event.word {
                Word::Placed => call.placed = event.at,
                Word::Answered => {
                    call.answered = Some((event.at, event.pbx.clone().unwrap_or_default()));
                }
                Word::Ended => call.ended = Some(event.at),
                Word::Refused => call.refused = Some(event.at),
                Word::Silent => call.silent = Some(event.at),
                Word::Invited | Word::Held => {}
            }
        }
        for (call_id, call) in &mut calls {
            call.reached = reached.get(call_id).copied();
        }
        Self { calls }
    }

    /// Every call, by Call-ID.
    pub fn calls(&self) -> impl Iterator<Item = (&str, &Call)> {
        self.calls.iter().map(|(id, call)| (id.as_str(), call))
    }

    /// How many calls came to this outcome.
    pub fn count(&self, outcome: Outcome, outage: Option<&Outage>) -> usize {
        self.calls.values().filter(|call| call.outcome(outage) == outcome).count()
    }

    /// Which PBX answered how many of the calls placed from `from` until `until`.
    pub fn share(&self, from: f64, until: f64) -> Share {
        let mut share = Share::new();
        let placed = self.calls.values().filter(|call| (from..until).contains(&call.placed));
        for (_, pbx) in placed.filter_map(|call| call.answered.as_ref()) {
            *share.entry(pbx.clone()).or_default() += 1;
        }
        share
    }
}

impl Call {
    /// How it counts, given what happened to the PBXs.
    pub fn outcome(&self, outage: Option<&Outage>) -> Outcome {
        if self.answered.is_some() && self.ended.is_some() {
            return Outcome::Answered;
        }
        let Some(outage) = outage else {
            return Outcome::Failed;
        };
        // It was over before the PBX died, so it failed for a reason of its own.
        if self.silent.or(self.refused).is_some_and(|end| end < outage.killed) {
            return Outcome::Failed;
        }
        match (&self.answered, self.reached) {
            // What answered before the restart was alive, so this call was up when it died.
            (Some((at, pbx)), _) if *pbx == outage.pbx && *at < outage.restarted => {
                Outcome::LostTalking
            }
            (None, Some(reached)) if reached <= outage.known => Outcome::LostSent,
            _ => Outcome::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outage() -> Outage {
        Outage { pbx: "pbx1".into(), killed: 10.0, known: 11.0, restarted: 15.0, back: 16.0 }
    }

    fn call(placed: f64) -> Call {
        Call { placed, ..Call::default() }
    }

    #[test]
    fn an_answered_call_that_ended_is_answered() {
        let done = Call { answered: Some((1.1, "pbx1".into())), ended: Some(2.0), ..call(1.0) };
        assert_eq!(done.outcome(None), Outcome::Answered);
        assert_eq!(done.outcome(Some(&outage())), Outcome::Answered);
    }

    #[test]
    fn a_call_that_talked_to_the_dead_pbx_is_lost_to_it() {
        let talking =
            Call { answered: Some((9.9, "pbx1".into())), silent: Some(20.0), ..call(9.8) };
        assert_eq!(talking.outcome(Some(&outage())), Outcome::LostTalking);
        assert_eq!(talking.outcome(None), Outcome::Failed);
        let other = Call { answered: Some((9.9, "pbx2".into())), silent: Some(20.0), ..call(9.8) };
        assert_eq!(other.outcome(Some(&outage())), Outcome::Failed);
        let later =
            Call { answered: Some((15.5, "pbx1".into())), silent: Some(20.0), ..call(15.4) };
        assert_eq!(later.outcome(Some(&outage())), Outcome::Failed);
        let over = Call { answered: Some((1.0, "pbx1".into())), silent: Some(9.0), ..call(0.9) };
        assert_eq!(over.outcome(Some(&outage())), Outcome::Failed);
    }

    #[test]
    fn an_unanswered_call_is_lost_only_if_it_was_sent_to_the_dead_pbx_unknowing() {
        let sent = Call { reached: Some(10.5), silent: Some(20.5), ..call(10.5) };
        assert_eq!(sent.outcome(Some(&outage())), Outcome::LostSent);
        let knowing = Call { reached: Some(11.5), silent: Some(21.5), ..call(11.5) };
        assert_eq!(knowing.outcome(Some(&outage())), Outcome::Failed);
        let elsewhere = Call { silent: Some(20.5), ..call(10.5) };
        assert_eq!(elsewhere.outcome(Some(&outage())), Outcome::Failed);
        let refused = Call { refused: Some(12.0), ..call(12.0) };
        assert_eq!(refused.outcome(Some(&outage())), Outcome::Failed);
    }

    #[test]
    fn shares_are_counted_by_when_the_call_was_placed() {
        let event = |word, call_id: &str, at, pbx: Option<&str>| Event {
            word,
            call_id: call_id.into(),
            at,
            pbx: pbx.map(Into::into),
        };
        let events = [
            event(Word::Placed, "a", 1.0, None),
            event(Word::Answered, "a", 5.0, Some("pbx1")),
            event(Word::Placed, "b", 2.0, None),
            event(Word::Answered, "b", 2.1, Some("pbx2")),
            event(Word::Placed, "c", 4.0, None),
            event(Word::Answered, "c", 4.1, Some("pbx2")),
        ];
        let story = Story::new(&events, &HashMap::new());
        assert_eq!(story.calls().count(), 3);
        let share = story.share(0.0, 3.0);
        assert_eq!((share["pbx1"], share["pbx2"]), (1, 1));
        assert_eq!(story.share(3.0, 9.0).get("pbx1"), None);
        assert_eq!(story.count(Outcome::Failed, None), 3);
    }
}
