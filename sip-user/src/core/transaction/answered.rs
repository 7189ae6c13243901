//! Server transactions that are only there for repetitions of their request (Completed, until Timer J), in the order
//! in which they were answered. They are what can go first when there are too many.

use std::collections::VecDeque;

use super::types::Id;
use super::wheel::Tick;

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Answered {
    queue: VecDeque<(Id, Tick)>,
}

impl Answered {
    /// One was answered. Timer J is as long for all, so those that it has ended stand first, and leave now.
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
