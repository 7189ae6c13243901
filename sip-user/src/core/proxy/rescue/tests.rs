//! Calls that their PBX does not take, on virtual time: steered by the kernel, and by the daemon itself.

use sip_ebpf::reason::Way;

use super::*;
use crate::config::NoDestination;
use crate::core::accounting::{Accounting, Cdr, Disposition, Ending};
use crate::core::call_table::CallTable;
use crate::core::dispatcher::Unreachable;
use crate::core::registrar::Domains;
use crate::core::sources::Sources;
use crate::core::stateful::{Command, Settings, Stateful};
use crate::core::testing::{Setup, World, header, response};

const US: &str = "10.10.0.1:5060";
const PHONE: &str = "10.10.1.2:5062";
const PBX: [&str; 2] = ["10.10.2.2:5060", "10.10.3.2:5060"];
const MS: Duration = Duration::from_millis(1);

/// The kernel's table, and the kernel itself where it steers.
struct Table(CallTable);

impl KernelCalls for Table {
    fn find(&self, hash: u64) -> Option<Call> {
        self.0.find(hash, 0)
    }

    fn change(&self, hash: u64, bits: (u32, u32)) -> Option<Call> {
        self.0.change(hash, 0, bits)
    }
}

struct Net {
    w: World,
    kernel: Table,
    /// Whether the kernel steers.
    steers: bool,
    cdrs: Vec<Cdr>,
}

type Sent = (String, String);

impl Net {
    fn new(steers: bool) -> Self {
        Self::with(steers, false)
    }

    /// `records` are kept or not.
    fn with(steers: bool, records: bool) -> Self {
        let mut w = World::new(&Setup {
            locals: &[US],
            trusted: &["10.10.1.0/24"],
            denied: &[],
            pbxs: &[("pbx1", PBX[0]), ("pbx2", PBX[1])],
            no_destination: NoDestination::Unavailable,
        });
        let locals = vec![US.parse().unwrap()];
        let settings = Settings {
            domains: Domains::new([], &locals),
            locals,
            believed: Sources::default(),
            registrar: Default::default(),
            forking: Default::default(),
            transactions: Default::default(),
            calls: Default::default(),
            credentials: Default::default(),
            retry_after: 5,
            registers: records,
        };
        let mut stateful = Stateful::new([1, 2], settings, None, w.now);
        let clock = (w.now, std::time::UNIX_EPOCH);
        let accounting = Accounting::new(Default::default(), [3, 4], 1, clock);
        stateful.set_accounting(records.then_some(accounting));
        w.proxy.set_stateful(Some(stateful));
        w.proxy.policy.shadow = Some(3000 * MS);
        let kernel = Table(CallTable::new(64));
        let mut net = Self { w, kernel, steers, cdrs: Vec::new() };
        net.pbxs();
        net
    }

    /// Both ways.
    fn each(test: impl Fn(Self)) {
        test(Self::new(true));
        test(Self::new(false));
    }

    /// What follows from a datagram.
    fn hear(&mut self, from: &str, text: &str) -> Vec<Sent> {
        let mut out = Vec::new();
        let World { proxy, dispatcher, now, .. } = &mut self.w;
        let datagram = Datagram { local: 0, from: from.parse().unwrap(), bytes: text.as_bytes() };
        proxy.handle(*now, dispatcher, &self.kernel, datagram, &mut out);
        self.finish(out)
    }

    fn finish(&mut self, mut out: Vec<Transmit>) -> Vec<Sent> {
        let World { proxy, dispatcher, now, .. } = &mut self.w;
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
        let text = |sent: Transmit| (sent.to.to_string(), String::from_utf8(sent.bytes).unwrap());
        out.into_iter().map(text).collect()
    }

    fn pbxs(&mut self) -> Vec<Sent> {
        let mut out = Vec::new();
        let World { proxy, dispatcher, now, .. } = &mut self.w;
        while dispatcher.poll_command().is_some() {}
        proxy.stateful_mut().unwrap().handle_pbxs(*now, dispatcher);
        proxy.handle_pbxs(*now, dispatcher, &self.kernel, &mut out);
        self.finish(out)
    }

