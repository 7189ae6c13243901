extern crate std;

use super::*;

const INVITE: &[u8] = b"INVITE sip:bob@[2001:db8::1]:5070;transport=udp SIP/2.0\r\n\
Via: SIP/2.0/UDP pc33.example.com:5066;branch=z9hG4bKabc;rport, SIP/2.0/TCP [2001:db8::2];received=2001:db8::3\r\n\
Max-Forwards: 070\r\n\
To: \"Bob \\\"<b>\\\"\" <sip:bob@example.com>\r\n\
f: sip:alice@example.com;tag=a1\r\n\
Call-ID: x@y\r\n\
CSeq: 7 INVITE\r\n\
Route: <sip:10.0.0.1;lr>, <sip:p2.example.com>\r\n\
Content-Length: 3\r\n\r\nabcd";

#[test]
fn a_request_gives_its_parts() {
    let mut index = Index::new();
    let m = Message::parse(INVITE, &mut index).expect("a message");
    m.check_all().expect("all well");
    let uri = m.request_uri().expect("a URI");
    assert_eq!((uri.user, uri.port), (Some("bob"), Some(5070)));
    assert_eq!(uri.transport(), Some("udp"));
    let vias: std::vec::Vec<_> = m.vias().map(|via| via.expect("a Via")).collect();
    assert_eq!(vias.len(), 2);
    assert_eq!(vias[0].host, Host::Name("pc33.example.com"));
    assert_eq!((vias[0].port, vias[0].rport), (Some(5066), Rport::Empty));
    assert_eq!(vias[1].received, Some("2001:db8::3".parse().expect("an address")));
    assert_eq!(m.to().expect("To").display, Some(&b"Bob \\\"<b>\\\""[..]));
    assert_eq!(m.from().expect("From").tag(), Some("a1"));
    assert_eq!(m.max_forwards().map(|m| m.map(|m| m.value)), Ok(Some(70)));
    assert_eq!(m.body(), Ok(&b"abc"[..]));
    let cut = m.cut_first(Kind::Route).expect("Routes").expect("one");
    assert_eq!(m.slice(cut), b"<sip:10.0.0.1;lr>, ");
}
