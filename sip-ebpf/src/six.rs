//! Addresses of IPv6: in brackets where they are the host of a Via or a URI (RFC 3261 25.1), and written as RFC 5952 says.

use crate::address::Address;
use crate::edit::{Draft, Sink};
use crate::siphash::siphash_words;
use crate::tables::{Endpoint6, Pbx6};
use crate::text::{Text, hex8, ipv6, literal, unhex8};

impl Endpoint6 {
    /// One of the eight groups, as a number.
    #[inline(always)]
    fn group(self, i: usize) -> u32 {
        let word = if i < 4 { self.addr[0] } else { self.addr[1] };
        ((word >> (16 * (i % 4))) as u16).swap_bytes() as u32
    }

    /// Whether it is one that only its link knows (fe80::/10).
    #[inline(always)]
    pub const fn is_link_local(self) -> bool {
        self.addr[0] & u64::from_ne_bytes([0xff, 0xc0, 0, 0, 0, 0, 0, 0])
            == u64::from_ne_bytes([0xfe, 0x80, 0, 0, 0, 0, 0, 0])
    }

    /// Whether it stands for an IPv4 address (::ffff:0:0/96), which is written in another way (RFC 5952 5).
    #[inline(always)]
    pub const fn is_mapped(self) -> bool {
        let [high, low] = self.addr;
        high | (low as u32 ^ u32::from_ne_bytes([0, 0, 0xff, 0xff])) as u64 == 0
    }

    /// Its network of 64 bits, as a number.
    #[inline(always)]
    pub const fn network(self) -> u64 {
        u64::from_be(self.addr[0])
    }

    /// The digits of four octets of the address.
    #[inline(always)]
    fn quarter(self, i: usize) -> u64 {
        let word = if i < 2 { self.addr[0] } else { self.addr[1] };
        hex8(u32::from_be((word >> (32 * (i % 2))) as u32))
    }
}

impl Address for Endpoint6 {
    type Cookie = [u64; 7];
    type Digits = [u64; 4];
    type RecordRoute = [u64; 17];
    type Via = [u64; 13];
    type Route = [u64; 8];
    type OwnVia = [u64; 10];
    type Uri = [u64; 7];
    type Received = [u64; 7];
    type Pbx = Pbx6;

    const DIGITS: u32 = 32;
    const BRACKETS: bool = true;

    #[inline(always)]
    fn small(i: usize) -> u64 {
        // Of the scheme alone: a bracket with that bit is none any more.
        if i == 0 { 0x20_2020 } else { 0 }
    }

    #[inline(always)]
    fn port_number(self) -> u16 {
        Endpoint6::port_number(self)
    }

    #[inline(always)]
    fn with_port(self, port: u16) -> Self {
        Self { port: port.to_be(), ..self }
    }

    #[inline(always)]
    fn is_host_of(self, other: Self) -> bool {
        self.addr == other.addr
    }

    #[inline(always)]
    fn read_host<T: Text>(t: T, at: u32) -> Option<(Self, u32)> {
        if t.byte(at) != b'[' {
            return None;
        }
        let (addr, end) = ipv6(t, at + 1)?;
        (t.byte(end) == b']').then_some((Self { addr, port: 0, pad: [0; 3] }, end + 1))
    }

    #[inline(always)]
    fn read_received<T: Text>(t: T, at: u32) -> Option<(Self, u32)> {
        let brackets = (t.byte(at) == b'[') as u32;
        let (addr, end) = ipv6(t, t.fresh(at + brackets))?;
        if brackets != 0 && t.byte(end) != b']' {
            return None;
        }
        Some((Self { addr, port: 0, pad: [0; 3] }, end + brackets))
    }

