//! Calls through the kernel program, packet by packet: who gets what, and what is remembered.

use std::net::SocketAddrV4;
use std::thread::sleep;
use std::time::Duration;

use sip_ebpf::Reason;
use sip_ebpf::calls;
use sip_ebpf::hash::Keys;
use sip_ebpf::tables::PbxState;
use sipline_tests::fixtures::subject::{CALL_BUCKETS, at};
use sipline_tests::fixtures::world::{KEY, PBX1, PBX2, PHONE, PROXY, endpoint, pbx};
use sipline_tests::fixtures::{Frame, Message, Subject, each_build};

/// Sets a call up until the ACK; gives the PBX and the 200 as the phone has it.
fn set_up(subject: &mut Subject, call: &str) -> (SocketAddrV4, Message) {
    let invite = Message::invite(PHONE, call);
    let (pbx, at_pbx) = subject.pass(PHONE, &invite, Reason::InviteSteered);
    let via = at_pbx.value("Via");
    assert!(via.starts_with("SIP/2.0/UDP 10.10.0.1:5060;branch=z9hG4bKslk"), "{via}");
    let ringing = at_pbx.response("180 Ringing", "pbx");
    assert_eq!(subject.pass(pbx, &ringing, Reason::ResponseForwarded).0, PHONE);
    let ok = at_pbx
        .response("200 OK", "pbx")
        .with_body("v=0\r\n")
        .line(&format!("Contact: <sip:{pbx}>"));
    let (to, ok) = subject.pass(pbx, &ok, Reason::ResponseForwarded);
    assert_eq!(to, PHONE);
    let ack = ok.next("ACK", PHONE, 1);
    assert_eq!(subject.pass(PHONE, &ack, Reason::DialogToPbx).0, pbx);
    (pbx, ok)
}

#[test]
fn a_call_that_the_phone_ends() {
    each_build(|subject| {
        let (pbx, ok) = set_up(subject, "phone-ends");
        let bye = ok.next("BYE", PHONE, 2);
        let (to, at_pbx) = subject.pass(PHONE, &bye, Reason::DialogToPbx);
        assert_eq!(to, pbx);
        assert!(at_pbx.values("Route").is_empty() && at_pbx.values("Record-Route").is_empty());
        let ok = at_pbx.response("200 OK", "");
        let (to, ok) = subject.pass(pbx, &ok, Reason::ResponseForwarded);
        assert_eq!((to, ok.values("Via").len()), (PHONE, 1));
    });
}

#[test]
fn a_call_that_the_pbx_ends() {
    each_build(|subject| {
        let (pbx, ok) = set_up(subject, "pbx-ends");
        let bye = ok.next_back("BYE", pbx, 1);
        let (to, at_phone) = subject.pass(pbx, &bye, Reason::DialogToPhone);
        assert_eq!(to, PHONE);
        assert!(at_phone.values("Route").is_empty());
        // The answer comes from the phone and goes to the PBX.
        let ok = at_phone.response("200 OK", "");
        let (to, ok) = subject.pass(PHONE, &ok, Reason::ResponseForwarded);
        assert_eq!((to, ok.values("Via").len()), (pbx, 1));
    });
}

/// A phone behind a NAT: what it says of itself is not where it is.
#[test]
fn a_call_from_behind_a_nat() {
    each_build(|subject| {
        let outside = at([10, 10, 1, 2], 40_001);
        let invite = Message::invite(at([192, 168, 7, 7], 5060), "nat");
        let (pbx, at_pbx) = subject.pass(outside, &invite, Reason::InviteSteered);
        assert!(at_pbx.values("Via")[1].ends_with(";rport=40001;received=10.10.1.2"), "{at_pbx:?}");
        let ok = at_pbx.response("200 OK", "pbx");
        let (to, ok) = subject.pass(pbx, &ok, Reason::ResponseForwarded);
        assert_eq!(to, outside);
        let bye = ok.next_back("BYE", pbx, 1);
        assert_eq!(subject.pass(pbx, &bye, Reason::DialogToPhone).0, outside);
    });
}

