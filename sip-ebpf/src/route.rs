//! Where a message goes: the decision of the stateless proxy (RFC 3261 16.11), made once for the
//! kernel and for the daemon.
//!
//! [`route`] reads what it needs into a [`Plan`] and names the reason. When the reason is one that
//! sends ([`crate::reason::Way::Sent`]), [`crate::edit`] makes the bytes. In every other case the
//! message is the daemon's, which knows the long way.

use crate::address::{Address, Words};
use crate::calls::{Call, state};
use crate::cookie::{self, Cookie, Owner};
use crate::hash::Keys;
use crate::header::{self, Span, Via};
use crate::reason::Reason;
use crate::scan::{Index, Kind, Line, Method};
use crate::tables::{Endpoint, Local, MAX_PBX, PbxState};
use crate::text::{LOWER, Text, head, literal};

/// What the decision asks of the tables.
pub trait Tables<A: Address = Endpoint> {
    /// The keys of hashes and signatures.
    fn keys(&self) -> &Keys;

    /// Whether the daemon vouches for itself, so that we may answer in its name.
    fn alive(&self) -> bool;

    /// Whether INVITEs from there are steered.
    fn trusted(&self, src: A) -> bool;

    /// [`Address::digits`] of where the datagram came from, as they are or as they were kept.
    #[inline(always)]
    fn address_digits(&self, src: A) -> A::Digits {
        src.digits()
    }

    /// The slot of the PBX that listens there.
    fn pbx_at(&self, endpoint: A) -> Option<u32>;

    /// The PBX in a slot, if it is in use.
    fn pbx(&self, slot: u32) -> Option<A::Pbx>;

    /// The slot of the active PBX whose turn it is.
    fn turn(&self) -> Option<u32>;

    /// The slot that a call went to, and how far it is.
    fn call(&self, hash: u64) -> Option<Call>;

    /// Remembers the slot that a call goes to, of which nothing is known yet.
    fn remember(&self, hash: u64, slot: u32);

    /// Adds bits of [`state`] to a call. Gives it as it was.
    fn note(&self, hash: u64, bits: u32) -> Option<Call>;

    /// Whether somebody is there who places calls anew that their PBX does not take.
    fn guarded(&self) -> bool;

    /// Whether somebody wants to know how far calls are, now or when he is back.
    fn noted(&self) -> bool;
}

/// From where to where a datagram came.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Packet<A = Endpoint> {
    /// Its source.
    pub src: A,
    /// Its destination: an address of ours.
    pub dst: A,
}

/// What was read, and what is to be done with it.
#[derive(Clone, Copy, Debug)]
#[repr(C)]
pub struct Plan<A: Address = Endpoint> {
    /// The top Via.
    pub via: Via,
    /// Of a response: the Via below it.
    pub next_via: Via,
    /// Tag of To.
    pub to_tag: Span,
    /// Of a request inside a dialog: the Route line that goes, with its CR LF.
    pub cut: Span,
    /// Keyed hash of the Call-ID; zero of an OPTIONS outside a dialog.
    pub call: u64,
    /// Of such an OPTIONS: digits of the tag that goes into To.
    pub tag: u64,
    /// Digits of our branch.
    pub branch: u64,
    /// Digits of our cookie, if a Record-Route goes in.
    pub cookie: A::Cookie,
    /// Where it goes.
    pub next: A,
    /// Slot of the PBX it goes to or comes from.
    pub slot: u32,
    /// Where the digits of Max-Forwards stand; zero if they stay.
    pub hops_at: u32,
    /// How many digits they are.
    pub hops_len: u32,
    /// The new value.
    pub hops: u32,
    /// Whether a Record-Route goes in.
    pub record: u32,
    /// Of a response: where the digits of the branch in our Via stand, if that is as we write it; else zero.
    pub own_digits: u32,
    /// Of a response that decides its call, as the first one: [`state::ENDED`], and [`state::CANCELLED`] if that was before.
    pub decided: u32,
}

