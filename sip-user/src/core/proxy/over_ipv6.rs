//! Calls over IPv6 through the whole proxy, on virtual time.

use std::collections::BTreeMap;
use std::time::Duration;

use super::*;
use crate::config::{AdminState, NoDestination};
use crate::core::counters::Event;
use crate::core::dispatcher::{Command, Unreachable};
use crate::core::testing::{Setup, World, damaged, damages, header, response};

const PHONE: &str = "[2001:db8:1::2]:5062";
const PHONE4: &str = "10.10.1.2:5062";
const STRANGER: &str = "[2001:db9::5]:5060";
const PBX1: &str = "[2001:db8:2::2]:5060";
const PBX2: &str = "[2001:db8:3::2]:5060";
const PBX4: &str = "10.10.2.2:5060";

/// The places of our addresses in the list of them.
const US4: usize = 0;
const US6: usize = 1;

/// Our IPv4 address, our IPv6 address and a link-local one; two PBXs with IPv6 and one with IPv4.
fn world() -> World {
    world_with(&[("pbx1", PBX1), ("pbx2", PBX2), ("pbx4", PBX4)])
}

fn world_with(pbxs: &[(&str, &str)]) -> World {
    World::new(&Setup {
        locals: &["10.10.0.1:5060", "[2001:db8::1]:5060", "[fe80::1%3]:5060"],
        trusted: &["2001:db8:1::/48", "fe80::/64", "10.10.1.0/24"],
        denied: &["2001:db8:bad::/48"],
        pbxs,
        no_destination: NoDestination::Unavailable,
    })
}

/// A request of the phone; `extra` are header lines.
fn request(method: &str, uri: &str, to: &str, extra: &str) -> String {
    let branch = if method == "BYE" { 2 } else { 1 };
    format!(
        "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {PHONE};rport;branch=z9hG4bKp{branch}\r\n\
         Max-Forwards: 70\r\nFrom: \"Alice\" <sip:alice@[2001:db8:1::2]>;tag=alice\r\nTo: {to}\r\n\
         Call-ID: call-1@phone\r\nCSeq: 1 {method}\r\n{extra}Content-Length: 0\r\n\r\n"
    )
}

fn invite() -> String {
    let contact = format!("Contact: <sip:alice@{PHONE}>\r\n");
    request("INVITE", "sip:bob@[2001:db8::1]", "<sip:bob@[2001:db8::1]>", &contact)
}

fn bye(routes: &str) -> String {
    request("BYE", "sip:bob@[2001:db8:2::2]", "<sip:bob@[2001:db8::1]>;tag=bob", routes)
}

/// A request of a PBX.
fn from_pbx(pbx: &str, method: &str, uri: &str, to: &str, extra: &str) -> String {
    request(method, uri, to, extra).replace(&format!("{PHONE};rport"), pbx).replace(
        "\"Alice\" <sip:alice@[2001:db8:1::2]>;tag=alice",
        "<sip:bob@[2001:db8::1]>;tag=bob",
    )
}

fn other(pbx: &str) -> &'static str {
    if pbx == PBX1 { PBX2 } else { PBX1 }
}

// ---- Calls -------------------------------------------------------------------------------------

#[test]
fn an_invite_line_by_line() {
    let mut w = world();
    let (pbx, sent) = w.say(PHONE, &invite());
    assert!([PBX1, PBX2].contains(&pbx.as_str()), "{pbx}");
    let lines: Vec<_> = sent.split("\r\n").collect();
    let slot = w.dispatcher.slot_at(pbx.parse().unwrap()).unwrap();
    let (route, digits) = lines[1].split_once(";sl=").unwrap();
    let (branch, hash) = lines[2].split_once(";branch=").unwrap();
    assert_eq!(route, "Record-Route: <sip:[2001:db8::1]:5060;lr");
    let flow = format!("20010db800010000000000000000000213c6{slot:02x}00");
    assert_eq!(digits.len(), 57);
    assert!(digits.starts_with(&flow) && digits.ends_with('>'), "{digits}");
    assert_eq!(branch, "Via: SIP/2.0/UDP [2001:db8::1]:5060");
    assert!(hash.starts_with("z9hG4bKslk") && hash.len() == 26, "{hash}");
    assert_eq!(
        lines,
        [
            "INVITE sip:bob@[2001:db8::1] SIP/2.0",
            lines[1],
            lines[2],
            "Via: SIP/2.0/UDP [2001:db8:1::2]:5062;rport=5062;received=2001:db8:1::2;branch=z9hG4bKp1",
            "Max-Forwards: 69",
            "From: \"Alice\" <sip:alice@[2001:db8:1::2]>;tag=alice",
            "To: <sip:bob@[2001:db8::1]>",
            "Call-ID: call-1@phone",
            "CSeq: 1 INVITE",
            "Contact: <sip:alice@[2001:db8:1::2]:5062>",
            "Content-Length: 0",
            "",
            "",
        ]
    );
    assert_eq!(w.reason(Reason::InviteSteered), 1);
    assert_eq!(w.proxy.placed()[slot as usize], 1);
}

