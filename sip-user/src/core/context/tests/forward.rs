//! Requests as they are forwarded (16.3, 16.6).

use super::*;

/// The INVITE that `p0` gets of this one.
fn forwarded(text: &str, change: impl FnOnce(&mut Target)) -> String {
    let mut settings = Settings::new(&[US.parse().unwrap()]);
    settings.realms = vec!["x".into()];
    let mut w = World::with(settings, Config::default());
    let mut target = target(0);
    change(&mut target);
    w.forward(text, |_| {}, Hunt::Fork, &[target]).unwrap();
    w.got(0, "INVITE")
}

/// What the caller hears of this request.
#[track_caller]
fn refused(text: &str) -> u16 {
    let mut w = World::new();
    let status = w.forward(text, |_| {}, Hunt::Fork, &[target(0)]).unwrap_err();
    assert_eq!(w.take(), [status.to_string()]);
    assert_eq!(w.take_of(0), [""; 0]);
    assert!(w.contexts.is_empty());
    w.finish();
    status
}

#[test]
fn what_changes_and_what_does_not() {
    let text = invite().replace("Max-Forwards: 70\r\n", "max-forwards : 7\r\nX-Own:  a , b\r\n");
    let text = text.replace("Call-ID", "Record-Route: <sip:p.example;lr>\r\ni");
    let made = forwarded(&text, |_| {});
    let (via, rest) = made.split_once(";branch=z9hG4bKsldt").unwrap();
    let (branch, rest) = rest.split_once("\r\n").unwrap();
    assert_eq!(
        via,
        "INVITE sip:bob@10.0.1.1:5060 SIP/2.0\r\nRecord-Route: <sip:192.0.2.1:5060;lr;sl=00000000>\r\n\
         Via: SIP/2.0/UDP 192.0.2.1:5060"
    );
    assert_eq!(branch.len(), 16 + 1 + 16);
    assert_eq!(
        rest,
        "Max-Forwards: 6\r\nMax-Breadth: 60\r\n\
         Via: SIP/2.0/UDP 10.0.0.9:5060;branch=z9hG4bKcaller;rport=5060;received=10.0.0.9\r\n\
         X-Own:  a , b\r\nFrom: <sip:alice@x>;tag=a\r\nTo: <sip:bob@x>\r\n\
         Record-Route: <sip:p.example;lr>\r\ni: 42@x\r\nCSeq: 1 INVITE\r\n\
         Contact: <sip:alice@10.0.0.9>\r\nContent-Type: x/y\r\nContent-Length: 4\r\n\r\nbody"
    );
}

#[test]
fn hops_are_counted() {
    let with = |value: &str| invite().replace("Max-Forwards: 70\r\n", value);
    let made = |value: &str| header(&forwarded(&with(value), |_| {}), "Max-Forwards")[0].to_owned();
    assert_eq!(made(""), "10");
    assert_eq!(made("Max-Forwards: 1\r\n"), "0");
    assert_eq!(made("Max-Forwards: 200\r\n"), "69");
    assert_eq!(refused(&with("Max-Forwards: 0\r\n")), 483);
    assert_eq!(refused(&with("Max-Forwards: many\r\n")), 483);
}

#[test]
fn routes_are_the_owners() {
    let text = invite().replace("From:", "Route: <sip:evil.example;lr>\r\nFrom:");
    let made = forwarded(&text, |_| {});
    assert_eq!(header(&made, "Route"), [""; 0]);
    let made = forwarded(&text, |target| target.route = Some("<sip:p.example;lr>".into()));
    assert_eq!(header(&made, "Route"), ["<sip:p.example;lr>"]);
    assert!(made.starts_with("INVITE sip:bob@10.0.1.1:5060 SIP/2.0\r\n"));
    let made = forwarded(&text, |target| target.route = Some("<sip:p.example>, <sip:q;lr>".into()));
    assert_eq!(header(&made, "Route"), ["<sip:q;lr>, <sip:bob@10.0.1.1:5060>"]);
    assert!(made.starts_with("INVITE sip:p.example SIP/2.0\r\n"));
    let made = forwarded(&text, |target| target.uri = None);
    assert!(made.starts_with("INVITE sip:bob@192.0.2.1 SIP/2.0\r\n"));
    let made = forwarded(&text, |target| target.record_routes = [None, None]);
    assert_eq!(header(&made, "Record-Route"), [""; 0]);
}

#[test]
fn our_credentials_stay_here() {
    let of = |realm: &str| {
        format!(
            "Proxy-Authorization: Digest username=\"a\", realm=\"{realm}\", nonce=\"n\", uri=\"u\", \
             response=\"r\"\r\n"
        )
    };
    let text = invite().replace("From:", &format!("{}{}From:", of("x"), of("y")));
    let made = forwarded(&text, |_| {});
    assert_eq!(header(&made, "Proxy-Authorization").len(), 1);
    assert!(header(&made, "Proxy-Authorization")[0].contains("realm=\"y\""));
}

