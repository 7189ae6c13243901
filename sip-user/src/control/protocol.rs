//! The words of the control socket. Stable: scripts read them through `--json`.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};

use crate::config::{AdminState, Problem};
use crate::fastpath::{Attachment, Mode};

/// The longest line that a client may send.
pub const LONGEST_REQUEST: usize = 64 * 1024;

/// What a client asks for.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
#[serde(tag = "verb", rename_all = "kebab-case", deny_unknown_fields)]
pub enum Request {
    /// The PBXs as they are.
    Backends,
    /// No new calls for a PBX; its calls go on.
    Drain {
        /// Which.
        id: String,
    },
    /// A PBX is used again.
    Enable {
        /// Which.
        id: String,
    },
    /// A PBX is not used and not probed.
    Disable {
        /// Which.
        id: String,
    },
    /// One more PBX, until the daemon ends.
    Add {
        /// Its name.
        id: String,
        /// Where it listens.
        address: SocketAddr,
        /// Its share of new calls, 1 to 16.
        #[serde(default = "one")]
        weight: u8,
        /// What its owner wants of it.
        #[serde(default)]
        state: AdminState,
        /// Calls at a time; 0 is no limit.
        #[serde(default)]
        max_calls: u32,
        /// New calls in a second; 0 is no limit.
        #[serde(default)]
        calls_per_second: u32,
    },
    /// A PBX goes away.
    Remove {
        /// Which.
        id: String,
    },
    /// Counters.
    Stats,
    /// The configuration file is read again.
    Reload,
    /// Who is registered.
    Registrations {
        /// Only this user, with how he is at each PBX: `user@domain`.
        #[serde(default)]
        user: Option<String>,
        /// How many at most.
        #[serde(default = "some")]
        limit: usize,
    },
    /// A user, or one contact of his, is registered no longer.
    Unregister {
        /// `user@domain`
        user: String,
        /// The contact's URI; all of them if there is none.
        #[serde(default)]
        contact: Option<String>,
    },
    /// Calls that go on and have a record.
    Calls {
        /// Only those with this id or Call-ID.
        #[serde(default)]
        id: Option<String>,
        /// How many at most.
        #[serde(default = "some")]
        limit: usize,
    },
    /// Who is banned.
    Bans {
        /// How many at most.
        #[serde(default = "some")]
        limit: usize,
    },
    /// Nothing of a network is heard.
    Ban {
        /// A network, or one address.
        network: IpNet,
        /// For how long, in seconds; if it is missing, until the daemon ends.
        #[serde(default)]
        seconds: Option<u64>,
        /// For people.
        #[serde(default)]
        note: String,
    },
    /// A ban ends.
    Unban {
        /// The network, as it is listed.
        network: IpNet,
    },
    /// A user has been changed in the store: what is known of his password counts no more.
    Forget {
        /// `user@domain`
        user: String,
    },
}

/// As many registrations, calls or records as are shown unless more are asked for.
pub const SHOWN: usize = 1000;

fn some() -> usize {
    SHOWN
}

fn one() -> u8 {
    1
}

/// The answer.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Response {
    /// Whether it was done.
    pub ok: bool,
    /// What was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub result: Option<Outcome>,
    /// Why it was not done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<Failure>,
}

impl Response {
    /// It was done.
    pub fn done(outcome: Outcome) -> Self {
        Self { ok: true, result: Some(outcome), error: None }
    }

    /// It was not.
    pub fn failed(message: impl Into<String>) -> Self {
        let error = Failure { message: message.into(), problems: Vec::new() };
        Self { ok: false, result: None, error: Some(error) }
    }
}

/// Why something was not done.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Failure {
    /// In words.
    pub message: String,
    /// Mistakes in the configuration file, if it was that.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// What was asked for.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Outcome {
    /// Of `stats`.
    Stats(Box<Stats>),
    /// Of `reload`.
    Reloaded(Reloaded),
    /// Of everything about registrations.
    Registrations(Registrations),
    /// Of `forget`.
    Forgotten(Forgotten),
    /// Of `calls`.
    Calls(Calls),
    /// Of everything about bans: all of them as they are now.
    Bans(Bans),
    /// Of everything about PBXs: all of them as they are now.
    Backends(Backends),
}

/// Who is registered.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Registrations {
    /// Contacts, by user; after a removal those of its user that are left.
    pub registrations: Vec<Registration>,
    /// How many there are in all.
    pub total: usize,
    /// How many were removed, if that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub removed: Option<usize>,
}

