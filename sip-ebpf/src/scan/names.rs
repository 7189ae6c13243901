//! Names of headers by their hash: those that are told apart, and others that many messages have, which are then
//! not looked at any further.

use super::Kind;
use crate::text::{LOWER, equal, literal};

/// A name as nearly everybody writes it. None says nothing yet.
#[inline(always)]
pub(super) fn known(word: u64, more: u64) -> Option<&'static Name> {
    let colon = equal(word, b':');
    if colon == 0 {
        let small = word | LOWER;
        let at = long_hash(small, more as u8 | 0x20);
        // SAFETY: LONG_BITS bits count the entries.
        let entry = unsafe { &*LONG.as_ptr().add(at as usize) };
        let same = entry.head == small && (more | LOWER) & entry.mask == entry.rest;
        return same.then_some(&entry.name);
    }
    // Up to and with the first colon.
    let name = (word | LOWER) & (colon ^ colon.wrapping_sub(1));
    let at = name.wrapping_mul(NAMES_HASH) >> (64 - NAMES_BITS);
    // SAFETY: NAMES_BITS bits count the entries.
    let entry = unsafe { &*NAMES.as_ptr().add(at as usize) };
    (entry.name == name).then_some(entry)
}

/// A header's name, and what it says of its line.
#[derive(Clone, Copy)]
#[repr(C, align(32))]
pub(super) struct Name {
    /// With its colon, in small letters; zero of those in [`LONG`].
    name: u64,
    /// Its kind's bit in [`super::Index::kinds`].
    pub(super) bit: u64,
    /// A [`super::Line`] that starts at zero, and has its value behind one space.
    pub(super) line: u64,
    /// How long it is with its colon.
    pub(super) len: u8,
    /// Of its line in the table of the first of each kind, in bytes.
    pub(super) place: u8,
}

impl Name {
    const NONE: Self = Self { name: 0, bit: 0, line: 0, len: 0, place: 0 };

    const fn new(text: &[u8], kind: Kind) -> Self {
        Self {
            name: if text.len() > 8 { 0 } else { literal(text) },
            bit: kind.bit() & !1,
            line: (text.len() as u64 + 1) << 16 | (kind as u64) << 48,
            len: text.len() as u8,
            place: kind as u8 * 8,
        }
    }

    #[inline(always)]
    pub(super) fn kind(&self) -> u32 {
        self.place as u32 / 8
    }
}

/// A name that is longer than eight bytes with its colon, and at most sixteen.
#[derive(Clone, Copy)]
#[repr(C)]
struct LongName {
    name: Name,
    /// The first eight bytes.
    head: u64,
    /// The bytes behind them.
    rest: u64,
    /// Which bits of `rest` count.
    mask: u64,
}

const LONG_BITS: u32 = 3;

/// Gives each name in [`LONG`] an entry of its own; found by trying.
const LONG_HASH: u64 = 0x149e_259b_5d58_c705;

/// The place in [`LONG`] of a name that starts by `head`, and goes on by `next`.
#[inline(always)]
const fn long_hash(head: u64, next: u8) -> u64 {
    (head ^ (next as u64) << 56).wrapping_mul(LONG_HASH) >> (64 - LONG_BITS)
}

/// Long names by their hash, as [`NAMES`].
static LONG: [LongName; 1 << LONG_BITS] = long_names();

const fn long_names() -> [LongName; 1 << LONG_BITS] {
    const TEXTS: [(&[u8], Kind); 8] = [
        (b"max-forwards:", Kind::MaxForwards),
        (b"content-length:", Kind::ContentLength),
        (b"content-type:", Kind::Other),
        (b"record-route:", Kind::RecordRoute),
        (b"user-agent:", Kind::Other),
        (b"supported:", Kind::Other),
        (b"allow-events:", Kind::Other),
        (b"session-expires:", Kind::Other),
    ];
    const NONE: LongName = LongName { name: Name::NONE, head: 0, rest: 0, mask: 0 };
    let mut names = [NONE; 1 << LONG_BITS];
    let mut i = 0;
    while i < TEXTS.len() {
        let (text, kind) = TEXTS[i];
        let (first, rest) = text.split_at(8);
        let (first, mask) = (literal(first), u64::MAX >> (64 - 8 * rest.len()));
        let at = long_hash(first, rest[0]) as usize;
        assert!(names[at].head == 0, "two names have one hash");
        names[at] = LongName {
            name: Name::new(text, kind),
            head: first,
            rest: literal(rest) | LOWER & mask,
            mask,
        };
        i += 1;
    }
    names
}

const NAMES_BITS: u32 = 6;

/// Gives each name in [`NAMES`] an entry of its own; found by trying.
const NAMES_HASH: u64 = 0x4155_d7ef_28dd_37eb;

/// Names by their hash: those that are told apart, and others that many messages have.
static NAMES: [Name; 1 << NAMES_BITS] = names();

const fn names() -> [Name; 1 << NAMES_BITS] {
    const TEXTS: [(&[u8], Kind); 30] = [
        (b"via:", Kind::Via),
        (b"v:", Kind::Via),
        (b"from:", Kind::From),
        (b"f:", Kind::From),
        (b"to:", Kind::To),
        (b"t:", Kind::To),
        (b"call-id:", Kind::CallId),
        (b"i:", Kind::CallId),
        (b"cseq:", Kind::CSeq),
        (b"route:", Kind::Route),
        (b"contact:", Kind::Contact),
        (b"m:", Kind::Contact),
        (b"expires:", Kind::Expires),
        (b"l:", Kind::ContentLength),
        (b"require:", Kind::Require),
        (b"c:", Kind::Other),
        (b"allow:", Kind::Other),
        (b"k:", Kind::Other),
        (b"subject:", Kind::Other),
        (b"s:", Kind::Other),
        (b"server:", Kind::Other),
        (b"date:", Kind::Other),
        (b"x:", Kind::Other),
        (b"accept:", Kind::Other),
        (b"event:", Kind::Other),
        (b"o:", Kind::Other),
        (b"reason:", Kind::Other),
        (b"min-se:", Kind::Other),
        (b"privacy:", Kind::Other),
        (b"warning:", Kind::Other),
    ];
    let mut names = [Name::NONE; 1 << NAMES_BITS];
    let mut i = 0;
    while i < TEXTS.len() {
        let (text, kind) = TEXTS[i];
        let name = literal(text);
        let at = (name.wrapping_mul(NAMES_HASH) >> (64 - NAMES_BITS)) as usize;
        assert!(names[at].name == 0, "two names have one hash");
        names[at] = Name::new(text, kind);
        i += 1;
    }
    names
}
