//! The stateless proxy (RFC 3261 16.11): a datagram in, datagrams out.
//!
//! The decision is [`mod@sip_ebpf::route`]'s, the same code as in the kernel, and so are the bytes. What it
//! declines comes in three kinds: rare forms, which are written anew ([`super::canonical`]) and routed
//! again; requests of a PBX that start something, which go where their Request-URI says; and everything
//! that is answered here or ends here.

mod across;
#[cfg(test)]
mod over_ipv6;
mod rescue;

use std::cell::RefCell;
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use sip_ebpf::address::{Address, Words};
use sip_ebpf::cookie;
use sip_ebpf::edit::{self, Front, Sink};
use sip_ebpf::gate;
use sip_ebpf::hash::Keys;
use sip_ebpf::header::Span;
use sip_ebpf::message::{Error, Message, OptionTags, Scheme, Uri};
use sip_ebpf::reason::Way;
use sip_ebpf::report::Report;
use sip_ebpf::route::{self, Packet, Plan};
use sip_ebpf::scan::{self, Index, Kind, Method, scan};
use sip_ebpf::tables::{Endpoint, Endpoint6, Local, MAX_PBX, source};
use sip_ebpf::text::literal;
use sip_ebpf::{Reason, insert, qualify};

use super::bans;
use super::call_table::CallTable;
use super::canonical::{self, Canonical, Fault};
use super::cookie::Cookie;
use super::counters::{Counters, Event};
use super::decision::Decision;
use super::dispatcher::Dispatcher;
use super::family::Family;
use super::gate::Gate;
use super::owner::{Parcel, Passed, Worker};
use super::probe::Token;
use super::reply::{self, Answer};
use super::shadow::Shadows;
use super::sources::Sources;
use super::stateful::Stateful;
use super::transaction::{Branch, Flow};
use super::view::{View, address4, address6, endpoint4, endpoint6};
use crate::config::NoDestination;

pub use super::view::KernelCalls;

/// How long a caller waits before the next try when no PBX takes calls, in seconds.
const RETRY_AFTER: u32 = 5;
/// Scanners that are kept until somebody takes them; others of the same moment send more.
const MAX_SCANNERS: usize = 64;
/// What a phone may send us.
const ALLOW: &str = "Allow: INVITE, ACK, CANCEL, BYE, OPTIONS\r\n";
/// The same with a registrar.
const ALLOW_REGISTER: &str = "Allow: INVITE, ACK, CANCEL, BYE, OPTIONS, REGISTER\r\n";
/// What a PBX may send us.
const ALLOW_PBX: &str =
    "Allow: INVITE, ACK, CANCEL, BYE, OPTIONS, MESSAGE, NOTIFY, REFER, SUBSCRIBE\r\n";

/// A datagram that has come in.
#[derive(Clone, Copy, Debug)]
pub struct Datagram<'a> {
    /// Which of our addresses it came to: its place in the list given to [`Proxy::new`].
    pub local: usize,
    /// Who sent it.
    pub from: SocketAddr,
    /// What it holds.
    pub bytes: &'a [u8],
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

/// What the proxy needs of a configuration and can change while it runs.
#[derive(Clone, Debug)]
pub struct Policy {
    /// Who may do what.
    pub sources: Sources,
    /// What a caller gets when no PBX takes calls.
    pub no_destination: NoDestination,
    /// How long a PBX may take for its first response to an INVITE that is steered, before another one is tried.
    /// `None`: no net under these.
    pub shadow: Option<Duration>,
    /// Parts of the User-Agent by which scanners are known, in small letters.
    pub scanners: Vec<String>,
    /// What one source may send; `None`: nothing is asked.
    pub rates: Option<gate::Rules>,
}

/// Somebody has called himself as scanners do: evidence for [`super::bans::Bans::scanner`].
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Scanner {
    /// The source.
    pub from: IpAddr,
    /// His User-Agent.
    pub agent: Box<str>,
}

/// See the module.
pub struct Proxy {
    keys: Keys,
    locals: Vec<SocketAddr>,
    /// For each of `locals`.
    lines: Vec<Line>,
    /// For each of `locals`, if only its link knows it.
    zones: Vec<u32>,
    policy: Policy,
    /// What needs memory, if it is configured.
    stateful: Option<Box<Stateful>>,
    calls: CallTable,
    /// INVITEs that were steered, by the kernel or here.
    shadows: Shadows,
    /// A bit for each slot whose PBX was found gone.
    gone: u64,
    /// When the clock of the call table starts.
    start: Instant,
    counters: Counters,
    /// Calls that the daemon placed, by slot.
    placed: Vec<u64>,
    /// Which worker it serves in.
    worker: Worker,
    /// What is for other workers, by their numbers.
    parcels: Vec<Parcel>,
    /// Scanners that were seen.
    scanners: Vec<Scanner>,
    gate: Gate,
    /// Working memory, kept between messages.
    index: Option<Box<Index>>,
    text: Vec<u8>,
    front: Vec<u8>,
}

/// One of our addresses, with what the proxy writes for it.
#[allow(clippy::large_enum_variant, reason = "there is one for each address of ours")]
enum Line {
    V4(Endpoint, Local),
    V6(Endpoint6, Box<Local<Endpoint6>>),
}

