//! A map with a bound that keeps what is in use.

use std::hash::{BuildHasher, Hasher, RandomState};

use hashbrown::HashTable;
use siphasher::sip128::{Hasher128, SipHasher13};

use super::super::timers::push;

/// Two generations: what is found or put in is in the young one, and when that has grown to half of the bound
/// it becomes the old one, and the old one goes. So nothing goes that was in use since half of the bound came
/// after it, and each step costs the same.
///
/// Of a name there is a keyed hash of 128 bits only: it costs the same room however long the name is, and nobody
/// finds two names that share one.
#[derive(Debug)]
pub(super) struct Cache<V> {
    key: [u64; 2],
    young: Generation<V>,
    old: Generation<V>,
    /// The most in one generation.
    half: usize,
}

/// The hash of a name.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct Name(u64, u64);

#[derive(Debug)]
struct Generation<V> {
    /// Without gaps, in no order.
    entries: Vec<(Name, V)>,
    /// Places in `entries`, by the first half of the name.
    places: HashTable<u32>,
}

impl<V> Cache<V> {
    /// With a bound, at least two.
    pub(super) fn new(capacity: usize) -> Self {
        let random = RandomState::new();
        Self {
            key: [random.hash_one(0), random.hash_one(1)],
            young: Generation::default(),
            old: Generation::default(),
            half: (capacity / 2).max(1),
        }
    }

    pub(super) fn get(&mut self, name: &str) -> Option<&V> {
        let name = self.name(name);
        if let Some(value) = self.old.remove(name) {
            self.keep(name, value);
        }
        self.young.get(name)
    }

    pub(super) fn put(&mut self, name: &str, value: V) {
        let name = self.name(name);
        self.old.remove(name);
        self.young.remove(name);
        self.keep(name, value);
    }

    pub(super) fn remove(&mut self, name: &str) {
        let name = self.name(name);
        self.young.remove(name);
        self.old.remove(name);
    }

    pub(super) fn clear(&mut self) {
        self.young = Generation::default();
        self.old = Generation::default();
    }

    pub(super) fn len(&self) -> usize {
        self.young.entries.len() + self.old.entries.len()
    }

    /// Keeps what is in neither generation.
    fn keep(&mut self, name: Name, value: V) {
        if self.young.entries.len() >= self.half {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(name, value);
    }

    fn name(&self, name: &str) -> Name {
        let mut hash = SipHasher13::new_with_keys(self.key[0], self.key[1]);
        hash.write(name.as_bytes());
        let hash = hash.finish128();
        Name(hash.h1, hash.h2)
    }
}

impl<V> Generation<V> {
    fn get(&self, name: Name) -> Option<&V> {
        let is = |at: &u32| self.entries.get(*at as usize).is_some_and(|(other, _)| *other == name);
        let at = self.places.find(name.0, is)?;
        self.entries.get(*at as usize).map(|(_, value)| value)
    }

    /// A name that is not there.
    fn insert(&mut self, name: Name, value: V) {
        // Memory ends before 32 bits do.
        let at = self.entries.len() as u32;
        push(&mut self.entries, (name, value));
        let entries = &self.entries;
        let hash = |at: &u32| entries.get(*at as usize).map_or(0, |(name, _)| name.0);
        self.places.insert_unique(name.0, at, hash);
    }

    fn remove(&mut self, name: Name) -> Option<V> {
        let Self { entries, places } = self;
        let is = |at: &u32| entries.get(*at as usize).is_some_and(|(other, _)| *other == name);
        let (at, _) = places.find_entry(name.0, is).ok()?.remove();
        // What a table says is there.
        let (_, value) = entries.swap_remove(at as usize);
        let last = entries.len() as u32;
        if let Some((moved, _)) = entries.get(at as usize)
            && let Some(place) = places.find_mut(moved.0, |place| *place == last)
        {
            *place = at;
        }
        Some(value)
    }
}

impl<V> Default for Generation<V> {
    fn default() -> Self {
        Self { entries: Vec::new(), places: HashTable::new() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[test]
    fn it_keeps_its_bound_and_what_is_in_use() {
        let mut cache = Cache::new(10);
        cache.put("kept", 0);
        for number in 1..1000 {
            cache.put(&number.to_string(), number);
            assert!(cache.len() <= 10);
            assert_eq!(cache.get("kept"), Some(&0), "after {number}");
        }
        assert_eq!(cache.get("999"), Some(&999));
        assert_eq!(cache.get("900"), None);
        cache.put("999", 7);
        assert_eq!(cache.get("999"), Some(&7));
        cache.remove("999");
        assert_eq!(cache.get("999"), None);
        cache.clear();
        assert_eq!((cache.len(), cache.get("kept")), (0, None));
    }

    proptest! {
        /// What it says is what was put in last, and as long as the bound is far nothing goes.
        #[test]
        fn the_same_as_a_map(
            capacity in prop_oneof![1..8usize, Just(1000)],
            steps in proptest::collection::vec((0..3u8, 0..12u8), 0..300),
        ) {
            let mut cache = Cache::new(capacity);
            let mut map = HashMap::new();
            for (number, (what, name)) in steps.into_iter().enumerate() {
                let name = format!("user{name}");
                match what {
                    0 => {
                        cache.put(&name, number);
                        map.insert(name, number);
                    }
                    1 => {
                        cache.remove(&name);
                        map.remove(&name);
                    }
                    _ => match cache.get(&name) {
                        Some(value) => prop_assert_eq!(Some(value), map.get(&name)),
                        None => prop_assert!(capacity < 1000 || !map.contains_key(&name)),
                    },
                }
                prop_assert!(cache.len() <= capacity.max(2));
                prop_assert!(capacity < 1000 || cache.len() == map.len());
            }
        }
    }
}
