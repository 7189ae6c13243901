//! One packet at a time through the kernel program: at least one fixture for every way out.

use ipnet::Ipv4Net;
use sip_ebpf::Reason;
use sip_ebpf::cookie::{self, Cookie};
use sip_ebpf::header::Span;
use sip_ebpf::reason::Way;
use sip_ebpf::route::Tables;
use sip_ebpf::tables::{PbxState, flag, source};
use sip_user::fastpath::object::Build;
use sipline_tests::fixtures::frame::{self, DOT1AD, DOT1Q};
use sipline_tests::fixtures::subject::at;
use sipline_tests::fixtures::world::{
    DENIED, ELSEWHERE_PBX, LOST_PBX, NARROW_PBX, PBX1, PBX2, PHONE, PROXY, QINQ_PHONE, STRANGER,
    VLAN_PHONE, World, endpoint, pbx,
};
use sipline_tests::fixtures::{Checksum, Frame, Message, Outcome, Pair, Subject, each_build, net};

/// A packet, and why it leaves as it does.
struct Fixture {
    name: &'static str,
    reason: Reason,
    run: fn(&mut Subject) -> Outcome,
}

/// Reasons without a fixture, and why.
const WITHOUT: [(Reason, &str); 7] = [
    (
        Reason::Headroom,
        "TEST_RUN gives each frame 216 bytes of headroom and more than a kilobyte of tailroom, and \
         the longest text that is put in is shorter",
    ),
    (Reason::NoChecksum, "it needs IPv6: kernel_six.rs"),
    (Reason::TakenOver, "it needs a call that went before, and a daemon: kernel_shadow.rs"),
    (Reason::SteeredFailed, "as above"),
    (Reason::Challenged, "it needs a registrar, and nonces differ: kernel_challenge.rs"),
    (Reason::ChallengeAcked, "as above"),
    (Reason::QualifyAnswered, "it needs a user who is registered: kernel_policy.rs"),
];

#[test]
fn every_fixture_leaves_as_it_should() {
    each_build(|subject| {
        for fixture in fixtures() {
            println!("{}", fixture.name);
            let outcome = (fixture.run)(subject);
            assert_eq!(outcome.reason, fixture.reason, "{}", fixture.name);
            subject.reset();
        }
    });
}

/// What leaves without the program is the same: the datagrams of each fixture again, on both sides of a
/// [`Pair`]. Its tables are the first ones, so fixtures that change theirs are left out.
#[test]
fn every_fixture_is_answered_alike() {
    for build in Build::ALL {
        println!("build: {}", build.name());
        let logs = net::with(|| {
            let mut subject = Subject::new(build);
            let log = |fixture: Fixture| {
                let log = subject.logged(|subject| drop((fixture.run)(subject)));
                subject.reset();
                (fixture, log)
            };
            fixtures().into_iter().map(log).collect::<Vec<_>>()
        });
        net::with(|| {
            let mut pair = Pair::new(build);
            let mut compared = 0;
            for (fixture, log) in logs {
                if log.changed {
                    continue;
                }
                pair.reset();
                // Of frames that are none for UDP, the stack has the say.
                for frame in &log.frames {
                    let Ok(read) = frame::read(frame) else { continue };
                    match pair.hear(read.src, read.dst, &read.payload) {
                        Ok(heard) if heard.kernel == fixture.reason => compared += 1,
                        Ok(_) => {}
                        Err(difference) => panic!("{}: {difference}", fixture.name),
                    }
                }
            }
            // Most fixtures have left as they should, so the comparison was one of what they are for.
            println!("{compared} datagrams left as their fixtures say");
            assert!(compared >= 140, "{compared} datagrams left as their fixtures say");
        });
    }
}

#[test]
fn every_reason_has_a_fixture() {
    let fixtures = fixtures();
    let mut missing: Vec<Reason> = Reason::ALL.to_vec();
    missing.retain(|reason| !fixtures.iter().any(|fixture| fixture.reason == *reason));
    let excused: Vec<Reason> = WITHOUT.iter().map(|(reason, _)| *reason).collect();
    missing.sort_by_key(|reason| *reason as u32);
    let mut sorted = excused.clone();
    sorted.sort_by_key(|reason| *reason as u32);
    assert_eq!(missing, sorted, "reasons without a fixture (left) and those excused (right)");
}

#[test]
fn names_of_fixtures_are_their_own() {
    let mut names: Vec<&str> = fixtures().iter().map(|fixture| fixture.name).collect();
    let all = names.len();
    names.sort_unstable();
    names.dedup();
    assert_eq!(names.len(), all);
}

/// An INVITE cut at each byte, with lengths that agree: never sent wrong (each run is compared with
/// the host), and sent only whole.
#[test]
fn truncated_messages() {
    let whole = [
        invite("cut").bytes(),
        options("cut").bytes(),
        invite("cut2").response("200 OK", "pbx").bytes(),
        invite("cut3").with_body("").bytes(),
    ];
    each_build(|subject| {
        for message in &whole {
            for n in 0..message.len() {
                let outcome = subject.send(PHONE, &message[..n]);
                assert_ne!(outcome.reason.way(), Way::Sent, "{n} of {}", message.len());
            }
        }
    });
}

/// A frame cut at each byte, with lengths that lie: never sent.
#[test]
fn truncated_frames() {
    let whole = [
        Frame::new(PHONE, PROXY, invite("cut")),
        Frame::new(PHONE, PROXY, options("cut")),
        Frame::new(VLAN_PHONE, PROXY, options("cut")).with(|f| f.tags = vec![(DOT1Q, 7)]),
    ];
    each_build(|subject| {
        for frame in &whole {
            let bytes = frame.bytes();
            // The kernel gives no program less than an Ethernet header.
            for n in 14..bytes.len() {
                let outcome = subject.run_bytes("ph", &bytes[..n]);
                assert_eq!(outcome.reason.way(), Way::Up, "{n} of {}", bytes.len());
            }
        }
    });
}

/// Each byte of an INVITE changed to something else: kernel and host agree on every one.
#[test]
fn changed_messages() {
    let messages = [invite("change").bytes(), options("change").bytes()];
    each_build(|subject| {
        for message in &messages {
            for n in 0..message.len() {
                for byte in [0, b'\r', b'\n', b' ', b',', b';', b':', b'"', b'<', b'9', 0xff] {
                    let mut changed = message.clone();
                    changed[n] = byte;
                    subject.send(PHONE, changed);
                }
            }
        }
    });
}

fn invite(call: &str) -> Message {
    Message::invite(PHONE, call)
}

fn options(call: &str) -> Message {
    Message::request("OPTIONS", PHONE, call)
}

