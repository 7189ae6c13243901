//! The registrar (RFC 3261 10): which contacts a user has, and until when.
//!
//! A REGISTER in, an answer and a list of [`Change`]s out: what a store has to write, and what
//! [`super::forking`] has to tell the PBXs. Who sent the request has been proved before; the
//! address-of-record is that of its To.
//!
//! Call [`Registrar::handle_timeout`] when [`Registrar::poll_timeout`] says: contacts end then. Whoever looks
//! one up does not see it after its end, however late that is.
//!
//! Contacts are bounded in number, for each user and in all, and in length. A refused REGISTER changes nothing
//! (10.3 step 7).

mod aor;
mod asked;
mod binding;
mod equality;
mod matching;

use std::hash::{BuildHasher, RandomState};
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hashbrown::HashTable;
use sip_ebpf::message::{Message, Uri};
use sip_ebpf::siphash::siphash;
use slab::Slab;

pub use aor::{Aor, Domains};
pub(super) use aor::{domain_of, normal};
use asked::{Asked, Asking, Wish};
use binding::{Binding, Contacts, Parts};
pub use binding::{Key, Methods, Row};
use equality::equal;
use matching::{flow, in_order, is_repeated, place};

use super::put::Put;
use super::reply::Response;
use super::timers::Timers;

/// How many contacts one [`Registrar::handle_timeout`] ends at most, so that others get their turn.
const ENDED_AT_ONCE: usize = 1024;

/// What the owner wants of the registrar. Times are in seconds.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Rules {
    /// How long a contact lasts whose phone does not say.
    pub default_expires: u32,
    /// A shorter time is refused with 423 (10.3 step 7).
    pub min_expires: u32,
    /// A longer time is cut.
    pub max_expires: u32,
    /// By how much of it, in per cent, a time may be cut so that phones do not come back in step; it is never
    /// cut below the minimum. 0 to 90.
    pub jitter: u8,
    /// How many contacts a user may have; more are refused with 403.
    pub max_contacts: usize,
    /// How many users may have contacts; others are refused with 503.
    pub max_aors: usize,
    /// Retry-After of that 503.
    pub retry_after: u32,
    /// Whether a Path is refused with 421 when the phone does not say that it supports it (RFC 3327 5.3).
    /// Otherwise it is kept, and not told to the phone.
    pub path_needs_support: bool,
    /// Whether a PBX that asks by OPTIONS for a user is answered here, by whether he is registered; otherwise his phone is
    /// asked.
    pub answer_qualify: bool,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            default_expires: 3600,
            min_expires: 60,
            max_expires: 7200,
            jitter: 10,
            max_contacts: 10,
            max_aors: 500_000,
            retry_after: 60,
            path_needs_support: false,
            answer_qualify: false,
        }
    }
}

/// What a REGISTER, or time, has changed.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Change {
    /// A contact is new or has changed: write it in place of the one with its key.
    Saved(Box<Row>),
    /// A contact is gone.
    Removed(Box<Key>),
    /// A user is registered until then, or no longer: in any of our domains, since a PBX knows users and not
    /// our domains.
    User {
        /// As [`Aor::user`] has it.
        user: Box<str>,
        /// The end of the contact that lasts longest.
        until: Option<Instant>,
    },
}

/// Where a user can be reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Reach<'a> {
    /// The Request-URI (16.5).
    pub contact: &'a str,
    /// Where the request goes in place of the address in that URI, if there is no Path.
    pub flow: Option<SocketAddr>,
    /// Which of our addresses it leaves from: its place in the list given to [`Registrar::new`].
    pub local: usize,
    /// Its Route (RFC 3327 5.4).
    pub path: Option<&'a str>,
    /// Preference in thousandths; 1000 if the phone gave none (16.6).
    pub q: u16,
    /// When it ends.
    pub expires: Instant,
    /// What may be sent.
    pub methods: Methods,
    /// The instance without its quotes (RFC 5626 4.1).
    pub instance: Option<&'a str>,
    /// The flow's number (RFC 5626 4.2).
    pub reg_id: Option<NonZeroU32>,
    /// What the phone calls itself.
    pub user_agent: Option<&'a str>,
}

/// Why a row of the store was not taken.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum NotRestored {
    /// It has ended.
    Expired,
    /// Its domain is none of ours any more.
    Domain,
    /// It is none that we would have written.
    Malformed,
    /// A phone has written the same contact since.
    Newer,
    /// There are too many contacts of its user, or too many users.
    Full,
}

