//! The stateless proxy (RFC 3261 16.11): a datagram in, datagrams out.
//!
//! The decision is [`mod@sip_ebpf::route`]'s, the same code as in the kernel, and so are the bytes. What it
//! declines comes in three kinds: rare forms, which are written anew ([`super::canonical`]) and routed
//! again; requests of a PBX that start something, which go where their Request-URI says; and everything
//! that is answered here or ends here.

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use sip_ebpf::cookie::{self, Cookie};
use sip_ebpf::edit::{self, Front, Sink};
use sip_ebpf::header::{self, Span};
use sip_ebpf::reason::Way;
use sip_ebpf::route::{self, Packet, Plan, Tables};
use sip_ebpf::scan::{self, Index, Kind, Method, scan};
use sip_ebpf::tables::{CallBucket, Endpoint, Local, MAX_PBX, Pbx, PbxState, source};
use sip_ebpf::{Reason, calls, insert};

use super::canonical::{self, Fault};
use super::counters::{Counters, Event};
use super::dispatcher::Dispatcher;
use super::probe::Token;
use super::reply::{self, Answer};
use super::sources::Sources;
use crate::config::NoDestination;

/// How long a caller waits before the next try when no PBX takes calls, in seconds.
const RETRY_AFTER: u32 = 5;

/// A datagram that has come in.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// Which of our addresses it came to: its place in the list given to [`Proxy::new`].
    pub local: usize,
    /// Who sent it.
    pub from: SocketAddr,
    /// What it holds. Max-Forwards is changed in place.
    pub bytes: &'a mut [u8],
}

/// A datagram to send.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Transmit {
    /// Which of our addresses it leaves from.
    pub local: usize,
    /// Where it goes.
    pub to: SocketAddr,
    /// What it holds.
    pub bytes: Vec<u8>,
}

/// The calls that the kernel has steered.
pub trait KernelCalls {
    /// The slot that a call went to, by the keyed hash of its Call-ID.
    fn find(&self, hash: u64) -> Option<u32>;
}

/// No kernel half.
impl KernelCalls for () {
    fn find(&self, _hash: u64) -> Option<u32> {
        None
    }
}

/// What the proxy needs of a configuration and can change while it runs.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Who may do what.
    pub sources: Sources,
    /// What a caller gets when no PBX takes calls.
    pub no_destination: NoDestination,
}

/// See the module.
pub struct Proxy {
    key: [u64; 2],
    locals: Vec<SocketAddr>,
    /// For each of `locals` that is IPv4.
    lines: Vec<Option<(Endpoint, Local)>>,
    policy: Policy,
    calls: RefCell<Vec<CallBucket>>,
    /// When the clock of the call table starts.
    start: Instant,
    counters: Counters,
    /// Calls that the daemon placed, by slot.
    placed: Vec<u64>,
    index: Box<Index>,
    front: Vec<u8>,
}

impl Proxy {
    /// `locals` are our addresses, `call_buckets` the size of the call table (a power of two).
    pub fn new(
        key: [u64; 2],
        locals: &[SocketAddr],
        call_buckets: u32,
        policy: Policy,
        now: Instant,
    ) -> Self {
        let lines = locals.iter().map(|local| {
            let endpoint = endpoint(*local)?;
            Some((endpoint, insert::local(endpoint)))
        });
        let buckets = call_buckets.next_power_of_two() as usize;
        Self {
            key,
            locals: locals.to_vec(),
            lines: lines.collect(),
            policy,
            calls: RefCell::new(vec![CallBucket::default(); buckets]),
            start: now,
            counters: Counters::default(),
            placed: vec![0; MAX_PBX as usize],
            index: Box::default(),
            front: Vec::new(),
        }
    }

    /// Takes over what a reload may change.
    pub fn set_policy(&mut self, policy: Policy) {
        self.policy = policy;
    }

    /// What the configuration said last.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Our IPv4 addresses with their lines, for the kernel.
    pub fn locals(&self) -> Vec<(Endpoint, Local)> {
        self.lines.iter().flatten().copied().collect()
    }

    /// What happened so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// To count what happens around the proxy.
    pub fn counters_mut(&mut self) -> &mut Counters {
        &mut self.counters
    }

    /// Calls that the daemon placed, by slot.
    pub fn placed(&self) -> &[u64] {
        &self.placed
    }

