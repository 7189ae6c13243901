//! What is forwarded: a request with what 16.6 changes in it, and a response without our Via (16.7 step 3).

use std::net::SocketAddr;

use sip_ebpf::header::Span;
use sip_ebpf::message::{Error, Message, Uri};
use sip_ebpf::scan::Kind;

use super::Target;
use crate::core::digest::Credentials;
use crate::core::put::Put;
use crate::core::reply;

/// Max-Forwards that a request without one goes on with: the seed's.
const DEFAULT_HOPS: u8 = 10;
/// The largest Max-Forwards that is taken (8.1.1.6 recommends to start with it).
const MOST_HOPS: u8 = 70;
/// The largest Max-Breadth, and that of a request without one (RFC 5393 5.3.3).
const MOST_BREADTH: u16 = 60;
/// The longest datagram of UDP over IPv4.
const LONGEST: usize = 65_507;

/// What all copies of a request have in common.
#[derive(Clone, Copy, Debug)]
pub(in crate::core) struct Original<'a, 'm> {
    pub(in crate::core) message: &'a Message<'m>,
    /// Where it came from.
    pub(in crate::core) from: SocketAddr,
    /// Our addresses, in the order that [`crate::core::transaction::Flow::local`] counts.
    pub(in crate::core) locals: &'a [SocketAddr],
    /// Realms whose credentials are taken off.
    pub(in crate::core) realms: &'a [String],
}

/// How far a request may go on.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Hops {
    /// Max-Forwards of the forwarded request.
    Left(u8),
    /// Not at all.
    None,
}

/// Max-Forwards of what is forwarded (16.3 step 3, 16.6 step 3). One that is no number ends here, as in the
/// seed: whoever cannot count could go on for ever.
pub(super) fn hops(message: &Message<'_>) -> Hops {
    match message.max_forwards() {
        Ok(None) => Hops::Left(DEFAULT_HOPS),
        Ok(Some(hops)) if hops.value > 0 => Hops::Left(hops.value.min(MOST_HOPS) - 1),
        _ => Hops::None,
    }
}

/// Max-Breadth of a request (RFC 5393 5.3.3): how many copies of it there may be at once.
pub(in crate::core) fn breadth(message: &Message<'_>) -> u16 {
    let mut others = message.headers_of(Kind::Other);
    let header = others.find(|header| is_max_breadth(header.name));
    let digits = header.and_then(|header| str::from_utf8(header.value).ok());
    digits.and_then(|digits| digits.parse().ok()).unwrap_or(MOST_BREADTH).min(MOST_BREADTH)
}

/// The copy of a request for a target (16.6). None if it is too long for a datagram.
pub(in crate::core) fn request(
    original: Original<'_, '_>,
    target: &Target,
    branch: &str,
    breadth: u16,
) -> Result<Option<Vec<u8>>, Error> {
    let Original { message, from, locals, realms } = original;
    let Hops::Left(hops) = hops(message) else { return Ok(None) };
    let Some(local) = locals.get(target.flow.local) else { return Ok(None) };
    let old_uri = str::from_utf8(message.request_uri_bytes()).unwrap_or_default();
    let uri = target.uri.as_deref().unwrap_or(old_uri);
    let strict = strict_hop(uri, target.route.as_deref());
    let (uri, route) = match &strict {
        Some((uri, route)) => (*uri, Some(route.as_str())),
        None => (uri, target.route.as_deref()),
    };
    let mut out = Vec::with_capacity(message.bytes().len() + 384);
    out.text(message.method_name()?);
    out.text(" ");
    out.text(uri);
    out.text(" SIP/2.0\r\n");
    for record_route in target.record_routes.iter().flatten() {
        out.text("Record-Route: ");
        out.text(record_route);
        out.text("\r\n");
    }
    out.text("Via: SIP/2.0/UDP ");
    out.address(*local);
    out.text(";branch=");
    out.text(branch);
    if let Some(route) = route {
        out.text("\r\nRoute: ");
        out.text(route);
    }
    out.text("\r\nMax-Forwards: ");
    out.decimal(hops.into());
    out.text("\r\nMax-Breadth: ");
    out.decimal(breadth.into());
    out.text("\r\n");
    if reply::vias(message, from, &mut out).is_none() {
        return Err(Error::Missing(Kind::Via));
    }
    // What stays is copied in pieces as long as they can be.
    let mut kept = Span { at: message.headers_at(), end: message.headers_at() };
    for header in message.headers() {
        let dropped = match header.kind {
            Kind::Via | Kind::Route | Kind::MaxForwards => true,
            Kind::ProxyAuthorization => Credentials::are_for(header.value, realms),
            Kind::Other => is_max_breadth(header.name),
            _ => false,
        };
        if dropped || header.span.at != kept.end {
            out.extend_from_slice(message.slice(kept));
            kept.at = if dropped { header.span.end } else { header.span.at };
        }
        kept.end = header.span.end;
    }
    out.extend_from_slice(message.slice(kept));
    out.extend_from_slice(b"\r\n");
    out.extend_from_slice(message.body()?);
    Ok((out.len() <= LONGEST).then_some(out))
}

