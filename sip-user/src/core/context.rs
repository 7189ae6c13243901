//! Requests that are forwarded statefully (RFC 3261 16), each with its response context.
//!
//! See [`Contexts`].

pub(in crate::core) mod best;
pub(in crate::core) mod forward;
pub(in crate::core) mod late;
mod looped;
mod outcome;
mod state;
#[cfg(test)]
mod tests;
mod types;

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::time::Instant;

use sip_ebpf::hash::Keys;
use sip_ebpf::message::Message;
use sip_ebpf::scan::{Index, Method};
use slab::Slab;

pub use types::{
    BranchName, Command, ContextId, Failure, Hunt, Settings, Start, Target, Unavailable,
};

use super::reply::{self, Response};
use super::transaction::{self, ClientId, IdHasher, ServerId, TransactionId, Transactions};
use forward::{Hops, Original};
use state::{Branch, Context};

/// All response contexts of one worker.
///
/// It is a transaction user (RFC 3261 5, 16.2): its owner has the [`Transactions`], and lends them with each
/// input. The grammar:
///
/// 1. A request that is to be forwarded, as [`transaction::RequestFate::New`] has it: [`start`] with its
///    targets. A CANCEL: [`cancel`].
/// 2. A response that is for the user: [`handle_response`]. A command of the transactions other than
///    [`transaction::Command::Send`]: [`handle`]. Both say whether it was about one of ours.
/// 3. After each of these [`poll_command`], until there is nothing. [`Command::Exhausted`] is answered by
///    [`add`] or [`finish`].
///
/// Each context that [`start`] has made ends with exactly one of [`Command::Answered`], [`Command::Failed`] and
/// [`Command::Cancelled`], when its sender is told, and later with one [`Command::Ended`]. Whatever its owner
/// does, that comes within a bounded time, because all its transactions end.
///
/// A 2xx is forwarded at once, and whoever is still tried is cancelled (16.7 steps 5 and 10). The 2xx of a
/// target that was given up is forwarded too as long as nobody else has answered. If somebody has, or the
/// caller has heard a failure, it is acknowledged and ended here.
///
/// [`start`]: Self::start
/// [`cancel`]: Self::cancel
/// [`handle_response`]: Self::handle_response
/// [`handle`]: Self::handle
/// [`poll_command`]: Self::poll_command
/// [`add`]: Self::add
/// [`finish`]: Self::finish
#[derive(Debug)]
pub struct Contexts {
    /// Detects loops.
    key: [u64; 2],
    /// Makes the tags of our answers.
    keys: Keys,
    settings: Settings,
    contexts: Slab<Context>,
    by_client: HashMap<ClientId, Owner, IdHasher>,
    by_server: HashMap<ServerId, u32, IdHasher>,
    /// Contexts so far: tells one from the next in the same place.
    serial: u32,
    out: VecDeque<Command>,
    /// Working memory, kept between messages.
    index: Option<Box<Index>>,
}

/// Whose a client transaction is.
#[derive(Clone, Copy, Debug)]
enum Owner {
    Context(u32),
    /// Nobody's: a BYE of ours.
    Bye,
}

/// In.
impl Contexts {
    /// `key` is what tags of ours and the detection of loops are made with.
    pub fn new(key: [u64; 2], settings: Settings) -> Self {
        Self {
            key,
            keys: Keys::new(key),
            settings,
            contexts: Slab::new(),
            by_client: HashMap::default(),
            by_server: HashMap::default(),
            serial: 0,
            out: VecDeque::new(),
            index: None,
        }
    }

    /// Takes over what a reload may change: everything but the order of our addresses.
    pub fn set_settings(&mut self, settings: Settings) {
        self.settings = settings;
    }

    /// Forwards a request to the first of its targets. If it must not go on (16.3: loops, Max-Forwards,
    /// Max-Breadth), or there is no room, it is answered here, and the error is the status.
    pub fn start(
        &mut self,
        now: Instant,
        transactions: &mut Transactions,
        start: Start,
        targets: Vec<Target>,
    ) -> Result<ContextId, u16> {
        let request = start.request.clone();
        let mut index = self.index.take().unwrap_or_default();
        let started = match Message::parse(&request, &mut index) {
            Ok(message) => self.start_read(now, transactions, start, targets, &message),
            Err(_) => Err(400),
        };
        self.index = Some(index);
        started
    }

