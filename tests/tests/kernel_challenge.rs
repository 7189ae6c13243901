//! The program asks for credentials as the daemon does, over IPv4 and over IPv6: each request goes to the program and to a
//! daemon alone. What the program answers must be what the daemon answers, but for the nonce, and the daemon must take that
//! nonce.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use sip_ebpf::Reason;
use sip_ebpf::reason::Way;
use sip_ebpf::tables::{flag, source};
use sip_user::config::{NoDestination, Probe, Trust};
use sip_user::core::authenticator::{self, Authenticator};
use sip_user::core::challenges::{Challenges, Clocks};
use sip_user::core::clock::Clock;
use sip_user::core::digest::{self, Algorithm, Challenge, Role, Secret, Session};
use sip_user::core::dispatcher::Dispatcher;
use sip_user::core::forking;
use sip_user::core::proxy::{Datagram, Policy, Proxy};
use sip_user::core::registrar::{self, Domains};
use sip_user::core::sources::Sources;
use sip_user::core::stateful::{CallRules, Command, Settings, Stateful};
use sip_user::core::transaction;
use sip_user::fastpath::challenges::Tables;
use sipline_tests::fixtures::side::Ran;
use sipline_tests::fixtures::subject::CALL_BUCKETS;
use sipline_tests::fixtures::world::{KEY, PROXY, STRANGER};
use sipline_tests::fixtures::{Side, each_side};

const DOMAIN: &str = "example.com";
const PASSWORD: &str = "secret";
const SCANNERS: [&str; 2] = ["friendly-scanner", "sipvicious"];
/// Of nonces: the daemon's and the program's.
const INSTANCES: (u32, u32) = (7, 9);

/// What left, and where it goes.
type Sent = Vec<(SocketAddr, Vec<u8>)>;

/// The daemon alone, with a registrar.
struct Daemon {
    proxy: Proxy,
    dispatcher: Dispatcher,
    now: Instant,
}

impl Daemon {
    fn new(proxy: SocketAddr, algorithms: &[Algorithm]) -> Self {
        let now = Instant::now();
        let locals = [proxy];
        let settings = Settings {
            locals: locals.to_vec(),
            domains: Domains::new([DOMAIN, "Voice.Example.ORG"], &locals),
            believed: Sources::new(&Trust::default()),
            registrar: registrar::Rules::default(),
            forking: forking::Rules::default(),
            transactions: transaction::Config::default(),
            calls: CallRules::default(),
            credentials: HashMap::new(),
            retry_after: 5,
            registers: true,
        };
        let asking = digest::Settings { algorithms: algorithms.to_vec(), ..Default::default() };
        let clock = Clock::new(now, SystemTime::now().duration_since(UNIX_EPOCH).unwrap());
        let rules = authenticator::Rules::default();
        let asking = Authenticator::new(rules, asking, &[7; 16], INSTANCES.0, clock).unwrap();
        let policy = Policy {
            sources: Sources::new(&Trust::default()),
            no_destination: NoDestination::Unavailable,
            shadow: None,
            scanners: SCANNERS.map(str::to_owned).to_vec(),
            rates: None,
        };
        let mut proxy = Proxy::new(KEY, &locals, CALL_BUCKETS, policy, now);
        proxy.set_stateful(Some(Stateful::new([3, 4], settings, Some(asking), now)));
        Self { proxy, dispatcher: Dispatcher::new(&locals, Probe::default()), now }
    }

    fn challenges(&self) -> Challenges {
        let stateful = self.proxy.stateful().unwrap();
        let clocks = Clocks { now: Instant::now(), monotonic: monotonic() };
        let (asking, domains) = (stateful.authenticator().unwrap(), stateful.registrar().domains());
        let scanners = SCANNERS.map(str::to_owned);
        Challenges::new(asking, domains, clocks, INSTANCES.1, &scanners).expect("few scanners")
    }

    fn hear(&mut self, from: SocketAddr, payload: &[u8]) -> Sent {
        // The program's clock goes on.
        self.now = Instant::now();
        let mut out = Vec::new();
        let datagram = Datagram { local: 0, from, bytes: payload };
        self.proxy.handle(self.now, &mut self.dispatcher, &(), datagram, &mut out);
        let mut sent: Vec<_> = out.into_iter().map(|sent| (sent.to, sent.bytes)).collect();
        let stateful = self.proxy.stateful_mut().unwrap();
        while let Some(command) = stateful.poll_command() {
            match command {
                Command::Send(transmit) => sent.push((transmit.to, transmit.bytes.to_vec())),
                Command::FetchSecrets { ticket, .. } => {
                    let secrets = Ok(Some(vec![Secret::Password(PASSWORD.into())]));
                    stateful.handle_secrets(self.now, ticket, secrets);
                    stateful.handle_calls(self.now, &mut self.dispatcher);
                }
                _ => {}
            }
        }
        sent
    }
}

