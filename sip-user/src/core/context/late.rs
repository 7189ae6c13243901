//! The end of a call that nobody waits for any more: a 2xx has come after we had given its target up. Were it
//! dropped, the target would send it for 32 seconds and talk to nobody meanwhile.
//!
//! We act as the caller would (13.2.2.4, 15.1): ACK, then BYE, in the dialog as it is below us.

use sip_ebpf::message::{Contact, Message, Uri};
use sip_ebpf::scan::Kind;

use super::forward::first_route;

/// They go on from us.
const END: &str = "Max-Forwards: 70\r\nContent-Length: 0\r\n\r\n";

/// The dialog that a 2xx has made, seen from us.
#[derive(Debug)]
pub(in crate::core) struct Dialog<'a, 'm> {
    response: &'a Message<'m>,
    /// Request-URI.
    uri: String,
    /// Route lines.
    routes: String,
    /// CSeq of the INVITE.
    number: u32,
}

impl<'a, 'm> Dialog<'a, 'm> {
    /// `above` is how many values of Record-Route the INVITE had when we forwarded it: those behind us.
    pub(in crate::core) fn new(response: &'a Message<'m>, above: usize) -> Option<Self> {
        let mut below = Vec::new();
        for route in response.record_routes() {
            below.push(response.slice(route.ok()?.span));
        }
        below.truncate(below.len().saturating_sub(above));
        // The nearest stands last.
        let mut routes: Vec<_> =
            below.iter().rev().filter_map(|route| str::from_utf8(route).ok()).collect();
        let contact = response.contacts().find_map(|contact| match contact.ok()? {
            Contact::Address(binding) => Some(binding.address.uri.text),
            Contact::Star => None,
        });
        // Without a Contact, which it must have (12.1.1), the To is the best guess.
        let target = match contact {
            Some(contact) => contact,
            None => response.to().ok()?.uri.text,
        };
        let mut uri = target.to_owned();
        // A neighbour that routes strictly (12.2.1.1).
        let strict = routes.first().and_then(|route| first_route(route)).map(|(first, _)| first);
        let strict = strict.filter(|first| Uri::parse(first).is_ok_and(|first| !first.lr()));
        let remote = format!("<{target}>");
        if let Some(first) = strict {
            uri = first.to_owned();
            routes.remove(0);
            routes.push(&remote);
        }
        let routes = routes.iter().map(|route| format!("Route: {route}\r\n")).collect();
        Some(Self { response, uri, routes, number: response.cseq().ok()?.number })
    }

    /// What tells this dialog from others of the same INVITE.
    pub(in crate::core) fn tag(&self) -> &'m str {
        self.response.to().ok().and_then(|to| to.tag()).unwrap_or_default()
    }

    /// The ACK (13.2.2.4), with the value of its Via.
    pub(in crate::core) fn ack(&self, via: &str) -> Option<Vec<u8>> {
        self.request("ACK", self.number, via)
    }

    /// The BYE (15.1.1). The caller knows nothing of the dialog, so it has used no number in it.
    pub(in crate::core) fn bye(&self, via: &str) -> Option<Vec<u8>> {
        self.request("BYE", self.number.wrapping_add(1) & i32::MAX as u32, via)
    }

    fn request(&self, method: &str, number: u32, via: &str) -> Option<Vec<u8>> {
        let Self { response, uri, routes, .. } = self;
        let value = |kind| {
            let header = response.headers().find(|header| header.kind == kind)?;
            str::from_utf8(header.value).ok()
        };
        let (from, to) = (value(Kind::From)?, value(Kind::To)?);
        let call_id = value(Kind::CallId)?;
        let text = format!(
            "{method} {uri} SIP/2.0\r\nVia: {via}\r\n{routes}From: {from}\r\nTo: {to}\r\n\
             Call-ID: {call_id}\r\nCSeq: {number} {method}\r\n{END}"
        );
        Some(text.into_bytes())
    }
}