impl<A: Address> Default for Plan<A> {
    fn default() -> Self {
        Self {
            via: Via::default(),
            next_via: Via::default(),
            to_tag: Span::default(),
            cut: Span::default(),
            call: 0,
            tag: 0,
            branch: 0,
            cookie: A::Cookie::ZERO,
            next: A::default(),
            slot: 0,
            hops_at: 0,
            hops_len: 0,
            hops: 0,
            record: 0,
            own_digits: 0,
            decided: 0,
        }
    }
}

impl<A: Address> Plan<A> {
    /// The same with addresses of another family.
    pub fn with<B: Address>(&self, next: B, cookie: B::Cookie) -> Plan<B> {
        let Self { via, next_via, to_tag, cut, call, tag, branch, slot, .. } = *self;
        let Self { hops_at, hops_len, hops, record, own_digits, decided, .. } = *self;
        Plan {
            via,
            next_via,
            to_tag,
            cut,
            call,
            tag,
            branch,
            cookie,
            next,
            slot,
            hops_at,
            hops_len,
            hops,
            record,
            own_digits,
            decided,
        }
    }
}

/// Decides. `index` is what [`crate::scan::scan`] found in `t`; `local` is what stands in the table
/// for `packet.dst`.
#[inline(always)]
pub fn route<T: Text, A: Address, W: Tables<A>>(
    t: T,
    index: &Index,
    packet: Packet<A>,
    local: &Local<A>,
    tables: &W,
    plan: &mut Plan<A>,
) -> Reason {
    if index.method == Method::Response as u32 {
        return response(t, index, packet, local, tables, plan);
    }
    request(t, index, packet, local, tables, plan)
}

/// As [`route`], for what is known to be a request.
#[inline(always)]
pub fn request<T: Text, A: Address, W: Tables<A>>(
    t: T,
    index: &Index,
    packet: Packet<A>,
    local: &Local<A>,
    tables: &W,
    plan: &mut Plan<A>,
) -> Reason {
    if index.flags != 0 {
        return Reason::Folded;
    }
    let Some(via) = index.first(Kind::Via) else {
        return Reason::OddVia;
    };
    if header::via(t, via.value as u32, via.end as u32, &mut plan.via).is_err() {
        return Reason::OddVia;
    }
    // The top Via alone in its line, with the magic cookie, as its sender wrote it.
    let odd = plan.via.end != via.end as u32
        || head(t.word(plan.via.branch.at) | LOWER, 7) != literal(b"z9hg4bk")
        || plan.via.branch.end <= plan.via.branch.at + 7
        || !plan.via.received.is_empty()
        || !plan.via.rport.is_empty()
        || plan.via.maddr != 0;
    if odd {
        return Reason::OddVia;
    }
    if index.has(Kind::ProxyRequire) {
        return Reason::Required;
    }
    if header::once_each(index).is_err() {
        return Reason::OddHeader;
    }
    if header::length_fits(t, index).is_err() {
        return Reason::ContentLength;
    }
    let (Some(to), Some(call_id)) = (index.first(Kind::To), index.first(Kind::CallId)) else {
        return Reason::OddHeader;
    };
    let Some(cseq) = index.first(Kind::CSeq) else {
        return Reason::OddHeader;
    };
    let well = header::cseq_fits(t, cseq, index.method_end).is_ok()
        && header::tag(t, to, &mut plan.to_tag).is_ok()
        && call_id.value < call_id.end;
    if !well {
        return Reason::OddHeader;
    }
    let keys = tables.keys();
    let span = Span { at: call_id.value as u32, end: call_id.end as u32 };
    let in_dialog = !plan.to_tag.is_empty();
    let options = index.method == Method::Options as u32 && !in_dialog;
    if options {
        // Nothing is remembered of it: its Call-ID makes the answer's tag alone.
        let (tag, marks) = cookie::to_tag(keys, t, span);
        if marks != 0 {
            return Reason::OddHeader;
        }
        plan.tag = tag;
        return self::options(t, index, packet, local, tables, plan);
    }
    let (call, marks) = cookie::call(keys, t, span);
    if marks != 0 {
        return Reason::OddHeader;
    }
    plan.call = call;
    let hops = max_forwards(t, index, plan);
    if hops.is_err() {
        return Reason::MaxForwards;
    }
    plan.branch = cookie::branch(keys, call, t, plan.via.branch);
    let from_pbx = tables.pbx_at(packet.src);
    if index.has(Kind::Route) {
        if !in_dialog {
            return Reason::Preloaded;
        }
        return dialog(t, index, local, tables, from_pbx, plan);
    }
    if from_pbx.is_some() {
        return Reason::FromPbx;
    }
    if index.method == Method::Invite as u32 && !in_dialog {
        return invite(packet, tables, plan);
    }
    let cancel = index.method == Method::Cancel as u32 && !in_dialog;
    if cancel || index.method == Method::Ack as u32 {
        return follow(
            tables,
            plan,
            if cancel { Reason::CancelSteered } else { Reason::AckSteered },
        );
    }
    Reason::Method
}

