//! The way out: new headers, new front, right checksum, then back or on.

use aya_ebpf::bindings::xdp_action::{XDP_REDIRECT, XDP_TX};
use aya_ebpf::helpers::generated::{
    bpf_csum_diff, bpf_redirect, bpf_xdp_adjust_head, bpf_xdp_adjust_tail, bpf_xdp_get_buff_len,
    bpf_xdp_load_bytes, bpf_xdp_store_bytes,
};
use aya_ebpf::programs::XdpContext;
use sip_ebpf::Reason;
use sip_ebpf::address::{Address, Words};
use sip_ebpf::edit::{self, ABOUT_US, ABOUT_WORDS, FRONT, FRONT_SLACK, Sink, hops};
use sip_ebpf::repeat::{repeat_few, step};
use sip_ebpf::route::Plan;
use sip_ebpf::text::{Text, head, literal};

use super::asm;
use super::family::Family;
use super::hop::{self, Hop};
use super::scratch::{HEAD, Out, Scratch, TEXT, Work, fresh};
use super::tables::Known;
use super::text::Bytes;

/// Sends the message on: the front in `scratch.front` for the old one, the rest as it was.
#[inline(always)]
pub(super) fn forward<A: Family>(
    ctx: &XdpContext,
    work: *mut Work<A>,
    from: *const Known<A>,
) -> Result<u32, Reason> {
    let scratch = Work::scratch(work);
    // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
    let (s, w) = unsafe { (&mut *scratch, &mut *work) };
    let hop = hop::find(ctx, s.now(), w.plan.next)?;
    let len = s.frame.len - s.front.old + s.front.new;
    if len + A::IP_UDP > hop.mtu {
        return Err(Reason::Mtu);
    }
    let t = Bytes::new(ctx, scratch);
    let checksum = match s.frame.checksum {
        0 if !A::SUMMED => 0,
        _ if w.plan.record != 0 => {
            checksum_of_insert(t, work, from, |at| Out::new(scratch).pair(at), len)
        }
        _ if cuts_own_via(t, w) => checksum_of_cut(t, work, len),
        _ => checksum_of_edit(t, work, len),
    };
    let l2 = ethernet(scratch, hop);
    headers(scratch, w.packet.dst, w.plan.next, len, checksum);

    let old_head = s.frame.start + s.front.old;
    let new_start = l2 + A::IP_UDP;
    let grow = (new_start + s.front.new) as i32 - old_head as i32;
    // The text was read for the last time.
    // SAFETY: an entry of this CPU.
    make_room::<A>(ctx, unsafe { Scratch::text(scratch) }, old_head, grow)?;
    store(ctx, scratch, new_start);
    if w.plan.hops_at >= s.front.old && w.plan.hops_len != 0 {
        store_hops(ctx, &w.plan, (new_start + w.plan.hops_at - s.front.old) + s.front.new);
    }
    Ok(leave(ctx, hop))
}

/// Says where the packet leaves.
#[inline(always)]
fn leave<A>(ctx: &XdpContext, hop: &Hop<A>) -> u32 {
    // SAFETY: the context is the program's.
    if hop.port == unsafe { (*ctx.ctx).ingress_ifindex } {
        return XDP_TX;
    }
    // SAFETY: a helper that takes numbers.
    unsafe { bpf_redirect(hop.port, 0) };
    XDP_REDIRECT
}

/// Whether [`insert`] can send a request: our two lines and both parameters for its sender are put in, the front is not
/// too long, and what is behind it is in the text as far as it may be covered.
#[inline(always)]
pub(super) fn inserts<A: Family>(w: &Work<A>) -> bool {
    let end = w.plan.via.end;
    w.plan.record != 0
        && w.plan.via.rport.at != 0
        && end < FRONT / 2
        && end + A::OVER <= w.scratch.loaded
}

