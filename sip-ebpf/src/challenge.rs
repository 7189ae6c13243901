//! Asking for credentials without memory: which requests get a 401 or 407 as the daemon would send it, and its bytes.
//!
//! A request that has no credentials costs the daemon a wake-up and leaves nothing behind, so the program may answer it.
//! It does so only where it is sure that the daemon would ask: [`wanted`] takes requests in the form that phones write,
//! from a user of a domain in the table, and leaves every other to the daemon. What is answered here is answered there with
//! the same bytes, but for the nonce.
//!
//! The answer has a To tag of its own ([`crate::cookie::challenge_tag`]). By that an ACK is known that belongs to it: those of
//! refusals that the daemon keeps in mind have another.

use crate::address::Address;
use crate::cookie;
use crate::edit::{Draft, Front, Sink, answer_head};
use crate::hash::Keys;
use crate::header::{self, Span};
use crate::nonce::{self, Stamp};
use crate::repeat::{repeat, repeat_few, step};
use crate::route::{Packet, Plan};
use crate::scan::{Index, Kind, Line, MAX_TEXT, Method};
use crate::text::{LOWER, Text, head, literal};

/// Most bytes of a domain in the table.
pub const MAX_DOMAIN: usize = 63;

/// A domain with [`LOWER`] in all of its bytes, in words, filled up with zeros: letters are small.
pub type Domain = [u64; 8];

/// Bytes that the text of a challenge may have, the end of the message included.
pub const MAX_CHALLENGE: usize = 768;

/// How many algorithms a challenge may offer.
pub const MAX_OFFERS: usize = 4;

/// How many domains the table `DOMAINS` holds.
pub const MAX_DOMAINS: u32 = 1024;

/// How many names of scanners [`Asking`] holds.
pub const MAX_SCANNERS: usize = 32;

/// The longest User-Agent that is looked at.
const MAX_AGENT: u32 = 256;

/// What asks for credentials, and in which headers.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Role {
    /// 401, WWW-Authenticate: of a REGISTER (22.2).
    Registrar = 0,
    /// 407, Proxy-Authenticate: of all others (22.3).
    Proxy = 1,
}

/// How the users of a domain are asked: an entry of `DOMAINS`.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Challenge {
    /// The key that signs nonces of its realm.
    pub key: [u64; 2],
    /// By [`Role`]: all header lines of the challenge and the end of the message, with room for nonces.
    pub text: [[u8; MAX_CHALLENGE]; 2],
    /// By [`Role`]: how long the text is.
    pub len: [u32; 2],
    /// By [`Role`]: where nonces stand. Those past the last one are the last one again.
    pub nonce_at: [[u32; MAX_OFFERS]; 2],
}

/// What all challenges have in common: the table `ASKING`. All zero: nobody is asked here.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Asking {
    /// What is added to CLOCK_MONOTONIC for Unix time, in nanoseconds.
    pub offset: u64,
    /// Which instance nonces are made by: 24 bits.
    pub instance: u32,
    /// How many of `scanners` count.
    pub scanner_count: u32,
    /// Of the first letters of `scanners`: the bits of their low five bits.
    pub first_letters: u32,
    /// Always zero.
    pub pad: u32,
    /// The first eight bytes of what a scanner's User-Agent holds, in small letters.
    pub scanners: [u64; MAX_SCANNERS],
    /// Which bits of these count.
    pub scanner_masks: [u64; MAX_SCANNERS],
}

#[cfg(feature = "user")]
mod user {
    // SAFETY: `repr(C)` integers without padding or invalid values.
    unsafe impl aya::Pod for super::Challenge {}
    // SAFETY: as above.
    unsafe impl aya::Pod for super::Asking {}
}

impl Asking {
    /// Takes names of scanners in; false if they have no room.
    pub fn set_scanners<'s>(&mut self, names: impl IntoIterator<Item = &'s str>) -> bool {
        (self.scanner_count, self.first_letters) = (0, 0);
        for name in names {
            let place = self.scanner_count as usize;
            let (Some(scanner), Some(mask)) =
                (self.scanners.get_mut(place), self.scanner_masks.get_mut(place))
            else {
                return false;
            };
            let bytes = name.as_bytes();
            let front = bytes.get(..8).unwrap_or(bytes);
            let Some(first) = front.first() else { return false };
            *scanner = literal(front) | LOWER;
            *mask = head(u64::MAX, front.len() as u32);
            self.first_letters |= 1 << (first & 31);
            self.scanner_count += 1;
        }
        true
    }
}

