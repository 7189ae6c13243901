//! The side that is asked: challenges of a PBX, and our answers.

use std::borrow::Cow;
use std::fmt;

use super::Role;
use super::algorithm::{Algorithm, Input};
use super::params::{Malformed, once, put_quoted, put_token, read};
use super::secret::Secret;

/// A challenge that we can answer.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Challenge {
    /// Where credentials are wanted for.
    pub realm: String,
    /// Whether only the nonce of our last answer was too old. If not, and we have answered already, our secret
    /// is wrong, and asking again leads nowhere.
    pub stale: bool,
    nonce: String,
    opaque: Option<String>,
    algorithm: Algorithm,
    /// Whether the challenge names the algorithm: then the answer does.
    named: bool,
    /// Whether `qop=auth` is offered: then it is used.
    auth: bool,
}

/// Why a 401 or 407 cannot be answered.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unanswerable {
    /// It has no challenge of the scheme Digest.
    NoChallenge,
    /// Each challenge wants an algorithm that we do not have or that the secret does not serve, or offers
    /// `auth-int` only.
    Unsupported,
    /// No challenge can be used, and one cannot be read.
    Malformed(Malformed),
}

impl fmt::Display for Unanswerable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoChallenge => f.write_str("no digest challenge"),
            Self::Unsupported => f.write_str("no challenge with an algorithm and qop of ours"),
            Self::Malformed(what) => write!(f, "malformed challenge ({what})"),
        }
    }
}

impl std::error::Error for Unanswerable {}

impl Challenge {
    /// The best challenge that `secret` can answer, from the values of all WWW-Authenticate lines of a 401, or
    /// of all Proxy-Authenticate lines of a 407. The best is the first: who asks puts them in the order of
    /// their preference (RFC 8760 2.4).
    pub fn choose<'v>(
        values: impl IntoIterator<Item = &'v [u8]>,
        secret: &Secret,
    ) -> Result<Self, Unanswerable> {
        let mut why = Unanswerable::NoChallenge;
        for value in values {
            match Self::parse(value) {
                Ok(challenge) if secret.serves(challenge.algorithm.hash) => return Ok(challenge),
                Ok(_) => why = Unanswerable::Unsupported,
                Err(Unanswerable::NoChallenge) => {}
                Err(error) => {
                    if why == Unanswerable::NoChallenge {
                        why = error;
                    }
                }
            }
        }
        Err(why)
    }

    /// The algorithm that it wants.
    pub fn algorithm(&self) -> Algorithm {
        self.algorithm
    }

    fn parse(value: &[u8]) -> Result<Self, Unanswerable> {
        let (mut realm, mut nonce, mut opaque) = (None, None, None);
        let (mut algorithm, mut qop, mut stale) = (None, None, None);
        let mut fields = [
            ("realm", &mut realm),
            ("nonce", &mut nonce),
            ("opaque", &mut opaque),
            ("algorithm", &mut algorithm),
            ("qop", &mut qop),
            ("stale", &mut stale),
        ];
        let digest = read(value, |name, value| {
            match fields.iter_mut().find(|(field, _)| field.eq_ignore_ascii_case(name)) {
                Some((field, slot)) => once(slot, field, value),
                None => Ok(()),
            }
        })
        .map_err(Unanswerable::Malformed)?;
        if !digest {
            return Err(Unanswerable::NoChallenge);
        }
        let need = |value: Option<Cow<'_, str>>, name| {
            value.map(Cow::into_owned).ok_or(Unanswerable::Malformed(Malformed::Missing(name)))
        };
        let (realm, nonce) = (need(realm, "realm")?, need(nonce, "nonce")?);
        let named = algorithm.is_some();
        let algorithm = match algorithm {
            None => Algorithm::MD5,
            Some(name) => name.parse().map_err(|_| Unanswerable::Unsupported)?,
        };
        let auth = qop.as_ref().is_some_and(|qop| {
            qop.split(',').any(|option| option.trim_ascii().eq_ignore_ascii_case("auth"))
        });
        if qop.is_some() && !auth {
            return Err(Unanswerable::Unsupported);
        }
        Ok(Self {
            realm,
            stale: stale.is_some_and(|stale| stale.eq_ignore_ascii_case("true")),
            nonce,
            opaque: opaque.map(Cow::into_owned),
            algorithm,
            named,
            auth,
        })
    }
}

