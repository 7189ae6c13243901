//! Calls that are carried without memory.

use sip_ebpf::report::Report;

use super::*;
use crate::core::accounting::steered::{MOST_EARLY, MOST_OVER};

const HASH: u64 = 0x1234;
const ANSWER: Report = Report::Final { status: 200, cancelled: false };
const BY_CALLER: Report = Report::Bye { by_caller: true };
const BY_CALLEE: Report = Report::Bye { by_caller: false };

fn failed(status: u16) -> Report {
    Report::Final { status, cancelled: false }
}

impl World {
    fn kept() -> Self {
        let mut world = Self::new(Rules::default());
        world.accounting.keep_steered();
        world
    }

    fn steered_at(&mut self, call: (&str, u32, u64), pbx: Option<&str>, address: SocketAddr) {
        let (call_id, cseq, hash) = call;
        let text = request("INVITE", call_id, cseq, ("ann", None));
        let mut index = Index::new();
        let message = Message::parse(text.as_bytes(), &mut index).unwrap();
        let from = "192.0.2.5:5060".parse().unwrap();
        let invite = Invite { message: &message, from, pbx: None, account: None };
        let times = (self.now, self.now);
        self.accounting.handle_steered(times, invite, hash, (pbx, address));
        self.settle();
    }

    fn steered(&mut self, cseq: u32) {
        self.steered_at(("c1", cseq, HASH), Some("pbx1"), pbx_address());
    }

    fn told(&mut self, report: Report) {
        self.accounting.handle_report((self.now, self.now), HASH, report);
        self.settle();
    }

    /// We are gone, and another one comes with the time of the day that it is.
    fn restart(&mut self) {
        let now = UNIX_EPOCH + Duration::from_micros(START) + (self.now - self.start);
        let mut next = Accounting::new(self.accounting.rules, [9, 9], 0xdef, (self.now, now));
        for (hash, bytes) in &self.open {
            assert!(next.restore(*hash, bytes, &Clock(self.start)));
        }
        next.keep_steered();
        self.accounting = next;
    }
}

#[test]
fn an_answered_call_is_recorded_as_others_are() {
    let mut world = World::kept();
    world.steered(1);
    assert_eq!(world.open.len(), 1);
    world.pass(4 * SECOND);
    world.told(ANSWER);
    let view = world.accounting.calls().next().map(|view| (view.state, view.pbx == Some("pbx1")));
    assert_eq!(view, Some((State::Answered, true)));
    world.pass(90 * SECOND);
    world.told(BY_CALLEE);
    world.told(BY_CALLEE);
    let cdr = world.record();
    // The same through a transaction.
    let mut other = World::new(Rules::default());
    let call = other.call();
    other.accounting.handle_target(call, Some("pbx1"), pbx_address());
    other.pass(4 * SECOND);
    other.answered(call, "bob");
    other.pass(90 * SECOND);
    assert!(other.bye("c1", "bob", "ann"));
    // But for the account: nobody has proved anything.
    assert_eq!(cdr, Cdr { accountcode: "".into(), ..other.record() });
}

#[test]
fn what_becomes_of_others() {
    let cancelled = Report::Final { status: 487, cancelled: true };
    for (report, want) in [
        (failed(486), (Disposition::Busy, 486, Ending::Refused)),
        (failed(404), (Disposition::Failed, 404, Ending::Refused)),
        (failed(480), (Disposition::NoAnswer, 480, Ending::Refused)),
        (failed(503), (Disposition::Failed, 503, Ending::Refused)),
        (cancelled, (Disposition::NoAnswer, 487, Ending::Cancelled)),
    ] {
        let mut world = World::kept();
        world.steered(1);
        world.told(report);
        assert_eq!(world.outcome(), want);
        // Its response again, and a late copy of its INVITE with what is said to that.
        world.told(report);
        world.pass(SECOND);
        world.steered(1);
        world.told(report);
        assert!(world.records.is_empty() && world.accounting.is_empty());
        // Long after that it is another call.
        world.pass(60 * SECOND);
        world.steered(1);
        assert_eq!(world.accounting.len(), 1);
    }
}

#[test]
fn a_second_answer_and_a_repeated_invite_change_nothing() {
    let mut world = World::kept();
    world.steered(1);
    world.told(ANSWER);
    world.pass(SECOND);
    world.told(ANSWER);
    world.steered(1);
    // A re-INVITE that was refused.
    world.told(failed(491));
    world.pass(SECOND);
    world.told(BY_CALLER);
    let cdr = world.record();
    assert_eq!((cdr.billsec, cdr.sip_code, cdr.ending), (2 * SECOND, 200, Ending::Caller));
}

