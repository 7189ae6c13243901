//! What becomes of a target, and what the sender of the request hears of it (RFC 3261 16.7 to 16.9).

use std::borrow::Cow;
use std::time::Instant;

use sip_ebpf::message::Message;

use super::late::Dialog;
use super::state::{Branch, Context, Progress};
use super::{Command, ContextId, Contexts, Failure, Hunt, Owner, Unavailable};
use super::{best, forward};
use crate::core::reply;
use crate::core::transaction::{ClientId, Expired, Limits, Transactions};

/// Dialogs of one target that are ended by a BYE of ours. More, which only a very odd one makes, are
/// acknowledged and left to end by themselves.
pub(super) const LATE_DIALOGS: usize = 4;

impl Contexts {
    /// 1xx but 100.
    pub(super) fn provisional(
        &mut self,
        now: Instant,
        transactions: &mut Transactions,
        slot: u32,
        client: ClientId,
        status: u16,
        response: &Message<'_>,
    ) {
        let Some(context) = self.contexts.get_mut(slot as usize) else { return };
        // A request other than INVITE has none but 100 (RFC 4320 4.1).
        if context.done || context.cancelled || !context.is_invite {
            return;
        }
        let server = context.server;
        let Some(branch) = context.branches.iter_mut().find(|has| has.client == client) else {
            return;
        };
        let first = !std::mem::replace(&mut branch.ringing, true);
        let tag = branch.tag;
        if let Some(bytes) = forward::response(response)
            && transactions.respond(now, server, bytes).is_ok()
            && first
        {
            let branch = context.name(slot, tag);
            self.out.push_back(Command::Ringing { branch, status });
        }
    }

    /// 2xx.
    pub(super) fn success(
        &mut self,
        now: Instant,
        transactions: &mut Transactions,
        slot: u32,
        client: ClientId,
        status: u16,
        response: &Message<'_>,
    ) {
        let Some(context) = self.contexts.get_mut(slot as usize) else { return };
        let Some(place) = context.place(client) else { return };
        let Branch { progress, tag, .. } = context.branches[place];
        let unwanted = match progress {
            Progress::Pending | Progress::Answered => false,
            Progress::GivenUp => context.done,
            Progress::Late => true,
        };
        let bytes = if unwanted { None } else { forward::response(response) };
        let forwarded = bytes.map(|bytes| transactions.respond(now, context.server, bytes));
        if !matches!(forwarded, Some(Ok(()))) {
            // Whose first 2xx has gone up has its dialog, and this is a repetition after the last one that
            // our own transaction takes.
            if context.is_invite && progress != Progress::Answered {
                self.end_late(now, transactions, slot, place, response);
            }
            return;
        }
        context.branches[place].progress = Progress::Answered;
        let branch = context.name(slot, tag);
        let to_tag = response.to().ok().and_then(|to| to.tag()).unwrap_or_default().into();
        if context.done {
            if progress != Progress::Answered {
                self.out.push_back(Command::AlsoAnswered { branch, status, to_tag });
            }
        } else {
            self.out.push_back(Command::Answered { branch, status, to_tag });
            context.settle();
            context.cancel_all(now, transactions);
        }
        if !context.is_invite {
            // Nothing more is expected of anybody.
            self.forget_branches(slot);
        }
        self.end_if_over(slot);
    }

    /// 300 and above.
    pub(super) fn failure(
        &mut self,
        now: Instant,
        transactions: &mut Transactions,
        slot: u32,
        client: ClientId,
        status: u16,
        response: &Message<'_>,
    ) {
        let Some(context) = self.contexts.get_mut(slot as usize) else { return };
        let Some(branch) = context.remove(client) else { return };
        self.by_client.remove(&client);
        if !context.done {
            context.best.response(response, forward::response(response), branch.tag);
            if !(context.cancelled && status == 487) {
                let retry_after = best::retry_after(response);
                let branch = context.name(slot, branch.tag);
                let failure = Failure::Status { status, retry_after };
                self.out.push_back(Command::BranchFailed { branch, failure });
            }
            let another_may = match context.hunt {
                Hunt::Fork => status < 600,
                Hunt::Failover => (500..600).contains(&status),
            };
            if !another_may {
                context.closed = true;
                context.cancel_all(now, transactions);
            }
        }
        self.advance(now, transactions, slot);
    }

    /// A target that says nothing more: it was given up by its own transaction, or that has ended.
    pub(super) fn silent(
        &mut self,
        now: Instant,
        transactions: &mut Transactions,
        slot: u32,
        client: ClientId,
        failure: Failure,
    ) {
        let Some(context) = self.contexts.get_mut(slot as usize) else { return };
        let Some(place) = context.place(client) else { return };
        let Branch { tag, progress, .. } = context.branches[place];
        let waits =
            matches!(failure, Failure::Timeout { why: Expired::Answer | Expired::Ring, .. });
        if waits {
            context.branches[place].progress = Progress::GivenUp;
        } else {
            context.branches.swap_remove(place);
            self.by_client.remove(&client);
        }
        if progress == Progress::Pending && !context.done {
            let rang =
                matches!(failure, Failure::Timeout { why: Expired::Ring | Expired::Cancel, .. });
            let status = match (context.hunt, failure) {
                // Silence of one server of many is like its 503 (16.9): another one can do it.
                (Hunt::Failover, _) if !rang => 503,
                (_, Failure::Transport) => 503,
                _ => 408,
            };
            context.best.local(status);
            context.closed |= rang && context.hunt == Hunt::Failover;
            let branch = context.name(slot, tag);
            self.out.push_back(Command::BranchFailed { branch, failure });
        }
        self.advance(now, transactions, slot);
    }

