//! A phone that nobody here has written: baresip registers with its password, calls and is called through PBXs that
//! SIPp plays, holds, and hangs up or is hung up.

use std::{
    io::Write,
    process::Stdio,
    thread,
    time::{Duration, Instant},
};

use sipline_tests::lab::{
    Baresip, Daemon, Event, Lab, Mode, Place, Running, Settings, Sipp, Word, binary,
};

/// How long what takes a moment may take.
const LIMIT: Duration = Duration::from_secs(10);
const USER: &str = "anna";

#[test]
fn a_phone_without_xdp() {
    phone(Mode::Off);
}

#[test]
fn a_phone_with_xdp() {
    phone(Mode::Native);
}

fn phone(mode: Mode) {
    let settings = Settings { registrar: true, trusted: false, ..Settings::new(mode) };
    let lab = Lab::new().unwrap();
    let daemon = Daemon::start(&lab, &settings).unwrap();
    add_user(&lab);
    let control = daemon.control();
    control.command(&["backends", "disable", "pbx2"]).unwrap();

    // It registers.
    let mut phone = Baresip::start(&lab, USER, "secret").unwrap();
    let start = Instant::now();
    while control.command(&["registrations"]).unwrap()["total"] != 1 {
        assert!(start.elapsed() < LIMIT, "baresip does not register");
        thread::sleep(Duration::from_millis(50));
    }
    let shown = control.command(&["registrations", "show", "anna@example.com"]).unwrap();
    let contact = shown["registrations"][0]["contact"].as_str().unwrap();
    assert!(contact.contains("@10.10.1.2:5070"), "{contact}");

    // It calls, holds, takes back, and hangs up.
    let pbx = play(&lab, &daemon, "pbx-is-held", "holds");
    phone.command("dial", "sip:200@example.com").unwrap();
    phone.wait_for("CALL_ESTABLISHED").unwrap();
    phone.command("hold", "").unwrap();
    wait_until(&pbx, |events| count(events, Word::Held) == 1);
    phone.command("resume", "").unwrap();
    wait_until(&pbx, |events| count(events, Word::Held) == 2);
    phone.command("hangup", "").unwrap();
    wait_until(&pbx, |events| count(events, Word::Ended) == 1);
    assert_eq!(count(&pbx.events().unwrap(), Word::Invited), 1);
    drop(pbx);

    // It calls, and the PBX hangs up.
    let pbx = play(&lab, &daemon, "pbx-hangs-up", "hangs-up");
    phone.command("dial", "sip:200@example.com").unwrap();
    phone.wait_for("CALL_ESTABLISHED").unwrap();
    phone.wait_for("CALL_CLOSED").unwrap();
    wait_until(&pbx, |events| count(events, Word::Ended) == 1);
    drop(pbx);

    // It is called, and the PBX hangs up.
    let mut pbx = call(&lab, "caller", "calls");
    phone.wait_for("CALL_INCOMING").unwrap();
    phone.command("accept", "").unwrap();
    phone.wait_for("CALL_ESTABLISHED").unwrap();
    phone.wait_for("CALL_CLOSED").unwrap();
    assert_ended(&pbx.finish().unwrap());
    drop(pbx);

    // It is called, and hangs up.
    let mut pbx = call(&lab, "caller-waits", "waits");
    phone.wait_for("CALL_INCOMING").unwrap();
    phone.command("accept", "").unwrap();
    phone.wait_for("CALL_ESTABLISHED").unwrap();
    phone.command("hangup", "").unwrap();
    assert_ended(&pbx.finish().unwrap());
    drop(pbx);

    // It is called, and does not want to.
    let mut pbx = call(&lab, "caller", "refused");
    phone.wait_for("CALL_INCOMING").unwrap();
    phone.command("hangup", "").unwrap();
    let events = pbx.finish().unwrap();
    assert_eq!(count(&events, Word::Refused), 1, "{events:?}");
    drop(pbx);

    // It goes, and is not registered any more.
    phone.quit().unwrap();
    assert_eq!(control.command(&["registrations"]).unwrap()["total"], 0);
}

/// A PBX that takes calls, once the daemon knows.
fn play(lab: &Lab, daemon: &Daemon, scenario: &str, name: &str) -> Running {
    let pbx = Sipp::pbx(Place::Pbx1, scenario).talk(Duration::from_millis(500));
    let pbx = pbx.start(lab, name).unwrap();
    daemon.wait_for_state(Place::Pbx1, "active", LIMIT).unwrap();
    pbx
}

/// A PBX that calls the phone. It answers no probe meanwhile, and is heard all the same.
fn call(lab: &Lab, scenario: &str, name: &str) -> Running {
    let pbx = Sipp::caller(scenario, 1, 1).from_pbx(Place::Pbx1, USER);
    pbx.talk(Duration::from_millis(500)).start(lab, name).unwrap()
}

/// `sipline users add`, with the password on standard input.
fn add_user(lab: &Lab) {
    let mut command = lab.command(Place::Proxy, binary().unwrap());
    command.args(["users", "--config"]).arg(lab.dir().join("sipline.toml"));
    command.arg("--socket").arg(lab.dir().join("control.sock"));
    command.args(["add", &format!("{USER}@example.com")]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"secret\n").unwrap();
    assert!(child.wait().unwrap().success());
}

fn count(events: &[Event], word: Word) -> usize {
    events.iter().filter(|event| event.word == word).count()
}

#[track_caller]
fn assert_ended(events: &[Event]) {
    assert_eq!((count(events, Word::Answered), count(events, Word::Ended)), (1, 1), "{events:?}");
}

#[track_caller]
fn wait_until(pbx: &Running, holds: impl Fn(&[Event]) -> bool) {
    let start = Instant::now();
    while !holds(&pbx.events().unwrap()) {
        assert!(start.elapsed() < LIMIT, "not after {LIMIT:?}: {:?}", pbx.events());
        thread::sleep(Duration::from_millis(50));
    }
}
