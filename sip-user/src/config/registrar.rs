//! `[registrar]`, `[auth]` and `[store]`: who registers here, what he has to prove, and where it is kept.

use std::collections::HashMap;
use std::time::Duration;

use ipnet::IpNet;
use serde::Deserialize;
use sip_ebpf::message::Host;
use toml::Spanned;

use super::{Period, Problems};
use crate::core::authenticator::{self, Realm};
use crate::core::digest::{self, Algorithm, Hash};
use crate::core::{forking, registrar};
use crate::store::{UserTable, Users};

/// `[registrar]`: there is one.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Registrar {
    /// The domains whose registrar we are, beside our addresses: host names or addresses as in a URI.
    pub domains: Vec<String>,
    /// What a registration may be.
    pub rules: registrar::Rules,
    /// How PBXs are told of registrations.
    pub forking: forking::Rules,
}

/// `[auth]`
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Auth {
    /// How secrets are kept, and in which realm is asked.
    pub rules: authenticator::Rules,
    /// How credentials are asked for.
    pub digest: digest::Settings,
    /// Networks whose requests are believed without credentials.
    pub trusted: Vec<IpNet>,
}

/// `[store]`
#[derive(Clone, Eq, PartialEq)]
pub struct Store {
    /// Which database: see [`crate::store::Settings::url`].
    pub url: String,
    /// Where the users are.
    pub users: Users,
}

/// The URL may have a password in it.
impl std::fmt::Debug for Store {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Store").field("users", &self.users).finish_non_exhaustive()
    }
}

/// Engines, by what their URLs start with.
const ENGINES: [&str; 5] = ["sqlite://", "mysql://", "mariadb://", "postgres://", "postgresql://"];
/// The longest that a phone may be registered.
const MOST_EXPIRES: Duration = Duration::from_secs(86_400);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawRegistrar {
    #[serde(default)]
    domains: Vec<Spanned<String>>,
    default_expires: Option<Spanned<Period>>,
    min_expires: Option<Spanned<Period>>,
    max_expires: Option<Spanned<Period>>,
    jitter: Option<Spanned<i64>>,
    max_contacts: Option<Spanned<i64>>,
    max_users: Option<Spanned<i64>>,
    fork_rate: Option<Spanned<i64>>,
    #[serde(default)]
    answer_qualify: AnswerQualify,
}

