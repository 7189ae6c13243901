//! PBX monitoring.

use std::time::Duration;

use sipline_tests::lab::{Mode, PROXY, Place};

use crate::text::{header, what};
use crate::world::{Case, World, run};

const CASES: &[Case] = &[
    ("OPTIONS from our address to each PBX, at each interval", asked),
    ("inactive after five failures in a row, active at the first success", five),
    ("states are shown, and set by hand", by_hand),
];

#[test]
fn monitoring() {
    run(Mode::Off, CASES);
}

fn asked(world: &mut World) {
    world.restart(|settings| settings.probe = Duration::from_secs(1));
    std::thread::sleep(Duration::from_millis(3500));
    for place in [Place::Pbx1, Place::Pbx2] {
        let all = world.pbx(place).aside("OPTIONS");
        assert!((3..=6).contains(&all.len()), "{} in 3.5 s", all.len());
        for (_, text) in &all {
            assert_eq!(what(text), "OPTIONS");
            assert!(header(text, "From").contains(&format!("@{PROXY}")), "{text}");
            assert!(text.starts_with(&format!("OPTIONS sip:{}", place.address())), "{text}");
        }
    }
}

fn five(world: &mut World) {
    world.restart(|settings| {
        settings.probe = Duration::from_millis(500);
        settings.fall = 5;
    });
    let state = |world: &World| world.daemon.control().backend(Place::Pbx1).unwrap().state;
    world.pbx1().forget();
    world.pbx1().set_deaf(true);
    // Four have failed at most.
    std::thread::sleep(Duration::from_millis(1900));
    assert_eq!(state(world), "active");
    world.daemon.wait_for_state(Place::Pbx1, "inactive", Duration::from_secs(4)).unwrap();
    world.pbx1().set_deaf(false);
    world.daemon.wait_for_state(Place::Pbx1, "active", Duration::from_secs(2)).unwrap();
}

fn by_hand(world: &mut World) {
    let control = world.daemon.control();
    control.command(&["backends", "disable", "pbx1"]).unwrap();
    assert_eq!(control.backend(Place::Pbx1).unwrap().state, "disabled");
    control.command(&["backends", "enable", "pbx1"]).unwrap();
    world.daemon.wait_for_state(Place::Pbx1, "active", Duration::from_secs(5)).unwrap();
    world.pbx2().set_deaf(true);
    world.daemon.wait_for_state(Place::Pbx2, "inactive", Duration::from_secs(10)).unwrap();
    let shown = control.command(&["backends"]).unwrap();
    let states: Vec<_> =
        shown["backends"].as_array().unwrap().iter().map(|b| &b["state"]).collect();
    assert_eq!(states, ["active", "inactive"], "{shown}");
}
