use super::*;
use proptest::prelude::*;
use sip_ebpf::scan::Index;

mod model;

pub(super) const KEY: [u64; 2] = [5, 6];

/// A registrar on virtual time.
pub(super) struct World {
    pub(super) registrar: Registrar,
    pub(super) start: Instant,
    pub(super) now: Instant,
    pub(super) changes: Vec<Change>,
}

/// Rules without jitter.
pub(super) fn exact() -> Rules {
    Rules { jitter: 0, ..Rules::default() }
}

impl World {
    pub(super) fn new(rules: Rules) -> Self {
        let locals = ["192.0.2.1:5060".parse().unwrap(), "[2001:db8::1]:5060".parse().unwrap()];
        let domains = Domains::new(["example.com", "example.org"], &locals);
        let now = Instant::now();
        let registrar = Registrar::new(rules, domains, &locals, KEY);
        Self { registrar, start: now, now, changes: Vec::new() }
    }

    pub(super) fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
    }

    /// A REGISTER from 198.51.100.7:5060, which is what its Via says.
    pub(super) fn hear(&mut self, to: &str, call: &str, cseq: u32, headers: &str) -> Response {
        self.hear_from("198.51.100.7:5060", "SIP/2.0/UDP 198.51.100.7", to, call, cseq, headers)
    }

    fn hear_from(
        &mut self,
        from: &str,
        via: &str,
        to: &str,
        call: &str,
        cseq: u32,
        headers: &str,
    ) -> Response {
        let text = format!(
            "REGISTER sip:example.com SIP/2.0\r\nVia: {via};branch=z9hG4bK1\r\nFrom: <{to}>;tag=1\r\n\
             To: <{to}>\r\nCall-ID: {call}\r\nCSeq: {cseq} REGISTER\r\nMax-Forwards: 70\r\n{headers}\r\n"
        );
        let mut index = Index::new();
        let message = Message::parse(text.as_bytes(), &mut index).unwrap();
        let origin = Origin { from: from.parse().unwrap(), local: 0 };
        self.registrar.handle(self.now, &message, origin, &mut self.changes)
    }

    /// The Contacts of a 200 for Bob.
    #[track_caller]
    fn bob(&mut self, call: &str, cseq: u32, headers: &str) -> Vec<String> {
        let response = self.hear("sip:bob@example.com", call, cseq, headers);
        assert_eq!((response.code, &*response.phrase), (200, "OK"));
        contacts(&response)
    }

    /// What answers a REGISTER of Bob that changes nothing.
    #[track_caller]
    fn refused(&mut self, call: &str, cseq: u32, headers: &str) -> (u16, String, String) {
        let before = self.fetch();
        self.changes.clear();
        let response = self.hear("sip:bob@example.com", call, cseq, headers);
        assert_eq!(self.changes, []);
        assert_ne!(response.code, 200);
        assert_eq!(self.fetch(), before);
        (response.code, response.phrase.into(), response.headers)
    }

    fn fetch(&mut self) -> Vec<String> {
        self.bob("fetch", 1, "")
    }

    /// What has changed since the last time, in short.
    fn news(&mut self) -> Vec<String> {
        let (start, changes) = (self.start, std::mem::take(&mut self.changes));
        let after = |at: Instant| at.saturating_duration_since(start).as_secs();
        let news = changes.into_iter().map(|change| match change {
            Change::Saved(row) => format!("+{} {}", row.key.contact, after(row.expires)),
            Change::Removed(key) => format!("-{}", key.contact),
            Change::User { user, until } => format!("{user} {:?}", until.map(after)),
        });
        news.collect()
    }

    fn timeout(&mut self) {
        self.registrar.handle_timeout(self.now, &mut self.changes);
    }

    fn lookup(&self, user: &str) -> Vec<&str> {
        let aor = Aor::new(user, "example.com").unwrap();
        self.registrar.lookup(&aor, self.now).iter().map(|reach| reach.contact).collect()
    }
}

