use std::collections::{BTreeMap, BTreeSet};
use std::time::{Instant, SystemTime};

use super::*;
use crate::config::{AdminState, NoDestination, PbxConfig, PbxLimits, Probe, Trust};
use crate::control::protocol::{Backend, SocketStats, XdpStats};
use crate::control::status::{Banned, Course, Tally};
use crate::core::bans::Bans;
use crate::core::counters::Counters;
use crate::core::dispatcher::{Dispatcher, Unreachable};
use crate::core::proxy::{Policy, Proxy};
use crate::core::sources::Sources;
use crate::core::stateful;
use crate::fastpath::Attachment;
use crate::fastpath::off::Off;
use crate::store;

// ---- A strict reader of the format ----------------------------------------------------------------

#[derive(Debug)]
struct Metric {
    kind: String,
    samples: BTreeMap<BTreeMap<String, String>, f64>,
}

impl Metric {
    #[track_caller]
    fn at(&self, labels: &[(&str, &str)]) -> f64 {
        let labels: BTreeMap<_, _> =
            labels.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        self.samples[&labels]
    }

    /// The values of a label of the samples that are 1; all others must be 0.
    fn hot(&self, label: &str) -> Vec<&str> {
        let hot = |value: f64| match value {
            0.0 => false,
            1.0 => true,
            _ => panic!("{value} is neither 0 nor 1"),
        };
        self.samples
            .iter()
            .filter(|(_, v)| hot(**v))
            .map(|(labels, _)| &labels[label][..])
            .collect()
    }
}

fn is_name(text: &str) -> bool {
    let letter = |b: u8| b.is_ascii_alphabetic() || b == b'_';
    text.bytes().next().is_some_and(letter) && text.bytes().all(|b| letter(b) || b.is_ascii_digit())
}

/// Reads `{name="value",...}`, which may be missing, and what follows it.
fn labels(mut text: &str) -> (BTreeMap<String, String>, &str) {
    let mut labels = BTreeMap::new();
    let Some(inner) = text.strip_prefix('{') else { return (labels, text) };
    text = inner;
    loop {
        let (name, rest) = text.split_once("=\"").expect("a label");
        assert!(is_name(name) && !name.starts_with("__"), "{name}");
        let mut value = String::new();
        let mut chars = rest.char_indices();
        let end = loop {
            match chars.next().expect("an end of the value") {
                (at, '"') => break at,
                (_, '\\') => value.push(match chars.next().expect("what is escaped").1 {
                    'n' => '\n',
                    c @ ('"' | '\\') => c,
                    c => panic!("\\{c}"),
                }),
                (_, c) => value.push(c),
            }
        };
        assert_eq!(labels.insert(name.to_owned(), value), None, "{name} twice");
        text = &rest[end + 1..];
        match text.split_at(1) {
            (",", rest) => text = rest,
            ("}", rest) => return (labels, rest),
            _ => panic!("{text}"),
        }
    }
}

/// Every metric has its HELP, its TYPE and then its samples, and nothing else stands there.
fn read(text: &str) -> BTreeMap<String, Metric> {
    assert!(text.ends_with('\n'));
    let mut metrics: BTreeMap<String, Metric> = BTreeMap::new();
    let mut lines = text.lines().peekable();
    while let Some(line) = lines.next() {
        let (name, help) =
            line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')).expect(line);
        assert!(is_name(name), "{line}");
        assert!(!help.trim().is_empty() && help.trim() == help, "{line}");
        let kind = lines.next().and_then(|line| line.strip_prefix(&format!("# TYPE {name} ")));
        let kind = kind.expect(name);
        assert!(["counter", "gauge"].contains(&kind), "{name} {kind}");
        assert_eq!(kind == "counter", name.ends_with("_total"), "{name} {kind}");
        let mut metric = Metric { kind: kind.to_owned(), samples: BTreeMap::new() };
        while let Some(line) = lines.next_if(|line| !line.starts_with('#')) {
            let (labels, value) = labels(line.strip_prefix(name).expect(line));
            let value: f64 = value.strip_prefix(' ').expect(line).parse().expect(line);
            assert!(value.is_finite() && value >= 0.0, "{line}");
            assert!(kind == "gauge" || value.fract() == 0.0, "{line}");
            assert_eq!(metric.samples.insert(labels, value), None, "twice: {line}");
        }
        assert!(metrics.insert(name.to_owned(), metric).is_none(), "{name} twice");
    }
    metrics
}

// ---- What is read -----------------------------------------------------------------------------------

