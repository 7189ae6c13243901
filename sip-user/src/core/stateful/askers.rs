//! PBXs that have asked a caller for credentials: his next INVITE, with them, goes to the same one (RFC 3261 22.2). To any
//! other they say nothing.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

/// The most calls that are known.
const MOST: usize = 10_000;
/// How long the caller may take, whom his phone may ask for a password.
const LIFE: Duration = Duration::from_secs(60);

/// See the module. A call is named by the hash of its Call-ID.
#[derive(Debug, Default)]
pub(super) struct Askers {
    slots: HashMap<u64, (u32, Instant)>,
    /// All that were put there, by their time; some are gone, or were put there again.
    order: VecDeque<(Instant, u64)>,
}

impl Askers {
    /// The PBX in this slot has asked.
    pub(super) fn put(&mut self, now: Instant, call: u64, slot: u32) {
        let old = |(since, _): &(Instant, u64)| now.saturating_duration_since(*since) > LIFE;
        while self.order.len() >= MOST || self.order.front().is_some_and(old) {
            let Some((since, call)) = self.order.pop_front() else { break };
            if self.slots.get(&call).is_some_and(|(_, put)| *put == since) {
                self.slots.remove(&call);
            }
        }
        self.slots.insert(call, (slot, now));
        self.order.push_back((now, call));
    }

    /// The slot of the PBX that has asked for what comes now.
    pub(super) fn take(&mut self, now: Instant, call: u64) -> Option<u32> {
        // Nearly always there are none.
        if self.slots.is_empty() {
            return None;
        }
        let (slot, since) = self.slots.remove(&call)?;
        (now.saturating_duration_since(since) <= LIFE).then_some(slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn for_a_while_and_once() {
        let (mut askers, now) = (Askers::default(), Instant::now());
        askers.put(now, 1, 5);
        askers.put(now, 2, 6);
        assert_eq!(askers.take(now, 1), Some(5));
        assert_eq!(askers.take(now, 1), None);
        assert_eq!(askers.take(now + 2 * LIFE, 2), None);
        askers.put(now, 3, 7);
        askers.put(now + LIFE, 3, 8);
        askers.put(now + LIFE + Duration::from_secs(1), 4, 9);
        assert_eq!(askers.take(now + LIFE, 3), Some(8), "the later one stays");
    }

    #[test]
    fn there_is_a_bound() {
        let (mut askers, now) = (Askers::default(), Instant::now());
        for call in 0..2 * MOST as u64 {
            askers.put(now, call, 1);
        }
        assert_eq!((askers.slots.len(), askers.order.len()), (MOST, MOST));
        assert_eq!(askers.take(now, 0), None);
        assert_eq!(askers.take(now, MOST as u64), Some(1));
    }
}
