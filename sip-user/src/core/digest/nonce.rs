//! Nonces that need no memory, so that any node with the same key takes them. [`sip_ebpf::nonce`] says what they look like
//! and how they are signed; the kernel's program makes the same.
//!
//! Each realm has a signing key of its own: the first 128 bits of HMAC-SHA-256, under our key, of a label and the realm.
//! So our key may have any length, a nonce is good in its realm only, and the program gets no key but those of realms.

use std::sync::atomic::{AtomicU32, Ordering};

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;
use sip_ebpf::nonce;
pub(super) use sip_ebpf::nonce::TEXT;
use subtle::ConstantTimeEq;

const SIGNED: usize = 11;

/// What the key signs here, apart from what it may sign elsewhere.
const LABEL: &[u8] = b"sipline digest nonce 2";

/// How far in the future a nonce may lie, in seconds: clocks of nodes differ.
pub(super) const SKEW: u64 = 60;

/// When and where a nonce was made: in the order of time, and no two are equal.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub(super) struct Stamp([u8; SIGNED]);

impl Stamp {
    /// Of a second, an instance (24 bits), and a count (24 bits).
    pub(super) fn new(issued: u64, instance: u32, count: u32) -> Self {
        let low = |number: u32| u128::from(number & 0xff_ffff);
        Self::of(u128::from(issued) << 48 | low(instance) << 24 | low(count))
    }

    /// Its low 88 bits.
    fn of(bits: u128) -> Self {
        let mut bytes = [0; SIGNED];
        for (to, from) in bytes.iter_mut().rev().zip(bits.to_be_bytes().into_iter().rev()) {
            *to = from;
        }
        Self(bytes)
    }

    /// As the program has it.
    fn shared(self) -> nonce::Stamp {
        let bits = self.0.iter().fold(0u128, |bits, byte| bits << 8 | u128::from(*byte));
        nonce::Stamp { high: (bits >> 32) as u64, low: bits as u32 }
    }

    /// When it was made, in seconds of Unix time.
    pub(super) fn issued(self) -> u64 {
        self.0.iter().take(5).fold(0, |time, byte| time << 8 | u64::from(*byte))
    }

    /// Whether a nonce of it is refused for its age, or for its youth.
    pub(super) fn is_stale(self, now: u64, validity: u64) -> bool {
        let issued = self.issued();
        now.saturating_sub(issued) > validity || self.is_ahead(now)
    }

    /// Whether it was made in a future that no clock explains.
    pub(super) fn is_ahead(self, now: u64) -> bool {
        self.issued() > now.saturating_add(SKEW)
    }
}

/// Makes nonces and knows its own.
#[derive(Debug)]
pub(super) struct Nonces {
    mac: Hmac<Sha256>,
    instance: u32,
    count: AtomicU32,
}

/// A nonce that nobody with our key has made, or that is for another realm.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) struct Forged;

impl Nonces {
    /// With a key of any length.
    pub(super) fn new(key: &[u8], instance: u32) -> Self {
        // HMAC takes keys of every length (RFC 2104 3), so this cannot fail.
        let mut mac = Hmac::new_from_slice(key).expect("HMAC takes every key");
        mac.update(LABEL);
        Self { mac, instance, count: AtomicU32::new(0) }
    }

    /// The key that signs nonces of a realm.
    pub(super) fn key(&self, realm: &str) -> [u64; 2] {
        let mut mac = self.mac.clone();
        mac.update(realm.as_bytes());
        let whole: [u8; 32] = mac.finalize().into_bytes().into();
        let word = |at: usize| {
            whole.iter().skip(at).take(8).fold(0, |word, byte| word << 8 | u64::from(*byte))
        };
        [word(0), word(8)]
    }

    /// A new nonce for a realm.
    pub(super) fn issue(&self, realm: &str, now: u64) -> String {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        self.write(Stamp::new(now, self.instance, count), realm)
    }

