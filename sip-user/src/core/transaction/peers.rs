//! Which transactions an error from the network may be about.
//!
//! A list for each peer, through an array that has a place for each transaction. Whoever is told of an error
//! leaves the list until it sends again, so a flood of errors costs nothing.

use std::collections::HashMap;
use std::net::SocketAddr;

/// No transaction.
const NONE: u32 = u32::MAX;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Peers {
    first: HashMap<SocketAddr, u32>,
    links: Vec<Link>,
}

#[derive(Clone, Copy, Debug)]
struct Link {
    before: u32,
    after: u32,
    listed: bool,
}

impl Peers {
    /// One of those that have sent to `peer`.
    pub(super) fn first(&self, peer: SocketAddr) -> Option<u32> {
        self.first.get(&peer).copied()
    }

    /// Puts transaction `number` into the list of `peer`, or takes it out.
    pub(super) fn set(&mut self, number: u32, peer: SocketAddr, listed: bool) {
        let at = number as usize;
        if at >= self.links.len() {
            self.links.resize(at + 1, Link { before: NONE, after: NONE, listed: false });
        }
        match (self.links[at].listed, listed) {
            (false, true) => self.link(number, peer),
            (true, false) => self.unlink(number, peer),
            _ => {}
        }
    }

    /// Gives memory back. Only for when no transaction is listed.
    pub(super) fn release(&mut self) {
        debug_assert!(self.first.is_empty());
        *self = Self::default();
    }

    fn link(&mut self, number: u32, peer: SocketAddr) {
        let after = self.first.insert(peer, number).unwrap_or(NONE);
        self.links[number as usize] = Link { before: NONE, after, listed: true };
        if let Some(next) = self.links.get_mut(after as usize) {
            next.before = number;
        }
    }

    fn unlink(&mut self, number: u32, peer: SocketAddr) {
        let link = &mut self.links[number as usize];
        link.listed = false;
        let Link { before, after, .. } = *link;
        if let Some(next) = self.links.get_mut(after as usize) {
            next.before = before;
        }
        match self.links.get_mut(before as usize) {
            Some(previous) => previous.after = after,
            None if after == NONE => _ = self.first.remove(&peer),
            None => _ = self.first.insert(peer, after),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_come_apart_in_any_order() {
        let peer = |port| SocketAddr::from(([10, 0, 0, 1], port));
        for order in [[0, 1, 2], [2, 1, 0], [1, 0, 2], [1, 2, 0]] {
            let mut peers = Peers::default();
            for number in 0..3 {
                peers.set(number, peer(1), true);
                peers.set(number, peer(1), true);
            }
            peers.set(3, peer(2), true);
            for number in order {
                assert!(peers.first(peer(1)).is_some());
                peers.set(number, peer(1), false);
                peers.set(number, peer(1), false);
                assert_ne!(peers.first(peer(1)), Some(number));
            }
            assert_eq!(peers.first(peer(1)), None);
            assert_eq!(peers.first(peer(2)), Some(3));
        }
    }
}
