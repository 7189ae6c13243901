use super::*;
use crate::config::{AdminState, PbxConfig, PbxLimits, Probe, Trust};
use crate::core::authenticator::Rules;
use crate::core::clock::Clock;
use crate::core::digest::{Challenge, Role, Session, Settings as Digest};
use crate::core::testing::{header, response};
use std::time::Duration;

const PHONE: &str = "10.10.1.2:5062";
const BELIEVED: &str = "10.10.9.9:5060";
const US: &str = "10.10.0.1:5060";
const PBX1: &str = "10.10.2.2:5060";
const PBX2: &str = "10.10.3.2:5060";

/// The stateful half with two PBXs, on virtual time. The store is a test's to play.
struct World {
    stateful: Stateful,
    dispatcher: Dispatcher,
    now: Instant,
    /// Datagrams that left, and were not looked at yet.
    sent: Vec<(String, String)>,
    fetches: Vec<(authenticator::Ticket, String)>,
    /// What the store has to write, in order.
    written: Vec<Written>,
    guessed: Vec<std::net::IpAddr>,
    learned: Vec<(std::net::IpAddr, Instant)>,
    requests: u32,
}

#[derive(Clone, Debug, Eq, PartialEq)]
enum Written {
    Saved(Row),
    Removed(Key),
}

fn settings() -> Settings {
    let locals = vec![US.parse().unwrap()];
    Settings {
        domains: Domains::new(["example.com"], &locals),
        believed: Sources::new(&Trust {
            networks: vec!["10.10.9.0/24".parse().unwrap()],
            ..Trust::default()
        }),
        locals,
        registrar: registrar::Rules { jitter: 0, ..registrar::Rules::default() },
        forking: forking::Rules::default(),
        transactions: transaction::Config::default(),
        calls: CallRules::default(),
        credentials: HashMap::new(),
        retry_after: 5,
        registers: true,
    }
}

fn pbx(id: &str, address: &str) -> PbxConfig {
    let (id, address) = (id.to_owned(), address.parse().unwrap());
    PbxConfig { id, address, weight: 1, state: AdminState::Active, limits: PbxLimits::default() }
}

impl World {
    fn new(settings: Settings) -> Self {
        let now = Instant::now();
        let clock = Clock::new(now, Duration::from_secs(1_700_000_000));
        let asking =
            Authenticator::new(Rules::default(), Digest::default(), &[7; 16], 1, clock).unwrap();
        let mut dispatcher = Dispatcher::new(&settings.locals, Probe::default());
        let pbxs = [pbx("pbx1", PBX1), pbx("pbx2", PBX2)];
        dispatcher.reload(now, &pbxs, Probe::default()).unwrap();
        let mut world = Self {
            stateful: Stateful::new([3, 4], settings, Some(asking), now),
            dispatcher,
            now,
            sent: Vec::new(),
            fetches: Vec::new(),
            written: Vec::new(),
            guessed: Vec::new(),
            learned: Vec::new(),
            requests: 0,
        };
        world.follow();
        world
    }

    fn collect(&mut self) {
        self.stateful.handle_calls(self.now, &mut self.dispatcher);
        while let Some(command) = self.stateful.poll_command() {
            match command {
                Command::Send(Transmit { local, to, bytes }) => {
                    assert_eq!(local, 0);
                    let text = String::from_utf8(bytes.to_vec()).unwrap();
                    self.sent.push((to.to_string(), text));
                }
                Command::FetchSecrets { ticket, user, domain } => {
                    self.fetches.push((ticket, format!("{user}@{domain}")));
                }
                Command::Save(row) => self.written.push(Written::Saved(*row)),
                Command::Remove(key) => self.written.push(Written::Removed(*key)),
                Command::Cdr(_) | Command::KeepCall(_) | Command::DropCall(_) => {}
                Command::Guessed { from } => self.guessed.push(from),
                Command::Learned { from, until } => self.learned.push((from, until)),
                Command::User { .. } => {}
            }
        }
    }

