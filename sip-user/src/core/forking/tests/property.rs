//! After any sequence of events, once all PBXs are up and answer, each has exactly our users.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

const USERS: usize = 6;

#[derive(Clone, Debug)]
enum Step {
    /// A user is registered for so many seconds from now, or not at all.
    User(usize, Option<u64>),
    Up(u32),
    Down(u32),
    /// A PBX forgets all.
    Restart(u32),
    /// It is taken out and put in again.
    Replace(u32),
    /// The oldest REGISTER is answered in this way.
    Answer(Fate),
    Pass(u64),
}

#[derive(Clone, Copy, Debug)]
enum Fate {
    Taken,
    /// Taken, but the answer is lost.
    TakenUnseen,
    /// Taken for a shorter time.
    Shorter,
    Refused(u16),
    Brief,
    Challenged,
    Lost,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let fate = prop_oneof![
        4 => Just(Fate::Taken),
        1 => Just(Fate::TakenUnseen),
        1 => Just(Fate::Shorter),
        2 => prop_oneof![Just(403u16), Just(404), Just(500), Just(503), Just(603), Just(302)]
            .prop_map(Fate::Refused),
        1 => Just(Fate::Brief),
        1 => Just(Fate::Challenged),
        2 => Just(Fate::Lost),
    ];
    let until = proptest::option::weighted(0.7, 60..5000u64);
    let step = prop_oneof![
        6 => (0..USERS, until).prop_map(|(user, until)| Step::User(user, until)),
        1 => (0..2u32).prop_map(Step::Up),
        1 => (0..2u32).prop_map(Step::Down),
        1 => (0..2u32).prop_map(Step::Restart),
        1 => (0..2u32).prop_map(Step::Replace),
        8 => fate.prop_map(Step::Answer),
        4 => (0..120u64).prop_map(Step::Pass),
    ];
    proptest::collection::vec(step, 1..120)
}

/// What a PBX has: until when, and the last CSeq of each Call-ID.
#[derive(Default)]
struct Registrar {
    users: BTreeMap<String, Instant>,
    numbers: BTreeMap<String, u32>,
}

struct Life {
    w: World,
    pbxs: [Registrar; 2],
    users: BTreeMap<usize, Instant>,
}

impl Life {
    /// A PBX carries out a REGISTER, for at most so long.
    fn take(&mut self, register: &Register, most: u32) -> u32 {
        let said = said(register);
        let pbx = &mut self.pbxs[register.slot as usize];
        let last = pbx.numbers.insert(said.call_id.clone(), said.cseq);
        assert!(last.is_none_or(|last| last < said.cseq), "CSeq goes up: {said:?}");
        let expires = said.expires.min(most);
        if expires == 0 {
            pbx.users.remove(&said.user);
        } else {
            pbx.users.insert(said.user, self.w.now + Duration::from_secs(expires.into()));
        }
        expires
    }

    fn answer(&mut self, register: &Register, fate: Fate) {
        let token = register.token;
        match fate {
            Fate::Taken => {
                self.take(register, u32::MAX);
                self.w.answer(token, 200, "");
            }
            Fate::TakenUnseen => {
                self.take(register, u32::MAX);
                self.w.forking.handle_no_answer(self.w.now, token);
            }
            Fate::Shorter => {
                let expires = self.take(register, 90);
                self.w.answer(token, 200, &format!("Expires: {expires}\r\n"));
            }
            Fate::Refused(status) => {
                let said = said(register);
                if status == 404 && said.expires == 0 {
                    // Whoever says so has nothing to take back (RFC 3261 21.4.5): this one does not lie.
                    self.pbxs[register.slot as usize].users.remove(&said.user);
                }
                self.w.answer(token, status, "");
            }
            Fate::Brief => _ = self.w.answer(token, 423, "Min-Expires: 100\r\n"),
            Fate::Challenged => {
                self.w.answer(token, 401, "WWW-Authenticate: Digest x\r\n");
                for challenged in std::mem::take(&mut self.w.challenges) {
                    self.w.forking.authorize(self.w.now, challenged.token, Some("Digest y"));
                }
            }
            Fate::Lost => _ = self.w.forking.handle_no_answer(self.w.now, token),
        }
        self.w.collect();
    }

