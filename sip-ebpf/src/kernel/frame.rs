//! From the wire to UDP: Ethernet, up to two VLAN tags, IPv4, UDP (architecture, step 1).

use aya_ebpf::programs::XdpContext;
use sip_ebpf::Reason;
use sip_ebpf::route::Packet;
use sip_ebpf::tables::Endpoint;

use super::asm;

/// What the layers below SIP said.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Frame {
    /// Bytes before the IPv4 header: 14, 18 or 22.
    pub(super) l2: u32,
    /// Bytes of SIP.
    pub(super) len: u32,
    /// UDP checksum as it stands in memory.
    pub(super) checksum: u32,
    /// Always zero.
    pub(super) pad: u32,
    /// What the change of Max-Forwards adds to the sum under the checksum.
    pub(super) hops_delta: u64,
    /// The first 22 bytes of the frame: addresses, tags and type.
    pub(super) ethernet: [u64; 3],
}

/// Bytes of IPv4 and UDP headers without options.
pub(super) const IP_UDP: u32 = 28;

const ETH_P_IP: u16 = 0x0800u16.to_be();
const ETH_P_8021Q: u16 = 0x8100u16.to_be();
const ETH_P_8021AD: u16 = 0x88a8u16.to_be();
const IPPROTO_UDP: u8 = 17;

/// Cache lines asked for by [`touch`]: of the 42 bytes of headers and the text that is read at first.
const LINES: usize = 6;

/// Asks for the packet's cache lines, all at once. They come from the memory of the card, or of the CPU that
/// sent them, and would else be waited for one after the other by what reads them.
#[inline(always)]
pub(super) fn touch(ctx: &XdpContext) {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + 64 * LINES > end {
        return;
    }
    for line in 1..LINES {
        // SAFETY: compared with the end of the packet. Volatile: nobody wants the value.
        unsafe { ((start + 64 * line) as *const u8).read_volatile() };
    }
}

/// Reads the headers into `frame` and `packet`, or says why this packet is not for us.
#[inline(always)]
pub(super) fn read(ctx: &XdpContext, frame: &mut Frame, packet: &mut Packet) -> Result<(), Reason> {
    let (start, end) = (ctx.data(), ctx.data_end());
    if start + 42 > end {
        return Err(Reason::NotIpv4);
    }
    let mut l2 = 14;
    let mut kind = half(start + 12);
    if kind == ETH_P_8021Q || kind == ETH_P_8021AD {
        if start + 46 > end {
            return Err(Reason::NotIpv4);
        }
        l2 = 18;
        kind = half(start + 16);
        if kind == ETH_P_8021Q || kind == ETH_P_8021AD {
            if start + 50 > end {
                return Err(Reason::NotIpv4);
            }
            l2 = 22;
            kind = half(start + 20);
        }
    }
    if kind != ETH_P_IP {
        return Err(Reason::NotIpv4);
    }
    // Through memory, so that the verifier walks what follows once and not once for each length.
    // SAFETY: a field of ours; volatile keeps the trip.
    let l2 = unsafe {
        (&raw mut frame.l2).write_volatile(l2);
        asm::mask::<31>((&raw const frame.l2).read_volatile()) as usize
    };
    let ip = start + l2;
    if ip + IP_UDP as usize > end {
        return Err(Reason::NotIpv4);
    }
    let version = byte(ip);
    if version >> 4 != 4 {
        return Err(Reason::NotIpv4);
    }
    if byte(ip + 9) != IPPROTO_UDP {
        return Err(Reason::NotUdp);
    }
    if version != 0x45 {
        return Err(Reason::IpOptions);
    }
    // More fragments, or not the first one.
    if u16::from_be(half(ip + 6)) & 0x3fff != 0 {
        return Err(Reason::Fragment);
    }
    packet.src = Endpoint { addr: word(ip + 12), port: half(ip + 20), pad: 0 };
    packet.dst = Endpoint { addr: word(ip + 16), port: half(ip + 22), pad: 0 };
    frame.checksum = half(ip + 26) as u32;
    let ip_len = u16::from_be(half(ip + 2)) as u32;
    let udp_len = u16::from_be(half(ip + 24)) as u32;
    // SAFETY: the frame has at least 42 bytes, so 24 are there.
    unsafe {
        frame.ethernet[0] = asm::load::<0>(start as *const u8);
        frame.ethernet[1] = asm::load::<0>((start + 8) as *const u8);
        frame.ethernet[2] = asm::load::<0>((start + 16) as *const u8);
    }
    frame.len = udp_len.wrapping_sub(8);
    // Longer is padding; shorter, or in fragments of a larger buffer, is not read.
    let ip_end = ip + asm::mask::<0xffff>(ip_len) as usize;
    if udp_len < 8 || udp_len + 20 != ip_len || ip_end > end {
        return Err(Reason::BadLength);
    }
    Ok(())
}

// The callers have compared what they read against the end of the packet.

#[inline(always)]
fn byte(at: usize) -> u8 {
    // SAFETY: see above.
    unsafe { *(at as *const u8) }
}

#[inline(always)]
fn half(at: usize) -> u16 {
    // SAFETY: see above; headers are 2-aligned in an XDP frame.
    unsafe { *(at as *const u16) }
}

#[inline(always)]
fn word(at: usize) -> u32 {
    // SAFETY: see above. Two halves, for addresses are 2-aligned only.
    half(at) as u32 | (half(at + 2) as u32) << 16
}
