//! Phones that register with a password and then call without one, from a network where that is enough: the same with XDP
//! native and without, over IPv4 and over
//! IPv6. Whoever is registered no longer is asked again. And PBXs that ask for a user are answered.

use std::net::{SocketAddr, UdpSocket};
use std::thread;
use std::time::{Duration, Instant};

use sipline_tests::kernel;
use sipline_tests::lab::{
    Control, Daemon, Event, Lab, Mode, PORT, PROXY, PROXY_IPV6, Place, Settings, Sipp, Word, count,
    users, wait_until,
};

const USERS: u32 = 5;
const CALLS: u32 = 20;
/// How long what takes a moment may take.
const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn who_is_registered_calls_at_once_with_xdp() {
    policy(Mode::Native, false);
}

#[test]
fn who_is_registered_calls_at_once_without_xdp() {
    policy(Mode::Off, false);
}

#[test]
fn who_is_registered_calls_at_once_over_ipv6_with_xdp() {
    policy(Mode::Native, true);
}

#[test]
fn who_is_registered_calls_at_once_over_ipv6_without_xdp() {
    policy(Mode::Off, true);
}

fn policy(mode: Mode, ipv6: bool) {
    let settings =
        Settings { registrar: true, trusted: false, registered: true, ipv6, ..Settings::new(mode) };
    let lab = Lab::new().unwrap();
    let of_family = |sipp: Sipp| if ipv6 { sipp.ipv6() } else { sipp };
    let pbx = |place: Place| of_family(Sipp::pbx(place, "pbx")).start(&lab, place.name()).unwrap();
    let phones = |scenario: &str, name: &str, port: u16| {
        let phones = of_family(Sipp::caller(scenario, 10, USERS)).port(port);
        self::phones(&lab, phones, scenario, name, proxy(ipv6))
    };
    let (pbx1, _pbx2) = (pbx(Place::Pbx1), pbx(Place::Pbx2));
    let daemon = Daemon::start(&lab, &settings).unwrap();
    let control = daemon.control();
    for place in [Place::Pbx1, Place::Pbx2] {
        daemon.wait_until_probed(place, LIMIT).unwrap();
    }
    for number in 1..=USERS {
        add_user(&lab, &format!("u{number}@example.com"));
    }

    let events = phones("phone-registers", "register", PORT);
    assert_eq!(count(&events, Word::Ended), USERS as usize, "{events:?}");
    // News of them goes with the next beat of the heart.
    thread::sleep(Duration::from_secs(1));
    let callers = of_family(Sipp::caller("caller", 10, CALLS)).start(&lab, "callers");
    let events = callers.unwrap().finish().unwrap();
    assert_eq!(count(&events, Word::Ended), CALLS as usize, "{}", daemon.process.last_words());
    let stats = control.ask("stats").unwrap();
    let steered = |half: &str| stats[half]["invite_steered"].as_u64().unwrap_or(0);
    assert_eq!(steered("kernel") + steered("daemon"), u64::from(CALLS), "{stats}");
    // What comes before a neighbour is known goes by way of the daemon.
    let by_kernel = if mode == Mode::Off { 0..=0 } else { u64::from(CALLS) - 5..=CALLS.into() };
    assert!(by_kernel.contains(&steered("kernel")), "{stats}");

    // From another port of the same address a password is asked for.
    let events = phones("phone-calls", "elsewhere", 5070);
    assert_eq!(
        count(&events, Word::Ended),
        USERS as usize,
        "{events:?} {}",
        control.ask("stats").unwrap()
    );

    // A PBX asks for users.
    drop(pbx1);
    let asking = socket(&lab, ipv6);
    let ask = |user: &str| self::ask(&asking, user, proxy(ipv6));
    assert_eq!(ask("u1"), "200");
    assert_eq!(ask("nobody"), "404");
    control.command(&["registrations", "remove", "u1@example.com"]).unwrap();
    assert_eq!(ask("u1"), "404");
    assert_eq!(ask("u2"), "200");
    let answered = control.ask("stats").unwrap()["kernel"]["qualify_answered"].as_u64();
    assert_eq!(answered.unwrap_or(0), if mode == Mode::Off { 0 } else { 3 });

    // All are gone, so there they are asked again too: a call that was not would fail its scenario.
    for number in 2..=USERS {
        let user = format!("u{number}@example.com");
        control.command(&["registrations", "remove", &user]).unwrap();
    }
    wait_until(LIMIT, || control.command(&["registrations"]).unwrap()["total"] == 0);
    thread::sleep(Duration::from_secs(1));
    let events = phones("phone-calls", "again", PORT);
    assert_eq!(count(&events, Word::Ended), USERS as usize, "{events:?}");
    assert_eq!(counted(&control, "invite_steered"), u64::from(CALLS));
}

