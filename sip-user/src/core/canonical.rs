//! Messages in rare forms, written anew in the usual one.
//!
//! RFC 3261 allows one meaning in many forms: folded lines, several values joined by commas, white space
//! around separators, preloaded routes, neighbours that route strictly. The quick path
//! ([`mod@sip_ebpf::route`]) knows the usual form only. Here such a message is written in that form and is
//! then routed by the same code, so there is one set of rules and not two. What a header means is never
//! changed, and the body never is.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};

use sip_ebpf::cookie::COOKIE_DIGITS;
use sip_ebpf::scan::{Index, Kind, Line, Method};

/// What is wrong with a message, and how a request with it is answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Fault {
    /// Status code.
    pub code: u16,
    /// Reason phrase.
    pub phrase: &'static str,
}

const fn bad(phrase: &'static str) -> Fault {
    Fault { code: 400, phrase }
}

/// Max-Forwards for a request that has none: the seed's 10, and the hop that we take off.
const DEFAULT_HOPS: u32 = 10 + 1;
/// The largest Max-Forwards that goes on (RFC 3261 8.1.1.6 recommends to start with it).
const MOST_HOPS: u32 = 70;

/// Writes a request in the usual form. `locals` are our addresses, by which our own Routes are known.
pub fn request(text: &[u8], index: &Index, locals: &[SocketAddr]) -> Result<Vec<u8>, Fault> {
    check_singles(index)?;
    let method = slice(text, 0, index.method_end as usize);
    let mut uri = slice(text, index.uri as usize, index.uri_end as usize).to_vec();
    let mut headers = Vec::with_capacity(text.len() + 64);
    let cseq = cseq(&value(text, single(index, Kind::CSeq)?), method)?;
    let call_id = value(text, single(index, Kind::CallId)?);
    if call_id.is_empty() || call_id.iter().any(u8::is_ascii_whitespace) {
        return Err(bad("Bad Call-ID"));
    }
    let from = address_header(&value(text, single(index, Kind::From)?)).ok_or(bad("Bad From"))?;
    if from.tag().is_none() {
        return Err(bad("Missing From Tag"));
    }
    let to = address_header(&value(text, single(index, Kind::To)?)).ok_or(bad("Bad To"))?;
    let in_dialog = to.tag().is_some();
    let ack_or_cancel = method == b"ACK" || method == b"CANCEL";

    let mut routes = Vec::new();
    if in_dialog {
        for line in lines(index, Kind::Route) {
            for route in split(&value(text, *line)).ok_or(bad("Bad Route"))? {
                routes.push(Route::read(route, locals).ok_or(bad("Bad Route"))?);
            }
        }
        undo_strict_routing(&mut uri, &mut routes, locals)?;
    }

    let mut first_via = true;
    let mut wrote_route = false;
    let mut hops = None;
    for line in index.lines() {
        let value = value(text, *line);
        match kind(*line) {
            Kind::Via => {
                for part in split(&value).ok_or(bad("Bad Via"))? {
                    if first_via {
                        first_via = false;
                        let via = top_via(part, &call_id, cseq.number, from.tag())?;
                        put(&mut headers, b"Via", &via.text());
                    } else {
                        put(&mut headers, b"Via", part);
                    }
                }
            }
            Kind::From => put(&mut headers, b"From", &from.text()),
            Kind::To => put(&mut headers, b"To", &to.text()),
            Kind::CallId => put(&mut headers, b"Call-ID", &call_id),
            Kind::CSeq => put(&mut headers, b"CSeq", &cseq.text(method)),
            Kind::MaxForwards => {
                // A number of any length: what does not fit is large.
                if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
                    return Err(Fault { code: 483, phrase: "Too Many Hops" });
                }
                let n = number(&value).map_or(MOST_HOPS, |n| n.min(MOST_HOPS));
                if n == 0 {
                    return Err(Fault { code: 483, phrase: "Too Many Hops" });
                }
                hops = Some(n);
                put(&mut headers, b"Max-Forwards", n.to_string().as_bytes());
            }
            Kind::Route => {
                // All of them at the place of the first: their order is theirs alone. The Routes of a
                // request that starts a dialog are dropped: nobody relays by us where he likes.
                if !wrote_route {
                    wrote_route = true;
                    for route in &routes {
                        put(&mut headers, b"Route", &route.text);
                    }
                }
            }
            // RFC 3261 20.29: none in ACK and CANCEL, and there is no way to refuse these.
            Kind::ProxyRequire if ack_or_cancel => {}
            // The body's own length is put below.
            Kind::ContentLength => {}
            _ => {
                let name = slice(text, line.start as usize, line.value as usize);
                let name = name.split(|b| *b == b':' || b.is_ascii_whitespace()).next();
                put(&mut headers, name.unwrap_or_default(), &value);
            }
        }
    }
    if !wrote_route {
        for route in &routes {
            put(&mut headers, b"Route", &route.text);
        }
    }
    if hops.is_none() {
        put(&mut headers, b"Max-Forwards", DEFAULT_HOPS.to_string().as_bytes());
    }
    let body = body(text, index)?;
    put(&mut headers, b"Content-Length", body.len().to_string().as_bytes());

    let mut out = Vec::with_capacity(headers.len() + body.len() + uri.len() + 32);
    out.extend_from_slice(method);
    out.push(b' ');
    out.extend_from_slice(&uri);
    out.extend_from_slice(b" SIP/2.0\r\n");
    out.extend_from_slice(&headers);
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
    Ok(out)
}

