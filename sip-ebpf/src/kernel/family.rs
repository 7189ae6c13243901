//! What differs between IPv4 and IPv6 in the kernel: the headers, the tables, what is asked of the routes.

use aya_ebpf::bindings::bpf_fib_lookup;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::programs::XdpContext;
use sip_ebpf::Reason;
use sip_ebpf::address::Address;
use sip_ebpf::gate;
use sip_ebpf::route::Packet;
use sip_ebpf::tables::{
    DEBT_BUCKETS, DebtBucket, Endpoint, Endpoint6, Local, Schedule, event, program,
};

use super::asm;
use super::frame::{Frame, byte, half, word};
use super::hop::Hop;
use super::maps::*;
use super::programs;
use super::scratch::Work;
use super::send::{fold, halves};
use super::tables::Known;

/// An address, and all that is kept by such addresses.
pub(super) trait Family: Address + 'static {
    /// Bytes of IP and UDP headers without options.
    const IP_UDP: u32;
    /// Type of such a frame, as it stands in memory.
    const TYPE: u16;
    /// Whether UDP has a checksum always (RFC 8200 8.1).
    const SUMMED: bool;
    /// Whether our lines may be longer than the room that there is before a frame, of which drivers leave 216 bytes.
    const LONG: bool;
    /// Key in `PROGRAMS` of what tells the daemon what becomes of calls.
    const REPORT: u32;
    /// Key in `PROGRAMS` of what asks for credentials.
    const CHALLENGE: u32;
    /// Key in `PROGRAMS` of what answers PBXs that ask for users.
    const QUALIFY: u32;
    /// What a copy of an INVITE is, of [`mod@event`].
    const INVITE: u32;
    /// Whether calls are placed anew that their PBX does not take.
    const GUARDED: bool;
    /// How far what [`super::send::insert`] writes may reach past its end: what is longest, where an address is shortest.
    const OVER: u32;

    /// The memory of this CPU.
    fn work() -> Option<*mut Work<Self>>;

    /// A frame of another type.
    fn other(ctx: &XdpContext, kind: u16);

    /// Reads the headers at `ip`, of which all is there.
    fn read(
        ip: usize,
        end: usize,
        frame: &mut Frame,
        packet: &mut Packet<Self>,
    ) -> Result<(), Reason>;

    /// Source and destination as an [`Event`](sip_ebpf::tables::Event) has them, if it has room for them.
    fn in_event(packet: Packet<Self>) -> Packet<Endpoint>;

    /// What a table of a CPU's own is asked by.
    fn mix(self) -> u32;

    /// The entry of `KNOWN`.
    fn known(key: u32) -> Option<*mut Known<Self>>;

    /// The entry of `HOPS`.
    fn hop(key: u32) -> Option<*mut Hop<Self>>;

    /// What tells neighbours apart.
    fn last_octets(self) -> u32;

    /// Whether a route to it leads to it, and not to others of its kind.
    fn is_routed(self) -> bool;

    /// Asks for the way to it.
    fn ask(self, params: &mut bpf_fib_lookup);

    /// The entry of `LOCALS`.
    fn local(self) -> Option<&'static Local<Self>>;

    /// The slot of the PBX that listens there.
    fn slot(self) -> Option<u32>;

    /// The entry of `PBXS`, if it is in use.
    fn pbx(slot: u32) -> Option<Self::Pbx>;

    /// Whose turn it is, and whose it was.
    fn turns() -> Option<(&'static Schedule, *mut u64)>;

    /// The entry of `SOURCES`; zero for a stranger.
    fn source(self) -> u32;

    /// Whether somebody has registered from the address.
    fn has_registered(self) -> bool;

    /// Until when somebody is registered from the address and port.
    fn registered_until(self) -> Option<u64>;

    /// What the gate calls it.
    fn gate_name(self) -> u32;

    /// Its bucket in `DEBTS`.
    fn debts(name: u32) -> Option<*mut DebtBucket>;

    /// Pseudo header and UDP header, as they stand in memory. Addresses need not be taken apart: sums count modulo
    /// 65,535, and so the upper half of a word counts as the lower one.
    fn head_sum(src: Self, dst: Self, len: u32) -> u64;

    /// The IP and UDP headers: whole words, and what is left of one.
    fn headers(src: Self, dst: Self, len: u32, checksum: u32) -> ([u64; 6], u32);
}

