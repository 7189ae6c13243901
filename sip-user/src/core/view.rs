//! The tables that the shared decision asks, as the daemon has them.

use std::cell::RefCell;
use std::net::{SocketAddr, SocketAddrV4, SocketAddrV6};
use std::time::Instant;

use sip_ebpf::address::Address;
use sip_ebpf::calls::{Call, state};
use sip_ebpf::hash::Keys;
use sip_ebpf::route::Tables;
use sip_ebpf::tables::{Endpoint, Endpoint6, Pbx, Pbx6, PbxState, source};

use super::call_table::CallTable;
use super::dispatcher::Dispatcher;
use super::endpoints::Endpoints;
use super::family::Family;
use super::sources::Sources;

/// The calls that the kernel has steered.
pub trait KernelCalls {
    /// The slot that a call went to and how far it is, by the keyed hash of its Call-ID.
    fn find(&self, hash: u64) -> Option<Call>;

    /// Sets and then clears bits of [`state`] of a call. Gives it as it was.
    fn change(&self, hash: u64, bits: (u32, u32)) -> Option<Call>;
}

/// No kernel half.
impl KernelCalls for () {
    fn find(&self, _hash: u64) -> Option<Call> {
        None
    }

    fn change(&self, _hash: u64, _bits: (u32, u32)) -> Option<Call> {
        None
    }
}

/// The tables as the daemon has them, for a message from one address.
pub(super) struct View<'a> {
    pub(super) keys: &'a Keys,
    pub(super) from: SocketAddr,
    pub(super) sources: &'a Sources,
    /// Where somebody is registered, if there is a registrar.
    pub(super) endpoints: Option<&'a Endpoints>,
    pub(super) now: Instant,
    pub(super) dispatcher: RefCell<&'a mut Dispatcher>,
    pub(super) calls: &'a CallTable,
    pub(super) kernel: &'a dyn KernelCalls,
    pub(super) clock: u64,
    pub(super) guarded: bool,
    pub(super) recorded: bool,
}

impl View<'_> {
    fn family(&self) -> Family {
        Family::of(self.from)
    }
}

/// An address of the tables, of either family.
pub(super) trait Named: Address {
    /// As others have it.
    fn named(self) -> SocketAddr;

    /// A PBX that listens there.
    fn as_pbx(address: SocketAddr, state: PbxState) -> Self::Pbx;
}

impl Named for Endpoint {
    fn named(self) -> SocketAddr {
        address4(self)
    }

    fn as_pbx(address: SocketAddr, state: PbxState) -> Pbx {
        let Endpoint { addr, port, .. } = endpoint(address).unwrap_or_default();
        Pbx { addr, port, state: state as u8, pad: 0 }
    }
}

impl Named for Endpoint6 {
    fn named(self) -> SocketAddr {
        address6(self)
    }

    fn as_pbx(address: SocketAddr, state: PbxState) -> Pbx6 {
        match address {
            SocketAddr::V4(_) => Pbx6::default(),
            SocketAddr::V6(v6) => Pbx6::new(endpoint6(v6), state),
        }
    }
}

impl<A: Named> Tables<A> for View<'_> {
    fn keys(&self) -> &Keys {
        self.keys
    }

    fn alive(&self) -> bool {
        true
    }

    fn trusted(&self, _src: A) -> bool {
        let bits = self.sources.lookup(self.from.ip());
        let registered = || self.endpoints.is_some_and(|known| known.has(self.from, self.now));
        bits & source::TRUSTED != 0 || bits & source::REGISTERED != 0 && registered()
    }

    fn pbx_at(&self, endpoint: A) -> Option<u32> {
        self.dispatcher.borrow().slot_at(endpoint.named())
    }

    /// None for a PBX of the other family, so that no call goes there whatever a table or cookie says.
    fn pbx(&self, slot: u32) -> Option<A::Pbx> {
        let (address, state) = self.dispatcher.borrow().pbx_of(slot, self.family())?;
        Some(A::as_pbx(address, state))
    }

    fn turn(&self) -> Option<u32> {
        self.dispatcher.borrow_mut().next_slot(self.family())
    }

    /// The kernel's table first: later copies of the message will be routed by that one.
    fn call(&self, hash: u64) -> Option<Call> {
        self.kernel.find(hash).or_else(|| self.calls.find(hash, self.clock))
    }

    fn remember(&self, hash: u64, slot: u32) {
        // One that the kernel knows and that begins anew with the same PBX stays where it is.
        let again = |call: &Call| call.slot == slot;
        if self.kernel.find(hash).as_ref().is_some_and(again) {
            let all = state::HEARD | state::ENDED | state::CANCELLED;
            self.kernel.change(hash, (0, all));
            return;
        }
        self.calls.put(hash, self.clock, slot);
    }

    fn note(&self, hash: u64, bits: u32) -> Option<Call> {
        let steered = self.kernel.change(hash, (bits, 0));
        steered.or_else(|| self.calls.change(hash, self.clock, (bits, 0)))
    }

    fn guarded(&self) -> bool {
        self.guarded
    }

    fn noted(&self) -> bool {
        self.guarded || self.recorded
    }
}

/// An IPv4 address as the tables have it.
pub(super) fn endpoint(address: SocketAddr) -> Option<Endpoint> {
    match address {
        SocketAddr::V4(v4) => Some(endpoint4(v4)),
        SocketAddr::V6(_) => None,
    }
}

/// An IPv4 address as the tables have it.
pub(crate) fn endpoint4(address: SocketAddrV4) -> Endpoint {
    Endpoint::new(address.ip().octets(), address.port())
}

/// An IPv6 address as the tables have it: without its zone.
pub(crate) fn endpoint6(address: SocketAddrV6) -> Endpoint6 {
    Endpoint6::new(address.ip().octets(), address.port())
}

/// An IPv4 address of the tables as others have it.
pub(crate) fn address4(endpoint: Endpoint) -> SocketAddr {
    SocketAddr::from((endpoint.octets(), endpoint.port_number()))
}

/// An IPv6 address of the tables as others have it.
pub(crate) fn address6(endpoint: Endpoint6) -> SocketAddr {
    SocketAddr::from((endpoint.octets(), endpoint.port_number()))
}
