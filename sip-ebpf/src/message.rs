//! The long way: everything that RFC 3261 allows in the headers that a proxy and a registrar read.
//!
//! [`Message::parse`] scans and reads no values. Each accessor reads its header when it is asked,
//! and gives what stands there or an [`Error`] with a name; what many ask for is kept. [`Message::check`] reads all that a
//! proxy must find well-formed (16.3), [`Message::check_all`] everything that has an accessor.
//!
//! What [`crate::header`] reads is read alike here; here is more of it. Host only.

mod address;
mod cursor;
mod error;
mod uri;
mod via;

pub use address::{Address, Binding, Contact};
pub use error::{Error, Fault, What, header_name};
pub use uri::{Host, MAX_PARAMS, Param, Params, Scheme, Uri, unescape};
pub use via::{MAGIC_COOKIE, Rport, Via};

use core::cell::OnceCell;

use crate::header::Span;
use crate::scan::{self, FOLDED, Index, Kind, Line, Method};
use cursor::{Cursor, ascii, is_token, is_word, span};

/// A message in the bytes of its datagram.
#[derive(Clone, Debug)]
pub struct Message<'a> {
    text: Text<'a>,
    /// What every part of a proxy asks for again, read once.
    request_uri: OnceCell<Result<Uri<'a>, Error>>,
    top_via: OnceCell<Result<Via<'a>, Error>>,
    from: OnceCell<Result<Address<'a>, Error>>,
    to: OnceCell<Result<Address<'a>, Error>>,
}

/// Bytes, and what the scan found in them.
#[derive(Clone, Copy, Debug)]
struct Text<'a> {
    bytes: &'a [u8],
    index: &'a Index,
}

/// A CSeq (20.16).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct CSeq<'a> {
    /// The sequence number, below 2^31.
    pub number: u32,
    /// The method.
    pub method: &'a str,
}

/// A Max-Forwards (20.22).
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct MaxForwards {
    /// Its value.
    pub value: u8,
    /// Where its digits stand.
    pub digits: Span,
}

/// A header line as it stands there.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Header<'a> {
    /// Its name as written.
    pub name: &'a [u8],
    /// Its value without white space around it.
    pub value: &'a [u8],
    /// Which header it is.
    pub kind: Kind,
    /// Where the line stands, with its CR LF.
    pub span: Span,
}

/// Puts spaces in place of the line ends inside folded headers (7.3.1), so that the message keeps
/// its length and its meaning. `index` is what the scan of these bytes found; it is of no use
/// afterwards: scan again.
pub fn unfold(bytes: &mut [u8], index: &Index) {
    for line in index.lines() {
        if let Some(text) = bytes.get_mut(line.start as usize..line.end as usize) {
            for byte in text.iter_mut().filter(|byte| matches!(byte, b'\r' | b'\n')) {
                *byte = b' ';
            }
        }
    }
}

/// Reading.
impl<'a> Message<'a> {
    /// Scans a datagram. Folded headers are an error here: see [`Message::parse_folded`].
    pub fn parse(bytes: &'a [u8], index: &'a mut Index) -> Result<Self, Error> {
        scan::scan(bytes, index)?;
        Self::scanned(bytes, index)
    }

    /// A message whose scan is done: `index` is what it has found in these very bytes.
    pub fn scanned(bytes: &'a [u8], index: &'a Index) -> Result<Self, Error> {
        if index.flags & FOLDED != 0 {
            return Err(Error::Folded);
        }
        Ok(Self {
            text: Text { bytes, index },
            request_uri: OnceCell::new(),
            top_via: OnceCell::new(),
            from: OnceCell::new(),
            to: OnceCell::new(),
        })
    }

    /// Scans a datagram, and unfolds its headers if some are folded.
    pub fn parse_folded(bytes: &'a mut [u8], index: &'a mut Index) -> Result<Self, Error> {
        scan::scan(&*bytes, index)?;
        if index.flags & FOLDED != 0 {
            unfold(bytes, index);
            return Self::parse(bytes, index);
        }
        Self::scanned(bytes, index)
    }

