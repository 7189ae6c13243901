//! Calls between IPv4 and IPv6 through the whole daemon, on virtual time.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sip_ebpf::Reason;
use sip_ebpf::reason::Way;

use crate::config::{NoDestination, PbxConfig, PbxLimits, Probe, Trust};
use crate::core::accounting::{Accounting, Cdr, Disposition, Ending};
use crate::core::counters::Event;
use crate::core::dispatcher::{self, Dispatcher, Unreachable};
use crate::core::proxy::{Datagram, Policy, Proxy, Transmit};
use crate::core::registrar::Domains;
use crate::core::sources::Sources;
use crate::core::stateful::{Command, Settings, Stateful};
use crate::core::testing::{Damage, damaged, damages, header, response};

const US: [&str; 4] =
    ["10.10.0.1:5060", "10.10.0.9:5080", "[2001:db8::1]:5060", "[2001:db8::9]:5080"];
const PHONE4: &str = "10.10.1.2:5062";
const PHONE6: &str = "[2001:db8:1::2]:5062";
const PBX4: [&str; 2] = ["10.10.2.2:5060", "10.10.3.2:5060"];
const PBX6: [&str; 2] = ["[2001:db8:2::2]:5060", "[2001:db8:3::2]:5060"];
const MS: Duration = Duration::from_millis(1);

/// What has left: from which of our addresses, where it went, and what it says.
type Sent = (usize, String, String);

/// A daemon that listens on two addresses of either family.
struct Daemon {
    proxy: Proxy,
    dispatcher: Dispatcher,
    now: Instant,
    cdrs: Vec<Cdr>,
}

impl Daemon {
    /// With these PBXs.
    fn new(pbxs: &[&str]) -> Self {
        Self::on(&US, pbxs, true)
    }

    /// On these addresses, with a registrar or without.
    fn on(us: &[&str], pbxs: &[&str], registers: bool) -> Self {
        let now = Instant::now();
        let locals: Vec<SocketAddr> = us.iter().map(|local| local.parse().unwrap()).collect();
        let networks = ["10.10.1.0/24", "2001:db8:1::/48"].map(|net| net.parse().unwrap()).to_vec();
        let trust = Trust { networks, ..Trust::default() };
        let policy = Policy {
            sources: Sources::new(&trust),
            no_destination: NoDestination::Unavailable,
            shadow: Some(3000 * MS),
            scanners: Vec::new(),
            rates: None,
        };
        let mut proxy = Proxy::new([7, 9], &locals, 64, policy, now);
        let settings = Settings {
            domains: Domains::new(registers.then_some("example.com"), &locals),
            locals: locals.clone(),
            // Phones register without a password.
            believed: Sources::new(&trust),
            registrar: Default::default(),
            forking: Default::default(),
            transactions: Default::default(),
            calls: Default::default(),
            credentials: Default::default(),
            retry_after: 5,
            registers,
        };
        let mut stateful = Stateful::new([1, 2], settings, None, now);
        let clock = (now, std::time::UNIX_EPOCH);
        let accounting = Accounting::new(Default::default(), [3, 4], 1, clock);
        stateful.set_accounting(registers.then_some(accounting));
        proxy.set_stateful(Some(stateful));
        let mut dispatcher = Dispatcher::new(&locals, Probe::default());
        let pbxs: Vec<_> = pbxs.iter().map(|address| config(address)).collect();
        dispatcher.reload(now, &pbxs, Probe::default()).unwrap();
        let mut daemon = Self { proxy, dispatcher, now, cdrs: Vec::new() };
        daemon.finish(Vec::new());
        daemon
    }

    /// What follows from a datagram that comes to this address of ours.
    fn hear_at(&mut self, from: &str, local: usize, bytes: &[u8]) -> Vec<Sent> {
        let mut out = Vec::new();
        let datagram = Datagram { local, from: from.parse().unwrap(), bytes };
        self.proxy.handle(self.now, &mut self.dispatcher, &(), datagram, &mut out);
        self.finish(out)
    }

    /// The same, to our first address of the sender's family.
    fn hear(&mut self, from: &str, text: &str) -> Vec<Sent> {
        self.hear_at(from, first(from), text.as_bytes())
    }

    /// The one datagram that follows.
    #[track_caller]
    fn one(&mut self, from: &str, text: &str) -> Sent {
        let mut sent = self.hear(from, text);
        assert_eq!(sent.len(), 1, "{sent:#?}");
        sent.remove(0)
    }

    /// The first line of an answer of ours.
    #[track_caller]
    fn status(&mut self, from: &str, text: &str) -> String {
        let (local, to, answer) = self.one(from, text);
        assert_eq!((local, &*to), (first(from), from));
        answer.lines().next().unwrap().to_owned()
    }

    /// Does what `run` does with what the core wants.
    fn finish(&mut self, mut out: Vec<Transmit>) -> Vec<Sent> {
        let Self { proxy, dispatcher, now, .. } = self;
        let mut changed = true;
        while changed {
            changed = false;
            while let Some(command) = dispatcher.poll_command() {
                changed |= !matches!(command, dispatcher::Command::Send { .. });
            }
            if changed {
                proxy.stateful_mut().unwrap().handle_pbxs(*now, dispatcher);
                proxy.handle_pbxs(*now, dispatcher, &(), &mut out);
            }
            let stateful = proxy.stateful_mut().unwrap();
            stateful.handle_calls(*now, dispatcher);
            while let Some(command) = stateful.poll_command() {
                match command {
                    Command::Send(sent) => {
                        let bytes = sent.bytes.to_vec();
                        out.push(Transmit { local: sent.local, to: sent.to, bytes });
                    }
                    Command::Cdr(cdr) => self.cdrs.push(*cdr),
                    _ => {}
                }
            }
        }
        let mut told = Vec::new();
        for transmit in out {
            let ours: SocketAddr = US[transmit.local].parse().unwrap();
            assert_eq!(ours.is_ipv4(), transmit.to.is_ipv4(), "a socket has one family");
            let text = String::from_utf8(transmit.bytes).unwrap();
            told.push((transmit.local, transmit.to.to_string(), text));
        }
        // What PBXs are told of users is another matter.
        told.retain(|(_, _, text)| !text.starts_with("REGISTER"));
        told
    }

