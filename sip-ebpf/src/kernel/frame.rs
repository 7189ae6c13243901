//! From the wire to UDP: Ethernet, up to two VLAN tags, IP, UDP (architecture, step 1).

use aya_ebpf::programs::XdpContext;
use sip_ebpf::Reason;
use sip_ebpf::route::Packet;

use super::asm;
use super::family::Family;

/// What the layers below SIP said.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Frame {
    /// Bytes before the IP header: 14, 18 or 22.
    pub(super) l2: u32,
    /// Bytes of SIP.
    pub(super) len: u32,
    /// UDP checksum as it stands in memory.
    pub(super) checksum: u32,
    /// Bytes before SIP.
    pub(super) start: u32,
    /// What the change of Max-Forwards adds to the sum under the checksum.
    pub(super) hops_delta: u64,
    /// The first 22 bytes of the frame: addresses, tags and type.
    pub(super) ethernet: [u64; 3],
}

const ETH_P_8021Q: u16 = 0x8100u16.to_be();
const ETH_P_8021AD: u16 = 0x88a8u16.to_be();

/// Cache lines asked for by [`touch`]: of the 42 bytes of headers and the text that is read at first.
const LINES: usize = 6;

/// Asks for the packet's cache lines, all at once. They come from the memory of the card, or of the CPU that
/// sent them, and would else be waited for one after the other by what reads them.
#[inline(always)]
pub(super) fn touch(ctx: &XdpContext) {
    let (start, end) = (ctx.data(), ctx.data_end());
    // Each exit is one more state for all that the verifier walks afterwards, so a packet that is not so long has half.
    let lines = if start + 64 * (LINES - 1) < end {
        LINES
    } else if start + 64 * (LINES / 2) < end {
        LINES / 2 + 1
    } else {
        return;
    };
    for line in 1..lines {
        // SAFETY: compared with the end of the packet. Volatile: nobody wants the value.
        unsafe { ((start + 64 * line) as *const u8).read_volatile() };
    }
}

/// Reads the headers into `frame` and `packet`, or says why this packet is not for us.
#[inline(always)]
pub(super) fn read<A: Family>(
    ctx: &XdpContext,
    frame: &mut Frame,
    packet: &mut Packet<A>,
) -> Result<(), Reason> {
    let (start, end) = (ctx.data(), ctx.data_end());
    let shortest = (14 + A::IP_UDP) as usize;
    if start + shortest > end {
        return Err(Reason::NotIpv4);
    }
    let mut l2 = 14;
    let mut kind = half(start + 12);
    if kind == ETH_P_8021Q || kind == ETH_P_8021AD {
        if start + shortest + 4 > end {
            return Err(Reason::NotIpv4);
        }
        l2 = 18;
        kind = half(start + 16);
        if kind == ETH_P_8021Q || kind == ETH_P_8021AD {
            if start + shortest + 8 > end {
                return Err(Reason::NotIpv4);
            }
            l2 = 22;
            kind = half(start + 20);
        }
    }
    if kind != A::TYPE {
        A::other(ctx, kind);
        return Err(Reason::NotIpv4);
    }
    // Through memory, so that the verifier walks what follows once and not once for each length.
    // SAFETY: a field of ours; volatile keeps the trip.
    let l2 = unsafe {
        (&raw mut frame.l2).write_volatile(l2);
        asm::mask::<31>((&raw const frame.l2).read_volatile())
    };
    frame.start = l2 + A::IP_UDP;
    let ip = start + l2 as usize;
    if ip + A::IP_UDP as usize > end {
        return Err(Reason::NotIpv4);
    }
    // SAFETY: the frame has at least 42 bytes, so 24 are there.
    unsafe {
        frame.ethernet[0] = asm::load::<0>(start as *const u8);
        frame.ethernet[1] = asm::load::<0>((start + 8) as *const u8);
        frame.ethernet[2] = asm::load::<0>((start + 16) as *const u8);
    }
    A::read(ip, end, frame, packet)
}

// The callers have compared what they read against the end of the packet.

#[inline(always)]
pub(super) fn byte(at: usize) -> u8 {
    // SAFETY: see above.
    unsafe { *(at as *const u8) }
}

#[inline(always)]
pub(super) fn half(at: usize) -> u16 {
    // SAFETY: see above; headers are 2-aligned in an XDP frame.
    unsafe { *(at as *const u16) }
}

#[inline(always)]
pub(super) fn word(at: usize) -> u32 {
    // SAFETY: see above. Two halves, for addresses are 2-aligned only.
    half(at) as u32 | (half(at + 2) as u32) << 16
}
