//! What goes into and comes out of [`super::Transactions`].

use std::fmt;
use std::hash::{BuildHasherDefault, Hasher};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use sip_ebpf::message::Error;

use super::Timers;

/// What a worker may spend, and how long things take.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct Config {
    /// How long things take.
    pub timers: Timers,
    /// The most transactions at a time. For CANCELs there is an eighth more, here and of `bytes`.
    pub transactions: usize,
    /// The number of the worker, which its branches name.
    pub worker: u8,
    /// The most bytes of messages that are kept. A response of the user is always taken, and so is an ACK of ours.
    pub bytes: usize,
}

impl Default for Config {
    fn default() -> Self {
        Self { timers: Timers::default(), transactions: 500_000, worker: 0, bytes: 1 << 30 }
    }
}

/// Between which addresses, and how.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct Flow {
    /// Which of our addresses or connections.
    pub local: usize,
    /// Who has sent the message, or is to have it.
    pub peer: SocketAddr,
    /// Whether the transport repeats what is lost: TCP does, UDP does not.
    pub reliable: bool,
}

/// Names a client transaction. It is never the name of another one.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ClientId(pub(super) Id);

/// Names a server transaction. It is never the name of another one.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ServerId(pub(super) Id);

/// Names a transaction.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub enum TransactionId {
    /// Of a request of ours.
    Client(ClientId),
    /// Of a request to us.
    Server(ServerId),
}

impl TransactionId {
    pub(super) fn client(id: Id) -> Self {
        Self::Client(ClientId(id))
    }

    pub(super) fn server(id: Id) -> Self {
        Self::Server(ServerId(id))
    }
}

/// Finds by names of transactions. We give them and nobody else, so what hashes them needs no secret.
pub type IdHasher = BuildHasherDefault<Spread>;

/// See [`IdHasher`].
#[derive(Clone, Copy, Debug, Default)]
pub struct Spread(u64);

impl Hasher for Spread {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u32(u32::from(*byte));
        }
    }

    fn write_u32(&mut self, word: u32) {
        // An odd factor, 2^64 by the golden ratio: the high bits, which tables look at first, differ too.
        self.0 = (self.0.rotate_left(5) ^ u64::from(word)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) struct Id {
    pub(super) slot: u32,
    pub(super) generation: u32,
}

/// What becomes of a request.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum RequestFate {
    /// It is for the user, who answers it.
    New {
        /// Its transaction.
        id: ServerId,
        /// Its bytes. They are shared with the transaction, which lets go of them with the first response.
        request: Arc<[u8]>,
        /// Of a CANCEL: the INVITE that it cancels (9.2). Without one the answer is 481.
        cancels: Option<ServerId>,
    },
    /// An ACK that is for the user: that of a 2xx (13.2.2.4). It is no transaction, but if its sender has
    /// given it the branch of its INVITE, as some do, that is known here. An ACK that belongs to
    /// nothing looks the same.
    Ack(Option<ServerId>),
    /// It was a repetition, or the ACK of a failure: nothing is left to do.
    Absorbed,
    /// There is no room for its transaction. It can be answered without one: 503.
    Full,
    /// What tells transactions apart cannot be read.
    Malformed(Error),
}

/// What becomes of a response.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum ResponseFate {
    /// It is for the user.
    Of(ClientId),
    /// It was a repetition, or is not of interest any more: nothing is left to do.
    Absorbed,
    /// It belongs to no transaction here.
    Unmatched,
}

/// What is to be done.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Command {
    /// Send a datagram.
    Send(Transmit),
    /// Time is up, and what the transaction waited for has not come.
    Timeout {
        /// The transaction. It may go on: see [`Expired`].
        id: TransactionId,
        /// What it waited for.
        why: Expired,
        /// How late this comes: if it is long it was us who slept, and the peer is not to blame.
        late: Duration,
    },
    /// What was sent did not arrive. A client transaction and one of a request other than INVITE end with it.
    TransportError {
        /// The transaction.
        id: TransactionId,
    },
    /// The transaction has ended, and its name means nothing any more.
    Terminated {
        /// The transaction.
        id: TransactionId,
    },
}

/// A datagram to send.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Transmit {
    /// Which of our addresses it leaves from.
    pub local: usize,
    /// Where it goes.
    pub to: SocketAddr,
    /// What it holds.
    pub bytes: Arc<[u8]>,
}

/// What has not come in time.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Expired {
    /// Timer B: any response to an INVITE. The transaction ends.
    B,
    /// Timer F, or the user's limit in its place: the final response to a request other than INVITE. The
    /// transaction ends.
    F,
    /// [`super::Limits::answer`]: any response to an INVITE, before Timer B. The INVITE is repeated no more, and
    /// is cancelled if a provisional response comes yet. From here on the user is passed a 2xx only.
    Answer,
    /// Timer C, or [`super::Limits::ring`] in its place: the final response to an INVITE. It is cancelled, and
    /// from here on the user is passed a 2xx only.
    Ring,
    /// The final response to an INVITE whose CANCEL was sent 64 T1 ago (9.1). The transaction ends.
    Cancel,
    /// Timer H: the ACK of a failure. The transaction ends.
    H,
    /// The user's answer: to an INVITE for four times Timer C, which no user that keeps to Timer C reaches; to
    /// another request until the client's Timer F has fired (RFC 4320 4.2). The transaction ends.
    Unanswered,
}

/// Why a response is not sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RespondError {
    /// The transaction has ended.
    Gone,
    /// There is a final response already.
    Answered,
    /// Only an INVITE has provisional responses; another request has a 100, and not before the client's Timer
    /// E has reached T2 (RFC 4320 4.1). By then the transaction sends it itself.
    Provisional,
    /// No 408 to a request other than INVITE: when it would arrive the client knows (RFC 4320 4.2). The
    /// transaction ends by itself.
    RequestTimeout,
    /// The bytes are no response.
    NotAResponse,
}

/// Why a request is not sent.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum RequestError {
    /// There is no room for its transaction.
    Full,
    /// Its branch has a transaction already.
    Branch,
    /// Not a request, or one that has no client transaction of its own: ACK and CANCEL.
    Method,
}

impl fmt::Display for RespondError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Gone => "the transaction has ended",
            Self::Answered => "the request has its final response",
            Self::Provisional => "this request may have no such provisional response now",
            Self::RequestTimeout => "only an INVITE may be answered with 408",
            Self::NotAResponse => "not a response",
        })
    }
}

impl fmt::Display for RequestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full => "too many transactions",
            Self::Branch => "the branch is in use",
            Self::Method => "not a request with a client transaction",
        })
    }
}

impl std::error::Error for RespondError {}
impl std::error::Error for RequestError {}
