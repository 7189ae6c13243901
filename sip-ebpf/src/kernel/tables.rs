//! The tables as [`sip_ebpf::route`] asks for them.

use sip_ebpf::Reason;
use sip_ebpf::address::{Address, Words};
use sip_ebpf::calls::{self, Call};
use sip_ebpf::edit::{self, Draft, Sink};
use sip_ebpf::gate::{self, Standing};
use sip_ebpf::hash::Keys;
use sip_ebpf::route::Tables;
use sip_ebpf::tables::{Config, PbxState, SCHEDULE_SLOTS, beat, flag, source};

use super::asm;
use super::family::Family;
use super::maps::{CALL_TAGS, CALLS, HEARTBEAT};
use super::scratch::{Out, Work};
use super::send;

/// How many turns are looked at for an active PBX while the daemon has not yet taken a dead one out
/// of the schedule.
const TRIES: u64 = 4;

/// The maps.
pub(super) struct Kernel<'a, A: Family> {
    config: &'a Config,
    /// [`Config::generation`] as it was before any table was read: what is read later is never older.
    generation: u32,
    work: *mut Work<A>,
    /// Who sent the packet.
    from: *mut Known<A>,
}

impl<'a, A: Family> Kernel<'a, A> {
    /// For a packet from `src`.
    #[inline(always)]
    pub(super) fn new(config: &'a Config, work: *mut Work<A>, src: A) -> Option<Self> {
        // SAFETY: a field of a map's entry; volatile, or it would be read again behind the tables.
        let generation = unsafe { (&raw const config.generation).read_volatile() };
        Some(Self { config, generation, work, from: known(src, generation)? })
    }

    /// What is known of who sent the packet.
    #[inline(always)]
    pub(super) fn from(&self) -> *mut Known<A> {
        self.from
    }

    /// Bits of [`source`] for where the packet comes from.
    #[inline(always)]
    pub(super) fn source(&self) -> u32 {
        // SAFETY: an entry of this CPU's; the program does not run twice on a CPU.
        unsafe { (*self.from).source }
    }

    /// Whether a datagram of the sender is let in; `text` are its first bytes.
    #[inline(always)]
    pub(super) fn admit(&self, text: u64) -> Result<(), Reason> {
        // SAFETY: as above.
        let standing = unsafe { (*self.from).standing };
        if standing == Standing::Exempt as u32 || self.config.flags & flag::GATE == 0 {
            return Ok(());
        }
        match take(self.config, self.from, self.now(), text) {
            0 => Ok(()),
            _ if standing == Standing::Registered as u32 => Err(Reason::RateRegistered),
            _ => Err(Reason::RateStranger),
        }
    }

    /// Whether somebody wants a copy of INVITEs that are steered.
    #[inline(always)]
    pub(super) fn copies(&self) -> bool {
        self.config.flags & flag::RECORD != 0 || self.guarded()
    }

    /// Whether somebody is registered from the very address and port that the packet comes from. Asked anew each time: it
    /// is rarely asked, and changes often.
    #[inline(always)]
    fn is_registered(&self) -> bool {
        // SAFETY: an entry of this CPU's; the program does not run twice on a CPU.
        let endpoint = unsafe { (*self.from).endpoint };
        endpoint.registered_until().is_some_and(|until| self.now() < until)
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: the entry of this CPU; the program does not run twice on a CPU.
        unsafe { (*self.work).scratch.now() }
    }
}

/// What the tables say of an endpoint. Looked up once for each generation and CPU: a trie costs
/// as much as a good part of the parsing.
#[inline(always)]
fn known<A: Family>(endpoint: A, generation: u32) -> Option<*mut Known<A>> {
    let mix = endpoint.mix();
    let key = asm::mask::<{ KNOWN_LEN - 1 }>(mix ^ mix >> 20);
    let entry = A::known(key)?;
    // SAFETY: an entry of this CPU's; the program does not run twice on a CPU.
    let known = unsafe { &mut *entry };
    // A fresh entry is of generation zero, which no daemon starts with.
    if known.endpoint != endpoint || known.generation != generation {
        known.slot = endpoint.slot().map_or(0, |slot| slot + 1);
        known.source = endpoint.source();
        known.standing = standing(known, endpoint) as u32;
        known.endpoint = endpoint;
        known.generation = generation;
        known.received_len = 0;
        known.address_digits = endpoint.digits();
    }
    Some(entry)
}