/// A domain as a key of the table; none if it is too long for it.
pub fn domain(name: &str) -> Option<Domain> {
    let bytes = name.as_bytes();
    if bytes.is_empty() || bytes.len() > MAX_DOMAIN {
        return None;
    }
    let mut words = [0; 8];
    for (i, byte) in bytes.iter().enumerate() {
        *words.get_mut(i / 8)? |= (u64::from(*byte) | LOWER & 0xff) << (i % 8 * 8);
    }
    Some(words)
}

/// The domain that stands in `span` as a key of the table, written to `key`; false if it is none. It was read as a host, of
/// which no two make one key, but for letters in capitals.
#[inline(always)]
fn read_domain<T: Text>(t: T, span: Span, key: &mut Domain) -> bool {
    let len = span.end.wrapping_sub(span.at);
    if len == 0 || len > MAX_DOMAIN as u32 {
        return false;
    }
    for (i, word) in key.iter_mut().enumerate() {
        let at = 8 * i as u32;
        let left = len.saturating_sub(at);
        let all = t.word(span.at + at) | LOWER;
        *word = if left >= 8 {
            all
        } else if left == 0 {
            0
        } else {
            head(all, left)
        };
    }
    true
}

/// The table of domains.
pub trait Domains {
    /// Whether a domain is in it.
    fn has(&self, key: &Domain) -> bool;

    /// What all challenges have in common.
    fn asking(&self) -> &Asking;
}

/// Whether the daemon would ask for credentials, and how: then `key` is the domain of the user. Of an
/// address in brackets in the Via, [`via_is_read`] has the last word.
///
/// [`crate::route::route`] has decided on the request before and said [`crate::Reason::Untrusted`],
/// [`crate::Reason::Method`] or [`crate::Reason::Preloaded`], and its sender is nobody who is believed or steered.
#[inline(always)]
pub fn wanted<T: Text, A: Address, D: Domains>(
    t: T,
    index: &Index,
    plan: &Plan<A>,
    tables: &D,
    key: &mut Domain,
) -> Option<Role> {
    const CREDENTIALS: u64 = Kind::Authorization.bit() | Kind::ProxyAuthorization.bit();
    let register = index.method == Method::Register as u32;
    let others = CREDENTIALS | Kind::ProxyRequire.bit();
    if !(register || index.method == Method::Invite as u32)
        || !plan.to_tag.is_empty()
        || index.kinds & others != 0
        || index.repeated(Kind::Via)
    {
        return None;
    }
    let (Some(via), Some(from), Some(to), Some(call_id), Some(cseq)) = (
        index.first(Kind::Via),
        index.first(Kind::From),
        index.first(Kind::To),
        index.first(Kind::CallId),
        index.first(Kind::CSeq),
    ) else {
        return None;
    };
    let names = is_named(t, via, b"Via: ")
        & is_named(t, from, b"From: ")
        & is_named(t, to, b"To: ")
        & is_named(t, call_id, b"Call-ID: ")
        & is_named(t, cseq, b"CSeq: ");
    if !names || !via_is_plain(t, plan) || !call_id_is_plain(t, call_id) {
        return None;
    }
    // All are read, and of which domain is looked up: so each host is known to be one.
    let route = match index.first(Kind::Route) {
        // The daemon writes a request with a Route anew, and its answer has what it wrote.
        Some(line) if is_as_written::<T, A>(t, plan.via.sent_by, from, to, cseq) => {
            Some(read_route::<T, A>(t, index, line)?)
        }
        Some(_) => return None,
        None => None,
    };
    let (uri, end) = read_uri::<T, A>(t, index.uri, index.uri_end, !register)?;
    let (from_host, end_of_from) = read_address::<T, A>(t, from)?;
    let (to_host, end_of_to) = read_address::<T, A>(t, to)?;
    let from_is_plain = head(t.word(end_of_from), 5) == literal(b";tag=")
        && end_of_from + 5 < from.end as u32
        && run(t, end_of_from + 5, from.end as u32, TOKEN) == from.end as u32;
    if end != index.uri_end || end_of_to != to.end as u32 || !from_is_plain {
        return None;
    }
    if !lines_are_plain(t, index, tables.asking()) {
        return None;
    }
    // A REGISTER is from the user in To (10.2), others are from the one in From: his domain comes last.
    let (other, user) = if register { (from_host, to_host) } else { (to_host, from_host) };
    let mut known = |host| read_domain(t, host, key) && tables.has(key);
    if !(route.is_none_or(&mut known) && known(uri) && known(other) && known(user)) {
        return None;
    }
    Some(if register { Role::Registrar } else { Role::Proxy })
}

