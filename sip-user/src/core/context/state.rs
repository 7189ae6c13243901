//! What is known of one request that is being forwarded.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use super::best::Best;
use super::{BranchName, ContextId, Hunt, Target, Unavailable};
use crate::core::reply::Response;
use crate::core::transaction::{ClientId, Flow, ServerId, Transactions};

/// A response context (16.2).
#[derive(Debug)]
pub(super) struct Context {
    pub(super) serial: u32,
    pub(super) server: ServerId,
    pub(super) owner: u64,
    /// Where the request came from.
    pub(super) from: SocketAddr,
    /// The request, until its final response is sent.
    pub(super) request: Option<Arc<[u8]>>,
    pub(super) is_invite: bool,
    pub(super) hunt: Hunt,
    pub(super) unavailable: Unavailable,
    /// The owner may have more targets.
    pub(super) more: bool,
    /// It has been asked for them.
    pub(super) asked: bool,
    /// The caller has taken the request back.
    pub(super) cancelled: bool,
    /// Somebody has answered for all: no other target is tried.
    pub(super) closed: bool,
    /// The sender has its final response.
    pub(super) done: bool,
    /// The owner's final answer.
    pub(super) answer: Option<Response>,
    /// How many values of Record-Route the request came with.
    pub(super) above: u8,
    /// Max-Breadth (RFC 5393).
    pub(super) breadth: u16,
    /// By which a loop is known.
    pub(super) hash: u64,
    pub(super) best: Best,
    /// Targets that have not been tried, in order.
    pub(super) waiting: VecDeque<Target>,
    /// Targets of which something may still come.
    pub(super) branches: Vec<Branch>,
}

/// A target that the request was forwarded to.
#[derive(Debug)]
pub(super) struct Branch {
    pub(super) client: ClientId,
    pub(super) tag: u32,
    pub(super) flow: Flow,
    /// How many values of Record-Route the request had when it left.
    pub(super) above: u8,
    /// A provisional response has come.
    pub(super) ringing: bool,
    pub(super) progress: Progress,
    /// Tags of the dialogs that we have ended.
    pub(super) ended: Vec<Box<str>>,
}

/// What has become of a target.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Progress {
    /// Its final response is waited for.
    Pending,
    /// It was too late. A 2xx may still come.
    GivenUp,
    /// Its 2xx was forwarded.
    Answered,
    /// Its 2xx came when nobody waited.
    Late,
}

impl Branch {
    pub(super) fn new(client: ClientId, target: &Target, above: u8) -> Self {
        let Target { tag, flow, .. } = *target;
        let progress = Progress::Pending;
        Self { client, tag, flow, above, ringing: false, progress, ended: Vec::new() }
    }
}

impl Context {
    pub(super) fn name(&self, slot: u32, tag: u32) -> BranchName {
        let context = ContextId { slot, serial: self.serial };
        BranchName { context, owner: self.owner, tag }
    }

    /// Whether other targets may be tried.
    pub(super) fn is_open(&self) -> bool {
        !self.done && !self.closed && !self.cancelled
    }

    /// Whether a final response is waited for.
    pub(super) fn is_pending(&self) -> bool {
        self.branches.iter().any(|branch| branch.progress == Progress::Pending)
    }

    pub(super) fn place(&self, client: ClientId) -> Option<usize> {
        self.branches.iter().position(|branch| branch.client == client)
    }

    pub(super) fn remove(&mut self, client: ClientId) -> Option<Branch> {
        self.place(client).map(|place| self.branches.swap_remove(place))
    }

    /// Puts targets behind those that wait.
    pub(super) fn put(&mut self, targets: Vec<Target>, most: usize) {
        let room = most.saturating_sub(self.waiting.len() + self.branches.len());
        self.waiting.extend(targets.into_iter().take(room));
        if self.hunt == Hunt::Fork {
            self.waiting.make_contiguous().sort_by_key(|target| std::cmp::Reverse(target.q));
        }
    }

    /// Those that are to be tried next, at once: no more than Max-Breadth says (RFC 5393 5.3.3).
    pub(super) fn next_group(&mut self) -> Vec<Target> {
        let q = self.waiting.front().map(|target| target.q);
        let alike = match self.hunt {
            Hunt::Fork => self.waiting.iter().take_while(|target| Some(target.q) == q).count(),
            Hunt::Failover => 1,
        };
        let count = alike.min(self.breadth.into()).min(self.waiting.len());
        self.waiting.drain(..count).collect()
    }

    /// Takes the request back from all targets. Nothing happens if it is no INVITE.
    pub(super) fn cancel_all(&self, now: Instant, transactions: &mut Transactions) {
        for branch in self.branches.iter().filter(|has| has.progress == Progress::Pending) {
            transactions.cancel(now, branch.client);
        }
    }

    /// The sender has its final response: what only served to find it is given back.
    pub(super) fn settle(&mut self) {
        self.done = true;
        self.request = None;
        self.answer = None;
        self.best = Best::default();
        self.waiting = VecDeque::new();
    }
}
