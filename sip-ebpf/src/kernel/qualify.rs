//! The third program: answers a PBX that asks for a user of ours.

use aya_ebpf::btf_maps::LruHashMap;
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use sip_ebpf::route::Tables;
use sip_ebpf::tables::{Endpoint, Endpoint6, MAX_USERS, flag};
use sip_ebpf::{Reason, cookie, qualify};

use super::family::Family;
use super::maps::CONFIG;
use super::scratch::{Out, Work};
use super::tables::Kernel;
use super::text::Bytes;
use super::{fits, programs, send};

#[btf_map]
static USERS: LruHashMap<u64, u64, { MAX_USERS as usize }> = LruHashMap::new();

/// All of it must be on: what the program jumps with has then been read whole.
pub(super) const NEEDED: u32 = flag::QUALIFY | flag::KEEPALIVES;

/// Answers an OPTIONS of a PBX for a user who is known to be registered, or to be so no longer; all else goes up for the
/// reason that the first program had.
#[xdp]
fn sipline_qualify(ctx: XdpContext) -> u32 {
    programs::answer::<Endpoint>(&ctx, packet)
}

/// The same over IPv6.
#[xdp]
fn sipline_six_qualify(ctx: XdpContext) -> u32 {
    programs::answer::<Endpoint6>(&ctx, packet)
}

#[inline(always)]
fn packet<A: Family>(ctx: &XdpContext, work: *mut Work<A>) -> Result<(Reason, u32), Reason> {
    let scratch = Work::scratch(work);
    // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
    let (s, w) = unsafe { (&mut *scratch, &mut *work) };
    let Some(config) = CONFIG.get(0) else { return Err(Reason::NotConfigured) };
    let Some(kernel) = Kernel::new(config, work, w.packet.src) else {
        return Err(Reason::NotConfigured);
    };
    if kernel.pbx_at(w.packet.src).is_none() {
        return Err(Reason::OptionsNotForUs);
    }
    if !kernel.alive() {
        return Err(Reason::HeartbeatStale);
    }
    let t = Bytes::new(ctx, scratch);
    let Some(user) = qualify::asked(t, &s.index, w.packet, &w.local, &w.plan) else {
        return Err(Reason::OptionsNotForUs);
    };
    let name = cookie::user(&config.keys, t, user);
    // SAFETY: an aligned word, copied at once.
    let Some(until) = (unsafe { USERS.get(name) }).copied() else {
        return Err(Reason::OptionsNotForUs);
    };
    let mut out = Out::new(scratch);
    let there = s.now() < until;
    s.front = qualify::answer(t, &s.index, w.packet, &w.plan, there, &mut out);
    fits(s.front)?;
    send::answer::<false, _>(ctx, work).map(|action| (Reason::QualifyAnswered, action))
}
