//! Two ends with a bad network between them.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

/// Where the end of this number is.
fn address(end: usize) -> SocketAddr {
    [LOCAL, PEER][end].parse().unwrap()
}

fn other(address: SocketAddr) -> usize {
    usize::from(address == self::address(1))
}

/// How bad it is, in percent.
#[derive(Clone, Copy, Debug)]
struct Badness {
    lost: u64,
    doubled: u64,
    /// The longest way, in milliseconds: shorter ways overtake it.
    slow: u64,
}

/// What their users have heard.
#[derive(Default)]
struct Heard {
    /// Those that have not ended.
    living: HashSet<TransactionId>,
    requests: Vec<(ServerId, Arc<[u8]>)>,
    asked: Vec<ClientId>,
    finals: Vec<ClientId>,
    timeouts: Vec<Expired>,
    acks: usize,
}

struct World {
    ends: [Transactions; 2],
    heard: [Heard; 2],
    now: Instant,
    flying: Vec<(Instant, usize, Arc<[u8]>)>,
    badness: Badness,
    dice: u64,
    /// What is answered at once to an INVITE, and to another request.
    at_once: Option<(&'static str, &'static str)>,
}

impl World {
    fn new(seed: u64, badness: Badness) -> Self {
        let now = Instant::now();
        let config = Config { transactions: 200, bytes: 100_000, ..Config::default() };
        let ends = [1, 2].map(|key| Transactions::new([key, key], config, now));
        Self {
            ends,
            heard: Default::default(),
            now,
            flying: Vec::new(),
            badness,
            dice: seed | 1,
            at_once: None,
        }
    }

    /// Xorshift: the same each time.
    fn roll(&mut self, below: u64) -> u64 {
        self.dice ^= self.dice << 13;
        self.dice ^= self.dice >> 7;
        self.dice ^= self.dice << 17;
        (self.dice >> 16) % below.max(1)
    }

    fn fly(&mut self, to: SocketAddr, bytes: &Arc<[u8]>) {
        let copies = match self.roll(100) {
            dice if dice < self.badness.lost => 0,
            dice if dice < self.badness.lost + self.badness.doubled => 2,
            _ => 1,
        };
        for _ in 0..copies {
            let at = self.now + Duration::from_millis(self.roll(self.badness.slow));
            self.flying.push((at, other(to), bytes.clone()));
        }
    }

    fn drain(&mut self, end: usize) {
        while let Some(command) = self.ends[end].poll_command() {
            let heard = &mut self.heard[end];
            match command {
                Command::Send(transmit) => self.fly(transmit.to, &transmit.bytes),
                Command::Timeout { id, why, .. } => {
                    assert!(heard.living.contains(&id));
                    heard.timeouts.push(why);
                }
                Command::TransportError { id } => assert!(heard.living.contains(&id)),
                Command::Terminated { id } => assert!(heard.living.remove(&id), "once"),
            }
        }
    }

    fn ask(&mut self, end: usize, method: &str, limits: Limits) {
        let branch = self.ends[end].branch();
        let text = request(method, &format!("{};branch={branch}", address(end)));
        let flow = Flow { local: 0, peer: address(1 - end), reliable: false };
        match self.ends[end].request(self.now, branch, flow, limits, text.into_bytes()) {
            Ok(id) => {
                assert!(self.heard[end].living.insert(TransactionId::Client(id)), "a new name");
                self.heard[end].asked.push(id);
            }
            Err(error) => assert_eq!(error, RequestError::Full),
        }
        self.drain(end);
    }

    fn respond(&mut self, end: usize, id: ServerId, request: &[u8], status: &str) {
        let request = String::from_utf8_lossy(request);
        let response = testing::response(&request, status, "tag").into_bytes();
        let done = self.ends[end].respond(self.now, id, response);
        let gone = !self.heard[end].living.contains(&TransactionId::Server(id));
        assert_eq!(gone, done == Err(RespondError::Gone));
        self.drain(end);
    }

    fn arrive(&mut self, end: usize, bytes: &[u8]) {
        let mut index = Index::new();
        let Ok(message) = Message::parse(bytes, &mut index) else { return };
        if !message.is_request() {
            let fate = self.ends[end].handle_response(self.now, &message);
            if let ResponseFate::Of(id) = fate {
                assert!(self.heard[end].living.contains(&TransactionId::Client(id)));
                if message.status() >= Some(200) {
                    self.heard[end].finals.push(id);
                }
            }
            // It may have been the last thing that it waited for.
            return self.drain(end);
        }
        let flow = Flow { local: 0, peer: address(1 - end), reliable: false };
        match self.ends[end].handle_request(self.now, &message, flow) {
            RequestFate::New { id, request, cancels } => {
                let heard = &mut self.heard[end];
                assert!(heard.living.insert(TransactionId::Server(id)), "a new name");
                heard.requests.push((id, request.clone()));
                self.drain(end);
                if let Some(invite) = cancels {
                    assert!(self.heard[end].living.contains(&TransactionId::Server(invite)));
                    self.respond(end, id, &request, "200 OK");
                    let of = self.heard[end].requests.iter().find(|(id, _)| *id == invite);
                    let (_, request) = of.unwrap().clone();
                    self.respond(end, invite, &request, "487 Request Terminated");
                } else if let Some((to_invite, to_others)) = self.at_once {
                    let invite = request.starts_with(b"INVITE");
                    let status = if invite { to_invite } else { to_others };
                    self.respond(end, id, &request, status);
                }
            }
            RequestFate::Ack(id) => self.heard[end].acks += usize::from(id.is_some()),
            _ => {}
        }
        self.drain(end);
    }

