//! Which counts a client has used with each nonce (RFC 7616 3.4.5): nothing is accepted twice.

use std::collections::BTreeMap;

use super::nonce::Stamp;

/// How many counts below the highest are told apart: requests may overtake each other over UDP.
const WINDOW: u32 = u64::BITS;
/// How many of the last requests are known again when they are repeated.
const REPEATS: usize = 4;
/// How many nonces that are too old may go per request: none waits for many.
const SWEEP: usize = 8;
/// How many nonces lie together. They come nearly in the order in which they were made, so runs are full; a node
/// of a `BTreeMap` that grows at its end stays half empty.
const RUN: usize = 64;

/// The nonces in use, with their counts. It has a bound, and forgets the oldest nonce when it is full; what it
/// has forgotten is refused, so its client takes a new nonce and notices nothing.
///
/// It knows what passed here. A request that was heard by a node may be repeated to another one with the same
/// key, or to the same one after a restart, once, while its nonce is valid: that is the price of nonces which
/// every node takes.
#[derive(Debug)]
pub struct NonceCounts {
    /// Oldest first, in runs that are not empty, oldest first. The key of a run is not above its first, and above
    /// the last of the run before.
    runs: BTreeMap<Stamp, Vec<Used>>,
    len: usize,
    capacity: usize,
    /// The youngest nonce that was forgotten. None that is as old and not in the table can be known as unused.
    floor: Option<Stamp>,
}

/// What was used of a nonce.
#[derive(Clone, Copy, Debug)]
struct Used {
    stamp: Stamp,
    highest: u32,
    /// Bit *n*: `highest` - *n* was used.
    seen: u64,
    /// By count modulo their number: a piece of the response. Two right ones that share it are made by who has the
    /// password, to hear another word for the same refusal.
    responses: [u32; REPEATS],
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
    /// Room for this many nonces, at least one. Each takes about forty bytes while it is valid.
    pub fn new(capacity: usize) -> Self {
        Self { runs: BTreeMap::new(), len: 0, capacity: capacity.max(1), floor: None }
    }

    /// How many nonces are known.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether none is known.
    pub fn is_empty(&self) -> bool {
        self.len == 0
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
        // A piece will do: see [`Used::responses`].
        let response = response as u32;
        if let Some(used) = self.find(stamp) {
            return used.take(nc, response);
        }
        // After the clock was set back, the floor lies in the future and says nothing about nonces of now.
        let floor = self.floor.filter(|floor| !floor.is_ahead(now));
        if floor.is_some_and(|floor| stamp <= floor) {
            return Err(Spent::Forgotten);
        }
        if self.len >= self.capacity {
            self.make_room(stamp, now)?;
        }
        self.insert(Used::new(stamp, nc, response));
        Ok(())
    }

    fn find(&mut self, stamp: Stamp) -> Option<&mut Used> {
        let (_, run) = self.runs.range_mut(..=stamp).next_back()?;
        let place = run.binary_search_by_key(&stamp, |used| used.stamp).ok()?;
        run.get_mut(place)
    }

    /// Puts one in that is not there.
    fn insert(&mut self, used: Used) {
        let stamp = used.stamp;
        self.len += 1;
        let last = self.runs.last_key_value().map(|(key, _)| *key);
        let Some((key, run)) = self.runs.range_mut(..=stamp).next_back() else {
            // Older than all: the first run begins with it.
            let mut run = self.runs.pop_first().map(|(_, run)| run).unwrap_or_default();
            run.reserve_exact(RUN.saturating_sub(run.len()).max(1));
            run.insert(0, used);
            self.runs.insert(stamp, run);
            return self.split(stamp);
        };
        let key = *key;
        let place = run.partition_point(|other| other.stamp < stamp);
        if place == run.len() && place >= RUN && last == Some(key) {
            let mut run = Vec::with_capacity(RUN);
            run.push(used);
            self.runs.insert(stamp, run);
            return;
        }
        if run.len() == run.capacity() {
            run.reserve_exact(RUN / 8);
        }
        run.insert(place, used);
        self.split(key);
    }

