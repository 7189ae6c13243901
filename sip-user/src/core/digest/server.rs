//! The side that asks: challenges, and what becomes of the answers.

use std::fmt;
use std::hint::black_box;
use std::time::Duration;

use subtle::{Choice, ConstantTimeEq};

use super::Role;
use super::algorithm::{Algorithm, Hex, Input};
use super::credentials::Credentials;
use super::nonce::{Nonces, Stamp};
use super::params::{Malformed, put_quoted, put_token};
use super::replay::{NonceCounts, Spent};
use super::secret::{Ha1, Secret};
use super::uri::same_resource;

/// The shortest key in bytes.
pub const MIN_KEY: usize = 16;

/// Stands in for the password of a user who has none.
const NO_PASSWORD: &str = "no password";

/// How credentials are asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// What is offered, and taken; the best first (RFC 8760 2.4). Only those that the stored secrets serve
    /// should be here. MD5 alone unless changed: many phones look at the first challenge only, and know no
    /// other.
    pub algorithms: Vec<Algorithm>,
    /// How long a nonce is good, in whole seconds. 300 s unless changed.
    pub validity: Duration,
    /// Whether credentials without qop (RFC 2069) are taken, as RFC 3261 22.4 wants. They have no count, so who
    /// has heard a request may repeat it, method and URI unchanged, while its nonce is good. Yes unless changed.
    pub without_qop: bool,
    /// Whether the URI of credentials must be that of the request, as [`same_resource`] says. Yes unless
    /// changed.
    pub check_uri: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            algorithms: vec![Algorithm::MD5],
            validity: Duration::from_secs(300),
            without_qop: true,
            check_uri: true,
        }
    }
}

/// No challenges can be made so.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum BadSettings {
    /// The key has less than [`MIN_KEY`] bytes.
    ShortKey,
    /// There is no algorithm.
    NoAlgorithm,
    /// Nonces would be stale when their answer comes: less than a second.
    NoValidity,
}

impl fmt::Display for BadSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::ShortKey => write!(f, "the key has less than {MIN_KEY} bytes"),
            Self::NoAlgorithm => f.write_str("no digest algorithm is listed"),
            Self::NoValidity => f.write_str("nonces must be valid for a second at least"),
        }
    }
}

impl std::error::Error for BadSettings {}

/// Asks for credentials and examines them. See the module. It may be shared between threads; only
/// [`NonceCounts`] changes.
#[derive(Debug)]
pub struct Challenger {
    nonces: Nonces,
    settings: Settings,
    validity: u64,
}

/// Credentials for our realm that answer a fresh nonce of ours, with an algorithm that we offer. Nothing is
/// proved yet.
#[derive(Clone, Debug)]
pub struct Claim<'a> {
    credentials: Credentials<'a>,
    algorithm: Algorithm,
    stamp: Stamp,
    /// With `qop=auth` only.
    nc: Option<u32>,
}

impl<'a> Claim<'a> {
    /// What they say.
    pub fn credentials(&self) -> &Credentials<'a> {
        &self.credentials
    }

    /// Whose secrets are wanted: the user name without a domain. See [`Claim::domain`].
    pub fn user(&self) -> &str {
        self.credentials.user()
    }

    /// The domain, if the user name has one behind an `@`; otherwise it is that of the realm.
    pub fn domain(&self) -> Option<&str> {
        self.credentials.domain()
    }

    /// With which algorithm they were made.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }
}

/// The request that credentials came with.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Request<'a> {
    /// Its method, as written.
    pub method: &'a str,
    /// Its Request-URI, as it was received.
    pub uri: &'a str,
    /// Who must have sent it; `None` where everybody who has a password may.
    pub subject: Option<Subject<'a>>,
}

/// Who a request is from, by its own words: To of a REGISTER and a PUBLISH, From of others.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Subject<'a> {
    /// The user of the URI, without escapes. Case matters (19.1.4).
    pub user: &'a str,
    /// The host of the URI. Compared with credentials that name a domain; case does not matter.
    pub domain: &'a str,
}

