//! The tables that the daemon mirrors into the kernel: names, keys and values.
//!
//! Addresses and ports are kept as they stand in a packet: a `u32` or `u16` whose bytes in memory
//! are in network order. [`Endpoint::new`] does the conversion, and nothing else should.
//!
//! | map | kind | key | value | who writes |
//! | --- | --- | --- | --- | --- |
//! | `CONFIG` | array of 1 | 0 | [`Config`] | daemon |
//! | `HEARTBEAT` | array of 2 | [`beat::VOUCHED`], [`beat::OUTLIVED`] | `u64`: CLOCK_MONOTONIC ns | daemon |
//! | `LOCALS` | hash | [`Endpoint`] | [`Local`] | daemon |
//! | `SOURCES` | LPM trie | prefix length, IPv4 address | `u32` of [`source`] bits | daemon |
//! | `REGISTERED` | hash | IPv4 address | `u32`: one | daemon |
//! | `ENDPOINTS` | hash | [`Endpoint`] that somebody is registered from | `u64`: CLOCK_MONOTONIC ns, until when | daemon |
//! | `USERS` | LRU hash | `u64`: [`crate::cookie::user`] | `u64`: CLOCK_MONOTONIC ns, until when he is registered; zero: he is gone | daemon |
//! | `DEBTS` | array of [`DEBT_BUCKETS`] | bucket | [`DebtBucket`] | kernel |
//! | `PBXS` | array of [`MAX_PBX`] | slot | [`Pbx`] | daemon |
//! | `PBX_BY_ADDR` | hash | [`Endpoint`] | `u32`: slot | daemon |
//! | `SCHEDULE` | array of 1 | 0 | [`Schedule`] | daemon |
//! | `CALLS` | array of [`Config::calls_mask`] + 1, mapped by the daemon | bucket | [`CallBucket`] | kernel; the daemon notes what it takes over |
//! | `CALL_TAGS` | array, as long | bucket | `u64`: [`crate::calls::may_have`] | kernel |
//! | `EVENTS` | ring of [`EVENTS_SIZE`] bytes | | [`Event`], and of an INVITE the message | kernel |
//! | `EVENT_COUNTS` | per-CPU array of [`event::COUNTS`] | [`event::PUT`] and others | `u64` | kernel |
//! | `OPEN` | hash | `u64`: [`crate::cookie::call`] | [`OPEN_LEN`] bytes: what the daemon knows of a call that is carried without it | daemon |
//! | `PROGRAMS` | array of programs | [`program`] | the programs that the first one jumps to | daemon |
//! | `DOMAINS` | hash | [`crate::challenge::Domain`] | [`crate::challenge::Challenge`] | daemon |
//! | `ASKING` | array of 1 | 0 | [`crate::challenge::Asking`] | daemon |
//! | `NONCES` | array of 1 | 0 | `u64`: how many nonces were made | kernel |
//! | `LOCALS6`, `SOURCES6`, `REGISTERED6`, `ENDPOINTS6`, `DEBTS6`, `PBXS6`, `PBX_BY_ADDR6`, `SCHEDULE6`, `TURN6` | as those without the 6 | with [`Endpoint6`] and [`Pbx6`]; `REGISTERED6` by networks of 64 bits | the same of IPv6 | as these |
//! | `VLANS` | hash | `u32`: interface index of a port with the program, or of a VLAN device above one | [`VlanPort`] | daemon |
//! | `STEERED` | per-CPU array of [`MAX_PBX`] | slot | `u64`: calls steered there | kernel |
//! | `TURN` | array of 1 | 0 | `u64`: whose turn it was | kernel |
//! | `SCRATCH`, `HOPS`, `KNOWN`, the same with a 6 | per-CPU arrays | | working memory | kernel |
//! | `COUNTERS` | per-CPU array of [`crate::reason::REASONS`] | reason | `u64` | kernel |

use crate::address::Address;
use crate::gate::Rules;
use crate::hash::Keys;

/// Version of everything below. It is part of the pins' path: a daemon never adopts tables of another
/// layout.
pub const LAYOUT: u32 = 8;

/// How many PBXs there can be. A slot is one byte in the cookie and in the call table.
pub const MAX_PBX: u32 = 64;

/// How many of our addresses there can be.
pub const MAX_LOCALS: u32 = 64;

/// How many networks of the configuration `SOURCES` holds.
pub const MAX_NETWORKS: u32 = 65_536;