/// Whether there is an address in the Via, and before a Route in the form that the daemon would write it in: the rest of
/// [`wanted`], for a program of its own. What is left in `draft` means nothing.
#[inline(always)]
pub fn via_is_read<T: Text, A: Address, D: Draft>(
    t: T,
    index: &Index,
    plan: &Plan<A>,
    draft: &mut D,
) -> bool {
    let Span { at, end } = plan.via.sent_by;
    header::host_port::<T, A>(t, at, end)
        .is_ok_and(|(host, _)| !index.has(Kind::Route) || host.is_written(t, at, draft))
}

/// Whether an ACK is that of a challenge, which nobody remembers: it ends here.
#[inline(always)]
pub fn is_acknowledged<T: Text, A: Address>(
    t: T,
    index: &Index,
    plan: &Plan<A>,
    keys: &Keys,
) -> bool {
    let Some(call_id) = index.first(Kind::CallId) else { return false };
    let span = Span { at: call_id.value as u32, end: call_id.end as u32 };
    index.method == Method::Ack as u32
        && plan.to_tag.end.wrapping_sub(plan.to_tag.at) == 8
        && t.word(plan.to_tag.at) == cookie::challenge_tag(keys, t, span).0
}

/// The answer that asks for credentials, all of it. The tag in `plan` is that of the challenge.
#[inline(always)]
pub fn answer<T: Text, A: Address, S: Sink>(
    t: T,
    index: &Index,
    packet: Packet<A>,
    plan: &Plan<A>,
    (challenge, role, stamp): (&Challenge, Role, Stamp),
    out: &mut S,
) -> Front {
    let proxy = matches!(role, Role::Proxy);
    out.put(0, literal(b"SIP/2.0 "));
    let start = if proxy {
        out.put_run::<5>(8, |i| PROXY[i]);
        8 + "407 Proxy Authentication Required\r\n".len() as u32
    } else {
        out.put_run::<3>(8, |i| REGISTRAR[i]);
        8 + "401 Unauthorized\r\n".len() as u32
    };
    let Front { old, new: at } = answer_head(t, index, packet, plan, out, start);
    let which = role as usize & 1;
    // SAFETY: the number is 0 or 1.
    let (text, len, places) = unsafe {
        let text = challenge.text.as_ptr().add(which).cast::<u64>();
        let len = *challenge.len.as_ptr().add(which);
        (text, len, challenge.nonce_at.as_ptr().add(which).cast::<u32>())
    };
    let mut state = Copy { text, from: out.fresh(0), len, at: out.fresh(at), out: &mut *out };
    repeat_few::<4, _, _>(MAX_CHALLENGE as u32 / 32 + 2, &mut state, |s| {
        if s.from >= s.len || s.from > MAX_CHALLENGE as u32 - 32 {
            return false;
        }
        let from = (s.from / 8) as usize;
        // SAFETY: four words from a place that is at least four before the end.
        s.out.put_run::<4>(s.at, |i| unsafe { s.text.add(from + i).read() });
        step(&mut s.from, 32);
        step(&mut s.at, 32);
        true
    });
    let words = nonce::write(challenge.key, stamp);
    for i in 0..MAX_OFFERS {
        // SAFETY: there are as many.
        let place = unsafe { *places.add(i) };
        out.put_run::<5>(at + place, |i| words[i]);
    }
    Front { old, new: out.fresh(at + len) }
}

