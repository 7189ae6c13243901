//! What of the proxy needs memory: transactions, users and their registrations.
//!
//! Joins the parts that do: a request becomes a server transaction ([`super::transaction`]), its sender is asked
//! who he is ([`super::authenticator`]), a REGISTER is carried out ([`super::registrar`]), and every PBX is told
//! ([`super::forking`]) by client transactions of ours. None of these knows another; what one of them wants is
//! passed to the next here.
//!
//! It has no socket, no clock and no store. Hand in what has happened, then take commands with
//! [`Stateful::poll_command`] until there are none, and call [`Stateful::handle_timeout`] when
//! [`Stateful::poll_timeout`] says.

mod askers;
mod calls;
mod net;
mod pbx;
mod register;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sip_ebpf::hash::Keys;
use sip_ebpf::message::{Message, Uri};
use sip_ebpf::scan::{Index, Method};
use sip_ebpf::tables::{MAX_PBX, source};
use slab::Slab;

use super::accounting::{self, Accounting, Cdr};
use super::admission::{self, Admission};
use super::authenticator::{self, Asked, Authenticator, Away, Claim, Parked, Source, Verdict};
use super::context::{self, Contexts};
use super::digest::Secret;
use super::dispatcher::Dispatcher;
use super::endpoints::Endpoints;
use super::forking::{self, Forking};
use super::registrar::{self, Aor, Change, Domains, Key, NotRestored, Registrar, Row};
use super::reply::{self, Response};
use super::sources::Sources;
use super::transaction::{
    self, ClientId, Flow, IdHasher, RequestFate, ResponseFate, ServerId, TransactionId,
    Transactions, Transmit,
};
use askers::Askers;
use calls::Call;
pub use calls::Rules as CallRules;
pub use net::Taken;
pub use pbx::PbxCredentials;

/// Transactions that may end for one that comes, where too many requests are being forwarded: an answered INVITE has two,
/// its caller's and ours.
const ENDED_FOR_ONE: usize = 4;

/// What the owner wants.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Our addresses.
    pub locals: Vec<SocketAddr>,
    /// The domains whose registrar we are.
    pub domains: Domains,
    /// Networks whose requests are believed, as those of the PBXs are: trusted ones in here.
    pub believed: Sources,
    /// What a registration may be.
    pub registrar: registrar::Rules,
    /// How PBXs are told of registrations.
    pub forking: forking::Rules,
    /// What transactions may cost.
    pub transactions: transaction::Config,
    /// How calls are carried.
    pub calls: CallRules,
    /// By the id of a PBX: what answers its challenges.
    pub credentials: HashMap<Box<str>, PbxCredentials>,
    /// Retry-After of a 503 of ours, in seconds.
    pub retry_after: u32,
    /// Whether there is a registrar. Without one it carries only calls that were taken over.
    pub registers: bool,
}

/// What the world has to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Send a datagram.
    Send(Transmit),
    /// Fetch the secrets of a user, and say so by [`Stateful::handle_secrets`].
    FetchSecrets {
        /// For the answer.
        ticket: authenticator::Ticket,
        /// The user's name, as in credentials.
        user: Box<str>,
        /// His domain, in small letters.
        domain: Box<str>,
    },
    /// Write a binding, in place of the one with its key. It comes before the answer to the REGISTER that made it.
    Save(Box<Row>),
    /// Remove a binding.
    Remove(Box<Key>),
    /// A user is registered until then, or no longer: for the kernel's table `USERS`. Only if PBXs that ask for him are
    /// answered ([`registrar::Rules::answer_qualify`]).
    User {
        /// His name there ([`sip_ebpf::cookie::user`]).
        name: u64,
        /// `None`: he is gone.
        until: Option<Instant>,
    },
    /// Store the record of a call, which is over.
    Cdr(Box<Cdr>),
    /// Keep what is known of a steered call for whoever comes after us ([`Accounting::kept`]).
    KeepCall(u64),
    /// Keep it no longer.
    DropCall(u64),
    /// Somebody has given a wrong password: evidence for [`super::bans::Bans::wrong_digest`].
    Guessed {
        /// The source.
        from: IpAddr,
    },
    /// Somebody who had to prove who he is has registered: news for [`super::registered::Registered`].
    Learned {
        /// The source.
        from: IpAddr,
        /// When the contacts end that he has registered.
        until: Instant,
    },
}

