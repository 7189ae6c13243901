//! Both client machines, edge by edge.

use super::*;

const NONE: Limits = Limits { answer: None, ring: None };

fn answer_within(seconds: u64) -> Limits {
    Limits { answer: Some(Duration::from_secs(seconds)), ring: None }
}

#[test]
fn an_invite_without_answer() {
    let mut end = End::new();
    end.ask("INVITE", NONE);
    end.finish();
    let mut want = times("INVITE", &[0, 500, 1_500, 3_500, 7_500, 15_500, 31_500]);
    want.extend(["32000 timeout B".into(), "32000 end".into()]);
    assert_eq!(end.log, want);
}

#[test]
fn an_invite_without_answer_over_tcp() {
    let mut end = End::reliable();
    end.ask("INVITE", NONE);
    end.finish();
    assert_eq!(end.log, ["0 INVITE", "32000 timeout B", "32000 end"]);
}

#[test]
fn a_provisional_response_stops_timers_a_and_b_and_starts_c() {
    let mut end = End::new();
    end.ask("INVITE", NONE);
    end.until(600);
    assert_eq!(end.answer("100 Trying"), "passed");
    end.until(100_000);
    // Timer C: a 180 counts, a 100 does not (16.7 step 2).
    assert_eq!(end.answer("180 Ringing"), "passed");
    end.until(150_600);
    assert_eq!(end.answer("100 Trying"), "passed");
    end.until(280_999);
    assert_eq!(end.take(), ["0 INVITE", "500 INVITE"]);
    end.until(281_000);
    assert_eq!(end.take(), ["281000 timeout Ring", "281000 CANCEL"]);
    // Late, but a 2xx is for the user, who sends ACK and BYE.
    assert_eq!(end.answer("183 Progress"), "absorbed");
    assert_eq!(end.answer("200 OK"), "passed");
    end.finish();
}

#[test]
fn a_2xx_is_passed_up_as_often_as_it_comes() {
    for first in [None, Some("180 Ringing")] {
        let mut end = End::new();
        end.ask("INVITE", NONE);
        if let Some(status) = first {
            end.answer(status);
        }
        assert_eq!(end.answer("200 OK"), "passed");
        assert_eq!(end.transactions.held_bytes(), 0, "the INVITE is needed no more");
        end.until(31_999);
        assert_eq!(end.answer("200 OK"), "passed");
        // Of another branch downstream (RFC 6026 8.4).
        assert_eq!(end.answer("202 Accepted"), "passed");
        assert_eq!(end.answer("180 Ringing"), "absorbed");
        assert_eq!(end.answer("486 Busy Here"), "absorbed");
        assert_eq!(end.take(), ["0 INVITE"]);
        end.until(32_000);
        assert_eq!(end.take(), ["32000 end"], "Timer M");
        assert_eq!(end.answer("200 OK"), "unmatched");
        end.empty();
    }
}

#[test]
fn timer_m_runs_over_tcp_too() {
    let mut end = End::reliable();
    end.ask("INVITE", NONE);
    assert_eq!(end.answer("200 OK"), "passed");
    end.finish();
    assert_eq!(end.log, ["0 INVITE", "32000 end"]);
}

#[test]
fn a_failure_is_acknowledged_as_often_as_it_comes() {
    for first in [None, Some("180 Ringing")] {
        let mut end = End::new();
        end.ask("INVITE", NONE);
        if let Some(status) = first {
            end.answer(status);
        }
        assert_eq!(end.answer("486 Busy Here"), "passed");
        end.until(31_999);
        assert_eq!(end.answer("486 Busy Here"), "absorbed");
        assert_eq!(end.answer("300 Multiple Choices"), "absorbed");
        assert_eq!(end.answer("603 Decline"), "absorbed");
        assert_eq!(end.answer("200 OK"), "absorbed");
        assert_eq!(end.answer("180 Ringing"), "absorbed");
        assert_eq!(end.take(), ["0 INVITE", "0 ACK", "31999 ACK", "31999 ACK", "31999 ACK"]);
        let ack = String::from_utf8(end.sent[1].bytes.to_vec()).unwrap();
        assert_eq!(end.sent[1], end.sent[2]);
        let invite = String::from_utf8(end.sent[0].bytes.to_vec()).unwrap();
        for line in ["Via", "Route", "From", "Call-ID"] {
            assert_eq!(testing::header(&ack, line), testing::header(&invite, line));
        }
        assert_eq!(testing::header(&ack, "To"), ["<sip:bob@x>;tag=them"]);
        assert_eq!(testing::header(&ack, "CSeq"), ["1 ACK"]);
        end.until(32_000);
        assert_eq!(end.take(), ["32000 end"], "Timer D");
        end.empty();
    }
}