/// As [`forward`], for what [`inserts`] is true of: the front is written once, into the packet, where others are
/// brought together in the scratch memory first.
#[inline(always)]
pub(super) fn insert<A: Family>(
    ctx: &XdpContext,
    work: *mut Work<A>,
    from: *mut Known<A>,
) -> Result<u32, Reason> {
    let scratch = Work::scratch(work);
    // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
    let (s, w) = unsafe { (&mut *scratch, &mut *work) };
    let hop = hop::find(ctx, s.now(), w.plan.next)?;
    // SAFETY: an entry of this CPU's; the program does not run twice on a CPU.
    let grown = w.local.record_route_len + w.local.via_len + unsafe { (*from).texts_len() };
    let len = s.frame.len + grown;
    if len + A::IP_UDP > hop.mtu {
        return Err(Reason::Mtu);
    }
    let l2 = l2_of(hop);
    let start = l2 + A::IP_UDP;
    let grow = (start + grown) as i32 - s.frame.start as i32;
    // The front will end where the `rport` does. Nothing is in `out` yet.
    let rest = s.frame.start + w.plan.via.rport.at;
    // SAFETY: an entry of this CPU.
    make_room::<A>(ctx, unsafe { Scratch::out(scratch) }, rest, grow)?;
    let t = Bytes::new(ctx, scratch);
    let mut front = Straight { ctx, start, from };
    s.front = edit::request(t, &s.index, w.packet, &w.local, &w.plan, &mut front);
    // What follows the front, which its last words may have covered.
    for over in (0..A::OVER).step_by(32) {
        let four = t.four(s.front.old + over);
        front.put_run::<4>(s.front.new + over, |i| four[i]);
    }
    let checksum = match s.frame.checksum {
        0 if !A::SUMMED => 0,
        _ => checksum_of_insert(t, work, from, |at| front.pair(at), len),
    };
    front.put_headers(hop, l2, A::headers(w.packet.dst, w.plan.next, len, checksum));
    if w.plan.hops_at >= s.front.old && w.plan.hops_len != 0 {
        store_hops(ctx, &w.plan, (start + w.plan.hops_at - s.front.old) + s.front.new);
    }
    Ok(leave(ctx, hop))
}

/// Makes the packet longer by `grow` before the rest that stands at `rest`, or shorter: at its head or, where there is not so
/// much room, at its tail, and then the rest is moved, by way of `memory`, which is as long as a text.
#[inline(always)]
fn make_room<A: Family>(
    ctx: &XdpContext,
    memory: *mut u8,
    rest: u32,
    grow: i32,
) -> Result<(), Reason> {
    // SAFETY: the helper refuses what does not fit, and then nothing has changed.
    if grow == 0 || unsafe { bpf_xdp_adjust_head(ctx.ctx, -grow) } == 0 {
        return Ok(());
    }
    if !A::LONG || grow < 0 {
        return Err(Reason::Headroom);
    }
    let rest = asm::mask::<4095>(rest);
    // SAFETY: a helper that reads the context. The compiler would take the two ends of the packet from each other in 32 bits,
    // which the verifier refuses.
    let all = unsafe { bpf_xdp_get_buff_len(ctx.ctx) } as u32;
    let len = asm::mask::<4095>(all.wrapping_sub(rest));
    if len == 0 || len > TEXT {
        return Err(Reason::Headroom);
    }
    // SAFETY: helpers that refuse what does not fit; the memory is as long. Nothing has changed until there is more room,
    // and then what follows is there.
    let moved = unsafe {
        bpf_xdp_load_bytes(ctx.ctx, rest, memory.cast(), len) == 0
            && bpf_xdp_adjust_tail(ctx.ctx, grow) == 0
            && bpf_xdp_store_bytes(ctx.ctx, rest + grow as u32, memory.cast(), len) == 0
    };
    if moved { Ok(()) } else { Err(Reason::Headroom) }
}

/// A front in the packet. What would reach past the packet's end is left out, and [`inserts`] sees to it that nothing
/// does.
struct Straight<'a, A: Address> {
    ctx: &'a XdpContext,
    /// Where in the packet the front starts.
    start: u32,
    from: *mut Known<A>,
}

