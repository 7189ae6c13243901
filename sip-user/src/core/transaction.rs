//! The transaction layer (RFC 3261 17, with the corrections of RFC 6026 and RFC 4320).
//!
//! See [`Transactions`].

mod answered;
mod client_invite;
mod client_other;
pub(in crate::core) mod derived;
mod key;
mod machine;
mod peers;
mod server_invite;
mod server_other;
mod table;
#[cfg(test)]
mod tests;
mod timers;
mod types;
mod wheel;

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use sip_ebpf::message::Message;
use sip_ebpf::scan::{Index, Method};

pub use key::Branch;
pub use timers::{Limits, Timers};
pub use types::{
    ClientId, Command, Config, Expired, Flow, IdHasher, RequestError, RequestFate, RespondError,
    ResponseFate, ServerId, TransactionId, Transmit,
};

use super::reply;
use answered::{Answered, Kept};
use client_invite::ClientInvite;
use client_other::ClientOther;
use key::{Identity, Key};
use machine::{Context, Line, Machine};
use peers::Peers;
use server_invite::ServerInvite;
use server_other::ServerOther;
use table::{Entry, Table};
use timers::Ticks;
use types::Id;
use wheel::{NEVER, Tick, Wheel};

/// At most so many timers fire in one [`Transactions::handle_timeout`].
const BATCH: usize = 1024;

/// All transactions of one worker, client and server.
///
/// It has no socket and no clock. Its user, the transaction user of RFC 3261 5, hands in what has happened, and
/// then takes what follows from it:
///
/// 1. A message has come in: [`handle_request`] or [`handle_response`] say what becomes of it. The user
///    has found it well-formed before ([`Message::check`]), and a response to have our Via on top.
/// 2. The network reports an error for an address: [`handle_transport_error`].
/// 3. The user answers a request with [`respond`], sends one of its own with [`branch`] and then
///    [`request`], and takes an INVITE back with [`cancel`].
/// 4. When [`poll_timeout`] says: [`handle_timeout`]. Messages that wait in a socket come first, or an answer
///    that is there is taken for one that never came. It does a bounded number of things at a time; as
///    long as [`poll_timeout`] lies in the past there is more.
/// 5. After each of these, [`poll_command`] until there is nothing: what is to be sent, and what the user
///    has to know.
///
/// Each transaction that the user knows, by [`RequestFate::New`] or by [`request`], ends with exactly one
/// [`Command::Terminated`], within a bounded time and whatever its user does. What came before that:
/// [`Command::Timeout`] or [`Command::TransportError`], if it failed.
///
/// What a client transaction does by itself: repetitions, the ACK of a failure (17.1.1.3), the CANCEL with a
/// transaction of its own (9.1). A server transaction: repetitions of its last response, and the 100 of
/// an INVITE (17.2.1), or of another request (RFC 4320 4.1), whose user is slow.
///
/// [`handle_request`]: Self::handle_request
/// [`handle_response`]: Self::handle_response
/// [`handle_transport_error`]: Self::handle_transport_error
/// [`respond`]: Self::respond
/// [`branch`]: Self::branch
/// [`request`]: Self::request
/// [`cancel`]: Self::cancel
/// [`poll_timeout`]: Self::poll_timeout
/// [`handle_timeout`]: Self::handle_timeout
/// [`poll_command`]: Self::poll_command
#[derive(Debug)]
pub struct Transactions {
    key: [u64; 2],
    config: Config,
    ticks: Ticks,
    start: Instant,
    /// Time does not run backwards, whatever the clock does.
    now: Tick,
    table: Table,
    wheel: Wheel,
    peers: Peers,
    kept: [Answered; 2],
    /// Branches made so far.
    branches: u64,
    /// Bytes of messages that are kept.
    held: usize,
    out: VecDeque<Command>,
    /// Working memory.
    index: Box<Index>,
}

/// In.
impl Transactions {
    /// `key` is secret, and another one at each start: branches must never be used again (8.1.1.7).
    pub fn new(key: [u64; 2], config: Config, now: Instant) -> Self {
        Self {
            key,
            config,
            ticks: Ticks::new(&config.timers),
            start: now,
            now: 0,
            table: Table::default(),
            wheel: Wheel::default(),
            peers: Peers::default(),
            kept: Default::default(),
            branches: 0,
            held: 0,
            out: VecDeque::new(),
            index: Box::default(),
        }
    }

