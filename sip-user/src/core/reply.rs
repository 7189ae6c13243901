//! Answers of our own, made without memory (RFC 3261 8.2.6, 8.2.7).

use std::borrow::Cow;
use std::net::SocketAddr;

use sip_ebpf::cookie;
use sip_ebpf::hash::Keys;
use sip_ebpf::header::Span;
use sip_ebpf::message::{Message, Param, Rport, Via};
use sip_ebpf::scan::Kind;

use super::put::Put;

/// What an answer says besides the headers that it copies.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Answer<'a> {
    /// Status code.
    pub code: u16,
    /// Reason phrase.
    pub phrase: &'a str,
    /// Header lines of its own, each with its CR LF.
    pub headers: &'a str,
}

/// An answer that owns what it says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Response {
    /// Status code.
    pub code: u16,
    /// Reason phrase.
    pub phrase: Cow<'static, str>,
    /// Header lines of its own, each with its CR LF.
    pub headers: String,
}

impl Response {
    /// Without headers of its own.
    pub fn new(code: u16, phrase: impl Into<Cow<'static, str>>) -> Self {
        Self { code, phrase: phrase.into(), headers: String::new() }
    }

    /// And with this header line, which ends with CR LF.
    pub fn with(mut self, line: &str) -> Self {
        self.headers.push_str(line);
        self
    }

    /// For [`build`].
    pub fn answer(&self) -> Answer<'_> {
        Answer { code: self.code, phrase: &self.phrase, headers: &self.headers }
    }
}

/// The answer to a request that came from `from`, and where it goes. `None` for a request that cannot be
/// answered: one without Via, From, To, Call-ID or CSeq, or with a top Via that leads nowhere. Everything
/// else in it may be wrong.
///
/// The same request gets the same bytes each time, its To tag included.
pub fn build(
    message: &Message<'_>,
    from: SocketAddr,
    keys: &Keys,
    answer: Answer<'_>,
) -> Option<(SocketAddr, Vec<u8>)> {
    build_tagged(message, from, answer, |text, call_id| cookie::to_tag(keys, text, call_id).0)
}

/// As [`build`], for a 401 or 407 that nothing is kept of: its tag is another, so that its ACK can be told from those that
/// somebody waits for.
pub fn build_challenge(
    message: &Message<'_>,
    from: SocketAddr,
    keys: &Keys,
    answer: Answer<'_>,
) -> Option<(SocketAddr, Vec<u8>)> {
    build_tagged(message, from, answer, |text, call_id| {
        cookie::challenge_tag(keys, text, call_id).0
    })
}

fn build_tagged(
    message: &Message<'_>,
    from: SocketAddr,
    answer: Answer<'_>,
    tag: impl Fn(&[u8], Span) -> u64,
) -> Option<(SocketAddr, Vec<u8>)> {
    let mut out = Vec::with_capacity(message.bytes().len().min(2048) + 128);
    out.extend_from_slice(b"SIP/2.0 ");
    out.decimal(answer.code.into());
    out.push(b' ');
    out.extend_from_slice(answer.phrase.as_bytes());
    out.extend_from_slice(b"\r\n");
    let way_back = vias(message, from, &mut out)?;
    put(&mut out, "From", first(message, Kind::From)?);
    let to = first(message, Kind::To)?;
    out.extend_from_slice(b"To: ");
    out.extend_from_slice(to);
    if !has_tag(message, to) {
        let line = message.index().first(Kind::CallId)?;
        let span = Span { at: u32::from(line.value), end: u32::from(line.end) };
        out.extend_from_slice(b";tag=");
        out.extend_from_slice(&tag(message.bytes(), span).to_le_bytes());
    }
    out.extend_from_slice(b"\r\n");
    put(&mut out, "Call-ID", first(message, Kind::CallId)?);
    put(&mut out, "CSeq", first(message, Kind::CSeq)?);
    out.extend_from_slice(answer.headers.as_bytes());
    out.extend_from_slice(b"Content-Length: 0\r\n\r\n");
    Some((way_back, out))
}

/// Where an answer to a request with this top Via goes (18.2.2, RFC 3581 4): its sender's address, and the
/// port that it says there, unless it asks by `rport` for the one it sent from.
pub fn way_back(via: &Via<'_>, from: SocketAddr) -> SocketAddr {
    match via.rport {
        Rport::Absent => SocketAddr::new(from.ip(), via.port.unwrap_or(5060)),
        Rport::Empty | Rport::Value(_) => from,
    }
}

