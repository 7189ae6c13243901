//! What a source address may do, by the longest network that holds it: the table `SOURCES`.

use std::collections::HashMap;
use std::hash::Hash;
use std::net::IpAddr;

use ipnet::IpNet;
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
        for net in &trust.registered {
            sources.put(*net, source::REGISTERED);
        }
        sources
    }

    /// With networks where nobody is banned but by hand. What [`Trust`] says of them stays.
    pub fn with_exempt<'n>(mut self, networks: impl IntoIterator<Item = &'n IpNet>) -> Self {
        let trust = self.clone();
        for net in networks {
            // The longest match decides: so what holds for the network around it has to stand here too.
            self.put(*net, trust.covering(*net) | source::EXEMPT);
        }
        self
    }

    /// With networks whose requests need no credentials, and where nobody is banned but by hand. What holds for networks
    /// in them stays.
    pub fn with_believed<'n>(mut self, networks: impl IntoIterator<Item = &'n IpNet>) -> Self {
        let networks: Vec<_> = networks.into_iter().collect();
        self = self.with_exempt(networks.iter().copied());
        // The longest match decides: so it has to stand at all networks within, too.
        let within = |inner: &IpNet| networks.iter().any(|net| net.contains(inner));
        let inner: Vec<_> = self.networks().filter(within).collect();
        inner.into_iter().for_each(|net| self.put(net, source::BELIEVED));
        self
    }

    /// The networks that are marked with one of these bits, and nothing else of them.
    pub fn only(&self, bits: u32) -> Self {
        let mut only = Self::default();
        for net in self.networks() {
            match self.exact(net) & bits {
                0 => {}
                marked => only.put(net, marked),
            }
        }
        only
    }

    /// Takes over what is banned.
    pub fn with_bans_of(mut self, other: &Self) -> Self {
        for net in other.networks().filter(|net| other.exact(*net) & source::BANNED != 0) {
            self.ban(net);
        }
        self
    }

    /// Bans a network.
    pub fn ban(&mut self, net: IpNet) {
        self.put(net, source::BANNED);
    }

    /// Ends the ban of a network. What else holds for it stays.
    pub fn lift(&mut self, net: IpNet) {
        self.clear(net, source::BANNED);
    }

    /// Whether an address is exempt from what nobody else may do.
    pub fn is_exempt(&self, addr: IpAddr) -> bool {
        self.lookup(addr) & (source::TRUSTED | source::EXEMPT) != 0
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

    /// All networks, for the kernel.
    pub fn all(&self) -> Vec<(IpNet, u32)> {
        let mut list: Vec<_> = self.networks().map(|net| (net, self.exact(net))).collect();
        list.sort();
        list
    }

    /// The bits of a network itself; zero if there is none like it.
    pub fn exact(&self, net: IpNet) -> u32 {
        let bits = match net {
            IpNet::V4(net) => nets_of(&self.v4, net.prefix_len())
                .and_then(|nets| nets.get(&u32::from(net.network()))),
            IpNet::V6(net) => nets_of(&self.v6, net.prefix_len())
                .and_then(|nets| nets.get(&u128::from(net.network()))),
        };
        bits.copied().unwrap_or(0)
    }

    /// The bits of the longest network that holds all of `net`.
    fn covering(&self, net: IpNet) -> u32 {
        (0..=net.prefix_len())
            .rev()
            .filter_map(|len| IpNet::new(net.network(), len).ok())
            .map(|outer| self.exact(outer.trunc()))
            .find(|bits| *bits != 0)
            .unwrap_or(0)
    }

    fn networks(&self) -> impl Iterator<Item = IpNet> {
        let v4 = self
            .v4
            .iter()
            .flat_map(|(len, nets)| nets.keys().map(move |net| (IpAddr::V4((*net).into()), *len)));
        let v6 = self
            .v6
            .iter()
            .flat_map(|(len, nets)| nets.keys().map(move |net| (IpAddr::V6((*net).into()), *len)));
        // The length comes from a network that was valid.
        v4.chain(v6).filter_map(|(net, len)| IpNet::new(net, len).ok())
    }

    fn clear(&mut self, net: IpNet, bits: u32) {
        match net {
            IpNet::V4(net) => take_out(&mut self.v4, net.prefix_len(), net.network().into(), bits),
            IpNet::V6(net) => take_out(&mut self.v6, net.prefix_len(), net.network().into(), bits),
        }
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

fn nets_of<K>(levels: &[(u8, HashMap<K, u32>)], len: u8) -> Option<&HashMap<K, u32>> {
    levels.iter().find(|(other, _)| *other == len).map(|(_, nets)| nets)
}

/// Takes bits from a network, and what then means nothing away: each level costs every lookup.
fn take_out<K: Eq + Hash>(levels: &mut Vec<(u8, HashMap<K, u32>)>, len: u8, key: K, bits: u32) {
    let Some((_, nets)) = levels.iter_mut().find(|(other, _)| *other == len) else { return };
    if let Some(there) = nets.get_mut(&key) {
        *there &= !bits;
        if *there == 0 {
            nets.remove(&key);
        }
    }
    if nets.is_empty() {
        levels.retain(|(other, _)| *other != len);
    }
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
        Sources::new(&Trust { networks: parse(networks), deny: parse(deny), ..Trust::default() })
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
        assert_eq!(s.all().len(), 4);
    }

    #[test]
    fn bans_come_and_go() {
        let nets = |list: &[&str]| list.iter().map(|n| n.parse().unwrap()).collect::<Vec<IpNet>>();
        let before = sources(&["10.1.0.0/16", "10.9.0.1/32"], &["10.2.0.0/16"]);
        let mut s = before.clone();
        let banned = nets(&["10.1.2.3/32", "10.2.0.0/16", "10.9.0.1/32", "2001:db8:1:2::/64"]);
        banned.iter().for_each(|net| s.ban(*net));
        let of = |s: &Sources, addr: &str| s.lookup(addr.parse().unwrap());
        assert_eq!(of(&s, "10.1.2.3"), source::BANNED);
        assert_eq!(of(&s, "10.1.2.4"), source::TRUSTED);
        assert_eq!(of(&s, "10.2.0.1"), source::DENIED | source::BANNED);
        assert_eq!(of(&s, "2001:db8:1:2:3::"), source::BANNED);
        assert_eq!(before.clone().with_bans_of(&s), s);
        banned.iter().for_each(|net| s.lift(*net));
        assert_eq!(s, before);
        s.lift(banned[0]);
        assert_eq!(s, before);
    }

    #[test]
    fn who_is_exempt_is_trusted_no_more_and_no_less() {
        let nets: Vec<IpNet> =
            ["10.1.2.0/24", "10.0.0.0/8", "192.0.2.0/25"].map(|n| n.parse().unwrap()).into();
        let s = sources(&["10.1.0.0/16"], &["192.0.2.0/24"]).with_exempt(&nets);
        let of = |addr: &str| s.lookup(addr.parse().unwrap());
        assert_eq!(of("10.1.2.3"), source::TRUSTED | source::EXEMPT);
        assert_eq!(of("10.1.3.3"), source::TRUSTED);
        assert_eq!(of("10.0.0.1"), source::EXEMPT);
        assert_eq!(of("192.0.2.1"), source::DENIED | source::EXEMPT);
        assert!(s.is_exempt("10.1.3.3".parse().unwrap()));
        assert!(!s.is_exempt("11.1.3.3".parse().unwrap()));
    }

    #[test]
    fn the_whole_world_and_ipv6() {
        let s = sources(&["0.0.0.0/0", "2001:db8::/32"], &["::/0"]);
        let of = |addr: &str| s.lookup(addr.parse().unwrap());
        assert_eq!(of("203.0.113.1"), source::TRUSTED);
        assert_eq!(of("2001:db8::5"), source::TRUSTED);
        assert_eq!(of("2001:db9::5"), source::DENIED);
    }
}
