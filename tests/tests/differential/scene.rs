//! Calls made of generated messages: the generator of `sip-ebpf/tests/properties`, aimed at the proxy, and
//! what phones and PBXs say next.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use proptest::collection::vec;
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{Index, select};
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use sip_ebpf::cookie::{self, Cookie};
use sip_ebpf::hash::Keys;
use sip_ebpf::header::Span;
use sip_ebpf::message::Message;
use sip_ebpf::scan::{self, Kind};
use sipline_tests::fixtures::Pair;
use sipline_tests::fixtures::daemon::Order;
use sipline_tests::fixtures::pair::Difference;
use sipline_tests::fixtures::world::{
    DENIED, KEY, PBX1, PBX2, PHONE, PROXY, QINQ_PHONE, SECOND, STRANGER, VLAN_PHONE, endpoint,
};

use crate::generate::{self, Address, Made, Parts, Start, Style, Uri, Via};
use crate::tally::Tally;

/// When a search ends that finds nothing.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Limit {
    /// After so many scenes.
    Scenes(u64),
    /// After this time.
    Time(Duration),
}

/// Between two lines of progress.
const PROGRESS: Duration = Duration::from_secs(10);
/// How often a scene that shows a difference is made smaller, or tried to.
const SMALLER: u32 = 2_000;

/// Plays scenes, each from a seed of its own: `seed` and the numbers behind it.
///
/// # Panics
/// When one shows a difference: with its seed, what was found first, and the smallest scene that still
/// shows one.
pub(crate) fn search(pair: &mut Pair, seed: u64, limit: Limit) -> Tally {
    let strategy = scene();
    let (start, mut told) = (Instant::now(), Instant::now());
    let mut tally = Tally::default();
    println!("seed {seed}");
    for number in 0.. {
        let over = match limit {
            Limit::Scenes(scenes) => number >= scenes,
            Limit::Time(time) => start.elapsed() >= time,
        };
        if over {
            println!("{number} scenes in {:.0} s", start.elapsed().as_secs_f64());
            break;
        }
        if told.elapsed() >= PROGRESS {
            told = Instant::now();
            let seconds = start.elapsed().as_secs();
            println!("{seconds:5} s: {number} scenes, {} datagrams", tally.datagrams());
        }
        let seed = seed.wrapping_add(number);
        let mut tree = strategy.new_tree(&mut runner(seed)).expect("a scene");
        let mut counts = Tally::default();
        if let Err(first) = play(pair, &tree.current(), &mut counts) {
            let (scene, last) = smallest(pair, &mut tree, first.clone());
            panic!(
                "seed {seed}: {first}\n=== the smallest scene that shows a difference: {scene:#?}\n\
                 === in it: {last}\n=== again: cargo xtask fuzz differential --seed {seed} --seconds 1"
            );
        }
        tally.add(&counts);
    }
    tally
}

fn runner(seed: u64) -> TestRunner {
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    TestRunner::new_with_rng(Config::default(), rng)
}

fn smallest(
    pair: &mut Pair,
    tree: &mut impl ValueTree<Value = Scene>,
    mut last: Box<Difference>,
) -> (Scene, Box<Difference>) {
    let mut scene = tree.current();
    let mut tries = 0;
    while tries < SMALLER && tree.simplify() {
        tries += 1;
        let mut differs = play(pair, &tree.current(), &mut Tally::default());
        while differs.is_ok() && tries < SMALLER && tree.complicate() {
            tries += 1;
            differs = play(pair, &tree.current(), &mut Tally::default());
        }
        match differs {
            Err(difference) => (scene, last) = (tree.current(), difference),
            Ok(()) => break,
        }
    }
    (scene, last)
}

// ---- What happens in a scene --------------------------------------------------------------------

#[derive(Clone, Debug)]
pub(crate) struct Scene {
    calls: Vec<Call>,
    acts: Vec<Act>,
}

