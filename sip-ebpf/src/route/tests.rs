extern crate std;

use core::cell::Cell;
use std::{format, string::String, vec::Vec};

use super::*;
use crate::reason::Way;
use crate::scan::scan;
use crate::tables::{Pbx, PbxState};
use crate::text::hex;

const US: Endpoint = Endpoint::new([10, 10, 0, 1], 5060);
const PHONE: Endpoint = Endpoint::new([10, 10, 1, 2], 5062);
const STRANGER: Endpoint = Endpoint::new([192, 0, 2, 9], 5060);
const PBX: [Endpoint; 2] =
    [Endpoint::new([10, 10, 2, 2], 5060), Endpoint::new([10, 10, 3, 2], 5060)];
fn keys() -> Keys {
    Keys::new([7, 9])
}

/// Tables in memory.
struct Here {
    keys: Keys,
    alive: bool,
    states: [PbxState; 2],
    turn: Option<u32>,
    call: Cell<Option<(u64, Call)>>,
    guarded: bool,
    noted: bool,
}

impl Default for Here {
    fn default() -> Self {
        Self {
            keys: keys(),
            alive: true,
            states: [PbxState::Active; 2],
            turn: Some(1),
            call: Cell::new(None),
            guarded: false,
            noted: true,
        }
    }
}

impl Tables for Here {
    fn keys(&self) -> &Keys {
        &self.keys
    }

    fn alive(&self) -> bool {
        self.alive
    }

    fn trusted(&self, src: Endpoint) -> bool {
        src.addr == PHONE.addr
    }

    fn pbx_at(&self, endpoint: Endpoint) -> Option<u32> {
        PBX.iter().position(|pbx| *pbx == endpoint).map(|slot| slot as u32)
    }

    fn pbx(&self, slot: u32) -> Option<Pbx> {
        let at = PBX.get(slot as usize)?;
        let state = self.states[slot as usize] as u8;
        Some(Pbx { addr: at.addr, port: at.port, state, pad: 0 })
    }

    fn turn(&self) -> Option<u32> {
        self.turn
    }

    fn call(&self, hash: u64) -> Option<Call> {
        self.call.get().filter(|call| call.0 == hash).map(|call| call.1)
    }

    fn remember(&self, hash: u64, slot: u32) {
        self.call.set(Some((hash, Call { slot, state: 0 })));
    }

    fn note(&self, hash: u64, bits: u32) -> Option<Call> {
        let before = self.call(hash)?;
        self.call.set(Some((hash, Call { state: before.state | bits, ..before })));
        Some(before)
    }

    fn guarded(&self) -> bool {
        self.guarded
    }

    fn noted(&self) -> bool {
        self.noted
    }
}

fn decide(text: &str, src: Endpoint, tables: &Here) -> (Reason, Plan) {
    let mut index = Index::new();
    scan(text.as_bytes(), &mut index).expect("a message");
    let local = crate::insert::local(US);
    let mut plan = Plan::default();
    let packet = Packet { src, dst: US };
    let reason = route(text.as_bytes(), &index, packet, &local, tables, &mut plan);
    (reason, plan)
}

/// A request of a phone; `more` are further headers, with their line ends.
fn request(method: &str, to_tag: &str, more: &str) -> String {
    format!(
        "{method} sip:600@10.10.0.1 SIP/2.0\r\n\
         Via: SIP/2.0/UDP 10.10.1.2:5062;branch=z9hG4bKabc;rport\r\n\
         Max-Forwards: 70\r\n\
         From: <sip:a@example.org>;tag=a\r\nTo: <sip:b@example.org>{to_tag}\r\n\
         Call-ID: one\r\nCSeq: 1 {method}\r\n{more}Content-Length: 0\r\n\r\n"
    )
}

fn call_of(call_id: &str) -> u64 {
    cookie::call(&keys(), call_id.as_bytes(), Span { at: 0, end: call_id.len() as u32 }).0
}

fn text_of(words: &[u64]) -> String {
    let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    String::from_utf8(bytes).expect("digits")
}

/// A Route of ours for the call `one`.
fn route_of(cookie: Cookie) -> String {
    let words = cookie.write(&keys(), call_of("one"));
    format!("Route: <sip:10.10.0.1:5060;lr;sl={}>\r\n", text_of(&words))
}

