//! What the daemon is told: copies of INVITEs that were steered, and what becomes of their calls.
//!
//! Each is written into the ring at once, and nobody is woken for it: the daemon looks into the ring in its own time,
//! which is short beside the time that a PBX has for its answer.

use aya_ebpf::bindings::{BPF_RB_AVAIL_DATA, BPF_RB_NO_WAKEUP};
use aya_ebpf::helpers::generated::{bpf_ktime_get_ns, bpf_ringbuf_query, bpf_xdp_load_bytes};
use aya_ebpf::programs::XdpContext;
use sip_ebpf::route::Packet;
use sip_ebpf::tables::{EVENTS_OF_INVITES, Event, event};

use super::asm;
use super::family::Family;
use super::maps::{EVENT_COUNTS, EVENTS};
use super::scratch::{TEXT, Work};

/// The longest message that a short record has room for: that of most INVITEs.
const SHORT: u32 = 1024 - 8 - HEAD;

/// Length of the head.
const HEAD: u32 = size_of::<Event>() as u32;

/// Tells the daemon of an INVITE that is about to be sent on: the packet is still as it came in. If the ring is full, it
/// is counted and the call goes on.
#[inline(always)]
pub(super) fn invite<A: Family>(ctx: &XdpContext, w: &Work<A>) {
    let put = if w.scratch.frame.len <= SHORT {
        record::<SHORT, A>(ctx, w)
    } else {
        record::<TEXT, A>(ctx, w)
    };
    count(if put { event::PUT } else { event::FULL });
}

/// Tells the daemon what became of a call: [`Scratch::told`](super::scratch::Scratch::told), with this status.
#[inline(always)]
pub(super) fn report<A: Family>(w: &Work<A>, status: u32) {
    let Packet { src, dst } = A::in_event(w.packet);
    let told = EVENTS.reserve(0).map(|mut place| {
        place.write(Event {
            kind: w.scratch.told,
            len: 0,
            src,
            dst,
            slot: 0,
            status,
            call: w.plan.call,
            // SAFETY: no arguments.
            time: unsafe { bpf_ktime_get_ns() },
        });
        place.submit(BPF_RB_NO_WAKEUP as u64);
    });
    count(if told.is_some() { event::TOLD } else { event::LOST });
}

/// How many bytes of the ring nobody has read yet.
#[inline(always)]
fn unread() -> u64 {
    // SAFETY: the map, and a question that changes nothing.
    unsafe { bpf_ringbuf_query((&raw const EVENTS).cast_mut().cast(), BPF_RB_AVAIL_DATA as u64) }
}

#[inline(always)]
fn count(key: u32) {
    if let Some(counter) = EVENT_COUNTS.get_ptr_mut(key) {
        // SAFETY: this CPU's own counter.
        unsafe { *counter += 1 };
    }
}

/// A record with room for `ROOM` bytes of message. False if there is no room in the ring.
#[inline(always)]
fn record<const ROOM: u32, A: Family>(ctx: &XdpContext, w: &Work<A>) -> bool {
    let s = &w.scratch;
    // Where the head has no room for them, addresses stand before the message.
    let before = const { if A::INVITE == event::INVITE { 0 } else { size_of::<Packet<A>>() } };
    // None where INVITEs have no room left: one way for the verifier.
    let room = (unread() < EVENTS_OF_INVITES as u64) as u32;
    let len = asm::mask::<4095>(s.frame.len.wrapping_mul(room));
    if len == 0 || len > ROOM {
        return false;
    }
    let size = (HEAD + ROOM) as usize + before;
    let Some(mut place) = EVENTS.reserve_bytes(size, 0) else { return false };
    let head = place.as_mut_ptr().cast::<Event>();
    let Packet { src, dst } = A::in_event(w.packet);
    // SAFETY: `size` bytes are reserved: the head, maybe addresses, and `ROOM` of which `len` are written.
    let loaded = unsafe {
        (&raw mut (*head).kind).write(A::INVITE);
        (&raw mut (*head).len).write(len + before as u32);
        (&raw mut (*head).src).write(src);
        (&raw mut (*head).dst).write(dst);
        (&raw mut (*head).slot).write(w.plan.slot);
        (&raw mut (*head).status).write(0);
        (&raw mut (*head).call).write(w.plan.call);
        // The call table was just asked for by this clock.
        (&raw mut (*head).time).write(s.last_now());
        if before != 0 {
            head.add(1).cast::<Packet<A>>().write(w.packet);
        }
        let text = head.add(1).cast::<u8>().add(before);
        bpf_xdp_load_bytes(ctx.ctx, s.frame.start, text.cast(), len) == 0
    };
    if loaded {
        place.submit(BPF_RB_NO_WAKEUP as u64);
    } else {
        place.discard(BPF_RB_NO_WAKEUP as u64);
    }
    loaded
}