#[test]
fn a_via_without_rport_has_received_where_it_is_another() {
    let via = |said: &str, from: &str| {
        let text = invite().replace(&format!("{PHONE};rport"), said);
        header(&world().say(from, &text).1, "Via")[1].to_owned()
    };
    let same = via("[2001:DB8:1:0::2]:5062", PHONE);
    assert_eq!(same, "SIP/2.0/UDP [2001:DB8:1:0::2]:5062;branch=z9hG4bKp1");
    for said in ["[2001:db8:1::3]:5062", "pc.example", "192.0.2.3"] {
        let other = via(said, PHONE);
        let want = format!("SIP/2.0/UDP {said};branch=z9hG4bKp1;received=2001:db8:1::2");
        assert_eq!(other, want);
    }
    // A response then goes to the port that the sender says (18.2.2).
    let mut w = world();
    let text = invite().replace(&format!("{PHONE};rport"), "[2001:db8:1::3]:5070");
    let (pbx, sent) = w.say(PHONE, &text);
    let (to, _) = w.say(&pbx, &response(&sent, "200 OK", "bob"));
    assert_eq!(to, "[2001:db8:1::2]:5070");
}

#[test]
fn repetitions_cancel_and_ack_follow_their_invite() {
    let mut w = world();
    let mut count = BTreeMap::new();
    for i in 0..10 {
        let of_call = |text: String| text.replace("call-1", &format!("call-{i}"));
        let (pbx, sent) = w.say(PHONE, &of_call(invite()));
        *count.entry(pbx.clone()).or_insert(0) += 1;
        assert_eq!(w.say(PHONE, &of_call(invite())), (pbx.clone(), sent.clone()));
        let cancel = request("CANCEL", "sip:bob@[2001:db8::1]", "<sip:bob@[2001:db8::1]>", "");
        let (to, cancelled) = w.say(PHONE, &of_call(cancel));
        assert_eq!(to, pbx);
        let (to, failed) = w.say(&pbx, &response(&sent, "487 Request Terminated", "bob"));
        assert_eq!(to, PHONE);
        assert_eq!(header(&failed, "Via").len(), 1);
        let ack = request("ACK", "sip:bob@[2001:db8::1]", "<sip:bob@[2001:db8::1]>;tag=bob", "");
        let (to, acked) = w.say(PHONE, &of_call(ack));
        assert_eq!(to, pbx);
        for text in [&cancelled, &acked] {
            assert_eq!(header(text, "Via")[0], header(&sent, "Via")[0], "one branch (17.1.1.3)");
            assert_eq!(header(text, "Record-Route"), [""; 0]);
            assert_eq!(header(text, "Max-Forwards"), ["69"]);
        }
    }
    assert_eq!(count.into_values().collect::<Vec<_>>(), [5, 5]);
    for (reason, times) in [
        (Reason::InviteSteered, 10),
        (Reason::InviteRepeated, 10),
        (Reason::CancelSteered, 10),
        (Reason::AckSteered, 10),
        (Reason::ResponseForwarded, 10),
    ] {
        assert_eq!(w.reason(reason), times, "{reason:?}");
    }
}

