//! Hosts, parameters and URIs (RFC 3261 19.1.1, 25.1).

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::cursor::{
    Cursor, HEADERS, OPAQUE, PARAMETER, PASSWORD, USER, ascii, is_token, number, span,
};
use super::error::What;
use crate::header::Span;

/// Who is meant by a host (25.1).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Host<'a> {
    /// An IPv4 address.
    V4(Ipv4Addr),
    /// An IPv6 address; it stands in brackets.
    V6(Ipv6Addr),
    /// A host name, in the case it was written.
    Name(&'a str),
}

impl<'a> Host<'a> {
    /// Reads a host that stands alone in `text`.
    pub fn parse(text: &'a str) -> Result<Self, What> {
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(What::Host)?;
            return inner.parse().map(Self::V6).map_err(|_| What::Host);
        }
        if let Ok(address) = text.parse() {
            return Ok(Self::V4(address));
        }
        if is_hostname(text) { Ok(Self::Name(text)) } else { Err(What::Host) }
    }

    /// The address, if it is one.
    pub fn ip(self) -> Option<IpAddr> {
        match self {
            Self::V4(address) => Some(address.into()),
            Self::V6(address) => Some(address.into()),
            Self::Name(_) => None,
        }
    }
}

impl fmt::Display for Host<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::V4(address) => address.fmt(f),
            Self::V6(address) => write!(f, "[{address}]"),
            Self::Name(name) => f.write_str(name),
        }
    }
}

/// `hostname = *( domainlabel "." ) toplabel [ "." ]` (25.1): the last label starts with a letter.
fn is_hostname(text: &str) -> bool {
    let text = text.strip_suffix('.').unwrap_or(text);
    let mut labels = text.split('.');
    let top = labels.next_back().unwrap_or_default();
    top.starts_with(|first: char| first.is_ascii_alphabetic())
        && is_label(top)
        && labels.all(is_label)
}

fn is_label(label: &str) -> bool {
    let inside = label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    inside && !label.is_empty() && !label.starts_with('-') && !label.ends_with('-')
}

/// A port: a number from 1 to 65535.
pub(super) fn port(digits: &[u8]) -> Result<u16, What> {
    match number(digits, 65_535) {
        Ok(value) if value != 0 => Ok(value as u16),
        _ => Err(What::Port),
    }
}

/// One parameter.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Param<'a> {
    /// Its name. Case does not matter.
    pub name: &'a str,
    /// Its value as written, a quoted string with its quotes; none without `=`.
    pub value: Option<&'a [u8]>,
    /// Where the parameter stands, from its semicolon to the end of its value.
    pub span: Span,
    /// Where the value stands; empty, at the end of the name, if there is none.
    pub value_span: Span,
}

impl<'a> Param<'a> {
    /// Whether it has this name.
    pub fn is(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name)
    }

    /// The value as text, if it has one that is no quoted string.
    pub fn text(&self) -> Option<&'a str> {
        let value = self.value.filter(|value| !value.starts_with(b"\""))?;
        core::str::from_utf8(value).ok()
    }
}

/// Parameters in their order: `;name=value;name`. They were checked when their header was read.
#[derive(Clone, Copy, Debug)]
pub struct Params<'a> {
    cursor: Cursor<'a>,
    grammar: Grammar,
}

/// Whose parameters they are.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Grammar {
    /// `generic-param` of a header: white space, tokens, hosts, quoted strings.
    Header,
    /// `uri-parameter`: none of these, but escapes.
    Uri,
}

