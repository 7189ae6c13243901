//! The replies of the seed, row by row: the whole daemon on virtual time, without kernel, sockets and store.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime};

use sip_ebpf::message::Message;
use sip_ebpf::scan::Index;

use super::accounting::{Accounting, Cdr, Disposition, Ending, Rules as Records};
use super::authenticator::{Authenticator, Rules};
use super::clock::Clock;
use super::digest::{Challenge, Role, Secret, Session, Settings as Digest};
use super::dispatcher::Dispatcher;
use super::forking;
use super::proxy::{Datagram, Policy, Proxy};
use super::registrar::{self, Domains};
use super::sources::Sources;
use super::stateful::{CallRules, Command, Settings, Stateful};
use super::testing::{header, response};
use super::transaction;
use crate::config::{AdminState, NoDestination, PbxConfig, PbxLimits, Probe, Trust};

const US: &str = "10.10.0.1:5060";
const ANNA: &str = "10.10.1.2:5062";
const BOB: &str = "10.10.1.3:5062";
const STRANGER: &str = "192.0.2.66:5060";
const PBX1: &str = "10.10.2.2:5060";
const PBX2: &str = "10.10.3.2:5060";

struct Daemon {
    proxy: Proxy,
    dispatcher: Dispatcher,
    now: Instant,
    start: Instant,
    /// What each address has heard and nobody has looked at: methods and statuses.
    heard: BTreeMap<String, Vec<String>>,
    /// The last of each kind.
    last: BTreeMap<(String, String), String>,
    cdrs: Vec<Cdr>,
    requests: u32,
}

impl Daemon {
    fn new() -> Self {
        Self::with(|_| {})
    }

    fn with(change: impl FnOnce(&mut Settings)) -> Self {
        Self::on(US, &[("pbx1", PBX1), ("pbx2", PBX2)], change)
    }

    /// At this address, with these PBXs.
    fn on(us: &str, pbxs: &[(&str, &str)], change: impl FnOnce(&mut Settings)) -> Self {
        let now = Instant::now();
        let locals: Vec<SocketAddr> = vec![us.parse().unwrap()];
        let policy = Policy {
            sources: Sources::default(),
            no_destination: NoDestination::default(),
            shadow: None,
            scanners: Vec::new(),
            rates: None,
        };
        let mut proxy = Proxy::new([7, 9], &locals, 64, policy, now);
        let mut settings = Settings {
            domains: Domains::new(["example.com"], &locals),
            believed: Sources::new(&Trust::default()),
            locals: locals.clone(),
            registrar: registrar::Rules { jitter: 0, ..registrar::Rules::default() },
            forking: forking::Rules::default(),
            transactions: transaction::Config::default(),
            calls: CallRules::default(),
            credentials: Default::default(),
            retry_after: 5,
            registers: true,
        };
        change(&mut settings);
        let clock = Clock::new(now, Duration::from_secs(1_700_000_000));
        let asking =
            Authenticator::new(Rules::default(), Digest::default(), &[7; 16], 1, clock).unwrap();
        let mut stateful = Stateful::new([3, 4], settings, Some(asking), now);
        let since = (now, SystemTime::UNIX_EPOCH + Duration::from_secs(1_700_000_000));
        stateful.set_accounting(Some(Accounting::new(Records::default(), [5, 6], 1, since)));
        proxy.set_stateful(Some(stateful));
        let mut dispatcher = Dispatcher::new(&locals, Probe::default());
        let pbx = |id: &str, address: &str| PbxConfig {
            id: id.to_owned(),
            address: address.parse().unwrap(),
            weight: 1,
            state: AdminState::Active,
            limits: PbxLimits::default(),
        };
        let pbxs: Vec<_> = pbxs.iter().map(|(id, address)| pbx(id, address)).collect();
        dispatcher.reload(now, &pbxs, Probe::default()).unwrap();
        let mut daemon = Self {
            proxy,
            dispatcher,
            now,
            start: now,
            heard: BTreeMap::new(),
            last: BTreeMap::new(),
            cdrs: Vec::new(),
            requests: 0,
        };
        daemon.collect();
        daemon
    }

    fn stateful(&mut self) -> &mut Stateful {
        self.proxy.stateful_mut().unwrap()
    }

    /// Does what `run` does with what the core wants. The store has Anna and Bob.
    fn collect(&mut self) {
        let Self { proxy, dispatcher, now, .. } = self;
        let stateful = proxy.stateful_mut().unwrap();
        let mut sent = Vec::new();
        loop {
            let mut any = false;
            while let Some(command) = dispatcher.poll_command() {
                any |= !matches!(command, super::dispatcher::Command::Send { .. });
            }
            if any {
                stateful.handle_pbxs(*now, dispatcher);
            }
            stateful.handle_calls(*now, dispatcher);
            let Some(command) = stateful.poll_command() else { break };
            match command {
                Command::Send(transmit) => sent.push((transmit.to, transmit.bytes.to_vec())),
                Command::FetchSecrets { ticket, user, .. } => {
                    let known = matches!(&*user, "anna" | "bob");
                    let secrets = known.then(|| vec![Secret::Password("secret".into())]);
                    stateful.handle_secrets(*now, ticket, Ok(secrets));
                }
                Command::Cdr(cdr) => self.cdrs.push(*cdr),
                Command::Save(_)
                | Command::Remove(_)
                | Command::Guessed { .. }
                | Command::User { .. }
                | Command::KeepCall(_)
                | Command::DropCall(_)
                | Command::Learned { .. } => {}
            }
        }
        for (to, bytes) in sent {
            self.sent(to, &bytes);
        }
    }

