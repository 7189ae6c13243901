//! What the proxy writes into messages to know them again: the branch of its Via and the cookie of
//! its Record-Route. Both are signed with the key of [`crate::tables::Config`], so that no table is
//! needed and nobody else can make one.

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

/// Hexadecimal digits of a cookie.
pub const COOKIE_DIGITS: u32 = 32;

/// Tells the hashes of a branch from those of a cookie: no [`Cookie::word`] has these bits. Words are
/// xored onto the call's hash, which nobody else knows: so nobody can choose the sum.
const BRANCH: u64 = u64::MAX;

/// Tells the hash of a call from the others.
const CALL: u64 = 0x006c_6163_2d70_6973; // "sip-cal"

/// The keyed hash of a Call-ID; marks are zero if it holds no white space.
#[inline(always)]
pub fn call<T: Text>(key: [u64; 2], t: T, call_id: Span) -> (u64, u64) {
    siphash(key, CALL, t, call_id.at, call_id.end)
}

/// The digits of the branch for a request that came with branch `theirs`: the same for an INVITE,
/// its CANCEL and the ACK of its failure (16.11), and for each retransmission.
#[inline(always)]
pub fn branch<T: Text>(key: [u64; 2], call: u64, t: T, theirs: Span) -> u64 {
    siphash(key, call ^ BRANCH, t, theirs.at, theirs.end).0
}

/// The tag that we put into To when we answer a request ourselves. It depends on the Call-ID alone,
/// so that a repeated request gets the same (8.2.7), and tells nothing of the call's hash, which
/// stays secret: signatures rest on it.
#[inline(always)]
pub fn to_tag(call: u64) -> u64 {
    hex8(siphash_word([call, call ^ CALL], CALL) as u32)
}

/// What a Record-Route of ours carries: enough to route a request of its dialog without memory.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Cookie {
    /// Where the other side of the PBX really is: the source of its packets (as RFC 5626 5.2).
    pub flow: Endpoint,
    /// Slot of the PBX.
    pub slot: u32,
    /// Whether the PBX sent the INVITE, and so made the dialog's first tag.
    pub from_pbx: bool,
}

impl Cookie {
    #[inline(always)]
    fn word(self) -> u64 {
        let addr = u32::from_be(self.flow.addr) as u64;
        let port = u16::from_be(self.flow.port) as u64;
        addr << 32 | port << 16 | (self.slot as u64 & 0xff) << 8 | self.from_pbx as u64
    }

    /// The four words of its digits; `tag` is the dialog's first tag, made by who sent the INVITE.
    #[inline(always)]
    pub fn write<T: Text>(self, key: [u64; 2], call: u64, t: T, tag: Span) -> [u64; 4] {
        let word = self.word();
        let (signature, _) = siphash(key, call ^ word, t, tag.at, tag.end);
        [
            hex8((word >> 32) as u32),
            hex8(word as u32),
            hex8((signature >> 32) as u32),
            hex8(signature as u32),
        ]
    }

    /// Reads the digits at `at`; gives the signature too, for [`Cookie::signed`].
    #[inline(always)]
    pub fn read<T: Text>(t: T, at: u32) -> Option<(Self, u64)> {
        let addr = unhex8(t.word(at))?;
        let rest = unhex8(t.word(at + 8))?;
        let high = unhex8(t.word(at + 16))?;
        let low = unhex8(t.word(at + 24))?;
        if rest & 0xff > 1 {
            return None;
        }
        let cookie = Self {
            flow: Endpoint { addr: addr.to_be(), port: ((rest >> 16) as u16).to_be(), pad: 0 },
            slot: rest >> 8 & 0xff,
            from_pbx: rest & 1 != 0,
        };
        Some((cookie, (high as u64) << 32 | low as u64))
    }

    /// Whether we signed it, for this call and this first tag.
    #[inline(always)]
    pub fn signed<T: Text>(
        self,
        signature: u64,
        key: [u64; 2],
        call: u64,
        t: T,
        tag: Span,
    ) -> bool {
        siphash(key, call ^ self.word(), t, tag.at, tag.end).0 == signature
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

    const KEY: [u64; 2] = [3, 4];

    fn digits(words: &[u64]) -> Vec<u8> {
        words.iter().flat_map(|word| word.to_le_bytes()).collect()
    }

    #[test]
    fn a_cookie_is_ours_for_its_call_and_tag_only() {
        let cookie = Cookie { flow: Endpoint::new([10, 10, 1, 2], 5061), slot: 3, from_pbx: true };
        let tag: &[u8] = b"tag-of-caller";
        let whole = Span { at: 0, end: 13 };
        let text = digits(&cookie.write(KEY, 99, tag, whole));
        let (read, signature) = Cookie::read(&text[..], 0).expect("digits");
        assert_eq!(read, cookie);
        assert!(read.signed(signature, KEY, 99, tag, whole));
        assert!(!read.signed(signature, KEY, 98, tag, whole));
        assert!(!read.signed(signature, [3, 5], 99, tag, whole));
        assert!(!read.signed(signature, KEY, 99, tag, Span { at: 0, end: 12 }));
        let moved = Cookie { slot: 4, ..read };
        assert!(!moved.signed(signature, KEY, 99, tag, whole));
        let upper = text.to_ascii_uppercase();
        assert_eq!(Cookie::read(&upper[..], 0), Some((cookie, signature)));
        assert_eq!(Cookie::read(&text[1..], 0), None);
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
