//! Both server machines, edge by edge.

use super::*;

#[test]
fn an_invite_has_its_100_after_200_ms() {
    let mut end = End::new();
    let invite = theirs("INVITE");
    let id = end.hear_new(&invite);
    end.until(100);
    assert_eq!(end.hear(&invite), RequestFate::Absorbed);
    assert_eq!(end.take(), [""; 0], "there is nothing to repeat");
    end.until(1_000);
    assert_eq!(end.hear(&invite), RequestFate::Absorbed);
    assert_eq!(end.take(), ["200 100", "1000 100"]);
    end.respond(id, &invite, "180 Ringing").unwrap();
    assert_eq!(end.hear(&invite), RequestFate::Absorbed);
    assert_eq!(end.take(), ["1000 180", "1000 180"]);
    end.respond(id, &invite, "183 Progress").unwrap();
    assert_eq!(end.hear(&invite), RequestFate::Absorbed);
    assert_eq!(end.take(), ["1000 183", "1000 183"], "the last one");
}

#[test]
fn the_100_is_the_users_if_it_is_fast() {
    let mut end = End::new();
    let invite = theirs("INVITE");
    let id = end.hear_new(&invite);
    end.respond(id, &invite, "100 Trying").unwrap();
    end.until(1_000);
    assert_eq!(end.take(), ["0 100"]);
}

#[test]
fn a_2xx_to_an_invite() {
    for first in [None, Some("180 Ringing")] {
        let mut end = End::new();
        let invite = theirs("INVITE");
        let id = end.hear_new(&invite);
        if let Some(status) = first {
            end.respond(id, &invite, status).unwrap();
        }
        end.take();
        end.respond(id, &invite, "200 OK").unwrap();
        assert_eq!(end.transactions.held_bytes(), 0);
        end.until(31_999);
        // RFC 6026 7.1: absorbed, since the user repeats its 2xx.
        assert_eq!(end.hear(&invite), RequestFate::Absorbed);
        end.respond(id, &invite, "200 OK").unwrap();
        assert_eq!(end.take(), ["0 200", "31999 200"]);
        assert_eq!(end.respond(id, &invite, "486 Busy Here"), Err(RespondError::Answered));
        assert_eq!(end.respond(id, &invite, "180 Ringing"), Err(RespondError::Answered));
        // An ACK with the branch of the INVITE is for the user all the same.
        assert_eq!(end.hear(&theirs("ACK")), RequestFate::Ack(Some(id)));
        assert_eq!(end.hear(&theirs("ACK")), RequestFate::Ack(Some(id)));
        end.until(32_000);
        assert_eq!(end.take(), ["32000 end"], "Timer L");
        assert_eq!(end.respond(id, &invite, "200 OK"), Err(RespondError::Gone));
        end.empty();
    }
    let mut end = End::reliable();
    let invite = theirs("INVITE");
    let id = end.hear_new(&invite);
    end.respond(id, &invite, "200 OK").unwrap();
    end.finish();
    assert_eq!(end.log, ["0 200", "32000 end"], "over TCP too");
}

#[test]
fn the_ack_of_a_2xx_is_no_transaction() {
    let mut end = End::new();
    let invite = theirs("INVITE");
    let id = end.hear_new(&invite);
    end.respond(id, &invite, "200 OK").unwrap();
    let ack = request("ACK", "192.0.2.2;branch=z9hG4bKanother");
    assert_eq!(end.hear(&ack), RequestFate::Ack(None));
    assert_eq!(end.transactions.len(), 1);
}

#[test]
fn a_failure_whose_ack_is_lost() {
    let mut end = End::new();
    let invite = theirs("INVITE");
    let id = end.hear_new(&invite);
    end.respond(id, &invite, "486 Busy Here").unwrap();
    assert_eq!(end.respond(id, &invite, "200 OK"), Err(RespondError::Answered));
    end.until(100);
    assert_eq!(end.hear(&invite), RequestFate::Absorbed);
    end.finish();
    let at = [0, 100, 500, 1_500, 3_500, 7_500, 11_500, 15_500, 19_500, 23_500, 27_500, 31_500];
    let mut want = times("486", &at);
    want.extend(["32000 timeout H".into(), "32000 end".into()]);
    assert_eq!(end.log, want);
}

