//! One dispatcher that decides, and some that follow, on virtual time.

use super::*;

/// They hear of each other as soon as the test says so.
struct Group {
    world: World,
    followers: Vec<Dispatcher>,
}

impl Group {
    fn new(pbxs: &[PbxConfig]) -> Self {
        let world = World::new(rules(), pbxs);
        let followers = (0..3).map(|_| world.dispatcher.follower()).collect();
        let mut group = Self { world, followers };
        group.world.dispatcher.set_call_rules(Dispatch::default());
        group.meet();
        group
    }

    /// Says how much was told.
    fn meet(&mut self) -> usize {
        let (mut told, now) = (0, self.world.now);
        for follower in &mut self.followers {
            while let Some(command) = follower.poll_command() {
                if let Command::Tell(evidence) = command {
                    self.world.dispatcher.handle_evidence(now, evidence);
                    told += 1;
                }
            }
        }
        self.world.settle();
        let snapshot = self.world.dispatcher.snapshot();
        self.followers.iter_mut().for_each(|follower| follower.follow(&snapshot));
        told
    }

    fn place(&mut self, follower: usize) -> Result<Placed, NoPbx> {
        self.followers[follower].place(self.world.now, Family::V4, &Tried::default())
    }

    fn answer(&mut self, follower: usize, ticket: &mut Ticket, status: u16) {
        self.followers[follower].handle_call_response(self.world.now, ticket, status, None);
    }
}

fn limited(n: u8, max_calls: u32, calls_per_second: u32) -> PbxConfig {
    PbxConfig { limits: PbxLimits { max_calls, calls_per_second }, ..pbx(n) }
}

#[test]
fn limits_hold_for_all_together() {
    let mut group = Group::new(&[limited(1, 4, 0), limited(2, 0, 3)]);
    let placed: Vec<_> = (0..20).filter_map(|n| group.place(n % 3).ok()).collect();
    let of = |n| placed.iter().filter(|placed| placed.address == address(n)).count();
    assert_eq!((of(1), of(2)), (4, 3));
    let views = group.world.dispatcher.views();
    assert_eq!(views.iter().map(|view| view.calls).collect::<Vec<_>>(), [4, 3]);
    drop(placed);
    assert_eq!(group.followers[1].views()[0].calls, 0);
    assert_eq!(group.place(2).unwrap().address, address(1));
}

#[test]
fn turns_are_taken_together() {
    let mut group = Group::new(&[pbx(1), pbx(2), pbx(3)]);
    let mut seen: Vec<_> = (0..3).map(|n| group.place(n).unwrap().address).collect();
    seen.sort_unstable();
    assert_eq!(seen, [address(1), address(2), address(3)]);
    let first = group.followers[0].next_slot(Family::V4);
    assert_ne!(first, group.followers[1].next_slot(Family::V4));
}

#[test]
fn what_one_hears_counts_for_all() {
    let mut group = Group::new(&[pbx(1), pbx(2)]);
    let call = |group: &mut Group, status: u16| {
        for n in [0, 1, 2, 0, 1, 2] {
            let mut placed = group.place(n).unwrap();
            let status = if placed.address == address(1) { status } else { 200 };
            group.answer(n, &mut placed.ticket, status);
        }
        group.meet()
    };
    assert_eq!(call(&mut group, 200), 0, "what goes well is no news");
    // Three in a row, each heard by another.
    assert!(call(&mut group, 503) >= 3);
    assert_eq!(group.world.state(1), PbxState::Inactive);
    assert!((0..9).all(|n| group.place(n % 3).unwrap().address == address(2)));
    // And then the trial, of which there is one for all.
    group.world.pass(6 * SECOND);
    group.meet();
    let mut on_trial = Vec::new();
    for n in (0..3).cycle().take(12) {
        let placed = group.place(n).unwrap();
        on_trial.extend((placed.address == address(1)).then_some((n, placed)));
    }
    assert_eq!(on_trial.len(), 1);
    for _ in 0..100 {
        for (n, mut placed) in on_trial.drain(..) {
            group.answer(n, &mut placed.ticket, 200);
        }
        group.meet();
        let n = on_trial.len() % 3;
        let placed = group.place(n).unwrap();
        on_trial.extend((placed.address == address(1)).then_some((n, placed)));
    }
    assert!(group.world.dispatcher.views()[0].trial.is_none(), "it has passed");
}

#[test]
fn a_trial_before_its_time_begins_with_who_needs_it() {
    let mut group = Group::new(&[pbx(1), pbx(2)]);
    for n in [0, 1, 2, 0, 1, 2] {
        let mut placed = group.place(n).unwrap();
        let status = if placed.address == address(1) { 503 } else { 200 };
        group.answer(n, &mut placed.ticket, status);
    }
    group.meet();
    let now = group.world.now;
    group.world.alive.retain(|(alive, _)| *alive != address(2));
    group.followers[2].handle_unreachable(now, address(2), Unreachable::Port);
    group.meet();
    assert_eq!([1, 2].map(|n| group.world.state(n)), [PbxState::Inactive; 2]);
    let mut placed = group.place(0).unwrap();
    assert_eq!(placed.address, address(1));
    assert_eq!(group.meet(), 1);
    assert_eq!(group.world.dispatcher.views()[0].trial, Some(1));
    assert_eq!(group.place(1).unwrap_err().why, Shortage::Busy);
    group.answer(0, &mut placed.ticket, 200);
    group.meet();
    assert_eq!(group.world.dispatcher.views()[0].trial, Some(2));
    assert!(group.followers.iter().all(|follower| follower.poll_timeout().is_none()));
}

#[test]
fn one_that_is_gone_or_has_moved_is_judged_by_nobody() {
    let mut group = Group::new(&[pbx(1)]);
    let mut placed = group.place(1).unwrap();
    let moved = PbxConfig { address: address(9), ..pbx(1) };
    let now = group.world.now;
    group.world.dispatcher.reload(now, &[moved, pbx(2)], rules()).unwrap();
    for _ in 0..9 {
        group.followers[1].handle_call_timeout(now, &mut placed.ticket, Duration::ZERO);
        group.meet();
    }
    assert_eq!(group.world.state(1), PbxState::Active);
    assert!(group.followers[0].slot_at(address(9)).is_some());
    assert_eq!(group.followers[0].views().len(), 2);
}