/// An INVITE, and all that it takes to say more in its name.
#[derive(Clone, Debug)]
struct Call {
    phone: SocketAddrV4,
    proxy: SocketAddrV4,
    parts: Parts,
    style: Vec<u8>,
}

#[derive(Clone, Debug)]
struct Act {
    call: Index,
    deed: Deed,
    style: Vec<u8>,
    /// What happens to it on the way.
    damage: Vec<Damage>,
    /// Who says it, if not whose it is.
    other: Option<SocketAddrV4>,
}

#[derive(Clone, Copy, Debug)]
enum Damage {
    Change(Index, u8),
    Insert(Index, u8),
    Remove(Index),
}

impl Damage {
    fn is_done_to(self, bytes: &mut Vec<u8>) {
        if bytes.is_empty() {
            return;
        }
        match self {
            Self::Change(at, byte) => {
                let at = at.index(bytes.len());
                bytes[at] = byte;
            }
            Self::Insert(at, byte) => bytes.insert(at.index(bytes.len()), byte),
            Self::Remove(at) => drop(bytes.remove(at.index(bytes.len()))),
        }
    }
}

#[derive(Clone, Debug)]
enum Deed {
    /// The first time, or again.
    Invite,
    Cancel,
    /// The ACK of a failure.
    Ack,
    /// A request inside the dialog.
    Within {
        method: &'static str,
        from_phone: bool,
        recorded: bool,
    },
    /// A response to a request that was sent on.
    Answer {
        which: Index,
        status: u16,
    },
    Options {
        parts: Box<Parts>,
    },
    /// No part of a call.
    Any(Box<Made>),
    /// No SIP.
    Bytes(&'static [u8]),
    Order(usize, Order),
}

const SOURCES: [SocketAddrV4; 8] =
    [PHONE, PBX1, PBX2, STRANGER, DENIED, VLAN_PHONE, QINQ_PHONE, NAT];
/// A phone behind a NAT: its packets come from a port that it does not know of.
const NAT: SocketAddrV4 = SocketAddrV4::new(*PHONE.ip(), 40_001);

fn scene() -> impl Strategy<Value = Scene> {
    (vec(call(), 1..3), vec(act(), 1..14)).prop_map(|(calls, acts)| Scene { calls, acts })
}

fn call() -> impl Strategy<Value = Call> {
    let phone = prop_oneof![
        6 => Just(PHONE), 1 => Just(VLAN_PHONE), 1 => Just(QINQ_PHONE), 2 => Just(NAT),
        1 => Just(STRANGER), 1 => Just(PBX1),
    ];
    let proxy = prop_oneof![3 => Just(PROXY), 1 => Just(SECOND)];
    (phone, proxy, aimed("INVITE"), style()).prop_map(|(phone, proxy, mut parts, style)| {
        arrive_from(&mut parts, phone);
        Call { phone, proxy, parts, style }
    })
}

fn act() -> impl Strategy<Value = Act> {
    let byte = || prop_oneof![1 => any::<u8>(), 2 => select(&b"\r\n \t,;:<>\"=0a\0"[..])];
    let damage = prop_oneof![
        2 => (any::<Index>(), byte()).prop_map(|(at, byte)| Damage::Change(at, byte)),
        1 => (any::<Index>(), byte()).prop_map(|(at, byte)| Damage::Insert(at, byte)),
        1 => any::<Index>().prop_map(Damage::Remove),
    ];
    let damage = prop_oneof![4 => Just(Vec::new()), 1 => vec(damage, 1..4)];
    let other = option::weighted(0.08, select(&SOURCES[..]));
    (any::<Index>(), deed(), style(), damage, other)
        .prop_map(|(call, deed, style, damage, other)| Act { call, deed, style, damage, other })
}

fn deed() -> impl Strategy<Value = Deed> {
    let method = select(vec!["ACK", "BYE", "INFO", "INVITE", "UPDATE", "PRACK", "OPTIONS"]);
    let within = (method, any::<bool>(), prop::bool::weighted(0.15))
        .prop_map(|(method, from_phone, recorded)| Deed::Within { method, from_phone, recorded });
    let status = select(vec![100, 180, 183, 200, 200, 302, 404, 486, 487, 503, 603]);
    let order = select(vec![Order::Enable, Order::Drain, Order::Disable, Order::Unreachable]);
    let bytes =
        select(vec![&b"\r\n\r\n"[..], b"\r\n", b"\0", b"\0\0\0\0", b"", b"ping", b"\r\n\r\n\r\n"]);
    prop_oneof![
        8 => Just(Deed::Invite),
        2 => Just(Deed::Cancel),
        2 => Just(Deed::Ack),
        6 => within,
        6 => (any::<Index>(), status).prop_map(|(which, status)| Deed::Answer { which, status }),
        2 => aimed("OPTIONS").prop_map(|parts| Deed::Options { parts: Box::new(parts) }),
        1 => generate::message().prop_map(|made| Deed::Any(Box::new(made))),
        1 => generate::plain().prop_map(|made| Deed::Any(Box::new(made))),
        2 => bytes.prop_map(Deed::Bytes),
        1 => (0..2usize, order).prop_map(|(slot, order)| Deed::Order(slot, order)),
    ]
}

/// Mostly the form that nearly everybody writes.
fn style() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![3 => Just(Vec::new()), 1 => vec(any::<u8>(), 1..24)]
}

