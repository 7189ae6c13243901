//! Who may do what: requests are asked for credentials, and these are held against the secrets of their user.
//!
//! Joins [`super::digest`] with what it needs around it: which user a request has to be from ([`Demand`]), the
//! secrets of users, and requests that wait until these are there. Secrets are kept in memory, within bounds and
//! for a time, also that there is no such user; so a store is asked once per user and time, whoever sends how
//! much. For each user there is one question on its way at most.
//!
//! State in, commands out. A request passes in two steps:
//!
//! 1. [`Authenticator::ask`] needs no memory, so a refusal needs no transaction either (RFC 3261 26.3.2.4).
//! 2. [`Authenticator::decide`] holds the [`Claim`] against the secrets. If they have to be fetched, the request
//!    is parked: [`Authenticator::poll_command`] says which to fetch, and gives the request back when it can be
//!    decided. It then passes through both steps again.
//!
//! When the store is away, users who are in memory go on with what is known of them, however old it is, and wait
//! for nothing. Others hear 503. From time to time one question shows whether the store is back.

mod cache;
mod subject;
#[cfg(test)]
mod tests;

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use sip_ebpf::message::Message;
use sip_ebpf::scan::Kind;

use super::clock::Clock;
use super::digest::{self, Challenger, NonceCounts, Refusal, Role, Secret, Settings};
use super::moment::Moment;
use super::registrar::Domains;
use super::reply::Response;
use super::transaction::{Flow, ServerId};
use cache::Cache;
use subject::FORBIDDEN;
pub use subject::{Demand, Realm, Source, Subject};

/// How secrets are kept and fetched.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rules {
    /// In which realm is asked.
    pub realm: Realm,
    /// Whether requests from other domains may come to ours. They prove nothing.
    pub strangers: bool,
    /// How long secrets are used before they are fetched anew.
    pub keep: Duration,
    /// How long it is believed that there is no such user.
    pub keep_unknown: Duration,
    /// Secrets at least this old are fetched anew when a password is wrong: it may have been changed.
    pub doubt: Duration,
    /// How long a store is waited for. Below the 32 s of Timer F (17.1.2.2), or nobody hears the answer.
    pub patience: Duration,
    /// While the store is away, the time between two questions to it.
    pub pause: Duration,
    /// Retry-After of a 503, in seconds.
    pub retry_after: u32,
    /// How many users are kept in memory.
    pub max_known: usize,
    /// How many names without a user.
    pub max_unknown: usize,
    /// How many questions to the store are on their way.
    pub max_fetches: usize,
    /// How many requests wait for answers.
    pub max_parked: usize,
    /// How many requests wait for the secrets of one user.
    pub max_parked_each: usize,
    /// How many nonces are remembered with their counts.
    pub max_nonces: usize,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            realm: Realm::default(),
            strangers: false,
            keep: Duration::from_secs(300),
            keep_unknown: Duration::from_secs(60),
            doubt: Duration::from_secs(10),
            patience: Duration::from_secs(5),
            pause: Duration::from_secs(1),
            retry_after: 5,
            max_known: 500_000,
            max_unknown: 50_000,
            max_fetches: 4096,
            max_parked: 10_000,
            max_parked_each: 16,
            max_nonces: 500_000,
        }
    }
}

/// Which question to the store it is.
#[derive(Clone, Copy, Debug, Eq, Hash, Ord, PartialEq, PartialOrd)]
pub struct Ticket(u64);

#[cfg(test)]
impl Ticket {
    /// One of a test that has no authenticator.
    pub(crate) fn test(number: u64) -> Self {
        Self(number)
    }
}

/// What the world has to do.
#[derive(Clone, Debug)]
pub enum Command {
    /// Fetch the secrets of a user, and say so by [`Authenticator::handle_secrets`].
    Fetch {
        /// For the answer.
        ticket: Ticket,
        /// The user's name, as in credentials.
        user: Box<str>,
        /// His domain, in small letters.
        domain: Box<str>,
    },
    /// A parked request can be decided now: from [`Authenticator::ask`] on, as if it had just come.
    Resume(Parked),
}

/// A request that waits.
#[derive(Clone, Debug)]
pub struct Parked {
    /// Its transaction.
    pub id: ServerId,
    /// Its bytes.
    pub request: Arc<[u8]>,
    /// How it came: the peer is its source.
    pub flow: Flow,
}

/// The store cannot be asked.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Away;

/// What the first step says.
#[derive(Debug)]
#[allow(clippy::large_enum_variant, reason = "it is used up at once and never stored")]
pub enum Asked<'a> {
    /// It has nothing to prove.
    Passed,
    /// It has credentials that have to be examined.
    Claim(Claim<'a>),
    /// It is refused. The same request is refused in the same way again, so no transaction is needed.
    Refused(Response),
}

