//! Which message belongs to which transaction.

use super::*;

/// Of RFC 2543: no magic cookie.
fn old(method: &str) -> String {
    request(method, "192.0.2.2;branch=1")
}

fn cancels(fate: RequestFate) -> Option<ServerId> {
    match fate {
        RequestFate::New { cancels, .. } => cancels,
        other => panic!("{other:?}"),
    }
}

#[test]
fn with_the_magic_cookie_branch_sender_and_method_count() {
    let mut end = End::new();
    let bye = theirs("BYE");
    end.hear_new(&bye);
    // All else may differ.
    for same in [
        bye.replace("Call-ID: 42@x", "Call-ID: 43@x"),
        bye.replace("tag=a", "tag=b"),
        bye.replace("192.0.2.2;branch", "192.0.2.2:5060;branch"),
        bye.replace(";branch=", ";rport;branch="),
    ] {
        assert_eq!(end.hear(&same), RequestFate::Absorbed, "{same}");
    }
    for other in [
        bye.replace("theirs", "their"),
        bye.replace("theirs", "theirS"),
        bye.replace("192.0.2.2;branch", "192.0.2.3;branch"),
        bye.replace("192.0.2.2;branch", "192.0.2.2:5061;branch"),
        theirs("INFO"),
        theirs("BYES"),
        theirs("INVITE"),
    ] {
        end.hear_new(&other);
        assert_eq!(end.hear(&other), RequestFate::Absorbed);
    }
    // Host names are the same in any case.
    end.hear_new(&bye.replace("192.0.2.2;branch", "phone.example;branch"));
    let upper = bye.replace("192.0.2.2;branch", "Phone.EXAMPLE;branch");
    assert_eq!(end.hear(&upper), RequestFate::Absorbed);
    end.finish();
}

#[test]
fn a_cancel_finds_its_invite_and_has_a_transaction_of_its_own() {
    for make in [theirs, old] {
        let mut end = End::new();
        let (invite, cancel) = (make("INVITE"), make("CANCEL"));
        assert_eq!(cancels(end.hear(&cancel)), None, "before it");
        end.finish();
        end.take();
        let id = end.hear_new(&invite);
        let fate = end.hear(&cancel);
        let RequestFate::New { id: cancel_id, cancels: Some(found), .. } = fate else {
            panic!("{fate:?}")
        };
        assert_eq!(found, id);
        assert_eq!(end.hear(&cancel), RequestFate::Absorbed);
        end.respond(cancel_id, &cancel, "200 OK").unwrap();
        assert_eq!(end.hear(&cancel), RequestFate::Absorbed);
        end.respond(id, &invite, "487 Request Terminated").unwrap();
        let at = end.millis();
        let codes: Vec<_> = ["200", "200", "487"].map(|code| format!("{at} {code}")).into();
        assert_eq!(end.take(), codes);
        // Of another request: none.
        end.hear_new(&make("BYE").replace("CSeq: 1", "CSeq: 9").replace("theirs", "b"));
        let of_bye = cancel.replace("CSeq: 1", "CSeq: 9").replace("theirs", "b");
        assert_eq!(cancels(end.hear(&of_bye)), None);
    }
}

/// 17.2.3, second half.
#[test]
fn without_the_cookie_all_must_be_equal() {
    for method in ["INVITE", "BYE"] {
        let mut end = End::new();
        let first = old(method);
        end.hear_new(&first);
        assert_eq!(end.hear(&first), RequestFate::Absorbed);
        for other in [
            first.replace("sip:bob@192.0.2.2 ", "sip:eve@192.0.2.2 "),
            first.replace("To: <sip:bob@x>", "To: <sip:bob@x>;tag=z"),
            first.replace("tag=a", "tag=b"),
            first.replace("Call-ID: 42@x", "Call-ID: 43@x"),
            first.replace("CSeq: 1", "CSeq: 2"),
            first.replace("branch=1", "branch=2"),
            first.replace(";branch=1", ""),
            first.replace("192.0.2.2;branch", "192.0.2.3;branch"),
            old("INFO"),
        ] {
            end.hear_new(&other);
            assert_eq!(end.hear(&other), RequestFate::Absorbed);
        }
        // Other headers do not count.
        let more = first.replace("Max-Forwards: 70", "Max-Forwards: 69");
        assert_eq!(end.hear(&more), RequestFate::Absorbed);
        end.finish();
    }
}

