//! The gate in the daemon: the rules of [`mod@sip_ebpf::gate`], for what comes up and for all where there is no kernel half.
//!
//! What sources owe is one table for all workers, as the kernel's is one for all CPUs: the datagrams of a source come to
//! any of them. Who is registered each worker knows by itself.

use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sip_ebpf::Reason;
use sip_ebpf::gate::{self, Rules, Words};
use sip_ebpf::tables::{DEBT_BUCKETS, SOURCES_PER_BUCKET};

use super::registered::Registered;

/// What sources owe. A clone is the same table.
///
/// Nothing is locked: as in the kernel, a change writes one word. Two that come at once from one source may be counted as one.
#[derive(Clone, Debug)]
pub struct Debts(Arc<[Bucket]>);

#[derive(Debug, Default)]
#[repr(align(16))]
struct Bucket([AtomicU64; SOURCES_PER_BUCKET]);

impl Bucket {
    fn words(&self) -> Words {
        let mut words = Words::default();
        for (word, of) in words.iter_mut().zip(&self.0) {
            *word = of.load(Ordering::Relaxed);
        }
        words
    }
}

impl Default for Debts {
    fn default() -> Self {
        // One family's beside the other's: their names for sources may be equal.
        Self((0..2 * DEBT_BUCKETS).map(|_| Bucket::default()).collect())
    }
}

impl Debts {
    fn bucket(&self, source: Source) -> Option<&Bucket> {
        let at = gate::bucket(source.name, DEBT_BUCKETS - 1);
        self.0.get((at + if source.v6 { DEBT_BUCKETS } else { 0 }) as usize)
    }
}

/// A source as the table knows it.
#[derive(Clone, Copy)]
struct Source {
    /// An IPv4 address as it stands in memory, as in the kernel; of IPv6, what 64 bits come to: two networks may share a
    /// name, and then what they may send.
    name: u32,
    v6: bool,
}

impl From<IpAddr> for Source {
    fn from(address: IpAddr) -> Self {
        match address {
            IpAddr::V4(v4) => Self { name: u32::from_ne_bytes(v4.octets()), v6: false },
            IpAddr::V6(v6) => {
                let network = (u128::from(v6) >> 64) as u64;
                Self { name: gate::name_of_network(network), v6: true }
            }
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Gate {
    rules: Option<Rules>,
    debts: Debts,
    /// Who is registered.
    pub registered: Registered,
}

impl Gate {
    /// Shares the table of other workers.
    pub fn share(&mut self, debts: Debts) {
        self.debts = debts;
    }

    /// The rates; `None`: nothing is asked.
    pub fn set_rules(&mut self, rules: Option<Rules>) {
        self.rules = rules;
    }

    /// Lets a datagram of somebody who is not exempt in, or says why it is dropped. `now` is in nanoseconds of the clock of
    /// all workers.
    pub fn take(&self, now: u64, from: IpAddr, bytes: &[u8]) -> Result<(), Reason> {
        let Some(rules) = &self.rules else { return Ok(()) };
        let source = Source::from(from);
        let Some(bucket) = self.debts.bucket(source) else { return Ok(()) };
        let mut text = [0; 8];
        text.iter_mut().zip(bytes).for_each(|(to, from)| *to = *from);
        let (text, registered) = (u64::from_le_bytes(text), self.registered.has(from));
        let before = bucket.words();
        let mut after = before;
        gate::take(&mut after, source.name, now, rules, registered, text)?;
        for ((word, before), after) in bucket.0.iter().zip(before).zip(after) {
            if before != after {
                word.store(after, Ordering::Relaxed);
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use sip_ebpf::gate::Rate;

    use super::*;

    #[test]
    fn a_source_is_one_whoever_serves_it() {
        let rules = Rules { stranger: Rate::new(10, 5), registered: Rate::new(100, 50) };
        let mut gates = [Gate::default(), Gate::default()];
        let debts = Debts::default();
        for gate in &mut gates {
            gate.set_rules(Some(rules));
            gate.share(debts.clone());
        }
        let served = |from: &str| {
            let from = from.parse().unwrap();
            let turns = gates.iter().cycle().take(100);
            turns.filter(|gate| gate.take(5, from, b"REGISTER").is_ok()).count()
        };
        assert_eq!(served("192.0.2.1"), 5);
        assert_eq!(served("192.0.2.2"), 5);
        assert_eq!(served("2001:db8:1:2::1"), 5);
        assert_eq!(served("2001:db8:1:2:3::1"), 0);
        assert_eq!(served("2001:db8:1:3::1"), 5);
        let open = Gate::default();
        assert_eq!(open.take(5, "192.0.2.1".parse().unwrap(), b""), Ok(()));
    }
}