    /// Reads what a proxy must find well-formed before it forwards (16.3 step 1) or answers (8.2.6.2):
    /// start line, Via, From, To, Call-ID, CSeq, Max-Forwards, Route, Proxy-Require and
    /// Content-Length, and that each header which may stand there once does.
    ///
    /// Other headers, right or wrong, are none of a proxy's business (16.3).
    pub fn check(&self) -> Result<(), Error> {
        // The names that the scan knows are tokens.
        for header in self.headers_of(Kind::Other) {
            if !header.name.iter().all(|byte| is_token(*byte)) {
                return Err(Error::Scan(scan::Error::HeaderName));
            }
        }
        if self.is_request() {
            self.method_name()?;
            if self.request_uri()?.headers.is_some() {
                return Err(Error::RequestUri(What::UriHeaders));
            }
        } else {
            self.reason()?;
        }
        if !self.top_via()?.is_sip2() {
            return Err(Error::Bad(Kind::Via, What::Protocol));
        }
        self.vias_below()?.try_for_each(|via| via.map(drop))?;
        self.from()?;
        self.to()?;
        self.call_id()?;
        self.cseq()?;
        self.max_forwards()?;
        self.routes().try_for_each(|route| route.map(drop))?;
        self.proxy_requires().try_for_each(|tag| tag.map(drop))?;
        self.body()?;
        Ok(())
    }

    /// [`Message::check`], and all else that has an accessor here: Record-Route, Contact, Expires and
    /// Require.
    pub fn check_all(&self) -> Result<(), Error> {
        self.check()?;
        self.record_routes().try_for_each(|route| route.map(drop))?;
        for contact in self.contacts() {
            // A `*` stands alone (20.10).
            if matches!(contact?, Contact::Star) && self.contacts().count() != 1 {
                return Err(Error::Bad(Kind::Contact, What::Syntax));
            }
        }
        self.expires()?;
        self.requires().try_for_each(|tag| tag.map(drop))
    }
}

/// The start line (7.1, 7.2).
impl<'a> Message<'a> {
    /// Whether it is a request.
    pub fn is_request(&self) -> bool {
        self.text.index.method != Method::Response as u32
    }

    /// The method; [`Method::Response`] for a response.
    pub fn method(&self) -> Method {
        let number = self.text.index.method as usize;
        Method::ALL.get(number).copied().unwrap_or(Method::Extension)
    }

    /// The method as it stands in the request line; of a response, the method of its CSeq.
    pub fn method_name(&self) -> Result<&'a str, Error> {
        if !self.is_request() {
            return Ok(self.cseq()?.method);
        }
        let mut cursor = self.text.cursor(0, self.text.index.method_end);
        let name = cursor.token().map_err(|_| Error::Method)?;
        if cursor.at_end() { Ok(name) } else { Err(Error::Method) }
    }

    /// The Request-URI. Of a response there is none: [`What::Empty`].
    pub fn request_uri(&self) -> Result<Uri<'a>, Error> {
        if !self.is_request() {
            return Err(Error::RequestUri(What::Empty));
        }
        let read = || Uri::read(self.text.cursor(self.text.index.uri, self.text.index.uri_end));
        *self.request_uri.get_or_init(|| read().map_err(Error::RequestUri))
    }

    /// The Request-URI as it stands there, right or wrong; empty for a response.
    pub fn request_uri_bytes(&self) -> &'a [u8] {
        if !self.is_request() {
            return &[];
        }
        self.slice(span(self.text.index.uri as usize, self.text.index.uri_end as usize))
    }

    /// The status code of a response, 100 to 699; none for a request.
    pub fn status(&self) -> Option<u16> {
        (!self.is_request()).then_some(self.text.index.status as u16)
    }

    /// The reason phrase of a response; empty for a request.
    pub fn reason(&self) -> Result<&'a str, Error> {
        if self.is_request() {
            return Ok("");
        }
        let phrase =
            self.slice(span(self.text.index.uri as usize, self.text.index.uri_end as usize));
        core::str::from_utf8(phrase).map_err(|_| Error::ReasonPhrase)
    }
}