pub(super) fn contacts(response: &Response) -> Vec<String> {
    let values = response.headers.lines().filter_map(|line| line.strip_prefix("Contact: "));
    values.map(str::to_owned).collect()
}

const A: &str = "Contact: <sip:bob@10.0.0.1>\r\n";
const B: &str = "Contact: <sip:bob@10.0.0.2>;q=0.5;expires=600\r\n";

#[test]
fn contacts_come_are_renewed_and_go() {
    let mut w = World::new(exact());
    assert_eq!(w.bob("a", 1, A), ["<sip:bob@10.0.0.1>;expires=3600"]);
    assert_eq!(w.news(), ["+sip:bob@10.0.0.1 3600", "bob Some(3600)"]);
    w.pass(100);
    let both = ["<sip:bob@10.0.0.1>;expires=3500", "<sip:bob@10.0.0.2>;expires=600;q=0.500"];
    assert_eq!(w.bob("b", 1, B), both);
    assert_eq!(w.news(), ["+sip:bob@10.0.0.2 700"], "the user is not news");
    assert_eq!(w.fetch(), both);
    assert_eq!(w.lookup("bob"), ["sip:bob@10.0.0.1", "sip:bob@10.0.0.2"]);
    assert_eq!(w.lookup("Bob"), [""; 0], "the case of a user counts");
    // Header Expires, and the parameter before it.
    let two =
        "Expires: 120\r\nContact: <sip:bob@10.0.0.1>\r\nm: <sip:bob@10.0.0.2>;expires=200\r\n";
    let left = ["<sip:bob@10.0.0.1>;expires=120", "<sip:bob@10.0.0.2>;expires=200"];
    assert_eq!(w.bob("a", 2, two), left);
    assert_eq!(
        w.news(),
        ["+sip:bob@10.0.0.1 220", "+sip:bob@10.0.0.2 300", "bob Some(300)"],
        "the user now ends sooner"
    );
    // The one that lasts longest goes: the other one says until when the user is there.
    w.bob("a", 3, "Contact: <sip:bob@10.0.0.2>;expires=0\r\n");
    assert_eq!(w.news(), ["-sip:bob@10.0.0.2", "bob Some(220)"]);
    assert_eq!(w.bob("a", 4, "Contact: <sip:bob@10.0.0.1>\r\nExpires: 0\r\n"), [""; 0]);
    assert_eq!(w.news(), ["-sip:bob@10.0.0.1", "bob None"]);
    assert_eq!((w.registrar.aors(), w.registrar.bindings()), (0, 0));
    assert_eq!(w.registrar.poll_timeout(), None);
}

#[test]
fn contacts_end_in_time() {
    let mut w = World::new(exact());
    w.bob("a", 1, A);
    w.bob("b", 1, B);
    w.news();
    assert_eq!(w.registrar.poll_timeout(), Some(w.now + Duration::from_secs(600)));
    w.pass(600);
    // Nobody sees it, noticed or not.
    assert_eq!(w.lookup("bob"), ["sip:bob@10.0.0.1"]);
    w.timeout();
    assert_eq!(w.news(), ["-sip:bob@10.0.0.2"]);
    w.timeout();
    assert_eq!(w.news(), [""; 0]);
    w.pass(2999);
    w.timeout();
    assert_eq!(w.news(), [""; 0]);
    w.pass(2);
    assert_eq!(w.fetch(), [""; 0], "a fetch before the timer says the truth, too");
    assert_eq!(w.news(), ["-sip:bob@10.0.0.1", "bob None"]);
    w.timeout();
    assert_eq!((w.news().len(), w.registrar.poll_timeout()), (0, None));
}

