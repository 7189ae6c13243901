//! Calls, and what else is forwarded with memory: where it goes, and what becomes of it there.
//!
//! A call of a phone goes to a PBX, and to another one if that does not answer or cannot take it; what a PBX sends to
//! one of our users goes to his contacts. Each call has a record, and a place at its PBX while it goes on.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use sip_ebpf::cookie;
use sip_ebpf::header::Span;
use sip_ebpf::report::Report;
use sip_ebpf::scan::Kind;

use super::super::accounting::{By, Invite};
use super::super::across;
use super::super::admission;
use super::super::context::{Failure, Hunt, Start, Target, Unavailable};
use super::super::cookie::Cookie;
use super::super::dispatcher::{Placed, Shortage, Ticket, Tried};
use super::super::family::Family;
use super::super::put::Put;
use super::super::router::{self, Way};
use super::super::transaction::{Expired, Limits};
use super::*;
use crate::config::{Dispatch, NoDestination};

/// Retry-After of the 503 that says that all PBXs are busy, if none of them has said one.
const RETRY_AFTER: u32 = 5;

/// How calls are carried.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rules {
    /// How long a PBX may take for its first response, before another one is tried.
    pub answer_timeout: Duration,
    /// How long a call to a PBX may ring.
    pub ring_timeout: Duration,
    /// Transactions at a time; with more, new requests get 503.
    pub max_transactions: usize,
    /// Requests that are being forwarded at a time.
    pub max_calls: usize,
    /// What a caller hears when no PBX takes calls.
    pub no_destination: NoDestination,
}

impl Default for Rules {
    fn default() -> Self {
        let Dispatch { answer_timeout, ring_timeout, max_transactions, .. } = Dispatch::default();
        Self {
            answer_timeout,
            ring_timeout,
            max_transactions,
            max_calls: 100_000,
            no_destination: NoDestination::default(),
        }
    }
}

/// What response contexts need of the settings.
pub(super) fn contexts(
    settings: &Settings,
    authenticator: Option<&Authenticator>,
) -> context::Settings {
    let realm = |domain: &str| match authenticator {
        Some(asking) => asking.realm(domain).to_owned(),
        None => domain.to_owned(),
    };
    let realms: BTreeSet<_> = settings.domains.names().map(realm).collect();
    context::Settings {
        realms: realms.into_iter().collect(),
        contexts: settings.calls.max_calls,
        retry_after: settings.retry_after,
        ..context::Settings::new(&settings.locals)
    }
}

/// What is forwarded.
#[derive(Debug)]
pub(super) struct Call {
    /// Its transaction.
    id: ServerId,
    /// How it came.
    flow: Flow,
    /// The request, while no PBX was tried for it.
    request: Option<Arc<[u8]>>,
    /// The hash of its Call-ID, with which cookies are signed.
    hash: u64,
    /// Its record.
    record: Option<accounting::Token>,
    /// PBXs that were tried for it.
    tried: Tried,
    /// Its place at the last of these, until the call is answered: then the record has it.
    place: Option<Ticket>,
    /// What its caller hears if there is no other PBX: what the one said that has it refused before.
    refused: Option<Arc<[u8]>>,
}

impl Call {
    /// One that is to go to a PBX.
    pub(super) fn new(
        id: ServerId,
        flow: Flow,
        request: Option<Arc<[u8]>>,
        hash: u64,
        record: Option<accounting::Token>,
    ) -> Self {
        let (tried, place, refused) = Default::default();
        Self { id, flow, request, hash, record, tried, place, refused }
    }

    /// It was with a PBX already, which has refused it so.
    pub(super) fn was_at(&mut self, slot: Option<u32>, refused: Option<Arc<[u8]>>) {
        slot.into_iter().for_each(|slot| self.tried.insert(slot));
        self.refused = refused;
    }
}

impl Stateful {
    /// Places the calls that wait for it, and sees to what has become of others. To be called after each input,
    /// before [`Stateful::poll_command`].
    pub fn handle_calls(&mut self, now: Instant, dispatcher: &mut Dispatcher) {
        self.see_to_calls(now, dispatcher, None);
    }

