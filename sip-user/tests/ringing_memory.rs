//! What a ringing call costs in memory: the resident memory of this process, before and after many of them. A
//! binary of its own, because nothing else may allocate meanwhile.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sip_ebpf::message::Message;
use sip_ebpf::scan::Index;
use sip_user::core::context::{Contexts, Hunt, Settings, Start, Target, Unavailable};
use sip_user::core::transaction::{
    Command, Config, Flow, Limits, RequestFate, ResponseFate, Transactions,
};

/// How many calls ring at once.
const CALLS: u64 = 10_000;
/// Bytes that each may cost in all: the context and both transactions.
const BOUND: u64 = 8 * 1024;

#[test]
fn a_ringing_call_fits_in_its_bound() {
    let local: SocketAddr = "192.0.2.1:5060".parse().unwrap();
    let start = Instant::now();
    let config = Config::default();
    let mut transactions = Transactions::new([1, 2], config, start);
    let mut contexts = Contexts::new([3, 4], Settings::new(&[local]));
    let mut index = Index::new();
    let mut ring = |call: u64, transactions: &mut Transactions, contexts: &mut Contexts| {
        let now = start + Duration::from_micros(call * 100);
        let text = invite(call);
        let message = Message::parse(text.as_bytes(), &mut index).unwrap();
        let from = SocketAddr::from(([198, 51, (call >> 8) as u8, call as u8], 40_000));
        let flow = Flow { local: 0, peer: from, reliable: false };
        let fate = transactions.handle_request(now, &message, flow);
        let RequestFate::New { id, request, .. } = fate else { panic!("{fate:?}") };
        let begin = Start {
            server: id,
            request,
            from,
            owner: call,
            hunt: Hunt::Failover,
            trying: true,
            more: true,
            unavailable: Unavailable::RetryAfter(5),
        };
        let target = Target {
            tag: 0,
            flow: Flow { local: 0, peer: "10.0.0.1:5060".parse().unwrap(), reliable: false },
            uri: None,
            route: None,
            record_routes: [Some(format!("<sip:192.0.2.1:5060;lr;sl={call:032x}>").into()), None],
            limits: Limits {
                answer: Some(Duration::from_secs(3)),
                ring: Some(Duration::from_secs(40)),
            },
            q: 1000,
        };
        contexts.start(now, transactions, begin, vec![target]).unwrap();
        let mut sent = Vec::new();
        while let Some(command) = transactions.poll_command() {
            let Command::Send(transmit) = command else { panic!("{command:?}") };
            sent.push(transmit.bytes);
        }
        assert_eq!(sent.len(), 2, "100 and INVITE");
        let ringing = ringing(str::from_utf8(&sent[1]).unwrap());
        let message = Message::parse(ringing.as_bytes(), &mut index).unwrap();
        let fate = transactions.handle_response(now, &message);
        let ResponseFate::Of(id) = fate else { panic!("{fate:?}") };
        assert!(contexts.handle_response(now, transactions, id, &message));
        while transactions.poll_command().is_some() {}
        while contexts.poll_command().is_some() {}
    };
    // What is there once is there before.
    ring(0, &mut transactions, &mut contexts);
    let before = resident();
    for call in 1..=CALLS {
        ring(call, &mut transactions, &mut contexts);
    }
    let each = (resident() - before) / CALLS;
    assert_eq!(contexts.len() as u64, CALLS + 1);
    assert_eq!(transactions.len() as u64, 2 * (CALLS + 1));
    println!("{each} bytes for a ringing call");
    assert!(each <= BOUND, "{each} bytes for a ringing call: more than {BOUND}");
}

/// As a desk phone sends it, with credentials and the codecs that most have.
fn invite(call: u64) -> String {
    let body = "v=0\r\no=- 20083 20083 IN IP4 192.168.100.20\r\ns=SDP data\r\nc=IN IP4 192.168.100.20\r\n\
        t=0 0\r\nm=audio 11784 RTP/AVP 0 8 18 9 101\r\na=rtpmap:0 PCMU/8000\r\na=rtpmap:8 PCMA/8000\r\n\
        a=rtpmap:18 G729/8000\r\na=fmtp:18 annexb=no\r\na=rtpmap:9 G722/8000\r\n\
        a=fmtp:101 0-15\r\na=rtpmap:101 telephone-event/8000\r\na=ptime:20\r\na=sendrecv\r\n";
    format!(
        "INVITE sip:1234@voice.example.com SIP/2.0\r\n\
         Via: SIP/2.0/UDP 192.168.100.20:5060;branch=z9hG4bK{call:016x};rport\r\n\
         From: \"Anna Example\" <sip:{call:08}@voice.example.com>;tag={call:010}\r\n\
         To: <sip:1234@voice.example.com>\r\nCall-ID: {call:032x}@192.168.100.20\r\nCSeq: 2 INVITE\r\n\
         Contact: <sip:{call:08}@192.168.100.20:5060>\r\n\
         Proxy-Authorization: Digest username=\"{call:08}\", realm=\"voice.example.com\", \
         nonce=\"0123456789abcdef0123456789abcdef0123456789\", uri=\"sip:1234@voice.example.com\", \
         response=\"0123456789abcdef0123456789abcdef\", algorithm=MD5, cnonce=\"0a4f113b\", qop=auth, \
         nc=00000001\r\nContent-Type: application/sdp\r\n\
         Allow: INVITE, INFO, PRACK, ACK, BYE, CANCEL, OPTIONS, NOTIFY, REGISTER, SUBSCRIBE, REFER\r\n\
         Max-Forwards: 70\r\nUser-Agent: Yealink SIP-T46S 66.86.0.15\r\n\
         Supported: replaces\r\nAllow-Events: talk,hold,conference,refer,check-sync\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    )
}

/// The 180 of a PBX.
fn ringing(invite: &str) -> String {
    let copied = ["Via:", "From:", "To:", "Call-ID:", "CSeq:", "Record-Route:"];
    let head = invite.split("\r\n\r\n").next().unwrap();
    let lines = head.lines().filter(|line| copied.iter().any(|name| line.starts_with(name)));
    let lines: String = lines.map(|line| format!("{line}\r\n")).collect();
    format!(
        "SIP/2.0 180 Ringing\r\n{lines}Server: Asterisk PBX 20.1.0\r\nContact: <sip:1234@10.0.0.1:5060>\r\n\
         Allow: INVITE, ACK, CANCEL, OPTIONS, BYE, REFER, SUBSCRIBE, NOTIFY, INFO, PUBLISH, MESSAGE\r\n\
         Supported: replaces, timer\r\nContent-Length: 0\r\n\r\n"
    )
}

/// Resident memory in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap() * 1024
}
