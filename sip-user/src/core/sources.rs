//! What a source address may do, by the longest network that holds it: the table `SOURCES`.

use std::collections::HashMap;
use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net};
use sip_ebpf::tables::source;

use crate::config::Trust;

/// Networks with their [`source`] bits. The longest match decides, as in the kernel's table.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Sources {
    /// By prefix length, the longest first: few lengths are in use, and each is one lookup.
    v4: Vec<(u8, HashMap<u32, u32>)>,
    v6: Vec<(u8, HashMap<u128, u32>)>,
}

impl Sources {
    /// From the configuration.
    pub fn new(trust: &Trust) -> Self {
        let mut sources = Self::default();
        for net in &trust.networks {
            sources.put(*net, source::TRUSTED);
        }
        for net in &trust.deny {
            sources.put(*net, source::DENIED);
        }
        sources
    }

    /// The bits of an address; zero for a stranger.
    pub fn lookup(&self, addr: IpAddr) -> u32 {
        let found = match addr {
            IpAddr::V4(addr) => {
                let bits = u32::from(addr);
                self.v4.iter().find_map(|(len, nets)| nets.get(&high4(bits, *len)))
            }
            IpAddr::V6(addr) => {
                let bits = u128::from(addr);
                self.v6.iter().find_map(|(len, nets)| nets.get(&high6(bits, *len)))
            }
        };
        found.copied().unwrap_or(0)
    }

    /// The IPv4 networks, for the kernel.
    pub fn ipv4(&self) -> Vec<(Ipv4Net, u32)> {
        let mut list: Vec<_> = self
            .v4
            .iter()
            .flat_map(|(len, nets)| nets.iter().map(move |(net, bits)| (*len, *net, *bits)))
            // The length comes from a network that was valid.
            .filter_map(|(len, net, bits)| Some((Ipv4Net::new(net.into(), len).ok()?, bits)))
            .collect();
        list.sort();
        list
    }

    /// Whether any network is denied.
    pub fn denies(&self) -> bool {
        let has = |bits: &u32| bits & source::DENIED != 0;
        self.v4.iter().any(|(_, nets)| nets.values().any(has))
            || self.v6.iter().any(|(_, nets)| nets.values().any(has))
    }

    fn put(&mut self, net: IpNet, bits: u32) {
        match net {
            IpNet::V4(net) => {
                let key = u32::from(net.network());
                *level(&mut self.v4, net.prefix_len()).entry(key).or_insert(0) |= bits;
            }
            IpNet::V6(net) => {
                let key = u128::from(net.network());
                *level(&mut self.v6, net.prefix_len()).entry(key).or_insert(0) |= bits;
            }
        }
    }
}

/// The networks of one prefix length, made if there are none yet.
fn level<K>(levels: &mut Vec<(u8, HashMap<K, u32>)>, len: u8) -> &mut HashMap<K, u32> {
    let at = levels.partition_point(|(other, _)| *other > len);
    if levels.get(at).is_none_or(|(other, _)| *other != len) {
        levels.insert(at, (len, HashMap::new()));
    }
    &mut levels[at].1
}

fn high4(bits: u32, len: u8) -> u32 {
    bits & u32::MAX.checked_shl(32 - u32::from(len)).unwrap_or(0)
}

fn high6(bits: u128, len: u8) -> u128 {
    bits & u128::MAX.checked_shl(128 - u32::from(len)).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources(networks: &[&str], deny: &[&str]) -> Sources {
        let parse = |list: &[&str]| list.iter().map(|n| n.parse().unwrap()).collect();
        Sources::new(&Trust { networks: parse(networks), deny: parse(deny) })
    }

    #[test]
    fn the_longest_network_decides() {
        let s = sources(&["10.1.0.0/16", "10.1.2.3/32"], &["10.0.0.0/8", "10.1.2.0/24"]);
        let of = |addr: &str| s.lookup(addr.parse().unwrap());
        assert_eq!(of("10.9.9.9"), source::DENIED);
        assert_eq!(of("10.1.9.9"), source::TRUSTED);
        assert_eq!(of("10.1.2.9"), source::DENIED);
        assert_eq!(of("10.1.2.3"), source::TRUSTED);
        assert_eq!(of("11.0.0.1"), 0);
        assert_eq!(of("::1"), 0);
        assert_eq!(s.ipv4().len(), 4);
        assert!(s.denies());
    }

    #[test]
    fn the_whole_world_and_ipv6() {
        let s = sources(&["0.0.0.0/0", "2001:db8::/32"], &["::/0"]);
        let of = |addr: &str| s.lookup(addr.parse().unwrap());
        assert_eq!(of("203.0.113.1"), source::TRUSTED);
        assert_eq!(of("2001:db8::5"), source::TRUSTED);
        assert_eq!(of("2001:db9::5"), source::DENIED);
        assert!(!sources(&["10.0.0.0/8"], &[]).denies());
    }
}
