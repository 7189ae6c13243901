//! The caller takes its request back (16.10), and what crosses that.

use super::*;

#[test]
fn a_ringing_call() {
    let mut w = World::new();
    w.fork(&[1000, 1000, 500]);
    w.answer(0, "180 Ringing");
    w.answer(1, "100 Trying");
    w.take();
    w.cancel();
    assert_eq!(w.take(), ["200"]);
    assert_eq!(w.take_of(0), ["INVITE", "CANCEL"]);
    assert_eq!(w.take_of(1), ["INVITE", "CANCEL"]);
    w.answer(0, "180 Ringing");
    w.canceled(0);
    assert_eq!(w.take(), [""; 0]);
    w.canceled(1);
    assert_eq!(w.take(), ["487"]);
    assert!(header(&w.heard(487), "To")[0].ends_with(";tag=p0"), "as p0 has said it");
    assert_eq!(w.take_of(2), [""; 0]);
    w.finish();
    assert_eq!(w.take_events(), ["ringing p0 180", "cancelled", "ended"]);
}

#[test]
fn before_anybody_has_said_anything() {
    let mut w = World::new();
    w.failover(2);
    w.cancel();
    assert_eq!(w.take_of(0), ["INVITE"], "9.1: not before a provisional response");
    w.answer(0, "180 Ringing");
    assert_eq!(w.take_of(0), ["CANCEL"]);
    w.canceled(0);
    assert_eq!(w.take(), ["100", "200", "487"]);
    assert_eq!(w.take_of(1), [""; 0]);
    w.finish();
}

#[test]
fn silence_while_cancelling() {
    let mut w = World::new();
    w.failover(2);
    w.cancel();
    w.until(3_000);
    assert_eq!(w.take(), ["100", "200", "487"]);
    assert_eq!(w.take_of(1), [""; 0], "no failover for who has gone");
    assert_eq!(w.take_events(), ["p0 failed: Answer+0", "cancelled"]);
    w.finish();
    assert_eq!(w.take_events(), ["ended"]);
}

#[test]
fn a_cancel_without_effect_below() {
    let mut w = World::new();
    w.failover(1);
    w.answer(0, "180 Ringing");
    w.cancel();
    w.take();
    w.until(31_999);
    assert_eq!(w.take(), [""; 0]);
    w.until(32_000);
    assert_eq!(w.take(), ["487"], "9.1: 64 T1");
    w.finish();
}

#[test]
fn a_5xx_while_cancelling() {
    let mut w = World::new();
    w.failover(2);
    w.answer(0, "180 Ringing");
    w.cancel();
    w.answer(0, "503 Service Unavailable");
    assert_eq!(w.take(), ["100", "180", "200", "487"]);
    assert_eq!(w.take_of(1), [""; 0]);
    assert_eq!(w.take_events()[1..], ["p0 failed: 503", "cancelled", "ended"]);
    w.finish();
}

#[test]
fn a_busy_that_crosses_the_cancel() {
    let mut w = World::new();
    w.fork(&[1000]);
    w.answer(0, "180 Ringing");
    w.cancel();
    w.answer(0, "486 Busy Here");
    assert_eq!(w.take(), ["100", "180", "200", "487"]);
    w.finish();
}

#[test]
fn a_200_that_crosses_the_cancel() {
    let mut w = World::new();
    w.fork(&[1000, 1000]);
    w.answer(0, "180 Ringing");
    w.answer(1, "180 Ringing");
    w.cancel();
    w.take();
    w.answer(0, "200 OK");
    assert_eq!(w.take(), ["200"], "the caller has the call, and ends it (9.1)");
    w.canceled(1);
    w.answer(0, "200 OK");
    assert_eq!(w.take(), ["200"]);
    w.finish();
    assert_eq!(w.take_events()[2..], ["answered p0 200", "ended"]);
}

#[test]
fn a_cancel_after_the_answer() {
    let mut w = World::new();
    w.fork(&[1000]);
    w.answer(0, "200 OK");
    w.take();
    w.cancel();
    assert_eq!(w.take(), ["200"], "of the CANCEL");
    assert_eq!(w.take_of(0), ["INVITE"]);
    w.finish();
    assert_eq!(w.take_events(), ["answered p0 200", "ended"]);
}

#[test]
fn a_cancel_after_the_failure() {
    let mut w = World::new();
    w.fork(&[1000]);
    w.answer(0, "486 Busy Here");
    w.take();
    w.cancel();
    assert_eq!(w.take(), ["200"]);
    w.finish();
}

#[test]
fn a_cancel_of_nothing() {
    let mut w = World::new();
    w.cancel();
    assert_eq!(w.take(), ["481"]);
    w.finish();
}

#[test]
fn cancelled_twice() {
    let mut w = World::new();
    w.fork(&[1000]);
    w.answer(0, "180 Ringing");
    w.cancel();
    w.cancel();
    w.canceled(0);
    assert_eq!(w.take(), ["100", "180", "200", "200", "487"]);
    assert_eq!(w.take_of(0), ["INVITE", "CANCEL", "ACK"]);
    w.finish();
}

#[test]
fn while_the_owner_thinks() {
    let mut w = World::new();
    w.forward(&invite(), |start| start.more = true, Hunt::Failover, &[pbx(0)]).unwrap();
    w.answer(0, "500 Oops");
    assert_eq!(w.take_events(), ["p0 failed: 500", "exhausted"]);
    w.cancel();
    assert_eq!(w.take(), ["100", "200", "487"]);
    assert!(!w.add(1));
    assert_eq!(w.take_of(1), [""; 0]);
    w.no_more(None);
    assert_eq!(w.take_events(), ["cancelled", "ended"]);
    w.finish();
}

#[test]
fn a_cancel_that_cannot_arrive() {
    let mut w = World::new();
    w.fork(&[1000]);
    w.answer(0, "180 Ringing");
    w.cancel();
    w.unreachable(0);
    assert_eq!(w.take(), ["100", "180", "200", "487"]);
    w.finish();
}

#[test]
fn before_it_was_started() {
    let mut w = World::new();
    let RequestFate::New { id, request, .. } = w.hear(&invite()) else { panic!() };
    let canceled = response(&invite(), "487 Request Terminated", "us");
    w.transactions.respond(w.now, id, canceled.into_bytes()).unwrap();
    let start = Start {
        server: id,
        request,
        from: CALLER.parse().unwrap(),
        owner: 7,
        hunt: Hunt::Fork,
        trying: true,
        more: false,
        unavailable: Unavailable::InternalError,
    };
    let started = w.contexts.start(w.now, &mut w.transactions, start, vec![target(0)]);
    assert_eq!(started, Err(487));
    w.drain();
    assert_eq!(w.take(), ["487"]);
    assert_eq!(w.take_of(0), [""; 0]);
    w.finish();
}
