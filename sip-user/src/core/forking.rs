//! Registration forking: every PBX is told which users are registered here.
//!
//! A PBX gets a REGISTER of our own for each user, with a Contact at our address, so that it sends calls for
//! that user to us. What is told is the state of the user, not the REGISTERs of his phones: until when the last
//! of his contacts lasts, or that there is none.
//!
//! State in, commands out, as in [`super::dispatcher`]: after any input take commands with
//! [`Forking::poll_command`] until there are none, and call [`Forking::handle_timeout`] when
//! [`Forking::poll_timeout`] says. Nothing here is waited for: the phone has its 200 long since.
//!
//! For each user and PBX there is a [`Leg`], of which at most one REGISTER is on its way. It is due when the user
//! has changed, before what the PBX has granted ends, and again after a failure, later each time. What is due
//! leaves in the order of its time, a bounded number in a second and at once. A PBX that is away, in the view of
//! the dispatcher or because it is silent, is left alone; when it is back, all users are told to it again in the
//! same measure, whatever it may still know.
//!
//! The transaction that carries a REGISTER is somebody else's: it makes the Via, repeats the request, and
//! says [`Forking::handle_answer`] or [`Forking::handle_no_answer`].

mod pbx;
mod request;

use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use hashbrown::HashTable;
use sip_ebpf::message::Message;
use sip_ebpf::siphash::siphash;
use sip_ebpf::tables::MAX_PBX;
use slab::Slab;

use super::family::{ByFamily, Family};
use super::moment::Moment;
use super::text::Text;
use super::timers::{Timers, grow};
use pbx::{Flight, Need, Pbx, State, backoff, need};
use request::Saying;

/// REGISTERs may leave this much earlier than their rate has it, to make up for a late timer.
const BURST: Duration = Duration::from_millis(100);
/// The longest Min-Expires that is honoured (10.2.8): a day.
const LONGEST_MINIMUM: u32 = 86_400;
/// How often one REGISTER may be challenged: once, and once more because the nonce was stale.
const CHALLENGES: u8 = 2;
/// How often in a row a 423 is followed.
const BRIEF: u8 = 3;
/// The soonest that a registration is refreshed.
const SOONEST: Duration = Duration::from_secs(1);
/// How many that are due but need nothing are looked at in one go.
const PARKED_AT_ONCE: usize = 4096;

/// How PBXs are told.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rules {
    /// REGISTERs in a second to one PBX; at least 1.
    pub rate: u32,
    /// REGISTERs on their way to one PBX at once; at least 1.
    pub in_flight: usize,
    /// How long after a failure the next try is; doubled with each one.
    pub first_retry: Duration,
    /// The longest time between two tries.
    pub last_retry: Duration,
    /// How long after a refusal (4xx, 6xx) the next try is, unless the user goes or comes.
    pub refused: Duration,
    /// How many REGISTERs in a row without an answer show that a PBX is away.
    pub silent: u32,
    /// How long a REGISTER is waited for whose transaction says nothing; longer than timer F (17.1.2.2).
    pub patience: Duration,
    /// How many users there may be.
    pub max_users: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            rate: 200,
            in_flight: 32,
            first_retry: Duration::from_secs(4),
            last_retry: Duration::from_secs(600),
            refused: Duration::from_secs(3600),
            silent: 3,
            patience: Duration::from_secs(40),
            max_users: 500_000,
        }
    }
}

/// Which REGISTER it is.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Token(u64);

/// What the world has to do.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Command {
    /// Send it in a transaction of its own.
    Register(Register),
    /// The PBX wants credentials: make them, and call [`Forking::authorize`].
    Challenged(Challenged),
}

/// A REGISTER to send.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Register {
    /// For its answer.
    pub token: Token,
    /// Slot of the PBX.
    pub slot: u32,
    /// Our address that it leaves from.
    pub from: SocketAddr,
    /// The PBX.
    pub to: SocketAddr,
    /// The request without a Via.
    pub text: String,
}

impl Register {
    /// The datagram, with the value of the Via that the transaction has made (8.1.1.7):
    /// `SIP/2.0/UDP 192.0.2.1:5060;branch=z9hG4bK…`.
    pub fn datagram(&self, via: &str) -> Vec<u8> {
        let (line, headers) = self.text.split_once("\r\n").unwrap_or((&self.text, ""));
        [line, "\r\nVia: ", via, "\r\n", headers].concat().into_bytes()
    }
}