    /// Time passes, at each timer a stop.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut stuck = 0;
        while let Some(at) = self.stateful.poll_timeout().filter(|at| *at <= end) {
            stuck = if at > self.now { 0 } else { stuck + 1 };
            assert!(stuck < 10_000, "a timer that does nothing");
            self.now = self.now.max(at);
            self.stateful.handle_timeout(self.now);
            self.collect();
        }
        self.now = end;
        self.stateful.handle_timeout(end);
        self.collect();
    }

    fn pass_secs(&mut self, seconds: u64) {
        self.pass(Duration::from_secs(seconds));
    }

    fn follow(&mut self) {
        self.stateful.handle_pbxs(self.now, &self.dispatcher);
        self.collect();
    }

    fn order(&mut self, id: &str, admin: AdminState) {
        self.dispatcher.set_admin(self.now, id, admin).unwrap();
        self.follow();
    }

    fn hear_from(&mut self, from: &str, text: &str) {
        let mut index = Index::new();
        let message = Message::parse(text.as_bytes(), &mut index).unwrap();
        message.check().unwrap();
        let flow = Flow { local: 0, peer: from.parse().unwrap(), reliable: false };
        self.stateful.handle_request(self.now, &message, flow);
        self.collect();
    }

    /// What follows from a request of the phone: all that leaves for it.
    fn say(&mut self, text: &str) -> Vec<String> {
        self.hear_from(PHONE, text);
        self.to(PHONE)
    }

    /// What has left for somebody.
    fn to(&mut self, address: &str) -> Vec<String> {
        let (mine, others) =
            std::mem::take(&mut self.sent).into_iter().partition(|(to, _)| to == address);
        self.sent = others;
        let mine: Vec<(String, String)> = mine;
        mine.into_iter().map(|(_, text)| text).collect()
    }

    /// The one that has left for somebody.
    #[track_caller]
    fn one(&mut self, address: &str) -> String {
        let mut texts = self.to(address);
        assert_eq!(texts.len(), 1, "{texts:#?}");
        texts.remove(0)
    }

    /// A response of a PBX.
    fn answer(&mut self, request: &str, status: &str, extra: &str) -> bool {
        let text = response(request, status, "pbx").replace("Content", &format!("{extra}Content"));
        let mut index = Index::new();
        let message = Message::parse(text.as_bytes(), &mut index).unwrap();
        let known = self.stateful.handle_response(self.now, &message);
        self.collect();
        known
    }

    /// A REGISTER without credentials.
    fn bare(&mut self, contact: &str) -> String {
        self.requests += 1;
        let n = self.requests;
        format!(
            "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP {PHONE};rport;branch=z9hG4bK{n}\r\n\
             Max-Forwards: 70\r\nFrom: <sip:anna@example.com>;tag=a\r\nTo: <sip:anna@example.com>\r\n\
             Call-ID: phone\r\nCSeq: {n} REGISTER\r\n{contact}Content-Length: 0\r\n\r\n"
        )
    }

    /// A REGISTER with credentials that answer a challenge which is asked for first.
    fn register(&mut self, password: &str, contact: &str) -> String {
        let bare = self.bare(contact);
        let said = self.say(&bare);
        // Behind what may have left for another request of the phone.
        let challenge = said.last().unwrap();
        let secret = Secret::Password(password.into());
        let values = header(challenge, "WWW-Authenticate");
        let challenge = Challenge::choose(values.iter().map(|v| v.as_bytes()), &secret).unwrap();
        let mut session = Session::new(challenge, "cnonce".into());
        let uri = "sip:example.com";
        let line = session.authorize(Role::UserAgent, "anna", &secret, "REGISTER", uri).unwrap();
        self.bare(&format!("{contact}{line}"))
    }

    /// The store answers its one question.
    #[track_caller]
    fn tell(&mut self, answer: Result<Option<Vec<Secret>>, Away>) {
        assert_eq!(self.fetches.len(), 1);
        let (ticket, _) = self.fetches.remove(0);
        self.stateful.handle_secrets(self.now, ticket, answer);
        self.collect();
    }

    /// Anna registers, with her secret fetched first, and both PBXs agree.
    fn anna(&mut self) {
        let text = self.register("secret", CONTACT);
        assert_eq!(self.say(&text), [""; 0]);
        self.tell(known());
        assert_eq!(status(&self.one(PHONE)), "SIP/2.0 200 OK");
        self.agree();
    }

    /// Both PBXs answer what they got with 200. Says what it was: user, expiry.
    fn agree(&mut self) -> Vec<(String, String)> {
        let mut all = Vec::new();
        for (to, text) in std::mem::take(&mut self.sent) {
            assert!(text.starts_with("REGISTER"), "{to}: {text}");
            assert!(self.answer(&text, "200 OK", ""));
            all.push((to, header(&text, "Expires")[0].to_owned()));
        }
        all
    }
}

