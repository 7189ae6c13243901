//! What goes into and comes out of [`super::Dispatcher`].

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::Serialize;
use sip_ebpf::tables::{MAX_PBX, Pbx, Pbx6, PbxState, Schedule};

use super::replica::Evidence;
use super::seats::{Seat, Seats};
use crate::config::AdminState;
use crate::core::family::Family;

/// What the world has to do.
#[derive(Debug)]
pub enum Command {
    /// Send a probe from our address `from` to `to`.
    Send {
        /// An address of ours.
        from: SocketAddr,
        /// The PBX.
        to: SocketAddr,
        /// An OPTIONS request.
        datagram: Vec<u8>,
    },
    /// Write one slot of `PBXS`.
    Pbx {
        /// The slot.
        slot: u32,
        /// Its value.
        pbx: Pbx,
    },
    /// Write one slot of `PBXS6`.
    Pbx6 {
        /// The slot.
        slot: u32,
        /// Its value.
        pbx: Pbx6,
    },
    /// Write `SCHEDULE` or `SCHEDULE6`.
    Schedule {
        /// Of which PBXs.
        family: Family,
        /// Its value.
        schedule: Box<Schedule>,
    },
    /// Tell the dispatcher that this one follows.
    Tell(Evidence),
    /// Tell people: a PBX is used differently from now on.
    Changed {
        /// Its id.
        id: String,
        /// What it was used for.
        from: PbxState,
        /// What it is used for.
        to: PbxState,
        /// Why.
        reason: String,
    },
}

/// Why a PBX is taken for dead.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Fault {
    /// No answer to a probe.
    Timeout,
    /// An answer to a probe that does not count as alive.
    Answer(u16),
    /// An ICMP error for a packet to it, or no route.
    Unreachable(Unreachable),
    /// Calls were answered so.
    Call(u16),
    /// A call had no answer.
    CallTimeout,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("no answer to OPTIONS"),
            Self::Answer(code) => write!(f, "OPTIONS answered with {code}"),
            Self::Unreachable(what) => write!(f, "{what} unreachable"),
            Self::Call(code) => write!(f, "calls answered with {code}"),
            Self::CallTimeout => f.write_str("no answer to a call"),
        }
    }
}

/// What an ICMP error says that cannot be reached.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[allow(missing_docs, reason = "the names say it")]
pub enum Unreachable {
    Port,
    Host,
    Network,
    Protocol,
    /// By a filter.
    Prohibited,
}

impl fmt::Display for Unreachable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Port => "port",
            Self::Host => "host",
            Self::Network => "network",
            Self::Protocol => "protocol",
            Self::Prohibited => "administratively",
        })
    }
}

/// Where a PBX comes from.
#[derive(Clone, Copy, Debug, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Origin {
    /// The configuration file: a reload may change or remove it.
    File,
    /// The control command: it stays until it is removed or the daemon ends.
    Hand,
}

/// Why an order was refused. Nothing has changed then.
#[derive(Clone, Debug, Eq, PartialEq)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum Refusal {
    UnknownId(String),
    IdTaken(String),
    AddressTaken { address: SocketAddr, by: String },
    BadId(String),
    BadAddress { address: SocketAddr, fault: &'static str },
    BadWeight(u8),
    Full,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UnknownId(id) => write!(f, "there is no PBX \"{id}\""),
            Self::IdTaken(id) => write!(f, "there is a PBX \"{id}\" already"),
            Self::AddressTaken { address, by } => {
                write!(f, "{address} is the address of PBX \"{by}\" already")
            }
            Self::BadId(id) => write!(
                f,
                "\"{id}\" cannot be an id: use 1 to 32 letters, digits, dots, dashes and _"
            ),
            Self::BadAddress { address, fault } => write!(f, "{address}: {fault}"),
            Self::BadWeight(weight) => write!(f, "weight is {weight}: it goes from 1 to 16"),
            Self::Full => write!(f, "there are {MAX_PBX} PBXs already"),
        }
    }
}

impl std::error::Error for Refusal {}

/// How one PBX is, for people.
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// Its id.
    pub id: &'a str,
    /// Its slot in the tables.
    pub slot: u32,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share of new calls.
    pub weight: u8,
    /// What it is used for.
    pub state: PbxState,
    /// Since when.
    pub since: Instant,
    /// Why, where there is something to say.
    pub reason: Option<String>,
    /// What its owner wants.
    pub admin: AdminState,
    /// Where it comes from.
    pub origin: Origin,
    /// Failures in a row.
    pub failures: u32,
    /// How the last probe ended.
    pub last_probe: Option<Result<u16, Fault>>,
    /// How long the last answered probe took.
    pub round_trip: Option<Duration>,
    /// Calls that go on there and that the daemon has placed with memory.
    pub calls: usize,
    /// How many calls at a time it may be setting up, if it is on trial. Its state is active then.
    pub trial: Option<usize>,
}

/// Where a call is to go.
#[derive(Debug)]
pub struct Placed {
    /// The slot of the PBX.
    pub slot: u32,
    /// Where it listens.
    pub address: SocketAddr,
    /// The call's place there.
    pub ticket: Ticket,
}

/// The place of one call at a PBX. Keep it while the call goes on there: dropped, the place is free.
#[derive(Debug)]
#[must_use]
pub struct Ticket {
    pub(super) slot: u32,
    /// Held by each call of this PBX.
    pub(super) seat: Seat,
    /// Held by each call of this trial that is not decided.
    pub(super) trial: Option<Seat>,
    /// Whether the PBX has answered, or not in time.
    pub(super) is_decided: bool,
}

impl Ticket {
    /// The slot of the PBX.
    pub fn slot(&self) -> u32 {
        self.slot
    }

    pub(super) fn decide(&mut self) -> Option<Seat> {
        self.is_decided = true;
        self.trial.take()
    }

    pub(super) fn seats(&self) -> Seats {
        self.seat.of().clone()
    }
}

/// PBXs that were tried for a call.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Tried(u64);

// A bit for each slot.
const _: () = assert!(MAX_PBX <= u64::BITS);

impl Tried {
    /// One more.
    pub fn insert(&mut self, slot: u32) {
        self.0 |= 1u64.checked_shl(slot).unwrap_or(0);
    }

    /// Whether this one was.
    pub fn has(&self, slot: u32) -> bool {
        self.0 & 1u64.checked_shl(slot).unwrap_or(0) != 0
    }

    /// Whether none was.
    pub fn is_empty(&self) -> bool {
        self.0 == 0
    }

    /// How many.
    pub fn len(&self) -> u32 {
        self.0.count_ones()
    }
}

/// There is no PBX for a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct NoPbx {
    /// Why.
    pub why: Shortage,
    /// When it may be otherwise: 1 to 60 seconds.
    pub retry_after: Duration,
}

/// Why there is no PBX for a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Shortage {
    /// None is alive and wanted.
    Down,
    /// Some are alive, but have all the calls that they may have, or asked for a pause.
    Busy,
    /// All that there are were tried.
    Tried,
    /// We are about to end.
    Stopping,
}
