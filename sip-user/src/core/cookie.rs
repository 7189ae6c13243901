//! The cookie of our Record-Route, in either family.
//!
//! That of IPv4 is [`sip_ebpf::cookie::Cookie`], which the kernel writes and reads too. An IPv6 address does
//! not fit in there, so a dialog over IPv6 has a longer one, of hexadecimal digits:
//!
//! | digits | |
//! | --- | --- |
//! | 0..32 | address of the flow |
//! | 32..36 | its port |
//! | 36..38 | slot of the PBX |
//! | 38..40 | 01 if the call has a record, else 00 |
//! | 40..56 | signature: SipHash of all of these with the call's key |

use std::net::{SocketAddr, SocketAddrV6};

use sip_ebpf::cookie::{COOKIE_DIGITS, Cookie as CookieV4, cookie_key};
use sip_ebpf::hash::Keys;
use sip_ebpf::siphash::siphash;
use sip_ebpf::tables::Endpoint;
use sip_ebpf::text::{Text, unhex8};

use super::family::Family;

/// Hexadecimal digits of a cookie with an IPv6 address.
const DIGITS_V6: usize = 56;

/// What a Record-Route of ours carries: enough to route a request of its dialog without memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cookie {
    /// Where the other side of the PBX really is: the source of its packets (as RFC 5626 5.2).
    pub flow: SocketAddr,
    /// Slot of the PBX.
    pub slot: u32,
    /// Whether the call has a record, which its BYE ends.
    pub recorded: bool,
}

/// How many digits a cookie has that stands beside an address of this family.
pub const fn digits(family: Family) -> usize {
    match family {
        Family::V4 => COOKIE_DIGITS as usize,
        Family::V6 => DIGITS_V6,
    }
}

impl Cookie {
    /// Its digits, signed with the key for a call, whose hash is [`sip_ebpf::cookie::call`].
    pub fn write(self, keys: &Keys, call: u64) -> String {
        match self.in_family() {
            Ok(v4) => {
                let words = v4.write(keys, call);
                let mut digits = String::with_capacity(COOKIE_DIGITS as usize);
                let bytes = words.iter().flat_map(|word| word.to_le_bytes());
                bytes.for_each(|byte| digits.push(byte.into()));
                digits
            }
            Err(flow) => {
                let (bits, slot) = (flow.ip().to_bits(), self.slot & 0xff);
                let recorded = u8::from(self.recorded);
                let signature = self.sign(flow, keys, call);
                format!("{bits:032x}{:04x}{slot:02x}{recorded:02x}{signature:016x}", flow.port())
            }
        }
    }

    /// Reads digits, of which family their number tells; gives the signature too, for
    /// [`Cookie::signed`].
    pub fn read(digits: &[u8]) -> Option<(Self, u64)> {
        if digits.len() == self::digits(Family::V4) {
            let (v4, signature) = CookieV4::<Endpoint>::read(digits, 0)?;
            let flow = SocketAddr::from((v4.flow.octets(), v4.flow.port_number()));
            return Some((Self { flow, slot: v4.slot, recorded: v4.recorded }, signature));
        }
        if digits.len() != DIGITS_V6 {
            return None;
        }
        let mut words = [0; 7];
        for (word, at) in words.iter_mut().zip((0..).step_by(8)) {
            *word = unhex8(digits.word(at))?;
        }
        let [a, b, c, d, rest, high, low] = words;
        if rest & 0xfe != 0 {
            return None;
        }
        let ip = [a, b, c, d].iter().fold(0, |bits, word| bits << 32 | u128::from(*word));
        let cookie = Self {
            flow: SocketAddrV6::new(ip.into(), (rest >> 16) as u16, 0, 0).into(),
            slot: rest >> 8 & 0xff,
            recorded: rest & 1 != 0,
        };
        Some((cookie, u64::from(high) << 32 | u64::from(low)))
    }

    /// Whether we signed it for this call.
    pub fn signed(self, signature: u64, keys: &Keys, call: u64) -> bool {
        match self.in_family() {
            Ok(v4) => v4.signed(signature, keys, call),
            Err(flow) => self.sign(flow, keys, call) == signature,
        }
    }

    /// As the kernel has it, or the IPv6 address for which it has no room.
    fn in_family(self) -> Result<CookieV4, SocketAddrV6> {
        match self.flow {
            SocketAddr::V4(v4) => Ok(CookieV4 {
                flow: Endpoint::new(v4.ip().octets(), v4.port()),
                slot: self.slot,
                recorded: self.recorded,
            }),
            SocketAddr::V6(v6) => Err(v6),
        }
    }

    fn sign(self, flow: SocketAddrV6, keys: &Keys, call: u64) -> u64 {
        let mut text = Vec::with_capacity(20);
        text.extend_from_slice(&flow.ip().octets());
        text.extend_from_slice(&flow.port().to_be_bytes());
        text.push((self.slot & 0xff) as u8);
        // As it was before there were records, so that calls which go on over an upgrade do go on.
        text.extend(self.recorded.then_some(1));
        siphash(cookie_key(keys, call), &text[..], 0, Text::len(&text[..])).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys() -> Keys {
        Keys::new([3, 4])
    }

    fn cookie(flow: &str) -> Cookie {
        Cookie { flow: flow.parse().unwrap(), slot: 0x2a, recorded: false }
    }

    #[test]
    fn a_cookie_is_ours_for_its_call_only() {
        for flow in ["[2001:db8::1:2]:5062", "10.10.1.2:5062"] {
            let cookie = cookie(flow);
            let text = cookie.write(&keys(), 99);
            assert_eq!(text.len(), digits(Family::of(cookie.flow)));
            let (read, signature) = Cookie::read(text.as_bytes()).unwrap();
            assert_eq!(read, cookie);
            assert!(read.signed(signature, &keys(), 99));
            assert!(!read.signed(signature, &keys(), 98));
            assert!(!read.signed(signature, &Keys::new([3, 5]), 99));
            let other = Cookie { recorded: true, ..read };
            assert!(!other.signed(signature, &keys(), 99));
            let recorded = Cookie::read(other.write(&keys(), 99).as_bytes());
            assert_eq!(recorded.map(|(read, _)| read), Some(other));
            let upper = text.to_uppercase();
            assert_eq!(Cookie::read(upper.as_bytes()), Some((cookie, signature)));
            assert_eq!(Cookie::read(&text.as_bytes()[1..]), None);
        }
    }

    #[test]
    fn every_digit_counts() {
        let text = cookie("[2001:db8::1:2]:5062").write(&keys(), 99);
        assert!(text.starts_with("20010db8000000000000000000010002"), "{text}");
        assert!(text[32..].starts_with("13c62a00"), "{text}");
        for at in 0..text.len() {
            let mut forged = text.clone().into_bytes();
            forged[at] = if forged[at] == b'0' { b'1' } else { b'0' };
            let ours = Cookie::read(&forged)
                .is_some_and(|(cookie, signature)| cookie.signed(signature, &keys(), 99));
            assert!(!ours, "digit {at}");
            forged[at] = b'g';
            assert_eq!(Cookie::read(&forged), None);
        }
    }

    #[test]
    fn the_kernels_cookie_is_read_and_written_as_the_kernel_does() {
        let flow = Endpoint::new([10, 10, 1, 2], 5062);
        let v4 = CookieV4 { flow, slot: 42, recorded: false };
        let words = v4.write(&keys(), 99);
        let text: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(cookie("10.10.1.2:5062").write(&keys(), 99).as_bytes(), text);
    }
}