    /// Time passes, at each timer a stop.
    fn pass(&mut self, time: Duration) -> Vec<Sent> {
        let end = self.now + time;
        let mut all = Vec::new();
        loop {
            let stateful = self.proxy.stateful().unwrap().poll_timeout();
            let next = [stateful, self.proxy.poll_timeout()].into_iter().flatten().min();
            let Some(at) = next.filter(|at| *at <= end) else { break };
            self.now = self.now.max(at);
            let mut out = Vec::new();
            let Self { proxy, dispatcher, now, .. } = self;
            proxy.handle_timeout(*now, dispatcher, &(), &mut out);
            proxy.stateful_mut().unwrap().handle_timeout(*now);
            all.extend(self.finish(out));
        }
        self.now = end;
        all
    }

    fn slot(&self, pbx: &str) -> u32 {
        self.dispatcher.slot_at(pbx.parse().unwrap()).unwrap()
    }

    fn gone(&mut self, pbx: &str) -> Vec<Sent> {
        let (now, peer) = (self.now, pbx.parse().unwrap());
        self.dispatcher.handle_unreachable(now, peer, Unreachable::Port);
        self.proxy.stateful_mut().unwrap().handle_transport_error(now, peer);
        self.finish(Vec::new())
    }

    fn event(&self, event: Event) -> u64 {
        self.proxy.counters().of_event(event)
    }

    fn across(&self) -> u64 {
        self.proxy.stateful().unwrap().counts().across
    }

    /// What the daemon has decided as the kernel would have, and sent.
    fn steered(&self) -> u64 {
        let counters = self.proxy.counters();
        let sent = Reason::ALL.iter().filter(|reason| reason.way() == Way::Sent);
        sent.map(|reason| counters.of_reason(*reason)).sum()
    }

    /// A call of a phone is placed with memory. Gives the PBX, and the INVITE that it has.
    #[track_caller]
    fn invite(&mut self, phone: &str, call: &str) -> (String, String) {
        let sent = self.hear(phone, &request("INVITE", phone, call));
        self.invited(phone, sent)
    }

    #[track_caller]
    fn invited(&mut self, phone: &str, sent: Vec<Sent>) -> (String, String) {
        let [(local, to, trying), (out, pbx, invite)] = &sent[..] else { panic!("{sent:#?}") };
        assert_eq!((*local, &**to), (first(phone), phone));
        assert!(trying.starts_with("SIP/2.0 100 Trying\r\n"), "{trying}");
        assert!(invite.starts_with("INVITE "), "{invite}");
        assert_eq!(*out, first(pbx), "where its probes come from");
        (pbx.clone(), invite.clone())
    }

    /// A call of a phone that a PBX has answered.
    #[track_caller]
    fn answered(&mut self, phone: &str, call: &str) -> Dialog {
        let (pbx, invite) = self.invite(phone, call);
        let (_, to, ok) = self.one(&pbx, &response(&invite, "200 OK", "bob"));
        assert_eq!(to, phone);
        assert_eq!(header(&ok, "Record-Route"), header(&invite, "Record-Route"));
        let routes = record_routes(&invite);
        Dialog { phone: phone.to_owned(), pbx, call: call.to_owned(), routes }
    }

    /// A phone registers a contact of the user alice; `extra` are header lines.
    #[track_caller]
    fn register(&mut self, phone: &str, contact: &str, extra: &str) {
        let call = format!("reg{}", phone.replace(['[', ']', ':', '.'], ""));
        let text = request("REGISTER", phone, &call)
            .replace("To: <sip:bob@", "To: <sip:alice@")
            .replace(&format!("<sip:alice@{phone}>"), contact)
            .replace("Content-", &format!("{extra}Content-"));
        assert_eq!(self.status(phone, &text), "SIP/2.0 200 OK");
    }
}

/// Between a phone and a PBX.
struct Dialog {
    phone: String,
    pbx: String,
    call: String,
    /// Our Record-Routes, as the callee has them.
    routes: Vec<String>,
}

impl Dialog {
    /// The route set of who called: turned around (12.1.2).
    fn of_caller(&self) -> String {
        self.routes.iter().rev().map(|route| format!("Route: {route}\r\n")).collect()
    }

    /// That of who was called.
    fn of_callee(&self) -> String {
        self.routes.iter().map(|route| format!("Route: {route}\r\n")).collect()
    }

    /// A request of the phone, which is the caller, with these Routes.
    fn says(&self, method: &str, routes: &str) -> String {
        request(method, &self.phone, &self.call)
            .replace("To: <sip:bob@example.com>", "To: <sip:bob@example.com>;tag=bob")
            .replace("Contact: ", &format!("{routes}Contact: "))
            .replace("CSeq: 1 ", if method == "ACK" { "CSeq: 1 " } else { "CSeq: 2 " })
    }

    /// A request of the PBX.
    fn pbx_says(&self, method: &str, routes: &str) -> String {
        self.says(method, routes)
            .replace(&format!("{};rport", self.phone), &self.pbx)
            .replace(
                "From: <sip:alice@example.com>;tag=alice",
                "From: <sip:bob@example.com>;tag=bob",
            )
            .replace("To: <sip:bob@example.com>;tag=bob", "To: <sip:alice@example.com>;tag=alice")
    }
}

fn config(address: &str) -> PbxConfig {
    PbxConfig {
        id: format!("pbx-{}", address.replace([':', '[', ']', '.'], "-").trim_matches('-')),
        address: address.parse().unwrap(),
        weight: 1,
        state: crate::config::AdminState::Active,
        limits: PbxLimits::default(),
    }
}

/// Our first address of somebody's family.
fn first(peer: &str) -> usize {
    if peer.starts_with('[') { 2 } else { 0 }
}

fn request(method: &str, phone: &str, call: &str) -> String {
    format!(
        "{method} sip:bob@10.10.0.1 SIP/2.0\r\n\
         Via: SIP/2.0/UDP {phone};rport;branch=z9hG4bK{call}{}\r\nMax-Forwards: 70\r\n\
         From: <sip:alice@example.com>;tag=alice\r\nTo: <sip:bob@example.com>\r\n\
         Call-ID: {call}\r\nCSeq: 1 {method}\r\nContact: <sip:alice@{phone}>\r\n\
         Content-Length: 0\r\n\r\n",
        match method {
            "INVITE" | "CANCEL" => "",
            other => other,
        }
    )
}

