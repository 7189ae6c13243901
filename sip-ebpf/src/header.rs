//! The quick reading of header values: as much as routing needs, in the forms that nearly everybody
//! writes.
//!
//! Each reader either is sure or says [`Odd`]; then the message goes the long way
//! ([`crate::message`]), where everything that RFC 3261 allows is read. What is not odd is read
//! alike by both.

use crate::address::Address;
use crate::repeat::{repeat, step};
use crate::scan::{Index, Kind, Line, REPEATED, find_byte, skip_blank};
use crate::text::{LOWER, Text, digits, equal, first, head, literal, short_digits};

/// Not in the form that the quick reading knows; it may be right all the same.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Odd;

/// A piece of the text; zero and zero is none.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Span {
    /// Where it starts.
    pub at: u32,
    /// Where it ends.
    pub end: u32,
}

impl Span {
    /// Whether there is nothing.
    #[inline(always)]
    pub fn is_empty(self) -> bool {
        self.at >= self.end
    }
}

/// One Via (RFC 3261 20.42): `SIP/2.0/UDP sent-by;params`.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Via {
    /// Where the value starts.
    pub at: u32,
    /// Where it ends: at a comma or at the end of the line.
    pub end: u32,
    /// Host and port of the sender.
    pub sent_by: Span,
    /// Value of `branch`.
    pub branch: Span,
    /// Value of `received` (18.2.1).
    pub received: Span,
    /// Value of `rport` (RFC 3581); empty, but not at zero, for an `rport` without a value.
    pub rport: Span,
    /// Whether it has `maddr`, which sends the response elsewhere (18.2.2).
    pub maddr: u32,
}

impl Via {
    /// Nothing but a start. One by one and volatile, or BPF gets a call to zero it byte by byte.
    #[inline(always)]
    fn reset(&mut self, at: u32) {
        self.at = at;
        self.maddr = 0;
        for span in [&mut self.branch, &mut self.received, &mut self.rport] {
            // SAFETY: a valid reference; zero is a span.
            unsafe { (&raw mut *span).write_volatile(Span { at: 0, end: 0 }) };
        }
    }
}

/// Reads the Via that starts at `at` in a line that ends at `line_end`.
#[inline(always)]
pub fn via<T: Text>(t: T, at: u32, line_end: u32, via: &mut Via) -> Result<(), Odd> {
    if t.word(at) | LOWER != literal(b"sip/2.0/")
        || head(t.word(at + 8) | LOWER, 4) != literal(b"udp ")
    {
        return Err(Odd);
    }
    via.reset(at);
    let sent_by = at + 12;
    let end = find_delimiter(t, sent_by, line_end);
    via.sent_by = Span { at: sent_by, end };
    if sent_by == end {
        return Err(Odd);
    }
    via.end = end;
    let mut state = (t, &mut *via, line_end);
    repeat(64, &mut state, |(t, via, line_end)| via_param(*t, via, *line_end));
    let via = state.1;
    let end = via.end;
    // A quote or white space between parameters: for the long way.
    if end == line_end || t.byte(end) == b',' { Ok(()) } else { Err(Odd) }
}

#[inline(always)]
fn via_param<T: Text>(t: T, via: &mut Via, line_end: u32) -> bool {
    let at = via.end;
    if at >= line_end || t.byte(at) != b';' {
        return false;
    }
    let name = at + 1;
    let end = find_delimiter(t, name, line_end);
    let word = t.word(name) | LOWER;
    // A parameter that stands there twice, or without the value that it needs, ends the reading at
    // its semicolon, which is odd.
    if head(word, 7) == literal(b"branch=") {
        if via.branch.at != 0 || end == name + 7 {
            return false;
        }
        via.branch = Span { at: name + 7, end };
    } else if head(word, 5) == literal(b"rport") {
        let value = t.byte(name + 5) == b'=' && end != name + 5;
        if value || end == name + 5 {
            if via.rport.at != 0 || end == name + 6 {
                return false;
            }
            via.rport = Span { at: name + 5 + value as u32, end };
        }
    } else if word == literal(b"received") && t.byte(name + 8) == b'=' {
        if via.received.at != 0 || end == name + 9 {
            return false;
        }
        via.received = Span { at: name + 9, end };
    } else if head(word, 6) == literal(b"maddr=") {
        via.maddr = 1;
    }
    via.end = end;
    true
}

