//! The record of a call, and what of it stands in the INVITE.

use std::fmt;
use std::time::Duration;

use sip_ebpf::message::{Address, Message, Scheme, Uri, unescape};

use crate::core::put;

/// Characters of a name, a number, a channel.
const SHORT: usize = 80;
/// Characters of an account.
const ACCOUNT: usize = 20;
/// Characters of a Call-ID.
const LONG: usize = 255;

/// One call, in the columns of Asterisk's table `cdr` and a few of SIP's.
///
/// Times of day are microseconds since 1970 in UTC. Between them the monotonic clock has counted, so that a
/// clock which is set meanwhile makes no call longer or shorter. Texts are as long as the columns are.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Cdr {
    /// When the INVITE came.
    pub calldate: u64,
    /// The caller's name and number: `"Ann" <101>`.
    pub clid: Box<str>,
    /// The caller's number: the user of From.
    pub src: Box<str>,
    /// The called number: the user of the Request-URI as the caller wrote it.
    pub dst: Box<str>,
    /// The called domain.
    pub dcontext: Box<str>,
    /// The caller's side: the id of the PBX, or the phone's address.
    pub channel: Box<str>,
    /// The called side, the one that was tried last: the id of the PBX, or the phone's address.
    pub dstchannel: Box<str>,
    /// `dispatch` for a call to a PBX, `location` for one from a PBX.
    pub lastapp: &'static str,
    /// The whole Request-URI.
    pub lastdata: Box<str>,
    /// From the INVITE to the end.
    pub duration: Duration,
    /// From the answer to the end.
    pub billsec: Duration,
    /// What became of it.
    pub disposition: Disposition,
    /// The user whose credentials the INVITE had; else empty.
    pub accountcode: Box<str>,
    /// Tells it from all others, of all nodes: 1 to 32 visible ASCII characters.
    pub uniqueid: Box<str>,
    /// When it was answered.
    pub answerdate: Option<u64>,
    /// When it ended.
    pub enddate: u64,
    /// The Call-ID.
    pub call_id: Box<str>,
    /// The final status that the caller got.
    pub sip_code: u16,
    /// Who or what ended it.
    pub ending: Ending,
    /// The PBX that it went to, or came from.
    pub pbx: Option<Box<str>>,
}

/// What became of a call, in Asterisk's words.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Disposition {
    /// It was answered.
    Answered,
    /// It rang until somebody gave up: a missed call.
    NoAnswer,
    /// The callee was busy, or declined.
    Busy,
    /// It could not be set up.
    Failed,
}

impl Disposition {
    /// Of a call that was not answered. `missed`: the caller gave up, or it rang for too long.
    pub(super) fn of(status: u16, missed: bool) -> Self {
        match status {
            _ if missed => Self::NoAnswer,
            // As Asterisk has it.
            486 | 600 | 603 => Self::Busy,
            480 | 487 => Self::NoAnswer,
            _ => Self::Failed,
        }
    }

    /// As it stands in the table.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Answered => "ANSWERED",
            Self::NoAnswer => "NO ANSWER",
            Self::Busy => "BUSY",
            Self::Failed => "FAILED",
        }
    }
}

/// Who or what ended a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Ending {
    /// The caller, by BYE.
    Caller,
    /// The callee, by BYE.
    Callee,
    /// The caller, before it was answered: by CANCEL, or by BYE in an early dialog (RFC 3261 15).
    Cancelled,
    /// The called side, by a failure.
    Refused,
    /// We, by an answer of our own.
    Proxy,
    /// Nobody whom we have heard: its BYE was lost, and it was closed by the limit.
    Limit,
    /// Nobody: we ended while it went on.
    Stopped,
}