#[test]
fn timer_d_is_zero_over_tcp() {
    let mut end = End::reliable();
    end.ask("INVITE", NONE);
    assert_eq!(end.answer("503 Service Unavailable"), "passed");
    assert_eq!(end.log, ["0 INVITE", "0 ACK", "0 end"]);
    end.empty();
}

#[test]
fn an_error_of_the_network_ends_an_invite_at_once() {
    let mut end = End::new();
    end.ask("INVITE", NONE);
    end.until(20);
    end.icmp();
    assert_eq!(end.log, ["0 INVITE", "20 error", "20 end"]);
    end.icmp();
    end.empty();
    // Of another address: nothing.
    end.ask("INVITE", NONE);
    end.take();
    end.transactions.handle_transport_error(end.now, "192.0.2.2:5061".parse().unwrap());
    end.drain();
    assert_eq!(end.take(), [""; 0]);
    // In Proceeding nothing is under way.
    end.answer_to(1, "180 Ringing");
    end.icmp();
    assert_eq!(end.take(), [""; 0]);
    // Nor in Accepted.
    end.answer_to(1, "200 OK");
    end.icmp();
    assert_eq!(end.take(), [""; 0]);
    assert_eq!(end.transactions.len(), 1);
    // The ACK is, in Completed.
    end.ask("INVITE", NONE);
    end.answer_to(2, "486 Busy Here");
    end.take();
    end.icmp();
    assert_eq!(end.take(), ["20 error", "20 end"]);
    end.finish();
}

#[test]
fn one_error_is_told_to_all_who_have_sent_there() {
    let mut end = End::new();
    for method in ["INVITE", "OPTIONS", "INVITE", "BYE"] {
        end.ask(method, NONE);
    }
    end.take();
    end.icmp();
    assert_eq!(end.take().iter().filter(|what| *what == "0 error").count(), 4);
    end.empty();
}

#[test]
fn a_user_that_waits_no_longer_than_three_seconds() {
    let mut end = End::new();
    end.ask("INVITE", answer_within(3));
    end.until(20_000);
    let mut want = times("INVITE", &[0, 500, 1_500]);
    want.push("3000 timeout Answer".into());
    assert_eq!(end.take(), want, "and it is sent no more");
    // Who answers yet is cancelled.
    assert_eq!(end.answer("180 Ringing"), "absorbed");
    assert_eq!(end.take(), ["20000 CANCEL"]);
    assert_eq!(end.answer_to(3, "200 OK"), "absorbed");
    assert_eq!(end.answer("487 Request Terminated"), "absorbed");
    assert_eq!(end.take(), ["20000 ACK"]);
    end.finish();
    assert_eq!(end.log, ["52000 end"]);
}

#[test]
fn a_late_200_after_the_limit_is_passed_up() {
    let mut end = End::new();
    end.ask("INVITE", answer_within(3));
    end.until(31_999);
    assert_eq!(end.answer("200 OK"), "passed");
    assert_eq!(end.log.last().unwrap(), "3000 timeout Answer");
    end.take();
    end.finish();
    assert_eq!(end.log, ["63999 end"]);
}

#[test]
fn after_the_limit_timer_b_is_silent() {
    let mut end = End::new();
    end.ask("INVITE", answer_within(3));
    end.until(10_000);
    end.take();
    end.finish();
    assert_eq!(end.log, ["32000 end"]);
    // And so is the network.
    let mut end = End::new();
    end.ask("INVITE", answer_within(3));
    end.until(10_000);
    end.take();
    end.icmp();
    assert_eq!(end.log, ["10000 end"]);
}

#[test]
fn limits_beyond_timer_b_change_nothing() {
    for seconds in [32, 33, u64::MAX] {
        let mut end = End::new();
        end.ask("INVITE", answer_within(seconds));
        end.finish();
        assert_eq!(end.log[end.log.len() - 2..], ["32000 timeout B", "32000 end"]);
    }
}

