//! The registrar against a map that knows nothing of tables, timers and compact strings.

use std::collections::BTreeMap;

use super::*;

const USERS: [&str; 3] = ["ann", "bob", "cat"];
const DOMAINS: [&str; 2] = ["example.com", "example.org"];
const HOSTS: [&str; 3] = ["h1", "h2", "h3"];

/// Contacts of one user: when each ends, the Call-ID and the CSeq that wrote it, and its `q`.
type Contacts = BTreeMap<&'static str, (u64, u32, u32, u16)>;

#[derive(Clone, Debug)]
enum Step {
    /// User, domain, Call-ID, CSeq, and contacts with expiry and `q`.
    Register(usize, usize, u32, u32, Vec<(usize, u32, u16)>),
    Star(usize, usize, u32, u32),
    Pass(u64),
    Timeout,
    Remove(usize, usize),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let contact = (0..3usize, prop_oneof![Just(0u32), Just(30), 60..400u32], 0..=1000u16);
    let contacts = proptest::collection::vec(contact, 0..3);
    let step = prop_oneof![
        6 => (0..3usize, 0..2usize, 0..2u32, 0..6u32, contacts)
            .prop_map(|(user, domain, call, cseq, list)| Step::Register(user, domain, call, cseq, list)),
        1 => (0..3usize, 0..2usize, 0..2u32, 0..6u32).prop_map(|(u, d, c, s)| Step::Star(u, d, c, s)),
        3 => (0..200u64).prop_map(Step::Pass),
        2 => Just(Step::Timeout),
        1 => (0..3usize, 0..2usize).prop_map(|(user, domain)| Step::Remove(user, domain)),
    ];
    proptest::collection::vec(step, 1..80)
}

#[derive(Default)]
struct Naive {
    contacts: BTreeMap<(usize, usize), Contacts>,
    now: u64,
}

impl Naive {
    fn expire(&mut self) {
        for contacts in self.contacts.values_mut() {
            contacts.retain(|_, (end, ..)| *end > self.now);
        }
        self.contacts.retain(|_, contacts| !contacts.is_empty());
    }

    /// The status, as 10.3 has it.
    fn register(
        &mut self,
        who: (usize, usize),
        call: u32,
        cseq: u32,
        list: &[(usize, u32, u16)],
    ) -> u16 {
        self.expire();
        if list.iter().any(|(_, expires, _)| *expires == 30) {
            return 423;
        }
        let before = self.contacts.get(&who).cloned().unwrap_or_default();
        let mut after = before.clone();
        for (host, expires, q) in list {
            let host = HOSTS[*host];
            if let Some((_, by, number, _)) = before.get(host) {
                if *by == call && cseq < *number {
                    return 500;
                }
                if *by == call && cseq == *number {
                    continue;
                }
            }
            match expires {
                0 => _ = after.remove(host),
                _ => _ = after.insert(host, (self.now + u64::from(*expires), call, cseq, *q)),
            }
        }
        if after.len() > 2 && after.keys().any(|host| !before.contains_key(host)) {
            return 403;
        }
        if !self.contacts.contains_key(&who) && !after.is_empty() && self.contacts.len() >= 4 {
            return 503;
        }
        self.contacts.insert(who, after);
        self.expire();
        200
    }

    fn star(&mut self, who: (usize, usize), call: u32, cseq: u32) -> u16 {
        self.expire();
        let Some(contacts) = self.contacts.get_mut(&who) else { return 200 };
        if contacts.values().any(|(_, by, number, _)| *by == call && cseq < *number) {
            return 500;
        }
        contacts.retain(|_, (_, by, number, _)| *by == call && cseq == *number);
        self.expire();
        200
    }
}

