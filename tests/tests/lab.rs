//! The lab by itself: it carries calls, and nothing is left of it.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use sipline_tests::lab::{Lab, Outcome, Place, Sipp, Story, Witness, Word};

/// Every scenario against its counterpart, by plain routing and without the proxy: what fails with the
/// proxy between them is then the proxy's fault.
#[test]
fn scenarios_agree_with_each_other_without_a_proxy() {
    let lab = Lab::new().unwrap();
    let forwarding = lab.namespace_file(Place::Proxy);
    assert!(forwarding.exists());
    lab.run(Place::Proxy, "sh", &["-c", "echo 1 > /proc/sys/net/ipv4/ip_forward"]).unwrap();
    for (number, (caller, pbx)) in [
        ("caller", "pbx"),
        ("caller-waits", "pbx-hangs-up"),
        ("caller-refused", "pbx-busy"),
        ("caller-cancels", "pbx-rings"),
        ("caller-holds", "pbx-holds"),
    ]
    .into_iter()
    .enumerate()
    {
        let server = Sipp::pbx(Place::Pbx1, pbx).talk(Duration::from_millis(100));
        let server = server.start(&lab, &format!("pbx-{number}")).unwrap();
        let witness = Witness::start(&lab, Place::Pbx1).unwrap();
        let events = Sipp::caller(caller, 20, 10)
            .target(Place::Pbx1.address())
            .talk(Duration::from_millis(100))
            .start(&lab, &format!("caller-{number}"))
            .unwrap()
            .finish()
            .unwrap();
        let count = |word| events.iter().filter(|event| event.word == word).count();
        assert_eq!(count(Word::Placed), 10, "{caller}");
        assert_eq!(count(Word::Ended), 10, "{caller}: {events:#?}");

        let reached = witness.finish().unwrap();
        assert_eq!(reached.len(), 10, "{caller}: the witness sees every INVITE");
        if caller == "caller" {
            let story = Story::new(&events, &reached);
            assert_eq!(story.count(Outcome::Answered, None), 10);
            assert_eq!(story.share(0.0, f64::MAX)["pbx1"], 10);
        }
        drop(server);
    }
}

/// The paths of everything that a lab makes outside its processes.
fn traces(lab: &Lab) -> Vec<std::path::PathBuf> {
    let mut traces: Vec<_> = Place::ALL.iter().map(|place| lab.namespace_file(*place)).collect();
    traces.push(lab.dir().to_owned());
    traces.push(lab.pins());
    traces
}

/// Whether a file is there, or a process runs. One that has ended and that nobody has asked about is
/// still listed, and no longer ours to end.
fn is_there(path: &str) -> bool {
    if !path.starts_with("/proc/") {
        return Path::new(path).exists();
    }
    fs::read_to_string(Path::new(path).join("stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

#[test]
fn nothing_is_left_when_a_lab_is_dropped() {
    let lab = Lab::new().unwrap();
    fs::create_dir(lab.pins()).unwrap();
    let pbx = Sipp::pbx(Place::Pbx1, "pbx").start(&lab, "pbx").unwrap();
    let pid = pbx.process.pid();
    let traces = traces(&lab);
    assert!(traces.iter().all(|path| path.exists()));
    drop(pbx);
    drop(lab);
    assert!(traces.iter().all(|path| !path.exists()), "{traces:?}");
    assert!(!is_there(&format!("/proc/{pid}")));
}

#[test]
fn nothing_is_left_when_a_test_panics() {
    let (sender, receiver) = std::sync::mpsc::channel();
    let panicked = thread::spawn(move || {
        let lab = Lab::new().unwrap();
        let pbx = Sipp::pbx(Place::Pbx1, "pbx").start(&lab, "pbx").unwrap();
        sender.send((traces(&lab), pbx.process.pid())).unwrap();
        panic!("as a failing test would");
    })
    .join();
    assert!(panicked.is_err());
    let (traces, pid) = receiver.recv().unwrap();
    assert!(traces.iter().all(|path| !path.exists()), "{traces:?}");
    assert!(!is_there(&format!("/proc/{pid}")));
}

/// Not a test of its own: the body of the next two, run in a process that is then ended from outside.
#[test]
#[ignore = "started by nothing_is_left_after_a_signal and nothing_is_left_after_a_kill"]
fn a_lab_that_waits_to_be_ended() {
    let lab = Lab::new().unwrap();
    let pbx = Sipp::pbx(Place::Pbx1, "pbx").start(&lab, "pbx").unwrap();
    let note = std::env::var("SIPLINE_LAB_NOTE").unwrap();
    let mut lines: Vec<String> =
        traces(&lab).iter().map(|path| path.display().to_string()).collect();
    lines.push(format!("/proc/{}", pbx.process.pid()));
    let part = format!("{note}.part");
    fs::write(&part, lines.join("\n")).unwrap();
    fs::rename(part, note).unwrap();
    thread::sleep(Duration::from_secs(60));
}

/// Starts the lab above in a process of its own, ends that with a signal, and returns what it had made.
fn lab_ended_by(signal: i32) -> Vec<String> {
    let note = std::env::temp_dir().join(format!("sipline-note-{}-{signal}", std::process::id()));
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "a_lab_that_waits_to_be_ended", "--ignored"])
        .env("SIPLINE_LAB_NOTE", &note)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let start = Instant::now();
    while !note.exists() {
        assert!(start.elapsed() < Duration::from_secs(20), "the lab does not come up");
        thread::sleep(Duration::from_millis(50));
    }
    let made: Vec<String> = fs::read_to_string(&note).unwrap().lines().map(str::to_owned).collect();
    fs::remove_file(&note).unwrap();
    assert!(made.iter().filter(|path| Path::new(path).exists()).count() >= 6, "{made:?}");
    // SAFETY: kill touches no memory; the child has not been waited for.
    unsafe { libc::kill(child.id().cast_signed(), signal) };
    child.wait().unwrap();
    made
}

#[test]
fn nothing_is_left_after_a_signal() {
    for signal in [libc::SIGINT, libc::SIGTERM] {
        let made = lab_ended_by(signal);
        let left: Vec<_> = made.iter().filter(|path| Path::new(path).exists()).collect();
        assert!(left.is_empty(), "signal {signal}: {left:?}");
    }
}

#[test]
fn nothing_is_left_after_a_kill_once_the_next_lab_starts() {
    let made = lab_ended_by(libc::SIGKILL);
    let next = Lab::new().unwrap();
    // The kernel ends the children of a killed process by itself, a moment later.
    let start = Instant::now();
    let left = loop {
        let left: Vec<_> = made.iter().filter(|path| is_there(path)).collect();
        if left.is_empty() || start.elapsed() > Duration::from_secs(5) {
            break left;
        }
        thread::sleep(Duration::from_millis(20));
    };
    assert!(left.is_empty(), "{left:?}");
    drop(next);
}
