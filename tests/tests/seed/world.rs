//! What the cases play in: the lab, MariaDB with Asterisk's table of users, the daemon, and two PBXs.

use std::{
    any::Any,
    panic::{AssertUnwindSafe, catch_unwind},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use sip_user::core::digest::{Challenge, Role, Secret, Session};
use sipline_tests::lab::{Daemon, Database, Engine, Lab, Mode, PROXY, Place, Settings};
use sqlx::{AnyConnection, Connection, Executor};

use crate::peer::Peer;
use crate::text::{ack_of, cancel_of, header, headers, reply, what};

/// How many users there are: u1, u2, ... of example.com, the password of each is `secret`.
const USERS: u32 = 99;
/// How long what takes a moment may take.
const LIMIT: Duration = Duration::from_secs(10);
/// What a call to somebody behind a PBX names.
pub(crate) const EXTENSION: &str = "sip:200@example.com";

/// As the seed's 4.3.2 makes it, as far as a registrar looks.
const SIPUSERS: &str = "CREATE TABLE sipusers (
    id int(11) NOT NULL AUTO_INCREMENT PRIMARY KEY,
    name varchar(80) NOT NULL DEFAULT '',
    host varchar(31) NOT NULL DEFAULT '',
    nat varchar(5) NOT NULL DEFAULT 'no',
    type enum('user','peer','friend') NOT NULL DEFAULT 'friend',
    `call-limit` smallint(5) unsigned DEFAULT NULL,
    context varchar(80) DEFAULT NULL,
    secret varchar(80) DEFAULT NULL,
    fullcontact varchar(80) NOT NULL DEFAULT '',
    ipaddr varchar(15) NOT NULL DEFAULT '',
    port mediumint(5) unsigned NOT NULL DEFAULT '0',
    username varchar(80) NOT NULL DEFAULT '',
    sippasswd varchar(80) DEFAULT NULL,
    regseconds int(11) NOT NULL DEFAULT '0'
)";

/// A case: its name, which is a row of the seed's table, and what happens.
pub(crate) type Case = (&'static str, fn(&mut World));

/// See the module.
pub(crate) struct World {
    pub(crate) daemon: Daemon,
    /// The first PBX. A case may take it away; the next one has it again.
    pub(crate) pbx1: Option<Peer>,
    /// The second.
    pub(crate) pbx2: Option<Peer>,
    pub(crate) settings: Settings,
    pub(crate) lab: Lab,
    pub(crate) database: Database,
    runtime: tokio::runtime::Runtime,
    users: u32,
}

/// Runs cases, one after another, and fails with all that have failed.
pub(crate) fn run(mode: Mode, cases: &[Case]) {
    run_with(mode, cases, |_| {});
}

/// The same, with other settings.
pub(crate) fn run_with(mode: Mode, cases: &[Case], change: impl FnOnce(&mut Settings)) {
    let mut world = World::with(mode, change);
    let mut failed = Vec::new();
    for (name, case) in cases {
        world.prepare();
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| case(&mut world))) {
            failed.push(format!("{name}: {}", words(&*panic)));
        } else {
            println!("{name}: holds");
        }
    }
    assert!(failed.is_empty(), "{} failed:\n{}", failed.len(), failed.join("\n---\n"));
}

fn words(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("it panicked")
}

impl World {
    pub(crate) fn new(mode: Mode) -> Self {
        Self::with(mode, |_| {})
    }