    /// As [`Stateful::handle_calls`], after this request: its call need not be read once more.
    pub fn handle_calls_of(
        &mut self,
        now: Instant,
        dispatcher: &mut Dispatcher,
        request: &Message<'_>,
    ) {
        self.see_to_calls(now, dispatcher, Some(request));
    }

    pub(super) fn see_to_calls(
        &mut self,
        now: Instant,
        dispatcher: &mut Dispatcher,
        request: Option<&Message<'_>>,
    ) {
        loop {
            if let Some(call) = self.unplaced.pop_front() {
                self.place(now, dispatcher, call, request);
            } else if let Some(command) = self.contexts.poll_command() {
                self.obey_contexts(now, dispatcher, command);
            } else {
                return;
            }
            self.carry_out(now);
        }
    }

    /// A BYE goes by, from one side of a dialog to the other. Says whether it is of a call that has a record here.
    pub fn handle_bye(&mut self, now: Instant, bye: &Message<'_>) -> bool {
        let Some(accounting) = &mut self.accounting else { return false };
        let known = accounting.handle_bye(now, bye);
        self.carry_out(now);
        known
    }

    /// We end: nobody will hear how the calls do that go on, unless those that are steered are `kept`.
    pub fn stop(&mut self, now: Instant, kept: bool) {
        if let Some(accounting) = &mut self.accounting {
            accounting.stop(now, kept);
            self.carry_out(now);
        }
    }

    /// A request that starts something, whose sender is who he says.
    pub(super) fn forward(
        &mut self,
        now: Instant,
        message: &Message<'_>,
        id: ServerId,
        request: Arc<[u8]>,
        flow: Flow,
    ) {
        let slot = match self.source(flow.peer) {
            Source::Pbx(slot) => Some(slot),
            _ => None,
        };
        let is_invite = message.method() == Method::Invite;
        if let Err(response) = self.admit(message) {
            return self.answer(now, message, id, flow, &response);
        }
        let record = if is_invite { self.record(now, message, flow, slot) } else { None };
        let is_pbx = slot.is_some();
        let Settings { locals, .. } = &self.settings;
        let hash = self.hash(message);
        let way = router::route(now, message, flow.peer, is_pbx, &self.registrar, locals);
        let call = Call::new(id, flow, None, hash, record);
        match way {
            Ok(Way::Dispatch) => {
                let key = self.calls.insert(Call { request: Some(request), ..call });
                self.unplaced.push_back(key);
            }
            Ok(Way::Location(contacts)) => {
                // A dialog goes by us only if a PBX is one of its ends: a cookie has its slot.
                let makes = matches!(message.method(), Method::Invite | Method::Refer);
                let routed = slot.filter(|_| makes);
                let recorded = record.is_some();
                let targets = (0..).zip(contacts).filter_map(|(number, (contact, next))| {
                    let goes = self.flow_to(next, flow)?;
                    let routes = routed
                        .map(|slot| self.record_routes(flow, goes, next, (slot, hash, recorded)));
                    Some(Target {
                        tag: number,
                        flow: goes,
                        uri: Some(contact.contact.into()),
                        route: contact.path.map(Into::into),
                        record_routes: routes.unwrap_or_default(),
                        limits: Limits::default(),
                        q: contact.q,
                    })
                });
                let targets: Vec<_> = targets.collect();
                let other = |target: &&Target| target.flow.local != flow.local;
                self.counts.across += targets.iter().filter(other).count() as u64;
                if let Some(last) = targets.last() {
                    let address = last.flow.peer;
                    self.note(record, |accounting, record| {
                        accounting.handle_target(record, None, address);
                    });
                }
                let key = self.calls.insert(call);
                let start = Start {
                    server: id,
                    request,
                    from: flow.peer,
                    owner: key as u64,
                    hunt: Hunt::Fork,
                    trying: true,
                    more: false,
                    unavailable: Unavailable::InternalError,
                };
                self.start(now, key, start, targets, Some(message));
            }
            Err(response) => {
                self.answer(now, message, id, flow, &response);
                self.failed(now, record, response.code);
            }
        }
    }