/// The last word of UDP's header: length and checksum.
#[inline(always)]
fn last(len: u32, checksum: u32) -> u32 {
    let udp_len = ((len + 8) as u16).to_be() as u32;
    udp_len | checksum << 16
}

const IPPROTO_UDP: u8 = 17;

impl Family for Endpoint {
    const IP_UDP: u32 = 28;
    const TYPE: u16 = 0x0800u16.to_be();
    const SUMMED: bool = false;
    const LONG: bool = false;
    const REPORT: u32 = program::REPORT;
    const CHALLENGE: u32 = program::CHALLENGE;
    const QUALIFY: u32 = program::QUALIFY;
    const INVITE: u32 = event::INVITE;
    const GUARDED: bool = true;
    const OVER: u32 = 32;

    #[inline(always)]
    fn work() -> Option<*mut Work<Self>> {
        SCRATCH.get_ptr_mut(0)
    }

    #[inline(always)]
    fn other(ctx: &XdpContext, kind: u16) {
        if kind == Endpoint6::TYPE {
            programs::six(ctx);
        }
    }

    #[inline(always)]
    fn read(
        ip: usize,
        end: usize,
        frame: &mut Frame,
        packet: &mut Packet<Self>,
    ) -> Result<(), Reason> {
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
        frame.len = udp_len.wrapping_sub(8);
        // Longer is padding; shorter, or in fragments of a larger buffer, is not read.
        let ip_end = ip + asm::mask::<0xffff>(ip_len) as usize;
        if udp_len < 8 || udp_len + 20 != ip_len || ip_end > end {
            return Err(Reason::BadLength);
        }
        Ok(())
    }

    #[inline(always)]
    fn in_event(packet: Packet<Self>) -> Packet<Endpoint> {
        packet
    }

    #[inline(always)]
    fn mix(self) -> u32 {
        self.addr ^ self.addr >> 15 ^ (self.port as u32) << 3
    }

    #[inline(always)]
    fn known(key: u32) -> Option<*mut Known<Self>> {
        KNOWN.get_ptr_mut(key)
    }

    #[inline(always)]
    fn hop(key: u32) -> Option<*mut Hop<Self>> {
        HOPS.get_ptr_mut(key)
    }

    #[inline(always)]
    fn last_octets(self) -> u32 {
        self.addr >> 24 ^ self.addr >> 14
    }

    #[inline(always)]
    fn is_routed(self) -> bool {
        true
    }

    #[inline(always)]
    fn ask(self, params: &mut bpf_fib_lookup) {
        const AF_INET: u8 = 2;
        params.family = AF_INET;
        params.__bindgen_anon_4.ipv4_dst = self.addr;
    }

