//! The per-CPU memory that a packet is worked on in: its text, what was found, what goes out.
//!
//! The verifier does not track what stands in a map, so values read from here are unknown to it.
//! That is a feature: its states do not multiply.

use aya_ebpf::helpers::generated::{bpf_check_mtu, bpf_jiffies64, bpf_ktime_get_coarse_ns};
use aya_ebpf::programs::XdpContext;
use sip_ebpf::address::{Address, Words};
use sip_ebpf::challenge::Domain;
use sip_ebpf::edit::{Draft, FRONT, FRONT_SLACK, Front, Sink};
use sip_ebpf::route::{Packet, Plan};
use sip_ebpf::scan::Index;
use sip_ebpf::tables::{Config, Local};
use sip_ebpf::text::SLACK;

use super::asm;
use super::family::Family;
use super::frame::Frame;
use super::send;
use super::tables::Known;

/// Longest payload that is read; a power of two, for reads are masked.
pub(super) const TEXT: u32 = 2048;

/// Room for the headers of all layers before the front: Ethernet, two tags, IPv6, UDP are 70 bytes.
pub(super) const HEAD: u32 = 128;

/// One CPU's memory for packets of one family.
#[repr(C)]
pub(super) struct Work<A: Address> {
    /// What has no addresses in it.
    pub(super) scratch: Scratch,
    /// Which of our addresses `local` is, in which generation of the tables.
    local_of: A,
    local_generation: u64,
    /// A copy of its entry in `LOCALS`.
    pub(super) local: Local<A>,
    /// Of the lines in it.
    pub(super) lines: Lines,
    pub(super) plan: Plan<A>,
    pub(super) packet: Packet<A>,
    /// A key that is looked up.
    pub(super) domain: Domain,
}

/// What of it is the same for both families, and stands first.
#[repr(C)]
pub(super) struct Scratch {
    /// Always zero, and the verifier does not know: see [`Text::fresh`].
    pub(super) zero: u64,
    /// Here, behind the first word, tests read what the scan found.
    pub(super) index: Index,
    /// [`Scratch::now`] was asked for in this tick.
    tick: u64,
    /// CLOCK_MONOTONIC of that tick.
    now: u64,
    /// [`Scratch::mtu`] was asked for in this tick, for this port, and was that.
    mtu_tick: u64,
    mtu_port: u32,
    mtu: u32,
    pub(super) frame: Frame,
    pub(super) front: Front,
    /// How much of the text has been read from the packet.
    pub(super) loaded: u32,
    /// Why the first program would pass the packet up: a [`Reason`](sip_ebpf::Reason), for the next one.
    pub(super) reason: u32,
    /// What the first program has done with it, for the one that tells of it.
    pub(super) action: u32,
    /// What is told: a kind of [`sip_ebpf::tables::event`].
    pub(super) told: u32,
    pub(super) text: [u8; (TEXT + SLACK) as usize],
    /// What goes out: the headers end at [`HEAD`], the front starts there.
    pub(super) out: [u8; (HEAD + FRONT + FRONT_SLACK) as usize],
}

/// What the lines that are put in add to a checksum.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Lines {
    /// The sum of both, Record-Route first, with zeros for all digits.
    pub(super) sum: u64,
    /// How far a sum of the cookie's digits is shifted: by eight where they stand at an odd place.
    pub(super) cookie_shift: u32,
    /// The same for those of the branch.
    pub(super) branch_shift: u32,
    /// The sum of the Via alone, with zeros for its digits.
    pub(super) via: u64,
    /// How far the sum of its digits is shifted then.
    pub(super) cut_shift: u32,
    /// Always zero.
    pad: u32,
}

/// Where the text stands in the memory: an offset that loads and stores carry, so that one register is the base
/// of all.
pub(super) const TEXT_AT: i16 = core::mem::offset_of!(Scratch, text) as i16;

/// Where what goes out stands.
const OUT_AT: i16 = core::mem::offset_of!(Scratch, out) as i16;

/// Where the front stands, of that.
const FRONT_AT: i16 = OUT_AT + HEAD as i16;

