//! Accounting on virtual time.

mod steered;

use std::collections::{BTreeMap, HashSet};

use proptest::prelude::*;
use sip_ebpf::scan::Index;
use sip_ebpf::tables::OPEN_LEN;

use super::*;

const SECOND: Duration = Duration::from_secs(1);
/// 2012-05-01 00:00:00.000001 UTC.
const START: u64 = 1_335_830_400_000_001;

/// A clock that starts a second before all else here.
struct Clock(Instant);

impl Moments for Clock {
    fn to_clock(&self, at: Instant) -> u64 {
        1_000_000_000 + (at - self.0).as_nanos() as u64
    }

    fn at_clock(&self, time: u64) -> Instant {
        self.0 + Duration::from_nanos(time) - SECOND
    }
}

struct World {
    accounting: Accounting,
    start: Instant,
    now: Instant,
    records: Vec<Cdr>,
    /// What is kept of steered calls.
    open: BTreeMap<u64, Vec<u8>>,
}

impl World {
    fn new(rules: Rules) -> Self {
        let start = Instant::now();
        let clock = (start, UNIX_EPOCH + Duration::from_micros(START));
        let accounting = Accounting::new(rules, [1, 2], 0xabc, clock);
        Self { accounting, start, now: start, records: Vec::new(), open: BTreeMap::new() }
    }

    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.accounting.poll_timeout().filter(|next| *next <= end) {
            self.now = self.now.max(next);
            self.accounting.handle_timeout(self.now);
        }
        self.now = end;
        self.settle();
    }

    fn settle(&mut self) {
        while let Some(command) = self.accounting.poll_command() {
            match command {
                Command::Cdr(cdr) => self.records.push(*cdr),
                Command::Keep(hash) => {
                    let kept = self.accounting.kept(hash, &Clock(self.start));
                    assert!(kept.as_ref().is_none_or(|kept| kept.len() <= OPEN_LEN));
                    // Of one that is over meanwhile there is nothing left.
                    kept.into_iter().for_each(|kept| _ = self.open.insert(hash, kept));
                }
                Command::Drop(hash) => _ = self.open.remove(&hash),
            }
        }
    }

    fn invite(&mut self, call_id: &str, cseq: u32, pbx: Option<&str>) -> Option<Token> {
        let text = request("INVITE", call_id, cseq, ("ann", None));
        let mut index = Index::new();
        let message = Message::parse(text.as_bytes(), &mut index).unwrap();
        message.check().unwrap();
        let from = "192.0.2.5:5060".parse().unwrap();
        let invite = Invite { message: &message, from, pbx, account: Some("ann") };
        let token = self.accounting.handle_invite(self.now, invite);
        self.settle();
        token
    }

    fn call(&mut self) -> Token {
        self.invite("c1", 1, None).unwrap()
    }

    fn answered(&mut self, token: Token, tag: &str) {
        self.accounting.handle_answered(self.now, token, 200, Some(tag));
        self.settle();
    }

    fn failed(&mut self, token: Token, status: u16, by: By) {
        self.accounting.handle_failed(self.now, token, status, by);
        self.settle();
    }

    fn bye(&mut self, call_id: &str, from: &str, to: &str) -> bool {
        let text = request("BYE", call_id, 9, (from, Some(to)));
        let mut index = Index::new();
        let message = Message::parse(text.as_bytes(), &mut index).unwrap();
        let known = self.accounting.handle_bye(self.now, &message);
        self.settle();
        known
    }

    /// The one record that there is, and nothing else.
    #[track_caller]
    fn record(&mut self) -> Cdr {
        self.settle();
        assert_eq!(self.records.len(), 1, "{:?}", self.records);
        assert!(self.accounting.is_empty());
        assert_eq!(self.accounting.poll_timeout(), None);
        assert_eq!(self.accounting.by_key.len(), 0);
        assert!(self.open.is_empty());
        self.records.remove(0)
    }

    #[track_caller]
    fn outcome(&mut self) -> (Disposition, u16, Ending) {
        let cdr = self.record();
        (cdr.disposition, cdr.sip_code, cdr.ending)
    }
}

fn request(method: &str, call_id: &str, cseq: u32, tags: (&str, Option<&str>)) -> String {
    let to = tags.1.map_or(String::new(), |tag| format!(";tag={tag}"));
    format!(
        "{method} sip:201@example.com SIP/2.0\r\nVia: SIP/2.0/UDP 192.0.2.5;branch=z9hG4bK1\r\n\
         Max-Forwards: 70\r\nFrom: \"Ann\" <sip:101@example.com>;tag={}\r\n\
         To: <sip:201@example.com>{to}\r\nCall-ID: {call_id}\r\nCSeq: {cseq} {method}\r\n\r\n",
        tags.0
    )
}

