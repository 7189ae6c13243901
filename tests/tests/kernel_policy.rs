//! What users being registered changes in the program: who is steered from a network where that is enough, and PBXs that
//! ask for a user. What the program answers must be what the daemon answers, byte by byte.

use std::collections::HashMap;
use std::net::{SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant};

use sip_ebpf::Reason;
use sip_ebpf::tables::{flag, source};
use sip_user::config::{AdminState, NoDestination, PbxConfig, PbxLimits, Probe, Trust};
use sip_user::core::dispatcher::Dispatcher;
use sip_user::core::forking;
use sip_user::core::proxy::{Datagram, Policy, Proxy};
use sip_user::core::registrar::{self, Aor, Domains};
use sip_user::core::sources::Sources;
use sip_user::core::stateful::{CallRules, Command, Settings, Stateful};
use sip_user::core::transaction;
use sip_user::fastpath::Users;
use sip_user::fastpath::users::Table;
use sipline_tests::fixtures::side::Ran;
use sipline_tests::fixtures::subject::{CALL_BUCKETS, at};
use sipline_tests::fixtures::world::{KEY, PBX1, PROXY, STRANGER};
use sipline_tests::fixtures::{Message, Side, Subject, each_build, each_side};

const MINUTE: Duration = Duration::from_secs(60);

#[test]
fn who_is_registered_is_steered_where_that_is_enough() {
    each_build(|subject| {
        let mut calls = 0;
        let mut call = |subject: &mut Subject, from: SocketAddrV4| {
            calls += 1;
            subject.send(from, Message::invite(from, &format!("call-{calls}"))).reason
        };
        let net = "192.0.2.0/24".parse().unwrap();
        let (here, port) = (STRANGER, SocketAddrV4::new(*STRANGER.ip(), 5062));
        assert_eq!(call(subject, here), Reason::Untrusted);
        // Being registered is not enough elsewhere.
        subject.change(|world| world.endpoints = vec![(here, MINUTE)]);
        assert_eq!(call(subject, here), Reason::Untrusted);
        subject.change(|world| world.sources.push((net, source::REGISTERED)));
        assert_eq!(call(subject, here), Reason::InviteSteered);
        assert_eq!(call(subject, port), Reason::Untrusted);
        assert_eq!(call(subject, at([192, 0, 2, 78], 5060)), Reason::Untrusted);
        // Entries end by themselves, whether somebody removes them or not.
        subject.change(|world| world.endpoints = vec![(here, Duration::ZERO), (port, MINUTE)]);
        assert_eq!(call(subject, here), Reason::Untrusted);
        assert_eq!(call(subject, port), Reason::InviteSteered);
        // Some change, without a word to what CPUs know of addresses.
        let later = Instant::now() + MINUTE;
        subject
            .tables()
            .change_endpoints(&[(here.into(), Some(later)), (port.into(), None)])
            .unwrap();
        let bytes = |from| Subject::frame(from, PROXY, Message::invite(from, "x")).bytes();
        assert_eq!(subject.run_counted(here, &bytes(here)).0, Reason::InviteSteered);
        assert_eq!(subject.run_counted(port, &bytes(port)).0, Reason::Untrusted);
        subject.reset();
        assert_eq!(call(subject, here), Reason::Untrusted);
    });
}

/// The daemon alone, with a registrar whose users are believed without a password.
struct Alone {
    proxy: Proxy,
    dispatcher: Dispatcher,
    /// What the kernel's table is told.
    users: Vec<(u64, Option<Instant>)>,
    /// Who registers.
    phone: SocketAddr,
    requests: u32,
}