fn status() -> Status {
    let pbx = |id: &str, state: &str| Backend {
        id: id.into(),
        slot: 0,
        address: "192.0.2.11:5060".parse().unwrap(),
        weight: 3,
        state: state.into(),
        reason: None,
        since: 0,
        for_ms: 0,
        admin: AdminState::Active,
        origin: "file".into(),
        last_probe: None,
        round_trip_us: None,
        failures: 0,
        kernel_calls: 0,
        daemon_calls: 0,
    };
    let now = Instant::now();
    Status {
        at: SystemTime::now(),
        course: Course {
            started: now,
            started_at: SystemTime::now(),
            beaten: now,
            stopping: false,
            write_failures: 2,
        },
        xdp: XdpStats {
            mode: Mode::Generic,
            interfaces: vec![
                Attachment { interface: "eth0".into(), mode: Mode::Native },
                Attachment { interface: "a\"\\\nb".into(), mode: Mode::Generic },
            ],
            description: String::new(),
            write_failures: 2,
        },
        kernel: (0..).take(Reason::ALL.len()).collect(),
        events: EventCounts { copied: 5, uncopied: 1, told: 9, untold: 2 },
        daemon: Counters::default(),
        backends: vec![
            Backend {
                round_trip_us: Some(1_500),
                kernel_calls: u64::MAX,
                daemon_calls: 7,
                ..pbx("pbx1", "active")
            },
            Backend { failures: 4, ..pbx("pbx2", "inactive") },
        ],
        sockets: vec![SocketStats {
            address: "[2001:db8::1]:5060".parse().unwrap(),
            dropped: 3,
            receive_buffer: 4096,
        }],
        memory: Some(Memory {
            users: 3,
            contacts: 4,
            done: stateful::Counts { forked: 7, forked_unanswered: 2, ..Default::default() },
            store: store::Counters { written_cdrs: 5, connected: true, ..Default::default() },
            ..Memory::default()
        }),
        bans: Banned { now: [1, 2, 3], made: [4, 5, 6] },
    }
}

