//! Both sides against each other.

use std::slice;
use std::time::Duration;

use proptest::prelude::*;

use super::*;

const KEY: &[u8] = b"0123456789abcdef";
const NOW: u64 = 1_700_000_000;
const REALM: &str = "example.com";
const URI: &str = "sip:example.com";

/// One who asks, and the memory of counts.
struct Server {
    challenger: Challenger,
    counts: NonceCounts,
    secrets: Vec<Secret>,
    now: u64,
}

impl Server {
    fn new(settings: Settings) -> Self {
        Self::with_key(KEY, 1, settings)
    }

    fn with_key(key: &[u8], instance: u32, settings: Settings) -> Self {
        let challenger = Challenger::new(key, instance, settings).unwrap();
        let secrets = vec![Secret::Password("secret".into())];
        Self { challenger, counts: NonceCounts::new(16), secrets, now: NOW }
    }

    fn of(algorithm: Algorithm) -> Self {
        Self::new(Settings { algorithms: vec![algorithm], ..Settings::default() })
    }

    /// The values of a challenge's lines.
    fn challenge(&self) -> Vec<String> {
        let lines = self.challenger.challenge(Role::UserAgent, REALM, false, self.now);
        lines.lines().map(|line| value(line).to_owned()).collect()
    }

    /// A client that answers a challenge.
    fn client(&self) -> Client {
        let secret = Secret::Password("secret".into());
        let values = self.challenge();
        let challenge = Challenge::choose(values.iter().map(|value| value.as_bytes()), &secret);
        let session = Session::new(challenge.unwrap(), "cnonce".into());
        Client { session, secret, username: "alice".into() }
    }

    /// What becomes of a REGISTER with these credentials.
    fn hear(&mut self, value: &str) -> Result<(), Refusal> {
        let subject = Some(Subject { user: "alice", domain: "example.com" });
        self.hear_request(value, &Request { method: "REGISTER", uri: URI, subject })
    }

    fn hear_request(&mut self, value: &str, request: &Request<'_>) -> Result<(), Refusal> {
        let claim = self.challenger.claim(REALM, [value.as_bytes()], self.now)?;
        let known = claim.user() == "alice";
        let secrets = if known { &self.secrets[..] } else { &[] };
        self.challenger.verify(&claim, request, secrets, &mut self.counts, self.now)
    }
}

struct Client {
    session: Session,
    secret: Secret,
    username: String,
}

impl Client {
    /// Credentials for the next REGISTER.
    fn answer(&mut self) -> String {
        let Self { session, secret, username } = self;
        let line = session.authorize(Role::UserAgent, username, secret, "REGISTER", URI).unwrap();
        value(line.strip_suffix("\r\n").unwrap()).to_owned()
    }
}

fn value(line: &str) -> &str {
    line.split_once(": ").unwrap().1
}

/// Credentials without the parameters of qop, with the response of RFC 2069.
fn without_qop(server: &Server, algorithm: Algorithm) -> String {
    let challenge = server.challenge().remove(0).replace(", qop=\"auth\"", "");
    let secret = Secret::Password("secret".into());
    let challenge = Challenge::choose([challenge.as_bytes()], &secret).unwrap();
    assert_eq!(challenge.algorithm(), algorithm);
    let session = Session::new(challenge, "cnonce".into());
    Client { session, secret, username: "alice".into() }.answer()
}

#[test]
fn the_lines_of_a_challenge() {
    let algorithms = vec![Algorithm::SHA_512_256, Algorithm::MD5];
    let server = Server::new(Settings { algorithms, ..Settings::default() });
    let text = server.challenger.challenge(Role::Proxy, "a \"quoted\"\r\nrealm", true, NOW);
    let nonce = text.split("nonce=\"").nth(1).unwrap().split('"').next().unwrap();
    let want = ["SHA-512-256", "MD5"].map(|algorithm| {
        format!(
            "Proxy-Authenticate: Digest realm=\"a \\\"quoted\\\"realm\", nonce=\"{nonce}\", \
             stale=true, algorithm={algorithm}, qop=\"auth\"\r\n"
        )
    });
    assert_eq!(text, want.concat());
    let text = server.challenger.challenge(Role::UserAgent, "example.com", false, NOW);
    assert!(text.starts_with("WWW-Authenticate: Digest realm=\"example.com\", nonce=\""), "{text}");
    assert!(!text.contains("stale"));
    assert!(!text.contains(nonce), "each challenge has a nonce of its own");
}