struct Copy<'a, S> {
    text: *const u64,
    from: u32,
    len: u32,
    at: u32,
    out: &'a mut S,
}

const PROXY: [u64; 5] = [
    literal(b"407 Prox"),
    literal(b"y Authen"),
    literal(b"tication"),
    literal(b" Require"),
    literal(b"d\r\n"),
];

const REGISTRAR: [u64; 3] = [literal(b"401 Unau"), literal(b"thorized"), literal(b"\r\n")];

// ---- What is plain --------------------------------------------------------------------------------

/// Characters, by the bits of two words.
#[derive(Clone, Copy)]
pub(crate) struct Class(u64, u64);

impl Class {
    /// Letters, digits and these.
    const fn with(more: &[u8]) -> Self {
        let mut class = Self(0x03ff << 48, 0x07ff_fffe_07ff_fffe);
        let mut i = 0;
        while i < more.len() {
            match more[i] < 64 {
                true => class.0 |= 1 << more[i],
                false => class.1 |= 1 << (more[i] - 64),
            }
            i += 1;
        }
        class
    }
}

/// Of a token (25.1).
const TOKEN: Class = Class::with(b"-.!%*_+`'~");
/// Of a token, or of an address: many put theirs into their Call-IDs.
const CALL_ID: Class = Class::with(b"-.!%*_+`'~:[]");
/// Of a user, without escapes and what is rare.
pub(crate) const USER: Class = Class::with(b"-_.!~*'+");
const HOST: Class = Class::with(b".-");
/// Of an address between brackets.
const GROUPS: Class = Class::with(b":");
const WORDS: Class = Class::with(b"");
/// Of a display name in quotes: no quote, no backslash.
const QUOTED: Class = Class::with(b" !#$%&'()*+,-./:;<=>?@[]^_`{|}~");

/// The first byte at or behind `at` that is not of a class, or `end`.
#[inline(always)]
pub(crate) fn run<T: Text>(t: T, at: u32, end: u32, class: Class) -> u32 {
    let mut state = Run { t, at: t.fresh(at), end, class };
    repeat(MAX_TEXT, &mut state, |s| {
        if s.at >= s.end || !is_of(s.t.byte(s.at), s.class) {
            return false;
        }
        step(&mut s.at, 1);
        true
    });
    t.fresh(state.at)
}

struct Run<T> {
    t: T,
    at: u32,
    end: u32,
    class: Class,
}

#[inline(always)]
fn is_of(byte: u8, class: Class) -> bool {
    let half = if byte & 64 == 0 { class.0 } else { class.1 };
    byte < 128 && half >> (byte & 63) & 1 != 0
}

/// Whether a line starts so, and its value right behind that.
#[inline(always)]
fn is_named<T: Text>(t: T, line: Line, name: &[u8]) -> bool {
    let start = line.start as u32;
    let len = name.len() as u32;
    let word = t.word(start);
    let differs = match name.split_at_checked(8) {
        Some((first, second)) => {
            word ^ literal(first) | head(t.word(start + 8) ^ literal(second), len - 8)
        }
        None => head(word, len) ^ literal(name),
    };
    differs == 0 && line.value as u32 == start + len
}

/// Whether the Via has an address, a branch and maybe an `rport`, and nothing else.
#[inline(always)]
fn via_is_plain<T: Text, A: Address>(t: T, plan: &Plan<A>) -> bool {
    let via = &plan.via;
    let rport = if via.rport.at != 0 { 6 } else { 0 };
    let branch = via.branch.end.wrapping_sub(via.branch.at);
    via.end == via.sent_by.end + 8 + branch + rport
        && (A::BRACKETS || header::host_port::<T, A>(t, via.sent_by.at, via.sent_by.end).is_ok())
        && run(t, via.branch.at, via.branch.end, TOKEN) == via.branch.end
}

