//! Which counts a client has used with each nonce (RFC 7616 3.4.5): nothing is accepted twice.

use std::collections::BTreeMap;

use super::nonce::Stamp;

/// How many counts below the highest are told apart: requests may overtake each other over UDP.
const WINDOW: u32 = u64::BITS;
/// How many of the last requests are known again when they are repeated.
const REPEATS: usize = 4;
/// How many nonces that are too old may go per request: none waits for many.
const SWEEP: usize = 8;

/// The nonces in use, with their counts. It has a bound, and forgets the oldest nonce when it is full; what it
/// has forgotten is refused, so its client takes a new nonce and notices nothing.
///
/// It knows what passed here. A request that was heard by a node may be repeated to another one with the same
/// key, or to the same one after a restart, once, while its nonce is valid: that is the price of nonces which
/// every node takes.
#[derive(Debug)]
pub struct NonceCounts {
    /// Oldest first.
    table: BTreeMap<Stamp, Used>,
    capacity: usize,
    /// The youngest nonce that was forgotten. None that is as old and not in the table can be known as unused.
    floor: Option<Stamp>,
}

/// What was used of a nonce.
#[derive(Clone, Copy, Debug)]
struct Used {
    highest: u32,
    /// Bit *n*: `highest` - *n* was used.
    seen: u64,
    /// By count modulo their number: the front of the response, which a right one shares with no other.
    responses: [u64; REPEATS],
}

/// Why a count is not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Spent {
    /// The very same request was here.
    Repeated,
    /// The count was used, or may have been.
    Replayed,
    /// It cannot be said any more what was used of this nonce.
    Forgotten,
}

impl NonceCounts {
    /// Room for this many nonces, at least one. Each takes about a hundred bytes while it is valid.
    pub fn new(capacity: usize) -> Self {
        Self { table: BTreeMap::new(), capacity: capacity.max(1), floor: None }
    }

    /// How many nonces are known.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.table.is_empty()
    }

    /// Takes a count of a nonce that is not stale and whose `response` is right.
    pub(super) fn take(
        &mut self,
        stamp: Stamp,
        nc: u32,
        response: u64,
        now: u64,
        validity: u64,
    ) -> Result<(), Spent> {
        self.sweep(now, validity);
        if let Some(used) = self.table.get_mut(&stamp) {
            return used.take(nc, response);
        }
        // After the clock was set back, the floor lies in the future and says nothing about nonces of now.
        let floor = self.floor.filter(|floor| !floor.is_ahead(now));
        if floor.is_some_and(|floor| stamp <= floor) {
            return Err(Spent::Forgotten);
        }
        if self.table.len() >= self.capacity {
            self.make_room(stamp, now)?;
        }
        self.table.insert(stamp, Used::new(nc, response));
        Ok(())
    }

    /// Forgets nonces that are refused for their age already.
    fn sweep(&mut self, now: u64, validity: u64) {
        for _ in 0..SWEEP {
            let Some(oldest) = self.table.first_entry() else {
                return;
            };
            if !oldest.key().is_stale(now, validity) || oldest.key().is_ahead(now) {
                return;
            }
            self.floor = self.floor.max(Some(*oldest.key()));
            oldest.remove();
        }
    }

    fn make_room(&mut self, stamp: Stamp, now: u64) -> Result<(), Spent> {
        // Nonces of a future (the clock was set back) are refused as such, and must not fill the table.
        if let Some(youngest) = self.table.last_entry()
            && youngest.key().is_ahead(now)
        {
            youngest.remove();
            return Ok(());
        }
        let Some(oldest) = self.table.first_entry() else {
            return Ok(());
        };
        if stamp < *oldest.key() {
            return Err(Spent::Forgotten);
        }
        self.floor = self.floor.max(Some(*oldest.key()));
        oldest.remove();
        Ok(())
    }
}

impl Used {
    fn new(nc: u32, response: u64) -> Self {
        let mut used = Self { highest: nc, seen: 1, responses: [0; REPEATS] };
        used.remember(nc, response);
        used
    }

    fn take(&mut self, nc: u32, response: u64) -> Result<(), Spent> {
        if let Some(ahead) = nc.checked_sub(self.highest).filter(|ahead| *ahead != 0) {
            self.seen = self.seen.checked_shl(ahead).unwrap_or(0) | 1;
            self.highest = nc;
        } else {
            let behind = self.highest - nc;
            if behind >= WINDOW {
                return Err(Spent::Replayed);
            }
            let bit = 1 << behind;
            if self.seen & bit != 0 {
                let same = self.responses[nc as usize % REPEATS] == response;
                return Err(if same { Spent::Repeated } else { Spent::Replayed });
            }
            self.seen |= bit;
        }
        self.remember(nc, response);
        Ok(())
    }

