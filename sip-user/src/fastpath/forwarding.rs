//! Forwarding of the loopback device. `bpf_fib_lookup` with `lo` as the ingress asks the routes of the host's own packets,
//! but only where forwarding is on; for `lo` it means nothing else.

use std::fs;
use std::io;

use anyhow::{Context, Result};
use tracing::warn;

use super::pins::Pins;

/// That of one family.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Forwarding {
    /// Of IPv4.
    V4,
    /// Of IPv6.
    V6,
}

/// Where the kernel lists routes of IPv6.
const ROUTES6: &str = "/proc/net/ipv6_route";

// From linux/ipv6_route.h and linux/route.h: a route that a router has announced, and one to all.
const RTF_DEFAULT: u32 = 0x0001_0000;
const RTF_ADDRCONF: u32 = 0x0004_0000;

impl Forwarding {
    const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The switch.
    const fn path(self) -> &'static str {
        match self {
            Self::V4 => "/proc/sys/net/ipv4/conf/lo/forwarding",
            Self::V6 => "/proc/sys/net/ipv6/conf/lo/forwarding",
        }
    }

    /// The name of the pin that says that we switched it on.
    pub(super) const fn pin(self) -> &'static str {
        match self {
            Self::V4 => "lo-forwarding-was-0",
            Self::V6 => "lo-forwarding6-was-0",
        }
    }

    /// Switches it on; true if it was off. Where that is not allowed, the program finds no next hops and the daemon
    /// forwards: slow, not wrong.
    fn switch_on(self, pins: Option<&Pins>) -> bool {
        let path = self.path();
        match fs::read_to_string(path) {
            Ok(text) if text.trim() != "0" => return false,
            Ok(_) => {}
            // A host without IPv6 has nothing to be found.
            Err(error) if self == Self::V6 && error.kind() == io::ErrorKind::NotFound => {
                return false;
            }
            Err(error) => {
                warn!(%error, "cannot read {path}");
                return false;
            }
        }
        if self == Self::V6
            && fs::read_to_string(ROUTES6).is_ok_and(|routes| has_announced(&routes))
        {
            // The kernel forgets such a route when any switch of this kind is turned on, until the router says it again.
            warn!(
                "a router has announced the default route of IPv6, which the host would lose for some time: set {path} to 1 \
                 when it starts, or the daemon carries IPv6"
            );
            return false;
        }
        if let Err(error) = fs::write(path, "1") {
            warn!(%error, "cannot switch on {path}: the kernel program will find no next hops");
            return false;
        }
        if let Some(Err(error)) = pins.map(|pins| pins.remember(self.pin())) {
            warn!(%error, "a daemon after a crash will not switch off {path}");
        }
        true
    }
}

/// Switches on what is off. Gives what we have switched on, now or `before`.
pub(super) fn switch_on(pins: Option<&Pins>, before: &[Forwarding]) -> Vec<Forwarding> {
    let ours = |which: &Forwarding| {
        let now = which.switch_on(pins);
        now || before.contains(which)
    };
    Forwarding::ALL.into_iter().filter(ours).collect()
}

/// What an earlier daemon has switched on.
pub(super) fn remembered(pins: &Pins) -> Vec<Forwarding> {
    Forwarding::ALL.into_iter().filter(|which| pins.remembers(which.pin())).collect()
}

/// Switches these off.
pub(super) fn switch_off(all: &[Forwarding]) -> Result<()> {
    for which in all {
        let path = which.path();
        fs::write(path, "0").with_context(|| format!("cannot restore {path}"))?;
    }
    Ok(())
}

/// Whether a default route was announced by a router.
fn has_announced(routes: &str) -> bool {
    routes.lines().any(|line| {
        // Flags are the last but one.
        let flags =
            line.split_whitespace().nth(8).and_then(|text| u32::from_str_radix(text, 16).ok());
        flags.is_some_and(|flags| flags & RTF_DEFAULT != 0 && flags & RTF_ADDRCONF != 0)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_announced_default_route_is_known() {
        let zeros = "0".repeat(32);
        let line = |flags: &str| {
            format!(
                "{zeros} 00 {zeros} 00 fe800000000000000000000000000001 00000400 00000001 00000000 {flags}     eth0\n"
            )
        };
        let (by_hand, announced) = (line("00000003"), line("00450003"));
        assert!(!has_announced("") && !has_announced(&by_hand));
        assert!(has_announced(&(by_hand + &announced)));
    }
}