/// OPTIONS that asks us, not somebody behind us (RFC 3261 11).
#[inline(always)]
fn options<T: Text, A: Address, W: Tables<A>>(
    t: T,
    index: &Index,
    packet: Packet<A>,
    local: &Local<A>,
    tables: &W,
    plan: &Plan<A>,
) -> Reason {
    if index.has(Kind::Route) || index.has(Kind::Require) {
        return Reason::OptionsNotForUs;
    }
    if !for_us(t, index, local) {
        return Reason::OptionsNotForUs;
    }
    if index.apart(Kind::Via) {
        return Reason::OddVia;
    }
    // The answer goes back to where the question came from: without rport only if that is the port
    // in the Via (18.2.2).
    if plan.via.rport.at == 0
        && !sent_by::<T, A>(t, &plan.via)
            .is_ok_and(|(_, port)| port == packet.src.port_number() as u32)
    {
        return Reason::OddVia;
    }
    if !tables.alive() {
        return Reason::HeartbeatStale;
    }
    Reason::OptionsAnswered
}

/// Whether the Request-URI is `sip:`, our address and port as we would write them, and at most
/// parameters. The port may be missing where it is 5060.
#[inline(always)]
fn for_us<T: Text, A: Address>(t: T, index: &Index, local: &Local<A>) -> bool {
    let (mut port, mut host) = (0, u64::from(local.host_len == 0));
    for i in 0..A::Uri::LEN {
        // Letters of the scheme in any case.
        let differs = (t.word(index.uri + 8 * i as u32) | A::small(i)) ^ local.uri.word(i);
        port |= differs & local.uri_mask.word(i);
        host |= differs & local.host_mask.word(i);
    }
    let at = match (port, host) {
        (0, _) => index.uri + local.uri_len,
        (_, 0) => index.uri + local.host_len,
        _ => return false,
    };
    at == index.uri_end || (at < index.uri_end && t.byte(at) == b';')
}

/// Max-Forwards less one, with as many digits (16.6, step 3).
#[inline(always)]
fn max_forwards<T: Text, A: Address>(
    t: T,
    index: &Index,
    plan: &mut Plan<A>,
) -> Result<(), header::Odd> {
    let line = index.first(Kind::MaxForwards).ok_or(header::Odd)?;
    let hops = header::number(t, line)?;
    let len = line.end as u32 - line.value as u32;
    // Above 70 the daemon lowers it to 70.
    if hops == 0 || hops > 70 || len > 3 {
        return Err(header::Odd);
    }
    plan.hops = hops - 1;
    plan.hops_at = line.value as u32;
    plan.hops_len = len;
    Ok(())
}

