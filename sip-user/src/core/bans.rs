//! Who is not heard for a time: by hand, or because of what he has sent.
//!
//! Evidence and orders in, [`Command`]s out. Who is asked decides about exemptions before he brings evidence
//! ([`super::sources::Sources::is_exempt`]), and carries commands out: in the sources of every worker, and in the kernel's
//! table. A source is an IPv4 address, or the /64 of an IPv6 address ([`source_of`]): whoever has one address of it has
//! them all.
//!
//! Everything is bounded: of more bans than [`MAX_BANS`] the automatic one that ends first makes room, and of more
//! suspects than `MAX_SUSPECTS` the oldest is forgotten.

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use ipnet::{IpNet, Ipv6Net};
use sip_ebpf::tables::MAX_BANS;

/// How many sources with wrong credentials are remembered.
const MAX_SUSPECTS: usize = 16_384;
/// The longest note that a ban keeps, in bytes.
const MAX_NOTE: usize = 120;

/// What leads to a ban, and for how long.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Rules {
    /// Whether anybody is banned but by hand.
    pub automatic: bool,
    /// So many wrong passwords from one source within `window` are a ban. 0: none are.
    pub wrong_digests: u32,
    /// See `wrong_digests`.
    pub window: Duration,
    /// How long an automatic ban lasts.
    pub duration: Duration,
}

impl Default for Rules {
    fn default() -> Self {
        Self {
            automatic: true,
            wrong_digests: 30,
            window: Duration::from_secs(600),
            duration: Duration::from_secs(3600),
        }
    }
}

/// Why somebody is banned.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum Why {
    /// An operator wants it.
    Hand,
    /// Too many wrong passwords.
    WrongDigests,
    /// A scanner's User-Agent.
    Scanner,
}

impl Why {
    /// All.
    pub const ALL: [Self; 3] = [Self::Hand, Self::WrongDigests, Self::Scanner];

    /// Its name, stable for operators.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hand => "hand",
            Self::WrongDigests => "wrong_digests",
            Self::Scanner => "scanner",
        }
    }
}

/// One ban.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Ban {
    /// Why.
    pub why: Why,
    /// More about that, for people.
    pub note: Box<str>,
    /// Since when.
    pub since: Instant,
    /// Until when; `None`: until somebody ends it.
    pub until: Option<Instant>,
}

/// What the world has to do.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Command {
    /// Hear nothing of this network from now on.
    Ban(IpNet),
    /// Hear it again.
    Lift(IpNet),
}

/// Why an order is not carried out.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Refusal {
    /// The network has everybody in it.
    Everybody,
    /// All bans that there can be are by hand.
    Full,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Everybody => f.write_str("this network is the whole world"),
            Self::Full => write!(f, "there are {MAX_BANS} bans by hand already"),
        }
    }
}

/// See the module.
#[derive(Debug, Default)]
pub struct Bans {
    rules: Rules,
    bans: HashMap<IpNet, Ban>,
    /// Those that end, the first one first. Times of automatic bans and of others.
    ends: BTreeSet<(Instant, IpNet)>,
    suspects: HashMap<IpNet, Suspect>,
    /// Suspects, by when they were first seen.
    seen: BTreeSet<(Instant, IpNet)>,
    commands: Vec<Command>,
    made: [u64; Why::ALL.len()],
    suspects_forgotten: u64,
}

#[derive(Clone, Copy, Debug)]
struct Suspect {
    since: Instant,
    times: u32,
}

impl Bans {
    /// None yet.
    pub fn new(rules: Rules) -> Self {
        Self { rules, ..Self::default() }
    }

    /// Takes over what a reload may change; bans stay. `exempt` says whose automatic bans are to end.
    pub fn reload(&mut self, rules: Rules, exempt: impl Fn(IpAddr) -> bool) {
        self.rules = rules;
        let freed = |(net, ban): (&IpNet, &Ban)| {
            (ban.why != Why::Hand && exempt(net.addr())).then_some(*net)
        };
        let freed: Vec<_> = self.bans.iter().filter_map(freed).collect();
        for net in freed {
            self.lift(net);
        }
    }

    // ---- What happens ---------------------------------------------------------------------------

    /// Somebody has given a wrong password, or that of a user who does not exist.
    pub fn wrong_digest(&mut self, now: Instant, from: IpAddr) {
        let Rules { automatic, wrong_digests, window, .. } = self.rules;
        let net = source_of(from);
        if !automatic || wrong_digests == 0 || self.bans.contains_key(&net) {
            return;
        }
        self.forget_suspects(now);
        let fresh = Suspect { since: now, times: 0 };
        let suspect = self.suspects.entry(net).or_insert(fresh);
        suspect.times += 1;
        let Suspect { since, times } = *suspect;
        self.seen.insert((since, net));
        if times >= wrong_digests {
            self.suspects.remove(&net);
            self.seen.remove(&(since, net));
            let note = format!("{times} wrong passwords within {} s", window.as_secs());
            self.ban(now, net, Why::WrongDigests, note);
        }
    }