/// What is known about the message at hand besides its bytes.
struct Arrival<'a> {
    now: Instant,
    local: usize,
    from: SocketAddr,
    /// As it came.
    bytes: &'a [u8],
    kernel: &'a dyn KernelCalls,
    /// Whether another worker has had it, and counted it.
    passed: bool,
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
        let lines = locals.iter().map(|local| match local {
            SocketAddr::V4(v4) => {
                let endpoint = Endpoint::new(v4.ip().octets(), v4.port());
                Line::V4(endpoint, insert::local(endpoint))
            }
            SocketAddr::V6(v6) => {
                let endpoint = endpoint6(*v6);
                Line::V6(endpoint, Box::new(insert::local(endpoint)))
            }
        });
        let mut gate = Gate::default();
        gate.set_rules(policy.rates);
        let zones = locals.iter().map(|local| match local {
            SocketAddr::V4(_) => 0,
            SocketAddr::V6(v6) => v6.scope_id(),
        });
        // As messages name them: without zones, which mean nothing to others (RFC 4007 11.2).
        let named = locals.iter().map(|local| SocketAddr::new(local.ip(), local.port()));
        Self {
            keys: Keys::new(key),
            locals: named.collect(),
            lines: lines.collect(),
            zones: zones.collect(),
            policy,
            stateful: None,
            calls: CallTable::new(call_buckets),
            shadows: Shadows::default(),
            gone: 0,
            start: now,
            counters: Counters::default(),
            placed: vec![0; MAX_PBX as usize],
            worker: Worker::ALONE,
            parcels: Vec::new(),
            scanners: Vec::new(),
            gate,
            index: None,
            text: Vec::new(),
            front: Vec::new(),
        }
    }

    /// It serves in this worker, beside those that have this call table: they were made with the same key, addresses
    /// and time.
    pub fn set_worker(&mut self, worker: Worker, calls: CallTable) {
        (self.worker, self.calls) = (worker, calls);
        self.parcels.resize_with(worker.count(), Parcel::default);
    }

    /// What is for the worker of this number, since this was last asked.
    pub fn take_parcel(&mut self, worker: usize) -> Option<Parcel> {
        let parcel = self.parcels.get_mut(worker)?;
        (!parcel.is_empty()).then(|| std::mem::take(parcel))
    }

    /// Takes over what a reload may change. Who is banned stays so.
    pub fn set_policy(&mut self, policy: Policy) {
        let sources = policy.sources.with_bans_of(&self.policy.sources);
        self.gate.set_rules(policy.rates);
        self.policy = Policy { sources, ..policy };
        self.keep_endpoints();
    }

    /// Who is registered, and who owes what.
    pub fn gate(&self) -> &Gate {
        &self.gate
    }

    /// As [`Proxy::gate`].
    pub fn gate_mut(&mut self) -> &mut Gate {
        &mut self.gate
    }

    /// Does what [`super::bans::Bans`] wants.
    pub fn handle_ban(&mut self, command: bans::Command) {
        match command {
            bans::Command::Ban(net) => self.policy.sources.ban(net),
            bans::Command::Lift(net) => self.policy.sources.lift(net),
        }
    }

    /// Scanners that were seen since this was last asked.
    pub fn take_scanners(&mut self) -> Vec<Scanner> {
        std::mem::take(&mut self.scanners)
    }

    /// What the configuration said last.
    pub fn policy(&self) -> &Policy {
        &self.policy
    }

    /// Gives it what needs memory. Without one that has a registrar, REGISTER is refused.
    pub fn set_stateful(&mut self, stateful: Option<Stateful>) {
        self.stateful = stateful.map(Box::new);
        if let Some(stateful) = &mut self.stateful {
            stateful.set_cookie_keys(self.keys);
        }
        self.keep_endpoints();
    }

    fn keep_endpoints(&mut self) {
        if let Some(stateful) = &mut self.stateful {
            stateful.keep_endpoints(self.policy.sources.only(source::REGISTERED));
        }
    }

    /// What needs memory. It gets its messages here; its commands and its time are the caller's to see to.
    pub fn stateful(&self) -> Option<&Stateful> {
        self.stateful.as_deref()
    }

    /// As [`Proxy::stateful`].
    pub fn stateful_mut(&mut self) -> Option<&mut Stateful> {
        self.stateful.as_deref_mut()
    }

    /// How long a PBX may take for its first response to an INVITE that is steered, if calls are placed anew then: only
    /// where there is something that carries them.
    pub fn patience(&self) -> Option<Duration> {
        self.policy.shadow.filter(|_| self.stateful.is_some())
    }

    /// Whether calls that are steered have records.
    pub fn records_steered(&self) -> bool {
        self.stateful.as_ref().is_some_and(|stateful| stateful.records_steered())
    }

    /// Whether there is a registrar.
    fn registers(&self) -> bool {
        self.stateful.as_ref().is_some_and(|stateful| stateful.registers())
    }

    /// Our IPv4 addresses with their lines, for the kernel.
    pub fn locals(&self) -> Vec<(Endpoint, Local)> {
        let of_ipv4 = |line: &Line| match line {
            Line::V4(endpoint, local) => Some((*endpoint, *local)),
            Line::V6(..) => None,
        };
        self.lines.iter().filter_map(of_ipv4).collect()
    }

    /// The same of IPv6. What only its link knows is left to the daemon: routes do not say which link.
    pub fn locals6(&self) -> Vec<(Endpoint6, Local<Endpoint6>)> {
        let of_ipv6 = |line: &Line| match line {
            Line::V6(endpoint, local) => Some((*endpoint, **local)),
            Line::V4(..) => None,
        };
        let routed =
            |(endpoint, _): &(Endpoint6, _)| !endpoint.is_link_local() && !endpoint.is_mapped();
        self.lines.iter().filter_map(of_ipv6).filter(routed).collect()
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
        let bits = self.policy.sources.lookup(from.ip());
        if bits & source::BANNED != 0 {
            return self.counters.reason(Reason::Banned);
        }
        if bits & source::DENIED != 0 {
            return self.counters.reason(Reason::Denied);
        }
        if bytes.is_empty() {
            return self.counters.reason(Reason::EmptyDatagram);
        }
        if bits & (source::TRUSTED | source::EXEMPT) == 0
            && dispatcher.slot_at(from).is_none()
            && let Err(reason) = self.gate.take(self.clock(now), from.ip(), bytes)
        {
            return self.counters.reason(reason);
        }
        if self.keepalive(datagram, out) {
            return;
        }
        let arrival = Arrival { now, local, from, bytes, kernel, passed: false };
        let mut index = self.index.take().unwrap_or_default();
        self.message(&arrival, dispatcher, bytes, &mut index, out);
        self.index = Some(index);
    }

    /// A message that another worker has passed on ([`Proxy::take_parcel`]). It goes no further.
    pub fn handle_passed(
        &mut self,
        now: Instant,
        dispatcher: &mut Dispatcher,
        kernel: &dyn KernelCalls,
        datagram: Datagram<'_>,
        what: Passed,
        out: &mut Vec<Transmit>,
    ) {
        let Datagram { local, from, bytes } = datagram;
        let arrival = Arrival { now, local, from, bytes, kernel, passed: true };
        let mut index = self.index.take().unwrap_or_default();
        match what {
            Passed::Message => self.message(&arrival, dispatcher, bytes, &mut index, out),
            Passed::Bye(tries) => {
                if let Ok(bye) = Message::parse(bytes, &mut index) {
                    self.bye_passed(&arrival, &bye, tries);
                }
            }
            Passed::Steered(slot, at) => {
                let known = self.identify(bytes, &mut index);
                if let (Some(known), Ok(invite)) = (known, Message::scanned(bytes, &index)) {
                    self.steered(&arrival, at, dispatcher, &invite, known, slot, out);
                }
            }
            Passed::Report(hash, at, report) => self.report(&arrival, at, hash, report),
        }
        self.index = Some(index);
    }

    /// Datagrams that are no SIP but keep a NAT open (RFC 5626 4.4.1). As in the kernel.
    fn keepalive(&mut self, datagram: Datagram<'_>, out: &mut Vec<Transmit>) -> bool {
        let Datagram { local, from, bytes } = datagram;
        if bytes.len() > 4 {
            return false;
        }
        if bytes == b"\r\n\r\n" {
            self.counters.reason(Reason::CrlfAnswered);
            out.push(Transmit { local, to: from, bytes: b"\r\n".to_vec() });
            return true;
        }
        let silent = bytes.iter().all(|byte| matches!(byte, 0 | b'\r' | b'\n'));
        self.counters.reason(if silent { Reason::EmptyDatagram } else { Reason::Junk });
        true
    }

    /// One message: decided, or written anew and then decided.
    fn message(
        &mut self,
        arrival: &Arrival<'_>,
        dispatcher: &mut Dispatcher,
        bytes: &[u8],
        index: &mut Index,
        out: &mut Vec<Transmit>,
    ) {
        if let Err(error) = scan(bytes, index) {
            self.counters.reason(error.reason());
            return self.malformed(arrival, bytes, index, error, out);
        }
        let mut decision = Decision::default();
        self.decide(arrival, dispatcher, bytes, index, &mut decision);
        if !self.is_rare(arrival, &decision, dispatcher, bytes, index) {
            return self.act(arrival, dispatcher, bytes, index, decision, out);
        }
        let Some(canonical) = self.rewrite(arrival, bytes, index, out) else { return };
        self.counters.events(Event::Rewritten, u64::from(!arrival.passed));
        // Decided as if quoted strings were tokens, and sent with them: they stand in the same places.
        let unquoted = canonical.unquoted();
        let routed = unquoted.as_ref().unwrap_or(&canonical.text);
        if scan(&routed[..], index).is_err() {
            // Longer than a message can be, now that it has all its headers.
            return self.counters.event(Event::DroppedMalformed);
        }
        self.decide(arrival, dispatcher, routed, index, &mut decision);
        decision.unquoted = unquoted.is_some();
        self.act(arrival, dispatcher, &canonical.text, index, decision, out);
    }

    /// The shared decision.
    fn decide(
        &mut self,
        arrival: &Arrival<'_>,
        dispatcher: &mut Dispatcher,
        bytes: &[u8],
        index: &Index,
        decision: &mut Decision,
    ) {
        *decision = Decision::default();
        let Some(line) = self.lines.get(arrival.local) else { return };
        let clock = self.clock(arrival.now);
        let view = View {
            keys: &self.keys,
            from: arrival.from,
            sources: &self.policy.sources,
            endpoints: self.stateful.as_deref().map(Stateful::endpoints),
            now: arrival.now,
            dispatcher: RefCell::new(&mut *dispatcher),
            calls: &self.calls,
            kernel: arrival.kernel,
            clock,
            // Calls over IPv6 are not placed anew.
            guarded: self.patience().is_some() && arrival.from.is_ipv4(),
            recorded: self.records_steered(),
        };
        match (line, arrival.from) {
            (Line::V4(dst, local), SocketAddr::V4(src)) => {
                let packet = Packet { src: endpoint4(src), dst: *dst };
                let plan = &mut decision.plan;
                decision.reason = route::route(bytes, index, packet, local, &view, plan);
                decision.next = address4(plan.next);
            }
            (Line::V6(dst, local), SocketAddr::V6(src)) => {
                let packet = Packet { src: endpoint6(src), dst: *dst };
                let mut plan = Plan::default();
                decision.reason = route::route(bytes, index, packet, local, &view, &mut plan);
                decision.plan = plan.with(Endpoint::default(), Words::ZERO);
                (decision.next, decision.cookie) = (address6(plan.next), plan.cookie);
            }
            // No socket receives what is not of its family.
            _ => {}
        }
    }

    /// The clock that all workers share, of the call table and of the gate, in nanoseconds.
    fn clock(&self, now: Instant) -> u64 {
        let passed = now.saturating_duration_since(self.start).as_nanos();
        u64::try_from(passed).unwrap_or(u64::MAX)
    }

    /// Whether the usual form of the message might be decided otherwise.
    fn is_rare(
        &self,
        arrival: &Arrival<'_>,
        decision: &Decision,
        dispatcher: &Dispatcher,
        bytes: &[u8],
        index: &Index,
    ) -> bool {
        let method = index.method;
        match decision.reason {
            Reason::Folded
            | Reason::OddVia
            | Reason::OddHeader
            | Reason::ContentLength
            | Reason::MaxForwards
            | Reason::Preloaded
            | Reason::OddRoute => true,
            // These cannot be refused (20.29): they go on without the demand.
            Reason::Required => method == Method::Ack as u32 || method == Method::Cancel as u32,
            // A PBX asks somebody behind us: to be relayed, OPTIONS needs what other requests need.
            Reason::OptionsNotForUs => {
                let from_pbx = dispatcher.slot_at(arrival.from).is_some();
                from_pbx && !self.is_ours(&request_uri(bytes, index))
            }
            _ => false,
        }
    }

    /// Writes the message in the usual form, or answers what is wrong with it.
    fn rewrite(
        &mut self,
        arrival: &Arrival<'_>,
        bytes: &[u8],
        index: &mut Index,
        out: &mut Vec<Transmit>,
    ) -> Option<Canonical> {
        let mut unfolded = bytes.to_vec();
        let message = match Message::parse_folded(&mut unfolded, index) {
            Ok(message) => message,
            Err(error) => {
                tracing::debug!(%error, "a message that was scanned is none any more");
                self.counters.event(Event::DroppedMalformed);
                return None;
            }
        };
        let rewritten = match message.is_request() {
            true => canonical::request(&message, &self.locals),
            false => canonical::response(&message),
        };
        match rewritten {
            Ok(canonical) => Some(canonical),
            Err(fault) => {
                self.counters.reason(Reason::Malformed);
                self.refuse(arrival, &message, &fault, out);
                None
            }
        }
    }

    /// Does what was decided.
    fn act(
        &mut self,
        arrival: &Arrival<'_>,
        dispatcher: &mut Dispatcher,
        bytes: &[u8],
        index: &mut Index,
        mut decision: Decision,
        out: &mut Vec<Transmit>,
    ) {
        if !arrival.passed {
            self.counters.reason(decision.reason);
        }
        if decision.reason.way() == Way::Sent {
            if decision.reason == Reason::InviteSteered
                && let Some(placed) = self.placed.get_mut(decision.plan.slot as usize)
            {
                *placed += 1;
            }
            self.send(arrival, bytes, index, &decision, out);
            let steered = matches!(decision.reason, Reason::InviteSteered | Reason::InviteRepeated);
            let at = arrival.now;
            if steered
                && (self.patience().is_some() || self.records_steered())
                && let Ok(invite) = Message::scanned(bytes, index)
            {
                let (plan, slot) = (&decision.plan, decision.plan.slot);
                self.steered(arrival, at, dispatcher, &invite, (plan.call, plan.branch), slot, out);
            }
            if let Some(report) = Report::of(bytes, index, &decision.plan, decision.reason) {
                self.report(arrival, at, decision.plan.call, report);
            }
            return;
        }
        let parsed = match decision.unquoted {
            true => Message::parse(bytes, index),
            false => Message::scanned(bytes, index),
        };
        let Ok(message) = parsed else {
            return self.counters.event(Event::DroppedMalformed);
        };
        if decision.reason == Reason::ByeRecorded {
            self.note_bye(arrival, dispatcher, &message);
            return self.send(arrival, bytes, message.index(), &decision, out);
        }
        if message.is_request() {
            self.up_request(arrival, dispatcher, &message, &mut decision, out);
        } else if matches!(decision.reason, Reason::SteeredFailed | Reason::TakenOver) {
            self.steered_response(arrival, dispatcher, &message, &decision, out);
        } else {
            self.up_response(arrival, dispatcher, &message, &decision, out);
        }
    }

    /// A BYE of a dialog of ours: the call has a record, or may have one, and is over whatever becomes of it.
    fn note_bye(&mut self, arrival: &Arrival<'_>, dispatcher: &Dispatcher, message: &Message<'_>) {
        let Some(stateful) = self.stateful.as_mut().filter(|has| has.registers()) else { return };
        if stateful.handle_bye(arrival.now, message) || self.worker.is_alone() {
            return;
        }
        // Most likely it is with the worker of the user that is no PBX.
        let user = match dispatcher.slot_at(arrival.from) {
            Some(_) => message.to().ok().and_then(|to| to.uri.user),
            None => message.from().ok().and_then(|from| from.uri.user),
        };
        let guess = user.map_or(0, |user| self.worker.of_user(user));
        self.pass_bye(arrival, message, guess, 0);
    }

    /// A BYE that another worker has sent on. Says so to the next one if its record is not here either.
    fn bye_passed(&mut self, arrival: &Arrival<'_>, message: &Message<'_>, tries: u8) {
        let Some(stateful) = &mut self.stateful else { return };
        if !stateful.handle_bye(arrival.now, message) {
            self.pass_bye(arrival, message, self.worker.number() + 1, tries.saturating_add(1));
        }
    }

    fn pass_bye(&mut self, arrival: &Arrival<'_>, bye: &Message<'_>, to: usize, tries: u8) {
        let count = self.worker.count();
        let to = match to % count {
            // Not to itself.
            to if to == self.worker.number() => (to + 1) % count,
            to => to,
        };
        if usize::from(tries) < count
            && let Some(parcel) = self.parcels.get_mut(to)
        {
            parcel.put(arrival.local, arrival.from, bye.bytes(), Passed::Bye(tries));
        }
    }

    /// Passes a message on if it is another worker's. Says whether it was.
    fn pass_on(&mut self, arrival: &Arrival<'_>, owner: Option<usize>) -> bool {
        let other = owner.filter(|owner| *owner != self.worker.number() && !arrival.passed);
        let Some(parcel) = other.and_then(|owner| self.parcels.get_mut(owner)) else {
            return false;
        };
        parcel.put(arrival.local, arrival.from, arrival.bytes, Passed::Message);
        self.counters.event(Event::PassedOn);
        true
    }

    /// Makes the bytes as the kernel makes them, and sends them to `decision.next`.
    fn send(
        &mut self,
        arrival: &Arrival<'_>,
        bytes: &[u8],
        index: &Index,
        decision: &Decision,
        out: &mut Vec<Transmit>,
    ) {
        let Decision { plan, reason, next, cookie, .. } = decision;
        self.text.clear();
        self.text.extend_from_slice(bytes);
        if !matches!(reason, Reason::OptionsAnswered | Reason::ResponseForwarded) {
            let digits = edit::hops(plan).to_le_bytes();
            let (at, len) = (plan.hops_at as usize, plan.hops_len as usize);
            if let (Some(place), Some(digits)) =
                (self.text.get_mut(at..at + len), digits.get(..len))
            {
                place.copy_from_slice(digits);
            }
        }
        self.front.clear();
        let mut sink = Growing(&mut self.front);
        let texts = (bytes, &self.text[..]);
        let Front { old, new } = match (self.lines.get(arrival.local), arrival.from) {
            (Some(Line::V4(dst, local)), SocketAddr::V4(src)) => {
                let packet = Packet { src: endpoint4(src), dst: *dst };
                edited(texts, index, packet, local, plan, *reason, &mut sink)
            }
            (Some(Line::V6(dst, local)), SocketAddr::V6(src)) => {
                let packet = Packet { src: endpoint6(src), dst: *dst };
                let SocketAddr::V6(to) = next else { return };
                let plan = plan.with(endpoint6(*to), *cookie);
                edited(texts, index, packet, local, &plan, *reason, &mut sink)
            }
            _ => return,
        };
        let mut to = *next;
        if *reason == Reason::OptionsAnswered {
            self.counters.reply(200);
            to = answer_port(bytes, plan, arrival.from);
        }
        to = self.zoned(arrival.local, to);
        let rest = self.text.get(old as usize..).unwrap_or_default();
        let front = self.front.get(..new as usize).unwrap_or_default();
        out.push(Transmit { local: arrival.local, to, bytes: [front, rest].concat() });
    }

    /// An address with its zone, if only the link of ours knows it.
    fn zoned(&self, local: usize, mut to: SocketAddr) -> SocketAddr {
        if let SocketAddr::V6(v6) = &mut to
            && v6.ip().is_unicast_link_local()
        {
            v6.set_scope_id(self.zones.get(local).copied().unwrap_or(0));
        }
        to
    }

    // ---- Requests that the shared decision leaves to the daemon -----------------------------------

    fn up_request(
        &mut self,
        arrival: &Arrival<'_>,
        dispatcher: &mut Dispatcher,
        message: &Message<'_>,
        decision: &mut Decision,
        out: &mut Vec<Transmit>,
    ) {
        let in_dialog = !decision.plan.to_tag.is_empty();
        let from_pbx = dispatcher.slot_at(arrival.from);
        if from_pbx.is_none() && self.is_scanner(arrival, message) {
            return self.counters.event(Event::ScannerDropped);
        }
        if decision.reason == Reason::OptionsNotForUs
            && from_pbx.is_some()
            && self.is_qualify(message)
        {
            let owner = self.worker.of_request(message, true);
            if !self.pass_on(arrival, owner) {
                self.answer_qualify(arrival, message, &decision.plan, out);
            }
            return;
        }
        let refusal = match decision.reason {
            reason if self.needs_memory(message, reason, in_dialog) => {
                let owner = self.worker.of_request(message, from_pbx.is_some());
                if self.pass_on(arrival, owner) {
                    return;
                }
                match self.hand_over(arrival, dispatcher, message) {
                    Ok(()) => return,
                    Err(fault) => Refusal::from(&fault),
                }
            }
            Reason::TakenOver => match self.taken_request(arrival, dispatcher, message, decision) {
                Ok(()) => return,
                Err(fault) => Refusal::from(&fault),
            },
            Reason::OddRoute if self.follow_across(arrival, dispatcher, message, decision, out) => {
                return;
            }
            Reason::OddRoute | Reason::WrongSide | Reason::BadCookie => {
                if self.follow_routes(arrival, dispatcher, message, decision).is_some() {
                    if message.method() == Method::Bye {
                        self.note_bye(arrival, dispatcher, message);
                        self.report_bye(arrival, decision, decision.reason);
                    }
                    return self.send(arrival, message.bytes(), message.index(), decision, out);
                }
                Refusal::new(404, "Not here")
            }
            Reason::FromPbx | Reason::OptionsNotForUs
                if from_pbx.is_some()
                    && (decision.reason == Reason::FromPbx || !self.asks_us(message)) =>
            {
                match self.relay(arrival, message, from_pbx.unwrap_or_default(), decision) {
                    Ok(()) => {
                        self.counters.event(Event::RelayedFromPbx);
                        return self.send(arrival, message.bytes(), message.index(), decision, out);
                    }
                    Err(refusal) => refusal,
                }
            }
            Reason::OptionsNotForUs | Reason::OptionsAnswered => self.options(message),
            Reason::Untrusted => Refusal::new(403, "Not relaying"),
            // A dialog whose PBX is gone is gone too (12.2.1.2).
            Reason::NoPbx if in_dialog => {
                if message.method() == Method::Bye {
                    self.note_bye(arrival, dispatcher, message);
                    // It came from the side that is no PBX.
                    self.report_bye(arrival, decision, Reason::DialogToPbx);
                }
                Refusal::new(481, "Call/Transaction Does Not Exist")
            }
            Reason::NoPbx if self.may_cross(Family::of(arrival.from), dispatcher) => {
                match self.place_across(arrival, dispatcher, message, decision) {
                    Ok(()) => return,
                    Err(fault) => Refusal::from(&fault),
                }
            }
            Reason::NoPbx => self.no_destination(Family::of(arrival.from), dispatcher),
            Reason::UnknownCall => Refusal::new(481, "Call/Transaction Does Not Exist"),
            Reason::Required => unsupported(message.proxy_requires()),
            Reason::Method if in_dialog => Refusal::new(404, "Not here"),
            Reason::Method if self.registers() => {
                Refusal::with(405, "Method Not Allowed", ALLOW_REGISTER)
            }
            Reason::Method => Refusal::with(405, "Method Not Allowed", ALLOW),
            Reason::MaxForwards => Refusal::new(483, "Too Many Hops"),
            // Whatever is left cannot be read even in the usual form.
            _ => Refusal::new(400, "Bad Header"),
        };
        self.answer(arrival, message, &refusal, out);
    }

    /// Whether a request that nobody is trusted for is a scanner's. Those that the shared decision lets pass are none: they
    /// are in calls of ours, or ask how we are, which all may know; so it is the same whoever decides.
    fn is_scanner(&mut self, arrival: &Arrival<'_>, message: &Message<'_>) -> bool {
        let Policy { scanners, sources, .. } = &self.policy;
        let from = arrival.from.ip();
        if scanners.is_empty() || arrival.passed || sources.is_exempt(from) {
            return false;
        }
        let mut others = message.headers_of(Kind::Other);
        let agent = others.find(|header| header.name.eq_ignore_ascii_case(b"User-Agent"));
        let Some(agent) = agent else { return false };
        let agent = String::from_utf8_lossy(agent.value);
        let small = agent.to_ascii_lowercase();
        let found = scanners.iter().any(|scanner| small.contains(scanner.as_str()));
        if found && self.scanners.len() < MAX_SCANNERS {
            self.scanners.push(Scanner { from, agent: agent.into() });
        }
        found
    }

    /// Whether a request is one for [`Stateful`]: what starts something and is to be authenticated, or is for one of
    /// our users, and what belongs to such a request (CANCEL, and the ACK of its failure).
    fn needs_memory(&self, message: &Message<'_>, reason: Reason, in_dialog: bool) -> bool {
        let Some(stateful) = self.stateful.as_ref().filter(|has| has.registers()) else {
            return false;
        };
        let method = message.method();
        let register = method == Method::Register;
        let uri = message.request_uri().ok();
        let to_us = uri.as_ref().is_some_and(|uri| stateful.is_ours(uri));
        match reason {
            Reason::Untrusted | Reason::UnknownCall => true,
            Reason::FromPbx => register || to_us && (!in_dialog || method == Method::Ack),
            Reason::OptionsNotForUs => {
                let user = uri.is_some_and(|uri| uri.user.is_some());
                to_us && user
            }
            // These belong into a dialog, and with one of ours they would have our Route.
            Reason::Method => match method {
                Method::Bye | Method::Prack | Method::Update | Method::Info => false,
                _ => register || !in_dialog,
            },
            _ => false,
        }
    }

    /// Whether an OPTIONS of a PBX is for a user of ours, and we are to answer it.
    fn is_qualify(&self, message: &Message<'_>) -> bool {
        let Some(stateful) = self.stateful.as_ref().filter(|has| has.answers_qualify()) else {
            return false;
        };
        let index = message.index();
        let ours = |uri: Uri<'_>| uri.user.is_some() && stateful.is_ours(&uri);
        !index.has(Kind::Route)
            && !index.has(Kind::Require)
            && message.request_uri().is_ok_and(ours)
    }

    /// Answers such a one, in the usual form as the kernel does.
    fn answer_qualify(
        &mut self,
        arrival: &Arrival<'_>,
        message: &Message<'_>,
        plan: &Plan,
        out: &mut Vec<Transmit>,
    ) {
        let (stateful, uri) = (self.stateful.as_deref(), message.request_uri().ok());
        let there =
            stateful.zip(uri).is_some_and(|(has, uri)| has.is_registered(arrival.now, &uri));
        let (bytes, index) = (message.bytes(), message.index());
        self.front.clear();
        let mut sink = Growing(&mut self.front);
        let front = match (self.lines.get(arrival.local), arrival.from) {
            (Some(Line::V4(dst, local)), SocketAddr::V4(src)) => {
                let packet = Packet { src: endpoint4(src), dst: *dst };
                answer_asked(bytes, index, packet, local, plan, there, &mut sink)
            }
            (Some(Line::V6(dst, local)), SocketAddr::V6(src)) => {
                let packet = Packet { src: endpoint6(src), dst: *dst };
                let plan = plan.with(Endpoint6::default(), Words::ZERO);
                answer_asked(bytes, index, packet, local, &plan, there, &mut sink)
            }
            _ => None,
        };
        if let Some(front) = front.and_then(|front| self.front.get(..front.new as usize)) {
            self.counters.reply(if there { 200 } else { 404 });
            let (local, to) = (arrival.local, arrival.from);
            return out.push(Transmit { local, to, bytes: front.to_vec() });
        }
        let answer = if there { about_us() } else { Refusal::new(404, "Not Found") };
        self.answer(arrival, message, &answer, out);
    }

    /// A request that needs memory.
    fn hand_over(
        &mut self,
        arrival: &Arrival<'_>,
        dispatcher: &mut Dispatcher,
        message: &Message<'_>,
    ) -> Result<(), Fault> {
        // The shared decision has read what it needs, and no more.
        message.check()?;
        let flow = Flow { local: arrival.local, peer: arrival.from, reliable: false };
        if let Some(stateful) = &mut self.stateful {
            self.counters.event(Event::HandledStateful);
            stateful.handle_request(arrival.now, message, flow);
            stateful.handle_calls_of(arrival.now, dispatcher, message);
        }
        Ok(())
    }

    /// Routes in a dialog, the first of them ours but not in a way that the quick path reads: others stand
    /// below it, or both ends are PBXs. `None` if the request must not go on.
    fn follow_routes(
        &mut self,
        arrival: &Arrival<'_>,
        dispatcher: &Dispatcher,
        message: &Message<'_>,
        decision: &mut Decision,
    ) -> Option<()> {
        let plan = &mut decision.plan;
        let family = Family::of(arrival.from);
        let first = message.routes().next()?.ok()?;
        let (local, digits) = canonical::our_cookie(&first.uri, &self.locals)?;
        if Family::of(local) != family {
            return None;
        }
        let (cookie, signature) = Cookie::read(digits.as_bytes())?;
        if !cookie.signed(signature, &self.keys, plan.call) {
            return None;
        }
        // To the PBX goes what the other side says.
        let from_pbx = dispatcher.slot_at(arrival.from);
        let to_pbx = from_pbx != Some(cookie.slot);
        let between = from_pbx.is_some() && to_pbx;
        if to_pbx {
            // A PBX that is not this dialog's speaks only as its other side.
            if between && arrival.from != cookie.flow {
                return None;
            }
            (decision.next, _) = dispatcher.pbx_of(cookie.slot, family)?;
        } else {
            decision.next = cookie.flow;
        }
        if between {
            self.counters.event(Event::DialogBetweenPbxs);
        }
        plan.record = 0;
        plan.slot = cookie.slot;
        plan.cut = message.cut_first(Kind::Route).ok()??;
        decision.reason = if to_pbx { Reason::DialogToPbx } else { Reason::DialogToPhone };
        Some(())
    }

    /// A request of a PBX that follows no Route of ours: one that starts something, the CANCEL of such a
    /// one, or the ACK of its failure. All go where the Request-URI says (16.5), which is the same for them.
    fn relay(
        &self,
        arrival: &Arrival<'_>,
        message: &Message<'_>,
        slot: u32,
        decision: &mut Decision,
    ) -> Result<(), Refusal> {
        let plan = &mut decision.plan;
        let in_dialog = !plan.to_tag.is_empty();
        let method = message.method();
        if in_dialog && method != Method::Ack {
            return Err(Refusal::new(404, "Not here"));
        }
        let uri = match message.request_uri() {
            Ok(uri) => uri,
            Err(error) => return Err(Refusal::from(&Fault::from(error))),
        };
        if uri.scheme != Scheme::Sip {
            return Err(Refusal::new(416, "Unsupported URI Scheme"));
        }
        // There is no registrar and no name service yet: an address, not one of ours, and of the family that
        // the PBX speaks in.
        let family = Family::of(arrival.from);
        let next = canonical::target(&uri).filter(|to| !self.locals.contains(to));
        let next = next.filter(|to| is_one_machine(to) && Family::of(*to) == family);
        let Some(next) = next else { return Err(Refusal::new(404, "Not Found")) };
        if method == Method::Register {
            return Err(Refusal::with(405, "Method Not Allowed", ALLOW_PBX));
        }
        if method == Method::Options {
            // The shared decision never relays these, so it has not prepared it.
            let Ok(Some(hops)) = message.max_forwards() else {
                return Err(Refusal::new(483, "Too Many Hops"));
            };
            plan.hops = u32::from(hops.value).saturating_sub(1);
            plan.hops_at = hops.digits.at;
            plan.hops_len = hops.digits.end - hops.digits.at;
            let Some(line) = message.index().first(Kind::CallId) else {
                return Err(Refusal::new(400, "Missing Call-ID"));
            };
            let call_id = Span { at: u32::from(line.value), end: u32::from(line.end) };
            (plan.call, _) = cookie::call(&self.keys, message.bytes(), call_id);
            plan.branch = cookie::branch(&self.keys, plan.call, message.bytes(), plan.via.branch);
        }
        // What makes a dialog (12.1, RFC 6665 4.1, RFC 3515 3).
        let makes = matches!(method, Method::Invite | Method::Subscribe | Method::Refer);
        plan.slot = slot;
        plan.cut = Span::default();
        plan.record = u32::from(makes && !in_dialog);
        if plan.record != 0 {
            let digits = Cookie { flow: next, slot, recorded: false }.write(&self.keys, plan.call);
            // In the words of the shared edit, of either family.
            let words = || digits.as_bytes().chunks(8).map(literal);
            plan.cookie.iter_mut().zip(words()).for_each(|(to, word)| *to = word);
            decision.cookie.iter_mut().zip(words()).for_each(|(to, word)| *to = word);
        }
        decision.next = next;
        decision.reason = Reason::DialogToPhone;
        Ok(())
    }

    /// No PBX takes the call, or none could: none has an address that we reach from this side.
    fn no_destination(&self, family: Family, dispatcher: &Dispatcher) -> Refusal {
        // What needs memory carries calls to the other side.
        let across = self.stateful.is_some() && dispatcher.has(family.other());
        let any = dispatcher.has(family) || across;
        if !any && (family == Family::V6 || dispatcher.has(Family::V6)) {
            let warning = format!("Warning: 301 sipline \"No PBX has an {family} address\"\r\n");
            return Refusal::with(488, "Not Acceptable Here", &warning);
        }
        match self.policy.no_destination {
            NoDestination::Unavailable => Refusal::with(
                503,
                "Service Unavailable",
                &format!("Retry-After: {RETRY_AFTER}\r\n"),
            ),
            NoDestination::NotFound => Refusal::new(404, "No destination"),
        }
    }

    /// OPTIONS that the kernel does not answer: for another address of ours, with a user, with demands, or
    /// for somebody else (11).
    fn options(&self, message: &Message<'_>) -> Refusal {
        if !self.asks_us(message) {
            return Refusal::new(403, "Not relaying");
        }
        if message.request_uri().is_ok_and(|uri| uri.user.is_some()) {
            return Refusal::new(404, "Not Found");
        }
        if message.index().has(Kind::Require) {
            return unsupported(message.requires());
        }
        about_us()
    }

    /// Whether the Request-URI names one of our addresses.
    fn asks_us(&self, message: &Message<'_>) -> bool {
        self.is_ours(&message.request_uri().ok())
    }

    fn is_ours(&self, uri: &Option<Uri<'_>>) -> bool {
        let Some(uri) = uri else { return false };
        let host = uri.host.and_then(|host| host.ip());
        let port = uri.port.unwrap_or(5060);
        uri.scheme == Scheme::Sip
            && host.is_some_and(|ip| self.locals.contains(&SocketAddr::new(ip, port)))
    }

    // ---- Responses that the shared decision leaves to the daemon ----------------------------------

    fn up_response(
        &mut self,
        arrival: &Arrival<'_>,
        dispatcher: &mut Dispatcher,
        message: &Message<'_>,
        decision: &Decision,
        out: &mut Vec<Transmit>,
    ) {
        if decision.reason == Reason::NotOurResponse
            && self.response_across(arrival, dispatcher, message, decision, out)
        {
            return;
        }
        let branch = match decision.reason {
            Reason::DaemonResponse => message.slice(decision.plan.via.branch),
            _ => &[],
        };
        if self.pass_on(arrival, self.worker.of_branch(branch)) {
            return;
        }
        if str::from_utf8(branch).ok().and_then(Branch::parse).is_some() {
            let checked = message.check().is_ok();
            let stateful = self.stateful.as_mut().filter(|_| checked);
            let known = stateful.is_some_and(|stateful| {
                let known = stateful.handle_response(arrival.now, message);
                stateful.handle_calls(arrival.now, dispatcher);
                known
            });
            self.counters.event(if known {
                Event::HandledStateful
            } else {
                Event::DroppedResponse
            });
            return;
        }
        let token = Token::from_branch(branch);
        let code = message.status().unwrap_or(0);
        let asked = token.is_some_and(|token| dispatcher.handle_answer(arrival.now, token, code));
        self.counters.event(if asked { Event::ProbeAnswer } else { Event::DroppedResponse });
    }

    // ---- Answers ----------------------------------------------------------------------------------

    fn answer(
        &mut self,
        arrival: &Arrival<'_>,
        message: &Message<'_>,
        refusal: &Refusal,
        out: &mut Vec<Transmit>,
    ) {
        if message.method() == Method::Ack {
            // Never answered (17).
            return self.counters.event(Event::AckAbsorbed);
        }
        let Refusal { code, phrase, headers } = refusal;
        let answer = Answer { code: *code, phrase, headers };
        match reply::build(message, arrival.from, &self.keys, answer) {
            Some((to, bytes)) => {
                self.counters.reply(*code);
                out.push(Transmit { local: arrival.local, to, bytes });
            }
            None => self.counters.event(Event::DroppedMalformed),
        }
    }

    fn refuse(
        &mut self,
        arrival: &Arrival<'_>,
        message: &Message<'_>,
        fault: &Fault,
        out: &mut Vec<Transmit>,
    ) {
        if message.is_request() {
            self.answer(arrival, message, &Refusal::from(fault), out);
        } else {
            self.counters.event(Event::DroppedResponse);
        }
    }

    /// What the scanner refuses: answered if it is a request whose headers could be read as far as an
    /// answer needs them.
    fn malformed(
        &mut self,
        arrival: &Arrival<'_>,
        bytes: &[u8],
        index: &mut Index,
        error: scan::Error,
        out: &mut Vec<Transmit>,
    ) {
        let mut readable = match error {
            // Another version has the headers that an answer copies all the same (21.5.6).
            scan::Error::Version => as_our_version(bytes),
            // Counted as what it is.
            scan::Error::StartLine => return,
            scan::Error::TooLong => None,
            // Up to the line that is wrong.
            _ => index.lines().last().map(|line| {
                let mut head = bytes.get(..line.end as usize).unwrap_or_default().to_vec();
                head.extend_from_slice(b"\r\n\r\n");
                head
            }),
        };
        let message = readable.as_mut().and_then(|text| Message::parse_folded(text, index).ok());
        match message {
            Some(message) => {
                let fault = Fault::from(Error::from(error));
                self.refuse(arrival, &message, &fault, out);
            }
            None => self.counters.event(Event::DroppedMalformed),
        }
    }
}