impl<A: Family> Straight<'_, A> {
    /// `len` bytes at `at` of the packet.
    #[inline(always)]
    fn place(&self, at: u32, len: usize) -> Option<*mut u8> {
        let to = self.ctx.data() + asm::mask::<4095>(at) as usize;
        (to + len <= self.ctx.data_end()).then_some(to as *mut u8)
    }

    /// Two words at `at` of the front.
    #[inline(always)]
    fn pair(&self, at: u32) -> [u64; 2] {
        let Some(from) = self.place(self.start + at, 16) else { return [0; 2] };
        // SAFETY: compared with the end of the packet.
        unsafe { [asm::load::<0>(from), asm::load::<8>(from)] }
    }

    /// Writes the headers.
    #[inline(always)]
    fn put_headers(&self, hop: &Hop<A>, l2: u32, (words, last): ([u64; 6], u32)) {
        if let Some(to) = self.place(0, 64) {
            let rest = tags(hop);
            // SAFETY: compared with the end of the packet.
            unsafe {
                asm::store::<0>(to, hop.addresses[0]);
                asm::store::<8>(to, hop.addresses[1] | rest << 32);
                if l2 > 14 {
                    asm::store::<12>(to, rest);
                    if l2 > 18 {
                        asm::store::<20>(to, A::TYPE as u64);
                    }
                }
            }
        }
        if let Some(to) = self.place(l2, A::IP_UDP as usize) {
            // SAFETY: as above.
            unsafe {
                asm::store::<0>(to, words[0]);
                asm::store::<8>(to, words[1]);
                asm::store::<16>(to, words[2]);
                if A::IP_UDP == 28 {
                    asm::store_half(to.add(24), last);
                } else {
                    asm::store::<24>(to, words[3]);
                    asm::store::<32>(to, words[4]);
                    asm::store::<40>(to, words[5]);
                }
            }
        }
    }
}

impl<F: Family> Sink for Straight<'_, F> {
    const RPORT: bool = true;

    #[inline(always)]
    fn put(&mut self, at: u32, word: u64) {
        if let Some(to) = self.place(self.start + at, 8) {
            // SAFETY: compared with the end of the packet.
            unsafe { asm::store::<0>(to, word) };
        }
    }

    #[inline(always)]
    fn put_run<const N: usize>(&mut self, at: u32, word: impl Fn(usize) -> u64) {
        let Some(to) = self.place(self.start + at, 8 * N) else { return };
        // SAFETY: compared with the end of the packet.
        unsafe { asm::store_run::<N>(to, word) };
    }

    #[inline(always)]
    fn put_received<A: Address>(&mut self, at: u32, _src: A, rport: bool) -> u32 {
        // SAFETY: an entry of this CPU's; the program does not run twice on a CPU.
        unsafe { (*self.from).put_received(self, at, rport) }
    }

    #[inline(always)]
    fn fresh(&self, value: u32) -> u32 {
        // Checked against the packet each time, so what is known of it does no harm.
        value
    }
}