/// Where a host ends that stands at `at`: one of letters, digits and what stands between them, or an address in brackets.
#[inline(always)]
fn end_of_host<T: Text, A: Address>(t: T, at: u32, end: u32) -> u32 {
    if !A::BRACKETS {
        return run(t, at, end, HOST);
    }
    // Without comparisons: the verifier would follow each way through all that comes.
    let is = |at: u32, byte: u8| (((t.byte(at) ^ byte) as u32 + 0xff) >> 8) ^ 1;
    let open = is(at, b'[');
    let bits = (open as u64).wrapping_neg();
    let class = Class(HOST.0 ^ (HOST.0 ^ GROUPS.0) & bits, HOST.1 ^ (HOST.1 ^ GROUPS.1) & bits);
    let at = run(t, at + open, end, class);
    t.fresh(at + (open & is(at, b']')))
}

/// Whether the lines are as the daemon would write them: one blank between a display name and its URI and between the two
/// parts of CSeq, no zeros before numbers.
#[inline(always)]
fn is_as_written<T: Text, A: Address>(
    t: T,
    sent_by: Span,
    from: Line,
    to: Line,
    cseq: Line,
) -> bool {
    let is_spaced = |line: Line| {
        let quote = line.value as u32;
        if t.byte(quote) != b'"' {
            return true;
        }
        let end = run(t, quote + 1, line.end as u32, QUOTED);
        t.short(end, 0) == u16::from_le_bytes(*b"\" ") as u32
    };
    let number = cseq.value as u32;
    let number_end = run(t, number, cseq.end as u32, WORDS);
    let port = end_of_host::<T, A>(t, sent_by.at, sent_by.end) + 1;
    is_spaced(from)
        && is_spaced(to)
        && t.byte(number_end + 1) > b' '
        && (t.byte(number) != b'0' || number_end == number + 1)
        && (port >= sent_by.end || t.byte(port) != b'0')
}

/// The host of a Route as phones write it for their outbound proxy: `<sip:host:port;lr>`. The daemon drops the Routes of a
/// request that starts a dialog, if they are well-formed.
#[inline(always)]
fn read_route<T: Text, A: Address>(t: T, index: &Index, line: Line) -> Option<Span> {
    let (at, end) = (line.value as u32, line.end as u32);
    if index.repeated(Kind::Route) || !is_named(t, line, b"Route: ") || t.byte(at) != b'<' {
        return None;
    }
    let (host, close) = read_uri::<T, A>(t, t.fresh(at + 1), end, false)?;
    (close + 1 == end && t.byte(close) == b'>').then_some(host)
}

/// Whether a Call-ID is a word without what is rare, or two with an `@` between them.
#[inline(always)]
fn call_id_is_plain<T: Text>(t: T, line: Line) -> bool {
    let (at, end) = (line.value as u32, line.end as u32);
    let first = run(t, at, end, CALL_ID);
    if first == at {
        return false;
    }
    first == end
        || t.byte(first) == b'@' && first + 1 < end && run(t, first + 1, end, CALL_ID) == end
}

/// The URI in the brackets of a From or To: its host, and what is behind the brackets. A display name is in quotes or one
/// token.
#[inline(always)]
fn read_address<T: Text, A: Address>(t: T, line: Line) -> Option<(Span, u32)> {
    let (value, end) = (line.value as u32, line.end as u32);
    let mut at = value;
    if t.byte(at) == b'"' {
        at = run(t, at + 1, end, QUOTED);
        if at >= end || t.byte(at) != b'"' {
            return None;
        }
        at += 1;
        at += (t.byte(at) == b' ') as u32;
    } else if t.byte(at) != b'<' {
        at = run(t, at, end, WORDS);
        if at == value || t.byte(at) != b' ' {
            return None;
        }
        at += 1;
    }
    if at >= end || t.byte(at) != b'<' {
        return None;
    }
    let (host, close) = read_uri::<T, A>(t, t.fresh(at + 1), end, true)?;
    (close < end && t.byte(close) == b'>').then_some((host, close + 1))
}

