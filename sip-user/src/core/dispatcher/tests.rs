//! The dispatcher on virtual time.

mod calls;
mod replica;

use super::*;
use crate::config::Accept;

const SECOND: Duration = Duration::from_secs(1);

fn rules() -> Probe {
    Probe {
        interval: 15 * SECOND,
        timeout: 2 * SECOND,
        fall: 3,
        rise: 2,
        accept: Accept::default(),
    }
}

fn pbx(n: u8) -> PbxConfig {
    PbxConfig {
        id: format!("pbx{n}"),
        address: address(n),
        weight: 1,
        state: AdminState::Active,
        limits: PbxLimits::default(),
    }
}

fn address(n: u8) -> SocketAddr {
    SocketAddr::from(([10, 0, 0, n], 5060))
}

fn local() -> SocketAddr {
    SocketAddr::from(([10, 0, 0, 254], 5060))
}

fn local6() -> SocketAddr {
    "[2001:db8::fe]:5060".parse().unwrap()
}

fn address6(n: u8) -> SocketAddr {
    format!("[2001:db8::{n}]:5060").parse().unwrap()
}

/// A PBX with an IPv6 address.
fn pbx6(n: u8) -> PbxConfig {
    PbxConfig { address: address6(n), ..pbx(n) }
}

/// A dispatcher in a world where time passes only when a test says so.
struct World {
    dispatcher: Dispatcher,
    now: Instant,
    sent: Vec<(Instant, SocketAddr, Token)>,
    changes: Vec<(Duration, String)>,
    start: Instant,
    pbxs: [Pbx; MAX_PBX as usize],
    pbxs6: [Pbx6; MAX_PBX as usize],
    schedules: ByFamily<Schedule>,
    /// Addresses that answer probes, with the code.
    alive: Vec<(SocketAddr, u16)>,
}

impl World {
    fn new(rules: Probe, pbxs: &[PbxConfig]) -> Self {
        let start = Instant::now();
        let mut world = Self {
            dispatcher: Dispatcher::new(&[local(), local6()], rules.clone()),
            now: start,
            start,
            sent: Vec::new(),
            changes: Vec::new(),
            pbxs: [Pbx::default(); MAX_PBX as usize],
            pbxs6: [Pbx6::default(); MAX_PBX as usize],
            schedules: ByFamily::default(),
            alive: pbxs.iter().map(|p| (p.address, 200)).collect(),
        };
        world.dispatcher.reload(start, pbxs, rules).unwrap();
        world.settle();
        world
    }

    /// Applies commands as the daemon does, PBXs answering at once.
    fn settle(&mut self) {
        while let Some(command) = self.dispatcher.poll_command() {
            match command {
                Command::Send { from, to, datagram } => {
                    assert_eq!(from, if to.is_ipv4() { local() } else { local6() });
                    let text = String::from_utf8(datagram).unwrap();
                    let at = text.find("branch=").unwrap() + 7;
                    let token = Token::from_branch(&text.as_bytes()[at..at + 26]).unwrap();
                    self.sent.push((self.now, to, token));
                    if let Some((_, code)) = self.alive.iter().find(|(a, _)| *a == to) {
                        assert!(self.dispatcher.handle_answer(self.now, token, *code));
                    }
                }
                Command::Pbx { slot, pbx } => self.pbxs[slot as usize] = pbx,
                Command::Pbx6 { slot, pbx } => self.pbxs6[slot as usize] = pbx,
                Command::Schedule { family, schedule } => {
                    *self.schedules.get_mut(family) = *schedule
                }
                Command::Tell(evidence) => panic!("it follows nobody: {evidence:?}"),
                Command::Changed { id, from, to, reason } => {
                    let text = format!("{id} {from:?} {to:?}: {reason}");
                    self.changes.push((self.now - self.start, text));
                }
            }
        }
        // What is mirrored is what is decided.
        for slot in 0..MAX_PBX {
            assert_eq!(self.pbxs[slot as usize], self.dispatcher.pbx(slot));
            assert_eq!(self.pbxs6[slot as usize], self.dispatcher.pbx6(slot));
        }
        assert_eq!(&self.schedules.v4, self.dispatcher.schedule());
        assert_eq!(&self.schedules.v6, self.dispatcher.schedule6());
    }