    /// Time passes; only what the net does follows.
    fn pass(&mut self, time: Duration) -> Vec<Sent> {
        self.w.now += time;
        let mut out = Vec::new();
        let World { proxy, dispatcher, now, .. } = &mut self.w;
        proxy.handle_timeout(*now, dispatcher, &self.kernel, &mut out);
        proxy.stateful_mut().unwrap().handle_timeout(*now);
        self.finish(out)
    }

    fn slot(&self, pbx: &str) -> u32 {
        self.w.dispatcher.slot_at(pbx.parse().unwrap()).unwrap()
    }

    /// A call is placed; gives its PBX and what that has.
    fn invite(&mut self, call: &str) -> (&'static str, String) {
        let invite = request("INVITE", call);
        let sent = self.hear(PHONE, &invite);
        let [(to, text)] = &sent[..] else { panic!("{sent:?}") };
        let pbx = PBX.into_iter().find(|pbx| pbx == to).unwrap();
        if self.steers {
            // As if it had never come up.
            let slot = self.slot(pbx);
            let World { proxy, dispatcher, now, .. } = &mut self.w;
            let known = proxy.identify(invite.as_bytes(), &mut Index::new()).unwrap();
            proxy.shadows.remove(known.1);
            self.kernel.0.put(known.0, 0, slot);
            let (from, bytes) = (PHONE.parse().unwrap(), invite.as_bytes());
            let datagram = Datagram { local: 0, from, bytes };
            let mut out = Vec::new();
            proxy.handle_steered(
                (*now, *now),
                dispatcher,
                &self.kernel,
                (datagram, slot),
                &mut out,
            );
            assert_eq!(out, []);
        }
        (pbx, text.clone())
    }
}

fn request(method: &str, call: &str) -> String {
    format!(
        "{method} sip:bob@10.10.0.1 SIP/2.0\r\nVia: SIP/2.0/UDP 10.10.1.2:5062;rport;branch=z9hG4bK{call}\r\n\
         Max-Forwards: 70\r\nFrom: <sip:alice@10.10.1.2>;tag=alice\r\nTo: <sip:bob@10.10.0.1>\r\n\
         Call-ID: {call}\r\nCSeq: 1 {method}\r\nContact: <sip:alice@10.10.1.2:5062>\r\n\
         Content-Length: 0\r\n\r\n"
    )
}

fn other(pbx: &str) -> &'static str {
    if pbx == PBX[0] { PBX[1] } else { PBX[0] }
}

/// First line and target of each.
fn lines(sent: &[Sent]) -> Vec<String> {
    sent.iter().map(|(to, text)| format!("{to} {}", text.lines().next().unwrap())).collect()
}

/// The one that goes there and starts so.
#[track_caller]
fn one<'a>(sent: &'a [Sent], to: &str, start: &str) -> &'a str {
    let mut found = sent.iter().filter(|(at, text)| at == to && text.starts_with(start));
    let (Some((_, text)), None) = (found.next(), found.next()) else {
        panic!("one {start} to {to}: {:?}", lines(sent))
    };
    text
}

#[track_caller]
fn no(sent: &[Sent], to: &str, start: &str) {
    assert!(
        !sent.iter().any(|(at, text)| at == to && text.starts_with(start)),
        "{:?}",
        lines(sent)
    );
}

/// What the caller says in the dialog of this 200.
fn within(method: &str, ok: &str) -> String {
    let (route, to) = (header(ok, "Record-Route")[0], header(ok, "To")[0]);
    request(method, header(ok, "Call-ID")[0])
        .replace("branch=z9hG4bK", &format!("branch=z9hG4bK{method}"))
        .replace("To: <sip:bob@10.10.0.1>", &format!("To: {to}"))
        .replace("Max-Forwards", &format!("Route: {route}\r\nMax-Forwards"))
}