/// As long as it may take until something leaves, and shorter than T1.
const MOMENT: Duration = Duration::from_millis(100);
const CONTACT: &str = "Contact: <sip:anna@10.10.1.2:5062>\r\n";
const GONE: &str = "Contact: <sip:anna@10.10.1.2:5062>;expires=0\r\n";

fn known() -> Result<Option<Vec<Secret>>, Away> {
    Ok(Some(vec![Secret::Password("secret".into())]))
}

fn status(text: &str) -> &str {
    text.lines().next().unwrap_or_default()
}

// ---- A phone -------------------------------------------------------------------------------------

#[test]
fn the_life_of_a_registration() {
    let mut w = World::new(settings());
    // A challenge needs no memory.
    let bare = w.bare(CONTACT);
    let challenge = w.say(&bare);
    assert_eq!(status(&challenge[0]), "SIP/2.0 401 Unauthorized");
    assert!(header(&challenge[0], "WWW-Authenticate")[0].contains("realm=\"example.com\""));
    assert_eq!(w.stateful.transactions(), 0);

    let text = w.register("secret", CONTACT);
    assert_eq!(w.say(&text), [""; 0]);
    assert_eq!(w.fetches[0].1, "anna@example.com");
    w.tell(known());
    let ok = w.one(PHONE);
    assert_eq!(status(&ok), "SIP/2.0 200 OK");
    assert_eq!(header(&ok, "Contact"), ["<sip:anna@10.10.1.2:5062>;expires=3600"]);
    assert!(header(&ok, "To")[0].contains(";tag="));
    let [Written::Saved(row)] = &w.written[..] else { panic!("{:?}", w.written) };
    assert_eq!((&*row.key.user, &*row.key.domain), ("anna", "example.com"));

    // Each PBX is told in our words.
    for pbx in [PBX1, PBX2] {
        let told = w.one(pbx);
        let host = pbx.split(':').next().unwrap();
        assert!(
            told.starts_with(&format!(
                "REGISTER sip:{pbx} SIP/2.0\r\nVia: SIP/2.0/UDP {US};rport;branch=z9hG4bKsldt"
            )),
            "{told}"
        );
        assert_eq!(header(&told, "To"), [format!("<sip:anna@{host}>")]);
        assert_eq!(header(&told, "Contact"), [format!("<sip:anna@{US}>")]);
        assert_eq!(header(&told, "Expires"), ["3600"]);
        assert!(header(&told, "Authorization").is_empty());
        assert!(w.answer(&told, "100 Trying", ""));
        assert!(w.answer(&told, "200 OK", "Expires: 3600\r\n"));
        assert!(w.answer(&told, "200 OK", ""), "a repetition is absorbed");
    }
    let until = w.stateful.forking().legs("anna").iter().map(|leg| leg.registered_until).min();
    assert_eq!(until, Some(Some(w.now + Duration::from_secs(3600))));

    // A repetition of the REGISTER gets the same bytes, and nobody else hears of it.
    assert_eq!(w.say(&text), [ok]);
    assert_eq!((w.sent.len(), w.written.len()), (0, 1));

    // It goes: the store and the PBXs hear of that.
    let text = w.register("secret", GONE);
    let gone = w.say(&text);
    assert_eq!(status(&gone[0]), "SIP/2.0 200 OK");
    assert_eq!(header(&gone[0], "Contact"), [""; 0]);
    assert!(matches!(&w.written[1..], [Written::Removed(_)]));
    let told = w.agree();
    assert_eq!(told, [(PBX1.to_owned(), "0".to_owned()), (PBX2.to_owned(), "0".to_owned())]);
    assert_eq!(w.stateful.registrar().bindings(), 0);

    // Nothing is left of all that.
    w.pass_secs(40);
    assert_eq!((w.stateful.transactions(), w.sent.len()), (0, 0));
    assert!(w.stateful.flights.is_empty());
    let counts = w.stateful.counts();
    assert_eq!((counts.registered, counts.absorbed, counts.forked), (2, 1, 4));
    assert_eq!((counts.replies[&401], counts.replies[&200]), (3, 2));
}

