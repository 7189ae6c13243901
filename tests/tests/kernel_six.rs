//! IPv6 through the kernel program, one packet at a time: each left as it should, and as without the program.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};
use std::time::{Duration, Instant};

use sip_ebpf::Reason;
use sip_ebpf::cookie::{self, Cookie};
use sip_ebpf::gate::{Rate, Rules};
use sip_ebpf::hash::Keys;
use sip_ebpf::header::Span;
use sip_ebpf::reason::Way;
use sip_ebpf::tables::{Endpoint6, Event, event, source};
use sip_user::core::registered::Source;
use sip_user::fastpath::object::Build;
use sipline_tests::fixtures::frame::{DOT1AD, DOT1Q};
use sipline_tests::fixtures::six::{
    self, Frame6, LONG_PHONE, LONG_PROXY, Pair6, Sent, World, beside,
};
use sipline_tests::fixtures::world::{
    ELSEWHERE_PBX, KEY, LOST_PBX, NARROW_PBX, PBX1, PBX2, PHONE, PROXY, QINQ_PHONE, VLAN_PHONE,
};
use sipline_tests::fixtures::{Checksum, Message};

/// Somebody who is not trusted.
const STRANGER: SocketAddrV6 =
    SocketAddrV6::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 7, 0, 0, 0, 0x77), 5060, 0, 0);
/// Somebody who is denied.
const DENIED: SocketAddrV6 =
    SocketAddrV6::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 8, 0, 0, 0, 0x78), 5060, 0, 0);

fn world() -> World {
    World {
        locals: vec![beside(PROXY).into(), LONG_PROXY.into()],
        pbxs: vec![beside(PBX1).into(), beside(PBX2).into()],
        trusted: vec!["fd10:10:1::/64", "fd10:10:7::/64", "fd10:10:9::/64"],
        denied: vec!["2001:db8:0:8::/64"],
        rates: None,
        recorded: false,
        alive: true,
        more: Default::default(),
    }
}

/// Runs `body` with each build, in a network of its own.
fn each_build(body: impl Fn(&mut Pair6) + Send + Sync) {
    for build in Build::ALL {
        println!("build: {}", build.name());
        six::with(|| body(&mut Pair6::new(build, world())));
    }
}

fn us() -> SocketAddrV6 {
    beside(PROXY)
}

fn phone() -> SocketAddrV6 {
    beside(PHONE)
}

fn invite(call: &str) -> Message {
    six::of(&Message::invite(PHONE, call))
}

fn options(call: &str) -> Message {
    six::of(&Message::request("OPTIONS", PHONE, call))
}

fn v6(address: SocketAddr) -> SocketAddrV6 {
    match address {
        SocketAddr::V6(v6) => v6,
        SocketAddr::V4(v4) => panic!("{v4}"),
    }
}

/// A message that must leave for this reason; gives who gets it, and what.
fn pass(
    pair: &mut Pair6,
    from: SocketAddrV6,
    message: &Message,
    reason: Reason,
) -> (SocketAddrV6, Message) {
    let (left, sent) = pair.hear(from, us(), message);
    assert_eq!(left, reason, "{message:?}");
    let [Sent { to, payload, .. }] = &sent[..] else { panic!("{reason:?}: {sent:?}") };
    (v6(*to), Message::read(payload))
}

