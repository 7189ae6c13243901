//! The other programs, to which the first one jumps at its end, so that none is too much for the verifier: two that may have
//! an answer to what would go up, and one that tells of what was sent.

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_PASS};
use aya_ebpf::btf_maps::ProgramArray;
use aya_ebpf::macros::btf_map;
use aya_ebpf::programs::XdpContext;
use sip_ebpf::Reason;
use sip_ebpf::report;
use sip_ebpf::tables::{flag, program};

use super::maps::{CONFIG, COUNTERS, SCRATCH};
use super::scratch::{self, Scratch};
use super::{challenge, qualify};

/// What the first program jumps to.
#[btf_map]
static PROGRAMS: ProgramArray<{ program::COUNT as usize }> = ProgramArray::new();

/// Jumps to [`super::challenge`] or [`super::qualify`], if it may have an answer to what would go up. Comes back if there is
/// no such program.
#[inline(always)]
pub(super) fn ask(ctx: &XdpContext, scratch: *mut Scratch, reason: Reason) {
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
        return unsafe { PROGRAMS.tail_call(ctx, program::QUALIFY) };
    }
    // SAFETY: nothing here has to be dropped.
    unsafe { PROGRAMS.tail_call(ctx, program::CHALLENGE) };
}

/// What a program does that [`ask`] has jumped to: what it cannot answer goes up for the reason that the first one had.
#[inline(always)]
pub(super) fn answer(
    ctx: &XdpContext,
    packet: impl FnOnce(&XdpContext, *mut Scratch) -> Result<(Reason, u32), Reason>,
) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
    let before = unsafe { (*scratch).reason };
    let (reason, action) = match packet(ctx, scratch) {
        Ok((reason, action)) => (reason as u32, action),
        Err(Reason::Mtu) => (Reason::Mtu as u32, XDP_PASS),
        Err(_) => (before, XDP_PASS),
    };
    if let Some(counter) = COUNTERS.get_ptr_mut(reason) {
        // SAFETY: this CPU's own counter.
        unsafe { *counter += 1 };
    }
    action
}

/// Jumps to [`super::report`] if there is something to tell of a packet that was sent with this action. Comes back if there
/// is no such program.
#[inline(always)]
pub(super) fn tell(ctx: &XdpContext, scratch: *mut Scratch, reason: Reason, action: u32) {
    // As in `ask`: asked of the memory, at the end.
    let reason = scratch::fresh(scratch, reason as u32);
    // SAFETY: fields of the entry of this CPU; volatile, so that they are read here and not where they are set.
    let (method, decided) = unsafe {
        let method = (&raw const (*scratch).index.method).read_volatile();
        (method, (&raw const (*scratch).plan.decided).read_volatile())
    };
    let told = report::kind(reason, method, decided);
    if told == 0 || !CONFIG.get(0).is_some_and(|config| config.flags & flag::RECORD != 0) {
        return;
    }
    // SAFETY: the entry of this CPU.
    unsafe { ((*scratch).told, (*scratch).action) = (told, action) };
    // SAFETY: nothing here has to be dropped.
    unsafe { PROGRAMS.tail_call(ctx, program::REPORT) };
}
