//! What must hold for every datagram, whoever made it: the scan, both readings of the headers, the
//! decision and the edits.
//!
//! The fuzz target calls [`hold`] with whatever it finds, the tests with every message of the corpus.

use std::cell::Cell;

use sip_ebpf::calls::Call;
use sip_ebpf::cookie::{COOKIE_DIGITS, Cookie};
use sip_ebpf::edit::{self, Front, Sink};
use sip_ebpf::hash::Keys;
use sip_ebpf::header::{self, Span};
use sip_ebpf::insert;
use sip_ebpf::message::{Error, Host, Message, Rport};
use sip_ebpf::reason::{Reason, Way};
use sip_ebpf::route::{Packet, Plan, Tables, route};
use sip_ebpf::scan::{self, Index, Kind, MAX_LINES, MAX_TEXT};
use sip_ebpf::tables::{Endpoint, Local, Pbx, PbxState};
use sip_ebpf::text::{SLACK, Text};

/// Our address.
pub(crate) const US: Endpoint = Endpoint::new([10, 10, 0, 1], 5060);
/// A phone in a trusted network.
pub(crate) const PHONE: Endpoint = Endpoint::new([10, 10, 1, 2], 5062);
/// Somebody else.
pub(crate) const STRANGER: Endpoint = Endpoint::new([192, 0, 2, 9], 5060);
/// The PBXs, by slot.
pub(crate) const PBXS: [Endpoint; 2] =
    [Endpoint::new([10, 10, 2, 2], 5060), Endpoint::new([10, 10, 3, 2], 5060)];

/// Fixed tables, and a call table of one call.
pub(crate) struct Fixed {
    keys: Keys,
    call: Cell<Option<(u64, Call)>>,
    turn: Cell<u32>,
}

impl Default for Fixed {
    fn default() -> Self {
        let keys = Keys::new([0x0123_4567_89ab_cdef, 0xfedc_ba98_7654_3210]);
        Self { keys, call: Cell::default(), turn: Cell::default() }
    }
}

impl Tables for Fixed {
    fn keys(&self) -> &Keys {
        &self.keys
    }

    fn alive(&self) -> bool {
        true
    }

    fn trusted(&self, src: Endpoint) -> bool {
        src.addr == PHONE.addr
    }

    fn pbx_at(&self, endpoint: Endpoint) -> Option<u32> {
        PBXS.iter().position(|pbx| *pbx == endpoint).map(|slot| slot as u32)
    }

    fn pbx(&self, slot: u32) -> Option<Pbx> {
        let at = PBXS.get(slot as usize)?;
        Some(Pbx { addr: at.addr, port: at.port, state: PbxState::Active as u8, pad: 0 })
    }

    fn turn(&self) -> Option<u32> {
        self.turn.set(self.turn.get() ^ 1);
        Some(self.turn.get())
    }

    fn call(&self, hash: u64) -> Option<Call> {
        self.call.get().filter(|call| call.0 == hash).map(|call| call.1)
    }

    fn remember(&self, hash: u64, slot: u32) {
        self.call.set(Some((hash, Call { slot, state: 0 })));
    }

    fn note(&self, hash: u64, bits: u32) -> Option<Call> {
        let before = self.call(hash)?;
        self.call.set(Some((hash, Call { state: before.state | bits, ..before })));
        Some(before)
    }

    fn guarded(&self) -> bool {
        false
    }

    fn noted(&self) -> bool {
        true
    }
}

/// Bytes that may be read as far as the kernel has zeros behind them, and no further.
#[derive(Clone, Copy)]
pub(crate) struct Guarded<'a>(pub(crate) &'a [u8]);

impl Text for Guarded<'_> {
    fn len(self) -> u32 {
        Text::len(self.0)
    }

    fn word(self, at: u32) -> u64 {
        assert!(at + 8 <= Text::len(self.0) + SLACK, "a word at {at} of {}", self.0.len());
        self.0.word(at)
    }

    fn byte(self, at: u32) -> u8 {
        assert!(at < Text::len(self.0) + SLACK, "a byte at {at} of {}", self.0.len());
        self.0.byte(at)
    }
}