    /// When something happens next.
    fn next(&self) -> Option<Instant> {
        let timers = self.ends.iter().filter_map(Transactions::poll_timeout);
        self.flying.iter().map(|(at, ..)| *at).chain(timers).min()
    }

    fn until(&mut self, until: Instant) {
        while let Some(at) = self.next().filter(|at| *at <= until) {
            self.now = self.now.max(at);
            let now = self.now;
            let arriving: Vec<_> = self.flying.extract_if(.., |(at, ..)| *at <= now).collect();
            for (_, end, bytes) in arriving {
                self.arrive(end, &bytes);
            }
            for end in 0..2 {
                self.ends[end].handle_timeout(now);
                self.drain(end);
            }
        }
        self.now = until;
    }

    /// Whatever happened, after 20 minutes nothing is left.
    fn finish(&mut self) {
        self.until(self.now + Duration::from_secs(1200));
        assert_eq!(self.next(), None);
        for (end, heard) in self.ends.iter().zip(&self.heard) {
            assert_eq!((end.len(), end.held_bytes()), (0, 0));
            assert!(heard.living.is_empty(), "each end was told");
        }
    }
}

#[test]
fn every_failure_arrives_once_and_is_acknowledged() {
    let badness = Badness { lost: 30, doubled: 20, slow: 400 };
    let mut world = World::new(42, badness);
    world.at_once = Some(("486 Busy Here", "404 Not Found"));
    for n in 0..150 {
        world.ask(0, if n % 2 == 0 { "INVITE" } else { "OPTIONS" }, Limits::default());
        world.until(world.now + Duration::from_millis(300));
    }
    world.finish();
    let [client, server] = &world.heard;
    assert_eq!(client.asked.len(), 150);
    let once: HashSet<_> = client.finals.iter().collect();
    assert_eq!((once.len(), client.finals.len()), (150, 150));
    assert_eq!((client.timeouts.len(), server.timeouts.len()), (0, 0));
    // No repetition was taken for a new request, and no ACK of a failure went up.
    assert_eq!((server.requests.len(), server.acks), (150, 0));
}

#[test]
fn a_dead_network() {
    let mut world = World::new(1, Badness { lost: 100, doubled: 0, slow: 1 });
    for method in ["INVITE", "BYE", "REGISTER"] {
        world.ask(0, method, Limits::default());
        world.ask(1, method, Limits::default());
    }
    world.finish();
    for heard in &world.heard {
        assert_eq!(heard.timeouts, [Expired::B, Expired::F, Expired::F]);
    }
}

const STATUSES: [&str; 8] = [
    "100 Trying",
    "180 Ringing",
    "200 OK",
    "202 Accepted",
    "302 Moved",
    "408 Request Timeout",
    "503 Service Unavailable",
    "600 Busy Everywhere",
];

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Users that do anything in any order, and messages that anybody could send.
    #[test]
    fn nothing_panics_and_everything_ends(
        seed: u64,
        lost in 0..60u64,
        doubled in 0..40u64,
        slow in 1..6_000u64,
        steps in proptest::collection::vec((0..10u8, any::<u16>(), testing::damages()), 1..80),
    ) {
        let mut world = World::new(seed, Badness { lost, doubled, slow });
        for (what, pick, damages) in steps {
            let (end, pick) = (usize::from(pick & 1), usize::from(pick >> 1));
            let seconds = |n: usize| (n > 0).then(|| Duration::from_secs(n as u64));
            match what {
                0 => {
                    let limits = Limits { answer: seconds(pick % 5), ring: seconds(pick / 5 % 60) };
                    world.ask(end, "INVITE", limits);
                }
                1 => world.ask(end, ["BYE", "OPTIONS", "REGISTER"][pick % 3], Limits::default()),
                2 if !world.heard[end].asked.is_empty() => {
                    let id = world.heard[end].asked[pick % world.heard[end].asked.len()];
                    world.ends[end].cancel(world.now, id);
                    world.drain(end);
                }
                3 | 4 if !world.heard[end].requests.is_empty() => {
                    let requests = &world.heard[end].requests;
                    let (id, request) = requests[pick % requests.len()].clone();
                    world.respond(end, id, &request, STATUSES[pick / 7 % STATUSES.len()]);
                }
                5 => {
                    world.ends[end].handle_transport_error(world.now, address(1 - end));
                    world.drain(end);
                }
                6 => {
                    let method = ["INVITE", "ACK", "CANCEL", "BYE"][pick % 4];
                    let cookie = if pick & 4 == 0 { "z9hG4bK" } else { "" };
                    let text = request(method, &format!("192.0.2.9;branch={cookie}{}", pick / 8 % 3));
                    world.arrive(end, &testing::damaged(text, &damages));
                }
                7 if !world.flying.is_empty() => {
                    let (_, end, bytes) = world.flying[pick % world.flying.len()].clone();
                    let text = String::from_utf8_lossy(&bytes).into_owned();
                    world.arrive(end, &testing::damaged(text, &damages));
                }
                _ => {
                    let millis = 1 << (pick % 17);
                    world.until(world.now + Duration::from_millis(millis));
                }
            }
        }
        world.finish();
    }
}
