use super::*;
use sip_ebpf::scan::Index;

mod property;

const LOCALS: [&str; 2] = ["192.0.2.1:5060", "[2001:db8::1]:5060"];
const PBX: [&str; 3] = ["10.0.0.1:5060", "10.0.0.2:5070", "[2001:db8::a]:5060"];

/// Forking on virtual time, and the PBXs that it tells.
pub(super) struct World {
    pub(super) forking: Forking,
    pub(super) now: Instant,
    pub(super) start: Instant,
    /// What left and was not answered yet.
    pub(super) sent: Vec<Register>,
    challenges: Vec<Challenged>,
}

impl World {
    pub(super) fn new(rules: Rules, pbxs: u32) -> Self {
        let now = Instant::now();
        let locals = LOCALS.map(|local| local.parse().unwrap());
        let mut forking = Forking::new(rules, &locals, [1, 2]);
        for slot in 0..pbxs {
            let (id, address) = (format!("pbx{slot}"), PBX[slot as usize].parse().unwrap());
            forking.pbx_added(now, slot, &id, address, true).unwrap();
        }
        Self { forking, now, start: now, sent: Vec::new(), challenges: Vec::new() }
    }

    pub(super) fn at(&self, seconds: u64) -> Option<Instant> {
        Some(self.start + Duration::from_secs(seconds))
    }

    pub(super) fn user(&mut self, user: &str, until: Option<Instant>) {
        self.forking.user_changed(self.now, user, until).unwrap();
        self.collect();
    }

    pub(super) fn collect(&mut self) {
        while let Some(command) = self.forking.poll_command() {
            match command {
                Command::Register(register) => self.sent.push(register),
                Command::Challenged(challenged) => self.challenges.push(challenged),
            }
        }
    }

    /// Time passes, at each timer a stop.
    pub(super) fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        let mut stuck = 0;
        while let Some(at) = self.forking.poll_timeout().filter(|at| *at <= end) {
            stuck = if at > self.now { 0 } else { stuck + 1 };
            assert!(stuck < 10_000, "a timer that does nothing");
            self.now = self.now.max(at);
            self.forking.handle_timeout(self.now);
            self.collect();
        }
        self.now = end;
        self.forking.handle_timeout(end);
        self.collect();
    }

    pub(super) fn pass_secs(&mut self, seconds: u64) {
        self.pass(Duration::from_secs(seconds));
    }

    /// An answer with more headers.
    pub(super) fn answer(&mut self, token: Token, status: u16, headers: &str) -> bool {
        let text = format!("SIP/2.0 {status} Whatever\r\n{headers}\r\n");
        let mut index = Index::new();
        let message = Message::parse(text.as_bytes(), &mut index).unwrap();
        let known = self.forking.handle_answer(self.now, token, &message);
        self.collect();
        known
    }

    /// The next one that waits for an answer, to a PBX.
    #[track_caller]
    fn take(&mut self, slot: u32) -> Register {
        let place = self.sent.iter().position(|register| register.slot == slot);
        self.sent.remove(place.expect("a REGISTER"))
    }

    #[track_caller]
    fn take_and_answer(&mut self, slot: u32, status: u16, headers: &str) -> Said {
        let register = self.take(slot);
        assert!(self.answer(register.token, status, headers));
        assert!(!self.answer(register.token, status, headers), "only once");
        said(&register)
    }

    /// Answers all with 200.
    fn agree(&mut self) -> Vec<Said> {
        let mut all = Vec::new();
        while !self.sent.is_empty() {
            let register = self.sent.remove(0);
            self.answer(register.token, 200, "");
            all.push(said(&register));
        }
        all
    }

    /// Answers all with 200 until nothing is due to those that are in reach.
    fn settle(&mut self) -> Vec<Said> {
        let mut all = Vec::new();
        while self.forking.pbxs().any(|pbx| !pbx.away && pbx.waiting + pbx.in_flight != 0) {
            all.extend(self.agree());
            self.pass(Duration::from_millis(10));
        }
        all
    }

    fn time_out(&mut self, slot: u32) {
        let register = self.take(slot);
        assert!(self.forking.handle_no_answer(self.now, register.token));
        self.collect();
    }

    fn leg(&self, user: &str, slot: u32) -> Leg<'_> {
        self.forking.legs(user).into_iter().find(|leg| leg.slot == slot).expect("a leg")
    }

    fn pbx(&self, slot: u32) -> PbxView<'_> {
        self.forking.pbxs().find(|view| view.slot == slot).expect("a PBX")
    }
}

