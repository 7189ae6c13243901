//! Metrics, health and readiness over HTTP, as an operator's tools read them from a daemon that works.

use std::{
    collections::BTreeMap,
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use sipline_tests::{
    kernel::in_namespace,
    lab::{Daemon, Lab, Mode, Place, Settings, Sipp, Word},
};

const LISTEN: &str = "127.0.0.1:9090";

#[test]
fn counters_grow_and_readiness_follows_the_pbxs() {
    let mut scene = Scene::new();
    assert_eq!(scene.get("/health"), (200, "healthy\n".into()));
    assert_eq!(scene.get("/ready"), (200, "ready, 2 of 2 PBXs active\n".into()));
    assert_eq!(scene.get("/").0, 404);
    assert_eq!(scene.ask("POST /metrics HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n\r\n").0, 405);

    let before = scene.metrics();
    assert_eq!(before["sipline_xdp_mode{mode=\"off\"}"], 1.0);
    assert_eq!(before["sipline_pbx_state{pbx=\"pbx1\",state=\"active\"}"], 1.0);
    assert!(before["sipline_pbx_probe_round_trip_seconds{pbx=\"pbx1\"}"] < 1.0);
    let started = before["process_start_time_seconds"];
    assert!((now() - started) < 30.0, "{started}");

    let events = Sipp::caller("options", 50, 20).start(&scene.lab, "phones").unwrap().finish();
    assert_eq!(events.unwrap().iter().filter(|event| event.word == Word::Ended).count(), 20);
    let caller = Sipp::caller("caller", 50, 20).talk(Duration::from_millis(300));
    let events = caller.start(&scene.lab, "callers").unwrap().finish();
    assert_eq!(events.unwrap().iter().filter(|event| event.word == Word::Ended).count(), 20);
    let after = scene.metrics();
    let grown = |name: &str| after[name] - before[name];
    // More if one was repeated on a slow machine.
    assert!(grown("sipline_daemon_decisions_total{reason=\"options_answered\"}") >= 20.0);
    assert_eq!(grown("sipline_daemon_decisions_total{reason=\"invite_steered\"}"), 20.0);
    let placed = ["pbx1", "pbx2"]
        .map(|pbx| grown(&format!("sipline_pbx_calls_total{{pbx=\"{pbx}\",half=\"daemon\"}}")));
    assert_eq!(placed, [10.0, 10.0]);
    assert!(grown("sipline_daemon_datagrams_received_total") >= 100.0);
    assert!(grown("sipline_daemon_datagrams_sent_total") >= 100.0);
    assert_eq!(
        after["sipline_kernel_packets_total{reason=\"options_answered\",way=\"sent\"}"],
        0.0
    );
    assert_eq!(after["process_start_time_seconds"], started, "it does not move");
    let address = format!("{}:5060", Place::Proxy.address());
    assert_eq!(after[&format!("sipline_socket_drops_total{{address=\"{address}\"}}")], 0.0);
    // The same numbers as the control socket's.
    let stats = scene.daemon.control().ask("stats").unwrap();
    let told = stats["daemon"]["options_answered"].as_f64().unwrap();
    assert_eq!(after["sipline_daemon_decisions_total{reason=\"options_answered\"}"], told);

    // One dead PBX is no reason to be left out, two are.
    scene.kill(0);
    assert_eq!(scene.get("/ready"), (200, "ready, 1 of 2 PBXs active\n".into()));
    scene.kill(1);
    let (code, text) = scene.get("/ready");
    assert_eq!(code, 503, "{text}");
    assert!(text.starts_with("no PBX takes calls; pbx1 is inactive: "), "{text}");
    assert!(text.contains("; pbx2 is inactive: "), "{text}");
    let all = scene.metrics();
    assert_eq!(all["sipline_pbx_state{pbx=\"pbx1\",state=\"active\"}"], 0.0);
    assert_eq!(all["sipline_pbx_state{pbx=\"pbx1\",state=\"inactive\"}"], 1.0);
    assert!(all["sipline_pbx_probe_failures{pbx=\"pbx1\"}"] >= 1.0);
    assert_eq!(scene.get("/health").0, 200, "the daemon itself is well");
}

/// A reload does not move the address, and says so. SIGTERM is seen at once by who asks, and clients that
/// are connected and silent hold nobody up.
#[test]
fn the_end_is_announced_and_waits_for_nobody() {
    let mut scene = Scene::new();
    let config = scene.lab.dir().join("sipline.toml");
    let text = fs::read_to_string(&config).unwrap().replace(LISTEN, "127.0.0.1:9091");
    fs::write(&config, text).unwrap();
    let told = scene.daemon.control().command(&["reload"]).unwrap();
    assert_eq!(told["restart_needed"], serde_json::json!(["metrics.listen"]), "{told}");
    assert_eq!(scene.get("/ready").0, 200);

    let mut half = scene.connect().unwrap();
    half.write_all(b"GET /metrics HTTP/1.1\r\n").unwrap();
    let _control = UnixStream::connect(scene.lab.dir().join("control.sock")).unwrap();
    // It is connected for the daemon too.
    scene.daemon.control().ask("backends").unwrap();

    scene.daemon.process.signal(libc::SIGTERM).unwrap();
    // Within the two seconds for which calls that are being set up can still finish.
    let start = Instant::now();
    let stopping = loop {
        let (code, text) = scene.get("/ready");
        if code == 503 || start.elapsed() > Duration::from_secs(1) {
            break text;
        }
        thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(stopping, "stopping: new calls are refused\n");
    assert_eq!(scene.metrics()["sipline_stopping"], 1.0);
    let status = scene.daemon.process.wait(Duration::from_secs(10)).unwrap();
    assert!(status.success(), "{status}: {}", scene.daemon.process.last_words());
}

#[test]
fn an_address_that_is_taken_is_named() {
    let scene = Scene::new();
    let config = scene.lab.dir().join("second.toml");
    let first = fs::read_to_string(scene.lab.dir().join("sipline.toml")).unwrap();
    let second = first.replace("control.sock", "second.sock").replace(":5060\"", ":5070\"");
    fs::write(&config, second).unwrap();
    let binary = sipline_tests::lab::binary().unwrap();
    let mut command = scene.lab.command(Place::Proxy, binary);
    let output = command.arg("run").arg("--config").arg(&config).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains(&format!("metrics.listen: cannot listen on {LISTEN}")), "{text}");
    assert_eq!(scene.get("/health").0, 200, "the first one goes on");
}

/// A daemon without XDP, and its PBXs.
struct Scene {
    // In the order in which they end: those who live in the lab before the lab.
    daemon: Daemon,
    pbxs: Vec<sipline_tests::lab::Running>,
    lab: Lab,
}

impl Scene {
    fn new() -> Self {
        let lab = Lab::new().unwrap();
        let pbxs = [Place::Pbx1, Place::Pbx2].map(|place| {
            let pbx = Sipp::pbx(place, "pbx").talk(Duration::from_millis(300));
            pbx.start(&lab, place.name()).unwrap()
        });
        let settings = Settings { metrics: LISTEN.parse().ok(), ..Settings::new(Mode::Off) };
        let daemon = Daemon::start(&lab, &settings).unwrap();
        for place in [Place::Pbx1, Place::Pbx2] {
            daemon.wait_until_probed(place, Duration::from_secs(10)).unwrap();
        }
        Self { daemon, pbxs: pbxs.into(), lab }
    }

    /// Kills a PBX, and waits until the daemon knows.
    fn kill(&mut self, at: usize) {
        self.pbxs[at].process.kill().unwrap();
        let place = [Place::Pbx1, Place::Pbx2][at];
        self.daemon.wait_for_state(place, "inactive", Duration::from_secs(6)).unwrap();
    }

    fn connect(&self) -> Result<TcpStream> {
        let address: SocketAddr = LISTEN.parse()?;
        let stream = in_namespace(&self.lab.namespace_file(Place::Proxy), || {
            TcpStream::connect(address).context("nobody listens")
        })?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        Ok(stream)
    }

    /// Status code and text of the answer to a whole request.
    fn ask(&self, request: &str) -> (u16, String) {
        let mut stream = self.connect().unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        let (head, body) = text.split_once("\r\n\r\n").expect("the end of the head");
        let code = head.split(' ').nth(1).and_then(|code| code.parse().ok());
        (code.expect("a status code"), body.to_owned())
    }

    fn get(&self, path: &str) -> (u16, String) {
        self.ask(&format!("GET {path} HTTP/1.1\r\nHost: {LISTEN}\r\n\r\n"))
    }

    /// All samples.
    fn metrics(&self) -> BTreeMap<String, f64> {
        let (code, text) = self.get("/metrics");
        assert_eq!(code, 200, "{text}");
        let samples = text.lines().filter(|line| !line.starts_with('#'));
        let parsed = samples.map(|line| {
            let (name, value) = line.rsplit_once(' ').expect(line);
            (name.to_owned(), value.parse().expect(line))
        });
        parsed.collect()
    }
}

fn now() -> f64 {
    let now = std::time::SystemTime::now();
    now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs_f64()
}