/// One contact of a user.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Registration {
    /// `user@domain`
    pub user: String,
    /// The contact's URI.
    pub contact: String,
    /// Where requests to it go, if that is not where the contact says.
    pub received: Option<SocketAddr>,
    /// Our address that they leave from.
    pub local: SocketAddr,
    /// For how much longer, in seconds.
    pub expires_in: u64,
    /// Preference in thousandths, if the phone gave one.
    pub q: Option<u16>,
    /// The route to it (RFC 3327).
    pub path: Option<String>,
    /// `+sip.instance`
    pub instance: Option<String>,
    /// `reg-id`
    pub reg_id: Option<u32>,
    /// What the phone calls itself.
    pub user_agent: Option<String>,
    /// Call-ID of its last REGISTER.
    pub call_id: String,
    /// CSeq of its last REGISTER.
    pub cseq: u32,
    /// How the user is at each PBX, if he was asked for by name.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub pbxs: Vec<Leg>,
}

/// How a user is at one PBX.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Leg {
    /// Its name.
    pub id: String,
    /// For how much longer it has him, in seconds; none if it has not said so.
    pub registered_for: Option<u64>,
    /// Its last answer; 408 if there was none.
    pub last: Option<u16>,
    /// Failures in a row.
    pub failures: u8,
}

/// What is known of a user's password counts no more.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Forgotten {
    /// `user@domain`
    pub forgotten: String,
}

/// Calls that go on and have a record.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Calls {
    /// The oldest first.
    pub calls: Vec<CallInProgress>,
    /// How many there are in all.
    pub total: usize,
}

/// Who is banned.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Bans {
    /// Those that were made last come first.
    pub bans: Vec<Ban>,
    /// How many there are in all.
    pub total: usize,
}

/// One ban.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Ban {
    /// Nothing of it is heard.
    pub network: IpNet,
    /// `hand`, `wrong_digests` or `scanner`.
    pub reason: String,
    /// More about the reason.
    pub note: String,
    /// When it was made: seconds of Unix time.
    pub since: u64,
    /// For how much longer, in seconds; if it is missing, until the daemon ends.
    pub expires_in: Option<u64>,
}

/// One call.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct CallInProgress {
    /// What its record will be known by: the column `uniqueid`.
    pub id: String,
    /// The caller's number.
    pub from: String,
    /// The called number.
    pub to: String,
    /// `calling`, `ringing` or `answered`.
    pub state: String,
    /// For how long it is in this state, in milliseconds.
    pub state_for_ms: u64,
    /// When its INVITE came: seconds of Unix time.
    pub started: u64,
    /// How long ago that was, in milliseconds.
    pub for_ms: u64,
    /// The PBX that it went to, or came from.
    pub pbx: Option<String>,
    /// The caller's address.
    pub caller: SocketAddr,
    /// Where it went last.
    pub callee: Option<SocketAddr>,
    /// The Call-ID.
    pub call_id: String,
}

/// The registrar, in numbers.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct RegistrarStats {
    /// Users who are registered.
    pub users: usize,
    /// Their contacts.
    pub contacts: usize,
    /// Transactions that go on.
    pub transactions: usize,
    /// Requests that wait for the secrets of their user.
    pub waiting: usize,
    /// The database: `SQLite`, `MariaDB/MySQL` or `PostgreSQL`.
    pub store: String,
    /// Whether it is there.
    pub connected: bool,
    /// Changes that wait to be written.
    pub unwritten: u64,
    /// What happened.
    pub counters: BTreeMap<String, u64>,
}

/// The PBXs.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Backends {
    /// By id.
    pub backends: Vec<Backend>,
}

/// One PBX.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Backend {
    /// Its name.
    pub id: String,
    /// Its slot in the tables.
    pub slot: u32,
    /// Where it listens.
    pub address: SocketAddr,
    /// Its share of new calls.
    pub weight: u8,
    /// `active`, `trial`, `inactive`, `draining` or `disabled`.
    pub state: String,
    /// Why it is inactive.
    pub reason: Option<String>,
    /// Since when: seconds of Unix time.
    pub since: u64,
    /// For how long, in milliseconds.
    pub for_ms: u64,
    /// What its owner wants.
    pub admin: AdminState,
    /// `file` or `hand`.
    pub origin: String,
    /// How the last probe ended: a status code or a fault.
    pub last_probe: Option<String>,
    /// How long the last answered probe took, in microseconds.
    pub round_trip_us: Option<u64>,
    /// Failures in a row.
    pub failures: u32,
    /// Calls that the kernel placed there.
    pub kernel_calls: u64,
    /// Calls that the daemon placed there.
    pub daemon_calls: u64,
}