    /// One datagram. What is to be sent is put behind `out`.
    pub fn handle(
        &mut self,
        now: Instant,
        dispatcher: &mut Dispatcher,
        kernel: &dyn KernelCalls,
        datagram: Datagram<'_>,
        out: &mut Vec<Transmit>,
    ) {
        let Datagram { local, from, bytes } = datagram;
        self.counters.event(Event::Received);
        if self.policy.sources.lookup(from.ip()) & source::DENIED != 0 {
            self.counters.reason(Reason::Denied);
            return;
        }
        if bytes.len() <= 4 && self.keepalive(local, from, bytes, out) {
            return;
        }
        if let Err(error) = scan(&bytes[..], &mut self.index) {
            self.counters.reason(Reason::Malformed);
            self.refuse_malformed(local, from, bytes, error, out);
            return;
        }
        // Called again with what is written in the usual form, once.
        let mut message = Message { now, local, from, rewritten: false };
        if self.step(&mut message, dispatcher, kernel, bytes, out) {
            return;
        }
        let rewritten = if self.is_response() {
            canonical::response(bytes, &self.index)
        } else {
            canonical::request(bytes, &self.index, &self.locals)
        };
        match rewritten {
            Ok(mut text) => {
                if let Err(error) = scan(&text[..], &mut self.index) {
                    // Longer than a message can be, now that it has all its headers.
                    self.refuse_malformed(local, from, &text, error, out);
                    return;
                }
                self.counters.event(Event::Rewritten);
                message.rewritten = true;
                self.step(&mut message, dispatcher, kernel, &mut text, out);
            }
            Err(fault) => self.refuse(&message, bytes, fault, out),
        }
    }

    fn is_response(&self) -> bool {
        self.index.method == Method::Response as u32
    }

    /// Datagrams that are no SIP but keep a NAT open (RFC 5626 4.4.1). As in the kernel.
    fn keepalive(
        &mut self,
        local: usize,
        from: SocketAddr,
        bytes: &[u8],
        out: &mut Vec<Transmit>,
    ) -> bool {
        if bytes == b"\r\n\r\n" {
            self.counters.reason(Reason::CrlfAnswered);
            out.push(Transmit { local, to: from, bytes: b"\r\n".to_vec() });
            return true;
        }
        let silent = bytes.iter().all(|byte| matches!(byte, 0 | b'\r' | b'\n'));
        if silent {
            self.counters.reason(Reason::EmptyDatagram);
        }
        silent
    }

    /// Routes the message in `self.index` and `bytes`. False if it should be written anew first.
    fn step(
        &mut self,
        message: &mut Message,
        dispatcher: &mut Dispatcher,
        kernel: &dyn KernelCalls,
        bytes: &mut [u8],
        out: &mut Vec<Transmit>,
    ) -> bool {
        let line = self.lines.get(message.local).copied().flatten();
        let (Some((dst, line)), Some(src)) = (line, endpoint(message.from)) else {
            return self.without_cookie(message, bytes, out);
        };
        let packet = Packet { src, dst };
        let mut plan = Plan::default();
        let reason = {
            let view = View {
                key: self.key,
                sources: &self.policy.sources,
                dispatcher: RefCell::new(dispatcher),
                calls: &self.calls,
                kernel,
                clock: u64::try_from((message.now - self.start).as_nanos()).unwrap_or(u64::MAX),
            };
            route::route(&bytes[..], &self.index, packet, &line, &view, &mut plan)
        };
        let rare = matches!(
            reason,
            Reason::Folded
                | Reason::OddVia
                | Reason::OddHeader
                | Reason::ContentLength
                | Reason::MaxForwards
                | Reason::Preloaded
                | Reason::OddRoute
        );
        // A PBX asks somebody behind us: to be relayed, so it needs Max-Forwards and the rest.
        let asks_through = reason == Reason::OptionsNotForUs
            && dispatcher.slot_at(message.from).is_some()
            && !self.is_ours(self.uri(bytes));
        if (rare || asks_through) && !message.rewritten {
            return false;
        }
        if asks_through && !self.prepare_relay(bytes, &mut plan) {
            self.answer(message, bytes, 400, "Bad Header", "", out);
            return true;
        }
        self.counters.reason(reason);
        match reason.way() {
            Way::Sent => {
                if reason == Reason::InviteSteered {
                    self.count_call(plan.slot);
                }
                self.send(message, bytes, packet, &line, &plan, reason, out);
            }
            Way::Drop | Way::Up if self.is_response() => {
                self.up_response(message, dispatcher, bytes, reason, &plan);
            }
            Way::Drop | Way::Up => {
                self.up_request(message, dispatcher, bytes, packet, &line, &mut plan, reason, out);
            }
        }
        true
    }

