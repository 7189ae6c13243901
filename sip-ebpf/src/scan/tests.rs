extern crate std;

use std::{format, string::String, vec::Vec};

use super::*;

fn scanned(text: &str) -> Result<Index, Error> {
    let mut index = Index::new();
    scan(text.as_bytes(), &mut index).map(|()| index)
}

fn names(index: &Index) -> Vec<Kind> {
    index.lines().iter().map(|line| Kind::ALL[line.kind as usize]).collect()
}

/// RFC 3261 7.1: method, Request-URI and version with one space between them.
#[test]
fn request_lines() {
    let index = scanned("BYE sip:a@b SIP/2.0\r\n\r\n").unwrap();
    assert_eq!((index.method, index.status), (Method::Bye as u32, 0));
    assert_eq!((index.method_end, index.uri, index.uri_end), (3, 4, 11));
    assert_eq!((index.headers, index.body), (21, 23));
    for (line, error) in [
        ("BYE  sip:a@b SIP/2.0", Error::StartLine),
        ("BYE sip:a@b  SIP/2.0", Error::StartLine),
        ("BYE sip:a@b SIP/2.0 ", Error::StartLine),
        (" BYE sip:a@b SIP/2.0", Error::StartLine),
        ("BYE sip:a@b", Error::StartLine),
        ("BYE SIP/2.0", Error::StartLine),
        ("BYE  SIP/2.0", Error::StartLine),
        ("BYE sip:a b SIP/2.0", Error::StartLine),
        ("BYE sip:a@b HTTP/1.1", Error::StartLine),
        ("BYE sip:a@b SIP/2.1", Error::Version),
        ("BYE sip:a@b SIP/3.0", Error::Version),
        ("BYE sip:a@b SIP/12.0", Error::Version),
        ("BYE sip:a@b SIP/2.00", Error::Version),
        ("BYE\tsip:a@b SIP/2.0", Error::ControlCharacter),
        ("BYE sip:a\u{1}@b SIP/2.0", Error::ControlCharacter),
        ("BYE sip:a@b\0SIP/2.0", Error::ControlCharacter),
        ("BYE sip:a@b SIP\u{f}2.0", Error::ControlCharacter),
        ("BYE sip:a@b SIP/\u{12}.0", Error::ControlCharacter),
        ("", Error::StartLine),
        ("x", Error::StartLine),
    ] {
        assert_eq!(scanned(&format!("{line}\r\n\r\n")), Err(error), "{line:?}");
    }
}

/// 7.1: methods have a case, the version's name has none.
#[test]
fn methods() {
    for (name, method) in [
        ("INVITE", Method::Invite),
        ("ACK", Method::Ack),
        ("BYE", Method::Bye),
        ("CANCEL", Method::Cancel),
        ("OPTIONS", Method::Options),
        ("REGISTER", Method::Register),
        ("PRACK", Method::Prack),
        ("UPDATE", Method::Update),
        ("INFO", Method::Info),
        ("SUBSCRIBE", Method::Subscribe),
        ("NOTIFY", Method::Notify),
        ("REFER", Method::Refer),
        ("MESSAGE", Method::Message),
        ("PUBLISH", Method::Publish),
        ("invite", Method::Extension),
        ("INVITES", Method::Extension),
        ("SUBSCRIBER", Method::Extension),
        ("SUBSCRIBX", Method::Extension),
        ("I", Method::Extension),
    ] {
        let index = scanned(&format!("{name} sip:a sip/2.0\r\n\r\n")).unwrap();
        assert_eq!(index.method, method as u32, "{name}");
    }
}

/// 7.2: version, a code of three digits and a phrase, which may be empty, but not its space.
#[test]
fn status_lines() {
    let index = scanned("SIP/2.0 183 In Progress\r\n\r\n").unwrap();
    assert_eq!((index.method, index.status), (Method::Response as u32, 183));
    assert_eq!((index.uri, index.uri_end), (12, 23));
    assert!(scanned("SIP/2.0 200 \r\n\r\n").is_ok());
    for line in [
        "SIP/2.0 200",
        "SIP/2.0 20 OK",
        "SIP/2.0 2000 OK",
        "SIP/2.0 099 OK",
        "SIP/2.0 700 OK",
        "SIP/2.0  200 OK",
        "SIP/2.0 2x0 OK",
        "SIP/2.0 ",
        "SIP/2.0",
    ] {
        assert_eq!(scanned(&format!("{line}\r\n\r\n")), Err(Error::StartLine), "{line:?}");
    }
}