/// How many bans it holds beside them.
pub const MAX_BANS: u32 = 16_384;

/// How many networks `SOURCES` holds.
pub const MAX_SOURCES: u32 = MAX_NETWORKS + MAX_BANS;

/// Buckets of the call table unless configured: eight calls each, 64 bytes each. So it fits into a CPU's own cache,
/// where four times as many cost a new call about a fifth more time.
pub const DEFAULT_CALL_BUCKETS: u32 = 4096;

/// An IPv4 address and UDP port, both in network order in memory.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[repr(C)]
pub struct Endpoint {
    /// Address, network order in memory.
    pub addr: u32,
    /// Port, network order in memory.
    pub port: u16,
    /// Always zero: keys are compared as bytes.
    pub pad: u16,
}

impl Endpoint {
    /// From octets as written and a port as a number.
    pub const fn new(octets: [u8; 4], port: u16) -> Self {
        Self { addr: u32::from_ne_bytes(octets), port: port.to_be(), pad: 0 }
    }

    /// The address, octets as written.
    pub const fn octets(self) -> [u8; 4] {
        self.addr.to_ne_bytes()
    }

    /// The port as a number.
    pub const fn port_number(self) -> u16 {
        u16::from_be(self.port)
    }
}

/// An IPv6 address and UDP port, both in network order in memory.
#[derive(Clone, Copy, Debug, Default, Eq, Hash, PartialEq)]
#[repr(C)]
pub struct Endpoint6 {
    /// Address, network order in memory.
    pub addr: [u64; 2],
    /// Port, network order in memory.
    pub port: u16,
    /// Always zero: keys are compared as bytes.
    pub pad: [u16; 3],
}

impl Endpoint6 {
    /// From octets as written and a port as a number.
    pub const fn new(octets: [u8; 16], port: u16) -> Self {
        let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = octets;
        let high = u64::from_ne_bytes([a, b, c, d, e, f, g, h]);
        let low = u64::from_ne_bytes([i, j, k, l, m, n, o, p]);
        Self { addr: [high, low], port: port.to_be(), pad: [0; 3] }
    }

    /// The address, octets as written.
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d, e, f, g, h] = self.addr[0].to_ne_bytes();
        let [i, j, k, l, m, n, o, p] = self.addr[1].to_ne_bytes();
        [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
    }

    /// The port as a number.
    pub const fn port_number(self) -> u16 {
        u16::from_be(self.port)
    }
}

/// Switches in [`Config::flags`].
pub mod flag {
    /// Answer OPTIONS and CRLF keepalives.
    pub const KEEPALIVES: u32 = 1;
    /// Steer INVITEs and carry calls.
    pub const STEER: u32 = 1 << 1;
    /// `SOURCES` may have denied or banned networks, so every packet of ours is looked up.
    pub const DENY: u32 = 1 << 2;
    /// Ask how much each source has sent.
    pub const GATE: u32 = 1 << 3;
    /// Ask for credentials in the daemon's name, by `DOMAINS` and `ASKING` ([`crate::challenge`]). Needs both of the first
    /// switches.
    pub const CHALLENGE: u32 = 1 << 4;
    /// Answer a PBX that asks by OPTIONS for a user of ours, by `USERS` ([`crate::qualify`]). Needs the first switch.
    pub const QUALIFY: u32 = 1 << 5;
    /// Copy INVITEs that are steered into `EVENTS`, and send up what refuses them for a reason of its own (5xx): the
    /// daemon places such calls anew.
    pub const SHADOW: u32 = 1 << 8;
    /// Copy INVITEs that are steered into `EVENTS`, and tell there what becomes of their calls ([`crate::report`]), also
    /// while the daemon is away: it keeps their records.
    pub const RECORD: u32 = 1 << 9;
}

/// Keys in `HEARTBEAT`.
pub mod beat {
    /// Until when the daemon vouches for itself.
    pub const VOUCHED: u32 = 0;
    /// Until when new calls are placed should the daemon not come back; zero is for ever.
    pub const OUTLIVED: u32 = 1;
}

/// What an [`Event`] is about.
pub mod event {
    /// An INVITE was steered, as it came in.
    pub const INVITE: u32 = 1;
    /// The first final response of a PBX to an INVITE that was steered went by.
    pub const FINAL: u32 = 2;
    /// A BYE went to a PBX.
    pub const BYE_OF_CALLER: u32 = 3;
    /// A BYE came from a PBX.
    pub const BYE_OF_CALLEE: u32 = 4;