#[test]
fn star_removes_all() {
    let mut w = World::new(exact());
    w.bob("a", 5, A);
    w.bob("b", 5, B);
    w.news();
    for wrong in [
        "Contact: *\r\n",
        "Contact: *\r\nExpires: 60\r\n",
        "Contact: *, <sip:a@b>\r\nExpires: 0\r\n",
        "Contact: <sip:a@b>\r\nContact: *\r\nExpires: 0\r\n",
        "Contact: *\r\nContact: *\r\nExpires: 0\r\n",
    ] {
        assert_eq!(w.refused("c", 1, wrong).0, 400, "{wrong}");
    }
    let star = "Contact: *\r\nExpires: 0\r\n";
    assert_eq!(w.refused("b", 4, star).0, 500, "one of them is younger");
    assert_eq!(w.bob("b", 6, star), [""; 0]);
    assert_eq!(w.news(), ["-sip:bob@10.0.0.1", "-sip:bob@10.0.0.2", "bob None"]);
    assert_eq!(w.bob("b", 6, star), [""; 0], "repeated");
    assert_eq!(w.news(), [""; 0]);
}

#[test]
fn order_of_requests() {
    let mut w = World::new(exact());
    w.bob("a", 5, A);
    w.pass(10);
    w.news();
    // The same one again: nothing happens twice.
    assert_eq!(w.bob("a", 5, A), ["<sip:bob@10.0.0.1>;expires=3590"]);
    assert_eq!(w.news(), [""; 0]);
    let older = w.refused("a", 4, A);
    assert_eq!((older.0, &*older.1), (500, "CSeq Out of Order"));
    // All or nothing: the new contact beside it is not taken.
    assert_eq!(w.refused("a", 4, &format!("{B}{A}")).0, 500);
    assert_eq!(w.refused("a", 4, "Contact: <sip:bob@10.0.0.1>;expires=0\r\n").0, 500);
    // Another Call-ID is a phone that has been started anew.
    assert_eq!(w.bob("z", 1, A), ["<sip:bob@10.0.0.1>;expires=3600"]);
    assert_eq!(w.refused("z", 0, A).0, 500);
}

#[test]
fn what_is_refused() {
    let mut w = World::new(Rules { max_contacts: 2, max_aors: 2, ..exact() });
    w.bob("a", 1, A);
    let brief = w.refused("a", 2, "Contact: <sip:bob@10.0.0.9>;expires=59\r\n");
    assert_eq!(brief, (423, "Interval Too Brief".into(), "Min-Expires: 60\r\n".into()));
    assert_eq!(w.refused("a", 2, "Contact: <sip:bob@10.0.0.9>\r\nExpires: 1\r\n").0, 423);
    let three = format!("{A}{B}Contact: <sip:bob@10.0.0.3>\r\n");
    let full = w.refused("a", 2, &three);
    assert_eq!((full.0, &*full.1), (403, "Too Many Contacts"));
    // One goes in the same request: there is room.
    let swap = "Contact: <sip:bob@10.0.0.1>;expires=0, <sip:c@c>, <sip:d@d>\r\n";
    assert_eq!(w.bob("a", 3, swap).len(), 2);
    for (headers, code) in [
        ("Contact: <tel:+1>\r\n", 416),
        ("Contact: <sip:bob@>\r\n", 400),
        ("Contact: <sip:b@c>;q=2\r\n", 400),
        ("Contact: <sip:b@c>;expires=soon\r\n", 400),
        ("Contact: <sip:b@c>\r\nExpires: -1\r\n", 400),
        ("Contact: <sip:b@c>;reg-id=0;+sip.instance=\"<a>\"\r\n", 400),
        ("Contact: <sip:b@c>;reg-id=x;+sip.instance=\"<a>\"\r\n", 400),
        ("Contact: <sip:b@c>;+sip.instance=a\r\n", 400),
        ("Contact: <sip:b@c>;+sip.instance=\"a\\\"b\"\r\n", 400),
        ("Require: outbound, path, gruu\r\n", 420),
        ("Contact: <sip:b@c>\r\nPath: <mailto:x>\r\n", 400),
        ("Contact: <sip:b@c>\r\nPath: sip:x\r\n", 400),
    ] {
        assert_eq!(w.refused("a", 9, headers).0, code, "{headers}");
    }
    assert_eq!(
        w.refused("a", 9, "Require: outbound,gruu\r\n").2,
        "Unsupported: outbound, gruu\r\n"
    );
    let long = "x".repeat(MAX);
    for headers in [
        format!("Contact: <sip:{long}@c>\r\n"),
        format!("Contact: <sip:b@c>;+sip.instance=\"{long}\"\r\n"),
        format!("Contact: <sip:b@c>\r\nPath: <sip:{long}@c>, <sip:{long}@c>\r\n"),
    ] {
        assert_eq!(w.refused("a", 9, &headers).0, 513);
    }
    assert_eq!(w.refused(&long, 9, A).0, 513);
    assert_eq!(w.hear(&format!("sip:{long}@example.com"), "u", 1, A).code, 513);
    let many: String = (0..40).map(|n| format!("Contact: <sip:{n}@c>;expires=0\r\n")).collect();
    assert_eq!(w.refused("a", 9, &many).0, 403);
    // Whose they are.
    assert_eq!(w.hear("sip:bob@example.net", "o", 1, A).code, 404);
    assert_eq!(w.hear("sip:example.com", "o", 1, A).code, 404);
    assert_eq!(w.hear("tel:+1", "o", 1, A).code, 416);
    // All users together.
    assert_eq!(w.hear("sip:eve@example.com", "e", 1, A).code, 200);
    let full = w.hear("sip:one@example.com", "e", 1, A);
    assert_eq!((full.code, &*full.headers), (503, "Retry-After: 60\r\n"));
    assert_eq!(w.hear("sip:one@example.com", "e", 1, "").code, 200, "a fetch takes no room");
    assert_eq!(w.hear("sip:eve@example.com", "e", 2, B).code, 200);
}