    /// Somebody has sent a message as scanners do: `agent` is what it calls itself.
    pub fn scanner(&mut self, now: Instant, from: IpAddr, agent: &str) {
        let net = source_of(from);
        if self.rules.automatic && !self.bans.contains_key(&net) {
            self.ban(now, net, Why::Scanner, agent.to_owned());
        }
    }

    /// Bans a network by hand, in place of a ban that there is. Without `duration` it has no end.
    ///
    /// # Errors
    /// [`Refusal`]: then nothing has changed.
    pub fn add(
        &mut self,
        now: Instant,
        net: IpNet,
        duration: Option<Duration>,
        note: &str,
    ) -> Result<(), Refusal> {
        let net = net.trunc();
        if net.prefix_len() == 0 {
            return Err(Refusal::Everybody);
        }
        if !self.bans.contains_key(&net) && !self.make_room() {
            return Err(Refusal::Full);
        }
        let until = duration.and_then(|duration| now.checked_add(duration));
        self.put(net, Ban { why: Why::Hand, note: cut(note), since: now, until });
        Ok(())
    }

    /// Ends a ban. Says whether there was one.
    pub fn remove(&mut self, net: IpNet) -> bool {
        self.lift(net.trunc())
    }

    /// Time has passed.
    pub fn handle_timeout(&mut self, now: Instant) {
        while let Some((until, net)) = self.ends.first().copied()
            && until <= now
        {
            self.lift(net);
        }
        self.forget_suspects(now);
    }

    /// When [`Bans::handle_timeout`] wants to be called. Suspects wait for the next one: they do nothing.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.ends.first().map(|(until, _)| *until)
    }

    /// What to do, in this order, since this was last asked.
    pub fn take_commands(&mut self) -> Vec<Command> {
        std::mem::take(&mut self.commands)
    }

    // ---- What there is --------------------------------------------------------------------------

    /// All of them, in no order.
    pub fn list(&self) -> impl Iterator<Item = (&IpNet, &Ban)> {
        self.bans.iter()
    }

    /// That of a network.
    pub fn get(&self, net: IpNet) -> Option<&Ban> {
        self.bans.get(&net)
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.bans.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.bans.is_empty()
    }

    /// How many were made for a reason.
    pub fn made(&self, why: Why) -> u64 {
        self.made[why as usize]
    }

    /// How many suspects had to make room for others.
    pub fn suspects_forgotten(&self) -> u64 {
        self.suspects_forgotten
    }

    // ---- Within ---------------------------------------------------------------------------------

    fn ban(&mut self, now: Instant, net: IpNet, why: Why, note: String) {
        if self.make_room() {
            let until = now.checked_add(self.rules.duration);
            self.put(net, Ban { why, note: cut(&note), since: now, until });
        }
    }

    fn put(&mut self, net: IpNet, ban: Ban) {
        self.made[ban.why as usize] += 1;
        let until = ban.until;
        match self.bans.insert(net, ban) {
            Some(Ban { until: Some(old), .. }) => _ = self.ends.remove(&(old, net)),
            Some(_) => {}
            None => self.commands.push(Command::Ban(net)),
        }
        self.ends.extend(until.map(|until| (until, net)));
    }

    fn lift(&mut self, net: IpNet) -> bool {
        let Some(ban) = self.bans.remove(&net) else { return false };
        if let Some(until) = ban.until {
            self.ends.remove(&(until, net));
        }
        self.commands.push(Command::Lift(net));
        true
    }

    /// Sees to it that there is room for one more. False if only bans by hand could make it.
    fn make_room(&mut self) -> bool {
        if self.bans.len() < MAX_BANS as usize {
            return true;
        }
        let by_hand = |net: &IpNet| self.bans.get(net).is_none_or(|ban| ban.why == Why::Hand);
        let first = self.ends.iter().map(|(_, net)| *net).find(|net| !by_hand(net));
        first.is_some_and(|net| self.lift(net))
    }

    /// Those whose window is over, and the oldest if there are too many.
    fn forget_suspects(&mut self, now: Instant) {
        while let Some((since, net)) = self.seen.first().copied() {
            let over = now.saturating_duration_since(since) >= self.rules.window;
            if !over && self.suspects.len() < MAX_SUSPECTS {
                return;
            }
            self.suspects_forgotten += u64::from(!over);
            self.seen.remove(&(since, net));
            self.suspects.remove(&net);
        }
    }
}

/// What counts as one source: an IPv4 address, or the /64 of an IPv6 address.
pub fn source_of(address: IpAddr) -> IpNet {
    match address {
        IpAddr::V4(_) => IpNet::from(address),
        // 64 is a length that there is.
        IpAddr::V6(v6) => IpNet::V6(Ipv6Net::new(v6, 64).unwrap_or(v6.into()).trunc()),
    }
}

/// As much of a note as is kept, and nothing that a terminal would obey.
fn cut(note: &str) -> Box<str> {
    let plain = note.chars().map(|c| if c.is_control() { '?' } else { c });
    let mut text = String::new();
    for c in plain {
        if text.len() + c.len_utf8() > MAX_NOTE {
            break;
        }
        text.push(c);
    }
    text.into()
}

#[cfg(test)]
mod tests;