/// 7.3.1, 7.3.3, 20: names in any case and their compact forms, white space before the colon.
#[test]
fn header_names() {
    for (name, kind) in [
        ("Via", Kind::Via),
        ("v", Kind::Via),
        ("VIA", Kind::Via),
        ("From", Kind::From),
        ("F", Kind::From),
        ("To", Kind::To),
        ("t", Kind::To),
        ("Call-ID", Kind::CallId),
        ("call-id", Kind::CallId),
        ("i", Kind::CallId),
        ("CSeq", Kind::CSeq),
        ("Max-Forwards", Kind::MaxForwards),
        ("MAX-FORWARDS", Kind::MaxForwards),
        ("Route", Kind::Route),
        ("Record-Route", Kind::RecordRoute),
        ("Contact", Kind::Contact),
        ("m", Kind::Contact),
        ("Expires", Kind::Expires),
        ("Content-Length", Kind::ContentLength),
        ("l", Kind::ContentLength),
        ("Require", Kind::Require),
        ("Proxy-Require", Kind::ProxyRequire),
        ("Authorization", Kind::Authorization),
        ("Proxy-Authorization", Kind::ProxyAuthorization),
        ("Proxy-Authenticate", Kind::Other),
        ("Max-Forward", Kind::Other),
        ("Max-Forwardss", Kind::Other),
        ("Content-Type", Kind::Other),
        ("Record-Router", Kind::Other),
        ("Vi", Kind::Other),
        ("Vias", Kind::Other),
        ("Call_ID", Kind::Other),
        ("Subject", Kind::Other),
        ("s", Kind::Other),
    ] {
        for blank in ["", " ", "\t ", "         "] {
            let text = format!("BYE sip:a SIP/2.0\r\n{name}{blank}: x\r\n\r\n");
            let index = scanned(&text).unwrap();
            assert_eq!(names(&index), [kind], "{name:?}{blank:?}");
            let line = index.lines()[0];
            assert_eq!(&text[line.value as usize..line.end as usize], "x");
        }
    }
}

/// 7.3.1: a name is a token and a colon follows it.
#[test]
fn what_is_no_header_name() {
    for line in ["Subject", ": x", "Max Forwards: 3", "A long name here: 3", "a b: 1", "To x: 1"] {
        let text = format!("BYE sip:a SIP/2.0\r\n{line}\r\n\r\n");
        assert_eq!(scanned(&text), Err(Error::HeaderName), "{line:?}");
    }
}

/// 7.5, 25.1: CR LF ends a line and nothing else does; no control characters.
#[test]
fn line_ends_and_control_characters() {
    for (line, error) in [
        ("a: b\nc: d", Error::BareLineFeed),
        ("a: b\rc: d", Error::BareCarriageReturn),
        ("a: b\r\rc: d", Error::BareCarriageReturn),
        ("a: b\0", Error::ControlCharacter),
        ("a: b\u{7}", Error::ControlCharacter),
        ("a: b\\\nc: d", Error::BareLineFeed),
        ("a: b\\\rc: d", Error::BareCarriageReturn),
    ] {
        let text = format!("BYE sip:a SIP/2.0\r\n{line}\r\n\r\n");
        assert_eq!(scanned(&text), Err(error), "{line:?}");
    }
    // 25.1, quoted-pair: behind a backslash they are legal.
    assert!(scanned("BYE sip:a SIP/2.0\r\na: \"\\\0\\\u{7}\"\r\n\r\n").is_ok());
    // 25.1, LWS: a tab is white space in a header.
    assert!(scanned("BYE sip:a SIP/2.0\r\na:\tb\tc\t\r\n\r\n").is_ok());
}

/// 7.5: an empty line ends the headers. A CR that ends the datagram is not completed by whatever
/// stands behind it in memory.
#[test]
fn datagrams_that_end_early() {
    let whole = "BYE sip:a SIP/2.0\r\nTo: b\r\n\r\n";
    for len in 0..whole.len() {
        assert_eq!(scanned(&whole[..len]), Err(Error::Unterminated), "{len}");
    }
    assert!(scanned(whole).is_ok());
}