const MAX: usize = 600;

#[test]
fn equal_contacts_are_one() {
    let mut w = World::new(exact());
    w.bob("a", 1, "Contact: <sip:b%6fb@Host.example;transport=UDP;x=1>\r\n");
    w.news();
    w.bob("a", 2, "Contact: <sip:bob@host.example;transport=udp>\r\n");
    assert_eq!(
        w.news(),
        ["-sip:b%6fb@Host.example;transport=UDP;x=1", "+sip:bob@host.example;transport=udp 3600"],
        "a store knows it by its text"
    );
    // Equal to the first, but not to each other: the same text comes first.
    w.bob("b", 1, "Contact: <sip:b@c;y=1>\r\n");
    w.bob("b", 2, "Contact: <sip:b@c;y=2>\r\n");
    w.bob("b", 3, "Contact: <sip:b@c>\r\n");
    assert_eq!(w.bob("b", 4, "Contact: <sip:b@c;y=2>\r\n").len(), 3);
    // Twice in one request: the last one counts.
    let twice = "Contact: <sip:n@n>;expires=100, <sip:n@N>;expires=200\r\n";
    assert_eq!(w.bob("c", 1, twice)[3..], ["<sip:n@N>;expires=200"]);
}

#[test]
fn instances_and_flows() {
    let mut w = World::new(exact());
    let flow = |host: &str, id: u32| {
        format!("Contact: <sip:bob@{host}>;reg-id={id};+sip.instance=\"<urn:uuid:1>\"\r\n")
    };
    let shown = "<sip:bob@10.0.0.1>;expires=3600;+sip.instance=\"<urn:uuid:1>\";reg-id=1";
    assert_eq!(w.bob("a", 1, &flow("10.0.0.1", 1)), [shown]);
    w.news();
    // The phone has moved: the old address goes (RFC 5626 6).
    assert_eq!(w.bob("b", 1, &flow("10.0.0.2", 1)).len(), 1);
    assert_eq!(w.news(), ["-sip:bob@10.0.0.1", "+sip:bob@10.0.0.2 3600"]);
    // Another flow of the same contact is another binding.
    assert_eq!(w.bob("c", 1, &flow("10.0.0.2", 2)).len(), 2);
    let aor = Aor::new("bob", "example.com").unwrap();
    let reach = w.registrar.lookup(&aor, w.now)[0];
    assert_eq!(reach.flow, Some("198.51.100.7:5060".parse().unwrap()), "it is reached by its flow");
    assert_eq!((reach.instance, reach.reg_id), (Some("<urn:uuid:1>"), NonZeroU32::new(2)));
    let two = format!("{}{}", flow("h", 3), flow("h", 4));
    assert_eq!(w.refused("d", 1, &two).0, 400);
    // Without an instance a reg-id is nothing.
    assert_eq!(w.bob("e", 1, "Contact: <sip:x@y>;reg-id=1\r\n")[2], "<sip:x@y>;expires=3600");
}

