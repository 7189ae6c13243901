//! Messages in rare forms, written anew in the usual one.
//!
//! RFC 3261 allows one meaning in many forms: folded lines, several values joined by commas, white space
//! around separators, preloaded routes, neighbours that route strictly. The quick path
//! ([`mod@sip_ebpf::route`]) knows the usual form only. Here such a message, read by
//! [`sip_ebpf::message`], is written in that form and is then routed by the same code, so there is one set
//! of rules and not two. What a header means is never changed, and the body never is.

use std::net::SocketAddr;
use std::ops::Range;

use sip_ebpf::header::Span;
use sip_ebpf::message::{self, Address, Message, Param, Scheme, Uri, Via};
use sip_ebpf::scan::{Kind, Method};

use super::cookie;
use super::family::Family;

/// Max-Forwards for a request that has none: the seed's 10, and the hop that we take off.
const DEFAULT_HOPS: u8 = 10 + 1;
/// The largest Max-Forwards that goes on (RFC 3261 8.1.1.6 recommends to start with it).
const MOST_HOPS: u8 = 70;

/// What is wrong with a message, and how a request with it is answered.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// Status code.
    pub code: u16,
    /// Reason phrase.
    pub phrase: String,
}

impl Fault {
    /// With the words of a constant.
    pub fn new(code: u16, phrase: &str) -> Self {
        Self { code, phrase: phrase.to_owned() }
    }
}

impl From<message::Error> for Fault {
    fn from(error: message::Error) -> Self {
        match error {
            // As the seed answers it: whoever cannot count hops could go on for ever.
            message::Error::Bad(Kind::MaxForwards, _) => Self::new(483, "Too Many Hops"),
            error => Self { code: error.status(), phrase: error.to_string() },
        }
    }
}

/// A message in the usual form.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Canonical {
    /// Its bytes.
    pub text: Vec<u8>,
    /// Quoted strings among the parameters of Via, From and To, which the quick path does not read.
    quoted: Vec<Range<usize>>,
}

impl Canonical {
    /// The same with a token of the same length for each quoted string: as far as routing goes, the same
    /// message. `None` if there are no such strings.
    pub fn unquoted(&self) -> Option<Vec<u8>> {
        if self.quoted.is_empty() {
            return None;
        }
        let mut text = self.text.clone();
        for range in &self.quoted {
            text.get_mut(range.clone())?.fill(b'q');
        }
        Some(text)
    }
}

/// Writes a request in the usual form. `locals` are our addresses, by which our own Routes are known.
///
/// The fault is what RFC 3261 16.3 has a proxy look for before it forwards a request.
pub fn request(message: &Message<'_>, locals: &[SocketAddr]) -> Result<Canonical, Fault> {
    check(message)?;
    let (from, to) = (message.from()?, message.to()?);
    let mut uri = message.request_uri()?.text.to_owned();
    let mut routes = Vec::new();
    // The Routes of a request that starts a dialog are dropped: nobody relays by us where he likes.
    if to.tag().is_some() {
        for route in message.routes() {
            routes.push(Route::read(message, &route?, locals));
        }
        undo_strict_routing(message, &mut uri, &mut routes, locals)?;
    }

    let mut out = Writer::default();
    let start = format!("{} {uri} SIP/2.0\r\n", message.method_name()?);
    out.text.extend_from_slice(start.as_bytes());
    let mut wrote = Wrote::default();
    let ack_or_cancel = matches!(message.method(), Method::Ack | Method::Cancel);
    for header in message.headers() {
        match header.kind {
            Kind::Via if !wrote.vias => {
                wrote.vias = true;
                write_vias(message, &mut out)?;
            }
            Kind::Route if !wrote.routes => {
                wrote.routes = true;
                routes.iter().for_each(|route| out.header("Route", &route.text));
            }
            Kind::From => out.address("From", message, &from),
            Kind::To => out.address("To", message, &to),
            Kind::CallId => out.header("Call-ID", message.call_id()?.as_bytes()),
            Kind::CSeq => {
                let cseq = message.cseq()?;
                out.header("CSeq", format!("{} {}", cseq.number, cseq.method).as_bytes());
            }
            // All of them stand where the first one stood; length and hops are written at the end; and
            // ACK and CANCEL can demand nothing, since there is no way to refuse them (20.29).
            Kind::Via | Kind::Route | Kind::ContentLength | Kind::MaxForwards => {}
            Kind::ProxyRequire if ack_or_cancel => {}
            _ => out.raw(header.name, header.value),
        }
    }
    if !wrote.routes {
        // A strict router's Request-URI was ours.
        routes.iter().for_each(|route| out.header("Route", &route.text));
    }
    let hops = message.max_forwards()?.map_or(DEFAULT_HOPS, |hops| hops.value.min(MOST_HOPS));
    if hops == 0 {
        return Err(Fault::new(483, "Too Many Hops"));
    }
    out.header("Max-Forwards", hops.to_string().as_bytes());
    out.end(message)
}

