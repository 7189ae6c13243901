//! Failover: the same call goes to the next PBX, and the caller notices nothing.

use std::time::{Duration, Instant};

use sipline_tests::lab::{Mode, Place};

use crate::text::{header, headers, reply, status};
use crate::world::{Case, EXTENSION, Phone, World, other, run};

const CASES: &[Case] = &[
    ("a 5xx", refused),
    ("no reply within answer_timeout", silent),
    ("a PBX without power: no reply at all, and the next call does not wait", without_power),
    ("an ICMP error fails over at once", unreachable),
    ("no failover when the caller has cancelled", cancelled),
    ("no failover after an answer of the callee", only_for_faults),
    ("both PBXs busy: 503 with Retry-After", all_busy),
    ("nobody answers in ring_timeout: 408, and the PBX is cancelled", nobody_answers),
    ("a PBX that refuses calls and answers OPTIONS does not flap", no_flapping),
    ("a late 200 of a PBX that was given up is acknowledged and ended", late),
];

#[test]
fn failover() {
    run(Mode::Off, CASES);
}

/// A daemon that has nothing against anybody.
fn fresh(world: &mut World) -> Phone {
    world.restart(|settings| {
        settings.more = "[dispatch]\nanswer_timeout = \"1s\"\nring_timeout = \"3s\"\n".into();
        // Only calls say who is alive.
        settings.probe = Duration::from_secs(15);
    });
    world.phone()
}

/// The call is answered by this PBX; the caller hears that and nothing else. It hangs up.
#[track_caller]
fn answered(world: &mut World, phone: &mut Phone, place: Place, invite: &str) {
    world.answer(place, invite, "180 Ringing");
    phone.peer.expect("180");
    world.answer(place, invite, "200 OK");
    let ok = phone.peer.expect("200");
    assert!(header(&ok, "Contact").contains(place.address()));
    phone.peer.send(phone.inside("ACK", &ok));
    world.pbx(place).expect("ACK");
    phone.peer.send(phone.inside("BYE", &ok));
    let bye = world.pbx(place).expect("BYE");
    world.answer(place, &bye, "200 OK");
    phone.peer.expect("200");
}

fn refused(world: &mut World) {
    for answer in ["500 Server Internal Error", "503 Service Unavailable", "504 Time-out"] {
        let mut phone = fresh(world);
        let (first, _, invite) = world.call(&mut phone, "refused");
        world.answer(first, &invite, answer);
        world.pbx(first).expect("ACK");
        let (second, again) = world.who_is_invited();
        assert_eq!(second, other(first));
        for name in ["From", "To", "Call-ID", "CSeq"] {
            assert_eq!(header(&again, name), header(&invite, name));
        }
        assert_ne!(headers(&again, "Via")[0], headers(&invite, "Via")[0], "a branch of its own");
        answered(world, &mut phone, second, &again);
    }
}

fn silent(world: &mut World) {
    let mut phone = fresh(world);
    let start = Instant::now();
    let (first, _, _) = world.call(&mut phone, "silent");
    let (second, invite) = world.who_is_invited();
    assert_eq!(second, other(first));
    let after = start.elapsed();
    assert!(after > Duration::from_millis(900) && after < Duration::from_secs(3), "{after:?}");
    answered(world, &mut phone, second, &invite);
    // It is marked: the next calls go to the other one.
    for number in 0..2 {
        let mut phone = world.phone();
        let (place, _, invite) = world.call(&mut phone, &format!("next{number}"));
        assert_eq!(place, second);
        answered(world, &mut phone, place, &invite);
    }
    let state = world.daemon.control().backend(first).unwrap();
    assert_eq!(state.state, "inactive", "{state:?}");
}

fn without_power(world: &mut World) {
    let _ = fresh(world);
    world.lab.silence(Place::Pbx1).unwrap();
    let mut calls = 0;
    for number in 0..3 {
        let mut phone = world.phone();
        let text = phone.authorized("INVITE", EXTENSION, &format!("power{number}"), "");
        phone.peer.send(&text);
        let start = Instant::now();
        phone.peer.expect("100");
        let invite = world.pbx2().expect("INVITE");
        calls += u32::from(start.elapsed() > Duration::from_millis(700));
        answered(world, &mut phone, Place::Pbx2, &invite);
    }
    world.lab.revive(Place::Pbx1).unwrap();
    assert!(calls <= 1, "{calls} callers have waited");
}

