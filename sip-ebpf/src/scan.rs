//! One pass over a message: the start line, and where each header stands.
//!
//! The pass is strict about what RFC 3261 is strict about (lines end by CR LF, 7.3.1 folding, no
//! control characters, 25.1) and reads no values: that is for those who need one ([`crate::header`]
//! and [`crate::message`]). Every result lies in an [`Index`], which in the kernel is map memory: the verifier keeps
//! no track of that, so its states do not multiply.

use self::names::{Name, known};
use crate::Reason;
use crate::repeat::{repeat, repeat_few, step};
use crate::text::{HIGHS, LOWER, Text, below, equal, first, head, literal};

/// How many header lines a message may have.
pub const MAX_LINES: u32 = 128;

/// The longest message the scanner takes: offsets are 16 bits.
pub const MAX_TEXT: u32 = 65_535;

/// Why a datagram is no SIP message.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
pub enum Error {
    /// The first line is neither a request line nor a status line (7.1, 7.2).
    StartLine = 1,
    /// The version is not SIP/2.0: a 505 where it can be answered (21.5.6).
    Version,
    /// A control character where none may be (25.1), a NUL for example; in a quoted string a
    /// backslash makes it legal.
    ControlCharacter,
    /// A line ends by LF alone (7.5 wants CR LF); others could read the message differently.
    BareLineFeed,
    /// A CR that no LF follows.
    BareCarriageReturn,
    /// The datagram ends before the empty line that ends the headers (7.5).
    Unterminated,
    /// A header line without a colon or with a name that is no token (7.3.1).
    HeaderName,
    /// More header lines than [`MAX_LINES`].
    TooManyHeaders,
    /// Longer than [`MAX_TEXT`].
    TooLong,
}

impl Error {
    /// What becomes of the datagram: without a start line it is dropped, since nobody could answer it; all else is looked
    /// at again by the daemon.
    #[inline(always)]
    pub const fn reason(self) -> Reason {
        match self {
            Self::StartLine => Reason::Junk,
            _ => Reason::Malformed,
        }
    }

    /// In words, as a reason phrase can say it.
    pub const fn text(self) -> &'static str {
        match self {
            Self::StartLine => "Bad Start Line",
            Self::Version => "Version Not Supported",
            Self::ControlCharacter => "Control Character in Header",
            Self::BareLineFeed => "Line Ends Without CR",
            Self::BareCarriageReturn => "CR Without LF",
            Self::Unterminated => "Headers Not Terminated",
            Self::HeaderName => "Bad Header Name",
            Self::TooManyHeaders => "Too Many Headers",
            Self::TooLong => "Message Too Large",
        }
    }
}

/// The headers that are told apart; all others are [`Kind::Other`].
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u8)]
#[allow(missing_docs, reason = "each is the header of its name")]
pub enum Kind {
    Other = 0,
    Via,
    From,
    To,
    CallId,
    CSeq,
    MaxForwards,
    Route,
    RecordRoute,
    Contact,
    Expires,
    ContentLength,
    Require,
    ProxyRequire,
    Authorization,
    ProxyAuthorization,
}

/// Length of the tables by kind.
pub const KINDS: usize = 16;

/// See [`Index::kinds`].
pub const REPEATED: u32 = 16;
/// See [`Index::kinds`].
pub const APART: u32 = 32;

impl Kind {
    /// All kinds in the order of their numbers.
    pub const ALL: [Self; KINDS] = [
        Self::Other,
        Self::Via,
        Self::From,
        Self::To,
        Self::CallId,
        Self::CSeq,
        Self::MaxForwards,
        Self::Route,
        Self::RecordRoute,
        Self::Contact,
        Self::Expires,
        Self::ContentLength,
        Self::Require,
        Self::ProxyRequire,
        Self::Authorization,
        Self::ProxyAuthorization,
    ];

    /// Its bit in [`Index::kinds`].
    #[inline(always)]
    pub const fn bit(self) -> u64 {
        1 << self as u32
    }
}

