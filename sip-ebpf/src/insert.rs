//! The header lines that the proxy inserts, ready to be copied but for their digits.

use crate::address::{Address, Words};
use crate::cookie::{BRANCH_DIGITS, STATELESS, cookie_digits};
use crate::edit::Sink;
use crate::tables::Local;

/// Makes the lines of one of our addresses.
pub fn local<A: Address>(address: A) -> Local<A> {
    let mut record_route = Line::default();
    record_route.text(b"Record-Route: ");
    let route_at = record_route.len;
    record_route.text(b"<sip:");
    record_route.address(address);
    record_route.text(b";lr;sl=");
    let cookie_at = record_route.len;
    record_route.digits(cookie_digits::<A>());
    record_route.text(b">\r\n");

    let mut via = Line::default();
    via.text(b"Via: SIP/2.0/UDP ");
    via.address(address);
    via.text(b";branch=");
    via.text(STATELESS);
    let branch_at = via.len;
    via.digits(BRANCH_DIGITS);
    via.text(b"\r\n");

    let mut uri = Line::default();
    uri.text(b"sip:");
    uri.address(address);
    // Without a port it is 5060 (19.1.2).
    let host_len = match address.port_number() {
        5060 => uri.len - b":5060".len(),
        _ => 0,
    };

    let route_len = cookie_at - route_at;
    let own_via_at = b"Via: ".len();
    let own_via_len = branch_at - own_via_at;
    Local {
        record_route: record_route.words(0, record_route.len),
        via: via.words(0, via.len),
        route: record_route.words(route_at, route_len),
        route_mask: mask(route_len),
        own_via: via.words(own_via_at, own_via_len),
        own_via_mask: mask(own_via_len),
        uri: uri.words(0, uri.len),
        uri_mask: mask(uri.len),
        host_mask: mask(host_len),
        record_route_len: record_route.len as u32,
        cookie_at: cookie_at as u32,
        via_len: via.len as u32,
        branch_at: branch_at as u32,
        route_len: route_len as u32,
        own_via_len: own_via_len as u32,
        uri_len: uri.len as u32,
        host_len: host_len as u32,
    }
}

/// A mask that covers `len` bytes.
fn mask<W: Words>(len: usize) -> W {
    let mut mask = W::ZERO;
    for i in 0..len {
        if let Some(word) = mask.word_mut(i / 8) {
            *word |= 0xff << (8 * (i % 8));
        }
    }
    mask
}

/// The longest line there can be.
const LINE: usize = 192;

struct Line {
    bytes: [u8; LINE],
    len: usize,
}

impl Default for Line {
    fn default() -> Self {
        Self { bytes: [0; LINE], len: 0 }
    }
}

impl Line {
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

    fn address<A: Address>(&mut self, address: A) {
        let at = self.len as u32;
        self.len = address.write_host(self, at) as usize;
        // It may have written more than it is long.
        self.bytes[self.len..].fill(0);
        self.text(b":");
        let mut port = address.port_number();
        let mut digits = [0; 5];
        let mut at = 5;
        while at == 5 || port != 0 {
            at -= 1;
            digits[at] = b'0' + (port % 10) as u8;
            port /= 10;
        }
        self.text(&digits[at..]);
    }

    /// The `len` bytes at `at`.
    fn words<W: Words>(&self, at: usize, len: usize) -> W {
        // The longest address with the longest port fits: a test says so.
        debug_assert!(len <= 8 * W::LEN);
        let mut words = W::ZERO;
        for (i, byte) in self.bytes.iter().skip(at).take(len).enumerate() {
            if let Some(word) = words.word_mut(i / 8) {
                *word |= u64::from(*byte) << (8 * (i % 8));
            }
        }
        words
    }
}

impl Sink for Line {
    fn put(&mut self, at: u32, word: u64) {
        for (byte, to) in
            word.to_le_bytes().into_iter().zip(self.bytes.iter_mut().skip(at as usize))
        {
            *to = byte;
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;
    use super::*;
    use crate::tables::Endpoint;
    use std::string::String;
    use std::vec::Vec;

    fn bytes<W: Words>(words: &W) -> Vec<u8> {
        (0..W::LEN).flat_map(|i| words.word(i).to_le_bytes()).collect()
    }

    fn line<W: Words>(words: &W, len: u32) -> String {
        String::from_utf8(bytes(words)[..len as usize].to_vec()).unwrap()
    }

    /// Whether each text of an address has room.
    fn fits<A: Address>(longest: &Local<A>) -> bool {
        let room = |len: u32, words: usize| len as usize <= 8 * words;
        room(longest.record_route_len, A::RecordRoute::LEN)
            && room(longest.via_len, A::Via::LEN)
            && room(longest.route_len, A::Route::LEN)
            && room(longest.own_via_len, A::OwnVia::LEN)
            && room(longest.uri_len, A::Uri::LEN)
    }

    #[test]
    fn the_longest_fits_and_the_shortest_is_right() {
        assert!(fits(&local(Endpoint::new([255, 255, 255, 255], 65535))));
        let shortest = local(Endpoint::new([1, 2, 3, 4], 5));
        assert_eq!(
            line(&shortest.record_route, shortest.record_route_len),
            "Record-Route: <sip:1.2.3.4:5;lr;sl=00000000000000000000000000000000>\r\n"
        );
        let via = line(&shortest.via, shortest.via_len);
        assert_eq!(via, "Via: SIP/2.0/UDP 1.2.3.4:5;branch=z9hG4bKslk0000000000000000\r\n");
        assert_eq!(&via[shortest.branch_at as usize - 3..][..3], "slk");
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
            String::from_utf8(bytes[..len as usize].to_vec()).unwrap()
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
        assert_eq!((other.host_len, other.host_mask), (0, Words::ZERO));
    }
}
