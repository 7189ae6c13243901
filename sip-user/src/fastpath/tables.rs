//! The kernel's tables, written as [`sip_ebpf::tables`] says.

use std::collections::HashSet;
use std::hash::Hash;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use aya::{Ebpf, Pod};
use ipnet::IpNet;
use sip_ebpf::gate;
use sip_ebpf::hash::Keys;
use sip_ebpf::reason::REASONS;
use sip_ebpf::tables::{
    CallBucket, Config, DEBT_BUCKETS, DebtBucket, Endpoint, Endpoint6, LAYOUT, Local, MAX_PBX,
    MAX_SOURCES, MAX_VLANS, Pbx, Pbx6, PbxState, Schedule, VlanPort, beat, event,
};

use super::events::Calls;
use super::{CallBuckets, EventCounts, Events};
use crate::core::registered::Source;
use crate::core::view::{endpoint4, endpoint6};

/// The maps that outlive a daemon when they are pinned.
pub const KEPT: [&str; 28] = [
    "CONFIG",
    "HEARTBEAT",
    "LOCALS",
    "SOURCES",
    "REGISTERED",
    "ENDPOINTS",
    "DEBTS",
    "PBXS",
    "PBX_BY_ADDR",
    "SCHEDULE",
    "TURN",
    "CALLS",
    "CALL_TAGS",
    "VLANS",
    "COUNTERS",
    "STEERED",
    "EVENT_COUNTS",
    "EVENTS",
    "OPEN",
    "LOCALS6",
    "SOURCES6",
    "REGISTERED6",
    "ENDPOINTS6",
    "DEBTS6",
    "PBXS6",
    "PBX_BY_ADDR6",
    "SCHEDULE6",
    "TURN6",
];

/// Those that outlive a daemon too, but are made anew by the next one: its programs work in memory of their own.
pub const HELD: [&str; 1] = ["PROGRAMS"];

/// The tables of one loaded object.
pub struct Tables {
    /// What `CONFIG` is to hold; `layout` is zero until it is told.
    current: Config,
    config: Array<MapData, Config>,
    heartbeat: Array<MapData, u64>,
    /// How long new calls are placed after the last heartbeat; zero is for ever.
    outlive: Duration,
    locals: HashMap<MapData, Endpoint, Local>,
    sources: LpmTrie<MapData, u32, u32>,
    registered: HashMap<MapData, u32, u32>,
    endpoints: HashMap<MapData, Endpoint, u64>,
    debts: Array<MapData, DebtBucket>,
    pbxs: Array<MapData, Pbx>,
    by_addr: HashMap<MapData, Endpoint, u32>,
    schedule: Array<MapData, Schedule>,
    calls: Array<MapData, CallBucket>,
    /// The same table, for all.
    shared_calls: Arc<Calls>,
    vlans: HashMap<MapData, u32, VlanPort>,
    counters: PerCpuArray<MapData, u64>,
    steered: PerCpuArray<MapData, u64>,
    event_counts: PerCpuArray<MapData, u64>,
    events: Option<Events>,
    /// Slots that were not written yet: what stands there is from an earlier daemon.
    stale: HashSet<u32>,
    six: Six,
}

/// The tables of IPv6.
struct Six {
    locals: HashMap<MapData, Endpoint6, Local<Endpoint6>>,
    sources: LpmTrie<MapData, [u64; 2], u32>,
    registered: HashMap<MapData, u64, u32>,
    endpoints: HashMap<MapData, Endpoint6, u64>,
    debts: Array<MapData, DebtBucket>,
    pbxs: Array<MapData, Pbx6>,
    by_addr: HashMap<MapData, Endpoint6, u32>,
    schedule: Array<MapData, Schedule>,
    /// As [`Tables::stale`].
    stale: HashSet<u32>,
}

impl Six {
    fn new(ebpf: &mut Ebpf) -> Result<Self> {
        Ok(Self {
            locals: take(ebpf, "LOCALS6")?,
            sources: take(ebpf, "SOURCES6")?,
            registered: take(ebpf, "REGISTERED6")?,
            endpoints: take(ebpf, "ENDPOINTS6")?,
            debts: take(ebpf, "DEBTS6")?,
            pbxs: take(ebpf, "PBXS6")?,
            by_addr: take(ebpf, "PBX_BY_ADDR6")?,
            schedule: take(ebpf, "SCHEDULE6")?,
            stale: (0..MAX_PBX).collect(),
        })
    }
}

