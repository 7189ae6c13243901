//! What one source may send: strangers a little, an office whose phones have registered a lot; and nothing of it is felt by
//! others. The same with XDP native and without.

use std::net::UdpSocket;
use std::thread;
use std::time::{Duration, Instant};

use sipline_tests::kernel;
use sipline_tests::lab::{
    Control, Daemon, Event, Lab, Mode, PORT, PROXY, Place, Settings, Sipp, Word, count, users,
    wait_until,
};

/// The office: phones behind one address, where users have ten each.
const PHONES: u32 = 200;
const USERS: u32 = 20;
/// Somebody else on the phones' side.
const STRANGER: &str = "10.10.1.77";
/// How long what takes a moment may take.
const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn an_office_is_served_and_a_stranger_is_not_with_xdp() {
    gate(Mode::Native);
}

#[test]
fn an_office_is_served_and_a_stranger_is_not_without_xdp() {
    gate(Mode::Off);
}

fn gate(mode: Mode) {
    // Rates and bans as they are unless somebody writes others.
    let gate = String::new();
    let settings = Settings { registrar: true, trusted: false, gate, ..Settings::new(mode) };
    let lab = Lab::new().unwrap();
    let address = format!("{STRANGER}/24");
    lab.run(Place::Phones, "ip", &["address", "add", &address, "dev", "eth0"]).unwrap();
    let _pbxs = [Place::Pbx1, Place::Pbx2]
        .map(|place| Sipp::pbx(place, "pbx-registrar").start(&lab, place.name()).unwrap());
    let daemon = Daemon::start(&lab, &settings).unwrap();
    let control = daemon.control();
    for number in 1..=USERS {
        add_user(&lab, &format!("u{number}@example.com"));
    }

    // One phone of the office registers, and from then on it is known; the others come back at once.
    assert_eq!(count(&phones(&lab, "first", 1, 1), Word::Ended), 1);
    thread::sleep(Duration::from_secs(1));
    let events = phones(&lab, "office", PHONES, 2000);
    assert_eq!(count(&events, Word::Ended), PHONES as usize, "{}", daemon.process.last_words());
    assert_eq!(refused(&control), 0);

    // A stranger with as many phones: of what they send, twice each, as much as strangers may is answered.
    let stranger = socket(&lab);
    let start = Instant::now();
    (0..2 * PHONES).for_each(|number| send(&stranger, number, "phone"));
    let answers = answers(&stranger);
    let most = 60 + 1 + 20 * (start.elapsed().as_secs() as usize + 1);
    assert!((55..=most).contains(&answers), "{answers} answers");
    assert!(refused(&control) > 2 * u64::from(PHONES) - most as u64, "{}", refused(&control));

    // He goes on and on, and nobody in the office feels it.
    let before = refused(&control);
    let flood = thread::spawn(move || {
        let start = Instant::now();
        let mut sent = 0;
        while start.elapsed() < Duration::from_secs(4) {
            for _ in 0..10 {
                send(&stranger, sent, "phone");
                sent += 1;
            }
            thread::sleep(Duration::from_millis(5));
        }
        (stranger, sent)
    });
    let events = phones(&lab, "beside", PHONES, 100);
    assert_eq!(count(&events, Word::Ended), PHONES as usize, "{}", daemon.process.last_words());
    let (stranger, sent) = flood.join().unwrap();
    wait_until(LIMIT, || refused(&control) - before + 300 > u64::from(sent));

    // One datagram of a scanner, and he hears nothing any more.
    thread::sleep(Duration::from_secs(4));
    send(&stranger, sent, "friendly-scanner");
    wait_until(LIMIT, || control.command(&["bans"]).unwrap()["total"] == 1);
    let bans = control.command(&["bans"]).unwrap();
    assert_eq!(bans["bans"][0]["network"], format!("{STRANGER}/32"), "{bans}");
    assert_eq!(bans["bans"][0]["reason"], "scanner", "{bans}");
    let _ = self::answers(&stranger);
    (0..10).for_each(|number| send(&stranger, sent + number, "phone"));
    assert_eq!(self::answers(&stranger), 0);
    assert_eq!(counted(&control, "banned"), 10);
    // A reload changes nothing, an operator does.
    control.ask("reload").unwrap();
    assert_eq!(control.command(&["bans"]).unwrap()["total"], 1);
    control.command(&["bans", "remove", STRANGER]).unwrap();
    send(&stranger, 0, "phone");
    assert_eq!(self::answers(&stranger), 1);
}

/// The stranger's socket.
fn socket(lab: &Lab) -> UdpSocket {
    let bound = || Ok(UdpSocket::bind((STRANGER, 5060))?);
    let socket = kernel::in_namespace(&lab.namespace_file(Place::Phones), bound).unwrap();
    socket.connect((PROXY, PORT)).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    socket
}

/// A REGISTER of somebody who is not known.
fn send(socket: &UdpSocket, number: u32, agent: &str) {
    let text = format!(
        "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP {STRANGER}:5060;branch=z9hG4bK{number}\r\n\
         Max-Forwards: 70\r\nFrom: <sip:s{number}@example.com>;tag=1\r\nTo: <sip:s{number}@example.com>\r\n\
         Call-ID: {number}@stranger\r\nCSeq: 1 REGISTER\r\nUser-Agent: {agent}\r\n\
         Contact: <sip:s@{STRANGER}>\r\nContent-Length: 0\r\n\r\n"
    );
    // The network may be slower than we are.
    let _ = socket.send(text.as_bytes());
}

/// How many challenges have come.
fn answers(socket: &UdpSocket) -> usize {
    let mut buffer = [0; 2048];
    let mut count = 0;
    while let Ok(len) = socket.recv(&mut buffer) {
        count += usize::from(buffer[..len].starts_with(b"SIP/2.0 401"));
    }
    count
}

/// What was dropped because of its rate, in the kernel or in the daemon.
fn refused(control: &Control) -> u64 {
    counted(control, "rate_stranger") + counted(control, "rate_registered")
}

fn counted(control: &Control, name: &str) -> u64 {
    let stats = control.ask("stats").unwrap();
    ["kernel", "daemon"].iter().filter_map(|half| stats[half][name].as_u64()).sum()
}

/// Phones of the office register, `rate` of them in a second.
fn phones(lab: &Lab, name: &str, count: u32, rate: u32) -> Vec<Event> {
    let line = |number: u32| {
        let user = number % USERS + 1;
        format!("u{user};[authentication username=u{user} password=secret]")
    };
    let phones = Sipp::caller("phone-registers", rate, count);
    phones.inject((0..count).map(line).collect()).start(lab, name).unwrap().finish().unwrap()
}

fn add_user(lab: &Lab, user: &str) {
    let added = users(lab, &["add", user], "secret\n");
    assert_eq!(added["added"], user, "{added}");
}
