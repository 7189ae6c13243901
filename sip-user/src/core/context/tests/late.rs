//! Answers of those that were given up.

use super::super::outcome::LATE_DIALOGS;
use super::*;

#[test]
fn while_nobody_else_has_answered() {
    let mut w = World::new();
    w.failover(2);
    w.until(3_000);
    w.answer(1, "180 Ringing");
    w.take();
    w.answer(0, "200 OK");
    assert_eq!(w.take(), ["200"], "it has the call");
    assert_eq!(w.take_of(1), ["INVITE", "CANCEL"]);
    w.canceled(1);
    w.answer(0, "200 OK");
    assert_eq!(w.take(), ["200"]);
    w.finish();
    assert_eq!(
        w.take_events(),
        ["p0 failed: Answer+0", "ringing p1 180", "answered p0 200", "ended"]
    );
}

#[test]
fn when_another_one_has_answered() {
    let mut w = World::new();
    w.failover(2);
    w.until(3_000);
    w.answer(1, "200 OK");
    w.take();
    w.take_of(0);
    w.take_events();
    w.answer_with(0, "200 OK", "Record-Route: <sip:q.example;lr>\r\n");
    assert_eq!(w.take(), [""; 0]);
    assert_eq!(w.take_of(0), ["ACK", "BYE"]);
    assert_eq!(w.take_events(), ["late p0"]);
    let (ack, bye) = (w.got(0, "ACK"), w.got(0, "BYE"));
    assert!(ack.starts_with("ACK sip:p0@10.0.1.1:5060 SIP/2.0\r\n"), "{ack}");
    assert!(bye.starts_with("BYE sip:p0@10.0.1.1:5060 SIP/2.0\r\n"), "{bye}");
    for text in [&ack, &bye] {
        assert_eq!(header(text, "From"), ["<sip:alice@x>;tag=a"]);
        assert_eq!(header(text, "To"), ["<sip:bob@x>;tag=p0"]);
        assert_eq!(header(text, "Via").len(), 1);
    }
    assert_eq!(header(&ack, "CSeq"), ["1 ACK"]);
    assert_eq!(header(&bye, "CSeq"), ["2 BYE"]);
    // Its repetition has its ACK, and no other BYE.
    w.answer(0, "200 OK");
    assert_eq!(w.take_of(0), ["ACK"]);
    let bye = response(&bye, "200 OK", "b");
    w.hear_response(&bye);
    w.finish();
    assert_eq!(w.take_of(0), [""; 0], "the BYE is not repeated");
    assert_eq!(w.take_events(), ["ended"]);
}

#[test]
fn by_the_routes_below_us() {
    let mut w = World::new();
    let text = invite().replace("From:", "Record-Route: <sip:above.example;lr>\r\nFrom:");
    w.forward(&text, |_| {}, Hunt::Failover, &[pbx(0)]).unwrap();
    w.until(3_000);
    assert_eq!(w.take(), ["100", "500"]);
    let request = w.got(0, "INVITE");
    let below =
        "Record-Route: <sip:far.example;lr>\r\nRecord-Route: <sip:near.example;lr>\r\nRecord-";
    let answer = response(&request, "200 OK", "p").replacen("Record-", below, 1);
    let answer = answer.replace("Content-Length", "Contact: <sip:p@10.7.7.7>\r\nContent-Length");
    w.hear_response(&answer);
    let ack = w.got(0, "ACK");
    assert!(ack.starts_with("ACK sip:p@10.7.7.7 SIP/2.0\r\n"), "{ack}");
    assert_eq!(header(&ack, "Route"), ["<sip:near.example;lr>", "<sip:far.example;lr>"]);
    // A neighbour that routes strictly.
    let strict = answer.replace("near.example;lr", "near.example").replace("tag=p", "tag=q");
    w.hear_response(&strict);
    let bye = w.got(0, "BYE");
    assert!(bye.starts_with("BYE sip:near.example SIP/2.0\r\n"), "{bye}");
    assert_eq!(header(&bye, "Route"), ["<sip:far.example;lr>", "<sip:p@10.7.7.7>"]);
    w.finish();
}

#[test]
fn when_the_caller_has_heard_a_failure() {
    let mut w = World::new();
    w.failover(1);
    w.until(3_000);
    assert_eq!(w.take(), ["100", "503"]);
    w.answer(0, "200 OK");
    assert_eq!(w.take(), [""; 0]);
    assert_eq!(w.take_of(0)[3..], ["ACK", "BYE"]);
    w.finish();
}

#[test]
fn when_the_caller_has_gone() {
    let mut w = World::new();
    w.failover(1);
    w.cancel();
    w.until(3_000);
    assert_eq!(w.take(), ["100", "200", "487"]);
    w.answer(0, "200 OK");
    assert_eq!(w.take_of(0)[3..], ["ACK", "BYE"]);
    w.finish();
    assert_eq!(w.take_events()[1..], ["cancelled", "late p0", "ended"]);
}

#[test]
fn after_it_rang_too_long() {
    let mut w = World::new();
    w.failover(1);
    w.answer(0, "180 Ringing");
    w.until(40_000);
    assert_eq!(w.take_of(0), ["INVITE", "CANCEL"]);
    w.answer(0, "200 OK");
    assert_eq!(w.take_of(0), ["ACK", "BYE"]);
    w.finish();
}

#[test]
fn a_late_ringing_is_cancelled() {
    let mut w = World::new();
    w.failover(2);
    w.until(3_000);
    w.take_of(0);
    w.answer(0, "180 Ringing");
    assert_eq!(w.take_of(0), ["CANCEL"]);
    w.canceled(0);
    w.answer(1, "486 Busy Here");
    assert_eq!(w.take(), ["100", "486"]);
    w.finish();
}

#[test]
fn a_late_failure_is_acknowledged_and_no_more() {
    let mut w = World::new();
    w.failover(2);
    w.until(3_000);
    w.take_of(0);
    w.answer(0, "486 Busy Here");
    assert_eq!(w.take_of(0), ["ACK"]);
    assert_eq!(w.take_events(), ["p0 failed: Answer+0"]);
    w.answer(1, "200 OK");
    assert_eq!(w.take(), ["100", "200"]);
    w.finish();
}

#[test]
fn while_the_owner_thinks() {
    let mut w = World::new();
    w.forward(&invite(), |start| start.more = true, Hunt::Failover, &[pbx(0)]).unwrap();
    w.until(3_000);
    assert_eq!(w.take_events(), ["p0 failed: Answer+0", "exhausted"]);
    w.answer(0, "200 OK");
    assert_eq!(w.take(), ["100", "200"]);
    assert!(!w.add(1));
    w.finish();
    assert_eq!(w.take_events(), ["answered p0 200", "ended"]);
}

#[test]
fn many_dialogs_of_one_branch() {
    let mut w = World::new();
    w.failover(1);
    w.until(3_000);
    w.take_of(0);
    for number in 0..10 {
        let answer = response(&w.got(0, "INVITE"), "200 OK", &format!("t{number}"));
        w.hear_response(&answer);
    }
    let heard = w.take_of(0);
    assert_eq!(heard.iter().filter(|what| *what == "ACK").count(), 10);
    assert_eq!(heard.iter().filter(|what| *what == "BYE").count(), LATE_DIALOGS);
    w.finish();
}
