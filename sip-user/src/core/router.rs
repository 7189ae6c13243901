//! Where a request goes that starts something: the rules of the seed, in its order.
//!
//! Who sent it has been asked who he is before ([`super::authenticator`]); what is inside a dialog, and calls
//! of networks that are trusted, are carried without memory and do not come by here ([`super::proxy`]).

use std::net::SocketAddr;
use std::time::Instant;

use sip_ebpf::message::{Message, Scheme, Uri};
use sip_ebpf::scan::Method;

use super::canonical;
use super::family::Family;
use super::registrar::{Aor, Reach, Registrar};
use super::reply::Response;

/// Methods that a contact may be asked for from outside of a dialog, for the Allow of a 405.
const METHODS: [(&str, Method); 6] = [
    ("INVITE", Method::Invite),
    ("CANCEL", Method::Cancel),
    ("OPTIONS", Method::Options),
    ("MESSAGE", Method::Message),
    ("NOTIFY", Method::Notify),
    ("REFER", Method::Refer),
];

/// Where a request goes.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Way<'a> {
    /// To a PBX: a call of a phone.
    Dispatch,
    /// To contacts of a user, with the addresses where they really are.
    Location(Vec<(Reach<'a>, SocketAddr)>),
}

/// Where a request goes, which came from `from`: a PBX, or somebody who has proved who he is. The error is how it is
/// answered.
pub fn route<'a>(
    now: Instant,
    message: &Message<'_>,
    from: SocketAddr,
    is_pbx: bool,
    registrar: &'a Registrar,
    locals: &[SocketAddr],
) -> Result<Way<'a>, Response> {
    let method = message.method();
    // Presence.
    if matches!(method, Method::Publish | Method::Subscribe) {
        return Err(Response::new(404, "Not here"));
    }
    let uri = message.request_uri()?;
    match uri.scheme {
        // There is no TLS.
        Scheme::Sips => return Err(Response::new(416, "Unsupported URI Scheme")),
        Scheme::Sip if uri.user.is_none() => {
            return Err(Response::new(484, "Address Incomplete"));
        }
        _ => {}
    }
    if method == Method::Invite && !is_pbx {
        return Ok(Way::Dispatch);
    }
    let aor = match uri.host {
        Some(host) if registrar.domains().has(host) => Aor::of(&uri),
        _ => None,
    };
    let aor = aor.ok_or_else(|| Response::new(404, "Not Found"))?;
    // A PBX has been told of a user at our address, whatever his domain.
    let by_address = uri.host.and_then(|host| host.ip());
    let by_address = by_address.is_some_and(|ip| locals.iter().any(|local| local.ip() == ip));
    let all = match is_pbx && by_address {
        true => registrar.lookup_user(aor.user(), now),
        false => registrar.lookup(&aor, now),
    };
    location(&all, method, Family::of(from), locals)
}

/// Those of the contacts of a user that a request may be sent to.
fn location<'a>(
    all: &[Reach<'a>],
    method: Method,
    family: Family,
    locals: &[SocketAddr],
) -> Result<Way<'a>, Response> {
    if all.is_empty() {
        return Err(Response::new(404, "Not Found"));
    }
    let mut fit: Vec<_> = all.iter().filter(|reach| reach.methods.allow(method)).copied().collect();
    if fit.is_empty() {
        let allowed = METHODS
            .iter()
            .filter(|(_, method)| all.iter().any(|reach| reach.methods.allow(*method)));
        let allowed: Vec<_> = allowed.map(|(name, _)| *name).collect();
        let allow = format!("Allow: {}\r\n", allowed.join(", "));
        return Err(Response::new(405, "Method Not Allowed").with(&allow));
    }
    // One that names us would come back at once, and of a name nobody here knows the address.
    let address = |reach: &Reach<'_>| {
        let next = match reach.path {
            Some(path) => first_address(path),
            None => reach.flow.or_else(|| canonical::target(&Uri::parse(reach.contact).ok()?)),
        };
        next.filter(|next| !locals.contains(next))
    };
    let mut reached: Vec<_> =
        fit.drain(..).filter_map(|reach| Some((reach, address(&reach)?))).collect();
    if reached.is_empty() {
        return Err(Response::new(480, "Temporarily Unavailable"));
    }
    let ours = |family| locals.iter().any(|local| Family::of(*local) == family);
    reached.retain(|(_, next)| Family::of(*next) == family || ours(Family::of(*next)));
    if reached.is_empty() {
        return Err(other_family(&format!("No contact has an {family} address")));
    }
    // Of those that are preferred alike, the sender's family first.
    reached.sort_by_key(|(_, next)| Family::of(*next) != family);
    Ok(Way::Location(reached))
}

/// There is somebody, but in a family that we have no address of.
pub fn other_family(why: &str) -> Response {
    let warning = format!("Warning: 301 sipline \"{why}\"\r\n");
    Response::new(488, "Not Acceptable Here").with(&warning)
}

/// Where the first value of a Path leads.
fn first_address(path: &str) -> Option<SocketAddr> {
    let (_, rest) = path.split_once('<')?;
    let (uri, _) = rest.split_once('>')?;
    canonical::target(&Uri::parse(uri).ok()?)
}
