//! Addresses with and without a display name: From, To, Route, Record-Route, Contact (RFC 3261 20.10,
//! 20.20, 20.30, 20.34, 20.39).

use super::cursor::{Cursor, is_token, number, span};
use super::error::What;
use super::uri::{Param, Params, Uri};
use crate::header::Span;

/// `name-addr` or `addr-spec`, with the parameters of its header.
#[derive(Clone, Copy, Debug)]
pub struct Address<'a> {
    /// Where the value stands, from the display name to the end of the last parameter.
    pub span: Span,
    /// The display name as written, without the quotes around it; none without one.
    pub display: Option<&'a [u8]>,
    /// The URI.
    pub uri: Uri<'a>,
    /// Whether the URI stands in angle brackets.
    pub in_brackets: bool,
    /// Parameters of the header: without brackets, all parameters are (20).
    pub params: Params<'a>,
    tag: Option<Param<'a>>,
}

impl<'a> Address<'a> {
    /// Value of the `tag` parameter of From and To (19.3).
    pub fn tag(&self) -> Option<&'a str> {
        self.tag?.text()
    }

    /// Where the value of `tag` stands; zero and zero without one.
    pub fn tag_span(&self) -> Span {
        self.tag.map_or(Span::default(), |param| param.value_span)
    }

    /// Reads as far as one address goes: to a comma or to the end.
    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self, What> {
        let start = cursor.at();
        let display = display(cursor)?;
        let in_brackets = cursor.eat(b'<');
        let uri = if in_brackets {
            let stop = cursor.find(|byte| byte == b'>');
            let part = cursor.up_to(stop);
            if !cursor.eat(b'>') {
                return Err(What::Bracket);
            }
            Uri::read(part)?
        } else {
            bare(cursor)?
        };
        let mut tag = None;
        let params = Params::header(cursor, |param| {
            if param.is("tag") {
                tag = Some(param);
            }
            Ok(())
        })?;
        let address =
            Self { span: span(start, cursor.at()), display, uri, in_brackets, params, tag };
        if tag.is_some_and(|tag| !tag.value.is_some_and(|value| value.iter().all(|b| is_token(*b))))
        {
            return Err(What::Parameter);
        }
        Ok(address)
    }
}

/// The display name, if there is one; afterwards the cursor stands at the `<`, or at the URI.
fn display<'a>(cursor: &mut Cursor<'a>) -> Result<Option<&'a [u8]>, What> {
    if cursor.peek() == Some(b'"') {
        let name = cursor.quoted()?;
        cursor.blanks();
        if cursor.peek() != Some(b'<') {
            return Err(What::Bracket);
        }
        return Ok(Some(name));
    }
    let before = *cursor;
    let stop = cursor.find(|byte| matches!(byte, b'<' | b'"' | b';' | b':' | b','));
    let mut part = cursor.up_to(stop);
    if cursor.peek() != Some(b'<') {
        if is_name_then_bracket(&before) {
            return Err(What::DisplayName);
        }
        *cursor = before;
        return Ok(None);
    }
    let start = part.at();
    let mut end = start;
    while !part.at_end() {
        part.token().map_err(|_| What::DisplayName)?;
        end = part.at();
        part.blanks();
    }
    let name = before.part(span(start, end)).rest();
    Ok((!name.is_empty()).then_some(name))
}

/// Whether what is no URI comes before a `<` of the same value: a display name with something that
/// it may not have.
fn is_name_then_bracket(cursor: &Cursor<'_>) -> bool {
    let stop = cursor.find(|byte| byte == b'<');
    let mut head = *cursor;
    let head = head.up_to(stop).rest();
    let scheme = head.iter().position(|byte| *byte == b':').unwrap_or(head.len());
    let like_a_uri = scheme < head.len() && head[..scheme].iter().all(|byte| is_token(*byte));
    stop < cursor.find(|_| false) && !like_a_uri
}

/// `addr-spec` without brackets: it ends where a parameter, a comma or white space begins, and may
/// hold no question mark (20.10).
fn bare<'a>(cursor: &mut Cursor<'a>) -> Result<Uri<'a>, What> {
    let stop = cursor.find(|byte| matches!(byte, b';' | b',' | b' ' | b'\t'));
    let part = cursor.up_to(stop);
    if part.rest().contains(&b'?') {
        return Err(What::Bracket);
    }
    Uri::read(part)
}

/// One value of Contact (20.10).
#[derive(Clone, Copy, Debug)]
#[allow(clippy::large_enum_variant, reason = "there is no heap, and few live at a time")]
pub enum Contact<'a> {
    /// `*`: all bindings, in a REGISTER that removes them (10.2.2).
    Star,
    /// An address.
    Address(Binding<'a>),
}

/// An address of Contact with the parameters that a registrar and a proxy look at.
#[derive(Clone, Copy, Debug)]
pub struct Binding<'a> {
    /// The address.
    pub address: Address<'a>,
    /// `q` in thousandths: 0 to 1000.
    pub q: Option<u16>,
    /// `expires` in seconds.
    pub expires: Option<u32>,
    /// `+sip.instance` as written, with its quotes (RFC 5626 4.1).
    pub instance: Option<&'a [u8]>,
}

impl<'a> Contact<'a> {
    pub(super) fn read(cursor: &mut Cursor<'a>) -> Result<Self, What> {
        let mut star = *cursor;
        if star.eat(b'*') {
            let mut after = star;
            after.blanks();
            if after.at_end() {
                *cursor = star;
                return Ok(Self::Star);
            }
        }
        let address = Address::read(cursor)?;
        let q = match address.params.get("q") {
            Some(param) => Some(qvalue(param.value.unwrap_or_default())?),
            None => None,
        };
        let expires = match address.params.get("expires") {
            Some(param) => Some(number(param.value.unwrap_or_default(), u32::MAX)?),
            None => None,
        };
        let instance = address.params.get("+sip.instance").and_then(|param| param.value);
        Ok(Self::Address(Binding { address, q, expires, instance }))
    }
}

/// `qvalue = ( "0" [ "." 0*3DIGIT ] ) / ( "1" [ "." 0*3("0") ] )`, in thousandths.
fn qvalue(text: &[u8]) -> Result<u16, What> {
    let (whole, rest) = match text {
        [whole @ (b'0' | b'1'), rest @ ..] => (*whole, rest),
        _ => return Err(What::Parameter),
    };
    let digits = match rest {
        [] => &[][..],
        [b'.', digits @ ..] if digits.len() <= 3 => digits,
        _ => return Err(What::Parameter),
    };
    let mut value = 0;
    for place in 0..3 {
        let digit = digits.get(place).copied().unwrap_or(b'0');
        if !digit.is_ascii_digit() {
            return Err(What::Parameter);
        }
        value = value * 10 + (digit - b'0') as u16;
    }
    match (whole, value) {
        (b'0', value) => Ok(value),
        (_, 0) => Ok(1000),
        _ => Err(What::Parameter),
    }
}
