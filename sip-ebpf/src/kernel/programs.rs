//! The other programs, to which the first one jumps, so that none is too much for the verifier: those for IPv6, at its start;
//! and at its end two that may have an answer to what would go up, and one that tells of what was sent.

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_PASS};
use aya_ebpf::btf_maps::ProgramArray;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use sip_ebpf::Reason;
use sip_ebpf::report;
use sip_ebpf::tables::{flag, program};

use super::family::Family;
use super::maps::{CONFIG, COUNTERS};
use super::scratch::{self, Scratch, Work};
use super::{challenge, qualify};

/// What the first program jumps to.
#[btf_map]
static PROGRAMS: ProgramArray<{ program::COUNT as usize }> = ProgramArray::new();

/// Jumps to [`super::six`]. Comes back if there is no such program.
#[inline(always)]
pub(super) fn six(ctx: &XdpContext) {
    // SAFETY: nothing here has to be dropped.
    unsafe { PROGRAMS.tail_call(ctx, program::SIX) };
}

/// Jumps to the half of [`super::six`] that decides about a message, which was scanned. Comes back if there is no such program.
#[inline(always)]
pub(super) fn six_half(ctx: &XdpContext, response: bool) {
    let key = if response { program::SIX_RESPONSE } else { program::SIX_REQUEST };
    // SAFETY: nothing here has to be dropped.
    unsafe { PROGRAMS.tail_call(ctx, key) };
}

/// Counts a packet that leaves for this reason.
#[inline(always)]
pub(super) fn count(reason: u32) {
    if let Some(counter) = COUNTERS.get_ptr_mut(reason) {
        // SAFETY: this CPU's own counter.
        unsafe { *counter += 1 };
    }
}

/// Jumps to [`super::challenge`] or [`super::qualify`], if it may have an answer to what would go up. Comes back if there is
/// no such program.
#[inline(always)]
pub(super) fn ask<A: Family>(ctx: &XdpContext, scratch: *mut Scratch, reason: Reason) {
    // One way for the verifier, whatever the reason.
    let reason = scratch::fresh(scratch, reason as u32);
    let candidate = challenge::REASONS >> (reason & 63) & 1 != 0;
    let qualify = reason == Reason::OptionsNotForUs as u32;
    if !candidate && !qualify {
        return;
    }
    let needed = if qualify { qualify::NEEDED } else { challenge::NEEDED };
    if !CONFIG.get(0).is_some_and(|config| config.flags & needed == needed) {
        return;
    }
    // SAFETY: the entry of this CPU.
    unsafe { (*scratch).reason = reason };
    if qualify {
        // SAFETY: nothing here has to be dropped.
        return unsafe { PROGRAMS.tail_call(ctx, A::QUALIFY) };
    }
    // SAFETY: nothing here has to be dropped.
    unsafe { PROGRAMS.tail_call(ctx, A::CHALLENGE) };
}

/// Jumps to the part of [`super::challenge`] that asks over IPv6. Comes back if there is no such program.
#[inline(always)]
pub(super) fn six_ask(ctx: &XdpContext) {
    // SAFETY: nothing here has to be dropped.
    unsafe { PROGRAMS.tail_call(ctx, program::SIX_ASK) };
}

/// What a program does that [`ask`] has jumped to: what it cannot answer goes up for the reason that the first one had.
#[inline(always)]
pub(super) fn answer<A: Family>(
    ctx: &XdpContext,
    packet: impl FnOnce(&XdpContext, *mut Work<A>) -> Result<(Reason, u32), Reason>,
) -> u32 {
    let Some(work) = A::work() else {
        return XDP_ABORTED;
    };
    // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
    let before = unsafe { (*work).scratch.reason };
    let (reason, action) = match packet(ctx, work) {
        Ok((reason, action)) => (reason as u32, action),
        Err(Reason::Mtu) => (Reason::Mtu as u32, XDP_PASS),
        Err(_) => (before, XDP_PASS),
    };
    count(reason);
    action
}

/// Jumps to [`super::report`] if there is something to tell of a packet that was sent with this action. Comes back if there
/// is no such program.
#[inline(always)]
pub(super) fn tell<A: Family>(ctx: &XdpContext, work: *mut Work<A>, reason: Reason, action: u32) {
    let scratch = Work::scratch(work);
    // As in `ask`: asked of the memory, at the end.
    let reason = scratch::fresh(scratch, reason as u32);
    // SAFETY: fields of the entry of this CPU; volatile, so that they are read here and not where they are set.
    let (method, decided) = unsafe {
        let method = (&raw const (*scratch).index.method).read_volatile();
        (method, (&raw const (*work).plan.decided).read_volatile())
    };
    let told = report::kind(reason, method, decided);
    if told == 0 || !CONFIG.get(0).is_some_and(|config| config.flags & flag::RECORD != 0) {
        return;
    }
    // SAFETY: the entry of this CPU.
    unsafe { ((*scratch).told, (*scratch).action) = (told, action) };
    // SAFETY: nothing here has to be dropped.
    unsafe { PROGRAMS.tail_call(ctx, A::REPORT) };
}