/// The program's clock, in nanoseconds.
fn monotonic() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is written.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// Both, with the same tables.
struct Pair<'s, 't> {
    side: &'s mut Side<'t>,
    alone: Daemon,
}

impl<'s, 't> Pair<'s, 't> {
    fn new(side: &'s mut Side<'t>, algorithms: &[Algorithm]) -> Self {
        let alone = Daemon::new(side.address(PROXY), algorithms);
        let mut tables = Tables::new(side.ebpf()).expect("the tables");
        tables.set(Some(&alone.challenges())).expect("the tables");
        side.switch(flag::CHALLENGE, true);
        // Kept open: what it wrote stays in the maps, which the program holds.
        Self { side, alone }
    }

    /// A datagram of a stranger to both. Gives why the program did what it did, and what the daemon sent.
    fn hear(&mut self, payload: &[u8]) -> (Reason, Sent) {
        let Ran { reason, sent: answer } = self.side.run(STRANGER, payload);
        let sent = self.alone.hear(self.side.address(STRANGER), payload);
        let shown = payload.escape_ascii().to_string();
        if reason.way() == Way::Drop {
            assert_eq!(sent, [], "{reason:?}: {shown}");
        }
        let Some((from, to, bytes)) = answer else { return (reason, sent) };
        assert_eq!(reason, Reason::Challenged, "{shown}");
        assert_eq!(from, self.side.address(PROXY));
        let [(expected_to, expected)] = &sent[..] else {
            panic!("the daemon does not answer once, the program does: {shown}: {sent:?}")
        };
        let (ours, theirs) = (without_nonces(&bytes), without_nonces(expected));
        assert_eq!(ours, theirs, "program (left) and daemon (right): {shown}");
        assert_eq!(to, *expected_to, "{shown}");
        // From now on the program's: its nonce has to do.
        (reason, vec![(to, bytes)])
    }

    /// The same of a text with addresses of IPv4, which get those of its family.
    fn say(&mut self, text: &str) -> (Reason, Sent) {
        let text = self.side.text(text);
        self.hear(text.as_bytes())
    }

    fn asked(&mut self, text: &str) -> String {
        let (reason, sent) = self.say(text);
        assert_eq!(reason, Reason::Challenged, "{text}");
        String::from_utf8(sent[0].1.clone()).unwrap()
    }

    fn left_alone(&mut self, text: &str, why: Reason) {
        assert_eq!(self.say(text).0, why, "{text}");
    }
}

/// With all nonces made equal.
fn without_nonces(bytes: &[u8]) -> String {
    let text = String::from_utf8_lossy(bytes).into_owned();
    let mut pieces = text.split("nonce=\"");
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let (nonce, rest) = piece.split_once('"').expect("a quote behind a nonce");
        assert_eq!(nonce.len(), 40, "{text}");
        out.push_str("nonce=\"\"");
        out.push_str(rest);
    }
    out
}

fn request(method: &str) -> String {
    let branch = format!("z9hG4bK{}", method.to_lowercase());
    format!(
        "{method} sip:bob@{DOMAIN} SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.77:5060;branch={branch};rport\r\n\
         Max-Forwards: 70\r\nFrom: \"Alice\" <sip:alice@{DOMAIN}>;tag=a1\r\nTo: <sip:bob@{DOMAIN}>\r\n\
         Call-ID: 42@192.0.2.77\r\nCSeq: 1 {method}\r\nContact: <sip:alice@192.0.2.77:5060>\r\n\
         User-Agent: Phone 1.0\r\nContent-Length: 0\r\n\r\n"
    )
}

fn invite() -> String {
    request("INVITE")
}

/// As a phone writes it whose outbound proxy we are.
fn preloaded(text: &str) -> String {
    text.replace("Max-Forwards", "Route: <sip:10.10.0.1:5060;lr>\r\nMax-Forwards")
}

fn register() -> String {
    request("REGISTER")
        .replace(&format!("sip:bob@{DOMAIN} SIP"), &format!("sip:{DOMAIN} SIP"))
        .replace("To: <sip:bob", "To: <sip:alice")
}