impl Tables {
    /// Takes the tables out of `ebpf`; its programs keep using them.
    ///
    /// # Errors
    /// When the object has no such map, or one of another size: it is not of this source.
    pub fn new(ebpf: &mut Ebpf, key: [u64; 2], call_buckets: u32) -> Result<Self> {
        let config: Array<MapData, Config> = take(ebpf, "CONFIG")?;
        // CPUs may still know what an earlier daemon's tables said.
        let generation = config.get(&0, 0).context("cannot read CONFIG")?.generation;
        let shared_calls = Arc::new(Calls::of(ebpf, call_buckets)?);
        let current = Config {
            generation: after(generation),
            calls_mask: call_buckets - 1,
            keys: Keys::new(key),
            ..Config::default()
        };
        Ok(Self {
            current,
            config,
            heartbeat: take(ebpf, "HEARTBEAT")?,
            outlive: Duration::ZERO,
            locals: take(ebpf, "LOCALS")?,
            sources: take(ebpf, "SOURCES")?,
            registered: take(ebpf, "REGISTERED")?,
            endpoints: take(ebpf, "ENDPOINTS")?,
            debts: take(ebpf, "DEBTS")?,
            pbxs: take(ebpf, "PBXS")?,
            by_addr: take(ebpf, "PBX_BY_ADDR")?,
            schedule: take(ebpf, "SCHEDULE")?,
            calls: take(ebpf, "CALLS")?,
            shared_calls,
            vlans: take(ebpf, "VLANS")?,
            counters: take(ebpf, "COUNTERS")?,
            steered: take(ebpf, "STEERED")?,
            event_counts: take(ebpf, "EVENT_COUNTS")?,
            events: Some(Events::of(ebpf)?),
            stale: (0..MAX_PBX).collect(),
            six: Six::new(ebpf)?,
        })
    }

    /// Names the switches ([`sip_ebpf::tables::flag`]). The first call also empties the slots that
    /// nobody has written since [`Tables::new`].
    pub fn set_config(&mut self, flags: u32) -> Result<()> {
        for slot in std::mem::take(&mut self.stale) {
            self.set_pbx(slot, Pbx::default())?;
        }
        for slot in std::mem::take(&mut self.six.stale) {
            self.set_pbx6(slot, Pbx6::default())?;
        }
        self.current.layout = LAYOUT;
        self.current.flags = flags;
        self.write_config()
    }

    fn write_config(&mut self) -> Result<()> {
        self.config.set(0, self.current, 0).context("cannot write CONFIG")
    }

    /// Makes CPUs forget what they know of addresses: called after each change of them.
    fn next_generation(&mut self) -> Result<()> {
        self.current.generation = after(self.current.generation);
        if self.current.layout == LAYOUT { self.write_config() } else { Ok(()) }
    }

    /// Makes the program send everything up, as before the first [`Tables::set_config`].
    pub fn clear_config(&mut self) -> Result<()> {
        self.current.layout = 0;
        self.write_config()
    }

    /// Makes `locals` the whole of `LOCALS`.
    pub fn set_locals(&mut self, locals: &[(Endpoint, Local)]) -> Result<()> {
        set_all(&mut self.locals, locals, "LOCALS")?;
        self.next_generation()
    }

    /// Makes `locals` the whole of `LOCALS6`.
    pub fn set_locals6(&mut self, locals: &[(Endpoint6, Local<Endpoint6>)]) -> Result<()> {
        set_all(&mut self.six.locals, locals, "LOCALS6")?;
        self.next_generation()
    }

