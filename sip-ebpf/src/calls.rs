//! The call table: which PBX a call went to, for as long as its INVITE may be repeated, cancelled
//! or acknowledged as failed.
//!
//! An array of buckets, one cache line each, with eight calls: a word for a call. A lookup touches
//! one line and an insert writes one word, so no lock is needed, and what is lost under pressure
//! is the oldest call of the bucket. A bucket is chosen by the low bits of the call's keyed hash;
//! 40 other bits tell its calls apart. When two calls share these as well they share a PBX, and
//! nothing else happens.
//!
//! | bits | |
//! | --- | --- |
//! | 24..64 | these bits of the hash, never all zero |
//! | 8..24 | when it was put there, in units of 2^30 ns |
//! | 0..8 | slot of the PBX |

use crate::tables::CALLS_PER_BUCKET;

/// How long a call is known, in units of 2^30 ns (1.07 s): longer than timer C (RFC 3261 16.6, more
/// than three minutes).
pub const LIFE: u16 = 280;

/// The words of a bucket.
pub type Words = [u64; CALLS_PER_BUCKET];

/// The bucket of a hash.
#[inline(always)]
pub fn bucket(hash: u64, mask: u32) -> u32 {
    hash as u32 & mask
}

#[inline(always)]
fn tag(hash: u64) -> u64 {
    let tag = hash >> 24;
    if tag == 0 { 1 } else { tag }
}

#[inline(always)]
fn age(word: u64, now: u64) -> u16 {
    ((now >> 30) as u16).wrapping_sub((word >> 8) as u16)
}

/// The slot that a call went to. `now` is in nanoseconds of the monotonic clock.
#[inline(always)]
pub fn find(words: &Words, hash: u64, now: u64) -> Option<u32> {
    let tag = tag(hash);
    let mut found = 0;
    for word in words {
        if *word >> 24 == tag {
            found = *word;
        }
    }
    (found != 0 && age(found, now) <= LIFE).then_some(found as u32 & 0xff)
}

/// Remembers where a call goes, in its own word, else a free one, else that of the oldest call.
#[inline(always)]
pub fn put(words: &mut Words, hash: u64, now: u64, slot: u32) {
    let tag = tag(hash);
    let mut best = 0;
    let mut score = 0;
    for (i, word) in words.iter().enumerate() {
        let this = if *word >> 24 == tag {
            u32::MAX
        } else if *word == 0 {
            u32::MAX - 1
        } else {
            age(*word, now) as u32 + 1
        };
        if this > score {
            score = this;
            best = i;
        }
    }
    let word = tag << 24 | (((now >> 30) as u16) as u64) << 8 | (slot & 0xff) as u64;
    // SAFETY: `best` is the number of one of the words.
    unsafe { *words.as_mut_ptr().add(crate::scan::confine::<7>(best as u32) as usize) = word };
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1 << 30;

    #[test]
    fn a_call_is_found_until_it_is_too_old() {
        let mut words = [0; 8];
        put(&mut words, 0xabcd_ef01_2345_6789, 5 * SECOND, 7);
        assert_eq!(find(&words, 0xabcd_ef01_2345_6789, 6 * SECOND), Some(7));
        assert_eq!(find(&words, 0xabcd_ef01_2345_6789, (5 + LIFE as u64) * SECOND), Some(7));
        assert_eq!(find(&words, 0xabcd_ef01_2345_6789, (6 + LIFE as u64) * SECOND), None);
        assert_eq!(find(&words, 0xabcd_ef00_0045_6789, 6 * SECOND), None);
    }

    #[test]
    fn a_full_bucket_forgets_the_oldest() {
        let mut words = [0; 8];
        for i in 0..9 {
            put(&mut words, (i + 1) << 32, i * SECOND, i as u32);
        }
        assert_eq!(find(&words, 1 << 32, 9 * SECOND), None);
        for i in 1..9 {
            assert_eq!(find(&words, (i + 1) << 32, 9 * SECOND), Some(i as u32));
        }
    }

    #[test]
    fn a_call_that_moves_keeps_its_word() {
        let mut words = [0; 8];
        put(&mut words, 1 << 40, 0, 1);
        put(&mut words, 1 << 40, SECOND, 2);
        assert_eq!(words.iter().filter(|word| **word != 0).count(), 1);
        assert_eq!(find(&words, 1 << 40, SECOND), Some(2));
    }

    #[test]
    fn the_clock_may_wrap() {
        let mut words = [0; 8];
        put(&mut words, 9 << 40, 0xffff * SECOND, 3);
        assert_eq!(find(&words, 9 << 40, 0x1_0001 * SECOND), Some(3));
    }
}