    /// Lets time pass, waking up when asked to.
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(next) = self.dispatcher.poll_timeout().filter(|t| *t <= end) {
            self.now = self.now.max(next);
            self.dispatcher.handle_timeout(self.now);
            self.settle();
        }
        self.now = end;
    }

    fn state(&self, n: u8) -> PbxState {
        let id = format!("pbx{n}");
        self.dispatcher.views().iter().find(|v| v.id == id).unwrap().state
    }

    fn turns(&self) -> Vec<u8> {
        self.schedules.v4.slots[..self.schedules.v4.len as usize].to_vec()
    }

    fn kill(&mut self, n: u8) {
        self.alive.retain(|(a, _)| *a != address(n));
    }

    fn slot(&self, n: u8) -> u8 {
        self.dispatcher.slot_at(address(n)).unwrap() as u8
    }
}

#[test]
fn first_probes_are_spread_and_then_regular() {
    let mut world = World::new(rules(), &[pbx(1), pbx(2)]);
    world.pass(31 * SECOND);
    let times: Vec<_> = world.sent.iter().map(|(t, _, _)| (*t - world.start).as_millis()).collect();
    assert_eq!(times, [0, 500, 15_000, 15_500, 30_000, 30_500]);
    let mut tokens: Vec<_> = world.sent.iter().map(|(_, _, t)| t.0).collect();
    tokens.sort();
    tokens.dedup();
    assert_eq!(tokens.len(), 6);
}

#[test]
fn a_silent_pbx_is_out_after_fall_failures_and_in_after_rise_successes() {
    let mut world = World::new(rules(), &[pbx(1), pbx(2)]);
    world.pass(SECOND);
    world.kill(1);
    // Probes at 15, 30 and 45 s, the last given up at 47 s.
    world.pass(45 * SECOND);
    assert_eq!(world.state(1), PbxState::Active);
    world.pass(SECOND);
    assert_eq!(world.state(1), PbxState::Inactive);
    assert_eq!(world.turns(), [world.slot(2)]);
    assert_eq!(world.dispatcher.views()[0].reason.as_deref(), Some("no answer to OPTIONS"));
    world.alive.push((address(1), 200));
    // 60 s: the first success; 75 s: the second.
    world.pass(20 * SECOND);
    assert_eq!(world.state(1), PbxState::Inactive);
    world.pass(10 * SECOND);
    assert_eq!(world.state(1), PbxState::Active);
    assert_eq!(
        world.changes[2..],
        [
            (47 * SECOND, "pbx1 Active Inactive: no answer to OPTIONS".to_owned()),
            (75 * SECOND, "pbx1 Inactive Active: OPTIONS answered with 200".to_owned()),
        ]
    );
}

#[test]
fn a_probe_is_repeated_within_its_timeout() {
    let mut world = World::new(rules(), &[pbx(1)]);
    world.kill(1);
    world.pass(20 * SECOND);
    let times: Vec<_> = world.sent.iter().map(|(t, _, _)| (*t - world.start).as_millis()).collect();
    // T1 = 500 ms, then 1 s; the next would be at 3.5 s, past the timeout (RFC 3261 17.1.2.2).
    assert_eq!(times, [0, 500, 1500, 15_000, 15_500, 16_500]);
    assert_eq!(world.sent[0].2, world.sent[2].2);
    assert_ne!(world.sent[0].2, world.sent[3].2);
}

#[test]
fn one_success_between_failures_starts_the_count_anew() {
    let mut world = World::new(Probe { rise: 1, ..rules() }, &[pbx(1)]);
    for _ in 0..5 {
        world.kill(1);
        world.pass(30 * SECOND);
        world.alive.push((address(1), 200));
        world.pass(15 * SECOND);
    }
    assert_eq!(world.state(1), PbxState::Active);
}

#[test]
fn answers_that_do_not_count_are_failures_and_are_told() {
    let mut world = World::new(rules(), &[pbx(1), pbx(2)]);
    world.alive = vec![(address(1), 503), (address(2), 404)];
    world.pass(60 * SECOND);
    assert_eq!(world.state(1), PbxState::Inactive);
    assert_eq!(world.state(2), PbxState::Active);
    let views = world.dispatcher.views();
    assert_eq!(views[0].reason.as_deref(), Some("OPTIONS answered with 503"));
    assert_eq!(views[1].last_probe, Some(Ok(404)));
}