/// The other PBX answers, and the dialog that follows is as any other.
fn answered_by(net: &mut Net, pbx: &str, invite: &str) {
    let sent = net.hear(pbx, &response(invite, "200 OK", "there"));
    let ok = one(&sent, PHONE, "SIP/2.0 200");
    assert_eq!(header(ok, "Via").len(), 1);
    let route = header(ok, "Record-Route")[0];
    let call = header(ok, "Call-ID")[0];
    let ack = request("ACK", call)
        .replace("bK", "bKack")
        .replace("To: <sip:bob@10.10.0.1>", "To: <sip:bob@10.10.0.1>;tag=there")
        .replace("Max-Forwards", &format!("Route: {route}\r\nMax-Forwards"));
    one(&net.hear(PHONE, &ack), pbx, "ACK");
}

#[test]
fn a_pbx_that_refuses_by_503() {
    Net::each(|mut net| {
        let (pbx, invite) = net.invite("a");
        let sent = net.hear(pbx, &response(&invite, "503 Service Unavailable", "no"));
        let ack = one(&sent, pbx, "ACK sip:bob@10.10.0.1");
        assert_eq!(header(ack, "Via"), [header(&invite, "Via")[0]], "of the same transaction");
        assert!(header(ack, "To")[0].ends_with(";tag=no"));
        let invite2 = one(&sent, other(pbx), "INVITE").to_owned();
        assert_eq!(header(&invite2, "Max-Forwards"), ["69"]);
        no(&sent, PHONE, "SIP/2.0 5");
        // What is repeated meanwhile changes nothing.
        assert_eq!(
            lines(&net.hear(pbx, &response(&invite, "503 Service Unavailable", "no"))).len(),
            1
        );
        no(&net.hear(PHONE, &request("INVITE", "a")), other(pbx), "INVITE");
        no(&net.hear(PHONE, &request("INVITE", "a")), pbx, "INVITE");
        answered_by(&mut net, other(pbx), &invite2);
        assert_eq!(net.w.event(Event::TakenRefused), 1);
    });
}

#[test]
fn a_refusal_that_comes_before_the_copy() {
    let mut net = Net::new(true);
    let (pbx, invite) = net.invite("a");
    let copies = std::mem::take(&mut net.w.proxy.shadows);
    let failed = response(&invite, "503 Service Unavailable", "no");
    assert_eq!(net.hear(pbx, &failed), []);
    drop(copies);
    let slot = net.slot(pbx);
    let invite = request("INVITE", "a");
    let datagram = Datagram { local: 0, from: PHONE.parse().unwrap(), bytes: invite.as_bytes() };
    let mut out = Vec::new();
    let World { proxy, dispatcher, now, .. } = &mut net.w;
    proxy.handle_steered((*now, *now), dispatcher, &net.kernel, (datagram, slot), &mut out);
    let sent = net.finish(out);
    one(&sent, other(pbx), "INVITE");
    one(&sent, pbx, "ACK");
}

#[test]
fn a_refusal_without_a_copy_goes_to_its_caller() {
    Net::each(|mut net| {
        let (pbx, invite) = net.invite("a");
        net.w.proxy.shadows = Default::default();
        let failed = response(&invite, "503 Service Unavailable", "no");
        assert_eq!(net.hear(pbx, &failed), []);
        let sent = net.pass(100 * MS);
        assert_eq!(lines(&sent), [format!("{PHONE} SIP/2.0 503 Service Unavailable")]);
        assert_eq!(net.w.event(Event::NoShadow), 1);
    });
}