#[test]
fn without_the_cookie_an_ack_has_the_tag_of_the_response() {
    let to = "To: <sip:bob@x>";
    // The first INVITE of a call, and one within it.
    for tag in ["", ";tag=us"] {
        for (status, for_user) in [("486 Busy Here", false), ("200 OK", true)] {
            let mut end = End::new();
            let invite = old("INVITE").replace(to, &format!("{to}{tag}"));
            let ack = |tag| old("ACK").replace(to, &format!("{to}{tag}"));
            let id = end.hear_new(&invite);
            assert_eq!(end.hear(&ack(";tag=us")), RequestFate::Ack(None), "of nothing yet");
            end.respond(id, &invite, "180 Ringing").unwrap();
            end.respond(id, &invite, status).unwrap();
            assert_eq!(end.hear(&ack(";tag=other")), RequestFate::Ack(None));
            assert_eq!(end.hear(&ack("")), RequestFate::Ack(None));
            let other = ack(";tag=us").replace("CSeq: 1", "CSeq: 2");
            assert_eq!(end.hear(&other), RequestFate::Ack(None));
            let fate = end.hear(&ack(";tag=us"));
            match for_user {
                true => assert_eq!(fate, RequestFate::Ack(Some(id))),
                false => {
                    assert_eq!(fate, RequestFate::Absorbed);
                    end.take();
                    end.finish();
                    assert_eq!(end.log, ["5000 end"], "Timer I");
                }
            }
        }
    }
}

#[test]
fn responses_are_found_by_branch_and_method() {
    let mut end = End::new();
    end.ask("INVITE", Limits::default());
    let invite = String::from_utf8(end.sent[0].bytes.to_vec()).unwrap();
    let good = testing::response(&invite, "180 Ringing", "x");
    let branch = testing::header(&good, "Via")[0].rsplit_once('=').unwrap().1.to_owned();
    let digit = if branch.ends_with('0') { "1" } else { "0" };
    for other in [
        good.replace("CSeq: 1 INVITE", "CSeq: 1 CANCEL"),
        good.replace("CSeq: 1 INVITE", "CSeq: 1 BYE"),
        good.replace(&branch, &branch[..branch.len() - 1]),
        good.replace(&branch, &format!("{}{digit}", &branch[..branch.len() - 1])),
        good.replace(&branch, &branch.replace("sldt", "sld")),
        good.replace(&branch, "z9hG4bKx"),
        good.replace(&format!(";branch={branch}"), ""),
        good.replace("CSeq: 1 INVITE", "CSeq: x"),
        good.replace("Via: ", "X: "),
    ] {
        assert_ne!(other, good);
        assert_eq!(end.hear_response(&other), "unmatched", "{other}");
    }
    assert_eq!(end.hear_response(&good), "passed");
    // What a proxy has put behind its branch is its own.
    let more = good.replace(&branch, &format!("{branch}.0123456789abcdef"));
    assert_eq!(end.hear_response(&more), "passed");
}

#[test]
fn wrong_kinds_and_what_cannot_be_read() {
    let mut end = End::new();
    let response = testing::response(&theirs("BYE"), "200 OK", "x");
    assert!(matches!(end.hear(&response), RequestFate::Malformed(_)));
    assert_eq!(end.hear_response(&theirs("BYE")), "unmatched");
    for broken in [
        theirs("BYE").replace("Via: ", "X: "),
        theirs("BYE").replace("SIP/2.0/UDP", "SIP"),
        old("BYE").replace("From: ", "X: "),
        old("BYE").replace("Call-ID: ", "X: "),
        old("ACK").replace("CSeq: 1", "CSeq: x"),
    ] {
        assert!(matches!(end.hear(&broken), RequestFate::Malformed(_)), "{broken}");
    }
    end.empty();
}

#[test]
fn a_name_is_never_another_ones() {
    let mut end = End::reliable();
    let bye = theirs("BYE");
    let first = end.hear_new(&bye);
    end.respond(first, &bye, "200 OK").unwrap();
    let second = end.hear_new(&bye);
    assert_ne!(first, second);
    assert_eq!(end.respond(first, &bye, "200 OK"), Err(RespondError::Gone));
    let third = end.ask("BYE", Limits::default());
    end.answer_to(1, "200 OK");
    end.cancel(third);
    end.respond(second, &bye, "200 OK").unwrap();
    end.empty();
}
