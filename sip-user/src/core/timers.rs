//! Which of many is due first: a timer for each number, kept in 16 bytes.
//!
//! A binary heap whose members know their places, so that a timer is moved or taken out where it stands. A
//! sorted tree would cost three times as much, and a heap with outdated members could grow without a bound.

use std::time::Instant;

use super::moment::Moment;

/// Timers of the numbers from 0 on, of which there should be few gaps.
///
/// `at` and `place` are of one length, every member of `heap` is below it and stands there once, at its `place`:
/// so no index here is out of bounds.
#[derive(Debug, Default)]
pub(super) struct Timers {
    /// By number.
    at: Vec<Option<Moment>>,
    /// By number: where it stands in `heap`, if it has a timer.
    place: Vec<u32>,
    /// No member is due before the one at half its place.
    heap: Vec<u32>,
}

impl Timers {
    /// Sets the timer of a number, or takes it away.
    pub(super) fn set(&mut self, number: u32, at: Option<Instant>) {
        let at = at.map(Moment::from);
        let index = number as usize;
        if index >= self.at.len() {
            if at.is_none() {
                return;
            }
            grow(&mut self.at, index + 1, None);
            grow(&mut self.place, index + 1, 0);
        }
        let before = std::mem::replace(&mut self.at[index], at);
        match (before, at) {
            (None, None) => {}
            (None, _) => {
                let place = self.heap.len();
                grow(&mut self.heap, place + 1, number);
                self.place[index] = place as u32;
                self.up(place);
            }
            (_, None) => {
                let place = self.place[index] as usize;
                let last = self.heap.len() - 1;
                self.swap(place, last);
                self.heap.pop();
                if place < last {
                    self.settle(place);
                }
            }
            _ => self.settle(self.place[index] as usize),
        }
    }

    /// The timer of a number.
    pub(super) fn get(&self, number: u32) -> Option<Instant> {
        self.at.get(number as usize)?.map(Instant::from)
    }

    /// Who is due first, and when.
    pub(super) fn first(&self) -> Option<(Instant, u32)> {
        let number = *self.heap.first()?;
        Some((self.get(number)?, number))
    }

    /// How many timers there are.
    pub(super) fn len(&self) -> usize {
        self.heap.len()
    }

    fn settle(&mut self, place: usize) {
        let place = self.up(place);
        self.down(place);
    }

    fn up(&mut self, mut place: usize) -> usize {
        while place > 0 && self.is_before(place, (place - 1) / 2) {
            self.swap(place, (place - 1) / 2);
            place = (place - 1) / 2;
        }
        place
    }

    fn down(&mut self, mut place: usize) {
        loop {
            let (left, right) = (2 * place + 1, 2 * place + 2);
            if left >= self.heap.len() {
                return;
            }
            let child = match right < self.heap.len() && self.is_before(right, left) {
                true => right,
                false => left,
            };
            if !self.is_before(child, place) {
                return;
            }
            self.swap(child, place);
            place = child;
        }
    }

    /// Of two places in the heap; all members have a number below the length of `at`.
    fn is_before(&self, a: usize, b: usize) -> bool {
        let at = |place: usize| self.at[self.heap[place] as usize];
        at(a) < at(b)
    }

    fn swap(&mut self, a: usize, b: usize) {
        self.heap.swap(a, b);
        self.place[self.heap[a] as usize] = a as u32;
        self.place[self.heap[b] as usize] = b as u32;
    }
}

/// As `Vec::push`, growing as [`grow`] does.
pub(super) fn push<T>(vector: &mut Vec<T>, value: T) {
    if vector.len() == vector.capacity() {
        vector.reserve_exact(vector.len() / 8 + 16);
    }
    vector.push(value);
}

/// Lengthens a vector; by an eighth where it needs memory, because doubled, half of it would be empty.
pub(super) fn grow<T: Clone>(vector: &mut Vec<T>, len: usize, value: T) {
    if len > vector.capacity() {
        vector.reserve_exact(len - vector.len() + vector.len() / 8 + 16);
    }
    vector.resize(len.max(vector.len()), value);
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::time::Duration;

    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn the_same_as_a_sorted_map(
            sets in proptest::collection::vec((0..40u32, proptest::option::of(0..1000u64)), 0..300)
        ) {
            let start = Instant::now();
            let mut timers = Timers::default();
            let mut map = BTreeMap::new();
            for (number, at) in sets {
                let at = at.map(|at| start + Duration::from_millis(at));
                timers.set(number, at);
                match at {
                    Some(at) => _ = map.insert(number, at),
                    None => _ = map.remove(&number),
                }
                prop_assert_eq!(timers.len(), map.len());
                prop_assert_eq!(timers.get(number), at);
                let first = timers.first();
                prop_assert_eq!(first.map(|(at, _)| at), map.values().min().copied());
                if let Some((at, number)) = first {
                    prop_assert_eq!(map.get(&number), Some(&at));
                }
            }
            while let Some((at, number)) = timers.first() {
                prop_assert_eq!(map.remove(&number), Some(at));
                prop_assert!(map.values().all(|other| *other >= at));
                timers.set(number, None);
            }
            prop_assert!(map.is_empty());
        }
    }
}