#[test]
fn a_dialog_from_both_sides() {
    let mut w = world();
    let (pbx, sent) = w.say(PHONE, &invite());
    let route = header(&sent, "Record-Route")[0].to_owned();
    let (to, answer) = w.say(&pbx, &response(&sent, "200 OK", "bob"));
    assert_eq!(to, PHONE);
    assert_eq!(header(&answer, "Via"), [header(&sent, "Via")[1]]);
    assert_eq!(header(&answer, "Record-Route"), [&route]);

    let routes = format!("Route: {route}\r\n");
    let ack = bye(&routes).replace("BYE", "ACK");
    let (to, acked) = w.say(PHONE, &ack);
    assert_eq!(to, pbx);
    assert_eq!(header(&acked, "Route"), [""; 0]);
    let (to, ended) = w.say(PHONE, &bye(&routes));
    assert_eq!(to, pbx);
    assert_eq!(header(&ended, "Record-Route"), [""; 0]);
    assert_eq!(w.say(&pbx, &response(&ended, "200 OK", "bob")).0, PHONE);

    // From the PBX: to where the phone really is (RFC 5626 5.2), whatever its Contact says.
    let from = "<sip:alice@[2001:db8:1::2]>;tag=alice";
    let hang_up = from_pbx(&pbx, "BYE", "sip:alice@[2001:db8:1::2]:9", from, &routes);
    let (to, sent) = w.say(&pbx, &hang_up);
    assert_eq!(to, PHONE);
    assert_eq!(header(&sent, "Route"), [""; 0]);
    assert_eq!(w.say(PHONE, &response(&sent, "200 OK", "")).0, pbx);
    assert_eq!((w.reason(Reason::DialogToPbx), w.reason(Reason::DialogToPhone)), (2, 1));

    // The other PBX cannot speak in this dialog, and nobody can in another call.
    let stranger = hang_up.replace(&pbx, other(&pbx));
    assert_eq!(w.status(other(&pbx), &stranger), "SIP/2.0 404 Not here");
    assert_eq!(w.reason(Reason::WrongSide), 1);
    let mallory = hang_up.replace("call-1", "call-2");
    assert_eq!(w.status(&pbx, &mallory), "SIP/2.0 404 Not here");
}

#[test]
fn a_tampered_cookie_is_refused() {
    let mut w = world();
    let (_, sent) = w.say(PHONE, &invite());
    let route = header(&sent, "Record-Route")[0].to_owned();
    let start = route.find("sl=").unwrap() + 3;
    for at in start..route.len() - 1 {
        let mut forged = route.clone();
        let digit = if &forged[at..=at] == "1" { "0" } else { "1" };
        forged.replace_range(at..=at, digit);
        let text = bye(&format!("Route: {forged}\r\n"));
        assert_eq!(w.status(PHONE, &text), "SIP/2.0 404 Not here", "digit {}", at - start);
        w.silence(PHONE, &text.replace("BYE", "ACK"));
    }
    for forged in [
        "<sip:[2001:db8::1]:5060;lr>".to_owned(),
        "<sip:[2001:db8::66]:5060;lr>".to_owned(),
        route.replace(";sl=", ";sl=0"),
        route.replace("2001:db8::1]", "2001:db8::9]"),
    ] {
        let text = bye(&format!("Route: {forged}\r\n"));
        assert_eq!(w.status(PHONE, &text), "SIP/2.0 404 Not here", "{forged}");
    }
    assert!(w.reason(Reason::BadCookie) > 80);
    assert_eq!(w.reason(Reason::DialogToPbx), 0);
    // Another call's cookie.
    let text = bye(&format!("Route: {route}\r\n")).replace("call-1", "call-2");
    assert_eq!(w.status(PHONE, &text), "SIP/2.0 404 Not here");
}

#[test]
fn a_cookie_serves_its_family_only() {
    let mut w = world();
    let over_ipv4 = invite().replace(PHONE, PHONE4);
    let (pbx, sent4) = w.say(PHONE4, &over_ipv4);
    assert_eq!(pbx, PBX4);
    let (_, sent6) = w.say(PHONE, &invite());
    let (route4, route6) = (header(&sent4, "Record-Route")[0], header(&sent6, "Record-Route")[0]);
    // Alone and with another below it, which goes the long way.
    for below in ["", ", <sip:far.example;lr>"] {
        let text = bye(&format!("Route: {route4}{below}\r\n"));
        assert_eq!(w.status(PHONE, &text), "SIP/2.0 404 Not here");
        let text = bye(&format!("Route: {route6}{below}\r\n")).replace(PHONE, PHONE4);
        assert_eq!(w.status(PHONE4, &text), "SIP/2.0 404 Not here");
    }
}