/// The line by which the sender of a request measures the way, for its 100 (8.2.6.1); empty without one.
pub(super) fn timestamp(message: &Message<'_>) -> String {
    let header =
        message.headers_of(Kind::Other).find(|has| has.name.eq_ignore_ascii_case(b"Timestamp"));
    let value = header.and_then(|header| str::from_utf8(header.value).ok());
    value.map(|value| format!("Timestamp: {value}\r\n")).unwrap_or_default()
}

/// The reason phrase of an answer that is made because none has come, or none that can go on.
pub(super) const fn phrase(code: u16) -> &'static str {
    match code {
        408 => "Request Timeout",
        480 => "Temporarily Unavailable",
        482 => "Loop Detected",
        487 => "Request Terminated",
        503 => "Service Unavailable",
        513 => "Message Too Large",
        _ => "Server Internal Error",
    }
}

/// All Vias in their order, the top one with what its receiver adds (18.2.1, RFC 3581 4).
pub(super) fn vias(
    message: &Message<'_>,
    from: SocketAddr,
    out: &mut Vec<u8>,
) -> Option<SocketAddr> {
    let via = message.top_via().ok().filter(Via::is_sip2)?;
    out.extend_from_slice(b"Via: ");
    let sent_by = Span { at: via.span.at, end: via.sent_by.end };
    out.extend_from_slice(message.slice(sent_by));
    for param in via.params.filter(|param| !param.is("received")) {
        match param.is("rport") {
            true => {
                put_param(out, Param { value: Some(b""), ..param });
                out.decimal(from.port().into());
                // Where the kernel puts it too.
                out.extend_from_slice(b";received=");
                out.ip(from.ip());
            }
            false => put_param(out, param),
        }
    }
    if via.rport == Rport::Absent && via.host.ip() != Some(from.ip()) {
        out.extend_from_slice(b";received=");
        out.ip(from.ip());
    }
    out.extend_from_slice(b"\r\n");
    // What stands behind the first comma, and the other lines, as they are.
    let cut = message.cut_first(Kind::Via).ok()??;
    for header in message.headers_of(Kind::Via) {
        if header.span.end <= cut.end {
            continue;
        }
        let rest = Span { at: cut.end.max(header.span.at), end: header.span.end };
        match rest.at == header.span.at {
            true => put(out, "Via", header.value),
            false => put(out, "Via", message.slice(rest).trim_ascii()),
        }
    }
    Some(way_back(&via, from))
}

fn first<'a>(message: &Message<'a>, kind: Kind) -> Option<&'a [u8]> {
    message.first(kind).map(|header| header.value)
}

/// Whether a To has a tag. One that is wrong is looked at as far as that goes: behind the address.
fn has_tag(message: &Message<'_>, to: &[u8]) -> bool {
    if let Ok(to) = message.to() {
        return to.tag().is_some();
    }
    let behind = to.iter().rposition(|byte| *byte == b'>').unwrap_or(0);
    to.get(behind..).unwrap_or_default().split(|byte| *byte == b';').skip(1).any(|param| {
        let name = param.split(|byte| *byte == b'=').next().unwrap_or_default();
        name.trim_ascii().eq_ignore_ascii_case(b"tag")
    })
}

fn put_param(out: &mut Vec<u8>, param: Param<'_>) {
    out.push(b';');
    out.extend_from_slice(param.name.as_bytes());
    if let Some(value) = param.value {
        out.push(b'=');
        out.extend_from_slice(value);
    }
}