    /// As [`Contexts::start`], where the request has been read: `message` is [`Start::request`].
    pub fn start_read(
        &mut self,
        now: Instant,
        transactions: &mut Transactions,
        start: Start,
        targets: Vec<Target>,
        message: &Message<'_>,
    ) -> Result<ContextId, u16> {
        let slot = self.admit(now, transactions, start, targets, message)?;
        let serial = self.serial;
        self.launch(now, transactions, slot, message);
        self.advance(now, transactions, slot);
        Ok(ContextId { slot, serial })
    }

    /// More targets for a context that still may have some. Says whether it may: nobody has answered for all,
    /// and the caller has not taken the request back.
    pub fn add(
        &mut self,
        now: Instant,
        transactions: &mut Transactions,
        context: ContextId,
        targets: Vec<Target>,
    ) -> bool {
        let most = self.settings.targets;
        let Some(found) = self.context(context).filter(|context| context.is_open()) else {
            return false;
        };
        found.put(targets, most);
        found.asked = false;
        self.advance(now, transactions, context.slot);
        true
    }

    /// There are no more targets for a context that has asked for some: its sender is answered with the best
    /// response, or with this one, whose status is 300 or above.
    pub fn finish(
        &mut self,
        now: Instant,
        transactions: &mut Transactions,
        context: ContextId,
        answer: Option<Response>,
    ) {
        let Some(found) = self.context(context) else { return };
        found.more = false;
        found.answer = answer;
        self.advance(now, transactions, context.slot);
    }

    /// A CANCEL (16.10), the bytes of which came from `from`: it is answered, and the request that it is about,
    /// if that is known, is taken back from all targets. Gives the owner's mark of the request ([`Start::owner`]) if
    /// it was one of ours that has no final response yet.
    pub fn cancel(
        &mut self,
        now: Instant,
        transactions: &mut Transactions,
        id: ServerId,
        request: &[u8],
        from: SocketAddr,
        cancels: Option<ServerId>,
    ) -> Option<u64> {
        let (code, phrase) = match cancels {
            Some(_) => (200, "OK"),
            None => (481, "Call/Transaction Does Not Exist"),
        };
        self.answer(now, transactions, id, request, from, code, phrase, "");
        let slot = *self.by_server.get(&cancels?)?;
        let context = self.contexts.get_mut(slot as usize).filter(|found| !found.done)?;
        let owner = context.owner;
        context.cancelled = true;
        context.waiting.clear();
        context.cancel_all(now, transactions);
        self.advance(now, transactions, slot);
        Some(owner)
    }

    /// A response to a request of ours has come in. Says whether it was.
    pub fn handle_response(
        &mut self,
        now: Instant,
        transactions: &mut Transactions,
        client: ClientId,
        response: &Message<'_>,
    ) -> bool {
        let slot = match self.by_client.get(&client) {
            Some(Owner::Context(slot)) => *slot,
            Some(Owner::Bye) => return true,
            None => return false,
        };
        match response.status() {
            None | Some(..=100) => {}
            Some(status @ 101..=199) => {
                self.provisional(now, transactions, slot, client, status, response);
            }
            Some(status @ 200..=299) => {
                self.success(now, transactions, slot, client, status, response);
            }
            Some(status) => self.failure(now, transactions, slot, client, status, response),
        }
        true
    }