#[test]
fn both_refuse() {
    Net::each(|mut net| {
        let (pbx, invite) = net.invite("a");
        let sent = net.hear(pbx, &response(&invite, "500 Server Internal Error", "no"));
        let invite2 = one(&sent, other(pbx), "INVITE").to_owned();
        let sent = net.hear(other(pbx), &response(&invite2, "500 Server Internal Error", "no"));
        one(&sent, other(pbx), "ACK");
        one(&sent, PHONE, "SIP/2.0 500");
        // Its ACK is the daemon's.
        let ack = request("ACK", "a").replace("To: <sip:bob@10.10.0.1>", "To: <sip:b@c>;tag=no");
        assert_eq!(net.hear(PHONE, &ack), []);
    });
}

#[test]
fn a_pbx_that_says_nothing() {
    Net::each(|mut net| {
        let (pbx, invite) = net.invite("a");
        assert_eq!(net.pass(2900 * MS), []);
        let sent = net.pass(100 * MS);
        let invite2 = one(&sent, other(pbx), "INVITE").to_owned();
        no(&sent, pbx, "CANCEL");
        assert_eq!(net.w.event(Event::TakenSilent), 1);
        // It wakes up: once it may be cancelled (9.1), it is.
        let sent = net.hear(pbx, &response(&invite, "180 Ringing", "late"));
        assert_eq!(lines(&sent), [format!("{pbx} CANCEL sip:bob@10.10.0.1 SIP/2.0")]);
        let sent = net.hear(pbx, &response(&invite, "200 OK", "late"));
        assert_eq!(sent.len(), 2, "{sent:?}");
        one(&sent, pbx, "ACK");
        one(&sent, pbx, "BYE");
        answered_by(&mut net, other(pbx), &invite2);
    });
}

#[test]
fn a_call_that_is_heard_of_is_left_alone() {
    for status in ["100 Trying", "180 Ringing", "200 OK", "404 Not Found"] {
        let mut net = Net::new(false);
        let (pbx, invite) = net.invite("a");
        one(&net.hear(pbx, &response(&invite, status, "x")), PHONE, &format!("SIP/2.0 {status}"));
        for _ in 0..60 {
            no(&net.pass(1000 * MS), other(pbx), "INVITE");
        }
        assert_eq!(net.w.event(Event::TakenSilent), 0);
    }
}

#[test]
fn a_pbx_that_dies_while_it_rings_there() {
    Net::each(|mut net| {
        let calls: Vec<_> = ["a", "b", "c", "d"].map(|call| (call, net.invite(call))).into();
        // Of the two on the first PBX one rings, and so does one of the other's.
        for (call, (pbx, invite)) in &calls[..2] {
            net.hear(pbx, &response(invite, "180 Ringing", "x"));
            let bits = (state::HEARD, 0);
            let known = net.w.proxy.identify(request("INVITE", call).as_bytes(), &mut Index::new());
            net.kernel.change(known.unwrap().0, bits);
        }
        let dead = calls[0].1.0;
        net.w.dispatcher.handle_unreachable(net.w.now, dead.parse().unwrap(), Unreachable::Port);
        let sent = net.pbxs();
        let invites =
            sent.iter().filter(|(to, text)| to == other(dead) && text.starts_with("INVITE"));
        assert_eq!(invites.count(), 2, "{:?}", lines(&sent));
        one(&sent, dead, "CANCEL");
        assert_eq!(net.w.event(Event::TakenGone), 2);
        assert_eq!(net.pbxs(), []);
    });
}

