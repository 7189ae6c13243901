//! Bytes of a message, read eight at a time (SWAR: SIMD within a register).
//!
//! [`Text`] hides where the bytes live: a slice on the host, a per-CPU scratch map in the kernel.
//! Reading past the end is allowed and gives zeros up to [`SLACK`] bytes further, so that a search
//! always finds a byte below space and stops.

use crate::repeat::{repeat, step};

/// How far past [`Text::len`] a read may reach and still see only zeros.
pub const SLACK: u32 = 64;

/// A message in memory.
pub trait Text: Copy {
    /// How many bytes there are.
    fn len(self) -> u32;

    /// Eight bytes from `at` on, the first in the lowest bits.
    fn word(self, at: u32) -> u64;

    /// The byte at `at`.
    fn byte(self, at: u32) -> u8;

    /// Brings in text that was not there yet, and stood as zeros; false if all is there.
    fn more(self) -> bool {
        false
    }

    /// Two words from `at` on.
    #[inline(always)]
    fn pair(self, at: u32) -> [u64; 2] {
        [self.word(at), self.word(at + 8)]
    }

    /// Four words from `at` on.
    #[inline(always)]
    fn four(self, at: u32) -> [u64; 4] {
        [self.word(at), self.word(at + 8), self.word(at + 16), self.word(at + 24)]
    }

    /// Not zero if one of the 32 bytes from `at` on is a control character; bytes from 0xa0 on may
    /// give that too, and lower ones do not. Only the highest bits of bytes tell.
    #[inline(always)]
    fn borrows_four(self, at: u32) -> u64 {
        let [a, b, c, d] = self.four(at);
        // A byte below space borrows, and so has its highest bit set.
        a.wrapping_sub(LOWER)
            | b.wrapping_sub(LOWER)
            | c.wrapping_sub(LOWER)
            | d.wrapping_sub(LOWER)
    }

    /// A place at or behind `at` that nothing below space stands before: of the next byte that is, or is above
    /// 0x9f, or 128 bytes on.
    #[inline(always)]
    fn near_control(self, at: u32) -> u32 {
        for i in (0..128).step_by(8) {
            let marks = self.word(at + i).wrapping_sub(LOWER) & HIGHS;
            if marks != 0 {
                return at + i + first(marks);
            }
        }
        at + 128
    }

    /// As [`Text::near_control`], for what is below or at space, and above 0xa0.
    #[inline(always)]
    fn near_blank(self, at: u32) -> u32 {
        for i in (0..128).step_by(8) {
            let marks = self.word(at + i).wrapping_sub(ONES * 0x21) & HIGHS;
            if marks != 0 {
                return at + i + first(marks);
            }
        }
        at + 128
    }

    /// A place at or behind `at` that no delimiter stands before (see [`delimiters`]): of the next byte that is
    /// below a hyphen, a semicolon, or above 0x7f, or 64 bytes on.
    #[inline(always)]
    fn near_delimiter(self, at: u32) -> u32 {
        for i in (0..64).step_by(8) {
            let marks = delimiters(self.word(at + i));
            if marks != 0 {
                return at + i + first(marks);
            }
        }
        at + 64
    }

    /// The byte at `at + more` and the next one, in the lower half.
    #[inline(always)]
    fn short(self, at: u32, more: u8) -> u32 {
        self.word(at + more as u32) as u32 & 0xffff
    }

    /// `value`, in a way that hides from the BPF verifier what is known of it. Loops need it:
    /// without it the verifier walks them once for each value. Nothing on the host.
    fn fresh(self, value: u32) -> u32 {
        value
    }

    /// Whether there are no bytes.
    fn is_empty(self) -> bool {
        self.len() == 0
    }
}

impl Text for &[u8] {
    #[inline]
    fn len(self) -> u32 {
        // A datagram is at most 65,535 bytes; a longer slice is cut, never wrapped.
        u32::try_from(<[u8]>::len(self)).unwrap_or(u32::MAX)
    }

    #[inline]
    fn word(self, at: u32) -> u64 {
        match self.get(at as usize..).and_then(<[u8]>::first_chunk) {
            Some(eight) => u64::from_le_bytes(*eight),
            None => last_word(self, at),
        }
    }

