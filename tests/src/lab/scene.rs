//! The lab with a daemon and two PBXs, for tests: what is not as it should be is a panic.

use std::{
    fs,
    io::Write,
    path::Path,
    process::Stdio,
    thread,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use serde_json::Value;

use super::{
    Control, Daemon, Event, INTERFACES, Lab, Mode, Place, Running, Settings, Sipp, Totals, Word,
    binary,
};

/// The lab with a daemon and two PBXs that play the same scenario.
#[derive(Debug)]
pub struct Scene {
    // In the order in which they end: those who live in the lab before the lab.
    /// The daemon under test.
    pub daemon: Daemon,
    /// The first PBX.
    pub pbx1: Running,
    /// The second.
    pub pbx2: Running,
    /// What the daemon is configured with, and the next one is.
    pub settings: Settings,
    /// The daemon's control command.
    pub control: Control,
    /// What it had done when the scene began.
    pub base: Totals,
    /// Where all of them live.
    pub lab: Lab,
}

impl Scene {
    /// Both PBXs play the scenario `pbx`, and the proxy uses them.
    #[track_caller]
    pub fn new(mode: Mode, pbx: &str) -> Self {
        Self::with(Settings::new(mode), pbx)
    }

    /// The same, with settings of the test's own.
    #[track_caller]
    pub fn with(settings: Settings, pbx: &str) -> Self {
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

    /// Starts the next daemon in place of one that has ended.
    pub fn start_again(&mut self) {
        self.daemon = Daemon::start(&self.lab, &self.settings).unwrap();
        self.control = self.daemon.control();
        self.base = self.control.totals().unwrap();
    }

    /// Runs a verb that works on the store, with its input; gives what it prints with `--json`.
    pub fn sipline(&self, args: &[&str], input: &str) -> Value {
        let mut command = self.lab.command(Place::Proxy, binary().unwrap());
        command.args(args).args(["--json", "--config"]).arg(self.lab.dir().join("sipline.toml"));
        command.arg("--socket").arg(self.lab.dir().join("control.sock"));
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
        let output = child.wait_with_output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    }

    /// Plays calls to their end.
    pub fn call(&mut self, scenario: &str, rate: u32, calls: u32) -> Vec<Event> {
        self.start_calls(scenario, rate, calls, Duration::from_millis(300)).finish().unwrap()
    }

    /// Starts callers.
    pub fn start_calls(&self, scenario: &str, rate: u32, calls: u32, talk: Duration) -> Running {
        let caller = Sipp::caller(scenario, rate, calls).talk(talk);
        let caller = if self.settings.ipv6 { caller.ipv6() } else { caller };
        caller.start(&self.lab, "callers").unwrap()
    }

    /// So many calls were placed, and each has ended as its scenario says.
    #[track_caller]
    pub fn expect_all_ended(&self, events: &[Event], calls: usize) {
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

    /// Both PBXs together have ended so many calls.
    #[track_caller]
    pub fn expect_pbxs_ended(&self, calls: usize) {
        // The last ACK may still be on its way.
        thread::sleep(Duration::from_millis(300));
        let ended = |pbx: &Running| count(&pbx.events().unwrap(), Word::Ended);
        assert_eq!(ended(&self.pbx1) + ended(&self.pbx2), calls);
    }

    /// With XDP nearly all is done in the kernel, without it nothing is.
    pub fn expect_who_worked(&self, mode: Mode) {
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
    pub fn attached(&self) -> Vec<String> {
        let has_xdp = |interface: &str| {
            let link = self.lab.run(Place::Proxy, "ip", &["-details", "link", "show", interface]);
            link.unwrap().contains("prog/xdp")
        };
        INTERFACES.into_iter().filter(|interface| has_xdp(interface)).map(str::to_owned).collect()
    }

    /// Whether the proxy's `lo` forwards packets of `ipv4` or `ipv6`: the daemon needs that for route lookups, and only
    /// while it runs.
    pub fn forwarding(&self, family: &str) -> String {
        let path = format!("/proc/sys/net/{family}/conf/lo/forwarding");
        self.lab.run(Place::Proxy, "cat", &[&path]).unwrap().trim().to_owned()
    }

    /// Ends the scene: nothing may have been damaged on the way.
    pub fn end(mut self) {
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

/// How often something has happened.
pub fn count(events: &[Event], word: Word) -> usize {
    events.iter().filter(|event| event.word == word).count()
}

/// A counter of UDP in `/proc/net/snmp`, where one line has the names and the next the numbers.
fn udp_counter(snmp: &str, name: &str) -> u64 {
    let mut lines = snmp.lines().filter_map(|line| line.strip_prefix("Udp: "));
    let (names, numbers) = (lines.next().unwrap(), lines.next().unwrap());
    let at = names.split(' ').position(|field| field == name).unwrap();
    numbers.split(' ').nth(at).unwrap().parse().unwrap()
}

/// Whether a directory is there and has nothing in it.
pub fn is_empty(path: &Path) -> bool {
    fs::read_dir(path).is_ok_and(|mut dir| dir.next().is_none())
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}