#[test]
fn provisional_answers_do_not_decide() {
    let mut world = World::new(Probe { fall: 1, ..rules() }, &[pbx(1)]);
    world.alive = vec![(address(1), 100)];
    world.pass(18 * SECOND);
    assert_eq!(world.state(1), PbxState::Inactive);
}

#[test]
fn icmp_counts_at_once_and_asks_at_once() {
    let mut world = World::new(Probe { rise: 1, ..rules() }, &[pbx(1), pbx(2)]);
    world.pass(5 * SECOND);
    world.kill(1);
    world.dispatcher.handle_unreachable(world.now, address(1), Unreachable::Port);
    world.settle();
    assert_eq!(world.state(1), PbxState::Inactive);
    assert_eq!(world.turns(), [world.slot(2)]);
    world.sent.clear();
    world.pass(Duration::ZERO);
    assert_eq!(world.sent.len(), 1);
    assert_eq!(world.sent[0].1, address(1));
    // The probe provokes another error: no probe follows upon that one at once.
    for _ in 0..3 {
        world.dispatcher.handle_unreachable(world.now, address(1), Unreachable::Port);
        world.settle();
        world.pass(Duration::ZERO);
    }
    assert_eq!(world.sent.len(), 1);
    // An error from somewhere else changes nothing.
    world.dispatcher.handle_unreachable(world.now, address(9), Unreachable::Host);
    world.settle();
    assert_eq!(world.state(2), PbxState::Active);
}

#[test]
fn a_forged_icmp_error_is_undone_by_the_probe() {
    let mut world = World::new(Probe { rise: 1, ..rules() }, &[pbx(1)]);
    world.pass(5 * SECOND);
    world.dispatcher.handle_unreachable(world.now, address(1), Unreachable::Host);
    world.settle();
    assert_eq!(world.state(1), PbxState::Inactive);
    assert!(world.turns().is_empty());
    world.pass(Duration::ZERO);
    assert_eq!(world.state(1), PbxState::Active);
}

#[test]
fn our_own_lateness_is_not_held_against_a_pbx() {
    let mut world = World::new(Probe { fall: 1, ..rules() }, &[pbx(1)]);
    world.pass(SECOND);
    world.kill(1);
    world.pass(14 * SECOND);
    // We sleep for a minute with a probe out.
    world.now += 60 * SECOND;
    world.dispatcher.handle_timeout(world.now);
    world.alive.push((address(1), 200));
    world.settle();
    assert_eq!(world.state(1), PbxState::Active);
    assert!(world.sent.last().unwrap().0 == world.now, "asked again at once");
}

#[test]
fn answers_to_nothing_are_not_ours() {
    let mut world = World::new(rules(), &[pbx(1)]);
    world.pass(SECOND);
    assert!(!world.dispatcher.handle_answer(world.now, Token(1), 200));
    // Late: the transaction is over.
    let token = world.sent[0].2;
    assert!(!world.dispatcher.handle_answer(world.now, token, 200));
}

#[test]
fn drain_disable_enable() {
    let mut world = World::new(rules(), &[pbx(1), pbx(2)]);
    world.pass(SECOND);
    let order = |world: &mut World, admin| {
        let now = world.now;
        world.dispatcher.set_admin(now, "pbx1", admin).unwrap();
        world.settle();
    };
    order(&mut world, AdminState::Draining);
    assert_eq!(world.state(1), PbxState::Draining);
    assert_eq!(world.turns(), [world.slot(2)]);
    order(&mut world, AdminState::Disabled);
    assert_eq!(world.state(1), PbxState::Disabled);
    world.sent.clear();
    world.pass(60 * SECOND);
    assert!(world.sent.iter().all(|(_, to, _)| *to != address(1)), "disabled is not probed");
    world.dispatcher.handle_unreachable(world.now, address(1), Unreachable::Port);
    assert_eq!(world.state(1), PbxState::Disabled);
    order(&mut world, AdminState::Active);
    assert_eq!(world.state(1), PbxState::Active);
    world.sent.clear();
    world.pass(Duration::ZERO);
    assert_eq!(world.sent.len(), 1, "asked at once");
    let error = world.dispatcher.set_admin(world.now, "pbx9", AdminState::Active);
    assert_eq!(error, Err(Refusal::UnknownId("pbx9".into())));
}

