//! The configuration file: read, checked as a whole, and every mistake reported with its line.
//!
//! What leaves this module is valid: [`Config`] has no strings left to parse. `sipline.example.toml`
//! shows every key with its default.

mod gate;
mod registrar;

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::net::{IpAddr, SocketAddr, SocketAddrV6};
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize};
use sip_ebpf::tables::{DEFAULT_CALL_BUCKETS, MAX_LOCALS, MAX_NETWORKS, MAX_PBX};
use toml::Spanned;

use crate::core::accounting;
use crate::core::digest::Secret;
use crate::core::family::{ByFamily, Family};
use crate::core::owner::MAX_WORKERS;
use crate::core::stateful::PbxCredentials;
pub use gate::Gate;
use gate::RawGate;
pub use registrar::{Auth, Registrar, Store};
use registrar::{RawAuth, RawRegistrar, RawStore};

/// Where the file is unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/sipline/sipline.toml";

/// Where the control socket is unless configured.
pub const DEFAULT_SOCKET: &str = "/run/sipline/control.sock";

/// Microseconds that datagrams may wait for others, unless configured, and at most.
const DEFAULT_COALESCE_US: u64 = 2000;
const MAX_COALESCE_US: u64 = 5000;

/// The largest call table: 2^20 buckets are 64 MiB and eight million calls.
const MAX_CALL_BUCKETS: u32 = 1 << 20;

/// The highest number of calls that a limit can name.
pub(crate) const MAX_LIMIT: i64 = 1_000_000;

/// A whole configuration, checked.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Config {
    /// Our addresses and how we answer.
    pub sip: Sip,
    /// Who may do what, by network.
    pub trust: Trust,
    /// What nobody may do.
    pub gate: Gate,
    /// The PBXs, in the order of the file.
    pub pbx: Vec<PbxConfig>,
    /// By the id of a PBX: what answers its challenges to our REGISTERs.
    pub pbx_credentials: HashMap<Box<str>, PbxCredentials>,
    /// How PBXs are watched.
    pub probe: Probe,
    /// How calls are given to them.
    pub dispatch: Dispatch,
    /// What is kept of calls.
    pub accounting: accounting::Rules,
    /// The registrar, if there is one.
    pub registrar: Option<Registrar>,
    /// What its users have to prove.
    pub auth: Auth,
    /// Where users and registrations are kept. There is one if there is a registrar.
    pub store: Option<Store>,
    /// The kernel half.
    pub xdp: Xdp,
    /// The control socket.
    pub control: Control,
    /// Metrics over HTTP.
    pub metrics: Metrics,
    /// The log.
    pub log: Log,
}

/// `[sip]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Sip {
    /// Our addresses: each is a UDP socket. At least one, no two alike, none a wildcard.
    pub listen: Vec<SocketAddr>,
    /// The key of every hash and signature, equal on all nodes. `None`: a random one at start.
    pub key: Option<Key>,
    /// What a caller gets when no PBX takes calls.
    pub no_destination: NoDestination,
    /// How long SIGTERM waits, refusing new calls, before it ends the program.
    pub drain: Duration,
    /// How long datagrams may wait for others while there are many. Zero: not at all.
    pub coalesce: Duration,
    /// How many threads serve SIP. `None`: one for each CPU that we may use.
    pub workers: Option<usize>,
}

/// `[trust]`
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct Trust {
    /// INVITEs from here are steered.
    pub networks: Vec<IpNet>,
    /// INVITEs from here are steered while somebody is registered, by a right password, from the very address and port.
    pub registered: Vec<IpNet>,
    /// Datagrams from here are dropped.
    pub deny: Vec<IpNet>,
}

/// One `[[pbx]]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct PbxConfig {
    /// Its name for people, stable over changes of its address.
    pub id: String,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share of new calls, 1 to 16.
    pub weight: u8,
    /// What its owner wants of it.
    pub state: AdminState,
    /// How many calls it takes.
    pub limits: PbxLimits,
}

/// How many calls a PBX takes; 0 is no limit. They count the calls that the daemon places with memory: what
/// comes from trusted networks is forgotten at once.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct PbxLimits {
    /// At a time.
    pub max_calls: u32,
    /// New ones in a second, and as many at once.
    pub calls_per_second: u32,
}

/// What the owner of a PBX wants of it.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum AdminState {
    /// It takes new calls while it is alive.
    #[default]
    Active,
    /// It takes no new calls; its calls go on.
    Draining,
    /// It is not used and not probed.
    Disabled,
}

/// `[probe]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Probe {
    /// Time between two probes of one PBX.
    pub interval: Duration,
    /// How long one probe waits for its answer; no longer than `interval`.
    pub timeout: Duration,
    /// Failures in a row that take a PBX out.
    pub fall: u32,
    /// Successes in a row that bring it back.
    pub rise: u32,
    /// Which answers count as alive.
    pub accept: Accept,
}

impl Default for Probe {
    fn default() -> Self {
        Self {
            interval: Duration::from_secs(15),
            timeout: Duration::from_secs(2),
            fall: 5,
            rise: 1,
            accept: Accept::default(),
        }
    }
}

/// `[dispatch]`
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Dispatch {
    /// How long a PBX may take for its first response to an INVITE, before another one is tried.
    pub answer_timeout: Duration,
    /// How long a call may ring.
    pub ring_timeout: Duration,
    /// Whether calls that are steered without memory go to another PBX too.
    pub shadow: bool,
    /// Calls in a row that a PBX answers with 500, 502, 503 or 504 before it is out. Silence, and a 503 with
    /// Retry-After, count at once.
    pub fall: u32,
    /// How long it is out, before it has a call on trial; doubled each time that it fails again soon.
    pub pause: Duration,
    /// The longest such time, a Retry-After included. One that was good for longer than this starts anew.
    pub longest_pause: Duration,
    /// Transactions at a time; with more, new requests get 503.
    pub max_transactions: usize,
}

impl Default for Dispatch {
    fn default() -> Self {
        Self {
            answer_timeout: Duration::from_secs(3),
            ring_timeout: Duration::from_secs(40),
            shadow: true,
            fall: 3,
            pause: Duration::from_secs(5),
            longest_pause: Duration::from_secs(60),
            max_transactions: 400_000,
        }
    }
}

/// `[xdp]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Xdp {
    /// How the program is attached.
    pub mode: XdpMode,
    /// Where it is attached.
    pub interfaces: Vec<String>,
    /// A bpffs directory for links and maps; `None`: nothing is pinned.
    pub pin: Option<PathBuf>,
    /// Whether the program stays attached when the daemon ends.
    pub keep: bool,
    /// How long the program places new calls after the daemon's last heartbeat; zero is for ever.
    pub outlive: Duration,
    /// Whether the program writes logs.
    pub log: bool,
    /// Which of the two builds is loaded.
    pub loops: Loops,
    /// Buckets of the call table, a power of two; eight calls each.
    pub call_buckets: u32,
    /// Whether the program asks for credentials in the daemon's name.
    pub challenge: bool,
}

impl Default for Xdp {
    fn default() -> Self {
        Self {
            mode: XdpMode::Auto,
            interfaces: Vec::new(),
            pin: Some(PathBuf::from("/sys/fs/bpf/sipline")),
            keep: false,
            outlive: Duration::from_secs(600),
            log: false,
            loops: Loops::Auto,
            call_buckets: DEFAULT_CALL_BUCKETS,
            challenge: true,
        }
    }
}

