//! Numbers and addresses as text, without the machinery of formatting: every message has several of them.

use std::net::{IpAddr, SocketAddr};

use sip_ebpf::message::Host;

/// What text is put behind.
pub(super) trait Put {
    /// Appends text.
    fn text(&mut self, text: &str);

    /// Appends one ASCII character.
    fn ascii(&mut self, char: u8);

    /// Appends decimal digits.
    fn decimal(&mut self, number: u64) {
        // 2^64 has twenty digits.
        let mut digits = [0; 20];
        let (mut rest, mut count) = (number, 0);
        for place in &mut digits {
            *place = b'0' + (rest % 10) as u8;
            rest /= 10;
            count += 1;
            if rest == 0 {
                break;
            }
        }
        digits.iter().take(count).rev().for_each(|digit| self.ascii(*digit));
    }

    /// Appends this many hexadecimal digits in small letters, those of the lowest bits.
    fn hex(&mut self, number: u64, digits: u32) {
        for place in (0..digits).rev() {
            let digit = (number >> (4 * place) & 0xf) as u8;
            self.ascii(if digit < 10 { b'0' + digit } else { b'a' - 10 + digit });
        }
    }

    /// Appends an address.
    fn ip(&mut self, ip: IpAddr) {
        match ip {
            IpAddr::V4(v4) => {
                let [a, b, c, d] = v4.octets();
                self.decimal(a.into());
                for octet in [b, c, d] {
                    self.ascii(b'.');
                    self.decimal(octet.into());
                }
            }
            IpAddr::V6(v6) => self.text(&v6.to_string()),
        }
    }

    /// Appends an address and its port, as in a URI.
    fn address(&mut self, address: SocketAddr) {
        match address {
            SocketAddr::V4(v4) => {
                self.ip((*v4.ip()).into());
                self.ascii(b':');
                self.decimal(v4.port().into());
            }
            // With its zone, if it has one.
            SocketAddr::V6(v6) => self.text(&v6.to_string()),
        }
    }

    /// Appends the host of a URI, as [`Host`] writes itself.
    fn host(&mut self, host: Host<'_>) {
        match host {
            Host::Name(name) => self.text(name),
            Host::V4(v4) => self.ip(v4.into()),
            Host::V6(_) => self.text(&host.to_string()),
        }
    }
}

impl Put for Vec<u8> {
    fn text(&mut self, text: &str) {
        self.extend_from_slice(text.as_bytes());
    }

    fn ascii(&mut self, char: u8) {
        self.push(char);
    }
}

impl Put for String {
    fn text(&mut self, text: &str) {
        self.push_str(text);
    }

    fn ascii(&mut self, char: u8) {
        self.push(char.into());
    }
}

/// The host of a URI as text of its own.
pub(super) fn host(host: Host<'_>) -> String {
    let mut text = String::with_capacity(32);
    text.host(host);
    text
}

/// An address and its port as text of its own.
pub(super) fn address(address: SocketAddr) -> String {
    let mut text = String::with_capacity(32);
    text.address(address);
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn as_formatting_writes_it(
            number in any::<u64>(),
            shift in 0..64u32,
            ip in any::<IpAddr>(),
            port in any::<u16>(),
        ) {
            let number = number >> shift;
            let mut text = String::new();
            text.decimal(number);
            text.ascii(b' ');
            text.hex(number, 16);
            text.ascii(b' ');
            text.hex(number & 0xff, 2);
            text.ascii(b' ');
            text.ip(ip);
            let want = format!("{number} {number:016x} {:02x} {ip}", number & 0xff);
            prop_assert_eq!(text, want);
            let socket = SocketAddr::new(ip, port);
            prop_assert_eq!(address(socket), socket.to_string());
            let mut bytes = Vec::new();
            bytes.address(socket);
            prop_assert_eq!(bytes, socket.to_string().into_bytes());
            let name = match ip {
                IpAddr::V4(v4) => Host::V4(v4),
                IpAddr::V6(v6) => Host::V6(v6),
            };
            prop_assert_eq!(host(name), name.to_string());
        }
    }
}
