//! Whether a user is there, for a PBX that asks by OPTIONS (it "qualifies" him): which of these are answered, and the
//! bytes.
//!
//! A PBX has been told that its users are at an address of ours, so it asks for them there, each minute or so. The daemon
//! knows who is registered and mirrors it into the kernel. [`asked`] takes requests in the form that PBXs write, for a
//! user at the address that they came to; others are for the daemon, which answers them alike.

use crate::address::{Address, Words};
use crate::challenge::{USER, run};
use crate::edit::{ABOUT_US, ABOUT_WORDS, Front, Sink, answer_head};
use crate::header::{self, Span};
use crate::route::{Packet, Plan};
use crate::scan::{Index, Kind, Method};
use crate::tables::Local;
use crate::text::{LOWER, Text, head, literal};

/// The user that is asked for, as it stands in the Request-URI: letters, digits and what means itself there.
///
/// [`crate::route::route`] has decided on the request before and said [`crate::Reason::OptionsNotForUs`], and its sender
/// is a PBX.
#[inline(always)]
pub fn asked<T: Text, A: Address>(
    t: T,
    index: &Index,
    packet: Packet<A>,
    local: &Local<A>,
    plan: &Plan<A>,
) -> Option<Span> {
    if index.method != Method::Options as u32
        || index.has(Kind::Route)
        || index.has(Kind::Require)
        || index.apart(Kind::Via)
    {
        return None;
    }
    // The answer goes back to where the question came from (18.2.2).
    let via = &plan.via;
    if via.rport.at == 0 {
        let (_, port) = header::host_port::<T, A>(t, via.sent_by.at, via.sent_by.end).ok()?;
        if port != packet.src.port_number() as u32 {
            return None;
        }
    }
    let (at, end) = (index.uri, index.uri_end);
    if head(t.word(at) | LOWER, 4) != literal(b"sip:") {
        return None;
    }
    let user = Span { at: at + 4, end: run(t, at + 4, end, USER) };
    if user.is_empty() || user.end >= end || t.byte(user.end) != b'@' {
        return None;
    }
    // Read as if the scheme stood before the host.
    let as_uri = user.end.wrapping_sub(3);
    let (mut port, mut host) = (0, u64::from(local.host_len == 0));
    for i in 0..A::Uri::LEN {
        let mut differs = t.word(as_uri + 8 * i as u32) ^ local.uri.word(i);
        if i == 0 {
            differs &= !0xffff_ffff;
        }
        port |= differs & local.uri_mask.word(i);
        host |= differs & local.host_mask.word(i);
    }
    let behind = match (port, host) {
        (0, _) => as_uri + local.uri_len,
        (_, 0) => as_uri + local.host_len,
        _ => return None,
    };
    (behind == end || (behind < end && t.byte(behind) == b';')).then_some(user)
}

/// The answer, all of it: 200 as for an OPTIONS that asks us, or 404.
#[inline(always)]
pub fn answer<T: Text, A: Address, S: Sink>(
    t: T,
    index: &Index,
    packet: Packet<A>,
    plan: &Plan<A>,
    there: bool,
    out: &mut S,
) -> Front {
    out.put(0, literal(b"SIP/2.0 "));
    let start = if there {
        out.put(8, literal(b"200 OK\r\n"));
        16
    } else {
        out.put(8, literal(b"404 Not "));
        out.put(16, literal(b"Found\r\n"));
        23
    };
    let start = out.fresh(start);
    let Front { old, new: at } = answer_head(t, index, packet, plan, out, start);
    let len = if there {
        out.put_run::<{ ABOUT_WORDS.len() }>(at, |i| ABOUT_WORDS[i]);
        ABOUT_US.len() as u32
    } else {
        out.put_run::<{ NOTHING.len() }>(at, |i| NOTHING[i]);
        NOTHING_LEN
    };
    Front { old, new: out.fresh(at + len) }
}

/// The end of a message without a body.
const NOTHING: [u64; 3] = [literal(b"Content-"), literal(b"Length: "), literal(b"0\r\n\r\n")];
const NOTHING_LEN: u32 = "Content-Length: 0\r\n\r\n".len() as u32;

#[cfg(test)]
mod tests;