    /// What the transactions have said. Says whether it was about one of ours.
    pub fn handle(
        &mut self,
        now: Instant,
        transactions: &mut Transactions,
        command: &transaction::Command,
    ) -> bool {
        let id = match command {
            transaction::Command::Send(_) => return false,
            transaction::Command::Timeout { id, .. }
            | transaction::Command::TransportError { id }
            | transaction::Command::Terminated { id } => *id,
        };
        let client = match id {
            TransactionId::Client(client) => client,
            TransactionId::Server(server) => {
                let Some(slot) = self.by_server.get(&server).copied() else { return false };
                if matches!(command, transaction::Command::Terminated { .. }) {
                    self.by_server.remove(&server);
                    self.abandoned(now, transactions, slot);
                }
                return true;
            }
        };
        let slot = match self.by_client.get(&client) {
            Some(Owner::Context(slot)) => *slot,
            Some(Owner::Bye) => {
                if matches!(command, transaction::Command::Terminated { .. }) {
                    self.by_client.remove(&client);
                }
                return true;
            }
            None => return false,
        };
        match *command {
            transaction::Command::Timeout { why, late, .. } => {
                let failure = Failure::Timeout { why, late };
                self.silent(now, transactions, slot, client, failure);
            }
            _ => self.silent(now, transactions, slot, client, Failure::Transport),
        }
        true
    }
}

/// Out.
impl Contexts {
    /// What has happened, in order.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.out.pop_front()
    }

    /// How many contexts there are.
    pub fn len(&self) -> usize {
        self.contexts.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.contexts.is_empty()
    }
}

impl Contexts {
    fn context(&mut self, id: ContextId) -> Option<&mut Context> {
        self.contexts.get_mut(id.slot as usize).filter(|context| context.serial == id.serial)
    }

    /// What 16.3 has a proxy look for, as far as a stateful one does it here, and room.
    fn admit(
        &mut self,
        now: Instant,
        transactions: &mut Transactions,
        start: Start,
        targets: Vec<Target>,
        message: &Message<'_>,
    ) -> Result<u32, u16> {
        let Start { server, ref request, from, hunt, .. } = start;
        let breadth = forward::breadth(message);
        let hash = looped::hash(self.key, message, hunt);
        let looped = hash.and_then(|hash| Ok((hash, looped::is_looped(message, hash)?)));
        let refused = match looped {
            Err(_) => Some((400, "Bad Request")),
            Ok(_) if forward::hops(message) == Hops::None => Some((483, "Too Many Hops")),
            Ok((_, true)) => Some((482, "Loop Detected")),
            Ok(_) if breadth == 0 => Some((440, "Max-Breadth Exceeded")),
            Ok(_) if self.contexts.len() >= self.settings.contexts => {
                Some((503, "Service Unavailable"))
            }
            Ok(_) => None,
        };
        let is_invite = message.method() == Method::Invite;
        let trying = start.trying && is_invite;
        if let Some((code, phrase)) = refused.or(trying.then_some((100, "Trying"))) {
            let headers = match code {
                100 => reply::timestamp(message),
                503 => format!("Retry-After: {}\r\n", self.settings.retry_after),
                _ => String::new(),
            };
            let answer = reply::Answer { code, phrase, headers: &headers };
            if let Some((_, bytes)) = reply::build(message, from, &self.keys, answer)
                && transactions.respond(now, server, bytes).is_err()
            {
                // It is gone, or was taken back.
                return Err(487);
            }
        }
        let (Ok((hash, _)), None) = (looped, refused) else {
            return Err(refused.map_or(400, |(code, _)| code));
        };
        self.serial = self.serial.wrapping_add(1);
        let above = message.record_routes().count();
        let mut context = Context {
            serial: self.serial,
            server,
            owner: start.owner,
            from,
            request: Some(request.clone()),
            is_invite,
            hunt,
            unavailable: start.unavailable,
            more: start.more,
            asked: false,
            cancelled: false,
            closed: false,
            done: false,
            answer: None,
            above: u8::try_from(above).unwrap_or(u8::MAX),
            breadth,
            hash,
            best: best::Best::default(),
            waiting: VecDeque::new(),
            branches: Vec::new(),
        };
        context.put(targets, self.settings.targets);
        let slot = self.contexts.insert(context) as u32;
        self.by_server.insert(server, slot);
        Ok(slot)
    }

    /// Goes on: to the next targets if those before have failed, or to the end.
    fn advance(&mut self, now: Instant, transactions: &mut Transactions, slot: u32) {
        while let Some(context) = self.contexts.get_mut(slot as usize) {
            if context.done || context.is_pending() {
                break;
            }
            if context.is_open() && !context.waiting.is_empty() {
                self.launch_again(now, transactions, slot);
            } else if context.is_open() && context.more {
                if !context.asked {
                    context.asked = true;
                    let Context { serial, owner, .. } = *context;
                    let context = ContextId { slot, serial };
                    self.out.push_back(Command::Exhausted { context, owner });
                }
                return;
            } else {
                self.fail(now, transactions, slot);
            }
        }
        self.end_if_over(slot);
    }

