//! Whatever happens, in whatever order: a request has one final response, or several 2xx, and nothing is left.

use proptest::prelude::*;

use super::*;

const TARGETS: u32 = 4;

#[derive(Clone, Debug)]
enum Step {
    /// A target that has its INVITE answers it.
    Answer(u32, u16),
    /// A target answers a CANCEL of ours, and perhaps its INVITE.
    Canceled(u32),
    Unreachable(u32),
    Cancel,
    Add(u32),
    NoMore,
    Pass(u64),
    /// Time passes, and nobody looks at the clock.
    Sleep(u64),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let status = prop_oneof![
        3 => Just(180u16),
        1 => Just(100u16),
        2 => Just(200u16),
        3 => prop_oneof![Just(302u16), Just(401), Just(404), Just(486), Just(487)],
        2 => prop_oneof![Just(500u16), Just(503)],
        1 => Just(603u16),
    ];
    let step = prop_oneof![
        10 => (0..TARGETS, status).prop_map(|(target, status)| Step::Answer(target, status)),
        2 => (0..TARGETS).prop_map(Step::Canceled),
        1 => (0..TARGETS).prop_map(Step::Unreachable),
        1 => Just(Step::Cancel),
        2 => (0..TARGETS).prop_map(Step::Add),
        1 => Just(Step::NoMore),
        3 => (0..50_000u64, 0..8u32).prop_map(|(by, scale)| Step::Pass(by >> scale)),
        1 => (0..50_000u64).prop_map(Step::Sleep),
    ];
    proptest::collection::vec(step, 0..40)
}