/// Lets a datagram in: zero, else it is dropped. A call, unlike most here: its code would push others out of the reach of
/// a jump, and the verifier sees no more of it than a number.
#[inline(never)]
fn take<A: Family>(config: &Config, from: *const Known<A>, now: u64, text: u64) -> u32 {
    // SAFETY: an entry of this CPU's; the program does not run twice on a CPU.
    let (source, standing) = unsafe { ((*from).endpoint.gate_name(), (*from).standing) };
    let Some(bucket) = A::debts(source) else { return 0 };
    let registered = standing == Standing::Registered as u32;
    // SAFETY: words of 64 bits are written whole; another CPU's write at the same time may win, and then one datagram was
    // for nothing.
    let words = unsafe { &mut (*bucket).words };
    gate::take(words, source, now, &config.gate, registered, text).is_err() as u32
}

/// Who sends from an address, of which the rest is known.
#[inline(always)]
fn standing<A: Family>(known: &Known<A>, endpoint: A) -> Standing {
    if known.slot != 0 || known.source & (source::TRUSTED | source::EXEMPT) != 0 {
        Standing::Exempt
    } else if endpoint.has_registered() {
        Standing::Registered
    } else {
        Standing::Stranger
    }
}

/// What the tables say of an address and port, as a CPU last read them.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct Known<A: Address> {
    endpoint: A,
    generation: u32,
    /// Slot of the PBX that listens there, plus one; zero: none does.
    slot: u32,
    /// Bits of [`source`] for the address.
    source: u32,
    /// How long `port` is.
    port_len: u32,
    /// How long `received` is; zero while neither has been made.
    received_len: u32,
    /// A [`Standing`].
    standing: u32,
    /// `=port`, for an `rport`.
    port: u64,
    /// `;received=address`
    received: A::Received,
    /// The sum of `received`.
    received_sum: u64,
    /// Of a cookie for this endpoint.
    address_digits: A::Digits,
}

impl<A: Address> Known<A> {
    /// Makes the texts, once, in `out` where the front will be.
    #[inline(always)]
    pub(super) fn make_texts(&mut self, out: &mut Out) {
        if self.received_len != 0 {
            return;
        }
        self.port_len = edit::port(self.endpoint, out, 0);
        self.port = out.get(0);
        self.received_len = edit::received(self.endpoint, false, out, 0);
        // It is longer than a word, and zeros add nothing to the sum.
        for i in 0..A::Received::LEN - 1 {
            out.put(self.received_len + 8 * i as u32, 0);
        }
        self.received_sum = 0;
        for i in 0..A::Received::LEN {
            let word = out.get(8 * i as u32);
            self.received.set(i, word);
            self.received_sum += send::halves(word);
        }
    }

    /// The sum of the texts, as if they stood at an even place; 48 bits at most.
    #[inline(always)]
    pub(super) fn sum(&self, rport: bool) -> u64 {
        if rport {
            send::halves(self.port) + (self.received_sum << ((self.port_len & 1) * 8))
        } else {
            self.received_sum
        }
    }

    /// How long both texts are.
    #[inline(always)]
    pub(super) fn texts_len(&self) -> u32 {
        self.port_len + self.received_len
    }

    /// Puts the texts into `out`, at `at`; says where they ended.
    #[inline(always)]
    pub(super) fn put_received(&self, out: &mut impl Sink, at: u32, rport: bool) -> u32 {
        let mut at = at;
        if rport {
            out.put(at, self.port);
            at += self.port_len;
        }
        self.received.put(out, at);
        at + self.received_len
    }
}

/// Entries of [`Known`] on a CPU; a power of two.
pub(super) const KNOWN_LEN: u32 = 1024;

