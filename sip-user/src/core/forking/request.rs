//! The REGISTER that tells a PBX of a user, and what is read from its answer.

use std::net::{IpAddr, SocketAddr};

use rsip::headers::{CallId, ContentLength, Expires, MaxForwards, UserAgent};
use rsip::{Header, Headers, Host, HostWithPort, Method, Param, Request, Scheme, Uri, Version};
use sip_ebpf::message::{Contact, Message};

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
    let uri = |user: Option<&str>, address: SocketAddr, port: bool| Uri {
        scheme: Some(Scheme::Sip),
        auth: user.map(|user| (user, Option::<String>::None).into()),
        host_with_port: HostWithPort {
            host: host(address.ip()),
            port: port.then(|| address.port().into()),
        },
        ..Uri::default()
    };
    // The user as the PBX has it: without a port, which is no part of a name.
    let aor = uri(Some(saying.user), saying.pbx, false);
    let mut headers = Headers::default();
    headers.push(MaxForwards::from(70).into());
    headers.push(
        rsip::typed::From {
            display_name: None,
            uri: aor.clone(),
            params: vec![Param::Tag(format!("{:08x}", saying.name as u32).into())],
        }
        .into(),
    );
    headers.push(rsip::typed::To { display_name: None, uri: aor, params: Vec::new() }.into());
    headers.push(CallId::from(format!("{:016x}@{}", saying.name, saying.ours.ip())).into());
    headers.push(rsip::typed::CSeq { seq: saying.cseq, method: Method::Register }.into());
    headers.push(
        rsip::typed::Contact {
            display_name: None,
            uri: uri(Some(saying.user), saying.ours, true),
            params: Vec::new(),
        }
        .into(),
    );
    headers.push(Expires::from(saying.expires).into());
    if let Some((name, value)) = saying.credentials {
        headers.push(Header::Other(name.into(), value.into()));
    }
    headers.push(UserAgent::from(concat!("sipline/", env!("CARGO_PKG_VERSION"))).into());
    headers.push(ContentLength::from(0).into());
    let request = Request {
        method: Method::Register,
        uri: uri(None, saying.pbx, true),
        version: Version::V2,
        headers,
        body: Vec::new(),
    };
    request.to_string()
}

/// The Request-URI of that REGISTER, over which credentials are computed.
pub(super) fn request_uri(pbx: SocketAddr) -> String {
    format!("sip:{}:{}", host(pbx.ip()), pbx.port())
}

/// An IPv6 address stands in brackets (RFC 3261 25.1), which rsip leaves out.
fn host(address: IpAddr) -> Host {
    match address {
        IpAddr::V4(_) => Host::IpAddr(address),
        IpAddr::V6(v6) => Host::Domain(format!("[{v6}]").into()),
    }
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
