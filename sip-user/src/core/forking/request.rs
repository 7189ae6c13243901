//! The REGISTER that tells a PBX of a user, and what is read from its answer.

use std::net::{IpAddr, SocketAddr};

use sip_ebpf::message::{Contact, Message};

use crate::core::put::Put;

/// What a REGISTER says.
#[derive(Clone, Copy, Debug)]
pub(super) struct Saying<'a> {
    pub(super) user: &'a str,
    pub(super) pbx: SocketAddr,
    pub(super) ours: SocketAddr,
    /// Names this user at this PBX: half of it is the Call-ID, half the From tag.
    pub(super) name: u64,
    pub(super) cseq: u32,
    /// In seconds.
    pub(super) expires: u32,
    /// Name and value of a header with credentials.
    pub(super) credentials: Option<(&'static str, &'a str)>,
}

/// The request without a Via: that is the transaction's, which puts it behind the first line.
pub(super) fn register(saying: &Saying<'_>) -> String {
    let Saying { user, pbx, ours, name, cseq, expires, credentials } = *saying;
    let mut out = String::with_capacity(512);
    out.text("REGISTER sip:");
    authority(&mut out, pbx);
    out.text(" SIP/2.0\r\nMax-Forwards: 70\r\n");
    // The user as the PBX has it: without a port, which is no part of a name.
    for (header, tag) in [("From", Some(name)), ("To", None)] {
        out.text(header);
        out.text(": <sip:");
        out.text(user);
        out.text("@");
        host(&mut out, pbx.ip());
        out.text(">");
        if let Some(tag) = tag {
            out.text(";tag=");
            out.hex(tag, 8);
        }
        out.text("\r\n");
    }
    out.text("Call-ID: ");
    out.hex(name, 16);
    out.text("@");
    out.ip(ours.ip());
    out.text("\r\nCSeq: ");
    out.decimal(cseq.into());
    out.text(" REGISTER\r\nContact: <sip:");
    out.text(user);
    out.text("@");
    authority(&mut out, ours);
    out.text(">\r\nExpires: ");
    out.decimal(expires.into());
    out.text("\r\n");
    if let Some((name, value)) = credentials {
        for piece in [name, ": ", value, "\r\n"] {
            out.text(piece);
        }
    }
    out.text(concat!("User-Agent: sipline/", env!("CARGO_PKG_VERSION"), "\r\n"));
    out.text("Content-Length: 0\r\n\r\n");
    out
}

/// The Request-URI of that REGISTER, over which credentials are computed.
pub(super) fn request_uri(pbx: SocketAddr) -> String {
    let mut out = String::from("sip:");
    authority(&mut out, pbx);
    out
}

/// Host and port, as in a URI.
fn authority(out: &mut String, address: SocketAddr) {
    host(out, address.ip());
    out.text(":");
    out.decimal(address.port().into());
}

/// An IPv6 address stands in brackets (RFC 3261 25.1).
fn host(out: &mut String, address: IpAddr) {
    let (open, close) = if address.is_ipv6() { ("[", "]") } else { ("", "") };
    out.text(open);
    out.ip(address);
    out.text(close);
}

/// For how many seconds a PBX has registered the contact at our address (10.2.4): its `expires` in the
/// answer, else Expires. None if the answer does not say.
pub(super) fn granted(message: &Message<'_>, ours: SocketAddr) -> Option<u32> {
    let all = message.expires().ok().flatten();
    let contacts = message.contacts().map_while(Result::ok);
    let ours = contacts.filter_map(|contact| match contact {
        Contact::Address(binding) => {
            let uri = binding.address.uri;
            let here = uri.host.and_then(|host| host.ip()) == Some(ours.ip())
                && uri.port.unwrap_or(5060) == ours.port();
            here.then_some(binding.expires.or(all))
        }
        Contact::Star => None,
    });
    ours.flatten().max().or(all)
}

