//! Several workers: what one of them receives is another's more often than not, and nobody notices. All cases of the
//! table run so where there are several CPUs; these look for what could go wrong between workers.

use std::time::{Duration, Instant};

use sipline_tests::lab::{Mode, Place};

use crate::peer::Peer;
use crate::text::{ack_of, header, reply, what};
use crate::world::{Case, EXTENSION, Phone, World, at_our_address, from_pbx, run_with};

const CASES: &[Case] = &[
    ("every user registers, refreshes, is called and cancelled", everybody),
    ("a BYE of the other side, and one from another port, end the record", byes),
    ("limits of a PBX hold for all workers together", limits),
    ("registrations survive a restart with other numbers of workers", restarts),
    ("orders and numbers are those of all workers", orders),
    ("a reload reaches all workers", reloads),
];

#[test]
fn workers_without_xdp() {
    run_with(Mode::Off, CASES, |settings| settings.workers = Some(3));
}

#[test]
fn workers_with_xdp() {
    run_with(Mode::Native, CASES, |settings| settings.workers = Some(3));
}

fn phones(world: &mut World, count: usize) -> Vec<Phone> {
    (0..count).map(|_| world.phone()).collect()
}

/// A call of a PBX reaches the phone, which says that it is busy.
#[track_caller]
fn is_called(world: &mut World, phone: &mut Phone, call: &str) {
    let call = format!("{call}-{}", phone.user);
    let text = from_pbx(Place::Pbx1, "INVITE", &at_our_address(&phone.user), &call);
    world.pbx1().send(&text);
    world.pbx1().expect("100");
    let invite = phone.peer.expect("INVITE");
    phone.peer.send(reply(&invite, "486 Busy Here", ""));
    let busy = world.pbx1().expect("486");
    world.pbx1().send(ack_of(&text, &busy));
    phone.peer.expect("ACK");
}

fn everybody(world: &mut World) {
    let mut phones = phones(world, 9);
    for phone in &mut phones {
        phone.registers("");
        phone.registers("Expires: 1800\r\n");
        world.pbx2().registered(&phone.user, |_| true);
    }
    for phone in &mut phones {
        is_called(world, phone, "everybody");
        let (place, sent, received) = world.call(phone, "cancelled");
        world.answer(place, &received, "180 Ringing");
        phone.peer.expect("180");
        phone.cancels(&sent);
        let cancel = world.pbx(place).expect("CANCEL");
        world.pbx(place).send(reply(&cancel, "200 OK", ""));
        world.pbx(place).send(reply(&received, "487 Request Terminated", ""));
        world.pbx(place).expect("ACK");
        phone.hears(&sent, "487");
    }
    let stats = world.daemon.control().ask("stats").unwrap();
    assert!(stats["daemon"]["passed_on"].as_u64().unwrap() > 0, "{stats}");
    assert_eq!(stats["daemon"]["passed_on_dropped"], 0, "{stats}");
    assert_eq!(stats["daemon"]["dropped_response"], 0, "{stats}");
}

fn byes(world: &mut World) {
    let lab = &world.lab;
    let elsewhere: Vec<_> = (0..6).map(|n| Peer::phone(lab, 7100 + n)).collect();
    for (number, mut other) in elsewhere.into_iter().enumerate() {
        let mut phone = world.phone();
        let (place, _, invite) = world.call(&mut phone, "bye");
        world.answer(place, &invite, "200 OK");
        let ok = phone.peer.expect("200");
        phone.peer.send(phone.inside("ACK", &ok));
        let ack = world.pbx(place).expect("ACK");
        if number % 2 == 0 {
            other.send(phone.inside("BYE", &ok));
            let bye = world.pbx(place).expect("BYE");
            world.answer(place, &bye, "200 OK");
            // To where the Via says, with rport: the port that it came from.
            other.expect("200");
        } else {
            let contact = format!("sip:{}@{}", phone.user, phone.peer.address);
            let bye = bye_of_callee(&invite, &ack, &contact);
            world.pbx(place).send(&bye);
            let bye = phone.peer.expect("BYE");
            phone.peer.send(reply(&bye, "200 OK", ""));
            world.pbx(place).expect("200");
        }
        let record = format!(
            "SELECT CONCAT(disposition, ' ', sip_code) FROM cdr WHERE src = '{}'",
            phone.user
        );
        world.wait_for_row(&record, "ANSWERED 200");
    }
    assert_eq!(world.daemon.control().command(&["calls"]).unwrap()["total"], 0);
}

/// The other way round: what was To is From.
fn bye_of_callee(invite: &str, ack: &str, contact: &str) -> String {
    let route = header(invite, "Record-Route");
    format!(
        "BYE {contact} SIP/2.0\r\nVia: SIP/2.0/UDP 10.10.9.9:5060;rport;branch=z9hG4bKbye{}\r\n\
         Max-Forwards: 70\r\nRoute: {route}\r\nFrom: {}\r\nTo: {}\r\nCall-ID: {}\r\n\
         CSeq: 1 BYE\r\nContent-Length: 0\r\n\r\n",
        header(invite, "Call-ID").replace(['@', '-'], ""),
        header(ack, "To"),
        header(invite, "From"),
        header(invite, "Call-ID"),
    )
}