impl<'a> Params<'a> {
    /// The parameter of a name.
    pub fn get(mut self, name: &str) -> Option<Param<'a>> {
        self.find(|param| param.is(name))
    }

    /// Whether there is a parameter of a name.
    pub fn has(self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// Reads parameters of a header from `cursor` on, as far as they go, and shows each.
    pub(super) fn header(
        cursor: &mut Cursor<'a>,
        mut show: impl FnMut(Param<'a>) -> Result<(), What>,
    ) -> Result<Self, What> {
        let start = cursor.at();
        let mut names = Names::default();
        let whole = *cursor;
        while let Some(param) = header_param(cursor)? {
            names.add(param.name, || Self { cursor: whole, grammar: Grammar::Header })?;
            show(param)?;
        }
        Ok(Self { cursor: cursor.part(span(start, cursor.at())), grammar: Grammar::Header })
    }

    /// Parameters of a URI: all of `part`.
    fn uri(mut part: Cursor<'a>) -> Result<Self, What> {
        let params = Self { cursor: part, grammar: Grammar::Uri };
        let mut names = Names::default();
        while let Some(param) = uri_param(&mut part)? {
            names.add(param.name, || params)?;
        }
        if part.at_end() { Ok(params) } else { Err(What::Parameter) }
    }
}

/// Names of parameters: none may stand there twice (7.3.1).
#[derive(Default)]
struct Names<'a> {
    count: u32,
    /// The first ones; hardly anything has more.
    first: [&'a str; 8],
}

impl<'a> Names<'a> {
    /// One more. `all` has it and all before it.
    fn add(&mut self, name: &'a str, all: impl FnOnce() -> Params<'a>) -> Result<(), What> {
        // Each is compared with all others, so their number is bounded.
        if self.count >= MAX_PARAMS {
            return Err(What::Parameter);
        }
        let count = self.count as usize;
        let before = self.first.get(..count).unwrap_or(&self.first);
        let mut there = before.iter().any(|other| other.eq_ignore_ascii_case(name));
        match self.first.get_mut(count) {
            Some(place) => *place = name,
            None => there |= all().take(count).any(|param| param.is(name)),
        }
        self.count += 1;
        if there { Err(What::DuplicateParameter) } else { Ok(()) }
    }
}

/// How many parameters one value may have.
pub const MAX_PARAMS: u32 = 64;

impl<'a> Iterator for Params<'a> {
    type Item = Param<'a>;

    fn next(&mut self) -> Option<Param<'a>> {
        let next = match self.grammar {
            Grammar::Header => header_param(&mut self.cursor),
            Grammar::Uri => uri_param(&mut self.cursor),
        };
        next.ok().flatten()
    }
}

/// `SEMI token [ EQUAL gen-value ]`, where `gen-value = token / host / quoted-string`.
fn header_param<'a>(cursor: &mut Cursor<'a>) -> Result<Option<Param<'a>>, What> {
    let before = *cursor;
    cursor.blanks();
    let start = cursor.at();
    if !cursor.eat(b';') {
        *cursor = before;
        return Ok(None);
    }
    cursor.blanks();
    let name = cursor.token().map_err(|_| What::Parameter)?;
    let name_end = cursor.at();
    if !cursor.separator(b'=') {
        return Ok(Some(Param {
            name,
            value: None,
            span: span(start, name_end),
            value_span: span(name_end, name_end),
        }));
    }
    let value_at = cursor.at();
    if cursor.peek() == Some(b'"') {
        cursor.quoted()?;
    } else {
        cursor.take(is_token);
        // Only an address has more than a token has.
        let more = cursor.take(|byte| is_token(byte) || matches!(byte, b'[' | b']' | b':'));
        let value = cursor.since(value_at);
        if value.is_empty() || (!more.is_empty() && !is_address(name, value)) {
            return Err(What::Parameter);
        }
    }
    Ok(Some(Param {
        name,
        value: Some(cursor.since(value_at)),
        span: span(start, cursor.at()),
        value_span: span(value_at, cursor.at()),
    }))
}

/// Whether a value with colons or brackets is the IPv6 address that alone may have them. In
/// `received` it may stand without brackets: RFC 3261 has it so, RFC 5118 4.5 wants both read.
fn is_address(name: &str, value: &[u8]) -> bool {
    let Ok(text) = ascii(value) else {
        return false;
    };
    let bare = name.eq_ignore_ascii_case("received") && text.parse::<Ipv6Addr>().is_ok();
    bare || matches!(Host::parse(text), Ok(Host::V6(_)))
}

