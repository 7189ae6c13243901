//! IPv4 and IPv6: a call stays in the family that it came by, if somebody is there who can take it.

use std::fmt;
use std::net::SocketAddr;

/// A family of addresses.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// The family of an address.
    pub const fn of(address: SocketAddr) -> Self {
        match address {
            SocketAddr::V4(_) => Self::V4,
            SocketAddr::V6(_) => Self::V6,
        }
    }

    /// The one that this is not.
    pub const fn other(self) -> Self {
        match self {
            Self::V4 => Self::V6,
            Self::V6 => Self::V4,
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

/// One of something for each family.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct ByFamily<T> {
    /// For IPv4.
    pub v4: T,
    /// For IPv6.
    pub v6: T,
}

impl<T> ByFamily<T> {
    /// The one of a family.
    pub const fn get(&self, family: Family) -> &T {
        match family {
            Family::V4 => &self.v4,
            Family::V6 => &self.v6,
        }
    }

    /// The one of a family, to change it.
    pub const fn get_mut(&mut self, family: Family) -> &mut T {
        match family {
            Family::V4 => &mut self.v4,
            Family::V6 => &mut self.v6,
        }
    }
}

impl ByFamily<Option<SocketAddr>> {
    /// The first address of each family.
    pub fn first(addresses: &[SocketAddr]) -> Self {
        Self {
            v4: addresses.iter().copied().find(SocketAddr::is_ipv4),
            v6: addresses.iter().copied().find(SocketAddr::is_ipv6),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_each_family() {
        let parse = |list: &[&str]| list.iter().map(|a| a.parse().unwrap()).collect::<Vec<_>>();
        let list = parse(&["[::1]:1", "10.0.0.1:2", "[::2]:3", "10.0.0.2:4"]);
        let first = ByFamily::first(&list);
        assert_eq!(*first.get(Family::V4), Some(list[1]));
        assert_eq!(*first.get(Family::V6), Some(list[0]));
        assert_eq!(ByFamily::first(&list[1..2]).v6, None);
        assert_eq!(Family::of(list[0]).to_string(), "IPv6");
    }
}
