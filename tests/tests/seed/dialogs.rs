//! In a dialog, CANCEL, and repetitions.

use std::time::Duration;

use sipline_tests::lab::{Mode, PROXY, Place};

use crate::text::{ack_of, cancel_of, header, headers, reply, status, what};
use crate::world::{Case, EXTENSION, World, from_pbx, run};

const CASES: &[Case] = &[
    ("loose routing: the caller's ACK, re-INVITE and BYE", loose_routing),
    ("loose routing: the PBX's re-INVITE and BYE", the_pbx_hangs_up),
    ("loose routing: a neighbour that routes strictly", strict_routing),
    ("404 Not here for a request in a dialog without our route", not_here),
    ("an ACK that matches nothing ends in silence", a_lost_ack),
    ("CANCEL gets 200, and its INVITE 487", cancelled),
    ("CANCEL before the PBX has said anything", cancelled_early),
    ("CANCEL of nothing gets 481", cancels_nothing),
    ("repetitions of an INVITE are absorbed", repeated_invite),
    ("repetitions of a REGISTER get the same answer", repeated_register),
    ("in-dialog SUBSCRIBE to us: 404", subscribes_inside),
];

/// A BYE that the kernel carries is heard by nobody who keeps records: with XDP a limit closes them.
const WITHOUT_XDP: &[Case] =
    &[("a call's INVITE and BYE are accounted, the BYE even if it fails", accounted)];

#[test]
fn dialogs_without_xdp() {
    run(Mode::Off, &[CASES, WITHOUT_XDP].concat());
}

/// The kernel carries what is inside of dialogs: the same.
#[test]
fn dialogs_with_xdp() {
    run(Mode::Native, CASES);
}

/// A call that is up: the PBX, the INVITE as the PBX has it, and the 200 as the phone has it.
fn talk(world: &mut World, phone: &mut crate::world::Phone) -> (Place, String, String) {
    let (place, _, invite) = world.call(phone, "talk");
    world.answer(place, &invite, "180 Ringing");
    phone.peer.expect("180");
    world.answer(place, &invite, "200 OK");
    let ok = phone.peer.expect("200");
    phone.peer.send(phone.inside("ACK", &ok));
    world.pbx(place).expect("ACK");
    (place, invite, ok)
}

fn loose_routing(world: &mut World) {
    let mut phone = world.phone();
    let (place, invite, ok) = talk(world, &mut phone);
    assert_eq!(headers(&invite, "Record-Route").len(), 1);
    let again = phone.inside("INVITE", &ok);
    phone.peer.send(&again);
    let got = world.pbx(place).expect("INVITE");
    assert!(headers(&got, "Route").is_empty(), "our Route is consumed: {got}");
    assert!(got.starts_with("INVITE sip:200@"), "{got}");
    world.answer(place, &got, "200 OK");
    // A 100 of ours may come before.
    let mut answer = phone.peer.next_new(Duration::from_secs(5)).unwrap();
    if what(&answer) == "100" {
        answer = phone.peer.expect("200");
    }
    assert_eq!(what(&answer), "200");
    phone.peer.send(phone.inside("ACK", &ok));
    world.pbx(place).expect("ACK");
    let bye = phone.inside("BYE", &ok);
    phone.peer.send(&bye);
    let got = world.pbx(place).expect("BYE");
    assert!(headers(&got, "Route").is_empty());
    world.answer(place, &got, "200 OK");
    phone.peer.expect("200");
}

/// A request of the PBX inside the dialog that it has with a phone.
fn of_pbx(method: &str, place: Place, invite: &str, number: u32) -> String {
    let contact = header(invite, "Contact");
    let uri = contact.trim_start_matches('<').split('>').next().unwrap();
    let at = format!("{}:5060", place.address());
    format!(
        "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {at};rport;branch=z9hG4bKback{number}\r\n\
         Max-Forwards: 70\r\nRoute: {}\r\nFrom: {};tag=answer\r\nTo: {}\r\nCall-ID: {}\r\n\
         CSeq: {number} {method}\r\nContact: <sip:200@{at}>\r\nContent-Length: 0\r\n\r\n",
        header(invite, "Record-Route"),
        header(invite, "To"),
        header(invite, "From"),
        header(invite, "Call-ID"),
    )
}

