//! On virtual time, with real transactions below: a caller, and targets `p0`, `p1` and so on.

mod cancel;
mod failover;
mod forward;
mod late;
mod property;
mod respond;

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use sip_ebpf::scan::Index;

use super::*;
use crate::core::testing::{header, response};
use crate::core::transaction::{Config, Flow, Limits, RequestFate, ResponseFate, Transmit};

const US: &str = "192.0.2.1:5060";
const CALLER: &str = "10.0.0.9:5060";

/// Contexts, transactions, a clock, and what everybody has heard.
struct World {
    transactions: Transactions,
    contexts: Contexts,
    start: Instant,
    now: Instant,
    /// What the caller has heard: statuses.
    caller: Vec<String>,
    /// What each target has heard: methods.
    targets: BTreeMap<u32, Vec<String>>,
    events: Vec<String>,
    /// The last datagram of each kind (method or status) to each address.
    last: BTreeMap<(String, String), String>,
    /// The last context that has asked for more.
    asked: Option<ContextId>,
}

impl World {
    fn new() -> Self {
        Self::with(Settings::new(&[US.parse().unwrap()]), Config::default())
    }

    fn with(settings: Settings, config: Config) -> Self {
        let start = Instant::now();
        Self {
            transactions: Transactions::new([1, 2], config, start),
            contexts: Contexts::new([3, 4], settings),
            start,
            now: start,
            caller: Vec::new(),
            targets: BTreeMap::new(),
            events: Vec::new(),
            last: BTreeMap::new(),
            asked: None,
        }
    }

    fn drain(&mut self) {
        loop {
            if let Some(command) = self.transactions.poll_command() {
                match &command {
                    transaction::Command::Send(transmit) => self.sent(transmit),
                    other => {
                        self.contexts.handle(self.now, &mut self.transactions, other);
                    }
                }
            } else if let Some(command) = self.contexts.poll_command() {
                self.event(command);
            } else {
                break;
            }
        }
    }

    fn sent(&mut self, transmit: &Transmit) {
        let text = String::from_utf8(transmit.bytes.to_vec()).unwrap();
        let mut index = Index::new();
        Message::parse(text.as_bytes(), &mut index).unwrap().check_all().unwrap();
        let what = text.strip_prefix("SIP/2.0 ").unwrap_or(&text);
        let what = what.split(' ').next().unwrap().to_owned();
        let to = transmit.to.to_string();
        match target_of(&to) {
            Some(target) => self.targets.entry(target).or_default().push(what.clone()),
            None => {
                assert_eq!(to, CALLER);
                self.caller.push(what.clone());
            }
        }
        // Responses to a CANCEL are apart.
        let apart = if header(&text, "CSeq")[0].ends_with("CANCEL") { "c" } else { "" };
        let kind = if text.starts_with("CANCEL") { what.clone() } else { format!("{apart}{what}") };
        self.last.insert((to.clone(), kind), text.clone());
        // The caller acknowledges failures.
        if to == CALLER && what.parse::<u16>().is_ok_and(|status| status >= 300) {
            let cseq = header(&text, "CSeq")[0].to_owned();
            if let Some(number) = cseq.strip_suffix(" INVITE") {
                let (via, to) = (header(&text, "Via")[0], header(&text, "To")[0]);
                let ack = format!(
                    "ACK sip:bob@x SIP/2.0\r\nVia: {via}\r\nFrom: {}\r\nTo: {to}\r\nCall-ID: {}\r\n\
                     CSeq: {number} ACK\r\nMax-Forwards: 70\r\n\r\n",
                    header(&text, "From")[0],
                    header(&text, "Call-ID")[0],
                );
                self.hear(&ack);
            }
        }
    }