#[test]
fn paths() {
    let mut w = World::new(exact());
    let path = "Path: <sip:p1.example;lr>, \"a, <b\" <sip:p2.example;lr>\r\nPath: <sip:p3;lr>\r\n";
    let want = "<sip:p1.example;lr>, \"a, <b\" <sip:p2.example;lr>, <sip:p3;lr>";
    let answer = w.hear("sip:bob@example.com", "a", 1, &format!("{A}{path}k: path\r\n"));
    assert_eq!(answer.headers.lines().nth(1), Some(&*format!("Path: {want}")));
    let aor = Aor::new("bob", "example.com").unwrap();
    assert_eq!(w.registrar.lookup(&aor, w.now)[0].path, Some(want));
    // A phone that does not know of it.
    let answer = w.hear("sip:bob@example.com", "a", 2, &format!("{A}{path}"));
    assert_eq!((answer.code, answer.headers.contains("\r\nPath:")), (200, false));
    assert_eq!(w.registrar.lookup(&aor, w.now)[0].path, Some(want));
    let domains = w.registrar.domains().clone();
    w.registrar.reload(Rules { path_needs_support: true, ..exact() }, domains);
    let needed = (421, "Extension Required".into(), "Require: path\r\n".into());
    assert_eq!(w.refused("a", 3, &format!("{A}{path}")), needed);
    assert_eq!(w.bob("a", 3, &format!("{A}{path}Supported: 100rel, Path\r\n")).len(), 1);
    // It goes with the next REGISTER that has none.
    w.bob("a", 4, &format!("{A}Require: path\r\n"));
    assert_eq!(w.registrar.lookup(&aor, w.now)[0].path, None);
}

#[test]
fn the_way_to_a_phone() {
    let from = "203.0.113.9:40000";
    for (via, known) in [
        ("SIP/2.0/UDP 192.168.1.5:5060;rport", false),
        ("SIP/2.0/UDP phone.local", false),
        ("SIP/2.0/UDP 203.0.113.9:5060;rport", false),
        ("SIP/2.0/UDP 203.0.113.9:5060", true),
        ("SIP/2.0/UDP 203.0.113.9:40000;rport", true),
    ] {
        let mut w = World::new(exact());
        let allow = format!("{A}Allow: INVITE,ACK , BYE\r\nUser-Agent: {}\r\n", "é".repeat(60));
        let answer = w.hear_from(from, via, "sip:bob@192.0.2.1:5060", "a", 1, &allow);
        assert_eq!(answer.code, 200);
        let aor = Aor::new("bob", "192.0.2.1").unwrap();
        let reach = w.registrar.lookup(&aor, w.now)[0];
        assert_eq!(reach.flow, (!known).then(|| from.parse().unwrap()), "{via}");
        use sip_ebpf::scan::Method;
        let allowed = [Method::Invite, Method::Message].map(|method| reach.methods.allow(method));
        assert_eq!(allowed, [true, false]);
        assert_eq!(reach.user_agent, Some(&*"é".repeat(32)));
    }
}