#[test]
fn every_algorithm_from_challenge_to_answer() {
    for algorithm in Algorithm::ALL {
        let mut server = Server::of(algorithm);
        let mut client = server.client();
        for _ in 0..3 {
            assert_eq!(server.hear(&client.answer()), Ok(()), "{algorithm}");
        }
        // As RFC 2069.
        let old = without_qop(&server, algorithm);
        assert!(!old.contains("qop") && !old.contains("nc="), "{old}");
        assert_eq!(server.hear(&old), Ok(()), "{algorithm}");
        // HA1 instead of the password, of this hash only.
        let ha1 = |hash| Secret::Ha1(Ha1::new(hash, "alice", REALM, "secret"));
        for hash in [Hash::Md5, Hash::Sha256, Hash::Sha512_256] {
            server.secrets = vec![ha1(hash)];
            let fits = hash == algorithm.hash;
            let want = if fits { Ok(()) } else { Err(Refusal::WrongResponse) };
            assert_eq!(server.hear(&client.answer()), want, "{algorithm} {hash:?}");
        }
        server.secrets = [Hash::Md5, Hash::Sha256, Hash::Sha512_256].map(ha1).to_vec();
        assert_eq!(server.hear(&client.answer()), Ok(()), "{algorithm}");
    }
}

#[test]
fn a_domain_in_the_user_name_wants_ha1b() {
    let mut server = Server::of(Algorithm::MD5);
    let mut client = server.client();
    client.username = "alice@example.com".into();
    assert_eq!(server.hear(&client.answer()), Ok(()), "a password serves for both");
    let ha1 = Ha1::new(Hash::Md5, "alice", REALM, "secret");
    let ha1b = Ha1::new(Hash::Md5, "alice@example.com", REALM, "secret");
    server.secrets = vec![Secret::Ha1(ha1)];
    assert_eq!(server.hear(&client.answer()), Err(Refusal::WrongResponse));
    server.secrets.push(Secret::Ha1b(ha1b));
    assert_eq!(server.hear(&client.answer()), Ok(()));
    client.username = "alice".into();
    assert_eq!(server.hear(&client.answer()), Ok(()));
    server.secrets.remove(0);
    assert_eq!(server.hear(&client.answer()), Err(Refusal::WrongResponse));
}

#[test]
fn unknown_user_and_wrong_password_are_one() {
    let mut server = Server::of(Algorithm::MD5);
    let mut client = server.client();
    client.secret = Secret::Password("guess".into());
    assert_eq!(server.hear(&client.answer()), Err(Refusal::WrongResponse));
    client.username = "mallory".into();
    assert_eq!(server.hear(&client.answer()), Err(Refusal::WrongResponse));
    // The stand-in for a password opens nothing.
    client.secret = Secret::Password("no password".into());
    assert_eq!(server.hear(&client.answer()), Err(Refusal::WrongResponse));
    client.username = "alice".into();
    server.secrets.clear();
    assert_eq!(server.hear(&client.answer()), Err(Refusal::WrongResponse));
    assert!(server.counts.is_empty(), "who knows no password leaves no trace");
    assert_eq!(Refusal::WrongResponse.answer(), Answer::Challenge { stale: false });
}