/// A request for us. Most of what the program leaves to the daemon is left out of most of them.
fn aimed(method: &'static str) -> impl Strategy<Value = Parts> {
    let rare = || prop::bool::weighted(0.06);
    let wild = (rare(), rare(), rare(), rare(), rare(), rare());
    let host = option::weighted(0.15, "[a-z]{1,8}\\.example".prop_map(|name| name));
    let rport = prop::bool::weighted(0.7);
    (generate::parts(), generate::uri(true), wild, host, rport, 1..=70u8).prop_map(
        move |(mut parts, mut uri, wild, host, rport, hops)| {
            if method == "OPTIONS" && !wild.5 {
                (uri.sips, uri.user, uri.host) = (false, None, PROXY.ip().to_string());
                uri.port = uri.port.filter(|port| port % 2 == 0).map(|_| PROXY.port());
                parts.require.clear();
            }
            parts.start = Start::Request { method: method.to_owned(), uri };
            if !wild.0 {
                parts.routes.clear();
            }
            if !wild.1 {
                parts.max_forwards = Some(hops);
            }
            if !wild.2 {
                parts.to.tag = None;
            }
            if !wild.3 {
                for address in [&mut parts.from, &mut parts.to] {
                    address.params.clear();
                    address.display = None;
                }
                parts.from.tag.get_or_insert_with(|| "caller".to_owned());
            }
            if !wild.4 {
                let branch = parts.vias[0].branch.take().unwrap_or_else(|| "z9hG4bKx".to_owned());
                parts.vias[0] = via(host.unwrap_or_default(), None, branch, rport);
            }
            parts
        },
    )
}

fn via(host: String, port: Option<u16>, branch: String, rport: bool) -> Via {
    Via {
        transport: "UDP".to_owned(),
        host,
        port,
        branch: Some(branch),
        received: None,
        rport: rport.then_some(0),
        ttl: None,
        maddr: None,
    }
}

/// Fills in who sends it, where that was left open.
fn arrive_from(parts: &mut Parts, phone: SocketAddrV4) {
    let via = &mut parts.vias[0];
    if via.host.is_empty() {
        // A phone behind a NAT says what it knows.
        (via.host, via.port) = match phone {
            NAT => ("192.168.7.7".to_owned(), Some(5060)),
            _ => (phone.ip().to_string(), Some(phone.port())),
        };
    }
}

// ---- Playing it ---------------------------------------------------------------------------------

/// A call as far as it has come.
#[derive(Default)]
struct Course {
    /// As it was sent first: its copies are the same.
    invite: Option<Vec<u8>>,
    /// The PBX that it went to, and the digits of our cookie.
    placed: Option<(SocketAddrV4, String)>,
    /// Tag of who answered.
    to_tag: Option<String>,
}

