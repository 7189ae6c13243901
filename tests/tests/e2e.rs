//! Real calls from SIPp through the built daemon to SIPp: the same suite with XDP native, generic and off.
//!
//! Turning the kernel half off changes speed, never behaviour, so every test here holds in every mode;
//! only who did the work differs, and that is checked too.

use std::{fs, thread, time::Duration};

use sipline_tests::lab::{
    INTERFACES, Mode, Place, Scene, Settings, Sipp, Story, Word, binary, count, is_empty, now,
};

sipline_tests::in_each_mode! {
    calls_are_shared_between_the_pbxs
    the_pbx_may_hang_up
    a_busy_pbx_is_heard
    a_caller_may_give_up
    a_call_may_be_held
    options_are_answered
    a_drained_pbx_keeps_its_calls
    sigterm_leaves_the_interfaces_as_they_were
    a_bad_file_changes_nothing
}

/// The other build of the kernel program carries calls as the first does.
#[test]
fn the_bpf_loop_build_carries_calls() {
    let settings = Settings { loops: "bpf_loop".into(), ..Settings::new(Mode::Native) };
    let mut scene = Scene::with(settings, "pbx");
    let events = scene.call("caller", 50, 100);
    scene.expect_all_ended(&events, 100);
    scene.expect_who_worked(Mode::Native);
    scene.end();
}

#[test]
fn calls_over_ipv6_are_carried_off() {
    calls_over_ipv6(Settings::new(Mode::Off));
}

#[test]
fn calls_over_ipv6_are_carried_native() {
    calls_over_ipv6(Settings::new(Mode::Native));
}

#[test]
fn calls_over_ipv6_are_carried_generic() {
    calls_over_ipv6(Settings::new(Mode::Generic));
}

#[test]
fn calls_over_ipv6_are_carried_by_the_bpf_loop_build() {
    calls_over_ipv6(Settings { loops: "bpf_loop".into(), ..Settings::new(Mode::Native) });
}

/// Calls over IPv6 through both PBXs, from either end, and with one of them dead.
fn calls_over_ipv6(settings: Settings) {
    let settings = Settings { ipv6: true, ..settings };
    let mode = settings.mode;
    let mut scene = Scene::with(settings.clone(), "pbx");
    let events = scene.call("caller", 50, 60);
    scene.expect_all_ended(&events, 60);
    let share = Story::new(&events, &Default::default()).share(0.0, f64::MAX);
    let (one, two) = (share["pbx1"], share["pbx2"]);
    assert!(one.abs_diff(two) <= 4, "pbx1 {one}, pbx2 {two}");
    scene.expect_who_worked(mode);
    let stats = scene.control.ask("stats").unwrap();
    let steered = |half: &str| stats[half]["invite_steered"].as_u64().unwrap();
    let (kernel, daemon) = (steered("kernel"), steered("daemon"));
    // More only if a PBX was taken for dead meanwhile: its INVITEs are steered again.
    assert!(kernel + daemon >= 60, "{stats}");
    assert!(if mode == Mode::Off { kernel == 0 } else { kernel > 9 * daemon }, "{stats}");
    let events = scene.call("options", 50, 10);
    assert_eq!(count(&events, Word::Ended), 10, "{events:?}");
    scene.expect_who_worked(mode);

    // ICMPv6 tells of a dead program at once.
    scene.pbx1.process.kill().unwrap();
    scene.daemon.wait_for_state(Place::Pbx1, "inactive", Duration::from_secs(4)).unwrap();
    let reason = scene.control.backend(Place::Pbx1).unwrap().reason;
    assert_eq!(reason.as_deref(), Some("port unreachable"));
    let events = scene.call("caller", 50, 20);
    scene.expect_all_ended(&events, 20);
    let share = Story::new(&events, &Default::default()).share(0.0, f64::MAX);
    assert_eq!((share.get("pbx1"), share.get("pbx2")), (None, Some(&20)));
    // Who calls over IPv4 gets through too.
    let mut caller = Sipp::caller("caller", 10, 5).start(&scene.lab, "ipv4").unwrap();
    let events = caller.finish().unwrap();
    assert_eq!(count(&events, Word::Ended), 5, "{events:?}");
    scene.end();

    for (pbx, caller) in [
        ("pbx-hangs-up", "caller-waits"),
        ("pbx-rings", "caller-cancels"),
        ("pbx-busy", "caller-refused"),
        ("pbx-holds", "caller-holds"),
    ] {
        let mut scene = Scene::with(settings.clone(), pbx);
        let events = scene.call(caller, 50, 30);
        scene.expect_all_ended(&events, 30);
        if ["pbx-rings", "pbx-busy"].contains(&pbx) {
            scene.expect_pbxs_ended(30);
        }
        scene.expect_who_worked(mode);
        scene.end();
    }
}