/// Writes a response in the usual form. A response has no answer, so its fault is for the log alone.
pub fn response(message: &Message<'_>) -> Result<Canonical, Fault> {
    let mut out = Writer::default();
    let start = message.bytes().get(..message.headers_at() as usize).unwrap_or_default();
    out.text.extend_from_slice(start);
    let mut wrote = Wrote::default();
    for header in message.headers() {
        match header.kind {
            Kind::Via if !wrote.vias => {
                wrote.vias = true;
                for (number, via) in message.vias().enumerate() {
                    let via = via?;
                    // Ours and the next one are read by the quick path.
                    match number {
                        0 | 1 => out.via(&via, via.params),
                        _ => out.header("Via", message.slice(via.span)),
                    }
                }
            }
            Kind::Via | Kind::ContentLength => {}
            Kind::CallId => out.header("Call-ID", message.call_id()?.as_bytes()),
            _ => out.raw(header.name, header.value),
        }
    }
    out.end(message)
}

/// The target of a request by its Request-URI (16.5), if that says UDP and an address.
pub fn target(uri: &Uri<'_>) -> Option<SocketAddr> {
    let udp = uri.transport().is_none_or(|transport| transport.eq_ignore_ascii_case("udp"));
    if uri.scheme != Scheme::Sip || !udp {
        return None;
    }
    let host = match uri.params.has("maddr") {
        true => uri.maddr()?,
        false => uri.host?,
    };
    Some(SocketAddr::new(host.ip()?, uri.port.unwrap_or(5060)))
}

/// The digits of the cookie in a URI that we wrote, and the address of ours in it.
pub fn our_cookie<'a>(uri: &Uri<'a>, locals: &[SocketAddr]) -> Option<(SocketAddr, &'a str)> {
    let address = SocketAddr::new(uri.host?.ip()?, uri.port.unwrap_or(5060));
    let digits = uri.params.get("sl")?.text()?;
    let ours = uri.scheme == Scheme::Sip
        && uri.user.is_none()
        && locals.contains(&address)
        && digits.len() == cookie::digits(Family::of(address));
    ours.then_some((address, digits))
}

/// What a proxy must find well-formed (16.3, step 1), and that it came as it says.
fn check(message: &Message<'_>) -> Result<(), Fault> {
    message.check()?;
    if !message.top_via()?.is_udp() {
        return Err(Fault::new(400, "Via Transport Is Not UDP"));
    }
    Ok(())
}

/// Headers of which all are written where the first one stood.
#[derive(Default)]
struct Wrote {
    vias: bool,
    routes: bool,
}

/// The top Via without what is not its sender's to say, and with a branch that tells transactions apart;
/// the others as they are, each in a line.
fn write_vias(message: &Message<'_>, out: &mut Writer) -> Result<(), Fault> {
    for (number, via) in message.vias().enumerate() {
        let via = via?;
        if number > 0 {
            out.header("Via", message.slice(via.span));
            continue;
        }
        let unique = via.is_unique();
        let kept = via.params.filter(|param| {
            !param.is("received") && !param.is("maddr") && (unique || !param.is("branch"))
        });
        // The receiver fills the port in (RFC 3581 4).
        let kept = kept.map(|param| match param.is("rport") {
            true => Param { name: "rport", value: None, ..param },
            false => param,
        });
        let branch = format!("z9hG4bKold{:016x}", old_transaction(message)?);
        let added = (!unique).then_some(Param {
            name: "branch",
            value: Some(branch.as_bytes()),
            span: Span::default(),
            value_span: Span::default(),
        });
        out.via(&via, kept.chain(added));
    }
    Ok(())
}

