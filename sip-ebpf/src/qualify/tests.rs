extern crate std;

use std::{format, string::String, vec::Vec};

use super::*;
use crate::insert;
use crate::scan::scan;
use crate::tables::{Endpoint, Endpoint6};

const US: Endpoint = Endpoint::new([10, 10, 0, 1], 5060);
const PBX: Endpoint = Endpoint::new([10, 10, 2, 2], 5060);

fn request(uri: &str, extra: &str) -> String {
    format!(
        "OPTIONS {uri} SIP/2.0\r\nVia: SIP/2.0/UDP 10.10.2.2:5060;branch=z9hG4bKq;rport\r\n\
         Max-Forwards: 70\r\nFrom: <sip:pbx@10.10.2.2>;tag=q\r\nTo: <{uri}>\r\nCall-ID: q@pbx\r\n\
         CSeq: 102 OPTIONS\r\n{extra}Content-Length: 0\r\n\r\n"
    )
}

fn plan_of<A: Address>(text: &str, index: &mut Index) -> Plan<A> {
    scan(text.as_bytes(), index).unwrap();
    let mut plan = Plan::default();
    let via = index.first(Kind::Via).unwrap();
    header::via(text.as_bytes(), via.value as u32, via.end as u32, &mut plan.via).unwrap();
    plan.tag = literal(b"01234567");
    plan
}

fn user(at: Endpoint, text: &str) -> Option<String> {
    user_of(PBX, at, text)
}

fn user_of<A: Address>(pbx: A, at: A, text: &str) -> Option<String> {
    let mut index = Index::new();
    let plan = plan_of(text, &mut index);
    let packet = Packet { src: pbx, dst: at };
    let span = asked(text.as_bytes(), &index, packet, &insert::local(at), &plan)?;
    Some(text[span.at as usize..span.end as usize].into())
}

#[test]
fn users_at_the_address_that_was_asked() {
    let other = Endpoint::new([10, 10, 0, 1], 5062);
    for (at, uri, want) in [
        (US, "sip:anna@10.10.0.1:5060", Some("anna")),
        (US, "sip:anna@10.10.0.1", Some("anna")),
        (US, "SIP:+49-221.x@10.10.0.1;transport=udp", Some("+49-221.x")),
        (US, "sip:anna@10.10.0.1:5060;ob", Some("anna")),
        (other, "sip:anna@10.10.0.1:5062", Some("anna")),
        (other, "sip:anna@10.10.0.1", None),
        (US, "sip:anna@10.10.0.1:5062", None),
        (US, "sip:anna@10.10.0.12", None),
        (US, "sip:anna@10.10.0.1:50600", None),
        (US, "sip:anna@example.com", None),
        (US, "sip:anna:pw@10.10.0.1", None),
        (US, "sip:an%6ea@10.10.0.1", None),
        (US, "sips:anna@10.10.0.1", None),
        (US, "sip:@10.10.0.1", None),
        (US, "sip:10.10.0.1", None),
        (US, "tel:+49221", None),
    ] {
        assert_eq!(user(at, &request(uri, "")).as_deref(), want, "{uri}");
    }
    let uri = "sip:anna@10.10.0.1";
    for extra in ["Route: <sip:10.10.0.1;lr>\r\n", "Require: x\r\n"] {
        assert_eq!(user(US, &request(uri, extra)), None, "{extra}");
    }
    // Without rport it has to be the port that it says.
    let plain = request(uri, "").replace(";rport", "");
    assert_eq!(user(US, &plain).as_deref(), Some("anna"));
    assert_eq!(user(US, &plain.replace(":5060;branch", ":5061;branch")), None);
    assert_eq!(user(US, &request(uri, "").replace("OPTIONS", "MESSAGE")), None);
}

#[test]
fn users_at_an_address_of_ipv6() {
    let address = |last: u8, port| {
        Endpoint6::new([0xfd, 0x10, 0, 0x10, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, last], port)
    };
    let (us, pbx) = (address(1, 5060), address(2, 5060));
    let ask = |uri: &str| request(uri, "").replace("10.10.2.2", "[fd10:10::2]");
    for (uri, want) in [
        ("sip:anna@[fd10:10::1]:5060", Some("anna")),
        ("sip:anna@[fd10:10::1]", Some("anna")),
        ("SIP:+49-221.x@[fd10:10::1];transport=udp", Some("+49-221.x")),
        ("sip:anna@[fd10:10::1]:5062", None),
        ("sip:anna@[fd10:10::2]", None),
        ("sip:anna@[fd10:10::11]", None),
        ("sip:anna@fd10:10::1", None),
        ("sip:[fd10:10::1]", None),
        // Ours, and written in another way: for the daemon.
        ("sip:anna@[FD10:10::1]", None),
        ("sip:anna@[fd10:10:0::1]", None),
    ] {
        assert_eq!(user_of(pbx, us, &ask(uri)).as_deref(), want, "{uri}");
    }
    let plain = ask("sip:anna@[fd10:10::1]").replace(";rport", "");
    assert_eq!(user_of(pbx, us, &plain).as_deref(), Some("anna"));
    assert_eq!(user_of(pbx, us, &plain.replace(":5060;branch", ":5061;branch")), None);
}

struct Out(Vec<u8>);

impl Sink for Out {
    fn put(&mut self, at: u32, word: u64) {
        let at = at as usize;
        if self.0.len() < at + 8 {
            self.0.resize(at + 8, 0);
        }
        self.0[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
}

#[test]
fn both_answers() {
    let text = request("sip:anna@10.10.0.1", "");
    let mut index = Index::new();
    let plan = plan_of(&text, &mut index);
    let packet = Packet { src: PBX, dst: US };
    let answer = |there| {
        let mut out = Out(Vec::new());
        let front = answer(text.as_bytes(), &index, packet, &plan, there, &mut out);
        assert_eq!(front.old, index.len, "nothing of the request follows");
        out.0.truncate(front.new as usize);
        String::from_utf8(out.0).unwrap()
    };
    let head = "Via: SIP/2.0/UDP 10.10.2.2:5060;branch=z9hG4bKq;rport=5060;received=10.10.2.2\r\n\
                From: <sip:pbx@10.10.2.2>;tag=q\r\nTo: <sip:anna@10.10.0.1>;tag=01234567\r\n\
                Call-ID: q@pbx\r\nCSeq: 102 OPTIONS\r\n";
    let about = std::str::from_utf8(ABOUT_US).unwrap();
    assert_eq!(answer(true), format!("SIP/2.0 200 OK\r\n{head}{about}"));
    assert_eq!(answer(false), format!("SIP/2.0 404 Not Found\r\n{head}Content-Length: 0\r\n\r\n"));
}