/// One header line.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C, align(8))]
pub struct Line {
    /// Where its name starts.
    pub start: u16,
    /// Where its value starts, past colon and spaces.
    pub value: u16,
    /// Where it ends: at the CR.
    pub end: u16,
    /// A [`Kind`].
    pub kind: u8,
    /// Which header line it is, counted from one.
    pub number: u8,
}

/// In [`Index::flags`]: a value goes on in another line (7.3.1).
pub const FOLDED: u32 = 1;

/// What a start line is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(u32)]
#[allow(missing_docs, reason = "each is the method of its name")]
pub enum Method {
    /// A status line.
    Response = 0,
    Invite,
    Ack,
    Bye,
    Cancel,
    Options,
    Register,
    Prack,
    Update,
    Info,
    Subscribe,
    Notify,
    Refer,
    Message,
    Publish,
    /// A request of a method not in this list.
    Extension,
}

impl Method {
    /// All in the order of their numbers.
    pub const ALL: [Self; 16] = [
        Self::Response,
        Self::Invite,
        Self::Ack,
        Self::Bye,
        Self::Cancel,
        Self::Options,
        Self::Register,
        Self::Prack,
        Self::Update,
        Self::Info,
        Self::Subscribe,
        Self::Notify,
        Self::Refer,
        Self::Message,
        Self::Publish,
        Self::Extension,
    ];
}

/// Where everything stands.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Index {
    /// A [`Method`].
    pub method: u32,
    /// Status code of a response, 0 of a request.
    pub status: u32,
    /// End of the method; of a status line: end of the version.
    pub method_end: u32,
    /// Request-URI: start; of a status line: start of the reason phrase.
    pub uri: u32,
    /// Request-URI: end; of a status line: end of the reason phrase.
    pub uri_end: u32,
    /// Where the first header starts.
    pub headers: u32,
    /// Where the body starts: past the empty line.
    pub body: u32,
    /// How many of `lines` count.
    pub count: u32,
    /// [`FOLDED`] or zero.
    pub flags: u32,
    /// Why the scan failed: an [`Error`], or 0.
    pub error: u32,
    /// Length of the text.
    pub len: u32,
    /// Of use to the scan alone: the start of the line being read.
    line: u32,
    /// A bit for each kind that is there, [`Kind::Other`] excepted; [`REPEATED`] bits higher, for each that
    /// has several lines; [`APART`] bits higher, for each whose lines do not all follow each other.
    pub kinds: u64,
    /// By kind: its first line. Only of those that `kinds` says are there.
    first: [Line; KINDS],
    /// By kind: the number of its last line. Only of those that `kinds` says are repeated.
    last: [u8; KINDS],
    /// The header lines in their order. Entries past `count` are what an earlier scan left.
    pub lines: [Line; MAX_LINES as usize],
}

impl Default for Index {
    fn default() -> Self {
        Self::new()
    }
}

impl Index {
    /// An empty one.
    pub const fn new() -> Self {
        Self {
            method: 0,
            status: 0,
            method_end: 0,
            uri: 0,
            uri_end: 0,
            headers: 0,
            body: 0,
            count: 0,
            flags: 0,
            error: 0,
            len: 0,
            line: 0,
            kinds: 0,
            first: [Line { start: 0, value: 0, end: 0, kind: 0, number: 0 }; KINDS],
            last: [0; KINDS],
            lines: [Line { start: 0, value: 0, end: 0, kind: 0, number: 0 }; MAX_LINES as usize],
        }
    }

    /// The lines that count.
    pub fn lines(&self) -> &[Line] {
        self.lines.get(..self.count as usize).unwrap_or(&self.lines)
    }

    /// Whether there is a line of a kind.
    #[inline(always)]
    pub fn has(&self, kind: Kind) -> bool {
        self.kinds & kind.bit() != 0
    }

    /// Whether there are several lines of a kind.
    #[inline(always)]
    pub fn repeated(&self, kind: Kind) -> bool {
        self.kinds >> REPEATED & kind.bit() != 0
    }

    /// Whether lines of other kinds stand between the lines of a kind.
    #[inline(always)]
    pub fn apart(&self, kind: Kind) -> bool {
        self.kinds >> APART & kind.bit() != 0
    }