    /// The transaction of the request has ended.
    pub(super) fn abandoned(&mut self, now: Instant, transactions: &mut Transactions, slot: u32) {
        let Some(context) = self.contexts.get_mut(slot as usize) else { return };
        if context.done {
            return;
        }
        // Its owner has slept: nobody has answered for four times Timer C.
        let Context { serial, owner, .. } = *context;
        let context_id = ContextId { slot, serial };
        context.settle();
        context.cancel_all(now, transactions);
        let failed = Command::Failed { context: context_id, owner, status: 408, tag: None };
        self.out.push_back(failed);
        if !context.is_invite {
            self.forget_branches(slot);
        }
        self.end_if_over(slot);
    }

    /// Answers with the best that there is (16.7 step 6).
    pub(super) fn fail(&mut self, now: Instant, transactions: &mut Transactions, slot: u32) {
        let Some(context) = self.contexts.get_mut(slot as usize) else { return };
        let Context { serial, server, owner, from, cancelled, is_invite, unavailable, .. } =
            *context;
        let choice = context.best.choose(cancelled);
        let answer = context.answer.take().filter(|_| !cancelled);
        let request = context.request.clone().unwrap_or_default();
        context.settle();
        let (mut status, mut tag) = (480, None);
        let mut headers = String::new();
        let mut phrase = Cow::Borrowed("Temporarily Unavailable");
        let mut bytes = None;
        if let Some(own) = answer {
            (status, phrase, headers) = (own.code, own.phrase, own.headers);
        } else if let Some(choice) = choice {
            (status, tag, bytes) = (choice.status, choice.tag, choice.bytes);
            phrase = reply::phrase(status).into();
            if status == 503 {
                (tag, bytes) = (None, None);
                match unavailable {
                    Unavailable::InternalError => {
                        (status, phrase) = (500, "Server Internal Error".into());
                    }
                    Unavailable::RetryAfter(seconds) => {
                        let seconds = choice.retry_after.unwrap_or(seconds);
                        headers = format!("Retry-After: {seconds}\r\n");
                    }
                }
            }
        }
        // Nobody may answer another request than an INVITE with 408: it would come too late (RFC 4320 4.2).
        if is_invite || status != 408 {
            match bytes {
                // It is gone if its sender is: then nobody waits.
                Some(bytes) => _ = transactions.respond(now, server, bytes),
                None => {
                    let headers = &headers;
                    self.answer(
                        now,
                        transactions,
                        server,
                        &request,
                        from,
                        status,
                        &phrase,
                        headers,
                    );
                }
            }
        }
        let context = ContextId { slot, serial };
        self.out.push_back(match cancelled {
            true => Command::Cancelled { context, owner },
            false => Command::Failed { context, owner, status, tag },
        });
    }

    /// Acknowledges and ends the call of a 2xx that nobody waits for.
    fn end_late(
        &mut self,
        now: Instant,
        transactions: &mut Transactions,
        slot: u32,
        place: usize,
        response: &Message<'_>,
    ) {
        let Some(context) = self.contexts.get_mut(slot as usize) else { return };
        let Some(branch) = context.branches.get_mut(place) else { return };
        let (flow, tag) = (branch.flow, branch.tag);
        branch.progress = Progress::Late;
        let Some(local) = self.settings.locals.get(flow.local) else { return };
        let Some(dialog) = Dialog::new(response, branch.above.into()) else { return };
        let via = |branch| format!("SIP/2.0/UDP {local};branch={branch}");
        let Some(ack) = dialog.ack(&via(transactions.branch())) else { return };
        transactions.send(flow, ack);
        let ended = branch.ended.iter().any(|ended| **ended == *dialog.tag());
        if ended || branch.ended.len() >= LATE_DIALOGS {
            return;
        }
        let bye_branch = transactions.branch();
        let Some(bye) = dialog.bye(&via(bye_branch)) else { return };
        // Without room for its transaction it comes with the next repetition of the 2xx.
        let Ok(bye) = transactions.request(now, bye_branch, flow, Limits::default(), bye) else {
            return;
        };
        let first = branch.ended.is_empty();
        branch.ended.push(dialog.tag().into());
        self.by_client.insert(bye, Owner::Bye);
        if first {
            let branch = context.name(slot, tag);
            self.out.push_back(Command::Late { branch });
        }
    }
}
