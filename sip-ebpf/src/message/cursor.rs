//! Reading the value of one header from left to right, by the rules of RFC 3261 25.1.

use super::error::What;
use crate::header::Span;

/// A place in a value. Positions are those of the whole message.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cursor<'a> {
    text: &'a [u8],
    at: usize,
    end: usize,
}

impl<'a> Cursor<'a> {
    /// From `at` to `end` of `text`; both are cut to what there is.
    pub(super) fn new(text: &'a [u8], at: usize, end: usize) -> Self {
        let end = end.min(text.len());
        let at = at.min(end);
        Self { text, at, end }
    }

    pub(super) fn at(&self) -> usize {
        self.at
    }

    pub(super) fn end(&self) -> usize {
        self.end
    }

    pub(super) fn at_end(&self) -> bool {
        self.at >= self.end
    }

    pub(super) fn peek(&self) -> Option<u8> {
        if self.at_end() {
            return None;
        }
        self.text.get(self.at).copied()
    }

    /// Past `byte`, if it is the next one.
    pub(super) fn eat(&mut self, byte: u8) -> bool {
        let there = self.peek() == Some(byte);
        self.at += there as usize;
        there
    }

    /// Past `byte` and the white space around it, if it is the next one (25.1: SLASH, EQUAL, SEMI,
    /// COMMA, COLON).
    pub(super) fn separator(&mut self, byte: u8) -> bool {
        let before = *self;
        self.blanks();
        if self.eat(byte) {
            self.blanks();
            return true;
        }
        *self = before;
        false
    }

    /// Past white space; says whether there was any.
    pub(super) fn blanks(&mut self) -> bool {
        !self.take(|byte| byte == b' ' || byte == b'\t').is_empty()
    }

    /// The bytes from here for which `belongs` holds.
    pub(super) fn take(&mut self, belongs: impl Fn(u8) -> bool) -> &'a [u8] {
        let rest = self.rest();
        let length = rest.iter().position(|byte| !belongs(*byte)).unwrap_or(rest.len());
        self.at += length;
        rest.get(..length).unwrap_or_default()
    }

    /// What stands between `start` and here.
    pub(super) fn since(&self, start: usize) -> &'a [u8] {
        self.text.get(start..self.at).unwrap_or_default()
    }

    /// A token (25.1).
    pub(super) fn token(&mut self) -> Result<&'a str, What> {
        let token = self.text(TOKEN);
        if token.is_empty() {
            return Err(if self.at_end() { What::Empty } else { What::Syntax });
        }
        Ok(token)
    }

    /// The bytes of some classes from here.
    pub(super) fn text(&mut self, classes: u8) -> &'a str {
        let bytes = self.take(|byte| is(byte, classes));
        // SAFETY: all classes are of bytes below 0x80, each of which is a character.
        unsafe { core::str::from_utf8_unchecked(bytes) }
    }

    /// A quoted string (25.1) without its quotes, escapes as they stand there.
    pub(super) fn quoted(&mut self) -> Result<&'a [u8], What> {
        if !self.eat(b'"') {
            return Err(What::Quote);
        }
        let start = self.at;
        loop {
            match self.peek() {
                None => return Err(What::Quote),
                Some(b'"') => break,
                Some(b'\\') => {
                    // quoted-pair: any byte below 0x80 but CR and LF, which the scan refuses.
                    self.at += 1;
                    if self.peek().is_none_or(|byte| byte >= 0x80) {
                        return Err(What::Quote);
                    }
                    self.at += 1;
                }
                // DEL is no qdtext; other control characters the scan refuses.
                Some(0x7f) => return Err(What::Syntax),
                Some(_) => self.at += 1,
            }
        }
        let inner = self.since(start);
        self.at += 1;
        if core::str::from_utf8(inner).is_err() {
            return Err(What::Syntax);
        }
        Ok(inner)
    }

    /// A number of decimal digits, at most `max`.
    pub(super) fn number(&mut self, max: u32) -> Result<u32, What> {
        let digits = self.take(|byte| byte.is_ascii_digit());
        number(digits, max)
    }

    /// A part of the same message.
    pub(super) fn part(&self, span: Span) -> Cursor<'a> {
        Cursor::new(self.text, span.at as usize, span.end as usize)
    }

    /// From here up to `stop`.
    pub(super) fn up_to(&mut self, stop: usize) -> Cursor<'a> {
        let stop = stop.clamp(self.at, self.end);
        let part = Cursor::new(self.text, self.at, stop);
        self.at = stop;
        part
    }

    /// What is left.
    pub(super) fn rest(&self) -> &'a [u8] {
        self.text.get(self.at..self.end).unwrap_or_default()
    }

    /// Where the first byte stands for which `stops` holds; the end if there is none.
    pub(super) fn find(&self, stops: impl Fn(u8) -> bool) -> usize {
        let length = self.rest().iter().position(|byte| stops(*byte));
        length.map_or(self.end, |length| self.at + length)
    }
}