    fn sent(&mut self, to: SocketAddr, bytes: &[u8]) {
        let text = str::from_utf8(bytes).unwrap().to_owned();
        let mut index = Index::new();
        Message::parse(text.as_bytes(), &mut index).unwrap().check_all().unwrap();
        let what = text.strip_prefix("SIP/2.0 ").unwrap_or(&text);
        let what = what.split(' ').next().unwrap().to_owned();
        let to = to.to_string();
        self.last.insert((to.clone(), what.clone()), text.clone());
        // PBXs take registrations.
        if what == "REGISTER" {
            return self.hear(&to, &response(&text, "200 OK", "pbx"));
        }
        self.heard.entry(to.clone()).or_default().push(what.clone());
        // Phones acknowledge failures.
        let failed = what.parse::<u16>().is_ok_and(|status| status >= 300);
        if failed && header(&text, "CSeq")[0].ends_with("INVITE") {
            let of = |name: &str| header(&text, name)[0].to_owned();
            let ack = format!(
                "ACK sip:x@example.com SIP/2.0\r\nVia: {}\r\nFrom: {}\r\nTo: {}\r\nCall-ID: {}\r\n\
                 CSeq: {}\r\nMax-Forwards: 70\r\nContent-Length: 0\r\n\r\n",
                of("Via"),
                of("From"),
                of("To"),
                of("Call-ID"),
                of("CSeq").replace("INVITE", "ACK"),
            );
            if [ANNA, BOB, STRANGER].contains(&&*to) {
                self.hear(&to, &ack);
            }
        }
    }

    fn hear(&mut self, from: &str, text: &str) {
        let mut out = Vec::new();
        let datagram = Datagram { local: 0, from: from.parse().unwrap(), bytes: text.as_bytes() };
        self.proxy.handle(self.now, &mut self.dispatcher, &(), datagram, &mut out);
        for transmit in out {
            self.sent(transmit.to, &transmit.bytes);
        }
        self.collect();
    }

    /// What an address has heard since the last time.
    fn take(&mut self, address: &str) -> Vec<String> {
        self.heard.remove(address).unwrap_or_default()
    }

    /// The last datagram of a kind to an address.
    #[track_caller]
    fn got(&self, address: &str, what: &str) -> String {
        match self.last.get(&(address.to_owned(), what.to_owned())) {
            Some(text) => text.clone(),
            None => panic!("{address} has not heard {what}: {:?}", self.heard),
        }
    }

    /// Lets time pass, at each timer a stop.
    fn pass(&mut self, millis: u64) {
        let end = self.now + Duration::from_millis(millis);
        loop {
            let next = [self.stateful().poll_timeout(), self.dispatcher.poll_timeout()];
            let Some(at) = next.into_iter().flatten().min().filter(|at| *at <= end) else { break };
            self.now = self.now.max(at);
            let now = self.now;
            self.dispatcher.handle_timeout(now);
            self.stateful().handle_timeout(now);
            self.collect();
        }
        self.now = end;
    }

    fn seconds(&self) -> u64 {
        (self.now - self.start).as_secs()
    }

    fn order(&mut self, id: &str, admin: AdminState) {
        self.dispatcher.set_admin(self.now, id, admin).unwrap();
        self.collect();
    }

    /// A request of a user to a URI, in the call of this name.
    fn request(&mut self, method: &str, user: &str, uri: &str, call: &str, extra: &str) -> String {
        self.requests += 1;
        let n = self.requests;
        let at = if user == "bob" { BOB } else { ANNA };
        let to = match method {
            "REGISTER" => format!("sip:{user}@example.com"),
            _ => uri.to_owned(),
        };
        format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {at};rport;branch=z9hG4bK{n}\r\n\
             Max-Forwards: 70\r\nFrom: <sip:{user}@example.com>;tag={user}\r\nTo: <{to}>\r\n\
             Call-ID: {call}\r\nCSeq: {n} {method}\r\nContact: <sip:{user}@{at}>\r\n{extra}\
             Content-Length: 0\r\n\r\n"
        )
    }

    /// The same with credentials for the challenge that it gets.
    fn authorized(
        &mut self,
        method: &str,
        user: &str,
        uri: &str,
        call: &str,
        extra: &str,
    ) -> String {
        let bare = self.request(method, user, uri, call, extra);
        let at = if user == "bob" { BOB } else { ANNA };
        self.hear(at, &bare);
        let status = if method == "REGISTER" { "401" } else { "407" };
        assert_eq!(self.take(at), [status]);
        let line = credentials(&self.got(at, status), method, user, uri);
        self.request(method, user, uri, call, &format!("{extra}{line}"))
    }

    /// Somebody registers. Says what he hears.
    fn register(&mut self, user: &str, extra: &str) -> Vec<String> {
        let text =
            self.authorized("REGISTER", user, "sip:example.com", &format!("reg-{user}"), extra);
        let at = if user == "bob" { BOB } else { ANNA };
        self.hear(at, &text);
        self.take(at)
    }

    /// A call of Anna's is on its way. Says the PBX that has it.
    fn call(&mut self, uri: &str, call: &str) -> &'static str {
        let text = self.authorized("INVITE", "anna", uri, call, "");
        self.hear(ANNA, &text);
        assert_eq!(self.take(ANNA), ["100"]);
        self.has_invite()
    }

    /// The PBX that has heard an INVITE, and nothing else.
    #[track_caller]
    fn has_invite(&mut self) -> &'static str {
        let (one, two) = (self.take(PBX1), self.take(PBX2));
        match (&one[..], &two[..]) {
            ([invite], []) if invite == "INVITE" => PBX1,
            ([], [invite]) if invite == "INVITE" => PBX2,
            other => panic!("{other:?}"),
        }
    }

    /// Somebody answers the INVITE that he has.
    fn answer(&mut self, from: &str, status: &str) {
        let invite = self.got(from, "INVITE");
        let contact = format!("Contact: <sip:x@{from}>\r\nContent-Length");
        let answer = response(&invite, status, "them").replace("Content-Length", &contact);
        self.hear(from, &answer);
    }

    /// A call of a PBX to one of our users.
    fn call_from(&mut self, pbx: &str, uri: &str, method: &str) -> String {
        self.requests += 1;
        let n = self.requests;
        let text = format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {pbx};rport;branch=z9hG4bK{n}\r\n\
             Max-Forwards: 70\r\nFrom: <sip:1000@{pbx}>;tag=p{n}\r\nTo: <{uri}>\r\n\
             Call-ID: pbx{n}\r\nCSeq: 1 {method}\r\nContact: <sip:1000@{pbx}>\r\n\
             Content-Length: 0\r\n\r\n"
        );
        self.hear(pbx, &text);
        text
    }
}