/// Writes a response in the usual form. A response that cannot be read has no answer, so the fault is for
/// the log alone.
pub fn response(text: &[u8], index: &Index) -> Result<Vec<u8>, Fault> {
    check_singles(index)?;
    let mut out = Vec::with_capacity(text.len() + 64);
    out.extend_from_slice(slice(text, 0, index.headers as usize));
    let mut vias = 0;
    for line in index.lines() {
        let value = value(text, *line);
        match kind(*line) {
            Kind::Via => {
                for part in split(&value).ok_or(bad("Bad Via"))? {
                    vias += 1;
                    // Ours and the next one are read by the quick path.
                    let via = (vias <= 2).then(|| Via::read(part)).flatten();
                    match via {
                        Some(via) => put(&mut out, b"Via", &via.text()),
                        None => put(&mut out, b"Via", part),
                    }
                }
            }
            Kind::ContentLength => {}
            _ => {
                let name = slice(text, line.start as usize, line.value as usize);
                let name = name.split(|b| *b == b':' || b.is_ascii_whitespace()).next();
                put(&mut out, name.unwrap_or_default(), &value);
            }
        }
    }
    let body = body(text, index)?;
    put(&mut out, b"Content-Length", body.len().to_string().as_bytes());
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(body);
    Ok(out)
}

/// A header's value on one line, without white space around it (RFC 3261 7.3.1).
pub fn value(text: &[u8], line: Line) -> Cow<'_, [u8]> {
    let raw = slice(text, line.value as usize, line.end as usize);
    if !raw.contains(&b'\r') {
        return Cow::Borrowed(raw.trim_ascii());
    }
    let mut flat = Vec::with_capacity(raw.len());
    for piece in raw.split(|b| matches!(b, b'\r' | b'\n')) {
        let piece = piece.trim_ascii();
        if !piece.is_empty() && !flat.is_empty() {
            flat.push(b' ');
        }
        flat.extend_from_slice(piece);
    }
    Cow::Owned(flat)
}