/// A challenge of a PBX (22).
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Challenged {
    /// For [`Forking::authorize`].
    pub token: Token,
    /// Slot of the PBX.
    pub slot: u32,
    /// The user.
    pub user: Box<str>,
    /// 401 or 407.
    pub status: u16,
    /// The values of WWW-Authenticate or Proxy-Authenticate.
    pub challenges: Vec<String>,
    /// The Request-URI, over which the credentials are computed; the method is REGISTER.
    pub uri: String,
}

/// Why an input was refused. Nothing has changed then.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Full {
    /// There are [`Rules::max_users`] users.
    Users,
    /// The slot is none of the [`MAX_PBX`] that there are.
    Pbxs,
}

/// How one user is at one PBX, for people.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Leg<'a> {
    /// Slot of the PBX.
    pub slot: u32,
    /// Its id.
    pub id: &'a str,
    /// Until when the PBX has him, as far as it has said so since it was last away.
    pub registered_until: Option<Instant>,
    /// The last answer; 408 if there was none.
    pub last: Option<u16>,
    /// Failures in a row.
    pub failures: u8,
    /// Whether a REGISTER is on its way.
    pub in_flight: bool,
    /// When the next one is due. None if nothing is, or if the PBX is away.
    pub next_try: Option<Instant>,
}

/// How one PBX is told, for people.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct PbxView<'a> {
    /// Its slot.
    pub slot: u32,
    /// Its id.
    pub id: &'a str,
    /// Whether it is left alone.
    pub away: bool,
    /// Whether all users are being told to it again.
    pub repairing: bool,
    /// REGISTERs on their way.
    pub in_flight: usize,
    /// REGISTERs that are due, now or later.
    pub waiting: usize,
}

/// See the module.
#[derive(Debug)]
pub struct Forking {
    rules: Rules,
    /// Our address in each family.
    locals: ByFamily<Option<SocketAddr>>,
    key: [u64; 2],
    hasher: RandomState,
    users: Slab<User>,
    by_name: HashTable<u32>,
    pbxs: BTreeMap<u32, Pbx>,
    tokens: u64,
    /// Counts users and PBXs as they come. What begins anew, at CSeq 1, has another Call-ID than before: thousands
    /// of millions come between two with the same number.
    lives: u32,
    commands: VecDeque<Command>,
}

#[derive(Debug)]
struct User {
    name: Text,
    until: Option<Moment>,
    /// See [`Forking::lives`].
    life: u32,
}

impl User {
    fn until(&self) -> Option<Instant> {
        self.until.map(Instant::from)
    }
}

impl Forking {
    /// No users and no PBXs yet. `locals` are our addresses: REGISTERs leave from the first one of the PBX's
    /// family, and name it. `key` must be another one at each start: the Call-IDs are made from it, and
    /// their CSeqs begin anew (10.2.4: one Call-ID for as long as we run and know the user).
    pub fn new(rules: Rules, locals: &[SocketAddr], key: [u64; 2]) -> Self {
        Self {
            rules,
            locals: ByFamily::first(locals),
            key,
            hasher: RandomState::new(),
            users: Slab::new(),
            by_name: HashTable::new(),
            pbxs: BTreeMap::new(),
            tokens: 0,
            lives: 0,
            commands: VecDeque::new(),
        }
    }

    // ---- What happens ---------------------------------------------------------------------------

    /// A user is registered until then, or no longer: [`super::registrar::Change::User`].
    pub fn user_changed(
        &mut self,
        now: Instant,
        user: &str,
        until: Option<Instant>,
    ) -> Result<(), Full> {
        let at = match (self.find(user), until) {
            (Some(at), _) => at,
            (None, None) => return Ok(()),
            (None, Some(_)) => self.insert(user)?,
        };
        let Some(user) = self.users.get_mut(at as usize) else { return Ok(()) };
        let toggled = user.until.is_some() != until.is_some();
        user.until = until.map(Moment::from);
        for pbx in self.pbxs.values_mut() {
            let Some(state) = pbx.states.get(at as usize) else { continue };
            // Who was refused is not asked for again each time that his phone registers.
            let waits = state.flying || state.refused && !toggled && pbx.due.get(at).is_some();
            if !waits {
                pbx.set_due(at, Some(now));
            }
            if pbx.alone.is_some() {
                pbx.repair = pbx.repair.or(Some(0));
            }
        }
        self.pump_all(now);
        self.forget(now, at);
        Ok(())
    }