impl Ending {
    /// As it stands in the table.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Caller => "caller",
            Self::Callee => "callee",
            Self::Cancelled => "cancelled",
            Self::Refused => "refused",
            Self::Proxy => "proxy",
            Self::Limit => "limit",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for Disposition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a record takes from the INVITE.
#[derive(Debug)]
pub(super) struct Texts {
    pub(super) clid: Box<str>,
    pub(super) src: Box<str>,
    pub(super) dst: Box<str>,
    pub(super) dcontext: Box<str>,
    pub(super) lastdata: Box<str>,
    pub(super) accountcode: Box<str>,
    pub(super) call_id: Box<str>,
}

impl Texts {
    pub(super) fn of(invite: &Message<'_>, account: Option<&str>) -> Self {
        let caller = invite.from().ok();
        let called = invite.request_uri().ok();
        let src = caller.map(|from| number(&from.uri)).unwrap_or_default();
        let host = called.as_ref().and_then(|uri| uri.host).map(put::host);
        let as_written = String::from_utf8_lossy(invite.request_uri_bytes());
        Self {
            clid: cut(&caller.map(|from| clid(&from, &src)).unwrap_or_default(), SHORT),
            src: cut(&src, SHORT),
            dst: cut(&called.as_ref().map(number).unwrap_or_default(), SHORT),
            dcontext: cut(&host.unwrap_or_default().to_ascii_lowercase(), SHORT),
            lastdata: cut(&as_written, SHORT),
            accountcode: cut(account.unwrap_or_default(), ACCOUNT),
            call_id: cut(invite.call_id().unwrap_or_default(), LONG),
        }
    }
}

/// As long as a channel may be.
pub(super) fn channel(text: &str) -> Box<str> {
    cut(text, SHORT)
}

/// Who is meant by a URI, in the shortest words: its user, or the host if it has none.
fn number(uri: &Uri<'_>) -> String {
    match (uri.scheme, uri.user, uri.host) {
        (_, Some(user), _) => {
            let bytes: Vec<u8> = unescape(user).collect();
            String::from_utf8_lossy(&bytes).into_owned()
        }
        (_, None, Some(host)) => put::host(host),
        (Scheme::Tel, ..) => {
            let rest = uri.text.split_once(':').map_or(uri.text, |(_, rest)| rest);
            rest.split(';').next().unwrap_or_default().to_owned()
        }
        _ => uri.text.to_owned(),
    }
}

fn clid(from: &Address<'_>, number: &str) -> String {
    let Some(name) = from.display else { return number.to_owned() };
    // Of a quoted pair, what is quoted (25.1).
    let mut plain = Vec::with_capacity(name.len());
    let mut bytes = name.iter();
    while let Some(byte) = bytes.next() {
        let quoted = if *byte == b'\\' { bytes.next() } else { None };
        plain.push(*quoted.unwrap_or(byte));
    }
    format!("\"{}\" <{number}>", String::from_utf8_lossy(&plain))
}

/// The first characters, without those that would disturb a table.
fn cut(text: &str, limit: usize) -> Box<str> {
    // As nearly all are.
    if text.len() <= limit && text.bytes().all(|byte| (0x20..0x7f).contains(&byte)) {
        return text.into();
    }
    let visible = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    text.chars().take(limit).map(visible).collect::<String>().into()
}

#[cfg(test)]
mod tests {
    use super::*;
    use sip_ebpf::scan::Index;

    fn texts(uri: &str, from: &str) -> Texts {
        let text = format!(
            "INVITE {uri} SIP/2.0\r\nVia: SIP/2.0/UDP h;branch=z9hG4bK1\r\nFrom: {from};tag=a\r\n\
             To: <sip:x@y>\r\nCall-ID: c@h\r\nCSeq: 1 INVITE\r\n\r\n"
        );
        let mut index = Index::new();
        Texts::of(&Message::parse(text.as_bytes(), &mut index).unwrap(), Some("ann"))
    }

    #[test]
    fn names_and_numbers() {
        let of = texts("sip:1%3002@Example.COM;user=phone", "\"Ann \\\"A\\\"\" <sip:101@h>");
        assert_eq!(&*of.clid, "\"Ann \"A\"\" <101>");
        assert_eq!((&*of.src, &*of.dst), ("101", "1002"));
        assert_eq!(&*of.dcontext, "example.com");
        assert_eq!(&*of.lastdata, "sip:1%3002@Example.COM;user=phone");
        assert_eq!((&*of.accountcode, &*of.call_id), ("ann", "c@h"));
        let of = texts("tel:+34955;phone-context=x", "<tel:102;ext=1>");
        assert_eq!((&*of.clid, &*of.src, &*of.dst, &*of.dcontext), ("102", "102", "+34955", ""));
        let of = texts("sip:[2001:db8::1]:5070", "sip:anonymous.invalid");
        assert_eq!((&*of.src, &*of.dst), ("anonymous.invalid", "[2001:db8::1]"));
        // What is no text in a URI, and what is too long.
        let of = texts("sip:%00%ff@h", &format!("<sip:{}@h>", "9".repeat(300)));
        assert_eq!((&*of.dst, of.src.len()), ("\u{fffd}\u{fffd}", 80));
    }

    #[test]
    fn dispositions() {
        for (status, missed, want) in [
            (486, false, "BUSY"),
            (600, false, "BUSY"),
            (603, false, "BUSY"),
            (480, false, "NO ANSWER"),
            (487, true, "NO ANSWER"),
            (408, true, "NO ANSWER"),
            (408, false, "FAILED"),
            (404, false, "FAILED"),
            (503, false, "FAILED"),
        ] {
            assert_eq!(Disposition::of(status, missed).to_string(), want, "{status}");
        }
    }
}