/// RFC 3261 16.11: a new call goes where the turn is, its copies where the first one went.
#[test]
fn an_invite_is_steered_and_its_copies_follow() {
    let mut tables = Here::default();
    let invite = request("INVITE", "", "");
    let (reason, plan) = decide(&invite, PHONE, &tables);
    assert_eq!((reason, plan.slot, plan.next, plan.record), (Reason::InviteSteered, 1, PBX[1], 1));
    assert_eq!((plan.hops, plan.hops_len), (69, 2));
    assert_eq!(&invite[plan.hops_at as usize..][..2], "70");
    tables.turn = Some(0);
    let (reason, again) = decide(&invite, PHONE, &tables);
    assert_eq!((reason, again.slot), (Reason::InviteRepeated, 1));
    // A copy gives the same branch and cookie, or it would be another transaction (16.11).
    assert_eq!((again.branch, again.cookie), (plan.branch, plan.cookie));
    // 9.1, 17.1.1.3: CANCEL and the ACK of a failure have the branch of their INVITE.
    for (method, to_tag, reason) in
        [("CANCEL", "", Reason::CancelSteered), ("ACK", ";tag=b", Reason::AckSteered)]
    {
        let (got, follows) = decide(&request(method, to_tag, ""), PHONE, &tables);
        assert_eq!((got, follows.next, follows.branch), (reason, PBX[1], plan.branch), "{method}");
        assert_eq!(follows.record, 0);
    }
    // Found dead: the call may be saved by another.
    tables.states[1] = PbxState::Inactive;
    let (reason, saved) = decide(&invite, PHONE, &tables);
    assert_eq!((reason, saved.slot), (Reason::InviteSteered, 0));
    // Draining takes no new calls, but its own go on.
    tables.states = [PbxState::Draining; 2];
    assert_eq!(decide(&invite, PHONE, &tables).0, Reason::InviteRepeated);
}

#[test]
fn who_may_not_call() {
    let tables = Here { turn: None, ..Here::default() };
    let invite = request("INVITE", "", "");
    assert_eq!(decide(&invite, STRANGER, &tables).0, Reason::Untrusted);
    assert_eq!(decide(&invite, PHONE, &tables).0, Reason::NoPbx);
    assert_eq!(decide(&invite, PBX[0], &tables).0, Reason::FromPbx);
    assert_eq!(decide(&request("CANCEL", "", ""), PHONE, &tables).0, Reason::UnknownCall);
    assert_eq!(decide(&request("ACK", ";tag=b", ""), PHONE, &tables).0, Reason::UnknownCall);
    assert_eq!(decide(&request("REGISTER", "", ""), PHONE, &tables).0, Reason::Method);
    assert_eq!(decide(&request("BYE", ";tag=b", ""), PHONE, &tables).0, Reason::Method);
    assert_eq!(decide(&request("INVITE", ";tag=b", ""), PHONE, &tables).0, Reason::Method);
}

/// 11, 16.3: OPTIONS for us, and only then, and only while the daemon lives.
#[test]
fn options_for_us() {
    let mut tables = Here::default();
    let options = request("OPTIONS", "", "");
    for (uri, ours) in [
        ("sip:10.10.0.1", true),
        ("sip:10.10.0.1:5060", true),
        ("SIP:10.10.0.1:5060;transport=udp", true),
        ("sip:10.10.0.1:5061", false),
        ("sip:10.10.0.1:", false),
        ("sip:10.10.0.11", false),
        ("sip:10.10.0.2", false),
        ("sip:600@10.10.0.1", false),
        ("sips:10.10.0.1", false),
        ("tel:10.10.0.1", false),
        ("sip:10.10.0.1x", false),
        ("sip:example.org", false),
    ] {
        let text = options.replace("sip:600@10.10.0.1 ", &format!("{uri} "));
        let want = if ours { Reason::OptionsAnswered } else { Reason::OptionsNotForUs };
        assert_eq!(decide(&text, STRANGER, &tables).0, want, "{uri}");
    }
    let ours = options.replace("sip:600@", "sip:");
    for more in ["Route: <sip:10.10.0.1;lr>\r\n", "Require: x\r\n"] {
        let text = ours.replace("Content-Length", &format!("{more}Content-Length"));
        assert_eq!(decide(&text, PHONE, &tables).0, Reason::OptionsNotForUs, "{more}");
    }
    // Vias that do not stand together are copied by the long way.
    let apart = ours.replace("CSeq", "Via: SIP/2.0/UDP 10.0.0.1;branch=z9hG4bKlow\r\nCSeq");
    assert_eq!(decide(&apart, PHONE, &tables).0, Reason::OddVia);
    // 12.2: inside a dialog it goes along the route.
    let inside = ours.replace("example.org>\r\nCall", "example.org>;tag=b\r\nCall");
    assert_eq!(decide(&inside, PHONE, &tables).0, Reason::Method);
    tables.alive = false;
    assert_eq!(decide(&ours, PHONE, &tables).0, Reason::HeartbeatStale);
}

