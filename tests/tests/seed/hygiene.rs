//! Hygiene: what is wrong with a request is said, or met with silence; what is odd and right is accepted.

use sipline_tests::lab::Mode;

use crate::text::{header, headers, reply, status, without};
use crate::world::{Case, EXTENSION, World, run};

const CASES: &[Case] = &[
    ("a missing Max-Forwards is 10", |w| assert_eq!(forwarded(w, ""), "10")),
    ("a Max-Forwards is counted down", |w| {
        assert_eq!(forwarded(w, "Max-Forwards: 5\r\n"), "4");
    }),
    ("a Max-Forwards above 70 is lowered to it", |w| {
        assert_eq!(forwarded(w, "Max-Forwards: 200\r\n"), "69");
    }),
    ("483 for a Max-Forwards of zero, and for one that is no number", too_many_hops),
    ("400 says what is wrong", bad_requests),
    ("silence for what cannot be answered", silence),
    ("compact forms", compact_forms),
    ("a missing Contact", missing_contact),
    ("a branch of before RFC 3261", old_branch),
    ("a From without a tag, a Via without a branch: as the RFCs have it", without_tag_or_branch),
    ("received and rport are filled in", received),
    ("damaged messages by the thousand: still there, and no larger", damaged),
    ("420 for an extension that a proxy must have", bad_extension),
];

#[test]
fn hygiene() {
    run(Mode::Off, CASES);
}

/// The Max-Forwards that the PBX gets if the phone says this.
fn forwarded(world: &mut World, line: &str) -> String {
    let mut phone = world.phone();
    let text = phone.authorized("INVITE", EXTENSION, "hops", "");
    let text = text.replace("Max-Forwards: 70\r\n", line);
    phone.peer.send(&text);
    phone.peer.expect("100");
    let (place, invite) = world.who_is_invited();
    world.answer(place, &invite, "486 Busy Here");
    phone.hears(&text, "486");
    world.pbx(place).expect("ACK");
    header(&invite, "Max-Forwards").to_owned()
}

fn too_many_hops(world: &mut World) {
    for value in ["0", "many"] {
        let mut phone = world.phone();
        let text = phone.authorized("INVITE", EXTENSION, "hops", "");
        let text = text.replace("Max-Forwards: 70", &format!("Max-Forwards: {value}"));
        phone.peer.send(&text);
        assert_eq!(status(&phone.hears(&text, "483")), "483 Too Many Hops");
    }
}

fn bad_requests(world: &mut World) {
    let mut phone = world.phone();
    for (right, wrong, says) in [
        (" INVITE\r\n", " BYE\r\n", "CSeq"),
        ("Content-Length: 0", "Content-Length: 9", "Content-Length"),
        ("INVITE sip:200@example.com", "INVITE sip:@", "Request-URI"),
        ("From: <sip:", "From: <sip:[", "From"),
        ("To: <sip:", "To: <sip:[", "To"),
        ("Content-Length: 0", "Content-Length: many", "Content-Length"),
    ] {
        let text = phone.request("INVITE", EXTENSION, "bad", "");
        assert!(text.contains(right), "{right}");
        phone.peer.send(text.replacen(right, wrong, 1));
        let answer = phone.peer.expect("400");
        let said = status(&answer);
        assert!(said.contains(says), "{wrong}: {said}");
    }
    world.pbx1().hears_nothing();
    world.pbx2().hears_nothing();
}

fn silence(world: &mut World) {
    let mut phone = world.phone();
    for name in ["Via", "From", "To", "Call-ID", "CSeq"] {
        phone.peer.send(without(&phone.request("INVITE", EXTENSION, name, ""), name));
    }
    let text = phone.request("INVITE", EXTENSION, "http", "");
    phone.peer.send(text.replace("SIP/2.0/UDP", "HTTP/1.1/UDP"));
    phone.peer.send(b"\xff\xfe\x00garbage\r\n\r\n");
    phone.peer.send(vec![b'A'; 60_000]);
    phone.peer.send("INVITE");
    phone.peer.send("SIP/2.0 200 OK\r\n\r\n");
    phone.peer.hears_nothing();
    // And it is still there.
    phone.registers("");
}

fn compact_forms(world: &mut World) {
    let mut phone = world.phone();
    let mut text = phone.authorized("INVITE", EXTENSION, "compact", "");
    for (long, short) in [
        ("Via:", "v:"),
        ("From:", "f:"),
        ("To:", "t:"),
        ("Call-ID:", "i:"),
        ("Contact:", "m:"),
        ("Content-Length:", "l:"),
    ] {
        text = text.replace(&format!("\r\n{long}"), &format!("\r\n{short}"));
    }
    phone.peer.send(&text);
    phone.peer.expect("100");
    let (place, invite) = world.who_is_invited();
    assert!(invite.contains("compact-"), "{invite}");
    // Answered as whoever has read it would, by the long names.
    let mut long = invite.clone();
    for (long_name, short) in [("Via:", "v:"), ("From:", "f:"), ("To:", "t:"), ("Call-ID:", "i:")] {
        long = long.replace(&format!("\r\n{short}"), &format!("\r\n{long_name}"));
    }
    world.answer(place, &long, "486 Busy Here");
    phone.peer.expect("486");
}