/// The request again, with credentials for the challenge.
fn answered(text: &str, challenge: &str, role: Role, user: &str) -> String {
    let header = role.challenge_header();
    let values: Vec<&[u8]> = challenge
        .lines()
        .filter_map(|line| line.strip_prefix(header)?.strip_prefix(": "))
        .map(str::as_bytes)
        .collect();
    let secret = Secret::Password(PASSWORD.into());
    let chosen = Challenge::choose(values, &secret).expect("a challenge");
    let mut session = Session::new(chosen, "cnonce".to_owned());
    let mut words = text.split(' ');
    let (method, uri) = (words.next().unwrap(), words.next().unwrap());
    let line = session.authorize(role, user, &secret, method, uri).unwrap();
    text.replace("CSeq: 1 ", "CSeq: 2 ")
        .replace("branch=z9hG4bK", "branch=z9hG4bK2")
        .replace("Content-Length", &format!("{line}Content-Length"))
}

#[test]
fn phones_are_asked_as_the_daemon_asks() {
    each_side(|side| {
        let mut pair = Pair::new(side, &[Algorithm::MD5]);
        let first = pair.asked(&invite());
        assert!(first.starts_with("SIP/2.0 407 Proxy Authentication Required\r\n"), "{first}");
        assert!(first.contains("\r\nProxy-Authenticate: Digest realm=\"example.com\""), "{first}");
        let again = pair.asked(&invite());
        assert_eq!(without_nonces(first.as_bytes()), without_nonces(again.as_bytes()));
        assert_ne!(first, again, "no two nonces are equal");
        let registering = pair.asked(&register());
        pair.asked(
            &register().replace(" sip:example.com ", " sip:Voice.example.org:5060;transport=udp "),
        );
        let user = register().replace(" sip:example.com ", " sip:alice@example.com ");
        pair.left_alone(&user, Reason::Method);
        assert!(registering.starts_with("SIP/2.0 401 Unauthorized\r\n"), "{registering}");

        // As many write it.
        let other = |from: &str, to: &str| {
            let text = invite().replace(from, to);
            assert_ne!(text, invite(), "{from}");
            text
        };
        for text in [
            other(";branch=z9hG4bKinvite;rport", ";rport;branch=z9hG4bKinvite"),
            other(";branch=z9hG4bKinvite;rport", ";branch=z9hG4bKinvite"),
            other("192.0.2.77:5060;", "10.10.1.9:5061;"),
            other("\"Alice\" <", "<"),
            other("\"Alice\" <", "Alice <"),
            other("\"Alice\" <", "\"Alice Smith, 2nd floor\"<"),
            other("sip:bob@example.com SIP", "sip:bob@10.10.0.1:5060;transport=udp SIP"),
            other("sip:bob@example.com SIP", "sip:*98@Example.COM;user=phone SIP"),
            other("<sip:alice@example.com>", "<sip:alice@voice.example.org:5060>"),
            other("To: <sip:bob@example.com>", "To: <sip:+49221@10.10.0.1>"),
            other("User-Agent: Phone 1.0\r\n", ""),
            other("Content-Length: 0", "l: 0"),
            other("CSeq: 1 ", "CSeq: 4711   "),
            other("Contact:", "Authorisation: none\r\nContact:"),
            invite().replace("Content-Length: 0\r\n\r\n", "Content-Length: 4\r\n\r\nv=0\n"),
            preloaded(&invite()),
            preloaded(&register()),
            preloaded(&invite()).replace("10.10.0.1:5060", "Example.com"),
        ] {
            pair.asked(&text);
        }
    });
}

#[test]
fn the_daemon_takes_the_programs_nonces() {
    each_side(|side| {
        let mut pair = Pair::new(side, &[Algorithm::MD5]);
        let challenge = pair.asked(&register());
        let (reason, sent) = pair.say(&answered(&register(), &challenge, Role::UserAgent, "alice"));
        assert_eq!(reason, Reason::Method);
        let text = String::from_utf8_lossy(&sent.last().expect("an answer").1).into_owned();
        assert!(text.starts_with("SIP/2.0 200"), "{text}");

        let challenge = pair.asked(&invite());
        let (reason, sent) = pair.say(&answered(&invite(), &challenge, Role::Proxy, "alice"));
        assert_eq!(reason, Reason::Untrusted);
        // There is no PBX here: but he was let through.
        let text = String::from_utf8_lossy(&sent.last().expect("an answer").1).into_owned();
        assert!(text.starts_with("SIP/2.0 488"), "{text}");
        let wrong = answered(&invite(), &challenge, Role::Proxy, "alice")
            .replace("response=\"", "response=\"0");
        let (_, sent) = pair.say(&wrong.replace("z9hG4bK2", "z9hG4bK3"));
        assert!(!sent.is_empty());
    });
}