impl<A: Family> Tables<A> for Kernel<'_, A> {
    #[inline(always)]
    fn keys(&self) -> &Keys {
        &self.config.keys
    }

    #[inline(always)]
    fn alive(&self) -> bool {
        HEARTBEAT.get(beat::VOUCHED).is_some_and(|until| self.now() < *until)
    }

    #[inline(always)]
    fn trusted(&self, _src: A) -> bool {
        // Whoever is trusted is not looked up, and of others only those whose network may have some.
        self.source() & source::TRUSTED != 0
            || (self.source() & source::REGISTERED != 0 && self.is_registered())
    }

    #[inline(always)]
    fn address_digits(&self, _src: A) -> A::Digits {
        // SAFETY: an entry of this CPU's; the program does not run twice on a CPU.
        unsafe { (*self.from).address_digits }
    }

    #[inline(always)]
    fn pbx_at(&self, endpoint: A) -> Option<u32> {
        // SAFETY: an entry of this CPU's; the program does not run twice on a CPU.
        let from = unsafe { &*self.from };
        if endpoint == from.endpoint {
            return from.slot.checked_sub(1);
        }
        // SAFETY: as above.
        unsafe { (*known(endpoint, self.generation)?).slot.checked_sub(1) }
    }

    #[inline(always)]
    fn pbx(&self, slot: u32) -> Option<A::Pbx> {
        A::pbx(slot).filter(|pbx| A::of_pbx(pbx).1 != PbxState::Unused as u8)
    }

    #[inline(always)]
    fn turn(&self) -> Option<u32> {
        // Whose daemon has been gone for long no longer knows which PBXs live.
        let until = *HEARTBEAT.get(beat::OUTLIVED)?;
        if until != 0 && until <= self.now() {
            return None;
        }
        let (schedule, turn) = A::turns()?;
        let len = schedule.len as u64;
        if len == 0 || len > SCHEDULE_SLOTS as u64 {
            return None;
        }
        // SAFETY: an aligned word that all CPUs count up together.
        let turn = unsafe { asm::fetch_add(turn, 1) };
        for i in 0..TRIES {
            let at = asm::mask::<{ SCHEDULE_SLOTS as u32 - 1 }>(((turn + i) % len) as u32);
            // SAFETY: masked to the table's length.
            let slot = unsafe { *schedule.slots.as_ptr().add(at as usize) } as u32;
            if A::pbx(slot).is_some_and(|pbx| A::of_pbx(&pbx).1 == PbxState::Active as u8) {
                return Some(slot);
            }
        }
        None
    }

    #[inline(always)]
    fn call(&self, hash: u64) -> Option<Call> {
        let at = calls::bucket(hash, self.config.calls_mask);
        if !calls::may_have(*CALL_TAGS.get(at)?, hash) {
            return None;
        }
        calls::find(&CALLS.get(at)?.words, hash, self.now())
    }

    #[inline(always)]
    fn remember(&self, hash: u64, slot: u32) {
        let at = calls::bucket(hash, self.config.calls_mask);
        if let (Some(tags), Some(bucket)) = (CALL_TAGS.get_ptr_mut(at), CALLS.get_ptr_mut(at)) {
            // SAFETY: words of 64 bits are written whole; another CPU's write at the same time may
            // win, and then that call is the one remembered.
            let (tags, words) = unsafe { (&mut *tags, &mut (*bucket).words) };
            calls::put_tagged(tags, words, hash, self.now(), slot);
        }
    }

    #[inline(always)]
    fn note(&self, hash: u64, bits: u32) -> Option<Call> {
        let bucket = CALLS.get_ptr_mut(calls::bucket(hash, self.config.calls_mask))?;
        // SAFETY: an entry of the map.
        let words = unsafe { &mut (*bucket).words };
        let (at, call, add) = calls::note(words, hash, self.now(), bits)?;
        if add != 0 {
            // SAFETY: the number of one of the words.
            unsafe { asm::atomic_or(words.as_mut_ptr().add(at as usize), add) };
        }
        Some(call)
    }

    #[inline(always)]
    fn guarded(&self) -> bool {
        A::GUARDED && self.config.flags & flag::SHADOW != 0 && self.alive()
    }

    #[inline(always)]
    fn noted(&self) -> bool {
        let guarded = if A::GUARDED { flag::SHADOW } else { 0 };
        self.config.flags & (guarded | flag::RECORD) != 0
    }
}