    /// A CANCEL (9.2, 16.10).
    pub(super) fn cancel(
        &mut self,
        now: Instant,
        message: &Message<'_>,
        id: ServerId,
        flow: Flow,
        cancels: Option<ServerId>,
    ) {
        let Self { contexts, transactions, .. } = self;
        let from = flow.peer;
        let taken = contexts.cancel(now, transactions, id, message.bytes(), from, cancels);
        let Some(invite) = cancels else { return };
        if let Some(owner) = taken {
            let record = self.calls.get(owner as usize).and_then(|call| call.record);
            self.note(record, |accounting, record| accounting.handle_cancelled(record));
            return;
        }
        // An INVITE that waits for secrets or for a PBX: it hears so at once, and goes nowhere. One that was
        // answered is not answered again.
        let built = reply::build(
            message,
            from,
            &self.keys,
            reply::Answer { code: 487, phrase: "Request Terminated", headers: "" },
        );
        if let Some((_, bytes)) = built.and_then(|(to, bytes)| Some((to, of_invite(&bytes)?))) {
            let _ = self.transactions.respond(now, invite, bytes);
        }
    }

    // ---- Placing --------------------------------------------------------------------------------

    /// A call that has not been tried anywhere. It is `read` already, unless that is another one or it had to wait.
    fn place(
        &mut self,
        now: Instant,
        dispatcher: &mut Dispatcher,
        key: usize,
        read: Option<&Message<'_>>,
    ) {
        let Some(call) = self.calls.get_mut(key) else { return };
        let (id, flow, record) = (call.id, call.flow, call.record);
        let Some(request) = call.request.take() else { return };
        let read = read.filter(|read| *read.bytes() == *request);
        match self.next_pbx(now, dispatcher, key) {
            Ok(target) => {
                let start = Start {
                    server: id,
                    request,
                    from: flow.peer,
                    owner: key as u64,
                    hunt: Hunt::Failover,
                    trying: true,
                    more: true,
                    unavailable: Unavailable::RetryAfter(RETRY_AFTER),
                };
                self.start(now, key, start, vec![target], read);
            }
            Err(response) => {
                let refused = self.calls.try_remove(key).and_then(|call| call.refused);
                if let Some(refused) = refused {
                    let _ = self.transactions.respond(now, id, refused);
                    return self.failed(now, record, response.code);
                }
                let mut index = self.index.take().unwrap_or_default();
                if let Ok(message) = Message::parse(&request, &mut index) {
                    self.answer(now, &message, id, flow, &response);
                }
                self.index = Some(index);
                self.failed(now, record, response.code);
            }
        }
    }

    fn start(
        &mut self,
        now: Instant,
        key: usize,
        start: Start,
        targets: Vec<Target>,
        read: Option<&Message<'_>>,
    ) {
        let Self { contexts, transactions, .. } = self;
        let started = match read {
            Some(read) => contexts.start_read(now, transactions, start, targets, read),
            None => contexts.start(now, transactions, start, targets),
        };
        match started {
            // By its commands we hear of it.
            Ok(_) => self.counts.forwarded += 1,
            Err(status) => {
                *self.counts.replies.entry(status).or_insert(0) += 1;
                let record = self.calls.try_remove(key).and_then(|call| call.record);
                if status == 487 {
                    self.note(record, |accounting, record| accounting.handle_cancelled(record));
                }
                self.failed(now, record, status);
            }
        }
    }