    #[inline(always)]
    fn write<S: Sink>(self, out: &mut S, at: u32) -> u32 {
        let mut zeros = 0;
        for i in 0..8 {
            // Set if the group is not zero, without a comparison.
            zeros |= ((self.group(i) + 0xffff) >> 16 ^ 1) << i;
        }
        let gap = gap(zeros);
        let mut at = at;
        for i in 0..8 {
            if gap >> i & 1 == 0 {
                at = group(self.group(i), out, at);
            } else if gap >> (8 + i) & 1 != 0 {
                // What stands before it has put one of the colons there.
                let colons: &[u8] = if i == 0 { b"::" } else { b":" };
                out.put(at, literal(colons));
                at += colons.len() as u32;
            }
            at = out.fresh(at);
        }
        // No colon behind the last group.
        at - (gap >> 7 & 1 ^ 1)
    }

    #[inline(always)]
    fn write_host<S: Sink>(self, out: &mut S, at: u32) -> u32 {
        out.put(at, b'[' as u64);
        let at = self.write(out, at + 1);
        out.put(at, b']' as u64);
        at + 1
    }

    #[inline(always)]
    fn is_written<T: Text, D: Draft>(self, t: T, at: u32, draft: &mut D) -> bool {
        // As long as the longest host.
        const WORDS: u32 = 6;
        let len = self.write_host(draft, 0);
        // What follows is the same: so words are compared, and nothing is cut off.
        for i in 0..WORDS {
            draft.put(len + 8 * i, t.word(at + len + 8 * i));
        }
        let differs = |i: u32| t.word(at + 8 * i) ^ draft.get(8 * i);
        (0..WORDS).fold(0, |all, i| all | differs(i)) == 0
    }

    #[inline(always)]
    fn digits(self) -> [u64; 4] {
        [self.quarter(0), self.quarter(1), self.quarter(2), self.quarter(3)]
    }

    #[inline(always)]
    fn read_digits<T: Text>(t: T, at: u32) -> Option<Self> {
        let [a, b, c, d] = t.four(at);
        let pair = |a, b| Some((unhex8(a)? as u64) << 32 | unhex8(b)? as u64);
        let addr = [pair(a, b)?.to_be(), pair(c, d)?.to_be()];
        Some(Self { addr, port: 0, pad: [0; 3] })
    }

    #[inline(always)]
    fn cookie(digits: [u64; 4], rest: [u64; 3]) -> [u64; 7] {
        [digits[0], digits[1], digits[2], digits[3], rest[0], rest[1], rest[2]]
    }

    #[inline(always)]
    fn sign(self, key: [u64; 2], rest: u32) -> u64 {
        let (slot, flags) = (rest >> 8 & 0xff, rest & 0xff);
        let last = self.port as u32 | slot << 16 | flags << 24;
        // Flags count only where there are some: so it was before there were any.
        let len = 19 + (flags & 1) as u64;
        siphash_words(key, self.addr, last as u64 | len << 56)
    }

    #[inline(always)]
    fn of_pbx(pbx: &Pbx6) -> (Self, u8) {
        (pbx.endpoint(), pbx.state)
    }
}

/// Writes a group and a colon; says where they ended.
#[inline(always)]
fn group<S: Sink>(value: u32, out: &mut S, at: u32) -> u32 {
    // How many digits, without comparisons.
    let n = 1 + ((value + 0xfff0) >> 16) + ((value + 0xff00) >> 16) + ((value + 0xf000) >> 16);
    let digits = hex8(value) >> (64 - 8 * n);
    out.put(at, digits | (b':' as u64) << (8 * n));
    at + n + 1
}

/// Which groups two colons stand for (RFC 5952 4.2), a bit for each, by those that are zero: the longest run of at least two,
/// of several the first. The higher half has the bit of its first group alone.
#[inline(always)]
fn gap(zeros: u32) -> u32 {
    static GAPS: [u16; 256] = all_gaps();
    // SAFETY: masked to the table's length.
    unsafe { *GAPS.as_ptr().add(crate::scan::confine::<255>(zeros) as usize) as u32 }
}