    /// As [`Contexts::launch`], for a request whose bytes alone are left.
    fn launch_again(&mut self, now: Instant, transactions: &mut Transactions, slot: u32) {
        let Some(context) = self.contexts.get_mut(slot as usize) else { return };
        let Some(request) = context.request.clone() else {
            context.waiting.clear();
            return;
        };
        let mut index = self.index.take().unwrap_or_default();
        match Message::parse(&request, &mut index) {
            Ok(message) => self.launch(now, transactions, slot, &message),
            Err(_) => context.waiting.clear(),
        }
        self.index = Some(index);
    }

    /// Sends the request to the next group of targets (16.6).
    fn launch(
        &mut self,
        now: Instant,
        transactions: &mut Transactions,
        slot: u32,
        message: &Message<'_>,
    ) {
        let Some(context) = self.contexts.get_mut(slot as usize) else { return };
        let group = context.next_group();
        let Settings { locals, realms, .. } = &self.settings;
        let original = Original { message, from: context.from, locals, realms };
        let count = u16::try_from(group.len()).unwrap_or(u16::MAX).max(1);
        for (number, target) in (0u16..).zip(group) {
            let spare = u16::from(number < context.breadth % count);
            let breadth = context.breadth / count + spare;
            let branch = transactions.branch();
            let text = looped::branch(branch, context.hash);
            let made = forward::request(original, &target, &text, breadth);
            let sent = match made {
                Ok(Some(bytes)) => transactions
                    .request(now, branch, target.flow, target.limits, bytes)
                    .map_err(|_| 503),
                Ok(None) => Err(513),
                Err(_) => Err(500),
            };
            let ours = target.record_routes.iter().flatten().count() as u8;
            let above = context.above.saturating_add(ours);
            match sent {
                Ok(client) => {
                    context.branches.push(Branch::new(client, &target, above));
                    self.by_client.insert(client, Owner::Context(slot));
                }
                Err(status) => {
                    // Nor would it be sent to another one.
                    context.closed = true;
                    context.best.local(status);
                    let branch = context.name(slot, target.tag);
                    let failure = Failure::NotSent;
                    self.out.push_back(Command::BranchFailed { branch, failure });
                }
            }
        }
    }

    /// An answer of ours to a request.
    #[allow(clippy::too_many_arguments, reason = "what an answer consists of")]
    fn answer(
        &mut self,
        now: Instant,
        transactions: &mut Transactions,
        server: ServerId,
        request: &[u8],
        from: SocketAddr,
        code: u16,
        phrase: &str,
        headers: &str,
    ) {
        let mut index = self.index.take().unwrap_or_default();
        if let Ok(message) = Message::parse(request, &mut index) {
            let answer = reply::Answer { code, phrase, headers };
            if let Some((_, bytes)) = reply::build(&message, from, &self.keys, answer) {
                // It is gone if its sender is: then nobody waits.
                let _ = transactions.respond(now, server, bytes);
            }
        }
        self.index = Some(index);
    }

    /// Lets go of the transactions of a context: what comes of them is of no interest.
    fn forget_branches(&mut self, slot: u32) {
        let Some(context) = self.contexts.get_mut(slot as usize) else { return };
        for branch in context.branches.drain(..) {
            self.by_client.remove(&branch.client);
        }
    }

    fn end_if_over(&mut self, slot: u32) {
        let Some(context) = self.contexts.get(slot as usize) else { return };
        if !context.done || !context.branches.is_empty() {
            return;
        }
        let Context { serial, server, owner, .. } = *context;
        self.contexts.remove(slot as usize);
        self.by_server.remove(&server);
        self.out.push_back(Command::Ended { context: ContextId { slot, serial }, owner });
        if self.contexts.is_empty() {
            // What a rush has taken is given back when it is over.
            self.contexts = Slab::new();
            self.by_server = HashMap::default();
            self.by_client.shrink_to_fit();
        }
    }
}