    /// Users end, as the registrar says it.
    fn end_users(&mut self) {
        let now = self.w.now;
        let ended: Vec<_> =
            self.users.iter().filter(|(_, at)| **at <= now).map(|(u, _)| *u).collect();
        for user in ended {
            self.users.remove(&user);
            self.w.user(&format!("u{user}"), None);
        }
        for pbx in &mut self.pbxs {
            pbx.users.retain(|_, until| *until > now);
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]
    #[test]
    fn every_pbx_has_exactly_our_users(steps in steps()) {
        let rules = Rules { rate: 20, in_flight: 3, max_users: 64, ..Rules::default() };
        let mut life = Life {
            w: World::new(rules, 2),
            pbxs: Default::default(),
            users: BTreeMap::new(),
        };
        for step in steps {
            match step {
                Step::User(user, seconds) => {
                    let until = seconds.map(|s| life.w.now + Duration::from_secs(s));
                    match until {
                        Some(until) => _ = life.users.insert(user, until),
                        None => _ = life.users.remove(&user),
                    }
                    life.w.user(&format!("u{user}"), until);
                }
                Step::Up(slot) => life.w.forking.pbx_up(life.w.now, slot),
                Step::Down(slot) => {
                    life.w.forking.pbx_down(life.w.now, slot);
                    life.w.sent.retain(|register| register.slot != slot);
                }
                Step::Restart(slot) => {
                    // Whoever watches it sees it go and come.
                    life.pbxs[slot as usize] = Registrar::default();
                    life.w.sent.retain(|register| register.slot != slot);
                    life.w.forking.pbx_down(life.w.now, slot);
                    life.w.forking.pbx_up(life.w.now, slot);
                }
                Step::Replace(slot) => {
                    life.pbxs[slot as usize] = Registrar::default();
                    life.w.sent.retain(|register| register.slot != slot);
                    let (id, address) = (format!("pbx{slot}"), PBX[slot as usize].parse().unwrap());
                    life.w.forking.pbx_added(life.w.now, slot, &id, address, true).unwrap();
                }
                Step::Answer(fate) => {
                    if !life.w.sent.is_empty() {
                        let register = life.w.sent.remove(0);
                        life.answer(&register, fate);
                    }
                }
                Step::Pass(seconds) => life.w.pass_secs(seconds),
            }
            life.w.collect();
            life.end_users();
            for view in life.w.forking.pbxs() {
                prop_assert!(view.in_flight <= 3 + 1);
                prop_assert!(view.waiting <= life.w.forking.users());
            }
            prop_assert!(life.w.forking.users() <= USERS);
        }
        // From now on all is well; users who were refused are asked for again within the hour.
        for slot in 0..2 {
            life.w.forking.pbx_up(life.w.now, slot);
        }
        let end = life.w.now + Duration::from_secs(4000);
        for user in life.users.clone().into_keys() {
            let until = end + Duration::from_secs(100 + user as u64);
            life.users.insert(user, until);
            life.w.user(&format!("u{user}"), Some(until));
        }
        while life.w.now < end {
            life.w.collect();
            while !life.w.sent.is_empty() {
                let register = life.w.sent.remove(0);
                life.answer(&register, Fate::Taken);
            }
            life.w.pass_secs(1);
            life.end_users();
        }
        let want: Vec<_> = life.users.iter().map(|(user, until)| (format!("u{user}"), *until)).collect();
        for (slot, pbx) in life.pbxs.iter().enumerate() {
            let names: Vec<_> = pbx.users.keys().collect();
            prop_assert_eq!(&names, &want.iter().map(|(name, _)| name).collect::<Vec<_>>());
            for (name, until) in &want {
                // Seconds are whole, and rounded up.
                let over = pbx.users[name].saturating_duration_since(*until);
                prop_assert!(pbx.users[name] >= *until && over < Duration::from_secs(101));
                let leg = life.w.leg(name, slot as u32);
                let known = leg.registered_until.expect("it has said so");
                // Counted from when we asked. The PBX counts from when it heard, which may be as much later as an
                // answer is waited for.
                let late = pbx.users[name].saturating_duration_since(known);
                prop_assert!(known <= pbx.users[name]);
                prop_assert!(late < rules.patience + Duration::from_secs(2));
                prop_assert!(!leg.in_flight && leg.failures == 0);
            }
        }
        prop_assert_eq!(life.w.forking.users(), life.users.len());
    }
}
