//! The OPTIONS that asks a PBX whether it is alive.

use std::net::{IpAddr, SocketAddr};

use rsip::headers::{CallId, ContentLength, MaxForwards, UserAgent};
use rsip::{Header, Headers, Host, HostWithPort, Method, Param, Request, Scheme, Uri, Version};
use sip_ebpf::cookie;

/// Which probe it is: 64 bits that nobody else can guess, so an answer with them comes from who got the
/// question.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Token(pub u64);

impl Token {
    /// The branch of the probe's transaction.
    pub fn branch(self) -> String {
        // The kernel passes responses with such a branch up.
        let start = str::from_utf8(cookie::DAEMON).unwrap_or_default();
        format!("{start}{:016x}", self.0)
    }

    /// The token in a branch of ours, if it is a probe's.
    pub fn from_branch(branch: &[u8]) -> Option<Self> {
        let digits = branch.strip_prefix(cookie::DAEMON)?;
        // `from_str_radix` would also take a sign.
        if digits.len() != 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
            return None;
        }
        let digits = str::from_utf8(digits).ok()?;
        u64::from_str_radix(digits, 16).ok().map(Self)
    }
}

/// The request, from `local` (an address of ours) to `pbx`. Repetitions of it are the same bytes.
pub fn options(local: SocketAddr, pbx: SocketAddr, token: Token) -> Vec<u8> {
    let uri = |user: Option<&str>, address: SocketAddr| Uri {
        scheme: Some(Scheme::Sip),
        auth: user.map(|user| (user, Option::<String>::None).into()),
        host_with_port: HostWithPort {
            host: host(address.ip()),
            port: Some(address.port().into()),
        },
        ..Uri::default()
    };
    let mut headers = Headers::default();
    headers.push(
        rsip::typed::Via {
            version: Version::V2,
            transport: rsip::Transport::Udp,
            uri: uri_without_scheme(uri(None, local)),
            params: vec![Param::Branch(token.branch().into())],
        }
        .into(),
    );
    headers.push(MaxForwards::from(70).into());
    headers.push(
        rsip::typed::From {
            display_name: None,
            uri: uri(Some("sipline"), local),
            params: vec![Param::Tag(format!("{:08x}", token.0 as u32).into())],
        }
        .into(),
    );
    headers.push(
        rsip::typed::To { display_name: None, uri: uri(None, pbx), params: Vec::new() }.into(),
    );
    headers.push(CallId::from(format!("{:016x}@{}", token.0.rotate_left(32), local.ip())).into());
    headers.push(rsip::typed::CSeq { seq: 1, method: Method::Options }.into());
    headers.push(
        rsip::typed::Contact {
            display_name: None,
            uri: uri(Some("sipline"), local),
            params: Vec::new(),
        }
        .into(),
    );
    headers.push(Header::Accept("application/sdp".into()));
    headers.push(UserAgent::from(concat!("sipline/", env!("CARGO_PKG_VERSION"))).into());
    headers.push(ContentLength::from(0).into());
    let request = Request {
        method: Method::Options,
        uri: uri(None, pbx),
        version: Version::V2,
        headers,
        body: Vec::new(),
    };
    request.to_string().into_bytes()
}

/// An IPv6 address stands in brackets (RFC 3261 25.1), which rsip leaves out.
fn host(address: IpAddr) -> Host {
    match address {
        IpAddr::V4(_) => Host::IpAddr(address),
        IpAddr::V6(v6) => Host::Domain(format!("[{v6}]").into()),
    }
}

/// A Via has a host and port where other headers have a URI; rsip takes the one for the other.
fn uri_without_scheme(uri: Uri) -> Uri {
    Uri { scheme: None, ..uri }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sip_ebpf::message::Message;
    use sip_ebpf::scan::Index;

    #[test]
    fn the_request_is_whole() {
        let local = "10.10.0.1:5060".parse().unwrap();
        let pbx = "10.10.2.2:5070".parse().unwrap();
        let text = String::from_utf8(options(local, pbx, Token(0x0123_4567_89ab_cdef))).unwrap();
        let version = env!("CARGO_PKG_VERSION");
        let want = [
            "OPTIONS sip:10.10.2.2:5070 SIP/2.0",
            "Via: SIP/2.0/UDP 10.10.0.1:5060;branch=z9hG4bKsld0123456789abcdef",
            "Max-Forwards: 70",
            "From: <sip:sipline@10.10.0.1:5060>;tag=89abcdef",
            "To: <sip:10.10.2.2:5070>",
            "Call-ID: 89abcdef01234567@10.10.0.1",
            "CSeq: 1 OPTIONS",
            "Contact: <sip:sipline@10.10.0.1:5060>",
            "Accept: application/sdp",
            &format!("User-Agent: sipline/{version}"),
            "Content-Length: 0",
            "",
            "",
        ];
        assert_eq!(text, want.join("\r\n"));
    }

    #[test]
    fn ipv6_stands_in_brackets() {
        let (local, pbx) = ("[2001:db8::1]:5060", "[2001:db8::2]:5070");
        let text = options(local.parse().unwrap(), pbx.parse().unwrap(), Token(1));
        let text = String::from_utf8(text).unwrap();
        for line in [
            "OPTIONS sip:[2001:db8::2]:5070 SIP/2.0",
            "Via: SIP/2.0/UDP [2001:db8::1]:5060;branch=z9hG4bKsld0000000000000001",
            "From: <sip:sipline@[2001:db8::1]:5060>;tag=00000001",
            "To: <sip:[2001:db8::2]:5070>",
            "Call-ID: 0000000100000000@2001:db8::1",
            "Contact: <sip:sipline@[2001:db8::1]:5060>",
        ] {
            assert!(text.split("\r\n").any(|has| has == line), "{line} in {text}");
        }
        let mut index = Index::new();
        Message::parse(text.as_bytes(), &mut index).unwrap().check_all().unwrap();
    }

    #[test]
    fn a_token_comes_back_from_its_branch_only() {
        let token = Token(0x00ff_0000_0000_0001);
        assert_eq!(Token::from_branch(token.branch().as_bytes()), Some(token));
        for other in
            ["z9hG4bKslk00ff000000000001", "z9hG4bKsld00ff", "z9hG4bKsld+0ff000000000001", ""]
        {
            assert_eq!(Token::from_branch(other.as_bytes()), None, "{other}");
        }
    }
}
