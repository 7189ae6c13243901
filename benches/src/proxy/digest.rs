//! The phones' half of digest authentication: RFC 2617 and RFC 7616 with MD5, which every proxy takes.

use std::fmt::Write as _;

use md5::{Digest, Md5};

use super::message::{fields, value};

/// What a proxy has asked for.
#[derive(Clone, Debug, Eq, PartialEq)]
pub(super) struct Challenge {
    realm: String,
    nonce: String,
    opaque: Option<String>,
    /// Whether `qop=auth` was offered.
    qop: bool,
}

impl Challenge {
    /// The first challenge with MD5 in a 401 or 407.
    pub(super) fn read(response: &[u8]) -> Option<Self> {
        let challenges = fields(response).filter_map(|line| {
            value(line, "WWW-Authenticate", "").or_else(|| value(line, "Proxy-Authenticate", ""))
        });
        for text in challenges {
            let text = std::str::from_utf8(text).ok()?;
            let Some(text) = text.strip_prefix("Digest ") else { continue };
            if parameter(text, "algorithm").is_some_and(|name| !name.eq_ignore_ascii_case("MD5")) {
                continue;
            }
            return Some(Self {
                realm: parameter(text, "realm")?.to_owned(),
                nonce: parameter(text, "nonce")?.to_owned(),
                opaque: parameter(text, "opaque").map(str::to_owned),
                qop: parameter(text, "qop")
                    .is_some_and(|list| list.split(',').any(|qop| qop.trim() == "auth")),
            });
        }
        None
    }

    /// The value of an Authorization header; `count` is how often the nonce has been used, this time too.
    pub(super) fn answer(
        &self,
        user: &str,
        password: &str,
        method: &str,
        uri: &str,
        count: u32,
    ) -> String {
        let Self { realm, nonce, opaque, qop } = self;
        let ha1 = md5(&format!("{user}:{realm}:{password}"));
        let ha2 = md5(&format!("{method}:{uri}"));
        let mut text = format!(
            "Digest username=\"{user}\", realm=\"{realm}\", nonce=\"{nonce}\", uri=\"{uri}\", algorithm=MD5"
        );
        // Writing into a String cannot fail.
        let _ = if *qop {
            let response = md5(&format!("{ha1}:{nonce}:{count:08x}:5ca1ab1e:auth:{ha2}"));
            write!(text, ", response=\"{response}\", qop=auth, nc={count:08x}, cnonce=\"5ca1ab1e\"")
        } else {
            write!(text, ", response=\"{}\"", md5(&format!("{ha1}:{nonce}:{ha2}")))
        };
        if let Some(opaque) = opaque {
            let _ = write!(text, ", opaque=\"{opaque}\"");
        }
        text
    }
}

/// A parameter of a challenge, without its quotes. No proxy here escapes anything in them.
fn parameter<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let mut rest = text;
    loop {
        let (key, after) = rest.split_once('=')?;
        let key = key.trim_matches([' ', ',']);
        let (is, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        if key.eq_ignore_ascii_case(name) {
            return Some(is.trim());
        }
        rest = after;
    }
}

fn md5(text: &str) -> String {
    let mut hex = String::with_capacity(32);
    for byte in Md5::digest(text) {
        // Writing into a String cannot fail.
        let _ = write!(hex, "{byte:02x}");
    }
    hex
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_example_of_rfc_2617() {
        let response = b"SIP/2.0 401 Unauthorized\r\nWWW-Authenticate: Digest realm=\"x\", nonce=\"n\", algorithm=SHA-256\r\n\
            WWW-Authenticate: Digest realm=\"testrealm@host.com\", qop=\"auth,auth-int\", \
            nonce=\"dcd98b7102dd2f0e8b11d0f600bfb0c093\", opaque=\"5ccc069c403ebaf9f0171e9517f40e41\"\r\n\r\n";
        let challenge = Challenge::read(response).unwrap();
        assert_eq!(challenge.nonce, "dcd98b7102dd2f0e8b11d0f600bfb0c093");
        assert!(challenge.qop && challenge.opaque.is_some());
        // Without qop, as RFC 2069 had it: the example's erratum.
        let old = Challenge { qop: false, ..challenge };
        let answer = old.answer("Mufasa", "CircleOfLife", "GET", "/dir/index.html", 1);
        assert!(answer.contains("response=\"1949323746fe6a43ef61f9606e7febea\""), "{answer}");
    }
}