#[test]
fn several_algorithms_have_a_line_each() {
    each_side(|side| {
        let all =
            ["SHA-512-256", "SHA-256-sess", "SHA-256", "MD5"].map(|name| name.parse().unwrap());
        let mut pair = Pair::new(side, &all);
        let text = pair.asked(&invite());
        assert_eq!(text.matches("\r\nProxy-Authenticate: ").count(), 4, "{text}");
        let challenge = pair.asked(&register());
        let (_, sent) = pair.say(&answered(&register(), &challenge, Role::UserAgent, "alice"));
        assert!(sent.last().expect("an answer").1.starts_with(b"SIP/2.0 200"));
    });
}

#[test]
fn the_ack_of_a_challenge_ends_here_and_no_other() {
    each_side(|side| {
        let mut pair = Pair::new(side, &[Algorithm::MD5]);
        let challenge = pair.asked(&invite());
        let to = challenge.lines().find(|line| line.starts_with("To: ")).unwrap();
        let ack = request("ACK")
            .replace("z9hG4bKack", "z9hG4bKinvite")
            .replace(&format!("To: <sip:bob@{DOMAIN}>"), to);
        pair.left_alone(&ack, Reason::ChallengeAcked);
        pair.left_alone(&ack, Reason::ChallengeAcked);
        // By way of the outbound proxy, as its INVITE (17.1.1.3).
        pair.left_alone(&preloaded(&ack), Reason::ChallengeAcked);
        pair.left_alone(&preloaded(&ack).replace("42@", "43@"), Reason::OddRoute);
        // A tag that differs in one digit, and another call's.
        let last = to.chars().last().unwrap();
        let wrong = format!("{}{}", &to[..to.len() - 1], if last == '0' { '1' } else { '0' });
        pair.left_alone(&ack.replace(to, &wrong), Reason::UnknownCall);
        pair.left_alone(&ack.replace("42@", "43@"), Reason::UnknownCall);
        // That of a refusal which the daemon keeps in mind.
        let refused = answered(&invite(), &challenge, Role::Proxy, "alice");
        let (_, sent) = pair.say(&refused);
        let text = String::from_utf8_lossy(&sent.last().unwrap().1).into_owned();
        let kept = text.lines().find(|line| line.starts_with("To: ")).unwrap();
        assert_ne!(kept, to);
        pair.left_alone(&ack.replace(to, kept), Reason::UnknownCall);
    });
}