#[test]
fn one_user_in_two_domains() {
    let mut w = World::new(exact());
    w.hear("sip:bob@EXAMPLE.com:5060", "a", 1, "Contact: <sip:x@x>;expires=100\r\n");
    w.hear("sip:b%6Fb@example.org", "b", 1, "Contact: <sip:y@y>;expires=200\r\n");
    assert_eq!(w.lookup("bob"), ["sip:x@x"]);
    assert_eq!(
        w.news(),
        ["+sip:x@x 100", "bob Some(100)", "+sip:y@y 200", "bob Some(200)"],
        "to a PBX they are one"
    );
    w.hear("sip:bob@example.org", "b", 2, "Contact: *\r\nExpires: 0\r\n");
    assert_eq!(w.news(), ["-sip:y@y", "bob Some(100)"]);
}

#[test]
fn phones_do_not_come_back_in_step() {
    let mut w = World::new(Rules { jitter: 20, ..Rules::default() });
    let mut granted = Vec::new();
    for n in 0..1000 {
        let answer = w.hear(&format!("sip:u{n}@example.com"), "a", 1, A);
        let contact = contacts(&answer).remove(0);
        granted.push(contact.rsplit_once('=').unwrap().1.parse::<u64>().unwrap());
    }
    assert!(granted.iter().all(|granted| (2880..=3600).contains(granted)));
    let mean = granted.iter().sum::<u64>() / 1000;
    assert!((3200..3280).contains(&mean), "{mean}");
    // Never below the minimum, and the same for the same request.
    for asked in [60, 61, 65] {
        let contact = format!("Contact: <sip:x@x>;expires={asked}\r\n");
        let first = w.bob(&format!("{asked}"), 1, &contact);
        let left: u64 = first[0].rsplit_once('=').unwrap().1.parse().unwrap();
        assert!((60..=asked).contains(&left), "{left}");
        assert_eq!(w.bob(&format!("{asked}"), 1, &contact), first);
    }
    // What is too long is cut first.
    let long = w.bob("long", 1, "Contact: <sip:x@x>;expires=4294967295\r\n");
    let left: u64 = long[0].rsplit_once('=').unwrap().1.parse().unwrap();
    assert!((5760..=7200).contains(&left));
}

#[test]
fn a_store_gives_back_what_it_got() {
    let mut w = World::new(exact());
    let unix = Duration::from_millis(1_700_000_000_250);
    let whole = "Contact: <sip:bob@10.0.0.2>;q=0.25;reg-id=2;+sip.instance=\"<urn:uuid:7>\"\r\n\
                 Path: <sip:p;lr>\r\nSupported: path\r\nAllow: INVITE\r\nUser-Agent: Phone/1\r\n";
    w.bob("a", 3, A);
    w.bob("b", 4, whole);
    let rows: Vec<_> = w.registrar.rows().collect();
    assert_eq!(rows.len(), 2);
    assert_eq!(rows[1].expires_unix(w.now, unix), 1_700_003_601);
    let fetched = w.fetch();
    // Half an hour later, in another process.
    let mut other = World::new(exact());
    let later = unix + Duration::from_secs(1800);
    for row in &rows {
        let stored = row.expires_unix(w.now, unix);
        let row = Row { expires: Row::expires_at(stored, other.now, later), ..row.clone() };
        assert_eq!(other.registrar.restore(other.now, &row, &mut other.changes), Ok(()));
        let again = other.registrar.restore(other.now, &row, &mut other.changes);
        assert_eq!(again, Err(NotRestored::Newer));
    }
    assert_eq!(other.news(), ["bob Some(1800)"], "one message for the PBXs, none for the store");
    let aged: Vec<_> = fetched.iter().map(|line| line.replace("3600", "1801")).collect();
    assert_eq!(other.fetch(), aged);
    let aor = Aor::new("bob", "example.com").unwrap();
    let [old, new] = [(&w, 0), (&other, 0)].map(|(w, at)| w.registrar.lookup(&aor, w.now)[at]);
    assert_eq!(Reach { expires: new.expires, ..old }, new);
    assert_eq!(other.refused("b", 3, whole).0, 500, "the order of requests is kept, too");
    // What is not taken.
    let row = |change: &dyn Fn(&mut Row)| {
        let mut row = Row { expires: other.now + Duration::from_secs(9), ..rows[1].clone() };
        change(&mut row);
        row
    };
    use NotRestored::*;
    for (row, why) in [
        (row(&|row| row.expires = w.start), Expired),
        (row(&|row| row.key.domain = "example.net".into()), Domain),
        (row(&|row| row.key.contact = "sip:a@b\r\nX: y".into()), Malformed),
        (row(&|row| row.key.instance = Some("\"\r\n".into())), Malformed),
        (row(&|row| row.path = Some("<sip:p>\r\n".into())), Malformed),
        (row(&|row| row.q = Some(1001)), Malformed),
        (row(&|row| row.key.user = "a b".into()), Malformed),
    ] {
        assert_eq!(other.registrar.restore(other.now, &row, &mut other.changes), Err(why));
    }
    let mut full = World::new(Rules { max_aors: 1, max_contacts: 1, ..exact() });
    full.bob("z", 1, A);
    for user in ["bob", "eve"] {
        let row = row(&|row| row.key.user = user.into());
        assert_eq!(full.registrar.restore(full.now, &row, &mut full.changes), Err(Full));
    }
}

