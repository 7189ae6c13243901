//! Calls that are placed with memory, on virtual time.

use proptest::prelude::*;

use super::*;

impl World {
    fn place(&mut self, tried: &Tried) -> Result<Placed, NoPbx> {
        let placed = self.dispatcher.place(self.now, Family::V4, tried);
        self.settle();
        placed
    }

    /// A call that the PBX answers so. Says which one it was; the call is over at once.
    #[track_caller]
    fn call(&mut self, status: impl Fn(SocketAddr) -> u16) -> SocketAddr {
        let mut placed = self.place(&Tried::default()).unwrap();
        self.answer(&mut placed.ticket, status(placed.address));
        placed.address
    }

    fn answer(&mut self, ticket: &mut Ticket, status: u16) {
        self.dispatcher.handle_call_response(self.now, ticket, status, None);
        self.settle();
    }

    fn silence(&mut self, ticket: &mut Ticket, late: Duration) {
        self.dispatcher.handle_call_timeout(self.now, ticket, late);
        self.settle();
    }

    fn view(&self, n: u8) -> View<'_> {
        let id = format!("pbx{n}");
        self.dispatcher.views().into_iter().find(|view| view.id == id).unwrap()
    }

    /// Takes a PBX out by its answers.
    fn put_out(&mut self, n: u8) {
        for _ in 0..20 {
            if self.state(n) == PbxState::Inactive {
                return;
            }
            self.call(|to| if to == address(n) { 503 } else { 200 });
        }
        panic!("it is still in");
    }
}

fn limited(n: u8, max_calls: u32, calls_per_second: u32) -> PbxConfig {
    PbxConfig { limits: PbxLimits { max_calls, calls_per_second }, ..pbx(n) }
}

#[test]
fn a_call_goes_to_each_pbx_once() {
    let mut world = World::new(rules(), &[pbx(1), pbx(2), pbx(3), pbx6(4)]);
    let mut tried = Tried::default();
    let mut seen = Vec::new();
    for n in 0..3 {
        assert_eq!(tried.len(), n);
        let placed = world.place(&tried).unwrap();
        assert_eq!(placed.slot, placed.ticket.slot());
        assert!(world.dispatcher.id(placed.slot).unwrap().starts_with("pbx"));
        tried.insert(placed.slot);
        seen.push(placed.address);
    }
    seen.sort_unstable();
    assert_eq!(seen, [address(1), address(2), address(3)]);
    let none = world.place(&tried).unwrap_err();
    assert_eq!(none.why, Shortage::Tried);
    // By weight and in turn otherwise; the other family has its own.
    let placed = world.dispatcher.place(world.now, Family::V6, &Tried::default()).unwrap();
    assert_eq!(placed.address, address6(4));
    world.dispatcher.set_accepting(false);
    world.settle();
    assert_eq!(world.place(&Tried::default()).unwrap_err().why, Shortage::Stopping);
}

/// The first family that has a PBX in use; one that is out because of failures comes after all of these.
#[test]
fn a_call_goes_to_the_first_family_that_takes_it() {
    let both = [Family::V6, Family::V4];
    let mut world = World::new(rules(), &[pbx(1), pbx(2), limited6(4, 1)]);
    let place = |world: &mut World, tried: &Tried| {
        let placed = world.dispatcher.place_in(world.now, &both, tried);
        world.settle();
        placed
    };
    let none = Tried::default();
    let first = place(&mut world, &none).unwrap();
    assert_eq!(first.address, address6(4));
    assert!(world.dispatcher.place_at(world.now, first.slot).is_none(), "it has no room");
    let second = place(&mut world, &none).unwrap();
    assert!(second.address.is_ipv4());
    drop(first);
    assert_eq!(place(&mut world, &none).unwrap().address, address6(4));
    let again = world.dispatcher.place_at(world.now, second.slot).unwrap();
    assert_eq!(again.address, second.address);
    assert!(world.dispatcher.is_there(Family::V4) && world.dispatcher.is_there(Family::V6));
    // Out by its answers: it is not asked while the other is in.
    world.put_out(1);
    let mut tried = Tried::default();
    for n in [2, 4] {
        assert!(world.state(1) == PbxState::Inactive);
        let placed = place(&mut world, &tried).unwrap();
        assert_ne!(placed.address, address(1), "{n}");
        tried.insert(placed.slot);
    }
    assert_eq!(place(&mut world, &tried).unwrap().address, address(1));
    tried.insert(u32::from(world.slot(1)));
    assert_eq!(place(&mut world, &tried).unwrap_err().why, Shortage::Tried);
    world.dispatcher.set_accepting(false);
    assert!(!world.dispatcher.is_there(Family::V4));
    assert!(world.dispatcher.place_at(world.now, second.slot).is_none());
}