#[test]
fn what_is_not_plain_goes_up() {
    each_side(|side| {
        let mut pair = Pair::new(side, &[Algorithm::MD5]);
        for (from, to) in [
            ("Via:", "v:"),
            ("From:", "f:"),
            ("To: ", "To:  "),
            ("Call-ID: ", "Call-ID:"),
            (";rport", ";rport;alias"),
            ("192.0.2.77:5060;branch", "phone.example:5060;branch"),
            ("\"Alice\" <", "\"Al\\\"ice\" <"),
            ("sip:bob@example.com SIP", "sip:bob@elsewhere.example SIP"),
            ("sip:bob@example.com SIP", "sip:bob@example.com?Subject=x SIP"),
            ("sip:bob@example.com SIP", "tel:+49221 SIP"),
            ("sip:bob@example.com SIP", "sip:example.com SIP"),
            ("<sip:alice@example.com>", "<sip:alice@elsewhere.example>"),
            ("<sip:alice@example.com>", "<sip:al%69ce@example.com>"),
            ("<sip:alice@example.com>", "<sip:alice:pw@example.com>"),
            ("<sip:alice@example.com>", "<sips:alice@example.com>"),
            (";tag=a1", ";tag=a1;x=y"),
            (";tag=a1", ""),
            ("Call-ID: 42@192", "Call-ID: 42@@192"),
            ("Contact:", "X(y: z\r\nContact:"),
            ("Contact:", "Authorization: Basic x\r\nContact:"),
            ("Contact:", "Proxy-Authorization: Digest x\r\nContact:"),
            ("Phone 1.0", "friendly-scanner"),
            ("Phone 1.0", "not a Friendly-Scanner/2"),
            ("Phone 1.0", "friendly phone"),
        ] {
            let text = invite().replace(from, to);
            assert_ne!(text, invite(), "{from}");
            if from == "Phone 1.0" && to == "friendly phone" {
                // "friendly" alone is the start of a name, so it is the daemon who looks.
                pair.left_alone(&text, Reason::Untrusted);
                continue;
            }
            let (reason, _) = pair.say(&text);
            assert!(reason.way() == Way::Up, "{reason:?}: {text}");
        }
        for (from, to) in [
            ("<sip:10.10.0.1:5060;lr>", "<sip:10.10.0.1:5060;lr>, <sip:10.10.0.1:5060;lr>"),
            ("<sip:10.10.0.1:5060;lr>", "<sip:10.10.0.1:5060;lr>;x=y"),
            ("<sip:10.10.0.1:5060;lr>", "<sip:proxy@10.10.0.1;lr>"),
            ("<sip:10.10.0.1:5060;lr>", "<sip:elsewhere.example;lr>"),
            ("<sip:10.10.0.1:5060;lr>", "<sip:10.10.0.1;transport=udp;lr>"),
            ("<sip:10.10.0.1:5060;lr>", "sip:10.10.0.1"),
            ("<sip:10.10.0.1:5060;lr>", "<sip:10.10.0.1:5060;lr"),
            ("Route: ", "Route:"),
            // The daemon writes these anew.
            ("\"Alice\" <", "\"Alice\"<"),
            ("To: <", "To: \"Bob\"<"),
            ("CSeq: 1 ", "CSeq: 01 "),
            ("192.0.2.77:5060;branch", "192.0.2.77:05060;branch"),
            ("CSeq: 1 ", "CSeq: 1  "),
            ("Max-Forwards", "Route: <sip:10.10.0.1;lr>\r\nMax-Forwards"),
        ] {
            let text = preloaded(&invite());
            let odd = text.replacen(from, to, 1);
            assert_ne!(odd, text, "{from}");
            pair.left_alone(&odd, Reason::Preloaded);
        }
        for method in ["OPTIONS", "MESSAGE", "SUBSCRIBE", "PUBLISH", "CANCEL"] {
            let (reason, _) = pair.say(&request(method));
            assert!(reason.way() == Way::Up, "{method}: {reason:?}");
        }
    });
}

#[test]
fn nobody_is_asked_where_that_is_not_ours_to_do() {
    each_side(|side| {
        let mut pair = Pair::new(side, &[Algorithm::MD5]);
        pair.asked(&invite());
        // A dead daemon: nobody answers in its name.
        pair.side.set_alive(false);
        pair.left_alone(&invite(), Reason::Untrusted);
        pair.left_alone(&register(), Reason::Method);
        pair.side.set_alive(true);
        pair.asked(&invite());
        // Switched off.
        pair.side.switch(flag::CHALLENGE, false);
        pair.left_alone(&invite(), Reason::Untrusted);
        pair.side.switch(flag::CHALLENGE, true);
        // Whose INVITEs are steered, also if they name us.
        pair.side.set_stranger(true, source::TRUSTED);
        pair.left_alone(&preloaded(&invite()), Reason::Preloaded);
        pair.asked(&preloaded(&register()));
        pair.side.set_stranger(true, 0);
        pair.asked(&preloaded(&invite()));
        // Who is believed.
        pair.side.set_stranger(false, source::EXEMPT);
        pair.asked(&register());
        pair.side.set_stranger(false, source::BELIEVED | source::EXEMPT);
        pair.left_alone(&register(), Reason::Method);
        pair.left_alone(&invite(), Reason::Untrusted);
        pair.left_alone(&preloaded(&invite()), Reason::Preloaded);
    });
}

#[test]
fn damaged_requests_get_the_same_answers() {
    let byte = || prop_oneof![1 => any::<u8>(), 3 => prop::sample::select(&b"\r\n \t,;:<>\"=@%0aZ.-\\\0"[..])];
    let strategy = (
        any::<bool>(),
        any::<bool>(),
        prop::collection::vec((any::<prop::sample::Index>(), 0..3u8, byte()), 1..4),
    );
    each_side(|side| {
        let mut pair = Pair::new(side, &[Algorithm::MD5]);
        let mut runner = TestRunner::new_with_rng(
            Config::default(),
            TestRng::from_seed(RngAlgorithm::ChaCha, &[8; 32]),
        );
        let mut asked = 0;
        for _ in 0..4000 {
            let tree = strategy.new_tree(&mut runner).expect("a damage");
            let (is_invite, has_route, damage) = proptest::strategy::ValueTree::current(&tree);
            let text = if is_invite { invite() } else { register() };
            let text = if has_route { preloaded(&text) } else { text };
            let mut bytes = pair.side.text(&text).into_bytes();
            for (at, kind, byte) in damage {
                let at = at.index(bytes.len());
                match kind {
                    0 => bytes[at] = byte,
                    1 => bytes.insert(at, byte),
                    _ => drop(bytes.remove(at)),
                }
            }
            asked += u32::from(pair.hear(&bytes).0 == Reason::Challenged);
        }
        println!("{asked} of 4000 damaged requests were asked for credentials");
        assert!(asked > 300, "{asked}");
    });
}