/// Elements joined by commas (7.3.1), each trimmed; commas in quotes and in angle brackets join nothing.
/// `None` if an element is empty, or a quote or bracket stays open.
pub fn split(value: &[u8]) -> Option<Vec<&[u8]>> {
    let mut parts = Vec::new();
    let mut start = 0;
    let mut quoted = false;
    let mut escaped = false;
    let mut angle = false;
    for (at, byte) in value.iter().enumerate() {
        if escaped {
            escaped = false;
            continue;
        }
        match byte {
            b'\\' if quoted => escaped = true,
            b'"' if !angle => quoted = !quoted,
            b'<' if !quoted => angle = true,
            b'>' if !quoted => angle = false,
            b',' if !quoted && !angle => {
                parts.push(slice(value, start, at).trim_ascii());
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(slice(value, start, value.len()).trim_ascii());
    (!quoted && !angle && parts.iter().all(|part| !part.is_empty())).then_some(parts)
}

/// One Via, in pieces (20.42).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Via<'a> {
    /// `UDP` and others, as written.
    pub transport: &'a [u8],
    /// A name, an IPv4 address, or an IPv6 address in brackets.
    pub host: &'a [u8],
    /// The port, if it is given.
    pub port: Option<u16>,
    /// Parameters in their order.
    pub params: Vec<Param<'a>>,
}

/// One parameter.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Param<'a> {
    /// Its name, as written.
    pub name: &'a [u8],
    /// Its value, with quotes if it has them.
    pub value: Option<Cow<'a, [u8]>>,
}

impl<'a> Via<'a> {
    /// Reads one Via, white space around its separators included (25.1).
    pub fn read(text: &'a [u8]) -> Option<Self> {
        let (protocol, rest) = cut(text, b'/')?;
        let (version, rest) = cut(rest, b'/')?;
        if !protocol.eq_ignore_ascii_case(b"SIP") || version != b"2.0" {
            return None;
        }
        let rest = rest.trim_ascii_start();
        let blank = rest.iter().position(u8::is_ascii_whitespace)?;
        let (transport, rest) = rest.split_at_checked(blank)?;
        let rest = rest.trim_ascii_start();
        let end = rest.iter().position(|b| *b == b';').unwrap_or(rest.len());
        let (sent_by, params) = rest.split_at_checked(end)?;
        let (host, port) = host_port(sent_by.trim_ascii())?;
        if transport.is_empty() || !transport.iter().all(|b| is_token(*b)) {
            return None;
        }
        Some(Self { transport, host, port, params: read_params(params)? })
    }

    /// In the usual form.
    pub fn text(&self) -> Vec<u8> {
        let mut out = b"SIP/2.0/".to_vec();
        out.extend_from_slice(&self.transport.to_ascii_uppercase());
        out.push(b' ');
        out.extend_from_slice(self.host);
        if let Some(port) = self.port {
            out.extend_from_slice(format!(":{port}").as_bytes());
        }
        write_params(&self.params, &mut out);
        out
    }

    /// The parameter of a name.
    pub fn param(&self, name: &[u8]) -> Option<&Param<'a>> {
        self.params.iter().find(|param| param.name.eq_ignore_ascii_case(name))
    }

    /// Adds what the receiver of a request adds: `received` if the sender's own words differ from where
    /// the datagram came from or if `rport` asks for it, and the value of `rport` (RFC 3261 18.2.1,
    /// RFC 3581 4). Says where a response goes (18.2.2).
    pub fn receive(&mut self, from: SocketAddr) -> SocketAddr {
        let same_host = ip(self.host) == Some(from.ip());
        self.params.retain(|param| !param.name.eq_ignore_ascii_case(b"received"));
        let rport = self.params.iter_mut().find(|param| param.name.eq_ignore_ascii_case(b"rport"));
        let asked = rport.is_some();
        if let Some(rport) = rport {
            rport.value = Some(Cow::Owned(from.port().to_string().into_bytes()));
        }
        if asked || !same_host {
            let value = from.ip().to_string().into_bytes();
            self.params.push(Param { name: b"received", value: Some(Cow::Owned(value)) });
        }
        if asked { from } else { SocketAddr::new(from.ip(), self.port.unwrap_or(5060)) }
    }
}