/// An INVITE that is with a PBX now, as the PBX got it.
fn steered(subject: &mut Subject, call: &str) -> Message {
    Message::read(&subject.send(PHONE, invite(call)).read().payload)
}

/// The 200 of a call as the phone got it, and the PBX that sent it.
fn answered(subject: &mut Subject, call: &str) -> (Message, std::net::SocketAddrV4) {
    let outcome = subject.send(PHONE, invite(call));
    let pbx = outcome.read().dst;
    let ok = Message::read(&outcome.read().payload).response("200 OK", "pbx");
    (Message::read(&subject.send(pbx, ok).read().payload), pbx)
}

/// A valid BYE of the phone, and its PBX.
fn bye(subject: &mut Subject, call: &str) -> (Message, std::net::SocketAddrV4) {
    let (ok, pbx) = answered(subject, call);
    (ok.next("BYE", PHONE, 2), pbx)
}

/// The same with the cookie of a call that has a record.
fn recorded(subject: &Subject, message: Message, pbx: std::net::SocketAddrV4) -> Message {
    let keys = subject.world().keys();
    let call_id = message.value("Call-ID").into_bytes();
    let (call, _) = cookie::call(keys, &call_id[..], Span { at: 0, end: call_id.len() as u32 });
    let cookie = Cookie { flow: endpoint(PHONE), slot: u32::from(pbx == PBX2), recorded: true };
    let digits: Vec<u8> = cookie.write(keys, call).iter().flat_map(|w| w.to_le_bytes()).collect();
    let digits = String::from_utf8(digits).expect("digits");
    message.set("Route", &format!("<sip:{PROXY};lr;sl={digits}>"))
}