    /// A request has come in over `flow`.
    pub fn handle_request(
        &mut self,
        now: Instant,
        request: &Message<'_>,
        flow: Flow,
    ) -> RequestFate {
        let now = self.clock(now);
        let identity = match key::server(self.key, request) {
            Ok(identity) => identity,
            Err(error) => return RequestFate::Malformed(error),
        };
        match request.method() {
            Method::Response => RequestFate::Malformed(sip_ebpf::message::Error::Method),
            Method::Ack => self.ack(now, &identity),
            _ => match self.table.find(identity.own) {
                Some(slot) => {
                    self.with(now, slot, |machine, line, cx| match machine {
                        Machine::ServerInvite(machine) => machine.repeated(line, cx),
                        Machine::ServerOther(machine) => machine.repeated(line, cx),
                        _ => {}
                    });
                    RequestFate::Absorbed
                }
                None => self.new_request(now, request, flow, &identity),
            },
        }
    }

    /// A response has come in.
    pub fn handle_response(&mut self, now: Instant, response: &Message<'_>) -> ResponseFate {
        let now = self.clock(now);
        let Some((slot, status)) = self.client_of(response) else { return ResponseFate::Unmatched };
        let passed = self.with(now, slot, |machine, line, cx| {
            let passed = match machine {
                Machine::ClientInvite(machine) => machine.response(line, cx, status, response),
                Machine::ClientOther(machine) => machine.response(line, cx, status),
                _ => false,
            };
            (passed, cx.id)
        });
        match passed {
            Some((true, TransactionId::Client(id))) => ResponseFate::Of(id),
            Some(_) => ResponseFate::Absorbed,
            None => ResponseFate::Unmatched,
        }
    }

    /// What was sent to `peer` did not arrive: an ICMP error, or no way there. Whoever has sent something
    /// there since the last error, and waits, is told (17.1.4, 17.2.4).
    pub fn handle_transport_error(&mut self, now: Instant, peer: SocketAddr) {
        let now = self.clock(now);
        while let Some(slot) = self.peers.first(peer) {
            let invite = self.table.get(slot).filter(|entry| entry.machine.is_hidden());
            let invite = invite.map(|cancel| key::client(self.key, cancel.key.branch(), "INVITE"));
            self.with(now, slot, Machine::transport_error);
            // A CANCEL that cannot arrive: nor will the final response to its INVITE.
            if let Some(slot) = invite.and_then(|invite| self.table.find(invite)) {
                self.with(now, slot, |machine, _, cx| {
                    if let Machine::ClientInvite(machine) = machine {
                        machine.cancel_failed(cx);
                    }
                });
            }
        }
    }

    /// Answers a request. A final response may only be repeated if it is a 2xx to an INVITE.
    pub fn respond(
        &mut self,
        now: Instant,
        id: ServerId,
        response: impl Into<Arc<[u8]>>,
    ) -> Result<(), RespondError> {
        let now = self.clock(now);
        let response = response.into();
        let status = status(&response).ok_or(RespondError::NotAResponse)?;
        let slot = self.table.slot(id.0).ok_or(RespondError::Gone)?;
        let done = self.with(now, slot, |machine, line, cx| match machine {
            Machine::ServerInvite(machine) => machine.respond(line, cx, status, response),
            Machine::ServerOther(machine) => machine.respond(line, cx, status, response),
            _ => Err(RespondError::Gone),
        });
        done.unwrap_or(Err(RespondError::Gone))
    }

    /// Ends transactions until there are fewer than `most`, or none is left that can go: those that are only there for
    /// repetitions, the oldest first. First those of requests that are no INVITE, if they were answered at least T2
    /// ago: by then a client that has no answer has asked for it three times. Then those of INVITEs, if they were answered
    /// at least twice as long ago: by then a PBX that has no ACK has sent its answer five times. Says how many have
    /// ended.
    ///
    /// The RFCs keep all of these for 64 T1 (RFC 3261 17.1.1.2 and 17.2.2, RFC 6026 7.1 and 7.2). That is memory for 32 s of
    /// repetitions that hardly ever come, and without it what is asked for next would be refused.
    pub fn make_room(&mut self, now: Instant, most: usize) -> u64 {
        let mut ended = 0;
        if self.table.len() < most {
            return ended;
        }
        let now = self.clock(now);
        while self.table.len() >= most
            && (self.end_oldest(now, Kept::Answered) || self.end_oldest(now, Kept::Invite))
        {
            ended += 1;
        }
        ended
    }