/// First line and target of each.
fn lines(sent: &[Sent]) -> Vec<String> {
    let line = |(_, to, text): &Sent| format!("{to} {}", text.lines().next().unwrap());
    sent.iter().map(line).collect()
}

/// Target and method or status of each.
fn starts(sent: &[Sent]) -> Vec<(&str, &str)> {
    let start = |text: &'_ str| text.split(" sip:").next().unwrap().lines().next().unwrap().len();
    sent.iter().map(|(_, to, text)| (&**to, &text[..start(text)])).collect()
}

fn other<'a>(pbxs: [&'a str; 2], pbx: &str) -> &'a str {
    if pbx == pbxs[0] { pbxs[1] } else { pbxs[0] }
}

fn record_routes(text: &str) -> Vec<String> {
    header(text, "Record-Route").into_iter().map(str::to_owned).collect()
}

// ---- A phone calls -----------------------------------------------------------------------------

#[test]
fn an_invite_line_by_line() {
    let mut d = Daemon::new(&PBX6);
    let (pbx, invite) = d.invite(PHONE4, "c");
    let slot = d.slot(&pbx);
    let routes = header(&invite, "Record-Route");
    // RFC 5658: the side that it leaves for on top.
    let (top, digits) = routes[0].split_once(";sl=").unwrap();
    assert_eq!(top, "<sip:[2001:db8::1]:5060;lr");
    let net = if pbx == PBX6[0] { 2 } else { 3 };
    let flow = format!("20010db8000{net}00000000000000000002");
    assert!(digits.starts_with(&format!("{flow}13c4{slot:02x}01")), "{digits}");
    assert_eq!(digits.len(), 56 + 1);
    let (below, digits) = routes[1].split_once(";sl=").unwrap();
    assert_eq!(below, "<sip:10.10.0.1:5060;lr");
    assert!(digits.starts_with(&format!("0a0a010213c6{slot:02x}01")), "{digits}");
    assert_eq!(digits.len(), 32 + 1);
    let vias = header(&invite, "Via");
    assert!(vias[0].starts_with("SIP/2.0/UDP [2001:db8::1]:5060;branch=z9hG4bKsld"), "{invite}");
    assert_eq!(vias[1], "SIP/2.0/UDP 10.10.1.2:5062;rport=5062;received=10.10.1.2;branch=z9hG4bKc");
    assert_eq!(header(&invite, "Max-Forwards"), ["69"]);
    assert_eq!(header(&invite, "Contact"), ["<sip:alice@10.10.1.2:5062>"]);
    assert_eq!((d.event(Event::InviteAcross), d.across()), (1, 1));
}

/// Phone and PBX of either family, and either of them hangs up.
#[test]
fn whole_calls() {
    for (phone, pbxs) in [(PHONE4, PBX6), (PHONE6, PBX4)] {
        for by_phone in [true, false] {
            for registers in [true, false] {
                whole_call(Daemon::on(&US, &pbxs, registers), phone, by_phone);
            }
        }
    }
}

fn whole_call(mut d: Daemon, phone: &str, by_phone: bool) {
    let (pbx, invite) = d.invite(phone, "c");
    assert_eq!(d.hear(phone, &request("INVITE", phone, "c")).len(), 1, "100 again, and no INVITE");
    let (local, to, ringing) = d.one(&pbx, &response(&invite, "180 Ringing", "bob"));
    assert_eq!((local, &*to), (first(phone), phone));
    assert_eq!(header(&ringing, "Via"), [header(&invite, "Via")[1]]);
    let ok = response(&invite, "200 OK", "bob");
    let answer = d.one(&pbx, &ok);
    assert_eq!((answer.0, &*answer.1), (first(phone), phone));
    assert_eq!(d.one(&pbx, &ok), answer, "it comes again until its ACK is there");
    let routes = record_routes(&invite);
    let dialog = Dialog { phone: phone.to_owned(), pbx: pbx.clone(), call: "c".into(), routes };

    // All that is in the dialog needs nothing that is remembered.
    d.pass(Duration::from_secs(600));
    assert_eq!(d.proxy.stateful().unwrap().transactions(), 0);
    let ack = dialog.says("ACK", &dialog.of_caller());
    let acked = d.one(phone, &ack);
    assert_eq!((acked.0, &*acked.1), (first(&pbx), &*pbx));
    for name in ["Route", "Record-Route"] {
        assert_eq!(header(&acked.2, name), [""; 0]);
    }
    assert_eq!(header(&acked.2, "Max-Forwards"), ["69"]);
    assert_eq!(d.one(phone, &ack), acked, "the same each time (16.11)");

    for (method, from_phone) in
        [("INVITE", true), ("ACK", true), ("UPDATE", false), ("INFO", true), ("BYE", by_phone)]
    {
        let (from, to, text) = match from_phone {
            true => (phone, &*pbx, dialog.says(method, &dialog.of_caller())),
            false => (&*pbx, phone, dialog.pbx_says(method, &dialog.of_callee())),
        };
        let sent = d.one(from, &text);
        assert_eq!((sent.0, &*sent.1), (first(to), to), "{method}");
        assert_eq!(d.one(from, &text), sent, "a repetition is the same");
        let vias = header(&sent.2, "Via");
        let ours = US[first(to)];
        assert!(vias[0].starts_with(&format!("SIP/2.0/UDP {ours};branch=z9hG4bKslx")), "{vias:?}");
        assert_eq!(vias.len(), 2);
        let came: SocketAddr = from.parse().unwrap();
        assert!(vias[1].starts_with(&format!("SIP/2.0/UDP {from}")), "{vias:?}");
        if from_phone {
            let received = format!(";rport={};received={}", came.port(), came.ip());
            assert!(vias[1].contains(&received), "{vias:?}");
        }
        if method == "ACK" {
            continue;
        }
        for _ in 0..2 {
            let (local, to, answer) = d.one(to, &response(&sent.2, "200 OK", ""));
            assert_eq!((local, &*to), (first(from), from), "{method}");
            assert_eq!(header(&answer, "Via"), [vias[1]]);
        }
    }
    let (forth, back) = (d.event(Event::DialogAcross), d.event(Event::ResponseAcross));
    assert_eq!((forth, back), (2 + 2 * 5, 2 * 4));
    assert_eq!(d.steered(), 0, "the shared decision carries none of it");
    if d.proxy.records_steered() {
        let [cdr] = &d.cdrs[..] else { panic!("{:?}", d.cdrs) };
        assert_eq!(cdr.disposition, Disposition::Answered);
        assert_eq!(cdr.ending, if by_phone { Ending::Caller } else { Ending::Callee });
    } else {
        assert_eq!(d.cdrs.len(), 0);
    }
}