    /// The PBX that a call goes to next. The error is the answer if there is none.
    fn next_pbx(
        &mut self,
        now: Instant,
        dispatcher: &mut Dispatcher,
        key: usize,
    ) -> Result<Target, Response> {
        let gone = || Response::new(500, "Server Internal Error");
        let came = self.calls.get(key).ok_or_else(gone)?.flow;
        let family = Family::of(came.peer);
        // Its own family first: there its media need nobody who speaks both.
        let families = [family, family.other()];
        let reached = match self.first_local(family.other()) {
            Some(_) => &families[..],
            None => &families[..1],
        };
        let call = self.calls.get_mut(key).ok_or_else(gone)?;
        // Who has asked for credentials gets them.
        let asked = if call.tried.is_empty() { self.askers.take(now, call.hash) } else { None };
        let asked = asked.and_then(|slot| dispatcher.place_at(now, slot));
        let placed =
            asked.map_or_else(|| dispatcher.place_in(now, reached, &call.tried), Result::Ok);
        let Placed { slot, address, ticket } = match placed {
            Ok(placed) => placed,
            Err(none)
                if none.why == Shortage::Down
                    && !reached.iter().any(|family| dispatcher.has(*family)) =>
            {
                return Err(router::other_family(&format!("No PBX has an {family} address")));
            }
            Err(none) => {
                return Err(match self.settings.calls.no_destination {
                    NoDestination::NotFound => Response::new(404, "No destination"),
                    NoDestination::Unavailable => {
                        let seconds = none.retry_after.as_secs().max(1);
                        Response::new(503, "Service Unavailable")
                            .with(&format!("Retry-After: {seconds}\r\n"))
                    }
                });
            }
        };
        if let Some(placed) = self.placed.get_mut(slot as usize) {
            *placed += 1;
        }
        call.tried.insert(slot);
        call.place = Some(ticket);
        let (hash, record) = (call.hash, call.record);
        let goes = self.flow_to(address, came).ok_or_else(gone)?;
        self.counts.across += u64::from(Family::of(address) != family);
        let id = dispatcher.id(slot);
        self.note(record, |accounting, record| accounting.handle_target(record, id, address));
        Ok(Target {
            tag: slot,
            flow: goes,
            uri: None,
            route: None,
            record_routes: self.record_routes(
                came,
                goes,
                came.peer,
                (slot, hash, record.is_some()),
            ),
            limits: Limits {
                answer: Some(self.settings.calls.answer_timeout),
                ring: Some(self.settings.calls.ring_timeout),
            },
            q: 1000,
        })
    }

    // ---- What becomes of it ---------------------------------------------------------------------

    fn obey_contexts(
        &mut self,
        now: Instant,
        dispatcher: &mut Dispatcher,
        command: context::Command,
    ) {
        match command {
            context::Command::Ringing { branch, status } => {
                let Some(call) = self.calls.get_mut(branch.owner as usize) else { return };
                if let Some(ticket) = &mut call.place {
                    dispatcher.handle_call_response(now, ticket, status, None);
                }
                let record = call.record;
                self.note(record, |accounting, record| accounting.handle_ringing(now, record));
            }
            context::Command::BranchFailed { branch, failure } => {
                let Some(call) = self.calls.get_mut(branch.owner as usize) else { return };
                let ticket = call.place.take_if(|ticket| ticket.slot() == branch.tag);
                let Some(mut ticket) = ticket else { return };
                match failure {
                    Failure::Status { status, retry_after } => {
                        let pause = retry_after.map(|seconds| Duration::from_secs(seconds.into()));
                        dispatcher.handle_call_response(now, &mut ticket, status, pause);
                    }
                    Failure::Timeout { why: Expired::Answer | Expired::B, late } => {
                        dispatcher.handle_call_timeout(now, &mut ticket, late);
                    }
                    // Of an ICMP error the dispatcher hears from whoever has heard of it, and the rest is not
                    // the PBX's fault.
                    Failure::Timeout { .. } | Failure::Transport | Failure::NotSent => {}
                }
            }
            context::Command::Exhausted { context, owner } => {
                let next = self.next_pbx(now, dispatcher, owner as usize);
                let Self { contexts, transactions, .. } = self;
                match next {
                    Ok(target) => {
                        let added = contexts.add(now, transactions, context, vec![target]);
                        self.counts.failed_over += u64::from(added);
                    }
                    Err(response) if response.code == 404 => {
                        let answer = Some(response);
                        contexts.finish(now, transactions, context, answer);
                    }
                    Err(_) => contexts.finish(now, transactions, context, None),
                }
            }
            context::Command::Answered { branch, status, to_tag } => {
                let Some(call) = self.calls.get_mut(branch.owner as usize) else { return };
                let ticket = call.place.take().filter(|ticket| ticket.slot() == branch.tag);
                let record = call.record;
                if let Some(mut ticket) = ticket {
                    dispatcher.handle_call_response(now, &mut ticket, status, None);
                    self.note(record, |accounting, record| accounting.hold(record, ticket));
                }
                self.note(record, |accounting, record| {
                    accounting.handle_answered(now, record, status, Some(&to_tag));
                });
            }
            context::Command::AlsoAnswered { branch, status, to_tag } => {
                let record = self.calls.get(branch.owner as usize).and_then(|call| call.record);
                self.note(record, |accounting, record| {
                    accounting.handle_answered(now, record, status, Some(&to_tag));
                });
            }
            context::Command::Failed { owner, status, tag, .. } => {
                *self.counts.replies.entry(status).or_insert(0) += u64::from(tag.is_none());
                let call = self.calls.get(owner as usize);
                let record = call.and_then(|call| call.record);
                if let (401 | 407, Some(call), Some(slot)) = (status, call, tag)
                    && call.tried.has(slot)
                {
                    self.askers.put(now, call.hash, slot);
                }
                let by = if tag.is_some() { By::Callee } else { By::Proxy };
                self.note(record, |accounting, record| {
                    accounting.handle_failed(now, record, status, by);
                });
            }
            context::Command::Cancelled { owner, .. } => {
                let record = self.calls.get(owner as usize).and_then(|call| call.record);
                self.note(record, |accounting, record| {
                    accounting.handle_failed(now, record, 487, By::Callee);
                });
            }
            context::Command::Late { branch } => {
                self.counts.answered_late += 1;
                tracing::debug!(
                    tag = branch.tag,
                    "a call was answered when nobody waited, and ended"
                );
            }
            context::Command::Ended { owner, .. } => _ = self.calls.try_remove(owner as usize),
        }
    }

