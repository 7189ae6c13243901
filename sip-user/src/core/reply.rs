//! Answers of our own, made without memory (RFC 3261 8.2.6, 8.2.7).

use std::net::SocketAddr;

use sip_ebpf::cookie;
use sip_ebpf::header::Span;
use sip_ebpf::scan::{Index, Kind, Line};

use super::canonical::{self, Via};

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

/// The answer to a request that came from `from`, and where it goes. `None` for a request that cannot be
/// answered: one without Via, From, To, Call-ID or CSeq, or with a top Via that leads nowhere.
///
/// The same request gets the same bytes each time, its To tag included.
pub fn build(
    text: &[u8],
    index: &Index,
    from: SocketAddr,
    key: [u64; 2],
    answer: Answer<'_>,
) -> Option<(SocketAddr, Vec<u8>)> {
    let mut out = Vec::with_capacity(text.len().min(2048) + 128);
    out.extend_from_slice(format!("SIP/2.0 {} {}\r\n", answer.code, answer.phrase).as_bytes());
    let way_back = vias(text, index, from, &mut out)?;
    line(text, "From", index.first(Kind::From)?, &mut out);
    let to = index.first(Kind::To)?;
    line(text, "To", to, &mut out);
    let call_id = index.first(Kind::CallId)?;
    if !has_tag(&canonical::value(text, to)) {
        let span = Span { at: u32::from(call_id.value), end: u32::from(call_id.end) };
        let (call, _) = cookie::call(key, text, span);
        out.truncate(out.len() - 2);
        out.extend_from_slice(b";tag=");
        out.extend_from_slice(&cookie::to_tag(call).to_le_bytes());
        out.extend_from_slice(b"\r\n");
    }
    line(text, "Call-ID", call_id, &mut out);
    line(text, "CSeq", index.first(Kind::CSeq)?, &mut out);
    out.extend_from_slice(answer.headers.as_bytes());
    out.extend_from_slice(b"Content-Length: 0\r\n\r\n");
    Some((way_back, out))
}

/// All Vias in their order, the top one with what its receiver adds (18.2.1).
fn vias(text: &[u8], index: &Index, from: SocketAddr, out: &mut Vec<u8>) -> Option<SocketAddr> {
    let mut way_back = None;
    for via in index.lines().iter().filter(|line| line.kind == Kind::Via as u8) {
        if way_back.is_some() {
            line(text, "Via", *via, out);
            continue;
        }
        let value = canonical::value(text, *via);
        let parts = canonical::split(&value)?;
        let (top, others) = parts.split_first()?;
        let mut top = Via::read(top)?;
        way_back = Some(top.receive(from));
        put(out, "Via", &top.text());
        for other in others {
            put(out, "Via", other);
        }
    }
    way_back
}

fn line(text: &[u8], name: &str, line: Line, out: &mut Vec<u8>) {
    put(out, name, &canonical::value(text, line));
}

fn put(out: &mut Vec<u8>, name: &str, value: &[u8]) {
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b": ");
    out.extend_from_slice(value);
    out.extend_from_slice(b"\r\n");
}

/// Whether a To has a tag; also of one that is wrong otherwise, so look behind the address only.
fn has_tag(to: &[u8]) -> bool {
    let params = match to.iter().rposition(|b| *b == b'>') {
        Some(close) => to.get(close..),
        None => to.iter().position(|b| *b == b';').and_then(|at| to.get(at..)),
    };
    params.unwrap_or_default().split(|b| *b == b';').skip(1).any(|param| {
        let name = param.split(|b| *b == b'=').next().unwrap_or_default();
        name.trim_ascii().eq_ignore_ascii_case(b"tag")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use sip_ebpf::scan::scan;

    const KEY: [u64; 2] = [1, 2];

    fn answer(text: &str, from: &str) -> Option<(String, Vec<String>)> {
        let mut index = Index::new();
        // What is wrong further down does not matter here.
        let _ = scan(text.as_bytes(), &mut index);
        let answer = Answer { code: 403, phrase: "Forbidden", headers: "Retry-After: 3\r\n" };
        let (to, bytes) = build(text.as_bytes(), &index, from.parse().unwrap(), KEY, answer)?;
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
        assert_eq!(via, "Via: SIP/2.0/UDP 10.0.0.9;rport=5080;branch=z9hG4bKx;received=10.0.0.9");
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
        assert_eq!(via, "Via: SIP/2.0/UDP 10.0.0.9:5070;branch=z9hG4bKx");
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