fn call() -> impl Strategy<Value = (Hunt, Vec<u16>, bool, bool)> {
    let hunt = prop_oneof![Just(Hunt::Fork), Just(Hunt::Failover)];
    let qs = proptest::collection::vec(prop_oneof![Just(500u16), Just(1000)], 0..TARGETS as usize);
    (hunt, qs, any::<bool>(), any::<bool>())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, ..ProptestConfig::default() })]
    #[test]
    fn one_answer_and_nothing_left((hunt, qs, more, is_invite) in call(), steps in steps()) {
        let mut w = World::new();
        let targets: Vec<_> =
            (0..).zip(&qs).map(|(tag, q)| Target { q: *q, ..pbx(tag) }).collect();
        let text = if is_invite { invite() } else { other("MESSAGE") };
        let method = if is_invite { "INVITE" } else { "MESSAGE" };
        w.forward(&text, |start| start.more = more, hunt, &targets).unwrap();
        let mut cancelled = false;
        for step in steps {
            match step {
                Step::Answer(target, status) => {
                    let key = (address(target), method.to_owned());
                    if let Some(request) = w.last.get(&key).cloned() {
                        let answer = response(&request, &format!("{status} x"), &format!("p{target}"));
                        w.hear_response(&answer);
                    }
                }
                Step::Canceled(target) => {
                    let key = (address(target), "CANCEL".to_owned());
                    if w.last.contains_key(&key) {
                        w.canceled(target);
                    }
                }
                Step::Unreachable(target) => w.unreachable(target),
                Step::Cancel if is_invite => {
                    w.cancel();
                    cancelled = true;
                }
                Step::Cancel => {}
                Step::Add(target) if w.asked.is_some() => _ = w.add(target),
                Step::NoMore if w.asked.is_some() => w.no_more(None),
                Step::Add(_) | Step::NoMore => {}
                Step::Pass(by) => {
                    let at = (w.now - w.start).as_millis() as u64;
                    w.until(at + by);
                }
                Step::Sleep(by) => w.now += Duration::from_millis(by),
            }
            // All that is pending is known by its transaction, and by nothing else.
            let branches = w.contexts.contexts.iter().map(|(_, context)| context.branches.len());
            let owned = w.contexts.by_client.values().filter(|o| matches!(o, Owner::Context(_)));
            prop_assert_eq!(branches.sum::<usize>(), owned.count());
        }
        w.finish();

        // One end, and then nothing.
        let ends = w.events.iter().filter(|event| {
            event.starts_with("answered") || event.starts_with("failed") || *event == "cancelled"
        });
        prop_assert_eq!(ends.count(), 1, "{:?}", w.events);
        prop_assert_eq!(w.events.iter().filter(|event| *event == "ended").count(), 1);
        prop_assert_eq!(w.events.last().map(String::as_str), Some("ended"));
        let answered = w.events.iter().any(|event| event.starts_with("answered"));
        if !cancelled {
            prop_assert!(!w.events.iter().any(|event| event == "cancelled"));
        }

        // What the caller has heard: repetitions aside, one final response, and 2xx only beside each other.
        let finals: Vec<u16> = w
            .last
            .keys()
            .filter(|(to, what)| to == CALLER && what.parse::<u16>().is_ok_and(|s| s >= 200))
            .filter(|key| header(&w.last[*key], "CSeq")[0].ends_with(method))
            .map(|(_, what)| what.parse().unwrap())
            .collect();
        prop_assert!(finals.len() <= 1, "{:?} {:?}", finals, w.events);
        // An owner that never says that there is no more leaves it unanswered, and so does silence.
        if answered {
            prop_assert_eq!(&finals, &[200]);
        }
        let silent = w.events.iter().any(|event| event == "failed 408");
        // Nobody waits for the answer to another request after 32 seconds.
        prop_assert!(!finals.is_empty() || silent || !is_invite, "{:?}", w.events);

        // Whoever has answered has its ACK from us, or the caller has its 2xx.
        for target in 0..TARGETS {
            let late = format!("late p{target}");
            if w.events.contains(&late) {
                let heard = &w.targets[&target];
                prop_assert!(heard.iter().any(|what| what == "ACK"));
                prop_assert!(heard.iter().any(|what| what == "BYE"));
            }
        }
    }

    #[test]
    fn damaged_responses_do_no_harm(
        damages in crate::core::testing::damages(),
        status in prop_oneof![Just("180 x"), Just("200 x"), Just("407 x"), Just("486 x")],
        late: bool,
    ) {
        let mut w = World::new();
        w.failover(1);
        if late {
            w.until(3_000);
        }
        let answer = response(&w.got(0, "INVITE"), status, "p").replace(
            "Content-Length",
            "Contact: <sip:p@10.0.1.1>\r\nProxy-Authenticate: Digest realm=\"a\"\r\nContent-Length",
        );
        let bytes = crate::core::testing::damaged(answer, &damages);
        let mut index = Index::new();
        // Those that are not well-formed are dropped before.
        if let Ok(message) = Message::parse(&bytes, &mut index)
            && message.check().is_ok()
            && let ResponseFate::Of(id) = w.transactions.handle_response(w.now, &message)
        {
            w.contexts.handle_response(w.now, &mut w.transactions, id, &message);
        }
        // What is forwarded is as odd as it came.
        while let Some(command) = w.transactions.poll_command() {
            if !matches!(command, transaction::Command::Send(_)) {
                w.contexts.handle(w.now, &mut w.transactions, &command);
            }
        }
        while w.contexts.poll_command().is_some() {}
    }

    #[test]
    fn damaged_requests_do_no_harm(damages in crate::core::testing::damages()) {
        let mut w = World::new();
        let text = invite().replace(
            "From:",
            "Route: <sip:a;lr>\r\nMax-Breadth: 4\r\nProxy-Authorization: Digest realm=\"x\"\r\nFrom:",
        );
        let bytes = crate::core::testing::damaged(text, &damages);
        let mut index = Index::new();
        let Ok(message) = Message::parse(&bytes, &mut index) else { return Ok(()) };
        let flow = Flow { local: 0, peer: CALLER.parse().unwrap(), reliable: false };
        let fate = w.transactions.handle_request(w.now, &message, flow);
        let RequestFate::New { id, request, .. } = fate else { return Ok(()) };
        let start = Start {
            server: id,
            request,
            from: CALLER.parse().unwrap(),
            owner: 0,
            hunt: Hunt::Fork,
            trying: true,
            more: false,
            unavailable: Unavailable::InternalError,
        };
        let targets = vec![target(0), target(1)];
        let _ = w.contexts.start(w.now, &mut w.transactions, start, targets);
        while let Some(at) = w.transactions.poll_timeout() {
            w.now = w.now.max(at);
            w.transactions.handle_timeout(w.now);
            while let Some(command) = w.transactions.poll_command() {
                if !matches!(command, transaction::Command::Send(_)) {
                    w.contexts.handle(w.now, &mut w.transactions, &command);
                }
            }
        }
        prop_assert!(w.contexts.is_empty());
    }
}
