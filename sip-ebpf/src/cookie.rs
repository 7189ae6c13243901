//! What the proxy writes into messages to know them again: the branch of its Via and the cookie of
//! its Record-Route. Both are signed with the key of [`crate::tables::Config`], so that no table is
//! needed and nobody else can make one.

use crate::address::Address;
use crate::hash::{Keys, spread, universal};
use crate::header::Span;
use crate::siphash::{siphash, siphash_word};
use crate::tables::Endpoint;
use crate::text::{Text, hex8, literal, unhex8};

/// How a branch of the stateless half starts; 16 hexadecimal digits follow (RFC 3261 8.1.1.7).
pub const STATELESS: &[u8] = b"z9hG4bKslk";

/// How a branch of the daemon's own transactions starts.
pub const DAEMON: &[u8] = b"z9hG4bKsld";

/// Hexadecimal digits of a branch of the stateless half.
pub const BRANCH_DIGITS: u32 = 16;

/// Hexadecimal digits of a cookie with an IPv4 address.
pub const COOKIE_DIGITS: u32 = cookie_digits::<Endpoint>();

/// Hexadecimal digits of a cookie with an address of this family.
pub const fn cookie_digits<A: Address>() -> u32 {
    A::DIGITS + 24
}

/// What a hash is for. Each has a key of its own, or one could be asked for another's answers.
#[derive(Clone, Copy)]
#[repr(u64)]
enum Purpose {
    Branch = literal(b"branch"),
    Cookie = literal(b"cookie"),
    Tag = literal(b"tag"),
    Challenge = literal(b"ask"),
    User = literal(b"user"),
}

/// The key for what belongs to a call: its hash is secret and as good as random, so it can be half of
/// a key.
#[inline(always)]
fn key_of(keys: &Keys, call: u64, purpose: Purpose) -> [u64; 2] {
    [call, keys.secret[1] ^ purpose as u64]
}

/// The key that cookies of a call are signed with, also those that have no room here ([`Cookie`]
/// carries IPv4).
#[inline(always)]
pub fn cookie_key(keys: &Keys, call: u64) -> [u64; 2] {
    key_of(keys, call, Purpose::Cookie)
}

/// The keyed hash of a Call-ID; marks are zero if it holds no white space.
#[inline(always)]
pub fn call<T: Text>(keys: &Keys, t: T, call_id: Span) -> (u64, u64) {
    let (hash, marks) = universal(keys, t, call_id.at, call_id.end);
    (spread(hash), marks)
}

/// The digits of the branch for a request that came with branch `theirs`: the same for an INVITE,
/// its CANCEL and the ACK of its failure (16.11), and for each retransmission.
#[inline(always)]
pub fn branch<T: Text>(keys: &Keys, call: u64, t: T, theirs: Span) -> u64 {
    let (hash, _) = universal(keys, t, theirs.at, theirs.end);
    siphash_word(key_of(keys, call, Purpose::Branch), hash)
}

/// The digits of the tag that we put into To when we answer a request ourselves, and marks as of
/// [`call`]. It depends on the Call-ID alone, so that a repeated request gets the same (8.2.7), and
/// tells nothing of the call's hash, which stays secret: signatures rest on it.
#[inline(always)]
pub fn to_tag<T: Text>(keys: &Keys, t: T, call_id: Span) -> (u64, u64) {
    tag_for(keys, t, call_id, Purpose::Tag)
}

/// As [`to_tag`], for an answer that asks for credentials and is kept in no mind: by it such an answer's ACK is known, and
/// told from those that a transaction waits for.
#[inline(always)]
pub fn challenge_tag<T: Text>(keys: &Keys, t: T, call_id: Span) -> (u64, u64) {
    tag_for(keys, t, call_id, Purpose::Challenge)
}

#[inline(always)]
fn tag_for<T: Text>(keys: &Keys, t: T, call_id: Span, purpose: Purpose) -> (u64, u64) {
    let [first, second] = keys.secret;
    let (hash, marks) = universal(keys, t, call_id.at, call_id.end);
    let tag = siphash_word([first, second ^ purpose as u64], hash);
    (hex8(tag as u32), marks)
}

/// The name of a user in a table, by the user part of a URI as it stands.
#[inline(always)]
pub fn user<T: Text>(keys: &Keys, t: T, name: Span) -> u64 {
    let [first, second] = keys.secret;
    siphash([first, second ^ Purpose::User as u64], t, name.at, name.end).0
}

/// What a Record-Route of ours carries: enough to route a request of its dialog without memory. It is
/// signed for its call: who has seen the Route has seen the Call-ID and the tags as well, so tags would
/// add nothing but the price of reading them.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Cookie<A = Endpoint> {
    /// Where the other side of the PBX really is: the source of its packets (as RFC 5626 5.2).
    pub flow: A,
    /// Slot of the PBX.
    pub slot: u32,
    /// Whether the daemon keeps a record of the call: then it wants to see the BYE that ends it.
    pub recorded: bool,
}

impl<A: Address> Cookie<A> {
    /// What stands behind the address: its port, the slot and the flags.
    #[inline(always)]
    fn rest(self) -> u32 {
        (self.flow.port_number() as u32) << 16 | (self.slot & 0xff) << 8 | self.recorded as u32
    }

