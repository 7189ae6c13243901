//! The XDP program: takes a packet apart, lets [`sip_ebpf::route`] decide, sends it.
//!
//! Thin by intention: what a SIP message means is in the library, where it is tested on the host.

mod asm;
mod bench;
mod challenge;
mod events;
mod frame;
mod hop;
mod maps;
mod programs;
mod qualify;
mod report;
mod scratch;
mod send;
mod tables;
mod text;

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use sip_ebpf::Reason;
use sip_ebpf::edit::{self, FRONT, Front, Sink, hops};
use sip_ebpf::reason::Way;
use sip_ebpf::route::{Tables, route};
use sip_ebpf::scan::{self, Method, scan};
use sip_ebpf::tables::{Config, LAYOUT, flag, source};
use sip_ebpf::text::{Text, literal};

use maps::{CONFIG, COUNTERS, LOG, SCRATCH, STEERED};
use scratch::{KnownFront, Out, Scratch, TEXT};
use tables::Kernel;
use text::Bytes;

/// The program that is attached. Inlined into what the macro makes of it: a return costs as much as a jump that was
/// guessed wrong, where the kernel keeps returns from being guessed.
#[xdp]
#[inline(always)]
fn sipline(ctx: XdpContext) -> u32 {
    bench::refresh(&ctx);
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    frame::touch(&ctx);
    let (reason, action) = match packet(&ctx, scratch) {
        Ok(sent) => sent,
        Err(reason) => {
            (reason, if matches!(reason.way(), Way::Drop) { XDP_DROP } else { XDP_PASS })
        }
    };
    let (reason, action) = match is_junk(scratch, reason) {
        true => (Reason::Junk, XDP_DROP),
        false => (reason, action),
    };
    programs::ask(&ctx, scratch, reason);
    if let Some(counter) = COUNTERS.get_ptr_mut(reason as u32) {
        // SAFETY: this CPU's own counter.
        unsafe { *counter += 1 };
    }
    if LOG.load() != 0 && !matches!(reason, Reason::NotIpv4 | Reason::NotUdp | Reason::NotOurs) {
        aya_log_ebpf::debug!(&ctx, "action {} for reason {}", action, reason as u32);
    }
    programs::tell(&ctx, scratch, reason, action);
    action
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
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    // SAFETY: the helper reads the context and nothing else.
    let total = unsafe { aya_ebpf::helpers::generated::bpf_xdp_get_buff_len(ctx.ctx) } as u32;
    // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
    let s = unsafe { &mut *scratch };
    s.frame.l2 = 14;
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
fn packet(ctx: &XdpContext, scratch: *mut Scratch) -> Result<(Reason, u32), Reason> {
    // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
    let s = unsafe { &mut *scratch };
    frame::read(ctx, &mut s.frame, &mut s.packet).or_else(|reason| match reason {
        // Told below, when it is known whether the packet is ours.
        Reason::BadLength => Ok(s.frame.len = u32::MAX),
        other => Err(other),
    })?;
    let Some(config) = CONFIG.get(0) else { return Err(Reason::NotConfigured) };
    if !s.find_local(s.packet.dst, config) {
        return Err(Reason::NotOurs);
    }
    if config.layout != LAYOUT {
        return Err(Reason::NotConfigured);
    }
    let Some(kernel) = Kernel::new(config, scratch, s.packet.src) else {
        return Err(Reason::NotConfigured);
    };
    let refused = kernel.source() & (source::DENIED | source::BANNED);
    if config.flags & flag::DENY != 0 && refused != 0 {
        return Err(if refused & source::BANNED != 0 { Reason::Banned } else { Reason::Denied });
    }
    if s.frame.len == u32::MAX {
        return Err(Reason::BadLength);
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
        return keepalive(ctx, scratch, t, config, &kernel);
    }
    if scan(t, &mut s.index).is_err() {
        return Err(Reason::Malformed);
    }
    sip(ctx, scratch, t, config, &kernel)
}

/// Datagrams too short for SIP: CRLF CRLF wants CRLF (RFC 5626 4.4.1), others want nothing.
#[inline(always)]
fn keepalive(
    ctx: &XdpContext,
    scratch: *mut Scratch,
    t: Bytes<'_>,
    config: &Config,
    kernel: &Kernel<'_>,
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
        Out::new(scratch).put(0, literal(b"\r\n"));
        // SAFETY: the entry of this CPU.
        unsafe { (*scratch).front = Front { old: 4, new: 2 } };
        return send::answer::<false>(ctx, scratch).map(|action| (Reason::CrlfAnswered, action));
    }
    // Only NUL, CR and LF: a keepalive that wants no answer. The zeros behind the text count too.
    let other = (0..4).any(|i| !matches!((word >> (8 * i)) as u8, 0 | b'\r' | b'\n'));
    Err(if other { Reason::Junk } else { Reason::EmptyDatagram })
}