    #[inline]
    fn byte(self, at: u32) -> u8 {
        self.get(at as usize).copied().unwrap_or(0)
    }
}

/// The word at `at`, behind which the text has less than eight bytes: zeros are behind it.
#[cold]
fn last_word(text: &[u8], at: u32) -> u64 {
    let mut word = [0; 8];
    let rest = text.get(at as usize..).unwrap_or_default();
    for (to, from) in word.iter_mut().zip(rest) {
        *to = *from;
    }
    u64::from_le_bytes(word)
}

/// One in each byte.
pub const ONES: u64 = 0x0101_0101_0101_0101;
/// The highest bit of each byte: where marks stand.
pub const HIGHS: u64 = 0x8080_8080_8080_8080;

/// Eight spaces. Or this into a word to make ASCII letters small. Other bytes change too, but none becomes a
/// letter, a digit or a hyphen unless it was one or was a control character.
pub const LOWER: u64 = 0x2020_2020_2020_2020;

/// The eight bytes of `text` as a word; shorter ones are filled up with zeros.
pub const fn literal(text: &[u8]) -> u64 {
    let mut word = 0;
    let mut i = text.len();
    while i > 0 {
        i -= 1;
        word = word << 8 | text[i] as u64;
    }
    word
}

/// The first `n` bytes of a word, the others zero; `n` is 1 to 8.
#[inline(always)]
pub fn head(word: u64, n: u32) -> u64 {
    word & (u64::MAX >> ((64 - n * 8) & 63))
}

/// Marks bytes below `limit` (1 to 128): the lowest mark is exact, higher ones may be wrong.
#[inline(always)]
pub fn below(word: u64, limit: u8) -> u64 {
    word.wrapping_sub(ONES * limit as u64) & !word & HIGHS
}

/// Marks bytes equal to `byte`: the lowest mark is exact, higher ones may be wrong.
#[inline(always)]
pub fn equal(word: u64, byte: u8) -> u64 {
    let x = word ^ (ONES * byte as u64);
    x.wrapping_sub(ONES) & !x & HIGHS
}

/// Marks bytes below a hyphen and semicolons, and maybe those above 0x7f: the lowest mark is exact.
#[inline(always)]
pub fn delimiters(word: u64) -> u64 {
    (word.wrapping_sub(ONES * b'-' as u64) | (word ^ (ONES * b';' as u64)).wrapping_sub(ONES))
        & HIGHS
}

/// Whether all of the first `n` bytes, 1 to 4, are decimal digits; and their value, if so.
#[inline(always)]
pub fn short_digits(word: u64, n: u32) -> (bool, u32) {
    // To the high end, as in `digits`; what follows the digits goes beyond it.
    let x = (word as u32 ^ 0x3030_3030) << ((32 - n * 8) & 31);
    let all = (x.wrapping_add(0x7676_7676) | x) & 0x8080_8080 == 0;
    let y = x.wrapping_mul(10).wrapping_add(x >> 8) & 0x00ff_00ff;
    (all, y.wrapping_mul(100).wrapping_add(y >> 16) & 0xffff)
}

/// Marks bytes that are no decimal digits: the lowest mark is exact.
#[inline(always)]
pub fn not_digit(word: u64) -> u64 {
    let x = word ^ (ONES * 0x30);
    (x.wrapping_add(ONES * 0x76) | x) & HIGHS
}

/// Which byte the lowest mark stands at, 0 to 7; `marks` is not zero.
///
/// BPF has no count of trailing zeros, so a multiplication looks it up.
#[inline(always)]
pub fn first(marks: u64) -> u32 {
    ((((marks & marks.wrapping_neg()) >> 7).wrapping_mul(0x0001_0203_0405_0607)) >> 56) as u32
}

/// The value of up to eight decimal digits at the front of a word, and how many there are.
#[inline(always)]
pub fn digits(word: u64) -> (u32, u32) {
    let marks = not_digit(word);
    let n = if marks == 0 { 8 } else { first(marks) };
    if n == 0 {
        return (0, 0);
    }
    // Move the digits to the high end: the low bytes become zero, as if they were leading zeros.
    let x = (word ^ (ONES * 0x30)) << ((64 - n * 8) & 63);
    let x = x.wrapping_mul(10).wrapping_add(x >> 8) & 0x00ff_00ff_00ff_00ff;
    let x = x.wrapping_mul(100).wrapping_add(x >> 16) & 0x0000_ffff_0000_ffff;
    let x = x.wrapping_mul(10_000).wrapping_add(x >> 32) & 0xffff_ffff;
    (x as u32, n)
}

