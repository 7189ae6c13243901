//! Transactions that have their final response and are only there for repetitions, in the order in which they were
//! answered. They are what can go first when there are too many.

use std::collections::VecDeque;

use super::types::Id;
use super::wheel::Tick;

/// What is kept for repetitions, by what these would do without it.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Kept {
    /// A server transaction of a request that is no INVITE: Completed, until Timer J. The request would be answered
    /// anew.
    Answered,
    /// An INVITE: the server's Accepted, the client's Accepted and Completed, until Timers L, M and D. A response that
    /// comes again would be dropped.
    Invite,
}

/// Those of one kind. See the module.
#[derive(Debug, Default)]
pub(super) struct Answered {
    queue: VecDeque<(Id, Tick)>,
}

impl Answered {
    /// One was answered. The timers are as long for all, so those that they have ended stand first, and leave now.
    pub(super) fn push(&mut self, id: Id, now: Tick, is_there: impl Fn(Id) -> bool) {
        while self.queue.front().is_some_and(|(id, _)| !is_there(*id)) {
            self.queue.pop_front();
        }
        self.queue.push_back((id, now));
    }

    /// Takes out the oldest, if it was answered at `before` or earlier.
    pub(super) fn pop(&mut self, before: Tick) -> Option<Id> {
        let (id, _) = self.queue.front().filter(|(_, at)| *at <= before)?;
        let id = *id;
        self.queue.pop_front();
        Some(id)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.queue.len()
    }

    /// Gives memory back. Only for when there are no transactions.
    pub(super) fn release(&mut self) {
        self.queue = VecDeque::new();
    }
}
