//! A PBX dies, or refuses every call: what it had not answered goes to the other one.

use std::thread;
use std::time::Duration;

use sipline_tests::lab::{
    Mode, Outage, Outcome, Place, Scene, Sipp, Story, Witness, Word, count, now,
};

pub(crate) fn a_dead_program_costs_only_its_own_calls(mode: Mode) {
    a_death_costs_only_its_own_calls(mode, false);
}

pub(crate) fn a_dead_host_costs_only_its_own_calls(mode: Mode) {
    a_death_costs_only_its_own_calls(mode, true);
}

fn a_death_costs_only_its_own_calls(mode: Mode, host: bool) {
    let mut scene = Scene::new(mode, "pbx");
    let witness = Witness::start(&scene.lab, Place::Pbx1).unwrap();
    let mut callers = scene.start_calls("caller", 50, 500, Duration::from_millis(500));
    thread::sleep(Duration::from_secs(2));
    if host {
        scene.lab.silence(Place::Pbx1).unwrap();
    }
    scene.pbx1.process.kill().unwrap();
    let killed = now();
    scene.daemon.wait_for_state(Place::Pbx1, "inactive", Duration::from_secs(6)).unwrap();
    let known = now();
    thread::sleep(Duration::from_secs(1));
    if host {
        scene.lab.revive(Place::Pbx1).unwrap();
    }
    scene.pbx1 = Sipp::pbx(Place::Pbx1, "pbx").start(&scene.lab, "pbx1-again").unwrap();
    let restarted = now();
    scene.daemon.wait_for_state(Place::Pbx1, "active", Duration::from_secs(6)).unwrap();
    let back = now();
    let events = callers.finish().unwrap();
    let reached = witness.finish().unwrap();

    assert_eq!(count(&events, Word::Placed), 500);
    let outage = Outage { pbx: "pbx1".into(), killed, known, restarted, back };
    let story = Story::new(&events, &reached);
    let failed: Vec<_> =
        story.calls().filter(|(_, call)| call.outcome(Some(&outage)) == Outcome::Failed).collect();
    assert!(failed.is_empty(), "{outage:?}: {failed:#?}");
    assert_eq!(story.count(Outcome::LostSent, Some(&outage)), 0, "it had not answered these");
    let during = story.share(known, restarted);
    assert_eq!(during.get("pbx1"), None, "no new call for a dead PBX: {during:?}");
    assert!(during["pbx2"] > 30, "{during:?}");
    let after = story.share(back, f64::MAX);
    assert!(after["pbx1"] > 20, "{after:?}");
    // Only ICMP tells at once; probes take two failures, a second apart and a second each.
    assert!(known - killed < if host { 5.0 } else { 3.0 }, "{outage:?}");
    scene.end();
}

/// It refuses every call by 503 and answers OPTIONS: the calls go to the other one, and so it has few.
pub(crate) fn an_overloaded_pbx_costs_no_call(mode: Mode) {
    let mut scene = Scene::new(mode, "pbx");
    scene.pbx1.process.kill().unwrap();
    scene.daemon.wait_for_state(Place::Pbx1, "inactive", Duration::from_secs(6)).unwrap();
    scene.pbx1 = Sipp::pbx(Place::Pbx1, "pbx-overloaded").start(&scene.lab, "overloaded").unwrap();
    scene.daemon.wait_for_state(Place::Pbx1, "active", Duration::from_secs(6)).unwrap();
    let events = scene.call("caller", 200, 1600);
    scene.expect_all_ended(&events, 1600);
    let share = Story::new(&events, &Default::default()).share(0.0, f64::MAX);
    assert_eq!((share.get("pbx1"), share.get("pbx2")), (None, Some(&1600)));
    let stats = scene.control.ask("stats").unwrap();
    let refused = stats["daemon"]["taken_over_refused"].as_u64().unwrap();
    // Three before it is out, and what is on its way meanwhile; again after the pause.
    assert!((3..200).contains(&refused), "{stats}");
    assert_eq!(stats["daemon"]["no_shadow"], 0, "{stats}");
    scene.end();
}