/// What a REGISTER says.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Said {
    pub(super) slot: u32,
    pub(super) user: String,
    pub(super) expires: u32,
    pub(super) cseq: u32,
    pub(super) call_id: String,
}

pub(super) fn said(register: &Register) -> Said {
    let via = format!("SIP/2.0/UDP {};branch=z9hG4bKx", register.from);
    let bytes = register.datagram(&via);
    let mut index = Index::new();
    let message = Message::parse(&bytes, &mut index).unwrap();
    message.check_all().unwrap();
    let to = message.to().unwrap().uri;
    assert_eq!(to.host.unwrap().ip(), Some(register.to.ip()));
    assert_eq!(message.contacts().count(), 1);
    Said {
        slot: register.slot,
        user: to.user.unwrap().to_owned(),
        expires: message.expires().unwrap().unwrap(),
        cseq: message.cseq().unwrap().number,
        call_id: message.call_id().unwrap().to_owned(),
    }
}

#[test]
fn each_pbx_hears_of_each_change() {
    let mut w = World::new(Rules::default(), 3);
    w.user("bob", w.at(3600));
    assert_eq!(w.sent[0].from, LOCALS[0].parse().unwrap());
    assert_eq!(w.sent[2].from, LOCALS[1].parse().unwrap(), "of the PBX's family");
    let first = w.agree();
    assert_eq!(first.iter().map(|said| said.slot).collect::<Vec<_>>(), [0, 1, 2]);
    assert!(first.iter().all(|said| said.user == "bob" && said.expires == 3600));
    assert_ne!(first[0].call_id, first[1].call_id);
    assert_eq!(w.leg("bob", 0).registered_until, w.at(3600));
    assert_eq!((w.leg("bob", 1).last, w.leg("bob", 1).next_try), (Some(200), None));
    // A shorter time, a longer one, and the end.
    w.pass_secs(60);
    w.user("bob", w.at(600));
    let second = w.agree();
    assert!(second.iter().all(|said| said.expires == 540));
    for (first, second) in first.iter().zip(&second) {
        assert_eq!(first.call_id, second.call_id, "one Call-ID for a user and PBX");
        assert!(first.cseq < second.cseq);
    }
    w.user("bob", None);
    let last = w.agree();
    assert!(last.iter().all(|said| said.expires == 0) && last.len() == 3);
    assert_eq!((w.forking.users(), w.forking.poll_timeout()), (0, None));
    // He comes back: another life, another Call-ID.
    w.user("bob", w.at(700));
    assert_ne!(w.agree()[0].call_id, last[0].call_id);
    assert_eq!(w.forking.user_changed(w.now, "nobody", None), Ok(()));
    assert_eq!(w.forking.users(), 1);
}

#[test]
fn changes_while_one_is_on_its_way_are_told_after_it() {
    let mut w = World::new(Rules::default(), 1);
    w.user("bob", w.at(3600));
    for until in [1000, 2000, 3000] {
        w.user("bob", w.at(until));
    }
    assert_eq!(w.sent.len(), 1);
    w.take_and_answer(0, 200, "");
    assert_eq!(w.sent.len(), 1, "the last state only");
    assert_eq!(w.take_and_answer(0, 200, "").expires, 3000);
    w.user("bob", w.at(3500));
    w.user("bob", None);
    w.take_and_answer(0, 200, "");
    assert_eq!(w.take_and_answer(0, 200, "").expires, 0);
    assert_eq!((w.sent.len(), w.forking.users()), (0, 0));
}

#[test]
fn what_a_pbx_grants_for_less_is_refreshed_in_time() {
    let mut w = World::new(Rules::default(), 1);
    w.user("bob", w.at(4 * 3600));
    let mut held = w.now;
    let mut count = 0;
    while w.now < w.at(4 * 3600 - 1).unwrap() {
        if !w.sent.is_empty() {
            assert!(count == 0 || w.now < held, "in time");
            w.take_and_answer(0, 200, "Contact: <sip:bob@192.0.2.1:5060>;expires=300\r\n");
            held = w.now + Duration::from_secs(300);
            count += 1;
        }
        w.pass_secs(1);
    }
    assert!((48..=80).contains(&count), "{count}");
    w.user("bob", None);
    assert_eq!(w.take_and_answer(0, 200, "").expires, 0);
    assert_eq!(w.forking.users(), 0);
}