#[test]
fn the_text_is_sound_and_says_what_is() {
    let mut status = status();
    status.daemon.events(Event::Received, 5);
    status.daemon.events(Event::SendDropped, 2);
    status.daemon.events(Event::IcmpError, 3);
    status.daemon.reason(Reason::Untrusted);
    for code in [100, 200, 403, 404, 603] {
        status.daemon.reply(code);
    }
    let all = read(&text(status));
    assert_eq!(all["sipline_build_info"].at(&[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    assert_eq!(all["sipline_xdp_mode"].hot("mode"), ["generic"]);
    let interfaces = &all["sipline_xdp_interface_mode"];
    assert_eq!(interfaces.hot("mode"), ["generic", "native"]);
    assert_eq!(interfaces.hot("interface"), ["a\"\\\nb", "eth0"]);
    assert_eq!(all["sipline_xdp_write_failures_total"].at(&[]), 2.0);

    let kernel = &all["sipline_kernel_packets_total"];
    assert_eq!(kernel.samples.len(), Reason::ALL.len());
    let labels = [("reason", "untrusted"), ("way", "up")];
    assert_eq!(kernel.at(&labels), Reason::Untrusted as u32 as f64);
    assert_eq!(all["sipline_daemon_decisions_total"].at(&[("reason", "untrusted")]), 1.0);
    assert_eq!(all["sipline_daemon_datagrams_received_total"].at(&[]), 5.0);
    let unsent = &all["sipline_daemon_datagrams_unsent_total"];
    assert_eq!(unsent.at(&[("cause", "socket_full")]), 2.0);
    assert_eq!(all["sipline_daemon_events_total"].at(&[("event", "icmp_error")]), 3.0);
    let replies = &all["sipline_daemon_replies_total"];
    let classes: Vec<f64> = replies.samples.values().copied().collect();
    assert_eq!(classes, [1.0, 1.0, 0.0, 2.0, 0.0, 1.0]);

    assert_eq!(all["sipline_registered_contacts"].at(&[]), 4.0);
    let forked = &all["sipline_forked_registers_total"];
    assert_eq!(forked.at(&[("result", "sent")]) + forked.at(&[("result", "unanswered")]), 7.0);
    assert_eq!(all["sipline_cdrs_written_total"].at(&[]), 5.0);
    assert_eq!(all["sipline_store_reachable"].at(&[]), 1.0);

    let states = &all["sipline_pbx_state"];
    assert_eq!(states.samples.len(), 2 * STATES.len());
    assert_eq!(states.hot("pbx"), ["pbx1", "pbx2"]);
    assert_eq!(states.hot("state"), ["active", "inactive"]);
    let calls = &all["sipline_pbx_calls_total"];
    assert_eq!(calls.at(&[("pbx", "pbx1"), ("half", "daemon")]), 7.0);
    assert_eq!(calls.at(&[("pbx", "pbx1"), ("half", "kernel")]), u64::MAX as f64);
    let round_trip = &all["sipline_pbx_probe_round_trip_seconds"];
    assert_eq!(round_trip.samples.len(), 1, "pbx2 has not answered yet");
    assert_eq!(round_trip.at(&[("pbx", "pbx1")]), 0.0015);
    assert_eq!(all["sipline_pbx_probe_failures"].at(&[("pbx", "pbx2")]), 4.0);
    assert_eq!(all["sipline_bans"].at(&[("reason", "wrong_digests")]), 2.0);
    assert_eq!(all["sipline_bans_made_total"].at(&[("reason", "scanner")]), 6.0);
    let address = [("address", "[2001:db8::1]:5060")];
    assert_eq!(all["sipline_socket_drops_total"].at(&address), 3.0);
    assert_eq!(all["sipline_socket_receive_buffer_bytes"].at(&address), 4096.0);
}

#[test]
fn every_event_is_counted_somewhere() {
    let mut status = status();
    let all = read(&text(status.clone()));
    let sum = |all: &BTreeMap<String, Metric>| {
        let counters = all.iter().filter(|(name, _)| name.starts_with("sipline_daemon_"));
        counters.flat_map(|(_, metric)| metric.samples.values()).sum::<f64>()
    };
    let before = sum(&all);
    for event in Event::ALL {
        status.daemon.event(*event);
    }
    assert_eq!(sum(&read(&text(status))) - before, Event::ALL.len() as f64);
}

#[test]
fn the_times_are_those_of_the_wall_clock() {
    let mut status = status();
    let now = unix(SystemTime::now());
    status.course.started_at = SystemTime::UNIX_EPOCH + now - Duration::from_secs(60);
    // A machine that has run for less than this has no such instant.
    let age = Duration::from_millis(20);
    status.course.beaten = Instant::now() - age;
    let all = read(&text(status));
    let started = all["process_start_time_seconds"].at(&[]);
    assert!((now.as_secs_f64() - 60.0 - started).abs() < 1e-3, "{started}");
    let beaten = all["sipline_heartbeat_timestamp_seconds"].at(&[]);
    let off = beaten - (now - age).as_secs_f64();
    assert!(off.abs() < 1.0, "{off}");
}

#[test]
fn the_manual_names_every_metric_and_no_other() {
    let manual = include_str!("../../../../docs/operations.md");
    let is_metric = |word: &&str| {
        (word.starts_with("sipline_") || word.starts_with("process_")) && is_name(word)
    };
    let there: BTreeSet<&str> =
        manual.split(['`', '{', ' ', '(', '[', '\n']).filter(is_metric).collect();
    let all = read(&text(status()));
    let made: BTreeSet<&str> = all.keys().map(String::as_str).collect();
    assert_eq!(there, made);
    assert!(all.values().any(|metric| metric.kind == "counter"));
}

// ---- The pages --------------------------------------------------------------------------------------

struct World {
    dispatcher: Dispatcher,
    proxy: Proxy,
    fastpath: Off,
    course: Course,
    bans: Bans,
}

impl World {
    fn new(pbxs: &[&str]) -> Self {
        let now = Instant::now();
        let locals = ["192.0.2.1:5060".parse().unwrap()];
        let trust = Trust::default();
        let policy = Policy {
            sources: Sources::new(&trust),
            no_destination: NoDestination::default(),
            shadow: None,
            scanners: Vec::new(),
            rates: None,
        };
        let mut dispatcher = Dispatcher::new(&locals, Probe::default());
        let pbxs: Vec<_> = (11..)
            .zip(pbxs)
            .map(|(host, id)| PbxConfig {
                id: (*id).into(),
                address: format!("192.0.2.{host}:5060").parse().unwrap(),
                weight: 1,
                state: AdminState::Active,
                limits: PbxLimits::default(),
            })
            .collect();
        dispatcher.reload(now, &pbxs, Probe::default()).unwrap();
        Self {
            dispatcher,
            proxy: Proxy::new([7, 9], &locals, 64, policy, now),
            fastpath: Off::new("in a test"),
            course: status().course,
            bans: Bans::default(),
        }
    }

    fn page(&mut self, asked: Page) -> (u16, String) {
        let response = page(
            asked,
            &mut Parts {
                dispatcher: &self.dispatcher,
                bans: &self.bans,
                tally: Tally::of(&self.proxy, &[]).unwrap(),
                fastpath: &mut self.fastpath,
                store: None,
                course: self.course,
            },
        );
        (response.status().as_u16(), response.into_body())
    }
}

#[test]
fn ready_while_one_pbx_is_active() {
    let mut world = World::new(&["pbx1", "pbx2"]);
    assert_eq!(world.page(Page::Ready), (200, "ready, 2 of 2 PBXs active\n".into()));
    let now = Instant::now();
    let dead = "192.0.2.11:5060".parse().unwrap();
    for _ in 0..Probe::default().fall {
        world.dispatcher.handle_unreachable(now, dead, Unreachable::Port);
    }
    assert_eq!(world.page(Page::Ready), (200, "ready, 1 of 2 PBXs active\n".into()));
    world.dispatcher.set_admin(now, "pbx2", AdminState::Draining).unwrap();
    let (code, text) = world.page(Page::Ready);
    assert_eq!(code, 503);
    assert!(text.starts_with("no PBX takes calls; pbx1 is inactive: port unreachable; "), "{text}");
    assert!(text.contains("pbx2 is draining"), "{text}");
    assert_eq!(world.page(Page::Health).0, 200, "which is no fault of the daemon");
}

#[test]
fn not_ready_without_pbxs_or_at_the_end() {
    let mut world = World::new(&[]);
    assert_eq!(world.page(Page::Ready), (503, "no PBX takes calls\n".into()));
    let mut world = World::new(&["pbx1"]);
    world.course.stopping = true;
    assert_eq!(world.page(Page::Ready), (503, "stopping: new calls are refused\n".into()));
    let all = read(&world.page(Page::Metrics).1);
    assert_eq!(all["sipline_stopping"].at(&[]), 1.0);
    // Nothing is said of what is not configured.
    assert!(!all.contains_key("sipline_store_reachable"));
}

#[test]
fn healthy_while_the_heart_beats() {
    let mut world = World::new(&["pbx1"]);
    assert_eq!(world.page(Page::Health), (200, "healthy\n".into()));
    // A machine that has run for less than this has no such instant, and no daemon to be tested on.
    world.course.beaten = Instant::now() - (STILL + Duration::from_secs(1));
    assert_eq!(world.page(Page::Health), (503, "no heartbeat for 6 s\n".into()));
}

#[test]
fn the_page_has_the_type_of_its_text() {
    let mut world = World::new(&["pbx1"]);
    let mut parts = Parts {
        dispatcher: &world.dispatcher,
        bans: &world.bans,
        tally: Tally::of(&world.proxy, &[]).unwrap(),
        fastpath: &mut world.fastpath,
        store: None,
        course: world.course,
    };
    let response = page(Page::Metrics, &mut parts);
    assert_eq!(response.headers()["content-type"], "text/plain; version=0.0.4; charset=utf-8");
    let all = read(response.body());
    assert_eq!(all["sipline_xdp_mode"].hot("mode"), ["off"]);
    assert_eq!(all["sipline_pbx_state"].hot("state"), ["active"]);
}

#[test]
fn workers_are_added_up() {
    let world = World::new(&["pbx1"]);
    let mut one = Tally::of(&world.proxy, &[]).unwrap();
    one.daemon.event(Event::Received);
    one.placed[3] = 2;
    let socket =
        SocketStats { address: "192.0.2.1:5060".parse().unwrap(), dropped: 1, receive_buffer: 100 };
    one.sockets.push(socket.clone());
    let mut memory = Memory { users: 5, shed: 1, ..Memory::default() };
    memory.done.forwarded = 4;
    memory.done.replies.insert(200, 3);
    memory.asked.passed = 2;
    memory.recorded.calls = 1;
    one.memory = Some(memory);
    let mut sum = Tally::default();
    (0..3).for_each(|_| sum.add(one.clone()));
    assert_eq!((sum.daemon.of_event(Event::Received), sum.placed[3]), (3, 6));
    assert_eq!(sum.sockets, [SocketStats { dropped: 3, receive_buffer: 300, ..socket }]);
    let memory = sum.memory.unwrap();
    assert_eq!((memory.users, memory.shed, memory.done.forwarded), (15, 3, 12));
    assert_eq!((memory.done.replies[&200], memory.asked.passed, memory.recorded.calls), (9, 6, 3));
    let stats = memory.stats("SQLite");
    assert_eq!(
        (stats.users, stats.counters["forwarded"], stats.store.as_str()),
        (15, 12, "SQLite")
    );
}