fn limited6(n: u8, max_calls: u32) -> PbxConfig {
    PbxConfig { limits: PbxLimits { max_calls, calls_per_second: 0 }, ..pbx6(n) }
}

#[test]
fn calls_at_a_time() {
    let mut world = World::new(rules(), &[limited(1, 2, 0), limited(2, 1, 0)]);
    let none = Tried::default();
    let mut placed: Vec<_> = (0..3).map(|_| world.place(&none).unwrap()).collect();
    let at = |n| placed.iter().filter(|placed| placed.address == address(n)).count();
    assert_eq!((at(1), at(2)), (2, 1));
    assert_eq!(world.view(1).calls, 2);
    let busy = world.place(&none).unwrap_err();
    assert_eq!((busy.why, busy.retry_after), (Shortage::Busy, SECOND));
    // One ends.
    let gone = placed.remove(0);
    let address = gone.address;
    drop(gone);
    assert_eq!(world.place(&none).unwrap().address, address);
    // A new limit counts at once; a call to a machine that has left does not count at the new one.
    world.dispatcher.reload(world.now, &[limited(1, 9, 0), limited(2, 1, 0)], rules()).unwrap();
    world.settle();
    assert!(world.place(&none).is_ok());
    let moved = PbxConfig { address: super::address(9), ..limited(1, 9, 0) };
    world.dispatcher.reload(world.now, &[moved, limited(2, 1, 0)], rules()).unwrap();
    world.settle();
    assert_eq!(world.view(1).calls, 0);
}

#[test]
fn calls_per_second() {
    let mut world = World::new(rules(), &[limited(1, 0, 5)]);
    let none = Tried::default();
    let mut count = 0;
    for _ in 0..1000 {
        count += u32::from(world.place(&none).is_ok());
        world.pass(Duration::from_millis(10));
    }
    // Ten seconds, and the burst at the start.
    assert!((54..=55).contains(&count), "{count}");
    let busy = loop {
        if let Err(busy) = world.place(&none) {
            break busy;
        }
    };
    assert_eq!((busy.why, busy.retry_after), (Shortage::Busy, SECOND));
}

#[test]
fn a_flapping_pbx_gets_few_calls() {
    let mut world = World::new(rules(), &[pbx(1), pbx(2)]);
    world.pass(SECOND);
    let sick = |to| if to == address(1) { 503 } else { 200 };
    let mut failed = 0;
    // Ten calls a second for an hour. Its OPTIONS are answered all the time.
    for _ in 0..36_000 {
        failed += u32::from(world.call(sick) == address(1));
        world.pass(Duration::from_millis(100));
    }
    assert_eq!(world.view(1).last_probe, Some(Ok(200)));
    // Three, one after 5, 10, 20 and 40 s, and one in each minute.
    assert!((60..=70).contains(&failed), "{failed}");
    let text = &world.changes.last().unwrap().1;
    assert!(text.contains("calls answered with 503"), "{text}");
    // It gets well: within a minute it is on trial, and soon has its share.
    let mut share = 0;
    for n in 0..900 {
        let to = world.call(|_| 200);
        share += u32::from(n >= 700 && to == address(1));
        world.pass(Duration::from_millis(100));
    }
    assert_eq!(share, 100);
    assert_eq!(world.changes.last().unwrap().1, "pbx1 Active Active: it has passed its trial");
}

