//! Calls that were steered without memory, and that their PBX does not take: they are carried with it from then on.
//!
//! `docs/architecture.md`, "No call lost", says what is agreed with the kernel program. The copy of each INVITE comes
//! here, and what its PBX says of it comes here only if that is 5xx. How far a call is stands in its word in the call
//! table, where who sends its messages on has noted it.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use sip_ebpf::Reason;
use sip_ebpf::calls::{Call, state};
use sip_ebpf::cookie;
use sip_ebpf::header::{self, Span};
use sip_ebpf::message::Message;
use sip_ebpf::report::Report;
use sip_ebpf::scan::{Index, Kind, scan};

use super::{Arrival, Datagram, KernelCalls, Proxy, Transmit};
use crate::core::context::{best, forward, late::Dialog};
use crate::core::counters::Event;
use crate::core::decision::Decision;
use crate::core::dispatcher::Dispatcher;
use crate::core::family::Family;
use crate::core::owner::Passed;
use crate::core::shadow::{Due, Shadow};
use crate::core::stateful::Taken;
use crate::core::transaction::{Flow, derived};

/// A caller has given up by himself when his INVITE is as old (64 T1).
const TOO_LATE: Duration = Duration::from_secs(32);

/// Why a call is taken over.
enum Cause<'a, 'm> {
    /// Its PBX has refused it by this 5xx.
    Refused(&'a Message<'m>),
    /// Its PBX has said nothing; we noticed so late.
    Silent(Duration),
    /// Its PBX is gone.
    Gone,
}

impl Proxy {
    /// The kernel has steered an INVITE to the PBX in a slot at this time: this is a copy of it.
    pub fn handle_steered(
        &mut self,
        (now, at): (Instant, Instant),
        dispatcher: &mut Dispatcher,
        kernel: &dyn KernelCalls,
        (datagram, slot): (Datagram<'_>, u32),
        out: &mut Vec<Transmit>,
    ) {
        let Datagram { local, from, bytes } = datagram;
        let mut index = self.index.take().unwrap_or_default();
        let known = self.identify(bytes, &mut index);
        if let (Some(known), Ok(message)) = (known, Message::scanned(bytes, &index)) {
            let arrival = Arrival { now, local, from, bytes, kernel, passed: false };
            self.steered(&arrival, at, dispatcher, &message, known, slot, out);
        }
        self.index = Some(index);
    }

    /// The kernel tells what has become of a call at this time, of which this is the hash.
    pub fn handle_report(
        &mut self,
        (now, at): (Instant, Instant),
        from: SocketAddr,
        hash: u64,
        report: Report,
    ) {
        let arrival = Arrival { now, local: 0, from, bytes: &[], kernel: &(), passed: false };
        self.report(&arrival, at, hash, report);
    }

    /// When [`Proxy::handle_timeout`] wants to be called.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.shadows.poll_timeout()
    }

    /// Time has passed: has every PBX said something to each call that it has?
    pub fn handle_timeout(
        &mut self,
        now: Instant,
        dispatcher: &mut Dispatcher,
        kernel: &dyn KernelCalls,
        out: &mut Vec<Transmit>,
    ) {
        while let Some(due) = self.shadows.poll(now) {
            match due {
                Due::Look(branch, late) => {
                    self.look(now, dispatcher, kernel, (branch, late), out);
                }
                Due::Held(held) => {
                    let (local, from) = (held.local, held.from);
                    let arrival =
                        Arrival { now, local, from, bytes: &held.bytes, kernel, passed: true };
                    self.without_net(&arrival, dispatcher, out);
                }
            }
        }
    }

    /// The PBXs may have changed: what was with one that is gone goes elsewhere, also if it rings there.
    pub fn handle_pbxs(
        &mut self,
        now: Instant,
        dispatcher: &mut Dispatcher,
        kernel: &dyn KernelCalls,
        out: &mut Vec<Transmit>,
    ) {
        for slot in 0..u64::BITS {
            let (bit, gone) = (1 << slot, dispatcher.is_gone(slot));
            let was_gone = self.gone & bit != 0;
            if gone && !was_gone {
                for branch in self.shadows.at(slot) {
                    self.take_over(now, dispatcher, kernel, (branch, Cause::Gone), out);
                }
            }
            self.gone = if gone { self.gone | bit } else { self.gone & !bit };
        }
    }

