//! Addresses with their ports from which somebody is registered who has proved by his password who he is: where the
//! configuration says so (`trust.registered`), INVITEs from there are steered without a question.
//!
//! Each worker knows by himself what was registered with him, by binding, so that an endpoint is known for as long as one
//! of its bindings lives and not longer. Of the others he is told until when each of their endpoints is. Nothing is read
//! back after a restart: a store does not say who has proved what. At most [`MAX_ENDPOINTS`] entries are kept; whoever has
//! no room is asked for credentials like anybody, and counted.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::time::Instant;

use sip_ebpf::tables::MAX_ENDPOINTS;

use super::moment::Moment;
use super::registrar::Key;

/// Marks entries that another worker has told of.
const TOLD: u64 = 1 << 63;

/// See the module.
#[derive(Debug, Default)]
pub struct Endpoints {
    hasher: RandomState,
    /// By the hash of a binding, or of who has told of an endpoint.
    entries: HashMap<u64, (SocketAddr, Moment)>,
    /// The same, the last to end of an endpoint last.
    by_endpoint: BTreeSet<(SocketAddr, Moment, u64)>,
    ends: BTreeSet<(Moment, u64)>,
    /// Those of which something has changed, for who mirrors them.
    changed: HashSet<SocketAddr>,
    /// Those of which something of our own has changed, for other workers.
    news: HashSet<SocketAddr>,
    refused: u64,
}

impl Endpoints {
    /// A binding was registered from there, with a right password.
    pub fn registered(&mut self, binding: &Key, from: SocketAddr, until: Instant) {
        self.set(self.own(binding), Some((from, until.into())));
    }

    /// A binding is gone, or was registered by somebody who did not prove who he is.
    pub fn gone(&mut self, binding: &Key) {
        self.set(self.own(binding), None);
    }

    /// Another worker's number, and until when somebody is registered there with him.
    pub fn told(&mut self, worker: usize, from: SocketAddr, until: Option<Instant>) {
        let id = self.hasher.hash_one((worker, from)) | TOLD;
        self.set(id, until.map(|until| (from, until.into())));
    }

    /// Whether somebody is registered from there.
    pub fn has(&self, from: SocketAddr, now: Instant) -> bool {
        self.until(from).is_some_and(|until| until > now)
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let now = Moment::from(now);
        while let Some((_, id)) = self.ends.first().copied().filter(|(end, _)| *end <= now) {
            self.set(id, None);
        }
    }

    /// Endpoints that have changed since this was last asked, and until when somebody is registered there now.
    pub fn take_changes(&mut self) -> Vec<(SocketAddr, Option<Instant>)> {
        let changed = std::mem::take(&mut self.changed);
        changed.into_iter().map(|from| (from, self.until(from))).collect()
    }

    /// The same of what is our own, for [`Endpoints::told`] of others.
    pub fn take_news(&mut self) -> Vec<(SocketAddr, Option<Instant>)> {
        let news = std::mem::take(&mut self.news);
        let own = |from| self.latest(from).find(|(_, id)| id & TOLD == 0);
        news.into_iter().map(|from| (from, own(from).map(|(until, _)| until.into()))).collect()
    }

    /// All, and until when.
    pub fn all(&self) -> Vec<(SocketAddr, Instant)> {
        let mut all: HashMap<SocketAddr, Moment> = HashMap::new();
        // In order: the last one counts.
        all.extend(self.by_endpoint.iter().map(|(from, until, _)| (*from, *until)));
        all.into_iter().map(|(from, until)| (from, until.into())).collect()
    }

    /// How many entries there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// How often there was no room, since this was last asked.
    pub fn take_refused(&mut self) -> u64 {
        std::mem::take(&mut self.refused)
    }

    fn own(&self, binding: &Key) -> u64 {
        self.hasher.hash_one(binding) & !TOLD
    }

    fn until(&self, from: SocketAddr) -> Option<Instant> {
        self.latest(from).next().map(|(until, _)| until.into())
    }

    /// The entries of an endpoint, the last to end first.
    fn latest(&self, from: SocketAddr) -> impl Iterator<Item = (Moment, u64)> {
        let last = Moment::of_bits(u64::MAX).map(|end| (from, end, u64::MAX));
        let before = last.map(|last| self.by_endpoint.range(..=last).rev());
        let entries = before.into_iter().flatten();
        entries.take_while(move |entry| entry.0 == from).map(|(_, until, id)| (*until, *id))
    }