    /// Makes `sources` the whole of `SOURCES`, and of `SOURCES6`.
    pub fn set_sources(&mut self, sources: &[(IpNet, u32)]) -> Result<()> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (net, bits) in sources {
            match prefix(*net) {
                Prefix::V4(key) => v4.push((key, *bits)),
                Prefix::V6(key) => v6.push((key, *bits)),
            }
        }
        set_networks(&mut self.sources, &v4, "SOURCES")?;
        set_networks(&mut self.six.sources, &v6, "SOURCES6")?;
        self.next_generation()
    }

    /// What one source may send; written with the next [`Tables::set_config`].
    pub fn set_rates(&mut self, rates: gate::Rules) {
        self.current.gate = rates;
    }

    /// Makes `sources` the whole of `REGISTERED`, and of `REGISTERED6`.
    pub fn set_registered(&mut self, sources: &[Source]) -> Result<()> {
        let (mut v4, mut v6) = (HashSet::new(), HashSet::new());
        for source in sources {
            match registered(*source) {
                Registered::V4(key) => _ = v4.insert(key),
                Registered::V6(key) => _ = v6.insert(key),
            }
        }
        set_keys(&mut self.registered, v4, "REGISTERED")?;
        set_keys(&mut self.six.registered, v6, "REGISTERED6")?;
        self.next_generation()
    }

    /// Writes those that have come, and removes the others.
    pub fn change_registered(&mut self, changes: &[(Source, bool)]) -> Result<()> {
        for (source, there) in changes {
            match registered(*source) {
                Registered::V4(key) => set_key(&mut self.registered, key, *there, "REGISTERED")?,
                Registered::V6(key) => {
                    set_key(&mut self.six.registered, key, *there, "REGISTERED6")?
                }
            }
        }
        self.next_generation()
    }

    /// Makes `endpoints` the whole of `ENDPOINTS`, and of `ENDPOINTS6`.
    pub fn set_endpoints(&mut self, endpoints: &[(SocketAddr, Instant)]) -> Result<()> {
        let (mut v4, mut v6) = (Vec::new(), Vec::new());
        for (at, until) in endpoints {
            let until = monotonic_of(*until);
            match at {
                SocketAddr::V4(at) => v4.push((endpoint4(*at), until)),
                SocketAddr::V6(at) => v6.push((endpoint6(*at), until)),
            }
        }
        set_times(&mut self.endpoints, &v4, "ENDPOINTS")?;
        set_times(&mut self.six.endpoints, &v6, "ENDPOINTS6")
    }

    /// Writes those that have changed; `None`: gone. Others stay, and no CPU has to look anything up again.
    pub fn change_endpoints(&mut self, changes: &[(SocketAddr, Option<Instant>)]) -> Result<()> {
        // Those that go make room first.
        let (gone, others): (Vec<(SocketAddr, Option<Instant>)>, Vec<_>) =
            changes.iter().partition(|(_, until)| until.is_none());
        for (at, until) in gone.into_iter().chain(others) {
            let until = until.map(monotonic_of);
            match at {
                SocketAddr::V4(at) => {
                    set_time(&mut self.endpoints, endpoint4(at), until, "ENDPOINTS")?
                }
                SocketAddr::V6(at) => {
                    set_time(&mut self.six.endpoints, endpoint6(at), until, "ENDPOINTS6")?
                }
            }
        }
        Ok(())
    }

    /// Empties `DEBTS` and `DEBTS6`, for tests that need a certain past.
    pub fn forget_debts(&mut self) -> Result<()> {
        for index in 0..DEBT_BUCKETS {
            self.debts.set(index, DebtBucket::default(), 0).context("cannot write DEBTS")?;
            self.six.debts.set(index, DebtBucket::default(), 0).context("cannot write DEBTS6")?;
        }
        Ok(())
    }

    /// Writes one network of `SOURCES` or `SOURCES6`; without bits it is gone.
    pub fn set_source(&mut self, network: IpNet, bits: u32) -> Result<()> {
        match prefix(network) {
            Prefix::V4(key) => set_network(&mut self.sources, key, bits, "SOURCES")?,
            Prefix::V6(key) => set_network(&mut self.six.sources, key, bits, "SOURCES6")?,
        }
        self.next_generation()
    }

    /// Writes one slot of `PBXS`, and `PBX_BY_ADDR` with it.
    pub fn set_pbx(&mut self, slot: u32, pbx: Pbx) -> Result<()> {
        self.stale.remove(&slot);
        let old = self.pbxs.get(&slot, 0).context("cannot read PBXS")?;
        if old == pbx {
            // An adopted slot still needs its address, which may have been lost with the other map.
            return self.set_by_addr(slot, pbx);
        }
        self.pbxs.set(slot, pbx, 0).context("cannot write PBXS")?;
        if old.state != PbxState::Unused as u8
            && (old.endpoint() != pbx.endpoint() || pbx.state == PbxState::Unused as u8)
            && self.by_addr.get(&old.endpoint(), 0).is_ok_and(|owner| owner == slot)
        {
            gone(self.by_addr.remove(&old.endpoint()))
                .context("cannot remove an address from PBX_BY_ADDR")?;
        }
        self.set_by_addr(slot, pbx)
    }

    /// The same of `PBXS6` and `PBX_BY_ADDR6`.
    pub fn set_pbx6(&mut self, slot: u32, pbx: Pbx6) -> Result<()> {
        let six = &mut self.six;
        six.stale.remove(&slot);
        let old = six.pbxs.get(&slot, 0).context("cannot read PBXS6")?;
        let unused = |pbx: Pbx6| pbx.state == PbxState::Unused as u8;
        let owns =
            |six: &Six, at: Endpoint6| six.by_addr.get(&at, 0).is_ok_and(|owner| owner == slot);
        if old != pbx {
            six.pbxs.set(slot, pbx, 0).context("cannot write PBXS6")?;
            let moved = old.endpoint() != pbx.endpoint() || unused(pbx);
            if !unused(old) && moved && owns(six, old.endpoint()) {
                gone(six.by_addr.remove(&old.endpoint()))
                    .context("cannot remove an address from PBX_BY_ADDR6")?;
            }
        }
        // An adopted slot still needs its address, which may have been lost with the other map.
        if !unused(pbx) && !owns(six, pbx.endpoint()) {
            six.by_addr.insert(pbx.endpoint(), slot, 0).context("cannot write PBX_BY_ADDR6")?;
        }
        self.next_generation()
    }

    fn set_by_addr(&mut self, slot: u32, pbx: Pbx) -> Result<()> {
        if pbx.state == PbxState::Unused as u8
            || self.by_addr.get(&pbx.endpoint(), 0).is_ok_and(|owner| owner == slot)
        {
            return self.next_generation();
        }
        self.by_addr.insert(pbx.endpoint(), slot, 0).context("cannot write PBX_BY_ADDR")?;
        self.next_generation()
    }

    /// Writes `SCHEDULE`.
    pub fn set_schedule(&mut self, schedule: &Schedule) -> Result<()> {
        self.schedule.set(0, schedule, 0).context("cannot write SCHEDULE")
    }

    /// Writes `SCHEDULE6`.
    pub fn set_schedule6(&mut self, schedule: &Schedule) -> Result<()> {
        self.six.schedule.set(0, schedule, 0).context("cannot write SCHEDULE6")
    }

    /// Makes `vlans` the whole of `VLANS`.
    pub fn set_vlans(&mut self, vlans: &[(u32, VlanPort)]) -> Result<()> {
        let old: Vec<u32> =
            self.vlans.keys().collect::<Result<_, _>>().context("cannot read VLANS")?;
        for key in old {
            if !vlans.iter().any(|(index, _)| *index == key) {
                gone(self.vlans.remove(&key)).context("cannot remove a port from VLANS")?;
            }
        }
        for (index, port) in vlans {
            if self.vlans.get(index, 0).is_ok_and(|there| there == *port) {
                continue;
            }
            self.vlans
                .insert(index, port, 0)
                .with_context(|| format!("cannot write VLANS, which holds {MAX_VLANS} devices"))?;
        }
        Ok(())
    }

    /// How long new calls are placed after the last heartbeat, from the next one on; zero is for ever.
    pub fn set_outlive(&mut self, outlive: Duration) {
        self.outlive = outlive;
    }

    /// Vouches for the daemon from now on for `vouch`; zero withdraws it, and then calls go on for as long as the
    /// heartbeat before it has said.
    pub fn heartbeat(&mut self, vouch: Duration) -> Result<()> {
        let until = |length: Duration| match length.is_zero() {
            true => 0,
            false => nanoseconds(monotonic().saturating_add(length)),
        };
        if !vouch.is_zero() {
            let outlived = self.heartbeat.set(beat::OUTLIVED, until(self.outlive), 0);
            outlived.context("cannot write HEARTBEAT")?;
        }
        self.heartbeat.set(beat::VOUCHED, until(vouch), 0).context("cannot write HEARTBEAT")
    }

    /// `COUNTERS` summed over CPUs; the index is `Reason as usize`.
    pub fn counters(&self) -> Result<Vec<u64>> {
        sums(&self.counters, REASONS).context("cannot read COUNTERS")
    }

    /// `STEERED` summed over CPUs, by slot.
    pub fn steered(&self) -> Result<Vec<u64>> {
        sums(&self.steered, MAX_PBX).context("cannot read STEERED")
    }

    /// One bucket of `CALLS`; `None` past its end.
    pub fn call_bucket(&self, index: u32) -> Option<CallBucket> {
        let words = self.shared_calls.bucket(index)?;
        Some(CallBucket { words: words.each_ref().map(|word| word.load(Ordering::Relaxed)) })
    }

    /// `EVENTS`, once.
    pub fn events(&mut self) -> Option<Events> {
        self.events.take()
    }

    /// `EVENT_COUNTS` summed over CPUs.
    pub fn event_counts(&self) -> Result<EventCounts> {
        let sums = sums(&self.event_counts, event::COUNTS).context("cannot read EVENT_COUNTS")?;
        let at = |key: u32| sums.get(key as usize).copied().unwrap_or(0);
        Ok(EventCounts {
            copied: at(event::PUT),
            uncopied: at(event::FULL),
            told: at(event::TOLD),
            untold: at(event::LOST),
        })
    }

    /// All of them, as they are.
    pub fn calls(&self) -> Arc<dyn CallBuckets> {
        self.shared_calls.clone()
    }

    /// Writes one bucket of `CALLS`, for tests that need a certain past.
    pub fn set_call_bucket(&mut self, index: u32, bucket: CallBucket) -> Result<()> {
        self.calls.set(index, bucket, 0).context("cannot write CALLS")
    }
}