#[test]
fn another_user_and_another_resource() {
    let mut server = Server::of(Algorithm::MD5);
    let mut client = server.client();
    let mut hear = |username: &str, uri: &str, subject: Option<(&str, &str)>| {
        client.username = username.into();
        let subject = subject.map(|(user, domain)| Subject { user, domain });
        let request = Request { method: "REGISTER", uri, subject };
        server.hear_request(&client.answer(), &request)
    };
    assert_eq!(hear("alice", URI, Some(("alice", "example.com"))), Ok(()));
    assert_eq!(hear("alice", URI, None), Ok(()));
    let forbidden = Err(Refusal::Forbidden);
    assert_eq!(hear("alice", URI, Some(("bob", "example.com"))), forbidden);
    assert_eq!(hear("alice", URI, Some(("Alice", "example.com"))), forbidden);
    assert_eq!(hear("alice@example.com", URI, Some(("alice", "EXAMPLE.com"))), Ok(()));
    assert_eq!(hear("alice@example.com", URI, Some(("alice", "example.org"))), forbidden);
    assert_eq!(hear("alice@example.org", URI, Some(("alice", "example.com"))), forbidden);
    // Only who knows the password hears of it.
    assert_eq!(hear("bob", URI, Some(("alice", "example.com"))), Err(Refusal::WrongResponse));
    assert_eq!(hear("alice", "SIP:example.com:5060;x=y", None), Ok(()));
    assert_eq!(hear("alice", "sip:example.org", None), Err(Refusal::Uri));
    assert_eq!(hear("bob", "sip:example.org", None), Err(Refusal::WrongResponse));
    assert_eq!(Refusal::Forbidden.answer(), Answer::Forbidden);
    assert_eq!(Refusal::Forbidden.to_string(), "Forbidden auth ID");
    assert_eq!(Refusal::Uri.answer(), Answer::BadRequest);

    let mut server = Server::new(Settings { check_uri: false, ..Settings::default() });
    let mut client = server.client();
    let request = Request { method: "REGISTER", uri: "sip:example.org", subject: None };
    assert_eq!(server.hear_request(&client.answer(), &request), Ok(()));
    let request = Request { method: "INVITE", ..request };
    let wrong = Err(Refusal::WrongResponse);
    assert_eq!(server.hear_request(&client.answer(), &request), wrong, "the method is signed");
}

#[test]
fn a_nonce_has_its_time() {
    let mut server = Server::of(Algorithm::MD5);
    let mut client = server.client();
    server.now = NOW + 300;
    assert_eq!(server.hear(&client.answer()), Ok(()));
    server.now = NOW + 301;
    assert_eq!(server.hear(&client.answer()), Err(Refusal::StaleNonce));
    assert_eq!(Refusal::StaleNonce.answer(), Answer::Challenge { stale: true });
    // It grew old while the secrets were fetched.
    let value = client.answer();
    let claim = server.challenger.claim(REALM, [value.as_bytes()], NOW + 300).unwrap();
    let request = Request { method: "REGISTER", uri: URI, subject: None };
    let Server { challenger, counts, secrets, .. } = &mut server;
    let verified = challenger.verify(&claim, &request, secrets, counts, NOW + 301);
    assert_eq!(verified, Err(Refusal::StaleNonce));
    // A clock ahead of ours by little, and by much.
    server.now = NOW - 60;
    assert_eq!(server.hear(&client.answer()), Ok(()));
    server.now = NOW - 61;
    assert_eq!(server.hear(&client.answer()), Err(Refusal::StaleNonce));
}

#[test]
fn other_keys_and_other_nodes() {
    let first = Server::of(Algorithm::MD5);
    let mut client = first.client();
    let mut second = Server::with_key(KEY, 2, Settings::default());
    assert_eq!(second.hear(&client.answer()), Ok(()));
    let shown = format!("{:?}", second.challenger);
    assert!(shown.contains("mac: Hmac { ... }"), "the key shows in no log: {shown}");
    let mut stranger = Server::with_key(b"0123456789abcdeg", 1, Settings::default());
    assert_eq!(stranger.hear(&client.answer()), Err(Refusal::ForgedNonce));
    assert_eq!(Refusal::ForgedNonce.answer(), Answer::Challenge { stale: false });
}