/// An established dialog needs no table: the daemon may be new, its call table empty.
#[test]
fn a_dialog_outlives_the_call_table() {
    each_build(|subject| {
        let (pbx, ok) = set_up(subject, "outlives");
        for bucket in 0..CALL_BUCKETS {
            subject.tables().set_call_bucket(bucket, Default::default()).unwrap();
        }
        let bye = ok.next("BYE", PHONE, 2);
        assert_eq!(subject.pass(PHONE, &bye, Reason::DialogToPbx).0, pbx);
    });
}

#[test]
fn retransmissions_follow_the_first_copy() {
    each_build(|subject| {
        let invite = Message::invite(PHONE, "again");
        let (pbx, first) = subject.pass(PHONE, &invite, Reason::InviteSteered);
        for n in 0..7 {
            let other = Message::invite(PHONE, &format!("other-{n}"));
            subject.pass(PHONE, &other, Reason::InviteSteered);
            let (again, copy) = subject.pass(PHONE, &invite, Reason::InviteRepeated);
            assert_eq!((again, &copy), (pbx, &first), "a retransmission is the same message");
        }
    });
}

#[test]
fn a_refused_call_and_its_ack() {
    each_build(|subject| {
        let invite = Message::invite(PHONE, "busy");
        let (pbx, at_pbx) = subject.pass(PHONE, &invite, Reason::InviteSteered);
        let busy = at_pbx.response("486 Busy Here", "busy");
        let (to, busy) = subject.pass(pbx, &busy, Reason::ResponseForwarded);
        assert_eq!(to, PHONE);
        // 17.1.1.3: the INVITE's Via, the To of the response, no Route.
        let ack = Message::request("ACK", PHONE, "busy")
            .set("Via", &invite.value("Via"))
            .set("To", &busy.value("To"));
        let (to, ack) = subject.pass(PHONE, &ack, Reason::AckSteered);
        assert_eq!((to, &ack.values("Via")[0]), (pbx, &at_pbx.values("Via")[0]));
    });
}

#[test]
fn a_cancelled_call() {
    each_build(|subject| {
        let invite = Message::invite(PHONE, "cancelled");
        let (pbx, at_pbx) = subject.pass(PHONE, &invite, Reason::InviteSteered);
        let cancel =
            Message::request("CANCEL", PHONE, "cancelled").set("Via", &invite.value("Via"));
        let (to, cancel) = subject.pass(PHONE, &cancel, Reason::CancelSteered);
        assert_eq!((to, &cancel.values("Via")[0]), (pbx, &at_pbx.values("Via")[0]));
        let ok = cancel.response("200 OK", "pbx");
        assert_eq!(subject.pass(pbx, &ok, Reason::ResponseForwarded).0, PHONE);
    });
}

#[test]
fn calls_go_round_by_the_schedule() {
    each_build(|subject| {
        subject.change(|world| world.set_turns(&[0, 1, 0, 0]));
        let mut got = Vec::new();
        for n in 0..40 {
            let invite = Message::invite(PHONE, &format!("round-{n}"));
            got.push(subject.pass(PHONE, &invite, Reason::InviteSteered).0);
        }
        for round in got.chunks(4) {
            assert_eq!(round, [PBX1, PBX2, PBX1, PBX1]);
        }
        let steered = subject.tables().steered().unwrap();
        assert_eq!((steered[0], steered[1]), (30, 10));
        assert_eq!(steered.iter().sum::<u64>(), 40);
    });
}

#[test]
fn only_new_calls_count_as_steered() {
    each_build(|subject| {
        set_up(subject, "counted");
        subject.pass(PHONE, &Message::invite(PHONE, "counted"), Reason::InviteRepeated);
        assert_eq!(subject.tables().steered().unwrap().iter().sum::<u64>(), 1);
    });
}

/// The call may still be saved: what comes again goes to another, and all that follows with it.
#[test]
fn calls_of_a_dead_pbx_move() {
    each_build(|subject| {
        let invite = Message::invite(PHONE, "saved");
        let (dead, _) = subject.pass(PHONE, &invite, Reason::InviteSteered);
        let (slot, other) = if dead == PBX1 { (0, PBX2) } else { (1, PBX1) };
        subject.set_state(slot, PbxState::Inactive);
        // The daemon may not have written the schedule yet: the program looks at the state itself.
        let (now, _) = subject.pass(PHONE, &invite, Reason::InviteSteered);
        assert_eq!(now, other);
        let (still, _) = subject.pass(PHONE, &invite, Reason::InviteRepeated);
        assert_eq!(still, other);
        let cancel = Message::request("CANCEL", PHONE, "saved").set("Via", &invite.value("Via"));
        assert_eq!(subject.pass(PHONE, &cancel, Reason::CancelSteered).0, other);
    });
}

