//! The client transaction of all requests but INVITE (RFC 3261 17.1.2).

use super::Expired;
use super::machine::{Context, Line};
use super::timers::{Limits, ticks};

/// See the module.
#[derive(Debug)]
pub(super) struct ClientOther {
    state: State,
    /// A CANCEL of ours, about which the transaction user hears nothing.
    is_cancel: bool,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Trying,
    Proceeding,
    Completed,
    Terminated,
}

impl ClientOther {
    pub(super) fn start(
        line: &mut Line,
        cx: &mut Context<'_>,
        limits: Limits,
        is_cancel: bool,
    ) -> Self {
        let patience = cx.ticks.patience();
        line.send(cx);
        // Timers E and F.
        line.repeat(cx, cx.ticks.t1);
        line.end = cx.now + limits.answer.map_or(patience, ticks).min(patience);
        Self { state: State::Trying, is_cancel }
    }

    pub(super) fn is_terminated(&self) -> bool {
        self.state == State::Terminated
    }

    pub(super) fn is_cancel(&self) -> bool {
        self.is_cancel
    }

    /// A response with this status. Whether it is for the transaction user.
    pub(super) fn response(&mut self, line: &mut Line, cx: &Context<'_>, status: u16) -> bool {
        match (self.state, status) {
            (State::Trying | State::Proceeding, ..200) => {
                self.state = State::Proceeding;
                !self.is_cancel
            }
            (State::Trying | State::Proceeding, _) => {
                line.bytes = None;
                line.errors = false;
                // Timer K.
                self.state = match line.linger(cx, cx.ticks.t4) {
                    Some(()) => State::Completed,
                    None => State::Terminated,
                };
                !self.is_cancel
            }
            _ => false,
        }
    }

    /// Timer E.
    pub(super) fn again(&mut self, line: &mut Line, cx: &mut Context<'_>) {
        line.send(cx);
        let next = match self.state {
            State::Trying => line.interval.saturating_mul(2).min(cx.ticks.t2),
            _ => cx.ticks.t2,
        };
        line.repeat(cx, next);
    }

    /// Timers F and K.
    pub(super) fn end(&mut self, _line: &mut Line, cx: &mut Context<'_>) {
        if self.state != State::Completed && !self.is_cancel {
            cx.expired(Expired::F);
        }
        self.state = State::Terminated;
    }

    pub(super) fn transport_error(&mut self, cx: &mut Context<'_>) {
        if !self.is_cancel {
            cx.failed();
        }
        self.state = State::Terminated;
    }
}
