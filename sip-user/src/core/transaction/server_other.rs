//! The server transaction of all requests but INVITE and ACK (RFC 3261 17.2.2, RFC 4320).

use std::sync::Arc;

use super::machine::{Context, Line};
use super::wheel::NEVER;
use super::{Expired, RespondError, derived};

/// See the module.
#[derive(Debug)]
pub(super) struct ServerOther {
    state: State,
}

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Trying,
    Proceeding,
    Completed,
    Terminated,
}

impl ServerOther {
    pub(super) fn start(line: &mut Line, cx: &Context<'_>) -> Self {
        // RFC 4320 4.1: no 100 before, but one then.
        line.again = cx.now + cx.ticks.e_reaches_t2();
        // Then the client's Timer F has fired: nobody waits for a response any more (RFC 4320 4.2).
        line.end = cx.now + cx.ticks.patience();
        Self { state: State::Trying }
    }

    pub(super) fn is_terminated(&self) -> bool {
        self.state == State::Terminated
    }

    /// Whether it has its final response, and Timer J runs.
    pub(super) fn is_answered(&self) -> bool {
        self.state == State::Completed
    }

    /// Timer J, early.
    pub(super) fn forget(&mut self) {
        self.state = State::Terminated;
    }

    /// The request again.
    pub(super) fn repeated(&mut self, line: &mut Line, cx: &mut Context<'_>) {
        if self.state != State::Trying {
            line.send(cx);
        }
    }

    /// A response of the transaction user.
    pub(super) fn respond(
        &mut self,
        line: &mut Line,
        cx: &mut Context<'_>,
        status: u16,
        bytes: Arc<[u8]>,
    ) -> Result<(), RespondError> {
        match (self.state, status) {
            (State::Completed | State::Terminated, _) => return Err(RespondError::Answered),
            (_, 101..200) => return Err(RespondError::Provisional),
            // Until our own has gone.
            (_, ..200) if !line.flow.reliable && line.again != NEVER => {
                return Err(RespondError::Provisional);
            }
            (_, 408) => return Err(RespondError::RequestTimeout),
            (_, ..200) => {
                self.state = State::Proceeding;
                line.bytes = Some(bytes);
                line.send(cx);
                line.again = NEVER;
            }
            _ => {
                line.bytes = Some(bytes);
                line.send(cx);
                // Timer J.
                self.state = match line.linger(cx, cx.ticks.patience()) {
                    Some(()) => State::Completed,
                    None => State::Terminated,
                };
            }
        }
        Ok(())
    }

    /// The 100 that we owe.
    pub(super) fn again(&mut self, line: &mut Line, cx: &mut Context<'_>) {
        let request = line.bytes.as_deref().unwrap_or_default();
        if let Some(trying) = derived::trying(request, cx.index, line.flow.peer, cx.key) {
            self.state = State::Proceeding;
            line.bytes = Some(trying.into());
            line.send(cx);
        }
    }

    /// Timer J, and a request that had no final response in time.
    pub(super) fn end(&mut self, _line: &mut Line, cx: &mut Context<'_>) {
        if self.state != State::Completed {
            cx.expired(Expired::Unanswered);
        }
        self.state = State::Terminated;
    }

    pub(super) fn transport_error(&mut self, cx: &mut Context<'_>) {
        cx.failed();
        self.state = State::Terminated;
    }
}
