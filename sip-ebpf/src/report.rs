//! What is told of calls that are carried without memory, so that they have a record all the same: the final response to
//! the INVITE, and the BYE.
//!
//! [`crate::route::route`] notes in the plan when a response decides its call. Whoever sends a message on asks [`kind`]
//! whether there is something to tell: the kernel program puts it into `EVENTS`, the daemon tells itself.

use crate::calls::state;
use crate::reason::Reason;
use crate::route::Plan;
use crate::scan::{Index, Method};
use crate::tables::event;
use crate::text::Text;

/// What has become of a call.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Report {
    /// Its PBX has said a final response (RFC 3261 13.2.2.3, 13.2.2.4), the first one that went by.
    Final {
        /// The status code.
        status: u16,
        /// Whether the caller had cancelled before.
        cancelled: bool,
    },
    /// A BYE went by (15.1.1).
    Bye {
        /// Whether it came from who has called, who is no PBX.
        by_caller: bool,
    },
}

/// Of the status of [`event::FINAL`]: the caller had cancelled.
pub const CANCELLED: u32 = 1 << 16;

impl Report {
    /// What an event says. None if it is no report.
    pub fn of_event(kind: u32, status: u32) -> Option<Self> {
        match kind {
            event::FINAL => {
                Some(Self::Final { status: status as u16, cancelled: status & CANCELLED != 0 })
            }
            event::BYE_OF_CALLER => Some(Self::Bye { by_caller: true }),
            event::BYE_OF_CALLEE => Some(Self::Bye { by_caller: false }),
            _ => None,
        }
    }

    /// What is to be told of a message that goes on for this reason.
    pub fn of<T: Text>(t: T, index: &Index, plan: &Plan, reason: Reason) -> Option<Self> {
        let kind = kind(reason as u32, index.method, plan.decided);
        Self::of_event(kind, status(t, plan.decided))
    }
}

/// Which [`mod@event`] is told of a message that goes on; zero is none. `reason` is a [`Reason`], `method` that of the
/// [`Index`], `decided` that of the [`Plan`].
#[inline(always)]
pub fn kind(reason: u32, method: u32, decided: u32) -> u32 {
    if reason == Reason::ResponseForwarded as u32 {
        return if decided & state::ENDED != 0 { event::FINAL } else { 0 };
    }
    if method != Method::Bye as u32 {
        return 0;
    }
    match reason {
        _ if reason == Reason::DialogToPbx as u32 => event::BYE_OF_CALLER,
        _ if reason == Reason::DialogToPhone as u32 => event::BYE_OF_CALLEE,
        _ => 0,
    }
}

/// The status that such an event has: the code of a response, and whether its call was cancelled. Of a request it means
/// nothing.
#[inline(always)]
pub fn status<T: Text>(t: T, decided: u32) -> u32 {
    // "SIP/2.0 200": the scan has seen digits there.
    let digit = |at| (t.byte(at) & 15) as u32;
    let code = 100 * digit(8) + 10 * digit(9) + digit(10);
    code | if decided & state::CANCELLED != 0 { CANCELLED } else { 0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_told() {
        let (ended, both) = (state::ENDED, state::ENDED | state::CANCELLED);
        let response = |decided| kind(Reason::ResponseForwarded as u32, 0, decided);
        assert_eq!([response(0), response(state::CANCELLED)], [0; 2]);
        assert_eq!([response(ended), response(both)], [event::FINAL; 2]);
        let request = |reason, method| kind(reason as u32, method as u32, both);
        assert_eq!(request(Reason::DialogToPbx, Method::Bye), event::BYE_OF_CALLER);
        assert_eq!(request(Reason::DialogToPhone, Method::Bye), event::BYE_OF_CALLEE);
        assert_eq!(request(Reason::DialogToPbx, Method::Invite), 0);
        // Of these somebody else keeps the record, or there was no dialog.
        assert_eq!(request(Reason::ByeRecorded, Method::Bye), 0);
        assert_eq!(request(Reason::Method, Method::Bye), 0);
    }

    #[test]
    fn what_an_event_says() {
        let text = &b"SIP/2.0 487 Request Terminated\r\n"[..];
        let told = |decided| Report::of_event(event::FINAL, status(text, decided));
        let said = |cancelled| Some(Report::Final { status: 487, cancelled });
        assert_eq!([told(state::ENDED), told(state::CANCELLED)], [said(false), said(true)]);
        assert_eq!(
            Report::of_event(event::BYE_OF_CALLER, 0),
            Some(Report::Bye { by_caller: true })
        );
        assert_eq!(
            Report::of_event(event::BYE_OF_CALLEE, 7),
            Some(Report::Bye { by_caller: false })
        );
        assert_eq!([Report::of_event(event::INVITE, 0), Report::of_event(9, 0)], [None; 2]);
    }
}