#[test]
fn a_failure_and_its_ack() {
    let mut end = End::new();
    let invite = theirs("INVITE");
    let id = end.hear_new(&invite);
    end.respond(id, &invite, "180 Ringing").unwrap();
    // Before there is something to acknowledge.
    assert_eq!(end.hear(&theirs("ACK")), RequestFate::Absorbed);
    end.respond(id, &invite, "486 Busy Here").unwrap();
    end.until(600);
    assert_eq!(end.hear(&theirs("ACK")), RequestFate::Absorbed);
    assert_eq!(end.transactions.held_bytes(), 0);
    end.until(1_000);
    assert_eq!(end.hear(&theirs("ACK")), RequestFate::Absorbed);
    assert_eq!(end.hear(&invite), RequestFate::Absorbed);
    assert_eq!(end.respond(id, &invite, "486 Busy Here"), Err(RespondError::Answered));
    end.finish();
    assert_eq!(end.log, ["0 180", "0 486", "500 486", "5600 end"], "Timer I");
    assert_eq!(end.hear(&theirs("ACK")), RequestFate::Ack(None));
}

#[test]
fn timers_g_and_i_are_zero_over_tcp() {
    let mut end = End::reliable();
    let invite = theirs("INVITE");
    let id = end.hear_new(&invite);
    end.respond(id, &invite, "486 Busy Here").unwrap();
    end.until(10_000);
    assert_eq!(end.take(), ["0 486"]);
    assert_eq!(end.hear(&theirs("ACK")), RequestFate::Absorbed);
    assert_eq!(end.take(), ["10000 end"]);
    end.empty();
    end.hear_new(&invite);
    let id = end.hear_new(&request("INVITE", "192.0.2.2;branch=z9hG4bKother"));
    end.respond(id, &invite, "486 Busy Here").unwrap();
    end.take();
    end.until(42_000);
    assert_eq!(end.take()[1..], ["42000 timeout H", "42000 end"]);
}

#[test]
fn an_error_of_the_network_does_not_end_an_invite() {
    let invite = theirs("INVITE");
    for status in ["180 Ringing", "486 Busy Here", "200 OK"] {
        let mut end = End::new();
        let id = end.hear_new(&invite);
        end.icmp();
        assert_eq!(end.take(), [""; 0], "nothing has been sent");
        end.respond(id, &invite, status).unwrap();
        end.take();
        end.icmp();
        end.icmp();
        assert_eq!(end.take(), ["0 error"], "once for what was sent: {status}");
        assert_eq!(end.transactions.len(), 1);
        end.hear(&invite);
        end.hear(&theirs("ACK"));
        end.finish();
    }
}

#[test]
fn a_user_that_forgets_an_invite() {
    let mut end = End::new();
    let invite = theirs("INVITE");
    let id = end.hear_new(&invite);
    end.until(100_000);
    end.respond(id, &invite, "180 Ringing").unwrap();
    end.finish();
    let want = ["200 100", "100000 180", "824000 timeout Unanswered", "824000 end"];
    assert_eq!(end.log, want);
}

#[test]
fn another_request_is_answered() {
    for status in ["200 OK", "404 Not Found"] {
        let mut end = End::new();
        let bye = theirs("BYE");
        let id = end.hear_new(&bye);
        end.until(100);
        assert_eq!(end.hear(&bye), RequestFate::Absorbed);
        assert_eq!(end.take(), [""; 0]);
        end.respond(id, &bye, status).unwrap();
        assert_eq!(end.respond(id, &bye, status), Err(RespondError::Answered));
        end.until(20_000);
        assert_eq!(end.hear(&bye), RequestFate::Absorbed);
        end.finish();
        let code = &status[..3];
        let want = [format!("100 {code}"), format!("20000 {code}"), "32100 end".into()];
        assert_eq!(end.log, want, "Timer J");
        end.hear_new(&bye);
    }
    let mut end = End::reliable();
    let bye = theirs("BYE");
    let id = end.hear_new(&bye);
    end.respond(id, &bye, "200 OK").unwrap();
    assert_eq!(end.log, ["0 200", "0 end"]);
    end.empty();
}