fn put(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    for piece in [name.as_bytes(), b": ", value, b"\r\n"] {
        out.extend_from_slice(piece);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sip_ebpf::scan::Index;

    fn keys() -> Keys {
        Keys::new([1, 2])
    }

    fn answer(text: &str, from: &str) -> Option<(String, Vec<String>)> {
        let mut index = Index::new();
        let message = Message::parse(text.as_bytes(), &mut index).unwrap();
        let answer = Answer { code: 403, phrase: "Forbidden", headers: "Retry-After: 3\r\n" };
        let (to, bytes) = build(&message, from.parse().unwrap(), &keys(), answer)?;
        let text = String::from_utf8(bytes).unwrap();
        Some((to.to_string(), text.split("\r\n").map(str::to_owned).collect()))
    }

    fn request(via: &str, to: &str) -> String {
        format!(
            "INVITE sip:bob@192.0.2.1 SIP/2.0\r\nv: {via}\r\nVia: SIP/2.0/TCP far.example;branch=z9hG4bKfar\
             \r\nf: <sip:a@b>;tag=1\r\nTo: {to}\r\ni: 42@b\r\nCSeq:  7   INVITE\r\nl: 0\r\n\r\n"
        )
    }

    #[test]
    fn a_whole_answer() {
        let text = request("SIP/2.0/UDP 10.0.0.9;branch=z9hG4bKx", "Bob <sip:bob@b;tag=no>");
        let (to, lines) = answer(&text, "10.0.0.9:5080").unwrap();
        // Without rport the port is that of the Via (18.2.2).
        assert_eq!(to, "10.0.0.9:5060");
        let tag = lines[4].rsplit_once(";tag=").unwrap().1;
        assert_eq!(tag.len(), 8);
        assert_eq!(
            lines,
            [
                "SIP/2.0 403 Forbidden",
                "Via: SIP/2.0/UDP 10.0.0.9;branch=z9hG4bKx",
                "Via: SIP/2.0/TCP far.example;branch=z9hG4bKfar",
                "From: <sip:a@b>;tag=1",
                &format!("To: Bob <sip:bob@b;tag=no>;tag={tag}"),
                "Call-ID: 42@b",
                "CSeq: 7   INVITE",
                "Retry-After: 3",
                "Content-Length: 0",
                "",
                "",
            ]
        );
        assert_eq!(answer(&text, "10.0.0.9:5080").unwrap().1, lines, "the same each time (8.2.7)");
    }

    #[test]
    fn the_way_back() {
        let way = |via: &str, from: &str| {
            let (to, lines) = answer(&request(via, "<sip:b@c>;tag=2"), from).unwrap();
            assert_eq!(lines.iter().filter(|l| l.contains("tag=2")).count(), 1);
            (to, lines[1].clone())
        };
        // RFC 3581 4: where it came from, and both are said.
        let (to, via) = way("SIP/2.0/UDP 10.0.0.9;rport;branch=z9hG4bKx", "10.0.0.9:5080");
        assert_eq!(to, "10.0.0.9:5080");
        assert_eq!(via, "Via: SIP/2.0/UDP 10.0.0.9;rport=5080;received=10.0.0.9;branch=z9hG4bKx");
        // 18.2.1: another address than the sender's own words.
        let (to, via) = way("SIP/2.0/UDP pc.example:5070;branch=z9hG4bKx", "10.0.0.9:5080");
        assert_eq!(to, "10.0.0.9:5070");
        assert!(via.ends_with(";received=10.0.0.9"), "{via}");
        // A forged `received` is overwritten.
        let (to, via) = way("SIP/2.0/UDP pc.example;received=192.0.2.66", "10.0.0.9:5080");
        assert_eq!(to, "10.0.0.9:5060");
        assert!(!via.contains("192.0.2.66"), "{via}");
        // IPv6.
        let (to, via) = way("SIP/2.0/UDP [2001:db8::9]:5070;rport", "[2001:db8::9]:5080");
        assert_eq!(to, "[2001:db8::9]:5080");
        assert!(via.ends_with(";rport=5080;received=2001:db8::9"), "{via}");
        // White space and commas.
        let (_, via) = way(
            "SIP / 2.0 / udp 10.0.0.9 : 5070 ; branch = z9hG4bKx , SIP/2.0/UDP b",
            "10.0.0.9:1",
        );
        assert_eq!(via, "Via: SIP / 2.0 / udp 10.0.0.9 : 5070;branch=z9hG4bKx");
    }

    #[test]
    fn what_cannot_be_answered() {
        let good = request("SIP/2.0/UDP 10.0.0.9", "<sip:b@c>");
        for name in ["f:", "To:", "i:", "CSeq:"] {
            let broken = good.replace(&format!("\r\n{name}"), "\r\nX:");
            assert_ne!(broken, good);
            assert_eq!(answer(&broken, "10.0.0.9:5060"), None, "without {name}");
        }
        for via in
            ["", "SIP/2.0", "SIP/2.0/UDP", "SIP/2.0/UDP :5060", "HTTP/1.1/UDP b", "SIP/2.0/UDP b:0"]
        {
            assert_eq!(answer(&request(via, "<sip:b@c>"), "10.0.0.9:5060"), None, "{via:?}");
        }
    }
}