/// An INVITE that starts a dialog: to the PBX of its first copy, else to the next one.
#[inline(always)]
fn invite<A: Address, W: Tables<A>>(packet: Packet<A>, tables: &W, plan: &mut Plan<A>) -> Reason {
    if !tables.trusted(packet.src) {
        return Reason::Untrusted;
    }
    let call = tables.call(plan.call).unwrap_or(Call { slot: NOWHERE, state: 0 });
    if call.state & state::TAKEN != 0 {
        return Reason::TakenOver;
    }
    let (slot, reason) = match known(tables, call) {
        true => {
            if call.state & state::ENDED != 0 {
                // It was refused, and comes again with what was missing (22.2): nothing is known of this one.
                tables.remember(plan.call, call.slot);
            }
            (call.slot, Reason::InviteRepeated)
        }
        false => {
            let Some(slot) = tables.turn() else {
                return Reason::NoPbx;
            };
            tables.remember(plan.call, slot);
            (slot, Reason::InviteSteered)
        }
    };
    let Some(pbx) = tables.pbx(slot) else {
        return Reason::NoPbx;
    };
    let cookie = Cookie { flow: packet.src, slot, recorded: false };
    plan.cookie = cookie.write_known(tables.keys(), plan.call, tables.address_digits(packet.src));
    plan.record = 1;
    plan.slot = slot;
    plan.next = A::of_pbx(&pbx).0;
    plan.cut = Span::default();
    reason
}

/// A slot that there is not.
const NOWHERE: u32 = MAX_PBX;

/// Whether there is a PBX that a call is with, and it was not found dead: then the call may still be saved by another.
#[inline(always)]
fn known<A: Address, W: Tables<A>>(tables: &W, call: Call) -> bool {
    tables.pbx(call.slot).is_some_and(|pbx| A::of_pbx(&pbx).1 != PbxState::Inactive as u8)
}

/// CANCEL and the ACK of a failure go where their INVITE went (9.1, 17.1.1.3).
#[inline(always)]
fn follow<A: Address, W: Tables<A>>(tables: &W, plan: &mut Plan<A>, reason: Reason) -> Reason {
    let bits = if matches!(reason, Reason::CancelSteered) { state::CANCELLED } else { 0 };
    let Some(call) = tables.note(plan.call, bits) else {
        return Reason::UnknownCall;
    };
    if call.state & state::TAKEN != 0 {
        return Reason::TakenOver;
    }
    let Some(pbx) = tables.pbx(call.slot) else {
        return Reason::UnknownCall;
    };
    plan.record = 0;
    plan.slot = call.slot;
    plan.next = A::of_pbx(&pbx).0;
    plan.cut = Span::default();
    reason
}

/// A request inside a dialog follows our Record-Route (16.12), which must stand alone.
#[inline(always)]
fn dialog<T: Text, A: Address, W: Tables<A>>(
    t: T,
    index: &Index,
    local: &Local<A>,
    tables: &W,
    from_pbx: Option<u32>,
    plan: &mut Plan<A>,
) -> Reason {
    let Some(line) = index.first(Kind::Route) else {
        return Reason::OddRoute;
    };
    let at = line.value as u32;
    let differs = local.route.differs(&local.route_mask, t, at);
    let digits = at + local.route_len;
    let end = digits + cookie::cookie_digits::<A>();
    if differs != 0
        || index.repeated(Kind::Route)
        || end + 1 != line.end as u32
        || t.byte(end) != b'>'
    {
        return Reason::OddRoute;
    }
    let Some((cookie, signature)) = Cookie::<A>::read(t, digits) else {
        return Reason::BadCookie;
    };
    if !cookie.signed(signature, tables.keys(), plan.call) {
        return Reason::BadCookie;
    }
    plan.record = 0;
    plan.slot = cookie.slot;
    plan.cut = Span { at: line.start as u32, end: line.end as u32 + 2 };
    let reason = match from_pbx {
        Some(slot) if slot == cookie.slot => {
            plan.next = cookie.flow;
            Reason::DialogToPhone
        }
        Some(_) => return Reason::WrongSide,
        None => {
            let Some(pbx) = tables.pbx(cookie.slot) else {
                return Reason::NoPbx;
            };
            plan.next = A::of_pbx(&pbx).0;
            Reason::DialogToPbx
        }
    };
    // It goes on all the same, but by way of the record, while there is somebody who keeps it.
    // One comparison, so that the verifier has one more way to follow and not three.
    let other = !cookie.recorded as u32 | (index.method ^ Method::Bye as u32);
    if other == 0 && tables.alive() {
        return Reason::ByeRecorded;
    }
    reason
}