#[test]
fn options_and_keepalives_are_answered() {
    each_build(|pair| {
        let (to, answer) = pass(pair, phone(), &options("1"), Reason::OptionsAnswered);
        assert_eq!((to, &*answer.start), (phone(), "SIP/2.0 200 OK"));
        let via = answer.value("Via");
        assert!(via.ends_with(";rport=5061;received=fd10:10:1::2"), "{via}");
        // Without a port it is 5060, and with parameters it is us too.
        for uri in ["[fd10:10::1]", "[fd10:10::1];transport=udp", "[fd10:10::1]:5060;x"] {
            let asked = options("2").start(&format!("OPTIONS sip:{uri} SIP/2.0"));
            pass(pair, phone(), &asked, Reason::OptionsAnswered);
        }
        let mut up = |asked: Message| {
            let (reason, _) = pair.hear(phone(), us(), asked);
            assert_eq!(reason, Reason::OptionsNotForUs);
        };
        for uri in ["[fd10:10::2]", "user@[fd10:10::1]", "[FD10:10::1]", "[fd10:10::1]:5062"] {
            up(options("3").start(&format!("OPTIONS sip:{uri} SIP/2.0")));
        }
        let (reason, sent) = pair.hear(phone(), us(), "\r\n\r\n");
        assert_eq!((reason, &sent[0].payload[..]), (Reason::CrlfAnswered, &b"\r\n"[..]));
        assert_eq!(pair.hear(phone(), us(), "\r\n").0, Reason::EmptyDatagram);
        assert_eq!(pair.hear(phone(), us(), "ping").0, Reason::Junk);
        assert_eq!(pair.hear(phone(), us(), "who are you?\r\n\r\n").0, Reason::Junk);
        // One without rport is answered where its Via says.
        let plain = format!("Via: SIP/2.0/UDP {};branch=z9hG4bK-plain", phone());
        let mut asked = options("4");
        asked.lines[0] = plain;
        pass(pair, phone(), &asked, Reason::OptionsAnswered);
        asked.lines[0] = "Via: SIP/2.0/UDP [fd10:10:1:0:0:0:0:9]:5061;branch=z9hG4bK-other".into();
        let (_, answer) = pass(pair, phone(), &asked, Reason::OptionsAnswered);
        assert!(answer.value("Via").ends_with(";received=fd10:10:1::2"));
        asked.lines[0] = "Via: SIP/2.0/UDP phone.example.com:5061;branch=z9hG4bK-name".into();
        assert_eq!(pair.hear(phone(), us(), &asked).0, Reason::OddVia);
    });
}

#[test]
fn a_call_is_carried_from_end_to_end() {
    each_build(|pair| {
        for from in [PHONE, VLAN_PHONE, QINQ_PHONE] {
            let call = format!("whole-{from}");
            let phone = beside(from);
            let invite = six::of(&Message::invite(from, &call));
            let (pbx, first) = pass(pair, phone, &invite, Reason::InviteSteered);
            let (same, again) = pass(pair, phone, &invite, Reason::InviteRepeated);
            assert_eq!((same, &again), (pbx, &first));
            assert!(first.value("Record-Route").starts_with("<sip:[fd10:10::1]:5060;lr;sl=fd10"));
            let forwarded = Reason::ResponseForwarded;
            for status in ["100 Trying", "180 Ringing"] {
                let response = first.response(status, "pbx");
                assert_eq!(pass(pair, pbx, &response, forwarded).0, phone);
            }
            let (_, ok) = pass(pair, pbx, &first.response("200 OK", "pbx"), forwarded);
            let ack = six::of(&ok.next("ACK", from, 1));
            assert_eq!(pass(pair, phone, &ack, Reason::DialogToPbx).0, pbx);
            // In both directions, with one Route line and that alone.
            let (to, hold) =
                pass(pair, phone, &six::of(&ok.next("INVITE", from, 2)), Reason::DialogToPbx);
            assert_eq!(to, pbx);
            assert!(hold.values("Route").is_empty(), "{hold:?}");
            pass(pair, pbx, &hold.response("200 OK", "pbx"), forwarded);
            let v4 = if pbx == beside(PBX1) { PBX1 } else { PBX2 };
            let back = six::of(&ok.next_back("INFO", v4, 1));
            let (to, info) = pass(pair, pbx, &back, Reason::DialogToPhone);
            assert_eq!(to, phone);
            pass(pair, phone, &info.response("200 OK", "x"), forwarded);
            let bye = six::of(&ok.next("BYE", from, 3));
            assert_eq!(pass(pair, phone, &bye, Reason::DialogToPbx).0, pbx);
            // From a PBX that the call is not with, from nobody, and with a cookie of another call.
            let other = if v4 == PBX1 { PBX2 } else { PBX1 };
            let wrong = six::of(&ok.next_back("BYE", other, 4));
            assert_eq!(pair.hear(beside(other), us(), &wrong).0, Reason::WrongSide);
            let forged = bye.set("Call-ID", "another");
            assert_eq!(pair.hear(phone, us(), &forged).0, Reason::BadCookie);
        }
    });
}

