//! The call table of the daemon, for all workers together ([`sip_ebpf::calls`] says what it is).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sip_ebpf::calls::{self, Words};
use sip_ebpf::tables::CALLS_PER_BUCKET;

/// See the module. A clone is the same table.
///
/// Nothing is locked: as in the kernel, an insert writes one word. Two that come at once into one bucket may choose
/// the same word; then one of the calls is forgotten, as if the bucket had been full.
#[derive(Clone, Debug)]
pub struct CallTable(Arc<[Bucket]>);

/// A cache line.
#[derive(Debug, Default)]
#[repr(align(64))]
struct Bucket([AtomicU64; CALLS_PER_BUCKET]);

impl Bucket {
    fn words(&self) -> Words {
        let mut words = Words::default();
        for (word, of) in words.iter_mut().zip(&self.0) {
            *word = of.load(Ordering::Relaxed);
        }
        words
    }
}

impl CallTable {
    /// With so many buckets, or the next power of two.
    pub fn new(buckets: u32) -> Self {
        let buckets = buckets.next_power_of_two();
        Self((0..buckets).map(|_| Bucket::default()).collect())
    }

    /// The slot that a call went to; `now` as in [`calls::find`].
    pub(super) fn find(&self, hash: u64, now: u64) -> Option<u32> {
        calls::find(&self.bucket(hash)?.words(), hash, now)
    }

    /// Remembers where a call goes.
    pub(super) fn put(&self, hash: u64, now: u64, slot: u32) {
        let Some(bucket) = self.bucket(hash) else { return };
        let before = bucket.words();
        let mut after = before;
        calls::put(&mut after, hash, now, slot);
        for ((word, before), after) in bucket.0.iter().zip(before).zip(after) {
            if before != after {
                word.store(after, Ordering::Relaxed);
            }
        }
    }

    fn bucket(&self, hash: u64) -> Option<&Bucket> {
        let mask = u32::try_from(self.0.len()).unwrap_or(1).saturating_sub(1);
        self.0.get(calls::bucket(hash, mask) as usize)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clone_knows_the_same_calls() {
        let table = CallTable::new(3);
        let hashes = [1 << 24, 2 << 24 | 1, 3 << 24 | 1];
        for (slot, hash) in (5..).zip(hashes) {
            table.put(hash, 0, slot);
        }
        let other = table.clone();
        assert_eq!(hashes.map(|hash| other.find(hash, 0)), [Some(5), Some(6), Some(7)]);
        other.put(hashes[0], 1 << 40, 9);
        assert_eq!(table.find(hashes[0], 1 << 40), Some(9));
        assert_eq!(table.find(9 << 24, 0), None);
    }
}
