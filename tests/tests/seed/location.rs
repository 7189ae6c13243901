//! Location: what is for one of our users goes to where he is.

use sipline_tests::lab::{Mode, Place};

use crate::text::{ack_of, cancel_of, header, headers, reply, status};
use crate::world::{Case, World, at_our_address, from_pbx, run};

const CASES: &[Case] = &[
    ("484 without a user", no_user),
    ("404 Not Found for a user who is not registered", unknown),
    ("405 for a method that no contact takes", not_allowed),
    ("an INVITE of a PBX goes to the contact, and the PBX hangs up", called),
    ("a PBX cancels: a missed call", missed),
    ("all contacts at a time, those of the highest q first", all_contacts),
    ("another method goes to the contact, also an unknown one", other_methods),
];

#[test]
fn location_without_xdp() {
    run(Mode::Off, CASES);
}

#[test]
fn location_with_xdp() {
    run(Mode::Native, CASES);
}

fn no_user(world: &mut World) {
    let mut phone = world.phone();
    let answer = phone.asks("INVITE", "sip:example.com", "nobody", "", "484");
    assert_eq!(status(&answer), "484 Address Incomplete");
    let text = from_pbx(Place::Pbx1, "INVITE", "sip:10.10.0.1", "nobody");
    world.pbx1().send(&text);
    let answer = world.pbx1().expect("484");
    world.pbx1().send(ack_of(&text, &answer));
}

fn unknown(world: &mut World) {
    let mut phone = world.phone();
    let text = from_pbx(Place::Pbx1, "INVITE", &at_our_address(&phone.user), "unknown");
    world.pbx1().send(&text);
    let answer = world.pbx1().expect("404");
    assert_eq!(status(&answer), "404 Not Found");
    world.pbx1().send(ack_of(&text, &answer));
    let answer = phone.asks("MESSAGE", "sip:nobody@example.com", "unknown", "", "404");
    assert_eq!(status(&answer), "404 Not Found");
}

fn not_allowed(world: &mut World) {
    let mut phone = world.phone();
    let mut callee = world.phone();
    callee.registers("Allow: INVITE, ACK, CANCEL, BYE, OPTIONS\r\n");
    let uri = format!("sip:{}@example.com", callee.user);
    let answer = phone.asks("MESSAGE", &uri, "m", "", "405");
    assert_eq!(status(&answer), "405 Method Not Allowed");
    assert_eq!(header(&answer, "Allow"), "INVITE, CANCEL, OPTIONS");
    callee.peer.hears_nothing();
}

fn called(world: &mut World) {
    let mut phone = world.phone();
    phone.registers("");
    let text = from_pbx(Place::Pbx1, "INVITE", &at_our_address(&phone.user), "called");
    world.pbx1().send(&text);
    world.pbx1().expect("100");
    let invite = phone.peer.expect("INVITE");
    let contact = format!("sip:{}@{}", phone.user, phone.peer.address);
    assert!(invite.starts_with(&format!("INVITE {contact} SIP/2.0\r\n")), "{invite}");
    let line = format!("Contact: <{contact}>\r\n");
    phone.peer.send(reply(&invite, "180 Ringing", &line));
    world.pbx1().expect("180");
    phone.peer.send(reply(&invite, "200 OK", &line));
    let ok = world.pbx1().expect("200");
    let inside = |method: &str, number: u32| {
        text.replace(
            &format!("INVITE {}", at_our_address(&phone.user)),
            &format!("{method} {contact}"),
        )
        .replace("1 INVITE", &format!("{number} {method}"))
        .replace("branch=z9hG4bK", &format!("branch=z9hG4bK{method}"))
        .replace(
            &format!("To: {}", header(&text, "To")),
            &format!("To: {}\r\nRoute: {}", header(&ok, "To"), header(&ok, "Record-Route")),
        )
    };
    world.pbx1().send(inside("ACK", 1));
    phone.peer.expect("ACK");
    world.pbx1().send(inside("BYE", 2));
    let bye = phone.peer.expect("BYE");
    assert!(headers(&bye, "Route").is_empty());
    phone.peer.send(reply(&bye, "200 OK", ""));
    world.pbx1().expect("200");
}

fn missed(world: &mut World) {
    let mut phone = world.phone();
    phone.registers("");
    let text = from_pbx(Place::Pbx2, "INVITE", &at_our_address(&phone.user), "missed");
    world.pbx2().send(&text);
    world.pbx2().expect("100");
    let invite = phone.peer.expect("INVITE");
    phone.peer.send(reply(&invite, "180 Ringing", ""));
    world.pbx2().expect("180");
    world.pbx2().send(cancel_of(&text));
    world.pbx2().expect("200");
    let cancel = phone.peer.expect("CANCEL");
    phone.peer.send(reply(&cancel, "200 OK", ""));
    phone.peer.send(reply(&invite, "487 Request Terminated", ""));
    phone.peer.expect("ACK");
    let answer = world.pbx2().expect("487");
    world.pbx2().send(ack_of(&text, &answer));
    let record = format!("SELECT disposition FROM cdr WHERE dst = '{}'", phone.user);
    world.wait_for_row(&record, "NO ANSWER");
}

fn all_contacts(world: &mut World) {
    let mut phone = world.phone();
    let (mut a, mut b, mut c) = (world.phone(), world.phone(), world.phone());
    let at = |phone: &crate::world::Phone| format!("<sip:x@{}>", phone.peer.address);
    let contacts = format!("Contact: {};q=0.5, {};q=0.5, {};q=0.1\r\n", at(&a), at(&b), at(&c));
    phone.registers(&contacts);
    let text = from_pbx(Place::Pbx1, "INVITE", &at_our_address(&phone.user), "all");
    world.pbx1().send(&text);
    world.pbx1().expect("100");
    let (first, second) = (a.peer.expect("INVITE"), b.peer.expect("INVITE"));
    c.peer.hears_nothing();
    a.peer.send(reply(&first, "486 Busy Here", ""));
    // Of two that are as good the first counts, and two workers may read them in another order.
    a.peer.expect("ACK");
    b.peer.send(reply(&second, "480 Temporarily Unavailable", ""));
    b.peer.expect("ACK");
    let third = c.peer.expect("INVITE");
    c.peer.send(reply(&third, "486 Busy Here", ""));
    c.peer.expect("ACK");
    let answer = world.pbx1().expect("486");
    world.pbx1().send(ack_of(&text, &answer));
}

fn other_methods(world: &mut World) {
    let mut phone = world.phone();
    let mut callee = world.phone();
    callee.registers("");
    let uri = format!("sip:{}@example.com", callee.user);
    for method in ["MESSAGE", "FROBNICATE"] {
        let text = phone.authorized(method, &uri, method, "");
        phone.peer.send(text);
        let got = callee.peer.expect(method);
        callee.peer.send(reply(&got, "200 OK", ""));
        phone.peer.expect("200");
    }
}