/// What the quick way leaves to the long one, each by its own name.
#[test]
fn what_goes_the_long_way() {
    let invite = request("INVITE", "", "");
    let tables = Here::default();
    for (from, to, want) in [
        ("Via: SIP/2.0/UDP 10.10.1.2:5062;branch=z9hG4bKabc;rport\r\n", "", Reason::OddVia),
        ("UDP 10.10", "TCP 10.10", Reason::OddVia),
        ("z9hG4bKabc", "z9hG4bK", Reason::OddVia),
        ("z9hG4bKabc", "abc", Reason::OddVia),
        (";branch=z9hG4bKabc", "", Reason::OddVia),
        (";rport", ";rport=5", Reason::OddVia),
        (";rport", ";rport=", Reason::OddVia),
        (";rport", ";received=1.2.3.4", Reason::OddVia),
        (";rport", ";maddr=1.2.3.4", Reason::OddVia),
        (";rport", ", SIP/2.0/UDP 1.2.3.4", Reason::OddVia),
        ("CSeq: 1 INVITE", "CSeq: 1\r\n INVITE", Reason::Folded),
        ("CSeq: 1 INVITE", "CSeq: 1 BYE", Reason::OddHeader),
        ("Call-ID: one", "Call-ID: one two", Reason::OddHeader),
        ("Call-ID: one", "Call-ID:", Reason::OddHeader),
        ("Call-ID: one", "X: one", Reason::OddHeader),
        ("Content-Length: 0", "Content-Length: 1", Reason::ContentLength),
        ("Content-Length: 0", "Proxy-Require: x", Reason::Required),
        ("Max-Forwards: 70", "Max-Forwards: 0", Reason::MaxForwards),
        ("Max-Forwards: 70", "Max-Forwards: 71", Reason::MaxForwards),
        ("Max-Forwards: 70", "Max-Forwards: 0070", Reason::MaxForwards),
        ("Max-Forwards: 70", "Max-Forwards: x", Reason::MaxForwards),
        ("Max-Forwards: 70\r\n", "", Reason::MaxForwards),
        ("CSeq", "Route: <sip:10.10.0.1;lr>\r\nCSeq", Reason::Preloaded),
    ] {
        assert!(invite.contains(from), "{from}");
        let (reason, _) = decide(&invite.replacen(from, to, 1), PHONE, &tables);
        assert_eq!(reason, want, "{from:?} as {to:?}");
        assert_eq!(reason.way(), Way::Up);
    }
}

/// 16.12: inside a dialog the Route that we put in decides, in both directions.
#[test]
fn a_dialog_follows_its_cookie() {
    let tables = Here::default();
    let called = Cookie { flow: PHONE, ..Cookie::default() };
    let route = route_of(called);
    let bye = request("BYE", ";tag=b", &route);
    let (reason, plan) = decide(&bye, PHONE, &tables);
    assert_eq!((reason, plan.next, plan.slot), (Reason::DialogToPbx, PBX[0], 0));
    assert_eq!(&bye[plan.cut.at as usize..plan.cut.end as usize], route);
    // The phone may have moved: what it sends goes to the PBX all the same.
    assert_eq!(decide(&bye, STRANGER, &tables).0, Reason::DialogToPbx);

    // The PBX speaks, whoever called.
    let back = bye.replace(";tag=a\r\n", ";tag=x\r\n").replace(";tag=b\r\n", ";tag=a\r\n");
    let back = back.replace(";tag=x\r\n", ";tag=b\r\n");
    let (reason, plan) = decide(&back, PBX[0], &tables);
    assert_eq!((reason, plan.next), (Reason::DialogToPhone, PHONE));
    // Another PBX has no part in it.
    assert_eq!(decide(&back, PBX[1], &tables).0, Reason::WrongSide);

    // A PBX that is gone.
    let text = request("BYE", ";tag=b", &route_of(Cookie { slot: 9, ..called }));
    assert_eq!(decide(&text, PHONE, &tables).0, Reason::NoPbx);
}

