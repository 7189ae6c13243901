//! Calls of phones with a password, and what is kept of them: shown while they go on, and stored when they are over. The
//! same with XDP native, where the kernel carries what is inside a call, and without.

use std::io::Write;
use std::process::Stdio;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use sipline_tests::lab::{
    Control, Daemon, Event, Lab, Mode, Place, Running, Settings, Sipp, Word, binary,
};

/// How long what takes a moment may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How long calls last.
const TALK: Duration = Duration::from_secs(3);

#[test]
fn calls_are_recorded_with_xdp() {
    calls_are_recorded(Mode::Native);
}

#[test]
fn calls_are_recorded_without_xdp() {
    calls_are_recorded(Mode::Off);
}

fn calls_are_recorded(mode: Mode) {
    let settings = Settings { registrar: true, trusted: false, ..Settings::new(mode) };
    let lab = Lab::new().unwrap();
    let pbx =
        |place: Place, scenario: &str| Sipp::pbx(place, scenario).start(&lab, scenario).unwrap();
    let mut answers = pbx(Place::Pbx1, "pbx");
    let _busy = pbx(Place::Pbx2, "pbx-busy");
    let mut daemon = Daemon::start(&lab, &settings).unwrap();
    let control = daemon.control();
    for place in [Place::Pbx1, Place::Pbx2] {
        daemon.wait_until_probed(place, LIMIT).unwrap();
    }
    let added = sipline(&lab, &["users", "add", "anna@example.com"], "secret\n");
    assert_eq!(added["added"], "anna@example.com", "{added}");

    // One that is answered, and ended by the caller.
    control.command(&["backends", "disable", "pbx2"]).unwrap();
    let mut call = phone(&lab, "phone-calls", 5062);
    let shown = wait_for(|| {
        let shown = control.command(&["calls", "list"]).unwrap();
        (shown["calls"][0]["state"] == "answered").then_some(shown)
    });
    let one = &shown["calls"][0];
    assert_eq!(shown["total"], 1, "{shown}");
    assert_eq!(
        (&one["from"], &one["to"], &one["pbx"]),
        (&"anna".into(), &"200".into(), &"pbx1".into())
    );
    assert_eq!(
        (&one["caller"], &one["callee"]),
        (&"10.10.1.2:5062".into(), &"10.10.2.2:5060".into())
    );
    let id = one["id"].as_str().unwrap();
    let same = control.command(&["calls", "show", id]).unwrap();
    assert_eq!(same["calls"][0]["call_id"], one["call_id"]);
    expect(&call.finish().unwrap(), Word::Ended, &control);
    let cdr = &records(&lab, 1)[0];
    assert_eq!((&cdr["uniqueid"], &cdr["call_id"]), (&one["id"], &one["call_id"]), "{cdr}");
    assert_eq!(
        (&cdr["disposition"], &cdr["ending"]),
        (&"ANSWERED".into(), &"caller".into()),
        "{cdr}"
    );
    assert_eq!(
        (&cdr["src"], &cdr["dst"], &cdr["sip_code"]),
        (&"anna".into(), &"200".into(), &200.into())
    );
    assert_eq!(cdr["accountcode"], "anna", "{cdr}");
    assert_eq!((&cdr["channel"], &cdr["dstchannel"]), (&"10.10.1.2:5062".into(), &"pbx1".into()));
    // From the 200 to the BYE, in whole seconds.
    let billsec = cdr["billsec"].as_u64().unwrap();
    assert!((TALK.as_secs()..=TALK.as_secs() + 1).contains(&billsec), "{cdr}");
    assert_eq!(control.command(&["calls"]).unwrap()["total"], 0);

    // One whose callee is busy.
    control.command(&["backends", "enable", "pbx2"]).unwrap();
    control.command(&["backends", "disable", "pbx1"]).unwrap();
    daemon.wait_until_probed(Place::Pbx2, LIMIT).unwrap();
    expect(&phone(&lab, "phone-calls", 5063).finish().unwrap(), Word::Refused, &control);
    let cdr = &records(&lab, 2)[1];
    assert_eq!((&cdr["disposition"], &cdr["sip_code"]), (&"BUSY".into(), &486.into()), "{cdr}");
    assert_eq!((&cdr["ending"], &cdr["billsec"]), (&"refused".into(), &0.into()), "{cdr}");
    assert_eq!(cdr["answerdate"], Value::Null, "{cdr}");

    // One whose caller gives up.
    answers.process.kill().unwrap();
    let mut rings = pbx(Place::Pbx1, "pbx-rings");
    control.command(&["backends", "enable", "pbx1"]).unwrap();
    control.command(&["backends", "disable", "pbx2"]).unwrap();
    daemon.wait_until_probed(Place::Pbx1, LIMIT).unwrap();
    expect(&phone(&lab, "phone-cancels", 5064).finish().unwrap(), Word::Ended, &control);
    let cdr = &records(&lab, 3)[2];
    assert_eq!(
        (&cdr["disposition"], &cdr["sip_code"]),
        (&"NO ANSWER".into(), &487.into()),
        "{cdr}"
    );
    assert_eq!(
        (&cdr["ending"], &cdr["dstchannel"]),
        (&"cancelled".into(), &"pbx1".into()),
        "{cdr}"
    );

    // One that the other side ends.
    rings.process.kill().unwrap();
    let mut hangs_up = pbx(Place::Pbx1, "pbx-hangs-up");
    daemon.wait_until_probed(Place::Pbx1, LIMIT).unwrap();
    expect(&phone(&lab, "phone-waits", 5065).finish().unwrap(), Word::Ended, &control);
    let cdr = &records(&lab, 4)[3];
    assert_eq!(
        (&cdr["disposition"], &cdr["ending"]),
        (&"ANSWERED".into(), &"callee".into()),
        "{cdr}"
    );
    hangs_up.process.kill().unwrap();
    let _rings = pbx(Place::Pbx1, "pbx-rings");
    daemon.wait_until_probed(Place::Pbx1, LIMIT).unwrap();

    // Who carried the BYE is the same with XDP and without; the rest of a call is the kernel's, where there is one.
    let stats = control.ask("stats").unwrap();
    let (kernel, own) = (&stats["kernel"], &stats["daemon"]);
    assert_eq!(own["bye_recorded"], 2, "{stats}");
    let (acks, byes) = if mode == Mode::Off { (0, 0) } else { (2, 2) };
    assert_eq!(
        (&kernel["bye_recorded"], &kernel["dialog_to_pbx"]),
        (&byes.into(), &acks.into()),
        "{stats}"
    );

    let whole = ["cdr", "--dst", "nobody"];
    assert_eq!(sipline(&lab, &whole, "")["cdrs"], Value::Array(Vec::new()));

    // An end while a call goes on is written down too.
    let mut last = phone(&lab, "phone-cancels", 5066);
    wait_for(|| (control.command(&["calls"]).unwrap()["total"] == 1).then_some(()));
    let status = daemon.terminate().unwrap();
    assert!(status.success(), "{status}: {}", daemon.process.last_words());
    last.process.kill().unwrap();
    assert_eq!(records(&lab, 5)[4]["disposition"], "NO ANSWER");
}