    /// Ends the oldest of the transactions of INVITEs that are only there for repetitions, `most` of them if there are so
    /// many that may go. Says how many have ended.
    pub fn end_calls(&mut self, now: Instant, most: usize) -> u64 {
        let now = self.clock(now);
        (0..most).take_while(|_| self.end_oldest(now, Kept::Invite)).count() as u64
    }

    /// Whether there was one.
    fn end_oldest(&mut self, now: Tick, kept: Kept) -> bool {
        let age = match kept {
            Kept::Answered => self.ticks.t2,
            Kept::Invite => 2 * self.ticks.t2,
        };
        let Some(before) = now.checked_sub(age) else { return false };
        while let Some(id) = self.kept[kept as usize].pop(before) {
            if let Some(slot) = self.table.slot(id) {
                self.with(now, slot, |machine, _, _| machine.forget());
                return true;
            }
        }
        false
    }

    /// The branch of the next request: no other has it.
    pub fn branch(&mut self) -> Branch {
        self.branches += 1;
        Branch::new(self.key, self.branches).of_worker(self.config.worker)
    }

    /// Sends a request of ours, whose top Via has this branch, to `flow.peer`, and takes care of it until
    /// its final response is there. `limits` make it fail earlier than the RFC's timers.
    pub fn request(
        &mut self,
        now: Instant,
        branch: Branch,
        flow: Flow,
        limits: Limits,
        request: impl Into<Arc<[u8]>>,
    ) -> Result<ClientId, RequestError> {
        let now = self.clock(now);
        let bytes: Arc<[u8]> = request.into();
        let method = method(&bytes).ok_or(RequestError::Method)?;
        let key = key::client(self.key, branch, method);
        if self.table.find(key).is_some() {
            return Err(RequestError::Branch);
        }
        if self.is_full(bytes.len(), false) {
            return Err(RequestError::Full);
        }
        let is_invite = method == "INVITE";
        let line = Line::new(flow, bytes);
        let id = self.insert(now, key, TransactionId::client, line, |line, cx| match is_invite {
            true => Machine::ClientInvite(ClientInvite::start(line, cx, limits)),
            false => Machine::ClientOther(ClientOther::start(line, cx, limits, false)),
        });
        id.map(ClientId).ok_or(RequestError::Full)
    }

    /// Sends what has no transaction, once: the ACK of a 2xx (13.2.2.4). It leaves before what comes after it.
    pub fn send(&mut self, flow: Flow, request: impl Into<Arc<[u8]>>) {
        let Flow { local, peer, .. } = flow;
        self.out.push_back(Command::Send(Transmit { local, to: peer, bytes: request.into() }));
    }

    /// Takes an INVITE of ours back: with a CANCEL, as soon as a provisional response is there (9.1). The
    /// transaction goes on, until a final response comes or 64 T1 have passed. Nothing happens if there is a
    /// final response, or no such INVITE.
    pub fn cancel(&mut self, now: Instant, id: ClientId) {
        let now = self.clock(now);
        let Some(slot) = self.table.slot(id.0) else { return };
        self.with(now, slot, |machine, line, cx| {
            if let Machine::ClientInvite(machine) = machine {
                machine.cancel(line, cx);
            }
        });
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let now = self.clock(now);
        for _ in 0..BATCH {
            let Some(slot) = self.wheel.pop(now) else { break };
            self.with(now, slot, Machine::timeout);
        }
    }
}