#[test]
fn who_called_our_second_address_hears_from_that() {
    let mut d = Daemon::new(&PBX6);
    let sent = d.hear_at(PHONE4, 1, request("INVITE", PHONE4, "c").as_bytes());
    let [(1, _, _), (2, pbx, invite)] = &sent[..] else { panic!("{sent:#?}") };
    let routes = record_routes(invite);
    assert!(routes[1].starts_with("<sip:10.10.0.9:5080;lr;sl="), "{routes:?}");
    let ok = d.one(pbx, &response(invite, "200 OK", "bob"));
    assert_eq!((ok.0, &*ok.1), (1, PHONE4));
    let dialog = Dialog { phone: PHONE4.into(), pbx: pbx.clone(), call: "c".into(), routes };
    let bye = d.one(pbx, &dialog.pbx_says("BYE", &dialog.of_callee()));
    assert_eq!((bye.0, &*bye.1), (1, PHONE4));
    let info = dialog.says("INFO", &dialog.of_caller());
    let sent = d.hear_at(PHONE4, 1, info.as_bytes());
    assert_eq!(lines(&sent), [format!("{pbx} INFO sip:bob@10.10.0.1 SIP/2.0")]);
    let answer = d.one(pbx, &response(&sent[0].2, "200 OK", ""));
    assert_eq!((answer.0, &*answer.1), (1, PHONE4));
}

#[test]
fn a_pbx_of_the_own_family_comes_first() {
    for (phone, own) in [(PHONE4, PBX4), (PHONE6, PBX6)] {
        let mut d = Daemon::new(&[PBX4, PBX6].concat());
        let mut count = BTreeMap::new();
        for n in 0..8 {
            let (local, to, invite) = d.one(phone, &request("INVITE", phone, &format!("c{n}")));
            assert_eq!((local, header(&invite, "Record-Route").len()), (first(phone), 1));
            *count.entry(to).or_insert(0) += 1;
        }
        assert_eq!(count.keys().map(String::as_str).collect::<Vec<_>>(), own);
        assert_eq!((d.across(), d.steered()), (0, 8));
    }
}

#[test]
fn both_pbxs_of_the_other_family_have_their_share() {
    let mut d = Daemon::new(&PBX6);
    let mut count = BTreeMap::new();
    for n in 0..10 {
        let (pbx, _) = d.invite(PHONE4, &format!("c{n}"));
        *count.entry(pbx).or_insert(0) += 1;
    }
    assert_eq!(count.into_values().collect::<Vec<_>>(), [5, 5]);
}

#[test]
fn a_caller_gives_up() {
    for (phone, pbxs) in [(PHONE4, PBX6), (PHONE6, PBX4)] {
        for registers in [true, false] {
            let mut d = Daemon::on(&US, &pbxs, registers);
            let (pbx, invite) = d.invite(phone, "c");
            d.one(&pbx, &response(&invite, "180 Ringing", "bob"));
            let sent = d.hear(phone, &request("CANCEL", phone, "c"));
            assert_eq!(starts(&sent), [(phone, "SIP/2.0 200 OK"), (&*pbx, "CANCEL")]);
            let cancel = &sent[1].2;
            assert_eq!(sent[1].0, first(&pbx));
            assert_eq!(header(cancel, "Via"), [header(&invite, "Via")[0]], "its branch (9.1)");
            let sent = d.hear(&pbx, &response(&invite, "487 Request Terminated", "bob"));
            assert_eq!(starts(&sent), [(&*pbx, "ACK"), (phone, "SIP/2.0 487 Request Terminated")]);
            let ack = request("ACK", phone, "c").replace("bKcACK", "bKc");
            assert_eq!(d.hear(phone, &ack), []);
            assert_eq!(d.hear(&pbx, &response(cancel, "200 OK", "bob")), []);
            assert_eq!(d.cdrs.len(), usize::from(registers));
            assert_eq!(d.pass(Duration::from_secs(60)), []);
        }
    }
}

#[test]
fn a_refusal_is_heard() {
    let mut d = Daemon::new(&PBX6);
    let (pbx, invite) = d.invite(PHONE4, "c");
    let sent = d.hear(&pbx, &response(&invite, "486 Busy Here", "bob"));
    assert_eq!(starts(&sent), [(&*pbx, "ACK"), (PHONE4, "SIP/2.0 486 Busy Here")]);
    assert_eq!(d.hear(PHONE4, &request("ACK", PHONE4, "c").replace("bKcACK", "bKc")), []);
    assert_eq!(d.cdrs[0].disposition, Disposition::Busy);
    assert_eq!(d.pass(Duration::from_secs(60)), []);
}

/// A PBX that asks who calls gets the answer itself (22.2), whosever turn it is.
#[test]
fn credentials_go_to_who_has_asked_for_them() {
    let mut d = Daemon::new(&PBX6);
    for n in 0..4 {
        let call = format!("c{n}");
        let (pbx, invite) = d.invite(PHONE4, &call);
        let sent = d.hear(&pbx, &response(&invite, "407 Proxy Authentication Required", "x"));
        let asked = (PHONE4, "SIP/2.0 407 Proxy Authentication Required");
        assert_eq!(starts(&sent), [(&*pbx, "ACK"), asked]);
        d.hear(PHONE4, &request("ACK", PHONE4, &call).replace("ACK\r\nMax", "\r\nMax"));
        let again = request("INVITE", PHONE4, &call)
            .replace("branch=z9hG4bK", "branch=z9hG4bKagain")
            .replace("CSeq: 1", "CSeq: 2");
        let sent = d.hear(PHONE4, &again);
        let (second, _) = d.invited(PHONE4, sent);
        assert_eq!(second, pbx);
        // Another one has its turn before the next call.
        d.invite(PHONE4, &format!("between{n}"));
    }
}

