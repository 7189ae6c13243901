//! What the kernel program tells of calls that the daemon does not carry: the answer or the refusal, and the end.

use sip_ebpf::Reason;
use sip_ebpf::calls::state;
use sip_ebpf::hash::Keys;
use sip_ebpf::header::Span;
use sip_ebpf::report::Report;
use sip_ebpf::tables::{EVENTS_OF_INVITES, Event, event, flag};
use sip_user::fastpath::{EventCounts, Events};
use sipline_tests::fixtures::subject::CALL_BUCKETS;
use sipline_tests::fixtures::world::{KEY, PHONE, PROXY, World, endpoint};
use sipline_tests::fixtures::{Message, Subject, each_build};

/// With records of its calls.
fn recorded(subject: &mut Subject) -> Events {
    set(subject, flag::RECORD);
    subject.tables().events().expect("the ring")
}

fn set(subject: &mut Subject, more: u32) {
    subject.change(|world| world.flags = World::default().flags.map(|flags| flags | more));
}

fn all(events: &mut Events) -> Vec<Event> {
    let mut all = Vec::new();
    while events.next(|event, _| all.push(event)) {}
    all
}

/// The reports, without INVITEs.
fn told(events: &mut Events) -> Vec<Report> {
    all(events).iter().filter_map(|event| Report::of_event(event.kind, event.status)).collect()
}

fn hash(call: &str) -> u64 {
    let span = Span { at: 0, end: call.len() as u32 };
    sip_ebpf::cookie::call(&Keys::new(KEY), call.as_bytes(), span).0
}

fn now() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is written.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn said(status: u16) -> Report {
    Report::Final { status, cancelled: false }
}

const BY_CALLER: Report = Report::Bye { by_caller: true };
const BY_CALLEE: Report = Report::Bye { by_caller: false };

#[test]
fn answer_and_end_are_told_once() {
    each_build(|subject| {
        let mut events = recorded(subject);
        let start = now();
        let invite = Message::invite(PHONE, "told");
        let (pbx, at_pbx) = subject.pass(PHONE, &invite, Reason::InviteSteered);
        let copies = all(&mut events);
        let kinds: Vec<_> = copies.iter().map(|event| (event.kind, event.call)).collect();
        assert_eq!(kinds, [(event::INVITE, hash("told"))]);
        for provisional in ["100 Trying", "180 Ringing"] {
            subject.pass(pbx, &at_pbx.response(provisional, "pbx"), Reason::ResponseForwarded);
        }
        assert_eq!(all(&mut events), []);
        let ok = at_pbx.response("200 OK", "pbx");
        let (_, ok_at_phone) = subject.pass(pbx, &ok, Reason::ResponseForwarded);
        subject.pass(pbx, &ok, Reason::ResponseForwarded);
        let answers = all(&mut events);
        let [answer] = answers[..] else { panic!("{answers:?}") };
        assert!((start..=now()).contains(&answer.time), "{answer:?}");
        let call = hash("told");
        let (src, dst, time) = (endpoint(pbx), endpoint(PROXY), answer.time);
        let (kind, status) = (event::FINAL, 200);
        let want = Event { kind, len: 0, src, dst, slot: 0, status, call, time };
        assert_eq!(answer, want);
        // What is inside the dialog and no end of it.
        for method in ["ACK", "INFO"] {
            subject.pass(PHONE, &ok_at_phone.next(method, PHONE, 1), Reason::DialogToPbx);
        }
        assert_eq!(all(&mut events), []);
        let bye = ok_at_phone.next("BYE", PHONE, 2);
        let (_, bye_at_pbx) = subject.pass(PHONE, &bye, Reason::DialogToPbx);
        // Its answer is none to an INVITE.
        subject.pass(pbx, &bye_at_pbx.response("200 OK", ""), Reason::ResponseForwarded);
        let ends = all(&mut events);
        let [end] = ends[..] else { panic!("{ends:?}") };
        assert_eq!((end.kind, end.call, end.src), (event::BYE_OF_CALLER, call, endpoint(PHONE)));
        let bye = at_pbx.next_back("BYE", pbx, 1);
        subject.pass(pbx, &bye, Reason::DialogToPhone);
        assert_eq!(told(&mut events), [BY_CALLEE]);
        let counts = EventCounts { copied: 1, told: 3, ..EventCounts::default() };
        assert_eq!(subject.tables().event_counts().unwrap(), counts);
    });
}

