//! The configuration is read again and again while calls run.

use std::fs;
use std::thread;
use std::time::Duration;

use sipline_tests::lab::{Mode, Place, Scene};

/// Each changes something, by the control command and by SIGHUP in turn: weights, networks, a PBX that is drained and
/// comes back, the gate, probes. No call is lost.
pub(crate) fn a_reload_costs_no_call(mode: Mode) {
    let mut scene = Scene::new(mode, "pbx");
    let config = scene.lab.dir().join("sipline.toml");
    let good = fs::read_to_string(&config).unwrap();
    let changes = [
        ("id = \"pbx1\"", "id = \"pbx1\"\nweight = 3"),
        ("id = \"pbx2\"", "id = \"pbx2\"\nstate = \"draining\""),
        ("[trust]\n", "[trust]\ndeny = [\"192.0.2.0/24\"]\n"),
        ("enabled = false", "enabled = true"),
        ("rise = 1", "rise = 2"),
    ];
    let mut callers = scene.start_calls("caller", 100, 800, Duration::from_millis(500));
    for round in 0..12 {
        thread::sleep(Duration::from_millis(500));
        let text = match changes.get(round % (changes.len() + 1)) {
            Some((from, to)) => {
                assert!(good.contains(from), "{from} is not in {good}");
                good.replace(from, to)
            }
            None => good.clone(),
        };
        fs::write(&config, text).unwrap();
        if round % 2 == 0 {
            scene.control.command(&["reload"]).unwrap();
        } else {
            scene.daemon.process.signal(libc::SIGHUP).unwrap();
        }
        // It was read: the drained one is seen to be so.
        if round == 1 {
            scene.daemon.wait_for_state(Place::Pbx2, "draining", Duration::from_secs(2)).unwrap();
        }
    }
    let events = callers.finish().unwrap();
    scene.expect_all_ended(&events, 800);
    scene.expect_who_worked(mode);
    scene.end();
}
