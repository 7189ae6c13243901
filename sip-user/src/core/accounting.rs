//! Accounting: one record for each call, whatever becomes of it.
//!
//! A call starts with its INVITE and has the Call-ID and the From tag of that, so an INVITE which is sent again
//! with credentials, to another place or with less in it (RFC 3261 8.1.3.4, 8.1.3.5) belongs to the same call.
//! It ends by a failure, or by the BYE of the last of its dialogs; a BYE that fails ends it too, because its
//! sender has hung up. One whose BYE is never heard is closed by a limit and marked so.
//!
//! Events in, commands out: call `handle_*`, then take commands with [`Accounting::poll_command`] until there are
//! none, and call [`Accounting::handle_timeout`] when [`Accounting::poll_timeout`] says. The number of calls is
//! bounded: where there is no room, a call goes on without a record, and is counted.
//!
//! A call that is carried without memory has a record too (`steered.rs`).

mod cdr;
mod steered;
#[cfg(test)]
mod tests;

use std::collections::{HashMap, VecDeque};
use std::hash::Hasher;
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hashbrown::HashTable;
use sip_ebpf::message::Message;
use siphasher::sip128::{Hasher128, SipHasher13};
use slab::Slab;

pub use cdr::{Cdr, Disposition, Ending};
pub use steered::Moments;

use super::dispatcher::Ticket;
use super::put::{self, Put};
use super::timers::Timers;
use cdr::{Texts, channel};
use steered::Steered;

/// How long a caller may take to send an INVITE again that was refused in a way that asks for it.
const AGAIN: Duration = Duration::from_secs(10);
/// How long a call may go without a final response: longer than any INVITE transaction lasts, so only one
/// that has been forgotten comes to it.
const LONGEST_SETUP: Duration = Duration::from_secs(900);
/// Dialogs of one call, one for each phone that answers. The end of a further one does not count.
const LEGS: usize = 8;
/// How many calls one [`Accounting::handle_timeout`] closes at most.
const CLOSED_AT_ONCE: usize = 1024;

/// What the owner wants.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rules {
    /// Calls at a time; zero where no records are wanted.
    pub max_calls: usize,
    /// How long an answered call may last: one that is as old has lost its BYE.
    pub longest_call: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self { max_calls: 100_000, longest_call: Duration::from_secs(12 * 3600) }
    }
}

/// What the world has to do.
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Store the record of a call, which is over.
    Cdr(Box<Cdr>),
    /// Keep what is known of a steered call for whoever comes after us ([`Accounting::kept`]).
    Keep(u64),
    /// Keep it no longer.
    Drop(u64),
}

/// An INVITE that starts a call.
#[derive(Clone, Copy, Debug)]
pub struct Invite<'a, 'm> {
    /// The request. Its headers have been checked.
    pub message: &'a Message<'m>,
    /// Who sent it.
    pub from: SocketAddr,
    /// The PBX that sent it, if it was one.
    pub pbx: Option<&'a str>,
    /// The user whose credentials it had.
    pub account: Option<&'a str>,
}

/// Names one attempt of a call. It is never the name of another one.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Token {
    slot: u32,
    attempt: u64,
}

/// Whose failure it was.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum By {
    /// The called side answered so.
    Callee,
    /// It is an answer of our own: nobody was there, or it rang for too long.
    Proxy,
}

/// How far a call is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum State {
    /// Its INVITE is on the way.
    Calling,
    /// A phone rings.
    Ringing,
    /// It was answered.
    Answered,
}

impl State {
    /// For people.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Calling => "calling",
            Self::Ringing => "ringing",
            Self::Answered => "answered",
        }
    }
}

/// One call that goes on, for people.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// What its record will be known by.
    pub id: Box<str>,
    /// The caller's number.
    pub from: &'a str,
    /// The called number.
    pub to: &'a str,
    /// How far it is.
    pub state: State,
    /// Since when it is so far.
    pub since: Instant,
    /// When its INVITE came.
    pub started: Instant,
    /// The PBX that it went to, or came from.
    pub pbx: Option<&'a str>,
    /// The caller's address.
    pub caller: SocketAddr,
    /// Where it went last.
    pub callee: Option<SocketAddr>,
    /// The Call-ID.
    pub call_id: &'a str,
}

