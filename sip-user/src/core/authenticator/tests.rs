use super::*;
use crate::core::digest::{Algorithm, Challenge, Ha1, Hash, Session};
use crate::core::testing::header;
use crate::core::transaction::{Config, RequestFate, Transactions};
use sip_ebpf::scan::Index;

const PHONE: &str = "10.10.1.2:5062";
const UNIX: u64 = 1_700_000_000;

/// An authenticator on virtual time, with a transaction for each request.
struct World {
    auth: Authenticator,
    transactions: Transactions,
    domains: Domains,
    now: Instant,
    requests: u32,
}

/// What became of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
enum Fate {
    Passed,
    Parked,
    Refused(u16, String),
}

impl World {
    fn new(rules: Rules) -> Self {
        let now = Instant::now();
        let clock = Clock::new(now, Duration::from_secs(UNIX));
        let auth = Authenticator::new(rules, Settings::default(), &[7; 16], 1, clock).unwrap();
        Self {
            auth,
            transactions: Transactions::new([1, 2], Config::default(), now),
            domains: Domains::new(
                ["example.com", "example.org"],
                &["10.10.0.1:5060".parse().unwrap()],
            ),
            now,
            requests: 0,
        }
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.auth.handle_timeout(self.now);
    }

    fn hear(&mut self, text: &str) -> Fate {
        self.hear_from(Source::Other, text)
    }

    fn hear_from(&mut self, source: Source, text: &str) -> Fate {
        self.requests += 1;
        let text = text.replace("BRANCH", &format!("z9hG4bK{}", self.requests));
        let mut index = Index::new();
        let message = Message::parse(text.as_bytes(), &mut index).unwrap();
        message.check().unwrap();
        let flow = Flow { local: 0, peer: PHONE.parse().unwrap(), reliable: false };
        let RequestFate::New { id, request, .. } =
            self.transactions.handle_request(self.now, &message, flow)
        else {
            panic!("a new transaction")
        };
        self.step(source, Parked { id, request, flow })
    }

    fn step(&mut self, source: Source, parked: Parked) -> Fate {
        let mut index = Index::new();
        let request = parked.request.clone();
        let message = Message::parse(&request, &mut index).unwrap();
        let claim = match self.auth.ask(self.now, &message, source, &self.domains) {
            Asked::Passed => return Fate::Passed,
            Asked::Refused(refused) => return Fate::Refused(refused.code, refused.headers),
            Asked::Claim(claim) => claim,
        };
        match self.auth.decide(self.now, &message, &self.domains, &claim, parked) {
            Verdict::Passed => Fate::Passed,
            Verdict::Parked => Fate::Parked,
            Verdict::Refused(refused) | Verdict::Guessed(refused) => {
                Fate::Refused(refused.code, refused.headers)
            }
        }
    }

    /// The questions to the store, and the fates of what is resumed.
    fn commands(&mut self) -> (Vec<(Ticket, String)>, Vec<Fate>) {
        let (mut fetches, mut fates) = (Vec::new(), Vec::new());
        while let Some(command) = self.auth.poll_command() {
            match command {
                Command::Fetch { ticket, user, domain } => {
                    fetches.push((ticket, format!("{user}@{domain}")));
                }
                Command::Resume(parked) => fates.push(self.step(Source::Other, parked)),
            }
        }
        (fetches, fates)
    }

    /// The one question.
    #[track_caller]
    fn asked(&mut self) -> (Ticket, String) {
        let (mut fetches, fates) = self.commands();
        assert_eq!((fetches.len(), fates), (1, vec![]));
        fetches.remove(0)
    }

    /// The store answers the one question; what becomes of those who waited.
    #[track_caller]
    fn tell(&mut self, answer: Result<Option<Vec<Secret>>, Away>) -> Vec<Fate> {
        let (ticket, _) = self.asked();
        self.auth.handle_secrets(self.now, ticket, answer);
        let (fetches, fates) = self.commands();
        assert_eq!(fetches, []);
        fates
    }

    /// A REGISTER with the answer to a challenge that is asked for first.
    fn register(&mut self, username: &str, password: &str) -> String {
        let bare = request("REGISTER", "sip:example.com", "sip:anna@example.com", "");
        let Fate::Refused(401, challenge) = self.hear(&bare) else { panic!("a challenge") };
        let line = credentials(&challenge, Role::UserAgent, username, password, "REGISTER");
        request("REGISTER", "sip:example.com", "sip:anna@example.com", &line)
    }
}

