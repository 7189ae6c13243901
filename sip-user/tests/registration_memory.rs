//! What a registration costs in memory: the resident memory of this process, before and after many of them. A
//! binary of its own, because nothing else may allocate meanwhile.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sip_ebpf::message::Message;
use sip_ebpf::scan::Index;
use sip_user::core::forking::{self, Command, Forking};
use sip_user::core::registrar::{Change, Domains, Origin, Registrar, Rules};

/// How many phones register: one contact each.
const PHONES: u64 = 100_000;
/// Bytes that a registration may cost in all: the contact, and what two PBXs are told of its user.
const BOUND: u64 = 700;

#[test]
fn a_registration_fits_in_its_bound() {
    let local: SocketAddr = "192.0.2.1:5060".parse().unwrap();
    let now = Instant::now();
    let domains = Domains::new(["voice.example.com"], &[local]);
    let mut registrar = Registrar::new(Rules::default(), domains, &[local], [1, 2]);
    let rules = forking::Rules { rate: 1_000_000, ..forking::Rules::default() };
    let mut forking = Forking::new(rules, &[local], [3, 4]);
    for (slot, address) in [(0, "10.0.0.1:5060"), (1, "10.0.0.2:5060")] {
        forking.pbx_added(now, slot, "pbx", address.parse().unwrap(), true).unwrap();
    }
    let mut index = Index::new();
    let mut answer_index = Index::new();
    let mut register = |phone: u64, registrar: &mut Registrar, forking: &mut Forking| {
        // Each phone comes a little later, so that no timer is another's.
        let now = now + Duration::from_millis(phone);
        let text = request(phone);
        let message = Message::parse(text.as_bytes(), &mut index).unwrap();
        let from = SocketAddr::from(([198, 51, (phone >> 8) as u8, phone as u8], 40_000));
        let mut changes = Vec::new();
        let answer = registrar.handle(now, &message, Origin { from, local: 0 }, &mut changes);
        assert_eq!(answer.code, 200);
        for change in changes {
            let Change::User { user, until } = change else { continue };
            forking.user_changed(now, &user, until).unwrap();
        }
        while let Some(command) = forking.poll_command() {
            let Command::Register(register) = command else { panic!("{command:?}") };
            // For less than asked, so that each has a timer for its refreshing.
            let text = b"SIP/2.0 200 OK\r\nExpires: 600\r\n\r\n";
            let message = Message::parse(text, &mut answer_index).unwrap();
            assert!(forking.handle_answer(now, register.token, &message));
        }
    };
    // What is there once is there before.
    register(0, &mut registrar, &mut forking);
    let before = resident();
    for phone in 1..=PHONES {
        register(phone, &mut registrar, &mut forking);
    }
    let each = (resident() - before) / PHONES;
    assert_eq!(registrar.bindings() as u64, PHONES + 1);
    assert_eq!(forking.users() as u64, PHONES + 1);
    assert!(forking.pbxs().all(|pbx| pbx.waiting as u64 == PHONES + 1));
    println!("{each} bytes for a registration that two PBXs know");
    assert!(each <= BOUND, "{each} bytes for a registration: more than {BOUND}");
}

/// As a desk phone writes it, with the instance that most have.
fn request(phone: u64) -> String {
    format!(
        "REGISTER sip:voice.example.com SIP/2.0\r\n\
         Via: SIP/2.0/UDP 192.168.100.20:5060;branch=z9hG4bK{phone:016x};rport\r\n\
         From: <sip:{phone:08}@voice.example.com>;tag=1\r\nTo: <sip:{phone:08}@voice.example.com>\r\n\
         Call-ID: {phone:032x}\r\nCSeq: 17 REGISTER\r\nUser-Agent: Yealink SIP-T46S 66.86.0.15\r\n\
         Contact: <sip:{phone:08}@192.168.100.20:5060;transport=udp>;expires=3600;\
         +sip.instance=\"<urn:uuid:{phone:08x}-dead-beef-cafe-000000000000>\"\r\n\
         Allow: INVITE, ACK, BYE, CANCEL, OPTIONS\r\nMax-Forwards: 70\r\n\r\n"
    )
}

/// Resident memory in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}
