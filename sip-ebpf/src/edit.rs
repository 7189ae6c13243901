//! The bytes that go out: what is copied, what is cut and what is put in.
//!
//! Only the front of a message changes. A function here writes the new front into a [`Sink`] and
//! says how long it is and how much of the old message it stands for ([`Front`]); what follows is
//! the rest of the old one.

use crate::address::{Address, Words};
use crate::header::{Span, host_port};
use crate::repeat::{repeat_few, step};
use crate::route::{Packet, Plan};
use crate::scan::{Index, Kind};
use crate::tables::Local;
use crate::text::{Text, literal};

/// The longest front. A longer one is for the daemon.
pub const FRONT: u32 = 2048;

/// How far past [`FRONT`] a write may reach.
pub const FRONT_SLACK: u32 = 256;

/// Where a front is written.
pub trait Sink {
    /// Whether only messages are written here whose sender has asked for an `rport`.
    const RPORT: bool = false;

    /// Puts eight bytes at `at`, the first in the lowest bits. Later ones may cover earlier ones.
    fn put(&mut self, at: u32, word: u64);

    /// Puts `N` words from `at` on; at most [`FRONT_SLACK`] bytes.
    #[inline(always)]
    fn put_run<const N: usize>(&mut self, at: u32, word: impl Fn(usize) -> u64) {
        for i in 0..N {
            self.put(at + 8 * i as u32, word(i));
        }
    }

    /// Puts what a Via says of who sent it, and says where that ended: [`received`] as it is, or as it was kept.
    #[inline(always)]
    fn put_received<A: Address>(&mut self, at: u32, src: A, rport: bool) -> u32
    where
        Self: Sized,
    {
        received(src, rport, self, at)
    }

    /// As [`Text::fresh`].
    fn fresh(&self, value: u32) -> u32 {
        value
    }
}

/// Where something is written to be read again.
pub trait Draft: Sink {
    /// The eight bytes at `at`.
    fn get(&self, at: u32) -> u64;
}

/// A front that was written.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Front {
    /// How much of the old message it stands for.
    pub old: u32,
    /// How long it is.
    pub new: u32,
}

/// A request on its way: our Via on top, maybe a Record-Route, `received` and `rport` for who sent
/// it, our Route out. Max-Forwards is not in here: see [`hops`].
#[inline(always)]
pub fn request<T: Text, A: Address, S: Sink>(
    t: T,
    index: &Index,
    packet: Packet<A>,
    local: &Local<A>,
    plan: &Plan<A>,
    out: &mut S,
) -> Front {
    let mut at = copy(t, 0, index.headers, out, 0);
    if plan.record != 0 {
        local.record_route.put(out, at);
        plan.cookie.put(out, at + local.cookie_at);
        at = out.fresh(at + local.record_route_len);
    }
    local.via.put(out, at);
    let digits = crate::text::hex(plan.branch);
    out.put_run::<2>(at + local.branch_at, |i| digits[i]);
    at = out.fresh(at + local.via_len);

    // Two places are left, in whichever order they stand: the end of the Via, and the Route.
    let cut = plan.cut.end > plan.cut.at;
    let cut_first = cut && plan.cut.at < plan.via.at;
    let mut from = index.headers;
    if cut_first {
        at = copy(t, from, plan.cut.at, out, at);
        from = plan.cut.end;
    }
    let fill = if plan.via.rport.at != 0 { plan.via.rport.at } else { plan.via.end };
    at = copy(t, from, fill, out, at);
    at = sender(t, packet, plan, out, at);
    from = fill;
    if cut && !cut_first {
        at = copy(t, from, plan.cut.at, out, at);
        from = plan.cut.end;
    }
    Front { old: from, new: at }
}