#[test]
fn an_operator_removes() {
    let mut w = World::new(exact());
    w.bob("a", 1, A);
    w.bob("b", 1, B);
    w.news();
    let aor = Aor::new("bob", "example.com").unwrap();
    let (mut changes, registrar) = (Vec::new(), &mut w.registrar);
    assert_eq!(registrar.remove(&aor, Some("sip:nobody@x"), &mut changes), 0);
    assert_eq!(registrar.remove(&aor, Some("sip:bob@10.0.0.1"), &mut changes), 1);
    assert_eq!(registrar.remove(&aor, None, &mut changes), 1);
    assert_eq!(registrar.remove(&aor, None, &mut changes), 0);
    w.changes = changes;
    assert_eq!(w.news(), ["-sip:bob@10.0.0.1", "bob Some(600)", "-sip:bob@10.0.0.2", "bob None"]);
}

proptest! {
    /// Whatever a REGISTER holds, it is answered, by lines that are whole.
    #[test]
    fn nothing_panics(
        headers in "(Contact|Path|Expires|Supported|Allow|Require|m): [ -~]{0,60}\r\n",
        contact in "[ -~]{0,40}",
        damages in crate::core::testing::damages(),
    ) {
        let mut w = World::new(Rules::default());
        w.bob("a", 1, A);
        let text = format!(
            "REGISTER sip:example.com SIP/2.0\r\nVia: SIP/2.0/UDP a;branch=z9hG4bK1\r\n\
             From: <sip:b@c>;tag=1\r\nTo: <sip:bob@example.com>\r\nCall-ID: x\r\n\
             CSeq: 1 REGISTER\r\nContact: <sip:{contact}>;q=0.1;+sip.instance=\"<a>\"\r\n{headers}\r\n"
        );
        for bytes in [text.clone().into_bytes(), crate::core::testing::damaged(text, &damages)] {
            let mut index = Index::new();
            let Ok(message) = Message::parse(&bytes, &mut index) else { continue };
            let origin = Origin { from: "192.0.2.9:1".parse().unwrap(), local: 7 };
            let mut changes = Vec::new();
            let answer = w.registrar.handle(w.now, &message, origin, &mut changes);
            let lines = answer.headers.strip_suffix("\r\n").unwrap_or("").split("\r\n");
            for line in lines.filter(|line| !line.is_empty()) {
                prop_assert!(line.contains(": ") && !line.contains(['\r', '\n']));
            }
            for change in changes {
                // What is written can be read again.
                let Change::Saved(row) = change else { continue };
                let mut other = World::new(Rules::default());
                other.now = w.now;
                prop_assert_eq!(other.registrar.restore(w.now, &row, &mut Vec::new()), Ok(()));
            }
        }
    }
}