fn unreachable(world: &mut World) {
    let _ = fresh(world);
    world.pbx1 = None;
    for number in 0..2 {
        let mut phone = world.phone();
        let text = phone.authorized("INVITE", EXTENSION, &format!("icmp{number}"), "");
        let start = Instant::now();
        phone.peer.send(&text);
        phone.peer.expect("100");
        let invite = world.pbx2().expect("INVITE");
        assert!(start.elapsed() < Duration::from_millis(700), "{:?}", start.elapsed());
        answered(world, &mut phone, Place::Pbx2, &invite);
    }
    let state = world.daemon.control().backend(Place::Pbx1).unwrap();
    assert_eq!(state.state, "inactive", "{state:?}");
}

fn cancelled(world: &mut World) {
    let mut phone = fresh(world);
    let (first, sent, invite) = world.call(&mut phone, "cancelled");
    phone.cancels(&sent);
    world.answer(first, &invite, "503 Service Unavailable");
    phone.hears(&sent, "487");
    world.pbx(first).expect("ACK");
    world.pbx(other(first)).hears_nothing();
    // The same while the second one is being tried.
    let mut phone = fresh(world);
    let (first, sent, invite) = world.call(&mut phone, "cancelled2");
    world.answer(first, &invite, "500 Server Internal Error");
    world.pbx(first).expect("ACK");
    let (second, again) = world.who_is_invited();
    world.answer(second, &again, "180 Ringing");
    phone.peer.expect("180");
    phone.cancels(&sent);
    let cancel = world.pbx(second).expect("CANCEL");
    world.pbx(second).send(reply(&cancel, "200 OK", ""));
    world.answer(second, &again, "487 Request Terminated");
    world.pbx(second).expect("ACK");
    phone.hears(&sent, "487");
    world.pbx(first).hears_nothing();
}

fn only_for_faults(world: &mut World) {
    for answer in ["480 Temporarily Unavailable", "404 Not Found", "600 Busy Everywhere"] {
        let mut phone = fresh(world);
        let (first, sent, invite) = world.call(&mut phone, "faults");
        world.answer(first, &invite, answer);
        world.pbx(first).expect("ACK");
        assert_eq!(status(&phone.hears(&sent, &answer[..3])), answer);
        world.pbx(other(first)).hears_nothing();
    }
}

fn all_busy(world: &mut World) {
    let mut phone = fresh(world);
    let (first, sent, invite) = world.call(&mut phone, "busy");
    world.answer(first, &invite, "503 Service Unavailable");
    world.pbx(first).expect("ACK");
    let (second, again) = world.who_is_invited();
    world.answer(second, &again, "503 Service Unavailable");
    world.pbx(second).expect("ACK");
    let answer = phone.hears(&sent, "503");
    assert!(header(&answer, "Retry-After").parse::<u32>().unwrap() > 0);
}

fn nobody_answers(world: &mut World) {
    let mut phone = fresh(world);
    let (place, sent, invite) = world.call(&mut phone, "rings");
    world.answer(place, &invite, "180 Ringing");
    phone.peer.expect("180");
    let cancel = world.pbx(place).expect("CANCEL");
    world.pbx(place).send(reply(&cancel, "200 OK", ""));
    phone.hears(&sent, "408");
    world.answer(place, &invite, "487 Request Terminated");
    world.pbx(place).expect("ACK");
    world.pbx(other(place)).hears_nothing();
}

fn late(world: &mut World) {
    let mut phone = fresh(world);
    let (first, _, invite) = world.call(&mut phone, "late");
    let (second, again) = world.who_is_invited();
    answered(world, &mut phone, second, &again);
    world.answer(first, &invite, "200 OK");
    world.pbx(first).expect("ACK");
    let bye = world.pbx(first).expect("BYE");
    world.answer(first, &bye, "200 OK");
    phone.peer.hears_nothing();
}

fn no_flapping(world: &mut World) {
    world.restart(|settings| {
        settings.more = "[dispatch]\nfall = 1\npause = \"20s\"\n".into();
        settings.probe = Duration::from_millis(500);
    });
    let mut phone = world.phone();
    let (first, _, invite) = world.call(&mut phone, "flaps");
    world.answer(first, &invite, "500 Server Internal Error");
    world.pbx(first).expect("ACK");
    let (second, again) = world.who_is_invited();
    answered(world, &mut phone, second, &again);
    world.pbx(first).forget();
    std::thread::sleep(Duration::from_millis(1200));
    assert!(!world.pbx(first).aside("OPTIONS").is_empty(), "it has been asked, and has answered");
    for number in 0..3 {
        let mut phone = world.phone();
        let (place, _, invite) = world.call(&mut phone, &format!("flaps{number}"));
        assert_eq!(place, second);
        answered(world, &mut phone, place, &invite);
    }
}