#[rustfmt::skip]
fn fixtures() -> Vec<Fixture> {
    let mut all = Vec::new();
    let mut add = |name, reason, run| all.push(Fixture { name, reason, run });

    // Layers 2 to 4.
    add("arp", Reason::NotIpv4, |s| s.run(&Frame::new(PHONE, PROXY, options("1")).with(|f| f.ether_type = 0x0806)));
    add("ipv6 without the programs for it", Reason::NotIpv4, |s| s.run(&Frame::new(PHONE, PROXY, options("1")).with(|f| f.ether_type = 0x86dd)));
    add("version 6 in a frame of type IPv4", Reason::NotIpv4, |s| s.run(&Frame::new(PHONE, PROXY, options("1")).with(|f| f.version = 6)));
    add("three VLAN tags", Reason::NotIpv4, |s| s.run(&Frame::new(PHONE, PROXY, options("1")).with(|f| f.tags = vec![(DOT1AD, 8), (DOT1Q, 9), (DOT1Q, 1)])));
    add("runt", Reason::NotIpv4, |s| s.run_bytes("ph", &[0; 14]));
    add("tcp", Reason::NotUdp, |s| s.run(&Frame::new(PHONE, PROXY, options("1")).with(|f| f.protocol = 6)));
    add("another address", Reason::NotOurs, |s| s.run(&Frame::new(PHONE, at([10, 10, 0, 2], 5060), options("1"))));
    add("another port", Reason::NotOurs, |s| s.run(&Frame::new(PHONE, at([10, 10, 0, 1], 5061), options("1"))));
    add("one word of IP options", Reason::IpOptions, |s| s.run(&Frame::new(PHONE, PROXY, options("1")).with(|f| f.options = vec![1; 4])));
    add("ten words of IP options", Reason::IpOptions, |s| s.run(&Frame::new(PHONE, PROXY, options("1")).with(|f| f.options = vec![1; 40])));
    add("first fragment", Reason::Fragment, |s| s.run(&Frame::new(PHONE, PROXY, options("1")).with(|f| f.fragment = 0x2000)));
    add("last fragment", Reason::Fragment, |s| s.run(&Frame::new(PHONE, PROXY, options("1")).with(|f| f.fragment = 100)));
    add("UDP longer than IP", Reason::BadLength, |s| s.run(&Frame::new(PHONE, PROXY, options("1")).with(|f| f.udp_len = Some(f.payload.len() as u16 + 9))));
    add("UDP shorter than IP", Reason::BadLength, |s| s.run(&Frame::new(PHONE, PROXY, options("1")).with(|f| f.udp_len = Some(f.payload.len() as u16 + 7))));
    add("UDP shorter than its header", Reason::BadLength, |s| s.run(&Frame::new(PHONE, PROXY, options("1")).with(|f| f.udp_len = Some(7))));
    add("UDP of length zero", Reason::BadLength, |s| s.run(&Frame::new(PHONE, PROXY, options("1")).with(|f| f.udp_len = Some(0))));
    add("IP longer than the frame", Reason::BadLength, |s| s.run(&Frame::new(PHONE, PROXY, options("1")).with(|f| {
        let len = f.payload.len() as u16;
        (f.ip_len, f.udp_len) = (Some(len + 29), Some(len + 9));
    })));
    add("IP shorter than its header", Reason::BadLength, |s| s.run(&Frame::new(PHONE, PROXY, options("1")).with(|f| f.ip_len = Some(19))));
    add("longer than what is read", Reason::TooLong, |s| s.send(PHONE, invite("1").with_body(&"x".repeat(2048))));
    add("no tables yet", Reason::NotConfigured, |s| {
        s.change(|w| w.flags = None);
        s.send(PHONE, options("1"))
    });
    add("denied source", Reason::Denied, |s| s.run(&Frame::new(DENIED, PROXY, options("1"))));
    add("denied source with lying lengths", Reason::Denied, |s| s.run(&Frame::new(DENIED, PROXY, options("1")).with(|f| f.udp_len = Some(7))));
    add("banned address in a trusted network", Reason::Banned, |s| {
        s.change(|w| w.sources.push((Ipv4Net::from(*PHONE.ip()), source::BANNED)));
        s.run(&Frame::new(PHONE, PROXY, invite("1")))
    });
    add("banned address in a denied network", Reason::Banned, |s| {
        s.change(|w| w.sources.push((Ipv4Net::from(*DENIED.ip()), source::BANNED | source::DENIED)));
        s.run(&Frame::new(DENIED, PROXY, options("1")))
    });
    add("stranger who has sent his burst", Reason::RateStranger, |s| {
        s.change(World::watch);
        let options = || Frame::new(STRANGER, PROXY, options("1"));
        for _ in 0..3 {
            assert_eq!(s.run(&options()).reason, Reason::OptionsAnswered);
        }
        s.run(&options())
    });
    add("stranger who has sent too many keepalives and nonsense", Reason::RateStranger, |s| {
        s.change(World::watch);
        assert_eq!(s.run(&Frame::new(STRANGER, PROXY, "\r\n\r\n")).reason, Reason::CrlfAnswered);
        assert_eq!(s.run(&Frame::new(STRANGER, PROXY, "OPTIONS x SIP/2.0")).reason.way(), Way::Up);
        assert_eq!(s.run(&Frame::new(STRANGER, PROXY, invite("1"))).reason, Reason::Untrusted);
        s.run(&Frame::new(STRANGER, PROXY, "\r\n\r\n"))
    });
    add("registered source that has sent its burst", Reason::RateRegistered, |s| {
        s.change(|w| {
            w.watch();
            w.registered.push(*STRANGER.ip());
        });
        for _ in 0..15 {
            assert_eq!(s.run(&Frame::new(STRANGER, PROXY, invite("1"))).reason, Reason::Untrusted);
        }
        s.run(&Frame::new(STRANGER, PROXY, invite("1")))
    });
    add("response beside a flood", Reason::NotOurResponse, |s| {
        s.change(World::watch);
        for _ in 0..3 {
            assert_eq!(s.run(&Frame::new(STRANGER, PROXY, invite("1"))).reason, Reason::Untrusted);
        }
        assert_eq!(s.run(&Frame::new(STRANGER, PROXY, invite("1"))).reason, Reason::RateStranger);
        let answer = "SIP/2.0 200 OK\r\nVia: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bK1\r\nFrom: <sip:a@b>;tag=1\r\n\
                      To: <sip:a@b>;tag=2\r\nCall-ID: 1\r\nCSeq: 1 INVITE\r\n\r\n";
        s.run(&Frame::new(STRANGER, PROXY, answer))
    });
    add("phone in an exempt network", Reason::OptionsAnswered, |s| {
        s.change(|w| {
            w.watch();
            w.sources.push((Ipv4Net::from(*STRANGER.ip()), source::EXEMPT));
        });
        for _ in 0..20 {
            s.run(&Frame::new(STRANGER, PROXY, options("1")));
        }
        s.run(&Frame::new(STRANGER, PROXY, options("1")))
    });
    add("trusted phone and PBX are not asked", Reason::OptionsAnswered, |s| {
        s.change(World::watch);
        for from in [PHONE, PBX1] {
            for _ in 0..20 {
                let outcome = s.run(&Frame::new(from, PROXY, options("1")));
                assert_eq!(outcome.reason, Reason::OptionsAnswered);
            }
        }
        s.send(PHONE, options("1"))
    });
    add("denied source while nobody is", Reason::OptionsAnswered, |s| {
        s.change(|w| w.flags = Some(flag::KEEPALIVES | flag::STEER));
        s.run(&Frame::new(DENIED, PROXY, options("1")))
    });

    // Keepalives.
    add("empty", Reason::EmptyDatagram, |s| s.send(PHONE, ""));
    add("empty, padded", Reason::EmptyDatagram, |s| s.run(&Frame::new(PHONE, PROXY, "").with(|f| f.pad_to = 60)));
    add("one NUL", Reason::EmptyDatagram, |s| s.send(PHONE, [0]));
    add("four NULs", Reason::EmptyDatagram, |s| s.send(PHONE, [0; 4]));
    add("one CRLF", Reason::EmptyDatagram, |s| s.send(PHONE, "\r\n"));
    add("four letters", Reason::Junk, |s| s.send(PHONE, "ping"));
    add("CRLF CRLF", Reason::CrlfAnswered, |s| s.send(PHONE, "\r\n\r\n"));
    add("CRLF CRLF, padded to 60", Reason::CrlfAnswered, |s| {
        let outcome = s.run(&Frame::new(PHONE, PROXY, "\r\n\r\n").with(|f| f.pad_to = 60));
        assert_eq!(outcome.frame.len(), 60);
        outcome
    });
    add("CRLF CRLF in a VLAN, padded to 64", Reason::CrlfAnswered, |s| s.run(&Frame::new(VLAN_PHONE, PROXY, "\r\n\r\n").with(|f| {
        f.tags = vec![(DOT1Q, 7)];
        f.pad_to = 64;
    })));
    add("CRLF CRLF without a checksum", Reason::CrlfAnswered, |s| s.run(&Frame::new(PHONE, PROXY, "\r\n\r\n").with(|f| f.checksum = Checksum::Zero)));
    add("CRLF CRLF while the daemon is dead", Reason::HeartbeatStale, |s| {
        s.change(|w| w.alive = false);
        s.send(PHONE, "\r\n\r\n")
    });
    add("CRLF CRLF while keepalives are off", Reason::Method, |s| {
        s.change(|w| w.flags = Some(flag::STEER));
        s.send(PHONE, "\r\n\r\n")
    });

    // OPTIONS.
    add("OPTIONS", Reason::OptionsAnswered, |s| {
        let outcome = s.send(PHONE, options("o1"));
        let answer = Message::read(&outcome.read().payload);
        assert_eq!(answer.start, "SIP/2.0 200 OK");
        assert_eq!(answer.value("Via"), "SIP/2.0/UDP 10.10.1.2:5061;branch=z9hG4bK-o1-OPTIONS;rport=5061;received=10.10.1.2");
        assert_eq!(answer.value("From"), "phone <sip:phone@10.10.1.2:5061>;tag=from-o1");
        assert!(answer.value("To").starts_with("service <sip:service@10.10.0.1:5060>;tag="));
        assert_eq!((answer.value("Call-ID"), answer.value("CSeq")), ("o1".into(), "1 OPTIONS".into()));
        for header in ["Allow", "Accept", "Supported"] {
            answer.value(header);
        }
        assert_eq!(answer.value("Content-Length"), "0");
        assert!(answer.body.is_empty());
        outcome
    });
    add("OPTIONS again: the same tag", Reason::OptionsAnswered, |s| {
        let first = s.send(PHONE, options("o2"));
        let second = s.send(PHONE, options("o2"));
        assert_eq!(first.frame, second.frame);
        second
    });
    add("OPTIONS in a VLAN", Reason::OptionsAnswered, |s| s.send(VLAN_PHONE, Message::request("OPTIONS", VLAN_PHONE, "o3")));
    add("OPTIONS in a VLAN in a VLAN", Reason::OptionsAnswered, |s| s.send(QINQ_PHONE, Message::request("OPTIONS", QINQ_PHONE, "o4")));
    add("OPTIONS of an odd length", Reason::OptionsAnswered, |s| s.send(PHONE, options("o5").line("X: odd")));
    add("OPTIONS of another odd length", Reason::OptionsAnswered, |s| s.send(PHONE, options("o5").line("X: even")));
    add("OPTIONS without a checksum", Reason::OptionsAnswered, |s| s.run(&Frame::new(PHONE, PROXY, options("o6")).with(|f| f.checksum = Checksum::Zero)));
    add("OPTIONS from somebody", Reason::OptionsAnswered, |s| s.run(&Frame::new(STRANGER, PROXY, Message::request("OPTIONS", STRANGER, "o7"))));
    add("OPTIONS by way of another proxy", Reason::OptionsAnswered, |s| s.send(PHONE, {
        let mut message = options("o8");
        message.lines.insert(1, "Via: SIP/2.0/UDP 192.0.2.9:5060;branch=z9hG4bK2;received=192.0.2.8".into());
        message
    }));
    add("OPTIONS in compact form", Reason::OptionsAnswered, |s| s.send(PHONE, "OPTIONS sip:10.10.0.1 SIP/2.0\r\nv:SIP/2.0/UDP a.example;rport;branch=z9hG4bK1\r\nf:<sip:a@b>;tag=1\r\nt:<sip:c@d>\r\ni:o9\r\nCSeq:1 OPTIONS\r\nl:0\r\n\r\n"));
    add("OPTIONS with a body", Reason::OptionsAnswered, |s| s.send(PHONE, options("o10").with_body("hello")));
    add("OPTIONS with a body without its last LF", Reason::OptionsAnswered, |s| s.send(PHONE, options("o11").with_body("hello\r\nyou\r")));
    add("OPTIONS that grows the frame", Reason::OptionsAnswered, |s| s.send(PHONE, "OPTIONS sip:10.10.0.1 SIP/2.0\r\nVia:SIP/2.0/UDP 1.2.3.4;branch=z9hG4bK1;rport\r\nFrom:<sip:a@b>;tag=1\r\nTo:<sip:c@d>\r\nCall-ID:o\r\nCSeq:1 OPTIONS\r\n\r\n"));
    add("OPTIONS whose answer would be longer than the MTU", Reason::Mtu, |s| {
        // Everything in it is answered back, and the answer says something about us besides.
        let mut message = options("o12").without("Contact").without("Max-Forwards").without("Content-Length");
        let length = message.bytes().len();
        let via = format!("Via: SIP/2.0/UDP 192.0.2.9;branch=z9hG4bK{}", "x".repeat(1400 - length));
        message.lines.insert(1, via);
        s.send(PHONE, message)
    });
    add("OPTIONS without rport, from the port in its Via", Reason::OptionsAnswered, |s| s.send(PHONE, options("o13").set("Via", "SIP/2.0/UDP 10.10.1.2:5061;branch=z9hG4bK1")));
    add("OPTIONS without rport, from elsewhere, from the port in its Via", Reason::OptionsAnswered, |s| {
        let outcome = s.send(PHONE, options("o14").set("Via", "SIP/2.0/UDP 192.168.1.2:5061;branch=z9hG4bK1"));
        assert!(outcome.text().contains("branch=z9hG4bK1;received=10.10.1.2\r\n"), "{}", outcome.text());
        outcome
    });
    add("OPTIONS without rport, from another port", Reason::OddVia, |s| s.send(PHONE, options("o15").set("Via", "SIP/2.0/UDP 10.10.1.2:5062;branch=z9hG4bK1")));
    add("OPTIONS without rport, from a name", Reason::OddVia, |s| s.send(PHONE, options("o16").set("Via", "SIP/2.0/UDP a.example:5061;branch=z9hG4bK1")));
    add("OPTIONS for a user", Reason::OptionsNotForUs, |s| s.send(PHONE, options("1").start("OPTIONS sip:bob@10.10.0.1:5060 SIP/2.0")));
    add("OPTIONS for somebody else", Reason::OptionsNotForUs, |s| s.send(PHONE, options("1").start("OPTIONS sip:10.10.0.2 SIP/2.0")));
    add("OPTIONS for another port of ours", Reason::OptionsNotForUs, |s| s.send(PHONE, options("1").start("OPTIONS sip:10.10.0.1:5061 SIP/2.0")));
    add("OPTIONS with a Route", Reason::OptionsNotForUs, |s| s.send(PHONE, options("1").line("Route: <sip:10.10.0.1;lr>")));
    add("OPTIONS with Require", Reason::OptionsNotForUs, |s| s.send(PHONE, options("1").line("Require: 100rel")));
    add("OPTIONS while the daemon is dead", Reason::HeartbeatStale, |s| {
        s.change(|w| w.alive = false);
        s.send(PHONE, options("1"))
    });
    add("OPTIONS while keepalives are off", Reason::Method, |s| {
        s.change(|w| w.flags = Some(flag::STEER));
        s.send(PHONE, options("1"))
    });
    add("OPTIONS whose Vias do not stand together", Reason::OddVia, |s| s.send(PHONE, options("1").line("Via: SIP/2.0/UDP 1.2.3.4;branch=z9hG4bK9")));

    // What the scanner refuses or reports.
    add("HTTP", Reason::Junk, |s| s.send(PHONE, "GET / HTTP/1.1\r\nHost: a\r\n\r\n"));
    add("no SIP", Reason::Malformed, |s| s.send(PHONE, "hello, is this on?"));
    add("SIP 3.0", Reason::Malformed, |s| s.send(PHONE, options("1").start("OPTIONS sip:10.10.0.1:5060 SIP/3.0")));
    add("a lone LF", Reason::Malformed, |s| s.send(PHONE, options("1").line("X: a\nY: b")));
    add("a NUL", Reason::Malformed, |s| s.send(PHONE, options("1").line("X: a\0b")));
    add("no end of headers", Reason::Malformed, |s| s.send(PHONE, "OPTIONS sip:10.10.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP 1.2.3.4;branch=z9hG4bK1\r\n"));
    add("CR at the very end", Reason::Malformed, |s| {
        let mut bytes = options("1").bytes();
        bytes.pop();
        s.send(PHONE, bytes)
    });
    add("too many headers", Reason::Malformed, |s| s.send(PHONE, (0..130).fold(options("1"), |m, _| m.line("X:y"))));
    add("folded header", Reason::Folded, |s| s.send(PHONE, options("1").line("Subject: a\r\n b")));

    // Requests that are odd.
    add("no Via", Reason::OddVia, |s| s.send(PHONE, invite("1").without("Via")));
    add("Via of TCP", Reason::OddVia, |s| s.send(PHONE, invite("1").set("Via", "SIP/2.0/TCP 10.10.1.2;branch=z9hG4bK1")));
    add("branch without the magic cookie", Reason::OddVia, |s| s.send(PHONE, invite("1").set("Via", "SIP/2.0/UDP 10.10.1.2;branch=1")));
    add("no branch", Reason::OddVia, |s| s.send(PHONE, invite("1").set("Via", "SIP/2.0/UDP 10.10.1.2")));
    add("received already there", Reason::OddVia, |s| s.send(PHONE, invite("1").set("Via", "SIP/2.0/UDP 10.10.1.2;received=1.2.3.4;branch=z9hG4bK1")));
    add("rport already filled", Reason::OddVia, |s| s.send(PHONE, invite("1").set("Via", "SIP/2.0/UDP 10.10.1.2;rport=1;branch=z9hG4bK1")));
    add("maddr", Reason::OddVia, |s| s.send(PHONE, invite("1").set("Via", "SIP/2.0/UDP 10.10.1.2;maddr=1.2.3.4;branch=z9hG4bK1")));
    add("two Vias in a line", Reason::OddVia, |s| s.send(PHONE, invite("1").set("Via", "SIP/2.0/UDP 10.10.1.2;branch=z9hG4bK1,SIP/2.0/UDP 1.2.3.4;branch=z9hG4bK2")));
    add("spaces in a Via", Reason::OddVia, |s| s.send(PHONE, invite("1").set("Via", "SIP / 2.0 / UDP 10.10.1.2;branch=z9hG4bK1")));
    add("no Max-Forwards", Reason::MaxForwards, |s| s.send(PHONE, invite("1").without("Max-Forwards")));
    add("Max-Forwards 0", Reason::MaxForwards, |s| s.send(PHONE, invite("1").set("Max-Forwards", "0")));
    add("Max-Forwards 71", Reason::MaxForwards, |s| s.send(PHONE, invite("1").set("Max-Forwards", "71")));
    add("Max-Forwards 0070", Reason::MaxForwards, |s| s.send(PHONE, invite("1").set("Max-Forwards", "0070")));
    add("Max-Forwards x", Reason::MaxForwards, |s| s.send(PHONE, invite("1").set("Max-Forwards", "x")));
    add("Proxy-Require", Reason::Required, |s| s.send(PHONE, invite("1").line("Proxy-Require: privacy")));
    add("two Call-IDs", Reason::OddHeader, |s| s.send(PHONE, invite("1").line("Call-ID: 2")));
    add("two tags in To", Reason::OddHeader, |s| s.send(PHONE, invite("1").set("To", "<sip:a@b>;tag=1;tag=2")));
    add("no Call-ID", Reason::OddHeader, |s| s.send(PHONE, invite("1").without("Call-ID")));
    add("empty Call-ID", Reason::OddHeader, |s| s.send(PHONE, invite("1").set("Call-ID", "")));
    add("CSeq of another method", Reason::OddHeader, |s| s.send(PHONE, invite("1").set("CSeq", "1 BYE")));
    add("CSeq of 2^31", Reason::OddHeader, |s| s.send(PHONE, invite("1").set("CSeq", "2147483648 INVITE")));
    add("Content-Length longer than the body", Reason::ContentLength, |s| s.send(PHONE, { let m = invite("1"); let n = m.body.len() + 1; m.set("Content-Length", &n.to_string()) }));
    add("Content-Length shorter than the body", Reason::ContentLength, |s| s.send(PHONE, { let m = invite("1"); let n = m.body.len() - 1; m.set("Content-Length", &n.to_string()) }));
    add("REGISTER", Reason::Method, |s| s.send(PHONE, Message::request("REGISTER", PHONE, "1")));
    add("BYE without a Route", Reason::Method, |s| s.send(PHONE, Message::request("BYE", PHONE, "1").set("To", "<sip:a@b>;tag=2")));
    add("INVITE while steering is off", Reason::Method, |s| {
        s.change(|w| w.flags = Some(flag::KEEPALIVES));
        s.send(PHONE, invite("1"))
    });
    add("INVITE from somebody", Reason::Untrusted, |s| s.run(&Frame::new(STRANGER, PROXY, Message::invite(STRANGER, "1"))));
    add("INVITE from a PBX", Reason::FromPbx, |s| s.send(PBX1, Message::invite(PBX1, "1")));
    add("INVITE with a Route", Reason::Preloaded, |s| s.send(PHONE, invite("1").line("Route: <sip:10.10.0.1;lr>")));
    add("no PBX takes calls", Reason::NoPbx, |s| {
        s.change(|w| w.set_turns(&[]));
        s.send(PHONE, invite("nobody"))
    });
    add("no PBX of the schedule is active", Reason::NoPbx, |s| {
        s.set_state(0, PbxState::Inactive);
        s.set_state(1, PbxState::Disabled);
        s.send(PHONE, invite("nobody"))
    });
    add("CANCEL of an unknown call", Reason::UnknownCall, |s| s.send(PHONE, Message::request("CANCEL", PHONE, "unknown")));
    add("ACK of an unknown call", Reason::UnknownCall, |s| s.send(PHONE, Message::request("ACK", PHONE, "unknown").set("To", "<sip:a@b>;tag=2")));

    // Calls.
    add("INVITE", Reason::InviteSteered, |s| s.send(PHONE, invite("i1")));
    add("INVITE without a body", Reason::InviteSteered, |s| s.send(PHONE, invite("i2").with_body("")));
    add("INVITE whose From has no tag", Reason::InviteSteered, |s| s.send(PHONE, invite("i0").set("From", "<sip:a@b>")));
    add("INVITE without Content-Length", Reason::InviteSteered, |s| s.send(PHONE, invite("i3").without("Content-Length")));
    add("INVITE with the spaces of SIPp", Reason::InviteSteered, |s| s.send(PHONE, { let m = invite("i4"); let n = m.body.len(); m.set("Content-Length", &format!("  {n}")) }));
    add("INVITE whose body has no last LF", Reason::InviteSteered, |s| s.send(PHONE, invite("i5").with_body("v=0\r\ns=-")));
    add("INVITE whose body ends by CR", Reason::InviteSteered, |s| s.send(PHONE, invite("i6").with_body("v=0\r\ns=-\r")));
    add("INVITE without rport, from where it says", Reason::InviteSteered, |s| {
        let outcome = s.send(PHONE, invite("i7").set("Via", "SIP/2.0/UDP 10.10.1.2:5061;branch=z9hG4bK7"));
        assert!(!outcome.text().contains("received"), "{}", outcome.text());
        outcome
    });
    add("INVITE without rport, from elsewhere", Reason::InviteSteered, |s| {
        let outcome = s.send(PHONE, invite("i8").set("Via", "SIP/2.0/UDP 192.168.1.2:5061;branch=z9hG4bK7"));
        assert!(outcome.text().contains("branch=z9hG4bK7;received=10.10.1.2\r\n"), "{}", outcome.text());
        outcome
    });
    add("INVITE from a name", Reason::InviteSteered, |s| {
        let outcome = s.send(PHONE, invite("i9").set("Via", "SIP/2.0/UDP phone.example:5061;branch=z9hG4bK7"));
        assert!(outcome.text().contains("branch=z9hG4bK7;received=10.10.1.2\r\n"), "{}", outcome.text());
        outcome
    });
    add("INVITE with rport in the middle", Reason::InviteSteered, |s| {
        let outcome = s.send(PHONE, invite("i10").set("Via", "SIP/2.0/UDP 10.10.1.2:5061;rport;branch=z9hG4bK7;x=y"));
        assert!(outcome.text().contains("Via: SIP/2.0/UDP 10.10.1.2:5061;rport=5061;received=10.10.1.2;branch=z9hG4bK7;x=y\r\n"), "{}", outcome.text());
        outcome
    });
    add("INVITE from ports of every length", Reason::InviteSteered, |s| {
        for port in [1, 9, 10, 99, 100, 999, 1000, 9999, 10_000, 43_699, 54_321] {
            let outcome = s.send(at([10, 10, 1, 2], port), invite(&format!("i11-{port}")));
            assert!(outcome.text().contains(&format!(";rport={port};received=10.10.1.2\r\n")), "{}", outcome.text());
        }
        let outcome = s.send(at([10, 10, 1, 2], 65_535), invite("i12"));
        assert!(outcome.text().contains(";rport=65535;received=10.10.1.2\r\n"), "{}", outcome.text());
        outcome
    });
    add("INVITE with Max-Forwards 1", Reason::InviteSteered, |s| {
        let outcome = s.send(PHONE, invite("i13").set("Max-Forwards", "1"));
        assert!(outcome.text().contains("Max-Forwards: 0\r\n"));
        outcome
    });
    add("INVITE with Max-Forwards 10", Reason::InviteSteered, |s| {
        let outcome = s.send(PHONE, invite("i14").set("Max-Forwards", "10"));
        assert!(outcome.text().contains("Max-Forwards: 09\r\n"));
        outcome
    });
    add("INVITE with Max-Forwards 070, at an odd place", Reason::InviteSteered, |s| s.send(PHONE, invite("i15").set("Max-Forwards", " 070")));
    add("INVITE with Max-Forwards before the Via", Reason::InviteSteered, |s| s.send(PHONE, invite("i16").without("Max-Forwards").top("Max-Forwards: 20")));
    add("INVITE with the Via last", Reason::InviteSteered, |s| s.send(PHONE, invite("i17").without("Via").line("v: SIP/2.0/UDP 10.10.1.2:5061;branch=z9hG4bK17;rport")));
    add("INVITE without a checksum", Reason::InviteSteered, |s| s.run(&Frame::new(PHONE, PROXY, invite("i18")).with(|f| f.checksum = Checksum::Zero)));
    add("INVITE with a wrong checksum: it stays wrong", Reason::InviteSteered, |s| {
        let outcome = s.run(&Frame::new(PHONE, PROXY, invite("i19")).with(|f| f.checksum = Checksum::Off(1234)));
        assert!(!outcome.read().is_sound());
        outcome
    });
    add("INVITE with bytes behind the datagram", Reason::InviteSteered, |s| s.run(&Frame::new(PHONE, PROXY, invite("i20")).with(|f| f.pad_to = 1300)));
    add("INVITE in a VLAN", Reason::InviteSteered, |s| s.send(VLAN_PHONE, Message::invite(VLAN_PHONE, "i21")));
    add("INVITE in a VLAN in a VLAN", Reason::InviteSteered, |s| s.send(QINQ_PHONE, Message::invite(QINQ_PHONE, "i22")));
    add("INVITE by way of another proxy", Reason::InviteSteered, |s| s.send(PHONE, {
        let mut message = invite("i23");
        message.lines.insert(1, "Via: SIP/2.0/TCP 192.0.2.9:5060;branch=z9hG4bK2".into());
        message.line("Record-Route: <sip:10.10.1.2;lr>")
    }));
    add("INVITE with as much as fits", Reason::InviteSteered, |s| {
        let bare = s.send(PHONE, invite("i24").with_body("")).read().payload.len();
        // Two digits more in Content-Length.
        let outcome = s.send(PHONE, invite("i25").with_body(&"x".repeat(1500 - 28 - bare - 2)));
        assert_eq!(outcome.frame.len(), 1514);
        outcome
    });
    add("INVITE that would be longer than the MTU", Reason::Mtu, |s| {
        let bare = s.send(PHONE, invite("i26").with_body("")).read().payload.len();
        s.send(PHONE, invite("i27").with_body(&"x".repeat(1500 - 28 - bare - 1)))
    });
    add("INVITE to a PBX behind a narrow way", Reason::Mtu, |s| {
        s.change(|w| { w.pbxs[2] = pbx(NARROW_PBX, PbxState::Active); w.set_turns(&[2]); });
        s.send(PHONE, invite("i28"))
    });
    add("a small INVITE to a PBX behind a narrow way", Reason::InviteSteered, |s| {
        s.change(|w| { w.pbxs[2] = pbx(NARROW_PBX, PbxState::Active); w.set_turns(&[2]); });
        s.send(PHONE, invite("i29").with_body("").without("Subject").without("User-Agent").without("Content-Type"))
    });
    add("INVITE to a PBX that is nowhere", Reason::NoNeighbour, |s| {
        s.change(|w| { w.pbxs[3] = pbx(LOST_PBX, PbxState::Active); w.set_turns(&[3]); });
        s.send(PHONE, invite("i30"))
    });
    add("INVITE to a PBX behind another port", Reason::OtherPort, |s| {
        s.change(|w| { w.pbxs[4] = pbx(ELSEWHERE_PBX, PbxState::Active); w.set_turns(&[4]); });
        s.send(PHONE, invite("i31"))
    });
    add("INVITE again", Reason::InviteRepeated, |s| {
        let first = s.send(PHONE, invite("r1"));
        let second = s.send(PHONE, invite("r1"));
        assert_eq!(first.frame, second.frame);
        second
    });
    add("CANCEL", Reason::CancelSteered, |s| {
        let invite = steered(s, "c1");
        let outcome = s.send(PHONE, Message::request("CANCEL", PHONE, "c1").set("Via", "SIP/2.0/UDP 10.10.1.2:5061;branch=z9hG4bK-c1-INVITE;rport"));
        let cancel = Message::read(&outcome.read().payload);
        // RFC 3261 9.1: the same top Via, so the PBX can match them.
        assert_eq!(cancel.values("Via")[0], invite.values("Via")[0]);
        assert!(cancel.values("Record-Route").is_empty());
        outcome
    });
    add("ACK of a failure", Reason::AckSteered, |s| {
        let invite = steered(s, "a1");
        let outcome = s.send(PHONE, Message::request("ACK", PHONE, "a1").set("Via", "SIP/2.0/UDP 10.10.1.2:5061;branch=z9hG4bK-a1-INVITE;rport").set("To", "<sip:service@10.10.0.1:5060>;tag=busy"));
        assert_eq!(Message::read(&outcome.read().payload).values("Via")[0], invite.values("Via")[0]);
        outcome
    });

    // Responses.
    add("200 of an INVITE", Reason::ResponseForwarded, |s| {
        let at_pbx = s.send(PHONE, invite("p1"));
        let pbx = at_pbx.read().dst;
        let ok = Message::read(&at_pbx.read().payload).response("200 OK", "pbx");
        let outcome = s.send(pbx, ok);
        let got = Message::read(&outcome.read().payload);
        assert_eq!(got.values("Via"), ["SIP/2.0/UDP 10.10.1.2:5061;branch=z9hG4bK-p1-INVITE;rport=5061;received=10.10.1.2"]);
        assert_eq!(got.values("Record-Route").len(), 1);
        outcome
    });
    add("response without a checksum", Reason::ResponseForwarded, |s| {
        let at_pbx = s.send(PHONE, invite("p2"));
        let pbx = at_pbx.read().dst;
        let ok = Message::read(&at_pbx.read().payload).response("180 Ringing", "pbx");
        s.run(&Frame::new(pbx, PROXY, ok).with(|f| f.checksum = Checksum::Zero))
    });
    add("response whose Vias are joined by a comma", Reason::ResponseForwarded, |s| {
        let at_pbx = s.send(PHONE, invite("p3"));
        let pbx = at_pbx.read().dst;
        let mut ok = Message::read(&at_pbx.read().payload).response("200 OK", "pbx");
        let vias = ok.values("Via").join(", ");
        ok = ok.without("Via").top(&format!("Via: {vias}"));
        let outcome = s.send(pbx, ok);
        assert_eq!(Message::read(&outcome.read().payload).values("Via").len(), 1);
        outcome
    });
    add("response with three Vias, ours of an odd length", Reason::ResponseForwarded, |s| {
        let mut message = invite("p4");
        message.lines.insert(1, "Via: SIP/2.0/UDP 192.0.2.9:5060;branch=z9hG4bK2".into());
        let at_pbx = s.send(PHONE, message);
        let pbx = at_pbx.read().dst;
        let ok = Message::read(&at_pbx.read().payload).response("200 OK", "pbx");
        let vias: Vec<String> = ok.values("Via");
        let odd = format!("Via:  {}", vias[0]);
        let even = format!("Via: {}", vias[0]);
        assert_ne!(odd.len() % 2, even.len() % 2);
        for first in [odd, even] {
            let mut changed = ok.clone();
            let at = changed.lines.iter().position(|line| line.starts_with("Via")).expect("a Via");
            changed.lines[at] = first;
            let outcome = s.send(pbx, changed);
            assert_eq!(Message::read(&outcome.read().payload).values("Via").len(), 2);
        }
        s.send(pbx, ok)
    });
    add("response whose headers stand before the Via", Reason::ResponseForwarded, |s| {
        let at_pbx = s.send(PHONE, invite("p5"));
        let pbx = at_pbx.read().dst;
        let ok = Message::read(&at_pbx.read().payload).response("486 Busy Here", "pbx");
        s.send(pbx, ok.top("X-First: 1").top("X-Even-More: 2"))
    });
    add("response with a body without its last LF", Reason::ResponseForwarded, |s| {
        let at_pbx = s.send(PHONE, invite("p6"));
        let pbx = at_pbx.read().dst;
        let ok = Message::read(&at_pbx.read().payload).response("200 OK", "pbx").with_body("v=0\r\ns=x");
        s.send(pbx, ok)
    });
    add("response to a phone in a VLAN", Reason::ResponseForwarded, |s| {
        let at_pbx = s.send(VLAN_PHONE, Message::invite(VLAN_PHONE, "p7"));
        let pbx = at_pbx.read().dst;
        s.send(pbx, Message::read(&at_pbx.read().payload).response("200 OK", "pbx"))
    });
    add("response to a phone in a VLAN in a VLAN", Reason::ResponseForwarded, |s| {
        let at_pbx = s.send(QINQ_PHONE, Message::invite(QINQ_PHONE, "p8"));
        let pbx = at_pbx.read().dst;
        s.send(pbx, Message::read(&at_pbx.read().payload).response("200 OK", "pbx"))
    });
    add("response to somebody else's request", Reason::NotOurResponse, |s| s.send(PBX1, invite("1").response("200 OK", "x")));
    add("response to the daemon's request", Reason::DaemonResponse, |s| {
        s.send(PBX1, Message::request("OPTIONS", PROXY, "1").set("Via", "SIP/2.0/UDP 10.10.0.1:5060;branch=z9hG4bKsld0123456789").response("200 OK", "x"))
    });
    add("response with a forged branch", Reason::BadBranch, |s| {
        let mut message = invite("1");
        message.lines.insert(0, "Via: SIP/2.0/UDP 10.10.0.1:5060;branch=z9hG4bKslk0123456789abcdef".into());
        s.send(PBX1, message.response("200 OK", "x"))
    });
    add("response with our Via alone", Reason::BadBranch, |s| {
        let message = invite("1").set("Via", "SIP/2.0/UDP 10.10.0.1:5060;branch=z9hG4bKslk0123456789abcdef");
        s.send(PBX1, message.response("200 OK", "x"))
    });
    add("response with another Call-ID", Reason::BadBranch, |s| {
        let at_pbx = s.send(PHONE, invite("p9"));
        let pbx = at_pbx.read().dst;
        s.send(pbx, Message::read(&at_pbx.read().payload).response("200 OK", "x").set("Call-ID", "p10"))
    });
    add("response from somebody to somebody", Reason::WrongSide, |s| {
        let at_pbx = s.send(PHONE, invite("p11"));
        let ok = Message::read(&at_pbx.read().payload).response("200 OK", "x");
        s.run(&Frame::new(STRANGER, PROXY, ok))
    });
    add("response whose next Via is odd", Reason::OddVia, |s| {
        let at_pbx = s.send(PHONE, invite("p12"));
        let pbx = at_pbx.read().dst;
        let mut ok = Message::read(&at_pbx.read().payload).response("200 OK", "x");
        ok.lines[1] = "Via: SIP/2.0/TCP 10.10.1.2;branch=z9hG4bK1".into();
        let at = ok.lines.iter().rposition(|line| line.starts_with("Via")).expect("two Vias");
        ok.lines[at] = "Via: SIP/2.0/TCP 10.10.1.2;branch=z9hG4bK1".into();
        s.send(pbx, ok)
    });

    // Inside a dialog.
    add("ACK of the 200", Reason::DialogToPbx, |s| {
        let (ok, pbx) = answered(s, "d1");
        let outcome = s.send(PHONE, ok.next("ACK", PHONE, 1));
        assert_eq!(outcome.read().dst, pbx);
        assert!(Message::read(&outcome.read().payload).values("Route").is_empty());
        outcome
    });
    add("BYE of the phone", Reason::DialogToPbx, |s| {
        let (bye, pbx) = bye(s, "d2");
        let outcome = s.send(PHONE, bye);
        assert_eq!(outcome.read().dst, pbx);
        outcome
    });
    add("BYE of the phone whose Route stands before the Via", Reason::DialogToPbx, |s| {
        let (bye, _) = bye(s, "d3");
        let route = bye.value("Route");
        s.send(PHONE, bye.without("Route").top(&format!("Route: {route}")))
    });
    add("BYE of the PBX", Reason::DialogToPhone, |s| {
        let (ok, pbx) = answered(s, "d4");
        let outcome = s.send(pbx, ok.next_back("BYE", pbx, 1));
        assert_eq!(outcome.read().dst, PHONE);
        outcome
    });
    add("BYE of the PBX to a phone in a VLAN", Reason::DialogToPhone, |s| {
        let outcome = s.send(VLAN_PHONE, Message::invite(VLAN_PHONE, "d5"));
        let pbx = outcome.read().dst;
        let ok = Message::read(&outcome.read().payload).response("200 OK", "pbx");
        s.send(pbx, ok.next_back("BYE", pbx, 1))
    });
    add("BYE to a PBX that is found dead", Reason::DialogToPbx, |s| {
        let (bye, pbx) = bye(s, "d6");
        s.set_state(usize::from(pbx == PBX2), PbxState::Inactive);
        s.send(PHONE, bye)
    });
    add("BYE to a PBX that is gone", Reason::NoPbx, |s| {
        let (bye, pbx) = bye(s, "d7");
        s.set_state(usize::from(pbx == PBX2), PbxState::Unused);
        s.send(PHONE, bye)
    });
    add("BYE of the phone in a call with a record", Reason::ByeRecorded, |s| {
        let (bye, pbx) = bye(s, "r1");
        s.send(PHONE, recorded(s, bye, pbx))
    });
    add("BYE of the PBX in a call with a record", Reason::ByeRecorded, |s| {
        let (ok, pbx) = answered(s, "r2");
        s.send(pbx, recorded(s, ok.next_back("BYE", pbx, 1), pbx))
    });
    add("BYE in a call with a record while the daemon is dead", Reason::DialogToPbx, |s| {
        let (bye, pbx) = bye(s, "r4");
        s.change(|w| w.alive = false);
        s.send(PHONE, recorded(s, bye, pbx))
    });
    add("ACK in a call with a record", Reason::DialogToPbx, |s| {
        let (ok, pbx) = answered(s, "r3");
        s.send(PHONE, recorded(s, ok.next("ACK", PHONE, 1), pbx))
    });
    add("two Routes", Reason::OddRoute, |s| {
        let (bye, _) = bye(s, "d8");
        s.send(PHONE, bye.line("Route: <sip:1.2.3.4;lr>"))
    });
    add("Route of somebody else", Reason::OddRoute, |s| {
        let (bye, _) = bye(s, "d9");
        s.send(PHONE, bye.set("Route", "<sip:1.2.3.4;lr>"))
    });
    add("Route with a parameter more", Reason::OddRoute, |s| {
        let (bye, _) = bye(s, "d10");
        let route = bye.value("Route");
        s.send(PHONE, bye.set("Route", &route.replace('>', ";x>")))
    });
    add("cookie with a digit changed", Reason::BadCookie, |s| {
        let (bye, _) = bye(s, "d11");
        let route = bye.value("Route");
        let digit = route.as_bytes()[route.len() - 2];
        let other = if digit == b'0' { '1' } else { '0' };
        let forged = format!("{}{other}>", &route[..route.len() - 2]);
        s.send(PHONE, bye.set("Route", &forged))
    });
    add("cookie for another phone", Reason::BadCookie, |s| {
        let (bye, _) = bye(s, "d12");
        let route = bye.value("Route");
        // The flow is the first eight digits: 10.10.1.2 becomes 10.10.1.3.
        assert!(route.contains("sl=0a0a0102"), "{route}");
        s.send(PHONE, bye.set("Route", &route.replace("sl=0a0a0102", "sl=0a0a0103")))
    });
    add("cookie with letters that are no digits", Reason::BadCookie, |s| {
        let (bye, _) = bye(s, "d13");
        let route = bye.value("Route");
        s.send(PHONE, bye.set("Route", &route.replace("sl=0a", "sl=0g")))
    });
    add("cookie of another call", Reason::BadCookie, |s| {
        let (bye, _) = bye(s, "d14");
        s.send(PHONE, bye.set("Call-ID", "d15"))
    });
    add("cookie used by another PBX", Reason::WrongSide, |s| {
        let (ok, pbx) = answered(s, "d17");
        let other = if pbx == PBX1 { PBX2 } else { PBX1 };
        s.send(other, ok.next_back("BYE", other, 1))
    });
    add("INFO inside the dialog", Reason::DialogToPbx, |s| {
        let (ok, _) = answered(s, "d18");
        s.send(PHONE, ok.next("INFO", PHONE, 2).with_body("Signal=1\r\n"))
    });
    add("re-INVITE of the phone", Reason::DialogToPbx, |s| {
        let (ok, _) = answered(s, "d19");
        let outcome = s.send(PHONE, ok.next("INVITE", PHONE, 2));
        assert!(!outcome.text().contains("Record-Route"));
        outcome
    });
    add("BYE without a dialog but with a Route", Reason::Preloaded, |s| {
        let (bye, _) = bye(s, "d20");
        s.send(PHONE, bye.set("To", "<sip:a@b>"))
    });
    all
}
