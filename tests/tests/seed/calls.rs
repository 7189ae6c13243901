//! Whole calls of phones and PBXs that SIPp plays, with digest, by the daemon alone and with the kernel's help.

use std::{
    collections::HashMap,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sipline_tests::lab::{Mode, Outage, Outcome, Place, Running, Sipp, Story, Word};

use crate::world::World;

/// How many calls there are.
const CALLS: u32 = 40;

#[test]
fn whole_calls_without_xdp() {
    let kernel = whole_calls(Mode::Off);
    assert_eq!(kernel, 0);
}

/// The INVITE takes the daemon, who knows passwords, and the BYE, which ends the call's record. What else is inside the
/// dialog does not leave the kernel.
#[test]
fn whole_calls_with_xdp() {
    let kernel = whole_calls(Mode::Native);
    // ACK, and the answer to BYE.
    assert!(kernel >= u64::from(2 * CALLS), "{kernel}");
}

/// All are answered, half of them by each PBX. Says how many messages the kernel has carried.
fn whole_calls(mode: Mode) -> u64 {
    let mut world = World::new(mode);
    let pbxs = sipp_pbxs(&mut world);
    world.restart(|_| {});
    let control = world.daemon.control();
    let before = control.totals().unwrap();
    let events = callers(CALLS).start(&world.lab, "callers").unwrap().finish().unwrap();
    let story = Story::new(&events, &HashMap::new());
    let stats = control.ask("stats").unwrap();
    assert_eq!(story.count(Outcome::Answered, None), CALLS as usize, "{events:?} {stats}");
    let share = story.share(0.0, f64::MAX);
    assert_eq!((share["pbx1"], share["pbx2"]), (CALLS / 2, CALLS / 2));
    for pbx in &pbxs {
        let events = pbx.events().unwrap();
        let ended = events.iter().filter(|event| event.word == Word::Ended).count();
        assert_eq!(ended, CALLS as usize / 2);
    }
    control.totals().unwrap().since(&before).kernel
}

#[test]
fn no_call_is_lost_before_a_death_is_known_by_icmp() {
    let mut world = World::new(Mode::Off);
    a_pbx_dies(&mut world, |_, pbx| pbx.process.kill().unwrap());
}

#[test]
fn no_call_is_lost_before_a_death_is_known_by_silence() {
    let mut world = World::new(Mode::Off);
    a_pbx_dies(&mut world, |world, _| world.lab.silence(Place::Pbx1).unwrap());
}

/// The first PBX dies while calls are coming. Those that it has answered are lost with it, and no others.
fn a_pbx_dies(world: &mut World, kill: impl FnOnce(&World, &mut Running)) {
    let [mut pbx1, _pbx2] = sipp_pbxs(world);
    world.restart(|settings| {
        settings.more = "[dispatch]\nanswer_timeout = \"1s\"\n".into();
        // Nobody but callers will notice.
        settings.probe = Duration::from_secs(15);
        settings.fall = 5;
    });
    let mut phones = callers(2 * CALLS).start(&world.lab, "callers").unwrap();
    thread::sleep(Duration::from_secs(2));
    let killed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    kill(world, &mut pbx1);
    let events = phones.finish().unwrap();
    let story = Story::new(&events, &HashMap::new());
    let never = f64::MAX;
    let outage =
        Outage { pbx: "pbx1".into(), killed, known: killed, restarted: never, back: never };
    let count = |outcome| story.count(outcome, Some(&outage));
    let lost: Vec<_> =
        story.calls().filter(|(_, call)| call.outcome(Some(&outage)) == Outcome::Failed).collect();
    assert!(lost.is_empty(), "{lost:?}");
    let (answered, talking) = (count(Outcome::Answered), count(Outcome::LostTalking));
    assert_eq!(answered + talking, 2 * CALLS as usize);
    // Twenty a second, half of them there, half a second each.
    assert!(talking <= 15, "{talking} calls were talking to the PBX that died");
    assert!(story.share(killed, never)["pbx2"] > CALLS / 2);
}

/// Users u1, u2, ... call, twenty in a second.
fn callers(calls: u32) -> Sipp {
    let line = |n| format!("u{n};[authentication username=u{n} password=secret]");
    Sipp::caller("caller-authenticates", 20, calls)
        .auth_uri("service@10.10.0.1:5060")
        .inject((1..=calls).map(line).collect())
        .talk(Duration::from_millis(500))
}

/// SIPp takes the places of the PBXs.
fn sipp_pbxs(world: &mut World) -> [Running; 2] {
    (world.pbx1, world.pbx2) = (None, None);
    [Place::Pbx1, Place::Pbx2]
        .map(|place| Sipp::pbx(place, "pbx").start(&world.lab, place.name()).unwrap())
}
