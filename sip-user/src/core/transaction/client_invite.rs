//! The INVITE client transaction (RFC 3261 17.1.1, RFC 6026 7.2).

use std::sync::Arc;

use sip_ebpf::message::Message;

use super::machine::{Context, Line};
use super::timers::{Limits, Ticks, ticks};
use super::wheel::{NEVER, Tick};
use super::{Expired, derived};

/// See the module.
#[derive(Debug)]
pub(super) struct ClientInvite {
    state: State,
    cancel: Cancel,
    /// Its user has heard that a limit has passed and looks no more for failures, only for a late 2xx.
    given_up: bool,
    /// What is left until Timer B when the user's own limit for the first answer has passed.
    rest: Tick,
    /// How long it may ring.
    ring: Tick,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Calling,
    Proceeding,
    Completed,
    Accepted,
    Terminated,
}

/// How far a CANCEL has come.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum Cancel {
    No,
    /// It waits for a provisional response (9.1).
    Wanted,
    Sent,
}

impl ClientInvite {
    pub(super) fn start(line: &mut Line, cx: &mut Context<'_>, limits: Limits) -> Self {
        let Ticks { t1, c, .. } = *cx.ticks;
        let patience = cx.ticks.patience();
        let answer = limits.answer.map_or(patience, ticks).min(patience);
        line.send(cx);
        // Timer A.
        line.repeat(cx, t1);
        // Timer B, or the limit before it.
        line.end = cx.now + answer;
        Self {
            state: State::Calling,
            cancel: Cancel::No,
            given_up: false,
            rest: patience - answer,
            ring: limits.ring.map_or(c, ticks).min(c),
        }
    }

    pub(super) fn is_terminated(&self) -> bool {
        self.state == State::Terminated
    }

    /// Whether it has its final response, and Timer D or M runs.
    pub(super) fn is_answered(&self) -> bool {
        matches!(self.state, State::Completed | State::Accepted)
    }

    /// Timer D or M, early.
    pub(super) fn forget(&mut self) {
        self.state = State::Terminated;
    }

    /// A response with this status. Whether it is for the transaction user.
    pub(super) fn response(
        &mut self,
        line: &mut Line,
        cx: &mut Context<'_>,
        status: u16,
        response: &Message<'_>,
    ) -> bool {
        match (self.state, status) {
            (State::Calling | State::Proceeding, ..200) => {
                self.provisional(line, cx, status);
                !self.given_up
            }
            (State::Calling | State::Proceeding, 200..300) => {
                self.state = State::Accepted;
                line.bytes = None;
                line.errors = false;
                line.again = NEVER;
                // Timer M: other 2xx may come, of other branches or again (RFC 6026 8.4).
                line.end = cx.now + cx.ticks.patience();
                true
            }
            (State::Calling | State::Proceeding, _) => {
                let invite = line.bytes.take().unwrap_or_default();
                line.bytes = derived::ack(&invite, cx.index, response).map(Arc::from);
                line.send(cx);
                // Timer D.
                self.state = match line.linger(cx, cx.ticks.d) {
                    Some(()) => State::Completed,
                    None => State::Terminated,
                };
                !self.given_up
            }
            (State::Completed, 300..) => {
                line.send(cx);
                false
            }
            (State::Accepted, 200..300) => true,
            _ => false,
        }
    }

    fn provisional(&mut self, line: &mut Line, cx: &mut Context<'_>, status: u16) {
        let first = self.state == State::Calling;
        self.state = State::Proceeding;
        line.again = NEVER;
        line.errors = false;
        match self.cancel {
            Cancel::No if first || status > 100 => line.end = cx.now + self.ring,
            Cancel::Wanted => self.send_cancel(line, cx),
            _ => {}
        }
    }

    /// Cancels as soon as that is allowed (9.1). Nothing if there is a final response.
    pub(super) fn cancel(&mut self, line: &mut Line, cx: &mut Context<'_>) {
        match (self.state, self.cancel) {
            (State::Calling, _) => self.cancel = Cancel::Wanted,
            (State::Proceeding, Cancel::No) => self.send_cancel(line, cx),
            _ => {}
        }
    }

    fn send_cancel(&mut self, line: &mut Line, cx: &mut Context<'_>) {
        self.cancel = Cancel::Sent;
        cx.cancel = derived::cancel(line.bytes.as_deref().unwrap_or_default(), cx.index);
        // So long a final response may take then (9.1).
        line.end = cx.now + cx.ticks.patience();
    }

    /// Timer A.
    pub(super) fn again(&mut self, line: &mut Line, cx: &mut Context<'_>) {
        line.send(cx);
        line.repeat(cx, line.interval * 2);
    }

    /// Timers B, C, D and M, and the limits in their place.
    pub(super) fn end(&mut self, line: &mut Line, cx: &mut Context<'_>) {
        match self.state {
            State::Calling if !self.given_up && self.rest > 0 => {
                self.give_up(cx, Expired::Answer);
                // Whoever answers now is told at once that nobody waits.
                self.cancel = Cancel::Wanted;
                line.again = NEVER;
                line.end = cx.now + self.rest;
            }
            State::Proceeding if self.cancel == Cancel::No => {
                self.give_up(cx, Expired::Ring);
                self.send_cancel(line, cx);
            }
            State::Calling => self.last(cx, Expired::B),
            State::Proceeding => self.last(cx, Expired::Cancel),
            State::Completed | State::Accepted | State::Terminated => {
                self.state = State::Terminated;
            }
        }
    }

    /// The user hears of it, and we wait on: a 2xx that comes late must have its ACK and BYE.
    fn give_up(&mut self, cx: &mut Context<'_>, why: Expired) {
        cx.expired(why);
        self.given_up = true;
    }

    fn last(&mut self, cx: &mut Context<'_>, why: Expired) {
        if !self.given_up {
            cx.expired(why);
        }
        self.state = State::Terminated;
    }

    /// The CANCEL does not arrive: nor will the final response.
    pub(super) fn cancel_failed(&mut self, cx: &mut Context<'_>) {
        if self.state == State::Proceeding {
            self.transport_error(cx);
        }
    }

    /// Of the INVITE or of the ACK.
    pub(super) fn transport_error(&mut self, cx: &mut Context<'_>) {
        if !self.given_up {
            cx.failed();
        }
        self.state = State::Terminated;
    }
}
