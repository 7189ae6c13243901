//! The kernel half as the daemon sees it: loaded, attached, and fed with tables.
//!
//! The daemon decides, the kernel's tables are a mirror. Each call here writes what the daemon already
//! holds, so an implementation may be closed and opened again at any time and be filled anew. [`off`]
//! stands in where there is no XDP: it takes everything and does nothing.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use sip_ebpf::gate;
use sip_ebpf::tables::{CALLS_PER_BUCKET, Endpoint, Endpoint6, Local, Pbx, Pbx6, Schedule};

use crate::config::{Xdp, XdpMode};
use crate::core::challenges::Challenges;
use crate::core::registered::Source;

pub mod challenges;
mod events;
mod forwarding;
pub mod interfaces;
mod linux;
pub mod object;
pub mod off;
pub mod open;
mod pins;
pub mod tables;
pub mod users;

pub use events::Events;

/// How packets reach the program on one interface.
#[derive(Clone, Copy, Debug, Deserialize, Eq, Ord, PartialEq, PartialOrd, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// No program is attached: the daemon serves everything.
    Off,
    /// After the stack has made a socket buffer; works with every driver.
    Generic,
    /// In the driver.
    Native,
}

impl fmt::Display for Mode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Off => "off",
            Self::Generic => "generic",
            Self::Native => "native",
        })
    }
}

/// One interface that the program is attached to.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Attachment {
    /// The interface's name.
    pub interface: String,
    /// How it is attached there.
    pub mode: Mode,
}

/// What the daemon needs of the kernel half, or of its absence.
///
/// After [`open`](fn@open) the program passes everything up until `set_config` names its switches, so tables are
/// filled first and the switches are set last. All writes are idempotent.
pub trait Fastpath {
    /// The mode that holds for every interface: the slowest of [`Fastpath::attachments`].
    fn mode(&self) -> Mode {
        self.attachments().iter().map(|a| a.mode).min().unwrap_or(Mode::Off)
    }

    /// Where the program is attached, and how.
    fn attachments(&self) -> &[Attachment];

    /// What was loaded, for people: loops, kernel, why a better mode was not taken.
    fn describe(&self) -> String;

    /// Bits of [`sip_ebpf::tables::flag`]; the implementation knows layout, key and call buckets.
    fn set_config(&mut self, flags: u32) -> Result<()>;

    /// The whole set of our addresses; the implementation removes what is no longer in it.
    fn set_locals(&mut self, locals: &[(Endpoint, Local)]) -> Result<()>;

    /// The same of IPv6.
    fn set_locals6(&mut self, locals: &[(Endpoint6, Local<Endpoint6>)]) -> Result<()>;

    /// The whole set of networks with their [`sip_ebpf::tables::source`] bits.
    fn set_sources(&mut self, sources: &[(IpNet, u32)]) -> Result<()>;

    /// One of these networks; with zero bits it is gone.
    fn set_source(&mut self, network: IpNet, bits: u32) -> Result<()>;

    /// What one source may send. It counts with the next [`Fastpath::set_config`].
    fn set_rates(&mut self, rates: gate::Rules) -> Result<()>;

    /// The whole set of sources that somebody has registered from.
    fn set_registered(&mut self, sources: &[Source]) -> Result<()>;

    /// Some of them that have come (`true`) or gone.
    fn change_registered(&mut self, changes: &[(Source, bool)]) -> Result<()>;

    /// The whole set of endpoints that somebody is registered from, and until when.
    fn set_endpoints(&mut self, endpoints: &[(SocketAddr, Instant)]) -> Result<()>;

    /// Some of them that have changed; `None`: gone.
    fn change_endpoints(&mut self, changes: &[(SocketAddr, Option<Instant>)]) -> Result<()>;

    /// Who is registered, as the kernel knows it. `None` where there is no such table.
    fn users(&self) -> Option<Arc<dyn Users>>;

    /// How to ask for credentials in our name; `None`: not at all. It counts with the next [`Fastpath::set_config`], by
    /// [`sip_ebpf::tables::flag::CHALLENGE`].
    fn set_challenges(&mut self, challenges: Option<&Challenges>) -> Result<()>;

    /// One slot of `PBXS`, and `PBX_BY_ADDR` with it (also when the slot changes its address or becomes
    /// [`sip_ebpf::tables::PbxState::Unused`]).
    fn set_pbx(&mut self, slot: u32, pbx: Pbx) -> Result<()>;

    /// The same of `PBXS6` and `PBX_BY_ADDR6`.
    fn set_pbx6(&mut self, slot: u32, pbx: Pbx6) -> Result<()>;

    /// Whose turn it is.
    fn set_schedule(&mut self, schedule: &Schedule) -> Result<()>;

    /// The same among PBXs with IPv6 addresses.
    fn set_schedule6(&mut self, schedule: &Schedule) -> Result<()>;