/// What tells the transactions of a client of RFC 2543 apart (16.11). It finds its own Via again in the
/// response, with one parameter more.
fn old_transaction(message: &Message<'_>) -> Result<u64, Fault> {
    let cseq = message.cseq()?.number.to_be_bytes();
    let from = message.from()?;
    let parts = [message.call_id()?.as_bytes(), &cseq, from.tag().unwrap_or_default().as_bytes()];
    // FNV-1a: it needs no secret, since what becomes of it is hashed with the key.
    Ok(parts.into_iter().flatten().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    }))
}

/// One Route.
struct Route {
    /// The entry, in the usual form if it is ours.
    text: Vec<u8>,
    /// The address in it.
    uri: String,
}

impl Route {
    /// Ours are written as we wrote them once: `<sip:ADDR:PORT;lr;sl=COOKIE>`.
    fn read(message: &Message<'_>, route: &Address<'_>, locals: &[SocketAddr]) -> Self {
        let text = match our_cookie(&route.uri, locals) {
            Some((local, digits)) => ours(local, digits),
            None => message.slice(route.span).to_vec(),
        };
        Self { text, uri: route.uri.text.to_owned() }
    }
}

fn ours(local: SocketAddr, digits: &str) -> Vec<u8> {
    format!("<sip:{local};lr;sl={digits}>").into_bytes()
}

/// A neighbour that routes strictly has put our Record-Route into the Request-URI, and the address that
/// was there to the end of the Routes: both go back (16.4).
fn undo_strict_routing(
    message: &Message<'_>,
    uri: &mut String,
    routes: &mut Vec<Route>,
    locals: &[SocketAddr],
) -> Result<(), Fault> {
    let request_uri = message.request_uri()?;
    let Some((local, digits)) = our_cookie(&request_uri, locals) else { return Ok(()) };
    let Some(last) = routes.pop() else { return Err(Fault::new(400, "Missing Route")) };
    routes.insert(0, Route { text: ours(local, digits), uri: std::mem::take(uri) });
    *uri = last.uri;
    Ok(())
}

/// Collects a message.
#[derive(Default)]
struct Writer {
    text: Vec<u8>,
    quoted: Vec<Range<usize>>,
}

impl Writer {
    fn header(&mut self, name: &str, value: &[u8]) {
        self.raw(name.as_bytes(), value);
    }

    fn raw(&mut self, name: &[u8], value: &[u8]) {
        for piece in [name, b": ", value, b"\r\n"] {
            self.text.extend_from_slice(piece);
        }
    }

    fn via<'a>(&mut self, via: &Via<'_>, params: impl Iterator<Item = Param<'a>>) {
        let transport = via.transport.to_ascii_uppercase();
        let port = via.port.map_or(String::new(), |port| format!(":{port}"));
        let start = format!("Via: SIP/2.0/{transport} {}{port}", via.host);
        self.text.extend_from_slice(start.as_bytes());
        self.params(params);
    }

    fn address(&mut self, name: &str, message: &Message<'_>, address: &Address<'_>) {
        self.text.extend_from_slice(format!("{name}: ").as_bytes());
        if address.in_brackets {
            // The display name as written, quotes and all: what stands before the bracket.
            let shown = Span { at: address.span.at, end: address.uri.span.at.saturating_sub(1) };
            let shown = message.slice(shown).trim_ascii();
            self.text.extend_from_slice(shown);
            if !shown.is_empty() {
                self.text.push(b' ');
            }
            self.text.extend_from_slice(format!("<{}>", address.uri.text).as_bytes());
        } else {
            self.text.extend_from_slice(address.uri.text.as_bytes());
        }
        self.params(address.params);
    }

    fn params<'a>(&mut self, params: impl Iterator<Item = Param<'a>>) {
        for param in params {
            self.text.push(b';');
            self.text.extend_from_slice(param.name.as_bytes());
            if let Some(value) = param.value {
                self.text.push(b'=');
                let at = self.text.len();
                self.text.extend_from_slice(value);
                if value.starts_with(b"\"") {
                    self.quoted.push(at..self.text.len());
                }
            }
        }
        self.text.extend_from_slice(b"\r\n");
    }

    /// The body, as long as Content-Length says (18.3).
    fn end(mut self, message: &Message<'_>) -> Result<Canonical, Fault> {
        let body = message.body()?;
        self.header("Content-Length", body.len().to_string().as_bytes());
        self.text.extend_from_slice(b"\r\n");
        self.text.extend_from_slice(body);
        Ok(Canonical { text: self.text, quoted: self.quoted })
    }
}
