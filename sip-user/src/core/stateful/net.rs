//! Calls of those who are trusted that cannot be steered without memory: those that their PBX does not take, and those for
//! which there is none in their family. They are carried with it.

use super::*;

/// What is known of a call that is taken over.
#[derive(Debug)]
pub struct Taken {
    /// How its INVITE came.
    pub flow: Flow,
    /// Slot of the PBX that does not take it.
    pub slot: Option<u32>,
    /// Whether its caller has cancelled it meanwhile.
    pub cancelled: bool,
    /// What the PBX said, as it is for the caller.
    pub refused: Option<Vec<u8>>,
}

impl Stateful {
    /// Places a call anew, whose INVITE this is, with all PBXs but the one that does not take it.
    pub fn take_over(
        &mut self,
        now: Instant,
        dispatcher: &mut Dispatcher,
        invite: &Message<'_>,
        taken: Taken,
    ) {
        let Taken { flow, slot, cancelled, refused } = taken;
        match self.transactions.handle_request(now, invite, flow) {
            RequestFate::New { id, request, .. } if !cancelled => {
                self.counts.failed_over += 1;
                let refused = refused.map(Into::into);
                self.dispatch(now, invite, id, request, flow, (slot, refused));
            }
            RequestFate::New { id, .. } => {
                let record = self.record_taken(now, invite, flow);
                self.note(record, |accounting, record| accounting.handle_cancelled(record));
                self.answer(now, invite, id, flow, &Response::new(487, "Request Terminated"));
                self.failed(now, record, 487);
            }
            RequestFate::Full => {
                self.counts.full += 1;
                self.answer_stateless(invite, flow, &self.unavailable());
                let record = self.record_taken(now, invite, flow);
                self.failed(now, record, 503);
            }
            RequestFate::Ack(_) | RequestFate::Absorbed | RequestFate::Malformed(_) => {}
        }
        self.carry_out(now);
        self.see_to_calls(now, dispatcher, Some(invite));
    }

    /// A request of a call that was taken over: who may have sent it has been asked before.
    pub fn handle_taken(
        &mut self,
        now: Instant,
        dispatcher: &mut Dispatcher,
        message: &Message<'_>,
        flow: Flow,
    ) {
        if let Some((id, request)) = self.transact(now, message, flow) {
            self.dispatch(now, message, id, request, flow, (None, None));
        }
        self.carry_out(now);
        self.see_to_calls(now, dispatcher, Some(message));
    }

    /// A call of a caller who is trusted, for which there is no PBX in the family that it came by.
    pub fn handle_across(
        &mut self,
        now: Instant,
        dispatcher: &mut Dispatcher,
        invite: &Message<'_>,
        flow: Flow,
    ) {
        self.make_room(now);
        if let Some((id, request)) = self.transact(now, invite, flow) {
            match self.admit(invite) {
                Ok(()) => self.dispatch(now, invite, id, request, flow, (None, None)),
                Err(response) => self.answer(now, invite, id, flow, &response),
            }
        }
        self.carry_out(now);
        self.see_to_calls(now, dispatcher, Some(invite));
    }

    fn dispatch(
        &mut self,
        now: Instant,
        invite: &Message<'_>,
        id: ServerId,
        request: Arc<[u8]>,
        flow: Flow,
        (slot, refused): (Option<u32>, Option<Arc<[u8]>>),
    ) {
        let record = self.record_taken(now, invite, flow);
        let mut call = Call::new(id, flow, Some(request), self.hash(invite), record);
        call.was_at(slot, refused);
        let key = self.calls.insert(call);
        self.unplaced.push_back(key);
    }
}