    /// The first line of a kind.
    #[inline(always)]
    pub fn first(&self, kind: Kind) -> Option<Line> {
        self.has(kind).then(|| self.first[kind as usize])
    }

    /// The last line of a kind.
    #[inline(always)]
    pub fn last(&self, kind: Kind) -> Option<Line> {
        match self.repeated(kind) {
            true => Some(self.line((self.last[kind as usize] as u32).wrapping_sub(1))),
            false => self.first(kind),
        }
    }

    /// The line at a place, counted from zero and masked into the table.
    #[inline(always)]
    pub fn line(&self, at: u32) -> Line {
        // SAFETY: the index is below MAX_LINES, a power of two, so it is in the array.
        unsafe { *self.lines.as_ptr().add(confine::<{ MAX_LINES - 1 }>(at) as usize) }
    }

    #[inline(always)]
    fn reset(&mut self, len: u32) {
        self.method = Method::Response as u32;
        self.status = 0;
        self.count = 0;
        self.flags = 0;
        self.error = 0;
        self.len = len;
        self.body = 0;
        self.kinds = 0;
    }
}

/// `value & MASK`, in a way that the BPF verifier sees and the compiler cannot remove.
#[inline(always)]
pub fn confine<const MASK: u32>(value: u32) -> u32 {
    #[cfg(target_arch = "bpf")]
    {
        let mut value = value;
        // SAFETY: arithmetic on a register.
        unsafe {
            core::arch::asm!("{0} &= {mask}", inout(wreg) value, mask = const MASK,
                options(pure, nomem, nostack));
        }
        value
    }
    #[cfg(not(target_arch = "bpf"))]
    {
        value & MASK
    }
}

/// Reads a message into `index`.
#[inline(always)]
pub fn scan<T: Text>(t: T, index: &mut Index) -> Result<(), Error> {
    index.reset(t.len());
    if t.len() > MAX_TEXT {
        return fail(index, Error::TooLong);
    }
    start_line(t, index)?;
    let mut state = (t, &mut *index);
    repeat(MAX_LINES * 8, &mut state, |(t, index)| header_line(*t, index));
    if index.error != 0 {
        return Err(error(index.error));
    }
    if index.body == 0 {
        return fail(index, Error::TooManyHeaders);
    }
    Ok(())
}

#[inline(always)]
fn fail<R>(index: &mut Index, error: Error) -> Result<R, Error> {
    index.error = error as u32;
    Err(error)
}

fn error(number: u32) -> Error {
    match number {
        1 => Error::StartLine,
        2 => Error::Version,
        3 => Error::ControlCharacter,
        4 => Error::BareLineFeed,
        5 => Error::BareCarriageReturn,
        6 => Error::Unterminated,
        7 => Error::HeaderName,
        8 => Error::TooManyHeaders,
        _ => Error::TooLong,
    }
}

const CRLF: u32 = u16::from_le_bytes(*b"\r\n") as u32;

/// What a line that does not end by CR LF at `at` is guilty of.
#[inline(always)]
fn control<T: Text>(t: T, at: u32) -> Error {
    let byte = t.byte(at);
    if at >= t.len() || (byte == b'\r' && at + 1 >= t.len()) {
        Error::Unterminated
    } else if byte == b'\n' {
        Error::BareLineFeed
    } else if byte == b'\r' {
        Error::BareCarriageReturn
    } else {
        Error::ControlCharacter
    }
}

/// The first byte below space at or behind `at`: the CR of a line's end if all is well.
#[inline(always)]
fn find_control<T: Text>(t: T, at: u32) -> u32 {
    let mut state = (t, at);
    repeat_few::<2, _, _>(MAX_TEXT / 32 + 2, &mut state, |(t, at)| {
        // Four words a round, looked at together; which byte it is comes after.
        if t.borrows_four(*at) & HIGHS == 0 {
            step(at, 32);
            return true;
        }
        // Written out, for the compiler computes at once for all four words what it may.
        for word in t.four(*at) {
            let marks = below(word, b' ');
            if marks != 0 {
                step(at, first(marks));
                return false;
            }
            step(at, 8);
        }
        true
    });
    t.fresh(state.1)
}