/// The kernel knows of a dead PBX a moment before its calls are taken over.
#[test]
fn a_call_that_is_repeated_when_its_pbx_is_known_to_be_dead() {
    for copied in [true, false] {
        let mut net = Net::new(true);
        let (dead, invite) = net.invite("a");
        let text = request("INVITE", "a");
        let (hash, _) = net.w.proxy.identify(text.as_bytes(), &mut Index::new()).unwrap();
        net.w.dispatcher.handle_unreachable(net.w.now, dead.parse().unwrap(), Unreachable::Port);
        let slot = net.slot(other(dead));
        net.kernel.0.put(hash, 0, slot);
        assert_eq!(net.pbxs(), [], "it is with the other one");
        assert_eq!(net.kernel.find(hash), Some(Call { slot, state: 0 }));
        if copied {
            let World { proxy, dispatcher, now, .. } = &mut net.w;
            let (from, bytes) = (PHONE.parse().unwrap(), text.as_bytes());
            let datagram = (Datagram { local: 0, from, bytes }, slot);
            let mut out = Vec::new();
            proxy.handle_steered((*now, *now), dispatcher, &net.kernel, datagram, &mut out);
            assert_eq!(out, []);
        }
        assert_eq!(net.w.event(Event::TakenGone), 0);
        // That one has its time.
        assert_eq!(net.pass(2900 * MS), []);
        let sent = net.hear(dead, &response(&invite, "503 Service Unavailable", "late"));
        no(&sent, PHONE, "SIP/2.0 5");
        let sent = net.pass(200 * MS);
        one(&sent, PHONE, "SIP/2.0 ");
        assert_eq!(net.w.event(Event::TakenSilent), 1);
    }
}

#[test]
fn a_call_that_was_cancelled_is_not_placed_anew() {
    Net::each(|mut net| {
        let (pbx, _) = net.invite("a");
        one(&net.hear(PHONE, &request("CANCEL", "a")), pbx, "CANCEL");
        // That is answered for the PBX, which cannot.
        let sent = net.pass(3000 * MS);
        one(&sent, PHONE, "SIP/2.0 487");
        no(&sent, other(pbx), "INVITE");
        let sent = net.hear(PHONE, &request("CANCEL", "a"));
        assert!(sent.iter().any(|(to, _)| to == PHONE), "{:?}", lines(&sent));
        no(&sent, pbx, "CANCEL");
    });
}

#[test]
fn a_refusal_that_crosses_a_cancel() {
    Net::each(|mut net| {
        let (pbx, invite) = net.invite("a");
        net.hear(PHONE, &request("CANCEL", "a"));
        let sent = net.hear(pbx, &response(&invite, "503 Service Unavailable", "no"));
        one(&sent, PHONE, "SIP/2.0 487");
        one(&sent, pbx, "ACK");
        no(&sent, other(pbx), "INVITE");
    });
}

#[test]
fn a_cancel_after_the_call_was_taken_over() {
    Net::each(|mut net| {
        let (pbx, invite) = net.invite("a");
        let sent = net.hear(pbx, &response(&invite, "503 Service Unavailable", "no"));
        let invite2 = one(&sent, other(pbx), "INVITE").to_owned();
        one(&net.hear(other(pbx), &response(&invite2, "180 Ringing", "x")), PHONE, "SIP/2.0 180");
        let sent = net.hear(PHONE, &request("CANCEL", "a"));
        one(&sent, PHONE, "SIP/2.0 200");
        one(&sent, other(pbx), "CANCEL");
        no(&sent, pbx, "CANCEL");
        let sent = net.hear(other(pbx), &response(&invite2, "487 Request Terminated", "x"));
        one(&sent, PHONE, "SIP/2.0 487");
    });
}

#[test]
fn a_call_that_comes_again_with_credentials() {
    let mut net = Net::new(false);
    let (pbx, invite) = net.invite("a");
    one(&net.hear(pbx, &response(&invite, "401 Unauthorized", "x")), PHONE, "SIP/2.0 401");
    let again = request("INVITE", "a").replace("bKa", "bKsecond").replace("CSeq: 1", "CSeq: 2");
    one(&net.hear(PHONE, &again), pbx, "INVITE");
    one(&net.pass(3000 * MS), other(pbx), "INVITE");
}

#[test]
fn a_pbx_that_refuses_calls_is_out_and_comes_back() {
    let mut net = Net::new(false);
    let mut refused = 0;
    for n in 0..20 {
        let (pbx, invite) = net.invite(&format!("c{n}"));
        if pbx == PBX[0] {
            refused += 1;
            let sent = net.hear(pbx, &response(&invite, "503 Service Unavailable", "no"));
            one(&sent, PBX[1], "INVITE");
        }
    }
    assert_eq!(refused, 3, "dispatch.fall");
    net.w.now += 5000 * MS;
    net.w.dispatcher.handle_timeout(net.w.now);
    let at = (0..20).map(|n| net.invite(&format!("d{n}")).0).filter(|pbx| *pbx == PBX[0]);
    assert_eq!(at.count(), 10);
}