    fn write(&self, stamp: Stamp, realm: &str) -> String {
        let words = nonce::write(self.key(realm), stamp.shared());
        words.iter().flat_map(|word| word.to_le_bytes()).map(char::from).collect()
    }

    /// When and where a nonce of ours for this realm was made.
    pub(super) fn read(&self, nonce: &str, realm: &str) -> Result<Stamp, Forged> {
        let digits = nonce.get(..24).filter(|_| nonce.len() == TEXT).ok_or(Forged)?;
        let bits = u128::from_str_radix(digits, 16).map_err(|_| Forged)?;
        if bits >> (8 * SIGNED) != 0 {
            return Err(Forged);
        }
        // Compared as text: a nonce has one only, and it is hashed as text by the client.
        let stamp = Stamp::of(bits);
        match bool::from(self.write(stamp, realm).as_bytes().ct_eq(nonce.as_bytes())) {
            true => Ok(stamp),
            false => Err(Forged),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: u64 = 1_700_000_000;

    #[test]
    fn a_nonce_is_known_where_the_key_is() {
        let ours = Nonces::new(b"a key of sixteen", 7);
        let other_node = Nonces::new(b"a key of sixteen", 8);
        let stranger = Nonces::new(b"a kez of sixteen", 7);
        let nonce = ours.issue("example.com", NOW);
        assert_eq!(nonce.len(), TEXT);
        assert_eq!(ours.read(&nonce, "example.com"), Ok(Stamp::new(NOW, 7, 0)));
        assert_eq!(other_node.read(&nonce, "example.com"), Ok(Stamp::new(NOW, 7, 0)));
        assert_eq!(stranger.read(&nonce, "example.com"), Err(Forged));
        assert_eq!(ours.read(&nonce, "example.org"), Err(Forged));
        for wrong in ["", "x", &nonce[1..], &format!("{nonce}A"), &nonce.to_uppercase()] {
            assert_eq!(ours.read(wrong, "example.com"), Err(Forged), "{wrong}");
        }
    }

    #[test]
    fn no_two_are_equal() {
        let (one, other) = (Nonces::new(b"key", 1), Nonces::new(b"key", 2));
        let made: std::collections::HashSet<_> =
            (0..100).flat_map(|_| [one.issue("r", NOW), other.issue("r", NOW)]).collect();
        assert_eq!(made.len(), 200);
    }

    #[test]
    fn stamps_are_in_the_order_of_time() {
        let list = [
            Stamp::new(0, 9, 9),
            Stamp::new(255, 9, 9),
            Stamp::new(256, 1, 9),
            Stamp::new(256, 2, 1),
            Stamp::new(256, 2, 2),
            Stamp::new((1 << 40) - 1, 0, 0),
        ];
        assert!(list.is_sorted());
        assert_eq!(list[1].issued(), 255);
        assert_eq!(list[5].issued(), (1 << 40) - 1);
        let stamp = Stamp::new(NOW, 1, 1);
        for (now, stale) in [
            (NOW, false),
            (NOW + 300, false),
            (NOW + 301, true),
            (NOW - SKEW, false),
            (NOW - SKEW - 1, true),
            (0, true),
            (u64::MAX, true),
        ] {
            assert_eq!(stamp.is_stale(now, 300), stale, "{now}");
        }
    }

    proptest! {
        #[test]
        fn every_character_counts(at in 0..TEXT, with in "[A-Za-z0-9_=+/-]") {
            let nonces = Nonces::new(b"key", 1);
            let nonce = nonces.issue("r", NOW);
            let mut forged = nonce.clone();
            forged.replace_range(at..at + 1, &with);
            prop_assume!(forged != nonce);
            prop_assert_eq!(nonces.read(&forged, "r"), Err(Forged));
        }

        #[test]
        fn nothing_panics(text in any::<String>(), now in any::<u64>(), instance in any::<u32>()) {
            let nonces = Nonces::new(b"", instance);
            prop_assert_eq!(nonces.read(&text, &text), Err(Forged));
            prop_assert!(nonces.read(&nonces.issue(&text, now), &text).is_ok());
        }
    }
}
