//! The header lines that the proxy inserts, ready to be copied but for their digits.

use crate::cookie::{BRANCH_DIGITS, COOKIE_DIGITS, STATELESS};
use crate::tables::{Endpoint, Local, RECORD_ROUTE_TEXT, ROUTE_WORDS, VIA_TEXT};
use crate::text::{decimal3, literal};

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

    let route_text = &record_route.bytes[route_at..cookie_at];
    let mut route = [0; ROUTE_WORDS];
    let mut route_mask = [0; ROUTE_WORDS];
    for (i, piece) in route_text.chunks(8).enumerate() {
        route[i] = literal(piece);
        route_mask[i] = u64::MAX >> (64 - piece.len() * 8);
    }
    Local {
        record_route: record_route.bytes,
        via: via.bytes,
        route,
        route_mask,
        record_route_len: record_route.len as u32,
        cookie_at: cookie_at as u32,
        via_len: via.len as u32,
        branch_at: branch_at as u32,
        route_len: route_text.len() as u32,
        pad: 0,
    }
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
            if i > 0 {
                self.text(b".");
            }
            let (text, n) = decimal3(octet);
            self.text(&text.to_le_bytes()[..n as usize]);
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

    #[test]
    fn the_longest_fits_and_the_shortest_is_right() {
        let longest = local(Endpoint::new([255, 255, 255, 255], 65535));
        assert!(longest.record_route_len as usize <= RECORD_ROUTE_TEXT);
        assert!(longest.route_len as usize <= 8 * ROUTE_WORDS);
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
}
