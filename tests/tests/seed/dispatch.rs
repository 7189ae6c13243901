//! Dispatch: a phone's call goes to a PBX.

use sipline_tests::lab::{Mode, Place};

use crate::text::{header, headers, status};
use crate::world::{Case, EXTENSION, World, other, run};

const CASES: &[Case] = &[
    ("100 Trying, round robin over the PBXs", round_robin),
    ("the request goes as it is to the PBX", as_it_is),
    ("486, 404 and 603 of a PBX pass unchanged", unchanged),
    ("503 with Retry-After when no PBX is up", none_is_up),
    ("404 No destination when no PBX is up, as in the seed, if it is wanted", as_the_seed),
    ("a PBX out of use by hand gets no calls", by_hand),
];

#[test]
fn dispatch() {
    run(Mode::Off, CASES);
}

fn refuse(world: &mut World, place: Place, invite: &str, status: &str) {
    world.answer(place, invite, status);
    world.pbx(place).expect("ACK");
}

fn round_robin(world: &mut World) {
    let mut places = Vec::new();
    for number in 0..6 {
        let mut phone = world.phone();
        let (place, sent, invite) = world.call(&mut phone, &format!("robin{number}"));
        places.push(place);
        refuse(world, place, &invite, "486 Busy Here");
        phone.hears(&sent, "486");
    }
    let next: Vec<_> = places[..5].iter().map(|place| other(*place)).collect();
    assert_eq!(places[1..], next);
}

fn as_it_is(world: &mut World) {
    let mut phone = world.phone();
    let (place, sent, invite) = world.call(&mut phone, "as-it-is");
    assert_eq!(invite.lines().next(), sent.lines().next());
    for name in ["From", "To", "Call-ID", "CSeq", "Contact"] {
        assert_eq!(header(&invite, name), header(&sent, name));
    }
    assert_eq!(headers(&invite, "Via").len(), 2);
    refuse(world, place, &invite, "486 Busy Here");
    phone.hears(&sent, "486");
}

fn unchanged(world: &mut World) {
    for answer in ["486 Busy Here", "404 Not Found", "603 Decline"] {
        let mut phone = world.phone();
        let (place, sent, invite) = world.call(&mut phone, "unchanged");
        refuse(world, place, &invite, answer);
        assert_eq!(status(&phone.hears(&sent, &answer[..3])), answer);
        world.pbx(other(place)).hears_nothing();
    }
}

/// Both PBXs are taken out by hand, and a call comes.
fn call_nobody(world: &mut World, wanted: &str) -> String {
    let control = world.daemon.control();
    for id in ["pbx1", "pbx2"] {
        control.command(&["backends", "disable", id]).unwrap();
    }
    let mut phone = world.phone();
    let answer = phone.asks("INVITE", EXTENSION, "nobody", "", wanted);
    for id in ["pbx1", "pbx2"] {
        control.command(&["backends", "enable", id]).unwrap();
    }
    for place in [Place::Pbx1, Place::Pbx2] {
        world.daemon.wait_for_state(place, "active", std::time::Duration::from_secs(5)).unwrap();
    }
    answer
}

fn none_is_up(world: &mut World) {
    let answer = call_nobody(world, "503");
    assert_eq!(status(&answer), "503 Service Unavailable");
    assert!(header(&answer, "Retry-After").parse::<u32>().unwrap() > 0);
}

fn as_the_seed(world: &mut World) {
    world.restart(|settings| settings.no_destination = "404".into());
    assert_eq!(status(&call_nobody(world, "404")), "404 No destination");
    world.restart(|_| {});
}

fn by_hand(world: &mut World) {
    let control = world.daemon.control();
    control.command(&["backends", "disable", "pbx1"]).unwrap();
    for number in 0..2 {
        let mut phone = world.phone();
        let (place, sent, invite) = world.call(&mut phone, &format!("hand{number}"));
        assert_eq!(place, Place::Pbx2);
        refuse(world, place, &invite, "486 Busy Here");
        phone.hears(&sent, "486");
    }
    control.command(&["backends", "enable", "pbx1"]).unwrap();
}
