//! Responses as they are forwarded (16.7).

use super::*;

#[test]
fn provisional_responses_go_up_but_100() {
    let mut w = World::new();
    w.fork(&[1000]);
    assert_eq!(w.take(), ["100"]);
    w.answer(0, "100 Trying");
    assert_eq!(w.take(), [""; 0]);
    w.answer(0, "180 Ringing");
    w.answer(0, "183 Session Progress");
    assert_eq!(w.take(), ["180", "183"]);
    assert_eq!(w.take_events(), ["ringing p0 180"]);
    let vias = header(&w.heard(180), "Via").len();
    assert_eq!(vias, 1, "ours is off");
    w.answer(0, "200 OK");
    assert_eq!(w.take(), ["200"]);
    w.answer(0, "180 Ringing");
    assert_eq!(w.take(), [""; 0]);
    w.finish();
    assert_eq!(w.take_events(), ["answered p0 200", "ended"]);
}

#[test]
fn a_100_is_left_to_the_transaction() {
    let mut w = World::new();
    w.forward(&invite(), |start| start.trying = false, Hunt::Fork, &[target(0)]).unwrap();
    assert_eq!(w.take(), [""; 0]);
    w.until(200);
    assert_eq!(w.take(), ["100"]);
    w.answer(0, "480 Temporarily Unavailable");
    w.finish();
}

#[test]
fn the_first_to_answer_has_the_call() {
    let mut w = World::new();
    w.fork(&[1000, 1000, 1000]);
    for target in 0..3 {
        w.answer(target, "180 Ringing");
    }
    w.answer(1, "200 OK");
    assert_eq!(w.take(), ["100", "180", "180", "180", "200"]);
    assert_eq!(w.take_of(0), ["INVITE", "CANCEL"]);
    assert_eq!(w.take_of(1), ["INVITE"]);
    w.canceled(0);
    // 16.7 step 5: another 2xx goes up, and each repetition.
    w.answer(2, "200 OK");
    w.answer(1, "200 OK");
    assert_eq!(w.take(), ["200", "200"]);
    w.until(31_000);
    w.answer(1, "200 OK");
    assert_eq!(w.take(), ["200"]);
    w.finish();
    let events = w.take_events();
    assert_eq!(events[3..], ["answered p1 200", "also p2 200", "ended"]);
}

#[test]
fn by_preference() {
    let mut w = World::new();
    w.fork(&[100, 900, 500, 900]);
    assert_eq!((w.take_of(1), w.take_of(3)), (vec!["INVITE".into()], vec!["INVITE".into()]));
    assert_eq!(w.take_of(2), [""; 0]);
    w.answer(1, "486 Busy Here");
    assert_eq!(w.take_of(2), [""; 0], "the other one rings");
    w.answer(3, "480 Temporarily Unavailable");
    assert_eq!(w.take_of(2), ["INVITE"]);
    w.answer(2, "404 Not Found");
    assert_eq!(w.take_of(0), ["INVITE"]);
    w.answer(0, "500 Oops");
    assert_eq!(w.take(), ["100", "486"]);
    w.finish();
    assert_eq!(
        w.take_events(),
        [
            "p1 failed: 486",
            "p3 failed: 480",
            "p2 failed: 404",
            "p0 failed: 500",
            "failed 486 p1",
            "ended"
        ]
    );
}

/// The answer that is chosen of these, each from a target of its own at once.
fn best(answers: &[&str]) -> String {
    let mut w = World::new();
    w.fork(&vec![1000; answers.len()]);
    w.take();
    for (target, answer) in (0..).zip(answers) {
        w.answer(target, answer);
    }
    let heard = w.take();
    w.finish();
    assert_eq!(heard.len(), 1, "{heard:?}");
    heard[0].clone()
}

#[test]
fn the_best_response() {
    assert_eq!(best(&["486 Busy"]), "486");
    assert_eq!(best(&["500 a", "404 b"]), "404");
    assert_eq!(best(&["404 a", "302 b"]), "302");
    assert_eq!(best(&["404 a", "486 b"]), "404", "the first of its kind");
    assert_eq!(best(&["404 a", "484 b"]), "484", "what helps to do it better");
    assert_eq!(best(&["408 a", "480 b"]), "480");
    assert_eq!(best(&["503 a", "501 b"]), "501");
    assert_eq!(best(&["503 a", "503 b"]), "500");
    assert_eq!(best(&["603 a"]), "603");
}

#[test]
fn who_declines_for_all() {
    let mut w = World::new();
    w.fork(&[1000, 1000, 500]);
    w.answer(0, "180 Ringing");
    w.take();
    w.answer(1, "603 Decline");
    assert_eq!(w.take(), [""; 0], "16.7 step 5: not before the others have ended");
    assert_eq!(w.take_of(0), ["INVITE", "CANCEL"]);
    w.canceled(0);
    assert_eq!(w.take(), ["603"]);
    assert_eq!(w.take_of(2), [""; 0]);
    w.finish();
    let events = w.take_events();
    assert_eq!(events[1..], ["p1 failed: 603", "p0 failed: 487", "failed 603 p1", "ended"]);
}

#[test]
fn a_2xx_that_crosses_a_6xx() {
    let mut w = World::new();
    w.fork(&[1000, 1000]);
    w.answer(0, "180 Ringing");
    w.answer(1, "603 Decline");
    w.answer(0, "200 OK");
    assert_eq!(w.take(), ["100", "180", "200"]);
    w.finish();
    assert_eq!(w.take_events()[2..], ["answered p0 200", "ended"]);
}