// ---- Another PBX -------------------------------------------------------------------------------

/// How a PBX lets a call fail whose INVITE it has.
type Fails = fn(&mut Daemon, &str, &str) -> Vec<Sent>;

const FAILS: [Fails; 3] = [
    |d, pbx, invite| d.hear(pbx, &response(invite, "503 Service Unavailable", "x")),
    |d, _, _| d.pass(3000 * MS),
    |d, pbx, _| d.gone(pbx),
];

#[test]
fn the_next_pbx_of_the_other_family() {
    for fail in FAILS {
        let mut d = Daemon::new(&PBX6);
        let (pbx, invite) = d.invite(PHONE4, "c");
        let sent = fail(&mut d, &pbx, &invite);
        let second = other(PBX6, &pbx);
        let moved: Vec<_> = sent.iter().filter(|(_, to, _)| to == second).collect();
        let [(2, _, moved)] = moved[..] else { panic!("{:?}", lines(&sent)) };
        let routes = header(moved, "Record-Route");
        assert_eq!(routes.len(), 2);
        assert_ne!(routes, header(&invite, "Record-Route"), "another PBX has other cookies");
        let (_, to, _) = d.one(second, &response(moved, "200 OK", "bob"));
        assert_eq!(to, PHONE4);
        // Its dialog leads to it.
        let routes = routes.iter().map(|&route| route.to_owned()).collect();
        let dialog = Dialog { phone: PHONE4.into(), pbx: second.into(), call: "c".into(), routes };
        let bye = dialog.says("BYE", &dialog.of_caller());
        assert_eq!(d.one(PHONE4, &bye).1, second);
        assert_eq!(d.cdrs.len(), 1);
    }
}

/// The PBX of the caller's own family, to which the call was steered, does not take it.
#[test]
fn the_next_pbx_is_of_the_other_family() {
    for fail in FAILS {
        let mut d = Daemon::new(&[PBX4[0], PBX6[0]]);
        let (_, to, steered) = d.one(PHONE4, &request("INVITE", PHONE4, "c"));
        assert_eq!(to, PBX4[0]);
        let sent = fail(&mut d, PBX4[0], &steered);
        let moved: Vec<_> = sent.iter().filter(|(_, to, _)| to == PBX6[0]).collect();
        let [(2, _, moved)] = moved[..] else { panic!("{:?}", lines(&sent)) };
        assert_eq!(header(moved, "Record-Route").len(), 2);
        let (_, to, _) = d.one(PBX6[0], &response(moved, "200 OK", "bob"));
        assert_eq!(to, PHONE4);
        let routes = record_routes(moved);
        let dialog = Dialog { phone: PHONE4.into(), pbx: PBX6[0].into(), call: "c".into(), routes };
        let bye = dialog.pbx_says("BYE", &dialog.of_callee());
        assert_eq!(d.one(PBX6[0], &bye).1, PHONE4);
        assert_eq!(d.cdrs.len(), 1, "one record for the whole call");
        assert_eq!(d.cdrs[0].ending, Ending::Callee);
    }
}

#[test]
fn a_pbx_of_the_own_family_that_comes_back_gets_no_copy() {
    let mut d = Daemon::new(&[PBX4[0], PBX6[0]]);
    d.gone(PBX4[0]);
    let (pbx, invite) = d.invite(PHONE4, "c");
    assert_eq!(pbx, PBX6[0]);
    // It answers its probe.
    d.dispatcher.remove(&config(PBX4[0]).id).unwrap();
    d.dispatcher.add(d.now, &config(PBX4[0])).unwrap();
    d.finish(Vec::new());
    assert_eq!(d.one(PHONE4, &request("INVITE", PHONE4, "new")).1, PBX4[0]);
    let again = d.hear(PHONE4, &request("INVITE", PHONE4, "c"));
    assert_eq!(starts(&again), [(PHONE4, "SIP/2.0 100 Trying")]);
    d.one(&pbx, &response(&invite, "180 Ringing", "bob"));
    let cancel = d.hear(PHONE4, &request("CANCEL", PHONE4, "c"));
    assert_eq!(starts(&cancel), [(PHONE4, "SIP/2.0 200 OK"), (&*pbx, "CANCEL")]);
}

#[test]
fn the_first_answers_late() {
    let mut d = Daemon::new(&PBX6);
    let (pbx, invite) = d.invite(PHONE4, "c");
    let sent = d.pass(3000 * MS);
    let second = other(PBX6, &pbx);
    let moved = sent.iter().find(|(_, to, _)| to == second).unwrap();
    d.one(second, &response(&moved.2, "200 OK", "bob"));
    // Both of our Record-Routes are ours, and none is a Route of ours.
    let sent = d.hear(&pbx, &response(&invite, "200 OK", "late"));
    assert_eq!(starts(&sent), [(&*pbx, "ACK"), (&*pbx, "BYE")]);
    for (local, _, text) in &sent {
        assert_eq!((*local, header(text, "Route")), (2, vec![]));
    }
}

#[test]
fn nobody_takes_the_call() {
    // All PBXs are down.
    let mut d = Daemon::new(&PBX6);
    d.gone(PBX6[0]);
    d.gone(PBX6[1]);
    let (_, to, answer) = d.one(PHONE4, &request("INVITE", PHONE4, "c"));
    assert_eq!(to, PHONE4);
    assert!(answer.starts_with("SIP/2.0 503 Service Unavailable\r\n"), "{answer}");
    assert_eq!(header(&answer, "Retry-After"), ["5"]);
    assert_eq!(d.event(Event::InviteAcross), 0, "no memory for it");
    // They say so themselves.
    let mut d = Daemon::new(&PBX6);
    let (pbx, invite) = d.invite(PHONE4, "c");
    let sent = d.hear(&pbx, &response(&invite, "503 Service Unavailable", "x"));
    let (_, second, invite) = sent.last().unwrap();
    let sent = d.hear(second, &response(invite, "503 Service Unavailable", "x"));
    assert_eq!(starts(&sent)[1], (PHONE4, "SIP/2.0 503 Service Unavailable"));
    // While we stop.
    let mut d = Daemon::new(&PBX6);
    d.dispatcher.set_accepting(false);
    let status = d.status(PHONE4, &request("INVITE", PHONE4, "c"));
    assert_eq!(status, "SIP/2.0 503 Service Unavailable");
}