/// Sends the front, and [`ABOUT_US`] behind it if `ABOUT`, back to where the packet came from: a whole message.
#[inline(always)]
pub(super) fn answer<const ABOUT: bool, A: Family>(
    ctx: &XdpContext,
    work: *mut Work<A>,
) -> Result<u32, Reason> {
    let scratch = Work::scratch(work);
    // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
    let (s, w) = unsafe { (&mut *scratch, &mut *work) };
    let len = s.front.new + if ABOUT { ABOUT_US.len() as u32 } else { 0 };
    let l2 = s.frame.l2;
    let mut payload = sum_out(scratch, s.front.new);
    if ABOUT {
        payload += ABOUT_SUM << ((s.front.new & 1) * 8);
    }
    let checksum = fold_udp(payload, w.packet.dst, w.packet.src, len);
    // The tags stay, the addresses change places.
    let [a, b, c] = s.frame.ethernet;
    let out = Out::new(scratch);
    let start = HEAD - A::IP_UDP - l2;
    out.put_head(start, a >> 48 | b << 16);
    out.put_head(start + 6, a);
    out.put_head(start + 12, b >> 32 | c << 32);
    out.put_head(start + 16, c);
    headers(scratch, w.packet.dst, w.packet.src, len, checksum);
    let start = l2 + A::IP_UDP;
    let total = start + len;
    // The program is not one for packets in fragments, so this is all of the frame.
    let there = (ctx.data_end() - ctx.data()) as i32;
    let grow = total as i32 - there;
    // Ethernet pads short frames: the padding of a short question stays.
    let padded = grow < 0 && total < 60;
    if grow > 0 && len + A::IP_UDP > s.mtu(ctx) {
        return Err(Reason::Mtu);
    }
    // All of the frame is written anew, so room may be made at its start: no zeroing there.
    // SAFETY: helpers that refuse what does not fit, and then nothing has changed.
    let fits = grow == 0
        || padded
        || unsafe {
            bpf_xdp_adjust_head(ctx.ctx, -grow) == 0 || bpf_xdp_adjust_tail(ctx.ctx, grow) == 0
        };
    if !fits {
        return Err(Reason::Headroom);
    }
    store(ctx, scratch, start);
    if ABOUT {
        store_about(ctx, start + s.front.new);
    }
    Ok(XDP_TX)
}

/// The sum of [`ABOUT_US`], at an even place.
const ABOUT_SUM: u64 = {
    let (mut sum, mut i) = (0, 0);
    while i < ABOUT_WORDS.len() {
        sum += (ABOUT_WORDS[i] & 0xffff_ffff) + (ABOUT_WORDS[i] >> 32);
        i += 1;
    }
    // As `fold`, and twice is enough: 32 bits and a few more.
    sum = (sum >> 16) + (sum & 0xffff);
    (sum >> 16) + (sum & 0xffff)
};

/// Writes [`ABOUT_US`] at `at` of the packet, where it ends.
#[inline(always)]
fn store_about(ctx: &XdpContext, at: u32) {
    const WHOLE: usize = ABOUT_US.len() / 8;
    const LAST: u32 = ABOUT_WORDS[WHOLE] as u32;
    const { assert!(ABOUT_US.len() % 8 == 4) };
    let to = ctx.data() + asm::mask::<4095>(at) as usize;
    if to + ABOUT_US.len() > ctx.data_end() {
        return;
    }
    // SAFETY: compared with the end of the packet.
    unsafe {
        asm::store_run::<WHOLE>(to as *mut u8, |i| ABOUT_WORDS[i]);
        asm::store_half((to + 8 * WHOLE) as *mut u8, LAST);
    }
}

/// How long the Ethernet header toward a hop is.
#[inline(always)]
fn l2_of<A>(hop: &Hop<A>) -> u32 {
    14 + 4 * (hop.tags & 3)
}

/// What follows the addresses: tags and type, eight bytes of them.
#[inline(always)]
fn tags<A: Family>(hop: &Hop<A>) -> u64 {
    let kind = A::TYPE as u64;
    let tag = |i: usize| hop.tag[i][0] as u64 | (hop.tag[i][1] as u64) << 16;
    match hop.tags & 3 {
        0 => kind,
        1 => tag(0) | kind << 32,
        _ => tag(0) | tag(1) << 32,
    }
}

/// The Ethernet header toward a hop; says how long it is.
#[inline(always)]
fn ethernet<A: Family>(scratch: *mut Scratch, hop: &Hop<A>) -> u32 {
    let out = Out::new(scratch);
    let l2 = l2_of(hop);
    let start = HEAD - A::IP_UDP - l2;
    out.put_head(start, hop.addresses[0]);
    let rest = tags(hop);
    out.put_head(start + 8, hop.addresses[1] | rest << 32);
    out.put_head(start + 12, rest);
    if l2 > 18 {
        out.put_head(start + 20, A::TYPE as u64);
    }
    l2
}