#[test]
fn a_6xx_against_silence() {
    let mut w = World::new();
    w.fork(&[1000, 1000]);
    w.answer(1, "600 Busy Everywhere");
    w.take();
    // The other one never says anything: its INVITE ends by Timer B.
    w.until(31_999);
    assert_eq!(w.take(), [""; 0]);
    w.until(32_000);
    assert_eq!(w.take(), ["600"]);
    w.finish();
}

#[test]
fn challenges_are_collected() {
    let mut w = World::new();
    w.fork(&[1000, 1000, 1000]);
    w.answer_with(0, "407 Auth", "Proxy-Authenticate: Digest realm=\"a\"\r\n");
    w.answer_with(1, "401 Auth", "WWW-Authenticate: Digest realm=\"b\"\r\nX-Own: 1\r\n");
    w.answer(2, "486 Busy Here");
    assert_eq!(w.take(), ["100", "407"]);
    let heard = w.heard(407);
    assert_eq!(header(&heard, "Proxy-Authenticate"), ["Digest realm=\"a\""]);
    assert_eq!(header(&heard, "WWW-Authenticate"), ["Digest realm=\"b\""]);
    assert_eq!(header(&heard, "X-Own"), [""; 0]);
    w.finish();
}

#[test]
fn silence_is_a_408() {
    let mut w = World::new();
    w.fork(&[1000]);
    w.until(31_999);
    assert_eq!(w.take(), ["100"]);
    w.until(32_000);
    assert_eq!(w.take(), ["408"]);
    assert_eq!(w.take_events(), ["p0 failed: B+0", "failed 408", "ended"]);
    w.finish();
}

#[test]
fn timer_c() {
    let mut w = World::new();
    w.fork(&[1000]);
    w.answer(0, "180 Ringing");
    w.until(100_000);
    w.answer(0, "180 Ringing");
    w.take();
    w.until(100_000 + 180_999);
    assert_eq!(w.take(), [""; 0], "counted anew from each");
    w.until(100_000 + 181_000);
    assert_eq!(w.take(), ["408"]);
    assert_eq!(w.take_of(0), ["INVITE", "CANCEL"]);
    w.canceled(0);
    w.finish();
}

#[test]
fn an_unreachable_contact() {
    let mut w = World::new();
    w.fork(&[1000, 1000]);
    w.unreachable(0);
    assert_eq!(w.take(), ["100"]);
    w.unreachable(1);
    assert_eq!(w.take(), ["500"], "16.9, 16.7 step 6");
    w.finish();
    assert_eq!(
        w.take_events(),
        ["p0 failed: transport", "p1 failed: transport", "failed 500", "ended"]
    );
}

#[test]
fn nobody_to_try() {
    let mut w = World::new();
    w.fork(&[]);
    assert_eq!(w.take(), ["100", "480"]);
    assert_eq!(w.take_events(), ["failed 480", "ended"]);
    w.finish();
}

#[test]
fn a_response_for_us_alone_is_not_forwarded() {
    let mut w = World::new();
    w.fork(&[1000]);
    w.take();
    for status in ["180 Ringing", "486 Busy Here"] {
        let answer = response(&w.got(0, "INVITE"), status, "p");
        let at = answer.rfind("Via:").unwrap();
        let end = at + answer[at..].find("\r\n").unwrap() + 2;
        w.hear_response(&[&answer[..at], &answer[end..]].concat());
    }
    // Its status is as good as any, but its words are not for the caller.
    assert_eq!(w.take(), ["486"]);
    assert!(header(&w.heard(486), "Contact").is_empty());
    w.finish();
}

#[test]
fn other_requests() {
    let mut w = World::new();
    let options = other("MESSAGE");
    w.forward(&options, |_| {}, Hunt::Fork, &[target(0), target(1)]).unwrap();
    assert_eq!(w.take(), [""; 0], "RFC 4320: no 100");
    let request = w.got(0, "MESSAGE");
    w.hear_response(&response(&request, "180 Ringing", "p"));
    assert_eq!(w.take(), [""; 0]);
    w.hear_response(&response(&request, "200 OK", "p0"));
    assert_eq!(w.take(), ["200"]);
    assert_eq!(w.take_events(), ["answered p0 200", "ended"]);
    let request = w.got(1, "MESSAGE");
    w.hear_response(&response(&request, "200 OK", "p"));
    assert_eq!(w.take(), [""; 0]);
    w.finish();
}

#[test]
fn the_silence_of_other_requests_is_kept() {
    let mut w = World::new();
    w.forward(&other("MESSAGE"), |_| {}, Hunt::Fork, &[target(0)]).unwrap();
    w.finish();
    assert_eq!(w.take(), ["100"], "RFC 4320: the one of 3.5 s, and no 408");
    // Both transactions end at once.
    assert_eq!(w.take_events(), ["failed 408", "ended"]);
}

#[test]
fn the_way_back_of_a_nat() {
    let mut w = World::new();
    let text = invite().replace("10.0.0.9:5060;branch", "192.168.1.2:5080;branch");
    w.forward(&text, |_| {}, Hunt::Fork, &[target(0)]).unwrap();
    w.answer(0, "180 Ringing");
    assert_eq!(w.take(), ["100", "180"]);
    assert_eq!(
        header(&w.heard(180), "Via"),
        ["SIP/2.0/UDP 192.168.1.2:5080;branch=z9hG4bKcaller;rport=5060;received=10.0.0.9"]
    );
    w.answer(0, "404 Not Found");
    w.finish();
}
