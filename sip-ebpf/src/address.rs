//! Addresses of one family: how they are read, written and signed.
//!
//! What the proxy decides and what it puts into messages ([`mod@crate::route`], [`crate::edit`], [`crate::cookie`]) is the
//! same for each family, and the compiler makes the code of each by itself.

use core::fmt;

use crate::edit::{Draft, Sink};
use crate::siphash::siphash_word;
use crate::tables::{Endpoint, Pbx};
use crate::text::{LOWER, Text, dotted, hex8, unhex8};

/// An address and a UDP port of one family.
pub trait Address: Copy + Default + Eq + fmt::Debug {
    /// A cookie with such an address, in words.
    type Cookie: Words;
    /// What [`Address::digits`] gives.
    type Digits: Copy;
    /// Room for the Record-Route line that the proxy inserts.
    type RecordRoute: Words;
    /// Room for the Via line that the proxy inserts.
    type Via: Words;
    /// What a Route of ours is compared by.
    type Route: Words;
    /// What a Via of ours is compared by.
    type OwnVia: Words;
    /// What a Request-URI that asks us is compared by.
    type Uri: Words;
    /// Room for what a Via gets as `received`.
    type Received: Words;
    /// An entry of the table of PBXs.
    type Pbx: Copy;

    /// Hexadecimal digits of an address in a cookie, without its port.
    const DIGITS: u32;
    /// Whether it stands in brackets where it is a host.
    const BRACKETS: bool;

    /// Bits that letters of either case have in common with what word `i` of a Request-URI is compared with.
    fn small(i: usize) -> u64;

    /// The port as a number.
    fn port_number(self) -> u16;

    /// The same address with another port.
    #[must_use]
    fn with_port(self, port: u16) -> Self;

    /// Whether both have one address, whatever their ports.
    fn is_host_of(self, other: Self) -> bool;

    /// Reads the host of a Via or of a URI (RFC 3261 25.1), its port zero, and where it ends; none if there is no address
    /// in the form that the quick reading knows.
    fn read_host<T: Text>(t: T, at: u32) -> Option<(Self, u32)>;

    /// As [`Address::read_host`], for the value of `received`, which may be without brackets (RFC 5118 4.5).
    fn read_received<T: Text>(t: T, at: u32) -> Option<(Self, u32)>;

    /// Writes the address as `received` has it; says where it ended.
    fn write<S: Sink>(self, out: &mut S, at: u32) -> u32;

    /// Writes the address as the host of a Via or of a URI; says where it ended.
    fn write_host<S: Sink>(self, out: &mut S, at: u32) -> u32;

    /// Whether a host at `at` that [`Address::read_host`] has read as this address is what [`Address::write_host`] writes.
    fn is_written<T: Text, D: Draft>(self, t: T, at: u32, draft: &mut D) -> bool;

    /// The digits of the address in a cookie.
    fn digits(self) -> Self::Digits;

    /// Reads what [`Address::digits`] wrote at `at`; the port is zero.
    fn read_digits<T: Text>(t: T, at: u32) -> Option<Self>;

    /// A cookie of the address' digits and the words behind them.
    fn cookie(digits: Self::Digits, rest: [u64; 3]) -> Self::Cookie;

    /// Signs the address and `rest`, which has port, slot and flags as the cookie has them.
    fn sign(self, key: [u64; 2], rest: u32) -> u64;

    /// Where a PBX listens, and its [`crate::tables::PbxState`].
    fn of_pbx(pbx: &Self::Pbx) -> (Self, u8);
}

impl Address for Endpoint {
    type Cookie = [u64; 4];
    type Digits = u64;
    type RecordRoute = [u64; 11];
    type Via = [u64; 10];
    type Route = [u64; 5];
    type OwnVia = [u64; 7];
    type Uri = [u64; 4];
    type Received = [u64; 4];
    type Pbx = Pbx;

    const DIGITS: u32 = 8;
    const BRACKETS: bool = false;

    #[inline(always)]
    fn small(_i: usize) -> u64 {
        // Digits and dots have that bit already.
        LOWER
    }

