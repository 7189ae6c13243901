//! The value of Authorization and Proxy-Authorization (RFC 3261 20.7, 20.28; RFC 7616 3.4).

use std::borrow::Cow;

use super::params::{Malformed, once, read};

/// Credentials of the scheme Digest, texts without quotes and escapes. Parameters that nothing here needs are
/// skipped, `opaque` among them: our nonces need none beside them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Credentials<'a> {
    /// Who it says it is.
    pub username: Cow<'a, str>,
    /// Where.
    pub realm: Cow<'a, str>,
    /// Which challenge it answers.
    pub nonce: Cow<'a, str>,
    /// The resource that it wants (RFC 7616 3.4.6).
    pub uri: Cow<'a, str>,
    /// The answer: hexadecimal digits, if it is right.
    pub response: Cow<'a, str>,
    /// The name of the algorithm; none means MD5.
    pub algorithm: Option<Cow<'a, str>>,
    /// The client's own nonce.
    pub cnonce: Option<Cow<'a, str>>,
    /// Which quality of protection it chose; none as in RFC 2069.
    pub qop: Option<Cow<'a, str>>,
    /// How many requests it has sent with the nonce.
    pub nc: Option<Cow<'a, str>>,
}

impl<'a> Credentials<'a> {
    /// Reads the value of a header line, which is unfolded. `None` if its scheme is another than Digest.
    pub fn parse(value: &'a [u8]) -> Result<Option<Self>, Malformed> {
        let (mut username, mut realm, mut nonce, mut uri) = (None, None, None, None);
        let (mut response, mut algorithm) = (None, None);
        let (mut cnonce, mut qop, mut nc) = (None, None, None);
        let mut fields = [
            ("username", &mut username),
            ("realm", &mut realm),
            ("nonce", &mut nonce),
            ("uri", &mut uri),
            ("response", &mut response),
            ("algorithm", &mut algorithm),
            ("cnonce", &mut cnonce),
            ("qop", &mut qop),
            ("nc", &mut nc),
        ];
        let digest = read(value, |name, value| {
            match fields.iter_mut().find(|(field, _)| field.eq_ignore_ascii_case(name)) {
                Some((field, slot)) => once(slot, field, value),
                None => Ok(()),
            }
        })?;
        if !digest {
            return Ok(None);
        }
        Ok(Some(Self {
            username: username.ok_or(Malformed::Missing("username"))?,
            realm: realm.ok_or(Malformed::Missing("realm"))?,
            nonce: nonce.ok_or(Malformed::Missing("nonce"))?,
            uri: uri.ok_or(Malformed::Missing("uri"))?,
            response: response.ok_or(Malformed::Missing("response"))?,
            algorithm,
            cnonce,
            qop,
            nc,
        }))
    }

    /// Whether the value of a header line is credentials for one of some realms. Those for ours are taken off a
    /// request before it is forwarded: nobody behind us has a use for them.
    pub fn are_for(value: &'a [u8], realms: &[String]) -> bool {
        matches!(Self::parse(value), Ok(Some(read)) if realms.iter().any(|one| *one == read.realm))
    }

    /// The user name up to its last `@`: `alice` of `alice` and of `alice@example.com`.
    pub fn user(&self) -> &str {
        self.username.rsplit_once('@').map_or(&self.username, |(user, _)| user)
    }

    /// The domain behind that `@`, if there is one.
    pub fn domain(&self) -> Option<&str> {
        self.username.rsplit_once('@').map(|(_, domain)| domain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const FULL: &str = "Digest username=\"bob\", realm=\"biloxi.example\", nonce=\"dcd9\", \
        uri=\"sip:bob@biloxi.example\", qop=auth, nc=00000001, cnonce=\"0a4f113b\", \
        response=\"6629fae49393a05397450978507c4ef1\", opaque=\"5ccc\", algorithm=MD5";

    #[test]
    fn the_example_of_rfc_3261() {
        let read = Credentials::parse(FULL.as_bytes()).unwrap().unwrap();
        let want = Credentials {
            username: "bob".into(),
            realm: "biloxi.example".into(),
            nonce: "dcd9".into(),
            uri: "sip:bob@biloxi.example".into(),
            response: "6629fae49393a05397450978507c4ef1".into(),
            algorithm: Some("MD5".into()),
            cnonce: Some("0a4f113b".into()),
            qop: Some("auth".into()),
            nc: Some("00000001".into()),
        };
        assert_eq!(read, want);
        // Phones quote what needs none, and write names as they like.
        let odd =
            FULL.replace("qop=auth", "QOP=\"auth\"").replace("algorithm=MD5", "Algorithm=\"MD5\"");
        assert_eq!(Credentials::parse(odd.as_bytes()).unwrap().unwrap(), want);
        assert_eq!(Credentials::parse(b"Basic Ym9iOnpvbw==").unwrap(), None);
        let realms = ["atlanta.example".to_owned(), "biloxi.example".to_owned()];
        assert!(Credentials::are_for(FULL.as_bytes(), &realms));
        assert!(!Credentials::are_for(FULL.as_bytes(), &realms[..1]));
        assert!(!Credentials::are_for(b"Basic Ym9iOnpvbw==", &realms));
        assert!(!Credentials::are_for(b"Digest", &realms));
    }

    #[test]
    fn twice_and_missing() {
        for name in ["username", "realm", "nonce", "uri", "response"] {
            let without = FULL.replacen(&format!("{name}="), "x=", 1);
            let error = Credentials::parse(without.as_bytes()).unwrap_err();
            assert_eq!(error, Malformed::Missing(name));
        }
        for name in
            ["username", "realm", "nonce", "uri", "response", "algorithm", "cnonce", "qop", "nc"]
        {
            let twice = format!("{FULL}, {}=\"x\"", name.to_uppercase());
            let error = Credentials::parse(twice.as_bytes()).unwrap_err();
            assert_eq!(error, Malformed::Duplicate(name));
        }
    }

    #[test]
    fn user_and_domain() {
        for (name, user, domain) in [
            ("alice", "alice", None),
            ("alice@example.com", "alice", Some("example.com")),
            ("a@b@example.com", "a@b", Some("example.com")),
            ("", "", None),
        ] {
            let value = FULL.replace("\"bob\"", &format!("\"{name}\""));
            let read = Credentials::parse(value.as_bytes()).unwrap().unwrap();
            assert_eq!((read.user(), read.domain()), (user, domain));
        }
    }

    proptest! {
        #[test]
        fn nothing_panics(
            damages in crate::core::testing::damages(),
            bytes in proptest::collection::vec(any::<u8>(), 0..100),
        ) {
            let _ = Credentials::parse(&bytes);
            let _ = Credentials::parse(&crate::core::testing::damaged(FULL.into(), &damages));
        }
    }
}