#[test]
fn a_call_stays_in_its_family() {
    let mut w = world();
    // The same Call-ID over both: the table's slot is of no use to the other family.
    for _ in 0..3 {
        assert_ne!(w.say(PHONE, &invite()).0, PBX4);
        assert_eq!(w.say(PHONE4, &invite().replace(PHONE, PHONE4)).0, PBX4);
    }
    for i in 0..6 {
        let text = invite().replace("call-1", &format!("four-{i}")).replace(PHONE, PHONE4);
        assert_eq!(w.say(PHONE4, &text).0, PBX4);
    }
    let slots: Vec<_> = [PBX1, PBX2]
        .iter()
        .map(|pbx| w.dispatcher.slot_at(pbx.parse().unwrap()).unwrap())
        .collect();
    let schedule = w.dispatcher.schedule();
    assert_eq!(schedule.len, 1);
    for slot in slots {
        assert_ne!(u32::from(schedule.slots[0]), slot);
        assert_eq!(w.dispatcher.pbx(slot), sip_ebpf::tables::Pbx::default());
    }
    // What only its link knows is not for the kernel.
    assert_eq!((w.proxy.locals().len(), w.proxy.locals6().len()), (1, 1));
}

// ---- Health ------------------------------------------------------------------------------------

#[test]
fn no_pbx_with_ipv6() {
    let mut w = world_with(&[("pbx4", PBX4)]);
    let (to, answer) = w.say(PHONE, &invite());
    assert_eq!(to, PHONE);
    assert!(answer.starts_with("SIP/2.0 488 Not Acceptable Here\r\n"), "{answer}");
    assert_eq!(header(&answer, "Warning"), ["301 sipline \"No PBX has an IPv6 address\""]);
    w.silence(PHONE, &request("ACK", "sip:b@c", "<sip:b@c>;tag=x", ""));
    assert_eq!(w.reason(Reason::NoPbx), 1);
    // The other way around.
    let mut w = world_with(&[("pbx1", PBX1)]);
    let (_, answer) = w.say(PHONE4, &invite().replace(PHONE, PHONE4));
    assert_eq!(header(&answer, "Warning"), ["301 sipline \"No PBX has an IPv4 address\""]);
    // Without any PBX nobody is told so over IPv4.
    let mut w = world_with(&[]);
    let over_ipv4 = invite().replace(PHONE, PHONE4);
    assert_eq!(w.status(PHONE4, &over_ipv4), "SIP/2.0 503 Service Unavailable");
}

#[test]
fn a_dead_pbx_gets_no_copy_and_none_is_503() {
    let mut w = world();
    let (pbx, _) = w.say(PHONE, &invite());
    w.dispatcher.handle_unreachable(w.now, pbx.parse().unwrap(), Unreachable::Port);
    let (second, _) = w.say(PHONE, &invite());
    assert_eq!(second, other(&pbx));
    w.dispatcher.handle_unreachable(w.now, second.parse().unwrap(), Unreachable::Port);
    let (_, answer) = w.say(PHONE, &invite());
    assert!(answer.starts_with("SIP/2.0 503 Service Unavailable\r\n"), "{answer}");
    assert_eq!(header(&answer, "Retry-After"), ["5"]);
}

#[test]
fn a_drained_pbx_keeps_its_calls() {
    let mut w = world();
    let (pbx, sent) = w.say(PHONE, &invite());
    let route = format!("Route: {}\r\n", header(&sent, "Record-Route")[0]);
    w.order(if pbx == PBX1 { "pbx1" } else { "pbx2" }, AdminState::Draining);
    for i in 2..6 {
        let (to, _) = w.say(PHONE, &invite().replace("call-1", &format!("call-{i}")));
        assert_eq!(to, other(&pbx));
    }
    assert_eq!(w.say(PHONE, &invite()).0, pbx, "a repetition");
    assert_eq!(w.say(PHONE, &bye(&route)).0, pbx);
    // Gone for good: so are its dialogs (12.2.1.2).
    w.dispatcher.remove(if pbx == PBX1 { "pbx1" } else { "pbx2" }).unwrap();
    let gone = "SIP/2.0 481 Call/Transaction Does Not Exist";
    assert_eq!(w.status(PHONE, &bye(&route)), gone);
    w.silence(PHONE, &bye(&route).replace("BYE", "ACK"));
    // Nobody new while we stop.
    w.dispatcher.set_accepting(false);
    let text = invite().replace("call-1", "call-9");
    assert_eq!(w.status(PHONE, &text), "SIP/2.0 503 Service Unavailable");
}