#[test]
fn too_brief_for_a_pbx() {
    let mut w = World::new(Rules::default(), 1);
    w.user("bob", w.at(100));
    w.take_and_answer(0, 423, "Min-Expires: 600\r\n");
    assert_eq!(w.take_and_answer(0, 200, "").expires, 600);
    // It has him for longer than we do: his end is told.
    w.pass_secs(100);
    w.user("bob", None);
    assert_eq!(w.take_and_answer(0, 200, "").expires, 0);
    // Known from now on.
    w.user("eve", w.at(200));
    assert_eq!(w.take_and_answer(0, 200, "").expires, 600);
    // A minimum that makes no sense is a refusal, and one that grows forever, too.
    for minimum in ["", "Min-Expires: 0\r\n", "Min-Expires: 4000000000\r\n"] {
        let mut w = World::new(Rules::default(), 1);
        w.user("bob", w.at(100));
        w.take_and_answer(0, 423, minimum);
        assert_eq!(w.sent.len(), 0);
    }
    let mut w = World::new(Rules::default(), 1);
    w.user("bob", w.at(100));
    for minimum in 200.. {
        if w.sent.is_empty() {
            assert_eq!(minimum, 204);
            break;
        }
        w.take_and_answer(0, 423, &format!("Min-Expires: {minimum}\r\n"));
    }
}

#[test]
fn failures_are_tried_again_later_each_time() {
    let mut w = World::new(Rules::default(), 1);
    w.user("bob", w.at(24 * 3600));
    let mut gaps = Vec::new();
    while gaps.len() < 12 {
        w.take_and_answer(0, 500, "");
        let failed = w.now;
        while w.sent.is_empty() {
            w.pass_secs(1);
        }
        gaps.push((w.now - failed).as_secs());
    }
    let limits = [4, 8, 16, 32, 64, 128, 256, 512, 600, 600, 600, 600];
    for (gap, limit) in gaps.iter().zip(limits) {
        assert!((limit * 3 / 4..=limit + 1).contains(gap), "{gaps:?}");
    }
    assert_eq!((w.leg("bob", 0).failures, w.leg("bob", 0).last), (12, Some(500)));
    w.take_and_answer(0, 200, "");
    assert_eq!(w.leg("bob", 0).failures, 0);
    // 503 with Retry-After: nobody is told before.
    w.user("eve", w.at(90_000));
    w.take_and_answer(0, 503, "Retry-After: 300 (busy)\r\n");
    w.user("zoe", w.at(90_000));
    w.pass_secs(299);
    assert_eq!(w.sent.len(), 0);
    w.pass_secs(2);
    assert_eq!(w.agree().len(), 2);
}

#[test]
fn a_refusal_is_not_hammered() {
    let mut w = World::new(Rules::default(), 1);
    w.user("bob", w.at(3600));
    w.take_and_answer(0, 403, "");
    assert_eq!(w.leg("bob", 0).last, Some(403));
    assert_eq!(w.leg("bob", 0).registered_until, None);
    // His phone registers each minute.
    for minute in 1..59 {
        w.pass_secs(60);
        w.user("bob", w.at(minute * 60 + 3600));
        assert_eq!(w.sent.len(), 0, "{minute}");
    }
    w.pass_secs(120);
    assert_eq!(w.sent.len(), 1, "after an hour");
    w.take_and_answer(0, 404, "");
    // Gone and come: asked again at once.
    w.user("bob", None);
    w.take_and_answer(0, 404, "");
    assert_eq!(w.forking.users(), 0);
    w.user("bob", w.at(9000));
    assert_eq!(w.take_and_answer(0, 200, "").expires, 9000 - 59 * 60 - 60);
    // Who goes while he is being refused is taken back.
    w.user("eve", w.at(9000));
    w.user("eve", None);
    w.take_and_answer(0, 403, "");
    assert_eq!(w.take_and_answer(0, 200, "").expires, 0);
    assert_eq!(w.forking.users(), 1);
}