/// RFC 4320.
#[test]
fn another_request_has_no_provisional_response_before_timer_e_is_t2() {
    let mut end = End::new();
    let bye = theirs("BYE");
    let id = end.hear_new(&bye);
    end.until(3_499);
    assert_eq!(end.respond(id, &bye, "100 Trying"), Err(RespondError::Provisional));
    assert_eq!(end.respond(id, &bye, "180 Ringing"), Err(RespondError::Provisional));
    assert_eq!(end.take(), [""; 0]);
    end.until(3_500);
    assert_eq!(end.take(), ["3500 100"], "but one then");
    assert_eq!(end.hear(&bye), RequestFate::Absorbed);
    end.respond(id, &bye, "100 Trying").unwrap();
    assert_eq!(end.respond(id, &bye, "183 Progress"), Err(RespondError::Provisional));
    assert_eq!(end.take(), ["3500 100", "3500 100"]);
    end.respond(id, &bye, "200 OK").unwrap();
    end.finish();
    assert_eq!(end.log, ["3500 200", "35500 end"]);
    // Over TCP a 100 may be sent at any time.
    let mut end = End::reliable();
    let id = end.hear_new(&bye);
    end.respond(id, &bye, "100 Trying").unwrap();
    assert_eq!(end.respond(id, &bye, "183 Progress"), Err(RespondError::Provisional));
    end.until(10_000);
    assert_eq!(end.take(), ["0 100"]);
    let id = end.hear_new(&theirs("INFO"));
    end.until(14_000);
    assert_eq!(end.take(), ["13500 100"]);
    end.respond(id, &bye, "200 OK").unwrap();
}

/// RFC 4320 4.2.
#[test]
fn another_request_is_never_answered_too_late() {
    let mut end = End::new();
    let bye = theirs("BYE");
    let id = end.hear_new(&bye);
    end.until(31_000);
    assert_eq!(end.respond(id, &bye, "408 Request Timeout"), Err(RespondError::RequestTimeout));
    end.until(32_000);
    assert_eq!(end.respond(id, &bye, "200 OK"), Err(RespondError::Gone));
    assert_eq!(end.log, ["3500 100", "32000 timeout Unanswered", "32000 end"]);
    end.empty();
    // To an INVITE it is a response like others.
    let invite = theirs("INVITE");
    let id = end.hear_new(&invite);
    end.respond(id, &invite, "408 Request Timeout").unwrap();
}

#[test]
fn an_error_of_the_network_ends_what_has_been_answered() {
    let mut end = End::new();
    let bye = theirs("BYE");
    let id = end.hear_new(&bye);
    end.icmp();
    assert_eq!(end.take(), [""; 0]);
    end.respond(id, &bye, "200 OK").unwrap();
    end.icmp();
    assert_eq!(end.log, ["0 200", "0 error", "0 end"]);
    end.empty();
    end.take();
    end.hear_new(&bye);
    end.until(3_500);
    end.icmp();
    assert_eq!(end.log, ["3500 100", "3500 error", "3500 end"]);
}

#[test]
fn what_is_no_response_is_not_sent() {
    let mut end = End::new();
    let invite = theirs("INVITE");
    let id = end.hear_new(&invite);
    for text in ["", "SIP/2.0", "SIP/2.0 99 x", "SIP/2.0 700 x", "SIP/2.0 +99 x", &invite] {
        let done = end.transactions.respond(end.now, id, text.as_bytes());
        assert_eq!(done, Err(RespondError::NotAResponse), "{text}");
    }
    assert_eq!(end.take(), [""; 0]);
}

#[test]
fn responses_go_the_way_back() {
    let mut end = End::new();
    for (via, to) in [
        ("192.0.2.2;branch=z9hG4bK1", "192.0.2.2:5060"),
        ("10.0.0.1:5070;branch=z9hG4bK2", "192.0.2.2:5070"),
        ("10.0.0.1:5070;rport;branch=z9hG4bK3", "192.0.2.2:6000"),
    ] {
        let text = request("OPTIONS", via);
        let mut index = Index::new();
        let message = Message::parse(text.as_bytes(), &mut index).unwrap();
        let flow = Flow { peer: "192.0.2.2:6000".parse().unwrap(), local: 3, reliable: false };
        let fate = end.transactions.handle_request(end.now, &message, flow);
        let RequestFate::New { id, .. } = fate else { panic!("{fate:?}") };
        end.respond(id, &text, "200 OK").unwrap();
        let sent = end.sent.last().unwrap();
        assert_eq!((sent.to.to_string().as_str(), sent.local), (to, 3));
    }
}
