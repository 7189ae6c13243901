//! The fourth program: tells the daemon what became of a call that it does not carry, after the packet that says so was sent.

use aya_ebpf::bindings::xdp_action::XDP_ABORTED;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use sip_ebpf::report;

use super::events;
use super::maps::SCRATCH;
use super::text::Bytes;

/// Tells it, and does with the packet what the first program has decided.
#[xdp]
fn sipline_report(ctx: XdpContext) -> u32 {
    let Some(scratch) = SCRATCH.get_ptr_mut(0) else {
        return XDP_ABORTED;
    };
    // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
    let s = unsafe { &*scratch };
    let t = Bytes::new(&ctx, scratch);
    events::report(s, report::status(t, s.plan.decided));
    s.action
}
