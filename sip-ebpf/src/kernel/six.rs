//! IPv6: programs of its own, for both families are too much for the verifier at once. The first program jumps to the first
//! of these, and that one, with the message scanned, to the half that decides about it.

use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP};
use aya_ebpf::macros::xdp;
use aya_ebpf::programs::XdpContext;
use sip_ebpf::Reason;
use sip_ebpf::scan::Method;
use sip_ebpf::tables::Endpoint6;

use super::family::Family;
use super::maps::CONFIG;
use super::scratch::{Scratch, Work};
use super::tables::Kernel;
use super::text::Bytes;
use super::{HALVES, REQUEST, RESPONSE, is_junk, log, packet, programs, sip, verdict};

/// The packet, up to the scan of its message.
#[xdp]
fn sipline_six(ctx: XdpContext) -> u32 {
    let Some(work) = Endpoint6::work() else {
        return XDP_ABORTED;
    };
    let (reason, action) = verdict(packet::<_, HALVES>(&ctx, work));
    let (reason, action) = match is_junk(Work::scratch(work), reason) {
        true => (Reason::Junk, XDP_DROP),
        false => (reason, action),
    };
    programs::count(reason as u32);
    log(&ctx, reason, action);
    action
}

/// Jumps to the half that decides about the message.
#[inline(always)]
pub(super) fn halve(ctx: &XdpContext, scratch: *mut Scratch) -> Result<(Reason, u32), Reason> {
    // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
    let method = unsafe { (*scratch).index.method };
    programs::six_half(ctx, method == Method::Response as u32);
    // There is none without the others.
    Err(Reason::NotConfigured)
}

/// Decides about a request.
#[xdp]
fn sipline_six_request(ctx: XdpContext) -> u32 {
    half::<REQUEST>(&ctx)
}

/// Decides about a response.
#[xdp]
fn sipline_six_response(ctx: XdpContext) -> u32 {
    half::<RESPONSE>(&ctx)
}

#[inline(always)]
fn half<const KIND: u32>(ctx: &XdpContext) -> u32 {
    let Some(work) = Endpoint6::work() else {
        return XDP_ABORTED;
    };
    let (reason, action) = verdict(message::<KIND>(ctx, work));
    if KIND == REQUEST {
        programs::ask::<Endpoint6>(ctx, Work::scratch(work), reason);
    }
    programs::count(reason as u32);
    log(ctx, reason, action);
    programs::tell(ctx, work, reason, action);
    action
}

#[inline(always)]
fn message<const KIND: u32>(
    ctx: &XdpContext,
    work: *mut Work<Endpoint6>,
) -> Result<(Reason, u32), Reason> {
    let Some(config) = CONFIG.get(0) else { return Err(Reason::NotConfigured) };
    // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
    let src = unsafe { (*work).packet.src };
    let Some(kernel) = Kernel::new(config, work, src) else {
        return Err(Reason::NotConfigured);
    };
    let t = Bytes::new(ctx, Work::scratch(work));
    sip::<Endpoint6, KIND>(ctx, work, t, config, &kernel)
}