#[test]
fn without_an_address_of_ours_there() {
    let mut d = Daemon::on(&US[..2], &[], true);
    let status = d.status(PHONE4, &request("INVITE", PHONE4, "c"));
    assert_eq!(status, "SIP/2.0 503 Service Unavailable");
    // There is no way for a PBX of another family to be there at all.
    let refused = d.dispatcher.add(d.now, &config(PBX6[0]));
    assert!(refused.is_err());
    // A contact may: of a user that was restored, or one behind a proxy.
    let path = "Path: <sip:[2001:db8:1::9];lr>\r\n";
    d.register(PHONE4, &format!("<sip:alice@{PHONE6}>"), path);
    d.dispatcher.add(d.now, &config(PBX4[0])).unwrap();
    d.finish(Vec::new());
    let sent = d.hear(PBX4[0], &of_pbx("INVITE", PBX4[0]));
    let (_, _, answer) = sent.last().unwrap();
    assert!(answer.starts_with("SIP/2.0 488 Not Acceptable Here\r\n"), "{answer}");
    assert_eq!(header(answer, "Warning"), ["301 sipline \"No contact has an IPv4 address\""]);
}

#[test]
fn a_pbx_that_is_gone_for_good() {
    let mut d = Daemon::new(&PBX6);
    let dialog = d.answered(PHONE4, "c");
    d.dispatcher.remove(&config(&dialog.pbx).id).unwrap();
    d.finish(Vec::new());
    let bye = dialog.says("BYE", &dialog.of_caller());
    assert_eq!(d.status(PHONE4, &bye), "SIP/2.0 481 Call/Transaction Does Not Exist");
    assert_eq!(d.hear(PHONE4, &dialog.says("ACK", &dialog.of_caller())), []);
    assert_eq!(d.cdrs.len(), 1);
}

// ---- A PBX calls -------------------------------------------------------------------------------

/// A request of a PBX to a user of ours.
fn of_pbx(method: &str, pbx: &str) -> String {
    request(method, pbx, "p")
        .replace("sip:bob@10.10.0.1 SIP", &format!("sip:alice@{} SIP", US[first(pbx)]))
        .replace("<sip:alice@example.com>;tag=alice", "<sip:200@example.com>;tag=200")
        .replace("To: <sip:bob@", "To: <sip:alice@")
}

#[test]
fn a_pbx_calls_a_phone_of_the_other_family() {
    for (pbx, phone) in [(PBX6[0], PHONE4), (PBX4[0], PHONE6)] {
        for by_pbx in [true, false] {
            let mut d = Daemon::new(&[PBX4[0], PBX6[0]]);
            d.register(phone, &format!("<sip:alice@{phone}>"), "");
            let sent = d.hear(pbx, &of_pbx("INVITE", pbx));
            assert_eq!(starts(&sent), [(pbx, "SIP/2.0 100 Trying"), (phone, "INVITE")]);
            assert_eq!((sent[0].0, sent[1].0), (first(pbx), first(phone)));
            let invite = &sent[1].2;
            let routes = record_routes(invite);
            assert_eq!(routes.len(), 2);
            for (route, side) in routes.iter().zip([phone, pbx]) {
                assert!(route.starts_with(&format!("<sip:{};lr;sl=", US[first(side)])), "{route}");
            }
            let (local, to, _) = d.one(phone, &response(invite, "200 OK", "alice"));
            assert_eq!((local, &*to), (first(pbx), pbx));
            // The phone was called.
            let dialog = Dialog { phone: phone.into(), pbx: pbx.into(), call: "p".into(), routes };
            let tags = |text: String| text.replace("tag=bob", "tag=200");
            let ack = d.one(pbx, &tags(dialog.pbx_says("ACK", &dialog.of_caller())));
            assert_eq!((ack.0, &*ack.1), (first(phone), phone));
            assert_eq!(header(&ack.2, "Route"), [""; 0]);
            let (from, to, bye) = match by_pbx {
                true => (pbx, phone, dialog.pbx_says("BYE", &dialog.of_caller())),
                false => (phone, pbx, dialog.says("BYE", &dialog.of_callee())),
            };
            let sent = d.one(from, &tags(bye));
            assert_eq!((sent.0, &*sent.1), (first(to), to));
            let answer = d.one(to, &response(&sent.2, "200 OK", ""));
            assert_eq!((answer.0, &*answer.1), (first(from), from));
            let [cdr] = &d.cdrs[..] else { panic!("{:?}", d.cdrs) };
            assert_eq!(cdr.ending, if by_pbx { Ending::Caller } else { Ending::Callee });
            assert_eq!(d.across(), 1);
        }
    }
}

#[test]
fn contacts_of_both_families() {
    let mut d = Daemon::new(&[PBX6[0]]);
    let second = "[2001:db8:1::3]:5062";
    for (phone, q) in [(PHONE4, "0.5"), (PHONE6, "0.5"), (second, "0.9")] {
        d.register(phone, &format!("<sip:alice@{phone}>;q={q}"), "");
    }
    let sent = d.hear(PBX6[0], &of_pbx("INVITE", PBX6[0]));
    assert_eq!(starts(&sent), [(PBX6[0], "SIP/2.0 100 Trying"), (second, "INVITE")]);
    let sent = d.hear(second, &response(&sent[1].2, "486 Busy Here", "x"));
    // Alike: its own family first, and both at once.
    assert_eq!(starts(&sent), [(second, "ACK"), (PHONE6, "INVITE"), (PHONE4, "INVITE")]);
    let (six, four) = (&sent[1], &sent[2]);
    assert_eq!((six.0, header(&six.2, "Record-Route").len()), (2, 1));
    assert_eq!((four.0, header(&four.2, "Record-Route").len()), (0, 2));
    d.one(PHONE6, &response(&six.2, "180 Ringing", "six"));
    let sent = d.hear(PHONE4, &response(&four.2, "200 OK", "four"));
    assert_eq!(starts(&sent), [(PBX6[0], "SIP/2.0 200 OK"), (PHONE6, "CANCEL")]);
    assert_eq!(header(&sent[0].2, "Record-Route"), header(&four.2, "Record-Route"));
}