/// The IP and UDP headers, right before the front.
#[inline(always)]
fn headers<A: Family>(scratch: *mut Scratch, src: A, dst: A, len: u32, checksum: u32) {
    let out = Out::new(scratch);
    let (words, last) = A::headers(src, dst, len, checksum);
    let ip = HEAD - A::IP_UDP;
    let whole = A::IP_UDP / 8;
    for (i, word) in (0..whole).zip(words) {
        out.put_head(ip + 8 * i, word);
    }
    if A::IP_UDP % 8 != 0 {
        // Only the first four bytes of this word are header: the front follows and is written already.
        out.put_head_half(ip + 8 * whole, last);
    }
}

/// Bytes stored in a round.
const ROUND: u32 = 128;

/// Writes headers and front over the start of the packet; `start` is where the front stands in it.
///
/// By hand: the helper's calls and returns cost more.
#[inline(always)]
fn store(ctx: &XdpContext, scratch: *mut Scratch, start: u32) {
    // SAFETY: the entry of this CPU.
    let s = unsafe { &mut *scratch };
    let from = HEAD - start;
    let len = start + s.front.new;
    let mut state =
        Store { ctx, scratch, from, at: fresh(scratch, 0), last: len.wrapping_sub(ROUND) };
    if len < ROUND {
        // A keepalive's answer, or the start line of a response: a piece twice covers it.
        return if len < 64 { state.twice::<32>(len) } else { state.twice::<64>(len) };
    }
    repeat_few::<4, _, _>(FRONT / ROUND + 4, &mut state, |s| s.round());
}

struct Store<'a> {
    ctx: &'a XdpContext,
    scratch: *mut Scratch,
    from: u32,
    at: u32,
    last: u32,
}

impl Store<'_> {
    /// Writes [`ROUND`] bytes; false when no more are wanted.
    #[inline(always)]
    fn round(&mut self) -> bool {
        // The last round ends with the front: it may cover bytes of the round before again.
        let last = self.at >= self.last;
        let at = if last { self.last } else { self.at };
        let Some((from, to)) = self.places::<ROUND>(at) else { return false };
        // SAFETY: `places` has compared.
        unsafe {
            asm::copy_64(from, to);
            asm::copy_64(from.add(64), to.add(64));
        }
        step(&mut self.at, ROUND);
        !last
    }

    /// Writes `len` bytes, `N` to twice that; `N` is 32 or 64.
    #[inline(always)]
    fn twice<const N: u32>(&self, len: u32) {
        for at in [0, len.wrapping_sub(N)] {
            if let Some((from, to)) = self.places::<N>(at) {
                // SAFETY: `places` has compared.
                unsafe {
                    if N == 64 {
                        asm::copy_64(from, to);
                    } else {
                        asm::store_four(to, asm::load_four(from));
                    }
                }
            }
        }
    }

    /// Where `N` bytes come from that are for `at` of the packet, and where they go.
    #[inline(always)]
    fn places<const N: u32>(&self, at: u32) -> Option<(*const u8, *mut u8)> {
        const { assert!(N <= FRONT_SLACK) };
        let at = asm::mask::<4095>(at);
        let to = self.ctx.data() + at as usize;
        if to + N as usize > self.ctx.data_end() {
            return None;
        }
        let from = asm::mask::<4095>(self.from + at);
        if from > HEAD + FRONT {
            return None;
        }
        // SAFETY: at most HEAD + FRONT, and FRONT_SLACK bytes follow.
        Some((unsafe { Scratch::out(self.scratch).add(from as usize) }, to as *mut u8))
    }
}