/// What happened so far.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Calls that have or had a record.
    pub calls: u64,
    /// Records that were handed out.
    pub closed: u64,
    /// Calls without a record, because there was no room.
    pub unrecorded: u64,
    /// Calls that were closed by the limit.
    pub limited: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Accounting {
    rules: Rules,
    /// Which hashes are made with: who calls must not choose where a call falls in the table.
    key: [u64; 2],
    node: u32,
    /// Two readings of one moment.
    clock: (Instant, SystemTime),
    calls: Slab<Call>,
    /// Places in `calls`. Calls that are answered may share a key with the next one.
    by_key: HashTable<u32>,
    ends: Timers,
    steered: Steered,
    attempts: u64,
    sequence: u32,
    counts: Counts,
    commands: VecDeque<Command>,
}

#[derive(Debug)]
struct Call {
    /// Of Call-ID and From tag.
    key: u128,
    attempt: u64,
    sequence: u32,
    cseq: u32,
    started: Instant,
    rang: Option<Instant>,
    answered: Option<Instant>,
    status: u16,
    cancelled: bool,
    /// It has failed in a way that callers answer with another INVITE.
    failed: Option<Failed>,
    legs: Vec<Leg>,
    caller: SocketAddr,
    callee: Option<SocketAddr>,
    from_pbx: bool,
    pbx: Option<Box<str>>,
    /// It is carried without memory, and known by this hash of its Call-ID.
    hash: Option<u64>,
    /// What an earlier daemon has called it.
    id: Option<Box<str>>,
    /// Dropped with the call.
    place: Option<Ticket>,
    texts: Box<Texts>,
}

#[derive(Clone, Copy, Debug)]
struct Failed {
    at: Instant,
    ending: Ending,
}

/// A dialog of a call, by the keyed hash of the callee's tag.
#[derive(Clone, Copy, Debug)]
struct Leg {
    tag: u64,
    ended: bool,
}

impl Call {
    fn state(&self) -> (State, Instant) {
        match (self.answered, self.rang) {
            (Some(at), _) => (State::Answered, at),
            (None, Some(at)) => (State::Ringing, at),
            (None, None) => (State::Calling, self.started),
        }
    }

    fn is_over(&self) -> bool {
        self.answered.is_some() && self.legs.iter().all(|leg| leg.ended)
    }
}

impl Accounting {
    /// `key` is secret, `node` is another one at each node and each start; `clock` are two readings of the same
    /// moment, from which times of day are counted.
    pub fn new(rules: Rules, key: [u64; 2], node: u32, clock: (Instant, SystemTime)) -> Self {
        Self {
            rules,
            key,
            node,
            clock,
            calls: Slab::new(),
            by_key: HashTable::new(),
            ends: Timers::default(),
            steered: Steered::default(),
            attempts: 0,
            sequence: 0,
            counts: Counts::default(),
            commands: VecDeque::new(),
        }
    }

