use super::*;

const MINUTE: Duration = Duration::from_secs(60);

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn net(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn bans(wrong_digests: u32) -> (Bans, Instant) {
    (Bans::new(Rules { wrong_digests, ..Rules::default() }), Instant::now())
}

#[test]
fn passwords_are_guessed_only_so_often() {
    let (mut bans, start) = bans(3);
    for _ in 0..2 {
        bans.wrong_digest(start, ip("203.0.113.5"));
        bans.wrong_digest(start, ip("203.0.113.6"));
    }
    assert_eq!(bans.take_commands(), []);
    bans.wrong_digest(start + MINUTE, ip("203.0.113.5"));
    let banned = net("203.0.113.5/32");
    assert_eq!(bans.take_commands(), [Command::Ban(banned)]);
    let (_, ban) = bans.list().next().unwrap();
    assert_eq!(ban.why, Why::WrongDigests);
    assert_eq!(&*ban.note, "3 wrong passwords within 600 s");
    assert_eq!(ban.until, Some(start + 61 * MINUTE));
    // What was on its way changes nothing.
    bans.wrong_digest(start + MINUTE, ip("203.0.113.5"));
    bans.scanner(start + MINUTE, ip("203.0.113.5"), "sipcli");
    assert_eq!((bans.take_commands(), bans.made(Why::Scanner)), (vec![], 0));
    // It ends, and then all starts anew.
    assert_eq!(bans.poll_timeout(), Some(start + 61 * MINUTE));
    bans.handle_timeout(start + 61 * MINUTE - Duration::from_millis(1));
    assert_eq!(bans.len(), 1);
    bans.handle_timeout(start + 61 * MINUTE);
    assert_eq!(bans.take_commands(), [Command::Lift(banned)]);
    assert!(bans.is_empty() && bans.poll_timeout().is_none());
    bans.wrong_digest(start + 62 * MINUTE, ip("203.0.113.5"));
    assert_eq!(bans.take_commands(), []);
}

#[test]
fn slow_mistakes_are_forgiven() {
    let (mut bans, start) = bans(3);
    for minute in 0..1000 {
        bans.wrong_digest(start + MINUTE * 5 * minute, ip("203.0.113.5"));
    }
    assert_eq!(bans.take_commands(), []);
    let (mut never, start) = self::bans(0);
    (0..1000).for_each(|_| never.wrong_digest(start, ip("203.0.113.5")));
    assert!(never.is_empty());
}

#[test]
fn scanners_are_known_by_their_name() {
    let (mut bans, start) = bans(3);
    bans.scanner(start, ip("2001:db8:1:2:3:4:5:6"), "friendly-scanner\u{1b}[2J");
    assert_eq!(bans.take_commands(), [Command::Ban(net("2001:db8:1:2::/64"))]);
    let (_, ban) = bans.list().next().unwrap();
    assert_eq!((ban.why, &*ban.note), (Why::Scanner, "friendly-scanner?[2J"));
    // Its whole network is one source.
    bans.scanner(start, ip("2001:db8:1:2::9"), "friendly-scanner");
    assert_eq!(bans.len(), 1);
    let mut none = Bans::new(Rules { automatic: false, ..Rules::default() });
    none.scanner(start, ip("192.0.2.1"), "friendly-scanner");
    none.wrong_digest(start, ip("192.0.2.1"));
    assert!(none.is_empty());
}

#[test]
fn orders_by_hand() {
    let (mut bans, start) = bans(3);
    assert_eq!(bans.add(start, net("0.0.0.0/0"), None, ""), Err(Refusal::Everybody));
    bans.add(start, net("198.51.100.77/24"), None, "rude").unwrap();
    assert_eq!(bans.take_commands(), [Command::Ban(net("198.51.100.0/24"))]);
    assert_eq!(bans.poll_timeout(), None);
    // The same with an end.
    bans.add(start, net("198.51.100.0/24"), Some(MINUTE), "rude").unwrap();
    assert_eq!((bans.take_commands(), bans.len()), (vec![], 1));
    assert_eq!(bans.poll_timeout(), Some(start + MINUTE));
    assert!(!bans.remove(net("198.51.100.0/25")));
    assert!(bans.remove(net("198.51.100.1/24")));
    assert_eq!(bans.take_commands(), [Command::Lift(net("198.51.100.0/24"))]);
    assert_eq!((bans.poll_timeout(), bans.made(Why::Hand)), (None, 2));
    // Of an automatic one: it lasts as long as the operator says.
    bans.scanner(start, ip("203.0.113.5"), "sipcli");
    bans.add(start, net("203.0.113.5/32"), None, "").unwrap();
    bans.handle_timeout(start + 600 * MINUTE);
    assert_eq!(bans.len(), 1);
}

#[test]
fn a_reload_keeps_bans_but_of_those_who_are_exempt_now() {
    let (mut bans, start) = bans(3);
    bans.scanner(start, ip("203.0.113.5"), "sipcli");
    bans.scanner(start, ip("203.0.113.6"), "sipcli");
    bans.add(start, net("203.0.113.7/32"), None, "").unwrap();
    bans.take_commands();
    let exempt = |addr| [ip("203.0.113.6"), ip("203.0.113.7")].contains(&addr);
    bans.reload(Rules::default(), exempt);
    assert_eq!(bans.take_commands(), [Command::Lift(net("203.0.113.6/32"))]);
    assert_eq!(bans.len(), 2);
}

#[test]
fn nothing_grows_without_a_bound() {
    let (mut bans, start) = bans(2);
    let address = |n: u32| IpAddr::from(std::net::Ipv4Addr::from(0x0a00_0000 + n));
    for n in 0..2 * MAX_SUSPECTS as u32 {
        bans.wrong_digest(start + Duration::from_millis(n.into()), address(n));
    }
    assert_eq!((bans.suspects.len(), bans.seen.len()), (MAX_SUSPECTS, MAX_SUSPECTS));
    assert_eq!(bans.suspects_forgotten(), MAX_SUSPECTS as u64);
    bans.add(start, IpNet::from(address(0)), None, "").unwrap();
    for n in 1..2 * MAX_BANS {
        bans.scanner(start + Duration::from_millis(n.into()), address(n), "x");
    }
    assert_eq!((bans.len(), bans.ends.len()), (MAX_BANS as usize, MAX_BANS as usize - 1));
    // By hand stays, of the others the last.
    assert!(bans.bans.contains_key(&IpNet::from(address(0))));
    assert!(!bans.bans.contains_key(&IpNet::from(address(1))));
    let (mut full, start) = self::bans(2);
    for n in 0..MAX_BANS {
        full.add(start, IpNet::from(address(n)), None, "").unwrap();
    }
    assert_eq!(full.add(start, IpNet::from(address(MAX_BANS)), None, ""), Err(Refusal::Full));
    full.scanner(start, address(MAX_BANS), "x");
    assert_eq!(full.len(), MAX_BANS as usize);
    // A note that is too long is cut between two letters.
    assert_eq!(cut(&"é".repeat(100)).len(), MAX_NOTE);
}