#[inline(always)]
fn sip(
    ctx: &XdpContext,
    scratch: *mut Scratch,
    t: Bytes<'_>,
    config: &Config,
    kernel: &Kernel<'_>,
) -> Result<(Reason, u32), Reason> {
    // SAFETY: the entry of this CPU.
    let s = unsafe { &mut *scratch };
    s.plan.hops_len = 0;
    let needed =
        if s.index.method == Method::Options as u32 { flag::KEEPALIVES } else { flag::STEER };
    if config.flags & needed == 0 {
        return Err(Reason::Method);
    }
    let reason = route(t, &s.index, s.packet, &s.local, kernel, &mut s.plan);
    if !matches!(reason.way(), Way::Sent) {
        return Err(reason);
    }
    if matches!(reason, Reason::InviteSteered | Reason::InviteRepeated) && kernel.copies() {
        events::invite(ctx, s);
    }
    let mut out = KnownFront { out: Out::new(scratch), from: kernel.from() };
    if !matches!(reason, Reason::ResponseForwarded) {
        // SAFETY: an entry of this CPU's; the program does not run twice on a CPU.
        unsafe { (*out.from).make_texts(&mut out.out) };
    }
    if matches!(reason, Reason::OptionsAnswered) {
        s.front = edit::options_answer_start(t, &s.index, s.packet, &s.plan, &mut out);
        fits(s.front)?;
        return send::answer::<true>(ctx, scratch).map(|action| (reason, action));
    }
    if matches!(reason, Reason::ResponseForwarded) {
        s.plan.hops_len = 0;
        s.plan.record = 0;
        s.frame.hops_delta = 0;
        s.front = edit::response(t, &s.plan, &mut out);
    } else {
        change_hops(t, scratch);
        if send::inserts(s) {
            let action = send::insert(ctx, scratch, kernel.from())?;
            count_steered(s, reason);
            return Ok((reason, action));
        }
        s.front = edit::request(t, &s.index, s.packet, &s.local, &s.plan, &mut out);
    }
    fits(s.front)?;
    let action = send::forward(ctx, scratch, kernel.from())?;
    count_steered(s, reason);
    Ok((reason, action))
}

/// Counts a call that went to a PBX.
#[inline(always)]
fn count_steered(s: &Scratch, reason: Reason) {
    if matches!(reason, Reason::InviteSteered)
        && let Some(steered) = STEERED.get_ptr_mut(s.plan.slot)
    {
        // SAFETY: this CPU's own counter.
        unsafe { *steered += 1 };
    }
}

/// Writes the new Max-Forwards into the text, and keeps what that does to the checksum.
#[inline(always)]
fn change_hops(t: Bytes<'_>, scratch: *mut Scratch) {
    // SAFETY: the entry of this CPU.
    let s = unsafe { &mut *scratch };
    let at = s.plan.hops_at;
    let bits = (8 * s.plan.hops_len) & 31;
    let there = t.word(at);
    let old = there & ((1 << bits) - 1);
    let new = hops(&s.plan) as u64;
    t.set(at, there - old + new);
    // In 16-bit words, from the word that the first digit is in.
    let shift = (at & 1) * 8;
    s.frame.hops_delta = (new << shift) + send::less(old << shift);
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