#[test]
fn a_draining_pbx_that_dies_and_comes_back_is_draining() {
    let mut world = World::new(
        Probe { rise: 1, ..rules() },
        &[PbxConfig { state: AdminState::Draining, ..pbx(1) }],
    );
    world.pass(SECOND);
    world.kill(1);
    world.dispatcher.handle_unreachable(world.now, address(1), Unreachable::Port);
    world.settle();
    assert_eq!(world.state(1), PbxState::Inactive);
    world.alive.push((address(1), 200));
    world.pass(16 * SECOND);
    assert_eq!(world.state(1), PbxState::Draining);
}

#[test]
fn add_and_remove() {
    let mut world = World::new(rules(), &[pbx(1)]);
    let now = world.now;
    let slot = world.dispatcher.add(now, &pbx(2)).unwrap();
    world.alive.push((address(2), 200));
    world.settle();
    assert_eq!(world.turns().len(), 2);
    assert_eq!(world.pbxs[slot as usize].endpoint(), Endpoint::new([10, 0, 0, 2], 5060));
    let refused = |world: &mut World, pbx| world.dispatcher.add(now, &pbx).unwrap_err();
    assert_eq!(refused(&mut world, pbx(1)), Refusal::IdTaken("pbx1".into()));
    assert_eq!(
        refused(&mut world, PbxConfig { id: "other".into(), ..pbx(1) }),
        Refusal::AddressTaken { address: address(1), by: "pbx1".into() }
    );
    assert_eq!(
        refused(&mut world, PbxConfig { id: "a b".into(), ..pbx(3) }),
        Refusal::BadId("a b".into())
    );
    assert_eq!(refused(&mut world, PbxConfig { weight: 17, ..pbx(3) }), Refusal::BadWeight(17));
    let nowhere = PbxConfig { address: "[fe80::1]:5060".parse().unwrap(), ..pbx(3) };
    assert!(matches!(refused(&mut world, nowhere), Refusal::BadAddress { .. }));
    world.dispatcher.remove("pbx2").unwrap();
    world.settle();
    assert_eq!(world.turns(), [world.slot(1)]);
    assert_eq!(world.pbxs[slot as usize], Pbx::default());
    assert_eq!(world.dispatcher.remove("pbx2"), Err(Refusal::UnknownId("pbx2".into())));
}

#[test]
fn there_is_room_for_all_and_no_more() {
    let all: Vec<_> = (1..=64).map(pbx).collect();
    let mut world = World::new(rules(), &all);
    assert_eq!(world.turns().len(), 64);
    let error = world.dispatcher.add(world.now, &pbx(65));
    assert_eq!(error, Err(Refusal::Full));
    let mut more = all.clone();
    more.push(pbx(65));
    assert_eq!(world.dispatcher.reload(world.now, &more, rules()), Err(Refusal::Full));
    assert_eq!(world.dispatcher.views().len(), 64);
}

#[test]
fn slots_follow_the_id_and_not_the_order() {
    let forward = World::new(rules(), &[pbx(1), pbx(2), pbx(3)]);
    let backward = World::new(rules(), &[pbx(3), pbx(2), pbx(1)]);
    let without = World::new(rules(), &[pbx(3)]);
    for n in 1..=3 {
        assert_eq!(forward.slot(n), backward.slot(n));
    }
    assert_eq!(forward.slot(3), without.slot(3));
}

#[test]
fn a_slot_is_reused_as_late_as_possible() {
    let mut world = World::new(rules(), &[pbx(1)]);
    let first = world.slot(1);
    world.dispatcher.remove("pbx1").unwrap();
    // The same id again, on another machine: calls in progress must not reach it.
    world.dispatcher.add(world.now, &PbxConfig { address: address(9), ..pbx(1) }).unwrap();
    assert_ne!(world.slot(9), first);
}

