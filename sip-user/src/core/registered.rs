//! Sources from which somebody has registered with a right password: they may send more than strangers.
//!
//! Learned with each REGISTER, for as long as its contacts last; known again after a restart where the store has kept the
//! source (`received`). A source is an IPv4 address, or the /64 of an IPv6 address. At most [`MAX_REGISTERED`] are known;
//! more are strangers, and counted.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use sip_ebpf::tables::MAX_REGISTERED;

use super::moment::Moment;

/// One source: an IPv4 address, or the first half of an IPv6 address.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub enum Source {
    /// An address.
    V4(Ipv4Addr),
    /// A /64, its bits as they stand.
    V6(u64),
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self::V4(v4),
            IpAddr::V6(v6) => Self::V6((u128::from(v6) >> 64) as u64),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Registered {
    until: HashMap<Source, Moment>,
    /// When to look at each of them: no later than it ends.
    ends: BTreeSet<(Moment, Source)>,
    /// Those that have come or gone, for who mirrors them.
    changed: HashSet<Source>,
    refused: u64,
}

impl Registered {
    /// Somebody is registered from there until then.
    pub fn learn(&mut self, source: Source, until: Instant) {
        let until = Moment::from(until);
        if let Some(known) = self.until.get_mut(&source) {
            *known = until.max(*known);
        } else if self.until.len() < MAX_REGISTERED as usize {
            self.until.insert(source, until);
            self.ends.insert((until, source));
            self.changed.insert(source);
        } else {
            self.refused += 1;
        }
    }

    /// Whether somebody is registered from there.
    pub fn has(&self, address: IpAddr) -> bool {
        self.until.contains_key(&Source::from(address))
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let now = Moment::from(now);
        while let Some((end, source)) = self.ends.first().copied()
            && end <= now
        {
            self.ends.remove(&(end, source));
            match self.until.get(&source) {
                Some(until) if *until > now => _ = self.ends.insert((*until, source)),
                _ => {
                    self.until.remove(&source);
                    self.changed.insert(source);
                }
            }
        }
    }

    /// Those that have come (`true`) or gone since this was last asked.
    pub fn take_changes(&mut self) -> Vec<(Source, bool)> {
        let until = &self.until;
        self.changed.drain().map(|source| (source, until.contains_key(&source))).collect()
    }

    /// All, for the kernel.
    pub fn all(&self) -> Vec<Source> {
        self.until.keys().copied().collect()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.until.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.until.is_empty()
    }

    /// How often one was not learned because there were too many.
    pub fn refused(&self) -> u64 {
        self.refused
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn a_source_is_known_while_somebody_is_registered() {
        let mut known = Registered::default();
        let start = Instant::now();
        let minutes = |n: u64| start + Duration::from_secs(60 * n);
        let v4: IpAddr = "203.0.113.5".parse().unwrap();
        let v6: IpAddr = "2001:db8:1:2::5".parse().unwrap();
        known.learn(v4.into(), minutes(10));
        known.learn(v6.into(), minutes(20));
        let mut changes = known.take_changes();
        changes.sort();
        assert_eq!(changes, [(v4.into(), true), (v6.into(), true)]);
        assert!(known.has(v4) && known.has("2001:db8:1:2:3::9".parse().unwrap()));
        assert!(!known.has("2001:db8:1:3::5".parse().unwrap()));
        // Another phone of the office, and one that is sooner over.
        known.learn(v4.into(), minutes(30));
        known.learn(v4.into(), minutes(1));
        assert_eq!(known.take_changes(), []);
        known.handle_timeout(minutes(20));
        assert!(known.has(v4) && !known.has(v6));
        assert_eq!(known.take_changes(), [(v6.into(), false)]);
        known.handle_timeout(minutes(30) - Duration::from_millis(1));
        assert_eq!((known.len(), known.all().len()), (1, 1));
        known.handle_timeout(minutes(30));
        assert!(known.is_empty() && known.ends.is_empty());
        assert_eq!(known.take_changes(), [(v4.into(), false)]);
    }

    #[test]
    fn they_are_bounded() {
        let mut known = Registered::default();
        let now = Instant::now();
        for n in 0..MAX_REGISTERED + 5 {
            known.learn(IpAddr::from(Ipv4Addr::from(n)).into(), now);
        }
        assert_eq!((known.len(), known.refused()), (MAX_REGISTERED as usize, 5));
    }
}
