//! Whether credentials are for the resource that the request asks for (RFC 7616 3.4.6).

use sip_ebpf::message::{Uri, unescape};

/// Whether the `uri` of credentials means the same resource as the Request-URI of their request.
///
/// Proxies on the way may rewrite a Request-URI (RFC 7616 3.4.6, RFC 3261 22.4), and phones write the two
/// differently: with and without port 5060, with parameters in one of them only. So SIP URIs are compared by
/// what says who is meant: scheme and host without regard to case, user without regard to escapes, and port,
/// with the scheme's own where none is written. Parameters, headers and password are left out. URIs of other
/// schemes, and what is no URI, must be equal byte by byte.
pub fn same_resource(uri: &str, request_uri: &str) -> bool {
    if uri == request_uri {
        return true;
    }
    let (Ok(one), Ok(other)) = (Uri::parse(uri), Uri::parse(request_uri)) else {
        return false;
    };
    if !one.is_sip() || one.scheme != other.scheme {
        return false;
    }
    let user = |uri: &Uri<'_>| uri.user.map(|user| unescape(user).collect::<Vec<_>>());
    let host = |uri: &Uri<'_>| uri.host.map(|host| host.to_string().to_ascii_lowercase());
    let port = |uri: &Uri<'_>| {
        let default = if uri.scheme == sip_ebpf::message::Scheme::Sips { 5061 } else { 5060 };
        uri.port.unwrap_or(default)
    };
    user(&one) == user(&other) && host(&one) == host(&other) && port(&one) == port(&other)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same() {
        for (one, other) in [
            ("sip:bob@example.com", "sip:bob@example.com"),
            ("sip:bob@example.com", "SIP:bob@EXAMPLE.com"),
            ("sip:bob@example.com", "sip:bob@example.com:5060"),
            ("sips:bob@example.com", "sips:bob@example.com:5061"),
            ("sip:bob@example.com", "sip:bob@example.com;transport=udp"),
            ("sip:b%6fb@example.com", "sip:bob@example.com"),
            ("sip:bob:pw@example.com", "sip:bob@example.com?subject=x"),
            ("sip:[2001:db8::1]", "sip:[2001:DB8:0::1]"),
            ("tel:+34911234567", "tel:+34911234567"),
            ("no uri at all", "no uri at all"),
        ] {
            assert!(same_resource(one, other), "{one} {other}");
            assert!(same_resource(other, one), "{other} {one}");
        }
    }

    #[test]
    fn another() {
        for (one, other) in [
            ("sip:bob@example.com", "sip:Bob@example.com"),
            ("sip:bob@example.com", "sip:example.com"),
            ("sip:bob@example.com", "sip:eve@example.com"),
            ("sip:bob@example.com", "sip:bob@example.org"),
            ("sip:bob@example.com", "sip:bob@example.com:5061"),
            ("sip:bob@example.com", "sips:bob@example.com"),
            ("sip:bob@example.com", "bob@example.com"),
            ("tel:+34911234567", "TEL:+34911234567"),
            ("sip:a b", "sip:a  b"),
            ("", "sip:bob@example.com"),
        ] {
            assert!(!same_resource(one, other), "{one} {other}");
            assert!(!same_resource(other, one), "{other} {one}");
        }
    }
}
