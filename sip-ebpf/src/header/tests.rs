extern crate std;

use std::{format, string::String, string::ToString};

use super::*;
use crate::scan::scan;
use crate::tables::Endpoint;

/// Reads the value of one header that stands in a whole message.
fn with<R>(name: &str, value: &str, read: impl FnOnce(&[u8], &Index, Line) -> R) -> R {
    let text = format!("INVITE sip:a SIP/2.0\r\n{name}: {value}\r\nX: y\r\n\r\nbody");
    let mut index = Index::new();
    scan(text.as_bytes(), &mut index).expect("a message");
    let line = index.lines()[0];
    read(text.as_bytes(), &index, line)
}

fn piece(text: &[u8], span: Span) -> Option<String> {
    (span.at != 0)
        .then(|| String::from_utf8_lossy(&text[span.at as usize..span.end as usize]).to_string())
}

/// sent-by, branch, received, rport and maddr of a Via.
type ViaText = (String, Option<String>, Option<String>, Option<String>, bool);

fn read_via(value: &str) -> Result<ViaText, Odd> {
    with("Via", value, |t, _, line| {
        let mut read = Via::default();
        via(t, line.value as u32, line.end as u32, &mut read)?;
        let sent_by = piece(t, read.sent_by).unwrap_or_default();
        Ok((
            sent_by,
            piece(t, read.branch),
            piece(t, read.received),
            piece(t, read.rport),
            read.maddr != 0,
        ))
    })
}

fn some(text: &str) -> Option<String> {
    Some(text.to_string())
}

/// RFC 3261 20.42, RFC 3581 3: the parts of a Via.
#[test]
fn vias() {
    let host = "10.0.0.1:5060".to_string();
    for (value, want) in [
        ("SIP/2.0/UDP 10.0.0.1:5060", (host.clone(), None, None, None, false)),
        (
            "SIP/2.0/UDP 10.0.0.1:5060;branch=z9hG4bKx;rport",
            (host.clone(), some("z9hG4bKx"), None, some(""), false),
        ),
        (
            "sip/2.0/udp 10.0.0.1:5060;RPORT=7;BRANCH=z9;Received=1.2.3.4",
            (host.clone(), some("z9"), some("1.2.3.4"), some("7"), false),
        ),
        (
            "SIP/2.0/UDP 10.0.0.1:5060;maddr=1.2.3.4;rports=1;receiveds=2;branches=3",
            (host.clone(), None, None, None, true),
        ),
        ("SIP/2.0/UDP 10.0.0.1:5060;branch=a,SIP/2.0/UDP b", (host, some("a"), None, None, false)),
    ] {
        assert_eq!(read_via(value), Ok(want), "{value}");
    }
}

/// What RFC 3261 allows but few write, and what it does not allow, is for the long way.
#[test]
fn odd_vias() {
    for value in [
        "SIP/2.0/TCP 10.0.0.1",
        "SIP / 2.0 / UDP 10.0.0.1",
        "SIP/2.0/UDP\t10.0.0.1",
        "SIP/2.0/UDP  10.0.0.1",
        "SIP/2.0/UDP ",
        "SIP/2.0/UDP 10.0.0.1 :5060",
        "SIP/2.0/UDP 10.0.0.1 ;branch=x",
        "SIP/2.0/UDP 10.0.0.1; branch=x",
        "SIP/2.0/UDP 10.0.0.1;branch =x",
        "SIP/2.0/UDP 10.0.0.1;branch=x ",
        "SIP/2.0/UDP 10.0.0.1;a=\"b;branch=y\"",
        "SIP/2.0/UDP 10.0.0.1;branch=",
        "SIP/2.0/UDP 10.0.0.1;rport=",
        "SIP/2.0/UDP 10.0.0.1;rport=;branch=x",
        "SIP/2.0/UDP 10.0.0.1;received=",
        "SIP/2.0/UDP 10.0.0.1;branch=x;branch=y",
        "SIP/2.0/UDP 10.0.0.1;rport;rport",
        "SIP/2.0/UDP 10.0.0.1;rport;rport=5",
        "SIP/2.0/UDP 10.0.0.1;received=1.2.3.4;received=1.2.3.5",
    ] {
        assert_eq!(read_via(value), Err(Odd), "{value}");
    }
}

/// 19.3, 20.20, 20.39: the tag is a parameter of the header, not of the URI in brackets.
#[test]
fn tags() {
    let tag_of = |value: &str| {
        with("From", value, |t, _, line| {
            let mut span = Span::default();
            tag(t, line, &mut span).map(|()| piece(t, span))
        })
    };
    for (value, want) in [
        ("<sip:a@b>;tag=1", some("1")),
        ("<sip:a@b;tag=no>", None),
        ("<sip:a@b;tag=no>;x=y;TAG=1;z", some("1")),
        ("\"a>;tag=no\" <sip:a@b>;tag=1", some("1")),
        ("\"a\\\";tag=no\\\\\" <sip:a@b>;tag=1", some("1")),
        ("\"a\"<sip:a@b>;tag=1", some("1")),
        ("a b <sip:a@b>;tag=1", some("1")),
        ("sip:a@b;tag=1", some("1")),
        ("sip:a@b", None),
        ("<sip:a@b>", None),
        ("<sip:a@b>;tags=1", None),
        ("<sip:a@b>;tag", None),
    ] {
        assert_eq!(tag_of(value), Ok(want), "{value}");
    }
    for value in [
        "<sip:a@b> ;tag=1",
        "<sip:a@b>; tag=1",
        "<sip:a@b>;tag =1",
        "<sip:a@b>;tag=",
        "<sip:a@b>;tag=1;tag=2",
        "<sip:a@b>;x=\"y\";tag=1",
        "<sip:a@b>;tag=\"1\"",
        "<sip:a@b",
        "\"a <sip:a@b>;tag=1",
        "\"a\" sip:a@b;tag=1",
        "",
    ] {
        assert!(matches!(tag_of(value), Err(Odd) | Ok(None)), "{value}: {:?}", tag_of(value));
        if value.contains("tag=") {
            assert_eq!(tag_of(value), Err(Odd), "{value}");
        }
    }
}