#[test]
fn a_registration_that_is_not_renewed_ends() {
    let mut w = World::new(settings());
    w.anna();
    w.pass_secs(3000);
    // The PBXs were told until when: nothing is due before.
    assert_eq!(w.sent, []);
    w.pass_secs(600);
    assert!(matches!(&w.written[1..], [Written::Removed(_)]));
    assert_eq!(w.stateful.registrar().bindings(), 0);
    // It has ended there by itself.
    w.pass_secs(60);
    assert!(w.stateful.forking().legs("anna").iter().all(|leg| leg.registered_until.is_none()));
}

#[test]
fn wrong_passwords_and_unknown_users() {
    let mut w = World::new(settings());
    let wrong = w.register("guess", CONTACT);
    w.say(&wrong);
    w.tell(known());
    let refused = w.one(PHONE);
    assert_eq!(status(&refused), "SIP/2.0 401 Unauthorized");
    // Repeated, it is absorbed.
    assert_eq!(w.say(&wrong), [refused]);
    assert_eq!(w.guessed, [PHONE.parse::<SocketAddr>().unwrap().ip()]);
    let mut w = World::new(settings());
    let unknown = w.register("guess", CONTACT);
    w.say(&unknown);
    w.tell(Ok(None));
    assert_eq!(status(&w.one(PHONE)), "SIP/2.0 401 Unauthorized");
    assert_eq!((w.sent.len(), w.written.len(), w.guessed.len()), (0, 0, 1));
    assert_eq!(w.learned, []);
    assert_eq!(w.stateful.registrar().bindings(), 0);
}

#[test]
fn what_the_registrar_refuses() {
    let mut w = World::new(settings());
    w.anna();
    let brief = w.register("secret", &CONTACT.replace(">", ">;expires=10"));
    let refused = w.say(&brief);
    assert_eq!(status(&refused[0]), "SIP/2.0 423 Interval Too Brief");
    assert_eq!(header(&refused[0], "Min-Expires"), ["60"]);
    assert_eq!((w.sent.len(), w.written.len()), (0, 1), "neither stored nor forked");
}

// ---- The store -----------------------------------------------------------------------------------

#[test]
fn a_slow_store() {
    let mut w = World::new(settings());
    let text = w.register("secret", CONTACT);
    assert_eq!(w.say(&text), [""; 0]);
    for pause in [500, 1000, 2000] {
        w.pass(Duration::from_millis(pause));
        // RFC 4320 4.1: a 100 when the repetitions have become rare, and not before; and again for each.
        let want = if pause == 2000 { 2 } else { 0 };
        assert_eq!(w.say(&text).len(), want, "after {pause} ms");
    }
    assert_eq!(w.stateful.authenticator().unwrap().parked(), 1);
    w.pass(Duration::from_millis(500));
    w.to(PHONE);
    w.tell(known());
    assert_eq!(status(&w.one(PHONE)), "SIP/2.0 200 OK");
    assert_eq!(w.to(PBX1).len(), 1);
}

#[test]
fn a_store_that_is_away() {
    let mut w = World::new(settings());
    let text = w.register("secret", CONTACT);
    w.say(&text);
    w.pass_secs(5);
    let answers = w.to(PHONE);
    let last = answers.last().unwrap();
    assert_eq!(status(last), "SIP/2.0 503 Service Unavailable");
    assert_eq!(header(last, "Retry-After"), ["5"]);
    // Too late.
    w.tell(known());
    assert_eq!(w.to(PHONE), [""; 0]);
    w.pass_secs(5);
    let text = w.register("secret", CONTACT);
    w.say(&text);
    w.tell(Err(Away));
    assert_eq!(status(&w.one(PHONE)), "SIP/2.0 503 Service Unavailable");
    assert_eq!((w.written.len(), w.to(PBX1).len()), (0, 0));
    // Who is known goes on.
    w.pass_secs(5);
    w.anna();
    w.pass_secs(1800);
    let text = w.register("secret", CONTACT);
    w.say(&text);
    w.tell(Err(Away));
    assert_eq!(status(&w.one(PHONE)), "SIP/2.0 200 OK");
}