#[test]
fn a_limit_for_ringing() {
    let mut end = End::new();
    end.ask("INVITE", Limits { answer: None, ring: Some(Duration::from_secs(40)) });
    end.until(100);
    end.answer("180 Ringing");
    end.finish();
    let mut want: Vec<String> =
        vec!["0 INVITE".into(), "40100 timeout Ring".into(), "40100 CANCEL".into()];
    let again = [500, 1_500, 3_500, 7_500, 11_500, 15_500, 19_500, 23_500, 27_500, 31_500];
    want.extend(times("CANCEL", &again.map(|at| 40_100 + at)));
    want.push("72100 end".into());
    assert_eq!(end.log, want);
}

#[test]
fn no_limit_for_ringing_is_longer_than_timer_c() {
    let mut end = End::new();
    end.ask("INVITE", Limits { answer: None, ring: Some(Duration::MAX) });
    end.answer("180 Ringing");
    end.until(181_000);
    assert_eq!(end.log, ["0 INVITE", "181000 timeout Ring", "181000 CANCEL"]);
}

#[test]
fn a_cancel_waits_for_a_provisional_response() {
    let mut end = End::new();
    let id = end.ask("INVITE", NONE);
    end.until(100);
    end.cancel(id);
    end.cancel(id);
    end.until(600);
    // The INVITE must arrive before it can be cancelled.
    assert_eq!(end.take(), ["0 INVITE", "500 INVITE"]);
    assert_eq!(end.answer("100 Trying"), "passed");
    assert_eq!(end.take(), ["600 CANCEL"]);
    let cancel = String::from_utf8(end.sent[2].bytes.to_vec()).unwrap();
    let invite = String::from_utf8(end.sent[0].bytes.to_vec()).unwrap();
    for line in ["Via", "Route", "From", "To", "Call-ID"] {
        assert_eq!(testing::header(&cancel, line), testing::header(&invite, line));
    }
    // Its own transaction, of which the user hears nothing.
    end.until(1_100);
    assert_eq!(end.take(), ["1100 CANCEL"]);
    assert_eq!(end.answer_to(2, "200 OK"), "absorbed");
    assert_eq!(end.answer("487 Request Terminated"), "passed");
    assert_eq!(end.take(), ["1100 ACK"]);
    end.finish();
    assert_eq!(end.log, ["33100 end"]);
}

#[test]
fn a_cancel_after_a_provisional_response() {
    let mut end = End::new();
    let id = end.ask("INVITE", NONE);
    end.answer("180 Ringing");
    end.until(1_000);
    end.cancel(id);
    end.cancel(id);
    assert_eq!(end.take(), ["0 INVITE", "1000 CANCEL"]);
    assert_eq!(end.answer_to(1, "200 OK"), "absorbed");
    // 9.1: 64 T1 after the CANCEL it is over, also if it goes on ringing.
    end.until(20_000);
    assert_eq!(end.answer("180 Ringing"), "passed");
    end.until(40_000);
    assert_eq!(end.take(), ["33000 timeout Cancel", "33000 end"]);
    end.empty();
}

#[test]
fn a_cancel_that_crosses_the_answer() {
    let mut end = End::new();
    let id = end.ask("INVITE", NONE);
    end.answer("180 Ringing");
    end.cancel(id);
    assert_eq!(end.answer("200 OK"), "passed");
    end.cancel(id);
    assert_eq!(end.answer_to(1, "481 No Such Transaction"), "absorbed");
    end.finish();
    assert_eq!(end.log, ["0 INVITE", "0 CANCEL", "32000 end"]);
    // After a final response there is nothing to cancel.
    let mut end = End::new();
    let id = end.ask("INVITE", NONE);
    end.answer("486 Busy Here");
    end.cancel(id);
    end.finish();
    end.cancel(id);
    assert_eq!(end.log, ["0 INVITE", "0 ACK", "32000 end"]);
    // Nor in another request.
    let mut end = End::new();
    let id = end.ask("OPTIONS", NONE);
    end.answer("100 Trying");
    end.cancel(id);
    assert_eq!(end.log, ["0 OPTIONS"]);
}

#[test]
fn a_cancel_that_cannot_arrive_ends_its_invite() {
    let mut end = End::new();
    let id = end.ask("INVITE", NONE);
    end.answer("180 Ringing");
    end.cancel(id);
    end.take();
    end.icmp();
    assert_eq!(end.log, ["0 error", "0 end"]);
    end.empty();
}