#[test]
fn answers_to_probes_reach_the_dispatcher() {
    let mut w = world();
    w.dispatcher.handle_timeout(w.now + Duration::from_secs(1));
    let mut asked = 0;
    while let Some(command) = w.dispatcher.poll_command() {
        let Command::Send { from, to, datagram } = command else { continue };
        asked += 1;
        let local = if to.is_ipv6() { "[2001:db8::1]:5060" } else { "10.10.0.1:5060" };
        assert_eq!(from.to_string(), local);
        let place = if to.is_ipv6() { US6 } else { US4 };
        let answer = response(str::from_utf8(&datagram).unwrap(), "200 OK", "x");
        assert_eq!(w.hear(&to.to_string(), place, answer.as_bytes()), []);
    }
    assert_eq!((asked, w.event(Event::ProbeAnswer)), (3, 3));
    assert!(w.dispatcher.views().iter().all(|view| view.last_probe == Some(Ok(200))));
}

// ---- Calls of PBXs -----------------------------------------------------------------------------

#[test]
fn a_pbx_calls_a_phone() {
    let mut w = world();
    let uri = format!("sip:alice@{PHONE};ob");
    let (to, sent) = w.say(PBX1, &from_pbx(PBX1, "INVITE", &uri, "<sip:alice@x>", ""));
    assert_eq!(to, PHONE);
    assert_eq!(header(&sent, "Max-Forwards"), ["69"]);
    assert!(sent.starts_with(&format!("INVITE {uri} SIP/2.0\r\n")), "{sent}");
    let route = format!("Route: {}\r\n", header(&sent, "Record-Route")[0]);
    assert_eq!(w.say(PHONE, &response(&sent, "486 Busy Here", "alice")).0, PBX1);
    // CANCEL and the ACK of the failure go the same way, with the same branch.
    for (method, callee) in [("CANCEL", "<sip:alice@x>"), ("ACK", "<sip:alice@x>;tag=alice")] {
        let (to, again) = w.say(PBX1, &from_pbx(PBX1, method, &uri, callee, ""));
        assert_eq!(to, PHONE);
        assert_eq!(header(&again, "Via")[0], header(&sent, "Via")[0]);
        assert_eq!(header(&again, "Record-Route"), [""; 0]);
    }
    // In the dialog, both ways.
    let ack = from_pbx(PBX1, "ACK", &uri, "<sip:alice@x>;tag=alice", &route);
    assert_eq!(w.say(PBX1, &ack).0, PHONE);
    assert_eq!(w.say(PHONE, &bye(&route)).0, PBX1);
    assert_eq!(w.event(Event::RelayedFromPbx), 3);
    assert_eq!(w.reason(Reason::DialogToPbx), 1);
    // A phone is asked through us, too.
    let options = from_pbx(PBX1, "OPTIONS", &uri, "<sip:alice@x>", "");
    let (to, sent) = w.say(PBX1, &options);
    assert_eq!(to, PHONE);
    assert_eq!(header(&sent, "Max-Forwards"), ["69"]);
}

#[test]
fn where_a_pbx_cannot_call() {
    let mut w = world();
    for (uri, status) in [
        ("sip:alice@[2001:db8::1]", "404 Not Found"),
        ("sip:alice@10.10.1.2", "404 Not Found"),
        ("sip:alice@phone.example", "404 Not Found"),
        ("sip:alice@[::]", "404 Not Found"),
        ("sip:alice@[ff02::1]", "404 Not Found"),
        ("tel:+15551234", "416 Unsupported URI Scheme"),
    ] {
        let text = from_pbx(PBX1, "INVITE", uri, "<sip:a@b>", "");
        assert_eq!(w.status(PBX1, &text), format!("SIP/2.0 {status}"), "{uri}");
    }
    // And over IPv4 none with IPv6.
    let text = from_pbx(PBX4, "INVITE", &format!("sip:alice@{PHONE}"), "<sip:a@b>", "");
    assert_eq!(w.status(PBX4, &text), "SIP/2.0 404 Not Found");
}

#[test]
fn one_pbx_calls_the_other() {
    let mut w = world();
    let invite = from_pbx(PBX1, "INVITE", &format!("sip:x@{PBX2}"), "<sip:x@y>", "");
    let (to, sent) = w.say(PBX1, &invite);
    assert_eq!(to, PBX2);
    let route = format!("Route: {}\r\n", header(&sent, "Record-Route")[0]);
    let back = bye(&route).replace(&format!("{PHONE};rport"), PBX2).replace("tag=alice", "tag=x");
    assert_eq!(w.say(PBX2, &back).0, PBX1);
    assert_eq!(w.event(Event::DialogBetweenPbxs), 1);
    let on = from_pbx(PBX1, "BYE", &format!("sip:x@{PBX2}"), "<sip:x@y>;tag=x", &route);
    assert_eq!(w.say(PBX1, &on).0, PBX2);
}