#[test]
fn a_message_goes_across() {
    let mut d = Daemon::new(&[PBX6[0]]);
    d.register(PHONE4, "<sip:alice@10.10.1.2:5062>", "");
    let sent = d.hear(PBX6[0], &of_pbx("MESSAGE", PBX6[0]));
    let [(0, to, text)] = &sent[..] else { panic!("{sent:#?}") };
    assert_eq!((&**to, header(text, "Record-Route").len()), (PHONE4, 0));
    let (local, to, _) = d.one(PHONE4, &response(text, "202 Accepted", "x"));
    assert_eq!((local, &*to), (2, PBX6[0]));
}

// ---- Routes and branches -----------------------------------------------------------------------

#[test]
fn routes_in_other_forms() {
    let mut d = Daemon::new(&PBX6);
    let dialog = d.answered(PHONE4, "c");
    let [six, four] = [&dialog.routes[0], &dialog.routes[1]];
    let far = "<sip:far.example;lr>";
    let usual = d.one(PHONE4, &dialog.says("INFO", &dialog.of_caller()));
    for (routes, left) in [
        (format!("Route: {four}, {six}\r\n"), vec![]),
        (format!("Route: {four},{six}\r\nRoute: {far}\r\n"), vec![far]),
        (format!("Route: {four}\r\nRoute: {six}, {far}\r\n"), vec![far]),
        (format!("Route: {four} ,\r\n {six}\r\n"), vec![]),
        (
            format!(
                "Route: \"us\" {four}\r\nRoute: {}\r\n",
                six.replace("2001:db8::1", "2001:DB8:0::1")
            ),
            vec![],
        ),
    ] {
        let (local, to, sent) = d.one(PHONE4, &dialog.says("INFO", &routes));
        assert_eq!((local, &*to), (2, &*dialog.pbx), "{routes}");
        assert_eq!(header(&sent, "Route"), left, "{routes}");
        assert_eq!(header(&sent, "Via"), header(&usual.2, "Via"), "{routes}");
    }
    // A neighbour that routes strictly (16.4).
    let bare = four.trim_matches(['<', '>']);
    let strict = dialog
        .says("INFO", &format!("Route: {six}\r\nRoute: <sip:bob@far.example>\r\n"))
        .replace("sip:bob@10.10.0.1 ", &format!("{bare} "));
    let (_, to, sent) = d.one(PHONE4, &strict);
    assert_eq!(to, dialog.pbx);
    assert!(sent.starts_with("INFO sip:bob@far.example SIP/2.0\r\n"), "{sent}");
    assert_eq!(header(&sent, "Route"), [""; 0]);
}

#[test]
fn a_bad_cookie_leads_nowhere() {
    for (phone, pbxs) in [(PHONE4, PBX6), (PHONE6, PBX4)] {
        let mut d = Daemon::new(&pbxs);
        let dialog = d.answered(phone, "c");
        let another = d.answered(phone, "d");
        let (top, below) = (&dialog.routes[0], &dialog.routes[1]);
        let before = d.event(Event::DialogAcross);
        let mut bad = vec![
            // One is missing.
            format!("Route: {top}\r\n"),
            format!("Route: {below}\r\n"),
            format!("Route: {top}\r\nRoute: <sip:far.example;lr>\r\n"),
            format!("Route: {below}\r\nRoute: <sip:far.example;lr>\r\n"),
            // Twice the same.
            format!("Route: {top}\r\nRoute: {top}\r\n"),
            format!("Route: {below}\r\nRoute: {below}\r\n"),
            // One of another call.
            format!("Route: {}\r\nRoute: {}\r\n", below, another.routes[0]),
            format!("Route: {}\r\nRoute: {}\r\n", another.routes[1], top),
        ];
        for (number, route) in dialog.routes.iter().enumerate() {
            let start = route.find("sl=").unwrap() + 3;
            for at in start..route.len() - 1 {
                let mut forged = dialog.routes.clone();
                let digit = if &route[at..=at] == "1" { "0" } else { "1" };
                forged[number].replace_range(at..=at, digit);
                bad.push(format!("Route: {}\r\nRoute: {}\r\n", forged[1], forged[0]));
            }
        }
        for routes in &bad {
            let bye = dialog.says("BYE", routes);
            assert_eq!(d.status(phone, &bye), "SIP/2.0 404 Not here", "{routes}");
            assert_eq!(d.hear(phone, &dialog.says("ACK", routes)), [], "{routes}");
            let mut turned: Vec<_> = routes.split_inclusive("\r\n").collect();
            turned.reverse();
            let bye = dialog.pbx_says("BYE", &turned.concat());
            assert_eq!(d.status(&dialog.pbx, &bye), "SIP/2.0 404 Not here", "{routes}");
        }
        // In the wrong order, and from the wrong side.
        for (from, text) in [
            (phone, dialog.says("BYE", &dialog.of_callee())),
            (&*dialog.pbx, dialog.pbx_says("BYE", &dialog.of_caller())),
            (other(pbxs, &dialog.pbx), dialog.pbx_says("BYE", &dialog.of_callee())),
        ] {
            assert_eq!(d.status(from, &text), "SIP/2.0 404 Not here", "{from}");
        }
        assert_eq!((d.event(Event::DialogAcross), d.steered()), (before, 0));
        assert_eq!(d.cdrs.len(), 0, "the call goes on");
    }
}

/// Nor does one of a call within a family serve in one that is not.
#[test]
fn cookies_of_other_calls_do_not_mix() {
    let mut d = Daemon::new(&[PBX4[0], PBX6[0]]);
    let (_, _, over4) = d.one(PHONE4, &request("INVITE", PHONE4, "c"));
    let (_, _, over6) = d.one(PHONE6, &request("INVITE", PHONE6, "c"));
    let (four, six) = (header(&over4, "Record-Route")[0], header(&over6, "Record-Route")[0]);
    let dialog =
        Dialog { phone: PHONE4.into(), pbx: PBX6[0].into(), call: "c".into(), routes: vec![] };
    let bye = dialog.says("BYE", &format!("Route: {four}\r\nRoute: {six}\r\n"));
    // As before: the first is followed, and the other one is somebody's below it.
    let (_, to, sent) = d.one(PHONE4, &bye);
    assert_eq!((&*to, header(&sent, "Route")), (PBX4[0], vec![six]));
}