/// As [`route`], for what is known to be a response: it goes where the Via below ours says (16.11, 18.2.2), to or from a PBX
/// only.
#[inline(always)]
pub fn response<T: Text, A: Address, W: Tables<A>>(
    t: T,
    index: &Index,
    packet: Packet<A>,
    local: &Local<A>,
    tables: &W,
    plan: &mut Plan<A>,
) -> Reason {
    if index.flags != 0 {
        return Reason::Folded;
    }
    let Some(via) = index.first(Kind::Via) else {
        return Reason::OddVia;
    };
    plan.decided = 0;
    let (digits, ours) = match own_via(t, via, local, &mut plan.via) {
        Some(digits) => (digits, 0),
        None => match foreign(t, via, plan) {
            Ok(ours) => (0, ours),
            Err(reason) => return reason,
        },
    };
    plan.own_digits = digits;
    let reason = below_ours(t, index, packet, via, (digits, ours), tables, plan);
    // What looks like ours was not read: digits that are none are somebody else's.
    if digits != 0
        && !matches!(reason, Reason::ResponseForwarded)
        && branch_at(t, digits).is_none()
        && let Err(reason) = foreign(t, via, plan)
    {
        return reason;
    }
    reason
}

/// The digits of a branch of ours in a Via that we would write in another way, or why it is none.
#[inline(always)]
fn foreign<T: Text, A: Address>(t: T, via: Line, plan: &mut Plan<A>) -> Result<u64, Reason> {
    if header::via(t, via.value as u32, via.end as u32, &mut plan.via).is_err() {
        return Err(Reason::OddVia);
    }
    match cookie::owner(t, plan.via.branch) {
        Owner::Stateless(digits) => Ok(digits),
        Owner::Daemon => Err(Reason::DaemonResponse),
        Owner::Other => Err(Reason::NotOurResponse),
    }
}

/// The number whose digits stand at `at`.
#[inline(always)]
fn branch_at<T: Text>(t: T, at: u32) -> Option<u64> {
    let [high, low] = t.pair(at);
    let (high, low) = (crate::text::unhex8(high)?, crate::text::unhex8(low)?);
    Some((high as u64) << 32 | low as u64)
}

/// The rest of a response whose top Via is ours: `ours` is where the digits of its branch stand or, where that is
/// zero, what they say.
#[inline(always)]
fn below_ours<T: Text, A: Address, W: Tables<A>>(
    t: T,
    index: &Index,
    packet: Packet<A>,
    via: Line,
    ours: (u32, u64),
    tables: &W,
    plan: &mut Plan<A>,
) -> Reason {
    // The next Via stands behind a comma, or in the next line.
    let (next, next_end) = if plan.via.end < via.end as u32 {
        (crate::scan::skip_blank(t, plan.via.end + 1), via.end as u32)
    } else {
        let line = index.line(via.number as u32);
        if via.number as u32 >= index.count || line.kind != Kind::Via as u8 {
            return Reason::BadBranch;
        }
        (line.value as u32, line.end as u32)
    };
    if header::via(t, next, next_end, &mut plan.next_via).is_err() {
        return Reason::OddVia;
    }
    if header::once_each(index).is_err() {
        return Reason::OddHeader;
    }
    if header::length_fits(t, index).is_err() {
        return Reason::ContentLength;
    }
    let Some(call_id) = index.first(Kind::CallId) else {
        return Reason::OddHeader;
    };
    let keys = tables.keys();
    let span = Span { at: call_id.value as u32, end: call_id.end as u32 };
    let (call, marks) = cookie::call(keys, t, span);
    if marks != 0 || span.is_empty() {
        return Reason::OddHeader;
    }
    plan.call = call;
    let branch = cookie::branch(keys, call, t, plan.next_via.branch);
    let (digits, ours) = ours;
    // Digits are made of the number, and only those in capitals are read.
    let same = match digits {
        0 => branch == ours,
        _ => t.pair(digits) == crate::text::hex(branch) || branch_at(t, digits) == Some(branch),
    };
    if !same {
        return Reason::BadBranch;
    }
    plan.branch = branch;
    let Ok(next_hop) = way_back::<T, A>(t, &plan.next_via) else {
        return Reason::BadBranch;
    };
    let from_pbx = tables.pbx_at(packet.src).is_some();
    if !from_pbx && tables.pbx_at(next_hop).is_none() {
        return Reason::WrongSide;
    }
    plan.next = next_hop;
    plan.cut = if plan.via.end < via.end as u32 {
        Span { at: plan.via.at, end: next }
    } else {
        Span { at: via.start as u32, end: via.end as u32 + 2 }
    };
    if from_pbx { outcome(t, index, tables, plan) } else { Reason::ResponseForwarded }
}

