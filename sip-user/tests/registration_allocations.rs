//! What a registration costs in memory, counted: what is allocated and stays, with what malloc adds to it. A
//! binary of its own, because nothing else may allocate meanwhile.
//!
//! A phone registers with digest, its secret is fetched and kept, two PBXs are told and say yes, and the
//! transactions of all that are over. `--nocapture` prints which part has how much.

use std::alloc::{GlobalAlloc, Layout, System};
use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use sip_ebpf::message::Message;
use sip_ebpf::scan::Index;
use sip_user::config::{AdminState, PbxConfig, PbxLimits, Probe, Trust};
use sip_user::core::authenticator::{self, Authenticator};
use sip_user::core::clock::Clock;
use sip_user::core::digest::{self, Challenge, Challenger, NonceCounts, Role, Secret, Session};
use sip_user::core::dispatcher::Dispatcher;
use sip_user::core::forking::{self, Forking};
use sip_user::core::registrar::{self, Change, Domains, Origin, Registrar};
use sip_user::core::sources::Sources;
use sip_user::core::stateful::{CallRules, Command, Settings, Stateful};
use sip_user::core::transaction::{self, Flow};

/// How many phones register, one contact each: tables that double have just done so, and are as empty as they
/// ever are.
const PHONES: u32 = 14_400;
/// Bytes that a registration may cost in all.
const BOUND: usize = 460;

const US: &str = "10.10.0.1:5060";
const PBXS: [&str; 2] = ["10.10.2.2:5060", "10.10.3.2:5060"];
const DOMAIN: &str = "10.10.0.1";
/// Between two phones.
const PACE: Duration = Duration::from_millis(2);

/// The system's allocator, with a count of what it has given away.
struct Counting;

static ALLOCATED: AtomicUsize = AtomicUsize::new(0);

/// What glibc takes for it on 64 bits: a word more, in steps of 16 and 32 at least.
fn taken(layout: Layout) -> usize {
    (layout.size() + 8).next_multiple_of(16).max(32)
}

// SAFETY: all is done by `System`; only numbers are counted here.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATED.fetch_add(taken(layout), Ordering::Relaxed);
        // SAFETY: what the caller promises is what `System` wants.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        ALLOCATED.fetch_sub(taken(layout), Ordering::Relaxed);
        // SAFETY: as above; it came from `System`.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// What `make` makes and keeps costs for each phone.
fn cost<T>(make: impl FnOnce() -> T) -> (T, usize) {
    let before = ALLOCATED.load(Ordering::Relaxed);
    let made = make();
    let after = ALLOCATED.load(Ordering::Relaxed);
    (made, (after - before) / PHONES as usize)
}

#[test]
fn a_registration_fits_in_its_bound() {
    let now = Instant::now();
    let (registrar, contacts) = cost(|| registrar(now));
    assert_eq!(registrar.bindings(), PHONES as usize);
    drop(registrar);
    let (forking, told) = cost(|| forking(now));
    assert_eq!(forking.users(), PHONES as usize);
    drop(forking);
    let (counts, nonces) = cost(|| nonces(now));
    assert_eq!(counts.len(), PHONES as usize);
    drop(counts);

    let (stateful, each) = cost(|| stateful(now));
    assert_eq!(stateful.registrar().bindings(), PHONES as usize);
    assert_eq!(stateful.forking().users(), PHONES as usize);
    assert_eq!(stateful.authenticator().unwrap().kept(), PHONES as usize);
    assert_eq!(stateful.transactions(), 0);
    let others = each - contacts - told - nonces;
    println!(
        "{each} bytes for a registration: {contacts} its contact, {told} what two PBXs are told, \
         {nonces} its nonce, {others} its secret and the rest"
    );
    assert!(each <= BOUND, "{each} bytes for a registration: more than {BOUND}");
}

// ---- Each part alone -----------------------------------------------------------------------------