    /// A PBX is there; one that was in this slot is not any more. `up` is what the dispatcher says of it.
    pub fn pbx_added(
        &mut self,
        now: Instant,
        slot: u32,
        id: &str,
        address: SocketAddr,
        up: bool,
    ) -> Result<(), Full> {
        if slot >= MAX_PBX {
            return Err(Full::Pbxs);
        }
        self.pbx_removed(now, slot);
        self.lives = self.lives.wrapping_add(1);
        let places = self.users.iter().next_back().map_or(0, |(at, _)| at + 1);
        let pbx = Pbx {
            id: id.into(),
            address,
            ours: *self.locals.get(Family::of(address)),
            up: false,
            silent: 0,
            alone: None,
            trials: 0,
            quiet_until: None,
            round: 0,
            repair: None,
            repair_next: false,
            min_expires: 0,
            next_send: now.checked_sub(BURST).unwrap_or(now),
            life: self.lives,
            states: vec![State::default(); places],
            due: Timers::default(),
            flights: Vec::new(),
        };
        self.pbxs.insert(slot, pbx);
        if up {
            self.pbx_up(now, slot);
        }
        Ok(())
    }

    /// A PBX is no longer there. Nothing is taken back from it.
    pub fn pbx_removed(&mut self, now: Instant, slot: u32) {
        if self.pbxs.remove(&slot).is_some() {
            self.forget_all(now);
        }
    }

    /// A PBX has come back: all users are told to it again.
    pub fn pbx_up(&mut self, now: Instant, slot: u32) {
        let Some(pbx) = self.pbxs.get_mut(&slot) else { return };
        if !pbx.up {
            pbx.up = true;
            pbx.silent = 0;
            pbx.alone = None;
            pbx.quiet_until = None;
            pbx.repair_all();
            self.pump(now, slot);
        }
    }

    /// A PBX is away: it is left alone. What was on its way may have come there or not.
    pub fn pbx_down(&mut self, now: Instant, slot: u32) {
        let Some(pbx) = self.pbxs.get_mut(&slot) else { return };
        pbx.up = false;
        pbx.repair = None;
        for flight in std::mem::take(&mut pbx.flights) {
            if let Some(state) = pbx.states.get_mut(flight.user as usize) {
                state.flying = false;
                pbx.set_due(flight.user, Some(now));
            }
        }
        self.pump(now, slot);
    }

    /// The answer to a REGISTER, final or provisional. Says whether it is one of ours.
    pub fn handle_answer(&mut self, now: Instant, token: Token, message: &Message<'_>) -> bool {
        let Some(status) = message.status() else { return false };
        let Some((slot, place)) = self.flight(token) else { return false };
        let rules = self.rules;
        let Some(pbx) = self.pbxs.get_mut(&slot) else { return false };
        let waiting = pbx.flights.get(place).filter(|flight| flight.challenged.is_none());
        let Some((user, challenges)) = waiting.map(|flight| (flight.user, flight.challenges))
        else {
            return false;
        };
        pbx.silent = 0;
        if pbx.alone.take().is_some() {
            pbx.quiet_until = None;
            pbx.repair_all();
        }
        if status < 200 {
            return true;
        }
        let Some(state) = pbx.states.get_mut(user as usize) else { return false };
        state.last = status;
        if matches!(status, 401 | 407)
            && challenges < CHALLENGES
            && self.challenged(now, slot, place, status, message)
        {
            return true;
        }
        let Some(pbx) = self.pbxs.get_mut(&slot) else { return false };
        let flight = pbx.flights.swap_remove(place);
        let ours = pbx.ours;
        let Some(state) = pbx.states.get_mut(user as usize) else { return false };
        state.flying = false;
        let minimum = request::number(message, "Min-Expires").filter(|minimum| {
            (flight.expires + 1..=LONGEST_MINIMUM).contains(minimum) && flight.expires != 0
        });
        match (status, minimum) {
            (200..300, _) => {
                let granted = ours.and_then(|ours| request::granted(message, ours));
                self.told(now, slot, &flight, granted);
            }
            // There is nothing to take back (RFC 3261 21.4.5, 21.4.11).
            (404 | 410, _) if flight.expires == 0 => self.told(now, slot, &flight, None),
            (423, Some(minimum)) if state.failures < BRIEF => {
                state.failures += 1;
                pbx.min_expires = pbx.min_expires.max(minimum);
                pbx.set_due(user, Some(now));
            }
            (408 | 480 | 491 | 500..600, _) => {
                if let (503, Some(pause)) = (status, request::number(message, "Retry-After")) {
                    let pause = Duration::from_secs(pause.into()).min(rules.last_retry);
                    pbx.quiet_until = Some(now + pause);
                }
                self.failed(now, slot, user);
            }
            _ => self.refused(now, slot, &flight),
        }
        self.pump(now, slot);
        self.forget(now, user);
        true
    }

