//! Orders about calls that go on.

use std::cmp::Reverse;
use std::time::{Instant, SystemTime};

use super::node::{Answered, Node, failed};
use super::worker::Worker;
use crate::control::protocol::{CallInProgress, Calls, Outcome, Response};
use crate::control::status::{milliseconds, unix};
use crate::core::accounting::View;

impl Node {
    /// Calls that have a record and go on: up to `limit` of all, or those of one id or Call-ID.
    pub(super) async fn calls(&self, id: Option<String>, limit: usize) -> Answered {
        let of = id.clone();
        let lists = self.each(move |worker| worker.calls(of.as_deref(), limit)).await?;
        let lists: Option<Vec<_>> = lists.into_iter().collect();
        let lists = lists
            .ok_or_else(|| failed("no call has a record: the configuration has no [registrar]"))?;
        let total = lists.iter().map(|list| list.total).sum();
        let mut calls: Vec<_> = lists.into_iter().flat_map(|list| list.calls).collect();
        match &id {
            Some(id) if calls.is_empty() => {
                return Err(failed(format!("no call goes on with the id or Call-ID {id}")));
            }
            Some(_) => {}
            None => calls.truncate(limit),
        }
        calls.sort_by_key(|call| Reverse(call.for_ms));
        Ok(Response::done(Outcome::Calls(Calls { calls, total })))
    }
}

impl Worker {
    /// Those of this worker. None if nothing is recorded.
    fn calls(&self, id: Option<&str>, limit: usize) -> Option<Calls> {
        let accounting = self.proxy.stateful().and_then(|stateful| stateful.accounting())?;
        let (now, wall) = (Instant::now(), SystemTime::now());
        let views = accounting.calls();
        let calls: Vec<_> = match id {
            Some(id) => views.filter(|view| &*view.id == id || view.call_id == id).collect(),
            None => views.take(limit).collect(),
        };
        let total = if id.is_some() { calls.len() } else { accounting.len() };
        let calls = calls.iter().map(|view| call(view, now, wall)).collect();
        Some(Calls { calls, total })
    }
}

fn call(view: &View<'_>, now: Instant, wall: SystemTime) -> CallInProgress {
    let age = now.saturating_duration_since(view.started);
    CallInProgress {
        id: view.id.to_string(),
        from: view.from.to_owned(),
        to: view.to.to_owned(),
        state: view.state.as_str().to_owned(),
        state_for_ms: milliseconds(now.saturating_duration_since(view.since)),
        started: unix(wall).saturating_sub(age).as_secs(),
        for_ms: milliseconds(age),
        pbx: view.pbx.map(str::to_owned),
        caller: view.caller,
        callee: view.callee,
        call_id: view.call_id.to_owned(),
    }
}