#[test]
fn responses_that_are_not_ours_end_here() {
    let mut d = Daemon::new(&PBX6);
    let dialog = d.answered(PHONE4, "c");
    let (_, pbx, info) = d.one(PHONE4, &dialog.says("INFO", &dialog.of_caller()));
    let good = response(&info, "200 OK", "");
    assert_eq!(d.one(&pbx, &good).1, PHONE4);
    let top = header(&good, "Via")[0].to_owned();
    let (head, digits) = top.split_once("z9hG4bKslx").unwrap();
    assert_eq!(digits.len(), 18);
    let mut forged = Vec::new();
    for at in 0..digits.len() {
        let mut digits = digits.to_owned();
        let digit = if &digits[at..=at] == "1" { "0" } else { "1" };
        digits.replace_range(at..=at, digit);
        forged.push(good.replace(&top, &format!("{head}z9hG4bKslx{digits}")));
    }
    for (old, new) in [
        (digits, ""),
        (digits, "\u{e9}"),
        ("branch=z9hG4bKcINFO", "branch=z9hG4bKcBYE"),
        ("Call-ID: c", "Call-ID: d"),
        (";received=10.10.1.2", ";received=10.10.1.2;maddr=192.0.2.66"),
        (";received=10.10.1.2", ";received=2001:db8:1::2"),
        (";received=10.10.1.2", ";received=pc.example"),
        ("Content-Length: 0", "Content-Length: 9"),
    ] {
        assert!(good.contains(old), "{old}");
        forged.push(good.replace(old, new));
    }
    let next = format!("Via: {}\r\n", header(&good, "Via")[1]);
    forged.push(good.replace(&next, ""));
    for text in forged {
        assert_eq!(d.hear(&pbx, &text), [], "{text}");
    }
    // A right branch is worth nothing between two strangers.
    let stranger = "[2001:db8:66::1]:5060";
    assert_eq!(d.hear(stranger, &good.replace(";received=10.10.1.2", ";received=192.0.2.66")), []);
    assert_eq!(d.event(Event::ResponseAcross), 1);
    // Nor is there an answer to one that comes to us by another way than it went.
    assert_eq!(
        d.hear_at(&pbx, 3, good.as_bytes()).len(),
        1,
        "which address of ours it comes to is all one"
    );
}

#[test]
fn what_must_not_go_on() {
    let mut d = Daemon::new(&PBX6);
    let dialog = d.answered(PHONE4, "c");
    let info = dialog.says("INFO", &dialog.of_caller());
    for (old, new, status) in [
        ("Max-Forwards: 70", "Max-Forwards: 0", "483 Too Many Hops"),
        ("Max-Forwards: 70", "Max-Forwards: many", "483 Too Many Hops"),
        ("Contact: ", "Proxy-Require: foo\r\nContact: ", "420 Bad Extension"),
    ] {
        let text = info.replace(old, new);
        assert_eq!(d.status(PHONE4, &text), format!("SIP/2.0 {status}"), "{new}");
    }
    let (_, _, sent) = d.one(PHONE4, &info.replace("Max-Forwards: 70\r\n", ""));
    assert_eq!(header(&sent, "Max-Forwards"), ["10"]);
    // What starts something follows no Route of ours.
    let invite = request("INVITE", PHONE4, "e")
        .replace("Contact: ", &format!("{}Contact: ", dialog.of_caller()));
    assert_eq!(d.hear(PHONE4, &invite).len(), 2, "100, and to the PBX whose turn it is");
}

/// Messages of a call between the families.
fn seeds() -> (Daemon, Vec<(String, String)>) {
    let mut d = Daemon::new(&PBX6);
    let dialog = d.answered(PHONE4, "c");
    let (phone, pbx) = (dialog.phone.clone(), dialog.pbx.clone());
    let bye = dialog.says("BYE", &dialog.of_caller());
    let joined = format!("Route: {}\r\n", [&*dialog.routes[1], &*dialog.routes[0]].join(","));
    let info = dialog.pbx_says("INFO", &dialog.of_callee());
    let (_, _, sent) = d.one(&phone, &bye);
    let (_, _, told) = d.one(&pbx, &info);
    let seeds = vec![
        (phone.clone(), request("INVITE", PHONE4, "e")),
        (phone.clone(), bye),
        (phone.clone(), dialog.says("UPDATE", &joined)),
        (pbx.clone(), info),
        (pbx, response(&sent, "200 OK", "")),
        (phone, response(&told, "481 Gone", "")),
    ];
    (d, seeds)
}

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..Default::default()
    })]

    /// Whatever has become of a message on its way, it goes to nobody but those whose call it is and, as an answer, its
    /// sender; and of what is in the dialog there is one copy at most.
    #[test]
    fn nothing_is_led_astray(seed in 0..6usize, edits in damages()) {
        let edits: Vec<Damage> = edits;
        let (mut d, mut seeds) = seeds();
        let (from, text) = seeds.swap_remove(seed);
        let bytes = damaged(text, &edits);
        let mut out = Vec::new();
        let datagram = Datagram { local: first(&from), from: from.parse().unwrap(), bytes: &bytes };
        d.proxy.handle(d.now, &mut d.dispatcher, &(), datagram, &mut out);
        let stateful = d.proxy.stateful_mut().unwrap();
        stateful.handle_calls(d.now, &mut d.dispatcher);
        let mut sent: Vec<_> = out.iter().map(|transmit| (transmit.local, transmit.to)).collect();
        proptest::prop_assert!(sent.len() <= 1, "{sent:?}");
        while let Some(command) = stateful.poll_command() {
            if let Command::Send(transmit) = command {
                sent.push((transmit.local, transmit.to));
            }
        }
        proptest::prop_assert!(sent.len() <= 2, "{sent:?}");
        let sender: SocketAddr = from.parse().unwrap();
        for (local, to) in sent {
            let ours: SocketAddr = US[local].parse().unwrap();
            proptest::prop_assert_eq!(ours.is_ipv4(), to.is_ipv4());
            let known = [PHONE4, PBX6[0], PBX6[1]].contains(&&*to.to_string());
            proptest::prop_assert!(known || to.ip() == sender.ip(), "{}", to);
        }
    }
}