fn pbx_address() -> SocketAddr {
    "192.0.2.11:5060".parse().unwrap()
}

#[test]
fn an_answered_call() {
    let mut world = World::new(Rules::default());
    let call = world.call();
    world.accounting.handle_target(call, Some("pbx1"), "192.0.2.10:5060".parse().unwrap());
    // It fails over.
    world.accounting.handle_target(call, Some("pbx2"), pbx_address());
    world.pass(2 * SECOND);
    world.accounting.handle_ringing(world.now, call);
    world.pass(SECOND);
    world.accounting.handle_ringing(world.now, call);
    {
        let views: Vec<_> = world.accounting.calls().collect();
        let [view] = &views[..] else { panic!("{views:?}") };
        assert_eq!(&*view.id, "1335830400.1-00000abc");
        assert_eq!((view.from, view.to, view.pbx), ("101", "201", Some("pbx2")));
        assert_eq!((view.state, view.since), (State::Ringing, world.start + 2 * SECOND));
        assert_eq!((view.callee, view.call_id), (Some(pbx_address()), "c1"));
    }
    world.pass(SECOND);
    world.answered(call, "bob");
    assert_eq!(world.accounting.calls().next().unwrap().state, State::Answered);
    world.pass(90 * SECOND + Duration::from_micros(7));
    assert!(world.bye("c1", "ann", "bob"));
    assert!(!world.bye("c1", "ann", "bob"), "its repetition");
    let want = Cdr {
        calldate: START,
        clid: "\"Ann\" <101>".into(),
        src: "101".into(),
        dst: "201".into(),
        dcontext: "example.com".into(),
        channel: "192.0.2.5:5060".into(),
        dstchannel: "pbx2".into(),
        lastapp: "dispatch",
        lastdata: "sip:201@example.com".into(),
        duration: 94 * SECOND + Duration::from_micros(7),
        billsec: 90 * SECOND + Duration::from_micros(7),
        disposition: Disposition::Answered,
        accountcode: "ann".into(),
        uniqueid: "1335830400.1-00000abc".into(),
        answerdate: Some(START + 4_000_000),
        enddate: START + 94_000_007,
        call_id: "c1".into(),
        sip_code: 200,
        ending: Ending::Caller,
        pbx: Some("pbx2".into()),
    };
    assert_eq!(world.record(), want);
    let counts = Counts { calls: 1, closed: 1, ..Counts::default() };
    assert_eq!(world.accounting.counts(), counts);
}

#[test]
fn a_call_of_a_pbx_to_a_phone() {
    let mut world = World::new(Rules::default());
    let call = world.invite("c1", 1, Some("pbx1")).unwrap();
    world.accounting.handle_target(call, None, "198.51.100.7:5062".parse().unwrap());
    world.answered(call, "bob");
    assert!(world.bye("c1", "bob", "ann"));
    let cdr = world.record();
    assert_eq!((&*cdr.channel, &*cdr.dstchannel), ("pbx1", "198.51.100.7:5062"));
    assert_eq!((cdr.lastapp, cdr.ending), ("location", Ending::Callee));
    assert_eq!(cdr.pbx.as_deref(), Some("pbx1"));
}

#[test]
fn failures() {
    for (status, by, want) in [
        (486, By::Callee, (Disposition::Busy, 486, Ending::Refused)),
        (404, By::Callee, (Disposition::Failed, 404, Ending::Refused)),
        (480, By::Callee, (Disposition::NoAnswer, 480, Ending::Refused)),
        (503, By::Proxy, (Disposition::Failed, 503, Ending::Proxy)),
        (408, By::Proxy, (Disposition::Failed, 408, Ending::Proxy)),
    ] {
        let mut world = World::new(Rules::default());
        let call = world.call();
        world.failed(call, status, by);
        assert_eq!(world.outcome(), want);
        // What comes too late is nobody's.
        world.answered(call, "bob");
        world.failed(call, 500, By::Proxy);
        assert!(world.records.is_empty());
    }
}

#[test]
fn a_missed_call_rang_until_the_limit() {
    let mut world = World::new(Rules::default());
    let call = world.call();
    world.accounting.handle_ringing(world.now, call);
    world.pass(40 * SECOND);
    world.failed(call, 408, By::Proxy);
    let cdr = world.record();
    assert_eq!((cdr.disposition, cdr.ending), (Disposition::NoAnswer, Ending::Proxy));
    assert_eq!((cdr.duration, cdr.billsec, cdr.answerdate), (40 * SECOND, Duration::ZERO, None));
}