#[test]
fn challenges() {
    let mut w = World::new(Rules::default(), 1);
    for (status, ask, give) in [
        (401, "WWW-Authenticate", "Authorization"),
        (407, "Proxy-Authenticate", "Proxy-Authorization"),
    ] {
        w.user("bob", w.at(3600));
        let first = w.take_and_answer(0, status, &format!("{ask}: Digest realm=\"x\"\r\n"));
        let challenged = w.challenges.pop().unwrap();
        assert_eq!(challenged.challenges, ["Digest realm=\"x\""]);
        assert_eq!((&*challenged.user, &*challenged.uri), ("bob", "sip:10.0.0.1:5060"));
        assert_eq!(w.sent.len(), 0);
        assert!(w.leg("bob", 0).in_flight);
        assert!(w.forking.authorize(w.now, challenged.token, Some("Digest response=\"y\"")));
        w.collect();
        let second = w.sent[0].clone();
        assert!(second.text.contains(&format!("\r\n{give}: Digest response=\"y\"\r\n")));
        assert_ne!(second.token, challenged.token);
        let second = w.take_and_answer(0, 200, "");
        assert!(first.call_id == second.call_id && first.cseq < second.cseq);
        assert!(!w.forking.authorize(w.now, challenged.token, Some("late")));
        w.user("bob", None);
        w.agree();
    }
    // Stale once, and then it is enough.
    w.user("bob", w.at(3600));
    let ask = "WWW-Authenticate: Digest realm=\"x\"\r\n";
    for _ in 0..2 {
        w.take_and_answer(0, 401, ask);
        let token = w.challenges.pop().unwrap().token;
        w.forking.authorize(w.now, token, Some("Digest"));
        w.collect();
    }
    w.take_and_answer(0, 401, ask);
    assert_eq!((w.challenges.len(), w.sent.len(), w.leg("bob", 0).last), (0, 0, Some(401)));
    // No credentials, a forged line, or nobody who answers: a refusal, and the PBX is not to blame.
    for credentials in [Some(None), Some(Some("a\r\nX: y")), None] {
        w.user("bob", None);
        w.agree();
        w.user("bob", w.at(7000));
        w.take_and_answer(0, 401, ask);
        let token = w.challenges.pop().unwrap().token;
        match credentials {
            Some(credentials) => assert!(w.forking.authorize(w.now, token, credentials)),
            None => w.pass_secs(60),
        }
        w.collect();
        assert_eq!((w.sent.len(), w.leg("bob", 0).last), (0, Some(401)));
        assert!(!w.pbx(0).away);
    }
}

#[test]
fn a_pbx_that_is_away_is_told_when_it_is_back() {
    let rules = Rules { rate: 10, in_flight: 4, ..Rules::default() };
    let mut w = World::new(rules, 2);
    for n in 0..50 {
        w.user(&format!("u{n}"), w.at(10_000));
    }
    w.settle();
    w.forking.pbx_down(w.now, 1);
    // One goes, one comes, one changes; the other PBX hears of it.
    w.user("u0", None);
    w.user("new", w.at(9000));
    w.user("u1", w.at(8000));
    assert!(w.settle().iter().all(|said| said.slot == 0));
    w.pass_secs(600);
    assert_eq!(w.sent.len(), 0);
    assert!(w.pbx(1).away && w.leg("u2", 1).registered_until.is_some());
    assert_eq!(w.leg("u0", 1).next_try, None);
    w.forking.pbx_up(w.now, 1);
    w.collect();
    assert!(w.pbx(1).repairing);
    assert_eq!(w.leg("u2", 1).registered_until, None, "what it knew counts for nothing");
    let back = w.now;
    let mut told = Vec::new();
    while w.pbx(1).repairing || !w.sent.is_empty() {
        assert!(w.sent.len() <= 4);
        told.extend(w.agree());
        assert!(told.len() as u64 <= 12 + 10 * (w.now - back).as_secs());
        w.pass(Duration::from_millis(50));
    }
    assert!(told.iter().all(|said| said.slot == 1));
    let mut users: Vec<_> = told.iter().map(|said| (&*said.user, said.expires != 0)).collect();
    users.sort();
    assert_eq!(users.len(), 51);
    assert!(users.contains(&("u0", false)) && users.contains(&("new", true)));
    assert_eq!(w.forking.users(), 50);
    assert_eq!(w.leg("u1", 1).registered_until.map(|at| at - w.start).unwrap().as_secs(), 8000);
}

#[test]
fn who_goes_while_a_pbx_is_away_is_forgotten_in_time() {
    for silent in [false, true] {
        let mut w = World::new(Rules::default(), 1);
        w.user("bob", w.at(1000));
        w.agree();
        if silent {
            for n in 0..3 {
                w.user(&format!("x{n}"), w.at(500));
                w.time_out(0);
            }
        } else {
            w.forking.pbx_down(w.now, 0);
        }
        w.user("bob", None);
        for n in 0..3 {
            w.user(&format!("x{n}"), None);
        }
        assert_ne!(w.forking.users(), 0);
        for _ in 0..110 {
            w.pass_secs(10);
            while silent && !w.sent.is_empty() {
                w.time_out(0);
            }
        }
        assert_eq!(w.forking.users(), 0);
        // There is nobody left to try it with.
        w.pass_secs(700);
        assert_eq!((w.sent.len(), w.forking.poll_timeout()), (0, None));
    }
}

