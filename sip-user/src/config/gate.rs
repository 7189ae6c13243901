//! `[gate]`: what nobody may do, and what becomes of those who do it.

use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use sip_ebpf::gate::{self, LONGEST_DEBT, MOST_PER_SECOND, Rate};
use toml::Spanned;

use super::{Period, Problems};
use crate::core::bans;

/// `[gate]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Gate {
    /// Networks that all of this does not count for, beside those of `[trust]`, `auth.trusted` and the PBXs.
    pub exempt: Vec<IpNet>,
    /// What strangers may send, and sources that somebody has registered from.
    pub rules: gate::Rules,
    /// Who is banned by himself, and for how long.
    pub bans: bans::Rules,
    /// Parts of the User-Agent by which scanners are known, in small letters.
    pub scanners: Vec<String>,
}

/// What tools that look for open or weak servers call themselves, and nothing that a phone or a monitor does.
const SCANNERS: [&str; 9] = [
    "friendly-scanner",
    "sipvicious",
    "sipcli",
    "sip-scan",
    "sipscan",
    "sundayddr",
    "pplsip",
    "friendly-request",
    "scan-scan",
];

/// How many parts of a User-Agent may be named: each is looked for in every request of a stranger.
const MAX_SCANNERS: usize = 64;

/// How many networks may be exempt.
const MAX_EXEMPT: usize = 1024;

/// Datagrams a second, and at once. A phone registers with two, places a call with less than twenty, and repeats what
/// is not answered: ten at home that do so at once are served. A scanner sends hundreds, and a flood more.
const STRANGER: (u32, u32) = (20, 60);
/// An office of 200 phones that register anew at once sends 400, or, if it has to repeat itself, more than 1,000; later each
/// of them calls, is called, and says every half minute that it is there.
const REGISTERED: (u32, u32) = (500, 2000);

impl Default for Gate {
    fn default() -> Self {
        Self {
            exempt: Vec::new(),
            rules: gate::Rules {
                stranger: Rate::new(STRANGER.0, STRANGER.1),
                registered: Rate::new(REGISTERED.0, REGISTERED.1),
            },
            bans: bans::Rules::default(),
            scanners: SCANNERS.map(str::to_owned).into(),
        }
    }
}

impl Gate {
    /// What one source may send: as much as it likes when the gate is off.
    pub fn rates(&self) -> Option<gate::Rules> {
        self.bans.automatic.then_some(self.rules)
    }

