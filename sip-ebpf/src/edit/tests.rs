extern crate std;

use std::{format, string::String, vec::Vec};

use super::*;
use crate::header::{Span, via};
use crate::scan::scan;
use crate::tables::Endpoint;

const US: Endpoint = Endpoint::new([10, 10, 0, 1], 5060);
const PHONE: Endpoint = Endpoint::new([10, 10, 1, 2], 5062);

#[derive(Default)]
struct Out(Vec<u8>);

impl Sink for Out {
    fn put(&mut self, at: u32, word: u64) {
        let at = at as usize;
        if self.0.len() < at + 8 {
            self.0.resize(at + 8, 0xaa);
        }
        self.0[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
}

/// What goes out for `text` from `src`, with a plan that `plan` fills further.
fn edited(
    text: &str,
    src: Endpoint,
    fill: impl FnOnce(&Index, &mut Plan),
    edit: impl FnOnce(&[u8], &Index, Packet, &Local, &Plan, &mut Out) -> Front,
) -> String {
    let mut index = Index::new();
    scan(text.as_bytes(), &mut index).expect("a message");
    let mut plan = Plan { branch: 0x0123_4567_89ab_cdef, ..Plan::default() };
    let line = index.first(Kind::Via).expect("a Via");
    via(text.as_bytes(), line.value as u32, line.end as u32, &mut plan.via).expect("a usual Via");
    fill(&index, &mut plan);
    let mut out = Out::default();
    let packet = Packet { src, dst: US };
    let local = crate::insert::local(US);
    let front = edit(text.as_bytes(), &index, packet, &local, &plan, &mut out);
    let mut bytes = out.0[..front.new as usize].to_vec();
    bytes.extend_from_slice(&text.as_bytes()[front.old as usize..]);
    String::from_utf8(bytes).expect("text")
}

/// [`request`] with the lifetimes that [`edited`] asks for.
fn forwarded(
    t: &[u8],
    index: &Index,
    packet: Packet,
    local: &Local,
    plan: &Plan,
    out: &mut Out,
) -> Front {
    request(t, index, packet, local, plan, out)
}

const OURS: &str = "Via: SIP/2.0/UDP 10.10.0.1:5060;branch=z9hG4bKslk0123456789abcdef\r\n";

/// RFC 3261 16.6 step 8, 18.2.1, RFC 3581 4: our Via above, `received` and `rport` in the one below.
#[test]
fn vias_of_a_request() {
    for (via, filled) in [
        ("10.10.1.2:5062;branch=z", "10.10.1.2:5062;branch=z"),
        ("10.10.1.2;branch=z", "10.10.1.2;branch=z"),
        ("10.10.1.3;branch=z", "10.10.1.3;branch=z;received=10.10.1.2"),
        ("a.example:5062;branch=z;x", "a.example:5062;branch=z;x;received=10.10.1.2"),
        ("10.10.1.2;rport;branch=z", "10.10.1.2;rport=5062;received=10.10.1.2;branch=z"),
        ("a.example;branch=z;rport", "a.example;branch=z;rport=5062;received=10.10.1.2"),
        ("a.example;rport,SIP/2.0/UDP b", "a.example;rport=5062;received=10.10.1.2,SIP/2.0/UDP b"),
    ] {
        for (above, below) in
            [("", "X: y\r\n"), ("X: y\r\nLonger: header of forty bytes and more\r\n", "")]
        {
            let head = format!("INVITE sip:a SIP/2.0\r\n{above}");
            let tail = format!("\r\n{below}Content-Length: 4\r\n\r\nbody");
            let text = format!("{head}Via: SIP/2.0/UDP {via}{tail}");
            let got = edited(&text, PHONE, |_, _| {}, forwarded);
            let start = "INVITE sip:a SIP/2.0\r\n";
            let want = format!("{start}{OURS}{above}Via: SIP/2.0/UDP {filled}{tail}");
            assert_eq!(got, want);
        }
    }
}

/// 16.6 step 4: the Record-Route with its cookie stands above our Via, which does not matter, and
/// above all other Record-Routes, which does.
#[test]
fn a_record_route_goes_in() {
    let text =
        "INVITE sip:a SIP/2.0\r\nRecord-Route: <sip:b;lr>\r\nVia: SIP/2.0/UDP 10.10.1.2\r\n\r\n";
    let cookie = [b"01234567", b"89abcdef", b"fedcba98", b"76543210"];
    let got = edited(
        text,
        PHONE,
        |_, plan| {
            plan.record = 1;
            plan.cookie = cookie.map(|digits| u64::from_le_bytes(*digits));
        },
        forwarded,
    );
    let route = "Record-Route: <sip:10.10.0.1:5060;lr;sl=0123456789abcdeffedcba9876543210>\r\n";
    let (start, rest) = text.split_at(22);
    assert_eq!(got, format!("{start}{route}{OURS}{rest}"));
}

/// 16.12: our Route goes, wherever it stands, and only it.
#[test]
fn a_route_goes_out() {
    let route = "Route: <sip:10.10.0.1;lr>\r\n";
    let cut = |index: &Index, plan: &mut Plan| {
        let line = index.first(Kind::Route).expect("a Route");
        plan.cut = Span { at: line.start as u32, end: line.end as u32 + 2 };
    };
    for (before, after) in [("", "X: y\r\n"), ("X: y\r\n", ""), ("", "")] {
        for (above, below) in [(route, ""), ("", route)] {
            let via = "Via: SIP/2.0/UDP a.example;rport";
            let text = format!(
                "BYE sip:a SIP/2.0\r\n{before}{above}{after}{via}\r\n{before}{below}{after}\r\nbody"
            );
            let got = edited(&text, PHONE, cut, forwarded);
            let filled = format!("{via}=5062;received=10.10.1.2");
            let want = format!(
                "BYE sip:a SIP/2.0\r\n{OURS}{before}{after}{filled}\r\n{before}{after}\r\nbody"
            );
            assert_eq!(got, want);
        }
    }
}

/// 16.7 step 3: our Via goes out of a response, and nothing else.
#[test]
fn a_response_loses_our_via() {
    let text = "SIP/2.0 200 OK\r\nX: y\r\nVia: SIP/2.0/UDP us\r\nVia: SIP/2.0/UDP b\r\n\r\nbody";
    let got = edited(
        text,
        PHONE,
        |index, plan| {
            let line = index.first(Kind::Via).expect("a Via");
            plan.cut = Span { at: line.start as u32, end: line.end as u32 + 2 };
        },
        |t, _, _, _, plan, out| response(t, plan, out),
    );
    assert_eq!(got, text.replace("Via: SIP/2.0/UDP us\r\n", ""));
}

/// 8.2.6.2, 11.2: the 200 of an OPTIONS has all Vias in their order, To with a tag, and what we are.
#[test]
fn an_options_is_answered() {
    let text = "OPTIONS sip:10.10.0.1 SIP/2.0\r\nMax-Forwards: 70\r\n\
        Via: SIP/2.0/UDP a.example;branch=z9hG4bK1;rport\r\nv: SIP/2.0/TCP [::1];branch=z9hG4bK2\r\n\
        t: <sip:10.10.0.1>\r\nSubject: x\r\nFrom: \"A\" <sip:a@b>;tag=1\r\nCSeq: 7 OPTIONS\r\n\
        Call-ID: one\r\nContent-Length: 3\r\n\r\nabc";
    let got = edited(
        text,
        PHONE,
        |_, plan| plan.tag = literal(b"12cdef90"),
        |t, index, packet, _, plan, out| options_answer(t, index, packet, plan, out),
    );
    let about = std::str::from_utf8(ABOUT_US).expect("text");
    let want = format!(
        "SIP/2.0 200 OK\r\n\
         Via: SIP/2.0/UDP a.example;branch=z9hG4bK1;rport=5062;received=10.10.1.2\r\n\
         v: SIP/2.0/TCP [::1];branch=z9hG4bK2\r\nFrom: \"A\" <sip:a@b>;tag=1\r\n\
         t: <sip:10.10.0.1>;tag=12cdef90\r\nCall-ID: one\r\nCSeq: 7 OPTIONS\r\n{about}"
    );
    assert_eq!(got, want);
    let mut index = Index::new();
    let answer = crate::message::Message::parse(got.as_bytes(), &mut index).expect("a message");
    assert_eq!(answer.check_all(), Ok(()));
    assert_eq!((answer.content_length(), answer.body()), (Ok(Some(0)), Ok(&b""[..])));
}

/// 16.6 step 3: one less, with as many digits.
#[test]
fn max_forwards_keeps_its_length() {
    for len in 1..=3u32 {
        for hops in 0..70u32.min(10u32.pow(len)) {
            let plan: Plan = Plan { hops, hops_len: len, ..Plan::default() };
            let digits = super::hops(&plan).to_le_bytes();
            let want = format!("{hops:0width$}", width = len as usize);
            assert_eq!(&digits[..len as usize], want.as_bytes());
        }
    }
}

#[test]
fn every_port_in_decimal() {
    for port in 0..=u16::MAX {
        let (digits, n) = decimal(port);
        assert_eq!(&digits.to_le_bytes()[..n as usize], format!("{port}").as_bytes());
    }
}
