//! What the daemon has done, in numbers with names.
//!
//! A message that [`sip_ebpf::route`] decides is counted under the kernel's own name for that decision,
//! so the two columns of `sipline stats` can be read side by side. What only a daemon does has names here.

use std::collections::BTreeMap;

use sip_ebpf::Reason;
use sip_ebpf::reason::REASONS;

macro_rules! events {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal;)+) => {
        /// What happens in the daemon alone.
        #[derive(Clone, Copy, Debug, Eq, PartialEq)]
        pub enum Event {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Event {
            /// All, in the order of their slots.
            pub const ALL: &'static [Self] = &[$(Self::$name,)+];

            /// The counter's name, stable for operators.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$name => $text,)+ }
            }
        }
    };
}

events! {
    /// A datagram came in.
    Received = "received";
    /// A datagram went out; probes too.
    Sent = "sent";
    /// A datagram could not be sent.
    SendFailed = "send_failed";
    /// A datagram could not be sent because the socket was full: the network is slower than we are.
    SendDropped = "send_dropped";
    /// A message in a rare form was written anew in the usual one before it was routed.
    Rewritten = "rewritten";
    /// A request of a PBX that starts something was relayed to its Request-URI.
    RelayedFromPbx = "relayed_from_pbx";
    /// A request between two PBXs followed our cookie.
    DialogBetweenPbxs = "dialog_between_pbxs";
    /// An INVITE of somebody who is trusted was given to what needs memory, to place it with a PBX of the other family.
    InviteAcross = "invite_across";
    /// A request in a call between IPv4 and IPv6 went on to its other side.
    DialogAcross = "dialog_across";
    /// A response to such a request did.
    ResponseAcross = "response_across";
    /// A message was handed to what needs memory: a request to the registrar, a response to a request of ours.
    HandledStateful = "handled_stateful";
    /// A message was passed on to the worker whose it is.
    PassedOn = "passed_on";
    /// A message could not be passed on: the worker whose it is has too much to do.
    PassedOnDropped = "passed_on_dropped";
    /// A message that is wrong and cannot be answered.
    DroppedMalformed = "dropped_malformed";
    /// A request of somebody who calls himself as scanners do (`gate.scanners`): not answered.
    ScannerDropped = "scanner_dropped";
    /// An ACK that belongs to nothing we know (RFC 3261 16.11: it ends here).
    AckAbsorbed = "ack_absorbed";
    /// A response that is not ours, or has no way on.
    DroppedResponse = "dropped_response";
    /// A response to a probe.
    ProbeAnswer = "probe_answer";
    /// A call that was steered was taken over because its PBX has refused it (5xx).
    TakenRefused = "taken_over_refused";
    /// A call that was steered was taken over because its PBX said nothing.
    TakenSilent = "taken_over_silent";
    /// A call that was steered was taken over because its PBX is gone.
    TakenGone = "taken_over_gone";
    /// A PBX has answered a call that was taken from it; that was ended.
    SteeredLate = "steered_late";
    /// A PBX has refused a call that was steered, and there was no copy of its INVITE: its caller hears so.
    NoShadow = "no_shadow";
    /// There was no room for the copy of an INVITE that was steered: the call goes on without a net.
    ShadowsFull = "shadows_full";
    /// There was no room for what is known of a call that the kernel carries: after a restart it has no record.
    OpenFull = "open_calls_full";
    /// There were too many sources that somebody has registered from: this one may send no more than strangers may.
    RegisteredFull = "registered_full";
    /// There were too many sources that may have to be banned: the oldest was forgotten.
    SuspectsForgotten = "suspects_forgotten";
    /// There was no room for where somebody has registered from (`trust.registered`): he is asked for credentials.
    EndpointsFull = "endpoints_full";
    /// An ICMP error for a packet from one of our addresses.
    IcmpError = "icmp_error";
}

/// All counters of the daemon.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Counters {
    reasons: Vec<u64>,
    events: Vec<u64>,
    replies: BTreeMap<u16, u64>,
}

impl Default for Counters {
    fn default() -> Self {
        Self {
            reasons: vec![0; REASONS as usize],
            events: vec![0; Event::ALL.len()],
            replies: BTreeMap::new(),
        }
    }
}

impl Counters {
    /// Counts a decision.
    pub fn reason(&mut self, reason: Reason) {
        if let Some(n) = self.reasons.get_mut(reason as usize) {
            *n += 1;
        }
    }

    /// Counts an event.
    pub fn event(&mut self, event: Event) {
        self.events(event, 1);
    }

    /// Counts events.
    pub fn events(&mut self, event: Event, times: u64) {
        if let Some(n) = self.events.get_mut(event as usize) {
            *n += times;
        }
    }

    /// Counts an answer of our own.
    pub fn reply(&mut self, code: u16) {
        *self.replies.entry(code).or_insert(0) += 1;
    }

    /// Adds what others have counted.
    pub fn add(&mut self, other: &Self) {
        let sums = self.reasons.iter_mut().chain(&mut self.events);
        for (sum, more) in sums.zip(other.reasons.iter().chain(&other.events)) {
            *sum += more;
        }
        for (code, more) in &other.replies {
            *self.replies.entry(*code).or_insert(0) += more;
        }
    }

    /// How often a decision was taken.
    pub fn of_reason(&self, reason: Reason) -> u64 {
        self.reasons.get(reason as usize).copied().unwrap_or(0)
    }

    /// How often an event happened.
    pub fn of_event(&self, event: Event) -> u64 {
        self.events.get(event as usize).copied().unwrap_or(0)
    }

    /// How many answers with a code we gave.
    pub fn of_reply(&self, code: u16) -> u64 {
        self.replies.get(&code).copied().unwrap_or(0)
    }

    /// The answers that we gave, by code.
    pub fn replies(&self) -> impl Iterator<Item = (u16, u64)> {
        self.replies.iter().map(|(code, n)| (*code, *n))
    }

    /// All by name: events, decisions, `replied_CODE`. Those that never happened too, but for replies.
    pub fn named(&self) -> BTreeMap<String, u64> {
        let events = Event::ALL.iter().map(|e| (e.name().to_owned(), self.of_event(*e)));
        let reasons = Reason::ALL.iter().map(|r| (r.name().to_owned(), self.of_reason(*r)));
        let replies = self.replies.iter().map(|(code, n)| (format!("replied_{code}"), *n));
        events.chain(reasons).chain(replies).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_unique() {
        let mut counters = Counters::default();
        counters.reply(200);
        let all = Event::ALL.len() + Reason::ALL.len() + 1;
        assert_eq!(counters.named().len(), all);
    }

    #[test]
    fn counts() {
        let mut counters = Counters::default();
        counters.event(Event::Received);
        counters.events(Event::Received, 2);
        counters.reason(Reason::InviteSteered);
        assert_eq!(counters.of_event(Event::Received), 3);
        assert_eq!(counters.named()["invite_steered"], 1);
        let mut other = Counters::default();
        other.reply(486);
        other.event(Event::Received);
        counters.add(&other);
        counters.add(&other);
        assert_eq!((counters.of_event(Event::Received), counters.of_reply(486)), (5, 2));
    }
}