/// The first `;`, `,`, quote, white space or control character at or behind `at`, or `end`.
#[inline(always)]
fn find_delimiter<T: Text>(t: T, at: u32, end: u32) -> u32 {
    let near = t.fresh(t.near_delimiter(at));
    if near >= end {
        return end;
    }
    if t.byte(near) == b';' { near } else { find_rare_delimiter(t, near, end) }
}

/// As [`find_delimiter`], where it is no semicolon or far.
#[inline(always)]
fn find_rare_delimiter<T: Text>(t: T, at: u32, end: u32) -> u32 {
    let mut state = (t, t.fresh(at), end);
    repeat(crate::scan::MAX_TEXT, &mut state, |(t, at, end)| {
        if *at >= *end {
            return false;
        }
        let byte = t.byte(*at);
        if byte == b';' || byte == b',' || byte == b'"' || byte <= b' ' {
            return false;
        }
        step(at, 1);
        *at = t.fresh(t.near_delimiter(*at));
        true
    });
    let at = t.fresh(state.1);
    if at < end { at } else { end }
}

/// The tag of a From or To (20.20, 20.39); an empty span if there is none.
#[inline(always)]
pub fn tag<T: Text>(t: T, line: Line, tag: &mut Span) -> Result<(), Odd> {
    *tag = Span::default();
    let (value, end) = (line.value as u32, line.end as u32);
    if value >= end {
        return Err(Odd);
    }
    let mut at = value;
    if t.byte(at) == b'"' {
        // A display name in quotes stands first, and brackets must follow (20.10).
        at = skip_blank(t, skip_quoted(t, at + 1, end));
        if at >= end || t.byte(at) != b'<' {
            return Err(Odd);
        }
    }
    // The bracket that closes the URI ends the line: no parameters. No token has one.
    if t.byte(end - 1) == b'>' {
        return Ok(());
    }
    let close = find_byte(t, at, end, b'>');
    // addr-spec without brackets: what follows a semicolon are header parameters (20).
    let params = if close < end { close + 1 } else { find_delimiter(t, at, end) };
    if close >= end && find_byte(t, at, end, b'<') < end {
        // A bracket that nothing closes.
        return Err(Odd);
    }
    let mut state = Params { t, at: t.fresh(params), end, odd: false, tag: &mut *tag };
    repeat(64, &mut state, |s| {
        if s.at >= s.end {
            return false;
        }
        let name = s.at + 1;
        if s.t.byte(s.at) != b';' {
            s.odd = true;
            return false;
        }
        let next = find_delimiter(s.t, name, s.end);
        if head(s.t.word(name) | LOWER, 4) == literal(b"tag=") {
            s.odd |= s.tag.at != 0 || next <= name + 4;
            *s.tag = Span { at: name + 4, end: next };
        }
        s.at = next;
        true
    });
    if state.odd { Err(Odd) } else { Ok(()) }
}

struct Params<'a, T> {
    t: T,
    at: u32,
    end: u32,
    odd: bool,
    tag: &'a mut Span,
}

/// The first `a` or `b` at or behind `at`, or `end`.
#[inline(always)]
fn find_either<T: Text>(t: T, at: u32, end: u32, a: u8, b: u8) -> u32 {
    let mut state = (t, t.fresh(at), end, a, b);
    repeat(crate::scan::MAX_TEXT, &mut state, |(t, at, end, a, b)| {
        let word = t.word(*at);
        let marks = equal(word, *a) | equal(word, *b);
        if marks == 0 {
            step(at, 8);
            return *at < *end;
        }
        step(at, first(marks));
        false
    });
    let at = t.fresh(state.1);
    if at < end { at } else { end }
}

/// Past the quote that closes a quoted string (25.1); `at` is past the one that opens it.
#[inline(always)]
fn skip_quoted<T: Text>(t: T, at: u32, end: u32) -> u32 {
    let mut state = (t, t.fresh(at), end);
    repeat(crate::scan::MAX_TEXT, &mut state, |(t, at, end)| {
        *at = find_either(*t, *at, *end, b'"', b'\\');
        let escaped = *at < *end && t.byte(*at) == b'\\';
        step(at, 1 + escaped as u32);
        escaped
    });
    t.fresh(state.1)
}