/// How a status line starts, once its letters are small.
const STATUS_LINE: u64 = literal(b"sip/2.0 ");

/// What makes the letters of [`STATUS_LINE`] small, and nothing else.
const STATUS_LETTERS: u64 = literal(b"   ");

/// How a request line ends, once its letters are small.
const VERSION: u64 = literal(b" sip/2.0");

/// What makes the letters of [`VERSION`] small.
const VERSION_LETTERS: u64 = literal(b"\0   ");

/// `method SP uri SP SIP/2.0` or `SIP/2.0 SP code SP phrase` (7.1, 7.2).
#[inline(always)]
fn start_line<T: Text>(t: T, index: &mut Index) -> Result<(), Error> {
    let word = t.word(0);
    // As nearly every request starts: each part ends by the first byte that cannot be in it.
    let marks = below(word, 0x21);
    if marks != 0 && word | STATUS_LETTERS != STATUS_LINE {
        let method_end = first(marks);
        let uri = method_end + 1;
        // In rare cases not a blank, and then not the version either.
        let uri_end = t.fresh(t.near_blank(uri));
        let right = t.byte(method_end) == b' '
            && method_end != 0
            && uri_end > uri
            && t.word(uri_end) | VERSION_LETTERS == VERSION
            && t.short(uri_end, 8) == CRLF;
        if right {
            index.headers = uri_end + 10;
            index.line = uri_end + 10;
            index.method_end = method_end;
            index.uri = uri;
            index.uri_end = uri_end;
            index.method = short_method(head(word, method_end)) as u32;
            return Ok(());
        }
    }
    other_start_line(t, word, index)
}

/// The start line of a response, of a method longer than seven bytes, or one that is wrong.
#[inline(always)]
fn other_start_line<T: Text>(t: T, word: u64, index: &mut Index) -> Result<(), Error> {
    let mut end = t.fresh(t.near_control(0));
    if t.short(end, 0) != CRLF {
        end = find_control(t, t.fresh(0));
        if t.short(end, 0) != CRLF && t.more() {
            end = find_control(t, t.fresh(0));
        }
    }
    if t.short(end, 0) != CRLF {
        // A tab is a control character here: no place in a start line allows one.
        return fail(index, control(t, end));
    }
    index.headers = end + 2;
    index.line = end + 2;
    if word | STATUS_LETTERS == STATUS_LINE {
        // Status-Line = SIP-Version SP Status-Code SP Reason-Phrase; the phrase may be empty.
        let (code, n) = crate::text::digits(t.word(8));
        if n != 3 || t.byte(11) != b' ' || !(100..700).contains(&code) {
            return fail(index, Error::StartLine);
        }
        index.status = code;
        index.method_end = 7;
        index.uri = 12;
        index.uri_end = end;
        return Ok(());
    }
    // The version's eight bytes with the space before them.
    if end < 12 {
        return fail(index, Error::StartLine);
    }
    let method_end = find_byte(t, 0, end, b' ');
    let uri = method_end + 1;
    // The last eight bytes are the version with the space before it, and no other space may stand
    // in between: so the first one behind the method tells.
    let uri_end = find_byte(t, uri, end, b' ');
    if method_end == 0 || uri_end <= uri || uri_end >= end {
        return fail(index, Error::StartLine);
    }
    if uri_end + 8 != end || t.word(uri_end) | VERSION_LETTERS != VERSION {
        return fail(index, other_version(t, uri_end + 1, end));
    }
    index.method_end = method_end;
    index.uri = uri;
    index.uri_end = uri_end;
    index.method = method(word, t, method_end) as u32;
    Ok(())
}

/// What a request line is guilty of that does not end by `SIP/2.0`: `at` is behind the second space.
#[inline(always)]
fn other_version<T: Text>(t: T, at: u32, end: u32) -> Error {
    // A third space is one in the Request-URI.
    let other =
        head(t.word(at) | LOWER, 4) == literal(b"sip/") && find_byte(t, at, end, b' ') == end;
    if other { Error::Version } else { Error::StartLine }
}