#[test]
fn a_cancelled_call() {
    let mut world = World::new(Rules::default());
    let call = world.call();
    world.accounting.handle_cancelled(call);
    world.failed(call, 487, By::Callee);
    assert_eq!(world.outcome(), (Disposition::NoAnswer, 487, Ending::Cancelled));
    // Other servers answer otherwise, and it was the caller all the same.
    let call = world.call();
    world.accounting.handle_cancelled(call);
    world.failed(call, 401, By::Callee);
    assert_eq!(world.outcome(), (Disposition::NoAnswer, 401, Ending::Cancelled));
    // The phone was faster.
    let call = world.call();
    world.accounting.handle_cancelled(call);
    world.answered(call, "bob");
    world.bye("c1", "ann", "bob");
    assert_eq!(world.outcome(), (Disposition::Answered, 200, Ending::Caller));
}

#[test]
fn a_bye_in_an_early_dialog_gives_up() {
    let mut world = World::new(Rules::default());
    let call = world.call();
    assert!(!world.bye("c1", "bob", "ann"), "the callee cannot");
    assert!(world.bye("c1", "ann", "bob"));
    world.failed(call, 487, By::Callee);
    assert_eq!(world.outcome(), (Disposition::NoAnswer, 487, Ending::Cancelled));
    // It has overtaken the 2xx.
    let call = world.call();
    assert!(world.bye("c1", "ann", "bob"));
    world.answered(call, "bob");
    assert_eq!(world.outcome(), (Disposition::Answered, 200, Ending::Caller));
    // Another phone answers.
    let call = world.call();
    assert!(world.bye("c1", "ann", "bob"));
    world.answered(call, "cat");
    assert_eq!(world.accounting.len(), 1);
    assert!(world.bye("c1", "cat", "ann"));
    assert_eq!(world.outcome(), (Disposition::Answered, 200, Ending::Callee));
}

#[test]
fn several_phones_answer_one_call() {
    let mut world = World::new(Rules::default());
    let call = world.call();
    world.answered(call, "bob");
    world.pass(SECOND);
    world.answered(call, "cat");
    world.failed(call, 487, By::Callee);
    assert!(world.bye("c1", "ann", "cat"));
    assert!(!world.bye("c1", "ann", "dan"));
    assert_eq!(world.accounting.len(), 1);
    world.pass(SECOND);
    assert!(world.bye("c1", "bob", "ann"));
    let cdr = world.record();
    assert_eq!((cdr.billsec, cdr.ending), (2 * SECOND, Ending::Callee));
}

#[test]
fn an_invite_sent_again_is_the_same_call() {
    let mut world = World::new(Rules::default());
    let first = world.call();
    world.failed(first, 407, By::Callee);
    assert_eq!(world.accounting.calls().count(), 0);
    world.pass(SECOND);
    let second = world.invite("c1", 2, None).unwrap();
    assert_ne!(first, second);
    world.failed(first, 500, By::Callee);
    world.pass(20 * SECOND);
    world.answered(second, "bob");
    world.bye("c1", "ann", "bob");
    let cdr = world.record();
    assert_eq!((cdr.disposition, cdr.duration), (Disposition::Answered, 21 * SECOND));
    // Nobody sends it again: it ended when it failed.
    let call = world.call();
    world.pass(SECOND);
    world.failed(call, 407, By::Callee);
    world.pass(60 * SECOND);
    let cdr = world.record();
    assert_eq!((cdr.sip_code, cdr.duration, cdr.ending), (407, SECOND, Ending::Refused));
}

#[test]
fn a_spiral_is_one_call() {
    let mut world = World::new(Rules::default());
    let call = world.call();
    assert_eq!(world.invite("c1", 1, Some("pbx1")), None);
    world.answered(call, "bob");
    world.bye("c1", "ann", "bob");
    world.record();
    assert_eq!(world.accounting.counts().unrecorded, 0);
}

#[test]
fn a_used_call_id_is_another_call_when_the_first_is_answered() {
    let mut world = World::new(Rules::default());
    let first = world.call();
    world.answered(first, "bob");
    let second = world.invite("c1", 1, None).unwrap();
    world.answered(second, "cat");
    assert!(world.bye("c1", "ann", "cat"));
    assert!(world.bye("c1", "ann", "bob"));
    assert_eq!(world.records.len(), 2);
    assert_ne!(world.records[0].uniqueid, world.records[1].uniqueid);
}