/// What has happened, in numbers.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// REGISTERs that were carried out.
    pub registered: u64,
    /// Requests that were forwarded.
    pub forwarded: u64,
    /// Calls that went to another PBX because one has failed.
    pub failed_over: u64,
    /// Targets of requests that were in the other family than these came by.
    pub across: u64,
    /// Calls that were answered when nobody waited any more, and were ended by us.
    pub answered_late: u64,
    /// Requests that were refused because too much was going on.
    pub shed: u64,
    /// Requests that were absorbed as repetitions.
    pub absorbed: u64,
    /// Transactions that were only there for repetitions, and ended before their time to make room.
    pub ended_early: u64,
    /// Requests for which there was no transaction left.
    pub full: u64,
    /// REGISTERs of ours to PBXs, those with credentials included.
    pub forked: u64,
    /// Of these, those that had no answer.
    pub forked_unanswered: u64,
    /// Challenges of PBXs that there were no credentials for, or that could not be answered.
    pub challenges_unanswered: u64,
    /// Answers of ours, by status code.
    pub replies: BTreeMap<u16, u64>,
}

/// See the module.
#[derive(Debug)]
pub struct Stateful {
    key: [u64; 2],
    /// Makes the tags of our answers.
    keys: Keys,
    settings: Settings,
    transactions: Transactions,
    authenticator: Option<Authenticator>,
    registrar: Registrar,
    /// Where those are who have proved who they are.
    endpoints: Endpoints,
    /// The networks that such endpoints are kept of.
    kept: Sources,
    forking: Forking,
    contexts: Contexts,
    admission: Admission,
    accounting: Option<Accounting>,
    /// What is forwarded. A context knows its own by the place here.
    calls: Slab<Call>,
    /// Calls for which a PBX has to be found.
    unplaced: VecDeque<usize>,
    /// PBXs that have asked for credentials.
    askers: Askers,
    /// Calls that were placed so far, by the slot of the PBX.
    placed: Vec<u64>,
    /// Signs the cookies of our Record-Routes.
    cookie_keys: Keys,
    /// REGISTERs of ours that are on their way.
    flights: HashMap<ClientId, forking::Token, IdHasher>,
    /// The PBXs as the dispatcher last had them.
    pbxs: BTreeMap<u32, pbx::Pbx>,
    /// Makes each cnonce another one.
    cnonces: u64,
    /// Whether what is accepted can be stored.
    storable: bool,
    commands: VecDeque<Command>,
    counts: Counts,
    /// Working memory, kept between messages.
    index: Option<Box<Index>>,
}

impl Stateful {
    /// `key` is secret, and another one at each start. Without an `authenticator` only sources that are believed
    /// may do anything.
    pub fn new(
        key: [u64; 2],
        settings: Settings,
        authenticator: Option<Authenticator>,
        now: Instant,
    ) -> Self {
        let Settings { locals, domains, registrar, forking, transactions, calls, .. } = &settings;
        let carried = calls::contexts(&settings, authenticator.as_ref());
        Self {
            key,
            keys: Keys::new(key),
            contexts: Contexts::new(key, carried),
            admission: Admission::new(calls.max_transactions),
            accounting: None,
            calls: Slab::new(),
            unplaced: VecDeque::new(),
            askers: Askers::default(),
            placed: vec![0; MAX_PBX as usize],
            cookie_keys: Keys::new(key),
            transactions: Transactions::new(key, *transactions, now),
            authenticator,
            registrar: Registrar::new(*registrar, domains.clone(), locals, key),
            endpoints: Endpoints::default(),
            kept: Sources::default(),
            forking: Forking::new(*forking, locals, key),
            flights: HashMap::default(),
            pbxs: BTreeMap::new(),
            // Those of workers differ.
            cnonces: u64::from(transactions.worker) << 56,
            storable: true,
            commands: VecDeque::new(),
            counts: Counts::default(),
            index: None,
            settings,
        }
    }

    /// With records of its calls.
    pub fn set_accounting(&mut self, accounting: Option<Accounting>) {
        self.accounting = accounting;
    }

    /// The keys that the cookies of our Record-Routes are signed with: those of the proxy, which reads them.
    pub fn set_cookie_keys(&mut self, keys: Keys) {
        self.cookie_keys = keys;
    }

