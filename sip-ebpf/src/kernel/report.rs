//! The fourth program: tells the daemon what became of a call that it does not carry, after the packet that says so was sent.

use aya_ebpf::bindings::xdp_action::XDP_ABORTED;
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use sip_ebpf::report;
use sip_ebpf::tables::{Endpoint, Endpoint6};

use super::events;
use super::family::Family;
use super::scratch::Work;
use super::text::Bytes;

/// Tells it, and does with the packet what the first program has decided.
#[xdp]
fn sipline_report(ctx: XdpContext) -> u32 {
    tell::<Endpoint>(&ctx)
}

/// The same of calls over IPv6.
#[xdp]
fn sipline_six_report(ctx: XdpContext) -> u32 {
    tell::<Endpoint6>(&ctx)
}

#[inline(always)]
fn tell<A: Family>(ctx: &XdpContext) -> u32 {
    let Some(work) = A::work() else {
        return XDP_ABORTED;
    };
    // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
    let w = unsafe { &*work };
    let t = Bytes::new(ctx, Work::scratch(work));
    events::report(w, report::status(t, w.plan.decided));
    w.scratch.action
}