/// `";" 1*paramchar [ "=" 1*paramchar ]`
fn uri_param<'a>(cursor: &mut Cursor<'a>) -> Result<Option<Param<'a>>, What> {
    let start = cursor.at();
    if !cursor.eat(b';') {
        return Ok(None);
    }
    let name = uri_text(cursor, PARAMETER)?;
    let name_end = cursor.at();
    if name.is_empty() {
        return Err(What::Parameter);
    }
    let mut value = None;
    let mut value_at = name_end;
    if cursor.eat(b'=') {
        value_at = cursor.at();
        let text = uri_text(cursor, PARAMETER)?;
        if text.is_empty() {
            return Err(What::Parameter);
        }
        value = Some(text.as_bytes());
    }
    Ok(Some(Param {
        name,
        value,
        span: span(start, cursor.at()),
        value_span: span(value_at, cursor.at()),
    }))
}

/// A run of characters of a class, with whole escapes.
fn uri_text<'a>(cursor: &mut Cursor<'a>, class: u8) -> Result<&'a str, What> {
    let text = cursor.text(class);
    let mut rest = text.as_bytes();
    while let Some(at) = rest.iter().position(|byte| *byte == b'%') {
        match rest.get(at + 1..at + 3) {
            Some(hex) if hex.iter().all(u8::is_ascii_hexdigit) => rest = &rest[at + 3..],
            _ => return Err(What::Escape),
        }
    }
    Ok(text)
}

/// What a URI starts with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Scheme<'a> {
    /// `sip:`
    Sip,
    /// `sips:`
    Sips,
    /// `tel:` (RFC 3966); only [`Uri::text`] says more.
    Tel,
    /// Another one; only [`Uri::text`] says more.
    Other(&'a str),
}

/// A URI.
#[derive(Clone, Copy, Debug)]
pub struct Uri<'a> {
    /// All of it, as written.
    pub text: &'a str,
    /// Where it stands.
    pub span: Span,
    /// Its scheme.
    pub scheme: Scheme<'a>,
    /// User, escapes as written; none without an `@`.
    pub user: Option<&'a str>,
    /// Password, escapes as written.
    pub password: Option<&'a str>,
    /// Host of a `sip:` or `sips:` URI; none in all others.
    pub host: Option<Host<'a>>,
    /// Port, if one is written.
    pub port: Option<u16>,
    /// Parameters of a `sip:` or `sips:` URI; none in all others.
    pub params: Params<'a>,
    /// Headers (19.1.1), as written, without the question mark.
    pub headers: Option<&'a str>,
}

impl<'a> Uri<'a> {
    /// Reads the URI that stands alone in `text`.
    pub fn parse(text: &'a str) -> Result<Self, What> {
        Self::read(Cursor::new(text.as_bytes(), 0, text.len()))
    }

    /// Whether the scheme is `sip:` or `sips:`.
    pub fn is_sip(&self) -> bool {
        matches!(self.scheme, Scheme::Sip | Scheme::Sips)
    }

    /// Whether it has `lr`: its owner is a loose router (16.12).
    pub fn lr(&self) -> bool {
        self.params.has("lr")
    }

    /// The value of `transport` (19.1.1).
    pub fn transport(&self) -> Option<&'a str> {
        self.params.get("transport")?.text()
    }

    /// The value of `maddr` (19.1.1).
    pub fn maddr(&self) -> Option<Host<'a>> {
        Host::parse(self.params.get("maddr")?.text()?).ok()
    }

    /// Reads a URI: all that is left of `cursor`.
    pub(super) fn read(mut cursor: Cursor<'a>) -> Result<Self, What> {
        let all = span(cursor.at(), cursor.at() + cursor.rest().len());
        let text = ascii(cursor.rest())?;
        if text.is_empty() {
            return Err(What::Empty);
        }
        let name = scheme(&mut cursor)?;
        let is = |other: &str| name.eq_ignore_ascii_case(other);
        let scheme = if is("sip") {
            Scheme::Sip
        } else if is("sips") {
            Scheme::Sips
        } else {
            return Self::opaque(cursor, name, text, all);
        };
        let (user, password) = userinfo(&mut cursor)?;
        let (host, port) = host_port(&mut cursor)?;
        if !matches!(cursor.peek(), None | Some(b';' | b'?')) {
            return Err(What::Syntax);
        }
        let stop = cursor.find(|byte| byte == b'?');
        let params = Params::uri(cursor.up_to(stop))?;
        let headers = if cursor.eat(b'?') { Some(headers(&mut cursor)?) } else { None };
        if !cursor.at_end() {
            return Err(What::Syntax);
        }
        Ok(Self {
            text,
            span: all,
            scheme,
            user,
            password,
            host: Some(host),
            port,
            params,
            headers,
        })
    }

    /// A URI of another scheme: one that we do not look into.
    fn opaque(
        mut cursor: Cursor<'a>,
        name: &'a str,
        text: &'a str,
        all: Span,
    ) -> Result<Self, What> {
        let scheme =
            if name.eq_ignore_ascii_case("tel") { Scheme::Tel } else { Scheme::Other(name) };
        let rest = uri_text(&mut cursor, OPAQUE)?;
        if rest.is_empty() || !cursor.at_end() {
            return Err(What::Syntax);
        }
        let none = cursor.up_to(0);
        Ok(Self {
            text,
            span: all,
            scheme,
            user: None,
            password: None,
            host: None,
            port: None,
            params: Params { cursor: none, grammar: Grammar::Uri },
            headers: None,
        })
    }
}