    /// There was no answer to a REGISTER, or it could not be sent. Says whether it is one of ours.
    pub fn handle_no_answer(&mut self, now: Instant, token: Token) -> bool {
        let Some((slot, place)) = self.flight(token) else { return false };
        self.no_answer(now, slot, place);
        self.pump(now, slot);
        true
    }

    /// The credentials for a challenge: the value of the header Authorization or Proxy-Authorization; none if
    /// there are none. Says whether anybody waits for them.
    pub fn authorize(&mut self, now: Instant, token: Token, credentials: Option<&str>) -> bool {
        let Some((slot, place)) = self.flight(token) else { return false };
        let Some(pbx) = self.pbxs.get_mut(&slot) else { return false };
        let Some(status) = pbx.flights.get(place).and_then(|flight| flight.challenged) else {
            return false;
        };
        let flight = pbx.flights.swap_remove(place);
        let user = flight.user;
        if let Some(state) = pbx.states.get_mut(user as usize) {
            state.flying = false;
        }
        // A header cannot be split by what is put into it.
        let credentials = credentials.filter(|value| !value.contains(['\r', '\n']));
        let Some(credentials) = credentials else {
            self.refused(now, slot, &flight);
            self.pump(now, slot);
            self.forget(now, user);
            return true;
        };
        let name = if status == 407 { "Proxy-Authorization" } else { "Authorization" };
        self.send(now, slot, user, flight.challenges, Some((name, credentials)));
        self.pump(now, slot);
        self.forget(now, user);
        true
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        let slots: Vec<_> = self.pbxs.keys().copied().collect();
        for slot in slots {
            while let Some(place) = self
                .pbxs
                .get(&slot)
                .and_then(|pbx| pbx.flights.iter().position(|flight| flight.give_up <= now))
            {
                self.no_answer(now, slot, place);
            }
            self.pump(now, slot);
        }
    }

    /// Rules of a new configuration.
    pub fn reload(&mut self, rules: Rules) {
        self.rules = rules;
    }