#[test]
fn calls_between_ipv4_and_ipv6_off() {
    calls_between_the_families(Mode::Off);
}

#[test]
fn calls_between_ipv4_and_ipv6_native() {
    calls_between_the_families(Mode::Native);
}

/// Phones of one family, PBXs of the other: from end to end, whoever hangs up, with the kernel program in the way or not.
fn calls_between_the_families(mode: Mode) {
    const CALLS: u32 = 30;
    for ipv6 in [true, false] {
        let settings = Settings { ipv6, ..Settings::new(mode) };
        let place = |scene: &Scene, scenario: &str| {
            let caller = Sipp::caller(scenario, 50, CALLS).talk(Duration::from_millis(300));
            let caller = if ipv6 { caller } else { caller.ipv6() };
            caller.start(&scene.lab, "across").unwrap().finish().unwrap()
        };
        // What a phone and a PBX say inside of each dialog.
        for (pbx, caller, inside) in [
            ("pbx", "caller", 2),
            ("pbx-hangs-up", "caller-waits", 2),
            ("pbx-holds", "caller-holds", 4),
            ("pbx-rings", "caller-cancels", 0),
            ("pbx-busy", "caller-refused", 0),
        ] {
            let mut scene = Scene::with(settings.clone(), pbx);
            if mode != Mode::Off {
                scene.daemon.wait_for_ipv6().unwrap();
            }
            let events = place(&scene, caller);
            scene.expect_all_ended(&events, CALLS as usize);
            if inside == 0 {
                scene.expect_pbxs_ended(CALLS as usize);
            }
            let stats = scene.control.ask("stats").unwrap();
            let of = |half: &str, name: &str| stats[half][name].as_u64().unwrap_or(0);
            let calls = u64::from(CALLS);
            assert!(of("daemon", "invite_across") >= calls, "{pbx}: {stats}");
            assert!(of("daemon", "dialog_across") >= calls * inside, "{pbx}: {stats}");
            // The kernel program has seen all of it, and kept its hands off.
            let seen = if mode == Mode::Off { 0 } else { calls };
            assert!(of("kernel", "no_pbx") >= seen, "{pbx}: {stats}");
            assert!(of("kernel", "odd_route") >= seen * inside, "{pbx}: {stats}");
            for half in ["kernel", "daemon"] {
                for sent in ["invite_steered", "dialog_to_pbx", "dialog_to_phone"] {
                    assert_eq!(of(half, sent), 0, "{pbx}: {stats}");
                }
            }
            if pbx == "pbx" {
                let share = Story::new(&events, &Default::default()).share(0.0, f64::MAX);
                assert!(share["pbx1"].abs_diff(share["pbx2"]) <= 4, "{share:?}");
                // One of them dies, and nobody notices.
                scene.pbx1.process.kill().unwrap();
                let events = place(&scene, caller);
                scene.expect_all_ended(&events, CALLS as usize);
                let share = Story::new(&events, &Default::default()).share(0.0, f64::MAX);
                assert_eq!((share.get("pbx1"), share.get("pbx2")), (None, Some(&CALLS)));
            }
            scene.end();
        }
    }
}