/// A call of anna's to 200.
fn phone(lab: &Lab, scenario: &str, port: u16) -> Running {
    let line = "anna;[authentication username=anna password=secret]".to_owned();
    let phone = Sipp::caller(scenario, 1, 1).port(port).talk(TALK).inject(vec![line]);
    let phone = phone.auth_uri("200@10.10.0.1:5060");
    phone.start(lab, &format!("{scenario}-{port}")).unwrap()
}

#[track_caller]
fn expect(events: &[Event], word: Word, control: &Control) {
    let there = events.iter().any(|event| event.word == word);
    assert!(there, "{events:?}\n{}", control.ask("stats").unwrap());
}

/// The records, as soon as there are so many.
#[track_caller]
fn records(lab: &Lab, count: usize) -> Vec<Value> {
    wait_for(|| {
        let all = sipline(lab, &["cdr"], "");
        let all = all["cdrs"].as_array().unwrap();
        assert!(all.len() <= count, "{all:?}");
        (all.len() == count).then(|| all.clone())
    })
}

/// A verb that works on the store.
fn sipline(lab: &Lab, args: &[&str], input: &str) -> Value {
    let mut command = lab.command(Place::Proxy, binary().unwrap());
    command.args(args).args(["--json", "--config"]).arg(lab.dir().join("sipline.toml"));
    command.arg("--socket").arg(lab.dir().join("control.sock"));
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| {
        panic!("{args:?}: {error}: {}", String::from_utf8_lossy(&output.stdout))
    })
}

#[track_caller]
fn wait_for<T>(look: impl Fn() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(start.elapsed() < LIMIT, "not after {LIMIT:?}");
        thread::sleep(Duration::from_millis(50));
    }
}