    fn count_call(&mut self, slot: u32) {
        if let Some(n) = self.placed.get_mut(slot as usize) {
            *n += 1;
        }
    }

    /// Makes the bytes as the kernel makes them, and sends them to `plan.next`.
    #[allow(clippy::too_many_arguments, reason = "what a decision consists of")]
    fn send(
        &mut self,
        message: &Message,
        bytes: &mut [u8],
        packet: Packet,
        line: &Local,
        plan: &Plan,
        reason: Reason,
        out: &mut Vec<Transmit>,
    ) {
        self.front.clear();
        let mut to = address(plan.next);
        if reason == Reason::OptionsAnswered {
            to = self.way_back(message, bytes).unwrap_or(message.from);
        }
        let mut sink = Growing(&mut self.front);
        let front = match reason {
            Reason::OptionsAnswered => {
                self.counters.reply(200);
                edit::options_answer(&bytes[..], &self.index, packet, plan, &mut sink)
            }
            Reason::ResponseForwarded => edit::response(&bytes[..], plan, &mut sink),
            _ => {
                let digits = edit::hops(plan).to_le_bytes();
                let at = plan.hops_at as usize;
                let len = plan.hops_len as usize;
                if let (Some(place), Some(digits)) =
                    (bytes.get_mut(at..at + len), digits.get(..len))
                {
                    place.copy_from_slice(digits);
                }
                edit::request(&bytes[..], &self.index, packet, line, plan, &mut sink)
            }
        };
        let Front { old, new } = front;
        let mut text = self.front.get(..new as usize).unwrap_or_default().to_vec();
        text.extend_from_slice(bytes.get(old as usize..).unwrap_or_default());
        out.push(Transmit { local: message.local, to, bytes: text });
    }

    /// Where an answer to this request goes (18.2.2, RFC 3581 4).
    fn way_back(&self, message: &Message, bytes: &[u8]) -> Option<SocketAddr> {
        let value = canonical::value(bytes, self.index.first(Kind::Via)?);
        let top = canonical::split(&value)?.first().copied()?;
        Some(canonical::Via::read(top)?.receive(message.from))
    }

    // ---- Requests that the shared decision leaves to the daemon -----------------------------------

    #[allow(clippy::too_many_arguments, reason = "what a decision consists of")]
    fn up_request(
        &mut self,
        message: &Message,
        dispatcher: &mut Dispatcher,
        bytes: &mut [u8],
        packet: Packet,
        line: &Local,
        plan: &mut Plan,
        reason: Reason,
        out: &mut Vec<Transmit>,
    ) {
        let ack = canonical::is_ack(&self.index);
        let from_pbx = dispatcher.slot_at(message.from);
        match reason {
            Reason::OddRoute | Reason::WrongSide | Reason::BadCookie => {
                match self.follow_routes(dispatcher, bytes, packet, plan) {
                    Some(reason) => self.send(message, bytes, packet, line, plan, reason, out),
                    None => self.answer(message, bytes, 404, "Not Here", "", out),
                }
            }
            Reason::FromPbx | Reason::OptionsNotForUs
                if from_pbx.is_some() && plan.hops_len != 0 =>
            {
                let slot = from_pbx.unwrap_or_default();
                self.relay_from_pbx(message, slot, bytes, packet, line, plan, out);
            }
            _ if ack => self.counters.event(Event::AckAbsorbed),
            Reason::Untrusted => self.answer(message, bytes, 403, "Not Relaying", "", out),
            // A request of a dialog whose PBX is gone: the dialog is gone too (12.2.1.2).
            Reason::NoPbx if !plan.to_tag.is_empty() => {
                self.answer(message, bytes, 481, "Call/Transaction Does Not Exist", "", out);
            }
            Reason::NoPbx => self.no_destination(message, bytes, out),
            Reason::UnknownCall => {
                self.answer(message, bytes, 481, "Call/Transaction Does Not Exist", "", out);
            }
            Reason::Required => self.required(message, bytes, Kind::ProxyRequire, out),
            Reason::OptionsNotForUs => self.options(message, bytes, out),
            Reason::Method if !plan.to_tag.is_empty() => {
                self.answer(message, bytes, 404, "Not Here", "", out);
            }
            Reason::Method => {
                let allow = "Allow: INVITE, ACK, CANCEL, BYE, OPTIONS\r\n";
                self.answer(message, bytes, 405, "Method Not Allowed", allow, out);
            }
            Reason::OddVia => self.answer(message, bytes, 400, "Bad Via", "", out),
            Reason::MaxForwards => self.answer(message, bytes, 483, "Too Many Hops", "", out),
            // Whatever is left is a form that cannot be read, even in the usual form.
            _ => self.answer(message, bytes, 400, "Bad Header", "", out),
        }
    }