    pub(super) fn failed(&mut self, now: Instant, record: Option<accounting::Token>, status: u16) {
        self.note(record, |accounting, record| {
            accounting.handle_failed(now, record, status, By::Proxy);
        });
    }

    /// Writes something down for a call that has a record.
    pub(super) fn note(
        &mut self,
        record: Option<accounting::Token>,
        write: impl FnOnce(&mut Accounting, accounting::Token),
    ) {
        if let (Some(accounting), Some(record)) = (&mut self.accounting, record) {
            write(accounting, record);
        }
    }

    // ---- About a request ------------------------------------------------------------------------

    /// Whether there is room for it.
    pub(super) fn admit(&mut self, message: &Message<'_>) -> Result<(), Response> {
        let kind = match message.method() {
            Method::Invite => admission::Kind::of_invite(&message.request_uri()?),
            _ => admission::Kind::Other,
        };
        self.admission.admit(kind, self.transactions.len()).map_err(|shed| {
            self.counts.shed += 1;
            let retry = format!("Retry-After: {}\r\n", shed.retry_after);
            Response::new(503, "Service Unavailable").with(&retry)
        })
    }

    /// Its record.
    pub(super) fn record(
        &mut self,
        now: Instant,
        message: &Message<'_>,
        flow: Flow,
        slot: Option<u32>,
    ) -> Option<accounting::Token> {
        let accounting = self.accounting.as_mut()?;
        let pbx = slot.and_then(|slot| self.pbxs.get(&slot)).map(pbx::Pbx::id);
        let from = message.from().ok();
        let account = from.and_then(|from| from.uri.user).filter(|_| pbx.is_none());
        let invite = Invite { message, from: flow.peer, pbx, account };
        accounting.handle_invite(now, invite)
    }

    /// The record of a call that was steered before, and is carried with memory from now on.
    pub(super) fn record_taken(
        &mut self,
        now: Instant,
        message: &Message<'_>,
        flow: Flow,
    ) -> Option<accounting::Token> {
        let accounting = self.accounting.as_mut()?;
        accounting.handle_taken(now, without_account(message, flow.peer))
    }