/// Sixteen small hexadecimal digits for a number, most significant first, as two words.
#[inline(always)]
pub fn hex(value: u64) -> [u64; 2] {
    [hex8((value >> 32) as u32), hex8(value as u32)]
}

/// Eight small hexadecimal digits for a number, most significant first.
#[inline(always)]
pub fn hex8(value: u32) -> u64 {
    // One nibble into each byte, the most significant into the lowest byte.
    let x = value.swap_bytes() as u64;
    let x = (x | x << 16) & 0x0000_ffff_0000_ffff;
    let x = (x | x << 8) & 0x00ff_00ff_00ff_00ff;
    let x = (x >> 4 | x << 8) & 0x0f0f_0f0f_0f0f_0f0f;
    // 0x06 + digit reaches 0x10 for a to f: these get another 0x27 on top of '0'.
    let letters = (x + ONES * 0x06) >> 4 & ONES;
    x + ONES * 0x30 + letters * 0x27
}

/// The number that eight hexadecimal digits of either case stand for.
#[inline(always)]
pub fn unhex8(word: u64) -> Option<u32> {
    let small = word | LOWER;
    let x = small ^ (ONES * 0x30);
    // Digits are 0 to 9 now, letters 0x51 to 0x56, everything else something else.
    let letters = x >> 6 & ONES;
    let value = (x & ONES.wrapping_mul(0x0f)).wrapping_add(letters * 9);
    if hex8_of(value) != small {
        return None;
    }
    Some(of_nibbles(value))
}

/// The number of nibbles that stand one in a byte, the most significant in the lowest byte.
#[inline(always)]
fn of_nibbles(nibbles: u64) -> u32 {
    let y = (nibbles << 4 | nibbles >> 8) & 0x00ff_00ff_00ff_00ff;
    let y = (y | y >> 8) & 0x0000_ffff_0000_ffff;
    ((y | y >> 16) as u32).swap_bytes()
}

/// How many of the eight bytes of a word are hexadecimal digits of either case before one is not; and their value, if there
/// is one.
#[inline(always)]
fn hextet(word: u64) -> (u32, u32) {
    const LOWS: u64 = !HIGHS;
    let small = word | LOWER;
    // Digits become 0 to 9 here, and letters 1 to 6 there.
    let (x, y) = (small ^ (ONES * 0x30), small ^ (ONES * 0x60));
    let not_digit = x | ((x & LOWS) + ONES * 0x76);
    let not_letter = y | ((y & LOWS) + ONES * 0x79) | !((y & LOWS) + ONES * 0x7f);
    let marks = not_digit & not_letter & HIGHS;
    let n = if marks == 0 { 8 } else { first(marks) };
    let letters = x >> 6 & ONES;
    let nibbles = (x & (ONES * 0x0f)).wrapping_add(letters * 9);
    // To the high end, as in `digits`.
    (n, of_nibbles(nibbles << ((64 - n * 8) & 63)))
}

/// Digits for nibbles that stand one in a byte, or something that is no digit for larger values.
#[inline(always)]
fn hex8_of(nibbles: u64) -> u64 {
    if nibbles & (ONES * 0xf0) != 0 {
        return 0;
    }
    let letters = nibbles.wrapping_add(ONES * 0x06) >> 4 & ONES;
    nibbles.wrapping_add(ONES * 0x30).wrapping_add(letters * 0x27)
}

/// A dotted IPv4 address at `at`: its value with the bytes in network order in memory, and where it
/// ends, which another digit may follow. None if there is none, or one with leading zeros, which some
/// read as octal.
#[inline(always)]
pub fn ipv4<T: Text>(t: T, at: u32) -> Option<(u32, u32)> {
    let (a, at, next) = octet(t, at)?;
    let (b, at, next) = octet(t, dot(at, next)?)?;
    let (c, at, next) = octet(t, dot(at, next)?)?;
    let (d, at, _) = octet(t, dot(at, next)?)?;
    Some((u32::from_le(a | b << 8 | c << 16 | d << 24), at))
}