#[test]
fn a_trial_grows_and_the_kernel_has_no_part_in_it() {
    let mut world = World::new(rules(), &[pbx(1), pbx(2)]);
    world.put_out(1);
    assert_eq!(world.turns(), [world.slot(2)]);
    assert_eq!(world.view(1).reason.as_deref(), Some("calls answered with 503"));
    world.pass(4 * SECOND);
    assert_eq!(world.state(1), PbxState::Inactive);
    world.pass(SECOND);
    assert_eq!((world.state(1), world.view(1).trial), (PbxState::Active, Some(1)));
    assert_eq!(world.turns(), [world.slot(2)]);
    let none = Tried::default();
    for round in [1, 2, 4, 8] {
        assert_eq!(world.view(1).trial, Some(round));
        let mut placed: Vec<_> = (0..40).map(|_| world.place(&none).unwrap()).collect();
        placed.retain(|placed| placed.address == address(1));
        assert_eq!(placed.len(), round);
        for mut placed in placed {
            // What rings is well, and a failure after that is the call's.
            world.answer(&mut placed.ticket, 180);
            world.answer(&mut placed.ticket, 500);
        }
    }
    assert_eq!(world.view(1).trial, None);
    assert_eq!(world.turns().len(), 2);
    assert_eq!(world.view(1).reason, None);
}

#[test]
fn a_trial_is_every_other_call_at_most_and_no_second_choice() {
    let mut world = World::new(rules(), &[pbx(1), pbx(2)]);
    world.put_out(1);
    world.pass(5 * SECOND);
    let to: Vec<_> = (0..6).map(|_| world.call(|_| 404)).collect();
    let (one, two) = (address(1), address(2));
    assert!(to == [one, two, one, two, one, two] || to == [two, one, two, one, two, one], "{to:?}");
    // A call that has failed at the one that is well tries the other all the same.
    let mut tried = Tried::default();
    tried.insert(u32::from(world.slot(2)));
    assert_eq!(world.place(&tried).unwrap().address, one);
    // Given up before there is an answer: that says nothing.
    let before = world.view(1).trial;
    for _ in 0..50 {
        drop(world.place(&Tried::default()).unwrap());
    }
    assert_eq!(world.view(1).trial, before);
}

#[test]
fn retry_after() {
    let mut world = World::new(rules(), &[pbx(1), pbx(2)]);
    let none = Tried::default();
    let asks = |world: &mut World, seconds| {
        let mut placed = world.place(&none).unwrap();
        let after = Some(seconds * SECOND);
        world.dispatcher.handle_call_response(world.now, &mut placed.ticket, 503, after);
        world.settle();
        placed.address
    };
    let first = asks(&mut world, 20);
    let second = asks(&mut world, 3600);
    assert_ne!(first, second);
    // Both asked for it, so both have it; the second not for an hour.
    let busy = world.place(&none).unwrap_err();
    assert_eq!((busy.why, busy.retry_after), (Shortage::Busy, 20 * SECOND));
    assert!(world.turns().is_empty());
    assert_eq!(world.dispatcher.next_slot(Family::V4), None);
    world.pass(19 * SECOND);
    assert_eq!(world.place(&none).unwrap_err().retry_after, SECOND);
    world.pass(SECOND);
    assert_eq!(world.place(&none).unwrap().address, first);
    // A call without memory finds it too, because there is nobody else.
    assert_eq!(world.dispatcher.next_slot(Family::V4), world.dispatcher.slot_at(first));
    world.pass(40 * SECOND);
    let both: std::collections::HashSet<_> = (0..4).map(|_| world.call(|_| 200)).collect();
    assert_eq!(both.len(), 2);
}

#[test]
fn silence_counts_at_once_but_not_ours() {
    let mut world = World::new(rules(), &[pbx(1), pbx(2)]);
    world.pass(SECOND);
    world.sent.clear();
    let mut placed = world.place(&Tried::default()).unwrap();
    // We slept, and so has nobody else.
    world.silence(&mut placed.ticket, SECOND);
    assert_eq!(world.turns().len(), 2);
    let mut placed = world.place(&Tried::default()).unwrap();
    world.silence(&mut placed.ticket, Duration::from_millis(20));
    assert_eq!(world.turns().len(), 1);
    let dead = if placed.address == address(1) { 1 } else { 2 };
    assert_eq!(world.view(dead).reason.as_deref(), Some("no answer to a call"));
    // It is asked at once, and an answer does not bring it back.
    world.pass(Duration::ZERO);
    assert_eq!(world.sent.len(), 1);
    assert_eq!(world.sent[0].1, address(dead));
    assert_eq!(world.state(dead), PbxState::Inactive);
    world.pass(5 * SECOND);
    assert_eq!(world.view(dead).trial, Some(1));
    // A late answer to the call from before changes nothing.
    world.answer(&mut placed.ticket, 200);
    assert_eq!(world.view(dead).trial, Some(1));
}