// ---- Rare forms, refusals, everything else -------------------------------------------------------

#[test]
fn rare_forms_are_routed_like_the_usual_one() {
    let usual = world().say(PHONE, &invite());
    let via = format!("Via: SIP/2.0/UDP {PHONE};rport;branch=z9hG4bKp1");
    for (old, new) in [
        ("To: <sip:bob", "To:\r\n <sip:bob"),
        (&via, "Via: SIP / 2.0 / UDP\r\n\t[2001:db8:1::2] : 5062 ; rport ; branch = z9hG4bKp1"),
        (
            &via,
            "Via: SIP/2.0/UDP [2001:db8:1::2]:5062;rport=1;received=2001:db8::66;branch=z9hG4bKp1",
        ),
        ("Max-Forwards: 70", "Max-Forwards: 255"),
        ("Max-Forwards: 70", "Max-Forwards: 70\r\nRoute: <sip:[2001:db8::66];lr>"),
        ("Content-Length: 0\r\n\r\n", "Content-Length: 0\r\n\r\nlonger than it says"),
    ] {
        let rare = invite().replace(old, new);
        assert_ne!(rare, invite(), "{new}");
        let mut w = world();
        let (to, sent) = w.say(PHONE, &rare);
        assert_eq!(to, usual.0, "{new}");
        assert_eq!(w.event(Event::Rewritten), 1, "{new}");
        for name in ["Via", "From", "To", "CSeq", "Call-ID", "Max-Forwards", "Record-Route"] {
            assert_eq!(header(&sent, name), header(&usual.1, name), "{new}");
        }
        assert_eq!(header(&sent, "Route"), [""; 0], "{new}");
    }
    let quoted = invite().replace(";tag=alice", ";mood=\"a;tag=b\";tag=alice");
    let sent = world().say(PHONE, &quoted).1;
    assert_eq!(header(&sent, "Record-Route"), header(&usual.1, "Record-Route"));
    assert!(header(&sent, "From")[0].ends_with(";mood=\"a;tag=b\";tag=alice"), "{sent}");
}

#[test]
fn more_routes_and_other_writings_of_ours() {
    let mut w = world();
    let (pbx, sent) = w.say(PHONE, &invite());
    let ours = header(&sent, "Record-Route")[0].to_owned();
    let cookie = ours.split("sl=").nth(1).unwrap().trim_end_matches('>').to_owned();
    let far = "<sip:far.example;lr>";
    for (routes, left) in [
        (format!("Route: {ours}\r\nRoute: {far}\r\n"), vec![far]),
        (format!("Route: {ours} , {far}\r\n"), vec![far]),
        (format!("Route: <SIP:[2001:DB8:0::1];sl={cookie};lr=on>,{far}\r\n"), vec![far]),
        (format!("Route: \"us\" <sip:[2001:db8::1]:5060;lr;sl={cookie}>\r\n"), vec![]),
    ] {
        let (to, sent) = w.say(PHONE, &bye(&routes));
        assert_eq!(to, pbx, "{routes}");
        assert_eq!(header(&sent, "Route"), left, "{routes}");
    }
    // A strict router is undone (16.4).
    let route = "Route: <sip:bob@[2001:db8:2::2]:5060>\r\n";
    let strict =
        bye(route).replace("sip:bob@[2001:db8:2::2] ", &format!("{} ", &ours[1..ours.len() - 1]));
    let (to, sent) = w.say(PHONE, &strict);
    assert_eq!(to, pbx);
    assert!(sent.starts_with("BYE sip:bob@[2001:db8:2::2]:5060 SIP/2.0\r\n"), "{sent}");
}

#[test]
fn a_route_may_stand_before_the_via() {
    let mut w = world();
    let (pbx, sent) = w.say(PHONE, &invite());
    let route = format!("Route: {}\r\n", header(&sent, "Record-Route")[0]);
    let text = bye("").replace("Via: ", &format!("Subject: x\r\n{route}Via: "));
    let (to, sent) = w.say(PHONE, &text);
    assert_eq!(to, pbx);
    let lines: Vec<_> = sent.lines().collect();
    assert_eq!(lines[2], "Subject: x");
    assert!(lines[3].ends_with(";rport=5062;received=2001:db8:1::2;branch=z9hG4bKp2"), "{sent}");
    assert_eq!(lines[4], "Max-Forwards: 69");
}