/// Methods are case-sensitive (7.1).
#[inline(always)]
fn method<T: Text>(word: u64, t: T, len: u32) -> Method {
    match (len, t.byte(8)) {
        (0..8, _) => short_method(head(word, len)),
        (8, _) if word == literal(b"REGISTER") => Method::Register,
        (9, b'E') if word == literal(b"SUBSCRIB") => Method::Subscribe,
        _ => Method::Extension,
    }
}

/// A method of at most seven bytes, by its hash.
#[inline(always)]
fn short_method(name: u64) -> Method {
    let at = name.wrapping_mul(METHODS_HASH) >> (64 - METHODS_BITS);
    // SAFETY: METHODS_BITS bits count the entries.
    let (entry, method) = unsafe { *METHODS.as_ptr().add(at as usize) };
    if entry == name { method } else { Method::Extension }
}

const METHODS_BITS: u32 = 5;

/// Gives each name in [`METHODS`] an entry of its own; found by trying.
const METHODS_HASH: u64 = 0xf813_0c42_3773_0edf;

/// Methods of at most seven bytes by their hash.
static METHODS: [(u64, Method); 1 << METHODS_BITS] = methods();

const fn methods() -> [(u64, Method); 1 << METHODS_BITS] {
    const TEXTS: [(&[u8], Method); 12] = [
        (b"INVITE", Method::Invite),
        (b"ACK", Method::Ack),
        (b"BYE", Method::Bye),
        (b"CANCEL", Method::Cancel),
        (b"OPTIONS", Method::Options),
        (b"PRACK", Method::Prack),
        (b"UPDATE", Method::Update),
        (b"INFO", Method::Info),
        (b"NOTIFY", Method::Notify),
        (b"REFER", Method::Refer),
        (b"MESSAGE", Method::Message),
        (b"PUBLISH", Method::Publish),
    ];
    let mut methods = [(0, Method::Extension); 1 << METHODS_BITS];
    let mut i = 0;
    while i < TEXTS.len() {
        let (text, method) = TEXTS[i];
        let name = literal(text);
        let at = (name.wrapping_mul(METHODS_HASH) >> (64 - METHODS_BITS)) as usize;
        assert!(methods[at].0 == 0, "two methods have one hash");
        methods[at] = (name, method);
        i += 1;
    }
    methods
}

/// One header line; false when there are no more.
#[inline(always)]
fn header_line<T: Text>(t: T, index: &mut Index) -> bool {
    let start = index.line;
    // Or the verifier would walk what follows once for each word that a line may end in.
    let mut end = t.fresh(t.near_control(start));
    if t.short(end, 0) != CRLF {
        end = find_control(t, start);
        if t.short(end, 0) != CRLF {
            if t.more() {
                // Once more, with what stood as zeros.
                index.line = start;
                return true;
            }
            end = find_end(t, start, end);
            if t.short(end, 0) != CRLF {
                index.error = control(t, end) as u32;
                return false;
            }
        }
    }
    if end == start {
        index.body = end + 2;
        return false;
    }
    index.line = end + 2;
    let count = index.count;
    if count >= MAX_LINES {
        index.error = Error::TooManyHeaders as u32;
        return false;
    }
    let [word, more] = t.pair(start);
    if let Some(name) = known(word, more) {
        let two = t.short(start, name.len);
        // One space is what nearly everybody writes.
        if two & 0xff == 0x20 && two > 0x20ff {
            // The three places are sums of the first with what the name says.
            let line = (start as u64 * 0x1_0001_0001)
                .wrapping_add(name.line)
                .wrapping_add((end.wrapping_sub(start) as u64) << 32);
            note(index, count, line, name.bit, name.place);
            return true;
        }
        let value = skip_blank(t, start + name.len as u32);
        note(index, count, line(start, value, end, name.kind()), name.bit, name.place);
        return true;
    }
    if word as u8 == b' ' || word as u8 == b'\t' {
        return continuation(index, count, end);
    }
    let Some((kind, colon)) = name(t, word, start, end) else {
        index.error = Error::HeaderName as u32;
        return false;
    };
    let value = skip_blank(t, colon + 1);
    let kind = confine::<{ KINDS as u32 - 1 }>(kind);
    let bit = (1u64 << kind) & !1;
    note(index, count, line(start, value, end, kind), bit, kind as u8 * 8);
    true
}