/// Everything that must hold for a datagram.
pub(crate) fn hold(data: &[u8]) {
    let data = &data[..data.len().min(MAX_TEXT as usize + 1)];
    let mut index = Index::new();
    let scanned = scan::scan(Guarded(data), &mut index);
    // What an earlier scan left in the index changes nothing.
    let mut used = index;
    assert_eq!(scan::scan(Guarded(data), &mut used), scanned);
    assert_eq!(used.lines(), index.lines());
    if scanned.is_err() {
        assert_ne!(index.error, 0);
        return;
    }
    index_holds(data, &index);

    let mut flat = data.to_vec();
    let mut flat_index = Index::new();
    let message = Message::parse_folded(&mut flat, &mut flat_index).expect("unfolding scans again");
    assert_eq!(message.bytes().len(), data.len());
    message_holds(&message);
    quick_readers_agree(&message);
    for src in [PHONE, STRANGER, PBXS[0]] {
        forwarding_holds(&message, src);
    }
}

/// The lines lie in the text, in order, and the tables by kind are right.
fn index_holds(data: &[u8], index: &Index) {
    assert!(index.count <= MAX_LINES);
    assert!(index.body as usize <= data.len() && index.headers <= index.body);
    assert_eq!(&data[index.body as usize - 4..index.body as usize], b"\r\n\r\n");
    let mut at = index.headers;
    for line in index.lines() {
        assert_eq!(line.start as u32, at);
        assert!(line.start < line.value && line.value <= line.end);
        assert_eq!(&data[line.end as usize..line.end as usize + 2], b"\r\n");
        assert!(!data[line.start as usize..line.value as usize].contains(&b'\n'));
        at = line.end as u32 + 2;
    }
    assert_eq!(at + 2, index.body);
    for kind in Kind::ALL.into_iter().filter(|kind| *kind != Kind::Other) {
        let numbers = index.lines().iter().zip(1..).filter(|(line, _)| line.kind == kind as u8);
        let numbers: Vec<u32> = numbers.map(|(_, number)| number).collect();
        assert_eq!(
            (index.has(kind), index.repeated(kind)),
            (!numbers.is_empty(), numbers.len() > 1)
        );
        let gap = numbers.windows(2).any(|pair| pair[0] + 1 != pair[1]);
        assert_eq!(index.apart(kind), gap);
        let line = |number: Option<&u32>| number.map(|number| index.lines()[*number as usize - 1]);
        assert_eq!(
            (index.first(kind), index.last(kind)),
            (line(numbers.first()), line(numbers.last()))
        );
    }
    for line in index.lines() {
        let raw = &data[line.start as usize..line.value as usize];
        let colon = raw.iter().position(|byte| *byte == b':').expect("a colon");
        assert!(raw[colon + 1..].iter().all(|byte| matches!(byte, b' ' | b'\t')));
        let name = raw[..colon].trim_ascii_end();
        assert!(!name.is_empty() && !name.contains(&b' '), "{name:?}");
        assert_eq!(line.kind, kind_of(name) as u8, "{name:?}");
    }
}

/// Which header a name means, the slow way (RFC 3261 7.3.3, 20).
fn kind_of(name: &[u8]) -> Kind {
    match &name.to_ascii_lowercase()[..] {
        b"via" | b"v" => Kind::Via,
        b"from" | b"f" => Kind::From,
        b"to" | b"t" => Kind::To,
        b"call-id" | b"i" => Kind::CallId,
        b"cseq" => Kind::CSeq,
        b"max-forwards" => Kind::MaxForwards,
        b"route" => Kind::Route,
        b"record-route" => Kind::RecordRoute,
        b"contact" | b"m" => Kind::Contact,
        b"expires" => Kind::Expires,
        b"content-length" | b"l" => Kind::ContentLength,
        b"require" => Kind::Require,
        b"proxy-require" => Kind::ProxyRequire,
        b"authorization" => Kind::Authorization,
        b"proxy-authorization" => Kind::ProxyAuthorization,
        _ => Kind::Other,
    }
}

