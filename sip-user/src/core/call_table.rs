//! The call table of the daemon, for all workers together ([`sip_ebpf::calls`] says what it is).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use sip_ebpf::calls::{self, Call, Words};
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

fn words(bucket: &[AtomicU64; CALLS_PER_BUCKET]) -> Words {
    let mut words = Words::default();
    for (word, of) in words.iter_mut().zip(bucket) {
        *word = of.load(Ordering::Relaxed);
    }
    words
}

/// What a bucket says of a call; `now` as in [`calls::find`].
pub fn find(bucket: &[AtomicU64; CALLS_PER_BUCKET], hash: u64, now: u64) -> Option<Call> {
    calls::find(&words(bucket), hash, now)
}

/// Sets and then clears bits of [`calls::state`] of a call. Gives it as it was.
pub fn change(
    bucket: &[AtomicU64; CALLS_PER_BUCKET],
    hash: u64,
    now: u64,
    (set, clear): (u32, u32),
) -> Option<Call> {
    loop {
        let words = words(bucket);
        let (at, call, _) = calls::note(&words, hash, now, 0)?;
        let (word, before) = (bucket.get(at as usize)?, *words.get(at as usize)?);
        let after = calls::with_state(before, (call.state | set) & !clear);
        // Somebody else may note something, or need the place for another call.
        if word.compare_exchange(before, after, Ordering::AcqRel, Ordering::Relaxed).is_ok() {
            return Some(call);
        }
    }
}

impl CallTable {
    /// With so many buckets, or the next power of two.
    pub fn new(buckets: u32) -> Self {
        let buckets = buckets.next_power_of_two();
        Self((0..buckets).map(|_| Bucket::default()).collect())
    }

    /// The slot that a call went to, and how far it is; `now` as in [`calls::find`].
    pub(super) fn find(&self, hash: u64, now: u64) -> Option<Call> {
        find(&self.bucket(hash)?.0, hash, now)
    }

    /// See [`change`].
    pub(super) fn change(&self, hash: u64, now: u64, bits: (u32, u32)) -> Option<Call> {
        change(&self.bucket(hash)?.0, hash, now, bits)
    }

    /// Remembers where a call goes.
    pub(super) fn put(&self, hash: u64, now: u64, slot: u32) {
        let Some(bucket) = self.bucket(hash) else { return };
        let before = words(&bucket.0);
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
        let slot = |slot| Some(Call { slot, state: 0 });
        assert_eq!(hashes.map(|hash| other.find(hash, 0)), [slot(5), slot(6), slot(7)]);
        other.put(hashes[0], 1 << 40, 9);
        assert_eq!(table.find(hashes[0], 1 << 40), slot(9));
        assert_eq!(other.change(hashes[1], 0, (5, 0)), slot(6));
        assert_eq!(table.change(hashes[1], 0, (2, 4)), Some(Call { slot: 6, state: 5 }));
        assert_eq!(table.find(hashes[1], 0), Some(Call { slot: 6, state: 3 }));
        assert_eq!(table.find(9 << 24, 0), None);
    }
}
