//! The INVITE server transaction (RFC 3261 17.2.1, RFC 6026 7.1).

use std::sync::Arc;

use super::machine::{Context, Line};
use super::wheel::NEVER;
use super::{Expired, RespondError, derived, key};

/// See the module.
#[derive(Debug)]
pub(super) struct ServerInvite {
    state: State,
    /// Whether what is kept is a response, and no longer the request.
    responded: bool,
    /// Without the magic cookie, what an ACK must have (17.2.3).
    legacy: Option<Tag>,
}

/// The To tag of the final response, hashed; none until there is one.
type Tag = Option<u64>;

#[derive(Clone, Copy, Debug, Eq, PartialEq)]
enum State {
    Proceeding,
    Completed,
    Confirmed,
    Accepted,
    Terminated,
}

impl ServerInvite {
    pub(super) fn start(line: &mut Line, cx: &Context<'_>, legacy: bool) -> Self {
        line.again = cx.now + cx.ticks.trying;
        line.end = cx.now + cx.ticks.unanswered();
        Self { state: State::Proceeding, responded: false, legacy: legacy.then_some(None) }
    }

    pub(super) fn is_terminated(&self) -> bool {
        self.state == State::Terminated
    }

    /// Whether it was answered by a 2xx, and Timer L runs.
    pub(super) fn is_accepted(&self) -> bool {
        self.state == State::Accepted
    }

    /// Timer L, early.
    pub(super) fn forget(&mut self) {
        self.state = State::Terminated;
    }

    /// The INVITE again.
    pub(super) fn repeated(&mut self, line: &mut Line, cx: &mut Context<'_>) {
        // In Accepted the transaction user repeats its 2xx itself (RFC 6026 7.1).
        if self.state == State::Completed || self.state == State::Proceeding && self.responded {
            line.send(cx);
        }
    }

    /// An ACK. Whether it is for the transaction user: that of
    /// a 2xx is.
    pub(super) fn ack(&mut self, line: &mut Line, cx: &Context<'_>) -> bool {
        if self.state == State::Completed {
            line.bytes = None;
            line.errors = false;
            // Timer I.
            self.state = match line.linger(cx, cx.ticks.t4) {
                Some(()) => State::Confirmed,
                None => State::Terminated,
            };
        }
        self.state == State::Accepted
    }

    /// Without the magic cookie: whether an ACK with this To tag is about our response.
    pub(super) fn has_to_tag(&self, tag: u64) -> bool {
        self.legacy.flatten() == Some(tag)
    }

    /// A response of the transaction user.
    pub(super) fn respond(
        &mut self,
        line: &mut Line,
        cx: &mut Context<'_>,
        status: u16,
        bytes: Arc<[u8]>,
    ) -> Result<(), RespondError> {
        if let (Some(tag), 200.., State::Proceeding) = (&mut self.legacy, status, self.state) {
            *tag = key::to_tag_of(cx.key, cx.index, &bytes);
        }
        match (self.state, status) {
            (State::Proceeding, ..200) => {
                self.keep(line, bytes);
                line.send(cx);
                line.again = NEVER;
                line.end = cx.now + cx.ticks.unanswered();
            }
            (State::Proceeding, 200..300) => {
                self.state = State::Accepted;
                line.bytes = None;
                line.send_once(cx, bytes);
                line.again = NEVER;
                // Timer L.
                line.end = cx.now + cx.ticks.patience();
            }
            (State::Proceeding, _) => {
                self.state = State::Completed;
                self.keep(line, bytes);
                line.send(cx);
                // Timers G and H.
                line.repeat(cx, cx.ticks.t1);
                line.end = cx.now + cx.ticks.patience();
            }
            (State::Accepted, 200..300) => line.send_once(cx, bytes),
            _ => return Err(RespondError::Answered),
        }
        Ok(())
    }

    fn keep(&mut self, line: &mut Line, response: Arc<[u8]>) {
        line.bytes = Some(response);
        self.responded = true;
    }

    /// Timer G, and the 100 that we owe.
    pub(super) fn again(&mut self, line: &mut Line, cx: &mut Context<'_>) {
        if self.state == State::Completed {
            line.send(cx);
            return line.repeat(cx, line.interval.saturating_mul(2).min(cx.ticks.t2));
        }
        let request = line.bytes.as_deref().unwrap_or_default();
        if let Some(trying) = derived::trying(request, cx.index, line.flow.peer, cx.key) {
            self.keep(line, trying.into());
            line.send(cx);
        }
    }

    /// Timers H, I and L, and a transaction user that has forgotten us.
    pub(super) fn end(&mut self, _line: &mut Line, cx: &mut Context<'_>) {
        match self.state {
            State::Proceeding => cx.expired(Expired::Unanswered),
            State::Completed => cx.expired(Expired::H),
            _ => {}
        }
        self.state = State::Terminated;
    }

    /// The transaction stays: the next copy may arrive (RFC 6026 7.1).
    pub(super) fn transport_error(&mut self, cx: &mut Context<'_>) {
        cx.failed();
    }
}
