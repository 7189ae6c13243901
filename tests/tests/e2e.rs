//! Real calls from SIPp through the built daemon to SIPp: the same suite with XDP native, generic and off.
//!
//! Turning the kernel half off changes speed, never behaviour, so every test here holds in every mode;
//! only who did the work differs, and that is checked too.

use std::{
    fs, thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use sipline_tests::lab::{
    Control, Daemon, Event, INTERFACES, Lab, Mode, Outage, Outcome, Place, Running, Settings, Sipp,
    Story, Totals, Witness, Word, binary,
};

macro_rules! suite {
    ($($test:ident)+) => {
        mod native { $(#[test] fn $test() { super::$test(super::Mode::Native); })+ }
        mod generic { $(#[test] fn $test() { super::$test(super::Mode::Generic); })+ }
        mod off { $(#[test] fn $test() { super::$test(super::Mode::Off); })+ }
    };
}

suite! {
    calls_are_shared_between_the_pbxs
    the_pbx_may_hang_up
    a_busy_pbx_is_heard
    a_caller_may_give_up
    a_call_may_be_held
    options_are_answered
    a_drained_pbx_keeps_its_calls
    a_dead_program_costs_only_its_own_calls
    a_dead_host_costs_only_its_own_calls
    an_overloaded_pbx_costs_no_call
    calls_survive_a_killed_daemon
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
fn calls_over_ipv6_are_carried_without_xdp() {
    calls_over_ipv6(Mode::Off);
}

/// The kernel program passes IPv6 up, and the daemon serves it as without XDP.
#[test]
fn calls_over_ipv6_are_carried_beside_native() {
    calls_over_ipv6(Mode::Native);
}

/// Calls over IPv6 through both PBXs, from either end, and with one of them dead.
fn calls_over_ipv6(mode: Mode) {
    let settings = Settings { ipv6: true, ..Settings::new(mode) };
    let mut scene = Scene::with(settings.clone(), "pbx");
    let events = scene.call("caller", 50, 60);
    scene.expect_all_ended(&events, 60);
    let share = Story::new(&events, &Default::default()).share(0.0, f64::MAX);
    let (one, two) = (share["pbx1"], share["pbx2"]);
    assert!(one.abs_diff(two) <= 4, "pbx1 {one}, pbx2 {two}");
    assert_eq!(scene.control.totals().unwrap().mode, mode.to_string());
    let stats = scene.control.ask("stats").unwrap();
    let steered = |half: &str| stats[half]["invite_steered"].as_u64().unwrap();
    assert_eq!(steered("kernel"), 0, "{stats}");
    // More only if a PBX was taken for dead meanwhile: its INVITEs are steered again.
    assert!(steered("daemon") >= 60, "{stats}");
    let events = scene.call("options", 50, 10);
    assert_eq!(count(&events, Word::Ended), 10, "{events:?}");

    // ICMPv6 tells of a dead program at once.
    scene.pbx1.process.kill().unwrap();
    scene.daemon.wait_for_state(Place::Pbx1, "inactive", Duration::from_secs(4)).unwrap();
    let reason = scene.control.backend(Place::Pbx1).unwrap().reason;
    assert_eq!(reason.as_deref(), Some("port unreachable"));
    let events = scene.call("caller", 50, 20);
    scene.expect_all_ended(&events, 20);
    let share = Story::new(&events, &Default::default()).share(0.0, f64::MAX);
    assert_eq!((share.get("pbx1"), share.get("pbx2")), (None, Some(&20)));
    // Who calls over IPv4 is told that nobody is there.
    let mut caller = Sipp::caller("caller", 10, 5).start(&scene.lab, "ipv4").unwrap();
    let events = caller.finish().unwrap();
    assert_eq!(count(&events, Word::Refused), 5, "{events:?}");
    scene.end();

    let mut scene = Scene::with(settings.clone(), "pbx-hangs-up");
    let events = scene.call("caller-waits", 50, 30);
    scene.expect_all_ended(&events, 30);
    scene.end();

    let mut scene = Scene::with(settings, "pbx-rings");
    let events = scene.call("caller-cancels", 50, 30);
    scene.expect_all_ended(&events, 30);
    scene.expect_pbxs_ended(30);
    scene.end();
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

fn a_dead_program_costs_only_its_own_calls(mode: Mode) {
    a_death_costs_only_its_own_calls(mode, false);
}

fn a_dead_host_costs_only_its_own_calls(mode: Mode) {
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
fn an_overloaded_pbx_costs_no_call(mode: Mode) {
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

/// The daemon is killed while calls run. With XDP the pinned program carries them on alone; without it
/// they wait for the next daemon, and the peers' repetitions bring them through.
fn calls_survive_a_killed_daemon(mode: Mode) {
    let mut scene = Scene::new(mode, "pbx");
    let mut callers = scene.start_calls("caller", 50, 400, Duration::from_secs(1));
    thread::sleep(Duration::from_secs(2));
    scene.daemon.process.kill().unwrap();
    let killed = now();
    thread::sleep(Duration::from_secs(1));
    let ended = now();
    if mode == Mode::Off {
        assert_eq!(scene.attached(), Vec::<String>::new());
    } else {
        assert_eq!(scene.attached(), INTERFACES, "the pins hold the program");
    }
    scene.daemon = Daemon::start(&scene.lab, &scene.settings).unwrap();
    scene.control = scene.daemon.control();
    scene.base = scene.control.totals().unwrap();
    let events = callers.finish().unwrap();
    scene.expect_all_ended(&events, 400);
    if mode != Mode::Off {
        let story = Story::new(&events, &Default::default());
        let alone = story
            .calls()
            .filter_map(|(_, call)| call.answered.as_ref())
            .filter(|(at, _)| (killed..ended).contains(at))
            .count();
        assert!(alone > 30, "{alone} calls were answered while there was no daemon");
    }
    scene.expect_who_worked(mode);
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
    assert_eq!(scene.forwarding(), "0");
    let left: Vec<_> = fs::read_dir(scene.lab.pins()).map_or_else(
        |_| Vec::new(),
        |dir| dir.flatten().map(|entry| entry.path()).filter(|path| !is_empty(path)).collect(),
    );
    assert!(left.is_empty(), "pins are left: {left:?}");
}

/// The lab with a daemon and two PBXs that play the same scenario.
struct Scene {
    // In the order in which they end: those who live in the lab before the lab.
    daemon: Daemon,
    pbx1: Running,
    pbx2: Running,
    settings: Settings,
    control: Control,
    base: Totals,
    lab: Lab,
}

impl Scene {
    fn new(mode: Mode, pbx: &str) -> Self {
        Self::with(Settings::new(mode), pbx)
    }

    fn with(settings: Settings, pbx: &str) -> Self {
        let lab = Lab::new().unwrap();
        let pbx = |place: Place| {
            let pbx = Sipp::pbx(place, pbx).talk(Duration::from_millis(300));
            let pbx = if settings.ipv6 { pbx.ipv6() } else { pbx };
            pbx.start(&lab, place.name()).unwrap()
        };
        let (pbx1, pbx2) = (pbx(Place::Pbx1), pbx(Place::Pbx2));
        let daemon = Daemon::start(&lab, &settings).unwrap();
        for place in [Place::Pbx1, Place::Pbx2] {
            daemon.wait_until_probed(place, Duration::from_secs(10)).unwrap();
        }
        let control = daemon.control();
        let base = control.totals().unwrap();
        Self { daemon, pbx1, pbx2, settings, control, base, lab }
    }

    /// Plays calls to their end.
    fn call(&mut self, scenario: &str, rate: u32, calls: u32) -> Vec<Event> {
        self.start_calls(scenario, rate, calls, Duration::from_millis(300)).finish().unwrap()
    }

    fn start_calls(&self, scenario: &str, rate: u32, calls: u32, talk: Duration) -> Running {
        let caller = Sipp::caller(scenario, rate, calls).talk(talk);
        let caller = if self.settings.ipv6 { caller.ipv6() } else { caller };
        caller.start(&self.lab, "callers").unwrap()
    }

    fn expect_all_ended(&self, events: &[Event], calls: usize) {
        let placed = count(events, Word::Placed);
        let ended = count(events, Word::Ended);
        assert!(
            placed == calls && ended == calls,
            "of {calls} calls {placed} were placed, {} answered, {ended} ended, {} refused, {} silent\n{}",
            count(events, Word::Answered),
            count(events, Word::Refused),
            count(events, Word::Silent),
            self.control.ask("stats").unwrap(),
        );
    }

    fn expect_pbxs_ended(&self, calls: usize) {
        // The last ACK may still be on its way.
        thread::sleep(Duration::from_millis(300));
        let ended = |pbx: &Running| count(&pbx.events().unwrap(), Word::Ended);
        assert_eq!(ended(&self.pbx1) + ended(&self.pbx2), calls);
    }

    /// With XDP nearly all is done in the kernel, without it nothing is.
    fn expect_who_worked(&self, mode: Mode) {
        let totals = self.control.totals().unwrap();
        assert_eq!(totals.mode, mode.to_string());
        let Totals { kernel, daemon, .. } = totals.since(&self.base);
        if mode == Mode::Off {
            assert!(kernel == 0 && daemon > 0, "kernel {kernel}, daemon {daemon}");
        } else {
            assert!(kernel > 9 * daemon, "kernel {kernel}, daemon {daemon}");
        }
    }

    /// The proxy's interfaces that have an XDP program.
    fn attached(&self) -> Vec<String> {
        let has_xdp = |interface: &str| {
            let link = self.lab.run(Place::Proxy, "ip", &["-details", "link", "show", interface]);
            link.unwrap().contains("prog/xdp")
        };
        INTERFACES.into_iter().filter(|interface| has_xdp(interface)).map(str::to_owned).collect()
    }

    /// Whether the proxy's `lo` forwards: the daemon needs that for route lookups, and only while it runs.
    fn forwarding(&self) -> String {
        let path = "/proc/sys/net/ipv4/conf/lo/forwarding";
        self.lab.run(Place::Proxy, "cat", &[path]).unwrap().trim().to_owned()
    }

    /// Ends the scene: nothing may have been damaged on the way.
    fn end(mut self) {
        for place in Place::ALL {
            let snmp = self.lab.run(place, "cat", &["/proc/net/snmp"]).unwrap();
            let wrong = udp_counter(&snmp, "InCsumErrors");
            assert_eq!(wrong, 0, "datagrams with a wrong checksum reached {}", place.name());
            let snmp6 = self.lab.run(place, "cat", &["/proc/net/snmp6"]).unwrap();
            let wrong = snmp6.lines().find_map(|line| line.strip_prefix("Udp6InCsumErrors"));
            assert_eq!(wrong.map(str::trim), Some("0"), "over IPv6, at {}", place.name());
        }
        let status = self.daemon.terminate().unwrap();
        assert!(status.success(), "{status}: {}", self.daemon.process.last_words());
    }
}

fn count(events: &[Event], word: Word) -> usize {
    events.iter().filter(|event| event.word == word).count()
}

/// A counter of UDP in `/proc/net/snmp`, where one line has the names and the next the numbers.
fn udp_counter(snmp: &str, name: &str) -> u64 {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, numbers) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|field| field == name).unwrap();
    numbers.split(' ').nth(at).unwrap().parse().unwrap()
}

fn is_empty(path: &std::path::Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut dir| dir.next().is_none())
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}
