//! The program is replaced while numbered datagrams go through it: each of them arrives, and so does each answer.

use std::collections::BTreeSet;
use std::io::ErrorKind;
use std::net::UdpSocket;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use sipline_tests::kernel;
use sipline_tests::lab::{Daemon, INTERFACES, Lab, Mode, PORT, PROXY, Place, Scene, Settings};

/// How long what takes a moment may take.
const LIMIT: Duration = Duration::from_secs(10);
/// One datagram in so long.
const PACE: Duration = Duration::from_millis(3);

/// Another daemon with another program, in another mode, or without XDP. With XDP no datagram is lost on the way, as
/// nobody repeats it. Without, there is no daemon for a moment: then the calls' repetitions carry them over.
pub(crate) fn another_program_costs_nothing(mode: Mode) {
    let others = match mode {
        Mode::Native => [("bpf_loop", Mode::Native), ("auto", Mode::Generic), ("auto", Mode::Off)],
        Mode::Generic => [("bpf_loop", Mode::Generic), ("auto", Mode::Native), ("auto", Mode::Off)],
        _ => return calls_outlive_a_change_from_off(),
    };
    let lab = Lab::new().unwrap();
    let _pbxs = [Place::Pbx1, Place::Pbx2].map(|place| Refuser::start(&lab, place));
    let mut settings = Settings { keep: true, ..Settings::new(mode) };
    let mut daemon = start(&lab, &settings);
    let numbers = Numbers::start(&lab);
    for (loops, mode) in others {
        thread::sleep(Duration::from_secs(1));
        let status = daemon.terminate().unwrap();
        assert!(status.success(), "{status}: {}", daemon.process.last_words());
        drop(daemon);
        // Nobody is there for a while.
        thread::sleep(Duration::from_millis(500));
        settings = Settings { loops: loops.into(), mode, ..settings };
        daemon = start(&lab, &settings);
        assert_eq!(daemon.control().totals().unwrap().mode, mode.to_string());
    }
    thread::sleep(Duration::from_secs(1));
    let (sent, lost) = numbers.finish();
    assert!(sent > 500, "{sent}");
    assert!(lost.is_empty(), "of {sent} datagrams these had no answer: {lost:?}");
    // What was pinned is gone with the last program: it would decide by tables that nobody writes.
    let left: Vec<_> = INTERFACES.into_iter().filter(|name| has_xdp(&lab, name)).collect();
    assert!(left.is_empty(), "{left:?}");
}

fn calls_outlive_a_change_from_off() {
    let mut scene = Scene::new(Mode::Off, "pbx");
    let mut callers = scene.start_calls("caller", 100, 700, Duration::from_secs(1));
    for mode in [Mode::Native, Mode::Off] {
        thread::sleep(Duration::from_secs(2));
        // Killed: one that ends in order refuses new calls for a while, so that they go elsewhere.
        scene.daemon.process.kill().unwrap();
        scene.settings.mode = mode;
        scene.start_again();
        assert_eq!(scene.base.mode, mode.to_string());
    }
    let events = callers.finish().unwrap();
    scene.expect_all_ended(&events, 700);
    scene.end();
}

fn start(lab: &Lab, settings: &Settings) -> Daemon {
    let daemon = Daemon::start(lab, settings).unwrap();
    for place in [Place::Pbx1, Place::Pbx2] {
        daemon.wait_until_probed(place, LIMIT).unwrap();
    }
    daemon
}

fn has_xdp(lab: &Lab, interface: &str) -> bool {
    let link = lab.run(Place::Proxy, "ip", &["-details", "link", "show", interface]);
    link.unwrap().contains("prog/xdp")
}

/// A socket of SIP at a place of the lab.
fn socket(lab: &Lab, place: Place) -> UdpSocket {
    let bound = || Ok(UdpSocket::bind((place.address(), PORT))?);
    let socket = kernel::in_namespace(&lab.namespace_file(place), bound).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    socket
}

/// Whether a socket has nothing to say just now.
fn is_nothing(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut | ErrorKind::ConnectionRefused)
}

/// Reads until it is told to stop.
fn listen(socket: &UdpSocket, stop: &AtomicBool, mut hear: impl FnMut(&str)) {
    let mut buffer = [0; 4096];
    while !stop.load(Ordering::Relaxed) {
        match socket.recv(&mut buffer) {
            Ok(len) => hear(&String::from_utf8_lossy(&buffer[..len])),
            Err(error) => assert!(is_nothing(error.kind()), "{error}"),
        }
    }
}

