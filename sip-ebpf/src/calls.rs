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
//! | 10..24 | when it was put there, in units of 2^30 ns |
//! | 6..10 | how far it is: bits of [`state`] |
//! | 0..6 | slot of the PBX |
//!
//! The kernel has a word more for each bucket, with seven bits of each of its calls ([`may_have`]). These words lie
//! together, so that they are in a CPU's cache when the buckets are not: a new call is known to be new, and put down,
//! without a wait for its bucket.

use crate::tables::{CALLS_PER_BUCKET, MAX_PBX};
use crate::text::{HIGHS, ONES};

/// How long a call is known, in units of 2^30 ns (1.07 s): longer than timer C (RFC 3261 16.6, more
/// than three minutes).
pub const LIFE: u16 = 280;

/// How far a call is. Who sends its messages on notes it, and whoever may have to place the call anew reads it: so
/// nobody is told of what goes well.
pub mod state {
    /// A response to its INVITE went by.
    pub const HEARD: u32 = 1;
    /// A final response did. The next INVITE of the call is another transaction.
    pub const ENDED: u32 = 1 << 1;
    /// A CANCEL went by.
    pub const CANCELLED: u32 = 1 << 2;
    /// The daemon has taken it over: what belongs to it is the daemon's.
    pub const TAKEN: u32 = 1 << 3;
}

/// A call in the table.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Call {
    /// Slot of the PBX that it went to.
    pub slot: u32,
    /// Bits of [`state`].
    pub state: u32,
}

impl Call {
    #[inline(always)]
    fn of(word: u64) -> Self {
        Self { slot: word as u32 & (MAX_PBX - 1), state: word as u32 >> STATE_AT & 15 }
    }
}

/// Where in a word the bits of [`state`] are, and where the time.
const STATE_AT: u32 = 6;
const TIME_AT: u32 = 10;

/// How many bits the time has.
const TIME: u16 = (1 << 14) - 1;

const _: () = assert!(MAX_PBX == 1 << STATE_AT);

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
    ((now >> 30) as u16).wrapping_sub((word >> TIME_AT) as u16) & TIME
}

/// The slot that a call went to, and how far it is. `now` is in nanoseconds of the monotonic clock.
#[inline(always)]
pub fn find(words: &Words, hash: u64, now: u64) -> Option<Call> {
    let tag = tag(hash);
    let mut found = 0;
    for word in words {
        if *word >> 24 == tag {
            found = *word;
        }
    }
    (found != 0 && age(found, now) <= LIFE).then_some(Call::of(found))
}

/// Which word is that of a call: its number, what it says, and what is to be added to it (by an atomic OR) so that it
/// has these bits of [`state`]; zero if it has them. The number is confined to the bucket.
#[inline(always)]
pub fn note(words: &Words, hash: u64, now: u64, bits: u32) -> Option<(u32, Call, u64)> {
    let (found, at) = own(words, hash);
    if found == 0 || age(found, now) > LIFE {
        return None;
    }
    let missing = (bits & 15) as u64 & !(found >> STATE_AT);
    Some((crate::scan::confine::<7>(at), Call::of(found), missing << STATE_AT))
}

/// The word of a call, however old, and its number; zero if it has none.
#[inline(always)]
fn own(words: &Words, hash: u64) -> (u64, u32) {
    let tag = tag(hash);
    let (mut found, mut at) = (0, 0);
    for (i, word) in words.iter().enumerate() {
        // One if it is this, else zero: without a jump, of which the verifier would follow both ways.
        let same = ((*word >> 24 ^ tag).wrapping_sub(1)) >> 63;
        found |= *word & same.wrapping_neg();
        at |= i as u32 & (same as u32).wrapping_neg();
    }
    (found, at)
}

/// A word with other bits of [`state`]: for who writes it by compare and exchange.
pub fn with_state(word: u64, state: u32) -> u64 {
    word & !(15 << STATE_AT) | u64::from(state & 15) << STATE_AT
}

/// A call of which nothing was heard yet.
#[inline(always)]
fn new_word(hash: u64, now: u64, slot: u32) -> u64 {
    let time = (now >> 30) as u16 & TIME;
    tag(hash) << 24 | (time as u64) << TIME_AT | (slot & (MAX_PBX - 1)) as u64
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
    set(words, best as u32, new_word(hash, now, slot));
}

#[inline(always)]
fn set(words: &mut Words, at: u32, word: u64) {
    // SAFETY: confined to the length of the array.
    unsafe { *words.as_mut_ptr().add(crate::scan::confine::<7>(at) as usize) = word };
}

/// Whether a bucket of these tags may have a call; if not, it has not.
///
/// A byte of the tags has seven bits of the hash of the call in the word of its number. The eighth is set in the byte
/// whose word is the next to be written.
#[inline(always)]
pub fn may_have(tags: u64, hash: u64) -> bool {
    let differs = (tags ^ short_tags(hash)) & !HIGHS;
    // No byte borrows from the next.
    HIGHS.wrapping_sub(differs) & HIGHS != 0
}

/// What the byte of a call has, in each byte.
#[inline(always)]
fn short_tags(hash: u64) -> u64 {
    (hash >> 57) * ONES
}