#[test]
fn without_a_net_nothing_is_kept() {
    let mut net = Net::new(false);
    net.w.proxy.policy.shadow = None;
    let (pbx, invite) = net.invite("a");
    assert_eq!(net.w.proxy.poll_timeout(), None);
    let failed = response(&invite, "503 Service Unavailable", "no");
    one(&net.hear(pbx, &failed), PHONE, "SIP/2.0 503");
    assert_eq!(Reason::SteeredFailed.way(), Way::Up);
}

// ---- Records -------------------------------------------------------------------------------------

/// The one record that there is: what became of the call, and where it was.
#[track_caller]
fn record(net: &mut Net) -> (Disposition, u16, Ending, String) {
    let [cdr] = &net.cdrs[..] else { panic!("{:?}", net.cdrs) };
    let what = (cdr.disposition, cdr.sip_code, cdr.ending, cdr.dstchannel.to_string());
    net.cdrs.clear();
    let accounting = net.w.proxy.stateful().unwrap().accounting().unwrap();
    assert!(accounting.is_empty());
    what
}

/// The name of a PBX.
fn name(pbx: &str) -> String {
    if pbx == PBX[0] { "pbx1" } else { "pbx2" }.to_owned()
}

/// With records, both ways, with the net and without.
fn each_recorded(test: impl Fn(&mut Net)) {
    for (steers, guarded) in [(true, true), (true, false), (false, true), (false, false)] {
        let mut net = Net::with(steers, true);
        if !guarded {
            net.w.proxy.policy.shadow = None;
        }
        test(&mut net);
    }
}

#[test]
fn a_steered_call_has_a_record() {
    each_recorded(|net| {
        let (pbx, invite) = net.invite("a");
        net.pass(1000 * MS);
        net.hear(pbx, &response(&invite, "180 Ringing", "there"));
        let sent = net.hear(pbx, &response(&invite, "200 OK", "there"));
        let ok = one(&sent, PHONE, "SIP/2.0 200").to_owned();
        net.hear(pbx, &response(&invite, "200 OK", "there"));
        one(&net.hear(PHONE, &within("ACK", &ok)), pbx, "ACK");
        net.pass(60_000 * MS);
        assert!(net.cdrs.is_empty());
        one(&net.hear(PHONE, &within("BYE", &ok)), pbx, "BYE");
        assert_eq!(net.cdrs[0].billsec, 60_000 * MS);
        assert_eq!(net.cdrs[0].duration, 61_000 * MS);
        net.hear(PHONE, &within("BYE", &ok));
        assert_eq!(record(net), (Disposition::Answered, 200, Ending::Caller, name(pbx)));
        // The other side hangs up, by a Route that stands in a form which is not the usual one.
        for route in ["Route: ", "Route : "] {
            let (pbx, invite) = net.invite(&format!("b{}", route.len()));
            net.hear(pbx, &response(&invite, "200 OK", "there"));
            let ours = header(&invite, "Record-Route")[0];
            let bye = format!(
                "BYE sip:alice@10.10.1.2:5062 SIP/2.0\r\nVia: SIP/2.0/UDP {pbx};branch=z9hG4bKx\r\n\
                 Max-Forwards: 70\r\n{route}{ours}\r\nFrom: <sip:bob@10.10.0.1>;tag=there\r\n\
                 To: <sip:alice@10.10.1.2>;tag=alice\r\nCall-ID: {}\r\nCSeq: 1 BYE\r\n\r\n",
                header(&invite, "Call-ID")[0]
            );
            one(&net.hear(pbx, &bye), PHONE, "BYE");
            assert_eq!(record(net), (Disposition::Answered, 200, Ending::Callee, name(pbx)));
        }
    });
}