#[test]
fn refusals_and_cancels_follow_their_invite() {
    each_build(|pair| {
        for call in ["busy", "cancelled"] {
            let invite = invite(call);
            let (pbx, first) = pass(pair, phone(), &invite, Reason::InviteSteered);
            if call == "cancelled" {
                let mut cancel = six::of(&Message::request("CANCEL", PHONE, call));
                cancel.start = invite.start.replace("INVITE", "CANCEL");
                cancel.lines[0] = invite.lines[0].clone();
                assert_eq!(pass(pair, phone(), &cancel, Reason::CancelSteered).0, pbx);
            }
            let refused = first.response("486 Busy Here", "pbx");
            pass(pair, pbx, &refused, Reason::ResponseForwarded);
            let mut ack = six::of(&Message::request("ACK", PHONE, call));
            ack.start = invite.start.replace("INVITE", "ACK");
            ack.lines[0] = invite.lines[0].clone();
            let ack = ack.set("To", &refused.value("To"));
            assert_eq!(pass(pair, phone(), &ack, Reason::AckSteered).0, pbx);
        }
        let mut cancel = six::of(&Message::request("CANCEL", PHONE, "unknown"));
        cancel.start = invite("x").start.replace("INVITE", "CANCEL");
        assert_eq!(pair.hear(phone(), us(), &cancel).0, Reason::UnknownCall);
    });
}

#[test]
fn responses_find_their_way_back() {
    each_build(|pair| {
        // By the sender's own words, by `received` with brackets and without, and with a comma between.
        let vias = [
            "SIP/2.0/UDP [fd10:10:1::2]:5061;branch=z9hG4bK-a",
            "SIP/2.0/UDP [fd10:10:1:0:0:0:0:2]:5061;branch=z9hG4bK-b",
            "SIP/2.0/UDP [FD10:10:1::2]:5061;branch=z9hG4bK-c",
            "SIP/2.0/UDP phone.example.com;branch=z9hG4bK-d;rport",
        ];
        for (n, via) in vias.iter().enumerate() {
            let mut invite = invite(&format!("via-{n}"));
            invite.lines[0] = format!("Via: {via}");
            let (pbx, first) = pass(pair, phone(), &invite, Reason::InviteSteered);
            let ok = first.response("200 OK", "pbx");
            assert_eq!(pass(pair, pbx, &ok, Reason::ResponseForwarded).0, phone());
            if n == 3 {
                let mut bracketed = ok.clone();
                let line = bracketed.lines.iter_mut().find(|line| line.contains("received="));
                let line = line.expect("the phone's Via");
                // The branch is that of the phone's Via alone.
                *line = line.replace("received=fd10:10:1::2", "received=[fd10:10:1::2]");
                assert_eq!(pass(pair, pbx, &bracketed, Reason::ResponseForwarded).0, phone());
            }
            let vias = ok.values("Via");
            let mut joined = ok.clone().without("Via");
            joined.lines.insert(0, format!("Via: {}", vias.join(", ")));
            assert_eq!(pass(pair, pbx, &joined, Reason::ResponseForwarded).0, phone());
            let mut forged = ok.clone();
            let branch = vias[0].len() - 1;
            let digit = if vias[0].ends_with('0') { "1" } else { "0" };
            forged.lines[0] = format!("Via: {}{digit}", &vias[0][..branch]);
            assert_eq!(pair.hear(pbx, us(), &forged).0, Reason::BadBranch);
            assert_eq!(pair.hear(STRANGER, us(), &ok).0, Reason::WrongSide);
            let theirs = ok.set("Via", "SIP/2.0/UDP [fd10:10::1]:5060;branch=z9hG4bKtheirs");
            assert_eq!(pair.hear(pbx, us(), &theirs).0, Reason::NotOurResponse);
        }
    });
}