/// Prefix length and first address of a network, as `SOURCES` and `SOURCES6` keep them.
#[derive(Debug, Eq, PartialEq)]
enum Prefix {
    V4((u32, u32)),
    V6((u32, [u64; 2])),
}

fn prefix(net: IpNet) -> Prefix {
    match net {
        IpNet::V4(net) => {
            let first = u32::from_ne_bytes(net.network().octets());
            Prefix::V4((u32::from(net.prefix_len()), first))
        }
        IpNet::V6(net) => {
            let first = Endpoint6::new(net.network().octets(), 0).addr;
            Prefix::V6((u32::from(net.prefix_len()), first))
        }
    }
}

/// A source as `REGISTERED` and `REGISTERED6` have it.
enum Registered {
    V4(u32),
    V6(u64),
}

fn registered(source: Source) -> Registered {
    match source {
        Source::V4(v4) => Registered::V4(u32::from_ne_bytes(v4.octets())),
        Source::V6(network) => Registered::V6(network.to_be()),
    }
}

/// Makes `list` the whole of a table of networks.
fn set_networks<K: Pod + Eq + Hash>(
    map: &mut LpmTrie<MapData, K, u32>,
    list: &[((u32, K), u32)],
    name: &str,
) -> Result<()> {
    let keys: HashSet<(u32, K)> = list.iter().map(|(key, _)| *key).collect();
    for (key, bits) in list {
        set_network(map, *key, *bits, name)?;
    }
    let old: Vec<Key<K>> =
        map.keys().collect::<Result<_, _>>().with_context(|| format!("cannot read {name}"))?;
    for key in old {
        if !keys.contains(&(key.prefix_len(), key.data())) {
            set_network(map, (key.prefix_len(), key.data()), 0, name)?;
        }
    }
    Ok(())
}