#[test]
fn nothing_is_heard_twice() {
    let mut server = Server::of(Algorithm::MD5);
    let mut client = server.client();
    let answers: Vec<_> = (0..70).map(|_| client.answer()).collect();
    assert_eq!(server.hear(&answers[1]), Ok(()));
    assert_eq!(server.hear(&answers[0]), Ok(()), "overtaken");
    for _ in 0..2 {
        assert_eq!(server.hear(&answers[0]), Err(Refusal::Repeated));
        assert_eq!(server.hear(&answers[1]), Err(Refusal::Repeated));
    }
    // The same count for another request.
    let Client { session, secret, username } = &mut server.client();
    let challenge = session.challenge().clone();
    let mut one = Session::new(challenge.clone(), "one".into());
    let mut other = Session::new(challenge, "other".into());
    let mut hear = |session: &mut Session| {
        let line = session.authorize(Role::UserAgent, username, secret, "REGISTER", URI).unwrap();
        server.hear(value(line.trim_end()))
    };
    assert_eq!(hear(&mut one), Ok(()));
    assert_eq!(hear(&mut other), Err(Refusal::Replayed));
    assert_eq!(hear(&mut other), Ok(()));
    // Too far behind.
    assert_eq!(server.hear(&answers[69]), Ok(()));
    assert_eq!(server.hear(&answers[5]), Err(Refusal::Replayed));
    assert_eq!(server.hear(&answers[6]), Ok(()));
    for refusal in [Refusal::Repeated, Refusal::Replayed, Refusal::Forgotten] {
        assert_eq!(refusal.answer(), Answer::Challenge { stale: true });
    }
}

#[test]
fn a_forgotten_nonce_is_refused() {
    let mut server = Server::of(Algorithm::MD5);
    let mut clients: Vec<_> = (0..17).map(|_| server.client()).collect();
    let answers: Vec<_> = clients.iter_mut().map(Client::answer).collect();
    for answer in &answers {
        assert_eq!(server.hear(answer), Ok(()));
    }
    assert_eq!(server.counts.len(), 16);
    assert_eq!(server.hear(&answers[0]), Err(Refusal::Forgotten));
    assert_eq!(server.hear(&clients[0].answer()), Err(Refusal::Forgotten));
    assert_eq!(server.hear(&answers[1]), Err(Refusal::Repeated));
    assert_eq!(server.hear(&clients[1].answer()), Ok(()));
}

#[test]
fn credentials_among_others() {
    let mut server = Server::of(Algorithm::MD5);
    let ours = server.client().answer();
    let foreign = ours.replace("realm=\"example.com\"", "realm=\"EXAMPLE.com\"");
    let claim = |values: &[&str], now: u64| {
        let values = values.iter().map(|value| value.as_bytes());
        server.challenger.claim(REALM, values, now).map(|claim| claim.user().to_owned())
    };
    let alice = Ok("alice".to_owned());
    assert_eq!(claim(&["Basic abc", &foreign, "Digest nonsense", &ours], NOW), alice);
    assert_eq!(claim(&[], NOW), Err(Refusal::NoCredentials));
    assert_eq!(claim(&["Basic abc", &foreign], NOW), Err(Refusal::NoCredentials));
    let syntax = Err(Refusal::Malformed(Malformed::Syntax));
    assert_eq!(claim(&["Digest nonsense", &foreign], NOW), syntax);
    let forged = ours.replace("nonce=\"", "nonce=\"x");
    assert_eq!(claim(&[&forged, "Digest nonsense"], NOW), Err(Refusal::ForgedNonce));
    assert_eq!(claim(&[&forged, &ours], NOW), alice);
    assert_eq!(claim(&[&forged, &ours], NOW + 301), Err(Refusal::StaleNonce));
    server.now += 1;
    assert_eq!(server.hear(&ours), Ok(()));
}

