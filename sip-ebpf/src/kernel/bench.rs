//! What the benches need: the denominators, and frames that are fresh in each round.
//!
//! A round of TEST_RUN works on what the round before it left: a program that edits would work on
//! its own output. With [`BENCH`] set before loading, `sipline` first puts the bench's
//! frame over the packet; `bench_floor` does that and nothing else. When it is not set, as always
//! but in a bench, the verifier removes the code.

use aya_ebpf::Global;
use aya_ebpf::bindings::xdp_action::{XDP_ABORTED, XDP_DROP, XDP_PASS, XDP_TX};
use aya_ebpf::btf_maps::{Array, DevMap, LruHashMap, PerCpuArray};
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

/// What is different in each call, of a generator of whole calls. There are as many as calls.
#[btf_map]
static BENCH_CALLS: Array<[u8; 96], 1> = Array::new();

/// Of each of its frames, which pieces of a call go where: place in the frame, place in the call (at most 63), and length
/// (at most 31; zero is none). In [`BENCH_MIX`], the second word is the port that a frame leaves by.
#[btf_map]
static BENCH_PIECES: Array<[u32; 3 * PIECES], { MIX as usize }> = Array::new();

/// The most pieces of a frame.
const PIECES: usize = 8;

/// The ports.
#[btf_map]
static BENCH_PORTS: DevMap<4> = DevMap::new();

/// How many calls.
#[unsafe(no_mangle)]
static BENCH_COUNT: Global<u32> = Global::new(0);

/// How far it is: place in the order, frames sent, when the next one is due, and when the first and the last were sent.
#[btf_map]
static BENCH_STATE: Array<[u64; 5], 1> = Array::new();

/// Frames that came out: first all of them, then those of [`bench_sink`]'s keys.
#[btf_map]
static BENCH_OUT: Array<u64, 64> = Array::new();

/// Frames of a call.
const STAGES: u64 = 7;

/// The frames of a call stand so many calls apart, so that each has come out when the next one is sent.
const APART: u64 = 64;

/// At most so many frames are on their way: fewer than a veth's ring has room for, so none is lost for want of it.
const ON_THEIR_WAY: u64 = 192;

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
    let Some(vary) = put(&ctx, turn) else { return XDP_ABORTED };
    number(&ctx, vary);
    stranger(&ctx, (*sent as u32) & BENCH_SOURCES.load().wrapping_sub(1) & 0xffff);
    *sent += 1;
    XDP_TX
}

/// Puts the frame whose turn it is over the packet; gives the second word of [`BENCH_MIX`].
#[inline(always)]
fn put(ctx: &XdpContext, turn: u32) -> Option<u32> {
    let frame = BENCH_FRAME.get_ptr_mut(turn)?;
    let [len, second] = BENCH_MIX.get(turn).copied()?;
    let n = asm::mask::<2047>(len);
    if n == 0 {
        return None;
    }
    // SAFETY: helpers that check what they are given; `n` is below the frame's length.
    unsafe {
        let grown = bpf_xdp_get_buff_len(ctx.ctx) as i32 - n as i32;
        if grown != 0 && bpf_xdp_adjust_head(ctx.ctx, grown) != 0 {
            return None;
        }
        bpf_xdp_store_bytes(ctx.ctx, 0, frame.cast(), n);
    }
    Some(second)
}

/// A generator of whole calls, each frame by the port of its sender: the frames of many calls mixed, those of one call in
/// their order, and none before its room is there.
#[xdp]
fn bench_calls(ctx: XdpContext) -> u32 {
    let Some(state) = BENCH_STATE.get_ptr_mut(0) else { return XDP_ABORTED };
    let Some(out) = BENCH_OUT.get_ptr(0) else { return XDP_ABORTED };
    // SAFETY: only this program writes it, and it runs once at a time.
    let [at, sent, due, first, last] = unsafe { &mut *state };
    // SAFETY: no arguments.
    let now = unsafe { bpf_ktime_get_ns() };
    // SAFETY: a word of a map, which others add to.
    let out = unsafe { out.read_volatile() };
    if sent.wrapping_sub(out) >= ON_THEIR_WAY || now < *due {
        return XDP_DROP;
    }
    let stage = *at % STAGES;
    let call = (*at / STAGES).wrapping_sub(stage * APART);
    *at += 1;
    if call >= BENCH_COUNT.load() as u64 {
        return XDP_DROP;
    }
    // One PBX has the even calls, the other one the odd ones.
    let turn = asm::mask::<{ MIX - 1 }>(stage as u32 | (call as u32 & 1) << 3);
    let Some(port) = put(&ctx, turn) else { return XDP_ABORTED };
    let Some(own) = BENCH_CALLS.get_ptr_mut(call as u32) else { return XDP_ABORTED };
    let Some(pieces) = BENCH_PIECES.get(turn) else { return XDP_ABORTED };
    for i in 0..PIECES {
        let [to, from, n] = [pieces[3 * i], pieces[3 * i + 1], pieces[3 * i + 2]];
        let (from, n) = (asm::mask::<63>(from), asm::mask::<31>(n));
        if n != 0 {
            // SAFETY: a helper that checks what it is given; 63 and 31 are less than 96.
            unsafe {
                let from = own.cast::<u8>().add(from as usize);
                bpf_xdp_store_bytes(ctx.ctx, to, from.cast(), n);
            }
        }
    }
    if *sent == 0 {
        *first = now;
    }
    (*last, *due) = (now, now + BENCH_PAUSE.load());
    *sent += 1;
    BENCH_PORTS.redirect(port, 0).unwrap_or(XDP_ABORTED)
}

/// Takes what comes out of whole calls: counts it by the network that it is for, third byte of its address, and by the
/// first letter of its message.
#[xdp]
fn bench_sink(ctx: XdpContext) -> u32 {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + 43 > end {
        return XDP_PASS;
    }
    // SAFETY: 43 bytes are there.
    let (kind, protocol, network, letter) =
        unsafe { (half(start + 12), byte(start + 23), byte(start + 32), byte(start + 42)) };
    if kind != 0x0008 || protocol != 17 || !matches!(letter, b'I' | b'A' | b'B' | b'S') {
        return XDP_PASS;
    }
    let key = (network as u32 & 3) << 4 | letter as u32 & 15;
    for key in [key, 0] {
        if let Some(count) = BENCH_OUT.get_ptr_mut(key) {
            // SAFETY: an aligned word of a map.
            unsafe { asm::fetch_add(count, 1) };
        }
    }
    XDP_DROP
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
/// It must be there.
#[inline(always)]
unsafe fn byte(at: usize) -> u8 {
    // SAFETY: the caller's promise.
    unsafe { *(at as *const u8) }
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
