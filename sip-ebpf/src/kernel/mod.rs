//! The XDP program: takes a packet apart, lets [`sip_ebpf::route`] decide, sends it.
//!
//! Thin by intention: what a SIP message means is in the library, where it is tested on the host.

mod asm;
mod bench;
mod challenge;
mod events;
mod family;
mod frame;
mod hop;
mod maps;
mod programs;
mod qualify;
mod report;
mod scratch;
mod send;
mod six;
mod tables;
mod text;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use sip_ebpf::Reason;
use sip_ebpf::edit::{self, FRONT, Front, Sink, hops};
use sip_ebpf::reason::Way;
use sip_ebpf::route::{self, Tables};
use sip_ebpf::scan::{self, Method, scan};
use sip_ebpf::tables::{Config, Endpoint, LAYOUT, flag, source};
use sip_ebpf::text::{Text, literal};

use family::Family;
use maps::{CONFIG, LOG, SCRATCH, STEERED};
use scratch::{KnownFront, Out, Scratch, TEXT, Work};
use tables::Kernel;
use text::Bytes;

/// The program that is attached. Inlined into what the macro makes of it: a return costs as much as a jump that was
/// guessed wrong, where the kernel keeps returns from being guessed.
#[xdp]
#[inline(always)]
fn sipline(ctx: XdpContext) -> u32 {
    bench::refresh(&ctx);
    let Some(work) = SCRATCH.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    let scratch = Work::scratch(work);
    frame::touch(&ctx);
    let (reason, action) = verdict(packet::<_, ANY>(&ctx, work));
    let (reason, action) = match is_junk(scratch, reason) {
        true => (Reason::Junk, XDP_DROP),
        false => (reason, action),
    };
    programs::ask::<Endpoint>(&ctx, scratch, reason);
    programs::count(reason as u32);
    log(&ctx, reason, action);
    programs::tell(&ctx, work, reason, action);
    action
}

/// What becomes of a packet that may not have been sent.
#[inline(always)]
fn verdict(packet: Result<(Reason, u32), Reason>) -> (Reason, u32) {
    match packet {
        Ok(sent) => sent,
        Err(reason) => {
            (reason, if matches!(reason.way(), Way::Drop) { XDP_DROP } else { XDP_PASS })
        }
    }
}

#[inline(always)]
fn log(ctx: &XdpContext, reason: Reason, action: u32) {
    if LOG.load() != 0 && !matches!(reason, Reason::NotIpv4 | Reason::NotUdp | Reason::NotOurs) {
        aya_log_ebpf::debug!(ctx, "action {} for reason {}", action, reason as u32);
    }
}

/// What the scan refuses is junk if it has no start line. Asked of the memory and at the end, where all ways are one: the
/// verifier would follow each error of the scan by itself.
#[inline(always)]
fn is_junk(scratch: *mut Scratch, reason: Reason) -> bool {
    if scratch::fresh(scratch, reason as u32) != Reason::Malformed as u32 {
        return false;
    }
    // SAFETY: a field of the entry of this CPU. The scan has just set it, for nothing else is malformed.
    let error = unsafe { (&raw const (*scratch).index.error).read_volatile() };
    error == scan::Error::StartLine as u32
}

/// Only the scan: for tests, which compare what it leaves in `SCRATCH` with the host's, and for
/// benches. The payload starts at byte 42. XDP_TX if the scanner accepts it, else XDP_DROP.
#[xdp]
fn sipline_scan(ctx: XdpContext) -> u32 {
    let Some(work) = SCRATCH.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    let scratch = Work::scratch(work);
    // SAFETY: the helper reads the context and nothing else.
    let total = unsafe { aya_ebpf::helpers::generated::bpf_xdp_get_buff_len(ctx.ctx) } as u32;
    // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
    let s = unsafe { &mut *scratch };
    s.frame.start = 42;
    s.frame.len = total.wrapping_sub(42);
    let Ok(t) = text::load(&ctx, scratch) else {
        return XDP_ABORTED;
    };
    match scan(t, &mut s.index) {
        Ok(()) => XDP_TX,
        Err(_) => XDP_DROP,
    }
}