/// Of a call that has a record the daemon wants the BYE, and nothing else. While it is away, calls end without it.
#[test]
fn the_end_of_a_recorded_call_goes_up() {
    let mut tables = Here::default();
    let route = route_of(Cookie { flow: PHONE, recorded: true, ..Cookie::default() });
    let bye = request("BYE", ";tag=b", &route);
    for (source, next) in [(PHONE, PBX[0]), (PBX[0], PHONE)] {
        let (reason, plan) = decide(&bye, source, &tables);
        assert_eq!((reason, reason.way(), plan.next), (Reason::ByeRecorded, Way::Up, next));
        assert_eq!(&bye[plan.cut.at as usize..plan.cut.end as usize], route);
    }
    assert_eq!(decide(&bye, PBX[1], &tables).0, Reason::WrongSide);
    for method in ["INVITE", "ACK", "INFO"] {
        let text = request(method, ";tag=b", &route);
        assert_eq!(decide(&text, PHONE, &tables).0, Reason::DialogToPbx, "{method}");
    }
    tables.alive = false;
    assert_eq!(decide(&bye, PHONE, &tables).0, Reason::DialogToPbx);
}

/// A cookie belongs to its call and its words; a Route of ours stands alone.
#[test]
fn routes_that_are_not_ours() {
    let tables = Here::default();
    let route = route_of(Cookie { flow: PHONE, ..Cookie::default() });
    let bye = request("BYE", ";tag=b", &route);
    let digits = bye.find("sl=").expect("a cookie") + 3;
    for at in [0, 7, 8, 15, 16, 31] {
        let mut forged = bye.clone().into_bytes();
        forged[digits + at] ^= 1;
        let forged = String::from_utf8(forged).expect("ASCII");
        assert_eq!(decide(&forged, PHONE, &tables).0, Reason::BadCookie, "digit {at}");
    }
    for (from, to, want) in [
        ("Call-ID: one", "Call-ID: two", Reason::BadCookie),
        ("Route: <sip:10.10.0.1:5060;", "Route: <sip:10.10.0.2:5060;", Reason::OddRoute),
        ("Route: <sip:10.10.0.1:5060;", "Route: <sip:10.10.0.1:5061;", Reason::OddRoute),
        (
            "Route: <sip:10.10.0.1:5060;lr;sl=",
            "Route: <sip:10.10.0.1:5060;lr;sx=",
            Reason::OddRoute,
        ),
        ("Route: <", "Route: \"x\" <", Reason::OddRoute),
        (">\r\nContent", ">,<sip:10.0.0.1;lr>\r\nContent", Reason::OddRoute),
        (">\r\nContent", ">\r\nRoute: <sip:10.0.0.1;lr>\r\nContent", Reason::OddRoute),
        (">\r\nContent", ";x>\r\nContent", Reason::OddRoute),
        (">\r\nContent", "0>\r\nContent", Reason::OddRoute),
    ] {
        assert!(bye.contains(from), "{from}");
        let (reason, _) = decide(&bye.replacen(from, to, 1), PHONE, &tables);
        assert_eq!(reason, want, "{from:?} as {to:?}");
    }
}