#[test]
fn a_lost_bye() {
    let rules = Rules { longest_call: 3600 * SECOND, ..Rules::default() };
    let mut world = World::new(rules);
    let call = world.call();
    world.pass(SECOND);
    world.answered(call, "bob");
    world.pass(3599 * SECOND);
    assert!(world.records.is_empty());
    world.pass(2 * SECOND);
    let cdr = world.record();
    assert_eq!((cdr.disposition, cdr.ending), (Disposition::Answered, Ending::Limit));
    assert_eq!((cdr.billsec, cdr.duration), (3600 * SECOND, 3601 * SECOND));
    assert_eq!(world.accounting.counts().limited, 1);
    // A refusal that may be followed by another attempt gives it no more time than any call has.
    let call = world.call();
    world.pass(LONGEST_SETUP - 3 * SECOND);
    world.failed(call, 401, By::Callee);
    world.pass(3 * SECOND);
    assert_eq!(world.record().sip_code, 401);
    // A call whose end was never told.
    world.call();
    world.pass(LONGEST_SETUP);
    assert_eq!(world.outcome(), (Disposition::Failed, 408, Ending::Limit));
}

#[test]
fn a_stop_closes_all() {
    let mut world = World::new(Rules::default());
    let call = world.call();
    world.answered(call, "bob");
    let call = world.invite("c2", 1, None).unwrap();
    world.failed(call, 401, By::Callee);
    world.accounting.stop(world.now, false);
    world.settle();
    let endings: HashSet<_> = world.records.iter().map(|cdr| cdr.ending.as_str()).collect();
    assert_eq!(endings, HashSet::from(["stopped", "refused"]));
    assert_eq!(world.accounting.poll_timeout(), None);
}

#[test]
fn a_call_keeps_its_place_at_the_pbx() {
    use crate::config::{AdminState, PbxConfig, PbxLimits, Probe};
    use crate::core::dispatcher::{Dispatcher, Tried};
    use crate::core::family::Family;

    let mut world = World::new(Rules::default());
    let local = "192.0.2.1:5060".parse().unwrap();
    let mut dispatcher = Dispatcher::new(&[local], Probe::default());
    let pbx = PbxConfig {
        id: "pbx1".into(),
        address: pbx_address(),
        weight: 1,
        state: AdminState::Active,
        limits: PbxLimits { max_calls: 1, calls_per_second: 0 },
    };
    dispatcher.add(world.now, &pbx).unwrap();
    let mut place = |now| dispatcher.place(now, Family::V4, &Tried::default());
    let call = world.call();
    world.accounting.hold(call, place(world.now).unwrap().ticket);
    world.answered(call, "bob");
    assert!(place(world.now).is_err());
    world.bye("c1", "ann", "bob");
    world.accounting.hold(call, place(world.now).unwrap().ticket);
    assert!(place(world.now).is_ok(), "nobody is there to hold it");
}

#[test]
fn no_room() {
    let mut world = World::new(Rules { max_calls: 1, ..Rules::default() });
    let call = world.call();
    assert_eq!(world.invite("c2", 1, None), None);
    assert_eq!(world.accounting.counts().unrecorded, 1);
    world.failed(call, 404, By::Callee);
    assert!(world.invite("c2", 1, None).is_some());
}

#[test]
fn no_records_are_wanted() {
    let mut world = World::new(Rules::default());
    let open = world.call();
    // Of a configuration that is reloaded: the call that has a record keeps it.
    let none = Rules { max_calls: 0, ..Rules::default() };
    world.accounting.reload(none);
    assert_eq!(world.invite("c2", 1, None), None);
    world.answered(open, "bob");
    assert!(world.bye("c1", "ann", "bob"));
    world.record();
    assert_eq!(world.invite("c3", 1, None), None);
    // Nothing is missed that nobody asked for.
    assert_eq!(world.accounting.counts().unrecorded, 0);
}

#[test]
fn times_before_the_clock_and_after_it_is_set() {
    let mut world = World::new(Rules::default());
    assert_eq!(world.accounting.unix(world.start - SECOND), START - 1_000_000);
    let back = UNIX_EPOCH + SECOND;
    world.accounting.set_clock((world.start, back));
    assert_eq!(world.accounting.unix(world.start), 1_000_000);
    assert_eq!(world.accounting.unix(world.start - 5 * SECOND), 0);
}

#[derive(Clone, Debug)]
enum Step {
    /// Call, CSeq.
    Invite(usize, u32),
    /// One of the tokens so far, and what happens to it.
    Event(usize, Event),
    /// Call, whose tag stands in From, and in To.
    Bye(usize, usize, usize),
    Pass(u64),
}