#[test]
fn a_bye_before_the_answer() {
    let mut world = World::kept();
    world.steered(1);
    world.told(BY_CALLER);
    assert_eq!(world.accounting.len(), 1);
    world.told(failed(487));
    assert_eq!(world.outcome(), (Disposition::NoAnswer, 487, Ending::Cancelled));
    // It has overtaken the 200.
    let mut world = World::kept();
    world.steered(1);
    world.told(BY_CALLER);
    world.told(ANSWER);
    assert_eq!(world.outcome(), (Disposition::Answered, 200, Ending::Caller));
    // The answer was lost: who is called hangs up only what he has answered.
    let mut world = World::kept();
    world.steered(1);
    world.told(BY_CALLEE);
    assert_eq!(world.outcome(), (Disposition::Answered, 200, Ending::Callee));
}

#[test]
fn what_is_told_before_the_invite_waits_a_moment() {
    let mut world = World::kept();
    world.told(ANSWER);
    world.told(BY_CALLER);
    world.steered(1);
    assert_eq!(world.outcome(), (Disposition::Answered, 200, Ending::Caller));
    let mut world = World::kept();
    world.told(failed(486));
    world.pass(SECOND);
    world.steered(1);
    assert_eq!((world.accounting.len(), world.records.len()), (1, 0));
}

#[test]
fn an_invite_with_credentials_is_the_same_call() {
    let mut world = World::kept();
    world.steered(1);
    world.told(failed(407));
    assert_eq!(world.accounting.calls().count(), 0);
    world.pass(SECOND);
    world.steered_at(("c1", 2, HASH), Some("pbx2"), "192.0.2.12:5060".parse().unwrap());
    world.pass(20 * SECOND);
    world.told(ANSWER);
    world.told(BY_CALLER);
    let cdr = world.record();
    assert_eq!((&*cdr.dstchannel, cdr.duration), ("pbx2", 21 * SECOND));
    // Nobody sends it again.
    let mut world = World::kept();
    world.steered(1);
    world.told(failed(407));
    world.pass(60 * SECOND);
    assert_eq!(world.outcome(), (Disposition::Failed, 407, Ending::Refused));
}

#[test]
fn a_repetition_may_go_elsewhere() {
    let mut world = World::kept();
    world.steered(1);
    world.steered_at(("c1", 1, HASH), None, "192.0.2.12:5060".parse().unwrap());
    world.told(failed(486));
    assert_eq!(&*world.record().dstchannel, "192.0.2.12:5060");
}

#[test]
fn a_call_that_is_taken_over_keeps_its_record() {
    let mut world = World::kept();
    world.steered(1);
    world.pass(SECOND);
    let text = request("INVITE", "c1", 1, ("ann", None));
    let mut index = Index::new();
    let message = Message::parse(text.as_bytes(), &mut index).unwrap();
    let from = "192.0.2.5:5060".parse().unwrap();
    let invite = Invite { message: &message, from, pbx: None, account: None };
    // What comes back to us by way of the PBX is not that.
    assert_eq!(world.accounting.handle_invite(world.now, invite), None);
    let call = world.accounting.handle_taken(world.now, invite).unwrap();
    world.settle();
    assert!(world.open.is_empty());
    // From now on it is ended as its tags say.
    world.told(BY_CALLER);
    world.accounting.handle_target(call, Some("pbx2"), pbx_address());
    world.answered(call, "bob");
    world.pass(SECOND);
    assert!(world.bye("c1", "ann", "bob"));
    let cdr = world.record();
    assert_eq!((&*cdr.dstchannel, cdr.duration, cdr.billsec), ("pbx2", 2 * SECOND, SECOND));
    // One that was not heard of before.
    let call = world.accounting.handle_taken(world.now, invite).unwrap();
    world.failed(call, 503, By::Proxy);
    assert_eq!(world.outcome(), (Disposition::Failed, 503, Ending::Proxy));
}