    // ---- What happens ---------------------------------------------------------------------------

    /// A request has come in over `flow`, whose peer is its source. It is well-formed ([`Message::check`]).
    pub fn handle_request(&mut self, now: Instant, message: &Message<'_>, flow: Flow) {
        self.request(now, message, flow);
        self.carry_out(now);
    }

    /// A response has come in. Says whether it belongs to a request of ours.
    pub fn handle_response(&mut self, now: Instant, message: &Message<'_>) -> bool {
        let known = match self.transactions.handle_response(now, message) {
            ResponseFate::Of(id) => {
                self.response(now, id, message);
                true
            }
            ResponseFate::Absorbed => true,
            ResponseFate::Unmatched => false,
        };
        self.carry_out(now);
        known
    }

    /// What was sent to `peer` did not arrive: an ICMP error, or no way there.
    pub fn handle_transport_error(&mut self, now: Instant, peer: SocketAddr) {
        self.transactions.handle_transport_error(now, peer);
        self.carry_out(now);
    }

    /// The answer to [`Command::FetchSecrets`]: the secrets, none if there is no such user, or that the store
    /// cannot be asked.
    pub fn handle_secrets(
        &mut self,
        now: Instant,
        ticket: authenticator::Ticket,
        answer: Result<Option<Vec<Secret>>, Away>,
    ) {
        if let Some(authenticator) = &mut self.authenticator {
            authenticator.handle_secrets(now, ticket, answer);
        }
        self.carry_out(now);
    }

    /// The PBXs are as the dispatcher has them: some may have come, gone, died or come back.
    pub fn handle_pbxs(&mut self, now: Instant, dispatcher: &Dispatcher) {
        self.follow(now, dispatcher);
        self.carry_out(now);
    }

    /// Time has passed. Messages that wait come first.
    pub fn handle_timeout(&mut self, now: Instant) {
        self.transactions.handle_timeout(now);
        if let Some(authenticator) = &mut self.authenticator {
            authenticator.handle_timeout(now);
        }
        let mut changes = Vec::new();
        self.registrar.handle_timeout(now, &mut changes);
        self.endpoints.handle_timeout(now);
        self.apply(now, changes, None);
        self.forking.handle_timeout(now);
        if let Some(accounting) = &mut self.accounting {
            accounting.handle_timeout(now);
        }
        self.carry_out(now);
    }