/// Writes the digits of Max-Forwards behind the front, at `at` of the packet as it is now.
#[inline(always)]
fn store_hops<A: Address>(ctx: &XdpContext, plan: &Plan<A>, at: u32) {
    let digits = hops(plan);
    let to = ctx.data() + asm::mask::<4095>(at) as usize;
    // A frame has the whole line there, CR LF included, so four bytes can be compared.
    if to + 4 > ctx.data_end() {
        return;
    }
    // SAFETY: compared against the end of the packet.
    unsafe {
        let to = to as *mut u8;
        *to = digits as u8;
        if plan.hops_len > 1 {
            *to.add(1) = (digits >> 8) as u8;
        }
        if plan.hops_len > 2 {
            *to.add(2) = (digits >> 16) as u8;
        }
    }
}

/// The UDP checksum after the edit, from the one before: what the front loses and gains, and the
/// digits of Max-Forwards. It is as right as the old one was.
#[inline(always)]
fn checksum_of_edit<A: Family>(t: Bytes<'_>, work: *mut Work<A>, len: u32) -> u32 {
    let scratch = Work::scratch(work);
    // SAFETY: the entry of this CPU.
    let (s, w) = unsafe { (&mut *scratch, &*work) };
    let old = s.front.old;
    let mut tail = payload_sum(w);
    // The tail: all but the old front, whose sum wants zeros behind it.
    t.set(old, 0);
    tail += less(sum_text(scratch, old));
    // At an odd distance each byte changes its place in the 16-bit words: as if multiplied by 256.
    tail <<= ((s.front.new ^ old) & 1) * 8;
    fold_udp(tail + sum_out(scratch, s.front.new), w.packet.dst, w.plan.next, len)
}

/// The same where nothing was cut, and our lines and what the Via says of its sender were put in: their sums are
/// kept. The lines are of even length together, so what stands between them and the sender keeps its place in the
/// 16-bit words.
#[inline(always)]
fn checksum_of_insert<A: Family>(
    t: Bytes<'_>,
    work: *mut Work<A>,
    from: *const Known<A>,
    digits: impl Fn(u32) -> [u64; 2],
    len: u32,
) -> u32 {
    let scratch = Work::scratch(work);
    // SAFETY: the entry of this CPU.
    let (s, w) = unsafe { (&*scratch, &*work) };
    let (old, lines_at) = (s.front.old, s.index.headers);
    let grown = s.front.new - old;
    let mut sum = payload_sum(w);
    if grown & 1 != 0 {
        // What follows is moved by an odd distance: see above.
        t.set(old, 0);
        let front = sum_text(scratch, old);
        sum = front + ((sum + less(front)) << 8);
    }
    let lines_len = w.local.record_route_len + w.local.via_len;
    let mut cookie = 0;
    for i in 0..A::Cookie::LEN {
        cookie += halves(w.plan.cookie.word(i));
    }
    let [high, low] = digits(lines_at + w.local.record_route_len + w.local.branch_at);
    let branch = halves(high) + halves(low);
    let lines = w.lines.sum + (cookie << w.lines.cookie_shift) + (branch << w.lines.branch_shift);
    sum += lines << ((lines_at & 1) * 8);
    if grown != lines_len {
        // SAFETY: an entry of this CPU's; the program does not run twice on a CPU.
        let sender = unsafe { (*from).sum(w.plan.via.rport.at != 0) };
        sum += sender << ((old & 1) * 8);
    }
    fold_udp(sum, w.packet.dst, w.plan.next, len)
}

/// Whether what is cut is our Via as we put it in, but for its digits.
#[inline(always)]
fn cuts_own_via<A: Address>(t: Bytes<'_>, w: &Work<A>) -> bool {
    let cut = w.plan.cut;
    w.plan.hops_len == 0
        && w.plan.own_digits != 0
        && cut.end - cut.at == w.local.via_len
        && head(t.word(cut.at), 5) == literal(b"Via: ")
}

