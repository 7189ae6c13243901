//! Calls, and what is kept of them: shown while they go on, and stored when they are over. Those of phones with a password,
//! and those of trusted networks, which the kernel alone carries. The same with XDP native and without.

use std::io::Write;
use std::process::Stdio;
use std::thread;
use std::time::Duration;

use serde_json::Value;
use sipline_tests::lab::{
    Control, Daemon, Event, Lab, Mode, Place, Running, Settings, Sipp, Word, binary, wait_for,
};

/// How long what takes a moment may take.
const LIMIT: Duration = Duration::from_secs(10);
/// How long calls last.
const TALK: Duration = Duration::from_secs(3);
/// Of one that is looked at meanwhile.
const TALK_LONGER: Duration = Duration::from_millis(2_500);

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
    let shown = wait_for(LIMIT, || {
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
    wait_for(LIMIT, || (control.command(&["calls"]).unwrap()["total"] == 1).then_some(()));
    let status = daemon.terminate().unwrap();
    assert!(status.success(), "{status}: {}", daemon.process.last_words());
    last.process.kill().unwrap();
    assert_eq!(records(&lab, 5)[4]["disposition"], "NO ANSWER");
}

/// The calls of a trusted network have the same records whether the daemon has carried them or has never seen them.
#[test]
fn calls_that_only_the_kernel_carries_are_recorded_alike() {
    recorded_alike(false);
}

/// The same over IPv6.
#[test]
fn calls_over_ipv6_that_only_the_kernel_carries_are_recorded_alike() {
    recorded_alike(true);
}

fn recorded_alike(ipv6: bool) {
    let (by_kernel, stats) = steered_calls(Mode::Native, ipv6);
    let (by_daemon, _) = steered_calls(Mode::Off, ipv6);
    assert_eq!(by_kernel, by_daemon);
    // It was the kernel alone: three calls that were answered, with two ends each, and two that were not.
    let (kernel, own) = (&stats["kernel"], &stats["daemon"]);
    let counted = |half: &Value, name: &str| half[name].as_u64().unwrap();
    assert_eq!(counted(kernel, "invite_steered"), 5, "{stats}");
    assert_eq!(counted(kernel, "calls_reported"), 8, "{stats}");
    assert_eq!(counted(kernel, "calls_unreported"), 0, "{stats}");
    for name in ["invite_steered", "response_forwarded", "dialog_to_pbx", "dialog_to_phone"] {
        assert_eq!(counted(own, name), 0, "{name} {stats}");
    }
}

/// The records of five calls, without what cannot be equal.
fn steered_calls(mode: Mode, ipv6: bool) -> (Vec<Value>, Value) {
    let settings = Settings { registrar: true, ipv6, ..Settings::new(mode) };
    let of_family = |sipp: Sipp| if ipv6 { sipp.ipv6() } else { sipp };
    let lab = Lab::new().unwrap();
    let mut daemon = Daemon::start(&lab, &settings).unwrap();
    let control = daemon.control();
    control.command(&["backends", "disable", "pbx2"]).unwrap();
    let mut port = 5070;
    let mut call = |pbx: &str, caller: &str, talk: Duration| {
        port += 1;
        let name = format!("{pbx}-{port}");
        let pbx = of_family(Sipp::pbx(Place::Pbx1, pbx).talk(talk));
        let mut pbx = pbx.start(&lab, &name).unwrap();
        daemon.wait_until_probed(Place::Pbx1, LIMIT).unwrap();
        let caller = of_family(Sipp::caller(caller, 1, 1).port(port).talk(talk));
        let mut caller = caller.start(&lab, &format!("caller-{port}")).unwrap();
        if talk == TALK_LONGER {
            let shown = wait_for(LIMIT, || {
                let shown = control.command(&["calls", "list"]).unwrap();
                (shown["calls"][0]["state"] == "answered").then_some(shown)
            });
            let one = &shown["calls"][0];
            assert_eq!((&one["from"], &one["pbx"]), (&"phone1".into(), &"pbx1".into()), "{shown}");
        }
        let events = caller.finish().unwrap();
        pbx.process.kill().unwrap();
        events
    };
    let half = Duration::from_millis(1_500);
    expect(&call("pbx", "caller", TALK_LONGER), Word::Ended, &control);
    expect(&call("pbx-hangs-up", "caller-waits", half), Word::Ended, &control);
    expect(&call("pbx-busy", "caller-refused", half), Word::Ended, &control);
    expect(&call("pbx-rings", "caller-cancels", half), Word::Ended, &control);
    expect(&call("pbx", "caller", half), Word::Ended, &control);
    let records = records(&lab, 5);
    let what: Vec<_> = records
        .iter()
        .map(|cdr| ["disposition", "ending"].map(|column| cdr[column].as_str().unwrap().to_owned()))
        .collect();
    assert_eq!(
        what,
        [
            ["ANSWERED", "caller"],
            ["ANSWERED", "callee"],
            ["BUSY", "refused"],
            ["NO ANSWER", "cancelled"],
            ["ANSWERED", "caller"],
        ],
        "{mode} {records:?}"
    );
    assert_eq!((&records[0]["billsec"], &records[4]["billsec"]), (&2.into(), &1.into()));
    assert_eq!(records[1]["sip_code"], 200, "{mode} {records:?}");
    for (cdr, answered) in records.iter().zip([true, true, false, false, true]) {
        assert_eq!(cdr["answerdate"].is_string(), answered, "{cdr}");
        assert_eq!(cdr["dstchannel"], "pbx1", "{cdr}");
    }
    let stats = control.ask("stats").unwrap();
    let status = daemon.terminate().unwrap();
    assert!(status.success(), "{status}: {}", daemon.process.last_words());
    let own = ["calldate", "answerdate", "enddate", "uniqueid", "call_id"];
    let mut records = records;
    for cdr in &mut records {
        let columns = cdr.as_object_mut().unwrap();
        own.iter().for_each(|column| _ = columns.remove(*column));
    }
    (records, stats)
}

/// A daemon that is killed, or replaced, in the middle of calls: each has one record all the same, also where it ended while
/// nobody was there.
#[test]
fn a_call_has_one_record_whoever_is_there_at_its_end() {
    let settings = Settings { registrar: true, keep: true, ..Settings::new(Mode::Native) };
    let lab = Lab::new().unwrap();
    let _pbx = Sipp::pbx(Place::Pbx1, "pbx").start(&lab, "pbx").unwrap();
    let mut daemon = Daemon::start(&lab, &settings).unwrap();
    daemon.control().command(&["backends", "disable", "pbx2"]).unwrap();
    daemon.wait_until_probed(Place::Pbx1, LIMIT).unwrap();
    let caller = |port, seconds| {
        let caller = Sipp::caller("caller", 1, 1).port(port).talk(Duration::from_secs(seconds));
        caller.start(&lab, &format!("caller-{port}")).unwrap()
    };
    let talk = |count: usize| {
        let control = daemon.control();
        wait_for(LIMIT, || {
            let shown = control.command(&["calls", "list"]).unwrap();
            let calls = shown["calls"].as_array().unwrap();
            let answered = calls.iter().filter(|call| call["state"] == "answered").count();
            (answered == count).then_some(())
        });
    };
    let mut callers = [caller(5071, 8), caller(5072, 16), caller(5073, 24)];
    talk(3);
    daemon.process.kill().unwrap();
    // Long enough that nobody vouches for it any more.
    thread::sleep(Duration::from_secs(2));
    let mut new = caller(5074, 1);
    expect(&callers[0].finish().unwrap(), Word::Ended, &daemon.control());
    expect(&new.finish().unwrap(), Word::Ended, &daemon.control());
    let mut daemon = Daemon::start(&lab, &settings).unwrap();
    let control = daemon.control();
    let cdrs = records(&lab, 2);
    talked(&cdrs, &[8, 1]);
    assert_eq!(control.command(&["calls"]).unwrap()["total"], 2);
    expect(&callers[1].finish().unwrap(), Word::Ended, &control);
    records(&lab, 3);
    let status = daemon.terminate().unwrap();
    assert!(status.success(), "{status}: {}", daemon.process.last_words());
    let _daemon = Daemon::start(&lab, &settings).unwrap();
    expect(&callers[2].finish().unwrap(), Word::Ended, &control);
    let cdrs = records(&lab, 4);
    talked(&cdrs, &[8, 16, 24, 1]);
    for cdr in &cdrs {
        assert_eq!(
            (&cdr["disposition"], &cdr["ending"]),
            (&"ANSWERED".into(), &"caller".into()),
            "{cdr}"
        );
        assert_eq!((&cdr["src"], &cdr["dstchannel"]), (&"phone1".into(), &"pbx1".into()), "{cdr}");
    }
}

/// Whole seconds from the answer to the end; on a busy machine one more.
#[track_caller]
fn talked(cdrs: &[Value], seconds: &[u64]) {
    let talked: Vec<_> = cdrs.iter().map(|cdr| cdr["billsec"].as_u64().unwrap()).collect();
    let right = |(is, want): (&u64, &u64)| (*want..=want + 1).contains(is);
    assert!(talked.iter().zip(seconds).all(right), "{talked:?}: {cdrs:?}");
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
    wait_for(LIMIT, || {
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
