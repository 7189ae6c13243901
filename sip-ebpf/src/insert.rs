//! The header lines that the proxy inserts, ready to be copied but for their digits.

use crate::cookie::{BRANCH_DIGITS, COOKIE_DIGITS, STATELESS};
use crate::tables::{Endpoint, Local, RECORD_ROUTE_TEXT, URI_WORDS, VIA_TEXT};
use crate::text::dotted;

/// Makes the lines of one of our addresses.
pub fn local(endpoint: Endpoint) -> Local {
    let mut record_route = Line::<RECORD_ROUTE_TEXT>::new();
    record_route.text(b"Record-Route: ");
    let route_at = record_route.len;
    record_route.text(b"<sip:");
    record_route.endpoint(endpoint);
    record_route.text(b";lr;sl=");
    let cookie_at = record_route.len;
    record_route.digits(COOKIE_DIGITS);
    record_route.text(b">\r\n");

    let mut via = Line::<VIA_TEXT>::new();
    via.text(b"Via: SIP/2.0/UDP ");
    via.endpoint(endpoint);
    via.text(b";branch=");
    via.text(STATELESS);
    let branch_at = via.len;
    via.digits(BRANCH_DIGITS);
    via.text(b"\r\n");

    let mut uri = Line::<{ 8 * URI_WORDS }>::new();
    uri.text(b"sip:");
    uri.endpoint(endpoint);
    let uri_len = uri.len;
    // Without a port it is 5060 (19.1.2).
    let host_len = match endpoint.port_number() {
        5060 => uri_len - b":5060".len(),
        _ => 0,
    };

    let route_len = cookie_at - route_at;
    let own_via_at = b"Via: ".len();
    let own_via_len = branch_at - own_via_at;
    let (route, route_mask) = words(&record_route.bytes[route_at..], route_len);
    let (own_via, own_via_mask) = words(&via.bytes[own_via_at..], own_via_len);
    let (uri, uri_mask) = words(&uri.bytes, uri_len);
    let (_, host_mask) = words::<URI_WORDS>(&[], host_len);
    Local {
        record_route: record_route.bytes,
        via: via.bytes,
        route,
        route_mask,
        own_via,
        own_via_mask,
        uri,
        uri_mask,
        host_mask,
        record_route_len: record_route.len as u32,
        cookie_at: cookie_at as u32,
        via_len: via.len as u32,
        branch_at: branch_at as u32,
        route_len: route_len as u32,
        own_via_len: own_via_len as u32,
        uri_len: uri_len as u32,
        host_len: host_len as u32,
    }
}

/// The first `len` bytes of a text in words, and masks that cover as many bytes.
fn words<const N: usize>(text: &[u8], len: usize) -> ([u64; N], [u64; N]) {
    // The longest address with the longest port fits: a test says so.
    debug_assert!(len <= 8 * N);
    let mut words = [0; N];
    let mut masks = [0; N];
    for i in 0..N {
        let count = len.saturating_sub(8 * i).min(8);
        if count > 0 {
            masks[i] = u64::MAX >> (64 - 8 * count);
        }
        for (k, byte) in text.iter().skip(8 * i).take(count).enumerate() {
            words[i] |= u64::from(*byte) << (8 * k);
        }
    }
    (words, masks)
}

struct Line<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Line<N> {
    fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    fn text(&mut self, text: &[u8]) {
        // The longest address with the longest port fits: a test says so.
        self.bytes[self.len..self.len + text.len()].copy_from_slice(text);
        self.len += text.len();
    }

    fn digits(&mut self, n: u32) {
        for _ in 0..n {
            self.text(b"0");
        }
    }

    fn endpoint(&mut self, endpoint: Endpoint) {
        for (i, octet) in endpoint.octets().into_iter().enumerate() {
            let text = dotted(octet);
            let without_dot = (text >> 32) as usize - usize::from(i == 3);
            self.text(&text.to_le_bytes()[..without_dot]);
        }
        self.text(b":");
        let mut port = endpoint.port_number();
        let mut digits = [0; 5];
        let mut at = 5;
        while at == 5 || port != 0 {
            at -= 1;
            digits[at] = b'0' + (port % 10) as u8;
            port /= 10;
        }
        self.text(&digits[at..]);
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::tables::{OWN_VIA_WORDS, ROUTE_WORDS};
    use std::vec::Vec;

    #[test]
    fn the_longest_fits_and_the_shortest_is_right() {
        let longest = local(Endpoint::new([255, 255, 255, 255], 65535));
        assert!(longest.record_route_len as usize <= RECORD_ROUTE_TEXT);
        assert!(longest.route_len as usize <= 8 * ROUTE_WORDS);
        assert!(longest.own_via_len as usize <= 8 * OWN_VIA_WORDS);
        assert!(longest.uri_len as usize <= 8 * URI_WORDS);
        let shortest = local(Endpoint::new([1, 2, 3, 4], 5));
        let line = &shortest.record_route[..shortest.record_route_len as usize];
        assert_eq!(
            std::str::from_utf8(line).unwrap(),
            "Record-Route: <sip:1.2.3.4:5;lr;sl=00000000000000000000000000000000>\r\n"
        );
        let line = &shortest.via[..shortest.via_len as usize];
        assert_eq!(
            std::str::from_utf8(line).unwrap(),
            "Via: SIP/2.0/UDP 1.2.3.4:5;branch=z9hG4bKslk0000000000000000\r\n"
        );
        assert_eq!(&line[shortest.branch_at as usize - 3..][..3], b"slk");
    }

    #[test]
    fn both_lines_together_are_of_even_length() {
        for port in [5, 50, 506, 5060, 50600] {
            for octets in [[1, 2, 3, 4], [10, 2, 3, 4], [10, 20, 3, 4], [255, 255, 255, 255]] {
                let local = local(Endpoint::new(octets, port));
                assert_eq!((local.record_route_len + local.via_len) % 2, 0);
            }
        }
    }

    #[test]
    fn what_is_compared_is_as_long_as_its_masks() {
        let text = |words: &[u64], masks: &[u64], len: u32| {
            let masked =
                words.iter().zip(masks).flat_map(|(word, mask)| (word & mask).to_le_bytes());
            let bytes: Vec<u8> = masked.collect();
            assert!(bytes[len as usize..].iter().all(|byte| *byte == 0));
            std::string::String::from_utf8(bytes[..len as usize].to_vec()).unwrap()
        };
        let us = local(Endpoint::new([10, 10, 0, 1], 5060));
        assert_eq!(text(&us.route, &us.route_mask, us.route_len), "<sip:10.10.0.1:5060;lr;sl=");
        assert_eq!(
            text(&us.own_via, &us.own_via_mask, us.own_via_len),
            "SIP/2.0/UDP 10.10.0.1:5060;branch=z9hG4bKslk"
        );
        assert_eq!(text(&us.uri, &us.uri_mask, us.uri_len), "sip:10.10.0.1:5060");
        assert_eq!(text(&us.uri, &us.host_mask, us.host_len), "sip:10.10.0.1");
        let other = local(Endpoint::new([10, 10, 0, 1], 5062));
        assert_eq!((other.host_len, other.host_mask), (0, [0; URI_WORDS]));
    }
}
