//! The stateless proxy over IPv6 (RFC 3261 16.11), which the kernel program leaves to the daemon.
//!
//! The decision is [`mod@sip_ebpf::route`]'s here too, so that there is one set of rules; but that reads and
//! writes IPv4 addresses alone. It is asked with stand-ins for ours and the sender's, by which it finds no
//! Route that is ours and no way back for a response. Where an address matters, [`Line::decide`] goes on from
//! what was read, by the same rules in the same order, and the bytes are made here.

use std::net::{IpAddr, Ipv6Addr, SocketAddr, SocketAddrV6};

use sip_ebpf::address::Words;
use sip_ebpf::cookie::{self, Owner, STATELESS};
use sip_ebpf::hash::Keys;
use sip_ebpf::header::{Span, Via};
use sip_ebpf::message::{Scheme, Uri};
use sip_ebpf::route::{Packet, Plan};
use sip_ebpf::scan::{Index, Kind, Method};
use sip_ebpf::tables::{Endpoint, Local};
use sip_ebpf::{Reason, insert};

use super::cookie::Cookie;
use super::decision::Decision;
use super::dispatcher::Dispatcher;
use super::family::Family;

/// One of our IPv6 addresses, with the text that the proxy writes for it.
#[derive(Clone, Debug)]
pub struct Line {
    address: SocketAddrV6,
    /// `Via: SIP/2.0/UDP [ADDR]:PORT;branch=`, and how our branches start.
    via: String,
    /// A Route of ours up to its cookie: `<sip:[ADDR]:PORT;lr;sl=`.
    route: String,
    stand_in: Local,
}

/// A message with what is known about it.
#[derive(Clone, Copy, Debug)]
pub struct Asked<'a> {
    /// Its bytes.
    pub bytes: &'a [u8],
    /// What the scan found in them.
    pub index: &'a Index,
    /// Who sent it.
    pub from: SocketAddr,
    /// The keys of every hash and signature.
    pub keys: &'a Keys,
}

impl Asked<'_> {
    fn text(&self, span: Span) -> Option<&str> {
        let bytes = self.bytes.get(span.at as usize..span.end as usize)?;
        str::from_utf8(bytes).ok()
    }
}

impl Line {
    /// Makes the text of an address.
    pub fn new(address: SocketAddrV6) -> Self {
        // A zone means nothing to others (RFC 4007 11.2), and SIP has no way to write one.
        let written = SocketAddrV6::new(*address.ip(), address.port(), 0, 0);
        let branch = str::from_utf8(STATELESS).unwrap_or_default();
        Self {
            address,
            via: format!("Via: SIP/2.0/UDP {written};branch={branch}"),
            route: format!("<sip:{written};lr;sl="),
            // Words of zeros, which a message cannot have: no Route is taken for ours.
            stand_in: Local {
                route: Words::ZERO,
                route_mask: Words::ALL,
                ..insert::local(Endpoint::default())
            },
        }
    }

    /// What the shared decision is asked with in place of this address and of a sender's.
    pub fn stand_in(&self) -> (Packet, &Local) {
        (Packet { src: Endpoint::default(), dst: Endpoint::default() }, &self.stand_in)
    }

    /// Where packets for an address go that came in here or stands in a message: a link-local one has the
    /// zone of ours.
    pub fn reach(&self, to: SocketAddr) -> SocketAddr {
        match to {
            SocketAddr::V6(v6) if v6.ip().is_unicast_link_local() => {
                SocketAddrV6::new(*v6.ip(), v6.port(), 0, self.address.scope_id()).into()
            }
            _ => to,
        }
    }

    /// Finishes what the shared decision began.
    pub fn decide(&self, asked: &Asked<'_>, dispatcher: &Dispatcher, decision: &mut Decision) {
        let plan = &mut decision.plan;
        let response = asked.index.method == Method::Response as u32;
        let decided = match decision.reason {
            Reason::InviteSteered
            | Reason::InviteRepeated
            | Reason::CancelSteered
            | Reason::AckSteered => {
                if plan.record != 0 {
                    let cookie = Cookie { flow: asked.from, slot: plan.slot, recorded: false };
                    decision.cookie = cookie.write(asked.keys, plan.call);
                }
                match dispatcher.pbx_of(plan.slot, Family::V6) {
                    Some((pbx, _)) => Ok((decision.reason, pbx)),
                    None => Err(Reason::NoPbx),
                }
            }
            Reason::OptionsNotForUs | Reason::OptionsAnswered if self.is_asked(asked) => {
                Ok((Reason::OptionsAnswered, asked.from))
            }
            // The stand-in for our address has taken the one in the Request-URI for ours.
            Reason::OptionsAnswered => Err(Reason::OptionsNotForUs),
            Reason::OddRoute => self.dialog(asked, dispatcher, plan),
            Reason::ResponseForwarded | Reason::WrongSide | Reason::BadBranch if response => {
                response_forwarded(asked, dispatcher, plan)
            }
            other => Err(other),
        };
        match decided {
            Ok((reason, next)) => (decision.reason, decision.next) = (reason, next),
            Err(reason) => decision.reason = reason,
        }
    }

