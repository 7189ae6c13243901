//! REGISTER: saved, answered with all bindings, and forked to every PBX.

use std::time::Duration;

use sipline_tests::lab::{Mode, PROXY};

use crate::text::{header, headers, what};
use crate::world::{Case, Phone, World, at_our_address, run};

const CASES: &[Case] = &[
    ("200 with all bindings, q and expires of each", bindings),
    ("the default is an hour", default_expires),
    ("a fetch without Contact", fetch),
    ("423 with the minimum", too_brief),
    ("forked to both PBXs, with our address and the same expiry", forked),
    ("a REGISTER without Expires is forked with one", forked_expires),
    ("one binding of several goes: the user stays with the PBXs", one_of_several),
    ("* takes all bindings, and the PBXs hear of it", star),
    ("* with other than Expires: 0 is refused", bad_star),
    ("the last one goes: forked as a de-registration", gone),
    ("a PBX that is away delays no phone, and is told when it is back", pbx_is_away),
    ("what is not accepted is not forked", not_forked),
    ("saved: there after a restart, and in MariaDB", saved),
];

#[test]
fn registrar() {
    run(Mode::Off, CASES);
}

/// The seconds that each binding of a 200 is good for, by the part of its URI that is given.
fn expires_of(answer: &str, part: &str) -> Option<u32> {
    let all: Vec<_> = headers(answer, "Contact").iter().flat_map(|line| line.split(',')).collect();
    let found = all.iter().find(|contact| contact.contains(part))?;
    let value = found.split("expires=").nth(1)?;
    value.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
}

fn count(answer: &str) -> usize {
    headers(answer, "Contact").iter().flat_map(|line| line.split(',')).count()
}

fn two_contacts(phone: &mut Phone) -> String {
    let contacts = "Contact: <sip:a@10.10.1.2:7001>;q=0.7;expires=600, <sip:b@10.10.1.2:7002>;q=0.3\r\n\
                    Expires: 300\r\n";
    phone.registers(contacts)
}

fn bindings(world: &mut World) {
    let mut phone = world.phone();
    let answer = two_contacts(&mut phone);
    assert_eq!(count(&answer), 2, "{answer}");
    // Times may be cut by a tenth, so that phones do not come back in step.
    assert!((540..=600).contains(&expires_of(&answer, ":7001").unwrap()), "{answer}");
    assert!((270..=300).contains(&expires_of(&answer, ":7002").unwrap()), "{answer}");
    assert!(answer.contains("q=0.7") && answer.contains("q=0.3"), "{answer}");
    let answer = phone.registers("");
    assert_eq!(count(&answer), 3, "{answer}");
}

fn default_expires(world: &mut World) {
    let mut phone = world.phone();
    let answer = phone.registers("");
    assert!((3240..=3600).contains(&expires_of(&answer, "sip:").unwrap()), "{answer}");
}

fn fetch(world: &mut World) {
    let mut phone = world.phone();
    two_contacts(&mut phone);
    let text = phone.authorized("REGISTER", "sip:example.com", "fetch", "");
    phone.peer.send(crate::text::without(&text, "Contact"));
    assert_eq!(count(&phone.peer.expect("200")), 2);
}

fn too_brief(world: &mut World) {
    let mut phone = world.phone();
    let answer = phone.asks("REGISTER", "sip:example.com", "brief", "Expires: 59\r\n", "423");
    assert_eq!(header(&answer, "Min-Expires"), "60");
    phone.asks("REGISTER", "sip:example.com", "brief", "Expires: 60\r\n", "200");
}

fn forked(world: &mut World) {
    let mut phone = world.phone();
    let answer = phone.registers("Expires: 600\r\n");
    let granted = expires_of(&answer, "sip:").unwrap();
    for place in ["10.10.2.2", "10.10.3.2"] {
        let user = phone.user.clone();
        let pbx = if place == "10.10.2.2" { world.pbx1() } else { world.pbx2() };
        let text = pbx.registered(&user, |_| true);
        let ours = format!("<{}>", at_our_address(&user));
        assert!(header(&text, "Contact").starts_with(&ours), "{text}");
        assert!(header(&text, "From").starts_with(&format!("<sip:{user}@{place}")), "{text}");
        assert!(header(&text, "To").starts_with(&format!("<sip:{user}@{place}")), "{text}");
        let told: u32 = header(&text, "Expires").parse().unwrap();
        assert!(told.abs_diff(granted) <= 2, "{told} and not {granted}");
        assert!(header(&text, "Via").contains(PROXY));
    }
}

