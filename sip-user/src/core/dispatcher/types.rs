//! What goes into and comes out of [`super::Dispatcher`].

use std::fmt;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use serde::Serialize;
use sip_ebpf::tables::{MAX_PBX, Pbx, PbxState, Schedule};

use crate::config::AdminState;

/// What the world has to do.
#[derive(Clone, Debug, PartialEq)]
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
    /// Write `SCHEDULE`.
    Schedule(Box<Schedule>),
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
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Timeout => f.write_str("no answer to OPTIONS"),
            Self::Answer(code) => write!(f, "OPTIONS answered with {code}"),
            Self::Unreachable(what) => write!(f, "{what} unreachable"),
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
}