    /// The scanners that are looked for: none when the gate is off.
    pub fn sought(&self) -> Vec<String> {
        if self.bans.automatic { self.scanners.clone() } else { Vec::new() }
    }
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawGate {
    enabled: Option<bool>,
    #[serde(default)]
    exempt: Vec<Spanned<String>>,
    stranger: Option<Spanned<RawRate>>,
    registered: Option<Spanned<RawRate>>,
    ban_after: Option<Spanned<i64>>,
    ban_window: Option<Spanned<Period>>,
    ban_time: Option<Spanned<Period>>,
    scanners: Option<Vec<Spanned<String>>>,
}

/// `{ rate = 20, burst = 60 }`
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawRate {
    rate: Spanned<i64>,
    burst: Spanned<i64>,
}

impl RawRate {
    fn check(raw: &Option<Spanned<Self>>, default: Rate, problems: &mut Problems<'_>) -> Rate {
        let Some(raw) = raw else { return default };
        let RawRate { rate, burst } = raw.get_ref();
        let per_second = problems.number(Some(rate), "rate", 1..=MOST_PER_SECOND.into(), 1);
        let longest = per_second.saturating_mul(LONGEST_DEBT.into());
        let burst = problems.number(Some(burst), "burst", 1..=longest, 1);
        let number = |n: i64| u32::try_from(n).unwrap_or(1);
        Rate::new(number(per_second), number(burst))
    }
}

impl RawGate {
    pub(super) fn check(self, problems: &mut Problems<'_>) -> Gate {
        let default = Gate::default();
        let (s, day) = (Duration::from_secs, Duration::from_secs(86_400));
        let after = i64::from(default.bans.wrong_digests);
        let after = problems.number(self.ban_after.as_ref(), "ban_after", 0..=100_000, after);
        let bans = bans::Rules {
            automatic: self.enabled.unwrap_or(default.bans.automatic),
            wrong_digests: u32::try_from(after).unwrap_or(default.bans.wrong_digests),
            window: problems.period(
                self.ban_window.as_ref(),
                "ban_window",
                s(1)..=day,
                default.bans.window,
            ),
            duration: problems.period(
                self.ban_time.as_ref(),
                "ban_time",
                s(1)..=day,
                default.bans.duration,
            ),
        };
        let scanners = match &self.scanners {
            Some(list) => check_scanners(list, problems),
            None => default.scanners,
        };
        if let Some(item) = self.exempt.get(MAX_EXEMPT) {
            problems.at(item, format!("more than {MAX_EXEMPT} networks"));
        }
        let exempt = self.exempt.iter().filter_map(|item| problems.network(item)).collect();
        let rules = gate::Rules {
            stranger: RawRate::check(&self.stranger, default.rules.stranger, problems),
            registered: RawRate::check(&self.registered, default.rules.registered, problems),
        };
        if let Some(given) = self.registered.as_ref().or(self.stranger.as_ref())
            && (rules.registered.limit < rules.stranger.limit
                || rules.registered.cost > rules.stranger.cost)
        {
            let reason = "sources that are registered may send less than strangers: in rate, or in the time that the \
                          burst stands for (burst / rate)";
            problems.at(given, reason);
        }
        Gate { exempt, rules, bans, scanners }
    }
}

fn check_scanners(list: &[Spanned<String>], problems: &mut Problems<'_>) -> Vec<String> {
    for (n, item) in list.iter().enumerate() {
        // Two letters are in the name of almost every phone.
        if item.get_ref().len() < 4 || item.get_ref().len() > 64 {
            problems.at(item, "a part of a User-Agent has 4 to 64 bytes");
        }
        if n == MAX_SCANNERS {
            problems.at(item, format!("more than {MAX_SCANNERS} scanners"));
        }
    }
    list.iter().map(|item| item.get_ref().to_ascii_lowercase()).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::Config;

    fn parse(gate: &str) -> Result<Gate, Vec<String>> {
        let text = format!("[sip]\nlisten = [\"192.0.2.1:5060\"]\n[gate]\n{gate}");
        let parsed = Config::parse(Path::new("x"), &text);
        parsed
            .map(|config| config.gate)
            .map_err(|error| error.problems.into_iter().map(|problem| problem.reason).collect())
    }

    #[test]
    fn what_is_written_counts() {
        assert_eq!(parse("").unwrap(), Gate::default());
        let gate = parse(
            "exempt = [\"192.0.2.128/25\", \"2001:db8::/32\"]\nban_after = 5\nban_window = \"1m\"\n\
             ban_time = \"24h\"\nscanners = [\"SIPcli\"]",
        )
        .unwrap();
        assert_eq!(gate.exempt.len(), 2);
        assert_eq!((gate.bans.wrong_digests, gate.bans.window.as_secs()), (5, 60));
        assert_eq!(gate.bans.duration.as_secs(), 86_400);
        assert_eq!(gate.sought(), ["sipcli"]);
        let rates =
            "stranger = { rate = 5, burst = 10 }\nregistered = { rate = 100, burst = 1000 }";
        let want = gate::Rules { stranger: Rate::new(5, 10), registered: Rate::new(100, 1000) };
        assert_eq!(parse(rates).unwrap().rates(), Some(want));
        let off = parse("enabled = false").unwrap();
        assert_eq!(off.rates(), None);
        assert!(!off.bans.automatic && off.sought().is_empty());
    }

    #[test]
    fn mistakes_are_told() {
        for (text, told) in [
            ("exempt = [\"192.0.2.1/24\"]", "has bits beyond its prefix length"),
            ("ban_after = -1", "goes from 0 to 100000"),
            ("ban_time = \"0s\"", "ban_time goes from \"1s\" to \"24h\""),
            ("scanners = [\"a\"]", "4 to 64 bytes"),
            ("bans = 1", "unknown field"),
            ("stranger = { rate = 0, burst = 1 }", "rate is 0"),
            ("stranger = { rate = 5, burst = 301 }", "burst is 301: it goes from 1 to 300"),
            ("stranger = { rate = 20, burst = 1000 }", "may send less than strangers"),
            ("registered = { rate = 10, burst = 100 }", "may send less than strangers"),
            ("registered = { rate = 10 }", "missing field `burst`"),
        ] {
            let problems = parse(text).unwrap_err();
            assert!(problems.len() == 1 && problems[0].contains(told), "{text}: {problems:?}");
        }
    }
}