impl Alone {
    fn new(side: &Side<'_>) -> Self {
        let now = Instant::now();
        let locals = [side.address(PROXY)];
        let phone = side.address(STRANGER);
        let networks = vec![phone.ip().into()];
        let settings = Settings {
            locals: locals.to_vec(),
            domains: Domains::new(["example.com"], &locals),
            believed: Sources::new(&Trust { networks, ..Trust::default() }),
            registrar: registrar::Rules { answer_qualify: true, ..Default::default() },
            forking: forking::Rules::default(),
            transactions: transaction::Config::default(),
            calls: CallRules::default(),
            credentials: HashMap::new(),
            retry_after: 5,
            registers: true,
        };
        let policy = Policy {
            sources: Sources::default(),
            no_destination: NoDestination::Unavailable,
            shadow: None,
            scanners: Vec::new(),
            rates: None,
        };
        let mut proxy = Proxy::new(KEY, &locals, CALL_BUCKETS, policy, now);
        proxy.set_stateful(Some(Stateful::new([3, 4], settings, None, now)));
        let mut dispatcher = Dispatcher::new(&locals, Probe::default());
        let pbx = PbxConfig {
            id: "pbx1".into(),
            address: side.address(PBX1),
            weight: 1,
            state: AdminState::Active,
            limits: PbxLimits::default(),
        };
        dispatcher.reload(now, &[pbx], Probe::default()).unwrap();
        let stateful = proxy.stateful_mut().unwrap();
        stateful.handle_pbxs(now, &dispatcher);
        Self { proxy, dispatcher, users: Vec::new(), phone, requests: 0 }
    }

    /// What is answered to whom has asked.
    fn hear(&mut self, from: SocketAddr, bytes: &[u8]) -> Vec<Vec<u8>> {
        let mut out = Vec::new();
        let datagram = Datagram { local: 0, from, bytes };
        self.proxy.handle(Instant::now(), &mut self.dispatcher, &(), datagram, &mut out);
        let mut sent: Vec<_> = out.into_iter().map(|sent| (sent.to, sent.bytes)).collect();
        let stateful = self.proxy.stateful_mut().unwrap();
        while let Some(command) = stateful.poll_command() {
            match command {
                Command::Send(sending) => sent.push((sending.to, sending.bytes.to_vec())),
                Command::User { name, until } => self.users.push((name, until)),
                _ => {}
            }
        }
        let answer = |bytes: &[u8]| bytes.starts_with(b"SIP/2.0 ");
        sent.retain(|(to, bytes)| *to == from && answer(bytes));
        sent.into_iter().map(|(_, bytes)| bytes).collect()
    }

    fn register(&mut self, user: &str) {
        self.requests += 1;
        let (n, phone) = (self.requests, self.phone);
        let text = format!(
            "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP {phone};branch=z9hG4bKr{n}\r\n\
             Max-Forwards: 70\r\nFrom: <sip:{user}@example.com>;tag=r\r\nTo: <sip:{user}@example.com>\r\n\
             Call-ID: r-{user}\r\nCSeq: {n} REGISTER\r\nContact: <sip:{user}@{phone}>\r\n\
             Content-Length: 0\r\n\r\n"
        );
        let answers = self.hear(phone, text.as_bytes());
        assert!(answers[0].starts_with(b"SIP/2.0 200"), "{answers:?}");
    }

    fn unregister(&mut self, user: &str) {
        let aor = Aor::new(user, "example.com").unwrap();
        assert_eq!(self.proxy.stateful_mut().unwrap().remove(Instant::now(), &aor, None), 1);
        self.hear(self.phone, b"\r\n");
    }
}

fn asking(user: &str) -> String {
    format!(
        "OPTIONS sip:{user}@10.10.0.1:5060 SIP/2.0\r\nVia: SIP/2.0/UDP {PBX1};branch=z9hG4bKq;rport\r\n\
         Max-Forwards: 70\r\nFrom: \"asterisk\" <sip:asterisk@{PBX1}>;tag=as1\r\n\
         To: <sip:{user}@10.10.0.1:5060>\r\nContact: <sip:asterisk@{PBX1}>\r\n\
         Call-ID: 42@10.10.2.2\r\nCSeq: 102 OPTIONS\r\nUser-Agent: PBX\r\nContent-Length: 0\r\n\r\n"
    )
}