    /// An INVITE was steered at this time: by the kernel, or here.
    #[allow(clippy::too_many_arguments, reason = "they are from three places")]
    pub(super) fn steered(
        &mut self,
        arrival: &Arrival<'_>,
        at: Instant,
        dispatcher: &mut Dispatcher,
        message: &Message<'_>,
        (hash, branch): (u64, u64),
        slot: u32,
        out: &mut Vec<Transmit>,
    ) {
        let owner = self.worker.of_call(hash);
        if !arrival.passed && owner != self.worker.number() {
            if let Some(parcel) = self.parcels.get_mut(owner) {
                let bytes = message.bytes();
                parcel.put(arrival.local, arrival.from, bytes, Passed::Steered(slot, at));
            }
            return;
        }
        let Arrival { now, local, from, kernel, .. } = *arrival;
        if let Some(stateful) = self.stateful.as_mut().filter(|has| has.records_steered()) {
            stateful.handle_steered((now, at), dispatcher, (message, from), hash, slot);
        }
        // What was read late, after a restart, is nobody's to save any more.
        let late = now.saturating_duration_since(at) > TOO_LATE;
        let Some(patience) = self.patience().filter(|_| from.is_ipv4() && !late) else { return };
        let datagram = (local, from, message.bytes());
        match self.shadows.put(now, patience, branch, datagram, (hash, slot)) {
            Err(()) => self.counters.event(Event::ShadowsFull),
            Ok(None) => {
                // It may have been steered before that was known here.
                if dispatcher.is_gone(slot) {
                    self.take_over(now, dispatcher, kernel, (branch, Cause::Gone), out);
                }
            }
            Ok(Some(held)) => {
                let (local, from) = (held.local, held.from);
                let arrival =
                    Arrival { now, local, from, bytes: &held.bytes, kernel, passed: true };
                self.message(&arrival, dispatcher, &held.bytes, &mut Index::new(), out);
            }
        }
    }

    /// Something has become of a steered call at this time.
    pub(super) fn report(&mut self, arrival: &Arrival<'_>, at: Instant, hash: u64, report: Report) {
        if !self.records_steered() {
            return;
        }
        let owner = self.worker.of_call(hash);
        if !arrival.passed && owner != self.worker.number() {
            if let Some(parcel) = self.parcels.get_mut(owner) {
                let what = Passed::Report(hash, at, report);
                parcel.put(arrival.local, arrival.from, &[], what);
            }
            return;
        }
        if let Some(stateful) = &mut self.stateful {
            stateful.handle_report((arrival.now, at), hash, report);
        }
    }

    /// A BYE goes on for this reason, or would, by the long way.
    pub(super) fn report_bye(
        &mut self,
        arrival: &Arrival<'_>,
        decision: &Decision,
        reason: Reason,
    ) {
        let by_caller = reason == Reason::DialogToPbx;
        self.report(arrival, arrival.now, decision.plan.call, Report::Bye { by_caller });
    }

    /// A response to an INVITE that was steered which is not for its caller as it is.
    pub(super) fn steered_response(
        &mut self,
        arrival: &Arrival<'_>,
        dispatcher: &mut Dispatcher,
        message: &Message<'_>,
        decision: &Decision,
        out: &mut Vec<Transmit>,
    ) {
        let owner = self.worker.of_call(decision.plan.call);
        if self.pass_on(arrival, Some(owner)) {
            return;
        }
        let branch = decision.plan.branch;
        let status = message.status().unwrap_or(0);
        let from = dispatcher.slot_at(arrival.from);
        let theirs = |shadow: &Shadow| !shadow.taken && Some(shadow.slot) == from;
        match self.shadows.get(branch).map(theirs) {
            Some(true) => {
                if decision.reason == Reason::SteeredFailed {
                    let cause = Cause::Refused(message);
                    let Arrival { now, kernel, .. } = *arrival;
                    self.take_over(now, dispatcher, kernel, (branch, cause), out);
                } else {
                    // Another transaction of the call was taken over.
                    self.forward_steered(arrival, message, decision, out);
                }
            }
            Some(false) => self.late(arrival, message, branch, status, out),
            None if decision.reason == Reason::SteeredFailed
                && self.shadows.hold(
                    arrival.now,
                    branch,
                    (arrival.local, arrival.from, arrival.bytes),
                ) => {}
            None => self.forward_steered(arrival, message, decision, out),
        }
    }