    /// Rules of a new configuration. Calls that are there keep their limits.
    pub fn reload(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// The clock of the day was set: from now on times are counted from these readings.
    pub fn set_clock(&mut self, clock: (Instant, SystemTime)) {
        self.clock = clock;
    }

    // ---- What happens ---------------------------------------------------------------------------

    /// An INVITE has come that starts a call. None if it is without a record: there is no room, or it is the
    /// same call again, that has come back to us by way of a proxy behind us (a spiral, 16.3 step 4).
    pub fn handle_invite(&mut self, now: Instant, invite: Invite<'_, '_>) -> Option<Token> {
        if self.rules.max_calls == 0 && self.calls.is_empty() {
            return None;
        }
        let message = invite.message;
        let from_tag = message.from().ok().and_then(|from| from.tag());
        let key = self.key_of(message.call_id().unwrap_or_default(), from_tag);
        let cseq = message.cseq().map_or(0, |cseq| cseq.number);
        self.attempts += 1;
        let attempt = self.attempts;
        let pending = |slot: &u32| {
            let call = self.calls.get(*slot as usize);
            call.is_some_and(|call| call.key == key && call.answered.is_none())
        };
        if let Some(slot) = self.by_key.find(key as u64, pending).copied() {
            if cseq <= self.calls.get(slot as usize)?.cseq {
                return None;
            }
            self.take_from_steered(slot);
            let call = self.calls.get_mut(slot as usize)?;
            (call.attempt, call.cseq) = (attempt, cseq);
            (call.failed, call.cancelled, call.rang) = (None, false, None);
            call.legs.clear();
            // From the first attempt on, so that who tries for ever ends too.
            let end = call.started.checked_add(LONGEST_SETUP);
            self.ends.set(slot, end);
            return Some(Token { slot, attempt });
        }
        if self.calls.len() >= self.rules.max_calls {
            self.counts.unrecorded += u64::from(self.rules.max_calls != 0);
            return None;
        }
        self.counts.calls += 1;
        self.sequence = self.sequence.wrapping_add(1);
        let call = Call {
            key,
            attempt,
            sequence: self.sequence,
            cseq,
            started: now,
            rang: None,
            answered: None,
            status: 0,
            cancelled: false,
            failed: None,
            legs: Vec::new(),
            caller: invite.from,
            callee: None,
            from_pbx: invite.pbx.is_some(),
            pbx: invite.pbx.map(channel),
            hash: None,
            id: None,
            place: None,
            texts: Box::new(Texts::of(message, invite.account)),
        };
        let slot = self.insert(call)?;
        self.ends.set(slot, now.checked_add(LONGEST_SETUP));
        Some(Token { slot, attempt })
    }

    fn insert(&mut self, call: Call) -> Option<u32> {
        let key = call.key as u64;
        // A slab of more than 2^32 calls does not fit into memory.
        let slot = u32::try_from(self.calls.insert(call)).ok()?;
        let calls = &self.calls;
        self.by_key.insert_unique(key, slot, |slot| {
            calls.get(*slot as usize).map_or(0, |call| call.key as u64)
        });
        Some(slot)
    }

    /// The call is tried at this PBX, or at a phone at this address; at several ones, the last counts.
    pub fn handle_target(&mut self, token: Token, pbx: Option<&str>, address: SocketAddr) {
        let Some(call) = self.call(token) else { return };
        call.callee = Some(address);
        if !call.from_pbx {
            call.pbx = pbx.map(channel);
        }
    }

    /// The call has this place at a PBX until it is over. One that has no record gives it up at once.
    pub fn hold(&mut self, token: Token, place: Ticket) {
        if let Some(call) = self.call(token) {
            call.place = Some(place);
        }
    }

    /// A phone rings: a provisional response above 100 has come.
    pub fn handle_ringing(&mut self, now: Instant, token: Token) {
        if let Some(call) = self.call(token) {
            call.rang.get_or_insert(now);
        }
    }

    /// A 2xx has come, with this To tag. Several phones may answer (13.2.2.4): each has a dialog, and the call
    /// ends with the last of them.
    pub fn handle_answered(
        &mut self,
        now: Instant,
        token: Token,
        status: u16,
        to_tag: Option<&str>,
    ) {
        let tag = self.tag(to_tag);
        let longest = self.rules.longest_call;
        let Some(call) = self.call(token) else { return };
        if !call.legs.iter().any(|leg| leg.tag == tag) && call.legs.len() < LEGS {
            call.legs.push(Leg { tag, ended: false });
        }
        if call.answered.is_none() {
            call.answered = Some(now);
            call.status = status;
            call.failed = None;
            self.ends.set(token.slot, now.checked_add(longest));
        }
        // By a BYE that has overtaken its 2xx.
        if self.call(token).is_some_and(|call| call.is_over()) {
            self.close(token.slot, now, Ending::Caller);
        }
    }

    /// The caller has got this final status, and the call is over unless it was answered.
    pub fn handle_failed(&mut self, now: Instant, token: Token, status: u16, by: By) {
        let Some(call) = self.call(token) else { return };
        if call.answered.is_some() {
            return;
        }
        let ending = match by {
            _ if call.cancelled => Ending::Cancelled,
            By::Callee => Ending::Refused,
            By::Proxy => Ending::Proxy,
        };
        call.status = status;
        if is_sent_again(status) && !call.cancelled {
            call.failed = Some(Failed { at: now, ending });
            let ends = [now.checked_add(AGAIN), call.started.checked_add(LONGEST_SETUP)];
            self.ends.set(token.slot, ends.into_iter().flatten().min());
            return;
        }
        self.close(token.slot, now, ending);
    }

    /// The caller has given up. The call ends when its INVITE is answered with 487, or goes on if a phone was
    /// faster (9.1).
    pub fn handle_cancelled(&mut self, token: Token) {
        if let Some(call) = self.call(token).filter(|call| call.answered.is_none()) {
            call.cancelled = true;
        }
    }

    /// A BYE of either side is on its way to the other one, whatever becomes of it. Says whether it ended a
    /// dialog of a call here.
    pub fn handle_bye(&mut self, now: Instant, bye: &Message<'_>) -> bool {
        let tags = (bye.from().ok(), bye.to().ok());
        let (Ok(call_id), (Some(from), Some(to))) = (bye.call_id(), tags) else { return false };
        for (caller, callee, ending) in
            [(from.tag(), to.tag(), Ending::Caller), (to.tag(), from.tag(), Ending::Callee)]
        {
            let (key, tag) = (self.key_of(call_id, caller), self.tag(callee));
            let Some(slot) = self.dialog(key, tag, ending) else { continue };
            let Some(call) = self.calls.get_mut(slot as usize) else { continue };
            if let Some(leg) = call.legs.iter_mut().find(|leg| leg.tag == tag) {
                leg.ended = true;
            } else if call.legs.len() < LEGS {
                call.legs.push(Leg { tag, ended: true });
            }
            call.cancelled |= call.answered.is_none();
            if call.is_over() {
                self.close(slot, now, ending);
            }
            return true;
        }
        false
    }

    /// Time has passed: calls that have lost their BYE are closed.
    pub fn handle_timeout(&mut self, now: Instant) {
        for _ in 0..CLOSED_AT_ONCE {
            let Some((_, slot)) = self.ends.first().filter(|(end, _)| *end <= now) else { return };
            let Some(call) = self.calls.get(slot as usize) else {
                self.ends.set(slot, None);
                continue;
            };
            match call.failed {
                Some(failed) => self.close(slot, failed.at, failed.ending),
                None => {
                    self.counts.limited += 1;
                    self.close(slot, now, Ending::Limit);
                }
            }
        }
    }

    /// When [`Accounting::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.ends.first().map(|(end, _)| end)
    }

