extern crate std;

use std::{format, string::String, string::ToString, vec, vec::Vec};

use super::*;

const INVITE: &str = "INVITE sip:bob@[2001:db8::1]:5070;transport=udp SIP/2.0\r\n\
Via: SIP/2.0/UDP pc33.example.com:5066;branch=z9hG4bKabc;rport, SIP/2.0/TCP [2001:db8::2];received=2001:db8::3\r\n\
Max-Forwards: 070\r\n\
To: \"Bob \\\"<b>\\\"\" <sip:bob@example.com>\r\n\
f: sip:alice@example.com;tag=a1\r\n\
Call-ID: x@y\r\n\
CSeq: 7 INVITE\r\n\
Route: <sip:10.0.0.1;lr>, <sip:p2.example.com>\r\n\
Content-Length: 3\r\n\r\nabcd";

/// Reads a message with `read`.
fn with<R>(text: &str, read: impl FnOnce(Result<Message<'_>, Error>) -> R) -> R {
    let mut index = Index::new();
    read(Message::parse(text.as_bytes(), &mut index))
}

/// What `check_all` says of [`INVITE`] with a piece of it replaced.
fn check(from: &str, to: &str) -> Result<(), Error> {
    assert!(INVITE.contains(from), "{from}");
    with(&INVITE.replacen(from, to, 1), |message| message?.check_all())
}

/// What is wrong with a header of a kind that is put into [`INVITE`].
fn header(line: &str) -> Result<(), Error> {
    check("CSeq:", &format!("{line}\r\nCSeq:"))
}

#[test]
fn a_request_gives_its_parts() {
    with(INVITE, |message| {
        let message = message.expect("a message");
        assert_eq!(message.check_all(), Ok(()));
        assert_eq!((message.method(), message.method_name()), (Method::Invite, Ok("INVITE")));
        assert_eq!((message.status(), message.reason()), (None, Ok("")));
        let uri = message.request_uri().expect("a URI");
        assert_eq!((uri.user, uri.port, uri.transport()), (Some("bob"), Some(5070), Some("udp")));
        assert_eq!(uri.host.and_then(Host::ip), Some("2001:db8::1".parse().expect("an address")));
        let vias: Vec<_> = message.vias().map(|via| via.expect("a Via")).collect();
        assert_eq!(vias.len(), 2);
        assert_eq!(vias[0].host, Host::Name("pc33.example.com"));
        assert_eq!((vias[0].port, vias[0].rport), (Some(5066), Rport::Empty));
        assert_eq!(message.slice(vias[0].sent_by), b"pc33.example.com:5066");
        assert!(vias[0].is_unique() && vias[0].is_udp() && !vias[1].is_udp());
        assert_eq!(vias[1].received, Some("2001:db8::3".parse().expect("an address")));
        assert_eq!(message.to().expect("To").display, Some(&b"Bob \\\"<b>\\\""[..]));
        let from = message.from().expect("From");
        assert_eq!((from.tag(), from.in_brackets), (Some("a1"), false));
        assert_eq!(message.slice(from.tag_span()), b"a1");
        let hops = message.max_forwards().expect("well").expect("there");
        assert_eq!((hops.value, message.slice(hops.digits)), (70, &b"070"[..]));
        assert_eq!(message.body(), Ok(&b"abc"[..]));
        let lr: Vec<_> = message.routes().map(|route| route.expect("a Route").uri.lr()).collect();
        assert_eq!(lr, [true, false]);
        let cut = message.cut_first(Kind::Route).expect("Routes").expect("one");
        assert_eq!(message.slice(cut), b"<sip:10.0.0.1;lr>, ");
        assert_eq!(message.cut_first(Kind::RecordRoute), Ok(None));
        assert_eq!(&INVITE[message.headers_end() as usize..], "\r\nabcd");
        assert!(!message.has_credentials());
    });
}

#[test]
fn a_response_gives_its_parts() {
    let text = "SIP/2.0 486 Busy here\r\nVia: SIP/2.0/UDP a;branch=x\r\nFrom: <sip:a@b>;tag=1\r\n\
                To: <sip:b@b>;tag=2\r\nCall-ID: 1\r\nCSeq: 4 BYE\r\n\r\n";
    with(text, |message| {
        let message = message.expect("a message");
        assert_eq!(message.check_all(), Ok(()));
        assert_eq!((message.status(), message.reason()), (Some(486), Ok("Busy here")));
        assert_eq!((message.method(), message.method_name()), (Method::Response, Ok("BYE")));
        assert_eq!(message.request_uri_bytes(), b"");
        assert!(message.request_uri().is_err());
        let cut = message.cut_first(Kind::Via).expect("a Via").expect("one");
        assert_eq!(message.slice(cut), b"Via: SIP/2.0/UDP a;branch=x\r\n");
    });
}

/// RFC 3261 7.3.1: a folded header is reported; unfolded, it keeps its length.
#[test]
fn folding() {
    let text = INVITE.replace("CSeq: 7 INVITE", "CSeq: 7\r\n \t INVITE");
    with(&text, |message| assert_eq!(message.map(drop), Err(Error::Folded)));
    let mut bytes = text.clone().into_bytes();
    let mut index = Index::new();
    let message = Message::parse_folded(&mut bytes, &mut index).expect("unfolded");
    assert_eq!(message.cseq(), Ok(CSeq { number: 7, method: "INVITE" }));
    assert_eq!(message.check_all(), Ok(()));
    assert_eq!(message.bytes().len(), text.len());
    // Nothing else changed, the body least of all.
    let spaces = text.replace("7\r\n \t", "7   \t");
    assert_eq!(message.bytes(), spaces.as_bytes());
}

/// 8.1.1: what every request must have; 7.3.1: what may be there once.
#[test]
fn missing_and_duplicate_headers() {
    for (line, kind) in [
        ("To: \"Bob \\\"<b>\\\"\" <sip:bob@example.com>\r\n", Kind::To),
        ("f: sip:alice@example.com;tag=a1\r\n", Kind::From),
        ("Call-ID: x@y\r\n", Kind::CallId),
        ("CSeq: 7 INVITE\r\n", Kind::CSeq),
    ] {
        assert_eq!(check(line, ""), Err(Error::Missing(kind)));
        assert_eq!(check(line, &format!("{line}{line}")), Err(Error::Duplicate(kind)));
    }
    for (line, kind) in [
        ("Max-Forwards: 070\r\n", Kind::MaxForwards),
        ("Content-Length: 3\r\n", Kind::ContentLength),
    ] {
        assert_eq!(check(line, ""), Ok(()));
        assert_eq!(check(line, &format!("{line}{line}")), Err(Error::Duplicate(kind)));
    }
    let via = INVITE.lines().nth(1).expect("the Via").to_string() + "\r\n";
    assert_eq!(check(&via, ""), Err(Error::Missing(Kind::Via)));
    assert_eq!(header("Expires: 1\r\nExpires: 1"), Err(Error::Duplicate(Kind::Expires)));
}

/// 20.42: what a Via may not be. Lists have no empty values (7.3.1).
#[test]
fn bad_vias() {
    for (via, what) in [
        ("", What::Empty),
        (",SIP/2.0/UDP a", What::Empty),
        ("SIP/2.0/UDP a,", What::Empty),
        ("SIP/2.0/UDP a,,SIP/2.0/UDP a", What::Empty),
        ("SIP/2.0 UDP a", What::Syntax),
        ("SIP/2.0/UDP", What::Syntax),
        ("SIP/2.0/UDP a b", What::Syntax),
        ("SIP/2.0/UDP a?b", What::Syntax),
        ("SIP/2.0/UDP a_b", What::Syntax),
        ("SIP/2.0/UDP ;branch=x", What::Host),
        ("SIP/2.0/UDP [::1", What::Host),
        ("SIP/2.0/UDP ::1", What::Host),
        ("SIP/2.0/UDP 1.2.3.256", What::Host),
        ("SIP/2.0/UDP 1.2.3.4.", What::Host),
        ("SIP/2.0/UDP a..b", What::Host),
        ("SIP/2.0/UDP -a", What::Host),
        ("SIP/2.0/UDP a.1", What::Host),
        ("SIP/2.0/UDP a:", What::Port),
        ("SIP/2.0/UDP a:0", What::Port),
        ("SIP/2.0/UDP a:65536", What::Port),
        ("SIP/2.0/UDP a;", What::Parameter),
        ("SIP/2.0/UDP a;;b", What::Parameter),
        ("SIP/2.0/UDP a;b=", What::Parameter),
        ("SIP/2.0/UDP a;branch", What::Parameter),
        ("SIP/2.0/UDP a;branch=\"x\"", What::Parameter),
        ("SIP/2.0/UDP a;branch=x:y", What::Parameter),
        ("SIP/2.0/UDP a;b=\"c", What::Quote),
        ("SIP/2.0/UDP a;rport=", What::Parameter),
        ("SIP/2.0/UDP a;rport=0", What::Port),
        ("SIP/2.0/UDP a;ttl=256", What::Parameter),
        ("SIP/2.0/UDP a;received=b.example", What::Host),
        ("SIP/2.0/UDP a;maddr=1.2.3.999", What::Host),
        ("SIP/2.0/UDP a;B=1;b=2", What::DuplicateParameter),
    ] {
        assert_eq!(header(&format!("Via: {via}")), Err(Error::Bad(Kind::Via, what)), "{via:?}");
    }
    // Only the top Via must be of SIP/2.0: others may know other protocols.
    assert_eq!(header("Via: X/9/Y a"), Ok(()));
    assert_eq!(check("SIP/2.0/UDP", "X/9/UDP"), Err(Error::Bad(Kind::Via, What::Protocol)));
    let many = (0..=MAX_PARAMS).map(|i| format!(";p{i}")).collect::<String>();
    let via = format!("Via: SIP/2.0/UDP a{many}");
    assert_eq!(header(&via), Err(Error::Bad(Kind::Via, What::Parameter)));
}

/// 19.1.1, 25.1: the parts of a URI.
#[test]
fn uris() {
    let uri = Uri::parse("sips:a;b?c%40:p&=@h.example:5061;x;y=%20;lr;maddr=[::1]?h=v&i=")
        .expect("a URI");
    assert_eq!((uri.scheme, uri.is_sip()), (Scheme::Sips, true));
    assert_eq!((uri.user, uri.password), (Some("a;b?c%40"), Some("p&=")));
    assert_eq!((uri.host, uri.port), (Some(Host::Name("h.example")), Some(5061)));
    let params: Vec<_> = uri.params.map(|param| (param.name, param.text())).collect();
    let want = vec![("x", None), ("y", Some("%20")), ("lr", None), ("maddr", Some("[::1]"))];
    assert_eq!(params, want);
    assert!(uri.lr());
    assert_eq!(uri.maddr().map(|host| host.to_string()), Some("[::1]".to_string()));
    assert_eq!(uri.headers, Some("h=v&i="));

    let uri = Uri::parse("tel:+49-30;ext=1").expect("a URI");
    assert_eq!((uri.scheme, uri.user, uri.host.is_none()), (Scheme::Tel, None, true));
    assert_eq!(Uri::parse("SIP:a").expect("a URI").scheme, Scheme::Sip);
    assert_eq!(Uri::parse("urn:a:b").expect("a URI").scheme, Scheme::Other("urn"));
    for (text, what) in [
        ("", What::Empty),
        ("a", What::Scheme),
        ("1:a", What::Scheme),
        (":a", What::Scheme),
        ("sip", What::Scheme),
        ("sip:", What::Host),
        ("sip:@a", What::User),
        ("sip::p@a", What::User),
        ("sip:a b@c", What::User),
        ("sip:a@b@c", What::Syntax),
        ("sip:a@", What::Host),
        ("sip:a@b:", What::Port),
        ("sip:a@b:0", What::Port),
        ("sip:a@b:99999", What::Port),
        ("sip:a@b;", What::Parameter),
        ("sip:a@b;;lr", What::Parameter),
        ("sip:a@b;x=", What::Parameter),
        ("sip:a@b;x=y;X", What::DuplicateParameter),
        ("sip:a@b?", What::UriHeaders),
        ("sip:a@b?x", What::UriHeaders),
        ("sip:a@b?=x", What::UriHeaders),
        ("sip:%4@b", What::Escape),
        ("sip:%@b", What::Escape),
        ("sip:%4g@b", What::Escape),
        ("sip:a@b;x=%zz", What::Escape),
        ("sip:a@%62", What::Host),
        ("tel:", What::Syntax),
        ("tel:a b", What::Syntax),
        ("urn:%", What::Escape),
        ("sip:\u{e9}@b", What::User),
    ] {
        assert_eq!(Uri::parse(text).map(|uri| uri.text), Err(what), "{text:?}");
    }
    assert_eq!(unescape("a%41%zz%2").collect::<Vec<_>>(), b"aA%zz%2");
}

/// 19.1.1, table 1: no headers in a Request-URI.
#[test]
fn request_uris() {
    let uri = "sip:bob@[2001:db8::1]:5070;transport=udp";
    for (other, what) in
        [("sip:a?b=c", What::UriHeaders), ("<sip:a>", What::Scheme), ("sip:[::1", What::Host)]
    {
        assert_eq!(check(uri, other), Err(Error::RequestUri(what)), "{other}");
    }
    assert_eq!(check("INVITE sip", "IN[ITE sip"), Err(Error::Method));
}

/// 20.10, 20.20, 20.39: display names, brackets, and whose parameters they are.
#[test]
fn addresses() {
    for (value, what) in [
        ("", What::Empty),
        ("\"a <sip:a@b>", What::Quote),
        ("\"a\\\" <sip:a@b>", What::Quote),
        ("\"a\u{7f}\" <sip:a@b>", What::Syntax),
        ("\"a\" sip:a@b", What::Bracket),
        ("<sip:a@b", What::Bracket),
        ("sip:a@b?c=d", What::Bracket),
        ("a, b <sip:a@b>", What::DisplayName),
        ("a\u{e9} <sip:a@b>", What::DisplayName),
        ("a \"b\" <sip:a@b>", What::DisplayName),
        ("<sip:a@b> x", What::Syntax),
        ("<sip:a@b>, <sip:a@b>", What::Syntax),
        ("<sip:a@b>;", What::Parameter),
        ("<sip:a@b>;tag", What::Parameter),
        ("<sip:a@b>;tag=\"x\"", What::Parameter),
        ("<sip:a@b>;tag=[::1]", What::Parameter),
        ("<sip:a@b>;tag=1;TAG=2", What::DuplicateParameter),
        ("< sip:a@b>", What::Scheme),
        ("a", What::Scheme),
    ] {
        let line = "To: \"Bob \\\"<b>\\\"\" <sip:bob@example.com>";
        let got = check(line, &format!("To: {value}"));
        let empty = what == What::Empty;
        if empty {
            assert!(matches!(got, Err(Error::Bad(Kind::To, _))), "{value:?}: {got:?}");
        } else {
            assert_eq!(got, Err(Error::Bad(Kind::To, what)), "{value:?}");
        }
    }
    let to = |value: &str| {
        let text = INVITE.replace("\"Bob \\\"<b>\\\"\" <sip:bob@example.com>", value);
        with(&text, |message| {
            let to = message.expect("a message").to().expect("To");
            let display = to.display.map(|name| String::from_utf8_lossy(name).to_string());
            (display, to.uri.text.to_string(), to.tag().map(str::to_string))
        })
    };
    let owned = |display: Option<&str>, uri: &str, tag: Option<&str>| {
        (display.map(str::to_string), uri.to_string(), tag.map(str::to_string))
    };
    assert_eq!(to("<sip:a@b>"), owned(None, "sip:a@b", None));
    assert_eq!(to("a<sip:a@b;tag=x>"), owned(Some("a"), "sip:a@b;tag=x", None));
    assert_eq!(to("\"\" <sip:a@b> ; tag = x"), owned(Some(""), "sip:a@b", Some("x")));
    assert_eq!(to("sip:a@b ;tag=x"), owned(None, "sip:a@b", Some("x")));
    assert_eq!(
        to("a  b\t<tel:1>;t=<>".trim_end_matches(";t=<>")),
        owned(Some("a  b"), "tel:1", None)
    );
}

/// 20.8, 20.16, 20.22: Call-ID, CSeq and Max-Forwards.
#[test]
fn single_values() {
    let bad = |kind, what| Err(Error::Bad(kind, what));
    for (value, want) in [
        ("x", Ok(())),
        ("x@", bad(Kind::CallId, What::Empty)),
        ("@x", bad(Kind::CallId, What::Empty)),
        ("x@y@z", bad(Kind::CallId, What::Syntax)),
        ("x y", bad(Kind::CallId, What::Syntax)),
        ("x,y", bad(Kind::CallId, What::Syntax)),
        ("\u{e9}", bad(Kind::CallId, What::Syntax)),
        ("", bad(Kind::CallId, What::Empty)),
    ] {
        assert_eq!(check("Call-ID: x@y", &format!("Call-ID: {value}")), want, "{value:?}");
    }
    for (value, want) in [
        ("2147483647 INVITE", Ok(())),
        ("2147483648 INVITE", bad(Kind::CSeq, What::Number)),
        ("99999999999999999999999 INVITE", bad(Kind::CSeq, What::Number)),
        ("-1 INVITE", bad(Kind::CSeq, What::Number)),
        ("1INVITE", bad(Kind::CSeq, What::Syntax)),
        ("1", bad(Kind::CSeq, What::Syntax)),
        ("1 ", bad(Kind::CSeq, What::Empty)),
        ("1 INVITE x", bad(Kind::CSeq, What::Syntax)),
        ("1 invite", Err(Error::CSeqMethod)),
        ("1 ACK", Err(Error::CSeqMethod)),
    ] {
        assert_eq!(check("CSeq: 7 INVITE", &format!("CSeq: {value}")), want, "{value:?}");
    }
    for (value, well) in
        [("0", true), ("255", true), ("256", false), ("", false), ("1 2", false), ("x", false)]
    {
        let got = check("Max-Forwards: 070", &format!("Max-Forwards: {value}"));
        assert_eq!(got.is_ok(), well, "{value:?}: {got:?}");
    }
}

/// 18.3: Content-Length against the datagram.
#[test]
fn bodies() {
    for (value, want) in [("0", &b""[..]), ("4", b"abcd"), ("0003", b"abc")] {
        let text = INVITE.replace("Content-Length: 3", &format!("Content-Length: {value}"));
        with(&text, |message| assert_eq!(message.expect("a message").body(), Ok(want)));
    }
    with(&INVITE.replace("Content-Length: 3\r\n", ""), |message| {
        assert_eq!(message.expect("a message").body(), Ok(&b"abcd"[..]));
    });
    let length = |value: &str| check("Content-Length: 3", &format!("Content-Length: {value}"));
    assert_eq!(length("5"), Err(Error::Truncated));
    assert_eq!(length("4294967296"), Err(Error::Bad(Kind::ContentLength, What::Number)));
    assert_eq!(length("3, 3"), Err(Error::Bad(Kind::ContentLength, What::Syntax)));
}

/// 20.30, 20.34: Route and Record-Route are lists of name-addr; 16.3: a proxy reads the first alone.
#[test]
fn routes() {
    let bad = |kind, what| Err(Error::Bad(kind, what));
    assert_eq!(header("Route: sip:a;lr"), bad(Kind::Route, What::Bracket));
    assert_eq!(header("Route: <sip:a>,"), bad(Kind::Route, What::Empty));
    assert_eq!(header("Route:"), bad(Kind::Route, What::Empty));
    assert_eq!(header("Record-Route: <sip:a> <sip:b>"), bad(Kind::RecordRoute, What::Syntax));
    with(&INVITE.replace("CSeq:", "Record-Route: x\r\nContact: x\r\nCSeq:"), |message| {
        let message = message.expect("a message");
        assert_eq!(message.check(), Ok(()));
        assert_eq!(message.check_all(), bad(Kind::RecordRoute, What::Scheme));
    });
}

/// 20.10, 20.19, 20.32, RFC 5626 4.1: what a registrar reads.
#[test]
fn contacts() {
    let bad = |what| Err(Error::Bad(Kind::Contact, what));
    for (value, want) in [
        ("*", Ok(())),
        ("*, <sip:a>", bad(What::DisplayName)),
        ("<sip:a>, *", bad(What::Syntax)),
        ("<sip:a>;q=0.7;expires=0, sip:b;q=1.000", Ok(())),
        ("<sip:a>;q=1.1", bad(What::Parameter)),
        ("<sip:a>;q=0.1234", bad(What::Parameter)),
        ("<sip:a>;q=2", bad(What::Parameter)),
        ("<sip:a>;q", bad(What::Parameter)),
        ("<sip:a>;q=.5", bad(What::Parameter)),
        ("<sip:a>;expires=-1", bad(What::Number)),
        ("<sip:a>;expires", bad(What::Number)),
        ("<sip:a>;expires=4294967296", bad(What::Number)),
        ("sip:a?b=c", bad(What::Bracket)),
        ("\"a,b\" <sip:a>,<sip:b>", Ok(())),
    ] {
        let got = header(&format!("Contact: {value}"));
        assert_eq!(got, want, "{value:?}");
    }
    assert_eq!(header("Contact: *\r\nContact: *"), bad(What::Syntax));
    assert_eq!(header("Expires: soon"), Err(Error::Bad(Kind::Expires, What::Number)));
    assert_eq!(header("Require: a b"), Err(Error::Bad(Kind::Require, What::Syntax)));
    assert_eq!(header("Proxy-Require: a,"), Err(Error::Bad(Kind::ProxyRequire, What::Empty)));
}

/// 21.4.1: a 400 says what is wrong; 21.5.6 and 21.5.7 have codes of their own.
#[test]
fn errors_say_what_is_wrong() {
    for (error, text, status, fault) in [
        (Error::Missing(Kind::CallId), "Missing Call-ID", 400, Fault::Sender),
        (Error::Bad(Kind::Via, What::Port), "Bad Via (Port)", 400, Fault::Sender),
        (Error::RequestUri(What::Escape), "Bad Request-URI (Escape)", 400, Fault::Sender),
        (Error::Scan(scan::Error::Version), "Version Not Supported", 505, Fault::Sender),
        (Error::Scan(scan::Error::TooManyHeaders), "Too Many Headers", 513, Fault::Limit),
        (Error::Truncated, "Body Shorter Than Content-Length", 400, Fault::Sender),
    ] {
        assert_eq!(error.to_string(), text);
        assert_eq!((error.status(), error.fault()), (status, fault), "{text}");
    }
    with("NO SUCH\r\n\r\n", |message| {
        assert_eq!(message.map(drop), Err(Error::Scan(scan::Error::StartLine)));
    });
    assert_eq!(header("Sub(ject: x"), Err(Error::Scan(scan::Error::HeaderName)));
}