/// A number alone in its value, of at most eight digits, such as Max-Forwards or Content-Length.
#[inline(always)]
pub fn number<T: Text>(t: T, line: Line) -> Result<u32, Odd> {
    let at = line.value as u32;
    let (word, len) = (t.word(at), (line.end as u32).wrapping_sub(at));
    if len.wrapping_sub(1) < 4 {
        let (all, value) = short_digits(word, len);
        return if all { Ok(value) } else { Err(Odd) };
    }
    let (value, n) = digits(word);
    if n == 0 || n != len {
        return Err(Odd);
    }
    Ok(value)
}

/// Whether the CSeq is a number below 2^31 and the method of the request line (8.1.1.5).
#[inline(always)]
pub fn cseq_fits<T: Text>(t: T, line: Line, method_len: u32) -> Result<(), Odd> {
    let at = line.value as u32;
    // As nearly everybody writes it: at most four digits, a space, a method of at most eight bytes.
    let method = (line.end as u32).wrapping_sub(method_len);
    let n = method.wrapping_sub(at).wrapping_sub(1);
    if n.wrapping_sub(1) < 4 && method_len.wrapping_sub(1) < 8 {
        let (all, _) = short_digits(t.word(at), n);
        let differs = (t.word(method) ^ t.word(0)) << ((64 - method_len * 8) & 63);
        if all && t.byte(at + n) == b' ' && differs == 0 {
            return Ok(());
        }
    }
    let (high, n) = digits(t.word(at));
    let (low, m) = if n == 8 { digits(t.word(at + 8)) } else { (0, 0) };
    // Ten digits at most: more are beyond 2^31, whatever they are.
    let scale = match m {
        0 => 1,
        1 => 10,
        2 => 100,
        _ => return Err(Odd),
    };
    if n == 0 || high as u64 * scale + low as u64 >= 1 << 31 {
        return Err(Odd);
    }
    let blank = at + n + m;
    let method = skip_blank(t, blank);
    let same = method > blank
        && method + method_len == line.end as u32
        && method_len <= 16
        && head(t.word(method), min8(method_len)) == head(t.word(0), min8(method_len))
        && (method_len <= 8
            || head(t.word(method + 8), method_len - 8) == head(t.word(8), method_len - 8));
    if same { Ok(()) } else { Err(Odd) }
}

#[inline(always)]
fn min8(n: u32) -> u32 {
    if n < 8 { n } else { 8 }
}

/// A host and port that is an address: `10.0.0.1` or `10.0.0.1:5060`, ending at `end`. The port is a number beside the
/// address, 5060 if there is none.
#[inline(always)]
pub fn host_port<T: Text, A: Address>(t: T, at: u32, end: u32) -> Result<(A, u32), Odd> {
    let (host, at) = A::read_host(t, at).ok_or(Odd)?;
    if at == end {
        return Ok((host, 5060));
    }
    if at > end || t.byte(at) != b':' {
        return Err(Odd);
    }
    Ok((host, port(t, Span { at: at + 1, end })?))
}

/// A port number, alone in its span.
#[inline(always)]
pub fn port<T: Text>(t: T, span: Span) -> Result<u32, Odd> {
    let (word, len) = (t.word(span.at), span.end.wrapping_sub(span.at));
    let (all, value) = if len.wrapping_sub(1) < 4 {
        short_digits(word, len)
    } else {
        let (value, n) = digits(word);
        (n == 5 && n == len, value)
    };
    if !all || value == 0 || value > 65_535 {
        return Err(Odd);
    }
    Ok(value)
}

/// Whether the headers that every request must have stand there, once each (8.1.1).
#[inline(always)]
pub fn once_each(index: &Index) -> Result<(), Odd> {
    const MUST: u64 = Kind::From.bit() | Kind::To.bit() | Kind::CallId.bit() | Kind::CSeq.bit();
    const ONCE: u64 = MUST | Kind::MaxForwards.bit() | Kind::ContentLength.bit();
    let fits = index.kinds & (MUST | ONCE << REPEATED) == MUST && index.flags == 0;
    if fits { Ok(()) } else { Err(Odd) }
}

/// Whether the Content-Length, if there is one, is the body's (18.3).
#[inline(always)]
pub fn length_fits<T: Text>(t: T, index: &Index) -> Result<(), Odd> {
    match index.first(Kind::ContentLength) {
        Some(line) if number(t, line)? != index.len - index.body => Err(Odd),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests;