/// The headers.
impl<'a> Message<'a> {
    /// All Vias in their order, over lines and commas (7.3.1). An error ends them.
    pub fn vias(&self) -> Vias<'a> {
        Vias(List::new(self.text, Kind::Via))
    }

    /// The first Via.
    pub fn top_via(&self) -> Result<Via<'a>, Error> {
        let read = || self.vias().next().unwrap_or(Err(Error::Missing(Kind::Via)));
        *self.top_via.get_or_init(read)
    }

    /// The Vias below the first.
    fn vias_below(&self) -> Result<Vias<'a>, Error> {
        let top = self.top_via()?;
        let mut list = List::new(self.text, Kind::Via);
        if let Some(line) = list.line() {
            let mut rest = self.text.cursor(top.span.end, line.end() as u32);
            list.open = rest.separator(b',').then_some(rest);
        }
        Ok(Vias(list))
    }

    /// From (20.20).
    pub fn from(&self) -> Result<Address<'a>, Error> {
        *self.from.get_or_init(|| self.value(Kind::From, Address::read))
    }

    /// To (20.39).
    pub fn to(&self) -> Result<Address<'a>, Error> {
        *self.to.get_or_init(|| self.value(Kind::To, Address::read))
    }

    /// Call-ID (20.8): one word, or two around an `@`.
    pub fn call_id(&self) -> Result<&'a str, Error> {
        self.value(Kind::CallId, |cursor| {
            let start = cursor.at();
            let first = cursor.take(is_word);
            let second = cursor.eat(b'@').then(|| cursor.take(is_word));
            if first.is_empty() || second.is_some_and(<[u8]>::is_empty) {
                return Err(if cursor.at_end() { What::Empty } else { What::Syntax });
            }
            ascii(cursor.since(start))
        })
    }

    /// CSeq (20.16). In a request its method is that of the request line (8.1.1.5).
    pub fn cseq(&self) -> Result<CSeq<'a>, Error> {
        let cseq = self.value(Kind::CSeq, |cursor| {
            let number = cursor.number((1 << 31) - 1)?;
            if !cursor.blanks() {
                return Err(What::Syntax);
            }
            let method = cursor.token()?;
            Ok(CSeq { number, method })
        })?;
        if self.is_request() && cseq.method != self.method_name()? {
            return Err(Error::CSeqMethod);
        }
        Ok(cseq)
    }

    /// Max-Forwards (20.22), 0 to 255; none if it is missing.
    pub fn max_forwards(&self) -> Result<Option<MaxForwards>, Error> {
        self.optional(Kind::MaxForwards, |cursor| {
            let at = cursor.at();
            let value = cursor.number(255)? as u8;
            let digits = span(at, cursor.at());
            Ok(MaxForwards { value, digits })
        })
    }

    /// The values of Route in their order (20.34). An error ends them.
    pub fn routes(&self) -> Addresses<'a> {
        Addresses(List::new(self.text, Kind::Route))
    }

    /// The values of Record-Route in their order (20.30). An error ends them.
    pub fn record_routes(&self) -> Addresses<'a> {
        Addresses(List::new(self.text, Kind::RecordRoute))
    }

    /// The values of Contact in their order (20.10). An error ends them.
    pub fn contacts(&self) -> Contacts<'a> {
        Contacts(List::new(self.text, Kind::Contact))
    }

    /// Expires (20.19), in seconds.
    pub fn expires(&self) -> Result<Option<u32>, Error> {
        self.optional(Kind::Expires, |cursor| cursor.number(u32::MAX))
    }

    /// Content-Length (20.14) as written; none if it is missing.
    pub fn content_length(&self) -> Result<Option<u32>, Error> {
        self.optional(Kind::ContentLength, |cursor| cursor.number(u32::MAX))
    }

    /// The body (18.3): as long as Content-Length says, what follows is no part of the message;
    /// without Content-Length, all that is left of the datagram.
    pub fn body(&self) -> Result<&'a [u8], Error> {
        let rest = self.text.bytes.get(self.text.index.body as usize..).unwrap_or_default();
        match self.content_length()? {
            None => Ok(rest),
            Some(len) => rest.get(..len as usize).ok_or(Error::Truncated),
        }
    }

    /// The option tags of Require (20.32). An error ends them.
    pub fn requires(&self) -> OptionTags<'a> {
        OptionTags(List::new(self.text, Kind::Require))
    }

    /// The option tags of Proxy-Require (20.29). An error ends them.
    pub fn proxy_requires(&self) -> OptionTags<'a> {
        OptionTags(List::new(self.text, Kind::ProxyRequire))
    }

    /// Whether it has credentials: Authorization or Proxy-Authorization (22).
    pub fn has_credentials(&self) -> bool {
        self.text.index.has(Kind::Authorization) || self.text.index.has(Kind::ProxyAuthorization)
    }

    /// All header lines in their order, whatever is in them.
    pub fn headers(&self) -> impl Iterator<Item = Header<'a>> + use<'a> {
        let text = self.text;
        text.index.lines().iter().map(move |line| text.header(*line))
    }

    /// The header lines of a kind in their order, whatever is in them.
    pub fn headers_of(&self, kind: Kind) -> impl Iterator<Item = Header<'a>> + use<'a> {
        let text = self.text;
        let lines = text.index.lines().iter().filter(move |line| line.kind == kind as u8);
        lines.map(move |line| text.header(*line))
    }

    /// The first header line of a kind, whatever is in it.
    pub fn first(&self, kind: Kind) -> Option<Header<'a>> {
        self.text.index.first(kind).map(|line| self.text.header(line))
    }
}