    #[inline(always)]
    fn local(self) -> Option<&'static Local<Self>> {
        // SAFETY: the daemon does not touch an entry that is right.
        unsafe { LOCALS.get(self) }
    }

    #[inline(always)]
    fn slot(self) -> Option<u32> {
        // SAFETY: copied at once.
        unsafe { PBX_BY_ADDR.get(self) }.copied()
    }

    #[inline(always)]
    fn pbx(slot: u32) -> Option<Self::Pbx> {
        PBXS.get(slot).copied()
    }

    #[inline(always)]
    fn turns() -> Option<(&'static Schedule, *mut u64)> {
        Some((SCHEDULE.get(0)?, TURN.get_ptr_mut(0)?))
    }

    #[inline(always)]
    fn source(self) -> u32 {
        SOURCES.get(&Key::new(32, self.addr)).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn has_registered(self) -> bool {
        // SAFETY: only whether it is there.
        unsafe { REGISTERED.get(self.addr) }.is_some()
    }

    #[inline(always)]
    fn registered_until(self) -> Option<u64> {
        // SAFETY: an aligned word, copied at once.
        unsafe { ENDPOINTS.get(self) }.copied()
    }

    #[inline(always)]
    fn gate_name(self) -> u32 {
        self.addr
    }

    #[inline(always)]
    fn debts(name: u32) -> Option<*mut DebtBucket> {
        DEBTS.get_ptr_mut(gate::bucket(name, DEBT_BUCKETS - 1))
    }

    #[inline(always)]
    fn head_sum(src: Self, dst: Self, len: u32) -> u64 {
        src.addr as u64 + dst.addr as u64 + rest_of_head(src.port, dst.port, len)
    }

    #[inline(always)]
    fn headers(src: Self, dst: Self, len: u32, checksum: u32) -> ([u64; 6], u32) {
        let ip_len = ((len + Self::IP_UDP) as u16).to_be() as u64;
        // Version 4, five words; don't fragment; 64 hops; UDP.
        const FIRST: u64 = 0x0045;
        const FRAGMENT: u64 = 0x0040;
        const TTL_PROTOCOL: u64 = 0x1140;
        let sum = FIRST + ip_len + FRAGMENT + TTL_PROTOCOL + src.addr as u64 + dst.addr as u64;
        let ip_checksum = !fold(sum) as u64 & 0xffff;
        let words = [
            FIRST | ip_len << 16 | FRAGMENT << 48,
            TTL_PROTOCOL | ip_checksum << 16 | (src.addr as u64) << 32,
            dst.addr as u64 | (src.port as u64) << 32 | (dst.port as u64) << 48,
            0,
            0,
            0,
        ];
        (words, last(len, checksum))
    }
}

impl Family for Endpoint6 {
    const IP_UDP: u32 = 48;
    const TYPE: u16 = 0x86ddu16.to_be();
    const SUMMED: bool = true;
    const LONG: bool = true;
    const REPORT: u32 = program::SIX_REPORT;
    const CHALLENGE: u32 = program::SIX_CHALLENGE;
    const QUALIFY: u32 = program::SIX_QUALIFY;
    const INVITE: u32 = event::INVITE_SIX;
    const GUARDED: bool = false;
    const OVER: u32 = 64;

    #[inline(always)]
    fn work() -> Option<*mut Work<Self>> {
        SCRATCH6.get_ptr_mut(0)
    }

    #[inline(always)]
    fn other(_ctx: &XdpContext, _kind: u16) {}

    #[inline(always)]
    fn read(
        ip: usize,
        end: usize,
        frame: &mut Frame,
        packet: &mut Packet<Self>,
    ) -> Result<(), Reason> {
        if byte(ip) >> 4 != 6 {
            return Err(Reason::NotIpv4);
        }
        match byte(ip + 6) {
            IPPROTO_UDP => {}
            FRAGMENT_HEADER => return Err(Reason::Fragment),
            // Hop-by-hop options, routing, ESP, AH, destination options, mobility (RFC 7045 4).
            0 | 43 | 50 | 51 | 60 | 135 => return Err(Reason::IpOptions),
            _ => return Err(Reason::NotUdp),
        }
        let long = |at: usize| {
            // SAFETY: the caller has compared with the end of the packet.
            unsafe { asm::load::<0>(at as *const u8) }
        };
        let at = |addr: usize, port: usize| Endpoint6 {
            addr: [long(ip + addr), long(ip + addr + 8)],
            port: half(ip + port),
            pad: [0; 3],
        };
        packet.src = at(8, 40);
        packet.dst = at(24, 42);
        if !packet.src.is_routed() {
            return Err(Reason::NotOurs);
        }
        frame.checksum = half(ip + 46) as u32;
        let payload = u16::from_be(half(ip + 4)) as u32;
        let udp_len = u16::from_be(half(ip + 44)) as u32;
        frame.len = udp_len.wrapping_sub(8);
        let ip_end = ip + 40 + asm::mask::<0xffff>(payload) as usize;
        if udp_len < 8 || udp_len != payload || ip_end > end {
            return Err(Reason::BadLength);
        }
        Ok(())
    }

    #[inline(always)]
    fn in_event(_packet: Packet<Self>) -> Packet<Endpoint> {
        let none = Endpoint { addr: 0, port: 0, pad: 0 };
        Packet { src: none, dst: none }
    }

    #[inline(always)]
    fn mix(self) -> u32 {
        let long = self.addr[0] ^ self.addr[1];
        let mix = long as u32 ^ (long >> 32) as u32;
        mix ^ mix >> 15 ^ (self.port as u32) << 3
    }

