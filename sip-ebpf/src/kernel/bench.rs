//! What the benches need: the denominators, and frames that are fresh in each round.
//!
//! A round of TEST_RUN works on what the round before it left: a program that edits would work on
//! its own output. With [`BENCH`] set before loading, `sipline` first puts the bench's
//! frame over the packet; `bench_floor` does that and nothing else. When it is not set, as always
//! but in a bench, the verifier removes the code.

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_TX};
use aya_ebpf::btf_maps::{Array, LruHashMap, PerCpuArray};
use aya_ebpf::helpers::generated::{
    bpf_ktime_get_ns, bpf_xdp_adjust_head, bpf_xdp_get_buff_len, bpf_xdp_store_bytes,
};
use aya_ebpf::macros::{btf_map, xdp};
use aya_ebpf::programs::XdpContext;
use sip_ebpf::text::hex8;

use super::asm;
use super::send::fold;

/// Length of the bench's frame; zero: no bench.
#[unsafe(no_mangle)]
static BENCH: Global<u32> = Global::new(0);

/// Where in the frame eight bytes get another value in each round (a Call-ID, for calls that are
/// new); zero: nowhere.
#[unsafe(no_mangle)]
static BENCH_VARY: Global<u32> = Global::new(0);

/// The frame; of a generator, all that take turns.
#[btf_map]
static BENCH_FRAME: Array<[u8; 2048], { MIX as usize }> = Array::new();

/// Frames that take turns, a power of two.
const MIX: u32 = 32;

/// Length of each of them, and where its eight bytes are, as [`BENCH_VARY`].
#[btf_map]
static BENCH_MIX: Array<[u32; 2], { MIX as usize }> = Array::new();

/// How many they are.
#[unsafe(no_mangle)]
static BENCH_TURNS: Global<u32> = Global::new(1);

/// Nanoseconds from one frame to the next; zero: as fast as may be.
#[unsafe(no_mangle)]
static BENCH_PAUSE: Global<u64> = Global::new(0);

/// How many addresses frames come from, a power of two: the frame's and those that follow it, whose low bits are zero.
#[unsafe(no_mangle)]
static BENCH_SOURCES: Global<u32> = Global::new(1);

/// CLOCK_MONOTONIC when no more are to be sent.
#[unsafe(no_mangle)]
static BENCH_END: Global<u64> = Global::new(0);

/// What a generator has sent, and when the next frame is due.
#[btf_map]
static BENCH_SENT: PerCpuArray<[u64; 2], 1> = PerCpuArray::new();

/// A generator that was kept from sending makes good for this long, in nanoseconds.
const BEHIND: u64 = 1_000_000;

/// Counts rounds.
#[btf_map]
static BENCH_ROUND: PerCpuArray<u64, 1> = PerCpuArray::new();

/// Puts the bench's frame over the packet, if there is a bench.
#[inline(always)]
pub(super) fn refresh(ctx: &XdpContext) {
    let len = BENCH.load();
    if len == 0 {
        return;
    }
    let Some(frame) = BENCH_FRAME.get_ptr_mut(0) else { return };
    let n = asm::mask::<2047>(len);
    if n == 0 {
        return;
    }
    // SAFETY: helpers that check what they are given; `n` is below the frame's length.
    unsafe {
        let grown = bpf_xdp_get_buff_len(ctx.ctx) as i32 - n as i32;
        if grown != 0 {
            bpf_xdp_adjust_head(ctx.ctx, grown);
        }
        bpf_xdp_store_bytes(ctx.ctx, 0, frame.cast(), n);
    }
    number(ctx, BENCH_VARY.load());
}

/// Writes the number of the round where eight bytes change.
#[inline(always)]
fn number(ctx: &XdpContext, at: u32) {
    if at == 0 {
        return;
    }
    let Some(round) = BENCH_ROUND.get_ptr_mut(0) else { return };
    // SAFETY: this CPU's own counter.
    let mut digits = unsafe {
        *round += 1;
        hex8(*round as u32)
    };
    // SAFETY: eight bytes are there.
    unsafe { bpf_xdp_store_bytes(ctx.ctx, at, (&raw mut digits).cast(), 8) };
}

/// What [`refresh`] costs.
#[xdp]
fn bench_floor(ctx: XdpContext) -> u32 {
    refresh(&ctx);
    XDP_TX
}