#[test]
fn answers_that_are_kept_make_room() {
    let settings = settings();
    let calls = CallRules { max_transactions: 8, ..settings.calls };
    let mut w = World::new(Settings { calls, ..settings });
    w.anna();
    for _ in 0..20 {
        w.pass_secs(5);
        let text = w.register("secret", CONTACT);
        let said = w.say(&text);
        assert_eq!(status(&said[0]), "SIP/2.0 200 OK");
    }
    assert!(w.stateful.counts().ended_early > 0);
    assert!(w.stateful.transactions() < 8);
    assert_eq!(w.stateful.shed(), 0);
    // All at once: nobody knows yet whether these were answers enough.
    let refused = (0..20).any(|_| {
        let text = w.register("secret", CONTACT);
        status(&w.say(&text)[0]) == "SIP/2.0 503 Service Unavailable"
    });
    assert!(refused);
    assert!(w.stateful.shed() > 0);
}

#[test]
fn what_cannot_be_stored_is_not_accepted() {
    let mut w = World::new(settings());
    w.anna();
    w.stateful.set_storable(false);
    let text = w.register("secret", GONE);
    let refused = w.say(&text);
    assert_eq!(status(&refused[0]), "SIP/2.0 503 Service Unavailable");
    assert_eq!((w.written.len(), w.sent.len()), (1, 0));
    w.stateful.set_storable(true);
    let text = w.register("secret", GONE);
    assert_eq!(status(&w.say(&text)[0]), "SIP/2.0 200 OK");
}

#[test]
fn after_a_restart_everybody_is_there() {
    let mut w = World::new(settings());
    w.anna();
    let Written::Saved(row) = w.written.remove(0) else { panic!("a row") };
    let foreign =
        Row { key: Key { domain: "far.example".into(), ..row.key.clone() }, ..row.clone() };

    let mut w = World::new(settings());
    let (taken, refused) = w.stateful.restore(w.now, [&row, &foreign, &row]);
    w.collect();
    assert_eq!(taken, 1);
    let why: Vec<_> = refused.iter().map(|(_, why)| *why).collect();
    assert_eq!(why, [NotRestored::Domain, NotRestored::Newer]);
    assert_eq!(w.written, []);
    let aor = Aor::new("anna", "example.com").unwrap();
    let reach = w.stateful.registrar().lookup(&aor, w.now);
    assert_eq!(reach[0].contact, "sip:anna@10.10.1.2:5062");
    assert_eq!(w.agree().len(), 2);
}

#[test]
fn removed_by_hand() {
    let mut w = World::new(settings());
    w.anna();
    let aor = Aor::new("anna", "example.com").unwrap();
    assert_eq!(w.stateful.remove(w.now, &aor, Some("sip:other@10.10.1.2")), 0);
    assert_eq!(w.stateful.remove(w.now, &aor, None), 1);
    w.collect();
    assert!(matches!(&w.written[1..], [Written::Removed(_)]));
    assert!(w.agree().iter().all(|(_, expires)| expires == "0"));
}

// ---- The PBXs ------------------------------------------------------------------------------------

#[test]
fn a_pbx_that_comes_back_is_told_again() {
    let mut w = World::new(settings());
    w.order("pbx1", AdminState::Disabled);
    w.anna();
    assert!(w.stateful.forking().legs("anna")[0].registered_until.is_none());
    w.pass_secs(600);
    assert_eq!(w.sent, []);
    w.order("pbx1", AdminState::Active);
    w.pass(MOMENT);
    assert_eq!(w.agree(), [(PBX1.to_owned(), "3000".to_owned())]);
    // One that drains keeps its users; a new one is told of all.
    w.order("pbx2", AdminState::Draining);
    assert_eq!(w.sent, []);
    w.dispatcher.add(w.now, &pbx("pbx3", "10.10.4.2:5060")).unwrap();
    w.follow();
    w.pass(MOMENT);
    assert_eq!(w.agree(), [("10.10.4.2:5060".to_owned(), "3000".to_owned())]);
    w.dispatcher.remove("pbx3").unwrap();
    w.follow();
    assert_eq!(w.stateful.forking().legs("anna").len(), 2);
}