    /// Vouches for the daemon from now on for `vouch`; zero withdraws it.
    fn heartbeat(&mut self, vouch: Duration) -> Result<()>;

    /// The kernel's counters summed over CPUs; the index is `Reason as usize`.
    fn counters(&mut self) -> Result<Vec<u64>>;

    /// Initial INVITEs that the kernel steered, by slot; [`sip_ebpf::tables::MAX_PBX`] of them.
    fn pbx_calls(&mut self) -> Result<Vec<u64>>;

    /// The kernel's call table, to follow calls that the kernel steered. `None` where there is no such table.
    fn calls(&self) -> Option<Arc<dyn CallBuckets>>;

    /// What the kernel tells ([`sip_ebpf::tables::Event`]); to be asked once. `None` where there is none.
    fn events(&mut self) -> Option<Events>;

    /// What the ring has taken, and what it had no room for.
    fn event_counts(&mut self) -> Result<EventCounts>;

    /// Calls that are carried by the kernel alone, as their records stand so far. `None` where nothing outlives us.
    fn open_calls(&self) -> Option<Arc<dyn OpenCalls>>;

    /// Ends it. `keep` leaves program and tables pinned for the next daemon; else every interface is as
    /// it was.
    fn close(self: Box<Self>, keep: bool) -> Result<()>;
}

/// Who is registered, for any thread: what the program answers PBXs by that ask for a user. Of whom nothing is there, the
/// daemon is asked.
pub trait Users: Send + Sync {
    /// Until when a user is registered, by his name there ([`sip_ebpf::cookie::user`]); `None`: he is gone.
    fn set(&self, name: u64, until: Option<Instant>) -> Result<()>;

    /// Forgets all.
    fn clear(&self) -> Result<()>;
}

/// What the ring `EVENTS` has taken, and what it had no room for.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct EventCounts {
    /// INVITEs that were copied.
    pub copied: u64,
    /// INVITEs for which there was no room.
    pub uncopied: u64,
    /// Reports of what became of calls.
    pub told: u64,
    /// Reports for which there was no room: these calls end by the limit.
    pub untold: u64,
}

/// Calls that are carried by the kernel alone, as their records stand so far, by the keyed hash of the Call-ID: what the
/// next daemon goes on with. For any thread.
pub trait OpenCalls: Send + Sync {
    /// Writes one; at most [`sip_ebpf::tables::OPEN_LEN`] bytes.
    fn set(&self, call: u64, record: &[u8]) -> Result<()>;

    /// It is over, or the daemon's.
    fn remove(&self, call: u64) -> Result<()>;

    /// All of them.
    fn all(&self) -> Result<Vec<(u64, Vec<u8>)>>;
}

/// The kernel's call table, for any thread: the memory that the program itself works on.
pub trait CallBuckets: Send + Sync {
    /// The words of one bucket ([`sip_ebpf::calls`]); `None` if there are fewer.
    fn bucket(&self, index: u32) -> Option<&[AtomicU64; CALLS_PER_BUCKET]>;
}

/// Opens the kernel half as `config` says; `key` is the key of every hash and signature.
///
/// Mode `auto` tries native, then generic, then goes on without, with a warning that says why. Any other
/// mode is an order: what cannot be had is an error. Call it inside the runtime: kernel logs are read by
/// a task.
pub fn open(config: &Xdp, key: [u64; 2]) -> Result<Box<dyn Fastpath>> {
    if config.mode == XdpMode::Off {
        return without(config, "off by configuration".into());
    }
    match linux::Linux::open(config, key) {
        Ok(linux) => Ok(Box::new(linux)),
        Err(error) if config.mode == XdpMode::Auto => {
            let why = format!("{error:#}");
            tracing::warn!(reason = why, "running without XDP");
            without(config, why)
        }
        Err(error) => {
            Err(error.context(format!("xdp.mode is {}, and it cannot be had", config.mode)))
        }
    }
}

/// Goes on without, and sees to it that no program of an earlier daemon does: it would decide by tables that nobody
/// writes any more. Without the privilege to look there is nothing to see, and nothing to remove.
fn without(config: &Xdp, why: String) -> Result<Box<dyn Fastpath>> {
    let gone =
        detach(config).context("a program that an earlier daemon left attached stays there")?;
    if !gone.is_empty() {
        tracing::info!(interfaces = ?gone, "detached: an earlier daemon's program");
    }
    Ok(Box::new(off::Off::new(why)))
}

/// Removes what a daemon left pinned under `config.pin`: links first, so that the interfaces are as they
/// were. Returns the interfaces that were detached.
pub fn detach(config: &Xdp) -> Result<Vec<String>> {
    match &config.pin {
        Some(root) => linux::detach(root),
        None => Ok(Vec::new()),
    }
}