/// What a response of a PBX means for its call: that it was heard, that it is decided, that another PBX may take it.
#[inline(always)]
fn outcome<T: Text, A: Address, W: Tables<A>>(
    t: T,
    index: &Index,
    tables: &W,
    plan: &mut Plan<A>,
) -> Reason {
    if !tables.noted() {
        return Reason::ResponseForwarded;
    }
    let Some(cseq) = index.first(Kind::CSeq) else { return Reason::ResponseForwarded };
    // The last eight bytes of the value: a number is before the method (20.16). Of a value that is shorter, what is
    // before it is read, and that is no digit.
    let method = t.word((cseq.end as u32).wrapping_sub(7));
    if head(method, 7) != literal(b" INVITE") {
        return Reason::ResponseForwarded;
    }
    // The first digit of "SIP/2.0 200".
    let class = t.byte(8);
    if class == b'5' && tables.guarded() {
        return Reason::SteeredFailed;
    }
    let bits = if class < b'2' { state::HEARD } else { state::HEARD | state::ENDED };
    // One that the table has forgotten may be told twice, and is told.
    let was = tables.note(plan.call, bits).map_or(0, |call| call.state);
    plan.decided = (bits & !was & state::ENDED) | (was & state::CANCELLED);
    if was & state::TAKEN != 0 { Reason::TakenOver } else { Reason::ResponseForwarded }
}

/// A Via as we write it, which is how it comes back from nearly everybody: where the digits of its branch
/// should be, and in `found` where it stands. None says nothing yet.
#[inline(always)]
fn own_via<T: Text, A: Address>(
    t: T,
    line: Line,
    local: &Local<A>,
    found: &mut Via,
) -> Option<u32> {
    let at = line.value as u32;
    let differs = local.own_via.differs(&local.own_via_mask, t, at);
    let digits = at + local.own_via_len;
    let end = digits + cookie::BRANCH_DIGITS;
    if differs != 0 || (end != line.end as u32 && t.byte(end) != b',') {
        return None;
    }
    (found.at, found.end) = (at, end);
    Some(digits)
}

/// Where a response for this Via goes: `received` and `rport` before the sender's own words
/// (18.2.2, RFC 3581 4).
#[inline(always)]
fn way_back<T: Text, A: Address>(t: T, via: &Via) -> Result<A, header::Odd> {
    if via.maddr != 0 {
        return Err(header::Odd);
    }
    // With `received` and `rport` the sender's own words do not matter, and may be a name.
    let (mut host, mut port) = (A::default(), 0);
    if via.received.is_empty() || via.rport.is_empty() {
        (host, port) = sent_by(t, via)?;
    }
    if !via.received.is_empty() {
        let (value, at) = A::read_received(t, via.received.at).ok_or(header::Odd)?;
        if at != via.received.end {
            return Err(header::Odd);
        }
        host = value;
    }
    if !via.rport.is_empty() {
        port = header::port(t, via.rport)?;
    }
    Ok(host.with_port(port as u16))
}

/// Host and port of a Via that was sent by an address.
#[inline(always)]
fn sent_by<T: Text, A: Address>(t: T, via: &Via) -> Result<(A, u32), header::Odd> {
    header::host_port(t, via.sent_by.at, via.sent_by.end)
}

#[cfg(test)]
mod tests;