    fn no_destination(&mut self, message: &Message, bytes: &[u8], out: &mut Vec<Transmit>) {
        match self.policy.no_destination {
            NoDestination::Unavailable => {
                let retry = format!("Retry-After: {RETRY_AFTER}\r\n");
                self.answer(message, bytes, 503, "Service Unavailable", &retry, out);
            }
            NoDestination::NotFound => {
                self.answer(message, bytes, 404, "No destination", "", out);
            }
        }
    }

    /// Routes in a dialog, the first of them ours but not in a way that the quick path reads: others stand
    /// below it, or both ends are PBXs.
    fn follow_routes(
        &mut self,
        dispatcher: &Dispatcher,
        bytes: &[u8],
        packet: Packet,
        plan: &mut Plan,
    ) -> Option<Reason> {
        let route = self.index.first(Kind::Route)?;
        let value = canonical::value(bytes, route);
        let digits = self.our_cookie(&value)?;
        let (cookie, signature) = Cookie::read(digits, 0)?;
        let from_pbx = dispatcher.slot_at(address(packet.src));
        let speaks = |tag| cookie.signed(signature, self.key, plan.call, bytes, tag);
        let caller_speaks = if speaks(plan.from_tag) {
            true
        } else if speaks(plan.to_tag) {
            false
        } else {
            return None;
        };
        plan.record = 0;
        plan.slot = cookie.slot;
        plan.cut = Span { at: u32::from(route.start), end: u32::from(route.end) + 2 };
        // Who made the first tag stands on the PBX's side of the cookie if `from_pbx` says so. To the PBX
        // goes what its other side says.
        let to_pbx = caller_speaks != cookie.from_pbx;
        let pbx = dispatcher.pbx(cookie.slot);
        let there = pbx.state != PbxState::Unused as u8;
        let between = from_pbx.is_some_and(|slot| slot != cookie.slot);
        if to_pbx {
            // A PBX that is not this dialog's speaks only as its other side.
            if !there || (between && packet.src != cookie.flow) {
                return None;
            }
            plan.next = pbx.endpoint();
        } else {
            if from_pbx != Some(cookie.slot) {
                return None;
            }
            plan.next = cookie.flow;
        }
        if between {
            self.counters.event(Event::DialogBetweenPbxs);
        }
        Some(if to_pbx { Reason::DialogToPbx } else { Reason::DialogToPhone })
    }