/// From `at` to `end`. Positions are below 2^16: the scan takes no longer messages.
pub(super) fn span(at: usize, end: usize) -> Span {
    Span { at: at as u32, end: end as u32 }
}

/// Bytes that were found to be ASCII, as text.
pub(super) fn ascii(bytes: &[u8]) -> Result<&str, What> {
    core::str::from_utf8(bytes).map_err(|_| What::Syntax)
}

/// The value of decimal digits, at most `max`.
pub(super) fn number(digits: &[u8], max: u32) -> Result<u32, What> {
    if digits.is_empty() {
        return Err(What::Number);
    }
    let mut value = 0u64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return Err(What::Number);
        }
        // Stays below 2^64 however many digits there are.
        value = (value * 10 + (digit - b'0') as u64).min(1 << 40);
    }
    if value > max as u64 {
        return Err(What::Number);
    }
    Ok(value as u32)
}

/// Whether a byte belongs to a token (25.1).
pub(super) fn is_token(byte: u8) -> bool {
    is(byte, TOKEN)
}

/// Whether a byte belongs to a word (25.1), of which a Call-ID has one or two.
pub(super) fn is_word(byte: u8) -> bool {
    is(byte, WORD)
}

/// Whether a byte belongs to one of some classes.
pub(super) fn is(byte: u8, classes: u8) -> bool {
    CLASSES[byte as usize] & classes != 0
}

/// Bytes of a token, and of a word.
const TOKEN: u8 = 1;
const WORD: u8 = 1 << 1;
/// Bytes of pieces of a URI, each with unreserved ones and the `%` of escapes: parameters, user,
/// password, headers, and URIs of other schemes.
pub(super) const PARAMETER: u8 = 1 << 2;
pub(super) const USER: u8 = 1 << 3;
pub(super) const PASSWORD: u8 = 1 << 4;
pub(super) const HEADERS: u8 = 1 << 5;
pub(super) const OPAQUE: u8 = 1 << 6;

/// Which classes a byte belongs to (25.1). Every byte of a message is looked up here several times.
static CLASSES: [u8; 256] = {
    const fn put(classes: &mut [u8; 256], bytes: &[u8], class: u8) {
        let mut at = 0;
        while at < bytes.len() {
            classes[bytes[at] as usize] |= class;
            at += 1;
        }
    }
    let mut classes = [0; 256];
    let mut byte = 0u8;
    while byte < 0x80 {
        if byte.is_ascii_alphanumeric() {
            classes[byte as usize] = !0;
        }
        byte += 1;
    }
    put(&mut classes, b"-.!%*_+`'~", TOKEN | WORD);
    put(&mut classes, b"()<>:\\\"/[]?{}", WORD);
    put(&mut classes, b"-_.!~*'()%", PARAMETER | USER | PASSWORD | HEADERS | OPAQUE);
    put(&mut classes, b"[]/:&+$", PARAMETER);
    put(&mut classes, b"&=+$,;?/", USER);
    put(&mut classes, b"&=+$,", PASSWORD);
    put(&mut classes, b"[]/?:+$=&", HEADERS);
    put(&mut classes, b";/?:@&=+$,[]", OPAQUE);
    classes
};