/// Why a request is not let through.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// It has no credentials for our realm.
    NoCredentials,
    /// Its nonce is none of ours.
    ForgedNonce,
    /// Its nonce was ours, and is too old.
    StaleNonce,
    /// The algorithm is none that we offer.
    Algorithm,
    /// It has no qop, and settings demand it.
    NoQop,
    /// Its qop is another than `auth`: `auth-int`, which we never offer.
    Qop,
    /// Wrong password, or no such user: nobody can tell which.
    WrongResponse,
    /// The response is right, but for another resource than the request asks for.
    Uri,
    /// The very same request was let through already: nonce, nc, cnonce, method and URI are equal. If it is a
    /// retransmission, its transaction absorbs it. Otherwise somebody plays it again: it is refused.
    Repeated,
    /// Its nc was used by another request, or lies too far behind.
    Replayed,
    /// Its nonce had to make room for younger ones, so it cannot be said what was used of it.
    Forgotten,
    /// The password is right, but of another user than the request is from.
    Forbidden,
    /// It cannot be read.
    Malformed(Malformed),
}

/// How a refusal is answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Answer {
    /// 401 or 407 ([`Role::status`]) with new challenges ([`Challenger::challenge`]).
    Challenge {
        /// The client should try again at once, without asking anybody for a password.
        stale: bool,
    },
    /// `403 Forbidden auth ID`.
    Forbidden,
    /// 400.
    BadRequest,
}

impl Refusal {
    /// The answer that it gets.
    pub const fn answer(self) -> Answer {
        match self {
            Self::NoCredentials
            | Self::ForgedNonce
            | Self::Algorithm
            | Self::NoQop
            | Self::WrongResponse => Answer::Challenge { stale: false },
            Self::StaleNonce | Self::Repeated | Self::Replayed | Self::Forgotten => {
                Answer::Challenge { stale: true }
            }
            Self::Forbidden => Answer::Forbidden,
            // RFC 7616 3.4 and 3.4.6.
            Self::Qop | Self::Uri | Self::Malformed(_) => Answer::BadRequest,
        }
    }
}

/// In words that fit a reason phrase.
impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NoCredentials => "No Credentials",
            Self::ForgedNonce => "Unknown Nonce",
            Self::StaleNonce => "Stale Nonce",
            Self::Algorithm => "Algorithm Not Offered",
            Self::NoQop => "Credentials Without qop",
            Self::Qop => "Bad Credentials (qop Not Offered)",
            Self::WrongResponse => "Wrong Response",
            Self::Uri => "Bad Credentials (Another URI)",
            Self::Repeated => "Repeated Request",
            Self::Replayed => "Nonce Count Used",
            Self::Forgotten => "Nonce Forgotten",
            Self::Forbidden => "Forbidden auth ID",
            Self::Malformed(what) => return write!(f, "Bad Credentials ({what})"),
        })
    }
}

impl std::error::Error for Refusal {}

impl From<Malformed> for Refusal {
    fn from(what: Malformed) -> Self {
        Self::Malformed(what)
    }
}

impl From<Spent> for Refusal {
    fn from(spent: Spent) -> Self {
        match spent {
            Spent::Repeated => Self::Repeated,
            Spent::Replayed => Self::Replayed,
            Spent::Forgotten => Self::Forgotten,
        }
    }
}

impl Challenger {
    /// With the key that signs nonces, at least [`MIN_KEY`] bytes; nonces of another node with the same key
    /// are taken. `instance` tells nodes, and the starts of one node, apart: its low 24 bits go into the
    /// nonces, and a random number will do.
    pub fn new(key: &[u8], instance: u32, settings: Settings) -> Result<Self, BadSettings> {
        if key.len() < MIN_KEY {
            return Err(BadSettings::ShortKey);
        }
        if settings.algorithms.is_empty() {
            return Err(BadSettings::NoAlgorithm);
        }
        let validity = settings.validity.as_secs();
        if validity == 0 {
            return Err(BadSettings::NoValidity);
        }
        Ok(Self { nonces: Nonces::new(key, instance), settings, validity })
    }