/// An answer of our own, most of them refusals.
#[derive(Clone, Debug, Eq, PartialEq)]
struct Refusal {
    code: u16,
    phrase: String,
    /// Header lines of its own, each with its CR LF.
    headers: String,
}

impl Refusal {
    fn new(code: u16, phrase: &str) -> Self {
        Self::with(code, phrase, "")
    }

    fn with(code: u16, phrase: &str, headers: &str) -> Self {
        Self { code, phrase: phrase.to_owned(), headers: headers.to_owned() }
    }
}

impl From<&Fault> for Refusal {
    fn from(fault: &Fault) -> Self {
        Self::new(fault.code, &fault.phrase)
    }
}

/// The 200 of an OPTIONS.
fn about_us() -> Refusal {
    // The end of the kernel's own answer, but for the length that every answer of ours ends with.
    let about = str::from_utf8(edit::ABOUT_US).unwrap_or_default();
    let about = about.strip_suffix("Content-Length: 0\r\n\r\n").unwrap_or_default();
    Refusal::with(200, "OK", about)
}

/// 420: we know no extension that would have to be known (8.2.2.3, 16.3 step 5).
fn unsupported(tags: OptionTags<'_>) -> Refusal {
    // A tag that is none ends the list; those before it are named.
    let tags: Vec<_> = tags.map_while(Result::ok).collect();
    Refusal::with(420, "Bad Extension", &format!("Unsupported: {}\r\n", tags.join(", ")))
}

