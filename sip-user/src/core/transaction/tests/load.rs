//! Bounds, and very many.

use super::*;

fn config(transactions: usize, bytes: usize) -> Config {
    Config { transactions, bytes, ..Config::default() }
}

fn numbered(method: &str, number: usize) -> String {
    request(method, &format!("192.0.2.2;branch=z9hG4bK{number}"))
}

#[test]
fn a_full_table_refuses_and_goes_on() {
    let mut end = End::with(config(16, usize::MAX));
    let ids: Vec<_> = (0..16).map(|n| end.hear_new(&numbered("INVITE", n))).collect();
    assert_eq!(end.hear(&numbered("INVITE", 16)), RequestFate::Full);
    assert_eq!(end.hear(&numbered("CANCEL", 16)), RequestFate::Full, "of nothing");
    let branch = end.transactions.branch();
    let (flow, limits) = (end.flow(), Limits::default());
    let full = end.transactions.request(end.now, branch, flow, limits, theirs("BYE").into_bytes());
    assert_eq!(full, Err(RequestError::Full));
    // Who is inside is served, and a CANCEL comes in for what it cancels.
    assert_eq!(end.hear(&numbered("INVITE", 3)), RequestFate::Absorbed);
    for (n, id) in ids.iter().enumerate().take(2) {
        let fate = end.hear(&numbered("CANCEL", n));
        assert!(matches!(fate, RequestFate::New { cancels, .. } if cancels == Some(*id)));
    }
    assert_eq!(end.hear(&numbered("CANCEL", 2)), RequestFate::Full, "an eighth is two");
    for (n, id) in ids.iter().enumerate() {
        end.respond(*id, &numbered("INVITE", n), "486 Busy Here").unwrap();
        end.hear(&numbered("ACK", n));
    }
    end.until(5_000);
    end.hear_new(&numbered("INVITE", 16));
    end.finish();
}

#[test]
fn a_cancel_of_ours_has_room_in_a_full_table() {
    let mut end = End::with(config(8, usize::MAX));
    let ids: Vec<_> = (0..8).map(|_| end.ask("INVITE", Limits::default())).collect();
    end.answer_to(0, "180 Ringing");
    end.take();
    end.cancel(ids[0]);
    assert_eq!(end.take(), ["0 CANCEL"]);
    end.finish();
}

#[test]
fn bytes_are_bounded() {
    let one = numbered("INVITE", 0).len();
    let mut end = End::with(config(100, 2 * one));
    end.hear_new(&numbered("INVITE", 0));
    end.hear_new(&numbered("INVITE", 1));
    assert_eq!(end.transactions.held_bytes(), 2 * one);
    assert_eq!(end.hear(&numbered("INVITE", 2)), RequestFate::Full);
    // An eighth of that is less than a CANCEL has.
    assert_eq!(end.hear(&numbered("CANCEL", 0)), RequestFate::Full);
    end.finish();
    let mut end = End::with(config(100, 8 * one));
    (0..8).for_each(|n| _ = end.hear_new(&numbered("INVITE", n)));
    end.hear_new(&numbered("CANCEL", 0));
    assert_eq!(end.hear(&numbered("CANCEL", 1)), RequestFate::Full);
    end.finish();
    end.hear_new(&numbered("INVITE", 2));
}

#[test]
fn nothing_fits_into_nothing() {
    let mut end = End::with(config(0, 0));
    assert_eq!(end.hear(&theirs("INVITE")), RequestFate::Full);
    end.empty();
}

/// Half a million, started over 10 s and each left to its end: a third of them INVITEs that fail.
#[test]
fn half_a_million() {
    const COUNT: usize = 500_000;
    let mut transactions = Transactions::new([1, 2], config(COUNT, usize::MAX), Instant::now());
    let start = transactions.start;
    let peer = |n: usize| SocketAddr::from(([10, 0, (n >> 8) as u8, n as u8], 5060));
    let (mut most, mut sent, mut ended, mut failed) = (0, 0, 0, 0);
    let mut drain = |transactions: &mut Transactions| {
        while let Some(command) = transactions.poll_command() {
            match command {
                Command::Send(_) => sent += 1,
                Command::Terminated { .. } => ended += 1,
                _ => failed += 1,
            }
        }
    };
    let text: [Arc<[u8]>; 2] =
        ["OPTIONS sip:a@b SIP/2.0\r\n\r\n", "INVITE sip:a@b SIP/2.0\r\n\r\n"]
            .map(|text| text.as_bytes().into());
    let mut now = start;
    for n in 0..COUNT {
        now = start + Duration::from_micros(n as u64 * 20);
        if n % 64 == 0 {
            while transactions.poll_timeout().is_some_and(|at| at <= now) {
                transactions.handle_timeout(now);
                drain(&mut transactions);
            }
        }
        let branch = transactions.branch();
        let flow = Flow { local: 0, peer: peer(n), reliable: n % 4 != 0 };
        let text = text[usize::from(n % 3 == 0)].clone();
        transactions.request(now, branch, flow, Limits::default(), text).unwrap();
        most = most.max(transactions.len());
    }
    assert_eq!(most, COUNT);
    while let Some(at) = transactions.poll_timeout() {
        now = now.max(at);
        transactions.handle_timeout(now);
        drain(&mut transactions);
    }
    assert_eq!((ended, failed), (COUNT, COUNT));
    assert!(sent > 2 * COUNT, "{sent}");
    assert_eq!((transactions.len(), transactions.held_bytes()), (0, 0));
    assert!(transactions.out.capacity() <= 4 * BATCH, "the queue has been given back");
    assert!(now - start < Duration::from_secs(43));
}