#[test]
fn reload_keeps_what_is_known() {
    let mut world = World::new(rules(), &[pbx(1), pbx(2), pbx(3)]);
    world.pass(SECOND);
    world.kill(1);
    world.dispatcher.handle_unreachable(world.now, address(1), Unreachable::Port);
    world.dispatcher.set_admin(world.now, "pbx2", AdminState::Draining).unwrap();
    let by_hand = PbxConfig { id: "hand".into(), ..pbx(7) };
    world.dispatcher.add(world.now, &by_hand).unwrap();
    world.settle();
    let since = world.dispatcher.views()[1].since;
    // pbx3 goes, pbx4 comes, pbx2 gets a weight.
    let file = [pbx(1), PbxConfig { weight: 3, ..pbx(2) }, pbx(4)];
    world.pass(SECOND);
    world.dispatcher.reload(world.now, &file, rules()).unwrap();
    world.settle();
    let ids: Vec<_> = world.dispatcher.views().iter().map(|v| v.id.to_owned()).collect();
    assert_eq!(ids, ["hand", "pbx1", "pbx2", "pbx4"]);
    assert_eq!(world.state(1), PbxState::Inactive);
    assert_eq!(world.dispatcher.views()[1].since, since);
    assert_eq!(world.state(2), PbxState::Draining, "an order by hand outlives a reload");
    assert_eq!(world.state(4), PbxState::Active);
    // The file speaks about pbx2 itself: that counts.
    let file = [PbxConfig { state: AdminState::Disabled, ..pbx(2) }];
    world.dispatcher.reload(world.now, &file, rules()).unwrap();
    world.settle();
    assert_eq!(world.state(2), PbxState::Disabled);
    assert_eq!(world.dispatcher.views().len(), 2);
}

#[test]
fn reload_that_is_refused_changes_nothing() {
    let mut world = World::new(rules(), &[pbx(1)]);
    let by_hand = PbxConfig { id: "hand".into(), ..pbx(7) };
    world.dispatcher.add(world.now, &by_hand).unwrap();
    world.settle();
    let error = world.dispatcher.reload(world.now, &[pbx(7)], rules());
    assert_eq!(error, Err(Refusal::AddressTaken { address: address(7), by: "hand".into() }));
    assert!(world.dispatcher.poll_command().is_none());
    assert_eq!(world.dispatcher.views().len(), 2);
    // The file may take a PBX over by its id.
    let file = [pbx(1), PbxConfig { id: "hand".into(), ..pbx(7) }];
    world.dispatcher.reload(world.now, &file, rules()).unwrap();
    world.dispatcher.reload(world.now, &[pbx(1)], rules()).unwrap();
    world.settle();
    assert_eq!(world.dispatcher.views().len(), 1);
}

#[test]
fn a_changed_address_is_another_machine() {
    let mut world = World::new(rules(), &[pbx(1)]);
    world.pass(SECOND);
    world.kill(1);
    world.dispatcher.handle_unreachable(world.now, address(1), Unreachable::Port);
    world.settle();
    let file = [PbxConfig { address: address(9), ..pbx(1) }];
    world.dispatcher.reload(world.now, &file, rules()).unwrap();
    world.settle();
    assert_eq!(world.state(1), PbxState::Active);
    assert_eq!(world.dispatcher.slot_at(address(1)), None);
    world.sent.clear();
    world.pass(Duration::ZERO);
    assert_eq!(world.sent[0].1, address(9));
}

#[test]
fn nobody_new_while_stopping() {
    let mut world = World::new(rules(), &[pbx(1)]);
    assert!(world.dispatcher.next_slot(Family::V4).is_some());
    world.dispatcher.set_accepting(false);
    world.settle();
    assert_eq!(world.dispatcher.next_slot(Family::V4), None);
    assert_eq!(world.state(1), PbxState::Active, "its calls go on");
}

#[test]
fn turns_go_around() {
    let mut world = World::new(rules(), &[pbx(1), PbxConfig { weight: 2, ..pbx(2) }]);
    let mut count = [0; MAX_PBX as usize];
    for _ in 0..300 {
        count[world.dispatcher.next_slot(Family::V4).unwrap() as usize] += 1;
    }
    assert_eq!(count[world.slot(1) as usize], 100);
    assert_eq!(count[world.slot(2) as usize], 200);
}