impl Scratch {
    /// The start of the text.
    ///
    /// # Safety
    /// `scratch` must be an entry of `SCRATCH`.
    #[inline(always)]
    pub(super) unsafe fn text(scratch: *mut Self) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { (&raw mut (*scratch).text).cast() }
    }

    /// CLOCK_MONOTONIC as of the last tick. The coarse clock moves with the tick, so asking once in
    /// each gives what asking always would; the tick itself costs a load.
    #[inline(always)]
    pub(super) fn now(&mut self) -> u64 {
        // SAFETY: no arguments.
        let tick = unsafe { bpf_jiffies64() };
        if tick != self.tick {
            // SAFETY: no arguments.
            self.now = unsafe { bpf_ktime_get_coarse_ns() };
            self.tick = tick;
        }
        self.now
    }

    /// What [`Scratch::now`] said last.
    #[inline(always)]
    pub(super) fn last_now(&self) -> u64 {
        self.now
    }

    /// The MTU of the port that the packet came in by, as of the last tick; zero if the kernel does not tell.
    #[inline(always)]
    pub(super) fn mtu(&mut self, ctx: &XdpContext) -> u32 {
        // SAFETY: no arguments.
        let tick = unsafe { bpf_jiffies64() };
        // SAFETY: the context is the program's.
        let port = unsafe { (*ctx.ctx).ingress_ifindex };
        if tick != self.mtu_tick || port != self.mtu_port {
            // One byte fits always: only the MTU, which the helper writes there, is wanted.
            let mut mtu = 1;
            // SAFETY: a helper that checks what it is given.
            let known = unsafe { bpf_check_mtu(ctx.ctx.cast(), 0, &raw mut mtu, 0, 0) } == 0;
            self.mtu = if known { mtu } else { 0 };
            self.mtu_port = port;
            self.mtu_tick = tick;
        }
        self.mtu
    }

    /// The start of what goes out.
    ///
    /// # Safety
    /// `scratch` must be an entry of `SCRATCH`.
    #[inline(always)]
    pub(super) unsafe fn out(scratch: *mut Self) -> *mut u8 {
        // SAFETY: the caller's promise.
        unsafe { (&raw mut (*scratch).out).cast() }
    }
}

impl<A: Family> Work<A> {
    /// What stands first in it.
    #[inline(always)]
    pub(super) fn scratch(work: *mut Self) -> *mut Scratch {
        work.cast()
    }

    /// Brings the entry of an address of ours into `local`; false if it is not ours.
    #[inline(always)]
    pub(super) fn find_local(&mut self, us: A, config: &Config) -> bool {
        // A generation of zero in the high half would be what a fresh map holds.
        let generation = config.generation as u64 | 1 << 32;
        if self.local_of == us && self.local_generation == generation {
            return true;
        }
        let Some(local) = us.local() else { return false };
        let words = const { size_of::<Local<A>>() / 8 };
        let (from, to) = ((&raw const *local).cast::<u64>(), (&raw mut self.local).cast::<u64>());
        for i in 0..words {
            // SAFETY: so many words are both. Volatile, or the compiler calls a function to copy.
            unsafe { to.add(i).write_volatile(from.add(i).read_volatile()) };
        }
        self.sum_lines();
        self.local_of = us;
        self.local_generation = generation;
        true
    }

    /// Makes `lines` for `local`.
    #[inline(always)]
    fn sum_lines(&mut self) {
        // The digits are '0' there, in words of eight, wherever they stand.
        const DIGITS: u64 = 4 * 0x3030;
        let (record_route, via) = (&mut self.local.record_route, &mut self.local.via);
        let (record_route_room, via_room) = (size_of_val(record_route), size_of_val(via));
        // SAFETY: arrays of words of ours, with zeros behind the lines.
        let (record_route, via) = unsafe {
            let via = send::sum_of((&raw mut *via).cast(), via_room as u32);
            (send::sum_of((&raw mut *record_route).cast(), record_route_room as u32), via)
        };
        let shift = |at: u32| (at & 1) * 8;
        let via_at = self.local.record_route_len;
        let sum = record_route
            + (via << shift(via_at))
            + send::less((A::Cookie::LEN + 2) as u64 * DIGITS);
        self.lines = Lines {
            sum: send::fold(sum) as u64,
            cookie_shift: shift(self.local.cookie_at),
            branch_shift: shift(via_at + self.local.branch_at),
            via: send::fold(via + send::less(2 * DIGITS)) as u64,
            cut_shift: shift(self.local.branch_at),
            pad: 0,
        };
    }
}

/// The front in a [`Scratch`].
pub(super) struct Out {
    scratch: *mut Scratch,
}