    /// A request of a call that was taken over.
    pub(super) fn taken_request(
        &mut self,
        arrival: &Arrival<'_>,
        dispatcher: &mut Dispatcher,
        message: &Message<'_>,
        decision: &Decision,
    ) -> Result<(), super::Fault> {
        let owner = self.worker.of_call(decision.plan.call);
        if self.pass_on(arrival, Some(owner)) {
            return Ok(());
        }
        message.check()?;
        let flow = Flow { local: arrival.local, peer: arrival.from, reliable: false };
        if let Some(stateful) = &mut self.stateful {
            self.counters.event(Event::HandledStateful);
            stateful.handle_taken(arrival.now, dispatcher, message, flow);
        }
        Ok(())
    }

    // ---- One call -------------------------------------------------------------------------------

    fn look(
        &mut self,
        now: Instant,
        dispatcher: &mut Dispatcher,
        kernel: &dyn KernelCalls,
        (branch, late): (u64, Duration),
        out: &mut Vec<Transmit>,
    ) {
        let Some(shadow) = self.shadows.get(branch).filter(|shadow| !shadow.taken) else {
            return self.shadows.remove(branch);
        };
        let slot = shadow.slot;
        let call =
            kernel.find(shadow.hash).or_else(|| self.calls.find(shadow.hash, self.clock(now)));
        match call.map(|call| call.state) {
            None => self.shadows.remove(branch),
            Some(bits) if bits & (state::ENDED | state::TAKEN) != 0 => {
                dispatcher.handle_steered_response(now, slot, 200, None);
                self.shadows.remove(branch);
            }
            Some(bits) if bits & state::HEARD != 0 => {
                dispatcher.handle_steered_response(now, slot, 180, None);
                self.shadows.again(now, branch);
            }
            Some(_) => {
                self.take_over(now, dispatcher, kernel, (branch, Cause::Silent(late)), out);
            }
        }
    }

    fn take_over(
        &mut self,
        now: Instant,
        dispatcher: &mut Dispatcher,
        kernel: &dyn KernelCalls,
        (branch, cause): (u64, Cause<'_, '_>),
        out: &mut Vec<Transmit>,
    ) {
        let Some(shadow) = self.shadows.get(branch) else { return };
        let (hash, slot, local, from) = (shadow.hash, shadow.slot, shadow.local, shadow.from);
        let request = shadow.request.clone();
        // From here on all that belongs to the call comes up.
        let Some(was) = self.change(now, kernel, hash, (state::TAKEN, 0)) else {
            return self.shadows.remove(branch);
        };
        if was.slot != slot {
            return self.moved((now, kernel), dispatcher, (branch, was), cause, out);
        }
        let ended = was.state & (state::ENDED | state::TAKEN) != 0;
        if ended && !matches!(cause, Cause::Refused(_)) {
            // It is decided, or another transaction of it is ours already.
            if was.state & state::TAKEN == 0 {
                self.change(now, kernel, hash, (0, state::TAKEN));
            }
            return self.shadows.remove(branch);
        }
        let mut index = Index::new();
        let Ok(invite) = Message::parse(&request, &mut index) else { return };
        if invite.check().is_err() {
            self.change(now, kernel, hash, (0, state::TAKEN));
            return self.shadows.remove(branch);
        }
        self.counters.event(match cause {
            Cause::Refused(_) => Event::TakenRefused,
            Cause::Silent(_) => Event::TakenSilent,
            Cause::Gone => Event::TakenGone,
        });
        let pbx = dispatcher.pbx_of(slot, Family::V4).map(|(address, _)| address);
        let mut refused = None;
        match cause {
            Cause::Refused(response) => {
                let status = response.status().unwrap_or(0);
                let retry = best::retry_after(response).map(u64::from).map(Duration::from_secs);
                dispatcher.handle_steered_response(now, slot, status, retry);
                self.acknowledge(branch, response, pbx, out);
                // For 503 we say when to come again (16.7 step 6).
                refused = forward::response(response).filter(|_| status != 503);
            }
            Cause::Silent(late) => dispatcher.handle_steered_timeout(now, slot, late),
            Cause::Gone => {}
        }
        if was.state & state::HEARD != 0 && refused.is_none() {
            self.let_be(branch, pbx, out);
        }
        self.shadows.taken(now, branch);
        let cancelled = was.state & state::CANCELLED != 0;
        let flow = Flow { local, peer: from, reliable: false };
        if let Some(stateful) = &mut self.stateful {
            let taken = Taken { flow, slot: Some(slot), cancelled, refused };
            stateful.take_over(now, dispatcher, &invite, taken);
        }
    }