    fn event(&mut self, command: Command) {
        let text = match command {
            Command::Ringing { branch, status } => format!("ringing p{} {status}", branch.tag),
            Command::BranchFailed { branch, failure } => {
                let how = match failure {
                    Failure::Status { status, retry_after: None } => format!("{status}"),
                    Failure::Status { status, retry_after: Some(s) } => format!("{status}/{s}"),
                    Failure::Timeout { why, late } => format!("{why:?}+{}", late.as_millis()),
                    Failure::Transport => "transport".to_owned(),
                    Failure::NotSent => "not sent".to_owned(),
                };
                format!("p{} failed: {how}", branch.tag)
            }
            Command::Exhausted { context, .. } => {
                self.asked = Some(context);
                "exhausted".to_owned()
            }
            Command::Answered { branch, status, to_tag } => {
                assert_eq!(*to_tag, *format!("p{}", branch.tag));
                format!("answered p{} {status}", branch.tag)
            }
            Command::AlsoAnswered { branch, status, .. } => {
                format!("also p{} {status}", branch.tag)
            }
            Command::Failed { status, tag: None, .. } => format!("failed {status}"),
            Command::Failed { status, tag: Some(tag), .. } => format!("failed {status} p{tag}"),
            Command::Cancelled { .. } => "cancelled".to_owned(),
            Command::Late { branch } => format!("late p{}", branch.tag),
            Command::Ended { .. } => "ended".to_owned(),
        };
        self.events.push(text);
    }

    /// Lets time pass until `millis` have passed since the start.
    fn until(&mut self, millis: u64) {
        let end = self.start + Duration::from_millis(millis);
        while let Some(at) = self.transactions.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.transactions.handle_timeout(self.now);
            self.drain();
        }
        self.now = end;
    }

    /// Until nothing is left.
    #[track_caller]
    fn finish(&mut self) {
        let mut steps = 0;
        while let Some(at) = self.transactions.poll_timeout() {
            self.now = self.now.max(at);
            self.transactions.handle_timeout(self.now);
            self.drain();
            steps += 1;
            assert!(steps < 10_000, "it does not end");
        }
        assert_eq!(self.transactions.len(), 0);
        assert_eq!(self.transactions.held_bytes(), 0);
        assert!(self.contexts.is_empty(), "{:?}", self.contexts);
        assert!(self.contexts.by_client.is_empty());
        assert!(self.contexts.by_server.is_empty());
    }

    /// A request to us, from the caller.
    fn hear(&mut self, text: &str) -> RequestFate {
        let mut index = Index::new();
        let message = Message::parse(text.as_bytes(), &mut index).unwrap();
        let flow = Flow { local: 0, peer: CALLER.parse().unwrap(), reliable: false };
        self.transactions.handle_request(self.now, &message, flow)
    }

    /// A request that is forwarded to these targets.
    fn forward(
        &mut self,
        text: &str,
        change: impl FnOnce(&mut Start),
        hunt: Hunt,
        targets: &[Target],
    ) -> Result<ContextId, u16> {
        let fate = self.hear(text);
        let RequestFate::New { id, request, .. } = fate else { panic!("{fate:?}") };
        let mut start = Start {
            server: id,
            request,
            from: CALLER.parse().unwrap(),
            owner: 7,
            hunt,
            trying: true,
            more: false,
            unavailable: Unavailable::InternalError,
        };
        change(&mut start);
        let started =
            self.contexts.start(self.now, &mut self.transactions, start, targets.to_vec());
        self.drain();
        started
    }

    /// A call to targets of these preferences, numbered in order.
    fn fork(&mut self, qs: &[u16]) -> ContextId {
        let targets: Vec<_> =
            (0..).zip(qs).map(|(tag, q)| Target { q: *q, ..target(tag) }).collect();
        self.forward(&invite(), |_| {}, Hunt::Fork, &targets).unwrap()
    }

    /// A call to so many PBXs, with the limits of the seed.
    fn failover(&mut self, pbxs: u32) -> ContextId {
        let targets: Vec<_> = (0..pbxs).map(pbx).collect();
        let all_busy = |start: &mut Start| start.unavailable = Unavailable::RetryAfter(5);
        self.forward(&invite(), all_busy, Hunt::Failover, &targets).unwrap()
    }

    /// The last request of a method that a target has got.
    #[track_caller]
    fn got(&self, target: u32, method: &str) -> String {
        self.last[&(address(target), method.to_owned())].clone()
    }

    /// The last response of a status that the caller has got.
    #[track_caller]
    fn heard(&self, status: u16) -> String {
        self.last[&(CALLER.to_owned(), status.to_string())].clone()
    }

    fn hear_response(&mut self, text: &str) {
        let mut index = Index::new();
        let message = Message::parse(text.as_bytes(), &mut index).unwrap();
        let fate = self.transactions.handle_response(self.now, &message);
        if let ResponseFate::Of(id) = fate {
            let ours =
                self.contexts.handle_response(self.now, &mut self.transactions, id, &message);
            assert!(ours || self.contexts.by_client.is_empty() || !text.contains("INVITE"));
        }
        self.drain();
    }

    /// A target answers its INVITE (or other request).
    fn answer(&mut self, target: u32, status: &str) {
        self.answer_with(target, status, "");
    }

    /// With header lines of its own.
    fn answer_with(&mut self, target: u32, status: &str, headers: &str) {
        let request = self.got(target, "INVITE");
        let answer = response(&request, status, &format!("p{target}"));
        let own = format!("Contact: <sip:p{target}@{}>\r\n{headers}\r\n\r\n", address(target));
        self.hear_response(
            &answer
                .replacen("\r\n\r\n", &format!("\r\n{own}"), 1)
                .replace("\r\n\r\n\r\n", "\r\n\r\n"),
        );
    }

    /// A target answers our CANCEL, and its INVITE with 487.
    fn canceled(&mut self, target: u32) {
        let cancel = self.got(target, "CANCEL");
        self.hear_response(&response(&cancel, "200 OK", "c"));
        self.answer(target, "487 Request Terminated");
    }

    /// The caller takes its INVITE back.
    fn cancel(&mut self) {
        let text = invite().replace("INVITE", "CANCEL").replace("Content-Type: x/y\r\n", "");
        let fate = self.hear(&text);
        if let RequestFate::New { id, request, cancels } = fate {
            let from = CALLER.parse().unwrap();
            self.contexts.cancel(self.now, &mut self.transactions, id, &request, from, cancels);
        }
        self.drain();
    }

    /// An ICMP error from a target.
    fn unreachable(&mut self, target: u32) {
        let peer = address(target).parse().unwrap();
        self.transactions.handle_transport_error(self.now, peer);
        self.drain();
    }

    fn add(&mut self, tag: u32) -> bool {
        let id = self.asked.unwrap();
        let added = self.contexts.add(self.now, &mut self.transactions, id, vec![pbx(tag)]);
        self.drain();
        added
    }

    fn no_more(&mut self, answer: Option<Response>) {
        let id = self.asked.unwrap();
        self.contexts.finish(self.now, &mut self.transactions, id, answer);
        self.drain();
    }

    /// What the caller has heard since the last time.
    fn take(&mut self) -> Vec<String> {
        std::mem::take(&mut self.caller)
    }

    /// What a target has heard since the last time.
    fn take_of(&mut self, target: u32) -> Vec<String> {
        self.targets.remove(&target).unwrap_or_default()
    }

    fn take_events(&mut self) -> Vec<String> {
        std::mem::take(&mut self.events)
    }
}