/// The line that answers a challenge.
fn credentials(challenge: &str, method: &str, user: &str, uri: &str) -> String {
    let (name, role) = match method {
        "REGISTER" => ("WWW-Authenticate", Role::UserAgent),
        _ => ("Proxy-Authenticate", Role::Proxy),
    };
    let secret = Secret::Password("secret".into());
    let values = header(challenge, name);
    let challenge = Challenge::choose(values.iter().map(|v| v.as_bytes()), &secret).unwrap();
    let mut session = Session::new(challenge, "cnonce".into());
    session.authorize(role, user, &secret, method, uri).unwrap()
}

fn other(pbx: &str) -> &'static str {
    if pbx == PBX1 { PBX2 } else { PBX1 }
}

fn status(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

// ---- 1. Hygiene ----------------------------------------------------------------------------------

#[test]
fn hops() {
    let mut d = Daemon::new();
    let mut forwarded = |value: &str| {
        let call = format!("hops{}", value.len());
        let text = d.authorized("INVITE", "anna", "sip:200@example.com", &call, "");
        d.hear(ANNA, &text.replace("Max-Forwards: 70\r\n", value));
        let heard = d.take(ANNA);
        match &heard[..] {
            [trying] if trying == "100" => {
                let pbx = d.has_invite();
                let hops = header(&d.got(pbx, "INVITE"), "Max-Forwards")[0].to_owned();
                d.answer(pbx, "486 Busy Here");
                d.take(ANNA);
                d.take(pbx);
                hops
            }
            other => other.join(" "),
        }
    };
    assert_eq!(forwarded(""), "10");
    assert_eq!(forwarded("Max-Forwards: 200\r\n"), "69");
    assert_eq!(forwarded("Max-Forwards: 5\r\n"), "4");
    assert_eq!(forwarded("Max-Forwards: 0\r\n"), "483");
    assert_eq!(forwarded("Max-Forwards: many\r\n"), "483");
}

#[test]
fn what_is_malformed() {
    let mut d = Daemon::new();
    for (right, wrong, reason) in [
        ("CSeq: 1 INVITE", "CSeq: 1 BYE", "400"),
        ("Content-Length: 0", "Content-Length: 9", "400"),
        ("INVITE sip:200@example.com", "INVITE sip:@", "400"),
        ("SIP/2.0/UDP", "HTTP/1.1/UDP", ""),
        ("Call-ID: bad\r\n", "", ""),
    ] {
        let text = d.request("INVITE", "anna", "sip:200@example.com", "bad", "");
        let text = text.replace(&format!("CSeq: {} ", d.requests), "CSeq: 1 ");
        assert!(text.contains(right), "{right}");
        d.hear(ANNA, &text.replacen(right, wrong, 1));
        assert_eq!(d.take(ANNA).join(" "), reason, "{wrong}");
    }
    assert_eq!(d.take(PBX1).len() + d.take(PBX2).len(), 0);
}

#[test]
fn rare_forms() {
    let mut d = Daemon::new();
    let uri = "sip:200@example.com";
    let text = d.authorized("INVITE", "anna", uri, "rare", "Subject: folded\r\n over lines\r\n");
    // Compact names, white space, and a Via that a forger has filled in.
    let text = text.replace("Via: ", "v: ").replace("From: ", "f : ").replace("CSeq: ", "cseq:   ");
    d.hear(ANNA, &text.replace(";rport", ";received=192.0.2.66;rport=9"));
    assert_eq!(d.take(ANNA), ["100"]);
    let pbx = d.has_invite();
    let invite = d.got(pbx, "INVITE");
    assert!(header(&invite, "Subject")[0].starts_with("folded"));
    assert!(!invite.contains("192.0.2.66"), "{invite}");
    d.answer(pbx, "200 OK");
    assert_eq!(d.take(ANNA), ["200"]);
}

// ---- 2. In a dialog ------------------------------------------------------------------------------

#[test]
fn without_our_route_nobody_is_here() {
    let mut d = Daemon::new();
    let text = d.request("BYE", "anna", "sip:200@example.com", "c", "");
    let text = text.replace("To: <sip:200@example.com>", "To: <sip:200@example.com>;tag=x");
    d.hear(ANNA, &text);
    assert_eq!(status(&d.got(ANNA, "404")).to_ascii_lowercase(), "sip/2.0 404 not here");
    d.take(ANNA);
    d.hear(ANNA, &text.replace("BYE", "ACK"));
    assert_eq!(d.take(ANNA), [""; 0], "an ACK of nothing ends in silence");
}

/// A call from the first INVITE to the end, with what is inside the dialog by the cookie.
#[test]
fn a_whole_call() {
    let mut d = Daemon::new();
    let pbx = d.call("sip:200@example.com", "whole");
    let invite = d.got(pbx, "INVITE");
    assert!(invite.starts_with("INVITE sip:200@example.com SIP/2.0\r\n"));
    assert_eq!(header(&invite, "Proxy-Authorization"), [""; 0], "ours are for us");
    assert_eq!(header(&invite, "Record-Route").len(), 1);
    let vias = header(&invite, "Via");
    assert!(vias[1].contains(";received=10.10.1.2") && vias[1].contains(";rport=5062"), "{vias:?}");
    d.answer(pbx, "180 Ringing");
    d.answer(pbx, "200 OK");
    assert_eq!(d.take(ANNA), ["180", "200"]);

    // The caller's ACK and BYE come with our Route.
    let ok = d.got(ANNA, "200");
    let route = header(&ok, "Record-Route")[0].to_owned();
    let to = header(&ok, "To")[0].to_owned();
    let inside = |d: &mut Daemon, method: &str| {
        let uri = format!("sip:x@{pbx}");
        let text = d.request(method, "anna", &uri, "whole", &format!("Route: {route}\r\n"));
        text.replace(&format!("To: <{uri}>"), &format!("To: {to}"))
    };
    let ack = inside(&mut d, "ACK");
    d.hear(ANNA, &ack);
    d.pass(5_000);
    let bye = inside(&mut d, "BYE");
    d.hear(ANNA, &bye);
    assert_eq!(d.take(pbx), ["ACK", "BYE"]);
    assert_eq!(header(&d.got(pbx, "BYE"), "Route"), [""; 0]);
    let done = response(&d.got(pbx, "BYE"), "200 OK", "them");
    d.hear(pbx, &done);
    assert_eq!(d.take(ANNA), ["200"]);

    let [cdr] = &d.cdrs[..] else { panic!("{:?}", d.cdrs) };
    assert_eq!(cdr.disposition, Disposition::Answered);
    assert_eq!((&*cdr.src, &*cdr.dst), ("anna", "200"));
    assert_eq!(cdr.billsec, Duration::from_secs(5));
    d.pass(64_000);
    assert_eq!(d.stateful().contexts(), 0);
    assert_eq!(d.stateful().transactions(), 0);
}

/// A BYE in a form that the kernel does not read, and one that nobody answers: each ends the record.
#[test]
fn every_bye_ends_a_record() {
    let mut d = Daemon::new();
    for (call, two_routes) in [("two", true), ("gone", false)] {
        let pbx = d.call("sip:200@example.com", call);
        d.answer(pbx, "200 OK");
        assert_eq!(d.take(ANNA), ["200"]);
        let ok = d.got(ANNA, "200");
        let (route, to) = (header(&ok, "Record-Route")[0], header(&ok, "To")[0]);
        let uri = format!("sip:x@{pbx}");
        let routes = match two_routes {
            true => format!("Route: {route}\r\nRoute: <sip:{pbx};lr>\r\n"),
            false => format!("Route: {route}\r\n"),
        };
        let bye = d.request("BYE", "anna", &uri, call, &routes);
        let bye = bye.replace(&format!("To: <{uri}>"), &format!("To: {to}"));
        if !two_routes {
            d.dispatcher.remove(if pbx == PBX1 { "pbx1" } else { "pbx2" }).unwrap();
            d.collect();
        }
        d.hear(ANNA, &bye);
        if two_routes {
            assert_eq!(d.take(pbx), ["BYE"]);
        } else {
            assert_eq!(d.take(ANNA), ["481"]);
        }
        let cdr = d.cdrs.pop().unwrap();
        assert_eq!((cdr.disposition, cdr.ending), (Disposition::Answered, Ending::Caller));
        assert!(d.cdrs.is_empty());
    }
}

// ---- 3. CANCEL, 4. repetitions -------------------------------------------------------------------

#[test]
fn a_call_is_taken_back() {
    let mut d = Daemon::new();
    let text = d.authorized("INVITE", "anna", "sip:200@example.com", "back", "");
    d.hear(ANNA, &text);
    d.hear(ANNA, &text);
    assert_eq!(d.take(ANNA), ["100", "100"], "a repetition is absorbed");
    let pbx = d.has_invite();
    d.answer(pbx, "180 Ringing");
    let cancel: String = text
        .split_inclusive("\r\n")
        .filter(|line| !line.starts_with("Proxy-Authorization"))
        .collect::<String>()
        .replace("INVITE", "CANCEL");
    d.hear(ANNA, &cancel);
    assert_eq!(d.take(ANNA), ["180", "200"]);
    assert_eq!(d.take(pbx), ["CANCEL"]);
    let cancel = response(&d.got(pbx, "CANCEL"), "200 OK", "c");
    d.hear(pbx, &cancel);
    d.answer(pbx, "487 Request Terminated");
    assert_eq!(d.take(ANNA), ["487"]);
    assert_eq!(d.take(pbx), ["ACK"]);
    assert_eq!(d.cdrs.len(), 1);
    assert_eq!(d.cdrs[0].disposition, Disposition::NoAnswer);

    let unknown = d.request("CANCEL", "anna", "sip:200@example.com", "nothing", "");
    d.hear(ANNA, &unknown);
    assert_eq!(d.take(ANNA), ["481"]);
}

// ---- 5. Who is it --------------------------------------------------------------------------------

#[test]
fn who_calls() {
    let mut d = Daemon::new();
    let text = d.request("INVITE", "anna", "sip:200@example.com", "c", "");
    d.hear(ANNA, &text);
    assert!(header(&d.got(ANNA, "407"), "Proxy-Authenticate")[0].contains("realm=\"example.com\""));
    d.take(ANNA);
    // Bob's password does not make him Anna.
    let text = d.authorized("INVITE", "bob", "sip:200@example.com", "d", "");
    d.hear(BOB, &text.replace("From: <sip:bob@", "From: <sip:anna@"));
    assert_eq!(status(&d.got(BOB, "403")), "SIP/2.0 403 Forbidden auth ID");
    d.take(BOB);
    // Who is not from here, and calls elsewhere or here.
    let strange = text.replace("From: <sip:bob@example.com", "From: <sip:bob@evil.example");
    d.hear(
        STRANGER,
        &strange.replace(BOB, STRANGER).replace("@example.com SIP", "@far.example SIP"),
    );
    assert_eq!(status(&d.got(STRANGER, "403")), "SIP/2.0 403 Not relaying");
    // PBXs are believed.
    d.call_from(PBX1, "sip:nobody@10.10.0.1", "INVITE");
    assert_eq!(d.take(PBX1), ["404"]);
}

// ---- 6. Routes -----------------------------------------------------------------------------------

#[test]
fn preloaded_routes_are_dropped() {
    let mut d = Daemon::new();
    let text = d.authorized(
        "INVITE",
        "anna",
        "sip:200@example.com",
        "c",
        "Route: <sip:evil.example;lr>\r\n",
    );
    d.hear(ANNA, &text);
    let pbx = d.has_invite();
    assert_eq!(header(&d.got(pbx, "INVITE"), "Route"), [""; 0]);
}

// ---- 8. Presence, 10. no user --------------------------------------------------------------------

#[test]
fn presence_is_not_here() {
    let mut d = Daemon::new();
    for method in ["SUBSCRIBE", "PUBLISH"] {
        let uri = "sip:anna@example.com";
        let text = d.authorized(method, "anna", uri, "presence", "Event: presence\r\n");
        d.hear(ANNA, &text);
        assert_eq!(status(&d.got(ANNA, "404")), "SIP/2.0 404 Not here");
        d.take(ANNA);
    }
    d.call_from(PBX1, "sip:anna@10.10.0.1", "SUBSCRIBE");
    assert_eq!(d.take(PBX1), ["404"]);
}

#[test]
fn an_address_without_a_user() {
    let mut d = Daemon::new();
    for uri in ["sip:example.com", "sip:10.10.0.1"] {
        let text = d.authorized("INVITE", "anna", uri, uri, "");
        d.hear(ANNA, &text);
        assert_eq!(d.take(ANNA), ["484"]);
        assert_eq!(status(&d.got(ANNA, "484")), "SIP/2.0 484 Address Incomplete");
    }
    assert_eq!(d.cdrs.len(), 2, "calls that failed have a record");
    assert!(d.cdrs.iter().all(|cdr| cdr.disposition == Disposition::Failed));
}

// ---- 9. REGISTER ---------------------------------------------------------------------------------

#[test]
fn registrations() {
    let mut d = Daemon::new();
    assert_eq!(d.register("anna", "Expires: 600\r\n"), ["200"]);
    assert_eq!(header(&d.got(PBX2, "REGISTER"), "Expires"), ["600"]);
    assert_eq!(header(&d.got(PBX1, "REGISTER"), "Contact").len(), 1);
    assert_eq!(d.register("anna", "Expires: 5\r\n"), ["423"]);
    let text = d.authorized("REGISTER", "bob", "sip:example.com", "r", "");
    let text = text.replace("To: <sip:bob@example.com>", "To: <sip:anna@example.com>");
    d.hear(BOB, &text);
    assert_eq!(status(&d.got(BOB, "403")), "SIP/2.0 403 Forbidden auth ID");
}

// ---- 11. Location --------------------------------------------------------------------------------

#[test]
fn a_pbx_calls_a_phone() {
    let mut d = Daemon::new();
    d.call_from(PBX1, "sip:bob@10.10.0.1", "INVITE");
    assert_eq!(d.take(PBX1), ["404"]);
    assert_eq!(status(&d.got(PBX1, "404")), "SIP/2.0 404 Not Found");
    d.register("bob", "");
    let text = d.call_from(PBX1, "sip:bob@10.10.0.1", "INVITE");
    assert_eq!(d.take(PBX1), ["100"]);
    assert_eq!(d.take(BOB), ["INVITE"]);
    let invite = d.got(BOB, "INVITE");
    assert!(invite.starts_with(&format!("INVITE sip:bob@{BOB} SIP/2.0\r\n")));
    d.answer(BOB, "180 Ringing");
    d.answer(BOB, "200 OK");
    assert_eq!(d.take(PBX1), ["180", "200"]);

    // The PBX ends it by our Route.
    let ok = d.got(PBX1, "200");
    let (route, to) = (header(&ok, "Record-Route")[0], header(&ok, "To")[0]);
    let bye = text
        .replace("INVITE sip:bob@10.10.0.1", &format!("BYE sip:x@{BOB}"))
        .replace("1 INVITE", "2 BYE")
        .replace("To: <sip:bob@10.10.0.1>", &format!("To: {to}\r\nRoute: {route}"));
    d.hear(PBX1, &bye);
    assert_eq!(d.take(BOB), ["BYE"]);
    let ended: Vec<_> = d.cdrs.iter().map(|cdr| cdr.disposition).collect();
    assert_eq!(ended, [Disposition::Failed, Disposition::Answered]);
}

#[test]
fn a_pbx_gives_up() {
    let mut d = Daemon::new();
    d.register("bob", "");
    let text = d.call_from(PBX1, "sip:bob@10.10.0.1", "INVITE");
    d.answer(BOB, "180 Ringing");
    d.take(PBX1);
    d.hear(PBX1, &text.replace("INVITE", "CANCEL"));
    assert_eq!(d.take(PBX1), ["200"]);
    assert_eq!(d.take(BOB), ["INVITE", "CANCEL"]);
    d.answer(BOB, "487 Request Terminated");
    assert_eq!(d.take(PBX1), ["487"]);
    // The ACK of the PBX ends the repetitions.
    let refused = d.got(PBX1, "487");
    let ack = text.replace("INVITE", "ACK");
    let ack = ack.replace("To: <sip:bob@10.10.0.1>", &format!("To: {}", header(&refused, "To")[0]));
    d.hear(PBX1, &ack);
    d.pass(10_000);
    assert_eq!(d.take(PBX1), [""; 0]);
    assert_eq!(d.cdrs[0].disposition, Disposition::NoAnswer, "a missed call");
}

#[test]
fn all_contacts_by_their_preference() {
    let mut d = Daemon::new();
    let contacts = "Contact: <sip:bob@10.10.1.4:5060>;q=0.5, <sip:bob@10.10.1.5:5060>;q=0.5, \
                    <sip:bob@10.10.1.6:5060>;q=0.1\r\n";
    let text = d.authorized("REGISTER", "bob", "sip:example.com", "r", "");
    d.hear(BOB, &text.replace(&format!("Contact: <sip:bob@{BOB}>\r\n"), contacts));
    assert_eq!(d.take(BOB), ["200"]);
    let heard = |d: &mut Daemon| {
        let one = |last: u8| d.take(&format!("10.10.1.{last}:5060")).len();
        [4, 5, 6].map(one)
    };
    d.call_from(PBX2, "sip:bob@10.10.0.1", "INVITE");
    assert_eq!(heard(&mut d), [1, 1, 0]);
    d.answer("10.10.1.4:5060", "486 Busy Here");
    d.answer("10.10.1.5:5060", "480 Away");
    assert_eq!(heard(&mut d)[2], 1);
    d.answer("10.10.1.6:5060", "200 OK");
    assert_eq!(d.take(PBX2), ["100", "200"]);
}

#[test]
fn other_methods_go_to_the_contact() {
    let mut d = Daemon::new();
    d.register("bob", "");
    let text = d.authorized("MESSAGE", "anna", "sip:bob@example.com", "m", "");
    d.hear(ANNA, &text);
    assert_eq!(d.take(BOB), ["MESSAGE"]);
    let ok = response(&d.got(BOB, "MESSAGE"), "200 OK", "b");
    d.hear(BOB, &ok);
    assert_eq!(d.take(ANNA), ["200"]);
    let text = d.authorized("MESSAGE", "anna", "sip:nobody@example.com", "m2", "");
    d.hear(ANNA, &text);
    assert_eq!(status(&d.got(ANNA, "404")), "SIP/2.0 404 Not Found");
    d.take(ANNA);
    let text = d.authorized("MESSAGE", "anna", "sip:bob@far.example", "m3", "");
    d.hear(ANNA, &text);
    assert_eq!(d.take(ANNA), ["404"]);
}

#[test]
fn a_method_that_no_contact_takes() {
    let mut d = Daemon::new();
    d.register("bob", "Allow: INVITE, ACK, CANCEL, BYE, OPTIONS\r\n");
    let text = d.authorized("MESSAGE", "anna", "sip:bob@example.com", "m", "");
    d.hear(ANNA, &text);
    assert_eq!(d.take(ANNA), ["405"]);
    let refused = d.got(ANNA, "405");
    assert_eq!(status(&refused), "SIP/2.0 405 Method Not Allowed");
    assert_eq!(header(&refused, "Allow"), ["INVITE, CANCEL, OPTIONS"]);
    assert_eq!(d.take(BOB), [""; 0]);
}

// ---- Policies ------------------------------------------------------------------------------------

/// A phone that asks no more once it is registered from where it calls.
fn call_of(at: &str, call: &str) -> String {
    format!(
        "INVITE sip:200@example.com SIP/2.0\r\nVia: SIP/2.0/UDP {at};rport;branch=z9hG4bK{call}\r\n\
         Max-Forwards: 70\r\nFrom: <sip:anna@example.com>;tag=anna\r\nTo: <sip:200@example.com>\r\n\
         Call-ID: {call}\r\nCSeq: 1 INVITE\r\nContact: <sip:anna@{at}>\r\nContent-Length: 0\r\n\r\n"
    )
}

/// The network of the phones is one where that is enough.
fn where_registered_is_enough() -> Daemon {
    let mut d = Daemon::new();
    let registered = vec!["10.10.1.0/24".parse().unwrap()];
    let sources = Sources::new(&Trust { registered, ..Trust::default() });
    let policy = Policy { sources, ..d.proxy.policy().clone() };
    d.proxy.set_policy(policy);
    d
}

#[test]
fn who_is_registered_is_steered() {
    let mut d = where_registered_is_enough();
    let calls = |d: &mut Daemon, at: &str, call: &str| {
        d.hear(at, &call_of(at, call));
        d.take(at)
    };
    let asked = ["407"];
    // Here nobody answers the probes of PBXs: after a while none takes a call that gets so far.
    let steered: [&str; 0] = [];
    let too_late = ["503"];
    assert_eq!(calls(&mut d, ANNA, "before"), asked);
    assert_eq!(d.register("anna", "Expires: 600\r\n"), ["200"]);
    assert_eq!(calls(&mut d, ANNA, "now"), steered);
    // Another port of the same address, another phone, and a PBX's stranger.
    assert_eq!(calls(&mut d, "10.10.1.2:5063", "port"), asked);
    assert_eq!(calls(&mut d, BOB, "bob"), asked);
    assert_eq!(calls(&mut d, STRANGER, "stranger"), asked);
    // His time is over.
    d.pass(599_000);
    assert_eq!(calls(&mut d, ANNA, "last"), too_late);
    d.pass(1_000);
    assert_eq!(calls(&mut d, ANNA, "over"), asked);
    assert!(d.stateful().endpoints().is_empty());
    // He goes.
    assert_eq!(d.register("anna", "Expires: 600\r\n"), ["200"]);
    assert_eq!(calls(&mut d, ANNA, "back"), too_late);
    assert_eq!(d.register("anna", "Expires: 0\r\n"), ["200"]);
    assert_eq!(calls(&mut d, ANNA, "gone"), asked);
    // He is taken out by hand.
    let aor = registrar::Aor::new("anna", "example.com").unwrap();
    assert_eq!(d.register("anna", ""), ["200"]);
    let now = d.now;
    assert_eq!(d.stateful().remove(now, &aor, None), 1);
    d.collect();
    assert_eq!(calls(&mut d, ANNA, "removed"), asked);
    // The user is removed, or has another password.
    assert_eq!(d.register("anna", ""), ["200"]);
    assert_eq!(calls(&mut d, ANNA, "again"), too_late);
    d.stateful().forget("bob", "example.com");
    assert_eq!(calls(&mut d, ANNA, "not-bob"), too_late);
    d.stateful().forget("anna", "example.com");
    assert_eq!(calls(&mut d, ANNA, "forgotten"), asked);
}

#[test]
fn who_is_believed_has_proved_nothing() {
    let mut d = where_registered_is_enough();
    let mut trust = Trust::default();
    trust.networks.push("10.10.1.2/32".parse().unwrap());
    d.stateful().believe(Sources::new(&trust));
    // Without a password.
    let text = d.request("REGISTER", "anna", "sip:example.com", "r", "");
    d.hear(ANNA, &text);
    assert_eq!(d.take(ANNA), ["200"]);
    assert!(d.stateful().endpoints().is_empty());
}

#[test]
fn elsewhere_registering_changes_nothing() {
    let mut d = Daemon::new();
    assert_eq!(d.register("anna", ""), ["200"]);
    d.hear(ANNA, &call_of(ANNA, "c"));
    assert_eq!(d.take(ANNA), ["407"]);
    assert!(d.stateful().endpoints().is_empty(), "nothing is kept that nobody asks for");
}

#[test]
fn a_pbx_asks_for_a_user() {
    let ask = |d: &mut Daemon, uri: &str| {
        d.call_from(PBX1, uri, "OPTIONS");
        d.take(PBX1)
    };
    // Unless it is to be answered here, the phone is asked.
    let mut d = Daemon::new();
    d.register("bob", "");
    assert_eq!(ask(&mut d, "sip:bob@10.10.0.1:5060"), [""; 0]);
    assert_eq!(d.take(BOB), ["OPTIONS"]);

    let mut d = Daemon::with(|settings| settings.registrar.answer_qualify = true);
    let all = ["sip:bob@10.10.0.1", "sip:bob@10.10.0.1:5060;x=y", "sip:b%6fb@example.com"];
    for uri in all {
        assert_eq!(ask(&mut d, uri), ["404"], "{uri}");
        assert_eq!(status(&d.got(PBX1, "404")), "SIP/2.0 404 Not Found");
    }
    d.register("bob", "Expires: 600\r\n");
    for uri in all {
        assert_eq!(ask(&mut d, uri), ["200"], "{uri}");
        assert_eq!(header(&d.got(PBX1, "200"), "Accept"), ["application/sdp"], "{uri}");
    }
    assert_eq!(ask(&mut d, "sip:anna@10.10.0.1"), ["404"]);
    assert_eq!(d.take(BOB), [""; 0], "no phone is asked");
    d.pass(600_000);
    assert_eq!(ask(&mut d, "sip:bob@10.10.0.1"), ["404"]);
    // Of others it is asked as before: by relaying, after a password.
    let text = d.request("OPTIONS", "anna", "sip:bob@10.10.0.1", "o", "");
    d.hear(ANNA, &text);
    assert_eq!(d.take(ANNA), ["407"]);
}

// ---- 12. Dispatch --------------------------------------------------------------------------------

#[test]
fn round_robin() {
    let mut d = Daemon::new();
    let pbxs: Vec<_> = (0..4).map(|n| d.call("sip:200@example.com", &format!("c{n}"))).collect();
    assert_eq!(pbxs.iter().filter(|pbx| **pbx == PBX1).count(), 2);
    assert_ne!(pbxs[0], pbxs[1]);
}

#[test]
fn calls_are_counted() {
    let mut d = Daemon::new();
    let first = d.call("sip:200@example.com", "c");
    d.answer(first, "500 Oops");
    let placed: u64 = d.stateful().placed().iter().sum();
    assert_eq!(placed, 2, "at each PBX that was tried");
}

#[test]
fn no_pbx() {
    for (no_destination, reply) in [
        (NoDestination::Unavailable, "SIP/2.0 503 Service Unavailable"),
        (NoDestination::NotFound, "SIP/2.0 404 No destination"),
    ] {
        let mut d = Daemon::with(|settings| settings.calls.no_destination = no_destination);
        d.order("pbx1", AdminState::Disabled);
        d.order("pbx2", AdminState::Disabled);
        let text = d.authorized("INVITE", "anna", "sip:200@example.com", "c", "");
        d.hear(ANNA, &text);
        let answer = d.got(ANNA, &reply[8..11]);
        assert_eq!(status(&answer), reply);
        let unavailable = no_destination == NoDestination::Unavailable;
        assert_eq!(header(&answer, "Retry-After").len(), usize::from(unavailable));
        assert_eq!(d.cdrs[0].disposition, Disposition::Failed);
    }
}

// ---- 13. Failover --------------------------------------------------------------------------------

#[test]
fn a_pbx_that_cannot() {
    let mut d = Daemon::new();
    let first = d.call("sip:200@example.com", "c");
    d.answer(first, "500 Oops");
    assert_eq!(d.take(first), ["ACK"]);
    assert_eq!(d.has_invite(), other(first));
    d.answer(other(first), "200 OK");
    assert_eq!(d.take(ANNA), ["200"], "the caller notices nothing");
}

#[test]
fn a_pbx_that_is_silent() {
    let mut d = Daemon::new();
    let first = d.call("sip:200@example.com", "c");
    d.pass(2_990);
    assert_eq!(d.take(other(first)), [""; 0]);
    d.take(first);
    d.pass(20);
    assert_eq!(d.has_invite(), other(first));
    d.answer(other(first), "200 OK");
    assert_eq!(d.take(ANNA), ["200"]);
    // The next call does not go there.
    for n in 0..3 {
        assert_eq!(d.call("sip:200@example.com", &format!("d{n}")), other(first));
    }
    assert_eq!(d.seconds(), 3);
    // It answers when another one has the call.
    d.answer(first, "200 OK");
    assert_eq!(d.take(first), ["ACK", "BYE"]);
    assert_eq!(d.take(ANNA), [""; 0]);
    let counts = d.stateful().counts();
    assert_eq!((counts.forwarded, counts.failed_over, counts.answered_late), (4, 1, 1));
}

/// The same over IPv6, where the daemon has the decision to itself.
#[test]
fn over_ipv6() {
    const US6: &str = "[2001:db8::1]:5060";
    const ANNA6: &str = "[2001:db8::a]:5062";
    const PBX6: &str = "[2001:db8::2]:5060";
    let six = |text: String| text.replace(ANNA, ANNA6);
    let mut d = Daemon::on(US6, &[("pbx6", PBX6)], |_| {});
    let bare = six(d.request("INVITE", "anna", "sip:200@example.com", "c", ""));
    d.hear(ANNA6, &bare);
    assert_eq!(d.take(ANNA6), ["407"]);
    let challenge = d.got(ANNA6, "407");
    let line = credentials(&challenge, "INVITE", "anna", "sip:200@example.com");
    let text = six(d.request("INVITE", "anna", "sip:200@example.com", "c", &line));
    d.hear(ANNA6, &text);
    assert_eq!(d.take(ANNA6), ["100"]);
    assert_eq!(d.take(PBX6), ["INVITE"]);
    d.answer(PBX6, "200 OK");
    assert_eq!(d.take(ANNA6), ["200"]);
    // What is in the dialog goes by the longer cookie.
    let ok = d.got(ANNA6, "200");
    let (route, to) = (header(&ok, "Record-Route")[0], header(&ok, "To")[0]);
    let bye = d.request("BYE", "anna", "sip:x@pbx", "c", &format!("Route: {route}\r\n"));
    d.hear(ANNA6, &six(bye).replace("To: <sip:x@pbx>", &format!("To: {to}")));
    assert_eq!(d.take(PBX6), ["BYE"]);
    assert_eq!(d.cdrs.len(), 1);
}

#[test]
fn no_pbx_of_the_family() {
    let mut d = Daemon::on("[2001:db8::1]:5060", &[], |_| {});
    let at = "[2001:db8::a]:5062";
    let bare = d.request("INVITE", "anna", "sip:200@example.com", "c", "").replace(ANNA, at);
    d.hear(at, &bare);
    let line = credentials(&d.got(at, "407"), "INVITE", "anna", "sip:200@example.com");
    let text = d.request("INVITE", "anna", "sip:200@example.com", "c", &line).replace(ANNA, at);
    d.take(at);
    d.hear(at, &text);
    assert_eq!(d.take(at), ["488"]);
    assert!(header(&d.got(at, "488"), "Warning")[0].contains("IPv6"));
}

#[test]
fn a_pbx_that_is_unreachable() {
    let mut d = Daemon::new();
    let first = d.call("sip:200@example.com", "c");
    let (now, peer) = (d.now, first.parse().unwrap());
    d.dispatcher.handle_unreachable(now, peer, super::dispatcher::Unreachable::Port);
    d.stateful().handle_transport_error(now, peer);
    d.collect();
    assert_eq!(d.has_invite(), other(first));
}

#[test]
fn who_has_gone_gets_no_other_pbx() {
    let mut d = Daemon::new();
    let text = d.authorized("INVITE", "anna", "sip:200@example.com", "c", "");
    d.hear(ANNA, &text);
    let first = d.has_invite();
    d.hear(ANNA, &text.replace("INVITE", "CANCEL"));
    d.take(ANNA);
    d.answer(first, "503 Service Unavailable");
    assert_eq!(d.take(ANNA), ["487"]);
    assert_eq!(d.take(other(first)), [""; 0]);
}

#[test]
fn all_pbxs_are_busy() {
    let mut d = Daemon::new();
    let first = d.call("sip:200@example.com", "c");
    d.answer(first, "503 Service Unavailable");
    assert_eq!(d.take(first), ["ACK"]);
    let second = d.has_invite();
    d.answer(second, "503 Service Unavailable");
    assert_eq!(d.take(ANNA), ["503"]);
    assert_eq!(header(&d.got(ANNA, "503"), "Retry-After").len(), 1);
}

#[test]
fn nobody_takes_the_call() {
    let mut d = Daemon::new();
    let pbx = d.call("sip:200@example.com", "c");
    d.answer(pbx, "180 Ringing");
    d.take(ANNA);
    d.pass(39_990);
    assert_eq!(d.take(ANNA), [""; 0]);
    d.pass(20);
    assert_eq!(d.take(ANNA), ["408"]);
    assert_eq!(d.take(pbx), ["CANCEL"]);
    assert_eq!(d.cdrs.len(), 1);
    assert_eq!(d.cdrs[0].disposition, Disposition::NoAnswer, "a missed call");
}

#[test]
fn what_a_pbx_says_passes_unchanged() {
    for answer in ["486 Busy Here", "404 Not Found", "603 Decline", "302 Elsewhere"] {
        let mut d = Daemon::new();
        let pbx = d.call("sip:200@example.com", "c");
        d.answer(pbx, answer);
        assert_eq!(status(&d.got(ANNA, &answer[..3])), format!("SIP/2.0 {answer}"));
        assert_eq!(d.take(other(pbx)), [""; 0]);
        assert_eq!(d.cdrs.len(), usize::from(answer != "302 Elsewhere"));
    }
}

// ---- Within bounds -------------------------------------------------------------------------------

#[test]
fn a_full_house() {
    let mut d = Daemon::with(|settings| settings.calls.max_calls = 1);
    d.call("sip:200@example.com", "c");
    let text = d.authorized("INVITE", "anna", "sip:200@example.com", "d", "");
    d.hear(ANNA, &text);
    assert_eq!(d.take(ANNA), ["503"]);
    assert_eq!(header(&d.got(ANNA, "503"), "Retry-After"), ["5"]);
}

#[test]
fn answered_calls_do_not_fill_the_house() {
    let mut d = Daemon::with(|settings| settings.calls.max_calls = 1);
    let pbx = d.call("sip:200@example.com", "c");
    d.answer(pbx, "200 OK");
    d.pass(7_000);
    let invite = |d: &mut Daemon, call: &str| {
        d.take(ANNA);
        let text = d.authorized("INVITE", "anna", "sip:200@example.com", call, "");
        d.hear(ANNA, &text);
        d.take(ANNA)
    };
    assert_eq!(invite(&mut d, "d"), ["503"], "the PBX may not have the ACK");
    d.pass(2_000);
    assert_eq!(invite(&mut d, "e"), ["100"]);
}

proptest::proptest! {
    /// Whatever a message has become on its way.
    #[test]
    fn nothing_panics(
        damages in super::testing::damages(),
        from in 0..3usize,
        method in proptest::sample::select(vec!["INVITE", "CANCEL", "ACK", "MESSAGE", "OPTIONS"]),
    ) {
        let mut d = Daemon::new();
        d.register("bob", "");
        let text = match from {
            0 => d.authorized("INVITE", "anna", "sip:200@example.com", "c", ""),
            _ => d.request(method, "anna", "sip:bob@10.10.0.1", "c", ""),
        };
        let bytes = super::testing::damaged(text, &damages);
        let mut out = Vec::new();
        let from = [ANNA, PBX1, BOB][from].parse().unwrap();
        let datagram = Datagram { local: 0, from, bytes: &bytes };
        d.proxy.handle(d.now, &mut d.dispatcher, &(), datagram, &mut out);
        for _ in 0..100 {
            let (now, dispatcher) = (d.now, &mut d.dispatcher);
            let stateful = d.proxy.stateful_mut().unwrap();
            stateful.handle_calls(now, dispatcher);
            while stateful.poll_command().is_some() {}
            let Some(at) = stateful.poll_timeout() else { break };
            d.now = now.max(at);
            stateful.handle_timeout(d.now);
        }
    }
}
