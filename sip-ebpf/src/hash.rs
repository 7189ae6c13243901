//! Keyed hashes of pieces of a message: a Call-ID, a branch.
//!
//! Two steps, as UMAC takes them (RFC 4418): a universal hash, NH (section 5.2.2), which is little work and
//! makes 64 bits of the text, and then, where somebody gets to see the result, SipHash of those
//! ([`crate::siphash`]). Who does not know the keys finds two texts of one NH with a chance of 2^-32 a try, and
//! learns of none: what is seen has gone through SipHash.

use crate::repeat::{repeat, step};
use crate::siphash::{siphash, siphash_word};
use crate::text::{HIGHS, ONES, Text, head, literal};

/// Words of a text that NH takes; longer ones are SipHash's.
const LANES: u32 = 16;

/// All keys of a node, made of the one that is configured.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Keys {
    /// The configured key (SipHash-1-3); equal on all nodes of a cluster.
    pub secret: [u64; 2],
    /// The keys of NH, two in a word, a word for each word of the text.
    lanes: [u64; LANES as usize],
}

impl Keys {
    /// The keys of a node by the key that is configured.
    pub fn new(secret: [u64; 2]) -> Self {
        let [first, second] = secret;
        let mut lanes = [0; LANES as usize];
        for (lane, i) in lanes.iter_mut().zip(0..) {
            *lane = siphash_word([first, second ^ literal(b"lanes")], i);
        }
        Self { secret, lanes }
    }

    #[inline(always)]
    fn lane(&self, i: u32) -> u64 {
        // SAFETY: masked below LANES, a power of two, the length of the array.
        unsafe { *self.lanes.as_ptr().add(crate::scan::confine::<{ LANES - 1 }>(i) as usize) }
    }
}

/// The universal hash of the text from `at` to `end`, which must stay secret, and marks that are zero if none
/// of those bytes is a control character or white space.
#[inline(always)]
pub fn universal<T: Text>(keys: &Keys, t: T, at: u32, end: u32) -> (u64, u64) {
    let len = end.wrapping_sub(at);
    if len >= 8 * LANES {
        return siphash(keys.secret, t, at, end);
    }
    let (mut sum, mut marks) = (len as u64, 0);
    // Nearly all texts are this short, and then the place of each word and its key is known.
    #[cfg(not(all(target_arch = "bpf", feature = "bpf-loop")))]
    let at = {
        let ([a, b, c, d], [e, f]) = (t.four(at), t.pair(at + 32));
        for (i, word) in [a, b, c, d, e, f].into_iter().enumerate() {
            if len < 8 * (i as u32 + 1) {
                return last(word, len & 7, keys.lanes[i], sum, marks);
            }
            marks |= blanks(word);
            sum = sum.wrapping_add(product(word, keys.lanes[i]));
        }
        at + 48
    };
    let lane = t.fresh(if cfg!(all(target_arch = "bpf", feature = "bpf-loop")) { 0 } else { 6 });
    let mut state = Running { keys, t, at: t.fresh(at), end, lane, sum, marks };
    repeat(LANES, &mut state, |s| {
        if s.at + 8 > s.end {
            return false;
        }
        let word = s.t.word(s.at);
        s.marks |= blanks(word);
        s.sum = s.sum.wrapping_add(product(word, s.keys.lane(s.lane)));
        step(&mut s.lane, 1);
        step(&mut s.at, 8);
        true
    });
    (sum, marks) = (state.sum, state.marks);
    last(t.word(state.at), len & 7, keys.lane(state.lane), sum, marks)
}

/// What [`universal`] gives, with the last `left` bytes of the text, less than a word.
#[inline(always)]
fn last(word: u64, left: u32, lane: u64, sum: u64, marks: u64) -> (u64, u64) {
    if left == 0 {
        return (sum, marks & HIGHS);
    }
    let mask = head(u64::MAX, left);
    (sum.wrapping_add(product(word & mask, lane)), (marks | blanks(word | !mask)) & HIGHS)
}

/// The highest bit of a byte is set if it is a control character or a space; other bits say nothing.
#[inline(always)]
fn blanks(word: u64) -> u64 {
    word.wrapping_sub(ONES * 0x21) & !word
}

struct Running<'a, T> {
    keys: &'a Keys,
    t: T,
    at: u32,
    end: u32,
    lane: u32,
    sum: u64,
    marks: u64,
}

/// One term of NH: both halves, each with its key, multiplied.
#[inline(always)]
fn product(word: u64, lane: u64) -> u64 {
    let low = (word as u32).wrapping_add(lane as u32);
    let high = ((word >> 32) as u32).wrapping_add((lane >> 32) as u32);
    low as u64 * high as u64
}

/// Spreads a hash over all bits, for tables that go by a few of them (the finalizer of MurmurHash3, by Austin
/// Appleby). One to one, so nothing is lost.
#[inline(always)]
pub fn spread(hash: u64) -> u64 {
    let x = (hash ^ hash >> 33).wrapping_mul(0xff51_afd7_ed55_8ccd);
    let x = (x ^ x >> 33).wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    x ^ x >> 33
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::{string::String, vec::Vec};

    /// NH as RFC 4418 5.2.2 has it, but for the order in which words are paired: neighbours here.
    fn nh(keys: &Keys, text: &[u8]) -> u64 {
        let mut padded = text.to_vec();
        padded.resize(text.len().div_ceil(8) * 8, 0);
        let halves: Vec<u32> =
            padded.chunks(4).map(|half| u32::from_le_bytes(half.try_into().unwrap())).collect();
        let lanes: Vec<u32> =
            keys.lanes.iter().flat_map(|lane| [*lane as u32, (lane >> 32) as u32]).collect();
        let terms = halves
            .chunks(2)
            .zip(lanes.chunks(2))
            .map(|(m, k)| u64::from(m[0].wrapping_add(k[0])) * u64::from(m[1].wrapping_add(k[1])));
        terms.fold(text.len() as u64, u64::wrapping_add)
    }

    proptest! {
        #[test]
        fn is_nh_or_siphash(secret: [u64; 2], text in "[!-~]{0,200}", before in 0usize..9) {
            let keys = Keys::new(secret);
            let mut all = String::from(" ").repeat(before);
            all.push_str(&text);
            all.push_str(";rest of the line");
            let (at, end) = (before as u32, (before + text.len()) as u32);
            let want = match text.len() {
                128.. => siphash(secret, text.as_bytes(), 0, text.len() as u32).0,
                _ => nh(&keys, text.as_bytes()),
            };
            prop_assert_eq!(universal(&keys, all.as_bytes(), at, end), (want, 0));
        }

        #[test]
        fn nothing_is_lost_by_spreading(a: u64, b: u64) {
            prop_assert_eq!(a == b, spread(a) == spread(b));
        }
    }

    #[test]
    fn blanks_are_marked() {
        let keys = Keys::new([1, 2]);
        for (text, clean) in [
            ("abc", true),
            ("", true),
            ("abcdefgh", true),
            ("ab c", false),
            ("abcdefg\t", false),
            ("abcdefghi ", false),
        ] {
            let (_, marks) = universal(&keys, text.as_bytes(), 0, text.len() as u32);
            assert_eq!(marks == 0, clean, "{text:?}");
        }
    }

    #[test]
    fn keys_differ_from_lane_to_lane_and_from_node_to_node() {
        let (a, b) = (Keys::new([1, 2]), Keys::new([1, 3]));
        let mut all: Vec<u64> = a.lanes.into_iter().chain(b.lanes).collect();
        all.sort_unstable();
        all.dedup();
        assert_eq!(all.len(), 2 * LANES as usize);
    }
}
