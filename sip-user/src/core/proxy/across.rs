//! Calls between IPv4 and IPv6: placed with memory, and once answered carried without, as others are.
//!
//! The tables of the shared decision are of one family, so all of such a call comes up to the daemon: its INVITE because
//! no PBX takes it there, what is in the dialog because two Routes of ours stand on top, and the responses because of
//! their branch ([`crate::core::across`]).

use sip_ebpf::calls::state;
use sip_ebpf::message::Message;
use sip_ebpf::scan::Method;

use super::{Arrival, Proxy, Refusal, Transmit};
use crate::core::across::{self, Routes};
use crate::core::canonical::Fault;
use crate::core::context::Target;
use crate::core::context::forward::{self, Original};
use crate::core::counters::Event;
use crate::core::decision::Decision;
use crate::core::dispatcher::Dispatcher;
use crate::core::family::Family;
use crate::core::transaction::{Flow, Limits};

impl Proxy {
    /// Whether a call that came over this family may go to a PBX of the other one, since there is none of its own.
    pub(super) fn may_cross(&self, family: Family, dispatcher: &Dispatcher) -> bool {
        self.stateful.is_some() && dispatcher.is_there(family.other())
    }

    /// Places a call of somebody who is trusted, for which no PBX of its family is there.
    pub(super) fn place_across(
        &mut self,
        arrival: &Arrival<'_>,
        dispatcher: &mut Dispatcher,
        invite: &Message<'_>,
        decision: &Decision,
    ) -> Result<(), Fault> {
        let hash = decision.plan.call;
        if self.pass_on(arrival, Some(self.worker.of_call(hash))) {
            return Ok(());
        }
        invite.check()?;
        // From here on all that belongs to the call is ours, whoever is there for its repetitions.
        let taken = (state::TAKEN, 0);
        if self.change(arrival.now, arrival.kernel, hash, taken).is_none() {
            let clock = self.clock(arrival.now);
            // It is with no PBX of its family: of a call that was taken nobody looks at the slot.
            self.calls.put(hash, clock, 0);
            self.calls.change(hash, clock, taken);
        }
        let flow = Flow { local: arrival.local, peer: arrival.from, reliable: false };
        if let Some(stateful) = &mut self.stateful {
            self.counters.event(Event::HandledStateful);
            self.counters.event(Event::InviteAcross);
            stateful.handle_across(arrival.now, dispatcher, invite, flow);
        }
        Ok(())
    }

    /// A request in a dialog that has two Routes on top. Says whether they are ours: then it was sent on, or answered.
    pub(super) fn follow_across(
        &mut self,
        arrival: &Arrival<'_>,
        dispatcher: &Dispatcher,
        message: &Message<'_>,
        decision: &Decision,
        out: &mut Vec<Transmit>,
    ) -> bool {
        let (call, family) = (decision.plan.call, Family::of(arrival.from));
        let Some(routes) = Routes::read(&self.keys, message, call, family, &self.locals) else {
            return false;
        };
        let Some(local) = self.locals.iter().position(|local| *local == routes.from) else {
            return false;
        };
        // To the PBX goes what the other side says, as where there is one Route.
        let from_pbx = dispatcher.slot_at(arrival.from);
        let to_pbx = from_pbx != Some(routes.slot);
        // A PBX that is not this dialog's speaks only as its other side.
        if to_pbx && from_pbx.is_some() && arrival.from != routes.here {
            return false;
        }
        if message.method() == Method::Bye {
            self.note_bye(arrival, dispatcher, message);
        }
        let next = match to_pbx {
            true => dispatcher.pbx_of(routes.slot, family.other()).map(|(address, _)| address),
            false => Some(routes.there),
        };
        let Some(next) = next else {
            // A dialog whose PBX is gone is gone too (12.2.1.2).
            let gone = Refusal::new(481, "Call/Transaction Does Not Exist");
            self.answer(arrival, message, &gone, out);
            return true;
        };
        let target = Target {
            tag: routes.slot,
            flow: Flow { local, peer: next, reliable: false },
            uri: None,
            route: Routes::below(message),
            record_routes: [None, None],
            limits: Limits::default(),
            q: 0,
        };
        let theirs = decision.plan.via.branch;
        let branch = across::branch(&self.keys, call, message, theirs, arrival.local);
        let breadth = forward::breadth(message);
        let Self { locals, .. } = self;
        let original = Original { message, from: arrival.from, locals, realms: &[] };
        match forward::request(original, &target, &branch, breadth) {
            Ok(Some(bytes)) => {
                self.counters.event(Event::DialogAcross);
                out.push(Transmit { local, to: self.zoned(local, next), bytes });
            }
            Ok(None) => {
                let long = Refusal::new(513, "Message Too Large");
                self.answer(arrival, message, &long, out);
            }
            Err(error) => {
                self.answer(arrival, message, &Refusal::from(&Fault::from(error)), out);
            }
        }
        true
    }

    /// A response to such a request. Says whether it is one, by the looks of its branch.
    pub(super) fn response_across(
        &mut self,
        arrival: &Arrival<'_>,
        dispatcher: &Dispatcher,
        message: &Message<'_>,
        decision: &Decision,
        out: &mut Vec<Transmit>,
    ) -> bool {
        if !across::is_branch(message.slice(decision.plan.via.branch)) {
            return false;
        }
        let way = across::way_back(&self.keys, message, &self.locals);
        // From a PBX or to one, as where both sides are of one family.
        let way = way.filter(|(_, to)| {
            [arrival.from, *to].iter().any(|side| dispatcher.slot_at(*side).is_some())
        });
        let bytes = forward::response(message).filter(|_| message.check().is_ok());
        match (way, bytes) {
            (Some((local, to)), Some(bytes)) => {
                self.counters.event(Event::ResponseAcross);
                out.push(Transmit { local, to: self.zoned(local, to), bytes });
            }
            _ => self.counters.event(Event::DroppedResponse),
        }
        true
    }
}

#[cfg(test)]
mod tests;
