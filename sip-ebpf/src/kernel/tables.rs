//! The tables as [`sip_ebpf::route`] asks for them.

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::generated::bpf_ktime_get_coarse_ns;
use sip_ebpf::calls;
use sip_ebpf::route::Tables;
use sip_ebpf::tables::{Config, Endpoint, Pbx, PbxState, SCHEDULE_SLOTS, source};

use super::asm;
use super::maps::{CALLS, HEARTBEAT, PBX_BY_ADDR, PBXS, SCHEDULE, SOURCES, TURN};

/// How many turns are looked at for an active PBX while the daemon has not yet taken a dead one out
/// of the schedule.
const TRIES: u64 = 4;

/// The maps.
pub(super) struct Kernel<'a> {
    config: &'a Config,
}

impl<'a> Kernel<'a> {
    #[inline(always)]
    pub(super) fn new(config: &'a Config) -> Self {
        Self { config }
    }

    /// Bits of [`source`] for an address (network order in memory).
    #[inline(always)]
    pub(super) fn source(&self, addr: u32) -> u32 {
        // SAFETY: copied at once.
        SOURCES.get(&Key::new(32, addr)).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: no arguments.
        unsafe { bpf_ktime_get_coarse_ns() }
    }
}

impl Tables for Kernel<'_> {
    #[inline(always)]
    fn key(&self) -> [u64; 2] {
        self.config.key
    }

    #[inline(always)]
    fn alive(&self) -> bool {
        HEARTBEAT.get(0).is_some_and(|until| self.now() < *until)
    }

    #[inline(always)]
    fn trusted(&self, addr: u32) -> bool {
        self.source(addr) & source::TRUSTED != 0
    }

    #[inline(always)]
    fn pbx_at(&self, endpoint: Endpoint) -> Option<u32> {
        // SAFETY: copied at once.
        unsafe { PBX_BY_ADDR.get(endpoint) }.copied()
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