/// What becomes of a packet: sent for a reason with an action, or not for a reason.
#[inline(always)]
fn packet<A: Family, const KIND: u32>(
    ctx: &XdpContext,
    work: *mut Work<A>,
) -> Result<(Reason, u32), Reason> {
    let scratch = Work::scratch(work);
    // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
    let (s, w) = unsafe { (&mut *scratch, &mut *work) };
    frame::read(ctx, &mut s.frame, &mut w.packet).or_else(|reason| match reason {
        // Told below, when it is known whether the packet is ours.
        Reason::BadLength => Ok(s.frame.len = u32::MAX),
        other => Err(other),
    })?;
    let Some(config) = CONFIG.get(0) else { return Err(Reason::NotConfigured) };
    if !w.find_local(w.packet.dst, config) {
        return Err(Reason::NotOurs);
    }
    if config.layout != LAYOUT {
        return Err(Reason::NotConfigured);
    }
    let Some(kernel) = Kernel::new(config, work, w.packet.src) else {
        return Err(Reason::NotConfigured);
    };
    let refused = kernel.source() & (source::DENIED | source::BANNED);
    if config.flags & flag::DENY != 0 && refused != 0 {
        return Err(if refused & source::BANNED != 0 { Reason::Banned } else { Reason::Denied });
    }
    if s.frame.len == u32::MAX {
        return Err(Reason::BadLength);
    }
    if A::SUMMED && s.frame.checksum == 0 {
        return Err(Reason::NoChecksum);
    }
    if s.frame.len > TEXT {
        return Err(Reason::TooLong);
    }
    if s.frame.len == 0 {
        return Err(Reason::EmptyDatagram);
    }
    let t = text::load(ctx, scratch)?;
    kernel.admit(t.word(0))?;
    if s.frame.len <= 4 {
        return keepalive(ctx, work, t, config, &kernel);
    }
    if scan(t, &mut s.index).is_err() {
        return Err(Reason::Malformed);
    }
    if KIND == HALVES {
        return six::halve(ctx, scratch);
    }
    sip::<A, KIND>(ctx, work, t, config, &kernel)
}

/// Datagrams too short for SIP: CRLF CRLF wants CRLF (RFC 5626 4.4.1), others want nothing.
#[inline(always)]
fn keepalive<A: Family>(
    ctx: &XdpContext,
    work: *mut Work<A>,
    t: Bytes<'_>,
    config: &Config,
    kernel: &Kernel<'_, A>,
) -> Result<(Reason, u32), Reason> {
    const CRLF_CRLF: u64 = literal(b"\r\n\r\n");
    let word = t.word(0);
    if word == CRLF_CRLF {
        if config.flags & flag::KEEPALIVES == 0 {
            return Err(Reason::Method);
        }
        if !kernel.alive() {
            return Err(Reason::HeartbeatStale);
        }
        Out::new(Work::scratch(work)).put(0, literal(b"\r\n"));
        // SAFETY: the entry of this CPU.
        unsafe { (*work).scratch.front = Front { old: 4, new: 2 } };
        return send::answer::<false, A>(ctx, work).map(|action| (Reason::CrlfAnswered, action));
    }
    // Only NUL, CR and LF: a keepalive that wants no answer. The zeros behind the text count too.
    let other = (0..4).any(|i| !matches!((word >> (8 * i)) as u8, 0 | b'\r' | b'\n'));
    Err(if other { Reason::Junk } else { Reason::EmptyDatagram })
}

// What a program decides about: messages of all kinds, or one kind alone, where all is too much for the verifier; or none,
// and then it jumps to those.
const ANY: u32 = 0;
const REQUEST: u32 = 1;
const RESPONSE: u32 = 2;
const HALVES: u32 = 3;