/// See the module.
#[derive(Debug)]
pub struct Registrar {
    rules: Rules,
    domains: Domains,
    locals: Vec<SocketAddr>,
    /// For the jitter, which nobody else is to foresee.
    key: [u64; 2],
    hasher: RandomState,
    records: Slab<Record>,
    /// Places in `records`, by the hash of the user alone: all domains of a user are found at once.
    by_user: HashTable<u32>,
    /// When the first contact of each record ends.
    ends: Timers,
    bindings: usize,
}

/// An address-of-record with contacts: never without, but for a moment. They know their user.
#[derive(Debug)]
struct Record {
    domain: Arc<str>,
    /// In the order in which they came.
    bindings: Contacts,
}

impl Record {
    fn user(&self) -> &str {
        self.bindings.first().map_or("", Binding::user)
    }
}

/// Where a REGISTER came from.
#[derive(Clone, Copy, Debug)]
pub struct Origin {
    /// Its source.
    pub from: SocketAddr,
    /// Which of our addresses it came to: its place in the list given to [`Registrar::new`].
    pub local: usize,
}

impl Registrar {
    /// `locals` are our addresses, `key` is secret and may be another at each start.
    pub fn new(rules: Rules, domains: Domains, locals: &[SocketAddr], key: [u64; 2]) -> Self {
        Self {
            rules,
            domains,
            locals: locals.to_vec(),
            key,
            hasher: RandomState::new(),
            records: Slab::new(),
            by_user: HashTable::new(),
            ends: Timers::default(),
            bindings: 0,
        }
    }

    // ---- What happens ---------------------------------------------------------------------------

    /// Carries out a REGISTER whose sender may do so, and says what answers it.
    pub fn handle(
        &mut self,
        now: Instant,
        message: &Message<'_>,
        origin: Origin,
        changes: &mut Vec<Change>,
    ) -> Response {
        let asked = match Asked::read(message, &self.rules, &self.domains) {
            Ok(asked) => asked,
            Err(response) => return response,
        };
        let way = Way { flow: flow(message, origin.from), from: origin.from, local: origin.local };
        // Those whose time is over take nobody's place.
        self.handle_timeout(now, changes);
        let user = asked.aor.user().to_owned();
        let before = self.until(&user);
        if let Some(at) = self.find(asked.aor.user(), asked.aor.domain()) {
            self.end(now, at, changes);
        }
        let response = match self.carry_out(now, &asked, way, changes) {
            Ok(response) | Err(response) => response,
        };
        self.tell(&user, before, changes);
        response
    }

    /// Takes a binding that a store has kept. Nothing is written for it, but its user may be news.
    pub fn restore(
        &mut self,
        now: Instant,
        row: &Row,
        changes: &mut Vec<Change>,
    ) -> Result<(), NotRestored> {
        if row.expires <= now {
            return Err(NotRestored::Expired);
        }
        let aor = Aor::new(&row.key.user, &row.key.domain).ok_or(NotRestored::Malformed)?;
        let (uri, parts) = self.parts_of(row, &aor).ok_or(NotRestored::Malformed)?;
        let domain = self.domains.get(aor.domain()).cloned().ok_or(NotRestored::Domain)?;
        let binding = Binding::pack(&parts).ok_or(NotRestored::Malformed)?;
        let before = self.until(aor.user());
        let at = self.find(aor.user(), aor.domain());
        let there = at.and_then(|at| self.records.get(at as usize));
        let there = there.map_or(&[][..], |record| &record.bindings);
        if place(there, &uri, parts.instance, parts.reg_id).is_some() {
            return Err(NotRestored::Newer);
        }
        let full = there.len() >= self.rules.max_contacts
            || at.is_none() && self.records.len() >= self.rules.max_aors;
        if full {
            return Err(NotRestored::Full);
        }
        let mut bindings = self.take(at);
        bindings.push(binding);
        self.put(at, aor.user(), domain, bindings);
        self.tell(aor.user(), before, changes);
        Ok(())
    }