const fn all_gaps() -> [u16; 256] {
    let mut all = [0; 256];
    let mut zeros = 0;
    while zeros < 256 {
        let (mut best, mut best_len) = (0, 1);
        let mut from = 0;
        while from < 8 {
            let mut len = 0;
            while from + len < 8 && zeros >> (from + len) & 1 == 1 {
                len += 1;
            }
            if len > best_len {
                (best, best_len) = (from, len);
            }
            from += 1;
        }
        if best_len > 1 {
            all[zeros] = (((1 << best_len) - 1) << best | 1 << (8 + best)) as u16;
        }
        zeros += 1;
    }
    all
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::format;
    use std::net::Ipv6Addr;
    use std::string::{String, ToString};
    use std::vec::Vec;

    use crate::address::Words;
    use crate::cookie::{Cookie, cookie_key};
    use crate::hash::Keys;
    use crate::insert;
    use crate::siphash::siphash;

    #[derive(Default)]
    struct Out(Vec<u8>);

    impl Sink for Out {
        fn put(&mut self, at: u32, word: u64) {
            let at = at as usize;
            self.0.resize(self.0.len().max(at + 8), 0);
            self.0[at..at + 8].copy_from_slice(&word.to_le_bytes());
        }
    }

    impl Draft for Out {
        fn get(&self, at: u32) -> u64 {
            (&self.0[..]).word(at)
        }
    }

    fn written(write: impl FnOnce(&mut Out) -> u32) -> String {
        let mut out = Out::default();
        let len = write(&mut out) as usize;
        String::from_utf8(out.0[..len].to_vec()).unwrap()
    }

    fn endpoint(address: &str, port: u16) -> Endpoint6 {
        Endpoint6::new(address.parse::<Ipv6Addr>().unwrap().octets(), port)
    }

    fn text<W: Words>(words: &W, len: u32) -> String {
        let bytes: Vec<u8> = (0..W::LEN).flat_map(|i| words.word(i).to_le_bytes()).collect();
        String::from_utf8(bytes[..len as usize].to_vec()).unwrap()
    }

    #[test]
    fn the_longest_fits() {
        let longest = insert::local(endpoint(&["ffff"; 8].join(":"), 65535));
        let room = |len: u32, words: usize| len as usize <= 8 * words;
        assert!(room(longest.record_route_len, <Endpoint6 as Address>::RecordRoute::LEN));
        assert!(room(longest.via_len, <Endpoint6 as Address>::Via::LEN));
        assert!(room(longest.route_len, <Endpoint6 as Address>::Route::LEN));
        assert!(room(longest.own_via_len, <Endpoint6 as Address>::OwnVia::LEN));
        assert!(room(longest.uri_len, <Endpoint6 as Address>::Uri::LEN));
        let received = ";received=".len() + 39;
        assert!(room(received as u32, <Endpoint6 as Address>::Received::LEN));
    }

    #[test]
    fn lines_are_as_people_write_them() {
        let local = insert::local(endpoint("2001:db8::1", 5060));
        let zeros = "0".repeat(56);
        assert_eq!(
            text(&local.record_route, local.record_route_len),
            format!("Record-Route: <sip:[2001:db8::1]:5060;lr;sl={zeros}>\r\n")
        );
        assert_eq!(
            text(&local.via, local.via_len),
            "Via: SIP/2.0/UDP [2001:db8::1]:5060;branch=z9hG4bKslk0000000000000000\r\n"
        );
        assert_eq!(text(&local.uri, local.uri_len), "sip:[2001:db8::1]:5060");
        assert_eq!(text(&local.uri, local.host_len), "sip:[2001:db8::1]");
        assert_eq!((local.record_route_len + local.via_len) % 2, 0);
    }

    #[test]
    fn kinds_of_addresses() {
        assert!(endpoint("fe80::1", 1).is_link_local() && endpoint("febf::1", 1).is_link_local());
        assert!(!endpoint("fec0::1", 1).is_link_local());
        assert!(endpoint("::ffff:10.1.2.3", 1).is_mapped());
        assert!(!endpoint("::10.1.2.3", 1).is_mapped() && !endpoint("1::ffff:1:2", 1).is_mapped());
        assert_eq!(endpoint("2001:db8:1:2::9", 1).network(), 0x2001_0db8_0001_0002);
    }

    proptest! {
        #[test]
        fn the_one_form_is_known(
            groups: [u16; 8],
            zeros: u8,
            small: u8,
            gap in 0usize..8,
            len in 0usize..8,
            upper: bool,
            rest in "(:5060)?",
        ) {
            let mut groups = groups;
            for (i, group) in groups.iter_mut().enumerate() {
                *group >>= if small >> i & 1 != 0 { 12 } else { 0 };
                if zeros >> i & 1 != 0 {
                    *group = 0;
                }
            }
            let address = Ipv6Addr::from(groups);
            prop_assume!(address.to_ipv4_mapped().is_none());
            for form in crate::text::tests::forms_of_ipv6(groups, gap..gap + len) {
                let form = if upper { form.to_uppercase() } else { form };
                let text = format!("[{form}]{rest}");
                let text = text.as_bytes();
                let Some((read, end)) = Endpoint6::read_host(text, 0) else { continue };
                let one = format!("[{}]", form.parse::<Ipv6Addr>().unwrap());
                let is_written = read.is_written(text, 0, &mut Out::default());
                prop_assert_eq!(end as usize, form.len() + 2);
                prop_assert_eq!(is_written, one == format!("[{form}]"), "{}", form);
            }
        }

        #[test]
        fn addresses_are_written_as_the_library_writes_them(groups: [u16; 8], zeros: u8, port: u16) {
            let mut groups = groups;
            for (i, group) in groups.iter_mut().enumerate() {
                *group >>= 4 * (i % 4);
                if zeros >> i & 1 != 0 {
                    *group = 0;
                }
            }
            let address = Ipv6Addr::from(groups);
            let this = Endpoint6::new(address.octets(), port);
            prop_assert_eq!(this.octets(), address.octets());
            prop_assert_eq!(this.port_number(), port);
            prop_assert_eq!(this.is_link_local(), address.is_unicast_link_local());
            prop_assume!(!this.is_mapped());
            let plain = written(|out| this.write(out, 0));
            prop_assert_eq!(&plain, &address.to_string());
            let host = written(|out| this.write_host(out, 0));
            prop_assert_eq!(&host, &format!("[{address}]"));
            let bare = this.with_port(0);
            let len = |text: &str| text.len() as u32;
            prop_assert_eq!(Endpoint6::read_host(host.as_bytes(), 0), Some((bare, len(&host))));
            prop_assert_eq!(Endpoint6::read_host(plain.as_bytes(), 0), None);
            for text in [&plain, &host] {
                let read = Endpoint6::read_received(text.as_bytes(), 0);
                prop_assert_eq!(read, Some((bare, len(text))));
            }
        }

        #[test]
        fn cookies_go_there_and_back(octets: [u8; 16], port: u16, slot in 0u32..64, recorded: bool) {
            let keys = Keys::new([3, 4]);
            let flow = Endpoint6::new(octets, port);
            let cookie = Cookie { flow, slot, recorded };
            let digits = text(&cookie.write(&keys, 99), 56);
            let (read, signature) = Cookie::<Endpoint6>::read(digits.as_bytes(), 0).unwrap();
            prop_assert_eq!(read, cookie);
            prop_assert!(read.signed(signature, &keys, 99) && !read.signed(signature, &keys, 98));
            // As a text of these bytes, one after the other.
            let mut signed = octets.to_vec();
            signed.extend(port.to_be_bytes());
            signed.push(slot as u8);
            signed.extend(recorded.then_some(1));
            let by_text = siphash(cookie_key(&keys, 99), &signed[..], 0, signed.len() as u32).0;
            prop_assert_eq!(signature, by_text);
        }
    }
}