/// Places.
impl<'a> Message<'a> {
    /// The bytes it was read from.
    pub fn bytes(&self) -> &'a [u8] {
        self.text.bytes
    }

    /// What the scan found.
    pub fn index(&self) -> &'a Index {
        self.text.index
    }

    /// The bytes of a span; nothing if it does not lie in the message.
    pub fn slice(&self, span: Span) -> &'a [u8] {
        self.text.slice(span)
    }

    /// Where the first header starts: behind the start line.
    pub fn headers_at(&self) -> u32 {
        self.text.index.headers
    }

    /// Where the headers end: at the empty line.
    pub fn headers_end(&self) -> u32 {
        self.text.index.body - 2
    }

    /// What must go for the first value of Via, Route or Record-Route to go: its line, or, where
    /// others follow in the same line, itself and its comma. None if there is no value.
    pub fn cut_first(&self, kind: Kind) -> Result<Option<Span>, Error> {
        let Some(line) = self.text.index.first(kind) else {
            return Ok(None);
        };
        // The first Via has been read by whoever comes here.
        let start = line.value as u32;
        let end = match kind {
            Kind::Via => self.top_via()?.span.end,
            _ => {
                let mut cursor = self.text.cursor(start, line.end as u32);
                Address::read(&mut cursor).map_err(|what| Error::Bad(kind, what))?.span.end
            }
        };
        let mut cursor = self.text.cursor(end, line.end as u32);
        let whole = self.text.header(line).span;
        let followed = cursor.separator(b',');
        Ok(Some(if followed { span(start as usize, cursor.at()) } else { whole }))
    }
}

impl<'a> Message<'a> {
    /// The value of a header that must be there once.
    fn value<R>(
        &self,
        kind: Kind,
        read: impl FnOnce(&mut Cursor<'a>) -> Result<R, What>,
    ) -> Result<R, Error> {
        self.optional(kind, read)?.ok_or(Error::Missing(kind))
    }

    /// The value of a header that may be there once.
    fn optional<R>(
        &self,
        kind: Kind,
        read: impl FnOnce(&mut Cursor<'a>) -> Result<R, What>,
    ) -> Result<Option<R>, Error> {
        let Some(line) = self.text.index.first(kind) else {
            return Ok(None);
        };
        if self.text.index.repeated(kind) {
            return Err(Error::Duplicate(kind));
        }
        let mut cursor = self.text.cursor(line.value as u32, line.end as u32);
        let value = read(&mut cursor).map_err(|what| Error::Bad(kind, what))?;
        cursor.blanks();
        if !cursor.at_end() {
            return Err(Error::Bad(kind, What::Syntax));
        }
        Ok(Some(value))
    }
}

impl<'a> Text<'a> {
    fn cursor(&self, at: u32, end: u32) -> Cursor<'a> {
        Cursor::new(self.bytes, at as usize, end as usize)
    }

    fn header(&self, line: Line) -> Header<'a> {
        let raw = self.slice(span(line.start as usize, line.end as usize));
        let colon = raw.iter().position(|byte| *byte == b':').unwrap_or(raw.len());
        Header {
            name: raw.get(..colon).unwrap_or_default().trim_ascii_end(),
            value: raw.get(colon + 1..).unwrap_or_default().trim_ascii(),
            kind: Kind::ALL.get(line.kind as usize).copied().unwrap_or(Kind::Other),
            span: span(line.start as usize, line.end as usize + 2),
        }
    }