    /// Takes a contact of a user away, or all of them, by hand. Says how many are gone.
    pub fn remove(&mut self, aor: &Aor, contact: Option<&str>, changes: &mut Vec<Change>) -> usize {
        let Some(at) = self.find(aor.user(), aor.domain()) else { return 0 };
        let before = self.until(aor.user());
        let gone = self.drop_where(at, changes, |binding| {
            contact.is_none_or(|contact| binding.contact() == contact)
        });
        self.tell(aor.user(), before, changes);
        gone
    }

    /// Time has passed: contacts end.
    pub fn handle_timeout(&mut self, now: Instant, changes: &mut Vec<Change>) {
        for _ in 0..ENDED_AT_ONCE {
            let Some((_, at)) = self.ends.first().filter(|(end, _)| *end <= now) else { return };
            let Some(record) = self.records.get(at as usize) else { return };
            let user = record.user().to_owned();
            let before = self.until(&user);
            self.end(now, at, changes);
            self.tell(&user, before, changes);
        }
    }

    /// When [`Registrar::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.ends.first().map(|(end, _)| end)
    }

    /// Rules and domains of a new configuration. Contacts that are there stay until they end; those of a domain
    /// that is no longer ours are found by nobody who asks for one of ours.
    pub fn reload(&mut self, rules: Rules, domains: Domains) {
        self.rules = rules;
        self.domains = domains;
    }

    // ---- What there is --------------------------------------------------------------------------

    /// Where a user can be reached, the preferred first; of equal ones, the latest first.
    pub fn lookup(&self, aor: &Aor, now: Instant) -> Vec<Reach<'_>> {
        let record = self.find(aor.user(), aor.domain());
        in_preference(record.and_then(|at| self.records.get(at as usize)).into_iter(), now)
    }

    /// The same in all our domains: a PBX knows users and not our domains.
    pub fn lookup_user(&self, user: &str, now: Instant) -> Vec<Reach<'_>> {
        let records = self.by_user.iter_hash(self.hasher.hash_one(user));
        let records = records.filter_map(|at| self.records.get(*at as usize));
        let has =
            |record: &&Record| record.user() == user && self.domains.get(&record.domain).is_some();
        in_preference(records.filter(has), now)
    }

    /// Until when a user is registered in any domain of ours; what has ended and was not noticed counts.
    pub fn until(&self, user: &str) -> Option<Instant> {
        let records = self.by_user.iter_hash(self.hasher.hash_one(user));
        records
            .filter_map(|at| self.records.get(*at as usize))
            .filter(|record| record.user() == user)
            .flat_map(|record| record.bindings.iter())
            .map(Binding::expires)
            .max()
    }

    /// All contacts, in no order.
    pub fn rows(&self) -> impl Iterator<Item = Row> {
        self.records.iter().flat_map(|(_, record)| {
            record.bindings.iter().map(|binding| binding.row(&record.domain, &self.locals))
        })
    }

    /// The keys of a user's contacts.
    pub fn keys(&self, aor: &Aor) -> Vec<Key> {
        let at = self.find(aor.user(), aor.domain());
        self.bindings_of(at).iter().map(|binding| binding.key(aor.domain())).collect()
    }

    /// How many addresses-of-record have contacts.
    pub fn aors(&self) -> usize {
        self.records.len()
    }

    /// How many contacts there are.
    pub fn bindings(&self) -> usize {
        self.bindings
    }

    /// Whether a host is a domain of ours.
    pub fn domains(&self) -> &Domains {
        &self.domains
    }

    // ---- A REGISTER -----------------------------------------------------------------------------

    fn carry_out(
        &mut self,
        now: Instant,
        asked: &Asked<'_>,
        way: Way,
        changes: &mut Vec<Change>,
    ) -> Result<Response, Response> {
        let at = self.find(asked.aor.user(), asked.aor.domain());
        match &asked.wish {
            Wish::Fetch => {}
            Wish::RemoveAll => {
                for binding in self.bindings_of(at) {
                    in_order(binding, asked)?;
                }
                let repeated = |binding: &Binding| is_repeated(binding, asked);
                if let Some(at) = at {
                    self.drop_where(at, changes, |binding| !repeated(binding));
                }
            }
            Wish::Change(askings) => {
                let plan = self.plan(at, asked, askings)?;
                self.commit(now, at, asked, plan, way, changes);
            }
        }
        Ok(self.granted(now, asked))
    }

    /// What becomes of each contact, if all is well.
    fn plan<'p>(
        &self,
        at: Option<u32>,
        asked: &Asked<'_>,
        askings: &'p [Asking<'p>],
    ) -> Result<Plan<'p>, Response> {
        let there = self.bindings_of(at);
        let mut plan = Plan { old: vec![Fate::Stays; there.len()], new: Vec::new() };
        for asking in askings {
            if let Some(place) = place(there, &asking.uri, asking.instance, asking.reg_id) {
                let (Some(binding), Some(fate)) = (there.get(place), plan.old.get_mut(place))
                else {
                    continue;
                };
                in_order(binding, asked)?;
                if !is_repeated(binding, asked) {
                    *fate = match asking.expires {
                        0 => Fate::Goes,
                        _ => Fate::Becomes(asking),
                    };
                }
                continue;
            }
            // The last one counts of those that say the same.
            plan.new.retain(|other: &&Asking<'_>| !equal(&other.uri, &asking.uri));
            if asking.expires != 0 {
                plan.new.push(asking);
            }
        }
        let stay = plan.old.iter().filter(|fate| !matches!(fate, Fate::Goes)).count();
        // Who has more than a changed rule allows may keep and renew them.
        if !plan.new.is_empty() && stay + plan.new.len() > self.rules.max_contacts {
            return Err(asked::too_many());
        }
        if !plan.new.is_empty() && at.is_none() && self.records.len() >= self.rules.max_aors {
            let retry = format!("Retry-After: {}\r\n", self.rules.retry_after);
            return Err(Response::new(503, "Too Many Registrations").with(&retry));
        }
        Ok(plan)
    }

    fn commit(
        &mut self,
        now: Instant,
        at: Option<u32>,
        asked: &Asked<'_>,
        plan: Plan<'_>,
        way: Way,
        changes: &mut Vec<Change>,
    ) {
        let (user, domain) = (asked.aor.user(), asked.aor.domain());
        let Some(domain) = self.domains.get(domain).cloned() else { return };
        let mut fates = plan.old.into_iter();
        let mut bindings = self.take(at);
        bindings.retain_mut(|binding| {
            let fate = fates.next().unwrap_or(Fate::Stays);
            let asking = match fate {
                Fate::Stays => return true,
                Fate::Becomes(asking) => asking,
                Fate::Goes => {
                    changes.push(Change::Removed(Box::new(binding.key(&domain))));
                    return false;
                }
            };
            let Some(new) = self.binding(now, asked, asking, way) else { return true };
            let old = binding.key(&domain);
            if old != new.key(&domain) {
                changes.push(Change::Removed(Box::new(old)));
            }
            changes.push(Change::Saved(Box::new(new.row(&domain, &self.locals))));
            *binding = new;
            true
        });
        for asking in plan.new {
            let Some(new) = self.binding(now, asked, asking, way) else { continue };
            changes.push(Change::Saved(Box::new(new.row(&domain, &self.locals))));
            bindings.push(new);
        }
        self.put(at, user, domain, bindings);
    }

    fn binding(
        &self,
        now: Instant,
        asked: &Asked<'_>,
        asking: &Asking<'_>,
        way: Way,
    ) -> Option<Binding> {
        let granted = self.grant(asked, asking);
        // Who names its flow is reached by it (RFC 5626 6).
        let parts = Parts {
            user: asked.aor.user(),
            contact: asking.uri.text,
            call_id: asked.call_id,
            user_agent: asked.user_agent,
            instance: asking.instance,
            path: &asked.path,
            flow: if asking.reg_id.is_some() { Some(way.from) } else { way.flow },
            local: u16::try_from(way.local).unwrap_or(0),
            q: asking.q,
            methods: asked.methods,
            cseq: asked.cseq,
            reg_id: asking.reg_id,
            expires: now + Duration::from_secs(granted.into()),
        };
        Binding::pack(&parts)
    }

    /// The seconds that a contact gets: what it asks for, less a piece that its REGISTER decides.
    fn grant(&self, asked: &Asked<'_>, asking: &Asking<'_>) -> u32 {
        let spare = asking.expires.saturating_sub(self.rules.min_expires);
        let most = u64::from(asking.expires) * u64::from(self.rules.jitter.min(90)) / 100;
        let room = most.min(spare.into());
        if room == 0 {
            return asking.expires;
        }
        let mut text = Vec::with_capacity(256);
        for part in [asked.aor.user(), asking.uri.text, asked.call_id] {
            text.text(part);
            text.ascii(b'\n');
        }
        text.decimal(asked.cseq.into());
        let text = text.as_slice();
        let (hash, _) = siphash(self.key, text, 0, u32::try_from(text.len()).unwrap_or(0));
        // At most `room`, which has 32 bits.
        asking.expires - (hash % (room + 1)) as u32
    }

    /// The 200 (10.3 step 8).
    fn granted(&self, now: Instant, asked: &Asked<'_>) -> Response {
        let mut response = Response::new(200, "OK");
        response.headers.reserve(128);
        let at = self.find(asked.aor.user(), asked.aor.domain());
        for binding in self.bindings_of(at) {
            let left = binding.expires().saturating_duration_since(now);
            let left = left.as_secs() + u64::from(left.subsec_nanos() != 0);
            let line = &mut response.headers;
            line.text("Contact: <");
            line.text(binding.contact());
            line.text(">;expires=");
            line.decimal(left);
            match binding.q() {
                Some(1000) => line.text(";q=1"),
                Some(q) => line.text(&format!(";q=0.{q:03}")),
                None => {}
            }
            if let Some(instance) = binding.instance() {
                line.text(&format!(";+sip.instance=\"{instance}\""));
            }
            if let Some(reg_id) = binding.reg_id() {
                line.text(&format!(";reg-id={reg_id}"));
            }
            line.text("\r\n");
        }
        if asked.echo_path && !asked.path.is_empty() {
            response.headers.push_str(&format!("Path: {}\r\n", asked.path));
        }
        response.headers.push_str("Supported: path\r\n");
        response
    }

    // ---- The table ------------------------------------------------------------------------------

    fn find(&self, user: &str, domain: &str) -> Option<u32> {
        let is = |at: &u32| {
            let record = self.records.get(*at as usize);
            record.is_some_and(|record| record.user() == user && *record.domain == *domain)
        };
        self.by_user.find(self.hasher.hash_one(user), is).copied()
    }

    fn bindings_of(&self, at: Option<u32>) -> &[Binding] {
        let record = at.and_then(|at| self.records.get(at as usize));
        record.map_or(&[], |record| &record.bindings)
    }

    /// Takes the contacts of a record out, to be put back by [`Registrar::put`].
    fn take(&mut self, at: Option<u32>) -> Vec<Binding> {
        let record = at.and_then(|at| self.records.get_mut(at as usize));
        let bindings = record.map(|record| std::mem::take(&mut record.bindings));
        let bindings = bindings.map(Contacts::into_vec).unwrap_or_default();
        self.bindings -= bindings.len();
        bindings
    }

    /// Gives a record its contacts, makes it where there is none, and removes it if it has none.
    fn put(&mut self, at: Option<u32>, user: &str, domain: Arc<str>, bindings: Vec<Binding>) {
        self.bindings += bindings.len();
        let end = bindings.iter().map(Binding::expires).min();
        let bindings = Contacts::from(bindings);
        match (at, end) {
            (None, None) => {}
            (None, Some(end)) => {
                if self.records.len() == self.records.capacity() {
                    // Doubled, half of it would be empty.
                    self.records.reserve_exact(self.records.len() / 8 + 16);
                }
                let record = Record { domain, bindings };
                // `max_aors` times this record does not fit in memory before 32 bits run out.
                let at = self.records.insert(record) as u32;
                self.ends.set(at, Some(end));
                let (records, hasher) = (&self.records, &self.hasher);
                let hash =
                    |at: &u32| hasher.hash_one(records.get(*at as usize).map_or("", Record::user));
                self.by_user.insert_unique(self.hasher.hash_one(user), at, hash);
            }
            (Some(at), end) => {
                let Some(record) = self.records.get_mut(at as usize) else { return };
                self.ends.set(at, end);
                if end.is_some() {
                    record.bindings = bindings;
                    return;
                }
                self.records.remove(at as usize);
                let hash = self.hasher.hash_one(user);
                if let Ok(entry) = self.by_user.find_entry(hash, |other| *other == at) {
                    entry.remove();
                }
            }
        }
    }

    /// Ends what has ended of one record.
    fn end(&mut self, now: Instant, at: u32, changes: &mut Vec<Change>) {
        let due = self.ends.get(at).is_some_and(|end| end <= now);
        if due {
            self.drop_where(at, changes, |binding| binding.expires() <= now);
        }
    }

    fn drop_where(
        &mut self,
        at: u32,
        changes: &mut Vec<Change>,
        goes: impl Fn(&Binding) -> bool,
    ) -> usize {
        let Some(record) = self.records.get(at as usize) else { return 0 };
        let (user, domain) = (record.user().to_owned(), record.domain.clone());
        let mut bindings = self.take(Some(at));
        let before = bindings.len();
        bindings.retain(|binding| {
            let goes = goes(binding);
            if goes {
                changes.push(Change::Removed(Box::new(binding.key(&domain))));
            }
            !goes
        });
        let gone = before - bindings.len();
        self.put(Some(at), &user, domain, bindings);
        gone
    }

    /// Says so if a user's registration is not what it was.
    fn tell(&self, user: &str, before: Option<Instant>, changes: &mut Vec<Change>) {
        let until = self.until(user);
        if until != before {
            changes.push(Change::User { user: user.into(), until });
        }
    }

    /// A row's URI and what a binding has of it, if it is one that we would have written.
    fn parts_of<'r>(&self, row: &'r Row, aor: &'r Aor) -> Option<(Uri<'r>, Parts<'r>)> {
        let key = &row.key;
        let uri = Uri::parse(&key.contact).ok().filter(Uri::is_sip)?;
        let instance = key.instance.as_deref().unwrap_or_default();
        let path = row.path.as_deref().unwrap_or_default();
        let well = key.user.len() <= asked::MAX_USER
            && key.contact.len() <= asked::MAX_CONTACT
            && row.call_id.len() <= asked::MAX_CALL_ID
            && (instance.is_empty() || asked::is_instance(instance))
            && instance.len() <= asked::MAX_INSTANCE
            && (path.is_empty() || asked::is_path(path))
            && path.len() <= asked::MAX_PATH
            && row.q.is_none_or(|q| q <= 1000)
            && row.cseq < 1 << 31;
        if !well {
            return None;
        }
        // After a change of our addresses, from the one that comes closest.
        let local = self.locals.iter().position(|local| *local == row.local);
        let family = || self.locals.iter().position(|l| l.is_ipv4() == row.local.is_ipv4());
        let local = local.or_else(family).and_then(|local| u16::try_from(local).ok());
        let parts = Parts {
            user: aor.user(),
            contact: &key.contact,
            call_id: &row.call_id,
            user_agent: asked::cut(row.user_agent.as_deref().unwrap_or_default()),
            instance,
            path,
            flow: row.received,
            local: local.unwrap_or(0),
            q: row.q,
            methods: row.methods,
            cseq: row.cseq,
            reg_id: key.reg_id.filter(|_| !instance.is_empty()),
            expires: row.expires,
        };
        Some((uri, parts))
    }
}

