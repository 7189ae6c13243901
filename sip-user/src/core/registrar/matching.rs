//! Which binding a Contact of a REGISTER means, and what its request may do to it.

use std::net::SocketAddr;
use std::num::NonZeroU32;

use sip_ebpf::message::{Message, Rport, Uri};

use super::Response;
use super::asked::Asked;
use super::binding::Binding;
use super::equality::equal;

/// Which binding a Contact means: that of its instance and flow (RFC 5626 6), else the one with an equal URI
/// (10.3 step 7). A flow takes the place of an equal URI only if that is of no other flow.
///
/// Equality does not carry over (19.1.4), so several URIs may be equal to this one: that of the same text comes
/// first. So no two bindings of a user ever have the same [`Key`].
pub(super) fn place(
    there: &[Binding],
    uri: &Uri<'_>,
    instance: &str,
    reg_id: Option<NonZeroU32>,
) -> Option<usize> {
    let find = |is: &dyn Fn(&Binding) -> bool| there.iter().position(is);
    let same_text = |binding: &Binding| binding.contact() == uri.text;
    let same_uri =
        |binding: &Binding| Uri::parse(binding.contact()).is_ok_and(|other| equal(&other, uri));
    let unnamed = |binding: &Binding| binding.reg_id().is_none();
    let of_no_flow = || {
        find(&|binding| unnamed(binding) && same_text(binding))
            .or_else(|| find(&|binding| unnamed(binding) && same_uri(binding)))
    };
    if reg_id.is_none() {
        return of_no_flow().or_else(|| find(&same_text)).or_else(|| find(&same_uri));
    }
    let same_flow = |binding: &Binding| {
        binding.reg_id() == reg_id
            && binding.instance().is_some_and(|other| other.eq_ignore_ascii_case(instance))
    };
    find(&same_flow).or_else(of_no_flow)
}

/// 10.3 step 7: an older request of the same Call-ID changes nothing.
pub(super) fn in_order(binding: &Binding, asked: &Asked<'_>) -> Result<(), Response> {
    if binding.call_id() == asked.call_id && asked.cseq < binding.cseq {
        return Err(Response::new(500, "CSeq Out of Order"));
    }
    Ok(())
}

/// Whether this very request wrote the binding: a repetition, which changes nothing again.
pub(super) fn is_repeated(binding: &Binding, asked: &Asked<'_>) -> bool {
    binding.call_id() == asked.call_id && asked.cseq == binding.cseq
}

/// Where requests to the sender must go if it does not know itself: the Via that it wrote is not where the
/// packet came from, in the address, or in the port where it asks for that by `rport` (RFC 3581).
pub(super) fn flow(message: &Message<'_>, from: SocketAddr) -> Option<SocketAddr> {
    let via = message.top_via().ok()?;
    let port = via.port.unwrap_or(5060);
    let elsewhere = via.host.ip() != Some(from.ip());
    let other_port = via.rport != Rport::Absent && port != from.port();
    (elsewhere || other_port).then_some(from)
}