    /// Whether an OPTIONS asks us and nothing else (RFC 3261 11): the Request-URI is `sip:`, this address
    /// and at most parameters.
    fn is_asked(&self, asked: &Asked<'_>) -> bool {
        let index = asked.index;
        if index.has(Kind::Route) || index.has(Kind::Require) {
            return false;
        }
        let uri = asked.text(Span { at: index.uri, end: index.uri_end });
        uri.and_then(|text| Uri::parse(text).ok()).is_some_and(|uri| {
            uri.scheme == Scheme::Sip
                && uri.user.is_none()
                && uri.headers.is_none()
                && uri.host.and_then(|host| host.ip()) == Some(IpAddr::V6(*self.address.ip()))
                && uri.port.unwrap_or(5060) == self.address.port()
        })
    }

    /// A request inside a dialog follows our Record-Route (16.12), which must stand alone.
    fn dialog(
        &self,
        asked: &Asked<'_>,
        dispatcher: &Dispatcher,
        plan: &mut Plan,
    ) -> Result<(Reason, SocketAddr), Reason> {
        let line = asked.index.first(Kind::Route).ok_or(Reason::OddRoute)?;
        let value = Span { at: line.value.into(), end: line.end.into() };
        let digits = asked.text(value).and_then(|text| text.strip_prefix(self.route.as_str()));
        let digits = digits.and_then(|text| text.strip_suffix('>'));
        let digits = digits.filter(|digits| digits.len() == super::cookie::digits(Family::V6));
        let Some(digits) = digits.filter(|_| !asked.index.repeated(Kind::Route)) else {
            return Err(Reason::OddRoute);
        };
        let (cookie, signature) = Cookie::read(digits.as_bytes()).ok_or(Reason::BadCookie)?;
        if !cookie.signed(signature, asked.keys, plan.call) {
            return Err(Reason::BadCookie);
        }
        plan.record = 0;
        plan.slot = cookie.slot;
        plan.cut = Span { at: line.start.into(), end: u32::from(line.end) + 2 };
        let (reason, next) = match dispatcher.slot_at(asked.from) {
            Some(slot) if slot == cookie.slot => (Reason::DialogToPhone, cookie.flow),
            Some(_) => return Err(Reason::WrongSide),
            None => match dispatcher.pbx_of(cookie.slot, Family::V6) {
                Some((pbx, _)) => (Reason::DialogToPbx, pbx),
                None => return Err(Reason::NoPbx),
            },
        };
        let ends = cookie.recorded && asked.index.method == Method::Bye as u32;
        Ok((if ends { Reason::ByeRecorded } else { reason }, next))
    }

    /// A request on its way: our Via on top, maybe a Record-Route, `received` and `rport` for who sent it
    /// (18.2.1, RFC 3581 4), our Route out. As [`sip_ebpf::edit::request`].
    pub fn request(&self, asked: &Asked<'_>, decision: &Decision) -> Vec<u8> {
        let Asked { bytes, index, .. } = *asked;
        let plan = &decision.plan;
        let mut out = Vec::with_capacity(bytes.len() + 320);
        let headers = index.headers as usize;
        out.extend_from_slice(bytes.get(..headers).unwrap_or_default());
        if plan.record != 0 {
            let line = format!("Record-Route: {}{}>\r\n", self.route, decision.cookie);
            out.extend_from_slice(line.as_bytes());
        }
        out.extend_from_slice(format!("{}{:016x}\r\n", self.via, plan.branch).as_bytes());
        // Two places are left, in whichever order they stand: the end of the Via, and the Route.
        let via = &plan.via;
        let fill = if via.rport.at != 0 { via.rport.at } else { via.end } as usize;
        let cut = plan.cut.at as usize..plan.cut.end as usize;
        let mut edits = [(fill..fill, received(asked, via)), (cut, String::new())];
        edits.sort_by_key(|(range, _)| range.start);
        let mut at = headers;
        for (range, text) in edits {
            // No cut is one in front of the headers.
            if range.start < at {
                continue;
            }
            out.extend_from_slice(bytes.get(at..range.start).unwrap_or_default());
            out.extend_from_slice(text.as_bytes());
            at = range.end;
        }
        out.extend_from_slice(bytes.get(at..).unwrap_or_default());
        out
    }
}

