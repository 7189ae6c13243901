//! One PBX after another.

use super::*;

#[test]
fn a_5xx_goes_to_the_next() {
    for status in ["500 a", "501 a", "503 a", "599 a"] {
        let mut w = World::new();
        w.failover(2);
        w.answer(0, "100 Trying");
        w.answer(0, status);
        assert_eq!(w.take_of(0), ["INVITE", "ACK"]);
        assert_eq!(w.take_of(1), ["INVITE"]);
        w.answer(1, "180 Ringing");
        w.answer(1, "200 OK");
        assert_eq!(w.take(), ["100", "180", "200"], "the caller notices nothing");
        let failed = format!("p0 failed: {}", &status[..3]);
        assert_eq!(w.take_events(), [&*failed, "ringing p1 180", "answered p1 200"]);
        w.finish();
    }
}

#[test]
fn also_after_it_rang() {
    let mut w = World::new();
    w.failover(2);
    w.answer(0, "183 Session Progress");
    w.answer_with(0, "503 Busy", "Retry-After: 17 (soon);duration=3\r\n");
    assert_eq!(w.take_of(1), ["INVITE"]);
    assert_eq!(w.take_events(), ["ringing p0 183", "p0 failed: 503/17"]);
    w.answer(1, "404 Not Found");
    assert_eq!(w.take(), ["100", "183", "404"]);
    w.finish();
}

#[test]
fn what_is_an_answer() {
    for status in ["302 a", "404 a", "486 a", "603 a", "408 a"] {
        let mut w = World::new();
        w.failover(2);
        w.answer(0, status);
        assert_eq!(w.take(), ["100", &status[..3]]);
        assert_eq!(w.take_of(1), [""; 0]);
        w.finish();
    }
}

#[test]
fn silence_goes_to_the_next() {
    let mut w = World::new();
    w.failover(2);
    w.until(2_999);
    assert_eq!(w.take_of(1), [""; 0]);
    w.until(3_000);
    assert_eq!(w.take_of(1), ["INVITE"]);
    assert_eq!(w.take_events(), ["p0 failed: Answer+0"]);
    w.answer(1, "200 OK");
    assert_eq!(w.take(), ["100", "200"]);
    w.finish();
    assert_eq!(w.take_events(), ["answered p1 200", "ended"]);
}

#[test]
fn our_own_sleep_is_told() {
    let mut w = World::new();
    w.failover(2);
    w.now += Duration::from_secs(8);
    w.transactions.handle_timeout(w.now);
    w.drain();
    assert_eq!(w.take_events(), ["p0 failed: Answer+5000"]);
    w.finish();
}

#[test]
fn an_icmp_error_goes_to_the_next_at_once() {
    let mut w = World::new();
    w.failover(2);
    w.unreachable(0);
    assert_eq!(w.take_of(1), ["INVITE"]);
    assert_eq!(w.take_events(), ["p0 failed: transport"]);
    w.answer(1, "200 OK");
    w.finish();
}

#[test]
fn a_call_that_nobody_takes_is_missed() {
    let mut w = World::new();
    w.failover(2);
    w.answer(0, "180 Ringing");
    w.until(39_999);
    w.take();
    w.until(40_000);
    assert_eq!(w.take(), ["408"]);
    assert_eq!(w.take_of(0), ["INVITE", "CANCEL"]);
    assert_eq!(w.take_of(1), [""; 0], "the PBX is well");
    w.canceled(0);
    assert_eq!(w.take_events()[1..], ["p0 failed: Ring+0", "failed 408"]);
    w.finish();
}

#[test]
fn all_busy() {
    let mut w = World::new();
    w.failover(3);
    w.answer_with(0, "503 Busy", "Retry-After: 9\r\n");
    w.answer_with(1, "503 Busy", "Retry-After: 4\r\n");
    w.answer(2, "503 Busy");
    assert_eq!(w.take(), ["100", "503"]);
    assert_eq!(header(&w.heard(503), "Retry-After"), ["4"]);
    w.finish();

    let mut w = World::new();
    w.failover(2);
    w.unreachable(0);
    w.until(3_000);
    assert_eq!(w.take(), ["100", "503"]);
    assert_eq!(header(&w.heard(503), "Retry-After"), ["5"]);
    w.finish();

    // Another 5xx says more.
    let mut w = World::new();
    w.failover(2);
    w.answer(0, "503 Busy");
    w.answer(1, "500 Oops");
    assert_eq!(w.take(), ["100", "500"]);
    w.finish();
}

#[test]
fn the_owner_gives_one_after_another() {
    let mut w = World::new();
    w.forward(&invite(), |start| start.more = true, Hunt::Failover, &[pbx(0)]).unwrap();
    w.answer(0, "500 Oops");
    assert_eq!(w.take_events(), ["p0 failed: 500", "exhausted"]);
    assert!(w.add(1));
    assert_eq!(w.take_of(1), ["INVITE"]);
    w.until(3_000);
    assert_eq!(w.take_events(), ["p1 failed: Answer+0", "exhausted"]);
    let answer = Response::new(404, "No destination").with("X-Why: 1\r\n");
    w.no_more(Some(answer));
    assert_eq!(w.take(), ["100", "404"]);
    assert!(w.heard(404).starts_with("SIP/2.0 404 No destination\r\n"));
    assert_eq!(header(&w.heard(404), "X-Why"), ["1"]);
    assert!(!w.add(2));
    w.finish();
    assert_eq!(w.take_events(), ["failed 404", "ended"]);
}

#[test]
fn an_answer_is_one_though_there_may_be_more() {
    let mut w = World::new();
    w.forward(&invite(), |start| start.more = true, Hunt::Failover, &[pbx(0)]).unwrap();
    w.answer(0, "486 Busy Here");
    assert_eq!(w.take(), ["100", "486"]);
    assert_eq!(w.take_events(), ["p0 failed: 486", "failed 486 p0", "ended"]);
    w.finish();
}

#[test]
fn an_owner_that_forgets() {
    let mut w = World::new();
    w.forward(&invite(), |start| start.more = true, Hunt::Failover, &[pbx(0)]).unwrap();
    w.answer(0, "500 Oops");
    w.finish();
    assert_eq!(w.take_events(), ["p0 failed: 500", "exhausted", "failed 408", "ended"]);
}

#[test]
fn only_so_many_targets() {
    let settings = Settings { targets: 2, ..Settings::new(&[US.parse().unwrap()]) };
    let mut w = World::with(settings, Config::default());
    w.failover(5);
    for target in 0..2 {
        w.answer(target, "500 Oops");
    }
    assert_eq!(w.take(), ["100", "500"]);
    assert_eq!(w.take_of(2), [""; 0]);
    w.finish();
}