fn registrar(mut now: Instant) -> Registrar {
    let us: SocketAddr = US.parse().unwrap();
    let mut registrar = Registrar::new(rules(), Domains::new([DOMAIN], &[us]), &[us], [1, 2]);
    let mut index = Index::new();
    for phone in 0..PHONES {
        now += PACE;
        let text = register(phone, 1, "");
        let message = Message::parse(text.as_bytes(), &mut index).unwrap();
        let mut changes = Vec::new();
        let origin = Origin { from: address(phone), local: 0 };
        let answer = registrar.handle(now, &message, origin, &mut changes);
        assert!(
            answer.code == 200 && matches!(&changes[..], [Change::Saved(_), Change::User { .. }])
        );
    }
    registrar
}

fn forking(mut now: Instant) -> Forking {
    let mut forking = Forking::new(fork_rules(), &[US.parse().unwrap()], [1, 2]);
    for (slot, address) in (0..).zip(PBXS) {
        forking.pbx_added(now, slot, "pbx", address.parse().unwrap(), true).unwrap();
    }
    let mut index = Index::new();
    for phone in 0..PHONES {
        now += PACE;
        let until = now + Duration::from_secs(3600);
        forking.user_changed(now, &name(phone), Some(until)).unwrap();
        while let Some(command) = forking.poll_command() {
            let forking::Command::Register(register) = command else { panic!("{command:?}") };
            let text = b"SIP/2.0 200 OK\r\nExpires: 3600\r\n\r\n";
            let message = Message::parse(text, &mut index).unwrap();
            assert!(forking.handle_answer(now, register.token, &message));
        }
    }
    forking
}

fn nonces(now: Instant) -> NonceCounts {
    let mut counts = NonceCounts::new(authenticator::Rules::default().max_nonces);
    let challenger = Challenger::new(&[7; 16], 1, digest::Settings::default()).unwrap();
    let clock = Clock::new(now, Duration::from_secs(1_700_000_000));
    for phone in 0..PHONES {
        let now = clock.seconds(now + PACE * phone);
        let challenge = challenger.challenge(Role::UserAgent, DOMAIN, false, now);
        let line = credentials(phone, &challenge);
        let value = line.trim_start_matches("Authorization: ").trim_end();
        let claim = challenger.claim(DOMAIN, [value.as_bytes()], now).unwrap();
        let uri = format!("sip:{DOMAIN}");
        let request = digest::Request { method: "REGISTER", uri: &uri, subject: None };
        challenger.verify(&claim, &request, &[password(phone)], &mut counts, now).unwrap();
    }
    counts
}

// ---- All together --------------------------------------------------------------------------------

fn stateful(start: Instant) -> Stateful {
    let us: SocketAddr = US.parse().unwrap();
    let settings = Settings {
        locals: vec![us],
        domains: Domains::new([DOMAIN], &[us]),
        believed: Sources::new(&Trust::default()),
        registrar: rules(),
        forking: fork_rules(),
        transactions: transaction::Config::default(),
        calls: CallRules::default(),
        credentials: HashMap::new(),
        retry_after: 5,
        registers: true,
    };
    let clock = Clock::new(start, Duration::from_secs(1_700_000_000));
    let rules = authenticator::Rules::default();
    let asking =
        Authenticator::new(rules, digest::Settings::default(), &[7; 16], 1, clock).unwrap();
    let mut dispatcher = Dispatcher::new(&[us], Probe::default());
    let pbxs = PBXS.map(|address| PbxConfig {
        id: address.to_owned(),
        address: address.parse().unwrap(),
        weight: 1,
        state: AdminState::Active,
        limits: PbxLimits::default(),
    });
    dispatcher.reload(start, &pbxs, Probe::default()).unwrap();
    let mut world = World {
        stateful: Stateful::new([3, 4], settings, Some(asking), start),
        now: start,
        index: Index::new(),
        challenge: String::new(),
        told: 0,
    };
    world.stateful.handle_pbxs(start, &dispatcher);
    for phone in 0..PHONES {
        world.pass(PACE);
        world.hear(phone, &register(phone, 1, ""));
        let credentials = credentials(phone, &std::mem::take(&mut world.challenge));
        world.hear(phone, &register(phone, 2, &credentials));
    }
    assert_eq!(world.told, 2 * PHONES);
    // Timer J, the longest of those that keep a transaction which has ended well.
    world.pass(Duration::from_secs(40));
    world.stateful
}

struct World {
    stateful: Stateful,
    now: Instant,
    index: Index,
    /// The last line that asked for credentials.
    challenge: String,
    /// REGISTERs that PBXs have got.
    told: u32,
}