/// `auto` takes the best that works, which in the lab is native.
#[test]
fn auto_is_native_where_native_works() {
    let mut scene = Scene::new(Mode::Auto, "pbx");
    assert_eq!(scene.control.totals().unwrap().mode, "native");
    let events = scene.call("caller", 50, 50);
    scene.expect_all_ended(&events, 50);
    scene.expect_who_worked(Mode::Native);
    scene.end();
}

/// With `keep` the program outlives its daemon, serves calls alone, and goes when an operator says so.
#[test]
fn a_kept_program_serves_alone_until_it_is_detached() {
    let settings = Settings { keep: true, ..Settings::new(Mode::Native) };
    let mut scene = Scene::with(settings, "pbx");
    let status = scene.daemon.terminate().unwrap();
    assert!(status.success(), "{status}: {}", scene.daemon.process.last_words());
    assert_eq!(scene.attached(), INTERFACES);

    let events = scene.call("caller", 50, 50);
    assert_eq!(count(&events, Word::Ended), 50, "{events:#?}");
    // Nobody vouches for a daemon that is gone: an OPTIONS gets no answer.
    let events = scene.call("options", 50, 5);
    assert_eq!((count(&events, Word::Ended), count(&events, Word::Silent)), (0, 5));

    let config = scene.lab.dir().join("sipline.toml");
    let mut detach = scene.lab.command(Place::Proxy, binary().unwrap());
    assert!(detach.arg("detach").arg("--config").arg(config).status().unwrap().success());
    assert_eq!(scene.attached(), Vec::<String>::new());
}

fn a_bad_file_changes_nothing(mode: Mode) {
    let scene = Scene::new(mode, "pbx");
    let mut callers = scene.start_calls("caller", 50, 200, Duration::from_millis(300));
    let config = scene.lab.dir().join("sipline.toml");
    let good = fs::read_to_string(&config).unwrap();
    let before = scene.control.ask("backends").unwrap()["backends"].as_array().unwrap().len();

    thread::sleep(Duration::from_secs(1));
    fs::write(&config, good.replace("rise = 1", "rise = \"one\"")).unwrap();
    let refused = scene.control.command(&["reload"]).unwrap_err().to_string();
    let line = 1 + good.lines().position(|line| line == "rise = 1").unwrap();
    assert!(
        refused.contains(&format!("sipline.toml:{line}:")),
        "{refused} should name line {line}"
    );
    assert_eq!(
        scene.control.ask("backends").unwrap()["backends"].as_array().unwrap().len(),
        before
    );
    assert_eq!(scene.control.backend(Place::Pbx1).unwrap().state, "active");

    fs::write(&config, good.replace("id = \"pbx1\"", "id = \"pbx1\"\nstate = \"draining\""))
        .unwrap();
    scene.control.command(&["reload"]).unwrap();
    assert_eq!(scene.control.backend(Place::Pbx1).unwrap().state, "draining");
    let drained = now();
    let events = callers.finish().unwrap();
    scene.expect_all_ended(&events, 200);
    let share = Story::new(&events, &Default::default()).share(drained + 0.1, f64::MAX);
    assert_eq!(share.get("pbx1"), None, "{share:?}");
    assert!(share["pbx2"] > 30, "{share:?}");
    scene.end();
}

fn calls_are_shared_between_the_pbxs(mode: Mode) {
    let mut scene = Scene::new(mode, "pbx");
    let events = scene.call("caller", 100, 200);
    scene.expect_all_ended(&events, 200);
    let share = Story::new(&events, &Default::default()).share(0.0, f64::MAX);
    let (one, two) = (share["pbx1"], share["pbx2"]);
    assert!(one.abs_diff(two) <= 10, "pbx1 {one}, pbx2 {two}");
    scene.expect_who_worked(mode);
    scene.end();
}