fn limits(world: &mut World) {
    let control = world.daemon.control();
    let mut small = Peer::pbx_at(&world.lab, Place::Pbx1, 5070);
    let at = small.address.to_string();
    for pbx in ["pbx1", "pbx2"] {
        control.command(&["backends", "disable", pbx]).unwrap();
    }
    control.command(&["backends", "add", "small", &at, "--max-calls", "3"]).unwrap();
    let mut phones = phones(world, 8);
    let (mut placed, mut refused) = (0, 0);
    for phone in &mut phones {
        let text = phone.authorized("INVITE", EXTENSION, "limited", "");
        phone.peer.send(&text);
        let first = phone.peer.next_new(Duration::from_secs(5)).unwrap();
        if what(&first) == "100" {
            let invite = small.expect("INVITE");
            small.send(reply(&invite, "180 Ringing", ""));
            phone.peer.expect("180");
            placed += 1;
        } else {
            assert_eq!(what(&first), "503", "{first}");
            phone.peer.send(ack_of(&text, &first));
            refused += 1;
        }
    }
    assert_eq!((placed, refused), (3, 5));
    control.command(&["backends", "remove", "small"]).unwrap();
    for pbx in ["pbx1", "pbx2"] {
        control.command(&["backends", "enable", pbx]).unwrap();
    }
    world.restart(|_| {});
}

fn restarts(world: &mut World) {
    let mut phones = phones(world, 6);
    phones.iter_mut().for_each(|phone| _ = phone.registers(""));
    for workers in [1, 2, 3] {
        // What was accepted is there: give the store the moment that it takes to write it.
        let start = Instant::now();
        while world.daemon.control().ask("stats").unwrap()["registrar"]["unwritten"] != 0 {
            assert!(start.elapsed() < Duration::from_secs(5));
        }
        world.restart(|settings| settings.workers = Some(workers));
        for phone in &mut phones {
            is_called(world, phone, &format!("restart{workers}"));
            phone.registers("Expires: 1700\r\n");
        }
    }
}

fn orders(world: &mut World) {
    let mut phones = phones(world, 6);
    phones.iter_mut().for_each(|phone| _ = phone.registers(""));
    let control = world.daemon.control();
    let list = |args: &[&str]| control.command(args).unwrap();
    let all = list(&["registrations"]);
    for phone in &phones {
        let user = format!("{}@example.com", phone.user);
        let has = all["registrations"].as_array().unwrap().iter().any(|one| one["user"] == user);
        assert!(has, "{user} in {all}");
        let one = list(&["registrations", "show", &user]);
        assert_eq!(one["total"], 1, "{one}");
        assert_eq!(one["registrations"][0]["pbxs"].as_array().unwrap().len(), 2, "{one}");
    }
    let stats = control.ask("stats").unwrap();
    assert_eq!(stats["registrar"]["contacts"], all["total"], "{stats}");
    let calls: Vec<_> = phones.iter_mut().map(|phone| world.call(phone, "listed")).collect();
    let shown = list(&["calls"]);
    assert_eq!(shown["total"], 6, "{shown}");
    let id = shown["calls"][5]["id"].as_str().unwrap();
    assert_eq!(list(&["calls", "show", id])["total"], 1);
    for (phone, (place, sent, received)) in phones.iter_mut().zip(calls) {
        world.pbx(place).send(reply(&received, "486 Busy Here", ""));
        world.pbx(place).expect("ACK");
        phone.hears(&sent, "486");
    }
    let user = format!("{}@example.com", phones[0].user);
    assert_eq!(list(&["registrations", "remove", &user])["removed"], 1);
    let left = list(&["registrations"]);
    assert_eq!(left["total"].as_u64(), all["total"].as_u64().map(|all| all - 1));
}

fn reloads(world: &mut World) {
    let config = world.lab.dir().join("sipline.toml");
    let text = std::fs::read_to_string(&config).unwrap();
    let other = text.replace("no_destination = \"503\"", "no_destination = \"404\"");
    std::fs::write(&config, other.replace("workers = 3", "workers = 2")).unwrap();
    let control = world.daemon.control();
    let told = control.command(&["reload"]).unwrap();
    assert_eq!(told["restart_needed"], serde_json::json!(["sip.workers"]), "{told}");
    for pbx in ["pbx1", "pbx2"] {
        control.command(&["backends", "drain", pbx]).unwrap();
    }
    for mut phone in phones(world, 6) {
        let text = phone.authorized("INVITE", EXTENSION, "nowhere", "");
        phone.peer.send(&text);
        let first = phone.peer.next_new(Duration::from_secs(5)).unwrap();
        let answer = if what(&first) == "100" { phone.peer.expect("404") } else { first };
        assert_eq!(what(&answer), "404", "{answer}");
        phone.peer.send(ack_of(&text, &answer));
    }
    for pbx in ["pbx1", "pbx2"] {
        control.command(&["backends", "enable", pbx]).unwrap();
    }
}