/// 7.3.1: lines that go on are told apart; the value reaches to the end of the last one.
#[test]
fn folded_lines() {
    let text = "BYE sip:a SIP/2.0\r\nTo: a\r\n b\r\n\tc\r\nFrom: d\r\n\r\n";
    let index = scanned(text).unwrap();
    assert_eq!(index.flags, FOLDED);
    assert_eq!(names(&index), [Kind::To, Kind::From]);
    let [to, from] = index.lines() else { panic!("two headers") };
    assert_eq!(&text[to.value as usize..to.end as usize], "a\r\n b\r\n\tc");
    assert_eq!((to.number, from.number), (1, 2));
    assert_eq!(index.first(Kind::To), Some(*to));
    assert_eq!(scanned("BYE sip:a SIP/2.0\r\n a: b\r\n\r\n"), Err(Error::HeaderName));
}

/// 7.3.1: the order of headers is kept, and where the first and the last of each kind are.
#[test]
fn kinds_are_counted() {
    let index =
        scanned("BYE sip:a SIP/2.0\r\nVia: 1\r\nTo: 2\r\nv: 3\r\nX: 4\r\nVIA: 5\r\n\r\n").unwrap();
    let of = |kind| (index.has(kind), index.repeated(kind), index.apart(kind));
    assert_eq!(of(Kind::Via), (true, true, true));
    assert_eq!(of(Kind::To), (true, false, false));
    assert_eq!(of(Kind::Route), (false, false, false));
    let numbers = [index.first(Kind::Via), index.last(Kind::Via)].map(|line| line.unwrap().number);
    assert_eq!(numbers, [1, 5]);
    assert_eq!(index.first(Kind::Via).map(|line| line.start), Some(19));
    assert_eq!(index.last(Kind::Via), Some(index.lines()[4]));
    assert_eq!(index.first(Kind::Route), None);
}

/// Our limits have names of their own.
#[test]
fn limits() {
    let lines = |n: usize| format!("BYE sip:a SIP/2.0\r\n{}\r\n", "A: b\r\n".repeat(n));
    assert_eq!(scanned(&lines(128)).map(|index| index.count), Ok(128));
    assert_eq!(scanned(&lines(129)), Err(Error::TooManyHeaders));
    let long = |n: usize| format!("BYE sip:a SIP/2.0\r\nA: {}\r\n\r\n", "b".repeat(n - 26));
    assert!(scanned(&long(MAX_TEXT as usize)).is_ok());
    assert_eq!(scanned(&long(MAX_TEXT as usize + 1)), Err(Error::TooLong));
    let folds = format!("BYE sip:a SIP/2.0\r\nA: b{}\r\n\r\n", "\r\n c".repeat(2000));
    assert_eq!(scanned(&folds), Err(Error::TooManyHeaders));
}

/// What one scan leaves in an index does not reach into the next.
#[test]
fn an_index_can_be_used_again() {
    let mut index = Index::new();
    let first = "BYE sip:a SIP/2.0\r\nVia: 1\r\nVia: 2\r\nTo: 3\r\n 4\r\n\r\nbody";
    scan(first.as_bytes(), &mut index).unwrap();
    let second = "SIP/2.0 200 OK\r\nFrom: 1\r\n\r\n";
    scan(second.as_bytes(), &mut index).unwrap();
    let fresh = scanned(second).unwrap();
    assert_eq!(index.lines(), fresh.lines());
    assert_eq!((index.flags, index.body, index.kinds), (0, fresh.body, fresh.kinds));
    assert!(scan(&b"\r\n\r\n"[..], &mut index).is_err());
    assert_eq!((index.count, index.error), (0, Error::StartLine as u32));
}

/// The searches look at eight bytes at a time: each place in a word is one.
#[test]
fn searches_at_every_place() {
    for at in 0..70 {
        let mut text = String::from("x").repeat(80).into_bytes();
        text[at] = b';';
        for start in 0..=at as u32 {
            assert_eq!(find_byte(&text[..], start, 80, b';'), at as u32);
        }
        assert_eq!(find_byte(&text[..], at as u32 + 1, 80, b';'), 80);
        assert_eq!(find_byte(&text[..], 0, at as u32, b';'), at as u32);
        text[at] = b' ';
        assert_eq!(skip_blank(&text[..], at as u32), at as u32 + 1);
    }
    assert_eq!(skip_blank(&b" \t \t x"[..], 0), 5);
    assert_eq!(skip_blank(&b"x"[..], 0), 0);
    assert_eq!(skip_blank(&b"  "[..], 0), 2);
}
