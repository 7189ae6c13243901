//! The daemon is killed while calls run, and a new one starts.

use std::thread;
use std::time::Duration;

use sipline_tests::lab::{Event, INTERFACES, Mode, Scene, Sipp, Story, Word, now, wait_until};

use crate::database::{LIMIT, Phones, USERS};

/// How long the kernel speaks for a daemon after its last heartbeat, with what a beat may be late.
const VOUCHED: f64 = 1.3;
/// What was on its way when it was killed may be noted this much later.
const ON_ITS_WAY: f64 = 0.2;

/// With XDP the pinned program carries calls on alone, established and new; without it they wait for the next daemon,
/// and the peers' repetitions bring them through: what is in a call needs no memory of ours.
pub(crate) fn calls_outlive_the_daemon(mode: Mode) {
    let mut scene = Scene::new(mode, "pbx");
    let mut options =
        Sipp::caller("options", 50, 400).port(5070).start(&scene.lab, "options").unwrap();
    let mut callers = scene.start_calls("caller", 100, 700, Duration::from_secs(1));
    thread::sleep(Duration::from_secs(2));
    scene.daemon.process.kill().unwrap();
    let killed = now();
    thread::sleep(Duration::from_secs(2));
    let ended = now();
    match mode {
        Mode::Off => assert_eq!(scene.attached(), Vec::<String>::new()),
        _ => assert_eq!(scene.attached(), INTERFACES, "the pins hold the program"),
    }
    scene.start_again();

    let events = callers.finish().unwrap();
    scene.expect_all_ended(&events, 700);
    let story = Story::new(&events, &Default::default());
    let answers = story.calls().filter_map(|(_, call)| call.answered.as_ref().map(|(at, _)| *at));
    let alone = answers.filter(|at| (killed + ON_ITS_WAY..ended).contains(at)).count();
    match mode {
        Mode::Off => assert_eq!(alone, 0, "nobody was there who could"),
        _ => assert!(alone > 100, "{alone} calls were answered while there was no daemon"),
    }
    // Nobody speaks for a daemon that is gone; who asks again hears the next one.
    let asked = options.finish().unwrap();
    scene.expect_all_ended(&asked, 400);
    let silent = if mode == Mode::Off { killed + ON_ITS_WAY } else { killed + VOUCHED };
    let answered = asked.iter().filter(|event| event.word == Word::Ended);
    let late = answered.filter(|event| (silent..ended).contains(&event.at)).count();
    assert_eq!(late, 0, "OPTIONS were answered for a dead daemon");
    // What came while the next one started has waited for it, and it may have started late in the calls: who works is
    // told by calls of their own.
    scene.base = scene.control.totals().unwrap();
    let mut callers = scene.start_calls("caller", 50, 50, Duration::from_millis(300));
    let events = callers.finish().unwrap();
    scene.expect_all_ended(&events, 50);
    scene.expect_who_worked(mode);
    scene.end();
}

/// Phones that registered, and call with a password: the next daemon has their registrations from the database and
/// takes the nonces of the last one. Calls that it knows nothing of end in order.
pub(crate) fn phones_outlive_the_daemon(mode: Mode) {
    let mut phones = Phones::new(mode);
    phones.register();
    let mut callers = phones.start_calls(30, 240);
    thread::sleep(Duration::from_secs(3));
    phones.scene.daemon.process.kill().unwrap();
    let killed = now();
    thread::sleep(Duration::from_millis(500));
    phones.scene.start_again();
    let control = &phones.scene.control;
    // At once, before any phone could have come back.
    assert_eq!(control.command(&["registrations"]).unwrap()["total"], USERS);
    let mut events = callers.finish().unwrap();
    // Who has our 100 repeats nothing (RFC 3261 17.1.1.2): one INVITE may have been answered by it and not yet sent on.
    let silent = events.iter().find(|event| event.word == Word::Silent);
    let mut calls = 240;
    if let Some(call_id) = silent.map(|event| event.call_id.clone()) {
        let placed = |event: &Event| event.word == Word::Placed && event.call_id == call_id;
        let placed = events.iter().find(|event| placed(event)).unwrap().at;
        assert!((killed - ON_ITS_WAY..killed).contains(&placed), "{placed} is silent, {killed}");
        events.retain(|event| event.call_id != call_id);
        calls -= 1;
    }
    phones.scene.expect_all_ended(&events, calls);
    // Records of calls that went on when it was killed are lost with it; of all that the next one placed there is one.
    wait_until(LIMIT, || control.ask("stats").unwrap()["registrar"]["unwritten"] == 0);
    phones.scene.end();
}
