//! Calls between IPv4 and IPv6: what we write into their messages, so that nothing has to be kept of them once they are
//! answered.
//!
//! Their requests leave from another address of ours than they come to, so both stand in the route set (RFC 5658): our
//! Record-Route of the side that the request leaves for on top, the one of the side that it came from below. Each has a
//! [`Cookie`] with where the party of its own side is, and the same slot. They are signed otherwise than a
//! cookie that stands alone, so neither serves alone: whoever leaves one of them out has a bad cookie, in the kernel too.
//!
//! The branch of our Via says which address of ours the request came to, since its response leaves from there:
//!
//! | digits | |
//! | --- | --- |
//! | 0..16 | keyed hash of the Call-ID, of the sender's branch and of the rest, as of other branches of ours |
//! | 16..18 | place of the address in the list of ours |

use std::net::SocketAddr;

use sip_ebpf::cookie;
use sip_ebpf::hash::Keys;
use sip_ebpf::header::Span;
use sip_ebpf::message::{Message, Rport, Via};
use sip_ebpf::scan::Kind;
use sip_ebpf::text::literal;

use super::canonical;
use super::cookie::Cookie;
use super::family::Family;

/// How such a branch starts; no other of ours does (see [`cookie::owner`]).
const BRANCH: &str = "z9hG4bKslx";
/// What the hash of a call is changed by, so that nothing is signed as for other calls.
const ACROSS: u64 = literal(b"across");

/// The hash that the two cookies of a call are signed with, of which the hash of the Call-ID is this.
pub const fn signed_with(call: u64) -> u64 {
    call ^ ACROSS
}

/// The branch for a request that came to our address in this place. `theirs` is where the sender's branch stands.
pub fn branch(keys: &Keys, call: u64, message: &Message<'_>, theirs: Span, local: usize) -> String {
    // As the hash of a call of its own: what is signed for one address is nothing for another.
    let call = signed_with(call) ^ (local as u64).rotate_right(8);
    let digits = cookie::branch(keys, call, message.bytes(), theirs);
    format!("{BRANCH}{digits:016x}{local:02x}")
}

/// Whether a branch is such a one, by its looks.
pub fn is_branch(branch: &[u8]) -> bool {
    branch.starts_with(BRANCH.as_bytes())
}

/// Where a response goes that has such a branch on top: the place of our address that its request came to, and the target. `None`
/// if we have not signed it, or there is no way on.
pub fn way_back(
    keys: &Keys,
    message: &Message<'_>,
    locals: &[SocketAddr],
) -> Option<(usize, SocketAddr)> {
    let mut vias = message.vias();
    let (ours, next) = (vias.next()?.ok()?, vias.next()?.ok()?);
    let said = ours.branch?;
    let place = usize::from_str_radix(said.get(said.len().checked_sub(2)?..)?, 16).ok()?;
    let local = locals.get(place)?;
    let line = message.index().first(Kind::CallId)?;
    let call_id = Span { at: u32::from(line.value), end: u32::from(line.end) };
    let (call, _) = cookie::call(keys, message.bytes(), call_id);
    if !said.eq_ignore_ascii_case(&branch(keys, call, message, next.branch_span, place)) {
        return None;
    }
    let target = target(&next)?;
    (Family::of(target) == Family::of(*local)).then_some((place, target))
}

/// Where a response for this Via goes (18.2.2, RFC 3581 4).
fn target(via: &Via<'_>) -> Option<SocketAddr> {
    if via.maddr.is_some() {
        return None;
    }
    let ip = via.received.or_else(|| via.host.ip())?;
    let port = match via.rport {
        Rport::Value(port) => port,
        Rport::Absent | Rport::Empty => via.port.unwrap_or(5060),
    };
    Some(SocketAddr::new(ip, port))
}

/// The two Routes of ours on top of a request in a dialog, both signed by us for this call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Routes {
    /// Where the party is on whose side the request came.
    pub here: SocketAddr,
    /// Where the other one is.
    pub there: SocketAddr,
    /// The address of ours that the request leaves from.
    pub from: SocketAddr,
    /// Slot of the PBX.
    pub slot: u32,
}

impl Routes {
    /// Reads them in a request that came over this family. `call` is the hash of its Call-ID.
    pub fn read(
        keys: &Keys,
        message: &Message<'_>,
        call: u64,
        family: Family,
        locals: &[SocketAddr],
    ) -> Option<Self> {
        let mut routes = message.routes();
        let mut next = || {
            let route = routes.next()?.ok()?;
            let (local, digits) = canonical::our_cookie(&route.uri, locals)?;
            let (cookie, signature) = Cookie::read(digits.as_bytes())?;
            cookie.signed(signature, keys, signed_with(call)).then_some((local, cookie))
        };
        let (on, here) = next()?;
        let (from, there) = next()?;
        let fit = Family::of(on) == family
            && Family::of(from) == family.other()
            && (here.slot, here.recorded) == (there.slot, there.recorded);
        fit.then_some(Self { here: here.flow, there: there.flow, from, slot: here.slot })
    }

    /// The Routes below them, as one value; none if there are none.
    pub fn below(message: &Message<'_>) -> Option<Box<str>> {
        let below = message.routes().skip(2).map_while(Result::ok);
        let texts: Vec<_> =
            below.filter_map(|route| str::from_utf8(message.slice(route.span)).ok()).collect();
        (!texts.is_empty()).then(|| texts.join(", ").into())
    }
}