/// Writes one network; without bits it is gone.
fn set_network<K: Pod>(
    map: &mut LpmTrie<MapData, K, u32>,
    (len, first): (u32, K),
    bits: u32,
    name: &str,
) -> Result<()> {
    let key = Key::new(len, first);
    if bits == 0 {
        return gone(map.remove(&key))
            .with_context(|| format!("cannot remove a network from {name}"));
    }
    map.insert(&key, bits, 0)
        .with_context(|| format!("cannot write {name}, which holds {MAX_SOURCES} networks"))
}

/// Makes `keys` the whole of a table of keys.
fn set_keys<K: Pod + Eq + Hash>(
    map: &mut HashMap<MapData, K, u32>,
    keys: HashSet<K>,
    name: &str,
) -> Result<()> {
    let old: Vec<K> =
        map.keys().collect::<Result<_, _>>().with_context(|| format!("cannot read {name}"))?;
    for key in old.into_iter().filter(|key| !keys.contains(key)) {
        set_key(map, key, false, name)?;
    }
    keys.into_iter().try_for_each(|key| set_key(map, key, true, name))
}

/// Puts a key in, or takes it out.
fn set_key<K: Pod>(
    map: &mut HashMap<MapData, K, u32>,
    key: K,
    there: bool,
    name: &str,
) -> Result<()> {
    if there {
        return map.insert(key, 1, 0).with_context(|| format!("cannot write {name}"));
    }
    gone(map.remove(&key)).with_context(|| format!("cannot remove one from {name}"))
}

