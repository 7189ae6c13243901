//! A whole proxy on virtual time, and what tests say to it.

use std::cell::Cell;
use std::net::SocketAddr;
use std::time::Instant;

use sip_ebpf::Reason;
use sip_ebpf::calls::Call;

use super::counters::Event;
use super::dispatcher::Dispatcher;
use super::proxy::{Datagram, KernelCalls, Policy, Proxy, Transmit};
use super::sources::Sources;
use crate::config::{Accept, AdminState, NoDestination, PbxConfig, PbxLimits, Probe, Trust};

/// What a proxy is made of.
pub(super) struct Setup<'a> {
    /// Our addresses.
    pub(super) locals: &'a [&'a str],
    /// Networks whose calls are taken.
    pub(super) trusted: &'a [&'a str],
    /// Networks that are not heard.
    pub(super) denied: &'a [&'a str],
    /// Ids and addresses of the PBXs.
    pub(super) pbxs: &'a [(&'a str, &'a str)],
    /// What a caller hears when there is no PBX.
    pub(super) no_destination: NoDestination,
}

/// A proxy with its PBXs, and a kernel that knows what a test tells it.
pub(super) struct World {
    pub(super) proxy: Proxy,
    pub(super) dispatcher: Dispatcher,
    /// The slot that every call has gone to.
    pub(super) steered: Cell<Option<u32>>,
    pub(super) now: Instant,
    locals: Vec<SocketAddr>,
}

impl KernelCalls for Cell<Option<u32>> {
    fn find(&self, _hash: u64) -> Option<Call> {
        self.get().map(|slot| Call { slot, state: 0 })
    }

    fn change(&self, hash: u64, _bits: (u32, u32)) -> Option<Call> {
        self.find(hash)
    }
}

impl World {
    pub(super) fn new(setup: &Setup<'_>) -> Self {
        let now = Instant::now();
        let nets = |list: &[&str]| list.iter().map(|net| net.parse().unwrap()).collect();
        let trust =
            Trust { networks: nets(setup.trusted), deny: nets(setup.denied), ..Trust::default() };
        let policy = Policy {
            sources: Sources::new(&trust),
            no_destination: setup.no_destination,
            shadow: None,
            scanners: vec!["friendly-scanner".into()],
            rates: None,
        };
        let locals: Vec<_> = setup.locals.iter().map(|local| local.parse().unwrap()).collect();
        let rules = Probe { accept: Accept::default(), ..Probe::default() };
        let mut dispatcher = Dispatcher::new(&locals, rules.clone());
        let pbxs: Vec<_> = setup
            .pbxs
            .iter()
            .map(|(id, address)| PbxConfig {
                id: (*id).into(),
                address: address.parse().unwrap(),
                weight: 1,
                state: AdminState::Active,
                limits: PbxLimits::default(),
            })
            .collect();
        dispatcher.reload(now, &pbxs, rules).unwrap();
        while dispatcher.poll_command().is_some() {}
        let proxy = Proxy::new([7, 9], &locals, 64, policy, now);
        Self { proxy, dispatcher, steered: Cell::default(), now, locals }
    }

    /// What follows from a datagram that comes to the local address of this number.
    pub(super) fn hear(&mut self, from: &str, local: usize, bytes: &[u8]) -> Vec<Transmit> {
        let mut out = Vec::new();
        let datagram = Datagram { local, from: from.parse().unwrap(), bytes };
        self.proxy.handle(self.now, &mut self.dispatcher, &self.steered, datagram, &mut out);
        for transmit in &out {
            assert_eq!(transmit.local, local, "it leaves from where it came to");
        }
        out
    }

    /// As [`World::hear`], to the first local address of the sender's family.
    fn hear_text(&mut self, from: &str, text: &str) -> Vec<Transmit> {
        let ipv6 = from.starts_with('[');
        let local = self.locals.iter().position(|local| local.is_ipv6() == ipv6).unwrap();
        self.hear(from, local, text.as_bytes())
    }

    /// The one datagram that follows from one: where it goes, and its text.
    #[track_caller]
    pub(super) fn say(&mut self, from: &str, text: &str) -> (String, String) {
        let mut out = self.hear_text(from, text);
        assert_eq!(out.len(), 1, "{out:?}");
        let transmit = out.remove(0);
        (transmit.to.to_string(), String::from_utf8(transmit.bytes).unwrap())
    }

    /// Nothing follows.
    #[track_caller]
    pub(super) fn silence(&mut self, from: &str, text: &str) {
        assert_eq!(self.hear_text(from, text), []);
    }

    /// The first line of an answer, which goes to `from`.
    #[track_caller]
    pub(super) fn status(&mut self, from: &str, text: &str) -> String {
        let (to, answer) = self.say(from, text);
        assert_eq!(to, from);
        answer.lines().next().unwrap().to_owned()
    }

    pub(super) fn reason(&self, reason: Reason) -> u64 {
        self.proxy.counters().of_reason(reason)
    }

    pub(super) fn event(&self, event: Event) -> u64 {
        self.proxy.counters().of_event(event)
    }

    pub(super) fn order(&mut self, id: &str, admin: AdminState) {
        self.dispatcher.set_admin(self.now, id, admin).unwrap();
    }
}

/// The values of a header, as they stand.
pub(super) fn header<'a>(text: &'a str, name: &str) -> Vec<&'a str> {
    let head = text.split("\r\n\r\n").next().unwrap();
    let prefix = format!("{name}: ");
    head.lines().filter_map(|line| line.strip_prefix(&prefix)).collect()
}

/// The answer of who got this request (8.2.6).
pub(super) fn response(request: &str, status: &str, tag: &str) -> String {
    let mut text = format!("SIP/2.0 {status}\r\n");
    for line in request.split("\r\n\r\n").next().unwrap().lines() {
        match line.split(':').next().unwrap() {
            "Via" | "From" | "Call-ID" | "CSeq" | "Record-Route" => text += line,
            "To" if line.contains("tag=") => text += line,
            "To" => text += &format!("{line};tag={tag}"),
            _ => continue,
        }
        text += "\r\n";
    }
    text + "Content-Length: 0\r\n\r\n"
}

/// One damage: where, which, and with what.
pub(super) type Damage = (usize, usize, u8);

/// What damages are drawn from.
pub(super) fn damages() -> impl proptest::strategy::Strategy<Value = Vec<Damage>> {
    proptest::collection::vec((0..2000usize, 0..4usize, proptest::prelude::any::<u8>()), 0..12)
}

/// Bytes changed, put in, taken out and cut.
pub(super) fn damaged(text: String, damages: &[Damage]) -> Vec<u8> {
    let mut bytes = text.into_bytes();
    for (at, kind, byte) in damages {
        let (at, by) = (at % (bytes.len() + 1), usize::from(*byte));
        match kind {
            0 if at < bytes.len() => bytes[at] = *byte,
            1 => bytes.insert(at, b" \t\r\n,;<>[]:\""[by % 12]),
            2 if at < bytes.len() => _ = bytes.remove(at),
            _ => _ = bytes.drain(at..bytes.len().min(at + by)),
        }
    }
    bytes
}