/// `=port;received=address` behind an `rport`, or `;received=address` where the sender's own words
/// differ from where the packet came from (RFC 3261 18.2.1, RFC 3581 4).
#[inline(always)]
fn sender<T: Text, A: Address, S: Sink>(
    t: T,
    packet: Packet<A>,
    plan: &Plan<A>,
    out: &mut S,
    at: u32,
) -> u32 {
    let (via, src) = (&plan.via, packet.src);
    let rport = S::RPORT || via.rport.at != 0;
    if !rport
        && host_port::<T, A>(t, via.sent_by.at, via.sent_by.end)
            .is_ok_and(|(said, _)| said.is_host_of(src))
    {
        return at;
    }
    let at = out.put_received(at, src, rport);
    out.fresh(at)
}

/// Writes `=port` if there is an `rport`, and `;received=address`; says where that ended.
#[inline(always)]
pub fn received<A: Address, S: Sink>(src: A, rport: bool, out: &mut S, at: u32) -> u32 {
    let at = if rport { port(src, out, at) } else { at };
    out.put(at, literal(b";receive"));
    out.put(at + 8, literal(b"d="));
    src.write(out, at + 10)
}

/// Writes `=port`; says where that ended.
#[inline(always)]
pub fn port<A: Address, S: Sink>(src: A, out: &mut S, at: u32) -> u32 {
    let (digits, n) = decimal(src.port_number());
    out.put(at, b'=' as u64 | digits << 8);
    at + 1 + n
}

/// A port in decimal: the first digit in the lowest byte, and how many.
#[inline(always)]
fn decimal(port: u16) -> (u64, u32) {
    let v = port as u64;
    // Multiplications in place of divisions: exact for 16 bits.
    let (q1, q2) = ((v * 52_429) >> 19, (v * 83_887) >> 23);
    let (q3, q4) = ((v * 67_109) >> 26, (v * 429_497) >> 32);
    let text = (q4 + 0x30)
        | (q3 - q4 * 10 + 0x30) << 8
        | (q2 - q3 * 10 + 0x30) << 16
        | (q1 - q2 * 10 + 0x30) << 24
        | (v - q1 * 10 + 0x30) << 32;
    let n = 1 + (v > 9) as u32 + (v > 99) as u32 + (v > 999) as u32 + (v > 9999) as u32;
    (text >> (8 * (5 - n)), n)
}

/// The digits of the new Max-Forwards, the first in the lowest byte: as many as stood there.
#[inline(always)]
pub fn hops<A: Address>(plan: &Plan<A>) -> u32 {
    let v = plan.hops;
    let tens = (v * 205) >> 11;
    let ones = v - tens * 10;
    match plan.hops_len {
        1 => 0x30 + ones,
        2 => 0x3030 + tens + (ones << 8),
        _ => 0x30_3030 + (tens << 8) + (ones << 16),
    }
}

/// A response on its way: without our Via.
#[inline(always)]
pub fn response<T: Text, A: Address, S: Sink>(t: T, plan: &Plan<A>, out: &mut S) -> Front {
    let at = copy(t, 0, plan.cut.at, out, 0);
    Front { old: plan.cut.end, new: at }
}

/// What we say of ourselves in the 200 of an OPTIONS (11.2); the end of the message.
pub const ABOUT_US: &[u8] =
    b"Allow: INVITE, ACK, CANCEL, BYE, OPTIONS, UPDATE, INFO, PRACK, REFER, NOTIFY, \
SUBSCRIBE, MESSAGE\r\nAccept: application/sdp\r\nSupported:\r\nContent-Length: 0\r\n\r\n";

/// [`ABOUT_US`] in words, the first byte in the lowest bits; the last one is filled up with zeros.
pub const ABOUT_WORDS: [u64; ABOUT_US.len().div_ceil(8)] = words(ABOUT_US);

/// The whole 200 of an OPTIONS: all Vias in their order, From, To with a tag, Call-ID, CSeq, and [`ABOUT_US`].
#[inline(always)]
pub fn options_answer<T: Text, A: Address, S: Sink>(
    t: T,
    index: &Index,
    packet: Packet<A>,
    plan: &Plan<A>,
    out: &mut S,
) -> Front {
    let Front { old, new: at } = options_answer_start(t, index, packet, plan, out);
    out.put_run::<{ ABOUT_WORDS.len() }>(at, |i| ABOUT_WORDS[i]);
    Front { old, new: out.fresh(at + ABOUT_US.len() as u32) }
}