    /// An INVITE was steered over IPv6: where it came from and went to, two [`super::Endpoint6`], stand before it.
    pub const INVITE_SIX: u32 = 5;

    /// Key in `EVENT_COUNTS`: INVITEs that were put into the ring.
    pub const PUT: u32 = 0;
    /// Key in `EVENT_COUNTS`: INVITEs for which it had no room.
    pub const FULL: u32 = 1;
    /// Key in `EVENT_COUNTS`: reports ([`crate::report`]) that were put into the ring.
    pub const TOLD: u32 = 2;
    /// Key in `EVENT_COUNTS`: reports for which it was full.
    pub const LOST: u32 = 3;

    /// How many keys there are.
    pub const COUNTS: u32 = 4;
}

/// Size of the ring `EVENTS`, in bytes.
pub const EVENTS_SIZE: usize = 4 << 20;

/// How much of it INVITEs may fill, some 3,000 of them: the rest is for reports of some 18,000 calls, or the ends of calls
/// would be lost for new ones while nobody reads.
pub const EVENTS_OF_INVITES: usize = EVENTS_SIZE / 4 * 3;

/// The head of a record in `EVENTS`. `len` bytes of message follow; what is behind them means nothing.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Event {
    /// One of [`mod@event`].
    pub kind: u32,
    /// Length of the message.
    pub len: u32,
    /// Who sent it.
    pub src: Endpoint,
    /// Which address of ours it came to.
    pub dst: Endpoint,
    /// Of an INVITE: slot of the PBX.
    pub slot: u32,
    /// Of a final response: see [`crate::report::status`].
    pub status: u32,
    /// Keyed hash of the Call-ID ([`crate::cookie::call`]).
    pub call: u64,
    /// When it went by: CLOCK_MONOTONIC, ns; of an INVITE, as of the last tick of the kernel's.
    pub time: u64,
}

impl Event {
    /// The head and the message of a record; none if it is no such record.
    pub fn read(record: &[u8]) -> Option<(Self, &[u8])> {
        let word = |at: usize| Some(u32::from_ne_bytes(*record.get(at..)?.first_chunk()?));
        let half = |at: usize| Some(u16::from_ne_bytes(*record.get(at..)?.first_chunk()?));
        let endpoint = |at| Some(Endpoint { addr: word(at)?, port: half(at + 4)?, pad: 0 });
        let long = |at: usize| Some(u64::from_ne_bytes(*record.get(at..)?.first_chunk()?));
        let event = Self {
            kind: word(0)?,
            len: word(4)?,
            src: endpoint(8)?,
            dst: endpoint(16)?,
            slot: word(24)?,
            status: word(28)?,
            call: long(32)?,
            time: long(40)?,
        };
        let text = record.get(size_of::<Self>()..)?.get(..event.len as usize)?;
        Some((event, text))
    }

    /// Where an INVITE came from and went to over IPv6, and the message behind these; none if there is no such thing.
    pub fn read_six(text: &[u8]) -> Option<([Endpoint6; 2], &[u8])> {
        const LEN: usize = size_of::<Endpoint6>();
        let endpoint = |at: usize| {
            let octets = text.get(at..)?.first_chunk()?;
            let port = u16::from_be_bytes(*text.get(at + octets.len()..)?.first_chunk()?);
            Some(Endpoint6::new(*octets, port))
        };
        Some(([endpoint(0)?, endpoint(LEN)?], text.get(2 * LEN..)?))
    }
}

/// What a network in `SOURCES` may do.
pub mod source {
    /// Packets from here are dropped.
    pub const DENIED: u32 = 1;
    /// INVITEs from here are steered without a question.
    pub const TRUSTED: u32 = 1 << 1;
    /// Packets from here are dropped for a time.
    pub const BANNED: u32 = 1 << 2;
    /// Nobody here is banned unless an operator says so.
    pub const EXEMPT: u32 = 1 << 3;
    /// Requests from here need no credentials.
    pub const BELIEVED: u32 = 1 << 4;
    /// INVITEs from here are steered while somebody is registered from where they come from, the port included.
    pub const REGISTERED: u32 = 1 << 5;
}

/// Keys in `PROGRAMS`: what the first program jumps to.
pub mod program {
    /// [`crate::challenge`].
    pub const CHALLENGE: u32 = 0;
    /// [`crate::qualify`].
    pub const QUALIFY: u32 = 1;
    /// [`crate::report`].
    pub const REPORT: u32 = 2;