#[test]
fn a_draining_pbx_keeps_its_calls_and_gets_no_new_ones() {
    each_build(|subject| {
        let invite = Message::invite(PHONE, "kept");
        let (pbx, at_pbx) = subject.pass(PHONE, &invite, Reason::InviteSteered);
        let slot = usize::from(pbx == PBX2);
        subject.change(|world| {
            world.pbxs[slot].state = PbxState::Draining as u8;
            world.set_turns(&[1 - slot as u8]);
        });
        assert_eq!(subject.pass(PHONE, &invite, Reason::InviteRepeated).0, pbx);
        for n in 0..5 {
            let new = Message::invite(PHONE, &format!("new-{n}"));
            assert_ne!(subject.pass(PHONE, &new, Reason::InviteSteered).0, pbx);
        }
        let ok = at_pbx.response("200 OK", "pbx");
        let (_, ok) = subject.pass(pbx, &ok, Reason::ResponseForwarded);
        let bye = ok.next("BYE", PHONE, 2);
        assert_eq!(subject.pass(PHONE, &bye, Reason::DialogToPbx).0, pbx);
    });
}

/// The call table forgets a call after [`calls::LIFE`]: made older by hand, for the clock is the
/// kernel's.
#[test]
fn calls_are_forgotten_in_time() {
    each_build(|subject| {
        let invite = Message::invite(PHONE, "old");
        subject.pass(PHONE, &invite, Reason::InviteSteered);
        let mut seen = 0;
        for number in 0..CALL_BUCKETS {
            let mut bucket = subject.tables().call_bucket(number).unwrap();
            for word in bucket.words.iter_mut().filter(|word| **word != 0) {
                let put = (*word >> 10) as u16;
                let older = put.wrapping_sub(calls::LIFE + 1) & 0x3fff;
                *word = *word & !0x00ff_fc00 | u64::from(older) << 10;
                seen += 1;
            }
            subject.tables().set_call_bucket(number, bucket).unwrap();
        }
        assert_eq!(seen, 1, "one call stands in the table");
        let cancel = Message::request("CANCEL", PHONE, "old").set("Via", &invite.value("Via"));
        let before = subject.tables().counters().unwrap()[Reason::UnknownCall as usize];
        // The host's table has no age, so this goes past the comparison with it.
        subject.run_alone("ph", &Frame::new(PHONE, PROXY, cancel).bytes());
        let after = subject.tables().counters().unwrap()[Reason::UnknownCall as usize];
        assert_eq!(after, before + 1);
    });
}

/// The daemon finds what it needs to follow the kernel's calls.
#[test]
fn the_daemon_can_read_the_call_table() {
    each_build(|subject| {
        let (pbx, _) = subject.pass(PHONE, &Message::invite(PHONE, "read"), Reason::InviteSteered);
        let text: &[u8] = b"read";
        let span = sip_ebpf::header::Span { at: 0, end: 4 };
        let (hash, _) = sip_ebpf::cookie::call(&Keys::new(KEY), text, span);
        let number = calls::bucket(hash, CALL_BUCKETS - 1);
        let bucket = subject.tables().call_bucket(number).expect("a bucket");
        let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `now` is written.
        unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
        let now = now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64;
        let slot = u32::from(pbx == PBX2);
        let call = calls::Call { slot, state: 0 };
        assert_eq!(calls::find(&bucket.words, hash, now), Some(call));
        assert!(subject.tables().call_bucket(CALL_BUCKETS).is_none());
    });
}