    /// The digits of the cookie in a Route of ours; it is in the form that we wrote it in.
    fn our_cookie<'a>(&self, route: &'a [u8]) -> Option<&'a [u8]> {
        let uri = route.strip_prefix(b"<")?.strip_suffix(b">")?;
        let target = canonical::target(uri)?;
        let host = SocketAddr::new(canonical::ip(target.host)?, target.port?);
        let digits = canonical::uri_param(target.params, b"sl")?;
        let whole = digits.len() == cookie::COOKIE_DIGITS as usize;
        (whole && self.locals.contains(&host) && !target.user).then_some(digits)
    }

    /// A request of a PBX that follows no Route of ours: one that starts something, the CANCEL of such a
    /// one, or the ACK of its failure. All go where the Request-URI says (16.5), which is the same for them.
    #[allow(clippy::too_many_arguments, reason = "what a decision consists of")]
    fn relay_from_pbx(
        &mut self,
        message: &Message,
        slot: u32,
        bytes: &mut [u8],
        packet: Packet,
        line: &Local,
        plan: &mut Plan,
        out: &mut Vec<Transmit>,
    ) {
        let ack = canonical::is_ack(&self.index);
        if !plan.to_tag.is_empty() && !ack {
            return self.answer(message, bytes, 404, "Not Here", "", out);
        }
        let next = match self.request_target(bytes) {
            Ok(next) => next,
            Err(_) if ack => return self.counters.event(Event::AckAbsorbed),
            Err(fault) => return self.answer(message, bytes, fault.code, fault.phrase, "", out),
        };
        let method = self.index.method;
        if method == Method::Register as u32 {
            let allow =
                "Allow: INVITE, ACK, CANCEL, BYE, OPTIONS, MESSAGE, NOTIFY, REFER, SUBSCRIBE\r\n";
            return self.answer(message, bytes, 405, "Method Not Allowed", allow, out);
        }
        plan.next = next;
        plan.cut = Span::default();
        plan.slot = slot;
        // What makes a dialog (12.1, RFC 6665 4.1, RFC 3515 3).
        let makes_dialog = plan.to_tag.is_empty()
            && [Method::Invite, Method::Subscribe, Method::Refer]
                .iter()
                .any(|m| *m as u32 == method);
        plan.record = u32::from(makes_dialog);
        if makes_dialog {
            let cookie = Cookie { flow: next, slot, from_pbx: true };
            plan.cookie = cookie.write(self.key, plan.call, &bytes[..], plan.from_tag);
        }
        self.counters.event(Event::RelayedFromPbx);
        self.send(message, bytes, packet, line, plan, Reason::DialogToPhone, out);
    }

    /// The address that the Request-URI names. There is no registrar and no name service yet: it is an
    /// IPv4 address and not one of ours.
    fn request_target(&self, bytes: &[u8]) -> Result<Endpoint, Fault> {
        const NOT_FOUND: Fault = Fault { code: 404, phrase: "Not Found" };
        let uri = self.uri(bytes);
        let Some(target) = canonical::target(uri) else {
            return Err(Fault { code: 416, phrase: "Unsupported URI Scheme" });
        };
        let udp = canonical::uri_param(target.params, b"transport")
            .is_none_or(|transport| transport.eq_ignore_ascii_case(b"udp"));
        if !udp {
            return Err(NOT_FOUND);
        }
        let host = canonical::uri_param(target.params, b"maddr").unwrap_or(target.host);
        match canonical::ip(host) {
            Some(IpAddr::V4(ip))
                if !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast() =>
            {
                let port = target.port.unwrap_or(5060);
                if self.locals.contains(&SocketAddr::new(ip.into(), port)) {
                    return Err(NOT_FOUND);
                }
                Ok(Endpoint::new(ip.octets(), port))
            }
            _ => Err(NOT_FOUND),
        }
    }

    /// Puts into the plan what the shared decision leaves out for OPTIONS, which it never relays.
    fn prepare_relay(&self, bytes: &[u8], plan: &mut Plan) -> bool {
        let Some(line) = self.index.first(Kind::MaxForwards) else { return false };
        let Ok(hops) = header::number(bytes, line) else { return false };
        plan.hops = hops.saturating_sub(1);
        plan.hops_at = u32::from(line.value);
        plan.hops_len = u32::from(line.end - line.value);
        plan.branch = cookie::branch(self.key, plan.call, bytes, plan.via.branch);
        true
    }

    /// Whether a URI names one of our addresses.
    fn is_ours(&self, uri: &[u8]) -> bool {
        canonical::target(uri).is_some_and(|target| {
            let port = target.port.unwrap_or(5060);
            canonical::ip(target.host)
                .is_some_and(|host| self.locals.contains(&SocketAddr::new(host, port)))
        })
    }

    fn uri<'a>(&self, bytes: &'a [u8]) -> &'a [u8] {
        bytes.get(self.index.uri as usize..self.index.uri_end as usize).unwrap_or_default()
    }

    /// OPTIONS that the kernel does not answer: for another address of ours, with a user, with demands, or
    /// for somebody else (11).
    fn options(&mut self, message: &Message, bytes: &[u8], out: &mut Vec<Transmit>) {
        let target = canonical::target(self.uri(bytes));
        if !self.is_ours(self.uri(bytes)) {
            return self.answer(message, bytes, 403, "Not Relaying", "", out);
        }
        if target.is_some_and(|target| target.user) {
            return self.answer(message, bytes, 404, "Not Found", "", out);
        }
        if self.index.seen(Kind::Require) != 0 {
            return self.required(message, bytes, Kind::Require, out);
        }
        // The end of the kernel's own answer, but for the length that every answer of ours ends with.
        let about = str::from_utf8(edit::ABOUT_US).unwrap_or_default();
        let about = about.strip_suffix("Content-Length: 0\r\n\r\n").unwrap_or_default();
        self.answer(message, bytes, 200, "OK", about, out);
    }

    /// 420: we know no extension that would have to be known (8.2.2.3, 16.3, step 5).
    fn required(&mut self, message: &Message, bytes: &[u8], kind: Kind, out: &mut Vec<Transmit>) {
        let mut unsupported = Vec::new();
        for line in self.index.lines().iter().filter(|line| line.kind == kind as u8) {
            unsupported.push(String::from_utf8_lossy(&canonical::value(bytes, *line)).into_owned());
        }
        let header = format!("Unsupported: {}\r\n", unsupported.join(", "));
        self.answer(message, bytes, 420, "Bad Extension", &header, out);
    }

    /// What came over IPv6: keepalives and OPTIONS are answered; calls are not carried, because the cookie
    /// has no room for the address.
    fn without_cookie(&mut self, message: &Message, bytes: &[u8], out: &mut Vec<Transmit>) -> bool {
        if self.is_response() {
            self.counters.reason(Reason::NotOurResponse);
            self.counters.event(Event::DroppedResponse);
            return true;
        }
        if !message.rewritten {
            return false;
        }
        if canonical::is_ack(&self.index) {
            self.counters.event(Event::AckAbsorbed);
        } else if self.index.seen(Kind::ProxyRequire) != 0 {
            self.required(message, bytes, Kind::ProxyRequire, out);
        } else if self.index.method == Method::Options as u32 {
            self.options(message, bytes, out);
        } else if self.index.method == Method::Invite as u32 {
            let trusted = self.policy.sources.lookup(message.from.ip()) & source::TRUSTED != 0;
            let warning = "Warning: 301 sipline \"Calls over IPv6 are not carried yet\"\r\n";
            match trusted {
                true => self.answer(message, bytes, 488, "Not Acceptable Here", warning, out),
                false => self.answer(message, bytes, 403, "Not Relaying", "", out),
            }
        } else {
            self.answer(message, bytes, 481, "Call/Transaction Does Not Exist", "", out);
        }
        true
    }

    // ---- Responses that the shared decision leaves to the daemon ----------------------------------

    fn up_response(
        &mut self,
        message: &Message,
        dispatcher: &mut Dispatcher,
        bytes: &[u8],
        reason: Reason,
        plan: &Plan,
    ) {
        if reason == Reason::DaemonResponse {
            let branch = plan.via.branch;
            let token =
                bytes.get(branch.at as usize..branch.end as usize).and_then(Token::from_branch);
            let code = u16::try_from(self.index.status).unwrap_or(0);
            if let Some(token) = token
                && dispatcher.handle_answer(message.now, token, code)
            {
                return self.counters.event(Event::ProbeAnswer);
            }
        }
        self.counters.event(Event::DroppedResponse);
    }

    // ---- Answers ----------------------------------------------------------------------------------

    fn answer(
        &mut self,
        message: &Message,
        bytes: &[u8],
        code: u16,
        phrase: &str,
        headers: &str,
        out: &mut Vec<Transmit>,
    ) {
        if canonical::is_ack(&self.index) {
            // An ACK is never answered (17).
            return self.counters.event(Event::AckAbsorbed);
        }
        let answer = Answer { code, phrase, headers };
        match reply::build(bytes, &self.index, message.from, self.key, answer) {
            Some((to, bytes)) => {
                self.counters.reply(code);
                out.push(Transmit { local: message.local, to, bytes });
            }
            None => self.counters.event(Event::DroppedMalformed),
        }
    }

    fn refuse(&mut self, message: &Message, bytes: &[u8], fault: Fault, out: &mut Vec<Transmit>) {
        self.counters.reason(Reason::Malformed);
        if self.is_response() {
            return self.counters.event(Event::DroppedResponse);
        }
        self.answer(message, bytes, fault.code, fault.phrase, "", out);
    }

    /// What the scanner refuses: answered if it is a request whose headers could be read as far as an
    /// answer needs them.
    fn refuse_malformed(
        &mut self,
        local: usize,
        from: SocketAddr,
        bytes: &[u8],
        error: scan::Error,
        out: &mut Vec<Transmit>,
    ) {
        let message = Message { now: self.start, local, from, rewritten: true };
        if error == scan::Error::Version {
            // Read on as if it were our version: the headers an answer copies are the same (21.5.6).
            let mut as_ours = bytes.to_vec();
            let end = bytes.iter().position(|b| *b == b'\r').unwrap_or(bytes.len());
            let start = bytes[..end].iter().rposition(|b| *b == b' ').unwrap_or(end);
            as_ours.splice(start..end, *b" SIP/2.0");
            if scan(&as_ours[..], &mut self.index).is_ok() && !self.is_response() {
                return self.answer(&message, &as_ours, 505, "Version Not Supported", "", out);
            }
            return self.counters.event(Event::DroppedMalformed);
        }
        // After a bad start line the index holds nothing of this message but zeros.
        if error == scan::Error::StartLine || self.is_response() {
            return self.counters.event(Event::DroppedMalformed);
        }
        self.answer(&message, bytes, 400, error.text(), "", out);
    }
}

