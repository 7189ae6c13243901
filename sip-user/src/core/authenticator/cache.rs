//! A map with a bound that keeps what is in use.

use std::collections::HashMap;
use std::hash::BuildHasher;
use std::hash::RandomState;

/// Two generations: what is found or put in is in the young one, and when that has grown to half of the bound
/// it becomes the old one, and the old one goes. So nothing goes that was in use since half of the bound came
/// after it, and each step costs the same.
#[derive(Debug)]
pub(super) struct Cache<V, S = RandomState> {
    young: HashMap<Box<str>, V, S>,
    old: HashMap<Box<str>, V, S>,
    /// The most in one generation.
    half: usize,
}

impl<V> Cache<V> {
    /// With a bound, at least two.
    pub(super) fn new(capacity: usize) -> Self {
        Self { young: HashMap::new(), old: HashMap::new(), half: (capacity / 2).max(1) }
    }
}

impl<V, S: BuildHasher + Default> Cache<V, S> {
    pub(super) fn get(&mut self, name: &str) -> Option<&V> {
        if let Some((name, value)) = self.old.remove_entry(name) {
            self.put(name, value);
        }
        self.young.get(name)
    }

    pub(super) fn put(&mut self, name: Box<str>, value: V) {
        self.old.remove(&name);
        if self.young.len() >= self.half && !self.young.contains_key(&name) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(name, value);
    }

    pub(super) fn remove(&mut self, name: &str) {
        self.young.remove(name);
        self.old.remove(name);
    }

    pub(super) fn clear(&mut self) {
        self.young = HashMap::default();
        self.old = HashMap::default();
    }

    pub(super) fn len(&self) -> usize {
        self.young.len() + self.old.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_keeps_its_bound_and_what_is_in_use() {
        let mut cache = Cache::new(10);
        cache.put("kept".into(), 0);
        for number in 1..1000 {
            cache.put(number.to_string().into(), number);
            assert!(cache.len() <= 10);
            assert_eq!(cache.get("kept"), Some(&0), "after {number}");
        }
        assert_eq!(cache.get("999"), Some(&999));
        assert_eq!(cache.get("900"), None);
        cache.put("999".into(), 7);
        assert_eq!(cache.get("999"), Some(&7));
        cache.remove("999");
        assert_eq!(cache.get("999"), None);
        cache.clear();
        assert_eq!((cache.len(), cache.get("kept")), (0, None));
    }
}