    /// When [`Stateful::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let asking = self.authenticator.as_ref().and_then(Authenticator::poll_timeout);
        let recording = self.accounting.as_ref().and_then(Accounting::poll_timeout);
        [
            self.transactions.poll_timeout(),
            asking,
            recording,
            self.registrar.poll_timeout(),
            self.forking.poll_timeout(),
        ]
        .into_iter()
        .flatten()
        .min()
    }

    /// What to do next.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    // ---- The owner's side -----------------------------------------------------------------------

    /// Takes bindings that a store has kept. Says how many, and why others were not taken.
    pub fn restore<'r>(
        &mut self,
        now: Instant,
        rows: impl IntoIterator<Item = &'r Row>,
    ) -> (usize, Vec<(Key, NotRestored)>) {
        let (mut taken, mut refused, mut changes) = (0, Vec::new(), Vec::new());
        for row in rows {
            match self.registrar.restore(now, row, &mut changes) {
                Ok(()) => {
                    taken += 1;
                    if let Some(received) = row.received {
                        let (from, until) = (received.ip(), row.expires);
                        self.commands.push_back(Command::Learned { from, until });
                    }
                }
                Err(why) => refused.push((row.key.clone(), why)),
            }
        }
        self.apply(now, changes, None);
        self.carry_out(now);
        (taken, refused)
    }

    /// Takes a contact of a user away, or all of them, by hand. Says how many are gone.
    pub fn remove(&mut self, now: Instant, aor: &Aor, contact: Option<&str>) -> usize {
        let mut changes = Vec::new();
        let gone = self.registrar.remove(aor, contact, &mut changes);
        self.apply(now, changes, None);
        self.carry_out(now);
        gone
    }

    /// Whether bindings can be stored: while they cannot, no REGISTER is accepted, since nothing may be lost that
    /// was.
    pub fn set_storable(&mut self, storable: bool) {
        self.storable = storable;
    }

    /// Takes over what a reload may change: all but our addresses and what transactions may cost.
    pub fn reload(&mut self, settings: Settings) {
        self.registrar.reload(settings.registrar, settings.domains.clone());
        self.forking.reload(settings.forking);
        let Settings { locals, transactions, .. } = &self.settings;
        let (locals, transactions) = (locals.clone(), *transactions);
        self.settings = Settings { locals, transactions, ..settings };
        self.admission.reload(self.settings.calls.max_transactions);
        let carried = calls::contexts(&self.settings, self.authenticator.as_ref());
        self.contexts.set_settings(carried);
    }

    // ---- What there is --------------------------------------------------------------------------

    /// Whether there is a registrar.
    pub fn registers(&self) -> bool {
        self.settings.registers
    }

    /// Who is registered.
    pub fn registrar(&self) -> &Registrar {
        &self.registrar
    }

    /// Where those are who have proved who they are.
    pub fn endpoints(&self) -> &Endpoints {
        &self.endpoints
    }

    /// As [`Stateful::endpoints`].
    pub fn endpoints_mut(&mut self) -> &mut Endpoints {
        &mut self.endpoints
    }

    /// The networks that such endpoints are kept of, marked [`source::REGISTERED`]: from the next REGISTER on.
    pub fn keep_endpoints(&mut self, networks: Sources) {
        self.kept = networks;
    }

    /// Networks whose requests are believed, for tests.
    #[cfg(test)]
    pub(super) fn believe(&mut self, believed: Sources) {
        self.settings.believed = believed;
    }

    /// What is known of a user's password counts no more, nor who he has proved to be.
    pub fn forget(&mut self, user: &str, domain: &str) {
        if let Some(authenticator) = &mut self.authenticator {
            authenticator.forget(user, domain);
        }
        if let Some(aor) = Aor::new(user, domain).filter(|_| !self.endpoints.is_empty()) {
            for key in self.registrar.keys(&aor) {
                self.endpoints.gone(&key);
            }
        }
    }

    /// Whether we answer PBXs that ask by OPTIONS for users of ours.
    pub fn answers_qualify(&self) -> bool {
        self.settings.registers && self.settings.registrar.answer_qualify
    }

    /// Whether a user of ours is registered: where a PBX asks for him at an address of ours, in any domain.
    pub fn is_registered(&self, now: Instant, uri: &Uri<'_>) -> bool {
        let Some(aor) = Aor::of(uri) else { return false };
        let ip = uri.host.and_then(|host| host.ip());
        let by_address = |ip| self.settings.locals.iter().any(|local| local.ip() == ip);
        let all = match ip.is_some_and(by_address) {
            true => self.registrar.lookup_user(aor.user(), now),
            false => self.registrar.lookup(&aor, now),
        };
        !all.is_empty()
    }

    /// What the PBXs have been told.
    pub fn forking(&self) -> &Forking {
        &self.forking
    }

    /// Who is asked, and how.
    pub fn authenticator(&self) -> Option<&Authenticator> {
        self.authenticator.as_ref()
    }

    /// To forget what was known of users.
    pub fn authenticator_mut(&mut self) -> Option<&mut Authenticator> {
        self.authenticator.as_mut()
    }

    /// The records of calls that go on.
    pub fn accounting(&self) -> Option<&Accounting> {
        self.accounting.as_ref()
    }

    /// As [`Stateful::accounting`]. What it wants is carried out with the next input.
    pub fn accounting_mut(&mut self) -> Option<&mut Accounting> {
        self.accounting.as_mut()
    }

    /// Calls that were placed so far, by the slot of the PBX.
    pub fn placed(&self) -> &[u64] {
        &self.placed
    }

    /// How many requests are being forwarded.
    pub fn contexts(&self) -> usize {
        self.contexts.len()
    }

    /// Whether a URI is of a domain of ours.
    pub fn is_ours(&self, uri: &Uri<'_>) -> bool {
        uri.is_sip() && uri.host.is_some_and(|host| self.registrar.domains().has(host))
    }

    /// How many requests were refused because too much goes on.
    pub fn shed(&self) -> u64 {
        self.admission.shed()
    }

    /// How many transactions there are.
    pub fn transactions(&self) -> usize {
        self.transactions.len()
    }

    /// What happened so far.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    // ---- A request ------------------------------------------------------------------------------

    fn request(&mut self, now: Instant, message: &Message<'_>, flow: Flow) {
        let claim = match self.ask(now, message, flow) {
            Asked::Passed => None,
            Asked::Claim(claim) => Some(claim),
            Asked::Refused(response) => return self.answer_stateless(message, flow, &response),
        };
        self.make_room(now);
        if let Some((id, request)) = self.transact(now, message, flow) {
            self.examine(now, message, claim, Parked { id, request, flow });
        }
    }

    /// Ends what is only there for repetitions, if the next request would be refused otherwise.
    fn make_room(&mut self, now: Instant) {
        // Its own transaction is one of those that are counted when it is let in.
        let room = self.admission.room(admission::Kind::Other).saturating_sub(1);
        self.counts.ended_early += self.transactions.make_room(now, room);
        // A call is forwarded until the transactions of its INVITE are over.
        let calls = self.settings.calls.max_calls;
        if self.contexts.len() >= calls - calls / 10 {
            let ended = self.transactions.end_calls(now, ENDED_FOR_ONE);
            self.counts.ended_early += ended;
            if ended > 0 {
                self.carry_out(now);
            }
        }
    }

    /// Gives a request to its transaction. What comes back starts something; all else has been seen to.
    fn transact(
        &mut self,
        now: Instant,
        message: &Message<'_>,
        flow: Flow,
    ) -> Option<(ServerId, Arc<[u8]>)> {
        match self.transactions.handle_request(now, message, flow) {
            RequestFate::New { id, cancels, .. } if message.method() == Method::Cancel => {
                self.cancel(now, message, id, flow, cancels);
            }
            RequestFate::New { id, request, .. } => return Some((id, request)),
            RequestFate::Ack(_) => {}
            RequestFate::Absorbed => self.counts.absorbed += 1,
            RequestFate::Full => {
                self.counts.full += 1;
                self.answer_stateless(message, flow, &self.unavailable());
            }
            RequestFate::Malformed(error) => {
                self.answer_stateless(message, flow, &Response::from(error));
            }
        }
        None
    }

    /// What the request has to prove, and what it says to that.
    fn ask<'a>(&mut self, now: Instant, message: &Message<'a>, flow: Flow) -> Asked<'a> {
        let source = self.source(flow.peer);
        match &mut self.authenticator {
            Some(asking) => asking.ask(now, message, source, self.registrar.domains()),
            None if source == Source::Other => Asked::Refused(Response::new(403, "Not relaying")),
            None => Asked::Passed,
        }
    }

    /// Who sends from there.
    fn source(&self, from: SocketAddr) -> Source {
        let pbx = self.pbxs.iter().find(|(_, pbx)| pbx.is_at(from));
        match pbx {
            Some((slot, _)) => Source::Pbx(*slot),
            None if self.settings.believed.lookup(from.ip()) & source::TRUSTED != 0 => {
                Source::Trusted
            }
            None => Source::Other,
        }
    }

    /// Examines what a request claims, and lets it through if that is right.
    fn examine(
        &mut self,
        now: Instant,
        message: &Message<'_>,
        claim: Option<Claim<'_>>,
        request: Parked,
    ) {
        let Parked { id, flow, .. } = request;
        let bytes = request.request.clone();
        let verdict = match (&mut self.authenticator, &claim) {
            (Some(asking), Some(claim)) => {
                asking.decide(now, message, self.registrar.domains(), claim, request)
            }
            _ => Verdict::Passed,
        };
        match verdict {
            Verdict::Passed if message.method() == Method::Register => {
                self.register(now, message, id, flow, claim.is_some());
            }
            Verdict::Passed => self.forward(now, message, id, bytes, flow),
            Verdict::Refused(response) => self.answer(now, message, id, flow, &response),
            Verdict::Guessed(response) => {
                self.commands.push_back(Command::Guessed { from: flow.peer.ip() });
                self.answer(now, message, id, flow, &response);
            }
            Verdict::Parked => {}
        }
    }

    /// A parked request: its sender can be examined now.
    fn resume(&mut self, now: Instant, parked: Parked) {
        let mut index = self.index.take().unwrap_or_default();
        let request = parked.request.clone();
        if let Ok(message) = Message::parse(&request, &mut index) {
            match self.ask(now, &message, parked.flow) {
                Asked::Passed => self.examine(now, &message, None, parked),
                Asked::Claim(claim) => self.examine(now, &message, Some(claim), parked),
                Asked::Refused(response) => {
                    self.answer(now, &message, parked.id, parked.flow, &response);
                }
            }
        }
        self.index = Some(index);
    }

    // ---- A response -----------------------------------------------------------------------------

    fn response(&mut self, now: Instant, id: ClientId, message: &Message<'_>) {
        let Self { contexts, transactions, .. } = self;
        if contexts.handle_response(now, transactions, id, message) {
            return;
        }
        let Some(token) = self.flights.get(&id).copied() else { return };
        if message.status().is_some_and(|status| status >= 200) {
            self.flights.remove(&id);
        }
        self.forking.handle_answer(now, token, message);
    }

    // ---- What the parts want --------------------------------------------------------------------

    /// Passes on what the parts want of each other, until none wants anything.
    fn carry_out(&mut self, now: Instant) {
        loop {
            if let Some(command) = self.transactions.poll_command() {
                self.obey_transactions(now, command);
            } else if let Some(command) =
                self.authenticator.as_mut().and_then(Authenticator::poll_command)
            {
                match command {
                    authenticator::Command::Fetch { ticket, user, domain } => {
                        self.commands.push_back(Command::FetchSecrets { ticket, user, domain });
                    }
                    authenticator::Command::Resume(parked) => self.resume(now, parked),
                }
            } else if let Some(command) = self.forking.poll_command() {
                match command {
                    forking::Command::Register(register) => self.tell_pbx(now, &register),
                    forking::Command::Challenged(challenged) => self.authorize(now, &challenged),
                }
            } else if let Some(command) =
                self.accounting.as_mut().and_then(Accounting::poll_command)
            {
                self.commands.push_back(match command {
                    accounting::Command::Cdr(cdr) => Command::Cdr(cdr),
                    accounting::Command::Keep(hash) => Command::KeepCall(hash),
                    accounting::Command::Drop(hash) => Command::DropCall(hash),
                });
            } else {
                return;
            }
        }
    }

    fn obey_transactions(&mut self, now: Instant, command: transaction::Command) {
        let Self { contexts, transactions, .. } = self;
        if contexts.handle(now, transactions, &command) {
            return;
        }
        let id = match command {
            transaction::Command::Send(transmit) => {
                return self.commands.push_back(Command::Send(transmit));
            }
            transaction::Command::Timeout { id, .. }
            | transaction::Command::TransportError { id }
            | transaction::Command::Terminated { id } => id,
        };
        // Whatever ends a request of ours that has no final answer yet: there will be none.
        let TransactionId::Client(id) = id else { return };
        if let Some(token) = self.flights.remove(&id) {
            self.counts.forked_unanswered += 1;
            self.forking.handle_no_answer(now, token);
        }
    }

    // ---- Answers --------------------------------------------------------------------------------

    fn answer(
        &mut self,
        now: Instant,
        message: &Message<'_>,
        id: ServerId,
        flow: Flow,
        response: &Response,
    ) {
        let built = reply::build(message, flow.peer, &self.keys, response.answer());
        let Some((_, bytes)) = built else { return };
        let bytes: Arc<[u8]> = bytes.into();
        if self.transactions.respond(now, id, bytes).is_ok() {
            *self.counts.replies.entry(response.code).or_insert(0) += 1;
        }
    }

    /// Without a transaction: a repetition of the request gets the same answer anew (RFC 3261 8.2.7).
    fn answer_stateless(&mut self, message: &Message<'_>, flow: Flow, response: &Response) {
        if message.method() == Method::Ack {
            return;
        }
        let build = match response.code {
            401 | 407 => reply::build_challenge,
            _ => reply::build,
        };
        // With the key of the proxy, as the kernel's program has it.
        let built = build(message, flow.peer, &self.cookie_keys, response.answer());
        let Some((to, bytes)) = built else { return };
        *self.counts.replies.entry(response.code).or_insert(0) += 1;
        let transmit = Transmit { local: flow.local, to, bytes: bytes.into() };
        self.commands.push_back(Command::Send(transmit));
    }

    fn unavailable(&self) -> Response {
        let retry = format!("Retry-After: {}\r\n", self.settings.retry_after);
        Response::new(503, "Service Unavailable").with(&retry)
    }
}