impl Out {
    #[inline(always)]
    pub(super) fn new(scratch: *mut Scratch) -> Self {
        Self { scratch }
    }

    /// Puts eight bytes into the headers: `at` counts from the start of `out`, below [`HEAD`].
    #[inline(always)]
    pub(super) fn put_head(&self, at: u32, word: u64) {
        let at = asm::mask::<{ HEAD - 1 }>(at);
        // SAFETY: `at` is below HEAD, and `out` is longer than HEAD and eight bytes.
        unsafe { asm::store::<OUT_AT>(self.scratch.cast::<u8>().add(at as usize), word) };
    }

    /// Two words at `at` of the front.
    #[inline(always)]
    pub(super) fn pair(&self, at: u32) -> [u64; 2] {
        [self.get(at), self.get(at + 8)]
    }

    /// Puts four bytes into the headers.
    #[inline(always)]
    pub(super) fn put_head_half(&self, at: u32, word: u32) {
        let at = asm::mask::<{ HEAD - 1 }>(at);
        // SAFETY: as above.
        unsafe { asm::store_half(Scratch::out(self.scratch).add(at as usize), word) };
    }
}

impl Sink for Out {
    #[inline(always)]
    fn put(&mut self, at: u32, word: u64) {
        let at = asm::mask::<{ FRONT - 1 }>(at);
        // SAFETY: `at` is below FRONT, so eight bytes at HEAD + at are in `out`.
        unsafe { asm::store::<FRONT_AT>(self.scratch.cast::<u8>().add(at as usize), word) };
    }

    #[inline(always)]
    fn put_run<const N: usize>(&mut self, at: u32, word: impl Fn(usize) -> u64) {
        const { assert!(N * 8 <= FRONT_SLACK as usize) };
        let at = asm::mask::<{ FRONT - 1 }>(at);
        // SAFETY: `at` is below FRONT, and what follows is FRONT_SLACK long.
        unsafe {
            let to = self.scratch.cast::<u8>().add(at as usize);
            // As `asm::store_run`.
            for i in (0..N).step_by(4) {
                let to = to.add(8 * i);
                asm::store::<FRONT_AT>(to, word(i));
                if i + 1 < N {
                    asm::store::<{ FRONT_AT + 8 }>(to, word(i + 1));
                }
                if i + 2 < N {
                    asm::store::<{ FRONT_AT + 16 }>(to, word(i + 2));
                }
                if i + 3 < N {
                    asm::store::<{ FRONT_AT + 24 }>(to, word(i + 3));
                }
            }
        }
    }

    #[inline(always)]
    fn fresh(&self, value: u32) -> u32 {
        fresh(self.scratch, value)
    }
}

impl Draft for Out {
    #[inline(always)]
    fn get(&self, at: u32) -> u64 {
        let at = asm::mask::<{ FRONT - 1 }>(at);
        // SAFETY: `at` is below FRONT, so eight bytes at HEAD + at are in `out`.
        unsafe { asm::load::<FRONT_AT>(self.scratch.cast::<u8>().add(at as usize)) }
    }
}

/// The front of a message whose sender is known.
pub(super) struct KnownFront<A: Address> {
    pub(super) out: Out,
    pub(super) from: *mut Known<A>,
}

impl<F: Address> Sink for KnownFront<F> {
    #[inline(always)]
    fn put(&mut self, at: u32, word: u64) {
        self.out.put(at, word);
    }

    #[inline(always)]
    fn put_run<const N: usize>(&mut self, at: u32, word: impl Fn(usize) -> u64) {
        self.out.put_run::<N>(at, word);
    }

    #[inline(always)]
    fn put_received<A: Address>(&mut self, at: u32, _src: A, rport: bool) -> u32 {
        // SAFETY: an entry of this CPU's; the program does not run twice on a CPU.
        unsafe { (*self.from).put_received(&mut self.out, at, rport) }
    }

    #[inline(always)]
    fn fresh(&self, value: u32) -> u32 {
        self.out.fresh(value)
    }
}

/// See [`sip_ebpf::text::Text::fresh`].
#[inline(always)]
pub(super) fn fresh(scratch: *mut Scratch, value: u32) -> u32 {
    // SAFETY: `zero` is in the scratch memory.
    let zero = unsafe { (&raw const (*scratch).zero).read_volatile() };
    value.wrapping_add(zero as u32)
}