impl World {
    fn pass(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.stateful.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.stateful.handle_timeout(self.now);
            self.collect(0);
        }
        self.now = end;
    }

    fn hear(&mut self, phone: u32, text: &str) {
        let message = Message::parse(text.as_bytes(), &mut self.index).unwrap();
        let flow = Flow { local: 0, peer: address(phone), reliable: false };
        self.stateful.handle_request(self.now, &message, flow);
        self.collect(phone);
    }

    fn collect(&mut self, phone: u32) {
        while let Some(command) = self.stateful.poll_command() {
            match command {
                Command::Send(transmit) => self.sent(&transmit.bytes),
                Command::FetchSecrets { ticket, .. } => {
                    let secrets = Ok(Some(vec![password(phone)]));
                    self.stateful.handle_secrets(self.now, ticket, secrets);
                }
                Command::Save(_) | Command::Learned { .. } | Command::User { .. } => {}
                other => panic!("{other:?}"),
            }
        }
    }

    fn sent(&mut self, bytes: &[u8]) {
        let text = str::from_utf8(bytes).unwrap();
        if text.starts_with("SIP/2.0 401") {
            let challenge = text.lines().find(|line| line.starts_with("WWW-Authenticate: "));
            self.challenge = challenge.unwrap().to_owned();
        } else if text.starts_with("REGISTER") {
            self.told += 1;
            let same = ["Via: ", "From: ", "To: ", "Call-ID: ", "CSeq: ", "Contact: ", "Expires: "];
            let lines = text.lines().filter(|line| same.iter().any(|name| line.starts_with(name)));
            let lines: String = lines.map(|line| format!("{line}\r\n")).collect();
            let answer = format!("SIP/2.0 200 OK\r\n{lines}Content-Length: 0\r\n\r\n");
            let message = Message::parse(answer.as_bytes(), &mut self.index).unwrap();
            assert!(self.stateful.handle_response(self.now, &message));
        } else {
            assert!(text.starts_with("SIP/2.0 200"), "{text}");
        }
    }
}

fn rules() -> registrar::Rules {
    registrar::Rules { jitter: 0, ..registrar::Rules::default() }
}

/// PBXs are told at once.
fn fork_rules() -> forking::Rules {
    forking::Rules { rate: 100_000, ..forking::Rules::default() }
}

// ---- The phones ----------------------------------------------------------------------------------

fn name(phone: u32) -> String {
    format!("u{phone:06}")
}

fn password(phone: u32) -> Secret {
    Secret::Password(format!("secret{phone:06}").into())
}

fn address(phone: u32) -> SocketAddr {
    SocketAddr::from(([10, 10, 1, 2], 20_000 + phone as u16))
}

fn register(phone: u32, cseq: u32, credentials: &str) -> String {
    let (name, at) = (name(phone), address(phone));
    format!(
        "REGISTER sip:{DOMAIN} SIP/2.0\r\nVia: SIP/2.0/UDP {at};rport;branch=z9hG4bKb{phone}.{cseq}\r\n\
         Max-Forwards: 70\r\nFrom: <sip:{name}@{DOMAIN}>;tag=r{phone}\r\nTo: <sip:{name}@{DOMAIN}>\r\n\
         Call-ID: r{phone}@{at}\r\nCSeq: {cseq} REGISTER\r\nContact: <sip:{name}@{at}>\r\n\
         Expires: 3600\r\nAllow: INVITE, ACK, CANCEL, BYE, OPTIONS, NOTIFY, REFER\r\nUser-Agent: phone\r\n\
         {credentials}Content-Length: 0\r\n\r\n"
    )
}

/// The line that answers a challenge.
fn credentials(phone: u32, challenge: &str) -> String {
    let value = challenge.trim_start_matches("WWW-Authenticate: ").trim_end();
    let secret = password(phone);
    let challenge = Challenge::choose([value.as_bytes()], &secret).unwrap();
    let mut session = Session::new(challenge, "cnonce".to_owned());
    let uri = format!("sip:{DOMAIN}");
    session.authorize(Role::UserAgent, &name(phone), &secret, "REGISTER", &uri).unwrap()
}