#[test]
fn a_loop_ends_and_a_spiral_does_not() {
    let first = forwarded(&invite(), |target| target.uri = None);
    assert_eq!(refused(&first), 482, "as it was sent");
    let (head, rest) = first.split_once("\r\n").unwrap();
    let by_another = format!("{head}\r\nVia: SIP/2.0/UDP 10.9.9.9;branch=z9hG4bKo\r\n{rest}");
    assert_eq!(refused(&by_another), 482, "whoever was between");
    // 16.3: a spiral comes back changed.
    let spiral = by_another.replacen("sip:bob@", "sip:carol@", 1);
    forwarded(&spiral, |_| {});
    // From a PBX the same goes elsewhere.
    let mut w = World::new();
    w.forward(&by_another, |_| {}, Hunt::Failover, &[target(0)]).unwrap();
    assert_eq!(w.take_of(0), ["INVITE"]);
    // With the hash of another key it is somebody else's.
    let mut w = World::new();
    w.contexts.key = [5, 6];
    w.forward(&by_another, |_| {}, Hunt::Fork, &[target(0)]).unwrap();
    assert_eq!(w.take_of(0), ["INVITE"]);
}

#[test]
fn copies_are_counted() {
    let with = |value: &str| invite().replace("From:", &format!("Max-Breadth: {value}\r\nFrom:"));
    assert_eq!(refused(&with("0")), 440);
    let breadths = |value: &str, count: u32| {
        let mut w = World::new();
        let targets: Vec<_> = (0..count).map(target).collect();
        w.forward(&with(value), |_| {}, Hunt::Fork, &targets).unwrap();
        let tried: Vec<_> = (0..count).filter(|tag| !w.take_of(*tag).is_empty()).collect();
        let breadth = |tag| header(&w.got(tag, "INVITE"), "Max-Breadth")[0].parse().unwrap();
        tried.into_iter().map(breadth).collect::<Vec<u16>>()
    };
    assert_eq!(breadths("7", 3), [3, 2, 2]);
    assert_eq!(breadths("1000", 2), [30, 30]);
    assert_eq!(breadths("many", 1), [60]);
    assert_eq!(breadths("2", 3), [1, 1], "two at once");
    // The third is tried when those have failed.
    let mut w = World::new();
    let targets: Vec<_> = (0..3).map(target).collect();
    w.forward(&with("2"), |_| {}, Hunt::Fork, &targets).unwrap();
    w.answer(0, "486 Busy Here");
    w.answer(1, "486 Busy Here");
    assert_eq!(w.take_of(2), ["INVITE"]);
    w.finish();
}

#[test]
fn what_is_too_long_is_said_to_be() {
    let mut w = World::new();
    let text = invite().replace("Content-Length: 4", &format!("Content-Length: {}", 65_100));
    let text = text.replace("\r\n\r\nbody", &format!("\r\n\r\n{}", "b".repeat(65_100)));
    w.forward(&text, |_| {}, Hunt::Fork, &[target(0), target(1)]).unwrap();
    assert_eq!(w.take(), ["100", "513"]);
    assert_eq!(
        w.take_events(),
        ["p0 failed: not sent", "p1 failed: not sent", "failed 513", "ended"]
    );
    w.finish();
}

#[test]
fn a_full_table_says_503() {
    let settings = Settings { contexts: 1, ..Settings::new(&[US.parse().unwrap()]) };
    let mut w = World::with(settings, Config::default());
    w.fork(&[1000]);
    let second = invite().replace("z9hG4bKcaller", "z9hG4bKsecond");
    assert_eq!(w.forward(&second, |_| {}, Hunt::Fork, &[target(1)]), Err(503));
    assert_eq!(w.take(), ["100", "503"]);
    assert_eq!(header(&w.heard(503), "Retry-After"), ["5"]);
    w.answer(0, "486 Busy Here");
    assert_eq!(w.take(), ["486"]);
    let third = invite().replace("z9hG4bKcaller", "z9hG4bKthird");
    w.forward(&third, |_| {}, Hunt::Fork, &[target(1)]).unwrap();
    w.finish();
}

#[test]
fn without_room_for_transactions_nobody_is_blamed() {
    let config = Config { transactions: 1, ..Config::default() };
    let mut w = World::with(Settings::new(&[US.parse().unwrap()]), config);
    w.failover(2);
    assert_eq!(w.take(), ["100", "503"]);
    assert_eq!(w.take_events(), ["p0 failed: not sent", "failed 503", "ended"]);
    w.finish();
}