#[test]
fn a_silent_pbx_is_left_alone_and_comes_back() {
    let mut w = World::new(Rules::default(), 2);
    for n in 0..100 {
        w.user(&format!("u{n}"), w.at(100_000));
    }
    // The first dies in the middle: all that is on its way is lost.
    let mut tries = Vec::new();
    while w.now < w.at(3600).unwrap() {
        for register in std::mem::take(&mut w.sent) {
            if register.slot == 0 {
                tries.push(w.now - w.start);
            } else {
                w.answer(register.token, 200, "");
            }
        }
        if tries.len() == 40 {
            assert!(w.pbx(0).away && !w.pbx(1).away);
        }
        w.pass_secs(1);
    }
    assert!(tries.len() < 32 + 16, "left alone: {tries:?}");
    assert!(w.forking.legs("u50")[1].registered_until.is_some(), "the other one is told");
    assert_eq!(w.leg("u0", 0).last, Some(408));
    // It answers the next try, and then hears of all.
    while w.sent.is_empty() {
        w.pass_secs(1);
    }
    let mut users = std::collections::HashSet::new();
    for _ in 0..100 {
        users.extend(w.agree().into_iter().map(|said| said.user));
        w.pass(Duration::from_millis(50));
    }
    assert_eq!((users.len(), w.pbx(0).away, w.pbx(0).repairing), (100, false, false));
}

#[test]
fn the_pace_holds() {
    let mut w = World::new(Rules { rate: 50, in_flight: 8, ..Rules::default() }, 1);
    for n in 0..1000 {
        w.user(&format!("u{n}"), w.at(100_000));
    }
    assert_eq!(w.sent.len(), 6, "a first burst of a tenth of a second");
    w.pass_secs(5);
    assert_eq!(w.sent.len(), 8, "until some are answered");
    let start = w.now;
    let mut told = 0;
    while told < 1000 {
        told += w.agree().len();
        w.pass(Duration::from_millis(10));
    }
    let seconds = (w.now - start).as_secs_f64();
    assert!((19.0..21.0).contains(&seconds), "{seconds}");
}

#[test]
fn pbxs_come_and_go() {
    let mut w = World::new(Rules { max_users: 3, ..Rules::default() }, 1);
    for user in ["a", "b", "c"] {
        w.user(user, w.at(1000));
    }
    assert_eq!(w.forking.user_changed(w.now, "d", w.at(1000)), Err(Full::Users));
    w.agree();
    let address = PBX[1].parse().unwrap();
    assert_eq!(w.forking.pbx_added(w.now, 64, "x", address, true), Err(Full::Pbxs));
    w.forking.pbx_added(w.now, 5, "new", address, true).unwrap();
    w.pass_secs(1);
    let told = w.agree();
    assert!(told.len() == 3 && told.iter().all(|said| said.slot == 5));
    // Whom only a PBX has that is gone is forgotten.
    w.forking.pbx_down(w.now, 5);
    w.user("a", None);
    w.agree();
    assert_eq!(w.forking.users(), 3);
    let late = w.forking.pbxs().count();
    w.forking.pbx_removed(w.now, 5);
    assert_eq!((w.forking.users(), w.forking.pbxs().count()), (2, late - 1));
    // One of a family in which we have no address is never told.
    let mut forking = Forking::new(Rules::default(), &[PBX[0].parse().unwrap()], [1, 2]);
    forking.pbx_added(w.now, 0, "six", PBX[2].parse().unwrap(), true).unwrap();
    forking.user_changed(w.now, "a", w.at(500)).unwrap();
    assert_eq!((forking.poll_command(), forking.poll_timeout()), (None, None));
    assert!(!forking.handle_no_answer(w.now, Token(77)));
}

#[test]
fn a_burst_of_lost_ones_is_one_silence() {
    let mut w = World::new(Rules { in_flight: 32, ..Rules::default() }, 1);
    for n in 0..32 {
        w.user(&format!("u{n}"), w.at(100_000));
    }
    w.pass_secs(1);
    assert_eq!(w.sent.len(), 32);
    while !w.sent.is_empty() {
        w.time_out(0);
    }
    assert!(w.pbx(0).away);
    w.pass_secs(5);
    assert_eq!(w.sent.len(), 1, "tried again soon");
}