#[test]
fn a_flood_of_errors_costs_nothing() {
    let mut end = End::new();
    for _ in 0..1_000 {
        end.ask("INVITE", Limits::default());
    }
    for nth in 0..1_000 {
        end.answer_to(nth, "200 OK");
    }
    end.take();
    // Would walk a thousand each time if they were still listed.
    for _ in 0..100_000 {
        end.icmp();
    }
    assert_eq!(end.take(), [""; 0]);
    assert!(end.transactions.peers.first(PEER.parse().unwrap()).is_none());
}

#[test]
fn what_is_answered_makes_room() {
    let mut end = End::new();
    let register = |n: u32| request("REGISTER", &format!("192.0.2.2;branch=z9hG4bK{n}"));
    let ids: Vec<_> = (0..4).map(|n| end.hear_new(&register(n))).collect();
    let invite = theirs("INVITE");
    let call = end.hear_new(&invite);
    end.respond(call, &invite, "200 OK").unwrap();
    for n in [1, 0, 2] {
        end.respond(ids[n as usize], &register(n), "200 OK").unwrap();
        end.until(end.millis() as u64 + 1_000);
    }
    end.take();
    assert_eq!(end.transactions.make_room(end.now, 5), 0, "its client may not have the answer");
    end.until(4_000);
    assert_eq!(end.transactions.make_room(end.now, 6), 0, "there is room");
    assert_eq!(end.transactions.make_room(end.now, 1), 1, "the others are younger");
    end.drain();
    assert_eq!(end.take(), ["3500 100", "4000 end"]);
    assert_eq!(end.hear(&register(0)), RequestFate::Absorbed);
    end.hear_new(&register(1));
    end.until(10_000);
    end.take();
    assert_eq!(end.transactions.make_room(end.now, 4), 2, "before the call");
    end.drain();
    assert_eq!(end.take(), ["10000 end", "10000 end"]);
    assert_eq!(end.transactions.make_room(end.now, 0), 1);
    end.drain();
    assert_eq!(end.transactions.len(), 2, "one has no answer yet, and one is new");
}

#[test]
fn answered_calls_make_room() {
    let mut end = End::new();
    let invite = theirs("INVITE");
    let caller = end.hear_new(&invite);
    for _ in 0..4 {
        end.ask("INVITE", Limits::default());
    }
    // The 100 that we owe has gone before: those are not answered.
    end.until(1_000);
    for (n, status) in [(0, "200 OK"), (1, "486 Busy Here"), (2, "180 Ringing")] {
        assert_eq!(end.answer_to(n, status), "passed");
    }
    end.respond(caller, &invite, "200 OK").unwrap();
    end.until(8_999);
    assert_eq!(end.transactions.make_room(end.now, 0), 0, "their PBX may not have the ACK");
    end.until(9_000);
    end.take();
    assert_eq!(end.transactions.make_room(end.now, 0), 3);
    end.drain();
    assert_eq!(end.take(), ["9000 end"; 3]);
    assert_eq!(end.transactions.len(), 2, "one rings, and one has no answer");
    assert_eq!(end.answer_to(0, "200 OK"), "unmatched");
    assert_eq!(end.answer_to(2, "200 OK"), "passed");
    end.finish();
}

#[test]
fn who_has_ended_is_not_kept_as_answered() {
    let mut end = End::new();
    for n in 0..100u32 {
        let register = request("REGISTER", &format!("192.0.2.2;branch=z9hG4bK{n}"));
        let id = end.hear_new(&register);
        end.respond(id, &register, "200 OK").unwrap();
        end.until(u64::from(n + 1) * 1_000);
    }
    assert!(end.transactions.kept[Kept::Answered as usize].len() <= 33, "Timer J is 32 s");
    end.finish();
    assert_eq!(end.transactions.kept.each_ref().map(Answered::len), [0, 0]);
}