/// A request that was sent on.
struct Pending {
    call: usize,
    at: SocketAddrV4,
    proxy: SocketAddrV4,
    request: Vec<u8>,
}

fn play(pair: &mut Pair, scene: &Scene, tally: &mut Tally) -> Result<(), Box<Difference>> {
    pair.reset();
    let mut courses: Vec<Course> = scene.calls.iter().map(|_| Course::default()).collect();
    let mut pending = Vec::new();
    for (number, act) in scene.acts.iter().enumerate() {
        let place = act.call.index(scene.calls.len());
        let (call, course) = (&scene.calls[place], &mut courses[place]);
        if let Deed::Order(slot, order) = act.deed {
            pair.order(slot, order);
            continue;
        }
        let said = say(act, call, course, &pending, number);
        let Some((from, to, mut bytes)) = said else { continue };
        let meddled = !act.damage.is_empty() || act.other.is_some();
        for damage in &act.damage {
            damage.is_done_to(&mut bytes);
        }
        let heard = pair.hear(act.other.unwrap_or(from), to, &bytes)?;
        tally.count(&heard);
        for sent in heard.sent {
            let mut index = scan::Index::new();
            let Ok(message) = Message::parse(&sent.payload, &mut index) else { continue };
            if !message.is_request() {
                let tag = message.to().ok().and_then(|to| to.tag().map(str::to_owned));
                course.to_tag = tag.or(course.to_tag.take());
                continue;
            }
            if matches!(act.deed, Deed::Invite)
                && !meddled
                && let Some(digits) = cookie_digits(&sent.payload)
            {
                course.placed = Some((sent.to, digits));
            }
            let (at, proxy) = (sent.to, sent.from);
            pending.push(Pending { call: place, at, proxy, request: sent.payload });
        }
    }
    Ok(())
}

/// What is said, by whom and to which address of ours. `None` if it is not the time for it.
fn say(
    act: &Act,
    call: &Call,
    course: &mut Course,
    pending: &[Pending],
    number: usize,
) -> Option<(SocketAddrV4, SocketAddrV4, Vec<u8>)> {
    let Call { phone, proxy, .. } = *call;
    let style = |parts: &Parts| parts.write(&mut Style::new(&act.style));
    let bytes = match &act.deed {
        Deed::Invite => {
            let mut parts = call.parts.clone();
            if !act.damage.is_empty() {
                // Another call: copies of an INVITE have one form, and with it one side that places it.
                parts.call_id += &format!("-{number}");
            }
            let bytes = parts.write(&mut Style::new(&call.style));
            if act.damage.is_empty() {
                course.invite.get_or_insert_with(|| bytes.clone()).clone()
            } else {
                bytes
            }
        }
        Deed::Cancel | Deed::Ack => {
            course.invite.as_ref()?;
            let mut parts = call.parts.clone();
            let cancel = matches!(act.deed, Deed::Cancel);
            set_method(&mut parts, if cancel { "CANCEL" } else { "ACK" });
            parts.body.clear();
            if !cancel {
                parts.to.tag = course.to_tag.clone().or(parts.to.tag);
            }
            style(&parts)
        }
        Deed::Within { method, from_phone, recorded } => {
            let (pbx, digits) = course.placed.as_ref()?;
            let digits = match recorded {
                true => recorded_cookie(&call.parts, phone, *pbx),
                false => digits.clone(),
            };
            let mut parts = call.parts.clone();
            set_method(&mut parts, method);
            parts.routes = vec![our_route(proxy, digits)];
            parts.record_routes.clear();
            parts.to.tag = course.to_tag.clone().or(Some("callee".to_owned()));
            parts.vias[0].branch = Some(format!("z9hG4bKwithin{number}"));
            parts.vias.truncate(1);
            if !from_phone {
                std::mem::swap(&mut parts.from, &mut parts.to);
                let branch = format!("z9hG4bKpbx{number}");
                parts.vias[0] = via(pbx.ip().to_string(), Some(pbx.port()), branch, false);
                return Some((*pbx, proxy, style(&parts)));
            }
            style(&parts)
        }
        Deed::Answer { which, status } => {
            if pending.is_empty() {
                return None;
            }
            let Pending { call, at, proxy, request } = &pending[which.index(pending.len())];
            let form = act.style.first().copied().unwrap_or(0);
            return Some((*at, *proxy, answer(request, *status, *call, form)?));
        }
        Deed::Options { parts } => {
            let mut parts = parts.clone();
            arrive_from(&mut parts, phone);
            // The Request-URI names the first of our addresses.
            return Some((phone, PROXY, style(&parts)));
        }
        Deed::Any(made) => made.bytes.clone(),
        Deed::Bytes(bytes) => bytes.to_vec(),
        Deed::Order(..) => return None,
    };
    Some((phone, proxy, bytes))
}