    fn slice(&self, span: Span) -> &'a [u8] {
        self.bytes.get(span.at as usize..span.end as usize).unwrap_or_default()
    }
}

/// The values of a header that may have several, in its lines and between commas.
#[derive(Clone, Copy, Debug)]
struct List<'a> {
    text: Text<'a>,
    kind: Kind,
    /// Number of the line that is looked at next.
    next: usize,
    /// Behind a comma: where the next value starts.
    open: Option<Cursor<'a>>,
}

impl<'a> List<'a> {
    fn new(text: Text<'a>, kind: Kind) -> Self {
        let next = text.index.first(kind).map_or(usize::MAX, |line| line.number as usize - 1);
        Self { text, kind, next, open: None }
    }

    fn next<R>(
        &mut self,
        read: impl FnOnce(&mut Cursor<'a>) -> Result<R, What>,
    ) -> Option<Result<R, Error>> {
        let mut cursor = match self.open.take() {
            Some(cursor) => cursor,
            None => self.line()?,
        };
        let value = if cursor.at_end() || cursor.peek() == Some(b',') {
            Err(What::Empty)
        } else {
            read(&mut cursor)
        };
        let value = value.and_then(|value| {
            if cursor.separator(b',') {
                self.open = Some(cursor);
                return Ok(value);
            }
            cursor.blanks();
            if cursor.at_end() { Ok(value) } else { Err(What::Syntax) }
        });
        if value.is_err() {
            self.open = None;
            self.next = usize::MAX;
        }
        Some(value.map_err(|what| Error::Bad(self.kind, what)))
    }

    /// The next line of the kind.
    fn line(&mut self) -> Option<Cursor<'a>> {
        let lines = self.text.index.lines().get(self.next..)?;
        let skip = lines.iter().position(|line| line.kind == self.kind as u8)?;
        self.next += skip + 1;
        let line = lines[skip];
        Some(self.text.cursor(line.value as u32, line.end as u32))
    }
}

/// See [`Message::vias`].
#[derive(Clone, Copy, Debug)]
pub struct Vias<'a>(List<'a>);

impl<'a> Iterator for Vias<'a> {
    type Item = Result<Via<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next(Via::read)
    }
}

/// See [`Message::routes`] and [`Message::record_routes`].
#[derive(Clone, Copy, Debug)]
pub struct Addresses<'a>(List<'a>);

impl<'a> Iterator for Addresses<'a> {
    type Item = Result<Address<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next(|cursor| {
            let address = Address::read(cursor)?;
            // Both headers are made of name-addr (20.30, 20.34): brackets are not optional.
            if address.in_brackets { Ok(address) } else { Err(What::Bracket) }
        })
    }
}

/// See [`Message::contacts`].
#[derive(Clone, Copy, Debug)]
pub struct Contacts<'a>(List<'a>);

impl<'a> Iterator for Contacts<'a> {
    type Item = Result<Contact<'a>, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next(Contact::read)
    }
}

/// See [`Message::requires`] and [`Message::proxy_requires`].
#[derive(Clone, Copy, Debug)]
pub struct OptionTags<'a>(List<'a>);

impl<'a> Iterator for OptionTags<'a> {
    type Item = Result<&'a str, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        self.0.next(Cursor::token)
    }
}

#[cfg(test)]
mod tests;