/// How the program is to be attached.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum XdpMode {
    /// The best that works.
    #[default]
    Auto,
    /// In the driver, or not at all.
    Native,
    /// After the driver, or not at all.
    Generic,
    /// Not at all.
    Off,
}

impl fmt::Display for XdpMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Auto => "auto",
            Self::Native => "native",
            Self::Generic => "generic",
            Self::Off => "off",
        })
    }
}

/// Which build of the program is loaded.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Loops {
    /// The first that the kernel accepts: `may_goto`, then `bpf_loop`.
    #[default]
    Auto,
    /// Loops by `may_goto` (kernel 6.9).
    MayGoto,
    /// Loops by `bpf_loop` (kernel 5.17).
    BpfLoop,
}

/// `[control]`
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Control {
    /// The Unix socket that the other verbs talk to.
    pub socket: PathBuf,
}

/// `[metrics]`
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Metrics {
    /// Where `/metrics`, `/health` and `/ready` are served, over TCP; `None`: nowhere.
    pub listen: Option<SocketAddr>,
}

/// `[log]`
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
pub struct Log {
    /// The least level that is written.
    pub level: LogLevel,
    /// How a line looks.
    pub format: LogFormat,
}

/// The least level that is written.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the names say it")]
pub enum LogLevel {
    Error,
    Warn,
    #[default]
    Info,
    Debug,
    Trace,
}

impl LogLevel {
    /// The level as `tracing` writes it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warn => "warn",
            Self::Info => "info",
            Self::Debug => "debug",
            Self::Trace => "trace",
        }
    }
}

/// How a log line looks.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
#[serde(rename_all = "lowercase")]
pub enum LogFormat {
    /// For people.
    #[default]
    Text,
    /// One JSON object a line.
    Json,
}

/// What a caller gets when no PBX takes calls.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, PartialEq)]
pub enum NoDestination {
    /// `503 Service Unavailable` with Retry-After.
    #[default]
    #[serde(rename = "503")]
    Unavailable,
    /// `404 No destination`.
    #[serde(rename = "404")]
    NotFound,
}

/// A key of 128 bits. It never shows in a log.
#[derive(Clone, Copy, Eq, PartialEq)]
pub struct Key(pub [u64; 2]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

impl Key {
    /// From 32 hex digits; the first 16 are the first word, most significant digit first.
    pub fn from_hex(text: &str) -> Option<Self> {
        if text.len() != 32 || !text.bytes().all(|b| b.is_ascii_hexdigit()) {
            return None;
        }
        let (high, low) = text.split_at(16);
        Some(Self([u64::from_str_radix(high, 16).ok()?, u64::from_str_radix(low, 16).ok()?]))
    }
}

/// Which final answers to a probe count as alive: codes and classes, and exceptions from them.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Accept {
    rules: Vec<AcceptRule>,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
struct AcceptRule {
    /// `!` before it.
    except: bool,
    /// The code, or the first digit of its class.
    codes: Codes,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Codes {
    One(u16),
    Class(u16),
}

impl Codes {
    fn has(self, code: u16) -> bool {
        match self {
            Self::One(one) => one == code,
            Self::Class(class) => code / 100 == class,
        }
    }
}

impl Accept {
    /// Whether a final answer with `code` says that the PBX is alive. Exceptions win.
    pub fn accepts(&self, code: u16) -> bool {
        let matches = |except| {
            self.rules.iter().any(move |rule| rule.except == except && rule.codes.has(code))
        };
        matches(false) && !matches(true)
    }

    fn rule(text: &str) -> Option<AcceptRule> {
        let (except, codes) = match text.strip_prefix('!') {
            Some(rest) => (true, rest),
            None => (false, text),
        };
        let codes = match codes.as_bytes() {
            [class @ b'2'..=b'6', b'x', b'x'] => Codes::Class(u16::from(class - b'0')),
            [b'2'..=b'6', b'0'..=b'9', b'0'..=b'9'] => Codes::One(codes.parse().ok()?),
            _ => return None,
        };
        Some(AcceptRule { except, codes })
    }
}

impl Default for Accept {
    /// Any final response but 408 (somebody behind the PBX is late) and 5xx.
    fn default() -> Self {
        let rules = ["2xx", "3xx", "4xx", "6xx", "!408"].iter().filter_map(|r| Self::rule(r));
        Self { rules: rules.collect() }
    }
}

/// One mistake in a configuration file.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Problem {
    /// Line, from 1; 0 when the whole file is meant.
    pub line: usize,
    /// Column in characters, from 1; 0 when the whole file is meant.
    pub column: usize,
    /// What is wrong, and what to do.
    pub reason: String,
}

/// A configuration file that cannot be used, with all that is wrong with it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct ConfigError {
    /// The file, as it was named.
    pub file: PathBuf,
    /// At least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, problem) in self.problems.iter().enumerate() {
            if i > 0 {
                writeln!(f)?;
            }
            let file = self.file.display();
            match problem.line {
                0 => write!(f, "{file}: {}", problem.reason)?,
                line => write!(f, "{file}:{line}:{}: {}", problem.column, problem.reason)?,
            }
        }
        Ok(())
    }
}

impl std::error::Error for ConfigError {}

impl Config {
    /// Reads and checks the file at `path`, and the key file that it names.
    pub fn load(path: &Path) -> Result<Self, ConfigError> {
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(path, &text),
            Err(error) => Err(ConfigError {
                file: path.to_owned(),
                problems: vec![Problem {
                    line: 0,
                    column: 0,
                    reason: format!("cannot be read: {error}"),
                }],
            }),
        }
    }

    /// Checks `text`; `path` is only the name in errors, and where a relative key file starts from.
    pub fn parse(path: &Path, text: &str) -> Result<Self, ConfigError> {
        let mut problems = Problems { text, found: Vec::new() };
        let config = match toml::from_str::<RawFile>(text) {
            Ok(raw) => Some(raw.check(path, &mut problems)),
            Err(error) => {
                // A document that ends too early is reported at its end.
                let at = error.span().map_or(text.len(), |span| span.start);
                problems.add(at, error.message().trim().replace('\n', ", "));
                None
            }
        };
        match config {
            Some(config) if problems.found.is_empty() => Ok(config),
            _ => {
                problems.found.sort_by_key(|p| (p.line, p.column));
                Err(ConfigError { file: path.to_owned(), problems: problems.found })
            }
        }
    }
}

/// Whether `id` can name a PBX: 1 to 32 letters, digits, dots, dashes and underscores.
pub fn is_pbx_id(id: &str) -> bool {
    (1..=32).contains(&id.len())
        && id.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

/// Why `address` cannot be a PBX's, if so.
pub fn pbx_address_fault(address: SocketAddr) -> Option<&'static str> {
    if address.port() == 0 {
        Some("the port cannot be 0")
    } else if address.ip().is_unspecified() || address.ip().is_multicast() {
        Some("this is not the address of one machine")
    } else {
        match address {
            SocketAddr::V4(_) => None,
            SocketAddr::V6(v6) => ipv6_fault(v6),
        }
    }
}

fn ipv6_fault(address: SocketAddrV6) -> Option<&'static str> {
    if address.ip().is_unicast_link_local() || address.scope_id() != 0 {
        Some("a PBX needs an address that counts on every link: link-local ones do not serve")
    } else if address.ip().to_ipv4_mapped().is_some() {
        Some("this is an IPv4 address: write it as one")
    } else {
        None
    }
}

/// The weights that a PBX can have.
pub const WEIGHTS: std::ops::RangeInclusive<u8> = 1..=16;