    /// An INVITE was steered at this time, to the PBX in a slot.
    pub fn handle_steered(
        &mut self,
        (now, at): (Instant, Instant),
        dispatcher: &Dispatcher,
        (message, from): (&Message<'_>, SocketAddr),
        hash: u64,
        slot: u32,
    ) {
        let Some(accounting) = &mut self.accounting else { return };
        let Some((address, _)) = dispatcher.pbx_of(slot, Family::of(from)) else { return };
        let invite = without_account(message, from);
        accounting.handle_steered((now, at), invite, hash, (dispatcher.id(slot), address));
        self.carry_out(now);
    }

    /// Something has become of a steered call at this time.
    pub fn handle_report(&mut self, times: (Instant, Instant), hash: u64, report: Report) {
        let Some(accounting) = &mut self.accounting else { return };
        accounting.handle_report(times, hash, report);
        self.carry_out(times.0);
    }

    /// Whether calls that are steered have records.
    pub fn records_steered(&self) -> bool {
        self.settings.registers && self.accounting.as_ref().is_some_and(Accounting::is_wanted)
    }

    /// The hash of its Call-ID, with the key of cookies.
    pub(super) fn hash(&self, message: &Message<'_>) -> u64 {
        let Some(line) = message.index().first(Kind::CallId) else { return 0 };
        let call_id = Span { at: u32::from(line.value), end: u32::from(line.end) };
        cookie::call(&self.cookie_keys, message.bytes(), call_id).0
    }

    /// How a request that came so goes to an address: from where it came to, or, in the other family, from our first address
    /// there. None if there is none.
    fn flow_to(&self, next: SocketAddr, came: Flow) -> Option<Flow> {
        let family = Family::of(next);
        let local = match family == Family::of(came.peer) {
            true => Some(came.local),
            false => self.first_local(family),
        };
        Some(Flow { local: local?, peer: next, reliable: false })
    }

    /// The place of our first address of a family: that which PBXs are probed from.
    fn first_local(&self, family: Family) -> Option<usize> {
        self.settings.locals.iter().position(|local| Family::of(*local) == family)
    }

    /// The values of our Record-Routes, the topmost first, for a request that came so and goes on so: they lead from the PBX
    /// to the other side of it, which is there, and back. Those of a call with a record have its BYE come to us.
    fn record_routes(
        &self,
        came: Flow,
        goes: Flow,
        other: SocketAddr,
        (slot, hash, recorded): (u32, u64, bool),
    ) -> [Option<Box<str>>; 2] {
        if Family::of(came.peer) == Family::of(goes.peer) {
            return [self.record_route(came.local, other, slot, hash, recorded), None];
        }
        let hash = across::signed_with(hash);
        [goes, came]
            .map(|Flow { local, peer, .. }| self.record_route(local, peer, slot, hash, recorded))
    }

    fn record_route(
        &self,
        local: usize,
        flow: SocketAddr,
        slot: u32,
        hash: u64,
        recorded: bool,
    ) -> Option<Box<str>> {
        let local = self.settings.locals.get(local)?;
        let local = SocketAddr::new(local.ip(), local.port());
        let digits = Cookie { flow, slot, recorded }.write(&self.cookie_keys, hash);
        let mut value = String::with_capacity(96);
        value.text("<sip:");
        value.address(local);
        value.text(";lr;sl=");
        value.text(&digits);
        value.text(">");
        Some(value.into())
    }
}

/// Who is trusted for his address has proved no name.
fn without_account<'a, 'm>(message: &'a Message<'m>, from: SocketAddr) -> Invite<'a, 'm> {
    Invite { message, from, pbx: None, account: None }
}

/// The answer to a CANCEL as one to its INVITE: they differ in the method of CSeq (9.1).
fn of_invite(response: &[u8]) -> Option<Vec<u8>> {
    let text = str::from_utf8(response).ok()?;
    let at = text.rfind("\r\nCSeq: ")? + 2;
    let end = at + text.get(at..)?.find("\r\n")?;
    let line = text.get(at..end)?.strip_suffix("CANCEL")?;
    Some([text.get(..at)?, line, "INVITE", text.get(end..)?].concat().into_bytes())
}