    /// The words of its digits.
    #[inline(always)]
    pub fn write(self, keys: &Keys, call: u64) -> A::Cookie {
        self.write_known(keys, call, self.flow.digits())
    }

    /// As [`Cookie::write`], where [`Address::digits`] of the flow were made before.
    #[inline(always)]
    pub fn write_known(self, keys: &Keys, call: u64, digits: A::Digits) -> A::Cookie {
        let rest = self.rest();
        let signature = self.flow.sign(cookie_key(keys, call), rest);
        let signature = [hex8((signature >> 32) as u32), hex8(signature as u32)];
        A::cookie(digits, [hex8(rest), signature[0], signature[1]])
    }

    /// Reads the digits at `at`; gives the signature too, for [`Cookie::signed`].
    #[inline(always)]
    pub fn read<T: Text>(t: T, at: u32) -> Option<(Self, u64)> {
        let flow = A::read_digits(t, at)?;
        let at = at + A::DIGITS;
        let rest = unhex8(t.word(at))?;
        let high = unhex8(t.word(at + 8))?;
        let low = unhex8(t.word(at + 16))?;
        if rest & 0xfe != 0 {
            return None;
        }
        let cookie = Self {
            flow: flow.with_port((rest >> 16) as u16),
            slot: rest >> 8 & 0xff,
            recorded: rest & 1 != 0,
        };
        Some((cookie, (high as u64) << 32 | low as u64))
    }

    /// Whether we signed it, for this call.
    #[inline(always)]
    pub fn signed(self, signature: u64, keys: &Keys, call: u64) -> bool {
        self.flow.sign(cookie_key(keys, call), self.rest()) == signature
    }
}

/// Whose branch it is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Owner {
    /// The stateless half's, with its digits.
    Stateless(u64),
    /// A transaction of the daemon.
    Daemon,
    /// Not ours.
    Other,
}

/// Whose branch stands in `span`.
#[inline(always)]
pub fn owner<T: Text>(t: T, span: Span) -> Owner {
    let (head, tail) = (t.word(span.at), t.word(span.at + 8) as u16);
    if head != literal(b"z9hG4bKs") {
        return Owner::Other;
    }
    if tail == u16::from_le_bytes(*b"ld") {
        return Owner::Daemon;
    }
    if tail != u16::from_le_bytes(*b"lk") || span.at + 10 + BRANCH_DIGITS != span.end {
        return Owner::Other;
    }
    match (unhex8(t.word(span.at + 10)), unhex8(t.word(span.at + 18))) {
        (Some(high), Some(low)) => Owner::Stateless((high as u64) << 32 | low as u64),
        _ => Owner::Other,
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use std::vec::Vec;

    fn keys() -> Keys {
        Keys::new([3, 4])
    }

    fn digits(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn a_cookie_is_ours_for_its_call_only() {
        let flow = Endpoint::new([10, 10, 1, 2], 5061);
        let cookie = Cookie { flow, slot: 3, recorded: false };
        let text = digits(&cookie.write(&keys(), 99));
        let (read, signature) = Cookie::read(&text[..], 0).expect("digits");
        assert_eq!(read, cookie);
        assert!(read.signed(signature, &keys(), 99));
        assert!(!read.signed(signature, &keys(), 98));
        assert!(!read.signed(signature, &Keys::new([3, 5]), 99));
        let moved = Cookie { slot: 4, ..read };
        assert!(!moved.signed(signature, &keys(), 99));
        let other = Cookie { recorded: true, ..read };
        assert!(!other.signed(signature, &keys(), 99));
        let recorded = digits(&other.write(&keys(), 99));
        assert_eq!(Cookie::read(&recorded[..], 0).map(|(read, _)| read), Some(other));
        let upper = text.to_ascii_uppercase();
        assert_eq!(Cookie::read(&upper[..], 0), Some((cookie, signature)));
        assert_eq!(Cookie::<Endpoint>::read(&text[1..], 0), None);
    }

    #[test]
    fn what_is_made_for_one_purpose_serves_no_other() {
        let text: &[u8] = b"1-3217@10.10.1.2";
        let span = Span { at: 0, end: 16 };
        let (call, marks) = call(&keys(), text, span);
        assert_eq!(marks, 0);
        let (tag, _) = to_tag(&keys(), text, span);
        let made = [call, branch(&keys(), call, text, span), branch(&keys(), 0, text, span)];
        assert!(made.iter().all(|hash| hex8(*hash as u32) != tag));
        assert_ne!(made[0], made[1]);
        assert_ne!(made[1], made[2]);
    }

    #[test]
    fn branches_tell_their_owner() {
        let mut text = STATELESS.to_vec();
        text.extend(digits(&crate::text::hex(0x0123_4567_89ab_cdef)));
        let all = Span { at: 0, end: text.len() as u32 };
        assert_eq!(owner(&text[..], all), Owner::Stateless(0x0123_4567_89ab_cdef));
        text.push(b'0');
        let more = Span { at: 0, end: text.len() as u32 };
        assert_eq!(owner(&text[..], more), Owner::Other);
        assert_eq!(owner(&b"z9hG4bKsld12"[..], Span { at: 0, end: 12 }), Owner::Daemon);
        assert_eq!(owner(&b"z9hG4bKnashds8"[..], Span { at: 0, end: 14 }), Owner::Other);
    }
}