/// `received` and a value of `rport` are not the sender's to give; an old branch gets a new one.
fn top_via<'a>(
    text: &'a [u8],
    call_id: &[u8],
    cseq: u32,
    from_tag: Option<&[u8]>,
) -> Result<Via<'a>, Fault> {
    let mut via = Via::read(text).ok_or(bad("Bad Via"))?;
    if !via.transport.eq_ignore_ascii_case(b"UDP") {
        return Err(bad("Via Transport Is Not UDP"));
    }
    via.params.retain(|param| {
        !param.name.eq_ignore_ascii_case(b"received") && !param.name.eq_ignore_ascii_case(b"maddr")
    });
    for param in &mut via.params {
        if param.name.eq_ignore_ascii_case(b"rport") {
            param.name = b"rport";
            param.value = None;
        }
    }
    let magic =
        via.param(b"branch").and_then(|branch| branch.value.as_ref()).is_some_and(|value| {
            value.len() > 7 && value.get(..7).is_some_and(|m| m.eq_ignore_ascii_case(b"z9hG4bK"))
        });
    if !magic {
        // A client of RFC 2543: its transactions are told apart by these (16.11). It finds its own Via
        // again in the response, with one parameter more.
        let mut hash = 0xcbf2_9ce4_8422_2325_u64;
        let cseq = cseq.to_be_bytes();
        for byte in call_id.iter().chain(&cseq).chain(from_tag.unwrap_or_default()) {
            hash = (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        via.params.retain(|param| !param.name.eq_ignore_ascii_case(b"branch"));
        let value = format!("z9hG4bKold{hash:016x}").into_bytes();
        via.params.push(Param { name: b"branch", value: Some(Cow::Owned(value)) });
    }
    Ok(via)
}

/// From, To or Route: name, address and parameters.
struct Address {
    /// Display name with the space behind it, as written.
    name: Vec<u8>,
    uri: Vec<u8>,
    brackets: bool,
    /// Name and value, as written.
    params: Vec<(Vec<u8>, Option<Vec<u8>>)>,
}

impl Address {
    fn tag(&self) -> Option<&[u8]> {
        let (_, value) = self.params.iter().find(|(name, _)| name.eq_ignore_ascii_case(b"tag"))?;
        value.as_deref().filter(|tag| !tag.is_empty())
    }

    fn text(&self) -> Vec<u8> {
        let mut out = self.name.clone();
        if self.brackets {
            out.push(b'<');
        }
        out.extend_from_slice(&self.uri);
        if self.brackets {
            out.push(b'>');
        }
        for (name, value) in &self.params {
            out.push(b';');
            out.extend_from_slice(name);
            if let Some(value) = value {
                out.push(b'=');
                out.extend_from_slice(value);
            }
        }
        out
    }
}

/// `name-addr` or `addr-spec` with parameters (20.10, 20.20, 20.39).
fn address_header(value: &[u8]) -> Option<Address> {
    let open = unquoted(value, b'<')?;
    let (name, uri, brackets, rest) = match open {
        Some(open) => {
            let close = open + value.get(open..)?.iter().position(|b| *b == b'>')?;
            let name = value.get(..open)?.trim_ascii();
            let uri = value.get(open + 1..close)?;
            let mut shown = name.to_vec();
            if !shown.is_empty() {
                shown.push(b' ');
            }
            (shown, uri, true, value.get(close + 1..)?)
        }
        None => {
            // Without brackets, parameters are the header's, and the address has no comma and no ? (20).
            let end = value.iter().position(|b| *b == b';').unwrap_or(value.len());
            let (uri, rest) = value.split_at_checked(end)?;
            if uri.iter().any(|b| matches!(b, b',' | b'?')) {
                return None;
            }
            (Vec::new(), uri, false, rest)
        }
    };
    let uri = uri.trim_ascii();
    // A scheme and something behind it, and no blanks inside.
    let colon = uri.iter().position(|b| *b == b':')?;
    let fits = colon > 0 && colon + 1 < uri.len() && uri.iter().all(u8::is_ascii_graphic);
    if !fits {
        return None;
    }
    let params = read_params(rest.trim_ascii())?
        .into_iter()
        .map(|param| (param.name.to_vec(), param.value.map(Cow::into_owned)))
        .collect();
    Some(Address { name, uri: uri.to_vec(), brackets, params })
}

/// One Route.
struct Route {
    /// The entry, in the usual form if it is ours.
    text: Vec<u8>,
    /// The address in it.
    uri: Vec<u8>,
}

impl Route {
    /// Ours are written as we wrote them once: `<sip:ADDR:PORT;lr;sl=COOKIE>`.
    fn read(text: &[u8], locals: &[SocketAddr]) -> Option<Self> {
        let address = address_header(text)?;
        if !address.brackets {
            return None;
        }
        let text = match our_cookie(&address.uri, locals) {
            Some((local, cookie)) => ours(local, cookie),
            None => text.to_vec(),
        };
        Some(Self { text, uri: address.uri })
    }
}

fn ours(local: SocketAddr, cookie: &[u8]) -> Vec<u8> {
    let mut out = format!("<sip:{local};lr;sl=").into_bytes();
    out.extend_from_slice(cookie);
    out.push(b'>');
    out
}

/// The cookie in a URI that we wrote, and for which of our addresses.
fn our_cookie<'a>(uri: &'a [u8], locals: &[SocketAddr]) -> Option<(SocketAddr, &'a [u8])> {
    let target = target(uri)?;
    let address = SocketAddr::new(ip(target.host)?, target.port.unwrap_or(5060));
    if target.user || !locals.contains(&address) {
        return None;
    }
    let params = read_params(target.params)?;
    let cookie = params.into_iter().find(|param| param.name.eq_ignore_ascii_case(b"sl"))?.value?;
    match cookie {
        Cow::Borrowed(cookie) if cookie.len() == COOKIE_DIGITS as usize => Some((address, cookie)),
        _ => None,
    }
}