/// Out.
impl Transactions {
    /// When [`Transactions::handle_timeout`] is to be called. Now and then there is nothing to do then.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.start.checked_add(Duration::from_millis(self.wheel.next()?))
    }

    /// What is to be done next, in order.
    pub fn poll_command(&mut self) -> Option<Command> {
        let command = self.out.pop_front();
        if self.out.is_empty() && self.out.capacity() > 4 * BATCH {
            self.out = VecDeque::new();
        }
        command
    }

    /// How many transactions there are, CANCELs of ours included.
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether there is no transaction.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of messages that are kept to be sent again. Those that the user holds as well count here too.
    pub fn held_bytes(&self) -> usize {
        self.held
    }
}

impl Transactions {
    /// Whole ticks.
    fn clock(&mut self, now: Instant) -> Tick {
        let passed = now.saturating_duration_since(self.start).as_millis();
        self.now = self.now.max(Tick::try_from(passed).unwrap_or(NEVER >> 1).min(NEVER >> 1));
        self.wheel.advance(self.now);
        self.now
    }

    /// Whether there is no room for one more transaction that keeps `bytes`. An eighth on top is kept for
    /// CANCELs: they are what makes room.
    fn is_full(&self, bytes: usize, is_cancel: bool) -> bool {
        let with_reserve = |limit: usize| match is_cancel {
            true => limit.saturating_add(limit / 8),
            false => limit,
        };
        self.table.len() >= with_reserve(self.config.transactions)
            || self.held.saturating_add(bytes) > with_reserve(self.config.bytes)
    }

    fn new_request(
        &mut self,
        now: Tick,
        request: &Message<'_>,
        flow: Flow,
        identity: &Identity,
    ) -> RequestFate {
        let mut flow = flow;
        if !flow.reliable {
            match request.top_via() {
                Ok(via) => flow.peer = reply::way_back(&via, flow.peer),
                Err(error) => return RequestFate::Malformed(error),
            }
        }
        let is_cancel = request.method() == Method::Cancel;
        let invite = if is_cancel { self.table.find(identity.invite) } else { None };
        if self.is_full(request.bytes().len(), invite.is_some()) {
            return RequestFate::Full;
        }
        let bytes: Arc<[u8]> = request.bytes().into();
        let line = Line::new(flow, bytes.clone());
        let is_invite = request.method() == Method::Invite;
        let id =
            self.insert(
                now,
                identity.own,
                TransactionId::server,
                line,
                |line, cx| match is_invite {
                    true => {
                        let legacy = identity.legacy.is_some();
                        Machine::ServerInvite(ServerInvite::start(line, cx, legacy))
                    }
                    false => Machine::ServerOther(ServerOther::start(line, cx)),
                },
            );
        let Some(id) = id else { return RequestFate::Full };
        let cancels = match invite.and_then(|invite| self.table.id(invite)) {
            Some(TransactionId::Server(invite)) => Some(invite),
            _ => None,
        };
        RequestFate::New { id: ServerId(id), request: bytes, cancels }
    }

    fn ack(&mut self, now: Tick, identity: &Identity) -> RequestFate {
        let found = match identity.legacy {
            None => self.table.find(identity.invite),
            Some(legacy) => [identity.invite, legacy.invite_without_tag]
                .into_iter()
                .filter_map(|key| self.table.find(key))
                .find(|slot| match self.table.get(*slot).map(|entry| &entry.machine) {
                    Some(Machine::ServerInvite(machine)) => machine.has_to_tag(legacy.to_tag),
                    _ => false,
                }),
        };
        let Some(slot) = found else { return RequestFate::Ack(None) };
        let passed = self.with(now, slot, |machine, line, cx| match (machine, cx.id) {
            (Machine::ServerInvite(machine), TransactionId::Server(id)) => {
                machine.ack(line, cx).then_some(id)
            }
            _ => None,
        });
        match passed.flatten() {
            Some(id) => RequestFate::Ack(Some(id)),
            None => RequestFate::Absorbed,
        }
    }

    /// The client transaction that a response belongs to (17.1.3), and its status.
    fn client_of(&self, response: &Message<'_>) -> Option<(u32, u16)> {
        let status = response.status()?;
        let branch = Branch::parse(response.top_via().ok()?.branch?)?;
        let method = response.cseq().ok()?.method;
        Some((self.table.find(key::client(self.key, branch, method))?, status))
    }