fn forked_expires(world: &mut World) {
    let mut phone = world.phone();
    phone.registers("");
    let user = phone.user.clone();
    let text = world.pbx1().registered(&user, |_| true);
    assert!(header(&text, "Expires").parse::<u32>().unwrap() > 3000, "{text}");
}

fn one_of_several(world: &mut World) {
    let mut phone = world.phone();
    two_contacts(&mut phone);
    let user = phone.user.clone();
    world.pbx1().registered(&user, |_| true);
    let answer = phone.registers("Contact: <sip:a@10.10.1.2:7001>;expires=0\r\n");
    assert_eq!(count(&answer), 1, "{answer}");
    std::thread::sleep(Duration::from_millis(500));
    for (_, text) in world.pbx1().aside("REGISTER") {
        assert_ne!(header(&text, "Expires"), "0", "{text}");
    }
}

fn star(world: &mut World) {
    let mut phone = world.phone();
    two_contacts(&mut phone);
    let user = phone.user.clone();
    world.pbx2().registered(&user, |_| true);
    let answer = phone.registers("Contact: *\r\nExpires: 0\r\n");
    assert!(headers(&answer, "Contact").is_empty(), "{answer}");
    world.pbx1().registered(&user, |text| header(text, "Expires") == "0");
    world.pbx2().registered(&user, |text| header(text, "Expires") == "0");
}

fn bad_star(world: &mut World) {
    let mut phone = world.phone();
    two_contacts(&mut phone);
    phone.asks("REGISTER", "sip:example.com", "star", "Contact: *\r\nExpires: 60\r\n", "400");
}

fn gone(world: &mut World) {
    let mut phone = world.phone();
    phone.registers("");
    let user = phone.user.clone();
    world.pbx1().registered(&user, |_| true);
    world.pbx2().registered(&user, |_| true);
    phone.registers("Expires: 0\r\n");
    world.pbx1().registered(&user, |text| header(text, "Expires") == "0");
    world.pbx2().registered(&user, |text| header(text, "Expires") == "0");
}

fn pbx_is_away(world: &mut World) {
    world.pbx2().set_deaf(true);
    let mut phone = world.phone();
    let start = std::time::Instant::now();
    phone.registers("");
    assert!(start.elapsed() < Duration::from_secs(1));
    let user = phone.user.clone();
    world.pbx1().registered(&user, |_| true);
    std::thread::sleep(Duration::from_secs(3));
    world.pbx2().forget();
    world.pbx2().set_deaf(false);
    let start = std::time::Instant::now();
    while !world.pbx2().aside("REGISTER").iter().any(|(_, text)| text.contains(&user)) {
        assert!(start.elapsed() < Duration::from_secs(20), "it is not told of {user}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn not_forked(world: &mut World) {
    let mut phone = world.phone();
    phone.asks("REGISTER", "sip:example.com", "brief", "Expires: 5\r\n", "423");
    let bare = phone.request("REGISTER", "sip:example.com", "bare", "");
    phone.peer.send(bare);
    phone.peer.expect("401");
    std::thread::sleep(Duration::from_millis(300));
    let heard = world.pbx1().aside("REGISTER");
    let told = heard.iter().filter(|(_, text)| text.contains(&format!("sip:{}@", phone.user)));
    assert_eq!(told.count(), 0);
}

fn saved(world: &mut World) {
    let mut phone = world.phone();
    phone.registers("Expires: 900\r\n");
    let control = world.daemon.control();
    let start = std::time::Instant::now();
    while control.ask("stats").unwrap()["registrar"]["unwritten"] != 0 {
        assert!(start.elapsed() < Duration::from_secs(10), "it is not written");
        std::thread::sleep(Duration::from_millis(20));
    }
    world.restart(|_| {});
    let user = phone.user.clone();
    let shown =
        control.command(&["registrations", "show", &format!("{user}@example.com")]).unwrap();
    assert_eq!(shown["registrations"].as_array().unwrap().len(), 1, "{shown}");
    let call = crate::world::from_pbx(
        sipline_tests::lab::Place::Pbx1,
        "MESSAGE",
        &at_our_address(&user),
        "saved",
    );
    world.pbx1().send(call);
    assert_eq!(what(&phone.peer.expect("MESSAGE")), "MESSAGE");
}