/// How a REGISTER came, and so how its phone is reached.
#[derive(Clone, Copy)]
struct Way {
    /// See [`flow`].
    flow: Option<SocketAddr>,
    from: SocketAddr,
    local: usize,
}

/// What becomes of the contacts of a record.
struct Plan<'a> {
    old: Vec<Fate<'a>>,
    new: Vec<&'a Asking<'a>>,
}

#[derive(Clone, Copy)]
enum Fate<'a> {
    Stays,
    Goes,
    Becomes(&'a Asking<'a>),
}

/// The contacts of these that last, the preferred first; of equal ones, the latest first.
fn in_preference<'a>(records: impl Iterator<Item = &'a Record>, now: Instant) -> Vec<Reach<'a>> {
    let all = records.flat_map(|record| record.bindings.iter().rev());
    let mut reaches: Vec<_> =
        all.filter(|binding| binding.expires() > now).map(Reach::of).collect();
    reaches.sort_by_key(|reach| std::cmp::Reverse(reach.q));
    reaches
}

impl<'a> Reach<'a> {
    fn of(binding: &'a Binding) -> Self {
        Self {
            contact: binding.contact(),
            flow: binding.flow(),
            local: binding.local.into(),
            path: binding.path(),
            q: binding.q().unwrap_or(1000),
            expires: binding.expires(),
            methods: binding.methods,
            instance: binding.instance(),
            reg_id: binding.reg_id(),
            user_agent: binding.user_agent(),
        }
    }
}

#[cfg(test)]
mod tests;