#[inline(always)]
fn dot(at: u32, next: u8) -> Option<u32> {
    (next == b'.').then_some(at + 1)
}

/// Up to three digits, where they end, and what stands there. What a fourth one would be is for the caller, who
/// knows what must follow.
#[inline(always)]
fn octet<T: Text>(t: T, at: u32) -> Option<(u32, u32, u8)> {
    let word = t.word(at);
    let byte = |i: u32| (word >> (8 * i)) as u8;
    let digit = |i: u32| byte(i).wrapping_sub(b'0') as u32;
    let (a, b, c) = (digit(0), digit(1), digit(2));
    if a > 9 {
        return None;
    }
    if b > 9 {
        return Some((a, at + 1, byte(1)));
    }
    if a == 0 {
        return None;
    }
    if c > 9 {
        return Some((a * 10 + b, at + 2, byte(2)));
    }
    let value = a * 100 + b * 10 + c;
    (value < 256).then_some((value, at + 3, byte(3)))
}

/// An IPv6 address at `at`, in one of the forms of RFC 4291 2.2 but the last one, which has an IPv4 address in it: its value
/// with the bytes in network order in memory, and where it ends.
#[inline(always)]
pub fn ipv6<T: Text>(t: T, at: u32) -> Option<([u64; 2], u32)> {
    // A gap may stand first.
    let gap = t.short(at, 0) == u16::from_le_bytes(*b"::") as u32;
    let mut state = Groups {
        t,
        at: t.fresh(at + if gap { 2 } else { 0 }),
        value: [0; 2],
        before: [0; 2],
        gap: if gap { 0 } else { NO_GAP },
        groups: 0,
        wanted: !gap,
        odd: false,
    };
    repeat(9, &mut state, |s| s.next());
    let Groups { at, value, before, gap, groups, wanted, odd, .. } = state;
    let whole = if gap == NO_GAP { groups == 8 } else { groups < 8 };
    if odd || wanted || !whole {
        return None;
    }
    let [high, low] = if gap == NO_GAP { value } else { over(before, value, gap) };
    Some(([high.to_be(), low.to_be()], t.fresh(at)))
}

/// The groups of an IPv6 address so far.
struct Groups<T> {
    t: T,
    at: u32,
    /// Those behind the gap, if there was one: 128 bits, the higher ones first.
    value: [u64; 2],
    /// Those before it.
    before: [u64; 2],
    /// How many of them there are.
    gap: u32,
    /// How many there are in all.
    groups: u32,
    /// Whether one more must follow.
    wanted: bool,
    odd: bool,
}

const NO_GAP: u32 = 9;

impl<T: Text> Groups<T> {
    /// Reads one, and the colons behind it; false if there is no more.
    #[inline(always)]
    fn next(&mut self) -> bool {
        let word = self.t.word(self.at);
        let (n, value) = hextet(word);
        if n == 0 {
            return false;
        }
        self.odd |= n > 4 || self.groups > 7;
        if self.odd {
            return false;
        }
        let [high, low] = self.value;
        self.value = [high << 16 | low >> 48, low << 16 | value as u64];
        step(&mut self.groups, 1);
        self.wanted = false;
        step(&mut self.at, n);
        // Four bytes of the word are left at least.
        let behind = word >> ((n * 8) & 63);
        if behind as u8 != b':' {
            return false;
        }
        if (behind >> 8) as u8 != b':' {
            step(&mut self.at, 1);
            self.wanted = true;
            return true;
        }
        self.odd |= self.gap != NO_GAP;
        step(&mut self.at, 2);
        (self.gap, self.before, self.value) = (self.groups, self.value, [0; 2]);
        !self.odd
    }
}

/// Puts `groups` groups, 0 to 7, to the high end of 128 bits, over others.
#[inline(always)]
fn over(groups: [u64; 2], others: [u64; 2], n: u32) -> [u64; 2] {
    // By 16 bits for each group that is missing before them: one to eight.
    let [mut high, mut low] = groups;
    let bits = 16 * (8 - n);
    if bits >= 64 {
        (high, low) = (low, 0);
    }
    let bits = bits & 63;
    if bits != 0 {
        high = high << bits | low >> ((64 - bits) & 63);
        low <<= bits;
    }
    if n == 0 {
        (high, low) = (0, 0);
    }
    [high | others[0], low | others[1]]
}