#[test]
fn a_pbx_that_is_silent_delays_nobody() {
    let mut w = World::new(settings());
    let text = w.register("secret", CONTACT);
    w.say(&text);
    w.tell(known());
    assert_eq!(status(&w.one(PHONE)), "SIP/2.0 200 OK");
    let (first, second) = (w.one(PBX1), w.one(PBX2));
    assert!(w.answer(&second, "200 OK", ""));
    // Timer E, and Timer F.
    w.pass(Duration::from_millis(31_900));
    let repeated = w.to(PBX1);
    assert_eq!(repeated.len(), 10);
    assert!(repeated.iter().all(|text| *text == first));
    w.pass_secs(1);
    assert_eq!(w.stateful.counts().forked_unanswered, 1);
    // Tried again later, in a transaction of its own.
    w.pass_secs(5);
    let again = w.to(PBX1);
    assert_ne!(header(&again[0], "Via"), header(&first, "Via"));
    assert_eq!(header(&again[0], "CSeq"), ["2 REGISTER"]);
    // No way there: the same at once.
    w.stateful.handle_transport_error(w.now, PBX1.parse().unwrap());
    w.collect();
    assert_eq!(w.stateful.counts().forked_unanswered, 2);
    assert!(w.stateful.flights.is_empty());
}

#[test]
fn a_pbx_that_asks_who_we_are() {
    let challenge = "WWW-Authenticate: Digest realm=\"asterisk\", nonce=\"n1\", algorithm=MD5\r\n";
    let mut with = settings();
    for (id, username) in [("pbx1", Some("trunk")), ("pbx2", None)] {
        let secret = Secret::Password("hush".into());
        let username = username.map(Into::into);
        with.credentials.insert(id.into(), PbxCredentials { username, secret });
    }
    let mut w = World::new(with);
    let text = w.register("secret", CONTACT);
    w.say(&text);
    w.tell(known());
    w.to(PHONE);
    for (pbx, username) in [(PBX1, "trunk"), (PBX2, "anna")] {
        let told = w.one(pbx);
        w.answer(&told, "401 Unauthorized", challenge);
        w.pass(MOMENT);
        let again = w.one(pbx);
        let value = header(&again, "Authorization")[0];
        assert!(value.starts_with(&format!("Digest username=\"{username}\"")), "{value}");
        assert!(value.contains(&format!("uri=\"sip:{pbx}\"")), "{value}");
        assert_eq!(header(&again, "CSeq"), ["2 REGISTER"]);
        assert!(w.answer(&again, "200 OK", ""));
    }
    assert!(w.stateful.forking().legs("anna").iter().all(|leg| leg.last == Some(200)));
    // Without credentials it is not asked again and again.
    let mut w = World::new(settings());
    let text = w.register("secret", CONTACT);
    w.say(&text);
    w.tell(known());
    let told = w.one(PBX1);
    w.answer(&told, "401 Unauthorized", challenge);
    w.pass_secs(600);
    assert_eq!(w.to(PBX1), [""; 0]);
    assert_eq!(w.stateful.counts().challenges_unanswered, 1);
    assert_eq!(w.stateful.forking().legs("anna")[0].last, Some(401));
}

// ---- Who may -------------------------------------------------------------------------------------

#[test]
fn sources_that_are_believed_are_not_asked() {
    let mut w = World::new(settings());
    let bare = w.bare(CONTACT);
    w.hear_from(PBX1, &bare);
    assert_eq!(status(&w.to(PBX1)[0]), "SIP/2.0 200 OK");
    // Without users to ask for, nobody else may.
    w.stateful.authenticator = None;
    let bare = w.bare(CONTACT);
    assert_eq!(status(&w.say(&bare)[0]), "SIP/2.0 403 Not relaying");
    let bare = w.bare(CONTACT);
    w.hear_from(BELIEVED, &bare);
    assert_eq!(status(&w.one(BELIEVED)), "SIP/2.0 200 OK");
}

#[test]
fn what_is_not_served() {
    let mut w = World::new(settings());
    let text = w.bare("").replace("REGISTER", "MESSAGE");
    w.hear_from(BELIEVED, &text);
    assert_eq!(status(&w.one(BELIEVED)), "SIP/2.0 484 Address Incomplete");
    let text = w.bare("").replace("REGISTER", "CANCEL");
    assert_eq!(status(&w.say(&text)[0]), "SIP/2.0 481 Call/Transaction Does Not Exist");
    let text = w.bare("").replace("REGISTER", "ACK");
    assert_eq!(w.say(&text), [""; 0]);
    assert!(!w.answer(&text.replace("z9hG4bK", "z9hG4bKsldt"), "200 OK", ""));
}