/// Credentials that a request has.
#[derive(Debug)]
pub struct Claim<'a> {
    subject: Subject,
    /// Staleness alone comes with time: a repetition of a request that was let through must not hear of it.
    claim: Result<digest::Claim<'a>, Refusal>,
}

/// What the second step says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Verdict {
    /// The request is from whom it says.
    Passed,
    /// It is refused.
    Refused(Response),
    /// It is refused because its password is wrong, or there is no such user.
    Guessed(Response),
    /// It waits: it comes back as [`Command::Resume`].
    Parked,
}

/// What happened, in numbers.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Counts {
    /// Requests whose credentials are right.
    pub passed: u64,
    /// Requests that were challenged because they had no credentials, or some for an old nonce.
    pub challenged: u64,
    /// Credentials that are wrong.
    pub wrong: u64,
    /// Requests answered with 503 because the store is away or slow, or too much waits for it.
    pub unavailable: u64,
    /// Questions to the store.
    pub fetches: u64,
    /// Questions to the store that had no answer.
    pub fetches_failed: u64,
}

/// See the module.
#[derive(Debug)]
pub struct Authenticator {
    rules: Rules,
    challenger: Challenger,
    nonces: NonceCounts,
    clock: Clock,
    known: Cache<Known>,
    /// Since when it is known that there is no such user.
    unknown: Cache<Moment>,
    /// By user who is asked for: what waits for it.
    fetches: HashMap<Box<str>, Vec<Parked>>,
    /// Who is asked for, in the order in which it was asked.
    deadlines: VecDeque<(Instant, Ticket, Box<str>)>,
    parked: usize,
    tickets: u64,
    /// The last question to the store had no answer: when the next one may be put.
    away: Option<Instant>,
    commands: VecDeque<Command>,
    counts: Counts,
}

#[derive(Debug)]
struct Known {
    secrets: Secrets,
    fetched: Moment,
}

/// The secrets of a user: most have one, which needs no memory of its own.
#[derive(Debug)]
enum Secrets {
    One(Secret),
    More(Box<[Secret]>),
}

impl Authenticator {
    /// `key` signs nonces; nodes with the same key take each other's. `instance` tells nodes and starts
    /// apart: see [`Challenger::new`].
    ///
    /// # Errors
    /// [`digest::BadSettings`]
    pub fn new(
        rules: Rules,
        settings: Settings,
        key: &[u8],
        instance: u32,
        clock: Clock,
    ) -> Result<Self, digest::BadSettings> {
        Ok(Self {
            challenger: Challenger::new(key, instance, settings)?,
            nonces: NonceCounts::new(rules.max_nonces),
            clock,
            known: Cache::new(rules.max_known),
            unknown: Cache::new(rules.max_unknown),
            fetches: HashMap::new(),
            deadlines: VecDeque::new(),
            parked: 0,
            tickets: 0,
            away: None,
            commands: VecDeque::new(),
            counts: Counts::default(),
            rules,
        })
    }

    // ---- A request ------------------------------------------------------------------------------