fn request(method: &str, uri: &str, from: &str, extra: &str) -> String {
    format!(
        "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {PHONE};branch=BRANCH\r\nMax-Forwards: 70\r\n\
         From: <{from}>;tag=a\r\nTo: <{from}>\r\nCall-ID: c1\r\nCSeq: 1 {method}\r\n{extra}\
         Content-Length: 0\r\n\r\n"
    )
}

fn credentials(
    challenge: &str,
    role: Role,
    username: &str,
    password: &str,
    method: &str,
) -> String {
    let secret = Secret::Password(password.into());
    let value = challenge.split_once(": ").unwrap().1.trim_end();
    let challenge = Challenge::choose([value.as_bytes()], &secret).unwrap();
    let mut session = Session::new(challenge, "cnonce".into());
    session.authorize(role, username, &secret, method, "sip:example.com").unwrap()
}

fn password(text: &str) -> Result<Option<Vec<Secret>>, Away> {
    Ok(Some(vec![Secret::Password(text.into())]))
}

fn is_challenge(fate: &Fate, stale: bool) -> bool {
    matches!(fate, Fate::Refused(401, headers) if headers.contains("stale=true") == stale)
}

fn is_unavailable(fate: &Fate) -> bool {
    *fate == Fate::Refused(503, "Retry-After: 5\r\n".into())
}

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn secrets_that_serve_nothing_are_not_kept() {
    let of = |hash| Secret::Ha1(Ha1::new(hash, "anna", "example.com", "secret"));
    let (md5, sha) = (of(Hash::Md5), of(Hash::Sha256));
    let other = Secret::Password("other".into());
    for (stored, kept, passes) in [
        (vec![md5.clone(), sha.clone()], vec![md5.clone()], true),
        (vec![md5.clone(), other.clone(), sha.clone()], vec![md5, other], true),
        (vec![sha], vec![], false),
    ] {
        let mut w = World::new(Rules::default());
        let text = w.register("anna", "secret");
        assert_eq!(w.hear(&text), Fate::Parked);
        let fates = w.tell(Ok(Some(stored)));
        assert_eq!((fates.len(), fates[0] == Fate::Passed), (1, passes));
        assert_eq!(w.auth.known.get("anna@example.com").unwrap().secrets.all(), kept);
    }
}

// ---- Who has to prove what -----------------------------------------------------------------------

fn demand(method: &str, uri: &str, from: &str, source: Source) -> Result<Demand, u16> {
    let text = request(method, uri, from, "").replace("BRANCH", "z9hG4bKx");
    let domains = Domains::new(["Example.com"], &["10.10.0.1:5060".parse().unwrap()]);
    let mut index = Index::new();
    let message = Message::parse(text.as_bytes(), &mut index).unwrap();
    Demand::of(&message, source, &domains, &Realm::Domain).map_err(|refused| refused.code)
}

#[test]
fn who_is_asked_and_as_whom() {
    let of = |method, uri, from| demand(method, uri, from, Source::Other);
    let identity = |role, user: &str| {
        let domain = "example.com".to_owned();
        Ok(Demand::Identity(Subject { role, user: user.into(), realm: domain.clone(), domain }))
    };
    let (registrar, proxy) = (Role::UserAgent, Role::Proxy);
    let us = "sip:example.com";
    assert_eq!(of("REGISTER", us, "sip:anna@Example.COM."), identity(registrar, "anna"));
    assert_eq!(of("REGISTER", us, "sips:%61nn%61@example.com:5061"), identity(registrar, "anna"));
    assert_eq!(
        of("INVITE", "sip:1@far.example", "sip:anna@example.com:5080"),
        identity(proxy, "anna")
    );
    assert_eq!(of("PUBLISH", us, "sip:anna@example.com"), identity(proxy, "anna"));
    for method in ["ACK", "CANCEL"] {
        assert_eq!(of(method, us, "sip:anna@example.com"), Ok(Demand::Nothing));
    }
    // Nobody registers elsewhere, nor somebody of elsewhere here.
    assert_eq!(of("REGISTER", "sip:far.example", "sip:anna@example.com"), Err(403));
    assert_eq!(of("REGISTER", us, "sip:anna@far.example"), Err(404));
    assert_eq!(of("REGISTER", us, "sip:example.com"), Err(404));
    assert_eq!(of("INVITE", us, "sip:example.com"), Err(403));
    assert_eq!(of("INVITE", us, "sip:a%ff@example.com"), Err(403));
    for (uri, to_us) in [("sip:anna@example.com", true), ("sip:x@far.example", false)] {
        for from in ["sip:bob@far.example", "tel:+431"] {
            assert_eq!(of("INVITE", uri, from), Ok(Demand::Stranger { to_us }), "{from}");
        }
    }
    for source in [Source::Pbx(3), Source::Trusted] {
        assert_eq!(demand("INVITE", us, "sip:anna@example.com", source), Ok(Demand::Nothing));
        assert_eq!(demand("REGISTER", us, "sip:anna@example.com", source), Ok(Demand::Nothing));
    }
}