#[test]
fn what_cannot_be_taken() {
    let mut server = Server::of(Algorithm::MD5);
    let mut client = server.client();
    let mut hear = |from: &str, to: &str| {
        let value = client.answer();
        assert!(value.contains(from), "{from} in {value}");
        server.hear(&value.replace(from, to))
    };
    let malformed = |what| Err(Refusal::Malformed(what));
    assert_eq!(hear("qop=auth", "qop=auth-int"), Err(Refusal::Qop));
    assert_eq!(hear("qop=auth", "qop=AUTH"), Ok(()));
    assert_eq!(hear("qop=auth", "x=y"), Err(Refusal::WrongResponse), "qop is signed");
    assert_eq!(hear("algorithm=MD5", "algorithm=SHA-256"), Err(Refusal::Algorithm));
    assert_eq!(hear("algorithm=MD5", "algorithm=AKAv1-MD5"), Err(Refusal::Algorithm));
    assert_eq!(hear("algorithm=MD5", "x=\"y, z\""), Ok(()), "none means MD5");
    assert_eq!(hear("nc=", "x="), malformed(Malformed::Missing("nc")));
    assert_eq!(hear("cnonce=", "x="), malformed(Malformed::Missing("cnonce")));
    assert_eq!(hear("username=", "x="), malformed(Malformed::Missing("username")));
    assert_eq!(hear("nc=0", "nc="), malformed(Malformed::Value("nc")));
    assert_eq!(hear("nc=0", "nc=+"), malformed(Malformed::Value("nc")));
    assert_eq!(hear("nc=0", "nc=1"), Err(Refusal::WrongResponse), "nc is signed");
    assert_eq!(hear("response=\"", "response=\"0"), malformed(Malformed::Value("response")));
    assert_eq!(hear("qop=auth", "qop=auth, qop=auth"), malformed(Malformed::Duplicate("qop")));
    let value = client.answer();
    let (front, response) = value.split_once("response=\"").unwrap();
    let upper = format!("{front}response=\"{}{}", response[..32].to_uppercase(), &response[32..]);
    assert_eq!(server.hear(&upper), malformed(Malformed::Value("response")));
    assert_eq!(server.hear(&value), Ok(()));
    assert_eq!(Refusal::Qop.answer(), Answer::BadRequest);
    assert_eq!(Refusal::Malformed(Malformed::Quote).answer(), Answer::BadRequest);
    assert_eq!(
        Refusal::Malformed(Malformed::Duplicate("qop")).to_string(),
        "Bad Credentials (Duplicate qop)"
    );
    // A session cannot be answered without cnonce, with qop or without.
    let mut server = Server::of(Algorithm::MD5_SESS);
    let value = without_qop(&server, Algorithm::MD5_SESS);
    assert_eq!(
        server.hear(&value.replace("cnonce=", "x=")),
        malformed(Malformed::Missing("cnonce"))
    );
    assert_eq!(server.hear(&value), Ok(()));
}

#[test]
fn qop_may_be_demanded() {
    let mut server = Server::of(Algorithm::MD5);
    let value = without_qop(&server, Algorithm::MD5);
    assert_eq!(server.hear(&value), Ok(()));
    assert_eq!(server.hear(&value), Ok(()), "without a count nothing tells a repetition");
    let mut server = Server::new(Settings { without_qop: false, ..Settings::default() });
    let value = without_qop(&server, Algorithm::MD5);
    assert_eq!(server.hear(&value), Err(Refusal::NoQop));
    assert_eq!(Refusal::NoQop.answer(), Answer::Challenge { stale: false });
}

#[test]
fn settings_that_make_no_challenge() {
    let new = |key: &[u8], settings| Challenger::new(key, 0, settings).map(drop);
    assert_eq!(new(KEY, Settings::default()), Ok(()));
    assert_eq!(new(&KEY[1..], Settings::default()), Err(BadSettings::ShortKey));
    let none = Settings { algorithms: Vec::new(), ..Settings::default() };
    assert_eq!(new(KEY, none), Err(BadSettings::NoAlgorithm));
    let short = Settings { validity: Duration::from_millis(999), ..Settings::default() };
    assert_eq!(new(KEY, short), Err(BadSettings::NoValidity));
}

fn algorithms() -> impl Strategy<Value = Algorithm> {
    (0..Algorithm::ALL.len()).prop_map(|number| Algorithm::ALL[number])
}