/// A generator: sends the frames of `BENCH_FRAME` in turns, each when it is due, until it is the end.
#[xdp]
fn bench_pktgen(ctx: XdpContext) -> u32 {
    let Some(state) = BENCH_SENT.get_ptr_mut(0) else { return XDP_ABORTED };
    // SAFETY: this CPU's own.
    let [sent, due] = unsafe { &mut *state };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    if now >= BENCH_END.load() {
        return XDP_DROP;
    }
    let pause = BENCH_PAUSE.load();
    if pause != 0 {
        if now < *due {
            return XDP_DROP;
        }
        let earliest = now.wrapping_sub(BEHIND);
        *due = if *due < earliest { earliest } else { *due } + pause;
    }
    let turns = BENCH_TURNS.load() as u64;
    if turns == 0 {
        return XDP_ABORTED;
    }
    let turn = asm::mask::<{ MIX - 1 }>((*sent % turns) as u32);
    let Some(frame) = BENCH_FRAME.get_ptr_mut(turn) else { return XDP_ABORTED };
    let Some([len, vary]) = BENCH_MIX.get(turn).copied() else { return XDP_ABORTED };
    let n = asm::mask::<2047>(len);
    if n == 0 {
        return XDP_ABORTED;
    }
    // SAFETY: helpers that check what they are given; `n` is below the frame's length.
    unsafe {
        let grown = bpf_xdp_get_buff_len(ctx.ctx) as i32 - n as i32;
        if grown != 0 && bpf_xdp_adjust_head(ctx.ctx, grown) != 0 {
            return XDP_ABORTED;
        }
        bpf_xdp_store_bytes(ctx.ctx, 0, frame.cast(), n);
    }
    number(&ctx, vary);
    stranger(&ctx, (*sent as u32) & BENCH_SOURCES.load().wrapping_sub(1) & 0xffff);
    *sent += 1;
    XDP_TX
}

/// Adds to the low half of the frame's source address, which is to be zero in the bits that change. No VLAN tags.
#[inline(always)]
fn stranger(ctx: &XdpContext, add: u32) {
    if add == 0 {
        return;
    }
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + 34 > end {
        return;
    }
    // SAFETY: 34 bytes are there; what is written lies at even addresses, as the kernel has laid the frame.
    unsafe {
        let low = (start + 28) as *mut u16;
        let checksum = (start + 24) as *mut u16;
        let (old, new) = (*low, *low | (add as u16).to_be());
        // RFC 1624, equation 3.
        let sum = (!*checksum as u64) + (!old as u64) + new as u64;
        *checksum = !(fold(sum) as u16);
        *low = new;
    }
}

/// The least a program can do.
#[xdp]
fn bench_drop(_ctx: XdpContext) -> u32 {
    XDP_DROP
}

/// A plain reflector: addresses and ports change places, nothing is read.
#[xdp]
fn bench_reflect(ctx: XdpContext) -> u32 {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + 42 > end {
        return XDP_ABORTED;
    }
    // SAFETY: 42 bytes are there.
    unsafe { reflect(start) };
    XDP_TX
}

/// A load balancer of layer 4: a table of flows, another destination, both checksums mended. The
/// destination is the packet's own source, so that it comes back and can be counted.
#[xdp]
fn bench_l4(ctx: XdpContext) -> u32 {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + 42 > end {
        return XDP_ABORTED;
    }
    // SAFETY: 42 bytes are there.
    unsafe {
        if *((start + 12) as *const u16) != 0x0008 || *((start + 23) as *const u8) != 17 {
            return XDP_ABORTED;
        }
        let key = [
            half(start + 26),
            half(start + 28),
            half(start + 30),
            half(start + 32),
            half(start + 34),
            half(start + 36),
        ];
        let backend = match BENCH_FLOWS.get_ptr(key) {
            Some(backend) => *backend,
            None => {
                let backend = [key[0], key[1]];
                if BENCH_FLOWS.insert(key, backend, 0).is_err() {
                    return XDP_ABORTED;
                }
                backend
            }
        };
        let delta =
            fold((!key[2]) as u64 + (!key[3]) as u64 + backend[0] as u64 + backend[1] as u64)
                as u64;
        for at in [24, 40] {
            let checksum = (start + at) as *mut u16;
            *checksum = !(fold((!*checksum) as u64 + delta) as u16);
        }
        *((start + 30) as *mut u16) = backend[0];
        *((start + 32) as *mut u16) = backend[1];
        swap_ethernet(start);
    }
    XDP_TX
}

/// Flows of [`bench_l4`]: addresses and ports to a destination.
#[btf_map]
static BENCH_FLOWS: LruHashMap<[u16; 6], [u16; 2], 65536> = LruHashMap::new();

/// # Safety
/// Two bytes must be there.
#[inline(always)]
unsafe fn half(at: usize) -> u16 {
    // SAFETY: the caller's promise.
    unsafe { *(at as *const u16) }
}

/// # Safety
/// 42 bytes must be there.
#[inline(always)]
unsafe fn reflect(start: usize) {
    // SAFETY: the caller's promise. Sums stay as they are when parts change places.
    unsafe {
        swap_ethernet(start);
        let address = (start + 26) as *mut [u16; 2];
        let other = address.add(1);
        (*address, *other) = (*other, *address);
        let port = (start + 34) as *mut u16;
        let other = port.add(1);
        (*port, *other) = (*other, *port);
    }
}

/// # Safety
/// 12 bytes must be there.
#[inline(always)]
unsafe fn swap_ethernet(start: usize) {
    // SAFETY: the caller's promise.
    unsafe {
        let to = start as *mut [u16; 3];
        let from = to.add(1);
        (*to, *from) = (*from, *to);
    }
}
