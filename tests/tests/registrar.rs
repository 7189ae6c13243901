//! Phones register with the built daemon, with a password, and both PBXs are told: the same with XDP native and
//! without, over IPv4 and over IPv6. Everything is in SQLite, and there again after a restart.

use std::{collections::BTreeSet, time::Duration};

use sipline_tests::lab::{
    Control, Daemon, Event, Lab, Mode, PORT, PROXY, PROXY_IPV6, Place, Running, Settings, Sipp,
    Word, users, wait_until,
};

/// How many users there are: u1, u2, ... of example.com.
const USERS: u32 = 20;
/// How long what takes a moment may take.
const LIMIT: Duration = Duration::from_secs(10);

#[test]
fn registrations_with_xdp() {
    registrations(Mode::Native, false);
}

#[test]
fn registrations_without_xdp() {
    registrations(Mode::Off, false);
}

#[test]
fn registrations_over_ipv6_with_xdp() {
    registrations(Mode::Native, true);
}

#[test]
fn registrations_over_ipv6_without_xdp() {
    registrations(Mode::Off, true);
}

fn registrations(mode: Mode, ipv6: bool) {
    let settings = Settings { registrar: true, ipv6, ..Settings::new(mode) };
    let lab = Lab::new().unwrap();
    let of_family = |sipp: Sipp| if ipv6 { sipp.ipv6() } else { sipp };
    // By itself SIPp writes credentials for an IPv6 address without its brackets.
    let uri = if ipv6 { format!("[{PROXY_IPV6}]:{PORT}") } else { format!("{PROXY}:{PORT}") };
    let pbx = |place: Place| {
        of_family(Sipp::pbx(place, "pbx-registrar")).start(&lab, place.name()).unwrap()
    };
    let phones = |scenario: &str, count: u32, password: &str| {
        let phones = of_family(Sipp::caller(scenario, 50, count)).auth_uri(&uri);
        self::phones(&lab, &phones, scenario, count, password)
    };
    let (pbx1, pbx2) = (pbx(Place::Pbx1), pbx(Place::Pbx2));
    let pbxs = [&pbx1, &pbx2];
    let mut daemon = Daemon::start(&lab, &settings).unwrap();
    let control = daemon.control();
    for place in [Place::Pbx1, Place::Pbx2] {
        daemon.wait_until_probed(place, LIMIT).unwrap();
    }
    for number in 1..=USERS {
        add_user(&lab, &format!("u{number}@example.com"));
    }

    // Who does not know the password does not register, and no PBX hears of him.
    let events = phones("phone-guesses", 5, "guess");
    assert_eq!(count(&events, Word::Ended), 5, "{events:?}");
    assert_eq!(total(&control), 0);

    let events = phones("phone-registers", USERS, "secret");
    assert_eq!(count(&events, Word::Ended), USERS as usize, "{}", control.ask("stats").unwrap());
    assert_eq!(total(&control), u64::from(USERS));
    wait_until(LIMIT, || pbxs.iter().all(|pbx| told(pbx, Word::Invited) == USERS as usize));
    let one = control.command(&["registrations", "show", "u7@example.com"]).unwrap();
    let shown = &one["registrations"][0];
    let contact = if ipv6 { "sip:u7@[fd10:10:1::2]:" } else { "sip:u7@10.10.1.2:" };
    assert!(shown["contact"].as_str().unwrap().starts_with(contact), "{one}");
    let legs = shown["pbxs"].as_array().unwrap();
    assert_eq!(legs.len(), 2, "{one}");
    assert!(legs.iter().all(|leg| leg["last"] == 200), "{one}");
    let stats = control.ask("stats").unwrap();
    let counters = &stats["registrar"]["counters"];
    assert_eq!(counters["registered"], USERS, "{stats}");
    assert_eq!(counters["secrets_not_fetched"], 0, "{stats}");
    // Who has no credentials yet is asked for them in the kernel, where there is one.
    let asked = stats["kernel"]["challenged"].as_u64().unwrap_or(0);
    let by_kernel = if mode == Mode::Off { 0 } else { u64::from(USERS) + 5 };
    assert!(asked >= by_kernel && (mode != Mode::Off || asked == 0), "{asked}: {stats}");

    // One goes by hand.
    control.command(&["registrations", "remove", "u20@example.com"]).unwrap();
    wait_until(LIMIT, || pbxs.iter().all(|pbx| told(pbx, Word::Ended) == 1));

    // An end in good order writes what waits; the next one has everybody, and tells the PBXs again.
    let status = daemon.terminate().unwrap();
    assert!(status.success(), "{status}: {}", daemon.process.last_words());
    let mut daemon = Daemon::start(&lab, &settings).unwrap();
    assert_eq!(total(&control), u64::from(USERS - 1));
    // By new Call-IDs, so each is counted anew.
    let twice = 2 * USERS as usize - 1;
    wait_until(LIMIT, || pbxs.iter().all(|pbx| told(pbx, Word::Invited) == twice));

    // What has been written is there even if nobody could say goodbye.
    wait_until(LIMIT, || control.ask("stats").unwrap()["registrar"]["unwritten"] == 0);
    daemon.process.kill().unwrap();
    let daemon = Daemon::start(&lab, &settings).unwrap();
    assert_eq!(total(&control), u64::from(USERS - 1));

    let before = pbxs.map(|pbx| told(pbx, Word::Ended));
    wait_until(LIMIT, || {
        pbxs.iter().all(|pbx| told(pbx, Word::Invited) == twice + USERS as usize - 1)
    });
    let events = phones("phone-leaves", USERS, "secret");
    assert_eq!(count(&events, Word::Ended), USERS as usize, "{}", daemon.process.last_words());
    assert_eq!(total(&control), 0);
    wait_until(LIMIT, || {
        let told = pbxs.iter().zip(before).map(|(pbx, before)| told(pbx, Word::Ended) - before);
        told.into_iter().all(|told| told == USERS as usize - 1)
    });

    // A user who is removed is forgotten at once.
    let removed = users(&lab, &["remove", "u1@example.com"], "");
    assert_eq!(removed["daemon_told"], true, "{removed}");
    let events = phones("phone-registers", 1, "secret");
    assert_eq!(count(&events, Word::Refused), 1, "{events:?}");
}

/// `sipline users add`, with the password on standard input.
fn add_user(lab: &Lab, user: &str) {
    let added = users(lab, &["add", user], "secret\n");
    assert_eq!((&added["added"], &added["daemon_told"]), (&user.into(), &true.into()), "{added}");
}

/// Phones of the users u1 to u`count` with a password, until they are through.
fn phones(lab: &Lab, phones: &Sipp, name: &str, count: u32, password: &str) -> Vec<Event> {
    let line =
        |number| format!("u{number};[authentication username=u{number} password={password}]");
    let phones = phones.clone().inject((1..=count).map(line).collect());
    phones.start(lab, name).unwrap().finish().unwrap()
}

/// How many contacts are registered.
fn total(control: &Control) -> u64 {
    control.command(&["registrations"]).unwrap()["total"].as_u64().unwrap()
}

/// Of how many users a PBX was told, so: repetitions do not count.
fn told(pbx: &Running, word: Word) -> usize {
    let events = pbx.events().unwrap();
    let users = events.iter().filter(|event| event.word == word).map(|event| &event.call_id);
    users.collect::<BTreeSet<_>>().len()
}

fn count(events: &[Event], word: Word) -> usize {
    events.iter().filter(|event| event.word == word).count()
}
