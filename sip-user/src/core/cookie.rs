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
//! | 38..40 | 1 if the PBX sent the INVITE, else 0 |
//! | 40..56 | signature: SipHash with the key over the above, the Call-ID's keyed hash and the first tag |

use std::net::{SocketAddr, SocketAddrV6};

use sip_ebpf::cookie::{COOKIE_DIGITS, Cookie as CookieV4};
use sip_ebpf::header::Span;
use sip_ebpf::siphash::siphash;
use sip_ebpf::tables::Endpoint;
use sip_ebpf::text::{Text, unhex8};

use super::family::Family;

/// Hexadecimal digits of a cookie with an IPv6 address.
const DIGITS_V6: usize = 56;

/// Tells these signatures from the other hashes that begin with a call's: those of IPv4's cookies have 0 or 1
/// in the lowest byte, those of branches have all bits.
const SIGNATURE_V6: u64 = u64::MAX - 1;

/// What a Record-Route of ours carries: enough to route a request of its dialog without memory.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Cookie {
    /// Where the other side of the PBX really is: the source of its packets (as RFC 5626 5.2).
    pub flow: SocketAddr,
    /// Slot of the PBX.
    pub slot: u32,
    /// Whether the PBX sent the INVITE, and so made the dialog's first tag.
    pub from_pbx: bool,
}

/// What a signature binds a cookie to.
#[derive(Clone, Copy, Debug)]
pub struct Dialog<'a> {
    /// The key of every hash and signature.
    pub key: [u64; 2],
    /// Keyed hash of the Call-ID ([`sip_ebpf::cookie::call`]).
    pub call: u64,
    /// The message.
    pub bytes: &'a [u8],
    /// Where the dialog's first tag stands in it.
    pub tag: Span,
}

/// How many digits a cookie has that stands beside an address of this family.
pub const fn digits(family: Family) -> usize {
    match family {
        Family::V4 => COOKIE_DIGITS as usize,
        Family::V6 => DIGITS_V6,
    }
}

impl Cookie {
    /// Its digits with the signature.
    pub fn write(self, dialog: Dialog<'_>) -> String {
        match self.in_family() {
            Ok(v4) => {
                let words = v4.write(dialog.key, dialog.call, dialog.bytes, dialog.tag);
                words.iter().flat_map(|word| word.to_le_bytes()).map(char::from).collect()
            }
            Err(flow) => {
                let bits = flow.ip().to_bits();
                let (slot, from_pbx) = (self.slot & 0xff, u8::from(self.from_pbx));
                let signature = self.sign(flow, dialog);
                format!("{bits:032x}{:04x}{slot:02x}{from_pbx:02x}{signature:016x}", flow.port())
            }
        }
    }

    /// Reads digits, of which family their number tells; gives the signature too, for
    /// [`Cookie::signed`].
    pub fn read(digits: &[u8]) -> Option<(Self, u64)> {
        if digits.len() == self::digits(Family::V4) {
            let (v4, signature) = CookieV4::read(digits, 0)?;
            let flow = SocketAddr::from((v4.flow.octets(), v4.flow.port_number()));
            return Some((Self { flow, slot: v4.slot, from_pbx: v4.from_pbx }, signature));
        }
        if digits.len() != DIGITS_V6 {
            return None;
        }
        let mut words = [0; 7];
        for (word, at) in words.iter_mut().zip((0..).step_by(8)) {
            *word = unhex8(digits.word(at))?;
        }
        let [a, b, c, d, rest, high, low] = words;
        if rest & 0xff > 1 {
            return None;
        }
        let ip = [a, b, c, d].iter().fold(0, |bits, word| bits << 32 | u128::from(*word));
        let cookie = Self {
            flow: SocketAddrV6::new(ip.into(), (rest >> 16) as u16, 0, 0).into(),
            slot: rest >> 8 & 0xff,
            from_pbx: rest & 1 != 0,
        };
        Some((cookie, u64::from(high) << 32 | u64::from(low)))
    }

