//! What goes into and comes out of [`super::Contexts`].

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use crate::core::transaction::{Expired, Flow, Limits, ServerId};

/// What the proxy is, and what a worker may spend on response contexts.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Settings {
    /// Our addresses, in the order that [`Flow::local`] counts: they stand in our Vias.
    pub locals: Vec<SocketAddr>,
    /// Realms whose credentials are ours: they are taken off a request before it is forwarded (22.3).
    pub realms: Vec<String>,
    /// The most contexts at a time. Above it a request is answered with 503.
    pub contexts: usize,
    /// The most targets of one context at a time, tried or waiting. More are left out, the last ones first.
    pub targets: usize,
    /// Retry-After of the 503 of a full table, in seconds.
    pub retry_after: u32,
}

impl Settings {
    /// With bounds for a large worker.
    pub fn new(locals: &[SocketAddr]) -> Self {
        Self {
            locals: locals.to_vec(),
            realms: Vec::new(),
            contexts: 100_000,
            targets: 32,
            retry_after: 5,
        }
    }
}

/// Names a context. It is never the name of another one.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub struct ContextId {
    pub(super) slot: u32,
    pub(super) serial: u32,
}

/// A request that is to be forwarded statefully.
#[derive(Clone, Debug)]
pub struct Start {
    /// Its transaction.
    pub server: ServerId,
    /// Its bytes, which have been found well-formed, without folded lines.
    pub request: Arc<[u8]>,
    /// Where it really came from.
    pub from: SocketAddr,
    /// Whatever its owner wants to find again in the commands about it.
    pub owner: u64,
    /// In which order targets are tried, and until when.
    pub hunt: Hunt,
    /// Whether an INVITE is answered with 100 at once. Otherwise its transaction does so after 200 ms. One that has
    /// its final response already, because it was taken back while it waited for something, is not started then.
    pub trying: bool,
    /// Whether the owner may have more targets when these have failed: then it is asked by
    /// [`Command::Exhausted`].
    pub more: bool,
    /// What the caller hears if the best answer is a 503.
    pub unavailable: Unavailable,
}

/// In which order targets are tried, and until when.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Hunt {
    /// Contacts of a user (16.6): those with the highest q at once, then those with the next one, until
    /// somebody accepts or declines for all (6xx).
    Fork,
    /// Servers of which any can do it: one after another as they were given, until one has an opinion. A 5xx is
    /// none, and neither is silence.
    Failover,
}

/// What becomes of a 503 when it is the best answer that there is.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Unavailable {
    /// A 500: that one server is busy does not mean that we are (16.7 step 6).
    InternalError,
    /// A 503, since nobody else could do it either: its Retry-After is the least that a server has said, or
    /// so many seconds.
    RetryAfter(u32),
}

/// One place that a request is forwarded to.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Target {
    /// Whatever its owner wants to find again: the slot of a PBX, for example.
    pub tag: u32,
    /// The next hop, and our address that the request leaves from.
    pub flow: Flow,
    /// The Request-URI; none if it stays as it is.
    pub uri: Option<Box<str>>,
    /// The value of Route; none if there is none. Routes that the request came with are not forwarded.
    pub route: Option<Box<str>>,
    /// The values of our Record-Routes, the topmost first: none, one, or two if it leaves in another family than it came by
    /// (RFC 5658).
    pub record_routes: [Option<Box<str>>; 2],
    /// When it is too late for an answer.
    pub limits: Limits,
    /// Preference among the targets of a [`Hunt::Fork`], in thousandths.
    pub q: u16,
}

/// What has happened.
#[derive(Clone, Debug, Eq, PartialEq)]
pub enum Command {
    /// A target answers for the first time that it is busy with the request (1xx but 100).
    Ringing {
        /// Which one.
        branch: BranchName,
        /// 101 to 199.
        status: u16,
    },
    /// A target has failed.
    BranchFailed {
        /// Which one.
        branch: BranchName,
        /// How.
        failure: Failure,
    },
    /// All targets have failed, and the owner has said that there may be more: [`super::Contexts::add`] or
    /// [`super::Contexts::finish`] is expected.
    Exhausted {
        /// The context.
        context: ContextId,
        /// See [`Start::owner`].
        owner: u64,
    },
    /// The first 2xx has been forwarded.
    Answered {
        /// Who has answered.
        branch: BranchName,
        /// 200 to 299.
        status: u16,
        /// The tag of its To, which tells the dialog from others; empty without one.
        to_tag: Box<str>,
    },
    /// Another target's 2xx has been forwarded too (16.7 step 5): the caller has one dialog more, and ends it.
    AlsoAnswered {
        /// Who has answered.
        branch: BranchName,
        /// 200 to 299.
        status: u16,
        /// As in [`Command::Answered`].
        to_tag: Box<str>,
    },
    /// The request has failed, and its sender has been told.
    Failed {
        /// The context.
        context: ContextId,
        /// See [`Start::owner`].
        owner: u64,
        /// The status of the final response.
        status: u16,
        /// Tag of the target whose answer it was; none if it was ours.
        tag: Option<u32>,
    },
    /// The caller has taken the request back, and nobody has answered before.
    Cancelled {
        /// The context.
        context: ContextId,
        /// See [`Start::owner`].
        owner: u64,
    },
    /// A target has answered with a 2xx when nobody waited for it any more. Its call has been acknowledged and
    /// ended.
    Late {
        /// Which one.
        branch: BranchName,
    },
    /// Nothing is left of a context.
    Ended {
        /// The context.
        context: ContextId,
        /// See [`Start::owner`].
        owner: u64,
    },
}

/// Which target of which request.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub struct BranchName {
    /// The context.
    pub context: ContextId,
    /// See [`Start::owner`].
    pub owner: u64,
    /// See [`Target::tag`].
    pub tag: u32,
}

/// How a target has failed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Failure {
    /// By its answer.
    Status {
        /// 300 to 699.
        status: u16,
        /// Its Retry-After in seconds.
        retry_after: Option<u32>,
    },
    /// There was none in time.
    Timeout {
        /// What has not come.
        why: Expired,
        /// How late we have noticed it ourselves: if it is long it was us who slept.
        late: Duration,
    },
    /// It cannot be reached: an ICMP error, or no way there (16.9).
    Transport,
    /// The request was not sent, for want of room here. The target is not to blame.
    NotSent,
}
