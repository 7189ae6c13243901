//! When two Contact addresses are the same (RFC 3261 19.1.4).

use sip_ebpf::message::{Params, Uri, unescape};

use super::aor::normal;

/// Parameters that must be in both URIs or in neither.
const TELLING: [&str; 5] = ["user", "ttl", "method", "maddr", "transport"];

/// Whether two URIs are equal. Those of another scheme than `sip` and `sips` are if their text is.
///
/// This equality does not carry over: `sip:a@b` is equal to `sip:a@b;x=1` and to `sip:a@b;x=2`, which differ.
pub(super) fn equal(a: &Uri<'_>, b: &Uri<'_>) -> bool {
    if !a.is_sip() || !b.is_sip() {
        return a.text == b.text;
    }
    a.scheme == b.scheme
        && a.user.map(normal) == b.user.map(normal)
        && a.password.map(normal) == b.password.map(normal)
        && same_host(a, b)
        && a.port == b.port
        && agree(a.params, b.params)
        && agree(b.params, a.params)
        && same_headers(a.headers.unwrap_or_default(), b.headers.unwrap_or_default())
}

fn same_host(a: &Uri<'_>, b: &Uri<'_>) -> bool {
    let ip = |uri: &Uri<'_>| uri.host.and_then(|host| host.ip());
    match (ip(a), ip(b)) {
        (None, None) => {
            let name = |uri: &Uri<'_>| uri.host.map(|host| host.to_string()).unwrap_or_default();
            name(a).eq_ignore_ascii_case(&name(b))
        }
        (a, b) => a == b,
    }
}

/// Whether `b` has nothing against a parameter of `a`.
fn agree(mut a: Params<'_>, b: Params<'_>) -> bool {
    a.all(|param| match b.get(param.name) {
        Some(other) => {
            same_text(param.text().unwrap_or_default(), other.text().unwrap_or_default())
        }
        None => !TELLING.iter().any(|name| param.is(name)),
    })
}

/// Headers in any order; none may be missing.
fn same_headers(a: &str, b: &str) -> bool {
    let count = |text: &str| text.split('&').filter(|header| !header.is_empty()).count();
    let has = |text: &str, wanted: &str| {
        text.split('&').any(|header| {
            let (name, value) = header.split_once('=').unwrap_or((header, ""));
            let (other, wanted) = wanted.split_once('=').unwrap_or((wanted, ""));
            same_text(name, other) && unescape(value).eq(unescape(wanted))
        })
    };
    count(a) == count(b)
        && a.split('&').filter(|header| !header.is_empty()).all(|header| has(b, header))
        && b.split('&').filter(|header| !header.is_empty()).all(|header| has(a, header))
}

/// Without regard to case and escapes.
fn same_text(a: &str, b: &str) -> bool {
    let small = |text| unescape(text).map(|byte: u8| byte.to_ascii_lowercase());
    small(a).eq(small(b))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(a: &str, b: &str, want: bool) {
        let parse = |text| Uri::parse(text).unwrap();
        assert_eq!(equal(&parse(a), &parse(b)), want, "{a} {b}");
        assert_eq!(equal(&parse(b), &parse(a)), want, "{b} {a}");
        assert!(equal(&parse(a), &parse(a)));
    }

    #[test]
    fn the_examples_of_the_rfc() {
        for (a, b) in [
            ("sip:%61lice@atlanta.com;transport=TCP", "sip:alice@AtLanTa.CoM;Transport=tcp"),
            ("sip:carol@chicago.com", "sip:carol@chicago.com;newparam=5"),
            ("sip:carol@chicago.com", "sip:carol@chicago.com;security=on"),
            (
                "sip:biloxi.com;transport=tcp;method=REGISTER?to=sip:bob%40biloxi.com",
                "sip:biloxi.com;method=REGISTER;transport=tcp?to=sip:bob%40biloxi.com",
            ),
            (
                "sip:alice@atlanta.com?subject=project%20x&priority=urgent",
                "sip:alice@atlanta.com?priority=urgent&subject=project%20x",
            ),
        ] {
            check(a, b, true);
        }
        for (a, b) in [
            ("SIP:ALICE@AtLanTa.CoM;Transport=udp", "sip:alice@AtLanTa.CoM;Transport=UDP"),
            ("sip:bob@biloxi.com", "sip:bob@biloxi.com:5060"),
            ("sip:bob@biloxi.com", "sip:bob@biloxi.com;transport=udp"),
            ("sip:bob@biloxi.com", "sip:bob@biloxi.com:6000;transport=tcp"),
            ("sip:carol@chicago.com", "sip:carol@chicago.com?Subject=next%20meeting"),
            ("sip:bob@phone21.boxesbybob.com", "sip:bob@192.0.2.4"),
            ("sip:carol@chicago.com;security=on", "sip:carol@chicago.com;security=off"),
        ] {
            check(a, b, false);
        }
    }

    #[test]
    fn more_pairs() {
        check("sip:a@[2001:db8::1]", "sip:a@[2001:DB8:0:0::1]", true);
        check("sip:a@b", "sips:a@b", false);
        check("sip:a@b", "sip:b", false);
        check("sip:a:p@b", "sip:a@b", false);
        check("sip:a%3bb@c", "sip:a;b@c", false);
        check("sip:a%3bb@c", "sip:a%3Bb@c", true);
        check("sip:a@b;maddr=10.0.0.1", "sip:a@b", false);
        check("sip:a@b;x", "sip:a@b;X", true);
        check("sip:a@b?x=1&x=1", "sip:a@b?x=1&y=1", false);
        check("tel:+1", "tel:+1", true);
        check("tel:+1", "sip:+1@b", false);
    }
}