#[test]
fn strangers() {
    let call = |uri| request("INVITE", uri, "sip:bob@far.example", "");
    let mut w = World::new(Rules::default());
    assert_eq!(w.hear(&call("sip:anna@example.com")), Fate::Refused(403, String::new()));
    let mut w = World::new(Rules { strangers: true, ..Rules::default() });
    assert_eq!(w.hear(&call("sip:anna@example.com")), Fate::Passed);
    assert_eq!(w.hear(&call("sip:bob@far.example")), Fate::Refused(403, String::new()));
}

// ---- Secrets -------------------------------------------------------------------------------------

#[test]
fn a_user_is_fetched_once() {
    let mut w = World::new(Rules::default());
    let first = w.register("anna", "secret");
    assert_eq!(w.hear(&first), Fate::Parked);
    let second = w.register("anna", "secret");
    assert_eq!(w.hear(&second), Fate::Parked);
    assert_eq!(w.auth.parked(), 2);
    let (ticket, who) = w.asked();
    assert_eq!(who, "anna@example.com");
    w.auth.handle_secrets(w.now, ticket, password("secret"));
    assert_eq!(w.commands(), (vec![], vec![Fate::Passed, Fate::Passed]));
    assert_eq!(w.auth.parked(), 0);
    // An answer counts once, and the next request needs none.
    w.auth.handle_secrets(w.now, ticket, Ok(None));
    w.pass(seconds(299));
    let third = w.register("anna", "secret");
    assert_eq!(w.hear(&third), Fate::Passed);
    // Too old: asked anew.
    w.pass(seconds(1));
    let fourth = w.register("anna", "secret");
    assert_eq!(w.hear(&fourth), Fate::Parked);
    assert_eq!(w.tell(password("secret")), [Fate::Passed]);
    assert_eq!(w.auth.counts().fetches, 2);
    assert_eq!(w.auth.counts().passed, 4);
    assert_eq!(w.auth.poll_timeout(), None);
}

#[test]
fn wrong_passwords_and_unknown_users_hear_the_same() {
    let mut w = World::new(Rules::default());
    let wrong = w.register("anna", "guess");
    w.hear(&wrong);
    let fates = w.tell(password("secret"));
    assert!(is_challenge(&fates[0], false), "{fates:?}");
    let unknown = w.register("nobody", "guess");
    w.hear(&unknown);
    let fates = w.tell(Ok(None));
    assert!(is_challenge(&fates[0], false), "{fates:?}");
    // The store hears no more of either for a while.
    for _ in 0..50 {
        let wrong = w.register("anna", "guess");
        assert!(is_challenge(&w.hear(&wrong), false));
        let unknown = w.register("nobody", "guess");
        assert!(is_challenge(&w.hear(&unknown), false));
    }
    assert_eq!(w.commands().0, []);
    w.pass(seconds(60));
    let unknown = w.register("nobody", "guess");
    assert_eq!(w.hear(&unknown), Fate::Parked);
    assert_eq!(w.auth.counts().wrong, 102);
}

#[test]
fn a_changed_password_is_noticed() {
    let mut w = World::new(Rules::default());
    let old = w.register("anna", "old");
    w.hear(&old);
    w.tell(password("old"));
    w.pass(seconds(10));
    let new = w.register("anna", "new");
    assert_eq!(w.hear(&new), Fate::Parked);
    assert_eq!(w.tell(password("new")), [Fate::Passed]);
    // By hand, at once.
    w.auth.forget("anna", "EXAMPLE.com");
    let newest = w.register("anna", "newest");
    assert_eq!(w.hear(&newest), Fate::Parked);
    assert_eq!(w.tell(password("newest")), [Fate::Passed]);
    w.auth.forget_all();
    assert_eq!(w.auth.kept(), 0);
}