/// The new front of what goes on, by the code that the kernel has: of the text as it came, or with what the plan changes in
/// it.
fn edited<A: Address>(
    (came, text): (&[u8], &[u8]),
    index: &Index,
    packet: Packet<A>,
    local: &Local<A>,
    plan: &Plan<A>,
    reason: Reason,
    sink: &mut Growing<'_>,
) -> Front {
    match reason {
        Reason::OptionsAnswered => edit::options_answer(came, index, packet, plan, sink),
        Reason::ResponseForwarded => edit::response(came, plan, sink),
        _ => edit::request(text, index, packet, local, plan, sink),
    }
}

/// Where the answer to a request that the shared decision answers goes (18.2.2, RFC 3581 4).
fn answer_port(bytes: &[u8], plan: &Plan, from: SocketAddr) -> SocketAddr {
    // An `rport` is marked by its place, also without a value.
    if plan.via.rport.at != 0 {
        return from;
    }
    let sent_by = bytes.get(plan.via.sent_by.at as usize..plan.via.sent_by.end as usize);
    let text = sent_by.and_then(|text| str::from_utf8(text).ok()).unwrap_or_default();
    let port = text.rsplit_once(':').and_then(|(_, port)| port.parse().ok()).unwrap_or(5060);
    SocketAddr::new(from.ip(), port)
}

/// The answer to a PBX that asks for a user in the form that [`qualify::asked`] reads; none to others.
fn answer_asked<A: Address>(
    bytes: &[u8],
    index: &Index,
    packet: Packet<A>,
    local: &Local<A>,
    plan: &Plan<A>,
    there: bool,
    sink: &mut Growing<'_>,
) -> Option<Front> {
    qualify::asked(bytes, index, packet, local, plan)?;
    Some(qualify::answer(bytes, index, packet, plan, there, sink))
}

fn request_uri<'a>(bytes: &'a [u8], index: &Index) -> Option<Uri<'a>> {
    let text = bytes.get(index.uri as usize..index.uri_end as usize)?;
    Uri::parse(str::from_utf8(text).ok()?).ok()
}

/// The message with our version in its request line.
fn as_our_version(bytes: &[u8]) -> Option<Vec<u8>> {
    let end = bytes.iter().position(|byte| *byte == b'\r')?;
    let start = bytes.get(..end)?.iter().rposition(|byte| *byte == b' ')?;
    let (head, tail) = (bytes.get(..start)?, bytes.get(end..)?);
    Some([head, b" SIP/2.0", tail].concat())
}

/// Whether an address can be that of one host.
fn is_one_machine(address: &SocketAddr) -> bool {
    match address.ip() {
        IpAddr::V4(ip) => !ip.is_unspecified() && !ip.is_multicast() && !ip.is_broadcast(),
        IpAddr::V6(ip) => !ip.is_unspecified() && !ip.is_multicast(),
    }
}

/// A front that grows as it is written.
struct Growing<'a>(&'a mut Vec<u8>);

