//! What the kernel program tells of the calls that it steers, and what it leaves to the daemon.

use std::sync::atomic::Ordering;

use sip_ebpf::Reason;
use sip_ebpf::calls::{self, state};
use sip_ebpf::hash::Keys;
use sip_ebpf::header::Span;
use sip_ebpf::tables::{EVENTS_OF_INVITES, Event, event, flag};
use sip_user::fastpath::{EventCounts, Events};
use sipline_tests::fixtures::subject::CALL_BUCKETS;
use sipline_tests::fixtures::world::{KEY, PBX1, PBX2, PHONE, PROXY, World, endpoint};
use sipline_tests::fixtures::{Message, Subject, each_build};

/// With the net under its calls.
fn guarded(subject: &mut Subject) -> Events {
    subject.change(|world| world.flags = World::default().flags.map(|flags| flags | flag::SHADOW));
    subject.tables().events().expect("the ring")
}

fn all(events: &mut Events) -> Vec<(Event, Vec<u8>)> {
    let mut all = Vec::new();
    while events.next(|event, text| all.push((event, text.to_vec()))) {}
    all
}

fn hash_of(call: &str) -> u64 {
    let span = Span { at: 0, end: call.len() as u32 };
    sip_ebpf::cookie::call(&Keys::new(KEY), call.as_bytes(), span).0
}

/// What the table says of a call.
fn state_of(subject: &mut Subject, call: &str) -> u32 {
    let hash = hash_of(call);
    let words = subject.tables().call_bucket(calls::bucket(hash, CALL_BUCKETS - 1)).unwrap().words;
    let (_, call, _) = calls::note(&words, hash, now(), 0).expect("a call");
    call.state
}

/// As the daemon does it: the memory is the program's own.
fn take(subject: &mut Subject, call: &str) {
    let hash = hash_of(call);
    let table = subject.tables().calls();
    let bucket = table.bucket(calls::bucket(hash, CALL_BUCKETS - 1)).expect("a bucket");
    let words = bucket.each_ref().map(|word| word.load(Ordering::Relaxed));
    let (at, _, add) = calls::note(&words, hash, now(), state::TAKEN).expect("a call");
    bucket[at as usize].fetch_or(add, Ordering::Relaxed);
}