#[test]
fn a_restart_in_a_call_leaves_one_record() {
    let mut without = World::kept();
    without.steered(1);
    without.pass(SECOND);
    without.told(ANSWER);
    without.pass(60 * SECOND);
    without.told(BY_CALLER);
    let want = without.record();
    for restarts in 1..16 {
        let mut world = World::kept();
        for (n, (report, pause)) in
            [(None, 0), (Some(ANSWER), 1), (None, 30), (Some(BY_CALLER), 30)]
                .into_iter()
                .enumerate()
        {
            if restarts & 1 << n != 0 {
                world.restart();
            }
            world.pass(pause * SECOND);
            match report {
                Some(report) => world.told(report),
                None => world.steered(1),
            }
        }
        let cdr = world.record();
        let uniqueid = if restarts & 1 == 0 { want.uniqueid.clone() } else { cdr.uniqueid.clone() };
        assert_eq!(cdr, Cdr { uniqueid, ..want.clone() }, "{restarts:b}");
    }
}

#[test]
fn a_stop_closes_no_call_that_goes_on() {
    let mut world = World::kept();
    world.steered(1);
    world.told(ANSWER);
    world.invite("c2", 1, None);
    world.accounting.stop(world.now, true);
    world.settle();
    assert_eq!(world.records.len(), 1);
    assert_eq!((world.records.remove(0).ending, world.open.len()), (Ending::Stopped, 1));
    world.restart();
    world.pass(SECOND);
    world.told(BY_CALLEE);
    assert_eq!(world.outcome(), (Disposition::Answered, 200, Ending::Callee));
    // Where nothing goes on without us.
    world.steered_at(("c3", 1, HASH + 1), None, pbx_address());
    world.accounting.stop(world.now, false);
    assert_eq!(world.record().ending, Ending::Stopped);
}

#[test]
fn a_lost_bye_of_an_earlier_daemon() {
    let mut world = World::kept();
    world.steered(1);
    world.told(ANSWER);
    world.pass(SECOND);
    world.restart();
    world.pass(13 * 3600 * SECOND);
    let cdr = world.record();
    assert_eq!((cdr.ending, cdr.billsec), (Ending::Limit, 12 * 3600 * SECOND));
}

#[test]
fn what_is_kept_fits_and_nothing_else_is_read() {
    let mut world = World::kept();
    let long = "\u{1f4de}".repeat(300);
    world.steered_at((&"c".repeat(300), 1, HASH), Some(&long), pbx_address());
    let kept = world.open[&HASH].clone();
    assert!(kept.len() <= OPEN_LEN);
    for len in 0..kept.len() {
        let mut other = World::new(Rules::default());
        assert!(!other.accounting.restore(HASH, &kept[..len], &Clock(world.start)), "{len}");
        assert!(other.accounting.is_empty());
    }
    let mut other = World::new(Rules { max_calls: 1, ..Rules::default() });
    // As it comes out of the table.
    let kept = [&kept[..], &vec![0; OPEN_LEN - kept.len()]].concat();
    assert!(other.accounting.restore(HASH, &kept, &Clock(world.start)));
    assert!(!other.accounting.restore(HASH, &kept, &Clock(world.start)), "once");
    assert!(!other.accounting.restore(9, &kept, &Clock(world.start)), "there is no room");
    assert!(!World::kept().accounting.restore(9, &[0; OPEN_LEN], &Clock(world.start)));
}

#[test]
fn nothing_grows_without_bound() {
    let mut world = World::new(Rules { max_calls: 10, ..Rules::default() });
    for hash in 0..2 * MOST_EARLY as u64 {
        world.accounting.handle_report((world.now, world.now), hash, ANSWER);
    }
    assert_eq!(world.accounting.steered.early.len(), MOST_EARLY);
    for hash in 10_000..10_000 + 2 * MOST_OVER as u64 {
        world.steered_at((&hash.to_string(), 1, hash), None, pbx_address());
        world.accounting.handle_report((world.now, world.now), hash, failed(404));
        world.records.clear();
    }
    world.settle();
    let steered = &world.accounting.steered;
    assert_eq!((steered.over.len(), steered.ended.len()), (MOST_OVER, MOST_OVER));
    assert!(steered.slots.is_empty());
    for hash in 0..20 {
        world.steered_at((&hash.to_string(), 1, hash), None, pbx_address());
    }
    assert_eq!((world.accounting.len(), world.accounting.steered.slots.len()), (10, 10));
    assert_eq!(world.accounting.counts().unrecorded, 10);
    world.accounting.stop(world.now, false);
    assert!(world.accounting.steered.slots.is_empty());
}