#[test]
fn refusals_are_told_with_their_status() {
    each_build(|subject| {
        let mut events = recorded(subject);
        for (n, (line, status)) in
            [("302 Elsewhere", 302), ("486 Busy Here", 486), ("503 No", 503), ("603 Decline", 603)]
                .into_iter()
                .enumerate()
        {
            let invite = Message::invite(PHONE, &format!("refused-{n}"));
            let (pbx, at_pbx) = subject.pass(PHONE, &invite, Reason::InviteSteered);
            subject.pass(pbx, &at_pbx.response(line, "pbx"), Reason::ResponseForwarded);
            assert_eq!(told(&mut events), [said(status)]);
            // With what was missing: what is said to that is told too.
            let again = invite.set("Via", "SIP/2.0/UDP 10.10.1.2:5061;branch=z9hG4bK2nd;rport");
            let (pbx, at_pbx) = subject.pass(PHONE, &again, Reason::InviteRepeated);
            subject.pass(pbx, &at_pbx.response("404 No", "pbx"), Reason::ResponseForwarded);
            assert_eq!(told(&mut events), [said(404)]);
        }
        let invite = Message::invite(PHONE, "cancelled");
        let (pbx, at_pbx) = subject.pass(PHONE, &invite, Reason::InviteSteered);
        let cancel =
            Message::request("CANCEL", PHONE, "cancelled").set("Via", &invite.value("Via"));
        subject.pass(PHONE, &cancel, Reason::CancelSteered);
        let terminated = at_pbx.response("487 Request Terminated", "pbx");
        subject.pass(pbx, &terminated, Reason::ResponseForwarded);
        assert_eq!(told(&mut events), [Report::Final { status: 487, cancelled: true }]);
        // Of a call that the table has forgotten it is told each time.
        let invite = Message::invite(PHONE, "forgotten");
        let (pbx, at_pbx) = subject.pass(PHONE, &invite, Reason::InviteSteered);
        for bucket in 0..CALL_BUCKETS {
            subject.tables().set_call_bucket(bucket, Default::default()).unwrap();
        }
        for _ in 0..2 {
            subject.pass(pbx, &at_pbx.response("200 OK", "pbx"), Reason::ResponseForwarded);
            assert_eq!(told(&mut events), [said(200)]);
        }
    });
}

#[test]
fn it_is_told_while_the_daemon_is_away_and_only_to_who_asks() {
    each_build(|subject| {
        let mut events = recorded(subject);
        let mut call = |subject: &mut Subject, call: &str| {
            let invite = Message::invite(PHONE, call);
            let (pbx, at_pbx) = subject.pass(PHONE, &invite, Reason::InviteSteered);
            let ok = at_pbx.response("200 OK", "pbx");
            let (_, ok) = subject.pass(pbx, &ok, Reason::ResponseForwarded);
            subject.pass(PHONE, &ok.next("BYE", PHONE, 2), Reason::DialogToPbx);
            let events = all(&mut events);
            events.iter().map(|event| event.kind).collect::<Vec<_>>()
        };
        let whole = [event::INVITE, event::FINAL, event::BYE_OF_CALLER];
        subject.change(|world| world.alive = false);
        assert_eq!(call(subject, "away"), whole);
        subject.reset();
        assert_eq!(call(subject, "nobody"), [0; 0]);
        set(subject, flag::SHADOW);
        assert_eq!(call(subject, "net"), [event::INVITE]);
        set(subject, flag::SHADOW | flag::RECORD);
        assert_eq!(call(subject, "both"), whole);
    });
}

#[test]
fn what_the_daemon_may_save_is_not_told_yet() {
    each_build(|subject| {
        let mut events = recorded(subject);
        set(subject, flag::SHADOW | flag::RECORD);
        let (pbx, at_pbx) =
            subject.pass(PHONE, &Message::invite(PHONE, "fails"), Reason::InviteSteered);
        let failed = at_pbx.response("503 Service Unavailable", "pbx");
        assert_eq!(subject.send(pbx, &failed).reason, Reason::SteeredFailed);
        assert_eq!(told(&mut events), []);
        // Without the net it goes by, and is.
        set(subject, flag::RECORD);
        subject.pass(pbx, &failed, Reason::ResponseForwarded);
        assert_eq!(told(&mut events), [said(503)]);
    });
}

#[test]
fn invites_leave_room_for_reports() {
    each_build(|subject| {
        let mut events = recorded(subject);
        let invite = Message::invite(PHONE, "first");
        let (pbx, at_pbx) = subject.pass(PHONE, &invite, Reason::InviteSteered);
        let most = EVENTS_OF_INVITES / 1024;
        for n in 0..most + 10 {
            let invite = Message::invite(PHONE, &format!("full-{n}"));
            subject.pass(PHONE, &invite, Reason::InviteSteered);
        }
        let ok = at_pbx.response("200 OK", "pbx");
        let (_, ok) = subject.pass(pbx, &ok, Reason::ResponseForwarded);
        subject.pass(PHONE, &ok.next("BYE", PHONE, 2), Reason::DialogToPbx);
        let counts = subject.tables().event_counts().unwrap();
        assert_eq!((counts.told, counts.untold), (2, 0));
        assert!(counts.copied >= most as u64 && counts.uncopied >= 10, "{counts:?}");
        assert_eq!(told(&mut events), [said(200), BY_CALLER]);
    });
}

#[test]
fn how_far_a_call_is_is_noted_for_who_asks() {
    each_build(|subject| {
        let (pbx, at_pbx) =
            subject.pass(PHONE, &Message::invite(PHONE, "noted"), Reason::InviteSteered);
        let ringing = at_pbx.response("180 Ringing", "pbx");
        let state_of = |subject: &mut Subject| {
            let hash = hash("noted");
            let index = sip_ebpf::calls::bucket(hash, CALL_BUCKETS - 1);
            let words = subject.tables().call_bucket(index).unwrap().words;
            sip_ebpf::calls::find(&words, hash, now()).expect("a call").state
        };
        subject.pass(pbx, &ringing, Reason::ResponseForwarded);
        assert_eq!(state_of(subject), 0, "nobody asks");
        set(subject, flag::RECORD);
        subject.pass(pbx, &ringing, Reason::ResponseForwarded);
        assert_eq!(state_of(subject), state::HEARD);
    });
}