fn now() -> u64 {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is written.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

fn cancel(invite: &Message, call: &str) -> Message {
    Message::request("CANCEL", PHONE, call).set("Via", &invite.value("Via"))
}

#[test]
fn an_invite_is_copied_as_it_came() {
    each_build(|subject| {
        let mut events = guarded(subject);
        let short = Message::invite(PHONE, "short");
        let long = Message::invite(PHONE, "long").line(&format!("Subject: {}", "x".repeat(300)));
        for invite in [&short, &long] {
            let (pbx, _) = subject.pass(PHONE, invite, Reason::InviteSteered);
            subject.pass(PHONE, invite, Reason::InviteRepeated);
            let told = all(&mut events);
            assert_eq!(told.len(), 2, "each copy");
            for (event, text) in told {
                assert_eq!(text, invite.bytes());
                let slot = u32::from(pbx == PBX2);
                let (src, dst) = (endpoint(PHONE), endpoint(PROXY));
                let len = text.len() as u32;
                // Of the last tick of the kernel's clock.
                let (call, time) = (hash_of(&invite.value("Call-ID")), event.time);
                assert!(now() - time < 1_000_000_000, "{event:?}");
                let (kind, status) = (event::INVITE, 0);
                assert_eq!(event, Event { kind, len, src, dst, slot, status, call, time });
            }
        }
        let four = EventCounts { copied: 4, ..EventCounts::default() };
        assert_eq!(subject.tables().event_counts().unwrap(), four);
        // Nothing else is told, and nothing when nobody listens.
        subject.send(PHONE, Message::request("OPTIONS", PHONE, "o"));
        subject.change(|world| world.alive = false);
        subject.pass(PHONE, &Message::invite(PHONE, "dead"), Reason::InviteSteered);
        subject.reset();
        subject.pass(PHONE, &Message::invite(PHONE, "off"), Reason::InviteSteered);
        assert_eq!(all(&mut events), []);
        assert_eq!(subject.tables().event_counts().unwrap(), four);
    });
}

#[test]
fn a_full_ring_is_counted_and_the_call_goes_on() {
    each_build(|subject| {
        let mut events = guarded(subject);
        let most = EVENTS_OF_INVITES / 1024;
        for n in 0..most + 10 {
            subject.pass(
                PHONE,
                &Message::invite(PHONE, &format!("full-{n}")),
                Reason::InviteSteered,
            );
        }
        let counts = subject.tables().event_counts().unwrap();
        let (put, full) = (counts.copied, counts.uncopied);
        assert_eq!((put + full, full >= 10), (most as u64 + 10, true));
        assert_eq!(all(&mut events).len() as u64, put);
        subject.pass(PHONE, &Message::invite(PHONE, "room"), Reason::InviteSteered);
        assert_eq!(all(&mut events).len(), 1);
    });
}

#[test]
fn how_far_a_call_is_stands_in_the_table() {
    each_build(|subject| {
        let _events = guarded(subject);
        let invite = Message::invite(PHONE, "far");
        let (pbx, at_pbx) = subject.pass(PHONE, &invite, Reason::InviteSteered);
        assert_eq!(state_of(subject, "far"), 0);
        subject.pass(PHONE, &invite, Reason::InviteRepeated);
        assert_eq!(state_of(subject, "far"), 0);
        subject.pass(pbx, &at_pbx.response("100 Trying", ""), Reason::ResponseForwarded);
        assert_eq!(state_of(subject, "far"), state::HEARD);
        subject.pass(PHONE, &cancel(&invite, "far"), Reason::CancelSteered);
        assert_eq!(state_of(subject, "far"), state::HEARD | state::CANCELLED);
        subject.pass(
            pbx,
            &at_pbx.response("487 Request Terminated", "x"),
            Reason::ResponseForwarded,
        );
        let all = state::HEARD | state::CANCELLED | state::ENDED;
        assert_eq!(state_of(subject, "far"), all);
        // Another transaction of the call begins.
        let again = invite.set("Via", "SIP/2.0/UDP 10.10.1.2:5061;branch=z9hG4bKsecond;rport");
        assert_eq!(subject.pass(PHONE, &again, Reason::InviteRepeated).0, pbx);
        assert_eq!(state_of(subject, "far"), 0);
        // What is no answer to an INVITE says nothing of it.
        let ok = cancel(&Message::invite(PHONE, "far"), "far");
        let (_, at_pbx) = subject.pass(PHONE, &ok, Reason::CancelSteered);
        subject.pass(pbx, &at_pbx.response("200 OK", ""), Reason::ResponseForwarded);
        assert_eq!(state_of(subject, "far"), state::CANCELLED);
    });
}

#[test]
fn a_pbx_that_cannot_is_the_daemons_business() {
    each_build(|subject| {
        let _events = guarded(subject);
        let (pbx, at_pbx) =
            subject.pass(PHONE, &Message::invite(PHONE, "fails"), Reason::InviteSteered);
        for status in ["500 Server Internal Error", "503 Service Unavailable", "599 Odd"] {
            let failed = at_pbx.response(status, "pbx");
            assert_eq!(subject.send(pbx, &failed).reason, Reason::SteeredFailed);
        }
        assert_eq!(state_of(subject, "fails"), 0, "it is not decided yet");
        let busy = at_pbx.response("486 Busy Here", "pbx");
        subject.pass(pbx, &busy, Reason::ResponseForwarded);
        // Nobody is there who would do better.
        let failed = at_pbx.response("503 Service Unavailable", "pbx");
        subject.change(|world| world.alive = false);
        subject.pass(pbx, &failed, Reason::ResponseForwarded);
        subject.reset();
        subject.pass(pbx, &failed, Reason::ResponseForwarded);
    });
}

#[test]
fn what_the_daemon_has_taken_over_is_the_daemons() {
    each_build(|subject| {
        let _events = guarded(subject);
        let invite = Message::invite(PHONE, "taken");
        let (pbx, at_pbx) = subject.pass(PHONE, &invite, Reason::InviteSteered);
        take(subject, "taken");
        // The host's table must know too, or the fixtures compare with what it does not.
        subject.take("taken");
        let up = |subject: &mut Subject, from, message: &Message| {
            assert_eq!(subject.send(from, message).reason, Reason::TakenOver, "{}", message.start);
        };
        up(subject, PHONE, &invite);
        up(subject, PHONE, &cancel(&invite, "taken"));
        let ack = Message::request("ACK", PHONE, "taken")
            .set("Via", &invite.value("Via"))
            .set("To", "<sip:x@y>;tag=1");
        up(subject, PHONE, &ack);
        for late in ["100 Trying", "180 Ringing", "200 OK", "486 Busy Here"] {
            up(subject, pbx, &at_pbx.response(late, "late"));
        }
        // Also when its PBX is found dead.
        let slot = usize::from(pbx != PBX1);
        subject.set_state(slot, sip_ebpf::tables::PbxState::Inactive);
        up(subject, PHONE, &invite);
    });
}