fn missing_contact(world: &mut World) {
    let mut phone = world.phone();
    let text = without(&phone.authorized("INVITE", EXTENSION, "contact", ""), "Contact");
    phone.peer.send(&text);
    phone.peer.expect("100");
    let (place, invite) = world.who_is_invited();
    assert!(headers(&invite, "Contact").is_empty());
    world.answer(place, &invite, "486 Busy Here");
    phone.hears(&text, "486");
}

fn old_branch(world: &mut World) {
    let mut phone = world.phone();
    let text = phone.authorized("INVITE", EXTENSION, "old", "");
    let text = text.replace("branch=z9hG4bK", "branch=");
    phone.peer.send(&text);
    phone.peer.expect("100");
    let (place, invite) = world.who_is_invited();
    phone.peer.send(&text);
    world.answer(place, &invite, "486 Busy Here");
    phone.peer.expect("486");
    let end = phone.peer.next_new(std::time::Duration::from_millis(100));
    assert_eq!(end, None, "the repetition is absorbed");
}

/// Those of before RFC 3261 know neither, and are served (12.1.1, 17.2.3).
fn without_tag_or_branch(world: &mut World) {
    for part in [";tag=from", ";branch=z9hG4bKseed"] {
        let mut phone = world.phone();
        let text = phone.authorized("INVITE", EXTENSION, "part", "");
        let (start, rest) = text.split_once(part).unwrap();
        let text = format!("{start}\r\n{}", rest.split_once("\r\n").unwrap().1);
        phone.peer.send(&text);
        phone.peer.expect("100");
        let (place, invite) = world.who_is_invited();
        world.answer(place, &invite, "486 Busy Here");
        phone.hears(&text, "486");
    }
}

fn received(world: &mut World) {
    let mut phone = world.phone();
    let text = phone.authorized("INVITE", EXTENSION, "received", "");
    let address = phone.peer.address;
    // As behind a NAT, where it knows another address of its own.
    let text = text.replace(&format!("UDP {address}"), "UDP 192.168.7.7:5060");
    phone.peer.send(&text);
    let trying = phone.peer.expect("100");
    let via = format!("received={}", address.ip());
    assert!(header(&trying, "Via").contains(&via), "{trying}");
    assert!(header(&trying, "Via").contains(&format!("rport={}", address.port())), "{trying}");
    let (place, invite) = world.who_is_invited();
    let theirs = headers(&invite, "Via");
    assert!(theirs[1].contains(&via), "{invite}");
    world.pbx(place).send(reply(&invite, "486 Busy Here", ""));
    phone.hears(&text, "486");
}

fn bad_extension(world: &mut World) {
    let mut phone = world.phone();
    let text = phone.request("INVITE", EXTENSION, "ext", "Proxy-Require: foo\r\n");
    phone.peer.send(&text);
    let answer = phone.hears(&text, "420");
    assert_eq!(header(&answer, "Unsupported"), "foo");
}

fn damaged(world: &mut World) {
    let mut phone = world.phone();
    let mut random = 0x5eed_u64;
    let mut next = |below: usize| {
        // Knuth's MMIX: the same messages in each run.
        random =
            random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    let resident = |world: &World| {
        let status = format!("/proc/{}/status", world.daemon.process.pid());
        let text = std::fs::read_to_string(status).unwrap();
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
        line.trim().split(' ').next().unwrap().parse::<u64>().unwrap()
    };
    let mut before = 0;
    for number in 0..30_000 {
        // What a start needs it may keep.
        if number == 5_000 {
            before = resident(world);
        }
        let method = ["INVITE", "REGISTER", "MESSAGE", "CANCEL", "ACK", "BYE"][next(6)];
        let mut bytes = phone.request(method, EXTENSION, "damaged", "").into_bytes();
        for _ in 0..=next(4) {
            let at = next(bytes.len());
            match next(3) {
                0 => bytes[at] = u8::try_from(next(256)).unwrap(),
                1 => bytes.truncate(at.max(1)),
                _ => bytes.splice(at..at, vec![b'(', b'<', b'"', b',', 0xff]).for_each(drop),
            }
        }
        phone.peer.send(bytes);
        if number % 100 == 0 {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    }
    phone.peer.forget();
    let after = resident(world);
    assert!(after < before + 16 * 1024, "{before} kB and then {after} kB");
    println!("resident: {before} kB, {after} kB");
    world.phone().registers("");
}