#[test]
fn requests_without_credentials_leave_nothing() {
    let mut w = World::new(settings());
    for _ in 0..1000 {
        let bare = w.bare(CONTACT);
        assert_eq!(w.say(&bare).len(), 1);
    }
    assert_eq!(w.stateful.transactions(), 0);
    // Nor does one whose transaction finds no room.
    let mut with = settings();
    with.transactions.transactions = 0;
    let mut w = World::new(with);
    let text = w.register("secret", CONTACT);
    let refused = w.say(&text);
    assert_eq!(status(&refused[0]), "SIP/2.0 503 Service Unavailable");
    assert_eq!(w.stateful.counts().full, 1);
}

#[test]
fn new_rules_count_at_once() {
    let mut w = World::new(settings());
    let mut new = settings();
    new.registrar.max_expires = 600;
    new.domains = Domains::new(["example.org"], &new.locals);
    w.stateful.reload(new);
    let bare = w.bare(CONTACT);
    assert_eq!(status(&w.say(&bare)[0]), "SIP/2.0 403 Not relaying");
    let text = w.bare(CONTACT).replace("example.com", "example.org");
    w.hear_from(BELIEVED, &text);
    assert!(w.one(BELIEVED).contains(";expires=600"));
}

// ---- Anything at all -----------------------------------------------------------------------------

proptest::proptest! {
    #![proptest_config(proptest::prelude::ProptestConfig {
        cases: 256,
        failure_persistence: None,
        ..Default::default()
    })]

    /// Whatever is sent, with right credentials or damaged ones: nobody but its sender and the PBXs hears of it,
    /// the PBXs only of what was accepted and stored, and in the end nothing is left.
    #[test]
    fn nothing_is_left(
        requests in proptest::collection::vec((0..4usize, 0..3usize, crate::core::testing::damages()), 1..8),
        answers in proptest::collection::vec(0..4usize, 8),
    ) {
        let mut w = World::new(settings());
        for ((kind, from, damages), answer) in requests.into_iter().zip(answers) {
            let text = match kind {
                0 => w.bare(CONTACT),
                1 => w.register("secret", CONTACT),
                2 => w.register("secret", GONE),
                _ => w.register("secret", "Contact: *\r\nExpires: 0\r\n"),
            };
            // Half of them as they are.
            let damages = if kind % 2 == 0 { damages } else { Vec::new() };
            let bytes = crate::core::testing::damaged(text, &damages);
            let from = [PHONE, PBX1, BELIEVED][from];
            let mut index = Index::new();
            let Ok(message) = Message::parse(&bytes, &mut index) else { continue };
            if message.check().is_err() || !message.is_request() {
                continue;
            }
            let flow = Flow { local: 0, peer: from.parse().unwrap(), reliable: false };
            w.stateful.handle_request(w.now, &message, flow);
            w.collect();
            for (ticket, _) in std::mem::take(&mut w.fetches) {
                let answer = match answer {
                    0 => known(),
                    1 => Ok(None),
                    2 => Err(Away),
                    // It comes later, or never.
                    _ => continue,
                };
                w.stateful.handle_secrets(w.now, ticket, answer);
                w.collect();
            }
            let accepted = w.stateful.counts().registered > 0;
            for (to, text) in std::mem::take(&mut w.sent) {
                if text.starts_with("REGISTER") {
                    proptest::prop_assert!(accepted && [PBX1, PBX2].contains(&to.as_str()), "{to}");
                    w.answer(&text, "200 OK", "");
                } else {
                    let host = from.split(':').next().unwrap();
                    proptest::prop_assert!(to.starts_with(host), "{to}: {text}");
                }
            }
            w.pass(Duration::from_millis(700));
        }
        // Longer than any registration, and than whatever answers it.
        w.pass_secs(3 * 7200);
        proptest::prop_assert_eq!(w.stateful.transactions(), 0);
        proptest::prop_assert_eq!(w.stateful.registrar().bindings(), 0);
        proptest::prop_assert_eq!(w.stateful.authenticator().unwrap().parked(), 0);
        proptest::prop_assert!(w.stateful.flights.is_empty());
        // What was stored is gone from the store too.
        let mut rows = std::collections::BTreeSet::new();
        for written in w.written {
            match written {
                Written::Saved(row) => _ = rows.insert(row.key),
                Written::Removed(key) => proptest::prop_assert!(rows.remove(&key)),
            }
        }
        proptest::prop_assert!(rows.is_empty(), "{:?}", rows);
    }
}