    /// When [`Forking::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.pbxs.values().filter_map(|pbx| pbx.poll_timeout(&self.rules)).min()
    }

    /// What to do next.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    // ---- What there is --------------------------------------------------------------------------

    /// How a user is at each PBX; empty for one who is not known.
    pub fn legs(&self, user: &str) -> Vec<Leg<'_>> {
        let Some(at) = self.find(user) else { return Vec::new() };
        let legs = self.pbxs.iter().filter_map(|(slot, pbx)| {
            let state = pbx.states.get(at as usize)?;
            let told = state.round == pbx.round && (200..300).contains(&state.last);
            Some(Leg {
                slot: *slot,
                id: &pbx.id,
                registered_until: state.held().filter(|_| told && !state.flying),
                last: (state.last != 0).then_some(state.last),
                failures: state.failures,
                in_flight: state.flying,
                next_try: pbx.due.get(at).filter(|_| pbx.in_reach()),
            })
        });
        legs.collect()
    }

    /// How each PBX is told.
    pub fn pbxs(&self) -> impl Iterator<Item = PbxView<'_>> {
        self.pbxs.iter().map(|(slot, pbx)| PbxView {
            slot: *slot,
            id: &pbx.id,
            away: !pbx.in_reach(),
            repairing: pbx.repair.is_some(),
            in_flight: pbx.flights.len(),
            waiting: pbx.due.len(),
        })
    }

    /// How many users are kept: those who are registered, and those whom a PBX may still have.
    pub fn users(&self) -> usize {
        self.users.len()
    }

    // ---- A REGISTER -----------------------------------------------------------------------------

    fn pump_all(&mut self, now: Instant) {
        let mut next = 0;
        while let Some(slot) = self.pbxs.range(next..).next().map(|(slot, _)| *slot) {
            self.pump(now, slot);
            next = slot + 1;
        }
    }

    /// Sends to one PBX what may go now.
    fn pump(&mut self, now: Instant, slot: u32) {
        let mut idle = 0;
        loop {
            let Some(pbx) = self.pbxs.get_mut(&slot) else { return };
            if pbx.in_reach() {
                if !pbx.may_send(now, &self.rules) {
                    return;
                }
                let Some(user) = pbx.next(now, &self.users) else { return };
                if self.send(now, slot, user, 0, None) {
                    continue;
                }
                self.forget(now, user);
            } else {
                // What is due to a PBX that is away is told when it is back. Only who is gone, and whom it may
                // still have, waits for the end of that, to be forgotten.
                if let Some(user) = pbx.pop_due(now) {
                    let need = need(now, &self.users, &pbx.states, user);
                    let held = pbx.states.get(user as usize).and_then(State::held);
                    pbx.set_due(user, held.filter(|_| need == Need::Gone));
                    self.forget(now, user);
                } else {
                    let trial = pbx.alone.is_some() && pbx.may_send(now, &self.rules);
                    let user = if trial { pbx.next_of_repair(now, &self.users) } else { None };
                    let Some(user) = user else { return };
                    self.send(now, slot, user, 0, None);
                    return;
                }
            }
            idle += 1;
            if idle == PARKED_AT_ONCE {
                return;
            }
        }
    }

    /// Sends what a PBX ought to be told of a user, if anything.
    fn send(
        &mut self,
        now: Instant,
        slot: u32,
        user: u32,
        challenges: u8,
        credentials: Option<(&'static str, &str)>,
    ) -> bool {
        let Some(pbx) = self.pbxs.get_mut(&slot) else { return false };
        let Some(User { name, life, .. }) = self.users.get(user as usize) else { return false };
        let need = need(now, &self.users, &pbx.states, user);
        pbx.set_due(user, None);
        let (until, expires) = match need {
            Need::Nothing => return false,
            Need::Gone => (None, 0),
            Need::Registered(until) => {
                let left = until.saturating_duration_since(now);
                let left = left.as_secs() + u64::from(left.subsec_nanos() != 0);
                let left = u32::try_from(left).unwrap_or(u32::MAX);
                (Some(until), left.max(pbx.min_expires))
            }
        };
        let Some(ours) = pbx.ours else { return false };
        let Some(state) = pbx.states.get_mut(user as usize) else { return false };
        state.cseq = state.cseq.saturating_add(1);
        state.flying = true;
        if expires != 0 {
            let held = now + Duration::from_secs(expires.into());
            state.hold(Some(state.held().map_or(held, |before| before.max(held))));
        }
        let token = Token(self.tokens << 8 | u64::from(slot));
        self.tokens += 1;
        let text = request::register(&Saying {
            user: name,
            pbx: pbx.address,
            ours,
            name: hash(self.key, &[name, &pbx.id], [*life, pbx.life]),
            cseq: state.cseq,
            expires,
            credentials,
        });
        pbx.flights.push(Flight {
            token,
            user,
            until,
            expires,
            sent: now,
            give_up: now + self.rules.patience,
            challenges,
            challenged: None,
        });
        let gap = Duration::from_secs(1) / self.rules.rate.max(1);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        pbx.next_send = pbx.next_send.max(earliest) + gap;
        let (from, to) = (ours, pbx.address);
        self.commands.push_back(Command::Register(Register { token, slot, from, to, text }));
        true
    }

    /// Hands a challenge up, if there is one.
    fn challenged(
        &mut self,
        now: Instant,
        slot: u32,
        place: usize,
        status: u16,
        message: &Message<'_>,
    ) -> bool {
        let name = if status == 407 { "Proxy-Authenticate" } else { "WWW-Authenticate" };
        let challenges: Vec<_> = request::values(message, name).map(str::to_owned).collect();
        let Some(pbx) = self.pbxs.get_mut(&slot) else { return false };
        let Some(flight) = pbx.flights.get_mut(place) else { return false };
        let Some(user) = self.users.get(flight.user as usize) else { return false };
        if challenges.is_empty() {
            return false;
        }
        flight.challenges += 1;
        flight.challenged = Some(status);
        flight.give_up = now + self.rules.patience;
        self.commands.push_back(Command::Challenged(Challenged {
            token: flight.token,
            slot,
            user: user.name.as_str().into(),
            status,
            challenges,
            uri: request::request_uri(pbx.address),
        }));
        true
    }

    /// A PBX has taken what it was told; `granted` is for how long, as it says.
    fn told(&mut self, now: Instant, slot: u32, flight: &Flight, granted: Option<u32>) {
        let user = flight.user;
        let until = self.users.get(user as usize).and_then(User::until);
        let Some(pbx) = self.pbxs.get_mut(&slot) else { return };
        let Some(state) = pbx.states.get_mut(user as usize) else { return };
        let granted = match flight.expires {
            0 => 0,
            asked => granted.unwrap_or(asked),
        };
        if flight.expires != 0 && granted == 0 {
            // It says yes and does not do it.
            self.failed(now, slot, user);
            return;
        }
        state.failures = 0;
        state.refused = false;
        state.round = pbx.round;
        let granted = Duration::from_secs(granted.into());
        let held = flight.sent + granted;
        state.hold(Some(held).filter(|_| flight.expires != 0));
        let due = if until != flight.until {
            Some(now)
        } else if until.is_some_and(|until| held < until) {
            // Three quarters of it, less a piece by which users differ.
            let name = self.users.get(user as usize).map_or("", |user| &*user.name);
            let piece = hash(self.key, &[name, &pbx.id], [state.cseq]) % 256;
            let after = granted * 3 / 4 - granted * u32::try_from(piece).unwrap_or(0) / 2048;
            Some(flight.sent + after.max(SOONEST))
        } else {
            // It lasts as long as the user, or longer where the PBX grants no less: his end will be told.
            None
        };
        let Some(pbx) = self.pbxs.get_mut(&slot) else { return };
        pbx.set_due(user, due);
    }

    /// A try has failed: the next one is later each time.
    fn failed(&mut self, now: Instant, slot: u32, user: u32) {
        let rules = self.rules;
        let name = self.users.get(user as usize).map_or("", |user| &*user.name);
        let Some(pbx) = self.pbxs.get_mut(&slot) else { return };
        let Some(state) = pbx.states.get_mut(user as usize) else { return };
        state.refused = false;
        let by = hash(self.key, &[name, &pbx.id], [state.cseq]);
        let delay = backoff(&rules, state.failures.into(), by);
        state.failures = state.failures.saturating_add(1);
        // One that is away is not tried for this user, but for all: this one is put aside.
        let due = if pbx.in_reach() { now + delay } else { now };
        pbx.set_due(user, Some(due));
    }

    /// A PBX does not want this user: it is asked again much later, unless he has come or gone meanwhile.
    fn refused(&mut self, now: Instant, slot: u32, flight: &Flight) {
        let until = self.users.get(flight.user as usize).and_then(User::until);
        let toggled = until.is_some() != flight.until.is_some();
        let Some(pbx) = self.pbxs.get_mut(&slot) else { return };
        let Some(state) = pbx.states.get_mut(flight.user as usize) else { return };
        state.failures = state.failures.saturating_add(1);
        state.refused = !toggled;
        // It has been told, for what that is worth: a repair that goes on does not ask again.
        state.round = pbx.round;
        let due = if toggled { now } else { now + self.rules.refused };
        pbx.set_due(flight.user, Some(due));
    }

    fn no_answer(&mut self, now: Instant, slot: u32, place: usize) {
        let rules = self.rules;
        let Some(pbx) = self.pbxs.get_mut(&slot) else { return };
        if place >= pbx.flights.len() {
            return;
        }
        let flight = pbx.flights.swap_remove(place);
        let user = flight.user;
        let Some(state) = pbx.states.get_mut(user as usize) else { return };
        state.flying = false;
        if flight.challenged.is_some() {
            // It was us who did not answer.
            self.refused(now, slot, &flight);
            self.forget(now, user);
            return;
        }
        state.last = 408;
        pbx.silent = pbx.silent.saturating_add(1);
        let by = hash(self.key, &[&pbx.id], [pbx.silent]);
        match pbx.alone {
            None if pbx.silent >= rules.silent.max(1) => {
                pbx.alone = Some(now);
                pbx.trials = 0;
                pbx.quiet_until = Some(now + backoff(&rules, 0, by));
                pbx.repair_all();
            }
            // What left before says nothing new.
            Some(since) if flight.sent >= since => {
                pbx.trials = pbx.trials.saturating_add(1);
                pbx.quiet_until = Some(now + backoff(&rules, pbx.trials, by));
                pbx.repair = Some(0);
            }
            _ => {}
        }
        self.failed(now, slot, user);
        self.forget(now, user);
    }

    // ---- Users ----------------------------------------------------------------------------------

    fn find(&self, user: &str) -> Option<u32> {
        let is = |at: &u32| self.users.get(*at as usize).is_some_and(|other| *other.name == *user);
        self.by_name.find(self.hasher.hash_one(user), is).copied()
    }

    fn insert(&mut self, user: &str) -> Result<u32, Full> {
        if self.users.len() >= self.rules.max_users {
            return Err(Full::Users);
        }
        if self.users.len() == self.users.capacity() {
            // Doubled, half of it would be empty.
            self.users.reserve_exact(self.users.len() / 8 + 16);
        }
        self.lives = self.lives.wrapping_add(1);
        // Memory ends before 32 bits do.
        let at =
            self.users.insert(User { name: user.into(), life: self.lives, until: None }) as u32;
        let (users, hasher) = (&self.users, &self.hasher);
        let rehash =
            |at: &u32| hasher.hash_one(users.get(*at as usize).map_or("", |user| &*user.name));
        self.by_name.insert_unique(hasher.hash_one(user), at, rehash);
        for pbx in self.pbxs.values_mut() {
            grow(&mut pbx.states, at as usize + 1, State::default());
        }
        Ok(at)
    }

    /// Forgets a user who is gone from here and from all PBXs.
    fn forget(&mut self, now: Instant, at: u32) {
        let Some(user) = self.users.get(at as usize) else { return };
        let alive = user.until.is_some()
            || self.pbxs.values().any(|pbx| {
                let state = pbx.states.get(at as usize);
                state.is_some_and(|s| s.flying || s.held().is_some_and(|held| held > now))
            });
        if alive {
            return;
        }
        let hash = self.hasher.hash_one(&*user.name);
        if let Ok(entry) = self.by_name.find_entry(hash, |other| *other == at) {
            entry.remove();
        }
        self.users.remove(at as usize);
        for pbx in self.pbxs.values_mut() {
            pbx.set_due(at, None);
            if let Some(state) = pbx.states.get_mut(at as usize) {
                *state = State::default();
            }
        }
    }

    fn forget_all(&mut self, now: Instant) {
        let gone = self.users.iter().filter(|(_, user)| user.until.is_none());
        let gone: Vec<_> = gone.map(|(at, _)| at as u32).collect();
        gone.into_iter().for_each(|at| self.forget(now, at));
    }

    /// The PBX and the place of the REGISTER with this token.
    fn flight(&self, token: Token) -> Option<(u32, usize)> {
        let slot = (token.0 & 0xff) as u32;
        let flights = &self.pbxs.get(&slot)?.flights;
        Some((slot, flights.iter().position(|flight| flight.token == token)?))
    }
}

fn hash<const N: usize>(key: [u64; 2], texts: &[&str], numbers: [u32; N]) -> u64 {
    let mut text = texts.join("\n");
    for number in numbers {
        text.push('\n');
        text.push_str(&number.to_string());
    }
    let text = text.as_bytes();
    siphash(key, text, 0, u32::try_from(text.len()).unwrap_or(0)).0
}

#[cfg(test)]
mod tests;