#[inline(always)]
fn sip<A: Family, const KIND: u32>(
    ctx: &XdpContext,
    work: *mut Work<A>,
    t: Bytes<'_>,
    config: &Config,
    kernel: &Kernel<'_, A>,
) -> Result<(Reason, u32), Reason> {
    let scratch = Work::scratch(work);
    // SAFETY: the entry of this CPU.
    let (s, w) = unsafe { (&mut *scratch, &mut *work) };
    w.plan.hops_len = 0;
    let options = KIND != RESPONSE && s.index.method == Method::Options as u32;
    let needed = if options { flag::KEEPALIVES } else { flag::STEER };
    if config.flags & needed == 0 {
        return Err(Reason::Method);
    }
    let reason = match KIND {
        REQUEST => route::request(t, &s.index, w.packet, &w.local, kernel, &mut w.plan),
        RESPONSE => route::response(t, &s.index, w.packet, &w.local, kernel, &mut w.plan),
        _ => route::route(t, &s.index, w.packet, &w.local, kernel, &mut w.plan),
    };
    if !matches!(reason.way(), Way::Sent) {
        return Err(reason);
    }
    if KIND != RESPONSE
        && matches!(reason, Reason::InviteSteered | Reason::InviteRepeated)
        && kernel.copies()
    {
        events::invite(ctx, w);
    }
    let mut out = KnownFront { out: Out::new(scratch), from: kernel.from() };
    let forwarded = KIND != REQUEST && matches!(reason, Reason::ResponseForwarded);
    if !forwarded && KIND != RESPONSE {
        // SAFETY: an entry of this CPU's; the program does not run twice on a CPU.
        unsafe { (*out.from).make_texts(&mut out.out) };
    }
    if KIND != RESPONSE && matches!(reason, Reason::OptionsAnswered) {
        s.front = edit::options_answer_start(t, &s.index, w.packet, &w.plan, &mut out);
        fits(s.front)?;
        return send::answer::<true, A>(ctx, work).map(|action| (reason, action));
    }
    if KIND == RESPONSE || forwarded {
        w.plan.hops_len = 0;
        w.plan.record = 0;
        s.frame.hops_delta = 0;
        s.front = edit::response(t, &w.plan, &mut out);
    } else {
        change_hops(t, work);
        if send::inserts(w) {
            let action = send::insert(ctx, work, kernel.from())?;
            count_steered(w, reason);
            return Ok((reason, action));
        }
        s.front = edit::request(t, &s.index, w.packet, &w.local, &w.plan, &mut out);
    }
    fits(s.front)?;
    let action = send::forward(ctx, work, kernel.from())?;
    count_steered(w, reason);
    Ok((reason, action))
}

/// Counts a call that went to a PBX.
#[inline(always)]
fn count_steered<A: Family>(w: &Work<A>, reason: Reason) {
    if matches!(reason, Reason::InviteSteered)
        && let Some(steered) = STEERED.get_ptr_mut(w.plan.slot)
    {
        // SAFETY: this CPU's own counter.
        unsafe { *steered += 1 };
    }
}

/// Writes the new Max-Forwards into the text, and keeps what that does to the checksum.
#[inline(always)]
fn change_hops<A: Family>(t: Bytes<'_>, work: *mut Work<A>) {
    // SAFETY: the entry of this CPU.
    let w = unsafe { &mut *work };
    let at = w.plan.hops_at;
    let bits = (8 * w.plan.hops_len) & 31;
    let there = t.word(at);
    let old = there & ((1 << bits) - 1);
    let new = hops(&w.plan) as u64;
    t.set(at, there - old + new);
    // In 16-bit words, from the word that the first digit is in.
    let shift = (at & 1) * 8;
    w.scratch.frame.hops_delta = (new << shift) + send::less(old << shift);
}

/// Whether a front fits where it was written; the edits wrote it somewhere in any case.
#[inline(always)]
fn fits(front: Front) -> Result<(), Reason> {
    if front.new <= FRONT && front.old <= TEXT { Ok(()) } else { Err(Reason::TooLong) }
}

/// A panic that could be reached loops, which the verifier refuses: so none can.
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