/// Addresses of IPv6 have many forms: those that the daemon writes anew are left to it, and so are those that are ours in
/// another form.
#[test]
fn addresses_in_brackets() {
    each_side(|side| {
        if matches!(side, Side::Four(_)) {
            return;
        }
        let mut pair = Pair::new(side, &[Algorithm::MD5]);
        let us = |form: &str| {
            invite().replace("sip:bob@example.com SIP", &format!("sip:bob@{form} SIP"))
        };
        for form in ["[fd10:10::1]", "[fd10:10::1]:5060;transport=udp", "[FD10:10::1]"] {
            pair.asked(&us(form));
            pair.asked(
                &register()
                    .replace("To: <sip:alice@example.com>", &format!("To: <sip:alice@{form}>")),
            );
            pair.asked(
                &invite().replace("<sip:alice@example.com>", &format!("<sip:alice@{form}>")),
            );
            pair.asked(
                &preloaded(&us(form)).replace("10.10.0.1:5060", form.split(';').next().unwrap()),
            );
        }
        for form in [
            "[fd10:10:0::1]",
            "[fd10:10::2]",
            "fd10:10::1",
            "[fd10:10::1",
            "[fd10:10::1]]",
            "[[fd10:10::1]]",
        ] {
            assert_eq!(pair.say(&us(form)).0.way(), Way::Up, "{form}");
            pair.left_alone(
                &preloaded(&invite()).replace("10.10.0.1:5060", form),
                Reason::Preloaded,
            );
        }
        // As it stands, and as the daemon writes it who has a Route.
        for (form, is_written) in [
            ("2001:db8:0:7::77", true),
            ("2001:db8::7:0:0:77", true),
            ("1:2:3:4:5:6:7:8", true),
            ("1:0:3:4:5:6:7:8", true),
            ("::", true),
            ("::1", true),
            ("1::", true),
            ("2001:DB8:0:7::77", false),
            ("2001:db8:0:07::77", false),
            ("2001:db8:0:7:0:0:0:77", false),
            ("2001:db8:0:7::0:77", false),
            ("2001:db8:0:0:7::77", false),
            ("2001:db8:0:0:7:0:0:77", false),
            ("1::3:4:5:6:7:8", false),
            ("0::", false),
            ("::0", false),
            ("0::1", false),
            ("1::0", false),
        ] {
            let text = invite().replace("192.0.2.77:5060;", &format!("[{form}]:5060;"));
            pair.asked(&text);
            let text = preloaded(&text);
            let why = if is_written { Reason::Challenged } else { Reason::Preloaded };
            pair.left_alone(&text, why);
        }
    });
}

/// A nonce of the program is as old as it says: the daemon finds it stale when its time is over, and not before.
#[test]
fn a_nonce_has_its_time() {
    each_side(|side| {
        let mut pair = Pair::new(side, &[Algorithm::MD5]);
        let challenge = pair.asked(&register());
        let text = answered(&register(), &challenge, Role::UserAgent, "alice");
        let nonce = challenge.split("nonce=\"").nth(1).unwrap();
        let seconds = u64::from_str_radix(&nonce[..12], 16).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!(now.as_secs().abs_diff(seconds) < 60, "{seconds} is not {now:?}");
        let stateful = pair.alone.proxy.stateful().unwrap();
        let asking = stateful.authenticator().unwrap();
        let claim = |later: u64| {
            let line = text.lines().find_map(|line| line.strip_prefix("Authorization: ")).unwrap();
            asking.challenger().claim(DOMAIN, [line.as_bytes()], seconds + later).map(drop)
        };
        assert_eq!(claim(Duration::from_secs(300).as_secs()), Ok(()));
        assert_eq!(claim(301), Err(digest::Refusal::StaleNonce));
    });
}