proptest! {
    #[test]
    fn the_same_as_a_naive_map(steps in steps()) {
        let mut w = World::new(Rules { max_contacts: 2, max_aors: 4, ..exact() });
        let mut naive = Naive::default();
        // What a store holds, and what the PBXs are told, after all changes.
        let mut store: BTreeMap<Key, Row> = BTreeMap::new();
        let mut told: BTreeMap<String, Instant> = BTreeMap::new();
        for step in steps {
            match step {
                Step::Register(user, domain, call, cseq, list) => {
                    let lines: String = list.iter().map(|(host, expires, q)| {
                        let q = format!("{}.{:03}", q / 1000, q % 1000);
                        format!("Contact: <sip:{}>;expires={expires};q={q}\r\n", HOSTS[*host])
                    }).collect();
                    let to = format!("sip:{}@{}", USERS[user], DOMAINS[domain]);
                    let answer = w.hear(&to, &format!("c{call}"), cseq, &lines);
                    let want = naive.register((user, domain), call, cseq, &list);
                    prop_assert_eq!(answer.code, want, "{:?}", answer);
                    if want == 200 {
                        let there = naive.contacts.get(&(user, domain)).map_or(0, BTreeMap::len);
                        prop_assert_eq!(contacts(&answer).len(), there);
                    }
                }
                Step::Star(user, domain, call, cseq) => {
                    let to = format!("sip:{}@{}", USERS[user], DOMAINS[domain]);
                    let star = "Contact: *\r\nExpires: 0\r\n";
                    let answer = w.hear(&to, &format!("c{call}"), cseq, star);
                    prop_assert_eq!(answer.code, naive.star((user, domain), call, cseq));
                }
                Step::Pass(seconds) => {
                    w.pass(seconds);
                    naive.now += seconds;
                }
                Step::Timeout => {
                    while w.registrar.poll_timeout().is_some_and(|at| at <= w.now) {
                        w.timeout();
                    }
                    naive.expire();
                    prop_assert_eq!(w.registrar.aors(), naive.contacts.len());
                }
                Step::Remove(user, domain) => {
                    let aor = Aor::new(USERS[user], DOMAINS[domain]).unwrap();
                    w.registrar.remove(&aor, None, &mut w.changes);
                    naive.contacts.remove(&(user, domain));
                }
            }
            for change in std::mem::take(&mut w.changes) {
                match change {
                    Change::Saved(row) => _ = store.insert(row.key.clone(), *row),
                    Change::Removed(key) => prop_assert!(store.remove(&key).is_some()),
                    Change::User { user, until: Some(until) } => {
                        prop_assert_ne!(told.insert(user.clone().into(), until), Some(until));
                    }
                    Change::User { user, until: None } => {
                        prop_assert!(told.remove(&*user).is_some());
                    }
                }
            }
            // The store has what is in memory, and the PBXs hear of the longest.
            let rows: BTreeMap<_, _> = w.registrar.rows().map(|row| (row.key.clone(), row)).collect();
            prop_assert_eq!(&rows, &store);
            prop_assert_eq!(rows.len(), w.registrar.bindings());
            for user in USERS {
                prop_assert_eq!(told.get(user).copied(), w.registrar.until(user));
            }
            // Who looks sees what the map has, in order.
            for (user, name) in USERS.iter().enumerate() {
                for (domain, host) in DOMAINS.iter().enumerate() {
                    let aor = Aor::new(name, host).unwrap();
                    let reaches = w.registrar.lookup(&aor, w.now);
                    prop_assert!(reaches.is_sorted_by(|a, b| a.q >= b.q));
                    let got: BTreeMap<_, _> = reaches
                        .iter()
                        .map(|reach| (reach.contact, (reach.q, reach.expires)))
                        .collect();
                    let there = naive.contacts.get(&(user, domain)).cloned().unwrap_or_default();
                    let want: BTreeMap<_, _> = there
                        .iter()
                        .filter(|(_, (end, ..))| *end > naive.now)
                        .map(|(host, (end, .., q))| {
                            (format!("sip:{host}"), (*q, w.start + Duration::from_secs(*end)))
                        })
                        .collect();
                    prop_assert_eq!(got.len(), want.len());
                    for (contact, value) in got {
                        prop_assert_eq!(want.get(contact), Some(&value));
                    }
                }
            }
        }
    }
}