/// A URI `sip:user@host`, maybe with a port and one parameter: its host, and where it ends. The Request-URI of a REGISTER has
/// no user (10.2).
#[inline(always)]
fn read_uri<T: Text, A: Address>(t: T, at: u32, end: u32, has_user: bool) -> Option<(Span, u32)> {
    if head(t.word(at) | LOWER, 4) != literal(b"sip:") {
        return None;
    }
    let mut at = at + 4;
    if has_user {
        let user_end = run(t, at, end, USER);
        if user_end == at || user_end >= end || t.byte(user_end) != b'@' {
            return None;
        }
        at = user_end + 1;
    }
    let host = Span { at, end: end_of_host::<T, A>(t, at, end) };
    let mut at = host.end;
    if at < end && t.byte(at) == b':' {
        let port = Span { at: at + 1, end: run(t, at + 1, end, WORDS) };
        if header::port(t, port).is_err() {
            return None;
        }
        at = port.end;
    }
    if at < end && t.byte(at) == b';' {
        let name_end = run(t, at + 1, end, WORDS);
        if name_end == at + 1 {
            return None;
        }
        at = name_end;
        if name_end < end && t.byte(name_end) == b'=' {
            at = run(t, name_end + 1, end, WORDS);
            if at == name_end + 1 {
                return None;
            }
        }
    }
    Some((host, t.fresh(at)))
}

/// Whether the names of all headers are such, and no User-Agent is that of a scanner, or may be.
#[inline(always)]
fn lines_are_plain<T: Text>(t: T, index: &Index, asking: &Asking) -> bool {
    let mut state = Lines { t, index, asking, number: t.fresh(0), plain: true };
    // Not a closure, which would be a function of its own where two programs have it: too much for the verifier.
    repeat(crate::scan::MAX_LINES, &mut state, Lines::next);
    state.plain
}

struct Lines<'a, T> {
    t: T,
    index: &'a Index,
    asking: &'a Asking,
    number: u32,
    plain: bool,
}

impl<T: Text> Lines<'_, T> {
    /// Looks at one; false if there is no more to look at.
    #[inline(always)]
    fn next(&mut self) -> bool {
        if self.number >= self.index.count {
            return false;
        }
        let line = self.index.line(self.number);
        step(&mut self.number, 1);
        if line.kind == Kind::Other as u8 {
            self.plain = line_is_plain(self.t, line, self.asking);
        }
        self.plain
    }
}

#[inline(always)]
fn line_is_plain<T: Text>(t: T, line: Line, asking: &Asking) -> bool {
    let start = line.start as u32;
    let name_end = run(t, start, line.value as u32, TOKEN);
    if name_end == start || t.byte(name_end) != b':' {
        return false;
    }
    let agent = t.word(start) | LOWER == literal(b"user-age")
        && head(t.word(start + 8) | LOWER, 3) == literal(b"nt:");
    !agent || !may_be_scanner(t, line, asking)
}

/// Whether a value may hold the name of a scanner: what starts as one is for the daemon to judge.
#[inline(always)]
fn may_be_scanner<T: Text>(t: T, line: Line, asking: &Asking) -> bool {
    let (at, end) = (line.value as u32, line.end as u32);
    if end.wrapping_sub(at) > MAX_AGENT {
        return true;
    }
    let mut state =
        Agent { t, asking, at: t.fresh(at), end, scanner: asking.scanner_count, found: false };
    // Backwards through the scanners at each place, in one loop.
    repeat(MAX_AGENT * (MAX_SCANNERS as u32 + 1), &mut state, |s| {
        if s.at >= s.end {
            return false;
        }
        let word = s.t.word(s.at) | LOWER;
        let first = s.asking.first_letters >> (word as u32 & 31) & 1;
        if first == 0 || s.scanner == 0 {
            step(&mut s.at, 1);
            s.scanner = s.asking.scanner_count;
            return true;
        }
        step(&mut s.scanner, u32::MAX);
        let place = crate::scan::confine::<{ MAX_SCANNERS as u32 - 1 }>(s.scanner) as usize;
        // SAFETY: there are as many of both.
        let (scanner, mask) = unsafe {
            (*s.asking.scanners.as_ptr().add(place), *s.asking.scanner_masks.as_ptr().add(place))
        };
        s.found = (word ^ scanner) & mask == 0;
        !s.found
    });
    state.found
}

struct Agent<'a, T> {
    t: T,
    asking: &'a Asking,
    at: u32,
    end: u32,
    scanner: u32,
    found: bool,
}