/// Makes `list` the whole of a table of times.
fn set_times<K: Pod + Eq + Hash>(
    map: &mut HashMap<MapData, K, u64>,
    list: &[(K, u64)],
    name: &str,
) -> Result<()> {
    let new: HashSet<K> = list.iter().map(|(key, _)| *key).collect();
    let old: Vec<K> =
        map.keys().collect::<Result<_, _>>().with_context(|| format!("cannot read {name}"))?;
    for key in old.into_iter().filter(|key| !new.contains(key)) {
        set_time(map, key, None, name)?;
    }
    list.iter().try_for_each(|(key, until)| set_time(map, *key, Some(*until), name))
}

/// Writes one time; `None`: gone.
fn set_time<K: Pod>(
    map: &mut HashMap<MapData, K, u64>,
    key: K,
    until: Option<u64>,
    name: &str,
) -> Result<()> {
    match until {
        Some(until) => map.insert(key, until, 0).with_context(|| format!("cannot write {name}")),
        None => gone(map.remove(&key)).with_context(|| format!("cannot remove one from {name}")),
    }
}

pub(super) fn take<T>(ebpf: &mut Ebpf, name: &str) -> Result<T>
where
    T: TryFrom<Map, Error = MapError>,
{
    let map = ebpf.take_map(name).with_context(|| format!("the object has no map {name}"))?;
    T::try_from(map).with_context(|| format!("map {name} is of another kind or size"))
}

/// The generation behind one; zero is left out: per-CPU memory starts with it.
fn after(generation: u32) -> u32 {
    generation.checked_add(1).unwrap_or(1)
}

/// Makes `list` the whole of a map. The program may be reading an entry: one that is right already is not touched.
pub(super) fn set_all<K, V>(
    map: &mut HashMap<MapData, K, V>,
    list: &[(K, V)],
    name: &str,
) -> Result<()>
where
    K: Pod + PartialEq,
    V: Pod + PartialEq,
{
    let old: Vec<K> =
        map.keys().collect::<Result<_, _>>().with_context(|| format!("cannot read {name}"))?;
    for key in old {
        if !list.iter().any(|(wanted, _)| *wanted == key) {
            gone(map.remove(&key)).with_context(|| format!("cannot remove one from {name}"))?;
        }
    }
    for (key, value) in list {
        if map.get(key, 0).is_ok_and(|there| there == *value) {
            continue;
        }
        map.insert(key, value, 0).with_context(|| {
            format!("cannot write {name}, which may be full: it got {}", list.len())
        })?;
    }
    Ok(())
}

/// A key that is not there is as good as removed.
pub(super) fn gone(removed: Result<(), MapError>) -> Result<()> {
    match removed {
        Err(MapError::SyscallError(error))
            if error.io_error.raw_os_error() == Some(libc::ENOENT) =>
        {
            Ok(())
        }
        Ok(()) | Err(MapError::KeyNotFound) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

fn sums(map: &PerCpuArray<MapData, u64>, len: u32) -> Result<Vec<u64>, MapError> {
    (0..len).map(|index| Ok(map.get(&index, 0)?.iter().sum())).collect()
}

/// The clock that the kernel program reads.
fn monotonic() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `now` is written. This clock exists in every Linux, so the call cannot fail.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    Duration::new(now.tv_sec as u64, now.tv_nsec as u32)
}

/// A time by that clock, in nanoseconds.
pub(super) fn monotonic_of(at: Instant) -> u64 {
    let now = Instant::now();
    let left = at.saturating_duration_since(now);
    nanoseconds(monotonic().saturating_add(left).saturating_sub(now.saturating_duration_since(at)))
}

fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_kept_by_its_first_address() {
        let net: IpNet = "10.10.1.77/24".parse().unwrap();
        assert_eq!(prefix(net), Prefix::V4((24, u32::from_ne_bytes([10, 10, 1, 0]))));
        let net: IpNet = "2001:db8:1:2:3::4/64".parse().unwrap();
        assert_eq!(prefix(net), Prefix::V6((64, [0x2001_0db8_0001_0002_u64.to_be(), 0])));
    }

    #[test]
    fn vouching_forever_does_not_wrap() {
        assert_eq!(nanoseconds(monotonic().saturating_add(Duration::MAX)), u64::MAX);
    }
}