#[test]
fn a_steered_call_that_is_refused_or_cancelled_has_a_record() {
    each_recorded(|net| {
        let (pbx, invite) = net.invite("a");
        one(&net.hear(pbx, &response(&invite, "486 Busy Here", "x")), PHONE, "SIP/2.0 486");
        net.hear(pbx, &response(&invite, "486 Busy Here", "x"));
        assert_eq!(record(net), (Disposition::Busy, 486, Ending::Refused, name(pbx)));
        let (pbx, invite) = net.invite("b");
        one(&net.hear(PHONE, &request("CANCEL", "b")), pbx, "CANCEL");
        let terminated = response(&invite, "487 Request Terminated", "x");
        one(&net.hear(pbx, &terminated), PHONE, "SIP/2.0 487");
        assert_eq!(record(net), (Disposition::NoAnswer, 487, Ending::Cancelled, name(pbx)));
    });
}

#[test]
fn a_call_that_is_taken_over_has_one_record() {
    let refusal = "503 Service Unavailable";
    for steers in [true, false] {
        let mut net = Net::with(steers, true);
        let (pbx, invite) = net.invite("a");
        let sent = net.hear(pbx, &response(&invite, refusal, "no"));
        let second = one(&sent, other(pbx), "INVITE").to_owned();
        let sent = net.hear(other(pbx), &response(&second, "200 OK", "there"));
        let ok = one(&sent, PHONE, "SIP/2.0 200").to_owned();
        net.pass(1000 * MS);
        one(&net.hear(PHONE, &within("BYE", &ok)), other(pbx), "BYE");
        let there = name(other(pbx));
        assert_eq!(record(&mut net), (Disposition::Answered, 200, Ending::Caller, there));
        // Neither takes it.
        let (pbx, invite) = net.invite("b");
        let sent = net.hear(pbx, &response(&invite, refusal, "no"));
        let second = one(&sent, other(pbx), "INVITE").to_owned();
        one(&net.hear(other(pbx), &response(&second, refusal, "no")), PHONE, "SIP/2.0 503");
        let there = name(other(pbx));
        let (disposition, status, _, at) = record(&mut net);
        assert_eq!((disposition, status, at), (Disposition::Failed, 503, there));
        // There is no copy, so the refusal goes on.
        let (pbx, invite) = net.invite("c");
        net.w.proxy.shadows = Default::default();
        net.hear(pbx, &response(&invite, refusal, "no"));
        one(&net.pass(100 * MS), PHONE, "SIP/2.0 503");
        assert_eq!(record(&mut net), (Disposition::Failed, 503, Ending::Refused, name(pbx)));
    }
}

#[test]
fn an_old_copy_is_for_the_record_alone() {
    let mut net = Net::with(true, true);
    let invite = request("INVITE", "a");
    let (slot, old) = (net.slot(PBX[0]), net.w.now);
    net.w.now += 33_000 * MS;
    let World { proxy, dispatcher, now, .. } = &mut net.w;
    let datagram = Datagram { local: 0, from: PHONE.parse().unwrap(), bytes: invite.as_bytes() };
    let mut out = Vec::new();
    proxy.handle_steered((*now, old), dispatcher, &net.kernel, (datagram, slot), &mut out);
    assert_eq!(proxy.poll_timeout(), None);
    let hash = proxy.identify(invite.as_bytes(), &mut Index::new()).unwrap().0;
    let (from, at) = (PBX[0].parse().unwrap(), old + 20_000 * MS);
    proxy.handle_report((*now, at), from, hash, Report::Final { status: 404, cancelled: false });
    net.finish(out);
    assert_eq!(net.cdrs[0].duration, 20_000 * MS);
    assert_eq!(record(&mut net), (Disposition::Failed, 404, Ending::Refused, name(PBX[0])));
}