#[test]
fn requests_that_the_daemon_decides_about_go_up() {
    each_build(|pair| {
        let mut up = |from: SocketAddrV6, message: &Message, reason: Reason| {
            assert_eq!(pair.hear(from, us(), message).0, reason, "{message:?}");
        };
        up(STRANGER, &invite("1"), Reason::Untrusted);
        up(beside(PBX1), &invite("2"), Reason::FromPbx);
        up(phone(), &six::of(&Message::request("REGISTER", PHONE, "3")), Reason::Method);
        up(phone(), &invite("4").set("Max-Forwards", "0"), Reason::MaxForwards);
        up(phone(), &invite("5").line("Proxy-Require: x"), Reason::Required);
        up(phone(), &invite("6").set("Content-Length", "9"), Reason::ContentLength);
        up(phone(), &invite("7").line("Route: <sip:[fd10:10::1]:5060;lr>"), Reason::Preloaded);
        up(phone(), &invite("8").without("From"), Reason::OddHeader);
        up(phone(), &invite("9").line("X: folded\r\n over"), Reason::Folded);
        let dialog = six::of(&Message::request("INFO", PHONE, "10"));
        let dialog = dialog.set("To", "<sip:service@[fd10:10::1]>;tag=x");
        up(phone(), &dialog, Reason::Method);
        let digits = "0".repeat(56);
        let route =
            |host: &str| dialog.clone().line(&format!("Route: <sip:{host};lr;sl={digits}>"));
        up(phone(), &route("[fd10:10::1]:5060"), Reason::BadCookie);
        up(phone(), &route("[fd10:10::9]:5060"), Reason::OddRoute);
        up(phone(), &route("[fd10:10:0::1]:5060"), Reason::OddRoute);
        // That of a call with a record is the daemon's.
        let keys = Keys::new(KEY);
        let (call, _) = cookie::call(&keys, &b"10"[..], Span { at: 0, end: 2 });
        let flow = Endpoint6::new(phone().ip().octets(), phone().port());
        let cookie = Cookie { flow, slot: 0, recorded: true }.write(&keys, call);
        let digits: Vec<u8> = cookie.iter().flat_map(|word| word.to_le_bytes()).collect();
        let digits = String::from_utf8(digits).expect("digits");
        let bye = six::of(&Message::request("BYE", PHONE, "10"))
            .set("To", "<sip:service@[fd10:10::1]>;tag=x")
            .line(&format!("Route: <sip:[fd10:10::1]:5060;lr;sl={digits}>"));
        // No PBX is in slot 0 unless its name says so: then there is none to go to.
        let (reason, _) = pair.hear(phone(), us(), &bye);
        assert!(matches!(reason, Reason::ByeRecorded | Reason::NoPbx), "{reason:?}");
    });
}