fn the_pbx_may_hang_up(mode: Mode) {
    let mut scene = Scene::new(mode, "pbx-hangs-up");
    let events = scene.call("caller-waits", 50, 100);
    scene.expect_all_ended(&events, 100);
    scene.expect_who_worked(mode);
    scene.end();
}

fn a_busy_pbx_is_heard(mode: Mode) {
    let mut scene = Scene::new(mode, "pbx-busy");
    let events = scene.call("caller-refused", 50, 100);
    scene.expect_all_ended(&events, 100);
    // The PBX ends a call when the ACK of its 486 has come.
    scene.expect_pbxs_ended(100);
    scene.expect_who_worked(mode);
    scene.end();
}

fn a_caller_may_give_up(mode: Mode) {
    let mut scene = Scene::new(mode, "pbx-rings");
    let events = scene.call("caller-cancels", 50, 100);
    scene.expect_all_ended(&events, 100);
    scene.expect_pbxs_ended(100);
    scene.expect_who_worked(mode);
    scene.end();
}

fn a_call_may_be_held(mode: Mode) {
    let mut scene = Scene::new(mode, "pbx-holds");
    let events = scene.call("caller-holds", 50, 100);
    scene.expect_all_ended(&events, 100);
    assert_eq!(count(&events, Word::Held), 100);
    scene.expect_who_worked(mode);
    scene.end();
}

fn options_are_answered(mode: Mode) {
    let mut scene = Scene::new(mode, "pbx");
    let events = scene.call("options", 200, 400);
    scene.expect_all_ended(&events, 400);
    scene.expect_who_worked(mode);
    scene.end();
}

fn a_drained_pbx_keeps_its_calls(mode: Mode) {
    let scene = Scene::new(mode, "pbx");
    let mut callers = scene.start_calls("caller", 50, 200, Duration::from_millis(1500));
    thread::sleep(Duration::from_millis(1500));
    scene.control.command(&["backends", "drain", "pbx1"]).unwrap();
    let drained = now();
    thread::sleep(Duration::from_millis(1500));
    scene.control.command(&["backends", "enable", "pbx1"]).unwrap();
    let enabled = now();
    let events = callers.finish().unwrap();
    scene.expect_all_ended(&events, 200);
    let story = Story::new(&events, &Default::default());
    // A call that was on its way at the moment of the order may go either way.
    let margin = 0.1;
    let during = story.share(drained + margin, enabled - margin);
    assert_eq!(during.get("pbx1"), None, "no new call for a draining PBX: {during:?}");
    assert!(during["pbx2"] > 30, "{during:?}");
    let before = story.share(0.0, drained - margin);
    assert!(before["pbx1"] > 20, "{before:?}");
    let after = story.share(enabled + margin, f64::MAX);
    assert!(after["pbx1"] > 10, "{after:?}");
    scene.end();
}

fn sigterm_leaves_the_interfaces_as_they_were(mode: Mode) {
    let mut scene = Scene::new(mode, "pbx");
    if mode == Mode::Off {
        assert_eq!(scene.attached(), Vec::<String>::new());
    } else {
        assert_eq!(scene.attached(), INTERFACES);
    }
    let events = scene.call("caller", 50, 50);
    scene.expect_all_ended(&events, 50);
    let status = scene.daemon.terminate().unwrap();
    assert!(status.success(), "{status}: {}", scene.daemon.process.last_words());
    assert_eq!(scene.attached(), Vec::<String>::new());
    assert_eq!((&*scene.forwarding("ipv4"), &*scene.forwarding("ipv6")), ("0", "0"));
    let left: Vec<_> = fs::read_dir(scene.lab.pins()).map_or_else(
        |_| Vec::new(),
        |dir| dir.flatten().map(|entry| entry.path()).filter(|path| !is_empty(path)).collect(),
    );
    assert!(left.is_empty(), "pins are left: {left:?}");
}