    /// Whether a secret serves an algorithm that is offered. Others need not be kept.
    pub fn uses(&self, secret: &Secret) -> bool {
        self.settings.algorithms.iter().any(|algorithm| secret.serves(algorithm.hash))
    }

    /// The header lines of a challenge, each with its CR LF: one for each algorithm, in their order, all with
    /// the same nonce. `now` is in seconds of Unix time.
    ///
    /// The realm is compared byte by byte when its credentials come, so a realm that is a domain should always
    /// be given in the same case.
    pub fn challenge(&self, role: Role, realm: &str, stale: bool, now: u64) -> String {
        self.lines(role, realm, stale, &self.nonces.issue(realm, now)).0
    }

    /// As [`Challenger::challenge`], with this nonce; and where that stands.
    pub fn lines(&self, role: Role, realm: &str, stale: bool, nonce: &str) -> (String, Vec<usize>) {
        let mut out = String::with_capacity(160 * self.settings.algorithms.len());
        let mut places = Vec::with_capacity(self.settings.algorithms.len());
        for algorithm in &self.settings.algorithms {
            out.push_str(role.challenge_header());
            out.push_str(": Digest");
            put_quoted(&mut out, "realm", realm);
            put_quoted(&mut out, "nonce", nonce);
            // Hexadecimal digits, so nothing in it was escaped; the quote is behind it.
            places.push(out.len() - 1 - nonce.len());
            if stale {
                put_token(&mut out, "stale", "true");
            }
            put_token(&mut out, "algorithm", algorithm.name());
            put_quoted(&mut out, "qop", "auth");
            out.push_str("\r\n");
        }
        (out, places)
    }

    /// The key that signs nonces of a realm, for who makes them elsewhere ([`sip_ebpf::nonce`]).
    pub fn nonce_key(&self, realm: &str) -> [u64; 2] {
        self.nonces.key(realm)
    }