/// Counters.
#[derive(Clone, Debug, Deserialize, PartialEq, Serialize)]
pub struct Stats {
    /// Of the daemon.
    pub version: String,
    /// Milliseconds since the daemon started.
    pub uptime_ms: u64,
    /// Whether it refuses new calls because it is about to end.
    pub stopping: bool,
    /// The kernel half.
    pub xdp: XdpStats,
    /// Who handled how much.
    pub share: Share,
    /// What the kernel did, by the reason that a packet left the program for.
    pub kernel: BTreeMap<String, u64>,
    /// What the daemon did.
    pub daemon: BTreeMap<String, u64>,
    /// The registrar, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub registrar: Option<RegistrarStats>,
    /// How many bans were made, by reason.
    #[serde(default)]
    pub bans: BTreeMap<String, u64>,
    /// The PBXs.
    pub backends: Vec<Backend>,
    /// Our addresses.
    pub sockets: Vec<SocketStats>,
}

/// The kernel half.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct XdpStats {
    /// `off`, `generic` or `native`.
    pub mode: Mode,
    /// By interface.
    pub interfaces: Vec<Attachment>,
    /// In words.
    pub description: String,
    /// How often a table could not be written, and was written anew later.
    pub write_failures: u64,
}

/// Who handled how much.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Serialize)]
pub struct Share {
    /// Messages that the kernel answered, forwarded or dropped.
    pub kernel_messages: u64,
    /// Messages that came up to the daemon, answers to its own probes not counted.
    pub daemon_messages: u64,
    /// The kernel's part of both, 0 to 1.
    pub kernel: f64,
}

impl Share {
    /// Of two counts.
    pub fn new(kernel_messages: u64, daemon_messages: u64) -> Self {
        let all = kernel_messages + daemon_messages;
        let kernel = if all == 0 { 0.0 } else { kernel_messages as f64 / all as f64 };
        Self { kernel_messages, daemon_messages, kernel }
    }
}

/// One of our addresses.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct SocketStats {
    /// The address.
    pub address: SocketAddr,
    /// Datagrams that were lost because the daemon was too slow.
    pub dropped: u64,
    /// Bytes that the socket holds for us.
    pub receive_buffer: u64,
}

/// A configuration that is in force now.
#[derive(Clone, Debug, Deserialize, Eq, PartialEq, Serialize)]
pub struct Reloaded {
    /// The file.
    pub file: String,
    /// Keys that have changed in the file and count only after a restart.
    pub restart_needed: Vec<String>,
    /// The PBXs as they are now.
    pub backends: Vec<Backend>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_plain() {
        let parse = |text: &str| serde_json::from_str::<Request>(text);
        assert_eq!(parse(r#"{"verb":"stats"}"#).unwrap(), Request::Stats);
        assert_eq!(
            parse(r#"{"verb":"drain","id":"pbx1"}"#).unwrap(),
            Request::Drain { id: "pbx1".into() }
        );
        assert_eq!(
            parse(r#"{"verb":"add","id":"p","address":"192.0.2.9:5060"}"#).unwrap(),
            Request::Add {
                id: "p".into(),
                address: "192.0.2.9:5060".parse().unwrap(),
                weight: 1,
                state: AdminState::Active,
                max_calls: 0,
                calls_per_second: 0,
            }
        );
        for bad in
            [r#"{"verb":"stop"}"#, r#"{"verb":"drain"}"#, r#"{"verb":"drain","id":1}"#, "[]", ""]
        {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn answers_come_back_as_what_they_were() {
        let reloaded = Response::done(Outcome::Reloaded(Reloaded {
            file: "/etc/x".into(),
            restart_needed: vec!["sip.listen".into()],
            backends: Vec::new(),
        }));
        let backends = Response::done(Outcome::Backends(Backends { backends: Vec::new() }));
        let calls = Response::done(Outcome::Calls(Calls { calls: Vec::new(), total: 0 }));
        let failed = Response::failed("no");
        for response in [reloaded, backends, calls, failed] {
            let text = serde_json::to_string(&response).unwrap();
            assert_eq!(serde_json::from_str::<Response>(&text).unwrap(), response, "{text}");
        }
    }

    #[test]
    fn shares() {
        assert_eq!(Share::new(0, 0).kernel, 0.0);
        assert_eq!(Share::new(3, 1).kernel, 0.75);
    }
}