/// What is known about the message at hand.
struct Message {
    now: Instant,
    local: usize,
    from: SocketAddr,
    /// Whether it stands in the usual form because we wrote it so.
    rewritten: bool,
}

/// The tables as the daemon has them.
struct View<'a> {
    key: [u64; 2],
    sources: &'a Sources,
    dispatcher: RefCell<&'a mut Dispatcher>,
    calls: &'a RefCell<Vec<CallBucket>>,
    kernel: &'a dyn KernelCalls,
    clock: u64,
}

impl View<'_> {
    fn bucket(&self, hash: u64) -> usize {
        let mask = self.calls.borrow().len() - 1;
        calls::bucket(hash, u32::try_from(mask).unwrap_or(0)) as usize
    }
}

impl Tables for View<'_> {
    fn key(&self) -> [u64; 2] {
        self.key
    }

    fn alive(&self) -> bool {
        true
    }

    fn trusted(&self, addr: u32) -> bool {
        let addr = IpAddr::from(addr.to_ne_bytes());
        self.sources.lookup(addr) & source::TRUSTED != 0
    }

    fn pbx_at(&self, endpoint: Endpoint) -> Option<u32> {
        self.dispatcher.borrow().slot_at(address(endpoint))
    }

    fn pbx(&self, slot: u32) -> Option<Pbx> {
        let pbx = self.dispatcher.borrow().pbx(slot);
        (pbx.state != PbxState::Unused as u8).then_some(pbx)
    }

    fn turn(&self) -> Option<u32> {
        self.dispatcher.borrow_mut().next_slot()
    }

    /// The kernel's table first: later copies of the message will be routed by that one.
    fn call(&self, hash: u64) -> Option<u32> {
        self.kernel.find(hash).or_else(|| {
            let at = self.bucket(hash);
            let buckets = self.calls.borrow();
            calls::find(&buckets.get(at)?.words, hash, self.clock)
        })
    }

    fn remember(&self, hash: u64, slot: u32) {
        let at = self.bucket(hash);
        if let Some(bucket) = self.calls.borrow_mut().get_mut(at) {
            calls::put(&mut bucket.words, hash, self.clock, slot);
        }
    }
}

/// A front that grows as it is written.
struct Growing<'a>(&'a mut Vec<u8>);

impl Sink for Growing<'_> {
    fn put(&mut self, at: u32, word: u64) {
        let at = at as usize;
        if self.0.len() < at + 8 {
            self.0.resize(at + 8, 0);
        }
        if let Some(place) = self.0.get_mut(at..at + 8) {
            place.copy_from_slice(&word.to_le_bytes());
        }
    }
}

fn endpoint(address: SocketAddr) -> Option<Endpoint> {
    match address {
        SocketAddr::V4(v4) => Some(Endpoint::new(v4.ip().octets(), v4.port())),
        SocketAddr::V6(_) => None,
    }
}

fn address(endpoint: Endpoint) -> SocketAddr {
    SocketAddr::from((endpoint.octets(), endpoint.port_number()))
}