/// Who answers a PBX that asks by OPTIONS for a user.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
enum AnswerQualify {
    /// His phone.
    #[default]
    Relay,
    /// We, by whether he is registered.
    Registered,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAuth {
    realm: Option<Spanned<String>>,
    algorithms: Option<Spanned<Vec<Spanned<String>>>>,
    nonce_validity: Option<Spanned<Period>>,
    #[serde(default)]
    require_qop: bool,
    require_uri: Option<bool>,
    #[serde(default)]
    trusted: Vec<Spanned<String>>,
    cache: Option<Spanned<Period>>,
    cache_unknown: Option<Spanned<Period>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStore {
    url: Spanned<String>,
    #[serde(default)]
    users: Preset,
    table: Option<Spanned<UserTable>>,
}

/// Tables of users that are known.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
enum Preset {
    /// Ours.
    #[default]
    Own,
    /// Asterisk Realtime's `sipusers`.
    Asterisk,
    /// Kamailio's `subscriber`.
    Kamailio,
}

impl RawRegistrar {
    pub(super) fn check(self, problems: &mut Problems<'_>) -> Registrar {
        let mut seen = HashMap::new();
        for item in &self.domains {
            let name = item.get_ref();
            if Host::parse(name).is_err() {
                let reason = format!(
                    "\"{name}\" is not a domain: write a host name or an address, without a port"
                );
                problems.at(item, reason);
            }
            if let Some(first) = seen.insert(name.to_ascii_lowercase(), item.span().start) {
                let line = problems.line(first);
                problems.at(item, format!("{name} is listed twice, first on line {line}"));
            }
        }
        let default = registrar::Rules::default();
        let mut seconds = |given: &Option<Spanned<Period>>, name: &str, fallback: u32| {
            let Some(given) = given else { return fallback };
            let period = given.get_ref().0;
            if period < Duration::from_secs(1) || period > MOST_EXPIRES {
                problems.at(given, format!("{name} goes from \"1s\" to \"24h\""));
            }
            u32::try_from(period.as_secs()).unwrap_or(fallback)
        };
        let min_expires = seconds(&self.min_expires, "min_expires", default.min_expires);
        let max_expires = seconds(&self.max_expires, "max_expires", default.max_expires);
        let fallback = default.default_expires.clamp(min_expires, max_expires.max(min_expires));
        let default_expires = seconds(&self.default_expires, "default_expires", fallback);
        if let Some(given) = self.max_expires.as_ref().or(self.min_expires.as_ref())
            && max_expires < min_expires
        {
            let reason = "max_expires is shorter than min_expires: no phone could register";
            problems.at(given, reason);
        } else if let Some(given) = &self.default_expires
            && !(min_expires..=max_expires).contains(&default_expires)
        {
            problems.at(given, "default_expires is not between min_expires and max_expires");
        }
        let jitter = self.jitter.as_ref();
        let jitter = problems.number(jitter, "jitter", 0..=90, i64::from(default.jitter));
        let mut count = |given: &Option<Spanned<i64>>, name: &str, most: i64, fallback: usize| {
            let given = given.as_ref();
            let fallback_number = i64::try_from(fallback).unwrap_or(most);
            let number = problems.number(given, name, 1..=most, fallback_number);
            usize::try_from(number).unwrap_or(fallback)
        };
        let max_contacts = count(&self.max_contacts, "max_contacts", 1000, default.max_contacts);
        let max_aors = count(&self.max_users, "max_users", 10_000_000, default.max_aors);
        let forking = forking::Rules::default();
        let rate = count(&self.fork_rate, "fork_rate", 100_000, forking.rate as usize);
        Registrar {
            domains: self.domains.into_iter().map(Spanned::into_inner).collect(),
            rules: registrar::Rules {
                default_expires,
                min_expires,
                max_expires,
                jitter: u8::try_from(jitter).unwrap_or(default.jitter),
                max_contacts,
                max_aors,
                answer_qualify: self.answer_qualify == AnswerQualify::Registered,
                ..default
            },
            // Those whom a PBX may still have are users too.
            forking: forking::Rules {
                rate: u32::try_from(rate).unwrap_or(forking.rate),
                max_users: max_aors.saturating_mul(2),
                ..forking
            },
        }
    }
}

impl RawAuth {
    /// `users` are the users whose secrets are held against credentials.
    pub(super) fn check(self, users: Option<&Users>, problems: &mut Problems<'_>) -> Auth {
        let mut auth = Auth::default();
        if let Some(realm) = self.realm {
            let text = realm.get_ref();
            if text.is_empty() || !text.bytes().all(|b| matches!(b, b' '..=b'~')) {
                let reason =
                    "a realm has printable ASCII characters; without one it is the user's domain";
                problems.at(&realm, reason);
            }
            auth.rules.realm = Realm::Fixed(realm.into_inner().into());
        }
        if let Some(list) = &self.algorithms {
            auth.digest.algorithms = check_algorithms(list, users, problems);
        }
        let mut period = |given: &Option<Spanned<Period>>, name: &str, fallback: Duration| {
            let Some(given) = given else { return fallback };
            let period = given.get_ref().0;
            if period < Duration::from_secs(1) {
                problems.at(given, format!("{name} is at least \"1s\""));
            }
            period
        };
        let validity = auth.digest.validity;
        auth.digest.validity = period(&self.nonce_validity, "nonce_validity", validity);
        auth.rules.keep = period(&self.cache, "cache", auth.rules.keep);
        let unknown = auth.rules.keep_unknown;
        auth.rules.keep_unknown = period(&self.cache_unknown, "cache_unknown", unknown);
        auth.digest.without_qop = !self.require_qop;
        auth.digest.check_uri = self.require_uri.unwrap_or(auth.digest.check_uri);
        auth.trusted = self.trusted.iter().filter_map(|item| problems.network(item)).collect();
        auth
    }
}

fn check_algorithms(
    list: &Spanned<Vec<Spanned<String>>>,
    users: Option<&Users>,
    problems: &mut Problems<'_>,
) -> Vec<Algorithm> {
    let mut algorithms = Vec::new();
    for item in list.get_ref() {
        let name = item.get_ref();
        let Ok(algorithm) = name.parse::<Algorithm>() else {
            let known: Vec<_> = Algorithm::ALL.iter().map(|known| known.name()).collect();
            problems.at(item, format!("\"{name}\" is unknown, there are {}", known.join(", ")));
            continue;
        };
        if algorithms.contains(&algorithm) {
            problems.at(item, format!("{name} is listed twice"));
        }
        if users.is_some_and(|users| !serves(users, algorithm.hash)) {
            let reason = format!(
                "{name}: the table of users has no secret that serves it, so nobody could answer"
            );
            problems.at(item, reason);
        }
        algorithms.push(algorithm);
    }
    if list.get_ref().is_empty() {
        problems.at(list, "algorithms is empty: name at least \"MD5\"");
    }
    algorithms
}

/// Whether a table of users has secrets for algorithms with this hash.
fn serves(users: &Users, hash: Hash) -> bool {
    match (users, hash) {
        (Users::Table(table), _) if table.password.is_some() => true,
        (Users::Own, Hash::Md5 | Hash::Sha256) => true,
        (Users::Table(table), Hash::Md5) => table.ha1.is_some() || table.ha1b.is_some(),
        (Users::Table(table), Hash::Sha256) => table.ha1_sha256.is_some(),
        (_, Hash::Sha512_256) => false,
    }
}

impl RawStore {
    pub(super) fn check(self, problems: &mut Problems<'_>) -> Store {
        let url = self.url.get_ref();
        if !ENGINES.iter().any(|engine| url.starts_with(engine)) {
            let reason = "a store is \"sqlite:///PATH\", \"mysql://USER:PASSWORD@HOST/DATABASE\" or \
                          \"postgres://USER:PASSWORD@HOST/DATABASE\"";
            problems.at(&self.url, reason);
        }
        if let Some(table) = &self.table {
            let UserTable { password, ha1, ha1b, ha1_sha256, .. } = table.get_ref();
            if [password, ha1, ha1b, ha1_sha256].iter().all(|column| column.is_none()) {
                let reason = "the table has no secret: name its password, ha1, ha1b or ha1_sha256";
                problems.at(table, reason);
            }
            if self.users != Preset::Own {
                problems.at(table, "users and table are both given: keep one of them");
            }
        }
        let users = match (self.table, self.users) {
            (Some(table), _) => Users::Table(table.into_inner()),
            (None, Preset::Own) => Users::Own,
            (None, Preset::Asterisk) => Users::Table(UserTable::asterisk()),
            (None, Preset::Kamailio) => Users::Table(UserTable::kamailio()),
        };
        Store { url: self.url.into_inner(), users }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::{MINIMAL, assert_error};
    use super::super::{Config, ConfigError};
    use super::*;
    use std::path::Path;

    const STORE: &str = "[store]\nurl = \"sqlite:///tmp/x.db\"\n";

    fn parse(rest: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("f.toml"), &format!("{MINIMAL}{rest}"))
    }

    #[test]
    fn defaults() {
        let config = parse(&format!("{STORE}[registrar]\n")).unwrap();
        let registrar = config.registrar.unwrap();
        assert_eq!(registrar.rules, registrar::Rules::default());
        assert_eq!(registrar.domains, [""; 0]);
        assert_eq!(config.auth, Auth::default());
        let store = config.store.unwrap();
        assert_eq!(store.users, Users::Own);
        assert!(!format!("{store:?}").contains("x.db"), "a URL may have a password");
        assert_eq!(parse("").unwrap().registrar, None);
    }

    #[test]
    fn everything() {
        let config = parse(
            "[registrar]\ndomains = [\"Example.com\", \"192.0.2.9\"]\ndefault_expires = \"10m\"\n\
             min_expires = \"5m\"\nmax_expires = \"1h\"\njitter = 0\nmax_contacts = 3\nmax_users = 100\n\
             fork_rate = 7\nanswer_qualify = \"registered\"\n[auth]\nrealm = \"pbx\"\nalgorithms = [\"SHA-256\", \"MD5\"]\n\
             nonce_validity = \"1m\"\nrequire_qop = true\nrequire_uri = false\ntrusted = [\"10.0.0.0/8\"]\ncache = \"2m\"\n\
             cache_unknown = \"3s\"\n[store]\nurl = \"mysql://u:p@localhost/voip\"\n\
             table = { table = \"voip.users\", username = \"name\", password = \"secret\" }\n",
        );
        let config = config.unwrap();
        let Registrar { rules, forking, .. } = config.registrar.unwrap();
        assert_eq!((rules.default_expires, rules.min_expires, rules.max_expires), (600, 300, 3600));
        assert_eq!((rules.jitter, rules.max_contacts, rules.max_aors), (0, 3, 100));
        assert_eq!((forking.rate, forking.max_users), (7, 200));
        assert!(rules.answer_qualify && !registrar::Rules::default().answer_qualify);
        let Auth { rules, digest, trusted } = config.auth;
        assert_eq!(rules.realm, Realm::Fixed("pbx".into()));
        assert_eq!((rules.keep.as_secs(), rules.keep_unknown.as_secs()), (120, 3));
        assert_eq!(digest.algorithms, [Algorithm::SHA_256, Algorithm::MD5]);
        assert_eq!((digest.validity.as_secs(), digest.without_qop), (60, false));
        assert!(!digest.check_uri && digest::Settings::default().check_uri);
        assert_eq!(trusted.len(), 1);
        let Users::Table(table) = config.store.unwrap().users else { panic!("a table") };
        assert_eq!(table.username.as_str(), "name");
    }

    #[test]
    fn what_is_wrong_has_a_line_and_a_reason() {
        let registrar = |text: &str| format!("[registrar]\n{text}\n{STORE}");
        assert_error("[registrar]\n", "3:1", "needs [store]");
        assert_error("[auth]\n", "3:1", "needs [registrar]");
        assert_error(&registrar("domains = [\"a b\"]"), "4:12", "is not a domain");
        assert_error(&registrar("domains = [\"a.b:5060\"]"), "4:12", "without a port");
        assert_error(&registrar("domains = [\"a.b\", \"A.b\"]"), "4:19", "listed twice");
        assert_error(&registrar("min_expires = \"0s\""), "4:15", "from \"1s\"");
        assert_error(&registrar("max_expires = \"30s\""), "4:15", "shorter than min_expires");
        assert_error(&registrar("min_expires = \"3h\""), "4:15", "shorter than min_expires");
        assert_error(&registrar("default_expires = \"3h\""), "4:19", "not between");
        assert_error(&registrar("jitter = 91"), "4:10", "from 0 to 90");
        assert_error(&registrar("max_contacts = 0"), "4:16", "from 1 to 1000");
        assert_error(&registrar("max_users = 0"), "4:13", "from 1 to");
        assert_error(&registrar("fork_rate = 0"), "4:13", "from 1 to");
        assert_error(&registrar("answer_qualify = \"yes\""), "4:18", "unknown variant");
        let auth = |text: &str| format!("[auth]\n{text}\n[registrar]\n{STORE}");
        assert_error(&auth("realm = \"\""), "4:9", "printable");
        assert_error(&auth("algorithms = []"), "4:14", "is empty");
        assert_error(&auth("algorithms = [\"MD4\"]"), "4:15", "there are MD5, MD5-sess");
        assert_error(&auth("algorithms = [\"MD5\", \"md5\"]"), "4:22", "listed twice");
        assert_error(&auth("algorithms = [\"SHA-512-256\"]"), "4:15", "nobody could answer");
        assert_error(&auth("nonce_validity = \"1ms\""), "4:18", "at least \"1s\"");
        assert_error(&auth("cache = \"0s\""), "4:9", "at least \"1s\"");
        assert_error(&auth("trusted = [\"lan\"]"), "4:12", "is not a network");
        let store = |text: &str| format!("[store]\n{text}\n");
        assert_error(&store("url = \"/tmp/x.db\""), "4:7", "a store is");
        assert_error(&store("url = \"sqlite:///x\"\nusers = \"radius\""), "5:9", "unknown variant");
        let table = "url = \"sqlite:///x\"\ntable = { table = \"u\", username = \"n\" }";
        assert_error(&store(table), "5:9", "has no secret");
        let both = table.replace("\"n\"", "\"n\", ha1 = \"h\"") + "\nusers = \"kamailio\"";
        assert_error(&store(&both), "5:9", "both given");
        assert_error(&store(&table.replace("\"u\"", "\"u;\"")), "5:19", "cannot be the name");
    }

    #[test]
    fn presets() {
        let users = |name: &str| {
            let text = format!("{STORE}users = \"{name}\"\n");
            parse(&text).unwrap().store.unwrap().users
        };
        assert_eq!(users("asterisk"), Users::Table(UserTable::asterisk()));
        assert_eq!(users("kamailio"), Users::Table(UserTable::kamailio()));
        assert!(serves(&users("asterisk"), Hash::Sha512_256));
        assert!(!serves(&users("kamailio"), Hash::Sha256));
    }
}
