//! SipHash-1-3 (Aumasson and Bernstein, 2012) of a piece of a message.
//!
//! All hashes of the proxy are keyed: who sends a message must not be able to choose where it falls
//! in a table, nor to make a branch or a cookie of ours. One and three rounds are what the hash tables
//! of Rust, Python and Ruby use against the same adversary, at half the price of two and four.

use crate::repeat::{repeat, step};
use crate::text::{Text, below, head};

/// The hash of the bytes from `at` to `end`, and marks that are zero if none of those bytes is a
/// control character or white space.
#[inline(always)]
pub fn siphash<T: Text>(key: [u64; 2], t: T, at: u32, end: u32) -> (u64, u64) {
    let len = end.wrapping_sub(at);
    let mut state = Running { v: begin(key), t, at: t.fresh(at), end, marks: 0 };
    repeat(crate::scan::MAX_TEXT / 8 + 2, &mut state, |s| {
        if s.at + 8 > s.end {
            return false;
        }
        let word = s.t.word(s.at);
        s.marks |= below(word, 0x21);
        absorb(&mut s.v, word);
        step(&mut s.at, 8);
        true
    });
    let left = end.wrapping_sub(t.fresh(state.at)) & 7;
    let word = if left == 0 { 0 } else { head(t.word(state.at), left) };
    let filled = if left == 0 { u64::MAX } else { word | !head(u64::MAX, left) };
    let marks = state.marks | below(filled, 0x21);
    let mut v = state.v;
    absorb(&mut v, word | (len as u64) << 56);
    (finish(&mut v), marks)
}

/// The hash of one word. Without the block that says how long the text is: all that is hashed with such a key
/// is one word long.
#[inline(always)]
pub fn siphash_word(key: [u64; 2], word: u64) -> u64 {
    let mut v = begin(key);
    absorb(&mut v, word);
    finish(&mut v)
}

/// As [`siphash`], of two words and what stands behind them: up to seven bytes, their number in the highest one.
#[inline(always)]
pub fn siphash_words(key: [u64; 2], words: [u64; 2], last: u64) -> u64 {
    let mut v = begin(key);
    absorb(&mut v, words[0]);
    absorb(&mut v, words[1]);
    absorb(&mut v, last);
    finish(&mut v)
}

/// SipHash-2-4 of two words, as of a text of sixteen bytes: for signatures that strangers may collect.
#[inline(always)]
pub fn siphash24_pair(key: [u64; 2], words: [u64; 2]) -> u64 {
    let mut v = begin(key);
    for word in [words[0], words[1], 16 << 56] {
        v[3] ^= word;
        round(&mut v);
        round(&mut v);
        v[0] ^= word;
    }
    v[2] ^= 0xff;
    for _ in 0..4 {
        round(&mut v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

#[inline(always)]
fn begin(key: [u64; 2]) -> [u64; 4] {
    [
        key[0] ^ 0x736f_6d65_7073_6575,
        key[1] ^ 0x646f_7261_6e64_6f6d,
        key[0] ^ 0x6c79_6765_6e65_7261,
        key[1] ^ 0x7465_6462_7974_6573,
    ]
}

#[inline(always)]
fn finish(v: &mut [u64; 4]) -> u64 {
    v[2] ^= 0xff;
    for _ in 0..3 {
        round(v);
    }
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

struct Running<T> {
    v: [u64; 4],
    t: T,
    at: u32,
    end: u32,
    marks: u64,
}

#[inline(always)]
fn absorb(v: &mut [u64; 4], word: u64) {
    v[3] ^= word;
    round(v);
    v[0] ^= word;
}

#[inline(always)]
fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].wrapping_add(v[3]);
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].wrapping_add(v[1]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use core::hash::Hasher;
    use proptest::prelude::*;
    use std::vec::Vec;

    proptest! {
        #[test]
        fn agrees_with_another(key: [u64; 2], bytes: Vec<u8>) {
            let mut hasher = siphasher::sip::SipHasher13::new_with_keys(key[0], key[1]);
            hasher.write(&bytes);
            let ours = siphash(key, &bytes[..], 0, bytes.len() as u32).0;
            prop_assert_eq!(ours, hasher.finish());
        }

        /// The block that ends a text of no bytes is zero: with it as the word both are the same.
        #[test]
        fn a_word_is_hashed_as_a_text_without_its_length(key: [u64; 2]) {
            prop_assert_eq!(siphash_word(key, 0), siphash(key, &b""[..], 0, 0).0);
        }
    }

    #[test]
    fn blanks_are_marked() {
        for (text, clean) in [
            ("abc", true),
            ("", true),
            ("abcdefgh", true),
            ("ab c", false),
            ("abcdefg\t", false),
            ("abcdefghi ", false),
        ] {
            let (_, marks) = siphash([1, 2], text.as_bytes(), 0, text.len() as u32);
            assert_eq!(marks == 0, clean, "{text:?}");
        }
    }
}