    /// We end: calls are closed, because nobody will hear their BYE; all, unless those that are steered are `kept`.
    pub fn stop(&mut self, now: Instant, kept: bool) {
        let closed = self.calls.iter().filter(|(_, call)| !kept || call.hash.is_none());
        let slots: Vec<_> = closed.map(|(slot, call)| (slot, call.failed)).collect();
        for (slot, failed) in slots {
            let (at, ending) = failed.map_or((now, Ending::Stopped), |f| (f.at, f.ending));
            self.close(slot as u32, at, ending);
        }
    }

    /// What to do next.
    pub fn poll_command(&mut self) -> Option<Command> {
        let command = self.commands.pop_front();
        if self.commands.is_empty() && self.commands.capacity() > 4 * CLOSED_AT_ONCE {
            // What a rush has taken is given back when it is over.
            self.commands = VecDeque::new();
        }
        command
    }

    // ---- What there is --------------------------------------------------------------------------

    /// All calls that go on, in no order.
    pub fn calls(&self) -> impl Iterator<Item = View<'_>> {
        let going_on = self.calls.iter().filter(|(_, call)| call.failed.is_none());
        going_on.map(|(_, call)| {
            let (state, since) = call.state();
            View {
                id: self.unique_id(call),
                from: &call.texts.src,
                to: &call.texts.dst,
                state,
                since,
                started: call.started,
                pbx: call.pbx.as_deref(),
                caller: call.caller,
                callee: call.callee,
                call_id: &call.texts.call_id,
            }
        })
    }

    /// How many calls are kept.
    pub fn len(&self) -> usize {
        self.calls.len()
    }

    /// Whether there is no call.
    pub fn is_empty(&self) -> bool {
        self.calls.is_empty()
    }

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    // ---- Calls ----------------------------------------------------------------------------------

    fn call(&mut self, token: Token) -> Option<&mut Call> {
        let call = self.calls.get_mut(token.slot as usize)?;
        (call.attempt == token.attempt).then_some(call)
    }

    /// The call that a BYE belongs to: one that has this dialog, or one that may have it because it is not
    /// answered yet. A callee has none before it answers.
    fn dialog(&self, key: u128, tag: u64, by: Ending) -> Option<u32> {
        let mut early = None;
        for slot in self.by_key.iter_hash(key as u64) {
            let Some(call) = self.calls.get(*slot as usize).filter(|call| call.key == key) else {
                continue;
            };
            // The BYE of such a one is told otherwise.
            if call.hash.is_some() {
                continue;
            }
            if call.legs.iter().any(|leg| leg.tag == tag && !leg.ended) {
                return Some(*slot);
            }
            if call.answered.is_none() && call.failed.is_none() && by == Ending::Caller {
                early = Some(*slot);
            }
        }
        early
    }

    fn close(&mut self, slot: u32, at: Instant, ending: Ending) {
        let Some(call) = self.calls.try_remove(slot as usize) else { return };
        if let Ok(place) = self.by_key.find_entry(call.key as u64, |other| *other == slot) {
            place.remove();
        }
        self.ends.set(slot, None);
        self.counts.closed += 1;
        if self.calls.is_empty() && self.calls.capacity() > 4 * CLOSED_AT_ONCE {
            self.calls = Slab::new();
            self.by_key = HashTable::new();
        }
        let (hash, cseq) = (call.hash, call.cseq);
        let cdr = self.record(call, at, ending);
        self.commands.push_back(Command::Cdr(Box::new(cdr)));
        if let Some(hash) = hash {
            self.steered_over(hash, at, cseq);
        }
    }

    fn record(&self, call: Call, at: Instant, ending: Ending) -> Cdr {
        let duration = at.saturating_duration_since(call.started);
        let billsec = call.answered.map(|answered| at.saturating_duration_since(answered));
        let calldate = self.unix(call.started);
        let micros = |time: Duration| u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        let after = |time: Duration| calldate.saturating_add(micros(time));
        // It rang until we or the caller had enough, or until nobody knows when.
        let rang_out = call.rang.is_some() && matches!(ending, Ending::Proxy | Ending::Limit);
        let missed = call.cancelled || ending == Ending::Stopped || rang_out;
        let status = match (call.answered, call.status) {
            (None, 0) => 408,
            (_, status) => status,
        };
        let uniqueid = self.unique_id(&call);
        let pbx_or = |pbx: bool, address: Option<SocketAddr>| match &call.pbx {
            Some(id) if pbx => id.clone(),
            _ => address.map(|address| channel(&put::address(address))).unwrap_or_default(),
        };
        let texts = *call.texts;
        Cdr {
            calldate,
            channel: pbx_or(call.from_pbx, Some(call.caller)),
            dstchannel: pbx_or(!call.from_pbx, call.callee),
            lastapp: if call.from_pbx { "location" } else { "dispatch" },
            duration,
            billsec: billsec.unwrap_or_default(),
            disposition: match call.answered {
                Some(_) => Disposition::Answered,
                None => Disposition::of(status, missed),
            },
            uniqueid,
            answerdate: call.answered.map(|at| after(at.saturating_duration_since(call.started))),
            enddate: after(duration),
            sip_code: status,
            ending,
            pbx: call.pbx,
            clid: texts.clid,
            src: texts.src,
            dst: texts.dst,
            dcontext: texts.dcontext,
            lastdata: texts.lastdata,
            accountcode: texts.accountcode,
            call_id: texts.call_id,
        }
    }

    /// Microseconds since 1970; 0 for what is before.
    fn unix(&self, at: Instant) -> u64 {
        let (instant, system) = self.clock;
        let time = match at.checked_duration_since(instant) {
            Some(after) => system.checked_add(after),
            None => system.checked_sub(instant - at),
        };
        let since = time.and_then(|time| time.duration_since(UNIX_EPOCH).ok()).unwrap_or_default();
        u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
    }

    /// In Asterisk's manner the second and a number, and behind it the node.
    fn unique_id(&self, call: &Call) -> Box<str> {
        if let Some(id) = &call.id {
            return id.clone();
        }
        // Ten digits until the year 2286, so that the whole never has more than 31 characters.
        let second = (self.unix(call.started) / 1_000_000).min(9_999_999_999);
        let mut id = String::with_capacity(32);
        id.decimal(second);
        id.ascii(b'.');
        id.decimal(call.sequence.into());
        id.ascii(b'-');
        id.hex(self.node.into(), 8);
        id.into()
    }

    /// What a call is found by: keyed, and of one length however long the texts are.
    fn key_of(&self, call_id: &str, tag: Option<&str>) -> u128 {
        let mut hasher = SipHasher13::new_with_keys(self.key[0], self.key[1]);
        // Neither can hold a zero.
        for part in [call_id.as_bytes(), &[0], tag.unwrap_or_default().as_bytes()] {
            hasher.write(part);
        }
        hasher.finish128().as_u128()
    }

    fn tag(&self, tag: Option<&str>) -> u64 {
        let mut hasher = SipHasher13::new_with_keys(self.key[0], self.key[1]);
        hasher.write(tag.unwrap_or_default().as_bytes());
        hasher.finish()
    }
}

/// Whether callers answer a failure with another INVITE of the same call: with credentials, elsewhere, or with
/// other contents (8.1.3.4, 8.1.3.5, RFC 4028 7.3).
fn is_sent_again(status: u16) -> bool {
    matches!(status, 300..=399 | 401 | 407 | 413 | 415 | 416 | 420 | 421 | 422)
}