/// Where the proxy is, as a host of a URI.
fn proxy(ipv6: bool) -> SocketAddr {
    let ip = if ipv6 { PROXY_IPV6 } else { PROXY };
    SocketAddr::new(ip.parse().unwrap(), PORT)
}

/// A socket in the place of the first PBX.
fn socket(lab: &Lab, ipv6: bool) -> UdpSocket {
    let place = Place::Pbx1;
    let ip = if ipv6 { place.address_ipv6() } else { place.address() };
    let bound = || Ok(UdpSocket::bind((ip, PORT))?);
    let socket = kernel::in_namespace(&lab.namespace_file(Place::Pbx1), bound).unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
    socket
}

/// The status of the answer to an OPTIONS for a user; what else comes is not looked at.
fn ask(socket: &UdpSocket, user: &str, proxy: SocketAddr) -> String {
    let (us, call) = (socket.local_addr().unwrap(), format!("ask-{user}"));
    let text = format!(
        "OPTIONS sip:{user}@{proxy} SIP/2.0\r\nVia: SIP/2.0/UDP {us};branch=z9hG4bK{user};rport\r\n\
         Max-Forwards: 70\r\nFrom: <sip:pbx@{us}>;tag=q\r\nTo: <sip:{user}@{proxy}>\r\n\
         Call-ID: {call}\r\nCSeq: 1 OPTIONS\r\nContent-Length: 0\r\n\r\n"
    );
    socket.send_to(text.as_bytes(), proxy).unwrap();
    let start = Instant::now();
    let mut buffer = [0; 4096];
    while start.elapsed() < LIMIT {
        let Ok(len) = socket.recv(&mut buffer) else { break };
        let text = String::from_utf8_lossy(&buffer[..len]).into_owned();
        if text.starts_with("SIP/2.0 ") && text.contains(&format!("Call-ID: {call}\r\n")) {
            return text[8..11].to_owned();
        }
    }
    String::new()
}

/// Phones of all users with a password, until they are through.
fn phones(lab: &Lab, phones: Sipp, scenario: &str, name: &str, proxy: SocketAddr) -> Vec<Event> {
    let line = |number| format!("u{number};[authentication username=u{number} password=secret]");
    let phones = phones.inject((1..=USERS).map(line).collect());
    // By itself SIPp writes credentials for an IPv6 address without its brackets.
    let phones = match scenario {
        "phone-calls" => phones.auth_uri(&format!("200@{proxy}")),
        _ => phones.auth_uri(&proxy.to_string()),
    };
    phones.start(lab, name).unwrap().finish().unwrap()
}

fn counted(control: &Control, name: &str) -> u64 {
    let stats = control.ask("stats").unwrap();
    ["kernel", "daemon"].iter().filter_map(|half| stats[half][name].as_u64()).sum()
}

fn add_user(lab: &Lab, user: &str) {
    let added = users(lab, &["add", user], "secret\n");
    assert_eq!(added["added"], user, "{added}");
}