    /// Makes a transaction and starts it. The caller has seen that its key is new. None if no number is left.
    fn insert(
        &mut self,
        now: Tick,
        key: Key,
        id: fn(Id) -> TransactionId,
        mut line: Line,
        start: impl FnOnce(&mut Line, &mut Context<'_>) -> Machine,
    ) -> Option<Id> {
        let vacant = self.table.vacant()?;
        let mut cx = Context {
            now,
            late: 0,
            ticks: &self.ticks,
            id: id(vacant),
            key: self.key,
            out: &mut self.out,
            index: &mut self.index,
            cancel: None,
        };
        let machine = start(&mut line, &mut cx);
        self.held += line.held();
        self.table.insert(vacant, Entry { key, line, machine });
        self.settle(vacant.slot);
        Some(vacant)
    }

    /// Lets a machine work, and does what follows for its timer and its place here.
    fn with<R>(
        &mut self,
        now: Tick,
        slot: u32,
        act: impl FnOnce(&mut Machine, &mut Line, &mut Context<'_>) -> R,
    ) -> Option<R> {
        let id = self.table.id(slot)?;
        let entry = self.table.get_mut(slot)?;
        let mut cx = Context {
            now,
            late: 0,
            ticks: &self.ticks,
            id,
            key: self.key,
            out: &mut self.out,
            index: &mut self.index,
            cancel: None,
        };
        self.held -= entry.line.held();
        let before = entry.machine.kept();
        let done = act(&mut entry.machine, &mut entry.line, &mut cx);
        let after = entry.machine.kept();
        self.held += entry.line.held();
        if let Some(bytes) = cx.cancel.take() {
            let (branch, flow) = (entry.key.branch(), entry.line.flow);
            self.start_cancel(now, branch, flow, bytes);
        }
        if let Some(kept) = after.filter(|_| before.is_none()) {
            let (TransactionId::Client(ClientId(id)) | TransactionId::Server(ServerId(id))) = id;
            self.kept[kept as usize].push(id, now, |id| self.table.slot(id).is_some());
        }
        self.settle(slot);
        Some(done)
    }

    /// The CANCEL of an INVITE of ours has a transaction of its own, with the same branch (9.1).
    fn start_cancel(&mut self, now: Tick, branch: Branch, flow: Flow, bytes: Vec<u8>) {
        let key = key::client(self.key, branch, "CANCEL");
        if self.table.find(key).is_some() || self.is_full(bytes.len(), true) {
            return;
        }
        let line = Line::new(flow, bytes.into());
        self.insert(now, key, TransactionId::client, line, |line, cx| {
            Machine::ClientOther(ClientOther::start(line, cx, Limits::default(), true))
        });
    }

    /// Sets the timer of a transaction that has moved, or takes it out if it has ended.
    fn settle(&mut self, slot: u32) {
        let Some(entry) = self.table.get(slot) else { return };
        let line = &entry.line;
        if !entry.machine.is_terminated() {
            self.wheel.set(slot, line.again.min(line.end));
            return self.peers.set(slot, line.flow.peer, line.errors);
        }
        self.wheel.stop(slot);
        self.peers.set(slot, line.flow.peer, false);
        if let Some(id) = self.table.id(slot).filter(|_| !entry.machine.is_hidden()) {
            self.out.push_back(Command::Terminated { id });
        }
        self.held -= line.held();
        self.table.remove(slot);
        if self.table.is_empty() {
            // What a rush has taken is given back when it is over.
            self.table.release();
            self.wheel.release();
            self.peers.release();
            self.kept.iter_mut().for_each(Answered::release);
        }
    }
}

/// The status of a response.
fn status(response: &[u8]) -> Option<u16> {
    let digits = response.strip_prefix(b"SIP/2.0 ")?.get(..3)?;
    let status: u16 = str::from_utf8(digits).ok()?.parse().ok()?;
    (100..700).contains(&status).then_some(status)
}

/// The method of a request that may have a client transaction of its own.
fn method(request: &[u8]) -> Option<&str> {
    let end = request.iter().position(|byte| *byte == b' ')?;
    let method = str::from_utf8(&request[..end]).ok()?;
    let other =
        method.is_empty() || method.starts_with("SIP/") || matches!(method, "ACK" | "CANCEL");
    (!other).then_some(method)
}