/// The decimal digits of an octet and a dot, the first in the lowest byte; how many bytes that is
/// stands in the upper half.
#[inline(always)]
pub fn dotted(octet: u8) -> u64 {
    static DOTTED: [u64; 256] = all_dotted();
    // SAFETY: there is one for each value of an octet.
    unsafe { *DOTTED.as_ptr().add(octet as usize) }
}

const fn all_dotted() -> [u64; 256] {
    let mut all = [0; 256];
    let mut octet = 0;
    while octet < 256 {
        let digits = [octet / 100, octet / 10 % 10, octet % 10];
        let mut at = if octet > 99 { 0 } else { 1 + (octet < 10) as usize };
        let mut len = 0;
        while at < 3 {
            all[octet as usize] |= (0x30 + digits[at] as u64) << (8 * len);
            at += 1;
            len += 1;
        }
        all[octet as usize] |= (b'.' as u64) << (8 * len) | (len + 1) << 32;
        octet += 1;
    }
    all
}

#[cfg(test)]
pub(crate) mod tests {
    extern crate std;
    use super::*;
    use proptest::prelude::*;
    use std::format;
    use std::net::Ipv4Addr;
    use std::string::{String, ToString};

    #[test]
    fn reading_past_the_end_gives_zeros() {
        let t: &[u8] = b"abc";
        assert_eq!(t.word(0), literal(b"abc"));
        assert_eq!(t.word(2), literal(b"c"));
        assert_eq!((t.word(3), t.word(900), t.byte(3)), (0, 0, 0));
    }

    #[test]
    fn every_octet_is_dotted() {
        for octet in 0..=255u8 {
            let text = dotted(octet);
            let len = (text >> 32) as usize;
            assert_eq!(&text.to_le_bytes()[..len], format!("{octet}.").as_bytes());
        }
    }

    #[test]
    fn ipv4_refuses_what_is_none() {
        for bad in ["", "1", "1.2.3", "1.2.3.", "1.2.3.256", "01.2.3.4", "1..2.3", "a.b.c.d"] {
            assert_eq!(ipv4(bad.as_bytes(), 0), None, "{bad}");
        }
        assert_eq!(ipv4(&b"x0.0.0.0;"[..], 1).map(|(_, end)| end), Some(8));
    }

    /// How people write an IPv6 address: by RFC 5952, with all groups, with all digits, and with these groups left out, which is
    /// it only if they are zeros.
    pub(crate) fn forms_of_ipv6(groups: [u16; 8], left_out: std::ops::Range<usize>) -> [String; 4] {
        let written = groups.map(|group| format!("{group:x}"));
        let end = left_out.end.min(8);
        [
            std::net::Ipv6Addr::from(groups).to_string(),
            written.join(":"),
            groups.map(|group| format!("{group:04x}")).join(":"),
            format!("{}::{}", written[..left_out.start].join(":"), written[end..].join(":")),
        ]
    }

