//! Addresses-of-record: whose a registration is.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use sip_ebpf::message::{Host, Uri};

use super::super::put;

/// An address-of-record in the form in which two of them are compared (RFC 3261 10.3 step 5, 19.1.4).
///
/// The user's case counts, escapes that need not be are resolved, the others are in capitals. The domain is
/// in small letters and has no port: `sip:bob@example.com:5060` is Bob of `example.com`. Nor does it matter
/// whether the scheme is `sip` or `sips`.
#[derive(Clone, Debug, Eq, Hash, PartialEq)]
pub struct Aor {
    user: Box<str>,
    domain: Box<str>,
}

impl Aor {
    /// That of a `sip:` or `sips:` URI with a user; none of all others.
    pub fn of(uri: &Uri<'_>) -> Option<Self> {
        let user = normal(uri.user?);
        Some(Self { user: user.into(), domain: domain_of(uri.host?).into() })
    }

    /// From a user, escapes as in a URI, and a domain. None if they make no URI.
    pub fn new(user: &str, domain: &str) -> Option<Self> {
        Self::of(&Uri::parse(&format!("sip:{user}@{domain}")).ok()?)
    }

    /// The user.
    pub fn user(&self) -> &str {
        &self.user
    }

    /// The domain; an IPv6 address in brackets.
    pub fn domain(&self) -> &str {
        &self.domain
    }
}

impl fmt::Display for Aor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}@{}", self.user, self.domain)
    }
}

/// The domains whose registrar we are.
#[derive(Clone, Debug, Default)]
pub struct Domains {
    names: HashSet<Arc<str>>,
    /// Those that are addresses, in order: nothing needs to be written to find one.
    addresses: Vec<IpAddr>,
}

impl Domains {
    /// Host names and addresses as they stand in a URI (IPv6 in brackets), and our own addresses. What is no
    /// host is left out.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>, locals: &[SocketAddr]) -> Self {
        let names = names.into_iter().filter_map(|name| Host::parse(name).ok());
        let locals = locals.iter().map(|local| match local.ip() {
            IpAddr::V4(v4) => Host::V4(v4),
            IpAddr::V6(v6) => Host::V6(v6),
        });
        let hosts: Vec<_> = names.chain(locals).collect();
        let mut addresses: Vec<_> = hosts.iter().filter_map(|host| host.ip()).collect();
        addresses.sort_unstable();
        Self {
            names: hosts.into_iter().map(|host| Arc::from(&*domain_of(host))).collect(),
            addresses,
        }
    }

    /// Whether the host of a URI is one of them.
    pub fn has(&self, host: Host<'_>) -> bool {
        match host.ip() {
            Some(ip) => self.addresses.binary_search(&ip).is_ok(),
            None => self.get(&domain_of(host)).is_some(),
        }
    }

    /// All of them, as [`Aor::domain`] writes them, in no order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|name| &**name)
    }

    /// The domain of this name, as [`Aor::domain`] writes it.
    pub(super) fn get(&self, domain: &str) -> Option<&Arc<str>> {
        self.names.get(domain)
    }
}

/// A host as an [`Aor`] has it. Most names are written so.
pub(in crate::core) fn domain_of(host: Host<'_>) -> Cow<'_, str> {
    let Host::Name(name) = host else { return put::host(host).into() };
    let name = name.strip_suffix('.').unwrap_or(name);
    match name.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => name.to_ascii_lowercase().into(),
        false => name.into(),
    }
}

/// A user or password in its normal form: `%61` is `a`, but `%3b` is `%3B` and not a semicolon, because
/// what is reserved differs from its escape (19.1.4).
pub(in crate::core) fn normal(text: &str) -> Cow<'_, str> {
    if !text.contains('%') {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('%') {
        let (before, escape) = rest.split_at(at);
        out.push_str(before);
        let digits = escape.get(1..3).and_then(|digits| u8::from_str_radix(digits, 16).ok());
        let (Some(byte), Some(behind)) = (digits, escape.get(3..)) else {
            // No escape after all; the grammar of URIs keeps this away.
            out.push_str(escape);
            return Cow::Owned(out);
        };
        match byte {
            b'-' | b'_' | b'.' | b'!' | b'~' | b'*' | b'\'' | b'(' | b')' => out.push(byte.into()),
            _ if byte.is_ascii_alphanumeric() => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
        rest = behind;
    }
    out.push_str(rest);
    Cow::Owned(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn aor(uri: &str) -> Option<String> {
        Aor::of(&Uri::parse(uri).unwrap()).map(|aor| aor.to_string())
    }

    #[test]
    fn one_form() {
        for (uri, want) in [
            ("sip:Bob@Example.COM", "Bob@example.com"),
            ("SIPS:b%6Fb@example.com.:5061;transport=udp", "bob@example.com"),
            ("sip:a%3bb%20c:pass@192.0.2.1", "a%3Bb%20c@192.0.2.1"),
            ("sip:a;b@[2001:DB8:0::1]:5060", "a;b@[2001:db8::1]"),
        ] {
            assert_eq!(aor(uri).as_deref(), Some(want), "{uri}");
        }
        for uri in ["sip:example.com", "tel:+4312345", "mailto:b@example.com"] {
            assert_eq!(aor(uri), None, "{uri}");
        }
        assert_eq!(Aor::new("b%6fb", "EXAMPLE.com"), Aor::new("bob", "example.com"));
        assert_eq!(Aor::new("b ob", "example.com"), None);
    }

    #[test]
    fn domains_are_names_and_addresses() {
        let locals = ["192.0.2.1:5060".parse().unwrap(), "[2001:db8::1]:5060".parse().unwrap()];
        let domains = Domains::new(["Example.com", "not a host"], &locals);
        for (host, want) in [
            ("eXample.com.", true),
            ("192.0.2.1", true),
            ("[2001:db8:0::1]", true),
            ("192.0.2.2", false),
            ("sub.example.com", false),
        ] {
            assert_eq!(domains.has(Host::parse(host).unwrap()), want, "{host}");
        }
    }
}