fn address(target: u32) -> String {
    format!("10.0.1.{}:5060", target + 1)
}

fn target_of(address: &str) -> Option<u32> {
    let last = address.strip_prefix("10.0.1.")?.strip_suffix(":5060")?;
    last.parse::<u32>().ok()?.checked_sub(1)
}

/// A contact of a user.
fn target(tag: u32) -> Target {
    Target {
        tag,
        flow: Flow { local: 0, peer: address(tag).parse().unwrap(), reliable: false },
        uri: Some(format!("sip:bob@{}", address(tag)).into()),
        route: None,
        record_routes: [Some(format!("<sip:{US};lr;sl={tag:08}>").into()), None],
        limits: Limits::default(),
        q: 1000,
    }
}

/// A PBX.
fn pbx(tag: u32) -> Target {
    let limits =
        Limits { answer: Some(Duration::from_secs(3)), ring: Some(Duration::from_secs(40)) };
    Target { uri: None, limits, ..target(tag) }
}

fn invite() -> String {
    "INVITE sip:bob@192.0.2.1 SIP/2.0\r\nVia: SIP/2.0/UDP 10.0.0.9:5060;branch=z9hG4bKcaller;rport\r\n\
     Max-Forwards: 70\r\nFrom: <sip:alice@x>;tag=a\r\nTo: <sip:bob@x>\r\nCall-ID: 42@x\r\n\
     CSeq: 1 INVITE\r\nContact: <sip:alice@10.0.0.9>\r\nContent-Type: x/y\r\nContent-Length: 4\r\n\r\nbody"
        .to_owned()
}

/// A request of another method.
fn other(method: &str) -> String {
    invite().replace("INVITE", method)
}