#[test]
fn nobody_registers_somebody_else() {
    let mut w = World::new(Rules::default());
    let bob = w.register("bob", "secret");
    w.hear(&bob);
    assert_eq!(w.tell(password("secret")), [Fate::Refused(403, String::new())]);
    // Of another domain of ours, which has an Anna too.
    let other = w.register("anna@example.org", "secret");
    w.hear(&other);
    let (ticket, who) = w.asked();
    assert_eq!(who, "anna@example.org");
    w.auth.handle_secrets(w.now, ticket, password("secret"));
    assert_eq!(w.commands().1, [Fate::Refused(403, String::new())]);
    // Of a domain that is not ours: the store is not asked.
    let far = w.register("anna@far.example", "secret");
    assert!(is_challenge(&w.hear(&far), false));
    assert_eq!(w.commands().0, []);
    // With her own domain she may say who she is.
    let own = w.register("anna@example.com", "secret");
    w.hear(&own);
    assert_eq!(w.tell(password("secret")), [Fate::Passed]);
}

#[test]
fn stored_hashes_serve() {
    let ha1 = Ha1::new(Hash::Md5, "anna", "example.com", "secret");
    let mut w = World::new(Rules::default());
    let text = w.register("anna", "secret");
    w.hear(&text);
    assert_eq!(w.tell(Ok(Some(vec![Secret::Ha1(ha1)]))), [Fate::Passed]);
}

#[test]
fn calls_are_asked_by_a_proxy() {
    let rules = Rules { realm: Realm::Fixed("pbx".into()), ..Rules::default() };
    let mut w = World::new(rules);
    let invite = |extra| request("INVITE", "sip:example.com", "sip:anna@example.com", extra);
    let Fate::Refused(407, challenge) = w.hear(&invite("")) else { panic!("a challenge") };
    assert!(challenge.starts_with("Proxy-Authenticate: Digest realm=\"pbx\""), "{challenge}");
    let line = credentials(&challenge, Role::Proxy, "anna", "secret", "INVITE");
    assert_eq!(w.hear(&invite(&line)), Fate::Parked);
    assert_eq!(w.tell(password("secret")), [Fate::Passed]);
    assert_eq!(w.auth.realm("example.com"), "pbx");
    assert_eq!(w.hear_from(Source::Pbx(0), &invite("")), Fate::Passed);
}

#[test]
fn old_nonces_are_stale() {
    let mut w = World::new(Rules::default());
    let text = w.register("anna", "secret");
    w.pass(seconds(301));
    assert!(is_challenge(&w.hear(&text), true));
    assert_eq!(w.commands().0, []);
    // While it waited for the store, too.
    let text = w.register("anna", "secret");
    w.pass(seconds(298));
    assert_eq!(w.hear(&text), Fate::Parked);
    let (ticket, _) = w.asked();
    w.pass(seconds(4));
    w.auth.handle_secrets(w.now, ticket, password("secret"));
    let (_, fates) = w.commands();
    assert!(is_challenge(&fates[0], true), "{fates:?}");
    // The same request, played again by somebody else.
    let text = w.register("anna", "secret");
    assert_eq!(w.hear(&text), Fate::Passed);
    assert!(is_challenge(&w.hear(&text), true));
}

// ---- A store that is away ------------------------------------------------------------------------