#[test]
fn the_last_one_stays() {
    let mut world = World::new(rules(), &[pbx(1), pbx(2), pbx6(3)]);
    world.pass(SECOND);
    world.put_out(1);
    for _ in 0..10 {
        world.call(|_| 500);
    }
    assert_eq!(world.state(2), PbxState::Active);
    let mut placed = world.place(&Tried::default()).unwrap();
    world.silence(&mut placed.ticket, Duration::ZERO);
    assert_eq!(world.state(2), PbxState::Active);
    // Until probes say that it is dead: then even the other one is better than none.
    world.kill(2);
    world.dispatcher.handle_unreachable(world.now, address(2), Unreachable::Port);
    world.settle();
    let mut placed = world.place(&Tried::default()).unwrap();
    assert_eq!((placed.address, world.view(1).trial), (address(1), Some(1)));
    // One at a time.
    assert_eq!(world.place(&Tried::default()).unwrap_err().why, Shortage::Busy);
    world.answer(&mut placed.ticket, 486);
    assert!(world.place(&Tried::default()).is_ok());
}

#[test]
fn what_is_about_the_request_is_not_held_against_a_pbx() {
    let mut world = World::new(rules(), &[pbx(1), pbx(2)]);
    for status in [404, 408, 480, 486, 501, 505, 513, 580, 603] {
        for _ in 0..10 {
            world.call(|_| status);
        }
    }
    assert_eq!(world.turns().len(), 2);
    assert!(world.changes.iter().all(|(_, text)| text.contains("configured")));
}

#[test]
fn an_order_by_hand_ends_a_pause() {
    let mut world = World::new(rules(), &[pbx(1), pbx(2)]);
    world.put_out(1);
    let order = |world: &mut World, admin| {
        let now = world.now;
        world.dispatcher.set_admin(now, "pbx1", admin).unwrap();
        world.settle();
    };
    order(&mut world, AdminState::Draining);
    assert_eq!(world.state(1), PbxState::Inactive);
    order(&mut world, AdminState::Active);
    assert_eq!((world.state(1), world.turns().len()), (PbxState::Active, 2));
    // Drained while it is on trial: no calls.
    world.put_out(1);
    world.pass(60 * SECOND);
    order(&mut world, AdminState::Draining);
    assert_eq!(world.view(1).trial, None);
    assert!((0..10).all(|_| world.call(|_| 200) == address(2)));
}

#[test]
fn a_pbx_that_dies_while_it_is_out_comes_back_on_trial() {
    let mut world = World::new(Probe { rise: 1, ..rules() }, &[pbx(1), pbx(2)]);
    world.pass(SECOND);
    world.put_out(1);
    world.kill(1);
    world.dispatcher.handle_unreachable(world.now, address(1), Unreachable::Port);
    world.settle();
    assert_eq!(world.view(1).reason.as_deref(), Some("port unreachable"));
    world.pass(30 * SECOND);
    assert_eq!((world.state(1), world.view(1).trial), (PbxState::Inactive, None));
    world.alive.push((address(1), 200));
    world.pass(16 * SECOND);
    assert_eq!((world.state(1), world.view(1).trial), (PbxState::Active, Some(1)));
    assert_eq!(world.turns(), [world.slot(2)]);
}