    proptest! {
        #[test]
        fn marks_agree_with_bytes(bytes: [u8; 8], limit in 1u8..=128, byte: u8) {
            let w = u64::from_le_bytes(bytes);
            let exact = |marks: u64| (marks != 0).then(|| first(marks) as usize);
            prop_assert_eq!(exact(below(w, limit)), bytes.iter().position(|b| *b < limit));
            prop_assert_eq!(exact(equal(w, byte)), bytes.iter().position(|b| *b == byte));
            prop_assert_eq!(exact(not_digit(w)), bytes.iter().position(|b| !b.is_ascii_digit()));
        }

        #[test]
        fn digits_agree_with_parse(text in "[0-9]{0,8}[^0-9]{0,3}") {
            let run: String = text.chars().take_while(char::is_ascii_digit).collect();
            let (value, n) = digits(text.as_bytes().word(0));
            prop_assert_eq!(n as usize, run.len());
            prop_assert_eq!(value, run.parse().unwrap_or(0));
        }

        #[test]
        fn short_digits_agree_with_parse(text in "[0-9]{1,4}[^0-9]{0,3}", n in 1u32..=4) {
            let run: String = text.chars().take_while(char::is_ascii_digit).collect();
            let (all, value) = short_digits(text.as_bytes().word(0), n);
            prop_assert_eq!(all, run.len() >= n as usize);
            if all {
                prop_assert_eq!(value, run[..n as usize].parse().unwrap());
            }
        }

        #[test]
        fn delimiters_are_marked(bytes: [u8; 8]) {
            let want = bytes.iter().position(|b| *b < b'-' || *b == b';' || *b > 0x7f);
            let marks = delimiters(u64::from_le_bytes(bytes));
            let found = (marks != 0).then(|| first(marks) as usize);
            // Before one that may be marked or not, nothing is.
            prop_assert!(found >= want || want.is_none());
            if want.is_some_and(|at| bytes[at] < 0x80) {
                prop_assert_eq!(found, want);
            }
        }

        #[test]
        fn hex_there_and_back(value: u64) {
            let [high, low] = hex(value);
            let mut text = high.to_le_bytes().to_vec();
            text.extend(low.to_le_bytes());
            prop_assert_eq!(text, format!("{value:016x}").into_bytes());
            prop_assert_eq!(unhex8(high), Some((value >> 32) as u32));
            prop_assert_eq!(unhex8(literal(format!("{:08X}", value as u32).as_bytes())), Some(value as u32));
        }

        #[test]
        fn unhex_refuses_others(bytes: [u8; 8]) {
            let text = core::str::from_utf8(&bytes).ok().filter(|t| t.bytes().all(|b| b.is_ascii_hexdigit()));
            // A control character may look like a digit once letters are small: the scanner has
            // refused those before.
            prop_assume!(bytes.iter().all(|b| *b >= 0x20));
            let want = text.and_then(|t| u32::from_str_radix(t, 16).ok());
            prop_assert_eq!(unhex8(u64::from_le_bytes(bytes)), want);
        }

        #[test]
        fn ipv6_is_read_as_the_library_reads_it(
            groups: [u16; 8],
            zeros: u8,
            gap in 0usize..8,
            len in 0usize..8,
            upper: bool,
            rest in "[];, :]?",
        ) {
            let mut groups = groups;
            for (i, group) in groups.iter_mut().enumerate() {
                if zeros >> i & 1 != 0 {
                    *group = 0;
                }
            }
            for form in forms_of_ipv6(groups, gap..gap + len) {
                let form = if upper { form.to_uppercase() } else { form };
                let text = format!("{form}{rest}");
                let wanted = form.parse::<std::net::Ipv6Addr>().ok();
                let read = ipv6(text.as_bytes(), 0).filter(|(_, end)| *end == form.len() as u32);
                let read = read.map(|(words, _)| {
                    let [high, low] = words.map(u64::to_ne_bytes);
                    let mut octets = [0; 16];
                    octets[..8].copy_from_slice(&high);
                    octets[8..].copy_from_slice(&low);
                    std::net::Ipv6Addr::from(octets)
                });
                // An IPv4 address within is not read.
                if form.contains('.') || rest.starts_with(':') {
                    prop_assert!(read.is_none() || read == wanted, "{}", text);
                } else {
                    prop_assert_eq!(read, wanted, "{}", text);
                }
            }
        }

        #[test]
        fn ipv6_of_anything(text in "[0-9a-fA-F:.\\]]{0,45}") {
            let read = ipv6(text.as_bytes(), 0);
            if let Some((words, end)) = read {
                let [high, low] = words.map(u64::to_ne_bytes);
                let mut octets = [0; 16];
                octets[..8].copy_from_slice(&high);
                octets[8..].copy_from_slice(&low);
                let wanted = text[..end as usize].parse::<std::net::Ipv6Addr>();
                prop_assert_eq!(wanted, Ok(std::net::Ipv6Addr::from(octets)));
            }
            if let Ok(wanted) = text.parse::<std::net::Ipv6Addr>()
                && !text.contains('.')
            {
                prop_assert!(read.is_some_and(|(_, end)| end == text.len() as u32), "{}", wanted);
            }
        }

        #[test]
        fn addresses_are_read(octets: [u8; 4]) {
            let text = format!("{}", Ipv4Addr::from(octets));
            let addr = u32::from_ne_bytes(octets);
            prop_assert_eq!(ipv4(text.as_bytes(), 0), Some((addr, text.len() as u32)));
        }
    }
}
