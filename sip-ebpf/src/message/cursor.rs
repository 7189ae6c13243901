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
        let start = self.at;
        while self.peek().is_some_and(&belongs) {
            self.at += 1;
        }
        self.since(start)
    }

    /// What stands between `start` and here.
    pub(super) fn since(&self, start: usize) -> &'a [u8] {
        self.text.get(start..self.at).unwrap_or_default()
    }

    /// A token (25.1).
    pub(super) fn token(&mut self) -> Result<&'a str, What> {
        let bytes = self.take(is_token);
        if bytes.is_empty() {
            return Err(if self.at_end() { What::Empty } else { What::Syntax });
        }
        ascii(bytes)
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
    byte.is_ascii_alphanumeric()
        || matches!(byte, b'-' | b'.' | b'!' | b'%' | b'*' | b'_' | b'+' | b'`' | b'\'' | b'~')
}

/// Whether a byte belongs to a word (25.1), of which a Call-ID has one or two.
pub(super) fn is_word(byte: u8) -> bool {
    is_token(byte)
        || matches!(
            byte,
            b'(' | b')'
                | b'<'
                | b'>'
                | b':'
                | b'\\'
                | b'"'
                | b'/'
                | b'['
                | b']'
                | b'?'
                | b'{'
                | b'}'
        )
}