/// A response as it is forwarded: without our Via. None if no other Via is below it: then it was for us.
pub(in crate::core) fn response(message: &Message<'_>) -> Option<Vec<u8>> {
    if !has_more_vias(message) {
        return None;
    }
    let cut = message.cut_first(Kind::Via).ok()??;
    let body = message.body().ok()?;
    let head = message.bytes().get(..message.headers_end() as usize + 2)?;
    let (before, after) = (head.get(..cut.at as usize)?, head.get(cut.end as usize..)?);
    Some([before, after, body].concat())
}

/// Whether there are Vias below the top one, which is read already. All are well-formed: [`Message::check`] has
/// seen them.
pub(super) fn has_more_vias(message: &Message<'_>) -> bool {
    let Some(line) = message.index().first(Kind::Via) else { return false };
    let joined =
        || matches!(message.cut_first(Kind::Via), Ok(Some(cut)) if cut.end <= line.end.into());
    message.index().repeated(Kind::Via) || joined()
}

/// Request-URI and Route for the next hop. A neighbour that routes strictly wants its own address as the
/// Request-URI, and ours at the end of the Routes (16.6 step 6).
///
/// `None` where it routes loosely, as nearly all do: then both are as they were.
fn strict_hop<'a>(uri: &str, route: Option<&'a str>) -> Option<(&'a str, String)> {
    let (first, rest) = first_route(route?)?;
    // What cannot be read is not taken for strict.
    if !Uri::parse(first).is_ok_and(|first| !first.lr()) {
        return None;
    }
    Some(match rest {
        "" => (first, format!("<{uri}>")),
        rest => (first, format!("{rest}, <{uri}>")),
    })
}

/// The URI of the first value of a Route, and the values behind it.
pub(super) fn first_route(route: &str) -> Option<(&str, &str)> {
    let mut quoted = false;
    let mut escaped = false;
    let open = route.find(|character| {
        let is_quote = character == '"' && !escaped;
        quoted ^= is_quote;
        escaped = quoted && character == '\\' && !escaped;
        character == '<' && !quoted
    })?;
    let (uri, rest) = route.get(open + 1..)?.split_once('>')?;
    Some((uri, rest.split_once(',').map_or("", |(_, rest)| rest.trim())))
}

fn is_max_breadth(name: &[u8]) -> bool {
    name.eq_ignore_ascii_case(b"Max-Breadth")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_come_apart() {
        assert_eq!(first_route("<sip:a;lr>"), Some(("sip:a;lr", "")));
        assert_eq!(first_route("<sip:a;lr>;x=1, <sip:b>"), Some(("sip:a;lr", "<sip:b>")));
        assert_eq!(first_route("\"<\\\"<\" <sip:a>,<sip:b>"), Some(("sip:a", "<sip:b>")));
        assert_eq!(first_route("sip:a"), None);
        assert_eq!(first_route("<sip:a"), None);
    }

    #[test]
    fn strict_neighbours() {
        let next = |route| strict_hop("sip:bob@x", route);
        let own = |uri, route: &str| Some((uri, route.to_owned()));
        assert_eq!(next(None), None);
        assert_eq!(next(Some("<sip:p;lr>, <sip:q>")), None);
        assert_eq!(next(Some("<sip:p>")), own("sip:p", "<sip:bob@x>"));
        assert_eq!(next(Some("<sip:p>, <sip:q;lr>")), own("sip:p", "<sip:q;lr>, <sip:bob@x>"));
    }
}
