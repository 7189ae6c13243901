//! The cookie of our Record-Route, in either family: [`sip_ebpf::cookie::Cookie`], which the kernel writes and reads too.
//!
//! An IPv6 address does not fit where an IPv4 address does, so a dialog over IPv6 has a longer one, of hexadecimal digits:
//!
//! | digits | |
//! | --- | --- |
//! | 0..32 | address of the flow |
//! | 32..36 | its port |
//! | 36..38 | slot of the PBX |
//! | 38..40 | 01 if the call has a record, else 00 |
//! | 40..56 | signature: SipHash of all of these with the call's key |

use std::net::SocketAddr;

use sip_ebpf::address::{Address, Words};
use sip_ebpf::cookie::{Cookie as Shared, cookie_digits};
use sip_ebpf::hash::Keys;
use sip_ebpf::tables::{Endpoint, Endpoint6};

use super::family::Family;
use super::view::{address4, address6, endpoint4, endpoint6};

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
        Family::V4 => cookie_digits::<Endpoint>() as usize,
        Family::V6 => cookie_digits::<Endpoint6>() as usize,
    }
}

impl Cookie {
    /// Its digits, signed with the key for a call, whose hash is [`sip_ebpf::cookie::call`].
    pub fn write(self, keys: &Keys, call: u64) -> String {
        match self.flow {
            SocketAddr::V4(v4) => written(&self.with(endpoint4(v4)).write(keys, call)),
            SocketAddr::V6(v6) => written(&self.with(endpoint6(v6)).write(keys, call)),
        }
    }

    /// Reads digits, of which family their number tells; gives the signature too, for
    /// [`Cookie::signed`].
    pub fn read(digits: &[u8]) -> Option<(Self, u64)> {
        if digits.len() == self::digits(Family::V4) {
            let (read, signature) = Shared::<Endpoint>::read(digits, 0)?;
            return Some((Self::of(read, address4(read.flow)), signature));
        }
        if digits.len() != self::digits(Family::V6) {
            return None;
        }
        let (read, signature) = Shared::<Endpoint6>::read(digits, 0)?;
        Some((Self::of(read, address6(read.flow)), signature))
    }

    /// Whether we signed it for this call.
    pub fn signed(self, signature: u64, keys: &Keys, call: u64) -> bool {
        match self.flow {
            SocketAddr::V4(v4) => self.with(endpoint4(v4)).signed(signature, keys, call),
            SocketAddr::V6(v6) => self.with(endpoint6(v6)).signed(signature, keys, call),
        }
    }

    fn of<A>(read: Shared<A>, flow: SocketAddr) -> Self {
        Self { flow, slot: read.slot, recorded: read.recorded }
    }

    fn with<A: Address>(self, flow: A) -> Shared<A> {
        Shared { flow, slot: self.slot, recorded: self.recorded }
    }
}

/// Words as text.
fn written<W: Words>(words: &W) -> String {
    let bytes = (0..W::LEN).flat_map(|i| words.word(i).to_le_bytes());
    bytes.map(char::from).collect()
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
        let v4 = Shared { flow, slot: 42, recorded: false };
        let words = v4.write(&keys(), 99);
        let text: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(cookie("10.10.1.2:5062").write(&keys(), 99).as_bytes(), text);
    }
}