/// A neighbour that routes strictly has put our Record-Route into the Request-URI, and the address that
/// was there to the end of the Routes: put both back (16.4).
fn undo_strict_routing(
    uri: &mut Vec<u8>,
    routes: &mut Vec<Route>,
    locals: &[SocketAddr],
) -> Result<(), Fault> {
    let Some((local, cookie)) = our_cookie(uri, locals) else { return Ok(()) };
    let mine = Route { text: ours(local, cookie), uri: uri.clone() };
    let Some(last) = routes.pop() else { return Err(bad("Route Missing")) };
    *uri = last.uri;
    routes.insert(0, mine);
    Ok(())
}

/// Where a `sip:` URI points.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Target<'a> {
    /// Whether it has a user.
    pub user: bool,
    /// A name, an IPv4 address, or an IPv6 address in brackets.
    pub host: &'a [u8],
    /// The port, if it is given.
    pub port: Option<u16>,
    /// What follows host and port: `;params?headers`.
    pub params: &'a [u8],
}

/// Takes a `sip:` URI apart (19.1.1). `None` for another scheme and for what is none.
pub fn target(uri: &[u8]) -> Option<Target<'_>> {
    let scheme = uri.get(..4)?;
    if !scheme.eq_ignore_ascii_case(b"sip:") {
        return None;
    }
    let rest = uri.get(4..)?;
    // An @ that is not escaped ends the user and stands nowhere else (25.1).
    let (user, rest) = match rest.iter().position(|b| *b == b'@') {
        Some(at) => (true, rest.get(at + 1..)?),
        None => (false, rest),
    };
    let end = rest.iter().position(|b| matches!(b, b';' | b'?')).unwrap_or(rest.len());
    let (place, params) = rest.split_at_checked(end)?;
    let (host, port) = host_port(place)?;
    Some(Target { user, host, port, params })
}

/// The parameter of a name in the `params` of a [`Target`].
pub fn uri_param<'a>(params: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let end = params.iter().position(|b| *b == b'?').unwrap_or(params.len());
    params.get(..end)?.split(|b| *b == b';').find_map(|param| {
        let at = param.iter().position(|b| *b == b'=').unwrap_or(param.len());
        let (this, value) = param.split_at_checked(at)?;
        this.eq_ignore_ascii_case(name).then(|| value.get(1..).unwrap_or_default())
    })
}