#[derive(Clone, Debug)]
enum Event {
    Target,
    Ringing,
    Answered(usize),
    Failed(u16, bool),
    Cancelled,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let event = prop_oneof![
        1 => Just(Event::Target),
        2 => Just(Event::Ringing),
        4 => (1..4usize).prop_map(Event::Answered),
        4 => (prop_oneof![Just(401u16), Just(407), Just(302), 400..700u16], any::<bool>())
            .prop_map(|(status, ours)| Event::Failed(status, ours)),
        2 => Just(Event::Cancelled),
    ];
    let step = prop_oneof![
        4 => (0..5usize, 1..4u32).prop_map(|(call, cseq)| Step::Invite(call, cseq)),
        8 => (0..64usize, event).prop_map(|(token, event)| Step::Event(token, event)),
        4 => (0..5usize, 0..4usize, 0..4usize).prop_map(|(c, from, to)| Step::Bye(c, from, to)),
        2 => prop_oneof![0..5_000u64, 0..2_000_000u64].prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..120)
}

proptest! {
    #[test]
    fn every_call_gives_exactly_one_record(steps in steps()) {
        const TAGS: [&str; 4] = ["ann", "bob", "cat", "dan"];
        let rules = Rules { max_calls: 4, longest_call: 600 * SECOND };
        let mut world = World::new(rules);
        let mut tokens = Vec::new();
        // Each call by what its record will be known by, and its attempts.
        let mut known: BTreeMap<Box<str>, usize> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Invite(call, cseq) => {
                    let before = world.accounting.counts();
                    let full = world.accounting.len() == rules.max_calls;
                    let token = world.invite(&format!("c{call}"), cseq, None);
                    let after = world.accounting.counts();
                    let opened = after.calls - before.calls;
                    // It has a record of its own, that of a call that goes on, or was counted as without.
                    prop_assert!(opened <= u64::from(token.is_some()));
                    if after.unrecorded > before.unrecorded {
                        prop_assert!(full && token.is_none());
                    }
                    if let Some(token) = token {
                        let call = &world.accounting.calls[token.slot as usize];
                        *known.entry(world.accounting.unique_id(call)).or_default() += 1;
                        tokens.push(token);
                    }
                }
                Step::Event(at, event) if !tokens.is_empty() => {
                    let token = tokens[at % tokens.len()];
                    match event {
                        Event::Target => {
                            world.accounting.handle_target(token, Some("pbx1"), pbx_address());
                        }
                        Event::Ringing => world.accounting.handle_ringing(world.now, token),
                        Event::Answered(tag) => world.answered(token, TAGS[tag]),
                        Event::Failed(status, ours) => {
                            world.failed(token, status, if ours { By::Proxy } else { By::Callee });
                        }
                        Event::Cancelled => world.accounting.handle_cancelled(token),
                    }
                }
                Step::Event(..) => {}
                Step::Bye(call, from, to) => {
                    world.bye(&format!("c{call}"), TAGS[from], TAGS[to]);
                }
                Step::Pass(milliseconds) => world.pass(Duration::from_millis(milliseconds)),
            }
            let counts = world.accounting.counts();
            prop_assert!(world.accounting.len() <= rules.max_calls);
            prop_assert_eq!(counts.calls, counts.closed + world.accounting.len() as u64);
            prop_assert_eq!(world.accounting.by_key.len(), world.accounting.len());
            prop_assert_eq!(world.accounting.ends.len(), world.accounting.len());
        }
        // By the limits, everything ends.
        world.pass(2 * LONGEST_SETUP);
        prop_assert!(world.accounting.is_empty());
        prop_assert_eq!(world.records.len(), known.len());
        let mut seen = HashSet::new();
        for cdr in &world.records {
            prop_assert!(known.contains_key(&cdr.uniqueid));
            prop_assert!(seen.insert(cdr.uniqueid.clone()), "twice: {}", cdr.uniqueid);
            prop_assert!(cdr.uniqueid.len() <= 32);
            let micros = u64::try_from(cdr.duration.as_micros()).unwrap();
            prop_assert_eq!(cdr.enddate - cdr.calldate, micros);
            prop_assert!(cdr.billsec <= cdr.duration);
            let is_answered = cdr.disposition == Disposition::Answered;
            prop_assert_eq!(is_answered, cdr.answerdate.is_some());
            prop_assert_eq!(is_answered, cdr.sip_code == 200);
            if let Some(answered) = cdr.answerdate {
                prop_assert_eq!(u64::try_from(cdr.billsec.as_micros()).unwrap(), cdr.enddate - answered);
                prop_assert!(cdr.duration <= LONGEST_SETUP + rules.longest_call);
            }
        }
    }
}