/// A [`Line`] but for its number.
#[inline(always)]
fn line(start: u32, value: u32, end: u32, kind: u32) -> u64 {
    start as u64 | (value as u64) << 16 | (end as u64) << 32 | (kind as u64) << 48
}

/// Keeps a line, and which are the first and the last of its kind. `bit` is the kind's or zero, `place` is that
/// of its line in [`Index::first`], in bytes.
#[inline(always)]
fn note(index: &mut Index, count: u32, line: u64, bit: u64, place: u8) {
    let number = count + 1;
    index.count = number;
    // A line is these eight bytes; one store in place of five.
    let line = (line | (number as u64) << 56).to_le();
    // SAFETY: the place is below MAX_LINES, a power of two, so it is in the array.
    unsafe {
        let at = confine::<{ MAX_LINES - 1 }>(count) as usize;
        index.lines.as_mut_ptr().add(at).cast::<u64>().write(line);
    }
    let kinds = index.kinds;
    if kinds & bit != 0 {
        return note_repeated(index, kinds, bit, place, number);
    }
    index.kinds = kinds | bit;
    let place = confine::<{ 8 * (KINDS as u32 - 1) }>(place as u32) as usize;
    // SAFETY: masked to a multiple of a line's length below that of the table. Kinds that are not told apart get
    // the place of the first, which nobody reads.
    unsafe { index.first.as_mut_ptr().byte_add(place).cast::<u64>().write(line) };
}

/// Another line of a kind.
#[inline(always)]
fn note_repeated(index: &mut Index, kinds: u64, bit: u64, place: u8, number: u32) {
    let kind = confine::<{ KINDS as u32 - 1 }>(place as u32 >> 3) as usize;
    // SAFETY: masked below KINDS, a power of two, the length of both tables.
    let (first, last) =
        unsafe { (&*index.first.as_ptr().add(kind), &mut *index.last.as_mut_ptr().add(kind)) };
    let before = if kinds >> REPEATED & bit == 0 { first.number } else { *last };
    let apart = if before as u32 + 1 != number { bit << APART } else { 0 };
    index.kinds = kinds | bit << REPEATED | apart;
    *last = number as u8;
}

/// Where a line ends that has a control character at `at`: there, unless it may have it.
#[inline(always)]
fn find_end<T: Text>(t: T, start: u32, at: u32) -> u32 {
    let mut state = (t, start, t.fresh(at));
    repeat(MAX_TEXT, &mut state, |(t, start, at)| {
        if t.short(*at, 0) == CRLF {
            return false;
        }
        let byte = t.byte(*at);
        // Legal white space (25.1, LWS), or a control character behind a backslash: a
        // quoted-pair (25.1), which may be any but CR and LF. The line goes on.
        let paired = byte != b'\r' && byte != b'\n' && *at > *start && t.byte(*at - 1) == b'\\';
        if !(byte == b'\t' || paired) || *at >= t.len() {
            return false;
        }
        step(at, 1);
        *at = find_control(*t, t.fresh(*at));
        true
    });
    t.fresh(state.2)
}

/// A line that starts with white space goes on with the header before it (7.3.1).
#[inline(always)]
fn continuation(index: &mut Index, count: u32, end: u32) -> bool {
    if count == 0 {
        index.error = Error::HeaderName as u32;
        return false;
    }
    index.flags |= FOLDED;
    // SAFETY: the index is below MAX_LINES, a power of two, so it is in the array.
    let line = unsafe {
        &mut *index.lines.as_mut_ptr().add(confine::<{ MAX_LINES - 1 }>(count - 1) as usize)
    };
    line.end = end as u16;
    // SAFETY: masked below KINDS, a power of two, the length of the table.
    let first = unsafe {
        &mut *index
            .first
            .as_mut_ptr()
            .add(confine::<{ KINDS as u32 - 1 }>(line.kind as u32) as usize)
    };
    if first.number as u32 == count {
        first.end = end as u16;
    }
    true
}