/// The answers to one challenge. The nonce may be used again for later requests, until a new challenge comes.
#[derive(Clone, Debug)]
pub struct Session {
    challenge: Challenge,
    cnonce: String,
    count: u32,
}

impl Session {
    /// `cnonce` is a text that nobody can guess, the same for all answers: so HA1 of a `-sess` algorithm is
    /// the same whether a server makes it anew for each request or once (RFC 7616 3.4.2).
    pub fn new(challenge: Challenge, cnonce: String) -> Self {
        Self { challenge, cnonce, count: 0 }
    }

    /// What is answered.
    pub fn challenge(&self) -> &Challenge {
        &self.challenge
    }

    /// The header line, with its CR LF, for a request with this method and Request-URI. A secret that does not
    /// serve the algorithm gives none; one that the challenge was chosen for does. Each call takes a count of
    /// its own: repetitions of a request are the same bytes, and need no call.
    pub fn authorize(
        &mut self,
        role: Role,
        username: &str,
        secret: &Secret,
        method: &str,
        uri: &str,
    ) -> Option<String> {
        let Challenge { realm, nonce, opaque, algorithm, named, auth, .. } = &self.challenge;
        let ha1 = secret.ha1(algorithm.hash, username, realm)?;
        self.count = self.count.saturating_add(1);
        let nc = auth.then(|| format!("{:08x}", self.count));
        let input = Input { nonce, nc: nc.as_deref(), cnonce: &self.cnonce, method, uri };
        let response = algorithm.response(&ha1, &input);
        let mut out = String::with_capacity(384);
        out.push_str(role.credentials_header());
        out.push_str(": Digest");
        put_quoted(&mut out, "username", username);
        put_quoted(&mut out, "realm", realm);
        put_quoted(&mut out, "nonce", nonce);
        put_quoted(&mut out, "uri", uri);
        put_quoted(&mut out, "response", response.as_str());
        if *named {
            put_token(&mut out, "algorithm", algorithm.name());
        }
        // Without qop there must be none (RFC 2617 3.2.2), but a session cannot be answered without it.
        if *auth || algorithm.session {
            put_quoted(&mut out, "cnonce", &self.cnonce);
        }
        if let Some(opaque) = opaque {
            put_quoted(&mut out, "opaque", opaque);
        }
        if let Some(nc) = &nc {
            put_token(&mut out, "qop", "auth");
            put_token(&mut out, "nc", nc);
        }
        out.push_str("\r\n");
        Some(out)
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Ha1, Hash};
    use super::*;
    use proptest::prelude::*;

    fn password() -> Secret {
        Secret::Password("secret".into())
    }

    fn choose(values: &[&str], secret: &Secret) -> Result<Challenge, Unanswerable> {
        Challenge::choose(values.iter().map(|value| value.as_bytes()), secret)
    }

    fn line(session: &mut Session) -> String {
        let (method, uri) = ("REGISTER", "sip:example.com");
        session.authorize(Role::UserAgent, "alice", &password(), method, uri).unwrap()
    }

    const MD5: &str = r#"Digest algorithm=MD5, realm="example.com", nonce="abcdef", qop="auth""#;
    const SHA: &str =
        r#"Digest realm="example.com", nonce="abcdef", algorithm=SHA-256, qop="auth-int, auth""#;