impl Sink for Growing<'_> {
    fn put(&mut self, at: u32, word: u64) {
        let at = at as usize;
        if self.0.len() < at + 8 {
            // In steps of what most fronts need: what is behind the end is not sent.
            self.0.resize((at + 8).next_multiple_of(256), 0);
        }
        if let Some(place) = self.0.get_mut(at..at + 8) {
            place.copy_from_slice(&word.to_le_bytes());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::AdminState;
    use crate::core::dispatcher::Command;
    use crate::core::registrar::Domains;
    use crate::core::stateful;
    use crate::core::testing::{Setup, World, damaged, damages, header, response};
    use std::time::Duration;

    const US: &str = "10.10.0.1:5060";
    const PHONE: &str = "10.10.1.2:5062";
    const STRANGER: &str = "203.0.113.5:5060";
    const PBX1: &str = "10.10.2.2:5060";
    const PBX2: &str = "10.10.3.2:5060";

    /// A proxy with two PBXs.
    fn world() -> World {
        world_with(NoDestination::Unavailable)
    }

    fn world_with(no_destination: NoDestination) -> World {
        World::new(&Setup {
            locals: &[US, "10.10.0.9:5080", "[2001:db8::1]:5060"],
            trusted: &["10.10.1.0/24", "2001:db8::/32"],
            denied: &["198.51.100.0/24"],
            pbxs: &[("pbx1", PBX1), ("pbx2", PBX2)],
            no_destination,
        })
    }

    /// A request of the phone; `extra` are header lines.
    fn request(method: &str, uri: &str, to: &str, extra: &str) -> String {
        format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP 10.10.1.2:5062;rport;branch=z9hG4bKp{}\r\n\
             Max-Forwards: 70\r\nFrom: \"Alice\" <sip:alice@10.10.1.2>;tag=alice\r\nTo: {to}\r\n\
             Call-ID: call-1@phone\r\nCSeq: 1 {method}\r\n{extra}Content-Length: 0\r\n\r\n",
            if method == "BYE" { "2" } else { "1" }
        )
    }

    fn invite() -> String {
        request(
            "INVITE",
            "sip:bob@10.10.0.1",
            "<sip:bob@10.10.0.1>",
            "Contact: <sip:alice@10.10.1.2:5062>\r\n",
        )
    }

    // ---- Calls ---------------------------------------------------------------------------------

    #[test]
    fn a_whole_call() {
        let mut w = world();
        let (pbx, sent) = w.say(PHONE, &invite());
        assert!([PBX1, PBX2].contains(&pbx.as_str()));
        assert_eq!(header(&sent, "Max-Forwards"), ["69"]);
        let vias = header(&sent, "Via");
        assert!(vias[0].starts_with("SIP/2.0/UDP 10.10.0.1:5060;branch=z9hG4bKslk"), "{}", vias[0]);
        assert_eq!(
            vias[1],
            "SIP/2.0/UDP 10.10.1.2:5062;rport=5062;received=10.10.1.2;branch=z9hG4bKp1"
        );
        let route = header(&sent, "Record-Route")[0].to_owned();
        assert!(route.starts_with("<sip:10.10.0.1:5060;lr;sl="), "{route}");

        // A repeated INVITE goes to the same PBX, byte by byte the same.
        assert_eq!(w.say(PHONE, &invite()), (pbx.clone(), sent.clone()));

        let (to, answer) = w.say(&pbx, &response(&sent, "200 OK", "bob"));
        assert_eq!(to, PHONE);
        assert_eq!(header(&answer, "Via").len(), 1);
        assert_eq!(header(&answer, "Record-Route"), [&route]);

        let routes = format!("Route: {route}\r\n");
        let ack = request("ACK", "sip:bob@10.10.2.2", "<sip:bob@10.10.0.1>;tag=bob", &routes);
        let (to, sent) = w.say(PHONE, &ack);
        assert_eq!(to, pbx);
        assert_eq!(header(&sent, "Route"), [""; 0]);
        assert_eq!(header(&sent, "Record-Route"), [""; 0]);

        let bye = request("BYE", "sip:bob@10.10.2.2", "<sip:bob@10.10.0.1>;tag=bob", &routes);
        let (to, sent) = w.say(PHONE, &bye);
        assert_eq!(to, pbx);
        let (to, _) = w.say(&pbx, &response(&sent, "200 OK", "bob"));
        assert_eq!(to, PHONE);
        assert_eq!(w.proxy.placed().iter().sum::<u64>(), 1);
    }

    #[test]
    fn the_pbx_hangs_up() {
        let mut w = world();
        let (pbx, sent) = w.say(PHONE, &invite());
        let route = header(&sent, "Record-Route")[0].to_owned();
        let bye = format!(
            "BYE sip:alice@10.10.1.2:9 SIP/2.0\r\nVia: SIP/2.0/UDP {pbx};branch=z9hG4bKb1\r\n\
             Max-Forwards: 70\r\nRoute: {route}\r\nFrom: <sip:bob@10.10.0.1>;tag=bob\r\n\
             To: <sip:alice@10.10.1.2>;tag=alice\r\nCall-ID: call-1@phone\r\nCSeq: 9 BYE\r\n\r\n"
        );
        // To where the phone really is (RFC 5626 5.2), whatever its Contact says.
        let (to, sent) = w.say(&pbx, &bye);
        assert_eq!(to, PHONE);
        let (to, _) = w.say(PHONE, &response(&sent, "200 OK", ""));
        assert_eq!(to, pbx);
        // The other PBX cannot speak in this dialog, and nobody can in another call.
        let other = if pbx == PBX1 { PBX2 } else { PBX1 };
        let (_, answer) = w.say(other, &bye.replace(&pbx, other));
        assert!(answer.starts_with("SIP/2.0 404 Not here"), "{answer}");
        let (_, answer) = w.say(&pbx, &bye.replace("call-1", "call-2"));
        assert!(answer.starts_with("SIP/2.0 404 Not here"), "{answer}");
    }

    #[test]
    fn calls_go_around_and_failures_are_acknowledged_where_the_invite_went() {
        let mut w = world();
        let mut count = std::collections::BTreeMap::new();
        for i in 0..10 {
            let invite = invite().replace("call-1", &format!("call-{i}"));
            let (pbx, sent) = w.say(PHONE, &invite);
            *count.entry(pbx.clone()).or_insert(0) += 1;
            w.say(&pbx, &response(&sent, "486 Busy Here", "bob"));
            let ack = request("ACK", "sip:bob@10.10.0.1", "<sip:bob@10.10.0.1>;tag=bob", "")
                .replace("call-1", &format!("call-{i}"));
            let (to, acked) = w.say(PHONE, &ack);
            assert_eq!(to, pbx);
            assert_eq!(header(&acked, "Via")[0], header(&sent, "Via")[0], "one branch (17.1.1.3)");
            let cancel = request("CANCEL", "sip:bob@10.10.0.1", "<sip:bob@10.10.0.1>", "")
                .replace("call-1", &format!("call-{i}"));
            assert_eq!(w.say(PHONE, &cancel).0, pbx);
        }
        assert_eq!(count.into_values().collect::<Vec<_>>(), [5, 5]);
    }

    #[test]
    fn what_the_kernel_steered_is_followed() {
        let mut w = world();
        let slot = w.dispatcher.slot_at(PBX2.parse().unwrap());
        w.steered.set(slot);
        for _ in 0..4 {
            assert_eq!(w.say(PHONE, &invite()).0, PBX2);
        }
        assert_eq!(w.proxy.placed().iter().sum::<u64>(), 0, "the kernel has counted it");
    }

    #[test]
    fn a_dead_pbx_gets_no_copy_of_an_invite() {
        let mut w = world();
        let (pbx, _) = w.say(PHONE, &invite());
        let what = crate::core::dispatcher::Unreachable::Port;
        w.dispatcher.handle_unreachable(w.now, pbx.parse().unwrap(), what);
        let (other, _) = w.say(PHONE, &invite());
        assert_ne!(other, pbx);
    }

    #[test]
    fn nobody_takes_calls() {
        let mut w = world();
        w.order("pbx1", AdminState::Disabled);
        w.order("pbx2", AdminState::Disabled);
        let (to, answer) = w.say(PHONE, &invite());
        assert_eq!(to, PHONE);
        assert!(answer.starts_with("SIP/2.0 503 Service Unavailable\r\n"), "{answer}");
        assert_eq!(header(&answer, "Retry-After"), ["5"]);
        // The ACK of our own answer ends here.
        w.silence(PHONE, &request("ACK", "sip:bob@10.10.0.1", "<sip:bob@10.10.0.1>;tag=x", ""));
        let mut w = world_with(NoDestination::NotFound);
        w.dispatcher.set_accepting(false);
        assert_eq!(w.status(PHONE, &invite()), "SIP/2.0 404 No destination");
    }

    #[test]
    fn a_dialog_whose_pbx_is_gone_ends() {
        let mut w = world();
        let (pbx, sent) = w.say(PHONE, &invite());
        let route = format!("Route: {}\r\n", header(&sent, "Record-Route")[0]);
        w.dispatcher.remove(if pbx == PBX1 { "pbx1" } else { "pbx2" }).unwrap();
        let bye = request("BYE", "sip:bob@10.10.2.2", "<sip:b@c>;tag=bob", &route);
        assert_eq!(w.status(PHONE, &bye), "SIP/2.0 481 Call/Transaction Does Not Exist");
        let ack = request("ACK", "sip:bob@10.10.2.2", "<sip:b@c>;tag=bob", &route);
        w.silence(PHONE, &ack);
    }

    // ---- Calls of PBXs -------------------------------------------------------------------------

    fn from_pbx(method: &str, uri: &str, to: &str) -> String {
        request(method, uri, to, "")
            .replace("10.10.1.2:5062;rport", PBX1)
            .replace("<sip:alice@10.10.1.2>", "<sip:bob@10.10.0.1>")
            .replace("tag=alice", "tag=bob")
    }

    #[test]
    fn a_pbx_calls_a_phone() {
        let mut w = world();
        let (to, sent) =
            w.say(PBX1, &from_pbx("INVITE", "sip:alice@10.10.1.2:5062;ob", "<sip:alice@x>"));
        assert_eq!(to, PHONE);
        assert_eq!(header(&sent, "Max-Forwards"), ["69"]);
        let route = format!("Route: {}\r\n", header(&sent, "Record-Route")[0]);
        let (to, answer) = w.say(PHONE, &response(&sent, "486 Busy Here", "alice"));
        assert_eq!(to, PBX1);
        assert_eq!(header(&answer, "Via").len(), 1);
        // CANCEL and the ACK of the failure go the same way, with the same branch.
        for (method, to_header) in [("CANCEL", "<sip:alice@x>"), ("ACK", "<sip:alice@x>;tag=alice")]
        {
            let (to, again) =
                w.say(PBX1, &from_pbx(method, "sip:alice@10.10.1.2:5062;ob", to_header));
            assert_eq!(to, PHONE);
            assert_eq!(header(&again, "Via")[0], header(&sent, "Via")[0]);
            assert_eq!(header(&again, "Record-Route"), [""; 0]);
        }
        // In the dialog, both ways.
        let ack = from_pbx("ACK", "sip:alice@10.10.1.2:5062", "<sip:alice@x>;tag=alice")
            .replace("Max-Forwards", &format!("{route}Max-Forwards"));
        assert_eq!(w.say(PBX1, &ack).0, PHONE);
        let bye = request("BYE", "sip:bob@10.10.2.2", "<sip:bob@10.10.0.1>;tag=bob", &route);
        assert_eq!(w.say(PHONE, &bye).0, PBX1);
        assert_eq!(w.event(Event::RelayedFromPbx), 3);
    }

    #[test]
    fn where_a_pbx_cannot_call() {
        let mut w = world();
        for (uri, status) in [
            ("sip:alice@10.10.0.1", "404 Not Found"),
            ("sip:alice@phone.example", "404 Not Found"),
            ("sip:alice@10.10.1.2;transport=tcp", "404 Not Found"),
            ("sip:alice@0.0.0.0", "404 Not Found"),
            ("sip:alice@224.0.1.75", "404 Not Found"),
            ("tel:+15551234", "416 Unsupported URI Scheme"),
        ] {
            let answer = w.status(PBX1, &from_pbx("INVITE", uri, "<sip:a@b>"));
            assert_eq!(answer, format!("SIP/2.0 {status}"), "{uri}");
            w.silence(PBX1, &from_pbx("ACK", uri, "<sip:a@b>;tag=x"));
        }
        let register = from_pbx("REGISTER", "sip:10.10.1.2", "<sip:a@b>");
        assert_eq!(w.status(PBX1, &register), "SIP/2.0 405 Method Not Allowed");
        let bye = from_pbx("BYE", "sip:alice@10.10.1.2", "<sip:a@b>;tag=x");
        assert_eq!(w.status(PBX1, &bye), "SIP/2.0 404 Not here");
    }

    #[test]
    fn a_pbx_asks_a_phone_through_us() {
        let mut w = world();
        let options = from_pbx("OPTIONS", "sip:alice@10.10.1.2:5062", "<sip:a@b>");
        let (to, sent) = w.say(PBX1, &options);
        assert_eq!(to, PHONE);
        assert_eq!(header(&sent, "Max-Forwards"), ["69"]);
        assert_eq!(header(&sent, "Record-Route"), [""; 0]);
        assert_eq!(w.say(PHONE, &response(&sent, "200 OK", "x")).0, PBX1);
    }

    #[test]
    fn one_pbx_calls_the_other() {
        let mut w = world();
        let (to, sent) = w.say(PBX1, &from_pbx("INVITE", "sip:x@10.10.3.2", "<sip:x@10.10.3.2>"));
        assert_eq!(to, PBX2);
        let route = format!("Route: {}\r\n", header(&sent, "Record-Route")[0]);
        assert_eq!(w.say(PBX2, &response(&sent, "200 OK", "x")).0, PBX1);
        let bye = request("BYE", "sip:bob@10.10.2.2", "<sip:bob@10.10.0.1>;tag=bob", &route)
            .replace("10.10.1.2:5062;rport", PBX2)
            .replace("tag=alice", "tag=x");
        assert_eq!(w.say(PBX2, &bye).0, PBX1);
        assert_eq!(w.event(Event::DialogBetweenPbxs), 1);
        let bye = from_pbx("BYE", "sip:x@10.10.3.2", "<sip:x@10.10.3.2>;tag=x")
            .replace("Max-Forwards", &format!("{route}Max-Forwards"));
        assert_eq!(w.say(PBX1, &bye).0, PBX2);
    }

    // ---- Rare forms ----------------------------------------------------------------------------

    #[test]
    fn rare_forms_are_routed_like_the_usual_one() {
        let usual = world().say(PHONE, &invite());
        let via = "Via: SIP/2.0/UDP 10.10.1.2:5062;rport;branch=z9hG4bKp1";
        let mut rewritten = 0;
        for (old, new) in [
            ("To: <sip:bob", "To:\r\n <sip:bob"),
            (via, "Via: SIP / 2.0 / UDP\r\n\t10.10.1.2 : 5062 ; rport ; branch = z9hG4bKp1"),
            (via, "Via: SIP/2.0/UDP 10.10.1.2:5062;rport=1;received=192.0.2.66;branch=z9hG4bKp1"),
            (via, "Via: SIP/2.0/UDP 10.10.1.2:5062;maddr=192.0.2.66;rport;branch=z9hG4bKp1"),
            ("CSeq: 1 INVITE", "CSeq:\t1 \t INVITE "),
            ("Max-Forwards: 70", "Max-Forwards: 0070"),
            ("Max-Forwards: 70", "Max-Forwards: 255"),
            ("Max-Forwards: 70", "Max-Forwards: 70\r\nRoute: <sip:203.0.113.9;lr>"),
            ("Content-Length: 0\r\n\r\n", "Content-Length: 0\r\n\r\nlonger than it says"),
        ] {
            let rare = invite().replace(old, new);
            assert_ne!(rare, invite(), "{new}");
            let mut w = world();
            let (to, sent) = w.say(PHONE, &rare);
            assert_eq!(to, usual.0, "{new}");
            rewritten += w.event(Event::Rewritten);
            // The PBX sees the same message; the order of the Via's parameters is its sender's.
            for name in
                ["From", "To", "CSeq", "Call-ID", "Max-Forwards", "Record-Route", "Content-Length"]
            {
                assert_eq!(header(&sent, name), header(&usual.1, name), "{new}");
            }
            let (vias, usual_vias) = (header(&sent, "Via"), header(&usual.1, "Via"));
            assert_eq!(vias[0], usual_vias[0], "{new}");
            assert_eq!(vias[1], usual_vias[1], "{new}");
            assert_eq!(header(&sent, "Route"), [""; 0], "{new}");
            assert!(sent.ends_with("\r\n\r\n"), "{new}");
        }
        // Which of them the quick path reads is its own affair, but not all.
        assert!(rewritten >= 8, "{rewritten}");
    }

    /// RFC 3261 16.3: a proxy refuses nothing for a header that it does not need.
    #[test]
    fn from_is_the_business_of_the_other_end() {
        let usual = world().say(PHONE, &invite());
        for (old, new) in [
            (";tag=alice", ""),
            (";tag=alice", ";tag="),
            (";tag=alice", " ; tag = alice "),
            ("\"Alice\"", "\"Alice"),
        ] {
            let (to, sent) = world().say(PHONE, &invite().replace(old, new));
            assert_eq!((to, sent), (usual.0.clone(), usual.1.replace(old, new)), "{new}");
        }
    }

    #[test]
    fn quoted_strings_among_parameters_are_kept() {
        let mut w = world();
        let text = invite()
            .replace(";tag=alice", ";mood=\"a;tag=\\\"b, c\";tag=alice")
            .replace("branch=z9hG4bKp1", "branch=z9hG4bKp1;who=\"me, <you>\"");
        let (pbx, sent) = w.say(PHONE, &text);
        assert!(header(&sent, "From")[0].ends_with(";mood=\"a;tag=\\\"b, c\";tag=alice"), "{sent}");
        assert!(header(&sent, "Via")[1].ends_with(";who=\"me, <you>\""), "{sent}");
        let route = header(&sent, "Record-Route")[0].to_owned();
        let (to, answer) = w.say(&pbx, &response(&sent, "200 OK", "bob"));
        assert_eq!(to, PHONE);
        assert_eq!(header(&answer, "Via"), header(&sent, "Via")[1..]);
        // The tag was read right: the cookie is good for it.
        let bye = request(
            "BYE",
            "sip:bob@10.10.2.2",
            "<sip:b@c>;tag=bob",
            &format!("Route: {route}\r\n"),
        );
        assert_eq!(w.say(PHONE, &bye).0, pbx);
    }

    #[test]
    fn a_missing_max_forwards_is_ten() {
        let mut w = world();
        let (_, sent) = w.say(PHONE, &invite().replace("Max-Forwards: 70\r\n", ""));
        assert_eq!(header(&sent, "Max-Forwards"), ["10"]);
    }

    #[test]
    fn vias_joined_by_commas() {
        let mut w = world();
        let joined = invite().replace(
            "branch=z9hG4bKp1\r\n",
            "branch=z9hG4bKp1, SIP/2.0/TCP far.example;branch=z9hG4bKfar\r\n",
        );
        let (pbx, sent) = w.say(PHONE, &joined);
        assert_eq!(header(&sent, "Via").len(), 3);
        // A PBX may join them again in its response.
        let answer = response(&sent, "200 OK", "bob");
        let lines: Vec<_> = header(&answer, "Via").iter().map(|v| v.to_string()).collect();
        let all: String = lines.iter().map(|v| format!("Via: {v}\r\n")).collect();
        let answer = answer.replace(&all, &format!("v: {}\r\n", lines.join(" ,\r\n  ")));
        let (to, sent) = w.say(&pbx, &answer);
        assert_eq!(to, PHONE);
        assert_eq!(header(&sent, "Via"), lines[1..]);
    }

    #[test]
    fn an_old_branch_makes_transactions_of_its_own() {
        let mut w = world();
        let old = invite().replace(";branch=z9hG4bKp1", "");
        let (pbx, first) = w.say(PHONE, &old);
        assert_eq!(w.say(PHONE, &old).1, first, "the same for a repetition");
        let (to, answer) = w.say(&pbx, &response(&first, "200 OK", "bob"));
        assert_eq!(to, PHONE);
        assert!(header(&answer, "Via")[0].contains(";branch=z9hG4bKold"));
        let next = old.replace("CSeq: 1", "CSeq: 2");
        let (_, second) = w.say(PHONE, &next);
        assert_ne!(header(&first, "Via")[0], header(&second, "Via")[0]);
    }

    #[test]
    fn more_routes_and_other_writings_of_ours() {
        let mut w = world();
        let (pbx, sent) = w.say(PHONE, &invite());
        let ours = header(&sent, "Record-Route")[0].to_owned();
        let cookie = ours.split("sl=").nth(1).unwrap().trim_end_matches('>').to_owned();
        let bye = |routes: &str| request("BYE", "sip:bob@10.10.2.2", "<sip:b@c>;tag=bob", routes);
        for routes in [
            format!("Route: {ours}\r\nRoute: <sip:far.example;lr>\r\n"),
            format!("Route: {ours} , <sip:far.example;lr>\r\n"),
            format!("Route: <SIP:10.10.0.1;sl={cookie};lr=on>,<sip:far.example;lr>\r\n"),
        ] {
            let (to, sent) = w.say(PHONE, &bye(&routes));
            assert_eq!(to, pbx, "{routes}");
            assert_eq!(header(&sent, "Route"), ["<sip:far.example;lr>"], "{routes}");
        }
        for route in [
            format!("Route: \"us\" <sip:10.10.0.1:5060;lr;sl={cookie}>\r\n"),
            format!("Route:\r\n <sip:10.10.0.1;lr;sl={}>\r\n", cookie.to_uppercase()),
        ] {
            let (to, sent) = w.say(PHONE, &bye(&route));
            assert_eq!(to, pbx, "{route}");
            assert_eq!(header(&sent, "Route"), [""; 0], "{route}");
        }
        // Not ours, or not signed by us: nobody is relayed to where he likes (RFC 3261 26.2).
        let forged = format!("{}{}", if cookie.starts_with('0') { '1' } else { '0' }, &cookie[1..]);
        for route in [
            "Route: <sip:203.0.113.9;lr>\r\n".to_owned(),
            format!("Route: <sip:203.0.113.9;lr>\r\nRoute: {ours}\r\n"),
            format!("Route: <sip:10.10.0.1:5060;lr;sl={forged}>\r\n"),
            "Route: <sip:10.10.0.1:5060;lr>\r\n".to_owned(),
            String::new(),
        ] {
            assert_eq!(w.status(PHONE, &bye(&route)), "SIP/2.0 404 Not here", "{route}");
            let ack = bye(&route).replace("BYE", "ACK");
            if !route.is_empty() {
                w.silence(PHONE, &ack);
            }
        }
    }

    #[test]
    fn a_strict_router_is_undone() {
        let mut w = world();
        let (pbx, sent) = w.say(PHONE, &invite());
        let uri = header(&sent, "Record-Route")[0].trim_matches(['<', '>']).to_owned();
        let route = "Route: <sip:bob@10.10.2.2:5060>\r\n";
        let bye = request("BYE", &uri, "<sip:b@c>;tag=bob", route);
        let (to, sent) = w.say(PHONE, &bye);
        assert_eq!(to, pbx);
        assert!(sent.starts_with("BYE sip:bob@10.10.2.2:5060 SIP/2.0\r\n"), "{sent}");
        assert_eq!(header(&sent, "Route"), [""; 0]);
    }

    #[test]
    fn the_body_stays_as_it_is() {
        let mut w = world();
        let body = "v=0\r\n folded: \r\n\r\nVia: no header\r\n\0\u{7f}";
        let with = |headers: &str| {
            invite().replace("Content-Length: 0\r\n\r\n", &format!("{headers}\r\n{body}"))
        };
        for headers in [
            format!("Content-Length: {}\r\n", body.len()),
            format!("l :\r\n  {}\r\n", body.len()),
            "Subject: no length\r\n and folded\r\n".to_owned(),
        ] {
            let (_, sent) = w.say(PHONE, &with(&headers));
            assert_eq!(sent.split_once("\r\n\r\n").unwrap().1, body, "{headers}");
        }
    }

    // ---- What is refused -----------------------------------------------------------------------

    #[test]
    fn strangers_are_not_relayed() {
        let mut w = world();
        let invite = invite().replace("10.10.1.2:5062", STRANGER);
        assert_eq!(w.status(STRANGER, &invite), "SIP/2.0 403 Not relaying");
        let ack = request("ACK", "sip:bob@10.10.0.1", "<sip:b@c>;tag=x", "");
        w.silence(STRANGER, &ack);
        let cancel = request("CANCEL", "sip:bob@10.10.0.1", "<sip:b@c>", "");
        assert_eq!(w.status(STRANGER, &cancel), "SIP/2.0 481 Call/Transaction Does Not Exist");
    }

    #[test]
    fn denied_networks_hear_nothing() {
        let mut w = world();
        w.silence("198.51.100.7:5060", &invite());
        assert_eq!(w.hear("198.51.100.7:5060", 0, b"\r\n\r\n"), []);
        assert_eq!(w.proxy.counters().of_reason(Reason::Denied), 2);
    }

    #[test]
    fn who_is_banned_hears_nothing_until_it_ends() {
        let mut w = world();
        let net = "10.10.1.2/32".parse().unwrap();
        w.proxy.handle_ban(bans::Command::Ban(net));
        w.silence(PHONE, &invite());
        assert_eq!(w.hear(PHONE, 0, b"\r\n\r\n"), []);
        assert_eq!((w.reason(Reason::Banned), w.reason(Reason::Denied)), (2, 0));
        // A new configuration knows nothing of bans, and ends none.
        let policy = world().proxy.policy().clone();
        w.proxy.set_policy(policy);
        w.silence(PHONE, &invite());
        w.proxy.handle_ban(bans::Command::Lift(net));
        assert_eq!(w.say(PHONE, &invite()).0, PBX2);
    }

    #[test]
    fn scanners_are_noticed_and_hear_nothing() {
        let mut w = world();
        let scan = |text: String| text.replace("CSeq:", "user-agent: My Friendly-Scanner\r\nCSeq:");
        let from = |text: String| text.replace("10.10.1.2:5062", STRANGER);
        w.silence(STRANGER, &scan(from(invite())));
        let options = from(request("OPTIONS", "sip:100@10.10.0.1", "<sip:100@10.10.0.1>", ""));
        w.silence(STRANGER, &scan(options));
        let seen = Scanner {
            from: STRANGER.parse::<SocketAddr>().unwrap().ip(),
            agent: "My Friendly-Scanner".into(),
        };
        assert_eq!(w.proxy.take_scanners(), [seen.clone(), seen]);
        assert_eq!(w.event(Event::ScannerDropped), 2);
        // How we are may be asked by all, as in the kernel; who is trusted is nothing else; others are named otherwise.
        let options = from(request("OPTIONS", "sip:10.10.0.1", "<sip:10.10.0.1>", ""));
        assert_eq!(w.status(STRANGER, &scan(options)), "SIP/2.0 200 OK");
        assert_eq!(w.say(PHONE, &scan(invite())).0, PBX2);
        let phone = from(invite())
            .replace("CSeq:", "User-Agent: Phone\r\nX-Not: friendly-scanner\r\nCSeq:");
        assert_eq!(w.status(STRANGER, &phone), "SIP/2.0 403 Not relaying");
        assert_eq!(w.proxy.take_scanners(), []);
        // They are bounded.
        for _ in 0..2 * MAX_SCANNERS {
            w.silence(STRANGER, &scan(from(invite())));
        }
        assert_eq!(w.proxy.take_scanners().len(), MAX_SCANNERS);
    }

    #[test]
    fn strangers_send_only_so_much() {
        let mut w = world();
        let (stranger, registered) = (gate::Rate::new(10, 4), gate::Rate::new(100, 100));
        let rates = Some(gate::Rules { stranger, registered });
        let policy = Policy { rates, ..w.proxy.policy().clone() };
        w.proxy.set_policy(policy);
        let options = |from: &str| {
            request("OPTIONS", "sip:10.10.0.1", "<sip:10.10.0.1>", "")
                .replace("10.10.1.2:5062", from)
        };
        let served = |w: &mut World, from: &str, text: &str| {
            (0..200).filter(|_| !w.hear(from, 0, text.as_bytes()).is_empty()).count()
        };
        // It is the address that counts, whatever is sent.
        assert_eq!(served(&mut w, STRANGER, &options(STRANGER)), 4);
        assert_eq!(served(&mut w, "203.0.113.5:9", "\r\n\r\n"), 0);
        assert_eq!(w.reason(Reason::RateStranger), 396);
        w.now += Duration::from_millis(199);
        assert_eq!(served(&mut w, "203.0.113.5:9", "\r\n\r\n"), 2);
        // Nobody asks PBXs and who is trusted.
        for from in [PBX1, PHONE] {
            assert_eq!(served(&mut w, from, &options(from)), 200);
        }
        assert_eq!(w.hear(STRANGER, 0, b""), []);
        assert_eq!(w.reason(Reason::EmptyDatagram), 1);
        // Somebody registers from there, and his time is over.
        let from = STRANGER.parse::<SocketAddr>().unwrap().ip();
        let until = w.now + Duration::from_secs(60);
        w.proxy.gate_mut().registered.learn(from.into(), until);
        w.now += Duration::from_secs(30);
        assert_eq!(served(&mut w, STRANGER, &options(STRANGER)), 100);
        assert_eq!(w.reason(Reason::RateRegistered), 100);
        w.now = until;
        w.proxy.gate_mut().registered.handle_timeout(until);
        assert_eq!(served(&mut w, STRANGER, &options(STRANGER)), 4);
    }

    #[test]
    fn every_refusal_has_its_words() {
        let mut w = world();
        let mut refused = |old: &str, new: &str, status: &str| {
            let text = invite().replace(old, new);
            assert_ne!(text, invite(), "{new}");
            let (to, answer) = w.say(PHONE, &text);
            let first = answer.lines().next().unwrap();
            assert_eq!(to, PHONE, "{new}");
            assert!(first.starts_with(&format!("SIP/2.0 {status}")), "{first} for {new}");
            // What is refused as INVITE is never answered as ACK.
            let ack = text.replace("INVITE", "ACK");
            assert!(w.hear(PHONE, 0, ack.as_bytes()).len() <= 1);
            for transmit in w.hear(PHONE, 0, ack.as_bytes()) {
                assert!(!transmit.bytes.starts_with(b"SIP/2.0"), "{new}");
            }
        };
        refused("Max-Forwards: 70", "Max-Forwards: 0", "483 Too Many Hops");
        refused("Max-Forwards: 70", "Max-Forwards: 000", "483 Too Many Hops");
        refused("Max-Forwards: 70", "Max-Forwards: many", "483 Too Many Hops");
        refused("Max-Forwards: 70", "Max-Forwards: 256", "483 Too Many Hops");
        refused(
            "Max-Forwards: 70",
            "Max-Forwards: 70\r\nMax-Forwards: 70",
            "400 Duplicate Max-Forwards",
        );
        refused("CSeq: 1 INVITE", "CSeq: 1 BYE", "400 CSeq Method Differs");
        refused("CSeq: 1 INVITE", "CSeq: one INVITE", "400 Bad CSeq");
        refused("CSeq: 1 INVITE", "CSeq: 2147483648 INVITE", "400 Bad CSeq");
        refused("CSeq: 1 INVITE", "CSeq: 1INVITE", "400 Bad CSeq");
        refused("CSeq: 1 INVITE", "CSeq: 1 INVITE\r\nCSeq: 1 INVITE", "400 Duplicate CSeq");
        refused("To: <sip:bob@10.10.0.1>", "To: \"Bob <sip:bob@10.10.0.1>", "400 Bad To");
        refused("Call-ID: call-1@phone", "Call-ID: call 1", "400 Bad Call-ID");
        refused("Content-Length: 0", "Content-Length: 5", "400 Body Shorter Than Content-Length");
        refused("Content-Length: 0", "Content-Length: -5", "400 Bad Content-Length");
        refused("Via: SIP/2.0/UDP", "Via: SIP/2.0/TCP", "400 Via Transport Is Not UDP");
        refused("Contact: ", "Bad Header: ", "400 Bad Header Name");
        refused("\r\n\r\n", "\r\n", "400 Headers Not Terminated");
        refused("bob@10.10.0.1 SIP/2.0", "bob@10.10.0.1 SIP/3.0", "505 Version Not Supported");
        refused("Contact: ", "Proxy-Require: foo,\r\n bar\r\nContact: ", "420 Bad Extension");
    }

    #[test]
    fn an_unknown_extension_is_named() {
        let mut w = world();
        let text =
            invite().replace("Contact", "Proxy-Require: foo\r\nProxy-Require: bar\r\nContact");
        let (_, answer) = w.say(PHONE, &text);
        assert_eq!(header(&answer, "Unsupported"), ["foo, bar"]);
        // There is no way to refuse a CANCEL or an ACK: they go on without it.
        let (pbx, _) = w.say(PHONE, &invite());
        let cancel = request("CANCEL", "sip:bob@10.10.0.1", "<sip:b@c>", "Proxy-Require: foo\r\n");
        let (to, sent) = w.say(PHONE, &cancel);
        assert_eq!(to, pbx);
        assert_eq!(header(&sent, "Proxy-Require"), [""; 0]);
    }

    #[test]
    fn what_cannot_be_answered_is_dropped() {
        let mut w = world();
        for name in ["Via", "From", "To", "Call-ID", "CSeq"] {
            let text = invite().replace(&format!("\r\n{name}:"), "\r\nX-Gone:");
            assert_ne!(text, invite());
            w.silence(PHONE, &text);
        }
        for text in [
            "hello\r\n\r\n",
            "\u{1}\u{2}\u{3}\u{4}\u{5}",
            "INVITE\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
        ] {
            w.silence(PHONE, text);
        }
        // The start line alone, at any length.
        for end in 0..invite().len() {
            for transmit in w.hear(PHONE, 0, &invite().as_bytes()[..end]) {
                assert!(transmit.bytes.starts_with(b"SIP/2.0 400 "), "cut at {end}");
            }
        }
    }

    #[test]
    fn methods_that_are_not_served_yet() {
        let mut w = world();
        for method in ["REGISTER", "SUBSCRIBE", "MESSAGE", "PUBLISH", "FROBNICATE"] {
            let (_, answer) = w.say(PHONE, &request(method, "sip:10.10.0.1", "<sip:b@c>", ""));
            assert!(answer.starts_with("SIP/2.0 405 Method Not Allowed\r\n"), "{method}");
            assert_eq!(header(&answer, "Allow"), ["INVITE, ACK, CANCEL, BYE, OPTIONS"]);
        }
    }

    #[test]
    fn register_goes_to_the_registrar_if_there_is_one() {
        let mut w = world();
        let locals = vec![US.parse().unwrap()];
        let settings = stateful::Settings {
            domains: Domains::new([], &locals),
            locals,
            believed: Sources::default(),
            registrar: Default::default(),
            forking: Default::default(),
            transactions: Default::default(),
            calls: Default::default(),
            credentials: Default::default(),
            retry_after: 5,
            registers: true,
        };
        let stateful = Stateful::new([1, 2], settings, None, w.now);
        w.proxy.set_stateful(Some(stateful));
        w.proxy.stateful_mut().unwrap().handle_pbxs(w.now, &w.dispatcher);
        let mut said = |from: &str, text: &str| {
            w.silence(from, text);
            match w.proxy.stateful_mut().unwrap().poll_command() {
                Some(stateful::Command::Send(sent)) => {
                    assert_eq!(sent.to.to_string(), from);
                    let text = String::from_utf8(sent.bytes.to_vec()).unwrap();
                    text.lines().next().unwrap().to_owned()
                }
                other => panic!("{other:?}"),
            }
        };
        let register =
            |extra: &str| request("REGISTER", "sip:10.10.0.1", "<sip:b@10.10.0.1>", extra);
        // There are no users who could be asked, so PBXs alone are believed.
        assert_eq!(said(PHONE, &register("")), "SIP/2.0 403 Not relaying");
        assert_eq!(said(PHONE, &register("Subject: a\r\n b\r\n")), "SIP/2.0 403 Not relaying");
        let of_pbx = from_pbx("REGISTER", "sip:10.10.0.1", "<sip:b@10.10.0.1>");
        assert_eq!(said(PBX1, &of_pbx), "SIP/2.0 200 OK");
        // What is malformed is answered without it.
        let bad = register("Contact: <sip:b@c>\r\nFrom: <sip:c@d>;tag=b\r\n");
        assert_eq!(w.status(PHONE, &bad), "SIP/2.0 400 Duplicate From");
        let (_, other) = w.say(PHONE, &request("INFO", "sip:10.10.0.1", "<sip:b@c>", ""));
        assert_eq!(header(&other, "Allow"), ["INVITE, ACK, CANCEL, BYE, OPTIONS, REGISTER"]);
        // A response to a request that is none of ours.
        let stray = response(&register(""), "200 OK", "x");
        w.silence(PBX1, &stray.replace("branch=z9hG4bK", "branch=z9hG4bKsldt0123456789abcdef."));
        assert_eq!(w.event(Event::HandledStateful), 3);
    }

    // ---- Other workers -------------------------------------------------------------------------

    /// Two that share a call table, each with what needs memory.
    fn workers() -> [World; 2] {
        let locals = vec![US.parse().unwrap()];
        let calls = CallTable::new(64);
        [0, 1].map(|number| {
            let mut w = world();
            let settings = stateful::Settings {
                domains: Domains::new([], &locals),
                locals: locals.clone(),
                believed: Sources::new(&crate::config::Trust {
                    networks: vec!["10.10.1.0/24".parse().unwrap()],
                    ..Default::default()
                }),
                registrar: Default::default(),
                forking: Default::default(),
                transactions: crate::core::transaction::Config {
                    worker: number as u8,
                    ..Default::default()
                },
                calls: Default::default(),
                credentials: Default::default(),
                retry_after: 5,
                registers: true,
            };
            w.proxy.set_stateful(Some(Stateful::new([1, 2], settings, None, w.now)));
            w.proxy.stateful_mut().unwrap().handle_pbxs(w.now, &w.dispatcher);
            w.proxy.set_worker(Worker::new(number, 2, [3, 4]), calls.clone());
            w
        })
    }

    /// What one has for the other is there.
    fn carry(workers: &mut [World; 2]) -> usize {
        let mut carried = 0;
        for (from, to) in [(0, 1), (1, 0)] {
            let Some(parcel) = workers[from].proxy.take_parcel(to) else { continue };
            let World { proxy, dispatcher, steered, now, .. } = &mut workers[to];
            for (local, from, bytes, what) in parcel.messages() {
                let datagram = Datagram { local, from, bytes };
                let mut out = Vec::new();
                proxy.handle_passed(*now, dispatcher, steered, datagram, what, &mut out);
                assert_eq!(out, []);
                carried += 1;
            }
        }
        carried
    }

    /// What is answered, beside what PBXs are told.
    fn answered(world: &mut World) -> Vec<String> {
        let stateful = world.proxy.stateful_mut().unwrap();
        let lines = std::iter::from_fn(|| stateful.poll_command()).filter_map(|command| {
            let stateful::Command::Send(sent) = command else { return None };
            let text = String::from_utf8(sent.bytes.to_vec()).unwrap();
            text.lines().next().filter(|line| line.starts_with("SIP/2.0")).map(str::to_owned)
        });
        lines.collect()
    }

    #[test]
    fn what_is_anothers_is_passed_on() {
        let owner = |user: &str| Worker::new(0, 2, [3, 4]).of_user(user);
        let mut workers = workers();
        for number in 0..20 {
            let user = format!("user{number}");
            let to = format!("<sip:{user}@10.10.0.1>");
            let contact = format!("Contact: <sip:{user}@10.10.1.2:5062>\r\n");
            let register = request("REGISTER", "sip:10.10.0.1", &to, &contact)
                .replace("branch=z9hG4bKp1", &format!("branch=z9hG4bK{user}"));
            // Whoever receives it.
            workers[number % 2].silence(PHONE, &register);
            let passed = carry(&mut workers);
            assert_eq!(passed, usize::from(owner(&user) != number % 2), "{user}");
            let said = workers.each_mut().map(answered);
            assert_eq!(said[owner(&user)], ["SIP/2.0 200 OK"], "{user}");
            assert!(said[1 - owner(&user)].is_empty(), "{said:?}");
        }
        let count = |w: &World| w.proxy.stateful().unwrap().registrar().aors();
        assert_eq!(count(&workers[0]) + count(&workers[1]), 20);
        let passed: u64 = workers.iter().map(|w| w.event(Event::PassedOn)).sum();
        assert!(passed > 0);
        for event in [Event::Received, Event::HandledStateful] {
            assert_eq!(workers.iter().map(|w| w.event(event)).sum::<u64>(), 20, "{event:?}");
        }
        assert_eq!(workers.iter().map(|w| w.reason(Reason::Method)).sum::<u64>(), 20);
        // What only passes stays, and the other one knows where it went.
        let (pbx, _) = workers[0].say(PHONE, &invite());
        let (same, _) = workers[1].say(PHONE, &invite());
        assert_eq!(pbx, same);
        let cancel = request("CANCEL", "sip:bob@10.10.0.1", "<sip:bob@10.10.0.1>", "");
        assert_eq!(workers[1].say(PHONE, &cancel).0, pbx);
        assert_eq!(carry(&mut workers), 0);
    }

    #[test]
    fn a_bye_looks_for_its_record_and_finds_an_end() {
        let mut workers = workers();
        let (pbx, sent) = workers[0].say(PHONE, &invite());
        let route = header(&sent, "Record-Route")[0];
        // A cookie that says that there is a record, which nobody has.
        let mut index = Index::new();
        let message = Message::parse(sent.as_bytes(), &mut index).unwrap();
        let line = message.index().first(Kind::CallId).unwrap();
        let span = Span { at: u32::from(line.value), end: u32::from(line.end) };
        let (hash, _) = cookie::call(&workers[0].proxy.keys, sent.as_bytes(), span);
        let slot = workers[0].dispatcher.slot_at(pbx.parse().unwrap()).unwrap();
        let digits = Cookie { flow: PHONE.parse().unwrap(), slot, recorded: true }
            .write(&workers[0].proxy.keys, hash);
        let old = route.split("sl=").nth(1).unwrap().trim_end_matches('>');
        let route = format!("Route: {}\r\n", route.replace(old, &digits));
        let bye = request("BYE", "sip:bob@10.10.2.2", "<sip:b@c>;tag=bob", &route);
        assert_eq!(workers[1].say(PHONE, &bye).0, pbx);
        let rounds = (0..9).take_while(|_| carry(&mut workers) > 0).count();
        assert!((1..=2).contains(&rounds), "{rounds}");
        assert_eq!(workers[1].reason(Reason::ByeRecorded), 1);
    }

    // ---- Keepalives ----------------------------------------------------------------------------

    #[test]
    fn options_for_us() {
        let mut w = world();
        let (to, answer) = w.say(PHONE, &request("OPTIONS", "sip:10.10.0.1", "<sip:b@c>", ""));
        assert_eq!(to, PHONE);
        assert!(answer.starts_with("SIP/2.0 200 OK\r\n"), "{answer}");
        for name in ["Via", "From", "To", "Call-ID", "CSeq", "Allow", "Accept", "Content-Length"] {
            assert_eq!(header(&answer, name).len(), 1, "{name} in {answer}");
        }
        // The long way gives the same answer.
        let folded = request("OPTIONS", "sip:10.10.0.1", "<sip:b@c>", "Subject: a\r\n b\r\n");
        let (_, long) = w.say(PHONE, &folded);
        assert_eq!(long, answer);
        let other = request("OPTIONS", "sip:10.10.0.9:5080", "<sip:b@c>", "");
        let (_, other) = w.say(PHONE, &other);
        assert_eq!(header(&other, "Allow"), header(&answer, "Allow"));
        // Without rport the answer goes to the port in the Via (18.2.2).
        let plain = request("OPTIONS", "sip:10.10.0.1", "<sip:b@c>", "").replace(";rport", "");
        assert_eq!(w.say("10.10.1.2:40000", &plain).0, PHONE);
    }

    #[test]
    fn options_for_others() {
        let mut w = world();
        let mut status =
            |uri: &str, extra: &str| w.status(PHONE, &request("OPTIONS", uri, "<sip:b@c>", extra));
        assert_eq!(status("sip:bob@10.10.0.1", ""), "SIP/2.0 404 Not Found");
        assert_eq!(status("sip:203.0.113.9", ""), "SIP/2.0 403 Not relaying");
        assert_eq!(status("sip:10.10.0.1", "Require: foo\r\n"), "SIP/2.0 420 Bad Extension");
    }

    #[test]
    fn keepalives_that_are_no_sip() {
        let mut w = world();
        let out = w.hear(PHONE, 0, b"\r\n\r\n");
        assert_eq!(out.len(), 1);
        assert_eq!((out[0].to.to_string().as_str(), &out[0].bytes[..]), (PHONE, &b"\r\n"[..]));
        for silent in [&b""[..], b"\0", b"\r\n", b"\0\0\0\0", b"\n"] {
            assert_eq!(w.hear(PHONE, 0, silent), []);
        }
        assert_eq!(w.proxy.counters().of_reason(Reason::EmptyDatagram), 5);
        for junk in [&b"abc"[..], b"GET / HTTP/1.1\r\n\r\n"] {
            assert_eq!(w.hear(PHONE, 0, junk), []);
        }
        assert_eq!((w.reason(Reason::Junk), w.event(Event::DroppedMalformed)), (2, 0));
    }

    // ---- Responses -----------------------------------------------------------------------------

    #[test]
    fn responses_that_are_not_ours_end_here() {
        let mut w = world();
        let (pbx, sent) = w.say(PHONE, &invite());
        let good = response(&sent, "200 OK", "bob");
        let top = header(&good, "Via")[0].to_owned();
        for (old, new) in [
            (top.as_str(), "SIP/2.0/UDP 10.10.0.1:5060;branch=z9hG4bKslk0000000000000000"),
            (top.as_str(), "SIP/2.0/UDP 10.10.0.1:5060;branch=z9hG4bKother"),
            (top.as_str(), "SIP/2.0/UDP 10.10.0.1:5060;branch=z9hG4bKsld0000000000000000"),
            ("branch=z9hG4bKp1", "branch=z9hG4bKp2"),
            ("call-1", "call-2"),
            ("CSeq", "X"),
            (";received=10.10.1.2", ";received=10.10.1.2;maddr=192.0.2.66"),
        ] {
            let bad = good.replace(old, new);
            assert_ne!(bad, good, "{new}");
            w.silence(&pbx, &bad);
        }
        // A right branch is worth nothing between two strangers.
        let lured = good.replace("received=10.10.1.2", "received=203.0.113.9");
        assert_eq!(w.hear(STRANGER, 0, lured.as_bytes()), []);
        assert_eq!(w.event(Event::DroppedResponse), 8);
        w.silence(&pbx, "SIP/2.0 200 OK\r\n\r\n");
    }

    #[test]
    fn answers_to_probes_reach_the_dispatcher() {
        let mut w = world();
        w.dispatcher.handle_timeout(w.now + Duration::from_secs(1));
        let mut probes = Vec::new();
        while let Some(command) = w.dispatcher.poll_command() {
            if let Command::Send { to, datagram, .. } = command {
                probes.push((to.to_string(), String::from_utf8(datagram).unwrap()));
            }
        }
        assert_eq!(probes.len(), 2);
        for (to, probe) in &probes {
            w.silence(to, &response(probe, "200 OK", "x"));
        }
        assert_eq!(w.event(Event::ProbeAnswer), 2);
        assert!(w.dispatcher.views().iter().all(|v| v.last_probe == Some(Ok(200))));
        // Once is enough.
        w.silence(&probes[0].0, &response(&probes[0].1, "200 OK", "x"));
        assert_eq!((w.event(Event::ProbeAnswer), w.event(Event::DroppedResponse)), (2, 1));
    }

    // ---- IPv6 ----------------------------------------------------------------------------------

    #[test]
    fn ipv6_is_answered_but_not_steered() {
        let mut w = world();
        let phone = "[2001:db8::2]:5062";
        let mut say = |text: &str| {
            let text = text.replace("10.10.1.2:5062", phone);
            let out = w.hear(phone, 2, text.as_bytes());
            out.into_iter().next().map(|t| {
                assert_eq!(t.to.to_string(), phone);
                String::from_utf8(t.bytes).unwrap().lines().next().unwrap().to_owned()
            })
        };
        let options = request("OPTIONS", "sip:[2001:db8::1]", "<sip:b@c>", "");
        assert_eq!(say(&options).as_deref(), Some("SIP/2.0 200 OK"));
        assert_eq!(say(&invite()).as_deref(), Some("SIP/2.0 488 Not Acceptable Here"));
        assert_eq!(say(&request("ACK", "sip:b@c", "<sip:b@c>;tag=x", "")), None);
        let cancel = request("CANCEL", "sip:b@c", "<sip:b@c>", "");
        assert_eq!(say(&cancel).as_deref(), Some("SIP/2.0 481 Call/Transaction Does Not Exist"));
        assert_eq!(say(&response(&invite(), "200 OK", "x")), None);
    }

    // ---- Anything at all -----------------------------------------------------------------------

    /// Messages that reach every part of the proxy.
    fn seeds() -> Vec<(&'static str, String)> {
        let mut w = world();
        let (pbx, sent) = w.say(PHONE, &invite());
        let pbx = if pbx == PBX1 { PBX1 } else { PBX2 };
        let route = format!("Route: {}\r\n", header(&sent, "Record-Route")[0]);
        let joined = route.replace("\r\n", ",\r\n <sip:far.example;lr>\r\n");
        vec![
            (PHONE, invite()),
            (STRANGER, invite()),
            (pbx, response(&sent, "200 OK", "bob")),
            (PHONE, request("BYE", "sip:bob@10.10.2.2", "<sip:b@c>;tag=bob", &route)),
            (PHONE, request("BYE", "sip:bob@10.10.2.2", "<sip:b@c>;tag=bob", &joined)),
            (PBX1, from_pbx("INVITE", "sip:alice@10.10.1.2:5062", "<sip:alice@x>")),
            (PBX1, from_pbx("OPTIONS", "sip:alice@10.10.1.2:5062", "<sip:alice@x>")),
            (PHONE, request("OPTIONS", "sip:10.10.0.1", "<sip:b@c>", "Subject: a\r\n b\r\n")),
            (PHONE, request("CANCEL", "sip:b@c", "<sip:b@c>", "Proxy-Require: x\r\n")),
        ]
    }

    proptest::proptest! {
        #![proptest_config(proptest::prelude::ProptestConfig {
            cases: 512,
            failure_persistence: None,
            ..Default::default()
        })]

        /// Whatever comes, there is at most one datagram for it, not much longer, and none to anybody but
        /// its sender, a PBX or where a PBX wants it; and no panic.
        #[test]
        fn nothing_is_amplified(
            seed in 0..9usize,
            edits in damages(),
        ) {
            let (from, text) = seeds().swap_remove(seed);
            let bytes = damaged(text, &edits);
            let mut w = world();
            let out = w.hear(from, 0, &bytes);
            proptest::prop_assert!(out.len() <= 1);
            if let Some(transmit) = out.first() {
                // Via, Record-Route and the headers of an answer.
                proptest::prop_assert!(transmit.bytes.len() <= bytes.len() + 400);
                let sender: SocketAddr = from.parse().unwrap();
                let known = [PHONE, PBX1, PBX2].contains(&transmit.to.to_string().as_str());
                let pbx = [PBX1, PBX2].contains(&from);
                proptest::prop_assert!(known || pbx || transmit.to.ip() == sender.ip(), "{}", transmit.to);
            }
        }
    }

    #[test]
    fn the_usual_form_of_the_usual_form_is_itself() {
        let locals = [US.parse().unwrap()];
        let canonical = |text: &[u8]| {
            let mut index = Index::new();
            let mut text = text.to_vec();
            let message = Message::parse_folded(&mut text, &mut index).unwrap();
            match message.is_request() {
                true => canonical::request(&message, &locals).unwrap().text,
                false => canonical::response(&message).unwrap().text,
            }
        };
        for (_, text) in seeds() {
            let once = canonical(text.as_bytes());
            assert_eq!(canonical(&once), once);
        }
    }
}