    fn remember(&mut self, nc: u32, response: u64) {
        self.responses[nc as usize % REPEATS] = response;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const NOW: u64 = 1_700_000_000;
    const VALID: u64 = 300;

    fn stamp(issued: u64) -> Stamp {
        Stamp::new(issued, 0, 0)
    }

    /// A count of a nonce of `NOW`; the response is its own for each count.
    fn take(counts: &mut NonceCounts, nc: u32) -> Result<(), Spent> {
        counts.take(stamp(NOW), nc, u64::from(nc), NOW, VALID)
    }

    #[test]
    fn the_window() {
        let mut counts = NonceCounts::new(10);
        assert_eq!(
            take(&mut counts, 100),
            Ok(()),
            "it may start anywhere: another node saw the rest"
        );
        assert_eq!(take(&mut counts, 100), Err(Spent::Repeated));
        assert_eq!(counts.take(stamp(NOW), 100, 5, NOW, VALID), Err(Spent::Replayed));
        // Overtaken ones, up to the window's edge.
        assert_eq!(take(&mut counts, 99), Ok(()));
        assert_eq!(take(&mut counts, 100 - (WINDOW - 1)), Ok(()));
        assert_eq!(take(&mut counts, 100 - WINDOW), Err(Spent::Replayed));
        assert_eq!(take(&mut counts, 0), Err(Spent::Replayed));
        // The window moves: 99 and 100 are known, what lies between is not used.
        assert_eq!(take(&mut counts, 102), Ok(()));
        assert_eq!(take(&mut counts, 101), Ok(()));
        assert_eq!(take(&mut counts, 100), Err(Spent::Repeated));
        assert_eq!(take(&mut counts, 99), Err(Spent::Repeated));
        // 98 is free; 37 is used and outside.
        assert_eq!(take(&mut counts, 98), Ok(()));
        assert_eq!(take(&mut counts, 37), Err(Spent::Replayed));
        // Far ahead: exactly the window, beyond it, and to the end of numbers.
        assert_eq!(take(&mut counts, 102 + WINDOW), Ok(()));
        assert_eq!(take(&mut counts, 102), Err(Spent::Replayed));
        assert_eq!(take(&mut counts, 103), Ok(()));
        assert_eq!(take(&mut counts, u32::MAX), Ok(()));
        assert_eq!(take(&mut counts, u32::MAX), Err(Spent::Repeated));
        assert_eq!(take(&mut counts, u32::MAX - 63), Ok(()));
        assert_eq!(take(&mut counts, u32::MAX - 64), Err(Spent::Replayed));
        assert_eq!(counts.len(), 1);
    }

    #[test]
    fn the_last_requests_are_known_again() {
        let mut counts = NonceCounts::new(10);
        for nc in 1..=6 {
            take(&mut counts, nc).unwrap();
        }
        let again: Vec<_> = (1..=6).map(|nc| take(&mut counts, nc).unwrap_err()).collect();
        assert_eq!(again[..2], [Spent::Replayed; 2]);
        assert_eq!(again[2..], [Spent::Repeated; REPEATS]);
    }

    #[test]
    fn a_full_table_forgets_the_oldest_and_refuses_it() {
        let mut counts = NonceCounts::new(2);
        let mut take = |issued, nc| counts.take(stamp(issued), nc, 1, NOW, VALID);
        assert_eq!(take(NOW - 3, 1), Ok(()));
        assert_eq!(take(NOW - 1, 1), Ok(()));
        // Older than all that are there.
        assert_eq!(take(NOW - 4, 1), Err(Spent::Forgotten));
        assert_eq!(take(NOW, 1), Ok(()));
        // NOW - 3 is gone, and with it everything up to it.
        for nc in [1, 2] {
            assert_eq!(take(NOW - 3, nc), Err(Spent::Forgotten));
            assert_eq!(take(NOW - 4, nc), Err(Spent::Forgotten));
        }
        assert_eq!(take(NOW - 1, 1), Err(Spent::Repeated));
        assert_eq!(take(NOW - 1, 2), Ok(()));
        assert_eq!(counts.len(), 2);
    }

    #[test]
    fn what_is_too_old_goes() {
        let mut counts = NonceCounts::new(100);
        for second in 0..20 {
            counts.take(stamp(NOW + second), 1, 1, NOW + second, VALID).unwrap();
        }
        assert_eq!(counts.len(), 20);
        let later = NOW + 19 + VALID + 1;
        counts.take(stamp(later), 1, 1, later, VALID).unwrap();
        assert_eq!(counts.len(), 20 - SWEEP + 1);
        counts.take(stamp(later), 2, 1, later, VALID).unwrap();
        counts.take(stamp(later), 3, 1, later, VALID).unwrap();
        assert_eq!(counts.len(), 1);
        // Not even a clock that is set back brings them back.
        assert_eq!(counts.take(stamp(NOW), 1, 1, NOW + 30, VALID), Err(Spent::Forgotten));
    }

    #[test]
    fn a_clock_that_was_set_back_locks_nobody_out() {
        let mut counts = NonceCounts::new(2);
        let future = NOW + 1_000_000;
        for second in 0..4 {
            counts.take(stamp(future + second), 1, 1, future + second, VALID).unwrap();
        }
        for second in 0..4 {
            counts.take(stamp(NOW + second), 1, 1, NOW + second, VALID).unwrap();
        }
        assert_eq!(counts.len(), 2);
        assert_eq!(counts.take(stamp(NOW + 3), 1, 1, NOW + 3, VALID), Err(Spent::Repeated));
    }

    proptest! {
        /// Against a memory without bounds: nothing is taken twice, and what is told to be a repetition is one.
        #[test]
        fn nothing_is_taken_twice(
            capacity in 1..6usize,
            steps in proptest::collection::vec((0..8u64, 0..100u32, 0..2u64, 0..20u64), 0..300),
        ) {
            let mut counts = NonceCounts::new(capacity);
            let mut taken = HashMap::new();
            let mut now = NOW;
            for (age, nc, variant, passed) in steps {
                now += passed / 15;
                // Two requests may have one count; their responses are two, and no other count's.
                let response = u64::from(nc) * 2 + variant;
                let stamp = stamp(now - age);
                match counts.take(stamp, nc, response, now, 10) {
                    Ok(()) => {
                        let before = taken.insert((stamp, nc), response);
                        prop_assert_eq!(before, None, "{:?} {}", stamp, nc);
                    }
                    Err(Spent::Repeated) => {
                        prop_assert_eq!(taken.get(&(stamp, nc)), Some(&response));
                    }
                    Err(Spent::Replayed | Spent::Forgotten) => {}
                }
                prop_assert!(counts.len() <= capacity);
            }
        }
    }
}