/// The 200 of an OPTIONS up to [`ABOUT_US`], which is the same in all of them: for who puts that in by other means.
#[inline(always)]
pub fn options_answer_start<T: Text, A: Address, S: Sink>(
    t: T,
    index: &Index,
    packet: Packet<A>,
    plan: &Plan<A>,
    out: &mut S,
) -> Front {
    out.put(0, literal(b"SIP/2.0 "));
    out.put(8, literal(b"200 OK\r\n"));
    answer_head(t, index, packet, plan, out, 16)
}

/// What every answer has behind its first line, from `at` on: all Vias in their order, From, To with the tag of `plan`,
/// Call-ID, CSeq (8.2.6.2).
#[inline(always)]
pub fn answer_head<T: Text, A: Address, S: Sink>(
    t: T,
    index: &Index,
    packet: Packet<A>,
    plan: &Plan<A>,
    out: &mut S,
    at: u32,
) -> Front {
    let start = |kind| index.first(kind).map_or(0, |line| line.start as u32);
    let end = |kind| index.last(kind).map_or(0, |line| line.end as u32);
    let fill = if plan.via.rport.at != 0 { plan.via.rport.at } else { plan.via.end };
    let mut at = copy(t, start(Kind::Via), fill, out, at);
    at = sender(t, packet, plan, out, at);
    let mut run = Span { at: fill, end: end(Kind::Via) + 2 };
    at = join(t, &mut run, Span { at: start(Kind::From), end: end(Kind::From) + 2 }, out, at);
    at = join(t, &mut run, Span { at: start(Kind::To), end: end(Kind::To) }, out, at);
    at = copy(t, run.at, run.end, out, at);
    out.put(at, literal(b";tag="));
    out.put(at + 5, plan.tag);
    out.put(at + 13, literal(b"\r\n"));
    at = out.fresh(at + 15);
    run = Span { at: start(Kind::CallId), end: end(Kind::CallId) + 2 };
    at = join(t, &mut run, Span { at: start(Kind::CSeq), end: end(Kind::CSeq) + 2 }, out, at);
    at = copy(t, run.at, run.end, out, at);
    Front { old: index.len, new: at }
}

/// Makes `run` longer by `next` if that follows at once, as lines mostly do; else copies it, to `at`,
/// and starts anew. Says where the next copy goes.
#[inline(always)]
fn join<T: Text, S: Sink>(t: T, run: &mut Span, next: Span, out: &mut S, at: u32) -> u32 {
    if run.end == next.at {
        run.end = next.end;
        return at;
    }
    let at = copy(t, run.at, run.end, out, at);
    *run = next;
    at
}

/// A text in words, the last one filled up with zeros.
const fn words<const N: usize>(text: &[u8]) -> [u64; N] {
    let mut words = [0; N];
    let mut i = 0;
    while i < text.len() {
        words[i / 8] |= (text[i] as u64) << (i % 8 * 8);
        i += 1;
    }
    words
}

/// Copies from `from` to `to`, to `at`; says where it ended. Up to 31 bytes more are written.
#[inline(always)]
fn copy<T: Text, S: Sink>(t: T, from: u32, to: u32, out: &mut S, at: u32) -> u32 {
    let mut state = Copy { t, from: t.fresh(from), to, at: t.fresh(at), out: &mut *out };
    repeat_few::<4, _, _>(crate::scan::MAX_TEXT / 32 + 2, &mut state, |s| {
        if s.from >= s.to {
            return false;
        }
        let four = s.t.four(s.from);
        s.out.put_run::<4>(s.at, |i| four[i]);
        step(&mut s.from, 32);
        step(&mut s.at, 32);
        true
    });
    t.fresh(at.wrapping_add(to.wrapping_sub(from)))
}

struct Copy<'a, T, S> {
    t: T,
    from: u32,
    to: u32,
    at: u32,
    out: &'a mut S,
}

#[cfg(test)]
mod tests;