#[test]
fn another_request_without_answer() {
    let mut end = End::new();
    end.ask("OPTIONS", NONE);
    end.finish();
    let at = [0, 500, 1_500, 3_500, 7_500, 11_500, 15_500, 19_500, 23_500, 27_500, 31_500];
    let mut want = times("OPTIONS", &at);
    want.extend(["32000 timeout F".into(), "32000 end".into()]);
    assert_eq!(end.log, want);
    let mut end = End::reliable();
    end.ask("OPTIONS", NONE);
    end.finish();
    assert_eq!(end.log, ["0 OPTIONS", "32000 timeout F", "32000 end"]);
    let mut end = End::new();
    end.ask("OPTIONS", answer_within(1));
    end.finish();
    assert_eq!(end.log, ["0 OPTIONS", "500 OPTIONS", "1000 timeout F", "1000 end"]);
}

#[test]
fn a_provisional_response_makes_timer_e_t2() {
    let mut end = End::new();
    end.ask("REGISTER", NONE);
    end.until(100);
    assert_eq!(end.answer("100 Trying"), "passed");
    end.until(10_000);
    assert_eq!(end.answer("100 Trying"), "passed");
    end.finish();
    let at = [0, 500, 4_500, 8_500, 12_500, 16_500, 20_500, 24_500, 28_500];
    let mut want = times("REGISTER", &at);
    want.extend(["32000 timeout F".into(), "32000 end".into()]);
    assert_eq!(end.log, want);
}

#[test]
fn a_final_response_to_another_request() {
    for status in ["200 OK", "302 Moved", "404 Not Found", "600 Busy"] {
        for first in [None, Some("100 Trying")] {
            let mut end = End::new();
            end.ask("BYE", NONE);
            if let Some(status) = first {
                end.answer(status);
            }
            end.until(700);
            assert_eq!(end.answer(status), "passed");
            assert_eq!(end.transactions.held_bytes(), 0);
            assert_eq!(end.answer(status), "absorbed");
            assert_eq!(end.answer("100 Trying"), "absorbed");
            end.icmp();
            end.finish();
            assert_eq!(end.log, ["0 BYE", "500 BYE", "5700 end"], "Timer K");
            assert_eq!(end.answer(status), "unmatched");
        }
        let mut end = End::reliable();
        end.ask("BYE", NONE);
        assert_eq!(end.answer(status), "passed");
        assert_eq!(end.log, ["0 BYE", "0 end"]);
    }
}

#[test]
fn an_error_of_the_network_ends_another_request() {
    for first in [None, Some("100 Trying")] {
        let mut end = End::new();
        end.ask("BYE", NONE);
        if let Some(status) = first {
            end.answer(status);
        }
        end.icmp();
        assert_eq!(end.log, ["0 BYE", "0 error", "0 end"]);
        end.empty();
    }
}

#[test]
fn what_is_no_request_is_not_sent() {
    let mut end = End::new();
    let (branch, flow) = (end.transactions.branch(), end.flow());
    let mut send = |text: &[u8]| end.transactions.request(end.now, branch, flow, NONE, text);
    for text in ["", "INVITE", "ACK sip:b SIP/2.0", "CANCEL sip:b SIP/2.0", "SIP/2.0 200 OK", " x"]
    {
        assert_eq!(send(text.as_bytes()), Err(RequestError::Method), "{text}");
    }
    assert_eq!(send(b"\xff sip:b SIP/2.0"), Err(RequestError::Method));
    assert!(send(b"INVITE sip:b SIP/2.0\r\n\r\n").is_ok());
    assert_eq!(send(b"INVITE sip:b SIP/2.0\r\n\r\n"), Err(RequestError::Branch));
    end.finish();
}

#[test]
fn lateness_is_told() {
    let mut end = End::new();
    end.ask("OPTIONS", answer_within(3));
    end.transactions.handle_timeout(end.start + Duration::from_millis(3_700));
    let late = std::iter::from_fn(|| end.transactions.poll_command()).find_map(|command| {
        if let Command::Timeout { late, .. } = command { Some(late) } else { None }
    });
    assert_eq!(late, Some(Duration::from_millis(700)));
}