    #[inline(always)]
    fn known(key: u32) -> Option<*mut Known<Self>> {
        KNOWN6.get_ptr_mut(key)
    }

    #[inline(always)]
    fn hop(key: u32) -> Option<*mut Hop<Self>> {
        HOPS6.get_ptr_mut(key)
    }

    #[inline(always)]
    fn last_octets(self) -> u32 {
        let [high, low] = self.addr;
        (low >> 48 ^ low >> 32 ^ low ^ high >> 32) as u32
    }

    #[inline(always)]
    fn is_routed(self) -> bool {
        // One of a link alone is on any link, and a route says which only to who knows it.
        !self.is_link_local() && !self.is_mapped()
    }

    #[inline(always)]
    fn ask(self, params: &mut bpf_fib_lookup) {
        const AF_INET6: u8 = 10;
        params.family = AF_INET6;
        let [high, low] = self.addr;
        let quarters = [high as u32, (high >> 32) as u32, low as u32, (low >> 32) as u32];
        params.__bindgen_anon_4.ipv6_dst = quarters;
    }

    #[inline(always)]
    fn local(self) -> Option<&'static Local<Self>> {
        // SAFETY: the daemon does not touch an entry that is right.
        unsafe { LOCALS6.get(self) }
    }

    #[inline(always)]
    fn slot(self) -> Option<u32> {
        // SAFETY: copied at once.
        unsafe { PBX_BY_ADDR6.get(self) }.copied()
    }

    #[inline(always)]
    fn pbx(slot: u32) -> Option<Self::Pbx> {
        PBXS6.get(slot).copied()
    }

    #[inline(always)]
    fn turns() -> Option<(&'static Schedule, *mut u64)> {
        Some((SCHEDULE6.get(0)?, TURN6.get_ptr_mut(0)?))
    }

    #[inline(always)]
    fn source(self) -> u32 {
        SOURCES6.get(&Key::new(128, self.addr)).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn has_registered(self) -> bool {
        // SAFETY: only whether it is there.
        unsafe { REGISTERED6.get(self.addr[0]) }.is_some()
    }

    #[inline(always)]
    fn registered_until(self) -> Option<u64> {
        // SAFETY: an aligned word, copied at once.
        unsafe { ENDPOINTS6.get(self) }.copied()
    }

    #[inline(always)]
    fn gate_name(self) -> u32 {
        gate::name_of_network(self.network())
    }

    #[inline(always)]
    fn debts(name: u32) -> Option<*mut DebtBucket> {
        DEBTS6.get_ptr_mut(gate::bucket(name, DEBT_BUCKETS - 1))
    }

    #[inline(always)]
    fn head_sum(src: Self, dst: Self, len: u32) -> u64 {
        let of = |at: Self| halves(at.addr[0]) + halves(at.addr[1]);
        of(src) + of(dst) + rest_of_head(src.port, dst.port, len)
    }

    #[inline(always)]
    fn headers(src: Self, dst: Self, len: u32, checksum: u32) -> ([u64; 6], u32) {
        // Version 6, and no class or flow; UDP; 64 hops.
        const FIRST: u64 = 0x60;
        const NEXT_HOPS: u64 = 0x4011;
        let payload = ((len + 8) as u16).to_be() as u64;
        let last = last(len, checksum);
        let words = [
            FIRST | payload << 32 | NEXT_HOPS << 48,
            src.addr[0],
            src.addr[1],
            dst.addr[0],
            dst.addr[1],
            src.port as u64 | (dst.port as u64) << 16 | (last as u64) << 32,
        ];
        (words, last)
    }
}

/// The next header of IPv6 before a fragment.
const FRAGMENT_HEADER: u8 = 44;

/// What both pseudo headers have, and UDP's own: protocol, length, ports.
#[inline(always)]
fn rest_of_head(src: u16, dst: u16, len: u32) -> u64 {
    const PROTOCOL: u64 = 0x1100;
    let udp_len = ((len + 8) as u16).to_be() as u64;
    PROTOCOL + udp_len * 2 + src as u64 + dst as u64
}