#[test]
fn pbxs_that_ask_for_users_are_answered_as_by_the_daemon() {
    each_side(|side| {
        let table = Table::new(side.ebpf()).expect("USERS");
        side.switch(flag::QUALIFY, true);
        let mut alone = Alone::new(side);
        let hear = |side: &mut Side<'_>, alone: &mut Alone, from, text: &str| {
            for (name, until) in alone.users.drain(..) {
                table.set(name, until).expect("USERS");
            }
            let text = side.text(text);
            let Ran { reason, sent } = side.run(from, text.as_bytes());
            let (from, us) = (side.address(from), side.address(PROXY));
            let answers = alone.hear(from, text.as_bytes());
            if let Some((src, dst, payload)) = sent {
                assert_eq!(reason, Reason::QualifyAnswered, "{text}");
                assert_eq!((src, dst), (us, from));
                let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
                assert_eq!(answers.len(), 1, "{text}");
                assert_eq!(shown(&payload), shown(&answers[0]), "program and daemon: {text}");
            }
            let status = answers.first().map(|answer| answer[8..11].to_vec());
            (reason, String::from_utf8(status.unwrap_or_default()).unwrap())
        };
        let up = |status: &str| (Reason::OptionsNotForUs, status.to_owned());
        let answered = |status: &str| (Reason::QualifyAnswered, status.to_owned());

        // Of whom nothing is known the daemon is asked.
        assert_eq!(hear(side, &mut alone, PBX1, &asking("alice")), up("404"));
        alone.register("alice");
        assert_eq!(hear(side, &mut alone, PBX1, &asking("alice")), answered("200"));
        assert_eq!(hear(side, &mut alone, PBX1, &asking("Alice")), up("404"));
        for (from, to) in [
            (";branch=z9hG4bKq;rport", ";rport;branch=z9hG4bKq;x=y"),
            (";rport", ""),
            ("Via: SIP", "v:SIP"),
            ("From:", "f :"),
            ("Call-ID: 42", "i:  42"),
            ("Max-Forwards", "Via: SIP/2.0/UDP 192.0.2.1;branch=z9hG4bKx\r\nMax-Forwards"),
            ("10.10.0.1:5060 SIP", "10.10.0.1 SIP"),
            ("10.10.0.1:5060 SIP", "10.10.0.1:5060;transport=udp SIP"),
            ("OPTIONS sip:", "OPTIONS SIP:"),
            ("User-Agent: PBX\r\n", ""),
        ] {
            let text = asking("alice").replacen(from, to, 1);
            assert_ne!(text, asking("alice"), "{from}");
            assert_eq!(hear(side, &mut alone, PBX1, &text), answered("200"), "{text}");
        }
        // What is rarer is the daemon's, which says the same.
        for (from, to) in [
            ("alice@10.10.0.1:5060 SIP", "alice@example.com SIP"),
            ("alice@10.10.0.1:5060 SIP", "alic%65@10.10.0.1 SIP"),
        ] {
            let text = asking("alice").replacen(from, to, 1);
            assert_eq!(hear(side, &mut alone, PBX1, &text), up("200"), "{text}");
        }
        // He goes, and comes back.
        alone.unregister("alice");
        assert_eq!(hear(side, &mut alone, PBX1, &asking("alice")), answered("404"));
        let plain = asking("alice").replace("From:", "f:").replace(";rport", "");
        assert_eq!(hear(side, &mut alone, PBX1, &plain), answered("404"));
        alone.register("alice");
        assert_eq!(hear(side, &mut alone, PBX1, &asking("alice")), answered("200"));
        // Not for others, not for the dead, and not if it is off.
        assert_eq!(hear(side, &mut alone, STRANGER, &asking("alice")).0, Reason::OptionsNotForUs);
        side.set_alive(false);
        assert_eq!(hear(side, &mut alone, PBX1, &asking("alice")), up("200"));
        side.set_alive(true);
        assert_eq!(hear(side, &mut alone, PBX1, &asking("alice")), answered("200"));
        table.clear().expect("USERS");
        assert_eq!(hear(side, &mut alone, PBX1, &asking("alice")), up("200"));
        alone.register("alice");
        side.switch(flag::QUALIFY, false);
        assert_eq!(hear(side, &mut alone, PBX1, &asking("alice")), up("200"));
    });
}