#[derive(Clone, Debug)]
enum Step {
    /// Which PBXs were tried.
    Place(u8),
    /// One of the calls, and the status; with Retry-After in seconds.
    Answer(usize, u16, Option<u64>),
    /// One of the calls, and how late it is noticed.
    Silence(usize, u64),
    End(usize),
    Pass(u64),
    Order(u8, AdminState),
    Dies(u8),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let status = prop_oneof![
        2 => Just(100u16),
        3 => Just(180),
        4 => Just(200),
        2 => Just(486),
        4 => Just(500),
        4 => Just(503),
    ];
    let admin = prop_oneof![
        3 => Just(AdminState::Active),
        1 => Just(AdminState::Draining),
        1 => Just(AdminState::Disabled),
    ];
    let step = prop_oneof![
        10 => (0..8u8).prop_map(Step::Place),
        10 => (0..64usize, status, proptest::option::weighted(0.1, 0..100_000u64))
            .prop_map(|(call, status, after)| Step::Answer(call, status, after)),
        2 => (0..64usize, 0..1000u64).prop_map(|(call, late)| Step::Silence(call, late)),
        4 => (0..64usize).prop_map(Step::End),
        4 => (0..20_000u64).prop_map(Step::Pass),
        1 => (1..4u8, admin).prop_map(|(n, admin)| Step::Order(n, admin)),
        1 => (1..4u8).prop_map(Step::Dies),
    ];
    proptest::collection::vec(step, 1..150)
}

proptest! {
    #[test]
    fn limits_hold_and_nothing_is_lost(steps in steps()) {
        let pbxs = [limited(1, 3, 0), limited(2, 0, 4), pbx(3)];
        let mut world = World::new(rules(), &pbxs);
        let mut calls: Vec<Placed> = Vec::new();
        for step in steps {
            match step {
                Step::Place(bits) => {
                    let mut tried = Tried::default();
                    for n in 1..=3u8 {
                        if bits & 1 << (n - 1) != 0 {
                            tried.insert(u32::from(world.slot(n)));
                        }
                    }
                    match world.place(&tried) {
                        Ok(placed) => {
                            prop_assert!(!tried.has(placed.slot));
                            let views = world.dispatcher.views();
                            let view = views.iter().find(|view| view.slot == placed.slot).unwrap();
                            prop_assert_eq!(view.state, PbxState::Active);
                            prop_assert_eq!(view.address, placed.address);
                            calls.push(placed);
                        }
                        Err(none) => {
                            let wait = none.retry_after;
                            prop_assert!(SECOND <= wait && wait <= 60 * SECOND);
                        }
                    }
                }
                Step::Answer(at, status, after) if !calls.is_empty() => {
                    let at = at % calls.len();
                    let after = after.map(Duration::from_secs);
                    let ticket = &mut calls[at].ticket;
                    world.dispatcher.handle_call_response(world.now, ticket, status, after);
                    world.settle();
                }
                Step::Silence(at, late) if !calls.is_empty() => {
                    let at = at % calls.len();
                    world.silence(&mut calls[at].ticket, Duration::from_millis(late));
                }
                Step::End(at) if !calls.is_empty() => drop(calls.swap_remove(at % calls.len())),
                Step::Answer(..) | Step::Silence(..) | Step::End(_) => {}
                Step::Pass(milliseconds) => world.pass(Duration::from_millis(milliseconds)),
                Step::Order(n, admin) => {
                    world.dispatcher.set_admin(world.now, &format!("pbx{n}"), admin).unwrap();
                    world.settle();
                }
                Step::Dies(n) => {
                    world.dispatcher.handle_unreachable(world.now, address(n), Unreachable::Host);
                    world.settle();
                }
            }
            for view in world.dispatcher.views() {
                let there = calls.iter().filter(|call| call.slot == view.slot).count();
                prop_assert_eq!(view.calls, there);
                let undecided = calls.iter().filter(|call| {
                    call.slot == view.slot && call.ticket.trial.is_some()
                });
                if let Some(at_once) = view.trial {
                    let standing = &world.dispatcher.entry(view.slot).unwrap().standing;
                    let trial = standing.under_way().unwrap();
                    let under_way = undecided
                        .filter(|call| call.ticket.trial.as_ref().unwrap().of().are(trial));
                    prop_assert!(under_way.count() <= at_once);
                    prop_assert_eq!(view.state, PbxState::Active);
                }
            }
            prop_assert!(world.view(1).calls <= 3);
        }
        // All come back in the end.
        drop(calls);
        for n in 1..=3u8 {
            world.dispatcher.set_admin(world.now, &format!("pbx{n}"), AdminState::Active).unwrap();
        }
        world.settle();
        world.pass(120 * SECOND);
        prop_assert_eq!(world.turns().len(), 3);
        let to: std::collections::HashSet<_> = (0..6).map(|_| world.call(|_| 200)).collect();
        prop_assert_eq!(to.len(), 3);
    }
}