/// A response on its way: without our Via.
pub fn response(bytes: &[u8], plan: &Plan) -> Vec<u8> {
    let head = bytes.get(..plan.cut.at as usize).unwrap_or_default();
    let rest = bytes.get(plan.cut.end as usize..).unwrap_or_default();
    [head, rest].concat()
}

/// A response goes where the Via below ours says (16.11, 18.2.2), to or from a PBX only.
fn response_forwarded(
    asked: &Asked<'_>,
    dispatcher: &Dispatcher,
    plan: &mut Plan,
) -> Result<(Reason, SocketAddr), Reason> {
    let line = asked.index.first(Kind::Via).ok_or(Reason::BadBranch)?;
    // Without a Via below ours none was read.
    if plan.next_via.at == 0 {
        return Err(Reason::BadBranch);
    }
    let branch = cookie::branch(asked.keys, plan.call, asked.bytes, plan.next_via.branch);
    if cookie::owner(asked.bytes, plan.via.branch) != Owner::Stateless(branch) {
        return Err(Reason::BadBranch);
    }
    let next = way_back(asked, &plan.next_via).ok_or(Reason::BadBranch)?;
    if dispatcher.slot_at(asked.from).is_none() && dispatcher.slot_at(next).is_none() {
        return Err(Reason::WrongSide);
    }
    plan.cut = if plan.via.end < u32::from(line.end) {
        Span { at: plan.via.at, end: plan.next_via.at }
    } else {
        Span { at: line.start.into(), end: u32::from(line.end) + 2 }
    };
    Ok((Reason::ResponseForwarded, next))
}

/// `=port;received=address` behind an `rport`, or `;received=address` where the sender's own words differ
/// from where the packet came from (RFC 3261 18.2.1, RFC 3581 4). The address has no brackets (25.1).
fn received(asked: &Asked<'_>, via: &Via) -> String {
    let (ip, port) = (asked.from.ip(), asked.from.port());
    if via.rport.at != 0 {
        return format!("={port};received={ip}");
    }
    match asked.text(via.sent_by).and_then(host_port) {
        Some((said, _)) if said == ip => String::new(),
        _ => format!(";received={ip}"),
    }
}

/// Where a response for this Via goes: `received` and `rport` before the sender's own words (18.2.2,
/// RFC 3581 4).
fn way_back(asked: &Asked<'_>, via: &Via) -> Option<SocketAddr> {
    if via.maddr != 0 {
        return None;
    }
    let given = |span: Span| if span.is_empty() { None } else { Some(asked.text(span)) };
    // With `received` and `rport` the sender's own words do not matter, and may be a name.
    let said = || asked.text(via.sent_by).and_then(host_port);
    let ip = match given(via.received) {
        Some(text) => received_address(text?)?,
        None => said()?.0,
    };
    let port = match given(via.rport) {
        Some(text) => port(text?)?,
        None => said()?.1,
    };
    Some(SocketAddr::from((ip, port)))
}

/// With or without brackets (RFC 5118 4.5).
fn received_address(text: &str) -> Option<Ipv6Addr> {
    let bare = text.strip_prefix('[').and_then(|text| text.strip_suffix(']'));
    bare.unwrap_or(text).parse().ok()
}

/// `[2001:db8::1]` or `[2001:db8::1]:5060`; the port is 5060 if there is none (18.2.2).
fn host_port(text: &str) -> Option<(Ipv6Addr, u16)> {
    let (ip, rest) = text.strip_prefix('[')?.split_once(']')?;
    let port = if rest.is_empty() { 5060 } else { port(rest.strip_prefix(':')?)? };
    Some((ip.parse().ok()?, port))
}

fn port(text: &str) -> Option<u16> {
    // `parse` would also take a sign, and zeros without end.
    let digits = (1..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|port| digits && *port != 0)
}

#[cfg(test)]
mod tests;