/// `ALPHA *( ALPHA / DIGIT / "+" / "-" / "." ) ":"`
fn scheme<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, What> {
    let belongs = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'+' | b'-' | b'.');
    let name = cursor.take(belongs);
    if !name.first().is_some_and(u8::is_ascii_alphabetic) || !cursor.eat(b':') {
        return Err(What::Scheme);
    }
    ascii(name)
}

/// `[ user [ ":" password ] "@" ]`. No other place of a SIP URI has an `@` that is not escaped.
fn userinfo<'a>(cursor: &mut Cursor<'a>) -> Result<(Option<&'a str>, Option<&'a str>), What> {
    let stop = cursor.find(|byte| byte == b'@');
    if stop == cursor.find(|_| false) {
        return Ok((None, None));
    }
    let mut part = cursor.up_to(stop);
    cursor.eat(b'@');
    let user = uri_text(&mut part, USER)?;
    let password = if part.eat(b':') { Some(uri_text(&mut part, PASSWORD)?) } else { None };
    if user.is_empty() || !part.at_end() {
        return Err(What::User);
    }
    Ok((Some(user), password))
}

/// `host [ ":" port ]`, without white space.
fn host_port<'a>(cursor: &mut Cursor<'a>) -> Result<(Host<'a>, Option<u16>), What> {
    let host = host(cursor)?;
    if !cursor.eat(b':') {
        return Ok((host, None));
    }
    let digits = cursor.take(|byte| byte.is_ascii_digit());
    Ok((host, Some(port(digits)?)))
}

/// A host, as far as it goes.
pub(super) fn host<'a>(cursor: &mut Cursor<'a>) -> Result<Host<'a>, What> {
    let start = cursor.at();
    if cursor.eat(b'[') {
        cursor.take(|byte| byte.is_ascii_hexdigit() || byte == b':' || byte == b'.');
        if !cursor.eat(b']') {
            return Err(What::Host);
        }
    } else {
        cursor.take(|byte| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'.');
    }
    Host::parse(ascii(cursor.since(start))?)
}

/// `header *( "&" header )` with `header = hname "=" hvalue`
fn headers<'a>(cursor: &mut Cursor<'a>) -> Result<&'a str, What> {
    let text = uri_text(cursor, HEADERS)?;
    let well = text.split('&').all(|header| {
        let (name, value) = header.split_once('=').unwrap_or_default();
        !name.is_empty() && !value.contains('=')
    });
    if well { Ok(text) } else { Err(What::UriHeaders) }
}

/// The bytes of a piece of a URI, escapes resolved (19.1.2): `%41` is `A`.
pub fn unescape(text: &str) -> impl Iterator<Item = u8> + '_ {
    let mut bytes = text.bytes();
    core::iter::from_fn(move || {
        let byte = bytes.next()?;
        if byte != b'%' {
            return Some(byte);
        }
        let mut ahead = bytes.clone();
        let mut digit = || (ahead.next()? as char).to_digit(16);
        let (Some(high), Some(low)) = (digit(), digit()) else {
            return Some(byte);
        };
        bytes = ahead;
        Some((high << 4 | low) as u8)
    })
}