    /// Makes two runs of one that has grown to twice its length.
    fn split(&mut self, key: Stamp) {
        let Some(run) = self.runs.get_mut(&key).filter(|run| run.len() >= 2 * RUN) else { return };
        let upper = run.split_off(RUN);
        run.shrink_to_fit();
        if let Some(first) = upper.first() {
            self.runs.insert(first.stamp, upper);
        }
    }

    fn first(&self) -> Option<Stamp> {
        self.runs.first_key_value()?.1.first().map(|used| used.stamp)
    }

    /// Takes so many of the oldest out, which are in the first run.
    fn remove_first(&mut self, count: usize) {
        let Some(mut entry) = self.runs.first_entry() else { return };
        let count = count.min(entry.get().len());
        entry.get_mut().drain(..count);
        self.len -= count;
        if entry.get().is_empty() {
            entry.remove();
        }
    }

    /// Forgets nonces that are refused for their age already.
    fn sweep(&mut self, now: u64, validity: u64) {
        let mut left = SWEEP;
        while left > 0
            && let Some((_, run)) = self.runs.first_key_value()
        {
            let old =
                |used: &&Used| used.stamp.is_stale(now, validity) && !used.stamp.is_ahead(now);
            let count = run.iter().take(left).take_while(old).count();
            let Some(youngest) = run.get(..count).and_then(<[_]>::last) else { return };
            self.floor = self.floor.max(Some(youngest.stamp));
            left -= count;
            self.remove_first(count);
        }
    }

    fn make_room(&mut self, stamp: Stamp, now: u64) -> Result<(), Spent> {
        // Nonces of a future (the clock was set back) are refused as such, and must not fill the table.
        if let Some(mut youngest) = self.runs.last_entry()
            && youngest.get().last().is_some_and(|used| used.stamp.is_ahead(now))
        {
            youngest.get_mut().pop();
            self.len -= 1;
            if youngest.get().is_empty() {
                youngest.remove();
            }
            return Ok(());
        }
        let Some(oldest) = self.first() else {
            return Ok(());
        };
        if stamp < oldest {
            return Err(Spent::Forgotten);
        }
        self.floor = self.floor.max(Some(oldest));
        self.remove_first(1);
        Ok(())
    }
}

impl Used {
    fn new(stamp: Stamp, nc: u32, response: u32) -> Self {
        let mut used = Self { stamp, highest: nc, seen: 1, responses: [0; REPEATS] };
        used.remember(nc, response);
        used
    }

    fn take(&mut self, nc: u32, response: u32) -> Result<(), Spent> {
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

    fn remember(&mut self, nc: u32, response: u32) {
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
    fn it_costs_little_in_whatever_order_they_come() {
        assert_eq!(size_of::<Used>(), 40);
        let numbers = 0..10_000u64;
        let shuffled = |number: u64| number * 7_919 % 10_000;
        // As they were made; each a little too early or too late; backwards; and anyhow.
        let orders: [Vec<u64>; 4] = [
            numbers.clone().collect(),
            numbers.clone().map(|number| number / 100 * 100 + number * 37 % 100).collect(),
            numbers.clone().rev().collect(),
            numbers.map(shuffled).collect(),
        ];
        for (order, most) in orders.into_iter().zip([65, 75, 75, 75]) {
            let mut counts = NonceCounts::new(usize::MAX);
            let stamp = |number: u64| Stamp::new(NOW, 0, number as u32);
            for number in &order {
                counts.take(stamp(*number), 1, 1, NOW, VALID).unwrap();
            }
            assert_eq!(counts.len(), order.len());
            let room: usize = counts.runs.values().map(Vec::capacity).sum();
            assert!(room <= order.len() * most / 64 + 2 * RUN, "room for {room}");
            let all: Vec<_> = counts.runs.values().flatten().map(|used| used.stamp).collect();
            assert!(all.is_sorted());
            for number in &order {
                assert_eq!(counts.take(stamp(*number), 1, 1, NOW, VALID), Err(Spent::Repeated));
            }
        }
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