/// The address that a host is, if it is no name.
pub fn ip(host: &[u8]) -> Option<IpAddr> {
    let text = str::from_utf8(host).ok()?;
    match text.strip_prefix('[') {
        Some(rest) => rest.strip_suffix(']')?.parse().ok().map(IpAddr::V6),
        None => text.parse().ok(),
    }
}

// ---- Pieces --------------------------------------------------------------------------------------

struct CSeq {
    number: u32,
}

impl CSeq {
    fn text(&self, method: &[u8]) -> Vec<u8> {
        let mut out = format!("{} ", self.number).into_bytes();
        out.extend_from_slice(method);
        out
    }
}

/// A number below 2^31 and the method of the request line (8.1.1.5).
fn cseq(value: &[u8], method: &[u8]) -> Result<CSeq, Fault> {
    let digits = value.iter().position(|b| !b.is_ascii_digit()).unwrap_or(value.len());
    let (digits, rest) = value.split_at_checked(digits).ok_or(bad("Bad CSeq"))?;
    let number = number(digits).filter(|n| *n < 1 << 31).ok_or(bad("Bad CSeq"))?;
    if !rest.first().is_some_and(u8::is_ascii_whitespace) {
        return Err(bad("Bad CSeq"));
    }
    if rest.trim_ascii() != method {
        return Err(bad("CSeq Method Does Not Match Request Method"));
    }
    Ok(CSeq { number })
}

/// Headers of which there is one (8.1.1, 20): each missing or doubled one has its own words.
fn check_singles(index: &Index) -> Result<(), Fault> {
    let rules = [
        (Kind::From, true, "Missing From", "Two From Headers"),
        (Kind::To, true, "Missing To", "Two To Headers"),
        (Kind::CallId, true, "Missing Call-ID", "Two Call-ID Headers"),
        (Kind::CSeq, true, "Missing CSeq", "Two CSeq Headers"),
        (Kind::Via, false, "", ""),
        (Kind::MaxForwards, false, "", "Two Max-Forwards Headers"),
        (Kind::ContentLength, false, "", "Two Content-Length Headers"),
    ];
    for (kind, must, missing, doubled) in rules {
        let seen = index.seen(kind);
        if must && seen == 0 {
            return Err(bad(missing));
        }
        if seen > 1 && !doubled.is_empty() {
            return Err(bad(doubled));
        }
    }
    if index.seen(Kind::Via) == 0 {
        return Err(bad("Missing Via"));
    }
    Ok(())
}

/// The body: as long as Content-Length says, which may not be longer than what came (18.3).
fn body<'a>(text: &'a [u8], index: &Index) -> Result<&'a [u8], Fault> {
    let all = text.get(index.body as usize..).unwrap_or_default();
    let Some(line) = index.first(Kind::ContentLength) else { return Ok(all) };
    let value = value(text, line);
    let len = number(&value).ok_or(bad("Bad Content-Length"))?;
    all.get(..len as usize).ok_or(bad("Content-Length Mis-Match"))
}

fn number(digits: &[u8]) -> Option<u32> {
    // `parse` would take a sign.
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    str::from_utf8(digits).ok()?.parse().ok()
}

fn single(index: &Index, kind: Kind) -> Result<Line, Fault> {
    index.first(kind).ok_or(bad("Missing Header"))
}

fn lines(index: &Index, kind: Kind) -> impl Iterator<Item = &Line> {
    index.lines().iter().filter(move |line| line.kind == kind as u8)
}

fn kind(line: Line) -> Kind {
    Kind::ALL.get(line.kind as usize).copied().unwrap_or(Kind::Other)
}

/// Whether the start line is that of a request with a method that is never answered.
pub fn is_ack(index: &Index) -> bool {
    index.method == Method::Ack as u32
}