// ---- The file as it is written -----------------------------------------------------------------

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawFile {
    sip: RawSip,
    #[serde(default)]
    trust: RawTrust,
    #[serde(default)]
    gate: RawGate,
    #[serde(default)]
    pbx: Vec<RawPbx>,
    #[serde(default)]
    probe: RawProbe,
    registrar: Option<Spanned<RawRegistrar>>,
    auth: Option<Spanned<RawAuth>>,
    store: Option<RawStore>,
    #[serde(default)]
    dispatch: RawDispatch,
    #[serde(default)]
    accounting: RawAccounting,
    #[serde(default)]
    xdp: RawXdp,
    #[serde(default)]
    control: RawControl,
    #[serde(default)]
    metrics: RawMetrics,
    #[serde(default)]
    log: RawLog,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawSip {
    listen: Spanned<Vec<Spanned<String>>>,
    key: Option<Spanned<String>>,
    key_file: Option<Spanned<PathBuf>>,
    #[serde(default)]
    no_destination: NoDestination,
    drain: Option<Spanned<Period>>,
    coalesce_us: Option<Spanned<u64>>,
    workers: Option<Spanned<i64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTrust {
    #[serde(default)]
    networks: Vec<Spanned<String>>,
    #[serde(default)]
    registered: Vec<Spanned<String>>,
    #[serde(default)]
    deny: Vec<Spanned<String>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPbx {
    id: Spanned<String>,
    address: Spanned<String>,
    weight: Option<Spanned<i64>>,
    #[serde(default)]
    state: AdminState,
    max_calls: Option<Spanned<i64>>,
    calls_per_second: Option<Spanned<i64>>,
    username: Option<Spanned<String>>,
    password: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawDispatch {
    answer_timeout: Option<Spanned<Period>>,
    ring_timeout: Option<Spanned<Period>>,
    shadow: Option<bool>,
    fall: Option<Spanned<i64>>,
    pause: Option<Spanned<Period>>,
    longest_pause: Option<Spanned<Period>>,
    max_transactions: Option<Spanned<i64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAccounting {
    max_calls: Option<Spanned<i64>>,
    longest_call: Option<Spanned<Period>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawProbe {
    interval: Option<Spanned<Period>>,
    timeout: Option<Spanned<Period>>,
    fall: Option<Spanned<i64>>,
    rise: Option<Spanned<i64>>,
    accept: Option<Spanned<Vec<Spanned<String>>>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawXdp {
    #[serde(default)]
    mode: Option<Spanned<XdpMode>>,
    #[serde(default)]
    interfaces: Vec<Spanned<String>>,
    pin: Option<Spanned<PathBuf>>,
    keep: Option<Spanned<bool>>,
    outlive: Option<Spanned<Period>>,
    #[serde(default)]
    log: bool,
    challenge: Option<bool>,
    #[serde(default)]
    loops: Loops,
    call_buckets: Option<Spanned<i64>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawControl {
    socket: Option<Spanned<PathBuf>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawMetrics {
    listen: Option<Spanned<String>>,
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    #[serde(default)]
    level: LogLevel,
    #[serde(default)]
    format: LogFormat,
}

/// `"15s"`, `"250ms"`, `"2m"` or `"1h"`.
#[derive(Clone, Copy, Debug)]
struct Period(Duration);

impl<'de> Deserialize<'de> for Period {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = String::deserialize(deserializer)?;
        parse_period(&text).map(Self).ok_or_else(|| {
            D::Error::custom(format!(
                "\"{text}\" is not a time: write a whole number and ms, s, m or h, as in \"15s\""
            ))
        })
    }
}

fn parse_period(text: &str) -> Option<Duration> {
    let digits = text.find(|c: char| !c.is_ascii_digit())?;
    let number: u64 = text[..digits].parse().ok()?;
    let milliseconds = match &text[digits..] {
        "ms" => 1,
        "s" => 1_000,
        "m" => 60_000,
        "h" => 3_600_000,
        _ => return None,
    };
    // Beyond a day no period here makes sense, and sums with an Instant stay far from overflow.
    let period = Duration::from_millis(number.checked_mul(milliseconds)?);
    (period <= Duration::from_secs(86_400)).then_some(period)
}

// ---- From what is written to what is meant ------------------------------------------------------

/// Collects mistakes with their places.
struct Problems<'a> {
    text: &'a str,
    found: Vec<Problem>,
}

impl Problems<'_> {
    fn add(&mut self, at: usize, reason: impl Into<String>) {
        let (line, column) = self.place(at);
        self.found.push(Problem { line, column, reason: reason.into() });
    }

    fn at<T>(&mut self, spanned: &Spanned<T>, reason: impl Into<String>) {
        self.add(spanned.span().start, reason);
    }

    /// Line and column, from 1, of a byte offset.
    fn place(&self, at: usize) -> (usize, usize) {
        let before = self.text.get(..at).unwrap_or(self.text);
        let line = before.matches('\n').count() + 1;
        let start = before.rfind('\n').map_or(0, |i| i + 1);
        (line, before[start..].chars().count() + 1)
    }

    /// The line of a byte offset, to point at from another place.
    fn line(&self, at: usize) -> usize {
        self.place(at).0
    }

    /// `"192.0.2.1:5060"` or `"[2001:db8::1]:5060"`.
    fn address(&mut self, item: &Spanned<String>) -> Option<SocketAddr> {
        let text = item.get_ref();
        let address = text.parse().ok();
        if address.is_none() {
            self.at(
                item,
                format!(
                    "\"{text}\" is not an address and port: write \"192.0.2.1:5060\" or \
                     \"[2001:db8::1]:5060\""
                ),
            );
        }
        address
    }

    /// `"192.0.2.0/24"`, or one address.
    fn network(&mut self, item: &Spanned<String>) -> Option<IpNet> {
        let text = item.get_ref();
        let net = match text.parse::<IpAddr>() {
            Ok(one) => Some(IpNet::from(one)),
            Err(_) => text.parse::<IpNet>().ok(),
        };
        match net {
            None => self.at(
                item,
                format!(
                    "\"{text}\" is not a network: write \"192.0.2.0/24\", \"2001:db8::/32\" or one \
                     address"
                ),
            ),
            Some(net) if net.trunc() != net => self.at(
                item,
                format!("\"{text}\" has bits beyond its prefix length: write \"{}\"", net.trunc()),
            ),
            Some(_) => {}
        }
        net
    }

    /// A time that must lie in a range; `fallback` when it is not given or wrong.
    fn period(
        &mut self,
        given: Option<&Spanned<Period>>,
        name: &str,
        range: std::ops::RangeInclusive<Duration>,
        fallback: Duration,
    ) -> Duration {
        match given {
            None => fallback,
            Some(period) if range.contains(&period.get_ref().0) => period.get_ref().0,
            Some(period) => {
                // No bound of a range here is finer than a millisecond.
                let shown = |bound: &Duration| match (bound.as_millis(), bound.as_secs()) {
                    (milliseconds, _) if milliseconds % 1000 != 0 => format!("{milliseconds}ms"),
                    (_, seconds @ 3600..) if seconds % 3600 == 0 => format!("{}h", seconds / 3600),
                    (_, seconds) => format!("{seconds}s"),
                };
                let (low, high) = (shown(range.start()), shown(range.end()));
                self.at(period, format!("{name} goes from \"{low}\" to \"{high}\""));
                fallback
            }
        }
    }

    /// A number that must lie in a range; `fallback` when it is not given or wrong.
    fn number(
        &mut self,
        given: Option<&Spanned<i64>>,
        name: &str,
        range: std::ops::RangeInclusive<i64>,
        fallback: i64,
    ) -> i64 {
        match given {
            None => fallback,
            Some(n) if range.contains(n.get_ref()) => *n.get_ref(),
            Some(n) => {
                let (low, high) = (range.start(), range.end());
                self.at(n, format!("{name} is {}: it goes from {low} to {high}", n.get_ref()));
                fallback
            }
        }
    }
}

impl RawFile {
    fn check(self, path: &Path, problems: &mut Problems<'_>) -> Config {
        let sip = self.sip.check(path, problems);
        let pbx = check_pbxs(&self.pbx, &sip.listen, problems);
        if let (Some(registrar), None) = (&self.registrar, &self.store) {
            problems.at(registrar, "[registrar] needs [store]: where its users are");
        }
        if let (Some(auth), None) = (&self.auth, &self.registrar) {
            problems.at(auth, "[auth] needs [registrar]: nobody else asks for credentials");
        }
        if let (Some(first), None) = (self.trust.registered.first(), &self.registrar) {
            problems.at(
                first,
                "registered needs [registrar]: without one nobody is registered. Write networks whose calls need no \
                 password into networks",
            );
        }
        let store = self.store.map(|store| store.check(problems));
        let users = store.as_ref().map(|store| &store.users);
        let auth = self.auth.map(Spanned::into_inner).unwrap_or_default().check(users, problems);
        Config {
            registrar: self.registrar.map(|raw| raw.into_inner().check(problems)),
            auth,
            store,
            pbx_credentials: check_credentials(&self.pbx, problems),
            trust: self.trust.check(problems),
            gate: self.gate.check(problems),
            pbx,
            probe: self.probe.check(problems),
            dispatch: self.dispatch.check(problems),
            accounting: self.accounting.check(problems),
            xdp: self.xdp.check(problems),
            control: self.control.check(problems),
            metrics: self.metrics.check(problems),
            log: Log { level: self.log.level, format: self.log.format },
            sip,
        }
    }
}

impl RawSip {
    fn check(self, path: &Path, problems: &mut Problems<'_>) -> Sip {
        if self.listen.get_ref().is_empty() {
            problems
                .at(&self.listen, "listen is empty: name at least one address and port of ours");
        }
        if self.listen.get_ref().len() > MAX_LOCALS as usize {
            problems.at(&self.listen, format!("more than {MAX_LOCALS} addresses"));
        }
        let mut seen = HashMap::new();
        let mut listen = Vec::new();
        for item in self.listen.get_ref() {
            let Some(address) = problems.address(item) else {
                continue;
            };
            listen.push(address);
            if address.ip().is_unspecified() {
                problems.at(
                    item,
                    format!(
                        "{address} is a wildcard: name the address itself, which phones and PBXs see \
                         in Via and Record-Route"
                    ),
                );
            } else if address.ip().is_multicast() {
                problems.at(item, format!("{address} is a multicast address"));
            }
            if address.port() == 0 {
                problems.at(item, "the port cannot be 0");
            }
            if let Some(first) = seen.insert(address, item.span().start) {
                let line = problems.line(first);
                problems.at(item, format!("{address} is listed twice, first on line {line}"));
            }
        }
        let key = match (&self.key, &self.key_file) {
            (Some(_), Some(file)) => {
                problems.at(file, "key and key_file are both given: keep one of them");
                None
            }
            (Some(text), None) => {
                let key = Key::from_hex(text.get_ref());
                if key.is_none() {
                    problems
                        .at(text, "a key is 32 hex digits, as `openssl rand -hex 16` makes them");
                }
                key
            }
            (None, Some(file)) => read_key(path, file, problems),
            (None, None) => None,
        };
        let drain = self.drain.map_or(Duration::from_secs(2), |drain| {
            if drain.get_ref().0 > Duration::from_secs(60) {
                problems.at(&drain, "drain is at most \"60s\": who stops the daemon waits for it");
            }
            drain.get_ref().0
        });
        let coalesce = self.coalesce_us.map_or(DEFAULT_COALESCE_US, |coalesce| {
            if *coalesce.get_ref() > MAX_COALESCE_US {
                problems.at(
                    &coalesce,
                    format!("coalesce_us is at most {MAX_COALESCE_US}: calls would be slow"),
                );
            }
            *coalesce.get_ref()
        });
        let coalesce = Duration::from_micros(coalesce);
        let most = 1..=MAX_WORKERS as i64;
        let workers = self.workers.and_then(|workers| {
            usize::try_from(problems.number(Some(&workers), "workers", most, 1)).ok()
        });
        Sip { listen, key, no_destination: self.no_destination, drain, coalesce, workers }
    }
}

fn read_key(path: &Path, file: &Spanned<PathBuf>, problems: &mut Problems<'_>) -> Option<Key> {
    // Relative to the configuration file, so that a directory can be moved as a whole.
    let at = path.parent().unwrap_or(Path::new("")).join(file.get_ref());
    let text = match std::fs::read_to_string(&at) {
        Ok(text) => text,
        Err(error) => {
            problems.at(file, format!("the key file {} cannot be read: {error}", at.display()));
            return None;
        }
    };
    let key = Key::from_hex(text.trim());
    if key.is_none() {
        problems.at(
            file,
            format!(
                "{} does not hold 32 hex digits: make it with `openssl rand -hex 16`",
                at.display()
            ),
        );
    }
    key
}

impl RawTrust {
    fn check(self, problems: &mut Problems<'_>) -> Trust {
        let mut trust = Trust::default();
        let mut seen = BTreeMap::new();
        for (item, list) in (self.networks.iter().map(|n| (n, "networks")))
            .chain(self.registered.iter().map(|n| (n, "registered")))
            .chain(self.deny.iter().map(|n| (n, "deny")))
        {
            let Some(net) = problems.network(item) else {
                continue;
            };
            match list {
                "deny" => trust.deny.push(net),
                "registered" => trust.registered.push(net),
                _ => trust.networks.push(net),
            }
            if let Some((first, at)) = seen.insert(net, (list, item.span().start)) {
                let line = problems.line(at);
                let reason = if first == list {
                    format!("{net} is listed twice, first on line {line}")
                } else if (first, list) == ("networks", "deny") {
                    format!("{net} is both trusted (line {line}) and denied: keep one of them")
                } else {
                    format!(
                        "{net} stands in both {first} (line {line}) and {list}: keep one of them"
                    )
                };
                problems.at(item, reason);
            }
            if seen.len() == MAX_NETWORKS as usize + 1 {
                problems.at(item, format!("more than {MAX_NETWORKS} networks"));
            }
        }
        trust
    }
}

fn check_pbxs(
    raw: &[RawPbx],
    listen: &[SocketAddr],
    problems: &mut Problems<'_>,
) -> Vec<PbxConfig> {
    let locals = ByFamily::first(listen);
    let mut ids = HashMap::new();
    let mut addresses = HashMap::new();
    let mut checked = Vec::with_capacity(raw.len());
    for (n, pbx) in raw.iter().enumerate() {
        let id = pbx.id.get_ref();
        if !is_pbx_id(id) {
            problems.at(
                &pbx.id,
                format!(
                    "\"{id}\" cannot be an id: use 1 to 32 letters, digits, dots, dashes and _"
                ),
            );
        }
        if let Some(first) = ids.insert(id.clone(), pbx.id.span().start) {
            let line = problems.line(first);
            problems.at(&pbx.id, format!("the id \"{id}\" is taken on line {line}"));
        }
        if n == MAX_PBX as usize {
            problems.at(&pbx.id, format!("more than {MAX_PBX} PBXs"));
        }
        let (low, high) = (i64::from(*WEIGHTS.start()), i64::from(*WEIGHTS.end()));
        let weight = problems.number(pbx.weight.as_ref(), "weight", low..=high, 1);
        let limits = pbx.limits(problems);
        let Some(address) = problems.address(&pbx.address) else {
            continue;
        };
        if let Some(fault) = pbx_address_fault(address) {
            problems.at(&pbx.address, format!("{address}: {fault}"));
        } else if !listen.is_empty() && locals.get(Family::of(address)).is_none() {
            // A list with nothing readable in it is reported as that.
            let family = Family::of(address);
            problems.at(
                &pbx.address,
                format!("{address}: sip.listen has no {family} address to reach it from"),
            );
        }
        if listen.contains(&address) {
            problems.at(&pbx.address, format!("{address} is an address of ours: calls would loop"));
        }
        if let Some(first) = addresses.insert(address, pbx.address.span().start) {
            let line = problems.line(first);
            problems.at(&pbx.address, format!("{address} is taken on line {line}"));
        }
        checked.push(PbxConfig {
            id: id.clone(),
            address,
            weight: u8::try_from(weight).unwrap_or(*WEIGHTS.end()),
            state: pbx.state,
            limits,
        });
    }
    checked
}

impl RawPbx {
    fn limits(&self, problems: &mut Problems<'_>) -> PbxLimits {
        let mut limit = |given: &Option<Spanned<i64>>, name| {
            let limit = problems.number(given.as_ref(), name, 0..=MAX_LIMIT, 0);
            u32::try_from(limit).unwrap_or(0)
        };
        PbxLimits {
            max_calls: limit(&self.max_calls, "max_calls"),
            calls_per_second: limit(&self.calls_per_second, "calls_per_second"),
        }
    }
}

impl RawDispatch {
    fn check(self, problems: &mut Problems<'_>) -> Dispatch {
        let default = Dispatch::default();
        let (ms, s) = (Duration::from_millis, Duration::from_secs);
        // Below, one lost datagram would be a dead PBX; above, callers have given up.
        let answer_timeout = problems.period(
            self.answer_timeout.as_ref(),
            "answer_timeout",
            ms(600)..=s(32),
            default.answer_timeout,
        );
        // Timer C of RFC 3261 16.6 ends it in any case.
        let ring_timeout = problems.period(
            self.ring_timeout.as_ref(),
            "ring_timeout",
            s(1)..=s(180),
            default.ring_timeout,
        );
        let fall = problems.number(self.fall.as_ref(), "fall", 1..=1000, i64::from(default.fall));
        let pause = problems.period(self.pause.as_ref(), "pause", s(1)..=s(3600), default.pause);
        let longest_pause = problems.period(
            self.longest_pause.as_ref(),
            "longest_pause",
            s(1)..=s(3600),
            default.longest_pause.max(pause),
        );
        if let Some(given) = &self.longest_pause
            && longest_pause < pause
        {
            problems.at(given, "longest_pause is shorter than pause");
        }
        let max_transactions = problems.number(
            self.max_transactions.as_ref(),
            "max_transactions",
            100..=500_000,
            default.max_transactions as i64,
        );
        Dispatch {
            answer_timeout,
            ring_timeout,
            shadow: self.shadow.unwrap_or(default.shadow),
            fall: u32::try_from(fall).unwrap_or(default.fall),
            pause,
            longest_pause,
            max_transactions: usize::try_from(max_transactions).unwrap_or(default.max_transactions),
        }
    }
}

impl RawAccounting {
    fn check(self, problems: &mut Problems<'_>) -> accounting::Rules {
        let default = accounting::Rules::default();
        let max_calls = problems.number(
            self.max_calls.as_ref(),
            "max_calls",
            0..=MAX_LIMIT,
            default.max_calls as i64,
        );
        let day = Duration::from_secs(86_400);
        let longest_call = problems.period(
            self.longest_call.as_ref(),
            "longest_call",
            Duration::from_secs(60)..=day,
            default.longest_call,
        );
        let max_calls = usize::try_from(max_calls).unwrap_or(default.max_calls);
        accounting::Rules { max_calls, longest_call }
    }
}

fn check_credentials(
    raw: &[RawPbx],
    problems: &mut Problems<'_>,
) -> HashMap<Box<str>, PbxCredentials> {
    let mut all = HashMap::new();
    for pbx in raw {
        let username = pbx.username.as_ref();
        let Some(password) = pbx.password.as_deref() else {
            if let Some(username) = username {
                problems.at(username, "username needs password: a PBX asks for both");
            }
            continue;
        };
        let username = username.map(|username| username.get_ref().as_str().into());
        let secret = Secret::Password(password.into());
        all.insert(pbx.id.get_ref().as_str().into(), PbxCredentials { username, secret });
    }
    all
}

impl RawProbe {
    fn check(self, problems: &mut Problems<'_>) -> Probe {
        let default = Probe::default();
        let interval = self.interval.as_ref().map_or(default.interval, |p| p.get_ref().0);
        if let Some(given) = &self.interval
            && interval < Duration::from_millis(100)
        {
            problems.at(given, "interval is at least \"100ms\"");
        }
        // With a short interval and no word about the timeout, the timeout follows.
        let timeout =
            self.timeout.as_ref().map_or(default.timeout.min(interval), |p| p.get_ref().0);
        if let Some(given) = &self.timeout {
            if timeout < Duration::from_millis(50) {
                problems.at(given, "timeout is at least \"50ms\"");
            } else if timeout > interval {
                problems.at(given, "timeout is longer than interval: probes would overlap");
            }
        }
        let fall = problems.number(self.fall.as_ref(), "fall", 1..=1000, i64::from(default.fall));
        let rise = problems.number(self.rise.as_ref(), "rise", 1..=1000, i64::from(default.rise));
        let accept = match &self.accept {
            None => default.accept,
            Some(list) => check_accept(list, problems),
        };
        Probe {
            interval,
            timeout,
            fall: u32::try_from(fall).unwrap_or(default.fall),
            rise: u32::try_from(rise).unwrap_or(default.rise),
            accept,
        }
    }
}

fn check_accept(list: &Spanned<Vec<Spanned<String>>>, problems: &mut Problems<'_>) -> Accept {
    let mut rules = Vec::new();
    for item in list.get_ref() {
        match Accept::rule(item.get_ref()) {
            Some(rule) => rules.push(rule),
            None => problems.at(
                item,
                format!(
                    "\"{}\" is neither a final status code (\"404\") nor a class (\"2xx\"), nor one of \
                     these with ! before it",
                    item.get_ref()
                ),
            ),
        }
    }
    if list.get_ref().iter().all(|item| item.get_ref().starts_with('!')) {
        problems.at(list, "accept names no answer that counts as alive: every PBX would be dead");
    }
    Accept { rules }
}

impl RawXdp {
    fn check(self, problems: &mut Problems<'_>) -> Xdp {
        let default = Xdp::default();
        let mode = self.mode.as_ref().map_or(default.mode, |m| *m.get_ref());
        if let Some(given) = &self.mode
            && matches!(mode, XdpMode::Native | XdpMode::Generic)
            && self.interfaces.is_empty()
        {
            problems.at(given, format!("mode {mode} needs interfaces: name at least one"));
        }
        let mut seen = HashMap::new();
        for item in &self.interfaces {
            let name = item.get_ref();
            // IFNAMSIZ is 16 with the closing zero.
            if name.is_empty()
                || name.len() > 15
                || name.bytes().any(|b| b == b'/' || !b.is_ascii_graphic())
            {
                problems.at(item, format!("\"{name}\" cannot be the name of an interface"));
            }
            if let Some(first) = seen.insert(name.clone(), item.span().start) {
                let line = problems.line(first);
                problems.at(item, format!("{name} is listed twice, first on line {line}"));
            }
        }
        let pin = match &self.pin {
            None => default.pin,
            Some(path) if path.get_ref().as_os_str().is_empty() => None,
            Some(path) => {
                if !path.get_ref().is_absolute() {
                    problems
                        .at(path, "pin is not an absolute path, such as \"/sys/fs/bpf/sipline\"");
                }
                Some(path.get_ref().clone())
            }
        };
        if let Some(keep) = &self.keep
            && *keep.get_ref()
            && pin.is_none()
        {
            problems.at(keep, "keep needs pin: without a pin nothing can stay attached");
        }
        // Zero is for ever. Below a second the next daemon would be late.
        let outlive = match self.outlive {
            Some(outlive) if outlive.get_ref().0.is_zero() => Duration::ZERO,
            given => {
                let range = Duration::from_secs(1)..=Duration::from_secs(86_400);
                problems.period(given.as_ref(), "outlive", range, default.outlive)
            }
        };
        let most = i64::from(MAX_CALL_BUCKETS);
        let fallback = i64::from(default.call_buckets);
        let buckets =
            problems.number(self.call_buckets.as_ref(), "call_buckets", 1..=most, fallback);
        let buckets = u32::try_from(buckets).unwrap_or(default.call_buckets);
        if let Some(given) = &self.call_buckets
            && !buckets.is_power_of_two()
        {
            let near = buckets.next_power_of_two();
            problems
                .at(given, format!("call_buckets is {buckets}: it is a power of two, as {near}"));
        }
        Xdp {
            mode,
            interfaces: self.interfaces.into_iter().map(Spanned::into_inner).collect(),
            pin,
            keep: self.keep.is_some_and(Spanned::into_inner),
            outlive,
            log: self.log,
            loops: self.loops,
            call_buckets: buckets,
            challenge: self.challenge.unwrap_or(true),
        }
    }
}

impl RawControl {
    fn check(self, problems: &mut Problems<'_>) -> Control {
        let Some(socket) = self.socket else {
            return Control { socket: PathBuf::from(DEFAULT_SOCKET) };
        };
        let length = socket.get_ref().as_os_str().len();
        if length == 0 {
            problems.at(&socket, "socket is empty: name a path");
        } else if length > 107 {
            problems.at(&socket, "socket is longer than a Unix socket's path can be (107 bytes)");
        }
        Control { socket: socket.into_inner() }
    }
}

impl RawMetrics {
    fn check(self, problems: &mut Problems<'_>) -> Metrics {
        let Some(listen) = self.listen else { return Metrics::default() };
        let address = problems.address(&listen);
        match address {
            Some(address) if address.port() == 0 => problems.at(&listen, "the port cannot be 0"),
            Some(address) if address.ip().is_multicast() => {
                problems.at(&listen, format!("{address} is a multicast address"));
            }
            _ => {}
        }
        Metrics { listen: address }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) const MINIMAL: &str = "[sip]\nlisten = [\"192.0.2.1:5060\"]\n";

    fn errors(text: &str) -> Vec<String> {
        let error = Config::parse(Path::new("f.toml"), text).expect_err("must be refused");
        error.to_string().lines().map(str::to_owned).collect()
    }

    /// The one error of `MINIMAL` and `rest`.
    #[track_caller]
    fn error(rest: &str) -> String {
        let all = errors(&format!("{MINIMAL}{rest}"));
        assert_eq!(all.len(), 1, "{all:#?}");
        all.into_iter().next().unwrap()
    }

    #[track_caller]
    pub(super) fn assert_error(rest: &str, place: &str, part: &str) {
        let error = error(rest);
        assert!(error.starts_with(&format!("f.toml:{place}: ")), "{error}");
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn the_example_parses_and_shows_the_defaults() {
        let text = include_str!("../sipline.example.toml");
        let config = Config::parse(Path::new("sipline.example.toml"), text).unwrap();
        assert_eq!(config.pbx.len(), 2);
        assert_eq!(config.pbx[1].weight, 1);
        assert_eq!(config.pbx[0].limits, PbxLimits::default());
        assert_eq!(config.probe, Probe::default());
        assert_eq!(config.dispatch, Dispatch::default());
        assert_eq!(config.accounting, accounting::Rules::default());
        assert_eq!(config.xdp, Xdp { interfaces: vec!["eth0".into()], ..Xdp::default() });
        assert_eq!(config.log, Log::default());
        assert_eq!(config.control.socket, Path::new(DEFAULT_SOCKET));
        assert_eq!(config.metrics, Metrics::default());
        let minimal = Config::parse(Path::new("f.toml"), MINIMAL).unwrap();
        assert_eq!(minimal.sip.drain, config.sip.drain);
        assert_eq!(minimal.sip.coalesce, config.sip.coalesce);
        assert_eq!(minimal.sip.no_destination, config.sip.no_destination);
        assert_eq!(minimal.probe, config.probe);
        assert_eq!(minimal.dispatch, config.dispatch);
        assert_eq!(minimal.accounting, config.accounting);
        assert_eq!(minimal.xdp, Xdp::default());
        assert_eq!(minimal.sip.key, None);
    }

    #[test]
    fn the_example_names_every_key() {
        // serde lists the fields that a struct has when it meets one that it has not.
        let text = include_str!("../sipline.example.toml");
        let sections = [
            "sip",
            "trust",
            "[pbx]",
            "probe",
            "dispatch",
            "accounting",
            "registrar",
            "auth",
            "store",
            "xdp",
        ];
        for section in sections.into_iter().chain(["control", "metrics", "log"]) {
            let body = match section {
                "sip" => "listen = [\"192.0.2.1:5060\"]\n",
                "store" => "url = \"sqlite:///x\"\n",
                _ => "",
            };
            let all = errors(&format!("[{section}]\n{body}no_such_key = 1\n"));
            let (_, known) = all[0].split_once("expected ").expect("a list of the fields");
            for key in known.split('`').skip(1).step_by(2) {
                assert!(
                    text.lines()
                        .any(|l| l.trim_start_matches("# ").starts_with(&format!("{key} ="))),
                    "[{section}] {key} is not in the example"
                );
            }
        }
    }

    #[test]
    fn unknown_keys_and_sections() {
        assert_error("lisen = 1\n", "3:1", "unknown field `lisen`");
        assert_error("[sipp]\n", "3:2", "unknown field `sipp`");
        assert_error("[xdp]\nmod = \"off\"\n", "4:1", "unknown field `mod`");
    }

    #[test]
    fn what_toml_itself_refuses() {
        assert_error("listen = 3\n", "3:1", "duplicate key");
        assert_error("drain = \n", "3:9", "");
        assert_error("drain = 2\n", "3:9", "invalid type");
        assert_eq!(errors("[trust]\n"), ["f.toml:1:1: missing field `sip`"]);
        assert_eq!(errors("[sip]\n"), ["f.toml:1:1: missing field `listen`"]);
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = Config::load(Path::new("/nonexistent/sipline.toml")).unwrap_err();
        assert!(
            error.to_string().starts_with("/nonexistent/sipline.toml: cannot be read"),
            "{error}"
        );
    }

    #[test]
    fn listen() {
        let one = |list: &str| errors(&format!("[sip]\nlisten = [{list}]\n")).remove(0);
        assert_eq!(
            one(""),
            "f.toml:2:10: listen is empty: name at least one address and port of ours"
        );
        assert!(one("\"x\"").starts_with("f.toml:2:11: \"x\" is not an address and port"));
        assert!(one("\"192.0.2.1\"").contains("is not an address and port"));
        assert!(one("\"0.0.0.0:5060\"").contains("is a wildcard"));
        assert!(one("\"[::]:5060\"").contains("is a wildcard"));
        assert!(one("\"224.0.1.75:5060\"").contains("multicast"));
        assert!(one("\"192.0.2.1:0\"").contains("port cannot be 0"));
        assert_eq!(
            one("\"192.0.2.1:5060\",\n  \"192.0.2.1:5060\""),
            "f.toml:3:3: 192.0.2.1:5060 is listed twice, first on line 2"
        );
        let many: String = (1..=65).map(|i| format!("\"192.0.2.{i}:5060\",")).collect();
        assert_eq!(one(&many), "f.toml:2:10: more than 64 addresses");
    }

    #[test]
    fn keys() {
        assert_error("key = \"12\"\n", "3:7", "32 hex digits");
        assert_error("key_file = \"/nonexistent/key\"\n", "3:12", "cannot be read");
        let both = "key = \"00112233445566778899aabbccddeeff\"\nkey_file = \"/nonexistent/key\"\n";
        assert_error(both, "4:12", "both given");
        // The file beside the configuration is no key.
        let here = Path::new(env!("CARGO_MANIFEST_DIR")).join("sipline.toml");
        let text = format!("{MINIMAL}key_file = \"Cargo.toml\"\n");
        let error = Config::parse(&here, &text).unwrap_err().to_string();
        assert!(error.contains("does not hold 32 hex digits"), "{error}");
        assert_eq!(
            Key::from_hex("00112233445566778899aabbccddeeff"),
            Some(Key([0x0011_2233_4455_6677, 0x8899_aabb_ccdd_eeff]))
        );
        assert_eq!(Key::from_hex("+0112233445566778899aabbccddeeff"), None);
        assert_eq!(format!("{:?}", Key([1, 2])), "Key(..)");
    }

    #[test]
    fn sip_answers_and_times() {
        assert_error("no_destination = \"500\"\n", "3:18", "unknown variant `500`");
        assert_error("drain = \"2 s\"\n", "3:9", "is not a time");
        assert_error("drain = \"99999999999999999999s\"\n", "3:9", "is not a time");
        assert_error("drain = \"2d\"\n", "3:9", "is not a time");
        assert_error("coalesce_us = 5001\n", "3:15", "at most 5000");
        assert_error("coalesce_us = -1\n", "3:15", "invalid value");
        assert_error("workers = 0\n", "3:11", "it goes from 1 to 64");
        assert_error("workers = 65\n", "3:11", "it goes from 1 to 64");
        assert_error("drain = \"2m\"\n", "3:9", "at most \"60s\"");
    }

    #[test]
    fn networks() {
        assert_error("[trust]\nnetworks = [\"lan\"]\n", "4:13", "is not a network");
        assert_error("[trust]\ndeny = [\"10.0.0.0/33\"]\n", "4:9", "is not a network");
        assert_error("[trust]\nnetworks = [\"10.1.2.3/24\"]\n", "4:13", "write \"10.1.2.0/24\"");
        assert_error(
            "[trust]\nnetworks = [\"10.0.0.0/8\"]\ndeny = [\"10.0.0.0/8\"]\n",
            "5:9",
            "both trusted (line 4) and denied",
        );
        assert_error("[trust]\nregistered = [\"10.0.0.0/8\"]\n", "4:15", "needs [registrar]");
        assert_error(
            "[trust]\nnetworks = [\"10.0.0.0/8\"]\nregistered = [\"10.0.0.0/8\"]\n[registrar]\n\
             [store]\nurl = \"sqlite:///x\"\n",
            "5:15",
            "in both networks (line 4) and registered",
        );
        assert_error(
            "[trust]\ndeny = [\"10.0.0.1\", \"10.0.0.1/32\"]\n",
            "4:21",
            "listed twice, first on line 4",
        );
    }

    #[test]
    fn pbxs() {
        let pbx = |text: &str| format!("[[pbx]]\n{text}\n");
        assert_error(&pbx("id = \"a\""), "3:1", "missing field `address`");
        assert_error(&pbx("id = \"a b\"\naddress = \"192.0.2.9:5060\""), "4:6", "cannot be an id");
        assert_error(&pbx("id = \"a\"\naddress = \"pbx:5060\""), "5:11", "not an address and port");
        assert_error(&pbx("id = \"a\"\naddress = \"192.0.2.9:0\""), "5:11", "port cannot be 0");
        let ipv6 = |address: &str| pbx(&format!("id = \"a\"\naddress = \"{address}\""));
        assert_error(
            &ipv6("[2001:db8::1]:5060"),
            "5:11",
            "[2001:db8::1]:5060: sip.listen has no IPv6 address to reach it from",
        );
        assert_error(&ipv6("[::ffff:192.0.2.9]:5060"), "5:11", "is an IPv4 address");
        assert_error(&ipv6("[fe80::1]:5060"), "5:11", "link-local");
        assert_error(&ipv6("[fe80::1%2]:5060"), "5:11", "link-local");
        assert_error(&ipv6("[2001:db8::1%2]:5060"), "5:11", "link-local");
        assert_error(&ipv6("[::]:5060"), "5:11", "one machine");
        assert_error(&ipv6("[ff02::1]:5060"), "5:11", "one machine");
        assert_error(&ipv6("[2001:db8::1]:0"), "5:11", "port cannot be 0");
        assert_error(&pbx("id = \"a\"\naddress = \"0.0.0.0:5060\""), "5:11", "one machine");
        assert_error(&pbx("id = \"a\"\naddress = \"192.0.2.1:5060\""), "5:11", "would loop");
        let good = "id = \"a\"\naddress = \"192.0.2.9:5060\"\n";
        assert_error(&pbx(&format!("{good}weight = 17")), "6:10", "from 1 to 16");
        assert_error(&pbx(&format!("{good}weight = 0")), "6:10", "from 1 to 16");
        assert_error(&pbx(&format!("{good}state = \"off\"")), "6:9", "unknown variant `off`");
        assert_error(&pbx(&format!("{good}username = \"u\"")), "6:12", "needs password");
        let twice = format!("{}[[pbx]]\nid = \"a\"\naddress = \"192.0.2.8:5060\"\n", pbx(good));
        assert_error(&twice, "8:6", "taken on line 4");
        let twice = format!("{}[[pbx]]\nid = \"b\"\naddress = \"192.0.2.9:5060\"\n", pbx(good));
        assert_error(&twice, "9:11", "taken on line 5");
        let many: String = (1..=65)
            .map(|i| format!("[[pbx]]\nid = \"p{i}\"\naddress = \"192.0.3.{i}:5060\"\n"))
            .collect();
        assert_error(&many, "196:6", "more than 64 PBXs");
    }

    #[test]
    fn pbxs_of_both_families() {
        let pbx4 = "[[pbx]]\nid = \"a\"\naddress = \"192.0.2.9:5060\"\n";
        let pbx6 = "[[pbx]]\nid = \"b\"\naddress = \"[2001:db8::9]:5060\"\n";
        let both = "listen = [\"192.0.2.1:5060\", \"[2001:db8::1]:5060\"]";
        let text = format!("[sip]\n{both}\n{pbx4}{pbx6}");
        let config = Config::parse(Path::new("f.toml"), &text).unwrap();
        assert_eq!(config.pbx[1].address, "[2001:db8::9]:5060".parse().unwrap());
        let ours = text.replace("db8::9", "db8::1");
        assert!(errors(&ours)[0].contains("would loop"), "{ours}");
        // Each needs an address of ours in its family.
        let only6 = text.replace("\"192.0.2.1:5060\", ", "");
        let all = errors(&only6);
        assert_eq!(all.len(), 1, "{all:#?}");
        assert!(all[0].starts_with("f.toml:5:11: 192.0.2.9:5060: sip.listen has no IPv4"));
    }

    #[test]
    fn probing() {
        assert_error("[probe]\ninterval = \"0s\"\n", "4:12", "at least \"100ms\"");
        assert_error("[probe]\ntimeout = \"1ms\"\n", "4:11", "at least \"50ms\"");
        assert_error("[probe]\ntimeout = \"20s\"\n", "4:11", "longer than interval");
        assert_error("[probe]\nfall = 0\n", "4:8", "from 1 to 1000");
        assert_error("[probe]\nrise = 1001\n", "4:8", "from 1 to 1000");
        assert_error(
            "[probe]\naccept = [\"2xx\", \"100\"]\n",
            "4:18",
            "neither a final status code",
        );
        assert_error("[probe]\naccept = [\"!503\"]\n", "4:10", "every PBX would be dead");
        assert_error("[probe]\naccept = []\n", "4:10", "every PBX would be dead");
        let short = format!("{MINIMAL}[probe]\ninterval = \"1s\"\n");
        let config = Config::parse(Path::new("f.toml"), &short).unwrap();
        assert_eq!(config.probe.timeout, Duration::from_secs(1));
    }

    #[test]
    fn calls_and_their_limits() {
        let pbx = "[[pbx]]\nid = \"a\"\naddress = \"192.0.2.9:5060\"\n";
        assert_error(&format!("{pbx}max_calls = -1\n"), "6:13", "from 0 to 1000000");
        assert_error(&format!("{pbx}calls_per_second = 1000001\n"), "6:20", "from 0 to 1000000");
        let text = format!("{MINIMAL}{pbx}max_calls = 30\ncalls_per_second = 5\n");
        let config = Config::parse(Path::new("f.toml"), &text).unwrap();
        assert_eq!(config.pbx[0].limits, PbxLimits { max_calls: 30, calls_per_second: 5 });
        let dispatch = |line: &str| format!("[dispatch]\n{line}\n");
        for (line, place, part) in [
            ("answer_timeout = \"100ms\"", "4:18", "from \"600ms\" to \"32s\""),
            ("answer_timeout = \"1m\"", "4:18", "from \"600ms\" to \"32s\""),
            ("ring_timeout = \"200s\"", "4:16", "from \"1s\" to \"180s\""),
            ("fall = 0", "4:8", "from 1 to 1000"),
            ("pause = \"2h\"", "4:9", "from \"1s\" to \"1h\""),
            ("longest_pause = \"0s\"", "4:17", "from \"1s\" to \"1h\""),
            ("longest_pause = \"2s\"", "4:17", "shorter than pause"),
            ("max_transactions = 1", "4:20", "from 100 to 500000"),
        ] {
            assert_error(&dispatch(line), place, part);
        }
        let text = format!("{MINIMAL}{}", dispatch("pause = \"5m\""));
        let config = Config::parse(Path::new("f.toml"), &text).unwrap();
        assert_eq!(config.dispatch.longest_pause, Duration::from_secs(300));
        assert_error("[accounting]\nmax_calls = -1\n", "4:13", "from 0 to 1000000");
        assert_error("[accounting]\nlongest_call = \"1s\"\n", "4:16", "from \"60s\" to \"24h\"");
    }

    #[test]
    fn accepted_answers() {
        let accept = Accept::default();
        for code in [200, 302, 404, 405, 481, 603] {
            assert!(accept.accepts(code), "{code}");
        }
        for code in [408, 500, 503, 100, 180, 0, 700] {
            assert!(!accept.accepts(code), "{code}");
        }
    }

    #[test]
    fn xdp() {
        assert_error("[xdp]\nmode = \"fast\"\n", "4:8", "unknown variant `fast`");
        assert_error("[xdp]\nmode = \"native\"\n", "4:8", "needs interfaces");
        assert_error("[xdp]\ninterfaces = [\"a/b\"]\n", "4:15", "cannot be the name");
        assert_error("[xdp]\ninterfaces = [\"sixteen-letters-\"]\n", "4:15", "cannot be the name");
        assert_error("[xdp]\ninterfaces = [\"a\", \"a\"]\n", "4:20", "listed twice");
        assert_error("[xdp]\npin = \"bpf\"\n", "4:7", "absolute");
        assert_error("[xdp]\nkeep = true\npin = \"\"\n", "4:8", "keep needs pin");
        assert_error("[xdp]\noutlive = \"10ms\"\n", "4:11", "outlive goes from \"1s\"");
        assert_error("[xdp]\nloops = \"none\"\n", "4:9", "unknown variant `none`");
        assert_error("[xdp]\ncall_buckets = 1000\n", "4:16", "power of two, as 1024");
        assert_error("[xdp]\ncall_buckets = 0\n", "4:16", "from 1 to");
    }

    #[test]
    fn control_and_log() {
        assert_error("[control]\nsocket = \"\"\n", "4:10", "is empty");
        let long = format!("[control]\nsocket = \"/{}\"\n", "x".repeat(107));
        assert_error(&long, "4:10", "107 bytes");
        assert_error("[log]\nlevel = \"loud\"\n", "4:9", "unknown variant `loud`");
        assert_error("[log]\nformat = \"xml\"\n", "4:10", "unknown variant `xml`");
    }

    #[test]
    fn metrics() {
        assert_error("[metrics]\nlisten = \"9090\"\n", "4:10", "is not an address and port");
        assert_error("[metrics]\nlisten = \"127.0.0.1:0\"\n", "4:10", "port cannot be 0");
        assert_error("[metrics]\nlisten = \"[ff02::1]:9090\"\n", "4:10", "multicast");
        assert_error("[metrics]\nport = 9090\n", "4:1", "unknown field `port`");
        // All addresses are a choice here: no message names them.
        let everywhere = format!("{MINIMAL}[metrics]\nlisten = \"[::]:9090\"\n");
        let config = Config::parse(Path::new("f.toml"), &everywhere).unwrap();
        assert_eq!(config.metrics.listen, "[::]:9090".parse().ok());
    }

    #[test]
    fn all_mistakes_are_told_in_order() {
        let all = errors(
            "[probe]\nfall = 0\n[sip]\nlisten = [\"0.0.0.0:5060\"]\n[xdp]\nkeep = true\npin = \"\"\n",
        );
        let places: Vec<_> = all.iter().map(|e| e.split(": ").next().unwrap()).collect();
        assert_eq!(places, ["f.toml:2:8", "f.toml:4:11", "f.toml:6:8"]);
    }

    #[test]
    fn columns_count_characters() {
        assert_error("# \n[log]\nlevel = \"é\" \n", "5:9", "unknown variant");
        let all = errors("[sip]\nlisten = [\"é\", 5]\n");
        assert_eq!(all, ["f.toml:2:16: invalid type: integer `5`, expected a string"]);
    }
}