/// No accessor panics, spans lie where they say, and a good message stays good.
fn message_holds(message: &Message<'_>) {
    let len = message.bytes().len() as u32;
    let inside = |span: Span| assert!(span.at <= span.end && span.end <= len, "{span:?} of {len}");
    for header in message.headers() {
        inside(header.span);
        assert!(!header.value.contains(&b'\n'));
    }
    for via in message.vias().flatten() {
        for span in [via.span, via.sent_by, via.branch_span, via.rport_span] {
            inside(span);
        }
        assert_eq!(via.branch.unwrap_or("").as_bytes(), message.slice(via.branch_span));
        assert_eq!(via.params.has("rport"), via.rport != Rport::Absent);
    }
    for address in [message.from(), message.to()]
        .into_iter()
        .chain(message.routes())
        .chain(message.record_routes())
        .flatten()
    {
        inside(address.span);
        assert_eq!(address.uri.text.as_bytes(), message.slice(address.uri.span));
        assert_eq!(address.tag().unwrap_or("").as_bytes(), message.slice(address.tag_span()));
    }
    for kind in [Kind::Via, Kind::Route, Kind::RecordRoute] {
        if let Ok(Some(span)) = message.cut_first(kind) {
            inside(span);
        }
    }
    if let Ok(Some(hops)) = message.max_forwards() {
        assert!(message.slice(hops.digits).iter().all(u8::is_ascii_digit));
    }
    if let Ok(body) = message.body() {
        assert!(message.bytes()[message.index().body as usize..].starts_with(body));
    }
    for error in [message.check(), message.check_all()].into_iter().filter_map(Result::err) {
        assert!(!error.to_string().is_empty());
        assert!(error.status() >= 400);
    }
    assert!(message.check().is_ok() || message.check_all().is_err());
    for tag in message.requires().chain(message.proxy_requires()).flatten() {
        assert!(!tag.is_empty());
    }
    message.contacts().for_each(drop);
}

/// What the quick readers do not call odd, they read as the full reading does.
fn quick_readers_agree(message: &Message<'_>) {
    let (bytes, index) = (message.bytes(), message.index());
    let t = Guarded(bytes);
    let quick = |kind| index.first(kind).and_then(|line| header::number(t, line).ok());
    if let (Some(value), Ok(full)) = (quick(Kind::MaxForwards), message.max_forwards()) {
        assert_eq!(full.map(|hops| hops.value as u32), Some(value));
    }
    if let (Some(value), Ok(full)) = (quick(Kind::ContentLength), message.content_length()) {
        assert_eq!(full, Some(value));
    }
    if let (Some(value), Ok(full)) = (quick(Kind::Expires), message.expires()) {
        assert_eq!(full, Some(value));
    }
    for (kind, full) in [(Kind::From, message.from()), (Kind::To, message.to())] {
        let mut tag = Span::default();
        let Some(line) = index.first(kind) else { continue };
        if header::tag(t, line, &mut tag).is_ok()
            && let Ok(full) = full
        {
            assert_eq!(tag, full.tag_span(), "{kind:?}");
        }
    }
    if let Some(line) = index.first(Kind::CSeq)
        && message.is_request()
        && message.method_name().is_ok()
        && !index.repeated(Kind::CSeq)
        && header::cseq_fits(t, line, index.method_end).is_ok()
    {
        message.cseq().expect("a CSeq that the quick reader takes");
    }
    if header::once_each(index).is_ok() && header::length_fits(t, index).is_ok() {
        assert_eq!(message.body(), Ok(&bytes[index.body as usize..]));
        assert!(!matches!(message.check(), Err(Error::Duplicate(_) | Error::Truncated)));
    }
    let mut vias = message.vias();
    let Some(line) = index.first(Kind::Via) else { return };
    let mut at = line.value as u32;
    loop {
        let mut via = header::Via::default();
        let Some(Ok(full)) = vias.next() else { return };
        if at != full.span.at || header::via(t, at, line.end as u32, &mut via).is_err() {
            return;
        }
        assert_eq!((via.at, via.end), (full.span.at, full.span.end));
        assert_eq!(via.sent_by, full.sent_by);
        assert_eq!(via.branch, full.branch_span);
        assert_eq!(via.rport, full.rport_span);
        assert_eq!(!via.received.is_empty(), full.received.is_some());
        assert_eq!(via.maddr != 0, full.maddr.is_some());
        let sent_by = header::host_port::<_, Endpoint>(t, via.sent_by.at, via.sent_by.end);
        if let Ok((host, port)) = sent_by {
            assert_eq!(full.host, Host::V4(host.octets().into()));
            assert_eq!(full.port.unwrap_or(5060) as u32, port);
        }
        if via.end == line.end as u32 {
            return;
        }
        at = scan::skip_blank(t, via.end + 1);
    }
}