    /// The first step: what the request has to prove, and what it says to that.
    pub fn ask<'a>(
        &mut self,
        now: Instant,
        message: &Message<'a>,
        source: Source,
        domains: &Domains,
    ) -> Asked<'a> {
        let subject = match Demand::of(message, source, domains, &self.rules.realm) {
            Ok(Demand::Nothing) => return Asked::Passed,
            Ok(Demand::Stranger { to_us: true }) if self.rules.strangers => return Asked::Passed,
            Ok(Demand::Stranger { .. }) => {
                return Asked::Refused(Response::new(403, "Not relaying"));
            }
            Ok(Demand::Identity(subject)) => subject,
            Err(response) => return Asked::Refused(response),
        };
        let kind = match subject.role {
            Role::UserAgent => Kind::Authorization,
            Role::Proxy => Kind::ProxyAuthorization,
        };
        let values = message.headers_of(kind).map(|h| h.value);
        let claim = self.challenger.claim(&subject.realm, values, self.clock.seconds(now));
        match claim {
            Err(why) if why != Refusal::StaleNonce => {
                Asked::Refused(self.refuse(now, &subject, why))
            }
            claim => Asked::Claim(Claim { subject, claim }),
        }
    }

    /// The second step: whether a claim is right. If that cannot be said yet, `parked` is kept.
    pub fn decide(
        &mut self,
        now: Instant,
        message: &Message<'_>,
        domains: &Domains,
        claim: &Claim<'_>,
        parked: Parked,
    ) -> Verdict {
        let Claim { subject, claim } = claim;
        let claim = match claim {
            Ok(claim) => claim,
            Err(why) => return Verdict::Refused(self.refuse(now, subject, *why)),
        };
        // The user whose secrets these must be: in our domains, or there is nobody to ask for.
        let domain = match claim.domain() {
            Some(domain) => Cow::Owned(domain.to_ascii_lowercase()),
            None => Cow::Borrowed(subject.domain.as_str()),
        };
        // That of a subject is: otherwise it is none.
        let ours = matches!(domain, Cow::Borrowed(_))
            || sip_ebpf::message::Host::parse(&domain).is_ok_and(|host| domains.has(host));
        let name = [claim.user(), "@", &domain].concat();
        let who = Who { user: claim.user(), domain: &domain, name: &name };
        let secrets = match ours {
            true => self.secrets(now, who),
            false => Found::Unknown,
        };
        let request = digest::Request {
            method: message.method_name().unwrap_or_default(),
            uri: str::from_utf8(message.request_uri_bytes()).unwrap_or_default(),
            subject: Some(digest::Subject { user: &subject.user, domain: &subject.domain }),
        };
        let (known, fetched) = match &secrets {
            Found::Missing => return self.park(now, who, parked),
            Found::Away => return Verdict::Refused(self.unavailable()),
            Found::Unknown => (&[][..], None),
            // Looked up once more, because what it lies in may change in between.
            Found::Known => match self.known.get(&name) {
                Some(known) => (known.secrets.all(), Some(Instant::from(known.fetched))),
                None => (&[][..], None),
            },
        };
        let seconds = self.clock.seconds(now);
        let verified = self.challenger.verify(claim, &request, known, &mut self.nonces, seconds);
        match verified {
            Ok(()) => {
                self.counts.passed += 1;
                Verdict::Passed
            }
            Err(Refusal::WrongResponse)
                if self.away.is_none()
                    && fetched.is_some_and(|at| !is_fresh(now, at, self.rules.doubt)) =>
            {
                self.park(now, who, parked)
            }
            Err(why @ Refusal::WrongResponse) => Verdict::Guessed(self.refuse(now, subject, why)),
            Err(why) => Verdict::Refused(self.refuse(now, subject, why)),
        }
    }

    // ---- The store ------------------------------------------------------------------------------

    /// The answer to [`Command::Fetch`]: the secrets, none if there is no such user, or that the store cannot
    /// be asked.
    pub fn handle_secrets(
        &mut self,
        now: Instant,
        ticket: Ticket,
        answer: Result<Option<Vec<Secret>>, Away>,
    ) {
        // They are asked in the order of their numbers.
        let Ok(at) = self.deadlines.binary_search_by_key(&ticket, |(_, other, _)| *other) else {
            return;
        };
        let Some((_, _, name)) = self.deadlines.remove(at) else { return };
        match answer {
            Ok(Some(mut secrets)) => {
                secrets.retain(|secret| self.challenger.uses(secret));
                self.unknown.remove(&name);
                let known = Known { secrets: secrets.into(), fetched: now.into() };
                self.known.put(&name, known);
                self.away = None;
            }
            Ok(None) => {
                self.known.remove(&name);
                self.unknown.put(&name, now.into());
                self.away = None;
            }
            Err(Away) => self.failed(now),
        }
        self.resume(&name);
    }

    /// Time has passed: stores that are too slow are given up.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((_, _, name)) = self.deadlines.pop_front_if(|(at, ..)| *at <= now) {
            self.failed(now);
            self.resume(&name);
        }
    }

    /// When [`Authenticator::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.deadlines.front().map(|(at, ..)| *at)
    }

    /// What to do next.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// Somebody has changed the user: what is known of him counts no more.
    pub fn forget(&mut self, user: &str, domain: &str) {
        let name = format!("{user}@{}", domain.to_ascii_lowercase());
        self.known.remove(&name);
        self.unknown.remove(&name);
    }

    /// Somebody has changed many users.
    pub fn forget_all(&mut self) {
        self.known.clear();
        self.unknown.clear();
    }

    // ---- What there is --------------------------------------------------------------------------

    /// What happened so far.
    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// How many users are in memory, those who do not exist included.
    pub fn kept(&self) -> usize {
        self.known.len() + self.unknown.len()
    }

    /// How many requests wait.
    pub fn parked(&self) -> usize {
        self.parked
    }

    /// What asks.
    pub fn challenger(&self) -> &Challenger {
        &self.challenger
    }

    /// The time that nonces tell.
    pub fn clock(&self) -> Clock {
        self.clock
    }

    /// The realm in which the users of a domain are asked.
    pub fn realm<'a>(&'a self, domain: &'a str) -> &'a str {
        match &self.rules.realm {
            Realm::Domain => domain,
            Realm::Fixed(realm) => realm,
        }
    }

    // ---- Within ---------------------------------------------------------------------------------

    fn secrets(&mut self, now: Instant, who: Who<'_>) -> Found {
        let Rules { keep, keep_unknown, .. } = self.rules;
        let found = match self.known.get(who.name) {
            Some(known) => Some((Found::Known, is_fresh(now, known.fetched.into(), keep))),
            None => {
                let since = self.unknown.get(who.name);
                since.map(|since| (Found::Unknown, is_fresh(now, (*since).into(), keep_unknown)))
            }
        };
        match (found, self.away) {
            (Some((secrets, true)), _) => secrets,
            (_, None) => Found::Missing,
            (None, Some(next)) if next <= now => Found::Missing,
            (None, Some(_)) => Found::Away,
            (Some((secrets, false)), Some(next)) => {
                if next <= now {
                    self.fetch(now, who);
                }
                secrets
            }
        }
    }

    fn park(&mut self, now: Instant, who: Who<'_>, parked: Parked) -> Verdict {
        let room = self.parked < self.rules.max_parked && self.fetch(now, who);
        let waiting = self.fetches.get_mut(who.name).filter(|_| room);
        match waiting.filter(|waiting| waiting.len() < self.rules.max_parked_each) {
            Some(waiting) => {
                waiting.push(parked);
                self.parked += 1;
                Verdict::Parked
            }
            None => Verdict::Refused(self.unavailable()),
        }
    }

    /// Sees to it that the secrets are asked for. Says whether they are.
    fn fetch(&mut self, now: Instant, who: Who<'_>) -> bool {
        if self.fetches.contains_key(who.name) {
            return true;
        }
        if self.fetches.len() >= self.rules.max_fetches {
            return false;
        }
        self.tickets += 1;
        let ticket = Ticket(self.tickets);
        self.counts.fetches += 1;
        self.away = self.away.map(|_| now + self.rules.pause);
        self.deadlines.push_back((now + self.rules.patience, ticket, who.name.into()));
        self.fetches.insert(who.name.into(), Vec::new());
        let (user, domain) = (who.user.into(), who.domain.into());
        self.commands.push_back(Command::Fetch { ticket, user, domain });
        true
    }

    fn resume(&mut self, name: &str) {
        let Some(waiting) = self.fetches.remove(name) else { return };
        self.parked -= waiting.len();
        self.commands.extend(waiting.into_iter().map(Command::Resume));
    }

    fn failed(&mut self, now: Instant) {
        self.counts.fetches_failed += 1;
        self.away = Some(now + self.rules.pause.max(AT_ONCE));
    }

    fn refuse(&mut self, now: Instant, subject: &Subject, why: Refusal) -> Response {
        match why {
            Refusal::NoCredentials | Refusal::StaleNonce => self.counts.challenged += 1,
            _ => self.counts.wrong += 1,
        }
        match why.answer() {
            digest::Answer::Challenge { stale } => {
                let Subject { role, realm, .. } = subject;
                let seconds = self.clock.seconds(now);
                let challenge = self.challenger.challenge(*role, realm, stale, seconds);
                Response::new(role.status(), role.phrase()).with(&challenge)
            }
            digest::Answer::Forbidden => Response::new(403, FORBIDDEN),
            digest::Answer::BadRequest => Response::new(400, why.to_string()),
        }
    }

    fn unavailable(&mut self) -> Response {
        self.counts.unavailable += 1;
        let retry = format!("Retry-After: {}\r\n", self.rules.retry_after);
        Response::new(503, "Service Unavailable").with(&retry)
    }
}

/// What has just been fetched, or has failed, counts for those who waited for it, whatever the rules say.
const AT_ONCE: Duration = Duration::from_millis(1);

fn is_fresh(now: Instant, since: Instant, keep: Duration) -> bool {
    now.saturating_duration_since(since) < keep.max(AT_ONCE)
}

impl Secrets {
    fn all(&self) -> &[Secret] {
        match self {
            Self::One(secret) => std::slice::from_ref(secret),
            Self::More(secrets) => secrets,
        }
    }
}

impl From<Vec<Secret>> for Secrets {
    fn from(mut secrets: Vec<Secret>) -> Self {
        match (secrets.pop(), secrets.is_empty()) {
            (Some(secret), true) => Self::One(secret),
            (last, _) => Self::More(secrets.into_iter().chain(last).collect()),
        }
    }
}

/// Whose secrets are wanted.
#[derive(Clone, Copy)]
struct Who<'a> {
    user: &'a str,
    domain: &'a str,
    /// Both, with an `@` between them.
    name: &'a str,
}

/// What is known of the secrets of a user.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Found {
    Known,
    Unknown,
    Missing,
    Away,
}