const PROXY_RE: u64 = literal(b"proxy-re");
const PROXY_AU: u64 = literal(b"proxy-au");
const AUTHORIZ: u64 = literal(b"authoriz");

/// Which header it is, and where its colon stands. Names are tokens, in any case, maybe with white
/// space before the colon (25.1, HCOLON).
#[inline(always)]
fn name<T: Text>(t: T, word: u64, start: u32, end: u32) -> Option<(u32, u32)> {
    let marks = equal(word, b':');
    let colon = if marks != 0 { start + first(marks) } else { find_byte(t, start + 8, end, b':') };
    if colon >= end || colon == start {
        return None;
    }
    let mut name_end = colon;
    if t.byte(colon - 1) <= b' ' {
        let mut state = (t, t.fresh(colon));
        repeat(MAX_TEXT, &mut state, |(t, at)| {
            // The line starts with no blank, so this stops inside it.
            let blank = t.byte(*at - 1) <= b' ';
            *at -= blank as u32;
            blank
        });
        name_end = t.fresh(state.1);
    }
    Some((kind(t, word | LOWER, start, name_end - start)?, colon))
}

/// The header of a name `len` bytes long; none when a blank stands in the name.
#[inline(always)]
fn kind<T: Text>(t: T, word: u64, start: u32, len: u32) -> Option<u32> {
    const COLON: u64 = b':' as u64;
    if len < 8 {
        let name = head(word, len);
        // White space inside a name: what stands before it is no header's name.
        if below(name | !head(u64::MAX, len), 0x21) != 0 {
            return None;
        }
        let found = known(name | COLON << (8 * len), 0);
        return Some(found.map_or(Kind::Other as u32, Name::kind));
    }
    if below(word, 0x21) != 0 {
        return None;
    }
    let more = t.word(start + 8) | LOWER;
    let rest = len - 8;
    if rest > 0
        && rest < 8
        && let Some(found) = known(word, head(more, rest) | COLON << (8 * rest))
    {
        return Some(found.kind());
    }
    let is = |want: &'static [u8]| rest == want.len() as u32 && head(more, rest) == literal(want);
    let kind = match word {
        PROXY_RE if is(b"quire") => Kind::ProxyRequire,
        AUTHORIZ if is(b"ation") => Kind::Authorization,
        PROXY_AU
            if rest == 11
                && more == literal(b"thorizat")
                && head(t.word(start + 16) | LOWER, 3) == literal(b"ion") =>
        {
            Kind::ProxyAuthorization
        }
        _ => Kind::Other,
    };
    if matches!(kind, Kind::Other) && find_byte(t, start + 8, start + len, b' ') < start + len {
        return None;
    }
    Some(kind as u32)
}

/// The first byte at or behind `at` that is neither space nor tab.
#[inline(always)]
pub fn skip_blank<T: Text>(t: T, at: u32) -> u32 {
    // One space is what nearly everybody writes.
    let word = t.word(at);
    if word as u8 == b' ' && (word >> 8) as u8 > b' ' {
        return at + 1;
    }
    let mut state = (t, t.fresh(at));
    repeat(MAX_TEXT, &mut state, |(t, at)| {
        let byte = t.byte(*at);
        let blank = byte == b' ' || byte == b'\t';
        step(at, blank as u32);
        blank
    });
    t.fresh(state.1)
}

/// The first `byte` at or behind `at`, or `end` when there is none before it.
#[inline(always)]
pub fn find_byte<T: Text>(t: T, at: u32, end: u32, byte: u8) -> u32 {
    let mut state = (t, t.fresh(at), end, byte);
    repeat(MAX_TEXT / 8 + 2, &mut state, |(t, at, end, byte)| {
        if *at >= *end {
            *at = *end;
            return false;
        }
        let marks = equal(t.word(*at), *byte);
        if marks == 0 {
            step(at, 8);
            return true;
        }
        step(at, first(marks));
        false
    });
    let at = t.fresh(state.1);
    if at < end { at } else { end }
}

mod names;

#[cfg(test)]
mod tests;