#[test]
fn without_a_store_the_known_go_on() {
    let mut w = World::new(Rules::default());
    let text = w.register("anna", "secret");
    w.hear(&text);
    w.tell(password("secret"));
    w.pass(seconds(3600));
    // The first one finds out.
    let text = w.register("anna", "secret");
    assert_eq!(w.hear(&text), Fate::Parked);
    assert_eq!(w.tell(Err(Away)), [Fate::Passed]);
    // Others wait for nothing.
    let text = w.register("anna", "secret");
    assert_eq!(w.hear(&text), Fate::Passed);
    let wrong = w.register("anna", "guess");
    assert!(is_challenge(&w.hear(&wrong), false));
    let unknown = w.register("nobody", "secret");
    assert!(is_unavailable(&w.hear(&unknown)));
    assert_eq!(w.commands(), (vec![], vec![]));
    // One question in a while, for which nobody who is known waits.
    w.pass(seconds(1));
    for _ in 0..5 {
        let text = w.register("anna", "secret");
        assert_eq!(w.hear(&text), Fate::Passed);
    }
    let (ticket, _) = w.asked();
    w.auth.handle_secrets(w.now, ticket, Err(Away));
    w.pass(seconds(1));
    let unknown = w.register("nobody", "secret");
    assert_eq!(w.hear(&unknown), Fate::Parked);
    let fates = w.tell(Err(Away));
    assert!(is_unavailable(&fates[0]));
    // It is back.
    w.pass(seconds(1));
    let text = w.register("anna", "secret");
    assert_eq!(w.hear(&text), Fate::Passed);
    assert_eq!(w.tell(password("new")), []);
    let text = w.register("anna", "new");
    assert_eq!(w.hear(&text), Fate::Passed);
    let unknown = w.register("nobody", "secret");
    assert_eq!(w.hear(&unknown), Fate::Parked);
    let counts = w.auth.counts();
    assert_eq!((counts.fetches_failed, counts.unavailable), (3, 2));
}

#[test]
fn a_store_that_says_nothing_is_given_up() {
    let mut w = World::new(Rules::default());
    let text = w.register("anna", "secret");
    assert_eq!(w.hear(&text), Fate::Parked);
    let (ticket, _) = w.asked();
    assert_eq!(w.auth.poll_timeout(), Some(w.now + seconds(5)));
    w.pass(seconds(5));
    let (fetches, fates) = w.commands();
    assert_eq!((fetches.len(), fates.len()), (0, 1));
    assert!(is_unavailable(&fates[0]));
    // Whatever it says now comes too late.
    w.auth.handle_secrets(w.now, ticket, password("secret"));
    assert_eq!(w.commands(), (vec![], vec![]));
    assert_eq!(w.auth.parked(), 0);
}

// ---- Bounds --------------------------------------------------------------------------------------

#[test]
fn what_waits_has_a_bound() {
    let rules = Rules { max_parked: 3, max_parked_each: 2, max_fetches: 2, ..Rules::default() };
    let mut w = World::new(rules);
    let hear = |w: &mut World, user: &str| {
        let text = w.register(user, "x");
        w.hear(&text)
    };
    assert_eq!(hear(&mut w, "a"), Fate::Parked);
    assert_eq!(hear(&mut w, "a"), Fate::Parked);
    assert!(is_unavailable(&hear(&mut w, "a")));
    assert_eq!(hear(&mut w, "b"), Fate::Parked);
    assert!(is_unavailable(&hear(&mut w, "b")));
    assert!(is_unavailable(&hear(&mut w, "c")));
    w.pass(seconds(5));
    let (_, fates) = w.commands();
    assert_eq!(fates.len(), 3);
    assert!(fates.iter().all(is_unavailable));
    assert_eq!((w.auth.parked(), w.auth.fetches.len()), (0, 0));
}

#[test]
fn what_is_kept_has_a_bound_and_names_without_a_user_cost_no_user_his_place() {
    let mut w = World::new(Rules { max_known: 8, max_unknown: 8, ..Rules::default() });
    let text = w.register("anna", "secret");
    w.hear(&text);
    w.tell(password("secret"));
    for number in 0..100 {
        let text = w.register(&format!("u{number}"), "x");
        assert_eq!(w.hear(&text), Fate::Parked);
        w.tell(Ok(None));
    }
    assert!(w.auth.kept() <= 9, "{}", w.auth.kept());
    let text = w.register("anna", "secret");
    assert_eq!(w.hear(&text), Fate::Passed);
}

#[test]
fn algorithms_as_configured() {
    let settings =
        Settings { algorithms: vec![Algorithm::SHA_256, Algorithm::MD5], ..Settings::default() };
    let clock = Clock::new(Instant::now(), seconds(UNIX));
    let mut w = World::new(Rules::default());
    w.auth = Authenticator::new(Rules::default(), settings, &[7; 16], 1, clock).unwrap();
    let bare = request("REGISTER", "sip:example.com", "sip:anna@example.com", "");
    let Fate::Refused(401, lines) = w.hear(&bare) else { panic!("a challenge") };
    let lines = format!("{lines}\r\n");
    let challenges = header(&lines, "WWW-Authenticate");
    assert_eq!(challenges.len(), 2);
    assert!(challenges[0].contains("SHA-256") && challenges[1].contains("MD5"), "{lines}");
}