/// As [`put`], in a bucket with tags, where all words are written in turn. What is in the bucket is read only if it may
/// have the call.
#[inline(always)]
pub fn put_tagged(tags: &mut u64, words: &mut Words, hash: u64, now: u64, slot: u32) {
    let word = new_word(hash, now, slot);
    if may_have(*tags, hash)
        && let (1.., at) = own(words, hash)
    {
        return set(words, at, word);
    }
    let marked = *tags & HIGHS;
    let next = if marked == 0 { 1 } else { marked >> 7 };
    let byte = next * 0x7f;
    *tags = *tags & !HIGHS & !byte | short_tags(hash) & byte | (next << 7).rotate_left(8);
    // The number of the byte in which a one is.
    let at = next.wrapping_mul(0x0001_0203_0405_0607) >> 56;
    set(words, at as u32, word);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1 << 30;

    fn slot(slot: u32) -> Option<Call> {
        Some(Call { slot, state: 0 })
    }

    #[test]
    fn a_call_is_found_until_it_is_too_old() {
        let mut words = [0; 8];
        put(&mut words, 0xabcd_ef01_2345_6789, 5 * SECOND, 7);
        assert_eq!(find(&words, 0xabcd_ef01_2345_6789, 6 * SECOND), slot(7));
        assert_eq!(find(&words, 0xabcd_ef01_2345_6789, (5 + LIFE as u64) * SECOND), slot(7));
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
            assert_eq!(find(&words, (i + 1) << 32, 9 * SECOND), slot(i as u32));
        }
    }

    #[test]
    fn a_call_that_moves_keeps_its_word() {
        let mut words = [0; 8];
        put(&mut words, 1 << 40, 0, 1);
        put(&mut words, 1 << 40, SECOND, 2);
        assert_eq!(words.iter().filter(|word| **word != 0).count(), 1);
        assert_eq!(find(&words, 1 << 40, SECOND), slot(2));
    }

    #[test]
    fn a_tagged_bucket_has_the_last_eight_calls() {
        let (mut words, mut tags) = ([0; 8], 0);
        let hash = |i: u64| crate::hash::spread(i);
        for i in 1..1000 {
            put_tagged(&mut tags, &mut words, hash(i), i * SECOND / 100, i as u32 % 64);
            for known in i.saturating_sub(7).max(1)..=i {
                assert!(may_have(tags, hash(known)), "{known} at {i}");
                let found = find(&words, hash(known), i * SECOND / 100);
                assert_eq!(found, slot(known as u32 % 64), "{known} at {i}");
            }
        }
        let strangers = (1000..3000).filter(|i| may_have(tags, hash(*i))).count();
        // Eight of 128.
        assert!((60..200).contains(&strangers), "{strangers} of 2000");
    }

    #[test]
    fn a_call_that_moves_keeps_its_word_and_tag() {
        let (mut words, mut tags) = ([0; 8], 0);
        for i in 0..11 {
            put_tagged(&mut tags, &mut words, (i + 1) << 58, 0, 1);
        }
        let before = (tags, words);
        put_tagged(&mut tags, &mut words, 6 << 58, SECOND, 2);
        assert_eq!(find(&words, 6 << 58, SECOND), slot(2));
        assert_eq!(tags, before.0);
        assert_eq!(words.iter().zip(before.1).filter(|(a, b)| **a != *b).count(), 1);
    }

    #[test]
    fn the_clock_may_wrap() {
        for last in [0x3fff, 0xffff] {
            let mut words = [0; 8];
            put(&mut words, 9 << 40, last * SECOND, 3);
            assert_eq!(find(&words, 9 << 40, (last + 2) * SECOND), slot(3));
        }
    }

    #[test]
    fn how_far_a_call_is_stands_in_its_own_word() {
        let mut words = [0; 8];
        for i in 0..8 {
            put(&mut words, (i + 1) << 32, 0, 63);
        }
        for bits in [state::HEARD, state::CANCELLED, state::TAKEN, state::ENDED] {
            let (at, before, add) = note(&words, 5 << 32, SECOND, bits).unwrap();
            assert_eq!((at, before.slot, before.state & bits), (4, 63, 0));
            words[at as usize] |= add;
            let (_, after, add) = note(&words, 5 << 32, SECOND, bits).unwrap();
            assert_eq!((after.state & bits, add), (bits, 0));
        }
        assert_eq!(find(&words, 5 << 32, SECOND), Some(Call { slot: 63, state: 15 }));
        assert_eq!(find(&words, 4 << 32, SECOND), slot(63));
        assert_eq!(note(&words, 9 << 32, SECOND, 1), None);
        assert_eq!(note(&words, 5 << 32, 400 * SECOND, 1), None);
        words[4] = with_state(words[4], state::CANCELLED);
        let left = Call { slot: 63, state: state::CANCELLED };
        assert_eq!(find(&words, 5 << 32, SECOND), Some(left));
        put(&mut words, 5 << 32, SECOND, 1);
        assert_eq!(find(&words, 5 << 32, SECOND), slot(1));
    }
}