#[test]
fn frames_that_are_none_for_us_go_up() {
    each_build(|pair| {
        let frame = || Frame6::new(phone(), us(), options("1"));
        let mut up = |frame: Frame6, reason: Reason| {
            let (left, _, _) = pair.run_bytes(frame.src, &frame.bytes());
            assert_eq!(left, reason, "{frame:?}");
        };
        for (next, reason) in [
            (6, Reason::NotUdp),
            (58, Reason::NotUdp),
            (59, Reason::NotUdp),
            (44, Reason::Fragment),
            (0, Reason::IpOptions),
            (43, Reason::IpOptions),
            (51, Reason::IpOptions),
            (60, Reason::IpOptions),
        ] {
            up(frame().with(|f| f.next = next), reason);
        }
        up(frame().with(|f| f.version = 4), Reason::NotIpv4);
        up(frame().with(|f| f.tags = vec![(DOT1Q, 1), (DOT1Q, 2), (DOT1Q, 3)]), Reason::NotIpv4);
        up(frame().with(|f| f.checksum = Checksum::Zero), Reason::NoChecksum);
        up(frame().with(|f| f.dst.set_port(5061)), Reason::NotOurs);
        up(frame().with(|f| f.dst.set_ip("fd10:10::2".parse().unwrap())), Reason::NotOurs);
        up(frame().with(|f| f.dst.set_ip("ff02::1".parse().unwrap())), Reason::NotOurs);
        // What only its link knows has no route.
        up(frame().with(|f| f.src.set_ip("fe80::9".parse().unwrap())), Reason::NotOurs);
        up(frame().with(|f| f.src.set_ip("::ffff:10.10.1.2".parse().unwrap())), Reason::NotOurs);
        let len = options("1").bytes().len() as u16;
        for udp_len in [0, 7, len + 7, len + 9] {
            up(frame().with(|f| f.udp_len = Some(udp_len)), Reason::BadLength);
        }
        for ip_len in [0, 7, len + 7, len + 9] {
            up(frame().with(|f| f.ip_len = Some(ip_len)), Reason::BadLength);
        }
        let longer = Some(len + 9);
        up(frame().with(|f| (f.ip_len, f.udp_len) = (longer, longer)), Reason::BadLength);
        let long = invite("1").with_body(&"x".repeat(2048));
        up(Frame6::new(phone(), us(), long), Reason::TooLong);
        let mut run = |frame: Frame6| pair.run_bytes(frame.src, &frame.bytes()).0;
        assert_eq!(run(Frame6::new(DENIED, us(), options("1"))), Reason::Denied);
        assert_eq!(run(frame().with(|f| f.payload.clear())), Reason::EmptyDatagram);
        // What follows the datagram is padding.
        assert_eq!(run(frame().with(|f| f.trailing = 9)), Reason::OptionsAnswered);
        assert_eq!(run(frame().with(|f| f.checksum = Checksum::Off(7))), Reason::OptionsAnswered);
    });
}

#[test]
fn what_finds_no_way_goes_up() {
    each_build(|pair| {
        for (pbx, reason) in [(LOST_PBX, Reason::NoNeighbour), (ELSEWHERE_PBX, Reason::OtherPort)] {
            pair.configure(|world| world.pbxs = vec![beside(pbx).into()]);
            assert_eq!(pair.hear(phone(), us(), invite("1")).0, reason);
        }
        pair.configure(|world| world.pbxs = vec![beside(NARROW_PBX).into()]);
        let narrow = |call: &str, n: usize| {
            let frame = Frame6::new(phone(), us(), invite(call).with_body(&"x".repeat(n)));
            (frame.src, frame.bytes())
        };
        let mut reason = |(src, bytes): (SocketAddrV6, Vec<u8>)| pair.run_bytes(src, &bytes).0;
        assert_eq!(reason(narrow("long", 1000)), Reason::Mtu);
        assert_eq!(reason(narrow("short", 10)), Reason::InviteSteered);
        pair.configure(|world| world.pbxs.clear());
        assert_eq!(pair.hear(phone(), us(), invite("1")).0, Reason::NoPbx);
    });
}

#[test]
fn a_network_of_64_bits_is_one_source() {
    let rules = Rules {
        stranger: Rate { cost: 600_000, limit: 1_500_000 },
        registered: Rate { cost: 200_000, limit: 2_900_000 },
    };
    each_build(|pair| {
        pair.configure(|world| world.rates = Some(rules));
        let from = |host: u16, port: u16| {
            let ip = Ipv6Addr::new(0x2001, 0xdb8, 0, 7, 0, 0, 0, host);
            SocketAddrV6::new(ip, port, 0, 0)
        };
        let mut reason = |from: SocketAddrV6| {
            let frame = Frame6::new(from, us(), options("1"));
            pair.run_bytes(from, &frame.bytes()).0
        };
        for n in 0..3 {
            assert_eq!(reason(from(n + 1, 5061 + n)), Reason::OptionsAnswered);
        }
        assert_eq!(reason(from(99, 5061)), Reason::RateStranger);
        let other = SocketAddrV6::new(Ipv6Addr::new(0x2001, 0xdb8, 0, 9, 0, 0, 0, 1), 5061, 0, 0);
        assert_eq!(reason(other), Reason::OptionsAnswered);
        for _ in 0..20 {
            assert_eq!(reason(phone()), Reason::OptionsAnswered);
        }
    });
}