/// 16.7, 16.11, 18.2.2, RFC 3581 4: a response goes where the Via below ours says.
#[test]
fn responses() {
    let tables = Here::default();
    let digits = |branch: &str| {
        let span = Span { at: 0, end: branch.len() as u32 };
        text_of(&hex(cookie::branch(&keys(), call_of("one"), branch.as_bytes(), span)))
    };
    let ours = format!("SIP/2.0/UDP 10.10.0.1:5060;branch=z9hG4bKslk{}", digits("z9hG4bKabc"));
    let answer = |vias: &str| {
        format!(
            "SIP/2.0 200 OK\r\n{vias}From: <sip:a@b>;tag=a\r\nTo: <sip:b@b>;tag=b\r\n\
             Call-ID: one\r\nCSeq: 1 INVITE\r\nContent-Length: 0\r\n\r\n"
        )
    };
    for (next, want) in [
        ("10.10.1.2:5062;branch=z9hG4bKabc", PHONE),
        ("10.10.1.2;branch=z9hG4bKabc", Endpoint::new([10, 10, 1, 2], 5060)),
        ("a.example;branch=z9hG4bKabc;rport=5062;received=10.10.1.2", PHONE),
        ("10.9.9.9:5062;branch=z9hG4bKabc;received=10.10.1.2", PHONE),
        ("10.10.1.2:9;branch=z9hG4bKabc;rport=5062", PHONE),
    ] {
        for between in ["\r\nVia: ", ",", ", ", ",  "] {
            let text = answer(&format!("Via: {ours}{between}SIP/2.0/UDP {next}\r\n"));
            let (reason, plan) = decide(&text, PBX[0], &tables);
            assert_eq!(
                (reason, plan.next),
                (Reason::ResponseForwarded, want),
                "{next} {between:?}"
            );
            let mut left = text.clone();
            left.replace_range(plan.cut.at as usize..plan.cut.end as usize, "");
            assert_eq!(left, answer(&format!("Via: SIP/2.0/UDP {next}\r\n")));
        }
    }
    let below = "Via: SIP/2.0/UDP 10.10.1.2:5062;branch=z9hG4bKabc\r\n";
    let good = answer(&format!("Via: {ours}\r\n{below}"));
    assert_eq!(decide(&good, PBX[0], &tables).0, Reason::ResponseForwarded);
    // From a phone it may go to a PBX only.
    assert_eq!(decide(&good, PHONE, &tables).0, Reason::WrongSide);
    for (vias, want) in [
        (format!("Via: {ours}\r\n"), Reason::BadBranch),
        (format!("Via: {ours}\r\nX: y\r\n{below}"), Reason::BadBranch),
        (format!("Via: {ours}\r\n{}", below.replace("abc", "abd")), Reason::BadBranch),
        (format!("Via: {}\r\n{below}", ours.replace("slk", "sld")), Reason::DaemonResponse),
        (format!("Via: {}\r\n{below}", ours.replace("slk", "xxx")), Reason::NotOurResponse),
        (format!("Via: {ours}0\r\n{below}"), Reason::NotOurResponse),
        (format!("Via: {ours}\r\n{}", below.replace("UDP", "TCP")), Reason::OddVia),
        (
            format!("Via: {ours}\r\n{}", below.replace("5062", "5062;maddr=1.2.3.4")),
            Reason::BadBranch,
        ),
        (format!("Via: {ours}\r\n{}", below.replace("10.10.1.2", "a.example")), Reason::BadBranch),
        (String::new(), Reason::OddVia),
    ] {
        assert_eq!(decide(&answer(&vias), PBX[0], &tables).0, want, "{vias}");
    }
    let two = good.replace("CSeq", "Call-ID: one\r\nCSeq");
    assert_eq!(decide(&two, PBX[0], &tables).0, Reason::OddHeader);
    let other = good.replace("Call-ID: one", "Call-ID: two");
    assert_eq!(decide(&other, PBX[0], &tables).0, Reason::BadBranch);
}

/// What a PBX says decides its call once, and only for who asks.
#[test]
fn the_first_final_response_decides() {
    let mut tables = Here::default();
    let (_, plan) = decide(&request("INVITE", "", ""), PHONE, &tables);
    let branch = text_of(&hex(plan.branch));
    let answer = |line: &str, method: &str| {
        format!(
            "SIP/2.0 {line}\r\nVia: SIP/2.0/UDP 10.10.0.1:5060;branch=z9hG4bKslk{branch}\r\n\
             Via: SIP/2.0/UDP 10.10.1.2:5062;branch=z9hG4bKabc\r\nFrom: <sip:a@b>;tag=a\r\n\
             To: <sip:b@b>;tag=b\r\nCall-ID: one\r\nCSeq: 1 {method}\r\nContent-Length: 0\r\n\r\n"
        )
    };
    let decided = |tables: &Here, line: &str, method: &str| {
        let (reason, plan) = decide(&answer(line, method), PBX[1], tables);
        assert_eq!(reason, Reason::ResponseForwarded, "{line}");
        plan.decided
    };
    tables.noted = false;
    assert_eq!(decided(&tables, "200 OK", "INVITE"), 0);
    assert_eq!(tables.call(call_of("one")).map(|call| call.state), Some(0));
    tables.noted = true;
    assert_eq!(decided(&tables, "180 Ringing", "INVITE"), 0);
    assert_eq!(decided(&tables, "200 OK", "CANCEL"), 0);
    assert_eq!(decided(&tables, "486 Busy Here", "INVITE"), state::ENDED);
    assert_eq!(decided(&tables, "486 Busy Here", "INVITE"), 0);
    decide(&request("INVITE", "", ""), PHONE, &tables);
    decide(&request("CANCEL", "", ""), PHONE, &tables);
    let both = state::ENDED | state::CANCELLED;
    assert_eq!(decided(&tables, "487 Request Terminated", "INVITE"), both);
    // Of a call that is not known it is said each time.
    tables.call.set(None);
    assert_eq!(decided(&tables, "200 OK", "INVITE"), state::ENDED);
    assert_eq!(decided(&tables, "200 OK", "INVITE"), state::ENDED);
}