/// The same where our Via was cut, whose sum is kept.
#[inline(always)]
fn checksum_of_cut<A: Family>(t: Bytes<'_>, work: *mut Work<A>, len: u32) -> u32 {
    let scratch = Work::scratch(work);
    // SAFETY: the entry of this CPU.
    let (s, w) = unsafe { (&*scratch, &*work) };
    let (at, [high, low]) = (s.front.new, t.pair(w.plan.own_digits));
    let via = w.lines.via + ((halves(high) + halves(low)) << w.lines.cut_shift);
    let mut sum = payload_sum(w) + less((fold(via) as u64) << ((at & 1) * 8));
    if w.local.via_len & 1 != 0 {
        // What follows is moved by an odd distance: see above.
        t.set(at, 0);
        let front = sum_text(scratch, at);
        sum = front + ((sum + less(front)) << 8);
    }
    fold_udp(sum, w.packet.dst, w.plan.next, len)
}

/// The sum of all of the payload, by the old checksum: its complement less the headers. Max-Forwards was changed in
/// the text already.
#[inline(always)]
fn payload_sum<A: Family>(w: &Work<A>) -> u64 {
    let frame = &w.scratch.frame;
    let headers = A::head_sum(w.packet.src, w.packet.dst, frame.len);
    (!frame.checksum & 0xffff) as u64 + less(headers) + frame.hops_delta
}

/// The sum of eight bytes.
#[inline(always)]
pub(super) fn halves(word: u64) -> u64 {
    (word & 0xffff_ffff) + (word >> 32)
}

/// The checksum for a payload's sum and its headers; never zero (RFC 768).
#[inline(always)]
fn fold_udp<A: Family>(payload: u64, src: A, dst: A, len: u32) -> u32 {
    let sum = !fold(payload + A::head_sum(src, dst, len)) & 0xffff;
    if sum == 0 { 0xffff } else { sum }
}

/// What takes a sum away when it is added: sums count modulo 65,535. At most 40 bits, as `sum`.
#[inline(always)]
pub(super) fn less(sum: u64) -> u64 {
    (0xffff << 24) - sum
}

/// A sum in 16 bits, carries added again (RFC 1071).
#[inline(always)]
pub(super) fn fold(sum: u64) -> u32 {
    let sum = (sum >> 32) + (sum & 0xffff_ffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    let sum = (sum >> 16) + (sum & 0xffff);
    sum as u32
}

/// Sum of the first `len` bytes of the text; what stands behind them must be zero.
#[inline(always)]
fn sum_text(scratch: *mut Scratch, len: u32) -> u64 {
    // SAFETY: the entry of this CPU.
    let from = unsafe { Scratch::text(scratch) };
    sum(from, len, TEXT)
}

/// Sum of the first `len` bytes of the front. Zeroes what stands behind them.
#[inline(always)]
fn sum_out(scratch: *mut Scratch, len: u32) -> u64 {
    let mut out = Out::new(scratch);
    out.put(len, 0);
    // SAFETY: the entry of this CPU, and HEAD is in `out`.
    let from = unsafe { Scratch::out(scratch).add(HEAD as usize) };
    sum(from, len, FRONT)
}

/// Sum of `len` bytes, which are a multiple of four and 512 at most.
///
/// # Safety
/// They must be readable.
#[inline(always)]
pub(super) unsafe fn sum_of(from: *mut u8, len: u32) -> u64 {
    // SAFETY: the caller's promise.
    let sum = unsafe { bpf_csum_diff(core::ptr::null_mut(), 0, from.cast(), len, 0) };
    sum as u64 & 0xffff_ffff
}

/// Sum of `len` bytes, filled up to four by what follows. Kernels before 6.13 sum at most 512 bytes
/// in a call.
#[inline(always)]
fn sum(from: *mut u8, len: u32, limit: u32) -> u64 {
    let mut left = asm::mask::<4095>((len + 3) & !3);
    let mut total = 0;
    let mut at = 0;
    while at < limit as usize {
        let n = if left < 512 { left } else { 512 };
        let n = asm::mask::<1023>(n);
        if n == 0 || n > 512 {
            break;
        }
        // SAFETY: `n` is at most 512, and `at + 512` at most `limit`.
        total += unsafe { sum_of(from.add(at), n) };
        left -= n;
        at += 512;
    }
    total
}