proptest! {
    #[test]
    fn who_knows_the_password_is_heard(
        algorithm in algorithms(),
        // An `@` would part the name; see `a_domain_in_the_user_name_wants_ha1b`.
        username in "[^@\\pC]{0,20}",
        password in "\\PC{0,20}",
        cnonce in "\\PC{1,20}",
        uri in "\\PC{0,30}",
        method in "[A-Z]{1,10}",
        hashed in any::<bool>(),
        qop in any::<bool>(),
    ) {
        let server = Server::of(algorithm);
        let mut offer = server.challenge().remove(0);
        if !qop {
            offer = offer.replace(", qop=\"auth\"", "");
        }
        let known = Secret::Password(password.clone().into());
        let challenge = Challenge::choose([offer.as_bytes()], &known).unwrap();
        let mut session = Session::new(challenge, cnonce);
        let line = session.authorize(Role::Proxy, &username, &known, &method, &uri).unwrap();
        let value = value(line.strip_suffix("\r\n").unwrap());
        let secret = match hashed {
            true => Secret::Ha1(Ha1::new(algorithm.hash, &username, REALM, &password)),
            false => known,
        };
        let Server { challenger, mut counts, .. } = server;
        let claim = challenger.claim(REALM, [value.as_bytes()], NOW).unwrap();
        prop_assert_eq!(claim.user(), &username);
        prop_assert_eq!(claim.algorithm(), algorithm);
        let subject = Some(Subject { user: &username, domain: REALM });
        let request = Request { method: &method, uri: &uri, subject };
        let mut verify = |secrets: &[Secret], request: &Request<'_>| {
            challenger.verify(&claim, request, secrets, &mut counts, NOW)
        };
        prop_assert_eq!(verify(&[], &request), Err(Refusal::WrongResponse));
        let wrong = Secret::Password(format!("{password}x").into());
        prop_assert_eq!(verify(&[wrong], &request), Err(Refusal::WrongResponse));
        let method = format!("{method}X");
        let other = Request { method: &method, ..request };
        prop_assert_eq!(verify(slice::from_ref(&secret), &other), Err(Refusal::WrongResponse));
        prop_assert_eq!(verify(slice::from_ref(&secret), &request), Ok(()));
        let again = if qop { Err(Refusal::Repeated) } else { Ok(()) };
        prop_assert_eq!(verify(&[secret], &request), again);
    }

    /// No byte inside the values that are signed can be another.
    #[test]
    fn every_byte_of_an_answer_counts(
        algorithm in algorithms(),
        field in 0..7usize,
        at in any::<prop::sample::Index>(),
        flip in 1..=255u8,
    ) {
        let mut server = Server::of(algorithm);
        let value = server.client().answer();
        let name =
            ["username=\"", "realm=\"", "nonce=\"", "uri=\"", "response=\"", " cnonce=\"", "nc="][field];
        let start = value.find(name).unwrap() + name.len();
        let length = value[start..].find('"').unwrap_or(value.len() - start);
        let mut bytes = value.into_bytes();
        bytes[start + at.index(length)] ^= flip;
        let request = Request { method: "REGISTER", uri: URI, subject: None };
        let outcome = server.challenger.claim(REALM, [&bytes[..]], NOW).and_then(|claim| {
            let Server { challenger, counts, secrets, .. } = &mut server;
            // Even if the altered name were that of a user with the same password.
            challenger.verify(&claim, &request, secrets, counts, NOW)
        });
        prop_assert!(outcome.is_err());
        prop_assert!(server.counts.is_empty());
    }

    #[test]
    fn nothing_panics(
        damages in crate::core::testing::damages(),
        algorithm in algorithms(),
        now in any::<u64>(),
    ) {
        let mut server = Server::of(algorithm);
        let value = server.client().answer();
        let bytes = crate::core::testing::damaged(value, &damages);
        for time in [NOW, now] {
            let Server { challenger, counts, secrets, .. } = &mut server;
            let _ = challenger.challenge(Role::Proxy, REALM, true, time);
            if let Ok(claim) = challenger.claim(REALM, [&bytes[..]], time) {
                let request = Request { method: "REGISTER", uri: URI, subject: None };
                let _ = challenger.verify(&claim, &request, secrets, counts, time);
            }
        }
    }
}