    /// Whether we signed it for this dialog.
    pub fn signed(self, signature: u64, dialog: Dialog<'_>) -> bool {
        match self.in_family() {
            Ok(v4) => v4.signed(signature, dialog.key, dialog.call, dialog.bytes, dialog.tag),
            Err(flow) => self.sign(flow, dialog) == signature,
        }
    }

    /// As the kernel has it, or the IPv6 address for which it has no room.
    fn in_family(self) -> Result<CookieV4, SocketAddrV6> {
        match self.flow {
            SocketAddr::V4(v4) => Ok(CookieV4 {
                flow: Endpoint::new(v4.ip().octets(), v4.port()),
                slot: self.slot,
                from_pbx: self.from_pbx,
            }),
            SocketAddr::V6(v6) => Err(v6),
        }
    }

    fn sign(self, flow: SocketAddrV6, dialog: Dialog<'_>) -> u64 {
        let Dialog { key, call, bytes, tag } = dialog;
        let tag = bytes.get(tag.at as usize..tag.end as usize).unwrap_or_default();
        let mut text = Vec::with_capacity(20 + tag.len());
        text.extend_from_slice(&flow.ip().octets());
        text.extend_from_slice(&flow.port().to_be_bytes());
        text.extend_from_slice(&[(self.slot & 0xff) as u8, u8::from(self.from_pbx)]);
        text.extend_from_slice(tag);
        siphash(key, call ^ SIGNATURE_V6, &text[..], 0, Text::len(&text[..])).0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn dialog(call: u64, tag: &[u8]) -> Dialog<'_> {
        Dialog { key: [3, 4], call, bytes: tag, tag: Span { at: 0, end: tag.len() as u32 } }
    }

    fn cookie(flow: &str) -> Cookie {
        Cookie { flow: flow.parse().unwrap(), slot: 0x2a, from_pbx: true }
    }

    #[test]
    fn a_cookie_is_ours_for_its_call_and_tag_only() {
        for flow in ["[2001:db8::1:2]:5062", "10.10.1.2:5062"] {
            let cookie = cookie(flow);
            let text = cookie.write(dialog(99, b"tag"));
            assert_eq!(text.len(), digits(Family::of(cookie.flow)));
            let (read, signature) = Cookie::read(text.as_bytes()).unwrap();
            assert_eq!(read, cookie);
            assert!(read.signed(signature, dialog(99, b"tag")));
            assert!(!read.signed(signature, dialog(98, b"tag")));
            assert!(!read.signed(signature, dialog(99, b"tah")));
            assert!(!read.signed(signature, dialog(99, b"")));
            assert!(!read.signed(signature, Dialog { key: [3, 5], ..dialog(99, b"tag") }));
            let upper = text.to_uppercase();
            assert_eq!(Cookie::read(upper.as_bytes()), Some((cookie, signature)));
            assert_eq!(Cookie::read(&text.as_bytes()[1..]), None);
        }
    }

    #[test]
    fn every_digit_counts() {
        let text = cookie("[2001:db8::1:2]:5062").write(dialog(99, b"tag"));
        assert!(text.starts_with("20010db8000000000000000000010002"), "{text}");
        assert!(text[32..].starts_with("13c62a01"), "{text}");
        for at in 0..text.len() {
            let mut forged = text.clone().into_bytes();
            forged[at] = if forged[at] == b'0' { b'1' } else { b'0' };
            let ours = Cookie::read(&forged)
                .is_some_and(|(cookie, signature)| cookie.signed(signature, dialog(99, b"tag")));
            assert!(!ours, "digit {at}");
            forged[at] = b'g';
            assert_eq!(Cookie::read(&forged), None);
        }
    }

    #[test]
    fn the_kernels_cookie_is_read_and_written_as_the_kernel_does() {
        let v4 = CookieV4 { flow: Endpoint::new([10, 10, 1, 2], 5062), slot: 42, from_pbx: true };
        let words = v4.write([3, 4], 99, &b"tag"[..], Span { at: 0, end: 3 });
        let text: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
        assert_eq!(cookie("10.10.1.2:5062").write(dialog(99, b"tag")).as_bytes(), text);
    }
}