    fn with(mode: Mode, change: impl FnOnce(&mut Settings)) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let database = Database::start(Engine::MariaDb).unwrap();
        runtime.block_on(make_users(&database));
        let lab = Lab::new().unwrap();
        let mut settings = Settings {
            registrar: true,
            database: Some(database.url(Some("voip"))),
            trusted: false,
            ..Settings::new(mode)
        };
        change(&mut settings);
        let pbx = |place| Some(Peer::pbx(&lab, place));
        let (pbx1, pbx2) = (pbx(Place::Pbx1), pbx(Place::Pbx2));
        let daemon = Daemon::start(&lab, &settings).unwrap();
        let world = Self { daemon, pbx1, pbx2, settings, lab, database, runtime, users: 0 };
        world.wait_for_pbxs();
        world
    }

    /// What a case starts with: both PBXs in good order, and nothing left of the last one.
    fn prepare(&mut self) {
        let Self { lab, pbx1, pbx2, .. } = self;
        for (pbx, place) in [(pbx1, Place::Pbx1), (pbx2, Place::Pbx2)] {
            let pbx = pbx.get_or_insert_with(|| Peer::pbx(lab, place));
            pbx.set_deaf(false);
            pbx.forget();
        }
    }

    /// Another daemon, with other settings: it knows only what is in the database.
    pub(crate) fn restart(&mut self, change: impl FnOnce(&mut Settings)) {
        self.daemon.process.kill().unwrap();
        let mut settings = self.settings.clone();
        change(&mut settings);
        self.daemon = Daemon::start(&self.lab, &settings).unwrap();
        self.wait_for_pbxs();
    }

    fn wait_for_pbxs(&self) {
        for place in [Place::Pbx1, Place::Pbx2] {
            self.daemon.wait_until_probed(place, LIMIT).unwrap();
        }
    }

    /// A phone whose user has not been seen before.
    pub(crate) fn phone(&mut self) -> Phone {
        self.users += 1;
        assert!(self.users <= USERS);
        let port = 6000 + u16::try_from(self.users).unwrap();
        Phone { peer: Peer::phone(&self.lab, port), user: format!("u{}", self.users) }
    }

    pub(crate) fn pbx1(&mut self) -> &mut Peer {
        self.pbx1.as_mut().unwrap()
    }

    pub(crate) fn pbx2(&mut self) -> &mut Peer {
        self.pbx2.as_mut().unwrap()
    }

    pub(crate) fn pbx(&mut self, place: Place) -> &mut Peer {
        if place == Place::Pbx1 { self.pbx1() } else { self.pbx2() }
    }

    /// Who gets the INVITE that is on its way, and the INVITE.
    #[track_caller]
    pub(crate) fn who_is_invited(&mut self) -> (Place, String) {
        self.who_is_invited_within(Duration::from_secs(5))
    }

    /// The same, for what takes its time.
    #[track_caller]
    pub(crate) fn who_is_invited_within(&mut self, limit: Duration) -> (Place, String) {
        let end = Instant::now() + limit;
        loop {
            for place in [Place::Pbx1, Place::Pbx2] {
                let pbx = if place == Place::Pbx1 { &mut self.pbx1 } else { &mut self.pbx2 };
                let Some(pbx) = pbx else { continue };
                match pbx.next_new(Duration::from_millis(10)) {
                    Some(text) if what(&text) == "INVITE" => return (place, text),
                    Some(text) => panic!("{place:?} has heard\n{text}"),
                    None => {}
                }
            }
            assert!(Instant::now() < end, "nobody is invited");
        }
    }

    /// A call of the phone is at a PBX, which has said nothing yet: where, the INVITE as sent and as received.
    #[track_caller]
    pub(crate) fn call(&mut self, phone: &mut Phone, call: &str) -> (Place, String, String) {
        let sent = phone.authorized("INVITE", EXTENSION, call, "");
        phone.peer.send(&sent);
        phone.peer.expect("100");
        let (place, received) = self.who_is_invited();
        (place, sent, received)
    }

    /// A PBX answers, with a Contact.
    pub(crate) fn answer(&mut self, place: Place, invite: &str, status: &str) {
        let contact = format!("Contact: <sip:200@{}:5060>\r\n", place.address());
        self.pbx(place).send(reply(invite, status, &contact));
    }

    /// Waits until a query has this value: records are written behind.
    #[track_caller]
    pub(crate) fn wait_for_row(&self, sql: &str, value: &str) {
        let start = Instant::now();
        loop {
            let found = self.query(sql);
            if found.as_deref() == Some(value) {
                return;
            }
            assert!(start.elapsed() < LIMIT, "{found:?} and not {value}: {sql}");
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    /// One value from the database.
    fn query(&self, sql: &str) -> Option<String> {
        let url = self.database.url(Some("voip"));
        self.runtime.block_on(async {
            let mut connection = AnyConnection::connect(&url).await.unwrap();
            let query = sqlx::query_scalar(sql);
            query.fetch_optional(&mut connection).await.unwrap()
        })
    }
}

/// The other PBX.
pub(crate) fn other(place: Place) -> Place {
    if place == Place::Pbx1 { Place::Pbx2 } else { Place::Pbx1 }
}

async fn make_users(database: &Database) {
    sqlx::any::install_default_drivers();
    let mut connection = AnyConnection::connect(&database.url(None)).await.unwrap();
    connection.execute("CREATE DATABASE voip").await.unwrap();
    let mut connection = AnyConnection::connect(&database.url(Some("voip"))).await.unwrap();
    connection.execute(SIPUSERS).await.unwrap();
    let rows: Vec<_> = (1..=USERS).map(|n| format!("('u{n}', 'u{n}', 'secret')")).collect();
    let insert =
        format!("INSERT INTO sipusers (name, username, sippasswd) VALUES {}", rows.join(","));
    connection.execute(&*insert).await.unwrap();
}

/// A phone and its user.
pub(crate) struct Phone {
    pub(crate) peer: Peer,
    pub(crate) user: String,
}

impl Phone {
    /// A request of its user, in the call of this name, with more lines, each with its end.
    pub(crate) fn request(&self, method: &str, uri: &str, call: &str, more: &str) -> String {
        static REQUESTS: AtomicU32 = AtomicU32::new(1);
        let number = REQUESTS.fetch_add(1, Ordering::Relaxed);
        let Self { user, peer } = self;
        let at = peer.address;
        let to = if method == "REGISTER" { format!("sip:{user}@example.com") } else { uri.into() };
        let contact = match more.contains("Contact:") {
            true => String::new(),
            false => format!("Contact: <sip:{user}@{at}>\r\n"),
        };
        format!(
            "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {at};rport;branch=z9hG4bKseed{number}\r\n\
             Max-Forwards: 70\r\nFrom: <sip:{user}@example.com>;tag=from\r\nTo: <{to}>\r\n\
             Call-ID: {call}-{user}\r\nCSeq: {number} {method}\r\n{contact}{more}\
             Content-Length: 0\r\n\r\n"
        )
    }

    /// The same with credentials, after it was asked for them.
    #[track_caller]
    pub(crate) fn authorized(&mut self, method: &str, uri: &str, call: &str, more: &str) -> String {
        let user = self.user.clone();
        self.authorized_as(&user, "secret", method, uri, call, more)
    }

    /// The same with the credentials of somebody.
    #[track_caller]
    pub(crate) fn authorized_as(
        &mut self,
        user: &str,
        password: &str,
        method: &str,
        uri: &str,
        call: &str,
        more: &str,
    ) -> String {
        let bare = self.request(method, uri, call, more);
        self.peer.send(&bare);
        let (status, name, role) = match method {
            "REGISTER" => ("401", "WWW-Authenticate", Role::UserAgent),
            _ => ("407", "Proxy-Authenticate", Role::Proxy),
        };
        let asked = self.peer.expect(status);
        if method == "INVITE" {
            self.peer.send(ack_of(&bare, &asked));
        }
        let secret = Secret::Password(password.into());
        let values = headers(&asked, name);
        let challenge = Challenge::choose(values.iter().map(|v| v.as_bytes()), &secret).unwrap();
        let mut session = Session::new(challenge, "cnonce".into());
        let line = session.authorize(role, user, &secret, method, uri).unwrap();
        self.request(method, uri, call, &format!("{more}{line}"))
    }

    /// Sends a request with credentials. A failure of a call is acknowledged.
    #[track_caller]
    pub(crate) fn asks(
        &mut self,
        method: &str,
        uri: &str,
        call: &str,
        more: &str,
        wanted: &str,
    ) -> String {
        let text = self.authorized(method, uri, call, more);
        self.peer.send(&text);
        self.hears(&text, wanted)
    }

    /// What answers its request. A failure of a call is acknowledged.
    #[track_caller]
    pub(crate) fn hears(&mut self, request: &str, wanted: &str) -> String {
        let answer = self.peer.expect(wanted);
        if what(request) == "INVITE" && wanted >= "300" {
            self.peer.send(ack_of(request, &answer));
        }
        answer
    }

    /// It registers where it is. The lines may have other contacts.
    #[track_caller]
    pub(crate) fn registers(&mut self, more: &str) -> String {
        let call = format!("register-{}", headers(more, "X").len());
        self.asks("REGISTER", "sip:example.com", &call, more, "200")
    }

    /// A request inside the dialog that `ok` has made.
    pub(crate) fn inside(&self, method: &str, ok: &str) -> String {
        let contact = header(ok, "Contact");
        let uri = contact.trim_start_matches('<').split('>').next().unwrap();
        let routes: String =
            headers(ok, "Record-Route").iter().rev().map(|r| format!("Route: {r}\r\n")).collect();
        let text = self.request(method, uri, "x", &routes);
        text.replace(&format!("To: <{uri}>"), &format!("To: {}", header(ok, "To"))).replace(
            &format!("Call-ID: x-{}", self.user),
            &format!("Call-ID: {}", header(ok, "Call-ID")),
        )
    }

    /// It takes its call back, and hears the end of it.
    #[track_caller]
    pub(crate) fn cancels(&mut self, invite: &str) {
        self.peer.send(cancel_of(invite));
        let done = self.peer.expect("200");
        assert!(header(&done, "CSeq").ends_with("CANCEL"));
    }
}

/// What a PBX sends to start something, from one of its extensions.
pub(crate) fn from_pbx(place: Place, method: &str, uri: &str, call: &str) -> String {
    let at = format!("{}:5060", place.address());
    format!(
        "{method} {uri} SIP/2.0\r\nVia: SIP/2.0/UDP {at};rport;branch=z9hG4bK{call}{method}\r\n\
         Max-Forwards: 70\r\nFrom: <sip:300@{at}>;tag=pbx{call}\r\nTo: <{uri}>\r\n\
         Call-ID: {call}@pbx\r\nCSeq: 1 {method}\r\nContact: <sip:300@{at}>\r\n\
         Content-Length: 0\r\n\r\n"
    )
}

/// A user as the PBXs know him: at our address.
pub(crate) fn at_our_address(user: &str) -> String {
    format!("sip:{user}@{PROXY}:5060")
}