#[test]
fn a_heartbeat_runs_out() {
    each_build(|subject| {
        let options = Message::request("OPTIONS", PHONE, "beat");
        assert_eq!(subject.send(PHONE, &options).reason, Reason::OptionsAnswered);
        subject.tables().heartbeat(Duration::from_millis(50)).unwrap();
        // The coarse clock moves in steps of 10 ms at most.
        sleep(Duration::from_millis(80));
        let before = subject.tables().counters().unwrap()[Reason::HeartbeatStale as usize];
        subject.run_alone("ph", &Frame::new(PHONE, PROXY, &options).bytes());
        let after = subject.tables().counters().unwrap()[Reason::HeartbeatStale as usize];
        assert_eq!(after, before + 1);
        // Calls go on: the tables are good without a daemon.
        subject.pass(PHONE, &Message::invite(PHONE, "beat"), Reason::InviteSteered);
    });
}

/// For so long calls are placed without a daemon; those that are there already go on.
#[test]
fn new_calls_end_when_the_daemon_has_been_gone_for_long() {
    each_build(|subject| {
        let (pbx, ok) = set_up(subject, "outlived");
        let invite = Message::invite(PHONE, "known");
        let (known, _) = subject.pass(PHONE, &invite, Reason::InviteSteered);
        subject.tables().set_outlive(Duration::from_millis(50));
        subject.tables().heartbeat(Duration::from_secs(1)).unwrap();
        sleep(Duration::from_millis(80));
        let counted =
            |subject: &mut Subject| subject.tables().counters().unwrap()[Reason::NoPbx as usize];
        let before = counted(subject);
        let late = Message::invite(PHONE, "late");
        subject.run_alone("ph", &Frame::new(PHONE, PROXY, &late).bytes());
        assert_eq!(counted(subject), before + 1);
        // One whose INVITE comes again stays where it is, and so does all that is in a call.
        assert_eq!(subject.pass(PHONE, &invite, Reason::InviteRepeated).0, known);
        let bye = ok.next("BYE", PHONE, 2);
        assert_eq!(subject.pass(PHONE, &bye, Reason::DialogToPbx).0, pbx);

        // Zero is for ever; and one who withdraws what it vouched for changes nothing about calls.
        subject.tables().set_outlive(Duration::ZERO);
        subject.tables().heartbeat(Duration::from_secs(1)).unwrap();
        subject.tables().heartbeat(Duration::ZERO).unwrap();
        subject.pass(PHONE, &late, Reason::InviteSteered);
    });
}

#[test]
fn tables_follow_their_changes() {
    each_build(|subject| {
        let invite = |call: &str| Message::invite(PHONE, call);
        // Another address of ours beside the first, then in its place.
        let second = at([10, 10, 0, 1], 5070);
        let local = |at: SocketAddrV4| (endpoint(at), sip_ebpf::insert::local(endpoint(at)));
        let to_second = Frame::new(PHONE, second, invite("second"));
        assert_eq!(subject.run(&to_second).reason, Reason::NotOurs);
        subject.change(|world| world.locals.push(local(second)));
        let outcome = subject.run(&to_second);
        assert_eq!(outcome.reason, Reason::InviteSteered);
        assert!(outcome.text().contains("Via: SIP/2.0/UDP 10.10.0.1:5070;"));
        subject.change(|world| world.locals.retain(|(at, _)| *at == endpoint(second)));
        assert_eq!(subject.send(PHONE, invite("first")).reason, Reason::NotOurs);
        subject.reset();

        // A network that is trusted no more.
        subject.change(|world| world.sources.retain(|(net, _)| net.addr().octets()[2] != 1));
        assert_eq!(subject.send(PHONE, invite("distrust")).reason, Reason::Untrusted);
        subject.reset();

        // A PBX that moves: its old address is a phone's again.
        let moved = at([10, 10, 2, 2], 5080);
        assert_eq!(subject.send(PBX1, Message::invite(PBX1, "pbx")).reason, Reason::FromPbx);
        subject.change(|world| world.pbxs[0] = pbx(moved, PbxState::Active));
        assert_eq!(subject.send(PBX1, Message::invite(PBX1, "pbx")).reason, Reason::Untrusted);
        assert_eq!(subject.send(moved, Message::invite(moved, "pbx")).reason, Reason::FromPbx);
        subject.change(|world| world.set_turns(&[0]));
        assert_eq!(subject.pass(PHONE, &invite("moved"), Reason::InviteSteered).0, moved);
        // And goes.
        subject.set_state(0, PbxState::Unused);
        assert_eq!(subject.send(moved, Message::invite(moved, "pbx")).reason, Reason::Untrusted);
    });
}