#[test]
fn each_family_has_its_turns_and_the_kernel_those_of_ipv4() {
    // Settling checks that the kernel has what is decided.
    let mut world = World::new(rules(), &[pbx(1), pbx6(2), pbx6(3)]);
    world.pass(SECOND);
    assert_eq!(world.sent.len(), 3, "all are probed, each from our address of its family");
    let slot = |world: &World, n| world.dispatcher.slot_at(address6(n)).unwrap();
    let (two, three) = (slot(&world, 2), slot(&world, 3));
    let turns = |world: &mut World, family| {
        let mut turns: Vec<_> = (0..4).filter_map(|_| world.dispatcher.next_slot(family)).collect();
        turns.sort_unstable();
        turns
    };
    let one = u32::from(world.slot(1));
    assert_eq!(turns(&mut world, Family::V4), [one; 4]);
    let mut both = [two, two, three, three];
    both.sort_unstable();
    assert_eq!(turns(&mut world, Family::V6), both);
    // The kernel: one PBX, one turn.
    assert_eq!(world.turns(), [world.slot(1)]);
    let used = world.pbxs.iter().filter(|pbx| **pbx != Pbx::default()).count();
    assert_eq!(used, 1);
    let (v4, v6) = (Family::V4, Family::V6);
    assert_eq!(world.dispatcher.pbx_of(two, v6), Some((address6(2), PbxState::Active)));
    assert_eq!(world.dispatcher.pbx_of(two, v4), None);
    assert_eq!(world.dispatcher.pbx_of(one, v6), None);
    // ICMPv6 counts at once, and for its family.
    world.alive.retain(|(a, _)| *a != address6(2));
    world.dispatcher.handle_unreachable(world.now, address6(2), Unreachable::Port);
    world.settle();
    assert_eq!(world.state(2), PbxState::Inactive);
    assert_eq!(turns(&mut world, Family::V6), [three; 4]);
    world.dispatcher.set_admin(world.now, "pbx3", AdminState::Draining).unwrap();
    world.settle();
    assert_eq!(turns(&mut world, Family::V6), [0; 0]);
    assert_eq!(turns(&mut world, Family::V4), [one; 4]);
    assert!(world.dispatcher.has(Family::V6));
}

#[test]
fn a_pbx_that_moves_to_ipv6_leaves_the_tables_of_ipv4() {
    let mut world = World::new(rules(), &[pbx(1), pbx(2)]);
    let slot = world.slot(1);
    world.dispatcher.reload(world.now, &[pbx6(1), pbx(2)], rules()).unwrap();
    world.settle();
    assert_eq!(world.dispatcher.slot_at(address6(1)), Some(u32::from(slot)));
    assert_eq!(world.pbxs[usize::from(slot)], Pbx::default());
    assert_eq!(world.pbxs6[usize::from(slot)].state, PbxState::Active as u8);
    assert_eq!(world.turns(), [world.slot(2)]);
    assert_eq!(world.schedules.v6.len, 1);
    assert_eq!(world.dispatcher.next_slot(Family::V6), Some(u32::from(slot)));
    world.dispatcher.reload(world.now, &[pbx(1), pbx(2)], rules()).unwrap();
    world.settle();
    assert_eq!(world.turns().len(), 2);
    assert_eq!((world.pbxs6[usize::from(slot)], world.schedules.v6.len), (Pbx6::default(), 0));
    assert!(!world.dispatcher.has(Family::V6));
}

#[test]
fn a_pbx_needs_an_address_of_ours_in_its_family() {
    let mut dispatcher = Dispatcher::new(&[local()], rules());
    let refused = |refusal: Refusal| {
        let text = refusal.to_string();
        assert!(text.contains("[2001:db8::1]:5060") && text.contains("IPv6"), "{text}");
    };
    let now = Instant::now();
    refused(dispatcher.add(now, &pbx6(1)).unwrap_err());
    refused(dispatcher.reload(now, &[pbx6(1)], rules()).unwrap_err());
    assert!(dispatcher.views().is_empty());
    assert!(dispatcher.poll_command().is_none());
    dispatcher.add(now, &pbx(1)).unwrap();
}