/// Our lines are longer here than the room before a frame: what follows them moves. With bodies of even and odd length, with
/// `rport` and without.
#[test]
fn lines_may_be_longer_than_the_room_before_a_frame() {
    each_build(|pair| {
        for n in 0..40 {
            let rport = if n % 2 == 0 { ";rport" } else { "" };
            let mut invite = invite(&format!("long-{n}")).with_body(&"x".repeat(300 + n * 9));
            invite.lines[0] =
                format!("Via: SIP/2.0/UDP [fd10::{n}]:50610;branch=z9hG4bK-long{rport}");
            let frame = |from, to, message: &Message| {
                let trailing = n / 2 % 3;
                Frame6::new(from, to, message).with(|frame| frame.trailing = trailing)
            };
            let (reason, sent) = pair.run(&frame(LONG_PHONE, LONG_PROXY, &invite));
            assert_eq!(reason, Reason::InviteSteered);
            let grown = sent[0].payload.len() - invite.bytes().len();
            assert!(grown > 240, "{grown}");
            let pbx = v6(sent[0].to);
            let ok = Message::read(&sent[0].payload).response("200 OK", "pbx");
            let (reason, sent) = pair.run(&frame(pbx, LONG_PROXY, &ok));
            assert_eq!((reason, v6(sent[0].to)), (Reason::ResponseForwarded, LONG_PHONE));
        }
    });
}

/// Where calls have records the daemon gets a copy of each INVITE, with where it came from, and is told how it goes on.
#[test]
fn calls_are_told_of() {
    each_build(|pair| {
        pair.configure(|world| world.recorded = true);
        let mut events = pair.tables.events().expect("the ring");
        let invite = invite("told");
        let (pbx, first) = pass(pair, phone(), &invite, Reason::InviteSteered);
        pass(pair, pbx, &first.response("180 Ringing", "pbx"), Reason::ResponseForwarded);
        let (_, ok) = pass(pair, pbx, &first.response("200 OK", "pbx"), Reason::ResponseForwarded);
        let bye = six::of(&ok.next("BYE", PHONE, 2));
        pass(pair, phone(), &bye, Reason::DialogToPbx);
        let mut told = Vec::new();
        while events.next(|event, text| told.push((event, text.to_vec()))) {}
        let kinds: Vec<_> = told.iter().map(|(event, _)| event.kind).collect();
        assert_eq!(kinds, [event::INVITE_SIX, event::FINAL, event::BYE_OF_CALLER]);
        assert!(told.iter().all(|(event, _)| event.call == told[0].0.call));
        assert_eq!(told[1].0.status, 200);
        let ([src, dst], message) = Event::read_six(&told[0].1).expect("addresses");
        let endpoint = |at: SocketAddrV6| Endpoint6::new(at.ip().octets(), at.port());
        assert_eq!((src, dst), (endpoint(phone()), endpoint(us())));
        assert_eq!(message, invite.bytes());
    });
}