    fn set(&mut self, id: u64, to: Option<(SocketAddr, Moment)>) {
        let old = self.entries.remove(&id);
        if old == to {
            // Nothing is news.
            if let Some(same) = old {
                self.entries.insert(id, same);
            }
            return;
        }
        if let Some((from, until)) = old {
            self.by_endpoint.remove(&(from, until, id));
            self.ends.remove(&(until, id));
            self.mark(from, id);
        }
        let Some((from, until)) = to else { return };
        if self.entries.len() >= MAX_ENDPOINTS as usize {
            self.refused += 1;
            return;
        }
        self.entries.insert(id, (from, until));
        self.by_endpoint.insert((from, until, id));
        self.ends.insert((until, id));
        self.mark(from, id);
    }

    fn mark(&mut self, from: SocketAddr, id: u64) {
        self.changed.insert(from);
        if id & TOLD == 0 {
            self.news.insert(from);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::time::Duration;

    use super::*;

    fn binding(user: &str, contact: &str) -> Key {
        Key {
            user: user.into(),
            domain: "example.com".into(),
            contact: contact.into(),
            instance: None,
            reg_id: None,
        }
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_endpoint_lives_as_long_as_one_of_its_bindings() {
        let mut known = Endpoints::default();
        let start = Instant::now();
        let minutes = |n: u64| start + Duration::from_secs(60 * n);
        let (office, other) = (at("203.0.113.5:40000"), at("203.0.113.5:40001"));
        let (anna, bob) = (binding("anna", "sip:a@x"), binding("bob", "sip:b@x"));
        known.registered(&anna, office, minutes(10));
        known.registered(&bob, office, minutes(5));
        assert!(known.has(office, start) && !known.has(other, start), "the port counts");
        assert_eq!(known.take_changes(), [(office, Some(minutes(10)))]);
        // One of two goes, by hand and by time.
        known.gone(&anna);
        assert_eq!(known.take_changes(), [(office, Some(minutes(5)))]);
        assert!(known.has(office, minutes(4)));
        assert!(!known.has(office, minutes(5)), "before anybody looks at the clock");
        known.handle_timeout(minutes(5));
        assert_eq!(known.take_changes(), [(office, None)]);
        assert!(known.is_empty() && known.by_endpoint.is_empty() && known.ends.is_empty());
        // A phone that moves takes its binding with it.
        known.registered(&anna, office, minutes(10));
        known.registered(&anna, other, minutes(20));
        assert!(!known.has(office, start) && known.has(other, minutes(19)));
        assert_eq!(known.all(), [(other, minutes(20))]);
        let mut changes = known.take_changes();
        changes.sort();
        assert_eq!(changes, [(office, None), (other, Some(minutes(20)))]);
        // The same again is no news.
        known.registered(&anna, other, minutes(20));
        assert_eq!(known.take_changes(), []);
    }

    #[test]
    fn workers_tell_each_other_of_their_own() {
        let start = Instant::now();
        let minutes = |n: u64| start + Duration::from_secs(60 * n);
        let office = at("203.0.113.5:40000");
        let (mut first, mut second) = (Endpoints::default(), Endpoints::default());
        first.registered(&binding("anna", "sip:a@x"), office, minutes(10));
        second.registered(&binding("bob", "sip:b@x"), office, minutes(5));
        let tell = |from: &mut Endpoints, number, to: &mut Endpoints| {
            let news = from.take_news();
            news.iter().for_each(|(from, until)| to.told(number, *from, *until));
            news.len()
        };
        assert_eq!(tell(&mut first, 0, &mut second), 1);
        assert_eq!(tell(&mut second, 1, &mut first), 1);
        assert_eq!(tell(&mut second, 1, &mut first), 0, "what one was told he does not tell");
        assert!(second.has(office, minutes(9)));
        first.gone(&binding("anna", "sip:a@x"));
        assert!(first.has(office, minutes(4)) && !first.has(office, minutes(6)));
        assert_eq!(first.take_news(), [(office, None)]);
        second.told(0, office, None);
        assert!(second.has(office, minutes(4)) && !second.has(office, minutes(6)));
    }

    #[test]
    fn they_are_bounded() {
        let mut known = Endpoints::default();
        let until = Instant::now() + Duration::from_secs(60);
        for n in 0..MAX_ENDPOINTS + 5 {
            let from = (Ipv4Addr::from(n), 5060).into();
            known.registered(&binding(&n.to_string(), "sip:a@x"), from, until);
        }
        assert_eq!((known.len(), known.take_refused()), (MAX_ENDPOINTS as usize, 5));
        assert_eq!(known.take_refused(), 0);
    }
}