    /// A call that was about to be taken over has gone to another PBX: its caller has repeated the INVITE when the one before was
    /// known to be gone and this had not been told here yet. So it is with that one, and would be there twice.
    fn moved(
        &mut self,
        (now, kernel): (Instant, &dyn KernelCalls),
        dispatcher: &mut Dispatcher,
        (branch, was): (u64, Call),
        cause: Cause<'_, '_>,
        out: &mut Vec<Transmit>,
    ) {
        let Some(shadow) = self.shadows.get(branch) else { return };
        let (hash, slot, local, from) = (shadow.hash, shadow.slot, shadow.local, shadow.from);
        let request = shadow.request.clone();
        if was.state & state::TAKEN == 0 {
            self.change(now, kernel, hash, (0, state::TAKEN));
        }
        if let Cause::Refused(response) = cause {
            let pbx = dispatcher.pbx_of(slot, Family::V4).map(|(address, _)| address);
            self.acknowledge(branch, response, pbx, out);
        }
        let Some(patience) = self.patience() else { return self.shadows.remove(branch) };
        // Its copy is on its way, or was lost. It is there already, so there is room.
        let _ = self.shadows.put(now, patience, branch, (local, from, &request), (hash, was.slot));
    }

    /// What a PBX says of a call that was taken from it: nobody waits for it.
    fn late(
        &mut self,
        arrival: &Arrival<'_>,
        message: &Message<'_>,
        branch: u64,
        status: u16,
        out: &mut Vec<Transmit>,
    ) {
        self.counters.event(Event::SteeredLate);
        match status {
            ..=100 => {}
            101..200 => self.let_be(branch, Some(arrival.from), out),
            200..300 => {
                // Ours, and those of proxies before us.
                let mut index = Index::new();
                let invite = self.shadows.get(branch).map(|shadow| &shadow.request[..]);
                let invite = invite.and_then(|invite| Message::parse(invite, &mut index).ok());
                let above = 1 + invite.map_or(0, |invite| invite.record_routes().count());
                let Some(dialog) = Dialog::new(message, above) else { return };
                let ack = dialog.ack(&self.own_via(arrival.local, arrival.now, 0));
                let bye = dialog.bye(&self.own_via(arrival.local, arrival.now, 1));
                for bytes in [ack, bye].into_iter().flatten() {
                    out.push(Transmit { local: arrival.local, to: arrival.from, bytes });
                }
            }
            _ => self.acknowledge(branch, message, Some(arrival.from), out),
        }
    }

    /// The ACK of a failure, as who has sent the INVITE on (17.1.1.3).
    fn acknowledge(
        &self,
        branch: u64,
        response: &Message<'_>,
        to: Option<SocketAddr>,
        out: &mut Vec<Transmit>,
    ) {
        let (Some((local, sent)), Some(to)) = (self.as_sent(branch), to) else { return };
        if let Some(bytes) = derived::ack(&sent, &mut Index::new(), response) {
            out.push(Transmit { local, to, bytes });
        }
    }

    /// The CANCEL for a PBX where a call rings that was taken from it (9.1), once.
    fn let_be(&mut self, branch: u64, to: Option<SocketAddr>, out: &mut Vec<Transmit>) {
        let Some(shadow) = self.shadows.get_mut(branch).filter(|shadow| !shadow.cancelled) else {
            return;
        };
        shadow.cancelled = true;
        let (Some((local, sent)), Some(to)) = (self.as_sent(branch), to) else { return };
        if let Some(bytes) = derived::cancel(&sent, &mut Index::new()) {
            out.push(Transmit { local, to, bytes });
        }
    }