/// Grows as it is written to.
#[derive(Default)]
pub(crate) struct Out(pub(crate) Vec<u8>);

impl Sink for Out {
    fn put(&mut self, at: u32, word: u64) {
        let at = at as usize;
        assert!(at < MAX_TEXT as usize + 1024, "a write at {at}");
        if self.0.len() < at + 8 {
            self.0.resize(at + 8, 0);
        }
        self.0[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
}

/// What the proxy does with a datagram from `src`: the reason, the plan, and the bytes that go out.
pub(crate) fn forward(
    bytes: &[u8],
    src: Endpoint,
    local: &Local,
    tables: &Fixed,
) -> (Reason, Plan, Option<Vec<u8>>) {
    let mut index = Index::new();
    scan::scan(Guarded(bytes), &mut index).expect("scanned before");
    let packet = Packet { src, dst: US };
    let mut plan = Plan::default();
    let reason = route(Guarded(bytes), &index, packet, local, tables, &mut plan);
    if reason.way() != Way::Sent {
        return (reason, plan, None);
    }
    let mut text = bytes.to_vec();
    let mut out = Out::default();
    let front = match reason {
        Reason::OptionsAnswered => {
            edit::options_answer(Guarded(&text), &index, packet, &plan, &mut out)
        }
        Reason::ResponseForwarded => edit::response(Guarded(&text), &plan, &mut out),
        _ => {
            let digits = edit::hops(&plan).to_le_bytes();
            let (at, len) = (plan.hops_at as usize, plan.hops_len as usize);
            text[at..at + len].copy_from_slice(&digits[..len]);
            edit::request(Guarded(&text), &index, packet, local, &plan, &mut out)
        }
    };
    let Front { old, new } = front;
    let mut sent = out.0;
    assert!(new as usize <= sent.len());
    sent.truncate(new as usize);
    sent.extend_from_slice(&text[old as usize..]);
    (reason, plan, Some(sent))
}

/// What is sent is a message again, with the Vias that must be there, and its answer finds back.
fn forwarding_holds(message: &Message<'_>, src: Endpoint) {
    let local = insert::local(US);
    let tables = Fixed::default();
    let (reason, plan, sent) = forward(message.bytes(), src, &local, &tables);
    if reason == Reason::BadCookie {
        // Nobody guesses a signature: sign it, and see what comes then.
        if let Some(signed) = sign(message, &plan, &tables, &local) {
            let (_, _, sent) = forward(&signed, src, &local, &tables);
            if let Some(sent) = sent {
                let mut index = Index::new();
                let message = Message::parse(&signed, &mut index).expect("scanned before");
                sent_holds(&message, src, &local, &tables, &sent);
            }
        }
    }
    let Some(sent) = sent else { return };
    if reason == Reason::ResponseForwarded || reason == Reason::OptionsAnswered {
        let mut index = Index::new();
        let after = Message::parse(&sent, &mut index).expect("a message again");
        if message.check().is_ok() {
            after.check().expect("a good message again");
            let gone = (reason == Reason::ResponseForwarded) as usize;
            assert_eq!(after.vias().count() + gone, message.vias().count());
        }
        return;
    }
    sent_holds(message, src, &local, &tables, &sent);
}

/// The same message with a cookie of ours in its Route.
fn sign(message: &Message<'_>, plan: &Plan, tables: &Fixed, local: &Local) -> Option<Vec<u8>> {
    let line = message.index().first(Kind::Route)?;
    let at = line.value as usize + local.route_len as usize;
    let words = Cookie { flow: PHONE, ..Cookie::default() }.write(tables.keys(), plan.call);
    let digits: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
    assert_eq!(digits.len(), COOKIE_DIGITS as usize);
    let mut bytes = message.bytes().to_vec();
    bytes.get_mut(at..at + digits.len())?.copy_from_slice(&digits);
    Some(bytes)
}

/// A request that went out.
fn sent_holds(message: &Message<'_>, src: Endpoint, local: &Local, tables: &Fixed, sent: &[u8]) {
    let mut index = Index::new();
    let after = Message::parse(sent, &mut index).expect("a message again");
    let top = after.top_via().expect("our Via");
    assert_eq!((top.host, top.port), (Host::V4(US.octets().into()), Some(US.port_number())));
    if message.check().is_err() || message.vias().any(|via| via.is_err()) {
        return;
    }
    after.check().expect("a good message again");
    let before = message.top_via().expect("checked");
    assert_eq!(after.vias().count(), message.vias().count() + 1);
    let below = after.vias().nth(1).expect("counted").expect("checked");
    assert_eq!(below.branch, before.branch);
    let came_from: std::net::IpAddr = src.octets().into();
    let asked = before.rport != Rport::Absent;
    if asked {
        assert_eq!(below.rport, Rport::Value(src.port_number()));
    }
    if asked || before.host.ip() != Some(came_from) {
        assert_eq!(below.received, Some(came_from));
    }
    let hops = |message: &Message<'_>| message.max_forwards().expect("checked").map(|h| h.value);
    assert_eq!(hops(&after).map(|hops| hops + 1), hops(message));
    assert_eq!(after.call_id(), message.call_id());
    assert_eq!(after.cseq(), message.cseq());
    assert_eq!(after.body(), message.body());

    // The answer of the other side: it finds back to where the request came from.
    let mut answer = b"SIP/2.0 200 OK\r\n".to_vec();
    for header in after.headers().filter(|header| {
        matches!(header.kind, Kind::Via | Kind::From | Kind::To | Kind::CallId | Kind::CSeq)
    }) {
        answer.extend_from_slice(after.slice(header.span));
    }
    answer.extend_from_slice(b"Content-Length: 0\r\n\r\n");
    let (reason, plan, back) = forward(&answer, PBXS[1], local, tables);
    if !asked && before.host.ip().is_none() {
        // A name without `rport`: the daemon asks the resolver for nothing here, but the port is a
        // matter of the long way.
        return;
    }
    if before.host.ip().is_some_and(|ip| ip.is_ipv6()) && !asked {
        return;
    }
    assert_eq!(reason, Reason::ResponseForwarded);
    assert_eq!(plan.next.addr, src.addr);
    let port = if asked { src.port_number() } else { before.port.unwrap_or(5060) };
    assert_eq!(plan.next.port_number(), port);
    let back = back.expect("sent");
    let mut index = Index::new();
    let back = Message::parse(&back, &mut index).expect("a message again");
    assert_eq!(back.vias().count(), message.vias().count());
}