fn put(out: &mut Vec<u8>, name: &[u8], value: &[u8]) {
    out.extend_from_slice(name);
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// What stands before and behind the first `mark`, trimmed on the sides of it.
fn cut(text: &[u8], mark: u8) -> Option<(&[u8], &[u8])> {
    let at = text.iter().position(|b| *b == mark)?;
    Some((text.get(..at)?.trim_ascii(), text.get(at + 1..)?.trim_ascii_start()))
}

/// The first `mark` outside quotes. `None` if a quote stays open.
fn unquoted(text: &[u8], mark: u8) -> Option<Option<usize>> {
    let mut quoted = false;
    let mut escaped = false;
    for (at, byte) in text.iter().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            byte if *byte == mark && !quoted => return Some(Some(at)),
            _ => {}
        }
    }
    (!quoted).then_some(None)
}

/// Host and port, white space around the colon included.
fn host_port(text: &[u8]) -> Option<(&[u8], Option<u16>)> {
    let host_end = if text.first() == Some(&b'[') {
        text.iter().position(|b| *b == b']')? + 1
    } else {
        text.iter().position(|b| *b == b':').unwrap_or(text.len())
    };
    let (host, rest) = text.split_at_checked(host_end)?;
    let host = host.trim_ascii();
    let fits = !host.is_empty()
        && if host.first() == Some(&b'[') {
            ip(host).is_some()
        } else {
            host.iter().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
        };
    if !fits {
        return None;
    }
    let rest = rest.trim_ascii_start();
    if rest.is_empty() {
        return Some((host, None));
    }
    let port = number(rest.strip_prefix(b":")?.trim_ascii_start())?;
    Some((host, Some(u16::try_from(port).ok().filter(|port| *port != 0)?)))
}

/// `;name=value` and so on, white space around the separators included; headers of a URI (`?...`) end it.
fn read_params(text: &[u8]) -> Option<Vec<Param<'_>>> {
    let mut params = Vec::new();
    let mut rest = text.trim_ascii();
    while !rest.is_empty() && rest.first() != Some(&b'?') {
        rest = rest.strip_prefix(b";")?.trim_ascii_start();
        let end = rest.iter().position(|b| !is_param(*b)).unwrap_or(rest.len());
        let (name, after) = rest.split_at_checked(end)?;
        if name.is_empty() {
            return None;
        }
        rest = after.trim_ascii_start();
        let mut value = None;
        if let Some(after) = rest.strip_prefix(b"=") {
            let after = after.trim_ascii_start();
            let end = if after.first() == Some(&b'"') {
                closing_quote(after)? + 1
            } else {
                after.iter().position(|b| !is_param(*b)).unwrap_or(after.len())
            };
            let (this, after) = after.split_at_checked(end)?;
            if this.is_empty() {
                return None;
            }
            value = Some(Cow::Borrowed(this));
            rest = after.trim_ascii_start();
        }
        params.push(Param { name, value });
    }
    Some(params)
}

fn write_params(params: &[Param<'_>], out: &mut Vec<u8>) {
    for param in params {
        out.push(b';');
        out.extend_from_slice(param.name);
        if let Some(value) = &param.value {
            out.push(b'=');
            out.extend_from_slice(value);
        }
    }
}

fn closing_quote(text: &[u8]) -> Option<usize> {
    let mut escaped = false;
    text.iter().enumerate().skip(1).find_map(|(at, byte)| {
        let was = escaped;
        escaped = *byte == b'\\' && !was;
        (*byte == b'"' && !was).then_some(at)
    })
}

/// A character of a token (25.1).
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-.!%*_+`'~".contains(&byte)
}

/// A character of a parameter's name or value: of a token, a host, or a URI's parameter (25.1).
fn is_param(byte: u8) -> bool {
    is_token(byte) || b"[]/:&+$@".contains(&byte)
}

fn slice(text: &[u8], from: usize, to: usize) -> &[u8] {
    text.get(from..to).unwrap_or_default()
}