/// A PBX that is busy: 486 to each INVITE, once. It answers OPTIONS.
struct Refuser {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Refuser {
    fn start(lab: &Lab, place: Place) -> Self {
        let socket = socket(lab, place);
        let stop = Arc::new(AtomicBool::new(false));
        let flag = stop.clone();
        let thread = thread::spawn(move || {
            listen(&socket, &flag, |text| {
                let status = match text.split(' ').next() {
                    Some("INVITE") => "486 Busy Here",
                    Some("OPTIONS") => "200 OK",
                    _ => return,
                };
                let _ = socket.send_to(reply(text, status).as_bytes(), (PROXY, PORT));
            });
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Refuser {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// The response to a request, by its lines.
fn reply(request: &str, status: &str) -> String {
    let mut text = format!("SIP/2.0 {status}\r\n");
    for line in request.split("\r\n") {
        let wanted = ["Via:", "From:", "To:", "Call-ID:", "CSeq:"];
        if wanted.iter().any(|name| line.starts_with(name)) {
            let tag = if line.starts_with("To:") { ";tag=busy" } else { "" };
            text += &format!("{line}{tag}\r\n");
        }
    }
    text + "Content-Length: 0\r\n\r\n"
}

/// Numbered INVITEs, each of a call of its own and sent once, and which of them were answered by a PBX.
struct Numbers {
    stop: Arc<AtomicBool>,
    sent: Arc<AtomicU32>,
    sender: JoinHandle<()>,
    listener: JoinHandle<BTreeSet<u32>>,
    silence: Arc<AtomicBool>,
}

impl Numbers {
    fn start(lab: &Lab) -> Self {
        let socket = Arc::new(socket(lab, Place::Phones));
        let stop = Arc::new(AtomicBool::new(false));
        let silence = Arc::new(AtomicBool::new(false));
        let sent = Arc::new(AtomicU32::new(0));
        let sender = thread::spawn({
            let (socket, stop, sent) = (socket.clone(), stop.clone(), sent.clone());
            move || {
                let mut next = Instant::now();
                while !stop.load(Ordering::Relaxed) {
                    let number = sent.fetch_add(1, Ordering::Relaxed);
                    socket.send_to(invite(number).as_bytes(), (PROXY, PORT)).unwrap();
                    next += PACE;
                    thread::sleep(next.saturating_duration_since(Instant::now()));
                }
            }
        });
        let listener = thread::spawn({
            let silence = silence.clone();
            move || {
                let mut answered = BTreeSet::new();
                listen(&socket, &silence, |text| {
                    if let Some(number) = refused(text) {
                        answered.insert(number);
                    }
                });
                answered
            }
        });
        Self { stop, sent, sender, listener, silence }
    }

    /// How many were sent, and which had no answer.
    fn finish(self) -> (u32, Vec<u32>) {
        self.stop.store(true, Ordering::Relaxed);
        self.sender.join().unwrap();
        // What is on its way.
        thread::sleep(Duration::from_secs(1));
        self.silence.store(true, Ordering::Relaxed);
        let answered = self.listener.join().unwrap();
        let sent = self.sent.load(Ordering::Relaxed);
        (sent, (0..sent).filter(|number| !answered.contains(number)).collect())
    }
}

fn invite(number: u32) -> String {
    let phone = Place::Phones.address();
    format!(
        "INVITE sip:200@{PROXY} SIP/2.0\r\nVia: SIP/2.0/UDP {phone}:{PORT};branch=z9hG4bKn{number}\r\n\
         Max-Forwards: 70\r\nFrom: <sip:phone@{phone}>;tag=n{number}\r\nTo: <sip:200@{PROXY}>\r\n\
         Call-ID: {number}@numbered\r\nCSeq: 1 INVITE\r\nContact: <sip:phone@{phone}:{PORT}>\r\n\
         Content-Length: 0\r\n\r\n"
    )
}

/// The number of an INVITE that a PBX has refused.
fn refused(text: &str) -> Option<u32> {
    let lines = text.strip_prefix("SIP/2.0 486 ")?;
    let id = lines.split("\r\n").find_map(|line| line.strip_prefix("Call-ID: "))?;
    id.strip_suffix("@numbered")?.parse().ok()
}