    /// IPv6, up to the scan: what this one needs is there before it.
    pub const SIX: u32 = 3;

    /// What becomes of a request over IPv6.
    pub const SIX_REQUEST: u32 = 4;

    /// What becomes of a response over IPv6.
    pub const SIX_RESPONSE: u32 = 5;

    /// [`crate::report`], of calls over IPv6.
    pub const SIX_REPORT: u32 = 6;

    /// [`crate::challenge`], of requests over IPv6: whether to ask.
    pub const SIX_CHALLENGE: u32 = 7;

    /// Asks.
    pub const SIX_ASK: u32 = 8;

    /// [`crate::qualify`], over IPv6.
    pub const SIX_QUALIFY: u32 = 9;

    /// How many there are.
    pub const COUNT: u32 = 10;
}

/// What the program must know besides the tables. All zero means: not configured, all goes up.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Config {
    /// [`LAYOUT`], else everything goes up.
    pub layout: u32,
    /// Bits of [`flag`].
    pub flags: u32,
    /// Buckets of `CALLS` minus one; buckets are a power of two.
    pub calls_mask: u32,
    /// Changes after each change of `LOCALS`, `SOURCES`, `REGISTERED` or `PBX_BY_ADDR`: what a CPU has read from
    /// them is good for as long as this stays the same. Never zero once configured.
    pub generation: u32,
    /// Keys of every hash and signature; equal on all nodes of a cluster.
    pub keys: Keys,
    /// What one source may send, where [`flag::GATE`] says so.
    pub gate: Rules,
}

/// What a PBX is being used for. The number is what the tables hold.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(u8)]
pub enum PbxState {
    /// The slot is empty.
    #[default]
    Unused = 0,
    /// Takes new calls.
    Active = 1,
    /// Found dead: takes nothing new, and retransmissions go to another.
    Inactive = 2,
    /// Takes no new calls; its calls go on.
    Draining = 3,
    /// Switched off by hand.
    Disabled = 4,
}

/// One PBX, by slot.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Pbx {
    /// Where it listens: address, network order in memory.
    pub addr: u32,
    /// Where it listens: port, network order in memory.
    pub port: u16,
    /// A [`PbxState`].
    pub state: u8,
    /// Always zero.
    pub pad: u8,
}

impl Pbx {
    /// Where it listens.
    pub const fn endpoint(self) -> Endpoint {
        Endpoint { addr: self.addr, port: self.port, pad: 0 }
    }
}

/// One PBX with an IPv6 address, by slot.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct Pbx6 {
    /// Where it listens: address, network order in memory.
    pub addr: [u64; 2],
    /// Where it listens: port, network order in memory.
    pub port: u16,
    /// A [`PbxState`].
    pub state: u8,
    /// Always zero.
    pub pad: [u8; 5],
}

impl Pbx6 {
    /// Where it listens, and what it is used for.
    pub const fn new(at: Endpoint6, state: PbxState) -> Self {
        Self { addr: at.addr, port: at.port, state: state as u8, pad: [0; 5] }
    }

    /// Where it listens.
    pub const fn endpoint(self) -> Endpoint6 {
        Endpoint6 { addr: self.addr, port: self.port, pad: [0; 3] }
    }
}

/// Length of [`Schedule::slots`].
pub const SCHEDULE_SLOTS: usize = 256;

/// Whose turn it is: slots of the PBXs that take calls, as often as their weights say, interleaved.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Schedule {
    /// How many of `slots` count; zero when no PBX takes calls.
    pub len: u32,
    /// Counts up with each change, for operators.
    pub generation: u32,
    /// Slots of `PBXS`. Entries past `len` are zero.
    pub slots: [u8; SCHEDULE_SLOTS],
}

impl Default for Schedule {
    fn default() -> Self {
        Self { len: 0, generation: 0, slots: [0; SCHEDULE_SLOTS] }
    }
}

/// The port behind a VLAN device, and the tags that frames for it carry there.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C)]
pub struct VlanPort {
    /// Interface index of the port at the bottom, where XDP runs.
    pub port: u32,
    /// How many tags: 1 or 2.
    pub tags: u32,
    /// The tags, outermost first: TPID and TCI, network order in memory.
    pub tag: [[u16; 2]; 2],
}

