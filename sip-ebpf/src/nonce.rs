//! Nonces of digest challenges (RFC 7616 3.3) that need no memory: they say when they were made, and are signed. Made by
//! the daemon and by the kernel's program alike.
//!
//! The text is 40 hexadecimal digits in small letters:
//!
//! | digits | |
//! | --- | --- |
//! | 0..12 | seconds of Unix time |
//! | 12..18 | the instance that made it |
//! | 18..24 | a count of the instance's |
//! | 24..40 | SipHash-2-4 of these, under a key for the realm |
//!
//! The realm is in the key and not in what is signed: the daemon makes one key for each, by a hash that a BPF program could
//! not compute, and the program never reads a realm. Two and four rounds, and not the one and three of our other hashes:
//! strangers may collect as many nonces as they like, and this is what SipHash is proposed for as a signature. A forged
//! one has a chance of 2^-64 each time it is tried, and would not tell a password.

use crate::siphash::siphash24_pair;
use crate::text::{hex, hex8};

/// Length of a nonce in characters.
pub const TEXT: usize = 40;

/// What identifies a nonce: 48 bits of seconds, 24 of an instance, 24 of a count.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Stamp {
    /// Seconds and the upper half of the instance.
    pub high: u64,
    /// The lower half of the instance, and the count: 32 bits.
    pub low: u32,
}

impl Stamp {
    /// Of a second of Unix time, an instance (its low 24 bits count) and a count (24 bits).
    #[inline(always)]
    pub const fn new(issued: u64, instance: u32, count: u32) -> Self {
        let instance = instance & 0xff_ffff;
        let high = (issued & 0xffff_ffff_ffff) << 16 | (instance >> 8) as u64;
        Self { high, low: instance << 24 | count & 0xff_ffff }
    }
}

/// The text of a nonce in words, the first character in the lowest bits. `key` is that of its realm.
#[inline(always)]
pub fn write(key: [u64; 2], stamp: Stamp) -> [u64; 5] {
    let [a, b] = hex(stamp.high);
    let [d, e] = hex(siphash24_pair(key, [stamp.high, stamp.low as u64]));
    [a, b, hex8(stamp.low), d, e]
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use core::hash::Hasher;
    use std::format;
    use std::string::String;
    use std::vec::Vec;

    #[test]
    fn the_text_is_as_the_table_says() {
        let stamp = Stamp::new(0x0123_4567_89ab, 0xeedc_baff, 0xee00_0042);
        let words = write([1, 2], stamp);
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        let text = String::from_utf8(bytes).unwrap();
        assert_eq!(text.len(), TEXT);
        assert_eq!(&text[..24], "0123456789abdcbaff000042");
        let mut hasher = siphasher::sip::SipHasher24::new_with_keys(1, 2);
        hasher.write(&stamp.high.to_le_bytes());
        hasher.write(&u64::from(stamp.low).to_le_bytes());
        assert_eq!(text[24..], format!("{:016x}", hasher.finish()));
    }
}