    #[inline(always)]
    fn port_number(self) -> u16 {
        Endpoint::port_number(self)
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
        let (addr, end) = crate::text::ipv4(t, at)?;
        Some((Self { addr, port: 0, pad: 0 }, end))
    }

    #[inline(always)]
    fn read_received<T: Text>(t: T, at: u32) -> Option<(Self, u32)> {
        Self::read_host(t, at)
    }

    #[inline(always)]
    fn write<S: Sink>(self, out: &mut S, at: u32) -> u32 {
        // Dots are put behind all four: what comes next covers the last one.
        let octets = self.octets();
        let at = octet(octets[0], out, at);
        let at = octet(octets[1], out, at);
        let at = octet(octets[2], out, at);
        octet(octets[3], out, at) - 1
    }

    #[inline(always)]
    fn write_host<S: Sink>(self, out: &mut S, at: u32) -> u32 {
        self.write(out, at)
    }

    #[inline(always)]
    fn is_written<T: Text, D: Draft>(self, _t: T, _at: u32, _draft: &mut D) -> bool {
        // No other form is read.
        true
    }

    #[inline(always)]
    fn digits(self) -> u64 {
        hex8(u32::from_be(self.addr))
    }

    #[inline(always)]
    fn read_digits<T: Text>(t: T, at: u32) -> Option<Self> {
        let addr = unhex8(t.word(at))?.to_be();
        Some(Self { addr, port: 0, pad: 0 })
    }

    #[inline(always)]
    fn cookie(digits: u64, rest: [u64; 3]) -> [u64; 4] {
        [digits, rest[0], rest[1], rest[2]]
    }

    #[inline(always)]
    fn sign(self, key: [u64; 2], rest: u32) -> u64 {
        siphash_word(key, (u32::from_be(self.addr) as u64) << 32 | rest as u64)
    }

    #[inline(always)]
    fn of_pbx(pbx: &Pbx) -> (Self, u8) {
        (pbx.endpoint(), pbx.state)
    }
}

/// Writes an octet and a dot; says where they ended.
#[inline(always)]
fn octet<S: Sink>(value: u8, out: &mut S, at: u32) -> u32 {
    let text = dotted(value);
    // With what stands above the text: what comes next covers it.
    out.put(at, text);
    at + (text >> 32) as u32
}

/// A text in words, the first byte in the lowest bits of the first; zeros behind it.
pub trait Words: Copy + Eq + fmt::Debug {
    /// How many there are.
    const LEN: usize;

    /// All of them zero.
    const ZERO: Self;

    /// All bits set.
    const ALL: Self;

    /// One of them.
    fn word(&self, i: usize) -> u64;

    /// One of them, to be changed.
    fn word_mut(&mut self, i: usize) -> Option<&mut u64>;

    /// Changes one of them.
    fn set(&mut self, i: usize, word: u64);

    /// Writes them.
    fn put<S: Sink>(&self, out: &mut S, at: u32);

    /// Zero if the text at `at` is the same in all bits of `mask`.
    #[inline(always)]
    fn differs<T: Text>(&self, mask: &Self, t: T, at: u32) -> u64 {
        let mut differs = 0;
        for i in 0..Self::LEN {
            differs |= (t.word(at + 8 * i as u32) ^ self.word(i)) & mask.word(i);
        }
        differs
    }
}

impl<const N: usize> Words for [u64; N] {
    const LEN: usize = N;
    const ZERO: Self = [0; N];
    const ALL: Self = [u64::MAX; N];

    #[inline(always)]
    fn word(&self, i: usize) -> u64 {
        self.get(i).copied().unwrap_or(0)
    }

    fn word_mut(&mut self, i: usize) -> Option<&mut u64> {
        self.get_mut(i)
    }

    #[inline(always)]
    fn set(&mut self, i: usize, word: u64) {
        if let Some(place) = self.get_mut(i) {
            *place = word;
        }
    }

    #[inline(always)]
    fn put<S: Sink>(&self, out: &mut S, at: u32) {
        out.put_run::<N>(at, |i| self.word(i));
    }
}