/// What the daemon writes while it runs.
#[test]
fn the_tables_count() {
    let run = |pair: &mut Pair6, from: SocketAddrV6, message: Message| {
        let frame = Frame6::new(from, us(), message);
        pair.run_bytes(from, &frame.bytes()).0
    };
    let here = STRANGER.ip().to_string();
    let network = |bits: u32, pair: &mut Pair6| {
        pair.tables.set_source(format!("{here}/128").parse().unwrap(), bits).expect("SOURCES6");
    };
    each_build(|pair| {
        network(source::BANNED, pair);
        assert_eq!(run(pair, STRANGER, options("1")), Reason::Banned);
        network(0, pair);
        assert_eq!(run(pair, STRANGER, options("1")), Reason::OptionsAnswered);
        // Somebody is registered from there, or from another port.
        network(source::REGISTERED, pair);
        assert_eq!(run(pair, STRANGER, invite("1")), Reason::Untrusted);
        let until = Instant::now() + Duration::from_secs(60);
        pair.tables.set_endpoints(&[(STRANGER.into(), until)]).expect("ENDPOINTS6");
        assert_eq!(run(pair, STRANGER, invite("1")), Reason::InviteSteered);
        let mut other = STRANGER;
        other.set_port(5062);
        assert_eq!(run(pair, other, invite("2")), Reason::Untrusted);
        pair.tables.change_endpoints(&[(STRANGER.into(), None)]).expect("ENDPOINTS6");
        assert_eq!(run(pair, STRANGER, invite("3")), Reason::Untrusted);
        network(0, pair);

        let rate = |cost, limit| Rate { cost, limit };
        let rules =
            Rules { stranger: rate(600_000, 1_500_000), registered: rate(200_000, 2_900_000) };
        pair.configure(|world| world.rates = Some(rules));
        let registered = Source::from(IpAddr::V6(*STRANGER.ip()));
        pair.tables.change_registered(&[(registered, true)]).expect("REGISTERED6");
        for _ in 0..15 {
            assert_eq!(run(pair, STRANGER, options("1")), Reason::OptionsAnswered);
        }
        assert_eq!(run(pair, STRANGER, options("1")), Reason::RateRegistered);
        pair.tables.change_registered(&[(registered, false)]).expect("REGISTERED6");
        assert_eq!(run(pair, STRANGER, options("1")), Reason::RateStranger);
        pair.configure(|world| world.rates = None);

        pair.tables.heartbeat(Duration::ZERO).expect("HEARTBEAT");
        assert_eq!(run(pair, phone(), options("1")), Reason::HeartbeatStale);
        assert_eq!(run(pair, phone(), invite("4")), Reason::InviteSteered);
        pair.tables.clear_config().expect("CONFIG");
        assert_eq!(run(pair, phone(), options("1")), Reason::NotConfigured);
    });
}

/// A message cut at each byte, with lengths that agree.
#[test]
fn truncated_messages() {
    let whole = [invite("cut").bytes(), options("cut").bytes()];
    each_build(|pair| {
        for message in &whole {
            for n in 1..message.len() {
                let (reason, _) = pair.hear(phone(), us(), &message[..n]);
                assert_ne!(reason.way(), Way::Sent, "{n} of {}", message.len());
            }
        }
    });
}

/// A frame cut at each byte, with lengths that lie.
#[test]
fn truncated_frames() {
    let whole = [
        Frame6::new(phone(), us(), invite("cut")),
        Frame6::new(beside(VLAN_PHONE), us(), options("cut")),
        Frame6::new(phone(), us(), options("cut")).with(|f| f.tags = vec![(DOT1AD, 8), (DOT1Q, 9)]),
    ];
    each_build(|pair| {
        for frame in &whole {
            let bytes = frame.bytes();
            for n in 14..bytes.len() {
                let (reason, _, _) = pair.run_bytes(frame.src, &bytes[..n]);
                assert_eq!(reason.way(), Way::Up, "{n} of {}: {reason:?}", bytes.len());
            }
        }
    });
}

/// Each byte of a message changed to something else: what leaves is what would leave without the program.
#[test]
fn changed_messages() {
    each_build(|pair| {
        let (pbx, first) = pass(pair, phone(), &invite("change"), Reason::InviteSteered);
        let response = first.response("200 OK", "pbx");
        let (_, ok) = pass(pair, pbx, &response, Reason::ResponseForwarded);
        let bye = six::of(&ok.next("BYE", PHONE, 2));
        for (from, message) in [
            (phone(), invite("change")),
            (phone(), options("change")),
            (pbx, response),
            (phone(), bye),
        ] {
            let message = message.bytes();
            for n in 0..message.len() {
                for byte in [0, b'\r', b'\n', b' ', b',', b';', b':', b'[', b']', b'<', b'9', 0xff]
                {
                    let mut changed = message.clone();
                    changed[n] = byte;
                    pair.hear(from, us(), changed);
                }
            }
        }
    });
}