    #[test]
    fn whole_lines() {
        let challenge = choose(&[r#"Digest  realm="example.com",nonce="abcdef""#], &password());
        let mut session = Session::new(challenge.unwrap(), "0123".into());
        // The response is that of Python's hashlib.
        let old = "Authorization: Digest username=\"alice\", realm=\"example.com\", nonce=\"abcdef\", \
            uri=\"sip:example.com\", response=\"a78abdd5e960b1ad429a41df9ce15386\"\r\n";
        assert_eq!(line(&mut session), old);
        assert_eq!(line(&mut session), old);

        let value = r#"Digest realm="example.com", nonce="abcdef", algorithm=MD5, qop="auth,auth-int",
            opaque="o\"p", stale=TRUE, domain="sip:example.com", charset=UTF-8"#;
        let challenge = choose(&[&value.replace("\n  ", "")], &password()).unwrap();
        assert!(challenge.stale);
        let mut session = Session::new(challenge, "0123".into());
        assert_eq!(
            line(&mut session),
            "Authorization: Digest username=\"alice\", realm=\"example.com\", nonce=\"abcdef\", \
             uri=\"sip:example.com\", response=\"37be73834640c730a9a7e1e94b5043e6\", algorithm=MD5, \
             cnonce=\"0123\", opaque=\"o\\\"p\", qop=auth, nc=00000001\r\n"
        );
        assert!(line(&mut session).ends_with("qop=auth, nc=00000002\r\n"));
        let proxy = session.authorize(Role::Proxy, "alice", &password(), "INVITE", "sip:b@c");
        assert!(proxy.unwrap().starts_with("Proxy-Authorization: Digest username=\"alice\""));
    }

    #[test]
    fn which_is_chosen() {
        let algorithm = |values: &[&str], secret: &Secret| {
            choose(values, secret).map(|challenge| challenge.algorithm())
        };
        let other = "Digest realm=\"example.com\", nonce=\"abcdef\", algorithm=SHA-1";
        let int = "Digest realm=\"example.com\", nonce=\"abcdef\", qop=\"auth-int\"";
        let broken = "Digest realm=\"example.com\", nonce";
        let basic = "Basic realm=\"example.com\"";
        assert_eq!(algorithm(&[SHA, MD5], &password()), Ok(Algorithm::SHA_256));
        assert_eq!(algorithm(&[MD5, SHA], &password()), Ok(Algorithm::MD5));
        assert_eq!(
            algorithm(&[basic, broken, other, int, SHA], &password()),
            Ok(Algorithm::SHA_256)
        );
        // A secret that serves one of them only.
        let ha1 = Ha1::new(Hash::Md5, "alice", "example.com", "secret");
        assert_eq!(algorithm(&[SHA, MD5], &Secret::Ha1(ha1)), Ok(Algorithm::MD5));
        assert_eq!(algorithm(&[SHA], &Secret::Ha1(ha1)), Err(Unanswerable::Unsupported));
        assert_eq!(algorithm(&[], &password()), Err(Unanswerable::NoChallenge));
        assert_eq!(algorithm(&[basic], &password()), Err(Unanswerable::NoChallenge));
        assert_eq!(algorithm(&[other], &password()), Err(Unanswerable::Unsupported));
        assert_eq!(algorithm(&[int], &password()), Err(Unanswerable::Unsupported));
        let malformed = |what| Err(Unanswerable::Malformed(what));
        assert_eq!(algorithm(&[basic, broken], &password()), malformed(Malformed::Syntax));
        for (value, what) in [
            ("Digest realm=\"a\"", Malformed::Missing("nonce")),
            ("Digest nonce=\"a\"", Malformed::Missing("realm")),
            ("Digest nonce=\"a\", nonce=\"a\"", Malformed::Duplicate("nonce")),
        ] {
            assert_eq!(algorithm(&[value], &password()), malformed(what));
        }
    }

    #[test]
    fn a_secret_that_does_not_serve_gives_nothing() {
        let mut session = Session::new(choose(&[SHA], &password()).unwrap(), "0123".into());
        let secret = Secret::Ha1(Ha1::new(Hash::Md5, "alice", "example.com", "secret"));
        let line = session.authorize(Role::UserAgent, "alice", &secret, "REGISTER", "sip:b");
        assert_eq!(line, None);
    }

    proptest! {
        #[test]
        fn nothing_panics(damages in crate::core::testing::damages()) {
            let bytes = crate::core::testing::damaged(SHA.into(), &damages);
            if let Ok(challenge) = Challenge::choose([&bytes[..]], &password()) {
                let mut session = Session::new(challenge, "0123".into());
                let line = line(&mut session);
                prop_assert_eq!(line.matches(['\r', '\n']).count(), 2);
            }
        }
    }
}
