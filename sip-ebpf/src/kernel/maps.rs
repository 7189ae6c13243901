//! The tables as the program sees them; [`sip_ebpf::tables`] tells what is in them.

use aya_ebpf::Global;
use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC};
use aya_ebpf::btf_maps::{Array, HashMap, LpmTrie, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use sip_ebpf::reason::REASONS;
use sip_ebpf::tables::{
    CallBucket, Config, DEBT_BUCKETS, DEFAULT_CALL_BUCKETS, DebtBucket, EVENTS_SIZE, Endpoint,
    Endpoint6, Event, Local, MAX_ENDPOINTS, MAX_LOCALS, MAX_OPEN, MAX_PBX, MAX_REGISTERED,
    MAX_SOURCES, MAX_VLANS, OPEN_LEN, Pbx, Pbx6, Schedule, VlanPort, event,
};

use super::hop::{HOPS_LEN, Hop};
use super::scratch::Work;
use super::tables::{KNOWN_LEN, Known};

#[btf_map]
pub(super) static CONFIG: Array<Config, 1> = Array::new();

#[btf_map]
pub(super) static HEARTBEAT: Array<u64, 2> = Array::new();

#[btf_map]
pub(super) static LOCALS: HashMap<Endpoint, Local, { MAX_LOCALS as usize }> = HashMap::new();

#[btf_map]
pub(super) static SOURCES: LpmTrie<u32, u32, { MAX_SOURCES as usize }> = LpmTrie::new();

#[btf_map]
pub(super) static REGISTERED: HashMap<u32, u32, { MAX_REGISTERED as usize }> = HashMap::new();

#[btf_map]
pub(super) static ENDPOINTS: HashMap<Endpoint, u64, { MAX_ENDPOINTS as usize }> = HashMap::new();

#[btf_map]
pub(super) static DEBTS: Array<DebtBucket, { DEBT_BUCKETS as usize }> = Array::new();

#[btf_map]
pub(super) static PBXS: Array<Pbx, { MAX_PBX as usize }> = Array::new();

#[btf_map]
pub(super) static PBX_BY_ADDR: HashMap<Endpoint, u32, { MAX_PBX as usize }> = HashMap::new();

#[btf_map]
pub(super) static SCHEDULE: Array<Schedule, 1> = Array::new();

#[btf_map]
pub(super) static TURN: Array<u64, 1> = Array::new();

#[btf_map]
pub(super) static CALLS: Array<
    CallBucket,
    { DEFAULT_CALL_BUCKETS as usize },
    { BPF_F_MMAPABLE as usize },
> = Array::new();

#[btf_map]
pub(super) static CALL_TAGS: Array<u64, { DEFAULT_CALL_BUCKETS as usize }> = Array::new();

#[btf_map]
pub(super) static EVENTS: RingBuf<Event, EVENTS_SIZE> = RingBuf::new();

#[btf_map]
pub(super) static EVENT_COUNTS: PerCpuArray<u64, { event::COUNTS as usize }> = PerCpuArray::new();

/// Never looked at here: a place for the daemon that lives as long as the calls do.
#[btf_map]
pub(super) static OPEN: HashMap<
    u64,
    [u8; OPEN_LEN],
    { MAX_OPEN as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

#[btf_map]
pub(super) static VLANS: HashMap<u32, VlanPort, { MAX_VLANS as usize }> = HashMap::new();

#[btf_map]
pub(super) static COUNTERS: PerCpuArray<u64, { REASONS as usize }> = PerCpuArray::new();

#[btf_map]
pub(super) static STEERED: PerCpuArray<u64, { MAX_PBX as usize }> = PerCpuArray::new();

#[btf_map]
pub(super) static SCRATCH: PerCpuArray<Work<Endpoint>, 1> = PerCpuArray::new();

#[btf_map]
pub(super) static KNOWN: PerCpuArray<Known<Endpoint>, { KNOWN_LEN as usize }> = PerCpuArray::new();

#[btf_map]
pub(super) static HOPS: PerCpuArray<Hop<Endpoint>, { HOPS_LEN as usize }> = PerCpuArray::new();

// The same for IPv6.

#[btf_map]
pub(super) static LOCALS6: HashMap<Endpoint6, Local<Endpoint6>, { MAX_LOCALS as usize }> =
    HashMap::new();

#[btf_map]
pub(super) static SOURCES6: LpmTrie<[u64; 2], u32, { MAX_SOURCES as usize }> = LpmTrie::new();

#[btf_map]
pub(super) static REGISTERED6: HashMap<
    u64,
    u32,
    { MAX_REGISTERED as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

#[btf_map]
pub(super) static ENDPOINTS6: HashMap<
    Endpoint6,
    u64,
    { MAX_ENDPOINTS as usize },
    { BPF_F_NO_PREALLOC as usize },
> = HashMap::new();

#[btf_map]
pub(super) static DEBTS6: Array<DebtBucket, { DEBT_BUCKETS as usize }> = Array::new();

#[btf_map]
pub(super) static PBXS6: Array<Pbx6, { MAX_PBX as usize }> = Array::new();

#[btf_map]
pub(super) static PBX_BY_ADDR6: HashMap<Endpoint6, u32, { MAX_PBX as usize }> = HashMap::new();

#[btf_map]
pub(super) static SCHEDULE6: Array<Schedule, 1> = Array::new();

#[btf_map]
pub(super) static TURN6: Array<u64, 1> = Array::new();

#[btf_map]
pub(super) static SCRATCH6: PerCpuArray<Work<Endpoint6>, 1> = PerCpuArray::new();

#[btf_map]
pub(super) static KNOWN6: PerCpuArray<Known<Endpoint6>, { KNOWN_LEN as usize }> =
    PerCpuArray::new();

#[btf_map]
pub(super) static HOPS6: PerCpuArray<Hop<Endpoint6>, { HOPS_LEN as usize }> = PerCpuArray::new();

/// Whether to log why packets go up: set before the program is loaded, so that the verifier removes
/// the code when it is off.
#[unsafe(no_mangle)]
pub(super) static LOG: Global<u8> = Global::new(0);