#[test]
fn vias_joined_by_commas() {
    let mut w = world();
    let (pbx, sent) = w.say(PHONE, &invite());
    let answer = response(&sent, "200 OK", "bob");
    let vias = header(&answer, "Via").join(", ");
    let lines: String = header(&answer, "Via").iter().map(|v| format!("Via: {v}\r\n")).collect();
    let (to, passed) = w.say(&pbx, &answer.replace(&lines, &format!("Via: {vias}\r\n")));
    assert_eq!(to, PHONE);
    assert_eq!(header(&passed, "Via"), [header(&sent, "Via")[1]]);
}

#[test]
fn responses_that_are_not_ours_end_here() {
    let mut w = world();
    let (pbx, sent) = w.say(PHONE, &invite());
    let good = response(&sent, "200 OK", "bob");
    let top = header(&good, "Via")[0].to_owned();
    let received = ";received=2001:db8:1::2";
    for (old, new) in [
        (top.as_str(), "SIP/2.0/UDP [2001:db8::1]:5060;branch=z9hG4bKslk0000000000000000"),
        (top.as_str(), "SIP/2.0/UDP [2001:db8::1]:5060;branch=z9hG4bKother"),
        (top.as_str(), "SIP/2.0/UDP [2001:db8::1]:5060;branch=z9hG4bKsld0000000000000000"),
        ("branch=z9hG4bKp1", "branch=z9hG4bKp2"),
        ("call-1", "call-2"),
        (received, ";received=2001:db8:1::2;maddr=2001:db8::66"),
        // Over IPv6 there is no way to IPv4.
        (received, ";received=192.0.2.66"),
        (received, ";received=pc.example"),
        ("rport=5062", "rport=0"),
        ("rport=5062", "rport=+5062"),
    ] {
        let bad = good.replace(old, new);
        assert_ne!(bad, good, "{new}");
        w.silence(&pbx, &bad);
    }
    let next = format!("Via: {}\r\n", header(&good, "Via")[1]);
    w.silence(&pbx, &good.replace(&next, ""));
    assert_eq!(w.reason(Reason::ResponseForwarded), 0);
    // A right branch is worth nothing between two strangers.
    let lured = good.replace(received, ";received=2001:db9::9");
    assert_eq!(w.hear(STRANGER, US6, lured.as_bytes()), []);
    assert_eq!(w.reason(Reason::WrongSide), 1);
    // Brackets are read, too (RFC 5118 4.5).
    let bracketed = good.replace(received, ";received=[2001:db8:1::2]");
    assert_eq!(w.say(&pbx, &bracketed).0, PHONE);
}

#[test]
fn what_is_refused_as_over_ipv4() {
    let mut w = world();
    let stranger = invite().replace(PHONE, STRANGER);
    assert_eq!(w.status(STRANGER, &stranger), "SIP/2.0 403 Not relaying");
    assert_eq!(w.reason(Reason::Untrusted), 1);
    w.silence("[2001:db8:bad::1]:5060", &invite());
    assert_eq!(w.reason(Reason::Denied), 1);
    let cancel = request("CANCEL", "sip:b@c", "<sip:b@c>", "");
    assert_eq!(w.status(PHONE, &cancel), "SIP/2.0 481 Call/Transaction Does Not Exist");
    assert_eq!(w.status(PHONE, &bye("")), "SIP/2.0 404 Not here");
    for (old, new, status) in [
        ("Max-Forwards: 70", "Max-Forwards: 0", "483 Too Many Hops"),
        ("Contact: ", "Proxy-Require: foo\r\nContact: ", "420 Bad Extension"),
        ("CSeq: 1 INVITE", "CSeq: 1 BYE", "400 CSeq Method Differs"),
        ("INVITE", "REGISTER", "405 Method Not Allowed"),
        ("bob@[2001:db8::1] SIP/2.0", "bob@[2001:db8::1] SIP/3.0", "505 Version Not Supported"),
    ] {
        let text = invite().replace(old, new);
        assert!(w.status(PHONE, &text).starts_with(&format!("SIP/2.0 {status}")), "{new}");
    }
}