/// The number that a header starts with.
pub(super) fn number(message: &Message<'_>, name: &str) -> Option<u32> {
    let value = values(message, name).next()?;
    let digits = value.bytes().take_while(u8::is_ascii_digit).count();
    value.get(..digits)?.parse().ok()
}

/// The values of the headers of a name.
pub(super) fn values<'a>(message: &Message<'a>, name: &str) -> impl Iterator<Item = &'a str> {
    let named = message.headers().filter(move |h| h.name.eq_ignore_ascii_case(name.as_bytes()));
    named.filter_map(|header| str::from_utf8(header.value).ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use sip_ebpf::scan::Index;

    fn text(pbx: &str, ours: &str, credentials: Option<(&'static str, &str)>) -> String {
        register(&Saying {
            user: "b%20ob",
            pbx: pbx.parse().unwrap(),
            ours: ours.parse().unwrap(),
            name: 0x0123_4567_89ab_cdef,
            cseq: 7,
            expires: 3600,
            credentials,
        })
    }

    #[test]
    fn the_request_is_whole() {
        let credentials = Some(("Authorization", "Digest username=\"b\""));
        let text = text("10.10.2.2:5070", "10.10.0.1:5060", credentials);
        let version = env!("CARGO_PKG_VERSION");
        let want = [
            "REGISTER sip:10.10.2.2:5070 SIP/2.0",
            "Max-Forwards: 70",
            "From: <sip:b%20ob@10.10.2.2>;tag=89abcdef",
            "To: <sip:b%20ob@10.10.2.2>",
            "Call-ID: 0123456789abcdef@10.10.0.1",
            "CSeq: 7 REGISTER",
            "Contact: <sip:b%20ob@10.10.0.1:5060>",
            "Expires: 3600",
            "Authorization: Digest username=\"b\"",
            &format!("User-Agent: sipline/{version}"),
            "Content-Length: 0",
            "",
            "",
        ];
        assert_eq!(text, want.join("\r\n"));
    }

    #[test]
    fn ipv6_stands_in_brackets() {
        let text = text("[2001:db8::2]:5070", "[2001:db8::1]:5060", None);
        for line in [
            "REGISTER sip:[2001:db8::2]:5070 SIP/2.0",
            "From: <sip:b%20ob@[2001:db8::2]>;tag=89abcdef",
            "Contact: <sip:b%20ob@[2001:db8::1]:5060>",
        ] {
            assert!(text.split("\r\n").any(|has| has == line), "{line} in {text}");
        }
        assert_eq!(request_uri("[2001:db8::2]:5070".parse().unwrap()), "sip:[2001:db8::2]:5070");
        let text =
            text.replacen("\r\n", "\r\nVia: SIP/2.0/UDP [2001:db8::1];branch=z9hG4bKx\r\n", 1);
        let mut index = Index::new();
        Message::parse(text.as_bytes(), &mut index).unwrap().check_all().unwrap();
    }

    #[test]
    fn what_a_pbx_grants() {
        for (headers, want) in [
            ("", None),
            ("Expires: 300\r\n", Some(300)),
            ("Contact: <sip:b@10.0.0.1>;expires=60\r\nExpires: 300\r\n", Some(60)),
            (
                "Contact: <sip:b@10.0.0.9>;expires=60, <sip:b@10.0.0.1:5060>\r\nExpires: 300\r\n",
                Some(300),
            ),
            ("Contact: <sip:b@10.0.0.9>;expires=60\r\n", None),
            ("Contact: <sip:b@10.0.0.1>;expires=x\r\nExpires: 9\r\n", Some(9)),
        ] {
            let text = format!("SIP/2.0 200 OK\r\nMin-Expires: 12;x\r\n{headers}\r\n");
            let mut index = Index::new();
            let message = Message::parse(text.as_bytes(), &mut index).unwrap();
            assert_eq!(granted(&message, "10.0.0.1:5060".parse().unwrap()), want, "{headers}");
            assert_eq!(number(&message, "min-expires"), Some(12));
            assert_eq!(number(&message, "Retry-After"), None);
        }
    }
}