    /// The INVITE with our Via, as far as others are derived from that.
    fn as_sent(&self, branch: u64) -> Option<(usize, Vec<u8>)> {
        let shadow = self.shadows.get(branch)?;
        let local = self.locals.get(shadow.local)?;
        let at = shadow.request.windows(2).position(|two| two == b"\r\n")? + 2;
        let digits = sip_ebpf::text::hex(branch).map(u64::to_le_bytes).concat();
        let stateless = str::from_utf8(cookie::STATELESS).ok()?;
        let digits = str::from_utf8(&digits).ok()?;
        let via = format!("Via: SIP/2.0/UDP {local};branch={stateless}{digits}\r\n");
        let (line, rest) = shadow.request.split_at_checked(at)?;
        Some((shadow.local, [line, via.as_bytes(), rest].concat()))
    }

    /// A response that belongs to no INVITE which is kept: as if there were no net.
    fn without_net(
        &mut self,
        arrival: &Arrival<'_>,
        dispatcher: &mut Dispatcher,
        out: &mut Vec<Transmit>,
    ) {
        let mut index = Index::new();
        if scan(arrival.bytes, &mut index).is_err() {
            return;
        }
        let mut decision = Decision::default();
        self.decide(arrival, dispatcher, arrival.bytes, &index, &mut decision);
        if matches!(decision.reason, Reason::SteeredFailed | Reason::TakenOver)
            && let Ok(message) = Message::scanned(arrival.bytes, &index)
        {
            self.forward_steered(arrival, &message, &decision, out);
        }
    }

    fn forward_steered(
        &mut self,
        arrival: &Arrival<'_>,
        message: &Message<'_>,
        decision: &Decision,
        out: &mut Vec<Transmit>,
    ) {
        self.counters.event(Event::NoShadow);
        let bits = (state::HEARD | state::ENDED, 0);
        let hash = decision.plan.call;
        let was = self.change(arrival.now, arrival.kernel, hash, bits);
        let was = was.map_or(0, |call| call.state);
        let status = message.status().unwrap_or(0);
        if status >= 200 && was & state::ENDED == 0 {
            let cancelled = was & state::CANCELLED != 0;
            self.report(arrival, arrival.now, hash, Report::Final { status, cancelled });
        }
        let forwarded = Decision { reason: Reason::ResponseForwarded, ..*decision };
        self.send(arrival, message.bytes(), message.index(), &forwarded, out);
    }

    // ---- Small things ---------------------------------------------------------------------------

    pub(super) fn change(
        &self,
        now: Instant,
        kernel: &dyn KernelCalls,
        hash: u64,
        bits: (u32, u32),
    ) -> Option<Call> {
        kernel.change(hash, bits).or_else(|| self.calls.change(hash, self.clock(now), bits))
    }

    /// Keyed hash of its Call-ID and the number of our branch: as [`mod@sip_ebpf::route`] makes them.
    pub(super) fn identify(&self, bytes: &[u8], index: &mut Index) -> Option<(u64, u64)> {
        scan(bytes, index).ok()?;
        let via = index.first(Kind::Via)?;
        let mut top = header::Via::default();
        header::via(bytes, u32::from(via.value), u32::from(via.end), &mut top).ok()?;
        let line = index.first(Kind::CallId)?;
        let call_id = Span { at: u32::from(line.value), end: u32::from(line.end) };
        let (hash, _) = cookie::call(&self.keys, bytes, call_id);
        Some((hash, cookie::branch(&self.keys, hash, bytes, top.branch)))
    }

    /// A Via for a request of our own that wants no answer.
    fn own_via(&self, local: usize, now: Instant, number: u64) -> String {
        let time = self.clock(now) << 1 | number;
        match self.locals.get(local) {
            Some(local) => format!("SIP/2.0/UDP {local};branch=z9hG4bKslb{time:016x}"),
            None => String::new(),
        }
    }
}

#[cfg(test)]
mod tests;
