//! What transactions write themselves: of an INVITE of ours the ACK of its failure (RFC 3261 17.1.1.3) and its
//! CANCEL (9.1); to a request of somebody else the 100 (17.2.1, RFC 4320 4.1).

use std::net::SocketAddr;

use sip_ebpf::hash::Keys;
use sip_ebpf::message::Message;
use sip_ebpf::scan::{Index, Kind};

use crate::core::reply::{self, Answer};

/// They go one hop, but every request has a Max-Forwards (8.1.1.6).
const END: &[u8] = b"Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n";

/// The ACK for `response`, 300 or above, to `invite`. None if `invite` is no request.
pub(in crate::core) fn ack(
    invite: &[u8],
    index: &mut Index,
    response: &Message<'_>,
) -> Option<Vec<u8>> {
    let invite = Message::parse(invite, index).ok()?;
    // The To of the response has the tag of who refused.
    derived(&invite, b"ACK", value(response, Kind::To))
}

/// The CANCEL of `invite`. None if that is no request.
pub(in crate::core) fn cancel(invite: &[u8], index: &mut Index) -> Option<Vec<u8>> {
    let invite = Message::parse(invite, index).ok()?;
    derived(&invite, b"CANCEL", None)
}

/// The 100 to `request`, which goes to `peer`. None if it cannot be answered.
///
/// Where it goes tells enough of where the request came from: the address is the same (18.2.2), and the
/// port too if the sender asked by `rport` to hear it.
pub(super) fn trying(
    request: &[u8],
    index: &mut Index,
    peer: SocketAddr,
    key: [u64; 2],
) -> Option<Vec<u8>> {
    let request = Message::parse(request, index).ok()?;
    let headers = reply::timestamp(&request);
    let answer = Answer { code: 100, phrase: "Trying", headers: &headers };
    reply::build(&request, peer, &Keys::new(key), answer).map(|(_, bytes)| bytes)
}

/// A request of the same transaction: Request-URI, top Via, Route, From, Call-ID and the number of CSeq are
/// the same, and there is nothing else.
fn derived(invite: &Message<'_>, method: &[u8], to: Option<&[u8]>) -> Option<Vec<u8>> {
    let via = invite.top_via().ok()?;
    let cseq = invite.cseq().ok()?.number.to_string();
    let mut out = Vec::with_capacity(512);
    put(&mut out, &[method, b" ", invite.request_uri_bytes(), b" SIP/2.0"]);
    put(&mut out, &[b"Via: ", invite.slice(via.span)]);
    for route in invite.headers().filter(|header| header.kind == Kind::Route) {
        put(&mut out, &[b"Route: ", route.value]);
    }
    put(&mut out, &[b"From: ", value(invite, Kind::From)?]);
    put(&mut out, &[b"To: ", to.or_else(|| value(invite, Kind::To))?]);
    put(&mut out, &[b"Call-ID: ", value(invite, Kind::CallId)?]);
    put(&mut out, &[b"CSeq: ", cseq.as_bytes(), b" ", method]);
    out.extend_from_slice(END);
    Some(out)
}

fn value<'a>(message: &Message<'a>, kind: Kind) -> Option<&'a [u8]> {
    message.first(kind).map(|header| header.value)
}

fn put(out: &mut Vec<u8>, line: &[&[u8]]) {
    line.iter().for_each(|piece| out.extend_from_slice(piece));
    out.extend_from_slice(b"\r\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    const INVITE: &str = "INVITE sip:bob@192.0.2.4;lr SIP/2.0\r\n\
        v: SIP/2.0/UDP 192.0.2.1;rport;branch=z9hG4bKa, SIP/2.0/UDP 192.0.2.9;branch=z9hG4bKb\r\n\
        Via: SIP/2.0/UDP far.example;branch=z9hG4bKc\r\nRoute: <sip:p1.example;lr>, <sip:p2.example;lr>\r\n\
        Max-Forwards: 3\r\nf: \"A\" <sip:a@x>;tag=1\r\nRoute: <sip:p3.example>\r\nt: <sip:b@x>\r\n\
        i: 42@x\r\nCSeq: 007   INVITE\r\nContact: <sip:a@x>\r\nRequire: foo\r\nProxy-Authorization: Digest\r\n\
        Content-Type: application/sdp\r\nContent-Length: 3\r\n\r\nv=0";

    fn lines(bytes: Option<Vec<u8>>) -> Vec<String> {
        let text = String::from_utf8(bytes.unwrap()).unwrap();
        Message::parse(text.as_bytes(), &mut Index::new()).unwrap().check_all().unwrap();
        text.split("\r\n").map(str::to_owned).collect()
    }

    #[test]
    fn the_ack_of_a_failure() {
        let mut index = Index::new();
        let response = "SIP/2.0 486 Busy Here\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKa\r\n\
            To: <sip:b@x> ;tag=busy\r\nl: 0\r\n\r\n";
        let response = Message::parse(response.as_bytes(), &mut index).unwrap();
        assert_eq!(
            lines(ack(INVITE.as_bytes(), &mut Index::new(), &response)),
            [
                "ACK sip:bob@192.0.2.4;lr SIP/2.0",
                "Via: SIP/2.0/UDP 192.0.2.1;rport;branch=z9hG4bKa",
                "Route: <sip:p1.example;lr>, <sip:p2.example;lr>",
                "Route: <sip:p3.example>",
                "From: \"A\" <sip:a@x>;tag=1",
                "To: <sip:b@x> ;tag=busy",
                "Call-ID: 42@x",
                "CSeq: 7 ACK",
                "Max-Forwards: 70",
                "Content-Length: 0",
                "",
                "",
            ]
        );
    }

    #[test]
    fn the_cancel() {
        let lines = lines(cancel(INVITE.as_bytes(), &mut Index::new()));
        assert_eq!(lines[0], "CANCEL sip:bob@192.0.2.4;lr SIP/2.0");
        assert!(lines.contains(&"To: <sip:b@x>".to_owned()));
        assert!(lines.contains(&"CSeq: 7 CANCEL".to_owned()));
        assert_eq!(lines.iter().filter(|line| line.starts_with("Via:")).count(), 1);
        assert_eq!(lines.iter().filter(|line| line.starts_with("Require:")).count(), 0);
    }

    #[test]
    fn the_100() {
        let peer = "192.0.2.1:5080".parse().unwrap();
        let text = INVITE.replace("Require: foo", "timestamp: 54.21 1");
        let made = lines(trying(text.as_bytes(), &mut Index::new(), peer, [1, 2]));
        assert_eq!(made[0], "SIP/2.0 100 Trying");
        assert!(made[1].contains(";rport=5080;") && made[1].contains(";received=192.0.2.1"));
        assert!(made.contains(&"Timestamp: 54.21 1".to_owned()), "{made:?}");
    }

    #[test]
    fn of_what_is_no_invite() {
        assert_eq!(cancel(b"", &mut Index::new()), None);
        assert_eq!(cancel(b"INVITE sip:b@x SIP/2.0\r\n\r\n", &mut Index::new()), None);
    }
}