fn the_pbx_hangs_up(world: &mut World) {
    let mut phone = world.phone();
    let (place, invite, _) = talk(world, &mut phone);
    world.pbx(place).send(of_pbx("INVITE", place, &invite, 1));
    let got = phone.peer.expect("INVITE");
    assert!(headers(&got, "Route").is_empty());
    assert!(got.starts_with(&format!("INVITE sip:{}@{}", phone.user, phone.peer.address)));
    let contact = format!("Contact: <sip:{}@{}>\r\n", phone.user, phone.peer.address);
    phone.peer.send(reply(&got, "200 OK", &contact));
    world.pbx(place).expect("200");
    world.pbx(place).send(of_pbx("ACK", place, &invite, 1).replace("back1", "back1a"));
    phone.peer.expect("ACK");
    world.pbx(place).send(of_pbx("BYE", place, &invite, 2));
    let got = phone.peer.expect("BYE");
    phone.peer.send(reply(&got, "200 OK", ""));
    world.pbx(place).expect("200");
}

/// RFC 3261 16.4: who routes strictly puts our URI into the request line, and where it goes last.
fn strict_routing(world: &mut World) {
    let mut phone = world.phone();
    let (place, _, ok) = talk(world, &mut phone);
    let bye = phone.inside("BYE", &ok);
    let route = header(&bye, "Route").trim_matches(['<', '>']);
    let remote = bye.split(' ').nth(1).unwrap();
    let strict = bye
        .replacen(remote, route, 1)
        .replace(&format!("Route: <{route}>"), &format!("Route: <{remote}>"));
    phone.peer.send(&strict);
    let got = world.pbx(place).expect("BYE");
    assert!(got.starts_with(&format!("BYE {remote} ")), "{got}");
    assert!(headers(&got, "Route").is_empty(), "{got}");
    world.answer(place, &got, "200 OK");
    phone.peer.expect("200");
}

fn not_here(world: &mut World) {
    let mut phone = world.phone();
    let text = phone.request("BYE", EXTENSION, "nowhere", "");
    let text = text.replace("To: <sip:200@example.com>", "To: <sip:200@example.com>;tag=x");
    phone.peer.send(&text);
    assert_eq!(status(&phone.peer.expect("404")), "404 Not here");
    let invite = text.replace("BYE", "INVITE").replace("branch=z9hG4bK", "branch=z9hG4bKx");
    phone.peer.send(&invite);
    assert_eq!(status(&phone.hears(&invite, "404")), "404 Not here");
}

fn a_lost_ack(world: &mut World) {
    let mut phone = world.phone();
    let text = phone.request("ACK", EXTENSION, "nothing", "");
    phone.peer.send(&text);
    phone.peer.send(text.replace("To: <sip:200@example.com>", "To: <sip:200@example.com>;tag=x"));
    phone.peer.hears_nothing();
    world.pbx1().hears_nothing();
    world.pbx2().hears_nothing();
}

fn cancelled(world: &mut World) {
    let mut phone = world.phone();
    let (place, sent, invite) = world.call(&mut phone, "cancelled");
    world.answer(place, &invite, "180 Ringing");
    phone.peer.expect("180");
    phone.cancels(&sent);
    let cancel = world.pbx(place).expect("CANCEL");
    // RFC 3261 9.1: of the same transaction.
    assert_eq!(headers(&cancel, "Via")[0], headers(&invite, "Via")[0]);
    world.pbx(place).send(reply(&cancel, "200 OK", ""));
    world.answer(place, &invite, "487 Request Terminated");
    assert_eq!(status(&phone.hears(&sent, "487")), "487 Request Terminated");
    world.pbx(place).expect("ACK");
}