    /// The credentials for our realm, from the values of all Authorization lines of a request, or of all
    /// Proxy-Authorization lines. Those for other realms and of other schemes are none of our business.
    ///
    /// If none can be used, the refusal is that of the first which was for us or could not be read; but
    /// [`Refusal::StaleNonce`] goes before others, since its client can mend it alone.
    pub fn claim<'a>(
        &self,
        realm: &str,
        values: impl IntoIterator<Item = &'a [u8]>,
        now: u64,
    ) -> Result<Claim<'a>, Refusal> {
        let mut refusal = Refusal::NoCredentials;
        for value in values {
            match self.read(realm, value, now) {
                Ok(None) => {}
                Ok(Some(claim)) => return Ok(claim),
                Err(why) if refusal == Refusal::NoCredentials => refusal = why,
                Err(Refusal::StaleNonce) => refusal = Refusal::StaleNonce,
                Err(_) => {}
            }
        }
        Err(refusal)
    }

    /// Whether a claim is right. `secrets` are those of [`Claim::user`]; none if there is no such user. If it
    /// is, its count is used up.
    ///
    /// The response is looked at first, so a stranger hears [`Refusal::WrongResponse`] and nothing else,
    /// whatever else is wrong.
    pub fn verify(
        &self,
        claim: &Claim<'_>,
        request: &Request<'_>,
        secrets: &[Secret],
        counts: &mut NonceCounts,
        now: u64,
    ) -> Result<(), Refusal> {
        let response = self.right_response(claim, request.method, secrets)?;
        let credentials = &claim.credentials;
        if self.settings.check_uri && !same_resource(&credentials.uri, request.uri) {
            return Err(Refusal::Uri);
        }
        // Time may have passed since the claim was read.
        if claim.stamp.is_stale(now, self.validity) {
            return Err(Refusal::StaleNonce);
        }
        if let Some(nc) = claim.nc {
            counts.take(claim.stamp, nc, front(&response), now, self.validity)?;
        }
        match request.subject {
            Some(subject) if !is_subject(credentials, subject) => Err(Refusal::Forbidden),
            _ => Ok(()),
        }
    }

    /// One line's credentials; `None` if they are not for us.
    fn read<'a>(
        &self,
        realm: &str,
        value: &'a [u8],
        now: u64,
    ) -> Result<Option<Claim<'a>>, Refusal> {
        let Some(credentials) = Credentials::parse(value)?.filter(|read| read.realm == realm)
        else {
            return Ok(None);
        };
        let stamp =
            self.nonces.read(&credentials.nonce, realm).map_err(|_| Refusal::ForgedNonce)?;
        if stamp.is_stale(now, self.validity) {
            return Err(Refusal::StaleNonce);
        }
        let algorithm = match &credentials.algorithm {
            None => Algorithm::MD5,
            Some(name) => name.parse().map_err(|_| Refusal::Algorithm)?,
        };
        if !self.settings.algorithms.contains(&algorithm) {
            return Err(Refusal::Algorithm);
        }
        let nc = match &credentials.qop {
            Some(qop) if qop.eq_ignore_ascii_case("auth") => {
                Some(count(credentials.nc.as_deref().ok_or(Malformed::Missing("nc"))?)?)
            }
            Some(_) => return Err(Refusal::Qop),
            None if self.settings.without_qop => None,
            None => return Err(Refusal::NoQop),
        };
        if credentials.cnonce.is_none() && (nc.is_some() || algorithm.session) {
            return Err(Malformed::Missing("cnonce").into());
        }
        let response = credentials.response.as_bytes();
        if response.len() != 2 * algorithm.hash.bytes() || !response.iter().all(is_lower_hex) {
            return Err(Malformed::Value("response").into());
        }
        Ok(Some(Claim { credentials, algorithm, stamp, nc }))
    }

    /// The response, if it is that of who knows one of the secrets. What this costs depends on nothing but the
    /// lengths of the texts: the same hashes are made for a password, for an HA1, and for nobody.
    fn right_response(
        &self,
        claim: &Claim<'_>,
        method: &str,
        secrets: &[Secret],
    ) -> Result<Hex, Refusal> {
        let Claim { credentials, algorithm, nc, .. } = claim;
        let Credentials { username, realm, .. } = credentials;
        let fitting = secrets.iter().find(|secret| match secret {
            Secret::Password(_) => true,
            Secret::Ha1(_) => secret.serves(algorithm.hash) && credentials.domain().is_none(),
            Secret::Ha1b(_) => secret.serves(algorithm.hash) && credentials.domain().is_some(),
        });
        let password = match fitting {
            Some(Secret::Password(password)) => password.as_str(),
            _ => NO_PASSWORD,
        };
        let made = black_box(Ha1::new(algorithm.hash, username, realm, password));
        let ha1 = match fitting {
            Some(Secret::Ha1(stored) | Secret::Ha1b(stored)) => *stored,
            _ => made,
        };
        let right = algorithm.response(
            &ha1,
            &Input {
                nonce: &credentials.nonce,
                nc: nc.and(credentials.nc.as_deref()),
                cnonce: credentials.cnonce.as_deref().unwrap_or_default(),
                method,
                uri: &credentials.uri,
            },
        );
        let equal = right.as_bytes().ct_eq(credentials.response.as_bytes());
        match bool::from(equal & Choice::from(u8::from(fitting.is_some()))) {
            true => Ok(right),
            false => Err(Refusal::WrongResponse),
        }
    }
}

fn is_subject(credentials: &Credentials<'_>, subject: Subject<'_>) -> bool {
    let domain = credentials.domain();
    credentials.user() == subject.user
        && domain.is_none_or(|domain| domain.eq_ignore_ascii_case(subject.domain))
}

/// The value of nc: eight hexadecimal digits (RFC 7616 3.4).
fn count(digits: &str) -> Result<u32, Malformed> {
    let bad = Malformed::Value("nc");
    // `from_str_radix` would also take a sign.
    if digits.len() != 8 || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Err(bad);
    }
    u32::from_str_radix(digits, 16).map_err(|_| bad)
}

/// What stands for a right response in the memory of counts.
fn front(response: &Hex) -> u64 {
    response.as_bytes().iter().take(16).fold(0, |front, digit| {
        front << 4 | u64::from(char::from(*digit).to_digit(16).unwrap_or_default())
    })
}

fn is_lower_hex(byte: &u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}
