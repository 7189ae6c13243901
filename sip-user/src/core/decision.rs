//! What was read of a message, and what is done with it.

use std::net::{Ipv4Addr, SocketAddr};

use sip_ebpf::Reason;
use sip_ebpf::address::{Address, Words};
use sip_ebpf::route::Plan;
use sip_ebpf::tables::Endpoint6;

/// The shared decision with what it has no room for.
#[derive(Clone, Copy, Debug)]
pub struct Decision {
    /// What was read. Its `cookie` and its `next` are of use to IPv4 alone, and the latter only until [`Decision::next`] is
    /// set.
    pub plan: Plan,
    /// What is done, or why nothing is.
    pub reason: Reason,
    /// Where it goes, if it is sent.
    pub next: SocketAddr,
    /// Digits of the cookie, if a Record-Route goes in over IPv6.
    pub cookie: <Endpoint6 as Address>::Cookie,
    /// Whether it was made of other bytes than are sent: quoted strings as tokens.
    pub unquoted: bool,
}

impl Default for Decision {
    fn default() -> Self {
        Self {
            plan: Plan::default(),
            reason: Reason::Malformed,
            next: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0)),
            cookie: Words::ZERO,
            unquoted: false,
        }
    }
}
