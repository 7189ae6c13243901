//! What the kernel's program needs to ask for credentials in our name: for each of our domains what
//! [`super::authenticator`] would answer to a request without any, but for the nonce.

use std::time::Instant;

use sip_ebpf::challenge::{self, Asking, Challenge, Domain, MAX_CHALLENGE, MAX_OFFERS, Role};
use sip_ebpf::nonce;

use super::authenticator::Authenticator;
use super::digest;
use super::registrar::Domains;

/// See the module.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Challenges {
    /// What all have in common.
    pub asking: Asking,
    /// How the users of each domain are asked.
    pub domains: Vec<(Domain, Challenge)>,
    /// Domains whose users are left to the daemon: the name or the challenge is too long for the table, or too many
    /// algorithms are offered.
    pub left_out: Vec<String>,
}

/// When it is, by both clocks.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    /// For [`super::clock::Clock`].
    pub now: Instant,
    /// CLOCK_MONOTONIC in nanoseconds, as the program has it.
    pub monotonic: u64,
}

impl Challenges {
    /// For users of `domains`. `instance` tells the program's nonces from those of all workers ([`digest::Challenger::new`]);
    /// `scanners` are who gets no answer. None if these are too many for the program.
    pub fn new(
        asking: &Authenticator,
        domains: &Domains,
        clocks: Clocks,
        instance: u32,
        scanners: &[String],
    ) -> Option<Self> {
        let unix = asking.clock().unix(clocks.now).as_nanos();
        let offset = u64::try_from(unix).ok()?.checked_sub(clocks.monotonic)?;
        let mut common = Asking { offset, instance: instance & 0xff_ffff, ..Asking::default() };
        if !common.set_scanners(scanners.iter().map(String::as_str)) {
            return None;
        }
        let (mut list, mut left_out) = (Vec::new(), Vec::new());
        for name in domains.names() {
            let made = challenge::domain(name)
                .filter(|_| list.len() < challenge::MAX_DOMAINS as usize)
                .and_then(|domain| Some((domain, made(asking, name)?)));
            match made {
                Some(made) => list.push(made),
                None => left_out.push(name.to_owned()),
            }
        }
        list.sort_unstable_by_key(|(domain, _)| *domain);
        Some(Self { asking: common, domains: list, left_out })
    }
}

/// How the users of a domain are asked, if there is room for it.
fn made(asking: &Authenticator, domain: &str) -> Option<Challenge> {
    const END: &str = "Content-Length: 0\r\n\r\n";
    let realm = asking.realm(domain);
    let challenger = asking.challenger();
    let mut made = Challenge {
        key: challenger.nonce_key(realm),
        text: [[0; MAX_CHALLENGE]; 2],
        len: [0; 2],
        nonce_at: [[0; MAX_OFFERS]; 2],
    };
    for (which, role) in
        [(Role::Registrar, digest::Role::UserAgent), (Role::Proxy, digest::Role::Proxy)]
    {
        let which = which as usize;
        let (mut text, places) = challenger.lines(role, realm, false, &"0".repeat(nonce::TEXT));
        text.push_str(END);
        made.text.get_mut(which)?.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        *made.len.get_mut(which)? = text.len() as u32;
        let last = *places.last()?;
        if places.len() > MAX_OFFERS {
            return None;
        }
        let places = places.iter().copied().chain(std::iter::repeat(last));
        for (to, from) in made.nonce_at.get_mut(which)?.iter_mut().zip(places) {
            *to = u32::try_from(from).ok()?;
        }
    }
    Some(made)
}