/// How many VLAN devices `VLANS` holds.
pub const MAX_VLANS: u32 = 1_024;

#[cfg(feature = "user")]
mod user {
    use super::{
        CallBucket, Config, DebtBucket, Endpoint, Endpoint6, Local, Pbx, Pbx6, Schedule, VlanPort,
    };

    // SAFETY: `repr(C)` integers without padding or invalid values.
    unsafe impl aya::Pod for VlanPort {}
    // SAFETY: all are `repr(C)` integers without padding or invalid values.
    unsafe impl aya::Pod for Config {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Endpoint {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Endpoint6 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Pbx {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Pbx6 {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Schedule {}
    // SAFETY: as above.
    unsafe impl aya::Pod for Local {}
    // SAFETY: as above: words, and an even number of halves.
    unsafe impl aya::Pod for Local<Endpoint6> {}
    // SAFETY: as above.
    unsafe impl aya::Pod for CallBucket {}
    // SAFETY: as above.
    unsafe impl aya::Pod for DebtBucket {}
}

/// Sources in one bucket: two words that one load gets, and few enough for the verifier to look at all ways through.
pub const SOURCES_PER_BUCKET: usize = 2;

/// Buckets of `DEBTS`, a power of two: a MiB, and 131,072 sources.
pub const DEBT_BUCKETS: u32 = 65_536;

/// How many sources `REGISTERED` holds.
pub const MAX_REGISTERED: u32 = 65_536;

/// How many endpoints `ENDPOINTS` holds.
pub const MAX_ENDPOINTS: u32 = 65_536;

/// How many users `USERS` holds; of more, those that were longest not asked for are the daemon's to answer.
pub const MAX_USERS: u32 = 131_072;

/// One bucket of what sources owe; see [`crate::gate`] for the words.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C, align(16))]
pub struct DebtBucket {
    /// One word a source; zero is free.
    pub words: [u64; SOURCES_PER_BUCKET],
}

/// How many calls `OPEN` holds. Each takes memory only while it is there.
pub const MAX_OPEN: u32 = 131_072;

/// Length of an entry of `OPEN`.
pub const OPEN_LEN: usize = 960;

/// Calls in one bucket: one cache line.
pub const CALLS_PER_BUCKET: usize = 8;

/// One bucket of the call table; see [`crate::calls`] for the words.
#[derive(Clone, Copy, Debug, Default, Eq, PartialEq)]
#[repr(C, align(64))]
pub struct CallBucket {
    /// One word a call; zero is free.
    pub words: [u64; CALLS_PER_BUCKET],
}

/// One of our addresses, with the header lines that the proxy inserts, ready but for the digits of
/// cookie and branch. [`crate::insert::local`] makes it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
#[repr(C)]
pub struct Local<A: Address = Endpoint> {
    /// `Record-Route: <sip:ADDR:PORT;lr;sl=COOKIE>\r\n`
    pub record_route: A::RecordRoute,
    /// `Via: SIP/2.0/UDP ADDR:PORT;branch=BRANCH\r\n`
    pub via: A::Via,
    /// A Route of ours up to its cookie: `<sip:ADDR:PORT;lr;sl=`.
    pub route: A::Route,
    /// Which bits of `route` count.
    pub route_mask: A::Route,
    /// A Via of ours up to the digits of its branch: `SIP/2.0/UDP ADDR:PORT;branch=z9hG4bKslk`.
    pub own_via: A::OwnVia,
    /// Which bits of `own_via` count.
    pub own_via_mask: A::OwnVia,
    /// `sip:ADDR:PORT`
    pub uri: A::Uri,
    /// Which bits of `uri` count.
    pub uri_mask: A::Uri,
    /// Which bits of `uri` count up to the colon before the port, or all zero where a port must
    /// stand.
    pub host_mask: A::Uri,
    /// Bytes of `record_route` in use.
    pub record_route_len: u32,
    /// Where in `record_route` the cookie starts.
    pub cookie_at: u32,
    /// Bytes of `via` in use.
    pub via_len: u32,
    /// Where in `via` the digits of the branch start.
    pub branch_at: u32,
    /// Bytes of `route` that count.
    pub route_len: u32,
    /// Bytes of `own_via` that count.
    pub own_via_len: u32,
    /// Bytes of `uri` that count.
    pub uri_len: u32,
    /// Bytes that count by `host_mask`; zero where a port must stand.
    pub host_len: u32,
}