#[test]
fn keepalives() {
    let mut w = world();
    let options = |uri: &str| request("OPTIONS", uri, "<sip:b@c>", "");
    let (to, answer) = w.say(PHONE, &options("sip:[2001:db8::1]"));
    assert_eq!(to, PHONE);
    assert!(answer.starts_with("SIP/2.0 200 OK\r\n"), "{answer}");
    assert_eq!(header(&answer, "Allow").len(), 1);
    let other_form = w.status(PHONE, &options("sip:[2001:db8:0::1]:5060;lr"));
    assert_eq!(other_form, "SIP/2.0 200 OK", "by the long way");
    assert_eq!(
        w.status(PBX1, &options("sip:[2001:db8::1]").replace(PHONE, PBX1)),
        "SIP/2.0 200 OK"
    );
    assert_eq!(w.reason(Reason::OptionsAnswered), 2);
    assert_eq!(w.status(PHONE, &options("sip:10.10.0.1")), "SIP/2.0 200 OK", "another of ours");
    for (uri, status) in [
        ("sip:bob@[2001:db8::1]", "404 Not Found"),
        ("sip:[2001:db8::66]", "403 Not relaying"),
        // What stands in for addresses is nobody's.
        ("sip:0.0.0.0:0", "403"),
        ("sip:0.0.0.0", "403"),
    ] {
        let answer = w.status(PHONE, &options(uri));
        assert!(answer.starts_with(&format!("SIP/2.0 {status}")), "{uri}: {answer}");
    }
    let out = w.hear(PHONE, US6, b"\r\n\r\n");
    assert_eq!((out[0].to.to_string().as_str(), &out[0].bytes[..]), (PHONE, &b"\r\n"[..]));
    w.silence(PHONE, "\0");
    w.silence(PHONE, "hello\r\n\r\n");
}

#[test]
fn a_link_local_phone_is_answered_in_our_zone() {
    let phone = "[fe80::2%3]:5062";
    let mut w = world();
    let link = 2;
    let text = invite().replace(PHONE, "[fe80::2]:5062");
    let sent = w.hear(phone, link, text.as_bytes()).remove(0);
    let text = String::from_utf8(sent.bytes).unwrap();
    assert!(text.contains("Via: SIP/2.0/UDP [fe80::1]:5060;branch="), "{text}");
    assert!(text.contains("Record-Route: <sip:[fe80::1]:5060;lr;sl="), "{text}");
    assert!(text.contains(";received=fe80::2;"), "{text}");
    let answer = response(&text, "200 OK", "bob");
    let back = w.hear(&sent.to.to_string(), link, answer.as_bytes()).remove(0);
    assert_eq!(back.to.to_string(), phone);
}

// ---- Anything at all ---------------------------------------------------------------------------

/// Messages that reach every part.
fn seeds() -> Vec<(&'static str, String)> {
    let mut w = world();
    let (pbx, sent) = w.say(PHONE, &invite());
    let pbx = other(other(&pbx));
    let route = format!("Route: {}\r\n", header(&sent, "Record-Route")[0]);
    let joined = route.replace("\r\n", ",\r\n <sip:far.example;lr>\r\n");
    let uri = format!("sip:alice@{PHONE}");
    vec![
        (PHONE, invite()),
        (STRANGER, invite()),
        (pbx, response(&sent, "200 OK", "bob")),
        (PHONE, bye(&route)),
        (pbx, from_pbx(pbx, "BYE", &uri, "<sip:a@b>;tag=alice", &route)),
        (PHONE, bye(&joined)),
        (PBX1, from_pbx(PBX1, "INVITE", &uri, "<sip:alice@x>", "")),
        (PHONE, request("OPTIONS", "sip:[2001:db8::1]", "<sip:b@c>", "")),
    ]
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        cases: 512,
        failure_persistence: None,
        ..Default::default()
    })]

    /// Whatever comes, there is at most one datagram for it, not much longer, and none to anybody but its
    /// sender, a PBX or where a PBX wants it; none leaves the family; and no panic.
    #[test]
    fn nothing_is_amplified(
        seed in 0..8usize,
        edits in damages(),
    ) {
        let (from, text) = seeds().swap_remove(seed);
        let bytes = damaged(text, &edits);
        let mut w = world();
        let out = w.hear(from, US6, &bytes);
        proptest::prop_assert!(out.len() <= 1);
        if let Some(transmit) = out.first() {
            proptest::prop_assert!(transmit.bytes.len() <= bytes.len() + 400);
            proptest::prop_assert!(transmit.to.is_ipv6());
            let sender: SocketAddr = from.parse().unwrap();
            let known = [PHONE, PBX1, PBX2].contains(&transmit.to.to_string().as_str());
            let pbx = [PBX1, PBX2].contains(&from);
            proptest::prop_assert!(known || pbx || transmit.to.ip() == sender.ip(), "{}", transmit.to);
        }
    }
}
