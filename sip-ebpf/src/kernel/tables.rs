//! The tables as [`sip_ebpf::route`] asks for them.

use aya_ebpf::btf_maps::lpm_trie::Key;
use sip_ebpf::calls;
use sip_ebpf::hash::Keys;
use sip_ebpf::route::Tables;
use sip_ebpf::tables::{Config, Endpoint, Pbx, PbxState, SCHEDULE_SLOTS, source};

use super::asm;
use super::maps::{CALLS, HEARTBEAT, KNOWN, PBX_BY_ADDR, PBXS, SCHEDULE, SOURCES, TURN};
use super::scratch::Scratch;

/// How many turns are looked at for an active PBX while the daemon has not yet taken a dead one out
/// of the schedule.
const TRIES: u64 = 4;

/// The maps.
pub(super) struct Kernel<'a> {
    config: &'a Config,
    /// [`Config::generation`] as it was before any table was read: what is read later is never older.
    generation: u32,
    scratch: *mut Scratch,
}

impl<'a> Kernel<'a> {
    #[inline(always)]
    pub(super) fn new(config: &'a Config, scratch: *mut Scratch) -> Self {
        // SAFETY: a field of a map's entry; volatile, or it would be read again behind the tables.
        let generation = unsafe { (&raw const config.generation).read_volatile() };
        Self { config, generation, scratch }
    }

    /// Bits of [`source`] for where a packet comes from.
    #[inline(always)]
    pub(super) fn source(&self, src: Endpoint) -> u32 {
        self.known(src).map_or(0, |known| known.source)
    }

    /// What the tables say of an endpoint. Looked up once for each generation and CPU: a trie costs
    /// as much as a good part of the parsing.
    #[inline(always)]
    fn known(&self, endpoint: Endpoint) -> Option<&Known> {
        let mix = endpoint.addr ^ endpoint.addr >> 15 ^ (endpoint.port as u32) << 3;
        let key = asm::mask::<{ KNOWN_LEN - 1 }>(mix ^ mix >> 20);
        let known = KNOWN.get_ptr_mut(key)?;
        // SAFETY: an entry of this CPU's; the program does not run twice on a CPU.
        let known = unsafe { &mut *known };
        // A fresh entry is of generation zero, which no daemon starts with.
        if known.endpoint != endpoint || known.generation != self.generation {
            // SAFETY: copied at once.
            known.slot = unsafe { PBX_BY_ADDR.get(endpoint) }.map_or(0, |slot| *slot + 1);
            known.source = SOURCES.get(&Key::new(32, endpoint.addr)).copied().unwrap_or(0);
            known.endpoint = endpoint;
            known.generation = self.generation;
        }
        Some(known)
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
        unsafe { (*self.scratch).now() }
    }
}

/// What the tables say of an address and port, as a CPU last read them.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Known {
    endpoint: Endpoint,
    generation: u32,
    /// Slot of the PBX that listens there, plus one; zero: none does.
    slot: u32,
    /// Bits of [`source`] for the address.
    source: u32,
    /// Always zero.
    pad: u32,
}

/// Entries of [`Known`] on a CPU; a power of two.
pub(super) const KNOWN_LEN: u32 = 1024;

impl Tables for Kernel<'_> {
    #[inline(always)]
    fn keys(&self) -> &Keys {
        &self.config.keys
    }

    #[inline(always)]
    fn alive(&self) -> bool {
        HEARTBEAT.get(0).is_some_and(|until| self.now() < *until)
    }

    #[inline(always)]
    fn trusted(&self, src: Endpoint) -> bool {
        self.source(src) & source::TRUSTED != 0
    }

    #[inline(always)]
    fn pbx_at(&self, endpoint: Endpoint) -> Option<u32> {
        self.known(endpoint)?.slot.checked_sub(1)
    }

    #[inline(always)]
    fn pbx(&self, slot: u32) -> Option<Pbx> {
        PBXS.get(slot).copied().filter(|pbx| pbx.state != PbxState::Unused as u8)
    }

    #[inline(always)]
    fn turn(&self) -> Option<u32> {
        let schedule = SCHEDULE.get(0)?;
        let len = schedule.len as u64;
        if len == 0 || len > SCHEDULE_SLOTS as u64 {
            return None;
        }
        let turn = TURN.get_ptr_mut(0)?;
        // SAFETY: an aligned word that all CPUs count up together.
        let turn = unsafe { asm::fetch_add(turn, 1) };
        for i in 0..TRIES {
            let at = asm::mask::<{ SCHEDULE_SLOTS as u32 - 1 }>(((turn + i) % len) as u32);
            // SAFETY: masked to the table's length.
            let slot = unsafe { *schedule.slots.as_ptr().add(at as usize) } as u32;
            if PBXS.get(slot).is_some_and(|pbx| pbx.state == PbxState::Active as u8) {
                return Some(slot);
            }
        }
        None
    }

    #[inline(always)]
    fn call(&self, hash: u64) -> Option<u32> {
        let bucket = CALLS.get(calls::bucket(hash, self.config.calls_mask))?;
        calls::find(&bucket.words, hash, self.now())
    }

    #[inline(always)]
    fn remember(&self, hash: u64, slot: u32) {
        if let Some(bucket) = CALLS.get_ptr_mut(calls::bucket(hash, self.config.calls_mask)) {
            // SAFETY: words of 64 bits are written whole; another CPU's write at the same time may
            // win, and then that call is the one remembered.
            calls::put(unsafe { &mut (*bucket).words }, hash, self.now(), slot);
        }
    }
}
