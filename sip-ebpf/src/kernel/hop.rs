//! The way to the next hop: port, addresses and tags of the frame.
//!
//! The kernel's own routes and neighbours are asked (`bpf_fib_lookup`), as a socket of the daemon
//! would ask them: with the loopback device as the ingress, so that rules for local output apply
//! and no interface has to become a router's (the daemon sets `forwarding` on `lo`, where it means
//! nothing). An answer is kept for a second per CPU, since asking costs more than parsing.

use aya_ebpf::bindings::bpf_fib_lookup;
use aya_ebpf::helpers::generated::bpf_fib_lookup as fib_lookup;
use aya_ebpf::programs::XdpContext;
use sip_ebpf::Reason;

use super::asm;
use super::family::Family;
use super::maps::VLANS;

/// Entries a CPU keeps; a power of two.
pub(super) const HOPS_LEN: u32 = 1024;

/// How long an answer is good: a moved neighbour is followed after this at the latest.
const GOOD_NS: u64 = 1_000_000_000;

const LOOPBACK: u32 = 1;

/// An answer.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Hop<A> {
    /// Until when, CLOCK_MONOTONIC.
    pub(super) until: u64,
    /// For whom; the port means nothing.
    pub(super) to: A,
    /// Port to leave by.
    pub(super) port: u32,
    /// MTU of the way.
    pub(super) mtu: u32,
    /// How many tags the frame carries.
    pub(super) tags: u32,
    /// Destination and source address, as they stand in the frame, and four bytes more.
    pub(super) addresses: [u64; 2],
    /// The tags, outermost first.
    pub(super) tag: [[u16; 2]; 2],
}

/// Finds the way to an address.
#[inline(always)]
pub(super) fn find<A: Family>(
    ctx: &XdpContext,
    now: u64,
    to: A,
) -> Result<&'static Hop<A>, Reason> {
    // The last octets tell neighbours apart.
    let key = asm::mask::<{ HOPS_LEN - 1 }>(to.last_octets());
    let Some(hop) = A::hop(key) else {
        return Err(Reason::NoNeighbour);
    };
    // SAFETY: an entry of this CPU's; the program does not run twice on a CPU.
    let hop = unsafe { &mut *hop };
    if !hop.to.is_host_of(to) || hop.until < now {
        ask(ctx, to, hop)?;
        hop.to = to;
        hop.until = now + GOOD_NS;
    }
    Ok(hop)
}

#[inline(always)]
fn ask<A: Family>(ctx: &XdpContext, to: A, hop: &mut Hop<A>) -> Result<(), Reason> {
    if !to.is_routed() {
        return Err(Reason::NoNeighbour);
    }
    hop.until = 0;
    let mut words = [const { core::mem::MaybeUninit::<u64>::uninit() }; 8];
    const { assert!(core::mem::size_of::<bpf_fib_lookup>() == 64) };
    for word in &mut words {
        // SAFETY: a word of ours. Volatile, or the compiler calls a function to zero them.
        unsafe { (&raw mut *word).cast::<u64>().write_volatile(0) };
    }
    // SAFETY: as long as that, better aligned, and all zero is a value of every field.
    let params = unsafe { &mut *(&raw mut words).cast::<bpf_fib_lookup>() };
    params.l4_protocol = 17;
    params.ifindex = LOOPBACK;
    to.ask(params);
    // SAFETY: `params` is as long as is said.
    let found = unsafe {
        fib_lookup(
            ctx.ctx.cast(),
            &raw mut *params,
            core::mem::size_of::<bpf_fib_lookup>() as i32,
            0,
        )
    };
    if found != 0 {
        return Err(Reason::NoNeighbour);
    }
    let [d, s] = [params.dmac, params.smac];
    hop.addresses = [
        u64::from_le_bytes([d[0], d[1], d[2], d[3], d[4], d[5], s[0], s[1]]),
        u64::from_le_bytes([s[2], s[3], s[4], s[5], 0, 0, 0, 0]),
    ];
    // SAFETY: the helper writes this member of the union on success.
    hop.mtu = unsafe { params.__bindgen_anon_1.mtu_result } as u32;
    // A port without the program may not take redirected frames, and then loses them in silence; a
    // bridge or a bond is no port at all.
    // SAFETY: copied at once.
    let Some(port) = (unsafe { VLANS.get(params.ifindex) }) else {
        return Err(Reason::OtherPort);
    };
    hop.port = port.port;
    hop.tags = port.tags;
    hop.tag = port.tag;
    Ok(())
}