/// RFC 3261 9.1: nothing may be cancelled before a provisional response has come.
fn cancelled_early(world: &mut World) {
    let mut phone = world.phone();
    let (place, sent, invite) = world.call(&mut phone, "early");
    phone.cancels(&sent);
    world.pbx(place).hears_nothing();
    world.pbx(place).send(reply(&invite, "100 Trying", ""));
    let cancel = world.pbx(place).expect("CANCEL");
    world.pbx(place).send(reply(&cancel, "200 OK", ""));
    world.answer(place, &invite, "487 Request Terminated");
    phone.hears(&sent, "487");
}

fn cancels_nothing(world: &mut World) {
    let mut phone = world.phone();
    phone.peer.send(cancel_of(&phone.request("INVITE", EXTENSION, "nothing", "")));
    phone.peer.expect("481");
    world.pbx1().hears_nothing();
}

fn repeated_invite(world: &mut World) {
    let mut phone = world.phone();
    let (place, sent, invite) = world.call(&mut phone, "again");
    phone.peer.send(&sent);
    let trying = phone.peer.next(Duration::from_secs(5)).unwrap();
    assert_eq!(what(&trying), "100");
    world.answer(place, &invite, "486 Busy Here");
    let busy = phone.peer.expect("486");
    phone.peer.send(&sent);
    while what(&phone.peer.next(Duration::from_secs(5)).unwrap()) != "486" {}
    phone.peer.send(ack_of(&sent, &busy));
    world.pbx(place).expect("ACK");
    // Nothing of all this has gone to the PBXs twice but, at most, the INVITE that had no answer in time.
    world.pbx1().hears_nothing();
    world.pbx2().hears_nothing();
    while let Some(late) = phone.peer.next(Duration::from_millis(20)) {
        assert_eq!(what(&late), "486");
    }
    assert_eq!(phone.peer.next(Duration::from_millis(1500)), None, "the ACK ends the repetitions");
}

fn repeated_register(world: &mut World) {
    let mut phone = world.phone();
    let text = phone.authorized("REGISTER", "sip:example.com", "again", "");
    phone.peer.send(&text);
    let first = phone.peer.expect("200");
    phone.peer.send(&text);
    assert_eq!(phone.peer.next(Duration::from_secs(5)).as_deref(), Some(&*first));
}

fn accounted(world: &mut World) {
    let mut phone = world.phone();
    let (place, _, ok) = talk(world, &mut phone);
    let bye = phone.inside("BYE", &ok);
    phone.peer.send(&bye);
    let got = world.pbx(place).expect("BYE");
    world.answer(place, &got, "481 Call/Transaction Does Not Exist");
    phone.peer.expect("481");
    let of_user =
        format!("SELECT disposition FROM cdr WHERE src = '{}' AND dst = '200'", phone.user);
    world.wait_for_row(&of_user, "ANSWERED");
    let failed = from_pbx(place, "INVITE", &format!("sip:nobody@{PROXY}"), "failed");
    world.pbx(place).send(&failed);
    let answer = world.pbx(place).expect("404");
    world.pbx(place).send(ack_of(&failed, &answer));
    world.wait_for_row("SELECT disposition FROM cdr WHERE dst = 'nobody'", "FAILED");
}

fn subscribes_inside(world: &mut World) {
    let phone = world.phone();
    let text = phone.request("SUBSCRIBE", "sip:10.10.0.1:5060", "inside", "Event: presence\r\n");
    let mut peer = phone.peer;
    peer.send(text.replace("To: <sip:10.10.0.1:5060>", "To: <sip:10.10.0.1:5060>;tag=x"));
    assert_eq!(status(&peer.expect("404")).to_ascii_lowercase(), "404 not here");
}