fn set_method(parts: &mut Parts, name: &str) {
    if let Start::Request { method, .. } = &mut parts.start {
        name.clone_into(method);
    }
}

fn our_route(proxy: SocketAddrV4, digits: String) -> Address {
    let uri = Uri {
        sips: false,
        user: None,
        host: proxy.ip().to_string(),
        port: Some(proxy.port()),
        params: vec![("lr".to_owned(), None), ("sl".to_owned(), Some(digits))],
        headers: None,
    };
    Address { display: None, uri, brackets: true, tag: None, params: Vec::new() }
}

/// The digits of the cookie in our Record-Route, which stands above all others.
fn cookie_digits(request: &[u8]) -> Option<String> {
    let mut index = scan::Index::new();
    let message = Message::parse(request, &mut index).ok()?;
    let route = message.record_routes().next()?.ok()?;
    route.uri.params.get("sl")?.text().map(str::to_owned)
}

/// The cookie of a call that the daemon keeps a record of.
fn recorded_cookie(parts: &Parts, phone: SocketAddrV4, pbx: SocketAddrV4) -> String {
    let keys = Keys::new(KEY);
    let call_id = parts.call_id.as_bytes();
    let (call, _) = cookie::call(&keys, call_id, Span { at: 0, end: call_id.len() as u32 });
    let cookie = Cookie { flow: endpoint(phone), slot: u32::from(pbx == PBX2), recorded: true };
    let digits: Vec<u8> = cookie.write(&keys, call).iter().flat_map(|w| w.to_le_bytes()).collect();
    String::from_utf8(digits).expect("digits")
}

/// The response of who got this request (8.2.6), in one of three forms.
fn answer(request: &[u8], status: u16, call: usize, form: u8) -> Option<Vec<u8>> {
    let mut index = scan::Index::new();
    let request = Message::parse(request, &mut index).ok()?;
    let mut out = format!("SIP/2.0 {status} Said\r\n").into_bytes();
    if form % 3 == 1 {
        let vias: Vec<_> = request.headers_of(Kind::Via).map(|header| header.value).collect();
        out.extend(b"Via: ");
        out.extend(vias.join(&b", "[..]));
        out.extend(b"\r\n");
    }
    for header in request.headers() {
        let text = request.slice(header.span);
        match header.kind {
            Kind::Via if form % 3 == 1 => {}
            Kind::Via if form % 3 == 2 => {
                out.extend(b"v:");
                out.extend(header.value);
                out.extend(b"\r\n");
            }
            Kind::Via | Kind::From | Kind::CallId | Kind::CSeq | Kind::RecordRoute => {
                out.extend(text);
            }
            Kind::To if status > 100 && request.to().is_ok_and(|to| to.tag().is_none()) => {
                out.extend(text.strip_suffix(b"\r\n").unwrap_or(text));
                out.extend(format!(";tag=callee{call}\r\n").bytes());
            }
            Kind::To => out.extend(text),
            _ => {}
        }
    }
    out.extend(b"Content-Length: 0\r\n\r\n");
    Some(out)
}