/// 20.14, 20.22: a number alone.
#[test]
fn numbers() {
    let read = |value: &str| with("X", value, |t, _, line| number(t, line));
    for (value, want) in [("0", 0), ("070", 70), ("  7", 7), ("99999999", 99_999_999)] {
        assert_eq!(read(value), Ok(want), "{value:?}");
    }
    for value in ["", "7 ", "-7", "+7", "7x", "x", "7.0", "0x7", "123456789"] {
        assert_eq!(read(value), Err(Odd), "{value:?}");
    }
}

/// 8.1.1.5, 20.16: below 2^31, and the method of the request line with its case.
#[test]
fn cseqs() {
    let read =
        |value: &str| with("CSeq", value, |t, index, line| cseq_fits(t, line, index.method_end));
    for value in ["1 INVITE", "0 INVITE", "2147483647 INVITE", "0000000001 INVITE", "1 \t INVITE"] {
        assert_eq!(read(value), Ok(()), "{value:?}");
    }
    for value in [
        "2147483648 INVITE",
        "4294967297 INVITE",
        "18446744073709551617 INVITE",
        "1 invite",
        "1 INVIT",
        "1 INVITER",
        "1 INVITE ",
        "1INVITE",
        "INVITE",
        "-1 INVITE",
        "1",
        "",
    ] {
        assert_eq!(read(value), Err(Odd), "{value:?}");
    }
    // Methods longer than one word.
    for (method, cseq, fits) in [
        ("SUBSCRIBE", "SUBSCRIBE", true),
        ("SUBSCRIBE", "SUBSCRIBF", false),
        ("ABCDEFGHIJKLMNOP", "ABCDEFGHIJKLMNOP", true),
        ("ABCDEFGHIJKLMNOP", "ABCDEFGHIJKLMNOX", false),
        ("ABCDEFGHIJKLMNOPQ", "ABCDEFGHIJKLMNOPQ", false),
    ] {
        let text = format!("{method} sip:a SIP/2.0\r\nCSeq: 1 {cseq}\r\n\r\n");
        let mut index = Index::new();
        scan(text.as_bytes(), &mut index).expect("a message");
        let read = cseq_fits(text.as_bytes(), index.lines()[0], index.method_end);
        assert_eq!(read.is_ok(), fits, "{method} {cseq}");
    }
}

/// 25.1: host and port, without a guess at octal numbers or too large ones.
#[test]
fn hosts_and_ports() {
    let read = |text: &str| host_port(text.as_bytes(), 0, text.len() as u32);
    let one = Endpoint::new([10, 0, 0, 1], 0);
    for (text, port) in [("10.0.0.1", 5060), ("10.0.0.1:1", 1), ("10.0.0.1:65535", 65_535)] {
        assert_eq!(read(text), Ok((one, port)), "{text}");
    }
    for text in [
        "",
        "a.example",
        "10.0.0",
        "10.0.0.1.",
        "10.0.0.1:",
        "10.0.0.1:0",
        "10.0.0.1:65536",
        "10.0.0.1:5060x",
        "10.0.0.1:005060",
        "10.0.0.01",
        "[::1]",
    ] {
        assert_eq!(read(text), Err(Odd), "{text}");
    }
}

/// 8.1.1, 18.3: mandatory headers once each, and a length that is the body's.
#[test]
fn headers_that_must_be_there_once() {
    let read = |headers: &str| {
        let text = format!("INVITE sip:a SIP/2.0\r\n{headers}\r\nbody");
        let mut index = Index::new();
        scan(text.as_bytes(), &mut index).expect("a message");
        once_each(&index)?;
        length_fits(text.as_bytes(), &index)
    };
    let all = "From: a\r\nTo: b\r\nCall-ID: c\r\nCSeq: d\r\n";
    assert_eq!(read(all), Ok(()));
    assert_eq!(read(&format!("{all}Content-Length: 4\r\nMax-Forwards: 1\r\n")), Ok(()));
    for more in [
        "Content-Length: 3\r\n",
        "Content-Length: 5\r\n",
        "Content-Length: x\r\n",
        "Content-Length: 4\r\nl: 4\r\n",
        "Max-Forwards: 1\r\nMax-Forwards: 1\r\n",
        "f: a\r\n",
        "t: a\r\n",
        "i: a\r\n",
        "cseq: a\r\n",
        "X: folded\r\n line\r\n",
    ] {
        assert_eq!(read(&format!("{all}{more}")), Err(Odd), "{more:?}");
    }
    for gone in ["From: a\r\n", "To: b\r\n", "Call-ID: c\r\n", "CSeq: d\r\n"] {
        assert_eq!(read(&all.replace(gone, "")), Err(Odd), "without {gone:?}");
    }
}
